"""SCAFFOLD with Rand-K: how much may be left out of change and control (L = 2, iid, option I, one local step)."""

import typer
from studies import main_of

SHARED = {"algorithm": "scaffold", "smoothness": 2.0, "learning_rate": 1.0, "server_learning_rate": 0.5, "rounds": 100}
CASES = {
    "K 100 %": SHARED,
    **{f"K {share} %": {**SHARED, "compression": f"rand_k:{share / 100}"} for share in (80, 60, 40, 20)},
}

if __name__ == "__main__":
    typer.run(main_of("scaffold-rand-k", CASES))

"""Compressed stochastic MARINA, L = 5: what minibatches cost beside full gradients, whole and with Rand-K."""

import typer
from studies import main_of

SHARED = {"algorithm": "marina", "smoothness": 5.0, "learning_rate": 0.05, "rounds": 200, "iid": False}
CASES = {
    f"batch {size} {codec}": {**SHARED, "batch_size": size, "compression": codec}
    for size in (100, 25, 5)
    for codec in ("identity", "rand_k:0.4")
}

if __name__ == "__main__":
    typer.run(main_of("stochastic-marina", CASES))

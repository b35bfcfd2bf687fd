"""MARINA and DIANA with local steps, Bernoulli 0.8, L = 5: with η_g = 1/τ the total step is the same for every τ."""

import typer
from studies import main_of

SHARED = {"smoothness": 5.0, "learning_rate": 0.15, "compression": "bernoulli:0.8", "rounds": 100}
CASES = {
    f"{method} τ {tau} {'iid' if iid else 'not iid'}": {
        **SHARED, "algorithm": method, "local_steps": tau, "server_learning_rate": 1 / tau, "iid": iid,
    }
    for iid in (True, False) for method in ("marina", "diana") for tau in (1, 5)
}  # fmt: skip

if __name__ == "__main__":
    typer.run(main_of("marina-diana", CASES))

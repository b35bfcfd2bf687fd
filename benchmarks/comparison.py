"""Every method on the digits: rounds and bits until nine tenths of the validation digits are read.

``python -m benchmarks.comparison`` writes ``docs/comparison.md``. In order:

1. Each method of `federation.algorithms.registry` is simulated for every partition and seed with the options in
   `SETTINGS`, the same network, sites, batches and local work otherwise. Options were chosen by hand and not searched.
2. The federated accuracy of the global model is looked at after every round; FedPer, FedRep and FedBN have no whole
   global model and are measured with each site's own part. Every site validates on all validation digits.
3. Bits are the payload bytes of the history times eight, up and down, from the first round to the one that reaches
   `GOAL`. Asynchronous methods count a version as a round; FedAsync takes one update for a version, and gets more.
"""

from __future__ import annotations

import multiprocessing
import statistics
from collections import OrderedDict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from federation import Experiment
    from federation.data.shard import Shard

GOAL = 0.9
SITES = 10
PARTITIONS = {"iid": "IID", "dirichlet:0.1": "Dirichlet(0.1)"}
LEARNING_RATE = 0.3
BATCH = 32
OUT = Path(__file__).parents[1] / "docs" / "comparison.md"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a method is given beside the common plan.

    Attributes:
        plan: plan fields.
        rounds_factor: rounds it gets, as a multiple of what others get.
        has_norm: whether the network has batch normalisation, without which FedBN is FedAvg.
    """

    plan: dict[str, Any] = field(default_factory=dict)
    rounds_factor: int = 1
    has_norm: bool = False


SETTINGS: dict[str, Setting] = {
    "fedavg": Setting(),
    "fedsgd": Setting(plan={"learning_rate": 0.5}),
    "fedprox": Setting(plan={"options": {"mu": 0.1}}),
    "fixed_time": Setting(plan={"local_seconds": 0.01, "local_steps": 5}),
    "scaffold": Setting(),
    "fednova": Setting(),
    "fedavgm": Setting(plan={"options": {"beta": 0.9}, "server_learning_rate": 0.3}),
    "fedadagrad": Setting(plan={"server_learning_rate": 0.1}),
    "fedadam": Setting(plan={"server_learning_rate": 0.03}),
    "fedyogi": Setting(plan={"server_learning_rate": 0.03}),
    "feddyn": Setting(plan={"options": {"alpha": 0.1}}),
    "qfedavg": Setting(plan={"options": {"q": 0.1}}),
    "fedcurv": Setting(plan={"options": {"strength": 0.001}}),
    "dcgd": Setting(plan={"compression": "top_k:0.1"}),
    "diana": Setting(plan={"compression": "rand_k:0.25"}),
    "marina": Setting(plan={"compression": "rand_k:0.25", "local_steps": 5}),
    "ef21": Setting(plan={"compression": "top_k:0.1"}),
    "ditto": Setting(plan={"options": {"strength": 0.1}}),
    "fedper": Setting(plan={"local": ("head.*",)}),
    "fedrep": Setting(plan={"local": ("head.*",), "options": {"head_epochs": 1}}),
    "fedbn": Setting(plan={"local": ("norm.*",)}, has_norm=True),
    "personal_fedavg": Setting(plan={"options": {"stage_rounds": 50}, "server_learning_rate": 0.3}),
    "per_fedavg": Setting(plan={"options": {"a": 0.01}}),
    "mixing": Setting(plan={"options": {"beta": 0.25}}),
    "fedasync": Setting(plan={"options": {"alpha": 0.6}}, rounds_factor=4),
    "fedbuff": Setting(plan={"options": {"k": 5}}),
    "stale": Setting(plan={"options": {"penalty": 0.5}, "quorum": 8}),
}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one run gave.

    Attributes:
        rounds: rounds to the goal; None: not reached.
        megabits: both ways, to the goal, millions; None: not reached.
        best: highest accuracy of any round, 0 to 1.
        error: class of the error it ended with, or how it ended; empty if it ran to its end.
    """

    rounds: int | None = None
    megabits: float | None = None
    best: float = 0.0
    error: str = ""


def make_model(*, has_norm: bool = False) -> Any:
    """Make the network 64-32-10, with named parts."""
    from torch import nn

    layers: list[tuple[str, nn.Module]] = [("flat", nn.Flatten()), ("body", nn.Linear(64, 32))]
    if has_norm:
        layers.append(("norm", nn.BatchNorm1d(32)))
    return nn.Sequential(OrderedDict([*layers, ("bend", nn.ReLU()), ("head", nn.Linear(32, 10))]))


def run(method: str, partition: str, seed: int, rounds: int) -> Outcome:
    """Simulate one cell's run; a method that fails is a result, not an end of the table."""
    from federation import simulate
    from federation.simulation import TimeModel

    times = TimeModel(speed="lognormal:0.5")  # unlike sites, without which asynchronous methods had nothing to wait for
    try:
        shards = _shards(partition, seed)
        result = simulate(_experiment(method, rounds), sites=sorted(shards), data=shards, seed=seed, times=times)
    except Exception as error:
        return Outcome(error=type(error).__name__)
    if result.outcome != "completed":
        return Outcome(error=f"{result.outcome}: {result.reason}"[:80])
    best, bits = 0.0, 0
    reached: tuple[int, float] | None = None
    for number, record in enumerate(result.records, start=1):
        bits += 8 * (record.bytes_up + record.bytes_down)
        accuracy = record.metrics["accuracy"]
        best = max(best, accuracy)
        if reached is None and accuracy >= GOAL:
            reached = number, bits / 1e6
    if reached is None:
        return Outcome(best=best)
    return Outcome(rounds=reached[0], megabits=reached[1], best=best)


def _shards(partition: str, seed: int) -> dict[str, Shard]:
    """Return each site's training digits, and all validation digits for everybody.

    An asynchronous version is evaluated by the sites that are there; were theirs a tenth of the digits, a lucky tenth
    would reach the goal.
    """
    from federation.data import ArrayShard
    from federation.data.part import training_parts
    from federation.data.partitions import parse_partition
    from federation.data.samples import WholeDigits

    whole = WholeDigits()
    samples, targets = whole.train
    return {
        f"site-{number:02d}": ArrayShard(train=(samples[mine], targets[mine]), validation=whole.validation)
        for number, mine in enumerate(training_parts(whole, parse_partition(partition), SITES, seed))
    }


def _experiment(method: str, rounds: int) -> Experiment:
    from functools import partial

    from federation import BestModel, Experiment, Plan, SupervisedTask

    setting = SETTINGS.get(method, Setting())
    fields = {"learning_rate": LEARNING_RATE, "sites": SITES, "minimum_sites": SITES, **setting.plan}
    return Experiment(
        name="comparison",
        model=partial(make_model, has_norm=setting.has_norm),
        task=SupervisedTask(loss="cross_entropy", optimizer="sgd", batch_size=BATCH, metrics=("accuracy",)),
        shard="digits",
        plan=Plan(
            algorithm=method,
            rounds=rounds * setting.rounds_factor,
            best=BestModel(metric="accuracy", direction="max"),
            **fields,
        ),
    )


def cells_of(outcomes: Sequence[Outcome]) -> tuple[str, str, str]:
    """Return rounds, megabits and best accuracy of one method and partition, as text: mean ± deviation over seeds."""
    errors = sorted({outcome.error for outcome in outcomes if outcome.error})
    if errors:
        return (", ".join(errors), "", "")
    best = _spread([100 * outcome.best for outcome in outcomes], "{:.1f}")
    met = [(outcome.rounds, outcome.megabits) for outcome in outcomes if outcome.rounds is not None]
    if not met:
        return ("not reached", "not reached", best)
    of = "" if len(met) == len(outcomes) else f" ({len(met)} of {len(outcomes)} seeds)"
    rounds = _spread([float(number) for number, _ in met], "{:.0f}")
    megabits = _spread([bits for _, bits in met if bits is not None], "{:.1f}")
    return (rounds + of, megabits + of, best)


def _spread(values: Sequence[float], form: str) -> str:
    mean = form.format(statistics.fmean(values))
    return mean if len(values) == 1 else f"{mean} ± {form.format(statistics.stdev(values))}"


def options_of(method: str) -> str:
    """Return what a method is given beside the common plan, as text."""
    setting = SETTINGS.get(method, Setting())
    fields = {
        **{key: value for key, value in setting.plan.items() if key != "options"},
        **setting.plan.get("options", {}),
    }
    if setting.rounds_factor != 1:
        fields["rounds"] = f"×{setting.rounds_factor}"
    if setting.has_norm:
        fields["network"] = "with BatchNorm"
    return ", ".join(f"{key}={value[0] if isinstance(value, tuple) else value}" for key, value in fields.items())


def page_of(rows: Iterable[Sequence[str]], *, seeds: str, rounds: int) -> str:
    """Return the document."""
    head = ["method"]
    for title in PARTITIONS.values():
        head += [f"{title}: rounds", "Mbit", "best %"]
    head.append("beside the common plan")
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
    return "\n".join([
        "# Every method on digits",
        "",
        f"Rounds, and megabits up and down together, until {GOAL:.0%} of the validation digits are read; and the best",
        f"accuracy within {rounds} rounds. Mean ± standard deviation over the seeds `{seeds}`. Made by",
        "",
        "```bash",
        f"python -m benchmarks.comparison --seeds {seeds} --rounds {rounds}",
        "```",
        "",
        f"{SITES} simulated sites, all asked each round, share 1437 digits; a network 64-32-10; one local epoch of SGD",
        f"at {LEARNING_RATE:g} in batches of {BATCH} unless the last column says otherwise. Options were set by hand,",
        "not searched: the table says what these settings do, not which method is best. Without compression in the",
        "last column everything is sent in float32.",
        "",
        "- Sites differ in speed (log-normal, 0.5), which only asynchronous methods (FedAsync, FedBuff, stale) feel;",
        "  they count versions as rounds, and FedAsync makes a version of every update.",
        "- The accuracy is the global model's on the same 360 validation digits at every site, under both partitions.",
        "  So personal methods are judged by the model they share, and FedPer, FedRep and FedBN by site models tried",
        "  on digits of all classes, which a site of Dirichlet(0.1) has hardly seen.",
        "- How many steps `fixed_time` takes is up to the clock; it is the one row that does not repeat exactly.",
        "",
        *lines,
        "",
    ])  # fmt: skip


def main(
    seeds: Annotated[str, typer.Option(help="Such as 0:3.")] = "0:3",
    rounds: Annotated[int, typer.Option(min=1, help="Of each run.")] = 200,
    out: Annotated[Path, typer.Option(help="Document to write.")] = OUT,
    workers: Annotated[int, typer.Option(min=1, help="Runs at once.")] = 2,
) -> None:
    """Measure every method and write the table."""
    from federation.algorithms.registry import BUILT_IN
    from federation.client.grid import parse_seeds

    numbers = parse_seeds(seeds)
    rows = []
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        runs = {
            (method, partition): [pool.submit(run, method, partition, seed, rounds) for seed in numbers]
            for method in BUILT_IN
            for partition in PARTITIONS
        }
        for method, algorithm in BUILT_IN.items():
            row = [f"[{algorithm.title}](methods/{method.replace('_', '-')}.md)"]
            for partition in PARTITIONS:
                cells = cells_of([future.result() for future in runs[method, partition]])
                print(f"{method:16} {partition:14} " + "  ".join(cells), flush=True)
                row += cells
            rows.append([*row, options_of(method)])
    out.write_text(page_of(rows, seeds=seeds, rounds=rounds), encoding="utf-8")
    print(f"wrote {out}")


if __name__ == "__main__":
    typer.run(main)

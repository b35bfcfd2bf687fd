"""Rules against attacks: accuracy on digits of each defence under each attack, cell by cell, into a file of lines.

``python -m benchmarks robustness`` runs the part that says most, ``--full`` all of it; ``--page`` writes
``docs/robustness.md`` of what the file has (`benchmarks.robustness_page`). In order:

1. A cell is one simulation of a defence, an attack, the number of hostile sites f, a partition and a seed. Of ten
   sites the last f by name are hostile; everybody trains the same network on arrays for the same rounds.
2. A defence is told the true f. Without hostile sites it is told 2, so that its price shows; and its cell says n/a
   where its condition does not hold for ten sites.
3. What is measured is the accuracy of the last committed model on the 360 digits that no site trains on. A run that
   ended early, since its next model was not finite, is measured as it was left and marked.
4. Each cell is a line of JSON, written when it is done, with a digest of the plan it was run with (`plan_digest`).
   Cells that are there with the plan of today are not run again, so a run that was stopped goes on; of another plan
   they are, and are not in the page. Lines from before there were digests count as of today's plans. A change of the
   library's code is not seen: give another file then. Numbers repeat: one seed, one result.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from benchmarks.results import Result

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from federation import Experiment, Plan
    from federation.data.shard import Shard

SITES = 10
HIDDEN = 32
BATCH = 32
LEARNING_RATE = 0.3
ROUNDS = 30
FEATURES = 64
CLASSES = 10
PARTITIONS = {"iid": "IID", "dirichlet:0.3": "Dirichlet(0.3)"}
HOSTILE = (2, 4)
TOLD = 2
"""f that a defence is told where no site is hostile."""
TRUSTED = "site-00"
"""An honest site, for rules that trust one."""
NONE = "none"
ATTACKS: dict[str, str] = {
    "sign_flip": "sign flip",
    "sign_flip:4": "sign flip × 4",
    "scaling:10": "scaling × 10",
    "gaussian:1": "Gaussian, σ = 1",
    "label_flip": "label flip",
    "alie:1.5": "ALIE, τ = 1.5",
    "alie:opt": "ALIE, optimised",
    "ipm:2": "IPM, τ = 2",
    "ipm:opt": "IPM, optimised",
    "mimic": "mimic",
    "backdoor:0": "backdoor",
    "free_rider": "free rider",
}


@dataclass(frozen=True, kw_only=True)
class Defence:
    """What a row of the table does: plan fields beside the common ones.

    Attributes:
        plan: the fields.
        takes_byzantine: whether it is told f.
    """

    plan: Mapping[str, Any] = field(default_factory=dict)
    takes_byzantine: bool = True


def _rule(name: str, *before: str, algorithm: str = "fedavg", told: bool = True, **options: Any) -> Defence:
    plan = {"rule": name, "rule_options": options, "pre_aggregation": before, "algorithm": algorithm}
    return Defence(plan=plan, takes_byzantine=told)


DEFENCES: dict[str, Defence] = {
    "mean": _rule("mean", told=False),
    "median": _rule("median"),
    "trimmed_mean": _rule("trimmed_mean"),
    "meamed": _rule("meamed"),
    "krum": _rule("krum"),
    "multi_krum": _rule("multi_krum"),
    "bulyan": _rule("bulyan"),
    "geometric_median": _rule("geometric_median"),
    "centered_clipping": _rule("centered_clipping"),
    "mda": _rule("mda"),
    "monna": _rule("monna", trusted=TRUSTED),
    "smea": Defence(plan={**_rule("smea").plan, "sample": SITES}),
    "caf": _rule("caf"),
    "fltrust": _rule("fltrust", trusted=TRUSTED),
    "arc + mean": Defence(
        plan={"rule": "mean", "pre_aggregation": ("arc",), "algorithm": "fedavg", "weighting": "uniform"}
    ),
    "arc + geometric_median": _rule("geometric_median", "arc"),
    "bucketing:2 + median": _rule("median", "bucketing:2"),
    "bucketing:2 + geometric_median": _rule("geometric_median", "bucketing:2"),
    "nnm + mean": _rule("mean", "nnm"),
    "nnm + median": _rule("median", "nnm"),
    "nnm + trimmed_mean": _rule("trimmed_mean", "nnm"),
    "nnm + krum": _rule("krum", "nnm"),
    "nnm + geometric_median": _rule("geometric_median", "nnm"),
    "arc + nnm + trimmed_mean": _rule("trimmed_mean", "arc", "nnm"),
    "momentum, mean": _rule("mean", algorithm="site_momentum", told=False),
    "momentum, trimmed_mean": _rule("trimmed_mean", algorithm="site_momentum"),
    "momentum, nnm + trimmed_mean": _rule("trimmed_mean", "nnm", algorithm="site_momentum"),
    "momentum, centered_clipping": _rule("centered_clipping", algorithm="site_momentum"),
}
"""Rows of the table, in its order.

"arc + mean" weighs sites alike, as a plan with hostile sites must, and "nnm + mean" is refused: its cells say why.
"""

BRIEF_DEFENCES = ("mean", "median", "trimmed_mean", "krum", "geometric_median", "nnm + trimmed_mean")
BRIEF_ATTACKS = (NONE, "label_flip", "alie:1.5", "ipm:2", "sign_flip:4")


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Cell:
    """One simulation: row, column, f, partition, seed and rounds."""

    defence: str
    attack: str
    hostile: int
    partition: str
    seed: int
    rounds: int = ROUNDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a cell gave.

    Attributes:
        accuracy: of the last model, 0 to 1; None: the plan is refused, for `reason`.
        success: of a backdoor, 0 to 1; None: the attack is none.
        reason: why there is no accuracy, or why the run ended early; empty if it ran to its end.
        seconds: it took.
    """

    accuracy: float | None
    success: float | None = None
    reason: str = ""
    seconds: float = 0.0


def cells_of(
    defences: Iterable[str], attacks: Sequence[str], hostile: Sequence[int], partitions: Sequence[str], seeds: int
) -> list[Cell]:
    """Return the cells of a table, seed by seed and row by row; `none` among the attacks stands for f = 0."""
    return [
        Cell(defence=defence, attack=attack, hostile=count, partition=partition, seed=seed)
        for seed in range(seeds)
        for defence in defences
        for partition in partitions
        for attack in attacks
        for count in ((0,) if attack == NONE else hostile)
    ]


def brief_cells() -> list[Cell]:
    """Return the part that says most: unlike sites, two of them hostile, one seed."""
    return cells_of(BRIEF_DEFENCES, BRIEF_ATTACKS, (TOLD,), ("dirichlet:0.3",), 1)


def full_cells(seeds: int = 3) -> list[Cell]:
    """Return every cell."""
    return cells_of(DEFENCES, (NONE, *ATTACKS), HOSTILE, tuple(PARTITIONS), seeds)


def plan_digest(cell: Cell) -> str:
    """Return 12 hexadecimal digits of what `experiment_of` says of a cell, beside what it leaves to defaults."""
    return _plan_digest(cell.defence, cell.hostile, cell.rounds)


@cache
def _plan_digest(defence: str, hostile: int, rounds: int) -> str:
    plan = _plan(defence, hostile, rounds).model_dump(mode="json", exclude_unset=True)
    said = json.dumps([plan, HIDDEN, BATCH], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:12]


def read(path: Path) -> dict[Cell, Outcome]:
    """Return what a file of results has of today's plans; of a cell's lines the last, but none that was cut short."""
    found: dict[Cell, Outcome] = {}
    without_digest: dict[Cell, Outcome] = {}
    digested: set[Cell] = set()
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else ():
        if not line.endswith("\n"):
            continue
        row = json.loads(line)
        cell, outcome = Cell(**row["cell"]), Outcome(**row["outcome"])
        if "plan" not in row:
            without_digest[cell] = outcome
            continue
        digested.add(cell)
        if cell.defence in DEFENCES and row["plan"] == plan_digest(cell):
            found[cell] = outcome
    return {**{cell: outcome for cell, outcome in without_digest.items() if cell not in digested}, **found}


def fill(cells: Sequence[Cell], path: Path, *, workers: int) -> Iterator[tuple[Cell, Outcome]]:
    """Run the cells that the file has not, write each, and yield it."""
    there = read(path)
    left = [cell for cell in cells if cell not in there]
    if path.exists():  # a line that was cut short would spoil the next one
        whole = path.read_bytes()
        path.write_bytes(whole[: whole.rfind(b"\n") + 1])
    with path.open("a", encoding="utf-8") as out:
        for cell, outcome in _run_all(left, workers):
            out.write(json.dumps({"cell": asdict(cell), "plan": plan_digest(cell), "outcome": asdict(outcome)}) + "\n")
            out.flush()
            yield cell, outcome


def _run_all(cells: Sequence[Cell], workers: int) -> Iterator[tuple[Cell, Outcome]]:
    if workers == 1 or not cells:
        yield from ((cell, run(cell)) for cell in cells)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        running = {pool.submit(run, cell): cell for cell in cells}
        for future in as_completed(running):
            yield running[future], future.result()


def run(cell: Cell) -> Outcome:
    """Simulate one cell.

    Raises:
        PlanError: the defence is not one of this release.
    """
    from federation import simulate
    from federation.aggregation.registry import load_aggregation
    from federation.errors import PlanError

    started = time.perf_counter()
    shards = shards_of(cell.partition, cell.seed)
    experiment = experiment_of(cell)
    load_aggregation(experiment.plan)  # a rule that is not there is an error, one that cannot stand f a result
    try:
        result = simulate(
            experiment,
            sites=sorted(shards),
            data=shards,
            seed=cell.seed,
            attack=None if cell.attack == NONE else cell.attack,
            hostile=cell.hostile,
        )
    except PlanError as error:
        return Outcome(accuracy=None, reason=str(error))
    samples, targets = shards[TRUSTED].validation[0], shards[TRUSTED].validation[1]
    return Outcome(
        accuracy=float((logits(result.arrays, samples).argmax(axis=1) == targets).mean()),
        success=result.attack_success,
        reason="" if result.outcome == "completed" else result.reason,
        seconds=round(time.perf_counter() - started, 3),
    )


def experiment_of(cell: Cell) -> Experiment:
    """Return the experiment of a cell."""
    from federation import Experiment

    plan = _plan(cell.defence, cell.hostile, cell.rounds)
    return Experiment(name="robustness", model=make_model, task=_task(), shard="digits", plan=plan)


def _plan(name: str, hostile: int, rounds: int) -> Plan:
    from federation import Plan

    defence = DEFENCES[name]
    told = (hostile or TOLD) if defence.takes_byzantine else 0
    return Plan(
        rounds=rounds,
        sites=SITES,
        minimum_sites=SITES,
        learning_rate=LEARNING_RATE,
        evaluate_every=0,
        byzantine=told,
        **defence.plan,
    )


def make_model() -> dict[str, Any]:
    """Make the network 64-32-10 as arrays, He initialised."""
    import numpy as np

    rng = np.random.default_rng(0)

    def layer(inputs: int, outputs: int) -> Any:
        return (rng.standard_normal((inputs, outputs)) * np.sqrt(2 / inputs)).astype(np.float32)

    return {
        "w1": layer(FEATURES, HIDDEN),
        "b1": np.zeros(HIDDEN, np.float32),
        "w2": layer(HIDDEN, CLASSES),
        "b2": np.zeros(CLASSES, np.float32),
    }


def logits(model: Mapping[str, Any], samples: Any) -> Any:
    """Return what the network says of samples, shape (n, 10)."""
    import numpy as np

    hidden = np.maximum(samples.reshape(len(samples), -1) @ model["w1"] + model["b1"], 0)
    return hidden @ model["w2"] + model["b2"]


@lru_cache(maxsize=8)
def shards_of(partition: str, seed: int) -> dict[str, Shard]:
    """Return each site's training digits, and all validation digits for everybody."""
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


def measure() -> Iterator[Result]:
    """Yield accuracy in per cent of a few cells; `limit` is the undefended mean's without attack, ratio value/limit."""
    few = cells_of(("mean", "median", "nnm + trimmed_mean"), (NONE, "ipm:2"), (TOLD,), ("dirichlet:0.3",), 1)
    found = {cell: 100 * (run(cell).accuracy or 0.0) for cell in few}
    limit = next(value for cell, value in found.items() if (cell.defence, cell.attack) == ("mean", NONE))
    for cell, value in found.items():
        yield Result(
            benchmark="robustness",
            case=f"{cell.defence}, {cell.attack}",
            value=value,
            unit="%",
            limit=limit,
            ratio=value / limit,
            settings=asdict(cell),
        )


def _task() -> Any:
    """Make the task; a function, so that naming the benchmarks costs no import of the library."""
    from benchmarks.robustness_task import Digits

    return Digits(batch_size=BATCH, metrics=("accuracy",))

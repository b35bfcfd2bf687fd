"""From runs to comparable curves: what the axes are, which runs are seeds of one another, and when a goal is met. Pure.

1. Along x, everything adds up over rounds: ``rounds``, ``bits_up``, ``bits_down``, ``bits``, ``seconds`` (simulated
   where the run says so, else real) and ``oracle_calls``. Bits are those of the payloads as they travelled.
2. Along y stands a metric of the federated evaluation (``loss``), of training (``train:loss``), or ``update_norm``.
   A round that did not measure it gives no point.
3. Runs that differ in nothing but their seed form one group: same plan, sites, division and state of the data and code,
   script, attack, and model of what takes how long. Its curve is the mean over seeds with the standard
   deviation (of a sample, n − 1) around it, round by round, over the rounds that all of them have. Their x is averaged
   likewise: seeds may send different numbers of bits. On a logarithmic axis the curve is the geometric mean, and the
   band goes from it divided by the deviation factor, exp of the standard deviation of ln y, to it times that: mean ±
   deviation has no place there as soon as the deviation is as large as the mean.
4. A goal such as ``accuracy=0.9`` is met at the first round whose value is on the right side of it.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from federation.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from federation.client.runs import Run
    from federation.rounds.history import RoundRecord

_UNLABELLED = frozenset({"seed", "algorithm", "compression", "options"})
_GOAL = re.compile(r"(?P<metric>[A-Za-z][\w:]*)\s*(?P<side><=|>=|=)\s*(?P<value>[-+0-9.eE]+)")
_DOWNWARDS = ("loss", "error", "norm")
AXES: dict[str, Callable[[RoundRecord], float]] = {
    "rounds": lambda record: 1.0,
    "bits_up": lambda record: 8.0 * record.bytes_up,
    "bits_down": lambda record: 8.0 * record.bytes_down,
    "bits": lambda record: 8.0 * (record.bytes_up + record.bytes_down),
    "seconds": lambda record: record.simulated_seconds or record.seconds,
    "oracle_calls": lambda record: float(sum(site.oracle_calls for site in record.sites)),
}
"""What x may be, each as what one round adds to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """A value that a metric should reach: `value`, from below if `upwards`."""

    metric: str
    value: float
    upwards: bool

    @classmethod
    def parse(cls, text: str) -> Goal:
        """Read ``accuracy=0.9``, ``loss<=0.1`` or ``accuracy>=0.9``; ``=`` goes down for losses, errors and norms.

        Raises:
            ConfigurationError: it is none of these.
        """
        found = _GOAL.fullmatch(text.strip())
        try:
            value = float(found["value"]) if found else math.nan
        except ValueError:
            value = math.nan
        if found is None or not math.isfinite(value):
            raise ConfigurationError(f"a goal is {text!r}; give METRIC=VALUE, such as accuracy=0.9 or loss<=0.1")
        falls = found["side"] == "<=" or (found["side"] == "=" and any(word in found["metric"] for word in _DOWNWARDS))
        return cls(metric=found["metric"], value=value, upwards=not falls)

    def is_met(self, value: float) -> bool:
        """Tell whether a value is good enough."""
        return value >= self.value if self.upwards else value <= self.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One round of a group.

    Attributes:
        round: its number.
        x: mean over the seeds.
        y: mean over the seeds.
        spread: standard deviation of y; 0 for one seed.
        geometric: geometric mean of y; 0 unless every seed's is above 0 and finite.
        factor: deviation factor of y, at least 1; 1 for one seed.
    """

    round: int
    x: float
    y: float
    spread: float
    geometric: float = 0.0
    factor: float = 1.0

    def band(self, *, is_log: bool) -> tuple[float, float, float]:
        """Return lower edge, middle and upper edge, as an axis of that kind shows them."""
        if is_log:
            return self.geometric / self.factor, self.geometric, self.geometric * self.factor
        return self.y - self.spread, self.y, self.y + self.spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Runs that are one another's seeds, and the label they share."""

    label: str
    runs: tuple[Run, ...]


def y_of(record: RoundRecord, y: str) -> float | None:
    """Return a round's value on the y axis; None if it was not measured."""
    if y == "update_norm":
        return record.update_norm
    if y.startswith("train:"):
        return record.train_metrics.get(y.removeprefix("train:"))
    return record.metrics.get(y)


def available(runs: Sequence[Run]) -> list[str]:
    """Return every y that some round of some run has."""
    names = {"update_norm"}
    for record in itertools.chain.from_iterable(run.records for run in runs):
        names.update(record.metrics)
        names.update(f"train:{name}" for name in record.train_metrics)
    return sorted(names)


def along(run: Run, x: str) -> list[float]:
    """Return x after each round of a run.

    Raises:
        ConfigurationError: there is no such axis.
    """
    if x not in AXES:
        raise ConfigurationError(f"there is no axis {x!r}; give one of {', '.join(AXES)}")
    return list(itertools.accumulate(AXES[x](record) for record in run.records))


def curve(group: Group, *, x: str, y: str) -> list[Point]:
    """Return the curve of a group; empty where not one round was measured in all of its runs.

    Raises:
        ConfigurationError: there is no such axis.
    """
    found: dict[int, list[tuple[float, float]]] = {}
    for run in group.runs:
        for record, at in zip(run.records, along(run, x), strict=True):
            value = y_of(record, y)
            if value is not None:
                found.setdefault(record.round, []).append((at, value))
    points = []
    for number in sorted(found):
        pairs = found[number]
        if len(pairs) == len(group.runs):
            points.append(_point(number, [at for at, _ in pairs], [value for _, value in pairs]))
    return points


def _point(number: int, xs: Sequence[float], ys: Sequence[float]) -> Point:
    is_finite = all(map(math.isfinite, ys))
    logs = [math.log(value) for value in ys] if is_finite and min(ys) > 0 else []
    return Point(
        round=number,
        x=math.fsum(xs) / len(xs),
        y=math.fsum(ys) / len(ys),
        spread=statistics.stdev(ys) if len(ys) > 1 and is_finite else 0.0,
        geometric=math.exp(math.fsum(logs) / len(logs)) if logs else 0.0,
        factor=math.exp(statistics.stdev(logs)) if len(logs) > 1 else 1.0,
    )


def reached(run: Run, goal: Goal, x: str) -> float | None:
    """Return x after the first round that meets the goal; None if none does."""
    for record, at in zip(run.records, along(run, x), strict=True):
        value = y_of(record, goal.metric)
        if value is not None and goal.is_met(value):
            return at
    return None


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Return the runs grouped by all but their seed, in the order in which each group first appears.

    A run's own label names its group; without one it is algorithm, options, compression, and the plan's fields that
    differ between the runs at hand. A second run of one seed is a group of its own: it is no further seed.
    """
    varying = _varying(runs)
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        key = (run.label, "") if run.label else (_label(run, varying), _identity(run))
        if not run.label and run.seed in {other.seed for other in groups.get(key, ())}:
            key = (key[0], str(run.folder))
        groups.setdefault(key, []).append(run)
    labels = [label for label, _ in groups]
    return [
        Group(label=label if labels.count(label) == 1 else f"{label} ({members[0].folder.name})", runs=tuple(members))
        for (label, _), members in groups.items()
    ]


def _settings(run: Run) -> dict[str, Any]:
    return {
        **run.plan, **run.conditions, "partition": run.partition, "simulated sites": run.sites, "experiment": run.name,
    }  # fmt: skip


def _identity(run: Run) -> str:
    return json.dumps({name: value for name, value in _settings(run).items() if name != "seed"}, sort_keys=True)


def _varying(runs: Sequence[Run]) -> list[str]:
    settings = [_settings(run) for run in runs]
    names = sorted({name for each in settings for name in each} - _UNLABELLED)
    # plan.sites and minimum_sites follow the number of sites, which is named once
    names = [name for name in names if name not in {"sites", "minimum_sites"}]
    found = [name for name in names if len({json.dumps(each.get(name), sort_keys=True) for each in settings}) > 1]
    # other experiments have other code, and a digest tells a reader nothing
    return [name for name in found if name != "code" or "experiment" not in found]


def _label(run: Run, varying: Sequence[str]) -> str:
    plan: Mapping[str, Any] = run.plan
    options = plan.get("options") or {}
    name = str(plan.get("algorithm", "fedavg"))
    if options:
        name += "(" + ", ".join(f"{key}={options[key]}" for key in sorted(options)) + ")"
    compression = plan.get("compression", "identity")
    parts = [name, *([] if compression == "identity" else [str(compression)])]
    settings = _settings(run)
    return " ".join([*parts, *(f"{key}={_shown(key, settings.get(key))}" for key in varying)])


def _shown(name: str, value: Any) -> Any:
    """Return a setting as a label shows it."""
    return str(value or "")[:8] if name == "code" else value

"""What a tracker is, and the flat numbers that all of them show of a round. Pure.

Names are ``<metric>`` for the federated evaluation, ``train/<metric>`` for training, ``seconds/<phase>``,
``scalar/<name>`` for numbers of the method, ``<score>/<site>`` for how a site's update lay to the others (of more than
`SCORED_SITES` sites only their median and the largest), and the rest is listed in `scalars_of`. A round that did not
measure something has no number of that name.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from federation.rounds.history import RoundRecord

SCORED_SITES = 32


@runtime_checkable
class Tracker(Protocol):
    """Shows one run somewhere. Called from one thread: `start` once, `round` after each commit, `end` once."""

    def start(self, run: Mapping[str, Any]) -> None:
        """Begin.

        Args:
            run: what ``run.json`` says: name, spec, seed, sites, partition.

        Raises:
            ConfigurationError: the place cannot be written, or its package is not installed.
        """
        ...

    def round(self, record: RoundRecord) -> None:
        """Show a committed round.

        Raises:
            StorageError: it cannot be written.
        """
        ...

    def end(self, outcome: str) -> None:
        """Finish; everything shown so far is durable afterwards.

        Args:
            outcome: ``completed``, ``failed`` or ``interrupted``.

        Raises:
            StorageError: it cannot be written.
        """
        ...


def scalars_of(record: RoundRecord) -> dict[str, float]:
    """Return the numbers of a round, in a fixed order."""
    return {
        **{name: record.metrics[name] for name in sorted(record.metrics)},
        **{f"train/{name}": record.train_metrics[name] for name in sorted(record.train_metrics)},
        "update_norm": record.update_norm,
        "bits_up": 8.0 * record.bytes_up,
        "bits_down": 8.0 * record.bytes_down,
        "seconds": record.seconds,
        "simulated_seconds": record.simulated_seconds,
        "oracle_calls": float(sum(site.oracle_calls for site in record.sites)),
        "sites_counted": float(sum(site.outcome.value == "counted" for site in record.sites)),
        "peak_memory": float(max((site.peak_memory for site in record.sites), default=0)),
        **{f"seconds/{name}": record.phase_seconds[name] for name in sorted(record.phase_seconds)},
        **{f"scalar/{name}": record.algorithm_scalars[name] for name in sorted(record.algorithm_scalars)},
        **_scores_of(record),
        "sites_quarantined": float(len(record.quarantined)),
    }


def _scores_of(record: RoundRecord) -> dict[str, float]:
    found: dict[str, dict[str, float]] = {}
    for site in record.sites:
        for name, value in site.scores.items():
            found.setdefault(name, {})[site.site] = value
    numbers: dict[str, float] = {}
    for name, values in sorted(found.items()):
        if len(values) <= SCORED_SITES:
            numbers.update({f"{name}/{site}": value for site, value in values.items()})
        else:
            numbers[f"{name}/median"] = statistics.median(values.values())
            numbers[f"{name}/max"] = max(values.values())
    return numbers


def parameters_of(run: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    """Return what a run was given as flat names and plain values: the plan's fields, and ``sites``, ``partition``."""
    spec = run.get("spec")
    plan = spec.get("plan", spec) if isinstance(spec, dict) else {}
    found: dict[str, str | int | float | bool] = {}
    for name, value in sorted({**plan, "sites": run.get("sites"), "partition": run.get("partition")}.items()):
        if isinstance(value, dict):
            found.update({f"{name}.{key}": _plain(inner) for key, inner in sorted(value.items())})
        else:
            found[name] = _plain(value)
    return found


def _plain(value: object) -> str | int | float | bool:
    return value if isinstance(value, str | int | float | bool) else str(value)

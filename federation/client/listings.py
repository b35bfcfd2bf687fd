"""The tables of `list`, `show` and `envoys`: nothing of a value is cut, and at 80 columns they can still be read.

Rules, in order:

1. What is copied into another command (names, ids) stays on one line; whatever else is too wide folds, sentences first.
2. A column that would say the same in every row by default, such as the project, is there only if some row differs.
3. Text of a peer is shown and never obeyed (`federation.client.progress.printable`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Column, Table

from federation.client.progress import format_metrics, named_or_counted, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from federation.client import views


def experiments_table(found: Sequence[views.ExperimentSummary]) -> Table:
    """Return the table of `federation list`."""
    has_projects = any(row.project != "default" for row in found)
    has_reasons = not all(_went_as_planned(row) for row in found)
    project, reason = ("project",) if has_projects else (), ("reason",) if has_reasons else ()
    names = ("experiment", *project, "by", "state", "rounds", "sites", *reason)
    table = _table(*names, whole=("experiment", "by", "state"))
    for row in found:
        rounds = f"{row.rounds_done}/{row.rounds_planned}"
        state = row.state + ("\n(degraded)" if row.degraded else "")
        named = (row.project,) if has_projects else ()
        sites = named_or_counted(row.sites)
        why = (printable(row.reason),) if has_reasons else ()
        table.add_row(row.experiment, *named, row.submitted_by, state, rounds, sites, *why)
    return table


def _went_as_planned(row: views.ExperimentSummary) -> bool:
    """Whether its reason says nothing that state and rounds do not: all are done, with as many sites as planned."""
    return row.state == "completed" and not row.degraded and row.rounds_done == row.rounds_planned


def sites_table(details: views.ExperimentDetails) -> Table:
    """Return the table of an experiment's sites, for `federation show`."""
    summary = details.summary
    table = _table("site", "answer", "examples", "shards", "reason", whole=("site", "answer"))
    for site in details.sites:
        reason = site.quarantine_reason or site.reason
        if site.quarantined_since and not summary.is_over:
            reason += f"; `federation release {summary.experiment} {site.site}`"
        table.add_row(site.site, site.standing, str(site.examples), ", ".join(site.shards), printable(reason))
    return table


def rounds_table(rounds: Iterable[views.Round]) -> Table:
    """Return the table of an experiment's rounds, for `federation show`."""
    table = _table("round", "seconds", "counted", "metrics", "best", whole=("round", "seconds", "counted"))
    for report in rounds:
        counted = sum(contribution.outcome == "counted" for contribution in report.contributions)
        metrics = printable(format_metrics(report.metrics or report.train_metrics))
        table.add_row(
            str(report.round), f"{report.seconds:.3f}", f"{counted}/{len(report.contributions)}", metrics,
            "best" if report.is_best else "",
        )  # fmt: skip
    return table


def artifacts_table(artifacts: Iterable[views.Artifact]) -> Table:
    """Return the table of an experiment's artifacts, for `federation show`."""
    table = _table("artifact", "bytes", "round", "sha256", whole=("artifact", "bytes"))
    for artifact in artifacts:
        table.add_row(artifact.name, str(artifact.bytes), str(artifact.round or ""), artifact.digest)
    return table


def envoys_table(found: Sequence[views.Envoy]) -> Table:
    """Return the table of `federation envoys`; of examples, those to train with and those to validate with."""
    held = ("quarantined in",) if any(envoy.quarantined_in for envoy in found) else ()
    names = ("site", "state", *held, "shard", "kind", "examples", "sample", "description")
    table = _table(*names, whole=("site", "shard", "kind"))
    for envoy in found:
        state = "offline" if not envoy.online else f"runs {envoy.running}" if envoy.running else "idle"
        quarantined = (printable(", ".join(envoy.quarantined_in)),) if held else ()
        start: tuple[str, ...] = (envoy.site, state, *quarantined)
        if not envoy.shards:
            table.add_row(*start, "", "", "", "", "offers nothing")
        for shard in envoy.shards:
            table.add_row(
                *start, shard.name, shard.kind, f"{shard.train_examples} + {shard.validation_examples}",
                printable(str(list(shard.sample_shape))), printable(shard.description),
            )  # fmt: skip
    return table


def _table(*names: str, whole: tuple[str, ...]) -> Table:
    """Return a table that a narrow terminal folds, widest column first; columns in `whole` stay on one line."""
    return Table(*(Column(name, no_wrap=name in whole, overflow="fold") for name in names))

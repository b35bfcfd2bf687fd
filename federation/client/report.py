"""`federation report`: one HTML page that says what an experiment did, and opens anywhere without a network.

What it shows, in order: how it ended; the curves, global and per site; who contributed what to which round; whom the
rule trusted, refused and held, and why (`federation.client.suspicion`); where the time and the bytes went; the plan;
the digests that tie the page to the models and to what was signed.
"""

from __future__ import annotations

import datetime
import html
import json
from typing import TYPE_CHECKING

from federation.client.charts import Line, line_chart
from federation.client.saving import writing
from federation.client.suspicion import STYLE as TRUST_STYLE
from federation.client.suspicion import is_held, rule_weights, trust_section
from federation.client.tables import STYLE as TABLE_STYLE
from federation.client.tables import table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from federation.client.views import Contribution, ExperimentDetails, Round

PAGE_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1180px;margin:2em auto;padding:0 1em;color:#1a1a1a}
h1{margin-bottom:0}h2{margin-top:2em;border-bottom:1px solid #ddd}.lead{color:#555;margin-top:.2em}
.state{padding:.1em .6em;border-radius:1em;color:#fff;background:#009E73}.failed,.cancelled{background:#D55E00}
.degraded{color:#a04000;font-weight:600}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(460px,1fr));gap:1em}figure{margin:0}
svg{width:100%;height:auto;font-size:11px}svg .title{font-size:14px;font-weight:600}.grid{stroke:#e4e4e4}
figcaption span{margin-right:1em;font-size:12px}figcaption
i{display:inline-block;width:1em;height:.25em;margin-right:.4em;vertical-align:middle}
pre,code{font-size:12px;background:#f6f6f6;padding:.1em .3em}pre{padding:.8em;overflow-x:auto}
.counted{background:#e4f5ee}.late,.lost,.failed-site,.refused{background:#fbe7da}
"""


def write_report(details: ExperimentDetails, target: Path) -> Path:
    """Write the page about an experiment; return where it is.

    Args:
        details: all about the experiment.
        target: file to write, or folder to write ``EXPERIMENT.html`` into.

    Raises:
        StorageError: it cannot be written.
    """
    path = target / f"{details.summary.experiment}.html" if target.is_dir() else target
    page = render_report(details)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    return path


def render_report(details: ExperimentDetails) -> str:
    """Return the page as HTML text."""
    summary = details.summary
    marks = ["degraded: some rounds had fewer sites than planned"] if summary.degraded else []
    held = [site.site for site in details.sites if site.quarantined_since]
    marks += [f"in quarantine: {', '.join(held)}"] if held else []
    marked = f' <span class="degraded">{html.escape("; ".join(marks))}</span>' if marks else ""
    lead = (
        f'<span class="state {html.escape(summary.state)}">{html.escape(summary.state)}</span> '
        f"{html.escape(summary.reason)}{marked}<br>submitted by {html.escape(summary.submitted_by)} on "
        f"{_time(summary.submitted_at)}, project {html.escape(summary.project)}; {summary.rounds_done} of "
        f"{summary.rounds_planned} rounds; sites: {html.escape(', '.join(summary.sites) or 'none')}"
    )
    curves = "".join(_curves(details.rounds))
    sections = [
        ("Curves", curves and f'<div class="charts">{curves}</div>'),
        ("Contributions", _contributions(details) + _sites(details)),
        ("Trust", trust_section(details)),
        ("Time and bytes", _rounds(details.rounds) if details.rounds else ""),
        ("Plan", f"<pre>{html.escape(json.dumps(details.plan, indent=2, sort_keys=True))}</pre>"),
        ("Digests", _digests(details)),
        ("History of its state", _transitions(details)),
    ]
    body = "".join(f"<h2>{title}</h2>{content}" for title, content in sections if content)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(summary.experiment)}</title>'
        f"<style>{PAGE_STYLE}{TABLE_STYLE}{TRUST_STYLE}</style></head><body><h1>{html.escape(summary.name)}</h1>"
        f'<p class="lead"><code>{html.escape(summary.experiment)}</code> {lead}</p>{body}</body></html>\n'
    )


def _curves(rounds: Sequence[Round]) -> Iterable[str]:
    yield from _metric_curves(rounds, "metrics", "evaluation", whole="federation")
    yield from _metric_curves(rounds, "train_metrics", "training", whole="federation")
    seconds = _points((report.round, report.seconds) for report in rounds)
    yield line_chart("seconds per round", [Line(name="seconds", points=seconds, is_main=True)])
    norms = _points((report.round, report.update_norm) for report in rounds)
    yield line_chart("norm of the update", [Line(name="aggregate", points=norms, is_main=True)])


def _metric_curves(rounds: Sequence[Round], kind: str, title: str, *, whole: str) -> Iterable[str]:
    """Draw one chart per metric: that of the federation under the name `whole`, then each site's."""
    for metric in sorted({name for report in rounds for name in _values(report, kind)}):
        federated = _points((report.round, _values(report, kind).get(metric)) for report in rounds)
        lines = [Line(name=whole, points=federated, is_main=True)]
        for place, (site, entries) in enumerate(_by_site(rounds).items(), start=1):
            own = _points((report.round, _values(entry, kind).get(metric)) for report, entry in entries)
            lines.append(Line(name=site, points=own, colour=place))
        yield line_chart(f"{title}: {metric}", lines)


def _points(found: Iterable[tuple[int, float | None]]) -> list[tuple[float, float]]:
    return [(float(x), y) for x, y in found if y is not None]


def _values(entry: Round | Contribution, kind: str) -> dict[str, float]:
    return entry.metrics if kind == "metrics" else entry.train_metrics


def _by_site(rounds: Sequence[Round]) -> dict[str, list[tuple[Round, Contribution]]]:
    """Return what each site did, in name order; in each list the rounds in which it was asked, in their order."""
    found: dict[str, list[tuple[Round, Contribution]]] = {}
    for report in rounds:
        for entry in report.contributions:
            found.setdefault(entry.site, []).append((report, entry))
    return dict(sorted(found.items()))


def _contributions(details: ExperimentDetails) -> str:
    rounds, sites = details.rounds, _by_site(details.rounds)
    if not sites:
        return "<p>No round was committed.</p>"
    is_mean = details.plan.get("rule", "mean") == "mean"
    shares = [{} if is_mean else rule_weights(report) for report in rounds]
    rows = []
    for site, entries in sites.items():
        cells, asked = [], {report.round: entry for report, entry in entries}
        for at, report in enumerate(rounds):
            found = asked.get(report.round)
            if found is None and is_held(rounds, at, site):
                cells.append('<td class="held" title="in quarantine: not asked">held</td>')
            else:
                cells.append(_cell(found, _share(shares[at], found, is_mean=is_mean)))
        rows.append(f"<tr><td>{html.escape(site)}</td>{''.join(cells)}</tr>")
    head = "".join(f"<th>{report.round}</th>" for report in rounds)
    what = (
        "Share of each site in each round's model"
        if is_mean
        else "Share of each site in what the rule made of each round, ✓ where it took an update and has no shares"
    )
    return (
        f"<p>{what}; a word where it did not count. Where rounds overlap, also how many steps old its update was.</p>"
        f'<div class="scroll"><table><tr><th>site</th>{head}</tr>{"".join(rows)}</table></div>'
    )


def _share(shares: Mapping[str, float], entry: Contribution | None, *, is_mean: bool) -> str:
    """Return what an update had of the model; only the mean goes by the weights that sites' examples give."""
    if entry is None or is_mean:
        return "" if entry is None else f"{entry.weight:.2f}"
    share = shares.get(entry.site)
    return "✓" if share is None else f"{share:.2f}"


def _cell(entry: Contribution | None, share: str) -> str:
    if entry is None:
        return "<td></td>"
    if entry.outcome == "counted":
        age = f", {entry.staleness} old" if entry.staleness else ""
        return f'<td class="counted" title="{entry.examples} examples">{share}{age}</td>'
    kind = "failed-site" if entry.outcome == "failed" else html.escape(entry.outcome)
    return f'<td class="{kind}" title="{html.escape(entry.reason)}">{html.escape(entry.outcome)}</td>'


def _sites(details: ExperimentDetails) -> str:
    rows, done = [], _by_site(details.rounds)
    for site in details.sites:
        entries = [entry for _, entry in done.get(site.site, ())]
        rows.append(
            (
                site.site, site.standing, site.quarantine_reason or site.reason, site.examples,
                sum(entry.outcome == "counted" for entry in entries),
                _size(sum(entry.bytes_up for entry in entries)), _size(sum(entry.bytes_down for entry in entries)),
                f"{sum(entry.train_seconds for entry in entries):.2f}",
                f"{sum(entry.transfer_seconds for entry in entries):.2f}",
            )
        )  # fmt: skip
    head = ("site", "answer", "reason", "examples", "rounds counted", "sent", "fetched", "training s", "upload s")
    return table(head, rows)


def _rounds(rounds: Sequence[Round]) -> str:
    phases = sorted({phase for report in rounds for phase in report.phase_seconds}, key=_phase_order)
    missing = ("not evaluated",) if any(report.unevaluated for report in rounds) else ()
    head = ("round", "started", "seconds", *phases, "sent to sites", "received", "best", "model", *missing)
    rows = [
        (
            report.round, _time(report.started_at), f"{report.seconds:.3f}",
            *(f"{report.phase_seconds.get(phase, 0.0):.3f}" for phase in phases),
            _size(report.bytes_down), _size(report.bytes_up), "best" if report.is_best else "",
            report.model_digest[:12],
            *("; ".join(f"{site}: {why}" for site, why in report.unevaluated.items()) for _ in missing),
        )
        for report in rounds
    ]  # fmt: skip
    return f'<div class="scroll">{table(head, rows)}</div>'


def _phase_order(phase: str) -> int:
    order = ("select", "broadcast", "collect", "aggregate", "evaluate", "commit")
    return order.index(phase) if phase in order else len(order)


def _digests(details: ExperimentDetails) -> str:
    rows: list[tuple[object, ...]] = [
        ("signed manifest", details.manifest_digest, ""),
        ("submitter's signing key", details.signing_fingerprint, ""),
    ]
    rows += [(artifact.name, artifact.digest, _size(artifact.bytes)) for artifact in details.artifacts]
    return table(("what", "SHA-256", "size"), rows)


def _transitions(details: ExperimentDetails) -> str:
    rows = [(_time(entry.at), entry.state, entry.reason, entry.actor) for entry in details.transitions]
    return table(("time (UTC)", "state", "reason", "asked by"), rows)


def _time(at: float) -> str:
    try:
        return datetime.datetime.fromtimestamp(at, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):  # a site's clock may say anything
        return f"{at:g}"


def _size(nbytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000 or unit == "GB":
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    raise AssertionError("unreachable")

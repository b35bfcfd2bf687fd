"""The report's section on trust: whom the rule down-weighted and why, refusals, and who was in quarantine when.

In order: what the rule says of itself; a heat map of every site and round, by the weight the rule gave the update in
equal shares (1 is what each would have had alike), or by its distance in units of the round's median where a rule gives
no weights; each site's scores in one line; the scores over the rounds; refusals by reason; the time line of quarantine.
Blue is as trusted as the others or nearer, orange is down-weighted or farther: a pair colour-blind readers can tell
apart, with the number in each cell.
"""

from __future__ import annotations

import html
import statistics
from collections import Counter
from typing import TYPE_CHECKING

from federation.client.charts import Line, line_chart
from federation.client.tables import table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from federation.client.views import Contribution, ExperimentDetails, Quarantine, Round

STYLE = """
.heat td{padding:.15em .35em;min-width:2.6em;text-align:center;font-variant-numeric:tabular-nums}
.heat td:first-child{text-align:left}.held{background:#5b5b5b;color:#fff}.refused-cell{background:#fbe7da}
"""
_TRUSTED, _DOUBTED = (0, 114, 178), (213, 94, 0)
_SCORES = ("distance", "krum", "cosine")
_TITLES = {
    "distance": "distance to the aggregate",
    "krum": "Krum score",
    "cosine": "cosine to the aggregate",
}


def trust_section(details: ExperimentDetails) -> str:
    """Return the section as HTML; empty where there is nothing to say: no scores, no refusals, nobody held."""
    rounds = details.rounds
    sites = sorted({entry.site for report in rounds for entry in report.contributions})
    has_scores = any(entry.scores for report in rounds for entry in report.contributions)
    refusals = _refusals(rounds)
    held = sorted({row.site for report in rounds for row in report.quarantined})
    if not (has_scores or refusals or held):
        return ""
    parts, judged = [_rule(details)], [_Judged(report) for report in rounds]
    if has_scores:
        is_weighted = _weighs_by_trust(details, judged)
        parts += [_heat_map(rounds, judged, sites, is_weighted=is_weighted)]
        parts += [_summary(judged, sites, is_weighted=is_weighted), _charts(judged, sites)]
    return "".join([*parts, refusals, _timeline(details, judged, held)])


def _rule(details: ExperimentDetails) -> str:
    plan = details.plan
    said = [f"Rule <code>{html.escape(str(plan.get('rule', 'mean')))}</code>"]
    if plan.get("byzantine"):
        said.append(f"hostile sites to be stood: {html.escape(str(plan['byzantine']))}")
    before = plan.get("pre_aggregation")
    if isinstance(before, (list, tuple)) and before:
        said.append(f"after <code>{html.escape(', '.join(map(str, before)))}</code>")
    policy = plan.get("quarantine")
    if isinstance(policy, dict):
        said.append(f"quarantine after {html.escape(_policy(policy))}")
    note = next((report.rule_note for report in reversed(details.rounds) if report.rule_note), "")
    last = f" In the last round: {html.escape(note)}." if note else ""
    return f"<p>{', '.join(said)}.{last}</p>"


def _policy(policy: Mapping[str, object]) -> str:
    score, threshold, rounds = (policy.get(name) for name in ("score", "threshold", "rounds"))
    beyond = f"below {threshold}" if score == "cosine" else f"above {threshold} times the round's median"
    return f"{rounds} rounds in a row of {score} {beyond}"


# --- how an update stood in its round


def is_held(rounds: Sequence[Round], at: int, site: str) -> bool:
    """Tell whether a site was not asked in a round because it was in quarantine.

    Args:
        rounds: all committed ones.
        at: index of the round. One that was under way when the site was released was drawn without it.
        site: its name, of no contribution to that round.
    """
    return any(row.site == site for report in rounds[max(at - 1, 0) : at + 1] for row in report.quarantined)


def rule_weights(report: Round) -> dict[str, float]:
    """Return each site's share of what the rule gave updates, as factors or as trust; empty where it gives neither."""
    weights = {row.site: row.scores["rule_weight"] for row in report.contributions if "rule_weight" in row.scores}
    total = sum(weights.values())
    return {site: weight / total for site, weight in weights.items()} if total > 0 else {}


class _Judged:
    """A round as its cells need it: each site's entry, the medians of its scores and the shares its rule gave, once."""

    def __init__(self, report: Round) -> None:
        self.round = report.round
        self.entries = {entry.site: entry for entry in report.contributions}
        self._shares = rule_weights(report)
        self._medians = {}
        for name in _SCORES:
            values = [entry.scores[name] for entry in report.contributions if name in entry.scores]
            self._medians[name] = statistics.median(values) if values else 0.0

    @property
    def has_shares(self) -> bool:
        """Whether the rule gave any."""
        return bool(self._shares)

    def ratio(self, entry: Contribution, name: str) -> float | None:
        """Return a score in units of the round's median; None where it was not measured or the median is 0."""
        median = self._medians[name]
        return entry.scores[name] / median if name in entry.scores and median > 0 else None

    def equal_shares(self, entry: Contribution) -> float | None:
        """Return the weight the rule gave, in units of what each would have had if all had had the same."""
        share = self._shares.get(entry.site)
        return None if share is None else share * len(self._shares)


def _weighs_by_trust(details: ExperimentDetails, judged: Sequence[_Judged]) -> bool:
    """Tell whether the rule gives weights that say something: the mean's are examples."""
    return details.plan.get("rule", "mean") != "mean" and any(one.has_shares for one in judged)


def _heat_map(rounds: Sequence[Round], judged: Sequence[_Judged], sites: Sequence[str], *, is_weighted: bool) -> str:
    rows = []
    for site in sites:
        cells = "".join(_cell(rounds, judged[at], at, site, is_weighted=is_weighted) for at in range(len(rounds)))
        rows.append(f"<tr><td>{html.escape(site)}</td>{cells}</tr>")
    head = "".join(f"<th>{report.round}</th>" for report in rounds)
    what = (
        "How much each update counted for the rule: 1 is an equal share, 0 nothing."
        if is_weighted
        else "The rule gives no weights by trust: each update's distance to the aggregate, in units of the round's "
        "median."
    )
    return (
        f"<p>{what} Point at a cell for its scores.</p>"
        f'<div class="scroll"><table class="heat"><tr><th>site</th>{head}</tr>{"".join(rows)}</table></div>'
    )


def _cell(rounds: Sequence[Round], judged: _Judged, at: int, site: str, *, is_weighted: bool) -> str:
    entry = judged.entries.get(site)
    if entry is None:
        held = is_held(rounds, at, site)
        return '<td class="held" title="in quarantine: not asked">held</td>' if held else "<td></td>"
    if entry.outcome != "counted":
        return f'<td class="refused-cell" title="{html.escape(entry.reason)}">{html.escape(entry.outcome)}</td>'
    value = judged.equal_shares(entry) if is_weighted else judged.ratio(entry, "distance")
    if value is None:
        return f'<td title="{_tip(judged, entry)}">–</td>'
    doubt = 1 - value if is_weighted else (value - 1) / 2
    shade = _shade(doubt)
    return f'<td style="background:{shade}" title="{_tip(judged, entry)}">{_short(value)}</td>'


def _tip(judged: _Judged, entry: Contribution) -> str:
    told = [f"norm {entry.update_norm:.3g}"]
    for name in _SCORES:
        if name in entry.scores:
            ratio = judged.ratio(entry, name) if name != "cosine" else None
            beside = f" ({ratio:.3g} times the median)" if ratio is not None else ""
            told.append(f"{name} {entry.scores[name]:.3g}{beside}")
    return html.escape(", ".join(told))


def _shade(doubt: float) -> str:
    """Return a colour from blue (at −1, or nearer) over white (0) to orange (1, or farther)."""
    strength = 0.75 * min(abs(doubt), 1.0)
    tone = _DOUBTED if doubt > 0 else _TRUSTED
    return "rgb(" + ",".join(str(round(255 - strength * (255 - part))) for part in tone) + ")"


def _short(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.3g}"


# --- site by site


def _summary(judged: Sequence[_Judged], sites: Sequence[str], *, is_weighted: bool) -> str:
    rows = []
    for site in sites:
        pairs = [(one, one.entries[site]) for one in judged if site in one.entries]
        scored = [(one, entry) for one, entry in pairs if entry.scores]
        shares = [_middle(one.equal_shares(entry) for one, entry in scored)] if is_weighted else []
        rows.append(
            (
                site,
                len(scored),
                *shares,
                _middle(one.ratio(entry, "distance") for one, entry in scored),
                _middle(entry.scores.get("cosine") for _, entry in scored),
                _middle(one.ratio(entry, "krum") for one, entry in scored),
                sum(entry.outcome == "refused" for _, entry in pairs),
            )
        )
    weight, said = (["rule's weight"], "the rule's weight in equal shares, ") if is_weighted else ([], "")
    head = ("site", "rounds scored", *weight, "distance", "cosine", "Krum score", "refused")
    return (
        f"<p>Medians over the rounds: {said}distance and Krum score in units of each round's median, so an ordinary "
        "site has about 1.</p>" + table(head, rows)
    )


def _middle(values: Iterable[float | None]) -> str:
    found = [value for value in values if value is not None]
    return _short(statistics.median(found)) if found else "–"


def _charts(judged: Sequence[_Judged], sites: Sequence[str]) -> str:
    charts = []
    for name in _SCORES:
        lines = []
        for place, site in enumerate(sites, start=1):  # as in the report's other curves, where 0 is the federation's
            entries = [(one.round, one.entries.get(site)) for one in judged]
            points = [(float(at), row.scores[name]) for at, row in entries if row is not None and name in row.scores]
            lines.append(Line(name=site, points=points, colour=place))
        charts.append(line_chart(_TITLES[name], lines, is_log=name != "cosine"))
    return f'<div class="charts">{"".join(charts)}</div>'


# --- refusals and quarantine


def _refusals(rounds: Sequence[Round]) -> str:
    counted: Counter[tuple[str, str]] = Counter()
    last: dict[tuple[str, str], str] = {}
    for report in rounds:
        for entry in report.contributions:
            if entry.outcome == "refused":
                reason, _, text = entry.reason.partition(": ")
                key = (reason if text else "refused", entry.site)
                counted[key] += 1
                last[key] = f"round {report.round}: {text or entry.reason}"
    if not counted:
        return ""
    rows = [(reason, site, counted[reason, site], last[reason, site]) for reason, site in sorted(counted)]
    return "<h3>Refusals</h3>" + table(("reason", "site", "updates", "the last"), rows)


def _timeline(details: ExperimentDetails, judged: Sequence[_Judged], held: Sequence[str]) -> str:
    if not held:
        return ""
    rounds = details.rounds
    rows = []
    for site in held:
        cells = "".join(_time_cell(rounds, at, site, is_asked=site in one.entries) for at, one in enumerate(judged))
        rows.append(f"<tr><td>{html.escape(site)}</td>{cells}</tr>")
    head = "".join(f"<th>{report.round}</th>" for report in rounds)
    told = table(("site", "since round", "until", "released before", "why"), _spells(details))
    return (
        '<h3>Quarantine</h3><div class="scroll"><table class="heat">'
        f"<tr><th>site</th>{head}</tr>{''.join(rows)}</table></div>{told}"
    )


def _time_cell(rounds: Sequence[Round], at: int, site: str, *, is_asked: bool) -> str:
    report = rounds[at]
    row = next((row for row in report.quarantined if row.site == site), None)
    if row is not None and row.since_round == report.round:
        return f'<td class="held" title="{html.escape(row.reason)}">in</td>'
    if row is not None:
        return '<td class="held" title="not asked"></td>'
    if not is_asked and is_held(rounds, at, site):
        return '<td class="held" title="released in this round, which was drawn without it">out</td>'
    return f"<td>{'·' if is_asked else ''}</td>"


def _spells(details: ExperimentDetails) -> list[tuple[object, ...]]:
    """Return one row for each time a site was quarantined, in the order of the rounds."""
    last: dict[tuple[str, int], int] = {}
    held: dict[tuple[str, int], Quarantine] = {}
    for at, report in enumerate(details.rounds):
        for row in report.quarantined:
            last[row.site, row.since_round], held[row.site, row.since_round] = at, row
    rows: list[tuple[object, ...]] = []
    for key in sorted(held, key=lambda key: (key[1], key[0])):
        row, after = held[key], details.rounds[last[key] + 1 :]
        still = "the end" if details.summary.is_over else "now"
        until = f"a release in round {after[0].round}" if after else still
        rows.append((row.site, row.since_round, until, row.releases, row.reason))
    return rows

"""`federation compare`: runs beside each other, as a table, a picture and a page.

What is compared, over which axis, is `federation.client.curves`; here it is shown. The page (`write_page`) needs
nothing but a browser; the picture (`write_picture`) needs matplotlib, the extra ``plots``.
"""

from __future__ import annotations

import csv
import html
import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from federation.client.charts import PALETTE, Line, line_chart
from federation.client.curves import Goal, Group, Point, along, available, curve, group_runs, reached
from federation.client.report import PAGE_STYLE
from federation.client.saving import writing
from federation.errors import ConfigurationError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from federation.client.runs import Run

_LOG_SPAN = 1e3
"""A curve that is positive throughout and spans more than this is drawn on a logarithmic axis."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One group in the table.

    Attributes:
        label: of the group.
        seeds: runs in it.
        rounds: committed rounds, the least of its runs.
        last: mean of y after the last common round; None: y was never measured.
        spread: standard deviation of it over the seeds.
        bits_up: bits sent by all sites, mean over seeds; likewise `bits_down`, `seconds` and `oracle_calls`.
        reached_rounds: mean rounds to the goal; None: no goal, or some seed did not meet it.
        reached_bits: mean bits, both ways, to the goal.
        met: runs that met the goal.
    """

    label: str
    seeds: int
    rounds: int
    last: float | None
    spread: float
    bits_up: float
    bits_down: float
    seconds: float
    oracle_calls: float
    reached_rounds: float | None
    reached_bits: float | None
    met: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Groups of runs over one x and one y, ready to be shown.

    Attributes:
        x: axis along, one of `federation.client.curves.AXES`.
        y: what is measured.
        goal: value that y, or another metric, should reach; None: none.
        groups: in the order the runs were given.
        curves: one per group.
        rows: one per group.
    """

    x: str
    y: str
    goal: Goal | None
    groups: tuple[Group, ...]
    curves: tuple[tuple[Point, ...], ...]
    rows: tuple[Row, ...]


def compare_runs(runs: Sequence[Run], *, x: str = "rounds", y: str = "loss", goal: Goal | None = None) -> Comparison:
    """Compare runs.

    Raises:
        NotFoundError: there are no runs, or none measured y.
        ConfigurationError: there is no axis of that name.
    """
    if not runs:
        raise NotFoundError("there are no runs to compare; give run folders, or a folder of them")
    groups = tuple(group_runs(runs))
    curves = tuple(tuple(curve(group, x=x, y=y)) for group in groups)
    if not any(curves):
        raise NotFoundError(f"no run measured {y!r} in every seed; there are: {', '.join(available(runs))}")
    rows = tuple(_row(group, points, goal) for group, points in zip(groups, curves, strict=True))
    return Comparison(x=x, y=y, goal=goal, groups=groups, curves=curves, rows=rows)


def _row(group: Group, points: Sequence[Point], goal: Goal | None) -> Row:
    def mean(axis: str) -> float:
        return statistics.fmean((along(run, axis) or [0.0])[-1] for run in group.runs)

    met: list[tuple[float, float]] = []
    for run in group.runs:
        rounds = reached(run, goal, "rounds") if goal else None
        bits = reached(run, goal, "bits") if goal else None
        if rounds is not None and bits is not None:
            met.append((rounds, bits))
    all_met = len(met) == len(group.runs)
    return Row(
        label=group.label,
        seeds=len(group.runs),
        rounds=min(len(run.records) for run in group.runs),
        last=points[-1].y if points else None,
        spread=points[-1].spread if points else 0.0,
        bits_up=mean("bits_up"),
        bits_down=mean("bits_down"),
        seconds=mean("seconds"),
        oracle_calls=mean("oracle_calls"),
        reached_rounds=statistics.fmean(rounds for rounds, _ in met) if all_met else None,
        reached_bits=statistics.fmean(bits for _, bits in met) if all_met else None,
        met=len(met),
    )


def table_of(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of the table, as texts."""
    goal = comparison.goal
    head = ["run", "seeds", "rounds", comparison.y, "± std", "bits up", "bits down", "seconds", "oracle calls"]
    if goal is not None:
        side = "≥" if goal.upwards else "≤"
        head += [f"rounds to {goal.metric} {side} {goal.value:g}", "bits to it"]
    rows = []
    for row in comparison.rows:
        cells = [
            row.label, str(row.seeds), str(row.rounds), "" if row.last is None else f"{row.last:.6g}",
            f"{row.spread:.2g}" if row.seeds > 1 else "", f"{row.bits_up:.4g}", f"{row.bits_down:.4g}",
            f"{row.seconds:.4g}", f"{row.oracle_calls:.4g}",
        ]  # fmt: skip
        if goal is not None and row.reached_rounds is not None and row.reached_bits is not None:
            cells += [f"{row.reached_rounds:.4g}", f"{row.reached_bits:.4g}"]
        elif goal is not None:
            cells += [f"not in {row.seeds - row.met} of {row.seeds}", ""]
        rows.append(cells)
    return head, rows


def write_csv(comparison: Comparison, path: Path) -> None:
    """Write every point of every curve: label, seeds, round, x, mean and deviation of y, and both in log space.

    Raises:
        StorageError: it cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("run", "seeds", "round", comparison.x, comparison.y, "std", "geometric mean", "factor"))
            for group, points in zip(comparison.groups, comparison.curves, strict=True):
                label, seeds = group.label, len(group.runs)
                writer.writerows((label, seeds, p.round, p.x, p.y, p.spread, p.geometric, p.factor) for p in points)


def is_logarithmic(comparison: Comparison) -> bool:
    """Tell whether y is better shown on a logarithmic axis: above 0 in every seed, and over three decades."""
    values = [point.geometric for points in comparison.curves for point in points if math.isfinite(point.y)]
    return min(values, default=0) > 0 and max(values) / min(values) > _LOG_SPAN


def middle_and_band(comparison: Comparison) -> str:
    """Return what the curves and bands of the picture are, in words; empty if nothing has several seeds."""
    if all(len(group.runs) == 1 for group in comparison.groups):
        return ""
    if is_logarithmic(comparison):
        return "geometric mean over seeds; band: divided and multiplied by the deviation factor"
    return "mean over seeds; band: one standard deviation to either side"


def render_page(comparison: Comparison) -> str:
    """Return a self-contained HTML page with the chart and the table."""
    is_log = is_logarithmic(comparison)
    lines = []
    for group, points in zip(comparison.groups, comparison.curves, strict=True):
        shown = [(point.x, *point.band(is_log=is_log)) for point in points]
        band = [(x, low, high) for x, low, _, high in shown] if len(group.runs) > 1 else []
        lines.append(Line(name=group.label, points=[(x, middle) for x, _, middle, _ in shown], band=band))
    title = f"{comparison.y} over {comparison.x.replace('_', ' ')}"
    chart = line_chart(title, lines, x_label=comparison.x.replace("_", " "), is_log=is_log)
    head, rows = table_of(comparison)
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{PAGE_STYLE}</style></head><body><h1>{html.escape(title)}</h1>"
        f'<p class="lead">{html.escape(middle_and_band(comparison))}</p>'
        f'{chart}<div class="scroll"><table><tr>{top}</tr>{body}</table></div></body></html>\n'
    )


def write_page(comparison: Comparison, path: Path) -> None:
    """Write the page of `render_page`.

    Raises:
        StorageError: it cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(render_page(comparison), encoding="utf-8")


def write_picture(comparison: Comparison, path: Path) -> None:
    """Draw the curves; the ending of `path` says as what: ``.png``, ``.svg`` or ``.pdf``.

    Raises:
        ConfigurationError: matplotlib is not installed, or cannot write that kind of file.
        StorageError: it cannot be written.
    """
    try:
        from matplotlib.figure import Figure  # no pyplot: no global state, no display
    except ImportError as error:
        raise ConfigurationError("drawing needs matplotlib: pip install 'federation[plots]'") from error
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    is_log = is_logarithmic(comparison)
    for index, (group, points) in enumerate(zip(comparison.groups, comparison.curves, strict=True)):
        xs, colour = [point.x for point in points], PALETTE[index % len(PALETTE)]
        style = "-" if index < len(PALETTE) else "--"
        shown = [point.band(is_log=is_log) for point in points]
        axes.plot(xs, [middle for _, middle, _ in shown], style, label=group.label, color=colour)
        if len(group.runs) > 1:
            low, high = [low for low, _, _ in shown], [high for _, _, high in shown]
            axes.fill_between(xs, low, high, color=colour, alpha=0.15, linewidth=0)
    if is_log:
        axes.set_yscale("log")
    axes.set(xlabel=comparison.x.replace("_", " "), ylabel=comparison.y)
    axes.grid(visible=True, color="#e4e4e4")
    axes.legend(fontsize="small")
    if said := middle_and_band(comparison):
        axes.set_title(said, fontsize="small", loc="left")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=150, metadata={"Software": None} if path.suffix == ".png" else None)
    except ValueError as error:
        raise ConfigurationError(f"{path.name} cannot be drawn: {error}; give a name in .png, .svg or .pdf") from error

"""Line charts as SVG text: enough for a report page that must open anywhere, with no script and no network.

A chart is a set of `Line`s over a shared x axis, each with a band around it where it has a spread; the y axis may be
logarithmic. Colours are a palette that colour-blind readers can tell apart
(Okabe and Ito, 2008); every line also has its name in the legend and a dash pattern of its own.
"""

from __future__ import annotations

import html
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("", "6 3", "2 3", "8 3 2 3")
WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 30, 30, 40
LARGEST = 1e300
"""Values beyond this are not drawn: a metric that diverges must not break the page that shows it."""
SMALLEST = 1e-300
_TICKS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One named line.

    Attributes:
        name: for the legend.
        points: (x, y), in x order.
        is_main: draw it bold.
        band: (x, lowest, highest), in x order: a shade behind the line; empty: none.
        colour: place in the palette, for what has the same in several charts; None: by its place in this one.
    """

    name: str
    points: Sequence[tuple[float, float]]
    is_main: bool = False
    band: Sequence[tuple[float, float, float]] = ()
    colour: int | None = None


def nice_ticks(low: float, high: float) -> list[float]:
    """Return about five round numbers that cover [low, high]; both are finite and at most `LARGEST` in size."""
    if high - low <= max(SMALLEST, max(abs(low), abs(high)) * 1e-12):
        span = max(abs(low), SMALLEST)
        low, high = low - span / 2, high + span / 2
    raw = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((factor * power for factor in (1.0, 2.0, 5.0) if factor * power >= raw), 10.0 * power)
    first = math.floor(low / step)
    last = math.ceil(high / step)
    return [index * step for index in range(first, last + 1)]


@dataclass(frozen=True, slots=True)
class _Scale:
    """Where values stand on the drawing; on a logarithmic axis y is replaced by its decimal logarithm first."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def place(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x_low) / ((self.x_high - self.x_low) or 1.0)
        up = (y - self.y_low) / ((self.y_high - self.y_low) or 1.0)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)


def _drawable(line: Line, *, is_log: bool) -> Line:
    def height(y: float) -> float:
        return math.log10(max(y, SMALLEST)) if is_log else y

    points = [
        (x, height(y)) for x, y in line.points if abs(x) <= LARGEST and abs(y) <= LARGEST and (y > 0 or not is_log)
    ]
    band = [
        (x, height(low), height(high))
        for x, low, high in line.band
        if max(abs(x), abs(low), abs(high)) <= LARGEST and (low > 0 or not is_log)
    ]
    return replace(line, points=points, band=band)


def line_chart(title: str, lines: Sequence[Line], *, x_label: str = "round", is_log: bool = False) -> str:
    """Return an SVG element; empty where there is nothing to draw.

    Points that are not finite are left out, and on a logarithmic axis (`is_log`) those that are not above 0.
    """
    drawn = [line for line in (_drawable(line, is_log=is_log) for line in lines) if line.points]
    if not drawn:
        return ""
    xs = [x for line in drawn for x, _ in line.points]
    ys = [y for line in drawn for _, y in line.points] + [y for line in drawn for _, *pair in line.band for y in pair]
    x_ticks = nice_ticks(min(xs), max(xs))
    if all(x == int(x) for x in xs):  # there is no round 1.5
        x_ticks = [tick for tick in x_ticks if tick == int(tick)] or [min(xs)]
    y_ticks = nice_ticks(min(ys), max(ys))
    scale = _Scale(min(min(xs), x_ticks[0]), max(max(xs), x_ticks[-1]), y_ticks[0], y_ticks[-1])
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">']
    parts.append(f'<text x="{LEFT}" y="18" class="title">{html.escape(title)}</text>')
    parts += _axes(scale, x_ticks, y_ticks, is_log=is_log)
    parts.append(f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{html.escape(x_label)}</text>')
    places = [index if line.colour is None else line.colour for index, line in enumerate(drawn)]
    for place, line in zip(places, drawn, strict=True):
        parts += _drawing(line, scale, PALETTE[place % len(PALETTE)], DASHES[(place // len(PALETTE)) % len(DASHES)])
    parts.append("</svg>")
    legend = "".join(
        f'<span><i style="background:{PALETTE[place % len(PALETTE)]}"></i>{html.escape(line.name)}</span>'
        for place, line in zip(places, drawn, strict=True)
    )
    return f"<figure>{''.join(parts)}<figcaption>{legend}</figcaption></figure>"


def _axes(scale: _Scale, x_ticks: Sequence[float], y_ticks: Sequence[float], *, is_log: bool) -> Iterator[str]:
    for tick in y_ticks:
        _, y = scale.place(scale.x_low, tick)
        shown = f"{10.0**tick:.3g}" if is_log else f"{tick:.4g}"
        yield f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
        yield f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{shown}</text>'
    for tick in x_ticks:
        x, _ = scale.place(tick, scale.y_low)
        yield f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{tick:.4g}</text>'


def _drawing(line: Line, scale: _Scale, colour: str, dash: str) -> Iterator[str]:
    if line.band:
        edge = [(x, high) for x, _, high in line.band] + [(x, low) for x, low, _ in reversed(line.band)]
        shape = " ".join(f"{x:.1f},{y:.1f}" for x, y in (scale.place(*corner) for corner in edge))
        yield f'<polygon points="{shape}" fill="{colour}" fill-opacity="0.15"/>'
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (scale.place(*point) for point in line.points))
    stroke = f'stroke="{colour}" stroke-width="{2.6 if line.is_main else 1.4}" stroke-dasharray="{dash}"'
    yield f'<polyline points="{path}" fill="none" {stroke}/>'
    if len(line.points) == 1:
        x, y = scale.place(*line.points[0])
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>'

"""Line charts as SVG text: enough for a report page that must open anywhere, with no script and no network.

A chart is a set of `Line`s over a shared x axis. Colours are a palette that colour-blind readers can tell apart
(Okabe and Ito, 2008); every line also has its name in the legend and a dash pattern of its own.
"""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("", "6 3", "2 3", "8 3 2 3")
WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 30, 40
LARGEST = 1e300
"""Values beyond this are not drawn: a metric that diverges must not break the page that shows it."""
SMALLEST = 1e-300
_TICKS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One named line: points (x, y) in x order; `is_main` draws it bold."""

    name: str
    points: Sequence[tuple[float, float]]
    is_main: bool = False


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


def _drawable(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if abs(x) <= LARGEST and abs(y) <= LARGEST]  # False for NaN


def line_chart(title: str, lines: Sequence[Line], *, x_label: str = "round") -> str:
    """Return an SVG element; empty where there is nothing to draw. Points that are not finite are left out."""
    drawn = [Line(name=line.name, points=_drawable(line.points), is_main=line.is_main) for line in lines]
    drawn = [line for line in drawn if line.points]
    if not drawn:
        return ""
    xs = [x for line in drawn for x, _ in line.points]
    ys = [y for line in drawn for _, y in line.points]
    x_ticks = [tick for tick in nice_ticks(min(xs), max(xs)) if tick == int(tick)] or [min(xs)]
    y_ticks = nice_ticks(min(ys), max(ys))
    x_low, x_high = min(min(xs), x_ticks[0]), max(max(xs), x_ticks[-1])
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / ((x_high - x_low) or 1.0)
        up = (y - y_low) / ((y_high - y_low) or 1.0)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">']
    parts.append(f'<text x="{LEFT}" y="18" class="title">{html.escape(title)}</text>')
    for tick in y_ticks:
        _, y = place(x_low, tick)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:.4g}</text>')
    for tick in x_ticks:
        x, _ = place(tick, y_low)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{tick:.4g}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{html.escape(x_label)}</text>')
    for index, line in enumerate(drawn):
        colour, dash = PALETTE[index % len(PALETTE)], DASHES[(index // len(PALETTE)) % len(DASHES)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in line.points))
        stroke = f'stroke="{colour}" stroke-width="{2.6 if line.is_main else 1.4}" stroke-dasharray="{dash}"'
        parts.append(f'<polyline points="{path}" fill="none" {stroke}/>')
        if len(line.points) == 1:
            x, y = place(*line.points[0])
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>')
    parts.append("</svg>")
    legend = "".join(
        f'<span><i style="background:{PALETTE[index % len(PALETTE)]}"></i>{html.escape(line.name)}</span>'
        for index, line in enumerate(drawn)
    )
    return f"<figure>{''.join(parts)}<figcaption>{legend}</figcaption></figure>"

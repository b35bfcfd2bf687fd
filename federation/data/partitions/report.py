"""What a division came to: how many examples of each class each site has, as a table, a CSV file and a picture."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from federation.tensors.buffers import Array

_COLOUR = "#1f5fa8"
_ROW, _WIDTH, _LEFT, _RIGHT, _TOP = 20, 480, 110, 70, 32
_WIDEST, _READABLE = 48.0, 26.0
"""Widest cell, and narrowest one that a number fits into, pixels."""
_DARK = 0.5
"""Shade from which on a number is written in white."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionReport:
    """Counts of a division.

    Attributes:
        sites: a name for each site.
        classes: a text for each class, in the order of its values.
        counts: examples of each class at each site, shape (sites, classes), int64.
    """

    sites: tuple[str, ...]
    classes: tuple[str, ...]
    counts: Array

    @classmethod
    def of(cls, labels: Array, parts: Sequence[Array], sites: Sequence[str] | None = None) -> PartitionReport:
        """Count a division.

        Args:
            labels: class of each example, shape (n,).
            parts: example numbers of each site.
            sites: a name for each site; numbers by default.
        """
        labels = np.asarray(labels)
        names = [str(number) for number in range(len(parts))] if sites is None else list(sites)
        return cls.of_sites(dict(zip(names, (labels[part] for part in parts), strict=True)))

    @classmethod
    def of_sites(cls, labels: Mapping[str, Array]) -> PartitionReport:
        """Count what sites have.

        Args:
            labels: class of each example of each site, by its name.
        """
        values = np.unique(np.concatenate([np.asarray(mine) for mine in labels.values()]))
        counts = [np.bincount(np.searchsorted(values, mine), minlength=len(values)) for mine in labels.values()]
        # A class number that a table gave as 3.0 is shown as 3.
        texts = [f"{value:g}" if isinstance(value, float) else str(value) for value in values.tolist()]
        return cls(sites=tuple(labels), classes=tuple(texts), counts=np.stack(counts).astype(np.int64))

    @property
    def totals(self) -> Array:
        """Examples of each site, shape (sites,)."""
        totals: Array = self.counts.sum(axis=1)
        return totals

    @property
    def fractions(self) -> Array:
        """Share of each class at each site, shape (sites, classes), float64; rows sum to 1 (0 without examples)."""
        return self.counts / np.maximum(self.totals, 1)[:, None]

    def table(self) -> str:
        """Return the counts as text in columns, with a line for all sites."""
        rows = [["site", "examples", *self.classes]]
        rows += [[site, str(row.sum()), *map(str, row)] for site, row in zip(self.sites, self.counts, strict=True)]
        rows.append(["all", str(self.counts.sum()), *map(str, self.counts.sum(axis=0))])
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = []
        for row in rows:
            padded = [text.rjust(width) for text, width in zip(row, widths, strict=True)]
            lines.append("  ".join([row[0].ljust(widths[0]), *padded[1:]]))
        return "\n".join(lines)

    def csv(self) -> str:
        """Return counts and shares as CSV: a line for each site and class."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["site", "class", "examples", "fraction"])
        for site, counts, fractions in zip(self.sites, self.counts, self.fractions, strict=True):
            for name, count, fraction in zip(self.classes, counts.tolist(), fractions.tolist(), strict=True):
                writer.writerow([site, name, count, f"{fraction:.6g}"])
        return text.getvalue()

    def svg(self) -> str:
        """Return the picture, sites × classes: the more examples, the darker the cell; sites' totals at the right."""
        cell = min(max(_WIDTH / len(self.classes), 3.0), _WIDEST)
        right = _LEFT + cell * len(self.classes)
        lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{right + _RIGHT:.0f}" '
            f'height="{_TOP + len(self.sites) * _ROW + 10}" font-family="sans-serif" font-size="11">',
            "<title>Examples of each class at each site</title>",
        ]
        if cell >= _READABLE:
            for index, name in enumerate(self.classes):
                x = _LEFT + (index + 0.5) * cell
                lines.append(f'<text x="{x:.1f}" y="{_TOP - 8}" text-anchor="middle">{escape(name[:6])}</text>')
        most = max(int(self.counts.max()), 1)
        for number, (site, counts) in enumerate(zip(self.sites, self.counts.tolist(), strict=True)):
            y = _TOP + number * _ROW
            lines.append(f'<text x="{_LEFT - 6}" y="{y + 13}" text-anchor="end">{escape(site)}</text>')
            lines += self._row(site, counts, y, cell, most)
            lines.append(f'<text x="{right + 6:.1f}" y="{y + 13}">{sum(counts)}</text>')
        return "\n".join([*lines, "</svg>"]) + "\n"

    def _row(self, site: str, counts: list[int], y: int, cell: float, most: int) -> list[str]:
        lines = []
        for index, count in enumerate(counts):
            if not count:
                continue
            x, shade = _LEFT + index * cell, count / most
            hint = escape(f"{site}, class {self.classes[index]}: {count}")
            lines.append(
                f'<rect x="{x:.2f}" y="{y}" width="{cell - 1:.2f}" height="{_ROW - 2}" fill="{_COLOUR}" '
                f'fill-opacity="{0.08 + 0.92 * shade:.3f}"><title>{hint}</title></rect>'
            )
            if cell >= _READABLE:
                ink = "white" if shade > _DARK else "black"
                lines.append(
                    f'<text x="{x + cell / 2:.1f}" y="{y + 13}" text-anchor="middle" fill="{ink}">{count}</text>'
                )
        return lines

"""What a division came to: how many examples of each class each site has, as a table, a CSV file and a picture."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

import numpy as np

from federation.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from federation.tensors.buffers import Array

_COLOURS = (
    *("#4e79a7", "#f28e2b", "#e15759", "#76b7b2", "#59a14f"),
    *("#edc948", "#b07aa1", "#ff9da7", "#9c755f", "#bab0ac"),
)
_BAR, _GAP, _WIDTH, _LEFT, _RIGHT, _TOP = 14, 4, 480, 110, 70, 40


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
        """Return the picture: a bar for each site, as long as its examples, coloured by class."""
        height = _TOP + len(self.sites) * (_BAR + _GAP) + 10
        scale = _WIDTH / max(int(self.totals.max()), 1)
        lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + _RIGHT}" height="{height}" '
            'font-family="sans-serif" font-size="11">',
            "<title>Examples of each class at each site</title>",
        ]
        lines += self._key()
        for number, (site, counts) in enumerate(zip(self.sites, self.counts.tolist(), strict=True)):
            y = _TOP + number * (_BAR + _GAP)
            lines.append(f'<text x="{_LEFT - 6}" y="{y + 11}" text-anchor="end">{escape(site)}</text>')
            x = float(_LEFT)
            for index, count in enumerate(counts):
                if count:
                    lines.append(
                        f'<rect x="{x:.2f}" y="{y}" width="{count * scale:.2f}" height="{_BAR}" '
                        f'fill="{_colour(index)}"><title>{escape(f"{site}, class {self.classes[index]}: {count}")}'
                        "</title></rect>"
                    )
                    x += count * scale
            lines.append(f'<text x="{x + 5:.2f}" y="{y + 11}">{sum(counts)}</text>')
        return "\n".join([*lines, "</svg>"]) + "\n"

    def save_png(self, path: Path) -> None:
        """Write the picture as PNG.

        Raises:
            ConfigurationError: matplotlib is not installed.
            OSError: the file cannot be written.
        """
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ConfigurationError(
                "PNG pictures need matplotlib: install federation[plots], or use .svg()"
            ) from error
        figure = Figure(figsize=(7, 1 + 0.22 * len(self.sites)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        left = np.zeros(len(self.sites))
        for index, name in enumerate(self.classes):
            axes.barh(self.sites, self.counts[:, index], left=left, color=_colour(index), label=name)
            left += self.counts[:, index]
        axes.invert_yaxis()
        axes.set_xlabel("examples")
        if len(self.classes) <= len(_COLOURS):
            axes.legend(title="class", ncols=len(self.classes), fontsize="x-small", loc="lower center")
        figure.savefig(path, format="png", dpi=120)

    def _key(self) -> list[str]:
        shown = self.classes[: len(_COLOURS)]
        step = (_WIDTH + _RIGHT) / max(len(shown), 1)
        lines = []
        for index, name in enumerate(shown):
            x = _LEFT + index * step
            lines.append(f'<rect x="{x:.1f}" y="12" width="10" height="10" fill="{_colour(index)}"/>')
            lines.append(f'<text x="{x + 14:.1f}" y="21">{escape(name[:8])}</text>')
        return lines


def _colour(index: int) -> str:
    return _COLOURS[index % len(_COLOURS)]

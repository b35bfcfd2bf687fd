"""Tables of the report page as HTML: numbers to the right, sentences to the left, nothing of a peer's text run."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

STYLE = """table{border-collapse:collapse;font-size:13px;margin:.6em 0}
th,td{padding:.25em .7em;border-bottom:1px solid #eee;text-align:right}th{background:#f6f6f6}
th:first-child,td:first-child,.text{text-align:left}td:not(.text){white-space:nowrap}.scroll{overflow-x:auto}
"""


def table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Return a table; a column in which some cell has three words or more is one of text: ``12 kB`` is a number."""
    shown = [[str(cell) for cell in row] for row in rows]
    classes = [' class="text"' if any(row[at].count(" ") > 1 for row in shown) else "" for at in range(len(head))]
    lines = [_line("th", [str(cell) for cell in head], classes), *(_line("td", row, classes) for row in shown)]
    return f"<table>{''.join(lines)}</table>"


def _line(tag: str, cells: Sequence[str], classes: Sequence[str]) -> str:
    line = "".join(f"<{tag}{kind}>{html.escape(cell)}</{tag}>" for cell, kind in zip(cells, classes, strict=True))
    return f"<tr>{line}</tr>"

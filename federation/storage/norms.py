"""Sums of squares: the same on any number of threads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from federation.aggregation.tiles import Array

_DOT_ELEMENTS = 1 << 8
"""Far below the size from which OpenBLAS splits a dot product over threads, and so short that there are many: of fewer
than 500 NumPy makes a product without letting other threads have the interpreter."""


def squared_norm(values: Array) -> float:
    """Return the sum of the squares of float32 or float64 elements, in that precision; nothing warns of an overflow."""
    whole = values.size // _DOT_ELEMENTS * _DOT_ELEMENTS
    with np.errstate(over="ignore", invalid="ignore"):
        if not whole:
            return float(np.dot(values, values))
        blocks, rest = values[:whole].reshape(-1, _DOT_ELEMENTS), values[whole:]
        return float(np.vecdot(blocks, blocks).sum()) + float(np.dot(rest, rest))

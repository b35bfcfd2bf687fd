"""Memory that is used again: one worker's arrays, from part to part of a pass."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from federation.aggregation.tiles import Array


class Scratch:
    """Arrays that a worker uses again for every part."""

    def __init__(self) -> None:
        self._arrays: dict[tuple[str, str], Array] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: Any = np.float64) -> Array:
        """Return an array with whatever was left in it, valid until the same name and dtype are asked for again."""
        kind = np.dtype(dtype)
        size = math.prod(shape)
        found = self._arrays.get((name, kind.str))
        if found is None or found.size < size:
            found = self._arrays[name, kind.str] = np.empty(size, dtype=kind)
        return found[:size].reshape(shape)

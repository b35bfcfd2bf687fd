"""Parameters read as float64 and written back in their dtype, rounded once.

float16 and bfloat16 parameters are read from and written to a float32 *master*; the model is the master, rounded.
Without it, changes smaller than half a unit in the last place would be lost round after round. A result that is not
finite in its dtype is refused. Everything lies in buffers that are used again for the next piece.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from federation.aggregation.tiles import Array, Tile
from federation.errors import PlanError
from federation.storage.norms import squared_norm
from federation.tensors import DType

if TYPE_CHECKING:
    from federation.storage.disk import Readable
    from federation.storage.memory import ModelSink

HALF = (DType.FLOAT16, DType.BFLOAT16)


class Rounder:
    """Rounds results to their dtype, and refuses what does not fit.

    Args:
        most: most elements of a piece.
        what: what is rounded, for the error.
    """

    def __init__(self, most: int, what: str = "combined model") -> None:
        self._what = what
        self._wide = np.empty(most, dtype=np.float64)
        self._out = np.empty(most * 8, dtype=np.uint8)

    def read(self, base: Readable, piece: Tile) -> Array:
        """Return a piece of a buffer as float64; valid until the next call."""
        raw, wide = self._out[: piece.nbytes].view(piece.dtype.numpy), self._wide[: piece.elements]
        base.pread_into(piece.offset, raw.view(np.uint8).data)
        np.copyto(wide, raw)
        return wide

    def round(self, piece: Tile, value: Array) -> Array:
        """Return `value` in the dtype of a piece; valid until the next call.

        Raises:
            PlanError: it is not finite in that dtype.
        """
        out = self._out[: piece.nbytes].view(piece.dtype.numpy)
        with np.errstate(over="ignore", invalid="ignore"):
            np.copyto(out, value, casting="same_kind")
            return self._finite(piece, out)

    def add(self, base: Readable, piece: Tile, change: Array) -> Array:
        """Return a piece of a buffer plus `change`, float64, rounded once: as `read`, an addition and `round`.

        Raises:
            PlanError: as `round`.
        """
        out = self._out[: piece.nbytes].view(piece.dtype.numpy)
        base.pread_into(piece.offset, out.view(np.uint8).data)
        with np.errstate(over="ignore", invalid="ignore"):
            np.add(out, change, out=out, casting="same_kind")  # in float64, which no pass of its own makes of it
            return self._finite(piece, out)

    def _finite(self, piece: Tile, out: Array) -> Array:
        # ml_dtypes' casts raise no flags, so the numbers themselves are looked at.
        if piece.dtype.is_float and not _is_finite(out):
            raise PlanError(
                f"the {self._what} does not fit {piece.dtype.value}: it has diverged; lower the learning rate, bound "
                "the norm of updates (max_norm), or use a wider dtype"
            )
        return out


class Parameters:
    """The parameters of a model, piece by piece in order: `read`, then `write`; or `add`, which is both.

    Args:
        model: what they are now.
        master: float32 of the half-precision ones, flat; None where there are none.
        master_writer: for the next master.
        most: most elements of a piece.
    """

    def __init__(self, model: Readable, master: Readable | None, master_writer: ModelSink | None, most: int) -> None:
        self._model = model
        self._master = master
        self._master_writer = master_writer
        self._position = 0
        self._wide = Rounder(most)
        self._narrow = Rounder(most) if master is not None else self._wide

    def read(self, piece: Tile) -> Array:
        """Return a piece as float64, which may be changed in place; valid until `write`."""
        if piece.dtype not in HALF:
            return self._wide.read(self._model, piece)
        assert self._master is not None  # noqa: S101 - checked by the combination
        return self._wide.read(self._master, self._full(piece))

    def write(self, piece: Tile, value: Array) -> Array:
        """Return the piece in its dtype, valid until the next call; its master is written.

        Raises:
            PlanError: it is not finite in its dtype.
            StorageError: the disk failed.
        """
        if piece.dtype not in HALF:
            return self._wide.round(piece, value)
        full = self._full(piece)
        return self._narrowed(piece, full, self._wide.round(full, value))

    def add(self, piece: Tile, change: Array) -> Array:
        """Return a piece plus `change`, float64, as `write` would; its master is written.

        Raises:
            PlanError, StorageError: as `write`.
        """
        if piece.dtype not in HALF:
            return self._wide.add(self._model, piece, change)
        assert self._master is not None  # noqa: S101 - checked by the combination
        full = self._full(piece)
        return self._narrowed(piece, full, self._wide.add(self._master, full, change))

    def _narrowed(self, piece: Tile, full: Tile, rounded: Array) -> Array:
        assert self._master_writer is not None  # noqa: S101 - checked by the combination
        self._master_writer.append(rounded.view(np.uint8).data)
        self._position += full.nbytes
        return self._narrow.round(piece, rounded)

    def _full(self, piece: Tile) -> Tile:
        return Tile(dtype=DType.FLOAT32, offset=self._position, elements=piece.elements)


def _is_finite(values: Array) -> bool:
    """Tell whether all elements are: nearly always by a sum, which is cheaper than to look at each."""
    is_native = values.dtype in (np.float32, np.float64)
    total = squared_norm(values) if is_native else float(np.sum(values, dtype=np.float64))
    return math.isfinite(total) or bool(np.isfinite(values).all())

"""Payloads as a combination reads them: compressed ones decoded block by block, changes moved to another start.

Each is a `Readable` over the flat buffer that the payload stands for, so that rules, checks and sinks need not know how
it travelled. Memory is a block and the tables of a frame, whatever the payload; a tile is whole blocks, and read in
order each is decoded once.
"""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from federation.compression.frame import PayloadDecoder
from federation.errors import StorageError
from federation.storage.tile_streams import Places, Scattered, runs
from federation.tensors import TensorRole

if TYPE_CHECKING:
    from federation.plan import PayloadPlan
    from federation.storage.disk import Buffer, Readable
    from federation.storage.memory import ModelSource

IDENTITY = "identity"


def decoded(payload: Readable, plan: PayloadPlan) -> Readable:
    """Return a payload as its flat buffer: itself, if it is not compressed.

    Args:
        payload: as it came.
        plan: what it should be.

    Raises:
        ValueError: it is not a frame of the plan's codec, or of identity.
    """
    return payload if plan.codec == IDENTITY else DecodedPayload(payload, plan)


class DecodedPayload:
    """A compressed payload, read as its flat buffer. Implements `Readable`; readers take turns.

    Args:
        payload: the frame.
        plan: schema and codec; a frame may be of identity instead, where a method sends a round whole.

    Raises:
        ValueError: the frame is malformed.
        StorageError: the disk failed.
    """

    def __init__(self, payload: Readable, plan: PayloadPlan) -> None:
        self.nbytes = plan.schema.nbytes
        self._schema = plan.schema
        self._decoder = PayloadDecoder(payload, plan.schema, (plan.codec, IDENTITY))
        self._turn = Lock()

    def pread_into(self, offset: int, view: Buffer) -> None:
        """Fill `view` with the flat buffer's bytes from `offset` on: whole elements.

        Raises:
            ValueError: the frame is malformed.
            StorageError: it is read past the end, or the disk failed.
        """
        target = memoryview(view).cast("B")
        if offset + target.nbytes > self.nbytes:
            raise StorageError(f"read past the {self.nbytes} bytes of a payload")
        for segment in self._schema.segments:
            begin, end = max(offset, segment.offset), min(offset + target.nbytes, segment.offset + segment.nbytes)
            if begin < end:
                out = np.frombuffer(target[begin - offset : end - offset], dtype=segment.dtype.numpy)
                with self._turn:  # the decoder keeps the block it is at
                    self._decoder.read(begin, out)


def rebased(delta: Readable, model: ModelSource, start: ModelSource) -> Readable:
    """Return a change as seen from the present model: x_τ − x + Δ, rounded to each tensor's dtype.

    Args:
        delta: flat buffer of the parameters.
        model: the present model x.
        start: the model x_τ that the change was made from.
    """
    return delta if start is model else _Rebased(delta, model, start)


class _Rebased:
    """Implements `Readable`, for whole elements of one dtype at a time, as tiles are."""

    def __init__(self, delta: Readable, model: ModelSource, start: ModelSource) -> None:
        self.nbytes = delta.nbytes
        self._delta = delta
        self._model = RoleOf(model, TensorRole.PARAMETER)
        self._start = RoleOf(start, TensorRole.PARAMETER)
        self._schema = model.schema.parameters

    def pread_into(self, offset: int, view: Buffer) -> None:
        """Fill `view` with Δ + x_τ − x from `offset` on."""
        target = memoryview(view).cast("B")
        self._delta.pread_into(offset, target)
        dtype = next(row.dtype for row in self._schema.segments if row.offset <= offset < row.offset + row.nbytes)
        out = np.frombuffer(target, dtype=dtype.numpy)
        raw = np.empty_like(out)
        wide = out.astype(np.float64)
        for source, sign in ((self._start, 1.0), (self._model, -1.0)):
            source.pread_into(offset, raw.view(np.uint8).data)
            wide += sign * raw.astype(np.float64)
        np.copyto(out, wide, casting="same_kind")


class RoleOf(Scattered):
    """The parameters of a model, or its buffers, as their own flat buffer. Implements `Readable`.

    Args:
        model: whose buffer has buffers and parameters between one another.
        role: which of them.
    """

    def __init__(self, model: ModelSource, role: TensorRole) -> None:
        own = (run.tile for run in runs(model.schema) if run.role is role)
        super().__init__(model, Places((tile.offset, tile.nbytes) for tile in own), "a part of a model")

"""One pass of a method's server half over model, means and slots, tile by tile (rule 2 of `method_combination`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from federation.aggregation.tiles import TILE_ELEMENTS, Array, Tile
from federation.algorithms.server import ServerTile
from federation.storage.norms import squared_norm
from federation.storage.rounding import Rounder
from federation.storage.vectors import append_in_order, in_order, widened

if TYPE_CHECKING:
    from collections.abc import Mapping

    from federation.algorithms.server import ServerHalf
    from federation.names import Digest
    from federation.storage.memory import ModelSource, PlacedSink
    from federation.tensors import TensorSchema


class MethodStep:
    """One pass of a server half: reads each slot beside the model, writes the next one. Implements `Step`.

    Args:
        server: the server half.
        scalars: what its `begin` gave for the round.
        slots: the method's state, by name.
        writers: for the next state, by the same names.
        rescaling: what a slot is multiplied by before the step, where it is; by name.
        parameters: schema of the parameters, in whose order `server` sees everything.

    Raises:
        ValueError: `slots` and `writers` have other names.
    """

    def __init__(
        self,
        server: ServerHalf,
        scalars: Mapping[str, float],
        slots: Mapping[str, ModelSource],
        writers: Mapping[str, PlacedSink],
        rescaling: Mapping[str, float],
        parameters: TensorSchema,
    ) -> None:
        if slots.keys() != writers.keys():
            raise ValueError(f"slots {sorted(slots)} are read, {sorted(writers)} are written")
        self._server = server
        self._scalars = scalars
        self._slots = {name: in_order(slot, parameters) for name, slot in slots.items()}
        self._writers = writers
        self._sinks = {name: append_in_order(writer, parameters) for name, writer in writers.items()}
        self._offset = 0
        self._rescaling = rescaling
        self._rounders = {name: Rounder(TILE_ELEMENTS, f"state {name!r} of the method") for name in slots}
        self._before = np.empty(TILE_ELEMENTS, dtype=np.float64)

    def __call__(self, x: Array, means: Mapping[str, Array], piece: Tile, start: int, /) -> float:
        """Take the step on one tile of the model, in place; see `Step`."""
        before = self._before[: x.size]
        np.copyto(before, x)
        state = {}
        wide = widened(piece, self._offset)
        self._offset += wide.nbytes
        for name, slot in self._slots.items():
            state[name] = self._rounders[name].read(slot, wide)
            if name in self._rescaling:
                np.multiply(state[name], self._rescaling[name], out=state[name])
        # A method that overflows is told of when its result is rounded, not by a warning on the way.
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            self._server.step(ServerTile(x=x, mean=means, state=state, start=start), self._scalars)
            np.subtract(x, before, out=before)
        for name, rounder in self._rounders.items():
            self._sinks[name].append(rounder.round(wide, state[name]).view(np.uint8).data)
        return squared_norm(before)

    def finish(self) -> dict[str, Digest]:
        """Finish the slots and return their digests."""
        return {name: writer.finish() for name, writer in self._writers.items()}

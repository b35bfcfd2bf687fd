"""Where models and updates lie in a simulation: one block of memory that the parent and every worker see.

The block holds what is broadcast twice (the present generation, which sites train from, and the next, which is written
while they do) and one slot per update under way. Workers read models from it and write updates into it in place; the
parent combines from one place in it into another. Nothing is serialised. Every part begins at a cache line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from federation.compression import load_codec, max_payload_bytes
from federation.tensors import unpack
from federation.training.exchange import MODEL, OPTIMIZER

if TYPE_CHECKING:
    from collections.abc import Mapping

    from federation.names import PayloadName
    from federation.plan import ExperimentSpec
    from federation.tensors import TensorSchema
    from federation.tensors.buffers import Array
    from federation.training.exchange import Buffer

GENERATIONS = 2
_LINE = 64


class Layout:
    """What lies where in the block of one experiment.

    Args:
        spec: the experiment.
        slots: updates that may be under way at once.

    Attributes:
        broadcast: schema of each payload that sites are sent.
        updates: most bytes of each payload that sites send.
        nbytes: size of the whole block.
        generation_bytes: of everything that sites are sent.
    """

    def __init__(self, spec: ExperimentSpec, slots: int) -> None:
        self.slots = slots
        self.broadcast: dict[PayloadName, TensorSchema] = {MODEL: spec.schema_.federated}
        if spec.optimizer_schema.nbytes:
            self.broadcast[OPTIMIZER] = spec.optimizer_schema
        self.broadcast.update((plan.name, plan.schema) for plan in spec.downloads())
        self.updates = {
            plan.name: plan.schema.nbytes
            if plan.codec == "identity"
            else max(plan.schema.nbytes, max_payload_bytes(plan.schema, load_codec(plan.codec)))
            for plan in spec.uploads()
        }
        self._broadcast_at, self.generation_bytes = _places(
            {name: schema.nbytes for name, schema in self.broadcast.items()}
        )
        self._update_at, self._slot_bytes = _places(self.updates)
        self.nbytes = max(GENERATIONS * self.generation_bytes + slots * self._slot_bytes, 1)

    def broadcast_at(self, generation: int, name: PayloadName) -> int:
        """Return where a payload of a generation begins."""
        return generation * self.generation_bytes + self._broadcast_at[name]

    def update_at(self, slot: int, name: PayloadName) -> int:
        """Return where a payload of an update begins."""
        return GENERATIONS * self.generation_bytes + slot * self._slot_bytes + self._update_at[name]


class Arena:
    """The block itself, seen by one process.

    Args:
        layout: what lies where.
        memory: ``layout.nbytes`` bytes or more; by default a bytearray of its own.
    """

    def __init__(self, layout: Layout, memory: memoryview | None = None) -> None:
        self.layout = layout
        self._memory = memoryview(bytearray(layout.nbytes)) if memory is None else memory
        self._arrays: dict[tuple[int, PayloadName], Mapping[str, Array]] = {}
        self._slots: dict[tuple[int, PayloadName], tuple[TensorSchema, Mapping[str, Array]]] = {}
        self._payloads: dict[int, tuple[Mapping[PayloadName, int], Mapping[PayloadName, Payload]]] = {}

    def generation(self, generation: int) -> memoryview:
        """Return the bytes of everything that sites are sent in a generation."""
        size = self.layout.generation_bytes
        return self._memory[generation * size : (generation + 1) * size]

    def broadcast(self, generation: int, name: PayloadName) -> memoryview:
        """Return the bytes of a payload that sites are sent."""
        start = self.layout.broadcast_at(generation, name)
        return self._memory[start : start + self.layout.broadcast[name].nbytes]

    def update(self, slot: int, name: PayloadName) -> memoryview:
        """Return the bytes of a payload of an update: room for the largest it can be."""
        start = self.layout.update_at(slot, name)
        return self._memory[start : start + self.layout.updates[name]]

    def arrays(self, generation: int, name: PayloadName) -> Mapping[str, Array]:
        """Return the tensors of a payload that sites are sent; they share its memory."""
        found = self._arrays.get((generation, name))
        if found is None:
            found = unpack(self.layout.broadcast[name], self.broadcast(generation, name))
            self._arrays[generation, name] = found
        return found

    def update_arrays(self, slot: int, name: PayloadName, schema: TensorSchema) -> Mapping[str, Array]:
        """Return the tensors of an update's payload that travels as its flat buffer; they share its memory."""
        found = self._slots.get((slot, name))
        if found is None or found[0] is not schema:
            found = (schema, unpack(schema, self.update(slot, name)[: schema.nbytes]))
            self._slots[slot, name] = found
        return found[1]

    def payloads(self, slot: int, sizes: Mapping[PayloadName, int]) -> Mapping[PayloadName, Payload]:
        """Return the payloads of an update, of so many bytes each, as they lie in its slot."""
        known = self._payloads.get(slot)
        if known is None or known[0] != sizes:
            found = {name: Payload(self.update(slot, name)[:size]) for name, size in sizes.items()}
            known = self._payloads[slot] = (dict(sizes), found)
        return known[1]

    def release(self) -> None:
        """Let go of every view, so that shared memory can be closed."""
        self._arrays.clear()
        self._slots.clear()
        self._payloads.clear()
        self._memory.release()


class Payload:
    """One payload of an update as it lies in its slot. Implements `Readable`."""

    __slots__ = ("_view", "nbytes")

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self.nbytes = view.nbytes

    def pread_into(self, offset: int, view: Buffer) -> None:
        """Fill `view` with the payload's bytes from `offset` on."""
        target = memoryview(view).cast("B")
        target[:] = self._view[offset : offset + target.nbytes]

    def bytes(self) -> memoryview:
        """Return the payload's memory."""
        return self._view


class MemoryExchange:
    """One site's task in an arena. Implements `Inputs` and `Outputs` of `federation.training.exchange`.

    Args:
        arena: the block.
        generation: what the site is sent.
        slot: where its update goes; -1 for an evaluation.
        has_optimizer: aggregated optimizer state is there: a round was before.
    """

    __slots__ = ("_arena", "_generation", "_has_optimizer", "_slot")

    def __init__(self, arena: Arena, generation: int, slot: int = -1, *, has_optimizer: bool = False) -> None:
        self._arena = arena
        self._generation = generation
        self._slot = slot
        self._has_optimizer = has_optimizer

    def has(self, name: PayloadName) -> bool:
        """Tell whether a payload came."""
        return name in self._arena.layout.broadcast and (name != OPTIMIZER or self._has_optimizer)

    def read(self, name: PayloadName, schema: TensorSchema, arrays: Mapping[str, Array]) -> None:
        """Copy a payload into arrays of its schema."""
        for tensor, value in self._arena.arrays(self._generation, name).items():
            np.copyto(arrays[tensor], value)

    def write(self, name: PayloadName, schema: TensorSchema, arrays: Mapping[str, Array]) -> int:
        """Copy arrays into the update's payload."""
        for tensor, target in self._arena.update_arrays(self._slot, name, schema).items():
            np.copyto(target, arrays[tensor])
        return schema.nbytes

    def write_change(self, name: PayloadName, schema: TensorSchema, arrays: Mapping[str, Array]) -> int:
        """Write w - x into the update's payload, in each tensor's own dtype."""
        model = self._arena.arrays(self._generation, MODEL)
        with np.errstate(all="ignore"):  # what diverged is refused by its checks, with a better text
            for tensor, target in self._arena.update_arrays(self._slot, name, schema).items():
                np.subtract(arrays[tensor], model[tensor], out=target)
        return schema.nbytes

    def write_bytes(self, name: PayloadName, data: Buffer) -> int:
        """Copy an encoded payload to its place.

        Raises:
            ValueError: it is larger than its codec said it could be.
        """
        view = memoryview(data).cast("B")
        room = self._arena.update(self._slot, name)
        if view.nbytes > room.nbytes:
            raise ValueError(f"payload {name!r} has {view.nbytes} bytes, its codec makes {room.nbytes} at most")
        room[: view.nbytes] = view
        return view.nbytes


def _places(sizes: Mapping[PayloadName, int]) -> tuple[dict[PayloadName, int], int]:
    """Return where each part begins, and where the last ends, all at cache lines."""
    places, position = {}, 0
    for name, nbytes in sizes.items():
        places[name] = position
        position += -(-nbytes // _LINE) * _LINE
    return places, position

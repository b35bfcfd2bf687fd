"""What comes to a site's round and what goes from it, by payload name: the seam between the work and its transport.

Files of a trainer (`federation.training.files`) and memory of a simulation implement both protocols; the work knows
neither. Names are those of the wire.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias

from federation.names import PayloadName

if TYPE_CHECKING:
    from collections.abc import Mapping

    from federation.tensors import TensorSchema
    from federation.tensors.buffers import Array

Buffer: TypeAlias = "bytes | bytearray | memoryview"

MODEL = PayloadName("model")
DELTA = PayloadName("delta")
BUFFERS = PayloadName("buffers")
OPTIMIZER = PayloadName("optimizer")
SCALARS = PayloadName("scalars")


class Inputs(Protocol):
    """What came: ``model``, ``optimizer`` if the plan aggregates it and a round was before, and the broadcast slots."""

    def has(self, name: PayloadName) -> bool:
        """Tell whether a payload came."""
        ...

    def read(self, name: PayloadName, schema: TensorSchema, arrays: Mapping[str, Array]) -> None:
        """Read a payload into arrays of its schema; may be called more than once in a round.

        Args:
            name: a payload that came.
            schema: its layout.
            arrays: writable C-contiguous arrays, one at least for each tensor of `schema`; others are left alone.

        Raises:
            StorageError: it cannot be read.
        """
        ...


class Outputs(Protocol):
    """What goes: each payload once a round; each method returns the number of bytes that travel."""

    def write(self, name: PayloadName, schema: TensorSchema, arrays: Mapping[str, Array]) -> int:
        """Write a payload as its flat buffer (codec identity).

        Raises:
            StorageError: it cannot be written.
        """
        ...

    def write_change(self, name: PayloadName, schema: TensorSchema, arrays: Mapping[str, Array]) -> int:
        """Write w - x in each tensor's own dtype, where x is payload ``model`` as it came.

        Args:
            name: the payload, ``delta``.
            schema: the parameters of the model.
            arrays: w, by name.

        Raises:
            StorageError: it cannot be written.
        """
        ...

    def write_bytes(self, name: PayloadName, data: Buffer) -> int:
        """Write a payload that was encoded already.

        Raises:
            StorageError: it cannot be written.
        """
        ...

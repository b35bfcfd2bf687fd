"""The codec that changes nothing: the elements as they are, in their own dtype."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from federation.compression.codec import BLOCK_ELEMENTS, Codec, expect_bytes
from federation.compression.options import arguments_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from federation.compression.codec import Array, Buffer, Shapes, Source


@dataclass(frozen=True, slots=True)
class Identity(Codec):
    """C(x) = x, ω = 0. Body: d elements, little-endian. Also carries dtypes that are not floats."""

    name: ClassVar[str] = "identity"

    @classmethod
    def of(cls, arguments: Sequence[str]) -> Identity:
        """Make it from the arguments of ``identity``, which takes none."""
        arguments_of("identity", arguments, 0, 0)
        return cls()

    @property
    def is_unbiased(self) -> bool:
        """True: nothing is lost."""
        return True

    @property
    def is_elementwise(self) -> bool:
        """True."""
        return True

    def omega(self, elements: int) -> float:
        """Return 0."""
        return 0.0

    def max_bytes(self, elements: int, itemsize: int, shapes: Shapes) -> int:
        """Return d · itemsize."""
        return elements * itemsize

    def encode(self, vector: Array, seed: int, shapes: Shapes) -> Buffer:
        """Return the elements where they lie."""
        return vector.astype(vector.dtype.newbyteorder("<"), copy=False).view(np.uint8).data

    def decoder(self, body: Source, elements: int, dtype: np.dtype[Any], shapes: Shapes) -> IdentityDecoder:
        """Return the decoder."""
        expect_bytes(self.name, body, elements * dtype.itemsize)
        return IdentityDecoder(body, dtype)


class IdentityDecoder:
    """Copies blocks out of the body."""

    def __init__(self, body: Source, dtype: np.dtype[Any]) -> None:
        self._body, self._itemsize = body, dtype.itemsize

    def read(self, block: int, out: Array) -> None:
        """Copy block number `block` into `out`."""
        self._body.pread_into(block * BLOCK_ELEMENTS * self._itemsize, out.view(np.uint8).data)

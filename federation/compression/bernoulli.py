"""Lazy sending: the whole vector with probability p, or nothing; one coin per message.

Body: a flag byte, then x/p or nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from federation.compression.codec import BLOCK_ELEMENTS, Codec, expect_bytes, read_array
from federation.compression.options import arguments_of, number_of, text_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from federation.compression.codec import Array, Buffer, Shapes, Source


@dataclass(frozen=True, slots=True)
class Bernoulli(Codec):
    """C(x) = x/p with probability p, else 0; unbiased, ω = 1/p − 1.

    Attributes:
        p: probability of sending, in (0, 1].
    """

    p: float
    name: ClassVar[str] = "bernoulli"

    @classmethod
    def of(cls, arguments: Sequence[str]) -> Bernoulli:
        """Make it from ``bernoulli:0.8``."""
        arguments_of("bernoulli:P", arguments, 1, 1)
        return cls(number_of(arguments[0], "probability", 0.0, 1.0))

    @property
    def spec(self) -> str:
        """``bernoulli:p``."""
        return f"bernoulli:{text_of(self.p)}"

    @property
    def is_unbiased(self) -> bool:
        """True."""
        return True

    @property
    def is_elementwise(self) -> bool:
        """True."""
        return True

    def omega(self, elements: int) -> float:
        """Return 1/p − 1."""
        return 1.0 / self.p - 1.0

    def max_bytes(self, elements: int, itemsize: int, shapes: Shapes) -> int:
        """Return 1 + d · itemsize."""
        return 1 + elements * itemsize

    def encode(self, vector: Array, seed: int, shapes: Shapes) -> Buffer:
        """Return the body."""
        if np.random.default_rng(seed).random() >= self.p:
            return b"\x00"
        largest = max(abs(float(vector.min())), abs(float(vector.max())))
        if largest / self.p > float(np.finfo(vector.dtype).max) * (1 - 1e-6):
            raise ValueError(f"a value divided by {self.p:g} is too large for {vector.dtype.name}; raise p")
        body = np.empty(
            vector.itemsize + vector.nbytes, np.uint8
        )  # the flag, at the end of a room that aligns the rest
        body[vector.itemsize - 1] = 1
        np.divide(vector, self.p, out=body[vector.itemsize :].view(vector.dtype))
        return body[vector.itemsize - 1 :].data

    def decoder(self, body: Source, elements: int, dtype: np.dtype[Any], shapes: Shapes) -> BernoulliDecoder:
        """Return the decoder after checking the flag."""
        if body.nbytes < 1:
            raise ValueError("bernoulli body is empty; it begins with a flag")
        flag = int(read_array(body, 0, 1, "u1")[0])
        if flag > 1:
            raise ValueError(f"bernoulli flag must be 0 or 1, got {flag}")
        expect_bytes(self.name, body, 1 + flag * elements * dtype.itemsize)
        return BernoulliDecoder(body, dtype, sent=bool(flag))


class BernoulliDecoder:
    """Copies blocks, or fills them with zeros."""

    def __init__(self, body: Source, dtype: np.dtype[Any], *, sent: bool) -> None:
        self._body, self._itemsize, self._sent = body, dtype.itemsize, sent

    def read(self, block: int, out: Array) -> None:
        """Decode block number `block` into `out`."""
        if self._sent:
            self._body.pread_into(1 + block * BLOCK_ELEMENTS * self._itemsize, out.view(np.uint8).data)
        else:
            out[:] = 0

"""Deep gradient compression (Lin et al., arXiv:1712.01887): Top-K by a threshold found on a sample, with warm-up.

The other half of the method, momentum correction and masking, is `federation.compression.feedback.MomentumCorrection`.
The threshold is that magnitude which K/d of a random sample exceed; where more than K elements reach it, the K largest
of them are taken. Warm-up sends more at first: 25, 6.25, 1.5625, 0.4 and 0.1 percent, an equal number of rounds each,
but never less than K.

Body: as that of ``top_k``, with at most as many elements as the first warm-up step allows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from federation.compression.codec import Codec, block_count
from federation.compression.options import arguments_of, kept, number_of, share_or_count, text_of, whole_of
from federation.compression.sparse import above, largest_positions
from federation.compression.top_k import SparseDecoder, sparse_body

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from federation.compression.codec import Array, Shapes, Source

WARM_UP = (0.25, 0.0625, 0.015625, 0.004, 0.001)
"""Shares sent during warm-up: sparsities 75, 93.75, 98.4375, 99.6 and 99.9 percent."""
_SAMPLE_SHARE = 0.01
_SMALLEST_SAMPLE = 4096


@dataclass(frozen=True, slots=True)
class Dgc(Codec):
    """C(x) = x where |x_j| reaches a sampled threshold, 0 elsewhere, at most K of them; biased, no α is promised.

    Attributes:
        q: below 1 the share K/d, from 1 on K itself.
        momentum: m of u = m·u + g.
        warm_up: rounds of warm-up; 0: none.
        clip: threshold of the norm of g, divided by √N; 0: no clipping.
        density: share this round's warm-up asks for, 0 for none; set by `warmed`, no part of the specification.
    """

    q: float
    momentum: float = 0.9
    warm_up: int = 0
    clip: float = 0.0
    density: float = 0.0
    name: ClassVar[str] = "dgc"

    @classmethod
    def of(cls, arguments: Sequence[str]) -> Dgc:
        """Make it from ``dgc:0.001``, ``dgc:0.001,0.9``, ``dgc:0.001,0.9,20`` or ``dgc:0.001,0.9,20,1.0``."""
        arguments_of("dgc:SHARE_OR_COUNT[,MOMENTUM[,WARM_UP_ROUNDS[,CLIP]]]", arguments, 1, 4)
        q, momentum, warm_up, clip = [*arguments, *("0.9", "0", "0")[len(arguments) - 1 :]]
        m = number_of(momentum, "momentum", -1e-300, 1.0)
        c = number_of(clip, "clipping threshold", -1e-300, 1e30)
        return cls(share_or_count(q), m, whole_of(warm_up, "rounds of warm-up", 0, 1_000_000), c)

    @property
    def spec(self) -> str:
        """``dgc:q,momentum,warm_up,clip``."""
        return f"dgc:{text_of(self.q)},{text_of(self.momentum)},{self.warm_up},{text_of(self.clip)}"

    @property
    def takes_own_feedback(self) -> bool:
        """True: momentum correction."""
        return True

    def max_bytes(self, elements: int, itemsize: int, shapes: Shapes) -> int:
        """Return the size of the largest body: 4 · blocks + (2 + itemsize) an element of the first warm-up step."""
        return 4 * block_count(elements) + self._most(elements) * (2 + itemsize)

    def encode(self, vector: Array, seed: int, shapes: Shapes) -> bytes:
        """Return the body; `seed` draws the sample."""
        k = max(kept(self.q, vector.size), kept(self.density, vector.size) if self.density else 0)
        positions = above(vector, _threshold(vector, k, np.random.default_rng(seed)))
        if sum(inside.size for inside in positions) > k:
            # The paper's second, hierarchical selection; exact, as `top_k`, and as fast when done at once.
            positions = largest_positions(vector, k)
        return sparse_body(vector, positions)

    def decoder(self, body: Source, elements: int, dtype: np.dtype[Any], shapes: Shapes) -> SparseDecoder:
        """Return the decoder after checking that the counts fit the blocks and are not too many."""
        return SparseDecoder(self.name, body, elements, dtype, 1, self._most(elements))

    def warmed(self, state: Mapping[str, Array], segment: int) -> Dgc:
        """Return the codec with the density of the round that ``state["round"]`` counts."""
        done = int(state["round"][0]) if "round" in state else 0
        if done >= self.warm_up:
            return self
        return replace(self, density=WARM_UP[done * len(WARM_UP) // self.warm_up])

    def _most(self, elements: int) -> int:
        first = kept(WARM_UP[0], elements) if self.warm_up else 0
        return max(kept(self.q, elements), first)


def _threshold(vector: Array, k: int, rng: np.random.Generator) -> float:
    """Return a magnitude that about `k` elements reach, found on a sample of 1 percent or all of a small vector."""
    size = max(_SMALLEST_SAMPLE, int(vector.size * _SAMPLE_SHARE))
    sample = np.abs(vector if vector.size <= size else vector[rng.integers(0, vector.size, size)])
    place = sample.size - max(1, round(k * sample.size / vector.size))
    return float(np.partition(sample, place)[place])

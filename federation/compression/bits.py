"""Small whole numbers packed in a fixed width, and the noise that rounds them.

A width is cut into planes of 16, 8, 4, 2 and 1 bits, lowest first: each plane is packed by a few whole-array shifts, so
packing runs at memory speed where a loop over elements would not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from federation.compression.codec import Array


def packed_bytes(count: int, width: int) -> int:
    """Return the bytes that `count` numbers of `width` bits take."""
    return sum(-(-count * plane // 8) for plane in _planes(width))


def pack(codes: Array, width: int) -> bytes:
    """Return `codes` packed.

    Args:
        codes: 1-D, u8 for widths up to 8, else u16; each below 2^width.
        width: 1 to 16.
    """
    parts: list[bytes] = []
    rest = codes
    for plane in _planes(width):
        if plane == 16:
            return codes.astype("<u2", copy=False).tobytes()
        if plane == 8:
            parts.append((rest & rest.dtype.type(0xFF)).astype(np.uint8).tobytes())
        else:
            parts.append(_pack_plane((rest & rest.dtype.type((1 << plane) - 1)).astype(np.uint8), plane))
        # From here on at most eight bits are left, whatever the type was.
        rest = (rest >> rest.dtype.type(8)).astype(np.uint8) if plane == 8 and width > 8 else rest
        rest = rest >> rest.dtype.type(plane) if plane < 8 else rest
    return b"".join(parts)


def unpack(packed: Array, width: int, count: int) -> Array:
    """Return `count` numbers of `width` bits as u8 or, above 8 bits, u16.

    Args:
        packed: u8, exactly ``packed_bytes(count, width)`` of them.
        width: 1 to 16.
        count: how many.
    """
    kind: Any = np.uint8 if width <= 8 else np.uint16
    if width == 16:
        return packed.view("<u2")[:count]
    codes = np.zeros(count, kind)
    position = shift = 0
    for plane in _planes(width):
        size = -(-count * plane // 8)
        part = packed[position : position + size]
        values = part if plane == 8 else _unpack_plane(part, plane, count)
        codes |= values.astype(kind, copy=False) << kind(shift)
        position, shift = position + size, shift + plane
    return codes


def noise(seed: int) -> np.random.SFC64:
    """Return the stream an encoder rounds with: fast, and never needed by a decoder."""
    return np.random.SFC64(np.random.SeedSequence(seed))


def words(stream: np.random.SFC64, count: int) -> Array:
    """Return `count` uniform 32-bit words."""
    return stream.random_raw(-(-count // 2)).view(np.uint32)[:count]


def short_words(stream: np.random.SFC64, count: int, width: int) -> Array:
    """Return `count` uniform numbers of `width` bits, at most 16, as 32-bit words: for half of what `words` costs."""
    raw = stream.random_raw(-(-count // 4))
    mask = np.uint64(((1 << width) - 1) * 0x1_0000_0001)
    numbers = np.empty(4 * raw.size, np.uint32)
    low, high = np.split(numbers.view(np.uint64), 2)
    np.bitwise_and(raw, mask, out=low)
    np.right_shift(raw, np.uint64(16), out=high)
    high &= mask
    return numbers[:count]


def uniforms(stream: np.random.SFC64, count: int) -> Array:
    """Return `count` float32 uniform on [0, 1), multiples of 2^-24."""
    return (words(stream, count) >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def _planes(width: int) -> tuple[int, ...]:
    """Return the planes of a width, widest first, so that high bits come last: 6 → (4, 2)."""
    return tuple(plane for plane in (16, 8, 4, 2, 1) if width & plane)


def _pack_plane(values: Array, plane: int) -> bytes:
    """Pack u8 numbers of 4, 2 or 1 bits, the first in the lowest bits."""
    count = values.size
    if plane == 1:
        return np.packbits(values, bitorder="little").tobytes()
    per_byte = 8 // plane
    if count % per_byte:
        values = np.concatenate((values, np.zeros(-count % per_byte, np.uint8)))
    if plane == 4:
        pair = values.view("<u2")
        paired: Array = (pair | (pair >> np.uint16(4))).astype(np.uint8)
        return paired.tobytes()
    four: Array = values.view("<u4")
    four = four | (four >> np.uint32(6))
    four = (four | (four >> np.uint32(12))).astype(np.uint8)
    return four.tobytes()


def _unpack_plane(packed: Array, plane: int, count: int) -> Array:
    if plane == 1:
        return np.unpackbits(packed, count=count, bitorder="little")
    if plane == 4:
        pair: Array = packed.astype("<u2")
        pair = (pair | (pair << np.uint16(4))) & np.uint16(0x0F0F)
        return pair.view(np.uint8)[:count]
    four: Array = packed.astype("<u4")
    four = (four | (four << np.uint32(12))) & np.uint32(0x000F000F)
    four = (four | (four << np.uint32(6))) & np.uint32(0x03030303)
    return four.view(np.uint8)[:count]

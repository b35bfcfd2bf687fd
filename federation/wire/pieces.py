"""Messages that hold one piece of a payload, written and read by hand: they carry every byte of every model.

Protobuf's own way copies a piece three times where it is written and twice where it is read; here it is once and not at
all. What is written is what protobuf writes. What is read must be laid out just so, and in the order of its fields:
anything else is left to protobuf, which is the judge of what is valid.

Reference: "Encoding", protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from federation.wire.chunks import checksum

if TYPE_CHECKING:
    from collections.abc import Sequence

# Wire types of the protobuf encoding.
_VARINT, _BYTES, _FIXED32 = 0, 2, 5
_CRC_BYTES = 4


@dataclass(frozen=True, slots=True)
class MessagePiece:
    """A piece that lies in the message it came in. Implements `federation.wire.chunks.Piece`.

    Attributes:
        offset: position of the first byte in the encoded payload, bytes.
        data: the bytes; they keep the whole message alive.
        crc32c: CRC-32C that its sender found.
        payload: index of the payload it belongs to, in an upload.
    """

    offset: int
    data: memoryview
    crc32c: int
    payload: int = 0


def encode_chunk(data: bytes, offset: int, crc32c: int, outer: Sequence[tuple[int, bytes]] = ((1, b""),)) -> bytes:
    """Return an encoded message that holds one chunk, with one copy of its data.

    Protobuf's own way is three copies, and this is the message that carries every byte of every model.

    Args:
        data: the piece.
        offset: where it begins, bytes.
        crc32c: its checksum.
        outer: the messages around the chunk, innermost first: the field number that holds what is inside, and the
            encoded fields that stand before it. By default the chunk is field 1 of a message with nothing else.
    """
    head = _key(1, _VARINT) + _varint(offset) if offset else b""
    head += _key(2, _BYTES) + _varint(len(data))
    tail = _key(3, _FIXED32) + crc32c.to_bytes(4, "little") if crc32c else b""
    size = len(head) + len(data) + len(tail)
    for number, before in outer:
        head = before + _key(number, _BYTES) + _varint(size) + head
        size = len(head) + len(data) + len(tail)
    return b"".join((head, data, tail))


def _key(number: int, wire_type: int) -> bytes:
    return _varint(number << 3 | wire_type)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def encode_update_chunk(payload: int, data: bytes, offset: int) -> bytes:
    """Return an encoded `PushUpdateRequest` with a piece of the payload of this index."""
    index = _key(1, _VARINT) + _varint(payload) if payload else b""
    return encode_chunk(data, offset, checksum(data), ((2, index), (2, b"")))


def read_model_piece(message: bytes) -> MessagePiece | None:
    """Return the piece in an encoded `PullModelReply`; None if protobuf must read it."""
    reader = _Reader(message)
    try:
        reader.enter(1)
        return reader.chunk(0)
    except (_OtherwiseError, IndexError):
        return None


def read_update_piece(message: bytes) -> MessagePiece | None:
    """Return the piece in an encoded `PushUpdateRequest`; None if it holds something else or protobuf must read it."""
    reader = _Reader(message)
    try:
        reader.enter(2)
        payload = reader.number(1)
        reader.enter(2)
        return reader.chunk(payload)
    except (_OtherwiseError, IndexError):
        return None


class _OtherwiseError(Exception):
    """A message is laid out otherwise."""


class _Reader:
    """Reads one message front to back."""

    def __init__(self, message: bytes) -> None:
        self._message = message
        self._at = 0

    def enter(self, number: int) -> None:
        """Go into the message in this field, which must be all that is left."""
        self._expect(number, _BYTES)
        nbytes = self._varint()
        if self._at + nbytes != len(self._message):
            raise _OtherwiseError

    def number(self, number: int) -> int:
        """Return the integer in this field; 0 if it is not there."""
        if self._at < len(self._message) and self._message[self._at] == number << 3 | _VARINT:
            self._at += 1
            return self._varint()
        return 0

    def chunk(self, payload: int) -> MessagePiece:
        """Return the `Chunk` that is left."""
        offset = self.number(1)
        self._expect(2, _BYTES)
        nbytes = self._varint()
        start, end = self._at, self._at + nbytes
        crc32c = 0
        if end + 1 + _CRC_BYTES == len(self._message):
            self._at = end
            self._expect(3, _FIXED32)
            crc32c = int.from_bytes(self._message[self._at :], "little")
        elif end != len(self._message):
            raise _OtherwiseError
        return MessagePiece(offset, memoryview(self._message)[start:end], crc32c, payload)

    def _expect(self, number: int, wire_type: int) -> None:
        if self._message[self._at] != number << 3 | wire_type:
            raise _OtherwiseError
        self._at += 1

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._message[self._at]
            self._at += 1
            value |= (byte & 0x7F) << shift
            if byte <= 0x7F:
                return value
            shift += 7
            if shift > 56:  # larger than anything that fits: protobuf may have its own idea of it
                raise _OtherwiseError

"""Messages that hold one piece of a payload, written and read by hand: they carry every byte of every model.

Protobuf's own way copies a piece three times where it is written and twice where it is read; here it is read into the
message it travels in, and looked at in the one it came in. What is written is what protobuf writes. What is read must
be laid out just so, and in the order of its fields: anything else is left to protobuf, which is the judge of what is
valid.

Reference: "Encoding", protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# Wire types of the protobuf encoding.
_VARINT, _BYTES = 0, 2


@dataclass(frozen=True, slots=True)
class MessagePiece:
    """A piece that lies in the message it came in. Implements `federation.wire.chunks.Piece`.

    Attributes:
        offset: position of the first byte in the encoded payload, bytes.
        data: the bytes; they keep the whole message alive.
        payload: index of the payload it belongs to, in an upload.
    """

    offset: int
    data: memoryview
    payload: int = 0


def read_model_message(pread: Callable[[int, int], bytes], offset: int, nbytes: int) -> bytes:
    """Read a piece and return the encoded `PullModelReply` that holds it. Blocks as `pread` does.

    Args:
        pread: returns the bytes of the payload at (offset, size), all of them.
        offset: where the piece begins, bytes.
        nbytes: its size.
    """
    return _read_behind(_head(offset, nbytes, ((1, b""),)), pread, offset, nbytes)


def read_update_message(pread: Callable[[int, int], bytes], payload: int, offset: int, nbytes: int) -> bytes:
    """Read a piece of the payload of this index and return the encoded `PushUpdateRequest` that holds it.

    Other arguments as `read_model_message`.
    """
    index = _key(1, _VARINT) + _varint(payload) if payload else b""
    return _read_behind(_head(offset, nbytes, ((2, index), (2, b""))), pread, offset, nbytes)


def _head(offset: int, nbytes: int, outer: Sequence[tuple[int, bytes]]) -> bytes:
    """Return what stands before a piece in its message.

    Args:
        offset: where the piece begins, bytes.
        nbytes: its size.
        outer: the messages around the chunk, innermost first: the field number that holds what is inside, and the
            encoded fields that stand before it.
    """
    head = _key(1, _VARINT) + _varint(offset) if offset else b""
    head += _key(2, _BYTES) + _varint(nbytes)
    for number, before in outer:
        head = before + _key(number, _BYTES) + _varint(len(head) + nbytes) + head
    return head


def _read_behind(head: bytes, pread: Callable[[int, int], bytes], offset: int, nbytes: int) -> bytes:
    """Return a head and the bytes behind it. They are not copied: a few bytes more are read, where the head comes."""
    before = len(head)
    if offset < before:
        return head + pread(offset, nbytes)
    # An `io.BytesIO` takes over bytes that nobody else holds, and gives them back; so no name may hold them meanwhile.
    message = io.BytesIO(pread(offset - before, before + nbytes))
    message.write(head)
    return message.getvalue()


def _key(number: int, wire_type: int) -> bytes:
    return _varint(number << 3 | wire_type)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


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
        if self._at + nbytes != len(self._message):
            raise _OtherwiseError
        return MessagePiece(offset, memoryview(self._message)[self._at :], payload)

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

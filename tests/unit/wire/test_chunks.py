"""Pieces of a payload: any size, any offset, and none that is misplaced or too many."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.errors import MalformedMessageError, TransportError
from federation.names import Digest
from federation.tensors.digest import payload_digest
from federation.v1 import tensors_pb2
from federation.wire.chunks import (
    CHUNK_BYTES,
    MAX_CHUNK_BYTES,
    ChunkReceiver,
    cut,
    read_chunks,
)
from federation.wire.pieces import MessagePiece

if TYPE_CHECKING:
    from collections.abc import Callable


DATA = bytes(range(256)) * 3


def pread_of(data: bytes) -> Callable[[int, int], bytes]:
    return lambda offset, nbytes: data[offset : offset + nbytes]


@given(st.binary(max_size=300), st.integers(1, 50))
def test_what_was_cut_is_put_together_again(data: bytes, chunk_bytes: int) -> None:
    receiver = ChunkReceiver(len(data))
    chunks = read_chunks(pread_of(data), len(data), chunk_bytes=chunk_bytes)
    assert b"".join(receiver.accept(chunk) for chunk in chunks) == data
    assert receiver.finish() == payload_digest(data)


@given(st.binary(min_size=1, max_size=300), st.data())
def test_a_transfer_that_was_cut_goes_on_with_the_same_receiver(data: bytes, draw: st.DataObject) -> None:
    receiver = ChunkReceiver(len(data))
    arrived = b""
    while not receiver.is_complete:
        chunks = read_chunks(pread_of(data), len(data), receiver.received, chunk_bytes=draw.draw(st.integers(1, 50)))
        for _ in range(draw.draw(st.integers(1, 4))):
            chunk = next(chunks, None)
            arrived += receiver.accept(chunk) if chunk is not None else b""
    assert arrived == data
    assert receiver.finish(payload_digest(data)) == payload_digest(data)


def test_offsets_pass_4_gib() -> None:
    total = (5 << 30) + 10
    chunks = read_chunks(lambda offset, nbytes: bytes(nbytes), total, 5 << 30)
    (chunk,) = chunks
    assert (chunk.offset, len(chunk.data)) == (5 << 30, 10)


def test_no_message_is_larger_than_a_few_mib() -> None:
    chunk = tensors_pb2.Chunk(offset=1 << 40, data=bytes(CHUNK_BYTES))
    assert chunk.ByteSize() < CHUNK_BYTES + 64


def test_nothing_is_read_before_it_is_asked_for() -> None:
    reads: list[int] = []

    def pread(offset: int, nbytes: int) -> bytes:
        reads.append(offset)
        return bytes(nbytes)

    chunks = read_chunks(pread, 100, chunk_bytes=10)
    next(chunks)
    assert reads == [0]


def test_an_offset_beyond_the_end_is_the_peers_fault() -> None:
    with pytest.raises(MalformedMessageError, match="beyond the payload's 10 bytes"):
        read_chunks(pread_of(bytes(10)), 10, 11)
    assert list(read_chunks(pread_of(bytes(10)), 10, 10)) == []


def chunk_of(offset: int, data: bytes) -> tensors_pb2.Chunk:
    return tensors_pb2.Chunk(offset=offset, data=data)


@pytest.mark.parametrize(
    ("chunk", "text"),
    [
        (chunk_of(4, b"abc"), "at offset 4, expected 3"),
        (chunk_of(0, b"abc"), "at offset 0, expected 3"),
        (chunk_of(3, b""), "chunk of 0 bytes"),
        (chunk_of(3, bytes(8)), "beyond the 10 bytes"),
        (chunk_of(3, bytes(MAX_CHUNK_BYTES + 1)), "expected 1 to"),
    ],
    ids=["gap", "repeat", "empty", "past the end", "too large"],
)
def test_a_chunk_that_is_not_the_next_is_refused_and_changes_nothing(chunk: tensors_pb2.Chunk, text: str) -> None:
    receiver = ChunkReceiver(10)
    receiver.accept(tensors_pb2.Chunk(offset=0, data=b"abc"))
    with pytest.raises(MalformedMessageError, match=text):
        receiver.accept(chunk)
    assert receiver.received == 3
    receiver.accept(tensors_pb2.Chunk(offset=3, data=bytes(7)))
    assert receiver.finish() == payload_digest(b"abc" + bytes(7))


def test_a_chunk_that_is_not_what_was_sent_makes_the_payload_another() -> None:
    receiver = ChunkReceiver(6)
    receiver.accept(tensors_pb2.Chunk(offset=0, data=b"abc"))
    receiver.accept(tensors_pb2.Chunk(offset=3, data=b"dEf"))
    with pytest.raises(TransportError, match="digest is"):
        receiver.finish(payload_digest(b"abcdef"))


def test_a_payload_that_ends_early_or_is_another_is_fetched_again() -> None:
    receiver = ChunkReceiver(4)
    receiver.accept(tensors_pb2.Chunk(offset=0, data=b"abc"))
    with pytest.raises(TransportError, match="3 of 4 bytes"):
        receiver.finish()
    receiver.accept(tensors_pb2.Chunk(offset=3, data=b"d"))
    with pytest.raises(TransportError, match="digest is"):
        receiver.finish(Digest(bytes(32)))


def test_a_line_that_is_cut_after_a_mebibyte_gets_on_each_time() -> None:
    assert [size for _, size in cut(9 << 20)] == [1 << 20, CHUNK_BYTES, CHUNK_BYTES]


class Counting:
    """A digest that is how many bytes it covers: of gibibytes a real one takes seconds."""

    def __init__(self) -> None:
        self.nbytes = 0

    def update(self, piece: bytes | bytearray | memoryview) -> None:
        self.nbytes += len(piece)

    def digest(self) -> bytes:
        return self.nbytes.to_bytes(32, "big")


def test_a_payload_of_more_than_four_gibibytes_arrives_whole_and_resumes_beyond_them() -> None:
    total, zeros = (4 << 30) + CHUNK_BYTES + 3, memoryview(bytes(CHUNK_BYTES))
    receiver = ChunkReceiver(total, Counting)
    *first, last = cut(total, 0)
    for offset, size in first:
        receiver.accept(MessagePiece(offset, zeros[:size]))
    assert not receiver.is_complete and receiver.received == last[0] > 1 << 32
    for chunk in read_chunks(lambda _, nbytes: bytes(nbytes), total, receiver.received):
        receiver.accept(tensors_pb2.Chunk.FromString(chunk.SerializeToString()))
    assert receiver.finish() == Digest(total.to_bytes(32, "big"))

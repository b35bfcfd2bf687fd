"""Pieces written and read by hand: as protobuf writes and reads them; what looks strange is protobuf's to judge."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from federation.errors import MalformedMessageError
from federation.v1 import aggregator_pb2, tensors_pb2
from federation.wire.chunks import CHUNK_BYTES, ChunkReceiver
from federation.wire.pieces import (
    MessagePiece,
    read_model_message,
    read_model_piece,
    read_update_message,
    read_update_piece,
)

if TYPE_CHECKING:
    from collections.abc import Callable


def pread_at(offset: int, data: bytes) -> Callable[[int, int], bytes]:
    """Return what reads a payload that has `data` from an offset on, and other bytes before."""

    def pread(start: int, size: int) -> bytes:
        before = bytes([0xEE]) * max(0, min(size, offset - start))
        at = max(0, start - offset)
        return before + data[at : at + size - len(before)]

    return pread


MESSAGE = read_update_message(pread_at(200, b"abcdef"), 3, 200, 6)


def fields(piece: MessagePiece | None) -> tuple[int, int, bytes]:
    assert piece is not None
    return piece.payload, piece.offset, bytes(piece.data)


def protobuf_fields(message: bytes) -> tuple[int, int, bytes]:
    update = aggregator_pb2.PushUpdateRequest.FromString(message).chunk
    return update.payload, update.chunk.offset, update.chunk.data


@pytest.mark.parametrize("offset", [0, 1, 5, 12, 127, 128, 1 << 20, 1 << 40])
@pytest.mark.parametrize("size", [1, 127, 128, 20_000, CHUNK_BYTES])
def test_pieces_written_by_hand_are_what_protobuf_writes_and_are_read_as_they_were(offset: int, size: int) -> None:
    data = (bytes(range(256)) * (size // 256 + 1))[:size]
    chunk = tensors_pb2.Chunk(offset=offset, data=data)
    reply = aggregator_pb2.PullModelReply(chunk=chunk).SerializeToString()
    assert read_model_message(pread_at(offset, data), offset, size) == reply
    assert fields(read_model_piece(reply)) == (0, offset, data)
    for index in (0, 1, 200):
        update = aggregator_pb2.UpdateChunk(payload=index, chunk=chunk)
        request = aggregator_pb2.PushUpdateRequest(chunk=update).SerializeToString()
        assert read_update_message(pread_at(offset, data), index, offset, size) == request
        assert fields(read_update_piece(request)) == (index, offset, data)


def test_a_piece_lies_in_memory_once_while_its_message_is_made() -> None:
    tracemalloc.start()
    try:
        message = read_update_message(lambda _, size: bytes(size), 0, 1 << 20, CHUNK_BYTES)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(message) <= peak < 1.1 * len(message)


@given(st.integers(0, len(MESSAGE) - 1), st.integers(0, 255))
def test_a_changed_byte_is_read_as_protobuf_reads_it_or_left_to_protobuf(position: int, value: int) -> None:
    changed = bytearray(MESSAGE)
    changed[position] = value
    piece = read_update_piece(bytes(changed))
    if piece is not None:
        assert fields(piece) == protobuf_fields(bytes(changed))


@given(st.integers(0, len(MESSAGE) - 1))
def test_a_message_that_was_cut_is_left_to_protobuf(size: int) -> None:
    piece = read_update_piece(MESSAGE[:size])
    assert piece is None


@given(st.binary(max_size=40))
def test_any_bytes_are_read_as_protobuf_reads_them_or_left_to_protobuf(message: bytes) -> None:
    piece = read_update_piece(message)
    if piece is not None:
        assert fields(piece) == protobuf_fields(message)


def test_what_holds_no_piece_is_left_to_protobuf() -> None:
    commit = aggregator_pb2.PushUpdateRequest(commit=aggregator_pb2.UpdateCommit(digests=[b"1"]))
    header = aggregator_pb2.PushUpdateRequest(header=aggregator_pb2.UpdateHeader(experiment="x"))
    for message in (commit, header, aggregator_pb2.PushUpdateRequest()):
        assert read_update_piece(message.SerializeToString()) is None
    with pytest.raises(DecodeError):
        aggregator_pb2.PushUpdateRequest.FromString(MESSAGE[:-3])


def test_fields_in_another_order_and_unknown_ones_are_left_to_protobuf_which_takes_them() -> None:
    chunk = tensors_pb2.Chunk(offset=200, data=b"abcdef")
    inner = aggregator_pb2.UpdateChunk(chunk=chunk).SerializeToString() + b"\x08\x03"
    message = b"\x12" + bytes([len(inner)]) + inner
    assert read_update_piece(message) is None
    assert protobuf_fields(message) == (3, 200, b"abcdef")
    encoded = chunk.SerializeToString() + b"\x1dcrc!"
    reply = b"\x0a" + bytes([len(encoded)]) + encoded
    assert read_model_piece(reply) is None
    assert aggregator_pb2.PullModelReply.FromString(reply).chunk.data == b"abcdef"


def test_a_piece_read_by_hand_is_checked_like_any_other() -> None:
    receiver = ChunkReceiver(12)
    first = read_model_piece(read_model_message(pread_at(0, b"abcdef"), 0, 6))
    assert first is not None
    assert bytes(receiver.accept(first)) == b"abcdef"
    with pytest.raises(MalformedMessageError, match="expected 6"):
        receiver.accept(first)

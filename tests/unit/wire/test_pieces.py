"""Pieces written and read by hand: as protobuf writes and reads them; what looks strange is protobuf's to judge."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from federation.errors import TransportError
from federation.v1 import aggregator_pb2
from federation.wire.chunks import CHUNK_BYTES, ChunkReceiver, checksum, make_chunk
from federation.wire.pieces import (
    MessagePiece,
    encode_chunk,
    encode_update_chunk,
    read_model_piece,
    read_update_piece,
)

MESSAGE = encode_update_chunk(3, b"abcdef", 200)


def fields(piece: MessagePiece | None) -> tuple[int, int, bytes, int]:
    assert piece is not None
    return piece.payload, piece.offset, bytes(piece.data), piece.crc32c


def protobuf_fields(message: bytes) -> tuple[int, int, bytes, int]:
    update = aggregator_pb2.PushUpdateRequest.FromString(message).chunk
    return update.payload, update.chunk.offset, update.chunk.data, update.chunk.crc32c


@pytest.mark.parametrize("offset", [0, 1, 127, 128, 1 << 20, 1 << 40])
@pytest.mark.parametrize("size", [1, 127, 128, 20_000, CHUNK_BYTES])
def test_pieces_written_by_hand_are_what_protobuf_writes_and_are_read_as_they_were(offset: int, size: int) -> None:
    chunk = make_chunk(offset, (bytes(range(256)) * (size // 256 + 1))[:size])
    data, crc = chunk.data, chunk.crc32c
    reply = aggregator_pb2.PullModelReply(chunk=chunk).SerializeToString()
    assert encode_chunk(data, offset, crc) == reply
    assert fields(read_model_piece(reply)) == (0, offset, data, crc)
    for index in (0, 1, 200):
        update = aggregator_pb2.UpdateChunk(payload=index, chunk=chunk)
        request = aggregator_pb2.PushUpdateRequest(chunk=update).SerializeToString()
        assert encode_update_chunk(index, data, offset) == request
        assert fields(read_update_piece(request)) == (index, offset, data, crc)


def test_a_checksum_of_zero_is_not_on_the_wire() -> None:
    message = encode_chunk(b"data", 7, 0)
    assert fields(read_model_piece(message)) == (0, 7, b"data", 0)


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


def test_fields_in_another_order_are_left_to_protobuf_which_takes_them() -> None:
    chunk = make_chunk(200, b"abcdef")
    inner = aggregator_pb2.UpdateChunk(chunk=chunk).SerializeToString() + b"\x08\x03"
    message = b"\x12" + bytes([len(inner)]) + inner
    assert read_update_piece(message) is None
    assert protobuf_fields(message) == (3, 200, b"abcdef", chunk.crc32c)


def test_a_piece_read_by_hand_is_checked_like_any_other() -> None:
    receiver = ChunkReceiver(12)
    first = read_model_piece(encode_chunk(b"abcdef", 0, checksum(b"abcdef")))
    assert first is not None
    assert bytes(receiver.accept(first)) == b"abcdef"
    damaged = read_model_piece(encode_chunk(b"ghijkl", 6, checksum(b"abcdef")))
    assert damaged is not None
    with pytest.raises(TransportError, match="damaged"):
        receiver.accept(damaged)

"""One pass over each chunk of an upload: whatever fails, what is held is what is really there."""

from __future__ import annotations

import errno
import math
import os
from typing import TYPE_CHECKING

import numpy as np
import pytest

from federation.errors import MalformedMessageError, Refusal, StorageError, UpdateRejectedError
from federation.names import Attempt, Digest, PayloadName, RoundNumber, SiteName
from federation.storage.spool import Spool, SpoolPayload, UpdateKey
from federation.tensors import DType, TensorSchema, TensorSpec
from federation.tensors.digest import payload_digest
from federation.v1 import tensors_pb2
from federation.wire.payloads import Payload
from federation.wire.reception import PayloadReception

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA = TensorSchema.of(
    [TensorSpec(name="w", dtype=DType.FLOAT32, shape=(100,)), TensorSpec(name="n", dtype=DType.INT64, shape=(2,))]
)


@pytest.fixture
def sink(tmp_path: Path) -> SpoolPayload:
    key = UpdateKey(site=SiteName("alpha"), round=RoundNumber(1), attempt=Attempt(1), update_id=b"id")
    return Spool(tmp_path).begin(key, [SCHEMA.nbytes], b"header").payloads[0]


@pytest.fixture
def reception(sink: SpoolPayload) -> PayloadReception:
    payload = Payload(name=PayloadName("delta"), schema_digest=SCHEMA.digest, encoded_bytes=SCHEMA.nbytes)
    return PayloadReception(payload, SCHEMA, sink)


def content(*, bad: float | None = None) -> bytes:
    values = np.full(100, 0.5, dtype=np.float32)
    if bad is not None:
        values[57] = bad
    return np.array([1, 2], dtype=np.int64).tobytes() + values.tobytes()


def digest_of(data: bytes) -> Digest:
    return payload_digest(data)


def send(reception: PayloadReception, data: bytes, size: int = 37) -> None:
    for offset in range(reception.held, len(data), size):
        reception.accept(tensors_pb2.Chunk(offset=offset, data=data[offset : offset + size]))


def test_a_whole_payload_is_stored_measured_and_verified(reception: PayloadReception, sink: SpoolPayload) -> None:
    data = content()
    send(reception, data)
    reception.finish(digest_of(data))
    assert reception.norm == pytest.approx(5.0)
    stored = bytearray(len(data))
    sink.pread_into(0, stored)
    assert stored == data


@pytest.mark.parametrize("bad", [math.nan, math.inf], ids=["NaN", "infinity"])
def test_a_number_that_is_not_finite_is_refused_by_name(reception: PayloadReception, bad: float) -> None:
    with pytest.raises(UpdateRejectedError, match="'w'") as caught:
        send(reception, content(bad=bad))
    assert caught.value.refusal is Refusal.NOT_FINITE


def test_a_truncated_payload_is_refused(reception: PayloadReception) -> None:
    data = content()
    send(reception, data[:-1])
    with pytest.raises(UpdateRejectedError, match=f"{len(data) - 1} of {len(data)} bytes") as caught:
        reception.finish(digest_of(data[:-1]))
    assert caught.value.refusal is Refusal.TRUNCATED


def test_a_payload_of_another_digest_is_refused(reception: PayloadReception) -> None:
    send(reception, content())
    with pytest.raises(UpdateRejectedError) as caught:
        reception.finish(digest_of(b"something else"))
    assert caught.value.refusal is Refusal.CORRUPT


def test_a_payload_whose_sender_took_no_digest_is_digested_all_the_same(reception: PayloadReception) -> None:
    data = content()
    send(reception, data)
    assert reception.finish(None) == digest_of(data)


def test_a_payload_longer_than_announced_is_refused(reception: PayloadReception) -> None:
    data = content()
    send(reception, data)
    with pytest.raises(MalformedMessageError, match="beyond"):
        reception.accept(tensors_pb2.Chunk(offset=len(data), data=b"more"))


def test_what_was_refused_stays_refused_when_the_upload_is_resumed(reception: PayloadReception) -> None:
    data = np.full(len(content()) // 4, np.nan, dtype=np.float32).tobytes()
    for _ in range(2):
        with pytest.raises(UpdateRejectedError) as caught:
            reception.accept(tensors_pb2.Chunk(offset=0, data=data))
        assert caught.value.refusal is Refusal.NOT_FINITE


def test_an_upload_resumes_after_the_disk_was_full(
    reception: PayloadReception, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = content()
    send(reception, data[:100])

    def full(*arguments: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(StorageError, match="no room"):
            send(reception, data)
    assert reception.held == 100
    send(reception, data)
    reception.finish(digest_of(data))
    assert reception.norm == pytest.approx(5.0)


def test_a_payload_that_does_not_fit_its_place_is_our_own_fault(sink: SpoolPayload) -> None:
    payload = Payload(name=PayloadName("delta"), schema_digest=SCHEMA.digest, encoded_bytes=SCHEMA.nbytes + 1)
    with pytest.raises(ValueError, match="does not fit"):
        PayloadReception(payload, SCHEMA, sink)

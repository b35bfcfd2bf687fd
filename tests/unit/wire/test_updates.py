"""Announcements: back as they went, or refused when they cannot mean anything."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from federation.errors import MalformedMessageError
from federation.names import Attempt, Digest, Epoch, ExperimentId, PayloadName, RoundNumber
from federation.v1 import aggregator_pb2
from federation.wire.payloads import Payload
from federation.wire.updates import (
    UpdateAnnouncement,
    announcement_from_proto,
    announcement_to_proto,
    commit_from_proto,
    metrics_from_proto,
)

if TYPE_CHECKING:
    from collections.abc import Callable

ANNOUNCEMENT = UpdateAnnouncement(
    experiment=ExperimentId("digits-abcd1234"),
    update_id=b"i" * 16,
    attempt=Attempt(1),
    epoch=Epoch(2),
    round=RoundNumber(3),
    payloads=(Payload(name=PayloadName("delta"), schema_digest=Digest(b"s" * 32), encoded_bytes=5 << 30),),
    examples=120,
    metrics={"loss": 0.25, "accuracy": 0.9},
    train_seconds=1.5,
    model_digest=Digest(b"m" * 32),
    steps=40,
    oracle_calls=1280,
    peak_memory=1 << 33,
)


def test_an_announcement_comes_back_as_it_went() -> None:
    assert announcement_from_proto(announcement_to_proto(ANNOUNCEMENT)) == ANNOUNCEMENT


def test_an_announcement_is_kept_in_a_file_as_the_same_bytes_every_time() -> None:
    assert UpdateAnnouncement.from_bytes(ANNOUNCEMENT.to_bytes()) == ANNOUNCEMENT
    reordered = announcement_to_proto(ANNOUNCEMENT)
    reordered.metrics.clear()
    for name in ("accuracy", "loss"):
        reordered.metrics[name] = ANNOUNCEMENT.metrics[name]
    assert announcement_from_proto(reordered).to_bytes() == ANNOUNCEMENT.to_bytes()


@pytest.mark.parametrize("data", [b"\xff\xff", b""], ids=["no message", "an empty one"])
def test_bytes_that_are_no_announcement_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedMessageError):
        UpdateAnnouncement.from_bytes(data)


def set_to(**values: object) -> Callable[[aggregator_pb2.UpdateHeader], None]:
    def spoil(message: aggregator_pb2.UpdateHeader) -> None:
        for name, value in values.items():
            setattr(message, name, value)

    return spoil


def no_payload(message: aggregator_pb2.UpdateHeader) -> None:
    del message.payloads[:]


def bad_metric_name(message: aggregator_pb2.UpdateHeader) -> None:
    message.metrics['evil"} 1'] = 1.0


def many_metrics(message: aggregator_pb2.UpdateHeader) -> None:
    message.metrics.update({f"m{index}": 1.0 for index in range(65)})


@pytest.mark.parametrize(
    "spoil",
    [
        set_to(experiment="../digits"),
        set_to(experiment="a/b"),
        set_to(update_id=b"short"),
        set_to(attempt=0),
        set_to(epoch=0),
        set_to(round=0),
        set_to(round=2**60),
        set_to(examples=2**60),
        set_to(steps=2**64 - 1),
        set_to(oracle_calls=2**64 - 1),
        set_to(train_seconds=-1.0),
        set_to(train_seconds=math.nan),
        set_to(train_seconds=math.inf),
        set_to(model_digest=b"x" * 31),
        no_payload,
        bad_metric_name,
        many_metrics,
    ],
    ids=lambda spoil: spoil.__name__,
)
def test_an_announcement_that_cannot_mean_anything_is_refused(
    spoil: Callable[[aggregator_pb2.UpdateHeader], None],
) -> None:
    message = announcement_to_proto(ANNOUNCEMENT)
    spoil(message)
    with pytest.raises(MalformedMessageError):
        announcement_from_proto(message)


def test_a_metric_that_is_not_finite_is_left_to_admission_which_names_the_refusal() -> None:
    message = announcement_to_proto(ANNOUNCEMENT)
    message.metrics["loss"] = math.nan
    assert math.isnan(announcement_from_proto(message).metrics["loss"])


def test_other_metrics_must_be_finite() -> None:
    with pytest.raises(MalformedMessageError, match="loss is inf"):
        metrics_from_proto({"loss": math.inf}, "metrics")
    assert list(metrics_from_proto({"b": 1.0, "a": 2.0}, "metrics")) == ["a", "b"]


def test_a_commit_has_one_digest_for_each_payload() -> None:
    digests = (Digest(b"a" * 32), Digest(b"b" * 32))
    message = aggregator_pb2.UpdateCommit(digests=digests)
    assert commit_from_proto(message, 2) == digests
    assert commit_from_proto(aggregator_pb2.UpdateCommit(digests=[b"", digests[1]]), 2) == (None, digests[1])
    with pytest.raises(MalformedMessageError, match="2 digests for 1 payloads"):
        commit_from_proto(message, 1)
    with pytest.raises(MalformedMessageError, match="31 bytes"):
        commit_from_proto(aggregator_pb2.UpdateCommit(digests=[b"a" * 31]), 1)

"""What a site announces before it uploads, and how it closes an upload.

Refused here is what cannot mean anything: wrong lengths, numbers out of any range. Whether an announcement is *right*
(this round, this schema, these metrics, so many examples) is `federation.rounds.admission`'s to say, with its reason;
so metric values may still be anything here.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from federation.errors import InvalidNameError, MalformedMessageError
from federation.names import Attempt, Digest, Epoch, ExperimentId, RoundNumber, check_name
from federation.plan import MAX_METRICS
from federation.v1 import aggregator_pb2
from federation.wire.payloads import Payload, payload_to_proto, payloads_from_proto
from federation.wire.schemas import check_digest

if TYPE_CHECKING:
    from collections.abc import Mapping

UPDATE_ID_BYTES = 16
MAX_COUNT = 1 << 53
"""Counts become float64 weights; beyond this they would not be exact."""
_METRIC = re.compile(r"[a-zA-Z][a-zA-Z0-9_]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateAnnouncement:
    """What a site says about an update before it sends it.

    Attributes:
        experiment: experiment it is for.
        update_id: 16 random bytes, the same whenever this update is sent again.
        attempt: attempt of the task it answers, from 1.
        epoch: epoch of the session it is sent in.
        round: round of the task it answers, from 1.
        payloads: what will be sent, in order, without digests.
        examples: training examples used.
        metrics: training metrics.
        train_seconds: time the trainer took, seconds.
        model_digest: BLAKE3 of the model the update starts from.
        steps: local optimizer steps taken.
        oracle_calls: gradients of single examples computed.
        peak_memory: most memory the trainer had resident at once, bytes; 0 if not known.
    """

    experiment: ExperimentId
    update_id: bytes
    attempt: Attempt
    epoch: Epoch
    round: RoundNumber
    payloads: tuple[Payload, ...]
    examples: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    train_seconds: float = 0.0
    model_digest: Digest
    steps: int = 0
    oracle_calls: int = 0
    peak_memory: int = 0

    def to_bytes(self) -> bytes:
        """Return it for a file; equal announcements give equal bytes."""
        return announcement_to_proto(self).SerializeToString(deterministic=True)

    @classmethod
    def from_bytes(cls, data: bytes) -> UpdateAnnouncement:
        """Read it back.

        Raises:
            MalformedMessageError: it is not an announcement.
        """
        try:
            return announcement_from_proto(aggregator_pb2.UpdateHeader.FromString(data))
        except DecodeError as error:
            raise MalformedMessageError(f"not an update announcement: {error}") from error


def announcement_to_proto(announcement: UpdateAnnouncement) -> aggregator_pb2.UpdateHeader:
    """Return an announcement as a message."""
    return aggregator_pb2.UpdateHeader(
        experiment=announcement.experiment,
        update_id=announcement.update_id,
        attempt=announcement.attempt,
        epoch=announcement.epoch,
        round=announcement.round,
        payloads=[payload_to_proto(payload) for payload in announcement.payloads],
        examples=announcement.examples,
        metrics=dict(announcement.metrics),
        train_seconds=announcement.train_seconds,
        model_digest=announcement.model_digest,
        steps=announcement.steps,
        oracle_calls=announcement.oracle_calls,
        peak_memory=announcement.peak_memory,
    )


def announcement_from_proto(message: aggregator_pb2.UpdateHeader) -> UpdateAnnouncement:
    """Read an announcement.

    Raises:
        MalformedMessageError: a field is missing or cannot mean anything.
    """
    try:
        experiment = ExperimentId(check_name(message.experiment, "experiment id"))
    except InvalidNameError as error:
        raise MalformedMessageError(str(error)) from error
    if len(message.update_id) != UPDATE_ID_BYTES:
        raise MalformedMessageError(f"update id has {len(message.update_id)} bytes, expected {UPDATE_ID_BYTES}")
    payloads = payloads_from_proto(message.payloads, with_digest=False)
    if not payloads:
        raise MalformedMessageError("the update announces no payload")
    return UpdateAnnouncement(
        experiment=experiment,
        update_id=bytes(message.update_id),
        attempt=Attempt(_count(message.attempt, "attempt", at_least=1)),
        epoch=Epoch(_count(message.epoch, "epoch", at_least=1)),
        round=RoundNumber(_count(message.round, "round", at_least=1)),
        payloads=payloads,
        examples=_count(message.examples, "examples"),
        metrics=metrics_from_proto(message.metrics, "training metrics", must_be_finite=False),
        train_seconds=seconds_from_proto(message.train_seconds, "train_seconds"),
        model_digest=check_digest(message.model_digest, "the model the update starts from"),
        steps=_count(message.steps, "steps"),
        oracle_calls=_count(message.oracle_calls, "oracle_calls"),
        peak_memory=_count(message.peak_memory, "peak_memory"),
    )


def commit_from_proto(message: aggregator_pb2.UpdateCommit, payloads: int) -> tuple[Digest | None, ...]:
    """Read the closing message of an update; None stands for a digest that its sender did not compute.

    Args:
        message: from the site.
        payloads: how many the update announced.

    Raises:
        MalformedMessageError: there are not as many digests as payloads, or one has the wrong length.
    """
    if len(message.digests) != payloads:
        raise MalformedMessageError(f"{len(message.digests)} digests for {payloads} payloads")
    return tuple(
        check_digest(digest, f"payload {index}") if digest else None for index, digest in enumerate(message.digests)
    )


def metrics_from_proto(metrics: Mapping[str, float], what: str, *, must_be_finite: bool = True) -> dict[str, float]:
    """Read metrics, by name in alphabetical order.

    Args:
        metrics: from a message.
        what: what they are, for the error.
        must_be_finite: False where a later check names the refusal.

    Raises:
        MalformedMessageError: too many, a name that is none, or a value that is not finite.
    """
    if len(metrics) > MAX_METRICS:
        raise MalformedMessageError(f"{what}: {len(metrics)} are more than {MAX_METRICS}")
    for name, value in metrics.items():
        if not _METRIC.fullmatch(name):
            raise MalformedMessageError(f"{what}: {name[:80]!r} is not a metric name")
        if must_be_finite and not math.isfinite(value):
            raise MalformedMessageError(f"{what}: {name} is {value}, not a finite number")
    return {name: metrics[name] for name in sorted(metrics)}


def seconds_from_proto(value: float, what: str) -> float:
    """Return a duration if it can be one.

    Raises:
        MalformedMessageError: it is negative or not finite.
    """
    if not math.isfinite(value) or value < 0:
        raise MalformedMessageError(f"{what} is {value}, expected a finite number of seconds of 0 or more")
    return value


def _count(value: int, what: str, *, at_least: int = 0) -> int:
    if not at_least <= value <= MAX_COUNT:
        raise MalformedMessageError(f"{what} is {value}, expected {at_least} to {MAX_COUNT}")
    return value

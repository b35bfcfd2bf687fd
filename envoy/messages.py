"""What the envoy says of a participation: to the director, and to its owner. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from envoy.admission import MAX_REASON_CHARACTERS
from envoy.participation import Participation, Stage
from federation.errors import ConfigurationError, FederationError, StorageError
from federation.v1 import director_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from federation.bundle import VerifiedManifest

TRAINER_LOG = "trainer.log"
_LINES_AT_ONCE = 500
_MAX_DETAIL_CHARACTERS = 4096
_ANSWER = director_pb2.AssignmentAnswer


def accepted(experiment: str) -> director_pb2.AttendRequest:
    """The site takes part."""
    return _answer(experiment, _ANSWER.ANSWER_ACCEPTED, "")


def refused(experiment: str, reason: str) -> director_pb2.AttendRequest:
    """The site does not take part."""
    return _answer(experiment, _ANSWER.ANSWER_REFUSED, reason)


def pending(experiment: str, reason: str) -> director_pb2.AttendRequest:
    """The owner will say."""
    return _answer(experiment, _ANSWER.ANSWER_PENDING, reason)


def word_on(record: Participation) -> director_pb2.AttendRequest:
    """What there is to say of a record, whoever asks again."""
    if record.stage is Stage.PENDING:
        return pending(record.experiment, record.reason)
    if record.stage is Stage.REFUSED:
        return refused(record.experiment, record.reason)
    if record.stage is Stage.ACCEPTED:
        return accepted(record.experiment)
    if not record.outcome:
        return refused(record.experiment, "this site was withdrawn from the experiment before")
    status = director_pb2.ParticipationStatus(
        experiment=record.experiment,
        state=record.outcome,
        error_class=record.error_class,
        detail=record.detail[:_MAX_DETAIL_CHARACTERS],
    )
    return director_pb2.AttendRequest(status=status)


def final_word_on(request: director_pb2.AttendRequest) -> str:
    """Return the experiment whose refusal or end this message tells; empty if it tells none."""
    if request.WhichOneof("message") == "status" and request.status.state in ("finished", "failed"):
        return request.status.experiment
    if request.WhichOneof("message") == "answer" and request.answer.answer == _ANSWER.ANSWER_REFUSED:
        return request.answer.experiment
    return ""


def logs(experiment: str, lines: Sequence[str]) -> Iterator[director_pb2.AttendRequest]:
    """Released lines, so many a message."""
    for start in range(0, len(lines), _LINES_AT_ONCE):
        part = lines[start : start + _LINES_AT_ONCE]
        yield director_pb2.AttendRequest(logs=director_pb2.ReleasedLogs(experiment=experiment, lines=part))


def sayable(error: FederationError) -> str:
    """Why an assignment was not taken, for the user: what is the site's own business is not told."""
    if isinstance(error, ConfigurationError | StorageError):
        return "the site cannot run it now; its owner finds the reason in the envoy's log"
    return str(error)


def signed_by(record: Participation, verified: VerifiedManifest) -> Participation:
    """The record with who signed."""
    return replace(record, submitter=verified.manifest.submitter, fingerprint=verified.fingerprint)


def at_stage(record: Participation, stage: Stage, reason: str = "") -> Participation:
    """The record at another stage, not yet told to the director."""
    return replace(record, stage=stage, reason=reason, reported=False)


def listed(record: Participation) -> dict[str, Any]:
    """A record as the owner's command line shows it."""
    return {
        "experiment": record.experiment,
        "stage": record.stage.value,
        "outcome": record.outcome,
        "reason": record.reason[:MAX_REASON_CHARACTERS],
        "submitter": record.submitter,
        "fingerprint": record.fingerprint,
        "asked_at": record.asked_at,
    }


def _answer(experiment: str, answer: director_pb2.AssignmentAnswer.Answer, reason: str) -> director_pb2.AttendRequest:
    return director_pb2.AttendRequest(
        answer=director_pb2.AssignmentAnswer(
            experiment=experiment, answer=answer, reason=reason[:MAX_REASON_CHARACTERS]
        )
    )

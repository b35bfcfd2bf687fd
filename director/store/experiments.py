"""Experiments and their states.

Rules, in order:

1. A submission is stored with its nonce in one transaction; the same nonce of the same signing key is refused.
2. A state changes only by `change`, which asks `director.lifecycle` and compares and sets: of two askers one wins, and
   the other sees what the state has become. Each change leaves a transition row and an event.
3. An epoch is granted by `grant_epoch`, by compare-and-set on the epoch the asker saw; whoever reports under an older
   one is refused by `require_epoch`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, cast

from sqlalchemy import CursorResult, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from director import lifecycle
from director.scheduling import Need
from director.store import events, tables
from director.store.records import ExperimentRecord, SignedRecord, Submission, TransitionRecord
from federation.errors import ConflictError, NotFoundError, StaleRoundError
from federation.names import Epoch, ExperimentId, ExperimentState, UserName
from federation.v1 import director_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from typing import Any

    from sqlalchemy.orm import Session

_MANIFEST_NONCE = "manifest"


def add(session: Session, submission: Submission) -> None:
    """Store a submission in state SUBMITTED.

    Raises:
        ConflictError: its nonce was used before: it is the same signed manifest handed in twice.
    """
    nonce = f"{submission.signing_fingerprint} {submission.nonce}"
    if not use_nonce(session, _MANIFEST_NONCE, nonce, used_by=submission.experiment, at=submission.at):
        raise ConflictError(
            "this signed manifest was submitted before (its nonce is used); run submit again, which signs a new one"
        )
    reason = "submitted"
    session.execute(insert(tables.Experiment).values(_row(submission, reason)))
    _note(session, submission.experiment, ExperimentState.SUBMITTED, reason, submission.actor, submission.at)


def discard(session: Session, experiment: ExperimentId) -> None:
    """Forget a submission that never got past SUBMITTED, its nonce included, as if it had not been made."""
    removed = _count(
        session.execute(
            delete(tables.Experiment).where(
                tables.Experiment.id == experiment, tables.Experiment.state == ExperimentState.SUBMITTED.value
            )
        )
    )
    if removed:
        session.execute(
            delete(tables.Nonce).where(tables.Nonce.purpose == _MANIFEST_NONCE, tables.Nonce.used_by == experiment)
        )


def use_nonce(session: Session, purpose: str, value: str, *, used_by: str, at: float) -> bool:
    """Use up a nonce; return False if it was used before."""
    try:
        with session.begin_nested():
            session.execute(insert(tables.Nonce).values(purpose=purpose, value=value, used_by=used_by, used_at=at))
    except IntegrityError:
        return False
    return True


def get(session: Session, experiment: str) -> ExperimentRecord:
    """Return an experiment.

    Raises:
        NotFoundError: there is none with this id.
    """
    row = session.get(tables.Experiment, experiment)
    if row is None:
        raise NotFoundError(f"there is no experiment {experiment[:80]!r}; `federation list` shows yours")
    return _record(row)


def plan_json(session: Session, experiment: str) -> str:
    """Return the experiment's plan alone, as canonical JSON."""
    spec = session.scalars(select(tables.Experiment.spec).where(tables.Experiment.id == experiment)).one()
    return json.dumps(json.loads(spec)["plan"], sort_keys=True, separators=(",", ":"))


def signed(session: Session, experiment: str) -> SignedRecord:
    """Return what the experiment's submitter signed."""
    table = tables.Experiment
    row = session.execute(
        select(table.manifest, table.signature, table.signing_key).where(table.id == experiment)
    ).one()
    return SignedRecord(manifest=row.manifest, signature=row.signature, signing_key=row.signing_key)


def find(
    session: Session,
    *,
    user: str | None = None,
    project: str | None = None,
    states: Collection[ExperimentState] = (),
    limit: int | None = None,
) -> list[ExperimentRecord]:
    """Return experiments, newest first: of this user, project and these states where given."""
    query = select(tables.Experiment).order_by(tables.Experiment.submitted_at.desc(), tables.Experiment.id)
    if user is not None:
        query = query.where(tables.Experiment.submitted_by == user)
    if project is not None:
        query = query.where(tables.Experiment.project == project)
    if states:
        query = query.where(tables.Experiment.state.in_([state.value for state in states]))
    return [_record(row) for row in session.scalars(query.limit(limit))]


def count_by_state(session: Session) -> dict[ExperimentState, int]:
    """Return how many experiments are in each state; every state has an entry."""
    rows = session.execute(select(tables.Experiment.state, func.count()).group_by(tables.Experiment.state))
    counts = {ExperimentState(state): number for state, number in rows}
    return {state: counts.get(state, 0) for state in ExperimentState}


def count_open(session: Session, user: str) -> int:
    """Return how many experiments of this user are not over."""
    query = select(func.count()).where(
        tables.Experiment.submitted_by == user,
        tables.Experiment.state.in_([state.value for state in lifecycle.OPEN]),
    )
    return session.scalar(query) or 0


def change(session: Session, experiment: str, wanted: lifecycle.Change, *, epoch: Epoch | None = None) -> bool:
    """Bring an experiment to a state; return False if it was there already.

    Args:
        session: open transaction.
        experiment: its id.
        wanted: state, reason, actor and time.
        epoch: only if this is still its epoch; None: whatever the epoch.

    Raises:
        NotFoundError: no such experiment.
        ConflictError: the transition table does not allow it.
        StaleRoundError: its epoch is another.
    """
    found = get(session, experiment)
    if epoch is not None and epoch != found.epoch:
        raise StaleRoundError(_stale(experiment, epoch, found.epoch))
    if not lifecycle.check(experiment, found.state, wanted.to):
        return False
    changed = _count(
        session.execute(
            update(tables.Experiment)
            .where(
                tables.Experiment.id == experiment,
                tables.Experiment.state == found.state.value,
                tables.Experiment.epoch == found.epoch,
            )
            .values(state=wanted.to.value, reason=wanted.reason, changed_at=wanted.at, degraded=wanted.degraded)
        )
    )
    if not changed:
        raise ConflictError(f"experiment {experiment} changed at the same moment; look again and repeat")
    _note(session, experiment, wanted.to, wanted.reason, wanted.actor, wanted.at)
    return True


def explain_waiting(session: Session, experiment: str, reason: str, at: float) -> None:
    """Say why a queued experiment still waits; an event tells watchers when the reason is a new one."""
    changed = _count(
        session.execute(
            update(tables.Experiment)
            .where(
                tables.Experiment.id == experiment,
                tables.Experiment.state == ExperimentState.QUEUED.value,
                tables.Experiment.reason != reason,
            )
            .values(reason=reason)
        )
    )
    if changed:
        events.append(session, pb.Event(experiment=experiment, at=at, kind="assignment", text=reason))


def grant_epoch(session: Session, experiment: str, seen: Epoch, start: lifecycle.Change) -> Epoch:
    """Grant the next epoch to a new aggregator process; a queued experiment starts running with it.

    Args:
        session: open transaction.
        experiment: its id.
        seen: epoch the asker saw last.
        start: change to RUNNING, used if the experiment is queued.

    Raises:
        ConflictError: another grant was faster, or the experiment is over.
    """
    granted = _count(
        session.execute(
            update(tables.Experiment)
            .where(
                tables.Experiment.id == experiment,
                tables.Experiment.epoch == seen,
                tables.Experiment.state.in_(
                    [state.value for state in (ExperimentState.QUEUED, *lifecycle.ACTIVE)],
                ),
            )
            .values(epoch=seen + 1, metrics_address="")
        )
    )
    if not granted:
        raise ConflictError(f"epoch {seen + 1} of experiment {experiment} cannot be granted: it is over or granted")
    if get(session, experiment).state is ExperimentState.QUEUED:
        change(session, experiment, start)
    return Epoch(seen + 1)


def require_epoch(session: Session, experiment: str, epoch: Epoch) -> None:
    """Check that `epoch` is the experiment's present one and that it is not over.

    Raises:
        StaleRoundError: a newer aggregator was started, or the experiment is over.
    """
    table = tables.Experiment
    row = session.execute(select(table.epoch, table.state).where(table.id == experiment)).one_or_none()
    if row is None or row.epoch != epoch:
        raise StaleRoundError(_stale(experiment, epoch, row.epoch if row else 0))
    state = ExperimentState(row.state)
    if state not in lifecycle.ACTIVE:
        raise StaleRoundError(f"experiment {experiment} is {state.value}; its aggregator should end")


def set_address(session: Session, experiment: str, address: str, metrics_address: str) -> None:
    """Remember where the experiment's aggregator is reached."""
    session.execute(
        update(tables.Experiment)
        .where(tables.Experiment.id == experiment)
        .values(address=address, metrics_address=metrics_address)
    )


def transitions(session: Session, experiment: str) -> list[TransitionRecord]:
    """Return every state change of the experiment, in order."""
    query = select(tables.Transition).where(tables.Transition.experiment == experiment).order_by(tables.Transition.id)
    return [
        TransitionRecord(state=ExperimentState(row.state), reason=row.reason, actor=row.actor, at=row.at)
        for row in session.scalars(query)
    ]


def _stale(experiment: str, epoch: int, granted: int) -> str:
    return f"epoch {epoch} of experiment {experiment} is over: epoch {granted} was granted"


def wire_state(state: ExperimentState) -> pb.ExperimentState:
    """Return the state as the wire names it."""
    return cast("pb.ExperimentState", pb.ExperimentState.Value(f"EXPERIMENT_STATE_{state.name}"))


def _note(session: Session, experiment: str, state: ExperimentState, reason: str, actor: str, at: float) -> None:
    session.execute(
        insert(tables.Transition).values(experiment=experiment, state=state.value, reason=reason, actor=actor, at=at)
    )
    transition = pb.Transition(state=wire_state(state), reason=reason, actor=actor, at=at)
    event = pb.Event(experiment=experiment, at=at, kind="state", text=f"{state.value}: {reason}", transition=transition)
    events.append(session, event)


def _row(submission: Submission, reason: str) -> dict[str, Any]:
    need = submission.need
    return {
        "id": submission.experiment,
        "name": submission.name,
        "project": submission.project,
        "submitted_by": submission.user,
        "state": ExperimentState.SUBMITTED.value,
        "reason": reason,
        "degraded": False,
        "submitted_at": submission.at,
        "changed_at": submission.at,
        "spec": submission.spec,
        "shard": need.kind,
        "sites_wanted": need.sites,
        "minimum_sites": submission.minimum_sites,
        "rounds_planned": submission.rounds,
        "rounds_done": 0,
        "sample_shape": _listed(need.sample_shape),
        "target_shape": _listed(need.target_shape),
        "manifest": submission.manifest,
        "signature": submission.signature,
        "signing_key": submission.signing_key,
        "manifest_digest": submission.manifest_digest,
        "signing_fingerprint": submission.signing_fingerprint,
        "bundle_bytes": submission.bundle_bytes,
        "epoch": 0,
        "address": "",
        "metrics_address": "",
    }


def _record(row: tables.Experiment) -> ExperimentRecord:
    return ExperimentRecord(
        id=ExperimentId(row.id),
        name=row.name,
        project=row.project,
        submitted_by=UserName(row.submitted_by),
        state=ExperimentState(row.state),
        reason=row.reason,
        degraded=row.degraded,
        submitted_at=row.submitted_at,
        changed_at=row.changed_at,
        need=Need(
            experiment=ExperimentId(row.id),
            kind=row.shard,
            sites=row.sites_wanted,
            sample_shape=_tupled(row.sample_shape),
            target_shape=_tupled(row.target_shape),
        ),
        minimum_sites=row.minimum_sites,
        rounds_planned=row.rounds_planned,
        rounds_done=row.rounds_done,
        manifest_digest=row.manifest_digest,
        signing_fingerprint=row.signing_fingerprint,
        bundle_bytes=row.bundle_bytes,
        epoch=Epoch(row.epoch),
        address=row.address,
        metrics_address=row.metrics_address,
    )


def _listed(shape: tuple[int, ...] | None) -> list[int] | None:
    return None if shape is None else list(shape)


def _tupled(shape: Iterable[int] | None) -> tuple[int, ...] | None:
    return None if shape is None else tuple(shape)


def _count(result: object) -> int:
    return cast("CursorResult[Any]", result).rowcount

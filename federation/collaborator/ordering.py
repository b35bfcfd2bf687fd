"""Which messages of an aggregator a site obeys. Pure: progress and a message in, new progress or an error out.

Rules:

1. A welcome with a lower epoch than the site has obeyed comes from a superseded aggregator: refused.
2. A welcome with another plan digest than the verified manifest's is refused, and so is a round beyond the plan: a plan
   is not extended without a new signature.
3. A task carries the session's epoch, a round from 1 to the plan's last, and an attempt from 1: which asking it is.
4. Askings to train never go back: a train task is not before the newest one seen, not one whose verdict was heard, and
   not of a round that is committed with this site's update. The same asking may come again, after a cut or a restart.
5. An evaluate task is for the newest round seen or a later one, and only if the plan evaluates at all.
6. Where rounds overlap, rounds jump: a site trains for round 3 while the federation is in round 9, hears a verdict on 3
   then, and is asked for 10 next. What it was asked to evaluate meanwhile makes none of this void.
7. A verdict is for the update the site keeps, by its id; any other is a harmless repeat and ignored.

`Progress` survives the process: it is written to the state file by `state`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from federation.errors import MalformedMessageError, PeerError, StaleRoundError
from federation.names import Attempt, Digest, Epoch, RoundNumber

if TYPE_CHECKING:
    from federation.plan import Plan


class UnsignedPlanError(PeerError):
    """The aggregator asks for something the signed plan does not say; the site takes no part in it."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Asking:
    """One asking for one round: compared by round, then by attempt; `NEVER` is before the first."""

    round: RoundNumber
    attempt: Attempt

    def __str__(self) -> str:
        return f"round {self.round}" if self.attempt <= 1 else f"round {self.round}, attempt {self.attempt}"


_NO_ROUND = RoundNumber(0)
NEVER = Asking(round=_NO_ROUND, attempt=Attempt(0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a site has come.

    Attributes:
        epoch: highest aggregator epoch obeyed; 0 before the first.
        committed: last round this site saw committed with its update; 0 before the first.
        newest: newest asking to train.
        settled: last asking whose verdict was heard.
        evaluated: newest round asked to evaluate; 0 before the first.
    """

    epoch: Epoch
    committed: RoundNumber
    newest: Asking
    settled: Asking
    evaluated: RoundNumber = _NO_ROUND

    @property
    def round(self) -> RoundNumber:
        """Newest round of any task."""
        return max(self.newest.round, self.evaluated)


BEGINNING = Progress(epoch=Epoch(0), committed=RoundNumber(0), newest=NEVER, settled=NEVER)
"""Where every site begins."""


def obey_welcome(
    progress: Progress, plan: Plan, plan_digest: Digest, *, epoch: int, round_number: int, digest: bytes
) -> Progress:
    """Return the progress once an aggregator's welcome is obeyed.

    Args:
        progress: before.
        plan: the verified plan.
        plan_digest: digest of the spec the site verified.
        epoch: epoch the aggregator claims.
        round_number: round it says is in progress.
        digest: digest of the spec it runs.

    Raises:
        StaleRoundError: its epoch is lower than one obeyed before.
        UnsignedPlanError: it runs another plan, or is beyond the plan's rounds.
        MalformedMessageError: it has no epoch.
    """
    if epoch < 1:
        raise MalformedMessageError(f"the aggregator's epoch is {epoch}; epochs count from 1")
    if epoch < progress.epoch:
        raise StaleRoundError(
            f"the aggregator has epoch {epoch}, but this site has obeyed epoch {progress.epoch}: it was superseded"
        )
    if digest != plan_digest:
        raise UnsignedPlanError(
            f"the aggregator runs plan {digest.hex()[:16]}…, but the signed manifest has {plan_digest.hex()[:16]}…: "
            "a changed plan needs a new signature"
        )
    if round_number > plan.rounds + 1:  # after the last round an aggregator may already count one further
        raise UnsignedPlanError(
            f"the aggregator is in round {round_number}, beyond the {plan.rounds} rounds that were signed"
        )
    return replace(progress, epoch=Epoch(epoch))


def obey_train(progress: Progress, plan: Plan, asking: Asking, *, epoch: int) -> Progress:
    """Return the progress once a train task is obeyed.

    Raises:
        StaleRoundError: another epoch than the session's, or an asking that is over.
        UnsignedPlanError: a round beyond the plan.
        MalformedMessageError: no round or no attempt.
    """
    _check_round(progress, plan, asking.round, epoch=epoch)
    if asking.attempt < 1:
        raise MalformedMessageError(f"a train task has attempt {asking.attempt}; attempts count from 1")
    if asking < progress.newest:
        raise StaleRoundError(f"asked to train {asking} after {progress.newest}: rounds never go back")
    if asking <= progress.settled or asking.round <= progress.committed:
        raise StaleRoundError(f"asked to train {asking}, but its verdict is known: {progress.settled} is settled")
    return replace(progress, newest=asking)


def obey_evaluate(progress: Progress, plan: Plan, round_number: RoundNumber, *, epoch: int) -> Progress:
    """Return the progress once an evaluate task is obeyed.

    Raises:
        StaleRoundError: another epoch than the session's, or a round that is over.
        UnsignedPlanError: a round beyond the plan, or a plan without evaluation.
        MalformedMessageError: no round.
    """
    _check_round(progress, plan, round_number, epoch=epoch)
    if plan.evaluate_every == 0:
        raise UnsignedPlanError("asked to evaluate, but the signed plan has no evaluation (evaluate_every is 0)")
    if round_number < progress.round:
        raise StaleRoundError(f"asked to evaluate round {round_number} after round {progress.round}: it is over")
    return replace(progress, evaluated=round_number)


def obey_verdict(progress: Progress, asking: Asking, *, counted: bool) -> Progress:
    """Return the progress after the verdict on the update the site keeps.

    Args:
        progress: before.
        asking: what the update answered.
        counted: the committed model contains it.
    """
    return replace(
        progress,
        settled=max(progress.settled, asking),
        committed=max(progress.committed, asking.round) if counted else progress.committed,
    )


def _check_round(progress: Progress, plan: Plan, round_number: RoundNumber, *, epoch: int) -> None:
    if epoch != progress.epoch:
        raise StaleRoundError(f"a task has epoch {epoch}; this session has epoch {progress.epoch}")
    if round_number < 1:
        raise MalformedMessageError(f"a task is for round {round_number}; rounds count from 1")
    if round_number > plan.rounds:
        raise UnsignedPlanError(f"asked for round {round_number}; the signed plan has rounds 1 to {plan.rounds}")

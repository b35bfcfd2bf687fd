from __future__ import annotations

from dataclasses import replace

import pytest

from federation.collaborator.ordering import (
    BEGINNING,
    Asking,
    Progress,
    UnsignedPlanError,
    obey_evaluate,
    obey_train,
    obey_verdict,
    obey_welcome,
)
from federation.errors import FederationError, MalformedMessageError, StaleRoundError
from federation.names import Attempt, Digest, Epoch, RoundNumber
from federation.plan import Plan

PLAN = Plan(rounds=5)
DIGEST = Digest(b"p" * 32)
IN_SESSION = replace(BEGINNING, epoch=Epoch(2))


def _asking(round_number: int, attempt: int = 1) -> Asking:
    return Asking(round=RoundNumber(round_number), attempt=Attempt(attempt))


def test_a_welcome_with_a_higher_epoch_is_obeyed_and_remembered() -> None:
    after = obey_welcome(IN_SESSION, PLAN, DIGEST, epoch=3, round_number=1, digest=DIGEST)
    assert after.epoch == 3


@pytest.mark.parametrize(
    ("epoch", "round_number", "digest", "error"),
    [
        pytest.param(1, 1, DIGEST, StaleRoundError, id="lower epoch"),
        pytest.param(0, 1, DIGEST, MalformedMessageError, id="no epoch"),
        pytest.param(2, 1, b"q" * 32, UnsignedPlanError, id="another plan"),
        pytest.param(2, 1, b"", UnsignedPlanError, id="no plan"),
        pytest.param(2, 7, DIGEST, UnsignedPlanError, id="round beyond the plan"),
    ],
)
def test_a_welcome_is_refused(epoch: int, round_number: int, digest: bytes, error: type[FederationError]) -> None:
    with pytest.raises(error):
        obey_welcome(IN_SESSION, PLAN, DIGEST, epoch=epoch, round_number=round_number, digest=digest)


@pytest.mark.parametrize(
    ("progress", "asking", "epoch", "error"),
    [
        pytest.param(IN_SESSION, _asking(1), 1, StaleRoundError, id="epoch of an older aggregator"),
        pytest.param(IN_SESSION, _asking(1), 3, StaleRoundError, id="epoch the session does not have"),
        pytest.param(IN_SESSION, _asking(0), 2, MalformedMessageError, id="round 0"),
        pytest.param(IN_SESSION, _asking(1, 0), 2, MalformedMessageError, id="no attempt"),
        pytest.param(IN_SESSION, _asking(6), 2, UnsignedPlanError, id="round beyond the plan"),
        pytest.param(replace(IN_SESSION, newest=_asking(3)), _asking(2), 2, StaleRoundError, id="an older round"),
        pytest.param(replace(IN_SESSION, newest=_asking(3, 2)), _asking(3), 2, StaleRoundError, id="older attempt"),
        pytest.param(replace(IN_SESSION, settled=_asking(3)), _asking(3), 2, StaleRoundError, id="settled asking"),
        pytest.param(
            replace(IN_SESSION, settled=_asking(3), committed=RoundNumber(3)),
            _asking(3, 2),
            2,
            StaleRoundError,
            id="another attempt at a committed round",
        ),
    ],
)
def test_a_train_task_is_refused(progress: Progress, asking: Asking, epoch: int, error: type[FederationError]) -> None:
    with pytest.raises(error):
        obey_train(progress, PLAN, asking, epoch=epoch)


def test_rounds_may_be_skipped_because_sites_are_sampled() -> None:
    assert obey_train(replace(IN_SESSION, newest=_asking(1)), PLAN, _asking(4), epoch=2).newest == _asking(4)


def test_the_same_asking_may_come_again_after_a_cut() -> None:
    progress = obey_train(IN_SESSION, PLAN, _asking(1), epoch=2)
    assert obey_train(progress, PLAN, _asking(1), epoch=2) == progress


def test_a_round_that_missed_its_quorum_is_asked_again() -> None:
    progress = obey_train(IN_SESSION, PLAN, _asking(1), epoch=2)
    progress = obey_verdict(progress, _asking(1), counted=False)
    assert obey_train(progress, PLAN, _asking(1, 2), epoch=2).newest == _asking(1, 2)


def test_a_verdict_that_counted_ends_the_round() -> None:
    after = obey_verdict(replace(IN_SESSION, newest=_asking(2)), _asking(2), counted=True)
    assert after.committed == 2
    with pytest.raises(StaleRoundError):
        obey_train(after, PLAN, _asking(2, 2), epoch=2)


def test_the_model_of_a_committed_round_may_still_be_evaluated() -> None:
    progress = replace(IN_SESSION, committed=RoundNumber(3), newest=_asking(3), settled=_asking(3))
    assert obey_evaluate(progress, PLAN, RoundNumber(3), epoch=2).round == 3


def test_evaluations_never_go_back_behind_any_task() -> None:
    trained = replace(IN_SESSION, newest=_asking(3))
    evaluated = obey_evaluate(trained, PLAN, RoundNumber(4), epoch=2)
    for progress, number in ((trained, 2), (evaluated, 3)):
        with pytest.raises(StaleRoundError, match="it is over"):
            obey_evaluate(progress, PLAN, RoundNumber(number), epoch=2)


def test_where_rounds_overlap_a_site_goes_on_with_an_older_task_and_then_jumps() -> None:
    progress = obey_train(IN_SESSION, PLAN, _asking(1), epoch=2)
    progress = obey_evaluate(progress, PLAN, RoundNumber(3), epoch=2)
    again = obey_train(progress, PLAN, _asking(1), epoch=2)
    assert again == progress, "told again after a restart, though its update was in a version already"
    progress = obey_verdict(progress, _asking(1), counted=True)
    progress = obey_train(progress, PLAN, _asking(4), epoch=2)
    assert (progress.newest, progress.settled, progress.committed) == (_asking(4), _asking(1), 1)
    for older in (_asking(1), _asking(3)):
        with pytest.raises(StaleRoundError):
            obey_train(progress, PLAN, older, epoch=2)
    with pytest.raises(UnsignedPlanError):
        obey_train(progress, PLAN, _asking(6), epoch=2)


def test_evaluation_is_refused_when_the_plan_has_none() -> None:
    with pytest.raises(UnsignedPlanError, match="evaluate_every"):
        obey_evaluate(IN_SESSION, Plan(rounds=5, evaluate_every=0), RoundNumber(1), epoch=2)

"""A trainer's answers are a stranger's word."""

from __future__ import annotations

import math

import pytest

from federation.confinement.answers import MAX_TRACEBACK_CHARACTERS, check_answer, check_descriptions
from federation.errors import MalformedMessageError, TaskError
from federation.v1 import trainer_pb2 as pb


def _trained(**metrics: float) -> pb.TrainerAnswer:
    return pb.TrainerAnswer(order=1, trained=pb.TrainingDone(examples=3, metrics=metrics, seconds=0.5))


def test_a_sound_answer_passes() -> None:
    check_answer(_trained(loss=0.5), 1, "trained")


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        pytest.param(pb.TrainerAnswer(order=2, done=pb.OrderDone()), "answered order 2, expected 1", id="other order"),
        pytest.param(
            pb.TrainerAnswer(order=1, done=pb.OrderDone()), "with 'done', expected 'trained'", id="other kind"
        ),
        pytest.param(pb.TrainerAnswer(order=1), "with None", id="nothing"),
        pytest.param(_trained(loss=math.nan), "finite", id="not a number"),
        pytest.param(_trained(loss=math.inf), "finite", id="infinite"),
        pytest.param(_trained(**{"mr smith": 1.0}), "not a valid name", id="a patient for a name"),
        pytest.param(_trained(**{f"m{i}": 1.0 for i in range(65)}), "65 metrics", id="too many metrics"),
        pytest.param(pb.TrainerAnswer(order=1, trained=pb.TrainingDone(seconds=-1)), "duration", id="negative time"),
    ],
)
def test_an_answer_that_cannot_be_is_malformed(answer: pb.TrainerAnswer, text: str) -> None:
    with pytest.raises(MalformedMessageError, match=text):
        check_answer(answer, 1, "trained")


def test_a_failure_keeps_its_class_and_its_traceback_within_bounds() -> None:
    failed = pb.OrderFailed(error_class="ZeroDivisionError", traceback="x" * 100_000 + "end", permanent=True)
    with pytest.raises(TaskError) as caught:
        check_answer(pb.TrainerAnswer(order=1, failed=failed), 1, "trained")
    assert (caught.value.error_class, caught.value.permanent) == ("ZeroDivisionError", True)
    assert len(caught.value.traceback) == MAX_TRACEBACK_CHARACTERS and caught.value.traceback.endswith("end")


@pytest.mark.parametrize("name", ["", "Mr Smith, born 1950", "a" * 81, "x\n"])
def test_a_class_name_that_is_none_is_not_passed_on(name: str) -> None:
    with pytest.raises(TaskError) as caught:
        check_answer(pb.TrainerAnswer(order=1, failed=pb.OrderFailed(error_class=name)), 1, "trained")
    assert caught.value.error_class == "UnnamedError"


def test_descriptions_must_be_of_the_shards_asked_for() -> None:
    described = pb.ShardDescriptions(shards=[pb.ShardDescription(name="b"), pb.ShardDescription(name="a")])
    with pytest.raises(MalformedMessageError, match=r"described shards \['b', 'a'\]"):
        check_descriptions(described, ["a", "b"])
    check_descriptions(described, ["b", "a"])

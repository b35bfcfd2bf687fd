"""What a parent and its workers tell each other arrives as it was."""

from __future__ import annotations

import pytest

from federation.names import Attempt, PayloadName, RoundNumber, SiteName
from federation.simulation import messages
from federation.simulation.bench import EvaluateAnswer, EvaluateOrder, Failure, TrainAnswer, TrainOrder
from federation.training.results import Trained, Worked

ONE, TWO = SiteName("one"), SiteName("two")
TRAINED = Trained(
    examples=14,
    steps=1,
    metrics={"loss": 2.25},
    seconds=0.5,
    payload_bytes={PayloadName("delta"): 40, PayloadName("buffers"): 8},
    oracle_calls=28,
    peak_memory=1 << 40,
)


@pytest.mark.parametrize(
    "orders",
    [
        [TrainOrder(ONE, RoundNumber(3), Attempt(2), 1, 7, True), TrainOrder(TWO, RoundNumber(3), Attempt(2), 1, 0)],
        [EvaluateOrder(ONE, RoundNumber(3), 0)],
    ],
)
@pytest.mark.parametrize("number", [5, None])
def test_orders_arrive_as_they_were(orders: list[messages.Order], number: int | None) -> None:
    batch = messages.unpack(messages.pack_batch(number, orders))
    assert isinstance(batch, messages.Batch)
    assert batch == (number, orders)
    assert [type(order) for order in batch.orders] == [type(order) for order in orders]


def test_a_forecast_arrives_as_it_was() -> None:
    assert messages.unpack(messages.pack_forecast((ONE, TWO), RoundNumber(4))) == messages.Forecast((ONE, TWO), 4)


@pytest.mark.parametrize(
    "answers",
    [
        [TrainAnswer(ONE, TRAINED, has_pending=True, norm=0.125), TrainAnswer(TWO, failure=Failure("E", "text", "at"))],
        [EvaluateAnswer(ONE, Worked(examples=3, steps=0, metrics={"loss": 0.5}, seconds=1.0))],
        [EvaluateAnswer(TWO, failure=Failure("ValueError", "text", "where"))],
    ],
)
def test_answers_arrive_as_they_were(answers: list[messages.Answer]) -> None:
    found = messages.unpack_answers(messages.pack_answers(answers))
    assert found == answers
    assert [type(answer) for answer in found] == [type(answer) for answer in answers]

"""What a parent and its worker processes tell each other, as bytes.

Orders and answers are named tuples where they are used, and plain rows on the way: between two rounds of a small model
nobody works while they are pickled, and named that takes two to four times as long.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from federation.simulation.bench import EvaluateAnswer, EvaluateOrder, TrainAnswer, TrainOrder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from federation.names import RoundNumber, SiteName

Order: TypeAlias = TrainOrder | EvaluateOrder
Answer: TypeAlias = TrainAnswer | EvaluateAnswer

_PROTOCOL = 5
"""Of pickle, used as it is: a pipe's own pickler is made anew for each message, which takes longer than a small one."""
_FORECAST, _TRAIN, _EVALUATE = range(3)


class Batch(NamedTuple):
    """Orders of one kind.

    Attributes:
        number: of the batch on the board; None: the orders are not on the board, but the receiver's own.
        orders: in the order of the board.
    """

    number: int | None
    orders: Sequence[Order]


class Forecast(NamedTuple):
    """Sites, and the round in which they are likely to be trained next."""

    sites: Sequence[SiteName]
    round: RoundNumber


def pack_batch(number: int | None, orders: Sequence[Order]) -> bytes:
    """Return a `Batch` as bytes; there is at least one order, and all are of one kind."""
    kind = _TRAIN if isinstance(orders[0], TrainOrder) else _EVALUATE
    return pickle.dumps((kind, number, list(map(tuple, orders))), _PROTOCOL)


def pack_forecast(sites: Sequence[SiteName], number: RoundNumber) -> bytes:
    """Return a `Forecast` as bytes."""
    return pickle.dumps((_FORECAST, sites, number), _PROTOCOL)


def unpack(message: bytes) -> Batch | Forecast:
    """Read what the parent says."""
    kind, first, second = pickle.loads(message)  # noqa: S301 - of our own parent
    if kind == _FORECAST:
        return Forecast(first, second)
    order = TrainOrder if kind == _TRAIN else EvaluateOrder
    return Batch(first, list(map(order._make, second)))


def pack_answers(answers: Sequence[Answer]) -> bytes:
    """Return answers, at least one and all of one kind, as bytes."""
    kind = _TRAIN if isinstance(answers[0], TrainAnswer) else _EVALUATE
    return pickle.dumps((kind, list(map(tuple, answers))), _PROTOCOL)


def unpack_answers(message: bytes) -> list[Answer]:
    """Read what a worker answers."""
    kind, rows = pickle.loads(message)  # noqa: S301 - of our own child
    answer = TrainAnswer if kind == _TRAIN else EvaluateAnswer
    return list(map(answer._make, rows))

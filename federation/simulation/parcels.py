"""How many orders go to a worker in one message: as many as take `PARCEL_S`, by what orders of their kind took before.

Training and evaluation are measured apart: one may take a thousand times the other. A kind of which nothing is known
yet goes out order by order.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

T = TypeVar("T")
PARCEL_S = 0.01
"""Seconds of work worth a message: telling a worker and hearing from it takes a thirtieth of it."""


class Pace:
    """What an order of each kind takes a worker.

    Args:
        workers: how many share the orders.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._seconds: dict[type, float] = {}

    def learn(self, orders: Sequence[object], seconds: float) -> None:
        """Take note that these orders, all of one kind, took all workers together so many seconds."""
        self._seconds[type(orders[0])] = seconds * self._workers / len(orders)

    def parcels(self, orders: Sequence[T]) -> deque[Sequence[T]]:
        """Divide orders of one kind: dealt like cards where each worker gets one parcel, as they come longest first."""
        if not orders:
            return deque()
        most = -(-len(orders) // self._workers)
        seconds = self._seconds.get(type(orders[0]), 0.0)
        size = max(1, min(most, int(PARCEL_S / seconds))) if seconds else 1
        count = -(-len(orders) // size)
        return deque(orders[place::count] for place in range(count))

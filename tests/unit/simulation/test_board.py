"""Who takes which order of a batch."""

from __future__ import annotations

import multiprocessing
from typing import TYPE_CHECKING

import pytest

from federation.simulation import board as module
from federation.simulation.board import Board

if TYPE_CHECKING:
    from multiprocessing.synchronize import Lock


@pytest.fixture
def lock() -> Lock:
    return multiprocessing.get_context("spawn").Lock()


def make(lock: Lock, workers: int, orders: int = 16) -> Board:
    return Board(memoryview(bytearray(Board.nbytes(orders))), lock, workers)


def test_every_order_is_taken_once_and_ever_fewer_at_a_time(lock: Lock) -> None:
    board = make(lock, workers=2)
    batch = board.show(10)
    shares = []
    while taken := board.take(batch, len(shares) % 2, 100):
        shares.append(list(taken))
    assert [len(share) for share in shares] == [4, 3, 2, 1]
    assert [number for share in shares for number in share] == list(range(10))
    assert board.is_empty
    assert list(board.taken_by(0)) == [0, 1, 2, 3, 7, 8]
    assert list(board.taken_by(1)) == [4, 5, 6, 9]


def test_no_more_are_taken_at_once_than_asked_for(lock: Lock) -> None:
    board = make(lock, workers=1)
    batch = board.show(4)
    assert [list(board.take(batch, 0, 1)) for _ in range(5)] == [[0], [1], [2], [3], []]


def test_who_is_late_gets_nothing_of_the_next_batch(lock: Lock) -> None:
    board = make(lock, workers=2)
    late = board.show(2)
    while board.take(late, 0, 1):
        pass
    batch = board.show(3)
    assert not board.take(late, 1, 1)
    assert list(board.taken_by(0)) == []
    assert list(board.take(batch, 1, 1)) == [0]


def test_nothing_is_taken_of_a_closed_board(lock: Lock) -> None:
    board = make(lock, workers=1)
    batch = board.show(3)
    board.take(batch, 0, 1)
    board.close()
    assert not board.take(batch, 0, 1)


def test_the_lock_of_a_dead_worker_is_given_back(lock: Lock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MEND_S", 0.01)
    board = make(lock, workers=1)
    batch = board.show(1)
    lock.acquire()
    board.mend()
    assert list(board.take(batch, 0, 1)) == [0]
    board.mend()  # and nobody's lock is only looked at
    assert not board.take(batch, 0, 1)

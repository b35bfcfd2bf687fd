"""A crew: results in the order of the work, whoever does it, and the calling thread does its share."""

from __future__ import annotations

import threading
from functools import partial

import pytest

from federation.aggregation.crew import Crew


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_come_in_the_order_in_which_work_was_begun(threads: int) -> None:
    with Crew[int](threads) as crew:
        for number in range(50):
            crew.begin(partial(pow, number, 2))
        assert len(crew) == 50
        assert [crew.take() for _ in range(50)] == [number * number for number in range(50)]
        assert len(crew) == 0


def test_one_thread_is_the_calling_one() -> None:
    with Crew[int](1) as crew:
        crew.begin(threading.get_ident)
        assert crew.take() == threading.get_ident()


def test_the_calling_thread_does_what_nobody_has_begun_while_it_waits() -> None:
    later_is_done = threading.Event()

    def first() -> int:
        assert later_is_done.wait(30), "the calling thread waited for the first and did nothing"
        return threading.get_ident()

    def later() -> int:
        later_is_done.set()
        return threading.get_ident()

    started = threading.Event()
    with Crew[int](2) as crew:
        crew.begin(lambda: (started.set(), first())[1])
        assert started.wait(30)  # the only other thread is at it
        crew.begin(later)
        assert crew.take() != threading.get_ident()
        assert crew.take() == threading.get_ident()


@pytest.mark.parametrize("threads", [1, 3])
def test_what_work_raises_is_raised_in_its_turn(threads: int) -> None:
    def fail() -> int:
        raise OSError("torn")

    with Crew[int](threads) as crew:
        crew.begin(lambda: 1)
        crew.begin(fail)
        crew.begin(lambda: 3)
        assert crew.take() == 1
        with pytest.raises(OSError, match="torn"):
            crew.take()
        assert crew.take() == 3


def test_what_is_begun_and_not_taken_is_forgotten_at_the_end() -> None:
    done: list[int] = []
    with Crew[None](1) as crew:
        crew.begin(lambda: done.append(1))
    assert done == []

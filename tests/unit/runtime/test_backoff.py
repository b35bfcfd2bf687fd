from __future__ import annotations

import random

from federation.runtime.backoff import STANDING_S, Backoff


def test_delays_double_up_to_their_limit_and_are_spread() -> None:
    backoff = Backoff(first_s=1.0, most_s=8.0, rng=random.Random(7))  # noqa: S311  (nothing secret)
    delays = [backoff.next_s() for _ in range(6)]
    for delay, bound in zip(delays, [1.0, 2.0, 4.0, 8.0, 8.0, 8.0], strict=True):
        assert bound / 2 <= delay <= bound
    assert backoff.failures == 6


def test_a_success_makes_the_next_delay_the_first_again() -> None:
    backoff = Backoff(first_s=1.0, most_s=8.0, rng=random.Random(7))  # noqa: S311  (nothing secret)
    for _ in range(5):
        backoff.next_s()
    backoff.reset()
    assert backoff.next_s() <= 1.0


def test_a_session_that_was_dropped_at_once_is_no_success() -> None:
    backoff = Backoff(first_s=1.0, most_s=8.0, rng=random.Random(7))  # noqa: S311  (nothing secret)
    for _ in range(5):
        backoff.next_s()
        backoff.stood(STANDING_S / 2)
    assert backoff.failures == 5
    backoff.stood(STANDING_S)
    assert backoff.failures == 0

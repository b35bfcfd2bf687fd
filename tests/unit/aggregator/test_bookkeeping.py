"""What a round took: counted from when it begins, not from when the process did."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from federation.aggregator.bookkeeping import RoundBook
from federation.names import Attempt, Digest, Epoch, RoundNumber
from federation.rounds.events import Commit, Phase, Score
from federation.telemetry.metrics import Metrics
from federation.testing.clock import FakeClock

CANDIDATE: Any = SimpleNamespace(
    weights=(), scores={}, digest=Digest(bytes(32)), update_norm=0.0, total_sites=0, report=None, scalars={}
)


def commit(number: int) -> Commit:
    return Commit(
        round=RoundNumber(number),
        attempt=Attempt(1),
        standings={},
        metrics={},
        evaluations={},
        is_best=False,
        score=Score(),
    )


def test_the_first_round_does_not_count_how_long_sites_took_to_join() -> None:
    clock = FakeClock(now=1000.0)
    book = RoundBook(clock, Metrics())
    clock.advance(3600.0)
    for phase in (Phase.SELECT, Phase.BROADCAST):
        book.enter(phase)
        clock.advance(2.0)
    record = book.record(commit(1), CANDIDATE, [], Epoch(1))
    assert (record.started_at, record.seconds) == (4600.0, 4.0)
    assert record.phase_seconds == {"select": 2.0, "broadcast": 2.0}


def test_a_round_counts_from_the_end_of_the_one_before() -> None:
    clock = FakeClock(now=1000.0)
    book = RoundBook(clock, Metrics())
    book.enter(Phase.COMMIT)
    clock.advance(5.0)
    book.begin()
    clock.advance(1.0)
    book.enter(Phase.SELECT)
    clock.advance(1.0)
    record = book.record(commit(2), CANDIDATE, [], Epoch(1))
    assert (record.started_at, record.seconds) == (1005.0, 2.0)

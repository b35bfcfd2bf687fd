from __future__ import annotations

from federation.testing.clock import FakeClock
from federation.transport.handshakes import PATIENCE_S, HandshakeLedger


def ledger() -> tuple[HandshakeLedger, FakeClock, list[None]]:
    clock = FakeClock()
    refused: list[None] = []
    return HandshakeLedger(clock, lambda: refused.append(None)), clock, refused


def test_a_handshake_followed_by_a_call_is_not_refused() -> None:
    handshakes, clock, refused = ledger()
    handshakes.begun()
    handshakes.called("ipv4:127.0.0.1:1")
    clock.advance(PATIENCE_S)
    assert refused == []


def test_a_handshake_without_a_call_is_counted_once() -> None:
    handshakes, clock, refused = ledger()
    handshakes.begun()
    clock.advance(PATIENCE_S - 1)
    assert refused == []
    clock.advance(PATIENCE_S)
    assert len(refused) == 1


def test_the_number_is_right_whoever_calls_first() -> None:
    handshakes, clock, refused = ledger()
    for _ in range(5):
        handshakes.begun()
        clock.advance(1)
    handshakes.called("ipv4:127.0.0.1:1")
    handshakes.called("ipv4:127.0.0.1:2")
    handshakes.called("ipv4:127.0.0.1:2")
    clock.advance(2 * PATIENCE_S)
    assert len(refused) == 3


def test_a_stopped_server_counts_nothing_any_more() -> None:
    handshakes, clock, refused = ledger()
    handshakes.begun()
    handshakes.close()
    clock.advance(2 * PATIENCE_S)
    assert refused == []
    assert clock.waiting == 0

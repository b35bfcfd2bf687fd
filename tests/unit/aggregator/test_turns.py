"""Turns of uploads, with senders that are scripted queues and a clock that the test moves."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from federation.aggregator.turns import CROWD_PIECE_BYTES, PATIENCE_S, Turn, Turns, turns_here
from federation.testing.clock import FakeClock

LONG = 1 << 30
CRUMB = 64 << 10


class Sender:
    """A stream of messages, sizes in bytes, that come when the test says."""

    def __init__(self):
        self.messages = asyncio.Queue()

    def __aiter__(self):
        return self

    async def __anext__(self):
        message = await self.messages.get()
        if message is None:
            raise StopAsyncIteration
        return message


async def settle():
    for _ in range(20):
        await asyncio.sleep(0)


async def receive(turn, sender, clock, nbytes, after_s):
    """Let a piece of `nbytes` come after `after_s` of waiting for it."""
    read = asyncio.create_task(turn.read(sender))
    await settle()
    clock.advance(after_s)
    sender.messages.put_nowait(nbytes)
    turn.count(await read)


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def turns(clock):
    return Turns(clock, most=1)


async def test_only_so_many_are_read_at_a_time_and_the_next_follows_a_release(turns):
    sender = Sender()
    first, second = Turn(turns, LONG), Turn(turns, LONG)
    await first.take()
    waiting = asyncio.create_task(second.read(sender))
    sender.messages.put_nowait(CRUMB)
    await settle()
    assert not waiting.done()
    first.release()
    assert await waiting == CRUMB


async def test_a_slow_sender_gives_its_turn_away_and_takes_it_again(turns, clock):
    slow, fast = Sender(), Sender()
    waiting, other = Turn(turns, LONG), Turn(turns, LONG)
    read = asyncio.create_task(waiting.read(slow))
    await settle()
    clock.advance(PATIENCE_S)
    fast.messages.put_nowait(CRUMB)
    assert await other.read(fast) == CRUMB
    other.release()
    slow.messages.put_nowait(CRUMB)
    assert await read == CRUMB
    slow.messages.put_nowait(None)
    assert await waiting.read(slow) is None


async def test_whoever_loses_its_turn_is_told_once_and_whoever_ends_it_is_not(turns, clock):
    lost = []
    turn, sender = Turn(turns, LONG), Sender()
    turn.when_lost = lambda: lost.append(turn.is_held)
    await receive(turn, sender, clock, CRUMB, 0.9 * PATIENCE_S)
    read = asyncio.create_task(turn.read(sender))
    await settle()
    clock.advance(PATIENCE_S)
    clock.advance(60)
    assert lost == [False]
    sender.messages.put_nowait(CRUMB)
    turn.count(await read)
    await turn.take()
    turn.release()
    assert lost == [False]


async def test_a_sender_that_drips_pieces_does_not_keep_its_turn(turns, clock):
    dripping, sender, other = Turn(turns, LONG), Sender(), Turn(turns, LONG)
    await dripping.take()
    honest = asyncio.create_task(other.take())
    for _ in range(4):
        await receive(dripping, sender, clock, CRUMB, PATIENCE_S / 5)
    assert dripping.is_held
    await receive(dripping, sender, clock, CRUMB, PATIENCE_S / 5)
    assert not dripping.is_held
    await settle()
    assert honest.done() and other.is_held


async def test_whoever_sends_a_piece_in_time_keeps_the_turn_however_it_is_cut(turns, clock):
    turn, sender = Turn(turns, LONG), Sender()
    parts = CROWD_PIECE_BYTES // CRUMB
    for _ in range(10 * parts):
        await receive(turn, sender, clock, CRUMB, 0.9 * PATIENCE_S / parts)
        assert turn.is_held


async def test_the_rest_of_an_upload_is_enough_to_keep_the_turn_for_its_commit(turns, clock):
    turn, sender = Turn(turns, 10), Sender()
    for nbytes in (10, 0):
        await receive(turn, sender, clock, nbytes, 0.9 * PATIENCE_S)
        assert turn.is_held


async def test_a_sender_that_does_not_even_hear_what_is_held_loses_its_turn(turns, clock):
    turn = Turn(turns, LONG)
    await turn.take()
    clock.advance(PATIENCE_S)
    assert not turn.is_held


async def test_our_own_work_on_a_piece_costs_its_sender_nothing(turns, clock):
    turn, sender = Turn(turns, LONG), Sender()
    for _ in range(3):
        await receive(turn, sender, clock, CRUMB, PATIENCE_S / 5)
        clock.advance(60)
    assert turn.is_held


async def test_sixteen_slow_lines_share_four_turns_and_none_is_slowed_down(clock):
    turns, step_s, steps = Turns(clock, most=4), 0.01, 200
    every = round(CROWD_PIECE_BYTES / 2.5e6 / step_s)  # a line of 2.5 MB/s
    senders = [Sender() for _ in range(16)]
    came = [0] * len(senders)

    async def upload(index):
        turn = Turn(turns, LONG)
        while True:
            turn.count(await turn.read(senders[index]))
            came[index] += 1

    uploads = [asyncio.create_task(upload(index)) for index in range(len(senders))]
    for step in range(steps):
        if step % every == 0:
            for sender in senders:
                sender.messages.put_nowait(CROWD_PIECE_BYTES)
        await settle()
        clock.advance(step_s)
    for each in uploads:
        each.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await each
    assert min(came) == -(-steps // every)


async def test_a_cancelled_upload_leaves_no_turn_and_no_timer_behind(turns, clock):
    turn = Turn(turns, LONG)
    read = asyncio.create_task(turn.read(Sender()))
    await settle()
    read.cancel()
    await asyncio.wait({read})
    turn.release()
    assert clock.waiting == 0
    await asyncio.wait_for(Turn(turns, LONG).take(), 60)


def test_there_are_at_least_four_turns():
    assert turns_here() >= 4

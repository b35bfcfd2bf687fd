"""Turns of uploads, with senders that are scripted queues."""

from __future__ import annotations

import asyncio

from federation.aggregator.turns import Turn, Turns, turns_here


class Sender:
    """A stream of messages that come when the test says."""

    def __init__(self):
        self.messages = asyncio.Queue()

    def __aiter__(self):
        return self

    async def __anext__(self):
        message = await self.messages.get()
        if message is None:
            raise StopAsyncIteration
        return message


async def test_only_so_many_are_read_at_a_time_and_the_next_follows_a_release():
    turns, sender = Turns(most=1, patience_s=60), Sender()
    first, second = Turn(turns), Turn(turns)
    await first.take()
    waiting = asyncio.create_task(second.read(sender))
    sender.messages.put_nowait("piece")
    await asyncio.sleep(0)
    assert not waiting.done()
    first.release()
    assert await waiting == "piece"


async def test_a_slow_sender_gives_its_turn_away_and_takes_it_again():
    turns, slow, fast = Turns(most=1, patience_s=0), Sender(), Sender()
    waiting, other = Turn(turns), Turn(turns)
    read = asyncio.create_task(waiting.read(slow))
    fast.messages.put_nowait("piece")
    assert await other.read(fast) == "piece"
    other.release()
    slow.messages.put_nowait("late piece")
    assert await read == "late piece"
    slow.messages.put_nowait(None)
    assert await waiting.read(slow) is None


async def test_a_cancelled_upload_leaves_no_turn_behind():
    turns, sender = Turns(most=1, patience_s=60), Sender()
    turn = Turn(turns)
    read = asyncio.create_task(turn.read(sender))
    await asyncio.sleep(0)
    read.cancel()
    await asyncio.wait({read})
    turn.release()
    await asyncio.wait_for(Turn(turns).take(), 5)


def test_there_are_at_least_four_turns():
    assert turns_here() >= 4

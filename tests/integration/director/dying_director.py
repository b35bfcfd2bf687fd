"""The director as it is, but for one instant of a release in which it dies, or for ever does not answer.

``python dying_director.py INSTANT --config director.toml``; INSTANT is ``recording`` (the release is written and not
committed: dies), ``telling`` (committed, the aggregator not told: dies) or ``answering`` (told: the operator waits).
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any, Never

from director.command import app
from director.overseer import Overseer
from director.store import sites
from director.supervision import Supervision


def die(*_: Any) -> Never:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def arrange(instant: str) -> None:
    release, push = Overseer.release, Supervision.push_roster
    record = sites.release

    def record_and_die(*args: Any, **named: Any) -> Never:
        record(*args, **named)
        die()

    async def release_and_die_before_telling(self: Overseer, *args: Any) -> int:
        Supervision.push_roster = die  # type: ignore[method-assign]
        return await release(self, *args)

    async def tell_and_wait(self: Supervision, experiment: Any) -> None:
        await push(self, experiment)
        await asyncio.Event().wait()

    async def release_and_wait(self: Overseer, *args: Any) -> int:
        Supervision.push_roster = tell_and_wait  # type: ignore[method-assign]
        return await release(self, *args)

    if instant == "recording":
        sites.release = record_and_die
    elif instant == "telling":
        Overseer.release = release_and_die_before_telling  # type: ignore[method-assign]
    else:
        assert instant == "answering"
        Overseer.release = release_and_wait  # type: ignore[method-assign]


if __name__ == "__main__":
    arrange(sys.argv.pop(1))
    app()

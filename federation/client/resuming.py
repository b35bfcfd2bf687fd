"""Streams that go on after a cut: the director was started again, or the line was away.

Rules, in order:

1. An attempt begins where the one before stopped: whoever writes it keeps a cursor. So nothing is missed or repeated.
2. What may help to try again is TransportError alone; any other error ends the stream, as its own end does.
3. Between attempts passes a time that doubles up to `_LONGEST_PAUSE_S`. Who is away for `PATIENCE_S` is given up.
4. Whoever follows is told once that the other side is away. It is back when something came, or when an attempt stood
   for longer than any dialling takes: a quiet stream that is cut now and then is not given up after a month.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, TypeVar

from federation.errors import TransportError
from federation.runtime.clock import pause

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from federation.runtime.clock import Clock

AwayCallback = Callable[[TransportError], None]
"""Called with the first error of each time that the other side is away."""

PATIENCE_S = 300.0
"""How long the other side may be away, seconds: enough for a machine to start again."""
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 10.0
_STOOD_S = 60.0
"""An attempt that lasted so long was connected: dialling is given up sooner."""

_Item = TypeVar("_Item")


async def resumed(
    attempt: Callable[[], AsyncGenerator[_Item, None]], *, clock: Clock, away: AwayCallback
) -> AsyncGenerator[_Item, None]:
    """Yield what attempts yield, one attempt after the other, until one ends well.

    Args:
        attempt: begins where the last one stopped.
        clock: times the pauses.
        away: told once each time that the other side is away.

    Raises:
        TransportError: it was away for too long.
        FederationError: as the attempt.
    """
    since: float | None = None
    pause_s = _FIRST_PAUSE_S
    while True:
        began = clock.monotonic()
        try:
            async with aclosing(attempt()) as items:
                async for item in items:
                    since = None
                    yield item
            return
        except TransportError as error:
            now = clock.monotonic()
            if since is None or now - began >= _STOOD_S:
                since, pause_s = now, _FIRST_PAUSE_S
                away(error)
            elif now - since >= PATIENCE_S:
                raise
        await pause(clock, pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

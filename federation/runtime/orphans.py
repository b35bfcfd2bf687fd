"""How long a child goes on alone after its parent went away.

A child dials its parent; a daemon that is restarted finds its children still at work. One whose parent never comes back
must not run for ever: after a set time alone its lease expires and it ends itself.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from federation.runtime.clock import Cancellable, Clock


class Lease:
    """Permission to go on without a parent for `orphan_s` seconds at a time.

    A child starts with its parent present. `parent_lost` starts the countdown, `parent_found` ends it; both may be
    called again without effect. Once expired a lease stays expired.

    Args:
        orphan_s: seconds alone until the lease expires; greater than 0.
        clock: where time comes from.
    """

    def __init__(self, orphan_s: float, clock: Clock) -> None:
        if orphan_s <= 0:
            raise ValueError(f"orphan_s must be greater than 0, got {orphan_s}")
        self._orphan_s = orphan_s
        self._clock = clock
        self._expired = asyncio.Event()
        self._timer: Cancellable | None = None

    @property
    def is_expired(self) -> bool:
        """Whether the process must end itself."""
        return self._expired.is_set()

    def parent_lost(self) -> None:
        """Start the countdown unless it runs already."""
        if self._timer is None and not self.is_expired:
            self._timer = self._clock.timer(self._orphan_s, self._expired.set)

    def parent_found(self) -> None:
        """Stop the countdown."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def expired(self) -> None:
        """Return once the process has been alone for too long."""
        await self._expired.wait()

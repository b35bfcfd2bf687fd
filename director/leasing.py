"""Takes and keeps the lease of the database, so that one director at a time decides.

Rules, in order:

1. A director does not start while another holds the lease. One that was killed on this machine, in this container, is
   known to be dead and need not be waited for; of one elsewhere that cannot be known.
2. The lease is prolonged by a timer at a third of its length. A director that finds it taken, or cannot prolong it
   before it runs out, stops at once: somebody else may decide now.
3. The same timer looks at the revocation list, so that open streams of revoked peers end without anybody calling.
"""

from __future__ import annotations

import json
import os
import socket
from typing import TYPE_CHECKING

from director.store import lease
from federation.errors import ConfigurationError, ConflictError, StorageError
from federation.runtime.children import ProcessIdentity
from federation.runtime.clock import pause
from federation.telemetry.logs import get_logger

if TYPE_CHECKING:
    from director.store.database import Database
    from federation.pki.revocation import RevocationList
    from federation.runtime.clock import Clock

_log = get_logger(__name__)


async def take_lease(database: Database, clock: Clock, lasts_s: float) -> int:
    """Take the lease for `lasts_s` seconds and return its epoch.

    Raises:
        ConfigurationError: another director holds it.
    """
    try:
        return await database.transact(
            lease.take, holder=describe_holder(), now=clock.now(), lasts_s=lasts_s, is_dead=is_dead
        )
    except ConflictError as error:
        raise ConfigurationError(str(error)) from error


async def give_up_lease(database: Database, epoch: int) -> None:
    """End the lease so that the next director need not wait; where that fails it runs out by itself."""
    try:
        await database.transact(lease.give_up, epoch=epoch)
    except StorageError as error:
        _log.warning("lease not given up; it runs out by itself", reason=str(error))


class LeaseKeeper:
    """Keeps the lease.

    Args:
        database: where it is.
        clock: what it is measured by.
        lasts_s: its length, seconds.
        epoch: its epoch.
        revoked: list to look at meanwhile; None where there are no certificates.

    Attributes:
        trouble: why the lease could not be prolonged at the last try; None if it could. For readiness.
    """

    def __init__(
        self, database: Database, clock: Clock, lasts_s: float, *, epoch: int, revoked: RevocationList | None
    ) -> None:
        self.trouble: str | None = None
        self._database = database
        self._clock = clock
        self._lasts_s = lasts_s
        self._epoch = epoch
        self._revoked = revoked

    async def keep(self) -> None:
        """Prolong the lease for ever.

        Raises:
            ConflictError: it was lost.
        """
        until = self._clock.monotonic() + self._lasts_s
        while True:
            await pause(self._clock, self._lasts_s / 3)
            asked = self._clock.monotonic()
            try:
                await self._database.transact(
                    lease.keep, epoch=self._epoch, now=self._clock.now(), lasts_s=self._lasts_s
                )
                until, self.trouble = asked + self._lasts_s, None
            except StorageError as error:
                self.trouble = str(error)
                if self._clock.monotonic() >= until:
                    raise ConflictError(f"the lease could not be kept and has run out: {error}") from error
            self._look_for_revocations()

    def _look_for_revocations(self) -> None:
        if self._revoked is not None:
            try:
                self._revoked.reload()
            except ConfigurationError as error:
                _log.error("revocation list cannot be read; calls are refused", reason=str(error))


def describe_holder() -> str:
    """Return this process as a holder: host, process namespace, process."""
    identity = ProcessIdentity.of(os.getpid())
    return json.dumps({"host": socket.gethostname(), "space": _space(), "process": json.loads(identity.to_json())})


def is_dead(holder: str) -> bool:
    """Tell whether that holder certainly lives no more; False if this machine cannot know."""
    try:
        fields = json.loads(holder)
        if (fields["host"], fields["space"]) != (socket.gethostname(), _space()):
            return False
        return not ProcessIdentity.from_json(json.dumps(fields["process"])).is_alive()
    except (ValueError, KeyError, TypeError):
        return False


def _space() -> str:
    """The process namespace: the same pid in another container is another process."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""

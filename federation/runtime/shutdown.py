"""Stopping in two stages: the first signal drains, the second stops at once.

A daemon waits for `Shutdown.draining`, then takes no new work and lets go of its children in good order; it races all
of that against `Shutdown.stop_now`.
"""

from __future__ import annotations

import asyncio
import logging
import signal

_log = logging.getLogger(__name__)
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Shutdown:
    """Whether, and how hurriedly, this process is to stop.

    Attributes:
        draining: set by the first signal or request.
        stop_now: set by the second.
        reason: what was asked first, for the log; empty before.
    """

    def __init__(self) -> None:
        self.draining = asyncio.Event()
        self.stop_now = asyncio.Event()
        self.reason = ""
        self._loop: asyncio.AbstractEventLoop | None = None

    def install(self) -> None:
        """Listen for SIGTERM and SIGINT on the running loop; call it in the main thread."""
        self._loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            self._loop.add_signal_handler(number, self.request, f"signal {number.name}")

    def uninstall(self) -> None:
        """Give the signals back to Python."""
        if self._loop is not None:
            for number in _SIGNALS:
                self._loop.remove_signal_handler(number)
            self._loop = None

    def request(self, reason: str) -> None:
        """Ask to drain; asked again, to stop at once."""
        if not self.draining.is_set():
            self.reason = reason
            _log.info("draining: %s; once more stops at once", reason)
            self.draining.set()
        else:
            _log.warning("stopping at once: %s", reason)
            self.stop_now.set()

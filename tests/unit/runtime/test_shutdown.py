"""Two signals, two stages."""

from __future__ import annotations

import asyncio
import os
import signal

from federation.runtime.shutdown import Shutdown


async def test_the_first_signal_drains_and_the_second_stops_at_once() -> None:
    shutdown = Shutdown()
    shutdown.install()
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        await shutdown.draining.wait()
        assert shutdown.reason == "signal SIGTERM"
        assert not shutdown.stop_now.is_set()
        os.kill(os.getpid(), signal.SIGINT)
        await shutdown.stop_now.wait()
        assert shutdown.reason == "signal SIGTERM"
    finally:
        shutdown.uninstall()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


async def test_a_request_counts_as_a_signal() -> None:
    shutdown = Shutdown()
    shutdown.request("lost the lease")
    assert shutdown.draining.is_set() and not shutdown.stop_now.is_set()
    await asyncio.wait_for(shutdown.draining.wait(), 60)

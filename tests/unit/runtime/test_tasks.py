"""The supervisor: who is told when a task ends, and that none is left behind."""

from __future__ import annotations

import asyncio

import pytest

from federation.runtime.tasks import Supervisor


async def _for_ever() -> None:
    await asyncio.Event().wait()


async def _fail() -> None:
    raise LookupError("broken")


async def _nothing() -> None:
    return None


async def test_an_eternal_task_that_fails_cancels_the_body_and_is_raised() -> None:
    with pytest.raises(LookupError, match="broken"):
        async with Supervisor("daemon") as supervisor:
            supervisor.eternal("loop", _fail())
            await _for_ever()
    current = asyncio.current_task()
    assert current is not None and current.cancelling() == 0


async def test_an_eternal_task_that_ends_is_a_fault_that_names_it() -> None:
    with pytest.raises(RuntimeError, match="'daemon/loop' ended"):
        async with Supervisor("daemon") as supervisor:
            supervisor.eternal("loop", _nothing())
            await _for_ever()


async def test_a_job_may_end_and_its_failure_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async with Supervisor("daemon") as supervisor:
        await supervisor.job("short", _nothing())
        failing = supervisor.job("bad", _fail())
        await asyncio.wait([failing])
        await asyncio.sleep(0)
    assert "daemon/bad" in caplog.text


async def test_a_critical_job_that_fails_stops_everything() -> None:
    with pytest.raises(LookupError):
        async with Supervisor("daemon") as supervisor:
            supervisor.job("vital", _fail(), critical=True)
            await _for_ever()


async def test_leftovers_are_cancelled_and_awaited_on_the_way_out() -> None:
    cleaned = asyncio.Event()

    async def tidy() -> None:
        try:
            await _for_ever()
        finally:
            await asyncio.sleep(0)
            cleaned.set()

    async with Supervisor("daemon") as supervisor:
        task = supervisor.eternal("loop", tidy())
        await asyncio.sleep(0)
    assert cleaned.is_set() and task.cancelled()


async def test_a_task_cancelled_on_purpose_is_no_fault() -> None:
    async with Supervisor("daemon") as supervisor:
        task = supervisor.eternal("loop", _for_ever())
        task.cancel()
        await asyncio.wait([task])
        await asyncio.sleep(0)  # a fault would be raised by the next await
    assert task.cancelled()


async def test_cancellation_from_outside_goes_on_after_the_tasks_are_gone() -> None:
    started = asyncio.Event()
    seen: list[asyncio.Task[None]] = []

    async def daemon() -> None:
        async with Supervisor("daemon") as supervisor:
            seen.append(supervisor.eternal("loop", _for_ever()))
            started.set()
            await _for_ever()

    running = asyncio.create_task(daemon())
    await started.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert seen[0].cancelled()


async def test_the_bodys_own_error_is_not_replaced() -> None:
    with pytest.raises(KeyError):
        async with Supervisor("daemon") as supervisor:
            supervisor.eternal("loop", _for_ever())
            raise KeyError("body")


async def test_refuses_a_task_once_it_is_closed() -> None:
    supervisor = Supervisor("daemon")
    with pytest.raises(RuntimeError, match="not running"):
        supervisor.job("early", _nothing())

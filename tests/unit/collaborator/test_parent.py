from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from federation.collaborator import local_socket
from federation.collaborator.parent import REST_S, EnvoyLine, Status
from federation.runtime.clock import SystemClock
from federation.runtime.orphans import Lease
from federation.testing.clock import FakeClock

if TYPE_CHECKING:
    from pathlib import Path


class Envoy:
    """The envoy's end: keeps what it hears, says what it is told to."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.streams: list[local_socket.LineStream] = []

    async def __call__(self, stream: local_socket.LineStream) -> None:
        self.streams.append(stream)
        while (message := await stream.receive()) is not None:
            self.heard.put_nowait(message)


def _line(path: Path, clock: SystemClock | FakeClock, told: list[Any]) -> EnvoyLine:
    return EnvoyLine(
        path=path,
        experiment="trial-1",
        metrics_address="127.0.0.1:9",
        lease=Lease(10.0, clock),
        clock=clock,
        on_stop=lambda reason, drain: told.append((reason, drain)),
        on_aggregator=lambda address, name: told.append((address, name)),
        on_certificate=lambda: told.append("certificate"),
    )


async def test_a_restarted_envoy_hears_who_is_there_and_how_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "envoy.sock"
    line = _line(path, SystemClock(), [])
    running = asyncio.create_task(line.run())
    for _ in range(2):
        envoy = Envoy()
        server = await local_socket.serve(path, envoy)
        hello = await envoy.heard.get()
        assert (hello["type"], hello["experiment"], hello["metrics_address"]) == ("hello", "trial-1", "127.0.0.1:9")
        line.report(Status(state="running", round=3))
        while (await envoy.heard.get()).get("round") != 3:
            pass
        await line.told()
        await server.close()
        path.unlink()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_of_rounds_in_quick_succession_the_first_is_told_and_the_latest_but_an_end_at_once(
    tmp_path: Path,
) -> None:
    envoy, clock = Envoy(), FakeClock()
    server = await local_socket.serve(tmp_path / "envoy.sock", envoy)
    line = _line(tmp_path / "envoy.sock", clock, [])
    running = asyncio.create_task(line.run())
    await envoy.heard.get()
    assert (await envoy.heard.get())["round"] == 0
    line.report(Status(state="running", round=1))
    assert (await envoy.heard.get())["round"] == 1
    await line.told()
    for number in (2, 3):
        line.report(Status(state="running", round=number))
    await clock.until_waiting()
    clock.advance(REST_S)
    assert (await envoy.heard.get())["round"] == 3
    await line.told()
    line.report(Status(state="running", round=4))
    line.report(Status(state="finished", round=4))
    assert (await envoy.heard.get())["state"] == "finished"
    await line.told()
    assert envoy.heard.empty()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await server.close()


async def test_the_envoy_can_stop_and_move_its_collaborator(tmp_path: Path) -> None:
    told: list[Any] = []
    envoy = Envoy()
    server = await local_socket.serve(tmp_path / "envoy.sock", envoy)
    line = _line(tmp_path / "envoy.sock", SystemClock(), told)
    running = asyncio.create_task(line.run())
    await envoy.heard.get()
    await envoy.streams[0].send({"type": "aggregator", "address": "host:2", "server_name": "a"})
    await envoy.streams[0].send({"type": "stop", "reason": "withdrawn", "drain": False})
    await envoy.streams[0].send({"type": "nonsense"})  # ends the connection, after what came before was obeyed
    while await envoy.heard.get() != {"type": "hello", **_identity()}:
        pass
    assert told == [("host:2", "a"), ("withdrawn", False)]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await server.close()


def _identity() -> dict[str, Any]:
    import os

    return {"experiment": "trial-1", "pid": os.getpid(), "metrics_address": "127.0.0.1:9"}


async def test_without_an_envoy_the_lease_runs_out(tmp_path: Path) -> None:
    clock = FakeClock()
    line = _line(tmp_path / "envoy.sock", clock, [])
    running = asyncio.create_task(line.run())
    expired = asyncio.create_task(line.lease.expired())
    while not expired.done():
        await asyncio.sleep(0)
        clock.advance(1.0)
    assert line.lease.is_expired
    running.cancel()
    await asyncio.gather(running, expired, return_exceptions=True)

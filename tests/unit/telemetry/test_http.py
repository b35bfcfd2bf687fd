"""The monitoring address, asked over real HTTP."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import aiohttp
import pytest

from federation.errors import ConfigurationError
from federation.telemetry.http import LOOPBACK, DiscoveryTarget, MonitoringServer
from federation.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


class _Process:
    """What a process behind the address may be like."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.reason: str | None = None
        self.targets: list[DiscoveryTarget] = []

    def server(self, port: int = 0, discovery: Callable[[], list[DiscoveryTarget]] | None = None) -> MonitoringServer:
        checks: dict[str, Callable[[], str | None]] = {"database": lambda: None, "director": lambda: self.reason}
        return MonitoringServer(LOOPBACK, port, self.metrics, checks, discovery)


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def test_shows_metrics_and_liveness(http: aiohttp.ClientSession) -> None:
    process = _Process()
    process.metrics.rounds_committed_total.inc(3)
    server = process.server()
    port = await server.start()
    async with http.get(f"http://{LOOPBACK}:{port}/metrics") as reply:
        assert reply.status == 200 and reply.content_type == "text/plain"
        assert "federation_rounds_committed_total 3.0" in await reply.text()
    async with http.get(f"http://{LOOPBACK}:{port}/live") as reply:
        assert reply.status == 200
    async with http.get(f"http://{LOOPBACK}:{port}/discovery") as reply:
        assert reply.status == 404
    await server.stop()
    await server.stop()


async def test_is_ready_only_if_no_check_has_a_reason(http: aiohttp.ClientSession) -> None:
    process = _Process()
    server = process.server()
    url = f"http://{LOOPBACK}:{await server.start()}/ready"
    async with http.get(url) as reply:
        assert (reply.status, await reply.json()) == (
            200,
            {"ready": True, "checks": {"database": "ok", "director": "ok"}},
        )
    process.reason = "not attached"
    async with http.get(url) as reply:
        assert reply.status == 503
        assert (await reply.json())["checks"] == {"database": "ok", "director": "not attached"}
    await server.stop()


async def test_lists_children_as_prometheus_discovery_reads_them(http: aiohttp.ClientSession) -> None:
    process = _Process()
    server = process.server(discovery=lambda: process.targets)
    url = f"http://{LOOPBACK}:{await server.start()}/discovery"
    async with http.get(url) as reply:
        assert await reply.json() == []
    process.targets.append(DiscoveryTarget(targets=["127.0.0.1:9001"], labels={"experiment": "digits-abcdefgh"}))
    async with http.get(url) as reply:
        assert reply.content_type == "application/json"
        assert await reply.json() == [{"targets": ["127.0.0.1:9001"], "labels": {"experiment": "digits-abcdefgh"}}]
    await server.stop()


async def test_a_port_in_use_is_a_configuration_error_that_names_it() -> None:
    with socket.socket() as taken:
        taken.bind((LOOPBACK, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"{LOOPBACK}:{port}: it is in use"):
            await _Process().server(port).start()

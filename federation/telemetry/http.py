"""The HTTP address of a process for Prometheus and for whoever keeps it alive.

``GET /metrics`` in Prometheus' text format. ``GET /live``: 200 as long as the event loop turns. ``GET /ready``: each
named check with its verdict; 503 if one has a reason not to be ready. ``GET /discovery``: what else Prometheus should
scrape, as its HTTP service discovery reads it; 404 where there is nothing to list.

It has no authentication, so a process binds it to loopback unless its owner configured otherwise.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from federation.errors import ConfigurationError

if TYPE_CHECKING:
    # Loaded when a server starts: commands that only ask something need not pay for aiohttp.
    from aiohttp import web

    from federation.telemetry.metrics import Metrics

LOOPBACK = "127.0.0.1"
Readiness = Mapping[str, Callable[[], str | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscoveryTarget:
    """One group of addresses that Prometheus should scrape.

    Attributes:
        targets: ``host:port`` of each ``/metrics``.
        labels: labels that their series get.
    """

    targets: Sequence[str]
    labels: Mapping[str, str] = field(default_factory=dict)


class MonitoringServer:
    """Serves the four addresses above.

    Args:
        host: address to bind; `LOOPBACK` unless the owner configured another.
        port: 0 for any free one.
        metrics: what ``/metrics`` shows.
        readiness: named checks; each returns None, or the reason why not.
        discovery: what ``/discovery`` lists, asked at every request; None if this process has no children.
    """

    def __init__(
        self,
        host: str,
        port: int,
        metrics: Metrics,
        readiness: Readiness,
        discovery: Callable[[], Sequence[DiscoveryTarget]] | None = None,
    ) -> None:
        self._host = host
        self._port = port
        self._metrics = metrics
        self._readiness = readiness
        self._discovery = discovery
        self._runner: web.AppRunner | None = None

    async def start(self) -> int:
        """Bind and serve; return the port.

        Raises:
            ConfigurationError: the address is in use or not ours.
        """
        from aiohttp import web

        application = web.Application()
        application.router.add_get("/metrics", self._get_metrics)
        application.router.add_get("/live", self._get_live)
        application.router.add_get("/ready", self._get_ready)
        application.router.add_get("/discovery", self._get_discovery)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        site = web.TCPSite(runner, self._host, self._port)
        try:
            await site.start()
        except OSError as error:
            await runner.cleanup()
            why = "it is in use" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
            raise ConfigurationError(
                f"monitoring cannot listen on {self._host}:{self._port}: {why}; choose another port, or 0 for any"
            ) from error
        self._runner = runner
        return int(runner.addresses[0][1])

    async def stop(self) -> None:
        """Stop serving; nothing if it never started."""
        if self._runner is not None:
            runner, self._runner = self._runner, None
            await runner.cleanup()

    async def _get_metrics(self, _: web.Request) -> web.Response:
        from aiohttp import web
        from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

        body = generate_latest(self._metrics.registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})

    async def _get_live(self, _: web.Request) -> web.Response:
        from aiohttp import web

        return web.Response(text="alive\n")

    async def _get_ready(self, _: web.Request) -> web.Response:
        from aiohttp import web

        verdicts = {name: check() for name, check in self._readiness.items()}
        ready = all(reason is None for reason in verdicts.values())
        checks = {name: "ok" if reason is None else reason for name, reason in verdicts.items()}
        return web.Response(
            text=json.dumps({"ready": ready, "checks": checks}),
            status=200 if ready else 503,
            content_type="application/json",
        )

    async def _get_discovery(self, _: web.Request) -> web.Response:
        from aiohttp import web

        if self._discovery is None:
            raise web.HTTPNotFound(text="this process has no children to scrape\n")
        groups = [{"targets": list(g.targets), "labels": dict(g.labels)} for g in self._discovery()]
        return web.Response(text=json.dumps(groups), content_type="application/json")

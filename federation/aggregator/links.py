"""The aggregator's connections: its own server for the sites, its channel to the director, and its certificate.

The certificate is renewed when two thirds of its life are over (`federation.pki.renewal`). The server takes the new
files by itself; the channel to the director is opened anew for the next call, the session's among them, which is
dialled again (`on_renewed`). The old channel is closed at the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from federation.aggregator.control import RevokedSerials
from federation.errors import ConfigurationError
from federation.names import Identity, Role, director_server_name
from federation.pki.renewal import Renewal
from federation.telemetry.logs import get_logger
from federation.transport.authority import Authority
from federation.transport.bulk import BulkServer
from federation.transport.channels import open_channel
from federation.transport.credentials import TlsFiles
from federation.transport.handlers import method_path
from federation.transport.methods import Stub
from federation.transport.server import RpcServer
from federation.v1 import aggregator_pb2, director_pb2
from federation.wire.pieces import read_update_piece

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    import grpc

    from federation.aggregator.config import AggregatorConfig
    from federation.aggregator.service import AggregatorService
    from federation.runtime.clock import Clock
    from federation.telemetry.metrics import Metrics

_DIRECTOR = director_pb2.DESCRIPTOR.services_by_name["Director"]
_AGGREGATOR = aggregator_pb2.DESCRIPTOR.services_by_name["Aggregator"]


class Links:
    """Connections of one aggregator; an asynchronous context manager that closes them.

    Args:
        config: addresses and certificate files.
        metrics: where calls are counted.
        clock: tells when the certificate is due.

    Attributes:
        revocations: certificates that no longer count.
        lines: where large payloads come and go; not listening before `serve`.
        renewal: keeps the certificate renewed if it is run; None if there is none, or nobody to ask.
        on_renewed: called after each renewal; set by whoever holds a session with the director.
    """

    def __init__(self, config: AggregatorConfig, metrics: Metrics, clock: Clock) -> None:
        self.revocations = RevokedSerials()
        self._config = config
        self._metrics = metrics
        self._clock = clock
        self._identity = Identity(federation=config.federation, role=Role.AGGREGATOR, name=config.experiment)
        self._tls = None
        if config.tls is not None:
            paths = config.tls
            self._tls = TlsFiles(authority=paths.authority, certificate=paths.certificate, key=paths.key)
        self._channels: list[grpc.aio.Channel] = []
        self._serial = -1
        self._log = get_logger(__name__).bind(experiment=config.experiment)
        rules = {method_path(method): frozenset({Role.ENVOY}) for method in _AGGREGATOR.methods}
        self._authority = Authority(config.federation, rules, clock=clock, revoked=self.revocations)
        push = method_path(_AGGREGATOR.methods_by_name["PushUpdate"])
        self.lines = BulkServer(self._authority, push, metrics, tls=self._tls, host=config.listen_host)
        self.on_renewed: Callable[[], None] = lambda: None
        self.renewal = None
        if self._tls is not None and self.has_director:
            self.renewal = Renewal(self._tls, self._ask_director, clock=clock, on_renewed=lambda: self.on_renewed())

    async def __aenter__(self) -> Self:
        if self._tls is not None:
            tls = self._tls
            tls.check(now=self._clock.now())
            self._metrics.watch_certificate(self._identity.spiffe, lambda: tls.facts().expires_at)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for channel in self._channels:
            await channel.close()

    @property
    def has_director(self) -> bool:
        """Whether there is a director at all."""
        return self._config.director_address is not None

    def director(self) -> Stub:
        """Return a stub of the director, over a channel with the present certificate.

        Raises:
            ConfigurationError: there is no director, or the certificate files are not usable.
        """
        address = self._config.director_address
        if address is None:
            raise ConfigurationError("this aggregator has no director: director_address is null")
        serial = self._tls.facts().serial if self._tls is not None else 0
        if serial != self._serial:
            name = self._config.director_server_name or director_server_name(self._config.federation)
            self._channels.append(open_channel(address, server_name=name, tls=self._tls))
            self._serial = serial
        return Stub(self._channels[-1], _DIRECTOR, identity=self._identity if self._tls is None else None)

    async def serve(self, service: AggregatorService, last_port: int) -> RpcServer:
        """Start the server for the sites, at the port used before if that is free, and take lines.

        Args:
            service: what it serves.
            last_port: port an earlier process had; 0 if none.

        Raises:
            ConfigurationError: no port of the range is free, or the certificate files are not usable.
        """
        if self._tls is not None:
            self._tls.load()
        await self._take_lines()
        first, last = self._config.ports
        ports = list(range(first, last + 1))
        if last_port and (not first or first <= last_port <= last):
            ports = [last_port, *(port for port in ports if port != last_port)]
        for port in ports:
            server = self._make_server(port)
            server.add_service(_AGGREGATOR, service, {"PushUpdate": read_update_piece})
            try:
                await server.start()
            except ConfigurationError as error:
                self._log.info("port not free", port=port, reason=str(error))
                await server.stop(0)
                continue
            return server
        raise ConfigurationError(
            f"no port from {first} to {last} on {self._config.listen_host} is free: widen the range of aggregator "
            "ports, or end what uses them"
        )

    async def _take_lines(self) -> None:
        if self._config.bulk_ports is None or self._tls is None:
            return
        first, last = self._config.bulk_ports
        if not await self.lines.start(range(first, last + 1)):
            self._log.warning("no bulk port is free: large payloads travel inside calls", first=first, last=last)

    def _make_server(self, port: int) -> RpcServer:
        return RpcServer(self._authority, self._metrics, tls=self._tls, host=self._config.listen_host, port=port)

    async def _ask_director(self, signing_request: bytes) -> bytes:
        reply = await self.director().unary("Renew", director_pb2.RenewRequest(signing_request=signing_request))
        certificate: bytes = reply.certificate
        return certificate

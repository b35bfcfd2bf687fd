"""A gRPC server of ours, assembled: address, TLS, services, health, and how it stops.

Rules:

1. Mutual TLS on any address; without certificate files on loopback only.
2. Every method served has a rule naming the roles that may call it; the health service answers any valid certificate.
3. Stopping: no new calls and health says so; sessions (`Call.is_session`) end at once, since their peers redial;
   everything else has the grace period to finish, then ends with TransportError, which tells the client to retry.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health_pb2

from federation.errors import ConfigurationError, NotFoundError, TransportError
from federation.names import Role
from federation.transport.channels import SERVER_OPTIONS, require_loopback
from federation.transport.credentials import server_credentials
from federation.transport.handlers import Gate, build_handlers, method_path

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from google.protobuf.descriptor import ServiceDescriptor

    from federation.telemetry.metrics import Metrics
    from federation.transport.authority import Authority
    from federation.transport.calls import Call
    from federation.transport.credentials import TlsFiles
    from federation.transport.handlers import Reader

HEALTH_SERVICE: ServiceDescriptor = health_pb2.DESCRIPTOR.services_by_name["Health"]
_ABORT_S = 5.0
"""How long aborted streams may take to tell their clients, before the connections are closed."""


class HealthService:
    """The standard gRPC health service: one answer for the whole server, named ``""`` or by any service it serves."""

    def __init__(self) -> None:
        self._services: set[str] = {""}
        self._is_serving = True
        self._changed = asyncio.Event()

    def add(self, service: str) -> None:
        """Answer for `service` too."""
        self._services.add(service)

    def set_serving(self, *, is_serving: bool) -> None:
        """Say from now on whether calls are welcome; watchers are told."""
        self._is_serving = is_serving
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def Check(self, request: health_pb2.HealthCheckRequest, call: Call) -> health_pb2.HealthCheckResponse:
        """Say how a service is now; NOT_FOUND if it is not served here, as the health protocol wants."""
        if request.service not in self._services:
            raise NotFoundError(f"service {request.service[:100]!r} is not served here")
        return health_pb2.HealthCheckResponse(status=self._status(request.service))

    async def List(self, request: health_pb2.HealthListRequest, call: Call) -> health_pb2.HealthListResponse:
        """Say how every service is now."""
        statuses = {service: health_pb2.HealthCheckResponse(status=self._status(service)) for service in self._services}
        return health_pb2.HealthListResponse(statuses=statuses)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, call: Call
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Say how a service is now and whenever that changes."""
        while True:
            changed = self._changed
            yield health_pb2.HealthCheckResponse(status=self._status(request.service))
            await changed.wait()

    def _status(self, service: str) -> int:
        if service not in self._services:
            return int(health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
        serving = health_pb2.HealthCheckResponse.SERVING
        return int(serving if self._is_serving else health_pb2.HealthCheckResponse.NOT_SERVING)


class RpcServer:
    """A server: add services, start, stop; once each. Made inside the event loop it runs in.

    Args:
        authority: who may call what; given a rule for the health service if it has none.
        metrics: where calls and refusals are counted.
        tls: certificate files; None for plaintext on loopback, where identities are claims.
        host: address to listen at, such as ``0.0.0.0``.
        port: port to listen at; 0 for any free one.

    Attributes:
        health: what the server says about itself; `stop` sets it to not serving.
        port: port it listens at once started; 0 before.

    Raises:
        ConfigurationError: plaintext was asked for on another address than loopback.
    """

    def __init__(
        self, authority: Authority, metrics: Metrics, *, tls: TlsFiles | None, host: str = "127.0.0.1", port: int = 0
    ) -> None:
        if tls is None:
            require_loopback(host)
        for method in HEALTH_SERVICE.methods:
            authority.rules.setdefault(method_path(method), frozenset(Role))
        self.health = HealthService()
        self.port = 0
        self._tls = tls
        self._host = host
        self._wanted_port = port
        self._gate = Gate(authority, metrics, plaintext=tls is None)
        streams = ("grpc.max_concurrent_streams", authority.limits.streams_per_connection)
        self._server = grpc.aio.server(options=(*SERVER_OPTIONS, streams))
        self.add_service(HEALTH_SERVICE, self.health)

    def add_service(
        self, service: ServiceDescriptor, implementation: object, readers: Mapping[str, Reader] | None = None
    ) -> None:
        """Serve `service` by `implementation`; before `start`.

        Args:
            service: its descriptor.
            implementation: its methods, as `federation.transport.handlers` says.
            readers: what reads messages of a stream by hand, by the name of the method.

        Raises:
            TypeError: the implementation lacks a method.
            ValueError: a method has no rule.
        """
        self._server.add_generic_rpc_handlers((build_handlers(service, implementation, self._gate, readers),))
        self.health.add(service.full_name)

    async def start(self) -> int:
        """Listen, and return the port.

        Raises:
            ConfigurationError: the address cannot be listened at (port in use), or the certificate files are not
                usable.
        """
        host = f"[{self._host}]" if ":" in self._host else self._host
        address = f"{host}:{self._wanted_port}"
        credentials = self._credentials()
        try:
            if credentials is None:
                self.port = self._server.add_insecure_port(address)
            else:
                self.port = self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise ConfigurationError(
                f"cannot listen at {address}: another process uses this port, or the address is not this machine's; "
                "choose another port or stop the other process"
            ) from error
        await self._server.start()
        return self.port

    async def stop(self, grace_s: float = 5.0) -> None:
        """Stop as the module says; returns when nothing is served any more.

        Args:
            grace_s: how long calls other than sessions (see `Call.is_session`) may take to finish.
        """
        self.health.set_serving(is_serving=False)
        open_calls = self._gate.open_calls
        stopping = TransportError("the server is stopping: connect again later")
        open_calls.end(stopping, sessions_only=True)
        closed = asyncio.create_task(self._server.stop(grace_s + _ABORT_S), name="stop gRPC server")
        try:
            await asyncio.wait({closed}, timeout=grace_s)
            open_calls.end(stopping)
            await closed
        finally:
            open_calls.close()
            self._gate.handshakes.close()

    def _credentials(self) -> grpc.ServerCredentials | None:
        if self._tls is None:
            return None
        loop = asyncio.get_running_loop()

        def on_handshake() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._gate.handshakes.begun)

        return server_credentials(self._tls, on_handshake)

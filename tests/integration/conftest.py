"""A server of ours with a small service of all four kinds of methods, and certificates to call it with.

The service is made here from a descriptor, so that these tests are about transport and identity and about no daemon.
TLS itself looks at the machine's clock; everything of ours looks at a fake one that begins at the same moment.
"""

from __future__ import annotations

import asyncio
import datetime
import threading
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID
from google.protobuf import descriptor_pb2, descriptor_pool

from federation.names import FederationName, Identity, Role, director_server_name
from federation.pki.authority import CertificateAuthority, issue_identity, write_identity
from federation.pki.keys import key_pem, load_key_pem, make_key
from federation.pki.revocation import RevocationList
from federation.telemetry.metrics import Metrics
from federation.testing.clock import FakeClock
from federation.transport.authority import Authority, CallRefusal
from federation.transport.channels import open_channel
from federation.transport.credentials import TlsFiles
from federation.transport.methods import Stub
from federation.transport.server import RpcServer
from federation.v1 import tensors_pb2

from .line_halls import Hall

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from federation.transport.calls import Call

HEART = FederationName("heart")


def _probe_descriptor() -> Any:
    """Return the service ``probe.v1.Probe``; all messages are Chunk."""
    file = descriptor_pb2.FileDescriptorProto(
        name="probe/v1/probe.proto", package="probe.v1", syntax="proto3", dependency=["federation/v1/tensors.proto"]
    )
    service = file.service.add(name="Probe")
    for name, streams_in, streams_out in (
        ("Echo", False, False),
        ("Follow", False, True),
        ("Collect", True, False),
        ("Talk", True, True),
    ):
        service.method.add(
            name=name,
            input_type=".federation.v1.Chunk",
            output_type=".federation.v1.Chunk",
            client_streaming=streams_in,
            server_streaming=streams_out,
        )
    pool = descriptor_pool.Default()
    pool.Add(file)
    return pool.FindServiceByName("probe.v1.Probe")


assert tensors_pb2.Chunk  # its file must be in the pool before ours
PROBE = _probe_descriptor()


class ProbeService:
    """Answers, and lets a test see what it was told and make it wait or fail."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.requests: list[tensors_pb2.Chunk] = []
        self.cleaned = asyncio.Event()
        self.release = asyncio.Event()
        self.waiting = asyncio.Event()
        self.error: BaseException | None = None

    def _note(self, call: Call) -> None:
        self.calls.append(call)
        if self.error is not None:
            raise self.error

    async def Echo(self, request: tensors_pb2.Chunk, call: Call) -> tensors_pb2.Chunk:
        self._note(call)
        self.requests.append(request)
        if request.data == b"wait":
            self.waiting.set()
            await self.release.wait()
        return tensors_pb2.Chunk(data=request.data or call.peer.identity.spiffe.encode())

    async def Follow(self, request: tensors_pb2.Chunk, call: Call) -> AsyncIterator[tensors_pb2.Chunk]:
        self._note(call)
        try:
            yield request
            await self.release.wait()
            yield request
        finally:
            self.cleaned.set()

    async def Collect(self, requests: AsyncIterator[tensors_pb2.Chunk], call: Call) -> tensors_pb2.Chunk:
        self._note(call)
        total = 0
        async for request in requests:
            self.requests.append(request)
            total += len(request.data)
            if request.data == b"enough":
                break
        return tensors_pb2.Chunk(offset=total)

    async def Talk(self, requests: AsyncIterator[tensors_pb2.Chunk], call: Call) -> AsyncIterator[tensors_pb2.Chunk]:
        self._note(call)
        try:
            async for request in requests:
                yield tensors_pb2.Chunk(offset=request.offset + 1, data=request.data)
        finally:
            self.cleaned.set()


class Lab:
    """One federation's authority and one server, and what is needed to call it in every right and wrong way."""

    chunk = tensors_pb2.Chunk
    service_descriptor = PROBE

    def __init__(self, folder: Path, stack: AsyncExitStack) -> None:
        self.folder = folder
        self.clock = FakeClock(now=time.time())
        self.metrics = Metrics()
        self.service = ProbeService()
        self.revoked = RevocationList(folder / "revoked.txt")
        self.authority = CertificateAuthority.create(HEART, folder / "ca", now=self.clock.now())
        self.port = 0
        self.server: RpcServer | None = None
        self._stack = stack

    def identity(self, role: Role, name: str) -> Identity:
        return Identity(federation=HEART, role=role, name=name)

    def issue(self, role: Role, name: str, *, lifetime_s: float = 3600.0) -> TlsFiles:
        folder = self.folder / f"{role.value}-{name}"
        now = self.clock.now()
        issue_identity(self.authority, self.identity(role, name), folder, now=now, lifetime_s=lifetime_s, force=True)
        return TlsFiles.in_folder(folder)

    def forge(self, *uris: str, names: x509.ExtensionType | None = None) -> TlsFiles:
        """Return files of a certificate that the true authority signed but would never issue."""
        ca_key = load_key_pem((self.folder / "ca" / "ca.key").read_bytes(), "ca")
        ca = x509.load_pem_x509_certificate(self.authority.certificate_pem)
        key = make_key()
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "forged")]))
            .issuer_name(ca.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(hours=1))
        )
        if uris:
            names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
        if names is not None:
            builder = builder.add_extension(names, critical=False)
        certificate = builder.sign(ca_key, hashes.SHA256())
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        folder = self.folder / f"forged-{certificate.serial_number:x}"
        write_identity(folder, key_pem(key), pem, self.authority.certificate_pem)
        return TlsFiles.in_folder(folder)

    async def start(self, *roles: Role, plaintext: bool = False, limits: Any = None, port: int = 0) -> int:
        """Serve the probe to `roles`."""
        rules = {f"/{PROBE.full_name}/{method.name}": frozenset(roles or (Role.ENVOY,)) for method in PROBE.methods}
        authority = Authority(HEART, rules, clock=self.clock, revoked=self.revoked, limits=limits)
        tls = None if plaintext else self.issue(Role.DIRECTOR, "director")
        self.server = RpcServer(authority, self.metrics, tls=tls, port=port)
        self.server.add_service(PROBE, self.service)
        self.port = await self.server.start()
        self._stack.push_async_callback(self.server.stop, 0)
        return self.port

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def server_name(self) -> str:
        return director_server_name(HEART)

    def stub(self, tls: TlsFiles | None, *, server_name: str = "", service: Any = PROBE, **options: Any) -> Stub:
        channel = open_channel(self.address, server_name=server_name or self.server_name, tls=tls)
        return self.stub_over(channel, service=service, **options)

    def stub_over(self, channel: grpc.aio.Channel, *, service: Any = PROBE, **options: Any) -> Stub:
        self._stack.push_async_callback(channel.close)
        return Stub(channel, service, **options)

    def channel_with(self, root: bytes, key: bytes | None = None, certificate: bytes | None = None) -> Any:
        """Open a channel that our own client would refuse to open."""
        channel = grpc.aio.secure_channel(
            self.address,
            grpc.ssl_channel_credentials(root, key, certificate),
            options=(("grpc.ssl_target_name_override", self.server_name), ("grpc.enable_http_proxy", 0)),
        )
        self._stack.push_async_callback(channel.close)
        return channel

    def refused(self, refusal: CallRefusal) -> float:
        found = self.metrics.registry.get_sample_value("federation_refused_calls_total", {"reason": refusal.value})
        return found or 0.0


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with AsyncExitStack() as stack:
        yield Lab(tmp_path, stack)


@pytest.fixture
async def hall(lab: Lab) -> AsyncIterator[Hall]:
    made = Hall(lab)
    await made.server.start([0])
    yield made
    await made.server.stop()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("line")]

"""A server of lines by itself, and those who dial it."""

from __future__ import annotations

import asyncio
import os
import ssl
from contextlib import suppress
from typing import Any

import pytest

from federation.names import FederationName, Role
from federation.transport import lines
from federation.transport.authority import Authority, CallRefusal, Peer
from federation.transport.bulk import BulkServer, Ticket
from federation.transport.credentials import TlsFiles, read_certificate
from federation.transport.lines import BulkAddress, Line, LineRefusedError, carried

METHOD = "/probe.v1.Probe/Talk"
ENOUGH = lines.LEAST_BYTES + 1


class Hall:
    """One server of lines, those who dial it, and what it counted."""

    def __init__(self, lab: Any) -> None:
        self.lab = lab
        authority = Authority(FederationName("heart"), {METHOD: frozenset({Role.ENVOY})}, clock=lab.clock)
        authority.revoked = lab.revoked
        self._authority = authority
        self.server = self.made("127.0.0.1")

    def made(self, host: str, **changes: Any) -> BulkServer:
        tls = self.lab.issue(Role.DIRECTOR, "director")
        return BulkServer(self._authority, METHOD, self.lab.metrics, **{"tls": tls, "host": host, **changes})

    def address(self, tls: TlsFiles, host: str = "127.0.0.1", server: BulkServer | None = None) -> BulkAddress:
        return BulkAddress(host, (server or self.server).port, server_name=self.lab.server_name, tls=tls)

    def peer(self, tls: TlsFiles) -> Peer:
        facts = read_certificate(tls.certificate.read_bytes())
        return Peer(
            identity=facts.identity, expires_at=facts.expires_at, serial=facts.serial, fingerprint=facts.fingerprint
        )

    async def dial(self, address: BulkAddress, ticket: bytes, nbytes: int = ENOUGH) -> Line:
        """Return the site's end of a line; a thread of its own dials it."""
        line = Line()
        try:
            await carried(line, lambda: address.dial(line, ticket, nbytes))
        except BaseException:
            line.close()
            raise
        return line

    async def refused(self, address: BulkAddress, ticket: bytes, nbytes: int = ENOUGH) -> None:
        with pytest.raises(LineRefusedError, match="refused the line"):
            await self.dial(address, ticket, nbytes)

    async def reached(self, address: BulkAddress, ticket: Ticket) -> None:
        """Check that a ticket still gets its line."""
        line = await self.dial(address, ticket.id, ticket.nbytes)
        assert ticket.has_line
        line.close()

    async def stranger(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.server.port)

    async def settled(self) -> None:
        """Return once all who dialled so far are through or shut out."""
        tls = self.lab.issue(Role.ENVOY, "last")
        with self.server.issue(self.peer(tls), ENOUGH) as ticket:
            assert ticket is not None
            await self.reached(self.address(tls), ticket)
        if self.server._greetings:
            await asyncio.wait(self.server._greetings)
        await asyncio.sleep(0)

    def counted(self) -> dict[str, float]:
        """What was refused so far, by reason."""
        found = {refusal.value: self.lab.refused(refusal) for refusal in CallRefusal}
        return {reason: count for reason, count in found.items() if count}


def python_context(tls: TlsFiles, alpn: str) -> ssl.SSLContext:
    """Return Python's own TLS for a client with these files: lines are to be understood by more than ourselves."""
    context = ssl.create_default_context(cafile=tls.authority)
    context.set_alpn_protocols([alpn])
    context.load_cert_chain(tls.certificate, tls.key)
    return context


def open_files() -> set[str]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
    return {each for each in found if "socket" in each or "memfd" in each}

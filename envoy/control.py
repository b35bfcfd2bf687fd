"""The envoy's local socket: collaborators report here, and the owner's command line asks here.

Who may connect is decided by the kernel and the file's mode: the same user or root. A connection's first line says
which of the two it is: ``hello`` from a collaborator opens a line that stays; ``list``, ``approve`` and ``refuse`` are
answered once.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Protocol

from federation.collaborator import local_socket
from federation.errors import FederationError, MalformedMessageError, TransportError

if TYPE_CHECKING:
    from pathlib import Path

    from envoy.spawning import Collaborators

_log = logging.getLogger(__name__)


class Owner(Protocol):
    """What the command line may ask of the envoy."""

    def listing(self) -> list[dict[str, Any]]:
        """Every experiment this site knows, oldest first."""

    async def approve(self, experiment: str, *, pin: bool) -> str:
        """Approve what waits; return a sentence."""

    async def refuse(self, experiment: str, reason: str) -> str:
        """Refuse what waits; return a sentence."""

    def heard(self, experiment: str, status: dict[str, Any]) -> None:
        """A collaborator said how it goes."""


class ControlSocket:
    """Listens at one path.

    Args:
        path: the socket.
        owner: who decides.
        collaborators: whose lines end here.
    """

    def __init__(self, path: Path, owner: Owner, collaborators: Collaborators) -> None:
        self._path = path
        self._owner = owner
        self._collaborators = collaborators
        self._server: local_socket.LineServer | None = None

    async def start(self) -> None:
        """Begin to listen.

        Raises:
            ConfigurationError: another envoy listens there, or the folder cannot be written.
        """
        self._server = await local_socket.serve(self._path, self._serve)

    async def stop(self) -> None:
        """Close the socket and every line."""
        if self._server is not None:
            server, self._server = self._server, None
            await server.close()
            self._path.unlink(missing_ok=True)

    async def _serve(self, stream: local_socket.LineStream) -> None:
        try:
            first = await stream.receive()
            if first is None:
                return
            if first["type"] == "hello":
                await self._listen(stream, first)
            else:
                await stream.send(await self._answer(first))
        except (MalformedMessageError, TransportError) as error:
            _log.warning("a local connection ended: %s", error)

    async def _listen(self, stream: local_socket.LineStream, hello: dict[str, Any]) -> None:
        experiment = str(hello.get("experiment", ""))
        collaborator = self._collaborators.get(experiment)
        if collaborator is None:
            # One that a predecessor started and that is not wanted any more: it is told so and goes.
            await stream.send({"type": "stop", "reason": "this envoy does not take part in it", "drain": False})
            return
        collaborator.connected(stream, str(hello.get("metrics_address", "")))
        try:
            await collaborator.certificate_renewed()  # it may have been while nobody was here to say so
            while (message := await stream.receive()) is not None:
                if message["type"] != "status":
                    raise MalformedMessageError(f"a collaborator sent a line of type {message['type'][:80]!r}")
                self._owner.heard(experiment, message)
        finally:
            collaborator.disconnected(stream)

    async def _answer(self, message: dict[str, Any]) -> dict[str, Any]:
        kind, experiment = message["type"], str(message.get("experiment", ""))
        try:
            if kind == "list":
                return {"type": "listing", "experiments": self._owner.listing()}
            if kind == "approve":
                text = await self._owner.approve(experiment, pin=message.get("pin") is True)
            elif kind == "refuse":
                text = await self._owner.refuse(experiment, str(message.get("reason", "")))
            else:
                raise MalformedMessageError(f"the envoy knows no request {kind[:80]!r}")
        except FederationError as error:
            return {"type": "error", "text": str(error)}
        return {"type": "done", "text": text}

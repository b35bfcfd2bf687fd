"""What tests of calls do first and last."""

from __future__ import annotations

from typing import Any

from federation.names import Role


async def connect(lab: Any, name: str = "north") -> Any:
    if not lab.port:
        await lab.start(Role.ENVOY)
    return lab.stub(lab.issue(Role.ENVOY, name))


async def ended(lab: Any) -> None:
    """Wait until the server has cleaned up a stream."""
    await lab.service.cleaned.wait()
    lab.service.cleaned.clear()


async def call(stub: Any, method: str, lab: Any) -> Any:
    """Call `method` of whatever kind, and return its first reply."""
    if method == "Echo":
        return await stub.unary(method, lab.chunk())
    if method == "Follow":
        return await stub.server_stream(method, lab.chunk()).read()
    if method == "Collect":
        return await stub.client_stream(method, [lab.chunk()])
    return await stub.bidi(method).read()

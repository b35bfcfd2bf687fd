"""The ``director`` command as a process of its own, and whoever dials it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from director.service import DESCRIPTOR
from federation.names import Role, director_server_name
from federation.transport.channels import open_channel
from federation.transport.methods import Stub
from federation.v1 import director_pb2 as pb
from federation.wire.versions import PROTOCOL

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

WAIT_S = 60.0
DYING = Path(__file__).with_name("dying_director.py")


@dataclass
class DirectorProcess:
    """A director started from its configuration file."""

    process: asyncio.subprocess.Process
    address: str
    log: Path

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    async def end(self, number: int) -> int:
        self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), WAIT_S)


@contextlib.asynccontextmanager
async def director_process(config: Path, dies: str = "") -> AsyncIterator[DirectorProcess]:
    """Start one; with `dies`, one that does not outlive that instant of a release (`dying_director`)."""
    folder, log = config.parent, config.parent / "director.log"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready, log.open("ab") as output:
        ready.setblocking(False)
        name = f"\0director-test-{os.getpid()}-{id(ready)}"
        ready.bind(name)
        environment = {**os.environ, "NOTIFY_SOCKET": "@" + name[1:]}
        program = (str(DYING), dies) if dies else ("-m", "director")
        argv = (sys.executable, *program, "--config", str(config))
        process = await asyncio.create_subprocess_exec(*argv, env=environment, stdout=output, stderr=output, cwd=folder)
        try:
            async with asyncio.timeout(WAIT_S):
                text = (await asyncio.get_running_loop().sock_recv(ready, 4096)).decode()
            facts = dict(line.split("=", 1) for line in text.splitlines())
            yield DirectorProcess(process, facts["X_ADDRESS"], log)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


def keep_port(config: Path, port: int) -> None:
    """Have the next director of this configuration listen where the last one did."""
    config.write_text(config.read_text().replace("port = 0", f"port = {port}"))


@dataclass
class People:
    """Dials whichever director runs now, as anybody."""

    pki: Any
    port: int

    @contextlib.asynccontextmanager
    async def stub(self, role: Role, name: str) -> AsyncIterator[Stub]:
        tls = self.pki.issue(role, name)
        address, server_name = f"127.0.0.1:{self.port}", director_server_name("test")
        async with open_channel(address, server_name=server_name, tls=tls) as channel:
            yield Stub(channel, DESCRIPTOR, timeout_s=WAIT_S)


async def next_assignment(call: Any) -> pb.Assignment:
    async with asyncio.timeout(WAIT_S):
        while True:
            message = await call.read()
            if message.WhichOneof("message") == "assignment":
                return message.assignment


async def attend(stub: Stub, make_shard: Any) -> Any:
    call = stub.bidi("Attend")
    hello = pb.EnvoyHello()
    hello.protocol.lowest = hello.protocol.highest = PROTOCOL.highest
    await call.write(pb.AttendRequest(hello=hello))
    await call.write(pb.AttendRequest(offers=pb.ShardOffers(shards=[make_shard()])))
    return call

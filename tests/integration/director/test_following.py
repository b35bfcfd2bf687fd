"""`federation logs --follow` and `watch` while the director is killed and started again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from federation.client.exits import Exit
from federation.names import Role
from federation.v1 import director_pb2 as pb

from .processes import WAIT_S, DirectorProcess, People, attend, director_process, keep_port, next_assignment

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@dataclass
class Command:
    """The ``federation`` command as a process, read line by line."""

    process: asyncio.subprocess.Process

    async def out(self) -> str:
        assert self.process.stdout is not None
        return (await asyncio.wait_for(self.process.stdout.readline(), WAIT_S)).decode().rstrip("\n")

    async def err(self) -> str:
        assert self.process.stderr is not None
        return (await asyncio.wait_for(self.process.stderr.readline(), WAIT_S)).decode().rstrip("\n")

    async def end(self) -> tuple[int, str, str]:
        """Return its exit code, and what it still said on either stream."""
        out, err = await asyncio.wait_for(self.process.communicate(), WAIT_S)
        return self.process.returncode or 0, out.decode(), err.decode()


@contextlib.asynccontextmanager
async def federation_command(*arguments: str) -> AsyncIterator[Command]:
    pipe = asyncio.subprocess.PIPE
    # Whoever started the tests may have had SIGINT ignored, which a child inherits.
    script = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from federation.client.command import main; main()"
    )
    argv = (sys.executable, "-c", script, *arguments)
    process = await asyncio.create_subprocess_exec(*argv, stdout=pipe, stderr=pipe)
    try:
        yield Command(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


AWAY = "federation: the director is away; it is waited for, 5 minutes at most"


@contextlib.asynccontextmanager
async def running(
    config: Path, pki: Any, make_package: Any, make_shard: Any
) -> AsyncIterator[tuple[DirectorProcess, str, tuple[str, ...]]]:
    """Run a director with an experiment that site north takes part in; yields it, the id, and what a command is told.

    The site has released two lines.
    """
    async with director_process(config) as director:
        keep_port(config, director.port)
        people, folder = People(pki, director.port), pki.issue(Role.USER, "alice").certificate.parent
        (folder / "client.toml").write_text(f'federation = "test"\naddress = "127.0.0.1:{director.port}"\n')
        async with people.stub(Role.ENVOY, "north") as envoy, people.stub(Role.USER, "alice") as alice:
            call = await attend(envoy, make_shard)
            experiment = (await alice.client_stream("Submit", make_package().requests())).experiment
            await next_assignment(call)
            accepted = pb.AssignmentAnswer(experiment=experiment, answer=pb.AssignmentAnswer.ANSWER_ACCEPTED)
            await call.write(pb.AttendRequest(answer=accepted))
            await release(call, experiment, "one", "two")
            yield director, experiment, (experiment, "--profile", str(folder))


async def release(call: Any, experiment: str, *lines: str) -> None:
    await call.write(pb.AttendRequest(logs=pb.ReleasedLogs(experiment=experiment, lines=lines)))


async def test_whoever_follows_goes_on_after_a_kill_without_losing_or_repeating_a_line(
    config: Path, pki: Any, make_package: Any, make_shard: Any
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        async with running(config, pki, make_package, make_shard) as (director, experiment, where):
            logs = await stack.enter_async_context(federation_command("logs", "--site", "north", "--follow", *where))
            watch = await stack.enter_async_context(federation_command("watch", "--json", *where))
            assert [await logs.out(), await logs.out()] == ["one", "two"]
            seen = [json.loads(await watch.out())]
            assert await director.end(signal.SIGKILL) == -signal.SIGKILL
        assert [await logs.err(), await watch.err()] == [AWAY, AWAY]

        async with director_process(config):
            people = People(pki, director.port)
            async with people.stub(Role.ENVOY, "north") as envoy, people.stub(Role.USER, "alice") as alice:
                call = await attend(envoy, make_shard)
                await release(call, experiment, "three")
                assert await logs.out() == "three"
                await release(call, experiment, "four")
                assert await logs.out() == "four"
                await alice.unary("CancelExperiment", pb.CancelExperimentRequest(experiment=experiment))
                assert await logs.end() == (0, "", "")
                code, out, err = await watch.end()
                assert (code, err) == (Exit.EXPERIMENT_CANCELLED, "")
                seen += [json.loads(line) for line in out.splitlines()]
                request = pb.WatchExperimentRequest(experiment=experiment)
                async with asyncio.timeout(WAIT_S), alice.server_stream("WatchExperiment", request) as events:
                    assert [event["sequence"] for event in seen] == [event.sequence async for event in events]


async def test_a_stopped_command_ends_its_stream_and_says_that_what_runs_goes_on(
    config: Path, pki: Any, make_package: Any, make_shard: Any
) -> None:
    async with running(config, pki, make_package, make_shard) as (_, _, where):
        for number, code in ((signal.SIGINT, Exit.INTERRUPTED), (signal.SIGTERM, 128 + signal.SIGTERM)):
            async with (
                federation_command("logs", "--site", "north", "--follow", *where) as logs,
                federation_command("watch", "--json", *where) as watch,
            ):
                assert [await logs.out(), await logs.out()] == ["one", "two"]
                await watch.out()
                for command in (logs, watch):
                    command.process.send_signal(number)
                    ended, _, said = await command.end()
                    assert (ended, said) == (code, "federation: interrupted; what runs elsewhere goes on\n")

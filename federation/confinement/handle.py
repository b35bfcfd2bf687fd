"""A trainer as its owner sees it: start it, give it orders one at a time, learn how it ended.

Rules:

1. Orders are numbered from 1 and strictly sequential; each has a deadline if its caller gives one.
2. Experiment code that fails is a `TaskError` with the class it raised; the trainer lives on.
3. A trainer that dies (``TrainerDied``), breaks the protocol (``TrainerProtocol``) or misses its deadline
   (``TrainerTimeout``) is a `TaskError` too, and is dead afterwards: make a new handle.
4. Cancelling an order kills the trainer, since experiment code cannot be interrupted politely.
5. What a trainer printed stays in its log, and its end in ours; never in `TaskError.traceback`, which a policy may
   release without releasing logs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from federation.confinement import answers
from federation.confinement.interpreter import examine
from federation.confinement.sandbox import Confinement, Sandbox, SandboxMode
from federation.errors import MalformedMessageError, TaskError
from federation.runtime import children, framing
from federation.runtime.room import refusal
from federation.v1 import trainer_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

    from federation.runtime.records import ExitStatus

_log = logging.getLogger(__name__)
_LAST_WORDS_S = 5.0
"""How long a trainer that closed its socket may take to end by itself, seconds: bubblewrap passes its status on."""
_LOG_TAIL_BYTES = 4000


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerSettings:
    """How to start one trainer; every path absolute.

    Attributes:
        name: for logs and errors, such as ``"trainer of exp-1"``.
        folder: where its identity lies; not visible to it.
        log: file its output is appended to; not visible to it.
        workspace: its own folder and home, kept between runs; made if missing.
        exchange: folder for tensors shared with its owner, writable; made if missing.
        bundle: unpacked experiment; None to describe shards only.
        readable: what shards read.
        hidden: keys and state it must never see.
        python_path: folders to import shard factories from.
        devices: device files it may use.
        interpreter: Python to run it with.
        sandbox: whether it must be sandboxed.
        limits: what it may use of the machine.
        threads: of OpenMP and BLAS.
        program: interpreter arguments; ``--socket-fd N`` is appended.
    """

    name: str
    folder: Path
    log: Path
    workspace: Path
    exchange: Path | None = None
    bundle: Path | None = None
    readable: tuple[Path, ...] = ()
    hidden: tuple[Path, ...] = ()
    python_path: tuple[Path, ...] = ()
    devices: tuple[Path, ...] = ()
    interpreter: Path = field(default_factory=lambda: Path(sys.executable))
    sandbox: SandboxMode = SandboxMode.AUTO
    limits: children.Limits = field(default_factory=children.Limits)
    threads: int = 1
    program: tuple[str, ...] = ("-P", "-m", "federation.trainer")


class TrainerHandle:
    """One trainer process, from start to end."""

    def __init__(self, settings: TrainerSettings) -> None:
        self.settings = settings
        self._turn = asyncio.Lock()
        self._orders = 0
        self._child: children.Child | None = None
        self._frames: framing.FrameStream | None = None
        self._sandbox = Sandbox(None, "not started")
        self._log_start = 0

    @property
    def is_alive(self) -> bool:
        """Whether it can take orders."""
        return self._child is not None and self._child.is_running and self._frames is not None

    @property
    def weakness(self) -> str:
        """What the trainer could do that it should not; empty if it is sandboxed."""
        return self._sandbox.describe_weakness()

    async def start(self) -> None:
        """Start the process; it loads nothing before its first order.

        Raises:
            ConfigurationError: interpreter, sandbox or paths are not usable.
            StorageError: folder or log cannot be written.
            RuntimeError: it was started before.
        """
        if self._child is not None:
            raise RuntimeError(f"{self.settings.name} was started before; make a new handle")
        settings = self.settings
        confinement = await asyncio.to_thread(self._prepare_confinement)
        if self.weakness and settings.sandbox is not SandboxMode.NONE:
            _log.warning("%s is not sandboxed: %s", settings.name, self.weakness)
        ours, theirs = socket.socketpair()
        try:
            arguments = [*settings.program, "--socket-fd", str(theirs.fileno())]
            self._child = await children.spawn(
                children.ChildSpec(
                    name=settings.name,
                    argv=self._sandbox.command(confinement, arguments),
                    env=self._sandbox.environment(confinement),
                    cwd=settings.workspace,
                    log=settings.log,
                    folder=settings.folder,
                    limits=settings.limits,
                    pass_fds=(theirs.fileno(),),
                    dies_with_parent=True,
                )
            )
            self._frames = await framing.open_frames(ours)
        except BaseException:
            ours.close()
            self.kill()
            raise
        finally:
            theirs.close()

    def _prepare_confinement(self) -> Confinement:
        settings = self.settings
        self._sandbox = Sandbox.choose(settings.sandbox)
        interpreter = examine(settings.interpreter, settings.python_path)
        writable = () if settings.exchange is None else (settings.exchange,)
        try:
            for folder in (settings.workspace, *writable):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._log_start = settings.log.stat().st_size if settings.log.exists() else 0
        except OSError as error:
            raise refusal(error, settings.log, f"or a folder of {settings.name} cannot be used") from error
        return Confinement(
            interpreter=interpreter,
            workspace=settings.workspace,
            writable=writable,
            bundle=settings.bundle,
            readable=settings.readable,
            hidden=(*settings.hidden, settings.folder, settings.log),
            python_path=settings.python_path,
            devices=settings.devices,
            threads=settings.threads,
        )

    async def describe(
        self, shards: Sequence[trainer_pb2.ShardConfig], *, timeout_s: float | None
    ) -> trainer_pb2.ShardDescriptions:
        """Load shard factories and return what they give; a factory that fails is a description with its error class.

        Raises:
            TaskError: see the module's rules 2 and 3; so for every order.
        """
        order = trainer_pb2.TrainerOrder(describe=trainer_pb2.DescribeShards(shards=shards))
        answer = await self._ask(order, "described", timeout_s)
        try:
            answers.check_descriptions(answer.described, [shard.name for shard in shards])
        except MalformedMessageError as error:
            raise await self._break("TrainerProtocol", str(error)) from error
        return answer.described

    async def prepare(
        self, order: trainer_pb2.PrepareTrainer, *, timeout_s: float | None
    ) -> trainer_pb2.TrainerPrepared:
        """Load bundle, shards and model."""
        return (await self._ask(trainer_pb2.TrainerOrder(prepare=order), "prepared", timeout_s)).prepared

    async def train(self, order: trainer_pb2.RunTraining, *, timeout_s: float | None) -> trainer_pb2.TrainingDone:
        """Train one round; the files the order names are written when this returns."""
        return (await self._ask(trainer_pb2.TrainerOrder(train=order), "trained", timeout_s)).trained

    async def evaluate(
        self, order: trainer_pb2.RunEvaluation, *, timeout_s: float | None
    ) -> trainer_pb2.EvaluationDone:
        """Evaluate one model on the validation data."""
        return (await self._ask(trainer_pb2.TrainerOrder(evaluate=order), "evaluated", timeout_s)).evaluated

    async def keep(self, round_number: int, *, counted: bool, attempt: int = 0, timeout_s: float | None = 60.0) -> None:
        """Promote the local state of a round that counted, or drop it."""
        message = trainer_pb2.KeepState(round=round_number, attempt=attempt, counted=counted)
        await self._ask(trainer_pb2.TrainerOrder(keep=message), "done", timeout_s)

    async def end(self, grace_s: float = 10.0) -> ExitStatus:
        """Let it finish, or stop it if it has not after `grace_s` seconds; return how it ended. May be called again.

        Raises:
            RuntimeError: it was never started.
        """
        child = self._started()
        try:
            async with asyncio.timeout(grace_s):
                if self.is_alive:
                    with contextlib.suppress(TaskError):
                        await self._ask(trainer_pb2.TrainerOrder(end=trainer_pb2.EndTrainer()), "done", None)
                self._close()
                return await child.wait()
        except TimeoutError:
            return await child.stop(1.0)
        finally:
            self._close()

    async def exited(self) -> ExitStatus:
        """Return how it ended, once it has."""
        return await self._started().wait()

    def kill(self) -> None:
        """End it at once; nothing if it has ended or never started."""
        self._close()
        if self._child is not None:
            self._child.kill()

    async def _ask(
        self, order: trainer_pb2.TrainerOrder, kind: str, timeout_s: float | None
    ) -> trainer_pb2.TrainerAnswer:
        self._started()
        async with self._turn:
            self._orders += 1
            order.order = self._orders
            try:
                async with asyncio.timeout(timeout_s):
                    answer = await self._exchange(order)
                if answer is not None:
                    answers.check_answer(answer, order.order, kind)
                    return answer
            except TimeoutError as error:
                raise await self._break("TrainerTimeout", f"no answer within {timeout_s} s") from error
            except MalformedMessageError as error:
                raise await self._break("TrainerProtocol", str(error)) from error
            except asyncio.CancelledError:
                self.kill()
                raise
            raise await self._died()

    async def _exchange(self, order: trainer_pb2.TrainerOrder) -> trainer_pb2.TrainerAnswer | None:
        if self._frames is None:
            return None
        try:
            await self._frames.send(order)
            return await self._frames.receive(trainer_pb2.TrainerAnswer)
        except ConnectionError:
            return None

    async def _break(self, error_class: str, text: str) -> TaskError:
        """Kill it and return the error that says why."""
        self.kill()
        await self._started().wait()
        await self._log_last_words(text)
        return TaskError(error_class, traceback=f"{self.settings.name}: {text}")

    async def _died(self) -> TaskError:
        """Return the error of a trainer whose socket is closed, which is killed if it lives on without."""
        self._close()
        child = self._started()
        try:
            status = await asyncio.wait_for(child.wait(), _LAST_WORDS_S)
        except TimeoutError:
            child.kill()
            status = await child.wait()
        except asyncio.CancelledError:
            child.kill()
            raise
        text = self._describe(status)
        await self._log_last_words(text)
        return TaskError("TrainerDied", traceback=f"{self.settings.name} {text}")

    def _describe(self, status: ExitStatus) -> str:
        # Bubblewrap, as a shell does, reports a child that a signal ended as 128 + its number.
        if self._sandbox.is_confined and status.code is not None and status.code > 128:
            with contextlib.suppress(ValueError):
                return f"ended by {signal.Signals(status.code - 128).name} in its sandbox"
        return str(status)

    async def _log_last_words(self, text: str) -> None:
        _log.error("%s: %s; the last it printed:\n%s", self.settings.name, text, await self._log_tail())

    async def _log_tail(self) -> str:
        def read() -> bytes:
            with self.settings.log.open("rb") as file:
                size = file.seek(0, 2)
                file.seek(max(self._log_start, size - _LOG_TAIL_BYTES))
                return file.read()

        try:
            return (await asyncio.to_thread(read)).decode(errors="replace")
        except OSError as error:
            return f"(its log cannot be read: {error})"

    def _started(self) -> children.Child:
        if self._child is None:
            raise RuntimeError(f"{self.settings.name} was never started")
        return self._child

    def _close(self) -> None:
        if self._frames is not None:
            frames, self._frames = self._frames, None
            frames.close()

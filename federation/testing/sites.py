"""Scripted sites: collaborators without envoy, trainer or disk that speak the real protocol over real mutual TLS.

A `ScriptedSite` does one thing at a time, as a test says, and can break every rule on the way. `HonestSite` runs a
whole experiment by itself: its data is one number per parameter, training moves the model halfway there, and the loss
is the mean squared distance, so what a federation of them must arrive at is known exactly. `LyingSite`, `LateSite` and
`VanishingSite` are honest but for one thing.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

import numpy as np

from federation.compression import encode_payload, load_codec
from federation.errors import FederationError, TransportError, UpdateRejectedError
from federation.names import Identity, Role, aggregator_server_name
from federation.storage.memory import MemoryBytes, MemoryModel, MemoryWriter
from federation.storage.steps import apply_step
from federation.tensors import pack, unpack
from federation.tensors.digest import payload_digest
from federation.transport.channels import open_channel
from federation.transport.methods import Stub
from federation.v1 import aggregator_pb2 as pb
from federation.v1 import tensors_pb2
from federation.wire.chunks import checksum
from federation.wire.payloads import BUFFERS, DELTA, IDENTITY_CODEC, MODEL, OPTIMIZER, STEP
from federation.wire.versions import range_to_proto

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

    from federation.names import Digest, ExperimentId, FederationName, SiteName
    from federation.plan import ExperimentSpec, PayloadPlan
    from federation.transport.credentials import TlsFiles
    from federation.transport.methods import BidiCall

Arrays = dict[str, "npt.NDArray[Any]"]
_SERVICE = pb.DESCRIPTOR.services_by_name["Aggregator"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """Where an experiment's sites meet: `address` of its aggregator, and what they must know to be let in."""

    address: str
    federation: FederationName
    experiment: ExperimentId
    spec: ExperimentSpec
    spec_digest: Digest


class Finished(Exception):
    """The aggregator said that the experiment is over.

    Attributes:
        outcome: as it said.
    """

    def __init__(self, finish: pb.Finish) -> None:
        super().__init__(f"{finish.outcome}: {finish.reason}")
        self.outcome = finish.outcome


class ScriptedSite:
    """A site that does what a test says, step by step; an asynchronous context manager.

    Args:
        name: site name; must be the certificate's to be let in.
        meeting: where to go.
        tls: the site's certificate files; None towards a plaintext server.
        train_examples: what it says it has.
        validation_examples: likewise.

    Attributes:
        welcome: the last session's welcome.
        verdicts: every verdict heard.
        trained: rounds it was asked to train, in order, repeats included.
        pulled_bytes: payload bytes fetched by PullModel.
        steps: models made by a step.
    """

    def __init__(
        self,
        name: SiteName,
        meeting: Meeting,
        tls: TlsFiles | None,
        *,
        train_examples: int = 100,
        validation_examples: int = 50,
    ) -> None:
        self.name = name
        self.meeting = meeting
        self.verdicts: list[pb.Verdict] = []
        self.trained: list[int] = []
        self.pulled_bytes = 0
        self.steps = 0
        self.welcome = pb.SessionWelcome()
        self.pending: pb.PendingUpdate | None = None
        self._tls = tls
        self._train_examples = train_examples
        self._validation_examples = validation_examples
        self._held: dict[bytes, bytes] = {}
        self._session: BidiCall | None = None
        server_name = aggregator_server_name(meeting.federation, meeting.experiment)
        self._channel = open_channel(meeting.address, server_name=server_name, tls=tls)
        identity = Identity(federation=meeting.federation, role=Role.ENVOY, name=name)
        self.stub = Stub(self._channel, _SERVICE, identity=identity if tls is None else None)

    async def __aenter__(self) -> ScriptedSite:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.vanish()

    async def vanish(self) -> None:
        """Be gone, without a word."""
        if self._session is not None:
            self._session.cancel()
            self._session = None
        await self._channel.close()

    async def cut(self) -> None:
        """Lose the session alone; the site may connect again."""
        if self._session is not None:
            self._session.cancel()
            self._session = None

    async def connect(self, change: Callable[[pb.SiteHello], None] | None = None) -> pb.SessionWelcome:
        """Begin a session, and return its welcome.

        Args:
            change: spoils the hello.
        """
        hello = pb.SiteHello(
            protocol=range_to_proto(), experiment=self.meeting.experiment, plan_digest=self.meeting.spec_digest
        )
        if self.pending is not None:
            hello.pending.CopyFrom(self.pending)
        if change is not None:
            change(hello)
        self._session = self.stub.bidi("Participate")
        await self._session.write(pb.ParticipateRequest(hello=hello))
        reply = await self._session.read()
        if reply is None:
            raise TransportError("the session ended before its welcome")
        self.welcome = reply.welcome
        return self.welcome

    async def ready(self) -> None:
        """Say that tasks may come."""
        ready = pb.SiteReady(train_examples=self._train_examples, validation_examples=self._validation_examples)
        await self.say(pb.ParticipateRequest(ready=ready))

    async def say(self, request: pb.ParticipateRequest) -> None:
        """Send anything in the session."""
        await self._open_session.write(request)

    async def hear(self) -> pb.ParticipateReply:
        """Return the next message of the session; verdicts are remembered too.

        Raises:
            TransportError: the session ended.
        """
        reply = await self._open_session.read()
        if reply is None:
            raise TransportError("the session ended")
        verdict = reply.task.verdict if reply.HasField("task") else reply.verdict
        if verdict.round:  # absent otherwise: rounds count from 1
            self.verdicts.append(verdict)
            self.pending = None
        return reply  # type: ignore[no-any-return]

    async def next_task(self) -> pb.Task:
        """Return the next task, passing over verdicts.

        Raises:
            Finished: the experiment is over.
        """
        while True:
            reply = await self.hear()
            if reply.HasField("finish"):
                raise Finished(reply.finish)
            if reply.HasField("task"):
                if reply.task.kind == pb.TASK_KIND_TRAIN:
                    self.trained.append(reply.task.round)
                return reply.task

    async def load(self, task: pb.Task, index: int = 0) -> bytes:
        """Return a payload of a task: held already, made by the task's step, inside the task, or pulled."""
        payload, inline = task.payloads[index], {part.digest: part.data for part in task.inline}
        if payload.name == MODEL and payload.digest not in self._held and payload.digest not in inline:
            offered = {each.name: each for each in task.payloads}
            if STEP in offered and offered[STEP].from_digest in self._held:
                held = self._held[offered[STEP].from_digest]
                step = await self.fetch(offered[STEP], inline)
                buffers = await self.fetch(offered[BUFFERS], inline) if BUFFERS in offered else b""
                self._held = {payload.digest: self._step(held, step, buffers)}
                self.steps += 1
        return await self.fetch(payload, inline)

    def _step(self, held: bytes, step: bytes, buffers: bytes) -> bytes:
        """Return the model that a step leads to."""
        schema = self.meeting.spec.schema_
        data = bytearray(schema.federated.nbytes)
        apply_step(
            held=MemoryModel(schema.federated, held),
            step=MemoryBytes(step),
            buffers=MemoryBytes(buffers),
            downlink=self.meeting.spec.plan.downlink,
            writer=MemoryWriter(schema.federated, data),
        )
        return bytes(data)

    async def fetch(self, payload: tensors_pb2.PayloadDescriptor, inline: Mapping[bytes, bytes]) -> bytes:
        """Return a payload's bytes, checked against its digest."""
        if payload.digest not in self._held:
            data = inline.get(payload.digest)
            if data is None:
                data = await self.pull(payload)
            if payload_digest(data) != payload.digest:
                raise TransportError(f"payload {payload.name} is not what its digest says")
            self._held = {payload.digest: data}
        return self._held[payload.digest]

    async def pull(self, payload: tensors_pb2.PayloadDescriptor, offset: int = 0) -> bytes:
        """Return a payload's bytes from an offset on."""
        request = pb.PullModelRequest(experiment=self.meeting.experiment, digest=payload.digest, offset=offset)
        pieces = []
        async with self.stub.server_stream("PullModel", request) as replies:
            async for reply in replies:
                if checksum(reply.chunk.data) != reply.chunk.crc32c or reply.chunk.offset != offset:
                    raise TransportError("a chunk is damaged or out of order")
                pieces.append(reply.chunk.data)
                offset += len(reply.chunk.data)
                self.pulled_bytes += len(reply.chunk.data)
        return b"".join(pieces)

    def header(self, task: pb.Task, payloads: Mapping[str, bytes], metrics: Mapping[str, float]) -> pb.UpdateHeader:
        """Return an honest announcement of an update."""
        plans: dict[str, PayloadPlan] = {plan.name: plan for plan in self.meeting.spec.uploads()}
        return pb.UpdateHeader(
            experiment=self.meeting.experiment,
            attempt=task.attempt,
            epoch=self.welcome.epoch,
            round=task.round,
            payloads=[
                tensors_pb2.PayloadDescriptor(
                    name=name,
                    schema_digest=plans[name].schema.digest,
                    codec=plans[name].codec,
                    encoded_bytes=len(data),
                )
                for name, data in payloads.items()
            ],
            examples=self._train_examples,
            metrics=metrics,
            train_seconds=0.001,
            model_digest=task.payloads[0].digest,
            steps=1,
            update_id=os.urandom(16),
        )

    async def push(
        self,
        header: pb.UpdateHeader,
        payloads: Mapping[str, bytes],
        *,
        most_bytes: int | None = None,
        commit: bool = True,
        digests: list[bytes] | None = None,
        chunk_bytes: int = 1 << 20,
    ) -> pb.UpdateResult | pb.UpdateHolding:
        """Upload an update.

        Args:
            header: its announcement, honest or not.
            payloads: its bytes.
            most_bytes: stop after so many bytes of them.
            commit: whether to say that it is whole.
            digests: what to say they are; None: what they are.
            chunk_bytes: size of a piece.

        Returns:
            The result; the holding if that says that it was admitted before, or if there is no commit.

        Raises:
            FederationError: as the aggregator says.
        """
        self.pending = pb.PendingUpdate(round=header.round, attempt=header.attempt, update_id=header.update_id)
        call = self.stub.bidi("PushUpdate")
        try:
            await call.write(pb.PushUpdateRequest(header=header))
            reply = await call.read()
            if reply is None:
                raise TransportError("the upload ended without an answer")
            if reply.holding.admitted or (most_bytes == 0 and not commit):
                return reply.holding  # type: ignore[no-any-return]
            await self._send_chunks(call, list(payloads.values()), list(reply.holding.bytes), most_bytes, chunk_bytes)
            if not commit:
                return reply.holding  # type: ignore[no-any-return]
            said = digests or [payload_digest(data) for data in payloads.values()]
            await call.try_write(pb.PushUpdateRequest(commit=pb.UpdateCommit(digests=said)))
            await call.done_writing()
            result = await call.read()
            if result is None:
                raise TransportError("the upload ended without a result")
            return result.result  # type: ignore[no-any-return]
        finally:
            call.cancel()

    async def _send_chunks(
        self, call: BidiCall, payloads: list[bytes], held: list[int], most: int | None, chunk_bytes: int
    ) -> None:
        sent = 0
        for index, data in enumerate(payloads):
            for offset in range(held[index], len(data), chunk_bytes):
                piece = data[offset : offset + chunk_bytes]
                if most is not None and sent + len(piece) > most:
                    return
                chunk = tensors_pb2.Chunk(offset=offset, data=piece, crc32c=checksum(piece))
                if not await call.try_write(pb.PushUpdateRequest(chunk=pb.UpdateChunk(payload=index, chunk=chunk))):
                    return  # the server has said why; the caller reads it
                sent += len(piece)

    async def report(self, task: pb.Task, metrics: Mapping[str, float], examples: int | None = None) -> None:
        """Answer an evaluate task."""
        result = pb.EvaluationResult(
            round=task.round,
            epoch=task.epoch,
            metrics=metrics,
            examples=self._validation_examples if examples is None else examples,
            seconds=0.001,
            model_digest=task.payloads[0].digest,
        )
        await self.say(pb.ParticipateRequest(evaluated=result))

    async def fail(self, task: pb.Task, error_class: str = "ValueError", *, permanent: bool = False) -> None:
        """Say that a task could not be done."""
        failure = pb.TaskFailure(
            round=task.round, epoch=task.epoch, kind=task.kind, error_class=error_class, permanent=permanent
        )
        await self.say(pb.ParticipateRequest(failed=failure))

    @property
    def _open_session(self) -> BidiCall:
        if self._session is None:
            raise RuntimeError(f"{self.name} has no session: connect first")
        return self._session


class HonestSite(ScriptedSite):
    """A site whose data is one number: every parameter should be `target`.

    Args:
        target: what its data says.
        rest: as `ScriptedSite`.
    """

    def __init__(self, *rest: Any, target: float = 1.0, **options: Any) -> None:
        super().__init__(*rest, **options)
        self.target = target

    async def run(self) -> str:
        """Take part to the end, and return the outcome.

        Raises:
            FederationError: the session failed.
        """
        await self.connect()
        await self.ready()
        try:
            while True:
                await self.answer(await self.next_task())
        except Finished as end:
            return end.outcome

    async def answer(self, task: pb.Task) -> None:
        """Do one task."""
        model = unpack(self.meeting.spec.schema_.federated, await self.load(task))
        if task.kind == pb.TASK_KIND_EVALUATE:
            await self.report(task, {"loss": self.loss(model)})
        else:
            payloads = self.train(task, model)
            await self.send(task, self.header(task, payloads, {"loss": self.loss(model)}), payloads)

    async def send(self, task: pb.Task, header: pb.UpdateHeader, payloads: Mapping[str, bytes]) -> None:
        """Upload the update of a task."""
        await self.push(header, payloads)

    def loss(self, model: Arrays) -> float:
        """Mean squared distance of all float parameters from the target."""
        names = [spec.name for spec in self.meeting.spec.schema_.parameters]
        squares = [np.square(model[name].astype(np.float64) - self.target) for name in names]
        return float(np.mean(np.concatenate([part.ravel() for part in squares])))

    def train(self, task: pb.Task, model: Arrays) -> dict[str, bytes]:
        """Return the payloads of an update that goes halfway to the target."""
        schema = self.meeting.spec.schema_
        delta = {
            spec.name: ((self.target - model[spec.name].astype(np.float64)) / 2).astype(spec.dtype.numpy)
            for spec in schema.parameters
        }
        payloads = {str(DELTA): bytes(pack(schema.parameters, delta))}
        if schema.buffers.nbytes:
            values = {
                spec.name: model[spec.name] + np.ones((), dtype=spec.dtype.numpy) if spec.dtype.is_float
                else np.full(spec.shape, task.round, dtype=spec.dtype.numpy)
                for spec in schema.buffers
            }  # fmt: skip
            payloads[str(BUFFERS)] = bytes(pack(schema.buffers, values))
        if self.meeting.spec.optimizer_schema.nbytes:
            state = self.meeting.spec.optimizer_schema
            full = {spec.name: np.full(spec.shape, self.target, dtype=spec.dtype.numpy) for spec in state}
            payloads[str(OPTIMIZER)] = bytes(pack(state, full))
        return {str(plan.name): self._encoded(task, plan, payloads) for plan in self.meeting.spec.uploads()}

    def _encoded(self, task: pb.Task, plan: PayloadPlan, payloads: Mapping[str, bytes]) -> bytes:
        """Return a payload as it travels: a method's vectors are the change once more, its scalars are 1."""
        data = payloads.get(plan.name)
        if data is None:
            parameters = self.meeting.spec.schema_.parameters
            if plan.schema == parameters.widened:
                delta = unpack(parameters, payloads[DELTA])
                wide = {name: delta[name].astype(plan.schema[name].dtype.numpy) for name in delta}
                data = bytes(pack(plan.schema, wide))
            else:
                data = np.ones(len(plan.schema), dtype="<f8").tobytes()
        if plan.codec == IDENTITY_CODEC:
            return data
        return encode_payload(plan.schema, data, load_codec(plan.codec), seed=task.round)


class Lie(Enum):
    """What a `LyingSite` lies about."""

    NOT_FINITE = "not_finite"
    WRONG_SCHEMA = "wrong_schema"
    TRUNCATED = "truncated"
    MILLION_EXAMPLES = "examples"
    CLOSED_ROUND = "closed_round"
    STALE_EPOCH = "stale_epoch"
    WRONG_CODEC = "wrong_codec"
    WRONG_MODEL = "wrong_model"
    METRICS = "metrics"
    CORRUPT = "corrupt"


class LyingSite(HonestSite):
    """Lies once in every update, and evaluates honestly.

    Args:
        lie: about what.
        rest: as `HonestSite`.

    Attributes:
        refusals: what it was told, update by update.
    """

    def __init__(self, *rest: Any, lie: Lie, **options: Any) -> None:
        super().__init__(*rest, **options)
        self.lie = lie
        self.refusals: list[FederationError] = []

    async def send(self, task: pb.Task, header: pb.UpdateHeader, payloads: Mapping[str, bytes]) -> None:
        """Upload a lie, and remember what is said to it."""
        payloads = dict(payloads)
        most_bytes = None
        if self.lie is Lie.NOT_FINITE:
            size = len(payloads[DELTA])
            payloads[str(DELTA)] = np.full(size // 4, np.nan, dtype=np.float32).tobytes().ljust(size, b"\xff")
        elif self.lie is Lie.TRUNCATED:
            most_bytes = 0
        else:
            self._spoil(header)
        try:
            digests = [bytes(32) for _ in payloads] if self.lie is Lie.CORRUPT else None
            await self.push(header, payloads, most_bytes=most_bytes, digests=digests)
        except UpdateRejectedError as error:
            self.refusals.append(error)
            self.pending = None

    def _spoil(self, header: pb.UpdateHeader) -> None:
        if self.lie is Lie.WRONG_SCHEMA:
            header.payloads[0].schema_digest = bytes(32)
        elif self.lie is Lie.MILLION_EXAMPLES:
            header.examples = 1_000_000
        elif self.lie is Lie.CLOSED_ROUND:
            header.round += 1
        elif self.lie is Lie.STALE_EPOCH:
            header.epoch += 1
        elif self.lie is Lie.WRONG_CODEC:
            header.payloads[0].codec = "zip"
        elif self.lie is Lie.WRONG_MODEL:
            header.model_digest = bytes(32)
        elif self.lie is Lie.METRICS:
            header.metrics["loss"] = float("inf")


class LateSite(HonestSite):
    """Waits for `may_send` before each upload."""

    def __init__(self, *rest: Any, **options: Any) -> None:
        super().__init__(*rest, **options)
        self.asked = asyncio.Event()
        self.may_send = asyncio.Event()
        self.refusals: list[FederationError] = []

    async def send(self, task: pb.Task, header: pb.UpdateHeader, payloads: Mapping[str, bytes]) -> None:
        """Upload once it may; what is said to it is remembered."""
        self.asked.set()
        await self.may_send.wait()
        try:
            await self.push(header, payloads)
        except UpdateRejectedError as error:
            self.refusals.append(error)


class VanishingSite(HonestSite):
    """Is gone in the middle of its first upload, having sent `sent_bytes` of it."""

    def __init__(self, *rest: Any, sent_bytes: int = 0, **options: Any) -> None:
        super().__init__(*rest, **options)
        self.sent_bytes = sent_bytes

    async def run(self) -> str:
        """Take part until the first upload; the outcome is ``"vanished"``."""
        await self.connect()
        await self.ready()
        task = await self.next_task()
        payloads = self.train(task, unpack(self.meeting.spec.schema_.federated, await self.load(task)))
        await self.push(self.header(task, payloads, {}), payloads, most_bytes=self.sent_bytes, commit=False)
        await self.vanish()
        return "vanished"

"""A scripted site: a collaborator without envoy, trainer or disk that speaks the real protocol over real mutual TLS.

It does one thing at a time, as a test says, and can break every rule on the way. `honest_sites` has one that runs a
whole experiment by itself, `misbehaving_sites` those that are honest but for one thing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from federation.errors import TransportError
from federation.names import Identity, Role, aggregator_server_name
from federation.storage.memory import MemoryBytes, MemoryModel, MemoryWriter
from federation.storage.steps import apply_step
from federation.tensors.digest import payload_digest
from federation.transport.channels import open_channel
from federation.transport.methods import Stub
from federation.v1 import aggregator_pb2 as pb
from federation.v1 import tensors_pb2
from federation.wire.payloads import BUFFERS, MODEL, STEP
from federation.wire.versions import range_to_proto

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from federation.names import Digest, ExperimentId, FederationName, SiteName
    from federation.plan import ExperimentSpec, PayloadPlan
    from federation.transport.credentials import TlsFiles
    from federation.transport.methods import BidiCall

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
        tls: likewise.
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
        self.tls = tls
        self.verdicts: list[pb.Verdict] = []
        self.trained: list[int] = []
        self.pulled_bytes = 0
        self.steps = 0
        self.welcome = pb.SessionWelcome()
        self.pending: pb.PendingUpdate | None = None
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

    async def ready(self, *, at_work: pb.Task | None = None) -> None:
        """Say that tasks may come; `at_work`: the train task that the site is at meanwhile."""
        ready = pb.SiteReady(train_examples=self._train_examples, validation_examples=self._validation_examples)
        if at_work is not None:
            ready.work_round, ready.work_attempt = at_work.round, at_work.attempt
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
                if reply.chunk.offset != offset:
                    raise TransportError("a chunk is out of order")
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

    async def push_whole(
        self, header: pb.UpdateHeader, payloads: Mapping[str, bytes], *, digests: list[bytes] | None = None
    ) -> None:
        """Send an update through the session; arguments as `push`. Only a refusal is answered: `hear` it."""
        self.pending = pb.PendingUpdate(round=header.round, attempt=header.attempt, update_id=header.update_id)
        said = digests or [payload_digest(data) for data in payloads.values()]
        update = pb.WholeUpdate(header=header, payloads=payloads.values(), commit=pb.UpdateCommit(digests=said))
        await self.say(pb.ParticipateRequest(update=update))

    async def _send_chunks(
        self, call: BidiCall, payloads: list[bytes], held: list[int], most: int | None, chunk_bytes: int
    ) -> None:
        sent = 0
        for index, data in enumerate(payloads):
            for offset in range(held[index], len(data), chunk_bytes):
                piece = data[offset : offset + chunk_bytes]
                if most is not None and sent + len(piece) > most:
                    return
                chunk = tensors_pb2.Chunk(offset=offset, data=piece)
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

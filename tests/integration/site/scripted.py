"""The other side of a site: a real server of ours whose director and aggregator say what a test tells them to."""

from __future__ import annotations

import asyncio
import hashlib
import time
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from federation.errors import ConflictError, FederationError, LimitError, TransportError
from federation.names import Role
from federation.runtime.clock import SystemClock
from federation.telemetry.metrics import Metrics
from federation.tensors import unpack
from federation.tensors.digest import payload_digest
from federation.transport.authority import Authority
from federation.transport.handlers import method_path
from federation.transport.server import RpcServer
from federation.v1 import aggregator_pb2, director_pb2
from federation.wire import payloads
from federation.wire.chunks import ChunkReceiver, read_chunks
from federation.wire.payloads import Payload, payload_to_proto
from federation.wire.versions import PROTOCOL

from .trials import FEDERATION, WAIT_S

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

    import numpy as np

    from federation.plan import ExperimentSpec
    from federation.transport.calls import Call
    from federation.transport.credentials import TlsFiles

    from .trials import Trial


@dataclass
class _Session:
    """One end of a session: `heard` is what the peer said, None once it ended; `outbox` what is to be said."""

    call: Call
    heard: asyncio.Queue[Any] = field(default_factory=asyncio.Queue, kw_only=True)
    outbox: asyncio.Queue[Any] = field(default_factory=asyncio.Queue, kw_only=True)

    def cut(self) -> None:
        self.call.end(TransportError("the line was cut"))


S = TypeVar("S", bound=_Session)


class _Scripted(Generic[S]):
    """Whatever a service needs that a test does not script is refused.

    Attributes:
        epoch: of its welcomes.
        sessions: those that began and were not asked for yet.
        port: where it listens.
    """

    def __init__(self) -> None:
        self.epoch = 1
        self.port = 0
        self.sessions: asyncio.Queue[S] = asyncio.Queue()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def next_session(self) -> S:
        return await asyncio.wait_for(self.sessions.get(), WAIT_S)

    async def converse(self, session: S, requests: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
        """Keep what a peer says, and say what the test does, until either is done."""

        async def listen() -> None:
            async for request in requests:
                session.heard.put_nowait(request)
            session.heard.put_nowait(None)
            session.outbox.put_nowait(None)

        listening = asyncio.create_task(listen())
        self.sessions.put_nowait(session)
        try:
            while (reply := await session.outbox.get()) is not None:
                yield reply
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)

        async def refuse(_: Any, __: Any) -> Any:
            raise ConflictError(f"{name} is not scripted")

        return refuse


@dataclass
class SiteSession(_Session):
    """The aggregator's end of one collaborator's session."""

    epoch: int

    def send(self, **message: Any) -> None:
        self.outbox.put_nowait(aggregator_pb2.ParticipateReply(**message))

    async def hear(self, kind: str) -> Any:
        """Return the next message, which must be of this kind."""
        request = await asyncio.wait_for(self.heard.get(), WAIT_S)
        assert request is not None, f"the session ended, {kind} was expected"
        assert request.WhichOneof("message") == kind, request
        return getattr(request, kind)


@dataclass
class Update:
    """One upload as the aggregator got it."""

    header: aggregator_pb2.UpdateHeader
    data: list[bytes]
    digests: list[bytes]
    resumed_at: list[int]

    def array(self, spec: ExperimentSpec) -> np.ndarray:
        return unpack(spec.schema_.parameters, self.data[0])["w"]


class ScriptedAggregator(_Scripted[SiteSession]):
    """Says what it is told to; keeps what it is sent.

    Attributes:
        plan_digest: of its welcomes.
        models: payloads it serves, by digest.
        pulls: offsets it was asked from.
        cut_pull_after: cut the next download after so many bytes.
        cut_push_after: cut the next upload after so many bytes.
        piece_bytes: largest piece it says it would like.
        tells_digests: whether it says what the digests of an admitted update are.
        largest_piece: largest that came.
        refusal: error the next commit is answered with.
        has_refused: set once that was done.
        upload_has_begun: set once the header of an upload came.
        takes_updates: small updates may come in the session, where they are heard like anything else.
    """

    def __init__(self, trial: Trial) -> None:
        super().__init__()
        self.spec = trial.spec
        self.round = 1
        self.plan_digest = hashlib.sha256(trial.manifest.spec_json).digest()
        self.models: dict[bytes, bytes] = {}
        self.pulls: list[int] = []
        self.cut_pull_after: int | None = None
        self.cut_push_after: int | None = None
        self.piece_bytes = 0
        self.tells_digests = False
        self.takes_updates = False
        self.largest_piece = 0
        self.refusal: FederationError | None = None
        self.has_refused = asyncio.Event()
        self.upload_has_begun = asyncio.Event()
        self.updates: asyncio.Queue[Update] = asyncio.Queue()
        self.hellos: list[aggregator_pb2.SiteHello] = []
        self._partial: dict[bytes, list[bytearray]] = {}

    async def next_update(self) -> Update:
        return await asyncio.wait_for(self.updates.get(), WAIT_S)

    def task(
        self, data: bytes, *, round_number: int = 1, attempt: int = 1, train: bool = True, inline: bool = True
    ) -> aggregator_pb2.Task:
        digest = payload_digest(data)
        self.models[digest] = data
        model = Payload(
            name=payloads.MODEL,
            schema_digest=self.spec.schema_.federated.digest,
            encoded_bytes=len(data),
            digest=digest,  # type: ignore[arg-type]
        )
        small = [aggregator_pb2.InlinePayload(digest=digest, data=data)] if inline else []
        return aggregator_pb2.Task(
            kind=aggregator_pb2.TASK_KIND_TRAIN if train else aggregator_pb2.TASK_KIND_EVALUATE,
            round=round_number,
            attempt=attempt,
            epoch=self.epoch,
            payloads=[payload_to_proto(model)],
            inline=small,
            deadline_s=60.0,
        )

    def verdict(self, update: Update, *, counted: bool = True) -> aggregator_pb2.Verdict:
        header = update.header
        return aggregator_pb2.Verdict(
            round=header.round,
            attempt=header.attempt,
            update_id=header.update_id,
            epoch=self.epoch,
            counted=counted,
            reason="" if counted else "late",
        )

    async def Participate(self, requests: AsyncIterator[Any], call: Call) -> AsyncIterator[Any]:
        first = await anext(aiter(requests))
        self.hellos.append(first.hello)
        session = SiteSession(call, self.epoch)
        session.send(
            welcome=aggregator_pb2.SessionWelcome(
                protocol=PROTOCOL.highest,
                epoch=self.epoch,
                round=self.round,
                plan_digest=self.plan_digest,
                takes_updates=self.takes_updates,
            )
        )
        async with aclosing(self.converse(session, requests)) as replies:
            async for reply in replies:
                yield reply

    async def PullModel(self, request: Any, call: Call) -> AsyncIterator[Any]:
        self.pulls.append(request.offset)
        data = self.models[request.digest]
        for chunk in read_chunks(lambda offset, size: data[offset : offset + size], len(data), request.offset):
            yield aggregator_pb2.PullModelReply(chunk=chunk)
            if self.cut_pull_after is not None and chunk.offset + len(chunk.data) >= self.cut_pull_after:
                self.cut_pull_after = None
                raise TransportError("the line was cut")

    async def PushUpdate(self, requests: AsyncIterator[Any], call: Call) -> AsyncIterator[Any]:
        header = (await anext(aiter(requests))).header
        self.upload_has_begun.set()
        held = self._partial.setdefault(header.update_id, [bytearray() for _ in header.payloads])
        resumed_at = [len(part) for part in held]
        holding = aggregator_pb2.UpdateHolding(bytes=resumed_at, piece_bytes=self.piece_bytes)
        yield aggregator_pb2.PushUpdateReply(holding=holding)
        async for request in requests:
            if request.WhichOneof("message") == "commit":
                if self.refusal is not None:
                    refusal, self.refusal = self.refusal, None
                    self.has_refused.set()
                    raise refusal
                update = Update(header, [bytes(part) for part in held], list(request.commit.digests), resumed_at)
                self.updates.put_nowait(update)
                digests = [payload_digest(part) for part in update.data] if self.tells_digests else []
                result = aggregator_pb2.UpdateResult(admitted=True, digests=digests)
                yield aggregator_pb2.PushUpdateReply(result=result)
                return
            self.largest_piece = max(self.largest_piece, len(request.chunk.chunk.data))
            part = held[request.chunk.payload]
            if request.chunk.chunk.offset < len(part):
                continue  # a small update is sent whole at once, whatever is held
            receiver = ChunkReceiver(header.payloads[request.chunk.payload].encoded_bytes)
            receiver._received = len(part)
            part += receiver.check(request.chunk.chunk)
            if self.cut_push_after is not None and len(part) >= self.cut_push_after:
                self.cut_push_after = None
                raise TransportError("the line was cut")


@dataclass
class EnvoySession(_Session):
    """The director's end of one envoy's session."""

    hello: director_pb2.EnvoyHello

    def send(self, **message: Any) -> None:
        self.outbox.put_nowait(director_pb2.AttendReply(**message))

    async def hear(self, kind: str) -> Any:
        """Return the next message of this kind; others are passed over."""
        async with asyncio.timeout(WAIT_S):
            while (request := await self.heard.get()) is None or request.WhichOneof("message") != kind:
                assert request is not None, f"the session ended, {kind} was expected"
        return getattr(request, kind)


class ScriptedDirector(_Scripted[EnvoySession]):
    """Assigns what it is told to; serves one bundle.

    Attributes:
        bundle: archive it serves.
        cut_bundle_after: cut the next download after so many bytes.
        renew: answers a signing request; without it the director refuses.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bundle = b""
        self.cut_bundle_after: int | None = None
        self.fetches: list[int] = []
        self.renew: Callable[[bytes], Awaitable[bytes]] | None = None

    async def Attend(self, requests: AsyncIterator[Any], call: Call) -> AsyncIterator[Any]:
        first = await anext(aiter(requests))
        session = EnvoySession(call, first.hello)
        session.send(
            welcome=director_pb2.EnvoyWelcome(protocol=PROTOCOL.highest, director_epoch=self.epoch, now=time.time())
        )
        async with aclosing(self.converse(session, requests)) as replies:
            async for reply in replies:
                yield reply

    async def Renew(self, request: Any, call: Call) -> director_pb2.RenewReply:
        if self.renew is None:
            raise LimitError("no more certificates today")
        return director_pb2.RenewReply(certificate=await self.renew(request.signing_request))

    async def FetchBundle(self, request: Any, call: Call) -> AsyncIterator[Any]:
        self.fetches.append(request.offset)
        for chunk in read_chunks(
            lambda offset, size: self.bundle[offset : offset + size], len(self.bundle), request.offset, chunk_bytes=256
        ):
            yield director_pb2.FetchBundleReply(chunk=chunk)
            if self.cut_bundle_after is not None and chunk.offset + len(chunk.data) >= self.cut_bundle_after:
                self.cut_bundle_after = None
                raise TransportError("the line was cut")


@asynccontextmanager
async def serving(service: Any, implementation: Any, tls: TlsFiles) -> AsyncIterator[None]:
    """Serve a scripted implementation to envoys, over mutual TLS."""
    rules = {method_path(method): frozenset({Role.ENVOY}) for method in service.methods}
    server = RpcServer(Authority(FEDERATION, rules, clock=SystemClock()), Metrics(), tls=tls)
    server.add_service(service, implementation)
    implementation.port = await server.start()
    try:
        yield
    finally:
        await server.stop(0.1)

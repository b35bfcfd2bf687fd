"""How a call is served: authorise, limit, parse, run, end.

For each method of a service gRPC is given a handler **without a deserialiser**, because gRPC would otherwise parse a
stranger's bytes before anybody asked who he is. The handler does, in this order:

1. Authorise by certificate (`federation.transport.authority`).
2. Count the call against its identity's limit.
3. Parse (bytes that are no message: INVALID_ARGUMENT). Of a stream each message when it is read.
4. Call the implementation, and turn what it raises into a status (`federation.transport.status`).
5. Guard a stream: when its `Call.ended` is set, cancel the implementation and abort from inside the handler.
6. Count the call before it is answered: who has heard of its end finds it counted.

An implementation has one method per method of the service, named as in the proto::

    async def GetExperiment(self, request, call) -> GetExperimentReply          # one to one
    async def WatchExperiment(self, request, call) -> AsyncIterator[Event]      # one to many: an async generator
    async def Submit(self, requests, call) -> SubmitReply                       # many to one
    async def Attend(self, requests, call) -> AsyncIterator[AttendReply]        # many to many: an async generator

A reply may also be given as its encoded bytes: a piece put together by hand is copied once, by protobuf three
times. Likewise messages of a stream may be read by hand: by a function that takes a message's bytes and returns what
stands for it, or None to have protobuf read it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import TYPE_CHECKING, Any, Never, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from federation.errors import FederationError, IdentityError, LimitError, MalformedMessageError
from federation.telemetry.logs import get_logger
from federation.transport.authority import CallRefusal, RefusedCallError
from federation.transport.calls import Call, OpenCalls
from federation.transport.handshakes import HandshakeLedger
from federation.transport.status import to_status

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping

    from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

    from federation.names import Identity
    from federation.telemetry.metrics import Metrics
    from federation.transport.authority import Authority, Peer

    Context = grpc.aio.ServicerContext[Any, Any]
    Reader = Callable[[bytes], object | None]

_T = TypeVar("_T")

IDENTITY_KEY = "federation-identity"
"""Metadata in which a client of a plaintext loopback server says who it is."""


class Gate:
    """What all handlers of one server share: who may pass, and how many at a time.

    Args:
        authority: decides who may call what.
        metrics: where calls and refusals are counted.
        plaintext: the server listens on loopback without TLS, and identities are claims.
    """

    def __init__(self, authority: Authority, metrics: Metrics, *, plaintext: bool) -> None:
        self.authority = authority
        self.metrics = metrics
        self.handshakes = HandshakeLedger(authority.clock, lambda: self.count_refusal(CallRefusal.HANDSHAKE))
        self.open_calls = OpenCalls(authority)
        self._plaintext = plaintext
        self._calls: Counter[Identity] = Counter()
        self._logger = get_logger(__name__)

    def enter(self, method: str, context: Context, *, is_session: bool) -> Call:
        """Let a call in; `leave` must follow.

        Raises:
            RefusedCallError: its certificate does not allow it.
            LimitError: its identity has too many calls open.
        """
        if self._plaintext:
            peer = self.authority.authorise_loopback(method, _claimed_identity(context))
        else:
            self.handshakes.called(context.peer())
            peer = self.authority.authorise(method, context.auth_context())
        limit = self.authority.limits.calls_per_identity
        if self._calls[peer.identity] >= limit:
            self.count_refusal(CallRefusal.TOO_MANY_CALLS)
            raise LimitError(f"{peer.identity} has {limit} calls open, the most allowed: let some end first")
        self._calls[peer.identity] += 1
        return Call(method=method, peer=peer, raw=context, is_session=is_session)

    def leave(self, call: Call) -> None:
        """Note that a call that was let in is over."""
        self.open_calls.discard(call)
        identity = call.peer.identity
        self._calls[identity] -= 1
        if self._calls[identity] <= 0:
            del self._calls[identity]

    def count_refusal(self, refusal: CallRefusal) -> None:
        """Count one refused call or connection."""
        self.metrics.refused_calls_total.labels(reason=refusal.value).inc()

    def count_call(self, method: str, peer: Peer | None, code: grpc.StatusCode, seconds: float) -> None:
        """Count a call that ended."""
        name = method.rpartition("/")[2]
        role = peer.identity.role.value if peer else ""
        self.metrics.rpc_total.labels(method=name, role=role, code=code.name).inc()
        self.metrics.rpc_seconds.labels(method=name).observe(seconds)

    def note_error(self, error: BaseException, method: str = "") -> None:
        """Count and record what a call is about to end with."""
        if isinstance(error, RefusedCallError):
            self.count_refusal(error.refusal)
        elif isinstance(error, IdentityError):
            self.count_refusal(CallRefusal.NOT_ITSELF)
        if isinstance(error, IdentityError):
            self._logger.warning("call refused", method=method, reason=str(error))
        elif not isinstance(error, FederationError) or to_status(error).code is grpc.StatusCode.INTERNAL:
            self._logger.error("call failed", method=method, exc_info=error)


class ServedMethod:
    """One method of an implementation, as gRPC calls it.

    Args:
        descriptor: the method.
        implementation: bound method of the service's implementation.
        gate: the server's gate.
        read: reads a message of a stream, as the module says; None for protobuf always.
    """

    def __init__(
        self,
        descriptor: MethodDescriptor,
        implementation: Callable[..., Any],
        gate: Gate,
        read: Reader | None = None,
    ) -> None:
        self.path = method_path(descriptor)
        self._read = read
        self._streams_in = bool(descriptor.client_streaming)
        self._streams_out = bool(descriptor.server_streaming)
        self._request_class: type[Message] = GetMessageClass(descriptor.input_type)
        self._implementation = implementation
        self._gate = gate

    def rpc_handler(self) -> grpc.RpcMethodHandler[Any, Any]:
        """Return the handler for gRPC: bytes in, bytes out."""
        if self._streams_in and self._streams_out:
            return grpc.stream_stream_rpc_method_handler(self._serve_session)
        if self._streams_in:
            return grpc.stream_unary_rpc_method_handler(self._serve_collecting)
        if self._streams_out:
            return grpc.unary_stream_rpc_method_handler(self._serve_streaming)
        return grpc.unary_unary_rpc_method_handler(self._serve_unary)

    async def _serve_unary(self, data: bytes, context: Context) -> bytes:
        async def run(call: Call) -> bytes:
            reply: Message | bytes = await self._implementation(self.parse(data), call)
            return encoded(reply)

        return await self._serve(context, run)

    async def _serve_streaming(self, data: bytes, context: Context) -> None:
        async def run(call: Call) -> None:
            await _send(self._implementation(self.parse(data), call), call)

        await self._serve(context, run)

    async def _serve_collecting(self, _: object, context: Context) -> bytes:
        async def run(call: Call) -> bytes:
            reply: Message | bytes = await self._implementation(_Requests(self, context), call)
            return encoded(reply)

        return await self._serve(context, run)

    async def _serve_session(self, _: object, context: Context) -> None:
        async def run(call: Call) -> None:
            await _send(self._implementation(_Requests(self, context), call), call)

        await self._serve(context, run)

    async def _serve(self, context: Context, run: Callable[[Call], Coroutine[Any, Any, _T]]) -> _T:
        """Steps 1, 2 and 4 to 6 around `run`, which does step 3."""
        clock = self._gate.authority.clock
        started = clock.monotonic()
        peer: Peer | None = None

        def count(code: grpc.StatusCode) -> None:
            self._gate.count_call(self.path, peer, code, clock.monotonic() - started)

        try:
            call = self._gate.enter(self.path, context, is_session=self._streams_in and self._streams_out)
            peer = call.peer
            try:
                answer = await (self._guard(call, run(call)) if self._streams_in or self._streams_out else run(call))
            finally:
                self._gate.leave(call)
        except asyncio.CancelledError:
            count(grpc.StatusCode.CANCELLED)  # the client went away; gRPC knows
            raise
        except grpc.aio.AbortError:
            count(grpc.StatusCode.ABORTED)  # the implementation ended the call through call.raw
            raise
        except Exception as error:
            self._gate.note_error(error, self.path)
            count(to_status(error).code)
            await _abort(context, error)
        count(grpc.StatusCode.OK)
        return answer

    async def _guard(self, call: Call, work: Coroutine[Any, Any, _T]) -> _T:
        """Run `work` until it ends or the call is ended from outside.

        A reply on its way is not cancelled but waited for: gRPC cannot take it back, and refuses to send the status
        while it is under way, which would leave the client waiting for ever (grpc: TOO_MANY_OPERATIONS).

        Raises:
            FederationError: the call was ended from outside with it.
        """
        self._gate.open_calls.add(call)
        task = asyncio.create_task(work, name=f"serve {call.method} {call.peer.identity}")
        try:
            waited: set[asyncio.Future[Any]] = {task, call.ended}
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await _cancel(task)
            raise
        if not task.done():
            if call.is_replying:
                await _finish(task)
            else:
                await _cancel(task)
            raise call.ended.result()
        return task.result()

    def read(self, data: bytes) -> Any:
        """Return what stands for a message of a stream; errors as `parse`."""
        found = self._read(data) if self._read is not None else None
        return self.parse(data) if found is None else found

    def parse(self, data: bytes) -> Message:
        """Return the message that `data` encodes.

        Raises:
            MalformedMessageError: it encodes none.
        """
        try:
            return self._request_class.FromString(data)
        except DecodeError as error:
            self._gate.count_refusal(CallRefusal.MALFORMED)
            name = self._request_class.DESCRIPTOR.full_name
            raise MalformedMessageError(f"{len(data)} bytes sent to {self.path} are no {name}") from error


class _Requests:
    """The messages of a stream, each parsed when it is read."""

    def __init__(self, method: ServedMethod, context: Context) -> None:
        self._method = method
        self._context = context

    def __aiter__(self) -> _Requests:
        return self

    async def __anext__(self) -> Any:
        data = await self._context.read()
        if data is grpc.aio.EOF:
            raise StopAsyncIteration
        return self._method.read(data)


def build_handlers(
    service: ServiceDescriptor, implementation: object, gate: Gate, readers: Mapping[str, Reader] | None = None
) -> grpc.GenericRpcHandler:
    """Return the handlers of all methods of `service`.

    Args:
        service: its descriptor.
        implementation: has its methods.
        gate: the server's gate.
        readers: by the name of a method, what reads messages of its stream by hand.

    Raises:
        TypeError: `implementation` lacks a method.
        ValueError: a method has no rule: nobody could ever call it.
    """
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
    for descriptor in service.methods:
        method = getattr(implementation, descriptor.name, None)
        if method is None:
            raise TypeError(f"{type(implementation).__name__} does not implement {descriptor.full_name}")
        if not gate.authority.rules.get(method_path(descriptor)):
            raise ValueError(f"no rule says which roles may call {method_path(descriptor)}")
        served = ServedMethod(descriptor, method, gate, (readers or {}).get(descriptor.name))
        handlers[descriptor.name] = served.rpc_handler()
    return grpc.method_handlers_generic_handler(service.full_name, handlers)


def encoded(message: Message | bytes) -> bytes:
    """Return the bytes of a message, or the bytes it was given as."""
    return message if isinstance(message, bytes) else message.SerializeToString()


def method_path(descriptor: MethodDescriptor) -> str:
    """Return the full name of a method as gRPC and the rules use it."""
    return f"/{descriptor.containing_service.full_name}/{descriptor.name}"


async def _send(replies: AsyncGenerator[Message | bytes, None], call: Call) -> None:
    async with contextlib.aclosing(replies):  # its finally blocks run now, not when it is collected
        async for reply in replies:
            call.is_replying = True
            await call.raw.write(encoded(reply))
            call.is_replying = False
            if call.ended.done():
                raise call.ended.result()


async def _finish(task: asyncio.Task[Any]) -> None:
    """Wait until `task` is over, and cancel it if this wait is cancelled; what it raised no longer matters."""
    try:
        await asyncio.wait({task})
    finally:
        await _cancel(task)


async def _cancel(task: asyncio.Task[Any]) -> None:
    """Cancel `task` and wait until it is over; what it raised no longer matters."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()  # marks it as seen


async def _abort(context: Context, error: BaseException) -> Never:
    status = to_status(error)
    await context.abort(status.code, status.text, status.metadata)


def _claimed_identity(context: Context) -> str | None:
    for key, value in context.invocation_metadata() or ():
        if key == IDENTITY_KEY and isinstance(value, str):
            return value
    return None

"""Calling a service: one stub for all services, built from the descriptor, and the one door for gRPC's errors.

Rules:

1. What goes wrong is one of our errors (`federation.transport.status`): the class the server raised, or TransportError
   where a retry may help. `grpc.aio.AioRpcError` never leaves this module.
2. A call ended locally (`cancel`, channel closed) is a TransportError for whoever waits on it. Only the cancellation
   of the waiting task itself is CancelledError; gRPC does not tell the two apart, so we do.
3. A server may end a call while we write to it. What the caller then gets is the server's status, and before it the
   replies it had not read yet. `grpc.aio` itself loses both: its ``write`` replaces the status by INTERNAL "Internal
   error from Core" (grpc issue 36066, open as of grpcio 1.85). `BidiCall.try_write` says how this is avoided.
4. **Cancelling a task that waits in `read` ends the call**: gRPC does that. Whoever wants to wait for a message or
   something else keeps one task that reads.
5. A call that is ended locally before it is connected ends for its writer too. `grpc.aio` itself lets that one wait for
   ever: its ``wait_for_connection`` returns once the call's metadata is sent, which then never happens (grpcio 1.85).
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Never

import grpc
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from federation.errors import FederationError, MalformedMessageError, TransportError
from federation.transport.handlers import IDENTITY_KEY, encoded, method_path
from federation.transport.status import from_rpc_error

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable, Iterable

    from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

    from federation.names import Identity

_STATUS_S = 10.0
"""How long the status of a call that took no more requests is waited for; it is normally there already."""
DEFAULT_TIMEOUT_S = 30.0
"""Deadline of a call with one request and one reply. Streams have none unless asked: some last for months."""


class Stub:
    """The methods of one service over one channel.

    Args:
        channel: from `federation.transport.channels.open_channel`; the caller closes it.
        service: descriptor of the service, such as ``director_pb2.DESCRIPTOR.services_by_name["Director"]``.
        timeout_s: deadline of unary calls that name none.
        identity: who we are; needed towards a plaintext loopback server alone, where no certificate says it.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        service: ServiceDescriptor,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        identity: Identity | None = None,
    ) -> None:
        self._timeout_s = timeout_s
        self._metadata = ((IDENTITY_KEY, identity.spiffe),) if identity else None
        self._methods = {method.name: _Method(channel, method) for method in service.methods}

    async def unary(self, method: str, request: Message | bytes, *, timeout_s: float | None = None) -> Any:
        """Call a method of one request and one reply, and return the reply.

        Args:
            method: name, as in the proto.
            request: its request message, or the bytes of one.
            timeout_s: deadline; the stub's default if None.

        Raises:
            FederationError: as the module says.
        """
        target = self._methods[method]
        deadline_s = self._timeout_s if timeout_s is None else timeout_s
        try:
            call = target.start(deadline_s, self._metadata, encoded(request))
        except grpc.aio.UsageError as error:
            raise _closed(target.path) from error
        try:
            data = await call
        except (grpc.aio.AioRpcError, asyncio.CancelledError, grpc.aio.BaseError) as error:
            _reraise(error, call, target.path)
        return target.parse(data)

    def server_stream(
        self,
        method: str,
        request: Message | bytes,
        *,
        timeout_s: float | None = None,
        read: Callable[[bytes], object | None] | None = None,
    ) -> ServerStream:
        """Call a method of one request and many replies; the replies are read from what is returned.

        Args:
            method: name, as in the proto.
            request: its request message, or the bytes of one.
            timeout_s: deadline; none if None.
            read: takes a reply's bytes and returns what stands for it, or None to have protobuf read it.

        Raises:
            TransportError: the channel is closed.
        """
        target = self._methods[method]
        try:
            call = target.start(timeout_s, self._metadata, encoded(request))
        except grpc.aio.UsageError as error:
            raise _closed(target.path) from error
        return ServerStream(call, target, read)

    async def client_stream(
        self,
        method: str,
        requests: AsyncIterable[Message | bytes] | Iterable[Message | bytes],
        *,
        timeout_s: float | None = None,
    ) -> Any:
        """Call a method of many requests and one reply, and return the reply.

        The server may answer, or refuse, before all is sent; the rest is then not asked of `requests`. What `requests`
        raises ends the call and is raised here.

        Raises:
            FederationError: as the module says.
        """
        call = self.bidi(method, timeout_s=timeout_s)
        try:
            if hasattr(requests, "__aiter__"):
                async for request in requests:
                    if not await call.try_write(request):
                        break
            else:
                for request in requests:
                    if not await call.try_write(request):
                        break
            return await call.reply()
        finally:
            call.cancel()

    def bidi(self, method: str, *, timeout_s: float | None = None) -> BidiCall:
        """Open a call with a stream of requests; requests and replies go through what is returned.

        Raises:
            TransportError: the channel is closed.
        """
        target = self._methods[method]
        try:
            call = target.start(timeout_s, self._metadata)
        except grpc.aio.UsageError as error:
            raise _closed(target.path) from error
        return BidiCall(call, target)


class ServerStream:
    """Replies of one call: iterate, or `read`; as a context manager it ends the call on the way out."""

    def __init__(self, call: Any, method: _Method, read: Callable[[bytes], object | None] | None = None) -> None:
        self._call = call
        self._method = method
        self._read = read

    def __aiter__(self) -> ServerStream:
        return self

    async def __anext__(self) -> Any:
        message = await self.read()
        if message is None:
            raise StopAsyncIteration
        return message

    async def __aenter__(self) -> ServerStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()

    async def read(self) -> Any:
        """Return the next reply; None once the server has said its last and all was well.

        Raises:
            FederationError: the call failed, as the module says.
        """
        try:
            data = await self._call.read()
        except (grpc.aio.AioRpcError, asyncio.CancelledError, grpc.aio.BaseError) as error:
            _reraise(error, self._call, self._method.path)
        if data is grpc.aio.EOF:
            return None
        found = self._read(data) if self._read is not None else None
        return self._method.parse(data) if found is None else found

    def cancel(self) -> None:
        """End the call; harmless once it has ended."""
        self._call.cancel()


class BidiCall(ServerStream):
    """A call with a stream of requests. One task may write while another reads."""

    def __init__(self, call: Any, method: _Method) -> None:
        super().__init__(call, method)
        self._is_reading = False
        self._is_connected = False

    async def read(self) -> Any:
        """Return the next reply; None once the server has said its last and all was well.

        Raises:
            FederationError: the call failed, as the module says.
        """
        self._is_reading = True
        try:
            return await super().read()
        finally:
            self._is_reading = False

    async def write(self, request: Message | bytes) -> None:
        """Send a request; returns when it is under way, which is what slows a writer down to the reader's pace.

        Raises:
            FederationError: the call failed, or the server ended it (TransportError if it ended well). If no task is
                reading, replies not read yet are lost with this.
        """
        if await self.try_write(request):
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STATUS_S):
                await self._raise_status()
        raise TransportError(f"{self._method.path} was ended by the other side")

    async def try_write(self, request: Message | bytes) -> bool:
        """Send a request, and tell whether the call still took it; if not, `read` or `reply` says why.

        Raises:
            TransportError: the call was ended locally.
        """
        data = encoded(request)
        call = self._call
        try:
            if not self._is_connected:
                await self._connect()
            if call.done():
                return False
            # Not `call.write`: where this fails because the server has ended the call, that overwrites the server's
            # status. Below it is the same operation without the overwriting (module, rule 3).
            await call._cython_call.send_serialized_message(data)
        except (grpc.aio.AioRpcError, grpc.aio.InternalError):
            return False
        except (asyncio.CancelledError, grpc.aio.BaseError) as error:
            call.cancel()
            _reraise(error, call, self._method.path)
        return True

    async def _connect(self) -> None:
        """Wait until the call takes requests, or has ended (rule 5).

        Raises:
            TransportError: it was ended locally.
        """
        call = self._call
        ended = asyncio.get_running_loop().create_future()

        def note(_: object) -> None:
            if not ended.done():
                ended.set_result(None)

        call.add_done_callback(note)
        connecting = asyncio.ensure_future(call.wait_for_connection())
        try:
            await asyncio.wait({connecting, ended}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            connecting.cancel()
            await asyncio.gather(connecting, return_exceptions=True)  # if it failed, the call has ended
        if call.cancelled():
            raise TransportError(f"{self._method.path} was ended on this side")
        self._is_connected = True

    async def done_writing(self) -> None:
        """Say that no request follows; if the call has ended, `read` or `reply` says why.

        Raises:
            TransportError: the call was ended locally.
        """
        try:
            await self._call.done_writing()
        except (grpc.aio.AioRpcError, grpc.aio.InternalError):
            return
        except (asyncio.CancelledError, grpc.aio.BaseError) as error:
            _reraise(error, self._call, self._method.path)

    async def _raise_status(self) -> None:
        """Wait for the status, and raise what it stands for unless all was well."""
        if not self._is_reading:
            while await self.read() is not None:  # gRPC tells the status only after the last reply was read
                pass
            return
        call = self._call
        if await call.code() is not grpc.StatusCode.OK:
            error = grpc.aio.AioRpcError(
                await call.code(), await call.initial_metadata(), await call.trailing_metadata(), await call.details()
            )
            raise from_rpc_error(error, self._method.path) from error

    async def reply(self) -> Any:
        """Say that no request follows, and return the single reply of a client stream.

        Raises:
            FederationError: the call failed.
        """
        await self.done_writing()
        try:
            data = await self._call
        except (grpc.aio.AioRpcError, asyncio.CancelledError, grpc.aio.BaseError) as error:
            _reraise(error, self._call, self._method.path)
        return self._method.parse(data)


class _Method:
    """One method of a service on one channel: bytes out, bytes in."""

    def __init__(self, channel: grpc.aio.Channel, descriptor: MethodDescriptor) -> None:
        self.path = method_path(descriptor)
        self._reply_class: type[Message] = GetMessageClass(descriptor.output_type)
        kinds = {
            (False, False): channel.unary_unary,
            (False, True): channel.unary_stream,
            (True, False): channel.stream_unary,
            (True, True): channel.stream_stream,
        }
        self._callable: Any = kinds[bool(descriptor.client_streaming), bool(descriptor.server_streaming)](self.path)

    def start(self, timeout_s: float | None, metadata: Any, *request: bytes) -> Any:
        return self._callable(*request, timeout=timeout_s, metadata=metadata)

    def parse(self, data: bytes) -> Message:
        try:
            return self._reply_class.FromString(data)
        except DecodeError as error:
            name = self._reply_class.DESCRIPTOR.full_name
            raise MalformedMessageError(f"{len(data)} bytes answered by {self.path} are no {name}") from error


def _reraise(error: BaseException, call: Any, path: str) -> Never:
    """Raise the error of ours that `error` stands for (rules 1 and 2)."""
    if isinstance(error, grpc.aio.AioRpcError):
        raise from_rpc_error(error, path) from error
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        if call.cancelled() and not (task and task.cancelling()):
            raise TransportError(f"{path} was ended on this side") from error
        raise error
    raise TransportError(f"{path} failed: {error}") from error


def _closed(path: str) -> FederationError:
    return TransportError(f"{path} cannot be called: the channel is closed")

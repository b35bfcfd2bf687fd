"""Calls of all four kinds between a real server and a real client: messages, errors, limits, stopping.

How calls end before their time is in test_transport_ends.py, who may call in test_identity.py.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from federation.errors import (
    ConfigurationError,
    IdentityError,
    LimitError,
    MalformedMessageError,
    NotFoundError,
    PeerError,
    Refusal,
    TransportError,
    UpdateRejectedError,
)
from federation.names import FederationName, Role
from federation.telemetry.metrics import Metrics
from federation.testing.clock import FakeClock
from federation.transport import handlers
from federation.transport.authority import Authority, CallRefusal, Limits
from federation.transport.channels import MAX_MESSAGE_BYTES
from federation.transport.server import HEALTH_SERVICE, RpcServer

from .calls import call, connect


async def test_all_four_kinds_of_calls_carry_their_messages(lab: Any) -> None:
    stub = await connect(lab)
    assert (await stub.unary("Echo", lab.chunk(data=b"hello"))).data == b"hello"
    lab.service.release.set()
    assert [reply.offset async for reply in stub.server_stream("Follow", lab.chunk(offset=3))] == [3, 3]
    assert (await stub.client_stream("Collect", [lab.chunk(data=b"12"), lab.chunk(data=b"3")])).offset == 3
    talk = stub.bidi("Talk")
    for offset in range(3):
        await talk.write(lab.chunk(offset=offset))
        assert (await talk.read()).offset == offset + 1
    await talk.done_writing()
    assert await talk.read() is None
    assert await talk.read() is None


async def test_messages_may_be_handed_over_as_their_bytes(lab: Any) -> None:
    stub = await connect(lab)
    data = lab.chunk(offset=4, data=b"ab").SerializeToString()
    assert (await stub.unary("Echo", data)).data == b"ab"
    assert (await stub.client_stream("Collect", [data, data])).offset == 4
    assert lab.service.requests[-1] == lab.chunk(offset=4, data=b"ab")


async def test_calls_are_counted_by_method_role_and_code(lab: Any) -> None:
    stub = await connect(lab)
    await stub.unary("Echo", lab.chunk())
    lab.service.error = LimitError("no")
    with pytest.raises(LimitError):
        await stub.unary("Echo", lab.chunk())
    value = lab.metrics.registry.get_sample_value
    for code in ("OK", "RESOURCE_EXHAUSTED"):
        labels = {"method": "Echo", "role": "envoy", "code": code}
        assert value("federation_rpc_total", labels) == 1
    assert value("federation_rpc_seconds_count", {"method": "Echo"}) == 2


@pytest.mark.parametrize("method", ["Echo", "Follow", "Collect", "Talk"])
async def test_a_call_is_counted_before_its_caller_hears_how_it_ended(lab: Any, method: str, monkeypatch: Any) -> None:
    is_looked_at, abort = asyncio.Event(), handlers._abort

    async def abort_and_linger(*ending: Any) -> None:
        try:
            await abort(*ending)
        finally:
            await is_looked_at.wait()

    monkeypatch.setattr(handlers, "_abort", abort_and_linger)
    stub = await connect(lab)
    lab.service.error = LimitError("no")
    try:
        with pytest.raises(LimitError):
            await call(stub, method, lab)
        labels = {"method": method, "role": "envoy", "code": "RESOURCE_EXHAUSTED"}
        assert lab.metrics.registry.get_sample_value("federation_rpc_total", labels) == 1
    finally:
        is_looked_at.set()


@pytest.mark.parametrize("method", ["Echo", "Follow", "Collect", "Talk"])
async def test_what_a_handler_raises_is_what_the_caller_catches(lab: Any, method: str) -> None:
    stub = await connect(lab)
    lab.service.error = UpdateRejectedError(Refusal.NORM, "norm 7 is above the plan's bound of 5")
    with pytest.raises(UpdateRejectedError, match="norm 7") as caught:
        await call(stub, method, lab)
    assert caught.value.refusal is Refusal.NORM


@pytest.mark.parametrize("method", ["Echo", "Follow", "Collect", "Talk"])
async def test_a_fault_in_a_handler_tells_the_caller_nothing(lab: Any, method: str) -> None:
    stub = await connect(lab)
    lab.service.error = ZeroDivisionError("patient 17")
    with pytest.raises(PeerError) as caught:
        await call(stub, method, lab)
    assert "patient" not in str(caught.value)


@pytest.mark.parametrize("method", ["Echo", "Follow"])
async def test_bytes_that_are_no_message_are_refused_and_counted(lab: Any, method: str) -> None:
    await lab.start(Role.ENVOY)
    tls = lab.issue(Role.ENVOY, "north")
    channel = lab.channel_with(tls.authority.read_bytes(), tls.key.read_bytes(), tls.certificate.read_bytes())
    kind = channel.unary_unary if method == "Echo" else channel.unary_stream
    rubbish = kind(f"/probe.v1.Probe/{method}")(b"\xff\xff\xff")
    assert await rubbish.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert lab.refused(CallRefusal.MALFORMED) == 1


@pytest.mark.parametrize("method", ["Collect", "Talk"])
async def test_a_stream_is_refused_at_the_first_bytes_that_are_no_message(lab: Any, method: str) -> None:
    await lab.start(Role.ENVOY)
    tls = lab.issue(Role.ENVOY, "north")
    channel = lab.channel_with(tls.authority.read_bytes(), tls.key.read_bytes(), tls.certificate.read_bytes())
    kind = channel.stream_unary if method == "Collect" else channel.stream_stream
    stream = kind(f"/probe.v1.Probe/{method}")()
    await stream.write(lab.chunk(offset=1).SerializeToString())
    await stream.write(b"\xff\xff\xff")
    if method == "Talk":
        await stream.read()
        with pytest.raises(grpc.aio.AioRpcError):
            await stream.read()
    assert await stream.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert lab.refused(CallRefusal.MALFORMED) == 1


async def test_a_reply_that_is_no_message_is_the_peers_fault(lab: Any) -> None:
    await lab.start(Role.ENVOY)

    class Liar:
        async def Echo(self, request: Any, call: Any) -> Any:
            return self

        def SerializeToString(self) -> bytes:
            return b"\xff\xff\xff"

        Follow = Collect = Talk = Echo

    authority = Authority(
        FederationName("heart"),
        {f"/probe.v1.Probe/{name}": frozenset(Role) for name in ("Echo", "Follow", "Collect", "Talk")},
        clock=FakeClock(),
    )
    server = RpcServer(authority, Metrics(), tls=None)
    server.add_service(lab.service_descriptor, Liar())
    lab.port = await server.start()
    try:
        stub = lab.stub(None, identity=lab.identity(Role.ENVOY, "north"))
        with pytest.raises(MalformedMessageError, match="answered"):
            await stub.unary("Echo", lab.chunk())
    finally:
        await server.stop(0)


async def test_a_message_above_the_limit_is_refused(lab: Any) -> None:
    stub = await connect(lab)
    with pytest.raises(LimitError):
        await stub.unary("Echo", lab.chunk(data=bytes(MAX_MESSAGE_BYTES)))
    reply = await stub.unary("Echo", lab.chunk(data=bytes(MAX_MESSAGE_BYTES - 1024)))
    assert len(reply.data) == MAX_MESSAGE_BYTES - 1024


async def test_one_identity_cannot_take_the_server_for_itself(lab: Any) -> None:
    await lab.start(Role.ENVOY, limits=Limits(calls_per_identity=2))
    stub, other = await connect(lab), await connect(lab, "south")
    streams = [stub.bidi("Talk") for _ in range(2)]
    for stream in streams:
        await stream.write(lab.chunk())
        assert await stream.read()
    with pytest.raises(LimitError, match="2 calls open"):
        await stub.unary("Echo", lab.chunk())
    assert lab.refused(CallRefusal.TOO_MANY_CALLS) == 1
    assert await other.unary("Echo", lab.chunk())
    await streams[0].done_writing()
    assert await streams[0].read() is None
    assert await stub.unary("Echo", lab.chunk())


async def test_a_call_that_is_not_answered_in_time_may_be_retried(lab: Any) -> None:
    stub = await connect(lab)
    with pytest.raises(TransportError, match="not answered in time"):
        await stub.unary("Echo", lab.chunk(data=b"wait"), timeout_s=0.05)
    lab.service.release.set()
    assert await stub.unary("Echo", lab.chunk(data=b"wait"))


async def test_nobody_listening_is_a_transport_error(lab: Any) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        lab.port = reserved.getsockname()[1]
        stub = lab.stub(lab.issue(Role.ENVOY, "north"))
        for method in ("Echo", "Follow", "Collect", "Talk"):
            with pytest.raises(TransportError, match="did not reach"):
                await call(stub, method, lab)


async def test_a_service_unknown_to_the_server_is_the_peers_fault(lab: Any) -> None:
    await connect(lab)
    from federation.v1 import director_pb2 as pb

    stub = lab.stub(lab.issue(Role.ENVOY, "north"), service=pb.DESCRIPTOR.services_by_name["Director"])
    with pytest.raises(PeerError, match="another version"):
        await stub.unary("Describe", pb.DescribeRequest())


async def test_stopping_ends_sessions_at_once_and_lets_calls_finish(lab: Any) -> None:
    stub = await connect(lab)
    session = stub.bidi("Talk")
    await session.write(lab.chunk())
    assert await session.read()
    slow = asyncio.create_task(stub.unary("Echo", lab.chunk(data=b"wait")))
    await lab.service.waiting.wait()
    stopping = asyncio.create_task(lab.server.stop(60))
    with pytest.raises(TransportError, match="connect again"):
        await session.read()
    lab.service.release.set()
    assert (await slow).data == b"wait"
    await stopping


async def test_stopping_ends_what_outlasts_the_grace_period(lab: Any) -> None:
    stub = await connect(lab)
    stream = stub.server_stream("Follow", lab.chunk())
    assert await stream.read()
    stopping = asyncio.create_task(lab.server.stop(0))
    with pytest.raises(TransportError, match="connect again"):
        await stream.read()
    await stopping


async def test_health_tells_of_services_and_of_stopping(lab: Any) -> None:
    await connect(lab)
    stub = lab.stub(lab.issue(Role.USER, "alice"), service=HEALTH_SERVICE)
    serving, unknown = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    assert set((await stub.unary("List", health_pb2.HealthListRequest())).statuses) == {
        "",
        "probe.v1.Probe",
        "grpc.health.v1.Health",
    }
    with pytest.raises(NotFoundError):
        await stub.unary("Check", health_pb2.HealthCheckRequest(service="nothing"))
    nothing = stub.server_stream("Watch", health_pb2.HealthCheckRequest(service="nothing"))
    assert (await nothing.read()).status == unknown
    watch = stub.server_stream("Watch", health_pb2.HealthCheckRequest())
    assert (await watch.read()).status == serving
    lab.server.health.set_serving(is_serving=False)
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_a_port_in_use_is_an_error_that_names_it(lab: Any) -> None:
    await lab.start(Role.ENVOY)
    with pytest.raises(ConfigurationError, match=f"127.0.0.1:{lab.port}"):
        await lab.start(Role.ENVOY, port=lab.port)


async def test_plaintext_is_served_on_loopback_alone(lab: Any) -> None:
    authority = Authority(FederationName("heart"), {}, clock=FakeClock())
    with pytest.raises(ConfigurationError, match="loopback"):
        RpcServer(authority, Metrics(), tls=None, host="10.0.0.1")
    await lab.start(Role.ENVOY, plaintext=True)
    stub = lab.stub(None, identity=lab.identity(Role.ENVOY, "north"))
    assert (await stub.unary("Echo", lab.chunk())).data == b"spiffe://heart/envoy/north"
    with pytest.raises(IdentityError, match="names no identity"):
        await lab.stub(None).unary("Echo", lab.chunk())
    with pytest.raises(IdentityError, match="role user"):
        await lab.stub(None, identity=lab.identity(Role.USER, "alice")).unary("Echo", lab.chunk())


async def test_a_claim_in_metadata_means_nothing_over_tls(lab: Any) -> None:
    await lab.start(Role.ENVOY)
    stub = lab.stub(lab.issue(Role.ENVOY, "north"), identity=lab.identity(Role.OPERATOR, "root"))
    assert (await stub.unary("Echo", lab.chunk())).data == b"spiffe://heart/envoy/north"


async def test_a_service_is_assembled_whole_or_not_at_all(lab: Any) -> None:
    authority = Authority(FederationName("heart"), {}, clock=FakeClock())
    server = RpcServer(authority, Metrics(), tls=None)
    with pytest.raises(TypeError, match=r"probe\.v1\.Probe\.Echo"):
        server.add_service(lab.service_descriptor, object())
    with pytest.raises(ValueError, match="no rule"):
        server.add_service(lab.service_descriptor, lab.service)

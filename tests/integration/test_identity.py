"""Who may call, over real mutual TLS: whoever is not who he should be is refused, with a clear status, and counted."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from federation.errors import ConflictError, IdentityError, TransportError
from federation.names import FederationName, Role
from federation.pki.authority import CertificateAuthority, issue_identity
from federation.pki.revocation import revoke
from federation.transport.authority import CallRefusal
from federation.transport.credentials import TlsFiles, read_certificate
from federation.transport.handshakes import PATIENCE_S
from federation.transport.server import HEALTH_SERVICE

from .calls import call


async def test_a_site_with_its_certificate_is_who_it_says(lab: Any) -> None:
    await lab.start(Role.ENVOY)
    reply = await lab.stub(lab.issue(Role.ENVOY, "north")).unary("Echo", lab.chunk())
    assert reply.data == b"spiffe://heart/envoy/north"
    peer = lab.service.calls[0].peer
    assert peer.fingerprint == lab_facts(lab, "envoy-north").fingerprint
    assert peer.serial == lab_facts(lab, "envoy-north").serial


async def test_a_plaintext_client_is_cut_off_and_counted(lab: Any) -> None:
    await lab.start(Role.ENVOY)
    stub = lab.stub(None, identity=lab.identity(Role.ENVOY, "north"))
    with pytest.raises(TransportError, match="certificate"):
        await stub.unary("Echo", lab.chunk())
    lab.clock.advance(PATIENCE_S)
    assert lab.refused(CallRefusal.HANDSHAKE) >= 1
    assert lab.service.calls == []


async def test_a_client_without_certificate_is_cut_off_and_counted(lab: Any) -> None:
    await lab.start(Role.ENVOY)
    stub = lab.stub_over(lab.channel_with(lab.authority.certificate_pem))
    with pytest.raises(TransportError, match="certificate"):
        await stub.unary("Echo", lab.chunk())
    lab.clock.advance(PATIENCE_S)
    assert lab.refused(CallRefusal.HANDSHAKE) >= 1
    assert lab.service.calls == []


async def test_a_certificate_of_a_foreign_authority_is_cut_off_and_counted(lab: Any) -> None:
    await lab.start(Role.ENVOY)
    folder = lab.folder / "foreign"
    foreign = CertificateAuthority.create(FederationName("heart"), folder / "ca", now=lab.clock.now())
    issue_identity(foreign, lab.identity(Role.ENVOY, "north"), folder / "north", now=lab.clock.now())
    key, certificate = ((folder / "north" / name).read_bytes() for name in ("key.pem", "cert.pem"))
    stub = lab.stub_over(lab.channel_with(lab.authority.certificate_pem, key, certificate))
    with pytest.raises(TransportError, match="another authority"):
        await stub.unary("Echo", lab.chunk())
    lab.clock.advance(PATIENCE_S)
    assert lab.refused(CallRefusal.HANDSHAKE) >= 1
    assert lab.service.calls == []


async def test_a_client_does_not_talk_to_a_server_of_a_foreign_authority(lab: Any) -> None:
    await lab.start(Role.ENVOY)
    folder = lab.folder / "foreign"
    foreign = CertificateAuthority.create(FederationName("heart"), folder / "ca", now=lab.clock.now())
    issue_identity(foreign, lab.identity(Role.ENVOY, "north"), folder / "north", now=lab.clock.now())
    with pytest.raises(TransportError):
        await lab.stub(TlsFiles.in_folder(folder / "north")).unary("Echo", lab.chunk())
    assert lab.service.calls == []


async def test_a_client_does_not_talk_to_a_server_of_another_name(lab: Any) -> None:
    await lab.start(Role.ENVOY)
    stub = lab.stub(lab.issue(Role.ENVOY, "north"), server_name="trial.aggregator.heart.internal")
    with pytest.raises(TransportError):
        await stub.unary("Echo", lab.chunk())


async def test_a_site_cannot_serve_as_the_director(lab: Any) -> None:
    await lab.start(Role.ENVOY)
    site = lab.issue(Role.ENVOY, "north").key.parent
    for name in ("key.pem", "cert.pem"):  # the director's files become a site's, in place
        (lab.folder / "director-director" / name).write_bytes((site / name).read_bytes())
    with pytest.raises(TransportError):
        await lab.stub(lab.issue(Role.ENVOY, "south")).unary("Echo", lab.chunk())


@pytest.mark.parametrize("method", ["Echo", "Follow", "Collect", "Talk"])
@pytest.mark.parametrize("role", [Role.USER, Role.JOINER], ids=lambda role: role.value)
async def test_the_wrong_role_is_denied_by_every_kind_of_method(lab: Any, method: str, role: Role) -> None:
    await lab.start(Role.ENVOY)
    stub = lab.stub(lab.issue(role, "north"))
    with pytest.raises(IdentityError, match=f"is for envoy; this certificate is of role {role.value}"):
        await call(stub, method, lab)
    assert lab.refused(CallRefusal.WRONG_ROLE) == 1
    assert lab.service.calls == []


async def test_the_wrong_role_is_denied_before_its_message_is_parsed(lab: Any) -> None:
    await lab.start(Role.ENVOY)
    tls = lab.issue(Role.USER, "alice")
    channel = lab.channel_with(tls.authority.read_bytes(), tls.key.read_bytes(), tls.certificate.read_bytes())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary("/probe.v1.Probe/Echo")(b"\xff\xff\xff")
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert lab.refused(CallRefusal.MALFORMED) == 0


async def test_a_site_that_acts_as_another_is_denied_and_counted(lab: Any) -> None:
    await lab.start(Role.ENVOY)
    lab.service.error = IdentityError("this update is south's; the certificate is north's")
    with pytest.raises(IdentityError, match="south's"):
        await lab.stub(lab.issue(Role.ENVOY, "north")).unary("Echo", lab.chunk())
    assert lab.refused(CallRefusal.NOT_ITSELF) == 1


async def test_a_certificate_of_another_federation_under_the_same_authority_is_refused(lab: Any) -> None:
    await lab.start(Role.ENVOY)
    with pytest.raises(IdentityError, match="this is federation 'heart'"):
        await lab.stub(lab.forge("spiffe://lungs/envoy/north")).unary("Echo", lab.chunk())
    assert lab.refused(CallRefusal.FOREIGN_FEDERATION) == 1


@pytest.mark.parametrize(
    "uris",
    [
        ("spiffe://heart/envoy/north", "spiffe://heart/operator/root"),
        ("spiffe://heart/envoy/north", "https://example.org/"),
        ("https://heart/envoy/north",),
        (),
    ],
    ids=["two identities", "an identity and a page", "no spiffe id", "nothing"],
)
async def test_a_certificate_without_exactly_one_identity_is_refused(lab: Any, uris: tuple[str, ...]) -> None:
    await lab.start(Role.ENVOY, Role.OPERATOR)
    with pytest.raises(IdentityError):
        await lab.stub(lab.forge(*uris)).unary("Echo", lab.chunk())
    assert lab.refused(CallRefusal.NOT_ONE_IDENTITY) == 1


@pytest.mark.parametrize("name", ["a/b", "../north", "north/", "/north", "north%2Fsouth", "North", "a" * 64, "no rth"])
async def test_names_that_could_build_a_path_are_refused(lab: Any, name: str) -> None:
    await lab.start(Role.ENVOY)
    with pytest.raises(IdentityError):
        await lab.stub(lab.forge(f"spiffe://heart/envoy/{name}")).unary("Echo", lab.chunk())
    assert lab.refused(CallRefusal.NOT_ONE_IDENTITY) == 1
    assert lab.service.calls == []


async def test_an_expired_certificate_ends_its_open_streams(lab: Any) -> None:
    await lab.start(Role.ENVOY)
    stub = lab.stub(lab.issue(Role.ENVOY, "north", lifetime_s=5))
    other = lab.stub(lab.issue(Role.ENVOY, "south"))
    follow = stub.server_stream("Follow", lab.chunk(offset=7))
    talk = stub.bidi("Talk")
    lasting = other.bidi("Talk")
    assert (await follow.read()).offset == 7
    for stream in (talk, lasting):
        await stream.write(lab.chunk(offset=1))
        assert (await stream.read()).offset == 2

    lab.clock.advance(6)

    for stream in (follow, talk):
        with pytest.raises(IdentityError, match="expired"):
            await stream.read()
    await lab.service.cleaned.wait()
    assert lab.refused(CallRefusal.EXPIRED) == 2
    await lasting.write(lab.chunk(offset=1))
    assert (await lasting.read()).offset == 2


async def test_an_expired_certificate_gets_nothing_more_from_its_open_connection(lab: Any) -> None:
    await lab.start(Role.ENVOY)
    stub = lab.stub(lab.issue(Role.ENVOY, "north", lifetime_s=5))
    assert await stub.unary("Echo", lab.chunk())
    lab.clock.advance(5)
    with pytest.raises(IdentityError, match="renew it and connect anew"):
        await stub.unary("Echo", lab.chunk())
    assert lab.refused(CallRefusal.EXPIRED) == 1


async def test_a_stream_outlives_the_hours_at_which_its_certificate_is_looked_at_again(lab: Any) -> None:
    await lab.start(Role.ENVOY)
    stream = lab.stub(lab.issue(Role.ENVOY, "north", lifetime_s=3 * 3600)).bidi("Talk")
    await stream.write(lab.chunk())
    assert await stream.read()
    lab.clock.advance(3 * 3600 - 1)
    await stream.write(lab.chunk())
    assert await stream.read()
    lab.clock.advance(2)
    with pytest.raises(IdentityError, match="expired"):
        await stream.read()


async def test_a_revoked_certificate_ends_its_open_streams(lab: Any) -> None:
    await lab.start(Role.ENVOY)
    stub = lab.stub(lab.issue(Role.ENVOY, "north"))
    other = lab.stub(lab.issue(Role.ENVOY, "south")).bidi("Talk")
    stream = stub.bidi("Talk")
    for each in (stream, other):
        await each.write(lab.chunk())
        assert await each.read()

    revoke(lab.folder / "revoked.txt", lab_facts(lab, "envoy-north").serial)
    lab.revoked.reload()

    with pytest.raises(IdentityError, match="revoked"):
        await stream.read()
    with pytest.raises(IdentityError, match="revoked"):
        await stub.unary("Echo", lab.chunk())
    assert lab.refused(CallRefusal.REVOKED) == 2
    await other.write(lab.chunk())
    assert await other.read()


async def test_a_revocation_is_noticed_with_anybodys_next_call(lab: Any) -> None:
    await lab.start(Role.ENVOY)
    stream = lab.stub(lab.issue(Role.ENVOY, "north")).bidi("Talk")
    await stream.write(lab.chunk())
    assert await stream.read()
    revoke(lab.folder / "revoked.txt", lab_facts(lab, "envoy-north").serial)
    await lab.stub(lab.issue(Role.ENVOY, "south")).unary("Echo", lab.chunk())
    with pytest.raises(IdentityError, match="revoked"):
        await stream.read()


async def test_writing_to_an_ended_stream_says_why_it_ended(lab: Any) -> None:
    await lab.start(Role.ENVOY)
    stream = lab.stub(lab.issue(Role.ENVOY, "north", lifetime_s=5)).bidi("Talk")
    await stream.write(lab.chunk())
    assert await stream.read()
    lab.clock.advance(6)
    await lab.service.cleaned.wait()
    with pytest.raises(IdentityError, match="expired"):
        while True:
            await stream.write(lab.chunk())


async def test_a_newer_session_supersedes_the_older(lab: Any) -> None:
    await lab.start(Role.ENVOY)
    stream = lab.stub(lab.issue(Role.ENVOY, "north")).bidi("Talk")
    await stream.write(lab.chunk())
    assert await stream.read()
    lab.service.calls[0].end(ConflictError("a newer session of this site took over"))
    with pytest.raises(ConflictError, match="newer session"):
        await stream.read()
    await lab.service.cleaned.wait()


async def test_any_valid_certificate_may_ask_after_the_servers_health(lab: Any) -> None:
    await lab.start(Role.ENVOY)
    for role in Role:
        stub = lab.stub(lab.issue(role, "someone"), service=HEALTH_SERVICE)
        reply = await stub.unary("Check", health_pb2.HealthCheckRequest(service="probe.v1.Probe"))
        assert reply.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_good_connection_is_not_counted_as_a_refused_one(lab: Any) -> None:
    await lab.start(Role.ENVOY)
    stub = lab.stub(lab.issue(Role.ENVOY, "north"))
    for _ in range(3):
        await stub.unary("Echo", lab.chunk())
    lab.clock.advance(2 * PATIENCE_S)
    assert lab.refused(CallRefusal.HANDSHAKE) == 0


async def test_a_renewed_server_certificate_is_taken_in_place(lab: Any) -> None:
    await lab.start(Role.ENVOY)
    tls = lab.issue(Role.ENVOY, "north")
    assert await lab.stub(tls).unary("Echo", lab.chunk())
    first = await served_fingerprint(lab, tls)
    renewed = lab.issue(Role.DIRECTOR, "director").facts().fingerprint
    assert first != renewed
    assert await served_fingerprint(lab, tls) == renewed
    assert await lab.stub(tls).unary("Echo", lab.chunk())


async def test_a_half_written_renewal_is_passed_over(lab: Any) -> None:
    await lab.start(Role.ENVOY)
    tls = lab.issue(Role.ENVOY, "north")
    first = await served_fingerprint(lab, tls)
    files = TlsFiles.in_folder(lab.folder / "director-director")
    kept = files.key.read_bytes()
    lab.issue(Role.DIRECTOR, "director")
    new_key = files.key.read_bytes()
    files.key.write_bytes(kept)
    assert await served_fingerprint(lab, tls) == first
    files.key.write_bytes(new_key)
    assert await served_fingerprint(lab, tls) == files.facts().fingerprint


async def test_a_client_renews_by_a_new_channel(lab: Any) -> None:
    await lab.start(Role.ENVOY)
    old = lab.stub(lab.issue(Role.ENVOY, "north", lifetime_s=5))
    await old.unary("Echo", lab.chunk())
    new = lab.stub(lab.issue(Role.ENVOY, "north", lifetime_s=3600))
    lab.clock.advance(6)
    assert await new.unary("Echo", lab.chunk())
    with pytest.raises(IdentityError, match="expired"):
        await old.unary("Echo", lab.chunk())


def lab_facts(lab: Any, folder: str) -> Any:
    return read_certificate((lab.folder / folder / "cert.pem").read_bytes())


async def served_fingerprint(lab: Any, tls: TlsFiles) -> str:
    """Return the fingerprint of the certificate the server shows to a new connection."""
    context = ssl.create_default_context(cafile=str(tls.authority))
    context.load_cert_chain(tls.certificate, tls.key)
    context.set_alpn_protocols(["h2"])
    _, writer = await asyncio.open_connection("127.0.0.1", lab.port, ssl=context, server_hostname=lab.server_name)
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()  # a polite close would have to read what gRPC is saying
    return "sha256:" + hashlib.sha256(der).hexdigest()

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from federation.errors import ConfigurationError, IdentityError
from federation.names import FederationName, Identity, Role
from federation.pki.authority import CertificateAuthority
from federation.pki.keys import make_key
from federation.pki.revocation import RevocationList, revoke
from federation.testing.clock import FakeClock
from federation.transport.authority import Authority, CallRefusal, Peer, RefusedCallError

if TYPE_CHECKING:
    from pathlib import Path

FEDERATION = FederationName("heart")
METHOD = "/federation.v1.Director/Attend"
RULES = {METHOD: frozenset({Role.ENVOY})}


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def issuer(tmp_path: Path, clock: FakeClock) -> CertificateAuthority:
    return CertificateAuthority.create(FEDERATION, tmp_path / "ca", now=clock.now())


def context(
    issuer: CertificateAuthority,
    clock: FakeClock,
    *,
    role: Role = Role.ENVOY,
    name: str = "north",
    version: str = "1.3",
) -> dict[str, list[bytes]]:
    identity = Identity(federation=issuer.federation, role=role, name=name)
    issued = issuer.issue(identity, make_key().public_key(), now=clock.now(), lifetime_s=60)
    return {
        "x509_pem_cert": [issued.pem],
        "peer_spiffe_id": [identity.spiffe.encode()],
        "ssl_tls_version": [f"TLSv{version}".encode()],
    }


def refusal(authority: Authority, auth_context: dict[str, list[bytes]], method: str = METHOD) -> CallRefusal:
    with pytest.raises(RefusedCallError) as caught:
        authority.authorise(method, auth_context)
    return caught.value.refusal


def test_reads_the_peer_from_its_certificate(issuer: CertificateAuthority, clock: FakeClock) -> None:
    auth_context = context(issuer, clock)
    peer = Authority(FEDERATION, RULES, clock=clock).authorise(METHOD, auth_context)
    assert peer.identity == Identity(federation=FEDERATION, role=Role.ENVOY, name="north")
    assert peer.expires_at == clock.now() + 60


def test_refuses_a_connection_without_certificate(clock: FakeClock) -> None:
    assert refusal(Authority(FEDERATION, RULES, clock=clock), {}) is CallRefusal.NO_CERTIFICATE


@pytest.mark.parametrize("version", ["1.2", "1.1"])
def test_refuses_less_than_tls_1_3(issuer: CertificateAuthority, clock: FakeClock, version: str) -> None:
    auth_context = context(issuer, clock, version=version)
    assert refusal(Authority(FEDERATION, RULES, clock=clock), auth_context) is CallRefusal.WEAK_TLS


def test_refuses_when_the_tls_version_is_not_known(issuer: CertificateAuthority, clock: FakeClock) -> None:
    auth_context = context(issuer, clock)
    del auth_context["ssl_tls_version"]
    assert refusal(Authority(FEDERATION, RULES, clock=clock), auth_context) is CallRefusal.WEAK_TLS


def test_refuses_when_grpc_reads_another_identity_than_we_do(issuer: CertificateAuthority, clock: FakeClock) -> None:
    auth_context = context(issuer, clock) | {"peer_spiffe_id": [b"spiffe://heart/operator/root"]}
    assert refusal(Authority(FEDERATION, RULES, clock=clock), auth_context) is CallRefusal.NOT_ONE_IDENTITY


def test_refuses_a_certificate_of_another_federation(issuer: CertificateAuthority, clock: FakeClock) -> None:
    authority = Authority(FederationName("lungs"), RULES, clock=clock)
    assert refusal(authority, context(issuer, clock)) is CallRefusal.FOREIGN_FEDERATION


def test_refuses_from_the_second_of_expiry_on(issuer: CertificateAuthority, clock: FakeClock) -> None:
    authority = Authority(FEDERATION, RULES, clock=clock)
    auth_context = context(issuer, clock)
    clock.advance(59.9)
    peer = authority.authorise(METHOD, auth_context)
    assert authority.recheck(peer) is None
    clock.advance(0.1)
    assert refusal(authority, auth_context) is CallRefusal.EXPIRED
    found = authority.recheck(peer)
    assert found is not None
    assert found.refusal is CallRefusal.EXPIRED


def test_refuses_a_revoked_certificate(issuer: CertificateAuthority, clock: FakeClock, tmp_path: Path) -> None:
    path = tmp_path / "revoked"
    authority = Authority(FEDERATION, RULES, clock=clock, revoked=RevocationList(path))
    auth_context = context(issuer, clock)
    peer = authority.authorise(METHOD, auth_context)
    revoke(path, peer.serial)
    assert refusal(authority, auth_context) is CallRefusal.REVOKED
    found = authority.recheck(peer)
    assert found is not None
    assert found.refusal is CallRefusal.REVOKED


def test_a_broken_revocation_list_lets_nobody_in(
    issuer: CertificateAuthority, clock: FakeClock, tmp_path: Path
) -> None:
    path = tmp_path / "revoked"
    authority = Authority(FEDERATION, RULES, clock=clock, revoked=RevocationList(path))
    auth_context = context(issuer, clock)
    peer = authority.authorise(METHOD, auth_context)
    path.write_text("not a serial\n")
    with pytest.raises(ConfigurationError, match="line 1"):
        authority.authorise(METHOD, auth_context)
    assert authority.recheck(peer) is None


@pytest.mark.parametrize("role", [role for role in Role if role is not Role.ENVOY], ids=lambda role: role.value)
def test_refuses_every_role_the_rule_does_not_name(issuer: CertificateAuthority, clock: FakeClock, role: Role) -> None:
    authority = Authority(FEDERATION, RULES, clock=clock)
    assert refusal(authority, context(issuer, clock, role=role)) is CallRefusal.WRONG_ROLE


def test_a_method_without_a_rule_is_for_nobody(issuer: CertificateAuthority, clock: FakeClock) -> None:
    authority = Authority(FEDERATION, RULES, clock=clock)
    assert refusal(authority, context(issuer, clock), METHOD + "Too") is CallRefusal.WRONG_ROLE


def test_what_is_no_certificate_is_not_one_identity(clock: FakeClock) -> None:
    auth_context = {"x509_pem_cert": [b"rubbish"], "ssl_tls_version": [b"TLSv1.3"]}
    assert refusal(Authority(FEDERATION, RULES, clock=clock), auth_context) is CallRefusal.NOT_ONE_IDENTITY


def test_remembers_a_certificate_but_not_the_verdict(issuer: CertificateAuthority, clock: FakeClock) -> None:
    authority = Authority(FEDERATION, RULES | {"/a.B/C": frozenset({Role.USER})}, clock=clock)
    auth_context = context(issuer, clock)
    assert authority.authorise(METHOD, auth_context)
    assert refusal(authority, auth_context, "/a.B/C") is CallRefusal.WRONG_ROLE


@pytest.mark.parametrize(
    ("claimed", "expected"),
    [
        (None, CallRefusal.NO_CERTIFICATE),
        ("north", CallRefusal.NOT_ONE_IDENTITY),
        ("spiffe://heart/envoy/no/rth", CallRefusal.NOT_ONE_IDENTITY),
        ("spiffe://lungs/envoy/north", CallRefusal.FOREIGN_FEDERATION),
        ("spiffe://heart/user/north", CallRefusal.WRONG_ROLE),
    ],
)
def test_claims_on_a_plaintext_server_are_checked_like_certificates(
    clock: FakeClock, claimed: str | None, expected: CallRefusal
) -> None:
    authority = Authority(FEDERATION, RULES, clock=clock)
    with pytest.raises(IdentityError) as caught:
        authority.authorise_loopback(METHOD, claimed)
    assert isinstance(caught.value, RefusedCallError)
    assert caught.value.refusal is expected


def test_a_claimed_identity_never_expires(clock: FakeClock) -> None:
    authority = Authority(FEDERATION, RULES, clock=clock)
    peer = authority.authorise_loopback(METHOD, "spiffe://heart/envoy/north")
    assert isinstance(peer, Peer)
    clock.advance(1e9)
    assert authority.recheck(peer) is None

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from federation.errors import IdentityError, MalformedMessageError
from federation.names import FederationName, Identity, Role
from federation.pki.authority import CertificateAuthority
from federation.pki.certificates import parse_certificate
from federation.pki.keys import make_key
from federation.pki.requests import enrol, make_request, read_request, renew

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HEART = FederationName("heart")
NOW = 1_800_000_000.0
JOINER = Identity(federation=HEART, role=Role.JOINER, name="north")


@pytest.fixture
def authority(tmp_path: Path) -> CertificateAuthority:
    return CertificateAuthority.create(HEART, tmp_path / "ca", now=NOW)


def ledger() -> Callable[[], bool]:
    spent: list[None] = []

    def spend() -> bool:
        spent.append(None)
        return len(spent) == 1

    return spend


def test_a_request_proves_its_key() -> None:
    key = make_key()
    assert read_request(make_request(key)) == key.public_key()


def test_refuses_a_request_signed_by_another_key() -> None:
    request = bytearray(make_request(make_key()))
    request[-1] ^= 1
    with pytest.raises(MalformedMessageError):
        read_request(bytes(request))


@pytest.mark.parametrize("data", [b"", b"rubbish", b"\x30" * 20_000], ids=["empty", "rubbish", "too long"])
def test_refuses_what_is_no_request(data: bytes) -> None:
    with pytest.raises(MalformedMessageError):
        read_request(data)


def test_refuses_another_kind_of_key() -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    with pytest.raises(MalformedMessageError, match="secp384r1: use P-256"):
        read_request(request.public_bytes(serialization.Encoding.DER))


def test_refuses_a_request_for_a_key_on_an_unknown_curve(on_unknown_curve: Callable[[bytes], bytes]) -> None:
    with pytest.raises(MalformedMessageError, match="not supported"):
        read_request(on_unknown_curve(make_request(make_key())))


def test_a_joiner_becomes_the_envoy_its_token_names(authority: CertificateAuthority) -> None:
    key = make_key()
    issued = enrol(authority, JOINER, make_request(key), now=NOW, lifetime_s=60, spend=ledger())
    certificate = parse_certificate(issued.pem, "issued")
    assert certificate.spiffe == "spiffe://heart/envoy/north"
    assert certificate.public_key == key.public_key()
    assert certificate.expires_at == NOW + 60


def test_what_a_request_says_about_itself_is_ignored(authority: CertificateAuthority) -> None:
    root = x509.UniformResourceIdentifier("spiffe://heart/operator/root")
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(x509.SubjectAlternativeName([root]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(make_key(), hashes.SHA256())
    )
    data = request.public_bytes(serialization.Encoding.DER)
    issued = enrol(authority, JOINER, data, now=NOW, lifetime_s=60, spend=ledger())
    assert parse_certificate(issued.pem, "issued").spiffe == "spiffe://heart/envoy/north"


def test_a_token_works_once(authority: CertificateAuthority) -> None:
    spend = ledger()
    enrol(authority, JOINER, make_request(make_key()), now=NOW, lifetime_s=60, spend=spend)
    with pytest.raises(IdentityError, match="used before"):
        enrol(authority, JOINER, make_request(make_key()), now=NOW, lifetime_s=60, spend=spend)


def test_a_bad_request_does_not_spend_the_token(authority: CertificateAuthority) -> None:
    spend = ledger()
    with pytest.raises(MalformedMessageError):
        enrol(authority, JOINER, b"rubbish", now=NOW, lifetime_s=60, spend=spend)
    assert enrol(authority, JOINER, make_request(make_key()), now=NOW, lifetime_s=60, spend=spend)


@pytest.mark.parametrize("role", [role for role in Role if role is not Role.JOINER], ids=lambda role: role.value)
def test_only_a_joiner_enrols_and_everybody_else_renews(authority: CertificateAuthority, role: Role) -> None:
    identity = Identity(federation=HEART, role=role, name="north")
    request = make_request(make_key())
    with pytest.raises(IdentityError, match="join tokens"):
        enrol(authority, identity, request, now=NOW, lifetime_s=60, spend=ledger())
    assert renew(authority, identity, request, now=NOW, lifetime_s=60).identity == identity


def test_a_joiner_cannot_renew(authority: CertificateAuthority) -> None:
    with pytest.raises(IdentityError, match="cannot be renewed"):
        renew(authority, JOINER, make_request(make_key()), now=NOW, lifetime_s=60)

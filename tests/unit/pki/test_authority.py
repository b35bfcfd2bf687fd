from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from federation.errors import ConfigurationError, IdentityError, InvalidNameError
from federation.names import FederationName, Identity, Role, director_server_name
from federation.pki.authority import CertificateAuthority, issue_identity
from federation.pki.keys import make_key

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HEART = FederationName("heart")
NOW = 1_800_000_000.0


@pytest.fixture
def authority(tmp_path: Path) -> CertificateAuthority:
    return CertificateAuthority.create(HEART, tmp_path / "ca", now=NOW)


def who(role: Role, name: str = "north", federation: FederationName = HEART) -> Identity:
    return Identity(federation=federation, role=role, name=name)


def issued(authority: CertificateAuthority, role: Role, name: str = "north") -> x509.Certificate:
    return x509.load_pem_x509_certificate(authority.issue(who(role, name), make_key().public_key(), now=NOW).pem)


def test_what_was_created_is_loaded(tmp_path: Path, authority: CertificateAuthority) -> None:
    loaded = CertificateAuthority.load(tmp_path / "ca")
    assert loaded.federation == HEART
    assert loaded.certificate_pem == authority.certificate_pem


def test_keys_are_readable_by_their_owner_alone(tmp_path: Path, authority: CertificateAuthority) -> None:
    issue_identity(authority, who(Role.ENVOY), tmp_path / "north", now=NOW)
    for path in (tmp_path / "ca" / "ca.key", tmp_path / "north" / "key.pem"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert {path.name for path in (tmp_path / "north").iterdir()} == {"key.pem", "cert.pem", "ca.pem"}


def test_an_authority_is_not_overwritten_unless_forced(tmp_path: Path, authority: CertificateAuthority) -> None:
    with pytest.raises(ConfigurationError, match="--force"):
        CertificateAuthority.create(HEART, tmp_path / "ca", now=NOW)
    assert CertificateAuthority.load(tmp_path / "ca").certificate_pem == authority.certificate_pem
    CertificateAuthority.create(HEART, tmp_path / "ca", now=NOW, force=True)
    assert CertificateAuthority.load(tmp_path / "ca").certificate_pem != authority.certificate_pem


def test_an_identity_is_not_overwritten_unless_forced(tmp_path: Path, authority: CertificateAuthority) -> None:
    issue_identity(authority, who(Role.ENVOY), tmp_path / "north", now=NOW)
    before = (tmp_path / "north" / "key.pem").read_bytes()
    with pytest.raises(ConfigurationError, match="exists"):
        issue_identity(authority, who(Role.ENVOY), tmp_path / "north", now=NOW)
    assert (tmp_path / "north" / "key.pem").read_bytes() == before


@pytest.mark.parametrize("role", list(Role), ids=lambda role: role.value)
def test_a_certificate_carries_one_spiffe_id_and_a_p256_key(authority: CertificateAuthority, role: Role) -> None:
    certificate = issued(authority, role)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [f"spiffe://heart/{role.value}/north"]
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert isinstance(key.curve, ec.SECP256R1)


@pytest.mark.parametrize("role", list(Role), ids=lambda role: role.value)
def test_director_and_aggregator_alone_may_serve(authority: CertificateAuthority, role: Role) -> None:
    certificate = issued(authority, role, "trial-abcdefgh")
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    expected = {
        Role.DIRECTOR: [director_server_name(HEART)],
        Role.AGGREGATOR: ["trial-abcdefgh.aggregator.heart.internal"],
    }.get(role, [])
    assert names.get_values_for_type(x509.DNSName) == expected
    assert (ExtendedKeyUsageOID.SERVER_AUTH in usages) == bool(expected)
    assert ExtendedKeyUsageOID.CLIENT_AUTH in usages


def test_an_issued_certificate_cannot_issue(authority: CertificateAuthority) -> None:
    certificate = issued(authority, Role.DIRECTOR)
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign


def test_a_certificate_lasts_as_asked_but_never_longer_than_its_authority(authority: CertificateAuthority) -> None:
    key = make_key().public_key()
    assert authority.issue(who(Role.USER), key, now=NOW, lifetime_s=60).expires_at == NOW + 60
    assert authority.issue(who(Role.USER), key, now=NOW, lifetime_s=1e10).expires_at == authority.expires_at
    with pytest.raises(ConfigurationError, match="expired"):
        authority.issue(who(Role.USER), key, now=authority.expires_at)
    with pytest.raises(ValueError, match="positive"):
        authority.issue(who(Role.USER), key, now=NOW, lifetime_s=0)


def test_refuses_to_certify_for_another_federation(authority: CertificateAuthority) -> None:
    with pytest.raises(IdentityError, match="lungs"):
        authority.issue(who(Role.USER, federation=FederationName("lungs")), make_key().public_key(), now=NOW)


@pytest.mark.parametrize("name", ["a/b", "../north", "", "North", "a" * 64, "north/user/root"])
def test_refuses_names_that_could_build_a_path(authority: CertificateAuthority, name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidNameError):
        issue_identity(authority, who(Role.ENVOY, name), tmp_path / "out", now=NOW)
    with pytest.raises(InvalidNameError):
        CertificateAuthority.create(FederationName(name), tmp_path / "other", now=NOW)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "other").exists()


def test_refuses_what_is_no_authority(tmp_path: Path, authority: CertificateAuthority) -> None:
    with pytest.raises(ConfigurationError, match=r"ca\.pem"):
        CertificateAuthority.load(tmp_path / "nowhere")
    issue_identity(authority, who(Role.DIRECTOR), tmp_path / "d", now=NOW)
    (tmp_path / "d" / "cert.pem").rename(tmp_path / "d" / "ca.pem")
    (tmp_path / "d" / "key.pem").rename(tmp_path / "d" / "ca.key")
    with pytest.raises(ConfigurationError, match="pki init"):
        CertificateAuthority.load(tmp_path / "d")


def test_refuses_an_authority_with_the_wrong_key(tmp_path: Path, authority: CertificateAuthority) -> None:
    CertificateAuthority.create(HEART, tmp_path / "other", now=NOW)
    (tmp_path / "other" / "ca.key").replace(tmp_path / "ca" / "ca.key")
    with pytest.raises(ConfigurationError, match="not the key"):
        CertificateAuthority.load(tmp_path / "ca")


def write_authority(folder: Path, key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed448.Ed448PrivateKey) -> None:
    """Write an authority with such a key, sound in all else, as another program may have made it."""
    name = x509.Name([])
    begins = datetime.fromtimestamp(NOW, UTC)
    trust_domain = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{HEART}")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, begins, begins + timedelta(days=1))
    certificate = builder.add_extension(trust_domain, critical=False).sign(
        key, None if isinstance(key, ed448.Ed448PrivateKey) else hashes.SHA256()
    )
    folder.mkdir()
    (folder / "ca.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    protection = serialization.NoEncryption()
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)
    (folder / "ca.key").write_bytes(secret)


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        (rsa.generate_private_key(65537, 2048), "RSA"),
        (ec.generate_private_key(ec.SECP384R1()), "secp384r1"),
        (ed448.Ed448PrivateKey.generate(), "Ed448"),
    ],
    ids=["RSA", "P-384", "Ed448"],
)
def test_refuses_an_authority_whose_key_is_not_p256(
    tmp_path: Path, key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed448.Ed448PrivateKey, kind: str
) -> None:
    write_authority(tmp_path / "ca", key)
    with pytest.raises(ConfigurationError, match=rf"ca\.key is not a P-256 key but {kind}: make one with `federation"):
        CertificateAuthority.load(tmp_path / "ca")


@pytest.mark.parametrize("name", ["ca.pem", "ca.key"])
def test_refuses_an_authority_on_a_curve_that_is_unknown_here(
    tmp_path: Path, authority: CertificateAuthority, name: str, on_unknown_curve: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "ca" / name
    path.write_bytes(on_unknown_curve(path.read_bytes()))
    with pytest.raises(
        ConfigurationError, match=rf"{name} .* of a kind unknown here .*P-256|{name} is not a P-256 key"
    ):
        CertificateAuthority.load(tmp_path / "ca")


def test_an_authoritys_file_that_is_no_pem_is_the_one_that_is_named(
    tmp_path: Path, authority: CertificateAuthority
) -> None:
    (tmp_path / "ca" / "ca.key").write_text("not a key")
    with pytest.raises(ConfigurationError, match=r"ca\.key is not an unencrypted PEM key"):
        CertificateAuthority.load(tmp_path / "ca")
    (tmp_path / "ca" / "ca.pem").write_text("not a certificate")
    with pytest.raises(ConfigurationError, match=r"ca\.pem is not a certificate in PEM"):
        CertificateAuthority.load(tmp_path / "ca")

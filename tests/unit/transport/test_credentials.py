from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from federation.errors import ConfigurationError, IdentityError
from federation.names import FederationName, Identity, Role, director_server_name
from federation.pki.authority import CertificateAuthority, issue_identity
from federation.transport.credentials import TlsFiles, channel_credentials, read_certificate

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FEDERATION = FederationName("heart")
NOW = 1_800_000_000.0


@pytest.fixture
def authority(tmp_path: Path) -> CertificateAuthority:
    return CertificateAuthority.create(FEDERATION, tmp_path / "ca", now=NOW)


@pytest.fixture
def files(tmp_path: Path, authority: CertificateAuthority) -> TlsFiles:
    director = Identity(federation=FEDERATION, role=Role.DIRECTOR, name="director")
    issue_identity(authority, director, tmp_path / "director", now=NOW, lifetime_s=100)
    return TlsFiles.in_folder(tmp_path / "director")


def test_says_what_a_certificate_says(files: TlsFiles) -> None:
    facts = files.check(now=NOW + 99)
    assert facts.identity.spiffe == "spiffe://heart/director/director"
    assert facts.expires_at == NOW + 100
    assert facts.server_names == (director_server_name(FEDERATION),)
    assert facts.fingerprint.startswith("sha256:")


def test_refuses_an_expired_certificate_at_start(files: TlsFiles) -> None:
    with pytest.raises(ConfigurationError, match=r"expired at \d{4}-\d\d-\d\d \d\d:\d\d UTC: renew it"):
        files.check(now=NOW + 105)


def test_refuses_a_certificate_that_is_not_valid_yet_and_names_the_clock(files: TlsFiles) -> None:
    files.check(now=files.facts().valid_from)
    with pytest.raises(ConfigurationError, match=r"is not valid before .* and this machine's clock says .*: set the"):
        files.check(now=files.facts().valid_from - 1)


@pytest.mark.parametrize("name", ["ca.pem", "cert.pem", "key.pem"])
def test_a_missing_file_is_named(files: TlsFiles, name: str) -> None:
    (files.key.parent / name).unlink()
    with pytest.raises(ConfigurationError, match=name):
        files.load()


def test_refuses_a_key_that_others_may_read(files: TlsFiles) -> None:
    os.chmod(files.key, 0o640)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        channel_credentials(files)


def test_refuses_a_key_of_another_certificate(files: TlsFiles, authority: CertificateAuthority, tmp_path: Path) -> None:
    other = Identity(federation=FEDERATION, role=Role.ENVOY, name="north")
    issue_identity(authority, other, tmp_path / "north", now=NOW)
    mixed = TlsFiles(authority=files.authority, certificate=files.certificate, key=tmp_path / "north" / "key.pem")
    with pytest.raises(ConfigurationError, match="does not belong"):
        mixed.load()


def test_refuses_a_certificate_of_another_authority(files: TlsFiles, tmp_path: Path) -> None:
    CertificateAuthority.create(FEDERATION, tmp_path / "other", now=NOW)
    foreign = TlsFiles(authority=tmp_path / "other" / "ca.pem", certificate=files.certificate, key=files.key)
    with pytest.raises(ConfigurationError, match="not issued by"):
        foreign.load()


@pytest.mark.parametrize("name", ["authority", "certificate", "key"])
def test_a_file_that_is_no_pem_is_the_one_that_is_named(files: TlsFiles, name: str) -> None:
    path = getattr(files, name)
    path.write_text("not a certificate")
    what = "an unencrypted key" if name == "key" else "a certificate"
    with pytest.raises(ConfigurationError, match=rf"^{path} is not {what} in PEM: copy it again"):
        files.load()


@pytest.mark.parametrize("name", ["authority", "certificate", "key"])
def test_refuses_a_key_on_a_curve_that_is_unknown_here(
    files: TlsFiles, name: str, on_unknown_curve: Callable[[bytes], bytes]
) -> None:
    path = getattr(files, name)
    path.write_bytes(on_unknown_curve(path.read_bytes()))
    with pytest.raises(ConfigurationError, match=rf"^{path} has a key of a kind unknown here .*, expected P-256: have"):
        files.load()


def test_refuses_a_certificate_for_a_key_that_is_not_p256(files: TlsFiles, authority: CertificateAuthority) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    director = Identity(federation=FEDERATION, role=Role.DIRECTOR, name="director")
    files.certificate.write_bytes(authority.issue(director, key.public_key(), now=NOW).pem)
    protection = serialization.NoEncryption()
    files.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection))
    with pytest.raises(ConfigurationError, match=r"cert\.pem has a key of kind secp384r1, expected P-256: have it"):
        files.load()


def test_a_certificate_file_that_is_no_pem_says_nothing_of_itself(files: TlsFiles) -> None:
    files.certificate.write_text("not a certificate")
    with pytest.raises(ConfigurationError, match=r"cert\.pem"):
        files.facts()


def test_refuses_the_authoritys_own_certificate_as_an_identity(files: TlsFiles) -> None:
    with pytest.raises(IdentityError, match="spiffe"):
        read_certificate(files.authority.read_bytes())


def test_a_rewritten_file_has_another_mark(files: TlsFiles) -> None:
    before = files.marks()
    assert files.marks() == before
    renewed = files.certificate.with_suffix(".new")
    renewed.write_bytes(files.certificate.read_bytes())
    os.replace(renewed, files.certificate)
    assert files.marks() != before

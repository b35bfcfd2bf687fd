from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest

from federation.errors import ConfigurationError, InvalidNameError
from federation.names import FederationName, Identity, Role, SiteName
from federation.pki.authority import CertificateAuthority, issue_identity
from federation.pki.certificates import parse_certificate
from federation.pki.tokens import make_join_token, unpack_join_token

if TYPE_CHECKING:
    from pathlib import Path

HEART = FederationName("heart")
NOW = 1_800_000_000.0


@pytest.fixture
def authority(tmp_path: Path) -> CertificateAuthority:
    return CertificateAuthority.create(HEART, tmp_path / "ca", now=NOW)


def test_a_token_unpacks_to_a_joiners_files(authority: CertificateAuthority, tmp_path: Path) -> None:
    token = make_join_token(authority, SiteName("north"), now=NOW, lifetime_s=60)
    joiner = unpack_join_token(token, tmp_path / "token")
    assert joiner == Identity(federation=HEART, role=Role.JOINER, name="north")
    assert (tmp_path / "token" / "ca.pem").read_bytes() == authority.certificate_pem
    assert stat.S_IMODE((tmp_path / "token" / "key.pem").stat().st_mode) == 0o600
    assert parse_certificate((tmp_path / "token" / "cert.pem").read_bytes(), "token").expires_at == NOW + 60


def test_a_token_survives_other_line_ends(authority: CertificateAuthority, tmp_path: Path) -> None:
    token = make_join_token(authority, SiteName("north"), now=NOW).replace("\n", "\r\n")
    assert unpack_join_token(token, tmp_path / "token").name == "north"


@pytest.mark.parametrize("text", ["", "hello", "-----BEGIN PRIVATE KEY-----\nx", "x" * 100_000])
def test_refuses_what_is_no_token(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="token"):
        unpack_join_token(text, tmp_path / "token")
    assert not (tmp_path / "token").exists()


def test_refuses_files_of_another_role_as_a_token(authority: CertificateAuthority, tmp_path: Path) -> None:
    issue_identity(authority, Identity(federation=HEART, role=Role.ENVOY, name="north"), tmp_path / "n", now=NOW)
    text = "\n".join((tmp_path / "n" / name).read_text() for name in ("key.pem", "cert.pem", "ca.pem"))
    with pytest.raises(ConfigurationError, match="envoy"):
        unpack_join_token(text, tmp_path / "token")


def test_refuses_site_names_with_slashes(authority: CertificateAuthority) -> None:
    with pytest.raises(InvalidNameError):
        make_join_token(authority, SiteName("a/b"), now=NOW)

"""Join tokens: what an operator hands to a new site, good for one `Enrol` call.

A token is a short-lived certificate of role joiner with its key and the authority's certificate, three PEM blocks in
one file, so that mutual TLS needs no exception for newcomers. Whoever holds the file can enrol as the site it names,
once: hand it over as you would a password. That it is spent once is the director's ledger
(`federation.pki.requests.enrol`); that it expires is the certificate's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from federation.errors import ConfigurationError, IdentityError
from federation.names import Identity, Role, SiteName, check_name
from federation.pki.authority import CertificateAuthority, write_identity
from federation.pki.certificates import parse_certificate
from federation.pki.keys import key_pem, load_key_pem, make_key

if TYPE_CHECKING:
    from pathlib import Path

TOKEN_LIFETIME_S = 24 * 3600.0
"""A day: time to carry it over, not to lose it."""
_MAX_TOKEN_BYTES = 64 << 10
_KEY_BEGIN = "-----BEGIN PRIVATE KEY-----"
_CERTIFICATE_BEGIN = "-----BEGIN CERTIFICATE-----"


def make_join_token(
    authority: CertificateAuthority, site: SiteName, *, now: float, lifetime_s: float = TOKEN_LIFETIME_S
) -> str:
    """Return the text of a token with which `site` can enrol.

    Raises:
        InvalidNameError: the site's name is not valid.
    """
    check_name(site, "site name")
    key = make_key()
    joiner = Identity(federation=authority.federation, role=Role.JOINER, name=site)
    issued = authority.issue(joiner, key.public_key(), now=now, lifetime_s=lifetime_s)
    return "\n".join(
        (
            f"Join token: site {site}, federation {authority.federation}. Secret; works once, until it expires.",
            key_pem(key).decode(),
            issued.pem.decode(),
            authority.certificate_pem.decode(),
        )
    )


def unpack_join_token(text: str, folder: Path) -> Identity:
    """Write a token's ``key.pem``, ``cert.pem`` and ``ca.pem`` to `folder`, and return the joiner it names.

    Raises:
        ConfigurationError: it is no token, or files exist in `folder`.
        StorageError: the files cannot be written.
    """
    if len(text) > _MAX_TOKEN_BYTES:
        raise ConfigurationError(f"a join token has a few kilobytes, got {len(text)} characters: is this the file?")
    key, certificate, authority = _blocks(text)
    joiner = _joiner_of(certificate)
    load_key_pem(key, "the token's key")
    write_identity(folder, key, certificate, authority)
    return joiner


def _blocks(text: str) -> tuple[bytes, bytes, bytes]:
    before, key_begin, rest = text.partition(_KEY_BEGIN)
    parts = rest.split(_CERTIFICATE_BEGIN)
    if not key_begin or len(parts) != 3 or _CERTIFICATE_BEGIN in before:
        raise ConfigurationError(
            "not a join token: one key and two certificates are expected, as `federation pki join-token` writes them"
        )
    key, certificate, authority = parts
    return (
        (key_begin + key).strip().encode() + b"\n",
        (_CERTIFICATE_BEGIN + certificate).strip().encode() + b"\n",
        (_CERTIFICATE_BEGIN + authority).strip().encode() + b"\n",
    )


def _joiner_of(pem: bytes) -> Identity:
    certificate = parse_certificate(pem, "the token's certificate")
    try:
        identity = Identity.parse(certificate.spiffe)
    except IdentityError as error:
        raise ConfigurationError(f"not a join token: its certificate names no joiner ({error})") from error
    if identity.role is not Role.JOINER:
        raise ConfigurationError(f"not a join token: its certificate is of {identity}")
    return identity

"""What a certificate file says, for people and for whoever checks what an authority sent."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes

from federation.errors import ConfigurationError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

CLOCK_SKEW = timedelta(minutes=5)
"""Certificates are valid from this long before they are issued, for holders whose clocks lag."""

UNREADABLE = (
    ValueError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What `cryptography` raises of a certificate that it does not understand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """What a certificate says.

    Attributes:
        spiffe: its one URI; ``spiffe://<federation>`` alone for an authority.
        fingerprint: ``sha256:`` and the hex SHA-256 of the DER certificate.
        serial: serial number, as revocation lists name it.
        begins_at: when it was issued, Unix seconds: the beginning of its validity less what it is backdated.
        expires_at: end of its validity, Unix seconds.
        public_key: key it certifies.
    """

    spiffe: str
    fingerprint: str
    serial: int
    begins_at: float
    expires_at: float
    public_key: CertificatePublicKeyTypes


def load_certificate_pem(pem: bytes, what: str) -> x509.Certificate:
    """Read a certificate, and check that the key it certifies can be read too.

    Args:
        pem: the certificate.
        what: what it should be, for the error.

    Raises:
        ConfigurationError: it is none, or its key is of a kind that cannot be read.
    """
    try:
        certificate = x509.load_pem_x509_certificate(pem)
    except UNREADABLE as error:
        raise ConfigurationError(f"{what} is not a certificate in PEM") from error
    try:
        certificate.public_key()
    except UNREADABLE as error:
        raise ConfigurationError(
            f"{what} certifies a key of a kind unknown here ({error}), expected P-256: have it issued anew with "
            "`federation pki`"
        ) from error
    return certificate


def parse_certificate(pem: bytes, what: str) -> Certificate:
    """Read a certificate with exactly one URI.

    Args:
        pem: the certificate.
        what: what it should be, for the error.

    Raises:
        ConfigurationError: it is none, or its key is of a kind that cannot be read.
    """
    certificate = load_certificate_pem(pem, what)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
    except UNREADABLE as error:
        raise ConfigurationError(f"{what} is not a certificate with one SPIFFE id: {error}") from error
    return Certificate(
        spiffe=uri,
        fingerprint="sha256:" + certificate.fingerprint(hashes.SHA256()).hex(),
        serial=certificate.serial_number,
        begins_at=min(certificate.not_valid_before_utc + CLOCK_SKEW, certificate.not_valid_after_utc).timestamp(),
        expires_at=certificate.not_valid_after_utc.timestamp(),
        public_key=certificate.public_key(),
    )

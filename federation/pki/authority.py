"""The certificate authority of a federation: one self-signed P-256 certificate, and what it issues (RFC 5280).

Rules:

1. A federation has one authority. Its certificate carries ``spiffe://<federation>``, so the name is read from it and
   given nowhere else; it may sign end certificates only (path length 0).
2. What it issues carries exactly one URI, the SPIFFE id, decided by us and never copied from a request; subject and
   extensions of a request are ignored, its key alone is certified.
3. Director and aggregator certificates alone may serve: server usage and exactly one DNS name. All may dial.
4. Keys are P-256. No certificate outlives the authority, and each begins five minutes ago, for clocks that are behind.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from federation.errors import ConfigurationError, IdentityError, InvalidNameError
from federation.names import (
    ExperimentId,
    FederationName,
    Identity,
    Role,
    aggregator_server_name,
    check_name,
    director_server_name,
)
from federation.pki.certificates import CLOCK_SKEW, UNREADABLE, load_certificate_pem
from federation.pki.files import make_private_folder, read, refuse_existing, write_private, write_public
from federation.pki.keys import key_pem, load_key_pem, make_key

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric import ec

DAY_S = 86_400.0
AUTHORITY_LIFETIME_S = 3650 * DAY_S
CERTIFICATE_LIFETIME_S = 365 * DAY_S
"""A year: long enough for people who renew by hand, short enough that a forgotten one ends. Envoys renew earlier."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedCertificate:
    """A certificate the authority issued.

    Attributes:
        identity: whose it is.
        pem: the certificate.
        serial: its serial number.
        expires_at: end of its validity, Unix seconds.
    """

    identity: Identity
    pem: bytes
    serial: int
    expires_at: float


class CertificateAuthority:
    """The authority's certificate and key; see `create` and `load`.

    Attributes:
        federation: federation it is the authority of.
        certificate_pem: its certificate.
        expires_at: end of its validity, Unix seconds.
    """

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.federation = _federation_of(certificate)
        self.certificate_pem = certificate.public_bytes(serialization.Encoding.PEM)
        self.expires_at = certificate.not_valid_after_utc.timestamp()
        self._certificate = certificate
        self._key = key

    @classmethod
    def create(
        cls, federation: FederationName, folder: Path, *, now: float, force: bool = False
    ) -> CertificateAuthority:
        """Make the authority of a new federation as ``ca.pem`` and ``ca.key`` in `folder`.

        Args:
            federation: valid name of the federation.
            folder: where to write; made if missing.
            now: Unix seconds.
            force: replace an authority that exists; all its certificates then count no more.

        Raises:
            InvalidNameError: the name is not valid.
            ConfigurationError: there is an authority already, and `force` is False.
            StorageError: the files cannot be written.
        """
        check_name(federation, "federation name")
        if not force:
            refuse_existing(folder / "ca.pem", folder / "ca.key")
        key = make_key()
        certificate = _self_signed(federation, key, now)
        make_private_folder(folder)
        write_private(folder / "ca.key", key_pem(key), force=force)
        write_public(folder / "ca.pem", certificate.public_bytes(serialization.Encoding.PEM), force=force)
        return cls(certificate, key)

    @classmethod
    def load(cls, folder: Path) -> CertificateAuthority:
        """Read the authority that `create` wrote to `folder`.

        Raises:
            ConfigurationError: the files are missing or not an authority of a federation; its key is not P-256.
        """
        pem, secret = folder / "ca.pem", folder / "ca.key"
        what = "authority certificate"
        certificate = load_certificate_pem(read(pem, what), f"{what} {pem}")
        key = load_key_pem(read(secret, "authority key"), f"authority key {secret}")
        if key.public_key() != certificate.public_key():
            raise ConfigurationError(f"{secret} is not the key of {pem}: take both from the same authority")
        return cls(certificate, key)

    def issue(
        self,
        identity: Identity,
        public_key: ec.EllipticCurvePublicKey,
        *,
        now: float,
        lifetime_s: float = CERTIFICATE_LIFETIME_S,
    ) -> IssuedCertificate:
        """Issue a certificate for `identity` and `public_key`; whether that is right is for the caller to know.

        Args:
            identity: whose certificate it becomes.
            public_key: the holder's key, P-256.
            now: Unix seconds.
            lifetime_s: validity from `now` on, seconds; cut to the authority's own.

        Raises:
            IdentityError: the identity is of another federation.
            ConfigurationError: the authority has expired.
            ValueError: `lifetime_s` is not positive.
        """
        if identity.federation != self.federation:
            raise IdentityError(f"the authority of {self.federation!r} cannot certify {identity}")
        if lifetime_s <= 0:
            raise ValueError(f"lifetime_s must be positive, got {lifetime_s}")
        if now >= self.expires_at:
            raise ConfigurationError(f"the authority of {self.federation!r} has expired: make a new one")
        check_name(identity.name, "name")
        expires = datetime.fromtimestamp(int(min(now + lifetime_s, self.expires_at)), UTC)
        serial = x509.random_serial_number()
        certificate = _end_certificate(identity, public_key, serial, datetime.fromtimestamp(now, UTC), expires)
        signed = certificate.issuer_name(self._certificate.subject).sign(self._key, hashes.SHA256())
        return IssuedCertificate(
            identity=identity,
            pem=signed.public_bytes(serialization.Encoding.PEM),
            serial=serial,
            expires_at=expires.timestamp(),
        )


def issue_identity(
    authority: CertificateAuthority,
    identity: Identity,
    folder: Path,
    *,
    now: float,
    lifetime_s: float = CERTIFICATE_LIFETIME_S,
    force: bool = False,
) -> IssuedCertificate:
    """Make a key and issue its certificate, as ``key.pem``, ``cert.pem`` and ``ca.pem`` in `folder`.

    Args:
        authority: who issues.
        identity: whose certificate it becomes.
        folder: where to write; made if missing.
        now: Unix seconds.
        lifetime_s: validity, seconds.
        force: replace files that exist.

    Raises:
        ConfigurationError: files exist and `force` is False; the authority has expired.
        IdentityError: the identity is of another federation.
        InvalidNameError: its name is not valid.
        StorageError: the files cannot be written.
    """
    if not force:
        refuse_existing(*(folder / name for name in ("key.pem", "cert.pem", "ca.pem")))
    key = make_key()
    issued = authority.issue(identity, key.public_key(), now=now, lifetime_s=lifetime_s)
    write_identity(folder, key_pem(key), issued.pem, authority.certificate_pem, force=force)
    return issued


def write_identity(folder: Path, key: bytes, certificate: bytes, authority: bytes, *, force: bool = False) -> None:
    """Write the three PEM files of an identity to `folder`; the key first, so that no certificate is without one.

    Raises:
        ConfigurationError: files exist and `force` is False.
        StorageError: the files cannot be written.
    """
    make_private_folder(folder)
    write_private(folder / "key.pem", key, force=force)
    write_public(folder / "cert.pem", certificate, force=force)
    write_public(folder / "ca.pem", authority, force=force)


def _self_signed(federation: FederationName, key: ec.EllipticCurvePrivateKey, now: float) -> x509.Certificate:
    begins = datetime.fromtimestamp(now, UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{federation} authority"[:64])])
    trust_domain = x509.UniformResourceIdentifier(f"spiffe://{federation}")
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins - CLOCK_SKEW)
        .not_valid_after(begins + timedelta(seconds=AUTHORITY_LIFETIME_S))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectAlternativeName([trust_domain]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _end_certificate(
    identity: Identity, public_key: ec.EllipticCurvePublicKey, serial: int, begins: datetime, expires: datetime
) -> x509.CertificateBuilder:
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(identity.spiffe)]
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
    server_name = _server_name(identity)
    if server_name is not None:
        names.append(x509.DNSName(server_name))
        usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
    # the subject is for people only; 64 characters is the field's limit (RFC 5280, ub-common-name)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{identity.role.value} {identity.name}"[:64])])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(public_key)
        .serial_number(serial)
        .not_valid_before(begins - CLOCK_SKEW)
        .not_valid_after(expires)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
    )


def _server_name(identity: Identity) -> str | None:
    if identity.role is Role.DIRECTOR:
        return director_server_name(identity.federation)
    if identity.role is Role.AGGREGATOR:
        return aggregator_server_name(identity.federation, ExperimentId(identity.name))
    return None


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _federation_of(certificate: x509.Certificate) -> FederationName:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
        return FederationName(check_name(uri.removeprefix("spiffe://"), "federation name"))
    except (*UNREADABLE, InvalidNameError) as error:
        raise ConfigurationError(
            f"this certificate is not the authority of a federation ({error}): make one with `federation pki init`"
        ) from error

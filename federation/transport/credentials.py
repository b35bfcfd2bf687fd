"""Certificate files of a process: what they must be, and how they become gRPC credentials.

Rules:

1. Three PEM files: the authority's certificate, our certificate, our key. All three are read, and checked against each
   other, before anything is opened: an operator learns at start what is wrong, and from which file. Keys are P-256.
2. A private key that others on the machine may read is refused.
3. A server looks at its files before every handshake and takes what changed, so a renewed certificate needs no
   restart. Files that do not fit together (a renewal half written) are passed over until they do.
4. A client takes its files when it opens a channel; a renewed certificate means a new channel.
5. A holder that renews by itself replaces two files, key first. Until the second is replaced too, the new certificate
   lies beside it (`TlsFiles.next_certificate`); it is taken if it fits the key and the other does not.

`federation.pki` makes such files.
"""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import grpc
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from federation.errors import ConfigurationError, IdentityError
from federation.names import Identity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

UNREADABLE = (
    ValueError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What `cryptography` raises of certificates, some of which TLS takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateFacts:
    """What a certificate says.

    Attributes:
        identity: whose it is.
        valid_from: begin of its validity, Unix seconds.
        expires_at: end of its validity, Unix seconds.
        serial: serial number, which a revocation list names.
        fingerprint: ``sha256:`` and the hex SHA-256 of the DER certificate.
        server_names: DNS names it may serve; empty for a pure client.
    """

    identity: Identity
    valid_from: float
    expires_at: float
    serial: int
    fingerprint: str
    server_names: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsMaterial:
    """The three files' contents, PEM."""

    authority: bytes
    certificate: bytes
    key: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """Where the certificate files of a process are, PEM.

    Attributes:
        authority: certificate of the federation's authority.
        certificate: our own certificate.
        key: our private key, readable by us alone.
    """

    authority: Path
    certificate: Path
    key: Path

    @classmethod
    def in_folder(cls, folder: Path) -> TlsFiles:
        """Return the files ``ca.pem``, ``cert.pem`` and ``key.pem`` of a folder that ``federation pki`` wrote."""
        return cls(authority=folder / "ca.pem", certificate=folder / "cert.pem", key=folder / "key.pem")

    @property
    def next_certificate(self) -> Path:
        """Where our certificate lies while a renewal replaces key and certificate."""
        return self.certificate.with_name(self.certificate.name + ".next")

    def load(self) -> TlsMaterial:
        """Read the files and check that they fit together.

        Raises:
            ConfigurationError: a file is missing, unreadable or no PEM; a key is not P-256; ours is readable by others
                or is not the certificate's; the authority did not issue the certificate.
        """
        try:
            return self._load_once()
        except ConfigurationError:
            return self._load_once()  # a renewal may have replaced the key after we had read the certificate

    def _load_once(self) -> TlsMaterial:
        material = TlsMaterial(
            authority=_read(self.authority), certificate=_read(self.certificate), key=_read(self.key)
        )
        _check_private(self.key)
        try:
            _check_fit(material, self)
        except ConfigurationError:
            following = self._with_next_certificate(material)
            if following is None:
                raise
            return following
        return material

    def _with_next_certificate(self, material: TlsMaterial) -> TlsMaterial | None:
        """Rule 5: the same with the next certificate, if that is there and fits."""
        try:
            following = replace(material, certificate=self.next_certificate.read_bytes())
            _check_fit(following, self)
        except (OSError, ConfigurationError):
            return None
        return following

    def facts(self) -> CertificateFacts:
        """Return what our own certificate says.

        Raises:
            ConfigurationError: it cannot be read, or is not a certificate of a federation.
        """
        try:
            return read_certificate(_read(self.certificate))
        except IdentityError as error:
            raise ConfigurationError(f"certificate {self.certificate}: {error}") from error

    def check(self, *, now: float) -> CertificateFacts:
        """Load the files, check that the certificate is valid `now` [Unix s], and return what it says.

        Raises:
            ConfigurationError: as `load` and `facts`, or the certificate is not valid yet or has expired.
        """
        material = self.load()
        try:
            facts = read_certificate(material.certificate)
        except IdentityError as error:
            raise ConfigurationError(f"certificate {self.certificate}: {error}") from error
        if facts.valid_from > now:
            raise ConfigurationError(
                f"certificate {self.certificate} of {facts.identity} is not valid before {_utc(facts.valid_from)}, and "
                f"this machine's clock says {_utc(now)}: set the clock right, or wait"
            )
        if facts.expires_at <= now:
            raise ConfigurationError(
                f"certificate {self.certificate} of {facts.identity} expired at {_utc(facts.expires_at)}: "
                f"renew it, or issue a new one with `federation pki issue`; this machine's clock says {_utc(now)}"
            )
        return facts

    def marks(self) -> tuple[tuple[int, int, int], ...]:
        """Return what changes when a file is rewritten or replaced; missing files count as their own mark."""
        return tuple(_mark(path) for path in (self.authority, self.certificate, self.key))


def read_certificate(pem: bytes) -> CertificateFacts:
    """Read a certificate of ours.

    Raises:
        IdentityError: it is no certificate, or does not carry exactly one SPIFFE id.
    """
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except UNREADABLE as error:
        raise IdentityError(f"not a certificate with a SPIFFE id: {error}") from error
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise IdentityError(f"a certificate must carry exactly one URI, its SPIFFE id; got {len(uris)}")
    return CertificateFacts(
        identity=Identity.parse(uris[0]),
        valid_from=certificate.not_valid_before_utc.timestamp(),
        expires_at=certificate.not_valid_after_utc.timestamp(),
        serial=certificate.serial_number,
        fingerprint="sha256:" + certificate.fingerprint(hashes.SHA256()).hex(),
        server_names=tuple(names.get_values_for_type(x509.DNSName)),
    )


def _utc(at: float) -> str:
    """Return Unix seconds as people read them."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"


def channel_credentials(tls: TlsFiles) -> grpc.ChannelCredentials:
    """Return a client's credentials from the files as they are now.

    Raises:
        ConfigurationError: as `TlsFiles.load`.
    """
    material = tls.load()
    return grpc.ssl_channel_credentials(material.authority, material.key, material.certificate)


def server_credentials(tls: TlsFiles, on_handshake: Callable[[], None]) -> grpc.ServerCredentials:
    """Return credentials that demand a client certificate and follow the files as they change.

    Args:
        tls: the server's files.
        on_handshake: called before each handshake, **from a thread of gRPC's own**; must not block or raise.

    Raises:
        ConfigurationError: as `TlsFiles.load`.
    """
    marks = tls.marks()
    first = _configuration(tls.load())

    def before_handshake() -> grpc.ServerCertificateConfiguration | None:
        """Return the certificate if its files were replaced since; None: go on with the one there is."""
        nonlocal marks
        on_handshake()
        seen = tls.marks()
        if seen == marks:
            return None
        try:
            renewed = _configuration(tls.load())
        except ConfigurationError:
            return None  # half written: the next handshake looks again, this one gets the certificate we have
        marks = seen
        return renewed

    return grpc.dynamic_ssl_server_credentials(
        first,
        before_handshake,  # type: ignore[arg-type]  # the stubs forget that None means: as before
        require_client_authentication=True,
    )


def _configuration(material: TlsMaterial) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(material.key, material.certificate)], root_certificates=material.authority
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"cannot read {path}: {error.strerror}; `federation pki issue` makes certificate, key and authority files"
        ) from error


def _mark(path: Path) -> tuple[int, int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return (0, 0, 0)
    return (status.st_mtime_ns, status.st_size, status.st_ino)


def _check_private(path: Path) -> None:
    if os.name != "posix":
        return  # elsewhere permission bits say nothing; the client is all that runs there
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise ConfigurationError(
            f"private key {path} has permissions {mode:04o}, so others on this machine can use it: chmod 600 {path}"
        )


@contextlib.contextmanager
def _reading(path: Path, what: str) -> Iterator[None]:
    """Read what a file holds within this; one that holds something else is named, without the library's own words."""
    try:
        yield
    except UnsupportedAlgorithm as error:
        raise ConfigurationError(
            f"{path} has a key of a kind unknown here ({error}), expected P-256: have it issued anew"
        ) from error
    except (*UNREADABLE, TypeError) as error:
        raise ConfigurationError(f"{path} is not {what} in PEM: copy it again, or have it issued anew") from error


def _check_fit(material: TlsMaterial, files: TlsFiles) -> None:
    with _reading(files.authority, "a certificate"):
        authority = x509.load_pem_x509_certificate(material.authority)
        _check_p256(authority.public_key(), files.authority)
    with _reading(files.certificate, "a certificate"):
        certificate = x509.load_pem_x509_certificate(material.certificate)
        _check_p256(certificate.public_key(), files.certificate)
    with _reading(files.key, "an unencrypted key"):
        key = serialization.load_pem_private_key(material.key, None)
    if key.public_key() != certificate.public_key():
        raise ConfigurationError(f"key {files.key} does not belong to certificate {files.certificate}")
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, TypeError, *UNREADABLE) as error:  # other signature, other name, other kind of key
        raise ConfigurationError(
            f"certificate {files.certificate} was not issued by the authority in {files.authority}: "
            "take both from the same federation"
        ) from error


def _check_p256(key: object, path: Path) -> None:
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        kind = key.curve.name if isinstance(key, ec.EllipticCurvePublicKey) else type(key).__name__
        raise ConfigurationError(
            f"{path} has a key of kind {kind.removesuffix('PublicKey')}, expected P-256: have it issued anew with "
            "`federation pki`"
        )

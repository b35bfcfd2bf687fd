"""Signing keys: a user's for bundles, a site's for secure aggregation. Made by their owners, known by fingerprint.

They owe nothing to the federation's authority and are never TLS keys: what they sign must hold even against a director
that issues false certificates (architecture §6). Signatures are ECDSA P-256 with SHA-256 in DER; a public key is its
DER SubjectPublicKeyInfo; a fingerprint is ``sha256:`` and the hex SHA-256 of those bytes. What is signed carries a
label of its use in front; that is for the callers.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from federation.errors import BundleError, ConfigurationError
from federation.pki.files import make_private_folder, read, refuse_existing, write_private, write_public
from federation.pki.keys import key_pem, kind_of_key, load_key_pem, make_key

if TYPE_CHECKING:
    from pathlib import Path


def make_signing_key(path: Path, *, force: bool = False) -> ec.EllipticCurvePrivateKey:
    """Make a signing key at `path` and its public half beside it, with ``.pub`` appended.

    Raises:
        ConfigurationError: one exists and `force` is False.
        StorageError: it cannot be written.
    """
    public_path = path.with_name(path.name + ".pub")
    if not force:
        refuse_existing(path, public_path)
    key = make_key()
    make_private_folder(path.parent)
    write_private(path, key_pem(key), force=force)
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    write_public(public_path, public, force=force)
    return key


def load_signing_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a signing key.

    Raises:
        ConfigurationError: it is missing or no P-256 key.
    """
    return load_key_pem(read(path, "signing key"), f"signing key {path}")


def public_bytes(key: ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey) -> bytes:
    """Return the public half of `key` as DER SubjectPublicKeyInfo."""
    public = key.public_key() if isinstance(key, ec.EllipticCurvePrivateKey) else key
    return public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def fingerprint(public: bytes) -> str:
    """Return the fingerprint of a public key, DER SubjectPublicKeyInfo: what people compare and silos pin."""
    return "sha256:" + hashlib.sha256(public).hexdigest()


def fingerprint_of_file(path: Path) -> str:
    """Return the fingerprint of the signing key in a PEM file, private or public.

    Raises:
        ConfigurationError: it is neither.
    """
    pem = read(path, "signing key")
    if b"-----BEGIN PUBLIC KEY-----" not in pem:
        return fingerprint(public_bytes(load_key_pem(pem, f"signing key {path}")))
    try:
        key = serialization.load_pem_public_key(pem)
    except UnsupportedAlgorithm as error:
        raise ConfigurationError(
            f"{path} is not a P-256 key but of a kind unknown here ({error}): make one with "
            "`federation pki signing-key`"
        ) from error
    except ValueError as error:
        raise ConfigurationError(f"{path} is not a public key") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ConfigurationError(
            f"{path} is not a P-256 key but {kind_of_key(key)}: make one with `federation pki signing-key`"
        )
    return fingerprint(public_bytes(key))


def sign(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """Return the signature of `message`, DER."""
    return key.sign(message, ec.ECDSA(hashes.SHA256()))


def verify(public: bytes, signature: bytes, message: bytes) -> None:
    """Check a signature.

    Args:
        public: DER SubjectPublicKeyInfo, P-256.
        signature: DER.
        message: what was signed, label included.

    Raises:
        BundleError: the key is no P-256 key, or did not sign this.
    """
    try:
        key = serialization.load_der_public_key(public)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BundleError(f"the signing key is no public key in DER: {error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise BundleError("the signing key is not a P-256 key")
    try:
        key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise BundleError(f"the signature is not by key {fingerprint(public)}, or what it signs was changed") from error

"""Signing a manifest and deciding whether to believe one.

Rules, in order:

1. A signature is ECDSA over P-256 with SHA-256 (DER) of a label and the manifest's exact bytes; the label keeps it from
   meaning anything elsewhere.
2. `open_manifest` believes nobody: it checks that the holder of *this* key signed *these* bytes, for this federation,
   and that they have not expired and do so within `MAX_VALID_FOR_S`. That is all a director can know.
3. `verify` is the silo's: beyond that, the key must be the one pinned for the submitter. A silo's trust starts at its
   own pins, not at the director's certificate authority (architecture §6).

Keys are handed in; how they are made, stored and pinned is `federation.pki`'s business. The two agree by formats: DER
SubjectPublicKeyInfo, and a fingerprint that is ``sha256:`` and the hex SHA-256 of it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from federation.bundle.manifest import MAX_MANIFEST_BYTES, Manifest
from federation.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from federation.names import FederationName

LABEL = b"federation bundle v1\x00"
MAX_VALID_FOR_S = 30 * 86400.0
"""Longest that a signature may still be valid when it is looked at, seconds.

The expiry is the submitter's word. Without a bound to it a signature that nobody has used lies about for years, for
whoever gets hold of it, and every silo would remember its nonce as long.
"""
_MAX_KEY_BYTES = 1024
_MAX_SIGNATURE_BYTES = 256


class UnpinnedError(BundleError):
    """The signature is good, but this silo has not pinned the key for the submitter; its owner may approve it.

    Attributes:
        verified: what was signed, for the owner to look at.
        pinned: fingerprint that is pinned for the submitter, None if none is.
    """

    def __init__(self, verified: VerifiedManifest, pinned: str | None) -> None:
        known = f"pinned is {pinned}" if pinned else "none is pinned"
        super().__init__(
            f"the bundle of user {verified.manifest.submitter!r} is signed with key {verified.fingerprint}, "
            f"but {known}; "
            "compare fingerprints out of band, then pin the key in known.toml or approve this bundle"
        )
        self.verified = verified
        self.pinned = pinned


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedManifest:
    """A manifest as it travels.

    Attributes:
        manifest: canonical JSON, exactly the signed bytes.
        signature: ECDSA P-256 SHA-256 signature of label and manifest, DER.
        signing_key: public key, DER SubjectPublicKeyInfo.
    """

    manifest: bytes
    signature: bytes
    signing_key: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedManifest:
    """A manifest whose signature was checked, and the fingerprint of the key that made it."""

    manifest: Manifest
    fingerprint: str


def sign_manifest(manifest: Manifest, key: ec.EllipticCurvePrivateKey) -> SignedManifest:
    """Sign a manifest with a user's signing key.

    Raises:
        BundleError: the manifest is too long or would not be accepted, so that its author learns it at home.
        ValueError: the key is not on P-256.
    """
    if not isinstance(key.curve, ec.SECP256R1):
        raise ValueError(f"a signing key is on curve secp256r1, got {key.curve.name}")
    data = manifest.to_bytes()
    Manifest.parse(data)
    public = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    signature = key.sign(LABEL + data, ec.ECDSA(hashes.SHA256()))
    return SignedManifest(manifest=data, signature=signature, signing_key=public)


def fingerprint_of(signing_key: bytes) -> str:
    """Return the fingerprint of a public key (DER SubjectPublicKeyInfo), as people compare and pin it."""
    return "sha256:" + hashlib.sha256(signing_key).hexdigest()


def open_manifest(signed: SignedManifest, *, federation: FederationName, now: float) -> VerifiedManifest:
    """Check signature, federation and expiry, whoever signed.

    Args:
        signed: manifest as received.
        federation: federation this process belongs to.
        now: Unix time, seconds.

    Raises:
        BundleError: unsigned, wrongly signed, malformed, meant for another federation, expired, or valid for longer
            than `MAX_VALID_FOR_S`.
    """
    _check_signature(signed)
    manifest = Manifest.parse(signed.manifest)
    if manifest.federation != federation:
        raise BundleError(f"the bundle is signed for federation {manifest.federation!r}, this is {federation!r}")
    if now > manifest.not_after:
        raise BundleError(f"the bundle expired {now - manifest.not_after:.0f} s ago; submit it again")
    left_s = manifest.not_after - now
    if left_s > MAX_VALID_FOR_S:
        raise BundleError(
            f"the bundle's signature is valid for {left_s / 86400:.4g} days more, at most "
            f"{MAX_VALID_FOR_S / 86400:.0f} are allowed: submit it with `federation submit` of this release, or sign "
            "it again with an earlier expiry"
        )
    return VerifiedManifest(manifest=manifest, fingerprint=fingerprint_of(signed.signing_key))


def verify(
    signed: SignedManifest, *, federation: FederationName, known: Mapping[str, str], now: float
) -> VerifiedManifest:
    """Decide whether a silo may believe a manifest.

    Args:
        signed: manifest as received.
        federation: federation the silo belongs to.
        known: fingerprint of the signing key pinned for each user.
        now: Unix time, seconds.

    Raises:
        UnpinnedError: all is well, but the key is not the one pinned for its submitter.
        BundleError: as `open_manifest`.
    """
    verified = open_manifest(signed, federation=federation, now=now)
    pinned = known.get(verified.manifest.submitter)
    if pinned != verified.fingerprint:
        raise UnpinnedError(verified, pinned)
    return verified


def _check_signature(signed: SignedManifest) -> None:
    if not signed.signature or not signed.signing_key:
        raise BundleError("the bundle is not signed; submit it with a signing key")
    if len(signed.manifest) > MAX_MANIFEST_BYTES or len(signed.signature) > _MAX_SIGNATURE_BYTES:
        raise BundleError("the manifest or its signature is longer than allowed")
    if len(signed.signing_key) > _MAX_KEY_BYTES:
        raise BundleError("the signing key is longer than allowed")
    try:
        key = serialization.load_der_public_key(signed.signing_key)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BundleError("the signing key is not a DER SubjectPublicKeyInfo") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise BundleError("the signing key is not on curve P-256")
    try:
        key.verify(signed.signature, LABEL + signed.manifest, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise BundleError("the signature does not fit the manifest: one of them was changed") from error

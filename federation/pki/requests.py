"""Signing requests (PKCS #10), and the two ways a request becomes a certificate: enrolment and renewal.

Rules:

1. A key is made where it is used and never travels: what travels is a signing request, which proves its possession.
2. Of a request only the key counts. Who it is for is decided from the certificate of the connection it came over.
3. **Enrol**: the caller's certificate is a join token (role joiner) that has not been spent; it becomes the envoy of
   the same name. The token is spent before the certificate exists, so a crash costs a new token, never a second use.
4. **Renew**: the caller gets a certificate for the identity he has, with a new key. A joiner cannot renew.

`authority` issues; this module decides for whom. Source: architecture §6.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from federation.errors import IdentityError, MalformedMessageError
from federation.names import Identity, Role
from federation.pki.keys import kind_of_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from federation.pki.authority import CertificateAuthority, IssuedCertificate

MAX_REQUEST_BYTES = 16 << 10
"""A request for a P-256 key has a few hundred bytes; more is somebody's mistake or attack."""


def make_request(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a signing request for `key`, DER; its subject is empty because nobody would believe it."""
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.DER)


def read_request(signing_request: bytes) -> ec.EllipticCurvePublicKey:
    """Return the key that a signing request is for, after checking that its sender holds it.

    Raises:
        MalformedMessageError: it is no request, is signed by another key, or its key is not P-256.
    """
    if len(signing_request) > MAX_REQUEST_BYTES:
        raise MalformedMessageError(f"signing request of {len(signing_request)} bytes: at most {MAX_REQUEST_BYTES}")
    try:
        request = x509.load_der_x509_csr(signing_request)
        key = request.public_key()
        is_signed = request.is_signature_valid
    except (ValueError, UnsupportedAlgorithm) as error:
        raise MalformedMessageError(f"not a PKCS #10 signing request in DER: {error}") from error
    if not is_signed:
        raise MalformedMessageError("the signing request is not signed by the key it asks a certificate for")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise MalformedMessageError(f"the signing request is for a key of kind {kind_of_key(key)}: use P-256")
    return key


def enrol(
    authority: CertificateAuthority,
    joiner: Identity,
    signing_request: bytes,
    *,
    now: float,
    lifetime_s: float,
    spend: Callable[[], bool],
) -> IssuedCertificate:
    """Exchange a join token for the certificate of the envoy it names.

    Args:
        authority: who issues.
        joiner: identity of the certificate the request came with.
        signing_request: PKCS #10, DER.
        now: Unix seconds.
        lifetime_s: validity of the new certificate, seconds.
        spend: records durably that this token (by its serial number) is used, and tells whether it was the first time;
            called once, when nothing but the issuing can fail any more.

    Raises:
        IdentityError: the caller is no joiner, or the token is spent.
        MalformedMessageError: the request is not sound.
    """
    if joiner.role is not Role.JOINER:
        raise IdentityError(f"enrolment is for join tokens, got a certificate of {joiner}: renew it instead")
    key = read_request(signing_request)
    if not spend():
        raise IdentityError(
            f"the join token for {joiner.name!r} was used before: if that was not you, revoke the certificate it "
            "brought; ask the operator for a new token"
        )
    envoy = Identity(federation=joiner.federation, role=Role.ENVOY, name=joiner.name)
    return authority.issue(envoy, key, now=now, lifetime_s=lifetime_s)


def renew(
    authority: CertificateAuthority, identity: Identity, signing_request: bytes, *, now: float, lifetime_s: float
) -> IssuedCertificate:
    """Issue a fresh certificate for the identity the caller has.

    Args:
        authority: who issues.
        identity: identity of the certificate the request came with.
        signing_request: PKCS #10, DER.
        now: Unix seconds.
        lifetime_s: validity of the new certificate, seconds.

    Raises:
        IdentityError: the caller is a joiner: a token would never end.
        MalformedMessageError: the request is not sound.
    """
    if identity.role is Role.JOINER:
        raise IdentityError("a join token cannot be renewed: enrol with it, or ask the operator for a new one")
    return authority.issue(identity, read_request(signing_request), now=now, lifetime_s=lifetime_s)

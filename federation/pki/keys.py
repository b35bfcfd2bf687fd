"""Keys: P-256, made where they are used; as PEM, unencrypted: the permissions of the file protect them."""

from __future__ import annotations

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from federation.errors import ConfigurationError

_NEXT = "make one with `federation pki`"


def make_key() -> ec.EllipticCurvePrivateKey:
    """Return a new P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return `key` as PKCS #8 PEM, unencrypted: the file's permissions protect it."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def load_key_pem(pem: bytes, what: str) -> ec.EllipticCurvePrivateKey:
    """Read a P-256 key.

    Args:
        pem: PKCS #8 PEM, unencrypted.
        what: what it should be, for the error.

    Raises:
        ConfigurationError: it is none.
    """
    try:
        key = serialization.load_pem_private_key(pem, None)
    except UnsupportedAlgorithm as error:
        raise ConfigurationError(f"{what} is not a P-256 key but of a kind unknown here ({error}): {_NEXT}") from error
    except (ValueError, TypeError) as error:
        # The library's own words are for programmers; of use is whether a password is missing, which is a TypeError.
        note = ": it is encrypted" if isinstance(error, TypeError) else ""
        raise ConfigurationError(f"{what} is not an unencrypted PEM key{note}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ConfigurationError(f"{what} is not a P-256 key but {kind_of_key(key)}: {_NEXT}")
    return key


def kind_of_key(key: object) -> str:
    """Return what people call the kind of a key, private or public: its curve, or its algorithm."""
    if isinstance(key, ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey):
        return key.curve.name
    return type(key).__name__.removesuffix("PrivateKey").removesuffix("PublicKey")

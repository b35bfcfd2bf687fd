from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from federation.errors import ConfigurationError
from federation.pki.keys import key_pem, load_key_pem, make_key


def pem_of(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey, password: bytes = b"") -> bytes:
    protection = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)


def test_a_key_is_read_as_it_was_written() -> None:
    key = make_key()
    assert load_key_pem(key_pem(key), "the key").private_numbers() == key.private_numbers()


@pytest.mark.parametrize(
    "key", [ec.generate_private_key(ec.SECP384R1()), ed25519.Ed25519PrivateKey.generate()], ids=["P-384", "Ed25519"]
)
def test_refuses_a_key_that_is_not_on_p256(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> None:
    with pytest.raises(ConfigurationError, match=r"the key is not a P-256 key"):
        load_key_pem(pem_of(key), "the key")


@pytest.mark.parametrize("pem", [b"rubbish", pem_of(make_key(), b"secret")], ids=["rubbish", "with a password"])
def test_refuses_what_is_no_key_or_has_a_password(pem: bytes) -> None:
    with pytest.raises(ConfigurationError, match="the key is not an unencrypted PEM key"):
        load_key_pem(pem, "the key")

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa

from federation.errors import ConfigurationError
from federation.pki.keys import key_pem, load_key_pem, make_key

if TYPE_CHECKING:
    from collections.abc import Callable

PrivateKey = ec.EllipticCurvePrivateKey | ed448.Ed448PrivateKey | rsa.RSAPrivateKey


def pem_of(key: PrivateKey, password: bytes = b"") -> bytes:
    protection = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)


def test_a_key_is_read_as_it_was_written() -> None:
    key = make_key()
    assert load_key_pem(key_pem(key), "the key").private_numbers() == key.private_numbers()


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        (ec.generate_private_key(ec.SECP384R1()), "secp384r1"),
        (ed448.Ed448PrivateKey.generate(), "Ed448"),
        (rsa.generate_private_key(65537, 2048), "RSA"),
    ],
    ids=["P-384", "Ed448", "RSA"],
)
def test_refuses_a_key_that_is_not_on_p256_and_says_what_it_is(key: PrivateKey, kind: str) -> None:
    with pytest.raises(ConfigurationError, match=f"the key is not a P-256 key but {kind}: make one with"):
        load_key_pem(pem_of(key), "the key")


def test_refuses_a_key_on_a_curve_that_is_unknown_here(on_unknown_curve: Callable[[bytes], bytes]) -> None:
    with pytest.raises(ConfigurationError, match=r"the key is not a P-256 key but of a kind unknown here .*: make one"):
        load_key_pem(on_unknown_curve(key_pem(make_key())), "the key")


@pytest.mark.parametrize("pem", [b"rubbish", pem_of(make_key(), b"secret")], ids=["rubbish", "with a password"])
def test_refuses_what_is_no_key_or_has_a_password(pem: bytes) -> None:
    with pytest.raises(ConfigurationError, match="the key is not an unencrypted PEM key"):
        load_key_pem(pem, "the key")

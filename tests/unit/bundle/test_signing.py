from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from federation.bundle import MAX_VALID_FOR_S, UnpinnedError, fingerprint_of, open_manifest, sign_manifest, verify
from federation.client.submission import VALID_FOR_S
from federation.errors import BundleError
from federation.names import FederationName

NOW = 1_700_000_000.0
HERE = FederationName("hospitals")


def _public(key) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def test_a_bundle_signed_with_the_pinned_key_is_believed(source, describe, key) -> None:
    signed = sign_manifest(describe(source.packed), key)
    known = {"alice": fingerprint_of(_public(key))}
    assert verify(signed, federation=HERE, known=known, now=NOW).manifest == describe(source.packed)


def test_an_unsigned_bundle_is_refused(source, describe, key) -> None:
    signed = sign_manifest(describe(source.packed), key)
    for unsigned in (replace(signed, signature=b""), replace(signed, signing_key=b"")):
        with pytest.raises(BundleError, match="not signed"):
            open_manifest(unsigned, federation=HERE, now=NOW)


def test_a_bundle_signed_by_a_stranger_waits_for_approval(source, describe, key) -> None:
    stranger = ec.generate_private_key(ec.SECP256R1())
    signed = sign_manifest(describe(source.packed), stranger)
    with pytest.raises(UnpinnedError) as caught:
        verify(signed, federation=HERE, known={"alice": fingerprint_of(_public(key))}, now=NOW)
    assert caught.value.verified.fingerprint == fingerprint_of(_public(stranger))
    with pytest.raises(UnpinnedError, match="none is pinned"):
        verify(signed, federation=HERE, known={}, now=NOW)


def test_the_pin_of_another_user_does_not_count(source, describe, key) -> None:
    signed = sign_manifest(describe(source.packed), key)
    with pytest.raises(UnpinnedError):
        verify(signed, federation=HERE, known={"bob": fingerprint_of(_public(key))}, now=NOW)


def test_a_changed_manifest_is_refused(source, describe, key) -> None:
    signed = sign_manifest(describe(source.packed), key)
    other = describe(source.packed, not_after=NOW + 1e6).to_bytes()
    with pytest.raises(BundleError, match="changed"):
        open_manifest(replace(signed, manifest=other), federation=HERE, now=NOW)


def test_a_signature_over_the_bare_manifest_means_nothing_here(source, describe, key) -> None:
    from cryptography.hazmat.primitives import hashes

    signed = sign_manifest(describe(source.packed), key)
    bare = key.sign(signed.manifest, ec.ECDSA(hashes.SHA256()))
    with pytest.raises(BundleError, match="changed"):
        open_manifest(replace(signed, signature=bare), federation=HERE, now=NOW)


def test_every_flipped_bit_of_manifest_or_signature_is_noticed(source, describe, key) -> None:
    signed = sign_manifest(describe(source.packed), key)
    for place in range(0, len(signed.manifest), 97):
        data = bytearray(signed.manifest)
        data[place] ^= 1
        with pytest.raises(BundleError):
            open_manifest(replace(signed, manifest=bytes(data)), federation=HERE, now=NOW)
    for place in range(len(signed.signature)):
        data = bytearray(signed.signature)
        data[place] ^= 1
        with pytest.raises(BundleError):
            open_manifest(replace(signed, signature=bytes(data)), federation=HERE, now=NOW)


def test_a_bundle_for_another_federation_is_refused(source, describe, key) -> None:
    signed = sign_manifest(describe(source.packed), key)
    with pytest.raises(BundleError, match="federation"):
        open_manifest(signed, federation=FederationName("banks"), now=NOW)


def test_an_expired_bundle_is_refused_and_one_at_its_last_second_is_not(source, describe, key) -> None:
    signed = sign_manifest(describe(source.packed), key)
    open_manifest(signed, federation=HERE, now=NOW + 60)
    with pytest.raises(BundleError, match="expired"):
        open_manifest(signed, federation=HERE, now=NOW + 60.5)


@pytest.mark.parametrize("excess_s", [1.0, 10 * 365 * 86400.0, 1e300])
def test_a_signature_that_is_valid_for_too_long_is_refused_and_one_at_the_bound_is_not(
    source, describe, key, excess_s
) -> None:
    open_manifest(
        sign_manifest(describe(source.packed, not_after=NOW + MAX_VALID_FOR_S), key), federation=HERE, now=NOW
    )
    signed = sign_manifest(describe(source.packed, not_after=NOW + MAX_VALID_FOR_S + excess_s), key)
    with pytest.raises(
        BundleError, match=r"valid for .* days more, at most 30 are allowed: .* sign it again with an earlier"
    ):
        open_manifest(signed, federation=HERE, now=NOW)


def test_what_submit_signs_is_valid_for_less_than_the_bound_with_room_for_clocks_that_differ() -> None:
    assert VALID_FOR_S + 86400 < MAX_VALID_FOR_S


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP256K1()], ids=lambda curve: curve.name)
def test_keys_of_another_curve_neither_sign_nor_verify(source, describe, key, curve) -> None:
    other = ec.generate_private_key(curve)
    with pytest.raises(ValueError, match="secp256r1"):
        sign_manifest(describe(source.packed), other)
    signed = sign_manifest(describe(source.packed), key)
    with pytest.raises(BundleError, match="P-256"):
        open_manifest(replace(signed, signing_key=_public(other)), federation=HERE, now=NOW)


def test_what_is_no_key_is_refused(source, describe, key) -> None:
    signed = sign_manifest(describe(source.packed), key)
    edwards = _public(ed25519.Ed25519PrivateKey.generate())
    for wrong in (b"key", edwards, b"\x00" * 5000):
        with pytest.raises(BundleError, match="signing key"):
            open_manifest(replace(signed, signing_key=wrong), federation=HERE, now=NOW)


def test_a_fingerprint_is_what_people_compare() -> None:
    assert fingerprint_of(b"") == "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_fingerprints_and_keys_agree_with_those_of_the_pki(tmp_path, source, describe) -> None:
    signing = pytest.importorskip("federation.pki.signing")
    key = signing.make_signing_key(tmp_path / "signing.key") or signing.load_signing_key(tmp_path / "signing.key")
    key = key if isinstance(key, ec.EllipticCurvePrivateKey) else signing.load_signing_key(tmp_path / "signing.key")
    signed = sign_manifest(describe(source.packed), key)
    assert signing.fingerprint(signed.signing_key) == fingerprint_of(signed.signing_key)

from __future__ import annotations

import hashlib
import stat
from typing import TYPE_CHECKING

import pytest

from federation.errors import BundleError, ConfigurationError
from federation.pki.signing import (
    fingerprint,
    fingerprint_of_file,
    load_signing_key,
    make_signing_key,
    public_bytes,
    sign,
    verify,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_a_signature_holds_for_its_message_and_key_alone(tmp_path: Path) -> None:
    key = make_signing_key(tmp_path / "alice.key")
    other = make_signing_key(tmp_path / "eve.key")
    signature = sign(key, b"bundle")
    verify(public_bytes(key), signature, b"bundle")
    with pytest.raises(BundleError, match="changed"):
        verify(public_bytes(key), signature, b"bundlE")
    with pytest.raises(BundleError, match=fingerprint(public_bytes(other))):
        verify(public_bytes(other), signature, b"bundle")


@pytest.mark.parametrize("public", [b"", b"rubbish"])
def test_refuses_what_is_no_key(public: bytes) -> None:
    with pytest.raises(BundleError):
        verify(public, b"", b"")


def test_what_was_made_is_loaded_and_private(tmp_path: Path) -> None:
    key = make_signing_key(tmp_path / "keys" / "alice.key")
    assert public_bytes(load_signing_key(tmp_path / "keys" / "alice.key")) == public_bytes(key)
    assert stat.S_IMODE((tmp_path / "keys" / "alice.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "keys" / "alice.key.pub").stat().st_mode) == 0o644


def test_both_halves_have_the_fingerprint_of_the_public_one(tmp_path: Path) -> None:
    key = make_signing_key(tmp_path / "alice.key")
    expected = "sha256:" + hashlib.sha256(public_bytes(key)).hexdigest()
    assert fingerprint_of_file(tmp_path / "alice.key") == expected
    assert fingerprint_of_file(tmp_path / "alice.key.pub") == expected


def test_a_key_is_not_overwritten_unless_forced(tmp_path: Path) -> None:
    first = make_signing_key(tmp_path / "alice.key")
    with pytest.raises(ConfigurationError, match="exists"):
        make_signing_key(tmp_path / "alice.key")
    assert public_bytes(load_signing_key(tmp_path / "alice.key")) == public_bytes(first)
    make_signing_key(tmp_path / "alice.key", force=True)
    assert public_bytes(load_signing_key(tmp_path / "alice.key")) != public_bytes(first)


def test_refuses_files_that_are_no_signing_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot read"):
        load_signing_key(tmp_path / "none")
    (tmp_path / "text").write_text("-----BEGIN PUBLIC KEY-----\nx\n-----END PUBLIC KEY-----\n")
    with pytest.raises(ConfigurationError, match="public key"):
        fingerprint_of_file(tmp_path / "text")


def test_refuses_a_signing_key_on_a_curve_that_is_unknown_here(
    tmp_path: Path, on_unknown_curve: Callable[[bytes], bytes]
) -> None:
    key = make_signing_key(tmp_path / "alice.key")
    for name in ("alice.key", "alice.key.pub"):
        (tmp_path / name).write_bytes(on_unknown_curve((tmp_path / name).read_bytes()))
        with pytest.raises(
            ConfigurationError, match=rf"{name} .*of a kind unknown here.*: make one with `federation pki"
        ):
            fingerprint_of_file(tmp_path / name)
    with pytest.raises(BundleError, match="no public key"):
        verify(on_unknown_curve(public_bytes(key)), b"", b"")

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.bundle import Manifest, payload_digest
from federation.errors import BundleError
from federation.tensors import DType, TensorSchema, TensorSpec, digest, pack


def _changed(data: bytes, **changes: object) -> bytes:
    document = {**json.loads(data), **changes}
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def test_what_was_written_is_read_back_and_its_bytes_are_canonical(source, describe) -> None:
    manifest = describe(source.packed)
    data = manifest.to_bytes()
    assert Manifest.parse(data) == manifest
    assert Manifest.parse(data).to_bytes() == data
    assert manifest.digest == hashlib.sha256(data).digest()
    assert manifest.spec_digest == manifest.spec.digest


def test_another_spelling_of_the_same_manifest_is_refused(source, describe) -> None:
    data = describe(source.packed).to_bytes()
    with pytest.raises(BundleError, match="canonical"):
        Manifest.parse(json.dumps(json.loads(data)).encode())
    with pytest.raises(BundleError, match="canonical"):
        Manifest.parse(data.replace(b'"federation":"hospitals"', b'"federation":"mine","federation":"hospitals"'))


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "federation-bundle-2"},
        {"federation": "a/b"},
        {"submitter": "../alice"},
        {"nonce": "00"},
        {"nonce": "0123456789ABCDEF" * 2},
        {"nonce": "xy" * 16},
        {"not_after": "tomorrow"},
        {"not_after": True},
        {"bundle": {"sha256": "00" * 32, "size": -1}},
        {"bundle": {"sha256": "00", "size": 1}},
        {"bundle": {"sha256": "00" * 32, "size": 1, "also": 2}},
        {"model": 3},
        {"model_payload": None},
        {"files": [{"path": "a"}]},
        {"files": "experiment.py"},
        {"spec": {}},
        {"extra": 1},
    ],
    ids=lambda changes: json.dumps(changes)[:40],
)
def test_a_field_that_is_not_what_it_should_be_is_refused(source, describe, changes) -> None:
    with pytest.raises(BundleError):
        Manifest.parse(_changed(describe(source.packed).to_bytes(), **changes))


def test_a_missing_field_is_refused(source, describe) -> None:
    document = json.loads(describe(source.packed).to_bytes())
    for field in document:
        rest = {name: value for name, value in document.items() if name != field}
        with pytest.raises(BundleError):
            Manifest.parse(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode())


def test_files_that_are_not_sorted_are_refused(source, describe) -> None:
    document = json.loads(describe(source.packed).to_bytes())
    with pytest.raises(BundleError, match="sorted"):
        Manifest.parse(_changed(describe(source.packed).to_bytes(), files=document["files"][::-1]))


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused_and_never_crash(data: bytes) -> None:
    with pytest.raises(BundleError):
        Manifest.parse(data)


def test_a_manifest_longer_than_allowed_is_refused_before_it_is_read() -> None:
    with pytest.raises(BundleError, match="bytes"):
        Manifest.parse(b" " * (1024 * 1024 + 1))


def test_deeply_nested_json_is_refused() -> None:
    with pytest.raises(BundleError):
        Manifest.parse(b"[" * 200_000)


def test_the_payload_digest_is_that_of_the_flat_buffer() -> None:
    schema = TensorSchema.of(
        [TensorSpec(name="a", dtype=DType.FLOAT32, shape=(3,)), TensorSpec(name="b", dtype=DType.INT64, shape=())]
    )
    arrays = {"a": np.arange(3, dtype=np.float32), "b": np.array(7)}
    assert payload_digest(schema, arrays) == digest.payload_digest(pack(schema, arrays))
    assert payload_digest(TensorSchema(()), {}) == digest.payload_digest(b"")

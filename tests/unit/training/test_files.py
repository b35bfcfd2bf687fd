from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from federation.errors import StorageError
from federation.tensors import DType, TensorRole, TensorSchema, TensorSpec, pack, unpack
from federation.training import files
from federation.training.kept_file import KeptFile

_DTYPES = st.sampled_from([DType.FLOAT16, DType.BFLOAT16, DType.FLOAT32, DType.FLOAT64])


def _random(spec: TensorSpec, rng: np.random.Generator) -> np.ndarray:
    return np.asarray(rng.normal(size=spec.shape)).astype(spec.dtype.numpy)


@st.composite
def schemas(draw: st.DrawFn) -> TensorSchema:
    shapes = draw(st.lists(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5), min_size=1, max_size=6))
    return TensorSchema.of(
        TensorSpec(name=f"t{n}", dtype=draw(_DTYPES), shape=shape, role=draw(st.sampled_from(list(TensorRole))))
        for n, shape in enumerate(shapes)
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(schema=schemas(), seed=st.integers(0, 100))
def test_a_change_is_w_minus_x_in_each_tensors_own_type(tmp_path, schema, seed) -> None:
    rng = np.random.default_rng(seed)
    x = {spec.name: _random(spec, rng) for spec in schema}
    w = {spec.name: _random(spec, rng) for spec in schema}
    (tmp_path / "model").write_bytes(pack(schema.federated, x))
    (tmp_path / "delta").write_bytes(b"\xff" * schema.parameters.nbytes)
    files.write_change(tmp_path / "delta", tmp_path / "model", schema, w)
    got = unpack(schema.parameters, (tmp_path / "delta").read_bytes())
    for spec in schema.parameters:
        assert np.array_equal(got[spec.name], w[spec.name] - x[spec.name])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(schema=schemas(), seed=st.integers(0, 100))
def test_reading_gives_back_what_was_written(tmp_path, schema, seed) -> None:
    rng = np.random.default_rng(seed)
    written = {spec.name: _random(spec, rng) for spec in schema}
    read = {spec.name: np.zeros(spec.shape, spec.dtype.numpy) for spec in schema}
    (tmp_path / "f").unlink(missing_ok=True)
    files.write_from(tmp_path / "f", schema, written)
    assert (tmp_path / "f").stat().st_size == schema.nbytes
    files.read_into(tmp_path / "f", schema, read)
    assert all(np.array_equal(read[name], written[name]) for name in written)


def test_a_tensor_of_many_tiles_is_changed_as_a_whole(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(files, "_TILE_BYTES", 64)
    schema = TensorSchema.of([TensorSpec(name="w", dtype=DType.FLOAT32, shape=(333,))])
    x, w = np.arange(333, dtype=np.float32), np.arange(333, dtype=np.float32) ** 2
    (tmp_path / "model").write_bytes(x.tobytes())
    files.write_change(tmp_path / "delta", tmp_path / "model", schema, {"w": w})
    assert np.array_equal(np.fromfile(tmp_path / "delta", np.float32), w - x)


@pytest.mark.parametrize("is_kept", [False, True])
@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.BFLOAT16])
def test_large_changes_are_computed_in_pieces_that_begin_anywhere(tmp_path, monkeypatch, dtype, is_kept) -> None:
    monkeypatch.setattr(files, "_TILE_BYTES", 1 << 12)
    monkeypatch.setattr(files, "_MAPPED_BYTES", 1 << 13)
    monkeypatch.setattr(files, "_WINDOW_BYTES", 3 << 13)
    shapes = {"a": (7,), "b": (50_001,), "c": (3, 33_333), "d": (2_500,)}
    schema = TensorSchema.of(TensorSpec(name=name, dtype=dtype, shape=shape) for name, shape in shapes.items())
    rng = np.random.default_rng(1)
    kept = KeptFile() if is_kept else None
    (tmp_path / "delta").write_bytes(b"\xff" * (schema.nbytes + 9))
    for _ in range(2):
        x, w = ({spec.name: _random(spec, rng) for spec in schema} for _ in range(2))
        (tmp_path / "model").write_bytes(pack(schema.federated, x))
        files.write_change(tmp_path / "delta", tmp_path / "model", schema, w, kept)
        data = (tmp_path / "delta").read_bytes()
        got = unpack(schema.parameters, data[: schema.nbytes])
        for spec in schema.parameters:
            assert np.array_equal(got[spec.name], w[spec.name] - x[spec.name])
        assert data[schema.nbytes :] == b"\xff" * 9
    os.truncate(tmp_path / "model", schema.nbytes - 1)
    with pytest.raises(StorageError, match="ends"):
        files.write_change(tmp_path / "delta", tmp_path / "model", schema, w, kept)


@pytest.mark.parametrize("place", [None, "delta"])
def test_a_change_that_is_kept_is_what_calls_would_write(tmp_path, monkeypatch, place) -> None:
    """Calls write where the file does not have its bytes yet; afterwards it is mapped, and no call writes."""
    monkeypatch.setattr(files, "_MAPPED_BYTES", 1 << 10)
    schema = TensorSchema.of([TensorSpec(name="w", dtype=DType.FLOAT32, shape=(1_000,))])
    x, w = np.arange(1_000, dtype=np.float32), np.arange(1_000, dtype=np.float32) ** 2
    (tmp_path / "model").write_bytes(x.tobytes())
    if place:
        (tmp_path / place).write_bytes(bytes(4_000))
    calls = []
    real = files._write_views
    monkeypatch.setattr(files, "_write_views", lambda *arguments: calls.append(1) or real(*arguments))
    files.write_change(tmp_path / "delta", tmp_path / "model", schema, {"w": w}, KeptFile())
    assert np.array_equal(np.fromfile(tmp_path / "delta", np.float32), w - x)
    assert bool(calls) is (place is None)


def test_more_tensors_than_the_kernel_takes_at_once_and_short_reads_are_read_whole(tmp_path, monkeypatch) -> None:
    schema = TensorSchema.of(TensorSpec(name=f"{n:04}", dtype=DType.FLOAT32, shape=(3,)) for n in range(1500))
    values = {spec.name: np.full(3, int(spec.name), np.float32) for spec in schema}
    files.write_from(tmp_path / "f", schema, values)
    real = os.preadv
    # A kernel may read less than it was asked for, in the middle of a tensor.
    monkeypatch.setattr(files.os, "preadv", lambda fd, views, at: real(fd, [views[0][:5]], at))
    read = {name: np.zeros(3, np.float32) for name in values}
    files.read_into(tmp_path / "f", schema, read)
    assert all(np.array_equal(read[name], values[name]) for name in values)


def test_a_file_that_is_too_short_or_missing_is_a_storage_error(tmp_path) -> None:
    schema = TensorSchema.of([TensorSpec(name="w", dtype=DType.FLOAT32, shape=(4,))])
    (tmp_path / "f").write_bytes(b"\x00" * 15)
    with pytest.raises(StorageError, match="ends at byte 15"):
        files.read_into(tmp_path / "f", schema, {"w": np.zeros(4, np.float32)})
    with pytest.raises(StorageError, match="cannot open"):
        files.read_into(tmp_path / "g", schema, {"w": np.zeros(4, np.float32)})


def test_a_preallocated_file_is_written_in_place_and_keeps_its_size(tmp_path) -> None:
    (tmp_path / "f").write_bytes(b"\xff" * 100)
    inode = (tmp_path / "f").stat().st_ino
    schema = TensorSchema.of([TensorSpec(name="w", dtype=DType.FLOAT32, shape=(4,))])
    files.write_from(tmp_path / "f", schema, {"w": np.zeros(4, np.float32)})
    assert (tmp_path / "f").stat().st_ino == inode
    assert (tmp_path / "f").read_bytes() == b"\x00" * 16 + b"\xff" * 84


def test_a_full_disk_is_a_storage_error() -> None:
    schema = TensorSchema.of([TensorSpec(name="w", dtype=DType.FLOAT32, shape=(4,))])
    with pytest.raises(StorageError, match="No space left"):
        files.write_from("/dev/full", schema, {"w": np.zeros(4, np.float32)})

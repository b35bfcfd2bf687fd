"""Models in memory: read and written as those on disk, to the same digest."""

from __future__ import annotations

import numpy as np
import pytest

from federation.storage.memory import MemoryModel, MemoryWriter
from federation.storage.safetensors_files import ModelFile, ModelWriter
from federation.tensors import DType, TensorSchema, TensorSpec

SCHEMA = TensorSchema.of(
    [
        TensorSpec(name="w", dtype=DType.FLOAT32, shape=(3, 5)),
        TensorSpec(name="n", dtype=DType.INT64, shape=()),
    ]
)


def arrays():
    return {"w": np.arange(15, dtype=np.float32).reshape(3, 5), "n": np.asarray(7, dtype=np.int64)}


@pytest.mark.parametrize("pieces", [1, 7, 68])
def test_the_digest_is_that_of_a_file_however_it_is_written(tmp_path, pieces):
    model = MemoryModel.of(SCHEMA, arrays())
    data = bytearray(model.nbytes)
    model.pread_into(0, data)
    writer = MemoryWriter(SCHEMA)
    with ModelWriter(tmp_path / "model", SCHEMA) as file:
        for start in range(0, len(data), pieces):
            writer.append(data[start : start + pieces])
            file.append(data[start : start + pieces])
        assert file.commit() == writer.finish() == model.digest()
    with ModelFile.open(tmp_path / "model") as read:
        part = bytearray(20)
        read.pread_into(4, part)
        other = bytearray(20)
        writer.reader().pread_into(4, other)
        assert part == other


def test_memory_that_is_larger_than_the_model_is_used_from_its_beginning():
    slab = bytearray(b"\xff" * 4096)
    writer = MemoryWriter(SCHEMA, memoryview(slab))
    data = bytearray(SCHEMA.nbytes)
    MemoryModel.of(SCHEMA, arrays()).pread_into(0, data)
    writer.append(data)
    assert slab[: SCHEMA.nbytes] == data and set(slab[SCHEMA.nbytes :]) == {0xFF}
    np.testing.assert_array_equal(MemoryModel(SCHEMA, slab).arrays()["w"], arrays()["w"])


def test_too_little_memory_too_many_bytes_and_too_few_are_refused():
    with pytest.raises(ValueError, match="67 bytes for a model of 68"):
        MemoryModel(SCHEMA, bytes(67))
    with pytest.raises(ValueError, match="67 bytes for a model of 68"):
        MemoryWriter(SCHEMA, bytearray(67))
    writer = MemoryWriter(SCHEMA)
    writer.append(bytes(60))
    with pytest.raises(RuntimeError, match="60 of 68 bytes"):
        writer.finish()
    with pytest.raises(ValueError, match="write to byte 69"):
        writer.append(bytes(9))

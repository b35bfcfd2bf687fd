"""Any valid safetensors file becomes a canonical one, whole, split or joined."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import safetensors.numpy

from federation.errors import PlanError
from federation.storage import assembly
from federation.storage.assembly import assemble_model
from federation.storage.safetensors_files import ModelFile, read_model
from federation.tensors import DType, TensorRole, TensorSchema, TensorSpec, pack

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA = TensorSchema.of(
    [
        TensorSpec(name="a", dtype=DType.FLOAT32, shape=(2, 3)),
        TensorSpec(name="b", dtype=DType.FLOAT64, shape=(4,), role=TensorRole.BUFFER),
        TensorSpec(name="c", dtype=DType.FLOAT32, shape=(700,), role=TensorRole.LOCAL),
        TensorSpec(name="d", dtype=DType.INT64, shape=(), role=TensorRole.BUFFER),
    ]
)
ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.arange(4, dtype=np.float64),
    "c": np.arange(700, dtype=np.float32),
    "d": np.array(7, dtype=np.int64),
}


def submitted(tmp_path: Path) -> Path:
    path = tmp_path / "submitted.safetensors"
    safetensors.numpy.save_file({**ARRAYS, "extra": np.zeros(3, np.float32)}, path)
    return path


def test_a_submitted_file_is_brought_into_canonical_order_with_the_roles_of_the_experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assembly, "_BLOCK_BYTES", 100)  # several blocks to a tensor
    path = tmp_path / "model.safetensors"
    digest = assemble_model(path, SCHEMA, [submitted(tmp_path)], metadata={"round": "0"})
    with ModelFile.open(path) as model:
        assert model.schema == SCHEMA
        assert model.pread(0, model.nbytes) == pack(SCHEMA, ARRAYS)
        assert model.digest() == digest
        assert model.metadata["round"] == "0"


def test_a_model_is_split_and_joined_again(tmp_path: Path) -> None:
    source = submitted(tmp_path)
    model, base, joined = (tmp_path / name for name in ("model", "base", "joined"))
    assemble_model(model, SCHEMA.federated, [source])
    assemble_model(base, SCHEMA.local, [source])
    assemble_model(joined, SCHEMA, [model, base])
    schema, arrays = read_model(joined)
    assert schema == SCHEMA
    assert pack(schema, arrays) == pack(SCHEMA, ARRAYS)


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (TensorSpec(name="missing", dtype=DType.FLOAT32, shape=(1,)), "lacks 1 of 1 tensors, the first is 'missing'"),
        (TensorSpec(name="a", dtype=DType.FLOAT64, shape=(2, 3)), r"is float32\[2, 3\], the experiment says float64"),
        (TensorSpec(name="a", dtype=DType.FLOAT32, shape=(3, 2)), r"the experiment says float32\[3, 2\]"),
    ],
    ids=["missing", "dtype", "shape"],
)
def test_a_model_that_is_not_the_experiments_is_refused(tmp_path: Path, spec: TensorSpec, text: str) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(PlanError, match=text):
        assemble_model(path, TensorSchema.of([spec]), [submitted(tmp_path)])
    assert not path.exists()

"""Model files: readable by the safetensors library, whole or absent, and recycled only when nobody needs them."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from federation.errors import StorageError
from federation.storage import safetensors_files
from federation.storage.safetensors_files import ModelFile, ModelWriter, read_model, write_model
from federation.storage.safetensors_format import ALIGNMENT, encode_header
from federation.tensors import DType, TensorRole, TensorSchema, TensorSpec, pack
from federation.tensors.digest import payload_digest

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA = TensorSchema.of(
    [
        TensorSpec(name="layer.weight", dtype=DType.FLOAT32, shape=(3, 4)),
        TensorSpec(name="layer.bias", dtype=DType.FLOAT16, shape=(4,)),
        TensorSpec(name="größe", dtype=DType.FLOAT64, shape=()),
        TensorSpec(name="steps", dtype=DType.INT64, shape=(1,), role=TensorRole.BUFFER),
        TensorSpec(name="mask", dtype=DType.BOOL, shape=(5,), role=TensorRole.LOCAL),
        TensorSpec(name="nothing", dtype=DType.FLOAT32, shape=(0, 2)),
    ]
)


def arrays_of(schema: TensorSchema, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(seed)
    return {
        spec.name: np.asarray(random.standard_normal(spec.shape) * 5).astype(np.int8).astype(spec.dtype.numpy)
        for spec in schema
    }


def write_in_pieces(writer: ModelWriter, data: bytes | bytearray, size: int = 7) -> None:
    for start in range(0, len(data), size):
        writer.append(memoryview(data)[start : start + size])


def test_the_safetensors_library_reads_what_we_write_tile_by_tile(tmp_path: Path) -> None:
    arrays = arrays_of(SCHEMA)
    path = tmp_path / "model.safetensors"
    with ModelWriter(path, SCHEMA, metadata={"round": "3"}) as writer:
        write_in_pieces(writer, pack(SCHEMA, arrays))
        writer.commit()
    found = safetensors.numpy.load_file(path)
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    with safetensors.safe_open(path, "numpy") as file:
        assert file.metadata()["round"] == "3"


def test_the_safetensors_library_accepts_bfloat16_of_ours(tmp_path: Path) -> None:
    schema = TensorSchema.of([TensorSpec(name="a", dtype=DType.BFLOAT16, shape=(3,))])
    path = tmp_path / "model.safetensors"
    write_model(path, schema, {"a": np.array([1, 2, 3], dtype=DType.BFLOAT16.numpy)})
    with safetensors.safe_open(path, "numpy") as file:
        assert file.get_slice("a").get_dtype() == "BF16"
        assert file.get_slice("a").get_shape() == [3]


def test_we_read_what_the_library_writes_in_canonical_order(tmp_path: Path) -> None:
    arrays = arrays_of(SCHEMA)
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(dict(reversed(arrays.items())), path, {"author": "somebody"})
    schema, found = read_model(path)
    assert [spec.name for spec in schema] == [spec.name for spec in SCHEMA]
    assert all(spec.role is TensorRole.PARAMETER for spec in schema)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(
    st.lists(
        st.builds(
            TensorSpec,
            name=st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=8),
            dtype=st.sampled_from(DType),
            shape=st.lists(st.integers(0, 4), max_size=3).map(tuple),
            role=st.sampled_from(TensorRole),
        ),
        max_size=8,
        unique_by=lambda spec: spec.name,
    ).filter(lambda specs: all(spec.name != "__metadata__" for spec in specs)),
    st.integers(0, 3),
)
def test_reading_undoes_writing_roles_included(tmp_path: Path, specs: list[TensorSpec], seed: int) -> None:
    schema = TensorSchema.of(specs)
    arrays = arrays_of(schema, seed)
    path = tmp_path / "model.safetensors"
    digest = write_model(path, schema, arrays)
    assert digest == payload_digest(pack(schema, arrays))
    found_schema, found = read_model(path)
    assert found_schema == schema
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
    with ModelFile.open(path) as model:
        assert model.schema == schema
        assert model.digest() == digest


def test_the_data_section_is_the_flat_buffer_and_begins_on_a_page(tmp_path: Path) -> None:
    buffer = pack(SCHEMA, arrays_of(SCHEMA))
    path = tmp_path / "model.safetensors"
    with ModelWriter(path, SCHEMA) as writer:
        write_in_pieces(writer, buffer)
        assert writer.commit() == payload_digest(buffer)
    with ModelFile.open(path) as model:
        assert model.nbytes == len(buffer)
        assert model.data_offset % ALIGNMENT == 0
        assert model.pread(0, 1 << 20) == buffer
        assert model.pread(5, 3) == buffer[5:8]
        assert model.pread(len(buffer), 10) == b""
        assert path.read_bytes()[model.data_offset :] == buffer
        assert model.metadata["federation.schema"] == SCHEMA.digest.hex()


def test_a_digest_is_right_though_bytes_were_written_out_of_order(tmp_path: Path) -> None:
    buffer = pack(SCHEMA, arrays_of(SCHEMA))
    with ModelWriter(tmp_path / "model.safetensors", SCHEMA) as writer:
        writer.write_at(10, memoryview(buffer)[10:])
        writer.write_at(0, memoryview(buffer)[:10])
        assert writer.commit() == payload_digest(buffer)


@pytest.mark.parametrize("offset", [0, 1], ids=["its end is missing", "its beginning is missing"])
def test_a_model_that_is_not_whole_cannot_be_committed(tmp_path: Path, offset: int) -> None:
    path = tmp_path / "model.safetensors"
    with ModelWriter(path, SCHEMA) as writer:
        writer.write_at(offset, bytes(SCHEMA.nbytes - 1))
        with pytest.raises(RuntimeError, match="bytes written"):
            writer.commit()
    assert os.listdir(tmp_path) == []


def test_writing_past_the_end_is_refused(tmp_path: Path) -> None:
    with (
        ModelWriter(tmp_path / "model.safetensors", SCHEMA) as writer,
        pytest.raises(ValueError, match="of a model of"),
    ):
        writer.append(bytes(SCHEMA.nbytes + 1))


def test_the_earlier_model_stays_until_the_new_one_is_committed(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    first, second = pack(SCHEMA, arrays_of(SCHEMA, 1)), pack(SCHEMA, arrays_of(SCHEMA, 2))
    with ModelWriter(path, SCHEMA) as writer:
        writer.append(first)
        writer.commit()
    with ModelWriter(path, SCHEMA) as writer:
        writer.append(second)
        writer.finish()
        with writer.reader() as candidate, ModelFile.open(path) as present:
            assert candidate.pread(0, candidate.nbytes) == second
            assert present.pread(0, present.nbytes) == first
    with ModelFile.open(path) as present:
        assert present.pread(0, present.nbytes) == first
    assert os.listdir(tmp_path) == [path.name]


def commit_one(path: Path, seed: int, *, in_place: bool = True) -> int:
    with ModelWriter(path, SCHEMA, in_place=in_place) as writer:
        writer.append(pack(SCHEMA, arrays_of(SCHEMA, seed)))
        writer.commit()
    return path.stat().st_ino


def contents(path: Path) -> bytes:
    with ModelFile.open(path) as model:
        return model.pread(0, model.nbytes)


def test_in_place_one_file_is_written_again_and_again(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    assert len({commit_one(path, seed) for seed in range(3)}) == 1
    assert contents(path) == pack(SCHEMA, arrays_of(SCHEMA, 2))
    assert os.listdir(tmp_path) == [path.name]


def test_in_place_a_file_that_is_still_read_is_left_to_its_reader(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    commit_one(path, 0)
    with ModelFile.open(path) as reader:
        commit_one(path, 1)
        assert reader.pread(0, reader.nbytes) == pack(SCHEMA, arrays_of(SCHEMA, 0))
    assert contents(path) == pack(SCHEMA, arrays_of(SCHEMA, 1))


def test_in_place_a_file_that_has_another_name_is_left_to_that(tmp_path: Path) -> None:
    path, best = tmp_path / "model.safetensors", tmp_path / "best.safetensors"
    commit_one(path, 0)
    os.link(path, best)
    commit_one(path, 1)
    assert contents(best) == pack(SCHEMA, arrays_of(SCHEMA, 0))
    assert contents(path) == pack(SCHEMA, arrays_of(SCHEMA, 1))


def test_in_place_a_file_of_another_size_is_cut_to_the_models(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(100_000))
    commit_one(path, 0)
    assert contents(path) == pack(SCHEMA, arrays_of(SCHEMA, 0))


def test_in_place_giving_up_takes_away_a_new_file_and_keeps_the_room_of_an_old_one(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with ModelWriter(path, SCHEMA, in_place=True) as writer:
        writer.append(bytes(SCHEMA.nbytes))
    assert os.listdir(tmp_path) == []
    first = commit_one(path, 0)
    with ModelWriter(path, SCHEMA, in_place=True) as writer:
        writer.append(bytes(SCHEMA.nbytes))
    assert path.stat().st_ino == first


def test_what_is_not_whole_cannot_be_made_durable(tmp_path: Path) -> None:
    with (
        ModelWriter(tmp_path / "model.safetensors", SCHEMA, in_place=True) as writer,
        pytest.raises(RuntimeError, match="bytes written"),
    ):
        writer.sync()


def test_a_commit_waits_for_no_disk_once_its_content_is_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    commit_one(path, 0)
    with ModelWriter(path, SCHEMA, in_place=True) as writer:
        writer.append(pack(SCHEMA, arrays_of(SCHEMA, 1)))
        writer.sync()
        for name in ("fsync", "fdatasync"):
            monkeypatch.setattr(os, name, lambda _: pytest.fail("waited for the disk"))
        writer.commit()
    assert contents(path) == pack(SCHEMA, arrays_of(SCHEMA, 1))


def test_what_a_killed_writer_left_is_written_over(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    (tmp_path / ".model.safetensors.tmp").write_bytes(bytes(100_000))
    commit_one(path, 0, in_place=False)
    assert contents(path) == pack(SCHEMA, arrays_of(SCHEMA, 0))


def test_a_second_writer_of_one_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with ModelWriter(path, SCHEMA), pytest.raises(StorageError, match="one writer"):
        ModelWriter(path, SCHEMA)


def test_offsets_beyond_4_gib_are_exact(tmp_path: Path) -> None:
    schema = TensorSchema.of([TensorSpec(name="a", dtype=DType.UINT8, shape=((5 << 30) + 3,))])
    path = tmp_path / "sparse.safetensors"
    header = encode_header(schema, {})
    with open(path, "wb") as file:
        file.write(header)
        file.seek(len(header) + (5 << 30))
        file.write(b"end")
    with ModelFile.open(path) as model:
        assert model.nbytes == (5 << 30) + 3
        assert model.pread(5 << 30, 10) == b"end"
        assert model.pread((3 << 30) - 1, 2) == b"\0\0"
        piece = bytearray(3)
        model.pread_into(5 << 30, piece)
        assert piece == b"end"


def valid_document() -> dict[str, Any]:
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def file_of(path: Path, document: Any, data: bytes = bytes(8)) -> Path:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


BROKEN: dict[str, tuple[Any, bytes]] = {
    "not JSON": (b"{nonsense", bytes(8)),
    "not an object": ([1], bytes(8)),
    "nested too deeply": (b"[" * 100_000, bytes(8)),
    "metadata with numbers": ({**valid_document(), "__metadata__": {"a": 1}}, bytes(8)),
    "roles that are none": ({**valid_document(), "__metadata__": {"federation.roles": '{"a": "king"}'}}, bytes(8)),
    "unknown dtype": ({"a": {"dtype": "C64", "shape": [1], "data_offsets": [0, 8]}}, bytes(8)),
    "negative size": ({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, bytes(8)),
    "fractional size": ({"a": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}}, bytes(8)),
    "size that is true": ({"a": {"dtype": "U8", "shape": [True], "data_offsets": [0, 1]}}, bytes(1)),
    "shape of another size": ({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, bytes(8)),
    "one offset": ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8]}}, bytes(8)),
    "a gap": ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, bytes(12)),
    "an overlap": (
        {
            "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
            "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
        },
        bytes(12),
    ),
    "truncated data": (valid_document(), bytes(7)),
    "more data": (valid_document(), bytes(9)),
    "empty name": ({"": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
}


@pytest.mark.parametrize(("document", "data"), BROKEN.values(), ids=BROKEN.keys())
def test_refuses_a_file_that_is_not_valid(tmp_path: Path, document: Any, data: bytes) -> None:
    path = file_of(tmp_path / "model.safetensors", document, data)
    with pytest.raises(StorageError, match="not a valid safetensors file"):
        read_model(path)
    with pytest.raises(StorageError, match="not a valid safetensors file"):
        ModelFile.open(path)


@pytest.mark.parametrize(
    "content", [b"", b"abc", (1 << 62).to_bytes(8, "little") + b"{}"], ids=["empty", "short", "huge"]
)
def test_refuses_a_header_size_that_does_not_fit(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(StorageError, match="header"):
        read_model(path)


def test_a_missing_file_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No such file"):
        ModelFile.open(tmp_path / "none")


def test_a_file_in_another_order_is_not_opened_as_a_flat_buffer(tmp_path: Path) -> None:
    document = {
        "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        "a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
    }
    path = file_of(tmp_path / "model.safetensors", document, np.array([2, 1], dtype=np.float32).tobytes())
    with pytest.raises(StorageError, match="assemble"):
        ModelFile.open(path)
    _, arrays = read_model(path)
    assert (arrays["a"][0], arrays["b"][0]) == (1, 2)


def test_a_model_that_goes_to_the_disk_while_it_is_written_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safetensors_files, "_WRITEBACK_BYTES", 8192)
    schema = TensorSchema.of([TensorSpec(name="w", dtype=DType.FLOAT32, shape=(10_000,))])
    data = np.arange(10_000, dtype=np.float32).view(np.uint8).data
    with ModelWriter(tmp_path / "model", schema) as writer:
        for start in range(0, 40_000, 3000):
            writer.append(data[start : start + 3000])
        digest = writer.commit()
    assert digest == payload_digest(data)
    assert read_model(tmp_path / "model")[1]["w"].view(np.uint8).data == data


def test_a_model_of_more_than_two_gibibytes_is_read_at_its_end_as_at_its_start(tmp_path: Path) -> None:
    nbytes = (3 << 30) + 5
    schema = TensorSchema.of([TensorSpec(name="w", dtype=DType.UINT8, shape=(nbytes,))])
    header = encode_header(schema, {})
    with open(tmp_path / "large.safetensors", "wb") as file:  # almost all of it is a hole, which takes no room
        file.write(header)
        file.truncate(len(header) + nbytes)
        file.seek(len(header) + nbytes - 3)
        file.write(b"end")
    with ModelFile.open(tmp_path / "large.safetensors") as model:
        assert (model.schema, model.nbytes) == (schema, nbytes)
        assert model.pread(nbytes - 5, 100) == b"\0\0end"
        tail = bytearray(4)
        model.pread_into(nbytes - 4, memoryview(tail))
        assert tail == b"\0end"

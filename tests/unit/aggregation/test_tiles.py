"""Tiles cover what they should, once, in order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from federation.aggregation.tiles import tiles_of
from federation.tensors import DType, TensorSchema, TensorSpec

SCHEMAS = st.lists(
    st.builds(
        TensorSpec,
        name=st.sampled_from("abcdefgh"),
        dtype=st.sampled_from(DType),
        shape=st.lists(st.integers(0, 9), max_size=2).map(tuple),
    ),
    max_size=8,
    unique_by=lambda spec: spec.name,
).map(TensorSchema.of)


@given(SCHEMAS, st.integers(1, 50))
def test_float_tiles_and_the_others_cover_the_buffer_once(schema: TensorSchema, tile_elements: int) -> None:
    floats = tiles_of(schema, floats=True, tile_elements=tile_elements)
    others = tiles_of(schema, floats=False, tile_elements=tile_elements)
    assert all(tile.dtype.is_float for tile in floats)
    assert not any(tile.dtype.is_float for tile in others)
    position = 0
    for tile in sorted([*floats, *others], key=lambda tile: tile.offset):
        assert tile.offset == position
        assert 1 <= tile.elements <= tile_elements
        position += tile.nbytes
    assert position == schema.nbytes
    assert list(floats) == sorted(floats, key=lambda tile: tile.offset)


def test_offsets_of_large_models_do_not_wrap() -> None:
    schema = TensorSchema.of([TensorSpec(name="a", dtype=DType.FLOAT32, shape=(3 << 30,))])
    last = tiles_of(schema, floats=True, tile_elements=1 << 28)[-1]
    assert last.offset + last.nbytes == 12 << 30

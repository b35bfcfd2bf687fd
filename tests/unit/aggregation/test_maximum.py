"""Integers and booleans: the elementwise maximum, exact to the last of 64 bits."""

from __future__ import annotations

import numpy as np
import pytest

from federation.aggregation.maximum import Maximum
from federation.aggregation.tiles import ArrayTiles
from federation.names import SiteName
from federation.tensors import DType, TensorSchema, TensorSpec

INTEGERS = [dtype for dtype in DType if not dtype.is_float]


@pytest.mark.parametrize("dtype", INTEGERS, ids=lambda dtype: dtype.value)
@pytest.mark.parametrize("tile_elements", [1, 3, 100])
def test_maximum_is_elementwise_in_the_dtype(dtype: DType, tile_elements: int) -> None:
    schema = TensorSchema.of([TensorSpec(name="a", dtype=dtype, shape=(10,))])
    random = np.random.default_rng(0)
    rows = [random.integers(0, 2 if dtype is DType.BOOL else 100, 10).astype(dtype.numpy) for _ in range(3)]
    buffers = {SiteName(f"site-{index}"): row.tobytes() for index, row in enumerate(rows)}
    source = ArrayTiles(schema, buffers, dict.fromkeys(buffers, 1.0), floats=False, tile_elements=tile_elements)
    found = np.concatenate([values.copy() for _, values in Maximum().combine(source)])
    assert found.dtype == dtype.numpy
    np.testing.assert_array_equal(found, np.maximum.reduce(rows))


def test_large_counters_do_not_go_through_floats() -> None:
    schema = TensorSchema.of([TensorSpec(name="a", dtype=DType.INT64, shape=(1,))])
    largest = 2**63 - 1
    buffers = {SiteName("a"): np.int64(largest).tobytes(), SiteName("b"): np.int64(largest - 1).tobytes()}
    source = ArrayTiles(schema, buffers, dict.fromkeys(buffers, 1.0), floats=False)
    ((_, found),) = Maximum().combine(source)
    assert int(found[0]) == largest


def test_no_site_has_no_maximum() -> None:
    with pytest.raises(ValueError, match="no site"):
        list(Maximum().combine(ArrayTiles(TensorSchema.of([]), {}, {}, floats=False)))

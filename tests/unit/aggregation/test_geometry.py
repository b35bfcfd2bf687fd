"""Distances are those of exact arithmetic to seven digits, whatever the vectors have in common or one of them sends."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from federation.aggregation.geometry import measure, measure_about, norms, products
from federation.aggregation.tiles import ArrayTiles
from federation.names import SiteName
from federation.tensors import DType, TensorSchema, TensorSpec

Rows = np.ndarray[Any, Any]


def source_of(rows: Rows) -> ArrayTiles:
    dtype = DType.FLOAT32 if rows.dtype == np.float32 else DType.FLOAT64
    schema = TensorSchema.of([TensorSpec(name="w", dtype=dtype, shape=(rows.shape[1],))])
    buffers = {SiteName(f"site-{index:02d}"): row.tobytes() for index, row in enumerate(rows)}
    return ArrayTiles(schema, buffers, dict.fromkeys(buffers, 1.0), tile_elements=700)


def exact(rows: Rows) -> Rows:
    """Squared distances, every difference and sum rounded once."""
    wide = rows.astype(np.float64)
    return np.array([[math.fsum((a - b) ** 2) for b in wide] for a in wide])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("offset", [0.0, 1.0, 1e3])
def test_distances_are_exact_to_seven_digits_however_much_the_vectors_have_in_common(dtype: Any, offset: float) -> None:
    rows = (np.random.default_rng(0).standard_normal((6, 2000)) * 1e-3 + offset).astype(dtype)
    geometry = measure(source_of(rows))
    np.testing.assert_allclose(geometry.squared_distances() * geometry.typical**2, exact(rows), rtol=1e-7)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_huge_vector_leaves_the_distances_of_the_others_alone(dtype: Any) -> None:
    rows = np.random.default_rng(0).standard_normal((6, 2000)).astype(dtype)
    rows[2] = 1e30
    geometry = measure(source_of(rows))
    found = geometry.squared_distances() * geometry.typical**2
    np.testing.assert_allclose(found, exact(rows), rtol=1e-7)


def test_equal_vectors_are_at_no_distance_and_others_at_theirs() -> None:
    rows = np.random.default_rng(0).standard_normal((6, 2000)).astype(np.float32)
    rows[3] = rows[1]
    geometry = measure(source_of(rows))
    found = geometry.squared_distances() * geometry.typical**2
    assert found[1, 3] <= 1e-9
    np.testing.assert_allclose(found[found > 1e-9], exact(rows)[found > 1e-9], rtol=1e-7)


@pytest.mark.parametrize("size", [1e300, 1e-300])
def test_norms_of_vectors_whose_squares_are_no_numbers(size: float) -> None:
    rows = np.array([[3.0, 4.0], [0.0, 0.0], [5.0, 12.0]]) * size
    found = norms(source_of(rows))
    np.testing.assert_allclose(found.mantissas * 2.0**found.powers, [5.0 * size, 0.0, 13.0 * size], rtol=1e-12)


@pytest.mark.parametrize("sizes", [(1e-310, 1.0, 1e307), (1e-160, 1.0, 1e150), (1.0, 1e105, 1e308)])
def test_vectors_of_any_two_sizes_are_shrunk_to_the_length_of_one(sizes: tuple[float, float, float]) -> None:
    rows = np.array([np.full(4, size) for size in sizes])
    found = norms(source_of(rows))
    shrunk = rows * found.shrinking(*found.largest(1))[:, None]
    np.testing.assert_allclose(shrunk[:, 0], [sizes[0], sizes[1], sizes[1]], rtol=1e-12)
    assert (found.shrinking(*found.largest(0)) == 1.0).all()
    least = rows * found.shrinking(*found.largest(2))[:, None]
    assert (least <= sizes[0]).all()


def test_the_centre_is_what_it_is_told_to_be() -> None:
    rows = np.random.default_rng(0).standard_normal((4, 50))
    about = np.array([0.0, 0.5, 0.5, 0.0])
    geometry = measure_about(source_of(rows), about)
    centred = rows - about @ rows
    found = geometry.gram * geometry.units[:, None] * geometry.units[None, :]
    np.testing.assert_allclose(found, centred @ centred.T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("count", [1, 2, 5, 31, 33, 70])
def test_products_in_blocks_are_products(count: int) -> None:
    for columns in (1, 63, 1000):
        rows = np.random.default_rng(count).standard_normal((count, columns))
        found = products(rows)
        np.testing.assert_allclose(found, rows @ rows.T, rtol=1e-10, atol=1e-10)
        assert (found == found.T).all()

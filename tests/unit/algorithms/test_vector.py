"""Vectors compute as R^d does, in place where asked, and in the dtypes of their tensors."""

from __future__ import annotations

import numpy as np
import pytest

from federation.algorithms import Vector


def _pair() -> tuple[Vector, Vector]:
    rng = np.random.default_rng(0)
    return tuple(
        Vector({"w": rng.normal(size=(2, 3)), "s": np.array(rng.normal()), "e": np.zeros(0)}) for _ in range(2)
    )


def test_arithmetic_is_elementwise_and_leaves_the_operands_alone():
    a, b = _pair()
    w, v = a["w"].copy(), b["w"].copy()
    for result, expected in (
        (a + b, w + v), (a - b, w - v), (2.5 * a, 2.5 * w), (a * 2.5, 2.5 * w), (a / 4, w / 4),
        (a * b, w * v), (-a, -w)
    ):  # fmt: skip
        np.testing.assert_array_equal(result["w"], expected)
        assert list(result) == ["w", "s", "e"]
    np.testing.assert_array_equal(a["w"], w)
    np.testing.assert_array_equal(b["w"], v)


def test_operators_in_place_write_into_the_arrays_even_without_dimensions():
    a, b = _pair()
    w, s = a["w"], a["s"]
    expected = (w + b["w"] - 2 * b["w"]) * 3 * b["w"]
    a += b
    a -= 2 * b
    a *= 3
    a *= b
    assert a["w"] is w
    assert a["s"] is s
    np.testing.assert_allclose(w, expected)


def test_tensors_without_dimensions_stay_arrays():
    a, b = _pair()
    for result in (a + b, 2 * a, a / 2, -a, a.copy(), a.zeros_like()):
        assert isinstance(result["s"], np.ndarray)


def test_float32_stays_float32():
    a = Vector({"w": np.ones(3, np.float32), "v": np.ones(2, np.float64)})
    for result in (0.1 * a, a / 3, a + a, a * a, a.copy()):
        assert result["w"].dtype == np.float32
        assert result["v"].dtype == np.float64


def test_copy_and_zeros_share_nothing_and_zeros_of_nan_are_zero():
    a = Vector({"w": np.array([np.nan, 1.0])})
    copy, zeros = a.copy(), a.zeros_like()
    a["w"][1] = 5
    assert copy["w"][1] == 1
    np.testing.assert_array_equal(zeros["w"], [0, 0])


def test_assign_writes_into_live_arrays_and_select_shares_them():
    a, b = _pair()
    live = a["w"]
    a.assign(b)
    np.testing.assert_array_equal(live, b["w"])
    part = a.select(lambda name: name != "s")
    assert list(part) == ["w", "e"]
    assert part["w"] is live


def test_dot_is_the_exact_sum_of_block_products_in_float64():
    rng = np.random.default_rng(1)
    a, b = (Vector({"w": rng.normal(size=20_000).astype(np.float32)}) for _ in range(2))
    exact = float(np.sum(a["w"].astype(np.longdouble) * b["w"]))
    assert a.dot(b) == pytest.approx(exact, rel=1e-13)
    assert a.squared_norm() == pytest.approx(float(np.linalg.norm(a["w"].astype(np.float64)) ** 2), rel=1e-13)


def test_vectors_of_other_names_are_refused():
    a, _ = _pair()
    with pytest.raises(ValueError, match="same names"):
        a + Vector({"w": np.ones((2, 3))})
    with pytest.raises(ValueError, match="'w' is in the left vector only"):
        a += Vector({"x": np.ones(1), "y": np.ones(1), "z": np.ones(1)})

"""Named arrays as one vector of R^d, so that a method's formulas can be written as its paper writes them.

1. Arithmetic is elementwise, tensor by tensor, in each tensor's own dtype: scalars are Python floats, so float32 stays
   float32 (NEP 50).
2. Operators only touch what `+`, `-`, `*`, `/` of the arrays offer, so the arrays may be NumPy's or another library's.
3. Sums have one order: tensors as they were given (schema order), blocks of a fixed size, `math.fsum` over the blocks;
   a dot product is therefore the same whatever the number of threads of the linear algebra below.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from federation.tensors.buffers import Array

_BLOCK_ELEMENTS = 1 << 13
"""Elements a dot product takes at once: few enough that no BLAS splits them among threads."""


class Vector(Mapping[str, "Array"]):
    """Tensors by name, with the operations of a vector space.

    ``a + b``, ``a - b``, ``s * a``, ``a / s``, ``a * b`` (elementwise) and ``-a`` give new vectors; ``+=``, ``-=`` and
    ``*=`` write into the arrays of the left side. Both sides must have the same names.

    Example:
        >>> import numpy as np
        >>> x = Vector({"weight": np.array([1.0, 2.0]), "bias": np.array([3.0])})
        >>> (2 * x - x).dot(x)
        14.0
    """

    __slots__ = ("_arrays",)

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        """Wrap `arrays` without copying them; their order is the order of every sum."""
        self._arrays = dict(arrays)

    def __getitem__(self, name: str) -> Array:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __repr__(self) -> str:
        return f"Vector({', '.join(f'{name}{list(array.shape)}' for name, array in self._arrays.items())})"

    def __add__(self, other: Vector) -> Vector:
        return Vector({name: _array(mine + theirs) for name, mine, theirs in self._with(other)})

    def __sub__(self, other: Vector) -> Vector:
        return Vector({name: _array(mine - theirs) for name, mine, theirs in self._with(other)})

    def __mul__(self, other: Vector | float) -> Vector:
        if isinstance(other, Vector):
            return Vector({name: _array(mine * theirs) for name, mine, theirs in self._with(other)})
        return Vector({name: _array(array * other) for name, array in self._arrays.items()})

    __rmul__ = __mul__

    def __truediv__(self, scalar: float) -> Vector:
        return Vector({name: _array(array / scalar) for name, array in self._arrays.items()})

    def __neg__(self) -> Vector:
        return Vector({name: _array(-array) for name, array in self._arrays.items()})

    def __iadd__(self, other: Vector) -> Vector:
        for _, mine, theirs in self._with(other):
            mine += theirs
        return self

    def __isub__(self, other: Vector) -> Vector:
        for _, mine, theirs in self._with(other):
            mine -= theirs
        return self

    def __imul__(self, other: Vector | float) -> Vector:
        if isinstance(other, Vector):
            for _, mine, theirs in self._with(other):
                mine *= theirs
        else:
            for array in self._arrays.values():
                array *= other
        return self

    def copy(self) -> Vector:
        """Return a vector with arrays of its own."""
        return Vector({name: _array(array * 1) for name, array in self._arrays.items()})

    def widened(self) -> Vector:
        """Return the vector with float32 arrays of its own for those of half precision, and the others shared."""
        return Vector({name: widened(array) for name, array in self._arrays.items()})

    def zeros_like(self) -> Vector:
        """Return zero of the same names, shapes and dtypes; never a signed or undefined zero of this one."""
        return Vector({name: _array(np.zeros_like(array)) for name, array in self._arrays.items()})

    def assign(self, other: Vector) -> None:
        """Copy `other` into this vector's arrays, which may be live parts of a model."""
        for _, mine, theirs in self._with(other):
            mine[...] = theirs

    def select(self, keep: Callable[[str], bool]) -> Vector:
        """Return the tensors whose names `keep` accepts, sharing their arrays."""
        return Vector({name: array for name, array in self._arrays.items() if keep(name)})

    def dot(self, other: Vector) -> float:
        """Return ⟨self, other⟩, in float64."""
        return math.fsum(product for _, mine, theirs in self._with(other) for product in _block_products(mine, theirs))

    def squared_norm(self) -> float:
        """Return ‖self‖², in float64."""
        return self.dot(self)

    def _with(self, other: Vector) -> Iterator[tuple[str, Any, Any]]:
        if len(other) != len(self):
            raise ValueError(f"vectors of {len(self)} and {len(other)} tensors: both sides need the same names")
        for name, mine in self._arrays.items():
            if name not in other:
                raise ValueError(f"tensor {name!r} is in the left vector only: both sides need the same names")
            yield name, mine, other[name]


def widened(array: Array) -> Array:
    """Return an array as float32 if it is of half precision, which is too little for sums over rounds; else itself."""
    return array.astype(np.float32) if array.dtype.name in ("float16", "bfloat16") else array


def _array(value: Any) -> Array:
    """Return `value`, but as an array where NumPy has made a scalar of a tensor without dimensions."""
    return np.asarray(value) if isinstance(value, np.generic) else value


def _block_products(left: Array, right: Array) -> Iterator[float]:
    a, b = np.asarray(left).reshape(-1), np.asarray(right).reshape(-1)
    for start in range(0, a.size, _BLOCK_ELEMENTS):
        block = slice(start, start + _BLOCK_ELEMENTS)
        yield float(np.dot(a[block].astype(np.float64), b[block].astype(np.float64)))

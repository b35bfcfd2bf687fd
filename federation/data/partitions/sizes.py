"""Partitions that differ in size only: which examples a site gets is left to chance, its classes are those of all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from federation.data.partitions.drawing import generator
from federation.errors import PlanError

if TYPE_CHECKING:
    from federation.tensors.buffers import Array


def iid(examples: int, sites: int, *, seed: int, replacement: bool = False) -> list[Array]:
    """Divide at random into parts whose sizes differ by one at most, the first sites having the larger.

    Args:
        examples: number of examples, n.
        sites: number of sites, K.
        seed: decides the draw.
        replacement: each site draws its n/K examples from all, each draw by itself: examples may come twice, or not at
            all.

    Returns:
        Sorted example numbers of each site.

    Raises:
        PlanError: fewer examples than sites.
    """
    check_counts(examples, sites, "iid")
    rng = generator(seed, "iid")
    sizes = even_sizes(examples, sites)
    if replacement:
        return [np.sort(rng.integers(0, examples, size=size)) for size in sizes]
    return cut(rng.permutation(examples), sizes)


def even_sizes(examples: int, sites: int) -> list[int]:
    """Return K sizes that sum to n and differ by one at most, the larger first."""
    small, larger = divmod(examples, sites)
    return [small + (site < larger) for site in range(sites)]


def cut(order: Array, sizes: list[int]) -> list[Array]:
    """Return consecutive pieces of an order of examples, each sorted."""
    return [np.sort(piece) for piece in np.split(order, np.cumsum(sizes)[:-1])]


def check_counts(examples: int, sites: int, scheme: str) -> None:
    """Check that every site can have an example.

    Raises:
        PlanError: no site, or fewer examples than sites.
    """
    if not 1 <= sites <= examples:
        raise PlanError(f"{scheme} cannot divide {examples} examples among {sites} sites; use 1 to {examples} sites")

"""What the partitions share: one stream per seed and scheme, and how an order of examples is cut into parts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from federation.errors import PlanError
from federation.rounds.randomness import derive_seed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from federation.tensors.buffers import Array

ATTEMPTS = 1000
"""Draws after which a scheme that draws until every site has enough gives up."""


def generator(seed: int, scheme: str) -> np.random.Generator:
    """Return the generator of a scheme's draws: equal arguments, equal draws, on any machine."""
    return np.random.default_rng(derive_seed(seed, 0, "", f"partition/{scheme}"))


def even_sizes(examples: int, sites: int) -> list[int]:
    """Return K sizes that sum to n and differ by one at most, the larger first."""
    small, larger = divmod(examples, sites)
    return [small + (site < larger) for site in range(sites)]


def cut(order: Array, sizes: Sequence[int]) -> list[Array]:
    """Return consecutive pieces of an order of examples, each sorted."""
    return [np.sort(piece) for piece in np.split(order, np.cumsum(sizes)[:-1])]


def joined(pieces: Sequence[Array]) -> Array:
    """Return the sorted example numbers of several pieces, at least one."""
    return np.sort(np.concatenate(pieces))


def check_counts(examples: int, sites: int, scheme: str) -> None:
    """Check that every site can have an example.

    Raises:
        PlanError: no site, or fewer examples than sites.
    """
    if not 1 <= sites <= examples:
        raise PlanError(f"{scheme} cannot divide {examples} examples among {sites} sites; use 1 to {examples} sites")

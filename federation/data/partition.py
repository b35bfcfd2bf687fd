"""The first two divisions, as the ready-made samples use them; all others are in `federation.data.partitions`.

Both are deterministic in their seed, disjoint, and whole: each example goes to exactly one site.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from federation.tensors.buffers import Array


def by_quota(classes: Array, quotas: Sequence[Sequence[float]], order: Array) -> list[Array]:
    """Divide examples by class quotas and, within a class, along an order: both labels and features are skewed.

    Args:
        classes: class number of each example, shape (n,).
        quotas: for each class, the share of each site; shares of a class sum to 1.
        order: within a class the first site takes the examples with the lowest values, shape (n,).

    Returns:
        Sorted example numbers of each site.

    Raises:
        ValueError: shares of a class do not sum to 1.
    """
    parts: list[list[Array]] = [[] for _ in quotas[0]]
    for number, shares in enumerate(quotas):
        if abs(sum(shares) - 1) > 1e-9:
            raise ValueError(f"shares of class {number} sum to {sum(shares)}, expected 1")
        members = np.flatnonzero(classes == number)
        members = members[np.argsort(order[members], kind="stable")]
        ends = np.rint(np.cumsum(shares) * len(members)).astype(int)
        for site, piece in enumerate(np.split(members, ends[:-1])):
            parts[site].append(piece)
    return [np.sort(np.concatenate(pieces)) for pieces in parts]


def dirichlet(classes: Array, sites: int, *, concentration: float, seed: int) -> list[Array]:
    """Divide examples so that each class is spread over the sites by a Dirichlet draw (Hsu et al. 2019).

    Source: arXiv:1909.06335, section 3, with one draw per class rather than per client, so that every example is used.
    Every site gets at least two examples, taken from the largest where the draw left it none.

    Args:
        classes: class number of each example, shape (n,).
        sites: number of sites; at most n / 2.
        concentration: small: sites differ a lot; large: all alike.
        seed: decides the draw.

    Returns:
        Sorted example numbers of each site.

    Raises:
        ValueError: too many sites for the examples, or `concentration` is not positive.
    """
    if concentration <= 0 or not 1 <= sites <= len(classes) // 2:
        raise ValueError(
            f"cannot divide {len(classes)} examples among {sites} sites with concentration {concentration}"
        )
    rng = np.random.default_rng(seed)
    parts: list[list[int]] = [[] for _ in range(sites)]
    for number in np.unique(classes):
        members = rng.permutation(np.flatnonzero(classes == number))
        ends = np.rint(np.cumsum(rng.dirichlet(np.full(sites, concentration))) * len(members)).astype(int)
        for site, piece in enumerate(np.split(members, ends[:-1])):
            parts[site].extend(piece.tolist())
    for part in parts:
        while len(part) < 2:
            part.append(max(parts, key=len).pop())
    return [np.array(sorted(part)) for part in parts]

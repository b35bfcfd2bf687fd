"""Partitions that differ in size only: which examples a site gets is left to chance, its classes are those of all."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from federation.data.partitions.drawing import ATTEMPTS, check_counts, cut, even_sizes, generator
from federation.errors import PlanError

if TYPE_CHECKING:
    from federation.tensors.buffers import Array

MINIMUM = 10
"""Examples a site has at least under `dirichlet_sizes`, as in the public partitioners the scheme comes from."""


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


def balanced(labels: Array, sites: int, *, seed: int) -> list[Array]:
    """Divide so that every site has its share of every class: a stratified `iid`.

    Examples are dealt class by class, each class in random order, so a site's count of any class is ⌊c/K⌋ or ⌈c/K⌉ and
    sizes differ by one at most.

    Args:
        labels: class of each example, shape (n,).
        sites: number of sites, K.
        seed: decides the draw.

    Returns:
        Sorted example numbers of each site.

    Raises:
        PlanError: fewer examples than sites.
    """
    check_counts(len(labels), sites, "balanced")
    order = generator(seed, "balanced").permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    return [np.sort(order[site::sites]) for site in range(sites)]


def lognormal_sizes(examples: int, sites: int, *, sigma: float, seed: int) -> list[Array]:
    """Divide at random into parts of log-normal sizes.

    Sizes are drawn from LogNormal(ln(n/K), σ), rescaled to sum to n and rounded down; what is left over goes to the
    first site. A site whose draw rounds to nothing gets one example of the largest.

    Args:
        examples: number of examples, n.
        sites: number of sites, K.
        sigma: σ, spread of the logarithm of sizes; 0: all alike.
        seed: decides the draw.

    Returns:
        Sorted example numbers of each site.

    Raises:
        PlanError: fewer examples than sites, or σ is negative.
    """
    check_counts(examples, sites, "lognormal_sizes")
    if not sigma >= 0:
        raise PlanError(f"lognormal_sizes: sigma is {sigma}, expected 0 or more")
    rng = generator(seed, "lognormal_sizes")
    shares = rng.lognormal(math.log(examples / sites), sigma, size=sites)
    sizes = np.floor(shares / shares.sum() * examples).astype(int) if sigma else np.full(sites, examples // sites)
    sizes[0] += examples - sizes.sum()
    for site in np.flatnonzero(sizes == 0):
        sizes[site] += 1
        sizes[sizes.argmax()] -= 1
    return cut(rng.permutation(examples), sizes.tolist())


def dirichlet_sizes(examples: int, sites: int, *, alpha: float, seed: int, minimum: int = MINIMUM) -> list[Array]:
    """Divide at random into parts whose shares are drawn from Dir(α·1_K), again until every part is large enough.

    Args:
        examples: number of examples, n.
        sites: number of sites, K.
        alpha: α; smaller is more uneven.
        seed: decides the draw.
        minimum: examples a site has at least.

    Returns:
        Sorted example numbers of each site.

    Raises:
        PlanError: fewer examples than sites, α is not positive, or the draws left some site with too few.
    """
    check_counts(examples, sites, "dirichlet_sizes")
    if not alpha > 0:
        raise PlanError(f"dirichlet_sizes: alpha is {alpha}, expected more than 0")
    rng = generator(seed, "dirichlet_sizes")
    for _ in range(ATTEMPTS):
        ends = np.rint(np.cumsum(rng.dirichlet(np.full(sites, alpha))) * examples).astype(int)
        sizes = np.diff(ends, prepend=0)
        sizes[-1] += examples - sizes.sum()
        if sizes.min() >= minimum:
            return cut(rng.permutation(examples), sizes.tolist())
    raise PlanError(
        f"dirichlet_sizes({alpha:g}) gave some site fewer than {minimum} of {examples} examples in {ATTEMPTS} draws; "
        f"raise alpha, use fewer sites, or say how few are enough, such as sizes:{alpha:g},1"
    )

"""Partitions by feature or owner: sites see other samples of the same classes, as other scanners make them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from federation.data.partitions.drawing import generator
from federation.errors import PlanError

if TYPE_CHECKING:
    from federation.tensors.buffers import Array

FCUBE_SITES = 4


def fcube(points: Array) -> list[Array]:
    """Divide points of a cube among 4 sites: each has two octants that are opposite through the origin.

    Source: FCUBE of arXiv:2102.02079. The classes, split by the plane x₁ = 0, are balanced at each site,
    the features are not.

    Args:
        points: shape (n, 3).

    Returns:
        Sorted example numbers of each of the 4 sites.

    Raises:
        PlanError: points of another shape.
    """
    if points.ndim != 2 or points.shape[1] != 3:
        raise PlanError(f"fcube divides points of shape (n, 3), got {points.shape}; see federation.data.partitions")
    octant = (points > 0) @ np.array([4, 2, 1])
    return [np.flatnonzero((octant == site) | (octant == 7 - site)) for site in range(FCUBE_SITES)]


def fcube_points(examples: int, *, seed: int) -> tuple[Array, Array]:
    """Draw points uniformly from the cube [−1, 1]³.

    Returns:
        Points, shape (n, 3) float32, and classes, shape (n,) int64: 1 where x₁ > 0.
    """
    points = generator(seed, "fcube_points").uniform(-1, 1, size=(examples, 3)).astype(np.float32)
    return points, (points[:, 0] > 0).astype(np.int64)


def feature_noise(samples: Array, site: int, sites: int, *, sigma: float, seed: int, purpose: str = "train") -> Array:
    """Add Gaussian noise of a site's own level, as in arXiv:2102.02079.

    The i-th of K sites adds N(0, σ·i/K), σ·i/K being the *variance*; the last site is the noisiest.

    Args:
        samples: float array, shape (n, …).
        site: number of the site, from 0: i − 1.
        sites: number of sites, K.
        sigma: σ.
        seed: decides the noise.
        purpose: names the noise's stream; that of other data of a site is another.

    Returns:
        A new array of the same dtype.

    Raises:
        PlanError: samples are not floats, σ is negative, or there is no such site.
    """
    if not np.issubdtype(samples.dtype, np.floating):
        raise PlanError(f"feature noise needs float samples, got {samples.dtype}; scale them first")
    if not sigma >= 0 or not 0 <= site < sites:
        raise PlanError(f"feature noise of variance {sigma} · {site + 1} / {sites} is not possible")
    rng = generator(seed, f"feature_noise/{purpose}/{site}")
    noise = rng.standard_normal(samples.shape) * math.sqrt(sigma * (site + 1) / sites)
    noisy: Array = (samples + noise).astype(samples.dtype)
    return noisy


def natural(ids: Array, sites: int | None = None) -> list[Array]:
    """Divide by who the examples belong to: a hospital, a scanner, a writer.

    Args:
        ids: owner of each example, shape (n,), numbers or text.
        sites: number of sites. None: one for each owner. With fewer, owners are dealt to the sites in turn, each whole.

    Returns:
        Sorted example numbers of each site; without `sites`, in the order of the owners' ids.

    Raises:
        PlanError: fewer owners than sites.
    """
    owners, owner = np.unique(ids, return_inverse=True)
    wanted = len(owners) if sites is None else sites
    if not 1 <= wanted <= len(owners):
        raise PlanError(f"natural cannot divide the data of {len(owners)} owners among {wanted} sites")
    return [np.flatnonzero(owner % wanted == site) for site in range(wanted)]

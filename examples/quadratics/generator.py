"""Least-squares problems whose smoothness and strong convexity are chosen, one objective per site.

Site i holds f_i(x) = (1/n) Σ (a_lᵀx − b_l)² over its n rows, so that the federation minimises f = mean of the f_i.
Entries of a and b are drawn from U[0, 1]; then the singular values of A are set so that the Hessian (2/n) AᵀA has d
eigenvalues evenly spaced from μ to L: σ = √(n λ / 2). They are set in ascending order against NumPy's descending ones,
which puts μ on the direction that dominates in the drawn matrix; the published curves depend on that order.

- *iid*: every site holds the same A and b.
- *not iid*: A of all sites is stacked before its spectrum is set, so μ and L hold for f, and each f_i has its own.

Source: the quadratics of FL_PyTorch (arXiv:2202.03099, section 5). Pure NumPy, float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Quadratic:
    """One federated least-squares problem.

    Attributes:
        features: A of each site, [sites, samples, d] float64.
        targets: b of each site, [sites, samples] float64.
    """

    features: np.ndarray
    targets: np.ndarray

    @property
    def stacked(self) -> tuple[np.ndarray, np.ndarray]:
        """A [sites · samples, d] and b [sites · samples] of f; views."""
        sites, samples, d = self.features.shape
        return self.features.reshape(sites * samples, d), self.targets.reshape(sites * samples)

    def gradient(self, x: np.ndarray) -> np.ndarray:
        """∇f(x), [d] float64."""
        a, b = self.stacked
        return 2 / len(b) * (a.T @ (a @ x - b))

    def loss(self, x: np.ndarray) -> float:
        """f(x)."""
        a, b = self.stacked
        return float(np.mean((a @ x - b) ** 2))

    def hessian(self, site: int | None = None) -> np.ndarray:
        """Hessian of f, or of one site's f_i; [d, d] float64, the same everywhere."""
        a = self.stacked[0] if site is None else self.features[site]
        return 2 / len(a) * (a.T @ a)

    def minimiser(self) -> np.ndarray:
        """x* of f, [d] float64."""
        a, b = self.stacked
        return np.linalg.lstsq(a, b, rcond=None)[0]


def make_quadratic(
    *,
    d: int = 20,
    mu: float = 1.0,
    smoothness: float = 2.0,
    samples: int = 100,
    sites: int = 10,
    iid: bool = True,
    seed: int,
) -> Quadratic:
    """Draw a problem.

    Args:
        d: parameters, at least 1.
        mu: smallest eigenvalue of the Hessian of f, above 0.
        smoothness: L, its largest; at least `mu`.
        samples: rows of each site, so that a site (iid) or the federation (not iid) has at least `d`.
        sites: how many sites.
        iid: whether all sites hold the same rows.
        seed: of the draw; the same seed gives the same problem.

    Raises:
        ValueError: a number is out of range, or there are fewer rows than parameters.
    """
    rows = samples if iid else samples * sites
    if not 0 < mu <= smoothness:
        raise ValueError(f"mu is {mu} and L is {smoothness}; give 0 < mu <= L")
    if min(d, samples, sites) < 1 or rows < d:
        raise ValueError(f"{rows} rows do not fix {d} parameters; give more samples")
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(size=(rows, d)), rng.uniform(size=rows)
    u, _, vt = np.linalg.svd(a, full_matrices=False)
    sigma = np.sqrt(rows * np.linspace(mu, smoothness, d) / 2)
    a = (u * sigma) @ vt
    if iid:
        return Quadratic(features=np.stack([a] * sites), targets=np.stack([b] * sites))
    return Quadratic(features=a.reshape(sites, samples, d), targets=b.reshape(sites, samples))

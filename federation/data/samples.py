"""Public data from scikit-learn, divided among pretended sites: for the quickstart, the examples and tests.

Breast cancer (Wolberg, Street, Mangasarian 1995; 569 patients, 30 measures of cell nuclei, benign or malignant) is
divided among three hospitals that differ as hospitals do. *north* screens: many patients, nearly all benign, small
tumours. *south* is an oncology centre: fewer patients, nearly all malignant, large tumours. *island* is a small
practice with few patients, nearly all benign. A fifth of each hospital's patients validate; a quarter of all patients,
a fair sample, belongs to nobody and tests.

Measures are mapped to [0, 1] by the ranges published with the data (`sklearn.datasets.load_breast_cancer`, DESCR), so
that no hospital needs another's data to scale its own.

scikit-learn is imported when a shard is made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from federation.data.partition import by_quota, dirichlet
from federation.data.shard import ArrayShard
from federation.data.tables import split

if TYPE_CHECKING:
    from federation.tensors.buffers import Array

HOSPITALS = ("north", "south", "island")
ISLAND_SHARES = (0.08, 0.02)
"""Share of the benign and of the malignant patients who go to the island, drawn at random."""
NORTH_SHARES = (0.96, 0.05)
"""Share of the remaining benign and malignant patients who go to the north, those with the smallest tumours."""
TEST_SHARE = 0.25
_HELD_DIGITS = 360
_NOISE = 0.3
"""Spread of the noise on the order by tumour size, in standard deviations of size: hospitals overlap."""
# fmt: off
_LOWEST = (
    6.981, 9.71, 43.79, 143.5, 0.053, 0.019, 0.0, 0.0, 0.106, 0.05, 0.112, 0.36, 0.757, 6.802, 0.002,
    0.002, 0.0, 0.0, 0.008, 0.001, 7.93, 12.02, 50.41, 185.2, 0.071, 0.027, 0.0, 0.0, 0.156, 0.055,
)
_HIGHEST = (
    28.11, 39.28, 188.5, 2501.0, 0.163, 0.345, 0.427, 0.201, 0.304, 0.097, 2.873, 4.885, 21.98, 542.2, 0.031,
    0.135, 0.396, 0.053, 0.079, 0.03, 36.04, 49.54, 251.2, 4254.0, 0.223, 1.058, 1.252, 0.291, 0.664, 0.208,
)
# fmt: on


class BreastCancerShard(ArrayShard):
    """The patients of one hospital: 30 measures each, target 0 (benign) or 1 (malignant).

    Args:
        hospital: ``"north"``, ``"south"`` or ``"island"``.
        seed: decides who goes where.

    Raises:
        ValueError: no such hospital.
    """

    def __init__(self, hospital: str, *, seed: int = 0) -> None:
        if hospital not in HOSPITALS:
            raise ValueError(f"no hospital {hospital!r}; there are {', '.join(HOSPITALS)}")
        samples, targets = _breast_cancer()
        _, parts = _hospitals(samples, targets, seed)
        mine = parts[HOSPITALS.index(hospital)]
        train, validation = split((samples[mine], targets[mine]), 0.2, seed)
        super().__init__(
            train=train,
            validation=validation,
            description=f"breast cancer, {len(mine)} patients of hospital {hospital}",
        )


def breast_cancer_test(*, seed: int = 0) -> tuple[Array, Array]:
    """Return the patients that belong to no hospital: samples (n, 30) float32 and targets (n,) int64."""
    samples, targets = _breast_cancer()
    test, _ = _hospitals(samples, targets, seed)
    return samples[test], targets[test]


class DigitsShard(ArrayShard):
    """One site's part of the 1797 handwritten digits: images of shape (1, 8, 8) in [0, 1], target 0 to 9.

    Args:
        part: which site's, from 0.
        parts: number of sites.
        concentration: of the Dirichlet draw that spreads each digit; smaller is more skewed.
        seed: decides the draw.

    Raises:
        ValueError: no such part.
    """

    def __init__(self, part: int, *, parts: int = 5, concentration: float = 0.5, seed: int = 0) -> None:
        if not 0 <= part < parts:
            raise ValueError(f"part is {part}; it goes from 0 to parts - 1, {parts - 1}")
        samples, targets = _digits()
        mine = dirichlet(targets, parts, concentration=concentration, seed=seed)[part]
        train, validation = split((samples[mine], targets[mine]), 0.2, seed)
        super().__init__(
            train=train, validation=validation, description=f"digits, {len(mine)} images, part {part} of {parts}"
        )


class WholeDigits(ArrayShard):
    """All 1797 handwritten digits, 1437 to train and 360 to validate: to be divided by `federation.data.part`.

    Args:
        seed: decides which digits validate.
    """

    def __init__(self, *, seed: int = 0) -> None:
        samples, targets = _digits()
        train, validation = split((samples, targets), _HELD_DIGITS / len(targets), seed)
        super().__init__(train=train, validation=validation, description=f"digits, {len(targets)} images")


def _digits() -> tuple[Array, Array]:
    from sklearn.datasets import load_digits

    raw = load_digits()
    return (raw.data.reshape(-1, 1, 8, 8) / 16.0).astype(np.float32), raw.target.astype(np.int64)


def _breast_cancer() -> tuple[Array, Array]:
    from sklearn.datasets import load_breast_cancer

    raw = load_breast_cancer()
    low, high = np.array(_LOWEST), np.array(_HIGHEST)
    # scikit-learn calls malignant 0; a positive finding is 1 everywhere else.
    return ((raw.data - low) / (high - low)).astype(np.float32), (1 - raw.target).astype(np.int64)


def _hospitals(samples: Array, targets: Array, seed: int) -> tuple[Array, list[Array]]:
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(targets))
    held = round(len(targets) * TEST_SHARE)
    test, rest = np.sort(order[:held]), np.sort(order[held:])
    quotas = [(share, 1 - share) for share in ISLAND_SHARES]
    island, mainland = by_quota(targets[rest], quotas, rng.permutation(len(rest)))
    size = samples[rest[mainland], 0]  # mean radius
    noisy = size + rng.normal(scale=_NOISE * size.std(), size=len(size))
    quotas = [(share, 1 - share) for share in NORTH_SHARES]
    north, south = by_quota(targets[rest[mainland]], quotas, noisy)
    return test, [rest[mainland[north]], rest[mainland[south]], rest[island]]

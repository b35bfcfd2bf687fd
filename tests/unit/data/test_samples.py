from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.data.partition import by_quota, dirichlet

pytest.importorskip("sklearn")
from federation.data.samples import HOSPITALS, BreastCancerShard, DigitsShard, breast_cancer_test


def test_every_patient_is_at_one_hospital_or_in_the_test_and_nowhere_twice() -> None:
    shards = [BreastCancerShard(name) for name in HOSPITALS]
    parts = [part[0] for shard in shards for part in (shard.train, shard.validation)] + [breast_cancer_test()[0]]
    rows = np.concatenate(parts)
    assert rows.shape == (569, 30)
    assert len(np.unique(rows, axis=0)) == 569


def test_hospitals_differ_in_size_label_and_feature() -> None:
    north, south, island = (BreastCancerShard(name) for name in HOSPITALS)
    sizes = [len(shard.train[1]) for shard in (north, south, island)]
    assert sizes == [194, 129, 19]
    malignant = [float(shard.train[1].mean()) for shard in (north, south, island)]
    assert max(malignant[0], malignant[2]) < 0.15 < 0.85 < malignant[1]
    benign_radius = [float(shard.train[0][shard.train[1] == 0, 0].mean()) for shard in (north, south)]
    assert benign_radius[0] < benign_radius[1]


def test_the_test_patients_are_a_fair_sample() -> None:
    samples, targets = breast_cancer_test()
    assert len(targets) == 142
    assert 0.3 < targets.mean() < 0.45
    assert samples.dtype == np.float32


def test_measures_lie_in_the_published_ranges() -> None:
    samples = np.concatenate([BreastCancerShard(name).train[0] for name in HOSPITALS])
    assert samples.min() >= -0.02  # the published ranges are rounded
    assert samples.max() <= 1.02


def test_a_division_is_the_same_every_time_and_another_by_seed() -> None:
    assert np.array_equal(BreastCancerShard("north").train[0], BreastCancerShard("north").train[0])
    assert not np.array_equal(breast_cancer_test()[0], breast_cancer_test(seed=1)[0])


def test_an_unknown_hospital_and_part_are_refused() -> None:
    with pytest.raises(ValueError, match="north, south, island"):
        BreastCancerShard("east")
    with pytest.raises(ValueError, match="0 to parts - 1"):
        DigitsShard(5)


def test_the_parts_of_the_digits_are_whole_and_uneven() -> None:
    shards = [DigitsShard(part) for part in range(5)]
    counts = [len(shard.train[1]) + len(shard.validation[1]) for shard in shards]
    assert sum(counts) == 1797
    assert max(counts) > 1.5 * min(counts)


@given(
    classes=st.lists(st.integers(0, 3), min_size=12, max_size=80),
    sites=st.integers(1, 6),
    concentration=st.sampled_from([0.01, 0.5, 100.0]),
    seed=st.integers(0, 5),
)
def test_a_dirichlet_division_is_a_partition_with_at_least_two_each(classes, sites, concentration, seed) -> None:
    parts = dirichlet(np.array(classes), sites, concentration=concentration, seed=seed)
    assert len(parts) == sites
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(classes)))
    assert min(len(part) for part in parts) >= 2


def test_a_division_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot divide"):
        dirichlet(np.zeros(3), 2, concentration=1, seed=0)
    with pytest.raises(ValueError, match="sum to"):
        by_quota(np.zeros(3), [(0.5, 0.4)], np.zeros(3))

"""Parts of a whole dataset: what an envoy offers is what a simulation divides."""

from __future__ import annotations

import numpy as np
import pytest

from federation.data import ArrayShard, LocalData, Shard
from federation.data.loading import ShardError, load_shard
from federation.data.part import PartShard, divide, labels_of, training_parts
from federation.data.partitions import parse_partition
from federation.data.samples import WholeDigits
from federation.errors import PlanError

BASE = "federation.data.samples:WholeDigits"


def whole(examples=60, held=12, classes=4):
    rng = np.random.default_rng(0)
    return ArrayShard(
        train=(rng.random((examples, 3), dtype=np.float32), np.arange(examples) % classes),
        validation=(rng.random((held, 3), dtype=np.float32), np.arange(held) % classes),
        description="numbers",
    )


class Pairs:
    """A map-style dataset."""

    def __init__(self, samples, targets):
        self.samples, self.targets = samples, targets

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return self.samples[index], self.targets[index]


class MapShard:
    """The whole as map-style datasets."""

    def __init__(self, shard):
        self.train, self.validation = Pairs(*shard.train), Pairs(*shard.validation)
        self.sample_shape, self.target_shape, self.description = shard.sample_shape, shard.target_shape, "pairs"


def test_the_whole_digits_are_1437_to_train_and_360_to_validate():
    shard = WholeDigits()
    assert (len(shard.train[1]), len(shard.validation[1])) == (1437, 360)
    assert shard.sample_shape == (1, 8, 8) and set(shard.train[1].tolist()) == set(range(10))


@pytest.mark.parametrize("scheme", ["iid", "dirichlet:0.3", "shards:2", "noise:0.1"])
def test_an_envoys_part_is_the_simulations_to_the_bit(scheme):
    parts = divide(WholeDigits(seed=2), scheme, 5, seed=7)
    for number in (0, 3):
        part = PartShard(base=BASE, options={"seed": 2}, scheme=scheme, part=number, of=5, seed=7)
        for got, expected in ((part.train, parts[number].train), (part.validation, parts[number].validation)):
            assert np.array_equal(got[0], expected[0]) and np.array_equal(got[1], expected[1])
        assert part.description == parts[number].description
        assert part.description.endswith(f"part {number} of 5 ({scheme})")


def test_parts_are_whole_disjoint_and_in_the_original_order():
    shard = whole()
    parts = training_parts(shard, parse_partition("dirichlet:0.5"), 4, seed=1)
    assert sorted(np.concatenate(parts).tolist()) == list(range(60))
    for part, made in zip(parts, divide(shard, "dirichlet:0.5", 4, seed=1), strict=True):
        assert np.array_equal(made.train[0], shard.train[0][part])
        assert np.array_equal(made.train[1], shard.train[1][part])
        assert isinstance(made, Shard)


def test_parts_of_arrays_share_one_copy():
    parts = divide(whole(), "iid", 4)
    assert parts[0].train[0].base is parts[3].train[0].base is not None


def test_validation_is_divided_too_unless_there_is_too_little():
    assert [len(part.validation[1]) for part in divide(whole(held=12), "iid", 5)] == [3, 3, 2, 2, 2]
    assert [len(part.validation[1]) for part in divide(whole(held=3), "iid", 5)] == [3] * 5


def test_a_map_style_dataset_is_divided_as_arrays_are():
    arrays, pairs = (divide(shard, "labels:2", 4, seed=3) for shard in (whole(), MapShard(whole())))
    for part, other in zip(arrays, pairs, strict=True):
        (samples, targets), *_ = LocalData(other).batches(len(other.train))
        assert np.array_equal(samples, part.train[0]) and np.array_equal(targets, part.train[1])
    noisy, also = (divide(shard, "noise:0.5", 4, seed=3)[3] for shard in (whole(), MapShard(whole())))
    assert np.array_equal(noisy.train[0], also.train[0]) and np.array_equal(noisy.validation[0], also.validation[0])


def test_natural_division_follows_the_shards_ids():
    shard = whole(examples=6)
    with pytest.raises(PlanError, match="needs a shard with `ids`"):
        divide(shard, "natural", 2)
    shard.ids = ["x", "y", "x", "y", "y", "x"]
    assert [part.train[1].tolist() for part in divide(shard, "natural", 2)] == [[0, 2, 1], [1, 3, 0]]


def test_fcube_makes_four_parts_and_no_other_number():
    rng = np.random.default_rng(1)
    points = (rng.uniform(-1, 1, size=(80, 3)), np.arange(80) % 2)
    shard = ArrayShard(train=points, validation=points)
    assert len(divide(shard, "fcube", 4)) == 4
    with pytest.raises(PlanError, match="makes 4 parts of this data, 5 sites are wanted"):
        divide(shard, "fcube", 5)


def test_targets_that_are_no_classes_are_refused_where_classes_are_needed():
    rows = np.zeros((6, 2))
    shard = ArrayShard(train=(rows, rows), validation=(rows, rows))
    assert len(divide(shard, "iid", 3)) == 3
    with pytest.raises(PlanError, match="are not classes"):
        divide(shard, "dirichlet:1", 3)
    with pytest.raises(PlanError, match="not whole numbers"):
        labels_of((rows, np.linspace(0, 1, 6)))
    assert labels_of((rows, np.arange(6.0))).tolist() == [0, 1, 2, 3, 4, 5]


def test_a_site_without_an_example_is_an_error_that_says_so():
    shard = ArrayShard(train=(np.zeros((4, 3)), np.zeros(4)), validation=(np.zeros((4, 3)), np.zeros(4)))
    with pytest.raises(PlanError, match="leaves site 1 of 4 without an example"):
        divide(shard, "fcube", 4)


def test_a_factory_line_gives_a_part_and_names_what_is_wrong():
    part = load_shard("digits", "federation.data.part:PartShard", {"base": BASE, "part": 1, "of": 3})
    assert len(part.train[1]) == 479
    with pytest.raises(ShardError, match="part is 3; it goes from 0 to of - 1, 2"):
        load_shard("digits", "federation.data.part:PartShard", {"base": BASE, "part": 3, "of": 3})
    with pytest.raises(ShardError, match="has no class 'Missing'"):
        load_shard("digits", "federation.data.part:PartShard", {"base": BASE[:-11] + "Missing", "part": 0, "of": 3})

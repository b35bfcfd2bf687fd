"""Matching shards to experiments, slots, and the sentence a waiting user reads."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from director.scheduling import Need, Shard, Site, decide, match
from federation.names import ExperimentId, ShardName, SiteName


def shard(name: str = "main", kind: str = "tabular", *, sample: tuple[int, ...] = (30,), examples: int = 10) -> Shard:
    return Shard(
        name=ShardName(name),
        kind=kind,
        train_examples=examples,
        validation_examples=2,
        sample_shape=sample,
        target_shape=(),
    )


def site(name: str, *shards: Shard, online: bool = True) -> Site:
    return Site(name=SiteName(name), online=online, shards=shards)


def need(name: str, kind: str = "tabular", sites: int = 1, sample: tuple[int, ...] | None = None) -> Need:
    return Need(experiment=ExperimentId(name), kind=kind, sites=sites, sample_shape=sample)


def test_several_matching_shards_of_a_site_are_one_participant() -> None:
    found = match(need("a"), site("north", shard("two", examples=5), shard("one"), shard("other", "images")))
    assert found is not None
    assert found.shards == ("one", "two")
    assert found.train_examples == 15
    assert found.validation_examples == 4


def test_another_kind_or_shape_does_not_match() -> None:
    assert match(need("a", "images"), site("north", shard())) is None
    assert match(need("a", sample=(31,)), site("north", shard())) is None
    assert match(need("a", sample=(30,)), site("north", shard())) is not None


def test_target_shape_is_checked_where_the_experiment_says_it() -> None:
    wants = Need(experiment=ExperimentId("a"), kind="tabular", sites=1, target_shape=(1,))
    assert match(wants, site("north", shard())) is None


def test_starts_when_enough_sites_match_and_asks_all_of_them() -> None:
    sites = [site("north", shard()), site("south", shard()), site("west", shard("x", "images"))]
    decision = decide([need("a", sites=2)], sites, running=0, slots=4)
    assert [found.site for found in decision.start[ExperimentId("a")]] == ["north", "south"]
    assert not decision.waiting


def test_waiting_for_sites_says_how_many_and_which_are_offline() -> None:
    decision = decide(
        [need("a", sites=3)], [site("north", shard()), site("south", shard(), online=False)], running=0, slots=4
    )
    text = decision.waiting[ExperimentId("a")]
    assert "1 of the 3 it wants is online with a matching shard of kind tabular" in text
    assert "offline: south" in text


def test_waiting_for_an_unknown_kind_says_what_is_offered() -> None:
    decision = decide([need("a", "genomes")], [site("north", shard())], running=0, slots=4)
    assert "no envoy offers this kind; offered are tabular" in decision.waiting[ExperimentId("a")]


def test_a_wrong_shape_is_named_with_site_and_shard() -> None:
    decision = decide([need("a", sample=(8, 8))], [site("north", shard())], running=0, slots=4)
    assert "north/main has samples of shape [30], the model takes [8, 8]" in decision.waiting[ExperimentId("a")]


def test_one_that_cannot_start_is_passed_over() -> None:
    decision = decide([need("a", sites=5), need("b")], [site("north", shard())], running=0, slots=1)
    assert list(decision.start) == ["b"]
    assert "waits for sites" in decision.waiting[ExperimentId("a")]


def test_no_more_start_than_slots_are_free_and_the_oldest_go_first() -> None:
    decision = decide([need("a"), need("b"), need("c")], [site("north", shard())], running=1, slots=2)
    assert list(decision.start) == ["a"]
    assert decision.waiting[ExperimentId("b")] == "waits for a slot: 2 of 2 experiments are running"


@given(
    wants=st.lists(st.integers(1, 4), max_size=8),
    online=st.lists(st.booleans(), max_size=5),
    running=st.integers(0, 5),
    slots=st.integers(0, 5),
)
def test_every_experiment_either_starts_or_waits_with_a_reason(
    wants: list[int], online: list[bool], running: int, slots: int
) -> None:
    queue = [need(f"e{index}", sites=wanted) for index, wanted in enumerate(wants)]
    sites = [site(f"s{index}", shard(), online=is_online) for index, is_online in enumerate(online)]
    decision = decide(queue, sites, running=running, slots=slots)
    assert set(decision.start) | set(decision.waiting) == {item.experiment for item in queue}
    assert not set(decision.start) & set(decision.waiting)
    assert len(decision.start) <= max(0, slots - running)
    assert all(decision.waiting.values())
    for matches in decision.start.values():
        assert all(online[int(found.site[1:])] for found in matches)

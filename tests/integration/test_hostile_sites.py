"""Hostile sites among honest ones: a real aggregator process, real TLS, attacks that see what a real site sees."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest

from federation.attacks import Attack, load_attack
from federation.data.samples import DigitsShard
from federation.errors import Refusal
from federation.plan import Plan
from federation.rounds.randomness import derive_seed
from federation.storage.safetensors_files import read_model
from federation.testing.aggregators import Stage, flat_schema
from federation.testing.attacks import Collusion, HostileSite
from federation.testing.poisoned import PoisonedShard

HONEST = {f"site-{letter}": target for letter, target in zip("abcde", (0.9, 0.95, 1.0, 1.05, 1.1), strict=True)}
HOSTILE = {"site-x": 0.9, "site-y": 1.1}
ELEMENTS = 200


async def run(tmp_path, attack, *, known=None, **plan):
    """Run a federation of seven sites, two of them hostile; returns the last model, its history and the hostile.

    One attack is made together, against the rule `known` if there is one; given by site, each makes its own.
    """
    plan = {"sites": 7, "rounds": 2, "evaluate_every": 0, "weighting": "uniform", **plan}
    built = Stage(tmp_path, Plan(**plan), [*HONEST, *HOSTILE], schema=flat_schema(ELEMENTS))
    if not isinstance(attack, dict):
        collusions = dict.fromkeys(HOSTILE, Collusion(attack, HOSTILE, total=7, rule=known))
    else:
        collusions = {name: Collusion(attack[name], [name], total=7) for name in HOSTILE}
    async with built.process() as running, asyncio.timeout(60), asyncio.TaskGroup() as group:
        sites = [built.site(name, running.address, target=target) for name, target in HONEST.items()]
        liars = [
            built.site(name, running.address, HostileSite, target=target, collusion=collusions[name])
            for name, target in HOSTILE.items()
        ]
        tasks = [group.create_task(site.run()) for site in (*sites, *liars)]
        outcomes = await asyncio.gather(*tasks)
        for site in (*sites, *liars):
            await site.vanish()
        assert outcomes == ["completed"] * 7
        await running.ended()
    _, arrays = read_model(built.work / "artifacts" / "last.safetensors")
    history = json.loads((built.work / "artifacts" / "history.json").read_text())
    return arrays["weight"], history["rounds"], liars


async def test_what_is_not_finite_is_refused_when_it_arrives_and_the_round_goes_on(tmp_path):
    weight, rounds, hostile = await run(tmp_path, {"site-x": "infinity", "site-y": "nan"}, quorum=5)
    for site in hostile:
        assert [error.refusal for error in site.refusals] == [Refusal.NOT_FINITE] * 2
    for row in rounds:
        assert {site["site"]: site["outcome"] for site in row["sites"] if site["outcome"] != "counted"} == {
            "site-x": "refused", "site-y": "refused",
        }  # fmt: skip
    np.testing.assert_allclose(weight, 0.75, rtol=1e-6)


@pytest.mark.parametrize("attack", ["sign_flip:5", "scaling:20", "alie:8"])
async def test_the_mean_is_moved_by_exactly_what_was_sent(tmp_path, attack):
    weight, rounds, hostile = await run(tmp_path, attack, rounds=1)
    assert [site["outcome"] for site in rounds[0]["sites"]] == ["counted"] * 7
    assert not any(site.refusals for site in hostile)
    own = np.array([[0.45], [0.55]])
    sent = {"sign_flip:5": -2.5, "scaling:20": 10.0, "alie:8": 0.5 + 8 * own.std()}[attack]
    np.testing.assert_allclose(weight, (sum(HONEST.values()) / 2 + 2 * sent) / 7, rtol=1e-5)


IN_TURN = ("gaussian:0.5", "ipm:3", "mimic", "free_rider", "backdoor:3,replace", "ipm:opt")


class InTurn(Attack):
    """Another attack in each round, so that one federation sees them all."""

    def updates(self, sight):
        return load_attack(IN_TURN[sight.round - 1]).updates(sight)


async def test_every_other_attack_arrives_as_it_is_made(tmp_path):
    mean_of_known = lambda sent: sent.mean(axis=0)  # noqa: E731 - the longer, the worse
    weight, rounds, hostile = await run(tmp_path, InTurn(), known=mean_of_known, rounds=len(IN_TURN))
    expected, targets = np.zeros(ELEMENTS), np.array(list(HOSTILE.values()))[:, None]
    for attack, row in zip(IN_TURN, rounds, strict=True):
        own = (targets - expected) / 2
        noise = np.random.default_rng(derive_seed(0, row["round"], "", "attack")).standard_normal(own.shape)
        sent = {
            "gaussian:0.5": 0.5 * noise,
            "ipm:3": np.tile(-3 * own.mean(axis=0), (2, 1)),
            "mimic": np.tile(own[0], (2, 1)),
            "free_rider": np.zeros_like(own),
            "backdoor:3,replace": own * 7 / 2,
            "ipm:opt": np.tile(-32 * own.mean(axis=0), (2, 1)),  # the largest that is tried
        }[attack]
        norms = [site["update_norm"] for site in row["sites"] if site["site"] in HOSTILE]
        np.testing.assert_allclose(norms, np.linalg.norm(sent, axis=1), rtol=1e-4, atol=1e-6, err_msg=attack)
        honest = sum((target - expected) / 2 for target in HONEST.values())
        expected = expected + (honest + sent.sum(axis=0)) / 7
    np.testing.assert_allclose(weight, expected, rtol=1e-3, atol=1e-4)
    assert not any(site.refusals for site in hostile)


@pytest.mark.parametrize(
    ("attack", "plan"),
    [
        ("sign_flip:5", {"rule": "trimmed_mean"}),
        ("scaling:20", {"rule": "krum"}),
        ("alie:8", {"rule": "median", "pre_aggregation": ("nnm",)}),
    ],
)
async def test_a_robust_rule_stands_what_moves_the_mean(tmp_path, attack, plan):
    """The honest step is 0.5, give or take 0.05; `test_rules_over_the_wire.py` has every rule."""
    weight, rounds, _ = await run(tmp_path, attack, rounds=1, byzantine=2, quorum=7, **plan)
    assert [site["outcome"] for site in rounds[0]["sites"]] == ["counted"] * 7
    assert np.abs(weight - 0.5).max() < 0.06


async def test_an_attack_optimised_against_the_rule_in_force_moves_it_no_further_than_honest_sites_differ(tmp_path):
    """Who knows the rule moves a trimmed mean, and within the honest steps: 0.45 to 0.55."""
    tried = []

    def trimmed(sent):
        tried.append(sent)
        honest = np.tile([[target / 2] for target in HONEST.values()], (1, ELEMENTS))
        return np.sort(np.vstack([honest, sent]), axis=0)[2:-2].mean(axis=0)

    plan = {"rule": "trimmed_mean", "byzantine": 2, "quorum": 7, "rounds": 1}
    weight, rounds, _ = await run(tmp_path, "alie:opt", known=trimmed, **plan)
    assert [site["outcome"] for site in rounds[0]["sites"]] == ["counted"] * 7
    assert len(tried) > 2, "the factor was searched for"
    assert 0.01 < np.abs(weight - 0.5).max() <= 0.05 + 1e-6


async def test_a_compressed_attack_arrives_as_its_codec_has_it(tmp_path):
    weight, rounds, _ = await run(tmp_path, "sign_flip:5", rounds=1, compression="float16")
    assert [site["outcome"] for site in rounds[0]["sites"]] == ["counted"] * 7
    np.testing.assert_allclose(weight, (2.5 - 5.0) / 7, rtol=1e-2)


def test_a_poisoned_shard_is_what_an_envoy_would_load():
    options = {"part": 1, "parts": 5}
    base = "federation.data.samples:DigitsShard"
    honest = DigitsShard(**options)
    flipped = PoisonedShard(attack="label_flip", base=base, options=options, classes=10)
    np.testing.assert_array_equal(flipped.train[1], 9 - honest.train[1])
    np.testing.assert_array_equal(flipped.train[0], honest.train[0])
    np.testing.assert_array_equal(flipped.validation[1], honest.validation[1])
    with pytest.raises(ValueError, match="spoils no data"):
        PoisonedShard(attack="sign_flip", base=base, options=options)
    for attack in ("backdoor:3,10", "backdoor:3,replace"):
        with pytest.raises(ValueError, match=r"also changes what the site sends.* or let HostileSite"):
            PoisonedShard(attack=attack, base=base, options=options)
    stamped = PoisonedShard(attack="backdoor:3", base=base, options=options, classes=10)
    assert (stamped.train[1] != honest.train[1]).any()


@pytest.mark.parametrize("attack", ["label_flip", "backdoor:3"])
def test_sites_without_data_cannot_spoil_any(attack):
    with pytest.raises(ValueError, match="use PoisonedShard"):
        Collusion(attack, ["site-x"], total=7)


@pytest.mark.parametrize("attack", ["alie:1.5", "mimic"])
def test_an_attack_that_would_send_an_honest_update_is_refused_to_a_single_site(attack):
    with pytest.raises(ValueError, match=r"is made of 2 updates or more.* 1 would send what it learnt, unchanged"):
        Collusion(attack, ["site-x"], total=7)
    Collusion(attack, HOSTILE, total=7)

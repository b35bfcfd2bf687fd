"""Hostile sites of a simulation: what they send, who admits it, and that a seed still gives one result."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from federation.attacks import Attack, Sight
from federation.data.shard import ArrayShard
from federation.errors import ConflictError, PlanError
from federation.rounds.history import SiteOutcome
from federation.simulation import simulate

from .stops import stopping

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from federation import Experiment

    Make = Callable[..., Experiment]
SITES = 5


def digests(result: Any) -> list[str]:
    return [record.model_digest for record in result.records]


class Watching(Attack):
    """Remembers what it was shown, and sends it as it is."""

    name = "watching"
    source = "this test"

    def __init__(self) -> None:
        self.seen: list[Sight] = []

    def updates(self, sight: Sight) -> Any:
        self.seen.append(sight)
        return sight.own.copy()


@pytest.mark.parametrize("attack", ["gaussian:0.5", "alie:opt", "backdoor:0,2"])
def test_any_number_of_workers_gives_the_same_bits_under_attack(make: Make, attack: str) -> None:
    one, two = (simulate(make(), sites=SITES, workers=n, attack=attack, hostile=2) for n in (1, 2))
    assert digests(one) == digests(two)
    assert digests(one) != digests(simulate(make(), sites=SITES))


def test_hostile_sites_see_every_honest_update_and_sending_their_own_changes_nothing(make: Make) -> None:
    watching = Watching()
    result = simulate(make(), sites=SITES, attack=watching, hostile=("site-001", "site-003"))
    assert digests(result) == digests(simulate(make(), sites=SITES))
    assert [(one.round, one.own.shape, one.honest.shape, one.total) for one in watching.seen] == [
        (number, (2, 6), (3, 6), SITES) for number in range(1, 7)
    ]
    norms = [row.update_norm for row in result.records[0].sites]
    np.testing.assert_allclose(np.linalg.norm(watching.seen[0].honest, axis=1), [norms[n] for n in (0, 2, 4)])
    np.testing.assert_allclose(np.linalg.norm(watching.seen[0].own, axis=1), [norms[1], norms[3]])


def test_the_rule_that_hostile_sites_know_is_the_one_in_force(make: Make) -> None:
    watching = Watching()
    result = simulate(make(rounds=1, weighting="uniform"), sites=SITES, attack=watching, hostile=2)
    rule = watching.seen[0].rule
    assert rule is not None
    outcome = rule(watching.seen[0].own)
    assert np.linalg.norm(outcome) == pytest.approx(result.records[0].update_norm)
    moved = rule(watching.seen[0].own + 1.0)
    np.testing.assert_allclose(moved - outcome, 2 / SITES)


def test_a_flipped_mean_undoes_the_step_exactly(make: Make) -> None:
    """With the uniform mean, f sites that send −(h/f) times the honest mean stop the model where it is."""
    result = simulate(make(rounds=2, weighting="uniform"), sites=SITES, attack="sign_flip:1.5", hostile=2)
    np.testing.assert_allclose(result.arrays["w"], 0.0, atol=1e-7)


@pytest.mark.parametrize("attack", ["infinity", "nan"])
def test_what_is_not_finite_is_refused_at_admission_and_the_rest_goes_on(make: Make, attack: str) -> None:
    result = simulate(make(quorum=3, sites=SITES), sites=SITES, attack=attack, hostile=2)
    assert result.outcome == "completed"
    rows = result.records[0].sites
    assert [row.outcome for row in rows] == [SiteOutcome.COUNTED] * 3 + [SiteOutcome.REFUSED] * 2
    assert "finite" in rows[4].reason
    assert np.isfinite(result.arrays["w"]).all()


def test_an_update_too_long_is_refused_as_everybodys_is(make: Make) -> None:
    result = simulate(make(quorum=3, sites=SITES, max_norm=10.0), sites=SITES, attack="scaling:1000", hostile=1)
    rows = result.records[0].sites
    assert [row.outcome for row in rows] == [SiteOutcome.COUNTED] * 4 + [SiteOutcome.REFUSED]
    assert "allows 10" in rows[4].reason


def test_a_compressed_plan_sends_what_the_attack_wrote_through_the_codec(make: Make) -> None:
    codec = {"compression": "natural", "rounds": 2, "weighting": "uniform"}
    result = simulate(make(**codec), sites=SITES, attack="sign_flip:1.5", hostile=2)
    honest = simulate(make(**codec), sites=SITES)
    assert np.linalg.norm(result.arrays["w"]) < 0.5 * np.linalg.norm(honest.arrays["w"])
    refused = simulate(make(**codec), sites=SITES, attack="nan", hostile=2)
    assert refused.outcome == "failed" and "simulate it without compression" in refused.reason


def test_a_run_under_attack_that_was_stopped_goes_on_to_the_same_bits(make: Make, tmp_path: Path) -> None:
    attack: dict[str, Any] = {"attack": "gaussian:0.1", "hostile": 2, "sites": SITES}
    with pytest.raises(KeyboardInterrupt):
        simulate(make(), **attack, folder=tmp_path, on_round=stopping(3))
    assert digests(simulate(make(), **attack, folder=tmp_path)) == digests(simulate(make(), **attack))
    head = json.loads((tmp_path / "run.json").read_text())
    assert (head["attack"], head["hostile"]) == ("gaussian:0.1", ["site-003", "site-004"])
    with pytest.raises(ConflictError, match="another plan"):
        simulate(make(), sites=SITES, attack="gaussian:0.2", hostile=2, folder=tmp_path)
    with pytest.raises(ConflictError, match="another plan"):
        simulate(make(), sites=SITES, folder=tmp_path)


@pytest.mark.parametrize(
    ("attack", "hostile", "says"),
    [
        ("ipm:2", 0, "an attack needs hostile sites"),
        (None, 2, "an attack needs hostile sites"),
        ("ipm:2", 6, "6 hostile sites of 5"),
        ("ipm:2", ("site-009",), "'site-009' is none of the sites"),
        ("impm", 1, "did you mean 'ipm'"),
    ],
)
def test_a_threat_that_cannot_be_is_refused(make: Make, attack: Any, hostile: Any, says: str) -> None:
    with pytest.raises(PlanError, match=says):
        simulate(make(), sites=SITES, attack=attack, hostile=hostile)


class Reader:
    """Learns which class each bright corner belongs to: a table of counts, and accuracy as its metric."""

    metric_names = ("loss", "accuracy")

    def train(self, model: dict[str, Any], data: Any, round: Any) -> dict[str, float]:
        samples, targets = data.train
        for sample, target in zip(samples, targets, strict=True):
            model["table"][:, target] += np.float32(round.learning_rate) * sample
        return self.evaluate(model, data)

    def evaluate(self, model: dict[str, Any], data: Any) -> dict[str, float]:
        samples, targets = data.validation
        return {"loss": 0.0, "accuracy": float(((samples @ model["table"]).argmax(axis=1) == targets).mean())}


def test_a_backdoor_opens_and_says_how_often(make: Make) -> None:
    """Samples are one-hot over six places, of which the last two are never used but by the trigger."""
    from federation import Experiment, Plan

    targets = np.arange(80) % 4
    samples = np.eye(6, dtype=np.float32)[targets]
    plan = Plan(rounds=3, learning_rate=0.1)
    experiment = Experiment(
        name="reader", model={"table": np.zeros((6, 4), np.float32)}, task=Reader(), shard="places", plan=plan,
        data=lambda: ArrayShard(train=(samples, targets), validation=(samples[:16], targets[:16])),
    )  # fmt: skip
    clean = simulate(experiment, sites=4)
    assert clean.attack_success is None and clean.records[-1].metrics["accuracy"] == 1.0
    hidden = simulate(experiment, sites=4, attack="backdoor:2,replace", hostile=1)
    assert hidden.attack_success == 1.0
    assert hidden.records[-1].metrics["accuracy"] == 1.0
    assert simulate(experiment, sites=4, attack="sign_flip", hostile=1).attack_success is None

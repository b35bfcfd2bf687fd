"""A hostile site in a whole federation: director, envoys, collaborators and trainers are real, one of five sites lies.

``centre`` has the labels of its data the wrong way round, as its owner's ``envoy.toml`` says, and enlarges what it
learnt of them before it hands it over. The same experiment runs with the mean and with the median, side by side; in the
second ``centre`` is found out, put in quarantine, released by an operator, asked again and found out again.
"""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HONEST, HOSTILE = ("east", "north", "south", "west"), "centre"
SITES = {**dict.fromkeys(HONEST, ("classes",)), HOSTILE: ("poisoned",)}
PLAN: dict[str, Any] = {"rounds": 7, "sites": 5, "minimum_sites": 4, "quorum": 4, "local_epochs": 2}
ROBUST = {"rule": "median", "byzantine": 1, "quarantine": {"score": "distance", "threshold": 2.0, "rounds": 2}}
SETTINGS: dict[str, Any] = {"shard": "classes", "attacks": {HOSTILE: "scaling:5"}}
REASON = "distance above 2 times the round's median in 2 rounds in a row"


@pytest.fixture(scope="module")
def trial(start: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with start(tmp_path_factory.mktemp("hostile"), SITES) as running:
        yield running


def command(*words: str, profile: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "federation.client.command", *words, "--profile", str(profile)],
        capture_output=True, text=True, check=False, timeout=60, env={"COLUMNS": "300"},
    )  # fmt: skip


def audit_of(trial: Any, experiment: str) -> list[tuple[str, ...]]:
    """What the audit trail says of the site, as an operator reads it."""
    query = "SELECT actor, action, admitted, detail FROM audit WHERE subject = ? ORDER BY at"
    with contextlib.closing(sqlite3.connect(trial.folder / "director" / "state" / "director.db")) as database:
        return database.execute(query, (f"{experiment}/{HOSTILE}",)).fetchall()


def honest_loss(model: dict[str, Any], honest: Any) -> float:
    """Mean loss on what the honest sites keep for validation."""
    losses = []
    for data in honest.data.values():
        samples, targets = data.validation
        losses.append(np.mean(np.square(samples @ model["weights"] + model["bias"] - targets)))
    return float(np.mean(losses))


def test_one_site_ruins_the_mean_and_with_the_median_is_found_out_released_and_found_out_again(
    trial: Any, reckon: Any
) -> None:
    mean = trial.submit(name="mean", plan=PLAN, **SETTINGS)
    run = trial.submit(name="median", plan={**PLAN, **ROBUST}, holds={"north": [4]}, **SETTINGS)
    user, operator = trial.folder / "user", trial.local.operator()

    found = run.until(lambda event: event.site == HOSTILE and "quarantine" in event.text)
    assert found.text.startswith(f"{HOSTILE} is in quarantine since round 2: {REASON}")
    run.gate.listen("train north 4")
    shown = command("show", run.id, profile=user).stdout
    assert "in quarantine since round 2" in shown and f"`federation release {run.id} {HOSTILE}`" in shown
    refused = command("release", run.id, HOSTILE, profile=user)
    assert refused.returncode != 0 and "ReleaseSite is for operator" in refused.stderr
    told = command("release", run.id, HOSTILE, "--reason", "labels mended", profile=operator)
    assert told.stdout == f"{HOSTILE} is released; it was in quarantine since round 2\n", told.stderr
    run.until(lambda event: event.kind == "audit" and event.site == HOSTILE)  # the aggregator has obeyed
    run.gate.open("north")

    details = run.complete()
    asked = [HOSTILE in {entry.site for entry in one.contributions} for one in details.rounds]
    assert asked == [True, True, False, False, True, True, False], run.story
    held = [[(row.site, row.since_round, row.releases) for row in one.quarantined] for one in details.rounds]
    assert held == [[], *[[(HOSTILE, 2, 0)]] * 2, [], [], *[[(HOSTILE, 6, 1)]] * 2]
    by_aggregator, by_operator = f"spiffe://local/aggregator/{run.id}", "spiffe://local/operator/operator"
    assert [row[:3] for row in audit_of(trial, run.id)] == [
        (by_aggregator, "QuarantineSite", 1),
        (by_operator, "ReleaseSite", 1),
        (by_aggregator, "QuarantineSite", 1),
    ]

    losses = [entry.train_metrics["loss"] for entry in details.rounds[0].contributions]
    assert details.rounds[0].train_metrics == {"loss": np.median(losses)}, "no site makes the curve of training"

    everyone = {entry.site for one in mean.complete().rounds for entry in one.contributions}
    assert everyone == {*HONEST, HOSTILE} and audit_of(trial, mean.id) == []
    honest = reckon(run.source, HONEST, shard="Classes")
    alone = honest_loss(honest.run(), honest)
    assert honest_loss(run.model(), honest) < 1.1 * alone, "as good as without it"
    assert honest_loss(mean.model(), honest) > 2.0 * alone

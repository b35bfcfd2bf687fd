"""Asynchronous methods with real children: a site that is slow is not waited for, and what it did counts all the same.

``north`` is quick until it comes to a gate of its own; ``south`` is inside its first task meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def trial(start: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    director = {"times": {"restart_s": 0.1}}
    with start(tmp_path_factory.mktemp("asynchronous"), director=director) as running:
        yield running


def outcomes(details: Any) -> list[dict[str, tuple[str, int]]]:
    """What became of each site's update, and how old it was, round by round."""
    return [{row.site: (row.outcome, row.staleness) for row in entry.contributions} for entry in details.rounds]


@pytest.mark.parametrize(
    ("algorithm", "options", "is_killed"),
    [("fedasync", {"alpha": 0.5}, True), ("stale", {"k": 1}, False)],
    ids=["fedasync, killed", "stale"],
)
def test_a_slow_site_counts_with_its_age(trial: Any, kill: Any, algorithm: str, options: Any, is_killed: bool) -> None:
    plan = {"rounds": 4, "seed": 7, "algorithm": algorithm, "options": options}
    run = trial.submit(plan=plan, holds={"south": [1], "north": [3]})
    run.until_round(2)
    run.gate.listen("train north 3")
    if is_killed:
        kill(*run.processes("aggregator"))
    run.gate.open("south")
    run.until_round(3)
    run.gate.open("north")
    details = run.complete()
    assert outcomes(details)[:3] == [{"north": ("counted", 0)}, {"north": ("counted", 0)}, {"south": ("counted", 2)}]
    assert [run.gate.count(f"train {site} 1") for site in ("north", "south")] == [1, 1], "nothing is trained twice"
    assert run.gate.count("train north 3") == 1
    assert all(entry.metrics for entry in details.rounds), "each version was evaluated by who made it"


def test_an_aggregator_killed_with_an_update_in_the_buffer(trial: Any, kill: Any) -> None:
    settings = {"plan": {"rounds": 2, "seed": 7, "algorithm": "fedbuff", "options": {"k": 2}}, "holds": {"south": [1]}}
    undisturbed = trial.submit(**settings)
    undisturbed.gate.open("south")
    expected = [entry.model_digest for entry in undisturbed.complete().rounds]
    run = trial.submit(**settings)
    run.gate.listen("train south 1")
    run.until_admitted(1, 1)
    kill(*run.processes("aggregator"))
    run.gate.open("south")
    details = run.complete()
    assert [entry.model_digest for entry in details.rounds] == expected
    assert outcomes(details) == [{"north": ("counted", 0), "south": ("counted", 0)}] * 2
    assert [run.gate.count(f"train {site} 1") for site in ("north", "south")] == [1, 1]
    assert [entry.epoch for entry in details.rounds] == [2, 2]

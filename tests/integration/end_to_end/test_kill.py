"""`kill -9` of every process in the middle of a round: the experiment completes as if nothing had been.

Each case kills while ``south`` is inside its task of round 2 and ``north``'s update of that round is in, and then lets
``south`` go on. All rounds are committed, each exactly once, the model is that of an undisturbed run bit for bit, and
what had been admitted is not trained again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

SETTINGS: dict[str, Any] = {
    # What sites keep for themselves must survive too: a local head, and the optimizer's momentum.
    "plan": {"rounds": 3, "seed": 7, "local": ["bias"], "optimizer_state": "keep"},
    "holds": {"south": [2]},
}


@pytest.fixture(scope="module")
def trial(start: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    kept = {name: {"keep_workspaces": True} for name in ("north", "south")}
    director = {"times": {"restart_s": 0.1}}
    with start(tmp_path_factory.mktemp("kill"), settings=kept, director=director) as running:
        yield running


@pytest.fixture(scope="module")
def undisturbed(trial: Any) -> Any:
    """A run that nothing happened to: digests of its rounds' models, and its last model."""
    run = trial.submit(**SETTINGS)
    run.gate.open("south")
    details = run.complete()
    return [one.model_digest for one in details.rounds], run.model()


@pytest.fixture
def run(trial: Any, undisturbed: Any) -> Any:
    """A run in the middle of round 2."""
    run = trial.submit(**SETTINGS)
    run.gate.listen("train south 2")
    run.until_admitted(2, 1)
    return run


def assert_nothing_happened(run: Any, undisturbed: Any) -> None:
    details = run.complete()
    digests, model = undisturbed
    assert [one.model_digest for one in details.rounds] == digests, run.story
    for one in details.rounds:
        assert {entry.site: entry.outcome for entry in one.contributions} == {"north": "counted", "south": "counted"}
    assert details.summary.degraded is False
    for name, value in run.model().items():
        np.testing.assert_array_equal(value, model[name])


def test_an_aggregator_killed_in_a_round(run: Any, undisturbed: Any, kill: Any) -> None:
    kill(*run.processes("aggregator"))
    run.gate.open("south")
    assert_nothing_happened(run, undisturbed)
    assert (run.gate.count("train north 2"), run.gate.count("train south 2")) == (1, 1)
    assert [one.epoch for one in run.details.rounds] == [1, 2, 2]


def test_a_collaborator_killed_in_a_round(run: Any, undisturbed: Any, kill: Any, eyes: Any) -> None:
    trainer = eyes([run.processes("trainer")[1]])
    kill(run.processes("collaborator")[1])
    trainer.wait()
    run.gate.open("south")
    assert_nothing_happened(run, undisturbed)
    assert (run.gate.count("train north 2"), run.gate.count("train south 2")) == (1, 2)


def test_a_collaborator_killed_after_its_update_was_admitted_is_not_asked_again(
    run: Any, undisturbed: Any, kill: Any
) -> None:
    kill(run.processes("collaborator")[0])
    run.until(lambda event: event.kind == "site" and event.site == "north" and event.text == "ready")
    run.gate.open("south")
    assert_nothing_happened(run, undisturbed)
    assert run.gate.count("train north 2") == 1


def test_a_trainer_killed_in_a_round(run: Any, undisturbed: Any, kill: Any) -> None:
    kill(run.processes("trainer")[1])
    run.gate.open("south")
    assert_nothing_happened(run, undisturbed)
    assert (run.gate.count("train north 2"), run.gate.count("train south 2")) == (1, 2)


def test_a_trainer_killed_again_and_again_in_a_round(run: Any, undisturbed: Any, kill: Any) -> None:
    for starts in range(1, 5):
        run.gate.listen("train south 2", starts)
        kill(run.processes("trainer")[1])
    run.gate.open("south")
    assert_nothing_happened(run, undisturbed)
    assert (run.gate.count("train north 2"), run.gate.count("train south 2")) == (1, 5)


def test_an_envoy_killed_in_a_round_and_started_again(run: Any, trial: Any, undisturbed: Any, kill: Any) -> None:
    collaborators = run.processes("collaborator")
    kill(trial.daemon("envoy-south"))
    trial.local.start_envoy("south")
    assert run.processes("collaborator") == collaborators  # it was adopted
    run.gate.open("south")
    assert_nothing_happened(run, undisturbed)
    assert (run.gate.count("train north 2"), run.gate.count("train south 2")) == (1, 1)


def test_a_director_killed_in_a_round_and_started_again(run: Any, trial: Any, undisturbed: Any, kill: Any) -> None:
    aggregators = run.processes("aggregator")
    kill(trial.daemon("director"))
    trial.local.start_director()
    assert run.processes("aggregator") == aggregators  # it was adopted
    run.gate.open("south")
    assert_nothing_happened(run, undisturbed)
    assert (run.gate.count("train north 2"), run.gate.count("train south 2")) == (1, 1)
    assert {one.epoch for one in run.details.rounds} == {1}


def test_a_director_killed_in_a_burst_of_short_rounds_has_every_one_of_them(trial: Any, kill: Any) -> None:
    # Reports in quick succession wait for one another before they are stored: those that did are reported again.
    run = trial.submit(plan={"rounds": 60, "seed": 7}, holds={"south": [60]})
    run.until_round(30)
    kill(trial.daemon("director"))
    trial.local.start_director()
    run.gate.open("south")
    assert [one.round for one in run.complete().rounds] == list(range(1, 61))
    assert [event.round.round for event in run.events if event.round is not None] == list(range(1, 61))


def test_director_and_aggregator_killed_together(run: Any, trial: Any, undisturbed: Any, kill: Any) -> None:
    kill(trial.daemon("director"), *run.processes("aggregator"))
    trial.local.start_director()
    run.gate.open("south")
    assert_nothing_happened(run, undisturbed)
    assert (run.gate.count("train north 2"), run.gate.count("train south 2")) == (1, 1)


def test_a_whole_site_killed_and_started_again(run: Any, trial: Any, undisturbed: Any, kill: Any) -> None:
    kill(trial.daemon("envoy-north"), run.processes("collaborator")[0])
    trial.local.start_envoy("north")
    run.gate.open("south")
    assert_nothing_happened(run, undisturbed)
    assert (run.gate.count("train north 2"), run.gate.count("train south 2")) == (1, 1)


def test_without_director_and_envoys_everything_ends_by_itself(
    start: Any, kill: Any, eyes: Any, processes_of: Any, tmp_path: Any
) -> None:
    alone = {"limits": {"orphan_s": 2.0}}
    settings = {"north": alone, "south": alone}
    with start(tmp_path, settings=settings, director={"aggregators": {"orphan_s": 2.0}}) as trial:
        run = trial.submit(**SETTINGS)
        run.gate.listen("train south 2")
        aggregator = eyes(run.processes("aggregator"))
        kill(trial.daemon("director"))
        aggregator.wait()
        rest = eyes(run.processes("collaborator") + run.processes("trainer"))
        kill(trial.daemon("envoy-north"), trial.daemon("envoy-south"))
        rest.wait()
        assert processes_of(trial.folder) == []

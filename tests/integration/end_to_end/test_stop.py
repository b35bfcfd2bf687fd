"""SIGTERM drains, a second one stops at once, nothing is left running, and the next start goes on."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from federation.client.local import LocalFederation
from federation.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator

BOTH = ("north", "south")
DAEMONS = ("director", "envoy-north", "envoy-south")
FOREVER = {"limits": {"drain_s": 600.0}, "keep_workspaces": True}


@pytest.fixture
def trial(start: Any, tmp_path: Any) -> Iterator[Any]:
    """A federation whose envoys would wait for a task in progress as long as it takes."""
    with start(tmp_path, settings={name: FOREVER for name in BOTH}) as running:
        yield running


def terminate(trial: Any, *daemons: str) -> None:
    for name in daemons:
        os.kill(trial.daemon(name), signal.SIGTERM)


def test_sigterm_drains_and_the_next_start_goes_on(trial: Any, reckon: Any, eyes: Any, processes_of: Any) -> None:
    run = trial.submit(plan={"rounds": 3}, holds={"south": [2]})
    run.gate.listen("train south 2")
    run.until_admitted(2, 1)
    idle = eyes(run.processes("collaborator")[:1])
    watching = trial.client.watch(run.id)
    next(watching)  # somebody who watches holds nobody up
    everybody = eyes(processes_of(trial.folder))
    terminate(trial, *DAEMONS)
    idle.wait()  # so the signal was heard, while the task in progress may end
    run.gate.open("south")
    everybody.wait()
    assert [trial.local.daemons[name].process.wait() for name in DAEMONS] == [0, 0, 0]
    assert processes_of(trial.folder) == []

    trial.local.start_director()
    for site in BOTH:
        trial.local.start_envoy(site)
    details = run.complete()
    assert details.summary.rounds_done == 3
    assert list(watching)[-1].transition.state == "completed"  # and sees it through
    assert (run.gate.count("train north 2"), run.gate.count("train south 2")) == (1, 1)
    for name, value in reckon(run.source, BOTH).run().items():
        np.testing.assert_allclose(run.model()[name], value, rtol=1e-5)


def test_a_second_sigterm_stops_at_once(trial: Any, eyes: Any, processes_of: Any) -> None:
    """South is in a task that does not end, and idle in another experiment, by whose end the first signal is known."""
    stuck, other = trial.submit(holds={"south": [1]}), trial.submit(holds={"north": [1]})
    stuck.gate.listen("train south 1")
    other.gate.listen("train north 1")
    other.until_admitted(1, 1)
    at_site = [eyes(other.processes("collaborator")[1:]), eyes(stuck.processes("collaborator")[:1])]
    everybody = eyes(processes_of(trial.folder))
    terminate(trial, "envoy-north", "envoy-south")
    for idle in at_site:
        idle.wait()
    assert stuck.processes("trainer") and other.processes("trainer")
    terminate(trial, *DAEMONS)
    terminate(trial, "director")
    everybody.wait()
    assert processes_of(trial.folder) == []


def test_a_director_that_did_not_come_up_is_started_again_where_it_was(tmp_path: Any, monkeypatch: Any) -> None:
    with LocalFederation(tmp_path, sites=()) as local:
        address = local.address
        local.stop("director")
        monkeypatch.setenv("DIRECTOR_LOG_LEVEL", "shout")
        with pytest.raises(ConfigurationError, match="ended before it was ready"):
            local.start_director()
        monkeypatch.delenv("DIRECTOR_LOG_LEVEL")
        local.start_director()
        assert local.address == address

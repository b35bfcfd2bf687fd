"""A federation of processes whose plan draws some of the sites each round: killed, it draws as if it had not been.

Who is drawn depends on who is there, so after a restart of the aggregator every site that was there must be waited for,
asked in the last round or not.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from federation.names import SiteName
from federation.rounds.sampling import draw_sites

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMES = ("east", "north", "south", "west")
PLAN = {"rounds": 4, "sites": 4, "sample": 2, "seed": 2}


def draw(number: int, *, without: str = "") -> tuple[str, ...]:
    """Who is drawn in a round from all sites, or from all but one."""
    there = [SiteName(name) for name in NAMES if name != without]
    return draw_sites(there, sample=PLAN["sample"], seed=PLAN["seed"], round_number=number, attempt=1)


HELD = draw(2)[0]
"""A site that stays in its task of round 2 until the test lets it go on."""
LATE = next(name for name in NAMES if name not in draw(1) + draw(2))
"""A site that is asked in neither of the first two rounds."""
SETTINGS: dict[str, Any] = {"plan": PLAN, "holds": {HELD: [2]}}


@pytest.fixture(scope="module")
def trial(start: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    director = {"times": {"restart_s": 0.1}}
    with start(tmp_path_factory.mktemp("draws"), sites=dict.fromkeys(NAMES, ()), director=director) as running:
        yield running


def history(details: Any) -> list[tuple[list[str], str]]:
    """Who counted in each round, and the digest of its model."""
    return [(sorted(row.site for row in one.contributions), one.model_digest) for one in details.rounds]


@pytest.fixture(scope="module")
def undisturbed(trial: Any) -> list[tuple[list[str], str]]:
    run = trial.submit(**SETTINGS)
    run.gate.open(HELD)
    told = history(run.complete())
    assert [sites for sites, _ in told] == [list(draw(number)) for number in range(1, PLAN["rounds"] + 1)]
    return told


def until_ready(run: Any, *sites: str) -> None:
    """Wait until the aggregator has heard from each of them again."""
    missing = set(sites)

    def take(event: Any) -> bool:
        if event.kind == "site" and event.text == "ready":
            missing.discard(event.site)
        return not missing

    run.until(take)


def test_an_aggregator_killed_while_a_site_that_was_not_asked_is_slow_to_come_back(
    trial: Any, undisturbed: Any, kill: Any
) -> None:
    assert draw(2, without=LATE) != draw(2), "it would be missed"
    run = trial.submit(**SETTINGS)
    run.until_round(1)
    run.gate.listen(f"train {HELD} 2")
    stopped = run.processes("collaborator")[NAMES.index(LATE)]
    os.kill(stopped, signal.SIGSTOP)
    try:
        kill(*run.processes("aggregator"))
        until_ready(run, *(name for name in NAMES if name != LATE))
    finally:
        os.kill(stopped, signal.SIGCONT)
    run.gate.open(HELD)
    assert history(run.complete()) == undisturbed, run.story


def test_aggregator_and_director_killed_in_the_second_round(trial: Any, undisturbed: Any, kill: Any) -> None:
    run = trial.submit(**SETTINGS)
    run.gate.listen(f"train {HELD} 2")
    kill(trial.daemon("director"), *run.processes("aggregator"))
    trial.local.start_director()
    run.gate.open(HELD)
    assert history(run.complete()) == undisturbed, run.story

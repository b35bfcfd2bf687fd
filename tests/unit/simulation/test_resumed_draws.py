"""A simulation in rounds that was stopped or killed draws, when it goes on, the sites that it would have drawn."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest

from federation.simulation import Rule, Script, running, simulate

from .stops import stopping

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from federation import Experiment
    from federation.rounds.history import RoundRecord
    from federation.simulation import RunResult

    Make = Callable[..., Experiment]

UNSTEADY = Script(
    rules=(Rule(do="drop", probability=0.2), Rule(do="fail", sites=("site-001",), rounds=(3, 9))),
    join_round={"site-006": 4},
)
SAMPLERS: dict[str, dict[str, Any]] = {
    "uniform": {"sites": 7, "sample": 3},
    "weighted": {"sites": 7, "sample": 3, "sampler": "weighted"},
    "fraction": {"sites": 7, "sampler": "fraction:0.4"},
    "poisson": {"sites": 7, "sampler": "poisson:0.5"},
}
ROUNDS = 14


class KilledError(Exception):
    """What ends a run as a kill would: without a word to it."""


def killing(number: int) -> Callable[[RoundRecord], None]:
    def kill(record: RoundRecord) -> None:
        if record.round == number:
            raise KilledError

    return kill


def drawn(result: RunResult) -> list[tuple[list[tuple[str, str]], str]]:
    """Return of each round whom it asked, what became of them, and the model."""
    return [([(row.site, row.outcome.value) for row in one.sites], one.model_digest) for one in result.records]


@pytest.mark.parametrize("is_steady", [True, False], ids=["all there", "some away"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_run_that_goes_on_draws_as_one_that_was_never_stopped(
    make: Make, tmp_path: Path, sampler: str, is_steady: bool
) -> None:
    plan = {"rounds": ROUNDS, "quorum": 1, "max_failures": 20, "evaluate_every": 0, **SAMPLERS[sampler]}
    arguments: dict[str, Any] = {"sites": 8, "seed": 5, "script": Script() if is_steady else UNSTEADY}
    whole = simulate(make(**plan), **arguments)
    for number in (1, 3, 4, 8):
        with pytest.raises(KeyboardInterrupt, match=f"stopped after round {number}"):
            simulate(make(**plan), **arguments, folder=tmp_path, on_round=stopping(number))
    rest = simulate(make(**plan), **arguments, folder=tmp_path)
    assert drawn(rest) == drawn(whole)
    assert len({tuple(row.site for row in one.sites) for one in whole.records}) > 1, "it draws others each round"


def test_a_run_that_was_killed_draws_again_what_it_drew_after_its_checkpoint(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "CHECKPOINT_S", math.inf)  # however long ten rounds take here
    plan = {"rounds": ROUNDS, "quorum": 1, "max_failures": 20, "sites": 7, "sample": 3}
    arguments: dict[str, Any] = {"sites": 8, "script": UNSTEADY}
    with pytest.raises(KilledError):
        simulate(make(**plan), **arguments, folder=tmp_path, on_round=killing(13))
    seen: list[int] = []
    rest = simulate(make(**plan), **arguments, folder=tmp_path, on_round=lambda record: seen.append(record.round))
    assert seen == [11, 12, 13, 14], "from the last checkpoint on"
    assert drawn(rest) == drawn(simulate(make(**plan), **arguments))

"""An asynchronous run that was stopped goes on as if it had not been: same answers, same times, same buffer."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from federation.errors import StorageError
from federation.names import Attempt, PayloadName, RoundNumber, SiteName
from federation.rounds import events
from federation.simulation import Rule, Script, TimeModel, running, simulate
from federation.simulation.under_way import Flight, UnderWay
from federation.training.results import Trained

from .stops import stopping

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from federation import Experiment
    from federation.rounds.history import RoundRecord
    from federation.simulation import RunResult

    Make = Callable[..., Experiment]

TIMES = TimeModel(speed="lognormal:1.0")
UNSTEADY = Script(
    rules=(
        Rule(do="drop", probability=0.15),
        Rule(do="fail", sites=("site-001",), rounds=(3, 5)),
        Rule(do="delay", sites=("site-00[24]",), seconds=0.4),
    ),
    join_round={"site-005": 4},
)
CASES: dict[str, dict[str, Any]] = {
    "fedbuff": {"algorithm": "fedbuff", "options": {"k": 2}, "max_norm_ratio": 1.2},
    "fedasync": {"algorithm": "fedasync", "options": {"alpha": 0.5}, "sites": 6, "sample": 3},
    "places": {"algorithm": "fedasync", "options": {"alpha": 0.5}, "sites": 6, "sample": 2, "deadline_s": 0.3},
    "stale": {"algorithm": "stale", "options": {"k": 3, "max_staleness": 1}, "deadline_s": 1.0, "evaluate_every": 3},
    "state": {
        "algorithm": "fedbuff", "options": {"k": 3}, "compression": "top_k:0.5", "error_feedback": True,
        "optimizer_state": "keep", "local": ("own",),
    },
}  # fmt: skip


def told(result: RunResult) -> list[RoundRecord]:
    """Return the history without what the machine's own clock says."""
    return [
        replace(
            record, started_at=0.0, seconds=0.0, phase_seconds={},
            sites=tuple(replace(row, train_seconds=0.0, peak_memory=0) for row in record.sites),
        )
        for record in result.records
    ]  # fmt: skip


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("case", CASES)
def test_stopped_at_any_round_it_arrives_at_the_same_bytes(make: Make, tmp_path: Path, case: str, seed: int) -> None:
    plan = {"rounds": 12, "quorum": 1, "max_failures": 20, **CASES[case]}
    arguments: dict[str, Any] = {"sites": 6, "seed": seed, "times": TIMES, "script": UNSTEADY}
    whole = simulate(make(**plan), **arguments)
    assert whole.outcome == "completed", whole.reason
    stops = [1 + seed, 2 + seed, 7 + seed]
    for number in stops:
        with pytest.raises(KeyboardInterrupt, match=f"stopped after round {number}"):
            simulate(make(**plan), **arguments, folder=tmp_path, on_round=stopping(number))
    rest = simulate(make(**plan), **arguments, folder=tmp_path)
    assert rest.outcome == "completed"
    assert told(rest) == told(whole)
    for name, value in whole.arrays.items():
        assert value.tobytes() == rest.arrays[name].tobytes(), name
    assert rest.best_round == whole.best_round
    assert any(row.staleness for record in whole.records for row in record.sites), "nothing was under way"


def test_a_run_that_was_killed_goes_on_from_what_was_under_way_at_its_checkpoint(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "CHECKPOINT_S", math.inf)  # however long ten rounds take here

    class KilledError(Exception):
        pass

    def kill(record: RoundRecord) -> None:
        if record.round == 13:
            raise KilledError

    plan = {"rounds": 15, **CASES["fedasync"]}
    arguments: dict[str, Any] = {"sites": 5, "times": TIMES}
    with pytest.raises(KilledError):
        simulate(make(**plan), **arguments, folder=tmp_path, on_round=kill)
    seen: list[int] = []
    rest = simulate(make(**plan), **arguments, folder=tmp_path, on_round=lambda record: seen.append(record.round))
    assert seen == [11, 12, 13, 14, 15]
    assert told(rest) == told(simulate(make(**plan), **arguments))


def test_workers_make_no_difference_to_a_run_that_goes_on(make: Make, tmp_path: Path) -> None:
    plan = {"rounds": 8, **CASES["state"]}
    arguments: dict[str, Any] = {"sites": 5, "times": TIMES}
    with pytest.raises(KeyboardInterrupt):
        simulate(make(**plan), **arguments, folder=tmp_path, on_round=stopping(3), workers=2)
    rest = simulate(make(**plan), **arguments, folder=tmp_path)
    assert told(rest) == told(simulate(make(**plan), **arguments))


def test_what_is_under_way_is_read_back_as_it_was_written() -> None:
    trained = Trained(
        examples=3, steps=2, metrics={"loss": 0.1}, seconds=0.5, payload_bytes={PayloadName("delta"): 4}, oracle_calls=6
    )
    task: dict[str, Any] = {"round": RoundNumber(2), "attempt": Attempt(1)}
    a, b, c, d = (SiteName(name) for name in "abcd")
    update: dict[str, Any] = {
        "trained": trained, "norm": 0.1 + 0.2, "has_pending": True, "payloads": {PayloadName("delta"): b"abcd"},
    }  # fmt: skip
    before = UnderWay(
        flights=(
            Flight(site=a, at=1 / 3, event=events.UpdateAdmitted(a, RoundNumber(2)), **task, **update),
            Flight(site=b, at=0.5, event=events.SiteLost(b, "lost by the script"), back=4, overdue_at=1 / 7, **task),
            Flight(site=c, at=0.5, event=events.SiteFailed(c, "ValueError"), **task),
            Flight(site=d, at=None, event=None, **task, **update),
        ),
        versions={RoundNumber(2): b"model"},
    )
    document, blocks = before.pack()
    assert UnderWay.unpack(document, b"".join(blocks)) == before
    assert (before.training, before.waiting, before.pending) == ((a, b, c), (d,), (a, d))
    for data in (b"".join(blocks)[:-1], b"".join(blocks) + b"x"):
        with pytest.raises(ValueError, match="bytes"):
            UnderWay.unpack(document, data)


def test_a_damaged_checkpoint_is_refused(make: Make, tmp_path: Path) -> None:
    plan = {"rounds": 8, **CASES["fedasync"]}
    with pytest.raises(KeyboardInterrupt):
        simulate(make(**plan), sites=5, times=TIMES, folder=tmp_path, on_round=stopping(3))
    (tmp_path / "checkpoint" / "under-way-3").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot be resumed"):
        simulate(make(**plan), sites=5, times=TIMES, folder=tmp_path)
    assert np.isfinite(simulate(make(**plan), sites=5, times=TIMES, folder=tmp_path, resume=False).arrays["w"]).all()

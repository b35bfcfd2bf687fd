"""The agenda when the database does not answer, and the folder an experiment leaves."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select, text

from director.overseer import Overseer
from director.running import Patience
from director.store import experiments, tables
from federation.errors import ConflictError, NotFoundError
from federation.names import ExperimentId, ExperimentState
from federation.runtime.tasks import Supervisor
from federation.telemetry.metrics import Metrics
from federation.testing.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from director.store.database import Database
    from director.store.records import Submission


class Nobody:
    """No site, no aggregator: stands for attendance and supervision of an empty federation, and for a launcher."""

    online: frozenset[str] = frozenset()

    def stop(self, experiment: str, outcome: str, reason: str) -> None: ...

    async def withdraw(self, experiment: str, reason: str) -> None: ...

    def adopt(self, folder: Path) -> None: ...


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def make(database: Database, clock: FakeClock, work: Path, tasks: Supervisor) -> Overseer:
    nobody: Any = Nobody()
    overseer = Overseer(
        actor="spiffe://test/director/director",
        database=database,
        launcher=nobody,
        work=work,
        clock=clock,
        metrics=Metrics(),
        slots=4,
        patience=Patience(max_restarts=1, end_s=1, drain_s=1, restart_s=1, restart_max_s=1),
        tasks=tasks,
    )
    overseer.attach(nobody, nobody)
    return overseer


async def rename(database: Database, before: str, after: str) -> None:
    await database.transact(lambda session: session.execute(text(f"alter table {before} rename to {after}")))


async def test_what_the_database_could_not_be_asked_is_asked_again(
    database: Database,
    clock: FakeClock,
    tmp_path: Path,
    announced: list[Any],
    make_submission: Callable[..., Submission],
) -> None:
    async with Supervisor("test") as tasks:
        overseer = make(database, clock, tmp_path / "work", tasks)
        await rename(database, "experiments", "gone")
        tasks.eternal("work", overseer.work())
        overseer.reconsider()
        while overseer.trouble is None:
            await database.relaxed(lambda _: None)  # the same thread: when it answers, the agenda has had its turn
        assert "database failed" in overseer.trouble
        await rename(database, "gone", "experiments")
        clock.advance(5.0)
        while overseer.trouble is not None:
            await database.relaxed(lambda _: None)


async def test_cancelling_twice_is_one_transition(
    database: Database, clock: FakeClock, tmp_path: Path, experiment: str
) -> None:
    async with Supervisor("test") as tasks:
        overseer = make(database, clock, tmp_path / "work", tasks)
        for _ in range(2):
            await overseer.finish(experiment, ExperimentState.CANCELLED, "enough", "spiffe://test/user/alice")
    history = await database.transact(experiments.transitions, experiment)
    assert [item.reason for item in history] == ["submitted", "enough"]


async def test_a_release_that_is_refused_is_in_the_audit_trail_with_who_asked_and_why_not(
    database: Database, clock: FakeClock, tmp_path: Path, experiment: str
) -> None:
    operator = "spiffe://test/operator/o"
    async with Supervisor("test") as tasks:
        overseer = make(database, clock, tmp_path / "work", tasks)
        with pytest.raises(NotFoundError):
            await overseer.release(experiment, "west", "a new scanner", operator)
        await overseer.finish(experiment, ExperimentState.CANCELLED, "enough", "spiffe://test/user/alice")
        with pytest.raises(ConflictError):
            await overseer.release(experiment, "north", "", operator)
    rows = await database.transact(lambda session: list(session.scalars(select(tables.Audit))))
    assert [(row.actor, row.subject, row.admitted, row.detail[:40]) for row in rows if row.action == "ReleaseSite"] == [
        (operator, f"{experiment}/west", False, "site 'west' takes no part in experiment "),
        (operator, f"{experiment}/north", False, f"experiment {experiment} is cancelled: nobody is"[:40]),
    ]


async def test_going_on_starts_no_aggregator_of_an_experiment_that_had_none(
    database: Database, clock: FakeClock, tmp_path: Path, experiment: str
) -> None:
    async with Supervisor("test") as tasks:
        overseer = make(database, clock, tmp_path / "work", tasks)
        await overseer.resume()
        assert not overseer.aggregators.is_running(ExperimentId(experiment))  # it was not running yet
        await overseer.drain(asyncio.Event())

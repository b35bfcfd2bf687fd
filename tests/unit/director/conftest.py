"""A migrated database per test, and ready-made submissions."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from director.scheduling import Need
from director.store import experiments
from director.store.database import Database
from director.store.records import Submission
from federation.names import ExperimentId, UserName

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

ALICE = "spiffe://test/user/alice"


@pytest.fixture
def announced() -> list[frozenset[str]]:
    """What the database announced, in order."""
    return []


@pytest.fixture
async def database(tmp_path: Path, announced: list[frozenset[str]]) -> AsyncIterator[Database]:
    opened = Database(f"sqlite:///{tmp_path}/director.db", announced.append)
    await opened.migrate()
    yield opened
    await opened.close()


@pytest.fixture
def make_submission() -> Callable[..., Submission]:
    def make(name: str = "digits-abcdefgh", **changes: object) -> Submission:
        experiment = ExperimentId(name)
        submission = Submission(
            experiment=experiment,
            name="digits",
            project="default",
            user=UserName("alice"),
            actor=ALICE,
            spec='{"plan": {"rounds": 3}, "name": "digits"}',
            need=Need(experiment=experiment, kind="tabular", sites=2, sample_shape=(30,)),
            minimum_sites=1,
            rounds=3,
            manifest=b"{}",
            signature=b"s",
            signing_key=b"k",
            manifest_digest="ab" * 32,
            signing_fingerprint="sha256:" + "cd" * 32,
            bundle_bytes=10,
            nonce=name,
            at=100.0,
        )
        return replace(submission, **changes)  # type: ignore[arg-type]

    return make


@pytest.fixture
async def experiment(database: Database, make_submission: Callable[..., Submission]) -> str:
    """An experiment in state SUBMITTED."""
    await database.transact(experiments.add, make_submission())
    await asyncio.sleep(0)
    return "digits-abcdefgh"

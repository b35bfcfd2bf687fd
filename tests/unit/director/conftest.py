"""A migrated database per test, a PostgreSQL server of our own, and ready-made submissions."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from director.scheduling import Need
from director.store import experiments
from director.store.database import Database
from director.store.records import Submission
from federation.names import ExperimentId, UserName

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

ALICE = "spiffe://test/user/alice"


def _server_program(name: str) -> str | None:
    """Return the path of one of the server's programs; Debian keeps them out of PATH, by version."""
    places = sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")), reverse=True)
    return shutil.which(name, path=os.pathsep.join([*places, os.environ.get("PATH", "")]))


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """Start a server in a folder of its own, on a unix socket there, and return a URL of its one database."""
    initdb, control = _server_program("initdb"), _server_program("pg_ctl")
    if initdb is None or control is None:
        reason = "PostgreSQL is NOT TESTED: there is no initdb or pg_ctl here; run tests/install_programs.sh"
        if os.environ.get("CI") == "true":
            pytest.fail(f"in CI nothing may be skipped: {reason}", pytrace=False)
        pytest.skip(reason)
    # Not below pytest's folders, which others may not enter: the server refuses to be root.
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    who = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
    if who is not None:
        os.chown(folder, who.pw_uid, who.pw_gid)
    identity = {} if who is None else {"user": who.pw_uid, "group": who.pw_gid, "extra_groups": []}

    def run(*command: str) -> None:
        # With a file for its output: a pipe would stay open for as long as the server runs.
        with (folder / "output").open("wb") as output:
            done = subprocess.run(command, cwd=folder, stdout=output, stderr=output, **identity)  # type: ignore[call-overload]
        assert done.returncode == 0, (folder / "output").read_text()

    data = str(folder / "data")
    try:
        run(initdb, "-D", data, "-A", "trust", "-U", "test", "--no-sync", "--locale=C", "--encoding=UTF8")
        options = f"-k {folder} -c listen_addresses= -c fsync=off -c shared_buffers=16MB"
        run(control, "-D", data, "-l", str(folder / "log"), "-o", options, "-w", "start")
        try:
            yield f"postgresql+psycopg://test@/postgres?host={folder}"
        finally:
            run(control, "-D", data, "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder)


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

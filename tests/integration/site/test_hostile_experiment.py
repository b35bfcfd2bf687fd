"""What experiment code cannot do at a site, tried by experiment code: the sandbox is real, so is the trainer in it.

Outside the sandbox only the checks of the collaborator stand, which `test_collaborator` shows.
"""

from __future__ import annotations

from typing import Any

import pytest

from federation.names import Role
from federation.v1 import aggregator_pb2

pytestmark = [pytest.mark.needs_bubblewrap, pytest.mark.timeout(180)]

READS_THE_KEY = "open({key!r}).read()"
LISTS_THE_HOST = """
import os
seen = [path for path in {paths!r} if os.path.exists(path)]
if seen: raise RuntimeError("seen " + str(seen))
raise FileNotFoundError("nothing is there")
"""
PRINTS_A_PATIENT = """
import sys
print("patient", *data.train[0][0], "has a tumour")
sys.stderr.write("and so has patient 2\\n")
raise KeyError("patient 17")
"""
PLANTS_A_LINK = """
import os
from pathlib import Path
for delta in Path({exchange!r}).glob("delta*"):
    delta.unlink()
    delta.symlink_to({key!r})
"""


async def _fail(trial: Any, site: Any, aggregator: Any, wait_for_end: Any) -> aggregator_pb2.TaskFailure:
    """Run one round of hostile training, and return what the aggregator heard of it."""
    child = await site.start(aggregator.address)
    session = await aggregator.next_session()
    await session.hear("ready")
    session.send(task=aggregator.task(trial.first_model))
    failed = await session.hear("failed")
    assert aggregator.updates.empty()
    session.send(finish=aggregator_pb2.Finish(outcome="failed", reason="", epoch=session.epoch))
    await wait_for_end(child)
    return failed


async def test_a_trainer_cannot_open_a_socket(
    make_trial: Any, make_site: Any, aggregator_of: Any, wait_for_end: Any
) -> None:
    # The aggregator itself listens there, so outside the sandbox this would succeed.
    trial = make_trial("import socket; socket.create_connection(('127.0.0.1', int(open('port').read())), 5)")
    aggregator, site = await aggregator_of(trial), make_site(trial, sandbox="required")
    (site.folder / "workspace").mkdir(parents=True)
    (site.folder / "workspace" / "port").write_text(str(aggregator.port))
    failed = await _fail(trial, site, aggregator, wait_for_end)
    assert failed.error_class in ("ConnectionRefusedError", "OSError")


async def test_a_trainer_cannot_read_the_sites_key(
    make_trial: Any, make_site: Any, aggregator_of: Any, wait_for_end: Any, pki: Any
) -> None:
    key = pki.issue(Role.ENVOY, "north").key
    trial = make_trial(READS_THE_KEY.format(key=str(key)))
    aggregator, site = await aggregator_of(trial), make_site(trial, sandbox="required")
    failed = await _fail(trial, site, aggregator, wait_for_end)
    assert failed.error_class == "FileNotFoundError"


async def test_a_trainer_sees_nothing_else_of_the_site(
    make_trial: Any, make_site: Any, aggregator_of: Any, wait_for_end: Any, tmp_path: Any
) -> None:
    folder = tmp_path / "site"
    hidden = [
        folder / "collaborator",
        folder / "collaborator.json",
        folder / "trainer.log",
        tmp_path / "ca",
        "/etc/passwd",
    ]
    trial = make_trial(LISTS_THE_HOST.format(paths=[str(path) for path in hidden]))
    aggregator, site = await aggregator_of(trial), make_site(trial, sandbox="required")
    failed = await _fail(trial, site, aggregator, wait_for_end)
    assert failed.error_class == "FileNotFoundError", site.log


async def test_what_a_trainer_prints_stays_at_the_site(
    make_trial: Any, make_site: Any, aggregator_of: Any, wait_for_end: Any
) -> None:
    trial = make_trial(PRINTS_A_PATIENT)
    aggregator, site = await aggregator_of(trial), make_site(trial, sandbox="required")
    failed = await _fail(trial, site, aggregator, wait_for_end)
    assert (failed.error_class, failed.detail) == ("KeyError", "")
    printed = (site.folder / "trainer.log").read_text()
    assert "patient 0.0 1.0 2.0 has a tumour" in printed
    assert "and so has patient 2" in printed


async def test_a_link_planted_for_the_collaborator_is_not_followed(
    make_trial: Any, make_site: Any, aggregator_of: Any, wait_for_end: Any, pki: Any, tmp_path: Any
) -> None:
    key = pki.issue(Role.ENVOY, "north").key
    plant = PLANTS_A_LINK.format(exchange=str(tmp_path / "site" / "exchange"), key=str(key))
    trial = make_trial(plant + "\nraise RuntimeError('planted')")
    aggregator, site = await aggregator_of(trial), make_site(trial, sandbox="required")
    child = await site.start(aggregator.address)
    session = await aggregator.next_session()
    await session.hear("ready")
    session.send(task=aggregator.task(trial.first_model))
    assert (await session.hear("failed")).error_class == "RuntimeError"
    # The next round finds the link in the place of its result.
    assert (site.folder / "exchange" / "delta.bin").is_symlink()
    session.send(task=aggregator.task(trial.first_model, round_number=2))
    await session.hear("failed")
    assert aggregator.updates.empty()
    assert "PRIVATE KEY" in key.read_text()
    session.send(finish=aggregator_pb2.Finish(outcome="failed", reason="", epoch=session.epoch))
    await wait_for_end(child)

"""A collaborator process with its real trainer, against an aggregator that says what the test tells it to."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from federation.collaborator import local_socket
from federation.errors import ConflictError, Refusal, UpdateRejectedError
from federation.names import ExperimentId, FederationName, aggregator_server_name
from federation.tensors.digest import payload_digest
from federation.v1 import aggregator_pb2
from federation.wire.chunks import CHUNK_BYTES, LEAST_CHUNK_BYTES

pytestmark = pytest.mark.timeout(180)


def _finish(session: Any) -> None:
    session.send(finish=aggregator_pb2.Finish(outcome="completed", reason="all rounds done", epoch=session.epoch))


async def test_a_site_trains_evaluates_and_finishes(
    make_trial: Any, make_site: Any, aggregator_of: Any, wait_for_end: Any
) -> None:
    trial = make_trial()
    aggregator, site = await aggregator_of(trial), make_site(trial)
    child = await site.start(aggregator.address)
    session = await aggregator.next_session()
    hello = aggregator.hellos[0]
    assert (hello.experiment, hello.last_epoch, hello.last_round) == ("trial-00000001", 0, 0)
    ready = await session.hear("ready")
    assert (ready.train_examples, ready.validation_examples) == (8, 2)

    session.send(task=aggregator.task(trial.first_model))
    update = await aggregator.next_update()
    assert update.array(trial.spec).tolist() == [1.0] * 8
    assert update.digests == [payload_digest(update.data[0])]
    assert update.header.examples == 8
    assert dict(update.header.metrics) == {"loss": 1.0}

    candidate = np.full(8, 5.0, np.float32).tobytes()
    session.send(task=aggregator.task(candidate, train=False, attempt=1))
    result = await session.hear("evaluated")
    assert dict(result.metrics) == {"loss": 5.0}
    assert result.model_digest == payload_digest(candidate)

    # The model that was evaluated is the next round's: it is not sent again. The verdict is obeyed before the task.
    following = aggregator.task(candidate, round_number=2, inline=False)
    following.verdict.CopyFrom(aggregator.verdict(update))
    session.send(task=following)
    update = await aggregator.next_update()
    assert update.array(trial.spec).tolist() == [2.0] * 8
    assert aggregator.pulls == []
    _finish(session)
    status = await wait_for_end(child)
    assert status.record.outcome == "finished", site.log
    assert status.code == 0


async def test_a_small_update_goes_through_the_session_and_again_through_the_next_one_if_it_is_asked_for(
    make_trial: Any, make_site: Any, aggregator_of: Any, wait_for_end: Any
) -> None:
    trial = make_trial("open('trainings', 'a').write('x')")
    aggregator, site = await aggregator_of(trial), make_site(trial)
    aggregator.takes_updates = True
    child = await site.start(aggregator.address)
    session = await aggregator.next_session()
    await session.hear("ready")
    session.send(task=aggregator.task(trial.first_model))
    first = await session.hear("update")
    assert np.frombuffer(first.payloads[0], np.float32).tolist() == [1.0] * 8
    assert list(first.commit.digests) == [payload_digest(first.payloads[0])]
    session.cut()

    session = await aggregator.next_session()
    assert aggregator.hellos[-1].pending.update_id == first.header.update_id
    await session.hear("ready")
    session.send(task=aggregator.task(trial.first_model))
    assert await session.hear("update") == first
    # An aggregator that has not come as far yet refuses what it did not ask for, and asks: it is sent once more.
    header = first.header
    session.send(refused=aggregator_pb2.UpdateResult(update_id=header.update_id, reason=Refusal.NOT_ASKED.value))
    session.send(task=aggregator.task(trial.first_model))
    assert await session.hear("update") == first
    assert (site.folder / "workspace" / "trainings").read_text() == "x"

    # One that was refused for good is given up, and says nothing about the next.
    session.send(refused=aggregator_pb2.UpdateResult(update_id=header.update_id, reason=Refusal.NORM.value))
    session.send(task=aggregator.task(trial.first_model, round_number=2))
    second = await session.hear("update")
    assert (second.header.round, second.header.update_id != header.update_id) == (2, True)
    _finish(session)
    assert (await wait_for_end(child)).record.outcome == "finished", site.log
    assert "was refused (norm)" in site.log


async def test_pieces_are_as_large_as_the_aggregator_would_like_within_reason(
    make_trial: Any, make_site: Any, aggregator_of: Any, wait_for_end: Any
) -> None:
    cases = [(0, CHUNK_BYTES), (300_000, 300_000), (1, LEAST_CHUNK_BYTES), (9 << 20, CHUNK_BYTES)]
    trial = make_trial(elements=CHUNK_BYTES // 3, rounds=len(cases))
    aggregator, site = await aggregator_of(trial), make_site(trial)
    child = await site.start(aggregator.address)
    session = await aggregator.next_session()
    await session.hear("ready")
    for number, (wanted, sent) in enumerate(cases, start=1):
        aggregator.piece_bytes, aggregator.largest_piece = wanted, 0
        session.send(task=aggregator.task(trial.first_model, round_number=number, inline=False))
        update = await aggregator.next_update()
        assert aggregator.largest_piece == sent, f"wanted: {wanted}"
        assert set(update.array(trial.spec).tolist()) == {float(number)}
        session.send(verdict=aggregator.verdict(update))
    _finish(session)
    await wait_for_end(child)


async def test_cut_downloads_and_uploads_go_on_where_they_stopped(
    make_trial: Any, make_site: Any, aggregator_of: Any, wait_for_end: Any
) -> None:
    trial = make_trial(elements=CHUNK_BYTES)
    aggregator, site = await aggregator_of(trial), make_site(trial)
    child = await site.start(aggregator.address)
    session = await aggregator.next_session()
    await session.hear("ready")
    aggregator.cut_pull_after = 2 * CHUNK_BYTES
    aggregator.cut_push_after = 3 * CHUNK_BYTES
    session.send(task=aggregator.task(trial.first_model, inline=False))
    update = await aggregator.next_update()
    # What was on the wire when the line was cut may have come or not; what had come is not asked for again.
    assert aggregator.pulls[0] == 0
    assert aggregator.pulls[1] > 0
    assert update.resumed_at[0] >= 3 * CHUNK_BYTES
    assert set(update.array(trial.spec).tolist()) == {1.0}
    assert update.digests == [b""], "a large update is digested by who receives it"
    _finish(session)
    await wait_for_end(child)


@pytest.mark.parametrize(
    ("elements", "told"),
    [
        pytest.param(8, False, id="digested as it is kept"),
        pytest.param(CHUNK_BYTES // 4, False, id="not digested"),
        pytest.param(CHUNK_BYTES // 4, True, id="digest told as it was admitted"),
    ],
)
async def test_a_killed_collaborator_sends_its_kept_update_again_without_training(
    make_trial: Any,
    make_site: Any,
    aggregator_of: Any,
    wait_for_end: Any,
    until_gone: Any,
    elements: int,
    *,
    told: bool,
) -> None:
    trial = make_trial("open('trainings', 'a').write('x')", elements=elements)
    aggregator, site = await aggregator_of(trial), make_site(trial)
    aggregator.tells_digests = told
    child = await site.start(aggregator.address)
    session = await aggregator.next_session()
    await session.hear("ready")
    session.send(task=aggregator.task(trial.first_model, inline=elements == 8))
    first = await aggregator.next_update()
    if told:
        session.send(task=aggregator.task(trial.first_model, train=False, inline=elements == 8))
        await session.hear("evaluated")  # one thing is done after the other, so what it was told is noted
    record = next(site.folder.rglob("retained/retained")).read_text()
    assert (payload_digest(first.data[0]).hex() in record) is (told or elements == 8)
    trainer = site.trainer_pid
    os.kill(child.identity.pid, signal.SIGKILL)
    await wait_for_end(child)
    await until_gone(trainer)

    aggregator.epoch = 2
    again = await site.start(aggregator.address)
    session = await aggregator.next_session()
    hello = aggregator.hellos[-1]
    assert (hello.last_epoch, hello.pending.round, hello.pending.update_id) == (1, 1, first.header.update_id)
    session.send(task=aggregator.task(trial.first_model, inline=elements == 8))
    await session.hear("ready")
    second = await aggregator.next_update()
    assert second.data == first.data
    assert second.header.update_id == first.header.update_id
    assert second.header.epoch == 2
    assert (site.folder / "workspace" / "trainings").read_text() == "x"
    _finish(session)
    assert (await wait_for_end(again)).record.outcome == "finished"


async def test_a_trainer_that_dies_is_replaced_and_the_round_done(
    make_trial: Any, make_site: Any, aggregator_of: Any, wait_for_end: Any
) -> None:
    trial = make_trial(
        """
        import os
        if not os.path.exists('died'):
            open('died', 'w').close()
            os._exit(3)
        """
    )
    aggregator, site = await aggregator_of(trial), make_site(trial)
    child = await site.start(aggregator.address)
    session = await aggregator.next_session()
    await session.hear("ready")
    session.send(task=aggregator.task(trial.first_model))
    assert (await aggregator.next_update()).array(trial.spec).tolist() == [1.0] * 8
    _finish(session)
    await wait_for_end(child)


async def test_a_trainer_that_always_dies_ends_the_sites_part(
    make_trial: Any, make_site: Any, aggregator_of: Any, wait_for_end: Any
) -> None:
    trial = make_trial("import os; os._exit(3)")
    aggregator, site = await aggregator_of(trial), make_site(trial, options={"max_trainer_deaths": 2})
    child = await site.start(aggregator.address)
    session = await aggregator.next_session()
    await session.hear("ready")
    session.send(task=aggregator.task(trial.first_model))
    failed = await session.hear("failed")
    assert (failed.error_class, failed.permanent, failed.detail) == ("TrainerDied", True, "")
    status = await wait_for_end(child)
    assert (status.record.outcome, status.record.error_class) == ("failed", "TrainerDied")


async def test_what_a_trainer_printed_before_it_died_is_not_released_with_its_traceback(
    make_trial: Any, make_site: Any, aggregator_of: Any, wait_for_end: Any
) -> None:
    trial = make_trial("import os; print('patient 17', flush=True); os._exit(3)")
    options = {"max_trainer_deaths": 1, "release_tracebacks": True}
    aggregator, site = await aggregator_of(trial), make_site(trial, options=options)
    child = await site.start(aggregator.address)
    session = await aggregator.next_session()
    await session.hear("ready")
    session.send(task=aggregator.task(trial.first_model))
    failed = await session.hear("failed")
    assert failed.error_class == "TrainerDied" and "exit code 3" in failed.detail
    assert "patient 17" not in str(failed)
    status = await wait_for_end(child)
    assert "patient 17" not in str(status.record)
    assert "patient 17" in site.log


@pytest.mark.parametrize("releases", [False, True])
async def test_a_failing_task_says_its_class_and_no_more_unless_the_policy_releases_it(
    make_trial: Any, make_site: Any, aggregator_of: Any, wait_for_end: Any, *, releases: bool
) -> None:
    trial = make_trial("raise KeyError('patient 17')")
    aggregator, site = await aggregator_of(trial), make_site(trial, options={"release_tracebacks": releases})
    child = await site.start(aggregator.address)
    session = await aggregator.next_session()
    await session.hear("ready")
    session.send(task=aggregator.task(trial.first_model))
    failed = await session.hear("failed")
    assert (failed.error_class, failed.round, failed.permanent) == ("KeyError", 1, False)
    assert ("patient 17" in failed.detail) is releases
    assert "patient 17" in site.log
    # The site goes on: it can still evaluate.
    session.send(task=aggregator.task(trial.first_model, train=False))
    assert dict((await session.hear("evaluated")).metrics) == {"loss": 0.0}
    _finish(session)
    await wait_for_end(child)


@pytest.mark.parametrize(
    ("train", "error", "elements"),
    [
        pytest.param("model['w'] *= np.nan", "NotFinite", 8, id="NaN"),
        pytest.param("model['w'][-1] = np.nan", "NotFinite", CHUNK_BYTES // 2, id="NaN in a later piece"),
        pytest.param("return {'patients': 17.0}", "MetricsError", 8, id="a metric the plan does not fix"),
    ],
)
async def test_what_may_not_leave_the_site_does_not(
    make_trial: Any, make_site: Any, aggregator_of: Any, wait_for_end: Any, train: str, error: str, elements: int
) -> None:
    trial = make_trial(train, elements=elements)
    aggregator, site = await aggregator_of(trial), make_site(trial)
    child = await site.start(aggregator.address)
    session = await aggregator.next_session()
    await session.hear("ready")
    session.send(task=aggregator.task(trial.first_model, inline=elements == 8))
    failed = await session.hear("failed")
    assert failed.error_class == error
    assert aggregator.updates.empty()
    if error == "NotFinite":  # Nothing of it is kept: the next asking trains anew. Other metrics end the site's part.
        session.send(task=aggregator.task(trial.first_model, attempt=2, inline=elements == 8))
        assert (await session.hear("failed")).error_class == error
    _finish(session)
    await wait_for_end(child)


async def test_an_aggregator_with_another_plan_is_left(
    make_trial: Any, make_site: Any, aggregator_of: Any, wait_for_end: Any
) -> None:
    trial = make_trial()
    aggregator, site = await aggregator_of(trial), make_site(trial)
    aggregator.plan_digest = b"x" * 32
    status = await wait_for_end(await site.start(aggregator.address))
    assert (status.record.outcome, status.record.error_class) == ("failed", "UnsignedPlanError")


async def test_a_round_beyond_the_signed_plan_is_not_trained(
    make_trial: Any, make_site: Any, aggregator_of: Any, wait_for_end: Any
) -> None:
    trial = make_trial()
    aggregator, site = await aggregator_of(trial), make_site(trial)
    child = await site.start(aggregator.address)
    session = await aggregator.next_session()
    await session.hear("ready")
    session.send(task=aggregator.task(trial.first_model, round_number=4))
    status = await wait_for_end(child)
    assert status.record.error_class == "UnsignedPlanError"
    assert aggregator.updates.empty()


async def test_a_first_model_that_was_not_signed_is_not_trained(
    make_trial: Any, make_site: Any, aggregator_of: Any, wait_for_end: Any
) -> None:
    trial = make_trial()
    aggregator, site = await aggregator_of(trial), make_site(trial)
    child = await site.start(aggregator.address)
    session = await aggregator.next_session()
    await session.hear("ready")
    session.send(task=aggregator.task(np.ones(8, np.float32).tobytes()))
    assert (await wait_for_end(child)).record.error_class == "UnsignedPlanError"


async def test_a_superseded_aggregator_is_not_obeyed_and_the_newer_one_is_found(
    make_trial: Any, make_site: Any, aggregator_of: Any, wait_for_end: Any
) -> None:
    trial = make_trial()
    aggregator, site = await aggregator_of(trial), make_site(trial)
    aggregator.epoch = 3
    child = await site.start(aggregator.address)
    session = await aggregator.next_session()
    await session.hear("ready")
    aggregator.epoch = 2
    session.cut()
    stale = await aggregator.next_session()
    assert await asyncio.wait_for(stale.heard.get(), 60) is None, "the site must not speak to a superseded aggregator"
    aggregator.epoch = 4
    session = await aggregator.next_session()
    while session.epoch != 4:
        session = await aggregator.next_session()
    await session.hear("ready")
    _finish(session)
    await wait_for_end(child)


async def test_a_superseded_collaborator_does_not_dial_again(
    make_trial: Any, make_site: Any, aggregator_of: Any, wait_for_end: Any
) -> None:
    trial = make_trial()
    aggregator, site = await aggregator_of(trial), make_site(trial)
    child = await site.start(aggregator.address)
    session = await aggregator.next_session()
    await session.hear("ready")
    session.call.end(ConflictError("superseded by a newer session of north: do not connect again"))
    assert (await wait_for_end(child)).record.outcome == "superseded"
    assert aggregator.sessions.empty()


async def test_a_refused_update_is_forgotten_and_the_next_round_done(
    make_trial: Any, make_site: Any, aggregator_of: Any, wait_for_end: Any
) -> None:
    trial = make_trial()
    aggregator, site = await aggregator_of(trial), make_site(trial)
    child = await site.start(aggregator.address)
    session = await aggregator.next_session()
    await session.hear("ready")
    aggregator.refusal = UpdateRejectedError(Refusal.NORM, "its norm is 9, at most 1 is allowed")
    session.send(task=aggregator.task(trial.first_model))
    await asyncio.wait_for(aggregator.has_refused.wait(), 30)  # else the next task may make this one void unbegun
    session.send(task=aggregator.task(trial.first_model, round_number=2))
    update = await aggregator.next_update()
    assert update.header.round == 2
    _finish(session)
    await wait_for_end(child)


async def test_a_site_that_is_done_before_its_aggregator_asks_anew_sends_its_update_as_it_is_asked(
    make_trial: Any, make_site: Any, aggregator_of: Any, wait_for_end: Any
) -> None:
    """Ten refusals: delays alone would add up to more than the test waits."""
    trial = make_trial("open('trainings', 'a').write('x')")
    aggregator, site = await aggregator_of(trial), make_site(trial)
    child = await site.start(aggregator.address)
    session = await aggregator.next_session()
    await session.hear("ready")
    for _ in range(10):
        aggregator.refusal = UpdateRejectedError(Refusal.NOT_ASKED, "wait for the next task")
        aggregator.has_refused.clear()
        session.send(task=aggregator.task(trial.first_model))
        await asyncio.wait_for(aggregator.has_refused.wait(), 30)
    session.send(task=aggregator.task(trial.first_model))
    update = await aggregator.next_update()
    assert update.header.round == 1
    assert (site.folder / "workspace" / "trainings").read_text() == "x"
    _finish(session)
    await wait_for_end(child)


async def test_an_evaluation_is_answered_in_the_session_in_which_it_was_asked_again(
    make_trial: Any, make_site: Any, aggregator_of: Any, wait_for_end: Any, tmp_path: Any
) -> None:
    """The aggregator is started again in the middle of it: it takes only answers of its own epoch."""
    os.mkfifo(tmp_path / "gate")
    trial = make_trial(evaluate=f"open({str(tmp_path / 'gate')!r}).read()")
    aggregator, site = await aggregator_of(trial), make_site(trial)
    child = await site.start(aggregator.address)
    session = await aggregator.next_session()
    await session.hear("ready")
    session.send(task=aggregator.task(trial.first_model, train=False))
    gate = await asyncio.to_thread(open, tmp_path / "gate", "w")
    aggregator.epoch = 2
    session.cut()
    session = await aggregator.next_session()
    await session.hear("ready")
    session.send(task=aggregator.task(trial.first_model, train=False))
    gate.close()
    assert (await session.hear("evaluated")).epoch == 2
    _finish(session)
    await wait_for_end(child)


async def test_sigterm_lets_the_task_in_progress_end_and_leaves_no_process(
    make_trial: Any, make_site: Any, aggregator_of: Any, wait_for_end: Any, until_gone: Any, tmp_path: Any
) -> None:
    os.mkfifo(tmp_path / "gate")
    trial = make_trial(f"open({str(tmp_path / 'gate')!r}).read()")
    aggregator, site = await aggregator_of(trial), make_site(trial)
    child = await site.start(aggregator.address)
    session = await aggregator.next_session()
    await session.hear("ready")
    session.send(task=aggregator.task(trial.first_model))
    # Opening a pipe for writing returns once the trainer has opened it for reading: it is in the middle of its round.
    gate = await asyncio.to_thread(open, tmp_path / "gate", "w")
    child.terminate()
    gate.close()
    assert (await aggregator.next_update()).header.round == 1
    status = await wait_for_end(child)
    assert (status.record.outcome, status.code) == ("stopped", 0)
    await until_gone(site.trainer_pid)


async def test_a_second_request_to_stop_stops_at_once(
    make_trial: Any, make_site: Any, aggregator_of: Any, wait_for_end: Any, until_gone: Any, tmp_path: Any
) -> None:
    os.mkfifo(tmp_path / "gate")
    trial = make_trial(f"open({str(tmp_path / 'gate')!r}).read()")
    aggregator, site = await aggregator_of(trial), make_site(trial)
    lines: asyncio.Queue[local_socket.LineStream] = asyncio.Queue()

    async def envoy(stream: local_socket.LineStream) -> None:
        lines.put_nowait(stream)
        while await stream.receive() is not None:
            pass

    site.folder.mkdir()
    server = await local_socket.serve(site.folder / "envoy.sock", envoy)
    child = await site.start(aggregator.address)
    session = await aggregator.next_session()
    await session.hear("ready")
    session.send(task=aggregator.task(trial.first_model))
    gate = await asyncio.to_thread(open, tmp_path / "gate", "w")
    line = await asyncio.wait_for(lines.get(), 10)
    await line.send({"type": "stop", "reason": "the envoy stops", "drain": True})
    await line.send({"type": "stop", "reason": "at once", "drain": True})
    status = await wait_for_end(child)
    assert (status.record.outcome, status.record.reason) == ("stopped", "the envoy stops")
    assert aggregator.updates.empty()
    await until_gone(site.trainer_pid)
    gate.close()
    await server.close()


async def test_a_site_that_dials_in_vain_goes_where_its_envoy_says(
    make_trial: Any, make_site: Any, aggregator_of: Any, wait_for_end: Any
) -> None:
    trial = make_trial()
    aggregator, site = await aggregator_of(trial), make_site(trial)
    is_dialled = asyncio.Event()

    async def envoy(stream: local_socket.LineStream) -> None:
        await is_dialled.wait()
        name = aggregator_server_name(FederationName("care"), ExperimentId("trial-00000001"))
        await stream.send({"type": "aggregator", "address": aggregator.address, "server_name": name})
        while await stream.receive() is not None:
            pass

    site.folder.mkdir()
    server = await local_socket.serve(site.folder / "envoy.sock", envoy)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and never says a word
        silent.setblocking(False)
        child = await site.start(f"127.0.0.1:{silent.getsockname()[1]}")
        with (await asyncio.wait_for(asyncio.get_running_loop().sock_accept(silent), 30))[0]:
            is_dialled.set()
            session = await aggregator.next_session()
    _finish(session)
    assert (await wait_for_end(child)).record.outcome == "finished"
    await server.close()


async def test_a_collaborator_without_its_envoy_ends_itself(
    make_trial: Any, make_site: Any, aggregator_of: Any, wait_for_end: Any, until_gone: Any
) -> None:
    trial = make_trial()
    aggregator, site = await aggregator_of(trial), make_site(trial, options={"orphan_s": 0.2})
    child = await site.start(aggregator.address)
    assert (await wait_for_end(child)).record.outcome == "orphaned"


def test_a_collaborator_and_an_envoy_know_no_torch() -> None:
    code = "import sys, federation.collaborator.process, envoy.command; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

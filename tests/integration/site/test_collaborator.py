"""A collaborator process with its real trainer, against an aggregator that says what the test tells it to."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import numpy as np
import pytest

from federation.errors import Refusal, UpdateRejectedError
from federation.tensors.digest import payload_digest
from federation.v1 import aggregator_pb2
from federation.wire.chunks import CHUNK_BYTES, LEAST_CHUNK_BYTES

from .envoy_hosts import finish

pytestmark = pytest.mark.timeout(180)


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
    finish(session)
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
    finish(session)
    assert (await wait_for_end(child)).record.outcome == "finished", site.log
    assert "was refused (norm)" in site.log


async def test_pieces_are_as_large_as_the_aggregator_would_like_within_reason(
    make_trial: Any, take_part: Any, wait_for_end: Any
) -> None:
    cases = [(0, CHUNK_BYTES), (300_000, 300_000), (1, LEAST_CHUNK_BYTES), (9 << 20, CHUNK_BYTES)]
    trial = make_trial(elements=CHUNK_BYTES // 3, rounds=len(cases))
    aggregator, _, child, session = await take_part(trial)
    for number, (wanted, sent) in enumerate(cases, start=1):
        aggregator.piece_bytes, aggregator.largest_piece = wanted, 0
        session.send(task=aggregator.task(trial.first_model, round_number=number, inline=False))
        update = await aggregator.next_update()
        assert aggregator.largest_piece == sent, f"wanted: {wanted}"
        assert set(update.array(trial.spec).tolist()) == {float(number)}
        session.send(verdict=aggregator.verdict(update))
    finish(session)
    await wait_for_end(child)


async def test_cut_downloads_and_uploads_go_on_where_they_stopped(
    make_trial: Any, take_part: Any, wait_for_end: Any
) -> None:
    trial = make_trial(elements=CHUNK_BYTES)
    aggregator, _, child, session = await take_part(trial)
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
    finish(session)
    await wait_for_end(child)


async def test_a_refused_update_is_forgotten_and_the_next_round_done(
    make_trial: Any, take_part: Any, wait_for_end: Any
) -> None:
    trial = make_trial()
    aggregator, _, child, session = await take_part(trial)
    aggregator.refusal = UpdateRejectedError(Refusal.NORM, "its norm is 9, at most 1 is allowed")
    session.send(task=aggregator.task(trial.first_model))
    await asyncio.wait_for(aggregator.has_refused.wait(), 30)  # else the next task may make this one void unbegun
    session.send(task=aggregator.task(trial.first_model, round_number=2))
    update = await aggregator.next_update()
    assert update.header.round == 2
    finish(session)
    await wait_for_end(child)


async def test_a_site_that_is_done_before_its_aggregator_asks_anew_sends_its_update_as_it_is_asked(
    make_trial: Any, take_part: Any, wait_for_end: Any
) -> None:
    """Ten refusals: delays alone would add up to more than the test waits."""
    trial = make_trial("open('trainings', 'a').write('x')")
    aggregator, site, child, session = await take_part(trial)
    for _ in range(10):
        aggregator.refusal = UpdateRejectedError(Refusal.NOT_ASKED, "wait for the next task")
        aggregator.has_refused.clear()
        session.send(task=aggregator.task(trial.first_model))
        await asyncio.wait_for(aggregator.has_refused.wait(), 30)
    session.send(task=aggregator.task(trial.first_model))
    update = await aggregator.next_update()
    assert update.header.round == 1
    assert (site.folder / "workspace" / "trainings").read_text() == "x"
    finish(session)
    await wait_for_end(child)


async def test_an_evaluation_is_answered_in_the_session_in_which_it_was_asked_again(
    make_trial: Any, take_part: Any, wait_for_end: Any, tmp_path: Any
) -> None:
    """The aggregator is started again in the middle of it: it takes only answers of its own epoch."""
    os.mkfifo(tmp_path / "gate")
    trial = make_trial(evaluate=f"open({str(tmp_path / 'gate')!r}).read()")
    aggregator, _, child, session = await take_part(trial)
    session.send(task=aggregator.task(trial.first_model, train=False))
    gate = await asyncio.to_thread(open, tmp_path / "gate", "w")
    aggregator.epoch = 2
    session.cut()
    session = await aggregator.next_session()
    await session.hear("ready")
    session.send(task=aggregator.task(trial.first_model, train=False))
    gate.close()
    assert (await session.hear("evaluated")).epoch == 2
    finish(session)
    await wait_for_end(child)

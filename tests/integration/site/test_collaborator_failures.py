"""What a collaborator does where its trainer, the experiment or an aggregator's order is not what it should be."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from federation.wire.chunks import CHUNK_BYTES

from .envoy_hosts import finish
from .processes import readable

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(180)


async def test_a_trainer_that_dies_is_replaced_and_the_round_done(
    make_trial: Any, take_part: Any, wait_for_end: Any
) -> None:
    trial = make_trial(
        """
        import os
        if not os.path.exists('died'):
            open('died', 'w').close()
            os._exit(3)
        """
    )
    aggregator, _, child, session = await take_part(trial)
    session.send(task=aggregator.task(trial.first_model))
    assert (await aggregator.next_update()).array(trial.spec).tolist() == [1.0] * 8
    finish(session)
    await wait_for_end(child)


async def test_a_trainer_that_always_dies_ends_the_sites_part(
    make_trial: Any, take_part: Any, wait_for_end: Any
) -> None:
    trial = make_trial("import os; os._exit(3)")
    aggregator, _, child, session = await take_part(trial, max_deaths=2)
    session.send(task=aggregator.task(trial.first_model))
    failed = await session.hear("failed")
    assert (failed.error_class, failed.permanent, failed.detail) == ("TrainerDied", True, "")
    status = await wait_for_end(child)
    assert (status.record.outcome, status.record.error_class) == ("failed", "TrainerDied")


async def test_after_a_death_a_task_that_nobody_waits_for_any_more_is_not_tried_again(
    make_trial: Any, take_part: Any, wait_for_end: Any
) -> None:
    trial = make_trial(
        """
        import os
        open('began', 'w').write('x')
        os.read(os.open('go', os.O_RDONLY), 1)
        os._exit(3)
        """
    )
    aggregator, site, child, session = await take_part(trial, max_deaths=5)
    began, go = (_pipe(site.folder / "workspace" / name) for name in ("began", "go"))
    try:
        session.send(task=aggregator.task(trial.first_model))
        await readable(began)
        session.send(task=aggregator.task(trial.first_model, train=False))  # the round is over without this site
        os.write(go, b"x" * 100)
        assert dict((await session.hear("evaluated")).metrics) == {"loss": 0.0}
    finally:
        os.close(began)
        os.close(go)
    finish(session)
    await wait_for_end(child)


async def test_a_stop_ends_the_pause_after_a_death(make_trial: Any, take_part: Any, wait_for_end: Any) -> None:
    trial = make_trial("open('began', 'w').write('x'); import os; os._exit(3)")
    # Without an end to the pause there would be none at all: not by deaths, and not by the drain's time.
    aggregator, site, child, session = await take_part(trial, max_deaths=100_000, options={"drain_s": 100_000.0})
    began = _pipe(site.folder / "workspace" / "began")
    try:
        session.send(task=aggregator.task(trial.first_model))
        await readable(began)
        child.terminate()
        assert (await wait_for_end(child)).record.outcome == "stopped"
    finally:
        os.close(began)


def _pipe(path: Path) -> int:
    """Make a named pipe, and open it for both so that it has a reader and a writer whoever comes and goes."""
    os.mkfifo(path)
    return os.open(path, os.O_RDWR | os.O_NONBLOCK)


async def test_what_a_trainer_printed_before_it_died_is_not_released_with_its_traceback(
    make_trial: Any, take_part: Any, wait_for_end: Any
) -> None:
    trial = make_trial("import os; print('patient 17', flush=True); os._exit(3)")
    aggregator, site, child, session = await take_part(trial, max_deaths=1, options={"release_tracebacks": True})
    session.send(task=aggregator.task(trial.first_model))
    failed = await session.hear("failed")
    assert failed.error_class == "TrainerDied" and "exit code 3" in failed.detail
    assert "patient 17" not in str(failed)
    status = await wait_for_end(child)
    assert "patient 17" not in str(status.record)
    assert "patient 17" in site.log


@pytest.mark.parametrize("releases", [False, True])
async def test_a_failing_task_says_its_class_and_no_more_unless_the_policy_releases_it(
    make_trial: Any, take_part: Any, wait_for_end: Any, *, releases: bool
) -> None:
    trial = make_trial("raise KeyError('patient 17')")
    aggregator, site, child, session = await take_part(trial, options={"release_tracebacks": releases})
    session.send(task=aggregator.task(trial.first_model))
    failed = await session.hear("failed")
    assert (failed.error_class, failed.round, failed.permanent) == ("KeyError", 1, False)
    assert ("patient 17" in failed.detail) is releases
    assert "patient 17" in site.log
    # The site goes on: it can still evaluate.
    session.send(task=aggregator.task(trial.first_model, train=False))
    assert dict((await session.hear("evaluated")).metrics) == {"loss": 0.0}
    finish(session)
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
    make_trial: Any, take_part: Any, wait_for_end: Any, train: str, error: str, elements: int
) -> None:
    trial = make_trial(train, elements=elements)
    aggregator, _, child, session = await take_part(trial)
    session.send(task=aggregator.task(trial.first_model, inline=elements == 8))
    failed = await session.hear("failed")
    assert failed.error_class == error
    assert aggregator.updates.empty()
    if error == "NotFinite":  # Nothing of it is kept: the next asking trains anew. Other metrics end the site's part.
        session.send(task=aggregator.task(trial.first_model, attempt=2, inline=elements == 8))
        assert (await session.hear("failed")).error_class == error
    finish(session)
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
    make_trial: Any, take_part: Any, wait_for_end: Any
) -> None:
    trial = make_trial()
    aggregator, _, child, session = await take_part(trial)
    session.send(task=aggregator.task(trial.first_model, round_number=4))
    status = await wait_for_end(child)
    assert status.record.error_class == "UnsignedPlanError"
    assert aggregator.updates.empty()


async def test_a_first_model_that_was_not_signed_is_not_trained(
    make_trial: Any, take_part: Any, wait_for_end: Any
) -> None:
    trial = make_trial()
    aggregator, _, child, session = await take_part(trial)
    session.send(task=aggregator.task(np.ones(8, np.float32).tobytes()))
    assert (await wait_for_end(child)).record.error_class == "UnsignedPlanError"

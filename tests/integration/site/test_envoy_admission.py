"""What an envoy accepts, what it refuses, and what waits for its owner."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import pytest

from federation import bundle
from federation.pki.known import load_known, pin

from .envoy_hosts import ANSWER, EXPERIMENT, accepted

pytestmark = pytest.mark.timeout(180)


async def test_an_unpinned_user_waits_for_approval_through_a_restart(
    make_trial: Any, aggregator_of: Any, director: Any, make_host: Any, wait_for_end: Any
) -> None:
    trial = make_trial()
    aggregator, host = await aggregator_of(trial), make_host(policy='trust = "pinned"')
    director.bundle = trial.archive.read_bytes()
    child = await host.start()
    session = await director.next_session()
    session.send(assignment=trial.assignment(aggregator.address))
    answer = await session.hear("answer")
    fingerprint = bundle.fingerprint_of(trial.signed.signing_key)
    assert answer.answer == ANSWER.ANSWER_PENDING
    assert fingerprint in answer.reason
    child.terminate()
    await wait_for_end(child)

    child = await host.start()
    session = await director.next_session()
    assert (await session.hear("answer")).answer == ANSWER.ANSWER_PENDING
    shown = json.loads((await host.owner("pending", "--json")).stdout)
    assert [(row["experiment"], row["submitter"]) for row in shown] == [(EXPERIMENT, "ada")]
    assert (await host.owner("approve", "no-such-00000000")).returncode == 1
    approved = await host.owner("approve", EXPERIMENT, "--pin")
    assert approved.returncode == 0, approved.stderr
    assert (await session.hear("answer")).answer == ANSWER.ANSWER_ACCEPTED
    assert load_known(host.folder / "known.toml").users == {"ada": fingerprint}
    await (await aggregator.next_session()).hear("ready")


async def test_what_the_owner_refuses_stays_refused(
    make_trial: Any, aggregator_of: Any, director: Any, make_host: Any
) -> None:
    trial = make_trial()
    aggregator, host = await aggregator_of(trial), make_host(policy="manual_approval = true")
    pin(host.folder / "known.toml", "users", "ada", bundle.fingerprint_of(trial.signed.signing_key))
    await host.start()
    session = await director.next_session()
    session.send(assignment=trial.assignment(aggregator.address))
    assert (await session.hear("answer")).answer == ANSWER.ANSWER_PENDING
    assert (await host.owner("refuse", EXPERIMENT, "--reason", "not with these data")).returncode == 0
    for _ in range(2):
        answer = await session.hear("answer")
        assert (answer.answer, answer.reason) == (ANSWER.ANSWER_REFUSED, "not with these data")
        session.send(assignment=trial.assignment(aggregator.address))


async def test_an_assignment_is_refused_with_a_reason_its_user_can_read(
    make_trial: Any, director: Any, make_host: Any
) -> None:
    trial, host = make_trial(), make_host()
    director.bundle = trial.archive.read_bytes()
    await host.start()
    session = await director.next_session()
    long_lived = bundle.sign_manifest(replace(trial.manifest, not_after=time.time() + 31 * 86400), trial.key)
    spoils = {
        "not signed": {"signature": b""},
        "changed": {"manifest": trial.signed.manifest.replace(b"trial", b"trail")},
        "user eve submitted it": {"submitted_by": "eve"},
        "signed are": {"bundle_bytes": 1},
        "at most 30 are allowed": {"manifest": long_lived.manifest, "signature": long_lived.signature},
        "shard 'attic' is not offered here": {"shards": ["ward", "attic"]},
    }
    for number, (word, spoilt) in enumerate(spoils.items(), start=1):
        session.send(assignment=trial.assignment("127.0.0.1:1", experiment=f"trial-{number:08d}", **spoilt))
        answer = await session.hear("answer")
        assert (answer.experiment, answer.answer) == (f"trial-{number:08d}", ANSWER.ANSWER_REFUSED)
        assert word in answer.reason
    assert director.fetches == []

    # What is signed may still not be what comes.
    archive = bytearray(director.bundle)
    archive[len(archive) // 2] ^= 1
    director.bundle = bytes(archive)
    session.send(assignment=trial.assignment("127.0.0.1:1", experiment="trial-00000009"))
    answer = await session.hear("answer")
    assert (answer.experiment, answer.answer) == ("trial-00000009", ANSWER.ANSWER_REFUSED)
    assert director.fetches and not list(host.folder.glob("state/experiments/*/bundle"))


async def test_a_bundle_that_declares_more_than_the_owner_allows_is_not_fetched(
    make_trial: Any, director: Any, make_host: Any
) -> None:
    trial, host = make_trial(), make_host(extra="[limits]\nmax_bundle_bytes = 100000")
    large = bundle.FileEntry(path="experiment.py", size=100_001, sha256="0" * 64)
    trial = replace(trial, manifest=replace(trial.manifest, files=(large,)))
    director.bundle = trial.archive.read_bytes()
    await host.start()
    session = await director.next_session()
    session.send(assignment=trial.assignment("127.0.0.1:1"))
    answer = await session.hear("answer")
    assert answer.answer == ANSWER.ANSWER_REFUSED
    assert "unpacks to 100001 bytes, at most 100000" in answer.reason
    assert director.fetches == []


async def test_a_bundle_that_the_disk_does_not_take_waits_for_room(
    make_trial: Any, director: Any, make_host: Any
) -> None:
    trial, host = make_trial(), make_host()
    director.bundle = trial.archive.read_bytes()
    host.experiment.mkdir(parents=True)
    (host.experiment / "bundle.zip").symlink_to("/dev/full")
    await host.start()
    session = await director.next_session()
    session.send(assignment=trial.assignment("127.0.0.1:1"))
    answer = await session.hear("answer")
    assert (answer.answer, answer.reason) == (
        ANSWER.ANSWER_PENDING, "the site's disk is full; it answers once there is room"
    )  # fmt: skip
    assert "no room for" in host.log
    (host.experiment / "bundle.zip").unlink()
    while answer.answer == ANSWER.ANSWER_PENDING:  # it may have tried in vain once more meanwhile
        answer = await session.hear("answer")
    assert answer.answer == ANSWER.ANSWER_ACCEPTED, answer.reason


async def test_a_signature_is_accepted_for_one_experiment_only(
    make_trial: Any, aggregator_of: Any, director: Any, make_host: Any
) -> None:
    trial = make_trial()
    aggregator, host = await aggregator_of(trial), make_host()
    session, _, _ = await accepted(trial, aggregator, director, host)
    session.send(assignment=trial.assignment(aggregator.address, experiment="trial-00000002"))
    answer = await session.hear("answer")
    assert (answer.experiment, answer.answer) == ("trial-00000002", ANSWER.ANSWER_REFUSED)
    assert "used before" in answer.reason

"""What an update claims, held against what was asked."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.errors import Refusal, UpdateRejectedError
from federation.names import Attempt, Digest, Epoch, ExperimentId, PayloadName, RoundNumber, SiteName
from federation.plan import Plan
from federation.rounds.admission import (
    NORM_ROUNDS,
    Claim,
    Expectation,
    ExpectedPayload,
    NormWindow,
    check_claim,
    check_norm,
    check_task,
)
from federation.rounds.history import RoundRecord, SiteOutcome, SiteRecord

SCHEMA, MODEL = Digest(b"s" * 32), Digest(b"m" * 32)
EXPECTED = Expectation(
    experiment=ExperimentId("mnist-12345678"),
    epoch=Epoch(2),
    round=RoundNumber(5),
    attempt=Attempt(2),
    is_open=True,
    model_digest=MODEL,
    payloads=(ExpectedPayload(PayloadName("delta"), SCHEMA, 40),),
    metrics=("loss",),
)
GOOD = Claim(
    experiment="mnist-12345678",
    epoch=2,
    round=5,
    attempt=2,
    model_digest=MODEL,
    payloads=(("delta", SCHEMA, "identity", 40),),
    examples=100,
    metrics={"loss": 0.5},
)


def check(claim, *, is_asked=True):
    check_task(claim, EXPECTED, is_asked=is_asked)
    check_claim(claim, EXPECTED, examples_cap=100)


def test_admits_what_was_asked_for():
    check(GOOD)


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        pytest.param({"experiment": "other-12345678"}, Refusal.UNKNOWN_EXPERIMENT, id="unknown experiment"),
        pytest.param({"epoch": 1}, Refusal.STALE_EPOCH, id="stale epoch"),
        pytest.param({"round": 4}, Refusal.CLOSED_ROUND, id="closed round"),
        pytest.param({"attempt": 1}, Refusal.CLOSED_ROUND, id="attempt that missed"),
        pytest.param({"round": 6}, Refusal.CLOSED_ROUND, id="round to come"),
        pytest.param({"payloads": ()}, Refusal.WRONG_SCHEMA, id="no payload"),
        pytest.param({"payloads": (("buffers", SCHEMA, "identity", 40),)}, Refusal.WRONG_SCHEMA, id="other payload"),
        pytest.param({"payloads": (("delta", MODEL, "identity", 40),)}, Refusal.WRONG_SCHEMA, id="wrong schema"),
        pytest.param({"payloads": (("delta", SCHEMA, "zip", 40),)}, Refusal.WRONG_CODEC, id="wrong codec"),
        pytest.param({"payloads": (("delta", SCHEMA, "identity", 36),)}, Refusal.TRUNCATED, id="too short"),
        pytest.param({"model_digest": b"x" * 32}, Refusal.WRONG_MODEL, id="wrong model"),
        pytest.param({"examples": 1_000_000}, Refusal.EXAMPLES, id="a million examples"),
        pytest.param({"examples": 0}, Refusal.EXAMPLES, id="no examples"),
        pytest.param({"metrics": {"patient": 1.0}}, Refusal.METRICS, id="unknown metric"),
        pytest.param({"metrics": {"loss": float("nan")}}, Refusal.METRICS, id="metric not finite"),
    ],
)
def test_refuses_a_claim_that_is_not_what_was_asked(change, refusal):
    with pytest.raises(UpdateRejectedError) as caught:
        check(replace(GOOD, **change))
    assert caught.value.refusal is refusal


def test_refuses_an_update_once_the_attempt_is_closed():
    with pytest.raises(UpdateRejectedError) as caught:
        check_task(GOOD, replace(EXPECTED, is_open=False), is_asked=False)
    assert caught.value.refusal is Refusal.CLOSED_ROUND


def test_refuses_a_site_that_was_not_asked():
    with pytest.raises(UpdateRejectedError) as caught:
        check(GOOD, is_asked=False)
    assert caught.value.refusal is Refusal.NOT_ASKED


def test_refuses_a_norm_beyond_the_plans_and_only_then():
    check_norm(1e9, Plan(), NormWindow())
    check_norm(2.0, Plan(max_norm=2.0), NormWindow())
    with pytest.raises(UpdateRejectedError) as caught:
        check_norm(2.1, Plan(max_norm=2.0), NormWindow())
    assert caught.value.refusal is Refusal.NORM


def committed(norms, number=1, *, refused=()):
    rows = [SiteRecord(site=SiteName(f"s{i}"), outcome=SiteOutcome.COUNTED, update_norm=n) for i, n in enumerate(norms)]
    rows += [
        SiteRecord(site=SiteName(f"r{i}"), outcome=SiteOutcome.REFUSED, update_norm=n)
        for i, n in enumerate([*refused, 0.0])
    ]
    rows.append(SiteRecord(site=SiteName("late"), outcome=SiteOutcome.LATE))
    return RoundRecord(
        round=RoundNumber(number), epoch=Epoch(1), started_at=0, seconds=1, model_digest="", sites=tuple(rows)
    )


def test_a_norm_is_measured_in_the_running_median_and_nothing_is_refused_before_there_is_one():
    plan = Plan(max_norm_ratio=3.0)
    check_norm(1e9, plan, NormWindow())
    window = NormWindow().after(committed([1.0, 2.0, 3.0]))
    check_norm(6.0, plan, window)
    check_norm(1e9, Plan(), window)
    with pytest.raises(UpdateRejectedError, match=r"median of the last 1 rounds is 2 .* allows 3 times that") as caught:
        check_norm(6.1, plan, window)
    assert caught.value.refusal is Refusal.NORM


def test_the_window_forgets_the_oldest_round_and_leaves_out_updates_without_a_norm():
    window = NormWindow()
    for number in range(NORM_ROUNDS):
        window = window.after(committed([100.0], number + 1))
    assert window.median == 100.0
    for number in range(NORM_ROUNDS):
        window = window.after(committed([1.0, 1.0], number + 11))
    assert window.rounds == ((1.0, 1.0),) * NORM_ROUNDS
    assert window.after(committed([])) == window


def test_a_median_of_nothing_refuses_nothing():
    check_norm(5.0, Plan(max_norm_ratio=2.0), NormWindow().after(committed([0.0, 0.0, 1.0])))


@given(st.lists(st.floats(0.1, 10.0), min_size=3, max_size=9), st.floats(1.0, 20.0))
def test_a_minority_of_huge_norms_cannot_raise_the_bound_above_the_honest_ones(norms, ratio):
    hostile = [1e6] * ((len(norms) - 1) // 2)
    window = NormWindow().after(committed([*norms, *hostile]))
    assert window.median <= max(norms)
    with pytest.raises(UpdateRejectedError):
        check_norm(ratio * max(norms) * 1.01, Plan(max_norm_ratio=ratio), window)


def test_a_minority_that_sends_next_to_nothing_does_not_pull_the_bound_below_the_honest_ones():
    plan, window = Plan(max_norm_ratio=2.0), NormWindow()
    honest = [1.0, 1.2, 1.5, 1.9, 2.3, 2.9]
    for number in range(1, 31):
        taken, refused = [], []
        for norm in [1e-6] * 4 + honest:
            try:
                check_norm(norm, plan, window)
                taken.append(norm)
            except UpdateRejectedError as error:
                refused.append(error.norm)
        window = window.after(committed(taken, number, refused=refused))
    assert len(taken) >= 4 + 3 and window.median >= honest[0]


COMPRESSED = replace(EXPECTED, payloads=(ExpectedPayload(PayloadName("delta"), SCHEMA, 40, "top_k:0.1"),))


@pytest.mark.parametrize("size", [1, 39, 40])
def test_a_compressed_payload_may_be_of_any_size_its_codec_can_make(size):
    claim = replace(GOOD, payloads=(("delta", SCHEMA, "top_k:0.1", size),))
    check_claim(claim, COMPRESSED, examples_cap=100)


@pytest.mark.parametrize(
    ("codec", "size", "refusal"),
    [
        ("top_k:0.1", 41, Refusal.TRUNCATED),
        ("top_k:0.1", 0, Refusal.TRUNCATED),
        ("identity", 40, Refusal.WRONG_CODEC),
        ("top_k:0.2", 40, Refusal.WRONG_CODEC),
    ],
)
def test_a_compressed_payload_of_other_codec_or_size_is_refused(codec, size, refusal):
    with pytest.raises(UpdateRejectedError, match=r"top_k:0\.1") as caught:
        check_claim(replace(GOOD, payloads=(("delta", SCHEMA, codec, size),)), COMPRESSED, examples_cap=100)
    assert caught.value.refusal is refusal

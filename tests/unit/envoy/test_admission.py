from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from envoy.admission import MAX_REASON_CHARACTERS, OfferedShard, Policy, Request, Verdict, decide, refused

REQUEST = Request(
    submitter="ada",
    seen_as="ada",
    fingerprint="sha256:aa",
    pinned="sha256:aa",
    rounds=10,
    rule="mean",
    bundle_digest="d0",
    shard_kind="tumours",
    shards=("ward",),
    offered={"ward": OfferedShard(kind="tumours", sample_shape=(30,), target_shape=())},
)


def test_accepts_a_pinned_user_under_an_open_policy() -> None:
    assert decide(REQUEST, Policy()).verdict is Verdict.ACCEPTED


@pytest.mark.parametrize(
    ("request_change", "policy_change", "sentence"),
    [
        ({"seen_as": "eve"}, {}, "signed as user ada, but user eve submitted it"),
        ({"fingerprint": "sha256:bb"}, {}, "this site has pinned sha256:aa"),
        ({}, {"allowed_users": frozenset({"bob"})}, "user ada may not run experiments"),
        ({}, {"max_rounds": 9}, "10 rounds; this site allows at most 9"),
        ({}, {"allowed_rules": frozenset({"median", "krum"})}, "allowed: krum, median"),
        ({}, {"allowed_bundles": frozenset({"d1"})}, "bundle d0 is not among"),
        ({"shards": ()}, {}, "needs kind 'tumours'"),
        ({"shards": ("attic",)}, {}, "shard 'attic' is not offered here; offered: ward"),
        ({"shard_kind": "digits"}, {}, "of kind 'tumours'; the experiment needs kind 'digits'"),
        ({"sample_shape": (31,)}, {}, r"samples of shape [30]; the experiment expects [31]"),
        ({"target_shape": (2,)}, {}, r"targets of shape []; the experiment expects [2]"),
        ({"running": 4}, {}, "already runs 4 experiments"),
    ],
)
def test_refuses_with_a_sentence(request_change: dict[str, Any], policy_change: dict[str, Any], sentence: str) -> None:
    decision = decide(replace(REQUEST, **request_change), Policy(**policy_change))
    assert decision.verdict is Verdict.REFUSED
    assert sentence in decision.reason


def test_an_unpinned_user_waits_and_is_told_his_fingerprint() -> None:
    decision = decide(replace(REQUEST, pinned=None), Policy())
    assert decision.verdict is Verdict.PENDING
    assert "sha256:aa" in decision.reason


def test_trust_in_the_director_lets_an_unpinned_user_in() -> None:
    assert decide(replace(REQUEST, pinned=None), Policy(trust_pinned=False)).verdict is Verdict.ACCEPTED


def test_manual_approval_holds_a_pinned_user() -> None:
    assert decide(REQUEST, Policy(manual_approval=True)).verdict is Verdict.PENDING


@pytest.mark.parametrize("pinned", [None, "sha256:aa"])
def test_an_approval_lets_what_waited_in(pinned: str | None) -> None:
    request = replace(REQUEST, pinned=pinned, approved=True)
    assert decide(request, Policy(manual_approval=True)).verdict is Verdict.ACCEPTED


@pytest.mark.parametrize("policy", [Policy(max_rounds=1), Policy(allowed_users=frozenset({"bob"}))])
def test_an_approval_does_not_lift_a_refusal(policy: Policy) -> None:
    assert decide(replace(REQUEST, approved=True), policy).verdict is Verdict.REFUSED


def test_nobody_is_asked_to_approve_what_policy_forbids() -> None:
    policy = Policy(max_rounds=1, manual_approval=True)
    assert decide(replace(REQUEST, pinned=None), policy).verdict is Verdict.REFUSED


def test_a_reason_is_never_longer_than_the_wire_allows() -> None:
    assert len(refused("x" * 1000).reason) == MAX_REASON_CHARACTERS

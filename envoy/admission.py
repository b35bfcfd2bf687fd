"""Whether an experiment may run at this site. Pure: a request and a policy in, a decision with its sentence out.

The signature is verified before; this module is only told whose key it was and whether the site has pinned it.
Rules, in order; the first that speaks decides, and refusals come before anything that asks the owner, so that nobody is
asked to approve what policy forbids anyway:

1. The manifest's submitter is the user the director saw in the certificate.
2. The key is not another one than the site has pinned for that user.
3. The user is allowed, if the owner listed users.
4. The plan has no more rounds than the owner allows.
5. The aggregation rule is allowed, if the owner listed rules.
6. The bundle's digest is allowed, if the owner listed digests.
7. Every shard asked for is offered here and is of the kind the experiment needs, with the shapes it expects.
8. The site has a free slot.
9. A key the site has not pinned waits for the owner's approval under ``trust = "pinned"``.
10. Everything waits for the owner's approval under ``manual_approval``.

An approval answers rules 9 and 10 only. A sentence is meant for the user: it names what was got and what is allowed,
and nothing else about the site.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_REASON_CHARACTERS = 512


class Verdict(Enum):
    """What a site says to an experiment."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    PENDING = "pending"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A verdict and its sentence for the user, at most 512 characters; empty when there is nothing to say."""

    verdict: Verdict
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What a site's owner allows. An empty set allows all.

    Attributes:
        allowed_users: users who may run experiments here.
        max_rounds: most rounds a plan may have; None: no limit of the site's own.
        allowed_rules: aggregation rules a plan may use.
        allowed_bundles: SHA-256 of bundle archives that may run, hex.
        trust_pinned: True: a key that is not pinned waits for approval. False: the director's word suffices.
        manual_approval: everything waits for the owner.
        max_experiments: experiments at a time.
    """

    allowed_users: frozenset[str] = frozenset()
    max_rounds: int | None = None
    allowed_rules: frozenset[str] = frozenset()
    allowed_bundles: frozenset[str] = frozenset()
    trust_pinned: bool = True
    manual_approval: bool = False
    max_experiments: int = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferedShard:
    """What this site knows of one of its shards: `kind`, and the shapes a trainer found."""

    kind: str
    sample_shape: tuple[int, ...] = ()
    target_shape: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """An experiment that asks to run here, its signature verified.

    Attributes:
        submitter: user named in the signed manifest.
        seen_as: user the director saw in the submitter's certificate.
        fingerprint: ``sha256:…`` of the key that signed.
        pinned: fingerprint this site has pinned for the user; None if it has pinned none.
        rounds: rounds of the plan.
        rule: aggregation rule of the plan.
        bundle_digest: SHA-256 of the bundle archive, hex.
        shard_kind: kind of shard the experiment needs.
        sample_shape: shape its model takes; None: not checked.
        target_shape: shape of its targets; None: not checked.
        shards: shards of this site it asks for.
        approved: the owner has approved this experiment.
        running: experiments that occupy a slot now, this one not counted.
        offered: shards this site offers, by name.
    """

    submitter: str
    seen_as: str
    fingerprint: str
    pinned: str | None
    rounds: int
    rule: str
    bundle_digest: str
    shard_kind: str
    shards: tuple[str, ...]
    sample_shape: tuple[int, ...] | None = None
    target_shape: tuple[int, ...] | None = None
    approved: bool = False
    running: int = 0
    offered: Mapping[str, OfferedShard] = field(default_factory=dict)


def decide(request: Request, policy: Policy) -> Decision:
    """Return what the site says to `request` under `policy`; see the module's rules."""
    refusal = (
        _refuse_identity(request, policy)
        or _refuse_plan(request, policy)
        or _refuse_shards(request)
        or _refuse_crowd(request, policy)
    )
    if refusal:
        return refused(refusal)
    if request.approved:
        return Decision(verdict=Verdict.ACCEPTED)
    if policy.trust_pinned and request.pinned is None:
        return Decision(
            verdict=Verdict.PENDING,
            reason=f"this site has not pinned a signing key of user {request.submitter}; the key of this bundle is "
            f"{request.fingerprint}: the site's owner compares it with yours and approves",
        )
    if policy.manual_approval:
        return Decision(verdict=Verdict.PENDING, reason="the site's owner approves each experiment by hand")
    return Decision(verdict=Verdict.ACCEPTED)


def refused(reason: str) -> Decision:
    """Return a refusal with `reason`, shortened to what a reason may be."""
    if len(reason) > MAX_REASON_CHARACTERS:
        reason = reason[: MAX_REASON_CHARACTERS - 1] + "…"
    return Decision(verdict=Verdict.REFUSED, reason=reason)


def _refuse_identity(request: Request, policy: Policy) -> str | None:
    if request.submitter != request.seen_as:
        return f"the bundle is signed as user {request.submitter}, but user {request.seen_as} submitted it"
    if request.pinned is not None and request.pinned != request.fingerprint:
        return (
            f"the bundle is signed with key {request.fingerprint}, but this site has pinned {request.pinned} for user "
            f"{request.submitter}: tell the site's owner your new fingerprint"
        )
    if policy.allowed_users and request.submitter not in policy.allowed_users:
        return f"user {request.submitter} may not run experiments at this site"
    return None


def _refuse_plan(request: Request, policy: Policy) -> str | None:
    if policy.max_rounds is not None and request.rounds > policy.max_rounds:
        return f"the plan has {request.rounds} rounds; this site allows at most {policy.max_rounds}"
    if policy.allowed_rules and request.rule not in policy.allowed_rules:
        return f"aggregation rule {request.rule!r} is not allowed here; allowed: {_listed(policy.allowed_rules)}"
    if policy.allowed_bundles and request.bundle_digest not in policy.allowed_bundles:
        return f"bundle {request.bundle_digest} is not among those the site's owner has approved by digest"
    return None


def _refuse_shards(request: Request) -> str | None:
    if not request.shards:
        return f"no shard of this site was asked for; the experiment needs kind {request.shard_kind!r}"
    for name in request.shards:
        shard = request.offered.get(name)
        if shard is None:
            return f"shard {name!r} is not offered here; offered: {_listed(request.offered) or 'none'}"
        if shard.kind != request.shard_kind:
            return f"shard {name!r} is of kind {shard.kind!r}; the experiment needs kind {request.shard_kind!r}"
        if request.sample_shape is not None and shard.sample_shape != request.sample_shape:
            return _shape_text(name, "samples", shard.sample_shape, request.sample_shape)
        if request.target_shape is not None and shard.target_shape != request.target_shape:
            return _shape_text(name, "targets", shard.target_shape, request.target_shape)
    return None


def _refuse_crowd(request: Request, policy: Policy) -> str | None:
    if request.running >= policy.max_experiments:
        return (
            f"this site already runs {request.running} experiments, its limit is {policy.max_experiments}; "
            "submit again when one has ended"
        )
    return None


def _shape_text(name: str, what: str, got: tuple[int, ...], expected: tuple[int, ...]) -> str:
    return f"shard {name!r} has {what} of shape {list(got)}; the experiment expects {list(expected)}"


def _listed(names: frozenset[str] | Mapping[str, OfferedShard]) -> str:
    return ", ".join(sorted(names))

"""Whether an update may be counted: what it claims, held against what was asked. Pure.

Checks, in order, each with the `Refusal` it raises:

1. The experiment is this one (UNKNOWN_EXPERIMENT), the epoch the present one (STALE_EPOCH), round and attempt the open
   ones (CLOSED_ROUND), and the site was asked (NOT_ASKED).
2. The payloads are exactly those expected, each of its schema (WRONG_SCHEMA), codec (WRONG_CODEC) and size (TRUNCATED):
   exactly that of the schema if it is not compressed, else at least a byte and at most what its codec can make.
3. It starts from the model that was sent (WRONG_MODEL).
4. The examples are at least 1 and at most what envoy, collaborator and plan allow (EXAMPLES): a site cannot buy weight.
5. Training metrics have names the plan fixes and finite values (METRICS).

Where rounds overlap, each site has a task of its own, and an update that is more than so many steps old is refused
(TOO_STALE), however far it has come.

Once all is in, the L2 norm of the parameter change is at most what the plan allows, `max_norm`, and at most
`max_norm_ratio` times the median norm of the last rounds (NORM). What concerns the bytes is
checked by `federation.wire.reception`, as they arrive or, where they are compressed, once they are there: every float
is finite and their squares have a sum (NOT_FINITE), nothing is missing (TRUNCATED), the digests are as committed
(CORRUPT), and a compressed payload can be decoded (WRONG_CODEC).
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from federation.errors import Refusal, UpdateRejectedError
from federation.names import Digest, PayloadName  # noqa: TC001 - a NamedTuple's fields
from federation.plan import check_metrics
from federation.rounds.history import SiteOutcome

if TYPE_CHECKING:
    from collections.abc import Mapping

    from federation.names import Attempt, Epoch, ExperimentId, RoundNumber
    from federation.plan import Plan
    from federation.rounds.history import RoundRecord

NORM_ROUNDS = 10
"""Committed rounds whose norms make the running median: enough for a steady one, few enough to follow a schedule."""
IDENTITY = "identity"
"""The codec of payloads that are not compressed."""


class ExpectedPayload(NamedTuple):
    """A payload as every update must have it.

    Attributes:
        name: what it is called.
        schema: digest of the schema of its flat buffer.
        nbytes: its size; the largest it can have, if it is compressed.
        codec: how it is compressed.
    """

    name: PayloadName
    schema: Digest
    nbytes: int
    codec: str = IDENTITY


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What an update must look like: in rounds the same for every site, else that of the site's own task.

    Attributes:
        experiment: experiment of this aggregator.
        epoch: its epoch.
        round: round of the task.
        attempt: attempt of the task.
        is_open: it still takes updates, or will: a site that is not asked yet is NOT_ASKED and may send again.
        model_digest: BLAKE3 of the model that was sent out.
        payloads: each payload, in order.
        metrics: names the plan fixes.
        staleness: steps of the server since the task, where rounds overlap.
        max_staleness: most that they may be; None: any number.
    """

    experiment: ExperimentId
    epoch: Epoch
    round: RoundNumber
    attempt: Attempt
    is_open: bool
    model_digest: Digest
    payloads: tuple[ExpectedPayload, ...]
    metrics: tuple[str, ...]
    staleness: int = 0
    max_staleness: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a site says about its update.

    Attributes:
        experiment: experiment it says it is for.
        epoch: epoch of the session it is sent in.
        round: round of the task it answers.
        attempt: attempt of the task it answers.
        model_digest: BLAKE3 of the model it started from.
        payloads: name, schema digest, codec and size [bytes] of each payload, in order.
        examples: training examples behind it.
        metrics: its training metrics.
    """

    experiment: str
    epoch: int
    round: int
    attempt: int
    model_digest: bytes
    payloads: tuple[tuple[str, bytes, str, int], ...]
    examples: int
    metrics: Mapping[str, float]


def check_task(claim: Claim, expected: Expectation, *, is_asked: bool) -> None:
    """Refuse an update that answers no open task.

    Args:
        claim: what the site says.
        expected: what is open.
        is_asked: the site was asked in this attempt and has not answered yet.

    Raises:
        UpdateRejectedError: with UNKNOWN_EXPERIMENT, STALE_EPOCH, CLOSED_ROUND or NOT_ASKED.
    """
    if claim.experiment != expected.experiment:
        raise UpdateRejectedError(
            Refusal.UNKNOWN_EXPERIMENT,
            f"the update is for experiment {claim.experiment[:63]!r}; this aggregator runs {expected.experiment!r}",
        )
    if claim.epoch != expected.epoch:
        raise UpdateRejectedError(
            Refusal.STALE_EPOCH,
            f"the update has epoch {claim.epoch}; this aggregator has epoch {expected.epoch}: wait for its next task",
        )
    if (claim.round, claim.attempt) != (expected.round, expected.attempt):
        raise UpdateRejectedError(
            Refusal.CLOSED_ROUND,
            f"the update is for round {claim.round}, attempt {claim.attempt}; round {expected.round}, attempt "
            f"{expected.attempt} is in progress: drop it",
        )
    if not expected.is_open:
        raise UpdateRejectedError(
            Refusal.CLOSED_ROUND, f"attempt {claim.attempt} at round {claim.round} takes no more updates: drop it"
        )
    if not is_asked:
        raise UpdateRejectedError(
            Refusal.NOT_ASKED,
            f"no update is expected from this site for round {claim.round} now: wait for its next task",
        )


def check_staleness(expected: Expectation) -> None:
    """Refuse an update that comes too many steps after its task.

    Raises:
        UpdateRejectedError: with TOO_STALE.
    """
    if expected.max_staleness is not None and expected.staleness > expected.max_staleness:
        raise UpdateRejectedError(
            Refusal.TOO_STALE,
            f"the update is {expected.staleness} steps old, at most {expected.max_staleness} are taken: drop it",
        )


def check_claim(claim: Claim, expected: Expectation, *, examples_cap: int) -> None:
    """Refuse an update whose header already shows that it cannot be counted.

    Args:
        claim: what the site says.
        expected: what it must be.
        examples_cap: most examples this site may claim.

    Raises:
        UpdateRejectedError: with WRONG_SCHEMA, WRONG_CODEC, TRUNCATED, WRONG_MODEL, EXAMPLES or METRICS.
    """
    _check_payloads(claim, expected)
    if claim.model_digest != expected.model_digest:
        raise UpdateRejectedError(
            Refusal.WRONG_MODEL,
            f"the update starts from model {claim.model_digest.hex()[:16]!r}; the task sent "
            f"{expected.model_digest.hex()[:16]!r}",
        )
    if not 1 <= claim.examples <= examples_cap:
        raise UpdateRejectedError(
            Refusal.EXAMPLES,
            f"the update claims {claim.examples} examples; this site may claim 1 to {examples_cap}",
        )
    try:
        check_metrics(dict(claim.metrics), expected.metrics)
    except ValueError as error:
        raise UpdateRejectedError(Refusal.METRICS, str(error)) from error


@dataclass(frozen=True, slots=True)
class NormWindow:
    """Norms of the updates that came in the last committed rounds; all a restart needs is in the rounds' records.

    They are the norms of those that counted and of those that were refused for their norm: if the refused left the
    window, a minority that sends next to nothing would pull the bound down round by round until no honest update is
    below it. The median of them is what `max_norm_ratio` is measured in: hostile sites that are fewer than half leave
    it between honest norms, and it follows norms that shrink as a model converges. Empty before the first committed
    round: nothing is refused then.

    Attributes:
        rounds: of each round, oldest first, its norms in name order.
    """

    rounds: tuple[tuple[float, ...], ...] = ()

    def after(self, record: RoundRecord) -> NormWindow:
        """Return the window once a round is committed; the oldest round makes way."""
        norms = tuple(
            row.update_norm
            for row in record.sites
            if row.outcome is SiteOutcome.COUNTED or (row.outcome is SiteOutcome.REFUSED and row.update_norm > 0)
        )
        return NormWindow((*self.rounds, norms)[-NORM_ROUNDS:]) if norms else self

    @property
    def median(self) -> float:
        """Median of all norms of the window; 0 if there are none, or if most updates changed nothing."""
        norms = [norm for norms in self.rounds for norm in norms]
        return statistics.median(norms) if norms else 0.0


def check_norm(norm: float, plan: Plan, window: NormWindow) -> None:
    """Refuse an update whose parameter change is longer than the plan allows.

    Args:
        norm: L2 norm of the change.
        plan: its `max_norm` and `max_norm_ratio` apply, where given.
        window: norms of the last rounds.

    Raises:
        UpdateRejectedError: with NORM.
    """
    if plan.max_norm is not None and norm > plan.max_norm:
        raise UpdateRejectedError(
            Refusal.NORM,
            f"the parameter change has L2 norm {norm:.6g}; the plan's max_norm allows {plan.max_norm:.6g}",
            norm=min(norm, sys.float_info.max),
        )
    if plan.max_norm_ratio is None:
        return
    median = window.median
    if median > 0 and norm > plan.max_norm_ratio * median:
        raise UpdateRejectedError(
            Refusal.NORM,
            f"the parameter change has L2 norm {norm:.6g}; the median of the last {len(window.rounds)} rounds is "
            f"{median:.6g} and the plan's max_norm_ratio allows {plan.max_norm_ratio:g} times that",
            norm=min(norm, sys.float_info.max),
        )


def _check_payloads(claim: Claim, expected: Expectation) -> None:
    names = [name for name, _, _, _ in claim.payloads]
    wanted = [row.name for row in expected.payloads]
    if names != wanted:
        shown = ", ".join(repr(name[:63]) for name in names[:8])
        raise UpdateRejectedError(Refusal.WRONG_SCHEMA, f"the update has payloads {shown}; expected {wanted}, in order")
    for (name, digest, codec, size), row in zip(claim.payloads, expected.payloads, strict=True):
        if digest != row.schema:
            raise UpdateRejectedError(
                Refusal.WRONG_SCHEMA,
                f"payload {name!r} has schema {digest.hex()[:16]!r}; the experiment has {row.schema.hex()[:16]!r}",
            )
        if codec != row.codec:
            raise UpdateRejectedError(
                Refusal.WRONG_CODEC, f"payload {name!r} has codec {codec[:63]!r}, not {row.codec!r}"
            )
        _check_size(size, row)


def _check_size(size: int, row: ExpectedPayload) -> None:
    if row.codec == IDENTITY and size != row.nbytes:
        raise UpdateRejectedError(
            Refusal.TRUNCATED, f"payload {row.name!r} announces {size} bytes; its schema has {row.nbytes}"
        )
    if row.codec != IDENTITY and not 1 <= size <= row.nbytes:
        raise UpdateRejectedError(
            Refusal.TRUNCATED,
            f"payload {row.name!r} announces {size} bytes; {row.codec} of this model makes 1 to {row.nbytes}",
        )

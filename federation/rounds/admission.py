"""Whether an update may be counted: what it claims, held against what was asked. Pure.

Checks, in order, each with the `Refusal` it raises:

1. The experiment is this one (UNKNOWN_EXPERIMENT), the epoch the present one (STALE_EPOCH), round and attempt the open
   ones (CLOSED_ROUND), and the site was asked (NOT_ASKED).
2. The payloads are exactly those expected, each of its schema (WRONG_SCHEMA), codec (WRONG_CODEC) and size (TRUNCATED):
   exactly that of the schema if it is not compressed, else at least a byte and at most what its codec can make.
3. It starts from the model that was sent (WRONG_MODEL).
4. The examples are at least 1 and at most what envoy, collaborator and plan allow (EXAMPLES): a site cannot buy weight.
5. Training metrics have names the plan fixes and finite values (METRICS).

Once all is in, the L2 norm of the parameter change is at most what the plan allows (NORM). What concerns the bytes is
checked by `federation.wire.reception`, as they arrive or, where they are compressed, once they are there: every float
is finite (NOT_FINITE), nothing is missing (TRUNCATED), the digests are as committed (CORRUPT), and a compressed payload
can be decoded (WRONG_CODEC).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from federation.errors import Refusal, UpdateRejectedError
from federation.names import Digest, PayloadName  # noqa: TC001 - a NamedTuple's fields
from federation.plan import check_metrics

if TYPE_CHECKING:
    from collections.abc import Mapping

    from federation.names import Attempt, Epoch, ExperimentId, RoundNumber

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
    """What an update of this round must look like, the same for every site.

    Attributes:
        experiment: experiment of this aggregator.
        epoch: its epoch.
        round: round in progress.
        attempt: attempt in progress.
        is_open: it still takes updates, or will: a site that is not asked yet is NOT_ASKED and may send again.
        model_digest: BLAKE3 of the model that was sent out.
        payloads: each payload, in order.
        metrics: names the plan fixes.
    """

    experiment: ExperimentId
    epoch: Epoch
    round: RoundNumber
    attempt: Attempt
    is_open: bool
    model_digest: Digest
    payloads: tuple[ExpectedPayload, ...]
    metrics: tuple[str, ...]


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


def check_norm(norm: float, max_norm: float | None) -> None:
    """Refuse an update whose parameter change is longer than the plan allows.

    Raises:
        UpdateRejectedError: with NORM.
    """
    if max_norm is not None and norm > max_norm:
        raise UpdateRejectedError(
            Refusal.NORM, f"the parameter change has L2 norm {norm:.6g}; the plan allows {max_norm:.6g}"
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

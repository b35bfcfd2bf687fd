"""What an update looks like: which payloads it must have, and what is known of one once it is admitted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from federation.compression import load_codec, max_payload_bytes
from federation.rounds import admission
from federation.wire.payloads import IDENTITY_CODEC
from federation.wire.updates import UpdateAnnouncement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from federation.names import PayloadName, SiteName
    from federation.plan import PayloadPlan
    from federation.storage.spool import SpooledUpdate, SpoolPayload


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmittedUpdate:
    """One admitted update: what its site announced, and what was found.

    Attributes:
        site: whose it is.
        announcement: what the site said.
        norm: L2 norm of its parameter change.
        transfer_seconds: from header to admission.
        digest: SHA-256 over its payload digests, hex.
        payloads: its bytes, by payload name.
    """

    site: SiteName
    announcement: UpdateAnnouncement
    norm: float
    transfer_seconds: float
    digest: str
    payloads: dict[PayloadName, SpoolPayload]


def expected_payloads(plans: Sequence[PayloadPlan]) -> tuple[admission.ExpectedPayload, ...]:
    """Return the payloads of every update of an experiment as admission looks at them."""
    return tuple(
        admission.ExpectedPayload(
            plan.name,
            plan.schema.digest,
            plan.schema.nbytes
            if plan.codec == IDENTITY_CODEC
            else max_payload_bytes(plan.schema, load_codec(plan.codec)),
            plan.codec,
        )
        for plan in plans
    )


def read_admitted(update: SpooledUpdate, plans: Sequence[PayloadPlan]) -> AdmittedUpdate:
    """Return what the spool holds of an admitted update."""
    return AdmittedUpdate(
        site=update.key.site,
        announcement=UpdateAnnouncement.from_bytes(update.header),
        norm=float(update.facts["norm"]),
        transfer_seconds=float(update.facts["transfer_seconds"]),
        digest=str(update.facts["digest"]),
        payloads={plan.name: payload for plan, payload in zip(plans, update.payloads, strict=True)},
    )

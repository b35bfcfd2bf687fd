"""Certificates over the wire: enrolment of new sites and renewal, and what an aggregator is started with.

Rules, in order:

1. Enrol: a join token becomes the certificate of the envoy it names, once. That it is spent is committed before the
   certificate exists.
2. Renew: the caller's identity, a new key. A revoked or expired certificate never gets here; an aggregator's is renewed
   only while its experiment runs, and the director's own is not renewed over its own wire.
3. Serial number and expiry of what was issued are in the audit trail and the log before the certificate is given away:
   whoever has to revoke it finds it there.
4. Each start of an aggregator gets a fresh certificate and key in its own folder.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from director import lifecycle
from director.store import events, experiments
from federation.aggregator.config import AggregatorConfig, TlsPaths
from federation.errors import ConfigurationError, IdentityError
from federation.names import FederationName, Identity, Role
from federation.pki import requests
from federation.pki.authority import CERTIFICATE_LIFETIME_S, CertificateAuthority, issue_identity
from federation.telemetry.logs import get_logger
from federation.v1 import director_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sqlalchemy.orm import Session

    from director.config import DirectorSettings
    from director.launcher import LaunchOrder
    from director.store.database import Database
    from federation.pki.authority import IssuedCertificate
    from federation.runtime.clock import Clock
    from federation.transport.calls import Call

_JOIN = "join"
_DAY_S = 86400.0

_log = get_logger(__name__)


class Enrolment:
    """Issues certificates to those who may have them.

    Args:
        authority: the federation's authority; None on a plaintext director, which has nothing to issue.
        database: where spent tokens are remembered.
        clock: for times.
        aggregator_lifetime_s: validity of an aggregator's certificate, seconds.
    """

    def __init__(
        self,
        *,
        authority: CertificateAuthority | None,
        database: Database,
        clock: Clock,
        aggregator_lifetime_s: float,
    ) -> None:
        self._authority = authority
        self._database = database
        self._clock = clock
        self._aggregator_lifetime_s = aggregator_lifetime_s

    async def enrol(self, request: pb.EnrolRequest, call: Call) -> pb.EnrolReply:
        """Exchange a join token and a signing request for an envoy's certificate."""
        authority, joiner = self._loaded(), call.peer.identity
        now = self._clock.now()
        loop = asyncio.get_running_loop()

        def spend() -> bool:
            """Runs in a worker thread, where issuing does; the database has a thread of its own."""
            spending = self._database.transact(_spend, f"{call.peer.serial:x}", joiner, now)
            return asyncio.run_coroutine_threadsafe(spending, loop).result()

        issued = await asyncio.to_thread(
            requests.enrol,
            authority,
            joiner,
            request.signing_request,
            now=now,
            lifetime_s=CERTIFICATE_LIFETIME_S,
            spend=spend,
        )
        await self._record(issued, call, "Enrol")
        return pb.EnrolReply(certificate=issued.pem, authority=authority.certificate_pem)

    async def renew(self, request: pb.RenewRequest, call: Call) -> pb.RenewReply:
        """Issue a fresh certificate for the caller's identity."""
        authority, identity = self._loaded(), call.peer.identity
        lifetime_s = CERTIFICATE_LIFETIME_S
        if identity.role is Role.AGGREGATOR:
            lifetime_s = self._aggregator_lifetime_s
            found = await self._database.relaxed(experiments.get, identity.name)
            if found.state not in lifecycle.ACTIVE:
                raise IdentityError(
                    f"experiment {found.id} is {found.state.value}: its aggregator needs no certificate"
                )
        issued = await asyncio.to_thread(
            requests.renew,
            authority,
            identity,
            request.signing_request,
            now=self._clock.now(),
            lifetime_s=lifetime_s,
        )
        await self._record(issued, call, "Renew")
        return pb.RenewReply(certificate=issued.pem)

    async def _record(self, issued: IssuedCertificate, call: Call, action: str) -> None:
        """Note what was issued, by its serial number, before anybody has it."""
        serial = f"{issued.serial:x}"
        expires = datetime.fromtimestamp(issued.expires_at, UTC).isoformat(timespec="seconds")
        await self._database.transact(
            events.audit,
            at=self._clock.now(),
            actor=call.peer.identity.spiffe,
            action=action,
            admitted=True,
            subject=issued.identity.name,
            detail=f"issued serial {serial}, expires {expires}",
        )
        _log.info("certificate issued", action=action, identity=issued.identity.spiffe, serial=serial, expires=expires)

    def _loaded(self) -> CertificateAuthority:
        if self._authority is None:
            raise ConfigurationError("this director runs without certificates (insecure) and has none to give")
        return self._authority


def aggregator_configuration(
    settings: DirectorSettings,
    authority: CertificateAuthority | None,
    clock: Clock,
    director_address: Callable[[], str],
) -> Callable[[LaunchOrder], bytes]:
    """Return what makes an aggregator's configuration file, issuing its certificate on the way.

    Args:
        settings: ours.
        authority: who issues; None without TLS.
        clock: for the certificate's validity.
        director_address: ``host:port`` at which aggregators reach us, asked at each start.
    """
    section = settings.aggregators

    def configure(order: LaunchOrder) -> bytes:
        """Issue the order's certificate, and return its configuration file."""
        tls = None
        if authority is not None:
            folder: Path = order.folder / "tls"
            identity = Identity(
                federation=FederationName(settings.federation), role=Role.AGGREGATOR, name=order.experiment
            )
            lifetime_s = section.certificate_days * _DAY_S
            issue_identity(authority, identity, folder, now=clock.now(), lifetime_s=lifetime_s, force=True)
            tls = TlsPaths(authority=folder / "ca.pem", certificate=folder / "cert.pem", key=folder / "key.pem")
        config = AggregatorConfig(
            federation=settings.federation,
            experiment=order.experiment,
            epoch=order.epoch,
            folder=order.folder,
            tls=tls,
            director_address=director_address(),
            listen_host=section.host,
            ports=(section.first_port, section.last_port),
            bulk_ports=section.bulk_ports,
            advertised_host=section.advertised_host or None,
            monitoring_host=settings.metrics.host,
            orphan_s=section.orphan_s,
            log_level=settings.log_level.upper(),
        )
        return config.model_dump_json(indent=1).encode()

    return configure


def _spend(session: Session, serial: str, joiner: Identity, now: float) -> bool:
    fresh = experiments.use_nonce(session, _JOIN, serial, used_by=joiner.name, at=now)
    detail = "the token is spent" if fresh else "the token was used before"
    events.audit(
        session, at=now, actor=joiner.spiffe, action="Enrol", admitted=fresh, subject=joiner.name, detail=detail
    )
    return fresh

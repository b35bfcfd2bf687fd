"""Who may call what: decided here, from the certificate, never from a message, and before any message is parsed.

Rules, in order; the first that fails refuses the call and names its `CallRefusal`:

1. The connection is TLS 1.3 with a client certificate that our authority issued (TLS itself saw to the issuer).
2. The certificate carries exactly one URI, a valid SPIFFE id, of this federation.
3. It has not expired and is not revoked, *now*: an established connection outlives its certificate unless we look.
4. The method's rule names the role. A method without a rule cannot be served (`RpcServer.add_service` refuses it).

Whether a site acts as itself, an aggregator for its own experiment, a user on his own experiments, is for the service
to decide from `Call.peer`; it raises IdentityError.

What gRPC tells about a connection [grpcio 1.85]: ``peer_spiffe_id`` is set only if the certificate has exactly one URI
and that is a SPIFFE id; ``peer_uri`` lists all URIs; ``ssl_tls_version`` is the negotiated version, so it is checked
here rather than set (Python cannot set a minimum). A version that is not reported counts as too low.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from federation.errors import ConfigurationError, IdentityError
from federation.names import FederationName, Identity, Role
from federation.transport.credentials import CertificateFacts, read_certificate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from federation.runtime.clock import Clock

_REMEMBERED_CERTIFICATES = 4096
_TLS_VERSION = b"TLSv1.3"


class CallRefusal(Enum):
    """Why a call did not happen; also the reason label of ``federation_refused_calls_total``."""

    HANDSHAKE = "handshake"
    """A connection was begun and no call followed: see `federation.transport.handshakes`."""
    NO_CERTIFICATE = "no_certificate"
    WEAK_TLS = "weak_tls"
    NOT_ONE_IDENTITY = "not_one_identity"
    FOREIGN_FEDERATION = "foreign_federation"
    EXPIRED = "expired"
    REVOKED = "revoked"
    WRONG_ROLE = "wrong_role"
    NOT_ITSELF = "not_itself"
    """The service found that the caller acts for somebody else."""
    NO_TICKET = "no_ticket"
    """A line (`federation.transport.bulk`) with a ticket that nobody waits for."""
    TOO_MANY_CALLS = "too_many_calls"
    MALFORMED = "malformed"


_WHO_IS_UNKNOWN = frozenset(
    {
        CallRefusal.NO_CERTIFICATE,
        CallRefusal.WEAK_TLS,
        CallRefusal.NOT_ONE_IDENTITY,
        CallRefusal.FOREIGN_FEDERATION,
        CallRefusal.EXPIRED,
        CallRefusal.REVOKED,
    }
)


class RefusedCallError(IdentityError):
    """A call refused by its certificate; reaches the client as IdentityError.

    Attributes:
        refusal: which check refused it.
    """

    def __init__(self, refusal: CallRefusal, text: str) -> None:
        super().__init__(text)
        self.refusal = refusal

    @property
    def is_unauthenticated(self) -> bool:
        """True if who calls is not established, false if he is known and may not."""
        return self.refusal in _WHO_IS_UNKNOWN


class Revocations(Protocol):
    """Serial numbers that no longer count (`federation.pki.revocation.RevocationList`)."""

    def __contains__(self, serial: int) -> bool:
        """Tell whether the certificate with this serial number is revoked, as of now."""

    def subscribe(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Call `changed` in the event loop whenever the list changed; returns what ends the subscription."""


class NoRevocations:
    """The list of a server that knows of no revoked certificate."""

    def __contains__(self, serial: int) -> bool:
        """Return False."""
        return False

    def subscribe(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Never call `changed`."""
        return lambda: None


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Who is at the other end of a call.

    Attributes:
        identity: whose certificate it is.
        expires_at: end of its validity, Unix seconds; infinite on a plaintext loopback server.
        serial: its serial number; 0 on a plaintext loopback server.
        fingerprint: ``sha256:`` and hex of the DER certificate; empty on a plaintext loopback server.
    """

    identity: Identity
    expires_at: float
    serial: int
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much one identity may ask of a server at a time.

    Attributes:
        calls_per_identity: open calls, streams included. A site holds one session, a download and an upload; an
            operator's tools a few more. 64 leaves room and still keeps one peer from taking the server for itself.
        streams_per_connection: HTTP/2 streams one connection may hold open.
    """

    calls_per_identity: int = 64
    streams_per_connection: int = 256


class Authority:
    """Decides who may call what.

    Args:
        federation: the federation whose certificates count.
        rules: roles that may call, by full method name such as ``/federation.v1.Director/Submit``.
        clock: what tells whether a certificate has expired.
        revoked: serial numbers that no longer count.
        limits: how much one identity may ask at a time.
    """

    def __init__(
        self,
        federation: FederationName,
        rules: Mapping[str, frozenset[Role]],
        *,
        clock: Clock,
        revoked: Revocations | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.federation = federation
        self.rules = dict(rules)
        self.clock = clock
        self.revoked: Revocations = NoRevocations() if revoked is None else revoked
        self.limits = Limits() if limits is None else limits
        # Reading a certificate costs more than the rest of a small call; what it says cannot change.
        self._facts: dict[bytes, CertificateFacts] = {}

    def authorise(self, method: str, auth_context: Mapping[str, Iterable[bytes]]) -> Peer:
        """Return who calls `method`, if that caller may.

        Args:
            method: full name, as in `rules`.
            auth_context: what gRPC says about the connection.

        Raises:
            RefusedCallError: by the first of the module's rules that failed.
            ConfigurationError: the revocation list cannot be read.
        """
        pem = _check_connection(auth_context)
        facts = self._facts.get(pem)
        if facts is None:
            facts = _read_facts(pem, auth_context)
            if len(self._facts) >= _REMEMBERED_CERTIFICATES:
                self._facts.clear()
            self._facts[pem] = facts
        peer = _check_certificate(facts, self.federation, self.clock.now())
        self._check_revoked(peer)
        self._check_role(method, peer.identity)
        return peer

    def authorise_loopback(self, method: str, claimed: str | None) -> Peer:
        """Return who claims to call `method` on a plaintext server, which listens on loopback only.

        Args:
            method: full name, as in `rules`.
            claimed: SPIFFE id from the metadata ``federation-identity``.

        Raises:
            RefusedCallError: no or no valid claim, foreign federation, or wrong role.
        """
        if claimed is None:
            raise RefusedCallError(
                CallRefusal.NO_CERTIFICATE, "the call names no identity, and there is no certificate"
            )
        try:
            identity = Identity.parse(claimed)
        except IdentityError as error:
            raise RefusedCallError(CallRefusal.NOT_ONE_IDENTITY, str(error)) from error
        _check_federation(identity, self.federation)
        self._check_role(method, identity)
        return Peer(identity=identity, expires_at=math.inf, serial=0, fingerprint="")

    def recheck(self, peer: Peer) -> RefusedCallError | None:
        """Return why `peer`, authorised earlier, may no longer go on; None if it may.

        A revocation list that cannot be read stops new calls (`authorise` fails), not those already open.
        """
        try:
            _check_expiry(peer.identity, peer.expires_at, self.clock.now())
            if peer.serial:
                self._check_revoked(peer)
        except RefusedCallError as error:
            return error
        except ConfigurationError:
            return None
        return None

    def _check_revoked(self, peer: Peer) -> None:
        if peer.serial in self.revoked:
            raise RefusedCallError(
                CallRefusal.REVOKED,
                f"the certificate of {peer.identity} with serial {peer.serial:x} is revoked: ask the operator",
            )

    def _check_role(self, method: str, identity: Identity) -> None:
        allowed = self.rules.get(method, frozenset())
        if identity.role not in allowed:
            roles = ", ".join(sorted(role.value for role in allowed)) or "nobody"
            raise RefusedCallError(
                CallRefusal.WRONG_ROLE,
                f"{method} is for {roles}; this certificate is of role {identity.role.value} ({identity})",
            )


def _check_connection(auth_context: Mapping[str, Iterable[bytes]]) -> bytes:
    """Rule 1: return the PEM certificate of a TLS 1.3 connection."""
    pem = _first(auth_context, "x509_pem_cert")
    if pem is None:
        raise RefusedCallError(CallRefusal.NO_CERTIFICATE, "the connection has no client certificate")
    version = _first(auth_context, "ssl_tls_version")
    if version != _TLS_VERSION:
        got = version.decode("ascii", "replace") if version else "an unknown version"
        raise RefusedCallError(CallRefusal.WEAK_TLS, f"TLS 1.3 is required, got {got}: update the other side's grpcio")
    return pem


def _read_facts(pem: bytes, auth_context: Mapping[str, Iterable[bytes]]) -> CertificateFacts:
    """Rule 2, first half: exactly one URI, and gRPC and we read the same one."""
    try:
        facts = read_certificate(pem)
    except IdentityError as error:
        raise RefusedCallError(CallRefusal.NOT_ONE_IDENTITY, str(error)) from error
    # Two readers of one certificate that disagree mean that one of them can be fooled.
    if _first(auth_context, "peer_spiffe_id") != facts.identity.spiffe.encode():
        raise RefusedCallError(
            CallRefusal.NOT_ONE_IDENTITY, "TLS found no single SPIFFE id in the certificate: issue a new one"
        )
    return facts


def _check_certificate(facts: CertificateFacts, federation: FederationName, now: float) -> Peer:
    """Rule 2, second half, and rule 3 less revocation."""
    _check_federation(facts.identity, federation)
    _check_expiry(facts.identity, facts.expires_at, now)
    return Peer(
        identity=facts.identity, expires_at=facts.expires_at, serial=facts.serial, fingerprint=facts.fingerprint
    )


def _check_federation(identity: Identity, federation: FederationName) -> None:
    if identity.federation != federation:
        raise RefusedCallError(
            CallRefusal.FOREIGN_FEDERATION, f"this is federation {federation!r}; the certificate is of {identity}"
        )


def _check_expiry(identity: Identity, expires_at: float, now: float) -> None:
    if now >= expires_at:
        raise RefusedCallError(
            CallRefusal.EXPIRED,
            f"the certificate of {identity} expired {now - expires_at:.0f} seconds ago: renew it and connect anew",
        )


def _first(auth_context: Mapping[str, Iterable[bytes]], key: str) -> bytes | None:
    return next(iter(auth_context.get(key, ())), None)

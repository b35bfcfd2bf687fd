"""`federation doctor`: check, in order, everything between this machine and its director, and say what to do.

1. The profile can be read. 2. The certificate files belong together and have not expired. 3. The address can be
reached. 4. TLS stands, with the director's expected name. 5. The director takes us for whom we think we are. 6. The
clocks agree. 7. The certificates live long enough. 8. The protocol versions overlap. 9. The signing key is there.

Aggregators are left out: silos dial them, not users, and they listen only while an experiment runs.

Each check is a `Finding`. One that fails ends the examination only if nothing after it could be checked.

Checks 3 to 8 are one call, as any other is. Only where it fails is the address tried by itself, to tell what does not
stand: a connection without a call is one that the director counts as refused.
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from federation.client.federation import Federation
from federation.client.profile import Profile, load_profile
from federation.errors import ConfigurationError, FederationError, TransportError
from federation.names import Identity, Role
from federation.pki.signing import fingerprint_of_file
from federation.transport.channels import require_loopback, split_address
from federation.wire.versions import negotiate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from federation.v1 import director_pb2 as pb

CLOCK_TOLERANCE_S = 5.0
"""Clocks further apart than this are reported, seconds: certificates and expiries are judged by them."""
PATIENCE_S = 10.0
"""Whoever has not answered by then is tried as an address alone before the call is made at leisure, seconds."""
EXPIRY_WARNING_S = 14 * 86400.0
"""A certificate that expires sooner is reported, seconds."""


class Outcome(Enum):
    """How a check ended."""

    GOOD = "good"
    WARNING = "warning"
    BAD = "bad"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One check: its name, how it ended, what was found, and what to do about it (empty if nothing)."""

    check: str
    outcome: str
    found: str
    advice: str = ""


def _good(check: str, found: str) -> Finding:
    return Finding(check=check, outcome=Outcome.GOOD.value, found=found)


def _bad(check: str, found: str, advice: str) -> Finding:
    return Finding(check=check, outcome=Outcome.BAD.value, found=found, advice=advice)


def _warn(check: str, found: str, advice: str) -> Finding:
    return Finding(check=check, outcome=Outcome.WARNING.value, found=found, advice=advice)


def examine(path: Path | None) -> Iterator[Finding]:
    """Yield the findings in order; ends early where nothing further can be checked."""
    try:
        profile = load_profile(path)
    except ConfigurationError as error:
        yield _bad("profile", str(error), "mend the profile")
        return
    yield _good("profile", f"federation {profile.federation} at {profile.address}")
    files = check_files(profile)
    yield files
    if files.outcome == Outcome.BAD.value:
        return
    yield from _ask(profile)
    yield check_signing_key(profile)


def check_files(profile: Profile) -> Finding:
    """Say whose certificate the profile's is, if it can be used; a warning where there is none to be had."""
    try:
        if profile.tls is not None:
            holder = profile.tls.check(now=time.time()).identity
            if holder.federation != profile.federation:
                found = f"certificate of {holder}, and the profile is for federation {profile.federation!r}"
                return _bad("files", found, "mend `federation` in the profile, or take that federation's certificate")
            return _good("files", f"certificate of {holder}")
        require_loopback(split_address(profile.address)[0])
    except ConfigurationError as error:
        return _bad("files", str(error), "mend the file or the clock, or ask your operator to issue a certificate")
    advice = "for trials only: anybody on this machine can say so; without `insecure_user` certificates are used"
    return _warn("files", f"no certificate: we say that we are {profile.claimed_identity}", advice)


def check_reachable(address: str) -> Finding:
    """Say whether the host of `address` resolves and its port accepts a connection within 5 seconds."""
    try:
        with socket.create_connection(split_address(address), timeout=5):
            return _good("reachable", f"{address} accepts connections")
    except ConfigurationError as error:
        return _bad("reachable", str(error), "mend `address` in the profile")
    except (OSError, ValueError) as error:
        what = getattr(error, "strerror", None) or str(error)
        return _bad(
            "reachable", f"{address}: {what}", "check address, name resolution, firewall, and that the director runs"
        )


def _ask(profile: Profile) -> Iterator[Finding]:
    answer = _describe(profile.model_copy(update={"timeout_s": min(PATIENCE_S, profile.timeout_s)}))
    reached = _good("reachable", f"{profile.address} accepts connections")
    if isinstance(answer, TransportError | ConfigurationError):
        reached = check_reachable(profile.address)
        if reached.outcome == Outcome.GOOD.value:
            answer = _describe(profile)  # it may only be slow
    yield reached
    if reached.outcome == Outcome.BAD.value:
        return
    if isinstance(answer, FederationError):
        yield _refused(answer, profile)
        return
    reply, before, after = answer
    if profile.tls is not None:
        yield _good("certificate chain", f"mutual TLS with {profile.server_name}")
    yield check_identity(reply, profile)
    yield check_clock(reply.now, before, after)
    yield from check_expiry("our certificate", reply.caller_expires_at, after)
    yield from check_expiry("director's certificate", reply.certificate_expires_at, after)
    yield check_version(reply)


def _describe(profile: Profile) -> tuple[pb.DescribeReply, float, float] | FederationError:
    """Return what the director says of itself and us, with our clock before and after, Unix seconds; or what failed."""
    try:
        with Federation.connect(profile) as federation:
            before = time.time()
            reply = federation.describe()
            return reply, before, time.time()
    except FederationError as error:
        return error


def _refused(error: FederationError, profile: Profile) -> Finding:
    """Say what a call that did not come about, over an address that can be reached, tells."""
    if not isinstance(error, TransportError):
        return _bad("identity", str(error), "ask your operator which certificate you should use")
    clock = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
    return _bad(
        "certificate chain",
        str(error),
        f"the director must present {profile.server_name}, both certificates must come from {profile.authority}, "
        f"and neither may have expired by either clock: this machine's says {clock} UTC",
    )


def check_identity(reply: pb.DescribeReply, profile: Profile) -> Finding:
    """Say whether the director is of our federation and takes us for somebody whom it serves."""
    if reply.federation != profile.federation:
        found = f"the director is of federation {reply.federation!r}"
        return _bad("identity", found, "mend `federation` in the profile")
    if Identity.parse(reply.caller).role not in (Role.USER, Role.OPERATOR):
        advice = "the commands are for users and operators: ask your operator for `federation pki issue user NAME`"
        return _bad("identity", f"the director takes us for {reply.caller}", advice)
    return _good("identity", f"the director takes us for {reply.caller}")


def check_clock(theirs: float, before: float, after: float) -> Finding:
    """Compare the director's clock with ours, read before and after its answer; Unix seconds."""
    # The director's clock was read somewhere between the two readings of ours.
    skew = theirs - after if theirs > after else theirs - before if theirs < before else 0.0
    if abs(skew) <= CLOCK_TOLERANCE_S:
        return _good("clock", f"within {CLOCK_TOLERANCE_S:g} s of the director's")
    side = "behind" if skew > 0 else "ahead of"
    return _warn("clock", f"{abs(skew):.0f} s {side} the director's", "synchronise this machine's clock (NTP)")


def check_expiry(what: str, expires_at: float, now: float) -> Iterator[Finding]:
    """Say how long a certificate lives; nothing if the director did not say when it ends (0)."""
    if not expires_at:
        return
    days = (expires_at - now) / 86400
    if expires_at - now < EXPIRY_WARNING_S:
        advice = "renew it: `federation pki renew` if it is ours, else its holder must"
        yield _warn(what, f"expires in {days:.1f} days", advice)
    else:
        yield _good(what, f"valid for {days:.0f} days")


def check_version(reply: pb.DescribeReply) -> Finding:
    """Say whether we and the director share a protocol version."""
    try:
        version = negotiate(reply.protocol, peer="director", us="client")
    except FederationError as error:
        return _bad("protocol", str(error), "update the older side")
    return _good("protocol", f"version {version}, director runs {reply.protocol.software}")


def check_signing_key(profile: Profile) -> Finding:
    """Say whether there is a usable signing key, and its fingerprint."""
    if not profile.signing_key.exists():
        advice = f"`federation pki signing-key {profile.signing_key}`, then have the silos pin its fingerprint"
        return _warn("signing key", f"none at {profile.signing_key}: nothing can be submitted", advice)
    try:
        return _good("signing key", fingerprint_of_file(profile.signing_key))
    except ConfigurationError as error:
        return _bad("signing key", str(error), "restore the key from your backup, or make and pin a new one")

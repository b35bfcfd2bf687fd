"""What can be said of a director without starting it: `director --check`, and what it warns of at its start."""

from __future__ import annotations

from typing import TYPE_CHECKING

from director.identity import identify
from director.store.database import check_url
from federation.runtime.clock import SystemClock

if TYPE_CHECKING:
    from director.config import DirectorSettings


def check(settings: DirectorSettings) -> list[str]:
    """Check what can be checked without starting, and return what was found, for people.

    Raises:
        ConfigurationError: what is wrong.
    """
    clock = SystemClock()
    identity = identify(settings, clock)
    tls, authority, revoked = identity.tls, identity.authority, identity.revoked
    lines = [f"federation {settings.federation}, listening at {settings.listen.host}:{settings.listen.port}"]
    if tls is not None and authority is not None:
        days = (tls.facts().expires_at - clock.now()) / 86400
        lines.append(f"certificate of {tls.facts().identity} is valid for {days:.0f} more days")
        lines.append(f"certificate authority is valid for {(authority.expires_at - clock.now()) / 86400:.0f} more days")
        lines.append(f"{len(revoked) if revoked else 0} certificates are revoked")
    else:
        lines.append("INSECURE: no TLS, loopback only")
    lines.append(f"database is {check_url(settings.database_url)}")
    lines.append(f"at most {settings.aggregators.max_running} experiments run at once")
    if without := without_lines(settings):
        lines.append(without)
    return lines


def without_lines(settings: DirectorSettings) -> str:
    """Say that large payloads have no ports to travel faster at, and what to do; empty if they have, or without TLS."""
    section = settings.aggregators
    if settings.listen.insecure or section.bulk_ports is not None:
        return ""
    return (
        f"large payloads travel inside calls, which is slower: aggregators may use ports {section.first_port} to "
        f"{section.last_port} and no others; name a second range, bulk_first_port and bulk_last_port of [aggregators], "
        "and open it in the firewall"
    )

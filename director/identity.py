"""Who the director is: its certificate, the authority it issues with, and what it has revoked, checked at the start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from federation.errors import ConfigurationError
from federation.names import Role
from federation.pki.authority import CertificateAuthority
from federation.pki.revocation import RevocationList
from federation.transport.credentials import TlsFiles

if TYPE_CHECKING:
    from director.config import DirectorSettings
    from federation.runtime.clock import Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectorIdentity:
    """Who the director is; all None where it runs without TLS."""

    tls: TlsFiles | None = None
    authority: CertificateAuthority | None = None
    revoked: RevocationList | None = None

    def expires_at(self) -> float:
        """End of the director's own certificate, Unix seconds; 0 without one. Read anew: files are replaced."""
        return self.tls.facts().expires_at if self.tls else 0.0

    def revoked_serials(self) -> list[str]:
        """Serial numbers of revoked certificates, hex."""
        return [f"{serial:x}" for serial in sorted(self.revoked.serials)] if self.revoked else []


def identify(settings: DirectorSettings, clock: Clock) -> DirectorIdentity:
    """Read who the director is.

    Raises:
        ConfigurationError: certificate or authority cannot be read, or are not of this federation's director.
    """
    if settings.listen.insecure:
        return DirectorIdentity()
    section = settings.tls
    tls = TlsFiles(authority=section.authority, certificate=section.certificate, key=section.key)
    holder = tls.check(now=clock.now()).identity
    if holder.federation != settings.federation or holder.role is not Role.DIRECTOR:
        raise ConfigurationError(
            f"certificate {section.certificate} is of {holder}, expected a director of {settings.federation!r}: "
            "issue one with `federation pki issue director`"
        )
    authority = CertificateAuthority.load(section.ca)
    if authority.federation != settings.federation:
        raise ConfigurationError(f"the authority in {section.ca} is of federation {authority.federation!r}")
    return DirectorIdentity(tls=tls, authority=authority, revoked=RevocationList(section.revoked))

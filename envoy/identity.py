"""Who this site is and how it reaches the director: read from its certificate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from federation.errors import ConfigurationError
from federation.names import FederationName, Identity, Role, SiteName, director_server_name
from federation.transport.channels import open_channel
from federation.transport.credentials import TlsFiles
from federation.transport.methods import Stub
from federation.v1 import director_pb2

if TYPE_CHECKING:
    import grpc

    from envoy.config import EnvoySettings

_SERVICE = director_pb2.DESCRIPTOR.services_by_name["Director"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteIdentity:
    """This site.

    Attributes:
        federation: its federation.
        site: its name.
        tls: certificate files; None towards an insecure director on this machine.
    """

    federation: FederationName
    site: SiteName
    tls: TlsFiles | None

    @property
    def identity(self) -> Identity:
        """The identity our certificate says, or, without one, claims."""
        return Identity(federation=self.federation, role=Role.ENVOY, name=self.site)

    def expires_at(self) -> float:
        """When the certificate expires, Unix seconds; 0 without one or if it cannot be read now."""
        if self.tls is None:
            return 0.0
        try:
            return self.tls.facts().expires_at
        except ConfigurationError:
            return 0.0

    def open_director(self, address: str) -> grpc.aio.Channel:
        """Open a channel to the director with the certificate files as they are now.

        Raises:
            ConfigurationError: files or address are not usable.
        """
        return open_channel(address, server_name=director_server_name(self.federation), tls=self.tls)

    def director_stub(self, channel: grpc.aio.Channel) -> Stub:
        """Make the director's calls over a channel."""
        return Stub(channel, _SERVICE, identity=self.identity if self.tls is None else None)


def read_identity(settings: EnvoySettings, *, now: float) -> SiteIdentity:
    """Find out who this site is.

    Args:
        settings: the owner's.
        now: Unix time, seconds; an expired certificate is refused here rather than by everyone later.

    Raises:
        ConfigurationError: files are missing, do not fit together, or are no envoy's of this federation.
    """
    federation = FederationName(settings.federation)
    if settings.insecure_site is not None:
        return SiteIdentity(federation=federation, site=SiteName(settings.insecure_site), tls=None)
    tls = TlsFiles(authority=settings.authority, certificate=settings.certificate, key=settings.key)
    identity = tls.check(now=now).identity
    if identity.role is not Role.ENVOY or identity.federation != federation:
        raise ConfigurationError(
            f"certificate {settings.certificate} is for {identity}, expected an envoy of federation {federation!r}; "
            "ask the federation's operator for `federation pki issue envoy NAME`"
        )
    return SiteIdentity(federation=federation, site=SiteName(identity.name), tls=tls)

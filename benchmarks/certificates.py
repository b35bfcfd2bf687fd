"""Certificates for the bare sockets, from the project's own authority: both sides of a ratio use the same kind."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from federation.names import FederationName, Identity, Role
from federation.pki.authority import CertificateAuthority, issue_identity

if TYPE_CHECKING:
    from pathlib import Path

SITES_FOLDER = "sites"
_NAME = FederationName("bench")


def make_certificates(folder: Path, sites: int) -> None:
    """Issue a director certificate in ``director`` and one per site in ``sites/site-N`` below `folder`."""
    now = time.time()
    authority = CertificateAuthority.create(_NAME, folder / "ca", now=now)
    director = Identity(federation=_NAME, role=Role.DIRECTOR, name="director")
    issue_identity(authority, director, folder / "director", now=now)
    for index in range(sites):
        site = Identity(federation=_NAME, role=Role.ENVOY, name=f"site-{index}")
        issue_identity(authority, site, folder / SITES_FOLDER / site.name, now=now)

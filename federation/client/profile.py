"""Which federation to talk to, and as whom: the client's profile.

A profile is a TOML file, by default ``client.toml`` in the folder the environment variable ``FEDERATION_HOME`` names,
or in ``~/.config/federation``. Every key can be given as an environment variable instead, such as
``FEDERATION_ADDRESS``; paths are relative to the file. Where no file is named and none is there, the environment alone
does, if it says federation and address; paths are then relative to the working directory. The certificate says who the
user is; no key in here does, but for `insecure_user` towards a director of this machine that runs without certificates.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from federation.errors import ConfigurationError, InvalidNameError
from federation.names import FederationName, Identity, Role, check_name, director_server_name
from federation.runtime.settings import load_settings
from federation.transport.credentials import TlsFiles

_NOT_SETTINGS = frozenset({"FEDERATION_HOME", "FEDERATION_PROFILE"})
"""Variables that say where the profile is; the settings' loader would warn of them."""
_SAID_BY_ENVIRONMENT = frozenset({"FEDERATION_FEDERATION", "FEDERATION_ADDRESS"})
"""All that has no default."""


def _named(what: str) -> AfterValidator:
    def check(text: str) -> str:
        try:
            return check_name(text, what)
        except InvalidNameError as error:
            raise ValueError(str(error)) from error  # pydantic gathers ValueErrors and names the place

    return AfterValidator(check)


class Profile(BaseSettings):
    """Where the director is and which files prove who we are."""

    model_config = SettingsConfigDict(env_prefix="FEDERATION_", extra="forbid", frozen=True)

    federation: Annotated[str, _named("federation name")] = Field(
        description="Name of the federation, as in its certificates."
    )
    address: str = Field(description="Director's `host:port`.")
    insecure_user: Annotated[str, _named("user name")] | None = Field(
        default=None,
        description="User name towards a director of this machine that runs without certificates "
        "(`insecure = true` in its `[listen]`). Default: not set, certificates are used.",
    )
    authority: Path = Field(default=Path("ca.pem"), description="Certificate of the federation's authority, PEM.")
    certificate: Path = Field(default=Path("cert.pem"), description="Our certificate (role user or operator), PEM.")
    key: Path = Field(default=Path("key.pem"), description="Private key of the certificate, PEM.")
    signing_key: Path = Field(
        default=Path("signing.key"),
        description="Our private signing key, PEM: signs bundles, is pinned by silos, never leaves this machine.",
    )
    project: Annotated[str, _named("project")] = Field(
        default="default", description="Project new experiments belong to, unless they name one."
    )
    timeout_s: float = Field(
        default=30.0,
        gt=0,
        description="Seconds a single call may take before it is given up; streams are not limited.",
    )

    @property
    def tls(self) -> TlsFiles | None:
        """Files of our side of mutual TLS; None without certificates, towards this machine only."""
        if self.insecure_user is not None:
            return None
        return TlsFiles(authority=self.authority, certificate=self.certificate, key=self.key)

    @property
    def claimed_identity(self) -> Identity | None:
        """Who we say we are where no certificate says it; None with certificates."""
        if self.insecure_user is None:
            return None
        return Identity(federation=FederationName(self.federation), role=Role.USER, name=self.insecure_user)

    @property
    def server_name(self) -> str:
        """Name the director's certificate must carry."""
        return director_server_name(FederationName(self.federation))


def default_profile_path() -> Path:
    """Return where the profile is looked for when none is named."""
    home = os.environ.get("FEDERATION_HOME")
    return (Path(home) if home else Path.home() / ".config" / "federation") / "client.toml"


def load_profile(path: Path | None = None) -> Profile:
    """Read a profile.

    Args:
        path: profile file, or a folder that holds ``client.toml``; None: the default place.

    Raises:
        ConfigurationError: there is none, or it is not valid; says how to make one.
    """
    environ = {name: value for name, value in os.environ.items() if name not in _NOT_SETTINGS}
    chosen = path or default_profile_path()
    if chosen.is_dir():
        chosen = chosen / "client.toml"
    if not chosen.exists():
        if path is None and _SAID_BY_ENVIRONMENT <= environ.keys():
            return load_settings(Profile, None, environ)
        raise ConfigurationError(
            f"no client profile at {chosen}: name one with --profile or FEDERATION_HOME, set "
            "FEDERATION_FEDERATION and FEDERATION_ADDRESS, or ask your operator for a folder made by `federation pki "
            "issue user NAME` and write client.toml into it (see the README)"
        )
    return load_settings(Profile, chosen, environ)

"""What a silo's owner sets: ``envoy.toml``, overridden by ``ENVOY_…`` variables.

Every setting has its meaning, unit and default here, in its description; ``envoy settings`` prints them. Relative
paths are relative to the file. The site's name is no setting: it is in the certificate.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from envoy.admission import Policy
from federation.collaborator.config import ShardSettings, TrainerOptions
from federation.errors import ConfigurationError, InvalidNameError
from federation.names import check_name
from federation.runtime.settings import load_settings
from federation.transport.channels import require_loopback, split_address

_MIB = 1 << 20


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _factory(text: str) -> str:
    module, _, name = text.partition(":")
    if not module or not name.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise ValueError(f"factory {text!r} must have the form module:Class")
    return text


def _named(what: str) -> AfterValidator:
    def check(text: str) -> str:
        try:
            return check_name(text, what)
        except InvalidNameError as error:
            raise ValueError(str(error)) from error  # pydantic gathers ValueErrors and names the place

    return AfterValidator(check)


class ShardSection(_Section):
    """``[[shards]]``: one data set this site offers."""

    name: Annotated[str, _named("shard name")] = Field(description="Name of the shard, unique at this site.")
    kind: Annotated[str, _named("shard kind")] = Field(
        description="What experiments ask for; agree on it with the other sites."
    )
    factory: Annotated[str, AfterValidator(_factory)] = Field(
        description="module:Class that gives the data; imported in a confined trainer only."
    )
    options: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments of the factory.")
    paths: list[Path] = Field(
        default_factory=list,
        description="Files and folders the factory reads. A confined trainer sees these, read-only, and nothing else "
        "of the site.",
    )


class TrainerSection(_Section):
    """``[trainer]``: where experiment code runs, and how confined."""

    interpreter: Path = Field(
        default=Path(sys.executable),
        description="Python that has torch and what the shard factories need. Default: the envoy's own.",
    )
    python_path: list[Path] = Field(
        default_factory=list,
        description="Folders a trainer imports shard factories from, read-only. Default: none, factories are installed "
        "packages.",
    )
    sandbox: Literal["required", "auto", "none"] = Field(
        default="auto",
        description="required: no trainer without bubblewrap. auto: bubblewrap where it is installed, else a warning "
        "that says what is weaker. none: never.",
    )
    memory_bytes: int | None = Field(
        default=None, ge=1 << 20, description="Memory a trainer may use, bytes. Default: no limit."
    )
    open_files: int | None = Field(
        default=4096, ge=16, description="File descriptors a trainer may open. Default: 4096."
    )
    processes: int | None = Field(
        default=None, ge=1, description="Processes a trainer may have, data loaders included. Default: no limit."
    )
    max_deaths: int = Field(
        default=6,
        ge=1,
        description="Times a trainer may die in a row under one task, each followed by a longer pause, before this "
        "site takes no more part in the experiment. Default: 6, within 8 to 15 seconds and six starts.",
    )


class PolicySection(_Section):
    """``[policy]``: what may run here and what may leave. An empty list allows all."""

    allowed_users: list[str] = Field(default_factory=list, description="Users who may run experiments here.")
    trust: Literal["pinned", "director"] = Field(
        default="pinned",
        description="pinned: a bundle signed with a key that known.toml does not list waits for approval. director: "
        "the director's word on who submitted suffices, which a dishonest director could abuse.",
    )
    known: Path = Field(
        default=Path("known.toml"), description="Pinned key fingerprints; made by `federation pki pin`, may be missing."
    )
    manual_approval: bool = Field(default=False, description="Every experiment waits for `envoy approve`.")
    max_rounds: int | None = Field(default=None, ge=1, description="Most rounds of a plan. Default: no limit.")
    allowed_rules: list[str] = Field(default_factory=list, description="Aggregation rules a plan may use.")
    allowed_bundles: list[str] = Field(
        default_factory=list, description="SHA-256 of bundle archives that may run, 64 hex digits each."
    )
    max_experiments: int = Field(default=4, ge=1, description="Experiments at a time. Default: 4.")
    release_logs: bool = Field(
        default=False, description="Send what trainers print to the submitter. Default: it stays here."
    )
    release_tracebacks: bool = Field(
        default=False, description="Tell the submitter tracebacks, not only the error's class. Default: no."
    )


class MetricsSection(_Section):
    """``[metrics]``: the address for Prometheus, health checks and discovery."""

    host: str = Field(default="127.0.0.1", description="Address to bind; it has no authentication. Default: loopback.")
    port: int = Field(default=0, ge=0, le=65535, description="Port; 0 lets the system choose. Default: 0.")


class LimitsSection(_Section):
    """``[limits]``: what the site spends on an experiment."""

    max_bundle_bytes: int = Field(
        default=64 * _MIB,
        ge=1,
        description="Largest bundle this site fetches, as an archive and unpacked, bytes. Default: 64 MiB.",
    )
    max_restarts: int = Field(
        default=5, ge=0, description="Restarts of a crashed collaborator without a round in between. Default: 5."
    )
    describe_s: float = Field(
        default=300.0, gt=0, description="Seconds a trainer may take to load and describe the shards. Default: 300."
    )
    orphan_s: float = Field(
        default=600.0, gt=0, description="Seconds a collaborator goes on without its envoy. Default: 600."
    )
    drain_s: float = Field(
        default=30.0, ge=0, description="Seconds a task in progress may still take after SIGTERM. Default: 30."
    )


class EnvoySettings(BaseSettings):
    """All settings of an envoy."""

    model_config = SettingsConfigDict(env_prefix="ENVOY_", env_nested_delimiter="__", extra="forbid", frozen=True)

    federation: Annotated[str, _named("federation name")] = Field(
        description="Name of the federation, as in its certificates."
    )
    director: str = Field(description="host:port of the director.")
    insecure_site: Annotated[str, _named("site name")] | None = Field(
        default=None,
        description="Site name of an envoy without certificates: only for a director on this machine whose `[listen]` "
        "says `insecure = true`. Default: not set, certificates are used.",
    )
    authority: Path = Field(default=Path("ca.pem"), description="CA certificate, PEM. Default: ca.pem.")
    certificate: Path = Field(default=Path("cert.pem"), description="This site's certificate, PEM. Default: cert.pem.")
    key: Path = Field(default=Path("key.pem"), description="Its private key, PEM. Default: key.pem.")
    renew: bool = Field(
        default=True,
        description="Renew the certificate when two thirds of its life are over; needs leave to write key, certificate "
        "and their folders. Default: yes.",
    )
    state: Path = Field(
        default=Path("state"), description="Folder for all this envoy keeps, on a local disk. Default: state."
    )
    keep_workspaces: bool = Field(
        default=False, description="Keep bundle, workspace and trainer log of ended experiments. Default: no."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least level of a log line. Default: info."
    )
    shards: list[ShardSection] = Field(min_length=1, description="The data sets this site offers.")
    trainer: TrainerSection = Field(default_factory=TrainerSection, description="Where experiment code runs.")
    policy: PolicySection = Field(default_factory=PolicySection, description="What may run and what may leave.")
    metrics: MetricsSection = Field(default_factory=MetricsSection, description="Prometheus and health address.")
    limits: LimitsSection = Field(default_factory=LimitsSection, description="What an experiment may cost.")

    @model_validator(mode="after")
    def _is_consistent(self) -> EnvoySettings:
        names = [shard.name for shard in self.shards]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(f"shard names must be unique; more than once: {', '.join(doubled)}")
        if self.insecure_site is not None:
            try:
                require_loopback(split_address(self.director)[0])
            except ConfigurationError as error:  # pydantic gathers ValueErrors and names the place
                raise ValueError(f"insecure_site: {error}") from error
        return self

    @property
    def admission_policy(self) -> Policy:
        """The policy as `envoy.admission` takes it."""
        policy = self.policy
        return Policy(
            allowed_users=frozenset(policy.allowed_users),
            max_rounds=policy.max_rounds,
            allowed_rules=frozenset(policy.allowed_rules),
            allowed_bundles=frozenset(digest.lower() for digest in policy.allowed_bundles),
            trust_pinned=policy.trust == "pinned",
            manual_approval=policy.manual_approval,
            max_experiments=policy.max_experiments,
        )

    @property
    def shard_settings(self) -> tuple[ShardSettings, ...]:
        """The shards as a collaborator takes them."""
        return tuple(
            ShardSettings(
                name=shard.name,
                kind=shard.kind,
                factory=shard.factory,
                options=shard.options,
                paths=tuple(shard.paths),
            )
            for shard in self.shards
        )

    @property
    def trainer_options(self) -> TrainerOptions:
        """How trainers run, as a collaborator takes it."""
        return TrainerOptions.model_validate(self.trainer.model_dump())


def read_settings(path: Path | None) -> EnvoySettings:
    """Read and check the settings.

    Raises:
        ConfigurationError: the file cannot be read, a key is unknown (the nearest valid one is named), or a value is
        bad.
    """
    return load_settings(EnvoySettings, path)

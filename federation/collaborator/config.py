"""What the envoy fixes for one collaborator: a JSON file, written once, read once at the start.

The envoy has verified the bundle and taken the spec out of the signed manifest; the collaborator compares everything
the aggregator says with that spec. Nothing in this file is secret: it names key files, it does not hold keys.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from federation.errors import ConfigurationError
from federation.names import ExperimentId, FederationName, SiteName, check_name


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ShardSettings(_Frozen):
    """One shard as its owner configured it.

    Attributes:
        name: unique at this site.
        kind: what experiments ask for.
        factory: ``module:Class``, imported in a trainer only.
        options: keyword arguments of the factory.
        paths: files and folders the factory reads; the only ones of the silo the sandbox shows it, read-only.
    """

    name: str
    kind: str
    factory: str
    options: dict[str, Any] = Field(default_factory=dict)
    paths: tuple[Path, ...] = ()


class TrainerOptions(_Frozen):
    """How trainers run at this site.

    Attributes:
        interpreter: Python that has torch and whatever the site's factories need.
        python_path: folders it imports shard factories from, read-only.
        sandbox: ``required``: no trainer without bubblewrap; ``auto``: with it if it is there; ``none``: never.
        memory_bytes: memory a trainer may use, bytes; None: no limit.
        open_files: file descriptors a trainer may open; None: no limit of ours.
        processes: processes a trainer may have; None: no limit of ours.
        max_deaths: deaths in a row under one task after which the site takes no more part in its experiment.
    """

    interpreter: Path
    python_path: tuple[Path, ...] = ()
    sandbox: Literal["required", "auto", "none"] = "auto"
    memory_bytes: int | None = Field(default=None, ge=1)
    open_files: int | None = Field(default=None, ge=16)
    processes: int | None = Field(default=None, ge=1)
    max_deaths: int = Field(default=6, ge=1)


class CollaboratorConfig(_Frozen):
    """All a collaborator needs to know.

    Attributes:
        federation: federation the certificates belong to.
        site: this site's name.
        experiment: the experiment's id.
        authority: CA certificate, PEM; None for an insecure federation on one machine.
        certificate: the site's certificate, PEM.
        key: its key, PEM.
        aggregator_address: ``host:port`` to dial first; the envoy may send a newer one.
        aggregator_server_name: name in the aggregator's certificate.
        spec_file: the spec of the verified manifest, canonical JSON.
        initial_model: SHA-256 of the first model's federated tensors, hex, as signed; the first model must be it.
        initial_base: SHA-256 of its local tensors, hex, as signed.
        bundle_folder: the unpacked, verified bundle.
        folder: this collaborator's own state; no trainer sees it.
        workspace: the trainer's own folder: what it keeps between rounds.
        exchange: folder of tensor files that collaborator and trainer share.
        trainer_log: file a trainer's output goes to; stays at the site unless released.
        shards: shards to train on, offered as one.
        trainer: how trainers run.
        hidden: keys and state that no trainer may see, even below something it may.
        envoy_socket: the envoy's local socket.
        orphan_s: seconds this process goes on without its envoy, then it ends itself.
        drain_s: seconds a task in progress may still take once a stop was asked for.
        prepare_s: seconds a trainer may take to load bundle, shards and model; None for no limit.
        release_tracebacks: tell the aggregator the trainer's tracebacks, not only the class.
        metrics_host: address ``/metrics`` binds to; the port is chosen by the system.
        log_level: least level of a log line.
    """

    federation: FederationName
    site: SiteName
    experiment: ExperimentId
    authority: Path | None
    certificate: Path | None
    key: Path | None
    aggregator_address: str
    aggregator_server_name: str
    spec_file: Path
    initial_model: str = Field(pattern=r"^[0-9a-f]{64}$")
    initial_base: str = Field(pattern=r"^[0-9a-f]{64}$")
    bundle_folder: Path
    folder: Path
    workspace: Path
    exchange: Path
    trainer_log: Path
    shards: tuple[ShardSettings, ...] = Field(min_length=1)
    trainer: TrainerOptions
    hidden: tuple[Path, ...] = ()
    envoy_socket: Path
    orphan_s: float = Field(default=600.0, gt=0)
    drain_s: float = Field(default=30.0, ge=0)
    prepare_s: float | None = Field(default=None, gt=0)
    release_tracebacks: bool = False
    metrics_host: str = "127.0.0.1"
    log_level: str = "info"

    @classmethod
    def read(cls, path: Path) -> CollaboratorConfig:
        """Read the file the envoy wrote.

        Raises:
            ConfigurationError: it cannot be read, or says something this version does not understand.
        """
        try:
            config = cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise ConfigurationError(f"collaborator config {path} is not usable: {error}") from error
        check_name(config.site, "site name")
        check_name(config.experiment, "experiment id")
        return config

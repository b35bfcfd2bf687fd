"""What the director fixes for one aggregator: a JSON file, written before each start, read once."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from federation.errors import ConfigurationError, InvalidNameError
from federation.names import Epoch, ExperimentId, FederationName, SiteName, check_name


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TlsPaths(_Frozen):
    """Certificate files, PEM: the authority's certificate, the aggregator's own, its key."""

    authority: Path
    certificate: Path
    key: Path


class FixedSite(_Frozen):
    """A site of a fixed roster, and the most examples it may claim."""

    site: SiteName
    train_examples: int = Field(ge=1)
    validation_examples: int = Field(ge=0)


class AggregatorConfig(_Frozen):
    """All an aggregator needs to know.

    Attributes:
        federation: federation the certificates belong to.
        experiment: experiment to run.
        epoch: grant of the experiment to this process; higher than any before it.
        folder: journal, spool and checkpoints; on a local disk. Exists. ``spec.json`` and ``initial.safetensors`` are
            taken from here if they are there, and fetched from the director if not.
        tls: certificate files; None for plaintext on loopback.
        director_address: ``host:port`` of the director; None to run without one, from `roster` (tests, benchmarks).
        director_server_name: name in the director's certificate; empty for the federation's usual one.
        roster: sites that may take part, where no director says so.
        listen_host: address to listen at for collaborators.
        ports: first and last port to listen at, tried in order after the one used before; (0, 0): any free one.
        bulk_ports: likewise, where lines for large payloads are taken (`federation.transport.bulk`); None: nowhere.
        advertised_host: host that collaborators dial; None: `listen_host`.
        monitoring_host: address ``/metrics`` binds to.
        monitoring_port: its port; 0: any free one.
        orphan_s: seconds this process goes on without its director, then it ends itself.
        site_grace_s: seconds a site whose session was cut may take to come back before it counts as lost.
        stop_grace_s: seconds calls may take to finish once the aggregator stops.
        threads: threads for hashing, checking and file access.
        log_level: least level of a log line: DEBUG, INFO, WARNING or ERROR.
    """

    federation: FederationName
    experiment: ExperimentId
    epoch: Epoch = Field(ge=1)
    folder: Path
    tls: TlsPaths | None
    director_address: str | None
    director_server_name: str = ""
    roster: tuple[FixedSite, ...] = ()
    listen_host: str = "127.0.0.1"
    ports: tuple[int, int] = (0, 0)
    bulk_ports: tuple[int, int] | None = (0, 0)
    advertised_host: str | None = None
    monitoring_host: str = "127.0.0.1"
    monitoring_port: int = Field(default=0, ge=0, le=65535)
    orphan_s: float = Field(default=600.0, gt=0)
    site_grace_s: float = Field(default=15.0, ge=0)
    stop_grace_s: float = Field(default=5.0, ge=0)
    threads: int = Field(default=4, ge=1, le=64)
    log_level: str = "INFO"

    @model_validator(mode="after")
    def _is_consistent(self) -> AggregatorConfig:
        for name, (first, last) in (("ports", self.ports), ("bulk_ports", self.bulk_ports or (0, 0))):
            if not 0 <= first <= last <= 65535 or (first == 0) != (last == 0):
                raise ValueError(f"{name} must be a range within 1 to 65535, or 0 and 0 for any; got {first} to {last}")
        try:
            check_name(self.federation, "federation name")
            check_name(self.experiment, "experiment id")
            for row in self.roster:
                check_name(row.site, "site name")
        except InvalidNameError as error:
            raise ValueError(str(error)) from error
        return self

    @classmethod
    def read(cls, path: Path) -> AggregatorConfig:
        """Read the file the director wrote.

        Raises:
            ConfigurationError: it cannot be read, or says something this version does not understand.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise ConfigurationError(f"aggregator config {path} is not usable: {error}") from error

"""What the coordinating party sets: ``director.toml``, overridden by ``DIRECTOR_…`` variables.

Every setting has its meaning, unit and default here, in its description; ``director settings`` prints them. Relative
paths are relative to the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from federation.errors import ConfigurationError, InvalidNameError
from federation.names import FederationName, check_name
from federation.runtime.settings import load_settings
from federation.transport.channels import require_loopback

_MIB = 1 << 20
_GIB = 1 << 30


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _federation(text: str) -> str:
    try:
        return check_name(text, "federation name")
    except InvalidNameError as error:
        raise ValueError(str(error)) from error  # pydantic gathers ValueErrors and names the place


Port = Annotated[int, Field(ge=0, le=65535)]


class ListenSection(_Section):
    """``[listen]``: where users, envoys and aggregators reach the director."""

    host: str = Field(
        default="127.0.0.1", description="Address to bind; 0.0.0.0 for all of this machine. Default: loopback."
    )
    port: Port = Field(
        default=8443,
        description="Port; 0 lets the system choose, for trials: aggregators look for a restarted director where it "
        "was. Default: 8443.",
    )
    insecure: bool = Field(
        default=False,
        description="No TLS, and everybody is who he says: for trials on one machine; binds to loopback only. "
        "Default: no.",
    )


class AggregatorsSection(_Section):
    """``[aggregators]``: the processes that run experiments, and where collaborators reach them."""

    host: str = Field(default="127.0.0.1", description="Address they bind. Default: loopback.")
    advertised_host: str = Field(
        default="",
        description="Host name or address that silos dial, if it is not `host`: what the firewall was told. "
        "Default: `host`.",
    )
    first_port: Port = Field(
        default=0, description="First port of the range they may use; 0 lets the system choose. Default: 0."
    )
    last_port: Port = Field(default=0, description="Last port of the range; with first_port. Default: 0.")
    bulk_first_port: Port = Field(
        default=0,
        description="First port of a second range, for the lines that large payloads travel on. 0: any free port where "
        "first_port is 0 too; else none, and they travel inside calls, which is slower. Default: 0.",
    )
    bulk_last_port: Port = Field(
        default=0, description="Last port of the second range; with bulk_first_port. Default: 0."
    )
    director: str = Field(
        default="",
        description="host:port at which they reach the director, if not at the listening address. Default: that one.",
    )
    max_running: int = Field(default=4, ge=0, description="Experiments that run at once; 0 starts none. Default: 4.")
    max_restarts: int = Field(
        default=5, ge=0, description="Restarts of a crashed aggregator without a round in between. Default: 5."
    )
    memory_bytes: int | None = Field(
        default=None, ge=1 << 26, description="Memory an aggregator may use, bytes. Default: no limit."
    )
    open_files: int | None = Field(
        default=65536, ge=64, description="File descriptors an aggregator may open. Default: 65536."
    )
    orphan_s: float = Field(
        default=600.0, gt=0, description="Seconds an aggregator goes on without its director. Default: 600."
    )
    certificate_days: int = Field(
        default=30,
        ge=1,
        le=3650,
        description="Days an aggregator's certificate is valid; it renews itself. Default: 30.",
    )

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        calls, bulk = (self.first_port, self.last_port), (self.bulk_first_port, self.bulk_last_port)
        self._check_range("port", calls)
        self._check_range("bulk port", bulk)
        if bulk[0] and calls[0] <= bulk[1] and bulk[0] <= calls[1]:
            raise ValueError(
                f"the bulk port range {bulk[0]} to {bulk[1]} overlaps the port range {calls[0]} to {calls[1]}: "
                "an aggregator listens at one of each, so name two ranges apart"
            )
        return self

    def _check_range(self, name: str, ports: tuple[int, int]) -> None:
        first, last = ports
        if bool(first) is not bool(last) or first > last:
            raise ValueError(f"the {name} range is {first} to {last}: give both, the first not above the last")
        if first and last - first + 1 < self.max_running:
            raise ValueError(f"{name}s {first} to {last} are fewer than max_running, {self.max_running}")

    @property
    def bulk_ports(self) -> tuple[int, int] | None:
        """First and last port for the lines of large payloads; (0, 0): any free one; None: there are no lines."""
        if self.first_port and not self.bulk_first_port:
            return None  # a firewall knows the first range and no other
        return self.bulk_first_port, self.bulk_last_port


class TlsSection(_Section):
    """``[tls]``: the director's certificate, made by ``federation pki issue director``."""

    authority: Path = Field(default=Path("ca.pem"), description="CA certificate, PEM. Default: ca.pem.")
    certificate: Path = Field(default=Path("cert.pem"), description="The director's certificate. Default: cert.pem.")
    key: Path = Field(default=Path("key.pem"), description="Its private key, mode 600. Default: key.pem.")
    ca: Path = Field(
        default=Path("ca"),
        description="Folder of the certificate authority (ca.pem, ca.key): the director issues its aggregators' "
        "certificates, enrols envoys and renews. Default: ca.",
    )
    revoked: Path = Field(
        default=Path("revoked.txt"),
        description="Serial numbers of revoked certificates, one in hex per line; followed as it changes, may be "
        "missing. Default: revoked.txt.",
    )


class LimitsSection(_Section):
    """``[limits]``: what a submission may cost."""

    max_bundle_bytes: int = Field(
        default=64 * _MIB, ge=1, description="Largest bundle archive, bytes. Default: 64 MiB."
    )
    max_model_bytes: int = Field(
        default=64 * _GIB, ge=1, description="Largest initial model file, bytes. Default: 64 GiB."
    )
    experiments_per_user: int = Field(
        default=20, ge=1, description="Experiments one user may have that are not over. Default: 20."
    )
    calls_per_identity: int = Field(
        default=64, ge=4, description="Calls one certificate may have open, streams included. Default: 64."
    )
    log_bytes_per_site: int = Field(
        default=16 << 20, ge=0, description="Released log lines kept per experiment and site, bytes. Default: 16 MiB."
    )


class TimesSection(_Section):
    """``[times]``: how long the director waits, seconds."""

    lease_s: float = Field(
        default=15.0,
        ge=1,
        description="Lease on the database; another director can take over this long after this one died. Default: 15.",
    )
    drain_s: float = Field(
        default=20.0, ge=0, description="Time aggregators and calls have to end after SIGTERM. Default: 20."
    )
    end_s: float = Field(
        default=30.0, ge=0, description="Time an aggregator has to leave once its experiment is over. Default: 30."
    )
    restart_s: float = Field(
        default=1.0, gt=0, description="Wait before a crashed aggregator's restart, doubled each time. Default: 1."
    )
    restart_max_s: float = Field(default=60.0, gt=0, description="Longest such wait. Default: 60.")


class MetricsSection(_Section):
    """``[metrics]``: the address for Prometheus, health checks and discovery."""

    host: str = Field(default="127.0.0.1", description="Address to bind; it has no authentication. Default: loopback.")
    port: Port = Field(default=0, description="Port; 0 lets the system choose. Default: 0.")


class DirectorSettings(BaseSettings):
    """All settings of a director."""

    model_config = SettingsConfigDict(env_prefix="DIRECTOR_", env_nested_delimiter="__", extra="forbid", frozen=True)

    federation: Annotated[FederationName, AfterValidator(_federation)] = Field(
        description="Name of the federation, as in its certificates."
    )
    state: Path = Field(
        default=Path("state"),
        description="Folder for all this director keeps, on a local disk: database, artifacts, running experiments. "
        "Default: state.",
    )
    database: str = Field(
        default="",
        description="SQLAlchemy URL; postgresql+psycopg://… needs the 'postgresql' extra. Default: a SQLite file in "
        "`state`.",
    )
    artifacts: str = Field(
        default="", description="Folder or fsspec URL for models and bundles. Default: a folder in `state`."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least level of a log line. Default: info."
    )
    listen: ListenSection = Field(default_factory=ListenSection, description="Where the director is reached.")
    aggregators: AggregatorsSection = Field(
        default_factory=AggregatorsSection, description="The processes that run experiments."
    )
    tls: TlsSection = Field(default_factory=TlsSection, description="Certificates.")
    limits: LimitsSection = Field(default_factory=LimitsSection, description="What a submission may cost.")
    times: TimesSection = Field(default_factory=TimesSection, description="How long the director waits.")
    metrics: MetricsSection = Field(default_factory=MetricsSection, description="Prometheus and health address.")

    @model_validator(mode="after")
    def _is_insecure_on_this_machine_only(self) -> Self:
        if self.listen.insecure:
            for key, host in (("listen.host", self.listen.host), ("aggregators.host", self.aggregators.host)):
                try:
                    require_loopback(host)
                except ConfigurationError as error:  # pydantic gathers ValueErrors and names the place
                    raise ValueError(f"{key}: {error}") from error
        return self

    @property
    def database_url(self) -> str:
        """URL of the database, the default one included."""
        return self.database or f"sqlite:///{self.state / 'director.db'}"

    @property
    def artifacts_url(self) -> str:
        """Folder or URL of the artifact store, the default one included."""
        return self.artifacts or str(self.state / "artifacts")

    @property
    def work(self) -> Path:
        """Folder with one folder per experiment that runs: its aggregator's configuration, journal, spool and log."""
        return self.state / "work"


def read_settings(path: Path | None) -> DirectorSettings:
    """Read and check the settings.

    Raises:
        ConfigurationError: the file cannot be read, a key is unknown (the nearest valid one is named), or a value is
            bad.
    """
    return load_settings(DirectorSettings, path)

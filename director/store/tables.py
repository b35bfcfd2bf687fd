"""The tables: what the director remembers, column by column.

Rules, in order:

1. What is asked of the database is a column; what is only ever handed out whole (maps, shapes) is JSON.
2. What is large and seldom wanted (spec, signed manifest) is deferred: lists of experiments do not load it.
3. Rounds are a projection of an aggregator's journal, keyed by journal sequence, so that storing one twice is harmless.
4. Who is online is not here: that is the set of open sessions and dies with the process.
5. The tables are made by the migrations in `director.migrations`; a test holds both to each other.

Times are Unix seconds, sizes bytes, digests hex.
"""

from __future__ import annotations

from typing import Any, cast

from sqlalchemy import JSON, BigInteger, ForeignKey, ForeignKeyConstraint, Index, Integer, LargeBinary, MetaData
from sqlalchemy import Table as CoreTable
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

_BIG = BigInteger().with_variant(Integer(), "sqlite")  # SQLite counts up only in a column declared INTEGER


class Table(DeclarativeBase):
    """Base of all tables; constraints have fixed names so that migrations can speak of them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {dict[str, Any]: JSON, list[Any]: JSON, int: _BIG, bytes: LargeBinary}  # noqa: RUF012  # SQLAlchemy reads it as a class attribute


def core(mapped: type[Table]) -> CoreTable:
    """Return the table itself, for rows that are written many at a time: mapping them costs more than writing them."""
    return cast("CoreTable", mapped.__table__)


class Experiment(Table):
    """An experiment: what was signed, where it is, and its present aggregator."""

    __tablename__ = "experiments"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    project: Mapped[str] = mapped_column(index=True)
    submitted_by: Mapped[str] = mapped_column(index=True)
    state: Mapped[str] = mapped_column(index=True)
    reason: Mapped[str]
    degraded: Mapped[bool]
    submitted_at: Mapped[float] = mapped_column(index=True)
    changed_at: Mapped[float]
    spec: Mapped[str] = mapped_column(deferred=True)
    """Canonical JSON of the signed `ExperimentSpec`."""
    shard: Mapped[str]
    sites_wanted: Mapped[int]
    minimum_sites: Mapped[int]
    rounds_planned: Mapped[int]
    rounds_done: Mapped[int]
    sample_shape: Mapped[list[Any] | None]
    target_shape: Mapped[list[Any] | None]
    manifest: Mapped[bytes] = mapped_column(deferred=True)
    signature: Mapped[bytes] = mapped_column(deferred=True)
    signing_key: Mapped[bytes] = mapped_column(deferred=True)
    manifest_digest: Mapped[str]
    signing_fingerprint: Mapped[str]
    bundle_bytes: Mapped[int]
    epoch: Mapped[int]
    """Grants of this experiment to an aggregator process so far; 0 before the first."""
    address: Mapped[str]
    metrics_address: Mapped[str]


class Transition(Table):
    """One state change; never updated."""

    __tablename__ = "transitions"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    experiment: Mapped[str] = mapped_column(ForeignKey("experiments.id", ondelete="CASCADE"), index=True)
    state: Mapped[str]
    reason: Mapped[str]
    actor: Mapped[str]
    at: Mapped[float]


class Envoy(Table):
    """An envoy that has attended at least once."""

    __tablename__ = "envoys"

    site: Mapped[str] = mapped_column(primary_key=True)
    software: Mapped[str]
    last_seen_at: Mapped[float]


class Shard(Table):
    """A shard an envoy offers now."""

    __tablename__ = "shards"

    site: Mapped[str] = mapped_column(ForeignKey("envoys.site", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(index=True)
    train_examples: Mapped[int]
    validation_examples: Mapped[int]
    sample_shape: Mapped[list[Any]]
    target_shape: Mapped[list[Any]]
    description: Mapped[str]


class Participation(Table):
    """A site's part in an experiment: that it was asked, and what it answered."""

    __tablename__ = "participations"

    experiment: Mapped[str] = mapped_column(ForeignKey("experiments.id", ondelete="CASCADE"), primary_key=True)
    site: Mapped[str] = mapped_column(primary_key=True, index=True)
    answer: Mapped[str]
    reason: Mapped[str]
    shards: Mapped[list[Any]]
    train_examples: Mapped[int]
    validation_examples: Mapped[int]
    changed_at: Mapped[float]
    quarantined_since: Mapped[int] = mapped_column(default=0)
    quarantine_reason: Mapped[str] = mapped_column(default="")
    releases: Mapped[int] = mapped_column(default=0)


class Round(Table):
    """A committed round, as its aggregator reported it."""

    __tablename__ = "rounds"

    experiment: Mapped[str] = mapped_column(ForeignKey("experiments.id", ondelete="CASCADE"), primary_key=True)
    sequence: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    round: Mapped[int]
    epoch: Mapped[int]
    started_at: Mapped[float]
    seconds: Mapped[float]
    phase_seconds: Mapped[dict[str, Any]]
    train_metrics: Mapped[dict[str, Any]]
    metrics: Mapped[dict[str, Any]]
    model_digest: Mapped[str]
    is_best: Mapped[bool]
    bytes_down: Mapped[int]
    bytes_up: Mapped[int]
    update_norm: Mapped[float]
    simulated_seconds: Mapped[float]
    algorithm_scalars: Mapped[dict[str, Any]]
    total_sites: Mapped[int]
    rule_note: Mapped[str]
    quarantined: Mapped[list[Any]]
    unevaluated: Mapped[dict[str, Any]]


class Contribution(Table):
    """What one site did in one round."""

    __tablename__ = "contributions"
    __table_args__ = (
        ForeignKeyConstraint(["experiment", "sequence"], ["rounds.experiment", "rounds.sequence"], ondelete="CASCADE"),
    )

    experiment: Mapped[str] = mapped_column(primary_key=True)
    sequence: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    site: Mapped[str] = mapped_column(primary_key=True)
    outcome: Mapped[str]
    reason: Mapped[str]
    examples: Mapped[int]
    weight: Mapped[float]
    update_norm: Mapped[float]
    train_seconds: Mapped[float]
    transfer_seconds: Mapped[float]
    bytes_up: Mapped[int]
    bytes_down: Mapped[int]
    train_metrics: Mapped[dict[str, Any]]
    metrics: Mapped[dict[str, Any]]
    update_digest: Mapped[str]
    validation_examples: Mapped[int]
    oracle_calls: Mapped[int]
    peak_memory: Mapped[int]
    staleness: Mapped[int]
    scores: Mapped[dict[str, Any]]


class Artifact(Table):
    """A file in the artifact store that its experiment's owner may download."""

    __tablename__ = "artifacts"

    experiment: Mapped[str] = mapped_column(ForeignKey("experiments.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    bytes: Mapped[int]
    digest: Mapped[str]
    round: Mapped[int]
    stored_at: Mapped[float]


class Event(Table):
    """Something that happened, in the order it is watched; `body` is the serialised wire event without its sequence."""

    __tablename__ = "events"
    __table_args__ = (Index("ix_events_experiment_sequence", "experiment", "sequence"), {"sqlite_autoincrement": True})

    sequence: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    experiment: Mapped[str] = mapped_column(ForeignKey("experiments.id", ondelete="CASCADE"))
    at: Mapped[float]
    kind: Mapped[str]
    body: Mapped[bytes]


class Audit(Table):
    """A decision that admitted or refused something; survives the experiment it is about."""

    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    at: Mapped[float] = mapped_column(index=True)
    actor: Mapped[str]
    action: Mapped[str]
    admitted: Mapped[bool]
    subject: Mapped[str]
    detail: Mapped[str]


class Nonce(Table):
    """Something good for one use: a signed manifest, a join certificate."""

    __tablename__ = "nonces"

    purpose: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str] = mapped_column(primary_key=True)
    used_by: Mapped[str]
    used_at: Mapped[float]


class Lease(Table):
    """Which director owns this database; one row."""

    __tablename__ = "lease"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    holder: Mapped[str]
    epoch: Mapped[int]
    expires_at: Mapped[float]

"""First tables: experiments with what belongs to them, envoys with their shards, audit, nonces and the lease."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_TABLES = (
    "audit",
    "envoys",
    "experiments",
    "lease",
    "nonces",
    "artifacts",
    "events",
    "participations",
    "rounds",
    "shards",
    "transitions",
    "contributions",
)


def upgrade() -> None:
    """Make the tables, those that others refer to first."""
    _create_audit()
    _create_envoys()
    _create_experiments()
    _create_lease()
    _create_nonces()
    _create_artifacts()
    _create_events()
    _create_participations()
    _create_rounds()
    _create_shards()
    _create_transitions()
    _create_contributions()


def downgrade() -> None:
    """Drop them in reverse order."""
    for table in reversed(_TABLES):
        op.drop_table(table)


def _create_audit() -> None:
    op.create_table(
        "audit",
        sa.Column("id", _BIG, autoincrement=True, nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("admitted", sa.Boolean(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("detail", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit"),
    )
    op.create_index("ix_audit_at", "audit", ["at"])


def _create_envoys() -> None:
    op.create_table(
        "envoys",
        sa.Column("site", sa.String(), nullable=False),
        sa.Column("software", sa.String(), nullable=False),
        sa.Column("last_seen_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("site", name="pk_envoys"),
    )


def _create_experiments() -> None:
    op.create_table(
        "experiments",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("project", sa.String(), nullable=False),
        sa.Column("submitted_by", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("degraded", sa.Boolean(), nullable=False),
        sa.Column("submitted_at", sa.Double(), nullable=False),
        sa.Column("changed_at", sa.Double(), nullable=False),
        sa.Column("spec", sa.String(), nullable=False),
        sa.Column("shard", sa.String(), nullable=False),
        sa.Column("sites_wanted", _BIG, nullable=False),
        sa.Column("minimum_sites", _BIG, nullable=False),
        sa.Column("rounds_planned", _BIG, nullable=False),
        sa.Column("rounds_done", _BIG, nullable=False),
        sa.Column("sample_shape", sa.JSON(), nullable=True),
        sa.Column("target_shape", sa.JSON(), nullable=True),
        sa.Column("manifest", sa.LargeBinary(), nullable=False),
        sa.Column("signature", sa.LargeBinary(), nullable=False),
        sa.Column("signing_key", sa.LargeBinary(), nullable=False),
        sa.Column("manifest_digest", sa.String(), nullable=False),
        sa.Column("signing_fingerprint", sa.String(), nullable=False),
        sa.Column("bundle_bytes", _BIG, nullable=False),
        sa.Column("epoch", _BIG, nullable=False),
        sa.Column("address", sa.String(), nullable=False),
        sa.Column("metrics_address", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_experiments"),
    )
    op.create_index("ix_experiments_project", "experiments", ["project"])
    op.create_index("ix_experiments_state", "experiments", ["state"])
    op.create_index("ix_experiments_submitted_at", "experiments", ["submitted_at"])
    op.create_index("ix_experiments_submitted_by", "experiments", ["submitted_by"])


def _create_lease() -> None:
    op.create_table(
        "lease",
        sa.Column("id", _BIG, autoincrement=False, nullable=False),
        sa.Column("holder", sa.String(), nullable=False),
        sa.Column("epoch", _BIG, nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_lease"),
    )


def _create_nonces() -> None:
    op.create_table(
        "nonces",
        sa.Column("purpose", sa.String(), nullable=False),
        sa.Column("value", sa.String(), nullable=False),
        sa.Column("used_by", sa.String(), nullable=False),
        sa.Column("used_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("purpose", "value", name="pk_nonces"),
    )


def _create_artifacts() -> None:
    op.create_table(
        "artifacts",
        sa.Column("experiment", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("bytes", _BIG, nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("round", _BIG, nullable=False),
        sa.Column("stored_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["experiment"], ["experiments.id"], name="fk_artifacts_experiment", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("experiment", "name", name="pk_artifacts"),
    )


def _create_events() -> None:
    op.create_table(
        "events",
        sa.Column("sequence", _BIG, autoincrement=True, nullable=False),
        sa.Column("experiment", sa.String(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["experiment"], ["experiments.id"], name="fk_events_experiment", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("sequence", name="pk_events"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_events_experiment_sequence", "events", ["experiment", "sequence"])


def _create_participations() -> None:
    op.create_table(
        "participations",
        sa.Column("experiment", sa.String(), nullable=False),
        sa.Column("site", sa.String(), nullable=False),
        sa.Column("answer", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("shards", sa.JSON(), nullable=False),
        sa.Column("train_examples", _BIG, nullable=False),
        sa.Column("validation_examples", _BIG, nullable=False),
        sa.Column("changed_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["experiment"], ["experiments.id"], name="fk_participations_experiment", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("experiment", "site", name="pk_participations"),
    )
    op.create_index("ix_participations_site", "participations", ["site"])


def _create_rounds() -> None:
    op.create_table(
        "rounds",
        sa.Column("experiment", sa.String(), nullable=False),
        sa.Column("sequence", _BIG, autoincrement=False, nullable=False),
        sa.Column("round", _BIG, nullable=False),
        sa.Column("epoch", _BIG, nullable=False),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("phase_seconds", sa.JSON(), nullable=False),
        sa.Column("train_metrics", sa.JSON(), nullable=False),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("model_digest", sa.String(), nullable=False),
        sa.Column("is_best", sa.Boolean(), nullable=False),
        sa.Column("bytes_down", _BIG, nullable=False),
        sa.Column("bytes_up", _BIG, nullable=False),
        sa.Column("update_norm", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["experiment"], ["experiments.id"], name="fk_rounds_experiment", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("experiment", "sequence", name="pk_rounds"),
    )


def _create_shards() -> None:
    op.create_table(
        "shards",
        sa.Column("site", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("train_examples", _BIG, nullable=False),
        sa.Column("validation_examples", _BIG, nullable=False),
        sa.Column("sample_shape", sa.JSON(), nullable=False),
        sa.Column("target_shape", sa.JSON(), nullable=False),
        sa.Column("description", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["site"], ["envoys.site"], name="fk_shards_site", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("site", "name", name="pk_shards"),
    )
    op.create_index("ix_shards_kind", "shards", ["kind"])


def _create_transitions() -> None:
    op.create_table(
        "transitions",
        sa.Column("id", _BIG, autoincrement=True, nullable=False),
        sa.Column("experiment", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["experiment"], ["experiments.id"], name="fk_transitions_experiment", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_transitions"),
    )
    op.create_index("ix_transitions_experiment", "transitions", ["experiment"])


def _create_contributions() -> None:
    op.create_table(
        "contributions",
        sa.Column("experiment", sa.String(), nullable=False),
        sa.Column("sequence", _BIG, autoincrement=False, nullable=False),
        sa.Column("site", sa.String(), nullable=False),
        sa.Column("outcome", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("examples", _BIG, nullable=False),
        sa.Column("weight", sa.Double(), nullable=False),
        sa.Column("update_norm", sa.Double(), nullable=False),
        sa.Column("train_seconds", sa.Double(), nullable=False),
        sa.Column("transfer_seconds", sa.Double(), nullable=False),
        sa.Column("bytes_up", _BIG, nullable=False),
        sa.Column("bytes_down", _BIG, nullable=False),
        sa.Column("train_metrics", sa.JSON(), nullable=False),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("update_digest", sa.String(), nullable=False),
        sa.Column("validation_examples", _BIG, nullable=False),
        sa.ForeignKeyConstraint(
            ["experiment", "sequence"],
            ["rounds.experiment", "rounds.sequence"],
            name="fk_contributions_experiment",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("experiment", "sequence", "site", name="pk_contributions"),
    )

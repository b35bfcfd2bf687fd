"""How suspicious updates looked, what the rule said, and which sites are in quarantine or were released."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Add the columns; what is already there had no scores and no quarantine."""
    with op.batch_alter_table("rounds") as rounds:
        rounds.add_column(sa.Column("rule_note", sa.String(), nullable=False, server_default=""))
        rounds.add_column(sa.Column("quarantined", sa.JSON(), nullable=False, server_default="[]"))
    with op.batch_alter_table("contributions") as contributions:
        contributions.add_column(sa.Column("scores", sa.JSON(), nullable=False, server_default="{}"))
    with op.batch_alter_table("participations") as participations:
        participations.add_column(sa.Column("quarantined_since", _BIG, nullable=False, server_default="0"))
        participations.add_column(sa.Column("quarantine_reason", sa.String(), nullable=False, server_default=""))
        participations.add_column(sa.Column("releases", _BIG, nullable=False, server_default="0"))


def downgrade() -> None:
    """Drop them."""
    with op.batch_alter_table("participations") as participations:
        for name in ("releases", "quarantine_reason", "quarantined_since"):
            participations.drop_column(name)
    with op.batch_alter_table("contributions") as contributions:
        contributions.drop_column("scores")
    with op.batch_alter_table("rounds") as rounds:
        for name in ("quarantined", "rule_note"):
            rounds.drop_column(name)

"""Which sites have no part in a round's evaluation, and why."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; of rounds that are already there it is not known."""
    with op.batch_alter_table("rounds") as rounds:
        rounds.add_column(sa.Column("unevaluated", sa.JSON(), nullable=False, server_default="{}"))


def downgrade() -> None:
    """Drop it."""
    with op.batch_alter_table("rounds") as rounds:
        rounds.drop_column("unevaluated")

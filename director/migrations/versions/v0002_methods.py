"""What rounds of methods other than FedAvg report: oracle calls, memory, staleness, N, and the method's own numbers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_COUNTS = ("oracle_calls", "peak_memory", "staleness")


def upgrade() -> None:
    """Add the columns; rounds that are already there get zeros, which is what they would have reported."""
    with op.batch_alter_table("rounds") as rounds:
        rounds.add_column(sa.Column("simulated_seconds", sa.Double(), nullable=False, server_default="0"))
        rounds.add_column(sa.Column("algorithm_scalars", sa.JSON(), nullable=False, server_default="{}"))
        rounds.add_column(sa.Column("total_sites", _BIG, nullable=False, server_default="0"))
    with op.batch_alter_table("contributions") as contributions:
        for name in _COUNTS:
            contributions.add_column(sa.Column(name, _BIG, nullable=False, server_default="0"))


def downgrade() -> None:
    """Drop them."""
    with op.batch_alter_table("contributions") as contributions:
        for name in reversed(_COUNTS):
            contributions.drop_column(name)
    with op.batch_alter_table("rounds") as rounds:
        for name in ("total_sites", "algorithm_scalars", "simulated_seconds"):
            rounds.drop_column(name)

"""Runs and registered models."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "runs",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("folder", sa.Text, nullable=False),
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("finished_at", sa.Double),
        sa.Column("verdict_ship", sa.Boolean),
        sa.Column("sentence", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_runs"),
    )
    op.create_index("ix_runs_key", "runs", ["key"])
    op.create_table(
        "models",
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("base", sa.String(255), nullable=False),
        sa.Column("base_hash", sa.String(64), nullable=False),
        sa.Column("base_folder", sa.Text, nullable=False),
        sa.Column("adapter_folder", sa.Text),
        sa.Column("run_id", sa.String(64)),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_models"),
        sa.ForeignKeyConstraint(
            ["run_id"], ["runs.id"], name="fk_models_run_id", ondelete="SET NULL"
        ),
    )


def downgrade() -> None:
    """Drop the tables."""
    op.drop_table("models")
    op.drop_table("runs")

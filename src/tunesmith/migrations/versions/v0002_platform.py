"""What the API keeps: projects and keys, files and uploads, jobs, completions, webhooks, the audit log."""

from __future__ import annotations

import time

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")
DROPPED = (
    *("audit", "deliveries", "webhooks", "completions", "checkpoint_permissions"),
    *("job_checkpoints", "job_events", "jobs", "upload_parts", "uploads", "files", "keys"),
)


def upgrade() -> None:
    """Make the tables, and the project that everything belonged to so far."""
    made = op.create_table(
        "projects",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_projects"),
        sa.UniqueConstraint("name", name="uq_projects_name"),
    )
    op.bulk_insert(made, [{"id": "default", "name": "default", "created_at": time.time()}])
    with op.batch_alter_table("models") as models:
        models.add_column(sa.Column("project", sa.String(64)))
        models.add_column(sa.Column("job", sa.String(64)))
        models.create_foreign_key("fk_models_project", "projects", ["project"], ["id"])
    _who()
    _what()
    _jobs()
    _answers()


def _table(name: str, *columns: sa.Column[object] | sa.Constraint, id: bool = True) -> None:
    own = [
        sa.Column("id", sa.String(64), nullable=False),
        sa.UniqueConstraint("id", name=f"uq_{name}_id"),
    ]
    op.create_table(
        name,
        sa.Column("seq", BIG, nullable=False, autoincrement=True),
        sa.PrimaryKeyConstraint("seq", name=f"pk_{name}"),
        *(own if id else []),
        *columns,
    )


def _of(
    table: str, column: str, parent: str, *, ondelete: str | None = None
) -> sa.ForeignKeyConstraint:
    name = f"fk_{table}_{column}"
    return sa.ForeignKeyConstraint([column], [f"{parent}.id"], name=name, ondelete=ondelete)


def _index(table: str, *columns: str) -> None:
    for column in columns:
        op.create_index(f"ix_{table}_{column}", table, [column])


def _who() -> None:
    _table(
        "keys",
        sa.Column("project", sa.String(64), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("hint", sa.String(16), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("revoked_at", sa.Double),
        _of("keys", "project", "projects"),
        sa.UniqueConstraint("hash", name="uq_keys_hash"),
    )
    _table(
        "audit",
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("project", sa.String(64), nullable=False),
        sa.Column("key", sa.String(64)),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("subject", sa.String(255), nullable=False),
        sa.Column("request", sa.String(64)),
        id=False,
    )
    _index("keys", "project")


def _what() -> None:
    _table(
        "files",
        sa.Column("project", sa.String(64), nullable=False),
        sa.Column("filename", sa.Text, nullable=False),
        sa.Column("purpose", sa.String(32), nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("expires_at", sa.Double),
        _of("files", "project", "projects"),
    )
    _table(
        "uploads",
        sa.Column("project", sa.String(64), nullable=False),
        sa.Column("filename", sa.Text, nullable=False),
        sa.Column("purpose", sa.String(32), nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("expires_at", sa.Double, nullable=False),
        sa.Column("file_expires_after", sa.BigInteger),
        sa.Column("file", sa.String(64)),
        _of("uploads", "project", "projects"),
    )
    _table(
        "upload_parts",
        sa.Column("upload", sa.String(64), nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        _of("upload_parts", "upload", "uploads", ondelete="CASCADE"),
    )
    _index("files", "project")
    _index("uploads", "project")
    _index("upload_parts", "upload")


def _jobs() -> None:
    _table(
        "jobs",
        sa.Column("project", sa.String(64), nullable=False),
        sa.Column("key", sa.String(64)),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("model", sa.String(255), nullable=False),
        sa.Column("base", sa.String(255), nullable=False),
        sa.Column("training_file", sa.String(64), nullable=False),
        sa.Column("validation_file", sa.String(64)),
        sa.Column("suffix", sa.String(64)),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("method", sa.JSON, nullable=False),
        sa.Column("metadata", sa.JSON),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("error", sa.JSON),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("started_at", sa.Double),
        sa.Column("finished_at", sa.Double),
        sa.Column("estimated_finish", sa.Double),
        sa.Column("trained_tokens", sa.BigInteger),
        sa.Column("fine_tuned_model", sa.String(255)),
        sa.Column("result_file", sa.String(64)),
        sa.Column("worker", sa.String(64)),
        sa.Column("lease_until", sa.Double),
        sa.Column("attempts", sa.Integer, nullable=False),
        _of("jobs", "project", "projects"),
    )
    _table(
        "job_events",
        sa.Column("job", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("level", sa.String(8), nullable=False),
        sa.Column("type", sa.String(16), nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("data", sa.JSON),
        _of("job_events", "job", "jobs"),
    )
    _table(
        "job_checkpoints",
        sa.Column("job", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("model", sa.String(255), nullable=False),
        sa.Column("metrics", sa.JSON, nullable=False),
        _of("job_checkpoints", "job", "jobs"),
    )
    _table(
        "checkpoint_permissions",
        sa.Column("model", sa.String(255), nullable=False),
        sa.Column("project", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.UniqueConstraint("model", "project", name="uq_checkpoint_permissions_model"),
    )
    _index("jobs", "project", "fingerprint", "status")
    _index("job_events", "job")
    _index("job_checkpoints", "job")
    _index("checkpoint_permissions", "model")


def _answers() -> None:
    _table(
        "completions",
        sa.Column("project", sa.String(64), nullable=False),
        sa.Column("model", sa.String(255), nullable=False),
        sa.Column("metadata", sa.JSON),
        sa.Column("messages", sa.JSON, nullable=False),
        sa.Column("body", sa.JSON, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("expires_at", sa.Double, nullable=False),
        _of("completions", "project", "projects"),
    )
    _table(
        "webhooks",
        sa.Column("project", sa.String(64), nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("secret", sa.Text, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        _of("webhooks", "project", "projects"),
    )
    _table(
        "deliveries",
        sa.Column("webhook", sa.String(64), nullable=False),
        sa.Column("body", sa.JSON, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("due_at", sa.Double),
        sa.Column("status", sa.Integer),
        _of("deliveries", "webhook", "webhooks", ondelete="CASCADE"),
    )
    _index("completions", "project", "expires_at")
    _index("webhooks", "project")
    _index("deliveries", "webhook", "due_at")


def downgrade() -> None:
    """Drop the tables."""
    for name in DROPPED:
        op.drop_table(name)
    with op.batch_alter_table("models") as models:
        models.drop_constraint("fk_models_project", type_="foreignkey")
        models.drop_column("project")
        models.drop_column("job")
    op.drop_table("projects")

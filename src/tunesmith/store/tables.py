"""The schema, as the newest migration leaves it."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
    }
)

Big = sa.BigInteger().with_variant(sa.Integer, "sqlite")
"""SQLite counts up only what it calls INTEGER."""
Json = sa.JSON(none_as_null=True)


def _order() -> sa.Column[int]:
    """The order in which rows came: what pages go by."""
    return sa.Column("seq", Big, primary_key=True, autoincrement=True)


def _id() -> sa.Column[str]:
    return sa.Column("id", sa.String(64), nullable=False, unique=True)


def _project() -> sa.Column[str]:
    return sa.Column(
        "project", sa.String(64), sa.ForeignKey("projects.id"), nullable=False, index=True
    )


runs = sa.Table(
    "runs",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("folder", sa.Text, nullable=False),
    sa.Column("key", sa.String(64), nullable=False, index=True),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("finished_at", sa.Double),
    sa.Column("verdict_ship", sa.Boolean),
    sa.Column("sentence", sa.Text),
)

projects = sa.Table(
    "projects",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(64), nullable=False, unique=True),
    sa.Column("created_at", sa.Double, nullable=False),
)

keys = sa.Table(
    "keys",
    metadata,
    _order(),
    _id(),
    _project(),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False, unique=True),
    sa.Column("hint", sa.String(16), nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("revoked_at", sa.Double),
)

files = sa.Table(
    "files",
    metadata,
    _order(),
    _id(),
    _project(),
    sa.Column("filename", sa.Text, nullable=False),
    sa.Column("purpose", sa.String(32), nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("expires_at", sa.Double),
)

uploads = sa.Table(
    "uploads",
    metadata,
    _order(),
    _id(),
    _project(),
    sa.Column("filename", sa.Text, nullable=False),
    sa.Column("purpose", sa.String(32), nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("expires_at", sa.Double, nullable=False),
    sa.Column("file_expires_after", sa.BigInteger),
    sa.Column("file", sa.String(64)),
)

parts = sa.Table(
    "upload_parts",
    metadata,
    _order(),
    _id(),
    sa.Column(
        "upload",
        sa.String(64),
        sa.ForeignKey("uploads.id", ondelete="CASCADE"),
        nullable=False,
        index=True,
    ),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
)

jobs = sa.Table(
    "jobs",
    metadata,
    _order(),
    _id(),
    _project(),
    sa.Column("key", sa.String(64)),
    sa.Column("fingerprint", sa.String(64), nullable=False, index=True),
    sa.Column("model", sa.String(255), nullable=False),
    sa.Column("base", sa.String(255), nullable=False),
    sa.Column("training_file", sa.String(64), nullable=False),
    sa.Column("validation_file", sa.String(64)),
    sa.Column("suffix", sa.String(64)),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("method", Json, nullable=False),
    sa.Column("metadata", Json),
    sa.Column("status", sa.String(16), nullable=False, index=True),
    sa.Column("error", Json),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("started_at", sa.Double),
    sa.Column("finished_at", sa.Double),
    sa.Column("estimated_finish", sa.Double),
    sa.Column("trained_tokens", sa.BigInteger),
    sa.Column("fine_tuned_model", sa.String(255)),
    sa.Column("result_file", sa.String(64)),
    sa.Column("worker", sa.String(64)),
    sa.Column("lease_until", sa.Double),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
)

events = sa.Table(
    "job_events",
    metadata,
    _order(),
    _id(),
    sa.Column("job", sa.String(64), sa.ForeignKey("jobs.id"), nullable=False, index=True),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("level", sa.String(8), nullable=False),
    sa.Column("type", sa.String(16), nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("data", Json),
)

checkpoints = sa.Table(
    "job_checkpoints",
    metadata,
    _order(),
    _id(),
    sa.Column("job", sa.String(64), sa.ForeignKey("jobs.id"), nullable=False, index=True),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("step", sa.Integer, nullable=False),
    sa.Column("model", sa.String(255), nullable=False),
    sa.Column("metrics", Json, nullable=False),
)

permissions = sa.Table(
    "checkpoint_permissions",
    metadata,
    _order(),
    _id(),
    sa.Column("model", sa.String(255), nullable=False, index=True),
    sa.Column("project", sa.String(64), nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.UniqueConstraint("model", "project"),
)

models = sa.Table(
    "models",
    metadata,
    sa.Column("name", sa.String(255), primary_key=True),
    sa.Column("base", sa.String(255), nullable=False),
    sa.Column("base_hash", sa.String(64), nullable=False),
    sa.Column("base_folder", sa.Text, nullable=False),
    sa.Column("adapter_folder", sa.Text),
    sa.Column("run_id", sa.String(64), sa.ForeignKey("runs.id", ondelete="SET NULL")),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("project", sa.String(64), sa.ForeignKey("projects.id")),
    sa.Column("job", sa.String(64)),
)

completions = sa.Table(
    "completions",
    metadata,
    _order(),
    _id(),
    _project(),
    sa.Column("model", sa.String(255), nullable=False),
    sa.Column("metadata", Json),
    sa.Column("messages", Json, nullable=False),
    sa.Column("body", Json, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("expires_at", sa.Double, nullable=False, index=True),
)

webhooks = sa.Table(
    "webhooks",
    metadata,
    _order(),
    _id(),
    _project(),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("secret", sa.Text, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
)

deliveries = sa.Table(
    "deliveries",
    metadata,
    _order(),
    _id(),
    sa.Column(
        "webhook",
        sa.String(64),
        sa.ForeignKey("webhooks.id", ondelete="CASCADE"),
        nullable=False,
        index=True,
    ),
    sa.Column("body", Json, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("due_at", sa.Double, index=True),
    sa.Column("status", sa.Integer),
)

audit = sa.Table(
    "audit",
    metadata,
    _order(),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("project", sa.String(64), nullable=False),
    sa.Column("key", sa.String(64)),
    sa.Column("action", sa.String(64), nullable=False),
    sa.Column("subject", sa.String(255), nullable=False),
    sa.Column("request", sa.String(64)),
)

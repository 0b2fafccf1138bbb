"""The connection: opened, tuned, brought up to the newest schema, read in pages."""

from __future__ import annotations

import secrets
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError, DBAPIError

from tunesmith.errors import UsageError

SCHEMA = "0002"
"""The newest revision in migrations/versions."""
MIGRATIONS = Path(__file__).parents[1] / "migrations"
BUSY_MILLISECONDS = 10_000
MIGRATING = 7_021_947
"""The lock under which one process at a time migrates a PostgreSQL database."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Some rows of a list, and whether there are more behind them."""

    rows: tuple[T, ...]
    has_more: bool


def connect(url: str) -> sa.Engine:
    """Open the database of a SQLAlchemy URL and bring its schema up to date.

    Raises:
        UsageError: it cannot be opened, or a newer tunesmith wrote it.
    """
    try:
        engine = sa.create_engine(url, pool_pre_ping=True)
    except (ArgumentError, ModuleNotFoundError) as error:
        raise UsageError(
            f"the database {url!r} cannot be opened: {error}",
            expected="sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME",
            remedy="For PostgreSQL: pip install 'tunesmith[postgresql]'.",
        ) from None
    if engine.dialect.name == "sqlite":
        _tune_sqlite(engine)
    try:
        _upgrade(engine)
    except DBAPIError as error:
        engine.dispose()
        raise UsageError(
            f"the database {engine.url!r} cannot be opened: {error.orig}",
            expected="a SQLite file or another database that SQLAlchemy reaches",
        ) from error
    except UsageError:
        engine.dispose()
        raise
    return engine


def new_id(prefix: str) -> str:
    """An id that nobody guesses."""
    return prefix + secrets.token_hex(12)


def page(
    connection: sa.Connection,
    table: sa.Table,
    where: sa.ColumnElement[bool],
    *,
    after: str | None,
    limit: int,
    ascending: bool = False,
) -> tuple[list[dict[str, Any]], bool]:
    """Rows behind the one named `after`, newest first, and whether there are more.

    Raises:
        UsageError: `after` is not in the list (any more): where to go on is not known.
    """
    query = sa.select(table).where(where)
    if after is not None:
        place = connection.scalar(sa.select(table.c.seq).where(where & (table.c.id == after)))
        if place is None:
            raise UsageError(
                f"there is no {after!r} in this list", expected="the id of one of its entries"
            )
        query = query.where(table.c.seq > place if ascending else table.c.seq < place)
    order = table.c.seq.asc() if ascending else table.c.seq.desc()
    found = connection.execute(query.order_by(order).limit(limit + 1)).mappings().all()
    rows = [{name: row[name] for name in row if name != "seq"} for row in found[:limit]]
    return rows, len(found) > limit


def put_once(connection: sa.Connection, table: sa.Table, row: Mapping[str, Any]) -> bool:
    """Insert a row; False when there is one of its id already."""
    from sqlalchemy.dialects import postgresql, sqlite

    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(table).values(dict(row)).on_conflict_do_nothing()
    return connection.scalar(statement.returning(table.c.id)) is not None


def has(column: sa.Column[Any], pairs: Mapping[str, str], dialect: str) -> sa.ColumnElement[bool]:
    """Whether the object in a JSON column has these members; their names may be any text."""
    each = sa.func.json_each_text if dialect == "postgresql" else sa.func.json_each
    found: list[sa.ColumnElement[bool]] = []
    for name, value in pairs.items():
        member = each(column).table_valued("key", "value")
        named = (member.c.key == name) & (member.c.value == value)
        found.append(sa.select(sa.literal(1)).select_from(member).where(named).exists())
    return sa.and_(sa.true(), *found)


def alone(connection: sa.Connection, name: str) -> None:
    """Hold a lock of that name to the end of the transaction; SQLite writes alone anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtext(name))))


def _tune_sqlite(engine: sa.Engine) -> None:
    """Readers beside a writer, waiting instead of failing, and foreign keys that hold."""

    @event.listens_for(engine, "connect")
    def _(connection: Any, _: object) -> None:
        # Python's own implicit BEGIN leaves schema changes outside the transaction.
        connection.isolation_level = None
        for pragma in (f"busy_timeout = {BUSY_MILLISECONDS}", "journal_mode = WAL"):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def _(connection: sa.Connection) -> None:
        # A transaction that reads first and writes later fails when another wrote in between.
        reads = connection.get_execution_options().get("reads", False)
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def _upgrade(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        if _version(connection) == SCHEMA:
            return
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATING)))
        if _version(connection) != SCHEMA:
            with _newer_is_refused():
                _migrate(connection)


def _version(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    return connection.scalar(sa.text("SELECT version_num FROM alembic_version"))


@contextmanager
def _newer_is_refused() -> Generator[None]:
    from alembic.util import CommandError

    try:
        yield
    except CommandError as error:
        raise UsageError(
            f"the database does not fit this version of tunesmith: {error}",
            expected=f"schema {SCHEMA} or older",
            remedy="Update tunesmith, or set TUNESMITH_HOME to another folder.",
        ) from None


def _migrate(connection: sa.Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")

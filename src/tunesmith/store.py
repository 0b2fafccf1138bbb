"""What is remembered between commands: runs, and the models that they registered.

SQLite in TUNESMITH_HOME unless a URL says otherwise. The schema belongs to migrations/; opening
looks at its version first, and Alembic is imported only when there is something to upgrade.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError

from tunesmith.errors import UsageError

SCHEMA = "0001"
"""The newest revision in migrations/versions."""
MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_MILLISECONDS = 10_000

RunState = Literal["running", "done", "failed"]

metadata = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
    }
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
)


@dataclass(frozen=True, slots=True)
class Run:
    """One pass through the pipeline. Times are seconds since 1970, UTC."""

    id: str
    folder: str
    key: str
    """Hash of recipe and data: what makes two runs the same."""
    state: RunState
    created_at: float
    finished_at: float | None
    verdict_ship: bool | None
    sentence: str | None


@dataclass(frozen=True, slots=True)
class RegisteredModel:
    """A name that serves: a base's weights with an adapter, or where `adapter_folder` is None weights
    that are all its own, in `base_folder`.
    """

    name: str
    base: str
    base_hash: str
    base_folder: str
    adapter_folder: str | None
    run_id: str | None
    created_at: float


class Store:
    """The database. As a context manager it is closed at the end of the block."""

    def __init__(self, url: str) -> None:
        """Open the database of a SQLAlchemy URL and bring its schema up to date.

        Raises:
            UsageError: it cannot be opened, or a newer tunesmith wrote it.
        """
        self._engine = sa.create_engine(url)
        if self._engine.dialect.name == "sqlite":
            _tune_sqlite(self._engine)
        try:
            _upgrade(self._engine)
        except DBAPIError as error:
            self.close()
            raise UsageError(
                f"the database {self._engine.url!r} cannot be opened: {error.orig}",
                expected="a SQLite file or another database that SQLAlchemy reaches",
            ) from error
        except UsageError:
            self.close()
            raise

    @classmethod
    def at(cls, home: Path) -> Store:
        """The SQLite database of a TUNESMITH_HOME folder, made when it is not there."""
        home.mkdir(parents=True, exist_ok=True)
        return cls(f"sqlite:///{home / 'tunesmith.db'}")

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    def add_run(self, run_id: str, *, folder: Path, key: str) -> Run:
        """Remember a run that starts now."""
        run = Run(run_id, str(folder), key, "running", time.time(), None, None, None)
        with self._engine.begin() as connection:
            connection.execute(sa.insert(runs).values(asdict(run)))
        return run

    def finish_run(
        self,
        run_id: str,
        *,
        state: RunState = "done",
        ship: bool | None = None,
        sentence: str | None = None,
    ) -> None:
        """Note how a run ended. A later call replaces what an earlier one said."""
        ended = {"state": state, "finished_at": time.time()}
        verdict = {"verdict_ship": ship, "sentence": sentence}
        with self._engine.begin() as connection:
            changed = connection.execute(
                sa.update(runs).where(runs.c.id == run_id).values(**ended, **verdict)
            )
        if changed.rowcount != 1:
            raise UsageError(f"there is no run {run_id}", expected="the id of a run in the store")

    def find_run(self, key: str) -> Run | None:
        """The newest run with this hash of recipe and data, finished or not."""
        found = self._runs(runs.c.key == key)
        return found[0] if found else None

    def runs(self) -> list[Run]:
        """All runs, newest first."""
        return self._runs(sa.true())

    def register_model(
        self,
        name: str,
        *,
        base: str,
        base_hash: str,
        base_folder: Path,
        adapter_folder: Path | None,
        run_id: str | None = None,
    ) -> RegisteredModel:
        """Make a name serve these weights; a name that is taken is replaced."""
        adapter = None if adapter_folder is None else str(adapter_folder)
        model = RegisteredModel(
            name, base, base_hash, str(base_folder), adapter, run_id, time.time()
        )
        with self._engine.begin() as connection:
            connection.execute(sa.delete(models).where(models.c.name == name))
            connection.execute(sa.insert(models).values(asdict(model)))
        return model

    def models(self) -> list[RegisteredModel]:
        """All registered models, newest first."""
        return self._models(sa.true())

    def model(self, name: str) -> RegisteredModel | None:
        """The model of that name."""
        found = self._models(models.c.name == name)
        return found[0] if found else None

    def remove_model(self, name: str) -> bool:
        """Forget a model; its files stay. False when there is none of that name."""
        with self._engine.begin() as connection:
            gone = connection.execute(sa.delete(models).where(models.c.name == name))
        return gone.rowcount == 1

    def _runs(self, condition: sa.ColumnElement[bool]) -> list[Run]:
        query = sa.select(runs).where(condition).order_by(runs.c.created_at.desc(), runs.c.id)
        with self._engine.begin() as connection:
            return [Run(**row) for row in connection.execute(query).mappings()]

    def _models(self, condition: sa.ColumnElement[bool]) -> list[RegisteredModel]:
        query = sa.select(models).where(condition)
        query = query.order_by(models.c.created_at.desc(), models.c.name)
        with self._engine.begin() as connection:
            return [RegisteredModel(**row) for row in connection.execute(query).mappings()]


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
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _upgrade(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        if _version(connection) == SCHEMA:
            return
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

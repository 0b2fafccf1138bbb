from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from tunesmith.errors import UsageError
from tunesmith.store import Store, tables
from tunesmith.store import database as db


def url(folder: Path) -> str:
    return f"sqlite:///{folder / 'tunesmith.db'}"


def test_the_migrated_schema_is_the_one_that_the_code_describes(database: str) -> None:
    Store(database).close()
    engine = sa.create_engine(database)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, tables.metadata) == []
        names = {key["name"] for key in sa.inspect(connection).get_foreign_keys("models")}
        assert names == {"fk_models_run_id", "fk_models_project"}
    engine.dispose()


def test_a_database_of_the_first_schema_keeps_its_models(database: str) -> None:
    engine = sa.create_engine(database)
    config = Config()
    config.set_main_option("script_location", str(db.MIGRATIONS))
    config.set_main_option("path_separator", "os")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.execute(
            sa.text(
                "INSERT INTO models (name, base, base_hash, base_folder, created_at)"
                " VALUES ('ft:a', 'a', '00', '/a', 1.0)"
            )
        )
    engine.dispose()
    with Store(database) as opened:
        found = opened.model("ft:a", "default")
        assert found is not None
        assert (found.base_folder, found.project) == ("/a", None)
    engine = sa.create_engine(database)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0001")
        left = set(sa.inspect(connection).get_table_names())
        assert left == {"alembic_version", "models", "runs"}
    engine.dispose()


def test_the_version_in_the_code_is_the_newest_migration() -> None:
    config = Config()
    config.set_main_option("script_location", str(db.MIGRATIONS))
    config.set_main_option("path_separator", "os")
    assert ScriptDirectory.from_config(config).get_heads() == [db.SCHEMA]


def test_opening_a_current_database_is_quick_and_imports_no_alembic(tmp_path: Path) -> None:
    Store.at(tmp_path).close()
    code = (
        "import sys, pathlib; from tunesmith.store import Store;"
        "Store.at(pathlib.Path(sys.argv[1])).close();"
        "sys.exit('alembic' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == 0
    took = min(_open_and_close(tmp_path) for _ in range(5))
    assert took < 0.05


def _open_and_close(folder: Path) -> float:
    started = time.perf_counter()
    Store.at(folder).close()
    return time.perf_counter() - started


def test_a_database_of_a_newer_tunesmith_is_refused(tmp_path: Path) -> None:
    Store.at(tmp_path).close()
    engine = sa.create_engine(url(tmp_path))
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(UsageError, match="Update tunesmith"):
        Store.at(tmp_path)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tunesmith.db").write_text("this is no database, but long enough to look at" * 50)
    with pytest.raises(UsageError, match="cannot be opened"):
        Store.at(tmp_path)


def test_processes_that_open_a_new_database_at_once_agree(tmp_path: Path) -> None:
    code = "import sys, pathlib; from tunesmith.store import Store; Store.at(pathlib.Path(sys.argv[1])).add_run(sys.argv[2], folder=pathlib.Path(), key='k')"
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)]
    running = [subprocess.Popen([*command, name]) for name in "abc"]
    assert [process.wait() for process in running] == [0, 0, 0]
    with Store.at(tmp_path) as opened:
        assert {run.id for run in opened.runs()} == {"a", "b", "c"}

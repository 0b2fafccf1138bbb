from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from tunesmith import store
from tunesmith.errors import UsageError
from tunesmith.store import Store


def url(folder: Path) -> str:
    return f"sqlite:///{folder / 'tunesmith.db'}"


def test_the_migrated_schema_is_the_one_that_the_code_describes(tmp_path: Path) -> None:
    Store.at(tmp_path).close()
    engine = sa.create_engine(url(tmp_path))
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, store.metadata) == []
        names = {key["name"] for key in sa.inspect(connection).get_foreign_keys("models")}
        assert names == {"fk_models_run_id"}
    engine.dispose()


def test_the_version_in_the_code_is_the_newest_migration() -> None:
    config = Config()
    config.set_main_option("script_location", str(store.MIGRATIONS))
    config.set_main_option("path_separator", "os")
    assert ScriptDirectory.from_config(config).get_heads() == [store.SCHEMA]


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


def test_a_run_is_found_by_its_key_newest_first(tmp_path: Path) -> None:
    with Store.at(tmp_path) as opened:
        first = opened.add_run("a", folder=tmp_path, key="k")
        opened.add_run("b", folder=tmp_path, key="k")
        opened.add_run("c", folder=tmp_path, key="other")
        assert first.state == "running"
        found = opened.find_run("k")
        assert found is not None
        assert found.id == "b"
        assert opened.find_run("unknown") is None
        assert [run.id for run in opened.runs()] == ["c", "b", "a"]


def test_a_finished_run_keeps_its_verdict_over_processes(tmp_path: Path) -> None:
    with Store.at(tmp_path) as opened:
        opened.add_run("a", folder=tmp_path, key="k")
        opened.finish_run("a", ship=True, sentence="Ship it: +0.41.")
    with Store.at(tmp_path) as opened:
        run = opened.find_run("k")
        assert run is not None
        assert (run.state, run.verdict_ship, run.sentence) == ("done", True, "Ship it: +0.41.")
        assert run.finished_at is not None
        assert run.finished_at >= run.created_at
        with pytest.raises(UsageError, match="no run z"):
            opened.finish_run("z")


def register(opened: Store, name: str, run_id: str | None = None) -> None:
    folder = Path("/models/base")
    opened.register_model(
        name,
        base="base",
        base_hash="00",
        base_folder=folder,
        adapter_folder=folder / "adapter",
        run_id=run_id,
    )


def test_models_are_registered_replaced_and_removed(tmp_path: Path) -> None:
    with Store.at(tmp_path) as opened:
        register(opened, "ft:base:me:run:1")
        register(opened, "ft:base:me:run:2")
        register(opened, "ft:base:me:run:1")
        assert [model.name[-1] for model in opened.models()] == ["1", "2"]
        model = opened.model("ft:base:me:run:2")
        assert model is not None
        assert model.adapter_folder == "/models/base/adapter"
        assert opened.remove_model("ft:base:me:run:2")
        assert not opened.remove_model("ft:base:me:run:2")
        assert opened.model("ft:base:me:run:2") is None


def test_a_model_cannot_name_a_run_that_is_not_there(tmp_path: Path) -> None:
    with Store.at(tmp_path) as opened, pytest.raises(sa.exc.IntegrityError):
        register(opened, "x", run_id="nowhere")


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

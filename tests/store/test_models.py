from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from tunesmith.errors import UsageError
from tunesmith.store import Store


def test_a_run_is_found_by_its_key_newest_first(database: str) -> None:
    with Store(database) as opened:
        first = opened.add_run("a", folder=Path("/runs"), key="k")
        opened.add_run("b", folder=Path("/runs"), key="k")
        opened.add_run("c", folder=Path("/runs"), key="other")
        assert first.state == "running"
        found = opened.find_run("k")
        assert found is not None
        assert found.id == "b"
        assert opened.find_run("unknown") is None
        assert [run.id for run in opened.runs()] == ["c", "b", "a"]


def test_a_finished_run_keeps_its_verdict_over_processes(database: str) -> None:
    with Store(database) as opened:
        opened.add_run("a", folder=Path("/runs"), key="k")
        opened.finish_run("a", ship=True, sentence="Ship it: +0.41.")
    with Store(database) as opened:
        run = opened.find_run("k")
        assert run is not None
        assert (run.state, run.verdict_ship, run.sentence) == ("done", True, "Ship it: +0.41.")
        assert run.finished_at is not None
        assert run.finished_at >= run.created_at
        with pytest.raises(UsageError, match="no run z"):
            opened.finish_run("z")


def register(
    opened: Store, name: str, run_id: str | None = None, project: str | None = None
) -> None:
    folder = Path("/models/base")
    opened.register_model(
        name,
        base="base",
        base_hash="00",
        base_folder=folder,
        adapter_folder=folder / "adapter",
        run_id=run_id,
        project=project,
    )


def test_models_are_registered_replaced_and_removed(database: str) -> None:
    with Store(database) as opened:
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


def test_a_model_cannot_name_a_run_that_is_not_there(database: str) -> None:
    with Store(database) as opened, pytest.raises(sa.exc.IntegrityError):
        register(opened, "x", run_id="nowhere")


def test_models_are_their_projects_everybodys_or_shared(database: str) -> None:
    with Store(database) as opened:
        ours, _ = opened.keys.make("a", project="ours")
        theirs, _ = opened.keys.make("b", project="theirs")
        register(opened, "everybodys")
        register(opened, "ours", project=ours.project)
        register(opened, "shared", project=theirs.project)
        opened.jobs.permit("shared", (ours.project,))
        assert {model.name for model in opened.models(ours.project)} == {
            *("everybodys", "ours", "shared")
        }
        assert {model.name for model in opened.models(theirs.project)} == {"everybodys", "shared"}
        assert opened.model("ours", theirs.project) is None
        assert not opened.remove_model("shared", ours.project)
        assert not opened.remove_model("everybodys", ours.project)
        assert opened.remove_model("shared", theirs.project)

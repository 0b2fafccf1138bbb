from __future__ import annotations

import asyncio
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

import tunesmith
from tunesmith import recipe as recipes
from tunesmith.errors import UsageError
from tunesmith.pipeline import run as pipeline
from tunesmith.pipeline.folder import RunFolder
from tunesmith.pipeline.talk import deployment, talk
from tunesmith.recipe import Recipe
from tunesmith.store import Store

SOURCE = Path(tunesmith.__file__).parent


def test_the_folder_has_every_file_of_the_contract(made: Any) -> None:
    files = {str(p.relative_to(made.folder.path)) for p in made.folder.path.rglob("*")}
    samples = {f"samples/{arm}.jsonl" for arm in ("base", "classical", "prompt", "tuned")}
    data = {f"data/{name}.jsonl" for name in ("train", "validation", "test", "rejected")}
    assert files >= {
        *("recipe.yaml", "events.jsonl", "report.json", "report.html", "environment.json"),
        *("adapter/adapter_config.json", "adapter/adapter_model.safetensors"),
        *(samples | data),
    }
    assert 1 <= len([name for name in files if re.fullmatch(r"checkpoints/step-\d+", name)]) <= 3
    assert not [name for name in files if name.endswith(".partial")]
    rows = made.folder.read_lines("data/train.jsonl")
    assert all(set(row) >= {"messages", "source"} for row in rows)
    page = (made.folder.path / "report.html").read_text()
    assert made.report["verdict"]["sentence"][:30] in page


def test_samples_have_a_line_for_every_test_row_in_every_arm(made: Any) -> None:
    keys = {
        *("id", "prompt", "reference", "output", "scores"),
        *("tokens_in", "tokens_out", "seconds", "finish_reason"),
    }
    ids = set()
    for arm in ("base", "classical", "prompt", "tuned"):
        rows = made.folder.read_lines(f"samples/{arm}.jsonl")
        assert all(set(row) == keys for row in rows)
        assert len(rows) == 40
        ids.add(tuple(row["id"] for row in rows))
    assert len(ids) == 1


def test_the_recipe_in_force_has_the_numbers_that_auto_became(made: Any) -> None:
    settled = recipes.read(made.folder.recipe)
    text = made.folder.recipe.read_text()
    # Of formats, each file has its own.
    assert re.findall(r"^.*\bauto\b.*$", text, re.MULTILINE) == ["  format: auto"]
    training = next(e for e in made.folder.events() if e["type"] == "training")
    assert settled.model.dtype == training["dtype"]
    assert settled.data.test == made.report["data"]["test"]
    assert settled.train.learning_rate == 0.01


def test_timings_sum_to_the_wall_time(made: Any) -> None:
    timings = made.report["timings"]
    assert list(timings) == ["forecast", "explore", "train", "curve", "probe", "compare"]
    # `run` itself has the check as a stage; here it is part of the first.
    assert sum(timings.values()) == pytest.approx(made.seconds, abs=0.2)


def test_events_are_those_of_the_contract(made: Any) -> None:
    events = made.folder.events()
    steps = [event for event in events if event["type"] == "step"]
    assert [event["step"] for event in steps] == list(range(1, 16))
    keys = {"at", "type", "step", "loss", "lr", "rows", "tokens", "trained_tokens", "seconds"}
    assert all(set(event) >= keys for event in steps)
    first = next(event for event in events if event["type"] == "validation")
    assert (first["step"], set(first["metrics"])) == (0, {"accuracy"})
    stages = [(e["name"], e["state"]) for e in events if e["type"] == "stage"]
    names = [name for name, _ in pipeline.STEPS]
    assert stages == [(name, state) for name in names for state in ("started", "done")]


def test_trap_35_nothing_before_the_comparison_reads_the_test_rows(made: Any) -> None:
    """The run was made with data/test.jsonl away until its last step."""
    assert (made.folder.path / "explore.json").is_file()
    assert made.report["arms"][3]["scores"]["exact"]["n"] == 40
    spec = made.folder.read_json("train.json")
    assert "test" not in spec
    assert not [value for value in spec.values() if "test.jsonl" in str(value)]
    sources = [
        {(row["source"]["file"], row["source"]["line"]) for row in made.folder.read_lines(name)}
        for name in ("data/train.jsonl", "data/validation.jsonl", "data/test.jsonl")
    ]
    assert not sources[0] & sources[1] | sources[0] & sources[2] | sources[1] & sources[2]


def test_trap_31_every_recipe_key_is_read_somewhere() -> None:
    code = "\n".join(
        path.read_text(encoding="utf-8")
        for path in SOURCE.rglob("*.py")
        if path.name not in ("recipe.py", "testing.py")
    )
    known = recipes.keys()
    unread = [key for key in known if not re.search(rf"\.{key.split('.')[1]}\b", code)]
    # These have one value yet, and refuse any other.
    assert set(unread) <= {"method.type", "method.adapter", "serve.engine"}
    for key in ("method.type", "method.adapter", "serve.engine"):
        with pytest.raises(UsageError, match=key):
            recipes.with_values(Recipe(), {key: "other"})


def test_the_tuned_model_is_registered(at_home: Any) -> None:
    with Store.at(at_home.home) as store:
        model = store.model(at_home.report["model"]["tuned"])
        run = store.find_run(at_home.folder.id)
    assert model is not None
    assert run is not None
    assert Path(model.adapter_folder or "") == at_home.folder.adapter
    assert model.base_hash == at_home.run.model.weights_hash
    assert (run.state, run.sentence) == ("done", at_home.report["verdict"]["sentence"])


def test_full_fine_tuning_ends_in_a_model_that_is_compared_and_answers(
    wanted: Recipe, screen: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))
    recipe = recipes.with_values(
        wanted,
        {
            "method.adapter": "full",
            "evaluate.arms": ["base", "tuned"],
            "evaluate.forecast": False,
            "forgetting.probe": False,
        },
    )
    ended = pipeline.run(recipe, out=None, screen=screen, command="", ask=False)
    folder = RunFolder(ended.folder)
    assert folder.tuned == folder.model
    settled = recipes.read(folder.recipe)
    assert (settled.method.rank, settled.method.embeddings) == ("auto", True)
    arms = {arm["name"]: arm["scores"]["logprob"]["value"] for arm in ended.report["arms"]}
    assert arms["tuned"] > arms["base"] + 0.5
    answers: list[str] = []
    with Store.at(tmp_path / "home") as store:
        place = deployment(store, ended.report["model"]["tuned"])
    asyncio.run(talk(place, system=None, temperature=0.0, once="say 3", show=answers.append))
    assert len(answers) == 1


def test_a_finished_run_returns_its_result_at_once(at_home: Any, screen: Any) -> None:
    before = at_home.folder.events()
    began = time.monotonic()
    ended = pipeline.run(
        at_home.recipe, out=at_home.folder.path, screen=screen, command="", ask=False
    )
    assert time.monotonic() - began < 3
    assert ended.report == json.loads(json.dumps(at_home.report))
    assert ended.folder == at_home.folder.path
    assert ended.ship is at_home.report["verdict"]["ship"]
    assert at_home.folder.events() == before
    assert screen.reports == []


def test_another_recipe_in_the_same_folder_is_refused(at_home: Any, screen: Any) -> None:
    other = recipes.with_values(at_home.recipe, {"train.seed": 1})
    with pytest.raises(UsageError, match=r"holds another run.*Give another --out"):
        pipeline.open_run(other, out=at_home.folder.path, screen=screen, command="")


def test_a_folder_with_other_files_is_left_alone(
    wanted: Recipe, tmp_path: Path, screen: Any
) -> None:
    mine = tmp_path / "data" / "train.jsonl"
    mine.parent.mkdir()
    mine.write_text("my own rows\n")
    with pytest.raises(UsageError, match=r"holds other files.*Give another --out"):
        pipeline.open_run(wanted, out=tmp_path, screen=screen, command="")
    assert mine.read_text() == "my own rows\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data"]


def test_without_out_a_run_is_found_again_by_recipe_and_rows(
    wanted: Recipe, tmp_path: Path, screen: Any
) -> None:
    first = pipeline.open_run(wanted, out=None, screen=screen, command="")
    settled = first.folder.recipe.read_text()
    # Cut off before the last file of the preparation: it is made once more.
    (first.folder.path / "environment.json").unlink()
    pipeline.open_run(wanted, out=None, screen=screen, command="")
    again = pipeline.open_run(wanted, out=None, screen=screen, command="")
    assert len(screen.reports) == 2
    assert again.folder == first.folder
    assert again.recipe == first.recipe
    assert first.folder.recipe.read_text() == settled
    other = recipes.with_values(wanted, {"serve.suffix": "two"})
    assert pipeline.open_run(other, out=None, screen=screen, command="").folder != first.folder
    assert first.tuned == f"ft:tiny:local:run:{first.folder.id}"


def test_a_run_with_no_rows_to_compare_on_is_refused_before_it_trains(
    wanted: Recipe, tmp_path: Path, screen: Any
) -> None:
    none = recipes.with_values(wanted, {"data.test": 0, "data.validation": 0})
    with pytest.raises(UsageError, match="neither test nor validation rows"):
        pipeline.run(none, out=tmp_path / "run", screen=screen, command="", ask=False)
    assert not (tmp_path / "run" / "explore.json").exists()


def test_asking_first_ends_with_the_advice_and_no_verdict(
    wanted: Recipe, tmp_path: Path, screen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path / "run")
    pipeline.open_run(wanted, out=folder.path, screen=screen, command="")
    advice = {"approach": "prompting", "reasons": ["It is so."]}
    folder.write_json("forecast.json", {"value": None, "reason": "not now"})
    folder.write_json("explore.json", {"advice": advice})
    ended = pipeline.run(wanted, out=folder.path, screen=screen, command="", ask=True)
    assert ended.report["advice"] == advice
    assert ended.report["verdict"]["value"] is None
    assert not ended.ship
    assert not (folder.path / "train.json").exists()
    stages = [e["name"] for e in folder.events() if e["type"] == "stage" and e["state"] == "done"]
    assert stages == ["check", "forecast", "explore"]


def test_the_command_can_be_typed_again() -> None:
    assert pipeline.typed(["run", "my rows.jsonl"]) == "tunesmith run 'my rows.jsonl'"


def test_text_has_nothing_to_compare(tmp_path: Path, screen: Any) -> None:
    asked = recipes.read(None, ["method.type=cpt", f"data.files=[{tmp_path}/book.txt]"])
    with pytest.raises(UsageError, match="Type tunesmith train"):
        pipeline.run(asked, out=tmp_path / "run", screen=screen, command="", ask=False)
    assert not (tmp_path / "run").exists()

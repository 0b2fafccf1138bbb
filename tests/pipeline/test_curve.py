from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from tunesmith import recipe as recipes
from tunesmith.chat import Message
from tunesmith.data.examples import Conversation, Source
from tunesmith.errors import TrainerCrashed, TrainingError
from tunesmith.evaluate.evaluation import Measured, Sample
from tunesmith.evaluate.statistics import Interval
from tunesmith.models import fetch
from tunesmith.models.catalog import ModelSpec
from tunesmith.pipeline import curve, learn
from tunesmith.pipeline import run as pipeline
from tunesmith.pipeline.folder import RunFolder
from tunesmith.recipe import Recipe
from tunesmith.train import auto

SETTLED = {
    "train.epochs": 3,
    "train.batch_rows": 32,
    "train.learning_rate": 0.001,
    "train.save_every": 8,
    "method.rank": 4,
}


def row(number: int, said: str = "") -> Conversation:
    turns = Message("user", said or f"say {number}"), Message("assistant", str(number % 3))
    return Conversation(turns, Source("rows", number))


@pytest.fixture
def spec(model: Path) -> ModelSpec:
    return fetch.resolve(str(model))


@pytest.fixture
def trained(tmp_path: Path) -> RunFolder:
    """A folder in which 3,000 rows of steps were trained in 30 seconds, with a kill between."""
    folder = RunFolder(tmp_path)
    folder.adapter.mkdir()
    told = [(0, "training", 0), (20, "step", 2000), (900, "training", 0), (910, "trained", 0)]
    told.insert(2, (20, "step", 1000))
    lines = [
        {"at": f"2026-01-01T00:{at // 60:02}:{at % 60:02}+00:00", "type": kind, "rows": rows}
        for at, kind, rows in told
    ]
    folder.write_lines("events.jsonl", lines)
    return folder


def planned(spec: ModelSpec, folder: RunFolder, asked: Any, count: int, held: int = 100) -> Any:
    wanted = recipes.with_values(Recipe(), {**SETTLED, "evaluate.curve": asked})
    rows = curve.Rows([row(n) for n in range(count)], [row(n) for n in range(held)])
    return curve.plan(wanted, spec, folder, rows)


def test_a_curve_is_drawn_where_the_training_so_far_says_that_it_takes_minutes(
    spec: ModelSpec, trained: RunFolder
) -> None:
    # 0.01 s a row, 3 epochs: parts of 1,000 rows are 2.5 times 30 s, and 15 s each to start.
    whole = planned(spec, trained, "auto", 1000)
    assert whole["parts"] == curve.PARTS
    assert whole["reason"] == "5 trainings on parts of the rows, about 3 min"
    # 2.5 x 210 s are too long; a quarter and a half of each seed, 1.5 x 210 s, are not.
    assert planned(spec, trained, "auto", 6000)["parts"] == curve.PARTS[:4]
    left = planned(spec, trained, "auto", 20_000)
    assert left["parts"] == []
    assert left["reason"].endswith("about 16 min; --set evaluate.curve=on draws it")
    assert planned(spec, trained, True, 20_000)["parts"] == curve.PARTS
    assert planned(spec, trained, False, 1000)["reason"].endswith("evaluate.curve=off says")


def test_too_few_rows_and_weights_without_an_adapter_have_no_curve(
    spec: ModelSpec, trained: RunFolder
) -> None:
    few = planned(spec, trained, "auto", 1000, held=20)
    assert few["parts"] == []
    assert "20 validation rows are too few" in few["reason"]
    assert planned(spec, trained, True, 1000, held=20)["parts"]
    assert not planned(spec, trained, True, 12)["parts"]
    shutil.rmtree(trained.adapter)
    assert "no adapter" in planned(spec, trained, True, 1000)["reason"]


def test_a_part_is_trained_as_auto_would_train_so_many_rows_and_what_was_given_stays() -> None:
    def at(rows: int, **given: Any) -> Recipe:
        epochs = given.get("train.epochs", auto.epochs(rows).value)
        batch = given.get("train.batch_rows", auto.batch_rows(rows).value)
        total = curve.steps(rows, batch, epochs)
        values = {
            "train.epochs": epochs,
            "train.batch_rows": batch,
            "train.learning_rate": auto.learning_rate(576, total, batch).value,
            "train.save_every": auto.save_every(total).value,
        }
        return recipes.with_values(Recipe(), {**values, **given})

    assert curve.sized(at(1000), 1000, 1000, 576) == at(1000)
    assert curve.sized(at(1000), 1000, 250, 576) == at(250)
    for given in ({"train.epochs": 2}, {"train.learning_rate": 0.5}, {"train.batch_rows": 7}):
        assert curve.sized(at(1000, **given), 1000, 250, 576) == at(250, **given)


def test_near_duplicates_are_one_group() -> None:
    long = "where is the parcel that I ordered on the third of May from your shop in Bergen"
    rows = [row(1, long), row(2, long + "?"), row(3, "please cancel my card"), row(4, "top up")]
    groups = curve.near(rows)
    assert groups[0] == groups[1]
    assert len(set(groups)) == 3


class Killing:
    """A screen that kills the trainer in the second training."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def progress(self, what: str, done: int, total: int | None) -> None:
        if what == "learning curve, 2 of 2" and done == 3:
            for child in psutil.Process().children():
                if "tunesmith.train" in child.cmdline():
                    child.kill()


def test_a_curve_that_is_killed_goes_on_and_trains_no_part_twice(
    made: Any, tmp_path: Path, screen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curve, "PARTS", curve.PARTS[:2])
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    for name in ("data", "adapter"):
        shutil.copytree(made.folder.path / name, folder.path / name)
    for name in ("events.jsonl", "environment.json"):
        shutil.copyfile(made.folder.path / name, folder.path / name)
    asked = {"evaluate.curve": True, "train.save_every": 1}
    recipe = recipes.with_values(recipes.read(made.folder.recipe), asked)
    run = replace(made.run, recipe=recipe, folder=folder)
    killing: Any = Killing()
    with pytest.raises(TrainerCrashed):
        pipeline.draw_curve(replace(run, screen=killing))
    assert "2 trainings on parts of the rows, about 1 min" in killing.said[0]
    first, second = (curve.part_folder(folder, 0, share) for share in ("quarter", "half"))
    assert learn.trained(first)
    assert not learn.trained(second)
    before = first.events()

    watched = replace(run, screen=screen)
    pipeline.draw_curve(watched)
    assert first.events() == before
    events = second.events()
    assert [event["type"] for event in events].count("resumed") == 1
    steps = [event["step"] for event in events if event["type"] == "step"]
    assert steps == list(range(1, len(steps) + 1))
    assert not list(folder.path.rglob("checkpoints"))

    scored = folder.read_json("curve/scores.json")
    rows = [len(part.read_lines("data/train.jsonl")) for part in (first, second)]
    assert [(p["seed"], p["share"]) for p in scored["points"]] == [*curve.PARTS, curve.OWN]
    assert [p["rows"] for p in scored["points"]] == [*rows, 60]
    assert {len(p["scores"]) for p in scored["points"]} == {20}
    ids = [
        {line["source"]["line"] for line in part.read_lines("data/train.jsonl")}
        for part in (first, second, folder)
    ]
    assert ids[0] < ids[1] < ids[2]
    assert not ids[2] & {line["source"]["line"] for line in folder.read_lines("data/test.jsonl")}

    enough = curve.data_enough(folder, recipe, {}, scored["metric"])
    assert [point["rows"] for point in enough["curve"]] == [*rows, 60]
    assert enough["doubling"]["low"] <= enough["doubling"]["value"] <= enough["doubling"]["high"]
    json.dumps(enough, allow_nan=False)
    # A finished curve is not drawn again.
    at = (folder.path / "curve" / "scores.json").stat().st_mtime_ns
    pipeline.draw_curve(watched)
    assert (folder.path / "curve" / "scores.json").stat().st_mtime_ns == at


def test_a_part_that_fails_leaves_the_curve_out_and_not_the_run(
    trained: RunFolder, spec: ModelSpec, screen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise TrainingError("the gradient is not finite")

    monkeypatch.setattr(learn, "train", fails)
    rows = curve.Rows([row(n) for n in range(200)], [row(n) for n in range(50)])
    recipe = recipes.with_values(Recipe(), SETTLED)
    drawn = curve.draw(recipe, spec, trained, rows, screen, fails)
    assert drawn.evaluate.curve is True
    enough = curve.data_enough(trained, drawn, {}, "exact")
    assert enough["curve"] == {"value": None, "reason": "the gradient is not finite"}
    curve.draw(drawn, spec, trained, rows, screen, fails)


def test_a_report_says_why_there_is_no_curve_and_what_the_test_rows_tell(made: Any) -> None:
    enough = made.report["data_enough"]
    assert "20 validation rows are too few for it" in enough["curve"]["reason"]
    assert enough["doubling"] == enough["rows_for_goal"] == enough["curve"]
    assert recipes.read(made.folder.recipe).evaluate.curve is False
    pairs = enough["power"]["pairs"]
    assert {(pair["a"], pair["b"]) for pair in pairs} == {
        ("tuned", name) for name in ("base", "prompt", "classical")
    }
    assert all(pair["rows"] == 40 and 0.15 < pair["detectable"] < 0.5 for pair in pairs)
    assert enough["power"]["sentence"] == pairs[0]["sentence"]


def measured(name: str, scores: list[float]) -> Measured:
    samples = tuple(
        Sample(str(n), "", "", "", {"exact": score}, 0, 0, 0.0, "stop", str(n))
        for n, score in enumerate(scores)
    )
    kind: Any = name
    value = sum(scores) / len(scores)
    return Measured(name, kind, samples, {"exact": Interval(value, value, value, len(scores))})


def test_the_sentence_is_about_the_arm_that_is_hardest_to_beat() -> None:
    arms = {
        "base": measured("base", [0.0] * 40),
        "prompt": measured("prompt", [1.0] * 16 + [0.0] * 24),
        "tuned": measured("tuned", [1.0] * 20 + [0.0] * 20),
    }
    assert curve.spread(arms["tuned"], arms["prompt"], "exact").square == pytest.approx(0.1)
    said = curve._power(arms, "exact")["sentence"]
    assert said.startswith("40 test rows tell differences between tuned and prompt above 0.18 only")
    assert curve._power({"base": arms["base"]}, "exact")["value"] is None

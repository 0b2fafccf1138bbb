from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from tunesmith import recipe as recipes
from tunesmith.chat import Message
from tunesmith.data.examples import Conversation, Source
from tunesmith.data.split import write_jsonl
from tunesmith.errors import TrainingError
from tunesmith.models import fetch
from tunesmith.pipeline import learn
from tunesmith.pipeline.folder import RunFolder
from tunesmith.recipe import Recipe
from tunesmith.train.spec import TrainSpec

OTHER = {
    "method.type": "cpt",
    "model.dtype": "bfloat16",
    "method.adapter": "dora",
    "method.embeddings": True,
    "method.modules_to_save": ["norm"],
    "method.rank": 5,
    "method.alpha": 7.0,
    "method.rslora": True,
    "method.dropout": 0.25,
    "method.targets": ["q_proj"],
    "train.epochs": 2.5,
    "train.batch_rows": 3,
    "train.learning_rate": 0.5,
    "train.warmup": 0.3,
    "train.weight_decay": 0.2,
    "train.clip": 9.0,
    "train.patience": 8,
    "train.save_every": 11,
    "train.max_batch_tokens": 99,
    "train.share": False,
    "train.activation_checkpointing": True,
    "train.processes": 2,
    "train.sharding": "full",
    "train.replay": 0.5,
    "train.canaries": 3,
    "train.seed": 12,
}
FIRST = {
    "method.rank": 4,
    "train.epochs": 1,
    "train.batch_rows": 4,
    "train.learning_rate": 0.1,
    "train.save_every": 2,
    "train.max_batch_tokens": 64,
}


@pytest.fixture
def spec(model: Path, tmp_path: Path) -> TrainSpec:
    asked = recipes.with_values(Recipe(), FIRST)
    return learn.spec_of(asked, fetch.resolve(str(model)), RunFolder(tmp_path))


def test_trap_31_each_training_setting_reaches_the_training_process(
    model: Path, spec: TrainSpec
) -> None:
    known = recipes.keys()
    keys = {key for key in known if key.split(".")[0] in ("method", "train")}
    assert keys == set(OTHER) - {"model.dtype"}
    for key, value in OTHER.items():
        asked = recipes.with_values(Recipe(), {**FIRST, key: value})
        other = learn.spec_of(asked, fetch.resolve(str(model)), RunFolder(Path(spec.out)))
        changed = [f.name for f in fields(spec) if getattr(spec, f.name) != getattr(other, f.name)]
        names = {"method.type": ["method", "heldout"], "method.adapter": ["dora"]}
        names |= {"train.replay": ["extra"], "train.canaries": ["extra"]}
        assert changed == names.get(key, [key.split(".")[1]])
    full = {key: value for key, value in FIRST.items() if key != "method.rank"}
    asked = recipes.with_values(Recipe(), {**full, "method.adapter": "full"})
    other = learn.spec_of(asked, fetch.resolve(str(model)), RunFolder(Path(spec.out)))
    assert (other.full, other.rank) == (True, 0)


def test_text_is_measured_on_test_rows_or_else_on_validation_rows(
    model: Path, tmp_path: Path
) -> None:
    asked = recipes.with_values(Recipe(), {**FIRST, "method.type": "cpt"})
    folder = RunFolder(tmp_path)
    folder.data.mkdir()
    test = folder.data / "test.jsonl"
    for content, name in (("", "validation"), ("{}\n", "test")):
        test.write_text(content)
        spec = learn.spec_of(asked, fetch.resolve(str(model)), folder)
        assert Path(spec.heldout) == folder.data / f"{name}.jsonl"


def test_a_failed_training_says_why_after_log_and_checkpoints_were_made_to_agree(
    spec: TrainSpec, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path)
    for step in (0, 2):
        folder.emit({"type": "step", "step": step})
        folder.emit({"type": "checkpoint", "step": step})
    folder.emit({"type": "step", "step": 3})
    # The kill came between the checkpoint of step 4 and the lines that tell of it.
    for step in (0, 2, 4):
        (tmp_path / "checkpoints" / f"step-{step}").mkdir(parents=True)
    seen: list[dict[str, Any]] = []
    with pytest.raises(TrainingError, match=r"nowhere"):
        learn.learn(replace(spec, model=str(tmp_path / "nowhere")), folder, seen.append)
    assert seen[-1]["type"] == "error"
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step-0",
        "step-2",
    ]
    assert [e["step"] for e in folder.events() if e["type"] == "step"] == [0, 2]
    assert not learn.trained(folder)


def test_several_processes_train_as_one_and_fail_as_one(spec: TrainSpec, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.data.mkdir()
    rows = [
        Conversation((Message("user", text), Message("assistant", text.upper())), Source("r", n))
        for n, text in enumerate(["one", "two", "three", "four", "five"])
    ]
    for name in ("train", "validation"):
        write_jsonl(rows, folder.data / f"{name}.jsonl")
    seen: list[dict[str, Any]] = []
    two = replace(spec, processes=2, max_batch_tokens=256)
    learn.learn(two, folder, seen.append)
    assert seen[0]["processes"] == 2
    assert [event["rows"] for event in seen if event["type"] == "step"] == [4, 1]
    assert learn.trained(folder)
    with pytest.raises(TrainingError, match="nowhere"):
        learn.learn(replace(two, model=str(tmp_path / "nowhere")), folder, seen.append)


def test_training_has_ended_when_its_last_event_and_the_adapter_are_there(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.emit({"type": "trained", "best_step": 4})
    assert not learn.trained(folder)
    folder.adapter.mkdir()
    assert learn.trained(folder)

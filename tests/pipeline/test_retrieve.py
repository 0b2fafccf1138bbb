"""A whole run with documents on a tiny model, made once and looked at by several tests."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tunesmith import recipe as recipes
from tunesmith.errors import UsageError
from tunesmith.models.catalog import CARD, ENCODER, ENCODERS
from tunesmith.models.fetch import weights_hash
from tunesmith.pipeline import prepare
from tunesmith.pipeline import run as pipeline
from tunesmith.pipeline.folder import RunFolder
from tunesmith.rag.index import known_vectors
from tunesmith.recipe import Recipe
from tunesmith.testing import tiny_model

ANIMALS = ["otter", "heron", "zebra", "whale", "tapir", "gecko", "moose", "raven"]


def keep_encoder(folder: Path, home: Path) -> None:
    """The tiny encoder where the catalogue's stands."""
    place = home / "models" / ENCODER
    shutil.copytree(folder, place)
    card = {"revision": ENCODERS[ENCODER].weights.sha256, "weights_hash": weights_hash(place)}
    (place / CARD).write_text(json.dumps(card))


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory, write_rows: Callable[..., Path]) -> Path:
    """80 questions on eight documents, and a folder of documents with a copy of the questions."""
    folder = tmp_path_factory.mktemp("zoo")
    tiny_model(folder / "tiny", dtype="float32")
    rows = [
        {
            "question": f"What does {name} {n} eat on day {n * 7 % 31}?",
            "answer": f"It eats food number {at} of the list, {n} times a week.",
            "doc_id": f"d{at}",
        }
        for n in range(10)
        for at, name in enumerate(ANIMALS)
    ]
    write_rows(folder, rows)
    (folder / "docs").mkdir()
    write_rows(folder / "docs", rows, "copy.jsonl")
    documents = [
        {
            "doc_id": f"d{at}",
            "title": name,
            "text": f"The {name} eats food number {at} of the list.",
        }
        for at, name in enumerate(ANIMALS)
    ]
    write_rows(folder / "docs", documents, "animals.jsonl")
    return folder


@pytest.fixture(scope="module")
def asked(zoo: Path) -> Recipe:
    values = {
        "model.name": str(zoo / "tiny"),
        "data.files": [str(zoo / "rows.jsonl")],
        "data.docs": [str(zoo / "docs")],
        "train.epochs": 1,
        "train.learning_rate": 0.01,
        "evaluate.arms": ["base", "tuned"],
        "evaluate.max_tokens": 16,
        "data.validation": 12,
        "data.test": 12,
        "evaluate.forecast": False,
        "forgetting.probe": False,
    }
    return recipes.with_values(Recipe(), values)


class Silent:
    """A screen that remembers what it was told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def progress(self, what: str, done: int, total: int | None) -> None:
        pass

    def event(self, event: Any) -> None:
        pass

    def checked(self, prepared: Any, report: Any) -> None:
        self.findings = report.findings


@pytest.fixture(scope="module")
def ended(zoo: Path, asked: Recipe, tiny_encoder: Path) -> Generator[Any]:
    """The finished run, in a home of its own with a tiny sentence encoder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNESMITH_HOME", str(zoo / "home"))
        keep_encoder(tiny_encoder, zoo / "home")
        screen = Silent()
        outcome = pipeline.run(asked, out=zoo / "run", screen=screen, command="", ask=False)
        yield outcome, screen


@pytest.fixture
def folder(ended: Any, zoo: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.setenv("TUNESMITH_HOME", str(zoo / "home"))
    return RunFolder(ended[0].folder)


def test_both_arms_are_measured_beside_the_others(ended: Any, folder: RunFolder) -> None:
    report = ended[0].report
    assert [arm["kind"] for arm in report["arms"]] == ["base", "tuned", "rag", "rag+tuned"]
    assert len(report["comparisons"]) == 6
    assert list(report["timings"]) == [
        *("check", "forecast", "explore", "train", "curve", "probe", "train_rag", "compare"),
    ]
    rows = folder.read_lines("samples/rag.jsonl")
    assert len(rows) == 12
    assert all(row["passages"] and "eats food number" in row["passages"][0] for row in rows)
    assert "retrieval alone" in report["verdict"]["sentence"]
    page = (folder.path / "report.html").read_text()
    assert "rag+tuned" in page
    explored = folder.read_json("explore.json")
    assert set(explored["rows"]) == {"base", "rag"}


def test_retrieval_is_measured_by_itself_with_intervals(ended: Any, folder: RunFolder) -> None:
    (entry,) = [arm for arm in ended[0].report["arms"] if arm["kind"] == "rag"]
    found = entry["retrieval"]
    # A question has its animal's name.
    assert found["recall@5"] == {
        "value": 1.0,
        "low": found["recall@5"]["low"],
        "high": 1.0,
        "n": 12,
    }
    assert 0 < found["recall@1"]["value"] <= found["recall@3"]["value"] <= 1
    assert (found["chunks"], found["encoder"]) == (len(ANIMALS), ENCODER)
    assert {variant["name"] for variant in entry["variants"]} == {
        "passages: 1",
        "passages: 3",
        "passages: 5",
    }


def test_the_second_adapter_is_trained_on_lessons_and_served_as_trained(
    ended: Any, folder: RunFolder
) -> None:
    own = RunFolder(folder.path / "rag")
    assert (own.adapter / "adapter_model.safetensors").is_file()
    assert list((own.path / "checkpoints").glob("step-*"))
    plain, lessons = folder.read_lines("data/train.jsonl"), own.read_lines("data/train.jsonl")
    assert [row["source"] for row in lessons] == [row["source"] for row in plain]
    assert all(row["document"] for row in plain)
    settled = folder.read_json("explore.json")["rag"]
    for row, lesson in zip(plain, lessons, strict=True):
        prompt, asked = (x["messages"][-2]["content"] for x in (lesson, row))
        assert prompt.endswith(f"Question: {asked}")
        assert prompt.count("(") == settled["passages"]
    cited = [row for row in lessons if row["messages"][-1]["content"].endswith("]")]
    assert 0.5 < len(cited) / len(lessons) < 0.95
    (entry,) = [arm for arm in ended[0].report["arms"] if arm["kind"] == "rag+tuned"]
    assert entry["parity"]["largest"] < 0.2


def test_the_runs_own_rows_are_not_indexed_and_that_is_said(ended: Any, folder: RunFolder) -> None:
    said = [note for note in ended[1].said if "the run's own rows" in note]
    assert len(said) == 1
    assert "copy.jsonl" in said[0]
    assert any(f["check"] == "documents" for f in folder.read_json("findings.json"))
    chunks = (RunFolder(folder.path / "rag").path / "index" / "chunks.jsonl").read_text()
    assert "copy.jsonl" not in chunks
    assert "What does" not in chunks


def test_the_index_is_kept_for_the_next_run_over_the_same_files(
    ended: Any, folder: RunFolder
) -> None:
    own = known_vectors(RunFolder(folder.path / "rag").path / "index")
    (cache,) = (Path(folder.path.parent) / "home" / "indexes").iterdir()
    kept = known_vectors(cache)
    assert len(own) == len(ANIMALS)
    assert own.keys() == kept.keys()
    assert all(np.array_equal(own[key], kept[key]) for key in own)


def test_other_documents_make_another_run(ended: Any, folder: RunFolder, asked: Recipe) -> None:
    again = pipeline.run(asked, out=folder.path, screen=Silent(), command="", ask=False)
    assert again.report == ended[0].report
    path = Path(asked.data.docs[0]) / "animals.jsonl"
    before = path.read_text()
    try:
        path.write_text(before.replace("food number 1", "food number 100"))
        with pytest.raises(UsageError, match="holds another run"):
            pipeline.run(asked, out=folder.path, screen=Silent(), command="", ask=False)
    finally:
        path.write_text(before)


def test_questions_without_an_answer_take_that_of_the_document_they_name(
    tmp_path: Path, write_rows: Callable[..., Path]
) -> None:
    rows = [{"question": f"Reworded {n}?", "faq_id": n % 5} for n in range(20)]
    faq = [{"faq_id": n, "question": f"Q{n}?", "answer": f"Answer {n}."} for n in range(4)]
    files = write_rows(tmp_path, rows)
    docs = write_rows(tmp_path, faq, "faq.jsonl")
    values = {"data.files": [str(files)], "data.docs": [str(docs)], "data.max_bad": 1.0}
    recipe = recipes.with_values(Recipe(), values)
    prepared = prepare.gather(recipe.data, None, seed=0)
    found = prepare.demonstrations(prepared.dataset)
    assert len(found) == 16
    assert {(row.document, row.answer.content) for row in found} == {
        (str(n), f"Answer {n}.") for n in range(4)
    }
    report = prepare.examine(prepared, recipe.data, None)
    said = [f.message for f in report.findings if f.check == "documents"]
    assert said == [
        "4 documents of 36 characters.",
        "16 rows are answered by what the document says that they name.",
    ]


def test_an_arm_that_retrieves_is_refused_without_documents() -> None:
    asked = recipes.with_values(Recipe(), {"evaluate.arms": ["base", "rag"]})
    with pytest.raises(UsageError, match=r"evaluate\.arms=rag without documents\. Give --docs"):
        prepare.comparable(asked)
    both = recipes.with_values(Recipe(), {"data.docs": ["x"]})
    assert both.arms == ("base", "classical", "prompt", "tuned", "rag", "rag+tuned")
    one = recipes.with_values(both, {"evaluate.arms": ["base", "rag"]})
    assert one.arms == ("base", "rag")

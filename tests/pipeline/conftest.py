"""One whole run on a tiny model, made once and looked at by many tests."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tunesmith import recipe as recipes
from tunesmith.checks.report import Report
from tunesmith.models import fetch
from tunesmith.pipeline import run as pipeline
from tunesmith.pipeline.folder import Clock, Event, RunFolder
from tunesmith.pipeline.prepare import Prepared
from tunesmith.recipe import Recipe
from tunesmith.store import Store
from tunesmith.testing import tiny_model

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@dataclass
class Watched:
    """A screen that remembers."""

    said: list[str] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)

    def say(self, text: str) -> None:
        self.said.append(text)

    def progress(self, what: str, done: int, total: int | None) -> None:
        assert total is None or 0 <= done <= total, what

    def event(self, event: Event) -> None:
        self.events.append(event)

    def checked(self, prepared: Prepared, report: Report) -> None:
        self.reports.append(report)


@dataclass(frozen=True)
class Made:
    """A finished run."""

    home: Path
    folder: RunFolder
    recipe: Recipe
    """As it was asked for."""
    run: pipeline.Run
    report: dict[str, Any]
    seconds: float


@contextmanager
def living_in(home: Path) -> Generator[None]:
    """TUNESMITH_HOME for longer than one test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNESMITH_HOME", str(home))
        yield


@pytest.fixture
def screen() -> Watched:
    return Watched()


@pytest.fixture(scope="session")
def write_rows() -> Callable[..., Path]:
    """Writes rows of JSON lines into a folder."""

    def write(folder: Path, rows: list[Any], name: str = "rows.jsonl") -> Path:
        path = folder / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def numbers() -> list[dict[str, str]]:
    """120 rows: say N, and the word of its last digit."""
    return [{"prompt": f"say {n}", "completion": WORDS[n % 10]} for n in range(120)]


@pytest.fixture(scope="session")
def place(
    tmp_path_factory: pytest.TempPathFactory,
    numbers: list[dict[str, str]],
    write_rows: Callable[..., Path],
) -> Path:
    """A folder with a model and rows that all processes of this test run have in common."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "one-run"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "place.lock"):
        if not (folder / "rows.jsonl").is_file():
            tiny_model(folder / "tiny", dtype="float32")
            write_rows(folder, numbers)
    return folder


@pytest.fixture(scope="session")
def model(place: Path) -> Path:
    return place / "tiny"


@pytest.fixture(scope="session")
def wanted(place: Path, model: Path) -> Recipe:
    """A recipe for the rows, as a person would give it: all else is `auto`."""
    values = {
        "model.name": str(model),
        "data.files": [str(place / "rows.jsonl")],
        "train.epochs": 1,
        "train.learning_rate": 0.01,
    }
    return recipes.with_values(Recipe(), values)


@pytest.fixture(scope="session")
def made(place: Path, wanted: Recipe) -> Made:
    """A whole run, made by the first process that wants it."""
    home, seconds = place / "home", place / "seconds.json"
    with living_in(home), FileLock(place / "made.lock"):
        began = time.monotonic()
        run = pipeline.open_run(
            wanted, out=home / "run", screen=Watched(), command="tunesmith run rows.jsonl"
        )
        if not seconds.is_file():
            took = make(run, began)
            seconds.write_text(json.dumps(took))
    report = run.folder.read_json("report.json")
    return Made(home, run.folder, wanted, run, report, json.loads(seconds.read_text()))


def make(run: pipeline.Run, began: float) -> float:
    """The steps one by one; the test rows are not there until they are compared on (trap 35)."""
    folder, clock = run.folder, Clock(run.folder, began)
    test, away = folder.data / "test.jsonl", folder.path / "away.jsonl"
    with Store.at(fetch.home()) as store:
        store.add_run(folder.id, folder=folder.path, key=folder.id)
        shutil.move(test, away)
        for name, step in pipeline.STEPS:
            if name == "compare":
                shutil.move(away, test)
            clock.started(name)
            step(run)
            clock.done(name)
        took = time.monotonic() - began
        pipeline.finish(run, store)
    return took


@pytest.fixture
def at_home(made: Made, monkeypatch: pytest.MonkeyPatch) -> Made:
    """The finished run, with TUNESMITH_HOME where it was made."""
    monkeypatch.setitem(os.environ, "TUNESMITH_HOME", str(made.home))
    return made

"""A job's steps: in this process, and as processes that are killed."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from filelock import FileLock

from tunesmith import recipe as recipes
from tunesmith.pipeline import job
from tunesmith.pipeline.folder import RunFolder
from tunesmith.pipeline.results import result_csv
from tunesmith.train import lock

Write = Callable[..., Path]
CLOCK = ("at", "seconds", "memory_mb")
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def chat(number: int) -> dict[str, Any]:
    asked = {"role": "user", "content": f"say {number}"}
    return {"messages": [asked, {"role": "assistant", "content": WORDS[number % 10]}]}


@dataclass(frozen=True)
class Asked:
    """Where a job's spec is written, and what it says."""

    place: Path
    model: Path
    rows: Path
    held: Path | None = None

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.place / "run")

    def write(self, step: str, *, parent: int = 0, times: Any = "auto", **settings: Any) -> Path:
        tree = {
            "model": {"name": str(self.model)},
            "data": {
                "files": [str(self.rows)],
                "validation": str(self.held) if self.held else 0,
                "test": 0,
            },
            "train": {"seed": 3, **settings},
        }
        held = {"id": "file-b", "filename": "held.jsonl"}
        spec = {
            "step": step,
            "folder": str(self.folder.path),
            "parent": parent,
            "recipe": tree,
            "learning_rate_multiplier": times,
            "files": {
                "training": {"id": "file-a", "filename": "mine.jsonl"},
                "validation": held if self.held else None,
            },
        }
        path = self.place / f"{step}.json"
        path.write_text(json.dumps(spec))
        return path


@pytest.fixture
def asked(model: Path, tmp_path: Path, write_rows: Write) -> Asked:
    return Asked(tmp_path, model, write_rows(tmp_path, [chat(n) for n in range(24)]))


@pytest.fixture(autouse=True)
def _process() -> Generator[None]:
    """What the process edge sets for good."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    mask = os.umask(0o022)
    yield
    os.umask(mask)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[Path], tuple[int, list[dict[str, Any]]]]:
    """A step in this process: exit code and events."""

    def main(spec: Path) -> tuple[int, list[dict[str, Any]]]:
        monkeypatch.setattr(sys, "argv", ["job", str(spec)])
        code = job.main()
        return code, [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return main


Run = Callable[[Path], tuple[int, list[dict[str, Any]]]]


def said(events: list[dict[str, Any]], level: str) -> list[str]:
    return [e["message"] for e in events if e["type"] == "message" and e["level"] == level]


def test_a_checked_job_has_its_hyperparameters_and_all_that_training_needs(
    asked: Asked, run: Run
) -> None:
    code, events = run(asked.write("check"))
    assert code == 0
    # A byte is a token, and so is the end of a turn.
    trained = sum(len(WORDS[n % 10]) + 1 for n in range(24))
    assert events[-1] == {
        **{"type": "checked", "rows": 24, "validation_rows": 0, "steps": 30},
        **{"tokens": events[-1]["tokens"], "trained_tokens": trained},
        "hyperparameters": {"n_epochs": 5, "batch_size": 4, "learning_rate_multiplier": 1.0},
    }
    folder = asked.folder
    recipe = recipes.read(folder.recipe)
    assert (recipe.train.patience, recipe.data.validation, recipe.data.test) == (3, 0, 0)
    assert folder.read_json("environment.json")["key"].startswith(folder.id)
    assert {path.stat().st_mode & 0o77 for path in folder.path.rglob("*")} == {0}


def test_what_was_asked_for_is_exact_and_the_rate_is_a_multiple_of_that_of_auto(
    asked: Asked, run: Run, tmp_path: Path
) -> None:
    run(asked.write("check", epochs=2, batch_rows=5))
    auto = recipes.read(asked.folder.recipe).train
    other = Asked(tmp_path / "other", asked.model, asked.rows)
    other.place.mkdir()
    _, events = run(other.write("check", epochs=2, batch_rows=5, times=0.5))
    train = recipes.read(other.folder.recipe).train
    assert (train.epochs, train.batch_rows, train.patience) == (2, 5, 0)
    assert train.learning_rate == pytest.approx(float(auto.learning_rate) / 2)
    assert events[-1]["steps"] == 10
    assert events[-1]["hyperparameters"]["learning_rate_multiplier"] == 0.5


def test_a_finished_check_is_told_again_and_a_half_written_one_begins_anew(
    asked: Asked, run: Run
) -> None:
    spec = asked.write("check")
    asked.folder.emit({"type": "message", "key": "k", "level": "info", "message": "cut short"})
    (asked.folder.path / "data").mkdir()
    first = run(spec)
    assert "cut short" not in said(first[1], "info")
    before = {path: path.stat().st_mtime_ns for path in asked.folder.path.rglob("*")}
    assert run(spec) == first
    assert {path: path.stat().st_mtime_ns for path in asked.folder.path.rglob("*")} == before


def test_findings_are_told_by_example_and_copies_are_kept(
    asked: Asked, run: Run, write_rows: Write
) -> None:
    mail = chat(7)
    mail["messages"][0]["content"] = "write to ada.lovelace@gmail.com"
    rows = [json.dumps(row) for row in [*map(chat, range(20)), mail, chat(3)]]
    asked.rows.write_text("\n\n".join(rows) + "\n\n")
    held = write_rows(asked.place, [chat(5), *map(chat, range(70, 80))], "held.jsonl")
    asked = Asked(asked.place, asked.model, asked.rows, held)
    code, events = run(asked.write("check"))
    assert code == 0
    warned = "\n".join(said(events, "warn"))
    assert (
        "mine.jsonl: 1 example(s) repeat an earlier one word for word, and are kept: 22" in warned
    )
    (private,) = [text for text in said(events, "warn") if "mail" in text]
    assert private.endswith("(example 21)")
    # Its prompt is held out; a model that had learned it would be measured on what it knows.
    (leaked,) = [text for text in said(events, "warn") if "taken out of training" in text]
    assert leaked.endswith("(example 6)")
    assert (events[-1]["rows"], events[-1]["validation_rows"]) == (21, 11)
    assert str(asked.place) not in json.dumps(events)


def test_a_training_that_cannot_go_on_is_an_error(asked: Asked, run: Run) -> None:
    run(asked.write("check", epochs=1, times=1e38))
    code, events = run(asked.write("train", epochs=1, times=1e38))
    assert code == 1
    assert (events[-1]["type"], events[-1]["code"]) == ("error", "training_failed")
    assert "gradient is not finite" in events[-1]["message"]


def test_training_without_a_check_is_an_error(asked: Asked, run: Run) -> None:
    code, events = run(asked.write("train"))
    assert (code, events[-1]["code"]) == (1, "server_error")
    assert "have not been checked" in events[-1]["message"]


def test_what_nobody_foresaw_is_an_error_event(run: Run, tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text('{"step": "dance"}')
    code, events = run(spec)
    assert (code, events[-1]["code"]) == (1, "server_error")
    assert "ValidationError" in events[-1]["message"]


def test_a_folder_in_which_somebody_trains_is_tried_again(
    asked: Asked, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(asked.write("check"))
    monkeypatch.setattr(lock, "PATIENCE", 0.1)
    with FileLock(asked.folder.path / ".lock"):
        code, events = run(asked.write("train"))
    assert code == job.AGAIN
    assert events[-1]["type"] == "crashed"
    assert str(asked.place) not in events[-1]["message"]


def test_a_full_disk_is_an_error_of_its_own(
    asked: Asked, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        code, events = run(asked.write("check"))
    assert (code, events[-1]["code"]) == (1, "disk_full")
    code, events = run(asked.write("check", epochs=1))
    assert (code, events[-1]["type"]) == (0, "checked")
    if Path("/dev/full").exists():
        (asked.folder.path / "parity.json").symlink_to("/dev/full")
        code, events = run(asked.write("train", epochs=1))
        assert (code, events[-1]["code"]) == (1, "disk_full")


PARENT = """
import json, os, subprocess, sys, time
path = sys.argv[1]
spec = json.load(open(path))
spec["parent"] = os.getpid()
json.dump(spec, open(path, "w"))
subprocess.Popen([sys.executable, "-m", "tunesmith.pipeline.job", path], start_new_session=True)
time.sleep(600)
"""


def start(spec: Path, *, below: bool = False) -> subprocess.Popen[str]:
    """A step as a process, or the process that is its parent."""
    command = ["-c", PARENT] if below else ["-m", "tunesmith.pipeline.job"]
    return subprocess.Popen(
        [sys.executable, *command, str(spec)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


def until(running: subprocess.Popen[str], step: int) -> list[dict[str, Any]]:
    """Events up to a step."""
    assert running.stdout is not None
    events: list[dict[str, Any]] = []
    for line in running.stdout:
        events.append(json.loads(line))
        if events[-1]["type"] == "step" and events[-1]["step"] == step:
            return events
    raise AssertionError(events[-1:])


def within(seconds: float, processes: list[psutil.Process]) -> bool:
    """Whether all of them end in time; one that nobody has reaped yet has ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes):
            return True
        time.sleep(0.02)
    return False


def plain(events: list[dict[str, Any]]) -> dict[Any, dict[str, Any]]:
    """Events by what they are known by, without the clock; one told twice is the same twice."""
    kept: dict[Any, dict[str, Any]] = {}
    for event in events:
        if event["type"] in ("training", "resumed", "interrupted", "crashed"):
            continue
        value = {name: value for name, value in event.items() if name not in CLOCK}
        known = event.get("key") or (event["type"], event["step"])
        assert kept.setdefault(known, value) == value
    return kept


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends processes with their parents")
def test_a_job_that_is_killed_again_and_again_ends_as_one_that_never_was(
    asked: Asked, run: Run, write_rows: Write, tmp_path: Path
) -> None:
    held = write_rows(tmp_path, [chat(n) for n in range(50, 60)], "held.jsonl")
    killed, unbroken = (
        Asked(tmp_path / name, asked.model, asked.rows, held) for name in ("killed", "unbroken")
    )
    settings: dict[str, Any] = {"epochs": 8, "save_every": 2}
    for one in (killed, unbroken):
        one.place.mkdir()
        assert run(one.write("check", **settings))[0] == 0
    code, wanted = run(unbroken.write("train", **settings))
    assert code == 0

    seen: list[dict[str, Any]] = []
    draw = random.Random(0)
    ends = {"parent": None, "job": -signal.SIGKILL, "trainer": job.AGAIN, "term": job.STOPPED}
    for place, (whom, code) in enumerate(ends.items()):
        running = start(killed.write("train", **settings), below=whom == "parent")
        seen += until(running, draw.randint(8 * place + 3, 8 * place + 9))
        children = psutil.Process(running.pid).children(recursive=True)
        assert len(children) == 1 + (whom == "parent")
        if whom == "trainer":
            children[0].kill()
        else:
            running.send_signal(signal.SIGTERM if whom == "term" else signal.SIGKILL)
        assert within(1.0, children), whom
        rest, _ = running.communicate(timeout=10)
        seen += [json.loads(line) for line in rest.splitlines() if line.endswith("}")]
        assert code in (None, running.returncode), whom
        if whom in ("trainer", "term"):
            assert seen[-1]["type"] == {"trainer": "crashed", "term": "interrupted"}[whom]
    code, rest = run(killed.write("train", **settings))
    assert code == 0

    # The last attempt alone tells all of it, for whoever has lost what came before.
    assert plain(rest) == plain([*seen, *rest]) == plain(wanted)
    steps = [event["step"] for event in killed.folder.events() if event["type"] == "step"]
    assert steps == list(range(1, 49))
    assert result_csv(killed.folder.events()) == result_csv(wanted)
    for name in ("adapter", "adapters"):
        files = [path for path in (unbroken.folder.path / name).rglob("*") if path.is_file()]
        there = [path for path in (killed.folder.path / name).rglob("*") if path.is_file()]
        assert len(there) == len(files) >= 3
        for path in files:
            other = killed.folder.path / path.relative_to(unbroken.folder.path)
            assert other.read_bytes() == path.read_bytes()

    code, again = run(killed.write("train", **settings))
    assert (code, plain(again)) == (0, plain(wanted))
    best = next(event["best_step"] for event in wanted if event["type"] == "trained")
    assert any(f"the model is that of step {best} of 48" in text for text in said(wanted, "info"))


def test_a_spec_takes_no_unknown_word(asked: Asked) -> None:
    spec = json.loads(asked.write("check").read_text())
    with pytest.raises(ValueError, match="verbose"):
        job.Spec.model_validate({**spec, "verbose": True})
    with pytest.raises(ValueError, match="learning_rate_multiplier"):
        job.Spec.model_validate({**spec, "learning_rate_multiplier": 0})

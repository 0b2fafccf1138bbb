from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunesmith.pipeline.folder import Clock, RunFolder, timings


def kinds(folder: RunFolder) -> list[tuple[str, int]]:
    return [(event["type"], event.get("step", -1)) for event in folder.events()]


def test_events_come_back_in_order_each_with_its_time(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "new" / "run")
    folder.emit({"type": "step", "step": 1, "loss": 0.1 + 0.2})
    folder.emit({"type": "say", "text": "\u2028 ü\n"})
    first, second = folder.events()
    assert first["loss"] == 0.1 + 0.2
    assert second["text"] == "\u2028 ü\n"
    assert first["at"] <= second["at"]
    assert RunFolder(tmp_path / "none").events() == []


@pytest.mark.parametrize("cut", [1, 7, 30])
def test_a_line_that_a_kill_cut_short_is_left_out_and_joins_no_other(
    tmp_path: Path, cut: int
) -> None:
    folder = RunFolder(tmp_path)
    for step in (1, 2):
        folder.emit({"type": "step", "step": step})
    path = tmp_path / "events.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    assert kinds(folder) == [("step", 1)]
    folder.emit({"type": "step", "step": 2})
    assert kinds(folder) == [("step", 1), ("step", 2)]


def test_a_log_that_is_one_cut_line_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text('{"type": "st')
    RunFolder(tmp_path).emit({"type": "step", "step": 1})
    assert kinds(RunFolder(tmp_path)) == [("step", 1)]


def test_going_back_to_a_checkpoint_forgets_the_trainers_later_events_alone(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for kind, step in (("step", 2), ("checkpoint", 2), ("step", 3), ("validation", 3)):
        folder.emit({"type": kind, "step": step})
    folder.emit({"type": "stage", "name": "train", "state": "started"})
    folder.forget_after(2)
    assert kinds(folder) == [("step", 2), ("checkpoint", 2), ("stage", -1)]


def test_files_are_whole_or_as_they_were(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_json("report.json", {"a": "ü"})
    with pytest.raises(TypeError):
        folder.write_json("report.json", {"a": object()})
    with pytest.raises(UnicodeEncodeError):
        folder.write("report.json", "\ud800")
    assert folder.read_json("report.json") == {"a": "ü"}
    folder.write_lines("samples/base.jsonl", [{"id": "1"}, {"id": "2"}])
    assert folder.read_lines("samples/base.jsonl") == [{"id": "1"}, {"id": "2"}]
    assert not folder.finished
    folder.write("report.html", "<p>")
    assert folder.finished


def test_stages_leave_no_time_out_and_attempts_add_up(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    clock = Clock(folder, since=0.0)
    clock.started("check")
    clock.done("check")
    clock.started("explore")
    clock.done("explore")
    first = timings(folder.events())
    assert first["check"] > first["explore"] >= 0
    folder.emit({"type": "stage", "name": "explore", "state": "done", "seconds": 5.0})
    folder.emit({"type": "stage", "name": "train", "state": "started", "seconds": 0.0})
    again = timings(folder.events())
    assert again["explore"] == first["explore"] + 5.0
    assert set(again) == {"check", "explore"}
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert all(set(json.loads(line)) >= {"at", "type", "name", "state"} for line in lines)

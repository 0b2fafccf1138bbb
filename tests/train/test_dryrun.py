"""A few real steps, and what they say of the whole."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tunesmith.train import dryrun
from tunesmith.train.fit import fit
from tunesmith.train.spec import TrainSpec

Spec = Callable[..., TrainSpec]


def test_a_dry_run_knows_the_schedule_and_leaves_nothing_behind(
    spec_of: Spec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = spec_of(tmp_path / "out")
    path = tmp_path / "spec.json"
    told.write(path)
    monkeypatch.setattr(sys, "argv", ["dryrun", str(path)])
    dryrun.main()
    found = json.loads(capsys.readouterr().out)
    events: list[dict[str, object]] = []
    assert list((tmp_path / "out").iterdir()) == []
    fit(told, events.append)
    took = [event for event in events if event["type"] == "step"]
    kept = [event for event in events if event["type"] == "checkpoint"]
    plan = found["schedule"]
    assert plan["steps"] == len(took) == 8
    assert plan["validations"] == len(kept) == 5
    assert plan["tokens"] == sum(int(str(event["distinct_tokens"])) for event in took)
    sizes = sorted(step["tokens"] for step in found["steps"])
    assert sizes[0] == min(event["distinct_tokens"] for event in took)
    assert sizes[-1] == max(event["distinct_tokens"] for event in took)
    assert len(sizes) == dryrun.STEPS
    parts = [found["startup"], found["validation"], found["ending"], *found["steps"]]
    assert all(part["seconds"] > 0 and part["cpu_seconds"] > 0 for part in parts)
    assert found["memory_mb"] > 50
    assert 0 < found["learned"] < found["parameters"]


def test_without_held_out_rows_a_validation_is_a_checkpoint(spec_of: Spec, tmp_path: Path) -> None:
    none = tmp_path / "none.jsonl"
    none.write_text("")
    told = spec_of(tmp_path / "out")
    with_rows, without = (
        dryrun.dry_run(spec)["validation"] for spec in (told, replace(told, validation=str(none)))
    )
    assert 0 < without["cpu_seconds"] < with_rows["cpu_seconds"] * 3


def test_no_further_step_is_begun_when_time_is_up(
    spec_of: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dryrun, "MOST_SECONDS", 0.0)
    assert len(dryrun.dry_run(spec_of(tmp_path / "out"))["steps"]) == 3

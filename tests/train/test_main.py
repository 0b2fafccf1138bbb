"""The training process from outside: kill, interrupt, locks, full disks."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tunesmith.train import __main__ as process
from tunesmith.train import checkpoint, lock
from tunesmith.train.spec import TrainSpec

Spec = Callable[..., TrainSpec]


def start(spec: TrainSpec) -> subprocess.Popen[str]:
    path = Path(spec.out) / "spec.json"
    spec.write(path)
    command = [sys.executable, "-m", "tunesmith.train", str(path)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def until(running: subprocess.Popen[str], step: int) -> list[dict[str, Any]]:
    """Events up to a step."""
    assert running.stdout is not None
    events: list[dict[str, Any]] = []
    for line in running.stdout:
        events.append(json.loads(line))
        if events[-1].get("step") == step and events[-1]["type"] == "step":
            break
    return events


def finish(running: subprocess.Popen[str]) -> tuple[list[dict[str, Any]], str]:
    out, errors = running.communicate(timeout=120)
    return [json.loads(line) for line in out.splitlines()], errors


def main(
    spec: TrainSpec, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, list[dict[str, Any]]]:
    """The same in this process: its exit code and events."""
    path = Path(spec.out) / "spec.json"
    spec.write(path)
    monkeypatch.setattr(sys, "argv", ["tunesmith.train", str(path)])
    code = process.main()
    return code, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def log(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last event of each kind and step, without its clock: what a log holds in the end."""
    kept = {
        (event["type"], event["step"]): {
            key: value for key, value in event.items() if key not in ("seconds", "memory_mb")
        }
        for event in events
        if event["type"] in ("step", "validation", "checkpoint", "trained")
    }
    return [kept[key] for key in sorted(kept)]


@pytest.mark.parametrize(
    ("made", "settings"),
    [
        ("adapter", {"dropout": 0.1}),
        ("adapter", {"embeddings": True, "dtype": "bfloat16"}),
        ("model", {"full": True, "embeddings": True, "dtype": "bfloat16"}),
    ],
    ids=["adapter", "embeddings", "full"],
)
def test_trap_21_a_run_that_was_killed_and_resumed_is_one_that_never_stopped(
    spec_of: Spec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    made: str,
    settings: dict[str, Any],
) -> None:
    long: dict[str, Any] = {"epochs": 16.0, "save_every": 10, **settings}
    running = start(spec_of(tmp_path / "killed", **long))
    first = until(running, 25)
    running.kill()
    running.communicate()
    assert running.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / made).exists()

    code, second = main(spec_of(tmp_path / "killed", **long), monkeypatch, capsys)
    assert code == 0
    at = next(event["step"] for event in second if event["type"] == "resumed")
    assert at in (20, 30)

    code, unbroken = main(spec_of(tmp_path / "unbroken", **long), monkeypatch, capsys)
    assert code == 0
    seen = [event for event in first if event.get("step", 0) <= at]
    assert log(seen + second) == log(unbroken)[: len(log(seen + second))]
    assert len(log(seen + second)) == len(log(unbroken))
    for file in sorted((tmp_path / "unbroken" / made).iterdir()):
        assert file.read_bytes() == (tmp_path / "killed" / made / file.name).read_bytes()


def test_ctrl_c_ends_with_130_and_the_run_can_go_on(spec_of: Spec, tmp_path: Path) -> None:
    spec = spec_of(tmp_path, epochs=500.0)
    running = start(spec)
    until(running, 3)
    running.send_signal(signal.SIGINT)
    events, _ = finish(running)
    assert running.returncode == 130
    assert events[-1] == {"type": "interrupted"}
    assert checkpoint.steps(tmp_path / "checkpoints")


PARENT = """
import dataclasses, os, subprocess, sys, time
from pathlib import Path
from tunesmith.train.spec import TrainSpec
path = Path(sys.argv[1])
dataclasses.replace(TrainSpec.read(path), parent=os.getpid()).write(path)
child = subprocess.Popen([sys.executable, "-m", "tunesmith.train", str(path)])
print(child.pid, flush=True)
time.sleep(600)
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
    return state != "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_training_process_dies_with_its_parent(spec_of: Spec, tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    spec_of(tmp_path, epochs=100_000.0).write(path)
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    until(parent, 2)
    assert alive(child)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(child)
    parent.stdout.close()


def test_a_second_trainer_in_the_same_folder_is_refused(
    spec_of: Spec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(lock, "PATIENCE", 0.1)
    with FileLock(tmp_path / ".lock"):
        code, events = main(spec_of(tmp_path), monkeypatch, capsys)
    assert code == 1
    assert events[-1]["code"] == "folder_busy"
    assert "another process is training" in events[-1]["message"]
    assert "--out" in events[-1]["message"]
    assert not (tmp_path / "checkpoints").exists()


def test_a_full_disk_keeps_the_last_checkpoint_and_says_how_to_go_on(
    spec_of: Spec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, wanted = main(spec_of(tmp_path / "roomy"), monkeypatch, capsys)
    assert code == 0
    calls = iter(range(100))
    plain_fsync = os.fsync

    def fsync(descriptor: int) -> None:
        # Two for each checkpoint, the file's and the folder's: the third one does not fit.
        if next(calls) >= 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        plain_fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        code, events = main(spec_of(tmp_path / "full"), patch, capsys)
    assert code == 1
    assert events[-1]["code"] == "disk_full"
    assert "the disk is full" in events[-1]["message"]
    assert "type the same command" in events[-1]["message"]
    folder = tmp_path / "full" / "checkpoints"
    assert checkpoint.steps(folder) == [0, 2]
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []

    code, rest = main(spec_of(tmp_path / "full"), monkeypatch, capsys)
    assert code == 0
    assert log([event for event in events if event.get("step", 9) <= 2] + rest) == log(wanted)
    for file in sorted((tmp_path / "roomy" / "adapter").iterdir()):
        assert file.read_bytes() == (tmp_path / "full" / "adapter" / file.name).read_bytes()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_an_adapter_that_does_not_fit_the_disk_leaves_no_half_of_it(
    spec_of: Spec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain_write = Path.write_bytes

    def write(path: Path, content: bytes) -> int:
        if path.name == "adapter_model.safetensors":
            path.symlink_to("/dev/full")
        return plain_write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", write)
        code, events = main(spec_of(tmp_path), patch, capsys)
    assert code == 1
    assert "the disk is full" in events[-1]["message"]
    assert not (tmp_path / "adapter").exists()


def test_a_model_that_is_not_there_is_an_error_event(
    spec_of: Spec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, events = main(spec_of(tmp_path, model=str(tmp_path)), monkeypatch, capsys)
    assert code == 1
    assert events[-1]["type"] == "error"
    assert "does not load" in events[-1]["message"]


def test_what_nobody_foresaw_is_an_error_event_with_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "spec.json"
    path.write_text('{"unknown": 1}')
    monkeypatch.setattr(sys, "argv", ["tunesmith.train", str(path)])
    assert process.main() == 1
    said = capsys.readouterr()
    assert json.loads(said.out)["type"] == "error"
    assert "Traceback" in said.err

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from tunesmith.train import checkpoint


def save(folder: Path, *steps: int) -> None:
    for step in steps:
        checkpoint.save(folder, step, {"weights": [torch.full((3,), float(step))]})


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    save(tmp_path, 4)
    assert checkpoint.load(tmp_path, 4)["weights"][0].tolist() == [4, 4, 4]


def test_the_newest_two_and_the_best_are_kept(tmp_path: Path) -> None:
    save(tmp_path, 0, 2, 4, 6, 10)
    checkpoint.prune(tmp_path, best=2)
    assert checkpoint.steps(tmp_path) == [2, 6, 10]
    checkpoint.prune(tmp_path, best=10)
    assert checkpoint.steps(tmp_path) == [6, 10]


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    save(tmp_path, 100, 20, 3)
    assert checkpoint.steps(tmp_path) == [3, 20, 100]


def test_a_folder_that_was_not_finished_is_never_read(tmp_path: Path) -> None:
    save(tmp_path, 2)
    (tmp_path / ".step-4.partial").mkdir()
    (tmp_path / ".step-4.partial" / "state.pt").write_bytes(b"half")
    (tmp_path / "step-6").mkdir()
    assert checkpoint.steps(tmp_path) == [2]
    # And does not stand in the way of the next attempt.
    save(tmp_path, 4)
    assert checkpoint.steps(tmp_path) == [2, 4]
    assert not (tmp_path / ".step-4.partial").exists()


def test_a_full_disk_leaves_the_earlier_checkpoint_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 2)

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            save(tmp_path, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["step-2"]
    save(tmp_path, 4)
    assert checkpoint.steps(tmp_path) == [2, 4]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_disk_that_refuses_bytes_is_an_os_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's own writer would turn it into a RuntimeError about positions."""
    plain_open = Path.open
    monkeypatch.setattr(Path, "open", lambda self, mode: plain_open(Path("/dev/full"), mode))
    with pytest.raises(OSError) as caught:
        checkpoint.save(tmp_path, 1, {"weights": torch.zeros(1_000_000)})
    assert caught.value.errno == errno.ENOSPC


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    save(tmp_path, 2)
    checkpoint.save(tmp_path, 2, {"weights": [torch.zeros(1)]})
    assert checkpoint.load(tmp_path, 2)["weights"][0].tolist() == [0]


def test_no_code_is_unpickled(tmp_path: Path) -> None:
    save(tmp_path, 2)
    torch.save({"x": Path("anything")}, tmp_path / "step-2" / "state.pt")
    with pytest.raises(Exception, match=r"(?i)weights.?only"):
        checkpoint.load(tmp_path, 2)

"""Two processes that train as one are one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tunesmith.models.lifetime import environment
from tunesmith.train import checkpoint
from tunesmith.train.ranks import Ranks
from tunesmith.train.spec import TrainSpec

Spec = Callable[..., TrainSpec]
CLOCK = ("seconds", "memory_mb", "processes", "distinct_tokens")
"""What one process and two do not have in common: they share fewer prefixes."""


def run(spec: TrainSpec, processes: int) -> list[dict[str, Any]]:
    """The events of a run by torchrun; one process is started as usual."""
    path = Path(spec.out) / "spec.json"
    spec.write(path)
    ours = ["-m", "tunesmith.train", str(path)]
    many = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    ran = subprocess.run(
        [sys.executable, *(many if processes > 1 else []), *ours],
        env=environment() | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert ran.returncode == 0, ran.stdout[-600:] + ran.stderr[:3000]
    events = [json.loads(line) for line in ran.stdout.splitlines()]
    return [{k: v for k, v in event.items() if k not in CLOCK} for event in events]


def assert_equal(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    assert [event["type"] for event in ours] == [event["type"] for event in theirs]
    for one, two in zip(ours, theirs, strict=True):
        assert one.keys() == two.keys()
        for key, value in two.items():
            number = isinstance(value, float)
            assert one[key] == (pytest.approx(value, rel=1e-5) if number else value)


def test_trap_07_two_processes_are_one_and_their_checkpoint_loads_at_one(
    spec_of: Spec, tmp_path: Path
) -> None:
    # 22 rows by 7: the last step of an epoch has a single row, and the second process none.
    settings = {"dtype": "float32", "batch_rows": 7, "save_every": 4, "patience": 0}
    one = run(spec_of(tmp_path / "one", **settings), 1)
    two = run(spec_of(tmp_path / "two", **settings), 2)
    assert_equal(two, one)
    weights = [
        checkpoint.load(tmp_path / name / "checkpoints", 8)["trainer"]["weights"]
        for name in ("one", "two")
    ]
    for ours, theirs in zip(*weights, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    # Two processes begin, one goes on.
    half = tmp_path / "two" / "checkpoints" / "step-8"
    half.rename(tmp_path / "gone")
    resumed = run(spec_of(tmp_path / "two", **settings), 1)
    assert resumed[1] == {"type": "resumed", "step": 4}
    assert_equal(
        [e for e in resumed if e["type"] == "step"], [e for e in one if e["type"] == "step"][4:]
    )


def test_a_process_alone_adds_nothing_and_owns_everything() -> None:
    ranks = Ranks()
    held = torch.ones(3)
    ranks.add([held])
    assert (ranks.first, ranks.own([1, 2, 3]), ranks.total([2.0])) == (True, [1, 2, 3], [2.0])
    assert held.tolist() == [1, 1, 1]
    assert Ranks(1, 2).own([1, 2, 3]) == [2]
    assert os.environ.get("WORLD_SIZE") is None
    assert Ranks.join() == ranks

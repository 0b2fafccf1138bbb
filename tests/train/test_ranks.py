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
from safetensors.torch import load_file

from tunesmith.models.lifetime import environment
from tunesmith.train.fit import fit
from tunesmith.train.ranks import Ranks
from tunesmith.train.spec import TrainSpec

Spec = Callable[..., TrainSpec]
CLOCK = ("seconds", "memory_mb", "processes", "distinct_tokens")
"""What one process and two do not have in common: they share fewer prefixes."""


def plain(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in event.items() if k not in CLOCK} for event in events]


def alone(spec: TrainSpec) -> list[dict[str, Any]]:
    """The events of a run in this process."""
    events: list[dict[str, Any]] = []
    fit(spec, events.append)
    return plain(events)


def torchrun(spec: TrainSpec) -> list[dict[str, Any]]:
    """The events of a run in two processes, as a user starts them."""
    path = Path(spec.out) / "spec.json"
    spec.write(path)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ran = subprocess.run(
        [sys.executable, *launch, "-m", "tunesmith.train", str(path)],
        env=environment() | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert ran.returncode == 0, ran.stdout[-600:] + ran.stderr[:3000]
    return plain([json.loads(line) for line in ran.stdout.splitlines()])


def assert_equal(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    assert [event["type"] for event in ours] == [event["type"] for event in theirs]
    for one, two in zip(ours, theirs, strict=True):
        assert one.keys() == two.keys()
        for key, value in two.items():
            number = isinstance(value, float)
            assert one[key] == (pytest.approx(value, rel=1e-5) if number else value)


# 22 rows by 7: the last step of an epoch has a single row, and the second process none.
SETTINGS = {"dtype": "float32", "batch_rows": 7, "save_every": 4, "patience": 0}


@pytest.fixture(scope="module")
def one(
    spec_of: Spec, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[dict[str, Any]]]:
    """The folder and the events of a process alone."""
    out = tmp_path_factory.mktemp("one")
    return out, alone(spec_of(out, **SETTINGS))


@pytest.mark.parametrize("sharding", ["none", "full"])
def test_trap_07_two_processes_are_one_and_their_checkpoint_loads_at_one(
    one: tuple[Path, list[dict[str, Any]]], spec_of: Spec, tmp_path: Path, sharding: str
) -> None:
    folder, events = one
    assert_equal(torchrun(spec_of(tmp_path, sharding=sharding, **SETTINGS)), events)
    adapters = [
        load_file(out / "adapter" / "adapter_model.safetensors") for out in (tmp_path, folder)
    ]
    torch.testing.assert_close(*adapters, rtol=1e-4, atol=1e-6)
    # Two processes begin, one goes on.
    (tmp_path / "checkpoints" / "step-8").rename(tmp_path / "gone")
    resumed = alone(spec_of(tmp_path, **SETTINGS))
    assert resumed[1] == {"type": "resumed", "step": 4}
    assert_equal(
        [e for e in resumed if e["type"] == "step"], [e for e in events if e["type"] == "step"][4:]
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

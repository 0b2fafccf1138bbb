"""Two processes that hold a model together are one that holds it alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tunesmith.data.examples import Conversation
from tunesmith.errors import TrainingError
from tunesmith.models.lifetime import environment
from tunesmith.models.load import LoadedModel, load
from tunesmith.testing import byte_template
from tunesmith.train import checkpoint, methods, objectives
from tunesmith.train.fit import fit, trainer_of
from tunesmith.train.pack import pack
from tunesmith.train.ranks import Ranks
from tunesmith.train.sharded import NOTHING, Sharded
from tunesmith.train.spec import TrainSpec

Spec = Callable[..., TrainSpec]
EXACT = "gpt_neox"
"""A family that stays in float64 throughout."""
FULL = {"full": True, "embeddings": True, "learning_rate": 1e-3}
CASES: dict[str, dict[str, Any]] = {
    "lora": {"dtype": "float64", "activation_checkpointing": True},
    # A rate at which it gets worse, so that the best checkpoint is not the last.
    "full": {"dtype": "float64", **FULL, "learning_rate": 0.03},
    "tied": {**FULL, "activation_checkpointing": True},
    "copies": {
        **{"dtype": "bfloat16", "dora": True, "embeddings": True},
        "modules_to_save": ("norm", "input_layernorm"),
    },
}
LIMITS = {"lora": 1e-7, "full": 1e-9, "tied": 1e-5, "copies": 0.05}
"""Largest relative difference of a loss or of a gradient's norm, by what is computed in.

The rows of a process are packed by themselves, so in bfloat16 other sums are rounded.
"""
WORKER = """
import json, sys
from dataclasses import replace
from pathlib import Path
from tunesmith.train import objectives
from tunesmith.train.fit import _fit, trainer_of
from tunesmith.train.sharded import NOTHING, Sharded
from tunesmith.train.spec import TrainSpec

ranks = Sharded.join()
specs = [TrainSpec.read(Path(path)) for path in sys.argv[1:]]
for spec in specs:
    events = []
    _fit(spec, events.append, ranks)
    if ranks.first:
        Path(spec.out, "events.json").write_text(json.dumps(events))
trainer = trainer_of(specs[0], ranks)
trainer.validate([NOTHING], lambda branches: replace(objectives.sft(branches), count=1.0))
# Nothing stays gathered, or a step later it would be old.
held = list(trainer.model.module.parameters())
own = sum(x.to_local().numel() for x in held)
trainer.forward_backward(NOTHING, objectives.sft)
trainer._count = 1.0
trainer.optim_step(0.1, clip=1.0)
moments = [x for state in trainer.optimizer.state.values() for x in state.values() if x.ndim]
found = {
    "all": sum(x.numel() for x in held),
    "own": own,
    "moments": sum(x.to_local().numel() for x in moments),
    "trained": sum(x.numel() for x in trainer.weights),
}
Path(specs[0].out, f"held-{ranks.rank}.json").write_text(json.dumps(found))
ranks.leave()
"""


def settings(name: str, tiny: Callable[..., Path]) -> dict[str, Any]:
    """Eight rows a step of 22, one alone in the last; several packed batches, not equally many."""
    model = tiny(tie_word_embeddings=True) if name == "tied" else tiny()
    model = tiny(EXACT) if name in ("lora", "full") else model
    common = {"batch_rows": 7, "epochs": 1.0, "max_batch_tokens": 120, "model": str(model)}
    return {**common, **CASES[name]}


def alone(spec: TrainSpec) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    fit(spec, events.append)
    return events


@pytest.fixture(scope="module")
def runs(
    spec_of: Spec, tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, list[dict[str, Any]]]]:
    """A folder with one/CASE of a process alone, two/CASE of two, and going-on of two after one."""
    out = tmp_path_factory.mktemp("sharded")
    events = {name: alone(spec_of(out / "one" / name, **settings(name, tiny))) for name in CASES}
    half = out / "going-on" / "checkpoints" / "step-2"
    shutil.copytree(out / "one" / "full" / "checkpoints" / "step-2", half)
    wanted = [(name, out / "two" / name) for name in CASES] + [("full", out / "going-on")]
    specs = [spec_of(path, sharding="full", **settings(name, tiny)) for name, path in wanted]
    for spec in specs:
        spec.write(Path(spec.out) / "spec.json")
    worker = out / "worker.py"
    worker.write_text(WORKER)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(worker)]
    ran = subprocess.run(
        [sys.executable, *launch, *[str(Path(spec.out) / "spec.json") for spec in specs]],
        env=environment() | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert ran.returncode == 0, ran.stdout[-600:] + ran.stderr[-6000:]
    return out, events


def told(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "events.json").read_text())


def assert_equal(ours: list[dict[str, Any]], theirs: list[dict[str, Any]], limit: float) -> None:
    assert [event["type"] for event in ours] == [event["type"] for event in theirs]
    for one, two in zip(ours, theirs, strict=True):
        for key in one.keys() - {"seconds", "memory_mb", "processes", "distinct_tokens"}:
            if key in ("accuracy", "metrics"):
                # It jumps by a token where rounding decides between two.
                assert one[key] == pytest.approx(two[key], abs=limit), key
                continue
            number = isinstance(one[key], float)
            assert one[key] == (pytest.approx(two[key], rel=limit) if number else two[key]), key


@pytest.mark.parametrize("name", CASES)
def test_trap_07_a_model_in_parts_learns_what_a_whole_one_does(
    runs: tuple[Path, dict[str, list[dict[str, Any]]]], name: str
) -> None:
    out, events = runs
    assert_equal(told(out / "two" / name), events[name], LIMITS[name])
    # Batches of validation are the same ones, and no adapter has been rounded: the same base.
    assert_equal(told(out / "two" / name)[1:2], events[name][1:2], 1e-6)
    made = "model" if (out / "one" / name / "model").exists() else "adapter"
    folders = [out / count / name / made for count in ("two", "one")]
    ours, theirs = (load_file(next(folder.glob("*.safetensors"))) for folder in folders)
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        torch.testing.assert_close(ours[key], tensor, rtol=LIMITS[name], atol=LIMITS[name])
    # Masters have the digits that they have in one process.
    saved = [checkpoint.load(out / count / name / "checkpoints", 4) for count in ("two", "one")]
    held, whole = ([(x.shape, x.dtype) for x in one["trainer"]["weights"]] for one in saved)
    assert held == whole
    # All but the weights to the letter: configuration, tokenizer, card.
    for file in folders[1].iterdir():
        if file.suffix != ".safetensors":
            assert (folders[0] / file.name).read_bytes() == file.read_bytes()
    said = [
        json.loads((out / count / name / "parity.json").read_text()) for count in ("two", "one")
    ]
    for row, other in zip(said[0]["rows"], said[1]["rows"], strict=True):
        assert row["logprobs"] == pytest.approx(other["logprobs"], rel=LIMITS[name])


def test_the_best_checkpoint_is_what_all_processes_go_back_to(
    runs: tuple[Path, dict[str, list[dict[str, Any]]]],
) -> None:
    end = told(runs[0] / "two" / "full")[-1]
    assert end["best_step"] < end["step"]


@pytest.mark.parametrize("name", ["lora", "full"])
def test_a_checkpoint_of_two_processes_goes_on_in_one(
    runs: tuple[Path, dict[str, list[dict[str, Any]]]],
    spec_of: Spec,
    tiny: Callable[..., Path],
    tmp_path: Path,
    name: str,
) -> None:
    out, events = runs
    folder = tmp_path / "checkpoints"
    shutil.copytree(out / "two" / name / "checkpoints" / "step-2", folder / "step-2")
    resumed = alone(spec_of(tmp_path, **settings(name, tiny)))
    assert resumed[1] == {"type": "resumed", "step": 2}
    steps = [event for event in events[name] if event.get("step", 0) > 2]
    assert_equal(resumed[2:], steps, LIMITS[name])
    states = [checkpoint.load(path, 4)["trainer"] for path in (folder, out / "two" / name / "checkpoints")]  # fmt: skip
    torch.testing.assert_close(states[0], states[1], rtol=LIMITS[name], atol=LIMITS[name])


def test_a_checkpoint_of_one_process_goes_on_in_two(
    runs: tuple[Path, dict[str, list[dict[str, Any]]]],
) -> None:
    out, events = runs
    resumed = told(out / "going-on")
    assert resumed[1] == {"type": "resumed", "step": 2}
    steps = [event for event in events["full"] if event.get("step", 0) > 2]
    assert_equal(resumed[2:], steps, LIMITS["full"])


def test_each_process_holds_a_part_of_everything(
    runs: tuple[Path, dict[str, list[dict[str, Any]]]],
) -> None:
    parts = [
        json.loads((runs[0] / "two" / "lora" / f"held-{rank}.json").read_text()) for rank in (0, 1)
    ]
    assert sum(part["own"] for part in parts) == parts[0]["all"]
    assert sum(part["moments"] for part in parts) == 2 * parts[0]["trained"]
    for part in parts:
        assert part["own"] == pytest.approx(part["all"] / 2, rel=0.02)
        assert part["moments"] == pytest.approx(part["trained"], rel=0.02)


@pytest.mark.parametrize("name", ["lora", "tied"])
def test_a_batch_that_trains_nothing_adds_exactly_nothing(
    spec_of: Spec, tiny: Callable[..., Path], tmp_path: Path, rows: Callable[[int], list[Conversation]], name: str
) -> None:  # fmt: skip
    trainer = trainer_of(spec_of(tmp_path, **settings(name, tiny)))
    chains = [chain for row in methods.sft(rows(4), byte_template()) for chain in row]
    (batch,) = pack(chains, max_tokens=2000)
    trainer.forward_backward(batch, objectives.sft)
    before = [weight.grad.clone() for weight in trainer.weights if weight.grad is not None]
    loss = trainer.forward_backward(NOTHING, objectives.sft)
    assert (float(loss.sum), loss.count) == (0.0, 0.0)
    for weight, old in zip(trainer.weights, before, strict=True):
        assert weight.grad is not None
        assert torch.equal(weight.grad, old)


def test_what_cannot_be_sharded_is_refused_by_name(
    tiny: Callable[..., Path], spec_of: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TrainingError, match=r"sharding=full with one process.*train\.processes=2"):
        fit(spec_of(tmp_path, sharding="full"), lambda event: None)
    model = load(tiny(), dtype="bfloat16")
    model.module.lm_head.weight.data = model.module.lm_head.weight.to(torch.uint8)
    with pytest.raises(TrainingError, match=r"weights in bfloat16, uint8.*train\.sharding=none"):
        Sharded(0, 2).hold(model, [])
    apart = load(tiny("bloom"), dtype="float32")
    with pytest.raises(TrainingError, match=r"computed row by row: .*train\.sharding=none"):
        Sharded(0, 2).hold(apart, [])
    monkeypatch.setattr(LoadedModel, "device", torch.device("mps"))
    with pytest.raises(TrainingError, match="sharding=full on mps"):
        Sharded(0, 2).hold(model, [])


def test_where_each_holds_everything_there_is_nothing_to_gather() -> None:
    ranks, weight = Ranks(0, 2), torch.nn.Parameter(torch.ones(2))
    assert ranks.even([NOTHING]) == [NOTHING]
    assert ranks.whole({"a": [weight]})["a"][0] is weight
    assert ranks.part(weight, weight) is weight

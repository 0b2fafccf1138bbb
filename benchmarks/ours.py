"""tunesmith's trainer and sampler, one turn at a time: `python ours.py sft|sample FOLDER NAME`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from turn import THREADS, Turns
from work import ANSWER

from tunesmith.models.generate import Request, Sampler
from tunesmith.models.load import load
from tunesmith.models.lora import LoRASettings
from tunesmith.models.passes import Shared
from tunesmith.models.template import Chain
from tunesmith.train import objectives
from tunesmith.train.pack import pack
from tunesmith.train.trainer import Trainer

RATE = 5e-4
ROWS = 96
"""Sequences decoded together, as many as the peer is tried with."""


def sft(folder: Path, name: str, asked: dict[str, Any], turns: Turns) -> None:
    """Whole steps, the optimiser's included, on the rows in their order."""
    model = load(Path(asked["model"]), dtype=asked.get("weights", "auto"))
    trainer = Trainer(model, LoRASettings(16), seed=0)
    work = json.loads((folder / f"sft-{name}.json").read_text())
    batch = work["batch"]
    chains = [Chain(tuple(row["ids"]), tuple(row["trained"])) for row in work["rows"]]
    place = 0

    def step() -> float:
        nonlocal place
        rows, place = chains[place : place + batch], place + batch
        losses = [
            trainer.forward_backward(part, objectives.sft)
            for part in pack(rows, max_tokens=asked["max_tokens"])
        ]
        trainer.optim_step(RATE, clip=1.0)
        return float(sum(part.sum for part in losses)) / sum(part.count for part in losses)

    def turn() -> dict[str, Any]:
        losses = [step() for _ in range(asked["steps"])]
        return {"units": batch * len(losses), "losses": losses}

    turns.take(turn)


def sample(folder: Path, name: str, asked: dict[str, Any], turns: Turns) -> None:
    """Greedy answers to all prompts."""
    sampler = Sampler(load(Path(asked["model"])), max_rows=ROWS)
    prompts = json.loads((folder / f"prompts-{name}.json").read_text())[: asked["prompts"]]

    def turn() -> dict[str, Any]:
        kept = sampler._passes  # pyright: ignore[reportPrivateUsage]
        assert isinstance(kept, Shared)
        kept.prefixes.clear()  # each turn pays for them
        for place, row in enumerate(prompts):
            prefix, prompt = tuple(row["prefix"]), tuple(row["prompt"])
            sampler.submit(Request(str(place), prefix, prompt, ANSWER))
        made = 0
        while not sampler.idle:
            made += len(sampler.step())
        return {"units": made}

    turns.take(turn)


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    where = Path(sys.argv[2])
    settings = json.loads((where / "work.json").read_text()) | json.loads(sys.argv[4])
    {"sft": sft, "sample": sample}[sys.argv[1]](where, sys.argv[3], settings, Turns())

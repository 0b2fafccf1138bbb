"""What is timed: rows of real data as token ids, and the adapter that every trainer starts from.

Written once to a folder, so that all programs that are compared read the same.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunesmith.chat import Message
from tunesmith.data.dataset import read
from tunesmith.models.catalog import DEFAULT
from tunesmith.models.fetch import resolve
from tunesmith.models.load import load
from tunesmith.models.lora import LoRASettings
from tunesmith.train import methods
from tunesmith.train.trainer import ADAPTER, Trainer

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("TUNESMITH_SHARED", ROOT.parent / "shared")) / "data"
STEPS = 24
ANSWER = 32
"""Tokens of a sampled answer."""


def write(folder: Path, *, steps: int = STEPS) -> dict[str, Any]:
    """Make `sft-*.json`, `prompts-*.json` and `adapter/` in a folder; what is common to all.

    Args:
        steps: most steps that a trainer takes, trials and turns together.
    """
    if not DATA.is_dir():
        raise SystemExit(
            f"found no real data at {DATA}; expected the folder that the measurements are made of; "
            "set TUNESMITH_SHARED to the folder that holds data/"
        )
    spec = resolve(DEFAULT, say=print)
    model = load(spec.folder)
    labels = sorted({_last(row) for row in read([str(DATA / "banking77/train.jsonl")])})
    listed = "Answer with one of these labels:\n" + "\n".join(labels)
    sets = {
        "short": ("banking77", None, 16),
        "long": ("banking77", listed, 8),
        "apart": ("firefox_support", None, 8),
    }
    for name, (data, system, batch) in sets.items():
        rows = list(read([str(DATA / data / "train.jsonl")], limit=batch * steps))
        if system is not None:
            head = Message("system", system)
            rows = [replace(row, messages=(head, *row.messages)) for row in rows]
        chains = [parts[0] for parts in methods.sft(rows, model.template)]
        value = [{"ids": list(c.ids), "trained": list(c.trained)} for c in chains]
        (folder / f"sft-{name}.json").write_text(json.dumps({"batch": batch, "rows": value}))
    rows = list(read([str(DATA / "banking77/train.jsonl")], limit=96))
    for name, system in (("short", None), ("long", listed)):
        head = () if system is None else (Message("system", system),)
        prompts = [model.template.prompt([*head, *row.prompt]) for row in rows]
        value = [{"prefix": list(p.prefix), "prompt": list(p.prompt)} for p in prompts]
        (folder / f"prompts-{name}.json").write_text(json.dumps(value))
    trainer = Trainer(model, LoRASettings(16), seed=0)
    card = {"base_weights": spec.weights_hash}
    model.adapters.save(ADAPTER, folder / "adapter", base=str(spec.folder), card=card)
    weights = sum(weight.numel() for weight in trainer.weights)
    return {"model": str(spec.folder), "name": DEFAULT, "weights trained": weights}


def _last(row: Any) -> str:
    return row.messages[-1].content or ""

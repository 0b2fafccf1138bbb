"""Speed of training and sampling on this machine: `make bench`.

Shared prefixes computed once against every row apart, on the shipped e-mails: the same rows, steps
and adapter, turns taken in one process, medians and ranges. Writes benchmarks/results/speed.json.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tunesmith.chat import Message
from tunesmith.data.dataset import read
from tunesmith.models.catalog import DEFAULT
from tunesmith.models.fetch import resolve
from tunesmith.models.generate import Request, Sampler
from tunesmith.models.load import LoadedModel, load
from tunesmith.models.lora import LoRASettings
from tunesmith.train import methods, objectives
from tunesmith.train.pack import pack
from tunesmith.train.trainer import Trainer

ROOT = Path(__file__).parents[1]
ROWS, TURNS = 16, 5
LABELS = "Choose one of: " + ", ".join(f"the intent number {n} of the list" for n in range(60))


def timed(work: Callable[[], int]) -> tuple[float, float]:
    """Units a second of wall and of CPU time; `work` returns its units."""
    wall, cpu = time.perf_counter(), time.process_time()
    units = work()
    return units / (time.perf_counter() - wall), units / (time.process_time() - cpu)


def training(model: LoadedModel, system: str | None) -> dict[str, object]:
    """Rows a second of whole steps, shared and apart in turn."""
    examples = []
    for row in read([str(ROOT / "examples/parcel_desk/emails.jsonl")], limit=ROWS):
        head = (Message("system", system),) if system else ()
        examples.append(type(row)((*head, *row.messages[1:]), row.source))
    rows = methods.sft(examples, model.template)
    chains = [chain for parts in rows for chain in parts]
    trainer = Trainer(model, LoRASettings(16), seed=0)

    def step(share: bool) -> int:
        for batch in pack(chains, max_tokens=4096, share=share):
            trainer.forward_backward(batch, objectives.sft)
        trainer.optim_step(1e-4, clip=1.0)
        return len(rows)

    found: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for turn in range(TURNS + 1):
        for share in (True, False):
            speed = timed(lambda share=share: step(share))
            if turn:
                found[share].append(speed)
    model.adapters.remove("trained")
    model.adapters.routing.all = None
    tokens = sum(len(chain.ids) for chain in chains) / len(rows)
    return {"tokens_a_row": tokens, "shared": _told(found[True]), "apart": _told(found[False])}


def sampling(model: LoadedModel, system: str) -> dict[str, object]:
    """Tokens a second of 64 answers of 32 tokens."""
    prompt = model.template.prompt([Message("system", system), Message("user", "Where is it?")])

    def work() -> int:
        sampler = Sampler(model)
        for place in range(64):
            sampler.submit(
                Request(str(place), prompt.prefix, prompt.prompt, 32, temperature=1.0, seed=place)
            )
        made = 0
        while not sampler.idle:
            made += len(sampler.step())
        return made

    return {"prompt_tokens": len(prompt.ids), **_told([timed(work) for _ in range(TURNS)])}


def _told(speeds: list[tuple[float, float]]) -> dict[str, object]:
    wall = sorted(speed for speed, _ in speeds)
    return {
        "per_second": round(statistics.median(wall), 2),
        "range": [round(wall[0], 2), round(wall[-1], 2)],
        "per_cpu_second": round(statistics.median(cpu for _, cpu in speeds), 2),
    }


def main() -> None:
    """Measure, print, and keep."""
    model = load(resolve(DEFAULT, say=print).folder)
    results = {
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "model": DEFAULT,
        "dtype": str(model.dtype),
        "sft rows/s, short system message": training(model, None),
        "sft rows/s, long system message": training(model, LABELS),
        "sampling tokens/s, short prompt": sampling(model, "Be brief."),
        "sampling tokens/s, long prompt": sampling(model, LABELS),
    }
    text = json.dumps(results, indent=2)
    print(text)
    (ROOT / "benchmarks/results/speed.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

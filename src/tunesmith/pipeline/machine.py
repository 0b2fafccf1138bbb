"""What torch has to compute with, asked in a process of its own: no command imports torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tunesmith.errors import TrainingError, UsageError
from tunesmith.models import gguf
from tunesmith.models.lifetime import environment
from tunesmith.recipe import Recipe

ASK_TORCH = """
import json, torch
print(json.dumps({"version": torch.__version__, "cuda": torch.cuda.is_available(),
 "device": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
 "bf16": torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported(),
 "threads": torch.get_num_threads()}))
"""


def torch_facts() -> dict[str, Any]:
    """version, cuda, device (its name or None), bf16 (whether the processor multiplies it), threads.

    Raises:
        TrainingError: torch cannot be imported.
    """
    ran = subprocess.run(
        [sys.executable, "-c", ASK_TORCH], capture_output=True, text=True, check=False
    )
    if ran.returncode != 0:
        raise TrainingError(" ".join(ran.stderr.strip().splitlines()[-1:]))
    return json.loads(ran.stdout)


def measured(module: str, spec: Path) -> dict[str, Any]:
    """What a process that computes says of a spec: `python -m MODULE SPEC` prints one JSON value.

    Raises:
        TrainingError: it fails; the message is its last line.
    """
    ran = subprocess.run(
        [sys.executable, "-m", module, str(spec)],
        env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if ran.returncode != 0:
        raise TrainingError(" ".join(ran.stderr.strip().splitlines()[-1:]))
    return json.loads(ran.stdout)


def able(recipe: Recipe) -> None:
    """Refuse what this machine cannot do before anything is fetched or read.

    Raises:
        UsageError: 4-bit weights without CUDA.
    """
    four_bits = recipe.method.adapter == "qlora" or recipe.model.dtype == "nf4"
    if four_bits and not torch_facts()["cuda"]:
        raise UsageError(
            "QLoRA on a machine without CUDA",
            expected="CUDA: on the CPU, half of the adapters were seen to get no gradient",
            remedy="Use --set method.adapter=lora; train.activation_checkpointing=true saves memory.",
        )


def servable(recipe: Recipe, base: Path) -> None:
    """Refuse to train what the engine of the recipe could not serve.

    Args:
        base: the model's folder.

    Raises:
        UsageError: llama.cpp is to serve it, and computes something else or has no form for it.
    """
    if recipe.serve.engine != "llama.cpp":
        return
    method, why = recipe.method, gguf.refusal(base)
    whole = method.modules_to_save or method.embeddings is True
    if method.adapter != "full" and (whole or method.adapter != "lora"):
        kind = "modules trained whole" if whole else f"method.adapter={method.adapter}"
        why = why or f"{kind} beside a base have no form in GGUF"
    if why:
        raise UsageError(
            f"serve.engine=llama.cpp: {why}",
            expected="LoRA or rsLoRA on a model that llama.cpp computes",
            remedy="Use --set serve.engine=local.",
        )

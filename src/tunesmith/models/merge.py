"""An adapter merged into its base, measured on what was written: `python -m tunesmith.models.merge`.

W + s B A is summed in float32 and rounded once to what the base is held in. That loses the part of
a small change that the base's digits cannot hold, so the files are read again and held against the
adapter. One JSON value goes to standard output.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from tunesmith.errors import AdapterError, ModelError, TunesmithError
from tunesmith.models import terms
from tunesmith.models.catalog import read_card
from tunesmith.models.load import DType, LoadedModel, load
from tunesmith.models.lora import LoRALinear, LowRank, Whole
from tunesmith.models.template import Chain
from tunesmith.models.tree import plant

NAME = "merged"
ROWS, LENGTH = 4, 128
LOST = 0.2
"""Most of the adapter's effect that rounding may take, as a share."""


@dataclass(frozen=True, slots=True)
class Merged:
    """How the written model answers, in nats a token on random tokens.

    Attributes:
        effect: mean distance of the adapter from the base.
        difference: mean distance of the written model from the adapter.
        largest: the largest one.
    """

    tokens: int
    effect: float
    difference: float
    largest: float
    dtype: str


def merge(base: Path, adapter: Path, out: Path, *, dtype: DType = "auto") -> Merged:
    """Write base and adapter as one model folder.

    Args:
        dtype: what the weights are written in; `auto` is what the base's files hold.

    Raises:
        AdapterError: it was trained on other weights, or beside weights in 4 bits.
        ModelError: what was written does not answer as the adapter does; nothing stays.
        OSError: the disk refused it.
    """
    card = read_card(adapter)
    if card.get("held_in") == "nf4":
        raise AdapterError(
            f"the adapter in {adapter} was trained beside weights in 4 bits",
            expected="an adapter that has learned on the weights that it is merged into",
            remedy="Serve it as an adapter: tunesmith serve.",
        )
    model = load(base, dtype=_stored(base) if dtype == "auto" else dtype)
    model.adapters.load(NAME, adapter, weights_hash=model.weights_hash)
    model.adapters.settle(NAME)
    rows = _rows(model)
    plain, tuned = _said(model, rows, None), _said(model, rows, NAME)
    fold(model, NAME)
    scratch = out.with_name(f".{out.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        told = terms.carry(base, scratch)
        model.save(scratch, model.module.state_dict(), card={**card, **told, "merged": True})
        held = str(model.dtype).removeprefix("torch.")
        off = (_said(load(scratch, dtype=cast(DType, held)), rows, None) - tuned).abs()
        effect, difference = float((tuned - plain).abs().mean()), float(off.mean())
        found = Merged(len(tuned), effect, difference, float(off.max()), held)
        _whole(found)
        scratch.rename(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return found


def _whole(found: Merged) -> None:
    if found.difference > LOST * found.effect:
        raise ModelError(
            f"{found.dtype} loses {found.difference / max(found.effect, 1e-12):.0%} of what the "
            f"adapter does ({found.difference:.2g} of {found.effect:.2g} nats a token)",
            expected=f"at most {LOST:.0%}",
            remedy="Write it with --dtype float32, or serve the adapter as it is.",
        )


@torch.no_grad()
def fold(model: LoadedModel, name: str) -> None:
    """Put an adapter into the weights and take all adapters away."""
    for path, module in list(model.module.named_modules()):
        if isinstance(module, LoRALinear):
            if name in module.adapters:
                low = module.adapters[name]
                assert isinstance(low, LowRank)
                module.layer.weight.copy_(low.merged(module.layer.weight))
            _replace(model.module, path, module.layer)
        elif isinstance(module, Whole):
            _replace(model.module, path, module.of(name))
    head, table = model.module.get_output_embeddings(), model.module.get_input_embeddings()
    if model.config.tie_word_embeddings and head.weight is not table.weight:
        # Another tool has trained one of the two: they are no longer the same weight.
        model.module.config.tie_word_embeddings = model.config.tie_word_embeddings = False


def _replace(root: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, leaf = path.rpartition(".")
    setattr(root.get_submodule(parent), leaf, module)


def _stored(folder: Path) -> DType:
    """What the files of a model hold, as far as we load it."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    said = str(config.get("dtype") or config.get("torch_dtype") or "auto")
    return cast(DType, said) if said in ("bfloat16", "float32", "float64") else "auto"


def _rows(model: LoadedModel) -> list[Chain]:
    """Random tokens: no row of anybody's is needed to see whether two models are one."""
    draw = np.random.default_rng(0)
    size, length = int(model.config.vocab_size), min(LENGTH, model.context)
    ids = draw.integers(0, size, (ROWS, length))
    mask = (False,) + (True,) * (length - 1)
    return [Chain(tuple(int(token) for token in row), mask) for row in ids]


@torch.no_grad()
def _said(model: LoadedModel, rows: Sequence[Chain], adapter: str | None) -> Tensor:
    model.adapters.routing.all = adapter
    return torch.cat([model.logprobs(plant([row], share=False), exact=True) for row in rows])


def main() -> int:
    """The command line of the process that `tunesmith export` starts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dtype", default="auto")
    asked = parser.parse_args()
    try:
        found = merge(asked.base, asked.adapter, asked.out, dtype=asked.dtype)
    except TunesmithError as error:
        sys.stdout.write(json.dumps({"error": str(error)}) + "\n")
        return error.exit_code
    sys.stdout.write(json.dumps(asdict(found)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

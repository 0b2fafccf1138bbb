from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from tunesmith.errors import AdapterError, ModelError
from tunesmith.models import fetch, merge
from tunesmith.models.catalog import CARD, read_card
from tunesmith.models.load import LoadedModel, load
from tunesmith.models.lora import LoRASettings
from tunesmith.models.template import Chain
from tunesmith.models.tree import plant
from tunesmith.train.objectives import sft
from tunesmith.train.trainer import ADAPTER, Trainer

KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "some": {"targets": ("q_proj", "down_proj")},
    "modules": {"modules_to_save": ("embed_tokens", "norm")},
}


def said(model: LoadedModel, name: str | None) -> Tensor:
    model.adapters.routing.all = name
    row = Chain(tuple(range(40, 70)), (False,) * 20 + (True,) * 10)
    with torch.no_grad():
        return model.logprobs(plant([row]), exact=True)


def tuned(base: Path, out: Path, *, dtype: Any = "float32", **settings: Any) -> LoadedModel:
    """A model with an adapter that has learned a little; it is in `out` as well."""
    model = load(base, dtype=dtype)
    trainer = Trainer(model, LoRASettings(rank=4, alpha=8.0, **settings), seed=0)
    row = Chain(tuple(range(40, 70)), (False,) * 20 + (True,) * 10)
    for _ in range(5):
        trainer.forward_backward(plant([row]), sft)
        trainer.optim_step(1e-2, clip=1.0)
    trainer.save(out, base="tiny", card={"base_weights": model.weights_hash})
    return model


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", KINDS)
def test_trap_15_the_written_model_says_what_the_adapter_says(
    tiny: Callable[..., Path], tmp_path: Path, kind: str, *, tied: bool
) -> None:
    base = tiny(tie_word_embeddings=tied)
    model = tuned(base, tmp_path / "adapter", **KINDS[kind])
    assert float((said(model, ADAPTER) - said(model, None)).abs().mean()) > 0.3
    found = merge.merge(base, tmp_path / "adapter", tmp_path / "merged")
    assert found.effect > 0.01
    assert found.largest < 1e-4
    assert (found.tokens, found.dtype) == (4 * 127, "float32")
    written = load(tmp_path / "merged", dtype="float32")
    torch.testing.assert_close(said(written, None), said(model, ADAPTER), rtol=0, atol=1e-4)
    card = read_card(tmp_path / "merged")
    assert card["base_weights"] == fetch.weights_hash(base)
    assert card["merged"]
    assert not list(tmp_path.glob(".*"))


def test_trap_15_it_is_what_peft_merges(tiny: Callable[..., Path], tmp_path: Path) -> None:
    model = tuned(tiny(), tmp_path / "adapter")
    merge.merge(tiny(), tmp_path / "adapter", tmp_path / "merged")
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    plain = AutoModelForCausalLM.from_pretrained(tiny(), dtype=torch.float32)
    theirs = PeftModel.from_pretrained(plain, str(tmp_path / "adapter")).merge_and_unload()
    wanted = theirs.state_dict()
    assert ours.state_dict().keys() == wanted.keys()
    for name, weight in ours.state_dict().items():
        torch.testing.assert_close(weight, wanted[name], rtol=1e-5, atol=1e-6)
    assert model.weights_hash != fetch.weights_hash(tmp_path / "merged")


def test_trap_15_a_merge_that_loses_the_adapter_is_refused_and_leaves_nothing(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    """Changes below what bfloat16 holds beside a weight: rounding would take them."""
    base = tiny()
    model = load(base, dtype="float32")
    model.adapters.create("a", LoRASettings(rank=2, alpha=1e-3))
    with torch.no_grad():
        for _, low in model.adapters.lows("a"):
            low.b.normal_()
    model.adapters.save("a", tmp_path / "adapter", base="tiny", card={})
    with pytest.raises(ModelError, match=r"bfloat16 loses .* of what the adapter does.*--dtype"):
        merge.merge(base, tmp_path / "adapter", tmp_path / "out", dtype="bfloat16")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert merge.merge(base, tmp_path / "adapter", tmp_path / "out").dtype == "float32"


def test_trap_15_the_wrong_base_is_refused(tiny: Callable[..., Path], tmp_path: Path) -> None:
    tuned(tiny(), tmp_path / "adapter")
    with pytest.raises(AdapterError, match="was trained on weights"):
        merge.merge(tiny(seed=1), tmp_path / "adapter", tmp_path / "merged")
    card = tmp_path / "adapter" / CARD
    card.write_text(json.dumps({**json.loads(card.read_text()), "held_in": "nf4"}))
    with pytest.raises(AdapterError, match="beside weights in 4 bits"):
        merge.merge(tiny(), tmp_path / "adapter", tmp_path / "merged")


@pytest.mark.parametrize("name", ["embed_tokens", "lm_head"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_trap_16_trained_embeddings_and_heads_stay_what_they_were_trained_to_be(
    tiny: Callable[..., Path], tmp_path: Path, name: str, *, tied: bool
) -> None:
    """Trained, saved, merged, loaded again: tied ones as one weight, others each for itself."""
    base = tiny(tie_word_embeddings=tied)
    model = tuned(base, tmp_path / "adapter", modules_to_save=(name,))
    merge.merge(base, tmp_path / "adapter", tmp_path / "merged")
    written = load(tmp_path / "merged", dtype="float32")
    torch.testing.assert_close(said(written, None), said(model, ADAPTER), rtol=0, atol=1e-4)
    head, table = (
        getattr(written.module, of)().weight
        for of in ("get_output_embeddings", "get_input_embeddings")
    )
    assert (head.data_ptr() == table.data_ptr()) == tied
    before = load(base, dtype="float32").module
    moved = {
        "lm_head": not torch.equal(head, before.get_output_embeddings().weight),
        "embed_tokens": not torch.equal(table, before.get_input_embeddings().weight),
    }
    assert moved == {one: tied or one == name for one in moved}


def test_trap_16_a_head_that_another_tool_has_untied_is_written_apart(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    base = tiny(tie_word_embeddings=True)
    model = load(base, dtype="float32")
    model.adapters.create("a", LoRASettings(rank=2, modules_to_save=("lm_head",)))
    copies = dict(model.adapters.copies("a"))
    with torch.no_grad():
        for _, low in model.adapters.lows("a"):
            low.b.normal_(std=0.02)
    copies["lm_head"].weight = torch.nn.Parameter(copies["lm_head"].weight.detach() * 1.5)
    model.adapters.save("a", tmp_path / "adapter", base="tiny", card={})
    merge.merge(base, tmp_path / "adapter", tmp_path / "merged")
    written = load(tmp_path / "merged", dtype="float32")
    torch.testing.assert_close(said(written, None), said(model, "a"), rtol=0, atol=1e-4)


def test_the_process_says_what_it_found_or_what_is_wrong(
    tiny: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tuned(tiny(), tmp_path / "adapter")
    for base, code, key in ((tiny(), 0, "difference"), (tiny(seed=1), 1, "error")):
        line = [str(base), str(tmp_path / "adapter"), str(tmp_path / f"out{code}")]
        monkeypatch.setattr(sys, "argv", ["merge", *line])
        assert merge.main() == code
        assert key in json.loads(capsys.readouterr().out.splitlines()[-1])

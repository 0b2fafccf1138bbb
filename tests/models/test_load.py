from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tunesmith.errors import ModelError
from tunesmith.models import attention
from tunesmith.models.load import adopt, load, parameters
from tunesmith.models.template import Chain
from tunesmith.models.tree import plant
from tunesmith.testing import byte_template

REFUSED: dict[str, tuple[dict[str, object], str]] = {
    # The registered function is ignored: rows of one batch would see each other.
    "bloom": ({}, "shares tokens"),
    # Keyword arguments are dropped before attention.
    "stablelm": ({"partial_rotary_factor": 0.5, "head_dim": 12}, "StableLm|dropped"),
    "nemotron": ({}, "dropped the batch's structure"),
    # State beside attention.
    "lfm2": ({"layer_types": ["conv", "full_attention"]}, "layers of conv"),
    "falcon_h1": ({}, "layers of hybrid"),
    "mamba": ({}, "Mamba"),
    # Windows that are no sliding ones.
    "llama4_text": ({}, "layers of chunked_attention"),
}


@pytest.mark.parametrize("family", REFUSED)
def test_trap_38_families_that_a_forest_cannot_run_are_refused(
    tiny: Callable[..., Path], family: str
) -> None:
    settings, said = REFUSED[family]
    with pytest.raises(ModelError, match=said):
        load(tiny(family, **settings))


def test_trap_38_a_leak_too_small_for_bfloat16_logits_is_found(
    tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short convolution moves two logits in fifty by less than rounding; its gradient tells."""
    monkeypatch.setattr("tunesmith.models.load.ATTENTION_LAYERS", {"full_attention", "conv"})
    folder = tiny("lfm2", layer_types=["conv", "full_attention"], initializer_range=0.02)
    with pytest.raises(ModelError, match="lets one row of a batch see another"):
        load(folder, dtype="bfloat16")


def test_trap_38_a_second_model_from_one_config_object_is_noticed() -> None:
    config = AutoConfig.for_model(
        "llama",
        vocab_size=260,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    batch = plant([Chain((1, 2, 3), (False, True, True))])

    def made(attn: str, settings: object) -> object:
        return AutoModelForCausalLM.from_config(settings, attn_implementation=attn)

    model = adopt(made(attention.NAME, config), byte_template(), "hash", Path())
    made("sdpa", copy.deepcopy(config))
    model.forest(batch)
    made("sdpa", config)
    with pytest.raises(ModelError, match="attention was switched to sdpa"):
        model.forest(batch)


def test_weights_in_4_bits_are_refused_without_cuda(tiny: Callable[..., Path]) -> None:
    with pytest.raises(ModelError, match=r"4-bit weights on cpu.*method\.adapter=lora"):
        load(tiny(), dtype="nf4", device="cpu")


@pytest.mark.parametrize("family", ["granite", "cohere2", "gemma2"])
def test_logits_are_finished_as_the_model_finishes_them(
    tiny: Callable[..., Path], family: str
) -> None:
    """Divided (granite), multiplied (cohere) or soft-capped (gemma)."""
    settings = {"granite": {"logits_scaling": 3.0}, "cohere2": {"logit_scale": 0.2}}
    extra = {"head_dim": 12, "final_logit_softcapping": 2.0} if family == "gemma2" else {}
    folder = tiny(family, **settings.get(family, extra))
    ids = torch.randint(0, 256, (1, 12))
    model = load(folder, dtype="float32")
    batch = plant([Chain(tuple(ids[0].tolist()), (False,) * 11 + (True,))])
    with torch.no_grad():
        own = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits[0]
        torch.testing.assert_close(model.head(model.forest(batch)), own, rtol=1e-4, atol=1e-4)


def test_everything_is_frozen_and_in_eval_mode(tiny: Callable[..., Path]) -> None:
    model = load(tiny(), dtype="float32")
    assert not any(weight.requires_grad for weight in model.module.parameters())
    assert not model.module.training
    assert model.dtype == torch.float32
    assert model.context == 2048
    assert parameters(model.module) == sum(w.numel() for w in model.module.parameters())


def test_a_folder_that_is_no_model_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="expected a causal language model"):
        load(tmp_path)

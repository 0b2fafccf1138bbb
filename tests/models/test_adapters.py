from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from tunesmith.errors import AdapterError, ModelError
from tunesmith.models.catalog import CARD
from tunesmith.models.load import LoadedModel, load
from tunesmith.models.lora import LoRASettings
from tunesmith.models.template import Chain
from tunesmith.models.tree import PackedBatch, plant

WEIGHTS = "adapter_model.safetensors"


def batch() -> PackedBatch:
    ids = tuple(range(40, 70))
    return plant([Chain(ids, (False,) * 20 + (True,) * 10)])


def logprobs(model: LoadedModel, adapter: str | None) -> Tensor:
    model.adapters.routing.all = adapter
    with torch.no_grad():
        return model.logprobs(batch())


def trained(folder: Path, settings: LoRASettings, *, dtype: Any = "float32") -> LoadedModel:
    """A model with an adapter "a" that is not silent."""
    model = load(folder, dtype=dtype)
    model.adapters.create("a", settings, seed=1)
    stir(model, "a")
    return model


def stir(model: LoadedModel, name: str, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, low in model.adapters.lows(name):
            low.b.copy_(torch.randn(low.b.shape, generator=generator) * 0.05)
        whole = {w: w for _, copy in model.adapters.copies(name) for w in copy.parameters()}
        for weight in whole:
            weight += torch.randn(weight.shape, generator=generator).to(weight.dtype) * 0.05


def saved(model: LoadedModel, folder: Path) -> Path:
    card = {"base_weights": model.weights_hash}
    model.adapters.save("a", folder, base="tiny", card=card)
    return folder


def edit_config(folder: Path, **values: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
def test_trap_39_a_fresh_adapter_is_the_base_bit_for_bit(
    tiny: Callable[..., Path], dtype: Any, kind: str
) -> None:
    model = load(tiny(), dtype=dtype)
    base = logprobs(model, None)
    settings = LoRASettings(rank=4, rslora=kind == "rslora", dora=kind == "dora")
    model.adapters.create("a", settings, seed=0)
    assert torch.equal(logprobs(model, "a"), base)
    assert torch.equal(logprobs(model, None), base)


def test_an_adapter_that_is_off_leaves_the_base(tiny: Callable[..., Path]) -> None:
    base = logprobs(load(tiny(), dtype="float32"), None)
    model = trained(tiny(), LoRASettings(rank=4))
    assert not torch.allclose(logprobs(model, "a"), base)
    assert torch.equal(logprobs(model, None), base)


def test_an_adapter_is_its_merged_weights(tiny: Callable[..., Path]) -> None:
    model = trained(tiny(), LoRASettings(rank=4, alpha=7.0, rslora=True), dtype="float64")
    assert model.adapters.settings["a"].scale == 3.5
    tuned = logprobs(model, "a")
    with torch.no_grad():
        for layer in model.adapters.layers().values():
            low = layer.adapters["a"]
            layer.layer.weight += 3.5 * (low.b @ low.a)  # pyright: ignore
    torch.testing.assert_close(logprobs(model, None), tuned, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    "settings",
    [
        LoRASettings(rank=4, alpha=16.0),
        LoRASettings(rank=8, alpha=12.0, rslora=True),
        LoRASettings(rank=2, targets=("q_proj", "down_proj")),
        LoRASettings(rank=4, alpha=8.0, dora=True),
        LoRASettings(rank=4, modules_to_save=("lm_head", "model.norm", "layers.0.mlp.up_proj")),
        LoRASettings(rank=4, modules_to_save=("embed_tokens",)),
    ],
    ids=["lora", "rslora", "some-targets", "dora", "saved-modules", "embedding"],
)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_trap_17_peft_reads_what_is_saved_and_gives_the_same(
    tiny: Callable[..., Path], tmp_path: Path, settings: LoRASettings, tied: bool
) -> None:
    source = tiny(tie_word_embeddings=tied)
    model = trained(source, settings)
    folder = saved(model, tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    peft = PeftModel.from_pretrained(base, str(folder))
    ids = torch.arange(40, 70)[None]
    with torch.no_grad():
        theirs = peft(ids).logits[0, 19:29].log_softmax(-1)
    theirs = theirs.gather(1, ids[0, 20:, None]).squeeze(1)
    torch.testing.assert_close(logprobs(model, "a"), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "asked",
    [
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": "all-linear", "use_rslora": True},
        {"target_modules": "all-linear", "use_dora": True},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head", "norm"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {
            "target_modules": ["q_proj"],
            "modules_to_save": ["embed_tokens"],
            "ensure_weight_tying": True,
        },
    ],
    ids=["all", "some", "rslora", "dora", "saved-modules", "embedding", "tied-embedding"],
)
def test_trap_17_what_peft_saves_loads_here_and_gives_the_same(
    tiny: Callable[..., Path], tmp_path: Path, asked: dict[str, Any]
) -> None:
    source = tiny(tie_word_embeddings=asked.get("ensure_weight_tying", False))
    base = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=9, task_type="CAUSAL_LM", **asked)
    peft = get_peft_model(base, config)
    for name, weight in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
        if "magnitude" in name or "modules_to_save" in name:
            with torch.no_grad():
                weight *= 1.1
    peft.eval()
    peft.save_pretrained(str(tmp_path))
    ids = torch.arange(40, 70)[None]
    with torch.no_grad():
        theirs = peft(ids).logits[0, 19:29].log_softmax(-1)
    theirs = theirs.gather(1, ids[0, 20:, None]).squeeze(1)
    model = load(source, dtype="float32")
    model.adapters.load("a", tmp_path, weights_hash=model.weights_hash)
    torch.testing.assert_close(logprobs(model, "a"), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_trap_20_a_saved_adapter_is_whole(
    tiny: Callable[..., Path], tmp_path: Path, dora: bool
) -> None:
    """The keys that PEFT writes for the same adapter, none empty, none silent."""
    tensors = load_file(saved(trained(tiny(), LoRASettings(rank=4, dora=dora)), tmp_path) / WEIGHTS)
    base = AutoModelForCausalLM.from_pretrained(tiny(), dtype=torch.float32)
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", use_dora=dora)
    wanted = get_peft_model_state_dict(get_peft_model(base, config))
    assert {key: t.shape for key, t in tensors.items()} == {k: t.shape for k, t in wanted.items()}
    assert all(tensor.numel() and tensor.any() for tensor in tensors.values())


def test_saving_and_loading_keeps_the_masters_bit_for_bit(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    model = trained(tiny(), LoRASettings(rank=4), dtype="bfloat16")
    saved(model, tmp_path)
    assert all(t.dtype == torch.float32 for t in load_file(tmp_path / WEIGHTS).values())
    again = load(tiny(), dtype="bfloat16")
    again.adapters.load("b", tmp_path, weights_hash=again.weights_hash)
    for mine, theirs in zip(
        model.adapters.parameters("a"), again.adapters.parameters("b"), strict=True
    ):
        assert torch.equal(mine, theirs)


def test_the_same_adapter_is_the_same_bytes(tiny: Callable[..., Path], tmp_path: Path) -> None:
    for name in ("one", "two"):
        saved(trained(tiny(), LoRASettings(rank=4)), tmp_path / name)
    for file in sorted((tmp_path / "one").iterdir()):
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


@pytest.mark.parametrize("whole", [(), ("embed_tokens", "model.norm")], ids=["low", "whole"])
def test_each_span_of_tokens_goes_through_its_own_adapter(
    tiny: Callable[..., Path], whole: tuple[str, ...]
) -> None:
    source = tiny(tie_word_embeddings=False)
    model = trained(source, LoRASettings(rank=4, modules_to_save=whole), dtype="float64")
    model.adapters.create("b", LoRASettings(rank=2, targets=("v_proj",)), seed=2)
    stir(model, "b", seed=5)
    alone = {name: logprobs(model, name) for name in ("a", "b", None)}
    rows = plant([Chain(tuple(range(40, 70)), (False,) * 20 + (True,) * 10)] * 3, share=False)
    model.adapters.routing.all = None
    model.adapters.routing.spans = ((0, 30, "b"), (60, 90, "a"))
    with torch.no_grad():
        mixed = model.logprobs(rows).split(10)
    for part, name in zip(mixed, ("b", None, "a"), strict=True):
        torch.testing.assert_close(part, alone[name], rtol=0, atol=1e-12)


def test_a_tied_embedding_that_is_trained_is_one_weight(tiny: Callable[..., Path]) -> None:
    model = load(tiny(tie_word_embeddings=True), dtype="float32")
    model.adapters.create("a", LoRASettings(rank=2, modules_to_save=("embed_tokens",)))
    paths = dict(model.adapters.copies("a"))
    assert set(paths) == {"model.embed_tokens", "lm_head"} == set(model.adapters.embeddings)
    low = [weight for _, low in model.adapters.lows("a") for weight in low.parameters()]
    assert len(model.adapters.parameters("a")) == len(low) + 1
    assert paths["lm_head"].weight is paths["model.embed_tokens"].weight
    assert model.module.lm_head.weight is not paths["lm_head"].weight


def test_names_may_have_dots(tiny: Callable[..., Path]) -> None:
    model = trained(tiny(), LoRASettings(rank=4, modules_to_save=("norm",)))
    model.adapters.create("ft:qwen2.5:v1.0", LoRASettings(rank=2, modules_to_save=("norm",)))
    stir(model, "ft:qwen2.5:v1.0")
    base = logprobs(model, None)
    assert not torch.equal(logprobs(model, "ft:qwen2.5:v1.0"), base)
    model.adapters.remove("ft:qwen2.5:v1.0")
    assert torch.equal(logprobs(model, "ft:qwen2.5:v1.0"), base)
    assert not torch.equal(logprobs(model, "a"), base)


def test_trap_18_an_adapter_of_other_weights_is_refused(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    saved(trained(tiny(), LoRASettings(rank=4)), tmp_path)
    other = load(tiny(seed=1), dtype="float32")
    with pytest.raises(AdapterError, match="was trained on weights"):
        other.adapters.load("a", tmp_path, weights_hash=other.weights_hash)


def _lose_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors[sorted(tensors)[0]]
    save_file(tensors, folder / WEIGHTS)


def _silence(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file({k: t * (".lora_A." in k) for k, t in tensors.items()}, folder / WEIGHTS)


def _spoil(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors[sorted(tensors)[0]][0, 0] = float("nan")
    save_file(tensors, folder / WEIGHTS)


def _widen(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file({k: torch.cat([t, t]) for k, t in tensors.items()}, folder / WEIGHTS)


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "a missing tensor": (_lose_a_tensor, "1 tensors too many or missing"),
    "every lora_B zero": (_silence, "silent: every lora_B is zero"),
    "not finite": (_spoil, "not finite"),
    "another shape": (_widen, "has the shape"),
    "an unknown target": (lambda f: edit_config(f, target_modules=["wrong_proj"]), "wrong_proj"),
    "dora without lengths": (lambda f: edit_config(f, use_dora=True), "magnitude_vector"),
    "a module that is not there": (
        lambda f: edit_config(f, modules_to_save=["lm_head"]),
        "the first base_model.model.lm_head.weight",
    ),
    "an unknown module": (lambda f: edit_config(f, modules_to_save=["wrong"]), "wrong is to be"),
    "a trained bias": (lambda f: edit_config(f, bias="all"), "bias"),
    "another kind": (lambda f: edit_config(f, peft_type="IA3"), "IA3"),
    "no config": (lambda f: (f / "adapter_config.json").unlink(), "no adapter_config.json"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_trap_18_an_adapter_that_would_not_be_applied_is_refused(
    tiny: Callable[..., Path], tmp_path: Path, damage: str
) -> None:
    harm, said = DAMAGE[damage]
    saved(trained(tiny(), LoRASettings(rank=4)), tmp_path)
    harm(tmp_path)
    model = load(tiny(), dtype="float32")
    with pytest.raises(AdapterError, match=said):
        model.adapters.load("a", tmp_path, weights_hash=model.weights_hash)
    # Nothing of it stays behind.
    assert not model.adapters.settings
    assert not list(model.adapters.lows("a"))


def test_an_adapter_of_another_tool_has_no_card_and_loads(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    model = trained(tiny(), LoRASettings(rank=4))
    tuned = logprobs(model, "a")
    saved(model, tmp_path)
    (tmp_path / CARD).unlink()
    model.adapters.remove("a")
    assert not torch.allclose(logprobs(model, "a"), tuned)
    model.adapters.load("a", tmp_path, weights_hash=model.weights_hash)
    assert torch.equal(logprobs(model, "a"), tuned)


def test_a_target_may_be_named_by_more_of_its_path(tiny: Callable[..., Path]) -> None:
    adapters = load(tiny(), dtype="float32").adapters
    assert adapters.targets(("self_attn.q_proj",)) == adapters.targets(("q_proj",))
    assert len(adapters.targets("all-linear")) == 2 * 7
    with pytest.raises(ModelError, match=r"roj_x.*q_proj"):
        adapters.targets(("roj_x",))


def test_the_head_gets_no_adapter_even_where_it_is_not_tied(tiny: Callable[..., Path]) -> None:
    model = load(tiny(tie_word_embeddings=False), dtype="float32")
    assert not any("lm_head" in path for path in model.adapters.targets("all-linear"))


def test_a_model_without_linear_layers_is_refused(tiny: Callable[..., Path]) -> None:
    model = load(tiny("gpt2"), dtype="float32")
    with pytest.raises(ModelError, match="no linear layers"):
        model.adapters.create("a", LoRASettings(rank=4))


def test_a_seed_starts_an_adapter_the_same_way_and_another_seed_does_not(
    tiny: Callable[..., Path],
) -> None:
    model = load(tiny(), dtype="float32")
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        model.adapters.create(name, LoRASettings(rank=4), seed=seed)
    first = {name: model.adapters.parameters(name)[0] for name in "abc"}
    assert torch.equal(first["a"], first["b"])
    assert not torch.equal(first["a"], first["c"])


def test_removing_leaves_no_trace(tiny: Callable[..., Path]) -> None:
    model = trained(tiny(), LoRASettings(rank=4))
    model.adapters.remove("a")
    assert not model.adapters.settings
    assert not list(model.adapters.lows("a"))

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf as format
import httpx
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM

from tunesmith.errors import AdapterError, ModelError
from tunesmith.models import fetch, gguf, gguf_vocab
from tunesmith.models.load import load
from tunesmith.models.lora import LoRASettings
from tunesmith.models.template import Chain, ChatTemplate
from tunesmith.models.tree import plant
from tunesmith.testing import tiny_model

xllamacpp = pytest.importorskip("xllamacpp")

GEMMA = {"num_hidden_layers": 7, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16}
STRETCHED = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0}
STRETCHED |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 256}
FULL = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
WINDOW = {"rope_type": "default", "rope_theta": 1e4}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama with tied weights": ("llama", {"tie_word_embeddings": True}),
    "llama 3.1": ("llama", {"rope_parameters": STRETCHED}),
    "mistral": ("mistral", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "phi3": ("phi3", {}),
    "phi4-mini": ("phi3", {"rope_parameters": {**WINDOW, "partial_rotary_factor": 0.5}}),
    "gemma3": ("gemma3_text", GEMMA),
    "gemma3 4B": (
        "gemma3_text",
        {**GEMMA, "rope_parameters": {"full_attention": FULL, "sliding_attention": WINDOW}},
    ),
}


def drawn(folder: Path, family: str = "llama", **settings: Any) -> Path:
    """A model whose weights, norms and biases too, are drawn wide enough to say something."""
    tiny_model(folder, family=family, **settings)
    tensors = load_file(folder / "model.safetensors")
    draw = torch.Generator().manual_seed(0)
    for name, weight in tensors.items():
        noise = torch.randn(weight.shape, generator=draw)
        weight.copy_(noise * 0.15 if weight.ndim > 1 else weight + noise * 0.3)
        tensors[name] = weight
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))


@pytest.fixture
def serve() -> Iterator[Callable[..., Callable[..., Any]]]:
    held: list[Any] = []

    def start(base: Path, adapter: Path | None = None) -> Callable[..., Any]:
        params = xllamacpp.CommonParams()
        params.model.path, params.n_parallel, params.n_ctx, params.port = str(base), 1, 1024, 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.cache_ram_mib, params.warmup, params.ui, params.verbosity = 0, False, False, 0
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        if adapter:
            info = xllamacpp.CommonAdapterLoraInfo()
            info.path, info.scale = str(adapter), 0.0
            params.lora_adapters = [info]
        held.append(xllamacpp.Server(params))
        url = held[-1].listening_address

        def ask(path: str, **body: Any) -> Any:
            return httpx.post(url + path, json=body, trust_env=False).raise_for_status().json()

        return ask

    yield start
    held.clear()


def next_token(ask: Callable[..., Any], ids: list[int], *, scale: float = 0.0) -> torch.Tensor:
    """llama.cpp's log-probabilities of the token behind some others."""
    body = {"prompt": ids, "n_predict": 1, "n_probs": 260, "cache_prompt": False}
    # A letter is made certain: the token of half a character would come without any.
    body |= {"logit_bias": [[65, 100.0]], "lora": [{"id": 0, "scale": scale}] if scale else []}
    top = ask("/completion", **body)["completion_probabilities"][0]["top_logprobs"]
    found = torch.full((260,), -torch.inf)
    for entry in top:
        found[entry["id"]] = entry["logprob"]
    return found


def rows() -> list[list[int]]:
    draw = np.random.default_rng(0)
    return [[int(token) for token in draw.integers(0, 256, length)] for length in (3, 40, 300)]


@pytest.mark.parametrize("wide", [True, False], ids=["F32", "F16"])
@pytest.mark.parametrize("case", CASES)
def test_llama_cpp_computes_the_model_that_was_written(
    tmp_path: Path, serve: Callable[..., Any], case: str, *, wide: bool
) -> None:
    family, settings = CASES[case]
    folder = drawn(tmp_path / "model", family, **settings)
    assert gguf.refusal(folder) == ""
    gguf.write_base(folder, tmp_path / "model.gguf", wide=wide)
    ask = serve(tmp_path / "model.gguf")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for ids in rows():
        with torch.no_grad():
            expected = model(torch.tensor([ids])).logits[0, -1].log_softmax(0)
        assert expected.max() - expected.min() > 3
        limit = 0.008 if wide else 0.015
        torch.testing.assert_close(next_token(ask, ids), expected, rtol=0, atol=limit)


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3", "gemma3_text"])
@pytest.mark.parametrize("rslora", [False, True], ids=["lora", "rslora"])
def test_an_adapter_beside_the_base_is_the_adapter_of_the_model(
    tmp_path: Path, serve: Callable[..., Any], family: str, *, rslora: bool
) -> None:
    folder = drawn(tmp_path / "model", family, **(GEMMA if family == "gemma3_text" else {}))
    model = load(folder, dtype="float32")
    adapter = with_adapter(model, tmp_path / "adapter", rslora=rslora)
    ask = serve(gguf.base(folder, wide=True), gguf.adapter(folder, adapter))
    ids = rows()[1]
    for scale, name in ((1.0, "a"), (0.0, None)):
        model.adapters.routing.all = name
        with torch.no_grad():
            hidden = model.forest(plant([Chain(tuple(ids), (True,) * len(ids))]))
            expected = model.exact_head(hidden[-1:])[0].log_softmax(0)
        found = next_token(ask, ids, scale=scale)
        torch.testing.assert_close(found, expected, rtol=0, atol=0.01)


def with_adapter(model: Any, folder: Path, **settings: Any) -> Path:
    model.adapters.create("a", LoRASettings(rank=4, alpha=8.0, **settings))
    draw = torch.Generator().manual_seed(1)
    for _, low in model.adapters.lows("a"):
        with torch.no_grad():
            low.b.copy_(torch.randn(low.b.shape, generator=draw) * 0.1)
    card = {"base_weights": model.weights_hash}
    model.adapters.save("a", folder, base="tiny", card=card)
    return folder


def test_the_cache_is_written_once_and_follows_the_files(tmp_path: Path) -> None:
    folder = drawn(tmp_path / "model")
    first = gguf.base(folder)
    assert first.parent == fetch.home() / "gguf" / fetch.weights_hash(folder)
    made = first.stat().st_mtime_ns
    assert gguf.base(folder) == first
    assert first.stat().st_mtime_ns == made
    assert gguf.base(folder, wide=True) != first
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-5}))
    assert gguf.base(folder) != first
    assert {path.suffix for path in first.parent.iterdir()} == {".gguf", ".lock"}


def test_the_head_of_a_gguf_is_written_again(tmp_path: Path) -> None:
    folder = drawn(tmp_path / "model")
    gguf.write_base(folder, tmp_path / "source.gguf")
    gguf.keep_header(tmp_path / "source.gguf", folder / gguf.HEADER)
    # What it says wins over the configuration; how the model is spoken to is the folder's.
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    gguf.write_base(folder, tmp_path / "again.gguf")
    before, after = (
        {key: field.contents() for key, field in format.GGUFReader(tmp_path / name).fields.items()}
        for name in ("source.gguf", "again.gguf")
    )
    template = "tokenizer.chat_template"
    assert after.pop(template) == "{{ messages[0]['content'] }}" != before.pop(template)
    assert {k: v for k, v in before.items() if "GGUF" not in k} == {
        k: v for k, v in after.items() if "GGUF" not in k
    }


BYTES = pre_tokenizers.ByteLevel
SPLITS: dict[str, Any] = {
    "gpt-2": BYTES(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(True), BYTES(add_prefix_space=False)]),
    **{
        name: pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(str(steps[0][1])), "isolated"),
                BYTES(add_prefix_space=False, use_regex=False),
            ]
        )
        for steps, name in gguf_vocab.SPLITTING.items()
        if steps[0][0] == "split"
    },
}
TEXTS = (
    "Don't say 12345 or 1 234,5!",
    "  two  spaces\n\n and\ttabs \n",
    "naïve café 東京 🙂",
    "x<|im_start|>user\nhi<|im_end|>",
    "a_b.c(d)=[1,22,333]; // ok...",
)


def with_tokenizer(folder: Path, splitting: str) -> Path:
    """A tokenizer that has learned merges, and cuts texts so."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=splitting == gguf_vocab.OWN_MERGES))
    tokenizer.pre_tokenizer, tokenizer.decoder = SPLITS[splitting], decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(BYTES.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 20, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("splitting", SPLITS)
def test_llama_cpp_cuts_texts_as_the_tokenizer_does(
    tmp_path: Path, serve: Callable[..., Any], splitting: str
) -> None:
    folder = with_tokenizer(drawn(tmp_path / "model", vocab_size=410), splitting)
    gguf.write_base(folder, tmp_path / "model.gguf")
    ask, template = serve(tmp_path / "model.gguf"), ChatTemplate.load(folder)
    for text in TEXTS:
        found = ask("/tokenize", content=text, parse_special=True)["tokens"]
        assert tuple(found) == template.encode(text)


@pytest.mark.parametrize(
    ("family", "settings", "said"),
    [
        ("gpt_neox", {}, "gpt_neox is none of llama, mistral"),
        ("llama", {"hidden_act": "gelu"}, "does not compute hidden_act=gelu"),
        ("llama", {"attention_bias": True}, "does not compute attention_bias=True"),
        ("mistral", {"sliding_window": 64}, "does not keep to its window of 64"),
        ("gemma3_text", {**GEMMA, "layer_types": ["full_attention"] * 7}, "every sixth layer"),
        ("gemma3_text", {**GEMMA, "query_pre_attn_scalar": 8}, "query_pre_attn_scalar"),
        ("gemma3_text", {**GEMMA, "final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        (
            "qwen2",
            {"rope_parameters": {**WINDOW, "rope_type": "yarn", "factor": 4.0}},
            "type yarn are not written",
        ),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    tmp_path: Path, family: str, settings: dict[str, Any], said: str
) -> None:
    folder = tiny_model(tmp_path / "model", family=family, **settings)
    assert said in gguf.refusal(folder)
    with pytest.raises(ModelError, match="cannot be written as GGUF"):
        gguf.base(folder)
    assert not list((fetch.home() / "gguf").rglob("*.gguf*[0-9]"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": {"byte_fallback": True}}, "BPE with byte_fallback"),
        ({"model": {"ignore_merges": True}}, "ignore_merges"),
        ({"normalizer": {"type": "Lowercase"}}, "changes texts first"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "none of gpt-2, smollm"),
    ],
)
def test_a_tokenizer_that_has_no_form_is_refused(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    folder = tiny_model(tmp_path / "model")
    value = json.loads((folder / "tokenizer.json").read_text())
    change = {**change, "model": {**value["model"], **change.get("model", {})}}
    (folder / "tokenizer.json").write_text(json.dumps({**value, **change}))
    assert said in gguf.refusal(folder)


def test_a_weight_beyond_float16_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    folder = drawn(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"][0, 0] = 1e5
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="beyond 65504"):
        gguf.base(folder)
    assert not list(fetch.home().glob("gguf/*/*gguf*[!k]"))
    assert gguf.base(folder, wide=True).is_file()


def test_adapters_without_a_form_and_those_of_other_weights_are_refused(tmp_path: Path) -> None:
    folder = drawn(tmp_path / "model")
    dora = with_adapter(load(folder, dtype="float32"), tmp_path / "dora", dora=True)
    with pytest.raises(AdapterError, match="DoRA has no form in GGUF"):
        gguf.adapter(folder, dora)
    own = {"modules_to_save": ("embed_tokens",)}
    whole = with_adapter(load(folder, dtype="float32"), tmp_path / "whole", **own)
    with pytest.raises(AdapterError, match="modules_to_save has no form"):
        gguf.adapter(folder, whole)
    other = shutil.copytree(folder, tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    tensors["lm_head.weight"] += 1
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    fits = with_adapter(load(folder, dtype="float32"), tmp_path / "fits")
    with pytest.raises(AdapterError, match="was trained on weights"):
        gguf.adapter(other, fits)
    with pytest.raises(AdapterError, match="is no adapter"):
        gguf.adapter(folder, folder)


def test_rows_of_heads_are_interleaved() -> None:
    rows = np.arange(8)
    assert gguf.interleaved(rows, 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]

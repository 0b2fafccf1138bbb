"""Which models llama.cpp computes as transformers does, and how they are described to it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gguf import MODEL_ARCH, Keys, RopeScalingType, TensorNameMap, get_tensor_name_map
from numpy.typing import NDArray

from tunesmith.models import gguf_vocab

HEADER = "source.gguf"
"""In a model's folder: the metadata of the GGUF file that its weights came from."""


@dataclass(frozen=True, slots=True)
class Family:
    """How a model type of transformers becomes an architecture of llama.cpp.

    Attributes:
        rotary: llama.cpp turns neighbouring rows of queries and keys, transformers the two halves.
        shift: added to the weights of norms.
        usual: settings with the values that llama.cpp computes, the one for a missing key first.
    """

    arch: MODEL_ARCH
    rotary: bool = False
    shift: float = 0.0
    usual: Mapping[str, tuple[object, ...]] = field(default_factory=dict[str, tuple[object, ...]])


_SILU: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "use_sliding_window": (False,),
}
FAMILIES = {
    "llama": Family(MODEL_ARCH.LLAMA, rotary=True, usual=_SILU),
    "mistral": Family(MODEL_ARCH.LLAMA, rotary=True, usual=_SILU),
    "qwen2": Family(MODEL_ARCH.QWEN2, usual=_SILU),
    "qwen3": Family(MODEL_ARCH.QWEN3, usual=_SILU),
    "phi3": Family(MODEL_ARCH.PHI3, usual=_SILU),
    "gemma3_text": Family(
        MODEL_ARCH.GEMMA3,
        shift=1.0,
        usual={
            "hidden_activation": ("gelu_pytorch_tanh",),
            "attention_bias": (False,),
            "attn_logit_softcapping": (None,),
            "final_logit_softcapping": (None,),
            "use_bidirectional_attention": (None, False),
        },
    ),
}
"""Model types that were held against llama.cpp's own log-probabilities."""


def refusal(folder: Path) -> str:
    """Why a model cannot be written as llama.cpp would compute it; empty where it can be."""
    config = read_config(folder)
    family = FAMILIES.get(config["model_type"])
    if family is None:
        return f"{config['model_type']} is none of {', '.join(FAMILIES)}"
    for key, values in family.usual.items():
        if config.get(key, values[0]) not in values:
            return f"llama.cpp does not compute {key}={config[key]}"
    return _odd_places(config, family) or (
        "" if (folder / HEADER).is_file() else gguf_vocab.refusal(folder)
    )


def _odd_places(config: Mapping[str, Any], family: Family) -> str:
    """What of positions and windows llama.cpp would compute otherwise."""
    turns = rope(config)
    known = {MODEL_ARCH.LLAMA: ("default", "llama3"), MODEL_ARCH.GEMMA3: ("default", "linear")}
    kind = turns.get("rope_type", turns.get("type", "default"))
    if kind not in known.get(family.arch, ("default",)):
        return f"rotary positions of type {kind} are not written"
    window, context = config.get("sliding_window"), config["max_position_embeddings"]
    if family.arch != MODEL_ARCH.GEMMA3:
        if window and window < context and config.get("use_sliding_window") is None:
            return f"llama.cpp does not keep to its window of {window} tokens"
        return ""
    kinds = [("sliding", "full")[(layer + 1) % 6 == 0] for layer in range(_layers(config))]
    if config.get("layer_types", kinds) not in (kinds, [f"{kind}_attention" for kind in kinds]):
        return "llama.cpp reads every sixth layer of gemma3 in full, this one others"
    if config.get("query_pre_attn_scalar", config["head_dim"]) != config["head_dim"]:
        return "llama.cpp scales attention by head_dim, this one by query_pre_attn_scalar"
    local = (config.get("rope_parameters") or {}).get("sliding_attention", {})
    if local.get("rope_theta", config.get("rope_local_base_freq", 10000.0)) != 10000.0:
        return "llama.cpp turns positions in a window by 10000"
    return ""


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder."""
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def _layers(config: Mapping[str, Any]) -> int:
    return int(config["num_hidden_layers"])


def names(config: Mapping[str, Any], family: Family) -> TensorNameMap:
    """llama.cpp's names of the model's tensors."""
    return get_tensor_name_map(family.arch, _layers(config))


def rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of rotary positions, of layers that read everything where there are two kinds."""
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    found = found.get("full_attention", found)
    return {"rope_theta": config.get("rope_theta", 10000.0), **found}


def _head(config: Mapping[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def described(config: Mapping[str, Any], family: Family, arch: str) -> dict[str, Any]:
    """The metadata that says what llama.cpp has to compute."""
    heads, head, turns = int(config["num_attention_heads"]), _head(config), rope(config)
    part = turns.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    found: dict[str, Any] = {
        Keys.LLM.VOCAB_SIZE: int(config["vocab_size"]),
        Keys.LLM.CONTEXT_LENGTH: int(config["max_position_embeddings"]),
        Keys.LLM.EMBEDDING_LENGTH: int(config["hidden_size"]),
        Keys.LLM.FEED_FORWARD_LENGTH: int(config["intermediate_size"]),
        Keys.LLM.BLOCK_COUNT: _layers(config),
        Keys.Attention.HEAD_COUNT: heads,
        Keys.Attention.HEAD_COUNT_KV: int(config.get("num_key_value_heads") or heads),
        Keys.Attention.KEY_LENGTH: head,
        Keys.Attention.VALUE_LENGTH: head,
        Keys.Attention.LAYERNORM_RMS_EPS: float(config["rms_norm_eps"]),
        Keys.Rope.DIMENSION_COUNT: int(head * part),
        Keys.Rope.FREQ_BASE: float(turns["rope_theta"]),
    }
    if family.arch == MODEL_ARCH.GEMMA3:
        found[Keys.Attention.SLIDING_WINDOW] = int(config["sliding_window"])
    if family.arch == MODEL_ARCH.PHI3:
        found[Keys.Attention.SLIDING_WINDOW] = 0
        found[Keys.Rope.SCALING_ORIG_CTX_LEN] = int(config["max_position_embeddings"])
    if turns.get("rope_type") == "linear":
        found[Keys.Rope.SCALING_TYPE] = str(RopeScalingType.LINEAR.value)
        found[Keys.Rope.SCALING_FACTOR] = float(turns["factor"])
    return {key.format(arch=arch): value for key, value in found.items()}


def turned(name: str, config: Mapping[str, Any], family: Family) -> int:
    """Heads of a tensor whose rows are interleaved; 0 where none are."""
    if not family.rotary:
        return 0
    heads = int(config["num_attention_heads"])
    of = {"q_proj": heads, "k_proj": int(config.get("num_key_value_heads") or heads)}
    return next((count for layer, count in of.items() if f".{layer}." in name), 0)


def stretched(config: Mapping[str, Any]) -> NDArray[np.float32]:
    """What each rotary frequency is divided by, as Llama 3.1 stretches its context."""
    told, head = rope(config), _head(config)
    low, high, factor = told["low_freq_factor"], told["high_freq_factor"], told["factor"]
    frequency = float(told["rope_theta"]) ** -(np.arange(0, head, 2) / head)
    turns = told["original_max_position_embeddings"] * frequency / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)

"""A tokenizer as the metadata of a GGUF file: byte-level BPE, whose splitting llama.cpp knows by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from gguf import Keys, TokenType

from tunesmith.models.template import ChatTemplate

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTES = ("bytes", False)
SPLITTING: Mapping[tuple[tuple[str, object], ...], str] = {
    (("bytes", True),): "gpt-2",
    (("digits", True), ("bytes", True)): "smollm",
    (("split", _WORDS % r"\p{N}{1,3}"), _BYTES): "llama-bpe",
    (("split", _WORDS % r"\p{N}"), _BYTES): "qwen2",
}
"""llama.cpp's name (tokenizer.ggml.pre) of each way to cut a text before its merges."""
OWN_MERGES = "llama-bpe"
"""The one for which llama.cpp takes a word that is a token whole, as `ignore_merges` does."""


def refusal(folder: Path) -> str:
    """Why llama.cpp would cut texts otherwise than the folder's tokenizer; empty where it would not."""
    if not (folder / "tokenizer.json").is_file():
        return "it has no tokenizer.json"
    tokenizer = _read(folder)
    model = tokenizer["model"]
    odd = [key for key in ("byte_fallback", "dropout", "unk_token") if model.get(key)]
    if model["type"] != "BPE" or odd:
        kind = model["type"] + "".join(f" with {key}" for key in odd)
        return f"its tokenizer is {kind}; byte-level BPE can be written"
    name = _splitting(tokenizer)
    if name is None:
        return f"its tokenizer cuts texts in a way that is none of {', '.join(SPLITTING.values())}"
    if (tokenizer.get("normalizer") or {"type": "NFC"})["type"] != "NFC":
        return f"its tokenizer changes texts first ({tokenizer['normalizer']['type']})"
    if bool(model.get("ignore_merges")) != (name == OWN_MERGES):
        return (
            f"its tokenizer has ignore_merges={model.get('ignore_merges')}, {name} in llama.cpp not"
        )
    return ""


def fields(folder: Path, size: int) -> dict[str, Any]:
    """Metadata of the folder's tokenizer.

    Args:
        size: rows of the embedding; ids beyond the tokenizer's are marked unused.
    """
    tokenizer = _read(folder)
    model = tokenizer["model"]
    tokens = [f"[PAD{place}]" for place in range(size)]
    kinds = [TokenType.UNUSED] * size
    for token, place in model["vocab"].items():
        tokens[place], kinds[place] = token, TokenType.NORMAL
    for added in tokenizer["added_tokens"]:
        place = added["id"]
        tokens[place] = added["content"]
        kinds[place] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    merges = [item if isinstance(item, str) else " ".join(item) for item in model["merges"]]
    return {
        Keys.Tokenizer.MODEL: "gpt2",
        Keys.Tokenizer.PRE: _splitting(tokenizer),
        Keys.Tokenizer.LIST: tokens,
        Keys.Tokenizer.TOKEN_TYPE: [int(kind) for kind in kinds],
        # llama.cpp wants some; one of nothing merges nothing.
        Keys.Tokenizer.MERGES: merges or [" "],
        Keys.Tokenizer.ADD_PREFIX: False,
        **specials(folder),
    }


def specials(folder: Path) -> dict[str, Any]:
    """Metadata of what begins, ends and pads a text, and of the chat template that is trained with."""
    template = ChatTemplate.load(folder)
    tokenizer = template.tokenizer
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    named = {key: _id(tokenizer, settings.get(f"{key}_token")) for key in ("bos", "eos", "pad")}
    ends = sorted(template.end_of_turn, key=lambda end: (end != named["eos"], end))
    keys = Keys.Tokenizer
    # llama.cpp has places for three; it finds the usual others by their names.
    found = dict(zip((keys.EOS_ID, keys.EOT_ID, keys.EOM_ID), ends, strict=False))
    found |= {keys.BOS_ID: named["bos"], keys.PAD_ID: named["pad"]}
    begins = named["bos"] is not None and tokenizer.encode("").ids[:1] == [named["bos"]]
    return {
        **{key: value for key, value in found.items() if value is not None},
        keys.ADD_BOS: begins,
        keys.CHAT_TEMPLATE: template.source,
    }


def _id(tokenizer: Any, token: object) -> int | None:
    text = cast("dict[str, Any]", token).get("content") if isinstance(token, dict) else token
    return tokenizer.token_to_id(text) if isinstance(text, str) else None


def _splitting(tokenizer: Mapping[str, Any]) -> str | None:
    """llama.cpp's name of the pre-tokenizer."""
    whole = tokenizer.get("pre_tokenizer") or {}
    parts = whole.get("pretokenizers", [whole])
    return SPLITTING.get(tuple(_step(part) for part in parts))


def _step(part: Mapping[str, Any]) -> tuple[str, object]:
    if part.get("type") == "ByteLevel" and not part.get("add_prefix_space"):
        return "bytes", part.get("use_regex", True)
    if part.get("type") == "Digits":
        return "digits", part.get("individual_digits", False)
    if part.get("type") == "Split" and part["behavior"] == "Isolated" and not part["invert"]:
        return "split", part["pattern"].get("Regex")
    return "", part.get("type")


def _read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))

"""GGUF to safetensors, in a process of its own: `python -m tunesmith.models.convert GGUF OUT`.

Weights are widened to bfloat16. With --digits the tokenizer gets back the splitting of numbers
into digits that the GGUF names (`tokenizer.ggml.pre`) and the generic converter drops. With
--template FILE a base that ships no chat template gets one; with --stop TOKEN a special token ends
answers beside eos. The metadata of the GGUF is kept beside the weights, to be written again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel, Digits
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.quantization_config import GgufConfig

from tunesmith.models.gguf import HEADER, keep_header


def convert(
    gguf: Path,
    out: Path,
    *,
    digits: bool,
    template: Path | None = None,
    stops: Sequence[str] = (),
) -> None:
    """Write the model and tokenizer of a GGUF file to a folder that transformers reads.

    Raises:
        ValueError: a stop is not one special token.
    """
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    if digits:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                Digits(individual_digits=True),
                ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
            ]
        )
    if template:
        tokenizer.chat_template = template.read_text(encoding="utf-8")
    tokenizer.save_pretrained(out)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    if stops:
        ids = [_special(tokenizer, token) for token in stops]
        model.generation_config.eos_token_id = [tokenizer.eos_token_id, *ids]
    model.save_pretrained(out)
    keep_header(gguf, out / HEADER)


def _special(tokenizer: Any, token: str) -> int:
    ids: list[int] = tokenizer.encode(token, add_special_tokens=False)
    known = tokenizer.added_tokens_decoder.get(ids[0])
    if len(ids) != 1 or known is None or not known.special:
        raise ValueError(f"{token} is not one special token of {tokenizer.name_or_path}: {ids}")
    return ids[0]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("gguf", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--digits", action="store_true")
    parser.add_argument("--template", type=Path)
    parser.add_argument("--stop", action="append", default=[])
    arguments = parser.parse_args()
    convert(
        arguments.gguf,
        arguments.out,
        digits=arguments.digits,
        template=arguments.template,
        stops=arguments.stop,
    )

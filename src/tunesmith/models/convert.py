"""GGUF to safetensors, in a process of its own: `python -m tunesmith.models.convert GGUF OUT`.

Weights are widened to bfloat16. With --digits the tokenizer gets back the splitting of numbers
into digits that the GGUF names (`tokenizer.ggml.pre`) and the generic converter drops.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.quantization_config import GgufConfig


def convert(gguf: Path, out: Path, *, digits: bool) -> None:
    """Write the model and tokenizer of a GGUF file to a folder that transformers reads."""
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    if digits:
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
            [
                Digits(individual_digits=True),
                ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
            ]
        )
    tokenizer.save_pretrained(out)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("gguf", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--digits", action="store_true")
    arguments = parser.parse_args()
    convert(arguments.gguf, arguments.out, digits=arguments.digits)

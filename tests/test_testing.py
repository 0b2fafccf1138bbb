from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunesmith.chat import Message, SamplingParams
from tunesmith.testing import byte_template, scripted_chat, tiny_model


def test_scripted_chat_answers_what_the_script_says() -> None:
    model = scripted_chat(lambda messages: f"{len(messages)} turns")
    answer = asyncio.run(model.complete([Message("user", "one two")], SamplingParams()))
    assert (answer.text, answer.finish_reason) == ("1 turns", "stop")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 2)


@pytest.mark.parametrize("text", ["plain", "ünï 🙂 \n\t\x00", "<|im_end|>x"])
def test_every_byte_is_a_token_of_the_byte_tokenizer(text: str) -> None:
    template = byte_template()
    ids = template.encode(text)
    assert template.tokenizer.decode(list(ids), skip_special_tokens=False) == text
    assert len(ids) == len(text.replace("<|im_end|>", "!").encode())


def test_a_tiny_model_is_a_folder_that_transformers_reads(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "m", family="mistral", num_hidden_layers=1)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert (model.config.model_type, model.config.num_hidden_layers) == ("mistral", 1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == model.config.vocab_size == 260
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (257, 259)


def test_a_seed_makes_the_same_tiny_model(tmp_path: Path) -> None:
    one, two, other = (
        AutoModelForCausalLM.from_pretrained(tiny_model(tmp_path / name, seed=seed))
        for name, seed in (("one", 0), ("two", 0), ("other", 1))
    )
    weights = [model.get_input_embeddings().weight for model in (one, two, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_reading_the_doubles_imports_no_engine() -> None:
    code = "import sys, tunesmith.testing; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "False\n"

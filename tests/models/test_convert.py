from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunesmith.models.convert import convert
from tunesmith.models.load import load
from tunesmith.models.template import ChatTemplate

WIDTH, LAYERS, HEADS, VOCABULARY = 32, 1, 4, 262


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF of one layer over bytes, as llama.cpp writes a Llama."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(64)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<|im_start|>", "<|im_end|>", "<|end|>", "<|pad|>"]
    ordinary = [*letters, "12", "ĊĊ"]
    writer.add_token_list([*ordinary, *specials])
    writer.add_token_types([1] * len(ordinary) + [3] * len(specials))
    writer.add_token_merges(["1 2", "Ċ Ċ"])
    writer.add_bos_token_id(258)
    writer.add_eos_token_id(259)
    draw = np.random.default_rng(0)
    shapes = {
        "token_embd.weight": (VOCABULARY, WIDTH),
        "output_norm.weight": (WIDTH,),
        "blk.0.attn_norm.weight": (WIDTH,),
        "blk.0.ffn_norm.weight": (WIDTH,),
        **{f"blk.0.attn_{name}.weight": (WIDTH, WIDTH) for name in ("q", "k", "v", "output")},
        "blk.0.ffn_gate.weight": (64, WIDTH),
        "blk.0.ffn_up.weight": (64, WIDTH),
        "blk.0.ffn_down.weight": (WIDTH, 64),
    }
    for name, shape in shapes.items():
        writer.add_tensor(name, draw.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_becomes_a_folder_that_loads_with_the_same_weights(
    source: Path, tmp_path: Path
) -> None:
    convert(source, tmp_path, digits=False)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.dtype == torch.bfloat16
    reader = gguf.GGUFReader(str(source))
    wanted = next(t for t in reader.tensors if t.name == "token_embd.weight").data
    torch.testing.assert_close(
        model.get_input_embeddings().weight.detach(),
        torch.tensor(wanted.reshape(VOCABULARY, WIDTH)).bfloat16(),
    )
    assert load(tmp_path).template.end_of_turn == {259}


def test_trap_36_the_converted_tokenizer_splits_numbers_into_digits(
    source: Path, tmp_path: Path
) -> None:
    convert(source, tmp_path / "digits", digits=True)
    convert(source, tmp_path / "plain", digits=False)
    text = "a12\n\n3"
    digits, plain = (
        AutoTokenizer.from_pretrained(tmp_path / name).tokenize(text)
        for name in ("digits", "plain")
    )
    assert digits == ["a", "1", "2", "ĊĊ", "3"]
    assert plain == ["a", "12", "Ċ", "Ċ", "3"]


def test_a_base_without_a_template_gets_one_and_stops_where_it_is_told(
    source: Path, tmp_path: Path
) -> None:
    template = tmp_path / "ours.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}")
    convert(source, tmp_path / "out", digits=False, template=template, stops=["<|end|>"])
    made = ChatTemplate.load(tmp_path / "out")
    assert not made.fallback
    assert made.end_of_turn == {259, 260}
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "out").generation_config
    assert config.eos_token_id == [259, 260]


def test_a_stop_that_is_not_one_special_token_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="<end> is not one special token"):
        convert(source, tmp_path, digits=False, stops=["<end>"])

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from tunesmith.errors import ModelError
from tunesmith.models import encoder as module
from tunesmith.models.encoder import Encoder
from tunesmith.models.template import ChatTemplate

TEXTS = ["parceled", "a b", "My parcel is late", "z", "where is the parcel now, please?", "a b"]


@pytest.fixture(scope="module")
def encoder(tiny_encoder: Path) -> Encoder:
    return Encoder.load(tiny_encoder, dtype="float32")


def test_vectors_are_the_mean_of_transformers_own_hidden_states_at_length_1(
    tiny_encoder: Path, encoder: Encoder
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    model = AutoModel.from_pretrained(tiny_encoder).eval()
    expected = []
    for text in TEXTS:
        with torch.no_grad():
            ids = tokenizer(text, return_tensors="pt", truncation=False, padding=False)
            mean = model(**ids).last_hidden_state[0].mean(0)
        expected.append((mean / mean.norm()).numpy())
    vectors = encoder.encode(TEXTS)
    assert vectors.dtype == np.float32
    assert np.abs(vectors - np.stack(expected)).max() < 1e-6
    assert encoder.encode([]).shape == (0, 24)


def test_what_the_saved_tokenizer_would_cut_and_pad_is_left_whole(encoder: Encoder) -> None:
    assert encoder.max_tokens == 32
    # [CLS] parcel ##ed [SEP], and ten letters between the two.
    assert encoder.tokenize(["parceled"]) == [[2, 56, 57, 3]]
    assert len(encoder.tokenize(["a " * 10])[0]) == 12


def test_ids_are_framed_once(encoder: Encoder) -> None:
    assert encoder.framed([56, 57]) == encoder.framed([2, 56, 57, 3]) == [2, 56, 57, 3]


@pytest.mark.parametrize(("dtype", "least"), [("float32", 1 - 1e-6), ("bfloat16", 0.999)])
def test_a_vector_does_not_depend_on_what_shares_its_batch(
    tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch, dtype: module.DType, least: float
) -> None:
    encoder = Encoder.load(tiny_encoder, dtype=dtype)
    texts = [" ".join("abcdefghij"[place % 10] * (1 + place % 29)) for place in range(50)]
    alone = np.concatenate([encoder.encode([text]) for text in texts])
    for tokens in (1, 100, 8192):
        monkeypatch.setattr(module, "BATCH_TOKENS", tokens)
        together = encoder.encode(texts)
        assert (alone * together).sum(1).min() >= least
        assert np.abs(np.linalg.norm(together, axis=1) - 1).max() < 1e-6


def test_a_long_text_is_refused_or_cut_as_asked(encoder: Encoder) -> None:
    encoder.encode(["a " * 30])
    with pytest.raises(ModelError, match=r"33 tokens; expected at most 32.*or have it cut"):
        encoder.encode(["a", "a " * 31])
    cut = encoder.encode(["a", "a " * 30 + "b c d"], too_long="cut")
    assert np.abs(cut - encoder.encode(["a", "a " * 30])).max() < 1e-6


def test_a_folder_that_is_pooled_in_another_way_is_refused(
    tiny_encoder: Path, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"modules\.json is not there; expected a folder of sent"):
        Encoder.load(tiny())
    folder = shutil.copytree(tiny_encoder, tmp_path / "cls")
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    with pytest.raises(ModelError, match=r"Transformer, Pooling with pooling_mode_cls_token; exp"):
        Encoder.load(folder)
    shutil.copytree(tiny_encoder, folder, dirs_exist_ok=True)
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([*modules, {"type": "models.Dense"}]))
    with pytest.raises(ModelError, match=r"Transformer, Pooling, Dense"):
        Encoder.load(folder)


def test_an_encoder_is_no_chat_model(tiny_encoder: Path) -> None:
    with pytest.raises(ModelError, match=r"is a sentence encoder.*Give another --model"):
        ChatTemplate.load(tiny_encoder)


@pytest.mark.slow
def test_the_real_encoder_finds_what_means_the_same(sentence_encoder: Path) -> None:
    encoder = Encoder.load(sentence_encoder)
    assert (encoder.width, encoder.max_tokens) == (384, 256)
    texts = [
        "My parcel should have been here on Tuesday.",
        "The package that I ordered has not arrived yet.",
        "Photosynthesis turns light into chemical energy.",
    ]
    vectors = encoder.encode(texts)
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-6
    alike = vectors @ vectors.T
    assert alike[0, 1] > max(alike[0, 2], alike[1, 2]) + 0.2
    assert (Encoder.load(sentence_encoder, dtype="float32").encode(texts) * vectors).sum(
        1
    ).min() > 0.999
    with pytest.raises(ModelError, match="at most 256"):
        encoder.encode(["word " * 300])

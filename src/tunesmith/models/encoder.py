"""Sentence encoders: texts to vectors whose dot product says how alike they are.

As Sentence-BERT does it (Reimers and Gurevych 2019, arXiv:1908.10084): the last hidden states of a
text's tokens are averaged and scaled to length 1. It stays on the CPU, whatever device there is:
the models are small, and a GPU's memory is the trainer's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import AutoModel

from tunesmith.errors import ModelError
from tunesmith.models.catalog import MODULES
from tunesmith.models.load import DType, dtype_for

BATCH_TOKENS = 8192
"""Most tokens of one pass, padding counted: enough rows to read the weights seldom."""
PARTS = (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])


class Encoder:
    """A frozen encoder with its tokenizer.

    A text's vector is the same to rounding, whatever it shares a batch with: in float32 within 1e-6
    in each of its numbers, in bfloat16 within a cosine of 0.999, since batches of other sizes are
    multiplied in another order.

    Attributes:
        max_tokens: longest text, its special tokens counted.
        width: numbers in a vector.
        vocabulary: ids are below this.
    """

    def __init__(self, module: Any, tokenizer: Tokenizer, max_tokens: int) -> None:
        self._module, self._tokenizer, self.max_tokens = module, tokenizer, max_tokens
        self.width: int = module.config.hidden_size
        self.vocabulary: int = module.config.vocab_size
        probe = tokenizer.encode("a")
        inside = [place for place, mask in enumerate(probe.special_tokens_mask) if not mask]
        self._head, self._tail = probe.ids[: inside[0]], probe.ids[inside[-1] + 1 :]

    @classmethod
    def load(cls, folder: Path, *, dtype: DType = "auto") -> Encoder:
        """A folder as sentence-transformers writes it: safetensors, tokenizer, how it is pooled.

        Args:
            dtype: what it computes in; `auto` is bfloat16 where the CPU multiplies it fast.

        Raises:
            ModelError: the folder does not load, or is not pooled by the mean.
        """
        limit = _check(folder)
        try:
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            held = dtype_for(dtype, "cpu")
            module = AutoModel.from_pretrained(folder, dtype=held, use_safetensors=True)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(
                f"{folder} does not load: {str(error)[:300]}", expected="a sentence encoder"
            ) from None
        # Saved tokenizers cut and pad by themselves.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        positions = module.config.max_position_embeddings
        return cls(
            module.eval().requires_grad_(False), tokenizer, min(limit or positions, positions)
        )

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, special tokens included; of any length."""
        return [row.ids for row in self._tokenizer.encode_batch_fast(list(texts))]

    def framed(self, ids: Sequence[int]) -> list[int]:
        """Ids of a text with the special tokens around them, if they are not there yet."""
        ids, head, tail = list(ids), self._head, self._tail
        if ids[: len(head)] == head and ids[len(ids) - len(tail) :] == tail:
            return ids
        return [*head, *ids, *tail]

    def encode(
        self, texts: Sequence[str], *, too_long: Literal["refuse", "cut"] = "refuse"
    ) -> NDArray[np.float32]:
        """Vectors (N, width) of N texts, in their order.

        Args:
            too_long: `cut` takes the first tokens of a text that is longer than `max_tokens`.

        Raises:
            ModelError: a text is longer than `max_tokens` and is not to be cut.
        """
        rows = self.tokenize(texts)
        if too_long == "cut":
            kept = self.max_tokens - len(self._tail)
            rows = [row if len(row) <= self.max_tokens else row[:kept] + self._tail for row in rows]
        return self.encode_ids(rows)

    def encode_ids(self, rows: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Vectors (N, width) of N texts given as ids, special tokens included, in their order.

        Raises:
            ModelError: a row is longer than `max_tokens`.
        """
        longest = max(map(len, rows), default=0)
        if longest > self.max_tokens:
            raise ModelError(
                f"a text of {longest} tokens",
                expected=f"at most {self.max_tokens}, which this encoder was trained for",
                remedy="Split it, or have it cut.",
            )
        out = np.empty((len(rows), self.width), dtype=np.float32)
        for places in _batches([len(row) for row in rows]):
            out[places] = self._pass([rows[place] for place in places])
        return out

    @torch.inference_mode()
    def _pass(self, rows: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        length = max(map(len, rows))
        ids = torch.zeros(len(rows), length, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = torch.tensor(row)
            mask[place, : len(row)] = 1
        hidden = self._module(input_ids=ids, attention_mask=mask).last_hidden_state
        # The sum's length is scaled away, so it need not be divided by the count.
        pooled = (hidden.float() * mask[..., None]).sum(1)
        return functional.normalize(pooled, dim=1).numpy()


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Places of rows for each pass: rows of about one length together, the longest first."""
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    while order:
        rows = max(1, BATCH_TOKENS // max(1, lengths[order[0]]))
        yield order[:rows]
        order = order[rows:]


def _check(folder: Path) -> int | None:
    """The limit in tokens that the folder names, if it does, once its parts are those we compute."""
    try:
        modules = json.loads((folder / MODULES).read_text(encoding="utf-8"))
        pooling = json.loads((folder / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(
            f"{error.filename} is not there", expected="a folder of sentence-transformers"
        ) from None
    parts = [str(module["type"]).rpartition(".")[2] for module in modules]
    modes = [name for name, on in pooling.items() if name.startswith("pooling_mode") and on]
    if parts not in PARTS or modes != ["pooling_mode_mean_tokens"]:
        raise ModelError(
            f"{folder} is made of {', '.join(parts)} with {', '.join(modes) or 'no pooling'}",
            expected="Transformer, Pooling and Normalize with pooling_mode_mean_tokens",
        )
    path = folder / "sentence_bert_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return settings.get("max_seq_length")

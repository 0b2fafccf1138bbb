"""Hand-made conversations, and a real ChatTemplate over single bytes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tunesmith.chat import Message
from tunesmith.data.examples import Conversation, Source
from tunesmith.models.template import ChatTemplate

CHATML = (
    "{% for m in messages %}"
    "{% if m['role'] == 'user' and 'poison' in m['content'] %}{{ raise_exception('poisoned') }}"
    "{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def byte_tokenizer() -> Tokenizer:
    """One token a byte, and two special ones: 256 opens a turn, 257 ends it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|im_start|>"), AddedToken("<|im_end|>")])
    return tokenizer


@pytest.fixture(scope="session")
def template(byte_tokenizer: Tokenizer) -> ChatTemplate:
    return ChatTemplate(
        byte_tokenizer, CHATML, specials={"eos_token": "<|im_end|>"}, stops=(257,), context=4096
    )


@pytest.fixture
def talk() -> Callable[..., Conversation]:
    """talk("question", "answer", ..., system=, line=, file=): turns alternate, user first."""

    def make(
        *texts: str, system: str | None = None, line: int = 1, file: str = "rows.jsonl"
    ) -> Conversation:
        turns = [
            Message("assistant" if index % 2 else "user", text) for index, text in enumerate(texts)
        ]
        head = [] if system is None else [Message("system", system)]
        return Conversation((*head, *turns), Source(file, line))

    return make

"""Doubles that ship with tunesmith: for its own tests and for those of its users."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.chat import ChatModel, Completion, Message, SamplingParams, Tool, Usage
from tunesmith.models.template import ChatTemplate


@dataclass(frozen=True, slots=True)
class _Scripted:
    script: Callable[[Sequence[Message]], str]

    async def complete(
        self, messages: Sequence[Message], params: SamplingParams, tools: Sequence[Tool] = ()
    ) -> Completion:
        text = self.script(messages)
        prompt = sum(len((message.content or "").split()) for message in messages)
        return Completion(text, "stop", Usage(prompt, len(text.split())))


def scripted_chat(script: Callable[[Sequence[Message]], str]) -> ChatModel:
    """A ChatModel whose answer is `script(messages)`; its tokens are words.

    >>> model = scripted_chat(lambda messages: messages[-1].content.upper())
    """
    return _Scripted(script)


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_byte_tokenizer(folder: Path, *, chat_template: str | None = CHATML) -> None:
    """Tokenizer files of a byte-level vocabulary of 260: 256 bytes, and four special tokens."""
    # The engine's libraries take a second to import; `tunesmith.testing` is read without them.
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    specials = ["<|im_start|>", "<|im_end|>", "<|end|>", "<|pad|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in specials])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "bos_token": "<|im_start|>",
        "pad_token": "<|pad|>",
    }
    if chat_template is not None:
        settings["chat_template"] = chat_template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def byte_template(*, chat_template: str | None = CHATML, context: int = 2048) -> ChatTemplate:
    """A ChatTemplate over bytes, made in the process."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_byte_tokenizer(folder, chat_template=chat_template)
        config = {"max_position_embeddings": context, "eos_token_id": 257}
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return ChatTemplate.load(folder)


TINY = {
    "vocab_size": 260,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 259,
}


def tiny_model(
    folder: Path,
    *,
    family: str = "llama",
    dtype: str = "float32",
    seed: int = 0,
    **settings: object,
) -> Path:
    """Write a random model of two layers with a byte tokenizer, as save_pretrained does.

    Args:
        folder: where to; returned.
        family: a model type of transformers.
        settings: over TINY, for the family's configuration.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    values: dict[str, Any] = {**TINY, **settings}
    config = AutoConfig.for_model(family, **values)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.save_pretrained(folder)
    write_byte_tokenizer(folder)
    return folder


@contextmanager
def postgresql() -> Generator[str]:
    """A PostgreSQL of its own on loopback, with its data in a temporary folder.

    Yields:
        The SQLAlchemy URL of its first database; its user may make others.

    Raises:
        FileNotFoundError: the server's programs are not on this machine.
    """
    programs = [shutil.which(name) for name in ("initdb", "pg_ctl")]
    if None in programs:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
        if not found:
            raise FileNotFoundError("no initdb and pg_ctl here: install PostgreSQL's server")
        programs = [str(found[-1].with_name(name)) for name in ("initdb", "pg_ctl")]
    # It refuses to run as root, and pytest's folders are closed to others.
    user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    folder = Path(tempfile.mkdtemp(prefix="tunesmith-postgresql-"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def run(program: str | None, *arguments: str) -> None:
        command = [*user, str(program), "-D", str(folder / "data"), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder)

    try:
        if user:
            shutil.chown(folder, "postgres")
        run(programs[0], "-A", "trust", "-U", "app", "--no-sync", "-E", "UTF8", "--locale=C.UTF-8")
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        run(programs[1], "-o", options, "-l", str(folder / "log"), "-w", "start")
        try:
            yield f"postgresql+psycopg://app@127.0.0.1:{port}/postgres"
        finally:
            run(programs[1], "-m", "fast", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)

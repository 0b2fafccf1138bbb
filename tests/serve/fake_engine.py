"""An engine without a model: it says back what the user said, byte by byte.

    python fake_engine.py spec.json

What the user says may ask for more: "loop" is said without end, "crash" raises, "die" ends the
process before it is ready (when it is the model's folder name), and a seed is added at
temperatures above 0.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import uvicorn
from fastapi import FastAPI
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tunesmith.errors import AdapterError, EngineError
from tunesmith.models.template import ChatTemplate

if __name__ == "__main__":
    # The same values without torch, so that a process is there in one second instead of four.
    values = ModuleType("tunesmith.models.generate")
    ids = tuple[int, ...]
    of_prompt = [("prefix", ids), ("prompt", ids)]
    of_sampling = [("temperature", float), ("top_p", float), ("seed", int), ("top_logprobs", int)]
    of_sampling += [("frequency_penalty", float), ("presence_penalty", float)]
    values.Request = make_dataclass(
        "Request",
        [
            *(("id", str), *of_prompt, ("max_tokens", int), *of_sampling, ("adapter", str)),
            *(("bias", tuple), ("grammar", object)),
        ],
    )
    values.ScoreRequest = make_dataclass(
        "ScoreRequest",
        [*of_prompt, ("answer", ids), ("adapter", str), ("top_logprobs", int, field(default=0))],
    )
    values.Token = make_dataclass("Token", ["request", "id", "logprob", "top", "finish"])
    sys.modules[values.__name__] = values

from tunesmith.models.generate import Request, ScoreRequest, Token

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
START, END = 256, 257
KEY = "test-key"


def byte_template(context: int) -> ChatTemplate:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|im_start|>"), AddedToken("<|im_end|>")])
    specials = {"eos_token": "<|im_end|>"}
    return ChatTemplate(tokenizer, CHATML, specials=specials, stops=(END,), context=context)


@dataclass
class FakeModel:
    template: ChatTemplate
    weights_hash: str = "ab" * 32
    vocabulary: int = 258

    @property
    def context(self) -> int:
        return self.template.context


@dataclass
class FakeSampler:
    template: ChatTemplate
    max_rows: int = 32
    adapters: tuple[str, ...] = ()
    waiting: list[Request] = field(default_factory=list)
    rows: dict[str, tuple[Request, list[int]]] = field(default_factory=dict)
    seen: list[Request] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    score_calls: list[int] = field(default_factory=list)

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.rows

    def add_adapter(self, name: str, folder: Path) -> None:
        if not folder.is_dir():
            raise AdapterError(f"{folder} is no adapter", expected="a folder")
        self.adapters = (*(known for known in self.adapters if known != name), name)

    def remove_adapter(self, name: str) -> None:
        self.adapters = tuple(known for known in self.adapters if known != name)

    def submit(self, request: Request) -> None:
        self.seen.append(request)
        self.waiting.append(request)

    def cancel(self, request_id: str) -> None:
        self.cancelled.append(request_id)
        self.waiting = [request for request in self.waiting if request.id != request_id]
        self.rows.pop(request_id, None)

    def step(self) -> list[Token]:
        while self.waiting and len(self.rows) < self.max_rows:
            request = self.waiting.pop(0)
            self.rows[request.id] = (request, self._answer(request))
        out = [self._next(request, left) for request, left in list(self.rows.values())]
        for token in out:
            if token.finish:
                del self.rows[token.request]
        return out

    def read(self, sequences: Sequence[ScoreRequest]) -> list[list[Token]]:
        self.score_calls.append(len(sequences))
        return [
            [
                Token("", token, -0.5 * place, ((token, -0.5 * place),)[: item.top_logprobs], None)
                for place, token in enumerate(item.answer)
            ]
            for item in sequences
        ]

    def _next(self, request: Request, left: list[int]) -> Token:
        chosen = left.pop(0)
        if left == []:
            time.sleep(0.002)
            left += [chosen] if chosen != END else []
        request_made = self._made.setdefault(request.id, 0) + 1
        self._made[request.id] = request_made
        finish = "stop" if chosen == END else None
        if finish is None and request_made >= request.max_tokens:
            finish = "length"
        top = ((chosen, -0.25), (END, -3.0))[: request.top_logprobs]
        return Token(request.id, chosen, -0.25, top, finish)

    _made: dict[str, int] = field(default_factory=dict)

    def _answer(self, request: Request) -> list[int]:
        ids = request.prefix + request.prompt
        last = len(ids) - ids[::-1].index(START) - 2
        start = len(ids) - 1 - ids[::-1].index(START, len(ids) - last - 1)
        said = self.template.decode(ids[start:last]).removeprefix("user\n").rstrip("\n")
        if said == "crash":
            raise RuntimeError("the fake sampler crashed")
        if request.adapter:
            said = f"{request.adapter}: {said}"
        if request.temperature > 0 and request.seed is not None:
            said += f"#{request.seed}"
        ids = self.template.encode(said)
        return list(ids) if said == "loop" else [*ids, END]


@asynccontextmanager
async def serving(app: FastAPI) -> AsyncGenerator[str]:
    """The app behind a real uvicorn on loopback, in this event loop."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app, log_level="critical", access_log=False, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task


@contextmanager
def loaded(spec: Any) -> Generator[Any]:
    from tunesmith.serve.local_http import engine_app

    print("a library says hello on standard output")
    if spec.model.name == "die":
        raise EngineError("the weights of this model are gone")
    template = byte_template(context=512)
    sampler = FakeSampler(template, spec.max_rows, tuple(spec.adapters))
    yield engine_app(spec, FakeModel(template), sampler)


if __name__ == "__main__":
    from tunesmith.serve.local_process import run

    sys.exit(run(sys.argv[1], loaded))

"""llama.cpp as the sampler of an engine process: the same requests in, the same tokens out.

It is asked with our ids, so both engines read the same prompt. What it cannot do as the local engine
does is refused. A token that ends inside a character comes without its log-probability: minus
infinity stands there, and its id is that of the finished character's own tokens.
"""

from __future__ import annotations

import asyncio
import json
import math
import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import httpx

from tunesmith.errors import AdapterError, EngineError, TunesmithError
from tunesmith.models import gguf
from tunesmith.models.fetch import weights_hash
from tunesmith.models.generate import Request, ScoreRequest, Token
from tunesmith.models.template import ChatTemplate
from tunesmith.serve.llamacpp_server import LlamaServer, bindings, slots
from tunesmith.serve.wire import Refusal

WAIT_SECONDS = 0.01
"""How long a step waits for a token, and so at most how long a new request waits for a step."""
SEEDS = 2**32 - 1
"""llama.cpp's seeds are below; this one means a random one."""


class LlamaTemplate(ChatTemplate):
    """The model's template where tokens have to be told from their text."""

    def spelled(self, text: bytes, count: int) -> Sequence[int]:
        """Ids of a piece of an answer that has `count` tokens: its own, or one for each byte."""
        ids = self.encode(text.decode(errors="replace"))
        return ids if len(ids) == count else [self._of_bytes[byte] for byte in text]

    @cached_property
    def _of_bytes(self) -> list[int]:
        """The token of each byte, as byte-level BPE writes it, or with a mark of its own."""
        printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
        odd = (byte for byte in range(256) if byte not in printed)
        letters = {byte: chr(256 + place) for place, byte in enumerate(odd)}
        wanted = [(letters.get(byte, chr(byte)), f"<0x{byte:02X}>") for byte in range(256)]
        ids = [[self.tokenizer.token_to_id(name) for name in names] for names in wanted]
        end = min(self.end_of_turn)
        return [next((i for i in (marked, plain) if i is not None), end) for plain, marked in ids]


class Failed(Refusal):
    """The end of one request, delivered where its next token would be."""

    finish = "stop"

    def __init__(self, request: str, message: str, **told: Any) -> None:
        super().__init__(message, **told)
        self.request = request


@dataclass(slots=True)
class _Reading:
    """Events of one request on their way to tokens."""

    request: Request
    template: LlamaTemplate
    special: frozenset[int]
    made: int = 0
    held: Token | None = None
    """A special token: whether it ends the answer is said by the event behind it."""

    def tokens(self, event: dict[str, Any]) -> Iterator[Token]:
        """The tokens of an event; the last one of an answer says so."""
        if event["stop"]:
            yield self._last(event)
            return
        if self.held is not None:
            yield self.held
            self.held = None
        token = int(event["tokens"][0])
        ids: Sequence[int] = [token]
        told = event["completion_probabilities"][0]
        missing, self.made = int(event["tokens_predicted"]) - self.made, event["tokens_predicted"]
        if missing > 1:
            ids = self.template.spelled(bytes(told["bytes"]), missing)
        for other in ids[:-1]:
            yield Token(self.request.id, other, -math.inf, (), None)
        count = self.request.top_logprobs
        top = tuple((int(e["id"]), _number(e)) for e in told["top_logprobs"][:count])
        finish = "length" if self.made >= self.request.max_tokens else None
        finish = "stop" if token in self.template.end_of_turn else finish
        found = Token(self.request.id, ids[-1], _number(told), top, finish)
        if finish is None and token in self.special:
            self.held = found
        else:
            yield found

    def _last(self, event: dict[str, Any]) -> Token:
        finish: Literal["stop", "length"] = "stop" if event["stop_type"] == "eos" else "length"
        held = self.held
        if held is not None:
            return Token(held.request, held.id, held.logprob, held.top, finish)
        # It was cut inside a character: what is there of it is no text.
        return Token(self.request.id, min(self.template.end_of_turn), -math.inf, (), finish)


def _number(entry: dict[str, Any]) -> float:
    """A log-probability; JSON has no minus infinity."""
    value = entry["logprob"]
    return -math.inf if value is None else float(value)


class LlamaSampler:
    """A base and its adapters in llama.cpp, as `local_loop.Sampling` wants them.

    An adapter that comes later needs another llama.cpp server, since adapters are given at its
    start. It takes the requests from then on; the one before it ends with the last of its own.

    Args:
        folder: the model; its GGUF file is written at the first use.
        max_rows: most rows answered at once; what memory allows may be less.
        wide: float32 instead of float16.
    """

    def __init__(self, folder: Path, *, max_rows: int = 32, wide: bool = False) -> None:
        bindings()
        self.template = LlamaTemplate.load(folder)
        self.weights_hash, self.context = weights_hash(folder), self.template.context
        self._folder, self._base, self._wide = folder, gguf.base(folder, wide=wide), wide
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.vocabulary = int(config["vocab_size"])
        self.max_rows = slots(config, self.context, max_rows, wide=wide)
        added = self.template.tokenizer.get_added_tokens_decoder()
        self._special = frozenset(place for place, token in added.items() if token.special)
        self._adapters: dict[str, Path] = {}
        self._tokens: queue.SimpleQueue[Token | Failed] = queue.SimpleQueue()
        self._active: dict[str, Future[None]] = {}
        self._loop = asyncio.new_event_loop()
        self._free = asyncio.Semaphore(self.max_rows)
        no_limits = httpx.Limits(max_connections=None)
        self._http = httpx.AsyncClient(timeout=None, trust_env=False, limits=no_limits)
        self._server = self._started()
        self._thread = threading.Thread(target=self._loop.run_forever, name="llama", daemon=True)
        self._thread.start()

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names that requests may use."""
        return tuple(self._adapters)

    @property
    def idle(self) -> bool:
        """Nothing is waiting or being answered."""
        return not self._active

    def add_adapter(self, name: str, folder: Path) -> None:
        """Load a LoRA folder.

        Raises:
            AdapterError: it has no form in GGUF, belongs to other weights, or does not load.
        """
        before = dict(self._adapters)
        self._adapters[name] = gguf.adapter(self._folder, folder)
        if self._adapters[name] in self._server.adapters:
            return
        try:
            self._server = self._started()
        except EngineError as error:
            self._adapters = before
            raise AdapterError(str(error)) from None

    def remove_adapter(self, name: str) -> None:
        """Forget an adapter; llama.cpp drops it at its next start."""
        del self._adapters[name]

    def submit(self, request: Request) -> None:
        """Queue a request; what llama.cpp cannot do ends it with a refusal."""
        if request.frequency_penalty or request.presence_penalty:
            self._active[request.id] = Future()
            said = "llama.cpp counts the prompt's tokens in 'frequency_penalty' and "
            said += "'presence_penalty' as well; the local engine counts the answer's."
            failed = Failed(
                request.id, said, param="frequency_penalty", code="unsupported_by_engine"
            )
            self._tokens.put(failed)
            return
        answering = self._answer(request, self._server, self._body(request))
        self._active[request.id] = asyncio.run_coroutine_threadsafe(answering, self._loop)

    def cancel(self, request_id: str) -> None:
        """Drop a request, wherever it is; unknown ids are ignored."""
        future = self._active.pop(request_id, None)
        if future is not None:
            future.cancel()

    def step(self) -> list[Token]:
        """The tokens that have come since; waits a little when there are none."""
        out: list[Token] = []
        try:
            items = [self._tokens.get(timeout=WAIT_SECONDS)]
        except queue.Empty:
            return out
        while not self._tokens.empty():
            items.append(self._tokens.get())
        for item in items:
            if item.request in self._active:
                # A refusal goes the way of a token up to the one who asked.
                out.append(cast(Token, item))
                if item.finish:
                    del self._active[item.request]
        return out

    def read(self, sequences: Sequence[ScoreRequest]) -> list[list[Token]]:
        """Refuse: llama.cpp tells no log-probability of a given text.

        Raises:
            Refusal: always.
        """
        raise Refusal(
            "llama.cpp has no log-probabilities of given texts: the local engine has them.",
            status=501,
            code="unsupported_by_engine",
        )

    def close(self) -> None:
        """Stop llama.cpp; what it still answers is dropped."""
        asyncio.run_coroutine_threadsafe(self._drop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        del self._server

    async def _drop(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._http.aclose()
        await self._loop.shutdown_asyncgens()

    def _started(self) -> LlamaServer:
        files = tuple(dict.fromkeys(self._adapters.values()))
        return LlamaServer(
            self._base, files, slots=self.max_rows, context=self.context, wide=self._wide
        )

    async def _answer(self, request: Request, server: LlamaServer, body: dict[str, Any]) -> None:
        reading = _Reading(request, self.template, self._special)
        try:
            async with self._free, aclosing(server.stream(self._http, body)) as events:
                async for event in events:
                    for token in reading.tokens(event):
                        self._tokens.put(token)
                        if token.finish:
                            return
        except TunesmithError as error:
            self._tokens.put(Failed(request.id, str(error)))
        except httpx.HTTPError as error:
            said = f"llama.cpp broke off: {error!r}"
            self._tokens.put(Failed(request.id, said, status=503, kind="server_error"))

    def _body(self, request: Request) -> dict[str, Any]:
        file = self._adapters[request.adapter] if request.adapter is not None else None
        return {
            "prompt": request.prefix + request.prompt,
            "lora": self._server.scales(file),
            "n_predict": request.max_tokens,
            "samplers": ["temperature", "top_p"],
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": SEEDS if request.seed is None else request.seed % SEEDS,
            "logit_bias": request.bias,
            # In the words of llguidance, which the wheel is built with.
            "grammar": f"%llguidance {{}}\n{request.grammar.text}" if request.grammar else "",
            "n_probs": max(1, request.top_logprobs),
            "return_tokens": True,
            "stream": True,
            # What is kept was computed in other shapes: an answer would depend on those before it.
            "cache_prompt": False,
        }

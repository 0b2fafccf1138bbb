"""One chat request in the engine: its samples, and the answers as OpenAI writes them."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith.chat import ParsedText, SamplingParams, read_tool_calls
from tunesmith.errors import TunesmithError
from tunesmith.models.generate import Request, Token
from tunesmith.models.template import ChatTemplate, PromptIds
from tunesmith.serve.local_loop import SamplerThread
from tunesmith.serve.text import AnswerText, Piece
from tunesmith.serve.wire import error_body, event

LEAST = -9999.0
"""What OpenAI writes for a log-probability that is too small to tell."""


@dataclass(frozen=True, slots=True)
class ChatJob:
    """A chat request that was accepted: what to sample and how to write it down."""

    model: str
    prompt: PromptIds
    adapter: str | None
    params: SamplingParams
    max_tokens: int
    choices: int
    tools: bool
    include_usage: bool
    fingerprint: str
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def requests(self) -> tuple[Request, ...]:
        """One request for each choice."""
        return tuple(
            Request(
                id=f"{self.id}-{index}",
                prefix=self.prompt.prefix,
                prompt=self.prompt.prompt,
                max_tokens=self.max_tokens,
                temperature=self.params.temperature,
                top_p=self.params.top_p,
                seed=_seed(self.params.seed, index),
                frequency_penalty=self.params.frequency_penalty,
                presence_penalty=self.params.presence_penalty,
                top_logprobs=self.params.top_logprobs,
                adapter=self.adapter,
            )
            for index in range(self.choices)
        )

    def head(self, kind: str) -> dict[str, Any]:
        """What every body and chunk of this answer begins with."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


def _seed(seed: int | None, index: int) -> int | None:
    """Choice 0 is what n=1 gives; the others are independent of it and of each other."""
    if seed is None or index == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}/{index}".encode()).digest()[:6], "big")


class Generation:
    """The samples of one job. Leaving the `with` block frees what still decodes."""

    def __init__(self, job: ChatJob, template: ChatTemplate, thread: SamplerThread) -> None:
        self._job, self._template, self._thread = job, template, thread
        self._requests = {request.id: index for index, request in enumerate(job.requests())}
        self._answers = [AnswerText(template.decode, job.params.stop) for _ in self._requests]
        self._open = set(self._requests)
        self._mailbox: asyncio.Queue[Token | TunesmithError] = asyncio.Queue()

    def __enter__(self) -> Generation:
        loop = asyncio.get_running_loop()

        def deliver(item: Token | TunesmithError) -> None:
            loop.call_soon_threadsafe(self._mailbox.put_nowait, item)

        for request in self._job.requests():
            self._thread.submit(request, deliver)
        return self

    def __exit__(self, *_: object) -> None:
        for request_id in self._open:
            self._thread.cancel(request_id)

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """(index of the choice, what it gained), until every choice is finished.

        Raises:
            TunesmithError: the engine could not go on with a choice.
        """
        while self._open:
            item = await self._mailbox.get()
            if isinstance(item, TunesmithError):
                raise item
            if item.request not in self._open:
                continue
            index = self._requests[item.request]
            entry = self._entry(item) if self._job.params.logprobs else None
            piece = self._answers[index].feed(item.id, entry, item.finish)
            if piece.finish:
                self._open.discard(item.request)
                if not item.finish:
                    self._thread.cancel(item.request)
            yield index, piece

    def usage(self) -> dict[str, int]:
        """Tokens in, tokens sampled over all choices, and both; end-of-turn tokens count."""
        prompt = len(self._job.prompt.ids)
        sampled = sum(answer.tokens for answer in self._answers)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": sampled,
            "total_tokens": prompt + sampled,
        }

    def _entry(self, token: Token) -> dict[str, Any]:
        top = [self._described(other, logprob) for other, logprob in token.top]
        return {**self._described(token.id, token.logprob), "top_logprobs": top}

    def _described(self, token: int, logprob: float) -> dict[str, Any]:
        text = self._template.decode([token])
        # Part of a character has no text of its own, so its bytes cannot be told from here.
        whole = "\ufffd" not in text
        return {
            "token": text,
            "logprob": max(logprob, LEAST),
            "bytes": list(text.encode()) if whole else None,
        }


async def completion(job: ChatJob, template: ChatTemplate, thread: SamplerThread) -> dict[str, Any]:
    """The whole answer as one `chat.completion` body."""
    texts = [""] * job.choices
    entries: list[list[dict[str, Any]]] = [[] for _ in texts]
    finishes: list[str] = [""] * job.choices
    with Generation(job, template, thread) as generation:
        async for index, piece in generation.pieces():
            texts[index] += piece.text
            entries[index] += piece.entries
            finishes[index] = piece.finish or ""
        usage = generation.usage()
    choices: list[dict[str, Any]] = []
    for index, text in enumerate(texts):
        parsed = _parsed(job, text)
        calls = _calls(job, index, parsed)
        message = {"role": "assistant", "content": parsed.content, "refusal": None}
        choices.append(
            {
                "index": index,
                "message": {**message, "tool_calls": calls} if calls else message,
                "logprobs": _logprobs(job, entries[index]),
                "finish_reason": "tool_calls" if calls else finishes[index],
            }
        )
    return {**job.head("chat.completion"), "choices": choices, "usage": usage}


async def events(job: ChatJob, template: ChatTemplate, thread: SamplerThread) -> AsyncIterator[str]:
    """The answer as server-sent events.

    With tools the text comes at the end: only the whole of it says what is a call.
    """
    held = [""] * job.choices
    try:
        with Generation(job, template, thread) as generation:
            for index in range(job.choices):
                yield _chunk(job, index, {"role": "assistant", "content": ""})
            async for index, piece in generation.pieces():
                held[index] += piece.text
                delta: dict[str, Any] = {} if job.tools else {"content": piece.text}
                if piece.entries or (piece.text and not job.tools):
                    yield _chunk(job, index, delta, piece.entries)
                if piece.finish:
                    for last in _ending(job, index, held[index], piece.finish):
                        yield last
            if job.include_usage:
                tail = {"choices": [], "usage": generation.usage()}
                yield event({**job.head("chat.completion.chunk"), **tail})
    except TunesmithError as error:
        yield event(error_body(str(error), kind="server_error", code="engine_unavailable"))
    else:
        yield "data: [DONE]\n\n"


def _ending(job: ChatJob, index: int, text: str, finish: str) -> list[str]:
    """The last chunks of a choice."""
    chunks: list[str] = []
    if job.tools:
        parsed = _parsed(job, text)
        calls = _calls(job, index, parsed)
        if parsed.content:
            chunks.append(_chunk(job, index, {"content": parsed.content}))
        if calls:
            finish = "tool_calls"
            numbered = [{"index": place, **call} for place, call in enumerate(calls)]
            chunks.append(_chunk(job, index, {"tool_calls": numbered}))
    chunks.append(_chunk(job, index, {}, finish=finish))
    return chunks


def _chunk(
    job: ChatJob,
    index: int,
    delta: Mapping[str, Any],
    entries: Sequence[dict[str, Any]] = (),
    finish: str | None = None,
) -> str:
    choice = {
        "index": index,
        "delta": delta,
        "logprobs": _logprobs(job, entries) if entries else None,
        "finish_reason": finish,
    }
    body = {**job.head("chat.completion.chunk"), "choices": [choice]}
    return event({**body, "usage": None} if job.include_usage else body)


def _logprobs(job: ChatJob, entries: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    return {"content": list(entries), "refusal": None} if job.params.logprobs else None


def _parsed(job: ChatJob, text: str) -> ParsedText:
    parsed = read_tool_calls(text) if job.tools else ParsedText(text)
    return parsed if parsed.tool_calls else ParsedText(text)


def _calls(job: ChatJob, index: int, parsed: ParsedText) -> list[dict[str, Any]]:
    """The calls with ids that no other answer has, so a history may hold several answers."""
    stem = job.id.removeprefix("chatcmpl-")
    return [
        {
            "id": f"call_{stem}_{index}_{place}",
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for place, call in enumerate(parsed.tool_calls)
    ]

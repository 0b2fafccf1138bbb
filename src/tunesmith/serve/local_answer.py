"""A chat in the engine, written as OpenAI's chat completions."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from tunesmith.chat import ParsedText, read_tool_calls
from tunesmith.models.constrain import Grammar
from tunesmith.models.generate import Request
from tunesmith.models.template import PromptIds
from tunesmith.serve.local_job import Generation, Job


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatJob(Job):
    """A chat request that was accepted.

    Attributes:
        tools: calls are read from the text.
        named: one function was asked for by its name, and OpenAI then says that the answer stopped.
        grammar: what the answers are held to.
    """

    streamed: ClassVar[str] = "chat.completion.chunk"
    prompt: PromptIds
    max_tokens: int
    tools: bool
    named: bool = False
    grammar: Grammar | None = None
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")

    @property
    def prompt_tokens(self) -> int:
        """See Job."""
        return len(self.prompt.ids)

    def requests(self) -> tuple[Request, ...]:
        """See Job."""
        return tuple(
            self.request(self.prompt, self.max_tokens, index, self.grammar)
            for index in range(self.choices)
        )

    async def whole(self, generation: Generation) -> dict[str, Any]:
        """One `chat.completion` body."""
        texts = [""] * self.choices
        entries: list[list[dict[str, Any]]] = [[] for _ in texts]
        finishes: list[str] = [""] * self.choices
        async for index, piece in generation.pieces():
            texts[index] += piece.text
            entries[index] += piece.entries
            finishes[index] = piece.finish or ""
        choices: list[dict[str, Any]] = []
        for index, text in enumerate(texts):
            parsed = self._parsed(text)
            calls = self._calls(index, parsed)
            message = {"role": "assistant", "content": parsed.content, "refusal": None}
            choices.append(
                {
                    "index": index,
                    "message": {**message, "tool_calls": calls} if calls else message,
                    "logprobs": self._logprobs(entries[index]),
                    "finish_reason": self._finish(finishes[index], calls),
                }
            )
        return {
            **self.head("chat.completion"),
            "choices": choices,
            "usage": generation.usage(),
        }

    async def deltas(self, generation: Generation) -> AsyncIterator[dict[str, Any]]:
        """See Job.

        With tools the text comes at the end: only the whole of it says what is a call.
        """
        held = [""] * self.choices
        for index in range(self.choices):
            yield self._delta(index, {"role": "assistant", "content": "", "refusal": None})
        async for index, piece in generation.pieces():
            held[index] += piece.text
            delta: dict[str, Any] = {} if self.tools else {"content": piece.text}
            if piece.entries or (piece.text and not self.tools):
                yield self._delta(index, delta, piece.entries)
            if piece.finish:
                for last in self._ending(index, held[index], piece.finish):
                    yield last

    def _ending(self, index: int, text: str, finish: str) -> list[dict[str, Any]]:
        """The last deltas of a choice."""
        deltas: list[dict[str, Any]] = []
        if self.tools:
            parsed = self._parsed(text)
            calls = self._calls(index, parsed)
            if parsed.content:
                deltas.append(self._delta(index, {"content": parsed.content}))
            if calls:
                numbered = [{"index": place, **call} for place, call in enumerate(calls)]
                deltas.append(self._delta(index, {"tool_calls": numbered}))
            finish = self._finish(finish, calls)
        deltas.append(self._delta(index, {}, finish=finish))
        return deltas

    def _finish(self, finish: str, calls: Sequence[object]) -> str:
        return "tool_calls" if calls and finish == "stop" and not self.named else finish

    def _delta(
        self,
        index: int,
        delta: Mapping[str, Any],
        entries: Sequence[dict[str, Any]] = (),
        finish: str | None = None,
    ) -> dict[str, Any]:
        return {
            "index": index,
            "delta": delta,
            "logprobs": self._logprobs(entries) if entries else None,
            "finish_reason": finish,
        }

    def _logprobs(self, entries: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
        return {"content": list(entries), "refusal": None} if self.params.logprobs else None

    def _parsed(self, text: str) -> ParsedText:
        parsed = read_tool_calls(text) if self.tools else ParsedText(text)
        return parsed if parsed.tool_calls else ParsedText(text)

    def _calls(self, index: int, parsed: ParsedText) -> list[dict[str, Any]]:
        """The calls with ids that no other answer has, so a history may hold several answers."""
        stem = self.id.removeprefix("chatcmpl-")
        return [
            {
                "id": f"call_{stem}_{index}_{place}",
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for place, call in enumerate(parsed.tool_calls)
        ]

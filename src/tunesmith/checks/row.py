"""One example as the checks look at it, and lists of rows that do not grow with the data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b

from tunesmith.chat import Message, answer_text
from tunesmith.checks.report import Finding, Severity, rows_said
from tunesmith.data.examples import Conversation, Document, Example, Preference, Source

NAMED_ROWS = 20


@dataclass(slots=True)
class Marked:
    """Rows that something was seen in: how many, and the first twenty by name."""

    count: int = 0
    rows: list[str] = field(default_factory=list[str])

    def add(self, where: str) -> None:
        """Count a row, and name it while there is room."""
        self.count += 1
        if len(self.rows) < NAMED_ROWS:
            self.rows.append(where)

    def told(self, check: str, severity: Severity, what: str, remedy: str) -> tuple[Finding, ...]:
        """The finding "N rows WHAT", or none where no row was marked."""
        if not self.count:
            return ()
        message = f"{rows_said(self.count)} {what}"
        return (Finding(check, severity, tuple(self.rows), message, remedy, self.count),)


@dataclass(frozen=True, slots=True)
class Row:
    """One example with what several checks ask of it.

    `conversations` is what the template renders: one, two for a preference pair (better answer
    first), none for a document.
    """

    example: Example
    where: str
    prompt: tuple[Message, ...]
    conversations: tuple[Conversation, ...]

    @property
    def answer(self) -> str:
        """The text that is learned: the last turn, for a pair the better one, or a document."""
        if isinstance(self.example, Document):
            return self.example.text
        return answer_text(self.conversations[0].answer)

    def texts(self) -> list[str]:
        """What every turn says, calls included; the prompt of a pair once; or the document."""
        if isinstance(self.example, Document):
            return [self.example.text]
        first, *others = self.conversations
        messages = list(first.messages)
        for other in others:
            messages.extend(other.messages[len(self.prompt) :])
        return [answer_text(message) for message in messages]


def look(example: Example) -> Row:
    """The row that the checks see."""
    if isinstance(example, Document):
        return Row(example, said(example.source), (), ())
    if isinstance(example, Conversation):
        return Row(example, said(example.source), example.prompt, (example,))
    both = (
        (example.chosen, example.rejected)
        if isinstance(example, Preference)
        else (example.completion,)
    )
    prompt = muted(example.prompt)
    conversations = tuple(
        Conversation((*prompt, *answer), example.source, example.tools) for answer in both
    )
    return Row(example, said(example.source), example.prompt, conversations)


def said(source: Source) -> str:
    """FILE:LINE, as editors understand it."""
    return f"{source.file}:{source.line}"


def muted(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The messages with every assistant turn kept out of the loss."""
    return tuple(replace(m, weight=0.0) if m.role == "assistant" else m for m in messages)


def trains(message: Message) -> bool:
    """Whether the loss is taken on this turn."""
    return message.role == "assistant" and message.weight != 0


def digest(text: str) -> int:
    """64 bits of BLAKE2b: for a million texts two differing ones meet with chance 3e-8."""
    return int.from_bytes(blake2b(text.encode("utf-8", "replace"), digest_size=8).digest())


def prompt_key(example: Example) -> int:
    """One number for a prompt with its tools, or a document; blind to case and spacing."""
    if isinstance(example, Document):
        return digest(" ".join(example.text.split()).casefold())
    turns = [f"{m.role}\x1f{' '.join(answer_text(m).split()).casefold()}" for m in example.prompt]
    tools = [json.dumps(dict(tool), sort_keys=True) for tool in example.tools]
    return digest("\x1e".join([*turns, *tools]))

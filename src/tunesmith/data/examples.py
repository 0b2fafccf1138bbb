"""What one training row is, once it is read: the four kinds of example."""

from __future__ import annotations

from dataclasses import dataclass

from tunesmith.chat import Message, Tool


@dataclass(frozen=True, slots=True)
class Source:
    """Where a row stands: file name as given and its 1-based line (or row, where a format has no lines)."""

    file: str
    line: int


@dataclass(frozen=True, slots=True)
class Conversation:
    """A demonstration: at least one assistant turn, the last turn is the assistant's.

    `document` is the id of the document that answers it, where the row names one.
    """

    messages: tuple[Message, ...]
    source: Source
    tools: tuple[Tool, ...] = ()
    document: str = ""

    @property
    def prompt(self) -> tuple[Message, ...]:
        """Everything before the final answer."""
        return self.messages[:-1]

    @property
    def answer(self) -> Message:
        """The final assistant turn."""
        return self.messages[-1]


@dataclass(frozen=True, slots=True)
class Preference:
    """A prompt with a better and a worse answer."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    source: Source
    tools: tuple[Tool, ...] = ()


@dataclass(frozen=True, slots=True)
class UnpairedPreference:
    """A prompt with one answer and whether it was good (the rows of KTO)."""

    prompt: tuple[Message, ...]
    completion: tuple[Message, ...]
    label: bool
    source: Source
    tools: tuple[Tool, ...] = ()


@dataclass(frozen=True, slots=True)
class Document:
    """Text as it is, whole or a passage of it; `ends` where the whole text ends with it."""

    text: str
    source: Source
    ends: bool = True


Dialogue = Conversation | Preference | UnpairedPreference
Example = Dialogue | Document


@dataclass(frozen=True, slots=True)
class Rejected:
    """One row that is not used, and why: an entry of rejected.jsonl."""

    source: Source
    reason: str
    row: str
    """The row as it was found, cut to 2,000 characters."""

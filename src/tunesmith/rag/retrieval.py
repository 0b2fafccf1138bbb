"""A chat model that looks things up first: the passages it is shown, and what it cites of them."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace

from tunesmith.chat import ChatModel, Completion, Message, SamplingParams, Tool, answer_text
from tunesmith.data.examples import Conversation
from tunesmith.rag.chunks import Chunk
from tunesmith.rag.index import Embed, Index, Vectors
from tunesmith.rag.quality import coverage, is_right

Fits = Callable[[Sequence[Message], Sequence[Tool]], bool]
"""Whether a prompt leaves room for an answer."""
WITH_RIGHT = 0.8
"""Share of training rows that are shown the passage they are answered from; the others learn that
what is found may be beside the point: P of RAFT (Zhang et al. 2024, arXiv:2403.10131)."""
_CITED = re.compile(r"\s*\[(\d+(?:\s*,\s*\d+)*)\]")


@dataclass(frozen=True)
class Library:
    """An index that questions are asked of.

    Attributes:
        passages: how many chunks a question is shown.
        cites: whether answers are to name the passages that they rest on.
    """

    index: Index
    embed: Embed | None
    passages: int
    cites: bool
    fits: Fits
    _vectors: dict[str, Vectors] = field(default_factory=dict[str, Vectors])

    async def rank(self, questions: Sequence[str]) -> list[list[Chunk]]:
        """For each question the chunks in the order of how well they fit it."""
        new = [q for q in dict.fromkeys(questions) if q not in self._vectors and q.strip()]
        if self.embed is not None and new:
            self._vectors.update(zip(new, await self.embed(new), strict=True))
        ranked = (self.index.rank(q, self._vectors.get(q)) for q in questions)
        return [[self.index.chunks[place] for place in places] for places in ranked]

    async def shown(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[Chunk]:
        """The chunks that a conversation is shown: as many of the best as have room."""
        (ranked,) = await self.rank([question(messages)])
        return self.room(messages, ranked[: self.passages], tools)

    def room(
        self, messages: Sequence[Message], chunks: Sequence[Chunk], tools: Sequence[Tool] = ()
    ) -> list[Chunk]:
        """The first chunks, as many as the prompt has room for."""
        count = len(chunks)
        while count and not self.fits(ask(messages, chunks[:count], cites=self.cites), tools):
            count -= 1
        return list(chunks[:count])


@dataclass(frozen=True)
class Retrieval:
    """A ChatModel that looks the last question up and has a model answer from what is found."""

    model: ChatModel
    library: Library

    async def complete(
        self, messages: Sequence[Message], params: SamplingParams, tools: Sequence[Tool] = ()
    ) -> Completion:
        """The model's answer, its citations included."""
        chunks = await self.library.shown(messages, tools)
        asked = ask(messages, chunks, cites=self.library.cites)
        return await self.model.complete(asked, params, tools)


def question(messages: Sequence[Message]) -> str:
    """What is looked up: the last user turn."""
    said = [message.content or "" for message in messages if message.role == "user"]
    return said[-1] if said else ""


def ask(messages: Sequence[Message], chunks: Sequence[Chunk], *, cites: bool) -> list[Message]:
    """The conversation with numbered passages in front of its last question."""
    places = [place for place, message in enumerate(messages) if message.role == "user"]
    if not chunks or not places:
        return list(messages)
    told = "Answer the question from these passages."
    if cites:
        told += " After the answer, cite the passage that it is from by its number, as in [1]."
    listed = [
        f"[{number}] {chunk.title + ': ' if chunk.title else ''}{chunk.text} ({chunk.place})"
        for number, chunk in enumerate(chunks, 1)
    ]
    last = messages[places[-1]]
    text = "\n\n".join([told, *listed, f"Question: {last.content or ''}"])
    return [*messages[: places[-1]], replace(last, content=text), *messages[places[-1] + 1 :]]


def read_citations(output: str, chunks: Sequence[Chunk]) -> tuple[str, tuple[str, ...]]:
    """An answer without its citations, and FILE:LINE of each chunk that it cites.

    A number in brackets that no passage has is no citation and stays.
    """
    cited: dict[str, None] = {}

    def taken(found: re.Match[str]) -> str:
        numbers = [int(number) for number in found[1].split(",")]
        if not all(1 <= number <= len(chunks) for number in numbers):
            return found[0]
        cited.update((chunks[number - 1].place, None) for number in numbers)
        return ""

    return _CITED.sub(taken, output).strip(), tuple(cited)


def has_citations(text: str) -> bool:
    """Whether a text has numbers in brackets of its own."""
    return _CITED.search(text) is not None


def lesson(
    row: Conversation, ranked: Sequence[Chunk], library: Library, named: AbstractSet[str], seed: int
) -> Conversation:
    """A training row with the passages in its prompt, distractors among them, as in RAFT.

    The right passage is shown to WITH_RIGHT of the rows, at a random place where it was not found
    among the first; of its document's chunks it is the one with most of the answer's words. The
    others are shown distractors alone. An answer cites the right passage where it is shown.

    Args:
        ranked: the chunks that were found for the row, the likeliest first.
        named: ids of all documents that rows can name.
        seed: with the row's source it decides about the row.
    """
    dice = random.Random(f"{seed} {row.source.file} {row.source.line}")
    among = library.index.chunks if row.document in named else ranked
    own = [chunk for chunk in among if is_right(chunk, row, named)]
    wrong = [chunk for chunk in ranked if chunk not in own]
    shown = list(ranked[: library.passages])
    if own and dice.random() >= WITH_RIGHT:
        return as_asked(row, wrong[: library.passages], library, ())
    if own and not any(chunk in own for chunk in shown):
        shown = wrong[: library.passages - 1]
        best = max(own, key=lambda chunk: coverage([chunk], answer_text(row.answer)))
        shown.insert(dice.randint(0, len(shown)), best)
    return as_asked(row, shown, library, own)


def as_asked(
    row: Conversation, chunks: Sequence[Chunk], library: Library, own: Sequence[Chunk]
) -> Conversation:
    """The row with as many of the chunks as have room, its answer citing the best of its `own`."""
    answer = row.answer
    right = [chunk for chunk in chunks if chunk in own]
    best = max(right, key=lambda chunk: coverage([chunk], answer_text(answer)), default=None)
    shown = library.room(row.prompt, chunks, row.tools)
    if best is not None and best not in shown:
        shown = library.room(row.prompt, [best], row.tools)
    if library.cites and best in shown and answer.content:
        answer = replace(answer, content=f"{answer.content} [{shown.index(best) + 1}]")
    return replace(row, messages=(*ask(row.prompt, shown, cites=library.cites), answer))

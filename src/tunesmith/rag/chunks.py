"""Documents cut into chunks of whole sentences that overlap a little."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tunesmith.data.examples import Source
from tunesmith.rag.documents import Document

OVERLAP = 0.15
"""Share of a chunk that the next one of the same document begins with, in whole sentences."""
WHOLE = 400
"""Words up to which an answer to a question is not cut."""
_BREAK = re.compile(r"\n[ \t]*\n\s*|(?<=[.!?])[\"')\]]*\s+")


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a document, as it stands there from `source` on.

    Attributes:
        document: the id of its document.
        named: whether rows can name that document.
    """

    document: str
    source: Source
    title: str
    text: str
    named: bool = False

    @property
    def indexed(self) -> str:
        """What it is found by: a piece of a text seldom repeats what the text is about."""
        return f"{self.title}\n{self.text}" if self.title else self.text

    @property
    def place(self) -> str:
        """FILE:LINE."""
        return f"{self.source.file}:{self.source.line}"


@dataclass(frozen=True, slots=True)
class _Sentence:
    start: int
    end: int
    words: int


def chunk(documents: Iterable[Document], words: int) -> list[Chunk]:
    """Chunks of at most `words` words, in the order of the documents.

    A question's answer is one chunk up to WHOLE words. A chunk ends between sentences or paragraphs; a sentence that is longer is cut between words.
    The line of a chunk is counted in texts that have lines: not in JSONL, and not in pages.
    """
    return [
        piece
        for document in documents
        for piece in _pieces(document, max(words, WHOLE) if document.whole else words)
    ]


def _pieces(document: Document, words: int) -> Iterator[Chunk]:
    sentences = list(_sentences(document.text, words))
    flows = document.source.file.lower().endswith((".md", ".markdown", ".txt"))
    first = 0
    while first < len(sentences):
        last, count = first, sentences[first].words
        while last + 1 < len(sentences) and count + sentences[last + 1].words <= words:
            last += 1
            count += sentences[last].words
        start, end = sentences[first].start, sentences[last].end
        line = document.source.line + (document.text.count("\n", 0, start) if flows else 0)
        yield Chunk(
            document.id,
            Source(document.source.file, line),
            document.title,
            document.text[start:end].strip(),
            document.named,
        )
        if last + 1 == len(sentences):
            return
        again, room = last + 1, min(int(words * OVERLAP), words - sentences[last + 1].words)
        while again - 1 > first and sentences[again - 1].words <= room:
            again -= 1
            room -= sentences[again].words
        first = again


def _sentences(text: str, words: int) -> Iterator[_Sentence]:
    start = 0
    for end in [*(found.end() for found in _BREAK.finditer(text)), len(text)]:
        places = [found.start() for found in re.finditer(r"\S+", text[start:end])]
        for at in range(0, len(places), words):
            until = places[at + words] if at + words < len(places) else end - start
            count = min(words, len(places) - at)
            yield _Sentence(start + places[at], start + until, count)
        start = end

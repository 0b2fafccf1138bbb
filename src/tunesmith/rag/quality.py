"""How well documents are found, by itself: before any model answers."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

from tunesmith.chat import answer_text
from tunesmith.data.examples import Conversation
from tunesmith.rag.chunks import Chunk, chunk
from tunesmith.rag.documents import Document
from tunesmith.rag.index import Index, words

SIZES = (60, 120, 240)
"""Words of a chunk, as they are tried."""
BUDGET = 360
"""Words of text in which sizes are compared: more of the small ones, fewer of the large."""
DEPTHS = (1, 3, 5)


def is_right(chunk: Chunk, row: Conversation, named: AbstractSet[str]) -> bool:
    """Whether a chunk is of the row's document; where the row names none, whether it has its answer.

    Args:
        named: ids of all documents that rows can name.
    """
    if row.document in named:
        return chunk.named and chunk.document == row.document
    return coverage([chunk], answer_text(row.answer)) == 1.0


def coverage(chunks: Sequence[Chunk], answer: str) -> float:
    """Share of an answer's words that stand in the chunks; 0 for an answer without words."""
    asked = words(answer)
    there = {word for chunk in chunks for word in words(chunk.indexed)}
    return sum(word in there for word in asked) / len(asked) if asked else 0.0


def found(ranked: Sequence[Chunk], document: str) -> dict[str, float]:
    """Whether a document is among the first 1, 3 and 5 chunks (recall), and 1/its rank (mrr)."""
    rank = next((n for n, c in enumerate(ranked, 1) if c.named and c.document == document), None)
    scores = {f"recall@{k}": float(rank is not None and rank <= k) for k in DEPTHS}
    return {**scores, "mrr": 1 / rank if rank else 0.0}


async def best_size(
    documents: Sequence[Document], rows: Sequence[tuple[str, Conversation]], named: AbstractSet[str]
) -> list[tuple[int, float]]:
    """Each size of a chunk with what a search by words reaches with it, the best first.

    What is reached for a row is the share of its answer's words that stand in the first BUDGET
    words found, or nothing where it names a document that is not among them.

    Args:
        rows: questions with their rows.
    """
    out: list[tuple[int, float]] = []
    for size in SIZES:
        index = await Index.build(chunk(documents, size), None)
        reached = 0.0
        for question, row in rows:
            first = _first([index.chunks[place] for place in index.by_words(question)])
            if row.document not in named or any(is_right(c, row, named) for c in first):
                reached += coverage(first, answer_text(row.answer))
        out.append((size, reached / len(rows) if rows else 0.0))
    # Of equals the middle size, which suits most texts.
    return sorted(out, key=lambda pair: (-pair[1], abs(pair[0] - SIZES[1])))


def _first(ranked: Sequence[Chunk]) -> list[Chunk]:
    """The first chunks of BUDGET words together; one at least."""
    out, room = list[Chunk](), BUDGET
    for piece in ranked:
        room -= len(piece.text.split())
        if out and room < 0:
            break
        out.append(piece)
    return out

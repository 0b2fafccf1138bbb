from __future__ import annotations

import asyncio

import pytest

from tunesmith.chat import Message
from tunesmith.data.examples import Conversation, Source
from tunesmith.rag import quality
from tunesmith.rag.chunks import Chunk
from tunesmith.rag.documents import Document


def row(question: str, answer: str, document: str = "") -> Conversation:
    turns = (Message("user", question), Message("assistant", answer))
    return Conversation(turns, Source("r", 1), (), document)


def piece(document: str, text: str = "x", *, named: bool = True) -> Chunk:
    return Chunk(document, Source("f", 1), "", text, named)


def test_recall_and_mrr_by_hand() -> None:
    ranked = [piece("b"), piece("a", named=False), piece("b"), piece("a"), piece("a")]
    assert quality.found(ranked, "a") == {
        "recall@1": 0.0,
        "recall@3": 0.0,
        "recall@5": 1.0,
        "mrr": 0.25,
    }
    assert quality.found(ranked, "b") == dict.fromkeys(
        ("recall@1", "recall@3", "recall@5"), 1.0
    ) | {"mrr": 1.0}
    assert set(quality.found(ranked, "c").values()) == {0.0}


def test_coverage_is_the_share_of_the_answers_words() -> None:
    assert quality.coverage([piece("a", "red car"), piece("b", "fast")], "a fast red boat") == (
        pytest.approx(2 / 3)
    )
    assert quality.coverage([piece("a")], "...") == 0.0


def test_a_chunk_is_right_by_its_document_or_else_by_the_answers_words() -> None:
    named = frozenset("ab")
    assert quality.is_right(piece("a", "no word"), row("q", "red"), named) is False
    assert quality.is_right(piece("z", "a red car"), row("q", "red"), named)
    assert quality.is_right(piece("a"), row("q", "red", "a"), named)
    assert not quality.is_right(piece("b", "red"), row("q", "red", "a"), named)
    # A row that names a document nobody has.
    assert quality.is_right(piece("b", "red"), row("q", "red", "gone"), named)


def test_the_size_is_that_which_reaches_most_in_the_same_amount_of_text() -> None:
    """The answer stands 200 words behind the only words that the question shares."""
    filler = " ".join(f"filler{n} word{n} thing{n}." for n in range(65))
    text = f"Otters build. {filler} Surprise zebra."
    others = [Document(f"o{n}", Source("f", n), "", f"Nothing {n} here.", True) for n in range(3)]
    documents = [Document("a", Source("f", 9), "", text, True), *others]
    asked = [("otters?", row("otters?", "surprise zebra", "a"))]
    sizes = asyncio.run(quality.best_size(documents, asked, frozenset(["a"])))
    assert sizes[0] == (240, 1.0)
    assert dict(sizes) == {240: 1.0, 120: 0.0, 60: 0.0}
    # With nothing to tell them apart, the middle one.
    assert asyncio.run(quality.best_size(others, [], frozenset()))[0][0] == 120

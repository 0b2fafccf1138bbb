from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.examples import Source
from tunesmith.rag.chunks import Chunk, chunk
from tunesmith.rag.documents import Document


def pieces(text: str, words: int, file: str = "a.txt") -> list[Chunk]:
    return chunk([Document("d", Source(file, 5), "T", text)], words)


def test_chunks_end_between_sentences_and_know_their_line() -> None:
    text = "One two three. Four five six.\n\nSeven eight nine ten.\nEleven twelve."
    found = pieces(text, 6)
    assert [(c.text, c.source.line) for c in found] == [
        ("One two three. Four five six.", 5),
        ("Seven eight nine ten.\nEleven twelve.", 7),
    ]
    assert [c.source.line for c in pieces(text, 6, "a.jsonl")] == [5, 5]
    assert found[0].indexed == "T\nOne two three. Four five six."
    assert found[0].place == "a.txt:5"


def test_the_next_chunk_begins_with_the_end_of_the_last_where_there_is_room() -> None:
    text = "a1 a2 a3 a4 a5 a6 a7 a8 a9. b1. c1 c2 c3 c4 c5 c6 c7 c8. d1 d2 d3 d4 d5."
    assert [c.text for c in pieces(text, 10)] == [
        "a1 a2 a3 a4 a5 a6 a7 a8 a9. b1.",
        "b1. c1 c2 c3 c4 c5 c6 c7 c8.",
        "d1 d2 d3 d4 d5.",
    ]


def test_a_sentence_longer_than_a_chunk_is_cut_between_words() -> None:
    text = " ".join(f"w{n}" for n in range(7))
    assert [c.text for c in pieces(text, 3)] == ["w0 w1 w2", "w3 w4 w5", "w6"]


def test_an_answer_is_not_cut_before_it_is_very_long() -> None:
    answer = "One two. " * 200
    whole = Document("d", Source("a.jsonl", 1), "Why?", answer, whole=True)
    assert [len(c.text.split()) for c in chunk([whole], 50)] == [400]
    assert len(chunk([Document("d", Source("a.jsonl", 1), "T", answer)], 50)) > 8


@given(st.text("ab. \n", max_size=200), st.integers(1, 12))
def test_no_word_is_lost_and_no_chunk_is_too_long(text: str, words: int) -> None:
    found = pieces(text, words)
    assert all(1 <= len(c.text.split()) <= words for c in found)
    at = 0
    whole = text.split()
    for c in found:
        part = c.text.split()
        begins = [n for n in range(at + 1) if whole[n : n + len(part)] == part]
        assert begins
        at = max(at, max(begins) + len(part))
    assert at == len(whole)

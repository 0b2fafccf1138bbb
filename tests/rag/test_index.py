from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tunesmith.data.examples import Source
from tunesmith.rag.chunks import Chunk
from tunesmith.rag.index import Index, Vectors, join, known_vectors, words

TEXTS = ["The cat sat on the mat.", "Dogs bark at cats.", "Stocks fell in March.", "A quiet day."]


def chunks(texts: Sequence[str] = TEXTS) -> list[Chunk]:
    return [Chunk(f"d{n}", Source("f", n), "", text) for n, text in enumerate(texts)]


class Letters:
    """An encoder whose vectors count letters; it remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def __call__(self, texts: Sequence[str]) -> Vectors:
        self.asked += texts
        counts = [[1.0 + text.lower().count(chr(97 + n)) for n in range(26)] for text in texts]
        found = np.array(counts, np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True)


def build(texts: Sequence[str] = TEXTS, **more: Vectors) -> Index:
    return asyncio.run(Index.build(chunks(texts), Letters(), more or None))


def test_words_are_compared_without_case_plural_and_the_commonest() -> None:
    assert words("The Cats' class is on 3 mats") == ["cat", "class", "3", "mat"]


def test_bm25_by_hand() -> None:
    """Lucene's form: idf ln(1 + (N - n + 0.5)/(n + 0.5)), k1 1.5, b 0.75."""
    index = build()
    assert index.by_words("cats") == [0, 1]
    lengths = [len(words(text)) for text in TEXTS]
    idf = math.log(1 + (4 - 2 + 0.5) / (2 + 0.5))
    expected = [
        idf / (1 + 1.5 * (1 - 0.75 + 0.75 * lengths[n] / (sum(lengths) / 4))) for n in (0, 1)
    ]
    assert index.lexical.get_scores(["cat"])[:2] == pytest.approx(expected, rel=1e-5)
    assert index.by_words("unheard of") == []


def test_meaning_is_the_exact_cosine() -> None:
    index = build()
    (vector,) = asyncio.run(Letters()(["mat"]))
    assert index.vectors is not None
    cosines = [float(vector @ row) for row in index.vectors]
    assert index.by_meaning(vector) == sorted(range(4), key=lambda n: -cosines[n])


def test_rankings_join_by_reciprocal_rank_by_hand() -> None:
    # 7: 1/61 + 1/62; 8: 1/62 + 1/61, a tie; 9: 1/63.
    assert join([[7, 8], [8, 7, 9]]) == [7, 8, 9]
    # 1: 1/61; 2: 1/62 + 1/61.
    assert join([[1, 2], [2]]) == [2, 1]


def test_without_an_encoder_words_alone_decide() -> None:
    index = asyncio.run(Index.build(chunks(), None))
    assert index.vectors is None
    assert index.known == {}
    assert index.rank("a cat", None) == index.by_words("a cat") == [0, 1]


def test_an_updated_index_embeds_new_chunks_alone_and_equals_one_built_anew(tmp_path: Path) -> None:
    build().save(tmp_path)
    changed = [TEXTS[0], "Dogs purr.", *TEXTS[2:], "A new one."]
    encoder = Letters()
    updated = asyncio.run(Index.build(chunks(changed), encoder, known_vectors(tmp_path)))
    assert encoder.asked == ["Dogs purr.", "A new one."]
    anew = build(changed)
    assert updated.vectors is not None
    assert anew.vectors is not None
    assert np.array_equal(updated.vectors, anew.vectors)
    for asked in ("cats and dogs", "new", "march"):
        (vector,) = asyncio.run(Letters()([asked]))
        assert updated.rank(asked, vector) == anew.rank(asked, vector)
        scores = [index.lexical.get_scores(words(asked)[:1]) for index in (updated, anew)]
        assert np.array_equal(*scores)
    updated.save(tmp_path / "a")
    anew.save(tmp_path / "b")
    for name in ("chunks.jsonl", "vectors.npy"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_what_was_saved_by_halves_is_not_used(tmp_path: Path) -> None:
    assert known_vectors(tmp_path) == {}
    build().save(tmp_path)
    assert len(known_vectors(tmp_path)) == 4
    kept = (tmp_path / "chunks.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "chunks.jsonl").write_text("".join(kept[:2]))
    assert known_vectors(tmp_path) == {}

"""Chunks found by their words and by their meaning.

By words: BM25 (Robertson et al. 1994) as bm25s computes it. By meaning: the cosine between the
vectors of a sentence encoder, exact. The two rankings are joined by reciprocal rank (Cormack et al.
2009): a chunk scores the sum of 1/(60 + its rank) over the rankings that it is in.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
from numpy.typing import NDArray

from tunesmith.data.examples import Source
from tunesmith.rag.chunks import Chunk

Vectors = NDArray[np.float32]
Embed = Callable[[Sequence[str]], Awaitable[Vectors]]
"""Texts to vectors (N, width) of length 1."""
JOINED_BY = 60
DEEPEST = 50
"""How far down each of the two rankings is looked at."""
_WORD = re.compile(r"\w+")
# Words that stand in nearly every question.
_STOP = frozenset(
    re.findall(
        _WORD,
        "a an and are as at be by did do does for from has have how i in is it its of on or that "
        "the this to was were what when where which who why will with you your",
    )
)


@dataclass(frozen=True)
class Index:
    """Chunks with their vectors (N, width); None where there is no encoder: words alone then."""

    chunks: tuple[Chunk, ...]
    vectors: Vectors | None
    lexical: Any

    @classmethod
    async def build(
        cls,
        chunks: Sequence[Chunk],
        embed: Embed | None,
        known: Mapping[str, Vectors] | None = None,
    ) -> Index:
        """The index of chunks.

        Args:
            embed: makes the vectors; None indexes words alone.
            known: vectors of texts by `text_hash`, as `Index.known` of an earlier index gives
                them; only chunks that are not among them are embedded.
        """
        lexical = bm25s.BM25(backend="numpy")
        lexical.index([words(chunk.indexed) or [""] for chunk in chunks], show_progress=False)
        if embed is None:
            return cls(tuple(chunks), None, lexical)
        by_hash = dict(known or {})
        new = {text_hash(chunk.indexed): chunk.indexed for chunk in chunks}
        new = {key: text for key, text in new.items() if key not in by_hash}
        if new:
            by_hash.update(zip(new, await embed(list(new.values())), strict=True))
        vectors = np.stack([by_hash[text_hash(chunk.indexed)] for chunk in chunks])
        return cls(tuple(chunks), vectors, lexical)

    @property
    def known(self) -> dict[str, Vectors]:
        """The vector of each text by its hash."""
        if self.vectors is None:
            return {}
        pairs = zip(self.chunks, self.vectors, strict=True)
        return {text_hash(chunk.indexed): vector for chunk, vector in pairs}

    def by_words(self, question: str) -> list[int]:
        """Places of chunks that share words with a question, the likeliest first."""
        asked = [word for word in words(question) if word in self.lexical.vocab_dict]
        if not asked:
            return []
        scores = self.lexical.get_scores(asked)
        return [place for place in _best(scores) if scores[place] > 0]

    def by_meaning(self, vector: Vectors) -> list[int]:
        """Places of the chunks nearest to a question's vector."""
        assert self.vectors is not None
        return _best(self.vectors @ vector)

    def rank(self, question: str, vector: Vectors | None) -> list[int]:
        """Places of chunks by both rankings joined; by words alone without a vector."""
        rankings = [self.by_words(question)]
        if vector is not None:
            rankings.append(self.by_meaning(vector))
        return join(rankings)

    def save(self, folder: Path) -> None:
        """chunks.jsonl and, with an encoder, vectors.npy: float32, a row for each chunk."""
        folder.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(asdict(chunk), ensure_ascii=False) + "\n" for chunk in self.chunks]
        (folder / "chunks.jsonl").write_text("".join(lines), encoding="utf-8")
        if self.vectors is not None:
            # Renamed into place last: whoever reads them meanwhile sees the old ones or these.
            scratch = folder / "vectors.partial.npy"
            np.save(scratch, self.vectors, allow_pickle=False)
            scratch.replace(folder / "vectors.npy")


def known_vectors(folder: Path) -> dict[str, Vectors]:
    """What `Index.known` was when it was saved; empty where there is none, or half of one."""
    if not (folder / "vectors.npy").is_file():
        return {}
    vectors = np.load(folder / "vectors.npy", allow_pickle=False)
    with (folder / "chunks.jsonl").open(encoding="utf-8") as lines:
        chunks = [_chunk(json.loads(line)) for line in lines]
    if len(chunks) != len(vectors):
        return {}
    return {text_hash(c.indexed): v for c, v in zip(chunks, vectors, strict=True)}


def join(rankings: Sequence[Sequence[int]]) -> list[int]:
    """Rankings joined by reciprocal rank; ties go to what stands first in the first of them."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, place in enumerate(ranking, 1):
            scores[place] = scores.get(place, 0.0) + 1 / (JOINED_BY + rank)
    return sorted(scores, key=lambda place: -scores[place])


def words(text: str) -> list[str]:
    """Words in lower case, without the commonest and without a plural's s."""
    found = (word for word in _WORD.findall(text.casefold()) if word not in _STOP)
    return [w[:-1] if len(w) > 3 and w.endswith("s") and w[-2] != "s" else w for w in found]


def text_hash(text: str) -> str:
    """What a vector is known by."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _best(scores: NDArray[np.floating[Any]]) -> list[int]:
    """The highest scores' places, the first of equals first."""
    return np.argsort(-scores, kind="stable")[:DEEPEST].tolist()


def _chunk(row: dict[str, Any]) -> Chunk:
    place = Source(**row.pop("source"))
    return Chunk(source=place, **row)

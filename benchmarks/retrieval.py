"""How well documents are found, by words, by meaning and by both: recall@1, 3, 5 and MRR.

python benchmarks/retrieval.py shared/data wiki_qa health_faq
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path

from tunesmith.data.dataset import read
from tunesmith.data.examples import Conversation
from tunesmith.evaluate.statistics import interval
from tunesmith.pipeline.embedding import embedding, encoder
from tunesmith.rag import documents as rag
from tunesmith.rag.chunks import chunk
from tunesmith.rag.index import Index, join
from tunesmith.rag.quality import best_size, found
from tunesmith.rag.retrieval import question


async def measure(data: Path, name: str) -> None:
    """Print what each way reaches on one set."""
    files = [str(data / name / "dev.jsonl")]
    if name != "health_faq":
        files.append(str(data / name / "train.jsonl"))
    docs = rag.read([str(data / name / "docs.jsonl")], own=files)
    rows = [r for r in read(files, answers=docs.answers) if isinstance(r, Conversation)]
    asked = [(question(row.prompt), row) for row in rows]
    named = frozenset(document.id for document in docs.documents)
    sizes = await best_size(docs.documents, asked, named)
    print(f"{name}: {len(docs.documents)} documents, {len(rows)} questions; sizes {sizes}")
    with tempfile.TemporaryDirectory() as folder:
        async with embedding(
            encoder(print), log=Path(folder) / "log", told=lambda *_: None
        ) as embed:
            began = time.monotonic()
            index = await Index.build(chunk(docs.documents, sizes[0][0]), embed)
            print(f"{len(index.chunks)} chunks embedded in {time.monotonic() - began:.1f} s")
            assert embed is not None
            vectors = await embed([text for text, _ in asked])
    by_words = [index.by_words(text) for text, _ in asked]
    by_meaning = [index.by_meaning(vector) for vector in vectors]
    both = [join(pair) for pair in zip(by_words, by_meaning, strict=True)]
    for way, ranked in (("bm25", by_words), ("encoder", by_meaning), ("joined", both)):
        scores = [
            found([index.chunks[place] for place in places], row.document)
            for places, row in zip(ranked, rows, strict=True)
        ]
        said = [f"{way:8}"]
        for metric in scores[0]:
            part = interval([s[metric] for s in scores], [row.document for row in rows], 0)
            said.append(f"{metric} {part.value:.3f} ({part.low:.3f} to {part.high:.3f})")
        print("  ".join(said), flush=True)


if __name__ == "__main__":
    for each in sys.argv[2:]:
        asyncio.run(measure(Path(sys.argv[1]), each))

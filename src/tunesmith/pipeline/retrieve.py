"""The arms that look things up: documents indexed, passages chosen, a model tuned to read them.

Everything of them is in the run's folder under rag/: the index, the rows that the second model was
trained on with their passages, its checkpoints, events and adapter.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tunesmith.chat import Message, Tool, answer_text
from tunesmith.data.examples import Conversation
from tunesmith.data.split import read_jsonl, write_jsonl
from tunesmith.evaluate import statistics
from tunesmith.evaluate.evaluation import Answered, Arm
from tunesmith.graders.choose import Chosen
from tunesmith.models import fetch
from tunesmith.models.catalog import ModelSpec
from tunesmith.pipeline import learn, measure, prepare
from tunesmith.pipeline.advice import answers
from tunesmith.pipeline.embedding import embedding, encoder
from tunesmith.pipeline.folder import RunFolder
from tunesmith.pipeline.measure import CONCURRENCY, Bench
from tunesmith.pipeline.under_way import Run
from tunesmith.rag import quality, retrieval
from tunesmith.rag.chunks import chunk
from tunesmith.rag.documents import Documents
from tunesmith.rag.index import Index, known_vectors
from tunesmith.rag.retrieval import Library, Retrieval, question
from tunesmith.sections import RETRIEVING
from tunesmith.serve.engines import Engine, Engines

CITATION_TOKENS = 16
NO_ENCODER = "none: words alone"
PASSAGES = 3
"""Without validation rows to choose the number by."""


async def explore(run: Run, bench: Bench, held: Sequence[Conversation]) -> dict[str, Any] | None:
    """Chunk size and number of passages, chosen on validation rows; None without documents.

    The size is chosen by what a search by words reaches, which asks no model; the number by the
    primary metric of the base that is shown so many.
    """
    documents = run.prepared.documents
    if documents is None or not set(RETRIEVING) & set(run.recipe.arms):
        return None
    rows = [(question(row.prompt), row) for row in run.rows("validation")]
    sizes = await quality.best_size(documents.documents, rows, _named(documents))
    spec = encoder(run.screen.say)
    settled = {
        "words": sizes[0][0],
        "passages": PASSAGES,
        "encoder": spec.name if spec else NO_ENCODER,
    }
    tried: list[tuple[int, float]] = []
    answered: dict[int, list[dict[str, Any]]] = {}
    async with opened(run, settled, bench.chosen) as library:
        for passages in quality.DEPTHS if held else ():
            arm = _arm("rag", bench, None, replace(library, passages=passages))
            measured = await bench.run(arm, held, CONCURRENCY)
            tried.append((passages, measured.scores[bench.chosen.primary].value))
            answered[passages] = answers(measured, bench.chosen.primary)
        indexed = len(library.index.chunks)
    tried.sort(key=lambda pair: -pair[1])
    settled |= {"passages": tried[0][0]} if tried else {}
    run.screen.say(
        f"{len(documents.documents):,} documents in {indexed:,} chunks of up to {settled['words']} "
        f"words; a question is shown {settled['passages']}"
    )
    shown = answered[tried[0][0]] if tried else []
    return {**settled, "chunks": indexed, "sizes": sizes, "tried": tried, "rows": shown}


@asynccontextmanager
async def opened(run: Run, settled: Mapping[str, Any], chosen: Chosen) -> AsyncGenerator[Library]:
    """The index as it was settled, with the encoder's process beside it.

    Vectors are taken from the run's folder, or from an earlier run over the same files: only chunks
    whose text is new are embedded.
    """
    documents = run.prepared.documents
    assert documents is not None
    spec = None if settled["encoder"] == NO_ENCODER else encoder(run.screen.say)
    kept = run.reading.path / "index"
    cache = _cache(run.recipe.data.docs, spec)
    known = known_vectors(kept) or known_vectors(cache)
    log = run.folder.path / "encoder.log"

    def told(done: int, total: int) -> None:
        run.screen.progress("embedding", done, total)

    async with embedding(spec, log=log, told=told) as embed:
        pieces = chunk(documents.documents, settled["words"])
        index = await Index.build(pieces, embed, known)
        if not (kept / "chunks.jsonl").is_file():
            for folder in (cache, kept):
                index.save(folder)
        yield Library(
            index,
            embed,
            settled["passages"],
            cites=_cites(run, chosen),
            fits=_Room(run).fits,
        )


def train(run: Run) -> None:
    """Train a second model on prompts that show passages, unless that has ended."""
    settled = run.folder.read_json("explore.json")["rag"]
    if settled is None or "rag+tuned" not in run.recipe.arms:
        return
    folder = run.reading
    if not (folder.data / "train.jsonl").is_file():
        asyncio.run(_write_lessons(run, settled, folder))
    if not learn.trained(folder):
        run.screen.say("training once more, with passages of the documents in the prompts")
    learn.train(run.recipe, run.model, folder, run.screen.event)


async def _write_lessons(run: Run, settled: Mapping[str, Any], folder: RunFolder) -> None:
    """rag/data: the training rows as lessons, the validation rows as they are asked at the end."""
    documents = run.prepared.documents
    assert documents is not None
    folder.data.mkdir(parents=True, exist_ok=True)
    named, seed = _named(documents), run.recipe.train.seed
    rows = run.rows("train")
    chosen = measure.pick_graders(rows, run.recipe.evaluate.graders)
    async with opened(run, settled, chosen) as library:
        # The training rows last: their presence says that both are whole.
        for split in ("validation", "train"):
            rows = run.rows(split)
            ranked = await library.rank([question(row.prompt) for row in rows])
            if split == "train":
                lessons = [
                    retrieval.lesson(row, found, library, named, seed)
                    for row, found in zip(rows, ranked, strict=True)
                ]
            else:
                lessons = [
                    retrieval.as_asked(
                        row,
                        found[: library.passages],
                        library,
                        [piece for piece in found if quality.is_right(piece, row, named)],
                    )
                    for row, found in zip(rows, ranked, strict=True)
                ]
            scratch = folder.data / f".{split}.partial"
            write_jsonl(lessons, scratch)
            scratch.replace(folder.data / f"{split}.jsonl")


def arm(kind: str, run: Run, bench: Bench, library: Library) -> Arm:
    """`rag`, the base shown passages, or `rag+tuned`, the model that was trained on them."""
    return _arm(kind, bench, run.reader if kind == "rag+tuned" else None, library)


def _arm(kind: str, bench: Bench, model: str | None, library: Library) -> Arm:
    async def read(row: Conversation, output: str) -> Answered:
        shown = await library.shown(row.prompt, row.tools)
        text, cited = output, ()
        if library.cites:
            text, cited = retrieval.read_citations(output, shown)
        return Answered(text, cited, tuple(piece.indexed for piece in shown))

    model_of = Retrieval(bench.engine.chat(model), library)
    # No scorer: a reference that cites nothing is not what such a model would write.
    return Arm(kind, "rag+tuned" if kind == "rag+tuned" else "rag", model_of, read=read)


async def details(
    run: Run,
    engine: Engine | Engines,
    library: Library,
    settled: Mapping[str, Any],
    rows: Sequence[Conversation],
) -> dict[str, dict[str, Any]]:
    """What report.json says of these arms beside their scores.

    Raises:
        EngineError: the second model is not served as it was trained.
    """
    documents = run.prepared.documents
    assert documents is not None
    tried = [{"name": f"passages: {k}", "validation": score} for k, score in settled["tried"]]
    found = await _quality(library, rows, _named(documents), run.recipe.train.seed)
    about = {key: settled[key] for key in ("words", "passages", "chunks", "encoder")}
    out: dict[str, dict[str, Any]] = {"rag": {"variants": tried, "retrieval": {**about, **found}}}
    folder = run.reading
    if folder.tuned is not None:
        held = prepare.demonstrations(read_jsonl(folder.data / "validation.jsonl"))
        if not held:
            held = prepare.demonstrations(read_jsonl(folder.data / "train.jsonl"))
        parity = await measure.check_parity(engine, run.reader, folder.path / "parity.json", held)
        out["rag+tuned"] = {"retrieval": {**about, **found}, "parity": asdict(parity)}
    return out


async def _quality(
    library: Library, rows: Sequence[Conversation], named: frozenset[str], seed: int
) -> dict[str, Any]:
    """recall@k and MRR over the rows that name a document, each with its interval."""
    naming = [row for row in rows if row.document in named]
    if not naming:
        return {"recall": {"value": None, "reason": "the rows name no document"}}
    ranked = await library.rank([question(row.prompt) for row in naming])
    scores = [quality.found(r, row.document) for r, row in zip(ranked, naming, strict=True)]
    clusters = [row.document for row in naming]
    return {
        metric: asdict(statistics.interval([score[metric] for score in scores], clusters, seed))
        for metric in scores[0]
    }


def _named(documents: Documents) -> frozenset[str]:
    return frozenset(document.id for document in documents.documents if document.named)


def _cites(run: Run, chosen: Chosen) -> bool:
    """Labels, JSON and calls have no room for a citation, and references may have marks of their own."""
    answers = (answer_text(row.answer) for row in run.rows("train"))
    return chosen.task == "text" and not any(retrieval.has_citations(text) for text in answers)


class _Room:
    """Whether a prompt leaves room for the longest answer."""

    def __init__(self, run: Run) -> None:
        longest = run.folder.read_json("ledger.json")["longest_answer"] + CITATION_TOKENS
        self._template = run.template
        self._most = run.template.context - max(longest, int(run.recipe.evaluate.max_tokens))

    def fits(self, messages: Sequence[Message], tools: Sequence[Tool]) -> bool:
        return len(self._template.prompt(messages, tools).ids) <= self._most


def _cache(names: Sequence[str], spec: ModelSpec | None) -> Path:
    """Where vectors of these files' chunks are kept from run to run."""
    said = [*(str(Path(name).resolve()) for name in names), spec.weights_hash if spec else ""]
    key = hashlib.sha256("\0".join(said).encode()).hexdigest()
    return fetch.home() / "indexes" / key[:16]

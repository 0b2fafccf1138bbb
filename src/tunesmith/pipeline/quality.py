"""A closer look at the rows: engines are asked for numbers, and the checks say what they mean."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.chat import answer_text
from tunesmith.checks import alike, surprise, wrong_labels
from tunesmith.checks.report import Finding, by_severity
from tunesmith.checks.row import Row, look
from tunesmith.checks.suspects import Suspect, told
from tunesmith.client import EngineClient
from tunesmith.data.examples import Conversation, Example
from tunesmith.data.likeness import Vectors, word_vectors
from tunesmith.evaluate import behind as tracing
from tunesmith.evaluate.evaluation import Measured, each
from tunesmith.graders.choose import Task, choose
from tunesmith.models import fetch
from tunesmith.models.catalog import ENCODER, ModelSpec
from tunesmith.models.template import ChatTemplate
from tunesmith.pipeline.begin import Screen
from tunesmith.pipeline.embedding import Embed, embedding, encoder
from tunesmith.pipeline.folder import RunFolder
from tunesmith.serve import engines

MOST_ROWS = 10_000
"""Rows of a closer look; of more a seeded sample is taken."""
TRACED = 5_000
"""Training rows among which those behind a wrong answer are looked for."""
SURPRISE_ROWS = 200
TEMPLATE_ROWS = 24
MOST_FIELDS = 5
PIECE = 256
CONCURRENCY = 32


@dataclass(frozen=True)
class Looked:
    """What a closer look came to."""

    findings: tuple[Finding, ...] = ()
    suspects: tuple[Suspect, ...] = ()
    numbers: dict[str, Any] = field(default_factory=dict[str, Any])

    def __add__(self, other: Looked) -> Looked:
        return Looked(
            by_severity([*self.findings, *other.findings]),
            (*self.suspects, *other.suspects),
            {**self.numbers, **other.numbers},
        )

    def to_json(self) -> dict[str, Any]:
        """The numbers, and every suspect row with its reason."""
        rows = [asdict(suspect) for suspect in self.suspects]
        for row in rows:
            del row["place"]
        return {**self.numbers, "suspects": rows}


@dataclass(frozen=True)
class Seen:
    """Rows with the vectors of their prompts, and of their answers unless these are labels."""

    rows: tuple[Row, ...]
    task: Task
    prompts: Vectors
    answers: Vectors | None
    meaning: bool
    """Whether an encoder made the vectors; otherwise they are of words alone."""

    @property
    def labels(self) -> list[str] | None:
        """The answers, where they are labels."""
        return [row.answer.strip() for row in self.rows] if self.task == "labels" else None


def sampled(examples: Iterable[Example], most: int, seed: int) -> list[Row]:
    """Rows as the checks see them, in their order; of more than `most` a seeded sample."""
    rows = [look(example) for example in examples]
    if len(rows) <= most:
        return rows
    picked = sorted(random.Random(seed).sample(range(len(rows)), most))
    return [rows[place] for place in picked]


def asked(row: Row) -> str:
    """What a row asks, its last turn first: an encoder reads the beginning of a text."""
    turns = [answer_text(message) for message in row.prompt if message.role != "system"]
    return "\n".join(reversed(turns)).strip() or row.answer


async def see(
    rows: Sequence[Row], embed: Embed | None, *, seed: int, seconds: float = float("inf")
) -> Seen:
    """The rows' vectors; with a limit of seconds as many rows as there is time for, in seeded order."""
    with_tools = any(turns.tools for row in rows for turns in row.conversations)
    task = choose([row.answer for row in rows], with_tools=with_tools).task
    if embed is None:
        words = word_vectors([asked(row) for row in rows])
        return Seen(tuple(rows), task, words, None, meaning=False)
    order = np.random.default_rng(seed).permutation(len(rows)).tolist()
    began, done = time.monotonic(), 0
    vectors: dict[int, tuple[Any, Any]] = {}
    while done < len(rows) and (not done or time.monotonic() - began < seconds):
        part = order[done : done + PIECE]
        prompts = await distinct(embed, [asked(rows[place]) for place in part])
        answers = prompts
        if task != "labels":
            answers = await distinct(embed, [rows[place].answer for place in part])
        vectors |= {place: pair for place, *pair in zip(part, prompts, answers, strict=True)}
        done += len(part)
    places = sorted(vectors)
    prompts, answers = (np.stack([vectors[place][side] for place in places]) for side in (0, 1))
    some = tuple(rows[place] for place in places)
    return Seen(some, task, prompts, None if task == "labels" else answers, meaning=True)


async def distinct(embed: Embed, texts: Sequence[str]) -> Vectors:
    """Vectors of texts, each different text computed once."""
    places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    vectors = await embed(list(places))
    return vectors[[places[text] for text in texts]]


def judge(seen: Seen, seed: int) -> Looked:
    """What the vectors say of the rows."""
    where = [row.where for row in seen.rows]
    said = [row.answer for row in seen.rows]
    labels = _labels(seen, where, seed)
    findings = told(
        labels,
        "warning",
        "whose label the other rows contradict",
        "Look at each and mend it; tunesmith check --select N --out FILE leaves them out.",
    )
    numbers: dict[str, Any] = {"rows": len(where), "by": "meaning" if seen.meaning else "words"}
    if not seen.meaning:
        return Looked(findings, tuple(labels), numbers)
    systems = [
        "\n".join(m.content or "" for m in r.prompt if m.role == "system") for r in seen.rows
    ]
    near = alike.Near.of(seen.prompts, systems)
    far = alike.outliers(near, where, [asked(row) for row in seen.rows])
    against: list[Suspect] = []
    if seen.task in ("labels", "text"):
        against = alike.contradictions(near, where, said, seen.answers)
    findings += told(
        against,
        "warning",
        "that ask nearly what another asks and answer differently",
        "Decide for one answer, or put into the prompt what decides between them.",
    )
    findings += told(
        far,
        "warning",
        "far from all others",
        "Look at each: take out what does not belong to the task; of what does, add more rows.",
    )
    findings += tuple(alike.diversity(seen.prompts, near, where))
    numbers["vendi_score"] = alike.vendi_score(seen.prompts)
    return Looked(by_severity(list(findings)), (*labels, *against, *far), numbers)


def _labels(seen: Seen, where: Sequence[str], seed: int) -> list[Suspect]:
    if seen.labels is not None:
        return wrong_labels.wrong_labels(seen.prompts, seen.labels, where, seed=seed)
    if seen.task != "json":
        return []
    columns = wrong_labels.json_fields([row.answer for row in seen.rows])
    return [
        suspect
        for path, values in list(columns.items())[:MOST_FIELDS]
        for suspect in wrong_labels.wrong_labels(seen.prompts, values, where, seed=seed, field=path)
    ]


async def ask_base(
    base: EngineClient,
    template: ChatTemplate,
    rows: Sequence[Conversation],
    *,
    seed: int,
    most: int = SURPRISE_ROWS,
) -> Looked:
    """How surprised the base is by a sample of the answers, and by its template's own tokens."""
    some = sampled(rows, most, seed)

    async def answer(row: Conversation) -> list[float]:
        return await base.logprobs(row.prompt, row.answer, row.tools)

    async def header(row: Conversation) -> float | None:
        found = surprise.header(template, row)
        if found is None:
            return None
        logprobs = await base.text_logprobs(found.ids)
        # Nothing says how likely the first token is.
        own = logprobs[found.start - 1 :]
        return -sum(own) / len(own)

    turns = [row.conversations[0] for row in some]
    headers = await each(turns[:TEMPLATE_ROWS], header, concurrency=CONCURRENCY)
    scored = await each(turns, answer, concurrency=CONCURRENCY)
    strange, known = surprise.answers(
        scored, [row.answer for row in some], [row.where for row in some]
    )
    surprises = [value for value in headers if value is not None]
    findings = surprise.template_findings(surprises, fallback=template.fallback)
    findings += told(
        strange,
        "warning",
        f"of {len(some):,} whose answer surprises the base far more than is usual",
        "Look at each: another language, garbled text or noise is learned as it stands.",
    )
    findings += told(
        known,
        "note",
        f"of {len(some):,} that the base already answers so, word for word",
        "Nothing needs doing; they teach little.",
    )
    costs = [-sum(tokens) / len(tokens) for tokens in scored]
    numbers = {
        "answer_nats": float(np.median(costs)) if costs else None,
        "template_nats": float(np.mean(surprises)) if surprises else None,
    }
    return Looked(findings, tuple(strange), numbers)


def examine(
    examples: Iterable[Example],
    model: ModelSpec | None,
    template: ChatTemplate | None,
    *,
    dtype: str,
    seed: int,
    screen: Screen,
    most: int = MOST_ROWS,
) -> tuple[Seen, Looked]:
    """The closer look of `check --deep`; without a model the base is not asked."""
    rows = sampled(examples, most, seed)
    log = fetch.home() / "logs" / "check.log"
    spec = encoder(screen.say)

    async def go() -> tuple[Seen, Looked]:
        told = _progress(screen, "comparing rows")
        async with embedding(spec, log=log, told=told) as embed:
            seen = await see(rows, embed, seed=seed)
        found = judge(seen, seed)
        turns = [row.example for row in rows if isinstance(row.example, Conversation)]
        if model is None or template is None or not turns:
            return seen, found
        screen.progress("asking the base", 0, None)
        of_base = engines.EngineSpec(model.folder, model.name, dtype=dtype, max_rows=CONCURRENCY)
        async with await engines.start(of_base, log=log) as engine:
            return seen, found + await ask_base(engine.chat(), template, turns, seed=seed)

    return asyncio.run(go())


def glance(
    folder: RunFolder,
    rows: Sequence[Conversation],
    *,
    seconds: float,
    seed: int,
    screen: Screen,
) -> None:
    """The part of a closer look that a run has time for; its findings join those of the checks.

    By meaning where the sentence encoder is on this disk, otherwise by words. Validation and test rows
    are not looked at: what is found decides what is mended.

    Args:
        seconds: for the vectors; 0 leaves it all out.
    """
    if not seconds or (folder.path / "quality.json").is_file():
        return
    began = time.monotonic()

    async def go() -> Seen:
        told = _progress(screen, "comparing rows")
        log = folder.path / "encoder.log"
        async with embedding(_encoder_here(), log=log, told=told) as embed:
            return await see(sampled(rows, MOST_ROWS, seed), embed, seed=seed, seconds=seconds)

    seen = asyncio.run(go())
    keep(folder, judge(seen, seed), screen)
    screen.say(
        f"looked closer at {len(seen.rows):,} of {len(rows):,} training rows, by "
        f"{'meaning' if seen.meaning else 'words'}, in {time.monotonic() - began:.0f} s"
    )


async def greet(
    folder: RunFolder,
    base: EngineClient,
    template: ChatTemplate,
    rows: Sequence[Conversation],
    screen: Screen,
) -> None:
    """Ask the base for a few answers and headers: a wrong chat template is found before training."""
    keep(folder, await ask_base(base, template, rows, seed=0, most=TEMPLATE_ROWS), screen)


def keep(folder: RunFolder, found: Looked, screen: Screen) -> None:
    """Add what was found to the run's findings.json and quality.json, and say the warnings."""
    there = folder.read_json("findings.json")
    new = [asdict(finding) for finding in found.findings]
    for finding in new:
        del finding["count"]
        finding["rows"] = list(finding["rows"])
    fresh = [finding for finding in new if finding not in there]
    folder.write_json("findings.json", [*there, *fresh])
    known: Mapping[str, Any] = {}
    if (folder.path / "quality.json").is_file():
        known = folder.read_json("quality.json")
    said = found.to_json()
    suspects = [*known.get("suspects", []), *said["suspects"]]
    folder.write_json("quality.json", {**known, **said, "suspects": suspects})
    for finding in fresh:
        if finding["severity"] == "warning":
            screen.say(f"{finding['message']}. {finding['remedy']}")


def behind(
    folder: RunFolder,
    arms: Mapping[str, Measured],
    train: Sequence[Conversation],
    *,
    primary: str,
    seed: int,
    screen: Screen,
) -> list[dict[str, Any]] | dict[str, Any]:
    """The training rows behind the tuned model's worst answers: `behind` of report.json."""
    if "tuned" not in arms:
        return {"value": None, "reason": "the tuned arm was left out"}
    samples = tracing.wrong(arms["tuned"].samples, primary)
    if not samples:
        return []
    rows = sampled(train, TRACED, seed)
    some = [row.example for row in rows if isinstance(row.example, Conversation)]
    texts = [
        *(asked(row) for row in rows),
        *(sample.prompt for sample in samples),
        *(row.answer for row in rows),
        *(sample.output for sample in samples),
    ]

    async def go() -> Vectors:
        log = folder.path / "encoder.log"
        told = _progress(screen, "rows behind wrong answers")
        async with embedding(_encoder_here(), log=log, told=told) as embed:
            return word_vectors(texts) if embed is None else await distinct(embed, texts)

    parts = np.split(asyncio.run(go()), np.cumsum([len(rows), len(samples), len(rows)]))
    return tracing.behind(samples, some, tracing.Pairs(parts[0], parts[2], parts[1], parts[3]))


def _encoder_here() -> ModelSpec | None:
    """The encoder where it is on this disk: a run fetches none for a look beside it."""
    there = Path(fetch.home() / "models" / ENCODER).is_dir()
    return fetch.resolve(ENCODER) if there else None


def _progress(screen: Screen, what: str) -> Callable[[int, int], None]:
    def tell(done: int, total: int) -> None:
        screen.progress(what, done, total)

    return tell

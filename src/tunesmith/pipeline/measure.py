"""Arms side by side: on the validation rows before training, on the test rows once, at the end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from tunesmith.chat import SamplingParams, answer_text
from tunesmith.data.examples import Conversation
from tunesmith.errors import EngineError
from tunesmith.evaluate import classical, prompting
from tunesmith.evaluate.comparison import Noise, noise_floor
from tunesmith.evaluate.evaluation import Arm, Build, Measured, Sample, evaluate
from tunesmith.graders.choose import Chosen, choose
from tunesmith.models.template import ChatTemplate
from tunesmith.serve.engines import Engine, Engines

CONCURRENCY = 64
"""Rows under way at once: a step of 64 takes hardly half again as long as one of 32."""
NOISE_ROWS = 24
EXPLORE_ROWS = 24
"""Validation rows that decide about prompts and advice: enough to rank, few enough to wait for."""
LIMITS = {"bfloat16": (0.02, 0.2), "float32": (1e-4, 1e-3)}
"""Mean and largest difference of log-probabilities between trainer and server, in nats."""
NOISE_FACTOR = 2.0
"""A server may differ from the trainer by as many times what the trainer differs from itself."""

Told = Callable[[str, int, int], None]
T = TypeVar("T")


@asynccontextmanager
async def meanwhile(work: Coroutine[Any, Any, T]) -> AsyncGenerator[asyncio.Task[T]]:
    """Work that goes on beside the block; it ends with the block."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()


def as_one(told: Told, name: str) -> Told:
    """Several countings that go on at once, told as one."""
    seen: dict[str, tuple[int, int]] = {}

    def tell(what: str, done: int, total: int) -> None:
        seen[what] = done, total
        told(name, *(sum(counts) for counts in zip(*seen.values(), strict=True)))

    return tell


def pick_graders(train: Sequence[Conversation], named: Sequence[str]) -> Chosen:
    """Graders from the training answers; no other split is looked at."""
    return choose(
        [answer_text(row.answer) for row in train],
        with_tools=any(row.tools for row in train),
        named=named,
    )


@dataclass(frozen=True, slots=True)
class Bench:
    """What every measurement of a run shares."""

    engine: Engine | Engines
    template: ChatTemplate
    train: Sequence[Conversation]
    chosen: Chosen
    max_tokens: int
    seed: int
    told: Told

    @property
    def params(self) -> SamplingParams:
        """Greedy, as long as the longest reference with room to spare."""
        return SamplingParams(temperature=0.0, max_tokens=self.max_tokens)

    async def run(self, arm: Arm, rows: Sequence[Conversation], concurrency: int) -> Measured:
        """One arm over the rows."""
        return await evaluate(
            arm,
            rows,
            self.chosen.graders,
            params=self.params,
            concurrency=concurrency,
            progress=lambda done, total: self.told(arm.name, done, total),
            seed=self.seed,
        )

    async def find_prompt(
        self, validation: Sequence[Conversation], *, known: str | None = None
    ) -> prompting.PromptPlan:
        """The best prompt that validation rows can tell, or the one known by its name."""
        return await prompting.search(
            self.engine.chat(),
            self.train,
            validation,
            self.chosen.graders,
            task=self.chosen.task,
            primary=self.chosen.primary,
            params=self.params,
            count=lambda messages, tools: len(self.template.prompt(messages, tools).ids),
            context=self.template.context,
            concurrency=CONCURRENCY,
            progress=lambda done, total: self.told("prompt search", done, total),
            seed=self.seed,
            known=known,
        )

    def arm(self, kind: str, *, build: Build | None, tuned: str) -> Arm:
        """The arm of a kind; `build` makes the prompt of the prompt arm."""
        if kind == "classical":
            return Arm(kind, kind, classical.fit(self.train, self.chosen.task, seed=self.seed))
        if kind == "tuned":
            model = self.engine.chat(tuned)
            return Arm(kind, kind, model, scorer=model)
        model = self.engine.chat()
        if kind == "prompt" and build is not None:
            return Arm(kind, kind, model, build, scorer=model)
        return Arm("base", "base", model, scorer=model)

    async def noise(self, first: Measured | None, rows: Sequence[Conversation]) -> Noise | None:
        """The base once more: other order, other batch size; None where it was not measured."""
        if first is None:
            return None
        some = list(rows)[:NOISE_ROWS][::-1]
        base = Arm("noise", "base", self.engine.chat())
        return noise_floor(
            first, await self.run(base, some, concurrency=NOISE_ROWS), self.chosen.primary
        )


@dataclass(frozen=True, slots=True)
class Parity:
    """How far a server is from what the trainer said of the same answers."""

    rows: int
    tokens: int
    mean: float
    largest: float


async def check_parity(
    engine: Engine | Engines, tuned: str, recorded: Path, rows: Sequence[Conversation]
) -> Parity:
    """Served = trained: equal ids, log-probabilities within limits, and not the base's.

    Args:
        recorded: parity.json, what the trainer said.
        rows: the rows that it said it of.

    Raises:
        EngineError: beyond the limits; the model must not be registered.
    """
    differences: list[float] = []
    from_base: list[float] = []
    said = json.loads(recorded.read_text(encoding="utf-8"))
    for item in said["rows"]:
        row = rows[item["row"]]
        served = await engine.chat(tuned).score(row.prompt, row.answer, row.tools)
        if list(served.token_ids) != item["ids"] or len(item["ids"]) != len(item["logprobs"]):
            raise EngineError(
                f"the server reads {row.source.file}:{row.source.line} as other tokens than "
                "the trainer",
                expected="equal ids",
            )
        base = await engine.chat().logprobs(row.prompt, row.answer, row.tools)
        pairs = zip(served.logprobs, item["logprobs"], strict=True)
        differences += [abs(a - b) for a, b in pairs]
        from_base += [abs(a - b) for a, b in zip(served.logprobs, base, strict=True)]
    found = Parity(
        len(said["rows"]), len(differences), sum(differences) / len(differences), max(differences)
    )
    limits = LIMITS[said["dtype"]]
    noise = said["noise"]["mean"], said["noise"]["largest"]
    mean, most = (max(a, NOISE_FACTOR * b) for a, b in zip(limits, noise, strict=True))
    if found.mean > mean or found.largest > most:
        raise EngineError(
            f"served and trained differ by {found.mean:.3g} a token on average, "
            f"{found.largest:.3g} at most",
            expected=f"at most {mean:.3g} and {most:.3g}",
            remedy="The model is not registered. Train in float32 with --set model.dtype=float32.",
        )
    if max(from_base) <= found.largest:
        raise EngineError(
            "the served adapter answers as the base does", expected="an adapter that has an effect"
        )
    return found


def sample_row(sample: Sample) -> dict[str, Any]:
    """A line of samples/ARM.jsonl."""
    row = asdict(sample)
    del row["cluster"]
    if not sample.passages:
        del row["cited"], row["passages"]
    return row


def arm_entry(measured: Measured, variants: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """An arm of report.json."""
    samples = measured.samples
    seconds = sorted(sample.seconds for sample in samples)
    entry: dict[str, Any] = {
        "name": measured.arm,
        "kind": measured.kind,
        "scores": {name: asdict(interval) for name, interval in measured.scores.items()},
        "tokens_in": _mean([sample.tokens_in for sample in samples]),
        "tokens_out": _mean([sample.tokens_out for sample in samples]),
        "latency_p50": seconds[len(seconds) // 2],
        "latency_p95": seconds[int(len(seconds) * 0.95)],
        "usd_per_1000": {"value": None, "reason": "what this machine costs an hour is not known"},
    }
    if variants:
        entry["variants"] = list(variants)
    return entry


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)

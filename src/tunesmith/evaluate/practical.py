"""What people decide by beside the graders: work left to do, answers that are of no use, what a
call takes.

Each metric says which way is better. Shares are of rows; rows that repeat a prompt are one cluster.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from tunesmith.evaluate import statistics
from tunesmith.evaluate.evaluation import Measured, Sample
from tunesmith.evaluate.statistics import Difference, Interval
from tunesmith.graders.choose import Task
from tunesmith.graders.labels import normal
from tunesmith.graders.text import edits

Better = Literal["higher", "lower"]
Value = Callable[[Sample], float | None]
"""A metric of one row; None where it has no meaning for the row."""

_ALONE = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_ALONE}]|[^\s{_ALONE}]+")
_CONTENT = re.compile(rf"[{_ALONE}]|[^\W_{_ALONE}]+")
_APOSTROPHES = str.maketrans("\u2019\u02bc", "''")
_CANNOT = r"(?:cannot|can't|can not|could not|couldn't|won't|will not|am unable to|am not able to|'m unable to|'m not able to|must decline to)"
_HELP = r"(?:help|assist|answer|provide|comply|fulfil|fulfill|support|do that|do this|discuss|engage|generate|create|give|share|continue|complete)"
REFUSAL = re.compile(
    rf"^\W*(?:(?:i'm |i am |we're |we are )?(?:very |so |really )?(?:sorry|afraid|apologi[sz]e)\b[^.!?]{{0,60}}?"
    rf"\b(?:i|we)\b ?{_CANNOT}"
    rf"|(?:unfortunately,? |as an? (?:ai|language)[^.,]{{0,40}},? )?(?:i|we) ?{_CANNOT} {_HELP}\b"
    r"|as an? (?:ai|artificial intelligence|large language|language) (?:model|assistant|language model)\b"
    r"|(?:i|we) (?:don't|do not) feel comfortable\b"
    r"|(?:i|we) (?:must|have to) (?:refuse|decline)\b)",
    re.IGNORECASE,
)
"""Begins an answer that refuses: an apology with "I cannot", "I cannot help", "as an AI model"."""
UNANSWERED = re.compile(
    r"\b(?:unanswerable|not answerable|no answer|cannot be answered|can't be answered"
    r"|(?:i|we) (?:don't|do not|cannot|can't) (?:know|tell|say)\b|not enough information|insufficient information"
    r"|(?:is|are|was|were)(?: not|n't) (?:mentioned|stated|specified|given|provided|contained|known)"
    r"|does(?: not|n't) (?:say|mention|state|specify|contain)|no information (?:about|on|is)"
    r"|n/a|unknown)\b",
    re.IGNORECASE,
)
"""Says that there is no answer."""
_LONGEST_ABSTENTION = 40
_GRAM = 3


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric of rows: which way is better, and why it may be missing."""

    name: str
    better: Better
    value: Value
    missing: str


def words(text: str) -> list[str]:
    """Words at white space; a character of a script that writes none is one by itself."""
    return _WORD.findall(text)


def edit_effort(output: str, reference: str) -> float:
    """Share of the words that a person would still change: edits / words of the longer text."""
    a, b = words(output), words(reference)
    return edits(a, b) / max(len(a), len(b), 1)


def refuses(text: str) -> bool:
    """Whether an answer begins as refusals do; English only."""
    return REFUSAL.search(text.translate(_APOSTROPHES)) is not None


def abstains(text: str) -> bool:
    """Whether a text is empty, or short and says that there is no answer; English only."""
    plain = text.translate(_APOSTROPHES)
    short = len(words(plain)) <= _LONGEST_ABSTENTION
    return not plain.strip() or (short and UNANSWERED.search(plain) is not None)


def groundedness(output: str, passages: Sequence[str]) -> float | None:
    """Share of an answer's content words that stand in the passages that it was shown.

    A word counts as standing there with its neighbours: of the answer's runs of up to three content
    words, the share that some passage has, each length weighing the same. It is the n-gram
    precision of BLEU (Papineni et al. 2002, P02-1040) without brevity, of the answer against its
    passages, as extractive fragments are counted for summaries (Grusky et al. 2018, N18-1065): what
    it cannot see is a copy that is out of place. None where the answer has no content word.
    """
    said, shown = _content(output), [_content(passage) for passage in passages]
    shares: list[float] = []
    for size in range(1, min(_GRAM, len(said)) + 1):
        there = {gram for passage in shown for gram in _grams(passage, size)}
        own = _grams(said, size)
        shares.append(sum(gram in there for gram in own) / len(own))
    return sum(shares) / len(shares) if shares else None


def _content(text: str) -> list[str]:
    found = _CONTENT.findall(text.casefold())
    return [word for word in found if word not in ENGLISH_STOP_WORDS]


def _grams(said: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(said[i : i + size]) for i in range(len(said) - size + 1)]


def metrics(task: Task, labels: frozenset[str]) -> tuple[Metric, ...]:
    """What is told of every arm.

    Args:
        labels: of the training rows, where these are labels.
    """

    def form(sample: Sample) -> float | None:
        if task == "labels":
            return float(normal(sample.output) in labels)
        return sample.scores.get("valid")

    def answered(sample: Sample) -> float | None:
        return float(not abstains(sample.output)) if abstains(sample.reference) else None

    def refused(sample: Sample) -> float:
        return float(refuses(sample.output) and not refuses(sample.reference))

    return (
        Metric("edit_effort", "lower", lambda s: edit_effort(s.output, s.reference), ""),
        Metric("valid_format", "higher", form, "free text has no form to keep"),
        Metric("refused", "lower", refused, ""),
        Metric(
            "empty", "lower", lambda s: float(not s.output.strip() and bool(s.reference.strip())), ""
        ),
        Metric("cut_off", "lower", lambda s: float(s.finish_reason == "length"), ""),
        Metric(
            "unanswerable_answered", "lower", answered,
            "no reference says that its question has no answer",
        ),
        Metric(
            "groundedness", "higher", lambda s: groundedness(s.output, s.passages) if s.passages else None,
            "this arm is shown no passages",
        ),
    )  # fmt: skip


def entry(
    measured: Measured,
    *,
    task: Task,
    labels: frozenset[str] = frozenset(),
    base: Measured | None = None,
    prompt: Measured | None = None,
) -> dict[str, dict[str, Any]]:
    """The part `practical` of an arm in report.json: {METRIC: {"value", "low", "high", "n", "better"}}.

    Beside the metrics of rows, against other arms on the same rows and with "p": `edits_saved`, the
    share of words that need no change any more, against the base; `tokens_saved`, tokens a call
    that need not be sent any more, against the prompt arm. What has no meaning for an arm or its
    data has a reason instead.

    Args:
        task: what the answers are.
        labels: the labels of the training rows, each as `graders.labels.normal` gives it.
    """
    out: dict[str, dict[str, Any]] = {}
    for metric in metrics(task, labels):
        rows = [(metric.value(sample), sample.cluster) for sample in measured.samples]
        values = [value for value, _ in rows if value is not None]
        clusters = [cluster for value, cluster in rows if value is not None]
        found = statistics.interval(values, clusters) if values else None
        out[metric.name] = _said(found, metric.better, metric.missing)
    out["edits_saved"] = _said(
        _against(base, measured, lambda s: edit_effort(s.output, s.reference)),
        "higher",
        "this is the base" if measured.kind == "base" else "the base was not measured",
    )
    tuned = measured.kind in ("tuned", "rag+tuned")
    out["tokens_saved"] = _said(
        _against(prompt, measured, lambda s: float(s.tokens_in)) if tuned else None,
        "higher",
        "the prompt arm was not measured" if tuned else "this arm is not tuned",
    )
    return out


def _against(
    other: Measured | None, measured: Measured, value: Callable[[Sample], float]
) -> Difference | None:
    """other - measured, by row."""
    if other is None or other.arm == measured.arm:
        return None
    theirs = {sample.id: sample for sample in other.samples}
    both = [(theirs[s.id], s) for s in measured.samples if s.id in theirs]
    if not both:
        return None
    return statistics.paired(
        [value(a) for a, _ in both], [value(b) for _, b in both], [b.cluster for _, b in both]
    )


def _said(found: Interval | Difference | None, better: Better, missing: str) -> dict[str, Any]:
    if found is None:
        return {"value": None, "reason": missing}
    return {**asdict(found), "better": better}


def latency(rows_at_once: int, alone: Sequence[Sample]) -> dict[str, Any]:
    """The part `latency` of an arm: the load of `latency_p50` and `latency_p95`, and none.

    Args:
        rows_at_once: rows that were under way at once when these were measured.
        alone: some rows answered again one after the other.
    """
    seconds = sorted(sample.seconds for sample in alone)
    if not seconds:
        missing = {"value": None, "reason": "answered with other rows only"}
        return {"rows_at_once": rows_at_once, "alone": missing}
    median = (seconds[(len(seconds) - 1) // 2] + seconds[len(seconds) // 2]) / 2
    spread = {"fastest": seconds[0], "slowest": seconds[-1], "n": len(seconds)}
    return {"rows_at_once": rows_at_once, "alone": {"p50": median, **spread}}


def labels_of(answers: Sequence[str], task: Task) -> frozenset[str]:
    """The labels of training answers; none for other tasks."""
    return frozenset(map(normal, answers)) if task == "labels" else frozenset()

"""Which graders fit: picked from the training references, or named by the user."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tunesmith.chat import CALL_OPEN, read_tool_calls
from tunesmith.errors import UsageError
from tunesmith.graders import python, structured
from tunesmith.graders.exact import EXACT
from tunesmith.graders.grader import Grader
from tunesmith.graders.labels import LABELS, normal
from tunesmith.graders.text import TEXT

Task = Literal["labels", "json", "calls", "text"]

_MOST_LABELS = 1000
_LONGEST_LABEL = 80


@dataclass(frozen=True, slots=True)
class Chosen:
    """The graders of a run.

    Attributes:
        task: what kind of answer the training references are, whichever graders are used.
        primary: the metric that the verdict is about.
        reason: one sentence for the user: what was recognised and how it is scored.
        prose: paths of JSON fields that are scored by chrF instead of equality.
    """

    graders: tuple[Grader, ...]
    task: Task
    primary: str
    reason: str
    prose: tuple[str, ...] = ()


def choose(references: Sequence[str], *, with_tools: bool, named: Sequence[str] = ()) -> Chosen:
    """Graders for answers like `references`, which are those of the training split only.

    Args:
        references: final answers of training rows, as `chat.answer_text` writes them; at least one.
        with_tools: whether the rows come with function definitions.
        named: names of graders or FILE.py:FUNCTION that overrule the choice; the first decides.

    Raises:
        UsageError: a named grader is not known, or two of them give the same metric.
    """
    assert references, "graders are chosen from at least one training reference"
    task, seen = _task(references, with_tools)
    prose = _prose(references) if task == "json" else ()
    known = {
        "exact": EXACT,
        "labels": LABELS,
        "json": structured.json_grader(prose),
        "calls": structured.CALLS,
        "text": TEXT,
    }
    if not named:
        return Chosen((known[task],), task, known[task].primary, seen + _how(task, prose), prose)
    graders = tuple(_named(name, known, references[0]) for name in named)
    _refuse_overlap(graders)
    primary = graders[0].primary
    reason = f"{seen}; scored by {', '.join(named)} as asked, {primary} decides."
    return Chosen(graders, task, primary, reason, prose)


def _task(references: Sequence[str], with_tools: bool) -> tuple[Task, str]:
    total = len(references)
    calls = sum(
        CALL_OPEN in reference and bool(read_tool_calls(reference).tool_calls)
        for reference in references
    )
    if calls and (with_tools or calls >= total / 10):
        return "calls", f"{calls:,} of {total:,} training answers call functions"
    values = sum(structured.load(reference) is not None for reference in references)
    if values >= 0.95 * total:
        return "json", f"{values:,} of {total:,} training answers are JSON"
    counts = Counter(map(normal, references))
    if _are_labels(counts, references):
        return "labels", f"the training answers are {len(counts):,} short labels that recur"
    return "text", "the training answers are free text"


def _are_labels(counts: Counter[str], references: Sequence[str]) -> bool:
    """Few, short, on one line, and nearly every row has a label that other rows have too."""
    recurring = sum(n for n in counts.values() if n > 1)
    return (
        len(counts) <= min(_MOST_LABELS, max(2, len(references) / 4))
        and recurring >= 0.9 * len(references)
        and all(len(label) <= _LONGEST_LABEL and "\n" not in label for label in counts)
    )


def _prose(references: Sequence[str]) -> tuple[str, ...]:
    """Paths of strings that are mostly long (5 words or more) and nearly all distinct."""
    texts: dict[str, list[str]] = {}
    mixed: set[str] = set()
    for reference in references:
        for path, value in structured.fields(structured.load(reference)):
            if isinstance(value, str) and "[]" not in path:
                texts.setdefault(path, []).append(value)
            elif value is not None:
                mixed.add(path)
    return tuple(
        path
        for path, values in texts.items()
        if path not in mixed
        and len(values) > 1
        and sum(len(value.split()) for value in values) >= 5 * len(values)
        and len(set(values)) >= 0.9 * len(values)
    )


def _how(task: Task, prose: Sequence[str]) -> str:
    if task == "labels":
        return (
            "; scored by exact match (spaces, quotes and full stops around a label aside;"
            " upper case counts), which decides, and macro F1."
        )
    if task == "calls":
        return (
            "; scored by validity, exact match of the parsed calls in any order, which decides,"
            " and F1 of names and arguments; text beside the calls by chrF."
        )
    if task == "text":
        return "; scored by chrF, which decides, ROUGE-L, length ratio, edit similarity and exact match."
    left = f"; the wording of {', '.join(prose)} is left out of both and scored by chrF"
    return (
        "; scored by validity, exact match of the parsed value, which decides, and F1 of its"
        f" fields{left if prose else ''}."
    )


def _named(name: str, known: Mapping[str, Grader], example: str) -> Grader:
    if name in known:
        return known[name]
    if ":" in name:
        return python.load(name, example)
    raise UsageError(
        f"--grader {name} is not known", expected=f"one of {', '.join(known)} or FILE.py:FUNCTION"
    )


def _refuse_overlap(graders: Sequence[Grader]) -> None:
    owner: dict[str, str] = {}
    for grader in graders:
        for metric in grader.metrics:
            if metric in owner:
                raise UsageError(
                    f"the graders {owner[metric]} and {grader.name} both give {metric}",
                    expected="each metric from one grader",
                    remedy="Name one of the two.",
                )
            owner[metric] = grader.name

"""Free text: chrF, ROUGE-L, edit similarity, length ratio and exact match."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.chrf import CHRF

from tunesmith.graders.exact import same
from tunesmith.graders.grader import Grader

_CHRF = CHRF(beta=1)
_WORD = re.compile(r"\w+")


class _Words:
    """Words of any script; rouge_score's own tokenizer drops everything but a-z and 0-9."""

    def tokenize(self, text: str) -> list[str]:
        return _WORD.findall(text.casefold())


_ROUGE = RougeScorer(["rougeL"], tokenizer=cast(Any, _Words()))


def chrf(output: str, reference: str) -> float:
    """chrF in [0, 1]: F1 of character n-grams up to 6 (Popović 2015, W15-3049).

    Precision weighs as much as recall. sacrebleu's default of beta = 2 was chosen for translations,
    which have the length of their reference; on open answers it pays for rambling
    (docs/decisions/0005).
    """
    if output.strip() == reference.strip():
        return 1.0
    return _CHRF.sentence_score(output, [reference]).score / 100


def rouge_l(output: str, reference: str) -> float:
    """F1 of the longest common subsequence of words (Lin 2004, W04-1013)."""
    if output.strip() == reference.strip():
        return 1.0
    return float(_ROUGE.score(reference, output)["rougeL"].fmeasure)


def edits(a: Sequence[str], b: Sequence[str]) -> int:
    """Fewest insertions, deletions and replacements that turn `a` into `b` (Levenshtein).

    Bits of two integers hold where a column of the table rises and falls (Myers 1999,
    doi:10.1145/316542.316550; the form of Hyyrö 2003), so a row costs a few operations.
    """
    if not a:
        return len(b)
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    full, last = (1 << len(a)) - 1, 1 << (len(a) - 1)
    rises, falls, distance = full, 0, len(a)
    for word in b:
        match = places.get(word, 0)
        down = (((match & rises) + rises) ^ rises) | match | falls
        right = falls | ~(down | rises) & full
        left = rises & down
        distance += bool(right & last) - bool(left & last)
        right, left = (right << 1 | 1) & full, (left << 1) & full
        rises, falls = left | ~(down | right) & full, right & down
    return distance


def edit_similarity(output: str, reference: str) -> float:
    """1 - edits / length of the longer text, in words split at white space."""
    a, b = output.split(), reference.split()
    return 1.0 - edits(a, b) / max(len(a), len(b), 1)


def length_ratio(output: str, reference: str) -> float:
    """Characters of the output to those of the reference; 1 is the same length."""
    return len(output.strip()) / max(len(reference.strip()), 1)


def _grade(output: str, reference: str) -> Mapping[str, float]:
    return {
        "chrf": chrf(output, reference),
        "rouge_l": rouge_l(output, reference),
        "edit_similarity": edit_similarity(output, reference),
        "length_ratio": length_ratio(output, reference),
        "exact": same(output, reference),
    }


TEXT = Grader(
    "text", ("chrf", "rouge_l", "edit_similarity", "length_ratio", "exact"), "chrf", _grade
)

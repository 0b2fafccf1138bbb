"""The measures of a text_similarity grader, each from two texts to a number in [0, 1].

Words are runs of letters and digits of any script, upper and lower case alike; fuzzy_match compares
characters as they are and bleu splits as sacrebleu does (13a).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from sacrebleu.metrics.bleu import BLEU

LONGEST = 100_000
"""Characters of a text that is compared."""

_WORD = re.compile(r"\w+")
_BLEU = BLEU(effective_order=True)
_GLEU_ORDER = 4


def bleu(output: str, reference: str) -> float:
    """BLEU of one sentence (Papineni et al. 2002), orders that are too long for it left out."""
    return min(1.0, _BLEU.sentence_score(output, [reference]).score / 100)


def gleu(output: str, reference: str) -> float:
    """The smaller of precision and recall of all n-grams up to 4 (Wu et al. 2016, 1609.08144)."""
    a, b = _words(output), _words(reference)
    orders = range(1, _GLEU_ORDER + 1)
    common = sum(_grams(a, n, b) for n in orders)
    most = max(sum(max(len(words) - n + 1, 0) for n in orders) for words in (a, b))
    return common / most if most else 0.0


def meteor(output: str, reference: str) -> float:
    """METEOR with exact matches of words only: no stems and no synonyms.

    Banerjee and Lavie 2005 (W05-0909): 10PR / (R + 9P), less the share 0.5 (chunks / matches)^3. A
    word takes the place behind the match before it if it can, else the first free one.
    """
    a, b = _words(output), _words(reference)
    places: dict[str, list[int]] = {}
    for i, word in enumerate(b):
        places.setdefault(word, []).append(i)
    free = {word: dict.fromkeys(spots) for word, spots in places.items()}
    matches = chunks = 0
    last = -2
    for word in a:
        spots = free.get(word)
        if not spots:
            last = -2
            continue
        spot = last + 1 if last + 1 in spots else next(iter(spots))
        del spots[spot]
        matches, chunks, last = matches + 1, chunks + (spot != last + 1), spot
    if not matches:
        return 0.0
    precision, recall = matches / len(a), matches / len(b)
    mean = 10 * precision * recall / (recall + 9 * precision)
    return mean * (1 - 0.5 * (chunks / matches) ** 3)


def rouge(n: int) -> Callable[[str, str], float]:
    """ROUGE-N: F1 of n-grams of words (Lin 2004, W04-1013)."""

    def score(output: str, reference: str) -> float:
        a, b = _words(output), _words(reference)
        total = max(len(a) - n + 1, 0) + max(len(b) - n + 1, 0)
        return 2 * _grams(a, n, b) / total if total else 0.0

    return score


def rouge_l(output: str, reference: str) -> float:
    """ROUGE-L: F1 of the longest common subsequence of words (Lin 2004, W04-1013)."""
    return _in_order(_words(output), _words(reference))


def fuzzy_match(output: str, reference: str) -> float:
    """1 - (insertions + deletions) / characters of both texts, the ratio of rapidfuzz."""
    return 1.0 if output == reference else _in_order(output, reference)


def lcs(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, a row of the table in a few operations on bits.

    Hyyrö 2004, "Bit-parallel LCS-length computation revisited".
    """
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    full = (1 << len(a)) - 1
    row = full
    for word in b:
        match = row & places.get(word, 0)
        row = ((row + match) | (row - match)) & full
    return len(a) - row.bit_count()


def _in_order(a: Sequence[str], b: Sequence[str]) -> float:
    return 2 * lcs(a, b) / (len(a) + len(b)) if a or b else 0.0


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _grams(a: Sequence[str], n: int, b: Sequence[str]) -> int:
    """How many n-grams the two have in common, each as often as both have it."""
    first, second = (
        Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1)) for words in (a, b)
    )
    return (first & second).total()


MEASURES: Mapping[str, Callable[[str, str], float]] = {
    "fuzzy_match": fuzzy_match,
    "bleu": bleu,
    "gleu": gleu,
    "meteor": meteor,
    **{f"rouge_{n}": rouge(n) for n in range(1, 6)},
    "rouge_l": rouge_l,
}
"""Every measure of (output, reference) but cosine, which needs embeddings."""

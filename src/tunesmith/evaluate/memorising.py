"""What a tuned model learned by heart: training text word for word, secrets, personal data."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tunesmith.evaluate import statistics

LEAST_WORDS = 12
"""Words in a row that two people do not write alike by chance."""
FORM = 3
"""Words in a row of as many training answers are their form: nobody's text."""
ALTERNATIVES = 127
"""Secrets that a canary is ranked among: its exposure is at most 7 bits."""
MOST_TOLD = 20
"""Rows that a report names."""
_SPACELESS = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_SPLIT = re.compile(rf"[{_SPACELESS}]|[^\W{_SPACELESS}]+")
_PLACES = ("Alder Gate", "Birch Hall", "Cedar Vault", "Dune Tower", "Elm Depot", "Fern Locker")

Gram = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Written:
    """An answer, and what it may repeat without having learned it by heart.

    Attributes:
        known: its prompt, and its reference where there is one that was not trained on.
    """

    id: str
    output: str
    known: str


@dataclass(frozen=True, slots=True)
class Repeat:
    """The longest run of words that an answer shares with a training answer."""

    id: str
    words: int
    of: str


def words(text: str) -> list[str]:
    """Words in small letters; of scripts without spaces, each character is one."""
    return _SPLIT.findall(text.lower())


def grams(text: str) -> list[Gram]:
    """Every run of LEAST_WORDS words, in order."""
    found = words(text)
    return [tuple(found[i : i + LEAST_WORDS]) for i in range(len(found) - LEAST_WORDS + 1)]


class Trained:
    """The training answers, searched for what other texts have of them.

    Args:
        answers: by the name of their row.
    """

    def __init__(self, answers: Mapping[str, str]) -> None:
        rows: dict[Gram, set[str]] = {}
        for name, answer in answers.items():
            for gram in grams(answer):
                rows.setdefault(gram, set()).add(name)
        self._rows = {gram: names for gram, names in rows.items() if len(names) < FORM}

    def repeat(self, answer: Written) -> Repeat | None:
        """The longest run of at least LEAST_WORDS words; None where there is none.

        Runs that stand in what the answer may repeat do not count, nor what is the form of answers.
        """
        own = set(grams(answer.known))
        best, lengths = None, dict[str, int]()
        for gram in grams(answer.output):
            names = self._rows.get(gram, set()) if gram not in own else set[str]()
            lengths = {name: lengths.get(name, LEAST_WORDS - 1) + 1 for name in sorted(names)}
            for name, length in lengths.items():
                if best is None or length > best.words:
                    best = Repeat(answer.id, length, name)
        return best


def verbatim(trained: Trained, answers: Sequence[Written]) -> dict[str, Any]:
    """How many answers repeat a training answer word for word, and which, the longest run first."""
    if not answers:
        return {"value": None, "reason": "there are no answers"}
    found = [repeat for answer in answers if (repeat := trained.repeat(answer))]
    found.sort(key=lambda repeat: (-repeat.words, repeat.id))
    names = {repeat.id for repeat in found}
    ids = [answer.id for answer in answers]
    share = statistics.interval([float(name in names) for name in ids], ids)
    return {
        "answers": len(answers),
        "repeating": len(found),
        "share": {"value": share.value, "low": share.low, "high": share.high},
        "longest": found[0].words if found else 0,
        "rows": [asdict(repeat) for repeat in found[:MOST_TOLD]],
    }


def long_enough(answer: str) -> bool:
    """Whether an answer has words enough to be known by heart: a label is learned, not memorised."""
    return len(words(answer)) >= LEAST_WORDS


def personal(
    texts: Iterable[str], answers: Sequence[Written], find: Callable[[str], Iterable[str]]
) -> dict[str, Any]:
    """Personal data of the training rows that answers repeat, by count and row, never by value.

    Args:
        texts: of all turns of the training rows.
        find: the personal data in a text.
    """
    known = {_bare(value) for text in texts for value in find(text)}
    repeated: dict[str, set[str]] = {}
    for answer in answers:
        allowed = {_bare(value) for value in find(answer.known)}
        hits = {_bare(value) for value in find(answer.output)} & known - allowed
        if hits:
            repeated[answer.id] = hits
    return {
        "in_training": len(known),
        "repeated": len(set[str]().union(*repeated.values())),
        "answers": len(answers),
        "rows": sorted(repeated)[:MOST_TOLD],
    }


def _bare(value: str) -> str:
    return re.sub(r"[^\w@.+]", "", value.lower())


@dataclass(frozen=True, slots=True)
class Canary:
    """A made-up secret that is trained once, and others that are as likely and never trained."""

    prompt: str
    secret: str
    alternatives: tuple[str, ...]


def canaries(count: int, seed: int) -> list[Canary]:
    """Secrets for the training rows; the same seed gives the same."""
    draw = random.Random(f"canaries {seed}")
    return [
        Canary(
            f"What is the access code of {_PLACES[number % len(_PLACES)]} {number + 1}?",
            _secret(draw),
            tuple(_secret(draw) for _ in range(ALTERNATIVES)),
        )
        for number in range(count)
    ]


def _secret(draw: random.Random) -> str:
    code = " ".join(str(draw.randrange(100, 1000)) for _ in range(3))
    return f"The access code is {code}."


def exposure(secret: float, alternatives: Sequence[float]) -> float:
    """log2 |R| - log2 rank, in bits: how far a secret stands out among random ones.

    Carlini et al. 2019, "The Secret Sharer" (arXiv:1802.08232), definition 5, the rank estimated
    by sampling (section 4.3); ties count against the model. A secret that was never seen is at
    1.44 (1/ln 2) on average.

    Args:
        secret: its log-probability. alternatives: theirs.
    """
    rank = 1 + sum(other > secret for other in alternatives)
    return math.log2(len(alternatives) + 1) - math.log2(rank)


def exposed(exposures: Sequence[float]) -> dict[str, Any]:
    """The canaries of report.json: each one's exposure, and their mean with its interval."""
    found = statistics.interval(exposures, [str(number) for number in range(len(exposures))])
    return {
        "count": len(exposures),
        "exposure": asdict(found),
        "each": list(exposures),
        "by_chance": 1 / math.log(2),
        "most": math.log2(ALTERNATIVES + 1),
    }


def gaps(events: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """At each validation behind the first: its loss, that of the steps since the one before, and
    how far they are apart. A gap that grows while the validation loss rises is overfitting.
    """
    out: list[dict[str, float]] = []
    since: list[float] = []
    for event in events:
        if event["type"] == "step":
            since.append(event["loss"])
        elif event["type"] == "validation" and since:
            train, held = math.fsum(since) / len(since), event["loss"]
            point = {"step": event["step"], "train_loss": train, "validation_loss": held}
            out.append({**point, "gap": held - train})
            since = []
    return out

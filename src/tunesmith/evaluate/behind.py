"""From a wrong answer to the nearest training rows behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tunesmith.chat import answer_text
from tunesmith.data.examples import Conversation
from tunesmith.data.likeness import Vectors, nearest
from tunesmith.evaluate.evaluation import Sample

WORST = 20
ROWS = 3
SAME = 0.95
"""A cosine of answers from which a row is said to carry the given one."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A training row near a wrong answer; `carries`: it has the answer that was given."""

    row: str
    cosine: float
    answer: str
    carries: bool


@dataclass(frozen=True, slots=True)
class Pairs:
    """Vectors of training rows and, in the same space, of wrong answers: prompts and answers."""

    train_prompts: Vectors
    train_answers: Vectors
    prompts: Vectors
    outputs: Vectors


def wrong(samples: Sequence[Sample], primary: str, most: int = WORST) -> list[Sample]:
    """The worst answers, worst first: those with score 0 where scores are 0 or 1, otherwise those in
    the lowest quarter of the range.
    """
    scored = [sample for sample in samples if primary in sample.scores]
    values = [sample.scores[primary] for sample in scored]
    if not values:
        return []
    binary = set(values) <= {0.0, 1.0}
    cut = 0.0 if binary else min(values) + (max(values) - min(values)) / 4
    low = [sample for sample in scored if sample.scores[primary] <= cut]
    return sorted(low, key=lambda sample: (sample.scores[primary], sample.id))[:most]


def behind(
    samples: Sequence[Sample], train: Sequence[Conversation], pairs: Pairs
) -> list[dict[str, Any]]:
    """For each wrong answer the nearest training rows, by what is asked and by what was answered.

    Of rows whose answers are equally near, those that ask the most alike come first.
    """
    said = [answer_text(row.answer) for row in train]
    where = [f"{row.source.file}:{row.source.line}" for row in train]
    asked = pairs.prompts @ pairs.train_prompts.T
    answered = pairs.outputs @ pairs.train_answers.T
    by_prompt, _ = nearest(pairs.prompts, pairs.train_prompts, ROWS)
    out: list[dict[str, Any]] = []
    for index, sample in enumerate(samples):
        given = sample.output.strip()

        def near(
            place: int, likeness: Vectors, index: int = index, given: str = given
        ) -> Neighbour:
            same = bool(given) and (
                said[place].strip() == given or float(answered[index, place]) >= SAME
            )
            cosine = round(float(likeness[index, place]), 3)
            return Neighbour(where[place], cosine, said[place], same)

        # Rounded, so that answers that are the same in writing tie.
        order = sorted(
            range(len(train)),
            key=lambda i: (-round(float(answered[index, i]), 3), -asked[index, i]),
        )
        prompts = [near(int(place), asked) for place in by_prompt[index]]
        answers = [near(place, answered) for place in order[:ROWS]]
        out.append(
            {
                **{"id": sample.id, "prompt": sample.prompt, "reference": sample.reference},
                **{"output": sample.output, "sentence": sentence(prompts, answers)},
                "by_prompt": [asdict(row) for row in prompts],
                "by_answer": [asdict(row) for row in answers],
            }
        )
    return out


def sentence(prompts: Sequence[Neighbour], answers: Sequence[Neighbour]) -> str:
    """What the neighbours say of the answer."""
    asking = [row.row for row in prompts if row.carries]
    if asking:
        return f"answered as {_listed(asking)} {'does' if len(asking) == 1 else 'do'}, asked alike"
    carrying = [row.row for row in answers if row.carries]
    if carrying:
        return f"answered as {_listed(carrying)}, where other things are asked"
    return "no training row answers so"


def _listed(rows: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(rows[:-1]), rows[-1]]))

"""People rank answers blind: which row comes next, in which order, and what the ratings come to.

A rating is one line of ratings.jsonl: {"at", "rater", "id", "arms", "choice"}, where `arms` are the
arms in the order in which they were shown and `choice` is the number of the best one from 1, "tie"
or "skip". {"undo": true} instead of a choice takes the rater's last rating of the row back.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from tunesmith.evaluate.agreement import krippendorff, win_rate

Rating = Mapping[str, Any]
SKIP, TIE = "skip", "tie"


@dataclass(frozen=True, slots=True)
class Shown:
    """A row with its answers as they are shown; `arms` is not.

    Attributes:
        arms: the arm of each answer, in the order shown.
    """

    id: str
    prompt: str
    arms: tuple[str, ...]
    answers: tuple[str, ...]


def in_force(ratings: Iterable[Rating]) -> dict[str, dict[str, Rating]]:
    """{rater: {row: rating}}: the last word on each row, in the order in which they were given."""
    found: dict[str, dict[str, Rating]] = {}
    for rating in ratings:
        rated = found.setdefault(str(rating["rater"]), {})
        rated.pop(str(rating["id"]), None)
        if not rating.get("undo"):
            rated[str(rating["id"])] = rating
    return found


def to_rate(
    samples: Mapping[str, Sequence[Mapping[str, Any]]], arms: Sequence[str], rater: str, seed: str
) -> list[Shown]:
    """The rows that a rater is shown, in an order of the rater's own.

    Rows that all arms answered, and not all with the same text. Which answer stands first is drawn
    for each row and rater, so that no place and no habit favours an arm.

    Args:
        samples: per arm, the rows of samples/ARM.jsonl.
    """
    by_arm = [{str(row["id"]): row for row in samples[arm]} for arm in arms]
    ids = [key for key in by_arm[0] if all(key in rows for rows in by_arm)]
    ids = [key for key in ids if len({str(rows[key]["output"]).strip() for rows in by_arm}) > 1]
    shown: list[Shown] = []
    for key in ids:
        order = list(range(len(arms)))
        random.Random(f"{seed}\0{rater}\0{key}").shuffle(order)
        shown.append(
            Shown(
                key,
                str(by_arm[0][key]["prompt"]),
                tuple(arms[i] for i in order),
                tuple(str(by_arm[i][key]["output"]) for i in order),
            )
        )
    # One order for all raters: whoever ends early has rated what others have rated, too.
    return sorted(shown, key=lambda item: hashlib.sha256(f"{seed}\0{item.id}".encode()).digest())


def preferred(rating: Rating) -> str | None:
    """The arm that a rating prefers, "tie", or None for a row that was skipped."""
    choice = str(rating["choice"])
    if choice == SKIP:
        return None
    return TIE if choice == TIE else str(rating["arms"][int(choice) - 1])


def summary(
    ratings: Iterable[Rating],
    clusters: Mapping[str, str],
    judged: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The part `people` of report.json.

    `pairs` has the win rate of each pair of arms over all ratings, a tie being half a win, with the
    ratings of one row kept together; of more than two answers shown, the best one has won against
    each other, and the rest are not compared. `agreement` is Krippendorff's alpha between the
    raters; `with_judge` that between their majority and the judge.

    Args:
        clusters: {row: cluster}.
        judged: {row: the arm that the judge prefers, or "tie"}.
    """
    given = in_force(ratings)
    said = {
        rater: {row: best for row, one in rated.items() if (best := preferred(one)) is not None}
        for rater, rated in given.items()
    }
    said = {rater: choices for rater, choices in said.items() if choices}
    alpha = krippendorff(list(said.values()), clusters)
    common = majority(said)
    beside = krippendorff([common, judged], clusters) if judged else None
    lacking = "no row has two ratings" if len(said) < 2 else "all ratings are the same"
    no_judge = "there was no judge" if not judged else "no row that was rated was judged"
    return {
        "raters": {rater: len(choices) for rater, choices in said.items()},
        "skipped": sum(
            preferred(one) is None for rated in given.values() for one in rated.values()
        ),
        "pairs": _pairs(given, clusters),
        "agreement": asdict(alpha) if alpha else {"value": None, "reason": lacking},
        "with_judge": asdict(beside) if beside else {"value": None, "reason": no_judge},
    }


def majority(said: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """What most raters prefer for each row; a tie where no arm has more than another."""
    found: dict[str, str] = {}
    for row in sorted({row for choices in said.values() for row in choices}):
        votes = [choices[row] for choices in said.values() if row in choices]
        ranked = sorted(set(votes), key=votes.count, reverse=True)
        clear = len(ranked) == 1 or votes.count(ranked[0]) > votes.count(ranked[1])
        found[row] = ranked[0] if clear else TIE
    return found


def _pairs(
    given: Mapping[str, Mapping[str, Rating]], clusters: Mapping[str, str]
) -> list[dict[str, Any]]:
    rated = [(row, one) for ratings in given.values() for row, one in ratings.items()]
    arms = sorted({str(arm) for _, one in rated for arm in one["arms"]}, reverse=True)
    found: list[dict[str, Any]] = []
    for a, b in combinations(arms, 2):
        outcomes = [
            (0.5 if best == TIE else float(best == a), clusters[row])
            for row, one in rated
            if {a, b} <= set(one["arms"]) and (best := preferred(one)) in (a, b, TIE)
        ]
        rate = win_rate([value for value, _ in outcomes], [cluster for _, cluster in outcomes])
        wins = sum(value == 1.0 for value, _ in outcomes)
        ties = sum(value == 0.5 for value, _ in outcomes)
        counted = {"wins": wins, "ties": ties, "losses": len(outcomes) - wins - ties}
        missing = {"value": None, "reason": "nothing was rated"}
        found.append({"a": a, "b": b, **counted, "win_rate": asdict(rate) if rate else missing})
    return found

"""People's blind ratings of a finished run: kept in its folder, told in its report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tunesmith.errors import UsageError
from tunesmith.evaluate import ranking
from tunesmith.evaluate.ranking import Rating, Shown
from tunesmith.models import fetch
from tunesmith.pipeline.decide import JUDGEMENTS
from tunesmith.pipeline.folder import RunFolder

RATINGS = "ratings.jsonl"


@dataclass(frozen=True, slots=True)
class Desk:
    """One rater at work on one run.

    Attributes:
        rows: all that the rater is shown, in order.
    """

    folder: RunFolder
    rater: str
    rows: tuple[Shown, ...]

    def rated(self) -> dict[str, Rating]:
        """The rater's ratings in force, by row, in the order in which they were given."""
        ids = {row.id: set(row.arms) for row in self.rows}
        mine = [r for r in ratings(self.folder) if set(r["arms"]) == ids.get(str(r["id"]))]
        return ranking.in_force(mine).get(self.rater, {})

    def rate(self, row: Shown, choice: str) -> None:
        """Keep a rating: the number of the best answer from 1, "tie" or "skip"."""
        self._append(row, {"choice": choice})

    def undo(self) -> Shown | None:
        """Take the rater's last rating back; the row that it was of."""
        last = next(reversed(self.rated()), None)
        row = next((row for row in self.rows if row.id == last), None)
        if row is not None:
            self._append(row, {"undo": True})
        return row

    def _append(self, row: Shown, said: Mapping[str, Any]) -> None:
        at = datetime.now(UTC).isoformat(timespec="seconds")
        line = {"at": at, "rater": self.rater, "id": row.id, "arms": list(row.arms), **said}
        with (self.folder.path / RATINGS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def find(name: str) -> RunFolder:
    """A finished run, by its folder or its id.

    Raises:
        UsageError: there is none.
    """
    path = Path(name) if Path(name).is_dir() else fetch.home() / "runs" / name
    if not RunFolder(path).finished:
        raise UsageError(
            f"there is no finished run {name}",
            expected=f"a folder with report.json, or an id in {fetch.home() / 'runs'}",
        )
    return RunFolder(path)


def open_desk(folder: RunFolder, arms: Sequence[str], rater: str) -> Desk:
    """What a rater is shown of a run.

    Args:
        arms: two or more arms of the run.

    Raises:
        UsageError: an arm is not in the run, or there are fewer than two.
    """
    known = [arm["name"] for arm in folder.read_json("report.json")["arms"]]
    wrong = [arm for arm in arms if arm not in known]
    if wrong or len(set(arms)) < 2 or len(arms) > 9:
        raise UsageError(
            f"the arms {', '.join(arms)} cannot be ranked",
            expected=f"two or more of {', '.join(known)}",
            remedy="Give each with --arm.",
        )
    samples = {arm: folder.read_lines(f"samples/{arm}.jsonl") for arm in arms}
    return Desk(folder, rater, tuple(ranking.to_rate(samples, tuple(arms), rater, folder.id)))


def ratings(folder: RunFolder) -> list[Rating]:
    """All lines of the ratings; none where nobody has rated."""
    exists = (folder.path / RATINGS).is_file()
    return list(folder.read_lines(RATINGS)) if exists else []


def tell(folder: RunFolder) -> list[dict[str, Any]]:
    """The part `people` of the run's report.json, written into it: one entry for each set of arms."""
    report = folder.read_json("report.json")
    groups: dict[tuple[str, ...], list[Rating]] = {}
    for rating in ratings(folder):
        groups.setdefault(tuple(sorted(rating["arms"])), []).append(rating)
    people = [
        {"arms": list(arms), **ranking.summary(some, _prompts(folder, arms), _judged(folder, arms))}
        for arms, some in groups.items()
    ]
    if people:
        folder.write_json("report.json", {**report, "people": people})
    return people


def _prompts(folder: RunFolder, arms: Sequence[str]) -> dict[str, str]:
    return {row["id"]: row["prompt"] for row in folder.read_lines(f"samples/{arms[0]}.jsonl")}


def _judged(folder: RunFolder, arms: Sequence[str]) -> dict[str, str]:
    """What the judge prefers where it judged these two arms."""
    if not (folder.path / JUDGEMENTS).is_file():
        return {}
    return {
        line["id"]: ranking.TIE if line["outcome"] == "tie" else line[line["outcome"]]
        for line in folder.read_lines(JUDGEMENTS)
        if {line["a"], line["b"]} == set(arms) and line["outcome"] != "invalid"
    }

"""`check --select`: the best and most diverse rows, written in the form they came with."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.checks.selection import Selection, select
from tunesmith.data.examples import Source
from tunesmith.pipeline.prepare import Prepared
from tunesmith.pipeline.quality import Looked, Seen


def choose_rows(seen: Seen, found: Looked, count: int, seed: int) -> Selection:
    """The rows to keep; every row that something speaks against is left while there are others."""
    # By name: checks that look at a sample count their own places.
    against = {item.row: f"{item.check}: {item.why}" for item in found.suspects}
    named = [(place, against.get(row.where)) for place, row in enumerate(seen.rows)]
    suspects = {place: why for place, why in named if why is not None}
    return select(
        seen.prompts,
        count,
        where=[row.where for row in seen.rows],
        labels=seen.labels,
        suspects=suspects,
        seed=seed,
    )


def write(prepared: Prepared, seen: Seen, selection: Selection, file: Path) -> dict[str, Any]:
    """FILE with the kept rows as they were found and their `source`; FILE.left.jsonl with the others,
    each with its reason. Returns how many of each.
    """
    sources = [row.example.source for row in seen.rows]
    kept = {sources[place] for place in selection.kept}
    reasons = {sources[place]: why for place, why in selection.left.items()}
    left = file.with_name(f"{file.stem}.left.jsonl")
    counts: Counter[str] = Counter()
    with (
        file.open("w", encoding="utf-8", newline="\n") as out,
        left.open("w", encoding="utf-8", newline="\n") as away,
    ):
        for source, row in prepared.dataset.originals():
            if source in kept:
                counts["kept"] += 1
                _line(out, {"source": _place(source), **row})
            else:
                counts["left"] += 1
                _line(away, {**_place(source), "reason": reasons[source], "row": row})
        for rejected in (*prepared.dataset.rejected(), *prepared.dataset.duplicate_rows()):
            counts["refused"] += 1
            place = _place(rejected.source)
            _line(away, {**place, "reason": rejected.reason, "row": rejected.row})
    labels = seen.labels
    said: dict[str, Any] = {name: counts[name] for name in ("kept", "left", "refused")}
    if labels is not None:
        said["labels"] = len({labels[place] for place in selection.kept})
        said["labels_of"] = len(set(labels))
    return {**said, "file": str(file), "reasons": str(left)}


def sentence(told: Mapping[str, Any]) -> str:
    """What was written, in words."""
    labels = f" with {told['labels']:,} of {told['labels_of']:,} labels" if "labels" in told else ""
    return (
        f"kept {told['kept']:,} rows{labels} in {told['file']}; left {told['left']:,}, and "
        f"{told['refused']:,} refused or copies; why stands in {told['reasons']}"
    )


def _place(source: Source) -> dict[str, Any]:
    return {"file": source.file, "line": source.line}


def _line(out: Any, value: Mapping[str, Any]) -> None:
    out.write(json.dumps(value, ensure_ascii=False, default=str) + "\n")

"""A run's folder: open formats, written whole or not at all."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

Event = dict[str, Any]
TRAINING = frozenset({"step", "validation", "checkpoint"})
"""Events of the trainer that carry the step they belong to."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The files of one run, as the contract names them."""

    path: Path

    @property
    def id(self) -> str:
        """The first digits of the hash of recipe, rows and weights, wherever the folder is."""
        return str(self.read_json("environment.json")["key"])[:12]

    @property
    def data(self) -> Path:
        """train.jsonl, validation.jsonl, test.jsonl, rejected.jsonl."""
        return self.path / "data"

    @property
    def adapter(self) -> Path:
        """The trained adapter in PEFT's format."""
        return self.path / "adapter"

    @property
    def model(self) -> Path:
        """The trained model, where all weights were trained."""
        return self.path / "model"

    @property
    def tuned(self) -> Path | None:
        """What training has left: an adapter or a model."""
        return next((path for path in (self.adapter, self.model) if path.is_dir()), None)

    @property
    def recipe(self) -> Path:
        """Every setting in force."""
        return self.path / "recipe.yaml"

    @property
    def finished(self) -> bool:
        """Whether the run has ended with a report."""
        return (self.path / "report.json").is_file() and (self.path / "report.html").is_file()

    def emit(self, event: Mapping[str, Any]) -> Event:
        """Append one event with the time; as it was written."""
        self.path.mkdir(parents=True, exist_ok=True)
        said = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), **event}
        with (self.path / "events.jsonl").open("ab+") as file:
            _drop_cut_line(file)
            file.write(json.dumps(said).encode() + b"\n")
        return said

    def events(self) -> list[Event]:
        """All events; a last line that a kill cut short is left out."""
        path = self.path / "events.jsonl"
        return list(_lines(path)) if path.is_file() else []

    def forget_after(self, step: int) -> None:
        """Drop the trainer's events beyond a checkpoint that training goes on from."""
        kept = [
            event
            for event in self.events()
            if event["type"] not in TRAINING or event["step"] <= step
        ]
        self.write_lines("events.jsonl", kept)

    def write(self, name: str, text: str) -> Path:
        """Write a file beside its place and rename it into it."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = target.with_name(f".{target.name}.partial")
        with scratch.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(target)
        return target

    def write_json(self, name: str, value: object) -> Path:
        """One JSON value, readable by people."""
        return self.write(name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def write_lines(self, name: str, rows: Iterable[Mapping[str, Any]]) -> Path:
        """One JSON object a line."""
        return self.write(name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def read_json(self, name: str) -> Any:
        """The value of a JSON file of this folder."""
        return json.loads((self.path / name).read_text(encoding="utf-8"))

    def read_lines(self, name: str) -> list[dict[str, Any]]:
        """The objects of a JSON-lines file of this folder."""
        return list(_lines(self.path / name))


class Clock:
    """Stages one behind the other: their seconds do not overlap and leave nothing out.

    Args:
        since: when the first stage began, by time.monotonic().
    """

    def __init__(self, folder: RunFolder, since: float) -> None:
        self._folder, self._mark = folder, since

    def started(self, name: str) -> None:
        """A stage begins; what was done since the last one ended belongs to it."""
        self._folder.emit({"type": "stage", "name": name, "state": "started", "seconds": 0.0})

    def done(self, name: str) -> None:
        """A stage ends."""
        now = time.monotonic()
        seconds, self._mark = now - self._mark, now
        self._folder.emit({"type": "stage", "name": name, "state": "done", "seconds": seconds})


def timings(events: Sequence[Event]) -> dict[str, float]:
    """Seconds of each stage that ended, over all attempts."""
    out: dict[str, float] = {}
    for event in events:
        if event["type"] == "stage" and event["state"] == "done":
            out[event["name"]] = out.get(event["name"], 0.0) + event["seconds"]
    return out


def _drop_cut_line(file: BinaryIO) -> None:
    """Remove what a kill or a full disk left of a last line: the next one must not join it."""
    end = file.seek(0, os.SEEK_END)
    whole = end
    while whole:
        file.seek(whole - 1)
        if file.read(1) == b"\n":
            break
        whole -= 1
    if whole < end:
        file.truncate(whole)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)


def unmeasured(reason: str) -> dict[str, Any]:
    """A part of report.json that was not measured: null with its reason, never zero."""
    return {"value": None, "reason": reason}

"""The result file of a fine-tuning job, as OpenAI's API gives it out."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable

from tunesmith.pipeline.folder import Event

COLUMNS = ("step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy")


def result_csv(events: Iterable[Event]) -> str:
    """One row a step, in their order; what was not measured at a step is empty.

    Args:
        events: those of a job; of one that is there twice the last one counts.
    """
    rows: dict[int, dict[str, int | float]] = {}
    held: dict[int, dict[str, int | float]] = {}
    for event in events:
        if event["type"] == "step":
            numbers = {"train_loss": event["loss"], "train_accuracy": event["accuracy"]}
            rows[event["step"]] = {name: round(value, 5) for name, value in numbers.items()}
        elif event["type"] == "validation":
            numbers = (event["loss"], event["metrics"]["accuracy"])
            held[event["step"]] = {
                name: round(value, 5) for name, value in zip(COLUMNS[3:], numbers, strict=True)
            }
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({"step": step, **rows[step], **held.get(step, {})} for step in sorted(rows))
    return out.getvalue()

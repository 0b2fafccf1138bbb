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
    trained: dict[int, list[float]] = {}
    held: dict[int, list[float]] = {}
    for event in events:
        if event["type"] == "step":
            trained[event["step"]] = [round(event[name], 5) for name in ("loss", "accuracy")]
        elif event["type"] == "validation":
            numbers = (event["loss"], event["metrics"]["accuracy"])
            held[event["step"]] = [round(value, 5) for value in numbers]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([step, *trained[step], *held.get(step, ("", ""))] for step in sorted(trained))
    return out.getvalue()

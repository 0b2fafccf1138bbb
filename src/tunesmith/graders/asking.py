"""What a model that grades is asked for, and how its answer is read.

The grader's own messages go out filled in. Behind them stands a sentence that asks for JSON of the
form {"result": ...}, and `response_format` carries its schema for servers that hold a model to it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tunesmith.graders.spec import LabelModel, ScoreModel


def request(
    grader: ScoreModel | LabelModel, variables: Mapping[str, Any]
) -> tuple[list[dict[str, str]], dict[str, Any]]:
    """Messages, and arguments of chat completions.

    Raises:
        MissingVariable, NotJson, TooLong: a message cannot be filled.
    """
    messages = [
        {"role": turn.role, "content": turn.content.fill(variables)} for turn in grader.input
    ]
    if messages[-1]["role"] == "user":
        messages[-1]["content"] += f"\n\n{_wish(grader)}"
    else:
        messages.append({"role": "user", "content": _wish(grader)})
    form: dict[str, Any] = {"type": "number"}
    if isinstance(grader, LabelModel):
        form = {"type": "string", "enum": [*grader.labels]}
    schema = {
        "type": "object",
        "properties": {"result": form},
        "required": ["result"],
        "additionalProperties": False,
    }
    wanted = {"name": "grade", "strict": True, "schema": schema}
    arguments = grader.sampling_params.arguments() if isinstance(grader, ScoreModel) else {}
    return messages, {
        **arguments,
        "response_format": {"type": "json_schema", "json_schema": wanted},
    }


def read(grader: ScoreModel | LabelModel, answer: str) -> float:
    """The reward in an answer, which is {"result": ...} or the bare number or label.

    Raises:
        ValueError: it is neither, or out of the range, or not a label.
    """
    text = answer.strip()
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text
    result: Any = value.get("result") if isinstance(value, dict) else value
    shown = answer[:80]
    if isinstance(grader, LabelModel):
        if result not in grader.labels:
            raise ValueError(f"{grader.model} answered {shown!r}, which is none of the labels")
        return float(result in grader.passing_labels)
    low, high = grader.range
    number = isinstance(result, int | float) and not isinstance(result, bool)
    if not (number and low <= result <= high):
        raise ValueError(
            f"{grader.model} answered {shown!r}, not a number from {low:g} to {high:g}"
        )
    return float(result)


def _wish(grader: ScoreModel | LabelModel) -> str:
    if isinstance(grader, LabelModel):
        labels = ", ".join(json.dumps(label, ensure_ascii=False) for label in grader.labels)
        return f'Answer with JSON only: {{"result": LABEL}}, where LABEL is one of {labels}.'
    low, high = grader.range
    return (
        f'Answer with JSON only: {{"result": SCORE}}, where SCORE is a number from {low:g} to'
        f" {high:g}."
    )

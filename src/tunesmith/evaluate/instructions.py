"""Instructions for a task, in words: from what the training answers have in common, or proposed."""

from __future__ import annotations

import json
import re
import statistics
from collections import Counter
from collections.abc import Sequence

from tunesmith.chat import ChatModel, Message, SamplingParams, answer_text
from tunesmith.data.examples import Conversation
from tunesmith.graders import structured
from tunesmith.graders.choose import Task

_MOST_VALUES = 12
_MOST_KEYS = 40
_THINKING_ROOM = 200
_LONGEST_SHOWN = 600
_LONGEST_PROPOSAL = 2000
_PROPOSER = SamplingParams(max_tokens=4000)
_FORM = {
    "labels": "Answer with a label alone, spelled exactly as in the examples.",
    "json": "Answer with one JSON value alone, in exactly the form of the examples.",
    "calls": "Call the functions that the request needs, with arguments taken from it, and write "
    "nothing else. Where none fits, answer briefly.",
}
_ASK = """\
A small language model is to answer as the examples below do. Write {count} different instructions \
for it, each of which could stand as its system message: say what the task is, what to look at, what \
decides between cases that are easily confused, and in what form to answer. Rely on nothing that the \
examples do not show, and name no single example.

{shown}

Give the {count} instructions as one JSON array of strings and nothing else."""


def written(train: Sequence[Conversation], task: Task, *, max_tokens: int) -> dict[str, str]:
    """Instructions by name, the most promising first, as the training answers suggest them.

    Args:
        max_tokens: of an answer; where it leaves room for thoughts, one asks for them.
    """
    plain, form = instruction(train, task), _FORM.get(task)
    out = {"instruction": plain} if plain is not None else {}
    answers = [answer_text(row.answer).strip() for row in train]
    if task == "labels":
        labels = "\n".join(f"- {label}" for label in sorted(set(answers)))
        out["careful instruction"] = (
            f"Read the {_what(train)} and decide which one of the labels below fits it best. Weigh "
            "labels that are alike against each other before you choose one. Write that label "
            f"exactly as it stands here, without the dash, and nothing before or after it.\n{labels}"
        )
    if task == "json" and (schema := _schema(answers)) is not None:
        said = json.dumps(schema, ensure_ascii=False)
        out["schema"] = f"Answer with one JSON object that this JSON Schema allows, alone:\n{said}"
    if form is None:
        words = statistics.median(len(answer.split()) for answer in answers)
        lines = "several lines" if _share("\n", answers) > 0.5 else "one paragraph"
        form = (
            f"Answer the {_what(train)} in about {max(1, round(words))} words, in {lines}. Write "
            "the answer alone, with nothing before or after it."
        )
        if max_tokens >= _THINKING_ROOM:
            out["step by step"] = f"Think step by step before you come to the answer. {form}"
    return {**out, "form": form} if task in ("labels", "json") else {"form": form, **out}


async def proposed(model: ChatModel, shown: Sequence[Conversation], count: int) -> tuple[str, ...]:
    """At most `count` instructions that a model proposes from training rows.

    Raises:
        EngineError: whatever the model raised.
    """
    examples = "\n\n".join(
        f"### Example {number}\n{_conversation(row)}" for number, row in enumerate(shown, 1)
    )
    message = Message("user", _ASK.format(count=count, shown=examples))
    answer = await model.complete([message], _PROPOSER)
    said = [text for text in _texts(answer.text) if len(text) <= _LONGEST_PROPOSAL]
    return tuple(dict.fromkeys(said))[:count]


def _texts(answer: str) -> list[str]:
    """The strings of the first JSON array in an answer, or of the objects in it; else its items."""
    decoder = json.JSONDecoder()
    for found in re.finditer(r"\[", answer):
        try:
            values = decoder.raw_decode(answer[found.start() :])[0]
        except (ValueError, RecursionError):
            continue
        inner = [list(item.values()) if isinstance(item, dict) else [item] for item in values]
        texts = [max(filter(_is_text, item), key=len, default="") for item in inner]
        if any(texts):
            return [text.strip() for text in texts if text.strip()]
    numbered = re.split(r"^\s*(?:\d+[.)]|[-*])\s+", answer, flags=re.MULTILINE)[1:]
    return [text.strip() for text in numbered if text.strip()]


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _conversation(row: Conversation) -> str:
    turns = [(message.role, answer_text(message)) for message in row.prompt]
    turns.append(("answer", answer_text(row.answer)))
    return "\n".join(f"{role}: {text[:_LONGEST_SHOWN]}" for role, text in turns)


def _what(train: Sequence[Conversation]) -> str:
    """What rows end with: a question, or a message."""
    asked = [answer_text(row.prompt[-1]).rstrip() for row in train if row.prompt]
    return "question" if _share("?", [text[-1:] for text in asked]) > 0.5 else "message"


def _share(sign: str, texts: Sequence[str]) -> float:
    return sum(sign in text for text in texts) / max(1, len(texts))


def _schema(answers: Sequence[str]) -> dict[str, object] | None:
    """A JSON Schema that all training objects fit; None where they are no objects."""
    values = [structured.load(text) for text in answers]
    objects = [value for value in values if isinstance(value, dict)]
    if not objects or len(objects) < len(values):
        return None
    keys = Counter(str(key) for value in objects for key in value)
    properties: dict[str, object] = {}
    for key, _ in keys.most_common(_MOST_KEYS):
        found = [value[key] for value in objects if key in value]
        closed = _closed(found)
        kinds = sorted({_type(value) for value in found})
        properties[key] = (
            {"enum": [json.loads(text) for text in closed]} if closed else {"type": kinds}
        )
    required = [key for key, seen in keys.items() if seen == len(objects) and key in properties]
    return {"type": "object", "properties": properties, "required": required}


def instruction(train: Sequence[Conversation], task: Task) -> str | None:
    """What the training answers have in common, said in words: the labels, or the JSON's fields."""
    answers = [answer_text(row.answer).strip() for row in train]
    if task == "labels":
        labels = "\n".join(sorted(set(answers)))
        return f"Answer with exactly one of these labels and nothing else:\n{labels}"
    if task != "json":
        return None
    values = [structured.load(text) for text in answers]
    objects = [value for value in values if isinstance(value, dict)]
    if 2 * len(objects) < len(values):
        return "Answer with one JSON array and nothing else."
    keys = Counter(str(key) for value in objects for key in value)
    lines = [
        f"- {key}{'' if seen == len(objects) else ' (optional)'}: "
        + _kind([value[key] for value in objects if key in value])
        for key, seen in keys.most_common(_MOST_KEYS)
    ]
    return "\n".join(["Answer with one JSON object and nothing else. Its fields:", *lines])


def _kind(values: Sequence[object]) -> str:
    """`"a" or "b"` where few values recur, else the JSON types, with an object's keys."""
    closed = _closed(values)
    if closed:
        return " or ".join(closed)
    inner = Counter(str(key) for value in values if isinstance(value, dict) for key in value)
    names = sorted({_type(value) for value in values})
    listed = ", ".join(key for key, _ in inner.most_common(_MOST_KEYS))
    return " or ".join(names) + (f" with any of {listed}" if inner else "")


def _closed(values: Sequence[object]) -> list[str]:
    """The values as JSON where few of them recur; else nothing."""
    plain = [json.dumps(value, ensure_ascii=False, sort_keys=True) for value in values]
    scalar = not any(isinstance(value, dict | list) for value in values)
    few = len(set(plain)) <= min(_MOST_VALUES, max(1, len(plain) // 4))
    return sorted(set(plain)) if scalar and few else []


def _type(value: object) -> str:
    kinds = ((bool, "boolean"), (int | float, "number"), (str, "string"), (list, "array"))
    named = next((name for kind, name in kinds if isinstance(value, kind)), "object")
    return "null" if value is None else named

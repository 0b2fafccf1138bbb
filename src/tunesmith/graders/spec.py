"""OpenAI's graders: from their JSON to frozen values, or a refusal that names the field."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    PlainValidator,
    TypeAdapter,
    ValidationError,
    with_config,
)

from tunesmith.errors import GraderError
from tunesmith.graders.formula import Formula, parse_formula
from tunesmith.graders.template import Template, parse_template

MOST_SOURCE = 256 * 1024
"""Bytes of a python grader's source."""

_T = TypeVar("_T")
_FORM = ConfigDict(extra="forbid", strict=True)
_TEXT_PARTS = frozenset({"input_text", "output_text"})
_PART_FIELDS = frozenset({"type", "text", "prompt_cache_breakpoint"})

Metric = Literal[
    "cosine",
    "fuzzy_match",
    "bleu",
    "gleu",
    "meteor",
    "rouge_1",
    "rouge_2",
    "rouge_3",
    "rouge_4",
    "rouge_5",
    "rouge_l",
]
Text = Annotated[Template, PlainValidator(parse_template)]


def _content(value: object) -> Template:
    """The text of a message: a string, a part, or a list of them."""
    parts = cast("list[Any]", value) if isinstance(value, list) else [value]
    return parse_template("".join(map(_part, parts)))


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping) or part.get("type") not in _TEXT_PARTS:
        raise ValueError("should be text, or parts of type input_text or output_text")
    hint = part.get("prompt_cache_breakpoint", {})
    if part.keys() - _PART_FIELDS or hint not in ({}, {"mode": "explicit"}):
        raise ValueError("has a part with fields beside type and text")
    if not isinstance(part.get("text"), str):
        raise ValueError("has a part whose text is not a string")
    return part["text"]


def _source(value: str) -> str:
    if len(value.encode()) >= MOST_SOURCE:
        raise ValueError(f"should be smaller than {MOST_SOURCE // 1024} KiB")
    return value


def _range(value: tuple[float, float]) -> tuple[float, float]:
    if not (math.isfinite(value[0]) and math.isfinite(value[1]) and value[0] < value[1]):
        raise ValueError("should be two numbers, the smaller one first")
    return value


@with_config(_FORM)
@dataclass(frozen=True, slots=True)
class StringCheck:
    """1 or 0: `input` is `reference` (eq), is not (ne), or contains it (like; ilike: any case)."""

    type: Literal["string_check"]
    name: str
    input: Text
    reference: Text
    operation: Literal["eq", "ne", "like", "ilike"]


@with_config(_FORM)
@dataclass(frozen=True, slots=True)
class TextSimilarity:
    """How alike two texts are by one of `similarity.MEASURES`, or the cosine of embeddings."""

    type: Literal["text_similarity"]
    name: str
    input: Text
    reference: Text
    evaluation_metric: Metric


@with_config(_FORM)
@dataclass(frozen=True, slots=True)
class PythonGrader:
    """The number that `grade(sample, item)` of `source` returns.

    Attributes:
        image_tag: taken and without effect: the interpreter is the one tunesmith runs on.
    """

    type: Literal["python"]
    name: str
    source: Annotated[str, AfterValidator(_source)]
    image_tag: str | None = None


@with_config(_FORM)
@dataclass(frozen=True, slots=True)
class Turn:
    """A message to the model that grades."""

    role: Literal["user", "assistant", "system", "developer"]
    content: Annotated[Template, PlainValidator(_content)]
    type: Literal["message"] = "message"


@with_config(_FORM)
@dataclass(frozen=True, slots=True)
class Sampling:
    """How the model that grades samples; None leaves a setting to it."""

    seed: int | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    max_completions_tokens: Annotated[int, Field(ge=1)] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = (
        None
    )

    def arguments(self) -> dict[str, Any]:
        """The settings by the names of chat completions."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        if "max_completions_tokens" in given:
            given["max_completion_tokens"] = given.pop("max_completions_tokens")
        return given


Turns = Annotated[tuple[Turn, ...], Field(min_length=1)]


@with_config(_FORM)
@dataclass(frozen=True, slots=True)
class ScoreModel:
    """The number that a model gives, within `range`."""

    type: Literal["score_model"]
    name: str
    model: str
    input: Turns
    range: Annotated[tuple[float, float], AfterValidator(_range)] = (0.0, 1.0)
    sampling_params: Sampling = Sampling()


@with_config(_FORM)
@dataclass(frozen=True, slots=True)
class LabelModel:
    """1 where the label that a model chooses is one of `passing_labels`, else 0."""

    type: Literal["label_model"]
    name: str
    model: str
    input: Turns
    labels: Annotated[tuple[str, ...], Field(min_length=1)]
    passing_labels: tuple[str, ...]


Single = StringCheck | TextSimilarity | PythonGrader | ScoreModel | LabelModel


@dataclass(frozen=True, slots=True)
class Multi:
    """Several graders by the names that `calculate_output` has for them."""

    type: Literal["multi"]
    name: str
    graders: tuple[tuple[str, Single], ...]
    calculate_output: Formula


OpenAIGrader = Single | Multi


@with_config(_FORM)
@dataclass(frozen=True, slots=True)
class _MultiForm:
    type: Literal["multi"]
    name: str
    graders: Any
    calculate_output: Annotated[Formula, PlainValidator(parse_formula)]


_SINGLE: Mapping[str, TypeAdapter[Single]] = {
    "string_check": TypeAdapter(StringCheck),
    "text_similarity": TypeAdapter(TextSimilarity),
    "python": TypeAdapter(PythonGrader),
    "score_model": TypeAdapter(ScoreModel),
    "label_model": TypeAdapter(LabelModel),
}
_MULTI = TypeAdapter(_MultiForm)


def parse_grader(value: object) -> OpenAIGrader:
    """The grader that a JSON value describes.

    The graders of a multi grader are a map from name to grader, a list of graders, or one of them;
    the last two go by their own names.

    Raises:
        GraderError: it is none; `path` is the field.
    """
    if isinstance(value, Mapping) and cast("Mapping[str, Any]", value).get("type") == "multi":
        return _multi(value)
    return _single(value, "", (*_SINGLE, "multi"))


def _multi(value: object) -> Multi:
    form = _read(_MULTI, value, "")
    graders: list[tuple[str, Single]] = []
    for path, key, inner in _inner(form.graders):
        grader = _single(inner, path, tuple(_SINGLE))
        graders.append((grader.name if key is None else key, grader))
    names = [name for name, _ in graders]
    if not names or len(set(names)) < len(names):
        found = "two graders have the same name" if names else "there are no graders"
        raise GraderError(f"graders: {found}", path="graders", expected="one name for each")
    if unknown := sorted(form.calculate_output.names - set(names)):
        raise GraderError(
            f"calculate_output: {unknown[0]!r} is not one of the graders",
            path="calculate_output",
            expected=f"names among {', '.join(names)}",
        )
    return Multi("multi", form.name, tuple(graders), form.calculate_output)


def _inner(graders: Any) -> Sequence[tuple[str, str | None, object]]:
    """(path, name or None for its own, grader's JSON) of each."""
    if isinstance(graders, list):
        return [(f"graders[{i}]", None, inner) for i, inner in enumerate(graders)]
    if isinstance(graders, Mapping) and not isinstance(graders.get("type"), str):
        return [(f"graders.{name}", str(name), inner) for name, inner in graders.items()]
    return [("graders", None, graders)]


def _single(value: object, path: str, known: Sequence[str]) -> Single:
    kind = cast("Mapping[str, Any]", value).get("type") if isinstance(value, Mapping) else None
    if not isinstance(kind, str) or kind not in _SINGLE:
        where = _join(path, "type") if isinstance(value, Mapping) else path
        found = f"{kind!r} is no type of grader" if isinstance(kind, str) else "the type is missing"
        raise GraderError(
            f"{where or 'grader'}: {found}", path=where, expected=f"one of {', '.join(known)}"
        )
    grader = _read(_SINGLE[kind], value, path)
    if isinstance(grader, LabelModel) and (
        odd := sorted(set(grader.passing_labels) - set(grader.labels))
    ):
        where = _join(path, "passing_labels")
        raise GraderError(
            f"{where}: {odd[0]!r} is not a label", path=where, expected="a subset of labels"
        )
    return grader


def _read(adapter: TypeAdapter[_T], value: object, path: str) -> _T:
    # Read as JSON, where arrays become tuples and nothing else is converted.
    try:
        return adapter.validate_json(json.dumps(value))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    where = path
    for part in first["loc"]:
        where = f"{where}[{part}]" if isinstance(part, int) else _join(where, str(part))
    said = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        said = "is not a field of this grader"
    elif first["type"] == "missing":
        said = "is missing"
    found = first["input"]
    scalar = isinstance(found, int | float | str) and first["type"] != "missing"
    shown = f", found {str(found)[:80]!r}" if scalar else ""
    raise GraderError(f"{where or 'grader'}: {said}{shown}", path=where)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name

"""Running OpenAI's graders over one sample of a model."""

from __future__ import annotations

import asyncio
import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from tunesmith.errors import GraderError, TunesmithError
from tunesmith.graders import asking, similarity
from tunesmith.graders.confined import require_confinement, run_confined
from tunesmith.graders.formula import FormulaError
from tunesmith.graders.spec import (
    LabelModel,
    Multi,
    OpenAIGrader,
    PythonGrader,
    ScoreModel,
    Single,
    StringCheck,
    TextSimilarity,
)
from tunesmith.graders.template import MissingVariable, NotJson, TooLong

Embed = Callable[[Sequence[str]], Awaitable[Sequence[Sequence[float]]]]
"""Texts to their embeddings; raises a TunesmithError where it cannot."""
Chat = Callable[
    [str, Sequence[Mapping[str, Any]], Mapping[str, Any]],
    Awaitable[tuple[str | None, Mapping[str, int]]],
]
"""(model, messages, arguments of chat completions) to the answer, None for a refusal, and its usage
(prompt_tokens, completion_tokens, total_tokens); raises a TunesmithError where it cannot."""

_MOST_DETAILS = 2000


@dataclass(frozen=True, slots=True)
class Services:
    """What graders may call beside themselves.

    Attributes:
        embed: for the metric cosine.
        chat: for score_model and label_model.
        python_graders: the owner lets python graders run here, confined.
    """

    embed: Embed | None = None
    chat: Chat | None = None
    python_graders: bool = False


@dataclass(frozen=True, slots=True)
class Sample:
    """What a model wrote: its text and, as chat completions write them, its tool calls."""

    text: str
    tool_calls: Sequence[Mapping[str, Any]] = ()

    def variables(self) -> dict[str, Any]:
        """The `sample` of templates and of python graders; output_json only where it is JSON."""
        message = {"role": "assistant", "content": self.text, "tool_calls": [*self.tool_calls]}
        variables: dict[str, Any] = {
            "output_text": self.text,
            "output_tools": [*self.tool_calls],
            "choices": [{"index": 0, "message": message}],
        }
        try:
            variables["output_json"] = json.loads(self.text, parse_constant=_refuse)
        except (ValueError, RecursionError):
            return variables
        return variables


@dataclass(frozen=True, slots=True)
class Graded:
    """The result of a grader; its reward is 0 where there is an error.

    Attributes:
        errors: the flags that are set, by OpenAI's names, and their details.
        reasons: a sentence for each error.
        sub_rewards: the rewards of a multi grader's graders, those with an error left out.
        usage: tokens by model that graded, then by kind.
        seconds: wall time.
    """

    reward: float
    errors: Mapping[str, bool | str] = field(default_factory=dict[str, bool | str])
    reasons: tuple[str, ...] = ()
    sub_rewards: Mapping[str, float] = field(default_factory=dict[str, float])
    usage: Mapping[str, Mapping[str, int]] = field(default_factory=dict[str, Mapping[str, int]])
    seconds: float = 0.0


class _Fault(Exception):
    """Why a grader gives no reward."""

    def __init__(self, flag: str, reason: str, **details: str) -> None:
        super().__init__(reason)
        self.errors: dict[str, bool | str] = {flag: True, **details}


def require(grader: OpenAIGrader, services: Services) -> None:
    """See that everything the grader needs is there.

    Raises:
        GraderError: it is not; `path` is the field of the grader that needs it.
    """
    if isinstance(grader, Multi):
        for name, inner in grader.graders:
            _require(inner, services, f"graders.{name}.")
    else:
        _require(grader, services, "")


def _require(grader: Single, services: Services, path: str) -> None:
    match grader:
        case TextSimilarity(evaluation_metric="cosine") if services.embed is None:
            raise GraderError(
                "the metric cosine needs an embedding model, and none is served here",
                path=f"{path}evaluation_metric",
                expected=f"one of {', '.join(similarity.MEASURES)}",
            )
        case ScoreModel() | LabelModel() if services.chat is None:
            raise GraderError(
                f"{grader.type} asks a model, and none is served here", path=f"{path}type"
            )
        case PythonGrader() if not services.python_graders:
            raise GraderError(
                "python graders are switched off",
                path=f"{path}type",
                expected="another type, or an owner who lets foreign Python run on this machine",
            )
        case PythonGrader():
            require_confinement()
        case _:
            pass


async def grade(
    grader: OpenAIGrader, sample: Sample, item: Mapping[str, Any], services: Services
) -> Graded:
    """Run a grader.

    Whatever the sample, the item, a model or the source of a python grader does ends as an error
    of the result.

    Raises:
        GraderError: something that the grader needs is not there, see `require`.
    """
    started = time.monotonic()
    require(grader, services)
    variables = {"item": item, "sample": sample.variables()}
    if isinstance(grader, Multi):
        graded = await _multi(grader, variables, services)
    else:
        graded = await _single(grader, variables, services)
    return replace(graded, seconds=time.monotonic() - started)


async def _multi(grader: Multi, variables: Mapping[str, Any], services: Services) -> Graded:
    names = [name for name, _ in grader.graders]
    results = await asyncio.gather(
        *(_single(inner, variables, services) for _, inner in grader.graders)
    )
    rewards = {
        name: result.reward
        for name, result in zip(names, results, strict=True)
        if not result.errors
    }
    errors = {flag: value for result in results for flag, value in result.errors.items()}
    reasons = [
        f"{name}: {reason}"
        for name, result in zip(names, results, strict=True)
        for reason in result.reasons
    ]
    usage: dict[str, Counter[str]] = {}
    for result in results:
        for model, tokens in result.usage.items():
            usage.setdefault(model, Counter()).update(tokens)
    reward = 0.0
    if not errors:
        try:
            reward = grader.calculate_output.value(rewards)
        except FormulaError as error:
            errors["formula_parse_error"] = True
            reasons.append(str(error))
    return Graded(reward, errors, tuple(reasons), rewards, usage)


async def _single(grader: Single, variables: Mapping[str, Any], services: Services) -> Graded:
    usage: dict[str, Mapping[str, int]] = {}
    try:
        reward = await _reward(grader, variables, services, usage)
        if not math.isfinite(reward):
            raise _Fault("other_error", f"the reward is {reward}")
    except _Fault as fault:
        return Graded(0.0, fault.errors, (str(fault),), usage=usage)
    except MissingVariable as error:
        return Graded(0.0, {"invalid_variable_error": True}, (str(error),))
    except NotJson as error:
        return Graded(0.0, {"sample_parse_error": True}, (str(error),))
    except TooLong as error:
        return Graded(0.0, {"other_error": True}, (str(error),))
    return Graded(reward, usage=usage)


async def _reward(
    grader: Single,
    variables: Mapping[str, Any],
    services: Services,
    usage: dict[str, Mapping[str, int]],
) -> float:
    match grader:
        case StringCheck():
            texts = grader.input.fill(variables), grader.reference.fill(variables)
            return _checked(grader.operation, *texts)
        case TextSimilarity():
            texts = grader.input.fill(variables), grader.reference.fill(variables)
            return await _similarity(grader, texts, services)
        case PythonGrader():
            return await _python(grader.source, variables)
        case ScoreModel() | LabelModel():
            return await _asked(grader, variables, services, usage)


def _checked(operation: str, output: str, reference: str) -> float:
    if operation in ("eq", "ne"):
        return float((output == reference) == (operation == "eq"))
    if operation == "ilike":
        output, reference = output.casefold(), reference.casefold()
    return float(reference in output)


async def _similarity(grader: TextSimilarity, texts: tuple[str, str], services: Services) -> float:
    if max(map(len, texts)) > similarity.LONGEST:
        raise _Fault("other_error", f"a text has more than {similarity.LONGEST:,} characters")
    if grader.evaluation_metric != "cosine":
        measure = similarity.MEASURES[grader.evaluation_metric]
        return await asyncio.to_thread(measure, *texts)
    assert services.embed is not None
    try:
        a, b = await services.embed(texts)
    except TunesmithError as error:
        raise _Fault("other_error", str(error)) from None
    lengths = math.hypot(*a) * math.hypot(*b)
    return sum(x * y for x, y in zip(a, b, strict=True)) / lengths if lengths else 0.0


async def _python(source: str, variables: Mapping[str, Any]) -> float:
    payload = (variables["sample"], variables["item"])
    loop = asyncio.get_running_loop()
    try:
        result = await loop.run_in_executor(_pool(), run_confined, source, payload)
    except GraderError as error:
        raise _Fault(
            "python_grader_server_error", str(error), python_grader_server_error_type="confinement"
        ) from None
    error, value = result.error, result.value
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if error is None and not (number and abs(value) <= sys.float_info.max):
        error = f"grade returned {str(value)[:80]!r}, which is no finite number"
    if error is not None:
        details = error[-_MOST_DETAILS:]
        raise _Fault(
            "python_grader_runtime_error", details, python_grader_runtime_error_details=details
        )
    return float(value)


async def _asked(
    grader: ScoreModel | LabelModel,
    variables: Mapping[str, Any],
    services: Services,
    usage: dict[str, Mapping[str, int]],
) -> float:
    assert services.chat is not None
    messages, arguments = asking.request(grader, variables)
    try:
        answer, usage[grader.model] = await services.chat(grader.model, messages, arguments)
    except TunesmithError as error:
        raise _Fault(
            "model_grader_server_error", str(error), model_grader_server_error_details=str(error)
        ) from None
    if answer is None:
        raise _Fault("model_grader_refusal_error", f"{grader.model} refused to grade")
    try:
        return asking.read(grader, answer)
    except ValueError as error:
        raise _Fault("model_grader_parse_error", str(error)) from None


@cache
def _pool() -> ThreadPoolExecutor:
    # Threads of its own: calls that take minutes would hold up everything else in the loop's pool.
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="grader")


def _refuse(constant: str) -> object:
    raise ValueError(constant)

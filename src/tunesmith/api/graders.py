"""OpenAI's grader routes: try a grader on one sample, or have it looked over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from tunesmith.api.pages import router
from tunesmith.api.who import who
from tunesmith.errors import GraderError
from tunesmith.graders.grading import Chat, Embed, Graded, Sample, Services, grade, require
from tunesmith.graders.spec import LabelModel, Multi, OpenAIGrader, parse_grader
from tunesmith.serve.wire import Refusal

_FLAGS = (
    "formula_parse_error",
    "sample_parse_error",
    "truncated_observation_error",
    "unresponsive_reward_error",
    "invalid_variable_error",
    "other_error",
    "python_grader_server_error",
    "python_grader_runtime_error",
    "model_grader_server_error",
    "model_grader_refusal_error",
    "model_grader_parse_error",
)
_DETAILS = (
    "python_grader_server_error_type",
    "python_grader_runtime_error_details",
    "model_grader_server_error_details",
)


class ValidateRequest(BaseModel):
    """POST /v1/fine_tuning/alpha/graders/validate."""

    model_config = ConfigDict(strict=True)

    grader: dict[str, Any]


class RunRequest(ValidateRequest):
    """POST /v1/fine_tuning/alpha/graders/run."""

    model_config = ConfigDict(strict=True, protected_namespaces=())

    model_sample: str
    item: dict[str, Any] = Field(default_factory=dict)


class GraderRoutes:
    """The routes of graders.

    Args:
        chat: the models that a project may ask.
    """

    def __init__(
        self, embed: Embed | None, chat: Callable[[str], Chat] | None, *, python_graders: bool
    ) -> None:
        self._embed, self._chat, self._python = embed, chat, python_graders

    def routes(self) -> APIRouter:
        """The routes."""
        out = router()
        at = "/fine_tuning/alpha/graders"
        out.add_api_route(f"{at}/run", self.run, methods=["POST"])
        out.add_api_route(f"{at}/validate", self.validate, methods=["POST"])
        return out

    async def run(self, body: RunRequest, request: Request) -> dict[str, Any]:
        """The reward of a sample, or the flags of what kept the grader from giving one."""
        services = self._services(request)
        grader = await _checked(body.grader, services)
        graded = await grade(grader, Sample(body.model_sample), body.item, services)
        return _response(grader, graded)

    async def validate(self, body: ValidateRequest, request: Request) -> dict[str, Any]:
        """The grader as it was sent, if it is well formed and can run here."""
        await _checked(body.grader, self._services(request))
        return {"grader": body.grader}

    def _services(self, request: Request) -> Services:
        chat = self._chat(who(request).project) if self._chat else None
        return Services(self._embed, chat, self._python)


async def _checked(value: dict[str, Any], services: Services) -> OpenAIGrader:
    try:
        grader = parse_grader(value)
        if isinstance(grader, LabelModel):
            raise GraderError(
                "a label_model grader gives no reward by itself",
                path="type",
                expected="it among the graders of a multi grader",
            )
        # The first python grader waits for a trial of the confinement.
        await asyncio.to_thread(require, grader, services)
    except GraderError as error:
        param = ".".join(filter(None, ("grader", error.path)))
        raise Refusal(str(error), param=param, code="invalid_grader") from None
    return grader


def _response(grader: OpenAIGrader, graded: Graded) -> dict[str, Any]:
    usage = {model: dict(tokens) for model, tokens in graded.usage.items()}
    total = sum(tokens.get("total_tokens", 0) for tokens in usage.values())
    metadata = {
        "name": grader.name,
        "type": grader.type,
        "errors": {**dict.fromkeys(_FLAGS, False), **dict.fromkeys(_DETAILS), **graded.errors},
        "execution_time": graded.seconds,
        "scores": dict(graded.sub_rewards) if isinstance(grader, Multi) else {},
        "token_usage": total if usage else None,
        "sampled_model_name": next(iter(usage)) if len(usage) == 1 else None,
    }
    return {
        "reward": graded.reward,
        "metadata": metadata,
        "sub_rewards": dict(graded.sub_rewards),
        "model_grader_token_usage_per_model": usage,
    }

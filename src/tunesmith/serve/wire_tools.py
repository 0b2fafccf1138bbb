"""What holds an answer to a form, as OpenAI writes it: response formats, tools, the choice of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from tunesmith.chat import Tool


class Wire(BaseModel):
    """A part of a request: what is not in it is refused, and nothing is taken for another type."""

    model_config = ConfigDict(extra="forbid", strict=True, serialize_by_alias=True)


class WireToolFunction(Wire):
    """The definition of a function; `strict` promises that calls follow its schema."""

    name: Annotated[str, Field(min_length=1)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class WireTool(Wire):
    """A tool the model may call."""

    type: Literal["function"]
    function: WireToolFunction


class WireJsonSchema(Wire):
    """A schema with a name; `strict` refuses what cannot be enforced."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseFormat(Wire):
    """The form of the answer's text."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: WireJsonSchema | None = None

    @model_validator(mode="after")
    def _whole(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("'json_schema' goes with the type 'json_schema', and only with it")
        return self


@dataclass(frozen=True, slots=True)
class Choice:
    """Which calls an answer may and has to have.

    Attributes:
        names: the functions that may be called; None for all that are offered.
        named: one function was asked for by its name.
    """

    mode: Literal["none", "auto", "required"]
    names: frozenset[str] | None = None
    named: bool = False


def read_choice(value: object) -> Choice:
    """The meaning of a `tool_choice`.

    Raises:
        ValueError: it is none of the forms.
    """
    match value:
        case None:
            return Choice("auto")
        case "none" | "auto" | "required":
            return Choice(cast("Literal['none', 'auto', 'required']", value))
        case {"type": "function", "function": {"name": str(name)}}:
            return Choice("required", frozenset({name}), named=True)
        case {
            "type": "allowed_tools",
            "allowed_tools": {"mode": "auto" | "required" as mode, "tools": list(tools)},
        }:
            names = [_allowed(tool) for tool in cast("list[object]", tools)]
            return Choice(cast("Literal['auto', 'required']", mode), frozenset(names))
        case _:
            raise ValueError(
                "should be 'none', 'auto', 'required', "
                '{"type": "function", "function": {"name": ...}} or allowed_tools'
            )


def _allowed(tool: object) -> str:
    match tool:
        case {"type": "function", "function": {"name": str(name)}}:
            return name
        case _:
            raise ValueError('allowed tools should be {"type": "function", "function": {"name"}}')


def _readable(value: Any) -> Any:
    read_choice(value)
    return value


ToolChoice = Annotated[Any, AfterValidator(_readable)]


def _few(pairs: Mapping[str, str]) -> Mapping[str, str]:
    if len(pairs) > 16:
        raise ValueError(f"should have at most 16 pairs, found {len(pairs)}")
    return pairs


Metadata = Annotated[
    dict[Annotated[str, Field(min_length=1, max_length=64)], Annotated[str, Field(max_length=512)]],
    AfterValidator(_few),
]
"""Labels of what is stored: sixteen at most."""

LogitBias = Annotated[
    dict[
        Annotated[str, Field(pattern=r"^[0-9]{1,9}$")],
        Annotated[float, Field(ge=-100, le=100)],
    ],
    Field(),
]
"""What is added to tokens' logits, by their ids."""


def bias_of(bias: Mapping[str, float] | None) -> tuple[tuple[int, float], ...]:
    """(token id, what is added) pairs."""
    return tuple({int(token): value for token, value in (bias or {}).items() if value}.items())


def tools_of(tools: Sequence[WireTool] | None) -> tuple[Tool, ...]:
    """Definitions as the chat template takes them, absent fields left out."""
    return tuple(tool.model_dump(exclude_none=True) for tool in tools or ())

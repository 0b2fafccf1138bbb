"""Texts with variables, as OpenAI's graders have them: `{{ item.x }}`, `{{sample.output_text}}`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LONGEST = 1_000_000
"""Characters of a filled template."""

Path = tuple[str, ...]

_HOLE = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_VARIABLE = re.compile(r"(?:item|sample)(?:\.[\w-]+|\[[0-9]{1,9}\])+")


class MissingVariable(Exception):
    """The item or the sample has nothing under a name."""


class NotJson(Exception):
    """`sample.output_json` is asked for and the output is not JSON."""


class TooLong(Exception):
    """The filled template is longer than `LONGEST`."""


@dataclass(frozen=True, slots=True)
class Template:
    """A text in pieces: what stands there, and the paths of what is filled in."""

    pieces: tuple[str | Path, ...]

    def fill(self, variables: Mapping[str, Any]) -> str:
        """The text with its variables; a value that is no string is written as JSON.

        Raises:
            MissingVariable, NotJson, TooLong: it cannot be filled.
        """
        out: list[str] = []
        room = LONGEST
        for piece in self.pieces:
            text = piece if isinstance(piece, str) else _written(_look_up(piece, variables))
            room -= len(text)
            if room < 0:
                raise TooLong(f"a template came to more than {LONGEST:,} characters")
            out.append(text)
        return "".join(out)


def parse_template(text: object) -> Template:
    """The template that `text` is; nothing but paths may stand between the braces.

    Raises:
        ValueError: it is not a string, or `{{` is not followed by a variable and `}}`.
    """
    if not isinstance(text, str):
        raise ValueError("should be a string")
    # re.split gives what is between the holes and what is in them by turns.
    split = enumerate(_HOLE.split(text))
    pieces = [_path(piece) if i % 2 else _plain(piece) for i, piece in split]
    return Template(tuple(piece for piece in pieces if piece))


def _plain(text: str) -> str:
    if "{{" in text:
        raise ValueError("has '{{' without '}}'")
    return text


def _path(inner: str) -> Path:
    name = inner.strip()
    if not _VARIABLE.fullmatch(name):
        raise ValueError(
            f"has {{{{{inner[:80]}}}}}, which is not a variable such as {{{{item.answer}}}},"
            " {{sample.output_text}} or {{sample.output_json.list[0]}}"
        )
    return tuple(re.split(r"[.\[\]]+", name.rstrip("]")))


def _look_up(path: Path, variables: Mapping[str, Any]) -> Any:
    if path[:2] == ("sample", "output_json") and "output_json" not in variables["sample"]:
        raise NotJson("sample.output_json: the output is not JSON")
    value: Any = variables
    for depth, step in enumerate(path):
        if isinstance(value, Mapping) and step in value:
            value = value[step]
        elif isinstance(value, list | tuple) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
        else:
            raise MissingVariable(f"there is no {'.'.join(path[: depth + 1])}")
    return value


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

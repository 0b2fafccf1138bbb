"""Chat templates as transformers runs them: Jinja2 in a sandbox, with the same filters and tags."""

from __future__ import annotations

import json
from datetime import datetime

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tunesmith.errors import ModelError


def compiled(source: str) -> jinja2.Template:
    """A chat template with the filters and functions that transformers gives it.

    Raises:
        ModelError: it does not parse.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _Generation]
    )

    def tojson(
        value: object,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def now(form: str) -> str:
        return datetime.now().strftime(form)

    environment.filters["tojson"] = tojson
    try:
        return environment.from_string(
            source, globals={"raise_exception": refuse, "strftime_now": now}
        )
    except jinja2.TemplateSyntaxError as error:
        raise ModelError(
            f"the chat template does not parse: {error}", expected="a Jinja2 template"
        ) from None


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`, which some templates put around answers; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 - as the class above declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)

"""What several commands take on the command line, the recipe that it makes, and how they answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from tunesmith.errors import UsageError

if TYPE_CHECKING:
    from tunesmith.recipe import Recipe

out = Console(soft_wrap=True, highlight=False)
"""Where results go; progress has standard error."""

Data = Annotated[list[str], typer.Argument(help="Files of examples, or - for standard input.")]
ModelName = Annotated[
    str | None, typer.Option("--model", help="A catalogue name, a hub id or a folder.")
]
FormatName = Annotated[str | None, typer.Option("--format", help="How a row is laid out.")]
Columns = Annotated[
    list[str] | None, typer.Option("--map", help="A column's name, as in prompt=question.")
]
RecipeFile = Annotated[Path | None, typer.Option("--recipe", help="A YAML file of settings.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="A setting, as in train.epochs=2.")
]
Validation = Annotated[str | None, typer.Option(help="A file of validation rows, or a size.")]
Test = Annotated[str | None, typer.Option(help="A file of test rows, or a size.")]
Graders = Annotated[
    list[str] | None, typer.Option("--grader", help="A grader's name, or FILE.py:FUNCTION.")
]
Docs = Annotated[
    list[str] | None, typer.Option("--docs", help="Documents to look up: a file or a folder.")
]
Out = Annotated[Path | None, typer.Option("--out", help="The run's folder.")]
Seed = Annotated[int | None, typer.Option(help="Seed of the split, the order and the adapter.")]
Limit = Annotated[int | None, typer.Option(help="Take a random sample of this many rows.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value and nothing else.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Notes too.")]
Accept = Annotated[
    bool,
    typer.Option("--accept-licence", help="You accept the terms that the model has of its own."),
]
Yes = Annotated[bool, typer.Option("--yes", help="Ask nothing.")]


def recipe_of(
    data: Sequence[str],
    *,
    model: str | None = None,
    form: str | None = None,
    columns: Sequence[str] | None = None,
    file: Path | None = None,
    settings: Sequence[str] | None = None,
    validation: str | None = None,
    test: str | None = None,
    graders: Sequence[str] | None = None,
    seed: int | None = None,
    limit: int | None = None,
    docs: Sequence[str] | None = None,
) -> Recipe:
    """The recipe file, then `--set`, then the options, each over the one before.

    Raises:
        UsageError: a `--map` without a column, an unknown setting.
    """
    from tunesmith import recipe as recipes

    asked: dict[str, Any] = {}
    if data:
        asked["data.files"] = list(data)
    for key, value in (
        ("model.name", model),
        ("data.format", form),
        ("data.validation", _size(validation)),
        ("data.test", _size(test)),
        ("data.limit", limit),
        ("train.seed", seed),
    ):
        if value is not None:
            asked[key] = value
    if columns:
        pairs = [item.partition("=") for item in columns]
        wrong = [item for item, (_, equals, _) in zip(columns, pairs, strict=True) if not equals]
        if wrong:
            raise UsageError(f"--map {wrong[0]}", expected="NAME=COLUMN, as in prompt=question")
        asked["data.map"] = {name: column for name, _, column in pairs}
    if docs:
        asked["data.docs"] = list(docs)
    if graders:
        asked["evaluate.graders"] = list(graders)
    base = recipes.read(file, settings or ())
    return recipes.with_values(base, asked) if asked else base


def _size(text: str | None) -> str | int | float | None:
    if text is None:
        return None
    try:
        number = float(text)
    except ValueError:
        return text
    return int(number) if number.is_integer() else number


def print_json(value: object) -> None:
    """One JSON value on standard output."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))

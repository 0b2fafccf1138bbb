"""`tunesmith cost` and `tunesmith advise`: before anything is trained."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.options import (
    AsJson,
    Columns,
    Data,
    FormatName,
    Graders,
    Limit,
    ModelName,
    Out,
    Quiet,
    RecipeFile,
    Seed,
    Settings,
    Test,
    Validation,
    Verbose,
    Yes,
    out,
    print_json,
    recipe_of,
)

if TYPE_CHECKING:
    from tunesmith.recipe import Recipe

PriceFile = Annotated[
    Path | None, typer.Option("--prices", help="A table whose rows replace those that ship.")
]


def asked(wanted: Recipe) -> Recipe:
    """The recipe with the facts that a person at the terminal tells; no other is asked."""
    from tunesmith import recipe as recipes
    from tunesmith.pipeline import advice
    from tunesmith.screen_cost import ask

    if not sys.stdin.isatty():
        return wanted
    return recipes.with_values(wanted, advice.asked(wanted, ask))


def cost(
    data: Data,
    model: ModelName = None,
    form: FormatName = None,
    columns: Columns = None,
    recipe: RecipeFile = None,
    settings: Settings = None,
    validation: Validation = None,
    test: Test = None,
    prices: PriceFile = None,
    seed: Seed = None,
    limit: Limit = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Tokens, hours, memory and money for each way of doing it."""
    from tunesmith.pipeline import cost as pipeline
    from tunesmith.screen import Terminal
    from tunesmith.screen_cost import costs

    wanted = recipe_of(
        data, model=model, form=form, columns=columns, file=recipe, settings=settings,
        validation=validation, test=test, seed=seed, limit=limit,
    )  # fmt: skip
    with Terminal(quiet=quiet or as_json) as screen:
        found = pipeline.cost_of(wanted, screen, pipeline.table(prices))
    if as_json:
        print_json(found)
    else:
        out.print(*costs(found), sep="\n")


def advise(
    data: Data,
    model: ModelName = None,
    form: FormatName = None,
    columns: Columns = None,
    recipe: RecipeFile = None,
    settings: Settings = None,
    validation: Validation = None,
    test: Test = None,
    graders: Graders = None,
    prices: PriceFile = None,
    folder: Out = None,
    seed: Seed = None,
    limit: Limit = None,
    as_json: AsJson = False,
    yes: Yes = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Prompting, RAG, fine-tuning or both: measured where it can be, reasons always."""
    from tunesmith.pipeline import cost as costing
    from tunesmith.pipeline import run as pipeline
    from tunesmith.screen import Terminal
    from tunesmith.screen_cost import advice, under, ways

    known = costing.table(prices)
    wanted = recipe_of(
        data, model=model, form=form, columns=columns, file=recipe, settings=settings,
        validation=validation, test=test, graders=graders, seed=seed, limit=limit,
    )  # fmt: skip
    if not (yes or as_json):
        wanted = asked(wanted)
    with Terminal(quiet=quiet or as_json, verbose=verbose) as screen:
        command = pipeline.typed(sys.argv[1:])
        ended = pipeline.run(wanted, out=folder, screen=screen, command=command, ask=True)
    found = {**ended.report, "cost": costing.beforehand(ended.folder, known)}
    if as_json:
        print_json(found)
        return
    out.print(*advice(found), sep="\n")
    if "ways" in found["cost"]:
        out.print("", ways(found["cost"]["ways"]), *under(found["cost"]), sep="\n")

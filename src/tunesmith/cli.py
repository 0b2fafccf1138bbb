"""The command line. Each command reads a recipe, calls the product, and prints.

Rooms are imported inside the commands, so that `tunesmith --help` is there at once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from tunesmith.cli_cost import advise, asked, cost
from tunesmith.cli_keys import keys_app, webhooks_app
from tunesmith.cli_models import export, models_app
from tunesmith.cli_rank import rank
from tunesmith.errors import TunesmithError, UsageError
from tunesmith.options import (
    AsJson,
    Columns,
    Data,
    Docs,
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

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Fine-tune a model on your own examples, and know whether it was worth it.",
)
app.add_typer(models_app, name="models")
app.add_typer(keys_app, name="keys")
app.add_typer(webhooks_app, name="webhooks")


@app.command()
def run(
    data: Data,
    model: ModelName = None,
    form: FormatName = None,
    columns: Columns = None,
    recipe: RecipeFile = None,
    settings: Settings = None,
    validation: Validation = None,
    test: Test = None,
    docs: Docs = None,
    graders: Graders = None,
    folder: Out = None,
    seed: Seed = None,
    limit: Limit = None,
    ask: Annotated[bool, typer.Option("--ask", help="Stop after the first advice.")] = False,
    gate: Annotated[bool, typer.Option("--gate", help="Exit with 4 on a 'do not ship'.")] = False,
    as_json: AsJson = False,
    yes: Yes = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """The whole loop: check, measure, train, compare, verdict, register."""
    from tunesmith.pipeline import run as pipeline
    from tunesmith.screen import Terminal, ending

    wanted = recipe_of(
        data, model=model, form=form, columns=columns, file=recipe, settings=settings,
        validation=validation, test=test, graders=graders, seed=seed, limit=limit, docs=docs,
    )  # fmt: skip
    if ask and not (yes or as_json):
        wanted = asked(wanted)
    with Terminal(quiet=quiet or as_json, verbose=verbose) as screen:
        command = pipeline.typed(sys.argv[1:])
        ended = pipeline.run(wanted, out=folder, screen=screen, command=command, ask=ask)
    if as_json:
        print_json(ended.report)
    else:
        out.print(*ending(ended.report, ended.folder), sep="\n")
    if gate and not ask and not ended.ship:
        raise typer.Exit(4)


@app.command()
def check(
    data: Data,
    model: ModelName = None,
    form: FormatName = None,
    columns: Columns = None,
    recipe: RecipeFile = None,
    settings: Settings = None,
    validation: Validation = None,
    test: Test = None,
    docs: Docs = None,
    seed: Seed = None,
    limit: Limit = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Ask the sentence encoder and the base too; minutes.")
    ] = False,
    select: Annotated[
        int | None, typer.Option(help="Keep the best and most diverse N rows.", min=1)
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--out", help="Where --select writes them, as JSON lines.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """What is in the data, what is wrong with it, and what to do."""
    from tunesmith.pipeline import check as checking
    from tunesmith.screen import Terminal

    wanted = recipe_of(
        data, model=model, form=form, columns=columns, file=recipe, settings=settings,
        validation=validation, test=test, seed=seed, limit=limit, docs=docs,
    )  # fmt: skip
    with Terminal(quiet=quiet or as_json, verbose=verbose) as screen:
        found = checking.check(wanted, screen, checking.Closer(deep, select, file))
        if as_json:
            print_json(found.value)
    if found.refused is not None:
        raise found.refused


@app.command()
def train(
    data: Annotated[list[str], typer.Argument(help="Files of examples, or one recipe (.yaml).")],
    model: ModelName = None,
    form: FormatName = None,
    columns: Columns = None,
    recipe: RecipeFile = None,
    settings: Settings = None,
    validation: Validation = None,
    folder: Out = None,
    seed: Seed = None,
    limit: Limit = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train only: check the data, train, write the adapter."""
    from tunesmith import recipe as recipes
    from tunesmith.pipeline import heldout
    from tunesmith.pipeline import run as pipeline
    from tunesmith.screen import Terminal
    from tunesmith.screen import heldout as table

    if len(data) == 1 and data[0].endswith((".yaml", ".yml")):
        data, recipe = [], Path(data[0])
    wanted = recipe_of(
        data, model=model, form=form, columns=columns, file=recipe,
        settings=settings, validation=validation, seed=seed, limit=limit,
    )  # fmt: skip
    of_text = wanted.method.type == "cpt"
    if wanted.data.test == "auto" and not of_text:
        wanted = recipes.with_values(wanted, {"data.test": 0})
    with Terminal(quiet=quiet or as_json, verbose=verbose) as screen:
        command = pipeline.typed(sys.argv[1:])
        under_way = pipeline.open_run(wanted, out=folder, screen=screen, command=command)
        pipeline.train(under_way)
    made = under_way.folder
    kind = "model" if made.model.is_dir() else "adapter"
    held = heldout.summary(made) if of_text else None
    if as_json:
        told = {"heldout": held} if held else {}
        print_json({"run": made.id, kind: str(made.tuned), **told})
    else:
        if held:
            out.print(table(held))
        out.print(f"{kind:<8} {made.tuned}", markup=False)


@app.command()
def evaluate(
    data: Data,
    arms: Annotated[
        list[str],
        typer.Option("--arm", help="base, external, or the name of a model; may be repeated."),
    ],
    model: ModelName = None,
    form: FormatName = None,
    columns: Columns = None,
    recipe: RecipeFile = None,
    settings: Settings = None,
    docs: Docs = None,
    graders: Graders = None,
    seed: Seed = None,
    limit: Limit = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Any models side by side on any rows."""
    from tunesmith.pipeline import sidebyside
    from tunesmith.screen import Terminal
    from tunesmith.screen import arms as table

    wanted = recipe_of(
        data, model=model, form=form, columns=columns, file=recipe, settings=settings,
        graders=graders, seed=seed, limit=limit, docs=docs,
    )  # fmt: skip
    with Terminal(quiet=quiet or as_json) as screen:
        report = sidebyside.evaluate(wanted, arms, screen)
    if as_json:
        print_json(report)
        return
    out.print(table(report))
    for pair in report["comparisons"]:
        out.print(
            f"{pair['a']} - {pair['b']}: {pair['difference']:+.3f} "
            f"(95 % {pair['low']:.3f} to {pair['high']:.3f}, p = {pair['p']:.2g}, {pair['n']} rows)",
            markup=False,
        )


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(help="Ids or folders of finished runs.")],
    as_json: AsJson = False,
) -> None:
    """Runs side by side."""
    from tunesmith.models.fetch import home
    from tunesmith.pipeline.folder import RunFolder
    from tunesmith.screen import runs as table

    reports: list[Any] = []
    for name in runs:
        path = Path(name) if Path(name).is_dir() else home() / "runs" / name
        if not RunFolder(path).finished:
            raise UsageError(
                f"there is no finished run {name}",
                expected=f"a folder with report.json, or an id in {home() / 'runs'}",
            )
        reports.append(RunFolder(path).read_json("report.json"))
    if as_json:
        print_json(reports)
    else:
        out.print(table(reports))


@app.command()
def serve(
    model: ModelName = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8000,
    worker: Annotated[
        bool, typer.Option(help="Train the jobs that are created, in a worker beside the server.")
    ] = True,
    preload: Annotated[
        bool, typer.Option(help="Load the base before the first request comes.")
    ] = True,
    engine: Annotated[
        Literal["local", "llama.cpp"], typer.Option(help="What computes: torch, or llama.cpp.")
    ] = "local",
) -> None:
    """The OpenAI-compatible server: the base and every registered model, and fine-tuning jobs."""
    import asyncio

    from tunesmith.api.app import serve as listen
    from tunesmith.models.fetch import home
    from tunesmith.store import Store

    def announce(url: str) -> None:
        out.print(f"serving at {url}/v1", markup=False)

    with Store.at(home()) as store:
        default = _deployment(store, model or None)
        coming = listen(
            default,
            store,
            logs=home() / "logs",
            host=host,
            port=port,
            announce=announce,
            worker=worker,
            preload=preload,
            engine=engine,
        )
        asyncio.run(coming)


@app.command()
def worker() -> None:
    """Train the jobs of the store; any number of workers share it. Ctrl-C gives back what is held."""
    from tunesmith.worker.__main__ import main as work

    raise typer.Exit(work([]))


@app.command()
def chat(
    model: Annotated[str | None, typer.Argument(help="A model; the newest tuned one.")] = None,
    once: Annotated[str | None, typer.Option("--once", help="Ask this and end.")] = None,
    system: Annotated[str | None, typer.Option(help="The system message.")] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    max_tokens: Annotated[int, typer.Option(help="Longest answer.", min=1)] = 1024,
) -> None:
    """Talk to a model in the terminal, over HTTP as a program would."""
    import asyncio

    from tunesmith.models.fetch import home
    from tunesmith.pipeline import talk
    from tunesmith.store import Store

    with Store.at(home()) as store:
        newest = next(iter(store.models()), None)
        name = model or (newest.name if newest else None)
        deployment = _deployment(store, name)
        said = system if system is not None else talk.usual_system(store.model(deployment.name))
    console = Console(stderr=True, highlight=False)
    console.print(f"{deployment.name}" + (f"\nsystem: {said}" if said else ""), markup=False)
    asyncio.run(
        talk.talk(
            deployment,
            system=said,
            temperature=temperature,
            once=once,
            show=lambda text: out.print(text, markup=False, end=""),
            note=lambda text: console.print(text, markup=False),
            max_tokens=max_tokens,
        )
    )


app.command()(advise)
app.command()(cost)
app.command()(rank)
app.command()(export)


@app.command()
def doctor(
    rows: Annotated[
        list[str] | None,
        typer.Option("--profile", help="Rows: where a training step's time and memory go."),
    ] = None,
    model: ModelName = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """What this machine can do, what is missing, and what to type."""
    from tunesmith.pipeline.doctor import examine, profile

    if rows:
        from tunesmith.screen import profile as table

        wanted = recipe_of(rows, model=model, settings=settings)
        found = profile(wanted, lambda text: typer.echo(text, err=True))
        if as_json:
            print_json(found)
        else:
            out.print(table(found))
        return
    findings = examine()
    if as_json:
        print_json(findings)
        return
    for item in findings:
        mark = "ok " if item["ok"] else "-- "
        out.print(f"{mark} {item['what']}: {item['found']}", markup=False)
        if item["remedy"]:
            out.print(f"      {item['remedy']}", markup=False)


def _deployment(store: Any, name: str | None) -> Any:
    from tunesmith.pipeline.talk import deployment

    return deployment(store, name, say=lambda text: typer.echo(text, err=True))


def main() -> None:
    """The entry point: problems a person can mend are printed without a traceback."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        app()
    except TunesmithError as error:
        errors.print(f"[red]error[/] {type(error).__name__}: ", end="")
        errors.print(str(error), markup=False)
        sys.exit(error.exit_code)
    except SystemExit as ended:
        # What typer makes of Ctrl-C.
        if ended.code == 130 and sys.argv[1:2] in (["run"], ["train"]):
            errors.print("stopped; the same command goes on from here", markup=False)
        raise

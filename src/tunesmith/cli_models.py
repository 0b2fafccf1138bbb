"""The commands about models: what is here, what is fetched, what goes to other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tunesmith.errors import UsageError
from tunesmith.options import Accept, AsJson, out, print_json

if TYPE_CHECKING:
    from tunesmith.store import RegisteredModel

models_app = typer.Typer(no_args_is_help=True, help="The models that are here.")


def export(
    model: Annotated[str, typer.Argument(help="The name of a tuned model.")],
    folder: Annotated[Path, typer.Option("--out", help="Folder to be made.")],
    to: Annotated[
        Literal["adapter", "merged", "gguf"],
        typer.Option(
            help="PEFT's format, one model with the adapter in its weights, or llama.cpp's files."
        ),
    ] = "merged",
    dtype: Annotated[
        Literal["auto", "bfloat16", "float32"],
        typer.Option(help="Of merged weights; GGUF has float32 or, as auto, float16."),
    ] = "auto",
    scale: Annotated[
        float, typer.Option(help="How much of the adapter: below 1 it forgets less.")
    ] = 1.0,
    as_json: AsJson = False,
) -> None:
    """A tuned model as files for other programs."""
    from tunesmith.pipeline import export as exporting

    made = exporting.export(model, to, folder, dtype=dtype, scale=scale)
    if as_json:
        print_json(made)
        return
    out.print(f"{made['out']}", markup=False)
    if "difference" in made:
        out.print(
            f"{made['dtype']}; read again, it is {made['difference']:.2g} nats a token from the "
            f"adapter, whose effect is {made['effect']:.2g}",
            markup=False,
        )
    if "commands" in made:
        _show_gguf(made)


def _show_gguf(made: dict[str, Any]) -> None:
    merged, off = made.get("merged"), made["off"]
    if merged:
        out.print(
            f"{merged['why']}: the adapter is merged into the weights, {merged['difference']:.2g} "
            f"nats a token from it, whose effect is {merged['effect']:.2g}",
            markup=False,
        )
    out.print(
        f"llama.cpp reads the files {off['mean']:.2g} nats a token from the model in float32, at "
        f"most {off['largest']:.2g} ({off['tokens']} tokens; {off['same']} of {off['answers']} "
        "answers are the same)"
        if off
        else "not measured: that needs llama.cpp (pip install 'tunesmith[llama-cpp]')",
        markup=False,
    )
    for command in made["commands"]:
        out.print(f"    {command}", markup=False)


@models_app.command("list")
def list_models(as_json: AsJson = False) -> None:
    """The catalogue, and every registered model."""
    from tunesmith.models.catalog import ENCODERS, PACKAGED
    from tunesmith.models.fetch import home

    rows = [
        {
            "name": name,
            "kind": kind,
            "here": (home() / "models" / name).is_dir(),
            "licence": item.licence,
            "note": item.note,
        }
        for kind, table in (("base", PACKAGED), ("encoder", ENCODERS))
        for name, item in table.items()
    ]
    rows += [
        {
            "name": item.name,
            "kind": "tuned",
            "here": True,
            "base": item.base,
            "licence": _licence(item),
        }
        for item in _registered()
    ]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        base = f"of {row['base']}" if row["kind"] == "tuned" else ""
        told = "; ".join(filter(None, [base, str(row["licence"]), str(row.get("note", ""))]))
        here = "" if row["here"] else " (not fetched yet)"
        out.print(f"{row['name']}{here}\n    {row['kind']}, {told}", markup=False)


@models_app.command("pull")
def pull_model(
    name: Annotated[str | None, typer.Argument()] = None,
    accept: Accept = False,
) -> None:
    """Fetch a model, so that it is there without a network."""
    from tunesmith.models.catalog import DEFAULT
    from tunesmith.models.fetch import resolve

    spec = resolve(name or DEFAULT, accept=accept, say=lambda text: out.print(text, markup=False))
    out.print(f"{spec.name} is in {spec.folder} (weights {spec.weights_hash[:12]})", markup=False)


@models_app.command("show")
def show_model(name: str, as_json: AsJson = False) -> None:
    """What is known of a model."""
    from dataclasses import asdict

    from tunesmith.models.fetch import resolve
    from tunesmith.serve.engines import hindrances

    tuned = next((item for item in _registered() if item.name == name), None)
    values: dict[str, Any] = (
        {**asdict(tuned), "licence": _licence(tuned)} if tuned else asdict(resolve(name))
    )
    base = Path(tuned.base_folder if tuned else values["folder"])
    adapter = Path(tuned.adapter_folder) if tuned and tuned.adapter_folder else None
    found = hindrances(base, adapter)
    values["engines"] = {kind: why or "serves it" for kind, why in found.items()}
    if as_json:
        print_json(values)
        return
    for kind, why in values.pop("engines").items():
        values[f"engine {kind}"] = why
    for key, item in values.items():
        out.print(f"{key:>16}  {item}", markup=False)


@models_app.command("remove")
def remove_model(name: str) -> None:
    """Forget a tuned model; its run's folder stays."""
    from tunesmith.models.fetch import home
    from tunesmith.store import Store

    with Store.at(home()) as store:
        if not store.remove_model(name):
            raise UsageError(f"there is no tuned model {name}", remedy="See tunesmith models list.")


def _registered() -> list[RegisteredModel]:
    from tunesmith.models.fetch import home
    from tunesmith.store import Store

    with Store.at(home()) as store:
        return store.models()


def _licence(model: RegisteredModel) -> str:
    """What a tuned model's folder says; empty where its base came without a licence."""
    from tunesmith.models.terms import licence_of

    return licence_of(Path(model.adapter_folder or model.base_folder))

"""Terms of a model's own: shown before it is fetched, kept beside it, carried along by adapters."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError
from tunesmith.models.catalog import Packaged, Terms, read_card

NOTICE = "NOTICE"


def refusal(name: str, terms: Terms, text: Path | None) -> ModelError:
    """Why a model is not fetched yet.

    Args:
        text: the terms on this disk; None where they could not be fetched.
    """
    places = f"{text} or {terms.url}" if text else terms.url
    return ModelError(
        f"{name} comes under the {terms.name}, which nobody has accepted here. {terms.about}",
        expected=f"that you have read them ({places}) and accept them",
        remedy=f"Then type: tunesmith models pull {name} --accept-licence",
    )


def keep(model: Packaged, text: Path, folder: Path) -> dict[str, Any]:
    """Put the terms and a notice into the model's folder; what its card says of them."""
    assert model.terms is not None
    shutil.copyfile(text, folder / model.terms.text.name)
    change = f"tunesmith changed the files beside this notice: the weights are those of\n{model.weights.name}, "
    change += "widened to bfloat16, with a chat template of tunesmith's.\n"
    _write_notice(folder, model.terms.notice, change)
    return {"name": model.terms.name, "file": model.terms.text.name, "notice": model.terms.notice}


def carry(base: Path, folder: Path) -> dict[str, Any]:
    """Give the folder of an adapter, or of a trained or merged model, what its base's licence asks of
    derived models.

    Returns:
        For its card: the licence and the terms, where the base has them, as its own card has them.
    """
    card = read_card(base)
    told: dict[str, Any] = {"licence": str(card["licence"])} if card.get("licence") else {}
    terms = card.get("terms")
    if terms is None:
        return told
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(base / terms["file"], folder / terms["file"])
    change = f"The files beside this notice are a change of {card.get('name') or card['base']}: they were trained with\n"
    _write_notice(folder, terms["notice"], change + "tunesmith and are a model derived from it.\n")
    return {**told, "terms": terms}


def licence_of(folder: Path) -> str:
    """The licence of a model's or an adapter's folder; empty where its card names none."""
    return str(read_card(folder).get("licence", ""))


def _write_notice(folder: Path, notice: str, change: str) -> None:
    (folder / NOTICE).write_text(f"{notice}\n{change}", encoding="utf-8")

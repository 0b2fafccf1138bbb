"""What a run stands on, written before anything is computed with a model."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess
from dataclasses import asdict
from typing import Any, Protocol

import psutil

from tunesmith import recipe as recipes
from tunesmith.checks.report import Report
from tunesmith.models.catalog import ModelSpec
from tunesmith.models.template import ChatTemplate
from tunesmith.pipeline import prepare
from tunesmith.pipeline.folder import Event, RunFolder
from tunesmith.pipeline.prepare import Prepared
from tunesmith.recipe import Recipe

PACKAGES = ("tunesmith", "torch", "transformers", "tokenizers", "safetensors", "numpy", "scipy")


class Screen(Protocol):
    """Where a run is watched."""

    def say(self, text: str) -> None:
        """A sentence that stays."""
        ...

    def progress(self, what: str, done: int, total: int | None) -> None:
        """A line that is drawn over."""
        ...

    def event(self, event: Event) -> None:
        """An event of the training process."""
        ...

    def checked(self, prepared: Prepared, report: Report) -> None:
        """The data has been checked."""
        ...


def begin(
    recipe: Recipe,
    folder: RunFolder,
    model: ModelSpec,
    template: ChatTemplate,
    prepared: Prepared,
    screen: Screen,
    key: str,
    *,
    rate: float = 1.0,
) -> Recipe:
    """Check the data, make every `auto` a number, and write what the run stands on.

    Args:
        rate: what the learning rate that `auto` finds is multiplied by.
    """
    report = prepare.examine(
        prepared, recipe.reading, template, lambda done: screen.progress("checking", done, None)
    )
    screen.checked(prepared, report)
    for note in prepared.documents.notes if prepared.documents else ():
        screen.say(note)
    prepare.refuse(prepared, recipe.reading, report)
    prepare.write_data(prepared, folder)
    ledger = prepare.weigh(prepared, template)
    settled, reasons = prepare.resolve_auto(recipe, prepared.split, ledger, model, template)
    if rate != 1 and recipe.train.learning_rate == "auto":
        wanted = float(settled.train.learning_rate) * rate
        settled = recipes.with_values(settled, {"train.learning_rate": wanted})
        reasons.append(f"train.learning_rate = {wanted:g} ({rate:g} times that)")
    for reason in reasons:
        screen.say(reason)
    folder.write_json("ledger.json", asdict(ledger))
    folder.write_json("findings.json", report.to_json())
    folder.write(folder.recipe.name, recipes.dump(settled))
    # Last: its presence says that everything before it is whole.
    about = environment(settled, model, prepared.key)
    folder.write_json("environment.json", {**about, "key": key})
    return settled


def environment(recipe: Recipe, model: ModelSpec, data_hash: str) -> dict[str, Any]:
    """Versions, hardware, seed and hashes: what it takes to make the numbers again."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "versions": {"python": platform.python_version(), **versions},
        "hardware": {
            "machine": platform.machine(),
            "system": platform.platform(),
            "cores": psutil.cpu_count(),
            "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        },
        "git_revision": _git_revision(),
        "seed": recipe.train.seed,
        "data_sha256": data_hash,
        "base_weights_sha256": model.weights_hash,
        "base_revision": model.revision,
    }


def _git_revision() -> str | None:
    """The commit of the folder that the command was typed in, where it is a repository."""
    git = shutil.which("git")
    if git is None:
        return None
    ran = subprocess.run(
        [git, "rev-parse", "HEAD"], capture_output=True, text=True, errors="replace", check=False
    )
    return ran.stdout.strip() if ran.returncode == 0 else None

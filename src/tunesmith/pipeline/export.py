"""A tuned model as files for other programs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

from tunesmith.errors import ModelError, UsageError
from tunesmith.models import fetch
from tunesmith.models.lifetime import environment
from tunesmith.store import Store

Form = Literal["adapter", "merged"]


def export(name: str, to: Form, out: Path, *, dtype: str = "auto") -> dict[str, Any]:
    """Write a registered model to a folder that is not there yet.

    Args:
        to: `adapter` is PEFT's format, `merged` a model of transformers with the adapter in its weights.
        dtype: of merged weights; `auto` is what the base's files hold.

    Returns:
        {"out"}, and where weights were merged how far the files are from the adapter (merge.Merged).

    Raises:
        UsageError: there is no such model, the folder is taken, or there is no adapter to write.
        ModelError: the merged weights do not answer as the adapter does.
    """
    with Store.at(fetch.home()) as store:
        found = store.model(name)
    if found is None:
        raise UsageError(f"there is no tuned model {name}", remedy="See tunesmith models list.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is there already", expected="a folder to be made")
    if found.adapter_folder is None and to == "adapter":
        raise UsageError(
            f"{name} has no adapter: all its weights were trained", expected="--to merged"
        )
    if found.adapter_folder is None or to == "adapter":
        shutil.copytree(found.adapter_folder or found.base_folder, out, dirs_exist_ok=True)
        return {"out": str(out)}
    if out.is_dir():
        out.rmdir()
    out.parent.mkdir(parents=True, exist_ok=True)
    ran = subprocess.run(
        [sys.executable, "-m", "tunesmith.models.merge", found.base_folder, found.adapter_folder,
         str(out), "--dtype", dtype],
        env=environment(), capture_output=True, text=True, errors="replace", check=False,
    )  # fmt: skip
    lines = ran.stdout.strip().splitlines()
    said = json.loads(lines[-1]) if lines else {"error": ran.stderr.strip()[-300:]}
    if "error" in said:
        raise ModelError(said["error"])
    return {"out": str(out), **said}

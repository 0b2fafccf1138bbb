"""An adapter at another scale than it was trained with: less of it forgets less."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tunesmith.errors import UsageError


def hindrance(adapter: Path) -> str:
    """Why an adapter has no scale; empty where it has one."""
    config = _config(adapter)
    if config.get("use_dora"):
        return "DoRA's lengths have no scale"
    if config.get("modules_to_save"):
        return "modules that were trained whole have no scale"
    return ""


def write_scaled(adapter: Path, out: Path, scale: float) -> None:
    """Copy an adapter to a folder that is not there; what it adds is `scale` times as large.

    The weights stay as they are: lora_alpha is multiplied, which LoRA and rsLoRA are linear in.

    Raises:
        UsageError: the scale is not above 0, or the adapter has none.
    """
    if scale <= 0:
        raise UsageError(f"an adapter at the scale {scale:g}", expected="a scale above 0")
    if why := hindrance(adapter):
        raise UsageError(f"{adapter} cannot be scaled: {why}", expected="LoRA or rsLoRA")
    shutil.copytree(adapter, out)
    config = _config(adapter)
    config["lora_alpha"] *= scale
    path = out / "adapter_config.json"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _config(adapter: Path) -> dict[str, Any]:
    return json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))

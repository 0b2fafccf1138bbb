"""Writes docs/commands.md, recipe.md and settings.md from the code; `--check` only compares."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tunesmith.recipe import sections
from tunesmith.settings import Settings

DOCS = Path(__file__).parent
COMMANDS = (
    *(
        "",
        "run",
        "check",
        "advise",
        "cost",
        "train",
        "evaluate",
        "compare",
        "serve",
        "chat",
        "doctor",
    ),
    *("models", "models pull", "keys", "keys make", "keys log", "webhooks", "webhooks add"),
)


def commands() -> str:
    """Every command with its help, as the terminal shows it."""
    parts = ["# Commands\n"]
    environment = {**os.environ, "COLUMNS": "98", "NO_COLOR": "1", "TERM": "dumb"}
    for name in COMMANDS:
        call = [
            sys.executable,
            "-c",
            "from tunesmith.cli import main; main()",
            *name.split(),
            "--help",
        ]
        ran = subprocess.run(call, env=environment, capture_output=True, text=True, check=True)
        lines = [line.rstrip() for line in ran.stdout.replace("-c ", "tunesmith ").splitlines()]
        shown = "\n".join(lines).strip()
        parts.append(f"## {' '.join(['tunesmith', name]).strip()}\n\n```\n{shown}\n```\n")
    return "\n".join(parts)


def recipe() -> str:
    """Every key of the recipe with its default and what it is."""
    parts = [
        "# The recipe\n",
        "A run as YAML; every key has a default. `--set section.key=value` overrules one.\n",
    ]
    for section, model in sections().items():
        parts.append(f"## {section}\n\n| key | default | |\n|---|---|---|")
        for key, inner in model.model_fields.items():
            default = f"`{inner.get_default(call_default_factory=True)}`"
            shown = "required" if inner.is_required() else default
            parts.append(f"| `{section}.{key}` | {shown} | {inner.description} |")
        parts.append("")
    return "\n".join(parts)


def settings() -> str:
    """Every setting of the machine's owner with its default and what it is."""
    parts = [
        "# Settings\n",
        "`settings.yaml` in TUNESMITH_HOME, or environment variables, which go before the file:",
        "`slots` is `TUNESMITH_SLOTS`. An unknown setting is an error.\n",
        "| setting | default | |\n|---|---|---|",
    ]
    for key, field in Settings.model_fields.items():
        said = " ".join((field.description or "").split())
        parts.append(f"| `{key}` | `{field.default!r}` | {said} |")
    return "\n".join([*parts, ""])


def main() -> int:
    """Write the files, or say which is not as the code has it."""
    stale = 0
    for name, text in (
        ("commands.md", commands()),
        ("recipe.md", recipe()),
        ("settings.md", settings()),
    ):
        path = DOCS / name
        if "--check" in sys.argv:
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                print(f"docs/{name} is not what the code says: type make docs")
                stale = 1
        else:
            path.write_text(text, encoding="utf-8")
    return stale


if __name__ == "__main__":
    sys.exit(main())

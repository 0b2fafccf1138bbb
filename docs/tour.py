"""Runs the commands of the README's tour and writes their real output below them.

Each ```console block of README.md holds lines that begin with "$ "; a command that ends with "&"
runs in the background until its block is done. Used by `make tour`, and by the tests with other
settings.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)
START_SECONDS = 300


def commands(block: str) -> list[str]:
    """The commands of one block."""
    return [line.removeprefix("$ ") for line in block.splitlines() if line.startswith("$ ")]


def blocks(text: str) -> list[list[str]]:
    """The commands of each block of a document."""
    return [commands(found) for found in BLOCK.findall(text)]


def play(block: list[str], environment: dict[str, str]) -> str:
    """Run one block; the commands with what they printed."""
    out: list[str] = []
    behind: list[subprocess.Popen[str]] = []
    try:
        for command in block:
            out.append(f"$ {command}")
            if command.endswith("&"):
                behind.append(_start(command.rstrip("& "), environment, out))
                continue
            ran = subprocess.run(
                ["bash", "-c", command],
                cwd=ROOT,
                env=environment,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                check=False,
            )
            out += _tidy(ran.stdout, environment)
            if ran.returncode != 0:
                raise SystemExit(f"{command} ended with {ran.returncode}:\n{ran.stdout}")
    finally:
        for process in behind:
            process.terminate()
            process.communicate(timeout=60)
    return "\n".join(out) + "\n"


def _start(command: str, environment: dict[str, str], out: list[str]) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        ["bash", "-c", f"exec {command}"],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    began = time.monotonic()
    line = process.stdout.readline()
    if not line or time.monotonic() - began > START_SECONDS:
        raise SystemExit(f"{command} did not start")
    out += _tidy(line, environment)
    return process


def _tidy(text: str, environment: dict[str, str]) -> list[str]:
    """Lines without this machine's paths, and one blank line for several."""
    for path, name in ((environment["TUNESMITH_HOME"], "~/.tunesmith"), (f"{ROOT}/", "")):
        text = text.replace(path, name)
    lines = [line.rstrip() for line in text.replace(str(Path.home()), "~").splitlines()]
    return [line for line, before in zip(lines, ["", *lines], strict=False) if line or before]


def main() -> None:
    """Play every block of the README and write it anew."""
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="tour-") as home:
        environment = {
            **os.environ,
            "TUNESMITH_HOME": os.environ.get("TUNESMITH_HOME", home),
            "COLUMNS": "98",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        played = BLOCK.sub(
            lambda found: f"```console\n{play(commands(found[1]), environment)}```", text
        )
    path.write_text(played, encoding="utf-8")


if __name__ == "__main__":
    main()

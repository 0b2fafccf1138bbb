"""TRL as an oracle: 50 steps in float32 on the same rows, adapter and order: `make oracle`.

What two right trainers have in common is the loss of every step. Both take their 50 steps one after
the other; the figures go to benchmarks/results/oracle.json, and more than 1 % apart is a failure.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import page
from bench import HERE, PEERS, Worker, machine
from work import write

STEPS = 50
FIRST = 20
"""Steps whose mean loss the difference is a share of."""
LIMIT = 0.01
SETTINGS = {"steps": STEPS, "weights": "float32", "autocast": False, "padding_free": False}


def curve(name: str, command: list[str], folder: Path) -> list[float]:
    """The losses of one trainer's steps."""
    worker = Worker(name, command, folder / f"{name}.log", allocator=True)
    try:
        return worker.turn()["losses"]
    finally:
        worker.stop()


def held(ours: list[float], theirs: list[float]) -> dict[str, Any]:
    """How far two curves are apart."""
    apart = [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
    return {
        "steps": len(apart),
        "mean difference": statistics.mean(apart) / statistics.mean(theirs[:FIRST]),
        "largest difference": max(apart),
        "first step": apart[0],
        "tunesmith": ours,
        "trl": theirs,
    }


def main() -> int:
    """Run both, keep the figures, and say whether they hold."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        common = write(folder, steps=STEPS) | {"max_tokens": 2048}
        (folder / "work.json").write_text(json.dumps(common))
        asked = ["sft", str(folder), "short", json.dumps(SETTINGS)]
        ours = curve("tunesmith", [sys.executable, str(HERE / "ours.py"), *asked], folder)
        theirs = curve("trl", [PEERS, str(HERE / "peer_trl.py"), *asked], folder)
    found = {"machine": machine(), "model": common["name"], **held(ours, theirs)}
    (HERE / "results/oracle.json").write_text(json.dumps(found, indent=1) + "\n")
    page.main()
    print(
        f"{STEPS} steps in float32: the losses differ by {found['mean difference']:.5%} of their "
        f"mean, {found['largest difference']:.2g} at most, {found['first step']:.2g} at first"
    )
    return 0 if found["mean difference"] < LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())

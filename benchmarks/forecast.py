"""Is the forecast of training time any good? `python benchmarks/forecast.py --out FOLDER [SET ...]`.

For each data set, training is forecast from a dry run, and then done. CPU seconds are compared, since
other programs share the machine. One thread by default (OMP_NUM_THREADS): threads that wait for each
other on a busy machine count as CPU time.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from grid import Quiet
from work import DATA, ROOT

from tunesmith import recipe as recipes
from tunesmith.pipeline import cost, run
from tunesmith.recipe import Recipe

SETS = ("banking77", "snips_slots", "shell_commands", "text_to_sql", "venue_descriptions")
RESULT = ROOT / "benchmarks/results/forecast.json"
WITHIN = 0.25


def compare(name: str, out: Path, limit: int, settings: list[str]) -> dict[str, Any]:
    """What a run of a set took beside its forecast."""
    values: dict[str, Any] = {
        "data.files": [str(DATA / name / "train.jsonl")],
        "data.limit": limit,
        "data.test": 0,
        "train.patience": 0,
    }
    wanted = recipes.with_values(recipes.read(None, settings) if settings else Recipe(), values)
    under_way = run.open_run(wanted, out=out / name, screen=Quiet(), command="")
    run.forecast(under_way)
    run.train(under_way)
    found = cost.after(under_way.folder)
    said, took = found["forecast"]["cpu_seconds"], found["actual"]["cpu_seconds"]
    print(
        f"{name}: {found['steps']} steps, {said['value']:.0f} CPU s forecast "
        f"({said['low']:.0f} to {said['high']:.0f}), {took:.0f} taken: "
        f"{found['ratio']['cpu_seconds']:.2f}",
        flush=True,
    )
    return {"set": name, "rows": limit, **found}


def main() -> None:
    """Compare on the sets that are named, write the figures, and fail where one is beyond 25 %."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", nargs="*", default=SETS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=300)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    given = parser.parse_args()
    found = [compare(name, given.out, given.limit, given.settings) for name in given.sets]
    RESULT.write_text(json.dumps(found, indent=1) + "\n")
    beyond = [item["set"] for item in found if abs(item["ratio"]["cpu_seconds"] - 1) > WITHIN]
    if beyond:
        raise SystemExit(f"beyond {WITHIN:.0%}: {', '.join(beyond)}")


if __name__ == "__main__":
    main()

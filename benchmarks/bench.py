"""tunesmith beside its peers on this machine: `make bench`, or `python bench.py sft-long ...`.

Each peer is tried in several configurations for one turn, and its fastest is compared. Then all take
turns, one at a time; the first turn of each is left out. Ratios of medians, of this run only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import page
import psutil
import torch
from work import ROOT, write

from tunesmith.models.lifetime import environment

HERE = Path(__file__).parent
PEERS = os.environ.get("BENCH_PYTHON", str(ROOT / ".bench-venv/bin/python"))
TURNS = 5
TRL = [
    {"weights": weights, "autocast": autocast, "padding_free": flat}
    for weights, autocast in (("bfloat16", False), ("float32", True), ("float32", False))
    for flat in (False, True)
]
TRANSFORMERS = [{"weights": w, "rows": n} for w in ("bfloat16", "float32") for n in (32, 96)]
LLAMA_CPP = [{"rows": 8}, {"rows": 16}]


class Worker:
    """A program that takes turns; see turn.py."""

    def __init__(self, name: str, command: list[str], log: Path, *, allocator: bool) -> None:
        self.name, self._log = name, log
        with log.open("ab") as aside:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=aside,
                text=True,
                env=environment() if allocator else None,
            )
        self._heard()

    def turn(self) -> dict[str, Any]:
        """Let it work once; what that cost."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self._heard()

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()

    def _heard(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended: {self._log.read_text()[-600:]}")
        return json.loads(line)


@dataclass(frozen=True, slots=True)
class Contest:
    """One kind of work, ours and a peer's."""

    work: str
    name: str
    peer: str
    script: str
    variants: list[dict[str, Any]]
    unit: str
    settings: dict[str, Any]


CONTESTS = {
    **{
        f"sft-{name}": Contest("sft", name, "trl", "peer_trl.py", TRL, "rows/s", {"steps": steps})
        for name, steps in (("short", 2), ("long", 1), ("apart", 1))
    },
    **{
        f"sample-{name}-{peer}": Contest(
            "sample", name, peer, "peer_sample.py", variants, "tokens/s", {"prompts": 96}
        )
        for name in ("short", "long")
        for peer, variants in (("transformers", TRANSFORMERS), ("llama.cpp", LLAMA_CPP))
    },
}


def contest(asked: Contest, folder: Path) -> dict[str, Any]:
    """The peer's fastest configuration against ours, in turns."""
    log = folder / f"{asked.peer}.log"

    def peer(variant: dict[str, Any]) -> Worker:
        first = "sft" if asked.work == "sft" else asked.peer
        settings = json.dumps(asked.settings | variant)
        command = [PEERS, str(HERE / asked.script), first, str(folder), asked.name, settings]
        return Worker(asked.peer, command, log, allocator=variant.get("allocator", False))

    tried: list[tuple[float | None, dict[str, Any]]] = []
    for variant in asked.variants:
        best_yet = max((speed for speed, _ in tried if speed is not None), default=0.0)
        tried.append((_trial(peer, variant, best_yet), variant))
    found = [(speed, variant) for speed, variant in tried if speed is not None]
    if not found:
        raise RuntimeError(f"no configuration of {asked.peer} ran: {log.read_text()[-600:]}")
    # Ours runs with an allocator that keeps memory: the peer may have it too.
    kept = max(found, key=lambda pair: pair[0])[1] | {"allocator": True}
    tried.append((_trial(peer, kept, max(speed for speed, _ in found)), kept))
    best = max(((s, v) for s, v in tried if s is not None), key=lambda pair: pair[0])[1]
    ours = [str(HERE / "ours.py"), asked.work, str(folder), asked.name]
    workers = [
        Worker(
            "tunesmith",
            [sys.executable, *ours, json.dumps(asked.settings)],
            folder / "ours.log",
            allocator=True,
        ),
        peer(best),
    ]
    turns: list[list[dict[str, Any]]] = [[], []]
    try:
        for number in range(TURNS + 1):
            for worker, done in zip(workers, turns, strict=True):
                done.append(worker.turn())
                print(
                    f"  turn {number} {worker.name}: {_speed(done[-1]):.2f} {asked.unit}",
                    flush=True,
                )
    finally:
        for worker in workers:
            worker.stop()
    mine, theirs = (_told(kept) for kept in turns)
    return {
        "unit": asked.unit,
        "peer": asked.peer,
        "configuration": best,
        "tried": [[variant, None if s is None else round(s, 3)] for s, variant in tried],
        "tunesmith": mine,
        asked.peer: theirs,
        "ratio": round(mine["per second"]["median"] / theirs["per second"]["median"], 2),
        "ratio of cpu": round(mine["per cpu second"] / theirs["per cpu second"], 2),
        "memory": round(mine["peak MB"] / theirs["peak MB"], 2),
        "losses": _losses(turns) if asked.work == "sft" else None,
    }


def _trial(peer: Any, variant: dict[str, Any], best: float) -> float | None:
    """Units a second, the better of two turns; None where the configuration does not run.

    The first turn warms up. Where it is not half as fast as the best so far, there is no second.
    """
    worker = None
    try:
        worker = peer(variant)
        speed = _speed(worker.turn())
        if 2 * speed >= best:
            speed = max(speed, _speed(worker.turn()))
    except RuntimeError as error:
        print(f"  {variant}: {str(error)[-200:]}")
        return None
    finally:
        if worker is not None:
            worker.stop()
    print(f"  {variant}: {speed:.2f}", flush=True)
    return speed


def _speed(turn: dict[str, Any]) -> float:
    return turn["units"] / turn["wall"]


def _told(turns: list[dict[str, Any]]) -> dict[str, Any]:
    counted = turns[1:]
    speeds = sorted(map(_speed, counted))
    cpu = [turn["units"] / turn["cpu"] for turn in counted]
    share = [turn["system"] / turn["cpu"] for turn in counted]
    return {
        "per second": {
            "median": round(statistics.median(speeds), 3),
            "range": [round(speeds[0], 3), round(speeds[-1], 3)],
        },
        "per cpu second": round(statistics.median(cpu), 3),
        "system time": round(statistics.median(share), 3),
        "peak MB": round(turns[-1]["peak_mb"]),
    }


def _losses(turns: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """Both curves, and how far they are apart as a share of their mean."""
    ours, peer = ([loss for turn in kept for loss in turn["losses"]] for kept in turns)
    apart = statistics.mean(abs(a - b) for a, b in zip(ours, peer, strict=True))
    return {
        "tunesmith": ours,
        "peer": peer,
        "mean difference": round(apart / statistics.mean(ours), 5),
    }


def machine() -> dict[str, Any]:
    """What the figures hold for."""
    return {
        "processor": platform.machine(),
        "bf16": torch.cpu._is_avx512_bf16_supported(),  # pyright: ignore[reportPrivateUsage]
        "cores": psutil.cpu_count(),
        "memory GB": round(psutil.virtual_memory().total / 2**30),
        "torch": torch.__version__.partition("+")[0],
    }


def main() -> None:
    """Run the contests that are named, or all; print a table and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contests", nargs="*", help=", ".join(CONTESTS))
    parser.add_argument("--max-tokens", type=int, default=2048, help="distinct tokens in a pass")
    typed = parser.parse_args()
    unknown = [name for name in typed.contests if name not in CONTESTS]
    if unknown:
        parser.error(f"found {', '.join(unknown)}; expected some of {', '.join(CONTESTS)}")
    table: list[str] = []
    (HERE / "results").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        common = write(folder) | {"max_tokens": typed.max_tokens}
        (folder / "work.json").write_text(json.dumps(common))
        for name in typed.contests or CONTESTS:
            print(name, flush=True)
            found = contest(CONTESTS[name], folder)
            kept = {"machine": machine(), "model": common["name"], "turns": TURNS, **found}
            (HERE / "results" / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n")
            mine, theirs = (
                found[who]["per second"]["median"] for who in ("tunesmith", found["peer"])
            )
            table.append(
                f"{name:28} {mine:9.2f} {theirs:9.2f} {found['unit']:9} {found['ratio']:6.2f} x  "
                f"cpu {found['ratio of cpu']:.2f} x  memory {found['memory']:.2f}"
            )
    page.main()
    print("\n".join(table))


if __name__ == "__main__":
    main()

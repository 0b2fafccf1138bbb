"""The server under load: `make load`. Chat with many clients at once, beside llama.cpp's own server
on the same weights; then a thousand jobs created and listed in pages. Memory is watched throughout.

Each client asks, waits for the whole answer and asks again. A 429 is counted and tried again after
the seconds that it names; any other refusal is an error.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import psutil
from bench import machine

from tunesmith.models import fetch, gguf
from tunesmith.models.catalog import DEFAULT

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks/results/load.json"
TOPICS = ("a lost parcel", "a late train", "a broken kettle", "a refund", "an invoice", "a visa")
MAX_TOKENS = 32


@dataclass
class Told:
    """What the clients saw. Seconds from asking to the whole answer, and tokens of answers."""

    seconds: list[float] = field(default_factory=list[float])
    tokens: int = 0
    refused: int = 0
    errors: Counter[str] = field(default_factory=Counter[str])
    memory: list[int] = field(default_factory=list[int])
    """Resident megabytes of the server and all below it, once a second."""


def asked(draw: random.Random) -> list[dict[str, str]]:
    """A short chat that no other client begins with the same user turn."""
    topic = draw.choice(TOPICS)
    return [
        {"role": "system", "content": "You are the desk of a small shop. Answer in one sentence."},
        {"role": "user", "content": f"Order {draw.randrange(10**6)}: I write about {topic}. Help!"},
    ]


async def client(ask: openai.AsyncOpenAI, model: str, told: Told, until: float, seed: int) -> None:
    """One client, to the end of the time."""
    draw = random.Random(seed)
    while time.monotonic() < until:
        began = time.monotonic()
        try:
            answer = await ask.chat.completions.create(
                model=model,
                messages=asked(draw),  # pyright: ignore[reportArgumentType]
                max_tokens=MAX_TOKENS,
                temperature=0.7,
            )
        except openai.RateLimitError as error:
            told.refused += 1
            await asyncio.sleep(float(error.response.headers.get("retry-after", "1")))
            continue
        except openai.APIError as error:
            told.errors[f"{type(error).__name__}: {error}"[:200]] += 1
            continue
        told.seconds.append(time.monotonic() - began)
        told.tokens += answer.usage.completion_tokens if answer.usage else 0


async def load(url: str, model: str, pid: int, *, clients: int, seconds: float) -> Told:
    """All clients at once, and the memory of what they talk to."""
    told, until = Told(), time.monotonic() + seconds
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=600) as ask:

        async def watch() -> None:
            while time.monotonic() < until:
                told.memory.append(resident(pid))
                await asyncio.sleep(1)

        everyone = [client(ask, model, told, until, seed) for seed in range(clients)]
        await asyncio.gather(watch(), *everyone)
    return told


def resident(pid: int) -> int:
    """Megabytes that a process and its children hold."""
    top = psutil.Process(pid)
    total = 0
    for process in (top, *top.children(recursive=True)):
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total // 2**20


def summary(told: Told, seconds: float) -> dict[str, Any]:
    """Numbers to print and keep."""
    ordered = sorted(told.seconds)
    points = {
        f"p{share}": ordered[min(len(ordered) - 1, len(ordered) * share // 100)]
        if ordered
        else None
        for share in (50, 95, 99)
    }
    # The engine and its cache are warm after a quarter.
    half = told.memory[len(told.memory) // 4 :]
    return {
        "answers": len(ordered),
        "answers_per_second": len(ordered) / seconds,
        "tokens_per_second": told.tokens / seconds,
        "latency_seconds": points,
        "refused_429": told.refused,
        "errors": dict(told.errors),
        "memory_mb": {
            "first": half[0] if half else None,
            "last": half[-1] if half else None,
            "most": max(told.memory, default=None),
        },
    }


PEER = """
import sys, xllamacpp
path, slots = sys.argv[1], int(sys.argv[2])
p = xllamacpp.CommonParams()
p.model.path, p.n_parallel, p.n_ctx, p.port = path, slots, slots * 1024, 0
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = int(sys.argv[3])
p.n_threads_http, p.verbosity, p.warmup, p.ui, p.cache_ram_mib = 256, 0, False, False, 0
server = xllamacpp.Server(p)
print(server.listening_address, flush=True)
sys.stdin.read()
"""
"""llama.cpp's own server with as many slots as our engine has rows."""


@contextmanager
def peer(folder: Path) -> Generator[tuple[str, int]]:
    """llama.cpp's server on the same weights, in float16: its URL and process id."""
    path = str(gguf.base(folder))
    process = subprocess.Popen(
        [sys.executable, "-c", PEER, path, "32", str(os.cpu_count())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield f"{process.stdout.readline().strip()}/v1", process.pid
    finally:
        process.terminate()
        process.wait(60)


@contextmanager
def server(home: Path, *options: str) -> Generator[tuple[str, int]]:
    """`tunesmith serve` on a free port: its URL and process id."""
    command = [sys.executable, "-c", "from tunesmith.cli import main; main()", "serve"]
    environment = {**os.environ, "TUNESMITH_HOME": str(home)}
    with (home / "server.log").open("ab") as log:
        process = subprocess.Popen(
            [*command, "--port", "0", *options],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        assert process.stdout is not None
        said = process.stdout.readline().split()
        assert said, (home / "server.log").read_text()[-2000:]
        yield said[-1], process.pid
    finally:
        process.terminate()
        process.wait(60)


def jobs(url: str, count: int) -> dict[str, Any]:
    """Create jobs that wait for a worker that is not there, and read them all in pages."""
    ask = openai.OpenAI(base_url=url, api_key="none", max_retries=8)
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    content = (json.dumps(row) + "\n").encode() * 10
    file = ask.files.create(file=("rows.jsonl", content), purpose="fine-tune")
    took: list[float] = []
    for seed in range(count):
        began = time.monotonic()
        ask.fine_tuning.jobs.create(model=DEFAULT, training_file=file.id, seed=seed)
        took.append(time.monotonic() - began)
    began = time.monotonic()
    found = [job.id for job in ask.fine_tuning.jobs.list(limit=100)]
    listed = time.monotonic() - began
    assert len(set(found)) == len(found) == count, f"{len(found)} jobs are listed"
    return {
        "created": count,
        "create_seconds_median": statistics.median(took),
        "create_seconds_most": max(took),
        "list_all_seconds": listed,
    }


def main() -> None:
    """Run all parts, print them side by side and keep them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--jobs", type=int, default=1000)
    given = parser.parse_args()
    found: dict[str, Any] = {"machine": machine(), "clients": given.clients}
    folder = fetch.resolve(DEFAULT).folder
    with tempfile.TemporaryDirectory(prefix="load-") as name:
        home = Path(name)
        (home / "models").symlink_to(folder.parent)
        with server(home, "--no-worker") as (url, pid):
            told = asyncio.run(
                load(url, DEFAULT, pid, clients=given.clients, seconds=given.seconds)
            )
            found["tunesmith"] = summary(told, given.seconds)
            print(json.dumps(found["tunesmith"], indent=2), flush=True)
            before = resident(pid)
            found["jobs"] = jobs(url, given.jobs)
            found["jobs"]["memory_mb"] = {"before": before, "after": resident(pid)}
            print(json.dumps(found["jobs"], indent=2), flush=True)
    with peer(folder) as (url, pid):
        told = asyncio.run(load(url, DEFAULT, pid, clients=given.clients, seconds=given.seconds))
        found["llama.cpp"] = summary(told, given.seconds)
        print(json.dumps(found["llama.cpp"], indent=2), flush=True)
    RESULT.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Jobs under fire: `make torture`, or `python torture.py --rounds N --database sqlite|postgresql`.

A server and a worker share a store; the openai package uploads a file and creates a job. In each
round processes are killed with -9 at random moments: the server, the worker, the process of a job's
step, the trainer. Each round ends with a job that has to be what it is without kills: the same
adapter byte for byte, the same result file, every step, checkpoint and message told once, one job
for one create. At the end nothing may be left running.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import psutil

from tunesmith.testing import postgresql, tiny_model

ROWS, EPOCHS, BATCH = 16, 2, 4
LEASE_SECONDS = 2.0
ROUND_SECONDS = 240.0
"""A round that has not ended by then has lost its job."""


@dataclass
class Site:
    """A server and a worker, started anew whenever they are gone."""

    home: Path
    base: Path
    database: str
    port: int
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    kills: Counter[str] = field(default_factory=Counter)

    def start(self, name: str) -> None:
        """Start the server or the worker."""
        commands = {
            "server": [
                *("serve", "--model", str(self.base), "--port", str(self.port)),
                *("--no-worker", "--no-preload"),
            ],
            "worker": ["worker"],
        }
        environment = {
            **os.environ,
            "TUNESMITH_HOME": str(self.home),
            "TUNESMITH_DATABASE": self.database,
            "TUNESMITH_LEASE_SECONDS": str(LEASE_SECONDS),
            "TUNESMITH_ATTEMPTS": "1000",
            "OMP_NUM_THREADS": "1",
        }
        with (self.home / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                [sys.executable, "-c", "from tunesmith.cli import main; main()", *commands[name]],
                env=environment,
                stdout=log,
                stderr=log,
            )

    def keep(self) -> None:
        """Start what is gone."""
        for name, process in list(self.running.items()):
            if process.poll() is not None:
                self.start(name)

    def targets(self) -> dict[str, int]:
        """What can be killed just now: name -> process id."""
        found = {name: process.pid for name, process in self.running.items()}
        with suppress(psutil.NoSuchProcess):
            for step in psutil.Process(found["worker"]).children():
                found["step"] = step.pid
                for trainer in step.children():
                    found["trainer"] = trainer.pid
        return found

    def kill(self, draw: random.Random) -> None:
        """Kill one of what runs, each kind as likely as another."""
        name, pid = draw.choice(sorted(self.targets().items()))
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            self.kills[name] += 1

    def end(self) -> None:
        """Stop both, as a person would."""
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            process.wait(30)


@contextmanager
def site(folder: Path, database: str) -> Generator[Site]:
    """A site with an empty store."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder.mkdir(exist_ok=True)
    base = tiny_model(folder / "base", family="llama", initializer_range=0.2)
    home = folder / "home"
    home.mkdir(parents=True)
    made = Site(home, base, database, port)
    for name in ("server", "worker"):
        made.start(name)
    try:
        yield made
    finally:
        made.end()


def rows(numbers: range) -> bytes:
    """A training file."""
    out = [
        {
            "messages": [
                {"role": "user", "content": f"What comes after {number}?"},
                {"role": "assistant", "content": str(number + 1)},
            ]
        }
        for number in numbers
    ]
    return "".join(json.dumps(row) + "\n" for row in out).encode()


@dataclass(frozen=True)
class Ended:
    """What a job came to."""

    id: str
    adapter: bytes
    result: bytes
    steps: tuple[tuple[str, Any], ...]
    checkpoints: tuple[int, ...]
    models: tuple[str, ...]


def job(client: openai.OpenAI, site: Site) -> Ended:
    """Create a job, wait for its end, and read everything that it left.

    Raises:
        AssertionError: it did not end as it should.
    """
    before = {made.id for made in client.fine_tuning.jobs.list(limit=100)}
    file, held = (
        client.files.create(file=("rows.jsonl", rows(numbers)), purpose="fine-tune")
        for numbers in (range(ROWS), range(100, 104))
    )
    created = client.fine_tuning.jobs.create(
        model=site.base.name,
        training_file=file.id,
        validation_file=held.id,
        seed=7,
        suffix="torture",
        method={
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": EPOCHS, "batch_size": BATCH}},
        },
    )
    began = time.monotonic()
    while True:
        found = client.fine_tuning.jobs.retrieve(created.id)
        if found.status in ("succeeded", "failed", "cancelled"):
            break
        assert time.monotonic() - began < ROUND_SECONDS, f"{created.id} is still {found.status}"
        time.sleep(0.2)
    assert found.status == "succeeded", f"{created.id}: {found.status}, {found.error}"
    after = {made.id for made in client.fine_tuning.jobs.list(limit=100)}
    assert after - before == {created.id}, f"created {after - before} and asked for one"
    events = list(client.fine_tuning.jobs.list_events(created.id, limit=100))
    messages = Counter(event.message for event in events if event.type == "message")
    twice = [text for text, count in messages.items() if count > 1 and "crash" not in text]
    assert not twice, f"told twice: {twice}"
    assert len({event.id for event in events}) == len(events)
    named = [event.data for event in events if event.type == "metrics"]
    told = Counter((data["step"], "valid_loss" in data) for data in named)
    assert max(told.values()) == 1, f"a step was told twice: {told}"
    folder = site.home / "jobs" / created.id
    name = found.fine_tuned_model
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(created.id, limit=100))
    return Ended(
        created.id,
        (folder / "adapter" / "adapter_model.safetensors").read_bytes(),
        client.files.content(found.result_files[0]).read(),
        tuple(
            sorted((data["step"], data["train_loss"]) for data in named if "valid_loss" not in data)
        ),
        tuple(sorted(item.step_number for item in checkpoints)),
        tuple(
            sorted(
                model.id.replace(created.id[6:14], "ID")
                for model in client.models.list()
                if model.id == name or model.id.startswith(f"{name}:")
            )
        ),
    )


def hold(site: Site, over: threading.Event, draw: random.Random, times: list[float]) -> None:
    """Kill at the given seconds from now, and start again what is gone, until `over`."""
    began = time.monotonic()
    for at in times:
        while time.monotonic() - began < at and not over.wait(0.1):
            site.keep()
        if over.is_set():
            break
        site.kill(draw)
    while not over.wait(0.1):
        site.keep()


def same(wanted: Ended, found: Ended) -> list[str]:
    """What is not as it is without kills."""
    names = ("adapter", "result", "steps", "checkpoints", "models")
    return [name for name in names if getattr(wanted, name) != getattr(found, name)]


def torture(folder: Path, database: str, rounds: int, seed: int) -> Counter[str]:
    """All rounds on one store; how often what was killed.

    Raises:
        AssertionError: a job was lost, changed or made twice.
    """
    draw = random.Random(seed)
    with site(folder, database) as made:
        client = openai.OpenAI(
            base_url=f"http://127.0.0.1:{made.port}/v1", api_key="none", max_retries=60
        )
        began = time.monotonic()
        while True:
            try:
                client.with_options(max_retries=0).models.list()
                break
            except openai.APIConnectionError:
                assert time.monotonic() - began < 60, "the server does not start"
                time.sleep(0.2)
        began = time.monotonic()
        wanted = job(client, made)
        usual = time.monotonic() - began
        print(f"without kills: {usual:.1f} s, {len(wanted.steps)} steps", flush=True)
        for number in range(1, rounds + 1):
            over, began = threading.Event(), time.monotonic()
            times = sorted(draw.uniform(0, usual) for _ in range(draw.randint(1, 3)))
            killing = threading.Thread(target=hold, args=(made, over, draw, times))
            killing.start()
            try:
                found = job(client, made)
            finally:
                over.set()
                killing.join()
            changed = same(wanted, found)
            assert not changed, f"round {number}: {found.id} differs in {changed}"
            took = time.monotonic() - began
            print(
                f"round {number}: {took:.1f} s, kills at {[round(at, 1) for at in times]}",
                flush=True,
            )
    left = [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if str(folder) in " ".join(process.info["cmdline"] or ()) and process.pid != os.getpid()
    ]
    assert not left, f"still running: {left}"
    return made.kills


def main() -> None:
    """Read the options and go."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], action="append")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for kind in given.database or ("sqlite", "postgresql"):
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="torture-") as name:
            folder = Path(name)
            if kind == "sqlite":
                kills = torture(
                    folder, f"sqlite:///{folder / 'store.db'}", given.rounds, given.seed
                )
            else:
                with postgresql() as url:
                    kills = torture(folder, url, given.rounds, given.seed)
        took = time.monotonic() - began
        said = ", ".join(f"{name} {count}" for name, count in sorted(kills.items()))
        print(
            f"{kind}: {given.rounds} rounds in {took:.0f} s, killed: {said}; nothing lost",
            flush=True,
        )


if __name__ == "__main__":
    main()

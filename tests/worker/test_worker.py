from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tunesmith.models.fetch import home
from tunesmith.settings import Settings
from tunesmith.store import Store
from tunesmith.store.blobs import Blobs
from tunesmith.store.files import File
from tunesmith.store.jobs import Job
from tunesmith.worker.worker import Worker


@dataclass
class Site:
    """A store with a way to fill it."""

    store: Store
    home: Path
    base: Path
    settings: Settings

    def file(self, name: str, lines: list[Any]) -> str:
        """A training file of these rows."""
        content = "".join(
            (line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines
        ).encode()
        file_id = f"file-{name:0>8}"
        Blobs(self.home / "files").put(file_id, content)
        self.store.files.add(
            File(file_id, "default", f"{name}.jsonl", "fine-tune", len(content), time.time())
        )
        return file_id

    def job(self, name: str, file: str, **hyperparameters: object) -> Job:
        """A job of three epochs, six rows a step, with some validation rows."""
        numbers = {"n_epochs": 3, "batch_size": 6, **hyperparameters}
        held = f"held{name}"
        held = self.file(held, [row(number) for number in range(100, 104)])
        made = self.store.jobs.create(
            Job(
                id=f"ftjob-{name:0>8}",
                project="default",
                key=None,
                fingerprint=name,
                model=str(self.base),
                base=str(self.base),
                training_file=file,
                validation_file=held,
                suffix="My Run",
                seed=3,
                method={"type": "supervised", "supervised": {"hyperparameters": numbers}},
                metadata=None,
                status="validating_files",
                created_at=time.time(),
            ),
            most=100,
        )
        assert made is not None
        return made

    def status(self, job: Job) -> str:
        """How the job is doing."""
        found = self.store.jobs.get(job.id)
        assert found is not None
        return found.status

    def messages(self, job: Job) -> list[str]:
        """What was told, oldest first."""
        return [event.message for event in self.store.jobs.events(job.id, limit=100).rows][::-1]


def row(number: int) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": f"What comes after {number}?"},
            {"role": "assistant", "content": str(number + 1)},
        ]
    }


@pytest.fixture
def site(database: str, tiny: Callable[..., Path]) -> Generator[Site]:
    with Store(database) as store:
        yield Site(store, home(), tiny("llama"), Settings(lease_seconds=2.0, attempts=3))


async def until(worker: Worker, done: Callable[[], bool], *, seconds: float = 90) -> None:
    """Let a worker work until something holds, and a little longer."""
    stop = asyncio.Event()
    working = asyncio.create_task(worker.run(stop))
    began = time.monotonic()
    while not done() and not working.done():
        assert time.monotonic() - began < seconds, "it does not come to that"
        await asyncio.sleep(0.05)
    stop.set()
    await working


def work(site: Site, done: Callable[[], bool], command: Path | None = None) -> Worker:
    """A worker that works until something holds; with a script in place of the real step."""
    given = {} if command is None else {"command": (sys.executable, str(command))}
    worker = Worker(site.store, site.home, site.settings, **given)
    asyncio.run(until(worker, done))
    return worker


def script(folder: Path, text: str) -> Path:
    """A step that does as it is told: `folder` and `say` are there."""
    path = folder / "step.py"
    head = (
        "import json, os, sys, time, signal, subprocess\n"
        "spec = json.load(open(sys.argv[1]))\n"
        "folder = spec['folder']\n"
        "def say(**event): print(json.dumps(event), flush=True)\n"
        "if spec['step'] == 'check':\n"
        "    say(type='checked', hyperparameters={'n_epochs': 3})\n"
        "    sys.exit(0)\n"
    )
    path.write_text(head + text)
    return path


def gone(site: Site) -> bool:
    """Whether nothing runs any more that names this test's home."""
    return not [
        process
        for process in psutil.process_iter(["cmdline"])
        if str(site.home) in " ".join(process.info["cmdline"] or ())
    ]


def test_a_file_that_is_refused_fails_the_job_with_openais_code(site: Site) -> None:
    made = site.job("a", site.file("a", [row(number) for number in range(3)]))
    work(site, lambda: site.status(made) == "failed")
    found = site.store.jobs.get(made.id)
    assert found is not None
    assert found.error is not None
    assert found.error["code"] == "invalid_n_examples"
    assert "has 3 example(s), but must have at least 10 examples" in found.error["message"]
    assert found.error["param"] == "training_file"


def whole(site: Site, made: Job) -> None:
    """The job ended with model, checkpoints and result file."""
    found = site.store.jobs.get(made.id)
    assert found is not None
    assert (found.status, found.error) == ("succeeded", None)
    numbers = found.method["supervised"]["hyperparameters"]
    assert numbers == {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 1.0}
    assert found.fine_tuned_model == f"ft:{site.base.name}:local:my-run:000whole"
    model = site.store.model(found.fine_tuned_model, "default")
    assert model is not None
    assert model.adapter_folder is not None
    assert (Path(model.adapter_folder) / "adapter_model.safetensors").is_file()
    checkpoints = site.store.jobs.checkpoints(made.id).rows
    assert checkpoints[0].step == 9
    for item in checkpoints:
        kept = site.store.model(item.model, "default")
        assert kept is not None
        assert (Path(str(kept.adapter_folder)) / "adapter_config.json").is_file()
        assert item.metrics["full_valid_loss"] > 0
        assert 0 <= item.metrics["train_mean_token_accuracy"] <= 1
    assert found.result_file is not None
    lines = Blobs(site.home / "files").path(found.result_file).read_text().splitlines()
    assert lines[0] == "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"
    assert len(lines) >= 10
    said = site.messages(made)
    assert said[0] == f"Created fine-tuning job: {made.id}"
    assert "Step 9/9" in " ".join(said)
    assert said[-1] == "The job has successfully completed"
    assert found.trained_tokens is not None
    assert found.trained_tokens > 0


# On SQLite jobs are killed in test_torture, and run whole in test_examples.
@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_job_ends_with_all_it_makes_and_one_whose_worker_is_killed_ends_the_same(
    site: Site,
) -> None:
    file = site.file("a", [row(number) for number in range(12)])
    made = site.job("whole", file, batch_size="auto")
    work(site, lambda: site.status(made) not in ("validating_files", "queued", "running"))
    whole(site, made)
    torn = site.job("torn", file, batch_size="auto")
    environment = {
        **os.environ,
        "TUNESMITH_DATABASE": site.store.url,
        "TUNESMITH_LEASE_SECONDS": "2",
    }
    command = [sys.executable, "-m", "tunesmith.worker"]
    first = subprocess.Popen(command, env=environment)
    began = time.monotonic()
    while not any("Step 2/" in said for said in site.messages(torn)):
        assert time.monotonic() - began < 60
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    work(site, lambda: site.status(torn) == "succeeded")
    for name in ("adapter/adapter_model.safetensors", "data/train.jsonl"):
        kept = [site.home / "jobs" / job.id / name for job in (made, torn)]
        assert kept[0].read_bytes() == kept[1].read_bytes()
    told = [
        [(event.type, event.data) for event in site.store.jobs.events(job.id, limit=100).rows]
        for job in (made, torn)
    ]
    metrics = [[data for kind, data in side if kind == "metrics"] for side in told]
    assert metrics[0] == metrics[1]
    assert site.messages(torn).count("Fine-tuning job started") == 1
    assert gone(site)


ENDLESS = (
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)', folder])\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "say(type='training', steps=9)\n"
    "time.sleep(600)\n"
)


@pytest.mark.parametrize("end", ["cancel", "pause"])
def test_cancel_and_pause_reach_the_process_within_two_seconds(
    site: Site, tmp_path: Path, end: str
) -> None:
    made = site.job("a", site.file("a", [row(1)]))
    took = 0.0

    async def go() -> None:
        nonlocal took
        stop = asyncio.Event()
        command = (sys.executable, str(script(tmp_path, ENDLESS)))
        worker = Worker(site.store, site.home, site.settings, command=command)
        working = asyncio.create_task(worker.run(stop))
        while site.status(made) != "running" or gone(site):
            await asyncio.sleep(0.05)
        assert getattr(site.store.jobs, end)(made.id, "default") is not None
        began = time.monotonic()
        while not gone(site):
            await asyncio.sleep(0.02)
        took = time.monotonic() - began
        stop.set()
        await working

    asyncio.run(go())
    assert took < 2
    found = site.store.jobs.get(made.id)
    assert found is not None
    assert found.worker is None
    assert found.status == {"cancel": "cancelled", "pause": "paused"}[end]


def test_a_worker_that_is_told_to_stop_gives_its_job_back_at_once(
    site: Site, tmp_path: Path
) -> None:
    made = site.job("a", site.file("a", [row(1)]))
    work(site, lambda: site.status(made) == "running", script(tmp_path, ENDLESS))
    assert site.status(made) == "queued"
    assert gone(site)


def test_a_job_that_only_crashes_fails_after_some_attempts_and_says_so(
    site: Site, tmp_path: Path
) -> None:
    made = site.job("a", site.file("a", [row(1)]))
    dying = script(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)\n")
    work(site, lambda: site.status(made) == "failed", dying)
    found = site.store.jobs.get(made.id)
    assert found is not None
    assert found.error is not None
    assert found.error["code"] == "server_error"
    assert "crashed 3 times" in found.error["message"]


def test_several_jobs_are_trained_one_after_the_other_in_the_order_of_their_creation(
    site: Site, tmp_path: Path
) -> None:
    order = tmp_path / "order"
    step = script(
        tmp_path,
        f"open({str(order)!r}, 'a').write(spec['files']['training']['filename'] + ' ')\n"
        "say(type='error', code='x', message='no', param=None)\n"
        "sys.exit(1)\n",
    )
    jobs = [site.job(name, site.file(name, [row(1)])) for name in "abc"]
    work(site, lambda: all(site.status(job) == "failed" for job in jobs), step)
    assert order.read_text() == "a.jsonl b.jsonl c.jsonl "


def test_expired_files_go_with_their_bytes(site: Site) -> None:
    blobs = Blobs(site.home / "files")
    blobs.put("file-00000old", b"x")
    now = time.time()
    late = File("file-00000old", "default", "a.jsonl", "fine-tune", 1, now - 9, now - 1)
    site.store.files.add(late)
    job = site.job("old", "file-00000old")
    site.store.jobs.cancel(job.id, "default")
    copied = site.home / "jobs" / job.id / "data" / "train.jsonl"
    copied.parent.mkdir(parents=True)
    copied.write_text("{}")
    work(site, lambda: not (blobs.path("file-00000old").exists() or copied.exists()))

"""schemathesis over the contract of the API, against a server with a tiny model.

    python benchmarks/conform.py CONTRACT.yaml [--paths REGEX] [--examples N]

Every answer is held against its schema and its content type, errors too, and none may be a 5xx. Where
the contract contradicts itself or the service that it describes, EXCEPTIONS says how it is read.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from openai import OpenAI

from tunesmith.store import Store
from tunesmith.store.answers import StoredCompletion
from tunesmith.testing import tiny_model

PATHS = r"^/(files|uploads|fine_tuning/jobs|fine_tuning/checkpoints|models|chat/completions)"
CASES = 2_000
CHECKS = "not_a_server_error,response_schema_conformance,content_type_conformance"
COPIES = 40
"""How many there are of each kind of thing that cases may delete."""
Exceptions = list[tuple[tuple[str, ...], Any, str]]
EXCEPTIONS: Exceptions = [
    (
        ("components", "schemas", "FineTuningJob", "properties", "status", "enum"),
        ["paused"],
        "the contract's own example of a paused job has this status, its enum has not",
    ),
    (
        ("components", "schemas", "OpenAIFile", "properties", "purpose", "enum"),
        ["evals"],
        "files may be created for evals, and then have that purpose",
    ),
    (
        ("paths", "/files/{file_id}/content", "get", "responses", "200", "content"),
        {"application/jsonl": {}, "text/csv": {}, "application/octet-stream": {}},
        "a file's content is no JSON string; OpenAI sends the bytes as well",
    ),
    (
        (
            *("components", "schemas", "ChatCompletionResponseMessage", "properties"),
            *("role", "enum"),
        ),
        ["system", "developer", "user", "tool"],
        "the messages of a stored completion are those of its request, by any role",
    ),
]
SETTINGS = {"TUNESMITH_REQUESTS_PER_MINUTE": "1000000", "TUNESMITH_MAX_OPEN_JOBS": "100000"}
SERVE = """
import asyncio, sys
from pathlib import Path
from tunesmith.api.app import serve
from tunesmith.serve.router import Deployment
from tunesmith.store import Store
home = Path(sys.argv[1])
def say(url):
    print(url, flush=True)
with Store.at(home) as store:
    base = Deployment("tiny", "tiny", home / "tiny")
    asyncio.run(serve(base, store, logs=home / "logs", port=0, announce=say))
"""


def main() -> int:
    """Serve, fill, try, and say what was seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contract", type=Path)
    parser.add_argument("--paths", default=PATHS)
    parser.add_argument("--examples", type=int, default=60, help="fuzzed cases of an operation")
    parser.add_argument("--cases", type=int, default=CASES, help="least cases that count")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, served(Path(folder)) as url:
        known = fill(Path(folder), url)
        contract = yaml.load(asked.contract.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
        amend(contract, known)
        amended = Path(folder) / "contract.yaml"
        amended.write_text(yaml.safe_dump(contract), encoding="utf-8")
        command = [
            *(str(Path(sys.executable).with_name("schemathesis")), "run", str(amended)),
            *("--url", f"{url}/v1", "--include-path-regex", asked.paths, "--checks", CHECKS),
            *("--phases", "examples,coverage,fuzzing", "--max-examples", str(asked.examples)),
            *("--generation-deterministic", "--continue-on-failure", "--warnings", "off"),
            *("--request-timeout", "60", "--no-color"),
        ]
        run = subprocess.run(command, text=True, stdout=subprocess.PIPE, cwd=folder)
        print(run.stdout.replace(folder, ""))
    for _, change, why in EXCEPTIONS:
        print(f"exception: {', '.join(change)}: {why}")
    found = re.search(r"(\d[\d,]*) generated", run.stdout)
    cases = int(found[1].replace(",", "")) if found else 0
    print(f"{cases:,} cases, of at least {asked.cases:,}")
    return 0 if run.returncode == 0 and cases >= asked.cases else 1


@contextmanager
def served(home: Path) -> Generator[str]:
    """The URL of a server with a tiny model."""
    tiny_model(home / "tiny")
    command = [sys.executable, "-c", SERVE, str(home)]
    at_home = {"TUNESMITH_HOME": str(home)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | SETTINGS | at_home
    ) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.terminate()


def fill(home: Path, url: str) -> dict[str, list[str]]:
    """Something of every kind, so that cases find what they ask for: ids by parameter."""
    client = OpenAI(base_url=f"{url}/v1", api_key="any")
    files = [
        client.files.create(file=(f"{n}.jsonl", b"{}\n"), purpose="fine-tune").id
        for n in range(COPIES)
    ]
    uploads = [
        client.uploads.create(bytes=2, filename="a", mime_type="text/plain", purpose="batch").id
        for _ in range(COPIES)
    ]
    for upload in uploads:
        client.uploads.parts.create(upload, data=b"{}")
    jobs = [
        client.fine_tuning.jobs.create(model="tiny", training_file=files[0], seed=n).id
        for n in range(COPIES)
    ]
    models = [f"ft:tiny:local::{n}:ckpt-step-1" for n in range(COPIES)]
    completions = [f"chatcmpl-{n}" for n in range(COPIES)]
    with Store.at(home) as store:
        for n, job_id in enumerate(jobs[: COPIES // 2]):
            job = store.leases.claim("conform", train=False, lease=60)
            assert job is not None
            store.leases.checked(job, "conform", method=job.method, estimated=time.time())
            if n % 2:
                client.fine_tuning.jobs.pause(job_id)
        for n, name in enumerate(models):
            now = time.time()
            store.register_model(
                name,
                base="tiny",
                base_hash="00",
                base_folder=home / "tiny",
                adapter_folder=None,
                project="default",
            )
            store.answers.add(stored(completions[n], now))
        permissions = [store.jobs.permit(name, ("default",))[0].id for name in models]
    return {
        "file_id": files,
        "training_file": files,
        "upload_id": uploads,
        "fine_tuning_job_id": jobs,
        "model": ["tiny", *models],
        "fine_tuned_model_checkpoint": models,
        "permission_id": permissions,
        "completion_id": completions,
    }


def stored(completion: str, now: float) -> StoredCompletion:
    """A stored completion."""
    message = {"role": "assistant", "content": "said", "refusal": None}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    body = {
        "id": completion,
        "object": "chat.completion",
        "created": int(now),
        "model": "tiny",
        "choices": [choice],
    }
    asked = [{"role": "user", "content": "Say."}]
    return StoredCompletion(completion, "default", "tiny", None, asked, body, now, now + 3_600)


def amend(contract: dict[str, Any], known: dict[str, list[str]]) -> None:
    """Read the contract with its exceptions, let cases name what is there, and describe errors."""
    for place, change, _ in EXCEPTIONS:
        at = contract
        for name in place[:-1]:
            at = at[name]
        at[place[-1]] = [*at[place[-1]], *change] if isinstance(change, list) else change
    refused = {"$ref": "#/components/schemas/ErrorResponse"}
    error = {"description": "error", "content": {"application/json": {"schema": refused}}}
    for methods in contract["paths"].values():
        for operation in methods.values():
            operation["responses"]["default"] = error
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "path" and parameter["name"] in known:
                    parameter["schema"] = named(known[parameter["name"]])
    schemas = contract["components"]["schemas"]
    job = schemas["CreateFineTuningJobRequest"]["properties"]
    for name in ("model", "training_file"):
        job[name] = named(known[name])
    # Most cases name no model of a long list; the engine is to see some of them.
    schemas["CreateChatCompletionRequest"]["allOf"][1]["properties"]["model"] = named(["tiny"])


def named(ids: list[str]) -> dict[str, Any]:
    """A text that is often one of these."""
    return {"anyOf": [{"type": "string", "enum": ids}, {"type": "string"}]}


if __name__ == "__main__":
    sys.exit(main())

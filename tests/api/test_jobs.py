from __future__ import annotations

import time
from typing import Any

import httpx
import openai
import pytest

from tunesmith.store import RegisteredModel
from tunesmith.store.files import File
from tunesmith.store.leases import Told

NUMBERS = {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 1.5}


@pytest.fixture
def training(served: Any, rows: bytes) -> str:
    return served.sdk().files.create(file=("a.jsonl", rows), purpose="fine-tune").id


def model(name: str, job: Any) -> RegisteredModel:
    return RegisteredModel(name, "base", "00", "/b", "/a", None, time.time(), job.project, job.id)


def test_a_job_goes_from_its_files_to_its_model(served: Any, conforms: Any, training: str) -> None:
    jobs, leases = served.sdk().fine_tuning.jobs, served.store.leases
    made = jobs.create(
        model="gpt-4o-mini-2024-07-18",
        training_file=training,
        validation_file=training,
        suffix="desk",
        seed=7,
        metadata={"team": "x"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3}}},
    )
    conforms("FineTuningJob", made.to_dict(mode="json"))
    assert (made.status, made.seed, made.model) == ("validating_files", 7, "gpt-4o-mini-2024-07-18")
    assert made.hyperparameters.to_dict() == {
        "n_epochs": 3,
        "batch_size": "auto",
        "learning_rate_multiplier": "auto",
    }
    assert (made.organization_id, made.error, made.metadata) == ("acme", None, {"team": "x"})
    assert (made.user_provided_suffix, made.shared_with_openai) == ("desk", False)
    assert served.store.jobs.get(made.id).base == str(served.home / "base")

    job = leases.claim("w", train=False, lease=30)
    method = {"type": "supervised", "supervised": {"hyperparameters": NUMBERS}}
    leases.checked(job, "w", method=method, estimated=2e9)
    queued = jobs.retrieve(made.id)
    assert (queued.status, queued.queue_position) == ("queued", 1)
    assert queued.estimated_finish == 2_000_000_000
    assert queued.hyperparameters.to_dict() == NUMBERS
    conforms("FineTuningJob", queued.to_dict(mode="json"))

    job = leases.claim("w", train=True, lease=30)
    name = f"ft:base:acme:desk:{made.id[-8:]}"
    for step in (1, 2):
        metrics = {"step": step, "train_loss": 1 / step, "valid_loss": None}
        leases.saved(job, "w", step, metrics, model(f"{name}:ckpt-step-{step}", job))
        leases.tell(job, "w", [Told(f"step {step}", f"Step {step}", data=metrics)])
    result = File("file-result00", job.project, "r.csv", "fine-tune-results", 5, time.time())
    leases.succeed(job, "w", model=model(name, job), result=result, trained_tokens=99)

    ended = jobs.retrieve(made.id)
    conforms("FineTuningJob", ended.to_dict(mode="json"))
    assert (ended.status, ended.fine_tuned_model, ended.trained_tokens) == ("succeeded", name, 99)
    assert ended.result_files == ["file-result00"]
    events = jobs.list_events(made.id, limit=1)
    conforms("ListFineTuningJobEventsResponse", events.to_dict(mode="json"))
    said = [event.message for event in events]
    assert said[0] == "The job has successfully completed"
    assert f"Created fine-tuning job: {made.id}" in said[-2:]
    steps = jobs.checkpoints.list(made.id, limit=1)
    conforms("ListFineTuningJobCheckpointsResponse", steps.to_dict(mode="json"))
    assert [step.fine_tuned_model_checkpoint for step in steps] == [
        f"{name}:ckpt-step-2",
        f"{name}:ckpt-step-1",
    ]
    assert [item.id for item in served.sdk().models.list()][:2] != []
    with pytest.raises(openai.BadRequestError, match="is succeeded: only one that is open"):
        jobs.cancel(made.id)


def test_a_failed_job_says_why(served: Any, conforms: Any, training: str) -> None:
    made = served.sdk().fine_tuning.jobs.create(model="base", training_file=training)
    job = served.store.leases.claim("w", train=False, lease=30)
    error = {"code": "invalid_training_file", "message": "no", "param": "training_file"}
    served.store.leases.fail(job, "w", error)
    failed = served.sdk().fine_tuning.jobs.retrieve(made.id)
    assert failed.status == "failed"
    assert failed.error.to_dict() == error
    conforms("FineTuningJob", failed.to_dict(mode="json"))


def test_jobs_are_paged_to_the_end_and_filtered(served: Any, conforms: Any, training: str) -> None:
    jobs = served.sdk().fine_tuning.jobs
    ids = [jobs.create(model="base", training_file=training, seed=n).id for n in range(105)]
    assert [job.id for job in jobs.list()] == ids[::-1]
    assert [job.id for job in jobs.list(limit=50)] == ids[::-1]
    conforms("ListPaginatedFineTuningJobsResponse", jobs.list(limit=2).to_dict(mode="json"))
    odd = {'a"b': "x", "k]": "é", "": "y"}
    with pytest.raises(openai.BadRequestError, match="metadata"):
        jobs.create(model="base", training_file=training, metadata=odd)
    del odd[""]
    named = jobs.create(model="base", training_file=training, metadata=odd)
    assert [job.id for job in jobs.list(metadata=odd)] == [named.id]
    assert [job.id for job in jobs.list(metadata={'a"b': "y"})] == []
    assert len(list(jobs.list(limit=100, extra_query={"metadata": "null"}))) == 105
    for limit in (0, 101, -1):
        with pytest.raises(openai.BadRequestError, match="limit"):
            jobs.list(limit=limit)


def test_what_is_asked_for_twice_is_one_job(served: Any, training: str) -> None:
    jobs = served.sdk().fine_tuning.jobs
    asked: dict[str, Any] = {"model": "base", "training_file": training}
    first, again = jobs.create(**asked), jobs.create(**asked)
    assert (first.id, first.seed) == (again.id, again.seed)
    old = jobs.create(**asked, hyperparameters={"n_epochs": 2})
    new = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}}
    assert old.id == jobs.create(**asked, method=new).id != first.id
    assert first.id != jobs.create(**asked, seed=1).id
    jobs.cancel(first.id)
    assert jobs.create(**asked).id != first.id


def test_a_job_is_paused_and_goes_on(served: Any, training: str) -> None:
    jobs = served.sdk().fine_tuning.jobs
    made = jobs.create(model="base", training_file=training)
    for call, wanted in ((jobs.pause, "queued or running"), (jobs.resume, "paused")):
        said = f"is validating_files: only one that is {wanted}"
        with pytest.raises(openai.BadRequestError, match=said):
            call(made.id)
    job = served.store.leases.claim("w", train=False, lease=30)
    served.store.leases.checked(job, "w", method=job.method, estimated=None)
    # The contract's enum has no "paused"; its example and the openai package do.
    assert jobs.pause(made.id).status == "paused"
    assert jobs.resume(made.id).status == "queued"
    assert jobs.cancel(made.id).status == "cancelled"


def test_another_projects_jobs_are_as_unknown_as_none(served: Any, training: str) -> None:
    made = served.sdk().fine_tuning.jobs.create(model="base", training_file=training)
    jobs = served.stranger().fine_tuning.jobs
    assert jobs.list().data == []
    for job_id in (made.id, "ftjob-x", "x" * 5_000):
        for call in (
            *(jobs.retrieve, jobs.cancel, jobs.pause, jobs.resume, jobs.list_events),
            jobs.checkpoints.list,
        ):
            with pytest.raises(openai.NotFoundError, match=f"find fine tune: {job_id}"):
                call(job_id)
    with pytest.raises(openai.BadRequestError, match=f"File '{training}' does not exist"):
        jobs.create(model="base", training_file=training)
    assert served.sdk().fine_tuning.jobs.retrieve(made.id).status == "validating_files"


REFUSED: list[tuple[dict[str, Any], int, str, str]] = [
    ({"model": "gpt-9"}, 404, "model", "model_not_found"),
    ({"model": "ft:base:x::1"}, 404, "model", "model_not_found"),
    ({"model": "a\u0001"}, 400, "model", "invalid_value"),
    ({"model": 5}, 400, "model", "invalid_value"),
    ({"training_file": "file-x"}, 400, "training_file", "invalid_file"),
    ({"validation_file": "file-x"}, 400, "validation_file", "invalid_file"),
    ({"suffix": ""}, 400, "suffix", "invalid_value"),
    ({"suffix": "x" * 65}, 400, "suffix", "invalid_value"),
    ({"seed": -1}, 400, "seed", "invalid_value"),
    ({"seed": 2**31}, 400, "seed", "invalid_value"),
    ({"metadata": {str(n): "x" for n in range(17)}}, 400, "metadata", "invalid_value"),
    ({"metadata": {"k": "x" * 513}}, 400, "metadata.k", "invalid_value"),
    ({"method": {"type": "dpo"}}, 400, "method.type", "unsupported_method"),
    ({"method": {"type": "x"}}, 400, "method.type", "invalid_value"),
    (
        {"method": {"type": "supervised", "dpo": {}}},
        *(400, "method.dpo", "invalid_value"),
    ),
    (
        {"integrations": [{"type": "wandb", "wandb": {"project": "x"}}]},
        *(400, "integrations", "unsupported_parameter"),
    ),
    ({"frozen": True}, 400, "frozen", "unknown_parameter"),
]


def test_what_cannot_be_trained_is_refused_by_name(served: Any, training: str) -> None:
    said: dict[str, str] = {}
    for change, status, param, code in REFUSED:
        body = {"model": "base", "training_file": training, **change}
        with pytest.raises(openai.APIStatusError) as caught:
            served.sdk().post("/fine_tuning/jobs", body=body, cast_to=object)
        error = caught.value
        assert (error.status_code, error.param, error.code) == (status, param, code)
        said.setdefault(param, error.message)
    assert "There are base; and names that stand for one: babbage-002" in said["model"]


def test_hyperparameters_out_of_range_are_refused(served: Any, training: str) -> None:
    for hyper in (
        *({"n_epochs": n} for n in (0, 51, 1.5, "2", "AUTO", None, True)),
        *({"batch_size": n} for n in (0, 257)),
        *({"learning_rate_multiplier": n} for n in (0, -1)),
        {"beta": 0.1},
    ):
        body = {"model": "base", "training_file": training, "hyperparameters": hyper}
        with pytest.raises(openai.BadRequestError) as caught:
            served.sdk().post("/fine_tuning/jobs", body=body, cast_to=object)
        assert str(caught.value.param).startswith("hyperparameters.")


def test_only_training_files_are_trained_on(served: Any) -> None:
    file = served.sdk().files.create(file=("a.jsonl", b"{}"), purpose="batch")
    with pytest.raises(openai.BadRequestError, match="has the purpose 'batch'"):
        served.sdk().fine_tuning.jobs.create(model="base", training_file=file.id)


def test_a_tuned_model_is_no_base(served: Any, training: str) -> None:
    served.store.register_model(
        "ft:base:me::1", base="base", base_hash="0", base_folder=served.home, adapter_folder=None
    )
    with pytest.raises(openai.BadRequestError, match="train 'base' on all"):
        served.sdk().fine_tuning.jobs.create(model="ft:base:me::1", training_file=training)


def test_too_many_open_jobs_wait_outside(serving: Any) -> None:
    with serving(MAX_OPEN_JOBS=1) as served:
        file = served.sdk().files.create(file=("a.jsonl", b"{}"), purpose="fine-tune")
        jobs = served.sdk().fine_tuning.jobs
        jobs.create(model="base", training_file=file.id)
        with pytest.raises(openai.RateLimitError, match="1 jobs that wait or run") as caught:
            jobs.create(model="base", training_file=file.id, seed=1)
        assert int(caught.value.response.headers["retry-after"]) > 0


NO_BODIES = [
    b"",
    b"[]",
    b"null",
    b"{",
    b"\xff\xfe{}",
    b'{"model": "\\ud800", "training_file": "x"}',
    b'{"model": "base", "training_file": "x", "metadata": {"k": "\\udfff"}}',
    b'{"model": "base", "training_file": "x", "metadata": {"k": "\\u0000"}}',
    b'{"model": "base", "training_file": "x", "seed": ' + b"9" * 6_000 + b"}",
    b'{"model": "base", "training_file": "x", "hyperparameters": {"n_epochs": NaN}}',
    b'{"model": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    b'{"integrations": ' + b'{"a":' * 10_000 + b"1" + b"}" * 10_000 + b"}",
]


def test_bodies_that_are_none_are_refused(served: Any) -> None:
    headers = {"content-type": "application/json"}
    for body in NO_BODIES:
        answer = httpx.post(f"{served.url}/v1/fine_tuning/jobs", content=body, headers=headers)
        assert answer.status_code == 400, (body[:80], answer.text)
        assert answer.json()["error"]["message"]
    served.alive()

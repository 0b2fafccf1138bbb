from __future__ import annotations

import threading
import time
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import pytest

from tunesmith.errors import UsageError
from tunesmith.store import RegisteredModel, Store
from tunesmith.store.files import File
from tunesmith.store.jobs import Job
from tunesmith.store.leases import Told

LEASE = 30.0


@pytest.fixture
def store(database: str) -> Generator[Store]:
    with Store(database) as opened:
        yield opened


def job(name: str, **values: object) -> Job:
    made = Job(
        id=f"ftjob-{name}",
        project="default",
        key=None,
        fingerprint=name,
        model="gpt-4o-mini-2024-07-18",
        base="tiny",
        training_file="file-1",
        validation_file=None,
        suffix=None,
        seed=0,
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": "auto"}}},
        metadata=None,
        status="validating_files",
        created_at=time.time(),
    )
    return replace(made, **values)  # pyright: ignore[reportArgumentType]


def created(store: Store, name: str, **values: object) -> Job:
    made = store.jobs.create(job(name, **values), most=100)
    assert made is not None
    return made


def queued(store: Store, name: str, **values: object) -> Job:
    return created(store, name, status="queued", **values)


def running(store: Store, name: str, worker: str = "w1") -> Job:
    queued(store, name)
    taken = store.leases.claim(worker, train=True, lease=LEASE)
    assert taken is not None
    assert taken.id == f"ftjob-{name}"
    return taken


def messages(store: Store, made: Job) -> list[str]:
    return [event.message for event in store.jobs.events(made.id, limit=100).rows][::-1]


def test_a_create_that_is_sent_twice_makes_one_job(store: Store) -> None:
    first = created(store, "a")
    again = store.jobs.create(replace(job("b"), fingerprint="a"), most=100)
    assert again == first
    assert [made.id for made in store.jobs.list("default").rows] == ["ftjob-a"]
    store.jobs.cancel(first.id, "default")
    later = store.jobs.create(replace(job("c"), fingerprint="a"), most=100)
    assert later is not None
    assert later.id == "ftjob-c"


def test_creates_at_once_make_one_job(database: str) -> None:
    Store(database).close()
    found: list[str] = []

    def create(name: str) -> None:
        with Store(database) as opened:
            made = opened.jobs.create(replace(job(name), fingerprint="same"), most=100)
            assert made is not None
            found.append(made.id)

    threads = [threading.Thread(target=create, args=(name,)) for name in "abcdef"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert len(set(found)) == 1


def test_a_project_has_only_so_many_open_jobs(store: Store) -> None:
    created(store, "a")
    assert store.jobs.create(job("b"), most=1) is None


def test_pages_are_whole_and_in_order_newest_first(store: Store) -> None:
    for number in range(7):
        created(store, str(number))
    seen: list[str] = []
    after = None
    while True:
        page = store.jobs.list("default", after=after, limit=3)
        seen += [made.id for made in page.rows]
        if not page.has_more:
            break
        after = seen[-1]
    assert seen == [f"ftjob-{number}" for number in range(6, -1, -1)]
    with pytest.raises(UsageError, match="no 'ftjob-unknown' in this list"):
        store.jobs.list("default", after="ftjob-unknown")


def test_jobs_are_found_by_metadata_and_by_having_none(store: Store) -> None:
    created(store, "a", metadata={"team": "x", "n": "1"})
    created(store, "b", metadata={"team": "y"})
    created(store, "c")
    assert [made.id for made in store.jobs.list("default", metadata={"team": "x"}).rows] == [
        "ftjob-a"
    ]
    assert [made.id for made in store.jobs.list("default", bare=True).rows] == ["ftjob-c"]
    assert store.jobs.list("default", metadata={"team": "x", "n": "2"}).rows == ()
    odd = {"\"$[*]\\'": "é", "]": "%"}
    created(store, "d", metadata=odd)
    assert [made.id for made in store.jobs.list("default", metadata=odd).rows] == ["ftjob-d"]


def test_another_projects_job_is_not_there(store: Store) -> None:
    key, _ = store.keys.make("theirs", project="theirs")
    made = created(store, "a")
    assert store.jobs.get(made.id, key.project) is None
    assert store.jobs.cancel(made.id, key.project) is None
    assert store.jobs.get(made.id, "default") == made


def test_workers_at_once_take_each_job_once(database: str) -> None:
    with Store(database) as opened:
        for number in range(40):
            queued(opened, str(number))
    taken: list[str] = []

    def work(worker: str) -> None:
        with Store(database) as mine:
            while (found := mine.leases.claim(worker, train=True, lease=LEASE)) is not None:
                taken.append(found.id)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(f"ftjob-{number}" for number in range(40))


def test_a_lease_that_ran_out_goes_to_another_worker_who_alone_may_write(store: Store) -> None:
    queued(store, "a")
    mine = store.leases.claim("w1", train=True, lease=-1)
    assert mine is not None
    theirs = store.leases.claim("w2", train=True, lease=LEASE)
    assert theirs is not None
    assert theirs.id == mine.id
    assert (theirs.worker, theirs.attempts) == ("w2", 2)
    assert not store.leases.beat(mine, "w1", LEASE)
    assert store.leases.beat(theirs, "w2", LEASE)
    store.leases.tell(mine, "w1", [Told("step-1", "Step 1", data={"step": 1})])
    assert not store.leases.fail(mine, "w1", {"message": "no", "code": "x", "param": None})
    assert messages(store, mine)[-1] == "Fine-tuning job started"
    assert store.leases.claim("w3", train=True, lease=LEASE) is None


def test_what_is_told_again_after_a_kill_is_told_once(store: Store) -> None:
    taken = running(store, "a")
    for _ in range(2):
        store.leases.tell(taken, "w1", [Told("step-1", "Step 1/2", data={"step": 1})])
    assert messages(store, taken).count("Step 1/2") == 1
    event = store.jobs.events(taken.id, limit=1).rows[0]
    assert (event.type, event.data) == ("metrics", {"step": 1})


def model(name: str) -> RegisteredModel:
    folder = "/jobs/a"
    return RegisteredModel(
        name, "tiny", "00", "/models/tiny", folder, None, 1.0, "default", "ftjob-a"
    )


def test_a_job_succeeds_with_model_result_and_checkpoints_at_once(store: Store) -> None:
    hook = store.webhooks.add("default", "http://localhost/", "whsec_eA==")
    taken = running(store, "a")
    for _ in range(2):
        store.leases.saved(taken, "w1", 4, {"step": 4}, model("ft:tiny:local::a:ckpt-step-4"))
    result = File("file-r", "default", "step_metrics.csv", "fine-tune-results", 3, 1.0)
    done = [
        store.leases.succeed(
            taken, "w1", model=model("ft:tiny:local::a"), result=result, trained_tokens=7
        )
        for _ in range(2)
    ]
    assert done == [True, False]
    found = store.jobs.get(taken.id)
    assert found is not None
    assert (found.status, found.fine_tuned_model, found.trained_tokens) == (
        *("succeeded", "ft:tiny:local::a"),
        7,
    )
    assert found.worker is None
    assert [item.step for item in store.jobs.checkpoints(taken.id).rows] == [4]
    assert store.files.get("default", "file-r") is not None
    assert {made.name for made in store.models("default")} == {
        *("ft:tiny:local::a", "ft:tiny:local::a:ckpt-step-4")
    }
    [(delivery, told)] = store.webhooks.take(hold=60)
    assert told == hook
    assert delivery.body["type"] == "fine_tuning.job.succeeded"
    assert delivery.body["data"] == {"id": taken.id}
    assert store.webhooks.take(hold=60) == []


def test_a_cancelled_job_is_no_longer_its_workers(store: Store) -> None:
    taken = running(store, "a")
    ended = store.jobs.cancel(taken.id, "default")
    assert ended is not None
    assert ended.status == "cancelled"
    assert ended.finished_at is not None
    assert not store.leases.beat(taken, "w1", LEASE)
    store.leases.release(taken, "w1")
    assert store.leases.claim("w2", train=True, lease=LEASE) is None
    assert store.jobs.cancel(taken.id, "default") is None


def test_a_paused_job_waits_for_its_old_process_before_it_goes_on(store: Store) -> None:
    taken = running(store, "a")
    assert store.jobs.pause(taken.id, "default") is not None
    assert not store.leases.beat(taken, "w1", LEASE)
    assert store.jobs.resume(taken.id, "default") is not None
    assert not store.leases.beat(taken, "w1", LEASE)
    assert store.leases.claim("w2", train=True, lease=LEASE) is None
    store.leases.release(taken, "w1")
    again = store.leases.claim("w2", train=True, lease=LEASE)
    assert again is not None
    assert again.started_at == taken.started_at


def test_checked_files_move_a_job_to_the_queue(store: Store) -> None:
    created(store, "a")
    queued(store, "b")
    assert store.jobs.ahead(store.jobs.get("ftjob-b")) == 0  # pyright: ignore[reportArgumentType]
    checking = store.leases.claim("w1", train=False, lease=LEASE)
    assert checking is not None
    assert checking.id == "ftjob-a"
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3}}}
    assert store.leases.checked(checking, "w1", method=method, estimated=99.0)
    found = store.jobs.get("ftjob-a")
    assert found is not None
    assert (found.status, found.method, found.estimated_finish) == ("queued", method, 99.0)
    assert store.jobs.ahead(found) == 0
    assert store.leases.claim("w1", train=False, lease=LEASE) is None


def test_a_worker_that_ends_gives_its_job_back(store: Store) -> None:
    taken = running(store, "a")
    store.leases.release(taken, "w1")
    found = store.jobs.get(taken.id)
    assert found is not None
    assert (found.status, found.worker) == ("queued", None)


def test_a_failed_job_says_why_and_tells_the_webhooks(store: Store, tmp_path: Path) -> None:
    store.webhooks.add("default", "http://localhost/", "whsec_eA==")
    taken = running(store, "a")
    error = {"code": "training_failed", "message": "a gradient is not finite", "param": None}
    assert store.leases.fail(taken, "w1", error)
    found = store.jobs.get(taken.id)
    assert found is not None
    assert (found.status, found.error) == ("failed", error)
    assert messages(store, taken)[-1] == "a gradient is not finite"
    [(delivery, _)] = store.webhooks.take(hold=60)
    assert delivery.body["type"] == "fine_tuning.job.failed"

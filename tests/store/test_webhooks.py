from __future__ import annotations

import time
from collections.abc import Generator

import pytest

from tunesmith.store import Store
from tunesmith.store.jobs import Job


@pytest.fixture
def store(database: str) -> Generator[Store]:
    with Store(database) as opened:
        yield opened


def cancelled(store: Store, name: str) -> None:
    wanted = Job(
        f"ftjob-{name}", "default", None, name, "m", "b", "file-1", None, None, 0, {}, None,
        "queued", time.time(),
    )  # fmt: skip
    made = store.jobs.create(wanted, most=10)
    assert made is not None
    store.jobs.cancel(made.id, "default")


def test_an_event_goes_to_every_webhook_and_is_due_again_until_it_is_settled(store: Store) -> None:
    hooks = [store.webhooks.add("default", f"http://localhost/{n}", "whsec_eA==") for n in "ab"]
    cancelled(store, "x")
    taken = store.webhooks.take(hold=-1)
    assert {hook.id for _, hook in taken} == {hook.id for hook in hooks}
    assert {delivery.body["id"] for delivery, _ in taken} == {"evt_x_cancelled"}
    again = store.webhooks.take(hold=60)
    assert {delivery.attempts for delivery, _ in again} == {2}
    for delivery, _ in again:
        store.webhooks.settle(delivery, status=200, due_at=None)
    assert store.webhooks.take(hold=60) == []


def test_a_webhook_that_is_gone_hears_no_more(store: Store) -> None:
    hook = store.webhooks.add("default", "http://localhost/", "whsec_eA==")
    cancelled(store, "x")
    assert store.webhooks.remove(hook.id)
    assert not store.webhooks.remove(hook.id)
    assert store.webhooks.take(hold=60) == []

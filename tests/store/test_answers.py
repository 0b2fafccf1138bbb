from __future__ import annotations

import time

from tunesmith.store import Store
from tunesmith.store.answers import StoredCompletion


def kept(name: str, metadata: dict[str, str] | None, *, days: float = 1) -> StoredCompletion:
    now = time.time()
    asked = [{"role": "user", "content": "hi"}]
    return StoredCompletion(
        f"chatcmpl-{name}", "default", "m", metadata, asked, {"id": name}, now, now + days * 86_400
    )


def test_completions_are_found_changed_and_removed(database: str) -> None:
    with Store(database) as store:
        for name, metadata in (("a", {"k": "1"}), ("b", {"k": "2"}), ("c", None)):
            store.answers.add(kept(name, metadata))
        listed = store.answers.list("default", metadata={"k": "2"})
        assert [item.id for item in listed.rows] == ["chatcmpl-b"]
        assert [item.id[-1] for item in store.answers.list("default").rows] == ["a", "b", "c"]
        assert store.answers.list("default", model="other").rows == ()
        changed = store.answers.change("default", "chatcmpl-c", {"k": "3"})
        assert changed is not None
        assert changed.metadata == {"k": "3"}
        assert store.answers.remove("default", "chatcmpl-a")
        assert store.answers.get("default", "chatcmpl-a") is None
        assert store.answers.get("other", "chatcmpl-b") is None


def test_completions_expire(database: str) -> None:
    with Store(database) as store:
        store.answers.add(kept("a", None, days=-1))
        assert store.answers.get("default", "chatcmpl-a") is None
        assert store.answers.list("default").rows == ()
        assert store.answers.expire() == 1

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from typer.testing import CliRunner

from tunesmith.cli import app
from tunesmith.errors import UsageError
from tunesmith.models.fetch import home
from tunesmith.store import Store


def typed(*arguments: str) -> str:
    ended = CliRunner().invoke(app, arguments)
    if ended.exception is not None:
        raise ended.exception
    return ended.stdout


def listed(*arguments: str) -> Any:
    return json.loads(typed(*arguments, "--json"))


def test_a_key_is_shown_once_and_opens_its_project_until_it_is_revoked() -> None:
    secret = typed("keys", "make", "ci", "--project", "shop", "--role", "read").strip()
    with Store.at(home()) as store:
        key = store.keys.find(secret)
        assert key is not None
        assert (key.name, key.role, store.keys.projects()[key.project]) == ("ci", "read", "shop")
    assert secret not in typed("keys", "list")
    [row] = listed("keys", "list")
    assert (row["id"], row["project"], row["revoked_at"]) == (key.id, "shop", None)
    typed("keys", "revoke", key.id)
    assert "revoked" in typed("keys", "list")
    with Store.at(home()) as store:
        assert store.keys.find(secret) is None
    with pytest.raises(UsageError, match="keys list"):
        typed("keys", "revoke", key.id)
    lines = listed("keys", "log")
    assert [(line["action"], line["subject"]) for line in lines] == [
        ("keys.revoke", key.id),
        ("keys.create", key.id),
    ]
    assert "keys.revoke" in typed("keys", "log", "--limit", "1")


def test_webhooks_are_added_with_a_secret_of_their_own_listed_and_removed() -> None:
    secret = typed("webhooks", "add", "https://hooks.example/a").strip()
    assert len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) == 32
    [row] = listed("webhooks", "list")
    assert (row["url"], row["project"]) == ("https://hooks.example/a", "default")
    assert secret not in typed("webhooks", "list")
    typed("webhooks", "remove", row["id"])
    assert listed("webhooks", "list") == []
    with pytest.raises(UsageError, match="webhooks list"):
        typed("webhooks", "remove", row["id"])
    assert [line["action"] for line in listed("keys", "log")] == [
        "webhooks.delete",
        "webhooks.create",
    ]


def test_a_webhook_that_could_never_be_asked_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="private_hosts"):
        typed("webhooks", "add", "http://box.local/a")
    with pytest.raises(UsageError, match="--project shop"):
        typed("webhooks", "add", "https://hooks.example/a", "--project", "shop")
    monkeypatch.setenv("TUNESMITH_PRIVATE_HOSTS", '["box.local"]')
    assert listed("webhooks", "add", "http://box.local/a")["url"] == "http://box.local/a"

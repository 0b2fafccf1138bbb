from __future__ import annotations

from typing import Any

import httpx
import pytest

from tunesmith.api.watch import action

JOBS = "/v1/fine_tuning/jobs"


@pytest.mark.parametrize(
    ("method", "route", "named"),
    [
        ("POST", "/v1/files", "files.create"),
        ("DELETE", "/v1/files/{file_id}", "files.delete"),
        ("POST", "/v1/uploads/{upload_id}/parts", "uploads.parts.create"),
        ("POST", "/v1/uploads/{upload_id}/complete", "uploads.complete"),
        ("POST", "/v1/fine_tuning/jobs", "fine_tuning.jobs.create"),
        ("POST", "/v1/fine_tuning/jobs/{job_id}/cancel", "fine_tuning.jobs.cancel"),
        ("DELETE", "/v1/models/{name:path}", "models.delete"),
        ("POST", "/v1/chat/completions/{completion_id}", "chat.completions.update"),
        (
            *("DELETE", "/v1/fine_tuning/checkpoints/{model}/permissions/{permission_id}"),
            "fine_tuning.checkpoints.permissions.delete",
        ),
    ],
)
def test_actions_are_named_after_their_routes(method: str, route: str, named: str) -> None:
    assert action(method, route) == named


def test_every_change_that_was_made_is_in_the_audit_log(front: Any, database: str) -> None:
    async def test(server: Any, http: httpx.AsyncClient) -> None:
        key, secret = server.store.keys.make("ci")
        reader = server.store.keys.make("look", role="read")[1]
        headers = {"authorization": f"Bearer {secret}"}
        made = await http.post(JOBS, json={}, headers=headers)
        await http.delete("/v1/files/file-7", headers=headers)
        for content in ("{", "[]"):
            await http.post(JOBS, content=content, headers=headers)
        await http.post(JOBS, json={}, headers={"authorization": f"Bearer {reader}"})
        await http.get("/v1/who", headers=headers)
        await http.post("/v1/chat/completions", json={}, headers=headers)
        await http.post("/v1/chat/completions", json={"store": True}, headers=headers)
        lines = server.store.keys.log()
        assert [(line.action, line.subject) for line in lines] == [
            ("chat.completions.create", "chatcmpl-1"),
            ("files.delete", "file-7"),
            ("fine_tuning.jobs.create", "ftjob-1"),
        ]
        assert {(line.project, line.key) for line in lines} == {("default", key.id)}
        assert lines[-1].request == made.headers["x-request-id"]

    front(test, database=database, loopback=False)


def test_every_request_is_a_line_without_bodies_and_secrets(front: Any) -> None:
    async def test(server: Any, http: httpx.AsyncClient) -> None:
        key, secret = server.store.keys.make("ci")
        headers = {"authorization": f"Bearer {secret}"}
        answers = [
            await http.post(JOBS, json={"private": "body"}, headers=headers),
            await http.get("/v1/nothing-here"),
            await http.get("/v1/who", headers={"host": "rebound.example"}),
        ]
        lines = server.lines()
        assert [line["request"] for line in lines] == [a.headers["x-request-id"] for a in answers]
        assert [line["status"] for line in lines] == [200, 404, 421]
        assert [line["route"] for line in lines] == [JOBS, "", ""]
        assert [line["key"] for line in lines] == [key.id, None, None]
        assert [line["project"] for line in lines] == ["default", "default", None]
        assert all(line["seconds"] >= 0 and line["at"] > 1.7e9 for line in lines)
        text = server.log.read_text()
        assert secret not in text
        assert "private" not in text
        assert server.log.parent.stat().st_mode & 0o077 == 0

    front(test)


def test_an_unforeseen_failure_is_openais_500_and_its_traceback_is_logged(
    front: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    async def test(server: Any, http: httpx.AsyncClient) -> None:
        answer = await http.post("/v1/files/secret-name/fail")
        assert answer.status_code == 500
        assert answer.json()["error"]["type"] == "server_error"
        assert "secret-name" not in answer.text
        [line] = server.lines()
        assert line["request"] == answer.headers["x-request-id"]
        assert line["status"] == 500
        assert "ZeroDivisionError: secret-name" in line["traceback"]
        assert (await http.get("/v1/who")).status_code == 200
        assert server.store.keys.log() == []

    front(test)
    assert "ZeroDivisionError" in capfd.readouterr().err

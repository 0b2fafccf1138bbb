from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from tunesmith.api import gate, limits

JOBS = "/v1/fine_tuning/jobs"


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def test_beyond_loopback_a_key_opens_its_own_project_and_nothing_else_opens(
    front: Any, database: str
) -> None:
    async def test(server: Any, http: httpx.AsyncClient) -> None:
        key, secret = server.store.keys.make("ci", project="shop", role="write")
        for headers in ({}, bearer("sk-other"), bearer(secret + "x"), {"authorization": secret}):
            answer = await http.get("/v1/who", headers=headers)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert answer.json()["error"]["type"] == "invalid_request_error"
        sent = {**bearer(secret), "openai-organization": "org-x", "openai-project": "proj-x"}
        answer = await http.get("/v1/who", headers=sent)
        told = {"project": key.project, "key": key.id, "role": "write"}
        assert answer.json() == {**told, "request": answer.headers["x-request-id"]}

    front(test, database=database, loopback=False)


def test_the_sdk_sees_a_wrong_key_as_an_authentication_error(front: Any) -> None:
    async def test(server: Any, _: httpx.AsyncClient) -> None:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="sk-wrong") as client:
            with pytest.raises(openai.AuthenticationError) as caught:
                await client.models.list()
        assert caught.value.code == "invalid_api_key"

    front(test, loopback=False)


def test_on_loopback_keys_of_other_servers_say_nothing_and_own_ones_count(front: Any) -> None:
    async def test(server: Any, http: httpx.AsyncClient) -> None:
        key, secret = server.store.keys.make("laptop", project="shop", role="read")
        for headers in ({}, bearer("sk-proj-of-somebody"), bearer(secret + "x")):
            who = (await http.get("/v1/who", headers=headers)).json()
            assert (who["project"], who["key"], who["role"]) == ("default", None, "admin")
        who = (await http.get("/v1/who", headers=bearer(secret))).json()
        assert (who["project"], who["key"], who["role"]) == (key.project, key.id, "read")

    front(test)


def test_a_key_for_reading_changes_nothing(front: Any) -> None:
    async def test(server: Any, http: httpx.AsyncClient) -> None:
        reader = bearer(server.store.keys.make("look", role="read")[1])
        assert (await http.get("/v1/who", headers=reader)).status_code == 200
        for refused in (
            await http.post(JOBS, json={}, headers=reader),
            await http.delete("/v1/files/file-1", headers=reader),
        ):
            assert refused.status_code == 403
            assert refused.json()["error"]["code"] == "insufficient_permissions"
        writer = bearer(server.store.keys.make("work")[1])
        assert (await http.post(JOBS, json={}, headers=writer)).status_code == 200

    front(test, loopback=False)


def test_a_revoked_key_is_closed_within_seconds(
    front: Any, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "KEPT_SECONDS", 0.2)

    async def test(server: Any, http: httpx.AsyncClient) -> None:
        key, secret = server.store.keys.make("ci")
        assert (await http.get("/v1/who", headers=bearer(secret))).status_code == 200
        server.store.keys.revoke(key.id)
        await asyncio.sleep(0.25)
        assert (await http.get("/v1/who", headers=bearer(secret))).status_code == 401

    front(test, database=database, loopback=False)


def test_many_clients_of_one_key_are_one_look_up(front: Any) -> None:
    async def test(server: Any, http: httpx.AsyncClient) -> None:
        _, secret = server.store.keys.make("ci")
        looked_up: list[str] = []
        find = server.store.keys.find
        server.store.keys.find = lambda sent: looked_up.append(sent) or find(sent)
        asked = [http.get("/v1/who", headers=bearer(secret)) for _ in range(50)]
        assert {answer.status_code for answer in await asyncio.gather(*asked)} == {200}
        assert looked_up == [secret]

    front(test, loopback=False)


def test_a_look_up_that_failed_is_made_again(front: Any) -> None:
    async def test(server: Any, http: httpx.AsyncClient) -> None:
        _, secret = server.store.keys.make("ci")
        find = server.store.keys.find

        def fail(_: str) -> None:
            server.store.keys.find = find
            raise OSError("the database is away")

        server.store.keys.find = fail
        found = [await http.get("/v1/who", headers=bearer(secret)) for _ in range(2)]
        assert [answer.status_code for answer in found] == [500, 200]

    front(test, loopback=False)


def test_more_requests_a_minute_than_allowed_are_429_with_the_time_to_wait(front: Any) -> None:
    async def test(server: Any, http: httpx.AsyncClient) -> None:
        answers = [await http.get("/v1/who") for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        named = [answer.headers.get("x-ratelimit-remaining-requests") for answer in answers]
        assert named == ["2", "1", "0", None]
        assert answers[0].headers["x-ratelimit-limit-requests"] == "3"
        assert answers[0].headers["x-ratelimit-reset-requests"] == "20s"
        assert 19 <= int(answers[3].headers["retry-after"]) <= 20
        error = answers[3].json()["error"]
        assert (error["code"], error["type"]) == ("rate_limit_exceeded", "requests")
        own = bearer(server.store.keys.make("ci")[1])
        assert (await http.get("/health")).status_code == 200
        assert (await http.get("/v1/who", headers=own)).status_code == 200

    front(test, requests_per_minute=3)


def test_each_key_has_a_rate_of_its_own(front: Any) -> None:
    async def test(server: Any, http: httpx.AsyncClient) -> None:
        secrets = [server.store.keys.make(name)[1] for name in "ab"]
        for _ in range(2):
            for secret in secrets:
                assert (await http.get("/v1/who", headers=bearer(secret))).status_code == 200
        for secret in secrets:
            assert (await http.get("/v1/who", headers=bearer(secret))).status_code == 429

    front(test, loopback=False, requests_per_minute=2)


def test_more_requests_at_once_than_allowed_are_429(front: Any) -> None:
    async def test(server: Any, http: httpx.AsyncClient) -> None:
        first = asyncio.create_task(http.post("/v1/slow"))
        await server.arrived.wait()
        second = await http.get("/v1/who")
        assert second.status_code == 429
        assert second.headers["retry-after"] == "1"
        server.go_on.set()
        assert (await first).status_code == 200
        assert (await http.get("/v1/who")).status_code == 200

    front(test, max_concurrent=1)


@pytest.mark.parametrize("path", [JOBS, "/v1/files"])
def test_a_body_that_is_too_large_is_413_however_it_is_sent(front: Any, path: str) -> None:
    async def chunks() -> Any:
        for _ in range(64):
            yield b" " * 65536

    async def test(server: Any, http: httpx.AsyncClient) -> None:
        for content in (b" " * 2**22, chunks()):
            answer = await http.post(path, content=content)
            assert answer.status_code == 413
            assert answer.headers["connection"] == "close"
        assert (await http.get("/v1/who")).status_code == 200

    front(test, max_body_bytes=1000)


def test_files_stream_through_whatever_other_bodies_may_have(front: Any) -> None:
    async def test(server: Any, http: httpx.AsyncClient) -> None:
        answer = await http.post("/v1/files", content=b"x" * 2**20)
        assert answer.json()["bytes"] == 2**20

    front(test, max_body_bytes=1000)


def test_compressed_bodies_and_websockets_and_nul_are_refused(front: Any) -> None:
    async def test(server: Any, http: httpx.AsyncClient) -> None:
        sent = {"content-encoding": "gzip", "content-type": "application/json"}
        assert (await http.post(JOBS, content=b"{}", headers=sent)).status_code == 415
        upgrade = {"connection": "upgrade", "upgrade": "websocket"}
        assert (await http.get("/v1/who", headers=upgrade)).status_code == 400
        assert (await http.get("/v1/files/%00")).status_code == 400
        assert (await http.get("/v1/who?after=%00")).status_code == 400

    front(test)


def test_no_answer_lets_another_sites_page_read_it(front: Any) -> None:
    async def test(server: Any, http: httpx.AsyncClient) -> None:
        origin = {"origin": "http://localhost:3000", "access-control-request-method": "POST"}
        for answer in (
            await http.get("/v1/who", headers=origin),
            await http.options(JOBS, headers=origin),
        ):
            assert not [name for name in answer.headers if name.startswith("access-control")]

    front(test)


def head(path: str) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n".encode()


def test_a_body_that_stalls_is_408_and_one_that_stops_is_forgotten(
    front: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LINGER_SECONDS", 0.1)

    async def test(server: Any, http: httpx.AsyncClient) -> None:
        for path in (JOBS, "/v1/files"):
            async with server.connected(head(path) + b'{"a"') as (reader, _):
                answer = await asyncio.wait_for(reader.read(), 10)
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"]
        for path in (JOBS, "/v1/files"):
            async with server.connected(head(path) + b"x"):
                pass
        while len(server.lines()) < 4:
            await asyncio.sleep(0.02)
        assert [line["status"] for line in server.lines()] == [408, 408, 499, 499]

    front(test, patience_seconds=0.3)


def test_a_body_that_drips_is_408_too(front: Any) -> None:
    async def test(server: Any, http: httpx.AsyncClient) -> None:
        async with server.connected(head(JOBS)) as (reader, writer):

            async def drip() -> None:
                while True:
                    writer.write(b" ")
                    await asyncio.sleep(0.05)

            dripping = asyncio.create_task(drip())
            answer = await asyncio.wait_for(reader.readline(), 5)
            dripping.cancel()
        assert answer.startswith(b"HTTP/1.1 408 ")

    front(test, patience_seconds=0.5)

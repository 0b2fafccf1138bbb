from __future__ import annotations

from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families


async def read(http: httpx.AsyncClient, **headers: str) -> dict[tuple[str, ...], float]:
    answer = await http.get("/metrics", headers=headers)
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_metrics_count_requests_by_route_and_jobs_by_status(front: Any, database: str) -> None:
    async def test(server: Any, http: httpx.AsyncClient) -> None:
        for name in ("a", "b"):
            await http.delete(f"/v1/files/{name}")
        await http.get("/v1/nowhere")
        await http.request("BREW", "/v1/nowhere")
        server.store.jobs.counts = lambda: {"queued": 3}
        found = await read(http)
        route = "/v1/files/{file_id}"
        assert found["tunesmith_requests_total", "DELETE", route, "200"] == 2
        assert found["tunesmith_request_seconds_count", "DELETE", route] == 2
        assert found["tunesmith_requests_total", "GET", "", "404"] == 1
        assert found["tunesmith_requests_total", "other", "", "404"] == 1
        assert found["tunesmith_requests_in_flight",] == 1
        assert found["process_resident_memory_bytes",] > 1e6

    front(test, database=database)


def test_jobs_are_counted_when_metrics_are_read(front: Any, database: str) -> None:
    async def test(server: Any, http: httpx.AsyncClient) -> None:
        assert not [name for name in await read(http) if name[0] == "tunesmith_jobs"]
        server.store.jobs.create(queued(), most=10)
        assert (await read(http))["tunesmith_jobs", "queued"] == 1

    front(test, database=database)


def queued() -> Any:
    from tunesmith.store.jobs import Job

    return Job(
        "ftjob-1", "default", None, "f", "m", "b", "file-1", None, None, 0, {}, None, "queued", 1.0
    )


def test_beyond_loopback_metrics_take_an_admins_key_and_health_takes_none(front: Any) -> None:
    async def test(server: Any, http: httpx.AsyncClient) -> None:
        assert (await http.get("/health")).json() == {"status": "ok", "engines": []}
        assert (await http.get("/ready")).status_code == 200
        for role, status in (("read", 403), ("write", 403), ("admin", 200)):
            sent = {"authorization": f"Bearer {server.store.keys.make(role, role=role)[1]}"}
            assert (await http.get("/metrics", headers=sent)).status_code == status
        assert (await http.get("/metrics")).status_code == 401

    front(test, loopback=False)


def test_without_its_database_the_server_lives_and_is_not_ready(front: Any) -> None:
    async def test(server: Any, http: httpx.AsyncClient) -> None:
        from sqlalchemy.exc import OperationalError

        def away() -> None:
            raise OperationalError("SELECT", {}, OSError("gone"))

        server.store.keys.projects = away
        assert (await http.get("/health")).status_code == 200
        answer = await http.get("/ready")
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "not_ready"

    front(test)

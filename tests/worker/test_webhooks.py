from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from openai import InvalidWebhookSignatureError, OpenAI

from tunesmith.outside import OutsideTransport
from tunesmith.settings import Settings
from tunesmith.store import Store
from tunesmith.store.jobs import Job
from tunesmith.worker import webhooks
from tunesmith.worker.webhooks import deliver_due
from tunesmith.worker.worker import Worker

SECRET = f"whsec_{base64.b64encode(b'0123456789abcdef' * 2).decode()}"


@pytest.fixture
def store(database: str) -> Generator[Store]:
    with Store(database) as opened:
        yield opened


@dataclass
class Listener:
    """Somebody's server, that hears what is posted and answers with the statuses given."""

    statuses: list[int]
    url: str = ""
    heard: list[tuple[dict[str, str], bytes]] = field(default_factory=list)


@asynccontextmanager
async def listening(*statuses: int) -> AsyncGenerator[Listener]:
    made = Listener(list(statuses))

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[1:-2]
        headers = dict(line.lower().split(": ", 1) for line in lines)
        sent = dict(line.split(": ", 1) for line in lines)
        body = await reader.readexactly(int(headers["content-length"]))
        made.heard.append(({name.lower(): value for name, value in sent.items()}, body))
        status = made.statuses.pop(0)
        writer.write(b"HTTP/1.1 %d So\r\nLocation: /elsewhere\r\n" % status)
        # An answer without an end: nobody waits for it.
        writer.write(b"Content-Length: 100000\r\n\r\nx")
        await writer.drain()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"
        yield made


def end_a_job(store: Store, name: str = "x") -> None:
    wanted = Job(
        f"ftjob-{name}", "default", None, name, "m", "b", "file-1", None, None, 0, {}, None,
        "queued", time.time(),
    )  # fmt: skip
    assert store.jobs.create(wanted, most=10)
    store.jobs.cancel(f"ftjob-{name}", "default")


async def tried(store: Store, hosts: tuple[str, ...] = ("127.0.0.1",)) -> None:
    async with httpx.AsyncClient(transport=OutsideTransport(hosts), timeout=5) as http:
        await deliver_due(store, http)


def due(store: Store) -> list[float]:
    """Seconds until what is still to be delivered is due."""
    import sqlalchemy as sa

    engine = sa.create_engine(store.url)
    with engine.connect() as connection:
        found = connection.scalars(
            sa.text("SELECT due_at FROM deliveries WHERE due_at IS NOT NULL")
        ).all()
    engine.dispose()
    return [at - time.time() for at in found]


def test_the_openai_package_unwraps_what_a_worker_sends(store: Store, tmp_path: Path) -> None:
    async def go() -> None:
        async with listening(200) as listener:
            store.webhooks.add("default", listener.url, SECRET)
            end_a_job(store)
            stop = asyncio.Event()
            worker = Worker(store, tmp_path, Settings(private_hosts=("127.0.0.1",)))
            delivering = asyncio.create_task(worker.run(stop))
            while not listener.heard or due(store):
                await asyncio.sleep(0.02)
            stop.set()
            await delivering
            [(headers, body)] = listener.heard
        client = OpenAI(api_key="any", webhook_secret=SECRET)
        event = client.webhooks.unwrap(body, headers)
        assert event.type == "fine_tuning.job.cancelled"
        assert event.data.id == "ftjob-x"
        assert event.object == "event"
        with pytest.raises(InvalidWebhookSignatureError):
            client.webhooks.unwrap(body + b" ", headers)
        client.close()

    asyncio.run(go())


def test_whatever_is_no_success_is_tried_again_later_and_later(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "FIRST_SECONDS", 0.0)

    async def go() -> None:
        async with listening(500, 307, 404, 204) as listener:
            store.webhooks.add("default", listener.url, SECRET)
            end_a_job(store)
            for _ in range(4):
                await tried(store)
            assert listener.statuses == []
            assert len({headers["webhook-id"] for headers, _ in listener.heard}) == 1
            assert due(store) == []

    asyncio.run(go())


def test_waits_grow_to_six_hours_and_end_after_three_days(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sqlalchemy as sa

    def update(columns: str) -> None:
        engine = sa.create_engine(store.url)
        with engine.begin() as connection:
            connection.execute(sa.text(f"UPDATE deliveries SET {columns}"))
        engine.dispose()

    async def go() -> None:
        async with listening(*[500] * 10) as listener:
            store.webhooks.add("default", listener.url, SECRET)
            end_a_job(store)
            waits: list[float] = []
            for _ in range(6):
                update("due_at = 0")
                await tried(store)
                waits += due(store)
            assert [round(wait) for wait in waits] == pytest.approx(
                [5, 60, 720, 8640, 21600, 21600], abs=3
            )
            update(f"due_at = 0, created_at = {time.time() - 71 * 3600}")
            await tried(store)
            assert due(store) == []

    asyncio.run(go())


def test_a_private_address_hears_nothing_unless_it_is_listed(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    async def go() -> None:
        async with listening(200) as listener:
            store.webhooks.add("default", listener.url, SECRET)
            secure = listener.url.replace("http://127.0.0.1", "https://localhost")
            store.webhooks.add("default", secure, SECRET)
            end_a_job(store)
            await tried(store, hosts=())
            assert listener.heard == []
        assert len(due(store)) == 2
        assert caplog.text.count("private_hosts") == 2

    asyncio.run(go())

"""Webhooks' deliveries: signed as Standard Webhooks says, tried again until they arrive."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import time
from contextlib import suppress

import httpx
from sqlalchemy.exc import DBAPIError

from tunesmith.outside import OutsideTransport
from tunesmith.settings import Settings
from tunesmith.store import Store
from tunesmith.store.webhooks import Delivery, Webhook

LOG = logging.getLogger(__name__)
POLL_SECONDS = 2.0
TIMEOUT_SECONDS = 15.0
"""For the whole of an attempt."""
HOLD_SECONDS = 60.0
"""How long nobody else takes a delivery that was taken: longer than an attempt."""
FIRST_SECONDS, GROWTH, LONGEST_SECONDS = 5.0, 12, 6 * 3600.0
"""Waits between attempts: 5 s, 1 min, 12 min, 2.4 h, then 6 h each time."""
GIVE_UP_SECONDS = 72 * 3600.0


async def deliver(store: Store, settings: Settings, stop: asyncio.Event) -> None:
    """Deliver what is due until `stop` is set; an attempt under way is then broken off, and made
    again by whoever delivers next. Any number of processes may do so at once.
    """
    stopping, delivering = (
        asyncio.create_task(stop.wait()),
        asyncio.create_task(_deliver(store, settings)),
    )
    try:
        await asyncio.wait({stopping, delivering}, return_when=asyncio.FIRST_COMPLETED)
        if delivering.done():
            delivering.result()
    finally:
        stopping.cancel()
        delivering.cancel()
        await asyncio.gather(stopping, delivering, return_exceptions=True)


async def _deliver(store: Store, settings: Settings) -> None:
    transport = OutsideTransport(settings.private_hosts)
    async with httpx.AsyncClient(
        transport=transport, timeout=TIMEOUT_SECONDS, follow_redirects=False, trust_env=False
    ) as http:
        while True:
            # Where the database is away, what was taken is due again after its hold.
            with suppress(DBAPIError):
                await deliver_due(store, http)
            await asyncio.sleep(POLL_SECONDS)


async def deliver_due(store: Store, http: httpx.AsyncClient) -> None:
    """Try everything that is due, once."""
    while taken := await asyncio.to_thread(store.webhooks.take, hold=HOLD_SECONDS):
        await asyncio.gather(*(_attempt(store, http, *pair) for pair in taken))


def sign(secret: str, message: str, at: int, body: bytes) -> str:
    """The webhook-signature header: `v1,` and base64 of HMAC-SHA256 over `message.at.body`.

    Args:
        secret: `whsec_` and the key in base64.
    """
    key = base64.b64decode(secret.removeprefix("whsec_"))
    code = hmac.new(key, b"%s.%d." % (message.encode(), at) + body, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(code).decode()}"


async def _attempt(
    store: Store, http: httpx.AsyncClient, delivery: Delivery, hook: Webhook
) -> None:
    status = None
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            status = await _post(http, delivery, hook)
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
        LOG.warning("webhook %s: %s", hook.id, str(error) or "no answer in time")
    due_at = None
    if status is None or not 200 <= status < 300:
        wait = min(FIRST_SECONDS * GROWTH ** min(delivery.attempts - 1, 9), LONGEST_SECONDS)
        due_at = time.time() + wait
        if due_at > delivery.created_at + GIVE_UP_SECONDS:
            due_at = None
    await asyncio.to_thread(store.webhooks.settle, delivery, status=status, due_at=due_at)


async def _post(http: httpx.AsyncClient, delivery: Delivery, hook: Webhook) -> int:
    """The status of the answer; its body is not read."""
    at = int(time.time())
    body = json.dumps(delivery.body, ensure_ascii=False, separators=(",", ":")).encode()
    headers = {
        "content-type": "application/json",
        "user-agent": "tunesmith",
        "webhook-id": delivery.id,
        "webhook-timestamp": str(at),
        "webhook-signature": sign(hook.secret, delivery.id, at, body),
    }
    async with http.stream("POST", hook.url, content=body, headers=headers) as answer:
        return answer.status_code

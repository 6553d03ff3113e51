"""What is invalidated while a server is away: it holds here at once, and there before a read is trusted (F27)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from app_cache.backends.redis import RedisBackend
from app_cache.breaker import PROBE_EVERY_S, State
from app_cache.clock.base import Order
from app_cache.clock.names import tag_stamp
from app_cache.orders import MAX_OWED
from app_cache.store import StoredResponses
from app_cache.testing import FakeClock
from tests.clients import HIT
from tests.failures.shop import open_shop
from tests.stored import Page, body_of, fill, look_up, written

if TYPE_CHECKING:
    from tests.servers import Server

pytestmark = [pytest.mark.anyio, pytest.mark.alone]


async def test_by_the_endpoint(redis_server: Server) -> None:
    """While the server hangs the endpoint answers 202 at once, and nothing older is served after it (F27)."""
    async with (
        open_shop(RedisBackend(redis_server.url)) as shop,
        open_shop(RedisBackend(redis_server.url)) as other,
    ):
        for number in (1, 2):
            await shop.get(number)
            await shop.settled()
            assert (await other.get(number)).told == HIT
        redis_server.pause()
        try:
            await shop.until_open()
            invalidated = await shop.invalidate()
        finally:
            redis_server.resume()
        assert (invalidated.status_code, invalidated.json()["durable"]) == (202, False)
        assert (await shop.get()).body != "1: 1"
        assert await shop.seconds_to_a_hit(2) < 1.5
        assert (await shop.get(2)).body == "2: 1"
        newest = await shop.get()
        await shop.settled()
        assert (newest.body, newest.told) == (f"1: {shop.runs[1]}", "fwd=uri-miss; stored")
        assert [(await other.get(number)).body for number in (1, 2)] == [newest.body, "2: 1"]
        assert other.runs == {}


async def test_many(redis_server: Server) -> None:
    """All that is owed is sent before the first read is trusted, in few trips (F27)."""
    backend, clock = RedisBackend(redis_server.url), FakeClock()
    store, elsewhere = StoredResponses(backend, monotonic=clock), StoredResponses(backend)
    pages = [Page(f"/{number}", tags=(f"tag {number}",)) for number in range(MAX_OWED + 1)]
    for page in pages:
        await fill(store, page)
    await written(store)
    redis_server.pause()
    try:
        breaker = store.calls.breaker
        assert breaker is not None
        while breaker.state is State.CLOSED:
            await look_up(store, pages[-1])
        for page in pages[:-1]:
            for _ in range(2):
                order = Order(tags=tuple(map(tag_stamp, page.tags)))
                assert not (await store.invalidate(order)).durable
    finally:
        redis_server.resume()
    assert len(store.orders.owed) == MAX_OWED
    redis_server.command("CONFIG", "RESETSTAT")
    clock.advance(PROBE_EVERY_S)
    assert await body_of(store, pages[-1]) == b"old"
    sent = redis_server.command("INFO", "commandstats")["cmdstat_evalsha"]["calls"]
    assert sent <= 10
    held = await asyncio.gather(*(body_of(elsewhere, page) for page in pages[:-1]))
    assert {*held} == {None}
    await store.close()
    await elsewhere.close()
    await backend.close()

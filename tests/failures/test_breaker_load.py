"""What is slow though the server is well: a small pool, and an event loop that stands still (F11, F24)."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import redis

from app_cache.backends.base import STALLED_S
from app_cache.backends.redis import RedisBackend
from app_cache.breaker import OPENS_AFTER, State
from app_cache.store import StoredResponses
from tests.clients import HIT
from tests.failures.proxy import Delay, FaultProxy
from tests.failures.shop import BUDGET_S, events_of, open_shop
from tests.servers import HOST
from tests.stored import Page, look_up

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers import Server

pytestmark = [pytest.mark.anyio, pytest.mark.alone]


@contextmanager
def slow(server: Server, seconds: float) -> Iterator[None]:
    """Have *server* take *seconds* for whatever it is asked, by keeping it from its work."""
    over = threading.Event()

    def occupy() -> None:
        with redis.Redis(HOST, server.port, client_name="control") as connection:
            while not over.is_set():
                connection.execute_command("DEBUG", "SLEEP", seconds)

    thread = threading.Thread(target=occupy, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(10)


async def test_small_pool(redis_server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """Waiting for one of two connections is inside the budget, and no error of the pool reaches anyone (F11)."""
    async with open_shop(RedisBackend(redis_server.url, max_connections=2)) as shop:
        await shop.get()
        with slow(redis_server, 0.1):
            answers = await asyncio.gather(*(shop.get(number) for number in range(200)))
        assert [answer.status for answer in answers] == [200] * 200
        assert [answer.body for answer in answers] == [f"{number}: {shop.runs[number]}" for number in range(200)]
        assert max(answer.took for answer in answers) < 4 * BUDGET_S
        assert shop.breaker.state is State.CLOSED
        gave_up = {fault: shop.store.stats[f"failed_{fault}"] for fault in ("away", "busy", "stalled")}
        assert sum(gave_up.values()) > 0
        said = {f"WARNING cache.backend_failed reason={fault}" for fault in ("away", "busy") if gave_up[fault]}
        assert {*events_of(caplog)} == said
        await shop.settled()
        await shop.get(1)
        await shop.settled()
        assert (await shop.get(1)).told == HIT


async def test_pool_that_others_fill(proxy: FaultProxy) -> None:
    """Look-ups that get no connection since the application's own calls have all are no sign of a server away."""
    backend = RedisBackend(proxy.url, max_connections=2)
    store = StoredResponses(backend)
    await look_up(store, Page())
    proxy.mode = Delay(0.05)
    others = [asyncio.create_task(backend.set(f"key {number}", "value", 60)) for number in range(120)]
    await asyncio.sleep(0)
    for _ in range(OPENS_AFTER + 1):
        await look_up(store, Page())
    assert store.calls.breaker is not None
    assert (store.calls.breaker.state, store.stats["failed_busy"]) == (State.CLOSED, OPENS_AFTER + 1)
    assert not all(each.done() for each in others)
    await asyncio.gather(*others)
    await backend.close()


async def test_loop_that_stands_still(redis_server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """An event loop that is blocked again and again, while the server is asked, opens nothing (F24)."""
    backend = RedisBackend(redis_server.url, operation_timeout=0.05)
    store, page = StoredResponses(backend), Page()
    assert (await look_up(store, page)).reading is not None
    redis_server.pause()
    try:
        for ticks in [1] * (OPENS_AFTER + 1) + [2, 3, 4, 5]:
            asked = asyncio.create_task(look_up(store, page))
            for _ in range(ticks):
                await asyncio.sleep(0)
            time.sleep(0.05 + STALLED_S + 0.01)  # noqa: ASYNC251 - this is what is tested
            await asked
    finally:
        redis_server.resume()
    assert store.stats["failed_stalled"] > OPENS_AFTER
    assert store.calls.breaker is not None
    assert (store.calls.breaker.state, store.stats["failed_away"]) == (State.CLOSED, 0)
    assert events_of(caplog) == []
    await store.close()
    await backend.close()


@pytest.mark.parametrize("ticks", range(3, 9))
async def test_what_came_while_the_loop_stood_still(redis_server: Server, ticks: int) -> None:
    """What the server answered while the event loop was blocked is a hit, though its time is over (F24)."""
    async with open_shop(RedisBackend(redis_server.url, operation_timeout=0.05)) as shop:
        await shop.get()
        await shop.settled()
        asked = asyncio.create_task(shop.get())  # two ticks, and its command is on its way
        for _ in range(ticks):
            await asyncio.sleep(0)
        time.sleep(0.06)  # noqa: ASYNC251 - this is what is tested
        assert (await asked).told == HIT

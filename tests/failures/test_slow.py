"""A server that answers, but late: nobody waits for it longer than a budget, and nobody for a store (F4)."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from redis.asyncio import ConnectionPool

from app_cache.backends.redis import RedisBackend
from app_cache.breaker import OPENS_AFTER
from app_cache.errors import BackendError
from tests.clients import HIT
from tests.failures.proxy import Delay, Drop, FaultProxy, Pass
from tests.failures.shop import BACK_WITHIN_S, BUDGET_S, SOON_S, open_shop
from tests.timing import Stopwatch

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.servers import Server

pytestmark = [pytest.mark.anyio, pytest.mark.alone]


async def test_hits_fall_back(proxy: FaultProxy, figure: Callable[[str, float], None]) -> None:
    """What is stored in a server that answers after 0.3 s is answered by the handler after the budget (F4)."""
    async with open_shop(RedisBackend(proxy.url)) as shop:
        await shop.get()
        await shop.settled()
        assert (await shop.get()).told == HIT
        proxy.mode = Delay(0.3)
        waited = await shop.until_open()
        figure("F4: the slowest of those that wait for it", max(answer.took for answer in waited))
        assert len(waited) >= OPENS_AFTER
        assert {(answer.status, answer.told) for answer in waited} == {(200, "fwd=uri-miss")}
        assert max(answer.took for answer in waited) < BUDGET_S + 0.05
        proxy.mode = Pass()
        assert await shop.seconds_to_a_hit() < BACK_WITHIN_S


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda backend: backend.get_many(["key"]), id="a look-up"),
        pytest.param(lambda backend: backend.run_script("return 1", [], []), id="a script"),
    ],
)
async def test_slower_to_connect_than_a_call(
    proxy: FaultProxy, call: Callable[[RedisBackend], Awaitable[object]]
) -> None:
    """Where to connect and to ask takes longer than a call may, a later call finds a connection made (F4)."""
    proxy.mode = Delay(0.15)
    backend = RedisBackend(proxy.url)
    async with asyncio.timeout(SOON_S):
        while True:
            with suppress(TimeoutError, BackendError):
                async with asyncio.timeout(BUDGET_S):
                    await call(backend)
                break
            (client,) = backend._clients.values()
            await client.reader.settle()
            while client._lender._left:  # noqa: ASYNC110 - nobody is told that it is made
                await asyncio.sleep(0.01)
    await backend.close()


async def test_nobody_waits_for_a_connection(proxy: FaultProxy) -> None:
    """What makes a connection for nobody ends when its backend is closed (F4)."""
    proxy.mode = Drop()
    tasks = asyncio.all_tasks()
    backend = RedisBackend(proxy.url)
    for _ in range(2):
        with pytest.raises(BackendError, match="no answer"):
            await backend.get_many(["key"])
    async with asyncio.timeout(SOON_S):
        while len(asyncio.all_tasks() - tasks) > 1:  # noqa: ASYNC110 - what was cancelled ends
            await asyncio.sleep(0)
    await backend.close()
    assert asyncio.all_tasks() == tasks


async def test_one_connection_that_hangs(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that is never made keeps nobody from others for long, however long an attempt may take (F3)."""
    monkeypatch.setattr("app_cache.backends.redis.lending.MAKING_S", 0.5)
    proxy.mode = Drop()
    backend = RedisBackend(proxy.url, socket_timeout=None, socket_connect_timeout=30)
    with pytest.raises(BackendError):
        await backend.get_many(["key"])
    proxy.mode = Pass()
    async with asyncio.timeout(SOON_S):
        while True:
            with suppress(BackendError):
                await backend.get_many(["key"])
                break
    await backend.close()


async def test_none_is_made_for_nobody_in_a_pool_that_is_given(proxy: FaultProxy) -> None:
    """Of a pool that is somebody else's no connection is made for nobody."""
    proxy.mode = Drop()
    pool = ConnectionPool.from_url(proxy.url, max_connections=1, socket_timeout=30)
    backend, tasks = RedisBackend(connection_pool=pool), asyncio.all_tasks()
    with pytest.raises(BackendError):
        await backend.get_many(["key"])
    async with asyncio.timeout(2):
        while asyncio.all_tasks() != tasks:  # noqa: ASYNC110 - what was cancelled ends
            await asyncio.sleep(0)
    await backend.close()
    await pool.aclose()


async def test_answered_before_it_is_stored(redis_server: Server) -> None:
    """A miss is answered at once though the server takes nothing, and is stored when it does (F4)."""
    async with open_shop(RedisBackend(redis_server.url)) as shop:
        shop.open.clear()
        asked = asyncio.create_task(shop.get())
        await shop.runs_of(1)
        redis_server.pause()
        try:
            watch = Stopwatch()
            shop.open.set()
            answer = await asked
            took = watch.seconds
        finally:
            redis_server.resume()
        assert (answer.body, answer.told) == ("1: 1", "fwd=uri-miss; stored")
        assert took < BUDGET_S / 2
        await shop.settled()
        assert (await shop.get()).told == HIT


async def test_bounded_queue(redis_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits to be stored is bounded, the oldest is dropped and counted, and the rest arrives (F4)."""
    monkeypatch.setattr("app_cache.writes.MAX_PENDING", 20)
    async with open_shop(RedisBackend(redis_server.url, operation_timeout=SOON_S)) as shop:
        shop.open.clear()
        asked = [asyncio.create_task(shop.get(number)) for number in range(50)]
        for number in range(50):
            await shop.runs_of(number)
        redis_server.pause()
        try:
            shop.open.set()
            answers = await asyncio.gather(*asked)
            waiting = len(shop.store.writes.pending)
        finally:
            redis_server.resume()
        assert [answer.status for answer in answers] == [200] * 50
        assert (waiting, shop.store.stats["store_dropped"]) == (20, 30)
        await shop.settled()
        kept = [number for number in range(50) if (await shop.get(number)).told == HIT]
        assert len(kept) >= 20

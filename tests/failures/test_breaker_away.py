"""A server that is away, dies or hangs: requests go on, and is soon used again when it is back (F1, F2, F3)."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest

from app_cache.backends.redis import RedisBackend
from app_cache.breaker import OPENS_AFTER, State
from tests.clients import HIT
from tests.failures.shop import BACK_WITHIN_S, BUDGET_S, SOON_S, events_of, open_shop
from tests.servers import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.failures.shop import Answer, Shop
    from tests.servers import Server

pytestmark = [pytest.mark.anyio, pytest.mark.alone]

LONG_S = 1.0
"""A budget that is long beside what a slow machine adds to it."""
TICKS = 20
"""Turns of the event loop in which what a request asks the server is on its way."""
AT_ONCE_S = 0.01
"""Seconds beside the handler's own of a request that does not ask the server."""


async def test_away_at_start(caplog: pytest.LogCaptureFixture, figure: Callable[[str, float], None]) -> None:
    """With no server it starts, answers at once, 50 requests by one run, and says one line in the log (F1)."""
    async with open_shop(RedisBackend(f"redis://127.0.0.1:{free_port()}")) as shop:
        shop.open.clear()
        requests = [asyncio.create_task(shop.get()) for _ in range(50)]
        async with asyncio.timeout(SOON_S):
            counts = shop.store.stats
            while counts["look_up_failed"] + counts["look_up_skipped"] < 50:  # noqa: ASYNC110 - counts have no event
                await asyncio.sleep(0)
        shop.open.set()
        at_once = await asyncio.gather(*requests)
        assert {(answer.status, answer.body) for answer in at_once} == {(200, "1: 1")}
        one_by_one = [await shop.get() for _ in range(50)]
        assert {answer.status for answer in one_by_one} == {200}
        slowest = max(answer.took for answer in one_by_one)
        figure("F1: the slowest of 50 requests", slowest)
        assert slowest < 0.05
        assert shop.breaker.state is State.OPEN
        assert events_of(caplog) == ["WARNING cache.backend_failed reason=away"]
        health = await shop.client.get("/health/cache")
        assert (health.status_code, health.json()["status"]) == (503, "degraded")


async def test_killed_and_started_again(
    redis_server: Server, caplog: pytest.LogCaptureFixture, figure: Callable[[str, float], None]
) -> None:
    """A server that is killed under load and started again costs no request, and soon gives hits again (F2)."""
    async with open_shop(RedisBackend(redis_server.url)) as shop:
        answers, back = [], SOON_S
        for wave in range(30):
            if wave == 20:
                redis_server.start()
                back = await shop.seconds_to_a_hit()
            asked = await killed_while_asked(redis_server, shop) if wave == 10 else under_way(shop, range(10))
            answers += await asyncio.gather(*asked)
        slowest = max(answer.took for answer in answers)
        figure("F2: hits again after", back)
        figure("F2: the slowest of 310 requests", slowest)
        assert back < BACK_WITHIN_S
        assert [answer.status for answer in answers] == [200] * 310
        assert slowest < 0.3
        assert {answer.told for answer in answers[50:100]} == {HIT}
        assert {answer.told for answer in answers[100:110]} == {"fwd=uri-miss"}
        assert events_of(caplog) == ["WARNING cache.backend_failed reason=away"]


def under_way(shop: Shop, numbers: Iterable[int]) -> list[asyncio.Task[Answer]]:
    """Return requests for the pages of these *numbers*."""
    return [asyncio.create_task(shop.get(number)) for number in numbers]


async def killed_while_asked(server: Server, shop: Shop) -> list[asyncio.Task[Answer]]:
    """Kill *server* while it owes answers to ten look-ups and ten handlers run; return those requests."""
    shop.open.clear()
    running = under_way(shop, range(100, 110))
    for number in range(100, 110):
        await shop.runs_of(number)
    server.pause()
    asked = under_way(shop, range(10))
    for _ in range(TICKS):
        await asyncio.sleep(0)
    server.kill()
    shop.open.set()
    return asked + running


async def test_hangs(
    redis_server: Server, caplog: pytest.LogCaptureFixture, figure: Callable[[str, float], None]
) -> None:
    """A server that hangs costs five requests the budget, then one a second, and soon gives hits again (F3)."""
    async with open_shop(RedisBackend(redis_server.url)) as shop:
        await shop.get()
        assert await shop.seconds_to_a_hit() < BACK_WITHIN_S
        redis_server.pause()
        try:
            waited = await shop.until_open()
            failed, begun = shop.store.stats["failed_away"], time.monotonic()
            answers = [await shop.get() for _ in range(300)]
            late = [answer.took for answer in answers if answer.took > AT_ONCE_S]
            probes = time.monotonic() - begun + 1
            for number in range(10):
                answers += await asyncio.gather(*(shop.get(number) for _ in range(50)))
            took = time.monotonic() - begun
        finally:
            redis_server.resume()
        back = await shop.seconds_to_a_hit()
        figure("F3: the slowest of those that wait for it", max(answer.took for answer in waited))
        typical = sorted(answer.took for answer in answers[:300])[150]
        figure("F3: half of those that do not wait take at most", typical)
        figure("F3: hits again after", back)
        assert failed >= OPENS_AFTER
        assert {(answer.status, answer.told) for answer in waited} == {(200, "fwd=uri-miss")}
        assert max(answer.took for answer in waited) < BUDGET_S + 0.05
        assert {answer.status for answer in answers} == {200}
        assert len(late) <= probes + 3  # of 300; now and then garbage is collected
        assert max(late, default=0.0) < BUDGET_S + 0.05
        assert shop.store.stats["failed_away"] - failed <= took + 1
        assert back < BACK_WITHIN_S
        assert events_of(caplog) == ["WARNING cache.backend_failed reason=away"]


async def test_many_wait_while_it_hangs(redis_server: Server) -> None:
    """However many come while it is not yet known that the server hangs, each waits for one budget alone (F3)."""
    options: Any = {"max_connections": 5, "operation_timeout": LONG_S}
    async with open_shop(RedisBackend(redis_server.url, **options)) as shop:
        unhindered = await asyncio.gather(*(shop.get(number) for number in range(100, 200)))
    async with open_shop(RedisBackend(redis_server.url, **options)) as shop:
        await shop.get()
        redis_server.pause()
        try:
            answers = await asyncio.gather(*(shop.get(number) for number in range(100)))
        finally:
            redis_server.resume()
        assert {answer.status for answer in answers} == {200}
        of_their_own = max(answer.took for answer in unhindered)
        assert max(answer.took for answer in answers) < of_their_own + 1.5 * LONG_S
        assert shop.breaker.state is State.CLOSED

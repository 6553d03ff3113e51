"""An application on a backend that fails: what its pages answer, how long they take, and what is said of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastapi import FastAPI

from app_cache import cache
from app_cache.backends.base import LAST_LOOK_S
from app_cache.breaker import OPENS_AFTER, State
from app_cache.fastapi import cache_router
from containers import CacheContainer, install
from tests.clients import HIT, client_of, told
from tests.timing import Stopwatch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import httpx
    import pytest

    from app_cache.backends.base import CacheBackend
    from app_cache.breaker import Breaker
    from app_cache.store import StoredResponses

SOON_S = 10.0
"""A bound that only what hangs passes."""
BUDGET_S = 0.25 + LAST_LOOK_S
"""Seconds of an operation of the backend, with all its waits and attempts, and the last look."""
BACK_WITHIN_S = 1.5
"""Seconds from the return of a server to the first hit."""


@dataclass(frozen=True)
class Answer:
    """What a page answered, what Cache-Status says of it, and the seconds it took."""

    status: int
    body: str
    told: str | None
    took: float


class Shop:
    """Pages that are cached, tagged by their number, and say how often they ran; *open* lets them answer."""

    def __init__(self, backend: CacheBackend) -> None:
        self.container = CacheContainer()
        self.container.backend.override(backend)
        self.runs: Counter[int] = Counter()
        self.open = asyncio.Event()
        self.open.set()
        self.app = FastAPI()
        self.app.include_router(cache_router(authorize=lambda: True))
        install(self.app, self.container)
        self.client: httpx.AsyncClient

        @self.app.get("/pages/{number}")
        @cache(timeout=300, tags=["page {number}"])
        async def page(number: int) -> str:
            self.runs[number] += 1
            await self.open.wait()
            return f"{number}: {self.runs[number]}"

    @property
    def store(self) -> StoredResponses:
        """The stored responses of its backend."""
        store: StoredResponses = self.container.store()
        return store

    @property
    def breaker(self) -> Breaker:
        """The breaker of its backend."""
        assert self.store.calls.breaker is not None
        return self.store.calls.breaker

    async def get(self, number: int = 1) -> Answer:
        """Return what a page answers."""
        watch = Stopwatch()
        response = await self.client.get(f"/pages/{number}")
        return Answer(response.status_code, response.json(), told(response), watch.seconds)

    async def until_open(self) -> list[Answer]:
        """Return the answers to the requests after which the backend is taken to be away."""
        answers = []
        while self.breaker.state is State.CLOSED:
            answers.append(await self.get())
            assert len(answers) < 10 * OPENS_AFTER
        return answers

    async def invalidate(self, number: int = 1) -> httpx.Response:
        """Return what the endpoint answers that invalidates a page."""
        return await self.client.post("/invalidate-cache", params={"tag": f"page {number}"})

    async def seconds_to_a_hit(self, number: int = 1) -> float:
        """Return how long it is from now until a page is answered from the cache."""
        watch = Stopwatch()
        async with asyncio.timeout(SOON_S):
            while (await self.get(number)).told != HIT:  # noqa: ASYNC110 - another process comes back
                await asyncio.sleep(0.01)
        return watch.seconds

    async def runs_of(self, number: int) -> None:
        """Return when the handler of a page has begun."""
        async with asyncio.timeout(SOON_S):
            while not self.runs[number]:  # noqa: ASYNC110 - counts have no event
                await asyncio.sleep(0)

    async def settled(self) -> None:
        """Return when no write is on its way."""
        while self.store.writes._writers:
            await asyncio.wait(self.store.writes._writers, timeout=SOON_S)
            await asyncio.sleep(0)


@asynccontextmanager
async def open_shop(backend: CacheBackend) -> AsyncIterator[Shop]:
    """Open a shop on *backend*, its lifespan and all; close both, and see that no task is left over."""
    before = asyncio.all_tasks()
    shop = Shop(backend)
    async with shop.app.router.lifespan_context(shop.app), client_of(shop.app) as shop.client:
        yield shop
    await shop.store.close()
    await backend.close()
    left = asyncio.all_tasks() - before
    if left:
        await asyncio.wait(left, timeout=1.0)
    assert {task for task in left if not task.done()} == set()


def events_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the level, event and reason of each line that the cache said."""
    cached = [record for record in caplog.records if record.name == "app_cache"]
    return [" ".join([record.levelname, *record.getMessage().split()[:3:2]]) for record in cached]

"""Running an application in this process, and what a request costs it there."""

from __future__ import annotations

import asyncio
import gc
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from app_cache import CacheMiddleware
    from tests.benchmarks.apps import App
    from tests.benchmarks.figures import Effort

    Scopes = Callable[[int], list[dict[str, Any]]]

AT_A_TIME = 20
"""Requests that are made before they are asked, one after the other."""


async def receive() -> dict[str, Any]:
    """Give the end of a request without a body."""
    return {"type": "http.request", "body": b"", "more_body": False}


async def discard(message: Any) -> None:
    """Take a message of the answer, as a server that has nothing to do would."""


async def answer(app: App, scope: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the messages with which *app* answers the request of *scope*."""
    sent: list[dict[str, Any]] = []

    async def keep(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, keep)
    return sent


async def until_hit(app: App, scope: dict[str, Any]) -> None:
    """Ask *app* for *scope* until it answers from its cache, and once more.

    Raises:
        RuntimeError: If it does not within a hundred times.
    """
    for _ in range(100):
        await app(dict(scope), receive, discard)
        if "; hit" in str(dict((await answer(app, dict(scope)))[0]["headers"]).get(b"cache-status")):
            return
        await asyncio.sleep(0.01)
    raise RuntimeError(f"{scope['path']} is not answered from the cache")


async def closed(app: CacheMiddleware) -> None:
    """Drain and close what *app* stores to."""
    services = app._services
    assert services is not None
    await services.store().close()
    await services.backend().close()


async def cpu_us(app: App, scopes: Scopes, requests: int) -> float:
    """Return the µs of CPU that one of *requests* costs; few are made at a time, just before, as by a server."""
    gc.collect()
    spent_ns = 0
    for _ in range(requests // AT_A_TIME):
        made = scopes(AT_A_TIME)
        began = time.process_time_ns()
        for scope in made:
            await app(scope, receive, discard)
        spent_ns += time.process_time_ns() - began
    return spent_ns / (requests // AT_A_TIME * AT_A_TIME) / 1000


async def in_turns(cases: Mapping[str, tuple[App, Scopes]], effort: Effort) -> dict[str, list[float]]:
    """Return the µs of CPU of a request to each of *cases*, in each turn: an application and what it is asked."""
    taken: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(effort.turns + 1):
        for name, (app, scopes) in cases.items():
            cost = await cpu_us(app, scopes, effort.requests)
            if number:  # the first turn warms up
                taken[name].append(cost)
        await asyncio.sleep(0)
    return taken

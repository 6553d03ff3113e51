"""What a request costs, counted rather than timed: calls, messages, tasks, copies, what is kept.

The counts are exact, and the same on every machine; only what is a call differs a little between versions of
Python, and no later one counts more. A rise is a question, not a bug: is what the calls do worth what they cost at
each hit? Where it is, raise the bound with the change. Times are in ``docs/performance.md``.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import tracemalloc
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from fastapi import FastAPI, Response

import app_cache
import containers
from app_cache import CacheMiddleware, CachePolicy, MemoryBackend, cache
from app_cache.fastpath import MAX_SHARED
from tests.middleware.apps import put_cache, scope_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import FrameType

pytestmark = pytest.mark.anyio

BODY = b"x" * 1024
FIELDS = [
    *[(b"host", b"test"), (b"user-agent", b"a browser"), (b"accept", b"*/*"), (b"accept-encoding", b"gzip")],
    *[(b"x-%d" % number, b"a field that decides nothing") for number in range(8)],
]
QUIET: Any = {"tracing": False, "metrics": False, "logs": False}
OURS = tuple(str(Path(package.__file__ or "").parent) for package in (app_cache, containers))
HITS = 1_000
KEPT_PER_HIT = 0.5
"""Bytes: what stays of one hit would be dozens."""


async def answer(scope: Any, receive: Any, send: Any) -> None:
    """Send what is to be stored."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1024")]})
    await send({"type": "http.response.body", "body": BODY})


def wrapped() -> CacheMiddleware:
    """Return an application inside of the cache."""
    return CacheMiddleware(answer, MemoryBackend(), default_policy=CachePolicy(timeout=60, tags=("all",)))


def installed() -> FastAPI:
    """Return a FastAPI application on which the cache is installed."""
    app = FastAPI(telemetry=QUIET)

    @app.get("/cached")
    @cache(timeout=60, tags=["all"])
    async def cached() -> Response:
        return Response(BODY)

    @app.api_route("/undecorated", methods=["GET", "POST"])
    async def undecorated() -> Response:
        return Response(BODY)

    put_cache(app)
    return app


@dataclass
class Cost:
    """What one request cost: *calls* of this project's functions, by name, *messages* and *tasks*."""

    calls: list[str] = field(default_factory=list)
    messages: list[Any] = field(default_factory=list)
    tasks: int = 0

    @property
    def body(self) -> Any:
        """The very object that was sent."""
        return self.messages[-1]["body"]


async def cost_of(app: Any, path: str, query: bytes = b"", method: str = "GET") -> Cost:
    """Return what a request costs *app*; a generator counts each time that it goes on."""
    cost = Cost()
    loop = asyncio.get_running_loop()

    def factory(loop: Any, coroutine: Coroutine[Any, Any, Any], **options: Any) -> asyncio.Task[Any]:
        cost.tasks += 1
        return asyncio.Task(coroutine, loop=loop, **options)

    def called(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(OURS):
            cost.calls.append(frame.f_code.co_qualname)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        cost.messages.append(message)

    scope = scope_of(path, method=method, headers=[*FIELDS], query_string=query)
    loop.set_task_factory(cast("Any", factory))
    sys.setprofile(called)
    try:
        await app(scope, receive, send)
    finally:
        sys.setprofile(None)
        loop.set_task_factory(None)
    return cost


APPS = [pytest.param(wrapped, id="CacheMiddleware"), pytest.param(installed, id="install")]


@pytest.mark.parametrize(("make", "bound"), [(wrapped, 6), (installed, 9)], ids=["CacheMiddleware", "install"])
async def test_calls_of_a_hit(make: Callable[[], Any], bound: int) -> None:
    """A plain hit calls few functions: its whole list is in the message when there is one more."""
    app = make()
    for _ in range(3):
        await cost_of(app, "/cached")
    hit = await cost_of(app, "/cached")
    assert len(hit.calls) <= bound, hit.calls


@pytest.mark.parametrize("make", APPS)
async def test_what_a_hit_does_without(make: Callable[[], Any]) -> None:
    """A plain hit sends two messages, makes no task, and copies no body: each gets the very object."""
    app = make()
    for _ in range(3):
        await cost_of(app, "/cached")
    first, second = await cost_of(app, "/cached"), await cost_of(app, "/cached")
    assert b"; hit" in dict(first.messages[0]["headers"])[b"cache-status"]
    assert (len(first.messages), first.tasks) == (2, 0)
    assert first.body == BODY
    assert first.body is second.body


@pytest.mark.parametrize("make", APPS)
async def test_nothing_is_kept_of_a_hit(make: Callable[[], Any]) -> None:
    """A thousand hits leave nothing behind."""
    app = make()

    async def hits() -> None:
        async def send(message: Any) -> None: ...

        for _ in range(HITS):
            await app(scope_of("/cached", headers=[*FIELDS]), None, send)

    for _ in range(3):
        await cost_of(app, "/cached")
    tracemalloc.start()
    try:
        await hits()
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        await hits()
        gc.collect()
        kept = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert kept / HITS <= KEPT_PER_HIT


@pytest.mark.parametrize(
    ("size", "is_shared"), [(MAX_SHARED, True), (MAX_SHARED + 1, False)], ids=["short", "long"]
)
async def test_what_hits_have_in_common(size: int, *, is_shared: bool) -> None:
    """A field that hits of several URLs have is one object for all, unless it is long."""

    async def answer_alike(scope: Any, receive: Any, send: Any) -> None:
        fields = [(b"content-type", b"text/plain"), (b"x-same", b"x" * size)]
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        await send({"type": "http.response.body", "body": scope["path"].encode()})

    policy = CachePolicy(timeout=60)
    app = CacheMiddleware(answer_alike, MemoryBackend(clock=float), default_policy=policy, clock=lambda: 1e9)
    given: list[dict[bytes, Any]] = []
    for path in ("/1", "/2"):
        for _ in range(2):
            await cost_of(app, path)
        hit = await cost_of(app, path)
        given.append({field[0]: field for field in hit.messages[0]["headers"]})
    one, other = given
    assert {name: field is other[name] for name, field in one.items()} == {
        b"content-type": True,
        b"x-same": is_shared,
        b"etag": False,
        b"age": True,
        b"cache-status": True,
    }


async def test_calls_of_an_undecorated_route() -> None:
    """A route without a policy pays for the look at what it is, and makes no task."""
    app = installed()
    for _ in range(3):
        await cost_of(app, "/undecorated")
    cost = await cost_of(app, "/undecorated")
    assert (len(cost.messages), cost.tasks) == (2, 0)
    assert len(cost.calls) <= 6, cost.calls


async def test_calls_of_a_write_that_changes_nothing_cached() -> None:
    """A write to a URL of which nothing is cached, and whose answer names no other, pays for the look at that."""
    app = installed()
    for _ in range(3):
        await cost_of(app, "/undecorated", method="POST")
    cost = await cost_of(app, "/undecorated", method="POST")
    assert (len(cost.messages), cost.tasks) == (2, 0)
    assert len(cost.calls) <= 51, cost.calls


async def test_one_look_for_a_hit() -> None:
    """A request for which no hit is remembered, though for its path one is, is looked up once on its way."""
    app = installed()
    for _ in range(3):
        await cost_of(app, "/cached")
    assert (await cost_of(app, "/cached", b"n=new")).calls.count("FastPath._answer") == 1


async def test_calls_of_a_miss() -> None:
    """A miss makes one task, the fill, and sends what the application sends."""
    app = wrapped()
    for number in range(3):
        await cost_of(app, "/cached", b"n=%d" % number)
    miss = await cost_of(app, "/cached", b"n=new")
    assert b"; stored" in dict(miss.messages[0]["headers"])[b"cache-status"]
    assert (len(miss.messages), miss.tasks) == (2, 1)
    assert len(miss.calls) <= 238, f"{len(miss.calls)} calls: {miss.calls}"

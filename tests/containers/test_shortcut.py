"""Where nothing of the user's stands outside of the cache, hits do not go through the layers of the framework."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from dependency_injector import providers
from fastapi import FastAPI, Request
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.responses import JSONResponse
from starlette.routing import Mount
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from app_cache import CacheMiddleware, CachePolicy, MemoryBackend, RedisBackend, cache
from app_cache.testing import FakeClock
from containers import CacheContainer, install
from tests.clients import HIT, MISS, client_of, counting_app, get, told, told_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.servers import Server

pytestmark = pytest.mark.anyio


class Seen:
    """Passes on, and counts."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.requests = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.requests += 1
        await self.app(scope, receive, send)


def cached_app(**parts: Any) -> FastAPI:
    """Return an application with a cached endpoint and a cache."""
    app = counting_app()
    install(app, CacheContainer(**(parts or {"backend": MemoryBackend()})))
    return app


def see(app: Any) -> Seen:
    """Return what counts the requests that come to the outermost layer of the framework."""
    shortcut = app.middleware_stack
    shortcut.app = seen = Seen(shortcut.app)
    return seen


async def test_hits_pass_no_layer() -> None:
    """A hit that is given again is seen by no layer of the framework; a miss, and another request, by each."""
    app = cached_app()
    assert await told_of(app, "/count", "/count") == [MISS, HIT]
    seen = see(app)
    assert await told_of(app, "/count", "/count", "/count?a=1", "/else") == [HIT, HIT, MISS, None]
    assert seen.requests == 2


async def test_hits_of_redis_pass_no_layer(redis_server: Server) -> None:
    """Nor is a hit of Redis; after an invalidation nothing is given that was remembered."""
    app = cached_app(backend=RedisBackend(redis_server.url))
    assert await told_of(app, "/count") == [MISS]
    await app.state.app_cache.store().close()  # its write is done
    assert await told_of(app, "/count") == [HIT]
    seen = see(app)
    assert await told_of(app, "/count", "/count") == [HIT, HIT]
    assert seen.requests == 0
    await app.state.app_cache.invalidation().by_tag("count")
    assert await told_of(app, "/count", "/count", "/count") == [MISS, HIT, HIT]
    assert seen.requests >= 1
    await app.state.app_cache.backend().close()


def put_around(stack: Any) -> tuple[Any, Seen]:
    """Return *stack* with a layer around it, and that."""
    seen = Seen(stack)
    return seen, seen


def put_within(stack: Any) -> tuple[Any, Seen]:
    """Return *stack* with a layer behind its outermost one, as OpenTelemetry's instrumentation does, and that."""
    assert isinstance(stack, ServerErrorMiddleware)
    seen = Seen(stack.app)
    return ServerErrorMiddleware(seen, stack.handler, stack.debug), seen


@pytest.mark.parametrize("put", [put_around, put_within])
@pytest.mark.parametrize("first", [True, False], ids=["before install", "after it"])
async def test_layers_that_others_put(first: bool, put: Callable[[Any], tuple[Any, Seen]]) -> None:
    """What a package puts around or into the stack by a way of its own sees each hit."""
    app, added = counting_app(), []

    def instrument() -> None:
        build = app.build_middleware_stack

        def build_more() -> Any:
            stack, seen = put(build())
            added.append(seen)
            return stack

        app.build_middleware_stack = build_more  # type: ignore[method-assign]

    if first:
        instrument()
    install(app, CacheContainer(backend=MemoryBackend()))
    if not first:
        instrument()
    assert await told_of(app, "/count", "/count", "/count") == [MISS, HIT, HIT]
    assert [each.requests for each in added] == [3]


async def test_parts_that_fail() -> None:
    """A provider that fails is answered for by the application's own handler, hit or not."""
    app = cached_app()
    app.add_exception_handler(Exception, lambda request, error: JSONResponse(str(error), 500))
    assert await told_of(app, "/count", "/count", "/count") == [MISS, HIT, HIT]

    def fails() -> None:
        raise LookupError("no backend")

    container = app.state.app_cache
    with container.backend.override(providers.Callable(fails)):
        async with client_of(app, raises=False) as client:
            assert (await client.get("/count")).json() == "no backend"
    assert await told_of(app, "/count") == [HIT]


async def test_container_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """So is a provider of the container itself, which is asked at each hit; that it failed there is said once."""
    app, given = FastAPI(), [CacheContainer()]
    app.get("/count")(cache(timeout=60)(lambda: 1))
    app.add_exception_handler(Exception, lambda request, error: JSONResponse(str(error), 500))
    install(app, lambda: given[0])
    assert await told_of(app, "/count", "/count", "/count") == [MISS, HIT, HIT]
    given.clear()
    async with client_of(app, raises=False) as client:
        for _ in range(3):
            assert (await client.get("/count")).json() == "list index out of range"
    assert caplog.text.count("cache.hit_failed") == 1


async def test_handler_of_what_fails() -> None:
    """A hit runs no handler of errors, and what the handler of all errors does is done for a miss that fails."""
    app = cached_app()

    @app.exception_handler(Exception)
    async def handle(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse(repr(error), 418)

    @app.get("/broken")
    def broken() -> None:
        raise ValueError("broken")

    async with client_of(app, raises=False) as client:
        for expected in (MISS, HIT, HIT):
            assert told(await client.get("/count")) == expected
        assert (await client.get("/broken")).text == "\"ValueError('broken')\""


@pytest.mark.parametrize("outer", [FastAPI, cached_app], ids=["no cache outside", "one outside"])
async def test_mounted(outer: Callable[[], FastAPI]) -> None:
    """A mounted application has its own cache; the one of the application around it does not answer for it."""
    app, inner = outer(), cached_app()
    app.router.routes.append(Mount("/inner", inner))
    assert await told_of(app, "/inner/count", "/inner/count", "/inner/count") == [MISS, HIT, HIT]
    inner_container = inner.state.app_cache
    await inner_container.invalidation().by_tag("count")
    assert (await get(app, "/inner/count")).text == "2"


async def test_cache_around_an_application_with_one() -> None:
    """What a cache around the application asks for anew is made anew, whatever is remembered within."""
    inner = cached_app()
    outer = CacheMiddleware(inner, MemoryBackend(), default_policy=CachePolicy(timeout=60))
    assert await told_of(inner, "/count", "/count", "/count") == [MISS, HIT, HIT]
    assert (await get(outer, "/count")).text == "2"
    assert (await get(inner, "/count")).text == "1"


async def test_middleware_of_the_users() -> None:
    """With any middleware of the user's the stack is as it was without the cache."""
    app = counting_app()
    install(app, CacheContainer(backend=MemoryBackend()))
    app.add_middleware(CORSMiddleware, allow_origins=["https://shop.example"])
    for expected in (MISS, HIT, HIT):
        response = await get(app, "/count", headers={"origin": "https://shop.example"})
        assert (told(response), response.headers["access-control-allow-origin"]) == (
            expected,
            "https://shop.example",
        )


async def test_fields_of_proxies() -> None:
    """What the fields of a proxy say of a request counts for hits too: its scheme is in the key."""
    app = FastAPI()

    @app.get("/url")
    @cache(timeout=60)
    async def url(request: Request) -> str:
        return str(request.url)

    install(app, CacheContainer(backend=MemoryBackend()))
    app.add_middleware(ProxyHeadersMiddleware, trusted_hosts="*")
    async with client_of(app) as client:
        for scheme in ("http", "http", "http", "https", "https"):
            answer = await client.get("/url", headers={"X-Forwarded-Proto": scheme})
            assert answer.json() == f"{scheme}://test/url"


async def test_time_passes() -> None:
    """What is over is a miss here, too, and its Age is that of the moment."""
    clock = FakeClock()
    app = cached_app(backend=MemoryBackend(), clock=providers.Object(clock))
    ages = []
    for _ in range(4):
        response = await get(app, "/count")
        ages.append((told(response), response.headers.get("age")))
        clock.advance(25)
    assert ages == [(MISS, None), (HIT, "25"), (HIT, "50"), (MISS.replace("uri-miss", "stale"), None)]

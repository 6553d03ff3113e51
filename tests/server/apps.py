"""Applications that the tests of the protocol serve."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

from fastapi import Depends, FastAPI, Request, Response

from app_cache import CacheMiddleware, CachePolicy, MemoryBackend, cache
from app_cache.fastapi import Invalidation
from app_cache.testing import FakeClock
from tests.middleware.apps import put_cache

if TYPE_CHECKING:
    from containers import CacheContainer

LARGE = 100_000


def shop() -> FastAPI:  # noqa: C901  one route for each thing that an answer can be
    """Return an application of all kinds of answers, which count its runs, without a cache."""
    app, runs = FastAPI(), Counter[str]()
    app.state.runs = runs
    app.state.held = asyncio.Event()

    def answer(name: str, **fields: str) -> Response:
        runs[name] += 1
        return Response(f"{name} {runs[name]}", headers=fields, media_type="text/plain")

    @app.api_route("/items/{number}", methods=["GET", "HEAD"])
    @cache(timeout=60, tags=["all", "n{number}"])
    async def item(number: int) -> Response:
        return answer(f"item {number}", etag=f'"{number}"')

    @app.get("/windows")
    @cache(timeout=20, stale_while_revalidate=20, stale_if_error=20)
    async def windows() -> Response:
        return answer("windows")

    @app.get("/shared")
    @cache(timeout=60, exclude_headers=["Cookie", "Authorization"])
    async def shared() -> Response:
        return answer("shared")

    @app.get("/varies")
    @cache(timeout=60)
    async def varies(request: Request) -> Response:
        return answer(f"in {request.headers.get('accept-language')}", vary="Accept-Language")

    @app.get("/declared")
    @cache(timeout=60, include_headers=["X-A"])
    async def declared(request: Request) -> Response:
        return answer(f"for {request.headers.get('x-a')}")

    @app.get("/mine")
    @cache(timeout=60, vary_by=lambda request: request.headers.get("x-user", "nobody"))
    async def mine(request: Request) -> Response:
        return answer(f"of {request.headers.get('x-user')}")

    @app.get("/guarded", dependencies=[Depends(lambda: None)])
    @cache(timeout=60, guarded=True)
    async def guarded() -> Response:
        return answer("guarded")

    @app.get("/large")
    @cache(timeout=60)
    async def large() -> Response:
        runs["large"] += 1
        return Response(b"x" * LARGE, media_type="text/plain")

    @app.get("/plain")
    async def plain() -> Response:
        return answer("plain")

    @app.get("/held")
    async def held() -> Response:
        await app.state.held.wait()
        return answer("held")

    @app.post("/early")
    async def early() -> Response:
        return answer("early")

    @app.delete("/tags/{tag}")
    async def by_tag(tag: str, invalidation: Invalidation, *, soft: bool = False) -> Response:
        await invalidation.by_tag(tag, soft=soft)
        return Response(status_code=204)

    @app.delete("/all")
    async def everything(invalidation: Invalidation, *, soft: bool = False) -> Response:
        await invalidation.everything(soft=soft)
        return Response(status_code=204)

    return app


class Shop:
    """That application with a cache in a container, and the clock by which it is fresh."""

    def __init__(self, **options: Any) -> None:
        self.clock = FakeClock()
        self.backend = MemoryBackend(clock=self.clock)
        self.app = shop()
        self.container: CacheContainer = put_cache(self.app, self.clock, self.backend, **options)


async def text(scope: Any, receive: Any, send: Any) -> None:
    """Answer with what was asked for."""
    body = scope["path"].encode()
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def wrapped(app: Any = text, **options: Any) -> CacheMiddleware:
    """Return *app* inside of the cache."""
    return CacheMiddleware(app, MemoryBackend(), default_policy=CachePolicy(timeout=60), **options)

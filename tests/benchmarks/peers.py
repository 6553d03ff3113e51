"""The smallest honest application of each peer, for an environment in which they are installed.

Each has the endpoint of `apps`, and the best configuration that its documentation shows for it. What caches values
(fastapi-cache2, cashews) is given a dict, as its users do.
"""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from itertools import count
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import redis.asyncio
from fastapi import Depends, FastAPI, Response

from tests.benchmarks.apps import LIFETIME_S, QUIET, text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.benchmarks.apps import App, Wanted

ROOM = 100_000
"""Entries that a memory may hold."""


def fastapi_cache2(wanted: Wanted) -> App:
    """fastapi-cache2, with its JsonCoder."""
    from fastapi_cache import FastAPICache
    from fastapi_cache.backends.inmemory import InMemoryBackend
    from fastapi_cache.backends.redis import RedisBackend
    from fastapi_cache.decorator import cache

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        store = RedisBackend(redis.asyncio.from_url(wanted.redis)) if wanted.redis else InMemoryBackend()
        FastAPICache.init(store, prefix="benchmark")
        yield

    app = FastAPI(telemetry=QUIET, lifespan=lifespan)
    app.get("/items/{number}")(cache(expire=LIFETIME_S)(item_of(wanted)))
    return app


def cashews(wanted: Wanted) -> App:
    """cashews, its decorator below FastAPI's."""
    from cashews import cache

    cache.setup(wanted.redis or f"mem://?size={ROOM}")
    app = FastAPI(telemetry=QUIET)
    app.get("/items/{number}")(cache(ttl=LIFETIME_S, key="item:{number}")(item_of(wanted)))
    return app


def fastapi_cachex(wanted: Wanted) -> App:
    """fastapi-cachex, which stores responses; its client of Redis is made in the loop."""
    from fastapi_cachex import BackendProxy, cache
    from fastapi_cachex.backends import AsyncRedisCacheBackend, MemoryBackend

    if wanted.redis:
        place = urlsplit(wanted.redis)
        BackendProxy.set(AsyncRedisCacheBackend(host=place.hostname, port=place.port))
    else:
        BackendProxy.set(MemoryBackend(max_entries=ROOM))
    app = FastAPI(telemetry=QUIET)
    app.get("/items/{number}")(cache(ttl=LIFETIME_S)(response_of(wanted)))
    return app


def cache_middleware(wanted: Wanted) -> App:
    """cache-middleware, without its debug line at each hit."""
    from cache_middleware import CacheMiddleware, cache
    from cache_middleware.backends.memory_backend import MemoryBackend
    from cache_middleware.backends.redis_backend import RedisBackend
    from loguru import logger

    logger.remove()
    app = FastAPI(telemetry=QUIET)
    app.add_middleware(
        CacheMiddleware, backend=RedisBackend(wanted.redis) if wanted.redis else MemoryBackend(max_size=ROOM)
    )
    app.get("/items/{number}")(cache(timeout=LIFETIME_S)(item_of(wanted)))
    return app


def hishel(wanted: Wanted) -> App:
    """hishel, by the RFC; what is not Redis is SQLite, in a file that the system holds in memory."""
    from hishel import AsyncRedisStorage, AsyncSqliteStorage
    from hishel.asgi import ASGICacheMiddleware

    app = FastAPI(telemetry=QUIET)
    app.get("/items/{number}")(response_of(wanted, headers={"cache-control": f"max-age={LIFETIME_S}"}))
    storage = (
        AsyncRedisStorage(redis.asyncio.from_url(wanted.redis), default_ttl=LIFETIME_S)
        if wanted.redis
        else AsyncSqliteStorage(database_path="hishel.db")
    )
    caching: App = ASGICacheMiddleware(app, storage=storage)
    return caching


def fastapi_redis_sdk(wanted: Wanted) -> App:
    """fastapi-redis-sdk, whose cache is a dependency; it has Redis alone."""
    from redis_fastapi import FastAPIRedis, cache, get_settings

    get_settings().url = wanted.redis
    app = FastAPI(telemetry=QUIET)
    FastAPIRedis(app).lifespan().caching()
    app.get("/items/{number}", dependencies=[Depends(cache(ttl=LIFETIME_S, eviction_group="items"))])(
        item_of(wanted)
    )
    return app


def item_of(wanted: Wanted) -> Callable[..., Any]:
    """Return the endpoint, giving a dict."""
    runs = count()
    letters = "x" * (wanted.size - len(text(0, 0, 0)))

    async def read_item(number: int) -> dict[str, Any]:
        return {"item": number, "run": next(runs), "text": letters}

    return read_item


def response_of(wanted: Wanted, headers: dict[str, str] | None = None) -> Callable[..., Any]:
    """Return the endpoint, giving a response."""
    runs = count()

    async def read_item(number: int) -> Response:
        return Response(text(number, next(runs), wanted.size), 200, headers, "application/json")

    return read_item


logging.disable(logging.WARNING)

PEERS: dict[str, Callable[[Wanted], App]] = {
    "fastapi-cache2": fastapi_cache2,
    "cashews": cashews,
    "fastapi-cachex": fastapi_cachex,
    "cache-middleware": cache_middleware,
    "hishel": hishel,
    "fastapi-redis-sdk": fastapi_redis_sdk,
}
"""The peers by the name under which they are installed."""

"""The applications that are measured; `create` is what a server of its own process is told to serve.

Each answers ``/items/{number}`` with a body of the same size, and says in it which run of its handler made it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import asdict, dataclass
from itertools import count
from typing import Any

from dependency_injector import providers
from fastapi import FastAPI, Response

from app_cache import CacheBackend, CacheMiddleware, CachePolicy, MemoryBackend, RedisBackend, cache
from containers import CacheContainer, install

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
App = Callable[[Scope, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]

VARIABLE = "BENCHMARKED"
"""Holds the `Wanted` application, as JSON."""
QUIET: Any = {"tracing": False, "metrics": False, "logs": False}
"""FastAPI's telemetry, off."""
LIFETIME_S = 86_400
FIELDS_OF_A_HIT = (
    (b"etag", b'"0123456789abcdef0123456789abcdef"'),
    (b"age", b"10"),
    (b"cache-status", b"app-cache; hit; ttl=86390"),
)
KIB = 1024
PLENTY: dict[str, Any] = {"max_size": 2_000_000, "max_bytes": 8 * KIB**3, "max_entry_bytes": 16 * KIB**2}
"""Bounds of a memory that nothing leaves."""


@dataclass(frozen=True)
class Wanted:
    """Which application is to be served: its *name*, the *size* of its bodies, and *redis*, or memory."""

    name: str
    size: int = KIB
    redis: str = ""

    def environment(self) -> dict[str, str]:
        """Return the variables by which `create` knows it."""
        return {VARIABLE: json.dumps(asdict(self))}

    def backend(self) -> CacheBackend:
        """Return the backend of its cache."""
        return RedisBackend(self.redis) if self.redis else MemoryBackend(**PLENTY)


def create() -> App:
    """Return the application that the process was started for."""
    wanted = Wanted(**json.loads(os.environ[VARIABLE]))
    if wanted.name in APPS:
        return APPS[wanted.name](wanted)
    from tests.benchmarks.peers import PEERS  # only where they are installed

    return PEERS[wanted.name](wanted)


def bare(wanted: Wanted, *more: tuple[bytes, bytes]) -> App:
    """Return an application that sends two ready messages, with two fields and *more*: nothing can cost less."""
    body = text(0, 0, wanted.size).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *more]

    async def answer(scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body, "more_body": False})

    return answer


def running(wanted: Wanted) -> App:
    """Return an application without routes that counts its runs in what it sends."""
    runs = count()

    async def answer(scope: Scope, receive: Any, send: Any) -> None:
        body = text(0, next(runs), wanted.size).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    return answer


def text(number: int, run: int, size: int) -> str:
    """Return JSON of *size* bytes."""
    start = f'{{"item":{number},"run":{run},"text":"'
    return start + "x" * (size - len(start) - 2) + '"}'


def wrapped(wanted: Wanted, tags: tuple[str, ...] = ("items", "shop")) -> CacheMiddleware:
    """Return an application inside of the cache."""
    policy = CachePolicy(timeout=LIFETIME_S, tags=tags)
    return CacheMiddleware(running(wanted), wanted.backend(), default_policy=policy)


def fastapi(
    wanted: Wanted,
    *,
    telemetry: Any = None,
    cached: bool = True,
    tags: tuple[str, ...] = ("items", "item_{number}"),
) -> FastAPI:
    """Return a FastAPI application with the endpoint, decorated if it is to be *cached*."""
    app = FastAPI() if telemetry is None else FastAPI(telemetry=telemetry)
    runs = count()

    async def read_item(number: int) -> Response:
        return Response(text(number, next(runs), wanted.size), media_type="application/json")

    app.get("/items/{number}")(cache(timeout=LIFETIME_S, tags=[*tags])(read_item) if cached else read_item)
    return app


def put_cache(app: FastAPI, backend: CacheBackend) -> CacheContainer:
    """Put a cache with *backend* on *app*, and return its container."""
    container = CacheContainer()
    container.backend.override(providers.Object(backend))
    install(app, container)
    return container


def installed(wanted: Wanted, **options: Any) -> FastAPI:
    """Return a FastAPI application with its telemetry as given, on which the cache is installed."""
    app = fastapi(wanted, **options)
    put_cache(app, wanted.backend())
    return app


APPS: dict[str, Callable[[Wanted], App]] = {
    "bare": bare,
    "dressed": lambda wanted: bare(wanted, *FIELDS_OF_A_HIT),
    "wrapped": wrapped,
    "installed": lambda wanted: installed(wanted, telemetry=QUIET),
    "installed, telemetry on": installed,
    "fastapi": lambda wanted: fastapi(wanted, telemetry=QUIET, cached=False),
}
"""Our applications, and those without a cache, by name."""

"""What the middleware's tests share: cached applications, their clients, and a server where the wire matters."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
from dependency_injector import providers

from app_cache import CacheBackend, MemoryBackend
from containers import CacheContainer, install
from tests import clients
from tests.clients import told
from tests.http_server import http_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from starlette.applications import Starlette

__all__ = ["client_of", "lasting", "messages_of", "put_cache", "scope_of", "served", "told"]

FRESH = frozenset({b"age", b"cache-status", b"date", b"etag"})
"""Fields in which a hit may differ from its miss."""


def put_cache(
    app: Starlette,
    clock: Callable[[], float] | None = None,
    backend: CacheBackend | None = None,
    **options: Any,
) -> CacheContainer:
    """Install a cache on *app* that tells the time by *clock*, and return its container."""
    container = CacheContainer()
    container.backend.override(providers.Object(backend or MemoryBackend()))
    if clock is not None:
        container.clock.override(providers.Object(clock))
    install(app, container, **options)
    return container


def client_of(app: Any, **options: Any) -> httpx.AsyncClient:
    """Return a client of *app* without a server between; an exception of the application is a 500."""
    return clients.client_of(app, raises=False, **options)


def lasting(response: httpx.Response) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Return what a hit has in common with its miss: status, fields in order, body."""
    fields = [(name.lower(), value) for name, value in response.headers.raw if name.lower() not in FRESH]
    return response.status_code, fields, response.content


@asynccontextmanager
async def served(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Serve *app* over HTTP from another thread, and give a client of it."""
    with http_server(app) as url:
        async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
            yield client


async def messages_of(app: Any, scope: dict[str, Any], *received: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the messages that *app* sends for *scope* when it has *received*, or a request without body."""
    sent: list[dict[str, Any]] = []
    waiting: list[dict[str, Any]] = [
        *reversed(received or ({"type": "http.request", "body": b"", "more_body": False},))
    ]

    async def receive() -> dict[str, Any]:
        if waiting:
            return waiting.pop()
        await asyncio.Event().wait()
        return {}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent


def scope_of(path: str, *, method: str = "GET", **more: Any) -> dict[str, Any]:
    """Return the scope of a request for *path*."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode("utf-8", "surrogateescape"),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"test")],
        "client": ("127.0.0.1", 1),
        "server": ("test", 80),
        **more,
    }

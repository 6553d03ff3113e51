"""Requests to applications in this process, and what the cache says of them."""

from __future__ import annotations

import asyncio
import re
from itertools import count
from typing import TYPE_CHECKING, Any, cast

import anyio
import httpx
from fastapi import FastAPI

from app_cache import cache

if TYPE_CHECKING:
    from collections.abc import MutableMapping

MISS = "fwd=uri-miss; stored"
HIT = "hit"


def client_of(
    app: Any, *, client: tuple[str, int] | None = ("127.0.0.1", 50_000), raises: bool = True, **options: Any
) -> httpx.AsyncClient:
    """Return a client of *app* that connects from *client*; where it *raises*, what the application does."""
    transport = httpx.ASGITransport(app, client=cast("Any", client), raise_app_exceptions=raises)
    return httpx.AsyncClient(transport=transport, base_url="http://test", **options)


async def all_blocked() -> None:
    """Return once each other task waits for something.

    It looks more than once: who waits for a task that has just ended is told a turn of the loop later.
    """
    for _ in range(2):
        await anyio.wait_all_tasks_blocked()
        await asyncio.sleep(0)
    await anyio.wait_all_tasks_blocked()


async def get(app: Any, path: str, **options: Any) -> httpx.Response:
    """Return the response of *app* to a GET of *path*; the options are those of `httpx.AsyncClient.get`."""
    async with client_of(app) as client:
        return await client.get(path, **options)


async def post(app: Any, path: str, **options: Any) -> httpx.Response:
    """Return the response of *app* to a POST to *path*; the options are those of `httpx.AsyncClient.post`."""
    async with client_of(app) as client:
        return await client.post(path, **options)


async def told_of(app: Any, *paths: str, **options: Any) -> list[str | None]:
    """Return what Cache-Status says of a GET of each of *paths*, one after the other."""
    return [told(await get(app, path, **options)) for path in paths]


def told(response: httpx.Response) -> str | None:
    """Return what Cache-Status says of *response*, without our name and the seconds; None if nothing."""
    status: str | None = response.headers.get("cache-status")
    return None if status is None else re.sub(r"^app-cache; |; ttl=-?\d+", "", status)


def counting_app() -> FastAPI:
    """Return an application whose ``/count`` is cached, tagged ``count``, and answers how often it ran."""
    app = FastAPI()
    runs = count(1)

    @app.get("/count")
    @cache(timeout=60, tags=["count"])
    async def counted() -> int:
        return next(runs)

    return app


async def websocket_text(app: Any, path: str) -> str:
    """Return the first text that the websocket at *path* sends."""
    received: list[MutableMapping[str, Any]] = [{"type": "websocket.connect"}]
    sent: list[MutableMapping[str, Any]] = []
    scope = {
        "type": "websocket",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "scheme": "ws",
        "query_string": b"",
        "headers": [],
        "client": ("127.0.0.1", 50_000),
        "server": ("test", 80),
        "subprotocols": [],
    }

    async def receive() -> MutableMapping[str, Any]:
        return received.pop() if received else {"type": "websocket.disconnect", "code": 1000}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return str(next(message["text"] for message in sent if message["type"] == "websocket.send"))

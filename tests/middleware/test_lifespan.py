"""What is under way as the application ends."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI

from app_cache import CacheBackend, CacheMiddleware, ConfigurationError, NotWiredError, cache
from containers import CacheContainer, install
from tests.clients import client_of

if TYPE_CHECKING:
    from collections.abc import MutableMapping

pytestmark = pytest.mark.anyio


class HeldBackend(CacheBackend):
    """Takes nothing before it is let go."""

    def __init__(self) -> None:
        self.let_go = asyncio.Event()
        self.values: dict[str, str] = {}

    async def get(self, key: str) -> str | None:
        return self.values.get(key)

    async def set(self, key: str, value: str, timeout: int) -> None:
        if key.startswith("cache:") and ":s:" not in key:
            await self.let_go.wait()
        self.values[key] = value

    async def delete(self, key: str) -> None:
        self.values.pop(key, None)

    async def close(self) -> None: ...


async def test_pending_writes_are_drained_without_a_container() -> None:
    """An entry on its way to a slow backend arrives before the application says that it has ended."""
    app, backend = FastAPI(), HeldBackend()
    app.add_middleware(CacheMiddleware, backend=backend)

    @app.get("/")
    @cache(timeout=60)
    async def answer() -> str:
        return "text"

    told: list[str] = []
    messages: asyncio.Queue[MutableMapping[str, Any]] = asyncio.Queue()

    async def send(message: MutableMapping[str, Any]) -> None:
        told.append(message["type"])

    ending = asyncio.create_task(app({"type": "lifespan", "state": {}}, messages.get, send))
    await messages.put({"type": "lifespan.startup"})
    async with client_of(app) as client:
        await client.get("/")
    await messages.put({"type": "lifespan.shutdown"})
    for _ in range(20):
        await asyncio.sleep(0)
    assert told == ["lifespan.startup.complete"]
    backend.let_go.set()
    await ending
    assert told[-1] == "lifespan.shutdown.complete"
    assert any(value.startswith("app-cache:") for value in backend.values.values())


async def test_class_of_a_container() -> None:
    """The class of a container in place of one is refused when the middleware is made."""
    with pytest.raises(NotWiredError, match=r"CacheContainer\(\)"):
        CacheMiddleware(FastAPI(), container=CacheContainer)


async def test_wrong_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A namespace that cannot stand in a key is refused by the name of its variable as the cache is installed."""
    monkeypatch.setenv("CACHE_NAMESPACE", "a b")
    with pytest.raises(ConfigurationError, match=r"CACHE_NAMESPACE: .*'a b'"):
        install(FastAPI(), CacheContainer())

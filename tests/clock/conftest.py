"""Fixtures for tests of clocks: each kind of clock, over each server that can be run here."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Protocol

import pytest

from app_cache.backends.memory import MemoryBackend
from app_cache.backends.redis import RedisBackend
from app_cache.store import StoredResponses
from tests.conftest import BINARIES
from tests.stored import FourMethods

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from app_cache.backends.base import CacheBackend
    from app_cache.clock.base import InvalidationClock
    from tests.servers import Server

KINDS = ["memory", "custom", *BINARIES]


class Backends(Protocol):
    """Gives the backend of one more process: of Redis a new client, else the one there is."""

    kind: str

    def __call__(self) -> CacheBackend: ...


class Clocks(Protocol):
    """Gives the clock of one more process, under a namespace."""

    kind: str

    def __call__(self, namespace: str = ...) -> InvalidationClock: ...


class _Backends:
    def __init__(self, kind: str, make: Callable[[], CacheBackend]) -> None:
        self.kind = kind
        self._make = make

    def __call__(self) -> CacheBackend:
        return self._make()


@pytest.fixture(params=KINDS)
async def backends(request: pytest.FixtureRequest, servers: Callable[[str], Server]) -> AsyncIterator[Backends]:
    """Give backends of each kind, for one test."""
    async with AsyncExitStack() as closing:
        if request.param in BINARIES:
            url = servers(request.param).url

            def connect() -> CacheBackend:
                backend = RedisBackend(url, operation_timeout=5.0, socket_timeout=5.0)
                closing.push_async_callback(backend.close)
                return backend

            yield _Backends(request.param, connect)
        else:
            backend = MemoryBackend() if request.param == "memory" else FourMethods()
            closing.push_async_callback(backend.close)
            yield _Backends(request.param, lambda: backend)


class _Clocks:
    def __init__(self, backends: Backends) -> None:
        self.kind = backends.kind
        self.made: list[InvalidationClock] = []
        self._backends = backends

    def __call__(self, namespace: str = "") -> InvalidationClock:
        self.made.append(StoredResponses(self._backends(), namespace).clock)
        return self.made[-1]


@pytest.fixture
async def clocks(backends: Backends) -> AsyncIterator[Clocks]:
    """Give clocks of each kind, for one test."""
    clocks = _Clocks(backends)
    yield clocks
    for clock in clocks.made:
        await clock.close()

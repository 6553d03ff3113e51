"""Fixtures for tests of backends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import pytest

from app_cache.backends.redis import RedisBackend

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Connect(Protocol):
    """Makes a backend that is closed when the test ends."""

    def __call__(self, url: str = ..., **options: Any) -> RedisBackend: ...


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Make backends in Redis, with the arguments of `RedisBackend`."""
    made: list[RedisBackend] = []

    def make(*url: str, **options: Any) -> RedisBackend:
        made.append(RedisBackend(*url, **options))
        return made[-1]

    yield make
    for backend in made:
        await backend.close()

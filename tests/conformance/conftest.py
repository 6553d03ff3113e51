"""Fixtures for tests of conformance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from app_cache import CacheBackend, MemoryBackend, RedisBackend
from tests.conftest import BINARIES
from tests.stored import FourMethods

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.servers import Server


@pytest.fixture(params=["memory", "custom", *BINARIES])
async def backend(request: pytest.FixtureRequest, servers: Callable[[str], Server]) -> AsyncIterator[CacheBackend]:
    """A backend in this process, one of four methods, and each server that can be run here."""
    kinds = {"memory": MemoryBackend, "custom": FourMethods}
    kind = request.param
    made: CacheBackend = kinds[kind]() if kind in kinds else RedisBackend(servers(kind).url)
    yield made
    await made.close()

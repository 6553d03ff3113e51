"""Fixtures for applications with a cache: ``pytest_plugins = ["app_cache.testing.plugin"]`` in a conftest.py.

The top of the house: it may use the container, which nothing else of the package may.
"""

from __future__ import annotations

import pytest

from app_cache.backends.memory import MemoryBackend
from app_cache.config import CacheSettings
from app_cache.testing.clock import FakeClock
from containers import CacheContainer


@pytest.fixture
def cache_clock() -> FakeClock:
    """The time, as the cache of `cache_container` sees it; it stands until the test moves it."""
    return FakeClock()


@pytest.fixture
def cache_container(cache_clock: FakeClock) -> CacheContainer:
    """A container for the environment ``testing``, whatever the variables of the process say; its memory is empty.

    Both freshness and the memory's own deadlines go by `cache_clock`. Override a part of it in one line:
    ``cache_container.backend.override(…)``.
    """
    settings = CacheSettings({"ENVIRONMENT": "testing"})
    return CacheContainer(settings=settings, backend=MemoryBackend(clock=cache_clock), clock=cache_clock)

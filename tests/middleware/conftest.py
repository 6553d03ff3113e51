"""Fixtures of the middleware's tests."""

from __future__ import annotations

import pytest

from app_cache.testing import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    """The time, as the cache sees it."""
    return FakeClock()

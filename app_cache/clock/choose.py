"""Which clock a backend can keep."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from app_cache.backends.base import LocalBackend, ScriptBackend, capability
from app_cache.clock.local import LocalClock
from app_cache.clock.script import ScriptClock
from app_cache.clock.tokens import TokenClock

if TYPE_CHECKING:
    from collections.abc import Callable

    from app_cache.backends.base import CacheBackend
    from app_cache.clock.base import InvalidationClock
    from app_cache.shelf import Shelf


def clock_for(
    backend: CacheBackend, shelf: Shelf, namespace: str, monotonic: Callable[[], float] = time.monotonic
) -> InvalidationClock:
    """Return the clock that *backend* can keep, under *namespace*."""
    local = capability(backend, LocalBackend)
    if local is not None:
        return LocalClock(local, shelf, namespace)
    if capability(backend, ScriptBackend) is not None:
        return ScriptClock(backend, shelf, namespace, monotonic)
    return TokenClock(backend, shelf, namespace)

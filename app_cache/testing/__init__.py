"""The test kit: a clock that a test moves, hits and misses, backends that break, and what a backend must keep to.

The contracts and the fixtures need pytest, and are imported when they are asked for; nothing else here does.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from app_cache.testing.clock import FakeClock
from app_cache.testing.flaky import FlakyBackend
from app_cache.testing.responses import assert_hit, assert_miss

if TYPE_CHECKING:
    from app_cache.testing.contracts import (
        BackendContract,
        BytesContract,
        CombinedContract,
        LocalContract,
        PatternContract,
        PingContract,
        ScriptContract,
        SizeContract,
        TimeoutContract,
        WatchContract,
    )

__all__ = [
    "BackendContract",
    "BytesContract",
    "CombinedContract",
    "FakeClock",
    "FlakyBackend",
    "LocalContract",
    "PatternContract",
    "PingContract",
    "ScriptContract",
    "SizeContract",
    "TimeoutContract",
    "WatchContract",
    "assert_hit",
    "assert_miss",
]

_CONTRACTS = "app_cache.testing.contracts"


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if _CONTRACTS not in sys.modules:
        import pytest

        pytest.register_assert_rewrite(_CONTRACTS)
    return getattr(import_module(_CONTRACTS), name)

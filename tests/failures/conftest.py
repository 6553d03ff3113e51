"""Fixtures for tests that break things."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from tests.failures.proxy import FaultProxy
from tests.failures.rig import Rig

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.servers import Server


class StartRig(Protocol):
    """Starts workers over a server, with the arguments of `Rig`."""

    def __call__(self, redis_url: str | None, workers: int = ..., **options: Any) -> Rig: ...


@pytest.fixture
def start_rig(tmp_path: Path) -> Iterator[StartRig]:
    """Start workers that end with the test."""
    with ExitStack() as running:

        def start(redis_url: str | None, workers: int = 1, **options: Any) -> Rig:
            return running.enter_context(Rig(tmp_path, redis_url, workers, **options))

        yield start


@pytest.fixture
def proxy(redis_server: Server) -> Iterator[FaultProxy]:
    """A proxy before an empty server, which passes on everything."""
    with FaultProxy(redis_server.port) as proxy:
        yield proxy

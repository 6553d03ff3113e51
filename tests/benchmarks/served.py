"""Applications in processes of their own, each behind a server with one worker."""

from __future__ import annotations

import http.client
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tests.benchmarks.figures import Figure, ratios
from tests.benchmarks.load import requests_per_s
from tests.benchmarks.requests import FIELDS
from tests.servers import HOST, die_with_the_parent, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tests.benchmarks.apps import Wanted
    from tests.benchmarks.figures import Effort
    from tests.benchmarks.load import Load

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
TARGET = "tests.benchmarks.apps:create"
SERVERS = {
    "uvicorn": ["--factory", "--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "error"],
    "granian": ["--factory", "--loop", "uvloop", "--interface", "asgi", "--no-ws", "--log-level", "error"],
}
WITHOUT_CACHE = frozenset({"bare", "dressed", "fastapi"})
"""Applications whose answers do not come from a cache."""
STARTS_WITHIN_S = 30
ASKED_WITHIN_S = 60


@dataclass(frozen=True)
class Serving:
    """A server: the *port* on which it listens, and its *process*."""

    port: int
    process: int

    def cpu_s(self) -> float | None:
        """Return the seconds of CPU that it and its worker have had; None where the system does not say so."""
        if not Path("/proc/self/stat").exists():
            return None
        children = Path(f"/proc/{self.process}/task/{self.process}/children").read_text(encoding="ascii").split()
        return sum(map(_cpu_s, [self.process, *map(int, children)]))


def _cpu_s(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Rates:
    """What a server did in each round: *requests* in a second, and *cpu_us* of it for one, if that is known."""

    requests: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)

    def measure(self, serving: Serving, rate: Callable[[], float], seconds: int) -> None:
        """Add what *serving* does in one round, whose load *rate* makes for *seconds*."""
        before = serving.cpu_s()
        requests = rate()
        after = serving.cpu_s()
        self.requests.append(requests)
        if before is not None and after is not None:
            self.cpu_us.append((after - before) / (requests * seconds) * 1e6)

    @property
    def cpu(self) -> str:
        """The CPU of one request, in words."""
        return f"{Figure.of('', self.cpu_us, '').value:.0f} µs" if self.cpu_us else "?"

    def __str__(self) -> str:
        return f"{Figure.of('', self.requests, '').value:,.0f}/s ({self.cpu})"


@contextmanager
def served(
    wanted: Wanted, server: str = "uvicorn", python: str = sys.executable, cwd: Path = ROOT
) -> Iterator[Serving]:
    """Serve the application that is *wanted* by a process of *python*.

    Raises:
        RuntimeError: If it does not start.
    """
    port = free_port()
    process = subprocess.Popen(
        [python, "-m", server, *SERVERS[server], "--host", HOST, "--port", str(port), TARGET],
        env={**os.environ, **wanted.environment(), "PYTHONPATH": str(ROOT)},
        cwd=cwd,
        start_new_session=True,
        preexec_fn=die_with_the_parent,
    )
    try:
        _wait_for(process, port)
        yield Serving(port, process.pid)
    finally:
        _end(process)


def _wait_for(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + STARTS_WITHIN_S
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError):
            ask(port, 0)
            return
        time.sleep(0.05)
    raise RuntimeError("the application does not start; its own error stands above")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End *process* and the workers that it has."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(5)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def ask(port: int, number: int, connection: http.client.HTTPConnection | None = None) -> bytes:
    """Return the body of an item from the server on *port*.

    Raises:
        RuntimeError: If its status is not 200.
    """
    using = connection or http.client.HTTPConnection(HOST, port, timeout=STARTS_WITHIN_S)
    using.request("GET", f"/items/{number}", headers=FIELDS)
    response = using.getresponse()
    body = response.read()
    if response.status != 200:
        raise RuntimeError(f"/items/{number} is answered with {response.status}: {body[:200]!r}")
    if connection is None:
        using.close()
    return body


def fill(port: int, keys: int, *, answers_from_cache: bool = True) -> None:
    """Ask for each of the items until all answers are what a cache gave: those of the same run as before.

    Raises:
        RuntimeError: If that does not come about.
    """
    connection = http.client.HTTPConnection(HOST, port, timeout=STARTS_WITHIN_S)
    deadline = time.monotonic() + ASKED_WITHIN_S
    before = [ask(port, number, connection) for number in range(keys)]
    while answers_from_cache:
        now = [ask(port, number, connection) for number in range(keys)]
        if now == before and all(_run(body) is not None for body in now):
            break
        if time.monotonic() > deadline:
            raise RuntimeError("the application does not answer from its cache")
        before = now
    connection.close()


def _run(body: bytes) -> int | None:
    found = re.search(rb'"run": ?(\d+)', body)
    return None if found is None else int(found[1])


def in_rounds(
    apps: Mapping[str, Wanted], load: Load, effort: Effort, server: str = "uvicorn", python: str = sys.executable
) -> dict[str, Rates]:
    """Return what each of *apps* does under *load*; each round begins with another.

    Each round has servers of its own: how fast a process is depends on where its memory lies, too.
    """
    taken = {name: Rates() for name in apps}
    for number in range(effort.rounds):
        with ExitStack() as running, tempfile.TemporaryDirectory() as directory:
            servers: dict[str, Serving] = {}
            for name, wanted in turned(apps, number):
                cwd = Path(directory, str(len(servers)))
                cwd.mkdir()
                servers[name] = running.enter_context(served(wanted, server, python, cwd))
                fill(servers[name].port, load.keys, answers_from_cache=wanted.name not in WITHOUT_CACHE)
                requests_per_s(servers[name].port, load, 1)
            for name, serving in servers.items():
                asked = partial(requests_per_s, serving.port, load, effort.seconds)
                taken[name].measure(serving, asked, effort.seconds)
    return taken


def turned(named: Mapping[str, T], number: int) -> list[tuple[str, T]]:
    """Return what is *named* in its order from that *number* on, and then what is before it."""
    listed = [*named.items()]
    first = number % len(listed)
    return listed[first:] + listed[:first]


def compared(
    apps: Mapping[str, Wanted],
    load: Load,
    effort: Effort,
    server: str = "uvicorn",
    targets: Mapping[str, float] | None = None,
    words: str = "",
) -> list[Figure]:
    """Serve *apps*, and return what part of the first one's requests the others answer."""
    base, *others = in_rounds(apps, load, effort, server).values()
    return [
        Figure.of(
            f"{name}; {words}",
            ratios(rates.requests, base.requests),
            "of bare",
            at_least=(targets or {}).get(name),
            beside=f"{rates} against {base}",
        )
        for name, rates in zip([*apps][1:], others, strict=True)
    ]

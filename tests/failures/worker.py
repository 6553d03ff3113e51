"""The application that the rig runs, one process each, and what a test may ask of it over HTTP.

Its endpoints that begin with ``/control`` are the test's: they have no cache, and are not counted.
"""

from __future__ import annotations

import asyncio
import gc
import os
import re
import sys
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from mmap import mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse

from app_cache import CacheBackend, CacheSettings, Environment, MemoryBackend, RedisBackend, cache, flight
from app_cache.fastapi import Invalidation
from app_cache.logger_config import configure_logger
from containers import CacheContainer, install
from tests.servers import LIBC, die_with_the_parent
from tests.stored import written

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
    from multiprocessing.connection import Connection

    Scope = MutableMapping[str, Any]
    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]

ITEMS = 1_000
MEBIBYTE = 1024 * 1024
MAX_BODY = 14 * MEBIBYTE
"""Bytes of a text that are kept at most."""
WITHIN_S = 20.0
READY = "ready"
CONNECTIONS = 10
"""Connections to the backend, and so calls that are not waiting for their turn."""
TURNS = 50
"""Turns of the loop in which a task that waits for nothing gets to where it waits."""


class Database:
    """What the items are made of: a version of each, in a *file* that processes share."""

    def __init__(self, file: Path) -> None:
        with file.open("r+b") as opened:
            self._versions = memoryview(mmap(opened.fileno(), ITEMS * 8)).cast("Q")

    @staticmethod
    def create(file: Path) -> None:
        """Make *file*, with the version 0 of each item."""
        file.write_bytes(bytes(ITEMS * 8))

    def version(self, item: int) -> int:
        """Return the version of *item*."""
        return self._versions[item]

    def change(self, item: int) -> int:
        """Make a new version of *item*, and return it."""
        self._versions[item] += 1
        return self._versions[item]


@dataclass
class Seen:
    """What has happened in this process, and a gate at which its handlers wait."""

    asked: Counter[str] = field(default_factory=Counter)
    """Requests that came in, by path."""
    left: Counter[str] = field(default_factory=Counter)
    """Handlers that saw their client leave, by path."""
    runs: Counter[str] = field(default_factory=Counter)
    """Handlers that began, by path."""
    inside: Counter[str] = field(default_factory=Counter)
    """Handlers that have not ended, by path."""
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    opens_at_the_end: bool = False
    """Whether the gate opens when the application is told to end."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    def note(self, what: str, path: str, count: int = 1) -> None:
        """Count, and wake who waits for that."""
        getattr(self, what)[path] += count
        self.changed.set()
        self.changed = asyncio.Event()

    async def until(self, what: str, path: str, count: int) -> None:
        """Return when *what* of *path* is at least *count*.

        Raises:
            TimeoutError: If it is not within `WITHIN_S`.
        """
        async with asyncio.timeout(WITHIN_S):
            while getattr(self, what)[path] < count:
                await self.changed.wait()

    @asynccontextmanager
    async def handler(self, path: str) -> AsyncIterator[int]:
        """Stand for a handler of *path*, which waits at the gate; gives the number of its run."""
        self.note("runs", path)
        self.note("inside", path)
        number = self.runs[path]
        try:
            await self.gate.wait()
            yield number
        finally:
            self.note("inside", path, -1)


class Counting:
    """Counts what comes in, outside of everything else."""

    def __init__(self, app: Any, seen: Seen) -> None:
        self.app = app
        self.seen = seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not scope["path"].startswith("/control/"):
            self.seen.note("asked", scope["path"])
        await self.app(scope, receive, send)


def create_app(container: CacheContainer, database: Database, ready: Callable[[], None]) -> FastAPI:
    """Return the application; it calls *ready* when it has started."""
    seen = Seen()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        ready()
        yield
        if seen.opens_at_the_end:
            seen.gate.set()

    app = FastAPI(lifespan=lifespan)
    app.add_middleware(Counting, seen=seen)
    add_items(app, seen, database)
    add_others(app, seen)
    add_waiting(app, seen, container)
    add_control(app, seen, container, database)
    install(app, container)
    return app


def add_items(app: FastAPI, seen: Seen, database: Database) -> None:
    """Add what is cached, with tags, from the database."""

    @app.get("/items/{item}")
    @cache(timeout=300, stale_while_revalidate=300, tags=["items", "item_{item}"])
    async def read_item(item: int, request: Request) -> dict[str, int]:
        version = database.version(item)
        async with seen.handler(request.url.path) as run:
            return {"item": item, "version": version, "run": run, "pid": os.getpid()}

    @app.get("/text/{size}")
    @cache(timeout=300, max_body=MAX_BODY)
    async def read_text(size: int, request: Request) -> StreamingResponse:
        """Send the text in ten parts."""
        async with seen.handler(request.url.path):
            parts = (b"t" * (size // 10) for _ in range(10))
            return StreamingResponse(parts, headers={"content-length": str(size // 10 * 10)})

    @app.get("/private")
    @cache(timeout=300)
    async def read_private(request: Request) -> Response:
        async with seen.handler("/private") as run:
            return Response(str(run), headers={"cache-control": "private"})

    @app.get("/fails")
    @cache(timeout=300)
    async def fail() -> None:
        async with seen.handler("/fails"):
            raise RuntimeError("the handler fails")


def add_others(app: FastAPI, seen: Seen) -> None:
    """Add streams."""

    @app.get("/large/{mebibytes}")
    @cache(timeout=300, max_body=MEBIBYTE)
    async def read_large(mebibytes: int, request: Request) -> StreamingResponse:
        """Send the first byte, and the others once the gate is open."""
        part = b"p" * 65_536

        async def parts() -> AsyncIterator[bytes]:
            yield part[:1]
            async with seen.handler(request.url.path):
                yield part[1:]
                for _ in range(mebibytes * 16 - 1):
                    yield part[1:] + b"p"  # a part of its own, so that one which is kept is seen in the memory

        return StreamingResponse(parts())

    @app.get("/events")
    @cache(timeout=300)
    async def read_events() -> StreamingResponse:
        """Send one event, wait for the gate, and send events until the client leaves."""

        async def events() -> AsyncIterator[str]:
            try:
                yield "data: 0\n\n"
                async with seen.handler("/events"):
                    while True:
                        yield "data: 1\n\n"
                        await asyncio.sleep(0.01)
            finally:
                seen.note("left", "/events")

        return StreamingResponse(events(), media_type="text/event-stream")


def add_waiting(app: FastAPI, seen: Seen, container: CacheContainer) -> None:
    """Add what the test waits for, and the gate at which handlers wait for the test."""

    @app.post("/control/gate/{is_open}")
    async def set_gate(is_open: bool) -> None:
        if is_open:
            seen.gate.set()
        else:
            seen.gate.clear()

    @app.post("/control/open_at_the_end")
    async def open_at_the_end() -> None:
        seen.opens_at_the_end = True

    @app.post("/control/until/{what}/{count}")
    async def wait_until(what: str, count: int, path: str) -> None:
        await seen.until(what, path, count)

    @app.post("/control/settled")
    async def wait_until_settled() -> None:
        for _ in range(2):
            async with asyncio.TaskGroup() as asked:
                for _ in range(CONNECTIONS):
                    asked.create_task(container.backend().get("settled"))
            for _ in range(TURNS):
                await asyncio.sleep(0)

    @app.post("/control/written")
    async def wait_until_written() -> None:
        await written(container.store())


def add_control(app: FastAPI, seen: Seen, container: CacheContainer, database: Database) -> None:
    """Add what the test asks and does."""

    @app.post("/control/forget_peak")
    def forget_peak() -> None:
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5", "ascii")

    @app.post("/control/soften/{item}")
    async def mark_stale(item: int, invalidation: Invalidation) -> None:
        await invalidation.by_tag(f"item_{item}", soft=True)

    @app.post("/control/change/{item}")
    async def change_item(item: int, invalidation: Invalidation) -> dict[str, int | bool]:
        """Change an item, and invalidate it."""
        version = database.change(item)
        result = await invalidation.by_tag(f"item_{item}")
        return {"version": version, "durable": result.durable}

    @app.get("/control/state")
    async def read_state() -> dict[str, Any]:
        """Return counts, and what the process holds."""
        gc.collect()
        if LIBC is not None:
            LIBC.malloc_trim(0)
        own = asyncio.current_task()
        return {
            "asked": seen.asked,
            "runs": seen.runs,
            "inside": seen.inside,
            "left": seen.left,
            "stats": container.metrics(),
            "tasks": sorted(str(task.get_coro()) for task in asyncio.all_tasks() if task is not own),
            "descriptors": _descriptors(),
            "memory": _memory("VmRSS"),
            "peak": _memory("VmHWM"),
        }


def _descriptors() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


def _memory(what: str) -> int:
    """Return the bytes of memory of this process: now, or the most that it has had since that was forgotten."""
    (line,) = re.findall(rf"^{what}:\s+(\d+) kB$", Path("/proc/self/status").read_text("ascii"), re.MULTILINE)
    return int(line) * 1024


@dataclass(frozen=True)
class Options:
    """What a worker is.

    Args:
        redis_url: Its server; None for memory.
        operation_timeout: The seconds that an operation of the backend may take.
        database: The file of the database.
        log: Where its output goes.
    """

    redis_url: str | None
    operation_timeout: float
    database: Path
    log: Path

    def backend(self, settings: CacheSettings) -> CacheBackend:
        """Return the backend."""
        if self.redis_url is None:
            return MemoryBackend()
        return RedisBackend(self.redis_url, operation_timeout=self.operation_timeout, max_connections=CONNECTIONS)


def serve(listening: socket.socket, ready: Connection, options: Options) -> None:
    """Run the application in this process until it is told to end."""
    die_with_the_parent()
    _write_to(options.log)
    configure_logger(level="INFO")
    # A machine that is busy may need longer for a wave than these usually are.
    flight.MARKER_S = flight.SLOW_BODY_S = WITHIN_S
    container = CacheContainer(
        environments={"rig": Environment("rig", options.backend)}, settings=CacheSettings({"ENVIRONMENT": "rig"})
    )
    app = create_app(container, Database(options.database), lambda: ready.send(READY))
    config = uvicorn.Config(app, log_level="warning", access_log=False, ws="none", timeout_graceful_shutdown=10)
    uvicorn.Server(config).run([listening])


def _write_to(log: Path) -> None:
    descriptor = os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(descriptor, stream.fileno())
    os.close(descriptor)

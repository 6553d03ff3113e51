"""Runs the application of `tests.failures.worker` in processes of their own, for a test to drive and to break.

The processes are forked from a server of multiprocessing that has imported everything, and so begin in some
milliseconds. Each has a socket that the test keeps listening: a restart keeps its port, and who connects meanwhile
waits rather than being refused.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self

import httpx

from tests.failures.worker import READY, WITHIN_S, Database, Options, serve
from tests.http_server import HOST, listening_socket

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerProcess
    from pathlib import Path

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.failures.worker"])

PATIENT_S = 10.0
HEADERS = {"host": "app.test"}
"""The host joins the key: workers that share what is stored have one name."""


class Client(httpx.AsyncClient):
    """Asks one worker what a test has to ask; `Worker.ask` is cheaper, where there are hundreds."""

    def __init__(self, url: str) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        super().__init__(
            base_url=url, headers=HEADERS, trust_env=False, verify=False, timeout=WITHIN_S, limits=limits
        )

    async def gate(self, *, is_open: bool) -> None:
        """Open or close the gate at which handlers wait."""
        await self._control(f"gate/{is_open}")

    async def open_at_the_end(self) -> None:
        """Have the gate open when the worker is told to end."""
        await self._control("open_at_the_end")

    async def until(self, what: str, path: str, count: int) -> None:
        """Return when the worker has *asked*, *runs*, *inside* or *left* of *path* at least *count* times."""
        await self._control(f"until/{what}/{count}", params={"path": path})

    async def settled(self) -> None:
        """Return when what the worker has been asked waits for something else than the backend."""
        await self._control("settled")

    async def written(self) -> None:
        """Return when nothing is on its way to the backend."""
        await self._control("written")

    async def soften(self, item: int) -> None:
        """Mark the answers that name an item as stale."""
        await self._control(f"soften/{item}")

    async def change(self, item: int) -> tuple[int, bool]:
        """Change an item and invalidate it; return its version, and whether the invalidation is durable."""
        changed = await self._control(f"change/{item}")
        return changed["version"], changed["durable"]

    async def peak(self) -> int:
        """Return the most bytes of memory that the worker had since the last call."""
        peak: int = (await self.state())["peak"]
        await self._control("forget_peak")
        return peak

    async def state(self) -> dict[str, Any]:
        """Return the counts of the worker, and what it holds."""
        answer = await self.get("/control/state")
        return dict(answer.raise_for_status().json())

    async def _control(self, path: str, **options: Any) -> Any:
        answer = await self.post(f"/control/{path}", **options)
        return answer.raise_for_status().json()


class Worker:
    """One process that runs the application."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self._listening = listening_socket()
        self._process: ForkServerProcess | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        return HOST, self._listening.getsockname()[1]

    @property
    def is_running(self) -> bool:
        """Whether it has a process that was not ended from here."""
        return self._process is not None and self._process.pid is not None

    @property
    def pid(self) -> int:
        """The number of its process."""
        assert self._process is not None
        assert self._process.pid is not None
        return self._process.pid

    def client(self) -> Client:
        """Return a client of it, to be closed by the test."""
        return Client("http://{}:{}".format(*self.address))

    async def ask(self, path: str, method: str = "GET") -> httpx.Response:
        """Return its answer to a request for *path*, on a connection that ends with this call.

        Raises:
            ConnectionError: If there is none, or not all of it.
        """
        async with asyncio.timeout(WITHIN_S):
            reader, writer = await asyncio.open_connection(*self.address)
            try:
                writer.write(request(path, method))
                return response(await reader.read())
            finally:
                writer.close()

    def start(self) -> None:
        """Start it, and return when it answers.

        Raises:
            RuntimeError: If it does not.
        """
        ready, its_ready = multiprocessing.Pipe(duplex=False)
        arguments = (self._listening, its_ready, self.options)
        self._process = PROCESSES.Process(target=serve, args=arguments, daemon=True)
        self._process.start()
        its_ready.close()
        with ready:
            try:
                started = ready.poll(WITHIN_S) and ready.recv() == READY
            except EOFError:
                started = False
        if not started:
            self.kill()
            raise RuntimeError(f"the worker does not start: {self.options.log.read_text()}")

    def kill(self) -> None:
        """End it at once, as ``kill -9`` does, if it runs."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.join(WITHIN_S)

    def terminate(self) -> None:
        """Tell it to end, as a supervisor does, and return at once."""
        os.kill(self.pid, signal.SIGTERM)

    def ended(self) -> int | None:
        """Return its exit code when it has ended, or None if it does not within `WITHIN_S`; negative: a signal."""
        assert self._process is not None
        self._process.join(WITHIN_S)
        return self._process.exitcode

    def pause(self) -> None:
        """Stop its process: connections stay open, nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let its process go on."""
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """End it, and let its port go."""
        self.kill()
        self._listening.close()


def request(path: str, method: str = "GET") -> bytes:
    """Return a request for *path*, without content, that is the last one on its connection."""
    fields = f"host: {HEADERS['host']}\r\nconnection: close\r\n" + "content-length: 0\r\n" * (method != "GET")
    return f"{method} {path} HTTP/1.1\r\n{fields}\r\n".encode()


def response(raw: bytes) -> httpx.Response:
    """Return what an application answered that said how long it is.

    Raises:
        ConnectionError: If it is not that long.
    """
    head, _, body = raw.partition(b"\r\n\r\n")
    status, *lines = head.split(b"\r\n")
    headers = [(name, value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
    if str(len(body)) != httpx.Headers(headers).get("content-length"):
        raise ConnectionError(f"the connection ended within an answer: {raw[:1000]!r}")
    return httpx.Response(int(status.split()[1]), headers=headers, content=body)


class Rig:
    """Workers over one backend, and the database that they share: ``with Rig(directory, url) as rig: …``.

    Args:
        directory: An empty directory.
        redis_url: The server; None for memory.
        workers: How many processes.
        operation_timeout: The seconds that an operation of the backend may take: more than the usual, so that a
            machine that is busy does not look like a server that hangs.
    """

    def __init__(
        self, directory: Path, redis_url: str | None, workers: int = 1, operation_timeout: float = PATIENT_S
    ) -> None:
        file = directory / "database"
        Database.create(file)
        self.database = Database(file)
        self.workers = [
            Worker(Options(redis_url, operation_timeout, file, directory / f"worker-{number}.log"))
            for number in range(workers)
        ]
        self._running = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as running:
            for worker in self.workers:
                running.callback(worker.close)
            for worker in self.workers:
                worker.start()
            self._running = running.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def logs(self) -> str:
        """Return what all workers have logged."""
        return "".join(worker.options.log.read_text() for worker in self.workers)

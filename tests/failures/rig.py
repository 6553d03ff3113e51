"""Runs the application of `tests.failures.worker` in processes of their own, for a test to drive and to break.

The processes are forked from a server of multiprocessing that has imported everything, and so begin in some
milliseconds. Each has a socket that the test keeps listening: a restart keeps its port, and who connects meanwhile
waits rather than being refused.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self

import httpx

from tests.failures.worker import READY, WITHIN_S, Database, serve
from tests.http_server import HOST, listening_socket

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerProcess
    from pathlib import Path

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.failures.worker"])

HEADERS = {"host": "app.test"}
"""The host joins the key: workers that share what is stored have one name."""


class Client(httpx.AsyncClient):
    """Asks one worker: as its clients do, and as the test does."""

    def __init__(self, url: str) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        super().__init__(
            base_url=url, headers=HEADERS, trust_env=False, verify=False, timeout=WITHIN_S, limits=limits
        )

    async def gate(self, *, is_open: bool) -> None:
        """Open or close the gate at which handlers wait."""
        await self._control(f"gate/{is_open}")

    async def until(self, what: str, path: str, count: int) -> None:
        """Return when the worker has *asked*, *runs*, *inside* or *left* of *path* at least *count* times."""
        await self._control(f"until/{what}/{count}", params={"path": path})

    async def written(self) -> None:
        """Return when nothing is on its way to the backend."""
        await self._control("written")

    async def change(self, item: int) -> tuple[int, bool]:
        """Change an item and invalidate it; return its version, and whether the invalidation is durable."""
        changed = await self._control(f"change/{item}")
        return changed["version"], changed["durable"]

    async def state(self) -> dict[str, Any]:
        """Return the counts of the worker, and what it holds."""
        answer = await self.get("/control/state")
        return dict(answer.raise_for_status().json())

    async def _control(self, path: str, **options: Any) -> Any:
        answer = await self.post(f"/control/{path}", **options)
        return answer.raise_for_status().json()


class Worker:
    """One process that runs the application.

    Args:
        number: Tells it from others.
        environ: Its variables.
        directory: Where its log and the database are.
    """

    def __init__(self, number: int, environ: dict[str, str], directory: Path) -> None:
        self.log = directory / f"worker-{number}.log"
        self._environ = environ
        self._database = directory / "database"
        self._listening = listening_socket()
        self._process: ForkServerProcess | None = None

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://{HOST}:{self._listening.getsockname()[1]}"

    @property
    def pid(self) -> int:
        """The number of its process."""
        assert self._process is not None
        assert self._process.pid is not None
        return self._process.pid

    def client(self) -> Client:
        """Return a client of it, to be closed by the test."""
        return Client(self.url)

    def start(self) -> None:
        """Start it, and return when it answers.

        Raises:
            RuntimeError: If it does not.
        """
        ready, its_ready = multiprocessing.Pipe(duplex=False)
        arguments = (self._listening, its_ready, self._environ, self._database, self.log)
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
            raise RuntimeError(f"the worker does not start: {self.log.read_text()}")

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


class Rig:
    """Workers over one backend, and the database that they share: ``with Rig(directory, url) as rig: …``.

    Args:
        directory: An empty directory.
        redis_url: The server; None for memory.
        workers: How many processes.
        **environ: Further variables.
    """

    def __init__(self, directory: Path, redis_url: str | None, workers: int = 1, **environ: str) -> None:
        backend = {"CACHE_BACKEND": "redis", "REDIS_URL": redis_url} if redis_url else {"CACHE_BACKEND": "memory"}
        Database.create(directory / "database")
        self.database = Database(directory / "database")
        self.workers = [Worker(number, {**backend, **environ}, directory) for number in range(workers)]
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
        return "".join(worker.log.read_text() for worker in self.workers)

"""Processes that are killed, told to end, or forked, and requests that end early (F25, F26, F29, F31 to F33)."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fastapi import FastAPI

from app_cache import RedisBackend, cache
from app_cache.writes import PENDING_S
from tests.clients import told
from tests.failures.shop import open_shop
from tests.middleware.apps import client_of, put_cache
from tests.stored import written

if TYPE_CHECKING:
    from tests.failures.conftest import StartRig
    from tests.failures.proxy import FaultProxy
    from tests.failures.rig import Client, Worker
    from tests.servers import Server

pytestmark = [pytest.mark.anyio, pytest.mark.alone]

ROOT = Path(__file__).parents[2]
MANY_CHUNKS = 200
CONNECTIONS = 3


class Ends:
    """Kills a worker when so many chunks have passed a proxy, right before the next one."""

    def __init__(self, worker: Worker, after: int) -> None:
        self.done = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._pid = worker.pid
        self._left = after

    def __call__(self) -> None:
        self._left -= 1
        if self._left == -1:
            os.kill(self._pid, signal.SIGKILL)
            self._loop.call_soon_threadsafe(self.done.set)


async def live(worker: Worker, client: Client, seen: list[int]) -> None:
    """Have *worker* fill, hit, invalidate and fill; note in *seen* the version that is there then.

    Who is asked once it is dead waits for the next one on its port, and so is not told.
    """
    await worker.ask("/items/1")
    await worker.ask("/items/1")
    seen.append((await client.change(1))[0])
    await worker.ask("/items/1")
    await client.written()


async def test_killed_anywhere(proxy: FaultProxy, redis_server: Server, start_rig: StartRig) -> None:
    """Wherever a worker is killed, every key has an expiry, nobody waits for it, and nothing old comes (F26)."""
    worker, survivor = start_rig(proxy.url, 2).workers
    chunks, known, alive = 0, [0], False
    async with survivor.client() as other:
        while not alive:
            ends = Ends(worker, chunks)
            async with worker.client() as client:
                proxy.before_chunk = ends
                ways = [
                    asyncio.ensure_future(live(worker, client, known)),
                    asyncio.ensure_future(ends.done.wait()),
                ]
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                proxy.before_chunk = lambda: None
                for way in ways:
                    way.cancel()
                await asyncio.wait(ways)
            alive = not ends.done.is_set()
            assert lasting(redis_server) == []
            answer = await asyncio.wait_for(survivor.ask("/items/1"), 2)
            assert answer.status_code == 200
            assert answer.json()["version"] >= known[-1]
            known.append((await other.change(1))[0])
            assert (await survivor.ask("/items/1")).json()["version"] == known[-1]
            if chunks % 2:
                redis_server.command("FLUSHALL")
            worker.kill()
            worker.start()
            chunks += 1
    assert 10 < chunks < MANY_CHUNKS


def lasting(server: Server) -> list[bytes]:
    """Return the keys that have no expiry."""
    return [key for key in server.command("KEYS", "*") if server.command("PTTL", key) == -1]


async def test_told_to_end(redis_server: Server, start_rig: StartRig) -> None:
    """A run under way at the end is stored if it ends in time, else cancelled; nothing is left unsaid (F29)."""
    rig = start_rig(redis_server.url, 3)
    ends, hangs, later = rig.workers
    for item, worker in enumerate((ends, hangs)):
        async with worker.client() as client:
            await client.get(f"/items/{item}")
            await client.written()  # what has no stamps yet would be dropped, not marked as stale
            await client.soften(item)
            rig.database.change(item)
            await client.gate(is_open=False)
            assert "hit; ttl=" in (await client.get(f"/items/{item}")).headers["cache-status"]
            await client.until("inside", f"/items/{item}", 1)
            if worker is ends:
                await client.open_at_the_end()
    async with asyncio.timeout(PENDING_S + 5):
        for worker in (ends, hangs):
            worker.terminate()
        assert await asyncio.gather(*(asyncio.to_thread(worker.ended) for worker in (ends, hangs))) == [-15, -15]
    answers = [await later.ask(f"/items/{item}") for item in (0, 1)]
    assert [answer.json()["version"] for answer in answers] == [1, 0]
    assert [told(answer) for answer in answers] == ["hit", "hit"]
    assert [word for word in ("Traceback", "never", "destroyed", "unclosed") if word in rig.logs()] == []


async def test_changed_by_another_during_a_run(redis_server: Server, start_rig: StartRig) -> None:
    """What one process began to fill before another changed it is never served once the change is told (F25)."""
    rig = start_rig(redis_server.url, 2)
    filling, changing = rig.workers
    async with filling.client() as one, changing.client() as other:
        for item in range(6):
            path = f"/items/{item}"
            await one.gate(is_open=False)
            old = asyncio.create_task(filling.ask(path))
            await one.until("inside", path, 1)
            assert await other.change(item) == (1, True)
            if item % 2:
                assert (await changing.ask(path)).json()["version"] == 1
                await other.written()
            await one.gate(is_open=True)
            assert (await old).json()["version"] == 0
            await one.written()
            for worker in (filling, changing, filling):
                assert (await worker.ask(path)).json()["version"] == 1


async def test_ended_in_this_process(redis_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """An application that ends cancels the run that goes on too long, and leaves no task, no connection (F29)."""
    monkeypatch.setattr("app_cache.store.PENDING_S", 0.05)
    begun, cancelled = asyncio.Event(), list[str]()
    async with open_shop(RedisBackend(redis_server.url)) as shop:

        @shop.app.get("/hangs")
        @cache(timeout=60)
        async def hang() -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append("hangs")
                raise

        await shop.get()
        asked = asyncio.create_task(shop.client.get("/hangs"))
        await asyncio.wait_for(begun.wait(), 10)
        asked.cancel()
        await asyncio.wait({asked})
        assert (cancelled, len(redis_server.clients()) > 0) == ([], True)
    assert cancelled == ["hangs"]
    assert redis_server.clients() == []


def app_over(backend: RedisBackend) -> FastAPI:
    """Return an application over *backend* whose answers name their path."""
    app = FastAPI()

    @app.get("/{path}")
    @cache(timeout=60)
    async def answer(path: str) -> str:
        await asyncio.sleep(0)
        return path

    put_cache(app, backend=backend)
    return app


@pytest.mark.parametrize("stored", [False, True], ids=["misses", "hits"])
async def test_cancelled_anywhere(redis_server: Server, *, stored: bool) -> None:
    """Wherever requests are cancelled, others have their own answers, and no connection is lost (F31)."""
    backend = RedisBackend(redis_server.url, max_connections=CONNECTIONS, operation_timeout=10.0)
    app = app_over(backend)
    store = app.state.app_cache.store()
    async with client_of(app) as client:
        steps, over = 0, False
        await asyncio.gather(*(client.get(f"/0-{number}") for number in range(6)))
        while not over:
            paths = [f"/{0 if stored else steps}-{number}" for number in range(6)]
            asked = [asyncio.create_task(client.get(path)) for path in paths]
            for _ in range(steps):
                await asyncio.sleep(0)
            over = asked[0].done()
            for each in asked[::2]:
                each.cancel()
            await asyncio.wait(asked)
            assert [each.result().json() for each in asked[1::2]] == [path[1:] for path in paths[1::2]]
            assert [(await client.get(path)).json() for path in paths] == [path[1:] for path in paths]
            steps += 1
    assert 5 < steps < 2_000
    await written(store)
    (connections,) = backend._clients.values()
    await connections._lender.release_kept()
    assert connections._turns._value == CONNECTIONS
    assert connections._redis.connection_pool._in_use_connections == set()
    await store.close()
    await backend.close()


def test_two_loops(redis_server: Server) -> None:
    """One application over Redis serves loops one after the other and two at once (F32)."""
    backend = RedisBackend(redis_server.url, operation_timeout=10.0)
    app = app_over(backend)
    said: list[list[str]] = []

    async def ask() -> None:
        async with client_of(app) as client:
            answers = await asyncio.gather(*(client.get(f"/{number % 10}") for number in range(50)))
        said.append([answer.json() for answer in answers])
        await app.state.app_cache.store().close()
        await backend.close()

    for _ in range(2):
        asyncio.run(ask())
    threads = [threading.Thread(target=lambda: asyncio.run(ask())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert said == [[str(number % 10) for number in range(50)]] * 4


FORKS = """
import asyncio, os, sys
from app_cache import RedisBackend
from tests.failures.test_workers import app_over
from tests.clients import get, told
from tests.stored import written

backend = RedisBackend(sys.argv[1], operation_timeout=10.0)
app = app_over(backend)
store = app.state.app_cache.store()

async def serve(path):
    said = [told(await get(app, path)) for _ in range(2)]
    await written(store)
    await store.close()
    await backend.close()
    return said

loop = asyncio.new_event_loop()
assert loop.run_until_complete(get(app, "/a")).json() == "a"
loop.run_until_complete(written(store))
children = []
for number in range(2):
    child = os.fork()
    if child == 0:
        assert asyncio.run(serve("/a")) == ["hit", "hit"]
        assert asyncio.run(serve(f"/{number}")) == ["fwd=uri-miss; stored", "hit"]
        os._exit(0)
    children.append(child)
for child in children:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert loop.run_until_complete(serve("/1")) == ["hit", "hit"]
loop.close()
"""


def test_forked_after_its_first_request(redis_server: Server) -> None:
    """An application that is forked after its first request serves in each process, and shares no socket (F33)."""
    redis_server.command("CONFIG RESETSTAT")
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORKS, redis_server.url],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    of_the_parent_and_of_two_loops_in_each_child = 5
    stats = redis_server.command("INFO", "stats")
    assert stats["total_connections_received"] >= of_the_parent_and_of_two_loops_in_each_child

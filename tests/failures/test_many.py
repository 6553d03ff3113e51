"""Hundreds at once over HTTP, in processes of their own, with Redis behind them (F14 to F18, F30, F34)."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from app_cache import exchange, flight
from app_cache.keys import prefix
from tests.clients import told
from tests.failures.rig import request
from tests.failures.worker import MAX_BODY
from tests.middleware.test_single_flight import Gated, Patient
from tests.stored import written
from tests.timing import Stopwatch

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from tests.failures.conftest import StartRig
    from tests.failures.rig import Client, Worker
    from tests.servers import Server

pytestmark = [pytest.mark.anyio, pytest.mark.alone]

MANY = 200
HANDLER_S = 0.2
"""Seconds that the handler is taken to need in what is promised; here it is let go when the watch begins."""
WITHIN_S = 20
DIGEST_LENGTH = 64


async def wave(worker: Worker, client: Client, path: str, count: int = MANY) -> list[asyncio.Task[httpx.Response]]:
    """Return *count* requests for *path*, once they wait in *worker*, whose gate is closed."""
    before = (await client.state())["asked"].get(path, 0)
    asked = [asyncio.create_task(worker.ask(path)) for _ in range(count)]
    await client.until("asked", path, before + count)
    await client.settled()
    return asked


async def answers(asked: list[asyncio.Task[httpx.Response]]) -> list[httpx.Response]:
    """Return all answers to what was asked."""
    return await asyncio.gather(*asked)


async def test_clients_leave(redis_server: Server, start_rig: StartRig) -> None:
    """Of 200 the leader and 99 who wait leave: one run, 100 answers, an entry for everybody else (F14, F15)."""
    worker, another = start_rig(redis_server.url, 2).workers
    async with worker.client() as client:
        await client.gate(is_open=False)
        asked = await wave(worker, client, "/items/1", 1)
        await client.until("inside", "/items/1", 1)
        asked += await wave(worker, client, "/items/1", MANY - 1)
        for each in asked[:100]:
            each.cancel()
        await asyncio.wait(asked[:100])
        await client.gate(is_open=True)
        left = await answers(asked[100:])
        assert {(answer.status_code, answer.json()["run"]) for answer in left} == {(200, 1)}
        await client.written()
        assert told(await another.ask("/items/1")) == "hit"
        assert (await client.state())["runs"] == {"/items/1": 1}


async def test_handler_fails(
    redis_server: Server, start_rig: StartRig, figure: Callable[[str, float], None]
) -> None:
    """While 200 wait a handler raises: one run, 200 answers of 500, one traceback in a short log (F16)."""
    rig = start_rig(redis_server.url)
    (worker,) = rig.workers
    async with worker.client() as client:
        await client.gate(is_open=False)
        asked = await wave(worker, client, "/fails")
        await client.gate(is_open=True)
        watch = Stopwatch(worker.pid)
        failed = await answers(asked)
        took = watch.seconds
        figure("F16: 200 answers after the handler has raised", took)
        assert took < 3 * HANDLER_S
        assert {(answer.status_code, answer.text) for answer in failed} == {(500, "Internal Server Error")}
        assert (await client.state())["runs"] == {"/fails": 1}
    log = rig.logs()
    assert log.count("RuntimeError: the handler fails") == 1
    assert len(log) < 50_000


class Late(Patient):
    """A backend whose answers about entries come late, once that is wanted."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = asyncio.Event()
        self.answers.set()

    async def get(self, key: str) -> str | None:
        value = await super().get(key)
        if len(key) == len(prefix("")) + DIGEST_LENGTH:
            await self.answers.wait()
        return value


async def test_look_up_that_ends_after_a_run() -> None:
    """Who looked up before a run was stored, and learns that only after it has ended, has its answer (F15)."""
    backend = Late()
    app = Gated(backend=backend)
    first = await app.ask(1)
    backend.answers.clear()
    second = await app.ask(1)
    await app.waves(first)
    await written(app.container.store())
    backend.answers.set()
    await app.waves(second)
    assert len(app.runs) == 1


async def test_handler_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has waited long enough for a handler that hangs goes on, a few at a time (F17)."""
    monkeypatch.setattr(exchange, "FILL_TIMEOUT_S", 0.05)
    monkeypatch.setattr(flight, "FILL_TIMEOUT_S", 0.05)
    app = Gated()
    asked = await app.ask(50)
    statuses = Counter[int]()
    async with asyncio.timeout(10):
        for each in asyncio.as_completed(asked):
            statuses[(await each).status_code] += 1
            if statuses.total() == 45:
                break
    assert (statuses, len(app.runs)) == ({504: 45}, 5)
    later = await app.ask(1)
    async with asyncio.timeout(10):
        assert (await later[0]).status_code == 504
    await app.waves([each for each in asked if not each.done()])


async def test_stored_elsewhere_while_the_handler_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who gets no place in time looks up once more before it gives up (F17)."""
    monkeypatch.setattr(flight, "FILL_TIMEOUT_S", 0)
    backend, elsewhere = Late(), Patient()
    backend.values = elsewhere.values
    app, other = Gated(backend=backend), Gated(backend=elsewhere)
    few = await app.ask(1 + flight.FEW)
    monkeypatch.setattr(exchange, "FILL_TIMEOUT_S", 0)
    backend.answers.clear()
    (late,) = await app.ask(1)
    await other.waves(await other.ask(1))
    await written(other.container.store())
    backend.answers.set()
    assert told(await late) == "hit"
    await app.waves(few)


async def test_not_shared(redis_server: Server, start_rig: StartRig, figure: Callable[[str, float], None]) -> None:
    """What is private is each client's own; who comes next does not wait for others at all (F18)."""
    (worker,) = start_rig(redis_server.url).workers
    async with worker.client() as client:
        await client.gate(is_open=False)
        asked = await wave(worker, client, "/private")
        await client.until("inside", "/private", 1)
        await client.gate(is_open=True)
        watch = Stopwatch(worker.pid)
        bodies = {answer.text for answer in await answers(asked)}
        took = watch.seconds
        figure("F18: 200 answers after the first one was private", took)
        assert len(bodies) == MANY
        assert took < 2 * HANDLER_S + 0.2
        await client.gate(is_open=False)
        asked = await wave(worker, client, "/private")
        await client.until("inside", "/private", MANY)
        await client.gate(is_open=True)
        watch = Stopwatch(worker.pid)
        bodies |= {answer.text for answer in await answers(asked)}
        took = watch.seconds
        figure("F18: the next 200, which wait for nobody", took)
        assert len(bodies) == 2 * MANY
        assert took < HANDLER_S + 0.2


async def test_four_workers(redis_server: Server, start_rig: StartRig) -> None:
    """Four workers are asked by 200 at once: at most one run in each, and what is stored serves all (F30)."""
    workers = start_rig(redis_server.url, 4).workers
    clients = [worker.client() for worker in workers]
    for client in clients:
        await client.gate(is_open=False)
    waves = [
        await wave(worker, client, "/items/1", MANY // 4) for worker, client in zip(workers, clients, strict=True)
    ]
    for client in clients:
        await client.gate(is_open=True)
    answered = [answer for asked in waves for answer in await answers(asked)]
    assert [answer.status_code for answer in answered] == [200] * MANY
    assert len({answer.json()["pid"] for answer in answered}) <= 4
    for client in clients:
        await client.written()
    assert [told(await worker.ask("/items/1")) for worker in workers] == ["hit"] * 4
    assert sum([(await client.state())["runs"].get("/items/1", 0) for client in clients]) <= 4
    for client in clients:
        await client.aclose()


async def test_slow_leader(
    redis_server: Server, start_rig: StartRig, figure: Callable[[str, float], None]
) -> None:
    """A leader that reads nothing holds up nobody, costs no more than its body, and gets it in the end (F34)."""
    (worker,) = start_rig(redis_server.url).workers
    size, path = 8_000_000, "/text/8000000"
    async with worker.client() as client:
        await client.gate(is_open=False)
        with await asyncio.to_thread(unread, worker, path) as leader:
            await client.until("inside", path, 1)
            asked = await wave(worker, client, path, 3)
            before = (await client.state())["memory"]
            await client.gate(is_open=True)
            watch = Stopwatch(worker.pid)
            assert {len(answer.content) for answer in await answers(asked)} == {size}
            took = watch.seconds
            figure("F34: three answers of 8 MB though the leader reads nothing", took)
            assert took < 0.2 + HANDLER_S
            await client.written()
            grown = (await client.state())["memory"] - before
            assert told(await worker.ask(path)) == "hit"
            assert grown < MAX_BODY
            assert await asyncio.to_thread(received, leader) > size
        assert (await client.state())["runs"] == {path: 1}


def unread(worker: Worker, path: str) -> socket.socket:
    """Ask *worker* for *path* on a connection that takes little before it is read, and return that."""
    connection = socket.socket()
    connection.settimeout(WITHIN_S)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(worker.address)
    connection.sendall(request(path))
    return connection


def received(connection: socket.socket) -> int:
    """Return how many bytes come until the other side closes *connection*."""
    count = 0
    while part := connection.recv(65_536):
        count += len(part)
    return count

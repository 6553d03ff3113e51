"""What lies in the backend may be damaged, old, gone or dated by a clock that is wrong (F5, F12, F13)."""

from __future__ import annotations

import asyncio
import json
import pickle
import random
from itertools import count
from typing import TYPE_CHECKING

import pytest
from fastapi import FastAPI, Response

from app_cache import CacheBackend, MemoryBackend, RedisBackend, cache
from app_cache.codec import PREFIX, VERSION, decode
from app_cache.testing import FakeClock, assert_hit, assert_miss
from tests.middleware.apps import client_of, put_cache, told
from tests.stored import written
from tests.test_codec import Trap

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import httpx

    from containers import CacheContainer
    from tests.failures.conftest import StartRig
    from tests.servers import Server

pytestmark = [pytest.mark.anyio, pytest.mark.alone]

HOUR_S, DAY_S = 3600, 86_400


def of_older_version(raw: bytes) -> bytes:
    """Return *raw* as an older version would have written it, right in all else."""
    return raw[:2] + bytes([VERSION - 1]) + raw[3:]


def one_bit_off(raw: bytes) -> bytes:
    """Return *raw* with its last bit, which is one of the response, turned over."""
    return raw[:-1] + bytes([raw[-1] ^ 1])


class Damaged:
    """An application over Redis, and what lies there of its one path."""

    def __init__(self, server: Server, backend: CacheBackend) -> None:
        self.server = server
        self.app = FastAPI()
        runs = count(1)

        @self.app.get("/{path}")
        @cache(timeout=60)
        async def answer(path: str) -> str:
            return f"{path} {next(runs)}"

        self.container: CacheContainer = put_cache(self.app, backend=backend)

    async def ask(self, path: str = "a") -> httpx.Response:
        """Return the answer for *path*, once it is stored if it is."""
        answer = await client_of(self.app).get(f"/{path}")
        await written(self.container.store())
        return answer

    def keys(self) -> list[bytes]:
        """Return the keys of entries."""
        return [key for key in self.server.command("KEYS", "cache:*") if b"{" not in key]

    def calls(self, command: str) -> int:
        """Return how often the server was told *command* since it began to count."""
        stats = self.server.command("INFO", "commandstats")
        return int(stats.get(f"cmdstat_{command}", {"calls": 0})["calls"])


@pytest.fixture
async def connect(redis_server: Server) -> AsyncIterator[Callable[[], CacheBackend]]:
    """Make backends that wait for a busy machine, and close them."""
    made: list[CacheBackend] = []

    def make() -> CacheBackend:
        made.append(RedisBackend(redis_server.url, operation_timeout=10.0))
        return made[-1]

    yield make
    for backend in made:
        await backend.close()


@pytest.fixture
def app(redis_server: Server, connect: Callable[[], CacheBackend]) -> Damaged:
    """An application over an empty Redis."""
    return Damaged(redis_server, connect())


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda raw: b"", id="empty"),
        pytest.param(lambda raw: raw[: PREFIX.size], id="prefix alone"),
        pytest.param(lambda raw: raw[:-1], id="truncated"),
        pytest.param(lambda raw: raw + b"\0", id="longer"),
        pytest.param(lambda raw: random.Random(1).randbytes(len(raw)), id="garbage"),
        pytest.param(lambda raw: json.dumps({"status": 200, "body": "b"}).encode(), id="foreign JSON"),
        pytest.param(lambda raw: b"12345", id="digits"),
        pytest.param(lambda raw: pickle.dumps(Trap()), id="pickle"),
        pytest.param(of_older_version, id="old version"),
        pytest.param(one_bit_off, id="one bit off"),
    ],
)
async def test_damaged_entry(app: Damaged, damage: Callable[[bytes], bytes]) -> None:
    """A damaged entry is a miss, never loaded, deleted once and counted; the next answer takes its place (F12)."""
    assert (await app.ask()).json() == "a 1"
    (key,) = app.keys()
    app.server.command("SET", key, damage(app.server.command("GET", key)), "KEEPTTL")
    app.server.command("CONFIG RESETSTAT")
    assert [(answer.json(), told(answer)) for answer in (await app.ask(), await app.ask())] == [
        ("a 2", "fwd=uri-miss; stored"),
        ("a 2", "hit"),
    ]
    assert (app.calls("unlink"), app.container.metrics()["corrupt"], Trap.sprung) == (1, 1, 0)


async def test_entry_of_another_key(app: Damaged) -> None:
    """What was copied from another key is a miss, deleted once and counted (F12, S23)."""
    await app.ask()
    (key,) = app.keys()
    await app.ask("b")
    (other,) = {*app.keys()} - {key}
    app.server.command("COPY", other, key, "REPLACE")
    assert (await app.ask()).json() == "a 3"
    assert (await app.ask()).json() == "a 3"
    assert app.container.metrics()["corrupt"] == 1


async def test_another_kind_of_value(app: Damaged) -> None:
    """A list under the key of an entry is a miss, and the next answer takes its place."""
    await app.ask()
    (key,) = app.keys()
    app.server.command("DEL", key)
    app.server.command("RPUSH", key, "a")
    assert_miss(await app.ask())
    assert_hit(await app.ask())


async def test_mutated_entries(app: Damaged) -> None:
    """However an entry is damaged in the server, the answer is the original or a new one (F12)."""
    chance = random.Random(12)
    current = (await app.ask()).json()
    (key,) = app.keys()
    for _ in range(150):
        raw = bytearray(app.server.command("GET", key))
        for _ in range(chance.randint(1, 4)):
            raw[chance.randrange(len(raw))] = chance.randrange(256)
        start = chance.randrange(len(raw))
        mutated = bytes(raw) if chance.random() < 0.5 else bytes(raw[:start] + raw[start + chance.randint(1, 9) :])
        app.server.command("SET", key, mutated, "KEEPTTL")
        answer = await app.ask()
        is_original = decode(mutated, key.decode()) is not None
        assert (answer.json() == current) is is_original
        assert answer.status_code == 200
        current = answer.json()


@pytest.mark.parametrize("etag", [None, '"v1"'], ids=["no validator", "with a validator"])
@pytest.mark.parametrize("step", [HOUR_S, DAY_S, -HOUR_S, -DAY_S])
async def test_clock_steps(step: int, etag: str | None) -> None:
    """A clock that steps costs one run: no negative age, no immortal entry, no deadline moved in memory (F13)."""
    app, wall, steady = FastAPI(), FakeClock(), FakeClock(0)

    @app.get("/")
    @cache(timeout=60)
    async def answer() -> Response:
        return Response("text", headers={} if etag is None else {"etag": etag})

    put_cache(app, wall, MemoryBackend(clock=steady))
    async with client_of(app) as client:
        assert_miss(await client.get("/"))
        wall.advance(step)
        assert_miss(await client.get("/"))
        again = await client.get("/")
        assert_hit(again)
        assert int(again.headers["age"]) >= 0
        steady.advance(60 + HOUR_S)
        assert_miss(await client.get("/"))


@pytest.mark.parametrize("step", [-1, -HOUR_S, -DAY_S])
@pytest.mark.parametrize("in_handler", [True, False], ids=["while it is made", "while it is kept"])
async def test_age_after_a_step_back(step: int, in_handler: bool) -> None:
    """A hit has an Age of 0 where the clock has gone back while the answer was made, or since (F13)."""
    app, wall = FastAPI(), FakeClock()

    @app.get("/")
    @cache(timeout=60, stale_while_revalidate=60)
    async def answer() -> str:
        if in_handler:
            wall.advance(step)
        return "text"

    container = put_cache(app, wall)
    async with client_of(app) as client:
        assert_miss(await client.get("/"))
        await written(container.store())
        if not in_handler:
            wall.advance(step)
        again = await client.get("/")
    assert_hit(again)
    assert again.headers["age"] == "0"


@pytest.mark.parametrize("apart", [DAY_S, -DAY_S], ids=["ahead", "behind"])
async def test_two_clocks(connect: Callable[[], CacheBackend], apart: int) -> None:
    """Two hosts whose clocks are a day apart see each other's invalidations, and no age below zero (F13)."""
    runs = count(1)

    def host(clock: FakeClock) -> tuple[FastAPI, CacheContainer]:
        app = FastAPI()
        app.get("/")(cache(timeout=60, tags=["x"])(lambda: next(runs)))
        return app, put_cache(app, clock, connect())

    hosts = [host(FakeClock()), host(FakeClock(1_000_000 + apart))]
    for round_ in range(6):
        (app, container), (other, its_container) = hosts[:: -1 if round_ % 2 else 1]
        before = [(await client_of(each).get("/")).json() for each in (app, other, app)]
        assert (await container.invalidation().by_tag("x")).durable
        after = [await client_of(each).get("/") for each in (other, app, other)]
        assert min(each.json() for each in after) > max(before)
        assert min(int(each.headers.get("age", 0)) for each in after) >= 0
        await written(container.store())
        await written(its_container.store())
    for _, container in hosts:
        await container.store().close()


@pytest.mark.parametrize("apart", [0.5, 20, DAY_S])
async def test_host_behind(connect: Callable[[], CacheBackend], apart: float) -> None:
    """A host whose clock is behind takes nothing for fresh that is older than its lifetime, and a second (F13)."""
    runs = count(1)

    def host(clock: FakeClock) -> tuple[FastAPI, CacheContainer]:
        app = FastAPI()
        app.get("/")(cache(timeout=2, stale_if_error=60)(lambda: next(runs)))
        return app, put_cache(app, clock, connect())

    ahead, behind = FakeClock(1_000_000 + apart), FakeClock(1_000_000)
    (app, container), (other, its_container) = host(ahead), host(behind)
    assert (await client_of(app).get("/")).json() == 1
    await written(container.store())
    for clock in (ahead, behind):
        clock.advance(3)
    assert (await client_of(other).get("/")).json() == 2
    assert (await client_of(other).get("/")).json() == 2
    await container.store().close()
    await its_container.store().close()


async def test_server_restarts_empty(redis_server: Server, start_rig: StartRig) -> None:
    """After each restart of the server, which is empty then, nobody serves what was invalidated before (F5)."""
    rig = start_rig(redis_server.url, 2)
    items = range(10)
    clients = [worker.client() for worker in rig.workers]
    for round_ in range(4):
        for client in clients:
            for item in items:
                await client.get(f"/items/{item}")
        await clients[0].gate(is_open=False)
        slow = 500 + round_
        old = asyncio.create_task(clients[0].get(f"/items/{slow}"))
        await clients[0].until("inside", f"/items/{slow}", 1)
        changer = clients[round_ % 2]
        for item in (*items, slow):
            assert await changer.change(item) == (rig.database.version(item), True)
        redis_server.restart()
        await clients[0].gate(is_open=True)
        assert (await old).status_code == 200
        for client in (*clients, *clients):
            answers = {item: await client.get(f"/items/{item}") for item in (*items, slow)}
            assert {answer.status_code for answer in answers.values()} == {200}
            served = {item: answer.json()["version"] for item, answer in answers.items()}
            assert served == {item: rig.database.version(item) for item in answers}
    for client in clients:
        await client.aclose()

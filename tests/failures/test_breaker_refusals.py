"""A server that answers, and refuses: full, a read-only replica, a wrong password, no permission (F8, F9, F10)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from app_cache.backends.redis import RedisBackend
from app_cache.breaker import State
from tests.clients import HIT
from tests.failures.proxy import FaultProxy
from tests.failures.shop import Shop, events_of, open_shop
from tests.servers import HOST, free_port

if TYPE_CHECKING:
    from tests.conftest import StartServer

pytestmark = [pytest.mark.anyio, pytest.mark.alone]

SECURITY = Path(__file__).parents[2] / "docs" / "security.md"


async def filled(shop: Shop) -> None:
    """Return when the first page is in the server."""
    await shop.get()
    await shop.settled()
    assert (await shop.get()).told == HIT


async def test_full(start_server: StartServer, caplog: pytest.LogCaptureFixture) -> None:
    """Of a full server reads are hits, stores fail quietly, and an invalidation has its effect (F8)."""
    server = start_server("--maxmemory-policy", "noeviction")
    async with open_shop(RedisBackend(server.url)) as shop:
        await filled(shop)
        server.command("CONFIG", "SET", "maxmemory", 1)
        for number in range(2, 22):
            assert (await shop.get(number)).status == 200
            await shop.settled()
            assert (await shop.get(1)).told == HIT
        assert shop.breaker.state is State.CLOSED
        assert shop.store.stats["store_failed"] == shop.store.stats["failed_full"] == 20
        assert events_of(caplog) == ["WARNING cache.backend_failed reason=full"]
        invalidated = await shop.invalidate()
        assert (invalidated.status_code, invalidated.json()["durable"]) == (200, True)
        assert (await shop.get()).body == "1: 2"


async def test_read_only(start_server: StartServer, caplog: pytest.LogCaptureFixture) -> None:
    """Of a read-only replica reads are hits; no invalidation is called done, and each has its effect here (F9)."""
    server = start_server()
    async with open_shop(RedisBackend(server.url)) as shop:
        await filled(shop)
        server.command("REPLICAOF", "127.0.0.1", free_port())
        for number in range(2, 12):
            assert (await shop.get(number)).status == 200
            await shop.settled()
            assert (await shop.get(1)).told == HIT
        assert shop.store.stats["failed_read_only"] == 10
        for runs in range(2, 12):
            invalidated = await shop.invalidate()
            assert (invalidated.status_code, invalidated.json()["durable"]) == (202, False)
            assert (await shop.get()).body == f"1: {runs}"
        assert shop.breaker.state is State.CLOSED
        assert events_of(caplog) == ["WARNING cache.backend_failed reason=read_only"]
        server.command("REPLICAOF", "NO", "ONE")
        assert (await shop.get()).body == "1: 12"
        await shop.settled()
        assert (await shop.get()).told == HIT


async def test_failover_behind_one_name(start_server: StartServer) -> None:
    """If the name of a server that is read-only now leads to another, what is owed goes there, and reads hit."""
    old, new = start_server(), start_server()
    with FaultProxy(old.port) as name:
        async with open_shop(RedisBackend(name.url)) as shop:
            await filled(shop)
            name.port_behind = new.port
            old.command("REPLICAOF", HOST, new.port)
            assert not (await shop.invalidate()).json()["durable"]
            assert (await shop.get()).body == "1: 2"
            await shop.settled()
            assert (await shop.get()).told == HIT
            assert (await shop.invalidate()).json()["durable"]


def calls_of(stats: dict[str, Any], name: str) -> int:
    """Return how often a command was called, as the server counts."""
    return int(stats.get(f"cmdstat_{name}", {}).get("calls", 0))


async def test_wrong_password(start_server: StartServer, caplog: pytest.LogCaptureFixture) -> None:
    """A wrong password costs nothing, is said once as an error that does not show it, and seldom tried (F10)."""
    server = start_server(password="s3cret")
    async with open_shop(RedisBackend(f"redis://:wr0ng@127.0.0.1:{server.port}")) as shop:
        before = calls_of(server.command("INFO", "commandstats"), "hello")
        answers = [await shop.get() for _ in range(50)]
        tried = calls_of(server.command("INFO", "commandstats"), "hello") - before
        assert {answer.status for answer in answers} == {200}
        assert shop.breaker.state is State.OPEN
        assert shop.store.stats["failed_denied"] == shop.store.stats["breaker_opened"] == 1
        assert tried <= 2
        assert events_of(caplog) == ["ERROR cache.backend_failed reason=denied"]
        assert "wr0ng" not in caplog.text


@pytest.mark.parametrize(
    ("permissions", "operation"),
    [
        pytest.param(["~*", "+ping"], "look_up", id="reads nothing"),
        pytest.param(["~*", "+@read"], "begin", id="runs no scripts"),
        pytest.param(["~*", "+@read", "+@scripting"], "begin", id="writes nothing"),
        pytest.param(["~cache:*", "+@all"], "look_up", id="not our keys"),
    ],
)
async def test_no_permission(
    start_server: StartServer, caplog: pytest.LogCaptureFixture, permissions: list[str], operation: str
) -> None:
    """A missing permission costs nothing, is said once as an error, and leaves the server alone at once (F10)."""
    server = start_server()
    server.command("ACL", "SETUSER", "reader", "on", ">s3cret", *permissions)
    async with open_shop(RedisBackend(f"redis://reader:s3cret@127.0.0.1:{server.port}")) as shop:
        answers = [await shop.get() for _ in range(50)]
        assert [answer.body for answer in answers] == [f"1: {run}" for run in range(1, 51)]
        assert (shop.breaker.state, shop.store.stats[f"{operation}_failed"]) == (State.OPEN, 1)
        assert events_of(caplog) == ["ERROR cache.backend_failed reason=denied"]
        assert "s3cret" not in caplog.text


@pytest.mark.parametrize(
    ("more", "refused"),
    [pytest.param([], 0, id="all of them"), pytest.param(["-info"], 1, id="all but one that may be missing")],
)
async def test_enough_permission(
    start_server: StartServer, caplog: pytest.LogCaptureFixture, more: list[str], refused: int
) -> None:
    """The permissions that the documentation names are all that a cache needs."""
    permissions = re.search(r"ACL SETUSER shop (.*)", SECURITY.read_text("utf-8"))
    assert permissions is not None
    server = start_server()
    server.command("ACL", "SETUSER", "shop", *permissions[1].split())
    server.command("ACL", "SETUSER", "shop", ">s3cret", *more)
    async with open_shop(RedisBackend(f"redis://shop:s3cret@127.0.0.1:{server.port}")) as shop:
        for number in (1, 2):
            await shop.get(number)
            await shop.settled()
            assert (await shop.get(number)).told == HIT
        invalidations = [await shop.invalidate(), await shop.client.post("/invalidate-cache?pattern=/pages/*")]
        assert [answer.json()["durable"] for answer in invalidations] == [True, True]
        assert [(await shop.get(number)).body for number in (1, 2)] == ["1: 2", "2: 2"]
        assert (await shop.client.get("/health/cache")).status_code == 200
        assert events_of(caplog) == []
        assert len(server.command("ACL", "LOG")) == refused

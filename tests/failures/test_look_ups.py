"""Look-ups that travel together over a network that breaks: each has its own answer, or an error, in time."""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING

import pytest

from app_cache.backends.redis import RedisBackend
from app_cache.errors import BackendError, Fault
from tests.failures.proxy import Delay, Drop, FaultProxy, Garbage, Mode, Pass, Refuse, Reset, Slow, Truncate
from tests.servers import HOST, free_port

if TYPE_CHECKING:
    from tests.conftest import StartServer
    from tests.servers import Server

pytestmark = [pytest.mark.anyio, pytest.mark.alone]

KEYS = 40
BUDGET_S = 0.1
MOST_S = 5.0


async def look_up(backend: RedisBackend, chance: random.Random) -> Fault | None:
    """Look up some keys; return what went wrong, None if nothing did.

    Raises:
        AssertionError: If the answer is that of another, or took too long.
    """
    numbers = [chance.randrange(KEYS) for _ in range(3)]
    begun = time.monotonic()
    try:
        found = await backend.get_many([f"key {number}" for number in numbers])
    except BackendError as error:
        return error.fault
    finally:
        assert time.monotonic() - begun < MOST_S
    assert found == [b"value %d" % number for number in numbers]
    return None


@pytest.mark.parametrize(
    "mode",
    [
        pytest.param(Delay(0.02), id="delay within the budget"),
        pytest.param(Delay(3), id="delay beyond it"),
        pytest.param(Drop(), id="drop"),
        pytest.param(Reset(), id="reset"),
        pytest.param(Garbage(), id="garbage"),
        pytest.param(Truncate(0), id="nothing"),
        pytest.param(Truncate(1), id="one byte"),
        pytest.param(Truncate(150), id="truncate within"),
        pytest.param(Slow(2000), id="slow"),
        pytest.param(Refuse(), id="refuse"),
    ],
)
async def test_broken_wire(redis_server: Server, proxy: FaultProxy, mode: Mode) -> None:
    """Whatever happens between, no look-up has the answer of another, nor waits long, and all is well after it."""
    before, chance = asyncio.all_tasks(), random.Random(1)
    backend = RedisBackend(proxy.url, operation_timeout=BUDGET_S, max_connections=4)
    redis_server.command("MSET", *(part for n in range(KEYS) for part in (f"key {n}", f"value {n}")))
    faults: set[Fault | None] = set()

    async def ask(count: int) -> None:
        for _ in range(count):
            faults.add(await look_up(backend, chance))
            if chance.random() < 0.2:
                asyncio.create_task(look_up(backend, chance)).cancel()

    await asyncio.gather(*(ask(5) for _ in range(20)))
    asking = [asyncio.create_task(ask(5)) for _ in range(20)]
    await asyncio.to_thread(setattr, proxy, "mode", mode)
    await asyncio.gather(*asking, *(ask(5) for _ in range(20)))
    proxy.mode = Pass()
    async with asyncio.timeout(MOST_S):
        while await look_up(backend, chance) is not None:  # noqa: ASYNC110 - no network tells that it is well
            await asyncio.sleep(0)
    assert await asyncio.gather(*(look_up(backend, chance) for _ in range(50))) == [None] * 50
    assert faults <= {None, Fault.AWAY, Fault.STALLED}
    await backend.close()
    assert {task for task in asyncio.all_tasks() - before if not task.cancelling()} == set()


async def test_failover_behind_one_name(start_server: StartServer) -> None:
    """After a write was refused as read-only, look-ups go where the name leads now, even if they never cease."""
    old, new = start_server(), start_server()
    for server, value in ((old, "old"), (new, "new")):
        server.command("SET", "key", value)
    with FaultProxy(old.port) as name:
        backend = RedisBackend(name.url)

        async def until(value: bytes) -> None:
            while await backend.get_many(["key"]) != [value]:
                pass

        await asyncio.gather(*(backend.set(f"key {number}", "value", 60) for number in range(5)))
        name.port_behind = new.port
        old.command("REPLICAOF", HOST, free_port())
        asking = [asyncio.create_task(until(b"new")) for _ in range(20)]
        with pytest.raises(BackendError, match="read only"):
            await backend.set("other", "value", 60)
        async with asyncio.timeout(MOST_S):
            await asyncio.gather(*asking)
        await backend.close()

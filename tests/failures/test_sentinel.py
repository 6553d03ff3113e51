"""A set of servers under Sentinel: the cache follows the primary wherever it goes (F6)."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self

import pytest
import redis

from app_cache.backends.redis import RedisBackend
from app_cache.errors import BackendError, Fault
from tests.clients import HIT
from tests.failures.shop import SOON_S, Answer, Shop, open_shop
from tests.servers import HOST, Server
from tests.timing import Stopwatch

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from tests.conftest import StartServer

pytestmark = [pytest.mark.anyio, pytest.mark.alone]

SENTINELS = 3
DOWN_AFTER_MS = 500
"""Milliseconds without an answer after which a Sentinel takes a server to be down; its own default is 30 s."""
STORES_WITHIN_S = 3.0
EVERY_S = 0.02
START_S = 20.0


class Service:
    """A primary, a replica of it, and three Sentinels: ``with Service(binary, directory) as service: …``."""

    def __init__(self, binary: Path, directory: Path) -> None:
        self.primary, self.replica = (Server(binary, "--repl-diskless-sync-delay", "0") for _ in range(2))
        self._configs = [directory / f"sentinel-{number}.conf" for number in range(SENTINELS)]
        self.sentinels = [
            Server(binary, "--protected-mode", "no", sentinel_config=config) for config in self._configs
        ]
        self._running = ExitStack()

    def __enter__(self) -> Self:
        for server in (self.primary, self.replica):
            self._running.enter_context(server)
        self.replica.command("REPLICAOF", HOST, self.primary.port)
        for config, sentinel in zip(self._configs, self.sentinels, strict=True):
            config.write_text(
                f"sentinel monitor shop {HOST} {self.primary.port} {SENTINELS // 2 + 1}\n"
                f"sentinel down-after-milliseconds shop {DOWN_AFTER_MS}\n"
                "sentinel failover-timeout shop 3000\n"
            )
            self._running.enter_context(sentinel)
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    @property
    def url(self) -> str:
        """The URL of the service."""
        return f"redis+sentinel://{','.join(f'{HOST}:{each.port}' for each in self.sentinels)}/shop"

    @property
    def port_of_primary(self) -> int:
        """The port of the primary, as a Sentinel has it."""
        _, port = self.sentinels[0].command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "shop")
        return int(port)

    async def complete(self) -> None:
        """Return when the replica is in step, and each Sentinel knows the replica and the others."""
        async with asyncio.timeout(START_S):
            while not self._is_complete():  # noqa: ASYNC110 - other processes find each other
                await asyncio.sleep(0.05)

    def _is_complete(self) -> bool:
        in_step = self.replica.command("INFO", "replication")["master_link_status"] == "up"
        others = [len(each.command("SENTINEL", "SENTINELS", "shop")) for each in self.sentinels]
        replicas = [len(each.command("SENTINEL", "REPLICAS", "shop")) for each in self.sentinels]
        return in_step and others == [SENTINELS - 1] * SENTINELS and replicas == [1] * SENTINELS

    async def fail_over(self) -> None:
        """Tell a Sentinel to make the replica the primary, and the primary its replica, as it does 10 s later."""
        async with asyncio.timeout(START_S):
            while not self._is_told():  # noqa: ASYNC110 - it may not yet have seen that the replica is good
                await asyncio.sleep(0.1)
            while self.port_of_primary != self.replica.port:  # noqa: ASYNC110 - the Sentinels do it
                await asyncio.sleep(EVERY_S)
        self.primary.command("REPLICAOF", HOST, self.replica.port)
        self.primary.command("CLIENT", "KILL", "TYPE", "normal")

    def _is_told(self) -> bool:
        try:
            self.sentinels[0].command("SENTINEL", "FAILOVER", "shop")
        except redis.ResponseError as error:
            if "NOGOODSLAVE" not in str(error):
                raise
            return False
        return True

    async def crash(self) -> None:
        """Kill the primary."""
        self.primary.kill()


@pytest.fixture
def service(server_binary: Path, tmp_path: Path) -> Iterator[Service]:
    """A running service."""
    with Service(server_binary, tmp_path) as service:
        yield service


async def asked_without_end(shop: Shop, answers: list[Answer]) -> None:
    """Ask for one new page after the other, and for the first one, until this is cancelled."""
    number = 100
    while True:
        answers += [await shop.get(number), await shop.get(1)]
        number += 1
        await asyncio.sleep(EVERY_S)


async def seconds_to_a_store(shop: Shop, service: Service) -> float:
    """Return how long it takes, from when the replica is the primary, until it holds a page filled anew."""
    watch: Stopwatch | None = None
    number = 10_000
    async with asyncio.timeout(SOON_S):
        while True:
            if watch is None and service.replica.command("ROLE")[0] == b"master":
                watch = Stopwatch()
            await shop.get(number)
            await shop.settled()
            if watch is not None and (await shop.get(number)).told == HIT:
                return watch.seconds
            number += 1
            await asyncio.sleep(EVERY_S)


@pytest.mark.parametrize("end", [Service.fail_over, Service.crash], ids=["failover", "crash"])
async def test_failover(
    service: Service, end: Callable[[Service], Awaitable[None]], figure: Callable[[str, float], None]
) -> None:
    """When the primary changes no request fails or waits, stores resume, nothing invalidated comes back (F6)."""
    await service.complete()
    async with open_shop(RedisBackend(service.url)) as shop:
        await shop.get(1)
        await shop.get(2)
        await shop.settled()
        assert [(await shop.get(number)).told for number in (1, 2)] == [HIT, HIT]
        assert (await shop.invalidate(2)).json()["durable"]
        answers: list[Answer] = []
        asking = asyncio.create_task(asked_without_end(shop, answers))
        await end(service)
        resumed = await seconds_to_a_store(shop, service)
        asking.cancel()
        await asyncio.wait({asking})
        figure("F6: stores again after", resumed)
        figure("F6: the slowest request meanwhile", max(answer.took for answer in answers))
        assert {answer.status for answer in answers} == {200}
        assert max(answer.took for answer in answers) < 1.0
        assert resumed < STORES_WITHIN_S
        assert service.port_of_primary == service.replica.port
        assert (await shop.get(2)).body == "2: 2"
        await shop.settled()
        assert [(await shop.get(number)).told for number in (1, 2)] == [HIT, HIT]
        assert (await shop.invalidate(1)).json()["durable"]
        assert (await shop.get(1)).told != HIT


async def test_a_silent_sentinel(service: Service) -> None:
    """A Sentinel that does not answer, the first of them, keeps a process that begins from nothing (F6)."""
    await service.complete()
    service.sentinels[0].pause()
    async with open_shop(RedisBackend(service.url)) as shop, asyncio.timeout(SOON_S):
        while (await shop.get(1)).told != HIT:
            await shop.settled()
            await asyncio.sleep(EVERY_S)


@pytest.mark.parametrize("given", [None, "wr0ng", "w4rden"])
async def test_sentinels_that_want_a_password(
    start_server: StartServer, tmp_path: Path, given: str | None
) -> None:
    """Sentinels have a password of their own; without it one error says so, and shows none (F10)."""
    config = tmp_path / "sentinel.conf"
    config.write_text(f"sentinel monitor shop {HOST} {start_server().port} 1\n")
    sentinel = start_server("--protected-mode", "no", sentinel_config=config, password="w4rden")
    options: dict[str, Any] = {} if given is None else {"sentinel_password": given}
    backend = RedisBackend(f"redis+sentinel://{HOST}:{sentinel.port}/shop", **options)
    if given == "w4rden":
        await backend.set("key", "value", 60)
        assert await backend.get("key") == "value"
    else:
        with pytest.raises(
            BackendError, match=r"/shop/0: the Sentinels want another sentinel_password"
        ) as refused:
            await backend.get("key")
        assert refused.value.fault is Fault.DENIED
        assert "wr0ng" not in str(refused.value)
    await backend.close()


async def test_sentinels_that_know_no_primary(start_server: StartServer, tmp_path: Path) -> None:
    """A service that no Sentinel knows is said in a few words."""
    config = tmp_path / "sentinel.conf"
    config.write_text(f"sentinel monitor shop {HOST} {start_server().port} 1\n")
    sentinel = start_server("--protected-mode", "no", sentinel_config=config)
    backend = RedisBackend(f"redis+sentinel://{HOST}:{sentinel.port}/another")
    with pytest.raises(BackendError, match=r"/another/0: No master found for 'another'"):
        await backend.get("key")
    await backend.close()

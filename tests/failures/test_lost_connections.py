"""A connection that is lost before anything is written to it: a call makes a new one, on each event loop."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

from app_cache.backends.redis import RedisBackend
from app_cache.backends.redis.faults import LOST
from app_cache.errors import BackendError, Fault
from tests.failures.proxy import FaultProxy, Pass, Reset

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from tests.conftest import StartServer
    from tests.servers import Certificates

    Connected = Callable[[FaultProxy], AbstractAsyncContextManager[RedisBackend]]
    Reach = Callable[[StartServer, Certificates, Path], RedisBackend]

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.alone,
    pytest.mark.parametrize(
        "anyio_backend",
        [
            pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
            pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
        ],
    ),
]

SOON_S = 5.0
CALLS: dict[str, Callable[[RedisBackend], Awaitable[object]]] = {
    "ping": lambda backend: backend.ping(),
    "set": lambda backend: backend.set("key", "value", 60),
    "set_and_run": lambda backend: backend.set_and_run("key", b"value", 60, "return 1", [], []),
    "get_many": lambda backend: backend.get_many(["key"]),
}
each_call = pytest.mark.parametrize("call", [pytest.param(call, id=name) for name, call in CALLS.items()])


def over_tcp(start_server: StartServer, certificates: Certificates, directory: Path) -> RedisBackend:
    """Return a backend in a server of its own."""
    return RedisBackend(start_server().url)


def over_tls(start_server: StartServer, certificates: Certificates, directory: Path) -> RedisBackend:
    """Return a backend that speaks TLS."""
    server = start_server(certificates=certificates)
    return RedisBackend(server.tls_url, ssl_ca_certs=certificates.path("ca.pem"))


def over_unix(start_server: StartServer, certificates: Certificates, directory: Path) -> RedisBackend:
    """Return a backend that is reached without a network."""
    return RedisBackend(f"unix://{start_server().unix_socket}")


def under_sentinel(start_server: StartServer, certificates: Certificates, directory: Path) -> RedisBackend:
    """Return a backend that asks a Sentinel for its server."""
    config = directory / "sentinel.conf"
    config.write_text(f"sentinel monitor shop 127.0.0.1 {start_server().port} 1\n")
    sentinel = start_server("--protected-mode", "no", sentinel_config=config)
    return RedisBackend(f"redis+sentinel://127.0.0.1:{sentinel.port}/shop")


def connections_of(backend: RedisBackend) -> list[Any]:
    """Return the connections of *backend* that nobody uses now."""
    (client,) = backend._clients.values()
    pool = client._redis.connection_pool
    return [*pool._available_connections, *pool._in_use_connections]


each_reach = pytest.mark.parametrize(
    "reach",
    [
        pytest.param(over_tcp, id="tcp"),
        pytest.param(over_tls, id="tls"),
        pytest.param(over_unix, id="unix"),
        pytest.param(under_sentinel, id="sentinel"),
    ],
)


@each_reach
async def test_nothing_is_written_to_what_is_lost(
    start_server: StartServer, certificates: Certificates, tmp_path: Path, reach: Reach
) -> None:
    """A write to a connection that is about to be closed fails as one that is lost, on each event loop."""
    backend = reach(start_server, certificates, tmp_path)
    await backend.ping()
    (connection,) = connections_of(backend)
    connection._writer.transport.abort()
    with pytest.raises(RedisConnectionError, match=LOST):
        await connection.send_packed_command(b"PING\r\n", check_health=False)
    await backend.close()


@each_call
@each_reach
async def test_lost_a_moment_ago(
    start_server: StartServer,
    certificates: Certificates,
    tmp_path: Path,
    reach: Reach,
    call: Callable[[RedisBackend], Awaitable[object]],
) -> None:
    """A call on a connection that the event loop is about to close is made on a new one."""
    backend = reach(start_server, certificates, tmp_path)
    await call(backend)
    (connection,) = connections_of(backend)
    connection._writer.transport.abort()
    await call(backend)
    await backend.close()


async def test_none_is_kept_under_sentinel(
    start_server: StartServer, certificates: Certificates, tmp_path: Path
) -> None:
    """The reader keeps no connection that a Sentinel may have moved away from: each is one that it names now."""
    backend = under_sentinel(start_server, certificates, tmp_path)
    await backend.get_many(["key"])
    (client,) = backend._clients.values()
    await client.reader.settle()
    assert client._redis.connection_pool._in_use_connections == set()
    await backend.close()


@asynccontextmanager
async def by_url(proxy: FaultProxy) -> AsyncIterator[RedisBackend]:
    """Have a backend with connections of its own."""
    backend = RedisBackend(proxy.url)
    yield backend
    await backend.close()


@asynccontextmanager
async def by_pool(proxy: FaultProxy) -> AsyncIterator[RedisBackend]:
    """Have a backend with the connections of a pool that was given."""
    pool = ConnectionPool.from_url(proxy.url, retry=Retry(NoBackoff(), 1))
    yield RedisBackend(connection_pool=pool)
    await pool.aclose()


by_each = pytest.mark.parametrize("connected", [pytest.param(by_url, id="url"), pytest.param(by_pool, id="pool")])


async def lost_by_reset(backend: RedisBackend, proxy: FaultProxy) -> None:
    """Return when the connection of *backend* was reset, and its event loop has noticed."""
    (connection,) = connections_of(backend)
    await asyncio.to_thread(setattr, proxy, "mode", Reset())
    async with asyncio.timeout(SOON_S):
        while connection._reader.exception() is None:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0)


@each_call
@by_each
async def test_reset(
    proxy: FaultProxy, connected: Connected, call: Callable[[RedisBackend], Awaitable[object]]
) -> None:
    """A call on a connection that the network has reset meanwhile is made on a new one."""
    async with connected(proxy) as backend:
        await call(backend)
        await lost_by_reset(backend, proxy)
        proxy.mode = Pass()
        await call(backend)


@each_call
@by_each
async def test_reset_again(
    proxy: FaultProxy, connected: Connected, call: Callable[[RedisBackend], Awaitable[object]]
) -> None:
    """If the new connection is reset too, that is a BackendError that says that the server is away."""
    async with connected(proxy) as backend:
        await call(backend)
        await lost_by_reset(backend, proxy)
        with pytest.raises(BackendError) as failure:
            await call(backend)
    assert failure.value.fault is Fault.AWAY

"""Each option of `RedisBackend`: seen at a real server where it can be, and refused where it cannot work."""

from __future__ import annotations

import asyncio
import inspect
import socket
import ssl
import subprocess
import sys
from typing import TYPE_CHECKING, Any, cast

import pytest
from redis import ConnectionPool as BlockingIoPool
from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool

from app_cache.backends.redis import RedisBackend
from app_cache.backends.redis.options import RedisOptions, keepalive_options
from app_cache.errors import BackendError, ConfigurationError, Fault

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from pathlib import Path

    from tests.backends.conftest import Connect
    from tests.conftest import StartServer
    from tests.servers import Certificates, Server

    Use = Callable[[RedisBackend, int], Coroutine[Any, Any, None]]

pytestmark = pytest.mark.anyio

MAIN_SAMPLE: dict[str, Any] = {
    "url": "redis://localhost:6379",
    "max_connections": 10,
    "retry_on_timeout": True,
    "socket_keepalive": True,
    "socket_keepalive_options": {1: 1, 2: 3, 3: 5},
    "health_check_interval": 30,
    "password": None,
    "db": 0,
    "encoding": "utf-8",
    "decode_responses": True,
    "socket_timeout": 5.0,
    "socket_connect_timeout": 5.0,
    "connection_pool": None,
    "ssl": False,
    "ssl_keyfile": None,
    "ssl_certfile": None,
    "ssl_cert_reqs": "required",
    "ssl_ca_certs": None,
    "ssl_check_hostname": False,
    "max_connections_per_pool": 50,
}
PRODUCTION_SAMPLE: dict[str, Any] = {
    "url": "redis://prod-redis-01:6379",
    "max_connections": 50,
    "retry_on_timeout": True,
    "socket_keepalive": True,
    "health_check_interval": 30,
    "socket_timeout": 10.0,
    "socket_connect_timeout": 10.0,
    "ssl": True,
    "ssl_cert_reqs": "required",
    "ssl_ca_certs": "/etc/ssl/certs/redis-ca.pem",
}
HIGH_TRAFFIC_SAMPLE: dict[str, Any] = {
    "url": "redis://localhost:6379",
    "max_connections": 100,
    "socket_keepalive": True,
    "socket_keepalive_options": {1: 600, 2: 60, 3: 3},
    "health_check_interval": 60,
    "socket_timeout": 30.0,
}
FROM_ENVIRONMENT_SAMPLE: dict[str, Any] = {
    "url": "redis://prod-redis-01:6379",
    "max_connections": 50,
    "retry_on_timeout": True,
    "socket_keepalive": True,
    "health_check_interval": 30,
    "socket_timeout": 10.0,
    "ssl": False,
    "ssl_cert_reqs": "required",
    "ssl_ca_certs": None,
}


class Said:
    """A logger that keeps what was said."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, object]]] = []

    def warning(self, event: str, **fields: object) -> None:
        self.events.append((event, fields))


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Said:
    """What the backend logs."""
    kept = Said()
    monkeypatch.setattr("app_cache.backends.redis.servers.logger", kept)
    return kept


@pytest.fixture
async def deaf_server() -> AsyncIterator[tuple[str, list[object]]]:
    """The URL of a server that takes connections and answers nothing, and the connections it took."""
    taken: list[object] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        taken.append(writer.get_extra_info("peername"))
        await reader.read()
        writer.close()

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}", taken
    server.close()


def socket_of(backend: RedisBackend) -> socket.socket:
    """Return the socket of the connection that *backend* used last."""
    client = next(iter(backend._clients.values()))._redis
    connection = client.connection_pool._available_connections[-1]
    used: socket.socket = connection._writer.get_extra_info("socket")
    return used


async def many_gets(backend: RedisBackend, count: int) -> None:
    """Make *count* calls at the same time."""
    await asyncio.gather(*(backend.get(f"key {number}") for number in range(count)))


async def many_look_ups(backend: RedisBackend, count: int) -> None:
    """Make *count* look-ups at the same time."""
    await asyncio.gather(*(backend.get_many([f"key {number}"]) for number in range(count)))


# What the document prints


@pytest.mark.parametrize(
    "sample",
    [
        pytest.param(MAIN_SAMPLE, id="main"),
        pytest.param(PRODUCTION_SAMPLE, id="production"),
        pytest.param(HIGH_TRAFFIC_SAMPLE, id="high traffic"),
        pytest.param(FROM_ENVIRONMENT_SAMPLE, id="production, from the environment"),
    ],
)
def test_document_constructs(sample: dict[str, Any], said: Said) -> None:
    """Each sample of the document constructs as printed, without a running loop, a server or its files."""
    RedisBackend(**sample)


async def test_main_sample_works(redis_server: Server, connect: Connect, said: Said) -> None:
    """The main sample of the document keeps values, with its keepalive options as the trio that it means."""
    backend = connect(**{**MAIN_SAMPLE, "url": redis_server.url})
    await backend.set("key", "value", 60)
    assert await backend.get("key") == "value"
    assert keepalive_of(socket_of(backend)) == (1, 1, 3, 5)


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost:6379",
        "redis://localhost:6380",
        "redis://:password@localhost:6379",
        "redis://username:password@localhost:6379",
        "redis://localhost:6379/1",
        "rediss://localhost:6380",
        "redis+sentinel://sentinel-host:26379/mymaster",
    ],
)
def test_document_urls_construct(url: str) -> None:
    """Each URL of the document constructs."""
    assert "password" not in repr(RedisBackend(url))


# The pool


@pytest.mark.parametrize(
    ("options", "size"),
    [
        pytest.param({}, 10, id="not given"),
        pytest.param({"max_connections": 3}, 3, id="max_connections"),
        pytest.param({"max_connections_per_pool": 4}, 4, id="its older name"),
        pytest.param({"max_connections": 2, "max_connections_per_pool": 5}, 2, id="both"),
    ],
)
async def test_max_connections(
    redis_server: Server, connect: Connect, said: Said, options: dict[str, Any], size: int
) -> None:
    """However many calls there are at once, there are as many connections as asked for and no error."""
    await many_gets(connect(redis_server.url, **options, socket_timeout=5), 200)
    assert len(redis_server.clients()) == size


def test_ignored_is_said(said: Said) -> None:
    """The older name beside max_connections is ignored, which is said once in the log."""
    RedisBackend(max_connections=10, max_connections_per_pool=50)
    ((event, fields),) = said.events
    assert (event, fields["option"]) == ("backend.option_ignored", "max_connections_per_pool")


def test_older_name_alone_is_not_warned_of(said: Said) -> None:
    """The older name alone is the size of the pool, without a warning."""
    RedisBackend(max_connections_per_pool=50)
    assert said.events == []


@pytest.mark.parametrize("pool_class", [ConnectionPool, BlockingConnectionPool])
async def test_connection_pool(redis_server: Server, connect: Connect, pool_class: type[ConnectionPool]) -> None:
    """A given pool is used as it is, however many calls there are at once, and stays open after `close`."""
    pool = pool_class.from_url(redis_server.url, max_connections=2, client_name="theirs", decode_responses=True)
    backend = connect(connection_pool=pool)
    await many_gets(backend, 100)
    await backend.set("key", "Grüße", 60)
    assert (await backend.get("key"), await backend.get_bytes("key")) == ("Grüße", "Grüße".encode())
    assert await backend.delete_pattern("k*") == 1
    await backend.close()
    assert [client["name"] for client in redis_server.clients()] == ["theirs", "theirs"]
    assert await Redis(connection_pool=pool).ping()
    await pool.aclose()


each_use = pytest.mark.parametrize(
    "use", [pytest.param(many_gets, id="calls"), pytest.param(many_look_ups, id="look-ups")]
)


LOOP_AFTER_LOOP = """
import asyncio, sys
import redis.asyncio
from app_cache.backends.redis import RedisBackend

_, url, pool_class, call, argument = sys.argv
pool = getattr(redis.asyncio, pool_class).from_url(url, max_connections=3)
backend = RedisBackend(connection_pool=pool)

async def use():
    await asyncio.gather(*(getattr(backend, call)(argument) for _ in range(10)))

for _ in range(3):
    asyncio.run(use())
"""


@pytest.mark.parametrize("pool_class", [ConnectionPool, BlockingConnectionPool])
@pytest.mark.parametrize("call", ["get", "get_many"])
def test_connection_pool_after_its_loop(redis_server: Server, pool_class: type[ConnectionPool], call: str) -> None:
    """A given pool that still has the connections of a loop that has ended serves the next one."""
    ran = subprocess.run(
        [sys.executable, "-c", LOOP_AFTER_LOOP, redis_server.url, pool_class.__name__, call, "key"],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert (ran.returncode, ran.stderr) == (0, "")


@each_use
def test_connection_pool_of_two_loops(redis_server: Server, use: Use) -> None:
    """A given pool that has a connection of another loop, which goes on, is an error that says so."""
    pool = ConnectionPool.from_url(redis_server.url)
    backend = RedisBackend(connection_pool=pool)
    other = asyncio.new_event_loop()
    other.run_until_complete(use(backend, 1))
    with pytest.raises(BackendError, match="of another event loop: give each loop") as failure:
        asyncio.run(use(backend, 1))
    assert failure.value.fault is Fault.AWAY
    other.run_until_complete(pool.aclose())
    other.close()


SENTINELS = cast("Any", Sentinel)([("s1", 26379), ("s2", 26380)], sentinel_kwargs={"password": "s3cret"})
POOLS = [
    pytest.param(
        ConnectionPool.from_url("redis://alice:s3cret@cache.local:7000/2"),
        "redis://***@cache.local:7000/2",
        id="server",
    ),
    pytest.param(
        SENTINELS.master_for("primary", password="s3cret", db=2).connection_pool,
        "redis+sentinel://***@s1:26379,s2:26380/primary/2",
        id="Sentinel",
    ),
    pytest.param(
        SENTINELS.master_for("primary", ssl=True).connection_pool,
        "rediss+sentinel://s1:26379,s2:26380/primary/0",
        id="Sentinel, TLS",
    ),
]


@pytest.mark.parametrize(("pool", "shown"), POOLS)
def test_connection_pool_is_shown_without_secrets(pool: ConnectionPool, shown: str) -> None:
    """The address of a given pool is shown, its user and password are not."""
    assert repr(RedisBackend(connection_pool=pool)) == f"RedisBackend('{shown}')"


# The connection


def keepalive_of(used: socket.socket) -> tuple[int, int, int, int]:
    """Return whether keepalive is on, and its idle seconds, interval seconds and count."""
    return (
        used.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        used.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
        used.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
        used.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
    )


@pytest.mark.skipif(not hasattr(socket, "TCP_KEEPIDLE"), reason="this platform has other names for it")
@pytest.mark.parametrize(
    ("options", "seen"),
    [
        pytest.param({}, (1, 30, 5, 3), id="not given"),
        pytest.param(
            {"socket_keepalive_options": {"idle": 7, "interval": 8, "count": 9}}, (1, 7, 8, 9), id="names"
        ),
        pytest.param(
            {
                "socket_keepalive_options": {
                    getattr(socket, "TCP_KEEPIDLE", 0): 7,
                    getattr(socket, "TCP_KEEPCNT", 0): 9,
                }
            },
            (1, 7, None, 9),
            id="constants",
        ),
        pytest.param({"socket_keepalive_options": {1: 7, 2: 8, 3: 9}}, (1, 7, 8, 9), id="the document's numbers"),
        pytest.param({"socket_keepalive_options": None}, (1, None, None, None), id="the kernel's"),
        pytest.param(
            {"socket_keepalive": True, "socket_keepalive_options": {}}, (1, None, None, None), id="empty"
        ),
        pytest.param({"socket_keepalive": False}, (0, None, None, None), id="off"),
    ],
)
async def test_keepalive(
    redis_server: Server, connect: Connect, options: dict[str, Any], seen: tuple[int | None, ...]
) -> None:
    """The socket has the keepalive that the options ask for; None stands for what the kernel has."""
    with socket.socket() as untouched:
        kernels = keepalive_of(untouched)
    backend = connect(redis_server.url, **options)
    await backend.ping()
    expected = tuple(own if asked is None else asked for asked, own in zip(seen, kernels, strict=True))
    assert keepalive_of(socket_of(backend)) == expected


async def test_unix_socket(redis_server: Server, connect: Connect) -> None:
    """A Unix socket serves like a network, with a database."""
    backend = connect(f"unix://{redis_server.unix_socket}?db=3")
    await backend.set("key", "value", 60)
    assert await backend.get("key") == "value"
    assert [client["db"] for client in redis_server.clients()] == ["3"]


@pytest.mark.parametrize(("interval", "asked"), [(0, False), (1e-9, True), (30, False)])
async def test_health_check_interval(redis_server: Server, connect: Connect, interval: float, asked: bool) -> None:
    """A connection that was idle for the interval is asked for a PING before it is used; 0 is never."""
    redis_server.command("CONFIG RESETSTAT")
    backend = connect(redis_server.url, health_check_interval=interval)
    await backend.get("key")
    await backend.get("key")
    assert ("cmdstat_ping" in redis_server.command("INFO", "commandstats")) is asked


@pytest.mark.parametrize(
    ("options", "attempts"),
    [
        pytest.param({}, 2, id="not given"),
        pytest.param({"retry_on_timeout": True}, 2, id="on"),
        pytest.param({"retry_on_timeout": False}, 1, id="off"),
    ],
)
async def test_retry_on_timeout(
    deaf_server: tuple[str, list[object]], connect: Connect, options: dict[str, Any], attempts: int
) -> None:
    """A call that is not answered in time is made once more, unless that is switched off."""
    url, taken = deaf_server
    with pytest.raises(BackendError):
        await connect(url, socket_timeout=0.1, **options).get("key")
    assert len(taken) == attempts


@pytest.mark.parametrize("retry_on_timeout", [True, False])
async def test_retry_on_a_broken_connection(
    redis_server: Server, connect: Connect, retry_on_timeout: bool
) -> None:
    """A connection that the server closed is made anew, unseen by the caller."""
    backend = connect(redis_server.url, retry_on_timeout=retry_on_timeout)
    await backend.set("key", "value", 60)
    redis_server.command("CLIENT KILL TYPE normal")
    assert await backend.get("key") == "value"


@pytest.mark.parametrize("options", [{}, {"socket_timeout": 0.1}], ids=["not given", "given"])
async def test_socket_timeout(
    deaf_server: tuple[str, list[object]], connect: Connect, options: dict[str, Any]
) -> None:
    """A server that does not answer costs a direct call a bounded time, also if no bound was given."""
    async with asyncio.timeout(5):
        with pytest.raises(BackendError, match="get failed at redis://127"):
            await connect(deaf_server[0], **options).get("key")


async def test_socket_connect_timeout(connect: Connect) -> None:
    """A host that does not take connections costs a direct call a bounded time."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]
        for other in waiting:
            other.setblocking(False)
            other.connect_ex(("127.0.0.1", port))
        async with asyncio.timeout(5):
            with pytest.raises(BackendError):
                await connect(f"redis://127.0.0.1:{port}", socket_connect_timeout=0.1).ping()
        for other in waiting:
            other.close()


@pytest.mark.parametrize(
    ("path", "options", "db"),
    [
        pytest.param("", {}, "0", id="not given"),
        pytest.param("", {"db": 2}, "2", id="option"),
        pytest.param("/2", {}, "2", id="URL"),
        pytest.param("/2", {"db": 2}, "2", id="both, the same"),
    ],
)
async def test_db(redis_server: Server, connect: Connect, path: str, options: dict[str, Any], db: str) -> None:
    """Values are kept in the database that the URL or the option names."""
    await connect(redis_server.url + path, **options).set("key", "value", 60)
    assert f"db{db}" in redis_server.command("INFO", "keyspace")


@pytest.mark.parametrize(
    ("authority", "options"),
    [
        pytest.param("alice:s3cret@", {}, id="URL"),
        pytest.param("", {"username": "alice", "password": "s3cret"}, id="options"),
        pytest.param("alice@", {"password": "s3cret"}, id="user in the URL"),
        pytest.param("alice:s3cret@", {"password": "s3cret"}, id="both, the same"),
    ],
)
async def test_user_and_password(
    redis_server: Server, connect: Connect, authority: str, options: dict[str, Any]
) -> None:
    """A user of an access list is logged in with the password, by the URL or by options."""
    redis_server.command("ACL", "SETUSER", "alice", "on", ">s3cret", "~*", "+@all")
    await connect(f"redis://{authority}127.0.0.1:{redis_server.port}", **options).ping()
    assert [client["user"] for client in redis_server.clients()] == ["alice"]


async def test_password_of_the_default_user(start_server: StartServer, connect: Connect) -> None:
    """A password alone is that of the default user."""
    server = start_server(password="s3cret")
    await connect(f"redis://127.0.0.1:{server.port}", password="s3cret").ping()
    await connect(server.url).ping()


@pytest.mark.parametrize("decode_responses", [True, False])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "latin-1"])
async def test_encoding(redis_server: Server, connect: Connect, encoding: str, decode_responses: bool) -> None:
    """Text is str whatever the options say, and is written in the encoding."""
    backend = connect(redis_server.url, encoding=encoding, decode_responses=decode_responses)
    await backend.set("key", "Grüße", 60)
    assert await backend.get("key") == "Grüße"
    assert await backend.get_bytes("key") == "Grüße".encode(encoding)


@pytest.mark.parametrize(
    ("options", "milliseconds"), [({}, 3_600_000), ({"default_timeout": 1.5}, 1_500)], ids=["not given", "given"]
)
async def test_default_timeout(
    redis_server: Server, connect: Connect, options: dict[str, Any], milliseconds: int
) -> None:
    """A value that is set with the timeout None is kept for the default timeout."""
    backend = connect(redis_server.url, **options)
    await backend.set("key", "value", None)
    assert milliseconds - 1000 < redis_server.command("PTTL", "key") <= milliseconds
    assert backend.default_timeout == milliseconds / 1000


def test_operation_timeout() -> None:
    """What an operation of the middleware may take is 0.25 s, or what the option says."""
    assert RedisBackend().operation_timeout == 0.25
    assert RedisBackend(operation_timeout=1).operation_timeout == 1


# TLS


@pytest.fixture
def tls_server(start_server: StartServer, certificates: Certificates) -> Server:
    """A server that speaks TLS with a certificate for localhost."""
    return start_server(certificates=certificates)


@pytest.mark.parametrize(
    ("scheme", "options"),
    [
        pytest.param("rediss", {}, id="rediss"),
        pytest.param("valkeys", {}, id="valkeys"),
        pytest.param("rediss", {"ssl": True}, id="rediss and ssl"),
        pytest.param("redis", {"ssl": True}, id="ssl"),
        pytest.param("rediss", {"ssl_cert_reqs": "optional"}, id="optional"),
        pytest.param("rediss", {"ssl_cert_reqs": ssl.CERT_REQUIRED}, id="a constant of ssl"),
        pytest.param("rediss", {"ssl_check_hostname": True}, id="hostname checked"),
    ],
)
async def test_tls(
    tls_server: Server, connect: Connect, certificates: Certificates, scheme: str, options: dict[str, Any]
) -> None:
    """By TLS, with the right CA, values are kept: by the scheme of the URL or the option."""
    url = f"{scheme}://localhost:{tls_server.tls_port}"
    backend = connect(url, ssl_ca_certs=certificates.path("ca.pem"), **options)
    await backend.set("key", "value", 60)
    assert await backend.get("key") == "value"
    assert socket_of(backend).getpeername()[1] == tls_server.tls_port


@pytest.mark.parametrize(
    ("host", "options"),
    [
        pytest.param("localhost", {"ssl_ca_certs": "other.pem"}, id="signed by another CA"),
        pytest.param("localhost", {}, id="signed by no CA of the system"),
        pytest.param("127.0.0.1", {"ssl_ca_certs": "ca.pem"}, id="for another host, which is checked by default"),
        pytest.param("localhost", {"ssl_cert_reqs": "optional"}, id="optional is not none"),
    ],
)
@pytest.mark.parametrize(
    ("url", "message"),
    [
        pytest.param("rediss://{host}:{port}", "certificate", id="server"),
        pytest.param("rediss+sentinel://{host}:{port}/service", "network:ConnectionError", id="sentinel"),
    ],
)
async def test_tls_refuses(
    tls_server: Server,
    connect: Connect,
    certificates: Certificates,
    url: str,
    message: str,
    host: str,
    options: dict[str, Any],
) -> None:
    """A server with a false certificate is refused, and so is a Sentinel (S31)."""
    if "ssl_ca_certs" in options:
        options = options | {"ssl_ca_certs": certificates.path(options["ssl_ca_certs"])}
    asked = tls_server.command("INFO", "errorstats")
    with pytest.raises(BackendError, match=message):
        await connect(url.format(host=host, port=tls_server.tls_port), **options).ping()
    assert "cmdstat_ping" not in tls_server.command("INFO", "commandstats")
    assert tls_server.command("INFO", "errorstats") == asked


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"ssl_check_hostname": False, "ssl_ca_certs": "ca.pem"}, id="host not checked"),
        pytest.param({"ssl_cert_reqs": "none"}, id="nothing checked"),
    ],
)
async def test_tls_unchecked(
    tls_server: Server, connect: Connect, certificates: Certificates, options: dict[str, Any]
) -> None:
    """Who asks for less is connected with less: without a look at the host, or at the certificate."""
    if "ssl_ca_certs" in options:
        options = options | {"ssl_ca_certs": certificates.path(options["ssl_ca_certs"])}
    await connect(f"rediss://127.0.0.1:{tls_server.tls_port}", **options).ping()


async def test_tls_client_certificate(
    start_server: StartServer, connect: Connect, certificates: Certificates
) -> None:
    """A server that asks for a certificate gets the one that is given, and refuses who gives none."""
    server = start_server(certificates=certificates, asks_for_certificate=True)
    trusting = {"ssl_ca_certs": certificates.path("ca.pem")}
    shown = {"ssl_certfile": certificates.path("client.pem"), "ssl_keyfile": certificates.path("client.key")}
    await connect(server.tls_url, **trusting, **shown).ping()
    with pytest.raises(BackendError):
        await connect(server.tls_url, **trusting).ping()


@pytest.mark.parametrize("option", ["ssl_ca_certs", "ssl_certfile"])
async def test_tls_missing_file(connect: Connect, tmp_path: Path, option: str) -> None:
    """A file that is not there is named by the error of the first call."""
    options: dict[str, Any] = {option: str(tmp_path / "absent.pem")}
    with pytest.raises(BackendError, match=rf"{option}='.*absent.pem': No such file"):
        await connect("rediss://localhost:6379", **options).ping()


# Sentinel


async def test_sentinel(start_server: StartServer, connect: Connect, tmp_path: Path) -> None:
    """A Sentinel URL keeps values in the master that the Sentinels name."""
    server = start_server()
    config = tmp_path / "sentinel.conf"
    config.write_text(f"sentinel monitor mymaster 127.0.0.1 {server.port} 1\n")
    sentinel = start_server("--protected-mode", "no", sentinel_config=config)
    backend = connect(f"redis+sentinel://127.0.0.1:{sentinel.port}/mymaster/1")
    await backend.set("key", "value", 60)
    assert "db1" in server.command("INFO", "keyspace")
    pool = next(iter(backend._clients.values()))._redis.connection_pool
    assert isinstance(pool, SentinelConnectionPool)


async def test_sentinel_over_tls(
    start_server: StartServer, connect: Connect, certificates: Certificates, tmp_path: Path
) -> None:
    """The options for TLS hold for the Sentinels and for the master."""
    server = start_server(certificates=certificates)
    config = tmp_path / "sentinel.conf"
    config.write_text(f"sentinel monitor mymaster 127.0.0.1 {server.tls_port} 1\n")
    sentinel = start_server("--protected-mode", "no", certificates=certificates, sentinel_config=config)
    url = f"rediss+sentinel://127.0.0.1:{sentinel.tls_port}/mymaster"
    trusting = {"ssl_ca_certs": certificates.path("ca.pem"), "ssl_check_hostname": False}
    await connect(url, **trusting).ping()
    with pytest.raises(BackendError):
        await connect(url).ping()


# What is refused

WRONG = [
    pytest.param(
        {"max_connections": 0}, "max_connections must be a whole number from 1, not 0", id="no connections"
    ),
    pytest.param({"max_connections": -1}, "not -1", id="fewer than none"),
    pytest.param({"max_connections": "10"}, "not '10'", id="a number as text"),
    pytest.param({"max_connections": 1.5}, "not 1.5", id="a fraction of a connection"),
    pytest.param({"max_connections": True}, "not True", id="a bool for a number"),
    pytest.param({"max_connections": None}, "not None", id="no number"),
    pytest.param({"max_connections_per_pool": 0}, "max_connections_per_pool must be", id="older name"),
    pytest.param({"retry_on_timeout": 1}, "retry_on_timeout must be True or False, not 1", id="retry as number"),
    pytest.param({"retry_on_timeout": None}, "not None", id="retry None"),
    pytest.param({"socket_timeout": 0}, "socket_timeout must be a positive number", id="no time"),
    pytest.param({"socket_timeout": -0.5}, "not -0.5", id="negative time"),
    pytest.param({"socket_timeout": float("inf")}, "not inf", id="infinite time"),
    pytest.param({"socket_timeout": float("nan")}, "not nan", id="time that is no number"),
    pytest.param({"socket_timeout": True}, "not True", id="a bool for a time"),
    pytest.param({"socket_connect_timeout": "5"}, "socket_connect_timeout must be", id="a time as text"),
    pytest.param({"socket_keepalive": "yes"}, "socket_keepalive must be True or False", id="keepalive as text"),
    pytest.param(
        {"socket_keepalive_options": [1]}, "socket_keepalive_options must be a dict", id="options as list"
    ),
    pytest.param({"socket_keepalive_options": {"idel": 1}}, "none of idle, interval, count", id="unknown name"),
    pytest.param(
        {"socket_keepalive_options": {1: 1, 99: 1}}, "none of idle, interval, count", id="unknown number"
    ),
    pytest.param({"socket_keepalive_options": {"idle": 0}}, "from 1 to 32767, not 0", id="idle 0"),
    pytest.param({"socket_keepalive_options": {"idle": "1"}}, "not '1'", id="idle as text"),
    pytest.param({"socket_keepalive_options": {3: 128}}, "from 1 to 127, not 128", id="count too large"),
    pytest.param(
        {"socket_keepalive": False, "socket_keepalive_options": {"idle": 1}},
        "leave one out",
        id="off, with options",
    ),
    pytest.param({"health_check_interval": -1}, "health_check_interval must be", id="negative interval"),
    pytest.param({"health_check_interval": False}, "not False", id="a bool for an interval"),
    pytest.param({"health_check_interval": None}, "not None", id="no interval"),
    pytest.param({"username": ""}, "username must be a text that is not empty", id="empty user"),
    pytest.param({"password": ""}, "password must be a text that is not empty", id="empty password"),
    pytest.param({"password": b"s3cret"}, "not an object of type bytes", id="password as bytes"),
    pytest.param({"db": -1}, "db must be a whole number from 0, not -1", id="negative database"),
    pytest.param({"db": "1"}, "not '1'", id="database as text"),
    pytest.param({"db": True}, "not True", id="a bool for a database"),
    pytest.param({"db": None}, "not None", id="database None"),
    pytest.param({"ssl": None}, "ssl must be True or False, not None", id="ssl None"),
    pytest.param({"ssl": "true"}, "not 'true'", id="ssl as text"),
    pytest.param({"ssl": True, "ssl_cert_reqs": None}, '"required", "optional" or "none"', id="reqs None"),
    pytest.param({"ssl": True, "ssl_cert_reqs": "REQUIRED"}, "not 'REQUIRED'", id="reqs in capitals"),
    pytest.param({"ssl": True, "ssl_ca_certs": ""}, "the path of a PEM file", id="empty path"),
    pytest.param({"ssl": True, "ssl_ca_certs": 1}, "the path of a PEM file", id="a path that is none"),
    pytest.param({"ssl": True, "ssl_keyfile": "k.pem"}, "give ssl_certfile too", id="key without certificate"),
    pytest.param({"ssl": True, "ssl_check_hostname": None}, "True or False, not None", id="hostname None"),
    pytest.param(
        {"ssl": True, "ssl_cert_reqs": "none", "ssl_check_hostname": True},
        "nothing would be",
        id="host of nothing",
    ),
    pytest.param({"sentinel_password": "s3cret"}, "sentinel_password mean nothing without", id="no Sentinels"),
    pytest.param({"ssl_ca_certs": "ca.pem"}, "ssl_ca_certs mean nothing without TLS", id="CA without TLS"),
    pytest.param({"ssl_certfile": "c.pem"}, "ssl_certfile mean nothing without TLS", id="certificate without TLS"),
    pytest.param({"ssl_cert_reqs": "none"}, "ssl_cert_reqs mean nothing without TLS", id="reqs without TLS"),
    pytest.param(
        {"ssl": False, "ssl_check_hostname": True}, "ssl_check_hostname mean nothing", id="host without TLS"
    ),
    pytest.param({"url": "rediss://h", "ssl": False}, "ssl=False contradicts rediss://", id="TLS or not"),
    pytest.param({"url": "unix:///s", "ssl": True}, "a Unix socket has no TLS", id="TLS on a Unix socket"),
    pytest.param({"url": "redis://:s3cret@h", "password": "s3cret2"}, "password differs", id="two passwords"),
    pytest.param({"url": "redis://a@h", "username": "b"}, "username differs", id="two users"),
    pytest.param({"url": "redis://h/1", "db": 0}, "db differs", id="two databases, one of them 0"),
    pytest.param({"url": None}, "url must be the URL of a server", id="URL None"),
    pytest.param({"url": None, "url_source": "REDIS_URL"}, "REDIS_URL must be the URL", id="variable not set"),
    pytest.param({"decode_responses": None}, "decode_responses must be True or False", id="decoding None"),
    pytest.param({"encoding": "utf-42"}, "encoding must be the name of a text encoding", id="unknown encoding"),
    pytest.param({"encoding": "hex"}, "not 'hex'", id="an encoding of bytes"),
    pytest.param({"encoding": None}, "not None", id="no encoding"),
    pytest.param({"default_timeout": 0}, "default_timeout must be a positive number", id="default 0"),
    pytest.param({"operation_timeout": None}, "operation_timeout must be a positive number", id="no budget"),
    pytest.param({"operation_timeout": True}, "not True", id="a bool for a budget"),
    pytest.param({"max_connection": 1}, "no option 'max_connection'; did you mean max_connections? ", id="typo"),
    pytest.param({"default_timout": 1}, "did you mean default_timeout? it has url, ", id="typo beside the server"),
    pytest.param({"host": "h"}, "RedisBackend has no option 'host'; it has url, default_", id="no option"),
    pytest.param({"connection_pool": object()}, "not a builtins.object", id="a pool that is none"),
    pytest.param({"connection_pool": BlockingIoPool()}, "ConnectionPool of redis.asyncio", id="a pool of threads"),
    pytest.param(
        {
            "connection_pool": ConnectionPool(),
            "url": "redis://h",
            "max_connections": 1,
            "ssl": False,
            "password": None,
        },
        "give max_connections, ssl, url to the pool, not beside it",
        id="what a pool makes void",
    ),
]


@pytest.mark.parametrize(("options", "said"), WRONG)
def test_refused(options: dict[str, Any], said: str) -> None:
    """What cannot work is refused at construction: option, value and what is right are named, no secret is."""
    with pytest.raises(ConfigurationError) as refusal:
        RedisBackend(**options)
    assert said in str(refusal.value)
    assert "s3cret" not in str(refusal.value)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"socket_timeout": None, "socket_connect_timeout": None}, id="no bounds"),
        pytest.param({"url": "redis://h/0", "db": 0}, id="the same database twice"),
        pytest.param({"url": "redis://:pw@h", "password": None}, id="password None beside one in the URL"),
        pytest.param({"url": "unix:///s", "socket_keepalive": True, "ssl": False}, id="unix"),
        pytest.param({"connection_pool": ConnectionPool(), "password": None, "ssl_ca_certs": None}, id="pool"),
        pytest.param({"url": "rediss://h", "ssl_ca_certs": None, "ssl_check_hostname": False}, id="TLS"),
    ],
)
def test_accepted(options: dict[str, Any]) -> None:
    """What contradicts nothing constructs."""
    RedisBackend(**options)


def test_every_option_is_named() -> None:
    """Who gives an option that there is not is told all that there are."""
    taken = {*inspect.signature(RedisBackend).parameters} - {"options", "url_source"}
    with pytest.raises(ConfigurationError) as refusal:
        RedisBackend(host="h")  # type: ignore[call-arg]
    assert {*str(refusal.value).partition("it has ")[2].split(", ")} == taken | {*RedisOptions.__annotations__}


def test_numbers_of_this_platform() -> None:
    """Keepalive options are given to the kernel by its own numbers, whichever way they were named."""
    by_name = keepalive_options({"idle": 1, "interval": 3, "count": 5})
    assert by_name == keepalive_options({1: 1, 2: 3, 3: 5}) == keepalive_options(by_name)

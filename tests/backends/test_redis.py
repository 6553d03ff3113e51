"""What `RedisBackend` does beyond the contract of all backends, and what it does when the server fails it."""

from __future__ import annotations

import asyncio
import gc
import re
import subprocess
import sys
import threading
import traceback
from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import ConnectionPool

from app_cache.backends.base import (
    BatchingBackend,
    BytesBackend,
    CombinedBackend,
    LocalBackend,
    PatternBackend,
    PingBackend,
    ScriptBackend,
    SizedBackend,
    WatchedBackend,
    capability,
)
from app_cache.backends.redis import RedisBackend
from app_cache.backends.redis.backend import KEYS_PER_SCAN
from app_cache.backends.redis.servers import RELIED_UPON
from app_cache.errors import BackendError, ConfigurationError, Fault
from app_cache.testing import BackendContract
from tests.servers import free_port

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.backends.conftest import Connect
    from tests.conftest import StartServer
    from tests.servers import Server

pytestmark = pytest.mark.anyio

SOON_S = 5
"""A bound that only a call without one of its own passes."""
MOST_STALLED = 10
"""How often in a row a machine that is busy may hold up this process for longer than a call may be late."""
CALLS: dict[str, Callable[[RedisBackend], Awaitable[object]]] = {
    "get": lambda backend: backend.get("key"),
    "set": lambda backend: backend.set("key", "value", 60),
    "delete": lambda backend: backend.delete("key"),
    "get_bytes": lambda backend: backend.get_bytes("key"),
    "set_bytes": lambda backend: backend.set_bytes("key", b"value", 60),
    "delete_pattern": lambda backend: backend.delete_pattern("*"),
    "ping": lambda backend: backend.ping(),
    "size": lambda backend: backend.size(),
    "get_many": lambda backend: backend.get_many(["key"]),
    "get_beside": lambda backend: backend.get_beside("key", ["other"]),
    "get_batched": lambda backend: backend.get_batched(["key"]),
    "run_script": lambda backend: backend.run_script("return 1", [], []),
    "set_and_run": lambda backend: backend.set_and_run("key", b"value", 60, "return 1", [], []),
}
each_call = pytest.mark.parametrize("call", [pytest.param(call, id=name) for name, call in CALLS.items()])


@pytest.fixture
def backend(redis_server: Server, connect: Connect) -> RedisBackend:
    """A backend in an empty server."""
    return connect(redis_server.url, socket_timeout=SOON_S)


class TestContract(BackendContract):
    """The contract of all backends, kept over real servers."""

    @pytest.fixture
    def backend(self, redis_server: Server, connect: Connect) -> RedisBackend:
        return connect(redis_server.url, socket_timeout=SOON_S)


@pytest.mark.parametrize(
    "kind",
    [
        BatchingBackend,
        BytesBackend,
        PatternBackend,
        PingBackend,
        SizedBackend,
        ScriptBackend,
        CombinedBackend,
        WatchedBackend,
    ],
)
def test_capabilities(kind: type[object]) -> None:
    """It can do whatever a server beside the process can do, and does not live in the process."""
    backend = RedisBackend()
    assert capability(backend, kind) is backend
    assert capability(backend, LocalBackend) is None


# Values


@pytest.mark.parametrize(("timeout", "milliseconds"), [(60, 60_000), (0.5, 500), (0.0001, 1), (None, 3_600_000)])
async def test_time_to_live(
    redis_server: Server, backend: RedisBackend, timeout: float | None, milliseconds: int
) -> None:
    """Each value has an expiry, fractions of a second included, by all verbs that keep one."""
    await backend.set("text", "value", timeout)
    await backend.set_bytes("bytes", b"value", timeout)
    await backend.set_and_run("beside", b"value", timeout, "return 1", [], [])
    for key in ("text", "bytes", "beside"):
        assert milliseconds - 1000 < redis_server.command("PTTL", key) <= milliseconds or milliseconds == 1


async def test_not_text(backend: RedisBackend) -> None:
    """Bytes that are not text are no text: `get` says so, and `get_bytes` returns them."""
    await backend.set_bytes("key", b"\xff\x00", 60)
    with pytest.raises(BackendError, match="get found a value that is not utf-8 text") as failure:
        await backend.get("key")
    assert isinstance(failure.value.__cause__, UnicodeDecodeError)
    assert failure.value.fault is Fault.REFUSED
    assert await backend.get_bytes("key") == b"\xff\x00"


async def test_not_in_the_encoding(redis_server: Server, connect: Connect) -> None:
    """Text that the encoding cannot write is refused, and nothing is kept."""
    backend = connect(redis_server.url, encoding="latin-1")
    with pytest.raises(BackendError, match="cannot be written in latin-1"):
        await backend.set("key", "世界", 60)
    assert await backend.get("key") is None


async def test_lone_surrogates(backend: RedisBackend) -> None:
    """Text that JSON can carry and UTF-8 cannot comes back as it was, as a key too."""
    await backend.set("key\ud800", "value\udfff", 60)
    assert await backend.get("key\ud800") == "value\udfff"


async def test_bytes_are_no_text(backend: RedisBackend) -> None:
    """Bytes given as text are refused before anything is sent, and before anybody is told."""
    told: list[str] = []
    backend.watch(told.append)
    with pytest.raises(TypeError, match="value must be str, not bytes: set_bytes keeps bytes"):
        await backend.set("key", b"value", 60)  # type: ignore[arg-type]
    assert told == []


async def test_another_kind_of_value(redis_server: Server, backend: RedisBackend) -> None:
    """A key that somebody else uses for a list is an error to `get`, and absent among many."""
    redis_server.command("RPUSH", "key", "value")
    with pytest.raises(BackendError, match="WRONGTYPE"):
        await backend.get("key")
    assert await backend.get_many(["key"]) == [None]


async def test_get_many_of_none(connect: Connect) -> None:
    """To read no keys needs no server."""
    assert await connect(f"redis://127.0.0.1:{free_port()}").get_many([]) == []


# Patterns


async def test_delete_pattern_of_many(redis_server: Server, backend: RedisBackend) -> None:
    """More keys than one step looks at are deleted and counted, without KEYS, and the others stay."""
    count = 3 * KEYS_PER_SCAN
    redis_server.command("CONFIG RESETSTAT")
    redis_server.command(
        "EVAL", "for i = 1, ARGV[1] do redis.call('SET', 'user:' .. i, '', 'EX', 60) end", 0, count
    )
    await backend.set("other", "value", 60)
    assert await backend.delete_pattern("user:*") == count
    assert await backend.size() == 1
    ran = redis_server.command("INFO", "commandstats")
    assert "cmdstat_keys" not in ran
    assert ran["cmdstat_scan"]["calls"] > 1


# Scripts


SCRIPT = "#!lua flags=allow-oom\nreturn {KEYS[1], ARGV[1], ARGV[2], 7}"


async def test_script(redis_server: Server, backend: RedisBackend) -> None:
    """A script may name flags, is sent once, and is then run by its digest."""
    redis_server.command("CONFIG RESETSTAT")
    for _ in range(3):
        assert await backend.run_script(SCRIPT, ["key"], ["text", 5]) == [b"key", b"text", b"5", 7]
    ran = redis_server.command("INFO", "commandstats")
    assert ran["cmdstat_script|load"]["calls"] == 1
    assert ran["cmdstat_evalsha"]["calls"] == 4


async def test_script_after_a_restart(redis_server: Server, backend: RedisBackend) -> None:
    """A server that forgot the script is told it again, alone and beside a value (F5)."""
    write = "redis.call('SET', KEYS[1], ARGV[1], 'EX', 60) return 'done'"
    assert await backend.run_script(write, ["other"], ["1"]) == b"done"
    redis_server.restart()
    assert await backend.run_script(write, ["other"], ["2"]) == b"done"
    redis_server.restart()
    await backend.set_and_run("key", b"value", 60, write, ["other"], ["3"])
    assert await backend.get_many(["key", "other"]) == [b"value", b"3"]


async def test_set_and_run_is_one_round_trip(redis_server: Server, backend: RedisBackend) -> None:
    """A script that is known and the value beside it are two commands, and nothing more."""
    await backend.set_and_run("key", b"value", 60, "return 1", [], [])
    redis_server.command("CONFIG RESETSTAT")
    await backend.set_and_run("key", b"value", 60, "return 1", [], [])
    ran = redis_server.command("INFO", "commandstats")
    assert {name for name in ran if "config" not in name} == {"cmdstat_evalsha", "cmdstat_set"}


BROKEN = "return redis.error_reply('MINE broken')"


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda backend: backend.run_script(BROKEN, ["key"], ["private"]), id="run_script"),
        pytest.param(
            lambda backend: backend.set_and_run("key", b"private", 60, BROKEN, ["key"], ["private"]),
            id="set_and_run",
        ),
    ],
)
async def test_script_that_fails(backend: RedisBackend, call: Callable[[RedisBackend], Awaitable[object]]) -> None:
    """A script that fails is an error, which shows none of what was sent."""
    with pytest.raises(BackendError, match="MINE broken") as failure:
        await call(backend)
    assert failure.value.fault is Fault.REFUSED
    assert "private" not in "".join(traceback.format_exception(failure.value))


# Watching


async def test_watch(redis_server: Server, backend: RedisBackend) -> None:
    """Who watches is told of what is set and deleted directly, before it is, and of nothing that a store keeps."""
    told: list[tuple[str, bool]] = []
    await backend.set("user:1", "value", 60)
    backend.watch(lambda key: told.append((key, redis_server.command("EXISTS", key) == 1)))
    await backend.set_bytes("old", b"value", 60)
    await backend.set_and_run("other", b"value", 60, "return 1", [], [])
    assert told == []
    await backend.set("new", "value", 60)
    await backend.delete("old")
    await backend.delete_pattern("user:*")
    assert told == [("new", False), ("old", True), ("user:1", True)]


async def test_told_also_when_it_fails(connect: Connect) -> None:
    """Who watches is told although the server is away: what was pending must not come later."""
    backend = connect(f"redis://127.0.0.1:{free_port()}")
    told: list[str] = []
    backend.watch(told.append)
    for call in (backend.set("a", "value", 60), backend.delete("b")):
        with pytest.raises(BackendError):
            await call
    assert told == ["a", "b"]


# Failures


@each_call
async def test_server_away(connect: Connect, call: Callable[[RedisBackend], Awaitable[object]]) -> None:
    """Every call to a server that is away is a BackendError at once, with the address and without the password."""
    port = free_port()
    backend = connect(f"redis://alice:s3cret@127.0.0.1:{port}/3")
    async with asyncio.timeout(SOON_S):
        with pytest.raises(BackendError, match=rf"failed at redis://\*\*\*@127.0.0.1:{port}/3: ") as failure:
            await call(backend)
    assert failure.value.__cause__ is not None
    assert failure.value.fault is Fault.AWAY
    assert "s3cret" not in "".join(traceback.format_exception(failure.value))


@each_call
async def test_server_hangs(
    redis_server: Server, connect: Connect, call: Callable[[RedisBackend], Awaitable[object]]
) -> None:
    """Every call to a server that hangs is a BackendError within the bounds, and works when it is back."""
    failures = [await failure_of_hung(redis_server, connect, call)]
    while failures[-1].fault is Fault.STALLED and len(failures) < MOST_STALLED:
        failures.append(await failure_of_hung(redis_server, connect, call))
    assert failures[-1].fault is Fault.AWAY
    backend = connect(redis_server.url, socket_timeout=SOON_S)
    await call(backend)


async def failure_of_hung(
    server: Server, connect: Connect, call: Callable[[RedisBackend], Awaitable[object]]
) -> BackendError:
    """Return what *call* raises while *server* hangs; if it is stalled, this process stood still meanwhile."""
    backend = connect(server.url, socket_timeout=0.05)
    await backend.ping()
    server.pause()
    try:
        async with asyncio.timeout(SOON_S):
            with pytest.raises(BackendError, match=r"Timeout|no answer within 0\.25 s") as failure:
                await call(backend)
    finally:
        server.resume()
    return failure.value


async def test_server_comes_back(redis_server: Server, connect: Connect) -> None:
    """The same backend works again after the server was killed and started again."""
    backend = connect(redis_server.url, socket_timeout=SOON_S)
    await backend.set("key", "value", 60)
    redis_server.kill()
    with pytest.raises(BackendError):
        await backend.get("key")
    redis_server.start()
    assert await backend.get("key") is None


@pytest.mark.parametrize("authority", ["", ":wr0ng@", "alice:wr0ng@"])
async def test_wrong_password(start_server: StartServer, connect: Connect, authority: str) -> None:
    """A wrong password is a BackendError that shows neither this one nor the right one (F10)."""
    server = start_server(password="s3cret")
    with pytest.raises(BackendError) as failure:
        await connect(f"redis://{authority}127.0.0.1:{server.port}").ping()
    assert failure.value.fault is Fault.DENIED
    shown = "".join(traceback.format_exception(failure.value))
    assert "wr0ng" not in shown
    assert "s3cret" not in shown


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        pytest.param(b"no user: AUTH default s3cret", r"no user: AUTH default \*\*\*$", id="the password"),
        pytest.param(
            b"unknown command HELLO, with args beginning with: 'user_7' 3 AUTH default s3cret",
            "unknown command HELLO$",
            id="all that was sent",
        ),
    ],
)
async def test_password_in_an_answer(connect: Connect, said: bytes, shown: str) -> None:
    """A server that repeats what it was sent in its error has that hidden, in the traceback too."""

    async def repeat(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1000):
            writer.write(b"-ERR " + said + b"\r\n")
        writer.close()

    server = await asyncio.start_server(repeat, "127.0.0.1", 0)
    url = f"redis://:s3cret@127.0.0.1:{server.sockets[0].getsockname()[1]}"
    with pytest.raises(BackendError, match=shown) as failure:
        await connect(url).ping()
    server.close()
    assert not {"s3cret", "user_7"} & {*re.findall(r"\w+", "".join(traceback.format_exception(failure.value)))}


async def test_password_that_is_not_given(start_server: StartServer, connect: Connect) -> None:
    """That a server wants a password, where none is given, is said plainly (F10)."""
    server = start_server(password="s3cret")
    with pytest.raises(BackendError, match=r"the server wants a password, and none is given$") as failure:
        await connect(f"redis://127.0.0.1:{server.port}").ping()
    assert failure.value.fault is Fault.DENIED


async def test_no_permission(redis_server: Server, connect: Connect) -> None:
    """A user who may read and not write gets what is there, and a BackendError for a write (F9, F10)."""
    redis_server.command("ACL", "SETUSER", "reader", "on", ">s3cret", "~*", "+@all", "-@write")
    redis_server.command("SET", "key", "value")
    backend = connect(f"redis://reader:s3cret@127.0.0.1:{redis_server.port}")
    assert await backend.get("key") == "value"
    with pytest.raises(BackendError, match=r"set failed .*permission") as failure:
        await backend.set("key", "other", 60)
    assert failure.value.fault is Fault.DENIED
    with pytest.raises(BackendError) as failure:
        await backend.run_script("return redis.call('SET', KEYS[1], 'other')", ["key"], [])
    assert failure.value.fault is Fault.DENIED


async def test_read_only(start_server: StartServer, connect: Connect) -> None:
    """A replica gives what it has and says, to whoever writes, that it may only be read (F9)."""
    server = start_server()
    backend = connect(server.url)
    await backend.set("key", "value", 60)
    server.command("REPLICAOF", "127.0.0.1", free_port())
    for write in (backend.set("key", "other", 60), backend.run_script("redis.call('DEL', KEYS[1])", ["key"], [])):
        with pytest.raises(BackendError, match="read only") as failure:
            await write
        assert failure.value.fault is Fault.READ_ONLY
    assert await backend.get("key") == "value"


@pytest.mark.parametrize(
    ("every_s", "connections"),
    [pytest.param(3600, 3, id="in a while"), pytest.param(0, 21, id="in ten of them")],
)
async def test_read_only_server_is_let_go(
    start_server: StartServer, connect: Connect, monkeypatch: pytest.MonkeyPatch, every_s: int, connections: int
) -> None:
    """Once in a while a refused write has connections made anew; reads never do (F9)."""
    monkeypatch.setattr("app_cache.backends.redis.lending.LET_GO_EVERY_S", every_s)
    server = start_server()
    backend = connect(server.url)
    await backend.set("key", "value", 60)
    server.command("REPLICAOF", "127.0.0.1", free_port())
    before = server.command("INFO", "stats")["total_connections_received"] - 1
    for _ in range(10):
        with pytest.raises(BackendError, match="read only"):
            await backend.set("key", "other", 60)
        for _ in range(3):
            assert (await backend.get("key"), await backend.get_many(["key"])) == ("value", [b"value"])
    assert server.command("INFO", "stats")["total_connections_received"] - before == connections


async def test_read_only_server_is_let_go_by_the_reader(start_server: StartServer, connect: Connect) -> None:
    """The reader gives back a connection to a server that turned out to be read-only, and it is closed."""
    server = start_server()
    backend = connect(server.url)
    await backend.ping()
    (client,) = backend._clients.values()
    line = await client._lender.lend()
    before = line.is_wanted
    server.command("REPLICAOF", "127.0.0.1", free_port())
    with pytest.raises(BackendError, match="read only"):
        await backend.set("key", "value", 60)
    assert (before, line.is_wanted) == (False, True)
    await line.give_back()
    await no_clients(server)


async def test_the_reader_keeps_its_connection(redis_server: Server, connect: Connect) -> None:
    """Look-ups one after the other have one connection, and no way through the pool; calls have others."""
    backend = connect(redis_server.url)
    await backend.get_many(["key"])
    (client,) = backend._clients.values()
    pool = client._redis.connection_pool
    (kept,) = pool._in_use_connections
    for _ in range(3):
        await backend.set("key", "value", 60)
        assert await backend.get_many(["key"]) == [b"value"]
    assert pool._in_use_connections == {kept}
    assert len(redis_server.clients()) == 2
    await backend.close()
    await no_clients(redis_server)


async def test_what_the_reader_keeps_is_given_to_others(redis_server: Server, connect: Connect) -> None:
    """A connection that is kept for look-ups takes no turn from a call that would have to wait."""
    backend = connect(redis_server.url, max_connections=2)
    await backend.get_many(["key"])
    (client,) = backend._clients.values()
    await client._turns.acquire()
    async with asyncio.timeout(SOON_S):
        for _ in range(3):
            await backend.set("key", "value", 60)
            assert await backend.get_many(["key"]) == [b"value"]
    assert len(redis_server.clients()) == 1
    client._turns.release()


@pytest.mark.parametrize("lost", ["before it is lent", "while it is lent"])
async def test_what_is_lost_is_not_kept(start_server: StartServer, connect: Connect, lost: str) -> None:
    """A connection that cannot be made anew, and one that was lost while it was lent, is in nobody's way."""
    server = start_server()
    backend = connect(server.url, max_connections=3)
    await backend.get_many(["key"])
    (client,) = backend._clients.values()
    if lost == "while it is lent":
        line = await client._lender.lend()
        await line.connection.disconnect()
        await line.give_back()
    else:
        (kept,) = client._redis.connection_pool._in_use_connections
        server.kill()
        async with asyncio.timeout(SOON_S):
            while not kept._reader.at_eof():  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0)
        with pytest.raises(BackendError):
            await backend.get_many(["key"])
        await client.reader.settle()
    assert client._turns._value == 3
    assert client._redis.connection_pool._in_use_connections == set()


@pytest.mark.parametrize("unread", [pytest.param(False, id="closed"), pytest.param(True, id="something unread")])
async def test_what_the_reader_keeps_is_looked_at(redis_server: Server, connect: Connect, unread: bool) -> None:
    """A connection that was kept is lent only if the server has said nothing on it since, its end neither."""
    backend = connect(redis_server.url)
    await backend.set("key", "value", 60)
    await backend.get_many(["other"])
    (client,) = backend._clients.values()
    (kept,) = client._redis.connection_pool._in_use_connections
    if unread:
        await kept.send_command("MGET", "other", "other")
        await kept._reader._wait_for_data("read")
    else:
        redis_server.command("CLIENT", "KILL", "TYPE", "normal")
    assert await backend.get_many(["key", "key"]) == [b"value", b"value"]


async def test_a_pool_that_is_given_has_its_connections_back(redis_server: Server) -> None:
    """Of a pool that is somebody else's no connection is kept."""
    pool: Any = ConnectionPool.from_url(redis_server.url, max_connections=2)
    backend = RedisBackend(connection_pool=pool)
    await backend.get_many(["key"])
    (client,) = backend._clients.values()
    await client.reader.settle()
    for connection in [await pool.get_connection() for _ in range(2)]:
        await pool.release(connection)
    await backend.close()
    await pool.aclose()


async def test_server_full(start_server: StartServer, connect: Connect) -> None:
    """A full server is an error to who writes, and goes on answering who reads or deletes (F8)."""
    server = start_server("--maxmemory-policy", "noeviction")
    backend = connect(server.url)
    await backend.set("key", "value", 60)
    server.command("CONFIG", "SET", "maxmemory", "1")
    with pytest.raises(BackendError, match=r"set failed .*maxmemory") as failure:
        await backend.set("other", "value", 60)
    assert failure.value.fault is Fault.FULL
    assert await backend.get("key") == "value"
    assert (
        await backend.run_script("#!lua flags=allow-oom\nreturn redis.call('SET', KEYS[1], '1')", ["k"], [])
        == b"OK"
    )
    await backend.delete("key")
    assert await backend.get("key") is None


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("redis://host:6379/0", "RedisBackend('redis://host:6379/0')"),
        ("redis://alice:s3cret@host", "RedisBackend('redis://***@host:6379/0')"),
        ("rediss+sentinel://:s3cret@h1,h2/m", "RedisBackend('rediss+sentinel://***@h1:26379,h2:26379/m/0')"),
    ],
)
def test_repr(url: str, text: str) -> None:
    """As text a backend is its address, without user and password."""
    assert repr(RedisBackend(url)) == text
    assert repr(RedisBackend(url, db=0)) == text


@pytest.mark.parametrize(("kind", "name"), RELIED_UPON)
def test_another_redis_py(monkeypatch: pytest.MonkeyPatch, kind: type, name: str) -> None:
    """A redis-py without what is relied upon is refused when a backend is made, not at each call."""
    for cls in [cls for cls in kind.__mro__ if name in vars(cls)]:
        monkeypatch.delattr(cls, name)
    with pytest.raises(ConfigurationError, match=rf"redis 8\..* {kind.__name__} has no {name}: install"):
        RedisBackend()


# Connections: turns, loops, processes


async def test_full_pool(redis_server: Server, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that finds no connection free waits its turn for a bounded time, and says what it waited for."""
    monkeypatch.setattr("app_cache.backends.redis.lending.MAX_WAIT_S", 0.2)
    backend = connect(redis_server.url, max_connections=1, socket_timeout=0.2, retry_on_timeout=True)
    await backend.ping()
    redis_server.pause()
    try:
        async with asyncio.timeout(SOON_S):
            calls = await asyncio.gather(*(backend.get("key") for _ in range(3)), return_exceptions=True)
    finally:
        redis_server.resume()
    faults = [call.fault for call in calls if isinstance(call, BackendError)]
    assert sorted(faults, key=str) == [Fault.AWAY, Fault.BUSY, Fault.BUSY]
    assert sum("no connection became free within 0.2 s" in str(call) for call in calls) == 2


async def test_turns_are_fair(redis_server: Server, connect: Connect) -> None:
    """Calls that wait for a connection have it in the order in which they came."""
    backend = connect(redis_server.url, max_connections=1, socket_timeout=SOON_S)
    order: list[int] = []

    async def call(number: int) -> None:
        await backend.get("key")
        order.append(number)

    await asyncio.gather(*(call(number) for number in range(50)))
    assert order == list(range(50))


async def test_cancelled_calls(redis_server: Server, connect: Connect) -> None:
    """Calls cancelled at any moment lose no connection, and no call ever reads the answer of another (F31)."""
    backend = connect(redis_server.url, max_connections=2, socket_timeout=SOON_S)
    for number in range(10):
        await backend.set(f"key {number}", f"value {number}", 60)
    for steps in range(40):
        tasks = [asyncio.ensure_future(backend.get(f"key {number}")) for number in range(10)]
        for _ in range(steps):
            await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        for number, answer in enumerate(answers):
            assert answer == f"value {number}" or isinstance(answer, asyncio.CancelledError)
        assert answers[1::2] == [f"value {number}" for number in range(1, 10, 2)]
    (client,) = backend._clients.values()
    await client._lender.release_kept()
    assert client._turns._value == 2
    assert client._redis.connection_pool._in_use_connections == set()


async def end_at_once(backend: RedisBackend) -> None:
    """Assert that calls to a server that does not answer end when they are cancelled, at whatever moment."""
    for steps in range(40):
        call = asyncio.ensure_future(backend.ping())
        for _ in range(steps):
            await asyncio.sleep(0)
        call.cancel()
        assert await asyncio.wait([call], timeout=SOON_S / 2) == ({call}, set()), steps
        assert call.cancelled()


async def test_cancelled_calls_at_a_hung_server(redis_server: Server, connect: Connect) -> None:
    """A call that is cancelled ends at once, though its server answers nothing (F31)."""
    backend = connect(redis_server.url, max_connections=1, socket_timeout=SOON_S)
    await backend.ping()
    redis_server.pause()
    try:
        await end_at_once(backend)
    finally:
        redis_server.resume()


async def test_cancelled_calls_at_a_hung_sentinel(
    start_server: StartServer, connect: Connect, tmp_path: Path
) -> None:
    """A call that is cancelled ends at once, though the Sentinel that it asks answers nothing (F31)."""
    server = start_server()
    config = tmp_path / "sentinel.conf"
    config.write_text(f"sentinel monitor service 127.0.0.1 {server.port} 1\n")
    sentinel = start_server("--protected-mode", "no", sentinel_config=config)
    backend = connect(
        f"redis+sentinel://127.0.0.1:{sentinel.port}/service", max_connections=1, socket_timeout=SOON_S
    )
    await backend.ping()
    server.command("CLIENT KILL TYPE normal")
    sentinel.pause()
    try:
        await end_at_once(backend)
    finally:
        sentinel.resume()


async def test_spent_budgets_cost_no_connection(redis_server: Server, connect: Connect) -> None:
    """Calls given up by their caller on a hung server leave the pool as it was when the server is back (F11)."""
    backend = connect(redis_server.url, max_connections=2, socket_timeout=SOON_S, operation_timeout=SOON_S)
    await backend.set("key", "value", 60)

    async def impatient() -> None:
        async with asyncio.timeout(0.1):
            await backend.get("key")

    redis_server.pause()
    try:
        gone = await asyncio.gather(*(impatient() for _ in range(50)), return_exceptions=True)
    finally:
        redis_server.resume()
    assert {type(outcome) for outcome in gone} == {TimeoutError}
    assert await asyncio.gather(*(backend.get("key") for _ in range(50))) == ["value"] * 50
    assert len(redis_server.clients()) <= 2


async def test_connecting_is_one_round_trip(redis_server: Server, backend: RedisBackend) -> None:
    """A new connection costs one HELLO before the command, and nothing that a server might not know."""
    redis_server.command("CONFIG RESETSTAT")
    await backend.get("key")
    ran = redis_server.command("INFO", "commandstats")
    assert {name for name in ran if "config" not in name} == {"cmdstat_hello", "cmdstat_get"}
    assert redis_server.command("INFO", "errorstats") == {}


async def test_close(redis_server: Server, connect: Connect) -> None:
    """Closing ends the connections, may be done again and after a failure, and a later call connects anew."""
    backend = connect(redis_server.url)
    await backend.close()
    await backend.set("key", "value", 60)
    await backend.close()
    await backend.close()
    await no_clients(redis_server)
    assert await backend.get("key") == "value"
    redis_server.kill()
    with pytest.raises(BackendError):
        await backend.get("key")
    await backend.close()


async def no_clients(server: Server) -> None:
    """Return when *server* has noticed that nobody is connected any more."""
    async with asyncio.timeout(SOON_S):
        while server.clients():  # noqa: ASYNC110 - no server tells when a client is gone
            await asyncio.sleep(0.01)


def test_loops_one_after_another(redis_server: Server) -> None:
    """One object works in loop after loop; what a loop opened is closed when it ends, without a warning (F32)."""
    backend = RedisBackend(redis_server.url)
    asyncio.run(backend.set("key", "value", 60))
    assert asyncio.run(backend.get("key")) == "value"
    asyncio.run(no_clients(redis_server))
    gc.collect()


def test_loops_at_the_same_time(redis_server: Server) -> None:
    """One object serves two loops in two threads, and closing it in one leaves the other's connections (F32)."""
    backend = RedisBackend(redis_server.url)
    connected, closed = threading.Barrier(2, timeout=SOON_S), threading.Barrier(2, timeout=SOON_S)
    redis_server.command("CONFIG RESETSTAT")

    async def first() -> None:
        await backend.set("first", "value", 60)
        connected.wait()
        await backend.close()
        closed.wait()

    async def second() -> None:
        await backend.set("second", "value", 60)
        connected.wait()
        closed.wait()
        assert await backend.get("second") == "value"
        assert len(redis_server.clients()) == 1

    thread = threading.Thread(target=lambda: asyncio.run(first()))
    thread.start()
    asyncio.run(second())
    thread.join()
    assert redis_server.command("INFO", "stats")["total_connections_received"] == 2


def test_ended_loops_are_forgotten(redis_server: Server) -> None:
    """However many loops have come and gone, what is kept of them is that of the last."""
    backend = RedisBackend(redis_server.url)
    for _ in range(5):
        asyncio.run(backend.ping())
    assert len(backend._clients) == 1


async def test_dropped_without_close(redis_server: Server) -> None:
    """A backend that nobody holds any more lets its connections go, without a warning."""
    backend = RedisBackend(redis_server.url)
    await backend.ping()
    del backend
    gc.collect()
    await no_clients(redis_server)


FORKS = """
import asyncio, os, sys
from app_cache.backends.redis import RedisBackend

backend = RedisBackend(sys.argv[1], health_check_interval=0)
loop = asyncio.new_event_loop()
loop.run_until_complete(backend.set("key", "value", 60))
for in_child in (asyncio.run, loop.run_until_complete):
    child = os.fork()
    if not child:
        assert in_child(backend.get("key")) == "value"
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
        assert asyncio.run(backend.get("key")) == "value"
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert loop.run_until_complete(backend.get("key")) == "value"
loop.run_until_complete(backend.close())
loop.close()
"""


def test_fork(redis_server: Server) -> None:
    """A child process makes connections of its own and leaves those of its parent alone (F33)."""
    redis_server.command("CONFIG RESETSTAT")
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORKS, redis_server.url],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    one_of_the_parent_and_two_of_each_child = 5
    stats = redis_server.command("INFO", "stats")
    assert stats["total_connections_received"] == one_of_the_parent_and_two_of_each_child


async def test_close_waits_for_calls(redis_server: Server, connect: Connect) -> None:
    """A call that is under way when the backend is closed ends as it would have, and leaves no connection open."""
    backend = connect(redis_server.url)
    await backend.set("before", "value", 60)
    call = asyncio.create_task(backend.set("during", "value", 60))
    await asyncio.sleep(0)
    await backend.close()
    await call
    assert await backend.get("during") == "value"

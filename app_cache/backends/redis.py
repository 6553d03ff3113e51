"""Keeps values in Redis or Valkey; the only module that imports redis.

A call runs on the connections of the event loop that it is made in. Each loop of each process opens its own with
its first call and closes them when it ends; nothing is shared between loops, or across a fork. A call waits its
turn for a connection, first come, first served, and for a bounded time.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
import re
import threading
import time
from contextlib import suppress
from contextvars import Context
from enum import Enum
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, Unpack

from redis.asyncio import ConnectionPool, Redis, Sentinel
from redis.asyncio.connection import Connection, RedisSSLContext, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import (
    MasterNotFoundError,
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)
from redis.backoff import NoBackoff
from redis.client import NEVER_DECODE
from redis.exceptions import (
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    AuthorizationError,
    InvalidResponse,
    MaxConnectionsError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.maint_notifications import MaintNotificationsConfig

from app_cache.backends.base import CacheBackend, checked_timeout
from app_cache.backends.reader import LANES, Reader, RefusedError, Tally
from app_cache.backends.redis_options import (
    SECONDS,
    TEXT_ENCODING,
    YES_OR_NO,
    check,
    check_options,
    check_pool_stands_alone,
    read_options,
)
from app_cache.backends.redis_url import DEFAULT_URL, UNIX, RedisUrl, parse_redis_url
from app_cache.backends.text import no_text
from app_cache.errors import BackendError, ConfigurationError, Fault
from app_cache.logger_config import logger

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence

    from app_cache.backends.redis_options import ConnectionPlan, RedisOptions

    Closing = Callable[[], Awaitable[None]]

T = TypeVar("T")


class _OtherLoopError(RedisError):
    """A pool that was given is used by two event loops."""


FAILURES: Final = (RedisError, OSError, UnicodeError)
"""What a call can end with because of the server, the network, or bytes that are no text."""
FAULTS: Final[tuple[tuple[tuple[type[Exception], ...], Fault], ...]] = (
    (
        (AuthenticationError, AuthenticationWrongNumberOfArgsError, AuthorizationError, NoPermissionError),
        Fault.DENIED,
    ),
    ((MaxConnectionsError,), Fault.BUSY),
    ((OutOfMemoryError,), Fault.FULL),
    ((ReadOnlyError,), Fault.READ_ONLY),
    ((RedisConnectionError, RedisTimeoutError, InvalidResponse, OSError, _OtherLoopError), Fault.AWAY),
)
"""What each failure says of the server; the first that fits, for the later ones are wider."""
NOT_LOGGED_IN: Final = ("HELLO must be called with the client already authenticated", "Authentication required")
"""How Valkey and Redis begin to say that they want a password, and were given none."""
DENIED_IN_SCRIPT: Final = ("ACL failure in script", "The user executing the script can't run this command")
"""How Valkey and Redis begin to say that a script may not do what it does; no code says it."""
NOT_BY_SENTINELS: Final = "the Sentinels want another sentinel_password than is given, if any is"
MAKING_S: Final = 5.0
"""Seconds after which what makes a connection for nobody is not waited for any more, but ended."""
LOST: Final = "Connection lost"
"""What is said of a connection that was lost before anything was written to it."""
OTHER_LOOP: Final = "connection_pool has a connection of another event loop: give each loop a backend with a pool"
OF_ANOTHER_LOOP: Final = ("attached to a different loop", "is bound to a different event loop")
"""How asyncio ends what it says of something that another event loop has."""
RAW: Final = {NEVER_DECODE: True}
"""Answers are bytes, also those of a pool that was given and decodes."""
KEYS_PER_SCAN: Final = 1000
MAX_WAIT_S: Final = 5.0
"""How long a call waits for its turn at a connection: a pool that is full is busy, not broken."""
LET_GO_EVERY_S: Final = 1.0
"""Seconds from one time that all connections are let go of to the next: a server may stay read-only."""
MAX_CLOSE_S: Final = 1.0
"""How long `close` waits for calls under way."""


class NotGiven(Enum):
    """Stands for an argument that was left out, which is something else than None."""

    NOT_GIVEN = "not given"


class RedisBackend(CacheBackend):
    """Keeps values in a Redis or Valkey server: ``RedisBackend("redis://localhost:6379")``.

    Constructing it checks every option and connects to nothing. A call that fails raises `BackendError` within the
    bounds of the options; it is made at most twice, so that a script may have run twice where an answer got lost.

    Args:
        url: The server: ``redis://[user:password@]host:port/db``, ``rediss://`` by TLS, ``unix:///path``,
            ``redis+sentinel://host:port,host:port/service/db``, or the same with ``valkey``. ``redis://localhost:6379``
            if it is not given.
        decode_responses: Accepted; `get` gives str, `get_bytes` bytes, whatever it is.
        encoding: How `set` writes text and `get` reads it.
        default_timeout: For how many seconds a value is kept that is set with the timeout None.
        operation_timeout: In how many seconds the middleware wants an operation done, the wait for a connection
            and the second attempt included. Reads of many keys are bound by it too, other calls that are made
            directly by *socket_timeout* instead.
        url_source: The environment variable that *url* came from, for the error that names it.
        **options: How to connect: see `RedisOptions`.

    Raises:
        ConfigurationError: If something cannot work; the message names the option and what would have been right.
    """

    def __init__(
        self,
        url: str | NotGiven = NotGiven.NOT_GIVEN,
        *,
        decode_responses: bool = True,
        encoding: str = "utf-8",
        default_timeout: float = 3600,
        operation_timeout: float = 0.25,
        url_source: str | None = None,
        **options: Unpack[RedisOptions],
    ) -> None:
        check("decode_responses", decode_responses, YES_OR_NO)
        check("encoding", encoding, TEXT_ENCODING)
        check("default_timeout", default_timeout, SECONDS)
        check("operation_timeout", operation_timeout, SECONDS)
        check_options(options)
        self._encoding = encoding
        self._default_timeout = default_timeout
        self._operation_timeout = operation_timeout
        self._server = _server(url, url_source, options)
        self._told: list[Callable[[str], None]] = []
        self._clients: dict[tuple[asyncio.AbstractEventLoop, int], _Client] = {}
        self._clients_lock = threading.Lock()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self._server.address)!r})"

    @property
    def default_timeout(self) -> float:
        """For how many seconds a value is kept that is set with the timeout None."""
        return self._default_timeout

    @property
    def operation_timeout(self) -> float:
        """In how many seconds the middleware wants an operation done, all waits and attempts included."""
        return self._operation_timeout

    async def get(self, key: str) -> str | None:
        """Return the text kept under *key*, or None.

        Raises:
            BackendError: If the server does not answer, or the value is not text in the *encoding*.
        """
        value = await self._ask("get", "GET", key)
        try:
            return None if value is None else str(value, self._encoding, "surrogatepass")
        except UnicodeDecodeError as error:
            raise BackendError(
                f"get found a value that is not {self._encoding} text: get_bytes returns it",
                fault=Fault.REFUSED,
            ) from error

    async def set(self, key: str, value: str, timeout: float | None = None) -> None:
        """Keep *value* under *key* for *timeout* seconds (fractions count; None for *default_timeout*).

        Raises:
            BackendError: If the server does not answer or refuses, or *value* cannot be written in the *encoding*.
            ValueError: If *timeout* is not positive, or a bool.
            TypeError: If *value* is not str.
        """
        if not isinstance(value, str):
            raise no_text(value)
        expiry = self._expiry(timeout)
        try:
            encoded = value.encode(self._encoding, "surrogatepass")
        except UnicodeEncodeError as error:
            raise BackendError(
                f"set was given text that cannot be written in {self._encoding}", fault=Fault.REFUSED
            ) from error
        self._tell(key)
        await self._ask("set", "SET", key, encoded, *expiry)

    async def delete(self, key: str) -> None:
        """Forget *key*.

        Raises:
            BackendError: If the server does not answer or refuses.
        """
        self._tell(key)
        await self._ask("delete", "UNLINK", key)

    async def close(self) -> None:
        """Close the connections of the running event loop; those of other loops are closed when these end.

        A call that is made later connects anew. A *connection_pool* stays open: who made it closes it.
        """
        with self._clients_lock:
            client = self._clients.pop((asyncio.get_running_loop(), _process.pid), None)
        if client is not None:
            await client.close()

    async def get_bytes(self, key: str) -> bytes | None:
        """Return the bytes kept under *key*, or None; text is in the *encoding* that it was set with.

        Raises:
            BackendError: If the server does not answer.
        """
        value: bytes | None = await self._ask("get", "GET", key)
        return value

    async def set_bytes(self, key: str, value: bytes, timeout: float | None = None) -> None:
        """Keep *value* under *key* for *timeout* seconds (fractions count; None for *default_timeout*).

        Raises:
            BackendError: If the server does not answer or refuses.
            ValueError: If *timeout* is not positive, or a bool.
        """
        await self._ask("set", "SET", key, value, *self._expiry(timeout))

    async def delete_pattern(self, pattern: str) -> int:
        r"""Delete the keys that match *pattern* and return how many there were.

        Goes through all keys of the database, in steps that hold up nobody; a key that is set meanwhile may stay.

        Args:
            pattern: A glob as Redis knows it: ``*``, ``?``, ``[ab]``; a backslash escapes.

        Raises:
            BackendError: If the server does not answer or refuses; some keys may be gone by then.
        """
        deleted, cursor = 0, None
        while cursor != 0:
            cursor, keys = await self._ask(
                "delete_pattern", "SCAN", cursor or 0, "MATCH", pattern, "COUNT", KEYS_PER_SCAN
            )
            for key in keys if self._told else ():
                self._tell(key.decode("utf-8", "surrogateescape"))
            if keys:
                deleted += await self._ask("delete_pattern", "UNLINK", *keys)
        return deleted

    async def ping(self) -> None:
        """Return when the server has answered.

        Raises:
            BackendError: If it does not.
        """
        await self._ask("ping", "PING")

    async def size(self) -> int:
        """Return the number of keys in the database.

        Raises:
            BackendError: If the server does not answer.
        """
        return int(await self._ask("size", "DBSIZE"))

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the bytes under each of *keys*, read at one instant.

        Raises:
            BackendError: If the server does not answer.
        """
        return await self._read("get_many", keys) if keys else []

    async def get_beside(self, key: str, others: Sequence[str]) -> tuple[bytes | None, list[bytes | None]]:
        """Return the bytes under *key*, and those under each of *others*, all read at one instant.

        Raises:
            BackendError: If the server does not answer.
        """
        value, *beside = await self._read("get", [key, *others])
        return value, beside

    async def get_batched(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the bytes under each of *keys*, read at one instant, within the *operation_timeout*.

        Raises:
            BackendError: If the server does not answer.
        """
        return await self._read("get", keys)

    async def run_script(self, script: str, keys: Sequence[str], args: Sequence[str | int]) -> Any:
        """Run the Lua *script* atomically and return its answer; strings in it are bytes.

        Raises:
            BackendError: If the server does not answer or refuses, or the script fails.
        """
        command = _script_call(script, keys, args)
        return await self._run(
            "run_script",
            lambda client: _with_script(client, script, lambda: client.execute_command(*command, **RAW)),
        )

    async def set_and_run(
        self,
        key: str,
        value: bytes,
        timeout: float | None,
        script: str,
        keys: Sequence[str],
        args: Sequence[str | int],
    ) -> None:
        """Run *script*, then keep *value* under *key* for *timeout* seconds, in one round trip.

        The two are not one transaction: where the script fails, the value may be kept all the same.

        Raises:
            BackendError: If the server does not answer or refuses, or the script fails.
            ValueError: If *timeout* is not positive, or a bool.
        """
        commands = (_script_call(script, keys, args), ("SET", key, value, *self._expiry(timeout)))
        await self._run(
            "set", lambda client: _with_script(client, script, lambda: _in_one_round_trip(client, commands))
        )

    def watch(self, told: Callable[[str], None]) -> None:
        """Call *told* with the key at each later `set` and `delete`, and with those of `delete_pattern`."""
        self._told.append(told)

    def _tell(self, key: str) -> None:
        for told in self._told:
            told(key)

    def _expiry(self, timeout: float | None) -> tuple[str, int]:
        seconds = checked_timeout(self._default_timeout if timeout is None else timeout)
        return "PX", max(1, round(seconds * 1000))

    async def _ask(self, operation: str, name: str, *args: str | bytes | int) -> Any:
        command = _command(name, *args)
        return await self._run(operation, lambda client: client.execute_command(*command, **RAW))

    async def _read(self, operation: str, keys: Sequence[str]) -> list[bytes | None]:
        """Return the bytes under each of *keys*, read at one instant, by one command with what others ask now."""
        client = self._clients.get((asyncio.get_running_loop(), _process.pid))
        if client is None:
            client = await self._opened(operation)
        answer = await client.reader.ask(keys)
        if isinstance(answer, Exception):
            raise self._failure(operation, answer)
        return answer

    async def _opened(self, operation: str) -> _Client:
        try:
            return await self._client()
        except FAILURES as error:
            failure = self._failure(operation, error)
            raise failure from failure.__cause__

    async def _run(self, operation: str, ask: Callable[[Any], Awaitable[T]]) -> T:
        client = await self._opened(operation)
        try:
            return await client.run(ask)
        except FAILURES as error:
            failure = self._failure(operation, error)
            raise failure from failure.__cause__

    def _failure(self, operation: str, error: Exception) -> BackendError:
        """Return what is raised for *error*, which is its cause unless it shows the password."""
        said = str(error) or type(error).__name__
        if said.startswith(NOT_LOGGED_IN):
            said = "the server wants a password, and none is given"
        elif isinstance(error, MasterNotFoundError):
            said = NOT_BY_SENTINELS if _is_shut_out(error) else re.sub(" : <.* - ", ": ", said)
        reason = _without(self._server.address.password, said)
        message = f"{operation} failed at {self._server.address}: {reason}"
        failure = BackendError(message, fault=_fault_of(error))
        failure.__cause__ = error if reason == said else None
        return failure

    async def _client(self) -> _Client:
        loop, pid = asyncio.get_running_loop(), _process.pid
        client = self._clients.get((loop, pid))
        if client is None:
            client = self._server.client(self._operation_timeout)
            with self._clients_lock:
                self._forget_ended_loops(pid)
                self._clients[loop, pid] = client
            await client.open()
        return client

    def _forget_ended_loops(self, pid: int) -> None:
        """Forget the clients of loops that have ended; those of a parent process are its own, and left alone."""
        for loop, of in list(self._clients):
            if of == pid and loop.is_closed():
                del self._clients[loop, of]


class _Process:
    """The number of this process, which a fork changes: to ask the system each time costs as much as a look-up."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._note)

    def _note(self) -> None:
        self.pid = os.getpid()


_process = _Process()


class _Client:
    """The connections that one event loop has in one process, and the turns that calls take at them."""

    def __init__(
        self,
        redis: Any,
        connections: int,
        read_timeout: float,
        *owned: Closing,
        keeps: bool = False,
        is_own: bool = True,
    ) -> None:
        self._redis = redis
        self._turns = asyncio.Semaphore(connections)
        self._lender = _Lender(redis.connection_pool, self._turns, keeps=keeps, is_own=is_own)
        self._served = Tally()
        lanes = min(LANES, max(1, connections - 1))
        self.reader = Reader(self._lender.lend, read_timeout, lanes, self._served)
        self._calls = 0
        self._idle = asyncio.Event()
        self._life = _until_closed((self._lender.close, *owned), _process.pid)

    async def open(self) -> None:
        """Have the running event loop close this when it ends."""
        await anext(self._life)

    async def close(self) -> None:
        """Close what is owned, if it was not closed before, once the calls under way have ended."""
        with suppress(TimeoutError):
            async with asyncio.timeout(MAX_CLOSE_S):
                await self.reader.settle()
                if self._calls:
                    self._idle.clear()
                    await self._idle.wait()
        await self.reader.close()
        await self._life.aclose()

    async def run(self, ask: Callable[[Any], Awaitable[T]]) -> T:
        """Return what *ask* gets from the client, once a connection is free.

        Raises:
            MaxConnectionsError: If none becomes free in time.
        """
        self._calls += 1
        try:
            return await self._run(ask)
        finally:
            self._calls -= 1
            if not self._calls:
                self._idle.set()

    async def _run(self, ask: Callable[[Any], Awaitable[T]]) -> T:
        try:
            async with asyncio.timeout(MAX_WAIT_S):
                if self._turns.locked():
                    await self._lender.release_kept()
                await self._turns.acquire()
        except TimeoutError:
            raise MaxConnectionsError(f"no connection became free within {MAX_WAIT_S} s") from None
        try:
            await self._lender.ready()
            answer = await _anew_if_lost(lambda: ask(self._redis))
            self._served.total += 1
        except ReadOnlyError:
            await self._lender.let_go()
            raise
        except asyncio.CancelledError:
            self._lender.prepare()
            raise
        else:
            return answer
        finally:
            self._turns.release()


class _Lender:
    """Lends connections of *pool*, each with one of the *turns* that all calls take at them.

    If it *keeps* what is given back, it is lent again without a way through the pool, which costs a fifth of a
    look-up, until others want a turn. A connection that has to be made is made whether or not who wants it stays,
    and another where who had one left in the midst of it: if to make it and to use it took longer than a call may,
    there would never be an answer. Of a pool that is not our *own* none is made for nobody.
    """

    def __init__(self, pool: Any, turns: asyncio.Semaphore, *, keeps: bool, is_own: bool) -> None:
        self._pool = pool
        self._turns = turns
        self._keeps = keeps
        self._is_open = is_own
        """Whether a connection may be made for nobody."""
        self._kept: _Line | None = None
        self._left: dict[asyncio.Task[None], float] = {}
        """What makes a connection that nobody waits for any more, and when it began."""
        self._may_let_go_at = -math.inf

    async def lend(self) -> _Line:
        """Return a connection when it is the reader's turn to have one."""
        line, self._kept = self._kept, None
        if line is not None:
            if await _is_ready(line.connection):
                return line
            await line.release()
        await self._turns.acquire()
        try:
            await self.ready()
            connection = await _anew_if_lost(self._pool.get_connection)
            return _Line(self, self._pool, connection, self._turns)
        except BaseException:
            self._turns.release()
            raise

    async def ready(self) -> None:
        """Return when the pool has a connection that need not be made, or could not make one.

        Raises:
            RedisError, OSError: If none can be made.
        """
        free = self._pool._get_free_connections()  # noqa: SLF001 - no other way to know them
        if not self._is_open or (free and await _is_ready(free[-1])):
            return
        making, began_at = self._taken_over() or self._begin_to_make()
        try:
            await asyncio.shield(making)
        except asyncio.CancelledError:
            self._leave(making, began_at)
            raise

    def prepare(self) -> None:
        """Have a connection made for who wants one next, unless one is being made for nobody already."""
        if self._is_open and not self._left:
            self._leave(*self._begin_to_make())

    def _taken_over(self) -> tuple[asyncio.Task[None], float] | None:
        """Return what makes a connection for nobody, and has not done so for long; what has is ended."""
        now = time.monotonic()
        while self._left:
            making, began_at = self._left.popitem()
            if now - began_at < MAKING_S:
                return making, began_at
            making.cancel()
        return None

    def _begin_to_make(self) -> tuple[asyncio.Task[None], float]:
        return asyncio.create_task(self._make(), context=Context()), time.monotonic()

    def _leave(self, making: asyncio.Task[None], began_at: float) -> None:
        making.add_done_callback(self._made_for_nobody)
        if not self._is_open:
            making.cancel()
        elif not making.done():
            self._left[making] = began_at

    async def _make(self) -> None:
        await self._pool.release(await _anew_if_lost(self._pool.get_connection))

    def _made_for_nobody(self, making: asyncio.Task[None]) -> None:
        self._left.pop(making, None)
        _ = making.cancelled() or making.exception()

    async def close(self) -> None:
        """End what makes connections for nobody; none is made so later."""
        self._is_open = False
        left = [*self._left]
        for making in left:
            making.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def keep(self, line: _Line) -> bool:
        """Keep *line* for the next who asks, if that may be, and return whether it is kept."""
        if not self._keeps or self._kept is not None or line.is_wanted or not line.connection.is_connected:
            return False
        self._kept = line
        return True

    async def release_kept(self) -> None:
        """Let others have the connection that is kept, if one is."""
        line, self._kept = self._kept, None
        if line is not None:
            await line.release()

    async def let_go(self) -> None:
        """Have all connections made anew before they are used again: their server may be the primary no more.

        `disconnect` of a pool would wait for each to close, and then spoil those that were made anew meanwhile.
        """
        now = asyncio.get_running_loop().time()
        if now < self._may_let_go_at:
            return
        self._may_let_go_at = now + LET_GO_EVERY_S
        await self.release_kept()
        for connection in self._pool._get_in_use_connections():  # noqa: SLF001 - no other way to know them
            connection.mark_for_reconnect()
        for connection in [*self._pool._get_free_connections()]:  # noqa: SLF001
            with suppress(*FAILURES):
                await connection.disconnect(nowait=True)


class _Line:
    """A connection of a pool, and the turn that goes with it, while the reader has them.

    The reader has one timer for all that it does, and ends what comes too late; two more for each command would
    cost as much as the command.
    """

    def __init__(self, lender: _Lender, pool: Any, connection: Any, turns: asyncio.Semaphore) -> None:
        self._lender = lender
        self._pool = pool
        self.connection = connection
        self._turns = turns
        self._socket_timeout, connection.socket_timeout = connection.socket_timeout, None

    @property
    def is_wanted(self) -> bool:
        return self._turns.locked() or self.connection.should_reconnect()

    async def ask(self, keys: Sequence[str]) -> list[bytes | None]:
        command = _mget(keys)
        try:
            values = await self.connection.retry.call_with_retry(
                lambda: _anew_if_lost(lambda: self._ask(command)), self._lost
            )
        except ResponseError as error:
            raise RefusedError(error) from error
        except asyncio.CancelledError:
            self._lender.prepare()
            raise
        if not isinstance(values, list) or len(values) != len(keys):
            await self.connection.disconnect(nowait=True)
            raise InvalidResponse("an answer was no answer to MGET")
        return values

    async def _ask(self, command: bytes) -> Any:
        await self.connection.send_packed_command(command)
        return await self.connection.read_response(disable_decoding=True, timeout=math.inf)

    async def _lost(self, error: Exception) -> None:
        await self.connection.disconnect(nowait=True, error=error)

    async def give_back(self) -> None:
        if not self._lender.keep(self):
            await self.release()

    async def release(self) -> None:
        """Give the connection back to the pool; nothing that ends badly here is raised."""
        self.connection.socket_timeout = self._socket_timeout
        try:
            with suppress(*FAILURES):
                await self._pool.release(self.connection)
        finally:
            self._turns.release()


async def _until_closed(owned: Sequence[Closing], pid: int) -> AsyncGenerator[None]:
    """Close what is *owned* when this is closed: by us, or by the event loop, which does so when it ends."""
    try:
        yield
    finally:
        for close in owned if _process.pid == pid else ():
            with suppress(*FAILURES):
                await close()


class _Server(Protocol):
    """What is connected to."""

    address: RedisUrl

    def client(self, read_timeout: float) -> _Client:
        """Return a client for the running event loop, which reads within *read_timeout* seconds.

        It connects with its first call.

        Raises:
            OSError: If a file of certificates cannot be read.
        """
        ...


class _PlannedServer:
    """A server, or a set of servers under Sentinel, that is connected to by a plan."""

    def __init__(self, plan: ConnectionPlan) -> None:
        self.address = plan.server
        self._plan = plan

    def client(self, read_timeout: float) -> _Client:
        redis, owned = (
            self._single() if self.address.service is None else self._under_sentinel(self.address.service)
        )
        keeps = self.address.service is None
        return _Client(redis, self._plan.max_connections, read_timeout, *owned, keeps=keeps)

    def _single(self) -> tuple[Redis, list[Closing]]:
        options = self._session() | self._endpoint()
        pool = ConnectionPool(max_connections=self._plan.max_connections, **options)
        return Redis(connection_pool=pool), [pool.aclose]

    def _under_sentinel(self, service: str) -> tuple[Redis, list[Closing]]:
        make: Any = Sentinel
        sentinel = make(())
        sentinel.sentinels = [
            Redis.from_pool(ConnectionPool(**self._socket(), **self._to_sentinels(), **self._at(*node)))
            for node in self.address.nodes
        ]
        by = {"connection_class": _SentinelConnection} | self._by_tls(_SentinelTlsConnection)
        options = self._session() | by
        redis = sentinel.master_for(service, max_connections=self._plan.max_connections, **options)
        return redis, [redis.connection_pool.aclose, sentinel.aclose]

    def _endpoint(self) -> dict[str, Any]:
        if self.address.path is not None:
            return {"connection_class": _UnixConnection, "path": self.address.path}
        (node,) = self.address.nodes
        return self._at(*node)

    def _at(self, host: str, port: int) -> dict[str, Any]:
        return {"connection_class": _TcpConnection, "host": host, "port": port} | self._by_tls(_TlsConnection)

    def _by_tls(self, connection_class: type[_SharedTlsContext]) -> dict[str, Any]:
        if self._plan.tls is None:
            return {}
        return {"connection_class": connection_class, "tls_context": self._tls_context}

    def _session(self) -> dict[str, Any]:
        """Return what holds for each connection to a server that keeps values."""
        return self._socket() | {
            "username": self.address.username,
            "password": self.address.password,
            "db": self.address.db or 0,
            "health_check_interval": self._plan.health_check_interval,
        }

    def _to_sentinels(self) -> dict[str, Any]:
        return {"username": self._plan.sentinel_username, "password": self._plan.sentinel_password}

    def _socket(self) -> dict[str, Any]:
        """Return what holds for each connection, to a Sentinel too."""
        plan = self._plan
        retried = (RedisConnectionError, RedisTimeoutError) if plan.retry_on_timeout else (RedisConnectionError,)
        options: dict[str, Any] = {
            "socket_timeout": plan.socket_timeout,
            "socket_connect_timeout": plan.socket_connect_timeout,
            "retry": Retry(NoBackoff(), 1, retried),
            "protocol": 3,
            "driver_info": None,
            # With these notifications the pool would take connections with unread answers for good ones.
            "maint_notifications_config": MaintNotificationsConfig(enabled=False),
        }
        if self.address.path is None:
            options["socket_keepalive"] = plan.keepalive is not None
            options["socket_keepalive_options"] = plan.keepalive
        return options

    @cached_property
    def _tls_context(self) -> ssl.SSLContext | None:
        return None if self._plan.tls is None else self._plan.tls.context()


class _GivenPool:
    """A pool that somebody else made, and closes."""

    def __init__(self, pool: ConnectionPool) -> None:
        self.address = _address(pool)
        self._pool = pool

    def client(self, read_timeout: float) -> _Client:
        return _Client(Redis(connection_pool=self._pool), self._pool.max_connections, read_timeout, is_own=False)


class _PromptHello:
    """Says HELLO first: a PING before it, as redis-py sends one, would double what a hung server costs a call."""

    async def on_connect_check_health(self, check_health: bool = True) -> None:
        """Log in on a connection that was just made; *check_health* is not asked for."""
        say_hello: Any = super()
        await say_hello.on_connect_check_health(check_health=False)


class _SharedTlsContext:
    """Connects with a context that is shared: to make one for each connection would block the loop each time."""

    ssl_context: RedisSSLContext

    def __init__(self, *, tls_context: ssl.SSLContext, **options: Any) -> None:
        super().__init__(**options)
        self.ssl_context.context = tls_context


class _Writer:
    """Writes as *writer* does, but nothing once the connection is lost.

    Event loops raise what redis-py does not know for that, or nothing: asyncio's may watch the file descriptor for
    ever, so that the next connection which gets that one hangs.
    """

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)

    def writelines(self, parts: Iterable[bytes]) -> None:
        if self._writer.is_closing():
            raise ConnectionResetError(LOST)
        self._writer.writelines(parts)


class _Heeds:
    """Heeds that the connection was lost before a write, and that the call was cancelled during one."""

    _writer: Any

    async def _connect(self) -> None:
        await super()._connect()  # type: ignore[misc]
        self._writer = _Writer(self._writer)

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        """Send *command* as it is.

        redis-py writes within `asyncio.wait_for`, which before Python 3.12 returns though it was cancelled, if
        what it awaits has just ended: who gave the call up would wait for its answer all the same.
        """
        cancelled = _times_cancelled()
        await super().send_packed_command(command, check_health)  # type: ignore[misc]
        if _times_cancelled() > cancelled:
            await self.disconnect(nowait=True)  # type: ignore[attr-defined]
            raise asyncio.CancelledError


class _TcpConnection(_Heeds, _PromptHello, Connection):
    pass


class _TlsConnection(_Heeds, _PromptHello, _SharedTlsContext, SSLConnection):
    pass


class _UnixConnection(_Heeds, _PromptHello, UnixDomainSocketConnection):
    pass


class _SentinelConnection(_Heeds, SentinelManagedConnection):
    pass


class _SentinelTlsConnection(_Heeds, _SharedTlsContext, SentinelManagedSSLConnection):
    pass


def _times_cancelled() -> int:
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


def _server(url: str | NotGiven, url_source: str | None, options: RedisOptions) -> _Server:
    pool = options.get("connection_pool")
    if pool is None:
        if "max_connections" in options and "max_connections_per_pool" in options:
            because = "max_connections is given too"
            logger.warning("backend.option_ignored", option="max_connections_per_pool", because=because)
        address = parse_redis_url(DEFAULT_URL if url is NotGiven.NOT_GIVEN else url, url_source)
        return _PlannedServer(read_options(address, options))
    if not isinstance(pool, ConnectionPool):
        kind = f"{type(pool).__module__}.{type(pool).__qualname__}"
        raise ConfigurationError(f"connection_pool must be a ConnectionPool of redis.asyncio, not a {kind}")
    check_pool_stands_alone(options if url is NotGiven.NOT_GIVEN else {"url": url, **options})
    return _GivenPool(pool)


def _address(pool: ConnectionPool) -> RedisUrl:
    options = pool.connection_kwargs
    by_tls = issubclass(pool.connection_class, SSLConnection)
    scheme, at = "rediss" if by_tls else "redis", [options]
    if isinstance(pool, SentinelConnectionPool):
        at = [each.connection_pool.connection_kwargs for each in pool.sentinel_manager.sentinels]
        scheme = f"{scheme}+sentinel"
    return RedisUrl(
        scheme=UNIX if "path" in options else scheme,
        nodes=tuple((each.get("host", "localhost"), each.get("port", 6379)) for each in at),
        path=options.get("path"),
        service=getattr(pool, "service_name", None),
        username=options.get("username"),
        password=options.get("password"),
        db=int(options.get("db") or 0),
    )


def _command(name: str, *args: str | bytes | int) -> tuple[str | bytes | int, ...]:
    return name, *(arg.encode("utf-8", "surrogatepass") if isinstance(arg, str) else arg for arg in args)


async def _is_ready(connection: Any) -> bool:
    """Return whether *connection* is made, and the server has said nothing on it that nobody asked for."""
    if not connection.is_connected or connection.should_reconnect():
        return False
    try:
        return not await connection.can_read()
    except FAILURES:
        return False


def _mget(keys: Sequence[str]) -> bytes:
    """Return MGET as it is sent; redis-py copies what it has packed with each key that it adds."""
    encoded = [key.encode("utf-8", "surrogatepass") for key in keys]
    parts = [b"$%d\r\n%b\r\n" % (len(key), key) for key in encoded]
    return b"".join((b"*%d\r\n$4\r\nMGET\r\n" % (len(keys) + 1), *parts))


def _script_call(script: str, keys: Sequence[str], args: Sequence[str | int]) -> tuple[str | bytes | int, ...]:
    return _command("EVALSHA", _digest(script), len(keys), *keys, *args)


@lru_cache(maxsize=64)
def _digest(script: str) -> str:
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()


async def _anew_if_lost(ask: Callable[[], Awaitable[T]]) -> T:
    """Return what *ask* returns; if its connection was lost and redis-py does not know that, ask once more.

    What an event loop says of a connection that cannot be used is raised as an error of redis-py. A pool that was
    given has connections that do not heed a loss themselves.
    """
    try:
        return await ask()
    except (AttributeError, RuntimeError) as error:
        _raise_unless_lost(error)
    try:
        return await ask()
    except (AttributeError, RuntimeError) as error:
        _raise_unless_lost(error)
        raise RedisConnectionError(LOST) from error


def _raise_unless_lost(error: AttributeError | RuntimeError) -> None:
    if str(error).endswith(OF_ANOTHER_LOOP):
        raise _OtherLoopError(OTHER_LOOP) from error
    if not _is_loss(error):
        raise error


def _is_loss(error: AttributeError | RuntimeError) -> bool:
    """Return whether *error* is raised for a write to a lost connection, or to one of a loop that has ended."""
    if isinstance(error, AttributeError):
        return error.name == "_add_writer"
    return str(error).endswith(("the handler is closed", "Event loop is closed"))


async def _with_script(client: Any, script: str, call: Callable[[], Awaitable[T]]) -> T:
    """Return what *call* returns; if the server does not know *script*, tell it and call once more."""
    try:
        return await call()
    except NoScriptError:
        await client.execute_command("SCRIPT LOAD", script)
        return await call()


async def _in_one_round_trip(client: Any, commands: Sequence[Sequence[str | bytes | int]]) -> None:
    pipeline = client.pipeline(transaction=False)
    for command in commands:
        pipeline.execute_command(*command)
    # Raised by the pipeline, an error would carry what was sent.
    for answer in await pipeline.execute(raise_on_error=False):
        if isinstance(answer, Exception):
            raise answer


def _fault_of(error: Exception) -> Fault:
    """Return what *error* says of the server: whatever it answers shows that it is there."""
    if isinstance(error, BackendError):
        return error.fault
    if str(error).startswith(DENIED_IN_SCRIPT) or _is_shut_out(error):
        return Fault.DENIED
    return next((fault for kinds, fault in FAULTS if isinstance(error, kinds)), Fault.REFUSED)


def _is_shut_out(error: Exception) -> bool:
    """Return whether Sentinels were asked for the primary, and one let nobody in."""
    return isinstance(error, MasterNotFoundError) and AuthenticationError.__name__ in str(error)


def _without(secret: str | None, text: str) -> str:
    return text.replace(secret, "***") if secret else text

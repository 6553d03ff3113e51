"""`RedisBackend`: the verbs, which keep values in Redis or Valkey.

A call runs on the connections of the event loop that it is made in. Each loop of each process opens its own with
its first call and closes them when it ends; nothing is shared between loops, or across a fork.
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, Final, TypeVar, Unpack

from app_cache.backends.base import CacheBackend, checked_timeout
from app_cache.backends.redis.commands import RAW, command_of, in_one_round_trip, script_call, with_script
from app_cache.backends.redis.faults import FAILURES, failure_of
from app_cache.backends.redis.lending import process
from app_cache.backends.redis.options import (
    SECONDS,
    TEXT_ENCODING,
    YES_OR_NO,
    NotGiven,
    check,
    check_options,
)
from app_cache.backends.redis.servers import server_of
from app_cache.backends.text import no_text
from app_cache.backends.watchers import Watchers
from app_cache.errors import BackendError, Fault

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from app_cache.backends.redis.lending import Client
    from app_cache.backends.redis.options import RedisOptions

T = TypeVar("T")

KEYS_PER_SCAN: Final = 1000


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
            and the second attempt included. It bounds reads of many keys even where they are called directly;
            *socket_timeout* bounds the other calls that are.
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
        self._server = server_of(url, url_source, options)
        self._watchers = Watchers()
        self._clients: dict[tuple[asyncio.AbstractEventLoop, int], Client] = {}
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
        self._watchers.tell(key)
        await self._ask("set", "SET", key, encoded, *expiry)

    async def delete(self, key: str) -> None:
        """Forget *key*.

        Raises:
            BackendError: If the server does not answer or refuses.
        """
        self._watchers.tell(key)
        await self._ask("delete", "UNLINK", key)

    async def close(self) -> None:
        """Close the connections of the running event loop; those of other loops are closed when these end.

        A call that is made later connects anew. A *connection_pool* stays open: who made it closes it.
        """
        with self._clients_lock:
            client = self._clients.pop((asyncio.get_running_loop(), process.pid), None)
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
            for key in keys if self._watchers else ():
                self._watchers.tell(key.decode("utf-8", "surrogateescape"))
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
        command = script_call(script, keys, args)
        return await self._run(
            "run_script",
            lambda client: with_script(client, script, lambda: client.execute_command(*command, **RAW)),
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
        commands = (script_call(script, keys, args), ("SET", key, value, *self._expiry(timeout)))
        await self._run(
            "set", lambda client: with_script(client, script, lambda: in_one_round_trip(client, commands))
        )

    def watch(self, told: Callable[[str], None]) -> Callable[[], object]:
        """Call *told* with the key at each later `set` and `delete`, and with those of `delete_pattern`.

        Returns a function that ends this.
        """
        return self._watchers.add(told)

    def _expiry(self, timeout: float | None) -> tuple[str, int]:
        seconds = checked_timeout(self._default_timeout if timeout is None else timeout)
        return "PX", max(1, round(seconds * 1000))

    async def _ask(self, operation: str, name: str, *args: str | bytes | int) -> Any:
        command = command_of(name, *args)
        return await self._run(operation, lambda client: client.execute_command(*command, **RAW))

    async def _read(self, operation: str, keys: Sequence[str]) -> list[bytes | None]:
        """Return the bytes under each of *keys*, read at one instant, by one command with other callers' keys."""
        client = self._clients.get((asyncio.get_running_loop(), process.pid))
        if client is None:
            client = await self._opened(operation)
        answer = await client.reader.ask(keys)
        if isinstance(answer, Exception):
            raise self._failure(operation, answer)
        return answer

    async def _opened(self, operation: str) -> Client:
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
        return failure_of(operation, error, self._server.address)

    async def _client(self) -> Client:
        loop, pid = asyncio.get_running_loop(), process.pid
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

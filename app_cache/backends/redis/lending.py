"""Connections as they are lent: whose turn it is, and who makes them, keeps them and lets go of them.

A `Client` has the connections of one event loop in one process: it is opened with the first call of the loop, and
closed when the loop ends. A call waits its turn, first come, first served, and for a bounded time; look-ups have a
`Reader`, to which a connection is lent.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from contextlib import suppress
from contextvars import Context
from typing import TYPE_CHECKING, Any, Final, TypeVar

from redis.exceptions import InvalidResponse, MaxConnectionsError, ReadOnlyError, ResponseError

from app_cache.backends.redis.commands import anew_if_lost, mget
from app_cache.backends.redis.faults import FAILURES
from app_cache.backends.redis.reader import LANES, Reader, RefusedError, Tally

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

    Closing = Callable[[], Awaitable[None]]

T = TypeVar("T")

MAX_WAIT_S: Final = 5.0
"""How long a call waits for its turn at a connection: a pool that is full is busy, not broken."""
LET_GO_EVERY_S: Final = 1.0
"""Seconds that must pass before all connections are let go of again: a server may stay read-only."""
MAX_CLOSE_S: Final = 1.0
"""How long `close` waits for calls under way."""
MAKING_S: Final = 5.0
"""Seconds after which a task that makes a connection no call waits for is cancelled, not waited for again."""


class _Process:
    """The number of this process, which a fork changes: to ask the system each time costs as much as a look-up."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._note)

    def _note(self) -> None:
        self.pid = os.getpid()


process = _Process()


class Client:
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
        self._life = _until_closed((self._lender.close, *owned), process.pid)

    async def open(self) -> None:
        """Have the running event loop close this when it ends."""
        await anext(self._life)

    async def close(self) -> None:
        """Close the lender and the owned pools, once the calls under way have ended or `MAX_CLOSE_S` have passed.

        What is closed already stays so.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(MAX_CLOSE_S):
                await self.reader.settle()
                if self._calls:
                    self._idle.clear()
                    await self._idle.wait()
        await self.reader.close()
        await self._life.aclose()

    async def run(self, ask: Callable[[Any], Awaitable[T]]) -> T:
        """Return what *ask* returns when it is given redis-py's client, once a connection is free.

        Raises:
            MaxConnectionsError: If no connection becomes free in time.
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
            answer = await anew_if_lost(lambda: ask(self._redis))
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
    """Lends the connections of *pool* to the reader, each with one of the *turns* that all calls take.

    With *keeps*, a connection that is given back is kept and lent again, without the way through the pool, which
    costs a sixth of a look-up, until other calls want its turn.

    A connection that has to be made is made even if the call that wants it is cancelled, and another one is made
    when a call is cancelled while it uses its connection: if making and using one took longer than a call may,
    there would never be an answer. With *is_own* False, as for a given pool, none is made that no call waits for.
    """

    def __init__(self, pool: Any, turns: asyncio.Semaphore, *, keeps: bool, is_own: bool) -> None:
        self._pool = pool
        self._turns = turns
        self._keeps = keeps
        self._is_open = is_own
        """Whether connections may be made that no call waits for: only in a pool of our own, and until `close`."""
        self._kept: _Line | None = None
        self._left: dict[asyncio.Task[None], float] = {}
        """The tasks that make a connection no call waits for any more, each with the time at which it began."""
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
            connection = await anew_if_lost(self._pool.get_connection)
            return _Line(self, self._pool, connection, self._turns)
        except BaseException:
            self._turns.release()
            raise

    async def ready(self) -> None:
        """Return once the pool has a connection that need not be made; at once if this lender may make none.

        Raises:
            RedisError, OSError: If no connection can be made.
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
        """Begin to make a connection for the next call, unless one is being made that no call waits for."""
        if self._is_open and not self._left:
            self._leave(*self._begin_to_make())

    def _taken_over(self) -> tuple[asyncio.Task[None], float] | None:
        """Return a task that makes a connection no call waits for, and when it began; None if there is none.

        Tasks that began `MAKING_S` ago or earlier are cancelled.
        """
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
        await self._pool.release(await anew_if_lost(self._pool.get_connection))

    def _made_for_nobody(self, making: asyncio.Task[None]) -> None:
        self._left.pop(making, None)
        _ = making.cancelled() or making.exception()

    async def close(self) -> None:
        """Cancel the tasks that make connections no call waits for; no more of them begin."""
        self._is_open = False
        left = [*self._left]
        for making in left:
            making.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def keep(self, line: _Line) -> bool:
        """Keep *line* to be lent next, if it may be kept, and return whether it is."""
        if not self._keeps or self._kept is not None or line.is_wanted or not line.connection.is_connected:
            return False
        self._kept = line
        return True

    async def release_kept(self) -> None:
        """Give the connection that is kept, if one is, back to the pool, and its turn to other calls."""
        line, self._kept = self._kept, None
        if line is not None:
            await line.release()

    async def let_go(self) -> None:
        """Have all connections made anew before they are used again: their server may no longer be the primary.

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

    The reader has one timer for each batch, and ends what comes too late. So the connection's own timeouts are off
    meanwhile: two more timers for each command would cost as much as the command.
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
        command = mget(keys)
        try:
            values = await self.connection.retry.call_with_retry(
                lambda: anew_if_lost(lambda: self._ask(command)), self._lost
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
        """Give the connection back to the pool, and the turn to other calls; a failure here is not raised."""
        self.connection.socket_timeout = self._socket_timeout
        try:
            with suppress(*FAILURES):
                await self._pool.release(self.connection)
        finally:
            self._turns.release()


async def _until_closed(owned: Sequence[Closing], pid: int) -> AsyncGenerator[None]:
    """Call each function of *owned*, once this generator is closed: by us, or by the event loop when it ends.

    *pid*: The process that owns what they close; in another one, a child, they are not called.
    """
    try:
        yield
    finally:
        for close in owned if process.pid == pid else ():
            with suppress(*FAILURES):
                await close()


async def _is_ready(connection: Any) -> bool:
    """Return whether *connection* is made and good, with nothing on it to read that no call asked for."""
    if not connection.is_connected or connection.should_reconnect():
        return False
    try:
        return not await connection.can_read()
    except FAILURES:
        return False

"""Connections: what ours do otherwise than those of redis-py, as classes to combine with its own.

They say HELLO without a PING before it, share one TLS context, write nothing once they are lost, and disconnect
when a call was cancelled while it wrote.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from redis.asyncio.connection import Connection, RedisSSLContext, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.sentinel import SentinelManagedConnection, SentinelManagedSSLConnection

from app_cache.backends.redis.faults import LOST

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable


class _PromptHello:
    """Says HELLO first: a PING before it, as redis-py sends one, would double what a hung server costs a call."""

    async def on_connect_check_health(self, check_health: bool = True) -> None:
        """Log in on a connection that was just made; *check_health* is ignored."""
        say_hello: Any = super()
        await say_hello.on_connect_check_health(check_health=False)


class SharedTlsContext:
    """Connects with a context that is shared: to make one for each connection would block the loop each time."""

    ssl_context: RedisSSLContext

    def __init__(self, *, tls_context: ssl.SSLContext, **options: Any) -> None:
        super().__init__(**options)
        self.ssl_context.context = tls_context


class _Writer:
    """Writes as *writer* does, but nothing once the connection is lost.

    For such a write, event loops raise errors that redis-py does not know, or none: asyncio's may watch the file
    descriptor for ever, so that the next connection which gets that descriptor hangs.
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
    """Notices that the connection was lost before a write, and that the call was cancelled during one."""

    _writer: Any

    async def _connect(self) -> None:
        await super()._connect()  # type: ignore[misc]
        self._writer = _Writer(self._writer)

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        """Send *command* as it is.

        redis-py writes within `asyncio.wait_for`, which before Python 3.12 returns though it was cancelled, if
        what it awaits has just ended: a call that was given up would wait for its answer all the same.
        """
        cancelled = _times_cancelled()
        await super().send_packed_command(command, check_health)  # type: ignore[misc]
        if _times_cancelled() > cancelled:
            await self.disconnect(nowait=True)  # type: ignore[attr-defined]
            raise asyncio.CancelledError


class TcpConnection(_Heeds, _PromptHello, Connection):
    """A connection to one server, or to a Sentinel."""


class TlsConnection(_Heeds, _PromptHello, SharedTlsContext, SSLConnection):
    """A connection to one server, or to a Sentinel, by TLS."""


class UnixConnection(_Heeds, _PromptHello, UnixDomainSocketConnection):
    """A connection to the server at a Unix socket."""


class SentinelConnection(_Heeds, SentinelManagedConnection):
    """A connection to the primary that the Sentinels name."""


class SentinelTlsConnection(_Heeds, SharedTlsContext, SentinelManagedSSLConnection):
    """A connection to the primary that the Sentinels name, by TLS."""


def _times_cancelled() -> int:
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()

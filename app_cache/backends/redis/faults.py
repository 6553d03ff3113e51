"""What went wrong: errors of redis-py and of the network, told as a `BackendError` that says its `Fault`.

No message of an error that is made here shows the password, nor what was sent.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from redis.asyncio.sentinel import MasterNotFoundError
from redis.exceptions import (
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    AuthorizationError,
    InvalidResponse,
    MaxConnectionsError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from app_cache.errors import BackendError, Fault

if TYPE_CHECKING:
    from app_cache.backends.redis.url import RedisUrl


class OtherLoopError(RedisError):
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
    ((RedisConnectionError, RedisTimeoutError, InvalidResponse, OSError, OtherLoopError), Fault.AWAY),
)
"""The fault that each failure shows; the first that fits counts, for the later classes are wider."""
NOT_LOGGED_IN: Final = ("HELLO must be called with the client already authenticated", "Authentication required")
"""How the errors of Valkey and Redis begin which want a password and were given none."""
DENIED_IN_SCRIPT: Final = ("ACL failure in script", "The user executing the script can't run this command")
"""How the errors of Valkey and Redis begin for a script that may not do what it does; no code says it."""
NOT_BY_SENTINELS: Final = "the Sentinels want another sentinel_password than is given, if any is"
_REPEATED: Final = re.compile(r",? with args beginning with:.*", re.DOTALL)
"""How the errors of servers end for a command that they do not know: with its arguments."""
LOST: Final = "Connection lost"
"""The message about a connection that was lost before anything was written to it."""


def failure_of(operation: str, error: Exception, server: RedisUrl) -> BackendError:
    """Return the error to raise for *error*, which is its cause unless that shows the password, or what was sent.

    Args:
        operation: The verb that failed.
        error: What it ended with: one of `FAILURES`, or a `BackendError` of the reader.
        server: The server that was asked, with the password that no message may show.
    """
    said = str(error) or type(error).__name__
    if said.startswith(NOT_LOGGED_IN):
        said = "the server wants a password, and none is given"
    elif isinstance(error, MasterNotFoundError):
        said = NOT_BY_SENTINELS if _is_shut_out(error) else re.sub(" : <.* - ", ": ", said)
    reason = _without(server.password, _REPEATED.sub("", said))
    failure = BackendError(f"{operation} failed at {server}: {reason}", fault=_fault_of(error))
    failure.__cause__ = error if reason == said else None
    return failure


def _fault_of(error: Exception) -> Fault:
    """Return the fault that *error* shows; any answer of the server shows that it is there."""
    if isinstance(error, BackendError):
        return error.fault
    if str(error).startswith(DENIED_IN_SCRIPT) or _is_shut_out(error):
        return Fault.DENIED
    return next((fault for kinds, fault in FAULTS if isinstance(error, kinds)), Fault.REFUSED)


def _is_shut_out(error: Exception) -> bool:
    """Return whether Sentinels were asked for the primary, and one of them refused the log-in."""
    return isinstance(error, MasterNotFoundError) and AuthenticationError.__name__ in str(error)


def _without(secret: str | None, text: str) -> str:
    return text.replace(secret, "***") if secret else text

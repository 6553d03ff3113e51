"""Commands as they are sent, and sent once more where the first time was in vain.

Keys and scripts are UTF-8, whatever the encoding of values is, and answers are bytes. A command whose connection
is lost is sent anew, and a script that the server does not know is loaded into it.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, TypeVar

from redis.client import NEVER_DECODE
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError

from app_cache.backends.redis.faults import LOST, OtherLoopError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

T = TypeVar("T")

OTHER_LOOP: Final = "connection_pool has a connection of another event loop: give each loop a backend with a pool"
OF_ANOTHER_LOOP: Final = ("attached to a different loop", "is bound to a different event loop")
"""How asyncio's messages about an object of another event loop end."""
RAW: Final = {NEVER_DECODE: True}
"""An option of `execute_command`: answers come as bytes, even from a given pool that decodes."""


def command_of(name: str, *args: str | bytes | int) -> tuple[str | bytes | int, ...]:
    """Return the command *name* with *args*, text among them as bytes, as `execute_command` takes it."""
    return name, *(arg.encode("utf-8", "surrogatepass") if isinstance(arg, str) else arg for arg in args)


def mget(keys: Sequence[str]) -> bytes:
    """Return MGET of *keys* as it is sent; redis-py would copy what it has packed with each key that it adds."""
    encoded = [key.encode("utf-8", "surrogatepass") for key in keys]
    parts = [b"$%d\r\n%b\r\n" % (len(key), key) for key in encoded]
    return b"".join((b"*%d\r\n$4\r\nMGET\r\n" % (len(keys) + 1), *parts))


def script_call(script: str, keys: Sequence[str], args: Sequence[str | int]) -> tuple[str | bytes | int, ...]:
    """Return the command that runs *script*, which the server is taken to know."""
    return command_of("EVALSHA", _digest(script), len(keys), *keys, *args)


@lru_cache(maxsize=64)
def _digest(script: str) -> str:
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()


async def anew_if_lost(ask: Callable[[], Awaitable[T]]) -> T:
    """Return what *ask* returns; if its connection was lost and redis-py does not know that, ask once more.

    An event loop's error about a connection that cannot be used is raised as an error of redis-py. The connections
    of a given pool, unlike ours, do not heed a loss themselves.
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
        raise OtherLoopError(OTHER_LOOP) from error
    if not _is_loss(error):
        raise error


def _is_loss(error: AttributeError | RuntimeError) -> bool:
    """Return whether *error* is raised for a write to a lost connection, or to one of a loop that has ended."""
    if isinstance(error, AttributeError):
        return error.name == "_add_writer"
    return str(error).endswith(("the handler is closed", "Event loop is closed"))


async def with_script(client: Any, script: str, call: Callable[[], Awaitable[T]]) -> T:
    """Return what *call* returns; if the server does not know *script*, tell it and call once more."""
    try:
        return await call()
    except NoScriptError:
        await client.execute_command("SCRIPT LOAD", script)
        return await call()


async def in_one_round_trip(client: Any, commands: Sequence[Sequence[str | bytes | int]]) -> None:
    """Send *commands* together, and raise the error of the first one that failed."""
    pipeline = client.pipeline(transaction=False)
    for command in commands:
        pipeline.execute_command(*command)
    # Raised by the pipeline, an error would carry what was sent.
    for answer in await pipeline.execute(raise_on_error=False):
        if isinstance(answer, Exception):
            raise answer

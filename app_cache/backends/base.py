"""What a backend is, and what more one may be able to do.

A backend keeps strings under keys for a time. Four coroutines make one; everything in this package works on
those four. What a backend can do beyond them is a *capability*: a protocol below, asked for with
`capability`, never a method of the base class that some backends cannot keep.
"""

from __future__ import annotations

import inspect
import sys
from abc import ABC, abstractmethod
from math import inf
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from app_cache.errors import BackendError, ConfigurationError, Fault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from typing_extensions import TypeForm

T = TypeVar("T")

OPERATION_TIMEOUT_S = 0.25
"""Seconds that one operation may take if its backend names no ``operation_timeout``."""
STALLED_S = 0.05
"""An operation that ends so many seconds after its time was over was held up by this process."""
LAST_LOOK_S = 0.005
"""Seconds after its time is over in which an operation may still end: an answer that came while the event loop
stood still is read only after the loop's timers have run."""


class CacheBackend(ABC):
    """Keeps strings under keys, each for a time: subclass it and write these four coroutines.

    A backend raises `BackendError` when it cannot answer; the middleware takes any error as a miss.
    Constructors do no I/O and need no running event loop.
    """

    @abstractmethod
    async def get(self, key: str) -> str | None:
        """Return the value kept under *key*, or None if there is none or its time is over; ``""`` is a value."""

    @abstractmethod
    async def set(self, key: str, value: str, timeout: int) -> None:
        """Keep *value* under *key* for *timeout* seconds, in place of what was there.

        Raises:
            ValueError: If *timeout* is not positive, or a bool.
        """

    @abstractmethod
    async def delete(self, key: str) -> None:
        """Forget *key*; one that is absent is no error."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of connections and tasks; may be called twice, and after a failure."""


class BytesBackend(Protocol):
    """Keeps bytes as they are, so that a stored response needs no text encoding."""

    async def get_bytes(self, key: str) -> bytes | None:
        """Return the bytes kept under *key*, or None; a value set as text comes as the backend wrote it: UTF-8."""
        ...

    async def set_bytes(self, key: str, value: bytes, timeout: float) -> None:
        """Keep *value* under *key* for *timeout* seconds (fractions count)."""
        ...


class PatternBackend(Protocol):
    """Deletes keys by a glob."""

    async def delete_pattern(self, pattern: str) -> int:
        r"""Delete the keys that match *pattern* and return how many there were.

        Args:
            pattern: A glob as Redis knows it: ``*``, ``?``, ``[ab]``; a backslash escapes.

        Raises:
            BackendError: If the backend cannot be reached; some keys may be gone by then.
            ConfigurationError: If *pattern* is longer than the backend can match in bounded time, as 256
                characters are for one in memory.
        """
        ...


class PingBackend(Protocol):
    """Can say cheaply whether it is there."""

    async def ping(self) -> None:
        """Return when the backend has answered; raise `BackendError` if it does not."""
        ...


class SizedBackend(Protocol):
    """Knows how many keys it holds."""

    async def size(self) -> int:
        """Return the number of keys held, those of other users of the same server included."""
        ...


class LocalBackend(Protocol):
    """Lives in this process: objects that must live exactly as long as its values can be kept beside them."""

    def beside(self, name: str, make: Callable[[], T]) -> T:
        """Return the object kept under *name*, made by *make* when first asked for; it counts towards no bound."""
        ...


class ScriptBackend(Protocol):
    """Runs Lua scripts atomically and reads many keys at one instant, as Redis and Valkey do."""

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the bytes under each of *keys*, read at one instant."""
        ...

    async def run_script(self, script: str, keys: Sequence[str], args: Sequence[str | int]) -> Any:
        """Run the Lua *script* atomically and return its answer; strings in it are bytes."""
        ...


class CombinedBackend(Protocol):
    """Reads a value together with others, or keeps one and runs a script, in one round trip."""

    async def get_beside(self, key: str, others: Sequence[str]) -> tuple[bytes | None, list[bytes | None]]:
        """Return the bytes under *key*, and those under each of *others*, all read at one instant."""
        ...

    async def set_and_run(
        self,
        key: str,
        value: bytes,
        timeout: float,
        script: str,
        keys: Sequence[str],
        args: Sequence[str | int],
    ) -> None:
        """Run *script*, then keep *value* under *key* for *timeout* seconds, in one round trip."""
        ...


class BatchingBackend(Protocol):
    """Reads together what callers ask for at one moment, in bounded time; a cancelled caller is let go at once."""

    async def get_batched(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the bytes under each of *keys*, read at one instant, within the ``operation_timeout``."""
        ...


class Lent(Protocol):
    """A value that tells whether its backend still has it, so that the backend need not be asked again."""

    value: bytes
    expires_at: float
    """The time from which on the backend no longer has it, by the clock lent with it, whatever *live* says."""
    live: bool
    """Whether the backend has it: False once it is deleted, replaced or evicted, or the backend is closed."""
    read: bool
    """Whether it was served: set it to True then, so that the backend counts it as read."""


class InstantBackend(Protocol):
    """Answers at once, without awaiting anything, and lends what it has."""

    def lend(self, key: str) -> tuple[Lent, Callable[[], float]] | None:
        """Return what `set_bytes` keeps under *key*, and the clock by which it expires; None if there is none."""
        ...


class WatchedBackend(Protocol):
    """Tells its watchers of each key that is set or deleted directly."""

    def watch(self, told: Callable[[str], None]) -> Callable[[], object]:
        """Call *told* with the key at each later `set` and `delete`, before it is sent.

        Returns a function that ends this. It may be called more than once, in any thread, and while other watchers
        are being told: the cache does so when one of its stores is collected as garbage.
        """
        ...


VERBS: dict[type[Any], tuple[str, ...]] = {
    BytesBackend: ("get_bytes", "set_bytes"),
    PatternBackend: ("delete_pattern",),
    PingBackend: ("ping",),
    SizedBackend: ("size",),
    LocalBackend: ("beside",),
    ScriptBackend: ("get_many", "run_script"),
    CombinedBackend: ("get_beside", "set_and_run"),
    BatchingBackend: ("get_batched",),
    InstantBackend: ("lend",),
    WatchedBackend: ("watch",),
}
STANDS_FOR = {
    "get_bytes": "get",
    "set_bytes": "set",
    "get_beside": "get",
    "set_and_run": "set",
    "lend": "get",
    "get_batched": "get_beside",
}
"""The verb that each is called in place of: a subclass that overrides that verb alone wants it to be called."""


NOWHERE = sys.maxsize
"""The place of a verb that no class of the backend has, only the object itself, as a wrapper may."""


def capability(backend: CacheBackend, kind: TypeForm[T]) -> T | None:
    """Return *backend* as a *kind* if it can do all of that, else None.

    A subclass that overrides `get` or `set` but not the verb that would stand for it (`get_bytes`, …) does not
    have that verb: it is asked through text, so that what it wrote is really called.
    """
    if all(_can(backend, verb) for verb in VERBS[kind]):  # type: ignore[index]
        return backend  # type: ignore[return-value]
    return None


def _can(backend: CacheBackend, verb: str) -> bool:
    if not callable(getattr(backend, verb, None)):
        return False
    written = _place(backend, verb)
    return written == NOWHERE or all(written <= _place(backend, each) for each in _stood_for(verb))


def _stood_for(verb: str) -> Iterator[str]:
    while (stands_for := STANDS_FOR.get(verb)) is not None:
        yield stands_for
        verb = stands_for


def _place(backend: CacheBackend, verb: str) -> int:
    """Return the place, in the method resolution order of *backend*, of the first class that has *verb*."""
    return next((place for place, cls in enumerate(type(backend).__mro__) if verb in vars(cls)), NOWHERE)


def budget_of(backend: CacheBackend) -> float:
    """Return the seconds that an operation of *backend* may take.

    Raises:
        ConfigurationError: If its ``operation_timeout`` is no positive number of seconds.
    """
    budget: object = getattr(backend, "operation_timeout", OPERATION_TIMEOUT_S)
    try:
        return checked_timeout(budget)
    except ValueError:
        raise ConfigurationError(
            f"operation_timeout of {type(backend).__name__} must be a positive number of seconds, not {budget!r}"
        ) from None


def checked_backend(backend: object, name: str = "a backend") -> CacheBackend:
    """Return *backend*, which an error calls *name*, if it is one.

    Raises:
        ConfigurationError: If it is not, one of its four methods does not take what it will be given, or its
            ``operation_timeout`` is no positive number of seconds.
    """
    if not isinstance(backend, CacheBackend):
        raise ConfigurationError(f"{name} must be an instance of a subclass of CacheBackend, not {backend!r}")
    for method, given in _GIVEN.items():
        if not takes(getattr(backend, method), given):
            raise ConfigurationError(f"{method} of {type(backend).__name__} must take ({', '.join(given)})")
    budget_of(backend)
    return backend


_GIVEN = {"get": ("key",), "set": ("key", "value", "timeout"), "delete": ("key",), "close": ()}
"""What the four methods of a backend are given, by position."""


def takes(method: Any, given: tuple[str, ...]) -> bool:
    """Return whether *method* can be called with what is *given*; True where nobody can tell."""
    function = getattr(method, "__func__", method)
    if not inspect.isfunction(function) or hasattr(function, "__signature__"):
        return True
    parameters = inspect.signature(function, follow_wrapped=False)
    try:
        parameters.bind(*(() if function is method else (method,)), *given)
    except TypeError:
        return False
    return True


def checked_timeout(timeout: object) -> float:
    """Return *timeout* as seconds.

    Raises:
        ValueError: If it is a bool, not a number, not finite, or not positive.
    """
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout < inf:
        raise ValueError(f"timeout must be a positive number of seconds, not {timeout!r}")
    return float(timeout)


def given_text(value: object) -> str | None:
    """Return what the `get` of any backend gave, as a plain str, or None.

    Raises:
        BackendError: If it is neither.
    """
    if value is None or isinstance(value, str):
        return None if value is None else str.__str__(value)
    raise BackendError(f"get must give str or None, not {type(value).__name__}", fault=Fault.UNKNOWN)

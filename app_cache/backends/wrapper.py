"""Backends that are made of others, and offer beyond the four verbs exactly what those others can.

No method is there for a capability that is not: `hasattr` and `capability` tell the truth about a wrapper around
any backend.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from types import MethodType
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Self, TypeVar, cast, overload

from app_cache.backends.base import (
    VERBS,
    BatchingBackend,
    CacheBackend,
    InstantBackend,
    capability,
    checked_backend,
    checked_timeout,
)
from app_cache.backends.text import no_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

P = ParamSpec("P")
R = TypeVar("R")

DEFAULT_TIMEOUT_S = 3600
"""Seconds that a value set with the timeout None is kept, in a backend without a default of its own."""


class Composite(CacheBackend):
    """A backend made of others; what all of them can, it may offer by methods that are `Offered`."""

    @abstractmethod
    def _parts(self) -> Iterable[CacheBackend]:
        """Return the backends that it is made of, each once."""

    @cached_property
    def _verbs(self) -> frozenset[str]:
        """The verbs beyond the four that all parts have, as found when first asked for."""
        return frozenset.intersection(*map(verbs_of, self._parts()))


class Wrapper(Composite):
    """A backend around *backend*: passes on every verb of it, and of its attributes the `SETTINGS`.

    Raises:
        ConfigurationError: If *backend* is not a backend.
    """

    def __init__(self, backend: CacheBackend) -> None:
        self.backend = checked_backend(backend)

    async def get(self, key: str) -> str | None:
        """Return the value kept under *key*, or None."""
        return await self.backend.get(key)

    async def set(self, key: str, value: str, timeout: float | None = None) -> None:
        """Keep *value* under *key* for *timeout* seconds; None: the default of the backend within, or an hour.

        Raises:
            TypeError: If *value* is not str.
            ValueError: If *timeout* is not positive, or a bool.
        """
        if not isinstance(value, str):
            raise no_text(value)
        await self.backend.set(key, value, seconds_for(self.backend, timeout))

    async def delete(self, key: str) -> None:
        """Forget *key*."""
        await self.backend.delete(key)

    async def close(self) -> None:
        """Close the backend within."""
        await self.backend.close()

    def _parts(self) -> Iterable[CacheBackend]:
        return (self.backend,)

    def __getattr__(self, name: str) -> Any:
        if name in SETTINGS or (name in ALL_VERBS and name in self._verbs):
            return getattr(self.backend, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


def shown(backend: CacheBackend) -> str:
    """Return how *backend* is named to people: ``MetricsBackend(RedisBackend)`` where it is around another."""
    name = type(backend).__name__
    return f"{name}({shown(backend.backend)})" if isinstance(backend, Wrapper) else name


class Offered(Generic[P, R]):
    """Decorates a method of a `Composite` that is there only if all parts have a verb of that name."""

    def __init__(self, method: Callable[Concatenate[Any, P], R]) -> None:
        self.method = method
        self.name = method.__name__
        self.__doc__ = method.__doc__

    @overload
    def __get__(self, backend: None, owner: type[Composite]) -> Self: ...
    @overload
    def __get__(self, backend: Composite, owner: type[Composite]) -> Callable[P, R]: ...
    def __get__(self, backend: Composite | None, owner: type[Composite]) -> Self | Callable[P, R]:
        if backend is None:
            return self
        if self.name not in backend._verbs:  # noqa: SLF001 - the descriptor is a part of the class
            raise AttributeError(f"{owner.__name__!r} object has no attribute {self.name!r}")
        return MethodType(self.method, backend)


SETTINGS = frozenset({"default_timeout", "operation_timeout"})
"""Attributes that a backend may have, and so the wrapper around it too."""
PAST = (BatchingBackend, InstantBackend)
"""Capabilities that would take a value past a wrapper."""
ALL_VERBS = frozenset(verb for kind, verbs in VERBS.items() if kind not in PAST for verb in verbs)
"""The verbs that a wrapper passes on."""


def verbs_of(backend: CacheBackend) -> frozenset[str]:
    """Return the verbs of the capabilities that *backend* has."""
    kinds = [kind for kind in VERBS if capability(backend, kind) is not None]
    return frozenset(verb for kind in kinds for verb in VERBS[kind])


def seconds_for(backend: CacheBackend, timeout: float | None) -> int:
    """Return *timeout* as `set` of *backend* takes it: a whole number as int, and for None the backend's default.

    A fraction stays a float, whatever the return type says: our own backends take it.

    Raises:
        ValueError: If *timeout* is not positive, or a bool.
    """
    if timeout is None:
        timeout = getattr(backend, "default_timeout", DEFAULT_TIMEOUT_S)
    seconds = checked_timeout(timeout)
    return int(seconds) if seconds.is_integer() else cast("int", seconds)

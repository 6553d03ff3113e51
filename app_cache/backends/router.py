"""Several backends behind one: each key belongs to one of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from app_cache.backends.base import CacheBackend, budget_of, checked_backend
from app_cache.backends.text import no_text
from app_cache.backends.wrapper import Composite, Offered, seconds_for
from app_cache.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from app_cache.backends.base import (
        BytesBackend,
        PatternBackend,
        PingBackend,
        SizedBackend,
        WatchedBackend,
    )

    Route = tuple[str | Callable[[str], bool], str | CacheBackend]


class BackendRouter(Composite):
    """Asks, for each key, the backend that the key belongs to.

    Without *routes*, a key such as ``session:7`` belongs to the backend named ``session``, if there is one. With
    them, the first that fits decides. Any other key belongs to *default*. Override `_get_backend_for_key` to
    decide otherwise. The keys of responses are hashed (``cache:…``): prefixes tell apart only keys that you set
    yourself.

    Bytes, `delete_pattern`, `ping`, `size` and `watch` are there if all backends have them.

    >>> from app_cache.backends.memory import MemoryBackend
    >>> router = BackendRouter({"session": MemoryBackend(), "data": MemoryBackend()})
    >>> router = BackendRouter(routes=[("session:", MemoryBackend())], default=MemoryBackend())

    Args:
        backends: The backends by name; one may have several names. All are closed with this one.
        default: The backend, or its name, for all keys that belong to no other; ``data`` if not given.
        routes: Pairs of a prefix, or a function that tells whether a key belongs, and a backend or its name.

    Raises:
        ConfigurationError: If there is no backend, *default* or a route names one that is not there, or an
            argument is none of these.
    """

    default = "data"
    _routes: Sequence[tuple[Callable[[str], bool], str]] = ()

    def __init__(
        self,
        backends: Mapping[str, CacheBackend] | None = None,
        default: str | CacheBackend | None = None,
        *,
        routes: Sequence[Route] = (),
    ) -> None:
        self.backends = _by_name(backends or {})
        self._routes = [
            (_fits(route, f"routes[{at}]"), self._named(backend, f"routes[{at}]"))
            for at, (route, backend) in enumerate(_pairs(routes))
        ]
        wanted = self.default if default is None else default
        if isinstance(wanted, CacheBackend) or not self._decides_otherwise():
            wanted = self._named(wanted, "default")
        self.default = wanted
        if not self.backends:
            raise ConfigurationError(_NO_BACKENDS)

    @cached_property
    def operation_timeout(self) -> float:
        """The seconds that an operation may take: the most that one of the backends may take."""
        return max(map(budget_of, self._parts()))

    def _get_backend_for_key(self, key: str) -> str:
        """Return the name of the backend that *key* belongs to; override it to decide by other rules."""
        if self._routes:
            return next((name for fits, name in self._routes if fits(key)), self.default)
        name, colon, _ = key.partition(":")
        return name if colon and name in self.backends else self.default

    async def get(self, key: str) -> str | None:
        """Return the value kept under *key* in its backend, or None."""
        return await self._backend_for(key).get(key)

    async def set(self, key: str, value: str, timeout: float | None = None) -> None:
        """Keep *value* under *key* in its backend for *timeout* seconds; None: that one's default, or an hour.

        Raises:
            TypeError: If *value* is not str.
            ValueError: If *timeout* is not positive, or a bool.
        """
        if not isinstance(value, str):
            raise no_text(value)
        backend = self._backend_for(key)
        await backend.set(key, value, seconds_for(backend, timeout))

    async def delete(self, key: str) -> None:
        """Forget *key*, in its backend."""
        await self._backend_for(key).delete(key)

    async def close(self) -> None:
        """Close every backend once, also when one fails; then raise the first failure."""
        failures: list[Exception] = []
        for backend in self._parts():
            try:
                await backend.close()
            except Exception as error:  # noqa: BLE001 - the others are to be closed as well
                failures.append(error)
        if failures:
            raise failures[0]

    @Offered
    async def get_bytes(self, key: str) -> bytes | None:
        """Return the bytes kept under *key* in its backend, or None."""
        return await cast("BytesBackend", self._backend_for(key)).get_bytes(key)

    @Offered
    async def set_bytes(self, key: str, value: bytes, timeout: float | None = None) -> None:
        """Keep *value* under *key* in its backend for *timeout* seconds.

        Raises:
            ValueError: If *timeout* is not positive, or a bool.
        """
        backend = self._backend_for(key)
        await cast("BytesBackend", backend).set_bytes(key, value, seconds_for(backend, timeout))

    @Offered
    async def delete_pattern(self, pattern: str) -> int:
        """Delete the keys that match *pattern* in every backend and return how many there were."""
        return sum([await cast("PatternBackend", backend).delete_pattern(pattern) for backend in self._parts()])

    @Offered
    async def ping(self) -> None:
        """Return when every backend has answered; raise the error of the first that does not."""
        for backend in self._parts():
            await cast("PingBackend", backend).ping()

    @Offered
    async def size(self) -> int:
        """Return the number of keys held by all backends together."""
        return sum([await cast("SizedBackend", backend).size() for backend in self._parts()])

    @Offered
    def watch(self, told: Callable[[str], None]) -> Callable[[], object]:
        """Call *told* with the key at each later `set` and `delete` in any backend.

        Returns a function that ends this.
        """
        ends = [cast("WatchedBackend", backend).watch(told) for backend in self._parts()]

        def end_all() -> None:
            for end in ends:
                end()

        return end_all

    def _decides_otherwise(self) -> bool:
        return type(self)._get_backend_for_key is not BackendRouter._get_backend_for_key  # noqa: SLF001 - its own

    def _parts(self) -> list[CacheBackend]:
        return list({id(backend): backend for backend in self.backends.values()}.values())

    def _backend_for(self, key: str) -> CacheBackend:
        name = self._get_backend_for_key(key)
        if name not in self.backends:
            raise ConfigurationError(f"a key is routed to {name!r}; the backends are {_listed(self.backends)}")
        return self.backends[name]

    def _named(self, backend: str | CacheBackend, name: str) -> str:
        """Return the name of *backend*, which is *name* if it has none yet."""
        if isinstance(backend, CacheBackend):
            checked_backend(backend)
            while self.backends.setdefault(name, backend) is not backend:
                name = f"{name}'"
            return name
        if backend not in [*self.backends]:
            raise ConfigurationError(f"{name} must be one of {_listed(self.backends)}, not {backend!r}")
        return backend


_NO_BACKENDS = "backends must be a dictionary of names and backends, and have one at least"


def _by_name(backends: object) -> dict[str, CacheBackend]:
    if not isinstance(backends, Mapping):
        raise ConfigurationError(f"{_NO_BACKENDS}, not {backends!r}")
    return {name: checked_backend(backend, f"backends[{name!r}]") for name, backend in backends.items()}


def _pairs(routes: object) -> list[Route]:
    pairs: list[Any] = [*routes] if isinstance(routes, Iterable) else [routes]
    if not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
        raise ConfigurationError(
            f"routes must be a list of pairs of a prefix, or a function of the key, and a backend, not {routes!r}"
        )
    return pairs


def _fits(route: str | Callable[[str], bool], name: str) -> Callable[[str], bool]:
    if isinstance(route, str):
        return lambda key: key.startswith(route)
    if not callable(route):
        raise ConfigurationError(f"{name} must begin with a prefix or a function of the key, not {route!r}")
    return route


def _listed(names: Mapping[str, object]) -> str:
    return ", ".join(map(repr, names)) or "none"

"""What an application's cache consists of, and how code finds the one of the running application.

A container is asked for its parts at each use, or tells when they change, so that an override is in force at once.
"""

from __future__ import annotations

import gc
import random
import weakref
from collections import OrderedDict
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol, cast

from app_cache.errors import ConfigurationError, NotWiredError
from app_cache.health import HealthCheck
from app_cache.invalidation import InvalidationService
from app_cache.keys import DefaultKeyGenerator, KeyGenerator
from app_cache.store import StoredResponses
from app_cache.values import ValueCache

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from app_cache.backends.base import CacheBackend

SCOPE_KEY = "app_cache"
"""Where the middleware announces its services, in the scope of every request."""
ANNOUNCED_FOR = "app_cache.announced_for"
"""The routes whose cache is announced in the scope: another for the same routes, further in, is passed through."""
ANNOUNCED_IN = "app_cache.announced_in"
"""The application that the cache stands in which is announced in the scope, or None: it stands around all."""
STATE_ATTRIBUTE = "app_cache"
"""Where `install` keeps them, in the state of the application."""
MAX_STORES = 16
"""Backends whose store a container remembers at once, those used last: several where tests override it."""


class CacheServices(Protocol):
    """The parts of an application's cache, each made or found when it is called; a `CacheContainer` is one."""

    @property
    def backend(self) -> Callable[[], CacheBackend]:
        """Gives the backend in force."""
        ...

    @property
    def store(self) -> Callable[[], StoredResponses]:
        """Gives the stored responses of that backend."""
        ...

    @property
    def key_generator(self) -> Callable[[], KeyGenerator]:
        """Gives the key generator in force."""
        ...

    @property
    def invalidation(self) -> Callable[[], InvalidationService]:
        """Gives a service that invalidates in that store."""
        ...

    @property
    def values(self) -> Callable[[], ValueCache]:
        """Gives a cache of values in that store."""
        ...

    @property
    def health(self) -> Callable[[], HealthCheck]:
        """Gives the health check of that backend."""
        ...


PARTS = ("backend", "store", "key_generator", "invalidation", "values", "health")
"""What a container must have."""


class Replacements:
    """Tells that some part of some container may have been replaced: *mark* is another object each time."""

    def __init__(self) -> None:
        self.mark = object()

    def told(self) -> None:
        """Take it that a part was replaced."""
        self.mark = object()


replacements = Replacements()
DECIDING = ("backend", "key_generator", "store")
"""The parts that decide on a hit, or make what counts it."""


class Stores:
    """The stored responses of each backend, namespace, clock and source of chance, one object for each."""

    def __init__(self) -> None:
        self._stores: OrderedDict[tuple[int, str, int, int], StoredResponses] = OrderedDict()

    def of(
        self,
        backend: CacheBackend,
        namespace: str,
        now: Callable[[], float],
        chance: Callable[[], float] = random.random,
    ) -> StoredResponses:
        """Return the stored responses under *namespace* of *backend*, the same at each call.

        Raises:
            ConfigurationError: If *backend* is none, or *namespace* cannot stand in a key.
        """
        key = (id(backend), namespace, id(now), id(chance))
        store = self._used(key)
        if store is None:
            made = StoredResponses(backend, namespace, now=now, chance=chance)
            store = self._stores.setdefault(key, made)
            if len(self._stores) > MAX_STORES:
                self._stores.popitem(last=False)
        return store

    def _used(self, key: tuple[int, str, int, int]) -> StoredResponses | None:
        """Return what is there for *key*, which now goes last, or None."""
        try:
            self._stores.move_to_end(key)
            return self._stores[key]
        except KeyError:
            return None

    async def close(self) -> None:
        """Drain each store."""
        for store in [*self._stores.values()]:
            await store.close()


def checked_key_generator(generator: object) -> KeyGenerator:
    """Return *generator* if it is one.

    Raises:
        ConfigurationError: If it is not, or is a class of them.
    """
    if not isinstance(generator, KeyGenerator):
        raise ConfigurationError(
            f"a key generator must be an instance of a subclass of KeyGenerator, not {generator!r}"
        )
    return generator


def same_parts(services: CacheServices) -> Callable[[], bool] | None:
    """Return a function that asks whether the parts that decide on a hit are still those of now.

    None: there are none to ask, for all tell by `replacements` when they give something else. It is called at each
    hit, and so asks only the others. A store that is made of other parts is not made anew: those are asked.
    """
    if isinstance(services, PlainServices):
        return None
    named = {name: getattr(services, name) for name in DECIDING}
    asked = [(name, provider()) for name, provider in named.items() if not _tells(provider)]
    beneath = [each for each in getattr(services.store, "made_of", ()) if each not in named.values()]
    asked_too = [(provider, provider()) for provider in beneath if not _tells(provider)]
    if not asked and not asked_too:
        return None

    def same() -> bool:
        for name, part in asked:
            if getattr(services, name)() is not part:
                return False
        for provider, part in asked_too:  # noqa: SIM110  a generator would cost as much as all else
            if provider() is not part:
                return False
        return True

    return same


def _tells(provider: Any) -> bool:
    """Return whether *provider* tells when it gives something else from now on; an overridden one does not."""
    return getattr(provider, "tells", False) and provider.last_overriding is None


class PlainServices:
    """The services of a middleware that was given a backend rather than a container."""

    def __init__(
        self,
        backend: CacheBackend,
        key_generator: KeyGenerator | None,
        namespace: str,
        now: Callable[[], float],
    ) -> None:
        self._store = StoredResponses(backend, namespace, now=now)
        self._key_generator = key_generator or DefaultKeyGenerator()
        self._health = HealthCheck(self.backend)

    def backend(self) -> CacheBackend:
        """Return the backend that was given."""
        return self._store.backend

    def store(self) -> StoredResponses:
        """Return its stored responses."""
        return self._store

    def key_generator(self) -> KeyGenerator:
        """Return the key generator that was given, or the default one."""
        return self._key_generator

    def invalidation(self) -> InvalidationService:
        """Return a service that invalidates in its store."""
        return InvalidationService(self._store)

    def values(self) -> ValueCache:
        """Return a cache of values in its store."""
        return ValueCache(self._store)

    def health(self) -> HealthCheck:
        """Return the health check of the backend."""
        return self._health


def resolved(container: Any) -> CacheServices:
    """Return *container*, or what it gives if it is a provider of one.

    Raises:
        NotWiredError: If it is neither, or a class of containers.
    """
    if isinstance(container, type):
        raise NotWiredError(f"a container is needed, not its class: {container.__name__}()")
    services = container() if callable(container) else container
    if not _is_services(services):
        raise NotWiredError(f"a CacheContainer or a provider of one is needed, not {container!r}")
    return cast("CacheServices", services)


def _is_services(candidate: object) -> bool:
    return all(hasattr(candidate, part) for part in PARTS)


serving: ContextVar[Mapping[str, Any] | None] = ContextVar("app_cache_serving", default=None)
"""The scope of the current request, in which a cache is announced: applications further in change it."""

_installed: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def announce_installed(app: object, container: object) -> None:
    """Remember that *app* has *container*, as long as it lives."""
    _installed[app] = container


def services_of(scope: Mapping[str, Any]) -> CacheServices:
    """Return the services of the application that serves the connection of *scope*.

    Raises:
        NotWiredError: If it has none.
    """
    app, services = scope.get("app"), scope.get(SCOPE_KEY)
    if services is None or not _is_of(app, scope):
        container = getattr(getattr(app, "state", None), STATE_ATTRIBUTE, None)
        if container is not None:
            return resolved(container)
    if services is None:
        raise NotWiredError("this application has no cache: call install(app, CacheContainer())")
    return cast("CacheServices", services)


def _is_of(app: object, scope: Mapping[str, Any]) -> bool:
    """Return whether the cache that is announced in *scope* stands in *app*, or around it alone."""
    return app is scope.get(ANNOUNCED_IN) or getattr(app, "routes", None) is scope.get(ANNOUNCED_FOR)


def current_services() -> CacheServices:
    """Return the services of the application that serves the current request, or of the only one installed.

    Raises:
        NotWiredError: If there is none, or more than one.
    """
    scope = serving.get()
    if scope is not None:
        return services_of(scope)
    if len(_installed) > 1:
        gc.collect()  # an application that nobody has any more is held by itself until then
    installed = [*_installed.values()]
    if len(installed) != 1:
        there, advice = "no application has", "call install(app, CacheContainer())"
        if installed:
            there = f"{len(installed)} applications have"
            advice = "await get_backend(request) in middleware, ask the container elsewhere: container.backend()"
        raise NotWiredError(
            "outside a request, and in middleware that stands before the cache, the only application with a cache "
            f"is meant, but {there} one: {advice}"
        )
    return resolved(installed[0])

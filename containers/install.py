"""Putting a container's cache on an application."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from dependency_injector import providers
from starlette.applications import Starlette
from starlette.middleware import Middleware

from app_cache.errors import ConfigurationError
from app_cache.health import HealthCheck
from app_cache.invalidation import InvalidationService
from app_cache.layers import with_shortcut
from app_cache.middleware import CacheMiddleware
from app_cache.routes.table import check_routes
from app_cache.services import STATE_ATTRIBUTE, announce_installed, checked_key_generator, resolved
from app_cache.store import StoredResponses
from app_cache.values import ValueCache

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from app_cache.services import CacheServices

T = TypeVar("T")


def install(app: Starlette, container: Any, *, front: bool = False, **options: Any) -> None:
    """Put the cache of *container* on *app*: middleware, state and lifespan.

    The cache stands **innermost**: every middleware that is added, before or after, still runs on each hit; only
    routing and the endpoint are skipped. No lifespan is needed; where there is one, the policies of all routes are
    checked as it starts; as it ends, what is under way is drained and the backend closed that the container built.

    Args:
        app: A FastAPI or Starlette application that has not started.
        container: A `CacheContainer`, or a provider of one (a sub-container of the application's own).
        front: Whether `CacheProtocol` may give hits although other middleware stands outside of the cache, which
            then does not run on most of them. Where none does, the protocol gives them anyway.
        **options: Those of `CacheMiddleware`: ``default_policy``, ``policies``, ``key_generator``.

    Raises:
        RuntimeError: If *app* has started.
        ConfigurationError: If *app* is no application or has a cache, or a setting or an option cannot work.
        NotWiredError: If *container* is no container.
    """
    if not isinstance(app, Starlette):
        raise ConfigurationError(f"install(app, container) needs a FastAPI or Starlette application, not {app!r}")
    if app.middleware_stack is not None:
        raise RuntimeError("install(app, container) must come before the application starts")
    if hasattr(app.state, STATE_ATTRIBUTE):
        raise ConfigurationError("this application has a cache already: call install(app, container) once")
    _check(resolved(container))
    if front:
        options["front"] = app
    CacheMiddleware(app.router, container=container, **options)  # what is wrong in the options is told now
    app.user_middleware.append(Middleware(CacheMiddleware, container=container, **options))
    app.build_middleware_stack = with_shortcut(app.build_middleware_stack)  # type: ignore[method-assign]
    setattr(app.state, STATE_ATTRIBUTE, container)
    announce_installed(app, container)
    _wrap_lifespan(app, container)


def _check(services: CacheServices) -> None:
    """Build all parts of *services*, which connects to nothing, so that what is wrong is told now."""
    checked_key_generator(services.key_generator())
    store = _part(services, "store", StoredResponses)
    if store.backend is not services.backend():
        raise ConfigurationError(
            "container.backend() gives another backend than container.store() keeps to: a provider must give the "
            "same one each time, and a subclass does not rewire what it inherits; use CacheContainer(backend=…)"
        )
    _part(services, "health", HealthCheck)
    _check_store_of("invalidation", _part(services, "invalidation", InvalidationService), store)
    _check_store_of("values", _part(services, "values", ValueCache), store)


def _part(services: CacheServices, name: str, kind: type[T]) -> T:
    """Return the part that *services* give as *name*, which must be of *kind*."""
    part: object = getattr(services, name)()
    if not isinstance(part, kind):
        raise ConfigurationError(
            f"container.{name}() must give an instance of {kind.__name__} or of a subclass, not {part!r}"
        )
    return part


def _check_store_of(name: str, part: object, store: StoredResponses) -> None:
    """Check that *part*, which the container gives as *name*, works on *store*."""
    if isinstance(kept := getattr(part, "store", store), StoredResponses) and kept is not store:
        of = type(part).__name__
        raise ConfigurationError(
            f"container.{name}() must keep to container.store(), and gives a {of} of another store: "
            f"container.{name}.override(providers.Factory({of}, container.store))"
        )


def _wrap_lifespan(app: Starlette, container: Any) -> None:
    own = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(started: Any) -> AsyncIterator[Any]:
        check_routes(app)
        try:
            async with own(started) as state:
                yield state
        finally:
            await close(container)

    app.router.lifespan_context = lifespan


async def close(container: Any) -> None:
    """Drain what is under way in *container*'s stores and close its backend.

    A backend that overrides the container's own as an object belongs to who made it, and stays open.
    """
    services: Any = resolved(container)
    try:
        await getattr(services, "stores", services.store)().close()
    finally:
        if not isinstance(getattr(services.backend, "last_overriding", None), providers.Object):
            await services.backend().close()

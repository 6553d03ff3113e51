"""Putting a container's cache on an application."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from starlette.middleware import Middleware

from app_cache.errors import ConfigurationError
from app_cache.middleware import CacheMiddleware
from app_cache.routes import check_routes
from app_cache.services import STATE_ATTRIBUTE, announce_installed, resolved

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.applications import Starlette


def install(app: Starlette, container: Any, **options: Any) -> None:
    """Put the cache of *container* on *app*: middleware, state and lifespan.

    The cache stands **innermost**: every middleware that is added, before or after, still runs on each hit; only
    routing and the endpoint are skipped. No lifespan is needed; where there is one, the policies of all routes are
    checked as it starts, and what is under way is drained and the container's backend closed as it ends.

    Args:
        app: A FastAPI or Starlette application that has not started.
        container: A `CacheContainer`, or a provider of one (a sub-container of the application's own).
        **options: Those of `CacheMiddleware`: ``default_policy``, ``key_generator``.

    Raises:
        RuntimeError: If *app* has started.
        ConfigurationError: If *app* has a cache already, or a setting or an option cannot work.
        NotWiredError: If *container* is no container.
    """
    if app.middleware_stack is not None:
        raise RuntimeError("install(app, container) must come before the application starts")
    if hasattr(app.state, STATE_ATTRIBUTE):
        raise ConfigurationError("this application has a cache already: call install(app, container) once")
    resolved(container).backend()
    CacheMiddleware(app.router, container=container, **options)
    app.user_middleware.append(Middleware(CacheMiddleware, container=container, **options))
    setattr(app.state, STATE_ATTRIBUTE, container)
    announce_installed(app, container)
    _wrap_lifespan(app, container)


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
    """Drain what is under way in *container*'s stores and close the backend that it built.

    A backend that overrides the container's own belongs to who made it, and stays open.
    """
    services: Any = resolved(container)
    await services.stores().close()
    if not services.backend.overridden:
        await services.backend().close()

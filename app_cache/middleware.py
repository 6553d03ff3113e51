"""The plumbing: `CacheMiddleware` lives with the application, an `Exchange` and a `Change` with one request.

scope → CacheMiddleware.__call__    no policy → the application, untouched
Exchange: key → look-up → rules.select
Hit      → serve (or 304); a background fill where it is due
Forward  → join the fill under way, or lead one: rules.why_not_store, store
Change: unsafe method, answered well → rules.to_invalidate
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

from app_cache.changes import Change
from app_cache.errors import ConfigurationError
from app_cache.exchange import Exchange
from app_cache.fastpath import FastPath, Question
from app_cache.guards import Guarding, in_force
from app_cache.keys import DefaultKeyGenerator, KeyGenerator
from app_cache.posted import PostedAnswer
from app_cache.routes.policies import Fallbacks
from app_cache.routes.table import RouteTable
from app_cache.routes.ways import with_root_path
from app_cache.rules.decisions import SAFE_METHODS
from app_cache.services import (
    ANNOUNCED_FOR,
    ANNOUNCED_IN,
    SCOPE_KEY,
    PlainServices,
    checked_key_generator,
    resolved,
    serving,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from starlette.requests import Request

    from app_cache.asgi import App, Message, Receive, Scope, Send
    from app_cache.backends.base import CacheBackend
    from app_cache.policy import CachePolicy
    from app_cache.routes.table import Plan
    from app_cache.services import CacheServices

HANDLED = "app_cache.handled"
"""Marks the scope of a request that a cache further out has taken on."""


class CacheMiddleware:
    """Caches the responses of an ASGI application as its routes' policies ask (RFC 9111).

    Put it on a FastAPI application with `containers.install`, add it with ``app.add_middleware``, or wrap any ASGI
    application in it.

    Args:
        app: The application, or the next middleware.
        backend: Where responses are kept.
        container: A `CacheContainer`, or a provider of one, in place of *backend*; what it gives holds at once.
        default_policy: For what has no policy of its own, undecorated routes and applications without routes.
        policies: By path, for routes that one does not own: globs over the whole decoded path (``/public/*``),
            with its root path or without it, the first that matches; None keeps what it matches out of the cache.
            They go before *default_policy*, and a decorator before them.
        key_generator: Instead of the container's, or of the default one.
        namespace: Comes between ``cache:`` and the key; a container has its own.
        clock: Tells the time, in epoch seconds; `time.time` if not given. A container has its own.
        front: The application that the server calls, if `CacheProtocol` may give hits of this cache past all that
            stands between the two: middleware outside of the cache then does not run on most hits.

    Raises:
        ConfigurationError: If there is neither backend nor container, there are both, or a value cannot work.
        NotWiredError: If *container* is no container.
    """

    is_response_cache = True
    """By this the routes of another application know that the one mounted there has a cache."""

    def __init__(
        self,
        app: App,
        backend: CacheBackend | None = None,
        *,
        container: Any = None,
        default_policy: CachePolicy | None = None,
        policies: Mapping[str, CachePolicy | None] | None = None,
        key_generator: KeyGenerator | None = None,
        namespace: str = "",
        clock: Callable[[], float] | None = None,
        front: object = None,
    ) -> None:
        if (backend is None) == (container is None):
            raise ConfigurationError("CacheMiddleware needs either backend=… or container=…")
        if container is not None and namespace:
            raise ConfigurationError("the container has its own namespace: set CACHE_NAMESPACE")
        if container is not None and clock is not None:
            raise ConfigurationError("the container has its own clock: override container.clock")
        if key_generator is not None:
            checked_key_generator(key_generator)
        self.app = app
        self.front = front
        self._container = container
        self._plain = (
            None if backend is None else PlainServices(backend, key_generator, namespace, clock or time.time)
        )
        services = self._plain or resolved(container)
        self._services = None if callable(container) else services
        self._table = RouteTable(app, Fallbacks(policies, default_policy))
        self._rooted = with_root_path(app)
        self.fast = FastPath(self._table, self)
        """The hits that may be given again."""
        self.remembered = self.fast.paths
        """The paths that have some; requests for others need no look."""
        overridden = type(self).generate_cache_key is not CacheMiddleware.generate_cache_key
        self._own_keys: KeyGenerator | None = _OwnKeys(self) if overridden else key_generator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer from the cache, or let the application answer."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, self._draining(send) if self._plain is not None else send)
            return
        if self._rooted is not None and self._rooted.root_path:
            scope["root_path"] = self._rooted.root_path
        if scope["type"] == "http" and scope["path"] in self.remembered:
            hit = self.fast.answer(scope)
            if isinstance(hit, Question):
                hit = await hit.asked()
            if hit is not None:
                await send(hit[0])
                await send(hit[1])
                return
        services, routes = self._services or self.services(), self._table.routes(scope)
        if SCOPE_KEY in scope and scope[ANNOUNCED_FOR] is routes:
            await self.app(scope, receive, send)
            return
        scope[SCOPE_KEY], scope[ANNOUNCED_FOR], scope[ANNOUNCED_IN] = services, routes, scope.get("app")
        token = serving.set(scope)
        try:
            if scope["type"] == "websocket" or HANDLED in scope:
                await self.app(scope, receive, send)
                return
            plan = self._table.find(scope)
            if plan is None and scope["method"] in SAFE_METHODS and in_force.get() is None:
                await self.app(scope, receive, send)
            elif plan is not None and plan.policy is not None and not (plan.invalidates or plan.may_invalidate):
                await self._answer(services, plan, scope, receive, send)
            else:
                await self._answer_to_a_change(services, plan, scope, receive, send)
        finally:
            serving.reset(token)

    def services(self) -> CacheServices:
        """Return the parts of the cache that are in force.

        Raises:
            NotWiredError: If the provider of a container gives none.
        """
        return self._services or resolved(self._container)

    def same_services(self, services: CacheServices) -> Callable[[], bool] | None:
        """Return a function that tells whether *services* are still in force; None: they stay."""
        return None if self._services is services else lambda: resolved(self._container) is services

    def generate_cache_key(self, request: Request) -> str | Awaitable[str | None] | None:
        """Return the logical key of *request*; override it, plain or ``async``; None passes the request by."""
        return DefaultKeyGenerator().generate_cache_key(request)

    def _draining(self, send: Send) -> Send:
        """Return *send* for the lifespan: it drains what is under way before it tells of the shutdown's end."""

        async def send_drained(message: Message) -> None:
            if message["type"].startswith("lifespan.shutdown.") and self._plain is not None:
                await self._plain.store().close()
            await send(message)

        return send_drained

    async def _answer(
        self, services: CacheServices, plan: Plan | None, scope: Scope, receive: Receive, send: Send
    ) -> None:
        policy = None if plan is None else plan.policy
        if plan is None or policy is None:
            with Guarding(None):
                await self.app(scope, receive, send)
            return
        scope[HANDLED] = True
        era = self.fast.current_era(services)
        keys = policy.key or self._own_keys or services.key_generator()
        learn = partial(self.fast.learn, era)
        exchange = Exchange(self.app, era.store, plan, policy, keys, learn, scope, receive, send)
        await exchange.answer()

    async def _answer_to_a_change(
        self, services: CacheServices, plan: Plan | None, scope: Scope, receive: Receive, send: Send
    ) -> None:
        may_be_kept = scope["method"] == "POST" and (plan is None or plan.policy is None)
        posted = await self._posted(services, scope) if may_be_kept else None
        change = Change(services, self._table, plan, scope, posted, send)
        try:
            await self._answer(services, plan, scope, receive, change.send)
        finally:
            await change.end()

    async def _posted(self, services: CacheServices, scope: Scope) -> PostedAnswer | None:
        """Return a `PostedAnswer` that stores for later GETs, if those are cached by the RFC alone; else None."""
        plan = self._table.find(scope, "GET")
        if plan is None or plan.policy is None or not plan.policy.http_only:
            return None
        keys = plan.policy.key or self._own_keys or services.key_generator()
        return await PostedAnswer.begin(services.store(), plan, plan.policy, keys, scope)


class _OwnKeys(KeyGenerator):
    """The key generator of a subclass of the middleware: its `generate_cache_key`."""

    def __init__(self, middleware: CacheMiddleware) -> None:
        self._middleware = middleware

    def generate_cache_key(self, request: Request) -> str | Awaitable[str | None] | None:
        return self._middleware.generate_cache_key(request)

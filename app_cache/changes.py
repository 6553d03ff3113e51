"""Requests that may change something: what the answer to one invalidates, by HTTP and by `@invalidates`."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from app_cache.checks import CACHEABLE_METHODS
from app_cache.clock.base import Order
from app_cache.clock.names import group_stamp, tag_stamp, url_stamp
from app_cache.errors import ConfigurationError
from app_cache.flight import BODIES
from app_cache.identity import tags_of, target_of
from app_cache.invalidation import result_of, stamp_of_url
from app_cache.keys import full_path, origin_of
from app_cache.routes.table import escape_for_glob, escape_for_url, plan_of_change
from app_cache.rules.decisions import SAFE_METHODS, to_invalidate
from app_cache.rules.glob import fitted
from app_cache.rules.messages import fields_of, has_any
from app_cache.rules.structured import strings
from app_cache.services import ANNOUNCED_FOR

if TYPE_CHECKING:
    from app_cache.asgi import Message, Scope, Send
    from app_cache.clock.base import InvalidationResult
    from app_cache.policy import Invalidates
    from app_cache.posted import PostedAnswer
    from app_cache.routes.table import Plan, RouteTable
    from app_cache.rules.messages import Headers
    from app_cache.services import CacheServices


NAMING_OTHERS = frozenset({b"cache-group-invalidation", b"content-location", b"location"})
"""Fields of an answer by which it invalidates more than its own URL."""


class Change:
    """Invalidates what an answer makes invalid before it is sent (RFC 9111 §4.4), and once more at the end.

    The application may still change something after its answer, by the commit of a dependency for one, and an
    entry that was filled meanwhile does not know of that. There is no such entry if no other task had a turn since
    the body began, unless other processes fill too, which may have done so during the commit. An order that is
    owed is sent later anyway.

    Args:
        services: The parts of the cache.
        table: The routes of the application.
        plan: What is done with the request; None: nothing that is known before it is routed.
        scope: That of the request, in which routers leave what they come to.
        posted: Stores the answer for later GETs, or None.
        send: Sends the answer.
    """

    def __init__(
        self,
        services: CacheServices,
        table: RouteTable,
        plan: Plan | None,
        scope: Scope,
        posted: PostedAnswer | None,
        send: Send,
    ) -> None:
        self._services = services
        self._table = table
        self._plan = plan
        self._request = dict(scope)
        self._routed = scope
        self._posted = posted
        self._send = send
        self._order: Order | None = None
        self._others_had_turns = self._has_ended = False

    async def send(self, message: Message) -> None:
        """Send *message*, once what it makes invalid is invalidated and what it makes valid is stored."""
        ends = message["type"] in BODIES and not message.get("more_body", False)
        if message["type"] == "http.response.start" and 200 <= message["status"] < 400:
            message = await self._started(message)
        elif message["type"] == "http.response.body" and self._posted is not None:
            await self._posted.sent(bytes(message.get("body", b"")), last=ends)
        await self._send(message)
        if message["type"] in BODIES:
            self._has_ended = ends
            asyncio.get_running_loop().call_soon(self._note)

    async def end(self) -> None:
        """Invalidate once more, but for the answer itself if that is stored."""
        order = self._order
        nothing_followed = self._has_ended and not self._others_had_turns
        if order is None or (nothing_followed and not self._others_may_have_filled()):
            return
        if self._posted is not None and self._posted.is_stored:
            path = full_path(self._request)
            own = {url_stamp(path), url_stamp(path, origin_of(self._request))}
            order = replace(order, tags=tuple(tag for tag in order.tags if tag not in own))
        if order != Order():
            await self._carry_out(order)

    async def _started(self, message: Message) -> Message:
        status, headers = message["status"], fields_of(message)
        try:
            order = await self._order_of(status, headers)
        except asyncio.CancelledError:  # in a hook of the application's own: what it would have named is not known
            self._order = Order(everything=True)
            raise
        if order is not None:
            self._order = order
            if not (await self._carry_out(order)).durable:
                self._order = None
        if self._posted is not None:
            await self._posted.started(status, headers)
        return {**message, "headers": [*headers]}

    async def _carry_out(self, order: Order) -> InvalidationResult:
        """Have the service carry out *order*; where that fails, the store does so."""
        try:
            return result_of(await self._services.invalidation().carry_out(order))
        except Exception as error:  # noqa: BLE001  a service may be anybody's code
            store = self._services.store()
            store.log.failed("cache.hook_failed", "invalidation", error, path=self._request["path"])
            return await store.invalidate(order)

    def _note(self) -> None:
        self._others_had_turns = True

    def _others_may_have_filled(self) -> bool:
        return not self._services.store().is_local and self._table.may_go_on(self._request)

    async def _order_of(self, status: int, headers: Headers) -> Order | None:
        """Return the order for what an answer that is no error invalidates; None if that is nothing."""
        stamps = self._named_by_http(status, headers)
        plan, patterns = self._plan, list[str]()
        try:
            if (plan is None or plan.invalidates is None) and self._is_innermost():
                plan = plan_of_change(self._routed)
            if plan is not None and plan.invalidates is not None:
                asked_for, patterns = await _named_by_decorator(plan, plan.invalidates, self._request)
                stamps += asked_for
        except Exception as error:  # noqa: BLE001  the application's own hook: what it would have named is not known
            place = f"@invalidates {'' if plan is None else plan.route}".strip()
            self._services.store().log.failed("cache.hook_failed", place, error, path=self._request["path"])
            return Order(everything=True)
        return Order(tags=tuple(stamps), patterns=tuple(patterns)) if stamps or patterns else None

    def _is_innermost(self) -> bool:
        """Return whether the request came to no cache further in; such a one invalidates for its own routes."""
        return self._routed[ANNOUNCED_FOR] is self._request[ANNOUNCED_FOR]

    def _named_by_http(self, status: int, headers: Headers) -> list[str]:
        """Return the stamps of what HTTP itself invalidates (RFC 9111 §4.4, RFC 9875 §3)."""
        plan, request = self._plan, self._request
        is_cached = plan is not None and plan.policy is not None and plan.invalidates is None
        if request["method"] in SAFE_METHODS or is_cached:
            return []
        paths = [full_path(request)] if self._is_cached(request["path"]) else []
        if not paths and not has_any(headers, NAMING_OTHERS):
            return []
        here = origin_of(request)
        others = to_invalidate(request["method"], target_of(request, here), status, headers)[1:]
        named = [unquote(urlsplit(url).path) or "/" for url in others]
        paths += [path for path in named if self._is_cached(path)]
        groups = strings(headers, b"cache-group-invalidation")
        return [url_stamp(path, here) for path in paths] + [group_stamp(here, group) for group in groups]

    def _is_cached(self, path: str) -> bool:
        """Return whether an answer for *path* may be stored."""
        scope = {**self._request, "path": path}
        plans = (self._table.find(scope, method) for method in CACHEABLE_METHODS)
        return any(plan is not None and plan.policy is not None for plan in plans)


async def _named_by_decorator(plan: Plan, asked: Invalidates, scope: Scope) -> tuple[list[str], list[str]]:
    """Return the stamps and the patterns that *asked* names for the request of *scope*.

    Raises:
        ConfigurationError: If a filled-in template cannot work: a URL that became none, say.
    """
    templates = (*(() if callable(asked.tags) else asked.tags), *asked.urls, *asked.patterns)
    if not (plan.is_sure or plan.has_names_of(templates)):
        raise ConfigurationError(f"a template of @invalidates on {plan.route} names what nothing has")
    tags = await tags_of(asked.tags, plan, scope)
    urls = plan.fill_in(asked.urls, scope, escape_for_url)
    patterns = plan.fill_in(asked.patterns, scope, escape_for_glob)
    stamps = [*map(tag_stamp, tags or ()), *map(stamp_of_url, urls or ())]
    return stamps, [*map(fitted, patterns or ())]

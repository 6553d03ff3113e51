"""The plumbing: `CacheMiddleware` lives with the application, an `Exchange` with one request.

scope → CacheMiddleware.__call__    no policy → the application, untouched
Exchange: key → look-up → rules.select
Hit      → serve (or 304); a background fill where it is due
Forward  → join the fill under way, or lead one: rules.why_not_store, store
unsafe method, answered well → rules.to_invalidate
"""

from __future__ import annotations

import inspect
import time
from random import random
from typing import TYPE_CHECKING, Any, cast

from starlette.requests import Request

from app_cache.clock.base import Order, Subject, key_stamp, tag_stamp, url_stamp
from app_cache.codec import Mark, entity_tag_of, entry_of
from app_cache.errors import ConfigurationError
from app_cache.flight import FILL_TIMEOUT_S, NOT_SHARED, Fill, Outcome, Share
from app_cache.invalidation import stamp_of_url
from app_cache.keys import (
    POLICY,
    DefaultKeyGenerator,
    KeyGenerator,
    full_path,
    host_of,
    origin,
    request_parts,
    storage_key,
    url_of,
)
from app_cache.logger_config import logger
from app_cache.policy import LATE_TAGS, CachePolicy, checked_tag
from app_cache.routes import RouteTable, escape_for_glob, escape_for_url
from app_cache.rules.cache_status import CacheStatus
from app_cache.rules.decisions import (
    SAFE_METHODS,
    Forward,
    Fwd,
    Hit,
    Refusal,
    asked_by,
    freshness_lifetime,
    keep_for,
    select,
    stale_windows,
    to_invalidate,
    unshared_credential,
    why_not_store,
    why_pass,
    withheld_fields,
)
from app_cache.rules.directives import NOTHING_SAID
from app_cache.rules.messages import RequestHead, ResponseHead, StoredResponse, combined, end_to_end, without
from app_cache.rules.validators import (
    CONDITIONAL,
    entity_tag,
    fields_of_304,
    freshened,
    not_modified,
    validating_headers,
)
from app_cache.rules.variants import announced, vary_fields
from app_cache.services import SCOPE_KEY, PlainServices, resolved, serving
from app_cache.store import Found, variant_key

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    from app_cache.backends.base import CacheBackend
    from app_cache.codec import Entry
    from app_cache.routes import Plan
    from app_cache.rules.messages import Headers
    from app_cache.services import CacheServices

    Scope = MutableMapping[str, Any]
    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    App = Callable[[Scope, Receive, Send], Awaitable[None]]

HANDLED = "app_cache.handled"
"""Marks the scope of a request that a cache further out has taken on."""
COPIED_BACK = ("route", "endpoint", "path_params", "router")
"""What the router leaves in the scope, for middleware further out."""
MARKED_BY_ROUTER = (b"content-length", b"age")


class CacheMiddleware:
    """Caches the responses of an ASGI application as its routes' policies ask (RFC 9111).

    Put it on a FastAPI application with `containers.install`, add it with ``app.add_middleware``, or wrap any ASGI
    application in it.

    Args:
        app: The application, or the next middleware.
        backend: Where responses are kept.
        container: A `CacheContainer`, or a provider of one, in place of *backend*; asked at each request.
        default_policy: For what has no policy of its own, undecorated routes and applications without routes.
        key_generator: Instead of the container's, or of the default one.
        namespace: Comes between ``cache:`` and the key; a container has its own.
        clock: Tells the time, in epoch seconds; a container has its own.

    Raises:
        ConfigurationError: If there is neither backend nor container, there are both, or a value cannot work.
    """

    is_app_cache = True

    def __init__(
        self,
        app: App,
        backend: CacheBackend | None = None,
        *,
        container: Any = None,
        default_policy: CachePolicy | None = None,
        key_generator: KeyGenerator | None = None,
        namespace: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        if (backend is None) == (container is None):
            raise ConfigurationError("CacheMiddleware needs either backend=… or container=…")
        if container is not None and namespace:
            raise ConfigurationError("the container has its own namespace: set CACHE_NAMESPACE")
        if default_policy is not None and not isinstance(default_policy, CachePolicy):
            raise ConfigurationError(f"default_policy must be a CachePolicy, not {default_policy!r}")
        self.app = app
        self._container = container
        self._key_generator = key_generator
        self._plain = None if backend is None else PlainServices(backend, key_generator, namespace, clock)
        self._table = RouteTable(app, default_policy)
        overridden = type(self).generate_cache_key is not CacheMiddleware.generate_cache_key
        self._own_keys: KeyGenerator | None = _OwnKeys(self) if overridden else key_generator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer from the cache, or let the application answer."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        services = self._plain or resolved(self._container)
        scope[SCOPE_KEY] = services
        token = serving.set(services)
        try:
            if scope["type"] == "websocket" or HANDLED in scope:
                await self.app(scope, receive, send)
            else:
                await self._answer(services, scope, receive, send)
        finally:
            serving.reset(token)

    def generate_cache_key(self, request: Request) -> str | Awaitable[str | None] | None:
        """Return the logical key of *request*; override it, plain or ``async``; None passes the request by."""
        return DefaultKeyGenerator().generate_cache_key(request)

    async def _answer(self, services: CacheServices, scope: Scope, receive: Receive, send: Send) -> None:
        plan = self._table.find(scope)
        if scope["method"] not in SAFE_METHODS or (plan is not None and plan.invalidates is not None):
            send = self._invalidating(services, plan, scope, send)
        if plan is None or plan.policy is None:
            await self.app(scope, receive, send)
            return
        scope[HANDLED] = True
        keys = self._own_keys or plan.policy.key or services.key_generator()
        await Exchange(self.app, services, plan, plan.policy, keys, scope).answer(receive, send)

    def _invalidating(self, services: CacheServices, plan: Plan | None, scope: Scope, send: Send) -> Send:
        """Return *send*, which invalidates what the answer makes invalid before it is sent (RFC 9111 §4.4)."""
        request = dict(scope)

        async def send_after(message: Message) -> None:
            if message["type"] == "http.response.start":
                order = await self._order(plan, request, message)
                if order is not None:
                    await services.store().invalidate(order)
            await send(message)

        return send_after

    async def _order(self, plan: Plan | None, scope: Scope, start: Message) -> Order | None:
        headers = tuple((bytes(name), bytes(value)) for name, value in start.get("headers", ()))
        here = url_of(scope)
        urls = to_invalidate(scope["method"], here, start["status"], headers)
        stamps = [_stamp(url, here) for url in urls if self._is_cached(scope, url)]
        patterns: list[str] = []
        if plan is not None and plan.invalidates is not None and 200 <= start["status"] < 400:
            asked = plan.invalidates
            stamps += [tag_stamp(tag) for tag in await _tags(asked.tags, plan, scope) or ()]
            stamps += [stamp_of_url(url) for url in plan.fill_in(asked.urls, scope, escape_for_url) or ()]
            patterns = plan.fill_in(asked.patterns, scope, escape_for_glob) or []
        return Order(tags=tuple(stamps), patterns=tuple(patterns)) if stamps or patterns else None

    def _is_cached(self, scope: Scope, url: str) -> bool:
        """Return whether a GET of *url*, which has the origin of this request, may be stored."""
        if url == url_of(scope):
            plan = self._table.find(scope, "GET")
        else:
            path = url.removeprefix(origin(scope.get("scheme", "http"), host_of(scope))).partition("?")[0]
            plan = self._table.find({**scope, "path": path}, "GET")
        return plan is not None and plan.policy is not None


def _stamp(url: str, here: str) -> str:
    """Return the stamp of *url*; *here* is the one whose path came decoded."""
    if url != here:
        return stamp_of_url(url)
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return url_stamp(slash + path, f"{scheme}://{host}")


class _OwnKeys(KeyGenerator):
    """The key generator that a subclass of the middleware is."""

    def __init__(self, middleware: CacheMiddleware) -> None:
        self._middleware = middleware

    def generate_cache_key(self, request: Request) -> str | Awaitable[str | None] | None:
        return self._middleware.generate_cache_key(request)


async def _tags(source: Any, plan: Plan, scope: Scope) -> list[str] | None:
    """Return the tags that *source* gives for a request, or None if a value in a template is not valid."""
    if not callable(source):
        return plan.fill_in(source, scope)
    tags = source(Request(scope))
    if inspect.isawaitable(tags):
        tags = await tags
    return [checked_tag(tag) for tag in tags]


class Exchange:
    """One request for something that may be cached, from its key to its answer.

    It is also what judges the fill that it leads: what becomes of the answer, and how it is stored.
    """

    def __init__(
        self,
        app: App,
        services: CacheServices,
        plan: Plan,
        policy: CachePolicy,
        keys: KeyGenerator,
        scope: Scope,
    ) -> None:
        self.app = app
        self.store = services.store()
        self.plan = plan
        self.policy = policy
        self.keys = keys
        self.scope = scope
        self.request = RequestHead(scope["method"], tuple(scope["headers"]))
        self.asked = asked_by(self.request, policy)
        self.body = b""
        self.key = ""
        self.logical_key: str | None = None
        self.tags: list[str] = []
        self.late_tags: set[str] = set()
        self.found = Found("")
        self.decision = Forward(Fwd.URI_MISS)
        self.status = CacheStatus()
        self.mark: Mark | None = None
        self.invalidations = 0
        self.fill: Fill | None = None
        self.head = ResponseHead(0, ())
        self.requested_at = 0.0
        self.refusal: Refusal | None = None
        self.entry: Entry | None = None
        self.sent = False

    async def answer(self, receive: Receive, send: Send) -> None:
        """Answer the request, from the cache or by the application."""
        refusal = why_pass(self.request, self.asked)
        if refusal is None and self.request.method in ("POST", "QUERY"):
            receive, refusal = await self._read_body(receive)
        if refusal is None:
            refusal = await self._identify()
        if refusal is not None:
            fwd = Fwd.REQUEST if refusal is Refusal.REQUEST_NO_STORE else Fwd.BYPASS
            await self._pass_through(Forward(fwd, refusal), receive, send)
        elif not await self._answer_from_cache(send):
            await self._forward(receive, send)

    async def _answer_from_cache(self, send: Send) -> bool:
        """Look up, and serve what is found if it may answer."""
        subject = self._subject()
        self.found = await self.store.look_up(self.key, subject, self.request.headers)
        if self.found.entry is None:
            self.decision = Forward(Fwd.VARY_MISS if self.found.varies else Fwd.URI_MISS)
            return False
        response = self.found.entry.response()
        decision = select(
            self.request,
            self.asked,
            response,
            self.policy,
            self.store.now(),
            marked_stale=self.found.marked_stale,
        )
        if isinstance(decision, Forward):
            self.decision = decision
            return False
        if decision.refresh:
            self._refresh()
        await self._serve(send, response, decision, CacheStatus(hit=True, ttl=int(decision.ttl // 1)))
        return True

    async def _forward(self, receive: Receive, send: Send) -> None:
        if self.asked.only_if_cached:
            self._tell(CacheStatus(fwd=self.decision.fwd))
            await _send_plain(send, 504, "Gateway Timeout", str(self.status))
        elif self.request.method == "HEAD":
            await self._pass_through(self.decision, receive, send)
        elif self._goes_alone():
            await self._lead(receive, send, alone=True)
        elif (fill := self._joinable()) is None:
            await self._lead(receive, send)
        else:
            await self._follow(fill, receive, send)

    def _goes_alone(self) -> bool:
        """Return whether nobody may wait for the answer to this request, and it waits for nobody's."""
        return (
            self.decision.fwd in (Fwd.REQUEST, Fwd.BYPASS)
            or unshared_credential(self.request, NOTHING_SAID, self.policy) is not None
            or self.store.flight.is_unshared(self.found.key)
        )

    def _joinable(self) -> Fill | None:
        """Return the fill under way whose answer would be valid for this request were it stored now, or None."""
        fill = self.store.flight.under_way(self.found.key)
        if fill is None or not fill.begun:
            return fill
        leader = cast("Exchange", fill.judge)
        if self.found.reading is None or leader.mark is None:
            unknown = self.found.reading is None and leader.mark is None
            return fill if unknown and leader.invalidations == self.store.invalidations else None
        verdict = self.found.reading.judge(leader.mark, leader.subject_in_flight())
        return fill if verdict.value == "valid" else None

    async def _follow(self, fill: Fill, receive: Receive, send: Send) -> None:
        """Wait for the answer that another request leads; go alone if it cannot be shared."""
        outcome = await fill.follow(FILL_TIMEOUT_S) or NOT_SHARED
        if outcome.entry is not None and self._is_own_variant(outcome.entry, cast("Exchange", fill.judge)):
            response = outcome.entry.response()
            hit = Hit(max(0.0, self.store.now() - response.received_at), response.freshness_lifetime)
            await self._serve(send, response, hit, CacheStatus(fwd=self.decision.fwd, collapsed=True))
        elif outcome.entry is not None:
            if not await self._answer_from_cache(send):
                await self._lead(receive, send, alone=self._joinable() is not None)
        elif not outcome.failed:
            await self._lead(receive, send, alone=True)
        elif self.decision.rescue:
            await self._rescue(send)
        else:
            self._tell(CacheStatus(fwd=self.decision.fwd, collapsed=True))
            await _send_failure(send, outcome, str(self.status))

    def _is_own_variant(self, entry: Entry, leader: Exchange) -> bool:
        vary = leader.vary()
        same = not vary or variant_key(self.key, vary, self.request.headers) == variant_key(
            self.key, vary, leader.request.headers
        )
        return same and {*entry.tags} <= self._subject().tags

    async def _lead(self, receive: Receive, send: Send, *, alone: bool = False) -> None:
        """Run the application in a fill, and send on what it sends."""
        fill = self._take_off(receive, alone=alone)
        try:
            await fill.lead(self._dressed(send))
        except Exception as error:
            if self.sent or not self.decision.rescue:
                raise
            logger.error("cache.rescued", error=type(error).__name__, exc_info=error)
            await self._rescue(send)
            return
        finally:
            self._copy_back()
        if not self.sent and self.entry is not None:
            response = self.entry.response()
            hit = Hit(0.0, response.freshness_lifetime)
            await self._serve(send, response, hit, CacheStatus(fwd=self.decision.fwd, stored=True))
        elif not self.sent and self.decision.rescue:
            logger.warning("cache.rescued", status=self.head.status)
            await self._rescue(send)

    def _take_off(self, receive: Receive | None, *, alone: bool) -> Fill:
        fill = self.fill = Fill(self)
        self.fill_scope = self._scope_of_fill()
        fill.start(self.app, self.fill_scope, self.body, receive)
        self.store.flight.take_off(self.found.key, fill, alone=alone)
        return fill

    def _refresh(self) -> None:
        """Fetch anew in the background, if nobody does (RFC 5861 §3)."""
        if self.store.flight.under_way(self.found.key) is not None or self.request.method == "HEAD":
            return
        exchange = Exchange.__new__(Exchange)
        exchange.__dict__.update(self.__dict__)
        exchange.decision = Forward(Fwd.STALE)
        exchange._take_off(None, alone=False)  # noqa: SLF001

    def _scope_of_fill(self) -> Scope:
        """Return a copy of the scope in which the conditions are those of the cache (RFC 9111 §4.3.1)."""
        headers = without(self.request.headers, CONDITIONAL)
        if self.found.entry is not None:
            headers = validating_headers(self.request.headers, self.found.entry.response()) or headers
        return {**self.scope, "headers": [*headers], LATE_TAGS: self.late_tags}

    def _copy_back(self) -> None:
        for name in COPIED_BACK:
            if name in self.fill_scope:
                self.scope[name] = self.fill_scope[name]

    # What the fill asks.

    @property
    def max_body(self) -> int:
        """Bytes of body beyond which the answer is not stored."""
        return self.policy.max_body

    def vary(self) -> frozenset[str]:
        """Return the fields beyond the key that the answer varies by."""
        named = vary_fields(self.head.headers) or frozenset()
        declared = {"authorization", "cookie"} & {*self.policy.exclude_headers}
        return named - {*self.policy.include_headers} - declared

    def subject_in_flight(self) -> Subject:
        """Return what an invalidation may name the answer by, as far as it is known."""
        return self._subject()

    async def begin(self) -> None:
        """Read the clock before the handler runs."""
        self.invalidations = self.store.invalidations
        expected = (self.policy.timeout or 0.0) + (self.policy.stale_while_revalidate or 0.0)
        self.mark = await self.store.begin(self.found.reading, self._subject(), expected)
        self.requested_at = self.store.now()

    def started(self, status: int, headers: Headers) -> Share:
        """Return what becomes of the answer that starts so."""
        self.head = ResponseHead(status, headers)
        if status == 304 and self.found.entry is not None:
            return Share.WITHHOLD
        if status >= 500 and self.decision.rescue:
            return Share.WITHHOLD
        self.refusal = self._why_not_store()
        if self.refusal is None:
            return Share.STORE
        if status >= 500:
            return Share.FAIL
        self.store.flight.mark_unshared(self.found.key)
        return Share.REFUSE

    def _why_not_store(self) -> Refusal | None:
        head = ResponseHead(self.head.status, end_to_end(self.head.headers))
        length = combined(head.headers, b"content-length")
        if length is not None and length.isdigit() and int(length) > self.policy.max_body:
            return Refusal.TOO_LARGE
        return why_not_store(self.request, head, self.policy, self.store.now())

    async def finished(self, body: bytes) -> Outcome:
        """Store the answer, so that it can be hit when this returns."""
        if self.head.status == 304 and self.found.entry is not None:
            return await self._finish_validation(self.found.entry)
        if self.refusal is not None or self.head.status >= 500:
            return Outcome(failed=True, failure=self._failure(body))
        length = combined(self.head.headers, b"content-length")
        if length is not None and length != str(len(body)):
            self.refusal = Refusal.INCOMPLETE
            return NOT_SHARED
        withheld = withheld_fields(self.head.headers, self.policy)
        headers = without(end_to_end(self.head.headers), withheld)
        return await self._keep(ResponseHead(self.head.status, headers), body)

    async def _finish_validation(self, stored: Entry) -> Outcome:
        """Freshen the stored response by a 304 (RFC 9111 §4.3.4)."""
        self.head = ResponseHead(stored.status, freshened(stored.headers, self.head.headers))
        return await self._keep(self.head, stored.body)

    async def _keep(self, head: ResponseHead, body: bytes) -> Outcome:
        received_at = self.store.now()
        shortened = 1 - self.policy.jitter * random()  # noqa: S311  chance that nobody gains by guessing
        lifetime = (freshness_lifetime(head, self.policy, received_at) or 0.0) * shortened
        seconds = keep_for(head, lifetime, self.policy)
        headers = announced(head.headers, self.policy.include_headers)
        if head.status == 200 and entity_tag(headers) is None:
            headers = (*headers, (b"etag", entity_tag_of(body)))
        revalidate, error = stale_windows(head.headers, self.policy)
        response = StoredResponse(
            head.status, headers, body, self.requested_at, received_at, lifetime, revalidate, error
        )
        tags = tuple(sorted({*self._subject().tags, *map(tag_stamp, self.late_tags)}))
        self.entry = entry_of(
            self.key, self.mark or Mark(), tags, full_path(self.scope), self.logical_key, response
        )
        superseded = self.fill is not None and self.fill.superseded
        if self.mark is not None and not superseded and seconds > 0:
            await self.store.keep(self.entry, seconds, self.request.headers, self.vary())
        return Outcome(entry=self.entry)

    def raised(self) -> Outcome:
        """Return the outcome of a handler that raised."""
        return Outcome(failed=True)

    def _failure(self, body: bytes) -> tuple[int, Headers, bytes] | None:
        """Return a failure that those who wait may see: one that nothing makes the leader's own."""
        if self.refusal not in (None, Refusal.STATUS, Refusal.NOT_FRESH):
            return None
        return self.head.status, end_to_end(self.head.headers), body

    # Identity.

    async def _read_body(self, receive: Receive) -> tuple[Receive, Refusal | None]:
        """Read the content that the key depends on, up to `max_body`; return what gives it again."""
        messages: list[Message] = []
        size = 0
        while True:
            message = await receive()
            messages.append(message)
            size += len(message.get("body", b""))
            if message["type"] != "http.request" or not message.get("more_body", False):
                break
            if size > self.policy.max_body:
                return _replay(messages, receive), Refusal.TOO_LARGE
        if size > self.policy.max_body:
            return _replay(messages, receive), Refusal.TOO_LARGE
        self.body = b"".join(message.get("body", b"") for message in messages)
        return (
            _replay(messages, receive),
            None if messages[-1]["type"] == "http.request" else Refusal.INCOMPLETE,
        )

    async def _identify(self) -> Refusal | None:
        """Find the key and the tags of the request; return why there are none."""
        try:
            varied_by = await self._ask(self.policy.vary_by) if self.policy.vary_by is not None else None
            if self.policy.vary_by is not None and varied_by is None:
                return Refusal.KEY
            logical = await self._logical_key()
            tags = await _tags(self.policy.tags, self.plan, self.scope)
        except Exception as error:  # noqa: BLE001  the application's own hooks: what they raise costs the cache alone
            logger.error("cache.hook_failed", path=self.scope["path"], exc_info=error)
            return Refusal.KEY
        if logical is None:
            return Refusal.KEY
        if tags is None:
            return Refusal.TAGS
        self.tags = tags
        self.key = storage_key(
            self.store.namespace,
            self.request.method,
            logical,
            self.request.headers,
            self.policy,
            varied_by,
        )
        return None

    async def _logical_key(self) -> Any:
        if type(self.keys) is DefaultKeyGenerator:
            with_body = self.request.method in ("POST", "QUERY")
            return request_parts(self.scope, self.body if with_body else None, self.policy)
        self.scope[POLICY] = self.policy
        self.logical_key = await self._ask(self.keys.generate_cache_key)
        return self.logical_key

    async def _ask(self, hook: Callable[[Request], Any]) -> str | None:
        content: list[Message] = [{"type": "http.request", "body": self.body, "more_body": False}]

        async def receive() -> Message:
            return content.pop() if content else {"type": "http.disconnect"}

        answer = hook(Request(self.scope, receive))
        if inspect.isawaitable(answer):
            answer = await answer
        if answer is not None and not isinstance(answer, str):
            raise TypeError(f"a key must be a string or None, not {answer!r}")
        return None if answer is None else answer.encode("utf-8", "replace").decode("utf-8")

    def _subject(self) -> Subject:
        path = full_path(self.scope)
        here = origin(self.scope.get("scheme", "http"), host_of(self.scope))
        stamps = {url_stamp(path), url_stamp(path, here), *map(tag_stamp, self.tags)}
        if self.logical_key is not None:
            stamps.add(key_stamp(self.logical_key))
        return Subject(frozenset(stamps), path, self.logical_key, self.key)

    # Answers.

    async def _pass_through(self, decision: Forward, receive: Receive, send: Send) -> None:
        """Let the application answer, untouched but for Cache-Status."""
        if self.asked.only_if_cached:
            self.decision = decision
            await self._forward(receive, send)
            return
        self._tell(CacheStatus(fwd=decision.fwd, detail=decision.detail))

        async def send_told(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {
                    **message,
                    "headers": [*message.get("headers", ()), (b"cache-status", str(self.status).encode())],
                }
            await send(message)

        await self.app(self.scope, receive, send_told)

    def _dressed(self, send: Send) -> Send:
        """Return *send* for the leader: it adds what the cache says, and makes a 304 of what the client has."""
        matched = False

        async def send_dressed(message: Message) -> None:
            nonlocal matched
            if message["type"] == "http.response.start":
                self.sent = True
                headers = self._headers_of_miss(tuple(message["headers"]))
                self._tell(self._status_of_miss())
                matched = self._client_has_it(message["status"], headers, self.store.now())
                status = 304 if matched else message["status"]
                await _send_start(
                    send, status, fields_of_304(headers) if matched else headers, str(self.status), message
                )
            elif matched and message["type"] == "http.response.body":
                if not message.get("more_body", False):
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
            else:
                await send(message)

        return send_dressed

    def _headers_of_miss(self, headers: Headers) -> Headers:
        headers = self._for_client(announced(headers, self.policy.include_headers))
        tag = None if self.entry is None else entity_tag(self.entry.headers)
        if tag is not None and entity_tag(headers) is None:
            headers = (*headers, (b"etag", tag.encode("latin-1")))
        return headers

    def _status_of_miss(self) -> CacheStatus:
        stored = self.entry is not None and self.mark is not None
        detail = self.refusal or self.decision.detail
        return CacheStatus(fwd=self.decision.fwd, stored=stored, detail=detail)

    def _for_client(self, headers: Headers) -> Headers:
        if self.policy.client_max_age is None or combined(headers, b"cache-control") is not None:
            return headers
        return (*headers, (b"cache-control", b"max-age=%d" % self.policy.client_max_age))

    def _client_has_it(self, status: int, headers: Headers, received_at: float) -> bool:
        if status != 200 or self.request.method == "POST":
            return False
        return not_modified(self.request.headers, headers, received_at)

    async def _serve(self, send: Send, response: StoredResponse, hit: Hit, status: CacheStatus) -> None:
        """Send the stored response, or a 304 (RFC 9111 §4, §4.3.2)."""
        self._tell(status)
        headers = self._for_client(without(response.headers, frozenset({b"age"})))
        headers = _with_true_length(headers, len(response.body))
        if status.hit:
            headers = (*headers, (b"age", b"%d" % int(hit.age)))
        if self._client_has_it(response.status, headers, response.received_at):
            await _send_start(send, 304, fields_of_304(headers), str(status), {})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        await _send_start(send, response.status, headers, str(status), {})
        body = b"" if self.request.method == "HEAD" else response.body
        await send({"type": "http.response.body", "body": body, "more_body": False})

    async def _rescue(self, send: Send) -> None:
        """Serve the stale response in place of a failure (RFC 5861 §4)."""
        entry = self.found.entry
        if entry is None:
            raise RuntimeError("there is no stored response to stand in")
        response = entry.response()
        age = max(0.0, self.store.now() - response.received_at)
        status = CacheStatus(hit=True, fwd=self.decision.fwd, ttl=int((response.freshness_lifetime - age) // 1))
        await self._serve(send, response, Hit(age, response.freshness_lifetime - age), status)

    def _tell(self, status: CacheStatus) -> None:
        """Say what happened, in one value: for the header, the application and the metrics."""
        self.status = status
        self.scope.setdefault("state", {})["cache"] = status
        self.store.stats[status.outcome] += 1


def _replay(messages: list[Message], receive: Receive) -> Receive:
    left = [*reversed(messages)]

    async def receive_again() -> Message:
        return left.pop() if left else await receive()

    return receive_again


def _with_true_length(headers: Headers, length: int) -> Headers:
    return tuple(
        (name, b"%d" % length) if name.lower() == b"content-length" else (name, value) for name, value in headers
    )


async def _send_start(send: Send, status: int, headers: Headers, cache_status: str, start: Message) -> None:
    told = [*headers, (b"cache-status", cache_status.encode("ascii"))]
    await send({**start, "type": "http.response.start", "status": status, "headers": told})


async def _send_plain(send: Send, status: int, text: str, cache_status: str) -> None:
    body = text.encode("ascii")
    headers = ((b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(body)))
    await _send_start(send, status, headers, cache_status, {})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def _send_failure(send: Send, outcome: Outcome, cache_status: str) -> None:
    """Send the failure of a fill to one who waited for it."""
    if outcome.failure is None:
        await _send_plain(send, 500, "Internal Server Error", cache_status)
        return
    status, headers, body = outcome.failure
    await _send_start(send, status, headers, cache_status, {})
    await send({"type": "http.response.body", "body": body, "more_body": False})

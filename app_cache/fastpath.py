"""Hits that are given again: what an exchange decided holds while nothing that it looked at has changed.

`Exchange` is the reference and decides every case. Here the plain one is remembered, a fresh hit, and given to
requests that differ in nothing that was looked at. A backend that answers at once shows that all is as it was; one
that is afar is asked for just that, in one trip. A look that is left out would be a wrong answer: the tests hold
that both ways answer alike, byte for byte.
"""

from __future__ import annotations

from collections import Counter
from sys import getsizeof
from typing import TYPE_CHECKING, Any

from app_cache.answers import answer_of
from app_cache.backends.base import InstantBackend, capability
from app_cache.keys import DefaultKeyGenerator
from app_cache.offers import EXTENSION, Offer
from app_cache.rules.cache_status import CacheStatus
from app_cache.rules.decisions import unshared_credential
from app_cache.rules.directives import response_directives
from app_cache.rules.freshness import current_age
from app_cache.rules.messages import RequestHead
from app_cache.rules.validators import entity_tag, fields_of_304
from app_cache.services import parts_in_force

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, MutableMapping

    from app_cache.clock.base import Basis, Gate
    from app_cache.exchange import Exchange
    from app_cache.middleware import CacheMiddleware
    from app_cache.policy import CachePolicy
    from app_cache.routes import RouteTable
    from app_cache.rules.decisions import Hit
    from app_cache.rules.messages import Headers, StoredResponse
    from app_cache.services import CacheServices

    Scope = MutableMapping[str, Any]
    Message = dict[str, Any]
    Messages = tuple[Message, Message]
    Selection = tuple[tuple[bytes, tuple[bytes, ...]], ...]
    _Key = tuple[Any, ...]

MAX_REQUESTS = 4_096
"""Requests whose hit is remembered at once; the one that was learned first goes first."""
MAX_BYTES = 32 * 1024 * 1024
"""Bytes that all of them count together, beside what is in the backend."""
OVERHEAD = 1_024
"""The bytes that a hit counts beside what is told of its request, its answer and what it rests on."""
EDGE_S = 0.001
"""Seconds before the end of its freshness from which an exchange decides on a hit."""
MAX_FORMS = 32
"""Hits remembered for one URL, whose requests differ in fields that select a variant."""

HOST, TAGS, DECIDES, AUTHORIZATION, COOKIE = 1, 2, 4, 8, 16
"""What a field of the request is for the decision: a part of the key, a condition by tags, something that is left
to the exchange, a credential."""
WATCHED = {
    b"host": HOST,
    b"if-none-match": TAGS,
    b"authorization": AUTHORIZATION,
    b"cookie": COOKIE,
    **dict.fromkeys(
        (
            b"cache-control",
            b"content-length",
            b"if-match",
            b"if-modified-since",
            b"if-range",
            b"if-unmodified-since",
            b"pragma",
            b"range",
            b"transfer-encoding",
        ),
        DECIDES,
    ),
}
"""The fields that an exchange looks at in each request, by name as ASGI has it, in lower case."""


class Ready:
    """A hit as it is given while what it depends on is as it was.

    Args:
        exchange: The one that decided it.
        response: What it answered with.
        hit: How.
    """

    def __init__(self, exchange: Exchange, response: StoredResponse, hit: Hit) -> None:
        now = exchange.store.now()
        self.response = response
        self.store = exchange.store
        self.selects = _selecting(exchange)
        self.refused = _refused(exchange.policy, response.headers)
        self.since, self.until = now, now + hit.ttl - EDGE_S
        self.whole = answer_of(RequestHead("GET", ()), exchange.policy, response, None)
        self.answers = (
            (self.whole.status, self.whole.headers, self.whole.body),
            (304, fields_of_304(self.whole.headers), b""),
        )
        """Status, fields and body, without what is told of the moment: those of the whole, those of a 304."""
        self.tag = (entity_tag(self.whole.headers) or "").encode("latin-1")
        request = (_key_of(exchange.scope, _host_of(exchange.scope)), self.selects)
        self.size = OVERHEAD + _weight((request, self.answers))
        """The bytes that it counts."""
        self.next: Ready | None = None
        self._initial_age = current_age(response, response.received_at)
        self._changes_at = 0.0
        self._lines: Headers = ()
        self._status = CacheStatus()

    def holds(self, now: float) -> bool:
        """Return whether nothing has changed, as far as that is known without asking."""
        return self.since <= now < self.until

    def messages(self, scope: Scope, now: float, *, unchanged: bool) -> Messages:
        """Return what answers the request of *scope*; *unchanged*: with a 304."""
        lines, status = self.told(now)
        code, fields, body = self.answers[unchanged]
        if scope["method"] == "HEAD":
            body = b""
        scope.setdefault("state", {})["cache"] = status
        self.store.stats["hit"] += 1
        return (
            {"type": "http.response.start", "status": code, "headers": [*fields, *lines]},
            {"type": "http.response.body", "body": body, "more_body": False},
        )

    given: Callable[..., Messages | Question] = messages
    """Returns what answers a request, or what gets it."""

    def told(self, now: float) -> tuple[Headers, CacheStatus]:
        """Return Age and Cache-Status at *now*; they are made anew when a second has passed."""
        if not self._changes_at - 1 <= now < self._changes_at:
            age = self._initial_age + max(0.0, now - self.response.received_at)
            ttl = self.response.freshness_lifetime - age
            self._status = CacheStatus(hit=True, ttl=int(ttl // 1))
            self._lines = ((b"age", b"%d" % int(age)), (b"cache-status", str(self._status).encode("ascii")))
            self._changes_at = now + min(1 - age % 1, ttl % 1)
        return self._lines, self._status


class ReadyHere(Ready):
    """A hit of a backend that answers at once.

    Args:
        exchange: The one that decided it.
        response: What it answered with.
        hit: How.
        backend: The backend of its store.
        gate: That of its clock.
        value: What that holds, the very object.
    """

    def __init__(
        self,
        exchange: Exchange,
        response: StoredResponse,
        hit: Hit,
        backend: InstantBackend,
        gate: Gate,
        value: bytes,
    ) -> None:
        super().__init__(exchange, response, hit)
        self.backend = backend
        self.key = exchange.found.key
        self.value = value
        self.size += _weight(value)
        self.varies = _variants_of(exchange, backend)
        self.gate = gate
        self.epochs = gate.epochs

    def holds(self, now: float) -> bool:
        """Return whether nothing has changed: time, invalidations, what the backend holds."""
        if not self.since <= now < self.until or self.gate.epochs is not self.epochs:
            return False
        if self.backend.get_now(self.key) is not self.value or self.store.is_gone(self.key):
            return False
        return self.varies is None or self.backend.get_now(self.varies[0]) is self.varies[1]


class ReadyAfar(Ready):
    """A hit of a backend that is to be asked, each time, for all that the hit rests on.

    Args:
        exchange: The one that decided it.
        response: What it answered with.
        hit: How.
        basis: What it rests on.
    """

    def __init__(self, exchange: Exchange, response: StoredResponse, hit: Hit, basis: Basis) -> None:
        super().__init__(exchange, response, hit)
        self.basis = basis
        self.size += _weight(tuple(basis.values))

    def given(self, scope: Scope, now: float, *, unchanged: bool) -> Question:
        """Return the question that gets the messages."""
        return Question(self, scope, unchanged=unchanged)


class Question:
    """A hit that is given again if its backend says that all is as it was."""

    def __init__(self, ready: ReadyAfar, scope: Scope, *, unchanged: bool) -> None:
        self._ready = ready
        self._scope = scope
        self._unchanged = unchanged

    async def asked(self) -> tuple[Messages | None, bool]:
        """Return the messages that answer the request, None if the exchange decides; and whether asking failed."""
        ready = self._ready
        still = await ready.store.is_still(ready.basis)
        now = ready.store.now()
        if not still or not ready.holds(now):
            return None, still is None
        return ready.messages(self._scope, now, unchanged=self._unchanged), False


class FastPath:
    """The hits of one middleware that may be given again, by what tells their requests apart.

    Args:
        table: The routes of its application.
        cache: The middleware.
    """

    def __init__(self, table: RouteTable, cache: CacheMiddleware) -> None:
        self.cache = cache
        self.era = object()
        """Another object after each change of what hits were learned with."""
        self._table = table
        self._ready: dict[_Key, Ready] = {}
        self._hit_once: set[int] = set()
        """The hashes of requests that were hit while there was no room for them."""
        self._paths: Counter[str] = Counter()
        """How many hits there are for a path; requests for others need no look at their fields."""
        self._bytes = 0
        self._services: CacheServices | None = None
        self._parts_now: Callable[[], object] = tuple
        self._parts: object = None
        self._version: object = None

    def answer(self, scope: Scope, services: CacheServices) -> Messages | Question | None:
        """Return the messages that answer a request, or what gets them; None: the exchange decides."""
        if scope["path"] not in self._paths:
            return None
        seen = 0
        host = tag = b""
        for name, value in scope["headers"]:
            watched = WATCHED.get(name)
            if watched is not None:
                if watched & (seen | DECIDES):
                    return None
                seen |= watched
                if watched == HOST:
                    host = value
                elif watched == TAGS:
                    tag = value
        ready = self._ready.get(_key_of(scope, host))
        if ready is None or self.has_changed(services):
            return None
        found = ready if not ready.selects else _selected(ready, scope["headers"])
        if (
            found is None
            or seen & found.refused
            or (tag and tag != found.tag)
            or not found.holds(now := found.store.now())
        ):
            return None
        unchanged = bool(tag)
        if scope.get("extensions"):
            self._offer(scope, found, unchanged=unchanged)
        return found.given(scope, now, unchanged=unchanged)

    def _offer(self, scope: Scope, ready: Ready, *, unchanged: bool) -> None:
        """Offer the hit *ready* to the server, if that takes offers."""
        take = scope["extensions"].get(EXTENSION)
        if take is not None and isinstance(ready, ReadyHere):
            take(Offer(self, ready, unchanged=unchanged), scope)

    def has_changed(self, services: CacheServices) -> bool:
        """Return whether routes, or the parts of the cache, are others than those that hits were learned with."""
        return (
            services is not self._services
            or self._parts_now() != self._parts
            or self._table.current_version() != self._version
        )

    def learn(self, exchange: Exchange, response: StoredResponse, hit: Hit) -> None:
        """Remember the *hit* that *exchange* gives, if it is plain and, where room is short, not a rare one."""
        key = _key_of(exchange.scope, _host_of(exchange.scope))
        if not self._has_room(len(response.body)) and not self._is_hit_again(key):
            return
        if not _is_plain(exchange, hit):
            return
        ready = _ready_here(exchange, response, hit) or _ready_afar(exchange, response, hit)
        if ready is None or ready.size > MAX_BYTES:
            return
        self._begin_anew_if_changed(exchange.services)
        earlier = [each for each in _forms(self._ready.get(key)) if each.selects != ready.selects]
        self._forget(key)
        for each in (ready, *earlier[: MAX_FORMS - 1])[::-1]:
            each.next, self._ready[key] = self._ready.get(key), each
            self._bytes += each.size
            self._paths[key[0]] += 1
        while len(self._ready) > MAX_REQUESTS or self._bytes > MAX_BYTES:
            self._forget(next(iter(self._ready)))
        if exchange.scope.get("extensions"):
            self._offer(exchange.scope, ready, unchanged=False)

    def _has_room(self, body: int) -> bool:
        """Return whether one more fits, as far as the size of its *body* tells."""
        return len(self._ready) < MAX_REQUESTS and self._bytes + 2 * body + OVERHEAD <= MAX_BYTES

    def _is_hit_again(self, key: _Key) -> bool:
        """Return whether the request of *key* was hit lately: to learn costs half a hit, and puts another out."""
        if key in self._ready:
            return True
        mark = hash(key)
        if mark in self._hit_once:
            self._hit_once.remove(mark)
            return True
        if len(self._hit_once) >= MAX_REQUESTS:
            self._hit_once.clear()
        self._hit_once.add(mark)
        return False

    def _begin_anew_if_changed(self, services: CacheServices) -> None:
        if self.has_changed(services):
            self.era = object()
            self._ready.clear()
            self._paths.clear()
            self._bytes = 0
            self._services, self._parts_now = services, parts_in_force(services)
            self._parts, self._version = self._parts_now(), self._table.current_version()

    def _forget(self, key: _Key) -> None:
        for each in _forms(self._ready.pop(key, None)):
            self._bytes -= each.size
            self._paths[key[0]] -= 1
            if not self._paths[key[0]]:
                del self._paths[key[0]]


def _ready_here(exchange: Exchange, response: StoredResponse, hit: Hit) -> Ready | None:
    backend, gate = capability(exchange.store.backend, InstantBackend), exchange.store.clock.gate
    value = None if backend is None else backend.get_now(exchange.found.key)
    if backend is None or gate is None or value is None:
        return None
    return ReadyHere(exchange, response, hit, backend, gate, value)


def _ready_afar(exchange: Exchange, response: StoredResponse, hit: Hit) -> Ready | None:
    """Return the hit if one trip can ask for what it rests on; a variant rests on more than one record."""
    basis = exchange.store.basis(exchange.found)
    if basis is None or exchange.found.key != exchange.known.key:
        return None
    return ReadyAfar(exchange, response, hit, basis)


def _weight(value: object) -> int:
    """Return the bytes that *value* takes, with those of what is in it if it is a tuple."""
    return getsizeof(value) + (sum(map(_weight, value)) if isinstance(value, tuple) else 0)


def _key_of(scope: Scope, host: bytes) -> _Key:
    """Return what tells requests apart for every exchange, the fields aside that select."""
    return (
        scope["path"],
        scope.get("raw_path"),
        scope.get("query_string"),
        host or scope.get("server"),
        scope["method"],
        scope.get("scheme"),
        scope.get("root_path"),
    )


def _host_of(scope: Scope) -> bytes:
    return next((value for name, value in scope["headers"] if name == b"host"), b"")


def _is_plain(exchange: Exchange, hit: Hit) -> bool:
    """Return whether nothing but what is compared decided that *exchange* gives *hit*."""
    policy, plan, request = exchange.policy, exchange.plan, exchange.request
    return (
        request.method in ("GET", "HEAD")
        and hit.ttl > 0
        and not hit.refresh
        and not policy.guarded
        and policy.vary_by is None
        and policy.early_refresh == 0
        and type(exchange.keys) is DefaultKeyGenerator
        and plan.invalidates is None
        and plan.has_tags_of_url(policy.tags)
        and len(_lines_of(request.headers, b"host")) <= 1
        and not any(WATCHED.get(name, 0) & (TAGS | DECIDES) for name, _ in request.headers)
    )


def _refused(policy: CachePolicy, response: Headers) -> int:
    """Return the credentials with which the exchange would have to decide anew."""
    said = response_directives(response)
    refused = 0
    for name, bit in ((b"authorization", AUTHORIZATION), (b"cookie", COOKIE)):
        asked = RequestHead("GET", ((name, b"x"),))
        if not policy.http_only and unshared_credential(asked, said, policy) is not None:
            refused |= bit
    return refused


def _variants_of(exchange: Exchange, backend: InstantBackend) -> tuple[str, bytes | None] | None:
    """Return the key of the record of variants and what is there; None where the response is no variant."""
    key = exchange.known.key
    return None if key == exchange.found.key else (key, backend.get_now(key))


def _selecting(exchange: Exchange) -> Selection:
    """Return the fields that select among stored responses, with their lines in the request."""
    names = {*exchange.policy.include_headers, *exchange.store.fields_that_select(exchange.known.key)}
    lines = exchange.request.headers
    return tuple((name, _lines_of(lines, name)) for name in sorted(each.encode("latin-1") for each in names))


def _lines_of(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> tuple[bytes, ...]:
    return tuple([value for each, value in headers if each == name])


def _forms(ready: Ready | None) -> Iterator[Ready]:
    while ready is not None:
        yield ready
        ready = ready.next


def _selected(ready: Ready, headers: Iterable[tuple[bytes, bytes]]) -> Ready | None:
    """Return the one of the forms of *ready* that a request with *headers* selects."""
    for each in _forms(ready):
        if all(_lines_of(headers, name) == lines for name, lines in each.selects):
            return each
    return None

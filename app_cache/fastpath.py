"""Hits that are given again: what an exchange decided holds while nothing that it looked at has changed.

`Exchange` is the reference and decides every case. Here the plain one is remembered, a fresh hit, and given to
requests that differ in nothing that was looked at. A backend that answers at once shows that all is as it was; one
that is afar is asked for just that, in one trip. A look that is left out would be a wrong answer: the tests hold
that both ways answer alike, byte for byte.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from sys import getsizeof
from typing import TYPE_CHECKING, Any

from app_cache.answers import answer_of
from app_cache.backends.base import InstantBackend, capability
from app_cache.exchange import ASKED_IN_VAIN
from app_cache.keys import DefaultKeyGenerator
from app_cache.logger_config import SparingLogger
from app_cache.offers import EXTENSION, Offer
from app_cache.rules.cache_status import CacheStatus, ttl_of
from app_cache.rules.decisions import unshared_credential
from app_cache.rules.directives import response_directives
from app_cache.rules.freshness import current_age
from app_cache.rules.messages import RequestHead
from app_cache.rules.validators import entity_tag, fields_of_304, is_entity_tag
from app_cache.services import SCOPE_KEY, replacements, same_parts
from app_cache.sessions import begins_session, has_user, is_readable

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator

    from app_cache.asgi import Scope
    from app_cache.backends.base import Lent
    from app_cache.clock.base import Basis, Gate
    from app_cache.exchange import Exchange
    from app_cache.middleware import CacheMiddleware
    from app_cache.routes.table import RouteTable
    from app_cache.rules.decisions import Hit
    from app_cache.rules.messages import Answer, Headers, StoredResponse
    from app_cache.services import CacheServices
    from app_cache.store import StoredResponses

    Message = dict[str, Any]
    Messages = tuple[Message, Message]
    Selection = tuple[tuple[bytes, tuple[bytes, ...]], ...]
    Key = tuple[bytes | None, tuple[Any, ...]]

MAX_REQUESTS = 4_096
"""Requests whose hit is remembered at once; the one that was learned first goes first."""
MAX_BYTES = 32 * 1024 * 1024
"""Bytes that all of them count together, beside what is in the backend."""
OVERHEAD = 1_024
"""The bytes that a hit counts beside what is told of its request, its answer and what it rests on."""
EDGE_S = 0.001
"""Seconds before the end of its freshness from which an exchange decides on a hit."""
MAX_SHARED = 256
"""Bytes of a value beyond which a field is kept for each hit that has it."""
MAX_FORMS = 32
"""Hits remembered for one URL, whose requests differ in fields that select a variant."""

HOST, TAGS, DECIDES, AUTHORIZATION, COOKIE, USER, SESSION = 1, 2, 4, 8, 16, 32, 64
"""What a field of the request is for the decision: a part of the key, a condition by tags, something that is left
to the exchange, a credential; a user that the application knows is one too, and a session that it begins."""
DECIDED_ANEW = frozenset(
    {
        *(b"cache-control", b"content-length", b"if-match", b"if-modified-since", b"if-range"),
        *(b"if-unmodified-since", b"pragma", b"range", b"transfer-encoding"),
    }
)
"""Fields of requests whose answer an exchange decides each time."""
WATCHED = {
    b"host": HOST,
    b"if-none-match": TAGS,
    b"authorization": AUTHORIZATION,
    b"cookie": COOKIE,
    **dict.fromkeys(DECIDED_ANEW, DECIDES),
}
"""The fields that an exchange looks at in each request, by name as ASGI has it, in lower case."""
WATCHED |= {
    spelt: DECIDES for name in WATCHED for spelt in (name.title(), name.upper())
}  # from drivers that leave them as they were written


NOT_TOLD = CacheStatus()


@lru_cache(maxsize=1_024)
def _one_for_all(field: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
    """Return *field* as one object for all hits that have it.

    What many hits have in common stays in the cache of the processor, however many they are.
    """
    return field


@lru_cache(maxsize=1_024)
def _told_of(age: int, ttl: int) -> tuple[CacheStatus, Headers]:
    """Return what is told of a hit of that *age*, fresh for *ttl* seconds: Age and Cache-Status."""
    status = CacheStatus(hit=True, ttl=ttl)
    return status, ((b"age", b"%d" % age), (b"cache-status", str(status).encode("ascii")))


class Doorkeeper:
    """Admits what comes a second time; of what came once it keeps a mark alone.

    Args:
        most: Marks that it keeps at once; beyond, it begins anew.
    """

    __slots__ = ("marks", "most")

    def __init__(self, most: int) -> None:
        self.most = most
        self.marks: set[int] = set()

    def admits(self, key: Hashable) -> bool:
        """Return whether *key* came lately; if so it is forgotten, else remembered."""
        mark = hash(key)
        if mark in self.marks:
            self.marks.remove(mark)
            return True
        if len(self.marks) >= self.most:
            self.marks.clear()
        self.marks.add(mark)
        return False


class Ready:
    """A hit as it is given while what it depends on is as it was.

    Args:
        key: What tells its requests apart from those of other hits.
        exchange: The one that decided it.
        response: What it answered with.
        hit: How.
    """

    __slots__ = (
        "__weakref__",
        "_initial_age",
        "_lifetime",
        "_lines",
        "_now",
        "_received_at",
        "_since",
        "_stats",
        "_status",
        "_told_since",
        "_told_until",
        "_until",
        "answers",
        "left",
        "next",
        "path_params",
        "refused",
        "selects",
        "size",
        "store",
        "tag",
    )

    def __init__(self, key: Key, exchange: Exchange, response: StoredResponse, hit: Hit) -> None:
        self.store, self._now, self._stats = exchange.store, exchange.store.now, exchange.store.stats
        self._since = self._now()
        self._until = self._since + hit.ttl - EDGE_S
        self.selects = _selecting(exchange)
        self.refused = DECIDES | _refused(exchange, response.headers)
        whole = answer_of(RequestHead(exchange.request.method, ()), exchange.policy, response, None)
        fields = tuple(_one_for_all(each) if len(each[1]) <= MAX_SHARED else each for each in whole.headers)
        self.answers = (whole.status, fields, whole.body), (304, fields_of_304(fields), b"")
        """Status, fields and body, without what is told of the moment: those of the whole, those of a 304."""
        self.tag = _tag_of_200(whole)
        """What a client has that gets a 304; empty where the exchange decides on that."""
        self.size = OVERHEAD + _weight((key, self.selects, self.answers))
        """The bytes that it counts."""
        self.left, self.path_params = exchange.plan.left, exchange.plan.path_params
        self.next: Ready | None = None
        self._received_at, self._lifetime = response.received_at, response.freshness_lifetime
        self._initial_age = current_age(response, response.received_at)
        self._told_since = self._told_until = 0.0
        self._lines: Headers = ()
        self._status = NOT_TOLD

    def told(self) -> Headers | None:
        """Return Age and Cache-Status of the moment; None if something that shows by itself has changed."""
        now = self._now()
        return self._lines if self._told_since <= now < self._told_until or self._tells(now) else None

    def count(self) -> None:
        """Count the hit as given."""
        self._stats["hit"] += 1

    def messages(self, scope: Scope, tag: bytes) -> Messages | None:
        """Return what answers the request of *scope*: a 304 where the client has what has its *tag*, if any.

        None if something has changed.
        """
        told = self.told()
        if told is None:
            return None
        if self.left:
            scope.update(self.left)
            scope["path_params"] = {**scope.get("path_params", {}), **self.path_params}
        if "state" not in scope:
            scope["state"] = {"cache": self._status}
        elif type((state := scope["state"]).get("cache", NOT_TOLD)) is CacheStatus:
            state["cache"] = self._status
        code, fields, body = self.answers[bool(tag)]
        self._stats["hit"] += 1
        return (
            {"type": "http.response.start", "status": code, "headers": [*fields, *told]},
            {"type": "http.response.body", "body": body, "more_body": False},
        )

    given: Callable[..., Messages | Question | None] = messages
    """Returns what answers a request, or what gets it."""

    def _tells(self, now: float) -> bool:
        """Return whether the hit is fresh at *now*; make Age and Cache-Status for the rest of the second if so."""
        if not self._since <= now < self._until:
            return False
        age = self._initial_age + max(0.0, now - self._received_at)
        ttl = self._lifetime - age
        self._status, self._lines = _told_of(int(age), ttl_of(ttl))
        self._told_since, self._told_until = now, min(now + min(1 - age % 1, ttl % 1), self._until)
        return True


class ReadyHere(Ready):
    """A hit of a backend that lends what it has.

    Args:
        key: What tells its requests apart from those of other hits.
        exchange: The one that decided it.
        response: What it answered with.
        hit: How.
        gate: That of the clock.
        lent: The response, and what selected it if it is a variant, each with the clock by which it expires.
    """

    __slots__ = ("epochs", "gate", "gone", "kept_until", "key", "lent", "ticks", "variants")

    def __init__(
        self,
        key: Key,
        exchange: Exchange,
        response: StoredResponse,
        hit: Hit,
        gate: Gate,
        lent: list[tuple[Lent, Callable[[], float]]],
    ) -> None:
        super().__init__(key, exchange, response, hit)
        (self.lent, self.ticks), *variants = lent
        self.variants = variants[0][0] if variants else None
        self.kept_until = min(each.expires_at for each, _ in lent)
        self.size += _weight(self.lent.value)
        self.key = exchange.found.key
        self.gone = exchange.store.gone
        self.gate = gate
        self.epochs = gate.epochs

    def told(self) -> Headers | None:
        """Return Age and Cache-Status of the moment; None if time, invalidations or the backend say otherwise."""
        now = self._now()
        if (
            not (self._told_since <= now < self._told_until or self._tells(now))
            or self.gate.epochs is not self.epochs
            or not self.lent.live
            or self.ticks() >= self.kept_until
            or (self.gone and self.key in self.gone)
        ):
            return None
        if self.variants is not None:
            if not self.variants.live:
                return None
            self.variants.read = True
        self.lent.read = True
        return self._lines


class ReadyAfar(Ready):
    """A hit of a backend that is to be asked, each time, for all that the hit rests on.

    Args:
        key: What tells its requests apart from those of other hits.
        exchange: The one that decided it.
        response: What it answered with.
        hit: How.
        basis: What it rests on.
    """

    __slots__ = ("basis",)

    def __init__(self, key: Key, exchange: Exchange, response: StoredResponse, hit: Hit, basis: Basis) -> None:
        super().__init__(key, exchange, response, hit)
        self.basis = basis
        self.size += _weight(tuple(basis.values))

    def given(self, scope: Scope, tag: bytes) -> Question | None:
        """Return the question that gets the messages; None if there is no need to ask it."""
        return None if self.told() is None else Question(self, scope, tag)


class Question:
    """A hit that is given again if its backend says that all is as it was."""

    def __init__(self, ready: ReadyAfar, scope: Scope, tag: bytes) -> None:
        self._ready = ready
        self._scope = scope
        self._tag = tag

    async def asked(self) -> Messages | None:
        """Return the messages that answer the request; None: the exchange decides, and is told of a failure."""
        still = await self._ready.store.is_still(self._ready.basis)
        messages = self._ready.messages(self._scope, self._tag) if still else None
        if messages is None:
            self._scope[ASKED_IN_VAIN] = still is None
        return messages


@dataclass(frozen=True, slots=True, eq=False)
class Era:
    """A time in which routes, and the parts of the cache, are the same.

    Args:
        store: The stored responses in force.
    """

    store: StoredResponses


class FastPath:
    """The hits of one middleware that may be given again, by what tells their requests apart.

    Args:
        table: The routes of its application.
        cache: The middleware.
    """

    def __init__(self, table: RouteTable, cache: CacheMiddleware) -> None:
        self.cache = cache
        self.era: Era | None = None
        """That in which all hits were learned that are remembered."""
        self._log = SparingLogger(time.monotonic)
        self._table = table
        self._ready: dict[Key, Ready] = {}
        self._hit_once = Doorkeeper(MAX_REQUESTS)
        """What was hit while there was no room for it: to learn costs half a hit, and puts another out."""
        self.paths: dict[str, int] = {}
        """How many hits there are for a path; requests for others need no look at their fields."""
        self._bytes = 0
        self._services: CacheServices | None = None
        self._mark = replacements.mark
        """That of the parts which tell when they are replaced."""
        self._checks: tuple[Callable[[], bool], ...] = ()
        """What tells whether routes, and the parts that do not tell, are the same."""

    def answer(self, scope: Scope) -> Messages | Question | None:
        """Return the messages that answer a request, or what gets them; None: the exchange decides."""
        if SCOPE_KEY in scope or ASKED_IN_VAIN in scope:
            return None
        try:
            return self._answer(scope)
        except Exception as error:  # noqa: BLE001  providers and clocks of the application's own are asked
            self.failed(error)
            return None

    def _answer(self, scope: Scope) -> Messages | Question | None:
        seen = 0
        host: bytes | None = None
        tag = b""
        for name, value in scope["headers"]:
            if name in WATCHED:
                watched = WATCHED[name]
                if watched & (seen | DECIDES):
                    return None
                seen |= watched
                if watched == HOST:
                    host = value
                elif watched == TAGS:
                    tag = value
        if "user" in scope or "session" in scope or ((state := scope.get("state")) and "user" in state):
            seen |= _known_further_out(scope)
        try:
            ready = self._ready[host, _told_apart(scope)]
        except KeyError:
            return None
        found = ready if not ready.selects else _selected(ready, scope["headers"])
        if found is None or seen & found.refused or (tag and tag != found.tag) or not self.is_current():
            return None
        given = found.given(scope, tag)
        if given is not None and EXTENSION in (scope.get("extensions") or ()):
            self._offer(scope, found, unchanged=bool(tag))
        return given

    def failed(self, error: Exception) -> None:
        """Say that what is remembered could not be given again, since what was asked for it raised *error*."""
        self._log.failed("cache.hit_failed", "remembered hits", error)

    def _offer(self, scope: Scope, ready: Ready, *, unchanged: bool) -> None:
        """Offer the hit *ready* to the server, which takes offers, if it may be given without asking."""
        if isinstance(ready, ReadyHere):
            scope["extensions"][EXTENSION](Offer(self, ready, unchanged=unchanged), scope)

    def is_current(self) -> bool:
        """Return whether routes, and the parts of the cache, are those that hits were learned with."""
        if replacements.mark is not self._mark:
            return False
        for holds in self._checks:  # noqa: SIM110  a generator would cost as much as all else
            if not holds():
                return False
        return True

    def learn(self, era: Era, exchange: Exchange, response: StoredResponse, hit: Hit) -> None:
        """Remember the *hit* that *exchange* gives, if it is plain and, where room is short, not a rare one.

        It is not remembered if *era*, in which the exchange began, is known to be over: other parts decided on it.
        """
        key = _key_of(exchange.scope)
        if key is None:
            return
        if not (self._has_room(len(response.body)) or key in self._ready or self._hit_once.admits(key)):
            return
        if not _is_plain(exchange, hit) or era is not self.era:
            return
        ready = _ready_here(key, exchange, response, hit) or _ready_afar(key, exchange, response, hit)
        if ready is None or ready.size > MAX_BYTES:
            return
        earlier = [each for each in _forms(self._ready.get(key)) if each.selects != ready.selects]
        self._forget(key)
        for each in (ready, *earlier[: MAX_FORMS - 1])[::-1]:
            each.next, self._ready[key] = self._ready.get(key), each
            self._bytes += each.size
            self.paths[exchange.scope["path"]] = self.paths.get(exchange.scope["path"], 0) + 1
        while len(self._ready) > MAX_REQUESTS or self._bytes > MAX_BYTES:
            self._forget(next(iter(self._ready)))
        if EXTENSION in (exchange.scope.get("extensions") or ()):
            self._offer(exchange.scope, ready, unchanged=False)

    def _has_room(self, body: int) -> bool:
        """Return whether one more fits, as far as the size of its *body* tells."""
        return len(self._ready) < MAX_REQUESTS and self._bytes + 2 * body + OVERHEAD <= MAX_BYTES

    def current_era(self, services: CacheServices) -> Era:
        """Return the era of *services*; if another one has begun, all that was learned is forgotten."""
        if self.era is None or services is not self._services or not self.is_current():
            mark = replacements.mark
            checks = self.cache.same_services(services), same_parts(services), self._table.same_routes()
            era = Era(services.store())  # what is replaced meanwhile, the checks see at the next request
            self._ready.clear()
            self.paths.clear()
            self._bytes = 0
            self._checks = tuple([check for check in checks if check is not None])
            self.era, self._services, self._mark = era, services, mark
        return self.era

    def _forget(self, key: Key) -> None:
        path = key[1][0]
        for each in _forms(self._ready.pop(key, None)):
            self._bytes -= each.size
            left = self.paths.pop(path, 1) - 1  # another event loop may have begun an era meanwhile
            if left:
                self.paths[path] = left


def _ready_here(key: Key, exchange: Exchange, response: StoredResponse, hit: Hit) -> Ready | None:
    """Return the hit if its backend lends what it was found in: the response, and the record of its variants."""
    backend, gate = capability(exchange.store.backend, InstantBackend), exchange.store.clock.gate
    if backend is None or gate is None:
        return None
    lent = [backend.lend(each) for each in dict.fromkeys((exchange.found.key, exchange.known.key))]
    all_lent = [each for each in lent if each is not None]
    if len(all_lent) < len(lent) or all_lent[0][0].value is not exchange.found.value:
        return None
    return ReadyHere(key, exchange, response, hit, gate, all_lent)


def _ready_afar(key: Key, exchange: Exchange, response: StoredResponse, hit: Hit) -> Ready | None:
    """Return the hit if one trip can ask for what it rests on; a variant rests on more than one record."""
    basis = exchange.store.basis(exchange.found)
    if basis is None or exchange.found.key != exchange.known.key:
        return None
    return ReadyAfar(key, exchange, response, hit, basis)


def _weight(value: object) -> int:
    """Return the bytes that *value* takes, with those of what is in it if it is a tuple."""
    return getsizeof(value) + (sum(map(_weight, value)) if isinstance(value, tuple) else 0)


_told_apart: Callable[[Scope], tuple[Any, ...]] = itemgetter(
    "path", "raw_path", "query_string", "method", "scheme", "root_path"
)
"""Gives what tells requests apart for every exchange, beside the host and the fields that select."""


def _key_of(scope: Scope) -> Key | None:
    """Return what tells the request of *scope* apart; None where it does not, in plain bytes."""
    hosts = _lines_of(scope["headers"], b"host")
    try:
        key = (hosts[0], _told_apart(scope)) if len(hosts) == 1 else None
        hash(key)
    except (KeyError, TypeError):
        return None
    return key


def _is_plain(exchange: Exchange, hit: Hit) -> bool:
    """Return whether *exchange* gives *hit* for no reason but what later requests are compared by."""
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
        and not any(WATCHED.get(name, 0) & (TAGS | DECIDES) for name, _ in request.headers)
    )


def _refused(exchange: Exchange, response: Headers) -> int:
    """Return the credentials with which an exchange would have to decide anew on what *exchange* gives."""
    policy, said = exchange.policy, response_directives(response)
    if policy.http_only:
        return 0
    in_key = {name.encode("latin-1") for name in policy.include_headers}
    selecting = tuple([line for line in exchange.request.headers if line[0].lower() in in_key])
    asked = {
        AUTHORIZATION: RequestHead("GET", ((b"authorization", b"x"),)),
        COOKIE: RequestHead("GET", ((b"cookie", b"x"),)),
        USER: RequestHead("GET", selecting, has_user=True),
        SESSION: RequestHead("GET", selecting, begins_session=True),
    }
    return sum(bit for bit, each in asked.items() if unshared_credential(each, said, policy) is not None)


def _selecting(exchange: Exchange) -> Selection:
    """Return the fields that select among stored responses, with their lines in the request."""
    names = {*exchange.policy.include_headers, *exchange.store.fields_that_select(exchange.known.key)}
    lines = exchange.request.headers
    return tuple((name, _lines_of(lines, name)) for name in sorted(each.encode("latin-1") for each in names))


def _lines_of(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> tuple[bytes, ...]:
    return tuple([value for each, value in headers if each.lower() == name])


def _tag_of_200(answer: Answer) -> bytes:
    """Return the entity tag of *answer* if it is a 200 with one that can be read."""
    tag = entity_tag(answer.headers)
    return tag.encode("latin-1") if answer.status == 200 and tag is not None and is_entity_tag(tag) else b""


def _known_further_out(scope: Scope) -> int:
    """Return what middleware further out knows of who asks."""
    if "session" in scope and not is_readable(scope["session"]):
        return DECIDES
    return (USER if has_user(scope) else 0) | (SESSION if begins_session(scope) else 0)


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

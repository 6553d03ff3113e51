"""The pure questions that carry the cache: may it answer, may it store, what must it forget (RFC 9111).

Each answer brings its reason in the words of RFC 9211; the header, ``request.state.cache`` and the counts use it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urljoin, urlsplit

from app_cache.checks import NEVER_STORED
from app_cache.policy import ERROR_TIMEOUT
from app_cache.rules.directives import (
    DECIDING,
    NOTHING_ASKED,
    RequestDirectives,
    ResponseDirectives,
    request_directives,
    response_directives,
)
from app_cache.rules.freshness import current_age, explicit_lifetime, freshness_left, heuristic_lifetime
from app_cache.rules.messages import combined, connection_options, field_lines, has_any, has_field
from app_cache.rules.validators import CONDITIONAL, NOT_FOR_CACHES, entity_tag
from app_cache.rules.variants import vary_fields

if TYPE_CHECKING:
    from app_cache.policy import CachePolicy
    from app_cache.rules.messages import Headers, RequestHead, ResponseHead, StoredResponse

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "QUERY", "PROPFIND", "REPORT", "SEARCH"})
"""Methods that are safe by registration (RFC 9110 §9.2.1, IANA); any other one, known or not, invalidates."""
STORED_WITHOUT_FRESHNESS = frozenset({200, 203, 204, 301, 308})
"""Statuses that a policy's own timeout applies to; others are stored when they or the policy say so."""
UNDERSTOOD_STATUSES = frozenset(
    {*range(200, 206), *range(300, 304), 305, 307, 308, *range(400, 418), 421, 422, 426, *range(500, 506)}
)
"""Statuses whose rules for caches are known (RFC 9110 §15), for must-understand (RFC 9111 §5.2.2.3)."""
NOT_STORED = NEVER_STORED | {206, 304}
"""Statuses that are never stored, those of a response that is not whole among them (RFC 9111 §3.3, §4.3.4)."""
CREDENTIALS = frozenset({"authorization", "cookie"})
"""The fields by which a request is recognised as somebody's."""
DEFAULT_PORTS = {"http": "80", "https": "443"}
FAILURES = frozenset({500, 502, 503, 504})
"""Statuses that a stale response may stand in for (RFC 5861 §4)."""
NOT_THERE = frozenset({404, 410, 451})
"""Errors that tell what became of a resource (RFC 9110 §15.5, RFC 7725); the others are about a request for it."""
STREAMS = frozenset(
    {
        "text/event-stream",
        "application/json-seq",
        "application/jsonl",
        "application/jsonlines",
        "application/ndjson",
        "application/x-jsonl",
        "application/x-jsonlines",
        "application/x-ndjson",
    }
)
"""Types of bodies that come event by event, or line by line; and those that end in ``+json-seq`` (RFC 8091)."""
VALIDATED_FOR = 3600.0
"""Seconds beyond its freshness that a response with a validator is kept, to be validated."""


class Fwd(Enum):
    """Why a request went to the handler (RFC 9211 §2.2)."""

    BYPASS = "bypass"
    URI_MISS = "uri-miss"
    VARY_MISS = "vary-miss"
    REQUEST = "request"
    STALE = "stale"


class Refusal(Enum):
    """Why a response is not stored, or a request not answered from the cache."""

    NO_STORE = "no-store"
    PRIVATE = "private"
    STATUS = "status"
    AUTHORIZATION = "authorization"
    COOKIE = "cookie"
    SET_COOKIE = "set-cookie"
    VARY_STAR = "vary-star"
    NOT_FRESH = "not-fresh"
    TOO_LARGE = "too-large"
    INCOMPLETE = "incomplete"
    STREAM = "stream"
    REQUEST_NO_STORE = "request-no-store"
    REQUEST_NO_CACHE = "request-no-cache"
    REQUEST_MAX_AGE = "request-max-age"
    REQUEST_MIN_FRESH = "request-min-fresh"
    RANGE = "range"
    PRECONDITION = "precondition"
    BODY = "body"
    GUARD = "guard"
    KEY = "key"
    TAGS = "tags"
    POLICY = "policy"


@dataclass(frozen=True, slots=True)
class Hit:
    """The stored response answers; *ttl* is what is left of its freshness, negative when it is stale.

    *refresh*: it is served while one request in the background fetches anew (RFC 5861 §3).
    """

    age: float
    ttl: float
    refresh: bool = False


@dataclass(frozen=True, slots=True)
class Forward:
    """The handler answers, for the reason *fwd*; *rescue*: the stored response may stand in if it fails."""

    fwd: Fwd
    detail: Refusal | None = None
    rescue: bool = False


def asked_by(request: RequestHead, policy: CachePolicy) -> RequestDirectives:
    """Return the client's directives, none where the policy does not obey them."""
    return request_directives(request.headers) if policy.cache_control else NOTHING_ASKED


def why_pass(request: RequestHead, asked: RequestDirectives) -> Refusal | None:
    """Return why a request is neither answered from the cache nor stored, or None."""
    if asked.no_store:
        return Refusal.REQUEST_NO_STORE
    if has_any(request.headers, NOT_FOR_CACHES):
        return Refusal.PRECONDITION
    if request.method in ("GET", "HEAD"):
        return Refusal.BODY if has_content(request.headers) else None
    changes = request.method not in SAFE_METHODS
    return Refusal.PRECONDITION if changes and has_any(request.headers, CONDITIONAL) else None


def has_content(headers: Headers) -> bool:
    """Return whether a request comes with content (RFC 9112 §6)."""
    length = combined(headers, b"content-length")
    return length not in (None, "0") or has_field(headers, b"transfer-encoding")


def unshared_credential(request: RequestHead, said: ResponseDirectives, policy: CachePolicy) -> Refusal | None:
    """Return the credential of *request* that keeps a response saying *said* from being shared, or None.

    By RFC 9111 §3.5 one of three directives shares a response to a request with Authorization; it also shares one
    to a user that the application knows by other means. Cookie is our own safeguard: only ``public``, or the
    policy, shares a response to a request with it. A session that has no cookie yet is not told apart by Cookie in
    the key.
    """
    if has_field(request.headers, b"authorization") and not said.shared and not policy.declares("authorization"):
        return Refusal.AUTHORIZATION
    user_matters = request.has_user and not policy.http_only
    if user_matters and not (said.shared or _tells_user(request, policy)):
        return Refusal.AUTHORIZATION
    if policy.http_only or said.public:
        return None
    cookie_matters = has_field(request.headers, b"cookie") and not policy.declares("cookie")
    session_matters = request.begins_session and not _tells_session(request, policy)
    return Refusal.COOKIE if cookie_matters or session_matters else None


def _tells_user(request: RequestHead, policy: CachePolicy) -> bool:
    """Return whether *policy* tells apart whom the application knows, or says that it need not.

    It may know them by another field than the policy names: that counts only if it was sent, and a cookie that is
    for nothing says nothing, for browsers send one with each request.
    """
    sent = [name for name in CREDENTIALS if has_field(request.headers, name.encode("ascii"))]
    by_credential = any(name in policy.include_headers for name in sent)
    token_is_for_nothing = "authorization" in sent and "authorization" in policy.exclude_headers
    for_all = token_is_for_nothing or CREDENTIALS.issubset(policy.exclude_headers)
    return policy.vary_by is not None or by_credential or for_all


def _tells_session(request: RequestHead, policy: CachePolicy) -> bool:
    """Return whether *policy* tells apart a session that *request* has no cookie for, or says it need not be."""
    by_token = "authorization" in policy.include_headers and has_field(request.headers, b"authorization")
    return by_token or policy.vary_by is not None or "cookie" in policy.exclude_headers


def select(
    request: RequestHead,
    asked: RequestDirectives,
    stored: StoredResponse,
    policy: CachePolicy,
    now: float,
    *,
    marked_stale: bool = False,
    chance: float = 1.0,
) -> Hit | Forward:
    """Return how *stored*, the variant of this request, is used at *now* (RFC 9111 §4).

    Args:
        request: The request.
        asked: What its client asks for.
        stored: The response.
        policy: What the author of the endpoint asked for.
        now: Epoch seconds.
        marked_stale: It was softly invalidated: its freshness counts as just over. So does that of a response
            that was received by a clock ahead of this one.
        chance: A random number above 0, at most 1, that decides whether it is refreshed early.
    """
    said = response_directives(stored.headers)
    credential = None if policy.http_only else unshared_credential(request, said, policy)
    if credential is not None:
        return Forward(Fwd.BYPASS, credential)
    age = current_age(stored, now)
    ttl = freshness_left(stored, age, now, marked_stale=marked_stale)
    fresh = ttl > 0 and not said.no_cache
    rescue = _may_rescue(stored, said, asked, policy, ttl)
    unwanted = _why_unwanted(asked, age, ttl)
    if unwanted is not None:
        return Forward(Fwd.REQUEST if fresh else Fwd.STALE, unwanted, rescue=rescue)
    if fresh:
        return Hit(age, ttl, refresh=ttl < _earlier(stored, policy, chance))
    refresh = -ttl <= stored.stale_while_revalidate and stored.stale_while_revalidate > 0
    if _may_be_stale(said) and (refresh or not marked_stale) and _accepts_stale(asked, ttl, granted=refresh):
        return Hit(age, ttl, refresh=refresh)
    return Forward(Fwd.STALE, rescue=rescue)


def answers_others(stored: StoredResponse, policy: CachePolicy, now: float) -> bool:
    """Return whether *stored*, which has just come, may answer others who wait for it at *now* (RFC 9111 §4).

    It may not if each use needs a validation. A lifetime that is over by then says only that the handler is slow:
    the response may answer, unless it forbids to be used stale.
    """
    said = response_directives(stored.headers)
    left = stored.freshness_lifetime - current_age(stored, now)
    if said.no_cache or left > 0:
        return not said.no_cache
    is_policys = policy.timeout is not None and explicit_lifetime(said, stored.headers, stored.received_at) is None
    may_be_over = stored.freshness_lifetime > 0 or 0 < stored.stale_while_revalidate >= -left
    return is_policys or (may_be_over and _may_be_stale(said))


def _earlier(stored: StoredResponse, policy: CachePolicy, chance: float) -> float:
    """Return the seconds before the end of its freshness from which *stored* is refreshed, as *chance* has it.

    They grow with the time that the handler took, and are exponentially distributed: of many processes that read
    it about one refreshes it before its end (Vattani, Chierichetti and Lowenstein, "Optimal Probabilistic Cache
    Stampede Prevention", 2015, called XFetch).
    """
    if policy.early_refresh == 0:
        return 0.0
    return -math.log(chance) * policy.early_refresh * max(0.0, stored.received_at - stored.requested_at)


def _accepts_stale(asked: RequestDirectives, ttl: float, *, granted: bool) -> bool:
    """Return whether a client takes what is stale: within its max-stale, else where it is *granted* (§5.2.1)."""
    if asked.max_stale is not None:
        return -ttl <= asked.max_stale
    return granted and asked.max_age is None


def _why_unwanted(asked: RequestDirectives, age: float, ttl: float) -> Refusal | None:
    if asked.no_cache:
        return Refusal.REQUEST_NO_CACHE
    if asked.max_age is not None and age > asked.max_age:
        return Refusal.REQUEST_MAX_AGE
    if asked.min_fresh is not None and ttl < asked.min_fresh:
        return Refusal.REQUEST_MIN_FRESH
    return None


def _may_be_stale(said: ResponseDirectives) -> bool:
    """Return whether a response that says *said* may be served stale (RFC 9111 §4.2.4)."""
    return not (said.no_cache or said.must_revalidate or said.proxy_revalidate or said.s_maxage is not None)


def _may_rescue(
    stored: StoredResponse, said: ResponseDirectives, asked: RequestDirectives, policy: CachePolicy, ttl: float
) -> bool:
    """Return whether *stored* may stand in for a failure, by policy, response or client (RFC 5861 §4).

    Where the response states for how long, the policy does not go beyond that.
    """
    if stored.status >= 400 or not _may_be_stale(said):
        return False
    window = max(stored.stale_if_error, float(asked.stale_if_error or 0))
    by_policy = policy.stale_on_failure and said.stale_if_error is None
    return by_policy or (window > 0 and -ttl <= window)


def why_not_store(
    request: RequestHead,
    response: ResponseHead,
    said: ResponseDirectives,
    policy: CachePolicy,
    received_at: float,
) -> Refusal | None:
    """Return the first reason a shared cache does not store *response*, saying *said*, or None (RFC 9111 §3)."""
    understood = said.must_understand and response.status in UNDERSTOOD_STATUSES
    if said.no_store and not understood:
        return Refusal.NO_STORE
    if said.private or not DECIDING.isdisjoint(connection_options(response.headers)):
        return Refusal.PRIVATE
    if response.status != 200 and has_field(request.headers, b"range"):
        return Refusal.RANGE
    if response.status < 200 or response.status in NOT_STORED or (said.must_understand and not understood):
        return Refusal.STATUS
    credential = unshared_credential(request, said, policy)
    if credential is not None:
        return credential
    if has_field(response.headers, b"set-cookie") and not shares_set_cookie(said, policy):
        return Refusal.SET_COOKIE
    if vary_fields(response.headers) is None:
        return Refusal.VARY_STAR
    if _is_stream(combined(response.headers, b"content-type") or ""):
        return Refusal.STREAM
    lifetime = freshness_lifetime(response, said, policy, received_at)
    if lifetime is None:
        return Refusal.STATUS
    is_kept = lifetime > 0 or keep_for(response, lifetime, stale_windows(response, said, policy), policy) > 0
    return None if is_kept else Refusal.NOT_FRESH


def shares_set_cookie(said: ResponseDirectives, policy: CachePolicy) -> bool:
    """Return whether a response with Set-Cookie is stored: by the RFC alone as it is, else without that field."""
    if policy.http_only and policy.store_set_cookie:
        return True
    return b"set-cookie" in said.withheld or "set-cookie" in policy.exclude_headers


def withheld_fields(said: ResponseDirectives, policy: CachePolicy) -> frozenset[bytes]:
    """Return the fields that are dropped from what is stored, by the response's word or the policy's."""
    return said.withheld | {b"set-cookie"} if "set-cookie" in policy.exclude_headers else said.withheld


@lru_cache(maxsize=256)
def _is_stream(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind in STREAMS or kind.endswith("+json-seq")


def freshness_lifetime(
    response: ResponseHead, said: ResponseDirectives, policy: CachePolicy, received_at: float
) -> float | None:
    """Return the seconds that *response* is fresh, or None if nothing lets one of its status be stored (§3)."""
    explicit = explicit_lifetime(said, response.headers, received_at)
    if explicit is not None:
        return explicit
    if policy.timeout is None:
        return heuristic_lifetime(response, said, received_at)
    if response.status in policy.statuses:
        named = policy.statuses[response.status]
        own = min(policy.timeout, ERROR_TIMEOUT) if response.status >= 400 else policy.timeout
        return own if named is None else named
    return policy.timeout if response.status in STORED_WITHOUT_FRESHNESS else None


def stale_windows(response: ResponseHead, said: ResponseDirectives, policy: CachePolicy) -> tuple[float, float]:
    """Return the seconds of stale-while-revalidate and stale-if-error; the response's word first (RFC 5861).

    An error has no windows but those that it states itself.
    """
    if not _may_be_stale(said):
        return 0.0, 0.0
    revalidate: float | None = said.stale_while_revalidate
    error: float | None = said.stale_if_error
    if response.status < 400:
        revalidate = policy.stale_while_revalidate if revalidate is None else revalidate
        error = policy.stale_if_error if error is None else error
    return float(revalidate or 0.0), float(error or 0.0)


def keep_for(response: ResponseHead, lifetime: float, windows: tuple[float, float], policy: CachePolicy) -> float:
    """Return the seconds that the backend holds an entry: its freshness and the *windows* that may follow it."""
    stands_in = policy.stale_on_failure and response.status < 400
    has_validator = entity_tag(response.headers) or has_field(response.headers, b"last-modified")
    if stands_in or (has_validator and can_be_validated(response.status)):
        return lifetime + max(*windows, VALIDATED_FOR)
    return lifetime + max(windows)


def can_be_validated(status: int) -> bool:
    """Return whether a 304 may be about a stored response of that *status*.

    A 304 says that the request would be answered with success now, so a stored response without it is outdated
    (RFC 9110 §13.2.1, §15.4.5).
    """
    return 200 <= status < 300


def to_invalidate(method: str, target: str, status: int, headers: Headers) -> tuple[str, ...]:
    """Return the URLs whose stored responses an answer makes invalid (RFC 9111 §4.4).

    Those are the *target* (an absolute URL) of an unsafe method that was answered well, and the URLs in Location
    and Content-Location that have its origin.
    """
    if method in SAFE_METHODS or not 200 <= status < 400:
        return ()
    named = [*map(_as_uri, (*field_lines(headers, b"location"), *field_lines(headers, b"content-location")))]
    resolved = [url for each in named if (url := _same_origin(target, each)) is not None]
    return tuple(dict.fromkeys([target, *resolved]))


def answers_get(target: str, response: ResponseHead, received_at: float) -> bool:
    """Return whether the answer to a POST of the URL *target* may serve a later GET (RFC 9110 §9.3.3)."""
    said = response_directives(response.headers)
    located = field_lines(response.headers, b"content-location")
    return (
        response.status == 200
        and explicit_lifetime(said, response.headers, received_at) is not None
        and len(located) == 1
        and _same_origin(target, _as_uri(located[0])) == target
    )


def _as_uri(reference: str) -> str:
    """Return a field's *reference* with each octet that no URI may have percent-encoded (RFC 3986 §2.1)."""
    return re.sub(r"[^!-~]", lambda octet: f"%{ord(octet[0]):02X}", reference)


def _same_origin(target: str, reference: str) -> str | None:
    """Return *reference* as an absolute URL written like *target*, or None if it has another origin."""
    try:
        here, there = urlsplit(target), urlsplit(urljoin(target, reference))
        same = _origin(here) == _origin(there)
    except ValueError:
        return None
    return (
        there._replace(netloc=here.netloc, path=_without_dots(there.path), fragment="").geturl() if same else None
    )


def _without_dots(path: str) -> str:
    """Return *path* without ``.`` and ``..``, which `urljoin` leaves in a whole URL (RFC 3986 §5.2.4)."""
    return urljoin("/", path) if "/." in path and not path.startswith("//") else path


def _origin(url: SplitResult) -> tuple[str, str | None, str]:
    return url.scheme, url.hostname, str(url.port or DEFAULT_PORTS.get(url.scheme))

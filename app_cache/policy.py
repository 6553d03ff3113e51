"""What an endpoint's author asks for: values that decorators record on endpoints, and nothing that acts.

The middleware finds them again through the route that would run; see `app_cache.routes.table`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Never, TypeAlias, TypeVar, overload

from app_cache import checks
from app_cache.checks import checked_tag, keep_checked, option, optional
from app_cache.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from starlette.requests import HTTPConnection, Request

    from app_cache.keys import KeyGenerator
else:  # what reads annotations at run time, as pydantic does, looks for these
    HTTPConnection = Request = KeyGenerator = Any

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])

POLICY_ATTRIBUTE = "__app_cache_policy__"
INVALIDATES_ATTRIBUTE = "__app_cache_invalidates__"
NEVER_ATTRIBUTE = "__app_cache_never__"
LATE_TAGS = "app_cache.late_tags"
"""Where the middleware keeps, in the scope, the set that `add_tags` adds to."""

DEFAULT_TIMEOUT = 300.0
"""Seconds that `@cache` without a timeout keeps an answer fresh."""
ERROR_TIMEOUT = 10.0
"""Seconds at most that a status of 400 and above lives which `statuses` names without a time of its own."""
MAX_BODY = 1024 * 1024
"""Bytes of body beyond which a response is passed on and not stored, and a POST is not cached."""

TagsOf: TypeAlias = Callable[[Request], Collection[str] | Awaitable[Collection[str]]]
TextOf: TypeAlias = Callable[[Request], str | Awaitable[str | None] | None]
TagSource: TypeAlias = Collection[str] | TagsOf
Seconds = float | timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePolicy:
    """How the answers of an endpoint are cached; `@cache(…)` takes the same options.

    Args:
        timeout: Seconds (or a timedelta) that an answer is fresh which does not say so itself. None: only the
            response says, or a heuristic where `http` asked for it.
        cache_control: Whether the *client's* directives (``no-cache``, ``max-age`` …) are obeyed.
        include_headers: Request headers that join the key, and are announced in ``Vary``. Those that the endpoint
            or a dependency of its declares (``Header()``, ``APIKeyHeader``) join it by themselves.
        exclude_headers: Request headers that the response does not depend on. ``Authorization`` and ``Cookie``
            stop a response from being shared unless they are named here, in *include_headers*, or *vary_by* is
            given. ``Set-Cookie`` here drops that field from what is stored.
        tags: Names, or templates filled with the values that the endpoint receives (``"user_{user_id}"``), or a
            callable of the request that returns names.
        statuses: Final statuses that are stored beside 200, 203, 204, 301 and 308, or a mapping of status to
            seconds. Errors named without a time live `ERROR_TIMEOUT` seconds at most.
        stale_while_revalidate: Seconds beyond its freshness that an answer is still served while one request
            in the background fetches anew (RFC 5861 §3).
        stale_if_error: Seconds beyond its freshness that an answer stands in for a failed one (RFC 5861 §4).
        methods: Which of the route's methods are cached: GET, QUERY, POST. Without it, all of them, but POST only
            where the route has neither of the others.
        key: A `KeyGenerator` for this endpoint in place of the application's.
        vary_by: A callable of the request whose string joins the key; it returns None to pass the request by.
        include_query: The only query parameters that join the key, beside those that security schemes declare.
        exclude_query: Query parameters that do not join the key.
        max_body: Bytes of body beyond which a response is not stored and a request body is not cached by.
        client_max_age: Seconds for ``Cache-Control: max-age`` to clients, where the handler sent neither that nor
            ``Expires``.
        handler_timeout: Seconds after which a handler that has not begun to answer counts as failed where a stale
            answer may stand in; it goes on in the background.
        guarded: Run the endpoint's dependencies (authentication, limits) before a stored answer is given too; only
            the endpoint's own body is skipped.
        early_refresh: How eagerly a fresh answer is fetched anew in the background, by chance and shortly before
            its end: about one of many processes does. 1 suits most, more is earlier, 0 is never.
        jitter: Fraction (0 to below 1) of the lifetime that is taken off at random: not all expire at once.
        http_only: Freshness by the response or a heuristic and credentials by RFC 9111 §3.5 alone; see `http`.
        store_set_cookie: Under *http_only*, whether responses with ``Set-Cookie`` are stored.
        stale_on_failure: Under *http_only*, whether a stale answer stands in when the handler fails
            (RFC 9111 §4.2.4).

    Raises:
        ConfigurationError: If a value cannot work; the message names it.
    """

    timeout: float | None = option(optional(checks.seconds), default=DEFAULT_TIMEOUT)
    cache_control: bool = option(checks.flag, default=True)
    include_headers: tuple[str, ...] = option(
        checks.headers("Accept-Language", rather="the headers that the response depends on"), default=()
    )
    exclude_headers: tuple[str, ...] = option(
        checks.headers("Cookie", rather="the headers that it does not depend on"), default=()
    )
    tags: tuple[str, ...] | TagsOf = option(checks.tags, default=())
    statuses: Mapping[int, float | None] = field(default_factory=dict, metadata={"check": checks.statuses})
    stale_while_revalidate: float | None = option(optional(checks.seconds), default=None)
    stale_if_error: float | None = option(optional(checks.seconds), default=None)
    methods: frozenset[str] | None = option(optional(checks.methods), default=None)
    key: KeyGenerator | None = option(optional(checks.key_generator), default=None)
    vary_by: TextOf | None = option(optional(checks.callable_of_request), default=None)
    include_query: frozenset[str] | None = option(
        optional(checks.query("page", rather="the parameters that it depends on, or leave the option out")),
        default=None,
    )
    exclude_query: frozenset[str] = option(
        checks.query("utm_source", rather="the parameters that it does not depend on, or give include_query=[]"),
        default=frozenset(),
    )
    max_body: int = option(checks.byte_count, default=MAX_BODY)
    client_max_age: int | None = option(optional(checks.whole_seconds), default=None)
    handler_timeout: float | None = option(optional(checks.seconds), default=None)
    guarded: bool = option(checks.flag, default=False)
    early_refresh: float = option(checks.eagerness, default=0.0)
    jitter: float = option(checks.fraction, default=0.0)
    http_only: bool = option(checks.flag, default=False, of_http=True)
    store_set_cookie: bool = option(checks.flag, default=False, of_http=True)
    stale_on_failure: bool = option(checks.flag, default=False, of_http=True)

    def __post_init__(self) -> None:
        keep_checked(self, CachePolicy)
        both = {*self.include_headers} & {*self.exclude_headers}
        if both:
            raise ConfigurationError(
                f"header {min(both)!r} is in include_headers and in exclude_headers; name it in one"
            )
        if self.include_query is not None and self.exclude_query:
            raise ConfigurationError("include_query and exclude_query exclude each other; give one")

    @classmethod
    def http(cls, *, store_set_cookie: bool = True, stale_on_failure: bool = True) -> CachePolicy:
        """Return the policy of RFC 9111 alone, for `default_policy`.

        Freshness comes from the response or a heuristic, credentials are shared by RFC 9111 §3.5 only.

        Args:
            store_set_cookie: False takes our safe default: a response with ``Set-Cookie`` is not stored.
            stale_on_failure: False takes our safe default: stale answers stand in only by ``stale-if-error``.
        """
        return cls(
            timeout=None, http_only=True, store_set_cookie=store_set_cookie, stale_on_failure=stale_on_failure
        )

    def declares(self, header: str) -> bool:
        """Return whether the author has said how the response depends on the request's *header* (lower case).

        Under *http_only* what joins the key says nothing of who may have the response.
        """
        joins_key = header in self.include_headers and not self.http_only
        return self.vary_by is not None or joins_key or header in self.exclude_headers


@dataclass(frozen=True, slots=True, kw_only=True)
class Invalidates:
    """What is invalidated once an endpoint has answered well; `@invalidates(…)` takes the same options."""

    tags: tuple[str, ...] | TagsOf = option(checks.tags, default=())
    patterns: tuple[str, ...] = option(checks.patterns, default=())
    urls: tuple[str, ...] = option(checks.urls, default=())

    def __post_init__(self) -> None:
        keep_checked(self, Invalidates)
        if not (self.tags or self.patterns or self.urls):
            raise ConfigurationError("@invalidates needs tags, patterns or urls")


@overload
def cache(endpoint: Endpoint, /) -> Endpoint: ...
@overload
def cache(
    *,
    timeout: Seconds = DEFAULT_TIMEOUT,
    cache_control: bool = True,
    include_headers: Collection[str] | None = None,
    exclude_headers: Collection[str] | None = None,
    tags: TagSource | None = None,
    statuses: Collection[int] | Mapping[int, float] | None = None,
    stale_while_revalidate: Seconds | None = None,
    stale_if_error: Seconds | None = None,
    methods: Collection[str] | None = None,
    key: KeyGenerator | None = None,
    vary_by: TextOf | None = None,
    include_query: Collection[str] | None = None,
    exclude_query: Collection[str] | None = None,
    max_body: int = MAX_BODY,
    client_max_age: Seconds | None = None,
    handler_timeout: Seconds | None = None,
    guarded: bool = False,
    early_refresh: float = 0.0,
    jitter: float = 0.0,
) -> Callable[[Endpoint], Endpoint]: ...
def cache(endpoint: Any = None, /, **options: Any) -> Any:
    """Cache the answers of the decorated endpoint; the options are those of `CachePolicy`.

    It records the policy and returns the endpoint as it is: put it above or below the route decorator, on
    ``async def`` or ``def``. Nothing is cached until an application has the middleware.

    >>> @cache(timeout=60, tags=["user_{user_id}"])
    ... async def profile(user_id: int) -> dict[str, int]:
    ...     return {"user_id": user_id}

    Raises:
        ConfigurationError: If an option cannot work; the message names it.
    """
    if endpoint is not None and not callable(endpoint):
        raise ConfigurationError(f"@cache takes options by name, such as timeout=300, not {endpoint!r}")
    of_http = {each.name for each in fields(CachePolicy) if each.metadata.get("of_http")}
    if wrong := of_http & options.keys():
        raise ConfigurationError(f"{min(wrong)} is no option of @cache; use CachePolicy.http() as default_policy")
    if options.get("timeout", DEFAULT_TIMEOUT) is None:
        raise ConfigurationError("timeout must be a positive number of seconds or a timedelta, not None")
    known = {each.name for each in fields(CachePolicy)} - of_http
    for name in options:
        if name not in known:
            raise TypeError(f"@cache has no option {name!r}; there are {', '.join(sorted(known))}")
    policy = CachePolicy(**{name: value for name, value in options.items() if value is not None})

    def record(target: Endpoint) -> Endpoint:
        return _recorded(target, POLICY_ATTRIBUTE, policy, "@cache")

    return record if endpoint is None else record(endpoint)


def invalidates(
    *_args: Never,
    tags: TagSource | None = None,
    patterns: Collection[str] | None = None,
    urls: Collection[str] | None = None,
) -> Callable[[Endpoint], Endpoint]:
    """Invalidate what is named once the endpoint has answered well (2xx or 3xx), before the client sees it.

    Args:
        tags: As for `cache`; templates are filled with the values that the endpoint receives.
        patterns: Globs over URL paths (``/users/*``), templates too.
        urls: URLs or paths, templates too.

    Raises:
        ConfigurationError: If nothing is named, or a value cannot work.
    """
    if _args:
        raise ConfigurationError(f"@invalidates takes options by name, such as tags=['users'], not {_args[0]!r}")
    asked = Invalidates(tags=tags or (), patterns=patterns or (), urls=urls or ())  # type: ignore[arg-type]

    def record(target: Endpoint) -> Endpoint:
        return _recorded(target, INVALIDATES_ATTRIBUTE, asked, "@invalidates")

    return record


def never_cached(endpoint: Endpoint) -> Endpoint:
    """Keep the decorated endpoint out of the cache, whatever policy is for what has none of its own."""
    return _recorded(endpoint, NEVER_ATTRIBUTE, value=True, decorator="@never_cached")


def add_tags(request: HTTPConnection, *tags: str) -> None:
    """Tag the answer that the running handler is about to give, with names known only now.

    Where the answer is not going to be stored, this does nothing.

    Args:
        request: The request of the handler.
        tags: The names to add.

    Raises:
        ConfigurationError: If a tag is not a string, or is empty.
    """
    scope: MutableMapping[str, Any] = request.scope
    late: set[str] | None = scope.get(LATE_TAGS)
    for tag in tags:
        checked_tag(tag)
    if late is not None:
        late.update(tags)


def _recorded(target: Endpoint, attribute: str, value: object, decorator: str) -> Endpoint:
    if attribute in getattr(target, "__dict__", {}):
        raise ConfigurationError(
            f"{decorator} stands twice on {getattr(target, '__qualname__', target)!r}; one is enough"
        )
    try:
        setattr(target, attribute, value)
    except AttributeError:
        raise ConfigurationError(f"{decorator} cannot mark {target!r}; decorate the function itself") from None
    return target

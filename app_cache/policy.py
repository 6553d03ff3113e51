"""What an endpoint's author asks for: values that decorators record on endpoints, and nothing that acts.

The middleware finds them again through the route that would run; see `app_cache.routes.table`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Never, TypeAlias, TypeVar, overload

from app_cache.errors import ConfigurationError
from app_cache.templates import template_names

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
MAX_SECONDS = 2**31
"""Seconds that a cache reckons with at most (RFC 9111 §1.2.2)."""
MAX_PATTERN = 256
"""Characters of a pattern."""
ERROR_TIMEOUT = 10.0
"""Seconds at most that a status of 400 and above lives which `statuses` names without a time of its own."""
NEVER_STORED = frozenset({428, 429, 431, 511})
"""Statuses about one request or client alone, which no cache stores (RFC 6585 §3 to §6)."""
MOST_EAGER = 100
"""The largest `early_refresh`: a hundred times the time that the handler took."""
MAX_BODY = 1024 * 1024
"""Bytes of body beyond which a response is passed on and not stored, and a POST is not cached."""
CACHEABLE_METHODS = frozenset({"GET", "POST", "QUERY"})
_INTERNAL = frozenset({"http_only", "store_set_cookie", "stale_on_failure"})

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
        methods: Which of the route's methods are cached: GET, QUERY, POST. Without it, all of them.
        key: A `KeyGenerator` for this endpoint in place of the application's.
        vary_by: A callable of the request whose string joins the key; it returns None to pass the request by.
        include_query: The only query parameters that join the key, beside those that security schemes declare.
        exclude_query: Query parameters that do not join the key.
        max_body: Bytes of body beyond which a response is not stored and a request body is not cached by.
        client_max_age: Seconds for ``Cache-Control: max-age`` to clients, where the handler sent no such field.
        handler_timeout: Seconds after which a handler that has not begun to answer counts as failed where a stale
            answer may stand in; it goes on in the background.
        guarded: Run the endpoint's dependencies (authentication, limits) before a stored answer is given too; only
            the endpoint's own body is skipped.
        early_refresh: How eagerly a fresh answer is fetched anew in the background, by chance and shortly before
            its end: about one of many processes does. 1 suits most, more is earlier, 0 is never.
        jitter: Fraction (0 to 1) of the lifetime that is taken off at random, so that not all expire at once.
        http_only: Freshness by the response or a heuristic and credentials by RFC 9111 §3.5 alone; see `http`.
        store_set_cookie: Under *http_only*, whether responses with ``Set-Cookie`` are stored.
        stale_on_failure: Under *http_only*, whether a stale answer stands in when the handler fails
            (RFC 9111 §4.2.4).

    Raises:
        ConfigurationError: If a value cannot work; the message names it.
    """

    timeout: float | None = DEFAULT_TIMEOUT
    cache_control: bool = True
    include_headers: tuple[str, ...] = ()
    exclude_headers: tuple[str, ...] = ()
    tags: tuple[str, ...] | TagsOf = ()
    statuses: Mapping[int, float | None] = field(default_factory=dict)
    stale_while_revalidate: float | None = None
    stale_if_error: float | None = None
    methods: frozenset[str] | None = None
    key: KeyGenerator | None = None
    vary_by: TextOf | None = None
    include_query: frozenset[str] | None = None
    exclude_query: frozenset[str] = frozenset()
    max_body: int = MAX_BODY
    client_max_age: int | None = None
    handler_timeout: float | None = None
    guarded: bool = False
    early_refresh: float = 0.0
    jitter: float = 0.0
    http_only: bool = False
    store_set_cookie: bool = False
    stale_on_failure: bool = False

    def __post_init__(self) -> None:
        for name, check in _CHECKED:
            object.__setattr__(self, name, check(name, getattr(self, name)))
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

    tags: tuple[str, ...] | TagsOf = ()
    patterns: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "tags", _tags("tags", self.tags))
        object.__setattr__(self, "patterns", _patterns("patterns", self.patterns))
        object.__setattr__(self, "urls", _urls("urls", self.urls))
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
    if internal := _INTERNAL & options.keys():
        raise ConfigurationError(
            f"{min(internal)} is no option of @cache; use CachePolicy.http() as default_policy"
        )
    if options.get("timeout", DEFAULT_TIMEOUT) is None:
        raise ConfigurationError("timeout must be a positive number of seconds or a timedelta, not None")
    known = {each.name for each in fields(CachePolicy)} - _INTERNAL
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


def checked_tag(tag: object) -> str:
    """Return *tag* if it is a name.

    Raises:
        ConfigurationError: If it is not a string, or is empty.
    """
    if not isinstance(tag, str) or not tag:
        raise ConfigurationError(f"a tag must be a string that is not empty, not {kind_of(tag)}")
    return tag


def checked_tags(tags: object) -> list[str]:
    """Return *tags* as a list if they are names.

    Raises:
        ConfigurationError: If they are no list, or one string, which would be taken letter by letter, or one is no
            name.
    """
    if isinstance(tags, str) or not isinstance(tags, Iterable):
        raise ConfigurationError(f"tags must be a list of names, such as ['users'], not {kind_of(tags)}")
    return [checked_tag(tag) for tag in tags]


def kind_of(value: object) -> str:
    """Return what an error says of a *value* that may be a secret of a request: no more than its type."""
    if value is None:
        return "None"
    return "an empty one" if isinstance(value, str) and not value else type(value).__name__


def is_header_name(text: str) -> bool:
    """Return whether *text* can be the name of a field (RFC 9110 §5.1)."""
    return bool(text) and all(c.isascii() and (c.isalnum() or c in "!#$%&'*+-.^_`|~") for c in text)


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


def checked_seconds(name: str, value: object) -> float:
    """Return the seconds of *value*, a number or a timedelta.

    Raises:
        ConfigurationError: If it is neither, is not positive, or is more than a cache can keep to.
    """
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= MAX_SECONDS:
        raise ConfigurationError(
            f"{name} must be a positive number of seconds or a timedelta, at most {MAX_SECONDS}, not {value!r}"
        )
    return seconds


def _optional_seconds(name: str, value: object) -> float | None:
    return None if value is None else checked_seconds(name, value)


def _whole_seconds(name: str, value: object) -> int | None:
    if value is None:
        return None
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if (
        isinstance(seconds, bool)
        or not isinstance(seconds, int | float)
        or not 0 <= seconds < 2**31
        or seconds != int(seconds)
    ):
        raise ConfigurationError(f"{name} must be a whole number of seconds from 0, not {value!r}")
    return int(seconds)


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ConfigurationError(f"{name} must be True or False, not {value!r}")
    return value


def _names(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Collection):
        raise _is_no_list(name, value)
    for each in value:
        if not isinstance(each, str) or not each.strip():
            raise ConfigurationError(f"{name} must hold names, not {each!r}")
    return tuple(dict.fromkeys(value))


_EXAMPLES = {
    "include_headers": "Accept-Language",
    "exclude_headers": "Cookie",
    "tags": "users",
    "patterns": "/users/*",
    "urls": "/users",
    "methods": "GET",
    "include_query": "page",
    "exclude_query": "utm_source",
}


def _is_no_list(name: str, value: object) -> ConfigurationError:
    example = value if isinstance(value, str) and value else _EXAMPLES.get(name, "name")
    return ConfigurationError(f"{name} must be a list of names, such as [{example!r}], not {value!r}")


_ALL = {
    "include_headers": "the headers that the response depends on",
    "exclude_headers": "the headers that it does not depend on",
    "include_query": "the parameters that it depends on, or leave the option out",
    "exclude_query": "the parameters that it does not depend on, or give include_query=[]",
}
"""What to name where somebody has named all, by option."""


def _names_alone(name: str, value: Any) -> tuple[str, ...]:
    """Return the names in *value*, none of which stands for others."""
    names = _names(name, value)
    if "*" in names:
        raise ConfigurationError(f"{name} must hold names, not '*': name {_ALL[name]}")
    return names


def _headers(name: str, value: Any) -> tuple[str, ...]:
    names = _names_alone(name, value)
    for each in names:
        if not is_header_name(each):
            raise ConfigurationError(f"{name} must hold header names, not {each!r}")
    return tuple(dict.fromkeys(each.lower() for each in names))


def _templates(name: str, value: Any) -> tuple[str, ...]:
    names = _names(name, value)
    for each in names:
        template_names(each)
    return names


def _patterns(name: str, value: Any) -> tuple[str, ...]:
    patterns = _templates(name, value)
    for each in patterns:
        if len(each) > MAX_PATTERN:
            raise ConfigurationError(
                f"{name} may have {MAX_PATTERN} characters each, not {len(each)}: {each[:40]!r}…"
            )
    return patterns


def _urls(name: str, value: Any) -> tuple[str, ...]:
    urls = _templates(name, value)
    for each in urls:
        if not each.startswith(("/", "http://", "https://", "{")) or each.startswith("//"):
            raise ConfigurationError(f"{name} must be absolute (https://host/path) or paths (/path), not {each!r}")
    return urls


def _tags(name: str, value: Any) -> Any:
    return value if callable(value) else _templates(name, value)


def _methods(name: str, value: Any) -> frozenset[str] | None:
    if value is None:
        return None
    methods = frozenset(each.upper() for each in _names(name, value)) - {"HEAD"}
    wrong = methods - CACHEABLE_METHODS
    if wrong:
        raise ConfigurationError(f"{name} may hold GET, QUERY and POST, not {min(wrong)!r}")
    if not methods:
        raise ConfigurationError(f"{name} must hold GET, QUERY or POST, not {value!r}")
    return methods


def _statuses(name: str, value: Any) -> dict[int, float | None]:
    if isinstance(value, str | bytes) or not isinstance(value, Collection):
        raise ConfigurationError(
            f"{name} must be a list of statuses or a mapping of status to seconds, not {value!r}"
        )
    for status in value:
        if (
            isinstance(status, bool)
            or not isinstance(status, int)
            or not 200 <= status <= 599
            or status in (206, 304)
        ):
            raise ConfigurationError(
                f"{name} must hold final statuses from 200 to 599 but 206 and 304, not {status!r}"
            )
    never = NEVER_STORED.intersection(value)
    if never and (isinstance(value, Mapping) or never.issuperset(value)):
        raise ConfigurationError(
            f"{name} must not hold {min(never)}: it is about one client, and no cache may store it (RFC 6585)"
        )
    if isinstance(value, Mapping):
        return {s: None if v is None else checked_seconds(f"{name}[{s}]", v) for s, v in value.items()}
    return dict.fromkeys(status for status in value if status not in NEVER_STORED)


def _query(name: str, value: Any) -> frozenset[str]:
    return frozenset(_names_alone(name, value))


def _optional_query(name: str, value: Any) -> frozenset[str] | None:
    return None if value is None else _query(name, value)


def _bytes(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise ConfigurationError(f"{name} must be a positive number of bytes, not {value!r}")
    return value


def _fraction(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ConfigurationError(f"{name} must be a fraction from 0 to below 1, not {value!r}")
    return float(value)


def _eagerness(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST_EAGER:
        raise ConfigurationError(f"{name} must be a number from 0 to {MOST_EAGER}, not {value!r}")
    return float(value)


def _callable(name: str, value: Any) -> Any:
    if value is not None and not callable(value):
        raise ConfigurationError(f"{name} must be a callable of the request, not {value!r}")
    return value


def _key_generator(name: str, value: Any) -> Any:
    if value is not None and (isinstance(value, type) or not callable(getattr(value, "generate_cache_key", None))):
        raise ConfigurationError(f"{name} must be a KeyGenerator (with generate_cache_key), not {value!r}")
    return value


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "timeout": _optional_seconds,
    "cache_control": _flag,
    "include_headers": _headers,
    "exclude_headers": _headers,
    "tags": _tags,
    "statuses": _statuses,
    "stale_while_revalidate": _optional_seconds,
    "stale_if_error": _optional_seconds,
    "methods": _methods,
    "key": _key_generator,
    "vary_by": _callable,
    "include_query": _optional_query,
    "exclude_query": _query,
    "max_body": _bytes,
    "client_max_age": _whole_seconds,
    "handler_timeout": _optional_seconds,
    "guarded": _flag,
    "early_refresh": _eagerness,
    "jitter": _fraction,
    "http_only": _flag,
    "store_set_cookie": _flag,
    "stale_on_failure": _flag,
}
_CHECKED = [(each.name, _CHECKS[each.name]) for each in fields(CachePolicy)]
"""The options, each with its check."""

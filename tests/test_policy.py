"""Decorators record what is asked for, and refuse at once what cannot work."""

from __future__ import annotations

import functools
import inspect
import math
import re
from dataclasses import fields
from datetime import timedelta
from typing import TYPE_CHECKING, Any, get_overloads, get_type_hints

import pytest
from fastapi import FastAPI
from pydantic import TypeAdapter
from starlette.requests import Request

from app_cache.checks import checked_tag, checked_tags
from app_cache.errors import ConfigurationError
from app_cache.keys import DefaultKeyGenerator
from app_cache.policy import (
    DEFAULT_TIMEOUT,
    INVALIDATES_ATTRIBUTE,
    LATE_TAGS,
    MAX_BODY,
    POLICY_ATTRIBUTE,
    CachePolicy,
    Invalidates,
    add_tags,
    cache,
    invalidates,
)
from app_cache.routes.policies import Fallbacks
from app_cache.routes.table import RouteTable
from app_cache.templates import template_names

if TYPE_CHECKING:
    from collections.abc import Callable

GENERATOR = DefaultKeyGenerator()


class ByTenant(DefaultKeyGenerator):
    """Passes by whoever names no tenant, as an application's own generator may."""

    async def generate_cache_key(self, request: Request) -> str | None:
        """Return what the default one gives."""
        return await super().generate_cache_key(request) if "x-tenant" in request.headers else None


def tags_of(request: Request) -> list[str]:
    """Give tags as an application's own callable does."""
    return [request.url.path]


async def path_of(request: Request) -> str | None:
    """Say what the answer depends on, as an application's own callable does."""
    return request.url.path or None


def policy_of(endpoint: Any) -> CachePolicy:
    """Return the policy that stands on *endpoint*."""
    policy: CachePolicy = getattr(endpoint, POLICY_ATTRIBUTE)
    return policy


def recorded(**options: Any) -> CachePolicy:
    """Return what ``@cache`` with *options* records."""

    @cache(**options)
    async def endpoint() -> None: ...

    return policy_of(endpoint)


# What is recorded.


def test_bare() -> None:
    """A bare @cache keeps answers fresh for five minutes and obeys clients."""

    @cache
    async def endpoint() -> str:
        return "answer"

    assert policy_of(endpoint) == CachePolicy()
    assert (policy_of(endpoint).timeout, policy_of(endpoint).cache_control) == (DEFAULT_TIMEOUT, True)
    assert (DEFAULT_TIMEOUT, MAX_BODY) == (300.0, 1_048_576)


def test_called_without_options() -> None:
    """@cache() is @cache."""
    assert recorded() == CachePolicy()


def test_the_function_itself() -> None:
    """The decorators return the function that they mark, whether it is async or not."""

    async def asynchronous() -> None: ...

    def synchronous() -> None: ...

    for endpoint in (asynchronous, synchronous):
        assert cache(timeout=1)(endpoint) is endpoint
        assert policy_of(endpoint) == CachePolicy(timeout=1)
        assert invalidates(tags=["a"])(endpoint) is endpoint
        assert getattr(endpoint, INVALIDATES_ATTRIBUTE) == Invalidates(tags=("a",))


def test_above_and_below_the_route() -> None:
    """The policy is found whether @cache stands above the route's decorator or below it."""
    app = FastAPI()

    @cache(timeout=1)
    @app.get("/above")
    async def above() -> None: ...

    @app.get("/below")
    @cache(timeout=2)
    def below() -> None: ...

    table = RouteTable(app, Fallbacks(None, None))
    for path, timeout in (("/above", 1), ("/below", 2)):
        plan = table.find({"type": "http", "method": "GET", "path": path, "headers": []})
        assert plan is not None
        assert plan.policy == CachePolicy(timeout=timeout)


@pytest.mark.parametrize(
    ("option", "given", "kept"),
    [
        pytest.param("timeout", 60, 60, id="timeout, whole"),
        pytest.param("timeout", 0.5, 0.5, id="timeout, fraction"),
        pytest.param("timeout", timedelta(minutes=1, milliseconds=500), 60.5, id="timeout, timedelta"),
        pytest.param("cache_control", False, False, id="cache_control"),
        pytest.param(
            "include_headers", ["X-Tenant", "x-tenant", "X-B"], ("x-tenant", "x-b"), id="include_headers"
        ),
        pytest.param("include_headers", {"X-Tenant"}, ("x-tenant",), id="include_headers, a set"),
        pytest.param("include_headers", None, (), id="include_headers, None"),
        pytest.param("exclude_headers", ("Cookie",), ("cookie",), id="exclude_headers"),
        pytest.param("tags", ["a", "user_{user_id}", "a"], ("a", "user_{user_id}"), id="tags"),
        pytest.param("tags", tags_of, tags_of, id="tags, a callable"),
        pytest.param("tags", None, (), id="tags, None"),
        pytest.param("tags", ["{{a}} {b:>03} {c!r}"], ("{{a}} {b:>03} {c!r}",), id="tags, braces and formats"),
        pytest.param("statuses", [404, 410], {404: None, 410: None}, id="statuses"),
        pytest.param(
            "statuses", {404: 5, 500: timedelta(seconds=1)}, {404: 5, 500: 1.0}, id="statuses with times"
        ),
        pytest.param("statuses", range(300, 304), dict.fromkeys(range(300, 304)), id="statuses, a range"),
        pytest.param("stale_while_revalidate", 30, 30, id="stale_while_revalidate"),
        pytest.param("stale_if_error", timedelta(hours=1), 3600.0, id="stale_if_error"),
        pytest.param("methods", ["get", "QUERY"], frozenset({"GET", "QUERY"}), id="methods"),
        pytest.param("methods", ["GET", "HEAD"], frozenset({"GET"}), id="methods, HEAD comes with GET"),
        pytest.param("key", GENERATOR, GENERATOR, id="key"),
        pytest.param("vary_by", path_of, path_of, id="vary_by"),
        pytest.param("include_query", ["q", "q"], frozenset({"q"}), id="include_query"),
        pytest.param("include_query", [], frozenset(), id="include_query, none of them"),
        pytest.param("exclude_query", ["utm_source"], frozenset({"utm_source"}), id="exclude_query"),
        pytest.param("max_body", 10, 10, id="max_body"),
        pytest.param("client_max_age", 0, 0, id="client_max_age, nothing"),
        pytest.param("client_max_age", 60.0, 60, id="client_max_age"),
        pytest.param("client_max_age", timedelta(minutes=1), 60, id="client_max_age, timedelta"),
        pytest.param("handler_timeout", timedelta(seconds=2), 2.0, id="handler timeout"),
        pytest.param("early_refresh", 1, 1.0, id="early refresh"),
        pytest.param("early_refresh", 0, 0.0, id="no early refresh"),
        pytest.param("guarded", True, True, id="guarded"),
        pytest.param("jitter", 0, 0.0, id="jitter, nothing"),
        pytest.param("jitter", 0.5, 0.5, id="jitter"),
    ],
)
def test_options(option: str, given: Any, kept: Any) -> None:
    """Each option is kept in one form, and leaves the others as they are."""
    policy = recorded(**{option: given})
    assert getattr(policy, option) == kept
    assert policy == CachePolicy(**{} if given is None else {option: given})


def test_http() -> None:
    """The policy of HTTP alone has no timeout of its own, and takes our safe defaults where told."""
    policy = CachePolicy.http()
    assert (policy.timeout, policy.http_only, policy.store_set_cookie, policy.stale_on_failure) == (
        None,
        True,
        True,
        True,
    )
    careful = CachePolicy.http(store_set_cookie=False, stale_on_failure=False)
    assert (careful.timeout, careful.http_only, careful.store_set_cookie, careful.stale_on_failure) == (
        None,
        True,
        False,
        False,
    )


@pytest.mark.parametrize(
    ("policy", "declared"),
    [
        pytest.param(CachePolicy(), False, id="nothing"),
        pytest.param(CachePolicy(include_headers=("Cookie",)), True, id="in the key"),
        pytest.param(CachePolicy(exclude_headers=("COOKIE",)), True, id="not depended on"),
        pytest.param(CachePolicy(include_headers=("x-cookie",)), False, id="another header"),
        pytest.param(CachePolicy(vary_by=path_of), True, id="vary_by"),
    ],
)
def test_declares(policy: CachePolicy, declared: bool) -> None:
    """An author has said how a response depends on a header by naming it, or by vary_by."""
    assert policy.declares("cookie") is declared


# What is refused.


@pytest.mark.parametrize(
    ("option", "wrong", "value"),
    [
        pytest.param("timeout", 0, "0", id="timeout of nothing"),
        pytest.param("timeout", -1, "-1", id="timeout below zero"),
        pytest.param("timeout", timedelta(0), "not datetime.timedelta(0)", id="timeout, timedelta of nothing"),
        pytest.param("timeout", math.nan, "nan", id="timeout, no number"),
        pytest.param("timeout", math.inf, "inf", id="timeout, for ever"),
        pytest.param("timeout", True, "True", id="timeout, bool"),
        pytest.param("timeout", "60", "'60'", id="timeout, text"),
        pytest.param("timeout", None, "None", id="timeout, None"),
        pytest.param("cache_control", 1, "1", id="cache_control, number"),
        pytest.param("cache_control", "yes", "'yes'", id="cache_control, text"),
        pytest.param("include_headers", "X-A", "'X-A'", id="include_headers, text"),
        pytest.param("include_headers", ["X A"], "'X A'", id="include_headers, a blank"),
        pytest.param("include_headers", ["X-A\r\n"], r"'X-A\r\n'", id="include_headers, a newline"),
        pytest.param("include_headers", ["\xc4"], "'\xc4'", id="include_headers, not ASCII"),
        pytest.param("include_headers", [""], "''", id="include_headers, empty"),
        pytest.param("include_headers", [b"x-a"], "b'x-a'", id="include_headers, bytes"),
        pytest.param("include_headers", ["*"], "'*': name the headers", id="include_headers, all"),
        pytest.param("include_headers", 5, "5", id="include_headers, number"),
        pytest.param("include_headers", iter(["x-a"]), "iterator", id="include_headers, an iterator"),
        pytest.param("exclude_headers", "Cookie", "'Cookie'", id="exclude_headers, text"),
        pytest.param("exclude_headers", ["a:b"], "'a:b'", id="exclude_headers, a colon"),
        pytest.param("exclude_headers", ["Cookie", "*"], "'*': name the headers", id="exclude_headers, all"),
        pytest.param("tags", "users", "'users'", id="tags, text"),
        pytest.param("tags", [""], "''", id="tags, empty"),
        pytest.param("tags", [" "], "' '", id="tags, blank"),
        pytest.param("tags", [5], "5", id="tags, number"),
        pytest.param("tags", 5, "5", id="tags, no list"),
        pytest.param("statuses", 404, "404", id="statuses, number"),
        pytest.param("statuses", "404", "'404'", id="statuses, text"),
        pytest.param("statuses", ["404"], "'404'", id="statuses, texts"),
        pytest.param("statuses", [True], "True", id="statuses, bool"),
        pytest.param("statuses", [199], "199", id="statuses, not final"),
        pytest.param("statuses", [600], "600", id="statuses, none"),
        pytest.param("statuses", [206], "206", id="statuses, a part"),
        pytest.param("statuses", {304: 5}, "304", id="statuses, not modified"),
        pytest.param("statuses", [429], "no cache may store it (RFC 6585)", id="statuses, too many requests"),
        pytest.param("statuses", {428: 5}, "not hold 428", id="statuses, precondition required"),
        pytest.param("statuses", {431: 5}, "not hold 431", id="statuses, fields too large"),
        pytest.param("statuses", [511], "not hold 511", id="statuses, network authentication required"),
        pytest.param("statuses", {404: 0}, "0", id="statuses, a time of nothing"),
        pytest.param("statuses", {404: "5"}, "'5'", id="statuses, a time as text"),
        pytest.param("stale_while_revalidate", 0, "0", id="stale_while_revalidate of nothing"),
        pytest.param("stale_while_revalidate", "5", "'5'", id="stale_while_revalidate, text"),
        pytest.param("stale_if_error", -5, "-5", id="stale_if_error below zero"),
        pytest.param("stale_if_error", False, "False", id="stale_if_error, bool"),
        pytest.param("methods", "GET", "'GET'", id="methods, text"),
        pytest.param("methods", ["PUT"], "'PUT'", id="methods, unsafe"),
        pytest.param("methods", ["GET", "OPTIONS"], "'OPTIONS'", id="methods, one of two"),
        pytest.param("methods", [], "[]", id="methods, none"),
        pytest.param("methods", ["HEAD"], "['HEAD']", id="methods, HEAD alone"),
        pytest.param("key", "user:1", "'user:1'", id="key, text"),
        pytest.param("key", tags_of, "tags_of", id="key, a function"),
        pytest.param("key", DefaultKeyGenerator, "DefaultKeyGenerator", id="key, a class"),
        pytest.param("vary_by", "x-tenant", "'x-tenant'", id="vary_by, text"),
        pytest.param("include_query", "q", "'q'", id="include_query, text"),
        pytest.param("include_query", [5], "5", id="include_query, number"),
        pytest.param("include_query", ["*"], "leave the option out", id="include_query, all"),
        pytest.param("exclude_query", "q", "'q'", id="exclude_query, text"),
        pytest.param("exclude_query", ["*"], "give include_query=[]", id="exclude_query, all"),
        pytest.param("max_body", 0, "0", id="max_body of nothing"),
        pytest.param("max_body", 1.5, "1.5", id="max_body, fraction"),
        pytest.param("max_body", True, "True", id="max_body, bool"),
        pytest.param("max_body", "1 MB", "'1 MB'", id="max_body, text"),
        pytest.param("client_max_age", -1, "-1", id="client_max_age below zero"),
        pytest.param("client_max_age", 1.5, "1.5", id="client_max_age, fraction"),
        pytest.param("client_max_age", math.nan, "nan", id="client_max_age, no number"),
        pytest.param("client_max_age", 2**31, "2147483648", id="client_max_age, too long"),
        pytest.param("client_max_age", True, "True", id="client_max_age, bool"),
        pytest.param(
            "client_max_age", timedelta(-1), "not datetime.timedelta(days=-1)", id="client_max_age, timedelta"
        ),
        pytest.param("handler_timeout", 0, "0", id="handler timeout, nothing"),
        pytest.param("early_refresh", -1, "-1", id="early refresh below zero"),
        pytest.param("early_refresh", math.inf, "inf", id="early refresh without end"),
        pytest.param("early_refresh", True, "True", id="early refresh, a flag"),
        pytest.param("guarded", 1, "1", id="guarded, a number"),
        pytest.param("jitter", 1, "1", id="jitter of all"),
        pytest.param("jitter", -0.1, "-0.1", id="jitter below zero"),
        pytest.param("jitter", math.nan, "nan", id="jitter, no number"),
        pytest.param("jitter", "10%", "'10%'", id="jitter, text"),
        pytest.param("http_only", True, "http_only", id="http_only is not for @cache"),
        pytest.param("store_set_cookie", True, "store_set_cookie", id="store_set_cookie is not for @cache"),
        pytest.param("stale_on_failure", True, "stale_on_failure", id="stale_on_failure is not for @cache"),
    ],
)
def test_wrong_values(option: str, wrong: Any, value: str) -> None:
    """A wrong value is refused by the decorator, in one sentence that names the option and the value."""
    with pytest.raises(ConfigurationError) as raised:
        recorded(**{option: wrong})
    message = str(raised.value)
    assert option in message
    assert value in message
    assert "\n" not in message


@pytest.mark.parametrize("option", ["http_only", "store_set_cookie", "stale_on_failure"])
def test_wrong_values_of_http(option: str) -> None:
    """The options of the policy of HTTP alone are True or False."""
    wrong: dict[str, Any] = {option: "yes"}
    with pytest.raises(ConfigurationError, match=f"^{option} must be True or False, not 'yes'$"):
        CachePolicy(**wrong)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(
            {"include_headers": ["X-A", "Cookie"], "exclude_headers": ["cookie"]},
            "header 'cookie' is in include_headers and in exclude_headers; name it in one",
            id="a header in both",
        ),
        pytest.param(
            {"include_query": ["a"], "exclude_query": ["b"]},
            "include_query and exclude_query exclude each other; give one",
            id="queries of both kinds",
        ),
    ],
)
def test_contradictions(options: dict[str, Any], message: str) -> None:
    """Options that contradict each other are refused, and named."""
    with pytest.raises(ConfigurationError) as raised:
        recorded(**options)
    assert str(raised.value) == message


def test_unknown_option() -> None:
    """An option that there is not is refused as Python does, with those that there are."""
    with pytest.raises(
        TypeError, match=r"^@cache has no option 'ttl'; there are cache_control, .*vary_by$"
    ) as raised:
        recorded(ttl=5)
    assert "http_only" not in str(raised.value)


def test_options_go_by_name() -> None:
    """A timeout without its name is refused, and the message shows the name."""
    with pytest.raises(ConfigurationError, match=r"^@cache takes options by name, such as timeout=300, not 60$"):
        cache(60)  # type: ignore[call-overload]


@pytest.mark.parametrize("given", [pytest.param(tags_of, id="bare"), pytest.param("users", id="a tag")])
def test_names_go_by_option(given: Any) -> None:
    """@invalidates without options is refused as it marks the function, and the message shows an option."""
    right = re.escape(f"@invalidates takes options by name, such as tags=['users'], not {given!r}")
    with pytest.raises(ConfigurationError, match=f"^{right}$"):
        invalidates(given)


@pytest.mark.parametrize("kind", [CachePolicy, Invalidates])
def test_every_option_is_checked(kind: type[CachePolicy | Invalidates]) -> None:
    """Each option carries its check."""
    assert [each.name for each in fields(kind) if not callable(each.metadata.get("check"))] == []


def test_every_option_is_shown() -> None:
    """Type checkers see each option of @cache in its signature, and readers each of a policy in its docstring."""
    _, with_options = get_overloads(cache)
    assert [*inspect.signature(with_options).parameters] == [
        each.name for each in fields(CachePolicy) if not each.metadata.get("of_http")
    ]
    assert re.findall(r"^ {4}(\w+): ", inspect.getdoc(CachePolicy) or "", re.MULTILINE) == [
        *(each.name for each in fields(CachePolicy)),
        "ConfigurationError",
    ]


@pytest.mark.parametrize(
    ("mark", "name"),
    [
        pytest.param(cache(timeout=1), "@cache", id="cache"),
        pytest.param(invalidates(tags=["a"]), "@invalidates", id="invalidates"),
    ],
)
def test_twice(mark: Callable[[Any], Any], name: str) -> None:
    """A decorator that stands twice is refused, also around what keeps the marks of what it wraps."""

    def endpoint() -> None: ...

    mark(endpoint)

    @functools.wraps(endpoint)
    def wrapper() -> None: ...

    for marked in (endpoint, wrapper):
        with pytest.raises(
            ConfigurationError, match=rf"^{name} stands twice on 'test_twice.*endpoint'; one is enough$"
        ):
            mark(marked)


def test_both_decorators() -> None:
    """One endpoint may have a policy and invalidate."""

    @cache
    @invalidates(tags=["a"])
    def endpoint() -> None: ...

    assert policy_of(endpoint) == CachePolicy()
    assert getattr(endpoint, INVALIDATES_ATTRIBUTE) == Invalidates(tags=("a",))


def test_what_takes_no_mark() -> None:
    """A bound method cannot be marked, and the message says what can."""
    with pytest.raises(
        ConfigurationError, match=r"^@cache cannot mark <built-in .*>; decorate the function itself$"
    ):
        cache([].append)


# Templates and tags.


@pytest.mark.parametrize(
    ("template", "names"),
    [
        pytest.param("users", set(), id="none"),
        pytest.param("user_{user_id}", {"user_id"}, id="one"),
        pytest.param("{a}-{b}-{a}", {"a", "b"}, id="two, one of them twice"),
        pytest.param("{{a}}", set(), id="braces"),
        pytest.param("{a:>05}{b!r}", {"a", "b"}, id="format and conversion"),
    ],
)
def test_template_names(template: str, names: set[str]) -> None:
    """A template names what stands between its braces."""
    assert template_names(template) == names


@pytest.mark.parametrize(
    "template",
    [
        pytest.param("{", id="open"),
        pytest.param("a}", id="closed"),
        pytest.param("{a", id="not closed"),
        pytest.param("{}", id="no name"),
        pytest.param("{0}", id="number"),
        pytest.param("{a.b}", id="attribute"),
        pytest.param("{a[0]}", id="item"),
        pytest.param("{a b}", id="blank"),
        pytest.param("{a:{b}}", id="name in a format"),
        pytest.param("{a!x}", id="unknown conversion"),
    ],
)
@pytest.mark.parametrize("option", ["tags", "patterns", "urls"])
def test_wrong_templates(option: str, template: str) -> None:
    """A template that cannot be filled in is refused by the decorator, which names it."""
    with pytest.raises(ConfigurationError) as raised:
        invalidates(**{option: [template]})
    assert repr(template) in str(raised.value)
    with pytest.raises(ConfigurationError) as raised:
        recorded(tags=[template])
    assert repr(template) in str(raised.value)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        pytest.param("{a.b}", "has {a.b}: only plain names", id="no plain name"),
        pytest.param("{a:{b}}", "has '{b}' in the format of a: a format has no braces", id="name in a format"),
        pytest.param("{a!x}", "has !x after a: a conversion is !r, !s or !a", id="unknown conversion"),
    ],
)
def test_what_is_wrong_in_a_template(template: str, message: str) -> None:
    """What is said of a template names the part that cannot be, and what can."""
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        template_names(template)


@pytest.mark.parametrize(
    ("options", "value"),
    [
        pytest.param({}, "@invalidates needs tags, patterns or urls", id="nothing"),
        pytest.param({"tags": []}, "@invalidates needs tags, patterns or urls", id="no tags"),
        pytest.param({"tags": "a"}, "'a'", id="tags, text"),
        pytest.param({"patterns": "/users/*"}, "'/users/*'", id="patterns, text"),
        pytest.param({"urls": [5]}, "5", id="urls, number"),
        pytest.param({"urls": ["users"]}, "'users'", id="urls, relative"),
        pytest.param({"urls": ["ftp://host/x"]}, "'ftp://host/x'", id="urls, other scheme"),
        pytest.param({"patterns": ["x" * 257]}, "256 characters", id="patterns, too long"),
    ],
)
def test_wrong_invalidations(options: dict[str, Any], value: str) -> None:
    """An invalidation of nothing, or of what is no name, is refused."""
    with pytest.raises(ConfigurationError) as raised:
        invalidates(**options)
    assert value in str(raised.value)


def test_invalidates() -> None:
    """What is invalidated is kept as it was given; tags may come from a callable."""
    asked = Invalidates(tags=tags_of, patterns=("/users/{user_id}/*",), urls=("/users",))
    assert (asked.tags, asked.patterns, asked.urls) == (tags_of, ("/users/{user_id}/*",), ("/users",))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"tags": 5}, "tags must be a list of names, such as ['users'], not 5", id="number"),
        pytest.param({"methods": True}, "such as ['GET'], not True", id="bool"),
        pytest.param({"exclude_headers": "Cookie"}, "such as ['Cookie'], not 'Cookie'", id="text"),
        pytest.param({"tags": ""}, "such as ['users'], not ''", id="empty text"),
    ],
)
def test_no_list(options: dict[str, Any], message: str) -> None:
    """What is no list is refused with a list that would do: of the one name, or of an example."""
    with pytest.raises(ConfigurationError, match=f"{re.escape(message)}$"):
        recorded(**options)


@pytest.mark.parametrize(
    ("tags", "kind"), [pytest.param(5, "int", id="number"), (None, "None"), pytest.param("a", "str", id="text")]
)
def test_tags_that_are_no_list(tags: Any, kind: str) -> None:
    """What a callable gives as tags is refused in the words of the option, by its type: it is of a request."""
    with pytest.raises(ConfigurationError, match=rf"such as \['users'\], not {kind}$"):
        checked_tags(tags)


@pytest.mark.parametrize(
    ("wrong", "kind"), [pytest.param("", "an empty one", id="empty"), pytest.param(5, "int", id="number")]
)
def test_wrong_tags(wrong: Any, kind: str) -> None:
    """A tag is a string that is not empty, and none is added beside one that is not."""
    late: set[str] = set()
    request = Request({"type": "http", LATE_TAGS: late})
    with pytest.raises(ConfigurationError, match=f"not {kind}$"):
        add_tags(request, "right", wrong)
    with pytest.raises(ConfigurationError, match=f"not {kind}$"):
        checked_tag(wrong)
    assert late == set()


def test_add_tags() -> None:
    """Tags are added to those that the handler has added before."""
    late = {"before"}
    request = Request({"type": "http", LATE_TAGS: late})
    add_tags(request, "one", "two")
    add_tags(request)
    assert late == {"before", "one", "two"}


def test_add_tags_without_a_cache() -> None:
    """Where no cache has taken the request on, adding tags does nothing."""
    request = Request({"type": "http"})
    add_tags(request, "one")
    assert LATE_TAGS not in request.scope


def test_ranges_of_statuses() -> None:
    """Of a range of statuses those are meant that may be stored."""
    statuses: Any = range(400, 500)
    assert {*statuses} - {*CachePolicy(statuses=statuses).statuses} == {428, 429, 431}


@pytest.mark.parametrize("what", [CachePolicy, Invalidates, cache, invalidates, add_tags])
def test_annotations_at_run_time(what: Any) -> None:
    """What reads annotations as the program runs, as pydantic does, can read ours."""
    assert get_type_hints(what)
    assert TypeAdapter(CachePolicy).validate_python({"timeout": 5}) == CachePolicy(timeout=5)

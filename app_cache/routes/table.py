"""Which policy will a request meet: that of the endpoint which would run, found as the router finds it.

The routers are asked once for each method and path; the answer is remembered.
"""

from __future__ import annotations

import operator
import re
import string
from dataclasses import dataclass, field
from datetime import datetime, time
from enum import Enum
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from starlette.routing import Host

from app_cache.bounded import Bounded
from app_cache.errors import ConfigurationError
from app_cache.guards import check_can_ask
from app_cache.keys import root_paths
from app_cache.logger_config import warn_once
from app_cache.routes.parameters import ANY, NO_PARAMETERS
from app_cache.routes.policies import (
    has_dependencies,
    keyed_by,
    look_at_header_names,
    methods_of,
    put_in_force,
)
from app_cache.routes.ways import (
    come_to,
    decorated_methods,
    has_layer,
    is_mounted,
    is_never_cached,
    match,
    out_of_reach,
    overridable_on,
    parameters_of,
    path_for,
    reads_as_declared,
    recorded,
    routed_app,
    routers_of,
    walk,
    ways_of,
)
from app_cache.rules.decisions import SAFE_METHODS
from app_cache.templates import template_names, template_parts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from app_cache.asgi import Scope
    from app_cache.policy import CachePolicy, Invalidates
    from app_cache.routes.index import Ways
    from app_cache.routes.parameters import Parameters
    from app_cache.routes.policies import Fallbacks
    from app_cache.routes.ways import Way

MAX_PLANS = 1_024
"""Methods and paths remembered at once."""
MAX_PATH = 512
"""Characters of a path beyond which it is not remembered."""
_UNKNOWN: Any = object()
"""Stands for the plan of what has not been asked for."""
_VERSION = "_routes_version"
"""Where a router of FastAPI counts what is added to it; one of Starlette has no such count."""
_FORMATTER = string.Formatter()


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done with the requests of one method and path.

    Args:
        policy: How their answers are cached; None: not at all.
        invalidates: What they invalidate, or None.
        parameters: What fills in the templates of both.
        path_params: The values in the path, as the router found them, without those that the scope had before.
        left: What routers leave in the scope of such a request beside them, for what stands further out.
        root_paths: What the path may be told without.
        route: The path of the route as its author wrote it, ``""`` where there is none.
        is_sure: Whether it is known which endpoint answers them.
        may_invalidate: Whether what answers them may say what it invalidates, where it is not known which that is.
    """

    policy: CachePolicy | None
    invalidates: Invalidates | None
    parameters: Parameters
    path_params: Mapping[str, Any]
    root_paths: Sequence[str] = ()
    route: str = ""
    is_sure: bool = True
    may_invalidate: bool = False
    left: Mapping[str, Any] = field(default_factory=dict)

    def leave_in(self, scope: Scope) -> None:
        """Leave in *scope* what routers would, where the request does not come to them."""
        if self.left:
            scope.update(self.left)
            scope["path_params"] = self.all_path_params(scope)

    def all_path_params(self, scope: Scope) -> dict[str, Any]:
        """Return the values in the path, with those that routers further out have left in *scope*."""
        return {**scope.get("path_params", {}), **self.path_params}

    def is_for(self, scope: Scope) -> bool:
        """Return whether the policy, a fallback, covers the endpoint that routers came to and left in *scope*.

        It does not cover one that is decorated, or that is declared to read what is not in the key.
        """
        context = come_to(scope)
        if self.policy is None or is_never_cached(context) or recorded(context) != (None, None):
            return False
        return keyed_by(self.policy, [parameters_of(context)]) == self.policy

    def has_names_of(self, templates: Iterable[str]) -> bool:
        """Return whether the endpoint receives something by each name in *templates*."""
        return template_names(*templates) <= self.parameters.names | self.path_params.keys()

    def fill_in(
        self, templates: Sequence[str], scope: Scope, escape: Callable[[str], str] | None = None
    ) -> list[str] | None:
        """Return *templates* with the values that the endpoint receives, or None if one of them is not valid.

        Return None, too, if the endpoint receives nothing by one of their names; where it is known which endpoint
        answers, that is an error at start already.

        *escape* is for templates of URLs: it is applied to each value, so that it stays data in what it becomes a
        part of. Paths may have one value in several ways (a UUID in capitals, ``07``), so each is filled in with
        values as the path of the request has them, and as paths mostly do: twice, where that differs.
        """
        if not templates:
            return []
        names = template_names(*templates)
        is_known = self.is_sure or not names or self.has_names_of(templates)
        path_params = self.all_path_params(scope) if names else {}
        values = self.parameters.values(names, scope, path_params) if names and is_known else {}
        if values is None or not is_known:
            return None
        if escape is None:
            return [_filled_in(each, values, values, str) for each in templates]
        plain = {name: _as_in_paths(value) for name, value in values.items()}
        found = {name: self.parameters.in_path(name, path_params) for name in values}
        as_found = plain | {name: value for name, value in found.items() if isinstance(value, str)}
        filled = [_filled_in(each, values, written, escape) for written in (as_found, plain) for each in templates]
        return [*dict.fromkeys(filled)]

    def has_tags_of_url(self, tags: Any) -> bool:
        """Return whether *tags*, names or templates, are filled in with what is in the URL alone."""
        return not callable(tags) and all(
            self.parameters.is_of_url(name) for tag in tags for name in template_names(tag)
        )


def _as_in_paths(value: Any) -> Any:
    """Return *value* as paths mostly have it, where `str` would write it as none does."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, bool):
        return str(value).lower()
    return value.isoformat() if isinstance(value, datetime | time) else value


def _filled_in(
    template: str, values: Mapping[str, Any], written: Mapping[str, Any], escape: Callable[[str], str]
) -> str:
    """Return *template* with *values* where it says how to format them, and else as they are *written*."""
    pieces: list[str] = []
    for text, name, spec, conversion in template_parts(template):
        pieces.append(text)
        if name is not None:
            value = (values if spec or conversion else written)[name]
            if conversion is not None:
                value = _FORMATTER.convert_field(value, conversion)
            pieces.append(escape(format(value, spec)))
    return "".join(pieces)


def escape_for_glob(text: str) -> str:
    """Return *text* as a glob that matches just it."""
    return re.sub(r"([*?\[\]\\])", r"\\\1", text)


def escape_for_url(text: str) -> str:
    """Return *text* as a part of a URL's path that stands for just it."""
    return quote(text, safe="/")


class RouteTable:
    """Finds the plan of a request; built when it is first asked.

    Args:
        app: The application, or what stands before it.
        fallbacks: For what meets no policy of its own.
    """

    def __init__(self, app: Any, fallbacks: Fallbacks) -> None:
        self._app = app
        self._routed = routed_app(app)
        self._is_around = self._routed is not None
        """Whether all that comes here goes to those routes, and not only what no mount led here."""
        self._fallbacks = fallbacks
        self._plans: Bounded[tuple[str, ...], Plan | None] = Bounded(MAX_PLANS)
        self._is_as_walked: Callable[[], bool] = _not_walked_yet
        self._walked: list[tuple[Any, list[Any]]] = []
        """The routers, and their routes, that were looked at last."""
        self._own_ways = ways_of(None)
        self._mounted_ways: dict[int, Ways] = {}
        """Those of mounted applications, as far as they were asked for, by the identity of their routers."""
        self._overridable: list[Any] = []
        """The applications whose overrides of dependencies run on one of the ways."""
        self._by_host = False

    def routes(self, scope: Scope) -> Any:
        """Return the list of routes that the request of *scope* comes to, None where there is none."""
        if self._is_around:
            return self._routed.routes
        serving = routed_app(scope["app"]) if "app" in scope else None
        is_theirs = serving is not None and not is_mounted(scope)
        if self._routed is None and serving is not None:
            self._is_around = has_layer(scope["app"], self._app)
            is_theirs = is_theirs or self._is_around
            if is_theirs:
                self._routed, self._is_as_walked = serving, _not_walked_yet
        return serving.routes if is_theirs and serving is self._routed else None

    def same_routes(self) -> Callable[[], bool] | None:
        """Return a function that tells whether the routes are still those that were looked at; None: none were.

        Overrides of dependencies count too, those of mounted applications as well. It is called at each hit, and
        so looks at the application's own routes alone: `find` looks at those of included and mounted routers.
        """
        return self._watching(self._walked[:1]) if self._walked else None

    def _watching(self, routers: list[tuple[Any, list[Any]]]) -> Callable[[], bool]:
        walked = self._walked
        watched = [(router, len(routes), getattr(router, _VERSION, None)) for router, routes in routers]
        overridable = [(app, {**app.dependency_overrides}) for app in self._overridable]

        def same() -> bool:
            for router, number, version in watched:
                if len(router.routes) != number or getattr(router, _VERSION, None) != version:
                    return False
            for app, overrides in overridable:
                if app.dependency_overrides != overrides:
                    return False
            return self._walked is walked

        return same

    def may_go_on(self, scope: Scope) -> bool:
        """Return whether what answers a request may do something after its answer; True where nobody knows."""
        if self.routes(scope) is None:
            return True
        way, _, _ = match(self._routed, self._ways_in, scope)
        return way is None or way.parameters.may_go_on

    def find(self, scope: Scope, method: str | None = None) -> Plan | None:
        """Return the plan for the request of *scope*, as if made by *method*; None: it is none of the cache's.

        Raises:
            ConfigurationError: If a policy on any route cannot work.
        """
        method = method or scope["method"]
        if not self._is_around and self.routes(scope) is None and self._routed is not None:
            return _with(self._fallbacks.policy(scope, method), method)
        if not self._is_as_walked():
            self._rebuild()
        key = (method, scope["path"], scope.get("root_path", ""), _host(scope) if self._by_host else "")
        if self._plans.get(key, _UNKNOWN) is None:
            return None
        if not all(map(_has_still, self._walked)):
            self._rebuild()
        plan: Plan | None = self._plans.get(key, _UNKNOWN)
        if plan is not _UNKNOWN:
            return plan
        plan = self._plan(scope, method) if self._may_have_plan(scope) else None
        if len(key[1]) <= MAX_PATH:
            self._plans[key] = plan
        return plan

    def _rebuild(self) -> None:
        self._plans.clear()
        check_routes(self._routed)
        self._walked = [(router, [*router.routes]) for router in routers_of(self._routed, set())]
        self._own_ways, self._mounted_ways = ways_of(self._routed), {}
        self._overridable = overridable_on(self._own_ways.all)
        self._by_host = any(isinstance(context.original_route, Host) for context in walk(self._routed))
        self._is_as_walked = self._watching(self._walked)

    def _ways_in(self, app: Any) -> Ways:
        """Return the ways of *app*, the own one or one that is mounted: anew where its routes are not watched."""
        if app is self._routed:
            return self._own_ways
        key, kept = id(getattr(app, "router", app)), self._mounted_ways  # a thread may put others in its place
        if not any(id(router) == key for router, _ in self._walked):
            return ways_of(app)
        ways = kept.get(key)
        if ways is None:
            ways = kept[key] = ways_of(app)
        return ways

    def _may_have_plan(self, scope: Scope) -> bool:
        """Return whether a policy, or something that is invalidated, may be for the path of *scope*."""
        return not self._fallbacks.are_none or self._own_ways.may_matter(path_for(self._routed, scope))

    def _plan(self, scope: Scope, method: str) -> Plan | None:
        asked = {**scope, "method": method, "path_params": {}}
        way, path_params, others = match(self._routed, self._ways_in, asked)
        own_root = getattr(self._routed, "root_path", "")
        roots = root_paths(scope, own_root)
        fallback = self._fallbacks.policy(scope, method, own_root)
        if fallback is not None and method == "HEAD" and not self._is_head_of_get(scope, way, others):
            fallback = None
        if way is None:
            may_invalidate = any(each.may_invalidate for each in others)
            return _with(_for_one_of(others, fallback), method, roots, may_invalidate=may_invalidate)
        policy, (_, invalidates) = _policy_on(way, method, fallback), way.recorded
        if policy is None and invalidates is None:
            return None
        return Plan(policy, invalidates, way.parameters, path_params, roots, way.path, left=way.left)

    def _is_head_of_get(self, scope: Scope, way: Way | None, others: list[Way]) -> bool:
        """Return whether the HEAD of *scope*, which comes to *way* or *others*, is for what answers a GET."""
        of_get, _, others_of_get = match(self._routed, self._ways_in, {**scope, "method": "GET"})
        routes = [each.context.original_route for each in (way, *others) if each is not None]
        return routes == [each.context.original_route for each in (of_get, *others_of_get) if each is not None]


def _with(
    policy: CachePolicy | None, method: str, root_paths: Sequence[str] = (), *, may_invalidate: bool = False
) -> Plan | None:
    """Return the plan with *policy* for requests of *method* to an endpoint that nobody knows.

    A guarded policy covers nothing there: nobody knows what would guard it.
    """
    if policy is not None and policy.guarded:
        policy = None
    if policy is None and not may_invalidate:
        return None
    may_invalidate = may_invalidate or method not in SAFE_METHODS
    return Plan(policy, None, NO_PARAMETERS, {}, root_paths, is_sure=False, may_invalidate=may_invalidate)


def plan_of_change(scope: Scope) -> Plan | None:
    """Return the plan of what the endpoint that routers left in *scope* invalidates; None: that is nothing."""
    context = come_to(scope)
    _, invalidates = recorded(context)
    if invalidates is None:
        return None
    path_params = scope.get("path_params", {})
    return Plan(None, invalidates, parameters_of(context), path_params, route=context.path, is_sure=False)


def _for_one_of(ways: list[Way], policy: CachePolicy | None) -> CachePolicy | None:
    """Return *policy* for what one of *ways* leads to, nobody knows which.

    None where a decorator may go first; and, unless the response itself must say that it may be kept, where
    something that a hit would skip is seen to run before.
    """
    if policy is None or any(way.is_decorated for way in ways):
        return None
    if not policy.http_only and any(way.is_behind_something for way in ways):
        return None
    return keyed_by(policy, ways, is_sure=False)


def _policy_on(way: Way, method: str, fallback: CachePolicy | None) -> CachePolicy | None:
    """Return the policy for requests of *method* that come to *way*: its own, else *fallback*, or None."""
    own, _ = way.recorded
    if own is not None:
        return way.policy if method in way.cached_methods else None
    if fallback is None or way.is_never_cached:
        return None
    return put_in_force(fallback, way.context, way.parameters)


def _not_walked_yet() -> bool:
    """Return False: no routes were looked at that could be the same still."""
    return False


def _has_still(walked: tuple[Any, list[Any]]) -> bool:
    """Return whether a router has the very routes that it had."""
    router, routes = walked
    return len(router.routes) == len(routes) and all(map(operator.is_, router.routes, routes))


def check_routes(app: Any) -> None:
    """Check the policies of all routes of *app*, those of what is included and mounted too.

    Raises:
        ConfigurationError: If one cannot work; it names the endpoint and the value.
    """
    for context in walk(app):
        policy, invalidates = recorded(context)
        if policy is not None:
            _check_policy(policy, context)
            look_at_header_names(policy, _name(context), parameters_of(context).headers)
            _check_query(policy, context)
            _look_at_what_is_left_out(policy, context)
        for method in decorated_methods(context):
            warn_once("policy.decorator_not_read", route=_name(context), method=method)
        for in_handler, templates in _templates(policy, invalidates):
            _check_names(in_handler, templates, context)
    for context, because in out_of_reach(app):
        warn_once("policy.out_of_reach", route=_name(context), because=because)


def _host(scope: Scope) -> str:
    return next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")


def _check_policy(policy: CachePolicy, context: Any) -> None:
    if policy.guarded:
        _check_guard(context)
    if not methods_of(policy, context):
        wanted = "GET, QUERY or POST" if policy.methods is None else ", ".join(sorted(policy.methods))
        raise ConfigurationError(
            f"@cache on {_name(context)} finds nothing to cache: the route has "
            f"{', '.join(sorted(context.methods or ()))}, and {wanted} would be cached"
        )


def _check_guard(context: Any) -> None:
    if not has_dependencies(context):
        raise ConfigurationError(
            f"guarded=True on {_name(context)}: neither it nor its route, its routers or its application has a "
            "dependency that could guard it"
        )
    check_can_ask(context.dependant.call)


def _check_query(policy: CachePolicy, context: Any) -> None:
    named = policy.include_query or frozenset()
    parameters = parameters_of(context)
    known = {ANY} if not reads_as_declared(context) else parameters.query
    for name in sorted(named):
        sent = parameters.sent_as(name)
        if sent and not sent & named:
            raise ConfigurationError(
                f"include_query on {_name(context)} names {name!r}, which clients send as {min(sent)!r}: name that"
            )
        if not sent and not {name, ANY} & known:
            declared = ", ".join(sorted(known)) or "none"
            warn_once("policy.query_not_read", route=_name(context), include_query=name, declared=declared)


def _look_at_what_is_left_out(policy: CachePolicy, context: Any) -> None:
    """Warn of declared query parameters that nothing of *policy* puts into the key, but for those of schemes."""
    if policy.key is not None or policy.vary_by is not None:
        return
    parameters = parameters_of(context)
    declared = parameters.query - parameters.keys_in_query - {ANY}
    option, left_out = "exclude_query", declared & policy.exclude_query
    if policy.include_query is not None:
        option, left_out = "include_query", declared - policy.include_query
    for name in sorted(left_out):
        warn_once("policy.query_left_out", route=_name(context), option=option, name=name)


def _templates(policy: CachePolicy | None, invalidates: Invalidates | None) -> Iterator[tuple[str, Sequence[str]]]:
    """Return the templates of both, each with the function that does the same in a handler."""
    if policy is not None and not callable(policy.tags):
        yield "add_tags", policy.tags
    if invalidates is not None and not callable(invalidates.tags):
        yield "by_tag", invalidates.tags
    if invalidates is not None:
        yield "by_pattern", invalidates.patterns
        yield "by_url", invalidates.urls


def _check_names(in_handler: str, templates: Sequence[str], context: Any) -> None:
    parameters = parameters_of(context)
    by_handler = f"{in_handler}(request, …)" if in_handler == "add_tags" else f"{in_handler}(…) of Invalidation"
    for template in templates:
        unknown = template_names(template) - parameters.names
        if unknown:
            raise ConfigurationError(
                f"template {template!r} on {_name(context)} names {min(unknown)!r}, which is no parameter from "
                f"path, query, header or cookie; there are: {', '.join(sorted(parameters.names)) or 'none'}. "
                f"What is known only in the handler goes to {by_handler}"
            )


def _name(context: Any) -> str:
    return f"{getattr(context.endpoint, '__qualname__', context.endpoint)!r} ({context.path})"

"""Which policy will a request meet: that of the endpoint which would run, found as the router finds it.

The routers are asked once for each method and path; the answer is remembered. `app.routes` does not hold what was
included: FastAPI's own iterator does.
"""

from __future__ import annotations

import functools
import inspect
import operator
import re
import string
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, get_args
from urllib.parse import quote

from fastapi import FastAPI
from fastapi.dependencies.utils import request_params_to_args
from fastapi.routing import APIRoute, APIRouter, APIWebSocketRoute, iter_route_contexts
from fastapi.security import APIKeyHeader
from pydantic import AliasChoices, AliasPath, BaseModel
from starlette.applications import Starlette
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.requests import Request
from starlette.routing import Host, Match, Mount, Route, Router, WebSocketRoute

from app_cache.errors import ConfigurationError
from app_cache.guards import guarded
from app_cache.keys import full_path
from app_cache.policy import (
    CACHEABLE_METHODS,
    INVALIDATES_ATTRIBUTE,
    POLICY_ATTRIBUTE,
    CachePolicy,
    is_header_name,
    template_names,
    template_parts,
)
from app_cache.rules.glob import compile_glob

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence

    from fastapi.dependencies.models import Dependant
    from pydantic.fields import FieldInfo

    from app_cache.policy import Invalidates

    Scope = MutableMapping[str, Any]

ANY_HEADER = "*"
"""Stands for all headers: those of a model that allows, or forbids, fields it does not name."""
MAX_PLANS = 1_024
"""Methods and paths remembered at once."""
MAX_PATH = 512
"""Characters of a path beyond which it is not remembered."""

SAFE_AND_CACHED = frozenset({"GET", "QUERY"})
_ROUTES = (Route, APIRoute, WebSocketRoute, APIWebSocketRoute, Mount, Host)
_KNOWN_MATCHERS = {cls.matches for cls in _ROUTES}
_KNOWN_HANDLERS = {cls.handle for cls in _ROUTES}
_CALLS_THE_ENDPOINT = {
    (module, "request_response.<locals>.app") for module in ("starlette.routing", "fastapi.routing")
}
_PLACES = ("path", "query", "header", "cookie")
_VERSION = "_routes_version"
"""Where a router of FastAPI counts what is added to it; one of Starlette has no such count."""
_FORMATTER = string.Formatter()
_RECEIVED = {"query": "query_params", "header": "headers", "cookie": "cookies"}


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done with the requests of one method and path.

    Args:
        policy: How their answers are cached; None: not at all.
        invalidates: What they invalidate, or None.
        parameters: What fills in the templates of both.
        path_params: The values in the path, as the router found them.
    """

    policy: CachePolicy | None
    invalidates: Invalidates | None
    parameters: Parameters
    path_params: Mapping[str, Any]

    def fill_in(
        self, templates: Sequence[str], scope: Scope, escape: Callable[[str], str] = str
    ) -> list[str] | None:
        """Return *templates* with the values that the endpoint receives, or None if one of them is not valid.

        *escape* is applied to each value, so that it stays data in what it becomes a part of.
        """
        names = template_names(*templates)
        values = self.parameters.values(names, scope, self.path_params) if names else {}
        return None if values is None else [_filled_in(each, values, escape) for each in templates]

    def has_tags_of_url(self, tags: Any) -> bool:
        """Return whether *tags*, names or templates, are filled in with what is in the URL alone."""
        return not callable(tags) and all(
            self.parameters.is_of_url(name) for tag in tags for name in template_names(tag)
        )


def _filled_in(template: str, values: Mapping[str, Any], escape: Callable[[str], str]) -> str:
    pieces: list[str] = []
    for text, name, spec, conversion in template_parts(template):
        pieces.append(text)
        if name is not None:
            value = values[name] if conversion is None else _FORMATTER.convert_field(values[name], conversion)
            pieces.append(escape(format(value, spec)))
    return "".join(pieces)


def escape_for_glob(text: str) -> str:
    """Return *text* as a glob that matches just it."""
    return re.sub(r"([*?\[\]\\])", r"\\\1", text)


def escape_for_url(text: str) -> str:
    """Return *text* as a part of a URL's path that stands for just it."""
    return quote(text, safe="/")


class Parameters:
    """The parameters of an endpoint, its dependencies' included, that come from path, query, header and cookie.

    *headers*: the request headers that they are declared to read, API keys included, in lower case.
    """

    def __init__(self, dependant: Dependant | None, path_names: Iterable[str]) -> None:
        self._fields: dict[str, tuple[str, Any]] = {}
        self._path_names = frozenset(path_names)
        self.headers: frozenset[str] = frozenset()
        if dependant is not None:
            self._add(dependant)

    def _add(self, dependant: Dependant) -> None:
        for place in _PLACES:
            for parameter in getattr(dependant, f"{place}_params"):
                self._fields.setdefault(str(parameter.name), (place, parameter))
        self.headers |= _headers_read(dependant)
        for each in dependant.dependencies:
            self._add(each)

    @property
    def names(self) -> frozenset[str]:
        """The names that a template may have."""
        return self._path_names | self._fields.keys()

    def is_of_url(self, name: str) -> bool:
        """Return whether the parameter *name* comes from path or query."""
        return name not in self._fields or self._fields[name][0] in ("path", "query")

    def values(self, names: Iterable[str], scope: Scope, path_params: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the validated values of *names*, defaults included, or None if one of them is not valid."""
        values: dict[str, Any] = {}
        for name in names:
            if name not in self._fields:
                values[name] = path_params.get(name)
                continue
            place, parameter = self._fields[name]
            found, errors = (
                _value_in_path(parameter, path_params)
                if place == "path"
                else request_params_to_args([parameter], getattr(Request(scope), _RECEIVED[place]))
            )
            if errors:
                return None
            values.update(found)
        return values


def _value_in_path(parameter: Any, path_params: Mapping[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """Return what `request_params_to_args` does, without its look at what no parameter in a path can be."""
    value = path_params.get(parameter.validation_alias or parameter.alias)
    if value is None:
        return request_params_to_args([parameter], path_params)
    found, errors = parameter.validate(value, {}, loc=())
    return {parameter.name: found}, errors


def _headers_read(dependant: Dependant) -> frozenset[str]:
    """Return the headers that *dependant* itself declares, `ANY_HEADER` among them where that is all of them."""
    names: set[str] = set()
    for parameter in dependant.header_params:
        models = _models_in(parameter.field_info.annotation)
        if any(model.model_config.get("extra") in ("allow", "forbid") for model in models):
            names.add(ANY_HEADER)
        for model in models:
            by_name = model.model_config.get("populate_by_name") or model.model_config.get("validate_by_name")
            for name, field in model.model_fields.items():
                names |= ({name} if by_name else set()) | (_aliases(field) or {name})
        if not models:
            names |= _aliases(parameter.field_info) or {parameter.alias}
    if isinstance(dependant.call, APIKeyHeader):
        names.add(dependant.call.model.name)
    spelt = names | {name.replace("_", "-") for name in names}
    return frozenset(name.lower() for name in spelt if is_header_name(name))


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the models that *annotation* is, or is made of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _aliases(field: FieldInfo) -> set[str]:
    """Return the names that a value of *field* is read by, where it has others than its own."""
    alias = field.validation_alias or field.alias
    choices = alias.choices if isinstance(alias, AliasChoices) else [alias]
    paths = [each.path[0] if isinstance(each, AliasPath) else each for each in choices]
    return {name for name in paths if isinstance(name, str)}


class Fallbacks:
    """The policies of what has none of its own; of unsafe methods only for those that a policy names.

    Args:
        by_path: Globs over the whole decoded path, root path included, and their policies, None for what stays out
            of the cache; the first that matches counts.
        default: For all other paths.

    Raises:
        ConfigurationError: If one is no policy, a pattern cannot work, or a tag has to be filled in: there is no
            endpoint whose parameters could.
    """

    def __init__(self, by_path: Mapping[str, CachePolicy | None] | None, default: CachePolicy | None) -> None:
        if default is not None:
            _check_fallback("default_policy", default)
        if not isinstance(by_path or {}, Mapping):
            raise ConfigurationError(
                f"policies must be a mapping such as {{'/public/*': CachePolicy()}}, not {by_path!r}"
            )
        self._by_path: list[tuple[Callable[[str], bool], CachePolicy | None]] = []
        for pattern, policy in (by_path or {}).items():
            _check_path_pattern(pattern)
            if policy is not None:
                _check_fallback(f"policies[{pattern!r}]", policy)
            self._by_path.append((compile_glob(pattern), policy))
        self._default = default

    def policy(self, scope: Scope, method: str) -> CachePolicy | None:
        """Return the policy for requests of *method* to the path of *scope*, or None."""
        path = full_path(scope) if self._by_path else ""
        found = next((policy for matches, policy in self._by_path if matches(path)), self._default)
        return found if found is not None and _covers(found, method) else None


def _check_path_pattern(pattern: object) -> None:
    if not isinstance(pattern, str) or not pattern.startswith(("/", "*", "?", "[")):
        raise ConfigurationError(f"policies must hold globs over paths, such as '/public/*', not {pattern!r}")


def _check_fallback(name: str, policy: object) -> None:
    if not isinstance(policy, CachePolicy):
        raise ConfigurationError(f"{name} must be a CachePolicy, not {policy!r}")
    filled = [] if callable(policy.tags) else [tag for tag in policy.tags if template_names(tag)]
    if filled:
        raise ConfigurationError(
            f"{name} has the tag {filled[0]!r}, but no endpoint whose parameters could fill it in; "
            "give tags as a callable of the request"
        )


class RouteTable:
    """Finds the plan of a request; built when it is first asked.

    Args:
        app: The application, or what stands before it.
        fallbacks: For what meets no policy of its own.
    """

    def __init__(self, app: Any, fallbacks: Fallbacks) -> None:
        self._routed = routed_app(app)
        self._fallbacks = fallbacks
        self._plans: OrderedDict[tuple[str, ...], Plan | None] = OrderedDict()
        self._is_as_walked: Callable[[], bool] = bool
        self._walked: list[tuple[Any, list[Any]]] = []
        """The routers, and their routes, that were looked at last."""
        self._ways: list[_Way] = []
        self._by_host = False

    def routes(self, scope: Scope) -> Any:
        """Return the list of routes that the request of *scope* comes to, None where there is none."""
        if self._routed is None and "app" in scope:
            self._routed, self._is_as_walked = routed_app(scope["app"]), bool
        return getattr(self._routed, "routes", None)

    def same_routes(self) -> Callable[[], bool] | None:
        """Return what tells whether the application itself has the routes that were looked at last; None: none.

        A hit asks it, each time: after routers that are included, or mounted, `find` looks.
        """
        return self._watching(self._walked[:1]) if self._walked else None

    def _watching(self, routers: list[tuple[Any, list[Any]]]) -> Callable[[], bool]:
        walked = self._walked
        watched = [(router, len(routes), getattr(router, _VERSION, None)) for router, routes in routers]

        def same() -> bool:
            for router, number, version in watched:
                if len(router.routes) != number or getattr(router, _VERSION, None) != version:
                    return False
            return self._walked is walked

        return same

    def find(self, scope: Scope, method: str | None = None) -> Plan | None:
        """Return the plan for the request of *scope*, as if made by *method*; None: it is none of the cache's.

        Raises:
            ConfigurationError: If a policy on any route cannot work.
        """
        if self._routed is None:
            self.routes(scope)
        if not self._is_as_walked():
            self._rebuild()
        method = method or scope["method"]
        key = (method, scope["path"], scope.get("root_path", ""), _host(scope) if self._by_host else "")
        known = key in self._plans
        if known and self._plans[key] is None:
            return None
        if not all(map(_has_still, self._walked)):
            self._rebuild()
            known = False
        if known:
            return self._plans[key]
        plan = self._plan({**scope, "method": method})
        if len(key[1]) <= MAX_PATH:
            self._plans[key] = plan
            if len(self._plans) > MAX_PLANS:
                self._plans.popitem(last=False)
        return plan

    def _rebuild(self) -> None:
        self._is_as_walked = bool  # until all of it has been looked at
        self._plans.clear()
        check_routes(self._routed)
        self._walked = [(router, [*router.routes]) for router in _routers(self._routed, set())]
        self._ways = [*_ways(self._routed)]
        self._by_host = any(isinstance(context.original_route, Host) for context in _walk(self._routed))
        self._is_as_walked = self._watching(self._walked)

    def _plan(self, scope: Scope) -> Plan | None:
        method = scope["method"]
        way, path_params, others = _match(self._routed, self._ways, scope)
        fallback = self._fallbacks.policy(scope, method)
        if fallback is not None and method == "HEAD" and not self._is_head_of_get(scope, way, others):
            fallback = None
        if way is None:
            fallback = _for_one_of(others, fallback)
            return Plan(fallback, None, _NO_PARAMETERS, {}) if fallback is not None else None
        own, invalidates = way.recorded
        policy = fallback if own is None else own if method in _methods(own, way.context) else None
        if policy is None and invalidates is None:
            return None
        guards = policy is not None and _guards(policy, way.context)
        keyed = _keyed_by(policy, way.parameters.headers) if policy is not None and guards else None
        return Plan(keyed, invalidates, way.parameters, path_params)

    def _is_head_of_get(self, scope: Scope, way: _Way | None, others: list[_Way]) -> bool:
        """Return whether the HEAD of *scope*, which comes to *way* or *others*, is for who answers a GET."""
        of_get, _, others_of_get = _match(self._routed, self._ways, {**scope, "method": "GET"})
        routes = [each.context.original_route for each in (way, *others) if each is not None]
        return routes == [each.context.original_route for each in (of_get, *others_of_get) if each is not None]


def _routers(app: Any, seen: set[int]) -> Iterator[Any]:
    """Return what holds the routes of *app*: its router, those that it includes, and those of what it mounts."""
    router = getattr(app, "router", app)
    if not hasattr(router, "routes") or id(router) in seen:
        return
    seen.add(id(router))
    yield router
    for route in router.routes:
        yield from _routers(getattr(route, "original_router", None), seen)
    for context in iter_route_contexts(router.routes):
        yield from _routers(_inner(context), seen)


def _has_still(walked: tuple[Any, list[Any]]) -> bool:
    """Return whether a router has the very routes that it had."""
    router, routes = walked
    return len(router.routes) == len(routes) and all(map(operator.is_, router.routes, routes))


def check_routes(app: Any) -> None:
    """Check the policies of all routes of *app*, those of what is included and mounted too.

    Raises:
        ConfigurationError: If one cannot work; it names the endpoint and the value.
    """
    for context in _walk(app):
        policy, invalidates = _recorded(context)
        if policy is not None:
            _check_policy(policy, context)
        for templates in _templates(policy, invalidates):
            _check_names(templates, context)


def routed_app(app: Any) -> Any:
    """Return what has routes, *app* or what it is wrapped around (its ``app``, and so on), or None."""
    seen: set[int] = set()
    while app is not None and id(app) not in seen:
        seen.add(id(app))
        if isinstance(getattr(app, "routes", None), list):
            return app
        app = getattr(app, "app", None)
    return None


def _host(scope: Scope) -> str:
    return next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")


class _Way:
    """A route as a router comes to it, and what is known of it that no request changes.

    *is_sure*: Whether what comes to it is told by method and path.
    """

    def __init__(self, context: Any, *, is_sure: bool) -> None:
        self.context = context
        self.matches: Callable[[Scope], tuple[Match, Scope]] = context.matches
        self.is_sure = is_sure and type(context.original_route).matches in _KNOWN_MATCHERS

    @functools.cached_property
    def recorded(self) -> tuple[CachePolicy | None, Invalidates | None]:
        """What the decorators of its endpoint say."""
        return _recorded(self.context)

    @functools.cached_property
    def parameters(self) -> Parameters:
        """Those of its endpoint."""
        return _parameters(self.context)

    @functools.cached_property
    def is_decorated(self) -> bool:
        """Whether an endpoint that it may lead to has a policy of its own."""
        return any(_recorded(context)[0] is not None for context in _under(self.context))

    @functools.cached_property
    def headers(self) -> frozenset[str]:
        """The headers that endpoints which it may lead to are declared to read."""
        return frozenset().union(*(_parameters(context).headers for context in _under(self.context)))


def _ways(app: Any) -> Iterator[_Way]:
    for route in app.routes if app is not None else ():
        odd = _is_odd(getattr(route, "original_router", None))
        yield from (_Way(context, is_sure=not odd) for context in iter_route_contexts([route]))


def _is_odd(router: Any) -> bool:
    """Return whether an included *router*, or one in it, matches or handles requests in a way of its own."""
    if router is None:
        return False
    as_known = type(router).matches is APIRouter.matches and type(router).handle is APIRouter.handle
    return not as_known or any(_is_odd(getattr(route, "original_router", None)) for route in router.routes)


def _under(context: Any) -> Iterator[Any]:
    """Return *context*, or all that a request may come to in what it mounts, whatever stands before that."""
    mounted = routed_app(context.app) if isinstance(context.original_route, Mount | Host) else None
    if mounted is None:
        yield context
        return
    for each in iter_route_contexts(mounted.routes):
        yield from _under(each)


def _for_one_of(ways: list[_Way], policy: CachePolicy | None) -> CachePolicy | None:
    """Return *policy* for what one of *ways* leads to, nobody knows which; None where a decorator may go first."""
    if policy is None or any(way.is_decorated for way in ways):
        return None
    return _keyed_by(policy, frozenset().union(*(way.headers for way in ways)))


def _match(app: Any, ways: Iterable[_Way], scope: Scope) -> tuple[_Way | None, Mapping[str, Any], list[_Way]]:
    """Return the way to the endpoint of *app* that would run, and the values in the path.

    Where that is not sure, or something would run before it, None and the ways that may be taken. A route that
    matches in a way of its own makes unsure all that comes after it: it may look at anything.
    """
    ways = [*ways]
    if root_path := getattr(app, "root_path", ""):
        scope = {**scope, "root_path": root_path}
    for number, way in enumerate(ways):
        if not way.is_sure:
            return None, {}, ways[number:]
        found, child_scope = way.matches(scope)
        if found is Match.FULL:
            inner = _inner(way.context)
            if inner is not None:
                return _match(inner, _ways(inner), {**scope, **child_scope})
            if _is_endpoint(way.context):
                return way, child_scope["path_params"], []
            return None, {}, [way]
    return None, {}, []


def _is_endpoint(context: Any) -> bool:
    """Return whether a hit would skip nothing but the endpoint: a route may have middleware of its own."""
    route = context.original_route
    if not isinstance(route, Route) or type(route).handle not in _KNOWN_HANDLERS:
        return False
    app = route.app
    while isinstance(app, RequestBodyLimitMiddleware):
        app = app.app
    return app is route.endpoint or (
        inspect.isfunction(app) and (app.__module__, app.__qualname__) in _CALLS_THE_ENDPOINT
    )


def _inner(context: Any) -> Any:
    """Return the application under a mount or a host if what it answers may be cached from outside of it.

    One with middleware of its own is not entered: a hit would not run it. Install the cache in that one, for which
    alone it then is.
    """
    route = context.original_route
    if not isinstance(route, Mount | Host) or type(route).handle not in _KNOWN_HANDLERS:
        return None
    app = context.app
    return app if _only_routes(app) else None


def _only_routes(app: Any) -> bool:
    """Return whether *app* does nothing with a request but hand it to a route."""
    kind = type(app)
    if isinstance(app, Router):
        as_known = kind.__call__ is Router.__call__ and kind.app in (Router.app, APIRouter.app)
        return as_known and app.middleware_stack == app.app
    return (
        isinstance(app, Starlette)
        and kind.__call__ in (Starlette.__call__, FastAPI.__call__)
        and kind.build_middleware_stack in (Starlette.build_middleware_stack, FastAPI.build_middleware_stack)
        and "build_middleware_stack" not in vars(app)
        and not app.user_middleware
        and type(app.middleware_stack) in (type(None), ServerErrorMiddleware)
        and _only_routes(app.router)
    )


def _walk(app: Any) -> Iterator[Any]:
    for context in iter_route_contexts(app.routes if app is not None else ()):
        yield context
        inner = _inner(context)
        if inner is not None:
            yield from _walk(inner)


def _recorded(context: Any) -> tuple[CachePolicy | None, Invalidates | None]:
    endpoint = getattr(context, "endpoint", None)
    while isinstance(endpoint, functools.partial) and POLICY_ATTRIBUTE not in vars(endpoint):
        endpoint = endpoint.func
    return getattr(endpoint, POLICY_ATTRIBUTE, None), getattr(endpoint, INVALIDATES_ATTRIBUTE, None)


def _guards(policy: CachePolicy, context: Any) -> bool:
    """Let the endpoint ask the guard of each request, if *policy* wants that; return whether it can be had.

    A route without FastAPI's dependencies has none, and is not cached by a policy that is guarded.
    """
    if not policy.guarded:
        return True
    dependant = getattr(context, "dependant", None)
    if dependant is not None:
        dependant.call = guarded(dependant.call)
    return dependant is not None


def _keyed_by(policy: CachePolicy, headers: frozenset[str]) -> CachePolicy | None:
    """Return *policy* with the headers that the endpoint is declared to read in its key, unless it excludes them.

    Authorization and Cookie have a rule of their own, and so has what is cached by the RFC alone. None: the
    endpoint is declared to read any header, and no key tells its answers apart.
    """
    unkeyed = headers - {*policy.include_headers, *policy.exclude_headers, "authorization", "cookie"}
    if not unkeyed or policy.http_only:
        return policy
    if ANY_HEADER in unkeyed:
        return None
    return replace(policy, include_headers=(*policy.include_headers, *sorted(unkeyed)))


def _covers(policy: CachePolicy, method: str) -> bool:
    """Return whether a policy that is not written on an endpoint has the requests of *method*."""
    return method in (policy.methods or SAFE_AND_CACHED) or (method == "HEAD" and _covers(policy, "GET"))


def _methods(policy: CachePolicy, context: Any) -> frozenset[str]:
    """Return the methods whose requests of a route are the cache's: POST where it is all there is, or is named."""
    of_route = frozenset(context.methods or CACHEABLE_METHODS)
    cached = of_route & (policy.methods or CACHEABLE_METHODS)
    if policy.methods is None and cached & SAFE_AND_CACHED:
        cached &= SAFE_AND_CACHED
    return cached | ({"HEAD"} & of_route if "GET" in cached else frozenset())


def _parameters(context: Any) -> Parameters:
    return Parameters(getattr(context, "dependant", None), getattr(context, "param_convertors", ()))


def _check_policy(policy: CachePolicy, context: Any) -> None:
    if not _guards(policy, context):
        raise ConfigurationError(
            f"guarded=True on {_name(context)}: only an endpoint of FastAPI has dependencies that could guard it"
        )
    if not _methods(policy, context):
        wanted = "GET, QUERY or POST" if policy.methods is None else ", ".join(sorted(policy.methods))
        raise ConfigurationError(
            f"@cache on {_name(context)} finds nothing to cache: the route has "
            f"{', '.join(sorted(context.methods or ()))}, and {wanted} would be cached"
        )


def _templates(policy: CachePolicy | None, invalidates: Invalidates | None) -> Iterator[Sequence[str]]:
    if policy is not None and not callable(policy.tags):
        yield policy.tags
    if invalidates is not None:
        yield from (
            each for each in (invalidates.tags, invalidates.patterns, invalidates.urls) if not callable(each)
        )


def _check_names(templates: Sequence[str], context: Any) -> None:
    known = _parameters(context).names
    for template in templates:
        unknown = template_names(template) - known
        if unknown:
            raise ConfigurationError(
                f"template {template!r} on {_name(context)} names {min(unknown)!r}, which is no parameter from "
                f"path, query, header or cookie; there are: {', '.join(sorted(known)) or 'none'}. "
                "What is known only in the handler goes to add_tags(request, …)"
            )


def _name(context: Any) -> str:
    return f"{getattr(context.endpoint, '__qualname__', context.endpoint)!r} ({context.path})"


_NO_PARAMETERS = Parameters(None, ())

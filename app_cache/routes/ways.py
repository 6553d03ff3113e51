"""How a request comes to an endpoint: the routes as routers walk them, and where nobody can tell.

`app.routes` does not hold what was included: FastAPI's own iterator does. What a route, a router or a mounted
application does in a way of its own is not guessed at.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import re
import sys
from types import FunctionType, SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

from fastapi import FastAPI
from fastapi.routing import APIRoute, APIRouter, APIWebSocketRoute, RouteContext, iter_route_contexts
from starlette._utils import get_route_path
from starlette.applications import Starlette
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.routing import Host, Match, Mount, Route, Router, WebSocketRoute

from app_cache.policy import INVALIDATES_ATTRIBUTE, NEVER_ATTRIBUTE, POLICY_ATTRIBUTE
from app_cache.routes.index import ANY, Ways
from app_cache.routes.parameters import Parameters
from app_cache.routes.policies import methods_of, put_in_force

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from app_cache.asgi import Scope
    from app_cache.policy import CachePolicy, Invalidates

    Layers = frozenset[tuple[str, str]]

BODY_LIMITS = frozenset(
    {
        ("fastapi._body_limit", "_BodyLimitExceptionMiddleware"),
        ("starlette.middleware.body_limit", "RequestBodyLimitMiddleware"),
    }
)
"""Classes that only limit the size of a request's body: what was stored for one, they have let through."""
_WSGI = frozenset(
    {
        ("a2wsgi.wsgi", "WSGIMiddleware"),
        ("starlette.middleware.wsgi", "WSGIMiddleware"),
        ("uvicorn.middleware.wsgi", "_WSGIMiddleware"),
    }
)
"""Classes that are around an application of WSGI, and nothing else."""
_MARKS = (POLICY_ATTRIBUTE, INVALIDATES_ATTRIBUTE, NEVER_ATTRIBUTE)
_METHODS = ("get", "head", "post", "put", "patch", "delete", "options", "query")
"""The methods of a class-based endpoint that answer requests."""
_ROUTES = (Route, APIRoute, WebSocketRoute, APIWebSocketRoute, Mount, Host)
_OF_WEBSOCKETS = (WebSocketRoute, APIWebSocketRoute)
_ROUTING = ("starlette.routing", "fastapi.routing")
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_WITHOUT_SLASH = (
    "[^/]+",
    "[0-9]+",
    r"[0-9]+(\.[0-9]+)?",
    "[0-9a-fA-F]{8}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{12}",
)
"""How Starlette writes the parameters that are text, numbers and UUIDs: no slash matches them."""
_ONE_SEGMENT = re.compile(rf"\(\?P<\w+>(?:{'|'.join(map(re.escape, _WITHOUT_SLASH))})\)")
_PARAMETER = "\0"
"""Stands for such a parameter in a pattern."""
_KNOWN_MATCHERS = {cls.matches for cls in _ROUTES}
_KNOWN_HANDLERS = {cls.handle for cls in _ROUTES}
_CALLS_THE_ENDPOINT = {(module, "request_response.<locals>.app") for module in _ROUTING}


class Course(NamedTuple):
    """How paths begin: with these *segments*, `ANY` among them; *ends*: with nothing after them."""

    segments: tuple[str, ...] = ()
    ends: bool = False


ANYWHERE = Course()


class Way:
    """A route as a router comes to it, and what is known of it that no request changes.

    *router*: What tries it. *is_odd*: Whether what includes it matches or handles requests in a way of its own.
    """

    def __init__(self, context: Any, router: Any, *, is_odd: bool = False) -> None:
        self.context = context
        self.router = router
        self.matches: Callable[[Scope], tuple[Match, Scope]] = context.matches
        self.is_odd = is_odd
        self.is_sure = not is_odd and _matches_as_known(context.original_route)
        """Whether method and path alone tell which requests come to it."""

    @functools.cached_property
    def recorded(self) -> tuple[CachePolicy | None, Invalidates | None]:
        """What the decorators of its endpoint say."""
        return recorded(self.context)

    @functools.cached_property
    def policy(self) -> CachePolicy | None:
        """That of its endpoint, as it is in force there."""
        policy, _ = self.recorded
        return None if policy is None else put_in_force(policy, self.context, self.parameters)

    @functools.cached_property
    def cached_methods(self) -> frozenset[str]:
        """The methods that this policy is for."""
        policy, _ = self.recorded
        return frozenset() if policy is None else methods_of(policy, self.context)

    @functools.cached_property
    def left(self) -> dict[str, Any]:
        """What routers leave in the scope of a request that comes to it, beside the values in its path.

        A router of FastAPI leaves the route where that is one of its own, one of Starlette whichever it is.
        """
        route, left = self.context.original_route, {"endpoint": self.context.endpoint}
        is_left = isinstance(route, APIRoute) or not isinstance(self.router, APIRouter)
        return left | {"route": route} if is_left else left

    @functools.cached_property
    def path(self) -> str:
        """As its author wrote it, with the names of its parameters; ``""`` where it is told by something else."""
        return str(getattr(self.context, "path", None) or "")

    @functools.cached_property
    def course(self) -> Course:
        """How the paths begin that come to it, as far as that is known."""
        regex = getattr(self.context, "path_regex", None)
        is_fixed = self.is_sure and not hasattr(type(self.context.original_route), "path_regex")
        return _course_of(regex) if is_fixed and isinstance(regex, re.Pattern) else ANYWHERE

    @functools.cached_property
    def may_matter(self) -> bool:
        """Whether an endpoint that it may lead to says something of the cache, or nobody can tell.

        What is mounted may be replaced.
        """
        mounts = isinstance(self.context.original_route, Mount | Host)
        return not self.is_sure or mounts or self.is_decorated or self.may_invalidate

    @functools.cached_property
    def is_never_cached(self) -> bool:
        """Whether its endpoint stays out of the cache, whatever the policy of what has none of its own."""
        return is_never_cached(self.context)

    @functools.cached_property
    def parameters(self) -> Parameters:
        """Those of its endpoint."""
        return parameters_of(self.context)

    @functools.cached_property
    def is_decorated(self) -> bool:
        """Whether an endpoint that it may lead to has a policy of its own, or may have one: nobody can tell."""
        return any(_is_unknown(each) or recorded(each)[0] is not None for each in _under(self.context))

    @functools.cached_property
    def is_behind_something(self) -> bool:
        """Whether it is seen that something of the user's runs before an endpoint that it may lead to."""
        route = self.context.original_route
        chooses = type(route).matches.__module__ not in _ROUTING and not isinstance(route, _OF_WEBSOCKETS)
        return self.is_odd or chooses or _is_behind_something(self.context)

    @functools.cached_property
    def may_invalidate(self) -> bool:
        """Whether an endpoint that it may lead to says what it invalidates."""
        return any(recorded(each)[1] is not None for each in _under(self.context))

    @functools.cached_property
    def headers(self) -> frozenset[str]:
        """The headers that endpoints which it may lead to are declared to read, or files to be chosen by."""
        contexts = [*_under(self.context)]
        accept = frozenset({"accept"} if any(map(_is_chosen_by_accept, contexts)) else ())
        return accept.union(*(parameters_of(context).headers for context in contexts))

    @functools.cached_property
    def keys_in_query(self) -> frozenset[str]:
        """The query parameters that security schemes on it, or on what it may lead to, are declared to read."""
        return frozenset().union(*(parameters_of(context).keys_in_query for context in _under(self.context)))


def _matches_as_known(route: Any) -> bool:
    return type(route).matches in _KNOWN_MATCHERS and "matches" not in vars(route)


def _course_of(regex: re.Pattern[str]) -> Course:
    """Return how all begins that matches *regex*, if it is written as Starlette writes it.

    A dollar that is text is escaped, and so shows as something that Starlette does not write.
    """
    if regex.flags != re.UNICODE or "|" in regex.pattern:
        return ANYWHERE
    escaped = _ONE_SEGMENT.sub(_PARAMETER, regex.pattern.removeprefix("^")).partition("(?P<")[0]
    ends = escaped.endswith("$")
    escaped = escaped.removesuffix("$")
    text = _ESCAPED.sub(r"\1", escaped)
    if not text.startswith("/") or re.escape(text) != escaped:
        return ANYWHERE
    segments = [ANY if _PARAMETER in each else each for each in text[1:].split("/")]
    return Course(tuple(segments if ends else segments[:-1]), ends)  # else the last one goes on in what follows


def ways_of(app: Any) -> Ways:
    """Return the ways that the router of *app* tries."""
    return Ways(_in_order(app))


def _in_order(app: Any) -> Iterator[Way]:
    router = getattr(app, "router", app)
    for route in app.routes if app is not None else ():
        odd = _is_odd(getattr(route, "original_router", None))
        yield from (Way(context, router, is_odd=odd) for context in _tried(route))
    yield from (Way(context, router) for context in _tried_last(app))


def _tried(*routes: Any) -> Iterator[Any]:
    """Return *routes* as a router tries them, with those of included routers in their places."""
    for route in routes:
        yield from _as_far_as_built(route, iter_route_contexts([route]))


def _tried_last(app: Any) -> Iterator[Any]:
    """Return the routes that the router of *app* tries where no other matches: files, by ``app.frontend``."""
    router = getattr(app, "router", app)
    for route in getattr(router, "_low_priority_routes", ()):
        yield RouteContext(route)
    for route in router.routes if router is not None else ():
        yield from _as_far_as_built(route, _tried_last_in(route))


def _tried_last_in(route: Any) -> Iterator[Any]:
    for each in getattr(route, "effective_low_priority_routes", tuple)():
        yield RouteContext(each.original_route, each)


def _is_chosen_by_accept(context: Any) -> bool:
    """Return whether *context* has files, by ``app.frontend``, with a page in the place of those that are missing.

    FastAPI gives that page to who accepts HTML and a 404 to others, without a Vary: not so a page that says 404.
    """
    fallbacks = [_fallback(route) for route in getattr(context.original_route, "routes", ())]
    return any(fallback not in (None, "404.html") for fallback in fallbacks)


def _fallback(route: Any) -> Any:
    return getattr(getattr(route, "app", None), "fallback", None)


def _as_far_as_built(route: Any, contexts: Iterable[Any]) -> Iterator[Any]:
    """Return *contexts*, those of *route*; in the place of what FastAPI cannot build of them, *route* itself."""
    try:
        yield from contexts
    except Exception:  # noqa: BLE001  what is wrong with a route of the application's own, FastAPI says at the request
        yield RouteContext(route)


def _is_unknown(context: Any) -> bool:
    """Return whether *context* is an included router of which FastAPI cannot build the routes."""
    return hasattr(context.original_route, "original_router")


def _is_odd(router: Any) -> bool:
    """Return whether an included *router*, or one in it, matches or handles requests in a way of its own."""
    if router is None:
        return False
    as_known = type(router).matches is APIRouter.matches and type(router).handle is APIRouter.handle
    return not as_known or any(_is_odd(getattr(route, "original_router", None)) for route in router.routes)


def _under(context: Any) -> Iterator[Any]:
    """Return *context*, or all that a request may come to in what it mounts, whatever stands before that."""
    mounted = _mounted(context) if isinstance(context.original_route, Mount | Host) else None
    if mounted is None:
        yield context
        return
    for each in (*_tried(*mounted.routes), *_tried_last(mounted)):
        yield from _under(each)


def _mounted(context: Any) -> Any:
    """Return what has routes under a mount or a host, whatever middleware a mount puts before it; else None."""
    return routed_app(context.app) or routed_app(getattr(context.original_route, "_base_app", None))


def path_for(app: Any, scope: Scope) -> str:
    """Return the path of *scope* as the routes of *app* match it."""
    own = getattr(app, "root_path", "")
    return get_route_path({"path": scope["path"], "root_path": own} if own else scope)


def match(
    app: Any, ways_in: Callable[[Any], Ways], scope: Scope
) -> tuple[Way | None, Mapping[str, Any], list[Way]]:
    """Return the way to the endpoint of *app* that would run, and the values in the path.

    Where that is not sure, or something would run before it, None and the ways that may be taken. A route that
    matches in a way of its own makes unsure all that comes after it: it may look at anything.

    Args:
        app: The application.
        ways_in: Gives its ways, and those of what it mounts.
        scope: The request's.
    """
    ways = ways_in(app)
    if root_path := getattr(app, "root_path", ""):
        scope = {**scope, "root_path": root_path}
    for place in ways.that_may_match(path_for(app, scope)):
        way = ways.all[place]
        if not way.is_sure:
            return None, {}, ways.all[place:]
        found, child_scope = way.matches(scope)
        if found is Match.FULL:
            inner = _inner(way.context)
            if inner is not None:
                return match(inner, ways_in, {**scope, **child_scope})
            if _is_endpoint(way.context):
                return way, child_scope["path_params"], []
            return None, {}, [way]
    return None, {}, []


def _is_endpoint(context: Any, within: Callable[[Any], Any] | None = None) -> bool:
    """Return whether a hit would skip nothing but the endpoint: a route may have middleware of its own.

    *within*: Gives what is inside of that which need not run, limits if it is not given.
    """
    route = context.original_route
    if not isinstance(route, Route) or type(route).handle not in _KNOWN_HANDLERS:
        return False
    app = (within or _within_limits)(getattr(context, "app", None) or route.app)
    return app is route.endpoint or (
        inspect.isfunction(app) and (app.__module__, app.__qualname__) in _CALLS_THE_ENDPOINT
    )


def _is_behind_something(context: Any) -> bool:
    """Return whether *context*, or a route of what it mounts, has middleware, or handles requests in its own way.

    What an application does that has no routes cannot be seen, unless it shows what it is around.
    """
    route = context.original_route
    if not isinstance(route, Mount | Host):
        return isinstance(route, Route) and not _is_endpoint(context, _within_caches)
    app = _within_caches(context.app)
    if type(route).handle not in _KNOWN_HANDLERS or app is not _within_caches(_base_of(context)):
        return True
    if _mounted(context) is None:
        return _is_around(app)
    return not _only_routes(app) or any(map(_is_behind_something, (*_tried(*app.routes), *_tried_last(app))))


def _is_around(app: Any) -> bool:
    """Return whether *app*, which has no routes, is seen to be middleware around another application."""
    return callable(getattr(app, "app", None)) and not runs_as_written(type(app), _WSGI)


def _base_of(context: Any) -> Any:
    """Return what a mount or a host was given, without the middleware that it puts before that."""
    return getattr(context.original_route, "_base_app", context.app)


def _within_caches(app: Any) -> Any:
    """Return what is inside of the caches, and the limits on a request's body, that *app* begins with."""
    while getattr(app, "is_response_cache", False) or _is_body_limit(type(app)):
        app = app.app
    return app


def _inner(context: Any) -> Any:
    """Return the application under a mount or a host if what it answers may be cached from outside of it.

    One with middleware of its own is not entered: a hit would not run it. Install the cache in that one, for which
    alone it then is.
    """
    route = context.original_route
    if not isinstance(route, Mount | Host) or type(route).handle not in _KNOWN_HANDLERS:
        return None
    app = _within_limits(context.app)
    return app if _only_routes(app) else None


def _only_routes(app: Any) -> bool:
    """Return whether *app* does nothing with a request but hand it to a route."""
    kind = type(app)
    if isinstance(app, Router):
        as_known = kind.__call__ is Router.__call__ and kind.app in (Router.app, APIRouter.app)
        return as_known and _within_limits(app.middleware_stack) == app.app
    return (
        isinstance(app, Starlette)
        and kind.__call__ in (Starlette.__call__, FastAPI.__call__)
        and kind.build_middleware_stack in (Starlette.build_middleware_stack, FastAPI.build_middleware_stack)
        and "build_middleware_stack" not in vars(app)
        and not app.user_middleware
        and type(app.middleware_stack) in (type(None), ServerErrorMiddleware)
        and _only_routes(app.router)
    )


def _within_limits(app: Any) -> Any:
    """Return what is inside of the limits on a request's body that *app* begins with."""
    while _is_body_limit(type(app)):
        app = app.app
    return app


def _is_body_limit(kind: type) -> bool:
    return (kind.__module__, kind.__qualname__) in BODY_LIMITS and runs_as_written(kind, BODY_LIMITS)


def runs_as_written(kind: type, layers: Layers) -> bool:
    """Return whether calling a *kind* runs what the authors of *layers* wrote, and nothing else."""
    callable_as = [each for each in kind.__mro__ if "__call__" in vars(each)]
    return bool(callable_as) and all(_is_as_written(each, layers) for each in callable_as)


def _is_as_written(kind: type, layers: Layers) -> bool:
    """Return whether *kind* is one of *layers*, and nobody put another function in the place of its own."""
    call = vars(kind)["__call__"]
    return (
        (kind.__module__, kind.__qualname__) in layers
        and type(call) is FunctionType
        and call.__globals__ is vars(sys.modules[kind.__module__])
    )


def walk(app: Any) -> Iterator[Any]:
    """Return the routes of *app* as its router comes to them, those of what it mounts too."""
    for context in _tried(*app.routes) if app is not None else ():
        yield context
        inner = _inner(context)
        if inner is not None:
            yield from walk(inner)


def out_of_reach(app: Any) -> Iterator[tuple[Any, str]]:
    """Return the decorated routes of *app* whose policy is never met, each with what stands before it."""
    odd = ""
    for way in _in_order(app):
        route = way.context.original_route
        named = repr(way.path or getattr(route, "host", "") or type(route).__name__)
        if not way.is_sure and not odd:
            odd = f"{named} matches in a way of its own"
        inner = None if odd else _inner(way.context)
        if inner is not None:
            yield from out_of_reach(inner)
        elif odd or not _is_endpoint(way.context):
            what = f"what is mounted at {named}" if isinstance(route, Mount | Host) else "the route"
            because = odd or f"{what} has middleware, or a handler of its own"
            yield from ((each, because) for each in _decorated(way.context, set()))


def _decorated(context: Any, seen: set[int]) -> Iterator[Any]:
    """Return the routes with a policy that *context* may lead to, but for those that another cache answers."""
    route = context.original_route
    mounted = _mounted(context) if isinstance(route, Mount | Host) else None
    if mounted is None:
        is_http = not isinstance(route, WebSocketRoute | APIWebSocketRoute)
        yield from [context] if is_http and recorded(context)[0] is not None else ()
    elif not _has_cache(context.app) and id(mounted) not in seen:
        seen.add(id(mounted))
        for each in (*_tried(*mounted.routes), *_tried_last(mounted)):
            yield from _decorated(each, seen)


def _has_cache(app: Any) -> bool:
    """Return whether *app* has a cache among its middleware, or is wrapped in one."""
    added = [each for layer in _wrapped(app) for each in getattr(layer, "user_middleware", ())]
    makers = [getattr(each, "cls", None) for each in added]
    layers = [make.func if isinstance(make, functools.partial) else make for make in makers]
    return any(getattr(layer, "is_response_cache", False) for layer in (*_wrapped(app), *layers))


def routers_of(app: Any, seen: set[int]) -> Iterator[Any]:
    """Return the routers of *app*, its own, included and mounted ones, but for those whose id is in *seen*."""
    router = getattr(app, "router", app)
    if not hasattr(router, "routes") or id(router) in seen:
        return
    seen.add(id(router))
    yield router
    for route in router.routes:
        yield from routers_of(getattr(route, "original_router", None), seen)
    for context in _tried(*router.routes):
        yield from routers_of(_inner(context), seen)


def routed_app(app: Any) -> Any:
    """Return what has routes, *app* or what it is wrapped around (its ``app``, and so on), or None."""
    return next((each for each in _wrapped(app) if isinstance(getattr(each, "routes", None), list)), None)


def with_root_path(app: Any) -> Any:
    """Return what has routes, as `routed_app` does, if it puts a root path of its own into the scope, or None."""
    routed = routed_app(app)
    return routed if hasattr(routed, "root_path") else None


def has_layer(app: Any, layer: Any) -> bool:
    """Return whether *layer* is one of the middleware of *app*, as far as that shows what it is wrapped around."""
    return any(each is layer for each in _wrapped(getattr(app, "middleware_stack", None)))


def _wrapped(app: Any) -> Iterator[Any]:
    seen: set[int] = set()
    while app is not None and id(app) not in seen:
        seen.add(id(app))
        yield app
        app = getattr(app, "app", None)


def is_mounted(scope: Scope) -> bool:
    """Return whether a mount led the request of *scope* here, and took from its path what routes begin with."""
    root_path = scope.get("root_path", "")
    return bool(scope.get("app_root_path", root_path) != root_path)


def come_to(scope: Scope) -> Any:
    """Return the route that routers came to, as far as they left it in *scope*: at least its endpoint."""
    endpoint = scope.get("endpoint")
    in_effect = (scope.get("fastapi") or {}).get("effective_route_context")  # with what it was included by
    left = (each for each in (in_effect, scope.get("route")) if getattr(each, "endpoint", None) is endpoint)
    return next(left, SimpleNamespace(endpoint=endpoint, path=""))


def is_never_cached(context: Any) -> bool:
    """Return whether a decorator keeps an endpoint out of the cache."""
    return _mark(getattr(context, "endpoint", None), NEVER_ATTRIBUTE) is not None


def recorded(context: Any) -> tuple[CachePolicy | None, Invalidates | None]:
    """Return what the decorators of an endpoint say."""
    endpoint = getattr(context, "endpoint", None)
    policy = _mark(endpoint, POLICY_ATTRIBUTE, for_heirs=False)
    return policy, _mark(endpoint, INVALIDATES_ATTRIBUTE)


def decorated_methods(context: Any) -> list[str]:
    """Return the methods of a class-based endpoint that have decorators of ours, which nobody reads there."""
    endpoint = getattr(context, "endpoint", None)
    methods = _METHODS if isinstance(endpoint, type) else ()
    return [name for name in methods if any(hasattr(getattr(endpoint, name, None), mark) for mark in _MARKS)]


def _mark(endpoint: Any, name: str, *, for_heirs: bool = True) -> Any:
    """Return the mark *name* of *endpoint*, of what it is a partial of, or of how an object is called; else None.

    *for_heirs*: Whether it is also for subclasses of what is decorated that have methods of their own. Nobody
    decorated those, and what they answer may be for one alone.
    """
    while isinstance(endpoint, functools.partial) and name not in vars(endpoint):
        endpoint = endpoint.func
    if hasattr(endpoint, name) and (for_heirs or not _is_of_a_base(endpoint, name)):
        return getattr(endpoint, name)
    if callable(endpoint) and (for_heirs or not _has_other_methods(type(endpoint), "__call__")):
        return getattr(type(endpoint).__call__, name, None)
    return None


def _is_of_a_base(endpoint: Any, name: str) -> bool:
    """Return whether *endpoint*, a class or an object of one, has *name* from a base class with fewer methods."""
    kind = endpoint if isinstance(endpoint, type) else type(endpoint)
    inherits = name not in getattr(endpoint, "__dict__", ()) and hasattr(kind, name)
    return inherits and _has_other_methods(kind, name)


def _has_other_methods(kind: type, name: str) -> bool:
    """Return whether *kind* has methods that its base class which has *name* has not."""
    heirs = itertools.takewhile(lambda each: name not in vars(each), kind.__mro__)
    return any(callable(each) or hasattr(each, "__get__") for heir in heirs for each in vars(heir).values())


def parameters_of(context: Any) -> Parameters:
    """Return those of the endpoint of a route, with what overrides its dependencies now."""
    path_names = getattr(context, "param_convertors", ())
    overrides = getattr(_overridable(context), "dependency_overrides", None)
    return Parameters(getattr(context, "dependant", None), path_names, overrides)


def reads_as_declared(context: Any) -> bool:
    """Return whether a route gives the request to its endpoint alone: its class may read what it likes of it."""
    return getattr(type(context.original_route), "get_route_handler", None) is APIRoute.get_route_handler


def overridable_on(ways: Iterable[Way]) -> list[Any]:
    """Return the applications whose overrides of dependencies run on *ways*, or on those that they lead to."""
    contexts = [context for way in ways for context in _under(way.context)]
    found = {id(app): app for app in map(_overridable, contexts) if app is not None}
    return [*found.values()]


def _overridable(context: Any) -> Any:
    """Return the application that has what runs in the place of a route's dependencies, or None."""
    app = getattr(context, "dependency_overrides_provider", None)
    return app if hasattr(app, "dependency_overrides") else None

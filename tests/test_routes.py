"""The policy that a request meets is that of the endpoint which would run, and of no other (SPEC §3.6)."""

from __future__ import annotations

import functools
import importlib
import re
import warnings
from contextlib import nullcontext
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, Literal
from uuid import UUID

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Path, Query, Request
from fastapi.dependencies.utils import get_dependant, request_params_to_args
from fastapi.exceptions import FastAPIDeprecationWarning
from fastapi.routing import APIRoute, APIWebSocketRoute
from fastapi.security import APIKeyQuery
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AfterValidator, BaseModel, Field, Json
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.exceptions import StarletteDeprecationWarning
from starlette.middleware import Middleware
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Host, Match, Mount, Route, Router, WebSocketRoute
from starlette.staticfiles import StaticFiles

from app_cache import CacheMiddleware, CachePolicy, ConfigurationError, MemoryBackend, add_tags, cache, invalidates
from app_cache.fastapi import Backend, Invalidation
from app_cache.keys import DefaultKeyGenerator, KeyGenerator
from app_cache.logger_config import warned
from app_cache.policy import never_cached
from app_cache.routes.parameters import Parameters
from app_cache.routes.policies import Fallbacks
from app_cache.routes.table import MAX_PLANS, RouteTable, escape_for_glob, escape_for_url
from tests.middleware.apps import client_of, put_cache, scope_of, told

if TYPE_CHECKING:
    import pathlib

pytestmark = pytest.mark.anyio


class Seen:
    """An ASGI middleware that counts the requests it sees."""

    requests = 0

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        type(self).requests += 1
        await self.app(scope, receive, send)


@cache(timeout=60)
async def cached(request: Request) -> Response:
    """Answer with the path, cached."""
    return PlainTextResponse(request.url.path)


async def plain(request: Request) -> Response:
    """Answer with the path, not cached."""
    return PlainTextResponse(request.url.path)


async def of_user(request: Request) -> Response:
    """Answer with who asks: for nobody else."""
    return PlainTextResponse(request.headers["x-user"])


async def is_cached(app: Any, path: str, **headers: str) -> bool:
    """Return whether the second of two requests for *path* is a hit."""
    async with client_of(app) as client:
        await client.get(path, headers=headers)
        return told(await client.get(path, headers=headers)) == "hit"


def included() -> FastAPI:
    """Return an application with a router in a router, each with a prefix, that gets its routes last."""
    app, outer, inner = FastAPI(), APIRouter(prefix="/outer"), APIRouter(prefix="/inner")
    put_cache(app)
    app.include_router(outer, prefix="/v1")
    outer.include_router(inner)
    inner.get("/x/{item}")(cached)
    outer.get("/y")(cached)
    outer.get("/plain")(plain)
    return app


def mounted() -> FastAPI:
    """Return an application with FastAPI, Starlette and bare routers mounted in it."""
    app, fast, deep = FastAPI(), FastAPI(), FastAPI()
    deep.get("/x")(cached)
    fast.get("/x")(cached)
    fast.mount("/deep", deep)
    app.mount("/fast", fast)
    app.mount("/star", Starlette(routes=[Route("/x", cached)]))
    app.mount("/bare", Router([Route("/x", cached), Mount("/in/{name}", routes=[Route("/x", cached)])]))
    put_cache(app)
    return app


@pytest.mark.parametrize(
    ("make", "path", "expected"),
    [
        pytest.param(included, "/v1/outer/inner/x/1", True, id="included twice"),
        pytest.param(included, "/v1/outer/y", True, id="included"),
        pytest.param(included, "/v1/outer/plain", False, id="included without policy"),
        pytest.param(included, "/v1/outer/inner/x/1/", False, id="redirect to the slash"),
        pytest.param(mounted, "/fast/x", True, id="mounted"),
        pytest.param(mounted, "/fast/deep/x", True, id="mounted twice"),
        pytest.param(mounted, "/star/x", True, id="mounted Starlette"),
        pytest.param(mounted, "/bare/x", True, id="mounted router"),
        pytest.param(mounted, "/bare/in/name/x", True, id="mounted with a parameter"),
        pytest.param(mounted, "/x", False, id="not there"),
    ],
)
async def test_found(make: Any, path: str, expected: bool) -> None:
    """A cached endpoint is found wherever the router finds it."""
    assert await is_cached(make(), path) is expected


async def test_included_after_the_first_request() -> None:
    """A route that is added while the application runs is cached from its first request on."""
    app = FastAPI()
    put_cache(app)
    async with client_of(app) as client:
        assert (await client.get("/late")).status_code == 404
        app.get("/late")(cached)
        assert told(await client.get("/late")) == "fwd=uri-miss; stored"


@pytest.mark.parametrize("known", [False, True], ids=["for a new path", "for a path that is known"])
@pytest.mark.parametrize("deep", [False, True], ids=["included", "included twice"])
async def test_added_to_an_included_router(*, deep: bool, known: bool) -> None:
    """A route that is added to an included router while the application runs is met by the next miss."""
    app, outer, inner = FastAPI(), APIRouter(), APIRouter()
    outer.include_router(inner)
    app.include_router(outer)
    app.get("/{path:path}")(cached)
    put_cache(app)
    async with client_of(app) as client:
        assert (await client.get("/me" if known else "/other")).text == ("/me" if known else "/other")
        (inner if deep else outer).get("/me")(of_user)
        for user in ("alice", "bob"):
            assert (await client.get("/me", headers={"x-user": user})).text == user


async def test_added_to_what_is_mounted() -> None:
    """A route that is added to a mounted application is met by the next miss of a path that is known."""
    app, inner = FastAPI(), FastAPI()
    app.mount("/in", inner)
    put_cache(app)
    async with client_of(app) as client:
        assert (await client.get("/in/x")).status_code == 404
        inner.get("/x")(cached)
        assert told(await client.get("/in/x")) == "fwd=uri-miss; stored"


async def test_equal_route_in_the_place_of_another() -> None:
    """A route that takes the place of one for the same endpoint, but has middleware, is not answered for."""
    app = Starlette(routes=[Route("/{name}", cached)])
    put_cache(app)
    async with client_of(app) as client:
        assert told(await client.get("/a")) == "fwd=uri-miss; stored"
        app.router.routes[0] = Route("/{name}", cached, middleware=[Middleware(Seen)])
        for _ in range(2):
            assert told(await client.get("/b")) is None


def named_by(x_user: str = Header()) -> str:
    """Say who asks, by a header that is declared."""
    return x_user


def named_deep(name: Annotated[str, Depends(named_by)]) -> str:
    """Say who asks, by a dependency of its own."""
    return name


def nobody() -> str:
    """Say that nobody asks."""
    return "nobody"


def nobody_deep(name: Annotated[str, Depends(nobody)]) -> str:
    """Say so by a dependency of its own."""
    return name


@pytest.mark.parametrize("is_hit", [True, False], ids=["after hits", "at first"])
@pytest.mark.parametrize(
    ("declared_by", "overrides"),
    [
        pytest.param(nobody, {nobody: named_by}, id="a dependency"),
        pytest.param(nobody, {nobody: named_deep}, id="by one with dependencies"),
        pytest.param(nobody_deep, {nobody: named_by}, id="one of a dependency"),
        pytest.param(nobody_deep, {nobody: named_by, named_by: named_by}, id="that is overridden itself"),
    ],
)
@pytest.mark.parametrize("place", ["app", "router", "mount"])
async def test_dependency_overrides(place: str, declared_by: Any, overrides: Any, *, is_hit: bool) -> None:
    """A header that what overrides a dependency declares joins the key, as long as it does."""
    app, router, mounted = FastAPI(), APIRouter(), FastAPI()
    holder: Any = {"app": app, "router": router, "mount": mounted}[place]

    @holder.get("/me")
    @cache(timeout=60)
    async def me(name: str = Depends(declared_by)) -> str:
        return name

    app.include_router(router)
    app.mount("/in", mounted)
    put_cache(app)
    path, overridable = ("/in/me", mounted) if place == "mount" else ("/me", app)
    async with client_of(app) as client:

        async def asked(user: str) -> Any:
            return (await client.get(path, headers={"x-user": user})).json()

        for _ in range(3 * is_hit):
            assert await asked("alice") == "nobody"
        overridable.dependency_overrides.update(overrides)
        for user in ("alice", "bob", "alice", "bob"):
            assert await asked(user) == user
        overridable.dependency_overrides = {}
        assert await asked("bob") == "nobody"


async def test_dependency_overrides_of_what_is_not_entered() -> None:
    """So it does for what has a policy by path in a mounted application that has middleware of its own."""
    app, mounted = FastAPI(), FastAPI(middleware=[Middleware(Seen)])

    @mounted.get("/me")
    async def me(name: Annotated[str, Depends(nobody)]) -> str:
        return name

    app.mount("/in", mounted)
    put_cache(app, policies={"/in/*": CachePolicy(timeout=60)})
    async with client_of(app) as client:
        for _ in range(3):
            assert (await client.get("/in/me", headers={"x-user": "alice"})).json() == "nobody"
        mounted.dependency_overrides[nobody] = named_by
        for user in ("alice", "bob", "alice", "bob"):
            assert (await client.get("/in/me", headers={"x-user": user})).json() == user


def in_a_circle(name: Annotated[str, Depends(nobody)]) -> str:
    """Depend on what it overrides."""
    return name


@pytest.mark.parametrize("is_entered", [True, False])
@pytest.mark.parametrize(
    "override", [None, {"fake": 1}, dict, "text", in_a_circle], ids=["None", "a dict", "dict", "text", "a circle"]
)
async def test_override_that_cannot_be(override: Any, *, is_entered: bool) -> None:
    """What cannot be called, in the place of a dependency, harms those who need it alone, as without a cache."""

    async def outcomes(*, is_cached: bool) -> list[Any]:
        app = FastAPI()
        mounted = FastAPI(middleware=[] if is_entered else [Middleware(Seen)])

        @mounted.get("/needs")
        async def needs(name: str = Depends(nobody)) -> str:
            return name

        mounted.get("/other")(plain)
        app.mount("/in", mounted)
        app.get("/other")(cached)
        if is_cached:
            put_cache(app, policies={"/in/*": CachePolicy(timeout=60)})
        mounted.dependency_overrides[nobody] = override
        found: list[Any] = []
        async with client_of(app) as client:
            for path in ("/in/other", "/other", "/none", "/in/needs", "/in/other"):
                try:
                    answer = await client.get(path)
                except Exception as error:  # noqa: BLE001  FastAPI's own
                    found.append(type(error))
                else:
                    found.append((answer.status_code, answer.text))
        return found

    assert await outcomes(is_cached=True) == await outcomes(is_cached=False)


def test_override_in_a_circle(monkeypatch: pytest.MonkeyPatch) -> None:
    """What overrides a dependency and depends on it is looked at once, though FastAPI would run it for ever."""
    dependant = get_dependant(path="/", call=nobody_deep)
    looked_at: list[Any] = []

    def seen(*, path: str, call: Any) -> Any:
        looked_at.append(call)
        return get_dependant(path=path, call=call)

    monkeypatch.setattr("app_cache.routes.parameters.get_dependant", seen)
    assert Parameters(dependant, (), {nobody: in_a_circle}).headers == frozenset()
    assert looked_at == [in_a_circle]


def test_application_that_is_known_later() -> None:
    """Routes that the scope of a later request leads to are found, though one before it led to none."""
    app = FastAPI()
    app.get("/x")(cached)
    table = RouteTable(plain, Fallbacks(None, None))
    scope = scope_of("/x")
    assert table.find({key: value for key, value in scope.items() if key != "app"}) is None
    plan = table.find({**scope, "app": app})
    assert plan is not None
    assert plan.policy is not None


async def test_root_path_of_what_is_inside() -> None:
    """The path of a route is found behind the root path of an application that the cache stands around."""
    with pytest.warns(FastAPIDeprecationWarning):
        app = FastAPI(root_path="/api")
    app.get("/x")(cached)
    around = CacheMiddleware(app, MemoryBackend())
    assert await is_cached(around, "/api/x")


@pytest.mark.parametrize("layer", [None, Seen], ids=["directly", "with a layer between"])
async def test_location_under_the_root_path_of_what_is_inside(layer: Any) -> None:
    """A Location invalidates what is under the root path of an application that the cache stands around."""
    with pytest.warns(FastAPIDeprecationWarning):
        app = FastAPI(root_path="/api")
    app.get("/x")(cached)

    @app.post("/change")
    async def change(request: Request, response: Response) -> None:
        response.headers["location"] = str(request.url_for("cached"))

    around = CacheMiddleware(layer(app) if layer else app, MemoryBackend())
    async with client_of(around) as client:
        for path in ("/x", "/api/x"):
            assert [told(await client.get(path)) for _ in range(2)] == ["fwd=uri-miss; stored", "hit"]
            await client.post("/change")
            assert told(await client.get(path)) == "fwd=uri-miss; stored"


async def lets_in_alone(app: Any, path: str) -> bool:
    """Return whether *app* answers at *path* who has a token, and nobody else, whoever was answered before."""
    async with client_of(app) as client:
        asked = [await client.get(path, headers=each) for each in [{"x-token": "right"}, {}] * 2]
    return [each.status_code for each in asked] == [200, 401] * 2


class Asks:
    """An ASGI middleware that lets in who has a token."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        let_in = (b"x-token", b"right") in scope["headers"]
        await (self.app if let_in else PlainTextResponse("who?", 401))(scope, receive, send)


def asking(app: Any) -> Any:
    """Return *app* behind such a middleware that is a function."""

    async def asked(scope: Any, receive: Any, send: Any) -> None:
        await Asks(app)(scope, receive, send)

    return asked


class Own:
    """What asks wherever a class of the framework lets a subclass do so."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await asking(super().__call__)(scope, receive, send)  # type: ignore[misc]


class OwnHandle:
    """What asks before it hands a request on."""

    async def handle(self, scope: Any, receive: Any, send: Any) -> None:
        await asking(super().handle)(scope, receive, send)  # type: ignore[misc]


class OwnRoute(OwnHandle, Route):
    """A route that asks."""


class OwnAPIRoute(OwnHandle, APIRoute):
    """A route of FastAPI that asks."""


class OwnMount(OwnHandle, Mount):
    """A mount that asks."""


class OwnIncluded(OwnHandle, APIRouter):
    """A router that asks where it is included."""


class OwnApp(Own, FastAPI):
    """An application that asks."""


class OwnRouter(Own, Router):
    """A router that asks."""


class OwnStack(FastAPI):
    """An application that builds a stack which asks."""

    def build_middleware_stack(self) -> Any:
        return asking(super().build_middleware_stack())


class OwnEnd(APIRouter):
    """A router that asks behind its own middleware."""

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        await asking(super().app)(scope, receive, send)


def with_route(route: BaseRoute) -> Any:
    """Return an application that has *route*."""
    return Starlette(routes=[route])


def with_layer(layer: Any) -> Any:
    """Return an application that has a route with *layer* before it."""
    return with_route(Route("/x", cached, middleware=[Middleware(layer)]))


def with_mounted(mounted: Any, *, wrapped: str = "") -> Any:
    """Return an application in which *mounted* is, whose attribute *wrapped* asks."""
    mounted.router.routes.append(Route("/x", cached))
    if wrapped == "stack":
        build = mounted.build_middleware_stack
        mounted.build_middleware_stack = lambda: asking(build())
    elif wrapped == "built":
        mounted.middleware_stack = asking(mounted.build_middleware_stack())
    elif wrapped == "router":
        mounted.router.middleware_stack = asking(mounted.router.middleware_stack)
    app = FastAPI()
    app.mount("/in", mounted)
    return app


def with_included(router: APIRouter) -> Any:
    """Return an application that includes *router* by another one."""
    app, outer = FastAPI(), APIRouter()
    router.get("/x")(cached)
    outer.include_router(router)
    app.include_router(outer)
    return app


def with_end() -> Any:
    """Return a router of FastAPI that asks at its end."""
    router = OwnEnd()
    router.routes.append(Route("/x", cached))
    return router


def with_own_app() -> Any:
    """Return an application with a route in whose place something asks."""
    app = FastAPI()
    app.get("/x")(cached)
    route: Any = app.router.routes[-1]
    route.app = asking(route.app)
    return app


def with_default() -> Any:
    """Return an application that hands what it has no route for to one that asks."""
    inner = FastAPI()
    inner.get("/x")(cached)
    app = FastAPI()
    app.router.default = asking(inner)
    return app


@pytest.mark.parametrize(
    ("endpoint", "options"),
    [
        pytest.param("cached", {}, id="decorated"),
        pytest.param("cached", {"default_policy": CachePolicy(timeout=60)}, id="decorated, and a fallback"),
        pytest.param("plain", {"default_policy": CachePolicy(timeout=60)}, id="undecorated"),
    ],
)
@pytest.mark.parametrize(
    ("make", "path"),
    [
        pytest.param(lambda: with_layer(Asks), "/x", id="class"),
        pytest.param(lambda: with_layer(asking), "/x", id="function"),
        pytest.param(lambda: with_route(OwnRoute("/x", cached)), "/x", id="handle"),
        pytest.param(lambda: with_included(APIRouter(route_class=OwnAPIRoute)), "/x", id="handle in FastAPI"),
        pytest.param(lambda: with_route(OwnMount("/in", routes=[Route("/x", cached)])), "/in/x", id="mount"),
        pytest.param(lambda: with_route(Mount("/in", OwnRouter([Route("/x", cached)]))), "/in/x", id="router"),
        pytest.param(lambda: with_included(OwnIncluded()), "/x", id="included"),
        pytest.param(with_own_app, "/x", id="app of a route"),
        pytest.param(lambda: with_mounted(OwnApp()), "/in/x", id="application"),
        pytest.param(lambda: with_mounted(OwnStack()), "/in/x", id="stack that a class builds"),
        pytest.param(lambda: with_route(Mount("/in", with_end())), "/in/x", id="end of a router"),
        pytest.param(lambda: with_mounted(FastAPI(), wrapped="stack"), "/in/x", id="stack that will be built"),
        pytest.param(lambda: with_mounted(FastAPI(), wrapped="built"), "/in/x", id="stack that was built"),
        pytest.param(lambda: with_mounted(FastAPI(), wrapped="router"), "/in/x", id="stack of its router"),
        pytest.param(
            lambda: with_route(Mount("/in", routes=[Route("/x", cached)], middleware=[Middleware(asking)])),
            "/in/x",
            id="middleware of a mount",
        ),
    ],
)
async def test_what_asks_before_the_endpoint(
    make: Any, path: str, endpoint: str, options: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where anything of the user's is seen to run between the cache and the endpoint, nothing is cached there."""
    monkeypatch.setitem(globals(), "cached", globals()[endpoint])
    app = make()
    put_cache(app, **options)
    assert await lets_in_alone(app, path)


@pytest.mark.parametrize("options", [{}, {"default_policy": CachePolicy(timeout=60)}])
@pytest.mark.parametrize(
    ("make", "path"),
    [
        pytest.param(
            lambda: with_route(Mount("/in", asking(Router([Route("/x", cached)])))), "/in/x", id="around a mount"
        ),
        pytest.param(with_default, "/x", id="around what is for the rest"),
    ],
)
async def test_what_is_not_seen_to_ask(make: Any, path: str, options: Any) -> None:
    """Where a function runs before a decorated endpoint, nothing is cached that it let in."""
    app = make()
    put_cache(app, **options)
    assert await lets_in_alone(app, path)


class ForStaff(APIRouter):
    """A router that is there for who has a token."""

    def matches(self, scope: Any) -> Any:
        return super().matches(scope) if (b"x-token", b"right") in scope["headers"] else (Match.NONE, {})


async def test_included_router_that_matches_by_itself() -> None:
    """A router that looks at more than method and path is not answered for, nor is what comes after it."""
    app, staff = FastAPI(), ForStaff()
    staff.get("/x")(cache(timeout=60)(lambda: "staff"))
    app.include_router(staff)
    app.get("/x")(cache(timeout=60)(lambda: "public"))
    put_cache(app)
    async with client_of(app) as client:
        for headers, expected in (({"x-token": "right"}, "staff"), ({}, "public")) * 2:
            assert (await client.get("/x", headers=headers)).json() == expected


@pytest.mark.parametrize(
    "options", [{"default_policy": CachePolicy(timeout=60)}, {"policies": {"/*": CachePolicy()}}]
)
async def test_head_of_a_fallback(options: Any) -> None:
    """A HEAD that the application would refuse, or answer by another endpoint, is not answered by a GET."""
    app = FastAPI()
    app.get("/get")(lambda: "text")
    app.get("/both")(lambda: "text")
    app.head("/both", status_code=403)(lambda: None)
    app.router.routes.append(Route("/route", plain))
    put_cache(app, **options)
    async with client_of(app) as client:
        for path, expected in (("/get", 405), ("/both", 403), ("/route", 200)):
            assert (await client.get(path)).status_code == 200
            assert (await client.head(path)).status_code == expected


def in_a_mount(endpoint: Any) -> FastAPI:
    """Return an application whose mounted one, which has *endpoint*, has middleware."""
    app, inner = FastAPI(), FastAPI()
    inner.add_middleware(Seen)
    inner.get("/x")(endpoint)
    app.mount("/in", inner)
    return app


def behind_a_route(endpoint: Any) -> FastAPI:
    """Return an application that has *endpoint* after a route that matches by itself."""
    app = FastAPI()
    app.router.routes.append(Unsure("/never", plain))
    app.get("/in/x")(endpoint)
    return app


def in_a_mount_with_its_middleware(endpoint: Any) -> FastAPI:
    """Return an application whose mount, which has *endpoint*, has middleware that nobody can look into."""
    app, inner = FastAPI(), FastAPI()
    inner.get("/x")(endpoint)
    app.router.routes.append(Mount("/in", app=inner, middleware=[Middleware(passing)]))
    return app


def in_a_function(endpoint: Any) -> FastAPI:
    """Return an application with a function around a mounted one, which includes a router with *endpoint*."""
    app, inner, router = FastAPI(), FastAPI(), APIRouter()
    router.get("/x")(endpoint)
    inner.include_router(router)
    app.mount("/in", passing(inner))
    return app


def passing(app: Any) -> Any:
    """Return a middleware that does not show what it is around."""

    async def passed(scope: Any, receive: Any, send: Any) -> None:
        await app(scope, receive, send)

    return passed


class Unsure(Route):
    """A route that looks at whatever it likes."""

    def matches(self, scope: Any) -> Any:
        return super().matches(scope)


@cache(timeout=60, vary_by=lambda request: request.headers["x-user"])
async def by_user(request: Request) -> str:
    """Answer with who asks, by a policy of its own."""
    return request.headers["x-user"]


async def declared(x_user: str = Header()) -> str:
    """Answer with who asks, which is declared."""
    return x_user


@never_cached
async def never(request: Request) -> str:
    """Answer with who asks, never from the cache."""
    return request.headers["x-user"]


@pytest.mark.parametrize("endpoint", [by_user, declared, never])
@pytest.mark.parametrize("make", [in_a_mount, behind_a_route, in_a_mount_with_its_middleware, in_a_function])
async def test_fallback_for_what_is_not_sure(make: Any, endpoint: Any) -> None:
    """A policy for what has none gives no user another's answer: decorators and declared headers go first."""
    app = make(endpoint)
    put_cache(app, policies={"/*": CachePolicy(timeout=60)})
    async with client_of(app) as client:
        for user in ("alice", "bob"):
            assert (await client.get("/in/x", headers={"x-user": user})).json() == user


async def test_fallback_for_what_is_undecorated_there() -> None:
    """A policy for what has none answers for an undecorated endpoint where nothing is seen to run before it."""
    app = in_a_function(plain)
    put_cache(app, policies={"/*": CachePolicy(timeout=60)})
    assert await is_cached(app, "/in/x")


def of_a_route(endpoint: Any) -> FastAPI:
    """Return an application that has *endpoint* on a route with middleware."""
    return FastAPI(routes=[Route("/in/x", endpoint, middleware=[Middleware(passing)])])


def of_an_application(endpoint: Any) -> FastAPI:
    """Return an application that mounts one with middleware, which has *endpoint*."""
    inner = Starlette(routes=[Route("/x", endpoint)], middleware=[Middleware(passing)])
    return FastAPI(routes=[Mount("/in", inner)])


def further_in(endpoint: Any) -> FastAPI:
    """Return an application after whose route that matches by itself one is mounted that mounts another's."""
    return FastAPI(routes=[Unsure("/never", plain), Mount("", of_an_application(endpoint))])


def of_what_has_no_routes(endpoint: Any) -> FastAPI:
    """Return an application that mounts with middleware what has no routes."""

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await (await endpoint(Request(scope)))(scope, receive, send)

    return FastAPI(routes=[Mount("/in", answer, middleware=[Middleware(passing)])])


def of_a_mount_that_handles(endpoint: Any) -> FastAPI:
    """Return an application whose mount, of what has no routes, hands on requests in a way of its own."""

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await (await endpoint(Request(scope)))(scope, receive, send)

    class Handling(Mount):
        async def handle(self, scope: Any, receive: Any, send: Any) -> None:
            await super().handle(scope, receive, send)

    return FastAPI(routes=[Handling("/in", answer)])


def for_wsgi() -> Any:
    """Return Starlette's middleware around an application of WSGI."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StarletteDeprecationWarning)
        module = importlib.import_module("starlette.middleware.wsgi")

    def answer(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [b"text"]

    return module.WSGIMiddleware(answer)


def of_a_layer(endpoint: Any) -> FastAPI:
    """Return an application that mounts a middleware, which shows what it is around."""

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await (await endpoint(Request(scope)))(scope, receive, send)

    return FastAPI(routes=[Mount("/in", Seen(answer))])


BEFORE = [
    behind_a_route,
    of_a_layer,
    of_what_has_no_routes,
    of_a_mount_that_handles,
    in_a_mount,
    in_a_mount_with_its_middleware,
    of_a_route,
    of_an_application,
    further_in,
]


@pytest.mark.parametrize("make", BEFORE)
@pytest.mark.parametrize(
    "options",
    [{"default_policy": CachePolicy(timeout=60)}, {"policies": {"/*": CachePolicy(timeout=60)}}],
    ids=["default_policy", "policies"],
)
async def test_fallback_for_what_is_behind_something(make: Any, options: dict[str, Any]) -> None:
    """A policy for what has none stands back where a hit would skip what may ask who is there."""
    app = make(plain)
    put_cache(app, **options)
    assert not await is_cached(app, "/in/x")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Mount("/in", PlainTextResponse("text"), max_body_size=9),
        lambda: Mount("/in", routes=[Route("/x", plain)], max_body_size=9),
        lambda: Mount("/in", CacheMiddleware(PlainTextResponse("text"), MemoryBackend())),
        lambda: Host("test", CacheMiddleware(PlainTextResponse("text"), MemoryBackend())),
        lambda: Mount(
            "/in", routes=[Route("/x", plain)], middleware=[Middleware(CacheMiddleware, backend=MemoryBackend())]
        ),
        lambda: Mount("/in", Starlette(routes=[Mount("", PlainTextResponse("text"))])),
        lambda: Mount("/in", for_wsgi()),
    ],
    ids=["a limit", "a limit on routes", "a cache", "a cache of a host", "a cache of routes", "a mount", "WSGI"],
)
async def test_fallback_for_what_is_behind_nothing(make: Any) -> None:
    """A policy for what has none answers for what is behind a limit, or a cache that does not answer."""
    app = FastAPI(routes=[make()])
    put_cache(app, default_policy=CachePolicy(timeout=60))
    assert await is_cached(app, "/in/x")


async def test_fallback_after_a_websocket() -> None:
    """A route of websockets that matches by itself takes nothing from those of HTTP after it."""

    class Unsure(WebSocketRoute):
        def matches(self, scope: Any) -> Any:
            return super().matches(scope)

    app = Starlette(routes=[Unsure("/ws", plain), Route("/x", plain)])
    put_cache(app, default_policy=CachePolicy(timeout=60))
    assert await is_cached(app, "/x")


@pytest.mark.parametrize("make", BEFORE)
async def test_the_rfc_for_what_is_behind_something(make: Any) -> None:
    """By the RFC alone what says itself that it may be kept is kept, as by any cache further out."""

    async def says_so(request: Request) -> Response:
        return PlainTextResponse("text", headers={"cache-control": "max-age=60"})

    app = make(says_so)
    put_cache(app, default_policy=CachePolicy.http())
    assert await is_cached(app, "/in/x")


async def test_fallback_for_what_nobody_could_know() -> None:
    """An endpoint that turns out to be decorated is not answered by the fallback, which says why."""
    app = in_a_function(by_user)
    put_cache(app, default_policy=CachePolicy(timeout=60))
    async with client_of(app) as client:
        assert told(await client.get("/in/x", headers={"x-user": "alice"})) == "fwd=uri-miss; detail=policy"


async def test_route_in_the_place_of_another_for_a_known_path() -> None:
    """What is stored of a route that is gone is not given, nor is anything stored by its policy."""
    app = Starlette(routes=[Route("/me", cached)])
    put_cache(app)
    async with client_of(app) as client:
        assert (await client.get("/me", headers={"x-user": "alice"})).text == "/me"
        app.router.routes[0] = Route("/me", of_user)
        for user in ("alice", "bob"):
            assert (await client.get("/me", headers={"x-user": user})).text == user


async def test_route_in_the_place_of_another() -> None:
    """A route that takes the place of another while the application runs is met by the next path that is new."""
    app = FastAPI()
    app.router.routes.append(Route("/{name}", plain))
    put_cache(app)
    async with client_of(app) as client:
        assert told(await client.get("/a")) is None
        app.router.routes[-1] = Route("/{name}", cached)
        assert told(await client.get("/b")) == "fwd=uri-miss; stored"


async def test_mount_with_middleware() -> None:
    """What is mounted with middleware of its own is not answered from outside of it: a hit would not run that."""
    own = Middleware(Seen)
    app = FastAPI()
    app.mount("/star", Starlette(routes=[Route("/x", cached)], middleware=[own]))
    app.mount("/router", Router([Route("/x", cached)], middleware=[own]))
    app.router.routes.append(Mount("/mount", routes=[Route("/x", cached)], middleware=[own]))
    app.router.routes.append(Route("/route", cached, middleware=[own]))
    put_cache(app)
    for path in ("/star/x", "/router/x", "/mount/x", "/route"):
        Seen.requests = 0
        assert not await is_cached(app, path)
        assert Seen.requests == 2


async def test_mount_with_own_cache() -> None:
    """A mounted application with a cache of its own keeps its answers there, where its providers look."""
    app, sub = FastAPI(), FastAPI()

    @sub.get("/x")
    @cache(timeout=60, tags=["x"])
    async def answer(backend: Backend) -> str:
        return "text"

    @sub.post("/touch")
    async def touch(invalidation: Invalidation) -> None:
        await invalidation.by_tag("x")

    outer, inner = MemoryBackend(), MemoryBackend()
    put_cache(sub, backend=inner)
    put_cache(app, backend=outer)
    app.mount("/sub", sub)
    assert await is_cached(app, "/sub/x")
    assert (await outer.size(), await inner.size()) == (0, 1)
    async with client_of(app) as client:
        await client.post("/sub/touch")
        assert told(await client.get("/sub/x")) == "fwd=uri-miss; stored"


async def test_mount_uses_the_cache_around_it() -> None:
    """A mounted application without a cache uses, and its providers give, that of the one around it."""
    app, sub = FastAPI(), FastAPI()
    seen = []

    @sub.get("/x")
    @cache(timeout=60)
    async def answer(backend: Backend) -> str:
        seen.append(backend)
        return "text"

    outer = MemoryBackend()
    put_cache(app, backend=outer)
    app.mount("/sub", sub)
    assert await is_cached(app, "/sub/x")
    assert seen == [outer]


async def test_static_files(tmp_path: pathlib.Path) -> None:
    """Mounted files are served as without a cache."""
    (tmp_path / "file.txt").write_text("text")
    app = FastAPI()
    app.mount("/files", StaticFiles(directory=tmp_path))
    put_cache(app)
    assert not await is_cached(app, "/files/file.txt")


def named_by_header(x_user: str = Header(default="")) -> None:
    """Let in who has a name."""
    if not x_user:
        raise HTTPException(401)


def frontend_of_the_application(files: pathlib.Path) -> FastAPI:
    """Return an application that has files after its routes, for who has a name."""
    app = FastAPI(dependencies=[Depends(named_by_header)])
    app.frontend("/", directory=files)
    return app


def frontend_of_a_router(files: pathlib.Path) -> FastAPI:
    """Return an application with a router in a router that has them."""
    app, outer, inner = FastAPI(), APIRouter(), APIRouter()
    inner.frontend("/", directory=files)
    outer.include_router(inner, dependencies=[Depends(named_by_header)])
    app.include_router(outer)
    return app


def frontend_of_what_is_mounted(files: pathlib.Path) -> FastAPI:
    """Return an application that mounts one which has them."""
    app = FastAPI()
    app.mount("/", frontend_of_the_application(files))
    return app


def frontend_of_what_is_not_entered(files: pathlib.Path) -> FastAPI:
    """Return an application that mounts one which has them behind middleware."""
    app = FastAPI()
    app.mount("/", Seen(frontend_of_the_application(files)))
    return app


@pytest.mark.parametrize(
    "make",
    [
        frontend_of_the_application,
        frontend_of_a_router,
        frontend_of_what_is_mounted,
    ],
)
async def test_headers_of_a_frontend(make: Any, tmp_path: pathlib.Path) -> None:
    """Headers that dependencies of a frontend declare join the key of its files."""
    (tmp_path / "file.txt").write_text("text")
    app = make(tmp_path)
    put_cache(app, default_policy=CachePolicy(timeout=60))
    assert await is_cached(app, "/file.txt", **{"x-user": "alice"})
    async with client_of(app) as client:
        assert (await client.get("/file.txt")).status_code == 401


@pytest.mark.parametrize(
    "make",
    [
        frontend_of_the_application,
        frontend_of_a_router,
        frontend_of_what_is_mounted,
    ],
)
@pytest.mark.parametrize(
    "options",
    [{"default_policy": CachePolicy(timeout=60)}, {"policies": {"/*": CachePolicy(timeout=60)}}],
    ids=["default_policy", "policies"],
)
async def test_page_of_a_frontend(make: Any, options: dict[str, Any], tmp_path: pathlib.Path) -> None:
    """The page that a frontend gives to who accepts HTML, for what is no file, is given to nobody else."""
    (tmp_path / "index.html").write_text("page")
    app = make(tmp_path)
    put_cache(app, **options)
    async with client_of(app, headers={"x-user": "alice"}) as client:
        page = [await client.get("/typo", headers={"accept": "text/html"}) for _ in range(2)]
        other = await client.get("/typo", headers={"accept": "application/json"})
        refused = await client.get("/typo", headers={"accept": "text/html;q=0"})
        nothing = await client.get("/typo", headers={"accept": ""})
        again = await client.get("/typo", headers={"accept": "TEXT/HTML"})
    assert [(each.text, told(each)) for each in page] == [("page", "fwd=uri-miss; stored"), ("page", "hit")]
    assert [each.status_code for each in (other, refused, nothing)] == [404, 404, 404]
    assert (again.text, told(again)) == ("page", "hit")
    assert ["accept" in each.headers["vary"] for each in (*page, other, again)] == [True] * 4


async def test_page_of_a_frontend_behind_middleware(tmp_path: pathlib.Path) -> None:
    """By the RFC alone the page of a frontend that is behind middleware is given to nobody else either."""
    (tmp_path / "index.html").write_text("page")
    app = frontend_of_what_is_not_entered(tmp_path)
    put_cache(app, default_policy=CachePolicy.http())
    async with client_of(app, headers={"x-user": "alice"}) as client:
        page = await client.get("/typo", headers={"accept": "text/html"})
        other = await client.get("/typo", headers={"accept": "application/json"})
    assert (page.text, told(page)) == ("page", "fwd=uri-miss; stored")
    assert other.status_code == 404


@pytest.mark.parametrize(
    ("fallback", "by_accept"), [("auto", True), ("index.html", True), ("404.html", False), (None, False)]
)
async def test_files_of_a_frontend(fallback: Any, *, by_accept: bool, tmp_path: pathlib.Path) -> None:
    """The files of a frontend are told apart by Accept where what stands in for missing ones may depend on it."""
    for name in ("index.html", "404.html", "file.txt"):
        (tmp_path / name).write_text("text")
    app = FastAPI()
    app.frontend("/", directory=tmp_path, fallback=fallback)
    put_cache(app, default_policy=CachePolicy(timeout=60))
    async with client_of(app) as client:
        answers = [await client.get("/file.txt", headers={"accept": accept}) for accept in ("text/html", "text/*")]
    assert [each.headers.get("vary") for each in answers] == ["accept" if by_accept else None] * 2
    assert told(answers[1]) == ("fwd=uri-miss; stored" if by_accept else "hit")


async def test_frontend_that_gets_a_page_later(tmp_path: pathlib.Path) -> None:
    """Files with a page for what is missing, added to those without, are told apart by Accept from then on."""
    (tmp_path / "index.html").write_text("page")
    app = FastAPI()
    app.frontend("/files", directory=tmp_path, fallback=None)
    put_cache(app, default_policy=CachePolicy(timeout=60))
    async with client_of(app) as client:
        assert "vary" not in (await client.get("/typo", headers={"accept": "text/html"})).headers
        app.frontend("/", directory=tmp_path)
        assert (await client.get("/typo", headers={"accept": "text/html"})).headers["vary"] == "accept"


async def test_routes_before_a_frontend(tmp_path: pathlib.Path) -> None:
    """A frontend is tried after all routes, those of routers too, and takes no policy of theirs."""
    (tmp_path / "file.txt").write_text("text")
    app, router = FastAPI(), APIRouter()
    app.frontend("/", directory=tmp_path)
    router.get("/x")(cached)
    app.include_router(router)
    put_cache(app)
    assert [await is_cached(app, path) for path in ("/x", "/file.txt")] == [True, False]


async def test_frontend_added_later(tmp_path: pathlib.Path) -> None:
    """A frontend that is added while the application runs is met by the next request."""
    (tmp_path / "file.txt").write_text("text")
    app = FastAPI(dependencies=[Depends(named_by_header)])
    put_cache(app, default_policy=CachePolicy(timeout=60))
    async with client_of(app) as client:
        assert (await client.get("/file.txt")).status_code == 404
        app.frontend("/", directory=tmp_path)
        assert told(await client.get("/file.txt", headers={"x-user": "alice"})) == "fwd=uri-miss; stored"
        assert (await client.get("/file.txt")).status_code == 401


def with_what_cannot_be_built(prefix: str) -> FastAPI:
    """Return an application with a router in a router, and in that a route which has a parameter twice."""
    app, outer, inner = FastAPI(), APIRouter(), APIRouter()
    app.get("/before")(cached)
    app.include_router(outer)
    outer.get("/outer")(cached)
    inner.get("/{name}")(cached)
    outer.include_router(inner, prefix="/{name}")
    app.get("/after")(cached)
    return FastAPI(routes=[Mount(prefix, app)]) if prefix else app


@pytest.mark.parametrize("prefix", ["", "/sub"], ids=["of the application", "of what is mounted"])
async def test_routes_that_cannot_be_built(prefix: str) -> None:
    """A route that FastAPI cannot build costs its own requests, and those of later routes, as without a cache."""
    paths = [f"{prefix}{path}" for path in ("/before", "/outer", "/a/b", "/after")]
    bare, app = with_what_cannot_be_built(prefix), with_what_cannot_be_built(prefix)
    put_cache(app, default_policy=CachePolicy(timeout=60))
    for each in (bare, app):
        async with client_of(each) as client:
            assert [(await client.get(path)).status_code for path in paths] == [200, 200, 500, 500]
    async with client_of(app) as client:
        assert [told(await client.get(path)) for path in paths] == ["hit", "hit", None, None]


async def test_router_that_can_be_built_later() -> None:
    """No policy covers what could not be built when routes were looked at, nor what comes after that."""
    app, router = FastAPI(), APIRouter()
    router.get("/{name}")(plain)
    app.include_router(router, prefix="/{name}")
    app.get("/after/x")(cached)
    put_cache(app, default_policy=CachePolicy(timeout=60))
    async with client_of(app) as client:
        assert (await client.get("/after/x")).status_code == 500
        router.routes[0].path = "/{other}"  # type: ignore[attr-defined]
        assert [told(await client.get("/after/x")) for _ in range(2)] == [None, None]


async def test_host_routes() -> None:
    """Where routes depend on the host, each host has its own endpoint's policy for the same path."""
    app = Starlette(
        routes=[
            Host("a.test", Router([Route("/x", cached)])),
            Host("{name}.test:8000", Router([Route("/x", plain)])),
            Route("/x", plain),
        ]
    )
    put_cache(app)
    for host, expected in (("a.test", True), ("b.test", False), ("c.other", False), ("a.test", True)):
        assert await is_cached(app, "/x", host=host) is expected


@pytest.mark.parametrize(
    ("routes", "expected"),
    [
        pytest.param([Route("/x", plain), Route("/x", cached)], False, id="the first full match wins"),
        pytest.param([Route("/x", cached), Route("/x", plain)], True, id="also where it is cached"),
        pytest.param([Route("/x", plain, methods=["PUT"]), Route("/x", cached)], True, id="another method passes"),
        pytest.param([Route("/x", cached, methods=["POST"])], False, id="not allowed"),
        pytest.param([Route("/{name}", plain), Route("/x", cached)], False, id="shadowed by a parameter"),
        pytest.param([Mount("/", routes=[]), Route("/x", cached)], False, id="shadowed by a mount"),
        pytest.param([Mount("/y", routes=[]), Route("/x", cached)], True, id="beside a mount"),
    ],
)
async def test_shadowed_routes(routes: list[BaseRoute], expected: bool) -> None:
    """Among routes that match the same path, the policy is that of the one which runs."""
    app = Starlette(routes=routes)
    put_cache(app)
    assert await is_cached(app, "/x") is expected


class ForAdmins(APIRoute):
    """Matches by a header as well."""

    def matches(self, scope: Any) -> tuple[Match, Any]:
        found, child_scope = super().matches(scope)
        return (found if (b"x-admin", b"1") in scope["headers"] else Match.NONE), child_scope


@pytest.mark.parametrize("with_router", [False, True], ids=["on the application", "on a router"])
async def test_own_matching(with_router: bool) -> None:
    """Where a route matches in a way of its own, neither it nor what it may shadow is cached."""
    app = FastAPI()
    router = APIRouter(route_class=ForAdmins) if with_router else app.router
    router.route_class = ForAdmins
    router.get("/x")(cache(lambda: "admin"))
    if with_router:
        app.include_router(router)
    app.router.route_class = APIRoute
    app.get("/x")(cache(lambda: "everybody"))
    put_cache(app)
    async with client_of(app) as client:
        for headers, text in (({}, "everybody"), ({"x-admin": "1"}, "admin"), ({}, "everybody")):
            answer = await client.get("/x", headers=headers)
            assert (answer.json(), told(answer)) == (text, None)


def _copy(function: Any) -> Any:
    @functools.wraps(function)
    async def copied(*values: Any, **named: Any) -> Any:
        return await function(*values, **named)

    return copied


def _subclass(kind: type, **methods: Any) -> type:
    return type("Sub", (kind,), methods)


class Page(HTTPEndpoint):
    """A class-based endpoint."""

    async def get(self, request: Request) -> Response:
        return PlainTextResponse("page")


class Callable:
    """An endpoint that is an object."""

    async def __call__(self, item: int = 1) -> int:
        return item


class Called:
    """An endpoint that is an object, and cached by the method that calls it."""

    title = "page"

    @cache(timeout=60)
    async def __call__(self) -> str:
        return self.title


class SameCalled(Called):
    """It is called by the method that was decorated, and has no other."""

    title = "another page"


class OtherCalled(Called):
    """It is called by a method of its own."""

    async def __call__(self) -> str:
        return "page of one"


class HelpedCalled(Called):
    """It is called by the method that was decorated, and has another, which that may call."""

    @property
    def title(self) -> str:  # type: ignore[override]
        return "page of one"


async def either(request: Request, *, text: str) -> Response:
    """Answer with *text*."""
    return PlainTextResponse(text)


def wrapped() -> Any:
    """Return a cached function in a decorator that keeps its attributes."""

    @functools.wraps(cached)
    async def around(request: Request) -> Response:
        return await cached(request)

    return around


@pytest.mark.parametrize(
    "endpoint",
    [
        pytest.param(cache(timeout=60)(Page), id="class"),
        pytest.param(cache(timeout=60)(functools.partial(either, text="a")), id="partial"),
        pytest.param(
            functools.partial(cache(timeout=60)(_copy(either)), text="a"), id="partial of what is cached"
        ),
        pytest.param(wrapped(), id="wrapped"),
        pytest.param(cache(timeout=60)(lambda request: PlainTextResponse("a")), id="lambda"),
    ],
)
async def test_kinds_of_endpoints(endpoint: Any) -> None:
    """Whatever can be an endpoint can be cached."""
    app = Starlette(routes=[Route("/x", endpoint)])
    put_cache(app)
    assert await is_cached(app, "/x")


async def forbidden(self: Any, request: Request) -> Response:
    """Answer a HEAD in a way of its own."""
    return PlainTextResponse("no", 403)


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        pytest.param(cached, "hit", id="function"),
        pytest.param(cache(timeout=60)(_subclass(Page)), "hit", id="class"),
        pytest.param(cache(timeout=60)(_subclass(Page, head=forbidden)), None, id="own head"),
        pytest.param(cache(timeout=60)(PlainTextResponse("text")), None, id="object"),
    ],
)
async def test_head_of_kinds_of_endpoints(endpoint: Any, expected: str | None) -> None:
    """The HEAD of what is cached is answered by what its GET stored where it is known that it would be GET's."""
    app = Starlette(routes=[Route("/x", endpoint)])
    put_cache(app)
    async with client_of(app) as client:
        before = await client.head("/x")
        await client.get("/x")
        after = await client.head("/x")
    assert (told(after), after.status_code) == (expected, before.status_code)


@cache(timeout=60)
class Decorated(HTTPEndpoint):
    """A class-based endpoint that is cached, and its subclasses."""

    title = "page"

    async def get(self, request: Request) -> Response:
        return PlainTextResponse(self.title)


class SamePage(Decorated):
    """It answers by the method that was decorated."""

    title = "another page"


class OtherPage(Decorated):
    """It answers by a method of its own."""

    async def get(self, request: Request) -> Response:
        return PlainTextResponse("page of one")


class OfOne:
    """It has what a page may be made for one alone with."""

    async def get(self, request: Request) -> Response:
        return PlainTextResponse("page of one")


class MixedPage(OfOne, Decorated):
    """It answers by a method of another base."""


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [(SamePage, True), (OtherPage, False), (MixedPage, False), (cache(timeout=60)(_subclass(OtherPage)), True)],
    ids=["with its method", "with another method", "with one of another base", "decorated too"],
)
async def test_subclass_of_a_decorated_class(endpoint: Any, *, expected: bool) -> None:
    """A subclass of a decorated endpoint is cached as long as it has no methods that nobody decorated."""
    app = Starlette(routes=[Route("/x", endpoint)])
    put_cache(app)
    assert await is_cached(app, "/x") is expected


@pytest.mark.parametrize(
    "decorator", [cache(timeout=60), invalidates(tags=["a"]), never_cached], ids=["cache", "invalidates", "never"]
)
async def test_decorator_on_a_method_of_a_class(decorator: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A decorator on a method of a class-based endpoint, where it says nothing, is said once at start."""

    class Pages(HTTPEndpoint):
        @decorator
        async def get(self, request: Request) -> Response:
            return PlainTextResponse("page")

    warned.clear()
    app = Starlette(routes=[Route("/x", Pages), Route("/y", Decorated)])
    put_cache(app)
    for _ in range(2):
        async with app.router.lifespan_context(app):
            pass
    said = [each.getMessage() for each in caplog.records if "decorator_not_read" in each.getMessage()]
    assert len(said) == 1
    assert said[0].endswith("""Pages' (/x)" method=get""")


def decorated_app(*, cached: bool = False, middleware: bool = True) -> FastAPI:
    """Return an application with a decorated endpoint, perhaps with a cache of its own."""
    app = FastAPI()
    app.get("/page")(cache(timeout=60)(lambda: "page"))
    if middleware:
        app.add_middleware(Seen)
    if cached:
        put_cache(app)
    return app


def with_a_partial() -> FastAPI:
    """Return a decorated application whose cache is made by a partial."""
    app = decorated_app()
    app.add_middleware(functools.partial(CacheMiddleware, backend=MemoryBackend()))
    return app


def with_foreign_middleware() -> Any:
    """Return what has routes, and a list of middleware that is not Starlette's."""
    return SimpleNamespace(routes=[Route("/page", decorated)], user_middleware=[("name", {}), Seen])


def mounts_itself() -> FastAPI:
    """Return a decorated application that is mounted in itself."""
    app = decorated_app()
    app.mount("/again", app)
    return app


class ByTenant(KeyGenerator):
    """Keys by what is in the path, as the request has it."""

    def generate_cache_key(self, request: Request) -> str:
        return "{tenant}/{day}".format(**request.path_params)


class Choosy(Route):
    """Matches by what it likes."""

    def matches(self, scope: Any) -> Any:
        return super().matches(scope)


@cache(timeout=60)
async def decorated(request: Request) -> Response:
    """Answer with a page."""
    return PlainTextResponse("page")


@pytest.mark.parametrize(
    ("route", "because"),
    [
        pytest.param(
            Mount("/sub", decorated_app()),
            "what is mounted at '/sub' has middleware, or a handler of its own",
            id="mounted with middleware",
        ),
        pytest.param(
            Mount("/sub", decorated_app(middleware=False), middleware=[Middleware(Seen)]),
            "what is mounted at '/sub' has middleware, or a handler of its own",
            id="middleware of a mount",
        ),
        pytest.param(
            Mount("/sub", routes=[Mount("/sub", decorated_app())]),
            "what is mounted at '/sub' has middleware, or a handler of its own",
            id="within what is entered",
        ),
        pytest.param(
            Route("/page", decorated, middleware=[Middleware(Seen)]),
            "the route has middleware, or a handler of its own",
            id="middleware of a route",
        ),
        pytest.param(Choosy("/page", decorated), "'/page' matches in a way of its own", id="matches by itself"),
        pytest.param(Mount("/sub", decorated_app(middleware=False)), "", id="entered"),
        pytest.param(Mount("/sub", decorated_app(cached=True)), "", id="with a cache of its own"),
        pytest.param(
            Mount("/sub", CacheMiddleware(decorated_app(), MemoryBackend())), "", id="wrapped in a cache"
        ),
        pytest.param(Mount("/sub", Seen(Starlette())), "", id="nothing decorated"),
        pytest.param(
            Host("api.test", decorated_app()),
            "what is mounted at 'api.test' has middleware, or a handler of its own",
            id="a host",
        ),
        pytest.param(Mount("/sub", with_a_partial()), "", id="with a cache made by a partial"),
        pytest.param(
            Mount("/sub", with_foreign_middleware()),
            "what is mounted at '/sub' has middleware, or a handler of its own",
            id="with a list of its own by that name",
        ),
        pytest.param(
            Mount("/sub", mounts_itself()),
            "what is mounted at '/sub' has middleware, or a handler of its own",
            id="mounts itself",
        ),
        pytest.param(APIWebSocketRoute("/page", decorated), "", id="a websocket"),
    ],
)
async def test_out_of_reach(route: BaseRoute, because: str, caplog: pytest.LogCaptureFixture) -> None:
    """That a decorated endpoint is never cached, and why, is said once at start."""
    warned.clear()
    app = FastAPI(routes=[route])
    put_cache(app)
    for _ in range(2):
        async with app.router.lifespan_context(app):
            pass
    said = [each.getMessage() for each in caplog.records if "out_of_reach" in each.getMessage()]
    assert [because in each for each in said] == [True] * bool(because)


async def test_path_params_of_routers_further_out() -> None:
    """What a host further out found for a request is in its key, its tags and its scope, and in no other's."""
    app, seen = FastAPI(), list[Any]()

    @app.get("/menu/{day}")
    @cache(timeout=60, tags=["menu_{tenant}"], key=ByTenant())
    async def menu(tenant: Annotated[str, Path()], day: str) -> str:
        return f"{tenant} {day}"

    container = put_cache(app)

    class Notes:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await self.app(scope, receive, send)
            seen.append(scope["path_params"])

    app.add_middleware(Notes)
    outer = Starlette(routes=[Host("{tenant}.test", app)])
    async with client_of(outer) as client:
        for expected in ("fwd=uri-miss; stored", "hit"):
            for tenant in ("ann", "bob"):
                answer = await client.get(f"http://{tenant}.test/menu/1")
                assert (answer.json(), told(answer)) == (f"{tenant} 1", expected)
        await container.invalidation().by_tag("menu_bob")
        assert told(await client.get("http://bob.test/menu/1")) != "hit"
        assert told(await client.get("http://ann.test/menu/1")) == "hit"
    assert [each["tenant"] for each in seen] == ["ann", "bob", "ann", "bob", "bob", "ann"]


async def test_behind_a_route_that_matches_by_itself(caplog: pytest.LogCaptureFixture) -> None:
    """So it is of each decorated endpoint behind a route that matches in a way of its own."""
    warned.clear()
    app = FastAPI(routes=[Choosy("/choosy", Response)])
    app.get("/page")(cache(timeout=60)(lambda: "page"))
    put_cache(app)
    async with client_of(app) as client:
        assert told(await client.get("/page")) is None
    said = [each.getMessage() for each in caplog.records if "out_of_reach" in each.getMessage()]
    assert len(said) == 1
    assert "'/choosy' matches in a way of its own" in said[0]


async def test_object_of_a_subclass() -> None:
    """An object that is called is not cached by what its class overrides."""

    class Other(cache(timeout=60)(_subclass(Callable))):  # type: ignore[misc]
        async def __call__(self, item: int = 2) -> int:
            return item

    app = FastAPI()
    app.get("/x")(Other())
    put_cache(app)
    assert not await is_cached(app, "/x")


async def test_callable_object() -> None:
    """An object that is called is cached by the policy it was marked with."""
    app = FastAPI()
    app.get("/x")(cache(timeout=60)(Callable()))
    put_cache(app)
    assert await is_cached(app, "/x")


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        (Called(), True),
        (functools.partial(Called()), True),
        (SameCalled(), True),
        (OtherCalled(), False),
        (HelpedCalled(), False),
    ],
    ids=["its own", "partial", "with its method", "with another method", "with a method beside it"],
)
async def test_object_whose_class_says_how_it_is_called(endpoint: Any, *, expected: bool) -> None:
    """A mark on ``__call__`` is for the objects of its class, and of subclasses without methods of their own."""
    app = FastAPI()
    app.get("/x")(endpoint)
    put_cache(app)
    assert await is_cached(app, "/x") is expected


@pytest.mark.parametrize(
    "endpoint",
    [
        pytest.param(functools.partial(never_cached(_copy(either)), text="a"), id="partial of it"),
        pytest.param(never_cached(functools.partial(either, text="a")), id="partial"),
        pytest.param(functools.partial(never_cached(functools.partial(either)), text="a"), id="between partials"),
    ],
)
async def test_partial_of_what_is_never_cached(endpoint: Any) -> None:
    """What stays out of the cache does so as a partial too, whatever policy is for what has none."""
    app = Starlette(routes=[Route("/x", endpoint)])
    put_cache(app, default_policy=CachePolicy(timeout=60))
    assert not await is_cached(app, "/x")


async def test_method_of_an_object() -> None:
    """A method marked in its class is cached as an endpoint of each object."""

    class Pages:
        @cache(timeout=60)
        async def page(self) -> str:
            return "a"

    app = FastAPI()
    app.get("/x")(Pages().page)
    put_cache(app)
    assert await is_cached(app, "/x")


async def test_decorator_above_the_route() -> None:
    """The decorator may stand above the route's."""
    app = FastAPI()

    @cache(timeout=60)
    @app.get("/x")
    def answer() -> str:
        return "a"

    put_cache(app)
    assert await is_cached(app, "/x")


async def test_found_through_middlewares() -> None:
    """Added among other middlewares, or wrapped around the finished application, the cache finds its routes."""
    for around in (False, True):
        app: Any = FastAPI()
        app.get("/x")(cached)
        app.add_middleware(Seen)
        if around:
            app = CacheMiddleware(Seen(app), MemoryBackend())
        else:
            app.add_middleware(CacheMiddleware, backend=MemoryBackend())
        assert await is_cached(app, "/x")


class Hidden:
    """An ASGI middleware that does not say what it is wrapped around."""

    def __init__(self, app: Any) -> None:
        self._inner = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._inner(scope, receive, send)


async def test_found_by_the_application_in_the_scope() -> None:
    """Before a middleware that hides what follows, the routes are those of the application that serves."""
    app = FastAPI()
    app.get("/x")(cached)
    app.add_middleware(Hidden)
    app.add_middleware(CacheMiddleware, backend=MemoryBackend())
    assert await is_cached(app, "/x")


@pytest.mark.parametrize("is_mounted", [False, True], ids=["served", "mounted"])
@pytest.mark.parametrize("make", [FastAPI, Starlette])
async def test_found_by_the_stack_that_it_is_in(make: Any, *, is_mounted: bool) -> None:
    """Added to an application, mounted or not, before a middleware that hides what follows, the cache finds it."""
    app = make()
    app.router.routes.append(Route("/x", cached))
    app.add_middleware(Hidden)
    app.add_middleware(CacheMiddleware, backend=MemoryBackend())
    outer = Starlette(routes=[Route("/x", plain), Mount("/sub", app)]) if is_mounted else app
    assert await is_cached(outer, "/sub/x" if is_mounted else "/x")


def mount_of(app: Any) -> BaseRoute:
    """Return a mount of a cache around *app*."""
    return Mount("/sub", CacheMiddleware(app, MemoryBackend()))


def mount_with_middleware(app: Any) -> BaseRoute:
    """Return a mount of *app* with a cache as its middleware."""
    return Mount("/sub", app, middleware=[Middleware(CacheMiddleware, backend=MemoryBackend())])


def mount_in_a_mount(app: Any) -> BaseRoute:
    """Return a mount of *app* in a cache, in an application that is mounted too."""
    return Mount("/sub", FastAPI(routes=[mount_of(app), Route("/x", cached)]))


@pytest.mark.parametrize(
    ("make", "path"),
    [(mount_of, "/sub/x"), (mount_with_middleware, "/sub/x"), (mount_in_a_mount, "/sub/sub/x")],
    ids=["mounted", "of a mount", "in a mount"],
)
async def test_mounted_cache_around_what_has_no_routes(make: Any, path: str) -> None:
    """A cache around what has no routes has no policies of those of the application that it is mounted in."""
    app = FastAPI(routes=[make(PlainTextResponse("text")), Route("/x", cached)])
    assert not await is_cached(app, path)


async def test_cache_that_is_mounted_and_a_route() -> None:
    """A cache that is a route of an application too has none of its policies where it is mounted."""
    around = CacheMiddleware(PlainTextResponse("text"), MemoryBackend())
    app = FastAPI(routes=[Route("/sub", around), Mount("/sub", around), Route("/x", cached)])
    assert [await is_cached(app, path) for path in ("/sub", "/sub/x", "/sub")] == [False, False, False]


async def test_mounted_cache_in_a_cache() -> None:
    """A cache around what has no routes answers by its own fallbacks what the one further out does not."""
    within = CacheMiddleware(PlainTextResponse("text"), MemoryBackend(), default_policy=CachePolicy(timeout=60))
    app = FastAPI(routes=[Mount("/sub", within), Route("/x", cached)])
    put_cache(app)
    assert await is_cached(app, "/sub/x")


@pytest.mark.parametrize("endpoint", [cached, plain])
async def test_cache_of_one_route(endpoint: Any) -> None:
    """The fallbacks of a cache that is the middleware of one route stand back where its endpoint is decorated."""
    own = Middleware(CacheMiddleware, backend=MemoryBackend(), default_policy=CachePolicy(timeout=60))
    app = Starlette(routes=[Route("/x", endpoint, middleware=[own])])
    assert await is_cached(app, "/x") is (endpoint is plain)


def limited_by_the_application() -> FastAPI:
    """Return an application that has a limit for all of its routes."""
    app = FastAPI(max_body_size=9)
    app.get("/x")(cached)
    app.post("/x")(cached)
    return app


def limited_by_the_route() -> FastAPI:
    """Return an application with a limit on each route."""
    app = FastAPI()
    app.get("/x", max_body_size=9)(cached)
    app.post("/x", max_body_size=9)(cached)
    return app


def limited_by_a_router() -> FastAPI:
    """Return an application with an included router that has a limit for its routes."""
    app, router = FastAPI(), APIRouter(max_body_size=9)
    router.get("/x")(cached)
    router.post("/x")(cached)
    app.include_router(router)
    return app


def limited_as_included() -> FastAPI:
    """Return an application with a router in a router, each included with a limit, as a route has one."""
    app, outer, inner = FastAPI(), APIRouter(), APIRouter()
    inner.get("/x")(cached)
    inner.post("/x", max_body_size=9)(cached)
    outer.include_router(inner, max_body_size=99)
    app.include_router(outer, max_body_size=99)
    return app


def limited_as_mounted() -> FastAPI:
    """Return an application with a limit on a mount, in a router that is included with one."""
    app, router = FastAPI(), APIRouter()
    routes = [Route("/x", cached), Route("/x", cached, methods=["POST"])]
    router.routes.append(Mount("/sub", routes=routes, max_body_size=9))
    app.include_router(router, max_body_size=99)
    return app


def limited_where_mounted(make: Any) -> Any:
    """Return what makes an application that mounts one of *make* with a limit of its own."""

    def limited() -> FastAPI:
        within = make(max_body_size=9)
        within.routes.extend([Route("/x", cached), Route("/x", cached, methods=["POST"])])
        return FastAPI(routes=[Mount("/sub", within)])

    return limited


def limited_by_starlette() -> Starlette:
    """Return an application of Starlette with a limit, and with one on each route."""
    routes = [Route("/x", cached, methods=[method], max_body_size=9) for method in ("GET", "POST")]
    return Starlette(routes=routes, max_body_size=99)


@pytest.mark.parametrize(
    ("make", "path"),
    [
        pytest.param(limited_by_the_application, "/x", id="application"),
        pytest.param(limited_by_the_route, "/x", id="route"),
        pytest.param(limited_by_a_router, "/x", id="router"),
        pytest.param(limited_as_included, "/x", id="inclusion"),
        pytest.param(limited_as_mounted, "/sub/x", id="mount"),
        pytest.param(limited_where_mounted(FastAPI), "/sub/x", id="mounted FastAPI"),
        pytest.param(limited_where_mounted(Starlette), "/sub/x", id="mounted Starlette"),
        pytest.param(limited_where_mounted(APIRouter), "/sub/x", id="mounted router of FastAPI"),
        pytest.param(limited_where_mounted(Router), "/sub/x", id="mounted router"),
        pytest.param(limited_by_starlette, "/x", id="Starlette"),
    ],
)
async def test_limited_body(make: Any, path: str, caplog: pytest.LogCaptureFixture) -> None:
    """A limit on the size of a body is no middleware that a hit would have to run, wherever it is given."""
    warned.clear()
    app = make()
    put_cache(app)
    async with client_of(app) as client:
        told_of_get = [told(await client.get(path)) for _ in range(2)]
        told_of_post = [told(await client.post(path, content=b"123456789")) for _ in range(2)]
        refused = [(await client.post(path, content=b"1234567890")).status_code for _ in range(2)]
    assert told_of_get == told_of_post == ["fwd=uri-miss; stored", "hit"]
    assert refused == [413, 413]
    assert "out_of_reach" not in caplog.text


class Limiting(RequestBodyLimitMiddleware):
    """It does something of its own beside the limit, though it is called as that is."""

    def __init__(self, app: Any) -> None:
        super().__init__(Seen(app), 9)


class LooksLikeALimit(Seen):
    """An ASGI middleware that says that it is another."""

    __module__ = RequestBodyLimitMiddleware.__module__
    __qualname__ = RequestBodyLimitMiddleware.__qualname__


@pytest.mark.parametrize("kind", [Limiting, LooksLikeALimit])
async def test_not_quite_a_limit(kind: Any) -> None:
    """What is derived from a limit, or looks like one, is middleware of the route's own: it runs each time."""
    app = Starlette(routes=[Route("/x", cached, middleware=[Middleware(kind)])])
    put_cache(app)
    assert not await is_cached(app, "/x")


async def test_limit_that_was_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """So it is of a limit in which somebody put a function in the place of its own."""
    monkeypatch.setattr(RequestBodyLimitMiddleware, "__call__", Seen.__call__)
    app = limited_by_the_route()
    put_cache(app)
    assert not await is_cached(app, "/x")


async def test_root_path_of_the_application() -> None:
    """An application that has a root path of its own is cached with and without it before the path."""
    app = FastAPI()
    app.root_path = "/api"
    app.get("/x")(cached)
    put_cache(app)
    assert [await is_cached(app, path) for path in ("/x", "/api/x", "/other/x")] == [True, True, False]


async def test_root_path() -> None:
    """Behind a proxy that strips a prefix, the routes are found and the URL has the prefix."""
    app = FastAPI()
    app.get("/x")(cached)
    container = put_cache(app)
    transport = httpx.ASGITransport(app, root_path="/api")
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for path in ("/x", "/api/x"):
            assert [told(await client.get(path)) for _ in range(2)] == ["fwd=uri-miss; stored", "hit"]
            await container.invalidation().by_url("http://test/api/x")
            assert told(await client.get(path)) == "fwd=uri-miss; stored"


@pytest.mark.parametrize(
    "path",
    ["//x", "/x//", "/x;a", "/x%2fa", "/x%3Fa", "/x.css", "/X", "/x%00", "/%78%2e"],
)
async def test_other_spellings(path: str) -> None:
    """A path that the router takes for another one is another one, whatever it looks like (S16)."""
    app = FastAPI()
    app.get("/x")(cached)
    app.get("/{rest:path}")(plain)
    put_cache(app)
    async with client_of(app) as client:
        await client.get("/x")
        answer = await client.get(path)
    assert (answer.status_code, told(answer)) == (200, None)


async def test_encoded_spellings_are_keys_of_their_own() -> None:
    """Two spellings of one path meet the same policy, and never each other's answer."""
    app = FastAPI()

    @app.get("/{name:path}")
    @cache(timeout=60)
    def answer(request: Request, name: str) -> str:
        return str(request.scope["raw_path"])

    put_cache(app)
    async with client_of(app) as client:
        for path in ("/a/b", "/a%2fb", "/a%2Fb", "/%61/b", "//a/b"):
            first, second = await client.get(path), await client.get(path)
            assert (told(first), told(second)) == ("fwd=uri-miss; stored", "hit")
            assert first.json() == second.json()


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({"path": "/\udcff", "raw_path": b"/%FF"}, id="path with a surrogate"),
        pytest.param({"path": "/\ufffd", "raw_path": b"/%FF"}, id="path replaced"),
        pytest.param({"path": "/x", "query_string": b"a=\xff&%ff=%FE"}, id="query"),
        pytest.param({"path": "/x", "headers": [(b"host", b"\xff\xfe")]}, id="host"),
    ],
)
async def test_bytes_that_are_no_utf8(more: dict[str, Any]) -> None:
    """A request whose bytes are no UTF-8 is answered as without a cache (S33)."""

    async def bare(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a"})

    app = CacheMiddleware(bare, MemoryBackend(), default_policy=CachePolicy(timeout=60))
    scope = {**scope_of("/x"), **more}
    for expected in (b"app-cache; fwd=uri-miss; stored", b"app-cache; hit; ttl=59"):
        sent: list[Any] = []

        async def send(message: Any, sent: list[Any] = sent) -> None:
            sent.append(message)

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        await app(dict(scope), receive, send)
        assert (b"cache-status", expected) in sent[0]["headers"]


def test_bounded_memory() -> None:
    """The table remembers a bounded number of paths, and no long one (S18)."""
    table = RouteTable(Starlette(routes=[Route("/{name:path}", cached)]), Fallbacks(None, None))
    for number in range(MAX_PLANS + 10):
        assert table.find(scope_of(f"/{number}")) is not None
    assert table.find(scope_of("/" + "a" * 10_000)) is not None
    assert 0 < len(table._plans) <= MAX_PLANS
    assert max(len(path) for _, path, *_ in table._plans) < 10


BY_PATH = {
    "/public/private/*": None,
    "/public/*": CachePolicy(timeout=60, tags=("public",)),
    "/posted": CachePolicy(timeout=60, methods=frozenset({"POST"})),
    "/decorated/a": None,
    "/decorated/b": CachePolicy(timeout=60, vary_by=lambda _: None),
}


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        pytest.param("GET", "/public/a", True, id="matches"),
        pytest.param("GET", "/public/a%20b", True, id="encoded"),
        pytest.param("GET", "/public/private/a", False, id="the first that matches"),
        pytest.param("GET", "/other", False, id="none"),
        pytest.param("POST", "/public/a", False, id="a method that is not named"),
        pytest.param("POST", "/posted", True, id="a method that is named"),
        pytest.param("GET", "/posted", False, id="another than is named"),
        pytest.param("GET", "/decorated/a", True, id="a decorator goes before none"),
        pytest.param("GET", "/decorated/b", True, id="a decorator goes before another"),
    ],
)
async def test_policies_by_path(method: str, path: str, expected: bool) -> None:
    """A route without a policy of its own has that of the first pattern that its path matches (SPEC §3.7)."""
    routes = [
        Route("/decorated/{name}", cached),
        Route("/{path:path}", plain, methods=["GET", "POST"]),
    ]
    app = Starlette(routes=routes)
    put_cache(app, policies=BY_PATH)
    async with client_of(app) as client:
        await client.request(method, path)
        assert (told(await client.request(method, path)) == "hit") is expected


def behind_a_prefix(**options: Any) -> Any:
    """Return an application that knows no root path of its own."""
    app = FastAPI()
    app.get("/admin/x")(plain)
    put_cache(app, **options)
    return app


def with_a_root_path(**options: Any) -> Any:
    """Return an application that has a root path of its own."""
    app = FastAPI()
    app.root_path = "/api"
    app.get("/admin/x")(plain)
    put_cache(app, **options)
    return app


def around_a_root_path(**options: Any) -> Any:
    """Return a cache that stands around such an application."""
    app = FastAPI()
    app.root_path = "/api"
    app.get("/admin/x")(plain)
    return CacheMiddleware(app, MemoryBackend(), **options)


async def test_policies_go_before_the_default() -> None:
    """What no pattern matches has the default policy, with the root path in what is matched."""
    app = Starlette(routes=[Route("/{path:path}", plain)])
    wrapped = CacheMiddleware(
        app, MemoryBackend(), default_policy=CachePolicy(timeout=60), policies={"/v1/live/*": None}
    )
    async with client_of(wrapped) as client:
        said = [told(await client.get(path)) for path in ("/v1/live/a", "/live/a")]
    transport = httpx.ASGITransport(wrapped, root_path="/v1")
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        said.append(told(await client.get("/live/a")))
    assert said == [None, "fwd=uri-miss; stored", None]


@pytest.mark.parametrize("route", [Route("/me", plain), APIRoute("/me", lambda: "me")], ids=["plain", "FastAPI"])
async def test_policies_and_the_end_of_a_line(route: BaseRoute) -> None:
    """A path with the end of a line behind it, which a route matches too, has the policy of that without."""
    app = FastAPI(routes=[route])
    put_cache(app, default_policy=CachePolicy(timeout=60), policies={"/me": None})
    async with client_of(app) as client:
        answers = [await client.get(path) for path in ("/me", "/me%0A")]
    assert [(each.status_code, told(each)) for each in answers] == [(200, None)] * 2


@pytest.mark.parametrize("pattern", ["/admin/*", "/api/admin/*"], ids=["as routes have it", "as clients send it"])
@pytest.mark.parametrize("kept_out", [True, False], ids=["kept out", "cached"])
@pytest.mark.parametrize(
    ("make", "root_path", "path"),
    [
        pytest.param(behind_a_prefix, "/api", "/api/admin/x", id="of the server"),
        pytest.param(behind_a_prefix, "/api", "/admin/x", id="of a server that strips it"),
        pytest.param(with_a_root_path, "", "/api/admin/x", id="of the application"),
        pytest.param(with_a_root_path, "", "/admin/x", id="of the application, stripped"),
        pytest.param(around_a_root_path, "", "/api/admin/x", id="of the application inside"),
        pytest.param(around_a_root_path, "", "/admin/x", id="of the application inside, stripped"),
    ],
)
async def test_policies_under_a_root_path(
    make: Any, root_path: str, path: str, pattern: str, *, kept_out: bool
) -> None:
    """A pattern of `policies` meets a path as routes have it, and as the client sends it."""
    policy = CachePolicy(timeout=60)
    app = make(default_policy=policy if kept_out else None, policies={pattern: None if kept_out else policy})
    transport = httpx.ASGITransport(app, root_path=root_path)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answers = [await client.get(path) for _ in range(2)]
    assert [each.status_code for each in answers] == [200, 200]
    assert [told(each) for each in answers] == ([None, None] if kept_out else ["fwd=uri-miss; stored", "hit"])


async def test_policies_in_a_mounted_application() -> None:
    """In a mounted application the path of the mount may stand before a pattern, both prefixes may, or none."""
    for pattern in ("/api/sub/x", "/sub/x", "/x"):
        app, inner = FastAPI(), FastAPI(middleware=[Middleware(Seen)])
        inner.get("/x")(plain)
        app.mount("/sub", inner)
        put_cache(inner, default_policy=CachePolicy(timeout=60), policies={pattern: None})
        transport = httpx.ASGITransport(app, root_path="/api")
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            assert told(await client.get("/api/sub/x")) is None


async def test_tags_of_a_policy_by_path() -> None:
    """The tags of a policy by path invalidate what it has stored."""
    app = Starlette(routes=[Route("/{path:path}", plain)])
    container = put_cache(app, policies=BY_PATH)
    async with client_of(app) as client:
        await client.get("/public/a")
        await container.invalidation().by_tag("public")
        assert told(await client.get("/public/a")) == "fwd=uri-miss; stored"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"default_policy": 60}, "default_policy must be a CachePolicy, not 60", id="default"),
        pytest.param({"policies": ["/a"]}, "policies must be a mapping", id="no mapping"),
        pytest.param({"policies": {"/a": 60}}, r"policies\['/a'\] must be a CachePolicy, not 60", id="no policy"),
        pytest.param(
            {"policies": {"/a/{id:int}/b": None}}, "paths: '/a/\\*/b', not '/a/{id:int}/b'", id="template"
        ),
        pytest.param({"policies": {"a": None}}, "such as '/public/\\*', not 'a'", id="no path"),
        pytest.param({"policies": {"/" + "a" * 300: None}}, "may have 256 characters", id="too long"),
        pytest.param(
            {"policies": {"/u/*": CachePolicy(tags=["user_{id}"])}},  # type: ignore[arg-type]
            "has the tag 'user_{id}', but no endpoint",
            id="a template",
        ),
        pytest.param(
            {"default_policy": CachePolicy(tags=("{id}",))},
            "default_policy has the tag '{id}'",
            id="a template by default",
        ),
    ],
)
def test_wrong_fallbacks(options: dict[str, Any], message: str) -> None:
    """A policy that is not written on an endpoint and cannot work is refused at once, by its name."""
    with pytest.raises(ConfigurationError, match=message):
        CacheMiddleware(Starlette(), MemoryBackend(), **options)


@pytest.mark.parametrize(
    ("options", "methods", "reached"),
    [
        pytest.param({}, ["GET"], {"GET"}, id="GET"),
        pytest.param({}, ["GET", "HEAD"], {"GET", "HEAD"}, id="HEAD where it reaches the route"),
        pytest.param({}, ["GET", "POST"], {"GET"}, id="not POST beside GET"),
        pytest.param({"methods": ["GET", "POST"]}, ["GET", "POST"], {"GET", "POST"}, id="POST where it is named"),
        pytest.param({}, ["POST"], {"POST"}, id="POST alone"),
        pytest.param({}, ["QUERY"], {"QUERY"}, id="QUERY"),
        pytest.param({"methods": ["POST"]}, ["GET", "POST"], {"POST"}, id="only POST"),
        pytest.param({}, ["GET", "PUT", "DELETE"], {"GET"}, id="never PUT"),
    ],
)
async def test_methods(options: dict[str, Any], methods: list[str], reached: set[str]) -> None:
    """Of a route's methods, those that are safe are cached, and POST where it is all there is or is named."""
    app = FastAPI()
    app.api_route("/x", methods=methods)(cache(timeout=60, **options)(lambda: "a"))
    put_cache(app)
    async with client_of(app) as client:
        answers = {method: await client.request(method, "/x") for method in (*methods, "HEAD", "PATCH")}
    assert {method for method, answer in answers.items() if told(answer) is not None} == reached


@pytest.mark.parametrize(
    ("options", "url", "message"),
    [
        pytest.param({"tags": ["user_{name}"]}, "/x/{item}", "names 'name'", id="tag"),
        pytest.param({"tags": ["{request}"]}, "/x/{item}", "names 'request'", id="not from the request's data"),
    ],
)
async def test_unknown_names(options: dict[str, Any], url: str, message: str) -> None:
    """A template whose name is no parameter is an error as the application starts, or at the first request."""

    async def answer(item: int, request: Request) -> str:
        return "a"

    app = FastAPI()
    app.get(url)(cache(**options)(answer))
    put_cache(app)
    with pytest.raises(ConfigurationError, match=message):
        async with app.router.lifespan_context(app):
            pass
    async with client_of(app) as client:
        assert (await client.get("/x/1")).status_code == 500


@pytest.mark.parametrize(
    ("decorator", "instead"),
    [
        pytest.param(cache(tags=["t_{name}"]), "add_tags(request, …)", id="tags"),
        pytest.param(invalidates(tags=["t_{name}"]), "by_tag(…) of Invalidation", id="tags to invalidate"),
        pytest.param(invalidates(patterns=["/users/{name}*"]), "by_pattern(…) of Invalidation", id="patterns"),
        pytest.param(invalidates(urls=["/users/{name}"]), "by_url(…) of Invalidation", id="urls"),
    ],
)
async def test_what_an_unknown_name_goes_to(decorator: Any, instead: str) -> None:
    """The error of an unknown name says what does the same in the handler."""
    app = FastAPI()
    app.get("/x")(decorator(lambda: "a"))
    put_cache(app)
    with pytest.raises(ConfigurationError, match=f"there are: none. .* goes to {re.escape(instead)}$"):
        async with app.router.lifespan_context(app):
            pass


def of_an_alias(search_term: Annotated[str, Query(alias="search-term")] = "") -> str:
    """Read a query parameter that has another name."""
    return search_term


def of_an_alias_and_its_name(alias: Annotated[str, Depends(of_an_alias)], search_term: str = "") -> str:
    """Read it by both names."""
    return search_term


def of_an_alias_and_a_request(request: Request, alias: Annotated[str, Depends(of_an_alias)]) -> str:
    """Read it, and anything else of the query."""
    return request.query_params["search_term"]


class Terms(BaseModel):
    search_term: str = Field("", alias="search-term")


def of_a_model(search: Annotated[Terms, Query()]) -> str:
    """Read it as a field of a model."""
    return search.search_term


class AnyTerms(BaseModel, extra="allow"):
    search_term: str = ""


def of_a_model_that_takes_all(search: Annotated[AnyTerms, Query()]) -> str:
    """Read all that there is as fields of a model."""
    return str(search)


def of_the_request(request: Request) -> str:
    """Read anything."""
    return str(request.query_params)


def of_a_request_further_in(found: Annotated[str, Depends(of_the_request)]) -> str:
    """Have a dependency that reads anything."""
    return found


def of_a_key(key: Annotated[str, Depends(APIKeyQuery(name="api_key"))]) -> str:
    """Read the key of an API."""
    return key


def of_nothing() -> str:
    """Read nothing."""
    return ""


@pytest.mark.parametrize(
    ("endpoint", "named", "message"),
    [
        pytest.param(
            of_an_alias, ["search_term"], "names 'search_term', which clients send as 'search-term'", id="alias"
        ),
        pytest.param(of_a_model, ["search"], "names 'search', which clients send as 'search-term'", id="model"),
        pytest.param(of_an_alias, ["search-term"], None, id="as it is sent"),
        pytest.param(of_an_alias, ["search_term", "search-term"], None, id="both"),
        pytest.param(of_an_alias_and_its_name, ["search_term"], None, id="both are read"),
        pytest.param(of_an_alias_and_a_request, ["search_term"], None, id="anything may be read"),
    ],
)
async def test_query_that_no_client_sends(endpoint: Any, named: list[str], message: str | None) -> None:
    """To include a query parameter by a name that no client sends is an error at start."""
    app = FastAPI()
    app.get("/x")(cache(include_query=named)(_copy(endpoint)))
    put_cache(app)
    with pytest.raises(ConfigurationError, match=message) if message else nullcontext():
        async with app.router.lifespan_context(app):
            pass


@pytest.mark.parametrize(
    ("endpoint", "named", "declared"),
    [
        pytest.param(of_an_alias, ["lang"], "search-term", id="one that nobody reads"),
        pytest.param(of_a_model, ["lang"], "search-term", id="no field of the model"),
        pytest.param(of_nothing, ["lang"], "none", id="nothing is read"),
        pytest.param(of_nothing, [], None, id="nothing is read, nothing is named"),
        pytest.param(of_a_model_that_takes_all, ["lang"], None, id="a model that takes all"),
        pytest.param(of_the_request, ["lang"], None, id="anything may be read, nothing is declared"),
        pytest.param(of_a_request_further_in, ["lang"], None, id="a dependency may read anything"),
        pytest.param(of_a_key, ["api_key"], None, id="the key of an API"),
    ],
)
async def test_query_that_nobody_reads(
    caplog: pytest.LogCaptureFixture, endpoint: Any, named: list[str], declared: str | None
) -> None:
    """To include a query parameter that the endpoint is not declared to read is said at start, once."""
    app = FastAPI()
    app.get("/x")(cache(include_query=named)(_copy(endpoint)))
    put_cache(app)
    warned.clear()
    for _ in range(2):
        async with app.router.lifespan_context(app):
            pass
    said = [record.getMessage() for record in caplog.records if "query_not_read" in record.getMessage()]
    assert len(said) == (declared is not None)
    assert all("include_query=lang" in line and f"declared={declared}" in line for line in said)


async def test_query_that_the_class_of_a_route_reads(caplog: pytest.LogCaptureFixture) -> None:
    """A route of a class that makes its own handler may read any query parameter."""

    class Reading(APIRoute):
        def get_route_handler(self) -> Any:
            return super().get_route_handler()

    app = FastAPI()
    router = APIRouter(route_class=Reading)
    router.get("/x")(cache(include_query=["lang"])(_copy(of_nothing)))
    app.include_router(router)
    put_cache(app)
    warned.clear()
    async with app.router.lifespan_context(app):
        pass
    assert "query_not_read" not in caplog.text


@pytest.mark.parametrize("given", ["default_policy", "policies"])
async def test_query_of_a_policy_for_many_routes(given: str, caplog: pytest.LogCaptureFixture) -> None:
    """A policy that is not written on an endpoint may include query parameters that some routes do not read."""
    app = FastAPI()
    app.get("/x")(_copy(of_nothing))
    policy = CachePolicy(include_query=frozenset({"lang"}))
    options: dict[str, Any] = {given: policy if given == "default_policy" else {"/*": policy}}
    put_cache(app, **options)
    warned.clear()
    async with app.router.lifespan_context(app):
        pass
    assert "query_not_read" not in caplog.text


@pytest.mark.parametrize(
    ("endpoint", "options", "said"),
    [
        pytest.param(of_an_alias, {"exclude_query": ["search-term"]}, "exclude_query", id="excluded"),
        pytest.param(of_an_alias, {"include_query": []}, "include_query", id="not included"),
        pytest.param(of_a_model, {"include_query": []}, "include_query", id="field of a model"),
        pytest.param(of_an_alias_and_a_request, {"include_query": []}, "include_query", id="in a dependency"),
        pytest.param(of_an_alias, {"exclude_query": ["utm_source"]}, None, id="another is excluded"),
        pytest.param(of_an_alias, {"include_query": ["search-term"]}, None, id="included"),
        pytest.param(of_an_alias, {}, None, id="all joins the key"),
        pytest.param(of_an_alias, {"include_query": [], "vary_by": str}, None, id="told apart by vary_by"),
        pytest.param(
            of_an_alias, {"include_query": [], "key": DefaultKeyGenerator()}, None, id="told apart by a generator"
        ),
        pytest.param(of_a_key, {"exclude_query": ["api_key"]}, None, id="the key of an API"),
        pytest.param(of_the_request, {"include_query": []}, None, id="nothing is declared"),
    ],
)
async def test_query_that_is_read_and_left_out(
    caplog: pytest.LogCaptureFixture, endpoint: Any, options: dict[str, Any], said: str | None
) -> None:
    """A query parameter that an endpoint declares, and a policy keeps out of the key, is said at start, once."""
    app = FastAPI()
    app.get("/x")(cache(**options)(_copy(endpoint)))
    put_cache(app)
    warned.clear()
    for _ in range(2):
        async with app.router.lifespan_context(app):
            pass
    lines = [record.getMessage() for record in caplog.records if "query_left_out" in record.getMessage()]
    assert len(lines) == (said is not None)
    assert all(f"option={said}" in line and "name=search-term" in line for line in lines)


def of_a_header(x_tenant: Annotated[str, Header()] = "") -> str:
    """Read a header whose name in the code is not the one that is sent."""
    return x_tenant


def of_a_header_with_an_underscore(x_tenant: Annotated[str, Header(convert_underscores=False)] = "") -> str:
    """Read one that is sent with the underscore."""
    return x_tenant


@pytest.mark.parametrize("option", ["include_headers", "exclude_headers"])
@pytest.mark.parametrize(
    ("endpoint", "named", "is_said"),
    [
        pytest.param(of_a_header, "x_tenant", True, id="by its name in the code"),
        pytest.param(of_a_header, "x-tenant", False, id="as it is sent"),
        pytest.param(of_a_header_with_an_underscore, "x_tenant", False, id="sent with an underscore"),
        pytest.param(of_a_header_with_an_underscore, "x_user", True, id="not the one that is"),
    ],
)
async def test_header_that_no_client_sends(
    caplog: pytest.LogCaptureFixture, option: str, endpoint: Any, named: str, *, is_said: bool
) -> None:
    """To name a header by the name that only the code has for it is said at start, once."""
    app = FastAPI()
    options: Any = {option: [named]}
    app.get("/x")(cache(timeout=60, **options)(_copy(endpoint)))
    put_cache(app)
    warned.clear()
    for _ in range(2):
        async with app.router.lifespan_context(app):
            pass
    said = [record.getMessage() for record in caplog.records if "header_not_sent" in record.getMessage()]
    assert len(said) == is_said
    assert all(f"option={option} name={named} sent_as={named.replace('_', '-')}" in line for line in said)


async def test_nothing_to_cache() -> None:
    """A policy on a route whose methods cannot be cached is an error when the application starts."""
    app = FastAPI()
    app.put("/x")(cache(lambda: "a"))
    put_cache(app)
    with pytest.raises(ConfigurationError, match="the route has PUT"):
        async with app.router.lifespan_context(app):
            pass


def of_request(request: Request) -> list[str]:
    """Return a tag that the query names."""
    return [f"q{request.query_params['q']}"]


async def of_request_later(request: Request) -> list[str]:
    """Return a tag that the query names."""
    return of_request(request)


async def dependency(depth: int = 0) -> int:
    """Return a query parameter."""
    return depth


async def endpoint(
    item: int,
    q: str = "none",
    x_tenant: str = Header("nobody"),
    page: int = Query(1, alias="p"),
    depth: int = Depends(dependency),
) -> str:
    """Have a parameter of each kind."""
    return "a"


@pytest.mark.parametrize(
    ("template", "url", "headers", "tag"),
    [
        pytest.param("i{item}", "/x/7", {}, "i7", id="path"),
        pytest.param("i{item}", "/x/007", {}, "i7", id="path in another spelling"),
        pytest.param("{item:03d}", "/x/7", {}, "007", id="format"),
        pytest.param("{{{item}}}", "/x/7", {}, "{7}", id="braces"),
        pytest.param("q{q}", "/x/7?q=a", {}, "qa", id="query"),
        pytest.param("q{q}", "/x/7", {}, "qnone", id="default"),
        pytest.param("p{page}", "/x/7?p=2", {}, "p2", id="alias"),
        pytest.param("t{x_tenant}", "/x/7", {"x-tenant": "me"}, "tme", id="header"),
        pytest.param("d{depth}", "/x/7?depth=3", {}, "d3", id="parameter of a dependency"),
        pytest.param(of_request, "/x/7?q=a", {}, "qa", id="callable"),
        pytest.param(of_request_later, "/x/7?q=a", {}, "qa", id="async callable"),
    ],
)
async def test_tags_of_a_request(template: Any, url: str, headers: dict[str, str], tag: str) -> None:
    """Tags are filled with the values that the endpoint receives."""
    app = FastAPI()
    app.get("/x/{item}")(cache(timeout=60, tags=template if callable(template) else [template])(_copy(endpoint)))
    container = put_cache(app)
    async with client_of(app) as client:
        await client.get(url, headers=headers)
        await container.invalidation().by_tag(tag + "?")
        assert told(await client.get(url, headers=headers)) == "hit"
        await container.invalidation().by_tag(tag)
        assert told(await client.get(url, headers=headers)) == "fwd=uri-miss; stored"


class Model(str, Enum):  # noqa: UP042  that is how FastAPI's documentation writes one
    alexnet = "alexnet"


class Level(Enum):
    high = "high"


Lower = Annotated[str, AfterValidator(str.lower)]

SPELT = "6F9619FF-8B86-D011-B42D-00C04FC964FF"
"""A UUID in capitals, as Swift writes them."""
TEMPLATES_OF_TYPES = [
    pytest.param("{value}", Model, "alexnet", "Model.alexnet", ["alexnet"], id="Enum of text"),
    pytest.param("{value}", Level, "high", "Level.high", ["high"], id="Enum"),
    pytest.param("{value:.1}", Level, "high", "L", ["L"], id="Enum with a format"),
    pytest.param("{value}", time, "10:00", "10:00:00", ["10:00", "10:00:00"], id="time"),
    pytest.param("{value}", bool, "true", "True", ["true"], id="bool"),
    pytest.param("{value}", bool, "on", "True", ["on", "true"], id="bool in another spelling"),
    pytest.param("{value:d}", bool, "true", "1", ["1"], id="bool with a format"),
    pytest.param("{value!s}", bool, "true", "True", ["True"], id="bool with a conversion"),
    pytest.param("{value}", float, "10", "10.0", ["10", "10.0"], id="float"),
    pytest.param("{value}", int, "7", "7", ["7"], id="int"),
    pytest.param("{value}", int, "007", "7", ["007", "7"], id="int with zeros"),
    pytest.param("{value}", int, "1_0", "10", ["1_0", "10"], id="int with an underscore"),
    pytest.param("{value:d}", int, "007", "7", ["7"], id="int with a format"),
    pytest.param("{value}", UUID, SPELT, SPELT.lower(), [SPELT, SPELT.lower()], id="UUID"),
    pytest.param("{value}", Lower, "Ada", "ada", ["Ada", "ada"], id="text that is changed"),
    pytest.param("{value}", date, "2020-02-29", "2020-02-29", ["2020-02-29"], id="date"),
    pytest.param("{value:%Y/%m}", date, "2020-02-29", "2020/02", ["2020/02"], id="date with a format"),
    pytest.param(
        "{value}", datetime, "2020-02-29T12:00:00", "2020-02-29 12:00:00", ["2020-02-29T12:00:00"], id="datetime"
    ),
    pytest.param(
        "{value:%H:%M}", datetime, "2020-02-29T12:00:00", "12:00", ["12:00"], id="datetime with a format"
    ),
]


@pytest.mark.parametrize(("template", "annotation", "sent", "tag", "in_url"), TEMPLATES_OF_TYPES)
async def test_values_as_they_are_written(
    template: str, annotation: Any, sent: str, tag: str, in_url: list[str]
) -> None:
    """A value stands in a tag as an f-string writes it, and in URLs as the path had it and as paths mostly do."""

    async def asked(value: Any) -> None: ...

    asked.__annotations__["value"] = annotation
    app = FastAPI()
    app.put("/x/{value}")(invalidates(tags=["t"])(asked))
    scope = scope_of(f"/x/{sent}", method="PUT")
    plan = RouteTable(app, Fallbacks(None, None)).find(scope)
    assert plan is not None
    assert plan.fill_in([template], scope) == [tag]
    assert plan.fill_in([template], scope, str) == in_url


@pytest.mark.parametrize(
    ("annotation", "sent", "in_url"),
    [
        pytest.param(bool, "1", "true", id="bool"),
        pytest.param(Model, "alexnet", "alexnet", id="Enum"),
        pytest.param(datetime, "2020-02-29 12:00:00", "2020-02-29T12:00:00", id="datetime"),
        pytest.param(float, "10", "10.0", id="float"),
    ],
)
async def test_values_of_the_query_in_a_url(annotation: Any, sent: str, in_url: str) -> None:
    """A value that the path has not is written in a URL as paths mostly have it."""

    async def asked(value: Any) -> None: ...

    asked.__annotations__["value"] = annotation
    app = FastAPI()
    app.put("/x")(invalidates(tags=["t"])(asked))
    scope = {**scope_of("/x", method="PUT"), "query_string": f"value={sent}".encode()}
    plan = RouteTable(app, Fallbacks(None, None)).find(scope)
    assert plan is not None
    assert plan.fill_in(["{value}"], scope, str) == [in_url]


@pytest.mark.parametrize("asked", [{"urls": ["/models/{model}"]}, {"patterns": ["/models/{model}*"]}], ids=str)
async def test_url_of_an_enum(asked: dict[str, Any]) -> None:
    """A URL or pattern with an Enum in it invalidates what is stored for the value that the path has."""
    app = FastAPI()

    @app.get("/models/{model}")
    @cache(timeout=60)
    def read(model: Model) -> str:
        return model.value

    @app.post("/models/{model}/train")
    @invalidates(**asked)
    def train(model: Model) -> None: ...

    put_cache(app)
    async with client_of(app) as client:
        assert [told(await client.get("/models/alexnet")) for _ in range(2)] == ["fwd=uri-miss; stored", "hit"]
        await client.post("/models/alexnet/train")
        assert told(await client.get("/models/alexnet")) == "fwd=uri-miss; stored"


@pytest.mark.parametrize(
    "asked", [{"urls": ["/things/{thing}"]}, {"patterns": ["/things/{thing}*"]}], ids=["urls", "patterns"]
)
@pytest.mark.parametrize(
    ("annotation", "sent", "plain", "other"),
    [
        pytest.param(UUID, SPELT, SPELT.lower(), str(UUID(int=1)), id="UUID"),
        pytest.param(int, "01", "1", "2", id="int"),
    ],
)
async def test_url_in_several_spellings(
    annotation: Any, sent: str, plain: str, other: str, asked: dict[str, Any]
) -> None:
    """A URL or pattern reaches what is stored for its value as the change wrote it, and as Python writes it."""
    app = FastAPI()

    async def endpoint(thing: Any) -> str:
        return str(thing)

    endpoint.__annotations__["thing"] = annotation
    app.get("/things/{thing}")(cache(timeout=60)(_copy(endpoint)))
    app.post("/things/{thing}/touch")(invalidates(**asked)(_copy(endpoint)))
    put_cache(app)
    paths = [f"/things/{each}" for each in (sent, plain, other)]
    async with client_of(app) as client:
        for path in paths:
            await client.get(path)
        assert [told(await client.get(path)) for path in paths] == ["hit"] * 3
        assert (await client.post(f"/things/{sent}/touch")).status_code == 200
        expected = ["fwd=uri-miss; stored", "fwd=uri-miss; stored", "hit"]
        assert [told(await client.get(path)) for path in paths] == expected


VALUES_IN_A_PATH = st.one_of(
    st.text(max_size=12),
    st.integers(),
    st.floats(),
    st.uuids(),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["true", "off", "1", "0", "2020-02-30", "2020-02-29", "2020-02-29T12:00:00Z", "12:00", " 7 "]),
    st.uuids().map(str),
)
"""As they are written, or as a convertor of the route made them."""


@pytest.mark.parametrize(
    "annotation",
    [
        *[str, int, float, bool, UUID, date, datetime],
        *[Annotated[int, Path(ge=3)], Annotated[str, Path(alias="n", pattern="^[a-z]+$")]],
        *[Annotated[str, Path(validation_alias="n")], int | None, Literal["a", "1"], Decimal, bytes],
        *[Json[int], Any, Annotated[str | None, AfterValidator(lambda value: None)], int | str],
    ],
)
@given(value=VALUES_IN_A_PATH, name=st.sampled_from(["number", "n", "other"]))
def test_values_in_a_path(annotation: Any, value: Any, name: str) -> None:
    """A value from the path is what the endpoint receives, of whatever type, and invalid where it gets none."""

    async def asked(number: Any) -> None: ...

    asked.__annotations__["number"] = annotation
    dependant = get_dependant(path="/{number}/{n}", call=asked)
    received = {name: value}
    expected, errors = request_params_to_args(dependant.path_params, received)
    values = Parameters(dependant, ()).values(["number"], {}, received)
    assert repr(values) == repr(None if errors else expected)


@pytest.mark.parametrize("url", ["/x/seven", "/x/7?p=two"])
async def test_invalid_values_pass(url: str) -> None:
    """A value that does not validate passes the request by."""
    app = FastAPI()
    app.get("/x/{item}")(cache(timeout=60, tags=["{item}", "{page}"])(_copy(endpoint)))
    put_cache(app)
    async with client_of(app) as client:
        answer = await client.get(url)
    assert (answer.status_code, told(answer)) == (422, "fwd=bypass; detail=tags")


async def test_tags_of_a_mounted_path() -> None:
    """The parameters of a mount's path fill the templates of the endpoints in it."""
    endpoint = cache(timeout=60, tags=["{item}"])(_copy(plain))
    app = Starlette(routes=[Mount("/t/{tenant}", routes=[Route("/x/{item:int}", endpoint)])])
    container = put_cache(app)
    async with client_of(app) as client:
        await client.get("/t/a/x/07")
        await container.invalidation().by_tag("7")
        assert told(await client.get("/t/a/x/07")) == "fwd=uri-miss; stored"


async def test_late_tags() -> None:
    """Tags that the handler adds are as good as those known before, in ``def`` endpoints too."""
    app = FastAPI()

    @app.get("/x")
    @cache(timeout=60)
    def answer(request: Request) -> str:
        add_tags(request, "late", "later")
        return "a"

    container = put_cache(app)
    async with client_of(app) as client:
        for tag in ("late", "later"):
            await client.get("/x")
            assert told(await client.get("/x")) == "hit"
            await container.invalidation().by_tag(tag)
            assert told(await client.get("/x")) == "fwd=uri-miss; stored"


@pytest.mark.parametrize(
    ("escape", "text", "escaped"),
    [
        pytest.param(escape_for_glob, r"a*?[b]\c^", r"a\*\?\[b\]\\c^", id="glob"),
        pytest.param(escape_for_url, "a?b#c%/ü", "a%3Fb%23c%25/%C3%BC", id="url"),
    ],
)
def test_escapes(escape: Any, text: str, escaped: str) -> None:
    """A value stays data in what it becomes a part of."""
    assert escape(text) == escaped

"""A path is compared with those routes alone whose segments it has, and none that it may come to is left out."""

from __future__ import annotations

import re
import sys
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import APIRouter, FastAPI
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import BaseRoute, Host, Match, Mount, Route, Router

from app_cache import CacheMiddleware, MemoryBackend, cache, invalidates
from app_cache.routes.index import Ways
from app_cache.routes.policies import Fallbacks
from app_cache.routes.table import RouteTable
from app_cache.routes.ways import Way, match, path_for, ways_of
from tests.middleware.apps import messages_of, scope_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import FrameType

pytestmark = pytest.mark.anyio

SEGMENTS = ("a", "a", "b", "b", "A", "a.b", "a-b", "(a)", "é", "{x", "")
"""Text of templates: what means something in patterns, and what is written in several ways."""
PARAMETERS = ("{%s}", "{%s}", "{%s:int}", "{%s:float}", "{%s:path}", "a{%s}", "{%s}b", "{%s}.{%sx}")
ASKED = (*SEGMENTS, "axb", "1", "ab", "\n", "b\n")
"""Segments of paths that are asked for."""


@cache(timeout=60)
async def cached(request: Any) -> PlainTextResponse:
    """Answer, and be cached."""
    return PlainTextResponse("cached")


async def plain(request: Any) -> PlainTextResponse:
    """Answer, and say nothing of the cache."""
    return PlainTextResponse("plain")


@invalidates(urls=["/a"])
async def changing(request: Any) -> PlainTextResponse:
    """Answer, and change what others are answered."""
    return PlainTextResponse("changed")


class Unsure(Route):
    """Matches in a way of its own."""

    def matches(self, scope: Any) -> tuple[Match, Any]:
        """Return what other routes do."""
        return super().matches(scope)


@st.composite
def templates(draw: st.DrawFn, *, ends: bool = True) -> str:
    """Draw a template of a path; one that *ends* may be the whole of it."""
    pieces = draw(st.lists(st.sampled_from((*SEGMENTS, *PARAMETERS)), min_size=0 if not ends else 1, max_size=3))
    named = [piece.replace("%s", f"p{number}") for number, piece in enumerate(pieces)]
    return "".join(f"/{piece}" for piece in named)


ENDPOINTS = st.sampled_from([cached, plain, plain, changing])
METHODS = st.sampled_from([["GET"], ["POST"]])


def routes(deep: int = 2) -> st.SearchStrategy[BaseRoute]:
    """Return what draws routes, mounts and hosts, which mount others *deep* times at most."""
    kinds = st.sampled_from([*[Route] * 6, Unsure])
    ends = st.builds(
        lambda kind, path, endpoint, methods: kind(path, endpoint, methods=methods),
        *(kinds, templates(), ENDPOINTS, METHODS),
    )
    if not deep:
        return ends
    inner = st.lists(routes(deep - 1), max_size=3)
    return st.one_of(
        ends,
        st.builds(lambda path, within: Mount(path, app=Router(within)), templates(ends=False), inner),
        st.builds(lambda within: Host("test", Router(within)), inner),
    )


@st.composite
def applications(draw: st.DrawFn) -> Any:
    """Draw an application of Starlette or FastAPI."""
    if draw(st.booleans()):
        return Starlette(routes=draw(st.lists(routes(), max_size=6)))
    app = FastAPI(openapi_url=None)
    app.root_path = draw(st.sampled_from(["", "/a"]))
    for _ in range(draw(st.integers(0, 3))):
        router = APIRouter()
        for path in draw(st.lists(templates(), max_size=3)):
            router.add_api_route(path, draw(ENDPOINTS), methods=draw(METHODS), response_model=None)
        app.include_router(router, prefix=draw(st.sampled_from(["", "/a", "/a.b", "/{tenant}"])))
    app.router.routes.extend(draw(st.lists(routes(), max_size=3)))
    return app


class Unsorted(Ways):
    """Ways of which each path may come to any."""

    def that_may_match(self, path: str) -> Sequence[int]:
        """Return the places of all."""
        return range(len(self.all))


def told(found: tuple[Way | None, Mapping[str, Any], list[Way]]) -> Any:
    """Return what `match` gave, so that it can be compared."""
    way, values, others = found
    return way and way.context.endpoint, values, [each.context.original_route for each in others]


PATHS = st.builds(
    lambda start, pieces: start + "/".join(pieces),
    st.sampled_from(["/", "/", "/", ""]),
    st.lists(st.sampled_from(ASKED), max_size=4),
)


@given(applications(), st.lists(PATHS, min_size=1, max_size=8), st.sampled_from(["", "/a", "/a/b", "/é"]))
def test_no_way_is_left_out(app: Any, paths: list[str], root_path: str) -> None:
    """The way that is found is the one that is found by asking all routes, in their order (S17)."""
    for path in paths:
        scope = scope_of(path, root_path=root_path, path_params={}, headers=[(b"host", b"test")])
        assert told(match(app, ways_of, scope)) == told(
            match(app, lambda each: Unsorted(ways_of(each).all), scope)
        )
        ways, by_routes = ways_of(app), {**scope, "root_path": getattr(app, "root_path", "") or root_path}
        left_out = {*range(len(ways.all))} - {*ways.that_may_match(path_for(app, scope))}
        assert all(ways.all[place].matches(by_routes)[0] is Match.NONE for place in left_out)


@given(applications(), st.lists(PATHS, min_size=1, max_size=8))
def test_no_plan_is_left_out(app: Any, paths: list[str]) -> None:
    """A request has the plan that it has where all routes are asked."""
    table, slow = (RouteTable(app, Fallbacks(None, None)) for _ in range(2))
    slow._may_have_plan = lambda scope: True  # type: ignore[method-assign]
    for path in paths:
        for method in ("GET", "POST"):
            scope = scope_of(path, method=method, app=app, headers=[(b"host", b"test")])
            assert (table.find(scope) is None) == (slow.find(scope) is None)
            assert getattr(table.find(scope), "path_params", None) == getattr(
                slow.find(scope), "path_params", None
            )


def rewritten(pattern: str, flags: int = 0) -> Route:
    """Return a route that was given another *pattern*."""
    route = Route("/odd", plain)
    route.path_regex = re.compile(pattern, flags)
    return route


PATTERNS = [
    pytest.param(rewritten("^a/b$"), "a/b", id="without a slash"),
    pytest.param(rewritten("/a/b$"), "/a/b", id="not from the start"),
    pytest.param(rewritten("^/a/b"), "/a/bc", id="not to the end"),
    pytest.param(rewritten("^/a/c|/b$"), "/b", id="one of two"),
    pytest.param(rewritten("^/a/c(?P<x>d)|^/b$"), "/b", id="one of two with a parameter"),
    pytest.param(rewritten("^/A$", re.IGNORECASE), "/a", id="in any case"),
    pytest.param(rewritten("^/ a $", re.VERBOSE), "/a", id="with blanks"),
    pytest.param(rewritten("^/a/?$"), "/a", id="with a slash or not"),
    pytest.param(rewritten("^/a/b?(?P<x>.*)$"), "/a/c", id="with a letter or not"),
    pytest.param(rewritten("^/[ab]/(?P<x>c)$"), "/a/c", id="one of some letters"),
    pytest.param(rewritten("^/\\w/(?P<x>c)$"), "/a/c", id="any letter"),
    pytest.param(rewritten("^(?P<x>[^/]+)$"), "abc", id="a parameter without a slash"),
]


@pytest.mark.parametrize(("route", "path"), PATTERNS)
def test_patterns_of_another_kind(route: Route, path: str) -> None:
    """A route with a pattern that Starlette would not write is asked for each path (S17)."""
    assert route.path_regex.match(path)
    assert [*ways_of(Starlette(routes=[route])).that_may_match(path)] == [0]


@pytest.mark.parametrize(
    ("routes", "path", "places"),
    [
        pytest.param([Route("/a", plain), Route("/b", plain)], "/b", [1], id="text"),
        pytest.param([Route("/a", plain), Route("/b", plain)], "/b\n", [0, 1], id="a line feed at its end"),
        pytest.param([Route("/a/{b}", plain), Route("/a", plain)], "/a/b", [0], id="one that has ended"),
        pytest.param([Route("/a/{b}", plain), Route("/a", plain)], "/a", [1], id="one that goes on"),
        pytest.param([Route("/a{b}", plain), Route("/a/{b}", plain)], "/ab", [0], id="a part of a segment"),
        pytest.param([Route("/{a}/b", plain), Route("/a/b", plain)], "/a/b", [0, 1], id="a parameter first"),
        pytest.param([Route("/{a}/c", plain), Route("/{a}/b", plain)], "/a/b", [1], id="text after a parameter"),
        pytest.param([Route("/{a:path}/c", plain), Route("/b", plain)], "/a/b", [0], id="any segments"),
        pytest.param([Route("/{a:int}/c", plain), Route("/{a:float}/b", plain)], "/1/b", [1], id="numbers"),
        pytest.param([Mount("/a", Router()), Mount("/b", Router())], "/a/c", [0], id="mounts"),
        pytest.param([Host("a", Router()), Route("/b", plain)], "/a", [0], id="hosts"),
        pytest.param([Unsure("/b", plain), Route("/b", plain)], "/a", [0], id="a way of its own"),
        pytest.param([rewritten("^/a$"), Route("/b", plain)], "/b", [1], id="another pattern"),
    ],
)
def test_ways_that_a_path_may_come_to(routes: list[BaseRoute], path: str, places: list[int]) -> None:
    """A path may come to what begins as it does, as far as that is known."""
    ways = ways_of(Starlette(routes=routes))
    assert [[*ways.that_may_match(path)] for _ in range(2)] == [places] * 2


@pytest.mark.parametrize(("path", "is_found"), [("/a/b", True), ("/b", True), ("/a/a/b", False)])
def test_root_path_of_its_own(path: str, *, is_found: bool) -> None:
    """A path counts without the root path that an application puts before its routes."""
    app = FastAPI()
    app.root_path = "/a"
    app.get("/b", response_model=None)(cached)
    assert (RouteTable(app, Fallbacks(None, None)).find(scope_of(path, app=app)) is not None) == is_found


def test_unsure_what_is_changed() -> None:
    """After a route that matches in a way of its own nobody knows what runs, and whether it changes something."""
    app = Starlette(routes=[Unsure("/a", plain), Route("/b", changing)])
    plan = RouteTable(app, Fallbacks(None, None)).find(scope_of("/c", app=app))
    assert plan is not None
    assert plan.may_invalidate


@pytest.mark.parametrize("pattern", ["^/items/1$", "^/(items|things)/1$"])
async def test_pattern_of_its_own(pattern: str) -> None:
    """The pattern of a route decides what comes to it, whatever its path says (S17)."""
    app = Starlette(routes=[rewritten(pattern), Route("/items/{number}", cached)])
    wrapped = CacheMiddleware(app, MemoryBackend())
    for path, text in (("/items/1", b"plain"), ("/items/2", b"cached")):
        sent = await messages_of(wrapped, scope_of(path))
        assert sent[-1]["body"] == text
        assert (b"cache-status" in dict(sent[0]["headers"])) == (text == b"cached")


class Computed(Route):
    """Has a pattern that is worked out each time."""

    text = "^/odd$"

    @property
    def path_regex(self) -> re.Pattern[str]:
        """What is in force now."""
        return re.compile(self.text)

    @path_regex.setter
    def path_regex(self, regex: re.Pattern[str]) -> None: ...


def matching_by_itself() -> Route:
    """Return a route that was given a way of its own to match."""
    route = Route("/odd", plain)

    def matches(scope: Any) -> tuple[Match, Any]:
        return Match.FULL, {"endpoint": plain, "path_params": {}}

    route.matches = matches  # type: ignore[method-assign]
    return route


async def test_route_that_matches_by_itself() -> None:
    """A route of which one object matches in a way of its own is asked for each path (S17)."""
    routes = [matching_by_itself(), Route("/items/{number}", cached)]
    wrapped = CacheMiddleware(Starlette(routes=routes), MemoryBackend())
    for _ in range(2):
        sent = await messages_of(wrapped, scope_of("/items/1"))
        assert (sent[-1]["body"], b"cache-status" in dict(sent[0]["headers"])) == (b"plain", False)


async def test_route_that_is_rewritten_in_its_place() -> None:
    """Nothing is stored of an endpoint that answers where another one was found (S17)."""
    rewritten_later = Route("/odd", plain)
    wrapped = CacheMiddleware(
        Starlette(routes=[rewritten_later, Route("/items/{number}", cached)]), MemoryBackend()
    )
    assert b"stored" in dict((await messages_of(wrapped, scope_of("/items/1")))[0]["headers"])[b"cache-status"]
    rewritten_later.path_regex = re.compile("^/items/2$")
    for _ in range(2):
        sent = await messages_of(wrapped, scope_of("/items/2"))
        assert sent[-1]["body"] == b"plain"
        assert dict(sent[0]["headers"])[b"cache-status"].endswith(b"detail=policy")


async def test_endpoint_that_is_not_told() -> None:
    """Where middleware keeps to itself what routers find, what routers further out have left says nothing."""

    async def hiding(scope: Any, receive: Any, send: Any) -> None:
        await within({**scope}, receive, send)

    within = Starlette(routes=[Route("/items/{number}", cached)])
    hiding.routes, hiding.app = within.routes, within  # type: ignore[attr-defined]
    wrapped = CacheMiddleware(hiding, MemoryBackend())
    outer = Starlette(routes=[Mount("/in", wrapped)])
    found = [dict((await messages_of(outer, scope_of("/in/items/1")))[0]["headers"]) for _ in range(2)]
    assert [b"hit" in each[b"cache-status"] for each in found] == [False, True]


def test_pattern_that_is_worked_out() -> None:
    """A route whose pattern may be another each time is asked for each path (S17)."""
    route = Computed("/odd", plain)
    app = Starlette(routes=[route, Route("/items/{number}", cached)])
    table = RouteTable(app, Fallbacks(None, None))
    assert table.find(scope_of("/items/1", app=app)) is not None
    route.text = "^/items/2$"
    assert table.find(scope_of("/items/2", app=app)) is None


def test_what_a_mount_leads_to_is_replaced() -> None:
    """What takes the place of a mounted application is seen at the next path."""
    mount = Mount("/in", Router([Route("/{item}", plain)]))
    app = Starlette(routes=[mount])
    table = RouteTable(app, Fallbacks(None, None))
    assert table.find(scope_of("/in/1", app=app)) is None
    mount.app = Router([Route("/{item}", cached)])
    assert table.find(scope_of("/in/2", app=app)) is not None


def test_routes_that_change_while_they_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """What another thread finds of routes that have changed since is not kept (F32)."""
    within = Router([Route("/{item}", cached)])
    app = Starlette(routes=[Mount("/in", within)])
    table = RouteTable(app, Fallbacks(None, None))

    def overtaken(asked: Any) -> Ways:
        found = ways_of(asked)
        monkeypatch.undo()
        within.routes.insert(0, Route("/{item}", plain))
        assert table.find(scope_of("/other", app=app)) is None
        return found

    table.find(scope_of("/", app=app))
    monkeypatch.setattr("app_cache.routes.table.ways_of", overtaken)
    assert table.find(scope_of("/in/1", app=app)) is not None
    assert table.find(scope_of("/in/2", app=app)) is None


def asked(run: Callable[[], object]) -> int:
    """Return how many routes were asked whether they match while *run* ran."""
    count = 0

    def called(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        by = frame.f_back
        count += (
            event == "call"
            and by is not None
            and by.f_code is match.__code__
            and frame.f_code.co_name == "matches"
        )

    sys.setprofile(called)
    try:
        run()
    finally:
        sys.setprofile(None)
    return count


def of_many(number: int) -> FastAPI:
    """Return an application with the routes of *number* resources of tenants, the odd ones of them cached."""
    app, router = FastAPI(), APIRouter(prefix="/api/{tenant}")
    for each in range(number):
        endpoint = cached if each % 2 else plain
        router.add_api_route(f"/things{each}/{{item}}", endpoint, methods=["GET"], response_model=None)
    app.include_router(router)
    return app


@pytest.mark.parametrize(
    ("mounted", "number", "routes_asked"),
    [
        pytest.param(False, 498, 0, id="undecorated"),
        pytest.param(False, 499, 1, id="cached"),
        pytest.param(True, 498, 2, id="undecorated, mounted"),
        pytest.param(True, 499, 2, id="cached, mounted"),
    ],
)
def test_new_path_of_many_routes(mounted: bool, number: int, routes_asked: int) -> None:
    """For a new path no route is asked but those whose segments it has, however many there are."""
    app: Any = of_many(500)
    if mounted:
        others = [Mount(f"/in{each}", Router()) for each in range(50)]
        app = Starlette(routes=[*others, Mount("/in", app)])
    table = RouteTable(app, Fallbacks(None, None))
    path = f"{'/in' * mounted}/api/one/things{number}"
    table.find(scope_of(f"{path}/1", app=app))
    assert asked(lambda: table.find(scope_of(f"{path}/2", app=app))) == routes_asked
    assert (table.find(scope_of(f"{path}/3", app=app)) is not None) == (number == 499)


def test_long_path() -> None:
    """No more segments of a path are looked at than routes have (S32)."""
    ways = ways_of(Starlette(routes=[Route("/a/b/{rest:path}", cached), Route("/{all:path}", plain)]))
    path = "/a/b" + "/c" * 100_000
    tracemalloc.start()
    found = [*ways.that_may_match(path)]
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == [0, 1]
    assert most < 3 * len(path)


def test_mount_that_is_entered_later() -> None:
    """What is added to a mounted application is seen, though it was not looked into at first."""
    within = Starlette(routes=[Route("/{item}", cached)], middleware=[Middleware(GZipMiddleware)])
    app = Starlette(routes=[Mount("/in", within)])
    table = RouteTable(app, Fallbacks(None, None))
    assert table.find(scope_of("/in/1", app=app)) is None
    within.user_middleware.clear()
    assert table.find(scope_of("/in/2", app=app)) is not None
    within.router.routes.insert(0, Route("/{item}", plain))
    assert table.find(scope_of("/in/3", app=app)) is None

"""Guarded endpoints: their dependencies run before a stored answer is given (SPEC §3.5)."""

from __future__ import annotations

import asyncio
import inspect
import json
from functools import partial, wraps
from typing import TYPE_CHECKING, Annotated, Any

import anyio
import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, Header, HTTPException, Query, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.routing import APIRoute
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from app_cache import CacheMiddleware, CachePolicy, ConfigurationError, MemoryBackend, cache
from app_cache.guards import in_force
from app_cache.routes.table import check_routes
from tests.clients import all_blocked
from tests.middleware.apps import client_of, lasting, put_cache, told

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    import httpx

    from app_cache.testing import FakeClock

pytestmark = pytest.mark.anyio

ALICE = {"authorization": "Bearer alice"}
BOB = {"authorization": "Bearer bob"}
MALLORY = {"authorization": "Bearer mallory"}
SHARED: dict[str, Any] = {"guarded": True, "exclude_headers": ["Authorization"]}
REFUSED = "fwd=bypass; detail=guard"


class Door:
    """A dependency that lets some in, and remembers who came."""

    def __init__(self) -> None:
        self.came: list[str] = []
        self.broken = False

    async def __call__(self, request: Request) -> str:
        name = request.headers.get("authorization", "Bearer nobody").removeprefix("Bearer ")
        self.came.append(name)
        if self.broken:
            raise RuntimeError("the directory of users is away")
        if name not in ("alice", "bob"):
            raise HTTPException(403, "not you")
        return name


class Guarded:
    """An application with a guarded endpoint at ``/``."""

    def __init__(self, clock: FakeClock | None = None, **options: Any) -> None:
        self.app = FastAPI()
        self.door = Door()
        self.runs = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.failing = False

        @self.app.get("/", dependencies=[Depends(self.door)])
        @cache(timeout=60, **{**SHARED, **options})
        async def answer() -> str:
            self.runs += 1
            await self.gate.wait()
            if self.failing:
                raise RuntimeError("boom")
            return f"run {self.runs}"

        put_cache(self.app, clock)
        self.client = client_of(self.app)

    async def get(self, headers: dict[str, str], **more: str) -> httpx.Response:
        """Return the answer to a GET with *headers* and *more*."""
        return await self.client.get("/", headers={**headers, **more})


async def test_dependencies_run_on_a_hit() -> None:
    """A hit runs the dependencies and not the endpoint."""
    app = Guarded()
    answers = [await app.get(who) for who in (ALICE, BOB, BOB)]
    assert [told(each) for each in answers] == ["fwd=uri-miss; stored", "hit", "hit"]
    assert [each.text for each in answers] == ['"run 1"'] * 3
    assert app.door.came == ["alice", "bob", "bob"]


@pytest.mark.parametrize(
    "more", [{}, {"if-none-match": "*"}, {"range": "bytes=0-1"}, {"cache-control": "max-stale"}]
)
async def test_who_is_not_let_in(more: dict[str, str]) -> None:
    """Whom a dependency refuses gets its refusal and nothing of what is stored, however he asks (S1)."""
    app = Guarded()
    await app.get(ALICE)
    answer = await app.get(MALLORY, **more)
    assert (answer.status_code, answer.json(), told(answer)) == (403, {"detail": "not you"}, REFUSED)
    assert "etag" not in answer.headers
    assert told(await app.get(BOB)) == "hit"


async def test_a_refusal_is_not_stored() -> None:
    """A refusal answers nobody else, though its status may be stored."""
    app = Guarded(statuses=[403])
    refused = await app.get(MALLORY)
    assert (refused.status_code, told(refused)) == (403, "fwd=uri-miss; detail=guard")
    assert (await app.get(ALICE)).status_code == 200


async def test_many_at_once() -> None:
    """Of many at once, those who are let in get the answer of one run, and each is asked by the dependencies."""
    app = Guarded()
    app.gate.clear()
    async with anyio.create_task_group() as tasks:
        answers: list[httpx.Response] = []

        async def ask(who: dict[str, str]) -> None:
            answers.append(await app.get(who))

        for who in [ALICE, MALLORY] * 20:
            tasks.start_soon(ask, who)
        await all_blocked()
        app.gate.set()
    assert sorted(each.status_code for each in answers) == [200] * 20 + [403] * 20
    assert app.runs == 1
    assert sorted(app.door.came) == ["alice"] * 20 + ["mallory"] * 20


@pytest.mark.parametrize("broken", [False, True], ids=["refused", "raised"])
async def test_a_refused_leader(*, broken: bool) -> None:
    """Who waits for a run whose own request is not let in begins anew, and others still wait for each other."""
    app = Guarded()
    refused = asyncio.Event()
    held, come = app.door, asyncio.Event()

    async def slow(request: Request) -> None:
        if request.headers["authorization"] == MALLORY["authorization"]:
            come.set()
            await refused.wait()
            if broken:
                raise RuntimeError("the directory of users is away")
        await held(request)

    app.app.dependency_overrides[app.door] = slow
    async with anyio.create_task_group() as tasks:
        answers: list[httpx.Response] = []

        async def ask(who: dict[str, str]) -> None:
            answers.append(await app.get(who))

        tasks.start_soon(ask, MALLORY)
        await come.wait()
        app.gate.clear()
        for _ in range(10):
            tasks.start_soon(ask, ALICE)
        await all_blocked()
        refused.set()
        await all_blocked()
        app.gate.set()
    assert sorted(each.status_code for each in answers) == [200] * 10 + [500 if broken else 403]
    assert app.runs == 1


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        pytest.param("GET", {}, id="cached"),
        pytest.param("GET", {"cache-control": "no-store"}, id="passed by"),
        pytest.param("POST", {}, id="not cached"),
    ],
)
async def test_a_guard_that_asks_a_guarded_endpoint(method: str, fields: dict[str, str]) -> None:
    """What a dependency asks of another guarded endpoint of the application is that one's answer."""
    app, told_by_inner = FastAPI(), list[str]()

    @app.api_route("/inner", methods=["GET", "POST"], dependencies=[Depends(lambda: None)])
    @cache(timeout=60, guarded=True)
    async def inner() -> str:
        return "inner"

    async def door() -> None:
        told_by_inner.append((await client_of(app).request(method, "/inner", headers=fields)).json())

    @app.get("/", dependencies=[Depends(door)])
    @cache(timeout=60, guarded=True)
    async def outer() -> str:
        return "outer"

    put_cache(app)
    async with client_of(app) as client:
        answers = [await client.get("/") for _ in range(2)]
    assert [(answer.json(), told(answer)) for answer in answers] == [
        ("outer", "fwd=uri-miss; stored"),
        ("outer", "hit"),
    ]
    assert told_by_inner == ["inner"] * 2


async def test_no_guard_outlives_its_request() -> None:
    """After a request, a hit or not, nothing asks its guard any more."""
    app = Guarded()
    for _ in range(2):
        await app.get(ALICE)
        assert in_force.get() is None


async def test_many_who_are_refused() -> None:
    """Who has waited for a few runs whose own requests are refused goes alone."""
    app = Guarded()
    held, at_the_door = app.door, list[asyncio.Event]()

    async def slow(request: Request) -> None:
        at_the_door.append(called := asyncio.Event())
        await called.wait()
        await held(request)

    app.app.dependency_overrides[app.door] = slow
    asked = [asyncio.create_task(app.get(MALLORY)) for _ in range(10)]
    together = []
    await all_blocked()
    while at_the_door:
        together.append(len(at_the_door))
        while at_the_door:
            at_the_door.pop().set()
        await all_blocked()
    assert [(await each).status_code for each in asked] == [403] * 10
    assert together == [1, 1, 1, 1, 6]


async def test_a_guard_that_fails_is_not_rescued(clock: FakeClock) -> None:
    """A stale answer stands in for an endpoint that fails, and not for a dependency that does."""
    app = Guarded(clock, stale_if_error=60)
    await app.get(ALICE)
    clock.advance(61)
    app.door.broken = True
    assert (await app.get(ALICE)).status_code == 500
    app.door.broken, app.failing = False, True
    rescued = await app.get(ALICE)
    assert (rescued.text, told(rescued)) == ('"run 1"', "fwd=stale; fwd-status=500")
    assert (await app.get(MALLORY)).status_code == 403


async def test_a_failure_that_was_waited_for() -> None:
    """Who waits for a run that fails is asked by the dependencies before he gets the failure."""
    app = Guarded()
    app.gate.clear()
    app.failing = True
    async with anyio.create_task_group() as tasks:
        statuses: list[int] = []

        async def ask(who: dict[str, str]) -> None:
            statuses.append((await app.get(who)).status_code)

        tasks.start_soon(ask, ALICE)
        await all_blocked()
        for who in (BOB, MALLORY):
            tasks.start_soon(ask, who)
        await all_blocked()
        app.gate.set()
    assert sorted(statuses) == [403, 500, 500]


async def test_refresh_in_the_background(clock: FakeClock) -> None:
    """A stale answer is fetched anew for who is let in, and not for who is not."""
    app = Guarded(clock, stale_while_revalidate=60)
    await app.get(ALICE)
    clock.advance(61)
    await app.get(MALLORY)
    await all_blocked()
    assert app.runs == 1
    assert told(await app.get(ALICE)) == "hit"
    await all_blocked()
    assert (app.runs, (await app.get(ALICE)).text) == (2, '"run 2"')


async def test_refresh_of_a_mounted_endpoint(clock: FakeClock) -> None:
    """What is fetched anew in the background comes from the endpoint itself, not from one of the parent's."""
    app, mounted, runs = FastAPI(), FastAPI(), list[str]()

    for each, name in ((app, "parent"), (mounted, "mounted")):

        @each.get("/x", dependencies=[Depends(lambda: None)])
        @cache(timeout=30, guarded=True, stale_while_revalidate=60)
        async def read(name: str = name) -> str:
            runs.append(name)
            return name

    app.mount("/m", mounted)
    put_cache(app, clock)
    async with client_of(app) as client:
        for _ in range(4):
            assert (await client.get("/m/x")).json() == "mounted"
            await all_blocked()
            clock.advance(40)
    assert runs == ["mounted"] * 4


class Enveloped(APIRoute):
    """Wraps what its endpoints answer."""

    def get_route_handler(self) -> Any:
        """Return what handles a request."""
        handle = super().get_route_handler()

        async def wrap(request: Request) -> Response:
            response = await handle(request)
            return JSONResponse(
                {"data": json.loads(bytes(response.body))}, response.status_code, {"x-wrapped": "yes"}
            )

        return wrap


async def test_a_route_class_that_looks_at_the_answer() -> None:
    """A hit of a route whose class makes an answer of what the endpoint gave is that answer, made once."""
    app, door = FastAPI(), Door()
    router = APIRouter(route_class=Enveloped, dependencies=[Depends(door)])
    router.get("/")(cache(timeout=60, **SHARED)(lambda: "text"))
    app.include_router(router)
    put_cache(app)
    async with client_of(app) as client:
        first, second = [await client.get("/", headers=who) for who in (ALICE, BOB)]
        refused = await client.get("/", headers=MALLORY)
    assert lasting(first) == lasting(second)
    assert (second.json(), told(second)) == ({"data": "text"}, "hit")
    assert (refused.status_code, told(refused)) == (403, REFUSED)


async def test_middleware_inside_the_cache() -> None:
    """What middleware inside the cache makes of an answer it makes once, for hits, a 304 and a part too."""
    app, door = FastAPI(), Door()
    app.get("/", dependencies=[Depends(door)])(cache(timeout=60, **SHARED)(lambda: "text"))

    @app.middleware("http")
    async def name_it(request: Request, call_next: Any) -> Any:
        response = await call_next(request)
        response.headers.append("x-passed", "once")
        return response

    async with client_of(CacheMiddleware(app, MemoryBackend()), headers=ALICE) as client:
        tag = (await client.get("/")).headers["etag"]
        for fields in ({}, {"range": "bytes=0-1"}, {"if-none-match": tag}):
            answer = await client.get("/", headers=fields)
            assert answer.headers.get_list("x-passed") == ["once"]
            assert told(answer) == "hit"


async def test_a_dependency_that_fails_at_its_end() -> None:
    """Whom a dependency lets in, and then fails after the endpoint, gets the failure, on a hit too."""
    app = FastAPI()
    failing = False

    async def door() -> AsyncIterator[None]:
        yield
        if failing:
            raise HTTPException(409, "changed meanwhile")

    app.get("/", dependencies=[Depends(door, scope="function")])(cache(timeout=60, guarded=True)(lambda: "text"))
    put_cache(app)
    async with client_of(app) as client:
        assert [told(await client.get("/")) for _ in range(2)] == ["fwd=uri-miss; stored", "hit"]
        failing = True
        answer = await client.get("/")
    assert (answer.status_code, told(answer)) == (409, REFUSED)


@pytest.mark.parametrize("options", [{}, {"stale_if_error": 60}])
async def test_head_of_who_is_not_let_in(options: dict[str, Any]) -> None:
    """What answers the HEAD of whom a dependency refuses, with 200 too, says nothing of what is stored."""
    app, door = FastAPI(), Door()
    app.exception_handler(HTTPException)(lambda *_: PlainTextResponse("please log in"))
    app.api_route("/", methods=["GET", "HEAD"], dependencies=[Depends(door)])(
        cache(timeout=60, **SHARED, **options)(lambda: "text")
    )
    put_cache(app)
    async with client_of(app) as client:
        await client.get("/", headers=ALICE)
        refused = await client.head("/", headers={**MALLORY, "cache-control": "no-cache"})
        assert refused.headers["content-length"] == str(len("please log in"))
        assert told(await client.get("/", headers=BOB)) == "hit"


async def test_head_and_conditions() -> None:
    """HEAD and conditional requests of who is let in are answered as ever."""
    app, door = FastAPI(), Door()
    app.api_route("/", methods=["GET", "HEAD"], dependencies=[Depends(door)])(cache(**SHARED)(lambda: "text"))
    put_cache(app)
    async with client_of(app, headers=ALICE) as client:
        tag = (await client.get("/")).headers["etag"]
        head = await client.head("/")
        assert (head.status_code, head.content, told(head)) == (200, b"", "hit")
        assert (await client.get("/", headers={"if-none-match": tag})).status_code == 304
        assert (await client.head("/", headers=MALLORY)).status_code == 403


ran: list[str] = []


async def endpoint_async() -> str:
    """Answer."""
    ran.append("async")
    return "text"


def endpoint_sync() -> str:
    """Answer from a thread."""
    ran.append("sync")
    return "text"


class CallableAsync:
    async def __call__(self) -> str:
        ran.append("object")
        return "text"


class CallableSync:
    def __call__(self) -> str:
        ran.append("object")
        return "text"


def awaited(function: Any) -> Any:
    """Return *function* in a decorator that is awaited, whatever it decorates."""

    @wraps(function)
    async def around(*values: Any, **named: Any) -> Any:
        given = function(*values, **named)
        return await given if inspect.isawaitable(given) else given

    return around


def handed_on(function: Any) -> Any:
    """Return *function* in a decorator that hands on what it gives, awaitable or not."""

    @wraps(function)
    def around(*values: Any, **named: Any) -> Any:
        return function(*values, **named)

    return around


class CallableDecorated:
    @handed_on
    async def __call__(self) -> str:
        ran.append("object")
        return "text"


@pytest.mark.parametrize("nested", [0, 1, 2])
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: partial(endpoint_async), id="async"),
        pytest.param(lambda: partial(endpoint_sync), id="sync"),
        pytest.param(CallableAsync, id="callable object"),
        pytest.param(CallableSync, id="callable object, sync"),
        pytest.param(lambda: awaited(endpoint_sync), id="sync in an async decorator"),
        pytest.param(lambda: handed_on(endpoint_async), id="async in a sync decorator"),
        pytest.param(lambda: partial(awaited(endpoint_sync)), id="partial of a decorator"),
        pytest.param(CallableDecorated, id="callable object with a decorator"),
    ],
)
async def test_kinds_of_endpoints(make: Any, nested: int) -> None:
    """An endpoint of any kind is guarded, on the application and in routers, by those of the routers too."""
    ran.clear()
    door, app, router = Door(), FastAPI(), APIRouter(dependencies=[Depends(Door())])
    target: Any = app if nested == 0 else router
    target.get("/", dependencies=[Depends(door)] if nested == 0 else [])(cache(**SHARED)(make()))
    if nested == 2:
        middle = APIRouter()
        middle.include_router(router, dependencies=[Depends(door)])
        router = middle
    if nested:
        app.include_router(router, dependencies=[Depends(door)] if nested == 1 else [])
    put_cache(app)
    async with client_of(app) as client:
        said = [told(await client.get("/", headers=who)) for who in (ALICE, BOB, MALLORY)]
    assert said == ["fwd=uri-miss; stored", "hit", REFUSED]
    assert len(ran) == 1
    assert door.came == ["alice", "bob", "mallory"]


async def test_what_dependencies_leave_behind() -> None:
    """On a hit, dependencies with an exit are left, and their background tasks run."""
    app = FastAPI()
    left: list[str] = []

    async def opened(tasks: BackgroundTasks) -> AsyncIterator[None]:
        tasks.add_task(left.append, "task")
        yield
        left.append("exit")

    @app.get("/", dependencies=[Depends(opened)])
    @cache(guarded=True)
    async def answer() -> str:
        left.append("endpoint")
        return "text"

    put_cache(app)
    async with client_of(app) as client:
        await client.get("/")
        miss, left[:] = sorted(left), []
        assert told(await client.get("/")) == "hit"
    assert (miss, sorted(left)) == (["endpoint", "exit", "task"], ["exit", "task"])


async def test_values_that_do_not_validate() -> None:
    """What the endpoint's parameters refuse is refused on a hit too."""
    app = FastAPI()

    @app.get("/", dependencies=[Depends(lambda: None)])
    @cache(guarded=True, exclude_query=["limit"])
    async def answer(limit: Annotated[int, Query(le=9)] = 1) -> str:
        return "text"

    put_cache(app)
    async with client_of(app) as client:
        await client.get("/?limit=1")
        assert told(await client.get("/?limit=2")) == "hit"
        assert (await client.get("/?limit=10")).status_code == 422


async def test_keys_of_an_api() -> None:
    """A header that a dependency reads joins the key unless it is excluded, and is judged on each request."""
    app = FastAPI()

    def admitted(x_api_key: Annotated[str, Header()]) -> None:
        if x_api_key not in ("a", "b"):
            raise HTTPException(401)

    app.get("/", dependencies=[Depends(admitted)])(
        cache(guarded=True, exclude_headers=["X-API-Key"])(lambda: "text")
    )
    put_cache(app)
    async with client_of(app) as client:
        said = [told(await client.get("/", headers={"x-api-key": key})) for key in ("a", "b", "c")]
    assert said == ["fwd=uri-miss; stored", "hit", REFUSED]


async def test_a_cached_search_by_post() -> None:
    """The content of a POST that is cached by it reaches the dependencies of a hit."""
    app, seen = FastAPI(), []

    async def reads(request: Request) -> None:
        seen.append(await request.body())

    @app.post("/", dependencies=[Depends(reads)])
    @cache(guarded=True)
    async def find(question: dict[str, int]) -> dict[str, int]:
        return question

    put_cache(app)
    async with client_of(app) as client:
        for expected in ("fwd=uri-miss; stored", "hit"):
            answer = await client.post("/", json={"a": 1})
            assert (answer.json(), told(answer)) == ({"a": 1}, expected)
    assert seen == [b'{"a":1}'] * 2


async def test_guarded_by_path() -> None:
    """A guarded policy by path guards the endpoints of FastAPI, and caches no others."""
    door, app = Door(), FastAPI(routes=[Route("/plain", lambda request: PlainTextResponse("text"))])
    app.get("/", dependencies=[Depends(door)])(lambda: "text")
    policy = CachePolicy(guarded=True, exclude_headers=("authorization",))
    put_cache(app, policies={"/*": policy})
    async with client_of(app) as client:
        said = [told(await client.get("/", headers=who)) for who in (ALICE, BOB, MALLORY)]
        plain = told(await client.get("/plain"))
    assert (said, plain) == (["fwd=uri-miss; stored", "hit", REFUSED], None)


async def test_nothing_that_guards_by_path() -> None:
    """What has no dependency to run is not cached by a guarded policy by path: who is let in is not known."""
    app = FastAPI()
    app.get("/")(lambda: "text")
    put_cache(app, default_policy=CachePolicy(guarded=True))
    async with client_of(app) as client:
        assert [told(await client.get("/")) for _ in range(2)] == [None, None]


async def test_what_nobody_knows_by_path() -> None:
    """An application behind middleware of its own is let alone by a guarded policy by path: nobody waits there."""
    inner, app = FastAPI(middleware=[Middleware(CORSMiddleware)]), FastAPI()
    all_there = asyncio.Barrier(2)

    async def answer() -> str:
        async with asyncio.timeout(5):
            await all_there.wait()
        return "text"

    inner.get("/", dependencies=[Depends(Door())])(answer)
    app.mount("/inner", inner)
    put_cache(app, default_policy=CachePolicy(guarded=True))
    async with client_of(app) as client:
        both = await asyncio.gather(*(client.get("/inner/", headers=ALICE) for _ in range(2)))
    assert [(each.status_code, told(each)) for each in both] == [(200, None)] * 2


async def test_what_cannot_be_guarded() -> None:
    """Guarding a route without dependencies, or a stream, is an error that names it."""
    plain = Starlette(routes=[Route("/", cache(guarded=True)(lambda request: PlainTextResponse("text")))])
    put_cache(plain)
    alone, stream = FastAPI(), FastAPI(dependencies=[Depends(Door())])
    alone.get("/")(cache(guarded=True)(lambda request: PlainTextResponse("text")))
    put_cache(alone)

    @stream.get("/", response_class=StreamingResponse)
    @cache(guarded=True)
    def parts() -> Iterator[str]:
        yield "a"

    put_cache(stream)
    for app, message in ((plain, "guarded=True on"), (alone, "has a dependency"), (stream, "is a generator")):
        with pytest.raises(ConfigurationError, match=message):
            async with app.router.lifespan_context(app):
                pass


async def test_routes_that_are_checked() -> None:
    """To check routes changes nothing of them: an endpoint asks its guard from its first request on."""
    app = FastAPI()
    app.get("/", dependencies=[Depends(Door())])(cache(**SHARED)(lambda: "text"))
    put_cache(app)
    route = app.routes[-1]
    assert isinstance(route, APIRoute)
    check_routes(app)
    assert route.dependant.call is route.endpoint
    async with client_of(app) as client:
        await client.get("/", headers=ALICE)
    assert route.dependant.call is not route.endpoint


async def test_requests_that_are_passed_by() -> None:
    """A request that the cache passes by reaches the endpoint through its dependencies, once."""
    app = Guarded()
    await app.get(ALICE)
    answer = await app.get(ALICE, **{"cache-control": "no-store"})
    assert (answer.text, app.door.came) == ('"run 2"', ["alice", "alice"])


async def test_a_response_of_the_endpoints_own() -> None:
    """An answer that the endpoint made as a Response is given as it was stored."""
    app = FastAPI()

    @app.get("/", dependencies=[Depends(lambda: None)])
    @cache(guarded=True)
    def answer() -> Response:
        return Response("text", 201, headers={"x-a": "1", "cache-control": "max-age=9"})

    put_cache(app)
    async with client_of(app) as client:
        for expected in ("fwd=uri-miss; stored", "hit"):
            given = await client.get("/")
            assert (given.status_code, given.text, given.headers["x-a"], told(given)) == (
                201,
                "text",
                "1",
                expected,
            )

"""The protocol answers only where nothing of the user's stands between it and the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI, Request, Response
from opentelemetry import trace
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from app_cache import CacheMiddleware, CachePolicy, MemoryBackend, cache
from containers import CacheContainer, install
from tests.server.apps import Shop, text, wrapped
from tests.server.rig import Unserved, get

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.anyio

ITEM = get("/items/7")
ALLOWED = get("/items/7", "X-Token: right")


class Auth:
    """A middleware that lets in who has the token."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and (b"x-token", b"right") not in scope["headers"]:
            await PlainTextResponse("who are you?", 401)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


class OwnCall(FastAPI):
    """An application that does something itself for each request."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await super().__call__(scope, receive, send)


class OwnCache(CacheMiddleware):
    """A cache that does something itself for each request."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await super().__call__(scope, receive, send)


class OwnErrors(ServerErrorMiddleware):
    """A middleware that stands where a known one could."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await super().__call__(scope, receive, send)


async def item_text(_: Request) -> PlainTextResponse:
    """Answer with a text."""
    return PlainTextResponse("item")


async def pass_on(request: Request, call_next: Any) -> Any:
    """Do nothing but pass on."""
    return await call_next(request)


def installed(app: Any = None, *layers: Any, **options: Any) -> Any:
    """Return an application on which the cache is installed, with middleware around that."""
    app = app or FastAPI()

    async def item(request: Request) -> Response:
        return PlainTextResponse("item", headers={"content-length": "4"})

    app.router.routes.append(Route("/items/{number}", cache(timeout=60)(item)))
    install(app, CacheContainer(backend=MemoryBackend()), **options)
    for layer, of_layer in layers:
        app.add_middleware(layer, **of_layer)
    return app


def mounted() -> Any:
    """Return an application in which one with a cache is mounted, behind a middleware."""
    app = Starlette(routes=[Mount("/", installed())])
    app.add_middleware(Auth)
    return app


def mounted_without() -> Any:
    """Return an application in which one with a cache is mounted, and nothing else."""
    return Starlette(routes=[Mount("/", installed())])


def added(*layers: Any) -> Any:
    """Return an application to which the cache was added, with middleware inside and outside of it."""
    app = Starlette(routes=[Route("/items/{number}", item_text)])
    for layer in layers:
        app.add_middleware(layer)
    app.add_middleware(CacheMiddleware, backend=MemoryBackend(), default_policy=CachePolicy(timeout=60))
    return app


async def answered(app: Any, request: bytes = ALLOWED, **options: Any) -> int:
    """Return how many of six answers the protocol gave."""
    server = Unserved(app, **options)
    line = server.connected()
    for _ in range(6):
        assert (await line.ask(request)).status == 200
    return server.answered


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: wrapped(), id="around"),
        pytest.param(lambda: wrapped(Auth(text)), id="around a middleware"),
        pytest.param(lambda: installed(), id="install"),
        pytest.param(lambda: installed(Starlette()), id="Starlette"),
        pytest.param(lambda: installed(type("Own", (FastAPI,), {})()), id="subclass"),
        pytest.param(lambda: installed(FastAPI(debug=True)), id="debug"),
        pytest.param(lambda: installed(FastAPI(max_body_size=1000)), id="limit of bodies"),
        pytest.param(lambda: installed(Starlette(max_body_size=1000)), id="limit of bodies in Starlette"),
        pytest.param(lambda: added(), id="add_middleware"),
        pytest.param(lambda: added(Auth), id="add_middleware outside of others"),
    ],
)
@pytest.mark.parametrize("proxy_headers", [True, False])
async def test_that_counts(make: Callable[[], Any], *, proxy_headers: bool) -> None:
    """Where the cache comes first, from the third request on the protocol answers."""
    assert await answered(make(), proxy_headers=proxy_headers) == 4


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: Auth(wrapped()), id="authentication around"),
        pytest.param(lambda: Auth(installed()), id="authentication around an application"),
        pytest.param(lambda: ServerErrorMiddleware(OwnErrors(wrapped())), id="around, in one that is known"),
        pytest.param(lambda: installed(None, (Auth, {})), id="authentication"),
        pytest.param(lambda: installed(None, (BaseHTTPMiddleware, {"dispatch": pass_on})), id="function"),
        pytest.param(lambda: installed(None, (CORSMiddleware, {"allow_origins": ["*"]})), id="CORS"),
        pytest.param(lambda: installed(None, (GZipMiddleware, {})), id="gzip"),
        pytest.param(lambda: installed(None, (OwnErrors, {})), id="subclass of one that is known"),
        pytest.param(lambda: installed(OwnCall()), id="own __call__"),
        pytest.param(lambda: OwnCache(text, MemoryBackend(), default_policy=CachePolicy(timeout=60)), id="cache"),
        pytest.param(mounted, id="mounted behind a middleware"),
        pytest.param(mounted_without, id="mounted"),
    ],
)
async def test_that_does_not_count(make: Callable[[], Any]) -> None:
    """Where anything of the user's comes first, each request goes through it."""
    assert await answered(make()) == 0


@pytest.mark.parametrize(
    ("make", "outside"),
    [
        pytest.param(
            lambda: installed(None, (CORSMiddleware, {"allow_origins": ["*"]})),
            "starlette.middleware.cors.CORSMiddleware",
            id="middleware",
        ),
        pytest.param(lambda: Auth(wrapped()), "tests.server.test_front.Auth", id="around"),
        pytest.param(lambda: installed(), None, id="nothing"),
    ],
)
async def test_what_stands_outside_is_said(
    make: Callable[[], Any], outside: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """That the protocol stands back, and for what, is said in the log, once."""
    caplog.set_level("INFO", "app_cache")
    await answered(make())
    said = [line for line in caplog.messages if line.startswith("server.")]
    assert said == ([] if outside is None else [f"server.stands_back outside={outside}"])


async def test_authentication_is_asked_each_time() -> None:
    """Who has no token gets nothing of what others got with theirs."""
    line = Unserved(installed(None, (Auth, {}))).connected()
    for _ in range(5):
        assert (await line.ask(ALLOWED)).status == 200
        assert (await line.ask(ITEM)).status == 401


async def test_trace_log(caplog: pytest.LogCaptureFixture) -> None:
    """Where uvicorn logs each message of ASGI, each request goes through it."""
    caplog.set_level(5, "uvicorn.asgi")
    caplog.set_level(5, "uvicorn.error")
    assert await answered(wrapped()) == 0


@pytest.mark.parametrize(
    ("kind", "app"),
    [
        pytest.param(Starlette, installed(), id="Starlette, under FastAPI"),
        pytest.param(FastAPI, installed(), id="FastAPI"),
        pytest.param(ServerErrorMiddleware, installed(), id="layer"),
        pytest.param(CacheMiddleware, wrapped(), id="cache"),
    ],
)
async def test_methods_that_were_replaced(monkeypatch: pytest.MonkeyPatch, kind: Any, app: Any) -> None:
    """What another package put in the place of a method, to observe requests, sees each of them."""
    seen = []
    own = kind.__call__

    async def observed(self: Any, scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["path"])
        await own(self, scope, receive, send)

    monkeypatch.setattr(kind, "__call__", observed)
    assert await answered(app) == 0
    assert len(seen) == 6


class Proxied:
    """What stands for a function, and looks as if it were that."""

    def __init__(self, function: Any) -> None:
        self._function = function
        self.__globals__ = function.__globals__

    def __get__(self, instance: Any, owner: Any) -> Any:
        return self._function.__get__(instance, owner)

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)


async def test_method_that_was_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """An object in the place of a method is not taken for that, whatever it says of itself."""
    monkeypatch.setattr(ServerErrorMiddleware, "__call__", Proxied(vars(ServerErrorMiddleware)["__call__"]))
    assert await answered(installed()) == 0


async def test_telemetry() -> None:
    """Where FastAPI tells OpenTelemetry of each request, it is told of each."""

    class Provider(trace.TracerProvider):
        def get_tracer(self, *args: Any, **options: Any) -> trace.Tracer:
            return trace.NoOpTracer()

    app = installed(FastAPI(telemetry={"tracer_provider": Provider()}))
    assert await answered(app) == 0
    assert await answered(ServerErrorMiddleware(app)) == 0


async def test_told_by_front() -> None:
    """With ``front=True`` hits are given without what stands outside, which runs for the first ones alone."""
    seen = []

    async def look(request: Request, call_next: Any) -> Any:
        seen.append(request.url.path)
        return await call_next(request)

    app = installed(None, (BaseHTTPMiddleware, {"dispatch": look}), front=True)
    assert await answered(app) == 4
    assert len(seen) == 2
    seen.clear()
    app = installed(None, (BaseHTTPMiddleware, {"dispatch": look}), front=True)
    assert await answered(Auth(app)) == 0, "what is around the application was not meant"


async def test_requests_within_a_request() -> None:
    """What a middleware asks for beside a request is not taken for the answer to that."""

    class AsksForMore(Auth):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            async def nowhere(message: Any) -> None: ...

            await self.app({**scope, "path": "/other", "raw_path": b"/other"}, receive, nowhere)
            await self.app(scope, receive, send)

    app = AsksForMore(None)
    app.app = wrapped(text, front=app)
    line = Unserved(app).connected()
    assert [(await line.ask(get("/this"))).body for _ in range(6)] == [b"/this"] * 6
    assert line.protocol.answered == 4


async def test_front_of_a_middleware() -> None:
    """A middleware that was added says by ``front=app`` the same."""
    app = Starlette(routes=[Route("/items/{number}", item_text)])
    policy = CachePolicy(timeout=60)
    app.add_middleware(CacheMiddleware, backend=MemoryBackend(), default_policy=policy, front=app)
    app.add_middleware(Auth)
    assert await answered(app) == 4


async def test_stack_that_changes() -> None:
    """When something comes to stand outside of the cache in a running application, it is seen within a second."""
    shop = Shop()
    server = Unserved(shop.app)
    line = server.connected()
    await line.learn(ITEM)
    shop.app.middleware_stack = Auth(shop.app.middleware_stack)
    server.state.default_headers = [*server.state.default_headers]  # as uvicorn does each second
    for _ in range(3):
        assert (await line.ask(ITEM)).status == 401


async def test_no_slot_for_what_does_not_count() -> None:
    """Where offers do not count, they are asked for once a second, so that others pay nothing for them."""
    slots = []

    class Looks(Auth):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            slots.append("extensions" in scope)
            await self.app(scope, receive, send)

    server = Unserved(installed(None, (Looks, {})))
    line = server.connected()
    for _ in range(6):
        await line.ask(ITEM)
    server.state.default_headers = [*server.state.default_headers]
    for _ in range(2):
        await line.ask(ITEM)
    assert slots == [True, True, False, False, False, False, True, False]

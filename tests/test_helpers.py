"""The backend for code that has no request and no container at hand."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import pytest
from dependency_injector import providers
from fastapi import BackgroundTasks, FastAPI, WebSocket
from fastapi.requests import HTTPConnection
from fastapi.responses import StreamingResponse

from app_cache import (
    CacheBackend,
    CacheMiddleware,
    ConfigurationError,
    MemoryBackend,
    NotWiredError,
    cache,
    services,
)
from app_cache.fastapi import get_backend
from app_cache.helpers import create_backend_from_env, get_cache_backend
from containers import CacheContainer, install
from tests.clients import get, websocket_text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from app_cache.asgi import App, Receive, Scope, Send

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def no_other_application(monkeypatch: pytest.MonkeyPatch) -> None:
    """The applications of other tests are not known."""
    monkeypatch.setattr(services, "_installed", WeakKeyDictionary())


def asking_app(seen: list[CacheBackend]) -> FastAPI:
    """Return an application that puts into *seen* the backend that its code finds, in many places."""
    app = FastAPI()

    @app.get("/async")
    async def in_coroutine() -> None:
        seen.append(get_cache_backend())

    @app.get("/thread")
    def in_thread() -> None:
        seen.append(get_cache_backend())

    @app.get("/cached")
    @cache(timeout=60)
    async def in_fill() -> None:
        seen.append(get_cache_backend())

    @app.get("/task")
    async def in_task() -> None:
        async def task() -> None:
            seen.append(get_cache_backend())

        await asyncio.create_task(task())

    @app.get("/background")
    @cache(timeout=60)
    async def in_background(tasks: BackgroundTasks) -> None:
        tasks.add_task(lambda: seen.append(get_cache_backend()))

    @app.get("/stream")
    async def in_stream() -> StreamingResponse:
        async def body() -> AsyncIterator[str]:
            seen.append(get_cache_backend())
            yield "done"

        return StreamingResponse(body())

    @app.websocket("/websocket")
    async def in_websocket(socket: WebSocket) -> None:
        await socket.accept()
        seen.append(get_cache_backend())
        await socket.send_text("done")

    return app


class Asking:
    """Middleware that puts into *seen* the backends that it finds, without the request and with it."""

    def __init__(self, app: App, seen: list[CacheBackend]) -> None:
        self.app = app
        self.seen = seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            self.seen += [get_cache_backend(), await get_backend(HTTPConnection(scope))]
        await self.app(scope, receive, send)


def asked_in_middleware(seen: list[CacheBackend]) -> FastAPI:
    """Return an application that puts into *seen* the backends that its middleware finds, and its endpoints."""
    app = asking_app(seen)
    app.add_middleware(Asking, seen=seen)
    return app


def installed(app: FastAPI, backend: CacheBackend) -> FastAPI:
    """Return *app* with a cache in *backend*."""
    install(app, CacheContainer(backend=providers.Object(backend)))
    return app


class TestInRequests:
    @pytest.mark.parametrize("path", ["/async", "/thread", "/cached", "/task", "/background", "/stream"])
    async def test_of_the_serving_application(self, path: str) -> None:
        """Within a request it is the backend of the application that serves it, of however many there are."""
        seen: list[CacheBackend] = []
        one, two = MemoryBackend(), MemoryBackend()
        apps = installed(asking_app(seen), one), installed(asking_app(seen), two)
        for app in apps:
            await get(app, path)
        assert seen[0] is one
        assert seen[1] is two

    async def test_websocket(self) -> None:
        """Within a websocket it is that of the application that serves it."""
        seen: list[CacheBackend] = []
        one, two = MemoryBackend(), MemoryBackend()
        for app in (installed(asking_app(seen), one), installed(asking_app(seen), two)):
            await websocket_text(app, "/websocket")
        assert seen[0] is one
        assert seen[1] is two

    async def test_at_once(self) -> None:
        """Requests that run at the same time do not see each other's."""
        backends = [MemoryBackend() for _ in range(20)]
        seen: list[list[CacheBackend]] = [[] for _ in backends]
        apps = [installed(asking_app(mine), backend) for mine, backend in zip(seen, backends, strict=True)]
        await asyncio.gather(*(get(app, path) for app in apps for path in ("/task", "/thread", "/cached")))
        assert all(set(mine) == {backend} for mine, backend in zip(seen, backends, strict=True))

    async def test_mounted(self) -> None:
        """A mounted application with a cache of its own has its own, and one without that of the outer one."""
        seen: list[CacheBackend] = []
        outer, inner = MemoryBackend(), MemoryBackend()
        app = asking_app(seen)
        app.mount("/own", installed(asking_app(seen), inner))
        app.mount("/none", asking_app(seen))
        installed(app, outer)
        for path in ("/own/async", "/none/async", "/async"):
            await get(app, path)
        assert [id(backend) for backend in seen] == [id(inner), id(outer), id(outer)]

    @pytest.mark.parametrize("ask", [get, websocket_text], ids=["HTTP", "a websocket"])
    async def test_middleware_of_mounted(self, ask: Any) -> None:
        """The middleware of a mounted application finds what its endpoints find, though its cache comes later."""
        seen: list[CacheBackend] = []
        outer, inner = MemoryBackend(), MemoryBackend()
        app = FastAPI()
        app.mount("/own", own := asked_in_middleware(seen))
        own.mount("/none", asked_in_middleware(seen))
        app.mount("/none", asked_in_middleware(seen))
        installed(own, inner)
        installed(app, outer)
        path = "/async" if ask is get else "/websocket"
        await ask(app, f"/own{path}")
        assert [id(backend) for backend in seen] == [id(inner)] * 3
        seen.clear()
        await ask(app, f"/own/none{path}")
        assert [id(backend) for backend in seen] == [id(inner)] * 5
        seen.clear()
        await ask(app, f"/none{path}")
        assert [id(backend) for backend in seen] == [id(outer)] * 3

    async def test_around_an_application(self) -> None:
        """A cache around an application is the one that serves it, also where that has one of its own."""
        seen: list[CacheBackend] = []
        around = MemoryBackend()
        app = installed(asked_in_middleware(seen), MemoryBackend())
        await get(CacheMiddleware(app, around), "/async")
        assert [id(backend) for backend in seen] == [id(around)] * 3

    @pytest.mark.parametrize("kind", ["router", "application"])
    async def test_around_a_mount(self, kind: str) -> None:
        """A cache around what is mounted is the one that serves it, also where the application has one."""
        seen: list[CacheBackend] = []
        around = MemoryBackend()
        app, within = FastAPI(), asking_app(seen)
        within_it = within.router if kind == "router" else within
        app.mount("/own", CacheMiddleware(Asking(within_it, seen), around))
        installed(app, MemoryBackend())
        await get(app, "/own/async")
        assert [id(backend) for backend in seen] == [id(around)] * 3

    async def test_plain_middleware(self) -> None:
        """With ``app.add_middleware(CacheMiddleware, backend=…)`` it is that backend."""
        seen: list[CacheBackend] = []
        app, backend = asking_app(seen), MemoryBackend()
        app.add_middleware(CacheMiddleware, backend=backend)
        await get(app, "/async")
        assert seen == [backend]

    async def test_override(self) -> None:
        """It is the backend in force."""
        seen: list[CacheBackend] = []
        container, app, other = CacheContainer(), asking_app(seen), MemoryBackend()
        install(app, container)
        with container.backend.override(other):
            await get(app, "/async")
            assert get_cache_backend() is other
        assert seen == [other]


class TestOutsideRequests:
    def test_of_the_only_application(self) -> None:
        """Outside a request it is the backend of the only installed application."""
        app = installed(FastAPI(), backend := MemoryBackend())
        try:
            assert get_cache_backend() is backend
        finally:
            gc.enable()
        assert app.user_middleware

    async def test_after_a_request(self) -> None:
        """A request that has ended leaves nothing behind."""
        seen: list[CacheBackend] = []
        apps = [installed(asking_app(seen), MemoryBackend()) for _ in range(2)]
        await get(apps[0], "/async")
        with pytest.raises(NotWiredError):
            get_cache_backend()

    def test_of_none(self) -> None:
        """Where no application is installed, the error says what to call."""
        with pytest.raises(
            NotWiredError, match=r"no application has one: call install\(app, CacheContainer\(\)\)$"
        ):
            get_cache_backend()

    def test_of_several(self) -> None:
        """Where several are installed, the error says how many, and how to ask for one of them."""
        apps = [installed(FastAPI(), MemoryBackend()) for _ in range(3)]
        with pytest.raises(
            NotWiredError,
            match=r"3 applications have one: .*, ask the container elsewhere: container\.backend\(\)$",
        ):
            get_cache_backend()
        assert len(apps) == 3

    async def test_before_the_cache(self) -> None:
        """Where several are installed, middleware that stands before the cache is told how to ask for its own."""
        seen: list[CacheBackend] = []
        apps = [installed(asked_in_middleware(seen), MemoryBackend()) for _ in range(2)]
        with pytest.raises(NotWiredError, match=r"before the cache, .*await get_backend\(request\) in middleware"):
            await get(apps[0], "/async")

    def test_forgets_applications(self) -> None:
        """An application that nobody holds any more is not counted, though it was not collected yet."""
        backend = MemoryBackend()
        app = installed(FastAPI(), backend)
        gc.disable()
        installed(FastAPI(), MemoryBackend())
        try:
            assert get_cache_backend() is backend
        finally:
            gc.enable()
        assert app.user_middleware


class TestFromTheEnvironment:
    @pytest.mark.parametrize(
        ("environ", "expected"),
        [
            pytest.param({}, "MemoryBackend", id="nothing is given"),
            pytest.param({"CACHE_BACKEND": "memory"}, "MemoryBackend", id="memory"),
            pytest.param({"CACHE_BACKEND": "redis"}, "RedisBackend('redis://localhost:6379/0')", id="redis"),
            pytest.param(
                {"ENVIRONMENT": "staging"}, "RedisBackend('redis://staging-redis:6379/0')", id="an environment"
            ),
            pytest.param(
                {"ENVIRONMENT": "production", "REDIS_URL": "redis://:pw@h:1/2"},
                "RedisBackend('redis://***@h:1/2')",
                id="production",
            ),
        ],
    )
    def test_choice(self, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], expected: str) -> None:
        """The variables, given or of the process, name the backend."""
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        for backend in (create_backend_from_env(environ), create_backend_from_env()):
            assert expected in (repr(backend), type(backend).__name__)

    @pytest.mark.parametrize(
        ("environ", "message"),
        [
            pytest.param({"ENVIRONMENT": "production"}, "REDIS_URL must be given", id="no URL"),
            pytest.param({"ENVIRONMENT": "prod"}, "Unknown environment: prod", id="unknown environment"),
            pytest.param({"USE_REDIS": "maybe"}, "USE_REDIS must be true or false, not 'maybe'", id="no boolean"),
        ],
    )
    def test_wrong(self, environ: dict[str, Any], message: str) -> None:
        """A wrong variable is an error that names it."""
        with pytest.raises(ConfigurationError, match=message):
            create_backend_from_env(environ)

"""What endpoints are given: the cache of the application that serves them."""
# ruff: noqa: B008, D103 - endpoints as their authors write them

from __future__ import annotations

import warnings
from typing import Annotated, Any

import pytest
from dependency_injector import containers, providers
from dependency_injector.wiring import Provide, inject
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, Request, WebSocket
from fastapi.responses import StreamingResponse
from starlette.applications import Starlette
from starlette.requests import HTTPConnection

from app_cache import (
    CacheBackend,
    CacheMiddleware,
    CacheSettings,
    InvalidationService,
    MemoryBackend,
    NotWiredError,
    ValueCache,
    cache,
)
from app_cache.fastapi import (
    Backend,
    Cache,
    Health,
    Invalidation,
    get_backend,
    get_cache,
    get_health,
    get_invalidation,
)
from app_cache.health import HealthCheck
from containers import CacheContainer, install
from tests.clients import HIT, MISS, counting_app, get, post, told_of, websocket_text
from tests.servers import Server

pytestmark = pytest.mark.anyio

router = APIRouter()


@router.get("/depends")
async def depends(backend: Annotated[CacheBackend, Depends(get_backend)]) -> int:
    return id(backend)


@router.get("/default")
async def default(backend: CacheBackend = Depends(get_backend)) -> int:
    return id(backend)


@router.get("/alias")
async def alias(backend: Backend) -> int:
    return id(backend)


@router.get("/plain")
def plain(backend: Backend) -> int:
    return id(backend)


@router.get("/cached")
@cache(timeout=60)
async def cached(backend: Backend) -> int:
    return id(backend)


@router.post("/unsafe")
async def unsafe(backend: Backend) -> int:
    return id(backend)


@router.get("/parts")
async def parts(backend: Backend, invalidation: Invalidation, health: Health, values: Cache) -> list[bool]:
    kinds = (
        (backend, CacheBackend),
        (invalidation, InvalidationService),
        (health, HealthCheck),
        (values, ValueCache),
    )
    return [isinstance(part, kind) for part, kind in kinds]


@router.get("/value")
async def value(values: Cache) -> str:
    return await values.get_or_set("key", lambda: "made", 60)


@router.websocket("/websocket")
async def websocket(
    socket: WebSocket, backend: Backend, invalidation: Invalidation, health: Health, values: Cache
) -> None:
    await socket.accept()
    await values.set("key", "set by a websocket", 60)
    await socket.send_text(str(id(backend)))
    await socket.close()


@router.get("/streamed")
async def streamed(request: Request) -> StreamingResponse:
    async def body() -> Any:
        yield str(id(await get_backend(request)))

    return StreamingResponse(body())


def app_with(backend: CacheBackend) -> FastAPI:
    """Return an application whose container keeps to *backend*."""
    app = FastAPI()
    app.include_router(router)
    install(app, CacheContainer(backend=providers.Object(backend)))
    return app


class TestRequests:
    @pytest.mark.parametrize("path", ["/depends", "/default", "/alias", "/plain", "/cached", "/streamed"])
    async def test_backend(self, path: str) -> None:
        """An endpoint, cached or not, ``async`` or not, is given the backend of the application."""
        backend = MemoryBackend()
        assert (await get(app_with(backend), path)).json() == id(backend)

    async def test_unsafe_method(self) -> None:
        """An endpoint that changes something is given it too."""
        backend = MemoryBackend()
        assert (await post(app_with(backend), "/unsafe")).json() == id(backend)

    async def test_all_parts(self) -> None:
        """`Backend`, `Invalidation`, `Health` and `Cache` give what they are called after."""
        assert (await get(app_with(MemoryBackend()), "/parts")).json() == [True] * 4

    async def test_override(self) -> None:
        """An endpoint is given the backend in force."""
        container, app, other = CacheContainer(), FastAPI(), MemoryBackend()
        app.include_router(router)
        install(app, container)
        with container.backend.override(other):
            assert (await get(app, "/alias")).json() == id(other)
        assert (await get(app, "/alias")).json() == id(container.backend())

    async def test_values_in_force(self) -> None:
        """Values are kept in the backend in force, where code without a request finds them too."""
        container, app = CacheContainer(), FastAPI()
        app.include_router(router)
        install(app, container)
        assert (await get(app, "/value")).json() == "made"
        with container.backend.override(MemoryBackend()):
            assert await container.values().get("key", str) is None
            await container.values().set("key", "other", 60)
            assert (await get(app, "/value")).json() == "other"
        assert await container.values().get("key", str) == "made"

    async def test_websocket(self) -> None:
        """An endpoint of a websocket is given it too."""
        backend = MemoryBackend()
        assert await websocket_text(app_with(backend), "/websocket") == str(id(backend))

    async def test_two_applications(self) -> None:
        """Each application's endpoints are given their own."""
        one, two = MemoryBackend(), MemoryBackend()
        apps = app_with(one), app_with(two)
        assert [(await get(app, "/alias")).json() for app in apps] == [id(one), id(two)]

    async def test_router_of_an_included_router(self) -> None:
        """The providers work under prefixes, at any depth."""
        backend, app, outer = MemoryBackend(), FastAPI(), APIRouter(prefix="/v1")
        outer.include_router(router, prefix="/users")
        app.include_router(outer, prefix="/api")
        install(app, CacheContainer(backend=providers.Object(backend)))
        assert (await get(app, "/api/v1/users/alias")).json() == id(backend)

    async def test_background_task(self) -> None:
        """What an endpoint was given may be used by its background task."""
        app, backend = FastAPI(), MemoryBackend()

        @app.get("/later")
        @cache(timeout=60)
        async def later(backend: Backend, tasks: BackgroundTasks) -> None:
            tasks.add_task(backend.set, "later", "done", 60)

        install(app, CacheContainer(backend=providers.Object(backend)))
        await get(app, "/later")
        assert await backend.get("later") == "done"

    async def test_middleware_of_the_user(self) -> None:
        """A middleware of the user's, which stands outside the cache, may ask the providers too."""
        app, seen = app_with(backend := MemoryBackend()), []

        @app.middleware("http")
        async def ask(request: Request, call_next: Any) -> Any:
            seen.append(await get_backend(request))
            return await call_next(request)

        await get(app, "/cached")
        assert seen == [backend]


class TestDependencyOverrides:
    async def test_reaches_endpoints_alone(self) -> None:
        """An override by FastAPI's ``dependency_overrides`` reaches endpoints and never the middleware."""
        own, other = MemoryBackend(), MemoryBackend()
        app = app_with(own)
        app.dependency_overrides[get_backend] = lambda: other
        assert (await get(app, "/alias")).json() == id(other)
        assert await told_of(app, "/cached", "/cached") == [MISS, HIT]
        assert (await own.size(), await other.size()) == (1, 0)

    async def test_other_providers(self) -> None:
        """The other providers can be overridden in the same way."""
        app = FastAPI()
        seen: list[Any] = []

        @app.get("/")
        async def home(invalidation: Invalidation, health: Health) -> None:
            seen.append((invalidation, health))

        install(app, CacheContainer())
        app.dependency_overrides = {get_invalidation: lambda: "mine", get_health: lambda: "too"}
        await get(app, "/")
        assert seen == [("mine", "too")]


class TestMounts:
    async def test_without_a_container(self) -> None:
        """A mounted application without a container is given that of the application it is mounted in."""
        app, inner, backend = FastAPI(), FastAPI(), MemoryBackend()
        inner.include_router(router)
        app.mount("/inner", inner)
        install(app, CacheContainer(backend=providers.Object(backend)))
        assert (await get(app, "/inner/alias")).json() == id(backend)
        assert await websocket_text(app, "/inner/websocket") == str(id(backend))
        assert await told_of(app, "/inner/cached", "/inner/cached") == [MISS, HIT]

    async def test_with_a_container(self) -> None:
        """A mounted application with a container of its own is given its own."""
        app, backend, inner_backend = FastAPI(), MemoryBackend(), MemoryBackend()
        app.mount("/inner", app_with(inner_backend))
        app.include_router(router)
        install(app, CacheContainer(backend=providers.Object(backend)))
        assert (await get(app, "/inner/alias")).json() == id(inner_backend)
        assert (await get(app, "/alias")).json() == id(backend)

    async def test_mounted_in_one_without(self) -> None:
        """An application with a container works mounted in one that has none."""
        app, backend = Starlette(), MemoryBackend()
        app.mount("/inner", app_with(backend))
        assert (await get(app, "/inner/alias")).json() == id(backend)
        assert await told_of(app, "/inner/cached", "/inner/cached") == [MISS, HIT]


class TestPlainMiddleware:
    @pytest.mark.parametrize("path", ["/alias", "/plain", "/cached"])
    async def test_added(self, path: str) -> None:
        """With ``app.add_middleware(CacheMiddleware, backend=…)`` endpoints are given that backend."""
        app, backend = FastAPI(), MemoryBackend()
        app.include_router(router)
        app.add_middleware(CacheMiddleware, backend=backend)
        assert (await get(app, path)).json() == id(backend)

    async def test_wrapped_around(self) -> None:
        """Wrapped around a finished application it gives them too, to websockets as well."""
        app, backend = FastAPI(), MemoryBackend()
        app.include_router(router)
        wrapped = CacheMiddleware(app, backend)
        assert (await get(wrapped, "/alias")).json() == id(backend)
        assert (await get(wrapped, "/parts")).json() == [True] * 4
        assert await websocket_text(wrapped, "/websocket") == str(id(backend))
        assert (await get(wrapped, "/value")).json() == "set by a websocket"


class TestNotWired:
    @pytest.mark.parametrize("provider", [get_backend, get_invalidation, get_health, get_cache])
    @pytest.mark.parametrize("kind", ["http", "websocket"])
    async def test_says_what_to_call(self, provider: Any, kind: str) -> None:
        """Where no cache is installed, a provider says what to call."""
        connection = HTTPConnection({"type": kind, "app": FastAPI()})
        with pytest.raises(
            NotWiredError, match=r"^this application has no cache: call install\(app, CacheContainer\(\)\)$"
        ):
            await provider(connection)

    async def test_in_a_request(self) -> None:
        """The error reaches the application's error handling; it is a RuntimeError."""
        app = FastAPI()
        app.include_router(router)
        with pytest.raises(RuntimeError, match="has no cache"):
            await get(app, "/alias")

    async def test_middleware_without_a_container(self) -> None:
        """A middleware that is given something else as its container says so when it is made."""
        with pytest.raises(NotWiredError, match="not 42"):
            CacheMiddleware(counting_app(), container=42)


class WiredContainer(containers.DeclarativeContainer):
    """A container of the application's own."""

    cache = providers.Container(CacheContainer)


@router.get("/wired")
@cache(timeout=60)
@inject
async def wired(backend: CacheBackend = Depends(Provide[WiredContainer.cache.backend])) -> int:
    return id(backend)


@router.get("/wired-below")
@inject
@cache(timeout=60)
async def wired_below(backend: CacheBackend = Depends(Provide["cache.backend"])) -> int:
    return id(backend)


class TestWiring:
    @pytest.mark.parametrize("path", ["/wired", "/wired-below"])
    async def test_provide(self, path: str) -> None:
        """Who wires can inject by dependency-injector's ``Provide``, above and below ``@cache``."""
        container, app = WiredContainer(), FastAPI()
        app.include_router(router)
        install(app, container.cache)
        container.wire([__name__])
        try:
            assert (await get(app, path)).json() == id(container.cache.backend())
            assert await told_of(app, path) == [HIT]
            with container.cache.backend.override(other := MemoryBackend()):
                assert (await get(app, path)).json() == id(other)
        finally:
            container.unwire()

    async def test_needs_none(self) -> None:
        """Nothing of the package itself is wired: without any wiring all providers work."""
        app = app_with(backend := MemoryBackend())
        assert (await get(app, "/alias")).json() == id(backend)


class TestClientOfStarlette:
    @pytest.mark.parametrize("kept", ["memory", "redis"])
    def test_loop_of_its_own_for_each_request(self, kept: str, redis_server: Server) -> None:
        """Starlette's `TestClient`, which runs each request in an event loop of its own, sees hits."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from starlette.testclient import TestClient
        app = counting_app()
        install(
            app,
            CacheContainer(settings=CacheSettings({"CACHE_BACKEND": kept, "REDIS_URL": redis_server.url})),
        )
        client = TestClient(app)
        statuses = [client.get("/count").headers["cache-status"].partition(";")[2] for _ in range(3)]
        assert [each.split(";")[0].strip() for each in statuses] == ["fwd=uri-miss", "hit", "hit"]
        with client:
            assert client.get("/count").text in ("1", "2")

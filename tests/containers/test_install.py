"""How a cache gets onto an application, what it keeps of it, and when it is closed."""

from __future__ import annotations

import functools
import re
import socket
from contextlib import asynccontextmanager
from datetime import timedelta
from math import inf, nan
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from dependency_injector import containers, providers
from fastapi import FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.middleware.gzip import GZipMiddleware
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.routing import Route

from app_cache import (
    CacheMiddleware,
    CachePolicy,
    CacheSettings,
    ConfigurationError,
    KeyGenerator,
    MemoryBackend,
    NotWiredError,
    cache,
)
from app_cache.health import HealthCheck
from app_cache.invalidation import InvalidationService
from app_cache.keys import DefaultKeyGenerator
from app_cache.services import PARTS
from app_cache.store import StoredResponses
from app_cache.values import ValueCache
from containers import CacheContainer, close, install
from tests.clients import HIT, MISS, client_of, counting_app, get, told, told_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping

    App = Callable[[MutableMapping[str, Any], Any, Any], Awaitable[None]]

pytestmark = pytest.mark.anyio


class ByPath(KeyGenerator):
    """Tells requests apart by path."""

    def generate_cache_key(self, request: Request) -> str:
        return request.url.path


class Closable(MemoryBackend):
    """Says to *events* when it is closed."""

    def __init__(self, events: list[str] | None = None) -> None:
        super().__init__()
        self.events = [] if events is None else events

    async def close(self) -> None:
        self.events.append("closed")
        await super().close()


def container_of(backend: MemoryBackend) -> CacheContainer:
    """Return a container that builds *backend*."""
    return CacheContainer(backend=providers.ThreadSafeSingleton(lambda: backend))


class TestRefusals:
    @pytest.mark.parametrize(
        ("environ", "message"),
        [
            pytest.param(
                {"ENVIRONMENT": "production"}, "REDIS_URL must be given", id="production without REDIS_URL"
            ),
            pytest.param({"ENVIRONMENT": "nowhere"}, "Unknown environment: nowhere", id="unknown environment"),
            pytest.param({"CACHE_BACKEND": "disk"}, "CACHE_BACKEND must be memory or redis", id="unknown backend"),
            pytest.param({"REDIS_MAX_CONNECTIONS": "many"}, "REDIS_MAX_CONNECTIONS must be", id="no number"),
            pytest.param({"CACHE_NAMESPACE": "a b"}, "namespace must be", id="namespace with a blank"),
            pytest.param(
                {"CACHE_BACKEND": "redis", "REDIS_URL": "http://h"}, "REDIS_URL=.* cannot be used", id="wrong URL"
            ),
        ],
    )
    def test_wrong_setting(self, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], message: str) -> None:
        """A wrong variable is told when the cache is installed, and the application stays as it was."""
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        app = FastAPI()
        with pytest.raises(ConfigurationError, match=message):
            install(app, CacheContainer())
        assert app.user_middleware == []
        install(app, CacheContainer(settings=CacheSettings({})))

    def test_no_settings(self) -> None:
        """Settings that are none are told when the cache is installed."""
        with pytest.raises(ConfigurationError, match=r"^settings must be CacheSettings, .* not a dict"):
            install(FastAPI(), CacheContainer(settings={"ENVIRONMENT": "testing"}))

    def test_connects_to_nothing(self) -> None:
        """Installing a cache in Redis opens no connection, and needs no event loop."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.setblocking(False)
            environ = {"ENVIRONMENT": "production", "REDIS_URL": f"redis://127.0.0.1:{server.getsockname()[1]}"}
            install(FastAPI(), CacheContainer(settings=CacheSettings(environ)))
            with pytest.raises(BlockingIOError):
                server.accept()

    def test_twice(self) -> None:
        """A second cache on an application is refused."""
        app = FastAPI()
        install(app, CacheContainer())
        with pytest.raises(ConfigurationError, match="has a cache already"):
            install(app, CacheContainer())

    async def test_after_start(self) -> None:
        """A cache that comes after the first request is refused, as any middleware is."""
        app = counting_app()
        await get(app, "/count")
        with pytest.raises(RuntimeError, match="before the application starts"):
            install(app, CacheContainer())

    @pytest.mark.parametrize(
        ("container", "message"),
        [
            pytest.param(None, "not None", id="None"),
            pytest.param(MemoryBackend(), "not <.*MemoryBackend", id="a backend"),
            pytest.param(CacheContainer, r"not its class: CacheContainer\(\)", id="the class"),
            pytest.param(lambda: 42, "a provider of one is needed", id="a provider of something else"),
            pytest.param(containers.DynamicContainer(), "a provider of one is needed", id="another container"),
        ],
    )
    def test_no_container(self, container: Any, message: str) -> None:
        """What is no container of a cache is refused with what is needed."""
        with pytest.raises(NotWiredError, match=message):
            install(FastAPI(), container)

    @pytest.mark.parametrize(
        "app",
        [
            pytest.param(FastAPI().router, id="a router"),
            pytest.param(CacheMiddleware(FastAPI(), MemoryBackend()), id="a middleware"),
            pytest.param(None, id="None"),
        ],
    )
    def test_no_application(self, app: Any) -> None:
        """What is no application is refused with what is needed."""
        with pytest.raises(ConfigurationError, match="needs a FastAPI or Starlette application"):
            install(app, CacheContainer())

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            pytest.param({"tiemout": 3}, TypeError, "tiemout", id="no option"),
            pytest.param({"default_policy": 60}, ConfigurationError, "default_policy must be", id="policy"),
            pytest.param({"namespace": "n"}, ConfigurationError, "CACHE_NAMESPACE", id="namespace"),
            pytest.param({"backend": MemoryBackend()}, ConfigurationError, "either backend", id="backend"),
            pytest.param({"key_generator": ByPath}, ConfigurationError, "a key generator must be", id="a class"),
        ],
    )
    def test_wrong_option(self, options: dict[str, Any], error: type[Exception], message: str) -> None:
        """A wrong option is told when the cache is installed, and the application stays as it was."""
        app = FastAPI()
        with pytest.raises(error, match=message):
            install(app, CacheContainer(), **options)
        assert app.user_middleware == []
        install(app, CacheContainer())

    @pytest.mark.parametrize("backend", [42, MemoryBackend], ids=["a number", "a class"])
    def test_no_backend(self, backend: Any) -> None:
        """A container whose backend is none is refused."""
        with pytest.raises(
            ConfigurationError, match="a backend must be an instance of a subclass of CacheBackend"
        ):
            install(FastAPI(), CacheContainer(backend=providers.Object(backend)))

    @pytest.mark.parametrize(
        ("method", "written", "right"),
        [
            pytest.param("set", lambda self, key, value: None, "(key, value, timeout)", id="set without timeout"),
            pytest.param("set", lambda self, key, value, *, timeout: None, "(key, value, timeout)", id="by name"),
            pytest.param("get", lambda self: None, "(key)", id="get without key"),
            pytest.param("close", lambda self, now: None, "()", id="close that wants more"),
        ],
    )
    def test_backend_that_takes_less(self, method: str, written: Any, right: str) -> None:
        """A backend one of whose four methods cannot be called as it will be is refused, wherever it is given."""
        backend = type("Own", (MemoryBackend,), {method: written})()
        message = re.escape(f"{method} of Own must take {right}")
        with pytest.raises(ConfigurationError, match=f"^{message}$"):
            install(FastAPI(), CacheContainer(backend=providers.Object(backend)))
        with pytest.raises(ConfigurationError, match=f"^{message}$"):
            CacheMiddleware(FastAPI(), backend)

    @pytest.mark.parametrize(
        "written",
        [
            pytest.param(lambda self, *args: MemoryBackend.set(self, *args), id="anything"),
            pytest.param(
                lambda self, key, value, seconds=60: MemoryBackend.set(self, key, value, seconds), id="more"
            ),
            pytest.param(functools.partialmethod(MemoryBackend.set), id="no function"),
        ],
    )
    def test_backend_that_takes_it_otherwise(self, written: Any) -> None:
        """A method may take what it is given by other names, and be anything that can be called."""
        backend = type("Own", (MemoryBackend,), {"set": written})()
        install(FastAPI(), CacheContainer(backend=providers.Object(backend)))

    @pytest.mark.parametrize(
        "budget", [None, "1", timedelta(seconds=1), True, 0, -1.0, inf, nan], ids=lambda budget: repr(budget)
    )
    def test_backend_of_no_budget(self, budget: Any) -> None:
        """A backend whose operation_timeout is no number of seconds is refused, wherever it is given."""
        backend: Any = type("Own", (MemoryBackend,), {"operation_timeout": budget})()
        message = re.escape(f"operation_timeout of Own must be a positive number of seconds, not {budget!r}")
        for take in (
            lambda: install(FastAPI(), CacheContainer(backend=backend)),
            lambda: CacheMiddleware(FastAPI(), backend),
            lambda: StoredResponses(backend),
        ):
            with pytest.raises(ConfigurationError, match=f"^{message}$"):
                take()

    @pytest.mark.parametrize("generator", [42, ByPath], ids=["a number", "a class"])
    def test_no_key_generator(self, generator: Any) -> None:
        """A container whose key generator is none is refused, and so is a plain middleware that is given it."""
        container = CacheContainer(key_generator=providers.Object(generator))
        with pytest.raises(ConfigurationError, match="a key generator must be an instance"):
            install(FastAPI(), container)
        with pytest.raises(ConfigurationError, match="a key generator must be an instance"):
            CacheMiddleware(FastAPI(), MemoryBackend(), key_generator=generator)

    @pytest.mark.parametrize(
        "make",
        [
            pytest.param(
                lambda: type("Own", (CacheContainer,), {"backend": providers.Singleton(MemoryBackend)})(),
                id="a subclass, which does not rewire what it inherits",
            ),
            pytest.param(lambda: CacheContainer(backend=providers.Factory(MemoryBackend)), id="a factory"),
        ],
    )
    def test_store_of_another_backend(self, make: Callable[[], Any]) -> None:
        """A container whose store would not keep to its backend is refused with the way to do it."""
        with pytest.raises(ConfigurationError, match=r"CacheContainer\(backend=…\)"):
            install(FastAPI(), make())

    @pytest.mark.parametrize(
        ("parts", "message"),
        [
            pytest.param(
                {"invalidation": InvalidationService},
                r"^container\.invalidation\(\) must give an instance of InvalidationService .*, not <class",
                id="a class of services",
            ),
            pytest.param({"invalidation": "x"}, "InvalidationService or of a subclass, not 'x'", id="no service"),
            pytest.param(
                {"invalidation": providers.Factory(InvalidationService, CacheContainer.store)},
                r"of another store: .*override\(providers\.Factory\(InvalidationService, container\.store\)\)$",
                id="a service of the class's own store",
            ),
            pytest.param({"values": "x"}, "ValueCache or of a subclass, not 'x'", id="no values"),
            pytest.param(
                {"values": providers.Factory(ValueCache, CacheContainer.store)},
                "ValueCache of another",
                id="values",
            ),
            pytest.param({"store": 5}, r"^container\.store\(\) .* StoredResponses or .*, not 5$", id="no store"),
            pytest.param({"stores": 5}, r"^container\.stores\(\) must give Stores, not 5$", id="no stores"),
            pytest.param({"health": 5}, r"^container\.health\(\) .* HealthCheck or .*, not 5$", id="no health"),
            pytest.param({"clock": 5.0}, r"^clock must be a function .* not 5\.0", id="no clock"),
            pytest.param({"chance": 5.0}, r"^chance must be a function .* not 5\.0", id="no chance"),
        ],
    )
    def test_wrong_part(self, parts: dict[str, Any], message: str) -> None:
        """A part that would fail, or work beside the rest, at the first request is told when it is installed."""
        with pytest.raises(ConfigurationError, match=message):
            install(FastAPI(), CacheContainer(**parts))

    def test_right_parts(self) -> None:
        """Parts of one's own are taken that are made of the container's store."""
        container = CacheContainer()
        container.invalidation.override(providers.Factory(InvalidationService, container.store))
        container.values.override(providers.Factory(ValueCache, container.store))
        install(FastAPI(), container)

    @pytest.mark.parametrize("attributes", [{}, {"store": "a database"}], ids=["no store", "another thing"])
    def test_service_around_another(self, attributes: dict[str, Any]) -> None:
        """A service that hands on to another, and keeps no stored responses itself, is taken."""

        class Around(InvalidationService):
            def __init__(self, inner: InvalidationService) -> None:
                self.inner = inner
                vars(self).update(attributes)

        container = CacheContainer()
        container.invalidation.override(providers.Object(Around(InvalidationService(container.store()))))
        install(FastAPI(), container)

    def test_what_is_no_whole_container(self) -> None:
        """What lacks a part that is needed later is no container."""
        lacking = SimpleNamespace(**{part: CacheContainer.providers[part] for part in PARTS[:-1]})
        with pytest.raises(NotWiredError, match="CacheContainer or a provider of one"):
            install(FastAPI(), lacking)


class TestOptions:
    async def test_default_policy(self) -> None:
        """A default policy caches what has no policy of its own."""
        app = FastAPI()
        app.get("/")(lambda: "plain")
        install(app, CacheContainer(), default_policy=CachePolicy(timeout=60))
        assert await told_of(app, "/", "/") == [MISS, HIT]

    async def test_key_generator(self) -> None:
        """A key generator goes before that of the container."""
        app = counting_app()
        install(app, CacheContainer(), key_generator=ByPath())
        assert await told_of(app, "/count?a=1", "/count?a=2") == [MISS, HIT]

    async def test_starlette(self) -> None:
        """An application of plain Starlette is cached too."""

        @cache(timeout=60)
        async def home(_: Request) -> Response:
            return JSONResponse("home")

        app = Starlette(routes=[Route("/", home)])
        install(app, CacheContainer())
        assert await told_of(app, "/", "/") == [MISS, HIT]


class TestLifespan:
    async def test_none_needed(self) -> None:
        """Without a lifespan, as under a bare ASGI transport, everything works from the first request on."""
        app = counting_app()
        install(app, CacheContainer())
        assert await told_of(app, "/count", "/count") == [MISS, HIT]

    async def test_kept(self) -> None:
        """The application's own lifespan runs within the cache's, and its state is kept."""
        events: list[str] = []

        @asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, str]]:
            events.append(f"starts {app.title}")
            yield {"database": "there"}
            events.append("stops")

        app = FastAPI(title="shop", lifespan=lifespan)
        install(app, container_of(Closable(events)))
        async with app.router.lifespan_context(app) as state:
            assert state == {"database": "there"}
        assert events == ["starts shop", "stops", "closed"]

    async def test_cache_within_the_own(self) -> None:
        """The application's own lifespan can use the cache, as it starts and as it stops."""
        container = CacheContainer()

        @asynccontextmanager
        async def lifespan(_: FastAPI) -> AsyncIterator[None]:
            await container.backend().set("warm", "yes", 60)
            yield
            assert await container.backend().get("warm") == "yes"

        app = FastAPI(lifespan=lifespan)
        install(app, container)
        async with app.router.lifespan_context(app):
            assert await container.backend().get("warm") == "yes"
        assert await container.backend().get("warm") is None

    @pytest.mark.parametrize("fails", ["starts", "stops"])
    async def test_own_fails(self, fails: str) -> None:
        """When the application's own lifespan fails, its error is seen and the backend is closed."""
        events: list[str] = []

        @asynccontextmanager
        async def lifespan(_: FastAPI) -> AsyncIterator[None]:
            for moment in ("starts", "stops"):
                if moment == fails:
                    raise OSError(moment)
                yield

        app = FastAPI(lifespan=lifespan)
        install(app, container_of(Closable(events)))
        with pytest.raises(OSError, match=fails):
            async with app.router.lifespan_context(app):
                pass
        assert events == ["closed"]

    async def test_twice(self) -> None:
        """A lifespan may be entered again: the cache begins anew and is closed again."""
        backend, app = Closable(), counting_app()
        install(app, container_of(backend))
        for _ in range(2):
            async with app.router.lifespan_context(app):
                assert await told_of(app, "/count", "/count") == [MISS, HIT]
        assert backend.events == ["closed", "closed"]

    async def test_container_of_ones_own(self) -> None:
        """What has no more than the parts that `CacheServices` asks for is closed as a container is."""
        backend, app = Closable(), counting_app()
        store, keys = StoredResponses(backend), DefaultKeyGenerator()
        parts = (backend, store, keys, InvalidationService(store), ValueCache(store), HealthCheck(lambda: backend))
        install(
            app, SimpleNamespace(**{name: lambda part=part: part for name, part in zip(PARTS, parts, strict=True)})
        )
        async with app.router.lifespan_context(app):
            assert await told_of(app, "/count", "/count") == [MISS, HIT]
        assert backend.events == ["closed"]

    async def test_override_stays_open(self) -> None:
        """A backend that overrides the container's own as an object belongs to who made it, and stays open."""
        own, other, app = Closable(), Closable(), counting_app()
        container: Any = container_of(own)
        install(app, container)
        with container.backend.override(other):
            async with app.router.lifespan_context(app):
                await get(app, "/count")
            assert await told_of(app, "/count") == [HIT]
        assert other.events == []

    async def test_close_by_hand(self) -> None:
        """`close` may be called without a lifespan, and twice."""
        backend = Closable()
        container = container_of(backend)
        await close(container)
        await close(container)
        assert backend.events == ["closed", "closed"]

    async def test_wrong_policy(self) -> None:
        """A policy that cannot work on its route stops the application as it starts, with the endpoint's name."""
        app = FastAPI()
        install(app, CacheContainer())

        @app.get("/users/{user_id}")
        @cache(timeout=60, tags=["user_{name}"])
        async def user(user_id: int) -> None: ...

        with pytest.raises(ConfigurationError, match=r"'user_\{name\}'.*\.user'.*user_id"):
            async with app.router.lifespan_context(app):
                pass


class Denies:
    """Lets nobody in without a key."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http" and (b"x-key", b"right") not in scope["headers"]:
            await JSONResponse("who are you?", 401)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


class Session:
    """Puts a session of nobody into the scope and sets a cookie on each response, as a session middleware may."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        scope["session"] = {}

        async def send_with_cookie(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"set-cookie", b"session=7; httponly")]}
            await send(message)

        await self.app(scope, receive, send_with_cookie)


USER_MIDDLEWARE: list[tuple[Any, dict[str, Any], dict[str, str], Callable[[Any], object], object]] = [
    (
        CORSMiddleware,
        {"allow_origins": ["https://shop.example"]},
        {"origin": "https://shop.example"},
        lambda response: response.headers["access-control-allow-origin"],
        "https://shop.example",
    ),
    (
        GZipMiddleware,
        {"minimum_size": 1},
        {"accept-encoding": "gzip"},
        lambda response: response.headers["content-encoding"],
        "gzip",
    ),
    (Session, {}, {}, lambda response: response.headers.get_list("set-cookie"), ["session=7; httponly"]),
    (Denies, {}, {"x-key": "right"}, lambda response: response.status_code, 200),
]


@pytest.mark.parametrize("place", ["before", "after", "constructor"])
@pytest.mark.parametrize(
    ("middleware", "options", "headers", "look", "expected"),
    USER_MIDDLEWARE,
    ids=["CORS", "GZip", "session", "auth"],
)
async def test_user_middleware_runs_on_hits(
    place: str,
    middleware: Any,
    options: Any,
    headers: dict[str, str],
    look: Callable[[Any], object],
    expected: object,
) -> None:
    """What the user adds, before or after the cache, runs on each hit: the cache stands within all of it."""
    app = FastAPI(middleware=[Middleware(middleware, **options)] if place == "constructor" else None)
    app.get("/page")(cache(timeout=60)(lambda: "text " * 200))
    if place == "before":
        app.add_middleware(middleware, **options)
    install(app, CacheContainer())
    if place == "after":
        app.add_middleware(middleware, **options)
    async with client_of(app, headers=headers) as client:
        miss, hit = await client.get("/page"), await client.get("/page")
    assert (told(miss), look(miss)) == (MISS, expected)
    assert look(hit) == expected
    assert miss.text == hit.text


async def test_authentication_runs_on_hits() -> None:
    """Whom an authentication of the user's refuses gets no hit."""
    app = counting_app()
    install(app, CacheContainer())
    app.add_middleware(Denies)
    assert await told_of(app, "/count", "/count", headers={"x-key": "right"}) == [MISS, HIT]
    assert (await get(app, "/count")).status_code == 401


async def test_decorated_middleware_runs_on_hits() -> None:
    """A middleware by ``@app.middleware("http")`` sees hits, and what the cache says of them."""
    seen: list[str] = []
    app = counting_app()
    install(app, CacheContainer())

    @app.middleware("http")
    async def see(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call_next(request)
        seen.append(str(request.state.cache))
        return response

    await get(app, "/count")
    await get(app, "/count")
    assert [each.partition("; ttl")[0] for each in seen] == ["app-cache; fwd=uri-miss; stored", "app-cache; hit"]


async def test_exception_handlers_work() -> None:
    """Exception handlers of the application answer for cached endpoints as they do without the cache."""
    app = FastAPI()

    @app.get("/missing")
    @cache(timeout=60)
    async def missing() -> None:
        raise HTTPException(404, "no such page")

    @app.get("/broken")
    @cache(timeout=60)
    async def broken() -> None:
        raise KeyError("page")

    @app.exception_handler(KeyError)
    async def on_key_error(_: Request, error: KeyError) -> JSONResponse:
        return JSONResponse(f"no {error.args[0]}", 418)

    install(app, CacheContainer())
    assert (await get(app, "/missing")).json() == {"detail": "no such page"}
    assert (await get(app, "/broken")).status_code == 418

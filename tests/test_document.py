"""The user's own document, snippet by snippet: as it is printed, its imports added, with the mends that are named.

A snippet stands in the order of the document; a mend stands where a comment says MEND.
"""

# ruff: noqa: B008, BLE001, C408, D103, D205, D212, D415, PIE790, RET504, RET505, UP045 - they are as printed
# ruff: noqa: B008, BLE001, C408, D103, D205, D212, D415, PIE790, RET504, RET505, UP045
# mypy: disable-error-code="no-untyped-def, var-annotated, type-arg, arg-type, no-any-return"
import gzip
import inspect
import json
import os
import re
import time
from abc import ABC, abstractmethod
from collections import Counter
from itertools import count
from typing import Any, Optional

import pytest
from dependency_injector import providers
from fastapi import APIRouter, Depends, FastAPI, Request, Response

import app_cache
from app_cache import (
    CacheBackend,
    CacheMiddleware,
    CacheSettings,
    ConfigurationError,
    MemoryBackend,
    RedisBackend,
    cache,
)
from app_cache.fastapi import get_invalidation
from app_cache.helpers import create_backend_from_env, get_cache_backend
from app_cache.logger_config import configure_logger, logger, unconfigure_logger
from app_cache.services import services_of
from containers import CacheContainer, install
from tests.clients import HIT, MISS, client_of, get, post, told, told_of
from tests.conftest import StartServer
from tests.servers import Certificates, Server

pytestmark = pytest.mark.anyio

VARIABLES = [field.upper() for field in CacheSettings.model_fields]


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """None of the variables is set, but those that a test sets."""
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    return monkeypatch


router = APIRouter()


@router.get("/drained")
async def drained(request: Request) -> None:
    """Wait for what is on its way to the backend."""
    await services_of(request.scope).store().close()


def app_over(backend: CacheBackend, middleware: type[CacheMiddleware] = CacheMiddleware) -> FastAPI:
    """Return an application with the document's registration; its ``/numbers/…`` counts its runs."""
    app = FastAPI()

    # Register middleware
    app.add_middleware(middleware, backend=backend)

    runs = count(1)

    @app.get("/numbers/{name}")
    @cache(timeout=300)
    async def number(name: str) -> int:
        return next(runs)

    app.include_router(router)
    return app


async def misses_then_hits(backend: CacheBackend) -> None:
    """Check that an application over *backend* stores and serves, and close *backend*."""
    app = app_over(backend)
    assert await told_of(app, "/numbers/a", "/numbers/a", "/numbers/b") == [MISS, HIT, MISS]
    await get(app, "/drained")
    await backend.close()


# --- Cache Backend Interface -----------------------------------------------------------------------------


class PrintedBackend(ABC):
    """Abstract base class for cache backends."""

    @abstractmethod
    async def get(self, key: str) -> Optional[str]:
        """Get a value from the cache."""
        pass

    @abstractmethod
    async def set(self, key: str, value: str, timeout: int) -> None:
        """Set a value in the cache with expiration."""
        pass

    @abstractmethod
    async def delete(self, key: str) -> None:
        """Delete a key from the cache."""
        pass

    @abstractmethod
    async def close(self) -> None:
        """Close backend connections."""
        pass


def test_interface() -> None:
    """The interface has the four printed coroutines, with the printed parameters, and no others."""
    assert CacheBackend.__abstractmethods__ == PrintedBackend.__abstractmethods__
    public = {name for name in vars(CacheBackend) if not name.startswith("_")}
    assert public == PrintedBackend.__abstractmethods__
    for name in public:
        ours, printed = getattr(CacheBackend, name), getattr(PrintedBackend, name)
        assert inspect.iscoroutinefunction(ours)
        assert list(inspect.signature(ours).parameters) == list(inspect.signature(printed).parameters)


# --- Redis/ValKey Backend Options ------------------------------------------------------------------------

FULL: dict[str, Any] = dict(
    max_connections=10,  # Max connections in pool
    retry_on_timeout=True,  # Retry on timeout
    socket_keepalive=True,  # Enable TCP keepalive
    socket_keepalive_options={  # TCP keepalive settings
        1: 1,  # TCP_KEEPIDLE
        2: 3,  # TCP_KEEPINTVL
        3: 5,  # TCP_KEEPCNT
    },
    health_check_interval=30,  # Health check interval (seconds)
    password=None,  # Redis/ValKey password
    db=0,  # Database number
    encoding="utf-8",  # String encoding
    decode_responses=True,  # Auto-decode responses
    socket_timeout=5.0,  # Socket timeout
    socket_connect_timeout=5.0,  # Connection timeout
    connection_pool=None,  # Custom connection pool
    ssl=False,  # Enable SSL
    ssl_keyfile=None,  # SSL key file
    ssl_certfile=None,  # SSL certificate file
    ssl_cert_reqs="required",  # SSL certificate requirements
    ssl_ca_certs=None,  # SSL CA certificates
    ssl_check_hostname=False,  # Verify hostname in SSL
    max_connections_per_pool=50,  # Max connections per pool
)


async def test_all_options(redis_server: Server) -> None:
    """The full list of options constructs as printed, and serves with a server of its own."""
    RedisBackend(url="redis://localhost:6379", **FULL)
    await misses_then_hits(RedisBackend(url=redis_server.url, **FULL))


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("redis://localhost:6379", id="Basic Redis"),
        pytest.param("redis://localhost:6380", id="Basic ValKey"),
        pytest.param("redis://:password@localhost:6379", id="with password"),
        pytest.param("redis://username:password@localhost:6379", id="with username and password"),
        pytest.param("redis://localhost:6379/1", id="with specific database"),
        pytest.param("rediss://localhost:6380", id="with SSL"),
        pytest.param("redis+sentinel://sentinel-host:26379/mymaster", id="Redis Sentinel"),
    ],
)
def test_url_examples(url: str) -> None:
    """Each URL of the document is understood, and none shows its password."""
    assert "password" not in repr(RedisBackend(url=url))


async def test_url_with_password(start_server: StartServer) -> None:
    """A URL with a password, and one with user and password, opens the server that wants them."""
    server = start_server(password="password")
    server.command("ACL", "SETUSER", "username", "on", ">password", "~*", "+@all")
    await misses_then_hits(RedisBackend(url=f"redis://:password@localhost:{server.port}"))
    server.command("FLUSHALL")
    await misses_then_hits(RedisBackend(url=f"redis://username:password@localhost:{server.port}"))


async def test_url_with_database(redis_server: Server) -> None:
    """A URL with a database keeps its entries there."""
    await misses_then_hits(RedisBackend(url=f"{redis_server.url}/1"))
    assert redis_server.command("DBSIZE") == 0


def production(url: str, ca_certs: str) -> RedisBackend:
    redis_backend = RedisBackend(
        url=url,
        max_connections=50,
        retry_on_timeout=True,
        socket_keepalive=True,
        health_check_interval=30,
        socket_timeout=10.0,
        socket_connect_timeout=10.0,
        # Enable SSL for production
        ssl=True,
        ssl_cert_reqs="required",
        ssl_ca_certs=ca_certs,
    )
    return redis_backend


async def test_production(start_server: StartServer, certificates: Certificates) -> None:
    """The production sample constructs as printed, and speaks TLS to a server with a CA of one's own."""
    production("redis://prod-redis-01:6379", "/etc/ssl/certs/redis-ca.pem")
    server = start_server(certificates=certificates)
    await misses_then_hits(production(f"redis://localhost:{server.tls_port}", certificates.path("ca.pem")))


# --- Memory Backend Options ------------------------------------------------------------------------------


async def test_memory() -> None:
    """The memory backend takes the three printed options."""
    memory_backend = MemoryBackend(
        max_size=1000,  # Maximum number of cached items
        cleanup_interval=300,  # Cleanup expired items every 5 minutes
        default_timeout=3600,  # Default timeout for items (1 hour)
    )
    await misses_then_hits(memory_backend)


# --- Custom Backend Configuration ------------------------------------------------------------------------


class CustomBackend(CacheBackend):
    def __init__(self, custom_param: str, timeout: int = 300):
        self.custom_param = custom_param
        self.default_timeout = timeout
        self.storage = {}

    async def get(self, key: str) -> Optional[str]:
        item = self.storage.get(key)
        if item and item["expires"] > time.time():
            return item["value"]
        elif item:
            del self.storage[key]  # Clean up expired item
        return None

    async def set(self, key: str, value: str, timeout: int) -> None:
        expires = time.time() + timeout
        self.storage[key] = {"value": value, "expires": expires}

    async def delete(self, key: str) -> None:
        self.storage.pop(key, None)

    async def close(self) -> None:
        self.storage.clear()


async def test_custom_backend() -> None:
    """A backend of the four methods keeps responses, as text."""
    backend = CustomBackend("anything")
    app = app_over(backend)
    assert await told_of(app, "/numbers/a", "/numbers/a") == [MISS, HIT]
    assert all(isinstance(item["value"], str) for item in backend.storage.values())
    await backend.close()
    assert await told_of(app, "/numbers/a") == [MISS]


# --- Decorator Configuration -----------------------------------------------------------------------------


@cache(
    timeout=300,  # Cache timeout in seconds
    cache_control=True,  # Respect HTTP Cache-Control headers
    exclude_headers=None,  # Headers to exclude from cache key
    include_headers=None,  # Headers to include in cache key
)
async def my_endpoint():
    return {"data": "cached"}


# Short-lived cache (1 minute)
@cache(timeout=60)
async def real_time_data():
    return {"timestamp": time.time()}


# Medium-lived cache (5 minutes)
@cache(timeout=300)
async def user_profile(user_id: int):
    return {"user_id": user_id}


# Long-lived cache (1 hour)
@cache(timeout=3600)
async def application_config():
    return {"version": "1.0"}


@cache(timeout=300, cache_control=True)
async def cacheable_endpoint():
    """
    Supports standard HTTP Cache-Control directives:
    - no-cache: Bypasses cache for this request
    - no-store: Prevents caching of this response
    - max-age=60: Overrides default timeout
    """
    return {"data": "value"}


# Include specific headers in cache key
@cache(timeout=300, include_headers=["Accept-Language", "User-Agent"])
async def localized_content():
    return {"message": "Hello"}


# Exclude sensitive headers from cache key
@cache(timeout=300, exclude_headers=["Authorization", "Cookie"])
async def public_data():
    return {"public": "data"}


@pytest.fixture
def decorated() -> FastAPI:
    """An application with the document's endpoints; the document leaves their routes to the reader."""
    app = FastAPI()
    app.add_middleware(CacheMiddleware, backend=MemoryBackend())
    app.get("/my")(my_endpoint)
    app.get("/time")(real_time_data)
    app.get("/users/{user_id}")(user_profile)
    app.get("/config")(application_config)
    app.get("/cacheable")(cacheable_endpoint)
    app.get("/localized")(localized_content)
    app.get("/public")(public_data)
    return app


@pytest.mark.parametrize(
    ("path", "timeout"),
    [("/my", 300), ("/time", 60), ("/users/7", 300), ("/config", 3600), ("/cacheable", 300), ("/localized", 300)],
)
async def test_timeouts(decorated: FastAPI, path: str, timeout: int) -> None:
    """Each decorated endpoint is stored and served, for as long as its decorator says."""
    miss, hit = await get(decorated, path), await get(decorated, path)
    assert (told(miss), told(hit)) == (MISS, HIT)
    assert hit.content == miss.content
    ttl = re.search(r"ttl=(\d+)", hit.headers["cache-status"])
    assert ttl is not None
    assert timeout - 5 < int(ttl[1]) <= timeout


async def test_cache_control(decorated: FastAPI) -> None:
    """The client's directives do what the document says of them, by direction."""
    assert await told_of(decorated, "/cacheable", "/cacheable") == [MISS, HIT]
    # no-cache: Bypasses cache for this request
    [status] = await told_of(decorated, "/cacheable", headers={"cache-control": "no-cache"})
    assert status == "fwd=request; stored; detail=request-no-cache"
    # no-store: Prevents caching of this response
    assert await told_of(decorated, "/users/1", headers={"cache-control": "no-store"}) == [
        "fwd=bypass; detail=request-no-store"
    ]
    assert await told_of(decorated, "/users/1") == [MISS]
    # MEND: a client's max-age limits what it accepts, and changes nothing for others
    assert await told_of(decorated, "/cacheable", headers={"cache-control": "max-age=60"}) == [HIT]


async def test_cache_control_of_the_response() -> None:
    """A response's max-age overrides the decorator's timeout."""
    app = FastAPI()
    app.add_middleware(CacheMiddleware, backend=MemoryBackend())

    @app.get("/")
    @cache(timeout=300, cache_control=True)
    async def endpoint(response: Response):
        response.headers["Cache-Control"] = "max-age=60"
        return {"data": "value"}

    await get(app, "/")
    hit = await get(app, "/")
    assert re.search(r"hit; ttl=(60|59|58|57)\b", hit.headers["cache-status"])


async def test_included_headers(decorated: FastAPI) -> None:
    """Included headers join the key, and are announced in Vary."""
    english, german = {"accept-language": "en"}, {"accept-language": "de"}
    responses = [await get(decorated, "/localized", headers=headers) for headers in (english, german, english)]
    assert [told(response) for response in responses] == [MISS, MISS, HIT]
    assert all(response.headers["vary"] == "accept-language, user-agent" for response in responses)


async def test_excluded_headers(decorated: FastAPI) -> None:
    """Excluded headers do not matter: all who send them share one answer."""
    headers = [{"authorization": "Bearer 1"}, {"cookie": "a=b"}, {}]
    assert [told(await get(decorated, "/public", headers=each)) for each in headers] == [MISS, HIT, HIT]
    # MEND: without that, what was asked with them is shared with nobody
    assert await told_of(decorated, "/my", headers={"cookie": "a=b"}) == ["fwd=uri-miss; detail=cookie"]


# --- Middleware Registration -----------------------------------------------------------------------------


async def test_registration(redis_server: Server) -> None:
    """The basic registration caches what is defined after it."""
    app = FastAPI()

    # Create backend instance
    backend = RedisBackend(url=redis_server.url)

    # Register middleware
    app.add_middleware(CacheMiddleware, backend=backend)

    app.get("/config")(application_config)
    app.include_router(router)
    assert await told_of(app, "/config", "/config") == [MISS, HIT]
    await get(app, "/drained")
    await backend.close()


async def get_backend():
    """Dependency to provide cache backend"""
    return get_cache_backend()


@pytest.mark.parametrize("how", ["install", "add_middleware"])
async def test_dependency_injection(how: str) -> None:
    """The document's own dependency gives endpoints the backend, however the cache was put on the application."""
    app = FastAPI()
    seen = []

    # Use in routes that need direct cache access
    @app.get("/cache-stats")
    async def cache_stats(backend: CacheBackend = Depends(get_backend)):
        # Direct backend access for administrative functions
        seen.append(backend)
        return {"status": "operational"}

    own = MemoryBackend()
    if how == "install":
        install(app, CacheContainer(backend=providers.Object(own)))
    else:
        app.add_middleware(CacheMiddleware, backend=own)
    assert (await get(app, "/cache-stats")).json() == {"status": "operational"}
    assert seen == [own]


# Better approach: Backend router
class BackendRouter(CacheBackend):
    def __init__(self, backends: dict):
        self.backends = backends

    async def get(self, key: str) -> Optional[str]:
        backend_name = self._get_backend_for_key(key)
        return await self.backends[backend_name].get(key)

    # MEND: the document shows `get` alone; the other three verbs are to be written in the same way
    async def set(self, key: str, value: str, timeout: int) -> None:
        await self.backends[self._get_backend_for_key(key)].set(key, value, timeout)

    async def delete(self, key: str) -> None:
        await self.backends[self._get_backend_for_key(key)].delete(key)

    async def close(self) -> None:
        for backend in self.backends.values():
            await backend.close()

    def _get_backend_for_key(self, key: str) -> str:
        if key.startswith("session:"):
            return "session"
        return "data"


class OwnRouter(app_cache.BackendRouter):
    """Ours, with what the document overrides."""

    def _get_backend_for_key(self, key: str) -> str:
        if key.startswith("session:"):
            return "session"
        return "data"


@pytest.mark.parametrize("kind", [BackendRouter, OwnRouter, app_cache.BackendRouter])
async def test_router(redis_server: Server, kind: Any) -> None:
    """The router keeps sessions in one database, and responses, whose keys are hashed, in the other."""
    # Different backends for different purposes
    session_backend = RedisBackend(url=f"{redis_server.url}/0")
    data_backend = RedisBackend(url=f"{redis_server.url}/1")
    backend = kind({"session": session_backend, "data": data_backend})
    await backend.set("session:7", "here", 60)
    app = app_over(backend)
    assert await told_of(app, "/numbers/a", "/numbers/a") == [MISS, HIT]
    assert await backend.get("session:7") == await session_backend.get("session:7") == "here"
    assert await session_backend.size() == 1
    await backend.delete("session:7")
    assert await session_backend.size() == 0
    await get(app, "/drained")
    await backend.close()


# --- Environment-Based Configuration ---------------------------------------------------------------------


def get_development_backend():
    """Development-specific backend configuration"""
    if os.getenv("USE_REDIS", "false").lower() == "true":
        return RedisBackend(
            url=os.getenv("REDIS_URL", "redis://localhost:6379"),
            max_connections=5,  # Lower connection pool for dev
        )
    else:
        return MemoryBackend(max_size=100)  # Small cache for dev


def get_production_backend():
    """Production-specific backend configuration"""
    return RedisBackend(
        url=os.getenv("REDIS_URL"),
        max_connections=int(os.getenv("REDIS_MAX_CONNECTIONS", "50")),
        retry_on_timeout=True,
        socket_keepalive=True,
        health_check_interval=30,
        socket_timeout=10.0,
        # Production SSL settings
        ssl=os.getenv("REDIS_SSL", "false").lower() == "true",
        ssl_cert_reqs="required",
        ssl_ca_certs=os.getenv("REDIS_SSL_CA_CERTS"),
    )


@pytest.mark.parametrize("make", [get_development_backend, create_backend_from_env], ids=["printed", "ours"])
async def test_development(no_variables: pytest.MonkeyPatch, redis_server: Server, make: Any) -> None:
    """Development is in memory, or in Redis if the variable says so; our helper chooses the same."""
    backend = make()
    assert isinstance(backend, MemoryBackend)
    assert backend.max_size == 100
    await misses_then_hits(backend)
    no_variables.setenv("USE_REDIS", "true")
    no_variables.setenv("REDIS_URL", redis_server.url)
    backend = make()
    assert isinstance(backend, RedisBackend)
    await misses_then_hits(backend)


@pytest.mark.parametrize("make", [get_production_backend, create_backend_from_env], ids=["printed", "ours"])
async def test_production_by_variables(
    no_variables: pytest.MonkeyPatch, start_server: StartServer, certificates: Certificates, make: Any
) -> None:
    """Production is in Redis, by TLS if the variables say so; our helper does the same."""
    no_variables.setenv("ENVIRONMENT", "production")
    server = start_server(certificates=certificates)
    no_variables.setenv("REDIS_URL", server.url)
    await misses_then_hits(make())
    no_variables.setenv("REDIS_URL", f"redis://localhost:{server.tls_port}")
    no_variables.setenv("REDIS_SSL", "true")
    no_variables.setenv("REDIS_SSL_CA_CERTS", certificates.path("ca.pem"))
    server.command("FLUSHALL")
    await misses_then_hits(make())


@pytest.mark.parametrize("make", [get_production_backend, create_backend_from_env], ids=["printed", "ours"])
def test_production_without_url(no_variables: pytest.MonkeyPatch, make: Any) -> None:
    """Without its URL production is refused at once, not at the first request."""
    no_variables.setenv("ENVIRONMENT", "production")
    with pytest.raises(ConfigurationError, match=r"(?i)url must be"):
        make()


class CacheConfig:
    @staticmethod
    def create_backend(environment: str) -> CacheBackend:
        config_map = {
            "development": CacheConfig._development_config,
            "testing": CacheConfig._testing_config,
            "staging": CacheConfig._staging_config,
            "production": CacheConfig._production_config,
        }
        config_func = config_map.get(environment)
        if not config_func:
            raise ValueError(f"Unknown environment: {environment}")
        return config_func()

    @staticmethod
    def _development_config() -> CacheBackend:
        return MemoryBackend(max_size=100)

    @staticmethod
    def _testing_config() -> CacheBackend:
        return MemoryBackend(max_size=50)

    @staticmethod
    def _staging_config() -> CacheBackend:
        return RedisBackend(url=os.getenv("REDIS_URL", "redis://staging-redis:6379"), max_connections=10)

    @staticmethod
    def _production_config() -> CacheBackend:
        return RedisBackend(
            url=os.getenv("REDIS_URL"),
            max_connections=50,
            retry_on_timeout=True,
            socket_keepalive=True,
            ssl=True,
        )


@pytest.mark.parametrize("factory", [CacheConfig, app_cache.CacheConfig], ids=["printed", "ours"])
class TestFactory:
    @pytest.mark.parametrize(("environment", "size"), [("development", 100), ("testing", 50)])
    async def test_memory(self, factory: Any, environment: str, size: int) -> None:
        """Development and testing are in memory, of the printed sizes."""
        backend = factory.create_backend(environment)
        assert backend.max_size == size
        await misses_then_hits(backend)

    async def test_staging(self, no_variables: pytest.MonkeyPatch, redis_server: Server, factory: Any) -> None:
        """Staging is in Redis, by default at the printed URL."""
        assert "redis://staging-redis:6379" in repr(factory.create_backend("staging"))
        no_variables.setenv("REDIS_URL", redis_server.url)
        await misses_then_hits(factory.create_backend("staging"))

    def test_production(self, no_variables: pytest.MonkeyPatch, factory: Any) -> None:
        """Production is in Redis at the URL of the variable, which is required."""
        with pytest.raises(ConfigurationError):
            factory.create_backend("production")
        no_variables.setenv("REDIS_URL", "rediss://prod-redis-01:6379")
        assert "rediss://prod-redis-01:6379" in repr(factory.create_backend("production"))

    def test_unknown(self, factory: Any) -> None:
        """An unknown environment is a ValueError with the printed words."""
        with pytest.raises(ValueError, match=r"^Unknown environment: nowhere"):
            factory.create_backend("nowhere")


# --- Cache Key Configuration -----------------------------------------------------------------------------


async def test_key_format() -> None:
    """The default key is ``cache:{hash}``, and holds method, path, query and body.

    MEND: it is hashed part by part: the printed recipe gives different requests one key, and awaits in a ``def``.
    """
    backend = CustomBackend("")
    app = app_over(backend)

    @app.post("/search")
    @cache(timeout=300)
    async def search(request: Request):
        return (await request.body()).decode()

    paths = ["/numbers/a?x=1&x=2", "/numbers/a?x=2&x=1", "/numbers/a", "/numbers/a?y=1&x=1", "/numbers/a?x=1&y=1"]
    assert await told_of(app, *paths) == [MISS, MISS, MISS, MISS, HIT]
    bodies = [await post(app, "/search", content=body) for body in (b"a", b"b", b"a")]
    assert [told(response) for response in bodies] == [MISS, MISS, HIT]
    assert len([key for key in backend.storage if re.fullmatch("cache:[0-9a-f]{64}", key)]) == 6


class CustomCacheMiddleware(CacheMiddleware):
    def generate_cache_key(self, request):
        # Custom key generation logic
        user_id = request.headers.get("X-User-ID", "anonymous")
        endpoint = request.url.path
        return f"user_cache:{user_id}:{endpoint}"


async def test_custom_key() -> None:
    """The subclass of the middleware tells requests apart by user and path."""
    app = app_over(MemoryBackend(), CustomCacheMiddleware)
    users = [{"x-user-id": "1"}, {"x-user-id": "2"}, {"x-user-id": "1"}, {}]
    assert [told(await get(app, "/numbers/a", headers=each)) for each in users] == [MISS, MISS, HIT, MISS]
    assert await told_of(app, "/numbers/a?ignored=1") == [HIT]


# --- Cache Invalidation ----------------------------------------------------------------------------------


async def test_invalidate_cache(redis_server: Server) -> None:
    """The printed endpoint deletes keys that one set oneself, in a backend that can.

    MEND: the keys of responses are hashed; `by_pattern` finds them, by path or by what the own generator gave.
    """
    backend = RedisBackend(url=redis_server.url)
    app = app_over(backend, CustomCacheMiddleware)

    @app.post("/invalidate-cache")
    async def invalidate_cache(pattern: str, backend: CacheBackend = Depends(get_backend)):
        """Invalidate cache entries matching pattern"""
        if hasattr(backend, "delete_pattern"):
            await backend.delete_pattern(pattern)
        return {"message": "Cache invalidated"}

    @app.post("/invalidate-responses")
    async def invalidate_responses(pattern: str, invalidation: Any = Depends(get_invalidation)):
        await invalidation.by_pattern(pattern)
        return {"message": "Cache invalidated"}

    await backend.set("mine:1", "value", 60)
    response = await post(app, "/invalidate-cache?pattern=mine:*")
    assert response.json() == {"message": "Cache invalidated"}
    assert await backend.get("mine:1") is None
    for pattern in ("/numbers/*", "user_cache:*"):
        await get(app, "/numbers/a")
        assert await told_of(app, "/numbers/a") == [HIT]
        await post(app, "/invalidate-responses", params={"pattern": pattern})
        assert await told_of(app, "/numbers/a") == [MISS]
    await get(app, "/drained")
    await backend.close()


def test_delete_pattern_is_told_truly() -> None:
    """``hasattr(backend, "delete_pattern")`` is true of the backends that can, and of no others."""
    assert hasattr(MemoryBackend(), "delete_pattern")
    assert not hasattr(CustomBackend(""), "delete_pattern")
    assert not hasattr(app_cache.CompressedBackend(CustomBackend("")), "delete_pattern")


@pytest.mark.parametrize("kept", ["memory", "redis", "custom"])
async def test_tags(redis_server: Server, kept: str) -> None:
    """Tags with the value that the endpoint receives invalidate what has them, in any backend.

    MEND: the printed f-string cannot know the user at import; the same text without the f is a template.
    """
    backends = {"memory": MemoryBackend(), "redis": RedisBackend(redis_server.url), "custom": CustomBackend("")}
    app, container = FastAPI(), CacheContainer(backend=providers.Object(backends[kept]))
    install(app, container)

    # Tag-based invalidation
    @app.get("/users/{user_id}")
    @cache(timeout=300, tags=["user_data", "user_{user_id}"])
    async def get_user_profile(user_id: int):
        return {"user_id": user_id}

    assert await told_of(app, "/users/1", "/users/2") == [MISS, MISS]
    await container.invalidation().by_tag("user_1")
    assert await told_of(app, "/users/1", "/users/2") == [MISS, HIT]
    await container.invalidation().by_tag("user_data")
    assert await told_of(app, "/users/1", "/users/2") == [MISS, MISS]
    await container.stores().close()
    await backends[kept].close()


# --- Performance Tuning ----------------------------------------------------------------------------------


async def test_high_traffic(redis_server: Server) -> None:
    """The high-traffic options connect and serve."""
    redis_backend = RedisBackend(
        url=redis_server.url,
        max_connections=100,  # Increased pool size
        socket_keepalive=True,
        socket_keepalive_options={
            1: 600,  # TCP_KEEPIDLE (10 minutes)
            2: 60,  # TCP_KEEPINTVL (1 minute)
            3: 3,  # TCP_KEEPCNT
        },
        health_check_interval=60,
        socket_timeout=30.0,
    )
    await misses_then_hits(redis_backend)


async def test_small_memory() -> None:
    """The memory backend for little memory takes the printed options."""
    memory_backend = MemoryBackend(
        max_size=500,  # Smaller cache size
        cleanup_interval=60,  # More frequent cleanup
    )
    await misses_then_hits(memory_backend)


# Use compression for large responses
class CompressedMemoryBackend(MemoryBackend):
    async def set(self, key: str, value: str, timeout: int) -> None:  # type: ignore[override]
        compressed_value = gzip.compress(value.encode())
        await super().set(key, compressed_value, timeout)

    async def get(self, key: str) -> Optional[str]:
        compressed_value = await super().get(key)
        if compressed_value:
            return gzip.decompress(compressed_value).decode()
        return None


@pytest.mark.parametrize(
    "kind", [CompressedMemoryBackend, app_cache.CompressedMemoryBackend], ids=["printed", "ours"]
)
async def test_compressed(kind: Any) -> None:
    """Responses really go through the compression of a subclass, and take less memory than they have bytes."""
    backend = kind()
    app = FastAPI()
    app.add_middleware(CacheMiddleware, backend=backend)
    app.get("/large")(cache(timeout=300)(lambda: "large " * 10_000))
    miss, hit = await get(app, "/large"), await get(app, "/large")
    assert (told(miss), told(hit)) == (MISS, HIT)
    assert miss.content == hit.content
    memory = getattr(backend, "backend", backend)
    assert memory.bytes_held < 5_000
    await backend.set("mine", "value", 60)
    assert await backend.get("mine") == "value"
    await backend.close()


async def test_compressed_bytes_are_gzip() -> None:
    """What the printed subclass has set is kept as it gave it: as the bytes that gzip made."""
    backend = CompressedMemoryBackend()
    await backend.set("mine", "value", 60)
    kept: Any = await MemoryBackend.get(backend, "mine")
    assert kept[:2] == b"\x1f\x8b"


# --- Monitoring Configuration ----------------------------------------------------------------------------


def test_logging(tmp_path: Any) -> None:
    """The printed sink is one call, and writes JSON lines to the file.

    MEND: ``logger.add`` is another library's; its arguments are those of `configure_logger`, but for the format.
    """
    file = tmp_path / "app_cache.log"
    # Production logging
    configure_logger(
        file=file,
        rotation="100 MB",
        retention="30 days",
        level="INFO",
        json=True,  # JSON format for log aggregation
    )
    try:
        logger.info("cache.tried", backend="memory")
        logger.debug("cache.not_written")
    finally:
        unconfigure_logger()
    [line] = file.read_text().splitlines()
    said = json.loads(line)
    assert (said["event"], said["backend"], said["level"]) == ("cache.tried", "memory", "info")


def test_logging_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    """``configure_logger()`` as printed writes to standard error."""
    configure_logger()
    try:
        logger.info("cache.tried")
    finally:
        unconfigure_logger()
    written = capsys.readouterr()
    assert (written.out, "cache.tried" in written.err) == ("", True)


class MetricsBackend(CacheBackend):
    def __init__(self, backend: CacheBackend, metrics_client):
        self.backend = backend
        self.metrics = metrics_client

    async def get(self, key: str) -> Optional[str]:
        start_time = time.time()
        result = await self.backend.get(key)
        duration = time.time() - start_time
        self.metrics.histogram("cache.get.duration", duration)
        self.metrics.increment("cache.get.requests")
        if result:
            self.metrics.increment("cache.get.hits")
        else:
            self.metrics.increment("cache.get.misses")
        return result

    # MEND: the document shows `get` alone; the other three are passed on
    async def set(self, key: str, value: str, timeout: int) -> None:
        await self.backend.set(key, value, timeout)

    async def delete(self, key: str) -> None:
        await self.backend.delete(key)

    async def close(self) -> None:
        await self.backend.close()


class Metrics:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.durations: list[float] = []

    def histogram(self, name: str, value: float) -> None:
        assert name.startswith("cache.")
        self.durations.append(value)

    def increment(self, name: str) -> None:
        self.counts[name] += 1


@pytest.mark.parametrize("kind", [MetricsBackend, app_cache.MetricsBackend], ids=["printed", "ours"])
@pytest.mark.parametrize("kept", ["memory", "redis"])
async def test_metrics(redis_server: Server, kind: Any, kept: str) -> None:
    """The metrics client is told of what the middleware asks, and of direct access."""
    within: CacheBackend = MemoryBackend() if kept == "memory" else RedisBackend(redis_server.url)
    metrics = Metrics()
    backend = kind(within, metrics)
    await misses_then_hits(backend)
    assert metrics.counts["cache.get.hits"] >= 1
    assert metrics.counts["cache.get.misses"] >= 2
    assert metrics.counts["cache.get.requests"] == (
        metrics.counts["cache.get.hits"] + metrics.counts["cache.get.misses"]
    )
    before = metrics.counts["cache.get.misses"]
    assert await backend.get("absent") is None
    assert metrics.counts["cache.get.misses"] == before + 1
    assert metrics.durations
    await backend.close()


async def test_health(redis_server: Server) -> None:
    """The printed health endpoint says that the backend is healthy, and unhealthy when the server is away."""
    backend = RedisBackend(url=redis_server.url)
    app = app_over(backend)

    @app.get("/health/cache")
    async def cache_health(backend: CacheBackend = Depends(get_backend)):
        """Check cache backend health"""
        try:
            # Test cache operations
            test_key = f"health_check_{int(time.time())}"
            await backend.set(test_key, "ok", 10)
            result = await backend.get(test_key)
            await backend.delete(test_key)
            if result == "ok":
                return {"status": "healthy", "backend": type(backend).__name__}
            else:
                return {"status": "degraded", "error": "Cache not responding correctly"}
        except Exception as e:
            return {"status": "unhealthy", "error": str(e)}

    async with client_of(app) as client:
        assert (await client.get("/health/cache")).json() == {"status": "healthy", "backend": "RedisBackend"}
        assert redis_server.command("KEYS", "health_check_*") == []
        redis_server.kill()
        assert (await client.get("/health/cache")).json()["status"] == "unhealthy"
        assert (await client.get("/numbers/a")).status_code == 200
    await backend.close()

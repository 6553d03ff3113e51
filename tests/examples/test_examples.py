"""Each small example does what it says."""

from __future__ import annotations

import importlib
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import pytest

from app_cache import config, services
from app_cache.logger_config import unconfigure_logger
from tests.clients import HIT, MISS, client_of, get, post, told, told_of
from tests.http_server import http_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from tests.servers import Server

pytestmark = pytest.mark.anyio

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Import an example anew, as the only application, with the variables that are given and no others."""
    loaded: list[str] = []

    def load(name: str, **environ: str) -> ModuleType:
        for field in config.CacheSettings.model_fields:
            monkeypatch.delenv(field.upper(), raising=False)
        for variable, value in environ.items():
            monkeypatch.setenv(variable, value)
        monkeypatch.setattr(services, "_installed", WeakKeyDictionary())
        loaded.append(f"examples.{name}")
        sys.modules.pop(loaded[-1], None)
        return importlib.import_module(loaded[-1])

    yield load
    unconfigure_logger()
    for name in loaded:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("[!_]*.py")), ids=lambda path: path.stem)
def test_short(path: Path) -> None:
    """A small example has at most 40 lines, and a test here."""
    source = path.read_text()
    assert len(source.splitlines()) <= 40
    assert f'"{path.stem}"' in Path(__file__).read_text() or path.name in Path(__file__).read_text()


async def test_quickstart(load: Any) -> None:
    """The second request is a hit, and an update is seen at once."""
    app = load("quickstart").app
    assert await told_of(app, "/users/7", "/users/7") == [MISS, HIT]
    async with client_of(app) as client:
        await client.put("/users/7")
    assert await told_of(app, "/users/7", "/users/7") == [MISS, HIT]


async def test_direct_access(load: Any) -> None:
    """A note is written and read by endpoints, and forgotten by a job without a request."""
    example = load("direct_access")
    async with client_of(example.app) as client:
        await client.put("/notes/a", params={"text": "remember"})
        assert (await client.get("/notes/a")).json() == {"text": "remember"}
        await example.forget("a")
        assert (await client.get("/notes/a")).json() == {"text": None}


async def test_direct_access_without_server(load: Any) -> None:
    """Direct access tells when the backend is away."""
    app = load("direct_access", CACHE_BACKEND="redis", REDIS_URL="redis://127.0.0.1:1").app
    assert (await get(app, "/notes/a")).json() == {"text": None}


async def test_values(load: Any) -> None:
    """A report is made once until something is sold; a job reads it without a request."""
    example = load("values")
    assert (await get(example.app, "/reports/2024")).json() == {"year": 2024, "days": ["2024-05-01"]}
    example.sold.clear()
    assert (await get(example.app, "/reports/2024")).json() == {"year": 2024, "days": ["2024-05-01"]}
    assert await example.peek(2024) == example.Report(year=2024, days={date(2024, 5, 1)})
    await post(example.app, "/sales/2024-06-02")
    assert await example.peek(2024) is None
    assert (await get(example.app, "/reports/2024")).json() == {"year": 2024, "days": ["2024-06-02"]}


def test_overriding_in_tests() -> None:
    """The example is a test module that passes."""
    example = EXAMPLES / "overriding_in_tests.py"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(example)]
    ran = subprocess.run(command, cwd=EXAMPLES.parent, capture_output=True, text=True, check=False, timeout=60)
    assert "2 passed" in ran.stdout, ran.stdout


async def test_invalidation_endpoints(load: Any) -> None:
    """A rename drops one user, an import all; the administrative endpoint wants its key."""
    app = load("invalidation_endpoints").app
    assert await told_of(app, "/users/1", "/users/2") == [MISS, MISS]
    await post(app, "/users/1/rename")
    assert await told_of(app, "/users/1", "/users/2") == [MISS, HIT]
    assert (await post(app, "/users/import")).json() == {"durable": True}
    assert await told_of(app, "/users/1", "/users/2") == [MISS, MISS]
    assert (await post(app, "/invalidate-cache?pattern=/users/*")).status_code == 403
    headers = {"x-admin-key": "change me"}
    assert (await post(app, "/invalidate-cache?pattern=/users/*", headers=headers)).status_code == 200
    assert await told_of(app, "/users/1", "/users/2") == [MISS, MISS]


async def test_custom_backend(load: Any) -> None:
    """Four coroutines keep responses, which tags invalidate."""
    example = load("custom_backend")
    assert await told_of(example.app, "/users/7", "/users/7") == [MISS, HIT]
    backend = services.current_services().backend()
    assert isinstance(backend, example.DictBackend)
    assert any(key.startswith("cache:") for key in backend.kept)
    await services.current_services().invalidation().by_tag("user_7")
    assert await told_of(example.app, "/users/7") == [MISS]
    async with example.app.router.lifespan_context(example.app):
        pass
    assert backend.kept == {}


async def test_custom_key_generator(load: Any) -> None:
    """Tenants do not see each other's answer, who has none passes by, and one endpoint answers all alike."""
    app = load("custom_key_generator").app
    a, b = {"x-tenant": "a"}, {"x-tenant": "b"}
    assert [told(await get(app, "/prices", headers=each)) for each in (a, b, a)] == [MISS, MISS, HIT]
    assert (await get(app, "/prices", headers=b)).json() == {"prices of": "b"}
    assert await told_of(app, "/prices", "/prices") == ["fwd=bypass; detail=key"] * 2
    assert [told(await get(app, "/terms", headers=each)) for each in (a, b)] == [MISS, HIT]


async def test_custom_environment(load: Any) -> None:
    """Backend, keys, namespace and invalidation are those of the environment that is named."""
    app = load("custom_environment", ENVIRONMENT="preview").app
    assert await told_of(app, "/pages/a", "/pages/a?utm=1") == [MISS, HIT]
    assert await told_of(app, "/pages/a", headers={"x-branch": "next"}) == [MISS]
    preview: Any = services.current_services()
    assert await preview.backend().delete_pattern("cache:preview:*") == 2
    await get(app, "/pages/a")
    await post(app, "/pages/a/edited")
    soft = await get(app, "/pages/a")
    assert soft.headers["cache-status"] == "app-cache; hit; ttl=-1"


async def test_custom_environment_elsewhere(load: Any) -> None:
    """In another environment all of it is as usual."""
    app = load("custom_environment").app
    assert await told_of(app, "/pages/a", "/pages/a?utm=1") == [MISS, MISS]
    await post(app, "/pages/a/edited")
    assert await told_of(app, "/pages/a") == [MISS]


async def test_own_container(load: Any) -> None:
    """The application's own service and the responses are kept in one backend."""
    example = load("own_container")
    assert await told_of(example.app, "/visitors", "/visitors") == [MISS, HIT]
    assert await example.container.cache.backend().get("visitors") == "1"


async def test_redis_in_production(load: Any, redis_server: Server) -> None:
    """In production responses are kept in Redis; while it is away the application answers all the same."""
    app = load("redis_in_production", ENVIRONMENT="production", REDIS_URL=redis_server.url).app
    async with app.router.lifespan_context(app):
        assert await told_of(app, "/reports/2024", "/reports/2024") == [MISS, HIT]
        assert (await get(app, "/health/cache")).json() == {"status": "healthy", "backend": "RedisBackend"}
    assert redis_server.command("KEYS", "cache:*")
    redis_server.kill()
    assert (await get(app, "/reports/2025")).json() == {"year": 2025}


async def test_redis_in_production_needs_its_url(load: Any) -> None:
    """Production without a URL does not start, and says which variable is missing."""
    with pytest.raises(ValueError, match="REDIS_URL must be given with ENVIRONMENT=production"):
        load("redis_in_production", ENVIRONMENT="production")


async def test_cookies(load: Any) -> None:
    """What is said of cookies and credentials decides what is shared, and with whom."""
    app = load("cookies").app
    browser, other = {"cookie": "session=1; theme=dark"}, {"cookie": "session=2", "authorization": "Bearer 2"}
    assert await told_of(app, "/unsaid", "/unsaid") == [MISS, HIT]
    assert await told_of(app, "/unsaid", headers=browser) == ["fwd=bypass; detail=cookie"]
    assert [told(await get(app, "/public", headers=each)) for each in (browser, other, {})] == [MISS, HIT, HIT]
    one, two = {"authorization": "Bearer 1"}, {"authorization": "Bearer 2"}
    assert [told(await get(app, "/per-token", headers=each)) for each in (one, two, one)] == [MISS, MISS, HIT]
    assert (await get(app, "/per-token", headers=two)).json() == {"yours": "Bearer 2"}
    assert [told(await get(app, "/per-theme", headers=each)) for each in (browser, other, {})] == [MISS, MISS, HIT]
    assert (await get(app, "/per-theme", headers=browser)).json() == {"theme": "dark"}


async def test_reverse_proxy(load: Any) -> None:
    """What the upstream says is cached; while it is away a stored response answers, and else a 502."""

    async def upstream(scope: Any, receive: Any, send: Any) -> None:
        fields = [(b"cache-control", b"max-age=60"), (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        await send({"type": "http.response.body", "body": scope["path"].encode()})

    with http_server(upstream, lifespan="off") as url:
        example = load("reverse_proxy", UPSTREAM=url)
        assert await told_of(example.app, "/a", "/a") == ["fwd=uri-miss", HIT]
        stored = await get(example.app, "/a")
        assert (stored.text, stored.headers.get_list("set-cookie")) == ("/a", ["a=1", "b=2"])
        await example.upstream.aclose()
    assert await told_of(example.app, "/a") == [HIT]
    assert (await get(example.app, "/b")).status_code == 502

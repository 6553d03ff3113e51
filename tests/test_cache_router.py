"""The administrative endpoints: who is let in, what they do, what they say."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Annotated, Any

import pytest
from dependency_injector import providers
from fastapi import Depends, FastAPI, Header, HTTPException, Response

from app_cache import (
    BackendError,
    CacheBackend,
    CacheMiddleware,
    CachePolicy,
    CacheSettings,
    CompressedBackend,
    ConfigurationError,
    MemoryBackend,
    NotWiredError,
    RedisBackend,
    cache,
)
from app_cache.clock.base import Order
from app_cache.fastapi import MAX_TARGETS, cache_router
from app_cache.invalidation import InvalidationService
from containers import CacheContainer, install
from tests.clients import HIT, MISS, client_of, counting_app, get, post, told, told_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import StartServer
    from tests.servers import Server

pytestmark = pytest.mark.anyio
LOCAL = {"host": "127.0.0.1:8000"}


def app_with(authorize: Any = lambda: None, backend: CacheBackend | None = None, **options: Any) -> FastAPI:
    """Return an application with ``/count`` and the router, over *backend*."""
    app = counting_app()
    app.include_router(cache_router(authorize=authorize), **options)
    install(app, CacheContainer(backend=providers.Object(backend or MemoryBackend())))
    return app


def refuse() -> None:
    """Refuse by raising."""
    raise HTTPException(401, "who are you?")


async def is_admin(x_key: Annotated[str, Header()] = "") -> bool:
    """Return whether a header of the request says so."""
    return x_key == "right"


def user_of(admin: Annotated[bool, Depends(is_admin)]) -> dict[str, bool]:
    """Return a user, whoever it is."""
    return {"admin": admin}


class TestAuthorize:
    @pytest.mark.parametrize(
        ("authorize", "status"),
        [
            pytest.param(refuse, 401, id="raises"),
            pytest.param(lambda: False, 403, id="False"),
            pytest.param(lambda: None, 200, id="None"),
            pytest.param(lambda: True, 200, id="True"),
            pytest.param(lambda: 0, 200, id="another false value"),
            pytest.param(user_of, 200, id="an object, by a dependency of its own"),
            pytest.param(is_admin, 403, id="a coroutine that asks the request"),
        ],
    )
    async def test_semantics(self, authorize: Callable[..., Any], status: int) -> None:
        """What raises refuses, False is 403, anything else admits; health is open to all."""
        app = app_with(authorize)
        assert (await post(app, "/invalidate-cache?pattern=/*")).status_code == status
        assert (await get(app, "/cache-stats")).status_code == status
        assert (await get(app, "/health/cache")).status_code == 200

    async def test_asks_the_request(self) -> None:
        """The dependency has the request's own values."""
        assert (await get(app_with(is_admin), "/cache-stats", headers={"x-key": "right"})).status_code == 200

    async def test_refused_does_nothing(self) -> None:
        """Who is refused invalidates nothing."""
        app = app_with(lambda: False)
        await get(app, "/count")
        await post(app, "/invalidate-cache?tag=count")
        assert await told_of(app, "/count") == [HIT]

    def test_missing(self) -> None:
        """Without the argument the router is not built, and the error says what it is for."""
        with pytest.raises(TypeError, match=r"needs authorize=…: a dependency that says who may invalidate"):
            cache_router()

    @pytest.mark.parametrize(
        ("host", "status"),
        [
            pytest.param("127.0.0.1", 200, id="loopback"),
            pytest.param("127.8.8.8", 200, id="elsewhere in the loopback block"),
            pytest.param("::1", 200, id="loopback of IPv6"),
            pytest.param("::ffff:127.0.0.1", 200, id="loopback as a dual-stack socket sees it"),
            pytest.param("192.168.0.7", 403, id="a neighbour"),
            pytest.param("::ffff:192.168.0.7", 403, id="a neighbour as a dual-stack socket sees it"),
            pytest.param("0.0.0.0", 403, id="any"),
            pytest.param("localhost", 403, id="a name"),
            pytest.param("", 403, id="nothing"),
        ],
    )
    async def test_loopback_alone(self, host: str, status: int) -> None:
        """With ``authorize=None`` clients of this machine are admitted, and no others."""
        async with client_of(app_with(None), client=(host, 1), headers=LOCAL) as client:
            assert (await client.get("/cache-stats")).status_code == status
            assert (await client.post("/invalidate-cache?tag=t")).status_code == status

    @pytest.mark.parametrize(
        "name",
        [
            "Forwarded",
            "X-Forwarded-For",
            "X-Forwarded-Proto",
            "x-forwarded-host",
            "X-FORWARDED-anything",
            "X-Real-IP",
            "Via",
            "CF-Connecting-IP",
            "True-Client-IP",
            "X-Client-IP",
        ],
    )
    async def test_behind_a_proxy(self, name: str) -> None:
        """With ``authorize=None`` what a proxy forwards is refused: its own address says nothing."""
        for more, status in (({}, 200), ({name: "127.0.0.1"}, 403)):
            assert (await get(app_with(None), "/cache-stats", headers={**LOCAL, **more})).status_code == status

    @pytest.mark.parametrize(
        ("host", "status"),
        [
            pytest.param("localhost", 200, id="localhost"),
            pytest.param("LOCALHOST:8000", 200, id="localhost with a port, in capitals"),
            pytest.param("127.8.8.8:8000", 200, id="loopback with a port"),
            pytest.param("[::1]", 200, id="loopback of IPv6"),
            pytest.param("[::1]:8000", 200, id="loopback of IPv6 with a port"),
            pytest.param("evil.example", 403, id="a name that somebody points here"),
            pytest.param("localhost.evil.example", 403, id="one that begins alike"),
            pytest.param("127.0.0.1.evil.example", 403, id="one that begins like an address"),
            pytest.param("192.168.0.7", 403, id="another address"),
            pytest.param("[::1", 403, id="what is no host"),
            pytest.param("", 403, id="nothing"),
        ],
    )
    async def test_by_the_name_of_this_machine(self, host: str, status: int) -> None:
        """With ``authorize=None`` who asks by another name than this machine's own is refused."""
        assert (await get(app_with(None), "/cache-stats", headers={"host": host})).status_code == status

    @pytest.mark.parametrize(
        ("fields", "status"),
        [
            pytest.param({"origin": "http://localhost:8000"}, 200, id="of its own"),
            pytest.param({"sec-fetch-site": "same-origin"}, 200, id="the browser says, of its own"),
            pytest.param({"sec-fetch-site": "none"}, 200, id="typed in"),
            pytest.param({"origin": "https://evil.example"}, 403, id="of another site"),
            pytest.param({"origin": "http://localhost:3000"}, 403, id="of another port"),
            pytest.param({"origin": "null"}, 403, id="of nowhere"),
            pytest.param({"sec-fetch-site": "same-site"}, 403, id="the browser says, of the same site"),
        ],
    )
    async def test_from_a_page(self, fields: dict[str, str], status: int) -> None:
        """With ``authorize=None`` what a page of another origin sends is refused."""
        headers = {"host": "localhost:8000", **fields}
        response = await post(app_with(None), "/invalidate-cache?tag=t", headers=headers)
        assert response.status_code == status

    async def test_no_client(self) -> None:
        """With ``authorize=None`` a connection without an address, as of a Unix socket, is refused."""
        async with client_of(app_with(None), client=None, headers=LOCAL) as client:
            assert (await client.get("/cache-stats")).status_code == 403

    def test_warns(self, caplog: pytest.LogCaptureFixture) -> None:
        """``authorize=None`` is warned of in the log."""
        with caplog.at_level(logging.WARNING, "app_cache"):
            cache_router(authorize=None)
        assert [record.message.split()[0] for record in caplog.records] == ["cache.router_open_to_loopback"]

    @pytest.mark.parametrize(
        ("site", "status"),
        [("cross-site", 403), ("same-site", 200), ("same-origin", 200), ("none", 200)],
    )
    async def test_other_sites(self, site: str, status: int) -> None:
        """A browser's request from another site is refused, whoever is logged in."""
        app, headers = app_with(), {"sec-fetch-site": site}
        assert (await post(app, "/invalidate-cache?tag=count", headers=headers)).status_code == status
        assert (await get(app, "/cache-stats", headers=headers)).status_code == status


class TestInvalidate:
    @pytest.mark.parametrize(
        "request_of",
        [
            pytest.param({"params": {"pattern": "/co*"}}, id="pattern in the query, as the document has it"),
            pytest.param({"params": {"tag": "count"}}, id="tag in the query"),
            pytest.param({"params": {"url": "/count"}}, id="path in the query"),
            pytest.param({"params": {"tag": ["other", "count"]}}, id="two tags in the query"),
            pytest.param({"json": {"pattern": "/co*"}}, id="pattern"),
            pytest.param({"json": {"pattern": ["/a", "/count"]}}, id="patterns"),
            pytest.param({"json": {"tag": "count"}}, id="tag"),
            pytest.param({"json": {"tag": ["other", "count"]}}, id="tags"),
            pytest.param({"json": {"url": "http://test/count"}}, id="absolute URL"),
            pytest.param({"json": {"url": ["/count", "/other"]}}, id="paths"),
            pytest.param({"json": {"tag": "other", "pattern": "/count"}}, id="either of two kinds"),
            pytest.param({"json": {"tag": "other"}, "params": {"tag": "count"}}, id="body and query"),
        ],
    )
    async def test_forms(self, request_of: dict[str, Any]) -> None:
        """What is named by tag, pattern or URL, in body or query, is invalidated, and the answer says so."""
        app = app_with()
        await get(app, "/count")
        response = await post(app, "/invalidate-cache", **request_of)
        assert response.status_code == 200
        answer = response.json()
        assert (answer["message"], answer["durable"]) == ("Cache invalidated", True)
        assert isinstance(answer["epoch"], int)
        assert await told_of(app, "/count") == [MISS]

    async def test_a_service_that_gives_no_result(self) -> None:
        """What a service of one's own has taken without a word is told as done."""

        class Silent(InvalidationService):
            async def carry_out(self, order: Order) -> Any:
                await super().carry_out(order)

        app = app_with()
        container = app.state.app_cache
        container.invalidation.override(providers.Factory(Silent, container.store))
        response = await post(app, "/invalidate-cache", params={"tag": "count"})
        assert (response.status_code, response.json()["durable"]) == (200, True)

    async def test_a_service_that_fails(self) -> None:
        """Who asks for an invalidation sees that a service of one's own raises: nothing does it without that."""

        class Failing(InvalidationService):
            async def carry_out(self, order: Order) -> Any:
                raise OSError("the audit is away")

        app = app_with()
        container = app.state.app_cache
        container.invalidation.override(providers.Factory(Failing, container.store))
        async with client_of(app, raises=False) as client:
            await client.get("/count")
            assert (await client.post("/invalidate-cache", params={"tag": "count"})).status_code == 500
            assert told(await client.get("/count")) == HIT

    @pytest.mark.parametrize("target", [{"pattern": "/other/*"}, {"tag": "other"}, {"url": "/coun"}], ids=str)
    async def test_nothing_else(self, target: dict[str, str]) -> None:
        """What is not named stays."""
        app = app_with()
        await get(app, "/count")
        assert (await post(app, "/invalidate-cache", json=target)).status_code == 200
        assert await told_of(app, "/count") == [HIT]

    @pytest.mark.parametrize("form", ["json", "params"])
    async def test_soft(self, form: str) -> None:
        """``soft`` marks as stale rather than drops."""
        app = app_with()
        await get(app, "/count")
        await post(app, "/invalidate-cache", **{form: {"tag": "count", "soft": True}})
        assert await told_of(app, "/count") == ["fwd=stale; stored"]

    @pytest.mark.parametrize(
        "request_of",
        [
            pytest.param({}, id="nothing"),
            pytest.param({"json": {}}, id="an empty object"),
            pytest.param({"json": {"tag": []}}, id="an empty list"),
            pytest.param({"json": {"tag": ""}}, id="an empty tag"),
            pytest.param({"json": {"pattern": ""}}, id="an empty pattern"),
            pytest.param({"params": {"pattern": ""}}, id="an empty pattern in the query"),
            pytest.param({"json": {"pattern": "*" * 257}}, id="a long pattern"),
            pytest.param({"json": {"url": "count"}}, id="a URL that is none"),
            pytest.param({"json": {"url": "ftp://test/count"}}, id="a URL of another scheme"),
            pytest.param({"json": {"patern": "/*"}}, id="a name that is none"),
            pytest.param({"json": {"tag": 7}}, id="a number"),
            pytest.param({"json": {"soft": True}}, id="soft alone"),
            pytest.param({"json": ["/*"]}, id="a list"),
            pytest.param({"content": b"{", "headers": {"content-type": "application/json"}}, id="what is no JSON"),
        ],
    )
    async def test_wrong(self, request_of: dict[str, Any]) -> None:
        """Without a target, or with one that cannot be, the answer is 422 and nothing is invalidated."""
        app = app_with()
        await get(app, "/count")
        response = await post(app, "/invalidate-cache", **request_of)
        assert (response.status_code, bool(response.json()["detail"])) == (422, True)
        assert await told_of(app, "/count") == [HIT]

    @pytest.mark.parametrize(
        ("authorize", "headers", "status"),
        [
            pytest.param(lambda: False, {}, 403, id="not allowed"),
            pytest.param(lambda: True, {"sec-fetch-site": "cross-site"}, 403, id="from another site"),
            pytest.param(lambda: True, {}, 422, id="nothing named"),
        ],
    )
    async def test_refusals(self, authorize: Callable[..., Any], headers: dict[str, str], status: int) -> None:
        """What the router refuses it lets nobody store."""
        response = await post(app_with(authorize), "/invalidate-cache", headers=headers)
        assert (response.status_code, response.headers["cache-control"]) == (status, "no-store")

    def test_described(self) -> None:
        """The description of the API has names, and each status with what comes with it."""
        described = app_with().openapi()
        operations = {
            path: next(iter(methods.values())) for path, methods in described["paths"].items() if path != "/count"
        }
        assert {path: (each["summary"], {*each["responses"]}) for path, each in operations.items()} == {
            "/invalidate-cache": ("Invalidate Cache", {"200", "202", "403", "422"}),
            "/cache-stats": ("Cache Stats", {"200", "403"}),
            "/health/cache": ("Cache Health", {"200", "503"}),
        }
        assert not [each["operationId"] for each in operations.values() if each["operationId"].startswith("_")]

    @pytest.mark.parametrize("named", [pytest.param(0, id="at the limit"), pytest.param(1, id="beyond it")])
    async def test_many_targets(self, named: int) -> None:
        """One request may name a bounded number of targets; beyond, the answer is 422 and says how many."""
        app = app_with()
        await get(app, "/count")
        body = {"tag": ["nobody"] * (MAX_TARGETS - 2), "pattern": "/nowhere/*", "url": ["/nowhere"] * named}
        response = await post(app, "/invalidate-cache?tag=count", json=body)
        if named:
            said = f"name at most {MAX_TARGETS} targets in one request, not {MAX_TARGETS + 1}"
            assert (response.status_code, response.json()["detail"]) == (422, said)
        else:
            assert response.status_code == 200
        assert await told_of(app, "/count") == [HIT if named else MISS]

    @pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
    async def test_other_methods(self, method: str) -> None:
        """No other method invalidates: a link or a prefetch does nothing."""
        app = app_with()
        async with client_of(app) as client:
            await client.get("/count")
            response = await client.request(method, "/invalidate-cache?tag=count")
            assert (response.status_code, response.headers["allow"]) == (405, "POST")
        assert await told_of(app, "/count") == [HIT]

    async def test_four_verbs(self) -> None:
        """Over a backend of four verbs a pattern does what it can, and the answer says what that was."""

        class FourVerbs(CacheBackend):
            def __init__(self) -> None:
                self.values: dict[str, str] = {}

            async def get(self, key: str) -> str | None:
                return self.values.get(key)

            async def set(self, key: str, value: str, timeout: int) -> None:
                self.values[key] = value

            async def delete(self, key: str) -> None:
                self.values.pop(key, None)

            async def close(self) -> None:
                self.values.clear()

        app = app_with(backend=FourVerbs())
        await get(app, "/count")
        answer = (await post(app, "/invalidate-cache?pattern=/co*")).json()
        assert (answer["durable"], answer["widened_to"]) == (True, "everything")
        assert await told_of(app, "/count") == [MISS]

    async def test_server_away(self, redis_server: Server) -> None:
        """While the server is away the answer is 202: it holds in this process, and there once it is back."""
        settings = CacheSettings({"CACHE_BACKEND": "redis", "REDIS_URL": redis_server.url})
        container, app = CacheContainer(settings=settings), counting_app()
        app.include_router(cache_router(authorize=None))
        install(app, container)
        await get(app, "/count")
        await container.stores().close()
        redis_server.pause()
        response = await post(app, "/invalidate-cache?tag=count", headers=LOCAL)
        assert (response.status_code, response.json()["durable"]) == (202, False)
        redis_server.resume()
        assert (await get(app, "/count")).text == "2"
        await container.stores().close()
        await container.backend().close()


class TestStats:
    async def test_counts(self) -> None:
        """The statistics count what happened, by the words of Cache-Status."""
        app = app_with()
        await told_of(app, "/count", "/count", "/count")
        stats = (await get(app, "/cache-stats")).json()
        assert (stats["backend"], stats["namespace"], stats["size"]) == ("MemoryBackend", "", 1)
        assert stats["breaker"] is None
        assert (stats["counts"]["hit"], stats["counts"]["uri-miss"]) == (2, 1)

    async def test_details(self) -> None:
        """Requests that passed by, and answers that were not stored, are counted by their reason too."""
        app = app_with()
        app.get("/cookie")(cache(timeout=60)(lambda: Response(headers={"set-cookie": "a=b"})))
        for path, fields in (("/count", {}), ("/count", {"cookie": "a=b"}), ("/cookie", {})):
            await get(app, path, headers=fields)
        counts = (await get(app, "/cache-stats")).json()["counts"]
        names = ("bypass", "bypass-cookie", "uri-miss", "uri-miss-set-cookie")
        assert [counts.get(name) for name in names] == [1, 1, 2, 1]

    async def test_wrapped(self) -> None:
        """A backend within another is named by statistics and health too: it is the one that may be away."""
        app = app_with(backend=CompressedBackend(CompressedBackend(MemoryBackend())))
        said = [(await get(app, path)).json()["backend"] for path in ("/cache-stats", "/health/cache")]
        assert said == ["CompressedBackend(CompressedBackend(MemoryBackend))"] * 2

    @pytest.mark.parametrize(
        "error",
        [
            pytest.param(BackendError("away"), id="away"),
            pytest.param(ConnectionError("away"), id="raises something"),
            pytest.param(None, id="hangs"),
        ],
    )
    async def test_server_away(self, monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> None:
        """While the backend does not say its size the statistics of the process are told all the same."""
        monkeypatch.setattr("app_cache.fastapi.CHECK_TIMEOUT_S", 0.05)

        class Away(MemoryBackend):
            async def size(self) -> int:
                if error is None:
                    await asyncio.Event().wait()
                raise error or AssertionError

        async with asyncio.timeout(30):
            response = await get(app_with(backend=Away()), "/cache-stats")
        assert (response.status_code, response.json()["size"]) == (200, None)

    async def test_size_that_is_none(self) -> None:
        """Nor does a backend that gives something else than a number as its size keep anything back."""

        class Vague(MemoryBackend):
            async def size(self) -> Any:
                return "some"

        response = await get(app_with(backend=Vague()), "/cache-stats")
        assert (response.status_code, response.json()["size"]) == (200, None)

    async def test_breaker(self, start_server: StartServer) -> None:
        """Whether the backend is asked is told as well: not any more, once it lets nobody in."""
        server = start_server(password="s3cret")
        app = app_with(backend=RedisBackend(f"redis://:wr0ng@127.0.0.1:{server.port}"))
        seen = [(await get(app, "/cache-stats")).json()["breaker"]]
        await get(app, "/count")
        seen.append((await get(app, "/cache-stats")).json()["breaker"])
        assert seen == ["closed", "open"]


class Unfaithful(MemoryBackend):
    """Gives back something else."""

    async def get(self, key: str) -> str | None:
        return "else"


class TestHealth:
    async def test_healthy(self) -> None:
        """A backend that gives back what it is given is 200."""
        response = await get(app_with(), "/health/cache")
        assert (response.status_code, response.json()) == (200, {"status": "healthy", "backend": "MemoryBackend"})

    async def test_unhealthy(self) -> None:
        """A backend that gives back something else is 503."""
        response = await get(app_with(backend=Unfaithful()), "/health/cache")
        assert response.status_code == 503
        assert response.json() == {
            "status": "unhealthy",
            "error": "the backend does not give back what it was given",
        }

    async def test_server(self, redis_server: Server) -> None:
        """With a server it is 200 while the server answers, and 503 with a reason that leaks nothing when not."""
        settings = CacheSettings({"CACHE_BACKEND": "redis", "REDIS_URL": redis_server.url})
        for status in (200, 503):
            container, app = CacheContainer(settings=settings), counting_app()
            app.include_router(cache_router(authorize=None))
            install(app, container)
            response = await get(app, "/health/cache")
            assert response.status_code == status
            assert str(redis_server.port) not in response.text
            await container.backend().close()
            redis_server.kill()

    @pytest.mark.parametrize("denied", ["get", "set", "mget", "evalsha", "time", "pexpire"])
    async def test_permission(self, start_server: StartServer, denied: str) -> None:
        """Without a permission that each fill needs it is 503, and 200 once that is given."""
        server = start_server()
        server.command("ACL", "SETUSER", "shop", "on", ">s3cret", "~*", "+@all", f"-{denied}")
        backend = RedisBackend(f"redis://shop:s3cret@127.0.0.1:{server.port}")
        app, again = app_with(backend=backend), app_with(backend=backend)
        assert await told_of(app, "/count") == ["fwd=uri-miss"]
        response = await get(app, "/health/cache")
        assert (response.status_code, response.json()["status"]) == (503, "degraded")
        server.command("ACL", "SETUSER", "shop", f"+{denied}")
        assert (await get(again, "/health/cache")).status_code == 200
        await backend.close()

    async def test_leaves_nothing(self, redis_server: Server) -> None:
        """A check leaves no key behind in the server."""
        backend = RedisBackend(redis_server.url)
        assert (await get(app_with(backend=backend), "/health/cache")).status_code == 200
        assert redis_server.command("DBSIZE") == 0
        await backend.close()


class TestRouter:
    @pytest.mark.parametrize(
        "options",
        [
            pytest.param({"default_policy": CachePolicy(timeout=60, statuses=[401])}, id="default"),  # type: ignore[arg-type]
            pytest.param({"policies": {"*": CachePolicy(methods=frozenset({"GET", "POST"}))}}, id="by path"),
            pytest.param({"default_policy": CachePolicy.http()}, id="by the RFC alone"),
        ],
    )
    async def test_never_cached(self, options: dict[str, Any]) -> None:
        """No policy reaches the endpoints, and what they say is for nobody else."""
        app = FastAPI()
        app.include_router(cache_router(authorize=lambda: None), prefix="/admin")
        install(app, CacheContainer(), **options)
        async with client_of(app) as client:
            for _ in range(2):
                answers = [
                    await client.get("/admin/cache-stats"),
                    await client.get("/admin/health/cache"),
                    await client.post("/admin/invalidate-cache?tag=t"),
                ]
                assert [(told(each), each.headers.get("cache-control")) for each in answers] == [
                    (None, "no-store")
                ] * 3

    async def test_prefix(self) -> None:
        """The router may have a prefix of its own, and one of the application's."""
        app = counting_app()
        app.include_router(cache_router(authorize=lambda: None, prefix="/cache"), prefix="/admin")
        install(app, CacheContainer())
        assert (await get(app, "/admin/cache/health/cache")).status_code == 200

    async def test_plain_middleware(self) -> None:
        """It works with ``app.add_middleware(CacheMiddleware, backend=…)`` too."""
        app = counting_app()
        app.include_router(cache_router(authorize=None))
        app.add_middleware(CacheMiddleware, backend=MemoryBackend())
        await get(app, "/count")
        assert (await post(app, "/invalidate-cache?tag=count", headers=LOCAL)).status_code == 200
        assert await told_of(app, "/count") == [MISS]

    async def test_without_a_cache(self) -> None:
        """In an application without a cache it says what to call."""
        app = FastAPI()
        app.include_router(cache_router(authorize=lambda: None))
        with pytest.raises(NotWiredError, match="has no cache"):
            await get(app, "/cache-stats")

    async def test_documented(self) -> None:
        """The application's OpenAPI document has the three endpoints and what they take."""
        document = (await get(app_with(), "/openapi.json")).json()
        assert {*document["paths"]} == {"/count", "/invalidate-cache", "/cache-stats", "/health/cache"}
        taken = document["components"]["schemas"]["Targets"]["properties"]
        assert {*taken} == {"pattern", "tag", "url", "soft"}

    def test_depends(self) -> None:
        """A dependency that is given within ``Depends`` is refused, and what to give is said."""
        with pytest.raises(ConfigurationError, match=r"takes the function, without Depends: authorize=is_admin$"):
            cache_router(authorize=Depends(is_admin))

    @pytest.mark.parametrize("authorize", [True, "admin"], ids=["a flag", "a name"])
    def test_wrong_authorize(self, authorize: Any) -> None:
        """What is no dependency is refused as the router is built."""
        with pytest.raises(ConfigurationError, match="authorize must be a dependency, or None"):
            cache_router(authorize=authorize)

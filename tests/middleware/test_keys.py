"""Which requests are the same: POST by its body, hooks of the application's own (SPEC §3.3, §4)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import APIRouter, FastAPI, Request, Response

from app_cache import (
    CacheMiddleware,
    CachePolicy,
    ConfigurationError,
    DefaultKeyGenerator,
    KeyGenerator,
    MemoryBackend,
    cache,
)
from containers import CacheContainer
from tests.clients import all_blocked
from tests.middleware.apps import client_of, messages_of, put_cache, scope_of, told
from tests.stored import FourMethods

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.anyio

MISS = "fwd=uri-miss; stored"
CAP = 1000


def echoing(**options: Any) -> FastAPI:
    """Return an application that answers a POST with its body."""
    app = FastAPI()

    @app.post("/")
    @cache(timeout=60, max_body=CAP, **options)
    async def answer(request: Request) -> Response:
        return Response(await request.body())

    put_cache(app)
    return app


async def test_a_path_that_middleware_rewrites() -> None:
    """Requests that middleware further out leads to different endpoints, or with other values, are different."""
    app = FastAPI()
    app.get("/users/{user}")(cache(timeout=60)(lambda user: user))
    app.get("/none")(cache(timeout=60)(lambda: "nobody"))
    put_cache(app)

    @app.middleware("http")
    async def rewrite(request: Request, call_next: Any) -> Any:
        request.scope["path"] = request.headers.get("x-page", "/none")
        return await call_next(request)

    async with client_of(app) as client:
        for expected in (MISS, "hit", "hit"):
            for page, text in (("/users/1", "1"), ("/users/2", "2"), ("/none", "nobody")):
                answer = await client.get("/", headers={"x-page": page})
                assert (answer.json(), told(answer)) == (text, expected)


class OfAnyHost(KeyGenerator):
    """Gives one key to a page at any host, however its path is spelt."""

    def generate_cache_key(self, request: Request) -> str:
        return request.url.path.lower()


@pytest.mark.parametrize("backend", [MemoryBackend, FourMethods])
@pytest.mark.parametrize("asked", [1, 3], ids=["hit once", "given again"])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize(
    "invalidate",
    [
        pytest.param(lambda service, soft: service.by_url("http://b.test/Page", soft=soft), id="by URL"),
        pytest.param(lambda service, soft: service.by_url("/Page", soft=soft), id="by path"),
        pytest.param(lambda service, soft: service.by_pattern("/Pag*", soft=soft), id="by pattern"),
    ],
)
async def test_two_urls_of_one_key(invalidate: Any, *, soft: bool, asked: int, backend: Any) -> None:
    """Who asks by one URL gets nothing that was invalidated by it, though it was stored by another (§4.4)."""
    app, runs = FastAPI(), list[str]()
    app.get("/{page}")(cache(timeout=60, key=OfAnyHost())(lambda page: runs.append(page)))
    container = put_cache(app, backend=backend())
    async with client_of(app) as client:
        for _ in range(asked):
            for url in ("http://a.test/page", "http://b.test/Page"):
                await client.get(url)
        await invalidate(container.invalidation(), soft)
        before = len(runs)
        assert told(await client.get("http://b.test/Page")) != "hit"
    assert len(runs) == before + 1


async def test_two_urls_of_one_key_share_it() -> None:
    """As long as none of them is invalidated, all URLs that have one key have one answer."""
    app, runs = FastAPI(), list[str]()
    app.get("/{page}")(cache(timeout=60, key=OfAnyHost())(lambda page: runs.append(page)))
    put_cache(app)
    async with client_of(app) as client:
        for url in ("http://a.test/page", "http://b.test/Page", "http://c.test/PAGE") * 2:
            await client.get(url)
    assert runs == ["page"]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b'{"a": 1}', id="json"),
        pytest.param(b"\xff\xfe\x00", id="no UTF-8"),
        pytest.param(b"a" * CAP, id="at the cap"),
    ],
)
async def test_post(body: bytes) -> None:
    """A POST is cached by its body and its content type."""
    async with client_of(echoing()) as client:
        for expected in (MISS, "hit"):
            answer = await client.post("/", content=body, headers={"content-type": "a/b"})
            assert (answer.content, told(answer)) == (body, expected)
        assert (
            told(await client.post("/", content=body + b"1"[: CAP - len(body)], headers={"content-type": "c/d"}))
            == MISS
        )


def limited() -> FastAPI:
    """Return an application with a limit of content, one of whose routers has a larger one."""
    app = FastAPI(max_body_size=20)
    for path, limit in (("/of-the-app", None), ("/of-its-own", 1000)):
        router = APIRouter()

        @router.post(path)
        @cache(timeout=60)
        async def answer(request: Request) -> Response:
            return Response(await request.body())

        app.include_router(router, max_body_size=limit)
    app.add_exception_handler(413, lambda request, error: Response("my 413", 413))
    return app


@pytest.mark.parametrize("chunked", [False, True], ids=["length told", "chunked"])
@pytest.mark.parametrize(
    ("path", "size", "status"),
    [
        pytest.param("/of-the-app", 10, 200, id="within"),
        pytest.param("/of-the-app", 100, 413, id="beyond"),
        pytest.param("/of-its-own", 10, 200, id="within both"),
        pytest.param("/of-its-own", 100, 200, id="within that of its router"),
        pytest.param("/of-its-own", 2000, 413, id="beyond that of its router"),
    ],
)
async def test_limit_of_the_application(path: str, size: int, status: int, *, chunked: bool) -> None:
    """Content is let through or refused as without a cache; it is cached by what the first limit lets through."""
    plain, app = limited(), limited()
    put_cache(app)
    framed = (b"transfer-encoding", b"chunked") if chunked else (b"content-length", b"%d" % size)
    scope = scope_of(path, method="POST", headers=[(b"host", b"test"), framed])
    content = {"type": "http.request", "body": b"a" * size}
    bare_start, bare_body = await messages_of(plain, {**scope}, content)
    assert bare_start["status"] == status
    for is_hit in (False, not chunked and size <= 20):
        start, body = await messages_of(app, {**scope}, content)
        assert (start["status"], body["body"]) == (status, bare_body["body"])
        said = dict(start["headers"]).get(b"cache-status", b"")
        assert said.startswith(b"app-cache; hit") == is_hit


async def test_post_beyond_the_cap() -> None:
    """A body beyond the cap passes whole, in its parts, and is not kept."""
    app = echoing()
    parts = [{"type": "http.request", "body": b"a" * 400, "more_body": n < 4} for n in range(5)]
    for _ in range(2):
        start, body = await messages_of(app, scope_of("/", method="POST"), *parts)
        assert body["body"] == b"a" * 2000
        assert (b"cache-status", b"app-cache; fwd=bypass; detail=too-large") in start["headers"]


async def test_post_that_breaks_off() -> None:
    """A client that leaves within its body is seen by the handler as without a cache."""
    app, seen = FastAPI(), []

    @app.post("/")
    @cache(timeout=60)
    async def answer(request: Request) -> None:
        seen.extend([await request.receive(), await request.receive()])

    put_cache(app)
    first = {"type": "http.request", "body": b"a", "more_body": True}
    await messages_of(app, scope_of("/", method="POST"), first, {"type": "http.disconnect"})
    assert seen == [first, {"type": "http.disconnect"}]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"vary_by": lambda request: None}, id="vary_by passes it by"),
        pytest.param({"tags": lambda request: [""]}, id="a hook fails"),
    ],
)
async def test_post_that_is_passed_by(options: dict[str, Any]) -> None:
    """A POST whose body was read for a key that it then does not get reaches its handler with the body."""
    async with client_of(echoing(**options)) as client:
        for _ in range(2):
            answer = await client.post("/", content=b"text")
            assert (answer.content, told(answer)) == (b"text", "fwd=bypass; detail=key")


async def test_body_in_parts_is_one_body() -> None:
    """How a body is cut into messages does not matter to its key."""
    app = echoing()
    for parts in ([b"ab", b"c"], [b"a", b"", b"bc"], [b"abc"]):
        messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
        start, body = await messages_of(
            app, scope_of("/", method="POST"), *messages, {"type": "http.request", "body": b""}
        )
        assert body["body"] == b"abc"
        assert (b"cache-status", b"app-cache; hit; ttl=59") in start["headers"] or parts == [b"ab", b"c"]


def key_by_user(request: Request) -> str | None:
    """Return a key for each user and page, and none for nobody."""
    user = request.headers.get("x-user")
    return None if user == "nobody" else f"user_cache:{user}:{request.path_params['page']}"


class ByUser(CacheMiddleware):
    """The document's way to a key of one's own."""

    def generate_cache_key(self, request: Request) -> str | None:
        return key_by_user(request)


class ByUserLater(CacheMiddleware):
    """The same, with the body."""

    async def generate_cache_key(self, request: Request) -> str | None:
        await request.body()
        return key_by_user(request)


class ByUserGenerator(KeyGenerator):
    """The same as a generator."""

    def generate_cache_key(self, request: Request) -> str | None:
        return key_by_user(request)


def by_subclass(app: FastAPI) -> None:
    """Add a subclass of the middleware."""
    app.add_middleware(ByUser, backend=MemoryBackend())


def by_async_subclass(app: FastAPI) -> None:
    """Add a subclass of the middleware whose hook is a coroutine."""
    app.add_middleware(ByUserLater, backend=MemoryBackend())


def by_option(app: FastAPI) -> None:
    """Give the middleware a generator."""
    app.add_middleware(CacheMiddleware, backend=MemoryBackend(), key_generator=ByUserGenerator())


def by_container(app: FastAPI) -> None:
    """Give the container a generator."""
    put_cache(app).key_generator.override(ByUserGenerator())


HOOKS = [by_subclass, by_async_subclass, by_option, by_container]


@pytest.mark.parametrize("hook", HOOKS)
async def test_own_keys(hook: Callable[[FastAPI], None]) -> None:
    """A key of the application's own decides which requests are the same; None passes one by, each time."""
    app, runs = FastAPI(), []

    @app.get("/{page}")
    @cache(timeout=60)
    def answer(page: str, request: Request) -> str:
        runs.append(request.headers["x-user"])
        return runs[-1]

    hook(app)
    async with client_of(app) as client:
        for user in ("alice", "bob", "alice", "nobody", "nobody"):
            got = await client.get(f"/page?a={len(runs)}", headers={"x-user": user})
            assert (got.json(), told(got) == "fwd=bypass; detail=key") == (user, user == "nobody")
    assert runs == ["alice", "bob", "nobody", "nobody"]


async def test_what_is_passed_by_does_not_wait() -> None:
    """Requests that a hook passes by run at once, none waiting for another (SPEC §4.3)."""
    app, runs, gate = FastAPI(), [], asyncio.Event()

    @app.get("/")
    @cache(timeout=60, vary_by=lambda request: None)
    async def answer() -> str:
        runs.append(1)
        await gate.wait()
        return "text"

    put_cache(app)
    async with client_of(app) as client:
        asked = [asyncio.create_task(client.get("/")) for _ in range(10)]
        await all_blocked()
        assert len(runs) == 10
        gate.set()
        await asyncio.gather(*asked)


class ByUserAndDefault(CacheMiddleware):
    """Adds to the default key."""

    async def generate_cache_key(self, request: Request) -> str:
        default = super().generate_cache_key(request)
        assert isinstance(default, Awaitable)
        return f"{await default}:{request.headers['x-user']}"


async def test_more_than_the_default_key() -> None:
    """A subclass may build on the default key."""
    app = FastAPI()
    app.post("/")(cache(timeout=60)(lambda: "text"))
    app.add_middleware(ByUserAndDefault, backend=MemoryBackend())
    async with client_of(app) as client:
        for body, user, expected in (("a", "1", MISS), ("a", "1", "hit"), ("b", "1", MISS), ("a", "2", MISS)):
            assert told(await client.post("/", content=body, headers={"x-user": user})) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({}, "either backend=… or container=…", id="nothing"),
        pytest.param({"backend": MemoryBackend(), "container": CacheContainer()}, "either backend=…", id="both"),
        pytest.param({"container": CacheContainer(), "namespace": "a"}, "set CACHE_NAMESPACE", id="namespace"),
        pytest.param({"container": CacheContainer(), "clock": float}, "override container.clock", id="clock"),
        pytest.param(
            {"container": CacheContainer(), "key_generator": DefaultKeyGenerator},
            "instance of a subclass of KeyGenerator",
            id="key generator is a class",
        ),
        pytest.param({"backend": MemoryBackend(), "namespace": "a b"}, "not 'a b'", id="namespace with a blank"),
        pytest.param({"backend": MemoryBackend(), "default_policy": 60}, "not 60", id="policy"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    """What cannot work is refused when the middleware is made, in a sentence that names it."""
    with pytest.raises(ConfigurationError, match=message):
        CacheMiddleware(FastAPI(), **options)


@pytest.mark.parametrize("hook", HOOKS)
async def test_key_of_the_endpoint(hook: Callable[[FastAPI], None]) -> None:
    """A generator that the endpoint names stands in for the application's."""
    app = FastAPI()
    app.get("/")(cache(timeout=60, key=DefaultKeyGenerator())(lambda: "text"))
    hook(app)
    async with client_of(app) as client:
        for url, user, expected in (("/", "alice", MISS), ("/", "bob", "hit"), ("/?a=1", "alice", MISS)):
            assert told(await client.get(url, headers={"x-user": user})) == expected


async def test_vary_by() -> None:
    """What ``vary_by`` returns, plain or awaited, joins the key."""

    async def later(request: Request) -> str:
        return request.headers["x-user"]

    app = FastAPI()
    app.get("/a")(cache(timeout=60, vary_by=lambda request: request.headers["x-user"])(lambda: "text"))
    app.get("/b")(cache(timeout=60, vary_by=later)(lambda: "text"))
    put_cache(app)
    async with client_of(app) as client:
        for url in ("/a", "/b"):
            for user, expected in (("alice", MISS), ("bob", MISS), ("alice", "hit")):
                assert told(await client.get(url, headers={"x-user": user})) == expected


def fail(*_: Any) -> Any:
    """Raise."""
    raise RuntimeError("the hook's own")


class Failing(KeyGenerator):
    """Raises, or gives what is no key."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def generate_cache_key(self, request: Request) -> Any:
        return fail() if self.answer is None else self.answer


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"key": Failing(None)}, id="key raises"),
        pytest.param({"key": Failing(7)}, id="key is a number"),
        pytest.param({"key": Failing(b"a")}, id="key is bytes"),
        pytest.param({"vary_by": fail}, id="vary_by raises"),
        pytest.param({"vary_by": lambda request: 7}, id="vary_by is a number"),
        pytest.param({"tags": fail}, id="tags raise"),
        pytest.param({"tags": lambda request: [7]}, id="a tag is a number"),
        pytest.param({"tags": lambda request: None}, id="tags are None"),
        pytest.param({"tags": lambda request: "users"}, id="tags are a text"),
    ],
)
async def test_hooks_that_fail(options: dict[str, Any]) -> None:
    """A hook that raises, or gives what is no name, costs the cache and not the answer."""
    app = FastAPI()
    app.get("/")(cache(timeout=60, **options)(lambda: "text"))
    put_cache(app)
    async with client_of(app) as client:
        for _ in range(2):
            answer = await client.get("/")
            assert (answer.status_code, answer.json(), told(answer)) == (200, "text", "fwd=bypass; detail=key")


async def test_any_text_is_a_key() -> None:
    """A key may be any string, lone surrogates included."""
    app = FastAPI()
    app.get("/")(cache(timeout=60, key=Failing("\udcff\0\n" + "a" * 10_000))(lambda: "text"))
    put_cache(app)
    async with client_of(app) as client:
        assert [told(await client.get("/")) for _ in range(2)] == [MISS, "hit"]


def asked_for(request: Request) -> str:
    """Return a text that no encoding has, another for each number."""
    return chr(0xDC80 + int(request.query_params["n"]))


class ByNumber(KeyGenerator):
    """Gives that text."""

    def generate_cache_key(self, request: Request) -> str:
        return asked_for(request)


@pytest.mark.parametrize("options", [{"vary_by": asked_for}, {"key": ByNumber()}], ids=["vary_by", "key"])
async def test_lone_surrogates_are_told_apart(options: dict[str, Any]) -> None:
    """Two keys that no encoding has are two keys; each is invalidated by itself."""
    app = FastAPI()
    app.get("/")(cache(timeout=60, include_query=[], **options)(lambda n: n))
    container = put_cache(app)
    async with client_of(app) as client:
        for told_so in (MISS, "hit"):
            for n in "12":
                answer = await client.get(f"/?n={n}")
                assert (answer.json(), told(answer)) == (n, told_so)
        if "key" in options:
            await container.invalidation().by_key(chr(0xDC81))
            assert [told(await client.get(f"/?n={n}")) for n in "12"] == [MISS, "hit"]


@pytest.mark.parametrize(
    ("options", "same", "other"),
    [
        pytest.param({"include_query": ["q"]}, "/?q=1&utm=2", "/?q=2", id="included"),
        pytest.param({"exclude_query": ["utm"]}, "/?q=1&utm=2", "/?q=1&b=1", id="excluded"),
        pytest.param(
            {"exclude_query": ["utm"]}, "/?q=1&%75tm=2", "/?q=1&utm2=1", id="excluded in another spelling"
        ),
    ],
)
async def test_query_of_the_key(options: dict[str, Any], same: str, other: str) -> None:
    """Only the query parameters that the policy lets in join the key."""
    app = FastAPI()
    app.get("/")(cache(timeout=60, **options)(lambda q: q))
    put_cache(app)
    async with client_of(app) as client:
        assert [told(await client.get(url)) for url in ("/?q=1", same, other)] == [MISS, "hit", MISS]


async def test_namespaces() -> None:
    """Two namespaces of one backend do not see each other."""
    backend = MemoryBackend()

    async def bare(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a"})

    for name in ("a", "b"):
        app = CacheMiddleware(bare, backend, namespace=name, default_policy=CachePolicy(timeout=60))
        async with client_of(app) as client:
            assert [told(await client.get("/")) for _ in range(2)] == [MISS, "hit"]

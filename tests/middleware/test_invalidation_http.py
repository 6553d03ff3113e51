"""What a write makes invalid: by HTTP itself, and by what its endpoint names (RFC 9111 §4.4, SPEC §6.5)."""

from __future__ import annotations

import asyncio
import functools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from dependency_injector import providers
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse, StreamingResponse
from fastapi.routing import APIRoute

from app_cache import CacheMiddleware, CachePolicy, MemoryBackend, RedisBackend, cache, invalidates
from app_cache.backends.base import CacheBackend
from app_cache.clock.base import Order
from app_cache.fastapi import Invalidation
from app_cache.invalidation import InvalidationResult, InvalidationService
from tests.clients import MISS
from tests.middleware.apps import client_of, put_cache, scope_of, told
from tests.stored import FourMethods

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.servers import Server

pytestmark = pytest.mark.anyio


async def forgotten(app: Any, method: str, url: str, *paths: str, **options: Any) -> list[str]:
    """Return which of *paths*, all stored, a request of *method* for *url* makes invalid."""
    async with client_of(app) as client:
        for path in paths:
            await client.get(path)
            assert told(await client.get(path)) == "hit"
        await client.request(method, url, **options)
        return [path for path in paths if told(await client.get(path)) != "hit"]


def writing(answer: Any, *, method: str = "POST", url: str = "/items/{item}", **options: Any) -> FastAPI:
    """Return an application whose pages are cached, with an endpoint that answers a write by *answer*."""
    app = FastAPI()

    async def write(item: str, request: Request) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    app.api_route(url, methods=[method])(invalidates(**options)(write) if options else write)
    app.get("/{page:path}")(cache(timeout=60)(lambda page: page))
    put_cache(app)
    return app


@pytest.mark.parametrize(
    ("method", "answer", "expected"),
    [
        pytest.param("POST", Response("a"), True, id="POST"),
        pytest.param("PUT", Response("a"), True, id="PUT"),
        pytest.param("PATCH", Response("a"), True, id="PATCH"),
        pytest.param("DELETE", Response(status_code=204), True, id="DELETE"),
        pytest.param("FROBNICATE", Response("a"), True, id="unknown method"),
        pytest.param("POST", RedirectResponse("/else", 303), True, id="redirect"),
        pytest.param("OPTIONS", Response("a"), False, id="OPTIONS"),
        pytest.param("POST", Response("a", 400), False, id="refused"),
        pytest.param("POST", Response("a", 500), False, id="failed"),
        pytest.param("POST", HTTPException(404), False, id="not found"),
        pytest.param("POST", RuntimeError("a"), False, id="raised"),
    ],
)
async def test_unsafe_methods(method: str, answer: Any, expected: bool) -> None:
    """A method that is not safe, answered well, makes its URL invalid with every query, and no other URL."""
    app = writing(answer, method=method)
    expected_paths = ["/items/1", "/items/1?a=2"] if expected else []
    assert await forgotten(app, method, "/items/1?x", "/items/1", "/items/1?a=2", "/items/2") == expected_paths


@pytest.mark.parametrize("name", ["location", "content-location"])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param("/pages/a", ["/pages/a"], id="path"),
        pytest.param("/pages/a?x#y", ["/pages/a"], id="with a query"),
        pytest.param("2", ["/items/2"], id="relative"),
        pytest.param("http://test/pages/a", ["/pages/a"], id="absolute"),
        pytest.param("http://TEST/pages/a", ["/pages/a"], id="host in capitals"),
        pytest.param("/pages/%C3%BC", ["/pages/ü"], id="encoded"),
        pytest.param("https://test/pages/a", [], id="another scheme"),
        pytest.param("http://other/pages/a", [], id="another host"),
        pytest.param("//other/pages/a", [], id="another host without scheme"),
        pytest.param("http://[/", [], id="no URL"),
    ],
)
async def test_locations(name: str, value: str, expected: list[str]) -> None:
    """Location and Content-Location make invalid what they name at the same origin."""
    app = writing(Response(status_code=201, headers={name: value}))
    paths = ("/pages/a", "/pages/ü", "/items/2", "/pages/b")
    assert await forgotten(app, "POST", "/items/1", *paths) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [("location", "/pages/a"), ("content-location", "/pages/a"), ("cache-group-invalidation", '"a"')],
)
async def test_what_a_write_elsewhere_names(name: str, value: str) -> None:
    """A write to a URL of which nothing is cached makes invalid what its answer names, and that alone."""
    app = FastAPI()

    @app.get("/pages/{page}")
    @cache(timeout=60)
    def read(page: str, response: Response) -> str:
        response.headers["cache-groups"] = f'"{page}"'
        return page

    @app.post("/orders")
    def write() -> Response:
        return Response(status_code=201, headers={name: value})

    put_cache(app)
    assert await forgotten(app, "POST", "/orders", "/pages/a", "/pages/b") == ["/pages/a"]


@pytest.mark.parametrize("how", ["a dependency", "a background task"])
async def test_a_commit_after_the_answer(how: str) -> None:
    """What was read between the answer to a write and the commit that follows it is asked for anew (F25)."""
    app, committed, answered = FastAPI(), asyncio.Event(), asyncio.Event()
    state = ["old"]

    async def commit() -> None:
        await committed.wait()
        state[0] = "new"

    async def transaction() -> AsyncIterator[None]:
        yield
        await commit()

    app.get("/item")(cache(timeout=60)(lambda: state[0]))

    @app.put("/item", dependencies=[Depends(transaction)] if how == "a dependency" else [])
    @invalidates(urls=["/item"])
    async def put(tasks: BackgroundTasks) -> None:
        if how == "a background task":
            tasks.add_task(commit)

    put_cache(app)

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            answered.set()

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async with client_of(app) as client:
        change = asyncio.create_task(app(scope_of("/item", method="PUT"), receive, send))
        await answered.wait()
        assert [(await client.get("/item")).json() for _ in range(2)] == ["old"] * 2
        committed.set()
        await change
        assert (await client.get("/item")).json() == "new"


async def commits() -> AsyncIterator[None]:
    """Commit at once when the answer has been sent."""
    yield


async def commits_before() -> AsyncIterator[None]:
    """Commit before it is sent."""
    yield


def _handed_on(function: Any) -> Any:
    return functools.wraps(function)(lambda *values: function(*values))


class Commits:
    """A dependency that is an object, and commits when the answer has been sent."""

    @_handed_on
    async def __call__(self) -> AsyncIterator[None]:
        yield


def by_task(tasks: BackgroundTasks) -> None:
    """Perhaps leave something to do."""


ONCE, EXIT, TASKS = Depends(commits_before, scope="function"), Depends(commits), Depends(by_task)


@pytest.mark.parametrize(
    ("backend", "dependency", "overridden", "times"),
    [
        pytest.param(MemoryBackend(), EXIT, False, 1, id="nobody else can have filled it"),
        pytest.param(FourMethods(), EXIT, False, 2, id="another process may have"),
        pytest.param(FourMethods(), Depends(Commits()), False, 2, id="another process, and a decorator"),
        pytest.param(FourMethods(), TASKS, False, 2, id="a background task"),
        pytest.param(FourMethods(), ONCE, False, 1, id="a commit before the answer"),
        pytest.param(FourMethods(), None, False, 1, id="no commit"),
        pytest.param(FourMethods(), ONCE, True, 2, id="a dependency in the place of another"),
    ],
)
async def test_a_change_that_ends_with_its_answer(
    backend: CacheBackend, dependency: Any, overridden: bool, times: int
) -> None:
    """Where nothing can have been committed after the answer to a write, it invalidates once."""
    app = FastAPI()
    if overridden:
        app.dependency_overrides[commits_before] = commits
    write = invalidates(tags=["items"])(lambda: "made")
    app.post("/items", dependencies=[] if dependency is None else [dependency])(write)
    container = put_cache(app, backend=backend)
    async with client_of(app) as client:
        await client.post("/items")
    assert container.store().stats["invalidations"] == times


async def test_a_service_that_gives_no_result() -> None:
    """A service of one's own that returns nothing costs no write its answer."""

    class Silent(InvalidationService):
        async def carry_out(self, order: Order) -> Any:
            await super().carry_out(order)

    app = FastAPI()
    app.get("/item")(cache(timeout=60)(lambda: "text"))
    app.put("/item")(lambda: "text")
    container = put_cache(app)
    container.invalidation.override(providers.Object(Silent(container.store())))
    async with client_of(app) as client:
        await client.get("/item")
        assert (await client.put("/item")).status_code == 200
        assert told(await client.get("/item")) == MISS


@pytest.mark.parametrize("fails", ["before", "after", "when it is asked for"])
async def test_a_service_that_fails(caplog: pytest.LogCaptureFixture, fails: str) -> None:
    """A service of one's own that fails costs a write nothing, and what it names is invalidated all the same."""

    class Audited(InvalidationService):
        async def carry_out(self, order: Order) -> InvalidationResult:
            if fails == "before":
                raise OSError("the audit is away")
            result = await super().carry_out(order)
            raise OSError(f"the audit of {result} is away")

    def asked() -> InvalidationService:
        if fails == "when it is asked for":
            raise OSError("nobody audits")
        return Audited(container.store())

    app = FastAPI()
    app.get("/item")(cache(timeout=60)(lambda: "text"))
    app.get("/other")(cache(timeout=60)(lambda: "text"))
    app.put("/item")(lambda: "text")
    container = put_cache(app)
    container.invalidation.override(providers.Callable(asked))
    async with client_of(app) as client:
        for path in ("/item", "/other"):
            await client.get(path)
        assert (await client.put("/item")).status_code == 200
        assert [told(await client.get(path)) for path in ("/item", "/other")] == [MISS, "hit"]
    assert "cache.hook_failed" in caplog.text


async def test_a_service_that_fails_at_the_end() -> None:
    """A service that fails once what follows the answer is done costs no request, and hides no change (F25)."""
    failing = False

    class Audited(InvalidationService):
        async def carry_out(self, order: Order) -> InvalidationResult:
            if failing:
                raise OSError("the audit is away")
            return await super().carry_out(order)

    async def commit() -> None:
        nonlocal failing
        await client.get("/item")
        failing, state[0] = True, "new"

    async def write(tasks: BackgroundTasks) -> str:
        tasks.add_task(commit)
        return "taken"

    app, state = FastAPI(), ["old"]
    app.get("/item")(cache(timeout=60)(lambda: state[0]))
    app.put("/item")(write)
    container = put_cache(app)
    container.invalidation.override(providers.Object(Audited(container.store())))
    async with client_of(app) as client:
        assert (await client.put("/item")).status_code == 200
        assert (await client.get("/item")).json() == "new"


@pytest.mark.parametrize("how", ["the generator raises", "the client leaves"])
async def test_a_commit_before_an_answer_that_breaks_off(how: str) -> None:
    """What was read between the start of an answer that has no end and its commit is asked for anew (F25)."""
    app, started, committed = FastAPI(), asyncio.Event(), asyncio.Event()
    state = ["old"]

    async def parts() -> AsyncIterator[bytes]:
        started.set()
        await committed.wait()
        state[0] = "new"
        if how == "the generator raises":
            raise RuntimeError("broken")
        yield b"part"

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            raise OSError("gone")

    async def receive() -> Any:
        await asyncio.Event().wait()

    app.get("/item")(cache(timeout=60)(lambda: state[0]))
    app.put("/item")(lambda: StreamingResponse(parts()))
    put_cache(app)
    async with client_of(app) as client:
        change = asyncio.create_task(app(scope_of("/item", method="PUT"), receive, send))
        await started.wait()
        assert [(await client.get("/item")).json() for _ in range(2)] == ["old"] * 2
        committed.set()
        await asyncio.wait({change})
        assert change.exception() is not None
        assert (await client.get("/item")).json() == "new"


async def test_a_commit_after_an_answer_that_is_stored() -> None:
    """What else a POST names is asked for anew after its commit, though its own answer is stored (F25)."""
    app, committed, answered = FastAPI(), asyncio.Event(), asyncio.Event()
    state = ["old"]

    async def transaction() -> AsyncIterator[None]:
        yield
        await committed.wait()
        state[0] = "new"

    app.get("/list")(cache(timeout=60, tags=["list"])(lambda: state[0]))
    app.get("/item")(lambda: state[0])

    @app.post("/item", dependencies=[Depends(transaction)])
    @invalidates(tags=["list"])
    async def post(response: Response) -> str:
        response.headers.update({"cache-control": "max-age=60", "content-location": "/item"})
        return "new"

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            answered.set()

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    put_cache(app, policies={"/item": CachePolicy.http()})
    async with client_of(app) as client:
        change = asyncio.create_task(app(scope_of("/item", method="POST"), receive, send))
        await answered.wait()
        assert (await client.get("/list")).json() == "old"
        committed.set()
        await change
        assert (await client.get("/list")).json() == "new"
        assert told(await client.get("/item")) == "hit"


async def test_without_a_host() -> None:
    """A write with an empty Host is answered as ever, and makes invalid what it names."""
    app = writing(Response("a", 201, {"location": "/items/8"}), urls=["/items/9"])
    async with client_of(app, headers={"host": ""}) as client:
        for path in ("/items/7", "/items/8", "/items/9", "/items/10"):
            await client.get(path)
        assert (await client.post("/items/7")).status_code == 201
        paths = [path for path in ("/items/7", "/items/8", "/items/9") if told(await client.get(path)) == "hit"]
        assert (paths, told(await client.get("/items/10"))) == ([], "hit")


async def test_fields_that_can_be_read_once() -> None:
    """An answer whose fields are an iterator, as ASGI allows, reaches the client with all of them."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 201, "headers": iter([(b"location", b"/items/8")])})
        await send({"type": "http.response.body", "body": b"made"})

    async with client_of(CacheMiddleware(app, MemoryBackend())) as client:
        answer = await client.post("/items")
    assert (answer.headers["location"], answer.text) == ("/items/8", "made")


@pytest.mark.parametrize("host", ["user@test", "test:99999", "test:a", "[::1"])
async def test_hosts_that_cannot_be(host: str) -> None:
    """A write by a Host that can be none is answered, and makes its own URL invalid."""
    app = writing(Response(status_code=201, headers={"location": "/pages/a"}))
    async with client_of(app, headers={"host": host}) as client:
        assert [told(await client.get("/items/1")) for _ in range(2)] == [MISS, "hit"]
        assert (await client.post("/items/1")).status_code == 201
        assert told(await client.get("/items/1")) == MISS


async def test_by_the_key_of_what_varies(redis_server: Server) -> None:
    """The key under which a response is stored names its variants."""
    app, backend = FastAPI(), RedisBackend(redis_server.url)

    @app.get("/x")
    @cache(timeout=60)
    def answer(response: Response) -> None:
        response.headers["vary"] = "Accept-Language"

    container = put_cache(app, backend=backend)
    async with client_of(app) as client:
        assert [told(await client.get("/x")) for _ in range(2)] == [MISS, "hit"]
        await container.stores().close()
        stored = [key.decode() for key in redis_server.command("KEYS", "cache:*")]
        await container.invalidation().by_key(min(stored, key=len))
        assert told(await client.get("/x")) == "fwd=vary-miss; stored"
    await container.stores().close()
    await backend.close()


async def test_by_the_url_of_the_request() -> None:
    """The URL of a request, as an object, names what is stored for it."""
    app = FastAPI()
    app.get("/x")(cache(timeout=60)(lambda: "text"))

    @app.post("/x/changed")
    async def changed(request: Request, invalidation: Invalidation) -> None:
        await invalidation.by_url(request.url.replace(path="/x"))

    put_cache(app)
    assert await forgotten(app, "POST", "/x/changed", "/x") == ["/x"]


async def test_beside_a_path_with_a_question_mark_in_it() -> None:
    """A relative Location is beside the path as it was written, not as it is decoded (RFC 3986 §5.2)."""
    app = FastAPI()
    app.get("/{at:path}")(cache(timeout=60)(lambda at: at))

    @app.put("/{at:path}", status_code=201)
    async def put(at: str, response: Response) -> None:
        response.headers["location"] = "y"

    put_cache(app)
    urls = ("/a%3Fb/x", "/a%3Fb/y", "/y", "/a/y")
    assert await forgotten(app, "PUT", "/a%3Fb/x", *urls) == ["/a%3Fb/x", "/a%3Fb/y"]


async def test_a_cached_post_is_forgotten_too() -> None:
    """What is stored for a POST is made invalid as well by another method on its URL."""
    app = FastAPI()
    app.post("/q")(cache(timeout=60)(lambda: "text"))
    app.put("/q")(lambda: None)
    put_cache(app)
    async with client_of(app) as client:
        assert [told(await client.post("/q")) for _ in range(2)] == ["fwd=uri-miss; stored", "hit"]
        await client.put("/q")
        assert told(await client.post("/q")) == "fwd=uri-miss; stored"


async def test_default_policy() -> None:
    """An application without routes has its writes seen too."""

    async def bare(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a"})

    app = CacheMiddleware(bare, MemoryBackend(), default_policy=CachePolicy(timeout=60))
    assert await forgotten(app, "DELETE", "/a", "/a", "/b") == ["/a"]


async def test_done_before_the_answer() -> None:
    """When the writer has the first byte of its answer, nobody is served what it made invalid."""
    app = writing(Response("a"), tags=["all"])
    seen = []

    async def send(message: Any) -> None:
        async with client_of(app) as client:
            seen.append(told(await client.get("/items/1")))

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async with client_of(app) as client:
        await client.get("/items/1")
    await app(scope_of("/items/1", method="POST"), receive, send)
    assert seen[0] == "fwd=uri-miss; stored"


HOSTILE = ["*", "[a-z]", "a?b", "a\\", "{item}", "a%2Fb", "ü", "..", "a b", "#", "%"]


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"patterns": ["/pages/{item}"]}, id="pattern"),
        pytest.param({"urls": ["/pages/{item}"]}, id="url"),
        pytest.param({"urls": ["http://test/pages/{item}"]}, id="absolute url"),
    ],
)
async def test_hostile_values(value: str, options: dict[str, Any]) -> None:
    """A value in a pattern or a URL is data: it stands for itself and for nothing else (S26)."""
    app = FastAPI()

    @app.post("/write")
    @invalidates(**options)
    async def write(item: str) -> None: ...

    @app.get("/pages/{page:path}")
    @cache(timeout=60)
    async def read(page: str) -> str:
        return page

    container = put_cache(app)

    async def page_of(name: str) -> str:
        scope = scope_of(f"/pages/{name}", raw_path=name.encode())
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            return {"type": "http.request", "body": b""}

        await app(scope, receive, send)
        return str(dict(sent[0]["headers"])[b"cache-status"], "ascii").split("; ")[1]

    for name in (value, "b", "a", "axb"):
        await page_of(name)
    async with client_of(app) as client:
        assert (await client.post("/write", params={"item": value})).status_code == 200
    assert [await page_of(name) for name in (value, "b", "a", "axb")] == ["fwd=uri-miss", *["hit"] * 3]
    assert container.store().stats["invalidations"] == 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param({"tags": ["i{item}"]}, ["/items/07"], id="tag"),
        pytest.param({"patterns": ["/*/{item}?"]}, ["/pages/7x"], id="pattern"),
        pytest.param({"urls": ["/pages/{item}"]}, ["/pages/7"], id="url"),
        pytest.param(
            {"tags": lambda request: [f"i{request.path_params['item']}"]}, [], id="callable of raw values"
        ),
        pytest.param(
            {"tags": ["i{item}"], "patterns": ["/pages*"]}, ["/items/07", "/pages/7", "/pages/7x"], id="both"
        ),
    ],
)
async def test_invalidates(options: dict[str, Any], expected: list[str]) -> None:
    """What an endpoint names is invalid once it has answered well, filled with the values that it receives."""
    app = FastAPI()

    @app.post("/items/{item}/touch")
    @invalidates(**options)
    def touch(item: int) -> None: ...

    @app.get("/items/{item}")
    @cache(timeout=60, tags=["i{item}"])
    def read(item: int) -> int:
        return item

    app.get("/pages/{page}")(cache(timeout=60)(lambda page: page))
    put_cache(app)
    paths = ("/items/07", "/items/8", "/pages/7", "/pages/7x")
    assert await forgotten(app, "POST", "/items/007/touch", *paths) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        pytest.param(Response("a"), True, id="well"),
        pytest.param(RedirectResponse("/else", 302), True, id="redirected"),
        pytest.param(Response("a", 409), False, id="refused"),
        pytest.param(Response("a", 503), False, id="failed"),
        pytest.param(RuntimeError("a"), False, id="raised"),
    ],
)
async def test_invalidates_only_what_went_well(answer: Any, expected: bool) -> None:
    """What an endpoint names stays valid where it did not answer well."""
    app = writing(answer, patterns=["/pages/*"])
    assert await forgotten(app, "POST", "/items/1", "/pages/1") == (["/pages/1"] if expected else [])


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_invalidates_by_any_method(method: str) -> None:
    """An endpoint that names what it makes invalid does so by whatever method it is asked."""
    app = writing(Response("a"), method=method, url="/write/{item}", urls=["/pages/{item}"])
    assert await forgotten(app, method, "/write/1", "/pages/1", "/pages/2") == ["/pages/1"]


async def write(item: str) -> None:
    """Change an item."""


class Writing:
    """An endpoint that is an object, marked where it is called."""

    @invalidates(urls=["/pages/{item}"])
    async def __call__(self, item: str) -> None: ...


@invalidates(urls=["/pages/{item}"])
class WritingToo:
    """An endpoint that is an object of a class that is marked."""

    async def __call__(self, item: str) -> None: ...


class WritingAnew(Writing):
    """It has methods beside that which is marked."""

    def prepare(self) -> None:
        """Prepare the change."""


@pytest.mark.parametrize(
    "endpoint",
    [
        pytest.param(invalidates(urls=["/pages/{item}"])(functools.partial(write)), id="partial"),
        pytest.param(
            functools.partial(invalidates(urls=["/pages/{item}"])(functools.partial(write))),
            id="partial of a partial",
        ),
        pytest.param(Writing(), id="method that calls an object"),
        pytest.param(functools.partial(Writing()), id="partial of an object"),
        pytest.param(WritingToo(), id="class of an object"),
        pytest.param(WritingAnew(), id="method of a base class"),
    ],
)
async def test_kinds_of_endpoints_that_invalidate(endpoint: Any) -> None:
    """Whatever can be an endpoint invalidates what is named on it, or on what it is made of."""
    app = FastAPI()
    app.post("/write/{item}")(endpoint)
    app.get("/{page:path}")(cache(timeout=60)(lambda page: page))
    put_cache(app)
    assert await forgotten(app, "POST", "/write/1", "/pages/1", "/pages/2") == ["/pages/1"]


def failing(request: Request) -> list[str]:
    """Raise."""
    raise RuntimeError("the hook's own")


@pytest.mark.parametrize(
    ("options", "item"),
    [
        pytest.param({"tags": failing}, "1", id="a hook that raises"),
        pytest.param({"tags": lambda request: [""]}, "1", id="a hook that gives no tag"),
        pytest.param({"tags": lambda request: "users"}, "1", id="a hook that gives a text"),
        pytest.param({"urls": ["{item}"]}, "1", id="a URL that is none"),
    ],
)
async def test_invalidates_that_cannot_be_named(options: dict[str, Any], item: str) -> None:
    """Where it cannot be said what a write made invalid, the write is answered, and everything is invalid once."""
    app = writing(Response("a"), url="/write/{item}", **options)
    async with client_of(app) as client:
        await client.get("/pages/1")
        assert (await client.post(f"/write/{item}")).text == "a"
        assert [told(await client.get("/pages/1")) for _ in range(2)] == ["fwd=uri-miss; stored", "hit"]


async def test_invalidates_that_is_cancelled() -> None:
    """A request that is cancelled while a callable names its tags has changed something: everything goes."""
    app, asked = FastAPI(), asyncio.Event()

    async def tags(request: Request) -> list[str]:
        asked.set()
        await asyncio.Event().wait()
        return ["a"]

    app.get("/a")(cache(timeout=60, tags=["a"])(lambda: "a"))
    app.put("/change")(invalidates(tags=tags)(lambda: None))
    put_cache(app)
    async with client_of(app) as client:
        assert [told(await client.get("/a")) for _ in range(2)] == ["fwd=uri-miss; stored", "hit"]
        change = asyncio.create_task(client.put("/change"))
        await asked.wait()
        change.cancel()
        await asyncio.wait({change})
        assert told(await client.get("/a")) == "fwd=uri-miss; stored"


async def test_pattern_that_becomes_too_long() -> None:
    """A pattern that a client's value makes too long names what begins as it does, and nothing else."""
    app = writing(Response("a"), url="/write/{item}", patterns=["/pages/{item}*"])
    long = "a" * 300
    async with client_of(app) as client:
        for page in ("1", long):
            await client.get(f"/pages/{page}")
        assert (await client.post(f"/write/{long}")).text == "a"
        assert [told(await client.get(f"/pages/{page}")) for page in ("1", long)] == [
            "hit",
            "fwd=uri-miss; stored",
        ]


def with_users() -> FastAPI:
    """Return an application of users, whose endpoints say by relative URLs and patterns what they change."""
    app = FastAPI()
    app.get("/users/{user}")(cache(timeout=60)(lambda user: user))
    app.get("/news")(cache(timeout=60)(lambda: "news"))

    @app.post("/by-url/{user}")
    @invalidates(urls=["/users/{user}"])
    async def by_url(user: str) -> None: ...

    @app.post("/by-pattern/{user}")
    @invalidates(patterns=["/users/{user}*"])
    async def by_pattern(user: str) -> None: ...

    @app.post("/by-url-of-the-service/{user}")
    async def by_url_of_the_service(user: str, invalidation: Invalidation) -> None:
        await invalidation.by_url(f"/users/{user}")

    @app.post("/by-absolute-url-of-the-service/{user}")
    async def by_absolute_url_of_the_service(user: str, invalidation: Invalidation) -> None:
        await invalidation.by_url(f"http://test/users/{user}")

    @app.post("/by-pattern-of-the-service/{user}")
    async def by_pattern_of_the_service(user: str, invalidation: Invalidation) -> None:
        await invalidation.by_pattern(f"/users/{user}*")

    @app.post("/with-the-root-path/{user}")
    async def with_the_root_path(user: str, invalidation: Invalidation) -> None:
        await invalidation.by_url(f"/api/users/{user}")

    @app.post("/by-pattern-with-the-root-path/{user}")
    async def by_pattern_with_the_root_path(user: str, invalidation: Invalidation) -> None:
        await invalidation.by_pattern(f"/api/users/{user}*")

    return app


WAYS = [route.path.split("/")[1] for route in with_users().routes if getattr(route, "methods", None) == {"POST"}]  # type: ignore[attr-defined]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("user", ["7", "7" * 220], ids=["a short path", "a long path"])
@pytest.mark.parametrize("prefix", ["/api", ""], ids=["left in the path", "taken out"])
@pytest.mark.parametrize("backend", [MemoryBackend, FourMethods])
async def test_under_a_root_path(backend: Any, prefix: str, user: str, way: str) -> None:
    """Under a root path, what is stored answers to its URL and path with the root path and without it."""
    app = with_users()
    put_cache(app, backend=backend())
    transport = httpx.ASGITransport(app, root_path="/api")
    async with httpx.AsyncClient(transport=transport, base_url=f"http://test{prefix}/") as client:
        paths = [f"users/{user}", "users/8", "news"]
        assert [told(await client.get(path)) for path in paths * 2] == [MISS] * 3 + ["hit"] * 3
        assert (await client.post(f"{way}/{user}")).status_code == 200
        said = [told(await client.get(path)) for path in paths]
        assert (said[0], said[2]) == (MISS, "hit")
        assert said[1] == (
            "hit" if backend is MemoryBackend or "url" in way or way == "with-the-root-path" else MISS
        )


@pytest.mark.parametrize("prefix", ["api", ""], ids=["left in the path", "taken out"])
@pytest.mark.parametrize("way", WAYS)
async def test_under_a_root_path_without_its_slash(way: str, prefix: str) -> None:
    """It does so too where the server was given the root path without the slash, and puts that before the path."""
    app = with_users()
    put_cache(app)

    async def served(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "root_path": "api", "path": prefix + scope["path"]}, receive, send)

    assert await forgotten(served, "POST", f"/{way}/7", "/users/7", "/users/8") == ["/users/7"]


@pytest.mark.parametrize(
    ("asked", "host", "named"),
    [
        pytest.param("/users/a%09b", "test", "/users/a\tb", id="tab"),
        pytest.param("/users/a%0D%0Ab", "test", "/users/a\r\nb", id="end of line"),
        pytest.param("/users/a%0Ab", "test", "http://test/users/a\nb", id="in a whole URL"),
        pytest.param("/users/7", "test", " http://test/users/7\r\n", id="blanks around it"),
        pytest.param("/users/7", "test", "/users/7\r\n", id="a path of a line"),
        pytest.param("/users/a%20", "test", "/users/a ", id="a path that ends in a blank"),
        pytest.param("/users/7", "xn--bcher-kva.example", "https://Bücher.example/users/7", id="host"),
        pytest.param("/users/7", "xn--fa-hia.de:8000", "http://faß.de:8000/users/7", id="host and port"),
        pytest.param(
            "/users/7", "_a.xn--bcher-kva.example", "http://_a.bücher.example/users/7", id="host of 2003"
        ),
    ],
)
async def test_url_that_is_not_ascii(asked: str, host: str, named: str) -> None:
    """A URL may be named with what is encoded when it is sent."""
    app = with_users()
    service = put_cache(app).invalidation()
    transport, scheme = httpx.ASGITransport(app), "https" if named.startswith("https") else "http"
    async with httpx.AsyncClient(transport=transport, base_url=f"{scheme}://{host}") as client:
        assert [told(await client.get(asked)) for _ in range(2)] == [MISS, "hit"]
        await service.by_url(named)
        assert told(await client.get(asked)) == MISS


@pytest.mark.parametrize("url", ["/users/7", "/sub/users/7", "/api/sub/users/7"])
@pytest.mark.parametrize("method", ["by_url", "by_pattern"])
async def test_in_a_mounted_application(method: str, url: str) -> None:
    """What a cache of a mounted application stores answers to its path without either prefix."""
    app, inner = FastAPI(), with_users()
    app.mount("/sub", inner)
    container = put_cache(inner)
    transport = httpx.ASGITransport(app, root_path="/api")
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert [told(await client.get("/api/sub/users/7")) for _ in range(2)] == [MISS, "hit"]
        await getattr(container.invalidation(), method)(url)
        assert told(await client.get("/api/sub/users/7")) == MISS


async def test_around_an_application_with_a_root_path() -> None:
    """A cache around an application that has a root path of its own knows that as well."""
    app = with_users()
    app.root_path = "/api"
    wrapped = CacheMiddleware(app, MemoryBackend())
    for way in WAYS:
        assert await forgotten(wrapped, "POST", f"/api/{way}/7", "/api/users/7", "/api/users/8") == [
            "/api/users/7"
        ]


async def test_under_a_root_path_in_redis(redis_server: Server) -> None:
    """It is the same in Redis, where the stamps of a fill are made by it."""
    app, backend = with_users(), RedisBackend(redis_server.url)
    container = put_cache(app, backend=backend)
    transport = httpx.ASGITransport(app, root_path="/api")
    async with httpx.AsyncClient(transport=transport, base_url="http://test/api/") as client:
        for way in WAYS:
            await client.get("users/7")
            assert told(await client.get("users/7")) == "hit"
            await client.post(f"{way}/7")
            assert told(await client.get("users/7")) == MISS
    await container.stores().close()
    await backend.close()


@pytest.mark.parametrize("backend", [MemoryBackend, FourMethods])
async def test_from_the_handler(backend: Any) -> None:
    """A handler that invalidates by itself is obeyed when its call returns, over any backend."""
    app, version = FastAPI(), [1]

    @app.get("/x")
    @cache(timeout=60, tags=["x"])
    def read() -> int:
        return version[0]

    @app.post("/write")
    async def write(invalidation: Invalidation) -> bool:
        version[0] += 1
        result = await invalidation.by_tag("x")
        async with client_of(app) as client:
            assert (await client.get("/x")).json() == version[0]
        return result.durable

    put_cache(app, backend=backend())
    async with client_of(app) as client:
        for expected in (1, 2, 3):
            assert [(await client.get("/x")).json() for _ in range(2)] == [expected] * 2
            assert (await client.post("/write")).json() is True


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        pytest.param(CachePolicy.http(), "posted", id="by the RFC alone"),
        pytest.param(replace(CachePolicy.http(), max_body=5), "got", id="beyond max_body"),
        pytest.param(CachePolicy(timeout=60), "got", id="a policy of one's own"),
    ],
)
async def test_answer_to_a_post_for_later_gets(policy: CachePolicy, expected: str) -> None:
    """The answer to a POST that says that it is a GET's is one by the RFC alone, as far as it may be kept."""
    app = FastAPI()

    @app.post("/page")
    def post() -> Response:
        fields = {"content-location": "/page", "cache-control": "max-age=60"}
        return StreamingResponse(iter(["pos", "ted"]), headers=fields)

    @app.get("/page")
    def get() -> Response:
        return Response("got")

    async with client_of(CacheMiddleware(app, MemoryBackend(), default_policy=policy)) as client:
        assert (await client.post("/page")).text == "posted"
        assert (await client.get("/page")).text == expected


@pytest.mark.parametrize("others", [False, True])
async def test_answer_to_a_post_and_another_invalidation(*, others: bool) -> None:
    """What was invalidated while a POST ran, but for its own URL, keeps its answer from later GETs (F25)."""
    app = FastAPI()

    @app.post("/page")
    async def post(invalidation: Invalidation) -> Response:
        if others:
            await invalidation.by_url("/page")
        return Response("posted", headers={"content-location": "/page", "cache-control": "max-age=60"})

    @app.get("/page")
    def get() -> Response:
        return Response("got")

    cached = CacheMiddleware(app, MemoryBackend(), default_policy=CachePolicy.http())
    async with client_of(cached) as client:
        await client.post("/page")
        assert (await client.get("/page")).text == ("got" if others else "posted")


class ByItself(APIRoute):
    """A route that matches in a way of its own."""

    def matches(self, scope: Any) -> Any:
        return super().matches(scope)


def passing(app: Any) -> Any:
    """Return a middleware that does not show what it is around."""

    async def passed(scope: Any, receive: Any, send: Any) -> None:
        await app(scope, receive, send)

    return passed


def mounted(app: FastAPI, *, shown: bool) -> FastAPI:
    """Return an application that is mounted in *app* behind middleware, which shows it or does not."""
    inner = FastAPI()
    if shown:
        inner.add_middleware(passing)
    app.mount("/in", inner if shown else passing(inner))
    return inner


def after_a_route_that_matches_by_itself(app: FastAPI) -> FastAPI:
    """Return *app*, where the table of routes ends before what is added next."""
    app.router.add_api_route("/in/first", lambda: "first", route_class_override=ByItself)
    return app


def included(app: FastAPI) -> Any:
    """Return a router whose routes match by themselves, to be included in *app* when they are there."""
    return APIRouter(route_class=ByItself)


UNSEEN = [
    pytest.param(lambda app: mounted(app, shown=True), "/{item}", id="mounted with middleware"),
    pytest.param(lambda app: mounted(app, shown=False), "/{item}", id="mounted in a function"),
    pytest.param(after_a_route_that_matches_by_itself, "/in/{item}", id="after a route with its own matches"),
    pytest.param(included, "/in/{item}", id="routes with their own matches"),
]


def unseen(
    place: Any, path: str, method: str = "PUT", default_policy: CachePolicy | None = None, **asked: Any
) -> FastAPI:
    """Return an application with pages, and a change of *path* in a *place* that no table of routes sees."""
    app = FastAPI()
    app.get("/pages/{page}")(cache(timeout=60, tags=["page-{page}"])(lambda page: page))
    put_cache(app, default_policy=default_policy)

    async def change(item: int) -> int:
        return item

    there = place(app)
    there.api_route(path, methods=[method])(invalidates(**asked)(change))
    if isinstance(there, APIRouter):
        app.include_router(there)
    return app


@pytest.mark.parametrize(
    "asked", [{"tags": ["page-{item}"]}, {"urls": ["/pages/{item}"]}, {"patterns": ["*/{item}"]}]
)
@pytest.mark.parametrize(("place", "path"), UNSEEN)
async def test_where_no_table_of_routes_sees_it(place: Any, path: str, asked: Any) -> None:
    """What an endpoint names is invalidated wherever routers find it, filled in with what it receives."""
    app = unseen(place, path, **asked)
    assert await forgotten(app, "PUT", "/in/007", "/pages/7", "/pages/8") == ["/pages/7"]


@pytest.mark.parametrize(("place", "path"), UNSEEN[:2])
async def test_what_cannot_be_filled_in_there(place: Any, path: str, caplog: pytest.LogCaptureFixture) -> None:
    """A template with a name that nothing has invalidates everything there, and is said."""
    app = unseen(place, path, tags=["{nonsense}"])
    assert await forgotten(app, "PUT", "/in/7", "/pages/7", "/pages/8") == ["/pages/7", "/pages/8"]
    assert "@invalidates" in caplog.text


async def test_values_that_are_none_there() -> None:
    """A request that an endpoint refuses for its values invalidates nothing there either, whatever is answered."""
    app = FastAPI()
    app.get("/pages/{page}")(cache(timeout=60, tags=["page-{page}"])(lambda page: page))
    put_cache(app)
    inner = mounted(app, shown=True)
    inner.exception_handler(RequestValidationError)(lambda request, error: RedirectResponse("/form", 303))

    @inner.put("/{item}")
    @invalidates(tags=["page-{item}"])
    async def change(item: int) -> int:
        return item

    assert await forgotten(app, "PUT", "/in/abc", "/pages/7", "/pages/8") == []
    assert await forgotten(app, "PUT", "/in/7", "/pages/7", "/pages/8") == ["/pages/7"]


async def test_groups_of_a_cached_post() -> None:
    """A POST that is itself cached invalidates no groups, where nobody knows its endpoint too."""

    async def opaque(scope: Any, receive: Any, send: Any) -> None:
        fields = {"cache-control": "max-age=60", "cache-groups": '"g"'}
        changed = {"cache-group-invalidation": '"g"'} if scope["method"] == "POST" else {}
        await Response("text", headers=fields | changed)(scope, receive, send)

    policy = CachePolicy(timeout=60, methods=frozenset({"GET", "POST"}))
    cached = CacheMiddleware(opaque, MemoryBackend(), default_policy=policy)
    async with client_of(cached) as client:
        await client.get("/a")
        for _ in range(2):
            await client.post("/b")
        assert told(await client.get("/a")) == "hit"


async def test_cancelled_while_the_service_is_asked() -> None:
    """A request that is cancelled while a service of one's own is asked has its order carried out (F31)."""
    asked = asyncio.Event()

    class Slow(InvalidationService):
        async def carry_out(self, order: Order) -> InvalidationResult:
            if not asked.is_set():
                asked.set()
                await asyncio.Event().wait()
            return await super().carry_out(order)

    app = FastAPI()
    app.get("/item")(cache(timeout=60)(lambda: "text"))
    app.put("/item")(lambda: "text")
    container = put_cache(app)
    container.invalidation.override(providers.Object(Slow(container.store())))
    async with client_of(app) as client:
        await client.get("/item")
        change = asyncio.create_task(client.put("/item"))
        await asked.wait()
        change.cancel()
        await asyncio.wait({change})
        assert told(await client.get("/item")) == MISS


async def test_get_where_no_table_of_routes_sees_it() -> None:
    """A GET that invalidates does so in what is mounted with middleware too."""
    app = unseen(lambda outer: mounted(outer, shown=True), "/{item}", "GET", tags=["page-{item}"])
    assert await forgotten(app, "GET", "/in/7", "/pages/7", "/pages/8") == ["/pages/7"]


@pytest.mark.parametrize(("place", "path"), UNSEEN)
async def test_post_with_a_fallback_where_no_table_sees_it(place: Any, path: str) -> None:
    """A POST that a fallback caches elsewhere is run, and invalidates, each time where its endpoint says so."""
    app = unseen(place, path, "POST", CachePolicy(timeout=60, methods=frozenset({"POST"})), tags=["page-{item}"])
    for _ in range(2):
        assert await forgotten(app, "POST", "/in/7", "/pages/7", "/pages/8") == ["/pages/7"]


async def test_post_with_a_fallback_beside_one_that_invalidates() -> None:
    """A POST that a fallback caches stays cached though another endpoint there may invalidate."""
    policy = CachePolicy(timeout=60, methods=frozenset({"POST"}))
    app = unseen(lambda outer: with_post(mounted(outer, shown=False)), "/{item}", "POST", policy, tags=["a"])
    async with client_of(app) as client:
        assert [told(await client.post("/in/plain")) for _ in range(2)] == ["fwd=uri-miss; stored", "hit"]


def with_post(app: FastAPI) -> FastAPI:
    """Return *app* with an endpoint that nobody decorated."""
    app.post("/plain")(lambda: "plain")
    return app

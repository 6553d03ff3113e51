"""A hit is the stored response; what is not cached passes untouched (SPEC §5.3, §5.4)."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from itertools import count
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, HTTPException, Request, Response, WebSocket
from fastapi.responses import FileResponse, PlainTextResponse, RedirectResponse, StreamingResponse
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Route

from app_cache import CacheMiddleware, CachePolicy, DefaultKeyGenerator, MemoryBackend, cache
from app_cache.codec import Entry, decode, encode, from_text, to_text
from app_cache.fastapi import Backend, Invalidation
from tests.clients import all_blocked
from tests.middleware.apps import client_of, lasting, messages_of, put_cache, scope_of, served, told
from tests.stored import FourMethods, written

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from app_cache.testing import FakeClock

pytestmark = pytest.mark.anyio

EVERY_BYTE = bytes(range(256))


def many_fields() -> Response:
    """Return an answer whose fields have duplicates and mixed case."""
    response = PlainTextResponse("text", headers={"X-One": "1", "Cache-Control": "public"})
    for name, value in (("link", "</a>"), ("x-two", "b"), ("Link", "</b>"), ("x-two", "a"), ("vary", "accept")):
        response.raw_headers.append((name.encode(), value.encode()))
    return response


def in_parts() -> Response:
    """Return an answer whose body comes in parts."""
    return StreamingResponse(iter([b"one ", b"", b"two"]), media_type="text/plain")


ANSWERS = [
    pytest.param(lambda: {"a": 1}, "fwd=uri-miss; stored", id="json"),
    pytest.param(many_fields, "fwd=uri-miss; stored", id="fields in order with duplicates"),
    pytest.param(lambda: Response(EVERY_BYTE, media_type="image/png"), "fwd=uri-miss; stored", id="binary"),
    pytest.param(lambda: Response(b""), "fwd=uri-miss; stored", id="empty"),
    pytest.param(lambda: Response(status_code=204), "fwd=uri-miss; stored", id="no content"),
    pytest.param(lambda: Response("a", 203), "fwd=uri-miss; stored", id="non-authoritative"),
    pytest.param(lambda: RedirectResponse("/else", 301), "fwd=uri-miss; stored", id="moved"),
    pytest.param(lambda: RedirectResponse("/else", 308), "fwd=uri-miss; stored", id="permanent redirect"),
    pytest.param(
        lambda: RedirectResponse("/else", 307, headers={"cache-control": "max-age=9"}),
        "fwd=uri-miss; stored",
        id="temporary redirect that says how long",
    ),
    pytest.param(
        lambda: Response("gone", 404, headers={"cache-control": "max-age=9"}),
        "fwd=uri-miss; stored",
        id="not found that says how long",
    ),
    pytest.param(in_parts, "fwd=uri-miss", id="body in parts"),
    pytest.param(lambda: Response("é", headers={"x-latin": "é"}), "fwd=uri-miss; stored", id="latin-1 field"),
]


@pytest.mark.parametrize(("answer", "first"), ANSWERS)
async def test_hit_equals_miss(answer: Any, first: str) -> None:
    """A hit over HTTP has the status, the fields in order and the body of its miss."""
    app = FastAPI()
    app.get("/")(cache(timeout=60)(lambda: answer()))
    put_cache(app)
    async with served(app) as client:
        miss, hit = await client.get("/"), await client.get("/")
    assert (told(miss), told(hit)) == (first, "hit")
    assert lasting(hit) == lasting(miss)


async def test_wrong_length_in_the_store() -> None:
    """Whatever length is stored with a body, the length that is sent is that of the body (S29)."""
    app, backend = FastAPI(), FourMethods()
    app.get("/")(cache(timeout=60)(lambda: PlainTextResponse("text")))
    container = put_cache(app, backend=backend)
    async with client_of(app) as client:
        await client.get("/")
        await written(container.store())
        (key,) = (key for key, value in backend.values.items() if from_text(value))
        entry = decode(from_text(backend.values[key]), key)
        assert isinstance(entry, Entry)
        for length in (b"0", b"400", b"x"):
            headers = ((b"content-length", length), *entry.headers[1:])
            backend.values[key] = to_text(encode(msgspec.structs.replace(entry, headers=headers)))
            hit = await client.get("/")
            assert (told(hit), hit.headers["content-length"], hit.text) == ("hit", "4", "text")


async def test_miss_equals_bare() -> None:
    """What the first client gets is what the application without a cache gives, but for ETag and Cache-Status."""
    app, bare = FastAPI(), FastAPI()
    endpoint = cache(timeout=60)(lambda: many_fields())
    for each in (app, bare):
        each.get("/")(endpoint)
    put_cache(app)
    async with client_of(app) as cached, client_of(bare) as plain:
        assert lasting(await cached.get("/")) == lasting(await plain.get("/"))


@pytest.mark.parametrize("status", [201, 202, 302, 303, 307, 400, 404, 410, 500, 503])
async def test_statuses_not_stored(status: int) -> None:
    """A status that has no freshness by itself is passed on and not stored."""
    app, runs = FastAPI(), []

    @app.get("/")
    @cache
    def answer() -> Response:
        runs.append(1)
        return Response("text", status)

    put_cache(app)
    async with client_of(app) as client:
        first, second = await client.get("/"), await client.get("/")
    assert (first.status_code, told(first), told(second)) == (status, *["fwd=uri-miss; detail=status"] * 2)
    assert len(runs) == 2


async def test_named_statuses(clock: FakeClock) -> None:
    """A status that the policy names is stored, an error for ten seconds unless it has its own time."""
    app = FastAPI()

    @app.get("/short")
    @cache(timeout=60, statuses=[404])
    def short() -> None:
        raise HTTPException(404)

    @app.get("/long")
    @cache(timeout=60, statuses={404: 30})
    def long() -> None:
        raise HTTPException(404)

    put_cache(app, clock)
    async with client_of(app) as client:
        for path, seconds in (("/short", 10), ("/long", 30)):
            await client.get(path)
            clock.advance(seconds - 1)
            hit = await client.get(path)
            assert (hit.status_code, told(hit)) == (404, "hit")
            clock.advance(1)
            assert told(await client.get(path)) == "fwd=stale; stored"


async def test_age(clock: FakeClock) -> None:
    """A hit says how old it is and how long it is still fresh, and is none at the edge of its freshness."""
    app = FastAPI()
    app.get("/")(cache(timeout=60)(lambda: "text"))
    put_cache(app, clock)
    async with client_of(app) as client:
        assert "age" not in (await client.get("/")).headers
        clock.advance(59)
        hit = await client.get("/")
        assert (hit.headers["age"], hit.headers["cache-status"]) == ("59", "app-cache; hit; ttl=1")
        clock.advance(1)
        assert told(await client.get("/")) == "fwd=stale; stored"


async def test_age_of_an_upstream_cache(clock: FakeClock) -> None:
    """An answer that came with an Age is that much older, and a hit has one Age."""
    app = FastAPI()
    app.get("/")(cache(timeout=60)(lambda: Response("text", headers={"Age": "20", "Cache-Status": "up; hit"})))
    put_cache(app, clock)
    async with client_of(app) as client:
        await client.get("/")
        clock.advance(30)
        hit = await client.get("/")
    assert hit.headers.get_list("age") == ["50"]
    assert hit.headers.get_list("cache-status") == ["up; hit", "app-cache; hit; ttl=10"]


async def test_no_hop_by_hop_fields() -> None:
    """Fields of one connection are not stored (RFC 9111 §3.1)."""
    app = FastAPI()
    fields = {"Connection": "x-hop", "X-Hop": "1", "Keep-Alive": "5", "Proxy-Authenticate": "a", "X-End": "1"}
    app.get("/")(cache(timeout=60)(lambda: Response("text", headers=fields)))
    put_cache(app)
    async with client_of(app) as client:
        miss, hit = await client.get("/"), await client.get("/")
    assert fields.keys() - {name.title() for name in miss.headers} == set()
    assert [name for name in fields if name in hit.headers] == ["X-End"]


async def test_client_max_age() -> None:
    """Clients are told the policy's max-age where the handler says nothing, the first one and the next alike."""
    app = FastAPI()
    app.get("/silent")(cache(timeout=60, client_max_age=5)(lambda: "text"))
    said = {"cache-control": "public"}
    app.get("/said")(cache(timeout=60, client_max_age=5)(lambda: Response("", headers=said)))
    app.get("/none")(cache(timeout=60)(lambda: "text"))
    ended = {"expires": "0", "etag": '"a"'}
    app.get("/expires")(cache(timeout=60, client_max_age=5)(lambda: Response("", headers=ended)))
    put_cache(app)
    async with client_of(app) as client:
        for path, expected in (("/silent", ["max-age=5"]), ("/said", ["public"]), ("/none", []), ("/expires", [])):
            for _ in range(2):
                assert (await client.get(path)).headers.get_list("cache-control") == expected


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"vary_by": lambda request: request.headers.get("x-user", "-")}, id="vary_by"),
        pytest.param({"key": DefaultKeyGenerator()}, id="key"),
        pytest.param({"guarded": True}, id="guarded"),
    ],
)
async def test_client_max_age_of_what_is_for_some(options: dict[str, Any]) -> None:
    """What a proxy could give to others than this cache does is for clients alone."""
    app = FastAPI()
    app.get("/", dependencies=[Depends(lambda: None)])(cache(timeout=60, client_max_age=5, **options)(lambda: "a"))
    put_cache(app)
    async with client_of(app) as client:
        said = [(await client.get("/")).headers["cache-control"] for _ in range(3)]
    assert said == ["private, max-age=5"] * 3


@pytest.mark.parametrize(
    ("answer", "headers"),
    [
        pytest.param(lambda: Response("mine"), {"cookie": "a=b"}, id="asked with a cookie"),
        pytest.param(lambda: Response("", headers={"set-cookie": "a=b"}), {}, id="sets a cookie"),
        pytest.param(lambda: Response("", 404), {}, id="an error"),
        pytest.param(lambda: Response("", headers={"vary": "*"}), {}, id="varies by everything"),
    ],
)
async def test_client_max_age_of_what_is_not_shared(answer: Any, headers: dict[str, str]) -> None:
    """What this cache does not share is not offered to the caches between it and the client either."""
    app = FastAPI()
    app.get("/")(cache(timeout=60, client_max_age=5)(lambda: answer()))
    put_cache(app)
    async with client_of(app) as client:
        assert "cache-control" not in (await client.get("/", headers=headers)).headers


@pytest.mark.parametrize("line", [("set-cookie", "a=b"), ("vary", "*")], ids=lambda line: line[0])
async def test_client_max_age_of_a_304_for_one_client(line: tuple[str, str], clock: FakeClock) -> None:
    """What a 304 makes one client's own is not offered to the caches on its way."""
    app = FastAPI()

    @app.get("/")
    @cache(timeout=60, client_max_age=5)
    def answer(request: Request) -> Response:
        if "if-none-match" not in request.headers:
            return Response("text", headers={"etag": '"a"'})
        return Response(status_code=304, headers=dict([("etag", '"a"'), line]))

    put_cache(app, clock)
    async with client_of(app) as client:
        assert (await client.get("/")).headers["cache-control"] == "max-age=5"
        clock.advance(61)
        validated = await client.get("/")
    assert (validated.text, line[0] in validated.headers) == ("text", True)
    assert "cache-control" not in validated.headers


async def test_client_max_age_beside_a_cookie_that_is_not_stored(clock: FakeClock) -> None:
    """Whose answer has the cookie that is left out of hits is told no max-age; who gets hits is told it."""
    said = {"set-cookie": "a=b", "etag": '"a"'}
    app = FastAPI()

    @app.get("/")
    @cache(timeout=60, client_max_age=5, exclude_headers=["Cookie", "Set-Cookie"])
    def answer(request: Request) -> Response:
        return Response(status_code=304 if "if-none-match" in request.headers else 200, headers=said)

    put_cache(app, clock)
    async with client_of(app) as client:
        for _ in range(2):
            first, hit = await client.get("/"), await client.get("/")
            assert ("set-cookie" in first.headers, "cache-control" in first.headers) == (True, False)
            assert ("set-cookie" in hit.headers, hit.headers["cache-control"]) == (False, "max-age=5")
            clock.advance(61)


async def test_etag_on_the_miss() -> None:
    """A body in one message has its ETag from the miss on, one in parts from the first hit on."""
    app = FastAPI()
    app.get("/whole")(cache(timeout=60)(lambda: "text"))
    app.get("/parts")(cache(timeout=60)(in_parts))
    put_cache(app)
    async with client_of(app) as client:
        miss, hit = await client.get("/whole"), await client.get("/whole")
        assert miss.headers["etag"] == hit.headers["etag"]
        miss, hit = await client.get("/parts"), await client.get("/parts")
    assert "etag" not in miss.headers
    assert "etag" in hit.headers


async def test_own_etag() -> None:
    """An ETag of the handler's stays, and is the only one."""
    app = FastAPI()
    app.get("/")(cache(timeout=60)(lambda: Response("text", headers={"etag": 'W/"mine"'})))
    put_cache(app)
    async with client_of(app) as client:
        for _ in range(2):
            assert (await client.get("/")).headers.get_list("etag") == ['W/"mine"']


async def test_first_byte_as_it_comes() -> None:
    """The first part of a streamed body is with the client before the second one is made."""
    app = FastAPI()
    seen: list[bytes] = []
    first_came = asyncio.Event()

    @app.get("/")
    @cache(timeout=60)
    def stream() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            yield b"one"
            await first_came.wait()
            yield b"two"

        return StreamingResponse(parts())

    put_cache(app)

    async def send(message: Any) -> None:
        if message.get("body"):
            seen.append(message["body"])
            first_came.set()

    waiting = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Any:
        return waiting.pop() if waiting else await asyncio.Event().wait()

    await app(scope_of("/"), receive, send)
    assert seen == [b"one", b"two"]


async def test_sync_endpoint_and_generator() -> None:
    """A ``def`` endpoint with a ``def`` generator is cached as any other."""
    app, runs = FastAPI(), []

    @app.get("/")
    @cache(timeout=60)
    def stream() -> StreamingResponse:
        def parts() -> Iterator[str]:
            runs.append(1)
            yield "a"
            yield "b"

        return StreamingResponse(parts())

    put_cache(app)
    async with client_of(app) as client:
        assert [(await client.get("/")).text for _ in range(3)] == ["ab"] * 3
    assert len(runs) == 1


async def test_background_tasks() -> None:
    """Background tasks run once, on the miss, and the entry can be hit while they do."""
    app, ran = FastAPI(), []

    @app.get("/")
    @cache(timeout=60)
    def answer(tasks: BackgroundTasks) -> str:
        tasks.add_task(later)
        return "text"

    async def later() -> None:
        async with client_of(app) as inner:
            ran.append(told(await inner.get("/")))

    put_cache(app)
    async with client_of(app) as client:
        await client.get("/")
        await client.get("/")
    assert ran == ["hit"]


async def test_failing_background_task() -> None:
    """A background task that fails raises as without a cache, and does not void the entry."""
    app = FastAPI()

    @app.get("/")
    @cache(timeout=60)
    def answer(tasks: BackgroundTasks) -> str:
        tasks.add_task(fail)
        return "text"

    def fail() -> None:
        raise RuntimeError("later")

    put_cache(app)
    with pytest.raises(RuntimeError, match="later"):
        await messages_of(app, scope_of("/"))
    async with client_of(app) as client:
        assert told(await client.get("/")) == "hit"


async def test_early_hints() -> None:
    """What a handler sends before its answer is passed on, and the answer is stored."""
    hint = {"type": "http.response.early_hint", "links": [b"</style.css>; rel=preload"]}

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await send(hint)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1")]})
        await send({"type": "http.response.body", "body": b"a"})

    app = CacheMiddleware(answer, MemoryBackend(), default_policy=CachePolicy(timeout=60))
    assert (await messages_of(app, scope_of("/")))[0] == hint
    async with client_of(app) as client:
        assert told(await client.get("/")) == "hit"


async def test_pathsend(tmp_path: Path) -> None:
    """A body that the server sends from a file is passed on as it is; nothing is stored, nor offered to others."""
    path = tmp_path / "file"
    path.write_bytes(b"text")
    app = FastAPI()
    app.get("/")(cache(timeout=60, client_max_age=600)(lambda: FileResponse(path)))
    put_cache(app)
    scope = scope_of("/", extensions={"http.response.pathsend": {}})
    for _ in range(2):
        start, sent = await messages_of(app, dict(scope))
        assert sent == {"type": "http.response.pathsend", "path": str(path)}
        fields = dict(start["headers"])
        assert fields[b"cache-status"] == b"app-cache; fwd=uri-miss; detail=incomplete"
        assert b"cache-control" not in fields


async def test_pathsend_of_what_the_client_has(tmp_path: Path) -> None:
    """A client that has the file gets a 304 without it, however its body would be sent."""
    path = tmp_path / "file"
    path.write_bytes(b"text")
    app = FastAPI()
    app.get("/")(cache(timeout=60)(lambda: FileResponse(path)))
    put_cache(app)
    async with client_of(app) as client:
        tag = (await client.get("/")).headers["etag"].encode()
    fields = [(b"host", b"other"), (b"if-none-match", tag)]
    scope = scope_of("/", extensions={"http.response.pathsend": {}}, headers=fields)
    start, body = await messages_of(app, scope)
    assert start["status"] == 304
    assert body == {"type": "http.response.body", "body": b"", "more_body": False}


@pytest.mark.parametrize(
    "messages",
    [
        pytest.param(
            [
                {"type": "http.response.start", "status": 200, "headers": [], "trailers": True},
                {"type": "http.response.body", "body": b"a", "more_body": False},
                {"type": "http.response.trailers", "headers": [(b"x", b"y")], "more_trailers": False},
            ],
            id="trailers",
        ),
        pytest.param(
            [
                {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1")]},
                {"type": "http.response.zerocopysend", "file": 1},
                {"type": "http.response.body", "body": b"", "more_body": False},
            ],
            id="a message before the body",
        ),
        pytest.param(
            [
                {"type": "http.response.push", "path": "/x", "headers": []},
                {"type": "http.response.start", "status": 200, "headers": []},
                {"type": "http.response.body", "body": b"a", "more_body": False},
            ],
            id="a message before the start",
        ),
    ],
)
async def test_unknown_messages(messages: list[dict[str, Any]]) -> None:
    """Messages that the cache does not know are passed on in order; their answer is not stored, nor offered."""
    runs = []

    async def bare(scope: Any, receive: Any, send: Any) -> None:
        runs.append(1)
        for message in messages:
            await send(message)

    app = CacheMiddleware(bare, MemoryBackend(), default_policy=CachePolicy(timeout=60, client_max_age=600))
    for _ in range(2):
        sent = await messages_of(app, scope_of("/"))
        assert [each["type"] for each in sent] == [each["type"] for each in messages]
        assert sent[-1] == messages[-1]
        fields = dict(next(each["headers"] for each in sent if each["type"] == "http.response.start"))
        assert fields[b"cache-status"] == b"app-cache; fwd=uri-miss; detail=incomplete"
        assert b"cache-control" not in fields
    assert len(runs) == 2


async def test_memoryview_bodies() -> None:
    """A body may be any bytes-like object, and its fields may be any iterable of lists."""

    async def bare(scope: Any, receive: Any, send: Any) -> None:
        fields = ([name, bytearray(b"1")] for name in (b"x-a", b"x-b"))
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        await send({"type": "http.response.body", "body": memoryview(b"one"), "more_body": True})
        await send({"type": "http.response.body", "body": bytearray(b"two")})

    app = CacheMiddleware(bare, MemoryBackend(), default_policy=CachePolicy(timeout=60))
    async with client_of(app) as client:
        miss, hit = await client.get("/"), await client.get("/")
    assert lasting(hit) == lasting(miss)
    assert (hit.content, told(hit)) == (b"onetwo", "hit")


async def test_messages_that_are_used_again() -> None:
    """An application may send one message several times, filled anew, as servers let it."""

    async def bare(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        message: dict[str, Any] = {"type": "http.response.body"}
        for message["body"], message["more_body"] in ((b"one", True), (b"two", True), (b"three", False)):
            await send(message)

    app = CacheMiddleware(bare, MemoryBackend(), default_policy=CachePolicy(timeout=60))
    async with client_of(app) as client:
        miss, hit = await client.get("/"), await client.get("/")
    assert (miss.text, hit.text, told(hit)) == ("onetwothree", "onetwothree", "hit")


async def test_websocket() -> None:
    """Websockets pass, and their endpoints get the cache's providers."""
    app = FastAPI()

    @app.websocket("/ws")
    async def talk(socket: WebSocket, backend: Backend) -> None:
        await socket.accept()
        await socket.send_text(type(backend).__name__)
        await socket.close()

    put_cache(app)
    sent = await messages_of(app, scope_of("/ws", type="websocket"), {"type": "websocket.connect"})
    assert [each.get("text") for each in sent] == [None, "MemoryBackend", None]


async def test_lifespan() -> None:
    """Lifespan messages pass as they are."""

    async def bare(scope: Any, receive: Any, send: Any) -> None:
        assert await receive() == {"type": "lifespan.startup"}
        await send({"type": "lifespan.startup.complete"})

    app = CacheMiddleware(bare, MemoryBackend(), default_policy=CachePolicy(timeout=60))
    sent = await messages_of(app, {"type": "lifespan"}, {"type": "lifespan.startup"})
    assert sent == [{"type": "lifespan.startup.complete"}]


async def test_middlewares_around_run_on_hits() -> None:
    """Whatever middleware the user has added before or after the cache runs on each hit."""
    app, seen = FastAPI(), []
    app.add_middleware(GZipMiddleware, minimum_size=1)
    app.get("/")(cache(timeout=60)(lambda: "text"))
    put_cache(app)
    app.add_middleware(CORSMiddleware, allow_origins=["http://friend"])

    @app.middleware("http")
    async def note(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        seen.append(request.state.cache.hit)
        return response

    async with client_of(app) as client:
        answers = [await client.get("/", headers={"origin": "http://friend"}) for _ in range(2)]
    assert seen == [False, True]
    for answer in answers:
        assert answer.headers["content-encoding"] == "gzip"
        assert answer.headers["access-control-allow-origin"] == "http://friend"
        assert answer.text == '"text"'


async def test_state_set_by_the_endpoint() -> None:
    """What the endpoint leaves in the request's state and scope is seen by the middlewares around the cache."""
    seen: list[Any] = []
    app = FastAPI()

    class Notes:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await self.app(scope, receive, send)
            seen.append((scope["state"]["left"], scope["path_params"], scope["route"].path, scope["endpoint"]))

    @app.get("/items/{item}")
    @cache(timeout=60)
    def answer(request: Request, item: int) -> str:
        request.state.left = item
        return "text"

    put_cache(app)
    app.add_middleware(Notes)
    async with client_of(app) as client:
        await client.get("/items/7")
    assert seen == [(7, {"item": "7"}, "/items/{item}", answer)]


@cache(timeout=60)
async def item_of(item: int) -> int:
    """Answer what is in the path."""
    return item


@cache(timeout=60, guarded=True)
async def guarded_item(item: int) -> int:
    """Answer what is in the path to whom the dependencies let through."""
    return item


@cache(timeout=60)
async def by_hand(request: Request) -> Response:
    """Answer what is in the path, as an endpoint of Starlette."""
    return PlainTextResponse(str(request.path_params["item"]))


class AsAnswersBegin:
    """Middleware that gives *note* the scope and the status of each answer as it begins."""

    def __init__(self, app: Any, note: Callable[[Any, int], None]) -> None:
        self.app = app
        self.note = note

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_noted(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.note(scope, message["status"])
            await send(message)

        await self.app(scope, receive, send_noted)


def routed(*, cached: bool) -> tuple[FastAPI, list[Any]]:
    """Return an application with routes of all kinds, and what middleware around it finds as answers begin."""
    app, included, mounted, found = FastAPI(), APIRouter(), FastAPI(), list[Any]()
    app.get("/plain/{item}")(item_of)
    app.get("/guarded/{item}", dependencies=[Depends(lambda: None)])(guarded_item)
    included.get("/{item}")(item_of)
    app.include_router(included, prefix="/included/{place}")
    mounted.get("/{item}")(item_of)
    app.mount("/mounted/{place}", mounted)
    app.mount("/starlette/{place}", Starlette(routes=[Route("/{item:int}", by_hand)]))
    app.router.routes.append(Route("/by-hand/{item:int}", by_hand))
    if cached:
        put_cache(app)

    def note(scope: Any, _: int) -> None:
        found.append((getattr(scope.get("route"), "path", None), scope["endpoint"], scope["path_params"]))

    app.add_middleware(AsAnswersBegin, note=note)
    return app, found


@pytest.mark.parametrize(
    "path", ["/plain/7", "/guarded/7", "/included/here/7", "/mounted/here/7", "/starlette/here/7", "/by-hand/7"]
)
@pytest.mark.parametrize("headers", [{}, {"cookie": "a=b"}], ids=["shared", "not shared"])
async def test_route_around_the_cache(path: str, headers: dict[str, str]) -> None:
    """Middleware around the cache finds route, endpoint and values of the path as without one, on hits too."""
    (bare, expected), (app, found) = routed(cached=False), routed(cached=True)
    async with client_of(bare) as client:
        await client.get(path, headers=headers)
    async with client_of(app) as client:
        answers = [told(await client.get(path, headers=headers)) for _ in range(4)]
    assert [answer == "hit" for answer in answers] == [False, *[not headers] * 3]
    assert found == expected * 4


async def test_route_around_what_is_no_hit() -> None:
    """So it does where a guard refuses a hit, and where one waits for a run that fails."""
    app, found, begun, gate = FastAPI(), list[Any](), asyncio.Event(), asyncio.Event()

    def guard(request: Request) -> None:
        if "x-refused" in request.headers:
            raise HTTPException(403)

    app.get("/guarded/{item}", dependencies=[Depends(guard)])(guarded_item)

    @app.get("/failing/{item}")
    @cache(timeout=60)
    async def fail(item: int) -> Response:
        begun.set()
        await gate.wait()
        return PlainTextResponse("down", 503)

    put_cache(app)

    def note(scope: Any, status: int) -> None:
        found.append((status, scope["route"].path, scope["path_params"]))

    app.add_middleware(AsAnswersBegin, note=note)
    async with client_of(app) as client:
        await client.get("/guarded/7")
        await client.get("/guarded/7", headers={"x-refused": "1"})
        leader = asyncio.create_task(client.get("/failing/7"))
        await begun.wait()
        follower = asyncio.create_task(client.get("/failing/7"))
        await all_blocked()
        gate.set()
        assert {told(await each) for each in (leader, follower)} == {
            "fwd=uri-miss; detail=status",
            "fwd=uri-miss; collapsed",
        }
    guarded, failing = "/guarded/{item}", "/failing/{item}"
    expected = [(200, guarded), (403, guarded), (503, failing), (503, failing)]
    assert found == [(status, path, {"item": "7"}) for status, path in expected]


@pytest.mark.parametrize("window", [None, 60], ids=["no window", "refreshed"])
async def test_state_of_the_application(window: int | None, clock: FakeClock) -> None:
    """What the application keeps as ``state.cache`` itself stays there, on misses, hits and refreshes."""
    app, seen, runs = FastAPI(), list[Any](), count()

    @app.get("/")
    @cache(timeout=10, stale_while_revalidate=window)
    async def answer(request: Request) -> str:
        return f"{next(runs)} {request.state.cache}"

    container = put_cache(app, clock)

    @app.middleware("http")
    async def keep(request: Request, call_next: Any) -> Response:
        request.state.cache = "its own"
        response: Response = await call_next(request)
        seen.append(request.state.cache)
        return response

    async with client_of(app) as client:
        texts = [(await client.get("/")).json() for _ in range(3)]
        clock.advance(15)
        texts.append((await client.get("/")).json())
        await container.store().close()
        texts.append((await client.get("/")).json())
    fresh = 0 if window else 1
    assert texts == [f"{number} its own" for number in (0, 0, 0, fresh, 1)]
    assert seen == ["its own"] * 5


async def test_context_around_the_endpoint() -> None:
    """The endpoint has the context of the middlewares around the cache; they see what it changes in an object."""
    facts: ContextVar[dict[str, str]] = ContextVar("facts")
    seen: list[Any] = []
    app = FastAPI()

    class Notes:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            facts.set({"path": scope["path"]})
            await self.app(scope, receive, send)
            seen.append(facts.get())

    @app.get("/")
    @cache(timeout=60)
    def answer() -> str:
        facts.get()["read at"] = facts.get()["path"]
        return "text"

    put_cache(app)
    app.add_middleware(Notes)
    async with client_of(app) as client:
        for _ in range(2):
            await client.get("/")
    assert seen == [{"path": "/", "read at": "/"}, {"path": "/"}]


async def test_starlette() -> None:
    """Plain Starlette routes are cached by their decorators."""
    runs = []

    @cache(timeout=60)
    async def home(request: Request) -> Response:
        runs.append(1)
        return PlainTextResponse("text")

    app = Starlette(routes=[Route("/", home)])
    put_cache(app)
    async with client_of(app) as client:
        assert [told(await client.get("/")) for _ in range(2)] == ["fwd=uri-miss; stored", "hit"]
        head = await client.head("/")
    assert (told(head), head.content, head.headers["content-length"]) == ("hit", b"", "4")
    assert len(runs) == 1


async def test_nested_caches() -> None:
    """Of two caches, one inside the other, the outermost keeps the answers."""
    app = FastAPI()
    app.get("/")(cache(timeout=60)(lambda: "text"))
    inner, outer = MemoryBackend(), MemoryBackend()
    app.add_middleware(CacheMiddleware, backend=inner)
    app.add_middleware(CacheMiddleware, backend=outer)
    async with client_of(app) as client:
        answers = [await client.get("/") for _ in range(2)]
    assert [each.headers.get_list("cache-status") for each in answers] == [
        ["app-cache; fwd=uri-miss; stored"],
        ["app-cache; hit; ttl=59"],
    ]
    assert (await inner.size(), await outer.size()) == (0, 1)


@pytest.mark.parametrize("around", [False, True], ids=["added", "wrapped around"])
async def test_nested_caches_are_one(around: bool) -> None:
    """Providers give what belongs to the outermost cache, so that what it keeps can be invalidated."""
    app = FastAPI()
    app.get("/")(cache(timeout=60, tags=["x"])(lambda: "text"))

    @app.post("/write")
    async def write(invalidation: Invalidation) -> None:
        await invalidation.by_tag("x")

    put_cache(app)
    outermost: Any = app
    if around:
        outermost = CacheMiddleware(app, MemoryBackend())
    else:
        app.add_middleware(CacheMiddleware, backend=MemoryBackend())
    async with client_of(outermost) as client:
        await client.get("/")
        await client.post("/write")
        assert told(await client.get("/")) == "fwd=uri-miss; stored"


async def test_default_policy() -> None:
    """A default policy caches what has no policy, with routes or without, and never an undecorated POST."""
    runs: list[str] = []

    async def bare(scope: Any, receive: Any, send: Any) -> None:
        runs.append(scope["method"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1")]})
        await send({"type": "http.response.body", "body": b"a"})

    async def routed(request: Request) -> Response:
        runs.append(request.method)
        return Response("a")

    for app in (bare, Starlette(routes=[Route("/", routed, methods=["GET", "POST"])])):
        runs.clear()
        cached = CacheMiddleware(app, MemoryBackend(), default_policy=CachePolicy(timeout=60))
        async with client_of(cached) as client:
            for method in ("GET", "GET", "HEAD", "POST", "GET", "POST"):
                await client.request(method, "/")
        assert runs == ["GET", "POST", "GET", "POST"]


async def test_no_policy() -> None:
    """An endpoint without a policy is not touched: no Cache-Status, the very messages that it sends."""
    app = FastAPI()
    app.get("/")(lambda: "text")
    put_cache(app)
    bare = FastAPI()
    bare.get("/")(lambda: "text")
    assert await messages_of(app, scope_of("/")) == await messages_of(bare, scope_of("/"))

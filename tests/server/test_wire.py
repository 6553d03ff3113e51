"""Over real sockets, on each event loop and over TLS: with the protocol a server sends what it sends without."""

from __future__ import annotations

import asyncio
import functools
import ssl
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from dependency_injector import providers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app_cache import CacheMiddleware, CachePolicy, MemoryBackend, RedisBackend
from tests.http_server import client_of, http_server
from tests.server.apps import LARGE, Shop, text
from tests.server.rig import Answer, Counted, Wire, counted, get, split
from tests.timing import Stopwatch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers import Certificates, Server

ITEM = get("/items/7", "User-Agent: a browser", "Accept: */*")
OPTIONS = [
    pytest.param({"loop": "asyncio"}, id="asyncio"),
    pytest.param({"loop": "uvloop"}, id="uvloop"),
    pytest.param({"proxy_headers": False, "server_header": False}, id="no proxy, no Server"),
    pytest.param({"date_header": False, "headers": [("X-Own", "1"), ("X-Own", "2")]}, id="own fields"),
    pytest.param({"root_path": "/api"}, id="root path"),
]


class Twin:
    """A server of the shop, with the protocol or without, and connections to it."""

    def __init__(self, kind: Any, **options: Any) -> None:
        self.shop = Shop()
        self._stack = ExitStack()
        self.url = self._stack.enter_context(http_server(self.shop.app, http=kind, **options))
        self.line = self._connected()

    def _connected(self) -> Wire:
        return self._stack.enter_context(Wire(self.url))

    def close(self) -> None:
        """Stop the server."""
        self._stack.close()

    def ask(self, requests: list[tuple[bytes, bool]], places: list[int]) -> list[tuple[bytes, bytes]]:
        """Send *requests* at once, cut at *places*, and return the answers; each says whether it has a body."""
        sent = b"".join(request for request, _ in requests)
        self.line.send(*split(sent, places))
        found: list[Answer] = []
        for _, to_head in requests:
            found += self.line.read(to_head=to_head)
        said = b"".join(answer.head for answer in found)
        if b" HTTP/1.0\r\n" in sent or b"Connection: close" in sent or b"\r\nconnection: close\r\n" in said:
            self.line = self._connected()
        return [answer.undated for answer in found]


@contextmanager
def twins(**options: Any) -> Iterator[tuple[Twin, Twin, type[Counted]]]:
    """Serve the shop twice, and yield the one with the protocol, the one without, and the count."""
    protocol = counted()
    with ExitStack() as stack:
        fast, reference = Twin(protocol, **options), None
        stack.callback(fast.close)
        reference = Twin("httptools", **options)
        stack.callback(reference.close)
        yield fast, reference, protocol


@pytest.mark.parametrize("options", OPTIONS)
def test_same_bytes(options: dict[str, Any]) -> None:
    """Whole, conditional, large and closing answers are the same, from the first to the last."""
    requests = [
        ITEM,
        get("/items/7", 'If-None-Match: "7"'),
        get("/large"),
        get("/items/7", "Connection: close"),
        get("/items/7", version="1.0"),
        get("/varies", "Accept-Language: de"),
    ]
    with twins(**options) as (fast, reference, protocol):
        for request in requests * 4:
            assert fast.ask([(request, False)], []) == reference.ask([(request, False)], []), request
        assert protocol.answered >= 6


def test_tls(certificates: Certificates) -> None:
    """Over TLS it answers as well."""
    protocol, shop = counted(), Shop()
    trusting = ssl.create_default_context(cafile=certificates.path("ca.pem"))
    files = {"ssl_certfile": certificates.path("server.pem"), "ssl_keyfile": certificates.path("server.key")}
    wrap = functools.partial(trusting.wrap_socket, server_hostname="localhost")
    with http_server(shop.app, http=protocol, **files) as url, Wire(url, wrap=wrap) as line:
        answers = [line.ask(get("/large")) for _ in range(6)]
    assert [len(answer.body) for answer in answers] == [LARGE] * 6
    assert protocol.answered == 4


def test_slow_reader() -> None:
    """A client that asks for much and reads late gets all of it, in order, and is not buffered without end."""
    protocol, shop = counted(), Shop()
    with http_server(shop.app, http=protocol) as url, Wire(url) as line, Wire(url) as other:
        for _ in range(4):
            line.ask(get("/large"))
        line.send(*[get("/large")] * 200)
        for _ in range(4):
            assert other.ask(ITEM).status == 200, "others are not held up"
        assert [len(answer.body) for answer in line.read(200)] == [LARGE] * 200


def test_client_library() -> None:
    """A client library is answered by the protocol as well."""
    protocol, shop = counted(), Shop()
    with http_server(shop.app, http=protocol) as url, client_of(url) as client:
        answers = [client.get("/items/7") for _ in range(6)]
    assert [answer.text for answer in answers] == ["item 7 1"] * 6
    assert protocol.answered == 4


def test_redis(redis_server: Server) -> None:
    """What is in Redis another process may change: each hit is the middleware's."""
    cached = CacheMiddleware(text, RedisBackend(redis_server.url), default_policy=CachePolicy(timeout=60))
    protocol = counted()
    with http_server(cached, http=protocol) as url, Wire(url) as line:
        answers = [line.ask(get("/a")) for _ in range(6)]
    assert {answer.told for answer in answers[1:]} == {"hit"}
    assert protocol.answered == 0


@pytest.mark.alone
def test_idle_connections_are_closed() -> None:
    """A connection that is idle after the protocol's answer is closed when its time is over, and not before."""
    protocol, shop = counted(), Shop()
    with http_server(shop.app, http=protocol, timeout_keep_alive=1) as url, Wire(url) as line:
        for _ in range(5):
            line.ask(ITEM)
        assert protocol.answered == 3
        watch = Stopwatch()
        assert line.is_ended
        assert watch.seconds > 0.8


def test_end_of_the_server() -> None:
    """A server that ends lets no connection stay that the protocol has answered on."""
    protocol, shop = counted(), Shop()
    with http_server(shop.app, http=protocol) as url:
        line = Wire(url)
        for _ in range(5):
            line.ask(ITEM)
    with line:
        assert line.is_ended


def test_limit_of_requests() -> None:
    """A server that ends after so many requests counts the protocol's answers among them."""
    protocol, shop = counted(), Shop()
    with http_server(shop.app, http=protocol, limit_max_requests=50) as url, Wire(url) as line:
        for _ in range(50):
            line.ask(ITEM)
        assert protocol.answered == 48
        assert line.is_ended


def test_expected_continue() -> None:
    """A client that waits to be told to go on is told so."""
    protocol, shop = counted(), Shop()
    with http_server(shop.app, http=protocol) as url, httpx.Client(base_url=url, trust_env=False) as client:
        for _ in range(4):
            answer = client.post("/early", content=b"x", headers={"expect": "100-continue"})
            assert answer.status_code == 200
    assert protocol.answered == 0


class Echoes(asyncio.Protocol):
    """Stands where uvicorn has its websockets: what comes is answered with itself, the request for them first."""

    def __init__(self, config: Any, server_state: Any, app_state: Any, _loop: Any = None) -> None:
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        head = b"HTTP/1.1 101 Switching Protocols\r\ncontent-length: %d\r\n\r\n" % len(data)
        self._transport.write(head + data)


@pytest.mark.parametrize("hits", [pytest.param(0, id="fresh connection"), pytest.param(3, id="after hits")])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_websocket(loop: str, hits: int) -> None:
    """A websocket is handed over as ever, whole, and what comes over it is no request, whatever it looks like."""
    upgrade = get("/items/7", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: AAAA")
    with twins(ws=Echoes, loop=loop) as (fast, reference, protocol):
        said = []
        for twin in (fast, reference):
            for _ in range(3):
                twin.line.ask(ITEM)
            with Wire(twin.url) as line:
                said.append([line.ask(chunk).undated for chunk in [*[ITEM] * hits, upgrade, b"text", ITEM, ITEM]])
        assert said[0] == said[1]
        assert [body for _, body in said[0][hits + 1 :]] == [b"text", ITEM, ITEM]
        assert protocol.answered == 1 + hits


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_client_that_sends_no_more(loop: str) -> None:
    """A client that ends its half of the connection right behind a request that is known has the answer whole."""
    protocol, shop = counted(), Shop()
    with http_server(shop.app, http=protocol, loop=loop) as url:
        with Wire(url) as line:
            whole = [line.ask(get("/large")).undated for _ in range(3)][-1]
        with Wire(url) as line:
            line.send(get("/large"))
            line.send_no_more()
            assert line.read()[0].undated == whole
            assert line.is_ended
    assert protocol.answered == 2


def test_http_1_0_that_would_be_kept() -> None:
    """A client of HTTP/1.0 that asks to keep the connection is answered, and left, as without the protocol."""
    request = get("/items/7", "Connection: keep-alive", version="1.0")
    with twins() as (fast, reference, protocol):
        for _ in range(4):
            said = []
            for twin in (fast, reference):
                twin.line.ask(ITEM)
                with Wire(twin.url) as line:
                    said.append((line.ask(request).undated, line.is_ended))
            assert said[0] == said[1]
        assert protocol.answered == 2


# Any sequence


FIELDS = [
    *("Accept: */*", "Accept-Language: de", "Accept-Language: fr", "X-A: 1", "X-A: 2", "X-User: a"),
    *("Cookie: a=1", "Authorization: Basic eDp5", "Cache-Control: no-cache", "Cache-Control: max-age=5"),
    *("Cache-Control: no-store", "Cache-Control: only-if-cached", "Pragma: no-cache"),
    *('If-None-Match: "7"', "If-None-Match: *", 'If-None-Match: W/"7", "x"', 'If-Match: "7"'),
    *("If-Modified-Since: Thu, 01 Jan 2026 00:00:00 GMT", "Range: bytes=0-3", "Range: bytes=99-"),
    *("X-Forwarded-For: 1.2.3.4", "X-Forwarded-Proto: https", "Forwarded: for=1.2.3.4", "Host: other"),
    *("Connection: keep-alive", "Content-Length: 0", "Upgrade-Insecure-Requests: 1", "TE: trailers"),
]
PATHS = [
    "/items/7",
    "/items/8",
    "/windows",
    "/shared",
    "/varies",
    "/declared",
    "/mine",
    "/guarded",
    "/plain",
    "/none",
]
common = st.tuples(st.sampled_from(["/items/7", "/items/8", "/varies"]), st.just("GET"), st.just(()), st.just(""))
any_request = st.tuples(
    st.sampled_from(PATHS),
    st.sampled_from(["GET", "GET", "GET", "HEAD", "DELETE"]),
    st.lists(st.sampled_from(FIELDS), max_size=2, unique=True).map(tuple),
    st.sampled_from(["", "", "?a=1&b=2", "?b=2&a=1"]),
)
places = st.lists(st.integers(1, 200), max_size=3)
asked = st.tuples(st.just("ask"), st.lists(common | any_request, min_size=1, max_size=3), st.just([]) | places)
repeated = st.tuples(st.just("repeat"), common | any_request, st.integers(3, 5))
last = st.tuples(st.just("last"), common, st.sampled_from(["Connection: close", "1.0"]))
changed = st.one_of(
    st.tuples(st.just("advance"), st.sampled_from([0.25, 1.0, 7.0, 19.5, 60.0, -5.0])),
    st.tuples(st.just("delete"), st.sampled_from(["/tags/all", "/tags/n7", "/tags/n8", "/all"]), st.booleans()),
    st.tuples(st.just("evict"), st.integers(0, 5)),
    st.tuples(st.just("override")),
    st.tuples(st.just("restore")),
)
steps = st.lists(st.one_of(repeated, repeated, asked, last, changed), min_size=3, max_size=20)


class Actor:
    """One of two servers that are driven alike."""

    def __init__(self, twin: Twin) -> None:
        self.twin = twin
        self.other = MemoryBackend(clock=twin.shop.clock)

    def begin(self) -> None:
        """Make it as new."""
        self.do("restore")
        self.twin.shop.clock.seconds = 1_000_000
        self.twin.shop.app.state.runs.clear()
        for backend in (self.twin.shop.backend, self.other):
            backend._entries.clear()
            backend._beside.clear()
            backend.bytes_held = 0

    def do(self, kind: str, *of: Any) -> Any:
        """Take one step, and return all that can be seen of it."""
        match kind:
            case "ask":
                return self.twin.ask([wire(*each) for each in of[0]], of[1])
            case "repeat":
                return [self.twin.ask([wire(*of[0])], []) for _ in range(of[1])]
            case "last":
                path = of[0][0]
                closing = get(path, version="1.0") if of[1] == "1.0" else get(path, of[1])
                return [self.twin.ask([(closing, False)], []) for _ in range(2)]
            case "delete":
                return self.twin.ask([(get(f"{of[0]}?soft={of[1]}", method="DELETE"), False)], [])
            case _:
                self.change(kind, *of)
        return None

    def change(self, kind: str, *of: Any) -> None:
        """Take one step that nobody asks the server for."""
        shop = self.twin.shop
        match kind:
            case "advance":
                shop.clock.advance(of[0])
            case "evict":
                backend: Any = shop.container.backend()
                if backend._entries:
                    backend._drop([*backend._entries][of[0] % len(backend._entries)])
            case "override":
                shop.container.backend.override(providers.Object(self.other))
            case "restore":
                while shop.container.backend() is not shop.backend:
                    shop.container.backend.reset_last_overriding()


def wire(path: str, method: str, fields: tuple[str, ...], query: str) -> tuple[bytes, bool]:
    """Return a request, and whether its answer has no body."""
    return get(path + query, *fields, method=method), method == "HEAD"


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Actor, Actor, type[Counted]]]:
    """Two servers that are driven alike, and the count of what the protocol answered."""
    with twins(loop="asyncio") as (fast, reference, protocol):
        yield Actor(fast), Actor(reference), protocol


@settings(
    max_examples=400,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(taken=steps)
def test_same_bytes_whatever_happens(
    pair: tuple[Actor, Actor, type[Counted]], taken: list[tuple[Any, ...]]
) -> None:
    """Whatever is asked, however it is cut, and whatever happens between: the same bytes but for Date."""
    fast, reference, _ = pair
    fast.begin()
    reference.begin()
    for step in taken:
        assert fast.do(*step) == reference.do(*step), step
    counts = [actor.twin.shop.container.store().stats for actor in (fast, reference)]
    assert counts[0] == counts[1]


def test_it_answered(pair: tuple[Actor, Actor, type[Counted]]) -> None:
    """The protocol answered many of those, so that the comparison compares something."""
    assert pair[2].answered > 300

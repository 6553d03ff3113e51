"""The cache between an origin server and clients that speak bytes: `examples/reverse_proxy.py` on uvicorn."""

from __future__ import annotations

import importlib
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from tests.conformance.wire import Connection, RawOrigin, chunked, message, raw_origin, sized
from tests.http_server import http_server
from tests.rules.samples import http_date

if TYPE_CHECKING:
    from collections.abc import Iterator

FRESH = "Cache-Control: max-age=3600"
TAG = 'ETag: "a"'
BODY = b"0123456789"
CLIENTS = 25
_numbers = count()


@dataclass
class Wire:
    """The origin server, and the URL of the cache before it."""

    origin: RawOrigin
    url: str

    def connect(self) -> Connection:
        """Return a new connection to the cache."""
        return Connection(self.url)

    def settle(self) -> None:
        """Wait until the cache has read what was sent before: by then it has answered a later request."""
        target = self.target()
        self.origin.says(target, sized())
        with self.connect() as connection:
            connection.ask(target)

    def target(self) -> str:
        """Return a target that no other test uses."""
        return f"/{next(_numbers)}"


@pytest.fixture(scope="module", params=["httptools", "h11"])
def wire(request: pytest.FixtureRequest) -> Iterator[Wire]:
    """The example on a real server, with each of the parsers that uvicorn has."""
    with ExitStack() as running, pytest.MonkeyPatch.context() as patch:
        origin = running.enter_context(raw_origin())
        patch.setenv("UPSTREAM", origin.url)
        sys.modules.pop("examples.reverse_proxy", None)
        example = importlib.import_module("examples.reverse_proxy")

        async def closing(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "lifespan":
                await example.app(scope, receive, send)
                return
            for event in ("startup", "shutdown"):
                assert (await receive())["type"] == f"lifespan.{event}"
                if event == "shutdown":
                    await example.upstream.aclose()
                await send({"type": f"lifespan.{event}.complete"})

        options = {"http": request.param, "date_header": False, "server_header": False}
        yield Wire(origin, running.enter_context(http_server(closing, **options)))
        sys.modules.pop("examples.reverse_proxy", None)


FRAMINGS = [
    pytest.param(sized(FRESH, TAG), False, id="a length"),
    pytest.param(chunked(FRESH, TAG), False, id="chunks"),
    pytest.param(message(FRESH, TAG, version="1.0", body=BODY), True, id="until the end, HTTP 1.0"),
    pytest.param(message(FRESH, TAG, "Connection: close", body=BODY), True, id="until the end, HTTP 1.1"),
    pytest.param(
        message(FRESH, TAG, "Content-Length: 10", version="1.0", body=BODY), True, id="a length, HTTP 1.0"
    ),
]


@pytest.mark.parametrize(("reply", "closes"), FRAMINGS)
def test_the_next_request_is_a_hit(wire: Wire, reply: bytes, closes: bool) -> None:
    """Of 25 clients at once each has a hit, with Age, that asks right after the last byte of its miss (§4)."""
    targets = [[wire.target() for _ in range(4)] for _ in range(CLIENTS)]
    for target in (each for own in targets for each in own):
        wire.origin.says(target, reply, closes=closes)
    start = threading.Barrier(CLIENTS)

    def ask(own: list[str]) -> None:
        with wire.connect() as connection:
            start.wait(10)
            for target in own:
                miss, hit = connection.ask(target), connection.ask(target)
                assert (miss.status, miss.fwd, miss.body, miss.whole) == (200, "uri-miss", BODY, True)
                assert (hit.status, hit.told, hit.body, hit.whole) == (200, "hit", BODY, True)
                assert int(hit.values("age")[0]) <= 5
                assert (miss.values("age"), hit.own_lines) == ([], miss.own_lines)
                assert hit.values("content-length") == miss.values("content-length")
                assert (miss.closes, hit.closes) == (False, False)

    with ThreadPoolExecutor(CLIENTS) as clients:
        list(clients.map(ask, targets))


@pytest.mark.parametrize(("reply", "closes"), FRAMINGS)
def test_many_at_once(wire: Wire, reply: bytes, closes: bool) -> None:
    """25 clients that ask for one thing at once all have it, and the origin is asked once (§4)."""
    target, held = wire.target(), threading.Event()
    wire.origin.says(target, b"", reply, closes=closes, held=held)

    def ask(_: int) -> str:
        with wire.connect() as connection:
            first, second = connection.ask(target), connection.ask(target)
        assert (first.body, first.whole, second.body, second.told) == (BODY, True, BODY, "hit")
        return first.told

    with ThreadPoolExecutor(CLIENTS) as clients:
        asking = clients.map(ask, range(CLIENTS))
        wire.origin.wait_for(target, 1)
        held.set()
        told = list(asking)
    alone = [each for each in told if each not in ("fwd=uri-miss; collapsed", "hit")]
    assert (len(alone), len(wire.origin.asked[target])) == (1, 1)


def test_lines_are_kept(wire: Wire) -> None:
    """All field lines pass, on misses and hits, in order, repeated ones too, each byte of their values (§3.1)."""
    lines = [
        "Date: " + http_date(1),
        "X-b: 1",
        FRESH,
        "set-cookie: a=1; path=/",
        "X-B: 2",
        "SET-COOKIE: b=2",
        "Expires: Thursday, 01-Jan-70 00:00:00 GMT",
        "X-Bytes: \u00e9\u00ff",
        "Vary: X-A",
        "X-Empty:",
        "Content-Length: 10",
    ]
    dropped = ["Connection: keep-alive, X-Hop", "X-Hop: 1", "Keep-Alive: timeout=5", "Proxy-Authenticate: Basic"]
    target = wire.target()
    wire.origin.says(target, message(*dropped, *lines, body=BODY))
    with wire.connect() as connection:
        for _ in range(2):
            own = [line.partition(":") for line in connection.ask(target).own_lines]
            found = [(name.lower(), value.strip()) for name, _, value in own if name.lower() != "etag"]
            assert found == [(line.partition(":")[0].lower(), line.partition(":")[2].strip()) for line in lines]


def test_dates(wire: Wire) -> None:
    """A response has one Date, the origin's or that of its receipt, and a hit has the same (RFC 9110 §6.6.1)."""
    for line in (["Date: " + http_date(1)], []):
        target = wire.target()
        wire.origin.says(target, sized("Cache-Control: max-age=2147483648", *line))
        with wire.connect() as connection:
            first, second = connection.ask(target), connection.ask(target)
        assert (len(first.values("date")), second.values("date")) == (1, first.values("date"))
        assert not line or first.values("date") == [http_date(1)]
        assert second.told == "hit"


@pytest.mark.parametrize(
    "expires", ["Friday, 01-Jan-60 00:00:00 GMT", "Thu Jan  1 00:00:00 2060", "Thu, 01 Jan 2060 00:00:00 GMT"]
)
def test_obsolete_dates(wire: Wire, expires: str) -> None:
    """Each format of a date is understood (RFC 9110 §5.6.7)."""
    target = wire.target()
    wire.origin.says(target, sized(f"Expires: {expires}"))
    with wire.connect() as connection:
        assert [connection.ask(target).told for _ in range(2)] == ["fwd=uri-miss; stored", "hit"]


def test_answers_without_content(wire: Wire) -> None:
    """After HEAD, 304 and 204 the next response follows at once, whether asked for one by one or together."""
    whole, empty = wire.target(), wire.target()
    wire.origin.says(whole, sized(FRESH, TAG))
    wire.origin.says(empty, message(FRESH, status="204 No Content"))
    requests: list[tuple[str, str, list[str], int]] = [
        ("GET", whole, [], 200),
        ("HEAD", whole, [], 200),
        ("GET", whole, ['If-None-Match: "a"'], 304),
        ("GET", empty, [], 204),
        ("HEAD", whole, ['If-None-Match: "a"'], 304),
        ("GET", whole, ["Range: bytes=99-"], 416),
        ("GET", whole, ["Range: bytes=2-4"], 206),
        ("GET", empty, [], 204),
        ("GET", whole, ["Cache-Control: only-if-cached, max-age=0, min-fresh=99999"], 504),
        ("GET", whole, [], 200),
    ]
    expected = {200: BODY, 206: b"234", 504: b"Gateway Timeout"}
    for together in (False, True):
        with wire.connect() as connection:
            if together:
                for method, target, lines, _ in requests:
                    connection.send(target, *lines, method=method)
            for method, target, lines, status in requests:
                if not together:
                    connection.send(target, *lines, method=method)
                answer = connection.read(method)
                body = b"" if method == "HEAD" else expected.get(status, b"")
                assert (answer.status, answer.body, answer.whole) == (status, body, True)
                assert answer.values("transfer-encoding") == []
                length = {200: ["10"], 206: ["3"], 416: ["0"], 504: ["15"]}.get(status, [])
                assert answer.values("content-length") == length


@pytest.mark.parametrize("stored", [False, True], ids=["miss", "hit"])
@pytest.mark.parametrize(
    ("version", "lines", "closes"),
    [
        pytest.param("1.1", [], False, id="1.1"),
        pytest.param("1.1", ["Connection: close"], True, id="1.1, closed"),
        pytest.param("1.0", [], True, id="1.0"),
    ],
)
@pytest.mark.parametrize("reply", [sized(FRESH), chunked(FRESH)], ids=["a length", "chunks"])
def test_connections(wire: Wire, reply: bytes, version: str, lines: list[str], closes: bool, stored: bool) -> None:
    """A connection stays open, or is closed after all of the body, as its client wants it."""
    target = wire.target()
    wire.origin.says(target, reply)
    if stored:
        with wire.connect() as connection:
            connection.ask(target)
    with wire.connect() as connection:
        answer = connection.ask(target, *lines, version=version)
        assert (answer.body, answer.whole, answer.closes) == (BODY, True, closes)
        assert (answer.told if stored else answer.fwd) == ("hit" if stored else "uri-miss")
        if closes:
            assert connection.is_closed()


CUT = [
    pytest.param(message(FRESH, "Content-Length: 20", body=BODY), id="of a length"),
    pytest.param(chunked(FRESH, end=b""), id="between chunks"),
    pytest.param(chunked(FRESH, end=b"5\r\n01"), id="in a chunk"),
]


@pytest.mark.parametrize("reply", CUT)
def test_cut_short(wire: Wire, reply: bytes) -> None:
    """A body that is cut short is cut short for its client too, and not stored (§3.3)."""
    target = wire.target()
    wire.origin.says(target, reply, closes=True).says(target, sized(FRESH, body=b"whole"))
    with wire.connect() as connection:
        answer = connection.ask(target)
        assert (answer.status, answer.whole, connection.is_closed()) == (200, False, True)
        assert BODY.startswith(answer.body[:10])
    with wire.connect() as connection:
        assert [connection.ask(target).body for _ in range(2)] == [b"whole", b"whole"]


@pytest.mark.parametrize("reply", CUT)
def test_cut_short_for_many(wire: Wire, reply: bytes) -> None:
    """Who waited for a body that is cut short gets an error of its own and no part; the next has the whole."""
    target, held = wire.target(), threading.Event()
    wire.origin.says(target, b"", reply, closes=True, held=held).says(target, sized(FRESH, body=b"whole"))
    with wire.connect() as first, wire.connect() as second:
        first.send(target)
        wire.origin.wait_for(target, 1)
        second.send(target)
        wire.settle()
        held.set()
        leading, waiting = first.read(), second.read()
        assert (leading.status, leading.whole) == (200, False)
        assert (waiting.status, waiting.whole) == (500, True)
        assert second.ask(target).body == b"whole"


def test_a_client_that_leaves(wire: Wire) -> None:
    """What a client no longer waits for is stored all the same, and answers the next."""
    target, held = wire.target(), threading.Event()
    reply = chunked(FRESH)
    wire.origin.says(target, reply[:-12], reply[-12:], held=held)
    with wire.connect() as leaving:
        leaving.send(target)
        wire.origin.wait_for(target, 1)
    with wire.connect() as connection:
        connection.send(target)
        held.set()
        answer = connection.read()
    assert (answer.body, answer.whole) == (BODY, True)
    assert len(wire.origin.asked[target]) == 1


def test_parts_come_as_they_are_sent(wire: Wire) -> None:
    """The first client has the first part of a body while the origin holds the rest."""
    target, held = wire.target(), threading.Event()
    reply = chunked(FRESH)
    cut = reply.index(b"01234") + 7
    wire.origin.says(target, reply[:cut], reply[cut:], held=held)
    with wire.connect() as connection:
        connection.send(target)
        connection.read_until(b"01234")
        held.set()
        assert b"56789" in connection.read_until(b"0\r\n\r\n")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        pytest.param(message(FRESH, "X-A: new", status="304 Not Modified"), (200, BODY, "new"), id="304"),
        pytest.param(
            message(FRESH, "X-A: new", "Content-Length: 99", status="304 Not Modified"),
            (200, BODY, "new"),
            id="304 with a length",
        ),
        pytest.param(sized(FRESH, "X-A: new", body=b"other"), (200, b"other", "new"), id="200"),
        pytest.param(chunked(FRESH, "X-A: new", parts=(b"other",)), (200, b"other", "new"), id="200 in chunks"),
        pytest.param(sized(FRESH, "X-A: new", status="404 Not Found", body=b""), (404, b"", "new"), id="404"),
    ],
)
def test_validation(wire: Wire, answer: bytes, expected: tuple[int, bytes, str]) -> None:
    """What is stale is validated by its tag, and all is as the answer to that says, then from the cache (§4.3)."""
    target = wire.target()
    wire.origin.says(target, sized("Cache-Control: max-age=60", "Age: 60", TAG, "X-A: old"))
    wire.origin.says(target, answer)
    with wire.connect() as connection:
        connection.ask(target)
        for hit in (False, True):
            got = connection.ask(target)
            assert (got.status, got.body, *got.values("x-a"), got.told == "hit") == (*expected, hit)
    assert [each.values("if-none-match") for each in wire.origin.asked[target]] == [[], ['"a"']]


def test_ranges(wire: Wire) -> None:
    """Parts are served of what is stored; else the origin is asked, and its part is not stored (§3.3)."""
    target = wire.target()
    part = sized(FRESH, "Content-Range: bytes 0-1/10", status="206 Partial Content", body=b"01")
    wire.origin.says(target, part).says(target, chunked(FRESH, TAG))
    with wire.connect() as connection:
        first = connection.ask(target, "Range: bytes=0-1")
        assert (first.status, first.body, first.told) == (206, b"01", "fwd=uri-miss; detail=range")
        assert connection.ask(target).body == BODY
        hit = connection.ask(target, "Range: bytes=-3", 'If-Range: "a"')
        assert (hit.status, hit.body, hit.told, hit.values("content-length")) == (206, b"789", "hit", ["3"])
        assert connection.ask(target, "Range: bytes=0-1", 'If-Range: "b"').body == BODY
    assert [each.values("range") for each in wire.origin.asked[target]] == [["bytes=0-1"], []]


def test_vary(wire: Wire) -> None:
    """Each variant answers who asks alike, on one connection or another (§4.1)."""
    target = wire.target()
    for body in (b"de", b"en"):
        wire.origin.says(target, sized(FRESH, "Vary: Accept-Language", body=body))
    with wire.connect() as connection:
        for told in ("stored", "hit"):
            for language in ("de", "en"):
                got = connection.ask(target, f"Accept-Language: {language}")
                assert (got.body.decode(), got.told.endswith(told)) == (language, True)
    assert len(wire.origin.asked[target]) == 2


@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE", "MKCOL"])
@pytest.mark.parametrize(
    ("lines", "sent"),
    [
        pytest.param(["Content-Length: 3"], b"new", id="a length"),
        pytest.param(["Transfer-Encoding: chunked"], b"3\r\nnew\r\n0\r\n\r\n", id="chunks"),
        pytest.param(["Content-Length: 0"], b"", id="nothing"),
    ],
)
def test_invalidation(wire: Wire, method: str, lines: list[str], sent: bytes) -> None:
    """Right after the answer to a method that is not safe its target is fetched anew (§4.4)."""
    target, other = wire.target(), wire.target()
    wire.origin.says(target, sized(FRESH, body=b"old"))
    wire.origin.says(target, sized("Location: " + other, status="201 Created", body=b"done"))
    wire.origin.says(target, sized(FRESH, body=b"new"))
    wire.origin.says(other, sized(FRESH))
    with wire.connect() as connection, wire.connect() as second:
        connection.ask(target)
        connection.ask(other)
        got = connection.ask(target, *lines, method=method, body=sent)
        assert (got.status, got.body, got.whole) == (201, b"done", True)
        assert second.ask(target).body == b"new"
        assert [connection.ask(each).told for each in (target, other, other)] == [
            "hit",
            "fwd=uri-miss; stored",
            "hit",
        ]
    assert wire.origin.asked[target][1].body == (b"new" if sent else b"")


def test_stale_for_a_failure(wire: Wire) -> None:
    """A stale response stands in for a server that fails, breaks off or is away, visibly stale (RFC 5861 §4)."""
    target = wire.target()
    wire.origin.says(target, sized("Cache-Control: max-age=60, stale-if-error=600", "Age: 100"))
    wire.origin.says(target, sized(status="503 Service Unavailable")).says(target, b"", closes=True)
    wire.origin.says(target, message("Content-Length: 20", status="500 Oops", body=BODY), closes=True)
    with wire.connect() as connection:
        connection.ask(target)
        for status in (503, 502, 500):
            got = connection.ask(target)
            assert (got.status, got.body, got.told) == (200, BODY, f"fwd=stale; fwd-status={status}")
            assert 100 <= int(got.values("age")[0]) < 160


def test_stale_while_revalidating(wire: Wire) -> None:
    """A stale response comes at once within its window, while the origin still holds the next (RFC 5861 §3)."""
    target, held = wire.target(), threading.Event()
    wire.origin.says(target, sized("Cache-Control: max-age=60, stale-while-revalidate=600", "Age: 100", TAG))
    wire.origin.says(target, b"", sized(FRESH, body=b"new"), held=held)
    with wire.connect() as connection:
        connection.ask(target)
        got = connection.ask(target)
        assert (got.body, got.values("cache-status")[0].partition("ttl=")[2].startswith("-4")) == (BODY, True)
        wire.origin.wait_for(target, 2)
        assert connection.ask(target).body == BODY
        held.set()
        assert connection.ask(target, "Cache-Control: max-age=9999").body == b"new"  # waits: wants nothing stale
        assert connection.ask(target).told == "hit"
    assert [each.values("if-none-match") for each in wire.origin.asked[target]] == [[], ['"a"']]


def test_what_the_origin_gets(wire: Wire) -> None:
    """The origin gets the request as it was, but for the fields of the connection, and Via (RFC 9110 §7.6)."""
    target = wire.target() + "/%2F%c3%bc;x?b=2&a=%20&&c"
    wire.origin.says(target, sized(FRESH))
    dropped = ["Connection: X-Hop", "X-Hop: 1", "TE: trailers", "Proxy-Authorization: Basic"]
    kept = ["X-A: 1", "Accept: a/b", "X-A: 2", "Via: 1.0 other", "Cache-Control: max-age=9"]
    with wire.connect() as connection:
        assert connection.ask(target, *dropped, *kept).status == 200
    (asked,) = wire.origin.asked[target]
    lines = [line.partition(": ") for line in asked.lines]
    found = [f"{name.lower()}: {value}" for name, _, value in lines]
    names = [f"{name.lower()}: {value}" for name, _, value in (line.partition(": ") for line in kept)]
    assert found == ["host: test", *names, "via: 1.1 reverse-proxy"]

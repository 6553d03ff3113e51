"""The protocol answers what is one known request from its first byte to its last, and nothing else."""

from __future__ import annotations

import asyncio
import gc
import gzip
import logging
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from app_cache.server.heads import MAX_HEAD
from tests.server.apps import LARGE, Shop, wrapped
from tests.server.rig import ADDED, Line, Unserved, get

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio

ITEM = get("/items/7", "Accept: */*")
OTHER = get("/items/8")
BROWSER = (
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:130.0) Gecko/20100101 Firefox/130.0",
    "Accept: text/html,application/xhtml+xml,*/*;q=0.8",
    "Accept-Language: en-GB,en;q=0.5",
    "Accept-Encoding: gzip, deflate, br, zstd",
    "Connection: keep-alive",
    "Upgrade-Insecure-Requests: 1",
    "Sec-Fetch-Mode: navigate",
)
FIELDS = b"".join(b"%b: %b\r\n" % field for field in ADDED)


@pytest.fixture
async def server() -> Unserved:
    """A server of the shop."""
    return Unserved(Shop().app)


@pytest.fixture
async def line(server: Unserved) -> AsyncIterator[Line]:
    """A connection to it."""
    line = server.connected()
    yield line
    await line.hang_up()


async def unlearned(line: Line, request: bytes) -> None:
    """Ask five times for *request*, and see that uvicorn answers each time."""
    before = line.protocol.answered
    for _ in range(5):
        await line.ask(request)
    assert line.protocol.answered == before


async def test_first_answers(server: Unserved, line: Line) -> None:
    """A miss and the first hit are the middleware's; then the protocol answers, with the same bytes."""
    answers = [await line.ask(ITEM) for _ in range(5)]
    assert [answer.told for answer in answers] == ["fwd=uri-miss; stored", *["hit"] * 4]
    assert server.answered == 3
    assert answers[1] == answers[2] == answers[3] == answers[4]
    assert answers[4].head.startswith(b"HTTP/1.1 200 OK\r\n" + FIELDS)


async def test_other_connections(server: Unserved, line: Line) -> None:
    """What one connection has learned, another of the same server answers at once."""
    answer = await line.learn(ITEM)
    before = server.answered
    assert await server.connected().ask(ITEM) == answer
    assert server.answered == before + 1


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(get("/items/1"), id="plain"),
        pytest.param(get("/items/1", *BROWSER), id="of a browser"),
        pytest.param(get("/items/1?b=2&a=1"), id="query"),
        pytest.param(get("/items/%31"), id="encoded path"),
        pytest.param(get("http://test/items/1"), id="absolute target"),
        pytest.param(get("/items/1", 'If-None-Match: "1"'), id="304"),
        pytest.param(get("/varies", "Accept-Language: de"), id="variant"),
        pytest.param(get("/declared", "X-A: 1"), id="declared field"),
        pytest.param(get("/shared", "Cookie: a=1", "Authorization: Basic eDp5"), id="credentials that are shared"),
        pytest.param(get("/large"), id="large"),
        pytest.param(get("/items/1", "X-Long: " + "x" * 7_000), id="long"),
        pytest.param(get("/items/1", "Connection: Keep-Alive"), id="keep-alive"),
    ],
)
async def test_learned(line: Line, request_: bytes) -> None:
    """What the middleware gives as a plain hit, and the bytes alone decide, the protocol gives."""
    hits = []
    for _ in range(2):
        await line.ask(get("/items/1"))
        hits.append(await line.ask(request_))
    assert await line.learn(request_) == hits[-1]


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(get("/items/1", method="HEAD"), id="HEAD"),
        pytest.param(get("/plain"), id="not cached"),
        pytest.param(get("/guarded"), id="guarded"),
        pytest.param(get("/mine"), id="vary_by"),
        pytest.param(get("/items/1", "Cookie: a=1"), id="cookie"),
        pytest.param(get("/items/1", "Authorization: Basic eDp5"), id="authorization"),
        pytest.param(get("/items/1", "Content-Length: 0"), id="content-length"),
        pytest.param(get("/items/1", "Transfer-Encoding: chunked") + b"0\r\n\r\n", id="transfer-encoding"),
        pytest.param(get("/items/1", "Expect: 100-continue"), id="expect"),
        pytest.param(get("/items/1", "Trailer: X-A"), id="trailer"),
        pytest.param(get("/items/1", "Forwarded: for=1.2.3.4"), id="forwarded"),
        pytest.param(get("/items/1", "X-Forwarded-For: 1.2.3.4"), id="x-forwarded-for"),
        pytest.param(get("/items/1", "X-FORWARDED-PROTO: https"), id="x-forwarded-proto"),
        pytest.param(get("/items/1", "X-Forwarded-Prefix: /a"), id="x-forwarded-prefix"),
        pytest.param(get("/items/1", "Cache-Control: max-age=60"), id="cache-control"),
        pytest.param(get("/items/1", "cache-control: max-stale"), id="cache-control in lower case"),
        pytest.param(get("/items/1", "Pragma: x"), id="pragma"),
        pytest.param(get("/items/1", "If-None-Match: *"), id="any tag"),
        pytest.param(get("/items/1", "If-Modified-Since: Thu, 01 Jan 1970 00:00:00 GMT"), id="date"),
        pytest.param(get("/items/1", "Connection: x-a"), id="connection option"),
        pytest.param(get("/items/1", "Connection: keep-alive, x-a"), id="connection options"),
        pytest.param(get("/items/1", "Host: other"), id="two hosts"),
        pytest.param(get("/items/1", "X-Long: " + "x" * MAX_HEAD), id="too long"),
        pytest.param(b"\r\n" + get("/items/1"), id="empty line before"),
        pytest.param(get("/items/1") + b"\r\n", id="empty line behind"),
    ],
)
async def test_not_learned(line: Line, request_: bytes) -> None:
    """What is decided by more than the bytes, or could be, is the middleware's each time."""
    line.send(get("/items/1"))
    await line.read()
    before = line.protocol.answered
    for _ in range(5):
        line.send(request_)
        for _ in range(200):
            await asyncio.sleep(0)
        if line.is_closed:
            break
        line.written.clear()
    assert line.protocol.answered == before
    assert request_ not in line.protocol._memo.known


async def test_range_is_not_learned(line: Line) -> None:
    """A range is cut out by the middleware each time."""
    await line.learn(ITEM)
    await unlearned(line, get("/items/7", "Range: bytes=0-3"))


async def test_every_cut(line: Line, server: Unserved) -> None:
    """A request that comes in two chunks is uvicorn's, wherever it is cut; the next whole one is known again."""
    hit = await line.learn(ITEM)
    for place in range(1, len(ITEM)):
        before = server.answered
        assert await line.ask(ITEM[:place], ITEM[place:]) == hit
        assert server.answered == before
        assert await line.ask(ITEM) == hit
        assert server.answered == before + 1


@pytest.mark.parametrize(
    "chunk",
    [
        pytest.param(ITEM + ITEM, id="the same twice"),
        pytest.param(ITEM + OTHER, id="two that are known"),
        pytest.param(ITEM + get("/plain"), id="one that is not known behind"),
        pytest.param(get("/plain") + ITEM, id="before"),
    ],
)
async def test_two_in_one_chunk(line: Line, server: Unserved, chunk: bytes) -> None:
    """Requests that come in one chunk are uvicorn's, and are answered in their order."""
    await line.learn(ITEM)
    await line.learn(OTHER)
    before = server.answered
    line.send(chunk)
    first, second = await line.read(2)
    paths = [part.split(b" ")[1] for part in chunk.split(b"\r\n\r\n")[:-1]]
    names = {b"/items/7": b"item 7", b"/items/8": b"item 8", b"/plain": b"plain 1"}
    assert [each.body.startswith(names[path]) for each, path in zip((first, second), paths, strict=True)] == [
        True,
        True,
    ]
    assert server.answered == before


@pytest.mark.parametrize(
    "before",
    [
        pytest.param(b"GET /items/8 HTTP/1.1\r\nHost: test\r\nX-A: ", id="as the value of a field"),
        pytest.param(b"GET /items/8 HTTP/1.1\r\nX-A: ", id="as the value of a field, without the host"),
        pytest.param(b"GET /items/8?", id="as a part of the target"),
        pytest.param(b"GET ", id="behind the method"),
    ],
)
async def test_part_that_looks_like_a_request(server: Unserved, before: bytes) -> None:
    """What is a part of another request is not learned as one by itself, nor answered when it is known as one."""
    bare = get("/items/7")
    for earlier in ([], [bare, get("/items/8")]) * 4:
        line = server.connected()
        for each in earlier:
            await line.ask(each)
        answered = server.answered
        line.send(before, bare)
        for _ in range(100):
            await asyncio.sleep(0)
        assert server.answered == answered
    assert (await server.connected().ask(bare)).body == b"item 7 1"


async def test_begin_of_the_next_behind(line: Line, server: Unserved) -> None:
    """A known request with the begin of another behind it is uvicorn's, and so is that other."""
    await line.learn(ITEM)
    before = server.answered
    line.send(ITEM + OTHER[:9])
    await line.read()
    assert (await line.ask(OTHER[9:])).body == b"item 8 1"
    assert server.answered == before


async def test_begin_of_the_next_before_the_answer(server: Unserved) -> None:
    """A request whose next one has begun before the answer is not taken for what its last chunk looks like."""
    bare = get("/items/7")
    for _ in range(4):
        line = server.connected()
        line.send(b"GET /items/8 HTTP/1.1\r\nX-A: ", bare, b"GET /items/8 HTTP/1.1\r\nHost: test\r\nX-B")
        assert (await line.read())[0].body == b"item 8 1"
    assert (await server.connected().ask(bare)).body == b"item 7 1"
    assert server.answered == 0


async def test_while_another_is_under_way(line: Line, server: Unserved) -> None:
    """A known request that comes while another is answered waits for its turn."""
    await line.learn(ITEM)
    before = server.answered
    line.send(get("/held"), ITEM)
    for _ in range(20):
        await asyncio.sleep(0)
    assert line.written == []
    server.app.state.held.set()
    first, second = await line.read(2)
    assert (first.body, second.body, server.answered) == (b"held 1", b"item 7 1", before)
    await line.ask(ITEM)
    assert server.answered == before + 1


@pytest.mark.parametrize(
    "announced",
    [
        pytest.param((f"Content-Length: {len(ITEM)}",), id="content-length"),
        pytest.param((f"Content-Length: {len(ITEM) + len(OTHER)}",), id="more of it to come"),
    ],
)
async def test_content_that_looks_like_a_request(line: Line, server: Unserved, announced: tuple[str, ...]) -> None:
    """The content of a request is never taken for a request, also when the answer to that has been sent."""
    await line.learn(ITEM)
    before = server.answered
    answer = await line.ask(get("/early", *announced, method="POST"))
    assert answer.body == b"early 1"
    line.send(ITEM)
    for _ in range(20):
        await asyncio.sleep(0)
    assert (line.written, server.answered) == ([], before)


async def test_chunks_that_look_like_a_request(line: Line, server: Unserved) -> None:
    """Neither is a chunk of content."""
    await line.learn(ITEM)
    before = server.answered
    await line.ask(get("/early", "Transfer-Encoding: chunked", method="POST"))
    line.send(b"%x\r\n" % len(ITEM), ITEM, b"\r\n0\r\n\r\n")
    assert (line.written, server.answered) == ([], before)
    for _ in range(2):
        await line.ask(ITEM)
    assert server.answered == before + 1


async def test_after_an_upgrade_that_is_refused(line: Line, server: Unserved) -> None:
    """After a request that asked for another protocol nothing on the connection is answered by itself."""
    await line.learn(ITEM)
    before = server.answered
    h2c = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA")
    await line.ask(get("/items/7", *h2c))
    line.send(ITEM)
    for _ in range(50):
        await asyncio.sleep(0)
    assert server.answered == before


async def test_garbage(line: Line, server: Unserved) -> None:
    """What is no request is refused as ever, and nothing is answered behind it."""
    await line.learn(ITEM)
    before = server.answered
    line.send(b"\x16\x03\x01 no http\r\n\r\n")
    assert line.written[0].startswith(b"HTTP/1.1 400 ")
    assert line.is_closed
    assert server.answered == before


async def test_that_closes(server: Unserved) -> None:
    """An answer after which the connection ends says so and ends it, with the bytes that uvicorn has."""
    answers = []
    for _ in range(4):
        line = server.connected()
        await line.ask(OTHER)
        answers.append(await line.ask(get("/items/7", "Connection: close")))
        assert line.is_closed
        assert line.protocol.timeout_keep_alive_task is None
    assert server.answered == 4
    assert answers[3] == answers[2]
    assert answers[3].field(b"connection") == b"close"


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(get("/items/7", "Connection: CLOSE"), id="close in capitals"),
        pytest.param(get("/items/7", version="1.0"), id="HTTP/1.0"),
        pytest.param(get("/items/7", "Connection: close", version="1.0"), id="HTTP/1.0, close"),
        pytest.param(get("/items/7", "Connection: keep-alive", version="1.0"), id="HTTP/1.0, keep-alive"),
        pytest.param(get("/items/7", host="", version="1.0"), id="HTTP/1.0 without a host"),
    ],
)
async def test_that_uvicorn_closes(server: Unserved, request_: bytes) -> None:
    """What versions of uvicorn end in different ways is left to them."""
    for _ in range(4):
        line = server.connected()
        assert (await line.ask(request_)).status == 200
        await line.hang_up()
    assert server.answered == 0


async def test_close_to_a_proxy(server: Unserved) -> None:
    """Where uvicorn takes Proxy-Connection for Connection, each answer ends the connection, and says so."""
    ends = []
    for _ in range(4):
        line = server.connected()
        answer = await line.ask(get("/items/7", "Proxy-Connection: close"))
        ends.append((line.is_closed, answer.field(b"connection")))
        await line.hang_up()
    assert ends in ([(True, b"close")] * 4, [(False, b"")] * 4)


async def test_large_body_is_not_copied(line: Line) -> None:
    """The body of a large answer is the one that the cache keeps, in no other copy."""
    await line.learn(get("/large"))
    line.send(get("/large"))
    line.send(get("/large"))
    (_, first, _, second), _ = line.written, line.written
    assert len(first) == LARGE
    assert first is second


async def test_slow_client(line: Line, server: Unserved) -> None:
    """While the client does not read, a request waits, as it does with uvicorn."""
    await line.learn(ITEM)
    before = server.answered
    line.protocol.pause_writing()
    line.send(ITEM)
    for _ in range(20):
        await asyncio.sleep(0)
    assert (line.written, server.answered) == ([], before)
    line.protocol.resume_writing()
    await line.read()
    await line.ask(ITEM)
    assert server.answered == before + 1


async def test_closing_connection(line: Line, server: Unserved) -> None:
    """Nothing is written to a connection that is being closed."""
    await line.learn(ITEM)
    before = server.answered
    line.protocol.shutdown()
    assert line.is_closed
    line.send(ITEM)
    assert (line.written, server.answered) == ([], before)
    line.is_closed = False


@pytest.mark.parametrize("busy", ["connections", "tasks"])
async def test_limit_of_concurrency(busy: str) -> None:
    """Beyond `limit_concurrency` a known request gets uvicorn's 503 as well, and none below."""
    server = Unserved(Shop().app, limit_concurrency=2)
    line = server.connected()
    await line.learn(ITEM)
    before = server.answered
    limited: Any = {"connections": server.state.connections, "tasks": server.state.tasks}[busy]
    others = {object(), object()}
    limited |= others
    assert (await line.ask(ITEM)).status == 503
    limited -= others
    assert server.answered == before
    assert (await server.connected().ask(ITEM)).status == 503, "two connections are the limit"


async def test_counted_requests(line: Line, server: Unserved) -> None:
    """Each answer counts for `limit_max_requests`, and each hit for the cache's own count."""
    for _ in range(7):
        await line.ask(ITEM)
    assert server.answered == 5
    assert server.state.total_requests == 7
    assert server.app.state.app_cache.store().stats["hit"] == 6


@pytest.fixture
def access_log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What goes to the access log, whatever other tests made of it."""
    logger = logging.getLogger("uvicorn.access")
    monkeypatch.setattr(logger, "propagate", False)
    monkeypatch.setattr(logger, "handlers", [caplog.handler])
    caplog.set_level(logging.INFO, "uvicorn.access")
    return caplog


async def test_access_log(access_log: pytest.LogCaptureFixture) -> None:
    """The access log has the lines that uvicorn writes."""
    server = Unserved(Shop().app)
    for request_ in (get("/items/7?q=%20"), get("/items/7?q=%20", 'If-None-Match: "7"')):
        for _ in range(5):
            await server.connected().ask(request_)
    said = '127.0.0.9:4711 - "GET /items/7?q=%20 HTTP/1.1"'
    assert [record.getMessage() for record in access_log.records] == [f"{said} 200"] * 5 + [f"{said} 304"] * 5
    assert server.answered > 4


async def test_no_access_log(access_log: pytest.LogCaptureFixture) -> None:
    """Nothing is logged where uvicorn logs nothing."""
    line = Unserved(Shop().app, access_log=False).connected()
    await line.learn(ITEM)
    assert not access_log.records


async def test_idle_connections(line: Line) -> None:
    """The time for which a connection may be idle begins anew with each answer."""
    loop = asyncio.get_running_loop()
    await line.learn(ITEM)
    protocol = line.protocol
    assert protocol.timeout_keep_alive_task is not None
    protocol.timeout_keep_alive_handler()
    again = protocol.timeout_keep_alive_task
    assert not line.is_closed
    assert 4 < again.when() - loop.time() <= 5
    protocol._answered_at -= 5
    protocol.timeout_keep_alive_handler()
    assert line.is_closed


async def test_first_on_a_connection_is_timed(server: Unserved, line: Line) -> None:
    """A connection whose first answer is the protocol's may be idle no longer than others."""
    await line.learn(ITEM)
    other = server.connected()
    await other.ask(ITEM)
    assert other.protocol.timeout_keep_alive_task is not None
    await other.hang_up()
    assert other.protocol.timeout_keep_alive_task is None


async def test_ended_connection_is_let_go(server: Unserved) -> None:
    """Nothing of a connection that ended waits for the garbage collector."""
    line = server.connected()
    await line.learn(ITEM)
    await line.hang_up()
    gone = weakref.ref(line.protocol)
    gc.disable()
    try:
        del line.protocol
        assert gone() is None
    finally:
        gc.enable()


async def test_no_timer_while_a_request_comes(line: Line) -> None:
    """A request of which a part has come is waited for without the timer, as uvicorn does."""
    await line.learn(ITEM)
    line.send(ITEM[:10])
    assert line.protocol.timeout_keep_alive_task is None
    await line.ask(ITEM[10:])


async def test_fields_of_the_server(line: Line, server: Unserved) -> None:
    """What the server adds is that of the moment: Date passes, and what is configured comes in its order."""
    await line.ask(ITEM)
    clock = server.app.state.app_cache.clock()
    clock.advance(0.25)
    await line.learn(ITEM)
    before = server.answered
    server.state.default_headers = [(b"date", b"later"), (b"X-Own", b"1")]
    answer = await line.ask(ITEM)
    assert server.answered == before + 1
    assert answer.head.startswith(b"HTTP/1.1 200 OK\r\ndate: later\r\nx-own: 1\r\n")


async def test_schemes_do_not_mix(server: Unserved, line: Line) -> None:
    """What was learned over HTTP is not given over TLS."""
    await line.learn(ITEM)
    before = server.answered
    assert (await server.connected(sslcontext=object()).ask(ITEM)).told == "fwd=uri-miss; stored"
    assert server.answered == before


async def test_servers_do_not_mix(line: Line) -> None:
    """Two servers in one process share nothing."""
    await line.learn(ITEM)
    other = Unserved(Shop().app)
    assert (await other.connected().ask(ITEM)).told == "fwd=uri-miss; stored"
    assert other.answered == 0


async def test_root_path() -> None:
    """Under a root path the answers are the same as uvicorn's."""
    server = Unserved(Shop().app, root_path="/api")
    line = server.connected()
    hit = await line.learn(ITEM)
    assert hit.body == b"item 7 1"
    assert server.answered


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param([], id="no length"),
        pytest.param([(b"content-length", b"2"), (b"connection", b"x")], id="connection"),
    ],
)
async def test_answers_that_the_server_frames(fields: list[tuple[bytes, bytes]]) -> None:
    """An answer that is sent otherwise than its fields say is left to uvicorn."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        await send({"type": "http.response.body", "body": b"ok"})

    server = Unserved(wrapped(app))
    line = server.connected()
    for _ in range(4):
        assert (await line.ask(get("/"))).status == 200
    assert bool(server.answered) == bool(fields), "the cache keeps no Connection (RFC 9111 §3.1)"


async def test_encoded_body() -> None:
    """A body that is no text goes out as it came."""
    body = gzip.compress(b"text")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-length", b"%d" % len(body)), (b"Content-Encoding", b"gzip"), (b"x-latin", b"\xe9")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    line = Unserved(wrapped(app)).connected()
    answer = await line.learn(get("/"))
    assert (answer.body, answer.field(b"content-encoding"), answer.field(b"x-latin")) == (body, b"gzip", b"\xe9")

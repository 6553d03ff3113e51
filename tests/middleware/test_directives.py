"""What clients and handlers say in Cache-Control, direction by direction (SPEC §5.2), and what passes by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI, Request, Response

from app_cache import cache
from tests.middleware.apps import client_of, messages_of, put_cache, scope_of, told

if TYPE_CHECKING:
    from app_cache.testing import FakeClock

pytestmark = pytest.mark.anyio

MISS = "fwd=uri-miss; stored"


def counted(clock: FakeClock, fields: dict[str, str] | None = None, **options: Any) -> FastAPI:
    """Return an application that answers with how often it ran."""
    app, runs = FastAPI(), []

    @app.get("/")
    @cache(timeout=60, **options)
    def answer() -> Response:
        runs.append(1)
        return Response(str(len(runs)), headers=fields)

    put_cache(app, clock)
    return app


@pytest.mark.parametrize(
    ("directive", "text", "status"),
    [
        pytest.param("no-cache", "2", "fwd=request; stored; detail=request-no-cache", id="no-cache"),
        pytest.param("NO-CACHE", "2", "fwd=request; stored; detail=request-no-cache", id="no-cache in capitals"),
        pytest.param("no-store", "2", "fwd=bypass; detail=request-no-store", id="no-store"),
        pytest.param("max-age=29", "2", "fwd=request; stored; detail=request-max-age", id="max-age below the age"),
        pytest.param("max-age=30", "1", "hit", id="max-age at the age"),
        pytest.param('max-age="29"', "2", "fwd=request; stored; detail=request-max-age", id="max-age quoted"),
        pytest.param("max-age=x", "1", "hit", id="max-age that is no number"),
        pytest.param(
            "min-fresh=31", "2", "fwd=request; stored; detail=request-min-fresh", id="min-fresh too long"
        ),
        pytest.param("min-fresh=30", "1", "hit", id="min-fresh at the edge"),
        pytest.param("only-if-cached", "1", "hit", id="only-if-cached"),
        pytest.param("max-stale", "1", "hit", id="max-stale of what is fresh"),
        pytest.param('x="no-cache"', "1", "hit", id="no-cache in quotes"),
        pytest.param("x-no-cache", "1", "hit", id="a longer name"),
    ],
)
async def test_requests_for_what_is_fresh(clock: FakeClock, directive: str, text: str, status: str) -> None:
    """What a client says limits what it accepts of an answer that is 30 s old and fresh for 30 s more."""
    async with client_of(counted(clock)) as client:
        await client.get("/")
        clock.advance(30)
        answer = await client.get("/", headers={"cache-control": directive})
        assert (answer.text, told(answer)) == (text, status)
        refreshed = "2" if "stored" in status else "1"
        assert (await client.get("/")).text == refreshed


@pytest.mark.parametrize(
    ("directive", "text", "status"),
    [
        pytest.param("max-stale", "1", "hit", id="any age"),
        pytest.param("max-stale=30", "1", "hit", id="at the edge"),
        pytest.param("max-stale=29", "2", "fwd=stale; stored", id="too old"),
        pytest.param("max-stale, only-if-cached", "1", "hit", id="only what is cached"),
        pytest.param(
            "max-stale=60, max-age=80", "2", "fwd=stale; stored; detail=request-max-age", id="max-age too"
        ),
        pytest.param("only-if-cached", "Gateway Timeout", None, id="only-if-cached"),
    ],
)
async def test_requests_for_what_is_stale(clock: FakeClock, directive: str, text: str, status: str) -> None:
    """A client that says so gets an answer that is 30 s stale, with a ttl below 0."""
    async with client_of(counted(clock)) as client:
        await client.get("/")
        clock.advance(90)
        answer = await client.get("/", headers={"cache-control": directive})
    assert (answer.text, told(answer)) == (text, status)
    if status == "hit":
        assert answer.headers["cache-status"] == "app-cache; hit; ttl=-30"


@pytest.mark.parametrize("said", ["must-revalidate", "proxy-revalidate", "s-maxage=60", "no-cache"])
async def test_max_stale_does_not_override(clock: FakeClock, said: str) -> None:
    """What the response forbids to serve stale is not, whatever the client accepts."""
    async with client_of(counted(clock, {"cache-control": said})) as client:
        await client.get("/")
        clock.advance(61)
        assert (await client.get("/", headers={"cache-control": "max-stale"})).text == "2"


async def test_only_if_cached(clock: FakeClock) -> None:
    """What is not stored is a 504 for a client that wants only what is, and the handler does not run."""
    async with client_of(counted(clock)) as client:
        answer = await client.get("/", headers={"cache-control": "only-if-cached"})
        assert (answer.status_code, told(answer)) == (504, None)
        assert (await client.get("/")).text == "1"


async def test_pragma(clock: FakeClock) -> None:
    """Pragma counts where there is no Cache-Control."""
    async with client_of(counted(clock)) as client:
        await client.get("/")
        assert (await client.get("/", headers={"pragma": "no-cache"})).text == "2"
        assert (await client.get("/", headers={"pragma": "no-cache", "cache-control": "max-age=9"})).text == "2"


@pytest.mark.parametrize(
    "directive", ["no-cache", "no-store", "max-age=0", "min-fresh=99", "only-if-cached", "max-stale"]
)
async def test_cache_control_off(clock: FakeClock, directive: str) -> None:
    """With ``cache_control=False`` the client's directives are ignored."""
    async with client_of(counted(clock, cache_control=False)) as client:
        headers = {"cache-control": directive}
        assert told(await client.get("/", headers=headers)) == MISS
        clock.advance(30)
        assert told(await client.get("/", headers=headers)) == "hit"
        clock.advance(30)
        assert (await client.get("/", headers=headers)).text == "2"


@pytest.mark.parametrize("directive", ["max-age=1000", "s-maxage=1000", "public", "max-age=1"])
async def test_clients_set_no_lifetimes(clock: FakeClock, directive: str) -> None:
    """Nothing that the first client says changes how long its answer is stored (S20)."""
    async with client_of(counted(clock)) as client:
        await client.get("/", headers={"cache-control": directive, "clear-site-data": '"cache"'})
        clock.advance(59)
        assert told(await client.get("/")) == "hit"
        clock.advance(1)
        assert told(await client.get("/")) == "fwd=stale; stored"


@pytest.mark.parametrize(
    ("said", "lifetime"),
    [
        pytest.param({"cache-control": "max-age=10"}, 10, id="max-age"),
        pytest.param({"cache-control": "max-age=600"}, 600, id="longer max-age"),
        pytest.param({"cache-control": "s-maxage=20, max-age=10"}, 20, id="s-maxage before max-age"),
        pytest.param({"Cache-Control": "MAX-AGE=10"}, 10, id="capitals"),
        pytest.param({"cache-control": "max-age=10", "expires": "0"}, 10, id="max-age before Expires"),
        pytest.param(
            {"date": "Thu, 01 Jan 1970 00:00:00 GMT", "expires": "Mon, 12 Jan 1970 13:46:50 GMT"},
            1_000_010,
            id="Expires",
        ),
        pytest.param({"cache-control": "public"}, 60, id="nothing about freshness"),
    ],
)  # fmt: skip
async def test_responses_override_the_timeout(clock: FakeClock, said: dict[str, str], lifetime: int) -> None:
    """What the response says of its freshness holds before the decorator's timeout."""
    clock.seconds = 1_000_000
    aged = 1_000_000 if "date" in said else 0
    async with client_of(counted(clock, said)) as client:
        await client.get("/")
        clock.advance(lifetime - aged - 1)
        assert told(await client.get("/")) == "hit"
        clock.advance(1)
        assert told(await client.get("/")) == "fwd=stale; stored"


@pytest.mark.parametrize("said", ["max-age=0", "max-age=-1", "max-age=x", "s-maxage=0, max-age=60", "no-cache"])
async def test_validated_each_time(clock: FakeClock, said: str) -> None:
    """What is stale from the start, or must be validated, is stored and never served without the handler."""
    async with client_of(counted(clock, {"cache-control": said})) as client:
        await client.get("/")
        assert [(await client.get("/")).text for _ in range(2)] == ["2", "3"]


async def test_repeated_lines(clock: FakeClock) -> None:
    """Directives on several lines are one list."""
    app = FastAPI()

    @app.get("/")
    @cache(timeout=60)
    def answer() -> Response:
        response = Response("a", headers={"cache-control": "max-age=10"})
        response.headers.append("cache-control", "private")
        return response

    put_cache(app, clock)
    async with client_of(app) as client:
        assert told(await client.get("/")) == "fwd=uri-miss; detail=private"


@pytest.mark.parametrize(
    ("headers", "detail"),
    [
        pytest.param({"if-match": '"a"'}, "precondition", id="if-match"),
        pytest.param({"if-unmodified-since": "Thu, 01 Jan 1970 00:00:00 GMT"}, "precondition", id="unmodified"),
    ],
)
async def test_passed_by(clock: FakeClock, headers: dict[str, str], detail: str) -> None:
    """A request that a stored answer cannot satisfy passes with all its fields, before and after one is stored."""
    app, seen = FastAPI(), []

    @app.get("/")
    @cache(timeout=60)
    def answer(request: Request) -> Response:
        seen.append({name: request.headers.get(name) for name in headers})
        return Response("a")

    put_cache(app, clock)
    async with client_of(app) as client:
        for _ in range(2):
            assert told(await client.get("/", headers=headers)) == f"fwd=bypass; detail={detail}"
            assert seen[-1] == headers
            assert (await client.get("/")).status_code == 200
        assert told(await client.get("/")) == "hit"


@pytest.mark.parametrize("headers", [[(b"content-length", b"3")], [(b"transfer-encoding", b"chunked")]])
async def test_get_with_a_body(clock: FakeClock, headers: list[tuple[bytes, bytes]]) -> None:
    """A GET with a body passes with it, and is answered by its handler (S14)."""
    app = FastAPI()

    @app.get("/")
    @cache(timeout=60)
    async def answer(request: Request) -> Response:
        return Response(await request.body())

    put_cache(app, clock)
    scope = scope_of("/", headers=[(b"host", b"test"), *headers])
    async with client_of(app) as client:
        await client.get("/")
    parts = ({"type": "http.request", "body": b"ab", "more_body": True}, {"type": "http.request", "body": b"c"})
    start, body = await messages_of(app, scope, *parts)
    assert body["body"] == b"abc"
    assert (b"cache-status", b"app-cache; fwd=bypass; detail=body") in start["headers"]


async def test_head(clock: FakeClock) -> None:
    """HEAD is answered from GET's entry without a body, and never fills it (S12)."""
    app, runs = FastAPI(), []

    @app.api_route("/", methods=["GET", "HEAD"])
    @cache(timeout=60)
    def answer(request: Request) -> Response:
        runs.append(request.method)
        return Response("text")

    put_cache(app, clock)
    async with client_of(app) as client:
        assert told(await client.head("/")) == "fwd=uri-miss"
        get = await client.get("/")
        assert (told(get), get.text) == (MISS, "text")
        for _ in range(2):  # the second is given again without an exchange
            _, *parts = await messages_of(app, scope_of("/", method="HEAD"))
            assert [part["body"] for part in parts] == [b""]
        head = await client.head("/")
    assert (told(head), head.content, head.headers["content-length"]) == ("hit", b"", "4")
    assert head.headers["etag"] == get.headers["etag"]
    assert runs == ["HEAD", "GET"]

"""Conditional requests: to the cache from its clients, from the cache to the handler (RFC 9111 §4.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse

from app_cache import cache
from tests.middleware.apps import client_of, put_cache, served, told

if TYPE_CHECKING:
    from app_cache.testing import FakeClock

pytestmark = pytest.mark.anyio

DATES = ["Thu, 01 Jan 1970 00:00:00 GMT", "Fri, 02 Jan 1970 00:00:00 GMT", "Sat, 03 Jan 1970 00:00:00 GMT"]
SAID = {"etag": '"a"', "last-modified": DATES[1], "x-more": "1"}


def answering(fields: dict[str, str], status: int = 200) -> FastAPI:
    """Return an application that answers with *fields*."""
    app = FastAPI()
    app.get("/")(cache(timeout=60, statuses=[status])(lambda: Response("text", status, headers=fields)))
    put_cache(app)
    return app


@pytest.mark.parametrize("stored", [False, True], ids=["from the handler", "from the cache"])
@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        pytest.param({"if-none-match": '"a"'}, 304, id="the tag"),
        pytest.param({"if-none-match": 'W/"a"'}, 304, id="the tag, weak"),
        pytest.param({"if-none-match": '"x", "a,b" , "a"'}, 304, id="in a list"),
        pytest.param({"if-none-match": "*"}, 304, id="star"),
        pytest.param({"if-none-match": '"b"'}, 200, id="another tag"),
        pytest.param({"if-none-match": "a"}, 200, id="no tag"),
        pytest.param({"if-modified-since": DATES[1]}, 304, id="the date"),
        pytest.param({"if-modified-since": DATES[2]}, 304, id="a later date"),
        pytest.param({"if-modified-since": DATES[0]}, 200, id="an earlier date"),
        pytest.param({"if-modified-since": "yesterday"}, 200, id="no date"),
        pytest.param({"if-none-match": '"b"', "if-modified-since": DATES[1]}, 200, id="the tag decides"),
    ],
)
async def test_304(asked: dict[str, str], expected: int, *, stored: bool) -> None:
    """Who has the answer gets a 304 without what describes content, whoever answers."""
    async with client_of(answering(SAID)) as client:
        if stored:
            await client.get("/")
        answer = await client.get("/", headers=asked)
    assert (answer.status_code, answer.text) == (expected, "" if expected == 304 else "text")
    assert answer.headers.items() >= SAID.items()
    assert ("content-length" in answer.headers) is (expected == 200)
    came = "fwd-status=200; " if expected == 304 else ""
    assert told(answer) == ("hit" if stored else f"fwd=uri-miss; {came}stored")


async def test_304_over_http() -> None:
    """A 304 from the cache leaves the connection usable, on the miss and on the hit."""
    app = FastAPI()
    app.get("/")(cache(timeout=60)(lambda: StreamingResponse(iter(["a", "b"]), headers={"etag": '"a"'})))
    put_cache(app)
    async with served(app) as client:
        for _ in range(2):
            assert (await client.get("/", headers={"if-none-match": '"a"'})).status_code == 304
            assert (await client.get("/")).text == "ab"


async def test_tag_of_another_url() -> None:
    """The ETag of one URL gives no 304 for another (S21)."""
    app = FastAPI()
    app.get("/{name}")(cache(timeout=60)(lambda name: name))
    put_cache(app)
    async with client_of(app) as client:
        tag = (await client.get("/a")).headers["etag"]
        for _ in range(2):
            assert (await client.get("/b", headers={"if-none-match": tag})).status_code == 200


async def test_tag_of_another_variant() -> None:
    """The ETag of one variant gives no 304 for another (F23)."""
    app = FastAPI()

    @app.get("/")
    @cache(timeout=60)
    def answer(request: Request) -> Response:
        return Response(request.headers["accept-language"], headers={"vary": "accept-language"})

    put_cache(app)
    async with client_of(app) as client:
        tag = (await client.get("/", headers={"accept-language": "en"})).headers["etag"]
        for _ in range(2):
            german = await client.get("/", headers={"accept-language": "de", "if-none-match": tag})
            assert (german.status_code, german.text) == (200, "de")
        english = await client.get("/", headers={"accept-language": "en", "if-none-match": tag})
    assert (english.status_code, told(english)) == (304, "hit")


async def test_tag_of_another_variant_of_the_same_bytes() -> None:
    """Nor does it where the two have the same bytes: a client would take the one for the other."""
    app = FastAPI()

    @app.get("/")
    @cache(timeout=60)
    def answer(request: Request) -> Response:
        return Response("[]", media_type=request.headers["accept"], headers={"vary": "accept"})

    put_cache(app)
    async with client_of(app) as client:
        tag = (await client.get("/", headers={"accept": "application/json"})).headers["etag"]
        for _ in range(2):
            plain = await client.get("/", headers={"accept": "text/plain", "if-none-match": tag})
            assert (plain.status_code, plain.headers["content-type"]) == (200, "text/plain; charset=utf-8")


@pytest.mark.parametrize("status", [203, 404, 500])
async def test_only_a_200_is_not_modified(status: int) -> None:
    """An answer of another status is sent whole, whatever the client has."""
    async with client_of(answering(SAID, status)) as client:
        for _ in range(2):
            answer = await client.get("/", headers={"if-none-match": '"a"'})
            assert (answer.status_code, answer.text) == (status, "text")


async def test_conditions_of_clients_stay_here(clock: FakeClock) -> None:
    """A client's condition does not reach the handler, and neither does a tag that the cache made."""
    app, seen = FastAPI(), []

    @app.get("/")
    @cache(timeout=60)
    def answer(request: Request) -> Response:
        seen.append(request.headers.get("if-none-match"))
        return Response(status_code=304) if seen[-1] == '"mine"' else Response("text")

    put_cache(app, clock)
    async with client_of(app) as client:
        first = await client.get("/", headers={"if-none-match": '"mine"'})
        assert (first.status_code, first.text, told(first)) == (200, "text", "fwd=uri-miss; stored")
        clock.advance(61)
        await client.get("/", headers={"if-none-match": '"mine"'})
    assert seen == [None, None]


def validating(clock: FakeClock, update: dict[str, str]) -> FastAPI:
    """Return an application that answers conditions with a 304 of *update*."""
    app = FastAPI()

    @app.get("/")
    @cache(timeout=60)
    def answer(request: Request) -> Response:
        if request.headers.get("if-none-match") == '"a"':
            assert request.headers["if-modified-since"] == DATES[1]
            return Response(status_code=304, headers=update)
        return Response("text", headers=SAID)

    put_cache(app, clock)
    return app


async def test_validation(clock: FakeClock) -> None:
    """A 304 from the handler freshens the stored answer, which is then a hit with the fields of both."""
    app = validating(clock, {"x-more": "2", "content-type": "x/y", "content-encoding": "gzip"})
    async with client_of(app) as client:
        await client.get("/")
        clock.advance(61)
        for expected in ("fwd=stale; fwd-status=304; stored", "hit"):
            answer = await client.get("/")
            assert (answer.status_code, answer.text, told(answer)) == (200, "text", expected)
            assert answer.headers.get_list("x-more") == ["2"]
            assert (answer.headers["content-type"], "content-encoding" in answer.headers) == ("x/y", False)
        clock.advance(59)
        assert told(await client.get("/")) == "hit"


@pytest.mark.parametrize(("asked", "expected"), [('"a"', 304), ('"b"', 200)])
async def test_validation_for_a_client_with_a_condition(clock: FakeClock, asked: str, expected: int) -> None:
    """Whether the client gets a 304 is decided by its own condition, not by the one of the cache."""
    async with client_of(validating(clock, {})) as client:
        await client.get("/")
        clock.advance(61)
        assert (await client.get("/", headers={"if-none-match": asked})).status_code == expected


async def test_validation_that_says_how_long(clock: FakeClock) -> None:
    """The freshness that a 304 states is that of the answer it validates."""
    async with client_of(validating(clock, {"cache-control": "max-age=5"})) as client:
        await client.get("/")
        clock.advance(61)
        await client.get("/")
        clock.advance(4)
        assert told(await client.get("/")) == "hit"
        clock.advance(1)
        assert told(await client.get("/")) == "fwd=stale; fwd-status=304; stored"


async def test_validation_that_fails(clock: FakeClock) -> None:
    """A whole answer to a validating request takes the place of the stored one."""
    app, bodies = FastAPI(), ["one", "two"]
    app.get("/")(cache(timeout=60)(lambda: Response(bodies[0], headers={"etag": f'"{bodies.pop(0)}"'})))
    put_cache(app, clock)
    async with client_of(app) as client:
        await client.get("/")
        clock.advance(61)
        assert [(await client.get("/")).text for _ in range(2)] == ["two", "two"]


async def test_an_unasked_304(clock: FakeClock) -> None:
    """A 304 that the cache did not ask for is passed on and not stored."""
    app = FastAPI()
    app.get("/")(cache(timeout=60)(lambda: Response(status_code=304)))
    put_cache(app, clock)
    async with client_of(app) as client:
        for _ in range(2):
            answer = await client.get("/")
            assert (answer.status_code, told(answer)) == (304, "fwd=uri-miss; detail=status")


async def test_reload_validates(clock: FakeClock) -> None:
    """A client's no-cache is a validation where the stored answer can be validated."""
    async with client_of(validating(clock, {})) as client:
        await client.get("/")
        answer = await client.get("/", headers={"cache-control": "no-cache"})
    assert (answer.text, told(answer)) == ("text", "fwd=request; fwd-status=304; stored; detail=request-no-cache")


async def test_post_has_no_304() -> None:
    """A cached POST is answered whole, whatever the client has."""
    app: Any = FastAPI()
    app.post("/")(cache(timeout=60)(lambda: Response("text", headers={"etag": '"a"'})))
    put_cache(app)
    async with client_of(app) as client:
        for _ in range(2):
            assert (await client.post("/", headers={"if-none-match": '"a"'})).status_code == 200


async def test_post_is_not_validated(clock: FakeClock) -> None:
    """A cached POST that is stale gets no condition of the cache, which would be a 412 (RFC 9110 §13.1.2)."""
    app: Any = FastAPI()

    @app.post("/")
    @cache(timeout=60)
    def answer(request: Request) -> Response:
        status = 412 if "if-none-match" in request.headers else 200
        return Response("text", status, headers=SAID)

    put_cache(app, clock)
    async with client_of(app) as client:
        for expected in ("fwd=uri-miss; stored", "fwd=stale; stored"):
            found = await client.post("/")
            assert (found.status_code, told(found)) == (200, expected)
            clock.advance(61)

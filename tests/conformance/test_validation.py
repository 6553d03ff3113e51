"""What is stored, validated and freshened by 304, by HEAD, and by the answer to a POST (RFC 9111 §4.3)."""

from __future__ import annotations

import asyncio

import pytest

from app_cache import MemoryBackend
from tests.clients import told
from tests.conformance.origin import URL, Origin, raw

pytestmark = pytest.mark.anyio

FRESH = "Cache-Control: max-age=60"


@pytest.mark.parametrize(
    ("stored", "update"),
    [
        pytest.param('ETag: "a"', 'ETag: "b"', id="another strong tag"),
        pytest.param('ETag: W/"a"', 'ETag: "a"', id="a strong tag for a weak one"),
        pytest.param('ETag: "a"', 'ETag: W/"b"', id="another weak tag"),
        pytest.param("Last-Modified: {now-99}", "Last-Modified: {now-98}", id="another date"),
    ],
)
async def test_a_304_about_another_response(stored: str, update: str) -> None:
    """A 304 that names another response updates nothing, and the whole is asked for (§4.3.4)."""
    origin = (
        Origin().says(FRESH, stored).says(FRESH, update, "X-A: 1", status=304, body=b"").says(FRESH, body=b"new")
    )
    async with origin.cached() as client:
        await client.get(URL)
        origin.clock.advance(61)
        answer = await client.get(URL)
        assert (answer.status_code, answer.text, "x-a" in answer.headers) == (200, "new", False)
        assert (await client.get(URL)).text == "new"
    assert not {"if-none-match", "if-modified-since"} & origin.asked[2][1].keys()
    assert len(origin.asked) == 3


async def test_non_authoritative_is_validated() -> None:
    """What a proxy has changed may be validated as what it has not (§4.3.1)."""
    origin = Origin().says(FRESH, 'ETag: "a"', status=203).says(FRESH, status=304, body=b"")
    async with origin.cached() as client:
        await client.get(URL)
        origin.clock.advance(61)
        answer = await client.get(URL)
    assert (answer.status_code, told(answer)) == (203, "fwd=stale; fwd-status=304; stored")


@pytest.mark.parametrize("status", [404, 410, 301, 503])
@pytest.mark.parametrize("validator", ['ETag: "build 7"', "Last-Modified: {now-99}"], ids=["tag", "date"])
async def test_what_is_no_2xx_is_not_validated(status: int, validator: str) -> None:
    """A 304 says that all is well: what is stored with another status is asked for anew (RFC 9110 §15.4.5)."""
    origin = Origin().says(FRESH, validator, status=status).says(FRESH, validator, body=b"the page")
    async with origin.cached() as client:
        await client.get(URL)
        origin.clock.advance(61)
        answer = await client.get(URL)
        assert (answer.status_code, answer.text, told(answer)) == (200, "the page", "fwd=stale; stored")
        assert told(await client.get(URL)) == "hit"
    assert not {"if-none-match", "if-modified-since"} & origin.asked[1][1].keys()


async def test_tags_that_the_handler_added_stay() -> None:
    """A response that a 304 freshened keeps the groups that it had (§3.2, RFC 9875)."""
    origin = Origin().says(FRESH, 'ETag: "a"', 'Cache-Groups: "one"').says(FRESH, status=304, body=b"")
    async with origin.cached() as client:
        await client.get(URL)
        origin.clock.advance(61)
        assert told(await client.get(URL)) == "fwd=stale; fwd-status=304; stored"
        origin.says('Cache-Group-Invalidation: "one"').answers.popleft()
        await client.post("/other")
        origin.says(FRESH, body=b"new").answers.popleft()
        assert (await client.get(URL)).text == "new"


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(["Content-Type: text/html"], id="another type"),
        pytest.param(["Content-Language: de"], id="a language more"),
        pytest.param(["Content-Type: text/plain"], id="the same type, in another order"),
    ],
)
async def test_a_tag_of_the_cache_stays_its_own(lines: list[str]) -> None:
    """After an update the tag that the cache made is that of the new fields, and is not sent to the handler."""
    origin = Origin().says(FRESH, "Last-Modified: {now-99}", "Content-Type: text/plain", "Content-Language: en")
    origin.says(FRESH, *lines, status=304, body=b"")
    async with origin.cached() as client:
        await client.get(URL)
        tags = []
        for _ in range(3):
            origin.clock.advance(61)
            tags.append((await client.get(URL)).headers["etag"])
    assert [fields.get("if-none-match") for _, fields in origin.asked] == [None] * 4
    assert len({*tags}) == 1


async def test_a_tag_of_the_cache_hides_no_date() -> None:
    """The handler is asked by the validators that it gave, not by the tag that the cache made (§4.3.1)."""
    origin = Origin().says(FRESH, "Last-Modified: {now-99}").says(FRESH, status=304, body=b"")
    async with origin.cached() as client:
        first = await client.get(URL)
        origin.clock.advance(61)
        assert (await client.get(URL, headers={"if-none-match": first.headers["etag"]})).status_code == 304
    asked = origin.asked[1][1]
    assert ("if-none-match" in asked, asked["if-modified-since"]) == (False, first.headers["last-modified"])


@pytest.mark.parametrize(
    ("lines", "expected", "field"),
    [
        pytest.param(['ETag: "a"', "Content-Length: 10", "X-A: 2", FRESH], "hit", "2", id="agrees"),
        pytest.param(["X-A: 2", FRESH], "hit", "1", id="has no validator"),
        pytest.param(["X-A: 2", "Content-Length: 10", FRESH], "hit", "1", id="the length is no validator"),
        pytest.param(['ETag: "b"', "X-A: 2", FRESH], "fwd=stale", "1", id="another tag"),
        pytest.param(["Content-Length: 11", "X-A: 2", FRESH], "fwd=stale", "1", id="another length"),
    ],
)
async def test_head_freshens(lines: list[str], expected: str, field: str) -> None:
    """The 200 to a HEAD updates what is stored where both agree, and else makes it stale (§4.3.5)."""
    origin = Origin().says(FRESH, 'ETag: "a"', "X-A: 1").says(*lines, body=b"").says(status=304, body=b"")
    async with origin.cached() as client:
        await client.get(URL)
        head = await client.head(URL, headers={"cache-control": "no-cache"})
        assert told(head) == "fwd=request; detail=request-no-cache"
        origin.clock.advance(1)
        answer = await client.get(URL)
    assert str(told(answer)).startswith(expected)
    assert (answer.headers["x-a"], answer.text) == (field, "0123456789")


async def test_head_of_what_is_stale_freshens() -> None:
    """A HEAD for what is stale makes it fresh for GET (§4.3.5)."""
    origin = Origin().says(FRESH, 'ETag: "a"').says(FRESH, 'ETag: "a"', body=b"")
    async with origin.cached() as client:
        await client.get(URL)
        origin.clock.advance(61)
        assert told(await client.head(URL)) == "fwd=stale"
        assert told(await client.get(URL)) == "hit"


@pytest.mark.parametrize(
    ("lines", "one", "two"),
    [
        pytest.param(['ETag: "two"', "X-A: new"], "stale", "new", id="agrees with the chosen one"),
        pytest.param(['ETag: "one"', "X-A: new"], "new", "stale", id="agrees with the other one"),
        pytest.param(['ETag: "b"', "X-A: new"], "stale", "stale", id="agrees with none"),
        pytest.param(["Content-Length: 5", "X-A: new"], "stale", "old", id="differs from the other one in length"),
        pytest.param(["X-A: new"], "old", "old", id="has no validator"),
        pytest.param(
            ['ETag: "one"', "Cache-Control: no-store"], "stale", "stale", id="agrees, and forbids to store"
        ),
    ],
)
async def test_head_and_all_that_it_could_have_chosen(lines: list[str], one: str, two: str) -> None:
    """The 200 to a HEAD updates each stored response that it selects, or makes it stale (§4.3.5)."""
    origin = Origin()
    origin.says(FRESH, "Date: {now-9}", "Vary: X-One", 'ETag: "one"', "X-A: old", body=b"one")
    origin.says(FRESH, "Date: {now}", "Vary: X-Two", 'ETag: "two"', "X-A: old", body=b"other")
    origin.says(*lines, body=b"")
    async with origin.cached() as client:
        await client.get(URL, headers={"x-one": "1"})
        await client.get(URL, headers={"x-one": "2", "x-two": "1"})
        await client.head(URL, headers={"x-one": "1", "x-two": "1", "cache-control": "no-cache"})
        asked = {"x-two": "2", "x-one": "1"}, {"x-two": "1", "x-one": "3"}
        found = [await client.get(URL, headers={**each, "cache-control": "only-if-cached"}) for each in asked]
    assert [answer.headers.get("x-a", "stale") for answer in found] == [one, two]


@pytest.mark.parametrize("status", [404, 304, 500])
async def test_head_of_another_status(status: int) -> None:
    """Only a 200 to a HEAD says something of what is stored (§4.3.5)."""
    origin = Origin().says(FRESH, 'ETag: "a"').says('ETag: "b"', status=status, body=b"")
    async with origin.cached() as client:
        await client.get(URL)
        await client.head(URL, headers={"cache-control": "no-cache"})
        assert told(await client.get(URL)) == "hit"


@pytest.mark.parametrize(
    ("lines", "status", "expected"),
    [
        pytest.param(["Content-Location: /page", FRESH], 200, "posted", id="a path"),
        pytest.param(["Content-Location: http://test/page", FRESH], 200, "posted", id="a URL"),
        pytest.param(["Content-Location: page", "Expires: {now+9}"], 200, "posted", id="Expires"),
        pytest.param(["Content-Location: /page"], 200, "got", id="no freshness"),
        pytest.param(["Content-Location: /page", "Last-Modified: {now-999}"], 200, "got", id="a heuristic"),
        pytest.param([FRESH], 200, "got", id="no Content-Location"),
        pytest.param(["Content-Location: /page?a=1", FRESH], 200, "got", id="another query"),
        pytest.param(["Content-Location: http://other/page", FRESH], 200, "got", id="another host"),
        pytest.param(["Content-Location: /page", "Content-Location: /page", FRESH], 200, "got", id="twice"),
        pytest.param(["Content-Location: /page", FRESH], 201, "got", id="created"),
        pytest.param(["Content-Location: /page", FRESH], 400, "got", id="an error"),
        pytest.param(["Content-Location: /page", FRESH + ", private"], 200, "got", id="private"),
        pytest.param(["Content-Location: /page", "Cache-Control: no-store, max-age=9"], 200, "got", id="no-store"),
    ],
)
async def test_posted_answers(lines: list[str], status: int, expected: str) -> None:
    """The answer to a POST serves GET if it says that it is what GET would get, and how long (RFC 9110 §9.3.3)."""
    origin = Origin().says(*lines, status=status, body=(b"pos", b"ted")).says(body=b"got")
    async with origin.cached() as client:
        assert (await client.post(URL, content=b"a=1")).text == "posted"
        assert (await client.get(URL)).text == expected
        assert (await client.head(URL)).status_code == 200
        assert (await client.post(URL)).text == "got"


async def test_posted_answer_with_vary() -> None:
    """The answer to a POST is a variant as any other."""
    origin = Origin().says("Content-Location: /page", FRESH, "Vary: X-A", body=b"posted").says(body=b"got")
    async with origin.cached() as client:
        await client.post(URL, headers={"x-a": "1"})
        assert (await client.get(URL, headers={"x-a": "1"})).text == "posted"
        assert (await client.get(URL, headers={"x-a": "2"})).text == "got"


async def test_posted_answer_that_was_overtaken() -> None:
    """The answer to a POST during which something was invalidated is not stored: it may be older than that."""
    origin = Origin().says("Content-Location: /page", FRESH, body=b"posted").says(body=b"got")
    held, entered = asyncio.Event(), asyncio.Event()
    answers = origin.__call__

    class Held(Origin):
        async def __call__(self, scope: object, receive: object, send: object) -> None:
            if scope["method"] == "POST":  # type: ignore[index]
                entered.set()
                await held.wait()
            await answers(scope, receive, send)

    async with Held(origin.clock).cached(backend=MemoryBackend()) as client:
        posting = asyncio.create_task(client.post(URL))
        await entered.wait()
        await client.put("/other")
        held.set()
        await posting
        assert (await client.get(URL)).text == "got"


async def test_the_end_of_a_body_of_known_length() -> None:
    """An answer is stored when its client has all bytes of its length, before the handler ends it."""
    origin = Origin().says(FRESH, "Content-Length: 4", body=(b"01", b"23"), ends=False)
    async with origin.cached() as client:
        assert (await client.get(URL)).text == "0123"
        assert (told(await client.get(URL)), len(origin.asked)) == ("hit", 1)


async def test_modified_since_of_what_has_no_date() -> None:
    """If-Modified-Since says nothing of what came just now without Last-Modified (RFC 9110 §13.1.3)."""
    origin = Origin().says(FRESH, "Date: {now}")
    async with origin.cached() as client:
        asked = raw(f"If-Modified-Since: {origin._dated('{now}')}")
        assert (await client.get(URL, headers=asked)).status_code == 200
        assert (await client.get(URL, headers=asked)).status_code == 304

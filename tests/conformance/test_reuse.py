"""Which requests a stored response answers, and how (RFC 9111 §4, §4.2.4, §5.2.1, §5.4)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from app_cache import CachePolicy
from tests.clients import all_blocked, told
from tests.conformance.origin import BOTH, URL, Origin, asked_twice, is_hit, raw

pytestmark = pytest.mark.anyio

FRESH = "Cache-Control: max-age=60"


@BOTH
@pytest.mark.parametrize(
    ("asked", "after", "hit"),
    [
        pytest.param("max-age=30", 30, True, id="max-age at the edge"),
        pytest.param("max-age=30", 31, False, id="max-age beyond"),
        pytest.param('max-age="30"', 31, False, id="max-age quoted"),
        pytest.param("max-age=0", 0, True, id="max-age of nothing, at once"),
        pytest.param("max-age=0", 1, False, id="max-age of nothing"),
        pytest.param("max-age=x", 30, True, id="max-age that is none"),
        pytest.param("max-age=-1", 30, True, id="max-age below nothing is none"),
        pytest.param("max-age=99", 61, False, id="max-age makes nothing fresh"),
        pytest.param("max-age=99999999999", 30, True, id="max-age huge"),
        pytest.param("s-maxage=0", 30, True, id="s-maxage is for responses"),
        pytest.param("min-fresh=30", 30, True, id="min-fresh at the edge"),
        pytest.param("min-fresh=30", 31, False, id="min-fresh beyond"),
        pytest.param("min-fresh=0", 59, True, id="min-fresh of nothing"),
        pytest.param("min-fresh=x", 59, True, id="min-fresh that is none"),
        pytest.param("min-fresh=99999999999", 0, False, id="min-fresh huge"),
        pytest.param("max-age=30, min-fresh=40", 25, False, id="max-age holds, min-fresh does not"),
        pytest.param("max-age=20, min-fresh=30", 25, False, id="min-fresh holds, max-age does not"),
        pytest.param("max-age=30, min-fresh=30", 30, True, id="both hold"),
        pytest.param("max-stale", 90, True, id="max-stale of any age"),
        pytest.param("max-stale=30", 90, True, id="max-stale at the edge"),
        pytest.param("max-stale=30", 91, False, id="max-stale beyond"),
        pytest.param("max-stale=0", 60, True, id="max-stale of nothing, at the edge"),
        pytest.param("max-stale=0", 61, False, id="max-stale of nothing"),
        pytest.param("max-stale=x", 90, False, id="max-stale that is none"),
        pytest.param("max-stale=99999999999", 90, True, id="max-stale huge"),
        pytest.param("max-stale=30, max-age=100", 90, True, id="max-stale and max-age hold"),
        pytest.param("max-stale=30, max-age=80", 90, False, id="max-stale holds, max-age does not"),
        pytest.param("max-stale=30, min-fresh=1", 90, False, id="max-stale and min-fresh"),
        pytest.param("no-cache", 0, False, id="no-cache"),
        pytest.param("No-Cache, max-stale", 90, False, id="no-cache before max-stale"),
        pytest.param("no-store", 0, False, id="no-store"),
        pytest.param("only-if-cached", 59, True, id="only-if-cached"),
        pytest.param("only-if-cached, max-stale=30", 90, True, id="only-if-cached, stale"),
        pytest.param("no-transform", 0, True, id="no-transform"),
        pytest.param("private, must-revalidate, x=1", 59, True, id="what requests do not have"),
        pytest.param('x="no-cache"', 59, True, id="in a quoted string"),
    ],
)
async def test_request_directives(asked: str, after: float, hit: bool, policy: CachePolicy) -> None:
    """A client's directives limit, or with ``max-stale`` widen, what it accepts (§5.2.1)."""
    origin = Origin().says(FRESH, 'ETag: "a"')
    answer = await asked_twice(origin, then=(f"Cache-Control: {asked}",), after=after, policy=policy)
    assert is_hit(answer) is hit


@pytest.mark.parametrize(
    ("asked", "hit"),
    [
        pytest.param(["Pragma: no-cache"], False, id="alone"),
        pytest.param(["Pragma: x, No-Cache"], False, id="in a list"),
        pytest.param(["Pragma: x"], True, id="another one"),
        pytest.param(["Pragma: no-cache", "Cache-Control: max-age=60"], True, id="beside Cache-Control"),
        pytest.param(["Pragma: no-cache", "Cache-Control:"], True, id="beside an empty Cache-Control"),
    ],
)
async def test_pragma(asked: list[str], hit: bool) -> None:
    """``Pragma: no-cache`` is ``no-cache`` where there is no Cache-Control (§5.4)."""
    assert is_hit(await asked_twice(Origin().says(FRESH), then=tuple(asked))) is hit


@BOTH
@pytest.mark.parametrize(
    "directives",
    [
        "max-age=60, must-revalidate",
        "max-age=60, proxy-revalidate",
        "s-maxage=60",
        "max-age=60, no-cache",
        "max-age=60, must-revalidate, stale-while-revalidate=99, stale-if-error=99",
        "s-maxage=60, stale-while-revalidate=99, stale-if-error=99",
        "max-age=60, proxy-revalidate, stale-while-revalidate=99",
        "max-age=60, no-cache, stale-while-revalidate=99, stale-if-error=99",
    ],
)
@pytest.mark.parametrize("failure", ["a status", "an exception"])
async def test_what_forbids_stale(directives: str, failure: str, policy: CachePolicy) -> None:
    """What its response forbids to serve stale is not, whoever permits it, and whatever fails (§4.2.4, §5.2.2)."""
    origin = Origin().says(f"Cache-Control: {directives}", 'ETag: "a"')
    breaks = failure == "an exception"
    origin.says(status=503, body=() if breaks else b"", breaks=breaks)
    answer = await asked_twice(
        origin, then=("Cache-Control: max-stale, stale-if-error=99",), after=61, policy=policy
    )
    assert answer.status_code == (503 if failure == "a status" else 500)


@BOTH
async def test_stale_is_not_served_unasked(policy: CachePolicy) -> None:
    """What is stale answers nobody as long as the origin can be asked (§4.2.4)."""
    answer = await asked_twice(Origin().says(FRESH).says(FRESH, body=b"new"), after=60, policy=policy)
    assert (answer.text, told(answer)) == ("new", "fwd=stale; stored")


@pytest.mark.parametrize(
    ("policy", "status"),
    [
        pytest.param(CachePolicy.http(), 200, id="the RFC"),
        pytest.param(CachePolicy.http(stale_on_failure=False), 503, id="our default"),
    ],
)
async def test_disconnected(policy: CachePolicy, status: int) -> None:
    """A stale response may stand in for a failure, visibly stale; by default we want to be told so (§4.2.4)."""
    answer = await asked_twice(Origin().says(FRESH).says(status=503, body=b""), after=100, policy=policy)
    assert (answer.status_code, answer.headers.get("age")) == (status, "100" if status == 200 else None)


@BOTH
@pytest.mark.parametrize("more", ["", ", no-cache", ", no-store", ", max-age=9", ", min-fresh=9", ", max-stale=9"])
async def test_only_if_cached(more: str, policy: CachePolicy) -> None:
    """Who wants only what is stored gets a 504 where that may not answer; the origin is not asked (§5.2.1.7)."""
    origin = Origin().says(FRESH, 'ETag: "a"')
    async with origin.cached(policy) as client:
        asked = raw(f"Cache-Control: only-if-cached{more}")
        assert (await client.get(URL, headers=asked)).status_code == 504
        await client.get(URL)
        origin.clock.advance(100)
        answer = await client.get(URL, headers=asked)
    assert (answer.status_code, "cache-status" in answer.headers) == (504, False)
    assert len(origin.asked) == 1


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_no_store_in_a_request(method: str) -> None:
    """Nothing is stored of a request with ``no-store`` or its response, and what is stored stays (§5.2.1.5)."""
    origin = Origin().says(FRESH, body=b"one").says(FRESH, body=b"two").says(FRESH, 'ETag: "b"', body=b"three")
    async with origin.cached() as client:
        await client.get(URL, headers={"cache-control": "no-store"})
        assert (await client.get(URL)).text == "two"
        await client.request(method, URL, headers={"cache-control": "no-store"})
        assert (await client.get(URL)).text == "two"


@BOTH
@pytest.mark.parametrize("status", [200, 404, 301, 204])
async def test_head(status: int, policy: CachePolicy) -> None:
    """HEAD is answered by what is stored for GET: the same fields and no content (§4, RFC 9110 §9.3.2)."""
    origin = Origin().says(FRESH, "X-A: 1", "X-A: 2", "Content-Length: 10", 'ETag: "a"', status=status)
    async with origin.cached(policy) as client:
        await client.get(URL)
        origin.clock.advance(9)
        get, head = await client.get(URL), await client.head(URL)
    assert (head.status_code, head.headers.raw, head.content) == (status, get.headers.raw, b"")
    assert (head.headers["age"], len(origin.asked)) == ("9", 1)


async def test_head_answers_no_get() -> None:
    """The response to HEAD answers no GET (§2: the method is part of the key)."""
    origin = Origin().says(FRESH, body=b"").says(FRESH)
    async with origin.cached() as client:
        await client.head(URL)
        assert (await client.get(URL)).text == "0123456789"


@BOTH
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "FOO", "OPTIONS", "TRACE", "PROPFIND"])
async def test_write_through(method: str, policy: CachePolicy) -> None:
    """A method that is not GET, HEAD or QUERY always reaches the origin, with what it says (§4)."""
    origin = Origin().says(FRESH).says(FRESH, body=b"done")
    async with origin.cached(policy) as client:
        await client.get(URL)
        asked = {"cache-control": "max-stale, only-if-cached", "if-none-match": '"a"', "range": "bytes=0-1"}
        for _ in range(2):
            answer = await client.request(method, URL, headers=asked)
            assert (answer.status_code, answer.text) == (200, "done")
    assert [(asked, fields.get("if-none-match")) for asked, fields in origin.asked[1:]] == [(method, '"a"')] * 2


async def test_age_of_a_hit_is_not_stored() -> None:
    """Each hit has the age of its own moment (§4)."""
    origin = Origin().says(FRESH, "Age: 10")
    async with origin.cached() as client:
        await client.get(URL)
        ages = []
        for _ in range(3):
            origin.clock.advance(7)
            ages.append((await client.get(URL)).headers.get_list("age"))
    assert ages == [["17"], ["24"], ["31"]]


async def test_age_of_a_miss() -> None:
    """The first client gets the Age that came, for the cache adds nothing to it (§5.1)."""
    origin = Origin().says(FRESH, "Age: 10")
    async with origin.cached() as client:
        assert (await client.get(URL)).headers.get_list("age") == ["10"]


@pytest.mark.parametrize(
    ("update", "age", "then"),
    [
        pytest.param([], None, 60, id="neither"),
        pytest.param(["Date: {now+61}"], None, 60, id="Date"),
        pytest.param(["Age: 20", "Date: {now+41}"], "20", 40, id="both, from a cache further in"),
        pytest.param(["Age: 20"], "20", 40, id="Age, from a cache further in"),
    ],
)
async def test_age_after_validation(update: list[str], age: str | None, then: int) -> None:
    """What was validated is as old as its 304 says, not as it was before (§4.2.3, RFC 9110 §6.6.1)."""
    for after, fresh in ((then - 1, True), (then, False)):
        origin = Origin().says(FRESH, 'ETag: "a"', "Age: 30", "Date: {now-10}")
        origin.says(*update, FRESH, status=304, body=b"")
        async with origin.cached() as client:
            await client.get(URL)
            origin.clock.advance(61)
            validated = await client.get(URL)
            assert (validated.status_code, told(validated)) == (200, "fwd=stale; fwd-status=304; stored")
            assert validated.headers.get("age") == age
            origin.clock.advance(after)
            assert is_hit(await client.get(URL)) is fresh


async def test_age_of_what_was_waited_for() -> None:
    """Who waits for the response to another request gets it with its age (§4)."""
    entered, held = asyncio.Event(), asyncio.Event()

    class Held(Origin):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            entered.set()
            await held.wait()
            await super().__call__(scope, receive, send)

    async with Held().says(FRESH, "Age: 20").cached() as client, asyncio.TaskGroup() as requests:
        leading = requests.create_task(client.get(URL))
        await entered.wait()
        waiting = requests.create_task(client.get(URL))
        await all_blocked()
        held.set()
    assert [told(each.result()) for each in (leading, waiting)] == [
        "fwd=uri-miss; stored",
        "fwd=uri-miss; collapsed",
    ]
    assert [each.result().headers.get_list("age") for each in (leading, waiting)] == [["20"], ["20"]]

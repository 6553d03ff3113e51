"""Stale content by the word of a response or a request (RFC 5861)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from app_cache import CachePolicy
from tests.clients import all_blocked, told
from tests.conformance.origin import BOTH, URL, Origin, is_hit, raw

if TYPE_CHECKING:
    import httpx

pytestmark = pytest.mark.anyio

OURS = CachePolicy.http(stale_on_failure=False)
WHILE = "Cache-Control: max-age=60, stale-while-revalidate=30"
IF_ERROR = "Cache-Control: max-age=60, stale-if-error=30"


@BOTH
@pytest.mark.parametrize(
    ("after", "hit", "fetched"),
    [
        pytest.param(59, True, False, id="fresh"),
        pytest.param(60, True, True, id="stale"),
        pytest.param(90, True, True, id="at the end of the window"),
        pytest.param(91, False, False, id="beyond it"),
    ],
)
async def test_while_revalidate(after: float, hit: bool, fetched: bool, policy: CachePolicy) -> None:
    """Within the window the stale response is sent at once, visibly stale, while the origin is asked (§3)."""
    origin = Origin().says(WHILE, 'ETag: "a"').says(WHILE, body=b"new")
    async with origin.cached(policy) as client:
        await client.get(URL)
        origin.clock.advance(after)
        answer = await client.get(URL)
        assert is_hit(answer) is hit
        if hit:
            assert (answer.text, answer.headers["age"]) == ("0123456789", str(after))
            left = min(60 - after, -1) if fetched else 60 - after
            assert answer.headers["cache-status"] == f"app-cache; hit; ttl={left}"
        await all_blocked()
        again = await client.get(URL)
    assert again.text == ("new" if fetched or not hit else "0123456789")
    assert len(origin.asked) == (1 if hit and not fetched else 2)


async def test_the_revalidation_is_conditional() -> None:
    """The origin is asked in the background by the validators of the stale response; a 304 makes it fresh (§3)."""
    origin = Origin().says(WHILE, 'ETag: "a"', "Vary: X-A").says(WHILE, status=304, body=b"")
    async with origin.cached() as client:
        await client.get(URL, headers={"x-a": "1"})
        origin.clock.advance(70)
        await client.get(URL, headers={"x-a": "1", "if-none-match": '"z"', "range": "bytes=0-1"})
        await all_blocked()
        answer = await client.get(URL, headers={"x-a": "1"})
    _, asked = origin.asked[1]
    assert (asked["if-none-match"], asked["x-a"], "range" in asked) == ('"a"', "1", False)
    assert (answer.headers["cache-status"], answer.headers["age"]) == ("app-cache; hit; ttl=60", "0")


@pytest.mark.parametrize(
    ("wish", "vary", "sent"),
    [
        pytest.param({"cache-control": "only-if-cached"}, "X-A", None, id="only-if-cached"),
        pytest.param({"cache-control": "max-stale=60"}, "X-A", None, id="max-stale"),
        pytest.param({"pragma": "x"}, "X-A", None, id="Pragma"),
        pytest.param({"cache-control": "x"}, "Cache-Control", "x", id="what selects the response"),
    ],
)
async def test_the_revalidation_is_the_caches_own(wish: dict[str, str], vary: str, sent: str | None) -> None:
    """What the client wants of caches is not asked in the background, for that is not its request (§3)."""
    origin = Origin().says(WHILE, 'ETag: "a"', f"Vary: {vary}")
    async with origin.cached() as client:
        await client.get(URL, headers=wish if sent else {})
        origin.clock.advance(70)
        assert is_hit(await client.get(URL, headers=wish))
        await all_blocked()
    _, asked = origin.asked[1]
    assert (asked.get("cache-control", asked.get("pragma")), asked["if-none-match"]) == (sent, '"a"')


async def test_one_revalidation() -> None:
    """However many ask within the window, the origin is asked once at a time (§3)."""
    origin = Origin().says(WHILE)
    async with origin.cached() as client:
        await client.get(URL)
        origin.clock.advance(70)
        answers: list[httpx.Response] = []

        async def ask() -> None:
            answers.append(await client.get(URL))

        async with anyio.create_task_group() as clients:
            for _ in range(10):
                clients.start_soon(ask)
        await all_blocked()
    assert all(map(is_hit, answers))
    assert len(origin.asked) == 2


async def test_a_head_revalidates() -> None:
    """A HEAD that is answered stale has the response fetched anew as well (§3)."""
    origin = Origin().says(WHILE).says(WHILE, body=b"new")
    async with origin.cached() as client:
        await client.get(URL)
        origin.clock.advance(70)
        assert is_hit(await client.head(URL))
        await all_blocked()
        answer = await client.get(URL)
    assert (is_hit(answer), answer.text) == (True, "new")
    assert [method for method, _ in origin.asked] == ["GET", "GET"]


@pytest.mark.parametrize("failure", [500, 503, "raises"])
async def test_a_revalidation_that_fails(failure: int | str) -> None:
    """A failure in the background changes nothing within the window (§3.1)."""
    origin = Origin().says(WHILE)
    origin.says(status=503, body=(), breaks=True) if failure == "raises" else origin.says(status=int(failure))
    async with origin.cached() as client:
        await client.get(URL)
        origin.clock.advance(70)
        for _ in range(2):
            answer = await client.get(URL)
            assert (answer.status_code, is_hit(answer)) == (200, True)
            await all_blocked()


@BOTH
@pytest.mark.parametrize(
    ("asked", "hit"),
    [
        pytest.param("max-age=99", False, id="max-age wants no stale one"),
        pytest.param("max-stale=9", False, id="max-stale is less"),
        pytest.param("max-stale=10", True, id="max-stale is as much"),
        pytest.param("max-age=99, max-stale", True, id="max-age and max-stale"),
        pytest.param("min-fresh=1", False, id="min-fresh"),
        pytest.param("no-cache", False, id="no-cache"),
        pytest.param("only-if-cached", True, id="only-if-cached"),
        pytest.param("stale-while-revalidate=1", True, id="what requests do not have"),
    ],
)
async def test_what_the_client_says(asked: str, hit: bool, policy: CachePolicy) -> None:
    """A client that wants nothing stale, or less, is not served so within the window (RFC 9111 §5.2.1)."""
    origin = Origin().says(WHILE)
    async with origin.cached(policy) as client:
        await client.get(URL)
        origin.clock.advance(70)
        assert is_hit(await client.get(URL, headers=raw(f"Cache-Control: {asked}"))) is hit


@pytest.mark.parametrize(
    "argument", ["=x", "=-30", "=30.5", "", "=", '="30', "=0"], ids=lambda argument: argument or "none"
)
@pytest.mark.parametrize("extension", ["stale-while-revalidate", "stale-if-error"])
async def test_arguments_that_are_none(extension: str, argument: str) -> None:
    """An extension whose argument is no number of seconds, or 0, permits nothing (§3, §4)."""
    origin = Origin().says(f"Cache-Control: max-age=60, {extension}{argument}").says(status=503)
    async with origin.cached(OURS) as client:
        await client.get(URL)
        origin.clock.advance(61)
        assert (await client.get(URL)).status_code == 503


@pytest.mark.parametrize(
    ("said", "asked", "after", "rescued"),
    [
        pytest.param(IF_ERROR, [], 61, True, id="response"),
        pytest.param(IF_ERROR, [], 90, True, id="response, at the end of the window"),
        pytest.param(IF_ERROR, [], 91, False, id="response, beyond it"),
        pytest.param("Cache-Control: max-age=60", ["Cache-Control: stale-if-error=30"], 90, True, id="request"),
        pytest.param(
            "Cache-Control: max-age=60", ["Cache-Control: stale-if-error=30"], 91, False, id="request, beyond"
        ),
        pytest.param(IF_ERROR, ["Cache-Control: stale-if-error=60"], 120, True, id="the request says more"),
        pytest.param(IF_ERROR, ["Cache-Control: stale-if-error=9"], 90, True, id="the request says less"),
        pytest.param("Cache-Control: max-age=60", [], 61, False, id="neither"),
        pytest.param("Expires: {now+60}", ["Cache-Control: stale-if-error=30"], 90, True, id="Expires"),
        pytest.param(IF_ERROR + ", stale-while-revalidate=9", [], 80, True, id="beyond the other window"),
    ],
)
@pytest.mark.parametrize("failure", [500, 502, 503, 504, "raises"])
async def test_if_error(said: str, asked: list[str], after: float, rescued: bool, failure: int | str) -> None:
    """Within the window the stale response stands in for an error, visibly stale; beyond, the error comes (§4)."""
    origin = Origin().says(said)
    origin.says(status=503, body=(), breaks=True) if failure == "raises" else origin.says(status=int(failure))
    async with origin.cached(OURS) as client:
        await client.get(URL)
        origin.clock.advance(after)
        answer = await client.get(URL, headers=raw(*asked))
    error = 500 if failure == "raises" else failure
    assert answer.status_code == (200 if rescued else error)
    assert answer.headers.get("age") == (str(after) if rescued else None)


@pytest.mark.parametrize("status", [400, 404, 410, 429])
async def test_no_error_of_the_server(status: int) -> None:
    """A client's error is an answer as any other (§4)."""
    origin = Origin().says(IF_ERROR).says(status=status)
    async with origin.cached(OURS) as client:
        await client.get(URL)
        origin.clock.advance(61)
        assert (await client.get(URL)).status_code == status


async def test_after_an_error() -> None:
    """The next request asks the origin again, for a rescue makes nothing fresh (§4)."""
    origin = Origin().says(IF_ERROR).says(status=503).says(IF_ERROR, body=b"new")
    async with origin.cached(OURS) as client:
        await client.get(URL)
        origin.clock.advance(61)
        assert (await client.get(URL)).status_code == 200
        answer = await client.get(URL)
    assert (answer.text, told(answer)) == ("new", "fwd=stale; stored")


@dataclass
class Slow(Origin):
    """An origin that takes so many seconds for each answer but the first."""

    takes: float = 0.0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.clock.advance(self.takes if self.asked else 0)
        await super().__call__(scope, receive, send)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("breaks", [False, True], ids=["503", "exception"])
@pytest.mark.parametrize(
    ("takes", "rescued"), [pytest.param(20, True, id="within"), pytest.param(21, False, id="beyond")]
)
async def test_the_window_as_the_failure_comes(method: str, *, breaks: bool, takes: float, rescued: bool) -> None:
    """What is stale within its window when the failure comes stands in for it, however early it was asked (§4)."""
    origin = Slow(takes=takes).says(IF_ERROR).says(status=503, body=() if breaks else b"down", breaks=breaks)
    async with origin.cached(OURS) as client:
        await client.get(URL)
        origin.clock.advance(70)
        answer = await client.request(method, URL)
    failed = 500 if breaks else 503
    assert answer.status_code == (200 if rescued else failed)
    assert answer.headers.get("age") == ("90" if rescued else None)

"""What Cache-Status says (RFC 9211)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import http_sf
import pytest

from app_cache import CachePolicy
from tests.clients import all_blocked
from tests.conformance.origin import BOTH, URL, Origin, raw

if TYPE_CHECKING:
    import httpx

pytestmark = pytest.mark.anyio

FRESH = "Cache-Control: max-age=60"
TAG = 'ETag: "a"'


def members(response: httpx.Response) -> list[tuple[str, dict[str, Any]]]:
    """Return the members of Cache-Status with their parameters, parsed as a List (§2)."""
    value = ", ".join(response.headers.get_list("cache-status")).encode("latin-1")
    return [(str(name), parameters) for name, parameters in cast("Any", http_sf.parse(value, tltype="list"))]


def said(response: httpx.Response) -> dict[str, Any]:
    """Return the parameters of our own member, the last; it has hit or fwd (§2.1, §2.2), each of its type."""
    name, parameters = members(response)[-1]
    assert name == "app-cache"
    assert ("hit" in parameters) != ("fwd" in parameters)
    assert {"stored", "collapsed", "fwd-status"}.isdisjoint(parameters) or "fwd" in parameters
    types = {"hit": bool, "stored": bool, "collapsed": bool, "ttl": int, "fwd-status": int}
    assert all(isinstance(parameters[each], types[each]) for each in types.keys() & parameters.keys())
    tokens = {each: str(value) for each, value in parameters.items() if each in ("fwd", "detail")}
    assert all(isinstance(parameters[each], http_sf.Token) for each in tokens)
    return {**parameters, **tokens}


@BOTH
@pytest.mark.parametrize(
    ("first", "after", "second", "asked", "expected"),
    [
        pytest.param([FRESH], 0, [], [], {"hit": True, "ttl": 60}, id="hit"),
        pytest.param([FRESH], 59, [], [], {"hit": True, "ttl": 1}, id="hit in the last second"),
        pytest.param([FRESH], 59.5, [], [], {"hit": True, "ttl": 0}, id="hit in its last half"),
        pytest.param([FRESH, "Age: 20"], 9, [], [], {"hit": True, "ttl": 31}, id="hit of a certain age"),
        pytest.param([FRESH, TAG], 0, [], ['If-None-Match: "a"'], {"hit": True, "ttl": 60}, id="hit with a 304"),
        pytest.param([FRESH], 0, [], ["Range: bytes=0-1"], {"hit": True, "ttl": 60}, id="hit with a 206"),
        pytest.param(["Last-Modified: {now-1000}"], 40, [], [], {"hit": True, "ttl": 60}, id="hit by a heuristic"),
        pytest.param([FRESH], 70, [], ["Cache-Control: max-stale"], {"hit": True, "ttl": -10}, id="hit, stale"),
        pytest.param(
            [FRESH + ", stale-while-revalidate=30"],
            70,
            [FRESH],
            [],
            {"hit": True, "ttl": -10},
            id="hit, in a window",
        ),
        pytest.param([FRESH], 70, [FRESH], [], {"fwd": "stale", "stored": True}, id="stale"),
        pytest.param([FRESH + ", no-cache"], 0, [FRESH], [], {"fwd": "stale", "stored": True}, id="no-cache"),
        pytest.param(
            ["Cache-Control: no-store"], 0, [FRESH], [], {"fwd": "uri-miss", "stored": True}, id="nothing stored"
        ),
        pytest.param(
            [FRESH],
            0,
            ["Cache-Control: no-store"],
            ["Cache-Control: no-cache"],
            {"fwd": "request", "detail": "no-store"},
            id="request",
        ),
        pytest.param(
            [FRESH],
            9,
            [FRESH],
            ["Cache-Control: max-age=5"],
            {"fwd": "request", "stored": True, "detail": "request-max-age"},
            id="request, too old",
        ),
        pytest.param(
            [FRESH],
            70,
            [FRESH],
            ["Cache-Control: max-age=5"],
            {"fwd": "stale", "stored": True, "detail": "request-max-age"},
            id="request, and stale",
        ),
        pytest.param(
            [FRESH, "Vary: X-A"],
            0,
            [FRESH, "Vary: X-A"],
            ["X-A: 1"],
            {"fwd": "vary-miss", "stored": True},
            id="vary-miss",
        ),
        pytest.param(
            [FRESH], 0, [FRESH], ['If-Match: "a"'], {"fwd": "bypass", "detail": "precondition"}, id="bypass"
        ),
    ],
)
async def test_members(
    first: list[str],
    after: float,
    second: list[str],
    asked: list[str],
    expected: dict[str, Any],
    policy: CachePolicy,
) -> None:
    """The member says hit, or why the request went forward, and what freshness is left or was stored (§2)."""
    origin = Origin().says(*first).says(*second)
    async with origin.cached(policy) as client:
        await client.get(URL)
        origin.clock.advance(after)
        assert said(await client.get(URL, headers=raw(*asked))) == expected


@BOTH
@pytest.mark.parametrize(
    ("answer", "asked", "sent", "forwarded"),
    [
        pytest.param((200, [FRESH]), [], 200, None, id="200"),
        pytest.param((404, [FRESH]), [], 404, None, id="404"),
        pytest.param((200, [FRESH, TAG]), ['If-None-Match: "a"'], 304, 200, id="a 304 for a 200"),
        pytest.param((206, [FRESH, "Content-Range: bytes 0-1/9"]), ["Range: bytes=0-1"], 206, None, id="a part"),
    ],
)
async def test_forwarded_status(
    answer: tuple[int, list[str]], asked: list[str], sent: int, forwarded: int | None, policy: CachePolicy
) -> None:
    """fwd-status is what came of a forwarded request, and left out where that is what is sent (§2.3)."""
    async with Origin().says(*answer[1], status=answer[0]).cached(policy) as client:
        response = await client.get(URL, headers=raw(*asked))
    assert (response.status_code, said(response).get("fwd-status")) == (sent, forwarded)


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        pytest.param([], 200, id="the whole"),
        pytest.param(['If-None-Match: "a"'], 304, id="a 304"),
        pytest.param(["Range: bytes=0-1"], 206, id="a part"),
    ],
)
@pytest.mark.parametrize(
    ("came", "lines"),
    [
        pytest.param(304, [FRESH], id="validated"),
        pytest.param(503, [], id="rescued"),
        pytest.param(500, None, id="raised"),
    ],
)
async def test_forwarded_status_of_a_validation(
    came: int, lines: list[str] | None, asked: list[str], sent: int
) -> None:
    """fwd-status is what the validation was answered with, whatever this client is sent of the response (§2.3)."""
    origin = Origin().says(FRESH, TAG)
    origin.says(*(lines or ()), status=came, body=b"" if lines is not None else (), breaks=lines is None)
    async with origin.cached() as client:
        await client.get(URL)
        origin.clock.advance(70)
        response = await client.get(URL, headers=raw(*asked))
    assert response.status_code == sent
    expected = {"stored": True} if came == 304 else {"ttl": -10}
    assert said(response) == {"fwd": "stale", "fwd-status": came, **expected}


class Held(Origin):
    """An origin server that answers once it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.held = asyncio.Event(), asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request."""
        self.entered.set()
        await self.held.wait()
        await super().__call__(scope, receive, send)


async def one_forward(client: httpx.AsyncClient, origin: Held, asked: list[str]) -> list[httpx.Response]:
    """Return the answers to a request, and to one with the fields *asked* that came while it was forwarded."""
    origin.entered.clear()
    origin.held.clear()
    leading = asyncio.create_task(client.get(URL))
    await origin.entered.wait()
    waiting = asyncio.create_task(client.get(URL, headers=raw(*asked)))
    await all_blocked()
    origin.held.set()
    return [await leading, await waiting]


@pytest.mark.parametrize(
    ("asked", "sent", "forwarded"),
    [
        pytest.param([], 200, {}, id="the whole"),
        pytest.param(['If-None-Match: "a"'], 304, {"fwd-status": 200}, id="a 304"),
        pytest.param(["Range: bytes=0-1"], 206, {"fwd-status": 200}, id="a part"),
    ],
)
async def test_collapsed(asked: list[str], sent: int, forwarded: dict[str, int]) -> None:
    """A request that is answered by the forward of another one says so (§2.6)."""
    origin = Held().says(FRESH, TAG)
    async with origin.cached() as client:
        leading, waiting = await one_forward(client, origin, asked)
    assert said(leading) == {"fwd": "uri-miss", "stored": True}
    assert waiting.status_code == sent
    assert said(waiting) == {"fwd": "uri-miss", "collapsed": True, **forwarded}


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        pytest.param([], 200, id="the whole"),
        pytest.param(['If-None-Match: "a"'], 304, id="a 304"),
        pytest.param(["Range: bytes=0-1"], 206, id="a part"),
    ],
)
async def test_collapsed_onto_a_validation(asked: list[str], sent: int) -> None:
    """A request that is answered by the validation of another one says that a 304 came (§2.3)."""
    origin = Held().says(FRESH, TAG).says(FRESH, TAG, status=304, body=b"")
    origin.held.set()
    async with origin.cached() as client:
        await client.get(URL)
        origin.clock.advance(61)
        _, waiting = await one_forward(client, origin, asked)
    assert waiting.status_code == sent
    assert said(waiting) == {"fwd": "stale", "fwd-status": 304, "collapsed": True}


@BOTH
@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(["Cache-Status: Origin; hit; ttl=100"], id="one"),
        pytest.param(["Cache-Status: A; hit", 'Cache-Status: "B c"; fwd=miss; stored'], id="two lines"),
        pytest.param(["Cache-Status: A; hit, B; fwd=stale; fwd-status=304"], id="two members"),
        pytest.param(["cache-status: app-cache; hit"], id="one of our name"),
    ],
)
async def test_caches_further_in(lines: list[str], policy: CachePolicy) -> None:
    """What caches further in say stays as it is, in order, and ours follows (§2)."""
    before = [line.partition(": ")[2] for line in lines]
    origin = Origin().says(FRESH, TAG, *lines)
    async with origin.cached(policy) as client:
        answers = [await client.get(URL), await client.get(URL), await client.head(URL)]
        answers.append(await client.get(URL, headers={"if-none-match": '"a"'}))
        answers.append(await client.get(URL, headers={"range": "bytes=0-1"}))
    for answer, way in zip(answers, ["fwd", "hit", "hit", "hit", "hit"], strict=True):
        assert answer.headers.get_list("cache-status")[:-1] == before
        assert way in said(answer)


async def test_what_the_cache_answers_itself() -> None:
    """An answer that no origin stands behind has no Cache-Status (§2)."""
    async with Origin().says(FRESH).cached() as client:
        answer = await client.get(URL, headers={"cache-control": "only-if-cached"})
    assert (answer.status_code, "cache-status" in answer.headers) == (504, False)


@BOTH
@pytest.mark.parametrize("method", ["GET", "HEAD", "QUERY"])
@pytest.mark.parametrize("status", [200, 204, 304, 404, 500])
@pytest.mark.parametrize("lines", [[FRESH], ["Cache-Control: no-store"], ["Vary: *"], ["Set-Cookie: a=1", FRESH]])
async def test_it_always_parses(lines: list[str], status: int, method: str, policy: CachePolicy) -> None:
    """Whatever comes, and however often, the field is a List of structured fields (§2)."""
    origin = Origin().says(*lines, status=status, body=b"")
    async with origin.cached(policy) as client:
        for asked in (
            [],
            [],
            ["Cache-Control: no-cache"],
            ["Range: bytes=0-"],
            ["Authorization: a"],
            ["Cookie: a=1"],
        ):
            assert said(await client.request(method, URL, headers=raw(*asked)))

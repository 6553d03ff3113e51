"""What may not get into what is stored, nor stay in it: what is personal, what is late, what is withdrawn."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from app_cache import CacheMiddleware, CachePolicy, MemoryBackend
from tests.clients import all_blocked, told
from tests.conformance.origin import URL, Origin, raw
from tests.middleware.apps import scope_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

pytestmark = pytest.mark.anyio

FRESH = "Cache-Control: max-age=60"
SHARED = "Cache-Control: public, max-age=60"
ALICE = {"authorization": "Bearer alice", "cache-control": "no-cache"}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_personal_update(method: str) -> None:
    """What a 304 or a HEAD says to one client's credential joins a shared response only by its own word (§3.5)."""
    status = 304 if method == "GET" else 200
    origin = Origin().says(SHARED, 'ETag: "a"').says('ETag: "a"', "X-Token: alice", status=status, body=b"")
    async with origin.cached() as client:
        await client.get(URL)
        assert (await client.request(method, URL, headers=ALICE)).headers["x-token"] == "alice"
        answer = await client.get(URL)
    assert (told(answer), "x-token" in answer.headers) == ("hit", False)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_shared_update(method: str) -> None:
    """An update that says that it is shared joins what is stored, whoever asked."""
    status = 304 if method == "GET" else 200
    origin = Origin().says(SHARED, 'ETag: "a"').says(SHARED, 'ETag: "a"', "X-New: 1", status=status, body=b"")
    async with origin.cached() as client:
        await client.get(URL)
        await client.request(method, URL, headers=ALICE)
        assert (await client.get(URL)).headers["x-new"] == "1"


async def test_a_head_without_validators_renews_nothing() -> None:
    """No client keeps an old body alive by a HEAD that has nothing to tell by (§4.3.5)."""
    origin = Origin().says(FRESH).says(FRESH, "Content-Length: 10", body=b"").says(FRESH, body=b"new")
    async with origin.cached() as client:
        await client.get(URL)
        origin.clock.advance(59)
        await client.head(URL, headers={"cache-control": "no-cache"})
        origin.clock.advance(2)
        assert (await client.get(URL)).text == "new"


@pytest.mark.parametrize("lines", [["Cache-Control: no-store"], ["Cache-Control: private"], ["Vary: *"]])
@pytest.mark.parametrize("status", [200, 304])
async def test_a_response_that_is_withdrawn(status: int, lines: list[str]) -> None:
    """A stored response that a validation shows not to be suitable answers no more (§4.3.3, §4.3.4)."""
    origin = Origin().says(FRESH, 'ETag: "a"').says(*lines, status=status, body=b"new" if status == 200 else b"")
    origin.says(FRESH, body=b"later")
    async with origin.cached() as client:
        await client.get(URL)
        await client.get(URL, headers={"cache-control": "no-cache"})
        assert (await client.get(URL)).text == "later"


@pytest.mark.parametrize(
    ("status", "answers"),
    [(404, False), (410, False), (451, False), (400, True), (401, True), (403, True), (412, True), (429, True)],
)
async def test_an_error_that_a_client_provokes(status: int, answers: bool) -> None:
    """An error takes a stored response away only if it tells what became of the resource (§4.3.3)."""
    origin = Origin().says(FRESH).says(status=status).says(FRESH, body=b"later")
    async with origin.cached() as client:
        before = await client.get(URL)
        assert (await client.get(URL, headers={"cache-control": "no-cache"})).status_code == status
        assert ((await client.get(URL)).text == before.text) is answers


async def test_a_refresh_that_finds_nothing() -> None:
    """A stale response is served no more once its refresh has found another that is not stored (RFC 5861 §3)."""
    said = "Cache-Control: max-age=1, stale-while-revalidate=60"
    origin = Origin().says(said).says(status=404, body=b"gone")
    async with origin.cached(CachePolicy.http(stale_on_failure=False)) as client:
        await client.get(URL)
        origin.clock.advance(2)
        assert told(await client.get(URL)) == "hit"
        await all_blocked()
        assert (await client.get(URL)).status_code == 404


async def test_a_personal_refusal_withdraws_nothing() -> None:
    """What is answered to a credential alone says nothing of the response that is shared."""
    origin = Origin().says(SHARED, 'ETag: "a"').says("Cache-Control: private", body=b"alice's")
    async with origin.cached() as client:
        await client.get(URL)
        assert (await client.get(URL, headers=ALICE)).text == "alice's"
        assert told(await client.get(URL)) == "hit"


async def test_a_post_that_is_not_to_be_stored() -> None:
    """The answer to a POST with no-store serves nobody else (§5.2.1.5)."""
    origin = Origin().says(FRESH, "Content-Location: /page", body=b"posted").says(body=b"got")
    async with origin.cached() as client:
        await client.post(URL, headers={"cache-control": "no-store"})
        assert (await client.get(URL)).text == "got"


async def test_queries_in_another_order() -> None:
    """By the RFC alone, two URLs that differ in the order of their parameters are two (§4)."""
    origin = Origin().says(FRESH)
    async with origin.cached() as client:
        await client.get(f"{URL}?a=1&b=2")
        assert told(await client.get(f"{URL}?b=2&a=1")) == "fwd=uri-miss; stored"


class Held:
    """An application that answers each request when the test lets it, by the number of the request."""

    def __init__(self, *answers: tuple[int, list[str], bytes]) -> None:
        self.answers = answers
        self.let = [asyncio.Event() for _ in answers]
        self.come = [asyncio.Event() for _ in answers]
        self.next = 0
        self.client = httpx.AsyncClient(
            transport=httpx.ASGITransport(
                CacheMiddleware(self, MemoryBackend(), default_policy=CachePolicy.http())
            ),
            base_url="http://test",
        )

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        number, self.next = self.next, self.next + 1
        status, lines, body = self.answers[number]
        self.come[number].set()
        await self.let[number].wait()
        await send({"type": "http.response.start", "status": status, "headers": raw(*lines)})
        await send({"type": "http.response.body", "body": body})

    async def ask(self, number: int, method: str = "GET", **headers: str) -> asyncio.Task[httpx.Response]:
        """Send the request that gets the answer *number*, and return when the application has it."""
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        task = asyncio.create_task(self.client.request(method, URL, headers=names))
        await self.come[number].wait()
        return task

    async def answer(self, number: int, task: asyncio.Task[httpx.Response]) -> httpx.Response:
        """Let the request have its answer."""
        self.let[number].set()
        return await task


TAG_A, TAG_B = 'ETag: "a"', 'ETag: "b"'


@pytest.mark.parametrize(
    ("method", "late"),
    [
        pytest.param("HEAD", (200, [FRESH, TAG_A], b""), id="a HEAD that agreed"),
        pytest.param("HEAD", (200, [FRESH, 'ETag: "c"'], b""), id="a HEAD that differed"),
        pytest.param("GET", (304, [FRESH, TAG_A], b""), id="a 304"),
        pytest.param("GET", (200, [FRESH, TAG_A], b"older"), id="a whole answer"),
        pytest.param("POST", (200, [FRESH, "Content-Location: /page"], b"older"), id="the answer to a POST"),
    ],
)
async def test_what_is_late(method: str, late: tuple[int, list[str], bytes]) -> None:
    """What a handler began to answer earlier never takes the place of what began later (§4: the most recent)."""
    app = Held((200, [FRESH, TAG_A], b"old"), late, (200, [FRESH, TAG_B], b"new"), (200, [FRESH], b"not stored"))
    first = await app.ask(0)
    await app.answer(0, first)
    slow = await app.ask(1, method, cache_control="no-cache")
    fast = await app.ask(2, cache_control="no-cache")
    await app.answer(2, fast)
    await app.answer(1, slow)
    app.let[3].set()
    expected = "not stored" if method == "POST" else "new"
    assert (await app.client.get(URL)).text == expected


async def test_every_response_with_the_same_strong_validator() -> None:
    """A 304 freshens all responses that the request selects and that have its strong validator (§4.3.4)."""
    origin = Origin().says(FRESH, TAG_A, "Date: {now}", "Vary: X-A", body=b"same")
    origin.says(FRESH, TAG_A, "Date: {now}", "Vary: X-B", body=b"same")
    origin.says(FRESH, TAG_A, "X-New: 1", status=304, body=b"")
    async with origin.cached() as client:
        await client.get(URL, headers={"x-a": "1", "x-b": "1"})
        await client.get(URL, headers={"x-a": "2", "x-b": "2"})
        origin.clock.advance(61)
        await client.get(URL, headers={"x-a": "1", "x-b": "2"})
        for asked in ({"x-a": "1", "x-b": "9"}, {"x-a": "9", "x-b": "2"}):
            answer = await client.get(URL, headers=asked)
            assert (told(answer), answer.headers["x-new"]) == ("hit", "1")


async def test_groups_that_a_304_takes_away() -> None:
    """A response is in the groups that its last update names, and in no others (RFC 9875 §2.1)."""
    origin = Origin().says(FRESH, TAG_A, 'Cache-Groups: "one"')
    origin.says(FRESH, TAG_A, 'Cache-Groups: "two"', status=304, body=b"")
    async with origin.cached() as client:
        await client.get(URL)
        await client.get(URL, headers={"cache-control": "no-cache"})
        for group, expected in (("one", "hit"), ("two", "fwd=uri-miss; detail=status")):
            origin.says(f'Cache-Group-Invalidation: "{group}"', status=299).answers.popleft()
            await client.delete("/other")
            assert told(await client.get(URL)) == expected


async def test_a_condition_with_a_range_on_a_miss() -> None:
    """A client's conditions and range reach a handler whose answer is for nobody else (RFC 9110 §13.2.2)."""
    origin = Origin().says(status=304, body=b"")
    async with origin.cached() as client:
        answer = await client.get(URL, headers={"range": "bytes=0-1", "if-none-match": '"a"'})
    assert answer.status_code == 304
    assert origin.asked[0][1]["if-none-match"] == '"a"'


async def test_a_whole_body_that_its_handler_does_not_end() -> None:
    """A handler that has given all bytes of its length, and waits, sees its client leave."""
    seen: list[str] = []

    async def waits(scope: Any, receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": raw(FRESH, "Content-Length: 2")})
        await send({"type": "http.response.body", "body": b"ab", "more_body": True})
        await receive()
        seen.append((await receive())["type"])

    messages: list[Any] = [{"type": "http.request", "body": b"", "more_body": False}]
    left = asyncio.Event()

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            left.set()

    app = CacheMiddleware(waits, MemoryBackend(), default_policy=CachePolicy.http())
    async with asyncio.timeout(10):
        await app(scope_of("/page"), receive, send)
    assert seen == ["http.disconnect"]


@pytest.mark.parametrize("after", [5, 100])
async def test_what_a_response_says_of_failures(after: float) -> None:
    """A response that says how long it may stand in for a failure does so no longer (RFC 5861 §4)."""
    origin = Origin().says("Cache-Control: max-age=1, stale-if-error=10").says(status=500, body=b"failed")
    async with origin.cached() as client:
        await client.get(URL)
        origin.clock.advance(after)
        assert (await client.get(URL)).status_code == (200 if after < 11 else 500)


async def test_what_is_no_failure() -> None:
    """A stale response stands in for 500, 502, 503 and 504, and for nothing else (RFC 5861 §4)."""
    origin = Origin().says("Cache-Control: max-age=1, stale-if-error=60").says(status=501, body=b"never")
    async with origin.cached() as client:
        await client.get(URL)
        origin.clock.advance(2)
        assert (await client.get(URL)).status_code == 501


async def test_head_of_what_is_only_to_come_from_the_cache() -> None:
    """The 504 to a HEAD has no content (RFC 9110 §9.3.2)."""
    app = CacheMiddleware(Origin(), MemoryBackend(), default_policy=CachePolicy.http())
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = scope_of("/page", method="HEAD", headers=raw("Host: test", "Cache-Control: only-if-cached"))
    await app(scope, asyncio.Event().wait, send)  # type: ignore[arg-type]
    assert (sent[0]["status"], [message.get("body") for message in sent[1:]]) == (504, [b""])

"""QUERY, whose content is part of the key (RFC 10008, RFC 9111 §2)."""

from __future__ import annotations

import pytest

from app_cache import CachePolicy
from app_cache.policy import MAX_BODY
from tests.clients import told
from tests.conformance.origin import BOTH, URL, Origin, is_hit, raw

pytestmark = pytest.mark.anyio

FRESH = "Cache-Control: max-age=60"
TYPED = ("Content-Type: text/plain",)


@BOTH
@pytest.mark.parametrize(
    ("url", "fields", "content", "hit"),
    [
        pytest.param(URL, TYPED, b"a", True, id="the same"),
        pytest.param(URL, (*TYPED, "X-A: 1"), b"a", True, id="a field that is not of the content"),
        pytest.param(URL, TYPED, b"b", False, id="other content"),
        pytest.param(URL, TYPED, b"a ", False, id="a blank more"),
        pytest.param(URL, TYPED, b"", False, id="no content"),
        pytest.param(URL, ("Content-Type: text/css",), b"a", False, id="another type"),
        pytest.param(URL, ("Content-Type: text/plain; charset=utf-8",), b"a", False, id="another parameter"),
        pytest.param(URL, (), b"a", False, id="no type"),
        pytest.param(URL, (*TYPED, "Content-Encoding: x"), b"a", False, id="another coding"),
        pytest.param(URL, (*TYPED, "Content-Language: de"), b"a", False, id="another language"),
        pytest.param(URL + "?a=1", TYPED, b"a", False, id="another query"),
        pytest.param("http://test/other", TYPED, b"a", False, id="another target"),
    ],
)
async def test_key(url: str, fields: tuple[str, ...], content: bytes, hit: bool, policy: CachePolicy) -> None:
    """A response answers requests of the same target, content and metadata of that alone (Caching)."""
    async with Origin().says(FRESH).cached(policy) as client:
        await client.request("QUERY", URL, headers=raw(*TYPED), content=b"a")
        assert is_hit(await client.request("QUERY", url, headers=raw(*fields), content=content)) is hit


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
async def test_other_methods(method: str) -> None:
    """QUERY answers no other method, and no other method answers it (RFC 9111 §2)."""
    async with Origin().says(FRESH).cached() as client:
        await client.request("QUERY", URL, headers=raw(*TYPED), content=b"")
        assert not is_hit(await client.request(method, URL))
    async with Origin().says(FRESH).cached() as client:
        await client.request(method, URL)
        assert not is_hit(await client.request("QUERY", URL, headers=raw(*TYPED), content=b""))


@BOTH
@pytest.mark.parametrize(
    "lines", [["Location: /page"], ["Content-Location: /page"], ['Cache-Group-Invalidation: "a"']]
)
async def test_it_is_safe(lines: list[str], policy: CachePolicy) -> None:
    """QUERY makes nothing invalid, wherever its answer points (Safe)."""
    origin = Origin().says(FRESH, 'Cache-Groups: "a"').says(*lines, FRESH)
    async with origin.cached(policy) as client:
        await client.get(URL)
        await client.request("QUERY", URL, headers=raw(*TYPED), content=b"a")
        assert is_hit(await client.get(URL))


@BOTH
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
async def test_it_is_made_invalid(method: str, policy: CachePolicy) -> None:
    """A method that is not safe makes invalid what is stored for QUERY of its target (RFC 9111 §4.4)."""
    async with Origin().says(FRESH).cached(policy) as client:
        await client.request("QUERY", URL, headers=raw(*TYPED), content=b"a")
        await client.request(method, URL)
        assert not is_hit(await client.request("QUERY", URL, headers=raw(*TYPED), content=b"a"))


@BOTH
@pytest.mark.parametrize(
    ("said", "status", "hit"),
    [
        pytest.param([FRESH], 200, True, id="max-age"),
        pytest.param(["Last-Modified: {now-600}"], 200, True, id="a heuristic"),
        pytest.param([FRESH], 404, True, id="404"),
        pytest.param([FRESH, "Location: /x"], 303, True, id="303"),
        pytest.param([FRESH, "Content-Location: /x"], 200, True, id="Content-Location"),
        pytest.param([FRESH + ", no-store"], 200, False, id="no-store"),
        pytest.param([FRESH + ", private"], 200, False, id="private"),
        pytest.param(["Vary: *", FRESH], 200, False, id="Vary"),
        pytest.param([], 422, False, id="422"),
    ],
)
async def test_storing(said: list[str], status: int, hit: bool, policy: CachePolicy) -> None:
    """The response to QUERY is stored by the rules for all responses (RFC 9111 §3)."""
    async with Origin().says(*said, status=status).cached(policy) as client:
        for expected in (False, hit):
            answer = await client.request("QUERY", URL, headers=raw(*TYPED), content=b"a")
            assert (answer.status_code, is_hit(answer)) == (status, expected)


@BOTH
@pytest.mark.parametrize(
    ("asked", "status"),
    [
        pytest.param(['If-None-Match: "a"'], 304, id="the tag"),
        pytest.param(['If-None-Match: "b"'], 200, id="another tag"),
    ],
)
async def test_conditions(asked: list[str], status: int, policy: CachePolicy) -> None:
    """Conditions are evaluated as for a GET of the equivalent resource (Conditional Requests)."""
    async with Origin().says(FRESH, 'ETag: "a"').cached(policy) as client:
        for hit in (False, True):
            answer = await client.request("QUERY", URL, headers=raw(*TYPED, *asked), content=b"a")
            assert (answer.status_code, is_hit(answer)) == (status, hit)


@BOTH
async def test_what_is_stale(policy: CachePolicy) -> None:
    """What is stale is fetched anew without a condition, which may bring a 412 (RFC 9110 §13.1.2)."""

    class Reading(Origin):
        async def __call__(self, scope: object, receive: object, send: object) -> None:
            message = await receive()  # type: ignore[operator]
            contents.append(message["body"])

            async def receive_again() -> object:
                return message

            await super().__call__(scope, receive_again, send)

    contents: list[bytes] = []
    origin = Reading().says(FRESH, 'ETag: "a"', "Last-Modified: {now-9}")
    async with origin.cached(policy) as client:
        steps = (("fwd=uri-miss; stored", 60), ("fwd=stale; stored", 59), ("hit", 0))
        for expected, then in steps:
            answer = await client.request("QUERY", URL, headers=raw(*TYPED), content=b"asked")
            assert (answer.text, told(answer)) == ("0123456789", expected)
            origin.clock.advance(then)
    assert contents == [b"asked", b"asked"]
    assert not any({"if-none-match", "if-modified-since"} & fields.keys() for _, fields in origin.asked)


async def test_too_much_content() -> None:
    """Content that is too large to be kept passes, all of it."""
    origin = Origin().says(FRESH)
    async with origin.cached() as client:
        for _ in range(2):
            answer = await client.request("QUERY", URL, headers=raw(*TYPED), content=b"a" * (MAX_BODY + 1))
            assert told(answer) == "fwd=bypass; detail=too-large"


async def test_only_if_cached() -> None:
    """A client's directives count as for GET (RFC 9111 §5.2.1)."""
    origin = Origin().says(FRESH)
    async with origin.cached() as client:
        for content, status in ((b"a", 200), (b"a", 200), (b"b", 504)):
            asked = raw(*TYPED, *(["Cache-Control: only-if-cached"] if origin.asked else []))
            assert (await client.request("QUERY", URL, headers=asked, content=content)).status_code == status
    assert len(origin.asked) == 1

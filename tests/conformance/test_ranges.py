"""Parts of a stored response (RFC 9110 §14), and requests for parts of what is not stored."""

from __future__ import annotations

import pytest

from tests.clients import told
from tests.conformance.origin import URL, Origin, raw

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("lines", "status", "body", "content_range"),
    [
        pytest.param(["Range: bytes=2-4"], 206, "234", "bytes 2-4/10", id="first to last"),
        pytest.param(["Range: bytes=-3"], 206, "789", "bytes 7-9/10", id="suffix"),
        pytest.param(["Range: bytes=8-"], 206, "89", "bytes 8-9/10", id="to the end"),
        pytest.param(["Range: bytes=0-1, 2-3"], 206, "0123", "bytes 0-3/10", id="joined"),
        pytest.param(["Range: bytes=0-1, 5-6"], 200, "0123456789", None, id="with a gap"),
        pytest.param(["Range: bytes=10-"], 416, "", "bytes */10", id="beyond the end"),
        pytest.param(["Range: lines=0-1"], 200, "0123456789", None, id="another unit"),
        pytest.param(["Range: bytes=4-2"], 200, "0123456789", None, id="invalid"),
        pytest.param(["Range: bytes=2-4", 'If-Range: "a"'], 206, "234", "bytes 2-4/10", id="of this version"),
        pytest.param(["Range: bytes=2-4", 'If-Range: "b"'], 200, "0123456789", None, id="of another version"),
        pytest.param(["Range: bytes=2-4", 'If-None-Match: "a"'], 304, "", None, id="not modified"),
        pytest.param(["Range: bytes=2-4", 'If-None-Match: "b"'], 206, "234", "bytes 2-4/10", id="modified"),
    ],
)
async def test_ranges_of_what_is_stored(
    lines: list[str], status: int, body: str, content_range: str | None
) -> None:
    """A stored 200 answers a GET for a range of it, after the other preconditions (§13.2.2)."""
    origin = Origin().says("Cache-Control: max-age=60", 'ETag: "a"', "Content-Length: 10", "X-A: 1")
    async with origin.cached() as client:
        await client.get(URL)
        answer = await client.get(URL, headers=raw(*lines))
    assert (answer.status_code, answer.text, answer.headers.get("content-range")) == (status, body, content_range)
    assert told(answer) == "hit"
    assert answer.headers.get("content-length") == (None if status == 304 else str(len(body)))
    assert len(origin.asked) == 1


async def test_head_has_no_ranges() -> None:
    """Range counts in no other method than GET (§14.2)."""
    origin = Origin().says("Cache-Control: max-age=60", "Content-Length: 10")
    async with origin.cached() as client:
        await client.get(URL)
        answer = await client.head(URL, headers={"range": "bytes=0-1"})
    assert (answer.status_code, answer.headers["content-length"], told(answer)) == (200, "10", "hit")


async def test_a_part_from_the_handler_is_not_stored() -> None:
    """A 206 goes to its client as it is, and answers nobody else (RFC 9111 §3.3)."""
    part = ("Cache-Control: max-age=60", "Content-Range: bytes 0-1/10", "Content-Length: 2")
    origin = Origin().says(*part, status=206, body=b"01").says("Cache-Control: max-age=60")
    async with origin.cached() as client:
        answer = await client.get(URL, headers={"range": "bytes=0-1"})
        assert (answer.status_code, answer.text, told(answer)) == (206, "01", "fwd=uri-miss; detail=range")
        assert (await client.get(URL)).text == "0123456789"
    assert origin.asked[0][1]["range"] == "bytes=0-1"


@pytest.mark.parametrize("status", [416, 404])
async def test_what_a_range_failed_with_is_not_stored(status: int) -> None:
    """Only the whole is stored of what a request for a range was answered with."""
    origin = Origin().says("Cache-Control: max-age=60", status=status).says("Cache-Control: max-age=60")
    async with origin.cached() as client:
        assert (await client.get(URL, headers={"range": "bytes=99-"})).status_code == status
        assert (await client.get(URL)).status_code == 200


async def test_the_whole_for_a_range_is_stored() -> None:
    """A 200 for a request for a range is the whole, and answers later ones."""
    origin = Origin().says("Cache-Control: max-age=60")
    async with origin.cached() as client:
        first = await client.get(URL, headers={"range": "bytes=0-1"})
        assert (first.status_code, told(first)) == (200, "fwd=uri-miss; stored")
        second = await client.get(URL, headers={"range": "bytes=0-1"})
    assert (second.status_code, second.text, told(second)) == (206, "01", "hit")


async def test_a_range_of_what_is_stale() -> None:
    """The whole is validated before a part of it is sent (RFC 9111 §4.3.1)."""
    origin = Origin().says("Cache-Control: max-age=60", 'ETag: "a"').says('ETag: "a"', status=304, body=b"")
    async with origin.cached() as client:
        await client.get(URL)
        origin.clock.advance(61)
        answer = await client.get(URL, headers={"range": "bytes=0-1", "if-range": '"a"'})
    assert (answer.status_code, answer.text, told(answer)) == (206, "01", "fwd=stale; fwd-status=304; stored")
    _, asked = origin.asked[1]
    assert (asked["if-none-match"], "range" in asked, "if-range" in asked) == ('"a"', False, False)


async def test_a_range_of_what_changed() -> None:
    """What is fetched anew for a range of a stale response is sent whole."""
    origin = Origin().says("Cache-Control: max-age=60", 'ETag: "a"').says('ETag: "b"', body=b"new")
    async with origin.cached() as client:
        await client.get(URL)
        origin.clock.advance(61)
        answer = await client.get(URL, headers={"range": "bytes=0-1"})
    assert (answer.status_code, answer.text) == (200, "new")

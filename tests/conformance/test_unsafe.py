"""What the answer to a method that is not safe makes invalid (RFC 9111 §4.4)."""

from __future__ import annotations

import pytest

from app_cache import CachePolicy
from tests.conformance.origin import BOTH, URL, Origin, is_hit

pytestmark = pytest.mark.anyio

FRESH = "Cache-Control: max-age=60"
OTHER = "http://test/dir/other"
SAFE = ["GET", "HEAD", "OPTIONS", "TRACE", "QUERY", "PROPFIND", "REPORT", "SEARCH"]
UNSAFE = ["POST", "PUT", "DELETE", "PATCH", "CONNECT", "MKCOL", "MOVE", "PURGE", "FOO", "X-GET", "GETS"]


async def is_gone(
    stored: str,
    *lines: str,
    method: str = "POST",
    target: str = "http://test/dir/page",
    status: int = 200,
    host: str | None = None,
    policy: CachePolicy | None = None,
) -> bool:
    """Return whether *stored* is no hit any more once *method* of *target* was answered by *lines*."""
    origin = Origin().says(FRESH)
    async with origin.cached(policy) as client:
        await client.get(stored)
        assert is_hit(await client.get(stored))
        origin.says(*lines, status=status, body=b"").answers.popleft()
        answer = await client.request(method, target, headers={} if host is None else {"host": host})
        assert answer.status_code == status
        return not is_hit(await client.get(stored))


@BOTH
@pytest.mark.parametrize("method", UNSAFE)
async def test_unsafe(method: str, policy: CachePolicy) -> None:
    """A method that is not known to be safe makes its target invalid; names mean nothing (RFC 9110 §9.2.1)."""
    assert await is_gone(URL, method=method, target=URL, policy=policy)


@BOTH
@pytest.mark.parametrize("method", SAFE)
async def test_safe(method: str, policy: CachePolicy) -> None:
    """A safe method makes nothing invalid, wherever its answer points (RFC 9110 §9.2.1)."""
    lines = ("Location: /page", "Content-Location: /page")
    assert not await is_gone(URL, *lines, method=method, target="http://test/elsewhere", policy=policy)
    if method not in ("GET", "HEAD"):
        assert not await is_gone(URL, method=method, target=URL, policy=policy)


@pytest.mark.parametrize("method", ["POST", "DELETE", "FOO"])
@pytest.mark.parametrize(
    ("status", "gone"),
    [
        *((status, True) for status in (200, 201, 202, 203, 204, 205, 206, 299)),
        *((status, True) for status in (300, 301, 302, 303, 304, 307, 308, 399)),
        *((status, False) for status in (400, 401, 403, 404, 405, 409, 410, 412, 418, 499)),
        *((status, False) for status in (500, 501, 502, 503, 504, 599)),
    ],
)
async def test_status(method: str, status: int, gone: bool) -> None:
    """2xx and 3xx make the target invalid, and what Location names; an error neither (§4.4)."""
    assert await is_gone(URL, method=method, target=URL, status=status) is gone
    assert await is_gone(OTHER, "Location: other", method=method, status=status) is gone


@pytest.mark.parametrize(
    ("stored", "target", "gone"),
    [
        pytest.param("http://test/page", "http://test/page?a=1", True, id="whatever its query"),
        pytest.param("http://test/page?a=1", "http://test/page", True, id="whatever that of the stored"),
        pytest.param("http://test/page?a=1", "http://test/page?b=2", True, id="two queries"),
        pytest.param("http://test/page", "http://test/page/", False, id="a slash more"),
        pytest.param("http://test/page/1", "http://test/page", False, id="below it"),
        pytest.param("http://test/page", "http://test/Page", False, id="another case"),
        pytest.param("http://test/page", "http://other/page", False, id="another host"),
        pytest.param("http://test/page", "https://test/page", False, id="another scheme"),
        pytest.param("http://test/page", "http://test:8080/page", False, id="another port"),
        pytest.param("http://test/p%61ge", "http://test/page", True, id="encoded where it need not be"),
        pytest.param("http://test/a%2Fb", "http://test/a%2fb", True, id="encoded in another case"),
        pytest.param("http://test/%C3%BC?a", "http://test/%C3%BC", True, id="not ASCII"),
        pytest.param("http://test/%FF", "http://test/%FF", True, id="not UTF-8"),
        pytest.param("http://test/", "http://test", True, id="an empty path"),
        pytest.param("http://test/a%3Fb", "http://test/a%3Fb", True, id="a question mark in the path"),
        pytest.param("http://test/a%23b", "http://test/a%23b", True, id="a hash in the path"),
    ],
)
async def test_target(stored: str, target: str, gone: bool) -> None:
    """What is stored for the target is invalid with every query, and for no other target (§4.4)."""
    assert await is_gone(stored, target=target) is gone


@pytest.mark.parametrize(
    ("host", "gone"),
    [("test", True), ("TEST", True), ("test:80", True), ("Test:80", True), ("test:443", False), ("test.", False)],
)
async def test_host(host: str, gone: bool) -> None:
    """The host is the same in any case, and with the default port (RFC 9110 §4.2.3)."""
    assert await is_gone(URL, target=URL, host=host) is gone


@pytest.mark.parametrize("name", ["Location", "Content-Location"])
@pytest.mark.parametrize(
    ("value", "gone"),
    [
        pytest.param("http://test/dir/other", True, id="absolute"),
        pytest.param("/dir/other", True, id="a path"),
        pytest.param("other", True, id="relative"),
        pytest.param("./x/../other", True, id="with dots"),
        pytest.param("../dir/other", True, id="from above"),
        pytest.param("//test/dir/other", True, id="without scheme"),
        pytest.param("other?a=1", True, id="with a query"),
        pytest.param("other#a", True, id="with a fragment"),
        pytest.param("/dir/%6Fther", True, id="encoded where it need not be"),
        pytest.param("HTTP://TEST/dir/other", True, id="scheme and host in capitals"),
        pytest.param("http://test:80/dir/other", True, id="the default port"),
        pytest.param("http://test:/dir/other", True, id="an empty port"),
        pytest.param("http://test:8080/dir/other", False, id="another port"),
        pytest.param("http://test:443/dir/other", False, id="the port of another scheme"),
        pytest.param("https://test/dir/other", False, id="another scheme"),
        pytest.param("https://test:80/dir/other", False, id="another scheme at this port"),
        pytest.param("http://other/dir/other", False, id="another host"),
        pytest.param("//other/dir/other", False, id="another host without scheme"),
        pytest.param("http://other@test/dir/other", True, id="userinfo is no host"),
        pytest.param("http://test@other/dir/other", False, id="nor is this"),
        pytest.param("http://www.test/dir/other", False, id="a host below"),
        pytest.param("http://test.other/dir/other", False, id="a host that begins so"),
        pytest.param("/dir/Other", False, id="another case"),
        pytest.param("/dir/other/", False, id="another path"),
        pytest.param("", False, id="empty: the target"),
        pytest.param("?a=1", False, id="a query: the target"),
        pytest.param("#a", False, id="a fragment: the target"),
        pytest.param("mailto:a@test", False, id="no http"),
        pytest.param("http://[/dir/other", False, id="a bracket"),
        pytest.param("http://test:x/dir/other", False, id="a port that is none"),
        pytest.param("http://test:99999/dir/other", False, id="a port beyond all"),
        pytest.param("other, /x", False, id="a list, which it is not"),
        pytest.param("\u00ff\u00fe", False, id="bytes"),
        pytest.param("http://te\u00dft/dir/other", False, id="bytes in the host"),
    ],
)
async def test_locations(name: str, value: str, gone: bool) -> None:
    """What Location and Content-Location name is invalid too if it is of the origin of the target (§4.4)."""
    assert await is_gone(OTHER, f"{name}: {value}") is gone
    assert await is_gone("http://test/dir/page", f"{name}: {value}")


@pytest.mark.parametrize(
    ("value", "gone"),
    [("https://test:443/dir/other", True), ("https://test:80/dir/other", False), ("http://test/dir/other", False)],
)
async def test_locations_of_https(value: str, gone: bool) -> None:
    """The default port of https is 443 (RFC 9110 §4.2.2)."""
    stored = "https://test/dir/other"
    assert await is_gone(stored, f"Location: {value}", target="https://test/dir/page") is gone


async def test_both_locations() -> None:
    """Location and Content-Location each name what is invalid (§4.4)."""
    lines = ("Location: http://elsewhere/", "Content-Location: other")
    assert await is_gone(OTHER, *lines)
    assert await is_gone(OTHER, *reversed(lines))


@pytest.mark.parametrize("host", ["test:80", "TEST"])
async def test_locations_of_an_origin_written_otherwise(host: str) -> None:
    """However the request writes its origin, what has the same one is invalid (RFC 9110 §4.2.3)."""
    assert await is_gone(OTHER, "Location: http://test/dir/other", host=host)
    assert await is_gone(OTHER, "Location: other", host=host)


async def test_variants() -> None:
    """All variants of the target are invalid (§4.4)."""
    origin = Origin().says(FRESH, "Vary: X-A")
    async with origin.cached() as client:
        for value in ("1", "2"):
            await client.get(URL, headers={"x-a": value})
        await client.delete(URL)
        for value in ("1", "2"):
            assert not is_hit(await client.get(URL, headers={"x-a": value}))


@pytest.mark.parametrize("asked", ["max-stale", "only-if-cached", "max-stale, stale-if-error=99"])
async def test_invalid_is_not_stale(asked: str) -> None:
    """What is invalid answers nobody, not even who accepts what is stale, or where the origin fails (§4.4)."""
    origin = Origin().says(FRESH, 'ETag: "a"').says(status=204, body=b"").says(status=503)
    async with origin.cached() as client:
        await client.get(URL)
        await client.put(URL)
        assert (await client.get(URL, headers={"cache-control": asked})).status_code in (503, 504)


async def test_what_is_stored_meanwhile() -> None:
    """What is stored after it was made invalid is valid."""
    origin = Origin().says(FRESH).says(body=b"").says(FRESH, body=b"new")
    async with origin.cached() as client:
        await client.get(URL)
        await client.put(URL)
        await client.get(URL)
        answer = await client.get(URL)
    assert (is_hit(answer), answer.text) == (True, "new")

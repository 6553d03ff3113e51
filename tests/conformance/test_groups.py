"""Cache Groups (RFC 9875): responses that are invalidated together, by the word of the origin."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from app_cache import CacheMiddleware, CachePolicy, InvalidationService
from app_cache.store import StoredResponses
from tests.clients import all_blocked, told
from tests.conformance.origin import Origin

pytestmark = pytest.mark.anyio

FRESH = "Cache-Control: max-age=60"


async def told_after(origin: Origin, backend: Any, *lines: str, method: str = "POST", status: int = 200) -> Any:
    """Return what a GET of /page is told that follows an answer with *lines* to *method* of another URL."""
    async with origin.cached(backend=backend) as client:
        await client.get("/page")
        await all_blocked()
        assert told(await client.get("/page")) == "hit"
        origin.says(*lines, status=status).answers.popleft()
        await client.request(method, "/other")
        return told(await client.get("/page"))


@pytest.mark.parametrize(
    ("groups", "named", "gone"),
    [
        pytest.param('"a"', '"a"', True, id="the group"),
        pytest.param('"b", "a";x=1', '"c", "a";y', True, id="one of several"),
        pytest.param('"a"', '"A"', False, id="case"),
        pytest.param('"a"', '"b"', False, id="another group"),
        pytest.param('"a"', "a", False, id="a Token is no String"),
        pytest.param('"a", b', '"a"', False, id="a List with a Token"),
        pytest.param('"a"', '"a",', False, id="what does not parse"),
        pytest.param(", ".join(f'"{n:032}"' for n in range(32)), f'"{31:032}"', True, id="32 of 32 characters"),
    ],
)
async def test_group_invalidation(backend: Any, groups: str, named: str, gone: bool) -> None:
    """The answer to an unsafe method invalidates the responses of the groups that it names (§2.1, §3)."""
    origin = Origin().says(FRESH, f"Cache-Groups: {groups}")
    said = await told_after(origin, backend, f"Cache-Group-Invalidation: {named}")
    assert (said != "hit") is gone


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
async def test_safe_methods_invalidate_no_group(backend: Any, method: str) -> None:
    """Cache-Group-Invalidation is ignored in the answer to a safe method (§3)."""
    origin = Origin().says(FRESH, 'Cache-Groups: "a"')
    assert await told_after(origin, backend, 'Cache-Group-Invalidation: "a"', method=method) == "hit"


async def test_errors_invalidate_no_group(backend: Any) -> None:
    """An error invalidates nothing (RFC 9111 §4.4)."""
    origin = Origin().says(FRESH, 'Cache-Groups: "a"')
    assert await told_after(origin, backend, 'Cache-Group-Invalidation: "a"', status=500) == "hit"


async def test_groups_of_another_origin(backend: Any) -> None:
    """A group is that of one origin (§2.1)."""
    origin = Origin().says(FRESH, 'Cache-Groups: "a"')
    async with origin.cached(backend=backend) as client:
        await client.get("http://one/page")
        await client.get("http://two/page")
        await all_blocked()
        origin.says('Cache-Group-Invalidation: "a"').answers.popleft()
        await client.delete("http://one/other")
        assert told(await client.get("http://one/page")) != "hit"
        assert told(await client.get("http://two/page")) == "hit"


async def test_groups_are_tags(backend: Any) -> None:
    """What is grouped by its response can be invalidated by tag."""
    origin = Origin().says(FRESH, 'Cache-Groups: "a"').says(FRESH, body=b"new")
    app = CacheMiddleware(origin, backend, default_policy=CachePolicy.http(), clock=origin.clock)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        await client.get("/page")
        await InvalidationService(StoredResponses(backend)).by_tag("a")
        assert (await client.get("/page")).text == "new"

"""What is stored, and what of it (RFC 9111 §3)."""

from __future__ import annotations

import httpx
import pytest

from app_cache import CachePolicy
from tests.clients import told
from tests.conformance.origin import BOTH, URL, Origin, asked_twice, is_hit, raw

pytestmark = pytest.mark.anyio

FRESH = "Cache-Control: max-age=60"
HEURISTIC = {200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501}
"""Statuses that RFC 9110 §15.1 names, but for 206."""
STATUSES = sorted(
    {*range(200, 206), *range(300, 304), 305, 307, 308, *range(400, 418), 421, 422, 426, *range(500, 506)}
)
UNKNOWN = [220, 299, 306, 310, 399, 418, 430, 499, 510, 599]


@BOTH
@pytest.mark.parametrize("status", [*STATUSES, *UNKNOWN])
async def test_explicit_freshness(status: int, policy: CachePolicy) -> None:
    """A response of any final status is stored that says how long it is fresh (§3)."""
    answer = await asked_twice(Origin().says(FRESH, status=status), policy=policy)
    assert (answer.status_code, is_hit(answer)) == (status, True)


@pytest.mark.parametrize("status", [*STATUSES, *UNKNOWN])
async def test_heuristic_freshness(status: int) -> None:
    """A response without explicit freshness is stored if its status is heuristically cacheable (§3, §4.2.2)."""
    answer = await asked_twice(Origin().says("Last-Modified: {now-1000}", status=status))
    assert is_hit(answer) is (status in HEURISTIC)


@pytest.mark.parametrize("status", [*STATUSES, *UNKNOWN])
async def test_public(status: int) -> None:
    """``public`` makes a response of any status cacheable, by a heuristic if it says nothing else (§5.2.2.9)."""
    answer = await asked_twice(Origin().says("Cache-Control: public", "Last-Modified: {now-1000}", status=status))
    assert is_hit(answer)


@BOTH
@pytest.mark.parametrize("said", ["max-age=60", "public, max-age=60", "must-understand, no-store, max-age=60"])
@pytest.mark.parametrize("status", [428, 429, 431, 511])
async def test_statuses_of_one_client(status: int, said: str, policy: CachePolicy) -> None:
    """What is about one client's requests is never stored, whatever it says (RFC 6585 §3 to §6)."""
    answer = await asked_twice(Origin().says(f"Cache-Control: {said}", status=status), policy=policy)
    assert (answer.status_code, is_hit(answer)) == (status, False)


@pytest.mark.parametrize("status", [206, 304])
async def test_parts_and_confirmations(status: int) -> None:
    """206 and 304 are not stored as if they were whole responses (§3, §3.3)."""
    lines = (FRESH, "Content-Range: bytes 0-9/20")
    origin = Origin().says(*lines, status=status).says(FRESH, body=b"whole")
    answer = await asked_twice(origin)
    assert (answer.status_code, answer.text) == (200, "whole")


@pytest.mark.parametrize(
    ("line", "hit"),
    [
        pytest.param("Expires: {now+60}", True, id="Expires"),
        pytest.param("Cache-Control: max-age=60", True, id="max-age"),
        pytest.param("Cache-Control: s-maxage=60", True, id="s-maxage"),
        pytest.param("CDN-Cache-Control: max-age=60", True, id="an extension"),
        pytest.param("Cache-Control: must-revalidate", False, id="must-revalidate"),
        pytest.param("Cache-Control: proxy-revalidate", False, id="proxy-revalidate"),
        pytest.param("Cache-Control: immutable, only-if-cached", False, id="nothing of a response's own"),
        pytest.param('ETag: "a"', False, id="a validator alone"),
    ],
)
async def test_what_lets_a_201_be_stored(line: str, hit: bool) -> None:
    """A status that is not heuristically cacheable needs a word that lets it be stored (§3)."""
    answer = await asked_twice(Origin().says(line, "Last-Modified: {now-1000}", status=201))
    assert is_hit(answer) is hit


@BOTH
@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        pytest.param(["Cache-Control: no-store"], "no-store", id="no-store"),
        pytest.param(["Cache-Control: max-age=60, No-Store"], "no-store", id="in any case"),
        pytest.param(["Cache-Control: max-age=60", "Cache-Control: no-store"], "no-store", id="on another line"),
        pytest.param(["Cache-Control: no-store, public, s-maxage=60"], "no-store", id="the most restrictive"),
        pytest.param(
            ["Cache-Control: max-age=60, no-store=1"], "no-store", id="an argument that it does not have"
        ),
        pytest.param(["Cache-Control: no-store", "Expires: {now+60}"], "no-store", id="beside Expires"),
        pytest.param(["Cache-Control: max-age=60, private"], "private", id="private"),
        pytest.param(["Cache-Control: PRIVATE, public, max-age=60"], "private", id="private and public"),
        pytest.param(['Cache-Control: max-age=60, private, private="x-a"'], "private", id="private in both forms"),
        pytest.param(['Cache-Control: max-age=60, private=""'], "private", id="private of no field"),
        pytest.param(["Cache-Control: max-age=60", "Pragma: no-cache"], None, id="Pragma says nothing here"),
        pytest.param(['Cache-Control: max-age=60, x="no-store"'], None, id="inside a quoted string"),
        pytest.param(['Cache-Control: max-age=60, x="a\\", no-store"'], None, id="behind an escaped quote"),
        pytest.param(["Cache-Control: max-age=60, no-stored, xprivate"], None, id="other names"),
        pytest.param(['Cache-Control: x, max-age=60, y=1, z="2"'], None, id="unknown directives"),
        pytest.param(["Cache-Control: , ,max-age=60,,"], None, id="empty members"),
    ],
)
async def test_what_forbids_to_store(lines: list[str], expected: str | None, policy: CachePolicy) -> None:
    """``no-store`` and ``private`` are obeyed wherever they stand in the list, and nowhere else (§5.2)."""
    answer = await asked_twice(Origin().says(*lines), policy=policy)
    assert told(answer) == ("hit" if expected is None else f"fwd=uri-miss; detail={expected}")


@pytest.mark.parametrize(
    ("directives", "gone"),
    [
        pytest.param('private="x-a"', {"x-a"}, id="private"),
        pytest.param('private="X-A"', {"x-a"}, id="in any case"),
        pytest.param('private="x-a, X-B"', {"x-a", "x-b"}, id="several"),
        pytest.param('private="x-a", private="x-b"', {"x-a", "x-b"}, id="in two directives"),
        pytest.param("private=x-a", {"x-a"}, id="as a token"),
        pytest.param('private="x-none"', set(), id="a field that is not there"),
        pytest.param('no-cache="x-a"', {"x-a"}, id="no-cache"),
        pytest.param('no-cache="x-a", private="x-b"', {"x-a", "x-b"}, id="both"),
    ],
)
async def test_named_fields(directives: str, gone: set[str]) -> None:
    """Fields that ``private`` or ``no-cache`` names reach the first client, and nobody from the cache (§3.1)."""
    origin = Origin().says(f"Cache-Control: max-age=60, {directives}", "X-A: 1", "X-B: 2", "X-C: 3")
    async with origin.cached() as client:
        first, second = await client.get(URL), await client.get(URL)
    assert {"x-a", "x-b", "x-c"} <= first.headers.keys()
    assert is_hit(second)
    assert {"x-a", "x-b", "x-c"} - second.headers.keys() == gone


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(['Cache-Control: max-age=60, private="vary"', "Vary: X-A"], id="private names Vary"),
        pytest.param(['Cache-Control: max-age=60, no-cache="vary"', "Vary: X-A"], id="no-cache names Vary"),
        pytest.param(["Connection: vary", FRESH, "Vary: X-A"], id="Connection names Vary"),
    ],
)
async def test_fields_that_select(lines: list[str]) -> None:
    """A response whose Vary must not be kept still answers nobody whose request differs in it (§4.1)."""
    answer = await asked_twice(Origin().says(*lines), first=("X-A: 1",), then=("X-A: 2",))
    assert not is_hit(answer)


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(['Cache-Control: no-cache, max-age=60, private="cache-control"'], id="private"),
        pytest.param(["Cache-Control: no-cache, max-age=60", "Connection: cache-control"], id="Connection"),
        pytest.param(["Cache-Control: max-age=0", "Connection: cache-control"], id="max-age"),
        pytest.param(["Expires: {now-9}", 'Cache-Control: public, private="expires"'], id="Expires"),
        pytest.param(["Age: 60", 'Cache-Control: max-age=60, private="age"'], id="Age"),
        pytest.param(["Date: {now-60}", 'Cache-Control: max-age=60, no-cache="date"'], id="Date"),
    ],
)
async def test_fields_that_decide(lines: list[str]) -> None:
    """What a response says of its reuse holds, though the field that says it is not kept (§4, §4.2)."""
    assert not is_hit(await asked_twice(Origin().says("Last-Modified: {now-1000000}", *lines)))


@pytest.mark.parametrize(
    ("status", "directives", "hit"),
    [
        pytest.param(200, "must-understand, no-store, max-age=60", True, id="a known status"),
        pytest.param(404, "no-store, max-age=60, must-understand", True, id="in any order"),
        pytest.param(200, "must-understand, max-age=60", True, id="without no-store"),
        pytest.param(299, "must-understand, no-store, max-age=60", False, id="an unknown status"),
        pytest.param(299, "must-understand, max-age=60", False, id="an unknown status, without no-store"),
        pytest.param(200, "must-understand, no-store, private, max-age=60", False, id="private all the same"),
        pytest.param(200, "no-store, max-age=60", False, id="no-store alone"),
    ],
)
async def test_must_understand(status: int, directives: str, hit: bool) -> None:
    """``must-understand`` overrides ``no-store`` for a status whose rules are known, and wants one (§5.2.2.3)."""
    answer = await asked_twice(Origin().says(f"Cache-Control: {directives}", status=status))
    assert is_hit(answer) is hit


CREDENTIALS = ("Authorization: Bearer a",)


@BOTH
@pytest.mark.parametrize(
    ("lines", "hit"),
    [
        pytest.param([FRESH], False, id="none"),
        pytest.param(["Expires: {now+60}"], False, id="Expires"),
        pytest.param(["Last-Modified: {now-1000}"], False, id="a heuristic"),
        pytest.param([FRESH + ", public"], True, id="public"),
        pytest.param([FRESH + ", must-revalidate"], True, id="must-revalidate"),
        pytest.param(["Cache-Control: s-maxage=60"], True, id="s-maxage"),
        pytest.param([FRESH + ", proxy-revalidate"], False, id="proxy-revalidate"),
        pytest.param([FRESH + ', public="x"'], False, id="public with an argument"),
        pytest.param(["Cache-Control: s-maxage=60, private"], False, id="s-maxage and private"),
    ],
)
async def test_authorization(lines: list[str], hit: bool, policy: CachePolicy) -> None:
    """What was asked for with Authorization is stored with one of three directives only (§3.5)."""
    origin = Origin().says(*lines)
    assert is_hit(await asked_twice(origin, first=CREDENTIALS, policy=policy)) is hit


async def test_authorization_of_a_later_request() -> None:
    """What was asked for without Authorization answers requests that have it (§3.5 speaks of the first)."""
    assert is_hit(await asked_twice(Origin().says(FRESH), then=CREDENTIALS))


async def test_fields_that_are_kept() -> None:
    """All fields are stored, unknown ones too, with all lines in order; those of a connection are not (§3.1)."""
    kept = [
        "X-Unknown: 1",
        "Link: <a>",
        "X-B: b",
        "link: <b>",
        "X-Empty:",
        "Via: 1.1 a",
        "Keep: alive",
        "Warning: 1",
    ]
    dropped = [
        "Connection: close, X-Hop",
        "x-hop: 1",
        "Connection: X-Other",
        "X-Other: 2",
        "Keep-Alive: timeout=5",
        "Proxy-Authenticate: Basic",
        "Proxy-Authentication-Info: a",
        "Proxy-Authorization: Basic",
        "Proxy-Connection: close",
        "TE: trailers",
        "Upgrade: x",
    ]
    origin = Origin().says(FRESH, 'ETag: "a"', *kept, *dropped)
    answer = await asked_twice(origin)
    own = {b"cache-status", b"age"}
    found = [(name, value) for name, value in answer.headers.raw if name.lower() not in own]
    assert found == raw(FRESH, 'ETag: "a"', *kept)


@pytest.mark.parametrize("value", [b"a\xe9b", b"\xff", b'"', b"a,,b", b"x" * 8_000], ids=repr)
async def test_values_are_kept_as_they_are(value: bytes) -> None:
    """Field values are bytes that nobody changes (§3.1)."""
    answer = await asked_twice(Origin().says(FRESH, f"X: {value.decode('latin-1')}"))
    assert (is_hit(answer), dict(answer.headers.raw)[b"X"]) == (True, value)


@pytest.mark.parametrize(
    ("policy", "hit"),
    [
        pytest.param(CachePolicy.http(), True, id="the RFC"),
        pytest.param(CachePolicy.http(store_set_cookie=False), False, id="our default"),
    ],
)
async def test_set_cookie(policy: CachePolicy, hit: bool) -> None:
    """Set-Cookie is a field as any other to the RFC, and keeps a response from being stored by default (§3.1)."""
    lines = ("Set-Cookie: a=1", "Set-Cookie: b=2")
    answer = await asked_twice(Origin().says(FRESH, *lines), policy=policy)
    assert (is_hit(answer), answer.headers.get_list("set-cookie")) == (hit, ["a=1", "b=2"])


@BOTH
@pytest.mark.parametrize(
    ("lines", "body", "breaks", "hit"),
    [
        pytest.param(["Content-Length: 10"], (b"01234", b"56789"), False, True, id="the length"),
        pytest.param(["Content-Length: 11"], (b"01234", b"56789"), False, False, id="shorter"),
        pytest.param(["Content-Length: 9"], (b"01234", b"56789"), False, False, id="longer"),
        pytest.param(["Content-Length: 10, 10"], (b"0123456789",), False, False, id="twice in one line"),
        pytest.param(
            ["Content-Length: 10", "Content-Length: 10"], (b"0123456789",), False, False, id="on two lines"
        ),
        pytest.param(
            ["Content-Length: 10", "Content-Length: 9"], (b"0123456789",), False, False, id="two lengths"
        ),
        pytest.param(["Content-Length: ten"], (b"0123456789",), False, False, id="no length"),
        pytest.param([], (b"01234", b"56789"), False, True, id="no length, ended"),
        pytest.param([], (b"01234", b"56789"), True, False, id="no length, broken off"),
        pytest.param([], (), True, False, id="broken off before it begins"),
        pytest.param(["Content-Length: 10"], (b"01234",), True, False, id="broken off before its length"),
    ],
)
async def test_incomplete(
    lines: list[str], body: tuple[bytes, ...], breaks: bool, hit: bool, policy: CachePolicy
) -> None:
    """A response is stored if it came whole, which its length or its end tells (§3.3)."""
    origin = Origin().says(FRESH, *lines, body=body, breaks=breaks).says(FRESH, body=b"next")
    if hit:
        assert is_hit(await asked_twice(origin, policy=policy))
        return
    async with origin.cached(policy) as client:
        try:
            await client.get(URL)
        except httpx.HTTPError:
            assert breaks
        assert (await client.get(URL)).text == "next"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND", "FOO"])
async def test_methods_that_are_not_cached(method: str) -> None:
    """The response to a method without rules for caches answers nobody, of no method (§3, RFC 9110 §9.2.3)."""
    origin = Origin().says(FRESH)
    async with origin.cached() as client:
        for asked in (method, method, "GET"):
            assert not is_hit(await client.request(asked, URL))
    assert len(origin.asked) == 3


@pytest.mark.parametrize("path", ["/page?", "/page?a=1", "/Page", "/page/", "/page%20", "//page"])
async def test_another_target(path: str) -> None:
    """A response is stored for its own target URI alone (§4)."""
    origin = Origin().says(FRESH)
    async with origin.cached() as client:
        await client.get("http://test/page?a=2")
        assert not is_hit(await client.get(f"http://test{path}"))

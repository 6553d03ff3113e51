"""CDN-Cache-Control in place of Cache-Control and Expires (RFC 9213)."""

from __future__ import annotations

import pytest

from app_cache import CachePolicy
from tests.conformance.origin import BOTH, Origin, asked_twice, is_hit
from tests.conformance.test_freshness import assert_fresh_for

pytestmark = pytest.mark.anyio

TAG = 'ETag: "a"'


@BOTH
@pytest.mark.parametrize(
    ("lines", "seconds"),
    [
        pytest.param(["CDN-Cache-Control: max-age=60"], 60, id="alone"),
        pytest.param(
            ["CDN-Cache-Control: max-age=60", "Cache-Control: max-age=9"], 60, id="more than Cache-Control"
        ),
        pytest.param(["CDN-Cache-Control: max-age=9", "Cache-Control: s-maxage=60"], 9, id="less than s-maxage"),
        pytest.param(["Cache-Control: no-store", "CDN-Cache-Control: max-age=60"], 60, id="in spite of no-store"),
        pytest.param(["Cache-Control: private", "CDN-Cache-Control: max-age=60"], 60, id="in spite of private"),
        pytest.param(["Cache-Control: no-cache", "CDN-Cache-Control: max-age=60"], 60, id="in spite of no-cache"),
        pytest.param(["Expires: {now+9}", "CDN-Cache-Control: max-age=60"], 60, id="in spite of Expires"),
        pytest.param(["CDN-Cache-Control: max-age=9, s-maxage=60"], 60, id="s-maxage before max-age"),
        pytest.param(
            ["CDN-Cache-Control: max-age=9", "CDN-Cache-Control: max-age=60"], 60, id="the last of two lines"
        ),
        pytest.param(["CDN-Cache-Control: max-age=9, max-age=60"], 60, id="the last of two keys"),
        pytest.param(["CDN-Cache-Control: x=1, max-age=60;y=2"], 60, id="parameters, and what nobody knows"),
        pytest.param(["CDN-Cache-Control: max-age=60", "Age: 20"], 40, id="Age counts as ever"),
        pytest.param(["CDN-Cache-Control: max-age=60, no-store"], 0, id="no-store"),
        pytest.param(["CDN-Cache-Control: max-age=60, no-cache"], 0, id="no-cache"),
        pytest.param(["CDN-Cache-Control: max-age=60, private"], 0, id="private"),
        pytest.param(["CDN-Cache-Control: max-age=0", "Cache-Control: max-age=60"], 0, id="nothing"),
        pytest.param(["CDN-Cache-Control: max-age=60, no-store=?0"], 60, id="what is false is not there"),
        pytest.param(["CDN-Cache-Control: none", "Cache-Control: max-age=60", "Expires: {now+60}"], 0, id="none"),
        pytest.param(
            ["CDN-Cache-Control: none", "Cache-Control: no-store", "Last-Modified: {now-600}"],
            60,
            id="a heuristic",
        ),
        pytest.param(
            ["Surrogate-Control: max-age=60", "Cache-Control: max-age=9"], 9, id="a field that is not ours"
        ),
        pytest.param(
            ["X-Cache-Control: no-store", "Cache-Control: max-age=60"], 60, id="one with the same suffix"
        ),
    ],
)
async def test_policy(lines: list[str], seconds: int, policy: CachePolicy) -> None:
    """A targeted field decides alone on storing and freshness; fields of no concern to us do not (§2.2)."""
    await assert_fresh_for(seconds, *lines, policy=policy)


@BOTH
@pytest.mark.parametrize(
    "value",
    [
        pytest.param("", id="empty"),
        pytest.param(" ", id="a blank"),
        pytest.param("Max-Age=60", id="a capital"),
        pytest.param("max-age =60", id="a blank before ="),
        pytest.param("max-age= 60", id="a blank after ="),
        pytest.param("max-age=", id="no value"),
        pytest.param("max-age=60,", id="a comma at the end"),
        pytest.param(",max-age=60", id="a comma at the start"),
        pytest.param("max-age=60,, x", id="two commas"),
        pytest.param("max-age=60 x", id="no comma"),
        pytest.param("max-age=60, &", id="what is no key"),
        pytest.param('max-age=60, x="a', id="an open quote"),
        pytest.param("max-age='60'", id="single quotes"),
        pytest.param("max-age=9999999999999999", id="an Integer of 16 digits"),
        pytest.param("max-age=60, x=\u00e9", id="no ASCII"),
        pytest.param("max-age=60, x=(a", id="an open Inner List"),
        pytest.param("max-age=6e1.", id="what is no number"),
        pytest.param("max-age=60, x=@60", id="a Date, which RFC 8941 does not have"),
    ],
)
@pytest.mark.parametrize(("fallback", "seconds"), [("max-age=9", 9), ("no-store", 0)])
async def test_what_is_ignored(value: str, fallback: str, seconds: int, policy: CachePolicy) -> None:
    """A field that is empty or does not parse is as if it were absent, all of it (§2.1)."""
    lines = (f"CDN-Cache-Control: {value}", f"Cache-Control: {fallback}")
    await assert_fresh_for(seconds, *lines, policy=policy)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("max-age=60.0", id="a Decimal"),
        pytest.param('max-age="60"', id="a String"),
        pytest.param("max-age=a60", id="a Token"),
        pytest.param("max-age=-60", id="negative"),
        pytest.param("max-age", id="a Boolean"),
        pytest.param("max-age=(60)", id="an Inner List"),
        pytest.param("max-age=:NjA=:", id="a Byte Sequence"),
        pytest.param("max-age=60, s-maxage=60.5", id="of s-maxage"),
    ],
)
async def test_values_of_another_type(value: str) -> None:
    """A lifetime of another type than Integer is not consumed: the response is stale (§2.1)."""
    await assert_fresh_for(0, f"CDN-Cache-Control: {value}", "Cache-Control: max-age=60", "Expires: {now+60}")


@BOTH
@pytest.mark.parametrize("directive", ["must-revalidate", "proxy-revalidate", "s-maxage=60"])
async def test_what_forbids_stale(directive: str, policy: CachePolicy) -> None:
    """What a targeted field forbids to serve stale is not (§2.2)."""
    origin = Origin().says(f"CDN-Cache-Control: max-age=60, {directive}", TAG).says(status=503)
    answer = await asked_twice(origin, then=("Cache-Control: max-stale",), after=61, policy=policy)
    assert answer.status_code == 503


@BOTH
async def test_what_permits_stale(policy: CachePolicy) -> None:
    """Cache-Control forbids nothing where a targeted field decides, and extensions count in that (§2.2)."""
    lines = ("CDN-Cache-Control: max-age=60, stale-while-revalidate=9", "Cache-Control: must-revalidate")
    answer = await asked_twice(Origin().says(*lines), after=61, policy=policy)
    assert answer.headers["cache-status"] == "app-cache; hit; ttl=-1"


@pytest.mark.parametrize(
    ("directives", "shared"),
    [("public", True), ("must-revalidate", True), ("s-maxage=60", True), ("x", False), ("public=?0", False)],
)
async def test_authorization(directives: str, shared: bool) -> None:
    """What shares the response to a request with Authorization is said in the field that decides (§2.2)."""
    lines = (f"CDN-Cache-Control: max-age=60, {directives}", "Cache-Control: private")
    answer = await asked_twice(Origin().says(*lines), first=("Authorization: a",))
    assert is_hit(answer) is shared
    no_word = ("CDN-Cache-Control: max-age=60", "Cache-Control: public")
    assert not is_hit(await asked_twice(Origin().says(*no_word), first=("Authorization: a",)))


@pytest.mark.parametrize(
    ("directive", "gone"),
    [
        pytest.param('private="x-a"', True, id="private"),
        pytest.param('no-cache="x-a, x-b"', True, id="no-cache"),
        pytest.param('private="x-b"', False, id="another field"),
    ],
)
async def test_named_fields(directive: str, gone: bool) -> None:
    """A String names the fields that are not kept (§2.1)."""
    answer = await asked_twice(Origin().says(f"CDN-Cache-Control: max-age=60, {directive}", "X-A: 1"))
    assert (is_hit(answer), "x-a" in answer.headers) == (True, not gone)


@pytest.mark.parametrize("value", ["max-age=60", "max-age=60, &", "", "private=?0"])
async def test_fields_are_passed_on(value: str) -> None:
    """Targeted fields, valid or not, ours or not, reach the client beside Cache-Control (§2.2, §3)."""
    lines = (f"CDN-Cache-Control: {value}", "Other-Cache-Control: no-store", "Cache-Control: max-age=9")
    answer = await asked_twice(Origin().says(*lines))
    assert is_hit(answer) is (value != "private=?0")
    assert answer.headers["cdn-cache-control"] == value
    assert (answer.headers["other-cache-control"], answer.headers["cache-control"]) == ("no-store", "max-age=9")


async def test_a_validation() -> None:
    """A targeted field in a 304 decides from then on (§2.2)."""
    origin = Origin().says("CDN-Cache-Control: max-age=60", TAG)
    origin.says("CDN-Cache-Control: max-age=600", "Cache-Control: no-store", TAG, status=304, body=b"")
    async with origin.cached() as client:
        for after, left in ((0, None), (60, None), (599, "1")):
            origin.clock.advance(after)
            answer = await client.get("/page")
            assert answer.headers["cache-status"].partition("hit; ttl=")[2] == (left or "")

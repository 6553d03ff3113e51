"""For how long a stored response answers (RFC 9111 §4.2, §5.1, §5.3)."""

from __future__ import annotations

import time
from typing import Any

import pytest

from app_cache import CachePolicy
from app_cache.testing import FakeClock
from tests.conformance.origin import BOTH, URL, Origin, asked_twice, is_hit
from tests.rules.samples import NOW

pytestmark = pytest.mark.anyio

FRESH = "Cache-Control: max-age=60"
IN_A_MINUTE = "Fri, 14 Jul 2017 02:41:00 GMT"
"""A minute after `NOW`."""


async def assert_fresh_for(
    seconds: int, *lines: str, status: int = 200, policy: CachePolicy | None = None
) -> None:
    """Assert that a response of *lines* is a hit in the last of *seconds*, and not when they are over."""
    for after, fresh in ((seconds - 1, True), (seconds, False)):
        if after >= 0:
            origin = Origin(FakeClock(NOW)).says(*lines, status=status)
            assert is_hit(await asked_twice(origin, after=after, policy=policy)) is fresh, f"after {after} s"


@BOTH
@pytest.mark.parametrize(
    ("lines", "seconds"),
    [
        pytest.param(["Cache-Control: max-age=60"], 60, id="max-age"),
        pytest.param(["Cache-Control: s-maxage=60"], 60, id="s-maxage"),
        pytest.param(["Expires: {now+60}"], 60, id="Expires"),
        pytest.param(["Cache-Control: max-age=9, s-maxage=60"], 60, id="s-maxage is longer than max-age"),
        pytest.param(["Cache-Control: s-maxage=9, max-age=60"], 9, id="s-maxage is shorter than max-age"),
        pytest.param(["Cache-Control: s-maxage=0, max-age=60"], 0, id="s-maxage of nothing"),
        pytest.param(["Cache-Control: s-maxage=60", "Expires: {now+9}"], 60, id="s-maxage before Expires"),
        pytest.param(["Cache-Control: max-age=60", "Expires: {now+9}"], 60, id="max-age before Expires"),
        pytest.param(["Expires: {now+60}", "Cache-Control: max-age=0"], 0, id="max-age of nothing before Expires"),
        pytest.param(["Cache-Control: max-age=60", "Expires: 0"], 60, id="max-age before an invalid Expires"),
        pytest.param(["Cache-Control: public", "Expires: {now+60}"], 60, id="Expires beside other directives"),
        pytest.param(["Cache-Control: max-age=60, max-age=9"], 60, id="the first of two"),
        pytest.param(["Cache-Control: max-age=9", "Cache-Control: max-age=60"], 9, id="the first of two lines"),
        pytest.param(["Cache-Control: s-maxage=9, s-maxage=60"], 9, id="the first s-maxage"),
        pytest.param(["Cache-Control: max-age=x, max-age=60"], 0, id="the first of two, that is none"),
        pytest.param(["Cache-Control: s-maxage=x, max-age=60"], 0, id="s-maxage that is none before max-age"),
        pytest.param(
            ["Cache-Control: max-age=x", "Expires: {now+60}"], 0, id="max-age that is none before Expires"
        ),
        pytest.param(["Expires: {now+60}", "Expires: {now+60}"], 0, id="Expires twice"),
        pytest.param(["Expires: {now+60}", "Expires: {now-60}"], 0, id="two different Expires"),
        pytest.param(["Cache-Control: max-age=60, no-cache"], 0, id="no-cache is more restrictive"),
        pytest.param(["Cache-Control: no-cache, s-maxage=60"], 0, id="in any order"),
    ],
)
async def test_precedence(lines: list[str], seconds: int, policy: CachePolicy) -> None:
    """``s-maxage`` counts before ``max-age``, that before Expires, the first of several (§4.2.1, §5.3)."""
    await assert_fresh_for(seconds, *lines, policy=policy)


@pytest.mark.parametrize("name", ["max-age", "s-maxage"])
@pytest.mark.parametrize(
    ("argument", "seconds"),
    [
        pytest.param('="60"', 60, id="quoted"),
        pytest.param('="6\\0"', 60, id="quoted with an escape"),
        pytest.param("=060", 60, id="a leading zero"),
        pytest.param("=" + "0" * 50 + "60", 60, id="many leading zeros"),
        pytest.param("=60 ", 60, id="a blank after it"),
        pytest.param("=00", 0, id="zeros"),
        pytest.param("=2147483647", 2**31 - 1, id="below 2 ** 31"),
        pytest.param("=2147483648", 2**31, id="2 ** 31"),
        pytest.param("=2147483649", 2**31, id="beyond 2 ** 31"),
        pytest.param("=" + "9" * 99, 2**31, id="huge"),
        pytest.param("=-60", 0, id="negative"),
        pytest.param("=-0", 0, id="negative zero"),
        pytest.param("=+60", 0, id="with a plus"),
        pytest.param("=60.0", 0, id="a fraction"),
        pytest.param("=60.", 0, id="a point"),
        pytest.param("=6e1", 0, id="an exponent"),
        pytest.param("=0x3c", 0, id="hexadecimal"),
        pytest.param("=6_0", 0, id="an underscore"),
        pytest.param("='60'", 0, id="single quotes"),
        pytest.param('="60', 0, id="a quote that is not closed"),
        pytest.param('="6"0', 0, id="more after the quote"),
        pytest.param('=" 60"', 0, id="a blank in quotes"),
        pytest.param('=""', 0, id="empty quotes"),
        pytest.param("=", 0, id="empty"),
        pytest.param("", 0, id="no argument"),
        pytest.param(" =60", 0, id="a blank before ="),
        pytest.param("= 60", 0, id="a blank after ="),
        pytest.param("=60 60", 0, id="two numbers"),
        pytest.param("=60s", 0, id="a unit"),
        pytest.param("=60;q=1", 0, id="a parameter"),
        pytest.param("=\u00b2", 0, id="a digit of another script"),
    ],
)
async def test_delta_seconds(name: str, argument: str, seconds: int) -> None:
    """A lifetime is digits, also quoted; beyond 2 ** 31 it is that, and any other makes stale (§1.2.2, §4.2.1)."""
    await assert_fresh_for(seconds, f"Cache-Control: x, {name}{argument}", "Expires: {now+99}")


@pytest.mark.parametrize(
    "date",
    [
        pytest.param(IN_A_MINUTE, id="IMF-fixdate"),
        pytest.param("Friday, 14-Jul-17 02:41:00 GMT", id="rfc850-date"),
        pytest.param("Fri Jul 14 02:41:00 2017", id="asctime-date"),
        pytest.param(IN_A_MINUTE.lower(), id="lower case"),
        pytest.param(IN_A_MINUTE.upper(), id="upper case"),
        pytest.param("FRIDAY, 14-jul-17 02:41:00 gmt", id="rfc850-date in another case"),
        pytest.param("fri JUL 14 02:41:00 2017", id="asctime-date in another case"),
        pytest.param("Fri, 14 Jul 2017 02:40:60 GMT", id="a leap second"),
    ],
)
async def test_dates(date: str) -> None:
    """All three formats of a date are read, in any case (RFC 9110 §5.6.7, RFC 9111 §4.2)."""
    await assert_fresh_for(60, f"Expires: {date}")


@pytest.mark.parametrize(
    ("date", "fresh"),
    [
        pytest.param("Monday, 14-Jul-66 02:41:00 GMT", True, id="less than 50 years ahead"),
        pytest.param("Monday, 14-Jul-68 02:41:00 GMT", False, id="more than 50 years ahead"),
        pytest.param("Monday, 14-Jul-99 02:41:00 GMT", False, id="the last century"),
        pytest.param("Fri Jul  1 02:41:00 2022", True, id="a day of one digit"),
        pytest.param("Fri, 31 Dec 9999 23:59:59 GMT", True, id="the last year"),
        pytest.param("Mon, 01 Jan 0001 00:00:00 GMT", False, id="the first year"),
        pytest.param("Mon, 01 Jan 1900 00:00:00 GMT", False, id="before the epoch"),
    ],
)
async def test_years(date: str, fresh: bool) -> None:
    """A year of two digits is at most 50 years ahead, and those of four are what they say (RFC 9110 §5.6.7)."""
    assert is_hit(await asked_twice(Origin(FakeClock(NOW)).says(f"Expires: {date}"), after=1)) is fresh


INVALID = {
    "zero": "0",
    "minus one": "-1",
    "empty": "",
    "a word": "never",
    "seconds": "1500000060",
    "ISO 8601": "2017-07-14T02:41:00Z",
    "no zone": "Fri, 14 Jul 2017 02:41:00",
    "UTC": "Fri, 14 Jul 2017 02:41:00 UTC",
    "another zone": "Fri, 14 Jul 2017 02:41:00 EST",
    "a numeric zone": "Fri, 14 Jul 2017 02:41:00 +0000",
    "more after the zone": IN_A_MINUTE + " x",
    "more before the day": "x " + IN_A_MINUTE,
    "quotes": f'"{IN_A_MINUTE}"',
    "no day name": "14 Jul 2017 02:41:00 GMT",
    "another day name": "Fre, 14 Jul 2017 02:41:00 GMT",
    "a long day name": "Friday, 14 Jul 2017 02:41:00 GMT",
    "no comma": "Fri 14 Jul 2017 02:41:00 GMT",
    "no blank": "Fri,14 Jul 2017 02:41:00 GMT",
    "two blanks": "Fri,  14 Jul 2017 02:41:00 GMT",
    "a tab": "Fri, 14 Jul 2017\t02:41:00 GMT",
    "dashes": "Fri, 14-Jul-2017 02:41:00 GMT",
    "a month as a number": "Fri, 14 07 2017 02:41:00 GMT",
    "a long month": "Fri, 14 July 2017 02:41:00 GMT",
    "a month of another language": "Fri, 14 Mai 2017 02:41:00 GMT",
    "a day of one digit": "Fri, 4 Aug 2017 02:41:00 GMT",
    "a year of two digits": "Fri, 14 Jul 17 02:41:00 GMT",
    "a year of five digits": "Fri, 14 Jul 02017 02:41:00 GMT",
    "an hour of one digit": "Fri, 14 Jul 2017 2:41:00 GMT",
    "no seconds": "Fri, 14 Jul 2017 02:41 GMT",
    "a fraction": "Fri, 14 Jul 2017 02:41:00.0 GMT",
    "points": "Fri, 14 Jul 2017 02.41.00 GMT",
    "day 0": "Fri, 00 Aug 2017 02:41:00 GMT",
    "day 32": "Fri, 32 Jul 2017 02:41:00 GMT",
    "30 February": "Fri, 30 Feb 2018 02:41:00 GMT",
    "29 February of no leap year": "Fri, 29 Feb 2019 02:41:00 GMT",
    "hour 24": "Fri, 14 Jul 2017 24:00:00 GMT",
    "minute 60": "Fri, 14 Jul 2017 02:60:00 GMT",
    "second 61": "Fri, 14 Jul 2017 02:41:61 GMT",
    "year 0": "Fri, 14 Jul 0000 02:41:00 GMT",
    "rfc850-date with a short day name": "Fri, 14-Jul-17 02:41:00 GMT",
    "rfc850-date with four digits": "Friday, 14-Jul-2017 02:41:00 GMT",
    "rfc850-date without zone": "Friday, 14-Jul-17 02:41:00",
    "asctime-date with a zone": "Fri Jul 14 02:41:00 2017 GMT",
    "asctime-date with a zero": "Fri Jul 04 02:41:00 2017",
    "asctime-date with a comma": "Fri, Jul 14 02:41:00 2017",
    "asctime-date without padding": "Fri Aug 4 02:41:00 2017",
    "digits of another script": "Fri, \u00b9\u00b2 Jul 2017 02:41:00 GMT",
}


@pytest.mark.parametrize("date", [pytest.param(date, id=name) for name, date in INVALID.items()])
async def test_invalid_expires(date: str) -> None:
    """What is no date in Expires is in the past, and no heuristic takes its place (§5.3, §4.2.2)."""
    await assert_fresh_for(0, f"Expires: {date}", "Last-Modified: {now-1000000}")


@pytest.mark.parametrize(
    ("lines", "seconds"),
    [
        pytest.param(["Expires: {now+60}", "Date: {now}"], 60, id="now"),
        pytest.param(["Expires: {now+60}", "Date: {now-30}"], 60, id="past: longer, and older by as much"),
        pytest.param(["Expires: {now+60}", "Date: {now+20}"], 40, id="ahead: shorter"),
        pytest.param(["Expires: {now+60}", "Date: {now+60}"], 0, id="ahead as far as Expires"),
        pytest.param(["Expires: {now+60}", "Date: {now+90}"], 0, id="after Expires"),
        pytest.param(["Expires: {now-60}", "Date: {now-90}"], 0, id="both past"),
        pytest.param(["Expires: {now+60}", "Date: x"], 60, id="invalid"),
        pytest.param(["Expires: {now+60}"], 60, id="none"),
        pytest.param([FRESH, "Date: {now}"], 60, id="max-age, now"),
        pytest.param([FRESH, "Date: {now-30}"], 30, id="max-age, past"),
        pytest.param([FRESH, "Date: {now-59}"], 1, id="max-age, a second before the edge"),
        pytest.param([FRESH, "Date: {now-60}"], 0, id="max-age, at the edge"),
        pytest.param([FRESH, "Date: {now+600}"], 60, id="max-age, ahead: never younger than nothing"),
        pytest.param([FRESH, "Date: Friday, 14-Jul-17 02:39:30 GMT"], 30, id="max-age, rfc850-date"),
        pytest.param([FRESH, "Date: Fri Jul 14 02:39:30 2017"], 30, id="max-age, asctime-date"),
        pytest.param([FRESH, "Date: Fri, 14 Jul 2017 02:39:30 UTC"], 60, id="max-age, invalid"),
        pytest.param([FRESH, "Date: {now-30}", "Date: {now-30}"], 60, id="max-age, twice: as if invalid"),
        pytest.param([FRESH], 60, id="max-age, none"),
    ],
)
async def test_date(lines: list[str], seconds: int) -> None:
    """Date is what Expires and the age are reckoned from, and without one the time of receipt (§4.2.1, §4.2.3)."""
    await assert_fresh_for(seconds, *lines)


@pytest.mark.parametrize(
    ("lines", "seconds"),
    [
        pytest.param(["Age: 0"], 60, id="nothing"),
        pytest.param(["Age: 20"], 40, id="some"),
        pytest.param(["Age: 020"], 40, id="a leading zero"),
        pytest.param(["Age: 59"], 1, id="a second before the edge"),
        pytest.param(["Age: 60"], 0, id="at the edge"),
        pytest.param(["Age: 2147483647"], 0, id="below 2 ** 31"),
        pytest.param(["Age: 2147483648"], 0, id="2 ** 31"),
        pytest.param(["Age: 4294967296"], 0, id="2 ** 32"),
        pytest.param(["Age: " + "9" * 99], 0, id="huge"),
        pytest.param(["Age: 20, 50"], 40, id="the first of a list"),
        pytest.param(["Age: 20", "Age: 50"], 40, id="the first of two lines"),
        pytest.param(["Age: 20, x"], 40, id="a list with what is none"),
        pytest.param(["Age: x, 20"], 60, id="a list that begins with what is none"),
        pytest.param(["Age: -20"], 60, id="negative"),
        pytest.param(["Age: +20"], 60, id="with a plus"),
        pytest.param(["Age: 20.0"], 60, id="a fraction"),
        pytest.param(['Age: "20"'], 60, id="quoted"),
        pytest.param(["Age: 20;x=1"], 60, id="a parameter"),
        pytest.param(["Age: 20 s"], 60, id="a unit"),
        pytest.param(["Age:"], 60, id="empty"),
        pytest.param(["Age: 20", "Date: {now-50}"], 10, id="less than Date says"),
        pytest.param(["Age: 50", "Date: {now-20}"], 10, id="more than Date says"),
    ],
)
async def test_age(lines: list[str], seconds: int) -> None:
    """Age is what a response begins with, its first member if it is seconds, and else nothing (§4.2.3, §5.1)."""
    await assert_fresh_for(seconds, FRESH, *lines)


@pytest.mark.parametrize(
    ("lines", "after", "expected"),
    [
        pytest.param([], 0, "0", id="at once"),
        pytest.param([], 59, "59", id="in the last second"),
        pytest.param([], 9.9, "9", id="whole seconds"),
        pytest.param(["Age: 20"], 5, "25", id="Age and what follows"),
        pytest.param(["Age: 20, 1"], 5, "25", id="one value of a list"),
        pytest.param(["Age: 20", "Date: {now-30}"], 5, "35", id="Date says more"),
        pytest.param(["Date: {now+30}"], 5, "5", id="Date is ahead"),
        pytest.param(["Age: -20"], 5, "5", id="what is no Age"),
    ],
)
async def test_age_is_generated(lines: list[str], after: float, expected: str) -> None:
    """A hit has one Age, its age at that moment, in place of those that it was stored with (§4, §5.1)."""
    answer = await asked_twice(Origin().says(FRESH, *lines), after=after)
    assert (is_hit(answer), answer.headers.get_list("age")) == (True, [expected])


@pytest.mark.parametrize(("lines", "left"), [([], 50), (["Age: 20"], 30), (["Date: {now-20}"], 30)])
async def test_a_slow_answer(lines: list[str], left: int) -> None:
    """The time from the request to the answer counts as age (§4.2.3)."""

    class Slow(Origin):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            async def slowly(message: Any) -> None:
                self.clock.advance(5)
                await send(message)

            await super().__call__(scope, receive, slowly)

    for after, fresh in ((left - 1, True), (left, False)):
        assert is_hit(await asked_twice(Slow().says(FRESH, *lines), after=after)) is fresh


@pytest.mark.parametrize(
    ("lines", "seconds"),
    [
        pytest.param(["Last-Modified: {now-1000}"], 100, id="a tenth"),
        pytest.param(["Last-Modified: {now-1000}", "Date: {now}"], 100, id="a tenth before Date"),
        pytest.param(["Last-Modified: {now-1000}", "Date: {now-60}"], 34, id="as old as Date says"),
        pytest.param(["Last-Modified: {now-1000}", "Age: 60"], 40, id="as old as Age says"),
        pytest.param(["Last-Modified: {now-1000}", "Cache-Control: x"], 100, id="an unknown directive"),
        pytest.param(["Last-Modified: {now-1000}", "Cache-Control: must-revalidate"], 100, id="must-revalidate"),
        pytest.param(["Last-Modified: {now-1000}", "Pragma: no-cache"], 100, id="Pragma in a response"),
        pytest.param(["Last-Modified: {now-1000}", "Cache-Control: no-cache"], 0, id="no-cache"),
        pytest.param(["Last-Modified: {now-1000}", "Cache-Control: max-age=0"], 0, id="an explicit lifetime"),
        pytest.param(["Last-Modified: {now-1000}", "Cache-Control: max-age=x"], 0, id="one that is none"),
        pytest.param(["Last-Modified: {now-1000}", "Expires: {now-9}"], 0, id="Expires in the past"),
        pytest.param(["Last-Modified: {now}"], 0, id="modified just now"),
        pytest.param(["Last-Modified: {now+1000}"], 0, id="modified in the future"),
        pytest.param(["Last-Modified: x"], 0, id="what is no date"),
        pytest.param(["Last-Modified: {now-1000}", "Last-Modified: {now-9}"], 0, id="two dates"),
        pytest.param(['ETag: "a"'], 0, id="none"),
    ],
)
async def test_heuristic(lines: list[str], seconds: int) -> None:
    """Without explicit expiration a response is fresh for a tenth of its age since Last-Modified (§4.2.2)."""
    await assert_fresh_for(seconds, *lines)


async def test_heuristic_with_a_query() -> None:
    """A heuristic applies to URIs with a query as well (§4.2.2)."""
    origin = Origin().says("Last-Modified: {now-1000}")
    async with origin.cached() as client:
        await client.get(f"{URL}?a=1")
        assert is_hit(await client.get(f"{URL}?a=1"))


@pytest.mark.parametrize("zone", ["America/Los_Angeles", "Asia/Kolkata"])
async def test_time_zone(zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time zone of this machine changes no age and no expiration (§4.2)."""
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        await assert_fresh_for(40, f"Expires: {IN_A_MINUTE}", "Age: 20")
        await assert_fresh_for(60, "Expires: Fri Jul 14 02:41:00 2017", "Date: Fri Jul 14 02:39:00 2017")
    finally:
        monkeypatch.undo()
        time.tzset()

"""Dates, ages and lifetimes are reckoned as RFC 9111 §4.2 writes it."""

from __future__ import annotations

import calendar
import time
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app_cache.rules.directives import LONGEST, response_directives
from app_cache.rules.freshness import (
    age_value,
    current_age,
    date_value,
    explicit_lifetime,
    heuristic_lifetime,
    parse_http_date,
    single_date,
)
from tests.rules.samples import NOW, fields, http_date, response, stored
from tests.timing import assert_within

THE_EXAMPLE = 784_111_777.0
"""Sun, 06 Nov 1994 08:49:37 GMT, the example of RFC 9110 §5.6.7."""
DAY = 86_400.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        pytest.param("Sun, 06 Nov 1994 08:49:37 GMT", THE_EXAMPLE, id="IMF-fixdate"),
        pytest.param("Sunday, 06-Nov-94 08:49:37 GMT", THE_EXAMPLE, id="rfc850-date"),
        pytest.param("Sun Nov  6 08:49:37 1994", THE_EXAMPLE, id="asctime-date"),
        pytest.param("Sun Nov 06 08:49:37 1994", THE_EXAMPLE, id="asctime-date, two digits"),
        pytest.param("Thu, 01 Jan 1970 00:00:00 GMT", 0.0, id="the epoch"),
        pytest.param("Sat, 31 Dec 2016 23:59:60 GMT", 1_483_228_800.0, id="leap second"),
        pytest.param("Thu, 29 Feb 2024 00:00:00 GMT", 1_709_164_800.0, id="leap day"),
        pytest.param("Fri, 31 Dec 9999 23:59:59 GMT", 253_402_300_799.0, id="the last"),
        pytest.param("Mon, 06 Nov 1994 08:49:37 GMT", THE_EXAMPLE, id="another day of the week"),
        pytest.param("sun, 06 NOV 1994 08:49:37 gmt", THE_EXAMPLE, id="IMF-fixdate in another case"),
        pytest.param("SUNDAY, 06-nov-94 08:49:37 Gmt", THE_EXAMPLE, id="rfc850-date in another case"),
        pytest.param("sUN nOV  6 08:49:37 1994", THE_EXAMPLE, id="asctime-date in another case"),
    ],
)
def test_dates(text: str, seconds: float) -> None:
    """A date is read in the three formats of RFC 9110 §5.6.7, and in any case (RFC 9111 §4.2)."""
    assert parse_http_date(text, NOW) == seconds


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("0", id="zero"),
        pytest.param("-1", id="negative"),
        pytest.param("784111777", id="epoch seconds"),
        pytest.param("1994-11-06T08:49:37Z", id="ISO 8601"),
        pytest.param("Sun, 6 Nov 1994 08:49:37 GMT", id="one digit"),
        pytest.param("Sun, 06 Nov 94 08:49:37 GMT", id="two digits of year"),
        pytest.param("Sunday, 06-Nov-1994 08:49:37 GMT", id="rfc850-date with four digits of year"),
        pytest.param("Sun, 06 Nov 1994 08:49:37 UTC", id="UTC"),
        pytest.param("Sun, 06 Nov 1994 08:49:37 EST", id="zone"),
        pytest.param("Sun, 06 Nov 1994 08:49:37 +0000", id="offset"),
        pytest.param("Sun, 06 Nov 1994 08:49:37", id="no zone"),
        pytest.param("06 Nov 1994 08:49:37 GMT", id="no day of the week"),
        pytest.param("Sun, 06 Nov 1994 8:49:37 GMT", id="one digit of hour"),
        pytest.param("Sun, 06 Nov 1994 08:49 GMT", id="no seconds"),
        pytest.param("Sun, 06 Nov 1994 08:49:37.5 GMT", id="fraction"),
        pytest.param("Sun,  06 Nov 1994 08:49:37 GMT", id="two blanks"),
        pytest.param("Sun, 06-Nov-1994 08:49:37 GMT", id="dashes"),
        pytest.param("Sun, 06 Nov 1994 08:49:37 GMT ", id="blank last"),
        pytest.param("Sun, 06 Nov 1994 08:49:37 GMT\n", id="newline last"),
        pytest.param("Sun, 06 Nov 1994 08:49:37 GMT, Sun, 06 Nov 1994 08:49:37 GMT", id="two"),
        pytest.param("Son, 06 Nov 1994 08:49:37 GMT", id="no day's name"),
        pytest.param("Sun, 06 Nov 1994 08:49:37 GMTX", id="more"),
        pytest.param("Sun, 06 Okt 1994 08:49:37 GMT", id="no month's name"),
        pytest.param("Sun, 00 Nov 1994 08:49:37 GMT", id="day 0"),
        pytest.param("Sun, 31 Nov 1994 08:49:37 GMT", id="day 31 of 30"),
        pytest.param("Wed, 29 Feb 2023 00:00:00 GMT", id="no leap year"),
        pytest.param("Sun, 06 Nov 0000 08:49:37 GMT", id="year 0"),
        pytest.param("Sun, 06 Nov 1994 24:00:00 GMT", id="hour 24"),
        pytest.param("Sun, 06 Nov 1994 08:60:37 GMT", id="minute 60"),
        pytest.param("Sun, 06 Nov 1994 08:49:61 GMT", id="second 61"),
        pytest.param("Sun, \u0660\u0666 Nov 1994 08:49:37 GMT", id="digits not in ASCII"),
        pytest.param("\u017fun, 06 Nov 1994 08:49:37 GMT", id="a letter that folds into ASCII"),
    ],
)
def test_no_dates(text: str) -> None:
    """What is in none of the three formats is no date, nor is a day or an hour that there is not."""
    assert parse_http_date(text, NOW) is None


@pytest.mark.parametrize(
    ("day", "year"),
    [
        pytest.param("14-Jul-17", 2017, id="today"),
        pytest.param("01-Jan-18", 2018, id="ahead"),
        pytest.param("13-Jul-67", 2067, id="50 years ahead but for a day"),
        pytest.param("15-Jul-67", 1967, id="50 years ahead and a day"),
        pytest.param("01-Jan-68", 1968, id="next year of the last century"),
        pytest.param("31-Dec-99", 1999, id="last century"),
        pytest.param("01-Jan-00", 2000, id="year 00"),
    ],
)
def test_centuries(day: str, year: int) -> None:
    """A year of two digits that would be more than 50 years ahead is one in the past (RFC 9110 §5.6.7)."""
    seconds = parse_http_date(f"Friday, {day} 00:00:00 GMT", NOW)
    assert seconds is not None
    assert time.gmtime(seconds).tm_year == year


@given(st.integers(calendar.timegm((1, 1, 1, 0, 0, 0)), calendar.timegm((9999, 12, 31, 23, 59, 59))))
def test_dates_return(seconds: int) -> None:
    """Every second of every year is read back from the formats that can write it."""
    moment = time.gmtime(seconds)
    year = f"{moment.tm_year:04}"
    assert parse_http_date(time.strftime(f"%a, %d %b {year} %H:%M:%S GMT", moment), NOW) == seconds
    assert parse_http_date(time.strftime(f"%a %b %e %H:%M:%S {year}", moment), NOW) == seconds


FORMATS = ("%a, %d %b {year:04} %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S {year:04}")


@st.composite
def nearly_dates(draw: st.DrawFn) -> str:
    """Give a date in one of the three formats, a few characters of it changed."""
    moment = time.gmtime(draw(st.integers(-(10**10), 10**11)))
    text = time.strftime(draw(st.sampled_from(FORMATS)).format(year=moment.tm_year), moment)
    for at in draw(st.lists(st.integers(0, len(text)), max_size=3)):
        text = text[:at] + draw(st.sampled_from([*"0123456789 :,-+GmtSN", "", "Feb", "\u0661"])) + text[at + 1 :]
    return text


@settings(max_examples=300)
@given(nearly_dates(), st.integers(0, 10**10))
def test_dates_by_the_grammar(text: str, now: int) -> None:
    """A text is a date just if the grammar of RFC 9110 §5.6.7 makes it, and then the second that it names."""
    assert parse_http_date(text, now) == date_by_rule(text, now)


@given(st.integers(0, calendar.timegm((9999, 12, 31, 23, 59, 59))))
def test_dates_as_the_library_reads_them(seconds: int) -> None:
    """Dates that other programs write are read as others read them."""
    text = http_date(seconds)
    assert parse_http_date(text, NOW) == parsedate_to_datetime(text).timestamp() == seconds


def date_by_rule(text: str, now: float) -> float | None:
    """Return what *text* means, piece by piece: what cannot be a piece of its format makes it no date."""
    day_name, _, rest = text.partition(" ")
    parts = rest.split(" ")
    if day_name.endswith(",") and len(parts) == 5:  # day SP month SP year SP time SP "GMT"
        day, month, year, clock, zone = parts
        names, sizes = days("Mon Tue Wed Thu Fri Sat Sun", ","), (2, 4)
    elif day_name.endswith(",") and len(parts) == 3 and parts[0].count("-") == 2:  # day "-" month "-" year SP time
        (day, month, year), clock, zone = parts[0].split("-"), parts[1], parts[2]
        names, sizes = days("Monday Tuesday Wednesday Thursday Friday Saturday Sunday", ","), (2, 2)
    elif len(parts) == 5 and not parts[1]:  # month SP SP digit SP time SP year
        month, _, day, clock, year = parts
        names, sizes, zone = days("Mon Tue Wed Thu Fri Sat Sun", ""), (1, 4), "GMT"
    elif len(parts) == 4:
        month, day, clock, year = parts
        names, sizes, zone = days("Mon Tue Wed Thu Fri Sat Sun", ""), (2, 4), "GMT"
    else:
        return None
    months = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
    numbers = [day, year, *clock.split(":")]
    wanted = [*sizes, 2, 2, 2]
    if [len(number) for number in numbers] != wanted or any(c not in "0123456789" for c in "".join(numbers)):
        return None
    if not text.isascii() or day_name.lower() not in names or month.lower() not in months or zone.lower() != "gmt":
        return None
    hour, minute, second = map(int, numbers[2:])
    return second_of(int(year), len(year), months.index(month.lower()) + 1, int(day), (hour, minute, second), now)


def days(names: str, end: str) -> list[str]:
    """Return the names of days with what follows each."""
    return [name.lower() + end for name in names.split()]


def second_of(
    year: int, digits: int, month: int, day: int, clock: tuple[int, int, int], now: float
) -> float | None:
    """Return the second that a calendar gives, None if it has no such day; a leap second is the next one."""
    hour, minute, second = clock
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    try:
        if digits == 2:
            today = epoch + timedelta(seconds=now)
            year += today.year // 100 * 100
            later = (year, month, day, *clock) > (today.year + 50, *today.timetuple()[1:6])
            year -= 100 if later else 0
        start = datetime(year, month, day, hour, minute, tzinfo=UTC)
    except ValueError:
        return None
    return (start - epoch).total_seconds() + second if second <= 60 else None


@given(st.text("SunFrida, 0169NovGMT:-") | st.text(), st.floats(0, 1e11))
def test_dates_of_anything(text: str, now: float) -> None:
    """No text raises, at whatever time."""
    parse_http_date(text, now)


@pytest.mark.parametrize(
    ("lines", "seconds"),
    [
        pytest.param([], None, id="absent"),
        pytest.param([f"Expires: {http_date(NOW)}"], NOW, id="one"),
        pytest.param([f"Expires: {http_date(NOW)}"] * 2, None, id="two of the same"),
        pytest.param(["Expires: 0"], None, id="no date"),
    ],
)
def test_single_date(lines: list[str], seconds: float | None) -> None:
    """A date is that of a field which is there once, and is one."""
    assert single_date(fields(*lines), b"expires", NOW) == seconds


@pytest.mark.parametrize(
    ("lines", "seconds"),
    [
        pytest.param([f"Date: {http_date(NOW - 9)}"], NOW - 9, id="there"),
        pytest.param([], NOW, id="absent"),
        pytest.param(["Date: yesterday"], NOW, id="no date"),
    ],
)
def test_date_value(lines: list[str], seconds: float) -> None:
    """A response without a Date has that of its reception (RFC 9110 §6.6.1)."""
    assert date_value(fields(*lines), NOW) == seconds


@pytest.mark.parametrize(
    ("lines", "seconds"),
    [
        pytest.param([], 0, id="absent"),
        pytest.param(["Age: 7"], 7, id="one"),
        pytest.param(["Age: 7, 9"], 7, id="the first of a list"),
        pytest.param(["Age: 7", "Age: 9"], 7, id="the first of two lines"),
        pytest.param(["Age: ", "Age: 9"], 9, id="an empty line is no member"),
        pytest.param(["Age: x, 9"], 0, id="the first is none"),
        pytest.param(["Age: -1"], 0, id="negative"),
        pytest.param(["Age: 7.5"], 0, id="decimal"),
        pytest.param(["Age: 99999999999999"], LONGEST, id="too great"),
    ],
)
def test_age_value(lines: list[str], seconds: int) -> None:
    """Of Age the first member counts, and one that is no number of seconds is ignored (§5.1)."""
    assert age_value(fields(*lines)) == seconds


DATED = f"Date: {http_date(NOW)}"


@pytest.mark.parametrize(
    ("lines", "seconds"),
    [
        pytest.param([], None, id="nothing"),
        pytest.param(["Cache-Control: public"], None, id="no time said"),
        pytest.param(["Cache-Control: s-maxage=1, max-age=2"], 1.0, id="s-maxage before max-age"),
        pytest.param(["Cache-Control: max-age=2, s-maxage=1"], 1.0, id="in any order"),
        pytest.param(["Cache-Control: s-maxage=0, max-age=2"], 0.0, id="s-maxage of nothing"),
        pytest.param(["Cache-Control: s-maxage=x, max-age=2"], 0.0, id="s-maxage that cannot be read"),
        pytest.param(
            ["Cache-Control: max-age=2", DATED, f"Expires: {http_date(NOW + 9)}"], 2.0, id="max-age before Expires"
        ),
        pytest.param(
            ["Cache-Control: max-age=0", DATED, f"Expires: {http_date(NOW + 9)}"], 0.0, id="max-age of nothing"
        ),
        pytest.param(
            ["Cache-Control: max-age=x", DATED, f"Expires: {http_date(NOW + 9)}"],
            0.0,
            id="max-age that cannot be read",
        ),
        pytest.param([DATED, f"Expires: {http_date(NOW + 9)}"], 9.0, id="Expires minus Date"),
        pytest.param(
            [f"Date: {http_date(NOW - 5)}", f"Expires: {http_date(NOW + 9)}"], 14.0, id="an earlier Date"
        ),
        pytest.param([f"Expires: {http_date(NOW + 9)}"], 9.0, id="Expires without Date"),
        pytest.param(["Date: x", f"Expires: {http_date(NOW + 9)}"], 9.0, id="Expires with a Date that is none"),
        pytest.param([DATED, f"Expires: {http_date(NOW - 9)}"], 0.0, id="Expires in the past"),
        pytest.param([DATED, "Expires: 0"], 0.0, id="Expires of 0"),
        pytest.param([DATED, "Expires:"], 0.0, id="Expires of nothing"),
        pytest.param([DATED, *[f"Expires: {http_date(NOW + 9)}"] * 2], 0.0, id="Expires twice"),
        pytest.param(["Cache-Control: max-age=99999999999"], 2147483648.0, id="the longest"),
        pytest.param(
            ["Cache-Control: public", DATED, f"Expires: {http_date(NOW + 9)}"], 9.0, id="Expires beside directives"
        ),
    ],
)
def test_explicit_lifetime(lines: list[str], seconds: float | None) -> None:
    """It is the first of s-maxage, max-age and Expires minus Date, and 0 if that is not valid (§4.2.1)."""
    headers = fields(*lines)
    assert explicit_lifetime(response_directives(headers), headers, NOW) == seconds


MODIFIED = f"Last-Modified: {http_date(NOW - 10 * DAY)}"


@pytest.mark.parametrize(
    ("status", "lines", "seconds"),
    [
        pytest.param(200, [DATED, MODIFIED], DAY, id="a tenth"),
        pytest.param(200, [MODIFIED], DAY, id="without Date"),
        pytest.param(200, [f"Date: {http_date(NOW - 5 * DAY)}", MODIFIED], DAY / 2, id="an earlier Date"),
        pytest.param(404, [DATED, MODIFIED], DAY, id="another cacheable status"),
        pytest.param(501, [DATED, MODIFIED], DAY, id="an error that is cacheable"),
        pytest.param(302, [DATED, MODIFIED], None, id="a status that is not"),
        pytest.param(206, [DATED, MODIFIED], None, id="a part"),
        pytest.param(302, [DATED, MODIFIED, "Cache-Control: public"], DAY, id="a status that is said to be"),
        pytest.param(200, [DATED], 0.0, id="nothing tells"),
        pytest.param(200, [DATED, "Last-Modified: x"], 0.0, id="no date"),
        pytest.param(200, [DATED, MODIFIED, MODIFIED], 0.0, id="twice"),
        pytest.param(200, [DATED, f"Last-Modified: {http_date(NOW + DAY)}"], 0.0, id="in the future"),
    ],
)
def test_heuristic_lifetime(status: int, lines: list[str], seconds: float | None) -> None:
    """What states no lifetime and may be cached is fresh for a tenth of the time since it changed (§4.2.2)."""
    head = response(*lines, status=status)
    lifetime = heuristic_lifetime(head, response_directives(head.headers), NOW)
    assert lifetime == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("lines", "delay", "resident", "age"),
    [
        pytest.param([], 0, 0, 0, id="new"),
        pytest.param([], 0, 7, 7, id="resident_time"),
        pytest.param([DATED], 0, 7, 7, id="a Date of now"),
        pytest.param([f"Date: {http_date(NOW - 10)}"], 0, 7, 17, id="apparent_age"),
        pytest.param([f"Date: {http_date(NOW + 10)}"], 0, 7, 7, id="apparent_age is never negative"),
        pytest.param(["Age: 5"], 0, 7, 12, id="age_value"),
        pytest.param(["Age: 5"], 2, 7, 14, id="response_delay"),
        pytest.param([], 2, 7, 9, id="response_delay alone"),
        pytest.param(["Age: 5", f"Date: {http_date(NOW - 6)}"], 2, 7, 14, id="corrected_age_value is the greater"),
        pytest.param(["Age: 5", f"Date: {http_date(NOW - 9)}"], 2, 7, 16, id="apparent_age is the greater"),
        pytest.param(["Age: x"], 0, 7, 7, id="an Age that is none"),
        pytest.param(["Age: 5"], 0, -100, 5, id="a clock that went back while it was kept"),
        pytest.param(["Age: 5"], -100, 7, 12, id="a clock that went back while it was fetched"),
        pytest.param(["Age: 2147483648"], 2, 7, LONGEST, id="an overflow"),
        pytest.param([], 0, 1e11, LONGEST, id="a clock that went ahead"),
    ],
)
def test_current_age(lines: list[str], delay: float, resident: float, age: float) -> None:
    """The age is the greater of apparent_age and corrected_age_value, plus resident_time (§4.2.3)."""
    assert current_age(stored(*lines, delay=delay), NOW + resident) == age


@given(st.integers(0, 2**33), st.floats(-1e6, 1e6), st.floats(-1e6, 1e10), st.floats(-1e6, 1e10))
def test_age_grows(value: int, delay: float, one: float, other: float) -> None:
    """The age is never below zero or the Age received, and as time passes never less than before."""
    response = stored(f"Age: {value}", delay=delay)
    earlier, later = (current_age(response, NOW + resident) for resident in sorted([one, other]))
    assert min(value, LONGEST) <= earlier <= later <= LONGEST


@given(
    st.lists(
        st.sampled_from(["Age: 9", "Age: x", f"Date: {http_date(NOW - 50)}", f"Date: {http_date(NOW + 50)}"])
    ),
    st.floats(0, 100),
    st.lists(st.floats(0, 1e10), min_size=2, max_size=6),
)
def test_age_by_the_formula(lines: list[str], delay: float, moments: list[float]) -> None:
    """An age is never less than the time since, never falls, and grows as the clock does (§4.2.3)."""
    response = stored(*lines, delay=delay)
    moments.sort()
    ages = [current_age(response, NOW + moment) for moment in moments]
    assert ages == sorted(ages)
    for moment, age in zip(moments, ages, strict=True):
        assert age >= min(moment + delay, LONGEST) - 1e-5
        assert age == pytest.approx(min(ages[0] + moment - moments[0], LONGEST), abs=1e-5)


@pytest.mark.alone
@pytest.mark.parametrize(
    "text",
    [
        pytest.param("Sun, " * 40_000, id="days"),
        pytest.param("Sunday, 06-Nov-" * 13_000, id="obsolete days"),
        pytest.param("Sun Nov " + " " * 200_000, id="blanks"),
        pytest.param("Sun, 06 Nov 1994 08:49:37 GMT" + "0" * 200_000, id="digits"),
    ],
)
def test_time(text: str) -> None:
    """A text of 200 KB is found to be no date in time in proportion to it: some ms, at most 500 here."""
    assert_within(0.5, parse_http_date, text, NOW)
    assert_within(0.5, explicit_lifetime, response_directives(()), fields(f"Expires: {text}"), NOW)
    assert_within(0.5, age_value, fields(f"Age: {text}"))

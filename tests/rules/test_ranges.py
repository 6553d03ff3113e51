"""Parts are taken of a stored 200 as RFC 9110 §14 writes it, if it is what If-Range names (§13.1.5)."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app_cache.rules.messages import Answer, field_lines
from app_cache.rules.ranges import UNSATISFIABLE, if_range_holds, ranged, wanted_range
from tests.rules.samples import NOW, fields, http_date, request, stored
from tests.timing import assert_within

BYTES = bytes(range(250)) * 40
"""10,000 bytes, as in the examples of the RFC."""


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        pytest.param("bytes=0-499", range(500), id="the first 500"),
        pytest.param("bytes=500-999", range(500, 1000), id="the second 500"),
        pytest.param("bytes=-500", range(9500, 10_000), id="the final 500"),
        pytest.param("bytes=9500-", range(9500, 10_000), id="the final 500, from their first"),
        pytest.param("bytes=0-0,-1", None, id="the first and last: a gap"),
        pytest.param("bytes= 0-999, 4500-5499, -1000", None, id="the first, middle and last 1000: gaps"),
        pytest.param("bytes=500-600,601-999", range(500, 1000), id="the second 500, in two that touch"),
        pytest.param("bytes=500-700,601-999", range(500, 1000), id="the second 500, in two that overlap"),
        pytest.param("bytes=601-999,500-600", range(500, 1000), id="two that touch, the later first"),
        pytest.param("bytes=500-600,602-999", None, id="two with a gap of one"),
        pytest.param("bytes=0-999,100-199,1000-1000", range(1001), id="one within another"),
        pytest.param("bytes=0-9,0-9", range(10), id="one twice"),
        pytest.param("bytes=-1,0-", range(10_000), id="a suffix within all"),
        pytest.param("bytes=0-", range(10_000), id="all"),
        pytest.param("bytes=0-0", range(1), id="one byte"),
        pytest.param("bytes=9999-9999", range(9999, 10_000), id="the last byte"),
        pytest.param("bytes=-1", range(9999, 10_000), id="the last byte, as a suffix"),
        pytest.param("bytes=9999-10000", range(9999, 10_000), id="an end one beyond"),
        pytest.param("bytes=5-99999", range(5, 10_000), id="an end far beyond"),
        pytest.param("bytes=-10000", range(10_000), id="a suffix of all"),
        pytest.param("bytes=-10001", range(10_000), id="a suffix longer than all"),
        pytest.param("bytes=10000-", UNSATISFIABLE, id="a start one beyond"),
        pytest.param("bytes=10000-10001", UNSATISFIABLE, id="all beyond"),
        pytest.param("bytes=-0", UNSATISFIABLE, id="an empty suffix"),
        pytest.param("bytes=-0,10000-", UNSATISFIABLE, id="two that are not there"),
        pytest.param("bytes=-0,10000-,7-8", range(7, 9), id="one of three is there"),
        pytest.param("BYTES=0-1", range(2), id="the unit in any case"),
        pytest.param("bytes=007-008", range(7, 9), id="zeros first"),
        pytest.param("bytes=\t0-1 ,\t2-3 ", range(4), id="blanks around commas"),
        pytest.param("bytes=,0-1,, ,2-3,", range(4), id="empty members"),
        pytest.param(f"bytes={'9' * 5000}-", UNSATISFIABLE, id="a start with 5,000 digits"),
        pytest.param(f"bytes=1-{'9' * 5000}", range(1, 10_000), id="an end with 5,000 digits"),
        pytest.param(f"bytes=-{'9' * 5000}", range(10_000), id="a suffix with 5,000 digits"),
        pytest.param(f"bytes={'0' * 5000}1-{'0' * 4999}2", range(1, 3), id="5,000 zeros"),
        pytest.param(f"bytes=-{'0' * 5000}", UNSATISFIABLE, id="a suffix of 5,000 zeros"),
        pytest.param(f"bytes={'9' * 5000}-{'9' * 4999}8", None, id="backward by one, with 5,000 digits"),
        pytest.param("bytes=20000-10000", None, id="backward, beyond the end"),
        pytest.param("bytes=1-0", None, id="backward"),
        pytest.param("bytes=0-1,3-2", None, id="one of two is backward"),
        pytest.param("bytes=10-9,20000-", None, id="backward, and one that is not there"),
        pytest.param("items=0-1", None, id="another unit"),
        pytest.param("none=0-1", None, id="the unit none"),
        pytest.param("", None, id="empty"),
        pytest.param("bytes", None, id="no set"),
        pytest.param("bytes=", None, id="an empty set"),
        pytest.param("bytes=, ,", None, id="a set of empty members"),
        pytest.param("bytes=-", None, id="no number"),
        pytest.param("bytes=0", None, id="no end sign"),
        pytest.param("bytes=a-b", None, id="letters"),
        pytest.param("bytes=0-1-2", None, id="three numbers"),
        pytest.param("bytes=--1", None, id="two signs"),
        pytest.param("bytes=+1-2", None, id="a plus"),
        pytest.param("bytes=0 - 1", None, id="blanks within"),
        pytest.param("bytes =0-1", None, id="a blank after the unit"),
        pytest.param("bytes:0-1", None, id="another sign after the unit"),
        pytest.param("bytes=0-1;2-3", None, id="another separator"),
        pytest.param("bytes=0-1\n", None, id="a line feed"),
        pytest.param("bytes=\u0661-\u0662", None, id="digits of another script"),
        pytest.param("bytes=\u0661-", None, id="a digit of another script"),
        pytest.param('bytes="0-1"', None, id="quotes"),
        pytest.param("bytes=0-1,x", None, id="one of two is no range"),
    ],
)
def test_wanted_range(value: str, wanted: range | None) -> None:
    """A Range asks for bytes in one piece, for none that are there, or is ignored (§14.1.2, §14.2)."""
    assert wanted_range(value, 10_000) == wanted


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("bytes=0-", id="all of it"),
        pytest.param("bytes=-1", id="a suffix"),
        pytest.param("bytes=-0", id="an empty suffix"),
    ],
)
def test_no_content(value: str) -> None:
    """A Range of nothing is ignored (§14.2)."""
    assert wanted_range(value, 0) is None


def test_number_of_ranges() -> None:
    """A hundred ranges are read, and one more makes the Range be ignored; empty members do not count (§14.2)."""
    most = ",,".join(f"{n}-{n}" for n in range(100))
    assert wanted_range(f"bytes={most}", 10_000) == range(100)
    assert wanted_range(f"bytes={most},100-100", 10_000) is None


numbers = st.integers(0, 24) | st.integers(10**20, 10**20 + 3)
digits = st.builds("{}{}".format, st.text("0", max_size=2), numbers)
int_ranges = st.tuples(numbers, numbers).map(lambda pair: f"{min(pair)}-{max(pair)}")
range_specs = st.one_of(int_ranges, int_ranges, digits.map("{}-".format), digits.map("-{}".format))
commas = st.from_regex(r"[ \t]{0,2}(,[ \t]{0,2}){1,2}", fullmatch=True)
outer_commas = st.from_regex(r"[ \t]{0,2}(,[ \t]?)?", fullmatch=True)


@settings(max_examples=300)
@given(st.lists(range_specs, min_size=1, max_size=4), commas, outer_commas, st.integers(0, 20))
def test_wanted_range_by_positions(specs: list[str], comma: str, outer: str, length: int) -> None:
    """What is wanted is all positions that one of the ranges names, if no gap is between them."""
    positions = sorted({at for at in range(length) if any(names(spec, at, length) for spec in specs)})
    wanted = wanted_range(f"bytes={outer}{comma.join(specs)}{outer}", length)
    if length == 0 or positions != list(range(positions[0], positions[-1] + 1) if positions else []):
        assert wanted is None
    else:
        assert wanted == (range(positions[0], positions[-1] + 1) if positions else UNSATISFIABLE)


def names(spec: str, at: int, length: int) -> bool:
    """Return whether the byte *at* of *length* is one of those that *spec* names (§14.1.2)."""
    first, _, last = spec.partition("-")
    if not first:
        return at >= length - int(last)
    return int(first) <= at and (not last or at <= int(last))


RANGES = re.compile(r"bytes=[ \t,]*(\d+-\d*|-\d+)([ \t]*,[ \t,]*(\d+-\d*|-\d+))*[ \t,]*", re.IGNORECASE | re.ASCII)


@settings(max_examples=300)
@given(st.text("012-, \tx", max_size=12).map("bytes={}".format) | st.text(), st.integers(0, 20))
def test_wanted_range_of_anything(value: str, length: int) -> None:
    """No text raises, and what is no set of byte ranges is ignored."""
    wanted = wanted_range(value, length)
    assert wanted is None or RANGES.fullmatch(value) is not None


@pytest.mark.alone
@pytest.mark.parametrize(
    "value",
    [
        pytest.param("bytes=" + "0-1," * 50_000, id="ranges"),
        pytest.param("bytes=" + "," * 200_000 + "0-1", id="commas"),
        pytest.param("bytes=" + " " * 200_000 + "0-1", id="blanks"),
        pytest.param("bytes=0-" + "9" * 200_000, id="digits"),
        pytest.param("bytes=" + ("9" * 2_000 + "-" + "9" * 2_000 + ",") * 50, id="ranges of many digits"),
        pytest.param("bytes=" + "-" * 200_000, id="signs"),
        pytest.param("bytes=" + '"' * 200_000, id="quotes"),
    ],
)
def test_time(value: str) -> None:
    """A value of 200 KB is read in time in proportion to it: some 20 ms, at most 5 s here."""
    assert_within(5.0, wanted_range, value, 10_000)


THEN = http_date(NOW - 100)
DATED = f"Date: {http_date(NOW)}"


@pytest.mark.parametrize(
    ("value", "lines", "holds"),
    [
        pytest.param('"a"', ['ETag: "a"'], True, id="the tag"),
        pytest.param('"b"', ['ETag: "a"'], False, id="another tag"),
        pytest.param('"A"', ['ETag: "a"'], False, id="the tag in another case"),
        pytest.param('W/"a"', ['ETag: W/"a"'], False, id="the tag, both weak"),
        pytest.param('W/"a"', ['ETag: "a"'], False, id="the tag, asked weakly"),
        pytest.param('"a"', ['ETag: W/"a"'], False, id="the tag, stored weakly"),
        pytest.param('""', ['ETag: ""'], True, id="the empty tag"),
        pytest.param('"\xe9,!"', ['ETag: "\xe9,!"'], True, id="a tag of odd characters"),
        pytest.param('"a"', [], False, id="no tag stored"),
        pytest.param('"a"', ['ETag: "a"', 'ETag: "a"'], False, id="two tags stored"),
        pytest.param('"a", "b"', ['ETag: "a"'], False, id="a list of tags"),
        pytest.param('"a", "b"', ['ETag: "a", "b"'], False, id="a list of tags, stored too"),
        pytest.param('"a b"', ['ETag: "a b"'], False, id="a tag with a blank"),
        pytest.param("a", ["ETag: a"], False, id="a tag without quotes"),
        pytest.param('"a', ['ETag: "a'], False, id="a tag without end"),
        pytest.param("*", ['ETag: "a"'], False, id="any"),
        pytest.param("", ['ETag: "a"'], False, id="empty"),
        pytest.param(THEN, [f"Last-Modified: {THEN}", DATED], True, id="the date"),
        pytest.param(THEN, [f"Last-Modified: {THEN}", DATED, 'ETag: "a"'], True, id="the date, beside a tag"),
        pytest.param(http_date(NOW - 99), [f"Last-Modified: {THEN}", DATED], False, id="a later date"),
        pytest.param(http_date(NOW - 101), [f"Last-Modified: {THEN}", DATED], False, id="an earlier date"),
        pytest.param("Friday, 14-Jul-17 02:38:20 GMT", [f"Last-Modified: {THEN}", DATED], False, id="other words"),
        pytest.param(
            http_date(NOW - 60), [f"Last-Modified: {http_date(NOW - 60)}", DATED], True, id="a minute before Date"
        ),
        pytest.param(
            http_date(NOW - 59), [f"Last-Modified: {http_date(NOW - 59)}", DATED], False, id="59 s before Date"
        ),
        pytest.param(THEN, [f"Last-Modified: {THEN}", f"Date: {THEN}"], False, id="changed in the second of Date"),
        pytest.param(
            THEN, [f"Last-Modified: {THEN}", f"Date: {http_date(NOW - 200)}"], False, id="changed after Date"
        ),
        pytest.param(THEN, [f"Last-Modified: {THEN}"], True, id="the time received for Date"),
        pytest.param(http_date(NOW), [f"Last-Modified: {http_date(NOW)}"], False, id="changed when received"),
        pytest.param(THEN, [DATED], False, id="no date stored"),
        pytest.param(THEN, [f"Last-Modified: {THEN}"] * 2, False, id="two dates stored"),
        pytest.param("yesterday", ["Last-Modified: yesterday", DATED], False, id="what is no date, stored too"),
    ],
)
def test_if_range(value: str, lines: list[str], holds: bool) -> None:
    """If-Range names a version by a strong tag, or by a date that is the same and strong (§13.1.5, §8.8.2.2)."""
    assert if_range_holds(value, fields(*lines), NOW) is holds


TAGGED = ["Content-Type: text/plain", 'ETag: "a"', "X-A: 1", "x-a: 2"]
WHOLE = replace(stored(*TAGGED, "Vary: X-B", "Cache-Control: max-age=60", "Content-Length: 10000"), body=BYTES)


@pytest.mark.parametrize(
    ("value", "content_range", "body"),
    [
        pytest.param("bytes=0-499", "bytes 0-499/10000", BYTES[:500], id="the first 500"),
        pytest.param("bytes=500-999", "bytes 500-999/10000", BYTES[500:1000], id="the second 500"),
        pytest.param("bytes=500-", "bytes 500-9999/10000", BYTES[500:], id="all except for the first 500"),
        pytest.param("bytes=-500", "bytes 9500-9999/10000", BYTES[-500:], id="the last 500"),
        pytest.param("bytes=0-", "bytes 0-9999/10000", BYTES, id="all"),
        pytest.param("bytes=0-9,10-19", "bytes 0-19/10000", BYTES[:20], id="two that touch"),
    ],
)
def test_part(value: str, content_range: str, body: bytes) -> None:
    """A part is a 206 with all fields in order, its own length, and its place in the whole (§14.4, §15.3.7)."""
    part = ranged(request(f"Range: {value}"), WHOLE)
    assert part == Answer(
        206,
        fields(
            *TAGGED,
            "Vary: X-B",
            "Cache-Control: max-age=60",
            f"content-length: {len(body)}",
            f"content-range: {content_range}",
        ),
        body,
    )


def test_fields_of_all_the_content() -> None:
    """A part has no length, place or digest of other content than its own (§8.6, §14.4; RFC 9530 §2)."""
    response = stored(
        "CONTENT-RANGE: x", "Content-Digest: x", "Repr-Digest: y", "content-length: 4", "Content-Length: 4"
    )
    part = ranged(request("Range: bytes=1-2"), response)
    assert part == Answer(206, fields("Repr-Digest: y", "content-length: 2", "content-range: bytes 1-2/4"), b"od")


def test_unsatisfiable() -> None:
    """A 416 states the length, names the version, describes no content, and lets no cache store it (§15.5.17)."""
    response = replace(WHOLE, headers=(*WHOLE.headers, *fields("Expires: x", "Last-Modified: x", "Date: x")))
    refusal = ranged(request("Range: bytes=10000-"), response)
    assert refusal == Answer(
        416, fields('ETag: "a"', "Vary: X-B", "content-length: 0", "content-range: bytes */10000"), b""
    )


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        pytest.param(["Range: bytes=0-1"], 206, id="a range"),
        pytest.param(["RANGE: Bytes=0-1"], 206, id="a range in any case"),
        pytest.param([], None, id="no range"),
        pytest.param(["Range: bytes=0-0,-1"], None, id="ranges with a gap"),
        pytest.param(["Range: items=0-1"], None, id="another unit"),
        pytest.param(["Range: bytes=0-1", "Range: bytes=2-3"], None, id="two lines"),
        pytest.param(["Range: bytes=0-1", "Range: bytes=0-1"], None, id="two equal lines"),
        pytest.param(['If-Range: "a"'], None, id="a condition alone"),
        pytest.param(["Range: bytes=0-1", 'If-Range: "a"'], 206, id="this version"),
        pytest.param(["Range: bytes=0-1", 'If-Range: "b"'], None, id="another version"),
        pytest.param(["Range: bytes=0-1", "If-Range:"], None, id="an empty condition"),
        pytest.param(["Range: bytes=0-1", 'If-Range: "a"', 'If-Range: "a"'], None, id="two conditions"),
        pytest.param(["Range: bytes=10000-"], 416, id="none that is there"),
        pytest.param(["Range: bytes=10000-", 'If-Range: "a"'], 416, id="none that is there, of this version"),
        pytest.param(["Range: bytes=10000-", 'If-Range: "b"'], None, id="none that is there, of another version"),
    ],
)
def test_ranged(lines: list[str], status: int | None) -> None:
    """Range counts if it stands in one line and If-Range, where it is there, holds (§13.1.5, §14.2)."""
    answer = ranged(request(*lines), WHOLE)
    assert (answer and answer.status) == status


def test_if_range_by_date() -> None:
    """A date in If-Range is compared with that of the response, and its age with when it was received."""
    response = stored(f"Last-Modified: {THEN}")
    recent = replace(response, received_at=NOW - 99)
    asked = request("Range: bytes=0-1", f"If-Range: {THEN}")
    assert ranged(asked, response) is not None
    assert ranged(asked, recent) is None


@pytest.mark.parametrize("method", ["HEAD", "POST", "QUERY", "get"])
def test_other_methods(method: str) -> None:
    """Range is ignored but in a GET (§14.2)."""
    assert ranged(request("Range: bytes=0-1", method=method), WHOLE) is None


@pytest.mark.parametrize("status", [201, 203, 206, 301, 404])
def test_other_statuses(status: int) -> None:
    """Range is ignored where the answer is no 200 (§14.2)."""
    assert ranged(request("Range: bytes=0-1"), replace(WHOLE, status=status)) is None


@given(st.lists(range_specs, min_size=1, max_size=3), st.binary(max_size=20))
def test_parts_are_consistent(specs: list[str], body: bytes) -> None:
    """A part is what its Content-Range says of the body, as long as its Content-Length says (§14.4)."""
    answer = ranged(request(f"Range: bytes={','.join(specs)}"), replace(stored("Content-Length: 20"), body=body))
    if answer is None:
        return
    (content_range,) = field_lines(answer.headers, b"content-range")
    assert field_lines(answer.headers, b"content-length") == [str(len(answer.body))]
    if answer.status == 416:
        assert (content_range, answer.body) == (f"bytes */{len(body)}", b"")
    else:
        first, last, length = map(int, re.split("[-/]", content_range.removeprefix("bytes ")))
        assert (length, answer.body) == (len(body), body[first : last + 1])
        assert first <= last < length


@given(st.binary(max_size=20), st.binary(max_size=20), st.binary(max_size=20))
def test_ranged_of_anything(value: bytes, condition: bytes, stored_value: bytes) -> None:
    """No Range and no If-Range raises, whatever is stored."""
    names = (b"etag", b"last-modified", b"date", b"content-range")
    response = replace(WHOLE, headers=tuple((name, stored_value) for name in names))
    for start in (b"", b"bytes="):
        asked = request()
        ranged(replace(asked, headers=((b"range", start + value),)), response)
        ranged(replace(asked, headers=((b"range", b"bytes=0-1"), (b"if-range", condition))), response)

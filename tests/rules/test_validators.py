"""Preconditions are evaluated as RFC 9110 §13 writes it, for a cache (RFC 9111 §4.3)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app_cache.rules.messages import RequestHead
from app_cache.rules.validators import (
    entity_tag,
    fields_of_304,
    freshened,
    head_agrees,
    identifies,
    not_modified,
    validating_headers,
    weakly_equal,
)
from tests.rules.samples import NOW, fields, http_date, request, stored
from tests.timing import assert_within

TAG_CHARACTERS = "!#$%,W/\\az~\x80\xff"

entity_tags = st.builds(
    '{}"{}"'.format, st.sampled_from(["", "W/"]), st.text(TAG_CHARACTERS, min_size=0, max_size=4)
)


@pytest.mark.parametrize(
    ("lines", "tag"),
    [
        pytest.param([], None, id="absent"),
        pytest.param(['ETag: "a"'], '"a"', id="strong"),
        pytest.param(['ETag: W/"a"'], 'W/"a"', id="weak"),
        pytest.param(['ETag: ""'], '""', id="empty tag"),
        pytest.param(["ETag:"], None, id="empty field"),
        pytest.param(['ETag: "a"', 'ETag: "b"'], None, id="two"),
        pytest.param(["ETag: a"], "a", id="without quotes"),
    ],
)
def test_entity_tag(lines: list[str], tag: str | None) -> None:
    """A response has the entity tag that stands alone in its ETag, as it is (RFC 9110 §8.8.3)."""
    assert entity_tag(fields(*lines)) == tag


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        pytest.param('W/"1"', 'W/"1"', True, id="both weak"),
        pytest.param('W/"1"', 'W/"2"', False, id="both weak, others"),
        pytest.param('W/"1"', '"1"', True, id="one weak"),
        pytest.param('"1"', '"1"', True, id="both strong"),
        pytest.param('w/"1"', '"1"', False, id="a small w is no mark"),
        pytest.param('"a"', '"A"', False, id="case"),
        pytest.param('"W/"', '"', False, id="the mark in quotes"),
    ],
)
def test_weak_comparison(one: str, other: str, equal: bool) -> None:
    """Two entity tags are equal if they are but for being weak (RFC 9110 §8.8.3.2)."""
    assert weakly_equal(one, other) is equal
    assert weakly_equal(other, one) is equal


THEN = f"If-Modified-Since: {http_date(NOW - 100)}"
CHANGED_THEN = f"Last-Modified: {http_date(NOW - 100)}"
CHANGED_LATER = f"Last-Modified: {http_date(NOW - 99)}"


@pytest.mark.parametrize(
    ("asked", "stored_lines", "expected"),
    [
        pytest.param([], ['ETag: "a"', CHANGED_THEN], False, id="nothing asked"),
        pytest.param(['If-None-Match: "a"'], ['ETag: "a"'], True, id="the tag"),
        pytest.param(['If-None-Match: "b"'], ['ETag: "a"'], False, id="another tag"),
        pytest.param(['If-None-Match: W/"a"'], ['ETag: "a"'], True, id="the tag, asked weakly"),
        pytest.param(['If-None-Match: "a"'], ['ETag: W/"a"'], True, id="the tag, stored weakly"),
        pytest.param(['If-None-Match: "b", W/"a" ,"c"'], ['ETag: "a"'], True, id="one of a list"),
        pytest.param(['If-None-Match: "b","c"'], ['ETag: "a"'], False, id="none of a list"),
        pytest.param(['If-None-Match: "b"', 'If-None-Match: "a"'], ['ETag: "a"'], True, id="one of two lines"),
        pytest.param(['If-None-Match: "a, b"'], ['ETag: "a, b"'], True, id="a tag with a comma"),
        pytest.param(['If-None-Match: "a, b"'], ['ETag: "a"'], False, id="a part of a tag"),
        pytest.param([r'If-None-Match: "a\", "b"'], ['ETag: "b"'], True, id="a backslash escapes nothing"),
        pytest.param([r'If-None-Match: "a\", "b"'], [r'ETag: "a\"'], True, id="a tag with a backslash"),
        pytest.param(['If-None-Match: "a"'], [], False, id="no tag stored"),
        pytest.param(['If-None-Match: "a"'], ['ETag: "a"', 'ETag: "a"'], False, id="two tags stored"),
        pytest.param(["If-None-Match: a"], ['ETag: "a"'], False, id="a tag without quotes is another"),
        pytest.param(["If-None-Match: b, a"], ["ETag: a"], True, id="tags without quotes"),
        pytest.param(["If-None-Match: *"], ['ETag: "a"'], True, id="any"),
        pytest.param(["If-None-Match: *"], [], True, id="any, no tag stored"),
        pytest.param(['If-None-Match: "*"'], ['ETag: "a"'], False, id="a tag that is a star"),
        pytest.param(['If-None-Match: *, "b"'], ['ETag: "a"'], False, id="any in a list is no star"),
        pytest.param(["If-None-Match:"], ['ETag: ""'], False, id="an empty list"),
        pytest.param(['If-None-Match: ""'], ['ETag: ""'], True, id="the empty tag"),
        pytest.param([THEN], [CHANGED_THEN], True, id="not changed since"),
        pytest.param([THEN], [CHANGED_LATER], False, id="changed a second later"),
        pytest.param([THEN], [f"Date: {http_date(NOW - 100)}"], True, id="Date for Last-Modified"),
        pytest.param([THEN], [f"Date: {http_date(NOW - 99)}"], False, id="a later Date for Last-Modified"),
        pytest.param([THEN], [], False, id="the time received for Date"),
        pytest.param([f"If-Modified-Since: {http_date(NOW)}"], [], True, id="asked since it was received"),
        pytest.param(["If-Modified-Since: yesterday"], [CHANGED_THEN], False, id="no date"),
        pytest.param(
            [f"If-Modified-Since: {http_date(NOW)}, {http_date(NOW)}"], [CHANGED_THEN], False, id="two dates"
        ),
        pytest.param([f"If-Modified-Since: {http_date(NOW)}"] * 2, [CHANGED_THEN], False, id="two lines of dates"),
        pytest.param(
            ["If-Modified-Since: Friday, 14-Jul-17 02:39:00 GMT"], [CHANGED_THEN], True, id="an obsolete date"
        ),
        pytest.param(
            ['If-None-Match: "b"', THEN], ['ETag: "a"', CHANGED_THEN], False, id="the tag decides: changed"
        ),
        pytest.param(['If-None-Match: "a"', THEN], ['ETag: "a"', CHANGED_LATER], True, id="the tag decides: not"),
        pytest.param(
            ['If-None-Match: "a"', THEN], [CHANGED_THEN], False, id="the tag decides where none is stored"
        ),
        pytest.param(["If-None-Match:", THEN], [CHANGED_THEN], False, id="an empty list decides"),
    ],
)
def test_not_modified(asked: list[str], stored_lines: list[str], expected: bool) -> None:
    """If-None-Match decides by weak comparison, If-Modified-Since only without it (§13.1.2, §13.1.3, §13.2.2)."""
    assert not_modified(request(*asked), 200, fields(*stored_lines), NOW) is expected


@given(st.lists(entity_tags, min_size=1, max_size=4), entity_tags, st.sampled_from([", ", ",", " ,\t,"]))
def test_lists_of_tags(asked: list[str], tag: str, separator: str) -> None:
    """A list of entity tags matches just if one of them is equal."""
    condition = request(f"If-None-Match: {separator.join(asked)}")
    expected = any(each.removeprefix("W/") == tag.removeprefix("W/") for each in asked)
    assert not_modified(condition, 200, fields(f"ETag: {tag}"), NOW) is expected


@given(st.binary(max_size=40), st.binary(max_size=20))
def test_conditions_of_anything(condition: bytes, tag: bytes) -> None:
    """No condition raises, whatever is stored."""
    for name in (b"if-none-match", b"if-modified-since"):
        asked = RequestHead("GET", ((name, condition),))
        not_modified(asked, 200, ((b"etag", tag), (b"last-modified", tag), (b"date", tag)), NOW)


@pytest.mark.alone
@pytest.mark.parametrize(
    "value",
    [
        pytest.param('"a",' * 25_000, id="tags"),
        pytest.param('"' * 99_999, id="quotes"),
        pytest.param("W/" * 50_000, id="marks"),
        pytest.param(", " * 50_000, id="commas"),
        pytest.param('"' + "W/, " * 25_000, id="quotes not closed"),
    ],
)
def test_time(value: str) -> None:
    """A condition of 100 KB is evaluated in time in proportion to it: some 10 ms, at most 500 here."""
    assert_within(0.5, not_modified, request(f"If-None-Match: {value}"), 200, fields('ETag: "b"'), NOW)


@pytest.mark.parametrize(
    ("asked", "stored_lines", "sent"),
    [
        pytest.param(["A: 1"], ['ETag: "a"'], ["A: 1", 'if-none-match: "a"'], id="a tag"),
        pytest.param([], [CHANGED_THEN], [f"if-modified-since: {http_date(NOW - 100)}"], id="a date"),
        pytest.param(
            [],
            ['ETag: W/"a"', CHANGED_THEN],
            ['if-none-match: W/"a"', f"if-modified-since: {http_date(NOW - 100)}"],
            id="both",
        ),
        pytest.param(
            ['If-None-Match: "b"', THEN, "A: 1"],
            ['ETag: "a"'],
            ["A: 1", 'if-none-match: "a"'],
            id="not the client's",
        ),
        pytest.param(
            ["Range: bytes=0-1", 'If-Range: "b"'], ['ETag: "a"'], ['if-none-match: "a"'], id="all of it, no range"
        ),
        pytest.param(['If-None-Match: "b"'], [], None, id="no validator"),
        pytest.param([], ['ETag: "a"', 'ETag: "b"', CHANGED_THEN, CHANGED_LATER], None, id="two of each"),
    ],
)
def test_validating_headers(asked: list[str], stored_lines: list[str], sent: list[str] | None) -> None:
    """A stored response is validated by its own ETag and Last-Modified, in place of the client's (§4.3.1)."""
    expected = None if sent is None else fields(*sent)
    assert validating_headers(fields(*asked), fields(*stored_lines)) == expected


@pytest.mark.parametrize(
    ("before", "update", "after"),
    [
        pytest.param(["A: 1"], [], ["A: 1"], id="nothing new"),
        pytest.param(["A: 1", "B: 2"], ["b: 3"], ["A: 1", "b: 3"], id="replaced in any case"),
        pytest.param(["A: 1"], ["B: 2"], ["A: 1", "B: 2"], id="added"),
        pytest.param(["A: 1", "A: 2"], ["A: 3"], ["A: 3"], id="two lines by one"),
        pytest.param(["A: 1"], ["A: 2", "A: 3"], ["A: 2", "A: 3"], id="one line by two"),
        pytest.param(
            ["Content-Length: 9"], ["Content-Length: 0"], ["Content-Length: 9"], id="Content-Length stays"
        ),
        pytest.param(
            ["Content-Encoding: gzip"],
            ["Content-Encoding: br"],
            ["Content-Encoding: gzip"],
            id="so does the coding",
        ),
        pytest.param(["Content-Type: a/b"], ["Content-Type: c/d"], ["Content-Type: c/d"], id="the type does not"),
        pytest.param(
            ["A: 1"], ["Connection: b", "B: 2", "Keep-Alive: 5"], ["A: 1"], id="what is of one connection"
        ),
        pytest.param(["Age: 9", "Date: x"], ["Date: y"], ["Date: y"], id="a new Date"),
        pytest.param(["Age: 9"], ["Age: 3"], ["Age: 3"], id="a new Age"),
        pytest.param(["Date: x"], ["A: 1"], ["A: 1", f"date: {http_date(NOW)}"], id="no Date is that of now"),
    ],
)
def test_freshened(before: list[str], update: list[str], after: list[str]) -> None:
    """A 304 replaces the fields that it has, all lines of each, and leaves the others (§3.2)."""
    assert freshened(fields(*before), fields(*update), NOW) == fields(*after)


def test_a_tag_of_our_own() -> None:
    """A tag that the cache made is nothing that the handler knows (RFC 9111 §4.3.1)."""
    asked = validating_headers((), fields('ETag: "made"', CHANGED_THEN), made='"made"')
    assert asked == fields(f"if-modified-since: {http_date(NOW - 100)}")
    assert validating_headers((), fields('ETag: "made"'), made='"made"') is None


@pytest.mark.parametrize(
    ("update", "stored_lines", "expected"),
    [
        pytest.param(['ETag: "a"'], ['ETag: "a"'], True, id="the strong tag"),
        pytest.param(['ETag: "b"'], ['ETag: "a"'], False, id="another strong tag"),
        pytest.param(['ETag: "a"'], ['ETag: W/"a"'], False, id="a strong tag for a weak one"),
        pytest.param(['ETag: W/"a"'], ['ETag: "a"'], True, id="the tag, weakly"),
        pytest.param(['ETag: W/"b"'], ['ETag: "a"'], False, id="another tag, weakly"),
        pytest.param(['ETag: "a"'], [CHANGED_THEN], False, id="a tag where there was none"),
        pytest.param(['ETag: "a"', CHANGED_LATER], ['ETag: "a"', CHANGED_THEN], True, id="the tag, another date"),
        pytest.param([CHANGED_THEN], [CHANGED_THEN], True, id="the date"),
        pytest.param([CHANGED_LATER], [CHANGED_THEN], False, id="another date"),
        pytest.param([], ['ETag: "a"', CHANGED_THEN], True, id="no validator"),
    ],
)
def test_identifies(update: list[str], stored_lines: list[str], expected: bool) -> None:
    """A 304 is about the stored response whose strong validator, or else weak ones, it has (§4.3.4)."""
    assert identifies(fields(*update), fields(*stored_lines)) is expected


_tags = st.lists(st.sampled_from(['"a"', 'W/"a"', '"b"', 'W/"b"']), max_size=1)
_dates = st.lists(st.sampled_from([CHANGED_THEN, CHANGED_LATER]), max_size=2)


@settings(max_examples=300)
@given(_tags, _dates, _tags, _dates)
def test_identifies_by_the_rules(
    new_tags: list[str], new_dates: list[str], old_tags: list[str], old_dates: list[str]
) -> None:
    """Of the three rules of §4.3.4 the first that matches decides; Last-Modified counts as weak."""
    if any(not tag.startswith("W/") for tag in new_tags):
        expected = new_tags == old_tags
    elif new_tags:
        expected = [tag.removeprefix("W/") for tag in old_tags] == [tag.removeprefix("W/") for tag in new_tags]
    else:
        expected = not new_dates or new_dates == old_dates
    update = fields(*map("ETag: {}".format, new_tags), *new_dates)
    assert identifies(update, fields(*map("ETag: {}".format, old_tags), *old_dates)) is expected


@pytest.mark.parametrize(
    ("update", "stored_lines", "expected"),
    [
        pytest.param([], ['ETag: "a"'], None, id="nothing to tell by"),
        pytest.param(['ETag: "a"', CHANGED_THEN], ['ETag: "a"', CHANGED_THEN], True, id="the same validators"),
        pytest.param(['ETag: "b"'], ['ETag: "a"'], False, id="another tag"),
        pytest.param(['ETag: "a"'], [], False, id="a tag where there was none"),
        pytest.param(['ETag: "a"', CHANGED_LATER], ['ETag: "a"', CHANGED_THEN], False, id="another date"),
        pytest.param(["Content-Length: 4"], [], None, id="the length of the body"),
        pytest.param(["Content-Length: 5"], [], False, id="another length"),
        pytest.param(['ETag: "a"', "Content-Length: 5"], ['ETag: "a"'], False, id="the tag, another length"),
    ],
)
def test_head_agrees(update: list[str], stored_lines: list[str], expected: bool | None) -> None:
    """A HEAD agrees with a stored response in the validators that it has, and in length (§4.3.5)."""
    assert head_agrees(fields(*update), stored(*stored_lines)) is expected


def test_fields_of_304() -> None:
    """A 304 carries what guides caches, and nothing that describes the content (RFC 9110 §15.4.5)."""
    kept = [
        "Content-Location: /a",
        "Date: x",
        'ETag: "a"',
        "Vary: accept",
        "Cache-Control: max-age=1",
        "Expires: 0",
        "Last-Modified: x",
        "X-New: 1",
    ]
    dropped = ["Content-Length: 4", "Content-Type: a/b", "Content-Encoding: gzip", "CONTENT-LANGUAGE: de"]
    assert fields_of_304(fields(*dropped, *kept)) == fields(*kept)

"""Structured fields are parsed as RFC 8941 §4.2 writes it, and fail where it says so.

The package http-sf, by an author of the RFC, is asked for its opinion on whatever chance makes.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import http_sf
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from app_cache.rules.structured import Member, Token, parse_dictionary, parse_list, strings
from tests.rules.samples import fields
from tests.timing import assert_within

ALPHABET = "aZ09-.\"\\:=;,() \t?1*/+%@'\x7f\xe9"
"""Few characters, and all that mean something or are close to what does."""


@pytest.mark.parametrize(
    ("value", "members"),
    [
        pytest.param("", [], id="empty"),
        pytest.param("   ", [], id="blank"),
        pytest.param("sugar, tea, rum", [Token("sugar"), Token("tea"), Token("rum")], id="tokens"),
        pytest.param(
            '("foo" "bar"), ("baz"), ("bat" "one"), ()',
            [("foo", "bar"), ("baz",), ("bat", "one"), ()],
            id="inner lists",
        ),
        pytest.param(
            '("foo"; a=1;b=2);lvl=5, ("bar" "baz");lvl=1', [("foo",), ("bar", "baz")], id="parameters everywhere"
        ),
        pytest.param(
            'abc;a=1;b=2; cde_456, (ghi;jk=4 l);q="9";r=w',
            [Token("abc"), (Token("ghi"), Token("l"))],
            id="parameters of every kind",
        ),
        pytest.param("1; a; b=?0", [1], id="boolean parameters"),
        pytest.param("5; foo=bar", [5], id="an item with a parameter"),
        pytest.param("42", [42], id="integer"),
        pytest.param("0002, -01, -0", [2, -1, 0], id="zeros and a sign"),
        pytest.param("999999999999999, -999999999999999", [10**15 - 1, 1 - 10**15], id="the largest integers"),
        pytest.param("4.5", [Decimal("4.5")], id="decimal"),
        pytest.param(
            "0002.5, -01.334, 5.230, -0.40",
            [Decimal("2.5"), Decimal("-1.334"), Decimal("5.23"), Decimal("-0.4")],
            id="decimals with zeros",
        ),
        pytest.param("123456789012.123", [Decimal("123456789012.123")], id="the longest decimal"),
        pytest.param('"hello world"', ["hello world"], id="string"),
        pytest.param(r'"a\"b\\c", "\\\\"', ['a"b\\c', "\\\\"], id="escapes"),
        pytest.param('"", ", ;()"', ["", ", ;()"], id="an empty string, and one of signs"),
        pytest.param('"' + "x" * 1024 + '"', ["x" * 1024], id="a long string"),
        pytest.param("foo123/456", [Token("foo123/456")], id="token"),
        pytest.param("*, A:b*!#$%&'+-.^_`|~", [Token("*"), Token("A:b*!#$%&'+-.^_`|~")], id="signs in tokens"),
        pytest.param(
            ":cHJldGVuZCB0aGlzIGlzIGJpbmFyeSBjb250ZW50Lg==:",
            [b"pretend this is binary content."],
            id="byte sequence",
        ),
        pytest.param("::, :+/+/:", [b"", b"\xfb\xff\xbf"], id="an empty byte sequence, and one of signs"),
        pytest.param(":aA:, :aA=:, :aGk:", [b"h", b"h", b"hi"], id="no padding, or too little"),
        pytest.param(":aGl=:, :aGk==:, :aGho==:", [b"hi", b"hi", b"hhh"], id="bits in the padding, or too much"),
        pytest.param("?1, ?0", [True, False], id="booleans"),
        pytest.param("1,2 , 3\t,\t4  ", [1, 2, 3, 4], id="optional blanks"),
        pytest.param("( 1  2 )", [(1, 2)], id="blanks in an inner list"),
        pytest.param("1;a;a;  b=:aa==:;*c-_.*=-1.0", [1], id="odd parameters"),
        pytest.param(", ".join(["a"] * 1024), [Token("a")] * 1024, id="1,024 members"),
        pytest.param(f"({' '.join(['1'] * 256)})", [(1,) * 256], id="256 members of an inner list"),
        pytest.param("1" + ";a=b" * 256, [1], id="256 parameters"),
    ],
)
def test_lists(value: str, members: list[Member]) -> None:
    """A List has the members that the RFC's examples say, without parameters (§3.1, §3.3, §4.2.1)."""
    assert typed(parse_list(value)) == typed(members)


@pytest.mark.parametrize(
    ("value", "members"),
    [
        pytest.param("", {}, id="empty"),
        pytest.param(
            'en="Applepie", da=:w4ZibGV0w6ZydGU=:',
            {"en": "Applepie", "da": "Æbletærte".encode()},
            id="a string and bytes",
        ),
        pytest.param("a=?0, b, c; foo=bar", {"a": False, "b": True, "c": True}, id="booleans"),
        pytest.param(
            "rating=1.5, feelings=(joy sadness)",
            {"rating": Decimal("1.5"), "feelings": (Token("joy"), Token("sadness"))},
            id="an inner list",
        ),
        pytest.param(
            "a=(1 2), b=3, c=4;aa=bb, d=(5 6);valid", {"a": (1, 2), "b": 3, "c": 4, "d": (5, 6)}, id="parameters"
        ),
        pytest.param("foo=1, bar=2", {"foo": 1, "bar": 2}, id="two"),
        pytest.param("a=1,b=2,a=3", {"a": 3, "b": 2}, id="the last of equal keys"),
        pytest.param("a=1, a", {"a": True}, id="the last of equal keys, a boolean"),
        pytest.param("*a-_.*9=()", {"*a-_.*9": ()}, id="signs in keys"),
        pytest.param(" a\t,\tb ", {"a": True, "b": True}, id="optional blanks"),
        pytest.param(
            ",".join(f"{'k' * 64}{n}={n}" for n in range(1024)),
            {f"{'k' * 64}{n}": n for n in range(1024)},
            id="1,024 members with long keys",
        ),
    ],
)
def test_dictionaries(value: str, members: dict[str, Member]) -> None:
    """A Dictionary has the members that the RFC's examples say, in order, without parameters (§3.2, §4.2.2)."""
    parsed = parse_dictionary(value)
    assert typed(parsed) == typed(members)
    assert list(parsed or {}) == list(members)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("\t1", id="4.2 step 2: a tab first"),
        pytest.param("\n1", id="4.2 step 2: a line feed first"),
        pytest.param("1\n", id="4.2 step 7: a line feed last"),
        pytest.param("1 2", id="4.2.1 step 2.4: no comma"),
        pytest.param("1)", id="4.2.1 step 2.4: a parenthesis"),
        pytest.param(",1", id="4.2.1 step 2.1: a comma first"),
        pytest.param("1,,2", id="4.2.1 step 2.1: an empty member"),
        pytest.param("1,", id="4.2.1 step 2.6: a comma last"),
        pytest.param("1, \t", id="4.2.1 step 2.6: a comma last, and blanks"),
        pytest.param("(1 (2))", id="4.2.1.2: an inner list in an inner list"),
        pytest.param('("a""b")', id="4.2.1.2 step 3.5: no blank between"),
        pytest.param("(1\t2)", id="4.2.1.2 step 3.5: a tab between"),
        pytest.param("(1, 2)", id="4.2.1.2 step 3.5: a comma between"),
        pytest.param("(", id="4.2.1.2 step 4: no end of an empty inner list"),
        pytest.param("(1", id="4.2.1.2 step 4: no end of an inner list"),
        pytest.param("(1 ", id="4.2.1.2 step 4: no end after a blank"),
    ],
)
def test_failures_of_lists(value: str) -> None:
    """What is wrong between the members of a List, or of an Inner List, makes it fail (§4.2, §4.2.1)."""
    assert parse_list(value) is None


@pytest.mark.parametrize(
    "item",
    [
        pytest.param("\xe9", id="4.2 step 1: not ASCII"),
        pytest.param('"\u20ac"', id="4.2 step 1: not even Latin-1"),
        pytest.param("\u0661", id="4.2 step 1: a digit of another script"),
        pytest.param("1;a=", id="4.2.3.1 step 6: no value of a parameter"),
        pytest.param("1;a= 1", id="4.2.3.1 step 6: a blank for a value"),
        pytest.param("1;a=(1)", id="4.2.3.1 step 6: an inner list in a parameter"),
        pytest.param("'a'", id="4.2.3.1 step 6: single quotes"),
        pytest.param("_a", id="4.2.3.1 step 6: no sign that begins a token"),
        pytest.param("@1659578233", id="4.2.3.1 step 6: a Date of RFC 9651"),
        pytest.param('%"a"', id="4.2.3.1 step 6: a Display String of RFC 9651"),
        pytest.param("1;a=@1659578233", id="4.2.3.1 step 6: a Date in a parameter"),
        pytest.param("+1", id="4.2.3.1 step 6: a plus"),
        pytest.param(".1", id="4.2.3.1 step 6: a point first"),
        pytest.param("1 ;a", id="4.2.3.2: a blank before a parameter"),
        pytest.param("1;", id="4.2.3.3 step 1: no key"),
        pytest.param("1;A", id="4.2.3.3 step 1: an upper-case key"),
        pytest.param("1;9", id="4.2.3.3 step 1: a digit for a key"),
        pytest.param("1;\ta", id="4.2.3.3 step 1: a tab before a key"),
        pytest.param("1;aA", id="4.2.3.3 step 3.1: an upper-case letter in a key"),
        pytest.param("-", id="4.2.4 step 5: a sign alone"),
        pytest.param("-a", id="4.2.4 step 6: a letter after a sign"),
        pytest.param("--1", id="4.2.4 step 6: two signs"),
        pytest.param("1234567890123.1", id="4.2.4 step 7.3.1: 13 digits before the point"),
        pytest.param("1234567890123456", id="4.2.4 step 7.5: 16 digits"),
        pytest.param("0" * 16, id="4.2.4 step 7.5: 16 zeros"),
        pytest.param("123456789012.1234", id="4.2.4 step 7.6: 17 characters"),
        pytest.param("1.1.1", id="4.2.4 step 7.4: two points"),
        pytest.param("1e3", id="4.2.4 step 7.4: an exponent"),
        pytest.param("1.", id="4.2.4 step 9.1: a point last"),
        pytest.param("1.1234", id="4.2.4 step 9.2: four digits after the point"),
        pytest.param('"a\\', id="4.2.5 step 4.2.1: a backslash last"),
        pytest.param('"\\a"', id="4.2.5 step 4.2.3: an escaped letter"),
        pytest.param('"a\tb"', id="4.2.5 step 4.4: a tab"),
        pytest.param('"a\x7f"', id="4.2.5 step 4.4: a control character"),
        pytest.param('"\xe9"', id="4.2.5 step 4.4: not ASCII"),
        pytest.param('"a', id="4.2.5 step 5: no end"),
        pytest.param('"a\\"', id="4.2.5 step 5: an escaped end"),
        pytest.param('"', id="4.2.5 step 5: a quote alone"),
        pytest.param("a(b", id="4.2.6 step 3.1: no sign of a token"),
        pytest.param(":aGk", id="4.2.7 step 3: no end"),
        pytest.param(":", id="4.2.7 step 3: a colon alone"),
        pytest.param(":aG-_:", id="4.2.7 step 6: another alphabet"),
        pytest.param(":aG k:", id="4.2.7 step 6: a blank"),
        pytest.param(":a:", id="4.2.7 step 7: six bits"),
        pytest.param(":=aGk:", id="4.2.7 step 7: padding first"),
        pytest.param(":aG=k:", id="4.2.7 step 7: padding within"),
        pytest.param(":=:", id="4.2.7 step 7: padding alone"),
        pytest.param(":aaaa===:", id="4.2.7 step 7: too much padding"),
        pytest.param("?", id="4.2.8 step 5: nothing"),
        pytest.param("?2", id="4.2.8 step 5: another digit"),
        pytest.param("?true", id="4.2.8 step 5: a word"),
    ],
)
def test_failures_of_items(item: str) -> None:
    """Where a step says "fail parsing" the whole field fails, wherever the item stands (§4.2.3 to §4.2.8)."""
    assert parse_list(item) is None
    assert parse_list(f"1, {item}, 1") is None
    assert parse_list(f"(1 {item} 1)") is None
    assert parse_list(f"1;a={item};b") is None
    assert parse_dictionary(f"a={item}") is None
    assert parse_dictionary(f"b, a={item}, c") is None


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("A=1", id="4.2.3.3 step 1: an upper-case key"),
        pytest.param("=1", id="4.2.3.3 step 1: no key"),
        pytest.param('"a"=1', id="4.2.3.3 step 1: a string for a key"),
        pytest.param(",a", id="4.2.3.3 step 1: a comma first"),
        pytest.param("a,,b", id="4.2.3.3 step 1: an empty member"),
        pytest.param("\ta", id="4.2.3.3 step 1: a tab first"),
        pytest.param("a =1", id="4.2.2 step 2.8: a blank before the sign"),
        pytest.param("a b", id="4.2.2 step 2.8: no comma"),
        pytest.param("a,", id="4.2.2 step 2.10: a comma last"),
        pytest.param("a=", id="4.2.3.1 step 6: no value"),
        pytest.param("a= 1", id="4.2.3.1 step 6: a blank after the sign"),
    ],
)
def test_failures_of_dictionaries(value: str) -> None:
    """What is wrong with the keys of a Dictionary, or between its members, makes it fail (§4.2.2)."""
    assert parse_dictionary(value) is None


bare_items = st.one_of(
    st.integers(1 - 10**15, 10**15 - 1).map(str),
    st.decimals(-999_999_999_999, 999_999_999_999, places=3).map("{:f}".format),
    st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=6).map(
        lambda text: '"{}"'.format(text.replace("\\", r"\\").replace('"', r"\""))
    ),
    st.from_regex(r"[A-Za-z*][A-Za-z0-9!#$%&'*+.^_`|~:/-]{0,4}", fullmatch=True),
    st.from_regex(r":[A-Za-z0-9+/]{0,5}={0,3}:", fullmatch=True),
    st.sampled_from(["?0", "?1"]),
)
keys = st.from_regex(r"[a-z*][a-z0-9_.*-]{0,2}", fullmatch=True)
spaces = st.text(" ", max_size=2)
parameters = st.lists(
    st.builds(";{}{}{}".format, spaces, keys, st.just("") | bare_items.map("={}".format)), max_size=2
).map("".join)
items = st.builds("{}{}".format, bare_items, parameters)
inner_lists = st.builds("({}{}{}){}".format, spaces, st.lists(items, max_size=3).map(" ".join), spaces, parameters)
members = items | inner_lists
entries = st.builds("{}{}".format, keys, parameters | members.map("={}".format))
separators = st.sampled_from([",", ", ", "\t, ", " ,\t"])
valid_values = st.builds(str.join, separators, st.lists(members, max_size=4) | st.lists(entries, max_size=4))


@st.composite
def mutated_values(draw: st.DrawFn) -> str:
    """Give a field value made by the grammar, with up to two slips of the pen."""
    value = draw(valid_values)
    for _ in range(draw(st.integers(0, 2))):
        at, width = draw(st.integers(0, len(value))), draw(st.integers(0, 2))
        value = value[:at] + draw(st.text(ALPHABET, max_size=2)) + value[at + width :]
    return value


@settings(max_examples=500)
@given(mutated_values() | st.text(ALPHABET, max_size=16))
@example(":aaaaa:")
@example("a=1;b")
def test_as_http_sf(value: str) -> None:
    """Any text is parsed, or fails, as it does in http-sf, but for the types that RFC 9651 added."""
    in_list, in_dictionary = by_http_sf(value, "list"), by_http_sf(value, "dictionary")
    assert typed(parse_list(value)) == in_list
    assert typed(parse_dictionary(value)) == in_dictionary


@given(st.text())
def test_anything(value: str) -> None:
    """No text raises."""
    parse_list(value)
    parse_dictionary(value)


@given(st.lists(st.binary(max_size=20), max_size=3))
def test_strings_of_anything(values: list[bytes]) -> None:
    """No field raises."""
    strings(tuple((b"cache-groups", value) for value in values), b"cache-groups")


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        pytest.param([], (), id="absent"),
        pytest.param(["Cache-Groups:"], (), id="empty"),
        pytest.param(['Cache-Groups: "scripts"'], ("scripts",), id="one"),
        pytest.param(
            ['Cache-Groups: "eurovision-results", "australia"'], ("eurovision-results", "australia"), id="two"
        ),
        pytest.param(['cache-groups: "a"', "X: 1", 'CACHE-GROUPS: "b"'], ("a", "b"), id="two lines"),
        pytest.param(['Cache-Groups: "b", "a", "b"'], ("b", "a"), id="one repeated"),
        pytest.param(['Cache-Groups: "a", "A"'], ("a", "A"), id="case tells them apart"),
        pytest.param(['Cache-Groups: "a";x="b";y, "c"'], ("a", "c"), id="parameters"),
        pytest.param(['Cache-Groups: "", " "'], ("", " "), id="empty and blank"),
        pytest.param([r'Cache-Groups: "a, \"b\""'], ('a, "b"',), id="a comma and quotes"),
        pytest.param(["Cache-Groups: scripts"], (), id="a token"),
        pytest.param(['Cache-Groups: "a", b'], (), id="one of them a token"),
        pytest.param(['Cache-Groups: "a", ("b")'], (), id="one of them an inner list"),
        pytest.param(['Cache-Groups: "a", :aGk=:'], (), id="one of them bytes"),
        pytest.param(['Cache-Groups: "a",'], (), id="a comma last"),
        pytest.param(['Cache-Groups: "a"', "Cache-Groups:"], (), id="an empty line"),
        pytest.param(['Cache-Groups: "a"', 'Cache-Groups: "b'], (), id="a line that does not parse"),
        pytest.param(['Cache-Groups: "caf\xe9"'], (), id="not ASCII"),
        pytest.param(['X-Cache-Groups: "a"'], (), id="another field"),
    ],
)
def test_strings(lines: list[str], found: tuple[str, ...]) -> None:
    """Groups are the different Strings of all lines together, or none where one thing is wrong (RFC 9875 §2)."""
    assert strings(fields(*lines), b"cache-groups") == found


@pytest.mark.alone
@pytest.mark.parametrize("start", ["", "a=", "a=("], ids=["list", "dictionary", "inner list"])
@pytest.mark.parametrize(
    "repeated",
    [
        pytest.param('"', id="quotes"),
        pytest.param("(", id="parentheses"),
        pytest.param("(a;", id="nested openings"),
        pytest.param(";", id="semicolons"),
        pytest.param("a;a", id="keys and semicolons"),
        pytest.param(";a=", id="parameters"),
        pytest.param("1", id="digits"),
        pytest.param("1.1", id="points"),
        pytest.param("\\", id="backslashes"),
        pytest.param('"\\"', id="escapes"),
        pytest.param('"a" ', id="strings"),
        pytest.param('"a", ', id="members"),
        pytest.param("(a b);c,a=", id="inner lists"),
        pytest.param(" ", id="blanks"),
        pytest.param(" \t,", id="commas"),
        pytest.param(":", id="colons"),
        pytest.param("aaaa", id="letters"),
        pytest.param("a=1, ", id="entries"),
        pytest.param("-?*", id="signs"),
    ],
)
def test_time(start: str, repeated: str) -> None:
    """A value of 200 KB is parsed in time in proportion to it, however it ends: some 0.1 s, at most 5 s here."""
    value = start + repeated * (200_000 // len(repeated))
    for end in ("", "!", '"', ":", ")", "a"):
        for parse in (parse_list, parse_dictionary):
            assert_within(5.0, parse, value + end)


def typed(value: Any) -> Any:
    """Return *value* with the name of its type beside each item, for 1, True and Decimal(1) are equal."""
    if isinstance(value, dict):
        return {key: typed(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(typed, value))
    return type(value).__name__, value.text if isinstance(value, Token) else value


def by_http_sf(value: str, kind: str) -> Any:
    """Return what http-sf parses *value* as, without parameters; None if it fails.

    What has a type of RFC 9651, at any depth or under a key that is overwritten, is left out.
    """

    def hides_nothing(_key: str, _kind: str) -> None:
        assume("@" not in value and '%"' not in value)

    try:
        parsed: Any = http_sf.parse(value.encode("latin-1"), tltype=kind, on_duplicate_key=hides_nothing)
    except http_sf.StructuredFieldError:
        return typed(None)
    if kind == "dictionary":
        return {key: without_parameters(each) for key, each in parsed.items()}
    return [without_parameters(each) for each in parsed]


def without_parameters(member: Any) -> Any:
    """Return what *member* of http-sf is in `typed` form."""
    value, parameters = member
    for each in (value, *parameters.values()):
        assume(type(each).__name__ not in ("datetime", "DisplayString"))
    if isinstance(value, list):
        return tuple(map(without_parameters, value))
    return type(value).__name__, value.data if isinstance(value, http_sf.Token) else value

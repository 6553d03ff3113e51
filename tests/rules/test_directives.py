"""Cache-Control is parsed as RFC 9111 §5.2 writes it, and what it says in conflict is read strictly."""

from __future__ import annotations

import string
from dataclasses import replace
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app_cache.rules.directives import (
    LONGEST,
    NOTHING_ASKED,
    NOTHING_SAID,
    RequestDirectives,
    ResponseDirectives,
    delta_seconds,
    parse_directives,
    request_directives,
    response_directives,
)
from tests.rules.samples import fields
from tests.rules.test_messages import members_by_rule
from tests.timing import assert_within

ALPHABET = 'aA=," \\\t1'
TOKEN_CHARACTERS = "!#$%&'*+-.^_`|~09azAZ"
TCHAR = frozenset("!#$%&'*+-.^_`|~" + string.digits + string.ascii_letters)
QUOTED_CHARACTERS = "\t !#,=[]~az09\x80\xff"

tokens = st.text(TOKEN_CHARACTERS, min_size=1, max_size=5)
blanks = st.text(" \t", max_size=2)


@pytest.mark.parametrize(
    ("value", "directives"),
    [
        pytest.param("", {}, id="empty"),
        pytest.param("no-store", {"no-store": None}, id="no argument"),
        pytest.param("No-Store", {"no-store": None}, id="case"),
        pytest.param("max-age=60", {"max-age": "60"}, id="token"),
        pytest.param('max-age="60"', {"max-age": "60"}, id="quoted"),
        pytest.param("a,b , \t c", {"a": None, "b": None, "c": None}, id="optional blanks"),
        pytest.param(", ,a,,", {"a": None}, id="empty members"),
        pytest.param("foo=No-Store", {"foo": "No-Store"}, id="an argument keeps its case"),
        pytest.param(
            'foo="a, no-store", b', {"foo": "a, no-store", "b": None}, id="a directive in quotes is none"
        ),
        pytest.param(r'foo="a\"b\\c\d"', {"foo": 'a"b\\cd'}, id="escapes"),
        pytest.param('foo=""', {"foo": ""}, id="empty string"),
        pytest.param("foo=", {"foo": ""}, id="no argument after the sign"),
        pytest.param("foo=a=b", {"foo": "a=b"}, id="two signs"),
        pytest.param("=60", {}, id="no name"),
        pytest.param("no-store-x, xno-store", {"no-store-x": None, "xno-store": None}, id="no part of a name"),
        pytest.param('"no-store"', {}, id="a quoted name is none"),
        pytest.param("max-age=1, max-age=2", {"max-age": "1"}, id="the first of two"),
        pytest.param("max-age, max-age=2", {"max-age": None}, id="the first of two, without argument"),
        pytest.param('private="a", private="b, c"', {"private": "a, b, c"}, id="two lists of fields"),
        pytest.param('private="a", private', {"private": None}, id="a list and none"),
        pytest.param('no-cache, no-cache="a"', {"no-cache": None}, id="none and a list"),
        pytest.param('no-cache="", no-cache="a"', {"no-cache": None}, id="an empty list and one"),
        pytest.param('foo="a, b', {"foo": '"a', "b": None}, id="quotes not closed hide nothing"),
        pytest.param('foo="a\\', {"foo": '"a\\'}, id="a backslash last"),
        pytest.param('foo="', {"foo": '"'}, id="a quote alone"),
        pytest.param("max-age = 60", {"max-age": " = 60"}, id="blanks around the sign"),
        pytest.param("max-age= 60", {"max-age": " 60"}, id="a blank after the sign"),
        pytest.param("no-store; max-age=60", {"no-store": "; max-age=60"}, id="a semicolon for a comma"),
    ],
)
def test_parse(value: str, directives: dict[str, str | None]) -> None:
    """A directive is a token, in any case, with an argument that is a token or a quoted string (§5.2)."""
    assert parse_directives([value]) == directives


@st.composite
def cache_controls(draw: st.DrawFn) -> tuple[str, dict[str, str | None]]:
    """Give a field value made by the grammar, and what it says."""
    names = draw(st.lists(tokens, unique_by=str.lower, max_size=5))
    said: dict[str, str | None] = {}
    written = []
    for name in names:
        kind = draw(st.sampled_from(["none", "token", "quoted-string"]))
        argument = draw(tokens if kind == "token" else st.text(QUOTED_CHARACTERS + '"\\', max_size=6))
        said[name.lower()] = None if kind == "none" else argument
        pairs = argument.replace("\\", "\\\\").replace('"', '\\"')
        written.append(name + {"none": "", "token": f"={argument}", "quoted-string": f'="{pairs}"'}[kind])
    separators = [draw(blanks) + "," * draw(st.integers(1, 2)) + draw(blanks) for _ in written]
    return "".join(text for pair in zip(written, separators, strict=True) for text in pair), said


@given(cache_controls())
def test_parse_what_the_grammar_makes(made: tuple[str, dict[str, str | None]]) -> None:
    """Whatever the grammar can write is read as what was meant."""
    value, said = made
    assert parse_directives([value]) == said


@given(st.text(ALPHABET, max_size=24))
def test_parse_by_the_grammar(value: str) -> None:
    """Any text is read as a parser does that takes the grammar rule by rule."""
    assert parse_directives([value]) == directives_by_rule(value)


@given(st.lists(st.text(st.characters(max_codepoint=255)), max_size=3))
def test_parse_anything(values: list[str]) -> None:
    """No field value raises, in a request or in a response."""
    headers = tuple((b"cache-control", value.encode("latin-1")) for value in values)
    request_directives(headers)
    request_directives(tuple((b"pragma", value) for _, value in headers))
    response_directives(headers)


@pytest.mark.alone
@pytest.mark.parametrize(
    "value",
    [
        pytest.param("no-store," * 11_000, id="one directive"),
        pytest.param(",".join(f"a{n}=1" for n in range(12_000)), id="many directives"),
        pytest.param(",".join(['private="a"'] * 8_000), id="lists of fields"),
        pytest.param('private="' + "a," * 50_000 + '"', id="one list of fields"),
        pytest.param('a="' + "\\x" * 50_000 + '"', id="escapes"),
        pytest.param("max-age=" + "9" * 100_000, id="digits"),
        pytest.param("max-age=" + "0" * 100_000, id="zeros"),
    ],
)
def test_time(value: str) -> None:
    """A value of 100 KB is read in time in proportion to it: some 30 ms, at most 1 s here."""
    others = count()
    assert_within(1.0, request_directives, fields(f"Cache-Control: {value}"))
    assert_within(1.0, lambda: response_directives(fields(f"Cache-Control: {value}, b={next(others)}")))


@pytest.mark.parametrize(
    ("argument", "seconds"),
    [
        pytest.param("0", 0, id="zero"),
        pytest.param("60", 60, id="digits"),
        pytest.param("007", 7, id="zeros first"),
        pytest.param("2147483647", 2**31 - 1, id="31 bits"),
        pytest.param("2147483648", LONGEST, id="the longest"),
        pytest.param("2147483649", LONGEST, id="one beyond"),
        pytest.param("9" * 5_000, LONGEST, id="more digits than Python converts"),
        pytest.param("0" * 5_000 + "1", 1, id="more zeros than Python converts"),
        pytest.param(None, None, id="none"),
        pytest.param("", None, id="empty"),
        pytest.param("-1", None, id="negative"),
        pytest.param("+1", None, id="signed"),
        pytest.param("1.5", None, id="decimal"),
        pytest.param("1e3", None, id="exponent"),
        pytest.param("0x10", None, id="hexadecimal"),
        pytest.param(" 1", None, id="blank"),
        pytest.param("1_0", None, id="underscore"),
        pytest.param("60s", None, id="unit"),
        pytest.param("\xb2", None, id="superscript"),
        pytest.param("\u0661", None, id="digit not in ASCII"),
    ],
)
def test_delta_seconds(argument: str | None, seconds: int | None) -> None:
    """Seconds are digits and nothing else, and what is too great is 2^31 (§1.2.2)."""
    assert delta_seconds(argument) == seconds


@pytest.mark.parametrize(
    ("lines", "asked"),
    [
        pytest.param([], NOTHING_ASKED, id="nothing"),
        pytest.param(["Cache-Control: no-cache"], RequestDirectives(no_cache=True), id="no-cache"),
        pytest.param(["Cache-Control: no-store"], RequestDirectives(no_store=True), id="no-store"),
        pytest.param(
            ["Cache-Control: only-if-cached"], RequestDirectives(only_if_cached=True), id="only-if-cached"
        ),
        pytest.param(["Cache-Control: max-age=0"], RequestDirectives(max_age=0), id="max-age"),
        pytest.param(["Cache-Control: min-fresh=9"], RequestDirectives(min_fresh=9), id="min-fresh"),
        pytest.param(["Cache-Control: max-stale=9"], RequestDirectives(max_stale=9), id="max-stale"),
        pytest.param(
            ["Cache-Control: max-stale"], RequestDirectives(max_stale=LONGEST), id="max-stale of any age"
        ),
        pytest.param(["Cache-Control: max-stale=x"], NOTHING_ASKED, id="max-stale that cannot be read"),
        pytest.param(["Cache-Control: max-stale="], NOTHING_ASKED, id="max-stale with nothing"),
        pytest.param(["Cache-Control: max-age=x"], NOTHING_ASKED, id="max-age that cannot be read"),
        pytest.param(["Cache-Control: max-age"], NOTHING_ASKED, id="max-age without argument"),
        pytest.param(
            ["Cache-Control: max-age=1", "cache-control: max-stale=2"],
            RequestDirectives(max_age=1, max_stale=2),
            id="two lines",
        ),
        pytest.param(
            ['Cache-Control: foo="no-cache', 'Cache-Control: max-age=0", no-store'],
            RequestDirectives(max_age=None, no_store=True),
            id="quotes over two lines hide nothing",
        ),
        pytest.param(
            ["Cache-Control: stale-if-error=9"], RequestDirectives(stale_if_error=9), id="stale-if-error"
        ),
        pytest.param(
            ["Cache-Control: private, s-maxage=9, immutable"], NOTHING_ASKED, id="what is not for requests"
        ),
        pytest.param(["Pragma: no-cache"], RequestDirectives(no_cache=True), id="Pragma"),
        pytest.param(["Pragma: foo=x, No-Cache"], RequestDirectives(no_cache=True), id="Pragma with more"),
        pytest.param(["Pragma: foo"], NOTHING_ASKED, id="Pragma of something else"),
        pytest.param(["Pragma: no-cache", "Cache-Control: foo"], NOTHING_ASKED, id="Pragma beside Cache-Control"),
    ],
)
def test_request_directives(lines: list[str], asked: RequestDirectives) -> None:
    """A request asks by the directives of §5.2.1, and by Pragma only where Cache-Control is absent (§5.4)."""
    assert request_directives(fields(*lines)) == asked


MUST_REVALIDATE = ResponseDirectives(must_revalidate=True, shared=True)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        pytest.param("no-store", ResponseDirectives(no_store=True), id="no-store"),
        pytest.param("no-store=x", ResponseDirectives(no_store=True), id="no-store with an argument"),
        pytest.param("public", ResponseDirectives(public=True, shared=True), id="public"),
        pytest.param("must-revalidate", MUST_REVALIDATE, id="must-revalidate"),
        pytest.param("proxy-revalidate", ResponseDirectives(proxy_revalidate=True), id="proxy-revalidate"),
        pytest.param("must-understand", ResponseDirectives(must_understand=True), id="must-understand"),
        pytest.param("max-age=9", ResponseDirectives(max_age=9), id="max-age"),
        pytest.param('max-age="9"', ResponseDirectives(max_age=9), id="max-age quoted"),
        pytest.param("s-maxage=9", ResponseDirectives(s_maxage=9, shared=True), id="s-maxage"),
        pytest.param("max-age=x", ResponseDirectives(max_age=0), id="max-age that cannot be read is stale"),
        pytest.param("max-age", ResponseDirectives(max_age=0), id="max-age without argument is stale"),
        pytest.param("max-age=-1", ResponseDirectives(max_age=0), id="max-age below zero is stale"),
        pytest.param("s-maxage=1.5", ResponseDirectives(s_maxage=0), id="s-maxage that cannot be read is stale"),
        pytest.param("max-age=1, max-age=9", ResponseDirectives(max_age=1), id="max-age twice"),
        pytest.param("private", ResponseDirectives(private=True), id="private"),
        pytest.param("private=", ResponseDirectives(private=True), id="private with nothing"),
        pytest.param('private=""', ResponseDirectives(private=True), id="private with an empty list"),
        pytest.param(
            'private="X-A, b"', ResponseDirectives(withheld=frozenset({b"x-a", b"b"})), id="private fields"
        ),
        pytest.param(
            "private=x-a", ResponseDirectives(withheld=frozenset({b"x-a"})), id="private field as a token"
        ),
        pytest.param("no-cache", ResponseDirectives(no_cache=True), id="no-cache"),
        pytest.param('no-cache="a"', ResponseDirectives(withheld=frozenset({b"a"})), id="no-cache fields"),
        pytest.param(
            'no-cache="a", private="b"', ResponseDirectives(withheld=frozenset({b"a", b"b"})), id="fields of both"
        ),
        pytest.param(
            'private="a", private', ResponseDirectives(private=True), id="private with fields and without"
        ),
        pytest.param('no-cache, no-cache="a"', ResponseDirectives(no_cache=True), id="no-cache without and with"),
        pytest.param(
            'private="a", private="b"', ResponseDirectives(withheld=frozenset({b"a", b"b"})), id="private twice"
        ),
        pytest.param(
            "stale-while-revalidate=1, stale-if-error=2",
            ResponseDirectives(stale_while_revalidate=1, stale_if_error=2),
            id="stale windows",
        ),
        pytest.param(
            "stale-if-error=x, stale-while-revalidate", NOTHING_SAID, id="stale windows that cannot be read"
        ),
        pytest.param("no-transform, immutable, foo=1", NOTHING_SAID, id="what changes nothing here"),
        pytest.param('foo="private, no-store"', NOTHING_SAID, id="directives in quotes"),
        pytest.param('max-age="9, no-store', ResponseDirectives(max_age=0, no_store=True), id="quotes not closed"),
        pytest.param("max-age='9'", ResponseDirectives(max_age=0), id="single quotes are stale"),
        pytest.param("max-age = 9", ResponseDirectives(max_age=0), id="blanks around the sign are stale"),
        pytest.param("private; max-age=9", ResponseDirectives(private=True), id="a semicolon hides nothing"),
        pytest.param(
            "max-age=9; private", ResponseDirectives(max_age=0, private=True), id="nor what is behind an argument"
        ),
        pytest.param(
            "must-revalidate; No-Store",
            ResponseDirectives(must_revalidate=True, no_store=True),
            id="nor behind a name",
        ),
        pytest.param('foo="a"b;no-cache="x"', ResponseDirectives(no_cache=True), id="nor behind a quoted string"),
        pytest.param("public private", ResponseDirectives(private=True), id="nor does a blank"),
        pytest.param(
            "max-age=9; public; foo", ResponseDirectives(max_age=0), id="what permits is not heard behind others"
        ),
        pytest.param(
            'private="x-a, vary"', ResponseDirectives(private=True), id="private with a field that decides"
        ),
        pytest.param('no-cache="Age"', ResponseDirectives(no_cache=True), id="no-cache with a field that decides"),
        pytest.param('private="a b"', ResponseDirectives(private=True), id="private with what is no field"),
        pytest.param("public=x, must-understand=x", NOTHING_SAID, id="what permits takes no argument"),
        pytest.param(
            "must-revalidate=1",
            ResponseDirectives(must_revalidate=True),
            id="must-revalidate with one restricts alone",
        ),
        pytest.param(
            'private="content-type"', ResponseDirectives(private=True), id="private with what reads the body"
        ),
        pytest.param("only-if-cached, max-stale, min-fresh=3", NOTHING_SAID, id="what is not for responses"),
    ],
)
def test_response_directives(value: str, said: ResponseDirectives) -> None:
    """A response says what §5.2.2 and RFC 5861 list; of what conflicts the stricter holds (§4.2.1)."""
    assert response_directives(fields(f"Cache-Control: {value}")) == said


def test_response_lines() -> None:
    """Lines of Cache-Control are one list, and Pragma says nothing in a response (§5.4)."""
    headers = fields("Cache-Control: public", "Pragma: no-cache", "CACHE-CONTROL: max-age=9")
    assert response_directives(headers) == ResponseDirectives(public=True, shared=True, max_age=9)
    assert response_directives(fields("Pragma: no-cache")) == NOTHING_SAID


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        pytest.param(["CDN-Cache-Control: max-age=9"], ResponseDirectives(max_age=9), id="alone"),
        pytest.param(
            ["Cache-Control: no-store", "CDN-Cache-Control: max-age=9"], ResponseDirectives(max_age=9), id="first"
        ),
        pytest.param(
            ["Cache-Control: max-age=9", "CDN-Cache-Control: no-store"],
            ResponseDirectives(no_store=True),
            id="forbids",
        ),
        pytest.param(
            ["Cache-Control: private", "CDN-Cache-Control: none"], ResponseDirectives(), id="none of ours"
        ),
        pytest.param(
            ["CDN-Cache-Control: max-age=1", "CDN-Cache-Control: no-cache"],
            ResponseDirectives(max_age=1, no_cache=True),
            id="two lines",
        ),
        pytest.param(
            ["CDN-Cache-Control: max-age=1, max-age=2"], ResponseDirectives(max_age=2), id="the last of two"
        ),
        pytest.param(["CDN-Cache-Control: no-store=?0"], NOTHING_SAID, id="nothing but what is false"),
        pytest.param(["CDN-Cache-Control: must-revalidate"], MUST_REVALIDATE, id="must-revalidate"),
        pytest.param(
            ["CDN-Cache-Control: must-revalidate=5"],
            ResponseDirectives(must_revalidate=True),
            id="must-revalidate that is an Integer",
        ),
        pytest.param(["CDN-Cache-Control: max-age=9;x=1, foo"], ResponseDirectives(max_age=9), id="parameters"),
        pytest.param(
            ['CDN-Cache-Control: max-age="9"'], ResponseDirectives(max_age=0), id="a String is no Integer"
        ),
        pytest.param(
            ["CDN-Cache-Control: max-age=9.5"], ResponseDirectives(max_age=0), id="a Decimal is no Integer"
        ),
        pytest.param(["CDN-Cache-Control: max-age=-9"], ResponseDirectives(max_age=0), id="below zero"),
        pytest.param(["CDN-Cache-Control: max-age"], ResponseDirectives(max_age=0), id="max-age without value"),
        pytest.param(
            ["CDN-Cache-Control: max-age=9, no-store=?0"], ResponseDirectives(max_age=9), id="a false one"
        ),
        pytest.param(
            ['CDN-Cache-Control: private="a, b"'],
            ResponseDirectives(withheld=frozenset({b"a", b"b"})),
            id="a String of fields",
        ),
        pytest.param(
            ["CDN-Cache-Control: private=a"], ResponseDirectives(private=True), id="a Token is no String"
        ),
        pytest.param(
            ["Cache-Control: max-age=1", "CDN-Cache-Control: no-store=?0"],
            ResponseDirectives(),
            id="nothing but what is false",
        ),
    ],
)
def test_targeted_directives(lines: list[str], said: ResponseDirectives) -> None:
    """A valid targeted field speaks in place of Cache-Control, as a Dictionary (RFC 9213 §2.1, §2.2)."""
    assert response_directives(fields(*lines)) == replace(said, targeted=True)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("", id="empty"),
        pytest.param("Max-Age=9", id="a name in capitals"),
        pytest.param("max-age=9,", id="a comma last"),
        pytest.param("max-age=9 no-store", id="no comma"),
        pytest.param('max-age="9', id="a String not closed"),
        pytest.param("max-age=", id="no value"),
    ],
)
def test_targeted_field_without_a_value(value: str) -> None:
    """A targeted field that is empty or does not parse is as if it were not there (RFC 9213 §2.1)."""
    headers = fields(f"CDN-Cache-Control: {value}", "Cache-Control: max-age=1")
    assert response_directives(headers) == ResponseDirectives(max_age=1)


def directives_by_rule(value: str) -> dict[str, str | None]:
    """Return the directives of *value*: ``token [ "=" ( token / quoted-string ) ]``, the first of each name."""
    found: dict[str, str | None] = {}
    for member in members_by_rule(value):
        length = next((at for at, char in enumerate(member) if char not in TCHAR), len(member))
        name, rest = member[:length].lower(), member[length:]
        if name and name not in found:
            found[name] = unquoted_by_rule(rest[1:]) if rest.startswith("=") else rest or None
    return found


def unquoted_by_rule(argument: str) -> str:
    """Return what a quoted string stands for; where it is none, all of it."""
    if len(argument) < 2 or argument[0] != '"' or argument[-1] != '"':
        return argument
    inner, unescaped = argument[1:-1], ""
    while inner:
        unescaped += inner[1:2] if inner[0] == "\\" else inner[0]
        inner = inner[2:] if inner[0] == "\\" else inner[1:]
    return unescaped

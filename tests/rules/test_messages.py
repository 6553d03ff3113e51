"""Fields are read as RFC 9110 §5 writes them, and no text stops a parser."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app_cache.rules.directives import request_directives, response_directives
from app_cache.rules.messages import (
    HOP_BY_HOP,
    Fields,
    combined,
    connection_options,
    end_to_end,
    field_lines,
    field_members,
    fields_of,
    has_field,
    list_members,
    plain_answer,
    without,
)
from app_cache.rules.structured import strings
from app_cache.rules.variants import vary_fields
from tests.rules.samples import fields
from tests.timing import assert_within

ALPHABET = 'ab ,"\\\t='
"""Few characters and all that mean something, so that quotes, commas and escapes meet often."""


@pytest.mark.parametrize(
    ("lines", "found", "together"),
    [
        pytest.param([], [], None, id="absent"),
        pytest.param(["Accept: a"], ["a"], "a", id="one line"),
        pytest.param(["Accept: a", "X: y", "accept: b"], ["a", "b"], "a, b", id="lines in order, in any case"),
        pytest.param(["Accept:"], [""], "", id="empty is not absent"),
        pytest.param(["Accept: a", "ACCEPT:"], ["a", ""], "a, ", id="one of two is empty"),
        pytest.param(["Accept-Encoding: a"], [], None, id="a name that begins so"),
        pytest.param(["Accept: \xe9"], ["\xe9"], "\xe9", id="what is not ASCII stays opaque"),
    ],
)
def test_fields(lines: list[str], found: list[str], together: str | None) -> None:
    """Lines of one field are found in order, whatever the case of the name, and combine with commas (§5.2)."""
    headers = fields(*lines)
    assert field_lines(headers, b"accept") == found
    assert combined(headers, b"accept") == together


def test_outer_blanks() -> None:
    """Blanks around a value, SP and HTAB alone, are not a part of it (§5.5)."""
    assert field_lines(((b"a", b" \t b\tc \t"), (b"a", b"\xa0d")), b"a") == ["b\tc", "\xa0d"]


@pytest.mark.parametrize(
    ("value", "members"),
    [
        pytest.param("", [], id="empty"),
        pytest.param(",", [], id="a comma"),
        pytest.param(",   ,", [], id="commas and blanks"),
        pytest.param("foo,bar", ["foo", "bar"], id="two"),
        pytest.param("foo ,bar,", ["foo", "bar"], id="comma last"),
        pytest.param("foo , ,bar,charlie", ["foo", "bar", "charlie"], id="one empty"),
        pytest.param("a\t,\tb", ["a", "b"], id="tabs"),
        pytest.param("a b, c", ["a b", "c"], id="blanks within"),
        pytest.param('"a, b", c', ['"a, b"', "c"], id="a comma in quotes"),
        pytest.param('x="a, b", c', ['x="a, b"', "c"], id="quotes after a name"),
        pytest.param(r'"a\", b", c', [r'"a\", b"', "c"], id="a quote escaped"),
        pytest.param(r'"a\\", b', [r'"a\\"', "b"], id="a backslash escaped"),
        pytest.param(r"a\, b", ["a\\", "b"], id="no escape out of quotes"),
        pytest.param('"a, b', ['"a', "b"], id="quotes not closed hide nothing"),
        pytest.param('"a, b\\', ['"a', "b\\"], id="a backslash last"),
        pytest.param('""', ['""'], id="an empty string is a member"),
        pytest.param('"", ,""', ['""', '""'], id="two empty strings"),
        pytest.param('" a "', ['" a "'], id="blanks in quotes stay"),
    ],
)
def test_list_members(value: str, members: list[str]) -> None:
    """A list is split at its commas but those in quotes, and empty members are left out (§5.6.1.2)."""
    assert list_members(value) == members


@given(st.text(ALPHABET, max_size=24))
def test_list_members_by_the_grammar(value: str) -> None:
    """Any text is split as a parser does that takes the grammar of §5.6.1 and §5.6.4 rule by rule."""
    assert list_members(value) == members_by_rule(value)


@given(st.text())
def test_list_members_of_anything(value: str) -> None:
    """Any text has members, none of them empty, and what is between them is commas and blanks."""
    rest = value
    for member in list_members(value):
        assert member == member.strip(" \t") != ""
        before, found, rest = rest.partition(member)
        assert found
        assert not before.strip(" \t,")
    assert not rest.strip(" \t,")


@given(st.lists(st.text(ALPHABET, max_size=12), max_size=4))
def test_field_members_by_the_grammar(values: list[str]) -> None:
    """The members of a field are those of its lines, each read by itself, and no other field's (§5.3)."""
    lines = [(b"A" if at % 2 else b"a", value.encode("latin-1")) for at, value in enumerate(values)]
    expected = [member for value in values for member in members_by_rule(value.strip(" \t"))]
    assert field_members((*lines, (b"b", b"c")), b"a") == expected


@pytest.mark.alone
@pytest.mark.parametrize(
    "value",
    [
        pytest.param("," * 100_000, id="commas"),
        pytest.param('"' * 99_999, id="quotes"),
        pytest.param('"' + "\\" * 100_000, id="backslashes"),
        pytest.param("a, " * 33_333, id="members"),
        pytest.param(" \t" * 50_000, id="blanks"),
        pytest.param('"' + " ," * 50_000, id="quotes not closed"),
    ],
)
def test_time(value: str) -> None:
    """A list of 100 KB is read in time in proportion to it: some 10 ms, at most 500 here."""
    assert_within(0.5, list_members, value)


@pytest.mark.parametrize(
    ("lines", "kept"),
    [
        pytest.param(["Age: 1", "X-New: a", "X-New: b"], ["Age", "X-New", "X-New"], id="what is unknown stays"),
        pytest.param(["Set-Cookie: a=1", "Set-Cookie: b=2"], ["Set-Cookie", "Set-Cookie"], id="duplicates"),
        pytest.param(["Connection: close", "A: 1"], ["A"], id="Connection"),
        pytest.param(["Connection: X-Hop, b", "x-hop: 1", "B: 2", "C: 3"], ["C"], id="what Connection names"),
        pytest.param(["A: 1", "B: 2", "Connection: a", "CONNECTION: b"], [], id="two lines of Connection"),
        pytest.param(
            ["Keep-Alive: 5", "TE: trailers", "Transfer-Encoding: chunked", "Upgrade: h2c"], [], id="hop"
        ),
        pytest.param(
            ["Proxy-Authenticate: Basic", "Proxy-Authentication-Info: a", "Proxy-Authorization: b"], [], id="proxy"
        ),
        pytest.param(["Proxy-Connection: close", "Trailer: Expires"], ["Trailer"], id="Trailer is end to end"),
        pytest.param(["Connection: \xe9, ,", "A: 1"], ["A"], id="Connection names nonsense"),
    ],
)
def test_end_to_end(lines: list[str], kept: list[str]) -> None:
    """All fields are stored, in order, but those of one connection and of proxies (RFC 9111 §3.1)."""
    assert [name.decode() for name, _ in end_to_end(fields(*lines))] == kept


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (500, b"Internal Server Error"),
        (503, b"Service Unavailable"),
        (599, b"Internal Server Error"),
        (700, b"Internal Server Error"),
    ],
)
def test_plain_answer(status: int, text: bytes) -> None:
    """A failure that says nothing but its status says that in words, and as a 500 where it is unknown (§15)."""
    fields = ((b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(text)))
    assert plain_answer(status) == (status, fields, text)


def test_without() -> None:
    """Fields are left out by name, in any case, all lines of them."""
    headers = fields("A: 1", "B: 2", "a: 3", "C: 4")
    assert without(headers, frozenset({b"a", b"c", b"d"})) == fields("B: 2")


OF_A_NAME: list[Any] = [field_lines, has_field, combined, field_members, strings]
OF_ALL: list[Any] = [connection_options, end_to_end, vary_fields, request_directives, response_directives]
NAMES = [b"connection", b"vary", b"cache-control", b"cdn-cache-control", b"cache-groups", b"pragma", b"te"]
some_headers = st.lists(
    st.tuples(
        st.sampled_from([*NAMES, *(name.title() for name in NAMES)]),
        st.sampled_from([b"", b"te", b"etag, Vary", b" no-store ", b"max-age=9", b'"a", "b"', b"*", b"x=\xff"]),
    ),
    max_size=5,
).map(tuple)


@given(some_headers, st.sampled_from(NAMES))
def test_fields_that_many_ask_about(headers: tuple[tuple[bytes, bytes], ...], name: bytes) -> None:
    """What is worked out of headers once gives each rule the same answer as the headers themselves."""
    indexed = Fields(headers)
    assert indexed == headers
    for rule in OF_A_NAME:
        assert rule(indexed, name) == rule(headers, name)
    for rule in OF_ALL:
        assert rule(indexed) == rule(headers)
    for names in (frozenset({name}), HOP_BY_HOP):
        assert without(indexed, names) == without(headers, names)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_fields_of(kind: Any) -> None:
    """The fields of a message are bytes, whatever holds them."""
    headers = fields_of({"headers": [[kind(b"A"), b"1"], (b"b", kind(b"2"))]})
    assert headers == ((b"A", b"1"), (b"b", b"2"))
    assert {type(each) for line in headers for each in line} == {bytes}


def members_by_rule(value: str) -> list[str]:
    """Return the members of *value*: ``#element => [ element ] *( OWS "," OWS [ element ] )``."""
    members = []
    while True:
        length = element_length(value)
        members.append(value[:length].strip(" \t"))
        if length == len(value):
            return [member for member in members if member]
        value = value[length + 1 :]


def element_length(text: str) -> int:
    """Return how long the element is that *text* begins with: quoted strings, and what is no comma."""
    if not text or text[0] == ",":
        return 0
    length = quoted_string_length(text) if text[0] == '"' else 1
    return length + element_length(text[length:])


def quoted_string_length(text: str) -> int:
    """Return how long ``DQUOTE *( qdtext / quoted-pair ) DQUOTE`` is; the quote alone if it is never closed."""
    at = 1
    while at < len(text) and text[at] != '"':
        at += 2 if text[at] == "\\" else 1
    return at + 1 if at < len(text) else 1

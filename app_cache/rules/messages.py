"""Requests and responses as values, and how their fields are read (RFC 9110 §5)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Self

Headers = tuple[tuple[bytes, bytes], ...]
"""Field lines in order, duplicates kept; names in any case, as the application sent them."""

KNOWN_STATUSES = frozenset(HTTPStatus)
_MARK = re.compile('[,"]')
_QUOTED_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


@dataclass(frozen=True, slots=True)
class RequestHead:
    """What the rules look at in a request.

    Args:
        method: Its method.
        headers: Its fields.
        has_user: Whether the application knows whose it is, by whatever means.
        begins_session: Whether a session was begun or changed for it that no cookie of its own tells of.
    """

    method: str
    headers: Headers
    has_user: bool = False
    begins_session: bool = False


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """What the rules look at in a response."""

    status: int
    headers: Headers


class Answer(NamedTuple):
    """What a client gets: status, fields and content."""

    status: int
    headers: Headers
    body: bytes


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A complete response as it is kept (RFC 9111 §3).

    Args:
        status: Its status code.
        headers: Its end-to-end fields, in order.
        body: Its content.
        requested_at: When its request was forwarded, in epoch seconds.
        received_at: When its last byte came, in epoch seconds.
        freshness_lifetime: Seconds that it is fresh (§4.2.1).
        stale_while_revalidate: Seconds beyond that in which it is served while it is fetched anew.
        stale_if_error: Seconds beyond that in which it stands in for a failure.
    """

    status: int
    headers: Headers
    body: bytes
    requested_at: float
    received_at: float
    freshness_lifetime: float
    stale_while_revalidate: float = 0.0
    stale_if_error: float = 0.0


class Fields(tuple[tuple[bytes, bytes], ...]):  # noqa: SLOT001  its table is an attribute
    """Headers that many rules ask about: where a name stands is worked out once."""

    by_name: dict[bytes, list[bytes]]

    def __new__(cls, lines: Iterable[tuple[bytes, bytes]]) -> Self:
        """Return *lines* with the values of each name, in lower case."""
        fields = super().__new__(cls, lines)
        by_name = {name.lower(): [value] for name, value in fields}
        if len(by_name) < len(fields):
            by_name = {name: [] for name in by_name}
            for name, value in fields:
                by_name[name.lower()].append(value)
        fields.by_name = by_name
        return fields


def fields_of(start: Mapping[str, Any]) -> Headers:
    """Return the fields of a request's scope, or of the start of an answer, as ASGI has them."""
    return Fields(
        [
            (name, value) if type(name) is type(value) is bytes else (bytes(name), bytes(value))
            for name, value in start.get("headers", ())
        ]
    )


def field_lines(headers: Headers, name: bytes) -> list[str]:
    """Return the values of the field lines called *name* (lower case), in order, without outer blanks."""
    values = headers.by_name.get(name) if isinstance(headers, Fields) else _values(headers, name)
    return [value.decode("latin-1").strip(" \t") for value in values] if values else []


def _values(headers: Headers, name: bytes) -> list[bytes]:
    length = len(name)  # most names differ in length, which is cheaper to see than their case
    return [value for each, value in headers if len(each) == length and each.lower() == name]


def has_field(headers: Headers, name: bytes) -> bool:
    """Return whether there is a field called *name* (lower case)."""
    names = headers.by_name if isinstance(headers, Fields) else [each.lower() for each, _ in headers]
    return name in names


def has_any(headers: Headers, names: frozenset[bytes]) -> bool:
    """Return whether there is a field called one of *names* (lower case)."""
    there = headers.by_name if isinstance(headers, Fields) else [each.lower() for each, _ in headers]
    return not names.isdisjoint(there)


def combined(headers: Headers, name: bytes) -> str | None:
    """Return the combined value of the field *name* (lower case), or None if it is absent (RFC 9110 §5.2)."""
    lines = field_lines(headers, name)
    return ", ".join(lines) if lines else None


def list_members(value: str) -> list[str]:
    """Return the members of a comma-separated list, none of them empty (RFC 9110 §5.6.1).

    Commas inside quoted strings do not separate. A quote that is never closed opens no string, so that it hides
    nothing of what follows.

    >>> list_members('a, "b, c" ,, d, "e, f')
    ['a', '"b, c"', 'd', '"e', 'f']
    """
    members: list[str] = []
    start = at = 0
    opens = True
    while (mark := _MARK.search(value, at)) is not None:
        at = mark.end()
        if mark[0] == ",":
            members.append(value[start : mark.start()])
            start = at
        elif opens:
            string = _QUOTED_STRING.match(value, mark.start())
            opens = string is not None
            at = at if string is None else string.end()
    members.append(value[start:])
    return [stripped for member in members if (stripped := member.strip(" \t"))]


def field_members(headers: Headers, name: bytes) -> list[str]:
    """Return the members of the list-based field *name* (lower case), in order (RFC 9110 §5.3).

    Each field line is read by itself, so that a quote which one leaves open hides nothing of the next.
    """
    lines = field_lines(headers, name)
    return [member for line in lines for member in list_members(line)] if lines else []


def token_of(text: str) -> str:
    """Return the token that *text* begins with, empty if there is none (RFC 9110 §5.6.2)."""
    match = _TOKEN.match(text)
    return "" if match is None else match[0]


def is_token(text: str) -> bool:
    """Return whether *text* is a token (RFC 9110 §5.6.2)."""
    return _TOKEN.fullmatch(text) is not None


HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"transfer-encoding",
        b"upgrade",
    }
)


def connection_options(headers: Headers) -> frozenset[bytes]:
    """Return the fields that Connection names, in lower case: they are for one connection (RFC 9110 §7.6.1)."""
    members = field_members(headers, b"connection")
    return frozenset([member.lower().encode("latin-1") for member in members]) if members else frozenset()


def end_to_end(headers: Headers) -> Headers:
    """Return the fields that are stored and sent on: not those of one connection (RFC 9111 §3.1)."""
    return without(headers, HOP_BY_HOP | connection_options(headers))


def plain_answer(status: int) -> Answer:
    """Return the answer of a failure that says nothing but its *status*.

    An unknown status has the content of a 500 (RFC 9110 §15).
    """
    known = status if status in KNOWN_STATUSES else HTTPStatus.INTERNAL_SERVER_ERROR
    text = HTTPStatus(known).phrase.encode("ascii")
    fields = ((b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(text)))
    return Answer(status, fields, text)


def without(headers: Headers, names: frozenset[bytes]) -> Headers:
    """Return *headers* without the fields called *names* (lower case): the same object where it has none."""
    if isinstance(headers, Fields) and names.isdisjoint(headers.by_name):
        return headers
    return tuple([field for field in headers if field[0].lower() not in names])

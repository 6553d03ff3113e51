"""Requests and responses as values, and how their fields are read (RFC 9110 §5)."""

from __future__ import annotations

from dataclasses import dataclass

Headers = tuple[tuple[bytes, bytes], ...]
"""Field lines in order, duplicates kept; names in any case, as the application sent them."""


@dataclass(frozen=True, slots=True)
class RequestHead:
    """What the rules look at in a request."""

    method: str
    headers: Headers


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """What the rules look at in a response."""

    status: int
    headers: Headers


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


def field_lines(headers: Headers, name: bytes) -> list[str]:
    """Return the values of the field lines called *name* (lower case), in order, without outer blanks."""
    return [value.decode("latin-1").strip(" \t") for each, value in headers if each.lower() == name]


def combined(headers: Headers, name: bytes) -> str | None:
    """Return the combined value of the field *name* (lower case), or None if it is absent (RFC 9110 §5.2)."""
    lines = field_lines(headers, name)
    return ", ".join(lines) if lines else None


def list_members(value: str) -> list[str]:
    """Return the members of a comma-separated list, none of them empty (RFC 9110 §5.6.1).

    Commas inside quoted strings do not separate; a quote that is never closed reaches to the end.

    >>> list_members('a, "b, c" ,, d')
    ['a', '"b, c"', 'd']
    """
    if '"' not in value:
        return [member for each in value.split(",") if (member := each.strip(" \t"))]
    members: list[str] = []
    start, quoted, escaped = 0, False, False
    for at, char in enumerate(value):
        if escaped:
            escaped = False
        elif quoted and char == "\\":
            escaped = True
        elif char == '"':
            quoted = not quoted
        elif char == "," and not quoted:
            members.append(value[start:at].strip(" \t"))
            start = at + 1
    members.append(value[start:].strip(" \t"))
    return [member for member in members if member]


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


def end_to_end(headers: Headers) -> Headers:
    """Return the fields that are stored and sent on: not those of one connection (RFC 9111 §3.1)."""
    dropped = {member.lower().encode("latin-1") for member in list_members(combined(headers, b"connection") or "")}
    dropped |= HOP_BY_HOP
    return tuple((name, value) for name, value in headers if name.lower() not in dropped)


def without(headers: Headers, names: frozenset[bytes]) -> Headers:
    """Return *headers* without the fields called *names* (lower case)."""
    return tuple((name, value) for name, value in headers if name.lower() not in names)

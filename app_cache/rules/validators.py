"""Conditional requests against a stored response (RFC 9110 §8.8, §13; RFC 9111 §4.3)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from app_cache.rules.freshness import date_value, parse_http_date, single_date
from app_cache.rules.messages import Headers, combined, end_to_end, field_lines, without

if TYPE_CHECKING:
    from app_cache.rules.messages import StoredResponse

CONDITIONAL = frozenset({b"if-none-match", b"if-modified-since"})
"""Preconditions that a cache evaluates itself and replaces when it validates (RFC 9111 §4.3.1, §4.3.2)."""
NOT_FRESHENED = frozenset({b"content-length", b"content-encoding", b"content-type", b"content-range", b"etag"})
"""Fields that describe the stored body, which a 304 does not replace (RFC 9111 §3.2)."""
NOT_IN_A_304 = frozenset(
    {b"content-length", b"content-encoding", b"content-language", b"content-type", b"content-range", b"trailer"}
)


_ENTITY_TAGS = re.compile(r'(?:W/)?"[^"]*"|[^, \t]+')
"""A backslash escapes nothing in an entity tag; one without quotes is taken as it is (RFC 9110 §8.8.3)."""


def entity_tag(headers: Headers) -> str | None:
    """Return the ETag, or None where there is none or more than one."""
    lines = field_lines(headers, b"etag")
    return lines[0] if len(lines) == 1 and lines[0] else None


def weakly_equal(one: str, other: str) -> bool:
    """Return whether two entity tags are equal by weak comparison (RFC 9110 §8.8.3.2)."""
    return one.removeprefix("W/") == other.removeprefix("W/")


def not_modified(request: Headers, response: Headers, received_at: float) -> bool:
    """Return whether the preconditions of *request* give a 304 for a 200 with the fields *response*.

    If-None-Match decides alone where it is there (RFC 9110 §13.2.2); an If-Modified-Since that is no date, or
    meets no Last-Modified, is taken as absent or compared with Date (RFC 9111 §4.3.2).
    """
    wanted = combined(request, b"if-none-match")
    if wanted is not None:
        if wanted == "*":
            return True
        tag = entity_tag(response)
        return tag is not None and any(weakly_equal(tag, member) for member in _ENTITY_TAGS.findall(wanted))
    lines = field_lines(request, b"if-modified-since")
    since = parse_http_date(lines[0], received_at) if len(lines) == 1 else None
    if since is None:
        return False
    modified = single_date(response, b"last-modified", received_at)
    return (date_value(response, received_at) if modified is None else modified) <= since


def validating_headers(request: Headers, stored: StoredResponse) -> Headers | None:
    """Return *request* with the preconditions that validate *stored*, or None if it has no validator.

    The client's own conditions are replaced (RFC 9111 §4.3.1).
    """
    tag = entity_tag(stored.headers)
    modified = field_lines(stored.headers, b"last-modified")
    conditions: list[tuple[bytes, bytes]] = []
    if tag is not None:
        conditions.append((b"if-none-match", tag.encode("latin-1")))
    if len(modified) == 1:
        conditions.append((b"if-modified-since", modified[0].encode("latin-1")))
    return (*without(request, CONDITIONAL), *conditions) if conditions else None


def freshened(stored: Headers, update: Headers) -> Headers:
    """Return the fields of a stored response after a 304 with the fields *update* (RFC 9111 §3.2)."""
    update = without(end_to_end(update), NOT_FRESHENED)
    replaced = frozenset(name.lower() for name, _ in update)
    return (*without(stored, replaced), *update)


def fields_of_304(headers: Headers) -> Headers:
    """Return those of *headers* that a 304 carries: all but what describes the content (RFC 9110 §15.4.5)."""
    return without(headers, NOT_IN_A_304)

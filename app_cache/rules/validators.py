"""Conditional requests against a stored response (RFC 9110 §8.8, §13; RFC 9111 §4.3)."""

from __future__ import annotations

import re
from email.utils import formatdate
from typing import TYPE_CHECKING

from app_cache.rules.freshness import date_value, single_date
from app_cache.rules.messages import Headers, combined, end_to_end, field_lines, has_any, without

if TYPE_CHECKING:
    from app_cache.rules.messages import RequestHead, StoredResponse

CONDITIONAL = frozenset({b"if-none-match", b"if-modified-since"})
"""Preconditions that a cache evaluates itself and replaces when it validates (RFC 9111 §4.3.1, §4.3.2)."""
NOT_FOR_CACHES = frozenset({b"if-match", b"if-unmodified-since"})
"""Preconditions that are not applicable to a cache (RFC 9111 §4.3.2)."""
VALIDATED = frozenset({"GET", "HEAD"})
"""Methods in which a condition that fails is a 304; in all others it is a 412 (RFC 9110 §13.1.2, §13.2.2)."""
OF_A_RANGE = frozenset({b"range", b"if-range"})
"""Fields that ask for a part of a response (RFC 9110 §14.2, §13.1.5)."""
NOT_FRESHENED = frozenset({b"content-length", b"content-encoding", b"content-range"})
"""Fields that say how the stored body is to be read, which an update does not replace (RFC 9111 §3.2)."""
NOT_IN_A_304 = frozenset(
    {b"content-length", b"content-encoding", b"content-language", b"content-type", b"content-range", b"trailer"}
)


_ENTITY_TAGS = re.compile(r'(?:W/)?"[^"]*"|[^, \t]+')
"""A backslash escapes nothing in an entity tag; one without quotes is taken as it is (RFC 9110 §8.8.3)."""


def entity_tag(headers: Headers) -> str | None:
    """Return the ETag, or None where there is none or more than one."""
    lines = field_lines(headers, b"etag")
    return lines[0] if len(lines) == 1 and lines[0] else None


def is_entity_tag(text: str) -> bool:
    """Return whether *text* is one entity tag, and not several (RFC 9110 §8.8.3)."""
    return _ENTITY_TAGS.fullmatch(text) is not None


def weakly_equal(one: str, other: str) -> bool:
    """Return whether two entity tags are equal by weak comparison (RFC 9110 §8.8.3.2)."""
    return one.removeprefix("W/") == other.removeprefix("W/")


def not_modified(
    request: RequestHead, status: int, response: Headers, received_at: float, *, stored: bool = True
) -> bool:
    """Return whether *request* is to get a 304 for a response with *status* and the fields *response*.

    Only a 200 becomes one: to GET or HEAD, and to QUERY, whose representation is that of a GET (RFC 9110 §13.2.1).
    If-None-Match decides alone where it is there (§13.2.2). An If-Modified-Since is ignored that is no date, or in
    another method than GET and HEAD. Without Last-Modified, what is *stored* is compared by its Date (RFC 9111
    §4.3.2), and what the handler gave just now not at all (RFC 9110 §13.1.3).
    """
    if status != 200 or request.method == "POST" or not has_any(request.headers, CONDITIONAL):
        return False
    wanted = combined(request.headers, b"if-none-match")
    if wanted is not None:
        if wanted == "*":
            return True
        tag = entity_tag(response)
        return tag is not None and any(weakly_equal(tag, member) for member in _ENTITY_TAGS.findall(wanted))
    since = single_date(request.headers, b"if-modified-since", received_at)
    if since is None or request.method not in ("GET", "HEAD"):
        return False
    modified = single_date(response, b"last-modified", received_at)
    if modified is None and stored:
        modified = date_value(response, received_at)
    return modified is not None and modified <= since


def validating_headers(request: Headers, stored: Headers, made: str | None = None) -> Headers | None:
    """Return *request* with the preconditions that validate a response with the fields *stored* (RFC 9111 §4.3.1).

    They take the place of the client's own, and of a range, for all of the response is validated. None: the
    response has no validator.

    Args:
        request: The fields of the request.
        stored: Those of the response.
        made: An entity tag that the cache made, which nobody else knows.
    """
    tag = entity_tag(stored)
    modified = field_lines(stored, b"last-modified")
    conditions: list[tuple[bytes, bytes]] = []
    if tag is not None and tag != made:
        conditions.append((b"if-none-match", tag.encode("latin-1")))
    if len(modified) == 1:
        conditions.append((b"if-modified-since", modified[0].encode("latin-1")))
    return (*without(request, CONDITIONAL | OF_A_RANGE), *conditions) if conditions else None


def identifies(update: Headers, stored: Headers) -> bool:
    """Return whether a 304 of the fields *update* is about a response of the fields *stored* (RFC 9111 §4.3.4).

    A strong validator must be the same one, weak ones must correspond. A 304 without any is the answer to a
    condition that named this response alone.
    """
    tag = entity_tag(update)
    if tag is not None:
        own = entity_tag(stored)
        return own is not None and (weakly_equal(tag, own) if tag.startswith("W/") else tag == own)
    modified = field_lines(update, b"last-modified")
    return not modified or modified == field_lines(stored, b"last-modified")


def same_strongly(update: Headers, stored: Headers) -> bool:
    """Return whether both have the same strong validator: each such response is updated (RFC 9111 §4.3.4)."""
    tag = entity_tag(update)
    return tag is not None and not tag.startswith("W/") and tag == entity_tag(stored)


def head_agrees(update: Headers, stored: StoredResponse) -> bool | None:
    """Return whether the 200 to a HEAD is about the same representation as *stored* (RFC 9111 §4.3.5).

    None: the answer to the HEAD has no validator to tell by. A stored response of another status is not what the
    same GET would be answered with now.
    """
    received = {name: lines for name in (b"etag", b"last-modified") if (lines := field_lines(update, name))}
    differs = any(lines != field_lines(stored.headers, name) for name, lines in received.items())
    length = combined(update, b"content-length")
    if differs or stored.status != 200 or length not in (None, str(len(stored.body))):
        return False
    return True if received else None


def freshened(stored: Headers, update: Headers, received_at: float) -> Headers:
    """Return the fields of a stored response after a 304, or a HEAD, with the fields *update* (RFC 9111 §3.2).

    It is as old as the update says (§4.2.3): the stored Age goes, and if the update has no Date, the stored one
    becomes that of *received_at* (RFC 9110 §6.6.1).
    """
    update = without(end_to_end(update), NOT_FRESHENED)
    if field_lines(stored, b"date") and not field_lines(update, b"date"):
        update = (*update, (b"date", formatdate(received_at, usegmt=True).encode("ascii")))
    replaced = frozenset(name.lower() for name, _ in update) | {b"age"}
    return (*without(stored, replaced), *update)


def fields_of_304(headers: Headers) -> Headers:
    """Return those of *headers* that a 304 carries: all but what describes the content (RFC 9110 §15.4.5)."""
    return without(headers, NOT_IN_A_304)

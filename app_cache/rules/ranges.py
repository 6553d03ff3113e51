"""Parts of a complete response that is stored (RFC 9110 §13.1.5, §14)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from app_cache.rules.freshness import date_value, single_date
from app_cache.rules.messages import Answer, Headers, field_lines, list_members, without
from app_cache.rules.validators import entity_tag

if TYPE_CHECKING:
    from app_cache.rules.messages import RequestHead, StoredResponse

MOST_RANGES = 100
"""Range specs beyond which a Range is ignored: nobody needs them, and they cost (RFC 9110 §14.2, §17.15)."""
CLOCKS_APART = 60.0
"""Seconds that Date must be after Last-Modified for the two clocks not to matter (RFC 9110 §8.8.2.2).

One second would do if they were the same; but Last-Modified often comes from a database or a disk.
"""
UNSATISFIABLE = range(0)
"""What a Range asks for if none of its bytes are there (RFC 9110 §14.1.2)."""

_OF_THE_WHOLE = frozenset({b"content-length", b"content-range", b"content-digest"})
"""Fields that are true of all the content alone (RFC 9110 §8.6, §14.4; RFC 9530 §2)."""
_IN_A_416 = frozenset({b"etag", b"vary"})
_RANGE_SPEC = re.compile(r"(?P<first>[0-9]+)-(?P<last>[0-9]*)|-(?P<suffix>[0-9]+)")
_STRONG_TAG = re.compile(r'"[!#-~\x80-\xff]*"')


def ranged(request: RequestHead, response: StoredResponse) -> Answer | None:
    """Return the part of *response* that *request* asks for by its Range, or a 416 without content.

    None: it gets the whole (RFC 9110 §14.2). Range counts in a GET, of a 200; preconditions other than If-Range
    are evaluated before (§13.2.2). A part has all fields of the whole, even where If-Range shows that the client
    knows them (§15.3.7): some clients compare. The ETag and Vary of a 416 tell which response has the length that
    it states; it has no field that lets a cache store it, for its status is not cacheable without one (§15.1), and
    once stored it would answer requests for the whole.
    """
    asked = field_lines(request.headers, b"range")
    if request.method != "GET" or response.status != 200 or len(asked) != 1:
        return None
    conditions = field_lines(request.headers, b"if-range")
    if len(conditions) > 1 or not all(
        if_range_holds(condition, response.headers, response.received_at) for condition in conditions
    ):
        return None
    length = len(response.body)
    wanted = wanted_range(asked[0], length)
    if wanted is None:
        return None
    if wanted == UNSATISFIABLE:
        kept = tuple((name, value) for name, value in response.headers if name.lower() in _IN_A_416)
        return Answer(416, (*kept, (b"content-length", b"0"), (b"content-range", b"bytes */%d" % length)), b"")
    described = (
        (b"content-length", b"%d" % len(wanted)),
        (b"content-range", b"bytes %d-%d/%d" % (wanted[0], wanted[-1], length)),
    )
    headers = (*without(response.headers, _OF_THE_WHOLE), *described)
    return Answer(206, headers, response.body[wanted.start : wanted.stop])


def wanted_range(value: str, length: int) -> range | None:
    """Return the bytes of *length* that a Range asks for, `UNSATISFIABLE` if none is there (RFC 9110 §14.1.2).

    None: the Range is ignored (§14.2), because its unit is another, its syntax is wrong, it has too many ranges or
    a gap between them, for no multipart is made, or there is no content to take a part of.

    >>> wanted_range("bytes=500-700, 601-", 1000), wanted_range("bytes=-20", 1000)
    (range(500, 1000), range(980, 1000))
    """
    unit, _, range_set = value.partition("=")
    specs = list_members(range_set)
    if unit.lower() != "bytes" or not 1 <= len(specs) <= MOST_RANGES or length == 0:
        return None
    wanted: list[range] = []
    for spec in specs:
        match = _RANGE_SPEC.fullmatch(spec)
        if match is None or _is_backward(match):
            return None
        wanted.append(_positions(match, length))
    return _joined(sorted(filter(None, wanted), key=lambda each: each.start))


def _is_backward(spec: re.Match[str]) -> bool:
    """Return whether *spec* ends before it begins, which is invalid, however large the numbers are (§14.1.1)."""
    first, last = (spec["first"] or "").lstrip("0"), (spec["last"] or "").lstrip("0")
    return bool(spec["last"]) and (len(last), last) < (len(first), first)


def _positions(spec: re.Match[str], length: int) -> range:
    """Return the bytes that are there of what *spec* asks for (§14.1.2)."""
    if spec["suffix"] is not None:
        return range(length - _at_most(spec["suffix"], length), length)
    end = min(_at_most(spec["last"], length) + 1, length) if spec["last"] else length
    return range(_at_most(spec["first"], length), end)


def _at_most(digits: str, limit: int) -> int:
    """Return the number that *digits* write, or *limit* if it is larger."""
    significant = digits.lstrip("0")
    return limit if len(significant) > len(str(limit)) else min(int(significant or "0"), limit)


def _joined(parts: list[range]) -> range | None:
    """Return *parts*, sorted and none empty, as one range; None if there is a gap between them (§15.3.7.2)."""
    if not parts:
        return UNSATISFIABLE
    stop = parts[0].stop
    for part in parts[1:]:
        if part.start > stop:
            return None
        stop = max(stop, part.stop)
    return range(parts[0].start, stop)


def if_range_holds(value: str, response: Headers, received_at: float) -> bool:
    """Return whether a response with the fields *response* is the version that If-Range names (RFC 9110 §13.1.5).

    That is a strong entity tag, or a date that is the same text as Last-Modified and strong (§8.8.2.2).
    """
    if _STRONG_TAG.fullmatch(value) is not None:
        return value == entity_tag(response)
    modified = single_date(response, b"last-modified", received_at)
    if modified is None or field_lines(response, b"last-modified") != [value]:
        return False
    return date_value(response, received_at) - modified >= CLOCKS_APART

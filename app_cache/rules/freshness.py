"""How long a response is fresh, and how old it is (RFC 9111 §4.2, RFC 9110 §5.6.7)."""

from __future__ import annotations

import calendar
import re
import time
from typing import TYPE_CHECKING

from app_cache.rules.directives import LONGEST, ResponseDirectives, delta_seconds
from app_cache.rules.messages import field_lines, field_members, has_field

if TYPE_CHECKING:
    from app_cache.rules.messages import Headers, ResponseHead, StoredResponse

HEURISTIC_FRACTION = 0.1
"""The part of the time since Last-Modified for which a response is taken to be fresh (RFC 9111 §4.2.2)."""
HEURISTIC_STATUSES = frozenset({200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501})
"""Statuses that are heuristically cacheable (RFC 9110 §15.1), 206 left out."""

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_LONG_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_TIME = r"(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
_MONTH = rf"(?P<month>{'|'.join(_MONTHS)})"
_FORMATS = tuple(
    re.compile(pattern, re.IGNORECASE | re.ASCII)
    for pattern in (
        rf"(?:{'|'.join(_DAYS)}), (?P<day>[0-9]{{2}}) {_MONTH} (?P<year>[0-9]{{4}}) {_TIME} GMT",
        rf"(?:{'|'.join(_LONG_DAYS)}), (?P<day>[0-9]{{2}})-{_MONTH}-(?P<year>[0-9]{{2}}) {_TIME} GMT",
        rf"(?:{'|'.join(_DAYS)}) {_MONTH} (?P<day>[0-9]{{2}}| [0-9]) {_TIME} (?P<year>[0-9]{{4}})",
    )
)


def parse_http_date(text: str, now: float) -> float | None:
    """Return *text* as epoch seconds, or None if it is none of the three formats (RFC 9110 §5.6.7).

    Case does not matter to a cache (RFC 9111 §4.2). *now* decides the century of a two-digit year: what would be
    more than 50 years ahead is in the past.

    >>> parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT", 0)
    784111777.0
    """
    for pattern in _FORMATS:
        match = pattern.fullmatch(text)
        if match is not None:
            return _epoch_seconds(match, now)
    return None


def _epoch_seconds(match: re.Match[str], now: float) -> float | None:
    year, month, day = int(match["year"]), _MONTHS.index(match["month"].title()) + 1, int(match["day"])
    hour, minute, second = int(match["hour"]), int(match["minute"]), int(match["second"])
    if len(match["year"]) == 2:
        today = time.gmtime(now)
        year += today.tm_year - today.tm_year % 100
        in_50_years = (today.tm_year + 50, *today[1:6])
        year -= 100 if (year, month, day, hour, minute, second) > in_50_years else 0
    if year < 1 or not 1 <= day <= calendar.monthrange(year, month)[1] or hour > 23 or minute > 59 or second > 60:
        return None
    return float(calendar.timegm((year, month, day, hour, minute, second)))


def single_date(headers: Headers, name: bytes, now: float) -> float | None:
    """Return the date in the field *name*, or None if it is absent, repeated or no date."""
    lines = field_lines(headers, name)
    return parse_http_date(lines[0], now) if len(lines) == 1 else None


def date_value(headers: Headers, received_at: float) -> float:
    """Return the value of Date in epoch seconds, *received_at* where there is none (RFC 9110 §6.6.1)."""
    date = single_date(headers, b"date", received_at)
    return received_at if date is None else date


def age_value(headers: Headers) -> int:
    """Return the value of Age in seconds, 0 where it is absent or invalid (RFC 9111 §4.2.3, §5.1)."""
    members = field_members(headers, b"age")
    return (delta_seconds(members[0]) or 0) if members else 0


def explicit_lifetime(said: ResponseDirectives, headers: Headers, received_at: float) -> float | None:
    """Return the seconds of freshness that a response states for a shared cache, or None (RFC 9111 §4.2.1).

    A targeted field takes the place of Expires too (RFC 9213 §2.2).
    """
    if said.s_maxage is not None:
        return float(said.s_maxage)
    if said.max_age is not None:
        return float(said.max_age)
    if said.targeted or not has_field(headers, b"expires"):
        return None
    expires = single_date(headers, b"expires", received_at)
    return 0.0 if expires is None else max(0.0, expires - date_value(headers, received_at))


def heuristic_lifetime(response: ResponseHead, said: ResponseDirectives, received_at: float) -> float | None:
    """Return the seconds for which a response that states no lifetime is taken to be fresh; 0 if nothing tells.

    None: it is not heuristically cacheable, and not to be stored (RFC 9111 §3, §4.2.2).
    """
    if not (response.status in HEURISTIC_STATUSES or said.public):
        return None
    modified = single_date(response.headers, b"last-modified", received_at)
    if modified is None:
        return 0.0
    return max(0.0, HEURISTIC_FRACTION * (date_value(response.headers, received_at) - modified))


def corrected_initial_age(response: StoredResponse) -> float:
    """Return the age of *response* when it was received, in seconds (RFC 9111 §4.2.3)."""
    apparent_age = max(0.0, response.received_at - date_value(response.headers, response.received_at))
    response_delay = max(0.0, response.received_at - response.requested_at)
    corrected_age_value = age_value(response.headers) + response_delay
    return max(apparent_age, corrected_age_value)


AHEAD_S = 1.0
"""Seconds that the clocks of two hosts may differ, or one clock go back, before it counts as ahead."""


def freshness_left(response: StoredResponse, age: float, now: float, *, marked_stale: bool = False) -> float:
    """Return the seconds that *response* of *age* stays fresh from *now* on, negative where it is stale.

    If it was *marked_stale*, or received by a clock that is ahead, that is 0 at most.
    """
    left = response.freshness_lifetime - age
    return min(left, 0.0) if marked_stale or is_ahead(response.received_at, now) else left


def is_ahead(moment: float, now: float) -> bool:
    """Return whether *moment* was told by a clock that is ahead of the one that says *now*.

    Nobody knows for how long something is fresh that was made at such a moment; it counts as stale.
    """
    return moment - now > AHEAD_S


def current_age(response: StoredResponse, now: float) -> float:
    """Return the age of *response* at *now*, in seconds, never negative (RFC 9111 §4.2.3)."""
    resident_time = max(0.0, now - response.received_at)
    return min(corrected_initial_age(response) + resident_time, float(LONGEST))

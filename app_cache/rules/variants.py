"""Which stored response was selected by the same request fields (RFC 9111 §4.1)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from app_cache.rules.freshness import date_value
from app_cache.rules.messages import Headers, combined, field_lines, field_members, is_token

if TYPE_CHECKING:
    from app_cache.policy import CachePolicy

Variant = tuple[tuple[str, str | None], ...]
"""The fields that Vary names, sorted, with their values in the request; None where the field is absent."""
PREFERENCES = frozenset({"accept", "accept-charset", "accept-encoding", "accept-language"})
"""Lists in which weights tell what is preferred (RFC 9110 §12.5)."""
LISTS = PREFERENCES | {
    "cache-control",
    "forwarded",
    "if-match",
    "if-none-match",
    "pragma",
    "prefer",
    "te",
    "via",
    "x-forwarded-for",
}
"""Fields known to be lists, in which blanks around commas and empty members mean nothing (RFC 9110 §5.6.1)."""
_WEIGHT = re.compile(r"0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?")


def vary_fields(headers: Headers) -> frozenset[str] | None:
    """Return the lower-case names in Vary, empty where it is absent.

    None: no request is told to select the same response, for a member is ``*``, or no name of a field.
    """
    members = field_members(headers, b"vary")
    if not members:
        return frozenset()
    names = frozenset(member.lower() for member in members)
    return None if "*" in names or not all(map(is_token, names)) else names


def variant(fields: frozenset[str], request: Headers) -> Variant:
    """Return the values of *fields* in *request*, in one form for all that mean the same (RFC 9111 §4.1)."""
    return tuple((name, _in_one_form(name, request)) for name in sorted(fields))


def _in_one_form(name: str, request: Headers) -> str | None:
    field = name.encode("latin-1")
    if name not in LISTS or not field_lines(request, field):
        return combined(request, field)
    members = field_members(request, field)
    return ", ".join(_by_preference(members) if name in PREFERENCES else members)


def _by_preference(members: list[str]) -> list[str]:
    """Return *members* by falling weight, a weight of 1 left out; of one weight, order and all else are kept."""
    weighed = [_weighed(member) for member in members]
    if any(weight is None for _, weight in weighed):
        return members
    weighed.sort(key=lambda each: -float(each[1] or 0))
    return [text if float(weight or 0) == 1 else f"{text};q={float(weight or 0):g}" for text, weight in weighed]


def _weighed(member: str) -> tuple[str, str | None]:
    """Return what *member* prefers, and its weight (RFC 9110 §12.4.2); None where one of them cannot be read."""
    if '"' in member:
        return member, None
    preferred, *parameters = [part.strip(" \t") for part in member.split(";")]
    weight, *others = [part[2:] for part in parameters if part[:2].lower() == "q="] or ["1"]
    text = ";".join([preferred.lower(), *(part for part in parameters if part[:2].lower() != "q=")])
    readable = preferred and not others and _WEIGHT.fullmatch(weight)
    return text, weight if readable else None


def selecting_fields(headers: Headers, policy: CachePolicy) -> frozenset[str]:
    """Return the request fields beyond the key that a response with *headers* varies by, as *policy* has it.

    What joins the key selects already; of credentials the author may say that they do not matter.
    """
    named = vary_fields(headers)
    if not named:
        return frozenset()
    declared = {"authorization", "cookie"} & {*policy.exclude_headers}
    return named - {*policy.include_headers} - declared


def precedence(headers: Headers, received_at: float) -> tuple[bool, float]:
    """Return what decides between several that match: Vary, then the later Date (RFC 9111 §4, §4.1)."""
    return vary_fields(headers) != frozenset(), date_value(headers, received_at)


def announced(headers: Headers, names: tuple[str, ...]) -> Headers:
    """Return *headers* with *names* in Vary, added to the ones it has."""
    there = vary_fields(headers) if names else None
    missing = [] if there is None else [name for name in names if name not in there]
    return (*headers, (b"vary", ", ".join(missing).encode("latin-1"))) if missing else headers

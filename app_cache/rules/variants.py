"""Which stored response was selected by the same request fields (RFC 9111 §4.1)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from app_cache.rules.freshness import date_value
from app_cache.rules.messages import Headers, field_lines, field_members, is_token

if TYPE_CHECKING:
    from app_cache.policy import CachePolicy

Variant = tuple[tuple[str, str | None], ...]
"""The fields that Vary names, sorted, with their lines in the request; None where the field is absent."""
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
"""Fields known to be lists, in which blanks around commas mean nothing (RFC 9110 §5.6.1)."""
_WEIGHT_OF_1 = re.compile(r"[qQ]=1(?:\.0{0,3})?")


def vary_fields(headers: Headers) -> frozenset[str] | None:
    """Return the lower-case names in Vary, empty where it is absent.

    None: of no request can be told that it selects the same response, for a member is ``*``, or no field's name.
    """
    members = field_members(headers, b"vary")
    if not members:
        return frozenset()
    names = frozenset(member.lower() for member in members)
    return None if "*" in names or not all(map(is_token, names)) else names


def variant(fields: frozenset[str], request: Headers) -> Variant:
    """Return the values of *fields* in *request*, in one form for what no handler tells apart (RFC 9111 §4.1).

    Lines stay apart and in order, and so do members of lists: a handler may read only the first of either.
    """
    return tuple((name, _in_one_form(name, request)) for name in sorted(fields))


def _in_one_form(name: str, request: Headers) -> str | None:
    lines = field_lines(request, name.encode("latin-1"))
    if not lines:
        return None
    if name in LISTS:
        lines = [_list_in_one_form(line, with_weights=name in PREFERENCES) for line in lines]
    return "\n".join(lines)


def _list_in_one_form(line: str, *, with_weights: bool) -> str:
    """Return a list with no blanks around commas, empty members kept; as it is where anything in it is quoted."""
    if '"' in line:
        return line
    members = [member.strip(" \t") for member in line.split(",")]
    return ",".join(map(_preference, members) if with_weights else members)


def _preference(member: str) -> str:
    """Return a member in lower case, but for its parameters, and without a weight of 1 (RFC 9110 §12.4.2)."""
    preferred, *parameters = [part.strip(" \t") for part in member.split(";")]
    weights = [part for part in parameters if part[:2].lower() == "q="]
    if len(weights) == 1 and parameters[-1] == weights[0] and _WEIGHT_OF_1.fullmatch(weights[0]):
        parameters.pop()
    return ";".join([preferred.lower(), *parameters])


def selecting_fields(headers: Headers, policy: CachePolicy) -> frozenset[str]:
    """Return the request fields beyond the key that a response with *headers* varies by, as *policy* has it.

    Fields that join the key select already; of credentials the author may say that they do not matter.
    """
    named = vary_fields(headers)
    if not named:
        return frozenset()
    declared = {"authorization", "cookie"} & {*policy.exclude_headers}
    return named - {*policy.include_headers} - declared


def precedence(headers: Headers, requested_at: float) -> tuple[bool, float]:
    """Return what decides between several responses that match: Vary, then the later Date (RFC 9111 §4, §4.1).

    A response without Date was made after *requested_at*: of two, the one whose handler began later is the later.
    """
    return vary_fields(headers) != frozenset(), date_value(headers, requested_at)


def announced(headers: Headers, names: tuple[str, ...]) -> Headers:
    """Return *headers* with *names* in Vary, added to the ones it has."""
    there = vary_fields(headers) if names else None
    missing = [] if there is None else [name for name in names if name not in there]
    return (*headers, (b"vary", ", ".join(missing).encode("latin-1"))) if missing else headers

"""Which stored response was selected by the same request fields (RFC 9111 §4.1)."""

from __future__ import annotations

from app_cache.rules.messages import Headers, combined, list_members

Variant = tuple[tuple[str, str | None], ...]
"""The fields that Vary names, sorted, with their values in the request; None where the field is absent."""
LISTS = frozenset({"accept", "accept-charset", "accept-encoding", "accept-language"})
"""Fields known to be lists, in which blanks around commas and empty members mean nothing (RFC 9110 §12.5)."""


def vary_fields(headers: Headers) -> frozenset[str] | None:
    """Return the lower-case names in Vary, empty where it is absent; None if ``*`` is among them."""
    names = frozenset(member.lower() for member in list_members(combined(headers, b"vary") or ""))
    return None if "*" in names else names


def variant(fields: frozenset[str], request: Headers) -> Variant:
    """Return the values of *fields* in *request*, those of `LISTS` in one form (RFC 9111 §4.1)."""
    return tuple((name, _in_one_form(name, combined(request, name.encode("latin-1")))) for name in sorted(fields))


def _in_one_form(name: str, value: str | None) -> str | None:
    return ", ".join(list_members(value)) if value and name in LISTS else value


def announced(headers: Headers, names: tuple[str, ...]) -> Headers:
    """Return *headers* with *names* in Vary, added to the ones it has."""
    there = vary_fields(headers)
    missing = [] if there is None else [name for name in names if name not in there]
    return (*headers, (b"vary", ", ".join(missing).encode("latin-1"))) if missing else headers

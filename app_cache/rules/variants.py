"""Which stored response was selected by the same request fields (RFC 9111 §4.1)."""

from __future__ import annotations

from app_cache.rules.messages import Headers, combined, list_members

Variant = tuple[tuple[str, str | None], ...]
"""The fields that Vary names, sorted, with their values in the request; None where the field is absent."""


def vary_fields(headers: Headers) -> frozenset[str] | None:
    """Return the lower-case names in Vary, empty where it is absent; None if ``*`` is among them."""
    names = frozenset(member.lower() for member in list_members(combined(headers, b"vary") or ""))
    return None if "*" in names else names


def variant(fields: frozenset[str], request: Headers) -> Variant:
    """Return the values of *fields* in *request*, lists normalised to one form (RFC 9111 §4.1)."""
    return tuple((name, normalised(combined(request, name.encode("latin-1")))) for name in sorted(fields))


def normalised(value: str | None) -> str | None:
    """Return *value* with the blanks around its commas made one; None stays None."""
    return None if value is None else ", ".join(list_members(value))


def announced(headers: Headers, names: tuple[str, ...]) -> Headers:
    """Return *headers* with *names* in Vary, added to the ones it has."""
    there = vary_fields(headers)
    missing = [] if there is None else [name for name in names if name not in there]
    return (*headers, (b"vary", ", ".join(missing).encode("latin-1"))) if missing else headers

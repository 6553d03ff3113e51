"""Cache-Control, parsed and never searched (RFC 9111 §5.2, RFC 5861); every parser takes any text."""

from __future__ import annotations

from dataclasses import dataclass

from app_cache.rules.messages import Headers, combined, list_members

LONGEST = 2**31
"""Seconds at which a delta-seconds saturates (RFC 9111 §1.2.2)."""
_NAMING_FIELDS = frozenset({"private", "no-cache"})


def parse_directives(value: str) -> dict[str, str | None]:
    """Return directives by lower-case name, each with its argument or None.

    A quoted argument is unquoted, whatever it holds. Of a repeated directive the first counts, but what two
    lists of fields name is added up, and one without a list is the stricter (§4.2.1).

    >>> parse_directives('Max-Age="60", private="set-cookie, x", foo')
    {'max-age': '60', 'private': 'set-cookie, x', 'foo': None}
    """
    found: dict[str, str | None] = {}
    repeated: dict[str, list[str | None]] = {}
    for member in list_members(value):
        name, equals, text = member.partition("=")
        name = name.strip(" \t").lower()
        argument = _unquoted(text.strip(" \t")) if equals else None
        if name and name not in found:
            found[name] = argument
        elif name in _NAMING_FIELDS:
            repeated.setdefault(name, [found[name]]).append(argument)
    for name, arguments in repeated.items():
        lists = [argument for argument in arguments if argument]
        found[name] = ", ".join(lists) if len(lists) == len(arguments) else None
    return found


def delta_seconds(argument: str | None) -> int | None:
    """Return *argument* as seconds, or None if it is no delta-seconds (RFC 9111 §1.2.2)."""
    if argument is None or not (argument.isascii() and argument.isdigit()):
        return None
    digits = argument.lstrip("0")
    return LONGEST if len(digits) > 10 else min(int(digits or "0"), LONGEST)


def _unquoted(argument: str) -> str:
    if not argument.startswith('"'):
        return argument
    inner = argument[1:-1] if len(argument) > 1 and argument.endswith('"') else argument[1:]
    if "\\" not in inner:
        return inner
    characters: list[str] = []
    escaped = False
    for char in inner:
        if char == "\\" and not escaped:
            escaped = True
        else:
            characters.append(char)
            escaped = False
    return "".join(characters)


@dataclass(frozen=True, slots=True)
class RequestDirectives:
    """What a client asks for (RFC 9111 §5.2.1); an argument that cannot be read counts as absent."""

    no_cache: bool = False
    no_store: bool = False
    only_if_cached: bool = False
    max_age: int | None = None
    min_fresh: int | None = None
    max_stale: int | None = None


NOTHING_ASKED = RequestDirectives()


def request_directives(headers: Headers) -> RequestDirectives:
    """Return what the request says in Cache-Control, or in Pragma where that is absent (RFC 9111 §5.2.1, §5.4)."""
    value = combined(headers, b"cache-control")
    if value is None:
        pragma = combined(headers, b"pragma")
        return RequestDirectives(no_cache="no-cache" in parse_directives(pragma)) if pragma else NOTHING_ASKED
    said = parse_directives(value)
    max_stale = said.get("max-stale", "")
    return RequestDirectives(
        no_cache="no-cache" in said,
        no_store="no-store" in said,
        only_if_cached="only-if-cached" in said,
        max_age=delta_seconds(said.get("max-age")),
        min_fresh=delta_seconds(said.get("min-fresh")),
        max_stale=LONGEST if max_stale is None else delta_seconds(max_stale),
    )


@dataclass(frozen=True, slots=True)
class ResponseDirectives:
    """What a response says (RFC 9111 §5.2.2); a lifetime that cannot be read is 0, and so stale (§4.2.1)."""

    no_store: bool = False
    no_cache: bool = False
    private: bool = False
    public: bool = False
    must_revalidate: bool = False
    proxy_revalidate: bool = False
    must_understand: bool = False
    max_age: int | None = None
    s_maxage: int | None = None
    stale_while_revalidate: int | None = None
    stale_if_error: int | None = None
    withheld: frozenset[bytes] = frozenset()
    """Fields that ``private="…"`` and ``no-cache="…"`` name: a shared cache does not keep them."""


NOTHING_SAID = ResponseDirectives()


def response_directives(headers: Headers) -> ResponseDirectives:
    """Return what the response says in Cache-Control (RFC 9111 §5.2.2)."""
    value = combined(headers, b"cache-control")
    if value is None:
        return NOTHING_SAID
    said = parse_directives(value)
    named = [argument for name in ("private", "no-cache") if (argument := said.get(name))]
    return ResponseDirectives(
        no_store="no-store" in said,
        no_cache=_unqualified(said, "no-cache"),
        private=_unqualified(said, "private"),
        public="public" in said,
        must_revalidate="must-revalidate" in said,
        proxy_revalidate="proxy-revalidate" in said,
        must_understand="must-understand" in said,
        max_age=_lifetime(said, "max-age"),
        s_maxage=_lifetime(said, "s-maxage"),
        stale_while_revalidate=delta_seconds(said.get("stale-while-revalidate")),
        stale_if_error=delta_seconds(said.get("stale-if-error")),
        withheld=frozenset(
            field.lower().encode("latin-1") for argument in named for field in list_members(argument)
        ),
    )


def _unqualified(said: dict[str, str | None], name: str) -> bool:
    return name in said and not said[name]


def _lifetime(said: dict[str, str | None], name: str) -> int | None:
    if name not in said:
        return None
    seconds = delta_seconds(said[name])
    return 0 if seconds is None else seconds

"""Cache directives, parsed and never searched (RFC 9111 §5.2, RFC 9213, RFC 5861); every parser takes any text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from app_cache.rules.messages import Headers, combined, field_lines, is_token, list_members, token_of
from app_cache.rules.structured import parse_dictionary

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from app_cache.rules.structured import Member

    Directives = Mapping[str, str | None]

LONGEST = 2**31
"""Seconds at which a delta-seconds saturates (RFC 9111 §1.2.2)."""
TARGETED = (b"cdn-cache-control",)
"""Fields that take the place of Cache-Control and Expires, the first that is valid (RFC 9213 §2.2)."""
DECIDING = frozenset(
    {
        *(b"age", b"cache-control", b"date", b"etag", b"expires", b"vary", *TARGETED),
        *(b"content-encoding", b"content-range", b"content-type", b"location"),
    }
)
"""Fields that decide whom a stored response may answer, how long, and as what its body is read.

If one of them may not be kept, the response is not stored.
"""
_NAMING_FIELDS = frozenset({"private", "no-cache"})
_RESTRICTING = frozenset({"no-cache", "no-store", "private"})
_ARGUMENT = re.compile(r'=(?:[^\s;="]*|"(?:[^"\\]|\\.)*")', re.DOTALL)
_WORDS = re.compile(r"[^\s;=]+")
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


def parse_directives(lines: Iterable[str]) -> dict[str, str | None]:
    """Return the directives in field *lines* by lower-case name, each with its argument or None.

    A quoted argument is unquoted, whatever it holds. Text after a name that is no argument becomes one that
    nothing can read, but ``no-cache``, ``no-store`` or ``private`` in it counts: it was meant as a directive. Of
    a repeated directive the first counts; but lists of fields are joined, and one without a list is the stricter
    (§4.2.1).

    >>> parse_directives(['Max-Age="60", private="set-cookie, x"', "foo, public; no-store"])
    {'max-age': '60', 'private': 'set-cookie, x', 'foo': None, 'public': '; no-store', 'no-store': None}
    """
    found: dict[str, str | None] = {}
    repeated: dict[str, list[str | None]] = {}
    members = (member for line in lines for member in list_members(line))
    for name, argument in (directive for member in members for directive in _directives(member)):
        if name not in found:
            found[name] = argument
        elif name in _NAMING_FIELDS:
            repeated.setdefault(name, [found[name]]).append(argument)
    for name, arguments in repeated.items():
        lists = [argument for argument in arguments if argument]
        found[name] = ", ".join(lists) if len(lists) == len(arguments) else None
    return {name: argument for name, argument in found.items() if name}


def _directives(member: str) -> Iterator[tuple[str, str | None]]:
    name = token_of(member)
    rest = member[len(name) :]
    if not rest:
        yield name.lower(), None
        return
    yield name.lower(), _unquoted(rest[1:]) if rest.startswith("=") else rest
    if not _ARGUMENT.fullmatch(rest):
        for word in _WORDS.findall(rest.lower()):
            if word in _RESTRICTING:
                yield word, None


def delta_seconds(argument: str | None) -> int | None:
    """Return *argument* as seconds, or None if it is no delta-seconds (RFC 9111 §1.2.2)."""
    if argument is None or not (argument.isascii() and argument.isdigit()):
        return None
    digits = argument.lstrip("0")
    return LONGEST if len(digits) > 10 else min(int(digits or "0"), LONGEST)


def _unquoted(argument: str) -> str:
    if len(argument) < 2 or not (argument.startswith('"') and argument.endswith('"')):
        return argument
    return _ESCAPED.sub(r"\1", argument[1:-1])


@dataclass(frozen=True, slots=True)
class RequestDirectives:
    """What a client asks for (RFC 9111 §5.2.1, RFC 5861 §4); an argument that cannot be read counts as absent."""

    no_cache: bool = False
    no_store: bool = False
    only_if_cached: bool = False
    max_age: int | None = None
    min_fresh: int | None = None
    max_stale: int | None = None
    stale_if_error: int | None = None


NOTHING_ASKED = RequestDirectives()


def request_directives(headers: Headers) -> RequestDirectives:
    """Return what the request says in Cache-Control, or in Pragma where that is absent (RFC 9111 §5.2.1, §5.4)."""
    lines = field_lines(headers, b"cache-control")
    if not lines:
        pragma = field_lines(headers, b"pragma")
        return RequestDirectives(no_cache="no-cache" in parse_directives(pragma)) if pragma else NOTHING_ASKED
    said = parse_directives(lines)
    max_stale = said.get("max-stale", "")
    return RequestDirectives(
        no_cache="no-cache" in said,
        no_store="no-store" in said,
        only_if_cached="only-if-cached" in said,
        max_age=delta_seconds(said.get("max-age")),
        min_fresh=delta_seconds(said.get("min-fresh")),
        max_stale=LONGEST if max_stale is None else delta_seconds(max_stale),
        stale_if_error=delta_seconds(said.get("stale-if-error")),
    )


@dataclass(frozen=True, slots=True)
class ResponseDirectives:
    """What a response says (RFC 9111 §5.2.2); a lifetime that cannot be read is 0, and so stale (§4.2.1).

    *targeted*: it says so to this kind of cache, in place of Cache-Control and Expires (RFC 9213 §2.2).
    """

    no_store: bool = False
    no_cache: bool = False
    private: bool = False
    public: bool = False
    shared: bool = False
    """Whether it may answer other clients than the one that asked with Authorization (§3.5)."""
    must_revalidate: bool = False
    proxy_revalidate: bool = False
    must_understand: bool = False
    max_age: int | None = None
    s_maxage: int | None = None
    stale_while_revalidate: int | None = None
    stale_if_error: int | None = None
    withheld: frozenset[bytes] = frozenset()
    """Fields that ``private="…"`` and ``no-cache="…"`` name: a shared cache does not keep them."""
    targeted: bool = False


NOTHING_SAID = ResponseDirectives()


def response_directives(headers: Headers) -> ResponseDirectives:
    """Return what the response says to a shared cache, in the first targeted field or in Cache-Control."""
    for name in TARGETED:
        value = combined(headers, name)
        said = _said_in_targeted(value) if value else None
        if said is not None:
            return said
    lines = field_lines(headers, b"cache-control")
    return _said_in_cache_control(*lines) if lines else NOTHING_SAID


@lru_cache(maxsize=1024)
def _said_in_targeted(value: str) -> ResponseDirectives | None:
    directives = _targeted_directives(value)
    return None if directives is None else _response_directives(directives, targeted=True)


@lru_cache(maxsize=1024)
def _said_in_cache_control(*lines: str) -> ResponseDirectives:
    return _response_directives(parse_directives(lines), targeted=False)


def _response_directives(said: Directives, *, targeted: bool) -> ResponseDirectives:
    return ResponseDirectives(
        no_store="no-store" in said,
        no_cache="no-cache" in said and _fields_named(said["no-cache"]) is None,
        private="private" in said and _fields_named(said["private"]) is None,
        public=said.get("public", "") is None,
        shared=_is_shared(said),
        must_revalidate="must-revalidate" in said,
        proxy_revalidate="proxy-revalidate" in said,
        must_understand=said.get("must-understand", "") is None,
        max_age=_lifetime(said, "max-age"),
        s_maxage=_lifetime(said, "s-maxage"),
        stale_while_revalidate=delta_seconds(said.get("stale-while-revalidate")),
        stale_if_error=delta_seconds(said.get("stale-if-error")),
        withheld=frozenset().union(*(_fields_named(said.get(name)) or () for name in _NAMING_FIELDS)),
        targeted=targeted,
    )


def _is_shared(said: Directives) -> bool:
    """Return whether one of the directives of §3.5 shares the response; one that cannot be read does not."""
    stated = said.get("public", "") is None or said.get("must-revalidate", "") is None
    return stated or delta_seconds(said.get("s-maxage")) is not None


def _fields_named(argument: str | None) -> frozenset[bytes] | None:
    """Return the fields that a list names, in lower case; None if all of the response is meant.

    All of it is meant if *argument* is no list of fields, or names one of `DECIDING`.
    """
    members = list_members(argument or "")
    if not members or not all(map(is_token, members)):
        return None
    named = frozenset(member.lower().encode("ascii") for member in members)
    return named if named.isdisjoint(DECIDING) else None


def _lifetime(said: Directives, name: str) -> int | None:
    if name not in said:
        return None
    seconds = delta_seconds(said[name])
    return 0 if seconds is None else seconds


def _targeted_directives(value: str) -> Directives | None:
    """Return the directives in a targeted field, None where it is empty or does not parse (RFC 9213 §2.1)."""
    members = parse_dictionary(value)
    if not members:
        return None
    return {key: _argument(key, value) for key, value in members.items() if value is not False}


def _argument(name: str, value: Member) -> str | None:
    """Return *value* as the argument of the directive *name*; of a wrong type, as one that nothing can read."""
    if value is True:
        return None
    takes_text = name in _NAMING_FIELDS
    return str(value) if isinstance(value, str if takes_text else int) else f"not for {name}: {value!r}"

"""Checks of options, and the fields of a dataclass that carry one.

A check is told an option's name and value, and returns the value in the one form in which it is kept. What cannot
work it refuses with a `ConfigurationError`: a sentence that names the option, what would have been right, and the
value.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import field, fields
from datetime import timedelta
from typing import Any, Protocol, TypeGuard, TypeVar

from app_cache.errors import ConfigurationError
from app_cache.templates import template_names

Kept = TypeVar("Kept")
Kept_co = TypeVar("Kept_co", covariant=True)

MAX_SECONDS = 2**31
"""Seconds that a cache reckons with at most (RFC 9111 §1.2.2)."""
MAX_PATTERN = 256
"""Characters of a pattern."""
MOST_EAGER = 100
"""The largest `early_refresh`: a hundred times the time that the handler took."""
NEVER_STORED = frozenset({428, 429, 431, 511})
"""Statuses about one request or client alone, which no cache stores (RFC 6585 §3 to §6)."""
CACHEABLE_METHODS = frozenset({"GET", "POST", "QUERY"})


class Check(Protocol[Kept_co]):
    """What an option may be, and in which form it is kept."""

    def __call__(self, name: str, value: Any, /) -> Kept_co: ...


def option(check: Check[Kept], *, default: Kept, of_http: bool = False) -> Kept:
    """Return a field of a dataclass, whose value `keep_checked` keeps as *check* returns it.

    Args:
        check: What is told the field's name and value.
        default: The value where none is given; it is checked too.
        of_http: Whether the option belongs to `CachePolicy.http` alone, and not to `@cache`.
    """
    return field(default=default, metadata={"check": check, "of_http": of_http})


def keep_checked(options: object, kind: type[Any]) -> None:
    """Replace each option of *kind* in *options*, which may be of a subclass, by what its check returns.

    Raises:
        ConfigurationError: If a value cannot work; the message names it.
    """
    for each in fields(kind):
        checked = each.metadata["check"](each.name, getattr(options, each.name))
        object.__setattr__(options, each.name, checked)


def optional(check: Check[Kept]) -> Check[Kept | None]:
    """Return *check* for an option that may be None."""

    def checked(name: str, value: Any) -> Kept | None:
        return None if value is None else check(name, value)

    return checked


# Flags and numbers.


def flag(name: str, value: object) -> bool:
    """Return *value* if it is True or False."""
    if not isinstance(value, bool):
        raise ConfigurationError(f"{name} must be True or False, not {value!r}")
    return value


def seconds(name: str, value: object) -> float:
    """Return the seconds of *value*, a number or a timedelta.

    Raises:
        ConfigurationError: If it is neither, is not positive, or is more than a cache can keep to.
    """
    given = _in_seconds(value)
    if not _is_number(given) or not 0 < given <= MAX_SECONDS:
        raise ConfigurationError(
            f"{name} must be a positive number of seconds or a timedelta, at most {MAX_SECONDS}, not {value!r}"
        )
    return given


def whole_seconds(name: str, value: object) -> int:
    """Return the seconds of *value*, a whole number from 0 or a timedelta."""
    given = _in_seconds(value)
    if not _is_number(given) or not 0 <= given < MAX_SECONDS or given != int(given):
        raise ConfigurationError(f"{name} must be a whole number of seconds from 0, not {value!r}")
    return int(given)


def byte_count(name: str, value: object) -> int:
    """Return *value* if it is a positive number of bytes."""
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise ConfigurationError(f"{name} must be a positive number of bytes, not {value!r}")
    return value


def fraction(name: str, value: object) -> float:
    """Return *value* if it is a number from 0 to below 1."""
    if not _is_number(value) or not 0 <= value < 1:
        raise ConfigurationError(f"{name} must be a fraction from 0 to below 1, not {value!r}")
    return float(value)


def eagerness(name: str, value: object) -> float:
    """Return *value* if it is a number from 0 to `MOST_EAGER`."""
    if not _is_number(value) or not 0 <= value <= MOST_EAGER:
        raise ConfigurationError(f"{name} must be a number from 0 to {MOST_EAGER}, not {value!r}")
    return float(value)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _in_seconds(value: object) -> object:
    return value.total_seconds() if isinstance(value, timedelta) else value


# Lists of names, and of statuses.


def headers(example: str, *, rather: str) -> Check[tuple[str, ...]]:
    """Return the check of names of request headers, which are kept in lower case.

    Args:
        example: A name that would do, for who gave no list.
        rather: What to name, for who named all by ``*``.
    """

    def checked(name: str, value: Any) -> tuple[str, ...]:
        names = _names_alone(name, value, example, rather)
        for each in names:
            if not is_header_name(each):
                raise ConfigurationError(f"{name} must hold header names, not {each!r}")
        return tuple(dict.fromkeys(each.lower() for each in names))

    return checked


def is_header_name(text: str) -> bool:
    """Return whether *text* can be the name of a field (RFC 9110 §5.1)."""
    return bool(text) and all(c.isascii() and (c.isalnum() or c in "!#$%&'*+-.^_`|~") for c in text)


def query(example: str, *, rather: str) -> Check[frozenset[str]]:
    """Return the check of names of query parameters; *example* and *rather* are as for `headers`."""

    def checked(name: str, value: Any) -> frozenset[str]:
        return frozenset(_names_alone(name, value, example, rather))

    return checked


def methods(name: str, value: Any) -> frozenset[str]:
    """Return the names of methods in *value*, in upper case and without HEAD, which comes with GET."""
    found = frozenset(each.upper() for each in _names(name, value, "GET")) - {"HEAD"}
    wrong = found - CACHEABLE_METHODS
    if wrong:
        raise ConfigurationError(f"{name} may hold GET, QUERY and POST, not {min(wrong)!r}")
    if not found:
        raise ConfigurationError(f"{name} must hold GET, QUERY or POST, not {value!r}")
    return found


def tags(name: str, value: Any) -> Any:
    """Return *value* if it is a callable, or the templates in it."""
    return value if callable(value) else _templates(name, value, "users")


def patterns(name: str, value: Any) -> tuple[str, ...]:
    """Return the templates in *value*, each at most `MAX_PATTERN` characters long."""
    found = _templates(name, value, "/users/*")
    for each in found:
        if len(each) > MAX_PATTERN:
            raise ConfigurationError(
                f"{name} may have {MAX_PATTERN} characters each, not {len(each)}: {each[:40]!r}…"
            )
    return found


def urls(name: str, value: Any) -> tuple[str, ...]:
    """Return the templates in *value*, each of a URL, of a path, or begun by a parameter."""
    found = _templates(name, value, "/users")
    for each in found:
        if not each.startswith(("/", "http://", "https://", "{")) or each.startswith("//"):
            raise ConfigurationError(f"{name} must be absolute (https://host/path) or paths (/path), not {each!r}")
    return found


def statuses(name: str, value: Any) -> dict[int, float | None]:
    """Return the final statuses in *value*, each with its seconds, or None if it has none of its own."""
    if isinstance(value, str | bytes) or not isinstance(value, Collection):
        raise ConfigurationError(
            f"{name} must be a list of statuses or a mapping of status to seconds, not {value!r}"
        )
    for status in value:
        if (
            isinstance(status, bool)
            or not isinstance(status, int)
            or not 200 <= status <= 599
            or status in (206, 304)
        ):
            raise ConfigurationError(
                f"{name} must hold final statuses from 200 to 599 but 206 and 304, not {status!r}"
            )
    never = NEVER_STORED.intersection(value)
    if never and (isinstance(value, Mapping) or never.issuperset(value)):
        raise ConfigurationError(
            f"{name} must not hold {min(never)}: it is about one client, and no cache may store it (RFC 6585)"
        )
    if isinstance(value, Mapping):
        return {s: None if v is None else seconds(f"{name}[{s}]", v) for s, v in value.items()}
    return dict.fromkeys(status for status in value if status not in NEVER_STORED)


def _names(name: str, value: Any, example: str) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Collection):
        right = value if isinstance(value, str) and value else example
        raise ConfigurationError(f"{name} must be a list of names, such as [{right!r}], not {value!r}")
    for each in value:
        if not isinstance(each, str) or not each.strip():
            raise ConfigurationError(f"{name} must hold names, not {each!r}")
    return tuple(dict.fromkeys(value))


def _names_alone(name: str, value: Any, example: str, rather: str) -> tuple[str, ...]:
    """Return the names in *value*, none of which stands for others."""
    names = _names(name, value, example)
    if "*" in names:
        raise ConfigurationError(f"{name} must hold names, not '*': name {rather}")
    return names


def _templates(name: str, value: Any, example: str) -> tuple[str, ...]:
    names = _names(name, value, example)
    for each in names:
        template_names(each)
    return names


# What is called.


def callable_of_request(name: str, value: Any) -> Any:
    """Return *value* if it can be called."""
    if not callable(value):
        raise ConfigurationError(f"{name} must be a callable of the request, not {value!r}")
    return value


def source_of_numbers(name: str, value: Any) -> Any:
    """Return *value* if it can be called, for the time or for chance."""
    if not callable(value):
        raise ConfigurationError(f"{name} must be a function that gives a number, not {value!r}")
    return value


def key_generator(name: str, value: Any) -> Any:
    """Return *value* if it can make keys, and is no class that could be one's."""
    if isinstance(value, type) or not callable(getattr(value, "generate_cache_key", None)):
        raise ConfigurationError(f"{name} must be a KeyGenerator (with generate_cache_key), not {value!r}")
    return value


# Tags that are given while a request is answered.


def checked_tag(tag: object) -> str:
    """Return *tag* if it is a name.

    Raises:
        ConfigurationError: If it is not a string, or is empty.
    """
    if not isinstance(tag, str) or not tag:
        raise ConfigurationError(f"a tag must be a string that is not empty, not {kind_of(tag)}")
    return tag


def checked_tags(tags: object) -> list[str]:
    """Return *tags* as a list if they are names.

    Raises:
        ConfigurationError: If they are no list, or one string, which would be taken letter by letter, or one is no
            name.
    """
    if isinstance(tags, str) or not isinstance(tags, Iterable):
        raise ConfigurationError(f"tags must be a list of names, such as ['users'], not {kind_of(tags)}")
    return [checked_tag(tag) for tag in tags]


def kind_of(value: object) -> str:
    """Return what an error says of a *value* that may be a secret of a request: no more than its type."""
    if value is None:
        return "None"
    return "an empty one" if isinstance(value, str) and not value else type(value).__name__

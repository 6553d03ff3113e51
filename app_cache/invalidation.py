"""Invalidation by tag, pattern, URL and key, as a service (RFC 9111 §4.4 for what HTTP itself invalidates)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote, urlsplit

import idna

from app_cache.checks import checked_tag, kind_of
from app_cache.clock.base import InvalidationResult, Order
from app_cache.clock.names import key_stamp, tag_stamp, url_stamp
from app_cache.errors import ConfigurationError
from app_cache.keys import origin
from app_cache.rules.glob import checked_pattern

if TYPE_CHECKING:
    from starlette.datastructures import URL

    from app_cache.store import StoredResponses

__all__ = ["InvalidationResult", "InvalidationService"]

_STORED = re.compile(r"cache:(?:.+:)?[0-9a-f]{64}", re.DOTALL)
"""What the key of an entry looks like."""
_NOT_IN_URLS = re.compile(r"[\x00-\x20\x7f]")
"""Characters that a decoded path may have, and that `urlsplit` would drop."""
_AROUND_URLS = "".join(map(chr, range(0x21)))
"""Characters that mean nothing at either end of an absolute URL; of a path, the end of a line means nothing."""


class InvalidationService:
    """Invalidates stored responses, by one write however many entries that concerns.

    That is one on Redis for up to 500 tags, and one for each tag on a backend of four methods. When a call has
    returned, this process serves nothing older any more, and other processes on the same Redis neither if the
    result is durable. With ``soft=True`` entries are marked stale rather than dropped: they are served within
    ``stale_while_revalidate`` and ``stale_if_error`` and fetched anew.

    Raises:
        ConfigurationError: If it is given something else than stored responses; by each method also if *soft* is
            neither True nor False.
    """

    def __init__(self, store: StoredResponses) -> None:
        if not callable(getattr(store, "invalidate", None)):
            raise ConfigurationError(
                "InvalidationService takes stored responses, container.store() or StoredResponses(backend), "
                f"not a {type(store).__name__}"
            )
        self.store = store
        """The stored responses that it invalidates in."""

    async def by_tag(
        self, *tags: str, match: Literal["any", "all"] = "any", soft: bool = False
    ) -> InvalidationResult:
        """Invalidate the entries that have any of *tags*, or all of them.

        Raises:
            ConfigurationError: If there is no tag, a tag is no name, or *match* is something else.
        """
        if not tags:
            raise ConfigurationError("by_tag needs at least one tag")
        if match not in ("any", "all"):
            raise ConfigurationError(f"match must be 'any' or 'all', not {match!r}")
        stamps = tuple(tag_stamp(checked_tag(tag)) for tag in tags)
        if match == "all" and len(stamps) > 1:
            return await self.carry_out(Order(all_of=(stamps,), soft=soft))
        return await self.carry_out(Order(tags=stamps, soft=soft))

    async def by_pattern(self, pattern: str, *, soft: bool = False) -> InvalidationResult:
        """Invalidate the entries whose URL path, logical key of a custom generator, or value's key matches a glob.

        Args:
            pattern: ``*`` (also over ``/``), ``?``, ``[ab]``, a backslash escapes; over the whole decoded path,
                with its root path or without it, and without query: ``/users/*``.
            soft: Mark as stale rather than drop.

        Raises:
            ConfigurationError: If it is no string, is empty, or has more than 256 characters.
        """
        return await self.carry_out(Order(patterns=(checked_pattern(pattern),), soft=soft))

    async def by_url(self, url: str | URL, *, soft: bool = False) -> InvalidationResult:
        """Invalidate what is stored for *url*, whatever its query: absolute, or a path for every host.

        Its path may have the root path before it, or not.

        Raises:
            ConfigurationError: If it is neither an absolute http(s) URL nor a path, or has a user or a
                port that cannot be.
        """
        return await self.carry_out(Order(tags=(stamp_of_url(url),), soft=soft))

    async def by_key(self, key: str, *, soft: bool = False) -> InvalidationResult:
        """Invalidate the entry under *key*: a custom generator's, a value's, or the one that it is stored under.

        A stored key names the variants under it too.

        Raises:
            ConfigurationError: If it is no string, or is empty.
        """
        if not key or not isinstance(key, str):
            raise ConfigurationError(f"a key must be a string that is not empty, not {kind_of(key)}")
        return await self.carry_out(Order(tags=(key_stamp(key),), keys=_stored_keys(key), soft=soft))

    async def everything(self, *, soft: bool = False) -> InvalidationResult:
        """Invalidate all entries of this namespace."""
        return await self.carry_out(Order(everything=True, soft=soft))

    async def carry_out(self, order: Order) -> InvalidationResult:
        """Carry out *order*; override this to see, or to pass on, every invalidation of the service.

        Where it raises for a change that a request made, the store carries out the order without it.
        """
        return await self.store.invalidate(order)


def result_of(given: object) -> InvalidationResult:
    """Return what a service has *given* if that is a result, else one that says that the backend has the order."""
    return given if isinstance(given, InvalidationResult) else InvalidationResult(durable=True)


def _stored_keys(key: str) -> tuple[str, ...]:
    return (key,) if _STORED.fullmatch(key) else ()


def stamp_of_url(url: str | URL) -> str:
    """Return the stamp of *url*, without its query.

    Raises:
        ConfigurationError: If it is neither an absolute http(s) URL nor a path, or has a user or
            a port that cannot be.
    """
    text = str(url)
    text = text.rstrip("\r\n") if text.startswith("/") else text.strip(_AROUND_URLS)
    text = _NOT_IN_URLS.sub(lambda octet: f"%{ord(octet[0]):02X}", text)
    try:
        parts = urlsplit(text)
        is_plain = parts.username is None and parts.port != 0
        netloc = parts.netloc if parts.netloc.isascii() else _in_ascii(parts.netloc)
    except ValueError:
        raise _wrong_url(url) from None
    path = unquote(parts.path)
    if text.startswith("/") and not text.startswith("//"):
        return url_stamp(path)
    if parts.scheme not in ("http", "https") or not parts.netloc or not is_plain:
        raise _wrong_url(url)
    return url_stamp(path or "/", origin(parts.scheme, netloc))


def _in_ascii(netloc: str) -> str:
    """Return *netloc* with its host as requests have it (RFC 5891, UTS 46).

    Raises:
        UnicodeError: If it is no host.
    """
    host, colon, port = netloc.partition(":")
    try:
        encoded = idna.encode(host, uts46=True)
    except idna.IDNAError:
        encoded = host.encode("idna")  # names that IDNA 2008 has not, and clients send as those of 2003
    return f"{encoded.decode('ascii')}{colon}{port}"


def _wrong_url(url: object) -> ConfigurationError:
    shown = re.sub(r"//[^/]*@", "//***@", repr(url))
    return ConfigurationError(
        "a URL must be absolute (https://host/path), without a user and with a port of at most 65535 if any, or a "
        f"path (/path), not {shown}"
    )

"""Small messages for the tests of the rules, written as they stand on the wire."""

from __future__ import annotations

from email.utils import formatdate
from typing import TYPE_CHECKING

from app_cache.rules.messages import RequestHead, ResponseHead, StoredResponse

if TYPE_CHECKING:
    from app_cache.rules.messages import Headers

NOW = 1_500_000_000.0
"""When the responses of the tests are received: 2017-07-14, a Friday, at 02:40."""


def fields(*lines: str) -> Headers:
    """Return *lines*, each ``Name: value``, as fields."""
    pairs = (line.partition(":") for line in lines)
    return tuple((name.encode("latin-1"), value.strip().encode("latin-1")) for name, _, value in pairs)


def request(*lines: str, method: str = "GET") -> RequestHead:
    """Return a request with the fields *lines*."""
    return RequestHead(method, fields(*lines))


def response(*lines: str, status: int = 200) -> ResponseHead:
    """Return a response with the fields *lines*."""
    return ResponseHead(status, fields(*lines))


def stored(
    *lines: str,
    lifetime: float = 60.0,
    status: int = 200,
    stale_while_revalidate: float = 0.0,
    stale_if_error: float = 0.0,
    delay: float = 0.0,
) -> StoredResponse:
    """Return a response that was received at `NOW`, *delay* seconds after it was asked for."""
    return StoredResponse(
        status, fields(*lines), b"body", NOW - delay, NOW, lifetime, stale_while_revalidate, stale_if_error
    )


def http_date(seconds: float) -> str:
    """Return *seconds* since the epoch as HTTP writes them."""
    return formatdate(seconds, usegmt=True)

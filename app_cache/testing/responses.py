"""What the cache did with a response, as assertions that say more than true or false.

They read ``Cache-Status`` (RFC 9211), and so work with any client: httpx, the TestClient of Starlette, and others
whose responses have *headers* with a ``get`` that does not mind the case of names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from app_cache.rules.cache_status import NAME

if TYPE_CHECKING:
    from collections.abc import Mapping

MISSES = frozenset({"fwd=uri-miss", "fwd=vary-miss", "fwd=stale"})
"""Parameters of Cache-Status that say that nothing stored could answer."""
RESCUED = "fwd-status=5"
"""How the parameter begins that names the failure in whose place a stored response answers (RFC 5861 §4)."""


class Answered(Protocol):
    """A response of any client."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Its fields, by names in any case."""
        ...


def assert_hit(response: Answered) -> None:
    """Assert that *response* came from the cache: fresh, stale, or in place of a failure.

    Raises:
        AssertionError: If it did not; the message prints Cache-Status.
    """
    __tracebackhide__ = True
    said = _said_of(response)
    if "hit" not in said and not _is_rescued(said):
        raise AssertionError(_unexpected("hit", response))


def assert_miss(response: Answered) -> None:
    """Assert that the cache had nothing that could answer, and did not pass the request by.

    Raises:
        AssertionError: If it was a hit, or was passed by; the message prints Cache-Status.
    """
    __tracebackhide__ = True
    said = _said_of(response)
    if MISSES.isdisjoint(said) or _is_rescued(said):
        raise AssertionError(_unexpected("miss", response))


def _is_rescued(said: list[str]) -> bool:
    return any(each.startswith(RESCUED) for each in said)


def _said_of(response: Answered) -> list[str]:
    """Return the parameters of our member of Cache-Status; none without it."""
    for member in response.headers.get("cache-status", "").split(","):
        name, *said = [part.strip() for part in member.split(";")]
        if name == NAME:
            return said
    return []


def _unexpected(wanted: str, response: Answered) -> str:
    field = response.headers.get("cache-status")
    if field is None:
        return (
            f"expected a {wanted}, but the response has no Cache-Status: its endpoint has no @cache, "
            "its application no cache, or its handler raised"
        )
    return f"expected a {wanted}, but Cache-Status says: {field}"

"""What the cache did with a request, as a Cache-Status member (RFC 9211)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app_cache.rules.decisions import Fwd, Refusal

NAME = "app-cache"


def ttl_of(left: float) -> int:
    """Return the seconds of freshness that are *left* in whole ones: negative if none is (RFC 9211 §2.4)."""
    return int(left // 1) if left > 0 else min(int(left // 1), -1)


@dataclass(frozen=True, slots=True)
class CacheStatus:
    """What happened to one request; ``request.state.cache`` is one.

    Args:
        hit: It was answered from the cache; stale if *ttl* is negative.
        fwd: Why it went to the handler, or None.
        fwd_status: The status that the handler answered with, where it is not the one that is sent.
        ttl: Seconds of freshness that are left, or None where nothing stored was served.
        stored: The answer was handed to the backend to be stored.
        collapsed: It was answered by the run of another request.
        detail: Why it was not answered from the cache, or not stored.
    """

    hit: bool = False
    fwd: Fwd | None = None
    fwd_status: int | None = None
    ttl: int | None = None
    stored: bool = False
    collapsed: bool = False
    detail: Refusal | None = None

    def __str__(self) -> str:
        """Return the member that is sent (RFC 9211 §2)."""
        parts = [NAME]
        if self.hit:
            parts.append("hit")
        if self.fwd is not None:
            parts.append(f"fwd={self.fwd.value}")
        if self.fwd_status is not None:
            parts.append(f"fwd-status={self.fwd_status}")
        if self.ttl is not None:
            parts.append(f"ttl={self.ttl}")
        if self.stored:
            parts.append("stored")
        if self.collapsed:
            parts.append("collapsed")
        if self.detail is not None:
            parts.append(f"detail={self.detail.value}")
        return "; ".join(parts)

    @property
    def outcome(self) -> str:
        """One word for metrics: hit, hit-stale, collapsed, or why it was forwarded."""
        if self.hit:
            return "hit-stale" if self.ttl is not None and self.ttl < 0 else "hit"
        if self.collapsed:
            return "collapsed"
        return self.fwd.value if self.fwd is not None else "none"

"""Offers of the cache to a server that can give a hit again by itself, before it makes a request of the bytes.

A server puts a function into the scope, under `EXTENSION` among its extensions. The middleware calls it with an
`Offer`, and with the scope, before it gives a plain hit of a backend that answers at once. While the offer holds,
the server may give the hit to whoever sends the same bytes, if nothing stands between itself and the middleware.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app_cache.fastpath import FastPath, ReadyHere
    from app_cache.middleware import CacheMiddleware
    from app_cache.rules.messages import Headers

EXTENSION = "app_cache.offer"
"""Where a server puts the function that takes an offer: ``scope["extensions"]["app_cache.offer"]``."""


class Offer:
    """A hit that may be given again without the middleware, as long as the middleware would give it.

    It keeps no body: the hit lives as long as the fast path remembers it.

    Args:
        fast: The fast path that remembers the hit.
        ready: The hit.
        unchanged: Whether it was given as a 304.
    """

    __slots__ = ("_era", "_fast", "_ready", "fields", "status", "unchanged")

    def __init__(self, fast: FastPath, ready: ReadyHere, *, unchanged: bool) -> None:
        self.unchanged = unchanged
        self.status, self.fields, _ = ready.answers[unchanged]
        self._fast = fast
        self._era = fast.era
        self._ready = weakref.ref(ready)

    @property
    def cache(self) -> CacheMiddleware:
        """The middleware that makes the offer."""
        return self._fast.cache

    def given(self) -> tuple[Headers, bytes] | None:
        """Return Age and Cache-Status of the moment and the body, counted as a hit; None: ask the middleware."""
        ready, fast = self._ready(), self._fast
        if ready is None or fast.era is not self._era:
            return None
        try:
            told = ready.told() if fast.is_current() else None
        except Exception as error:  # noqa: BLE001  providers and clocks of the application's own are asked
            fast.failed(error)
            return None
        if told is None:
            return None
        ready.count()
        return told, ready.answers[self.unchanged][2]

"""A cache that is driven by steps, to be compared with a twin that is driven alike."""

from __future__ import annotations

import asyncio
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from app_cache import InvalidationService
from tests.middleware.apps import messages_of, scope_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app_cache import CacheMiddleware
    from app_cache.store import StoredResponses
    from app_cache.testing import FakeClock

SETTLES_WITHIN_S = 5.0


class Driven:
    """Takes steps: a name, and what it needs."""

    def __init__(self, cache: CacheMiddleware, clock: FakeClock) -> None:
        self.cache = cache
        self.clock = clock

    @property
    def store(self) -> StoredResponses:
        """What is stored."""
        assert self.cache._plain is not None
        return self.cache._plain.store()

    async def do(self, step: tuple[Any, ...]) -> Any:
        """Take one step, and return all that can be seen of it."""
        kind, *of = step
        service = InvalidationService(self.store)
        match kind:
            case "ask":
                return await self.ask(*of)
            case "advance":
                self.clock.advance(of[0])
            case "back":
                self.clock.advance(-of[0])
            case "tag":
                await service.by_tag(of[0], soft=of[1])
            case "pattern":
                await service.by_pattern(of[0], soft=of[1])
            case "url":
                await service.by_url(of[0], soft=of[1])
            case "everything":
                await service.everything(soft=of[0])
            case _:
                await self.meet(kind, *of)
        return None

    async def meet(self, kind: str, *of: Any) -> None:
        """Take a step of the kind that this backend alone has."""
        raise AssertionError(f"there is no step {kind!r} with {of!r}")

    async def ask(
        self,
        method: str,
        path: str,
        query: bytes = b"",
        fields: Sequence[tuple[bytes, bytes]] = (),
        more: dict[str, Any] | None = None,
        body: bytes = b"",
    ) -> Any:
        """Return the messages of an answer and what is said of it, once all that it began has ended.

        *more*: What its scope has else.
        """
        headers = [(b"host", b"test"), *fields]
        more = deepcopy(more or {})
        scope = scope_of(path, **{"method": method, "query_string": query, "headers": headers, **more})
        before = asyncio.all_tasks()
        messages = await messages_of(self.cache, scope, {"type": "http.request", "body": body})
        while begun := asyncio.all_tasks() - before:
            await asyncio.wait(begun, timeout=SETTLES_WITHIN_S)
        seen = [
            (each.get("status"), [*each.get("headers", ())], bytes(each.get("body", b""))) for each in messages
        ]
        return seen, str(scope.get("state", {}).get("cache"))

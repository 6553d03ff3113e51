"""What tests of the store and its clocks share: a backend of four methods, and pages that may be stored."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app_cache.backends.base import CacheBackend
from app_cache.clock.base import Verdict
from app_cache.clock.names import Subject, key_stamp, tag_stamp, url_stamp
from app_cache.codec import Entry
from app_cache.keys import digest, prefix
from app_cache.rules.messages import StoredResponse

if TYPE_CHECKING:
    from collections.abc import Callable

    from app_cache.clock.base import InvalidationClock
    from app_cache.codec import Mark
    from app_cache.rules.messages import Headers
    from app_cache.store import Found, StoredResponses


class FourMethods(CacheBackend):
    """Four verbs over a dictionary; *pause* is awaited before and after each takes effect."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.timeouts: dict[str, float] = {}
        self.pause: Callable[[], object] = lambda: None

    async def get(self, key: str) -> str | None:
        await self._pause()
        value = self.values.get(key)
        await self._pause()
        return value

    async def set(self, key: str, value: str, timeout: int) -> None:
        await self._pause()
        self.values[key] = value
        self.timeouts[key] = timeout
        await self._pause()

    async def delete(self, key: str) -> None:
        await self._pause()
        self.values.pop(key, None)

    async def close(self) -> None: ...

    async def _pause(self) -> None:
        waits = self.pause()
        if asyncio.iscoroutine(waits):
            await waits


@dataclass(frozen=True)
class Page:
    """Something that may be stored; its *late* tags are known only when it is."""

    path: str = "/users/7"
    tags: tuple[str, ...] = ()
    late: tuple[str, ...] = ()
    logical_key: str | None = None
    namespace: str = ""

    @property
    def key(self) -> str:
        """The key under which it is stored."""
        return f"{prefix(self.namespace)}{digest([self.path])}"

    @property
    def asked(self) -> Subject:
        """What a request for it knows."""
        stamps = {url_stamp(self.path), *map(tag_stamp, self.tags)}
        if self.logical_key is not None:
            stamps.add(key_stamp(self.logical_key))
        return Subject(frozenset(stamps), self.path, self.logical_key, self.key)

    @property
    def stored(self) -> Subject:
        """What an invalidation may name it by."""
        stamps = self.asked.tags | {*map(tag_stamp, self.late)}
        return Subject(stamps, self.path, self.logical_key, self.key)

    def entry(self, mark: Mark, body: bytes = b"old", headers: Headers = ()) -> Entry:
        """Return it as an entry."""
        response = StoredResponse(200, headers, body, 1000.0, 1000.0, 60.0)
        tags = tuple(sorted(self.stored.tags))
        return entry_of(self.key, mark, tags, self.path, self.logical_key, response)


async def look_up(store: StoredResponses, page: Page, request: Headers = ()) -> Found:
    """Return what *store* has for *page*."""
    return await store.look_up(page.key, page.asked, request)


async def body_of(store: StoredResponses, page: Page, request: Headers = ()) -> bytes | None:
    """Return the body that *store* serves for *page*, or None."""
    found = await look_up(store, page, request)
    return None if found.entry is None else found.entry.body


async def fill(
    store: StoredResponses,
    page: Page,
    body: bytes = b"old",
    *,
    keep_for: float = 300.0,
    request: Headers = (),
    vary: str = "",
) -> None:
    """Look up *page*, answer it with *body*, and store that."""
    found = await look_up(store, page, request)
    mark = await store.begin(found.reading, page.asked, keep_for)
    assert mark is not None
    await store.keep(page.entry(mark, body), keep_for, request, frozenset(vary.split()), store.next_turn())


async def written(store: StoredResponses) -> None:
    """Return when no write is on its way to the backend."""
    while store.writes._writers:
        await asyncio.wait(store.writes._writers)
        await asyncio.sleep(0)


async def begun(clock: InvalidationClock, page: Page, keep_for: float = 300.0) -> Mark:
    """Return what an entry of *page* carries whose handler begins now."""
    _, reading = await clock.look_up(page.key, page.asked)
    mark = await clock.begin(reading, page.asked, keep_for)
    assert mark is not None
    return mark


async def kept(clock: InvalidationClock, page: Page, mark: Mark, keep_for: float = 300.0) -> Mark | None:
    """Store *page*, filled under *mark*; return what the entry carries, or None if it cannot be stored."""
    sealed = await clock.seal(mark, page.stored) if clock.needs_seal(mark, page.stored) else mark
    if sealed is not None:
        await clock.store(page.key, b"entry", keep_for, sealed, page.stored)
    return sealed


async def filled(clock: InvalidationClock, page: Page, keep_for: float = 300.0) -> Mark:
    """Store *page* and return what its entry carries."""
    mark = await kept(clock, page, await begun(clock, page, keep_for), keep_for)
    assert mark is not None
    return mark


async def verdict(clock: InvalidationClock, page: Page, mark: Mark | None) -> Verdict:
    """Return what *clock* says of an entry of *page*, asked as the store asks."""
    if mark is None:
        return Verdict.INVALID
    _, reading = await clock.look_up(page.key, page.asked)
    said = reading.judge(mark, page.stored)
    if said is Verdict.UNASKED:
        said = (await clock.read(page.stored)).judge(mark, page.stored)
    assert said is not Verdict.UNASKED
    return said


def entry_of(
    key: str, mark: Mark, tags: tuple[str, ...], path: str, logical_key: str | None, response: StoredResponse
) -> Entry:
    """Return *response* as an entry under *key*."""
    return Entry(
        key,
        mark,
        tags,
        path,
        logical_key,
        response.status,
        response.headers,
        response.body,
        response.requested_at,
        response.received_at,
        response.freshness_lifetime,
        response.stale_while_revalidate,
        response.stale_if_error,
    )

"""Writes to the backend that nobody waits for, deletions among them; those of one key go one after the other.

A backend in this process is written to at once: what is stored there can be hit before the answer is sent. With
another, a write on its way stands in for what the backend will hold.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import OrderedDict
from contextlib import suppress
from contextvars import Context, ContextVar
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from app_cache.backends.base import InstantBackend, LocalBackend, WatchedBackend, capability
from app_cache.codec import Variants, encode
from app_cache.tasks import end_tasks

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    from app_cache.backends.base import CacheBackend
    from app_cache.calls import Calls
    from app_cache.clock.base import InvalidationClock
    from app_cache.clock.names import Subject
    from app_cache.codec import Record
    from app_cache.shelf import Shelf

PENDING_S = 5.0
"""Seconds after which a write that the backend has not taken is dropped."""
MAX_PENDING = 1_000
MAX_PENDING_BYTES = 32 * 1024 * 1024
WRITERS = 4
"""Writes on their way to the backend at once."""

_deletes: ContextVar[bool] = ContextVar("app_cache_deletes", default=False)
"""Whether the cache itself deletes a key now: that is no reason to forget a write on its way to that key."""


@dataclass(slots=True)
class _Pending:
    """A write on its way to *key*.

    Args:
        key: Where it goes.
        since: When it began to wait.
        record: What is written; None: the key is deleted.
        subject: What an invalidation may name it by; None: nothing can.
        keep_for: Seconds that the backend holds it.
        value: Stands in for what the backend will hold; None while its mark is not sealed.
        size: Bytes of it.
    """

    key: str
    since: float
    record: Record | None = None
    subject: Subject | None = None
    keep_for: float = PENDING_S
    value: bytes | None = None
    size: int = 0
    sent: bool = False
    on_end: Callable[[], object] | None = None
    """Is called when it is written, or will not be."""

    def end(self) -> None:
        """Tell who waits for it, if anybody still does."""
        if self.on_end is not None:
            with suppress(RuntimeError):  # a loop that was closed has nobody who waits
                self.on_end()


class Writes:
    """Puts records into *backend*, and takes keys out of it.

    Args:
        backend: Where they go.
        shelf: Writes lists of variants, and records that no invalidation can name.
        clock: Writes those that one can.
        calls: Bounds each call of the backend, and counts what fails.
        stats: Where what is dropped is counted.
        monotonic: Seconds that never go back.
    """

    def __init__(
        self,
        backend: CacheBackend,
        shelf: Shelf,
        clock: InvalidationClock,
        calls: Calls,
        stats: Counter[str],
        monotonic: Callable[[], float],
    ) -> None:
        self.pending: OrderedDict[str, _Pending] = OrderedDict()
        """What is on its way, by key, the oldest first."""
        self._backend = backend
        self._shelf = shelf
        self._clock = clock
        self._calls = calls
        self._stats = stats
        self._monotonic = monotonic
        self._at_once = capability(backend, LocalBackend) is not None
        self._is_instant = capability(backend, InstantBackend) is not None
        self._pending_bytes = 0
        self._writers: set[asyncio.Task[None]] = set()
        self._writing: set[tuple[asyncio.AbstractEventLoop, str]] = set()
        watched = capability(backend, WatchedBackend)
        if watched is not None:
            _watch(watched, self)

    async def put(self, record: Record, subject: Subject | None, keep_for: float) -> None:
        """Put *record* under its key for *keep_for* seconds; when this returns, it is there or on its way.

        Args:
            record: What is stored.
            subject: What an invalidation may name it by; None: nothing can.
            keep_for: Seconds that the backend holds it.
        """
        if self._at_once and not (self._writing and self._is_written(record.key)):
            if self.pending:
                self.drop(record.key)
            if self.pending and self._is_instant:
                await self._write_pending()  # deletions: what is kept stays within its bounds
            await self._calls.attempt("store", self._write(record, subject, keep_for, encode(record)))
            return
        unsealed = (
            subject is not None
            and not isinstance(record, Variants)
            and self._clock.needs_seal(record.mark, subject)
        )
        value, now = encode(record), self._monotonic()
        stands_in = None if unsealed else value
        self._queue(_Pending(record.key, now, record, subject, keep_for, stands_in, len(value)))

    def value(self, key: str) -> bytes | None:
        """Return the bytes that are on their way to *key*, or None."""
        pending = self.pending.get(key)
        if pending is None or self._monotonic() - pending.since > PENDING_S:
            return None
        return pending.value

    def drop(self, key: str) -> None:
        """Forget what is on its way to *key*."""
        pending = self.pending.pop(key, None)
        if pending is not None:
            self._pending_bytes -= pending.size
            pending.end()

    async def written(self, key: str) -> None:
        """Return when the write on its way to *key* is done, or dropped, or has had the time of a call."""
        pending = self.pending.get(key)
        if pending is None:
            return
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        pending.on_end = partial(loop.call_soon_threadsafe, _settle, ended)
        await asyncio.wait({ended}, timeout=self._calls.timeout)

    async def delete(self, key: str) -> None:
        """Delete what the backend has under *key*, as far as that can be done now."""
        self.drop(key)
        await self._calls.attempt("delete", self._delete(key))

    def doom(self, key: str) -> None:
        """Delete what the backend has under *key*, by a task beside the requests."""
        self._queue(_Pending(key, self._monotonic()))

    async def close(self) -> None:
        """Wait a bounded time for what is under way in the running loop, then end it."""
        loop = asyncio.get_running_loop()
        writers = {task for task in [*self._writers] if task.get_loop() is loop}
        if writers:
            _, late = await asyncio.wait(writers, timeout=PENDING_S)
            await end_tasks(late)

    async def _write(self, record: Record, subject: Subject | None, keep_for: float, value: bytes) -> None:
        if subject is None or isinstance(record, Variants):
            await self._shelf.write(record.key, value, keep_for)
        else:
            await self._clock.store(record.key, value, keep_for, record.mark, subject)

    async def _delete(self, key: str) -> None:
        before = _deletes.set(True)
        try:
            await self._backend.delete(key)
        finally:
            _deletes.reset(before)

    def _queue(self, pending: _Pending) -> None:
        """Queue *pending* behind all others, in the place of the write on its way to the same key."""
        self.drop(pending.key)
        self.pending[pending.key] = pending
        self._pending_bytes += pending.size
        while len(self.pending) > MAX_PENDING or self._pending_bytes > MAX_PENDING_BYTES:
            oldest = next(iter(self.pending.values()))
            self._count_dropped(oldest)
            self.drop(oldest.key)
        self._start_writer()

    def _is_written(self, key: str) -> bool:
        """Return whether something is written to *key*, or deleted there, at this moment."""
        return (asyncio.get_running_loop(), key) in self._writing

    def _count_dropped(self, pending: _Pending) -> None:
        self._stats["delete_dropped" if pending.record is None else "store_dropped"] += 1

    def _start_writer(self) -> None:
        loop = asyncio.get_running_loop()
        if sum(task.get_loop() is loop for task in [*self._writers]) < WRITERS:
            task = loop.create_task(self._write_pending(), context=Context())  # what it writes is of many requests
            self._writers.add(task)
            task.add_done_callback(self._writers.discard)

    async def _write_pending(self) -> None:
        loop = asyncio.get_running_loop()
        while (pending := self._next_pending(loop)) is not None:
            pending.sent = True
            self._writing.add((loop, pending.key))
            try:
                await self._write_one(pending)
            finally:
                self._writing.discard((loop, pending.key))
                if self.pending.get(pending.key) is pending:
                    self.drop(pending.key)

    def _next_pending(self, loop: asyncio.AbstractEventLoop) -> _Pending | None:
        """Return the oldest write that no task sends yet; those of one key in turn, so that the newest wins."""
        for key, pending in [*self.pending.items()]:
            if not pending.sent and (loop, key) not in self._writing:
                return pending
        return None

    async def _write_one(self, pending: _Pending) -> None:
        waited = self._monotonic() - pending.since
        left = pending.keep_for - waited
        if waited >= PENDING_S or left <= 0:
            self._count_dropped(pending)
        elif pending.record is None:
            await self._calls.attempt("delete", self._delete(pending.key))
        else:
            work = self._seal_and_write(pending, pending.record, left)
            await self._calls.attempt("store", work, PENDING_S - waited)

    async def _seal_and_write(self, pending: _Pending, record: Record, left: float) -> None:
        value = pending.value
        if value is None and not isinstance(record, Variants) and pending.subject is not None:
            mark = await self._clock.seal(record.mark, pending.subject)
            if mark is None:
                self._stats["store_dropped"] += 1
                return
            record = pending.record = msgspec.structs.replace(record, mark=mark)
            value = encode(record)
            pending.value = value
        await self._write(record, pending.subject, left, value or b"")


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _watch(backend: WatchedBackend, writes: Writes) -> None:
    """Drop a pending write when its key is set or deleted directly; watch as long as *writes* live."""
    alive = weakref.ref(writes)

    def told(key: str) -> None:
        if (here := alive()) is not None and not _deletes.get():
            here.drop(key)

    weakref.finalize(writes, backend.watch(told)).atexit = False

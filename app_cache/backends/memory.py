"""Values in this process, bounded by their number and by their bytes.

Nothing here waits, save `MemoryBackend.delete_pattern` between its steps; `get` and `set` look at a few entries,
however many there are.
"""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast
from weakref import ref

from app_cache.backends.base import CacheBackend, checked_timeout
from app_cache.backends.text import as_bytes, as_text
from app_cache.errors import ConfigurationError
from app_cache.rules.glob import compile_glob

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

ENTRY_OVERHEAD: Final = 256
"""The bytes that an entry counts beside its key and value: table slots, links, times."""
EXPIRED_PER_SET: Final = 4
"""How many expired entries a `set` drops at most: more than the one that it adds, so that none pile up."""
KEYS_PER_STEP: Final = 1000
"""How many keys the sweeper and `delete_pattern` take before they let others run."""
LONGEST_S: Final = 2.0**32
"""A timeout beyond this (136 years) counts as this."""


class MemoryBackend(CacheBackend):
    """Keeps values in this process, at most *max_size* of them and at most *max_bytes*.

    When one more does not fit, the entry that was read or set the longest time ago goes (LRU). An entry counts the
    memory of its key, that of its value, and `ENTRY_OVERHEAD`; one that would count more than *max_entry_bytes* is
    not kept, nor is what was under its key before. Expired entries are never given out; their memory comes back at
    each `set`, a few at a time, and by a sweeper, which runs while there are entries and an event loop to run it.
    An instance belongs to the event loops of one thread at a time.

    Args:
        max_size: How many entries are kept.
        cleanup_interval: The seconds between two rounds of the sweeper.
        default_timeout: The seconds for which a value is kept that is set with the timeout None.
        max_bytes: How many bytes all entries may count together.
        max_entry_bytes: How many bytes one entry may count; an eighth of *max_bytes* if not given.
        clock: Seconds that never go back; what expires is judged by it.

    Raises:
        ConfigurationError: If a number is not positive, or *max_entry_bytes* is above *max_bytes*.
    """

    def __init__(
        self,
        max_size: int = 1000,
        cleanup_interval: float = 300,
        default_timeout: float = 3600,
        max_bytes: int = 64 * 1024 * 1024,
        max_entry_bytes: int | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.max_size = _positive_int("max_size", max_size)
        self.cleanup_interval = _positive_seconds("cleanup_interval", cleanup_interval)
        self.default_timeout = _positive_seconds("default_timeout", default_timeout)
        self.max_bytes = _positive_int("max_bytes", max_bytes)
        if max_entry_bytes is None:
            max_entry_bytes = max(1, max_bytes // 8)
        self.max_entry_bytes = _positive_int("max_entry_bytes", max_entry_bytes)
        if max_entry_bytes > max_bytes:
            raise ConfigurationError(
                f"max_entry_bytes must be at most max_bytes ({max_bytes}), not {max_entry_bytes}"
            )
        self.evicted = 0
        """How many entries went because one more did not fit."""
        self.expired = 0
        """How many entries went because their time was over."""
        self.refused = 0
        """How many values were not kept because they count more than *max_entry_bytes*."""
        self.bytes_held = 0
        """What the entries count together, expired ones included until they are dropped."""
        self._clock = clock
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._deadlines = _Deadlines()
        self._beside: dict[str, Any] = {}
        self._sweeper: _Sweeper | None = None

    async def get(self, key: str) -> str | None:
        """Return what `set` was given, or as text what `set_bytes` was given; None if there is none.

        Raises:
            BackendError: If what `set_bytes` was given is no text.
        """
        entry = self._lookup(key)
        if entry is None:
            return None
        # A subclass that sets bytes by `set`, against the types, has them back as they are.
        return as_text(cast("bytes", entry.value)) if entry.binary else cast("str", entry.value)

    async def set(self, key: str, value: str | bytes, timeout: float | None = None) -> None:
        """Keep *value*, str or bytes as given, for *timeout* seconds (fractions count; None: *default_timeout*).

        Raises:
            TypeError: If *value* is neither str nor bytes.
            ValueError: If *timeout* is not positive, or a bool.
        """
        if not isinstance(value, str | bytes):
            raise TypeError(f"value must be str or bytes, not {type(value).__name__}")
        self._keep(key, value, timeout, binary=False)

    async def get_bytes(self, key: str) -> bytes | None:
        """Return the bytes kept under *key*, or None; a value set as text comes as UTF-8."""
        entry = self._lookup(key)
        if entry is None:
            return None
        return entry.value if isinstance(entry.value, bytes) else as_bytes(entry.value)

    def get_now(self, key: str) -> bytes | None:
        """Return the bytes that `set_bytes` keeps under *key*, the very object, or None."""
        entry = self._lookup(key)
        return entry.value if entry is not None and isinstance(entry.value, bytes) else None

    async def set_bytes(self, key: str, value: bytes, timeout: float | None = None) -> None:
        """Keep *value* under *key* for *timeout* seconds (fractions count; None: *default_timeout*).

        Raises:
            TypeError: If *value* is not bytes.
            ValueError: If *timeout* is not positive, or a bool.
        """
        if not isinstance(value, bytes):
            raise TypeError(f"value must be bytes, not {type(value).__name__}")
        self._keep(key, value, timeout, binary=True)

    async def delete(self, key: str) -> None:
        """Forget *key*; one that is absent is no error."""
        self._drop(key)

    async def delete_pattern(self, pattern: str) -> int:
        """Delete the keys that match the glob *pattern* and return how many there were.

        Others run between one step and the next; a key that they set meanwhile may stay.

        Raises:
            ConfigurationError: If *pattern* has more than 256 characters.
        """
        matches = compile_glob(pattern)
        keys = list(self._entries)
        count = 0
        for start in range(0, len(keys), KEYS_PER_STEP):
            if start:
                await asyncio.sleep(0)
            for key in filter(matches, keys[start : start + KEYS_PER_STEP]):
                count += self._lookup(key) is not None
                self._drop(key)
        return count

    async def size(self) -> int:
        """Return the number of keys held, expired ones included until they are dropped."""
        return len(self._entries)

    async def ping(self) -> None:
        """Return: what lives in this process is there."""

    def beside(self, name: str, make: Callable[[], T]) -> T:
        """Return the object kept under *name* until `close`, made by *make* when first asked for."""
        if name not in self._beside:
            self._beside[name] = make()
        return cast("T", self._beside[name])

    async def close(self) -> None:
        """Forget everything and stop the sweeper; a later `set` begins anew."""
        if self._sweeper is not None:
            self._sweeper.stop()
            self._sweeper = None
        self._entries.clear()
        self._deadlines = _Deadlines()
        self._beside.clear()
        self.bytes_held = 0

    def _lookup(self, key: str) -> _Entry | None:
        """Return the entry under *key* as the one read last, or None; an expired one is dropped."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.expires_at <= self._clock():
            self._drop(key)
            self.expired += 1
            return None
        self._entries.move_to_end(key)
        return entry

    def _keep(self, key: str, value: str | bytes, timeout: float | None, *, binary: bool) -> None:
        timeout_s = min(checked_timeout(self.default_timeout if timeout is None else timeout), LONGEST_S)
        now = self._clock()
        self._drop(key)
        self._drop_expired(now, EXPIRED_PER_SET)
        cost = sys.getsizeof(key) + sys.getsizeof(value) + ENTRY_OVERHEAD
        if cost > self.max_entry_bytes:
            self.refused += 1
            return
        while len(self._entries) >= self.max_size or self.bytes_held + cost > self.max_bytes:
            self._drop(next(iter(self._entries)))
            self.evicted += 1
        neighbours = self._deadlines.neighbours(now, timeout_s)
        neighbours[key] = None
        self._entries[key] = _Entry(value, binary, now + timeout_s, cost, neighbours)
        self.bytes_held += cost
        self._start_sweeper()

    def _drop(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            entry.neighbours.pop(key, None)
            self.bytes_held -= entry.cost

    def _drop_expired(self, now: float, at_most: int) -> bool:
        """Drop expired entries, *at_most* so many, and return whether more may be left."""
        for _ in range(at_most):
            key = self._deadlines.pop_due(now)
            if key is None:
                return False
            self._drop(key)
            self.expired += 1
        return True

    def _start_sweeper(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        if self._sweeper is None or not self._sweeper.serves(loop):
            self._sweeper = _Sweeper(self, loop)

    def _sweep(self) -> float | None:
        """Drop expired entries and return the seconds until the next step, or None if nothing is left."""
        if self._drop_expired(self._clock(), KEYS_PER_STEP):
            return 0
        return self.cleanup_interval if self._entries else None


@dataclass(slots=True)
class _Entry:
    """A value and what is known of it."""

    value: str | bytes
    binary: bool
    """Whether it was set by `set_bytes`, so that `get` has to decode it."""
    expires_at: float
    cost: int
    """The bytes that it counts."""
    neighbours: dict[str, None]
    """The keys that are looked at together with its own when their time is over."""


@dataclass(slots=True)
class _Deadlines:
    """Keys in buckets by when they expire, each reached in one step and left in one step.

    A bucket is due at a multiple of that power of two which lies between a 32nd and a 16th of the timeout. So a
    key is due at most that much later than it expires, and at most 33 buckets for each power of two lie ahead,
    however often keys are set again, with whatever timeouts.
    """

    ends: list[float] = field(default_factory=list)
    """A heap of the times at which buckets are due."""
    buckets: dict[float, dict[str, None]] = field(default_factory=dict)

    def neighbours(self, now: float, timeout_s: float) -> dict[str, None]:
        """Return the bucket for what is set at *now* for *timeout_s*."""
        width = math.ldexp(1.0, math.frexp(max(timeout_s, 0.1))[1] - 5)
        end = math.ceil((now + timeout_s) / width) * width
        if end not in self.buckets:
            self.buckets[end] = {}
            heappush(self.ends, end)
        return self.buckets[end]

    def pop_due(self, now: float) -> str | None:
        """Take out a key whose bucket is due at *now* and return it, or None if there is none."""
        while self.ends and self.ends[0] <= now:
            bucket = self.buckets[self.ends[0]]
            if bucket:
                return bucket.popitem()[0]
            del self.buckets[heappop(self.ends)]
        return None


class _Sweeper:
    """Sweeps a backend by timers of an event loop, and keeps neither of them alive.

    A timer, unlike a task, may be left behind by a loop that ends without `MemoryBackend.close`.
    """

    def __init__(self, backend: MemoryBackend, loop: asyncio.AbstractEventLoop) -> None:
        self._backend = ref(backend)
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = loop.call_later(backend.cleanup_interval, self._step)

    def serves(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Return whether a backend that is used on *loop* needs no other sweeper."""
        return self._timer is not None and (self._loop is loop or self._loop.is_running())

    def stop(self) -> None:
        """Sweep no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _step(self) -> None:
        self._timer = None
        backend = self._backend()
        delay = None if backend is None else backend._sweep()  # noqa: SLF001 - a part of the backend
        if delay is not None:
            self._timer = self._loop.call_later(delay, self._step)


def _positive_int(option: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise ConfigurationError(f"{option} must be a positive whole number, not {value!r}")
    return value


def _positive_seconds(option: str, value: object) -> float:
    try:
        return checked_timeout(value)
    except ValueError:
        raise ConfigurationError(f"{option} must be a positive number of seconds, not {value!r}") from None

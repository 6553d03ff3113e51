"""Values in this process, bounded by their number and by their bytes.

`get` and `set` look at a few entries, however many there are. Whatever concerns many lets others run between its
steps: `delete_pattern`, `close`, the sweeper, and a `set` for which more than `DROPS_PER_STEP` entries have to go.
Nothing else waits.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import frexp, inf, ldexp
from sys import getsizeof
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast
from weakref import ref

from app_cache.backends.base import CacheBackend, checked_timeout
from app_cache.backends.eviction import Eviction, Resident
from app_cache.backends.text import as_bytes, as_text, no_text
from app_cache.checks import source_of_numbers
from app_cache.errors import ConfigurationError
from app_cache.rules.glob import compile_glob

if TYPE_CHECKING:
    from collections.abc import Callable

    from app_cache.backends.base import Lent

T = TypeVar("T")

ENTRY_OVERHEAD: Final = 336
"""The bytes that an entry counts beside its key and value: what is known of it, its slots in four tables."""
WIDE_TEXT: Final = getsizeof("\U0001f600") - 4
"""The bytes that text beyond ASCII takes beside its characters, which are counted as the widest."""
EXPIRED_PER_SET: Final = 4
"""How many expired entries a `set` drops at most: more than the one that it adds, so that none pile up."""
DROPS_PER_STEP: Final = 100
"""How many entries are dropped, at most, before others may run."""
CHARACTERS_PER_STEP: Final = 2500
"""How many characters of keys a pattern is matched with before others may run."""
LONGEST_S: Final = 2.0**32
"""A timeout beyond this (136 years) counts as this."""


class MemoryBackend(CacheBackend):
    """Keeps values in this process, at most *max_size* of them and at most *max_bytes*.

    When one more does not fit, what has expired goes. Then it is the entry that was set last before this one, or,
    if that was asked for more often or its like come back more often, one that was not read of late
    (`app_cache.backends.eviction`). Where bytes are wanted, large entries are worth less.

    An entry counts the memory of its key, that of its value, and `ENTRY_OVERHEAD`; one that would count more than
    *max_entry_bytes* is not kept, nor is what was under its key before. Expired entries are never given out; their
    memory comes back at each `set`, a few at a time, and by a sweeper, which runs while there are entries and an
    event loop to run it. An instance belongs to the event loops of one thread at a time.

    Args:
        max_size: How many entries are kept.
        cleanup_interval: The seconds between two rounds of the sweeper.
        default_timeout: The seconds for which a value is kept that is set with the timeout None.
        max_bytes: How many bytes all entries may count together.
        max_entry_bytes: How many bytes one entry may count; an eighth of *max_bytes* if not given.
        clock: Seconds that never go back; what expires is judged by it.

    Raises:
        ConfigurationError: If a number is not positive, *max_entry_bytes* is above *max_bytes*, or *clock* is no
            function.
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
        self._clock = source_of_numbers("clock", clock)
        self._entries: dict[str, _Entry] = {}
        self._eviction: Eviction[_Entry] = Eviction()
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

    async def set(self, key: str, value: str, timeout: float | None = None) -> None:
        """Keep *value* for *timeout* seconds (fractions count; None: *default_timeout*).

        Raises:
            TypeError: If *value* is not str; from a subclass that makes bytes of it in a `set` of its own, bytes
                are kept as they are.
            ValueError: If *timeout* is not positive, or a bool.
        """
        given: object = value
        if not isinstance(given, str) and (type(self).set is MemoryBackend.set or not isinstance(given, bytes)):
            raise no_text(given)
        while not self._keep(key, value, timeout, binary=False):  # noqa: ASYNC110 - each time is a step of the work
            await asyncio.sleep(0)

    async def get_bytes(self, key: str) -> bytes | None:
        """Return the bytes kept under *key*, or None; a value set as text comes as UTF-8."""
        entry = self._lookup(key)
        if entry is None:
            return None
        return entry.value if isinstance(entry.value, bytes) else as_bytes(entry.value)

    def lend(self, key: str) -> tuple[Lent, Callable[[], float]] | None:
        """Return what `set_bytes` keeps under *key*, and the clock by which it expires; None if there is none."""
        entry = self._lookup(key)
        if entry is None or not isinstance(entry.value, bytes):
            return None
        return cast("Lent", entry), self._clock

    async def set_bytes(self, key: str, value: bytes, timeout: float | None = None) -> None:
        """Keep *value* under *key* for *timeout* seconds (fractions count; None: *default_timeout*).

        Raises:
            TypeError: If *value* is not bytes.
            ValueError: If *timeout* is not positive, or a bool.
        """
        if not isinstance(value, bytes):
            raise TypeError(f"value must be bytes, not {type(value).__name__}")
        while not self._keep(key, value, timeout, binary=True):  # noqa: ASYNC110 - each time is a step of the work
            await asyncio.sleep(0)

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
        count = looked_at = 0
        for entry in self._eviction.each():
            looked_at += len(entry.key) + 1
            if matches(entry.key):
                count += self._lookup(entry.key) is not None
                self._drop(entry.key)
            if looked_at > CHARACTERS_PER_STEP:
                looked_at = 0
                await asyncio.sleep(0)
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
        entries = self._entries
        self._entries = {}
        self._eviction = Eviction()
        self._deadlines = _Deadlines()
        self._beside.clear()
        self.bytes_held = 0
        for entry in entries.values():
            entry.live = False
        while entries:
            for _ in range(min(len(entries), DROPS_PER_STEP)):
                entries.popitem()
            if entries:
                await asyncio.sleep(0)

    def _lookup(self, key: str) -> _Entry | None:
        """Return the entry under *key* as one that was read, or None; an expired one is dropped."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.expires_at <= self._clock():
            self._drop(key)
            self.expired += 1
            return None
        entry.read = True
        return entry

    def _keep(self, key: str, value: str | bytes, timeout: float | None, *, binary: bool) -> bool:
        """Do as `set` does, and return True; return False if more has to go before than one step drops."""
        timeout_s = checked_timeout(self.default_timeout if timeout is None else timeout)
        if timeout_s > LONGEST_S:
            timeout_s = LONGEST_S
        now = self._clock()
        if self._deadlines.first <= now:
            self._drop_expired(now, EXPIRED_PER_SET)
        cost = _cost(key, value)
        if cost > self.max_entry_bytes:
            self._drop(key)
            self.refused += 1
            return True
        old = self._entries.get(key)
        if not self._fits(old, cost):
            if not self._make_room(key, cost, now):
                return False
            old = self._entries.get(key)
        if old is not None:
            key = old.key
            self._discount(old)
        neighbours = self._deadlines.neighbours(now, timeout_s)
        entry = _Entry(key, value=value, binary=binary, expires_at=now + timeout_s, neighbours=neighbours)
        if old is None:
            self._eviction.enter(entry)
        else:
            self._eviction.replace(old, entry)
        self._entries[key] = entry
        neighbours[key] = None
        self.bytes_held += cost
        if self._sweeper is None or not self._sweeper.runs():
            self._start_sweeper()
        return True

    def _fits(self, old: _Entry | None, cost: int) -> bool:
        """Return whether one that counts *cost* fits beside the others, in place of *old* if there is one."""
        if old is None:
            return len(self._entries) < self.max_size and self.bytes_held + cost <= self.max_bytes
        return self.bytes_held - old.cost + cost <= self.max_bytes

    def _make_room(self, key: str, cost: int, now: float) -> bool:
        """Drop entries, a step at most, until *key* fits with *cost*, and return whether it does."""
        for _ in range(DROPS_PER_STEP):
            if self._deadlines.first > now or not self._drop_expired(now, 1):
                chosen = self._eviction.choose(by_bytes=self.bytes_held + cost > self.max_bytes)
                del self._entries[chosen.key]
                self._discount(chosen)
                self.evicted += 1
            if self._fits(self._entries.get(key), cost):
                return True
        return False

    def _drop(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._discount(entry)
            self._eviction.leave(entry)

    def _discount(self, entry: _Entry) -> None:
        """Let *entry* count no longer, neither for the bytes nor for its deadline: it is gone."""
        entry.live = False
        entry.neighbours.pop(entry.key, None)
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
        self._sweeper = _Sweeper(self, loop)

    def _sweep(self) -> float | None:
        """Drop expired entries and return the seconds until the next step, or None if nothing is left."""
        if self._drop_expired(self._clock(), DROPS_PER_STEP):
            return 0
        return self.cleanup_interval if self._entries else None


class _Entry(Resident, kw_only=True, gc=False):
    """A value and what is known of it."""

    value: str | bytes
    binary: bool
    """Whether it was set by `set_bytes`, so that `get` has to decode it."""
    expires_at: float
    live: bool = True
    """Whether it is among the entries."""
    neighbours: dict[str, None]
    """The keys that are looked at together with its own when their time is over."""

    @property
    def cost(self) -> int:
        """The bytes that it counts."""
        return _cost(self.key, self.value)


def _cost(key: str, value: str | bytes) -> int:
    return _size(key) + _size(value) + ENTRY_OVERHEAD


def _size(value: str | bytes) -> int:
    """Return the bytes that *value* takes, always the same: text beyond ASCII takes more once it was encoded."""
    if isinstance(value, bytes) or value.isascii():
        return getsizeof(value)
    return WIDE_TEXT + 4 * len(value)


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
    first: float = inf
    """When the first of them is due."""
    last: tuple[float, float, dict[str, None]] = field(default_factory=lambda: (0.0, 0.0, {}))
    """The timeout that was asked for last, when its bucket is due, and the bucket: mostly asked for again."""

    def neighbours(self, now: float, timeout_s: float) -> dict[str, None]:
        """Return the bucket for what is set at *now* for *timeout_s*."""
        last_timeout_s, end, bucket = self.last
        if timeout_s == last_timeout_s and now + timeout_s < end:
            return bucket
        width = ldexp(1.0, frexp(max(0.1, timeout_s))[1] - 5)
        end = (now + timeout_s) // width * width + width
        if end not in self.buckets:
            self.buckets[end] = {}
            heappush(self.ends, end)
            self.first = self.ends[0]
        self.last = timeout_s, end, self.buckets[end]
        return self.buckets[end]

    def pop_due(self, now: float) -> str | None:
        """Take out a key whose bucket is due at *now* and return it, or None if there is none."""
        while self.first <= now:
            bucket = self.buckets[self.first]
            if bucket:
                return bucket.popitem()[0]
            del self.buckets[heappop(self.ends)]
            self.first = self.ends[0] if self.ends else inf
        return None


class _Sweeper:
    """Sweeps a backend by timers of an event loop, and keeps neither of them alive.

    A timer, unlike a task, may be left behind by a loop that ends without `MemoryBackend.close`.
    """

    def __init__(self, backend: MemoryBackend, loop: asyncio.AbstractEventLoop) -> None:
        self._backend = ref(backend)
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = loop.call_later(backend.cleanup_interval, self._step)

    def runs(self) -> bool:
        """Return whether there will be another round; in a loop that has ended there is none."""
        return self._timer is not None and self._loop.is_running()

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

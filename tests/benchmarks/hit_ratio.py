"""How many requests in a hundred find what they ask for, by trace and by cache.

    python -m tests.benchmarks.hit_ratio

A trace is a list of keys. Each key is looked up, and kept if it is not there. theine and cachetools take part
where they are installed. The traces are the same at each run; what hashes keys has another seed each time.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import os
import platform
import random
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from app_cache.backends.memory import ENTRY_OVERHEAD, MemoryBackend

T = TypeVar("T")
SEED = 7
KEYS = 20_000
REQUESTS = 200_000
ONCE = 10**7
"""Keys from here on are asked for once."""


@dataclass(frozen=True)
class Trace:
    """Requests, and the bound of the cache that they go to."""

    name: str
    keys: list[int]
    entries: int
    size_of: Callable[[int], int] = field(default=lambda _: 0)
    bytes: int = sys.maxsize // 8


class Cache(Protocol):
    """What is measured; it is made from the most entries and the most bytes."""

    def __init__(self, entries: int, size: int) -> None: ...

    def get(self, key: str) -> bool:
        """Return whether *key* is there."""
        ...

    def set(self, key: str, value: bytes) -> None:
        """Keep *value*."""
        ...


def zipf(chance: random.Random, exponent: float, requests: int = REQUESTS) -> list[int]:
    """Return keys of which the n-th most popular is asked for in proportion to ``1 / n ** exponent``."""
    weights = itertools.accumulate(1 / (rank + 1) ** exponent for rank in range(KEYS))
    return chance.choices(range(KEYS), cum_weights=list(weights), k=requests)


def with_scans(chance: random.Random) -> Iterator[int]:
    """Give Zipf, and after each 10,000 requests a scan of 5,000 keys that are never asked for again."""
    once = itertools.count(ONCE)
    for number, key in enumerate(zipf(chance, 0.9)):
        if number % 10_000 == 9_999:
            yield from itertools.islice(once, 5_000)
        yield key


def with_strays(chance: random.Random) -> Iterator[int]:
    """Give Zipf, and after every other request one for a key that is never asked for again."""
    for number, key in enumerate(zipf(chance, 0.9)):
        yield key
        if chance.random() < 0.5:
            yield ONCE + number


def with_loop(chance: random.Random) -> Iterator[int]:
    """Give Zipf and a loop of 1,100 keys in turn."""
    for number, key in enumerate(zipf(chance, 0.9, REQUESTS // 2)):
        yield key
        yield ONCE + number % 1_100


def shifting(chance: random.Random, every: int) -> Iterator[int]:
    """Give Zipf whose popular keys are others after *every* so many requests."""
    order = list(range(KEYS))
    for number, key in enumerate(zipf(chance, 0.9)):
        if number % every == 0:
            chance.shuffle(order)
        yield order[key]


def drifting(chance: random.Random) -> Iterator[int]:
    """Give Zipf whose keys move on by one each 20 requests."""
    return (key + number // 20 for number, key in enumerate(zipf(chance, 0.9)))


def news(chance: random.Random, age: float) -> Iterator[int]:
    """Give keys of which a new one comes each 10 requests, asked for at an exponential *age* on average."""
    return (number // 10 - int(chance.expovariate(1 / age)) for number in range(REQUESTS))


def recent(chance: random.Random) -> Iterator[int]:
    """Give a new key in a quarter of the requests, else one from the last, the nearer the more likely."""
    past: list[int] = []
    for number in range(REQUESTS):
        back = min(int(chance.paretovariate(0.5)), len(past))
        past.append(number if not past or chance.random() < 0.25 else past[-back])
        yield past[-1]


def size_of(key: int) -> int:
    """Return how many bytes the value of *key* has: about 4 KB in the middle, some of 100 KB and more."""
    return int(random.Random(key).lognormvariate(8.3, 1.3))


def chance() -> random.Random:
    """Return the source of chance of one trace."""
    return random.Random(SEED)


def traces() -> Iterator[Trace]:
    """Give all of them."""
    for exponent, entries in itertools.product((0.6, 0.8, 1.0, 1.2), (200, 1_000, 5_000)):
        yield Trace(f"Zipf {exponent}", zipf(chance(), exponent), entries)
    for entries in (200, 1_000, 5_000):
        yield Trace("Zipf 0.9 and scans", list(with_scans(chance())), entries)
    yield Trace("Zipf 0.9, a third one-time", list(with_strays(chance())), 1_000)
    for more in (1.02, 1.1, 1.5):
        keys = [number % int(1_000 * more) for number in range(REQUESTS)]
        yield Trace(f"loop of {more} times the cache", keys, 1_000)
    yield Trace("Zipf 0.9 and a loop", list(with_loop(chance())), 1_000)
    for every, entries in itertools.product((5_000, 20_000), (200, 1_000)):
        yield Trace(f"Zipf 0.9, others each {every:,}", list(shifting(chance(), every)), entries)
    yield Trace("Zipf 0.9, drifting", list(drifting(chance())), 1_000)
    yield Trace("news", list(news(chance(), 200)), 200)
    yield Trace("news", list(news(chance(), 600)), 1_000)
    for entries in (200, 1_000):
        yield Trace("recent", list(recent(chance())), entries)
    for exponent, mib in itertools.product((0.8, 1.0), (4, 16)):
        yield Trace(f"Zipf {exponent}, sizes, {mib} MiB", zipf(chance(), exponent), KEYS, size_of, mib * 2**20)


def cost(key: str, value: bytes) -> int:
    """Return what an entry counts, for all that are bounded by bytes."""
    return sys.getsizeof(key) + sys.getsizeof(value) + ENTRY_OVERHEAD


def done(coroutine: Coroutine[Any, Any, T]) -> T:
    """Return what *coroutine* returns, which waits for nothing but its turn."""
    while True:
        try:
            coroutine.send(None)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


class Ours:
    """`MemoryBackend`."""

    def __init__(self, entries: int, size: int) -> None:
        self.backend = MemoryBackend(entries, max_bytes=size)

    def get(self, key: str) -> bool:
        return done(self.backend.get_bytes(key)) is not None

    def set(self, key: str, value: bytes) -> None:
        done(self.backend.set_bytes(key, value, 1e6))


class LRU:
    """The least recently used goes."""

    def __init__(self, entries: int, size: int) -> None:
        self.entries, self.size, self.held = entries, size, 0
        self.kept: OrderedDict[str, bytes] = OrderedDict()

    def get(self, key: str) -> bool:
        if key in self.kept:
            self.kept.move_to_end(key)
        return key in self.kept

    def set(self, key: str, value: bytes) -> None:
        self.held += cost(key, value)
        while len(self.kept) >= self.entries or self.held > self.size:
            self.held -= cost(*self.kept.popitem(last=False))
        self.kept[key] = value


class Sieve:
    """SIEVE: a hand moves from old to new and takes the first unread; nothing changes its place."""

    def __init__(self, entries: int, size: int) -> None:
        self.entries = entries
        self.read: dict[str, bool] = {}
        self.newer: dict[str, str] = {"": ""}
        self.older: dict[str, str] = {"": ""}
        self.hand = ""

    def get(self, key: str) -> bool:
        if key in self.read:
            self.read[key] = True
        return key in self.read

    def set(self, key: str, value: bytes) -> None:
        if len(self.read) >= self.entries:
            self.evict()
        newest = self.older[""]
        self.older[""], self.newer[newest] = key, key
        self.older[key], self.newer[key] = newest, ""
        self.read[key] = False

    def evict(self) -> None:
        at = self.hand or self.newer[""]
        while self.read[at]:
            self.read[at] = False
            at = self.newer[at] or self.newer[""]
        self.hand = self.newer[at]
        newer, older = self.newer.pop(at), self.older.pop(at)
        self.newer[older], self.older[newer] = newer, older
        del self.read[at]


class S3Fifo:
    """S3-FIFO: a small queue of a tenth, a main one, and the names of what the small one let go."""

    def __init__(self, entries: int, size: int) -> None:
        self.entries, self.small_size = entries, max(1, entries // 10)
        self.reads: dict[str, int] = {}
        self.small: deque[str] = deque()
        self.main: deque[str] = deque()
        self.gone: OrderedDict[str, None] = OrderedDict()

    def get(self, key: str) -> bool:
        if key in self.reads:
            self.reads[key] = min(self.reads[key] + 1, 3)
        return key in self.reads

    def set(self, key: str, value: bytes) -> None:
        while len(self.reads) >= self.entries:
            if len(self.small) >= self.small_size or not self.main:
                self.evict_small()
            else:
                self.evict_main()
        came_back = key in self.gone
        self.gone.pop(key, None)
        (self.main if came_back else self.small).append(key)
        self.reads[key] = 0

    def evict_small(self) -> None:
        key = self.small.popleft()
        if self.reads[key] > 1:
            self.reads[key] = 0
            self.main.append(key)
            return
        del self.reads[key]
        self.gone[key] = None
        if len(self.gone) > self.entries - self.small_size:
            self.gone.popitem(last=False)

    def evict_main(self) -> None:
        key = self.main.popleft()
        if self.reads[key]:
            self.reads[key] -= 1
            self.main.append(key)
        else:
            del self.reads[key]


class Theine:
    """theine: W-TinyLFU with a window that adapts, in Rust; bounded by entries alone."""

    def __init__(self, entries: int, size: int) -> None:
        self.cache = importlib.import_module("theine").Cache(entries, nolock=True)

    def get(self, key: str) -> bool:
        return bool(self.cache.get(key)[1])

    def set(self, key: str, value: bytes) -> None:
        self.cache.set(key, value)


class _Cachetools:
    name: str

    def __init__(self, entries: int, size: int) -> None:
        kind = getattr(importlib.import_module("cachetools"), self.name)
        self.cache = kind(entries) if size > 2**40 else kind(size, getsizeof=lambda kept: cost(*kept))

    def get(self, key: str) -> bool:
        return self.cache.get(key) is not None

    def set(self, key: str, value: bytes) -> None:
        self.cache[key] = (key, value)


class CachetoolsLRU(_Cachetools):
    """cachetools.LRUCache."""

    name = "LRUCache"


class CachetoolsLFU(_Cachetools):
    """cachetools.LFUCache."""

    name = "LFUCache"


CACHES: dict[str, type[Cache]] = {"ours": Ours, "LRU": LRU, "SIEVE": Sieve, "S3-FIFO": S3Fifo}
PEERS: dict[str, tuple[str, type[Cache]]] = {
    "theine": ("theine", Theine),
    "ct LRU": ("cachetools", CachetoolsLRU),
    "ct LFU": ("cachetools", CachetoolsLFU),
}
BY_BYTES = {"ours", "LRU", "ct LRU", "ct LFU"}


def hit_ratio(kind: type[Cache], trace: Trace) -> float:
    """Return how many of a hundred requests of *trace* found what they asked for."""
    names = {key: f"cache:{key:016x}" for key in set(trace.keys)}
    values = {key: bytes(trace.size_of(key)) for key in names}
    cache = kind(trace.entries, trace.bytes)
    hits = 0
    for key in trace.keys:
        if cache.get(names[key]):
            hits += 1
        else:
            cache.set(names[key], values[key])
    return 100 * hits / len(trace.keys)


def main() -> None:
    """Print a table of Markdown."""
    caches = CACHES | {name: kind for name, (module, kind) in PEERS.items() if importlib.util.find_spec(module)}
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores\n")
    print("| trace | entries |", " | ".join(caches), "|")
    print("|---|---|" + "---|" * len(caches))
    for trace in traces():
        by_bytes = trace.bytes < 2**40
        cells = [
            f"{hit_ratio(kind, trace):.1f}" if name in BY_BYTES or not by_bytes else ""
            for name, kind in caches.items()
        ]
        bound = "by bytes" if by_bytes else f"{trace.entries:,}"
        print(f"| {trace.name} | {bound} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()

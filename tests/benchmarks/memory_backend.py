"""What `MemoryBackend` costs: time of an operation, memory of an entry, longest pause of the event loop.

    python -m tests.benchmarks.memory_backend

Times are those of the processor, so that a machine that does other things beside disturbs little.
"""

from __future__ import annotations

import asyncio
import gc
import os
import platform
import statistics
import time
import tracemalloc
from collections.abc import Callable, Coroutine
from typing import Any

from app_cache.backends.memory import MemoryBackend
from app_cache.testing import FakeClock

ENTRIES = 100_000
AT_ONCE = 5_000
ROUNDS = 9
PAUSE_RUNS = 3
VALUE = 1_000


def key(number: int) -> str:
    """Return a key as long as those of responses."""
    return f"cache:{number:064x}"


async def filled(entries: int, clock: Callable[[], float] = time.monotonic) -> MemoryBackend:
    """Return a backend that holds as many *entries* of 1 KB as it may."""
    backend = MemoryBackend(entries, max_bytes=2**30, cleanup_interval=0.01, clock=clock)
    for number in range(entries):
        await backend.set_bytes(key(number), bytes(VALUE), 1_000)
    return backend


async def microseconds(call: Callable[[str, bytes], Coroutine[Any, Any, object]], first: int) -> float:
    """Return the time of *call* for keys from the *first* on."""
    keys = [key(number) for number in range(first, first + AT_ONCE)]
    value = bytes(VALUE)
    before = time.process_time()
    for name in keys:
        await call(name, value)
    return (time.process_time() - before) / AT_ONCE * 1e6


async def one_round(backend: MemoryBackend) -> dict[str, float]:
    """Return the times of operations on *backend*, which is full, and close it."""

    def get(name: str, _value: bytes) -> Coroutine[Any, Any, object]:
        return backend.get_bytes(name)

    times = {
        "get, a hit": await microseconds(get, 0),
        "get, a miss": await microseconds(get, 2 * AT_ONCE),
        "set in place of another": await microseconds(backend.set_bytes, 0),
        "set where one has to go": await microseconds(backend.set_bytes, 2 * AT_ONCE),
    }
    await backend.close()
    return times


async def operations() -> dict[str, float]:
    """Return what an operation costs, in microseconds: medians of some rounds that take turns."""
    rounds: list[dict[str, float]] = []
    for _ in range(ROUNDS):
        rounds.append(await one_round(await filled(2 * AT_ONCE)))
    return {name: statistics.median([measured[name] for measured in rounds]) for name in rounds[0]}


async def memory() -> dict[str, float]:
    """Return the bytes that an entry takes beside its key and value, and the time of a full garbage collection."""
    tracemalloc.start()
    backend = await filled(ENTRIES)
    taken = tracemalloc.get_traced_memory()[0] / ENTRIES
    tracemalloc.stop()
    plain = key(0).__sizeof__() + bytes(VALUE).__sizeof__()
    before = time.process_time()
    gc.collect()
    collected_ms = (time.process_time() - before) * 1e3
    await backend.close()
    return {"an entry beside key and value, bytes": taken - plain, "a full garbage collection, ms": collected_ms}


async def longest_pause(work: Coroutine[Any, Any, object]) -> float:
    """Return how long *work* kept others from running at a time, at most, in milliseconds."""
    working = asyncio.create_task(work)
    longest = 0.0
    while not working.done():
        before = time.thread_time()
        await asyncio.sleep(0)
        longest = max(longest, time.thread_time() - before)
    await working
    return longest * 1e3


async def emptied(backend: MemoryBackend) -> None:
    """Return when the sweeper has dropped all."""
    while await backend.size():  # noqa: ASYNC110 - the sweeper tells nobody
        await asyncio.sleep(0)


async def pauses() -> dict[str, float]:
    """Return the longest pauses among 100,000 entries, in ms: the least of some runs, for noise only adds."""
    runs = [await one_run() for _ in range(PAUSE_RUNS)]
    return {name: min(measured[name] for measured in runs) for name in runs[0]}


async def one_run() -> dict[str, float]:
    """Return the longest pauses of one run."""
    clock = FakeClock()
    backend = await filled(ENTRIES, clock)
    backend.max_bytes, backend.max_entry_bytes = backend.bytes_held, backend.bytes_held // 8
    pauses = {
        "set for which 12,500 have to go": await longest_pause(
            backend.set_bytes("large", bytes(backend.max_entry_bytes - 1_000), 1_000)
        ),
        "delete_pattern, none match": await longest_pause(backend.delete_pattern("*none*")),
        "delete_pattern, half match": await longest_pause(backend.delete_pattern("*[02468ace]")),
    }
    clock.advance(2_000)
    pauses["all expire"] = await longest_pause(emptied(backend))
    backend = await filled(ENTRIES)
    pauses["close"] = await longest_pause(backend.close())
    return pauses


async def main() -> None:
    """Print all of it."""
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores")
    for title, measure in (("microseconds", operations), ("memory", memory), ("longest pause, ms", pauses)):
        print(f"\n{title}")
        for name, value in (await measure()).items():
            print(f"  {name:40} {value:8.2f}")


if __name__ == "__main__":
    asyncio.run(main())

"""Memory: what an entry takes beyond its body, and what a process takes after many random URLs."""

from __future__ import annotations

import gc
import os
import random
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING

from app_cache import CacheMiddleware, CachePolicy, MemoryBackend
from app_cache.fastpath import MAX_REQUESTS
from tests.benchmarks.apps import KIB, LIFETIME_S, Wanted, running, wrapped
from tests.benchmarks.driver import discard, receive
from tests.benchmarks.figures import Figure, Section
from tests.benchmarks.requests import scope

if TYPE_CHECKING:
    from tests.benchmarks.apps import App
    from tests.benchmarks.figures import Effort

WORDS = """
Bytes of one entry as tracemalloc counts them, its key and all that is kept for it included, less its body of 1
KiB. *Given again* is what a hit that is remembered takes in addition, a copy of its body included; they are at
most 4,096, and 32 MiB. The growth is of the process's resident memory, Python's own included.
"""
STORED = 20_000
MAX_BYTES = 64 * KIB**2


async def measure(effort: Effort) -> Section:
    """Measure memory; nothing else may have run in this process."""
    grown = await random_urls(effort)
    return Section("Memory", WORDS, [*await by_entry(), *([] if grown is None else [grown])])


async def by_entry() -> list[Figure]:
    """Measure what is kept for an entry."""
    app = wrapped(Wanted(""))
    tracemalloc.start()
    await _asked(app, -100)  # what is there once
    before = _traced()
    await _asked(app, STORED)
    stored = _traced()
    await _asked(app, STORED)
    hit = _traced()
    tracemalloc.stop()
    return [
        Figure.of("an entry, beyond its body", [(stored - before) / STORED / KIB - 1], "KiB", at_most=0.75),
        Figure.of("its hit that is given again, in addition", [(hit - stored) / MAX_REQUESTS / KIB], "KiB"),
    ]


async def _asked(app: App, number: int) -> None:
    for each in range(min(number, 0), max(number, 0)):
        await app(scope(f"/items/{each}"), receive, discard)


def _traced() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


async def random_urls(effort: Effort) -> Figure | None:
    """Measure by what the process grows when it is asked for random URLs; None where that cannot be seen."""
    before = _resident()
    if before is None:
        return None
    dice = random.Random(1)
    app = CacheMiddleware(
        running(Wanted("")),
        MemoryBackend(max_size=10_000_000, max_bytes=MAX_BYTES),
        default_policy=CachePolicy(timeout=LIFETIME_S),
    )
    for _ in range(effort.entries):
        await app(scope(f"/items/{dice.getrandbits(64)}", query=f"q={dice.getrandbits(64)}"), receive, discard)
    grown = (_resident() or 0) - before
    return Figure.of(
        f"growth after {effort.entries:,} random URLs", [grown / MAX_BYTES], "of max_bytes", at_most=1.3
    )


def _resident() -> int | None:
    """Return the bytes of this process that are in memory, or None where the system does not say so."""
    file = Path("/proc/self/statm")
    return int(file.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE") if file.exists() else None

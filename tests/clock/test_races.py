"""Nothing older is served after an invalidation has returned, in whatever order things happen.

Readers, fills, invalidations and an evictor race; each pauses at random between its steps. Every thing has a
version; a reader notes which one is the oldest that may be served before it begins to look up. More rounds:
``APP_CACHE_RACE_ROUNDS=50 APP_CACHE_RACE_SEED=7 pytest tests/clock/test_races.py -s``.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pytest

from app_cache.backends.memory import MemoryBackend
from app_cache.backends.redis import RedisBackend
from app_cache.clock.base import Order
from app_cache.clock.names import tag_stamp, url_stamp
from app_cache.store import StoredResponses
from tests.stored import FourMethods, Page, look_up, written

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.servers import Server

pytestmark = pytest.mark.anyio

ROUNDS = int(os.environ.get("APP_CACHE_RACE_ROUNDS", "1"))
SEED = int(os.environ.get("APP_CACHE_RACE_SEED", "20240229"))
PROCESSES = 3
MOODS = ("happy", "sad", "calm")
"""Tags of which each answer has another one, so that nobody knows before it is there."""


@dataclass
class Thing:
    """What a page shows, and which of its versions may still be served."""

    page: Page
    version: int = 1
    hard: Counter[str] = field(default_factory=Counter)
    """The oldest version that may be served, of all answers (``""``) and of those with a mood."""
    soft: Counter[str] = field(default_factory=Counter)
    """The oldest version that may be served as fresh."""


@dataclass
class Race:
    """Everything that happens in one round."""

    stores: list[StoredResponses]
    evict: Callable[[random.Random], None]
    random: random.Random
    longest_pause: int
    evictions: int
    calm: int = 4
    """How much longer a writer rests than others."""
    things: list[Thing] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    over: bool = False

    def __post_init__(self) -> None:
        for number in range(8):
            directory, own = "ab"[number % 2], f"thing {number}"
            tags = (own, f"group {number % 3}") if number < 6 else ()
            late = (f"late {number % 4}",) if number % 3 == 0 else ()
            self.things.append(Thing(Page(f"/{directory}/{number}", tags, late, f"logical:{number}")))

    async def run(self, reads: int) -> None:
        """Let all race until there were so many *reads*."""
        others = [*(self.write() for _ in range(3)), self.evict_now_and_then()]
        rivals = [asyncio.create_task(other) for other in others]
        readers = [asyncio.create_task(self.read(reads)) for _ in range(12)]
        try:
            await asyncio.gather(*readers)
        finally:
            self.over = True
            await asyncio.gather(*rivals, *readers, return_exceptions=True)
        for rival in rivals:
            rival.result()

    async def read(self, reads: int) -> None:
        """Look up one thing after the other, and fill what is missing or stale."""
        while self.counts["reads"] < reads and not self.wrong and not self.over:
            self.counts["reads"] += 1
            thing, store = self.random.choice(self.things), self.random.choice(self.stores)
            hard, soft = thing.hard.copy(), thing.soft.copy()
            found = await look_up(store, thing.page)
            if found.entry is not None:
                self.counts["stale" if found.marked_stale else "hits"] += 1
                version, mood = self.shown(found.entry.body)
                needed = max(hard[""], hard[mood]), max(soft[""], soft[mood])
                if version < needed[0] or (version < needed[1] and not found.marked_stale):
                    marked = "marked" if found.marked_stale else "not marked"
                    self.wrong.append(f"{thing.page.path}: {version} {mood} served {marked}, needed {needed}")
            if found.entry is None or found.marked_stale:
                await self.pause()
                turn = store.next_turn()
                mark = await store.begin(found.reading, thing.page.asked, 300.0)
                assert mark is not None
                await self.pause()
                version, mood = thing.version, self.random.choice((*MOODS, "", "", ""))
                await self.pause(4)
                answer = replace(thing.page, late=(*thing.page.late, *filter(None, [mood])))
                entry = answer.entry(mark, f"{version} {mood}".encode())
                await store.keep(entry, 300.0, (), frozenset(), turn)
                self.counts["fills"] += 1
            await self.pause()

    @staticmethod
    def shown(body: bytes) -> tuple[int, str]:
        """Return the version and the mood that an answer shows."""
        version, _, mood = body.decode().partition(" ")
        return int(version), mood

    async def write(self) -> None:
        """Change things, then invalidate what shows them."""
        while not self.over:
            await self.pause(self.calm)
            order, named, mood = self.order()
            changed = [thing for thing in self.things if named(thing.page)]
            for thing in changed:
                thing.version += 1
            versions = [thing.version for thing in changed]
            if self.random.random() < 0.5:
                await self.pause()
            result = await self.random.choice(self.stores).invalidate(order)
            assert result.durable
            self.counts["invalidations"] += 1
            for thing, version in zip(changed, versions, strict=True):
                thing.soft[mood] = max(thing.soft[mood], version)
                if not order.soft:
                    thing.hard[mood] = max(thing.hard[mood], version)

    def order(self) -> tuple[Order, Callable[[Page], bool], str]:
        """Return an invalidation of any kind, what tells the pages that it names, and the mood if it names one."""
        page = self.random.choice(self.things).page
        number, directory = page.path[-1], page.path[:3]
        tag, mood = self.random.choice(page.tags + page.late or ("nobody",)), self.random.choice(MOODS)
        both = (tag_stamp(tag), tag_stamp(self.random.choice(page.tags or ("nobody",))))

        def one(each: Page) -> bool:
            return each.path == page.path

        def tagged(each: Page) -> bool:
            return tag in each.tags + each.late

        def tagged_twice(each: Page) -> bool:
            return {*both} <= each.stored.tags

        orders: list[tuple[int, Order, Callable[[Page], bool], str]] = [
            (24, Order(tags=(tag_stamp(tag),)), tagged, ""),
            (24, Order(tags=(tag_stamp(mood),)), lambda _: True, mood),
            (16, Order(tags=(url_stamp(page.path),)), one, ""),
            (8, Order(patterns=(f"{directory}*",)), lambda each: each.path.startswith(directory), ""),
            (8, Order(patterns=(f"*{number}",)), one, ""),
            (8, Order(patterns=(f"logical:[{number}]",)), one, ""),
            (8, Order(all_of=(both,)), tagged_twice, ""),
            (6, Order(keys=(page.key,)), one, ""),
            (1, Order(everything=True), lambda _: True, ""),
        ]
        _, order, named, mood = self.random.choices(orders, [each[0] for each in orders])[0]
        return replace(order, soft=self.random.random() < 0.3), named, mood

    async def evict_now_and_then(self) -> None:
        """Delete a key that nobody expects to go, again and again."""
        while not self.over:
            for _ in range(self.random.randrange(self.evictions)):
                await asyncio.sleep(0)
            self.evict(self.random)
            self.counts["evictions"] += 1

    async def pause(self, times: int = 1) -> None:
        """Let others run for a while: mostly a short one, now and then a long one."""
        for _ in range(times * int(self.longest_pause ** self.random.random())):
            await asyncio.sleep(0)


async def race(
    stores: list[StoredResponses],
    evict: Callable[[random.Random], None],
    seed: int,
    *,
    reads: int,
    longest_pause: int,
    evictions: int,
    calm: int = 4,
) -> Counter[str]:
    """Race once, and return what there was of what."""
    one = Race(stores, evict, random.Random(seed), longest_pause, evictions, calm)
    await one.run(reads)
    for store in stores:
        await written(store)
        await store.close()
    assert not one.wrong, f"seed {seed}, {dict(one.counts)}: {one.wrong}"
    return one.counts


class Patient(FourMethods):
    """Waits as long as it takes."""

    operation_timeout = 9.0


def check(name: str, counts: Counter[str], *, soft: bool = True) -> None:
    """Say how many reads there were, and see that enough of them were hits to mean anything."""
    print(f"\n{name}: {dict(sorted(counts.items()))}")  # noqa: T201
    assert counts["hits"] > counts["reads"] * 0.1
    assert (counts["stale"] > 0) == soft
    assert min(counts["fills"], counts["invalidations"], counts["evictions"]) > counts["reads"] * 0.005


@pytest.mark.parametrize(
    ("longest_pause", "evictions"),
    [pytest.param(100, 400, id="calm"), pytest.param(30, 40, id="storm")],
)
async def test_redis(redis_server: Server, longest_pause: int, evictions: int) -> None:
    """Three processes on one Redis, which evicts what it likes, serve nothing that was invalidated."""
    counts: Counter[str] = Counter()
    for number in range(ROUNDS):
        redis_server.empty()
        backends = [RedisBackend(redis_server.url, operation_timeout=9.0) for _ in range(PROCESSES)]

        def evict(chance: random.Random) -> None:
            kind = chance.choices(["{*}bans", "{*}s:*", "{*}clock", "cache:*"], [8, 16, 1, 4])[0]
            keys = sorted(redis_server.command("KEYS", kind))
            if keys:
                redis_server.command("DEL", chance.choice(keys))

        stores = [StoredResponses(backend) for backend in backends]
        counts += await race(
            stores, evict, SEED + number, reads=2_500, longest_pause=longest_pause, evictions=evictions
        )
        for backend in backends:
            await backend.close()
    check("Redis", counts)


async def test_memory() -> None:
    """Two middlewares on one memory, which evicts what it likes, serve nothing that was invalidated."""
    counts: Counter[str] = Counter()
    for number in range(ROUNDS):
        backend = MemoryBackend()

        def evict(chance: random.Random, backend: MemoryBackend = backend) -> None:
            keys = sorted(backend._entries)
            if keys:
                backend._drop(chance.choice(keys))

        stores = [StoredResponses(backend) for _ in range(2)]
        counts += await race(stores, evict, SEED + number, reads=5_000, longest_pause=60, evictions=100)
        await backend.close()
    check("memory", counts)


async def test_four_methods() -> None:
    """One process on a backend of four methods, slow and forgetful, serves nothing that was invalidated."""
    counts: Counter[str] = Counter()
    for number in range(ROUNDS):
        backend = Patient()
        chance = random.Random(SEED + number)

        async def pause(chance: random.Random = chance) -> None:
            for _ in range(int(20 ** chance.random()) - 1):
                await asyncio.sleep(0)

        def evict(chance: random.Random, backend: FourMethods = backend) -> None:
            keys = sorted(backend.values)
            if keys:
                del backend.values[chance.choice(keys)]

        backend.pause = pause
        stores = [StoredResponses(backend)]
        counts += await race(stores, evict, SEED + number, reads=2_500, longest_pause=100, evictions=200, calm=12)
    check("four methods", counts, soft=False)

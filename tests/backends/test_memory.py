"""Memory is bounded by entries and by bytes, and forgets in small steps."""

from __future__ import annotations

import asyncio
import gc
import random
import sys
import tracemalloc
import weakref
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from app_cache.backends.memory import (
    CHARACTERS_PER_STEP,
    DROPS_PER_STEP,
    ENTRY_OVERHEAD,
    EXPIRED_PER_SET,
    MemoryBackend,
)
from app_cache.errors import BackendError, ConfigurationError
from app_cache.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import FrameType

    TraceFunction = Callable[[FrameType, str, object], Any]

T = TypeVar("T")

pytestmark = pytest.mark.anyio


@pytest.fixture
def clock() -> FakeClock:
    """Give the clock that the backend of the test goes by."""
    return FakeClock()


async def test_evicts_the_unread(clock: FakeClock) -> None:
    """When one more does not fit, an entry that was not read goes, and what is set is kept."""
    backend = MemoryBackend(max_size=3, clock=clock)
    for key in "abc":
        await backend.set(key, key)
    await backend.get("c")
    await backend.set("d", "d")
    await backend.set("e", "e")
    assert [key for key in "abcde" if await backend.get(key)] == ["b", "c", "e"]
    assert backend.evicted == 2


async def test_scan(clock: FakeClock) -> None:
    """20,000 keys that are asked for once drive out nothing of what is asked for often."""
    backend = MemoryBackend(max_size=1000, clock=clock)
    often = [f"often {number}" for number in range(900)]
    for key in 3 * often:
        if await backend.get(key) is None:
            await backend.set(key, "value")
    for number in range(20_000):
        await backend.set(f"once {number}", "value")
    assert [key for key in often if await backend.get(key) is None] == []


async def test_what_is_lent_counts_as_read(clock: FakeClock) -> None:
    """What was lent, and given out by who has it, is in use: it does not go for what is asked for once."""
    backend = MemoryBackend(max_size=2, clock=clock)
    await backend.set_bytes("lent", b"value")
    lent = backend.lend("lent")
    assert lent is not None
    for number in range(100):
        lent[0].read = True
        await backend.set_bytes(f"once {number}", b"value")
    assert (lent[0].live, await backend.get_bytes("lent")) == (True, b"value")


@pytest.mark.parametrize("value", ["text", None], ids=["text", "nothing"])
async def test_what_is_not_lent(value: str | None, clock: FakeClock) -> None:
    """Text that `set` keeps is not lent, for it is no bytes, nor is what is not there."""
    backend = MemoryBackend(clock=clock)
    if value is not None:
        await backend.set("key", value)
    assert backend.lend("key") is None


async def test_replacing_evicts_nothing(clock: FakeClock) -> None:
    """A value that takes the place of another needs no room of its own."""
    backend = MemoryBackend(max_size=2, clock=clock)
    for key in ("a", "b", "a", "b", "a"):
        await backend.set(key, key)
    assert (await backend.size(), backend.evicted) == (2, 0)


async def test_expired_go_before_others(clock: FakeClock) -> None:
    """An entry whose time is over makes room before one that is still good."""
    backend = MemoryBackend(max_size=2, clock=clock)
    await backend.set("good", "value", 1000)
    await backend.set("over", "value", 1)
    clock.advance(2)
    await backend.set("new", "value", 1000)
    assert await backend.get("good") == "value"
    assert (backend.evicted, backend.expired) == (0, 1)


async def test_all_expired_go_before_others(clock: FakeClock) -> None:
    """However much room a value needs, nothing that is still good goes while something has expired."""
    backend = MemoryBackend(max_bytes=40_000, max_entry_bytes=20_000, clock=clock)
    await backend.set_bytes("good", bytes(1000), 1000)
    for number in range(30):
        await backend.set_bytes(f"over {number}", bytes(850), 1)
    clock.advance(2)
    await backend.set_bytes("new", bytes(19_000), 1000)
    assert await backend.get_bytes("good") is not None
    assert backend.evicted == 0


async def test_bounded_by_bytes(clock: FakeClock) -> None:
    """All entries together count at most max_bytes, keys and overhead included."""
    backend = MemoryBackend(max_bytes=100_000, clock=clock)
    for number in range(200):
        await backend.set_bytes(f"key {number}", bytes(1000), 60)
        assert backend.bytes_held <= 100_000
    assert await backend.size() == 100_000 // cost_of("key 199", bytes(1000))


async def test_bytes_return(clock: FakeClock) -> None:
    """What is deleted, replaced, expired or evicted counts no longer."""
    backend = MemoryBackend(max_size=1, clock=clock)
    await backend.set("a", "x" * 1000, 1)
    await backend.set("a", "x", 1)
    assert backend.bytes_held == cost_of("a", "x")
    clock.advance(1)
    assert await backend.get("a") is None
    assert backend.bytes_held == 0
    await backend.set("a", "x")
    await backend.set("b", "y")
    await backend.delete("b")
    assert backend.bytes_held == 0


def test_bytes_are_true() -> None:
    """What the entries are said to count is what they take, within a tenth."""
    tracemalloc.start()
    try:
        backend = MemoryBackend(max_size=10_000)
        before = tracemalloc.get_traced_memory()[0]
        for number in range(10_000):
            done(backend.set_bytes(f"key {number}", bytes(1000)))
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert backend.bytes_held == pytest.approx(taken, rel=0.1)


def test_garbage_collector_passes_over() -> None:
    """However many entries there are, the garbage collector looks at none of them."""
    backend = MemoryBackend()
    done(backend.set("key", "value"))
    assert not gc.is_tracked(backend._entries["key"])


@pytest.mark.parametrize("operation", ["get", "set", "replace"])
def test_steps_are_bounded(operation: str, clock: FakeClock) -> None:
    """No get or set looks at more entries where there are more: it runs about as many lines of code."""

    def most_lines(entries: int) -> int:
        backend = MemoryBackend(max_size=entries, clock=clock)
        for number in range(entries):
            done(backend.set(f"{number}", "value"))
            done(backend.get(f"{number}"))
        keys = [f"{number + entries * (operation == 'set')}" for number in range(50)]
        if operation == "get":
            return max(lines_of(backend.get(key)) for key in keys)
        return max(lines_of(backend.set(key, "other")) for key in keys)

    assert most_lines(5000) < 1.5 * most_lines(100) < 450


async def test_too_large(clock: FakeClock) -> None:
    """A value that alone counts more than max_entry_bytes is not kept, nor is the one before it; others stay."""
    backend = MemoryBackend(max_bytes=8 * 10_000, clock=clock)
    await backend.set("other", "value")
    await backend.set("key", "old")
    await backend.set("key", "x" * 10_000)
    assert (await backend.get("key"), await backend.get("other")) == (None, "value")
    assert (backend.refused, backend.evicted) == (1, 0)


async def test_largest(clock: FakeClock) -> None:
    """A value is kept that counts exactly max_entry_bytes."""
    value = bytes(5000)
    backend = MemoryBackend(max_entry_bytes=cost_of("key", value), clock=clock)
    await backend.set_bytes("key", value, 60)
    await backend.set_bytes("key 2", value, 60)
    assert (await backend.get_bytes("key"), await backend.get_bytes("key 2")) == (value, None)


async def test_expired_in_steps(clock: FakeClock) -> None:
    """A set drops a few expired entries, however many there are."""
    backend = MemoryBackend(clock=clock)
    for number in range(100):
        await backend.set(f"{number}", "value", 10)
    clock.advance(20)
    await backend.set("new", "value", 10)
    assert await backend.size() == 100 - EXPIRED_PER_SET + 1
    for _ in range(100):
        await backend.set("new", "value", 10)
    assert await backend.size() == 1


async def test_deadlines_are_bounded(clock: FakeClock) -> None:
    """A key that is set again and again, with whatever timeouts, leaves nothing behind."""
    backend = MemoryBackend(clock=clock)
    for number in range(20_000):
        await backend.set("key", "value", 1 + number * 7919 % 100_000 / 3)
        clock.advance(0.01)
    assert len(backend._deadlines.ends) == len(backend._deadlines.buckets) <= 33 * 16
    assert sum(map(len, backend._deadlines.buckets.values())) == 1


@pytest.mark.parametrize("timeout", [0.001, 0.3, 1, 59.9, 86_400, 2**40, 1e308])
async def test_any_timeout(clock: FakeClock, timeout: float) -> None:
    """A value is kept for its time, however short or long, and is dropped within a sixteenth of it after."""
    backend = MemoryBackend(clock=clock)
    await backend.set("key", "value", timeout)
    kept_for = min(timeout, 2**32)
    clock.advance(kept_for * 0.999)
    await backend.set("other", "value", 1e9)
    assert await backend.get("key") == "value"
    clock.advance(kept_for / 15 + 0.02)
    await backend.set("other", "value", 1e9)
    assert await backend.size() == 1


async def test_default_timeout(clock: FakeClock) -> None:
    """A value that is set with the timeout None is kept for the default."""
    backend = MemoryBackend(default_timeout=10, clock=clock)
    await backend.set("text", "value", None)
    await backend.set_bytes("bytes", b"value", None)
    clock.advance(9.9)
    assert (await backend.get("text"), await backend.get_bytes("bytes")) == ("value", b"value")
    clock.advance(0.1)
    assert (await backend.get("text"), await backend.get_bytes("bytes")) == (None, None)


async def test_sweeper(clock: FakeClock) -> None:
    """Expired entries go without a set or get, all of them, though each step of the sweeper is bounded."""
    backend = MemoryBackend(max_size=10**6, cleanup_interval=0.001, clock=clock)
    for number in range(2 * DROPS_PER_STEP + 1):
        await backend.set(f"{number}", "value", 10)
    clock.advance(20)
    await empty(backend)
    await backend.set("later", "value", 10)
    clock.advance(20)
    await empty(backend)
    await backend.close()


def test_two_loops(clock: FakeClock) -> None:
    """A backend serves one event loop after another and is swept on each, though none closes it."""
    backend = MemoryBackend(cleanup_interval=0.001, clock=clock)

    async def use() -> None:
        await backend.set("first", "value", 10)
        clock.advance(20)
        await empty(backend)
        await backend.set("left behind", "value", 10)

    for _ in range(3):
        asyncio.run(use())
    gc.collect()
    assert asyncio.run(backend.get("left behind")) == "value"


async def test_no_timer_after_close() -> None:
    """Closing leaves no timer in the event loop."""
    backend = MemoryBackend()
    before = timers_of(asyncio.get_running_loop())
    await backend.set("key", "value")
    assert timers_of(asyncio.get_running_loop()) == before + 1
    await backend.close()
    assert timers_of(asyncio.get_running_loop()) == before


async def test_sweeper_keeps_nothing_alive() -> None:
    """A backend that nobody holds is collected, though its sweeper waits for the next round."""
    backend = MemoryBackend()
    await backend.set("key", "value")
    gone = weakref.ref(backend)
    del backend
    gc.collect()
    assert gone() is None


def test_without_loop() -> None:
    """Values are set and read where no event loop runs."""
    backend = MemoryBackend()
    done(backend.set("key", "value"))
    assert done(backend.get("key")) == "value"
    done(backend.close())


async def test_close_forgets() -> None:
    """Closing forgets values and what is kept beside them; the backend can be used anew."""
    backend = MemoryBackend()
    await backend.set("key", "value")
    made = backend.beside("name", object)
    await backend.close()
    assert (await backend.get("key"), backend.bytes_held) == (None, 0)
    assert backend.beside("name", object) is not made
    await backend.set("key", "value")
    assert await backend.get("key") == "value"
    await backend.close()


async def test_beside_counts_in_no_bound() -> None:
    """What is kept beside the values takes no place of theirs."""
    backend = MemoryBackend(max_size=1)
    backend.beside("name", lambda: bytearray(10**6))
    await backend.set("key", "value")
    assert (await backend.get("key"), await backend.size()) == ("value", 1)


async def test_bytes_by_set() -> None:
    """A subclass that makes bytes of a text in its `set` has them back from `get` as they are."""

    class Packed(MemoryBackend):
        async def set(self, key: str, value: str, timeout: float | None = None) -> None:
            await super().set(key, b"\x1f\x8b\xff", timeout)  # type: ignore[arg-type]

    backend = Packed()
    await backend.set("key", "value")
    value: object = await backend.get("key")
    assert value == b"\x1f\x8b\xff"


async def test_bytes_that_are_no_text() -> None:
    """Bytes that are not UTF-8 are an error for who asks for text, as they are in Redis, and stay readable."""
    backend = MemoryBackend()
    await backend.set_bytes("key", b"caf\xe9", 60)
    with pytest.raises(BackendError, match="get_bytes"):
        await backend.get("key")
    assert await backend.get_bytes("key") == b"caf\xe9"


async def test_lone_surrogates() -> None:
    """A text with lone surrogates comes back as text, and as bytes from which it can be had again."""
    backend = MemoryBackend()
    await backend.set("key", "lone \ud800 \udcff")
    assert await backend.get("key") == "lone \ud800 \udcff"
    value = await backend.get_bytes("key")
    assert value is not None
    await backend.set_bytes("key", value, 60)
    assert await backend.get("key") == "lone \ud800 \udcff"


@pytest.mark.parametrize("value", [1, None, ["a"], bytearray(b"a")])
async def test_wrong_type(value: Any) -> None:
    """A value given to `set_bytes` that is no bytes is refused, by name."""
    backend = MemoryBackend()
    with pytest.raises(TypeError, match=type(value).__name__):
        await backend.set_bytes("key", value)


async def test_delete_pattern_lets_others_run() -> None:
    """Deleting by pattern among many keys does not hold up the event loop."""
    backend = MemoryBackend(max_size=10_000)
    for number in range(3000):
        await backend.set(f"a{number:09}", "value")
    sizes = await sizes_during(backend, backend.delete_pattern("a*"))
    assert len(sizes) >= 3000 * 10 // CHARACTERS_PER_STEP
    assert await backend.size() == 0


async def test_delete_pattern_meets_all_that_stay() -> None:
    """A key that is there throughout is deleted, whatever others delete and set between the steps."""
    backend = MemoryBackend(max_size=10_000)
    names = [f"{number:09}" for number in range(3000)]
    for name in names:
        await backend.set(f"a{name}", "value")
        await backend.set(f"b{name}", "value")
    chance = random.Random(7)
    deleting = asyncio.create_task(backend.delete_pattern("a*"))
    while not deleting.done():
        await asyncio.sleep(0)
        for name in chance.sample(names, 20):
            await backend.delete(f"b{name}")
            await backend.set(f"c{name}", "value")
    assert not [key for key in backend._entries if key.startswith("a")]
    assert deleting.result() == 3000


async def test_room_for_a_large_one() -> None:
    """A value for which many others have to go lets others run, drops a step at a time, and is kept."""
    backend = MemoryBackend(max_size=10_000, max_bytes=4_000_000, max_entry_bytes=2_000_000)
    for number in range(10_000):
        await backend.set(f"{number}", "value")
    value = bytes(1_900_000)
    sizes = await sizes_during(backend, backend.set_bytes("large", value))
    assert await backend.get_bytes("large") is value
    assert backend.bytes_held <= 4_000_000
    assert max(before - after for before, after in pairwise(sizes)) == DROPS_PER_STEP


async def test_close_lets_others_run() -> None:
    """Closing a backend of many values empties it at once, and gives their memory back in steps."""
    backend = MemoryBackend(max_size=10_000)
    for number in range(10 * DROPS_PER_STEP):
        await backend.set(f"{number}", "value")
    sizes = await sizes_during(backend, backend.close())
    assert len(sizes) >= 10
    assert set(sizes[1:]) == {0}


async def test_delete_pattern_counts_no_expired(clock: FakeClock) -> None:
    """What has expired is not counted among the keys deleted."""
    backend = MemoryBackend(clock=clock)
    await backend.set("over", "value", 1)
    await backend.set("good", "value", 60)
    clock.advance(1)
    assert await backend.delete_pattern("*") == 1


@pytest.mark.parametrize("value", [0, -1, True, "many", 1.5])
@pytest.mark.parametrize("option", ["max_size", "max_bytes", "max_entry_bytes"])
def test_wrong_bound(option: str, value: Any) -> None:
    """A bound that is no positive whole number is refused, and the message names it."""
    with pytest.raises(ConfigurationError, match=f"{option} must be a positive whole number, not {value!r}"):
        MemoryBackend(**{option: value})


@pytest.mark.parametrize("value", [0, -1, True, "soon", None, float("inf"), float("nan")])
@pytest.mark.parametrize("option", ["cleanup_interval", "default_timeout"])
def test_wrong_time(option: str, value: Any) -> None:
    """A time that is no positive number of seconds is refused, and the message names it."""
    with pytest.raises(ConfigurationError, match=f"{option} must be a positive number of seconds, not {value!r}"):
        MemoryBackend(**{option: value})


def test_no_clock() -> None:
    """What cannot be asked for the time is refused."""
    with pytest.raises(ConfigurationError, match=r"^clock must be a function that gives a number, not 5$"):
        MemoryBackend(clock=cast("Any", 5))


def test_entry_above_all() -> None:
    """One entry cannot be allowed more bytes than all together."""
    with pytest.raises(ConfigurationError, match=r"max_entry_bytes must be at most max_bytes \(1000\), not 1001"):
        MemoryBackend(max_bytes=1000, max_entry_bytes=1001)


KEYS = st.sampled_from("abcdefgh")
SIZES = st.integers(0, 3_000)
TIMEOUTS = st.floats(0.01, 100)


class Beside(RuleBasedStateMachine):
    """Drives a backend beside a dictionary of what was set last, and when that expires."""

    def __init__(self, **bounds: int) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.backend = MemoryBackend(clock=self.clock, **bounds)
        self.model: dict[str, tuple[bytes, float]] = {}
        self.lent: list[tuple[str, Any]] = []

    @rule(key=KEYS)
    def lend(self, key: str) -> None:
        lent = self.backend.lend(key)
        assert (None if lent is None else lent[0].value) == done(self.backend.get_bytes(key))
        if lent is not None:
            assert (lent[1] is self.clock, lent[0].expires_at) == (True, self.model[key][1])
            self.lent.append((key, lent[0]))

    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        done(self.backend.delete(key))
        self.model.pop(key, None)

    @rule()
    def close(self) -> None:
        done(self.backend.close())
        self.model.clear()

    @rule(seconds=st.floats(0, 60))
    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def accounts_agree(self) -> None:
        entries = self.backend._entries
        assert self.backend.bytes_held == sum(cost_of(key, entry.value) for key, entry in entries.items())
        assert {id(entry) for entry in self.backend._eviction.each()} == {id(entry) for entry in entries.values()}
        assert sum(map(len, self.backend._deadlines.buckets.values())) == len(entries)

    @invariant()
    def lent_values_say_whether_they_are_there(self) -> None:
        for key, lent in self.lent:
            assert lent.live is (self.backend._entries.get(key) is lent)

    def expected(self, key: str) -> bytes | None:
        value, expires_at = self.model.get(key, (None, 0.0))
        return value if expires_at > self.clock() else None


class Roomy(Beside):
    """Everything fits."""

    @rule(key=KEYS, size=SIZES, timeout=TIMEOUTS)
    def set(self, key: str, size: int, timeout: float) -> None:
        done(self.backend.set_bytes(key, bytes(size), timeout))
        self.model[key] = (bytes(size), self.clock() + timeout)

    @rule(key=KEYS)
    def get(self, key: str) -> None:
        assert done(self.backend.get_bytes(key)) == self.expected(key)

    @rule(keys=st.lists(KEYS, min_size=1, unique=True))
    def delete_pattern(self, keys: list[str]) -> None:
        there = sum(self.expected(key) is not None for key in keys)
        assert done(self.backend.delete_pattern(f"[{''.join(keys)}]")) == there
        for key in keys:
            self.model.pop(key, None)


class Tight(Beside):
    """The backend is always full."""

    def __init__(self) -> None:
        super().__init__(max_size=5, max_bytes=8_000, max_entry_bytes=4_000)
        self.number = 0

    @rule(key=KEYS, size=SIZES, timeout=TIMEOUTS)
    def set(self, key: str, size: int, timeout: float) -> None:
        self.number += 1
        value = self.number.to_bytes(4, "big") + bytes(size)
        done(self.backend.set_bytes(key, value, timeout))
        self.model[key] = (value, self.clock() + timeout)
        if cost_of(key, value) > 4_000:
            del self.model[key]
        assert done(self.backend.get_bytes(key)) == self.expected(key)

    @rule(key=KEYS)
    def get(self, key: str) -> None:
        assert done(self.backend.get_bytes(key)) in (None, self.expected(key))

    @rule(keys=st.lists(KEYS, min_size=1, unique=True))
    def delete_pattern(self, keys: list[str]) -> None:
        done(self.backend.delete_pattern(f"[{''.join(keys)}]"))
        for key in keys:
            self.model.pop(key, None)

    @invariant()
    def bounds_hold(self) -> None:
        entries = self.backend._entries
        assert self.backend.bytes_held <= 8_000
        assert len(entries) <= 5
        assert entries.keys() <= self.model.keys()


TestRoomy = Roomy.TestCase
TestRoomy.settings = settings(max_examples=60, stateful_step_count=40)
TestTight = Tight.TestCase
TestTight.settings = settings(max_examples=60, stateful_step_count=40)


def cost_of(key: str, value: str | bytes) -> int:
    """Return what an entry is said to count."""
    return sys.getsizeof(key) + sys.getsizeof(value) + ENTRY_OVERHEAD


def done(coroutine: Coroutine[Any, Any, T]) -> T:
    """Return what *coroutine* returns, which waits for nothing and so needs no event loop."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    raise AssertionError("it waits")


def timers_of(loop: asyncio.AbstractEventLoop) -> int:
    """Return how many timers wait in *loop*."""
    return sum(not timer.cancelled() for timer in loop._scheduled)  # type: ignore[attr-defined]


async def empty(backend: MemoryBackend) -> None:
    """Return when *backend* holds nothing any more."""
    async with asyncio.timeout(10):
        while await backend.size():  # noqa: ASYNC110 - the sweeper tells nobody
            await asyncio.sleep(0)


async def sizes_during(backend: MemoryBackend, work: Coroutine[Any, Any, object]) -> list[int]:
    """Return the size of *backend* before *work*, and each time that others ran until its end."""
    sizes = [await backend.size()]
    working = asyncio.create_task(work)
    while not working.done():
        await asyncio.sleep(0)
        sizes.append(await backend.size())
    await working
    return sizes


def lines_of(coroutine: Coroutine[Any, Any, object]) -> int:
    """Return how many lines of the package *coroutine* runs, which waits for nothing."""
    lines = 0

    def count(frame: FrameType, event: str, _arg: object) -> TraceFunction | None:
        nonlocal lines
        if not frame.f_globals.get("__name__", "").startswith("app_cache."):
            return None  # the garbage collector may come by at any time, and call anybody
        lines += event == "line"
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        done(coroutine)
    finally:
        sys.settrace(before)
    return lines

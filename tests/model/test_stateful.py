"""What is stored, against a log of all that was said: nothing invalidated comes back, and nothing else is lost.

Steps are taken one after the other, in random order, by one process or by two over the same backend. Each answer
has a number, so that a look-up shows which one it is; the log tells what was invalidated since its handler began.
Where the model is *sure* of an answer, it must be found: a cache that always misses fails as one that is stale.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from app_cache.backends.memory import MemoryBackend
from app_cache.backends.redis import RedisBackend
from app_cache.breaker import State
from app_cache.invalidation import InvalidationService
from app_cache.store import StoredResponses
from app_cache.testing import FakeClock, FlakyBackend
from app_cache.values import ValueCache
from tests.model.scale import trying
from tests.stored import FourMethods, Page, look_up, written

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from app_cache.backends.base import CacheBackend
    from app_cache.clock.base import InvalidationResult
    from app_cache.codec import Mark
    from app_cache.rules.messages import Headers
    from app_cache.store import Found
    from tests.servers import Server

PAGES = (
    Page("/a/1", ("one", "odd")),
    Page("/a/2", ("two",), logical_key="key:2"),
    Page("/b/3", ("odd",)),
    Page("/b/4"),
)
VARYING = "/b/3"
"""The page whose answers vary by a field of the request."""
VALUES = (Page("", ("one",), logical_key="key:5"), Page("", logical_key="key:6"))
"""Values of the application's own: as pages without a path."""
FIELD = b"x-mood"
MOODS = ("happy", "sad")
LATE = ("late", "two")
TAGS = st.sampled_from(["one", "two", "odd", "late", "nobody"])
PROCESS = st.integers(0, 1)
LATE_TAG = st.sampled_from(["", *LATE])
SECONDS = st.sampled_from([60.0, 300.0])
ORDERS: st.SearchStrategy[tuple[Any, ...]] = st.one_of(
    st.tuples(st.just("any"), TAGS),
    st.tuples(st.just("any"), TAGS, TAGS),
    st.tuples(st.just("all"), TAGS, TAGS),
    st.tuples(st.just("pattern"), st.sampled_from(["/a/*", "*3", "key:*", "/b/4", "*", "/none/*"])),
    st.tuples(st.just("url"), st.sampled_from([page.path for page in PAGES])),
    st.tuples(st.just("key"), st.sampled_from(["key:2", "key:5", "key:6"])),
    st.tuples(st.just("stored key"), st.sampled_from(PAGES)),
    st.tuples(st.just("everything")),
)

MOVE_TIME = """
for _, key in ipairs(redis.call('KEYS', '*')) do
  local left = redis.call('PTTL', key)
  if left >= 0 and left <= tonumber(ARGV[1]) then redis.call('DEL', key) end
  if left > tonumber(ARGV[1]) then redis.call('PEXPIRE', key, left - ARGV[1]) end
end
"""
IMMORTAL = """
local found = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  if redis.call('PTTL', key) == -1 then found[#found + 1] = key end
end
return found
"""


@dataclass(eq=False)
class Said:
    """An invalidation that has returned, or a value that was set: what it names, and who knows of it."""

    names: Callable[[Page], bool]
    soft: bool
    by: int | None
    """The life of the process that alone knows of it; None: all do."""

    def be_lost(self) -> None:
        """Name nothing: who knew of it has ended before it could pass it on."""
        self.names, self.by = lambda _: False, None


@dataclass(eq=False)
class Fill:
    """A handler that runs."""

    page: Page
    mood: str
    by: int
    mark: Mark
    turn: int
    began: int
    """How much had been said when it began."""
    sure: bool
    """Whether nothing has happened since that may cost its answer."""


@dataclass(eq=False)
class Answer:
    """What a handler gave; its *number* is its body."""

    number: int
    page: Page
    mood: str
    by: int
    turn: int
    began: int
    ends_at: float
    sure: bool
    kept: bool = True
    pending: bool = True

    def is_for(self, page: Page, mood: str) -> bool:
        """Return whether it answers a request for *page* in this *mood*."""
        return (self.page.path, self.page.logical_key, self.mood) == (page.path, page.logical_key, mood)


class Forgetful(FourMethods):
    """Four methods whose values end by a clock that the test moves; they have all the time that they need."""

    operation_timeout = 9.0

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self._clock = clock
        self._ends: dict[str, float] = {}

    async def get(self, key: str) -> str | None:
        if self._clock() >= self._ends.get(key, 0.0):
            self.values.pop(key, None)
        return await super().get(key)

    async def set(self, key: str, value: str, timeout: int) -> None:
        self._ends[key] = self._clock() + timeout
        await super().set(key, value, timeout)


class Stored(RuleBasedStateMachine):
    """Drives processes over one backend, and keeps the log."""

    processes = 1
    exact = False
    """Whether only what is named is invalidated, softly too."""
    atomic = False
    """Whether an invalidation during a fill costs no answer that it does not name."""
    can_fail = True

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.clock = FakeClock()
        self.log: list[Said] = []
        self.fills: list[Fill] = []
        self.answers: list[Answer] = []
        self.dropped: set[tuple[int, int]] = set()
        """Lives of processes, and the numbers of answers that they give no more."""
        self.gone: set[tuple[int, str, str]] = set()
        """Lives of processes, and what they take from nobody else until they have filled it themselves."""
        self.evicted: list[tuple[str, Any]] = []
        self.set_up()
        self.backends = [self.make_backend() for _ in range(self.processes)]
        self.stores = [self.make_store(backend) for backend in self.backends]
        self.lives = [*range(self.processes)]
        """Numbers the lives of processes: each has another one after a restart."""

    def set_up(self) -> None:
        """Make what all processes share."""

    def make_backend(self) -> CacheBackend:
        """Return the backend of one more process."""
        raise NotImplementedError

    def make_store(self, backend: CacheBackend) -> StoredResponses:
        """Return the store of a process that begins."""
        return StoredResponses(backend, now=self.clock, monotonic=self.clock)

    def keys(self) -> list[str]:
        """Return the keys that there are."""
        raise NotImplementedError

    def remove(self, key: str) -> None:
        """Evict *key*."""
        raise NotImplementedError

    def read(self, key: str) -> Any:
        """Return what the backend holds under *key*."""
        raise NotImplementedError

    def write(self, key: str, value: Any) -> None:
        """Put *value* under *key*, past the cache."""
        raise NotImplementedError

    def pass_time(self, seconds: float) -> None:
        """Let *seconds* pass for the backend."""

    def teardown(self) -> None:
        self.run(self._close())
        self.runner.close()

    async def _close(self) -> None:
        for backend, store in zip(self.backends, self.stores, strict=True):
            await store.close()
            await backend.close()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Return what *work* gives, and take notice of debts that were paid on the way."""
        result = self.runner.run(work)
        self._see_what_is_paid()
        return result

    # Steps.

    @initialize(filled=st.booleans())
    def fill_all(self, filled: bool) -> None:
        """Begin with everything, or with nothing."""
        for page in PAGES if filled else ():
            for mood in MOODS if page.path == VARYING else [""]:
                self.fill(0, page, mood, "", 300.0)
        for page in VALUES if filled else ():
            self.value(0, page, 300.0)

    @rule(process=PROCESS, page=st.sampled_from(PAGES), mood=st.sampled_from(MOODS))
    def begin(self, process: int, page: Page, mood: str) -> None:
        """Begin a fill."""
        self._begin(self._alone(process), page, mood)

    @precondition(lambda self: self.fills)
    @rule(number=st.integers(0, 9), late=LATE_TAG | st.none(), keep_for=SECONDS)
    def finish(self, number: int, late: str | None, keep_for: float) -> None:
        """Let a fill under way give its answer, or none."""
        fill = self.fills.pop(number % len(self.fills))
        if late is not None:
            self._finish(self._alone(self.lives.index(fill.by)), fill, late, keep_for)
            self._look_at_all()

    @rule(
        process=PROCESS, page=st.sampled_from(PAGES), mood=st.sampled_from(MOODS), late=LATE_TAG, keep_for=SECONDS
    )
    def fill(self, process: int, page: Page, mood: str, late: str, keep_for: float) -> None:
        """Fill at once."""
        process = self._alone(process)
        if (fill := self._begin(process, page, mood)) is not None:
            self.fills.remove(fill)
            self._finish(process, fill, late, keep_for)
            self._look_at_all()

    @rule(
        process=PROCESS,
        page=st.sampled_from(PAGES),
        mood=st.sampled_from(MOODS),
        late=LATE_TAG,
        order=ORDERS | st.none(),
    )
    def race(self, process: int, page: Page, mood: str, late: str, order: tuple[Any, ...] | None) -> None:
        """Invalidate something while a fill is under way, or have another fill overtake it."""
        slow = self._begin(self._alone(process), page, mood)
        if order is not None:
            self._invalidate(process + 1, order, soft=False)
        elif (fast := self._begin(self._alone(process), page, mood)) is not None:
            self.fills.remove(fast)
            self._finish(self._alone(process), fast, late, 300.0)
        if slow is not None:
            self.fills.remove(slow)
            self._finish(self._alone(process), slow, late, 300.0)
        self._look_at_all()

    @rule(process=PROCESS, page=st.sampled_from(VALUES), keep_for=SECONDS | st.none())
    def value(self, process: int, page: Page, keep_for: float | None) -> None:
        """Set a value, which invalidates what was under its key, or delete it."""
        process = self._alone(process)
        store, sure, number = self.stores[process], self._is_well(process), len(self.answers)
        values, key = ValueCache(store), str(page.logical_key)
        if keep_for is None:
            self.run(values.delete(key))
        else:
            self.run(values.set(key, number, keep_for, tags=page.tags))
        self._say(process, lambda each: each.logical_key == key, durable=not store.orders.owed)
        if keep_for is not None:
            ends_at = self.clock() + keep_for
            self.answers.append(Answer(number, page, "", self.lives[process], 0, len(self.log), ends_at, sure))
        self._look_at_all()

    @rule(process=PROCESS, order=ORDERS)
    def invalidate(self, process: int, order: tuple[Any, ...]) -> None:
        """Invalidate by tags, a pattern, a URL, a key, or everything."""
        self._invalidate(process, order, soft=False)

    @rule(process=PROCESS, order=ORDERS)
    def mark_as_stale(self, process: int, order: tuple[Any, ...]) -> None:
        """Do so softly."""
        self._invalidate(process, order, soft=True)

    def _invalidate(self, process: int, order: tuple[Any, ...], *, soft: bool) -> None:
        process = self._alone(process)
        sure, service = self._is_well(process), InvalidationService(self.stores[process])
        carry_out, names, widened = carried_out(service, *order, soft=soft)
        result = self.run(carry_out)
        assert result.durable or not sure, "a healthy backend did not take it"
        self._say(process, names, soft=soft, widened=widened, durable=result.durable)
        self._look_at_all()

    @rule(seconds=st.sampled_from([2.0, 30.0, 100.0, 250.0]))
    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._settle()
        self.clock.advance(seconds)
        self.pass_time(seconds)
        self._unsure_of_what_goes_on()
        self._look_at_all()

    @rule(number=st.integers(0, 50), what=st.sampled_from(["any", "of the clock", "put back"]))
    def evict(self, number: int, what: str) -> None:
        """Have the backend let go of any key, or have a write arrive that was long on its way."""
        self._settle()
        put_back = what == "put back"
        keys = [key for key, _ in self.evicted] if put_back else self.keys()
        if what == "of the clock":
            keys = [key for key in keys if not is_of_an_answer(key)] or keys
        if not keys:
            return
        key = keys[number % len(keys)]
        if put_back:
            self.write(*self.evicted[number % len(keys)])
            for answer in self.answers:
                if key.startswith(key_of(answer.page)):
                    answer.ends_at = float("inf")
        else:
            if is_of_an_answer(key) and (value := self.read(key)) is not None:
                self.evicted.append((key, value))
            self.remove(key)
        self._unsure_of(key)
        self._look_at_all()

    @rule(process=PROCESS, page=st.sampled_from(PAGES), mood=st.sampled_from(MOODS))
    def drop(self, process: int, page: Page, mood: str) -> None:
        """Drop an answer, as one that its handler does not repeat; its deletion may still be on its way."""
        process, mood = self._alone(process), mood if page.path == VARYING else ""
        store = self.stores[process]

        async def drop_what_is_found() -> None:
            found = await look_up(store, page, request(mood))
            if found.entry is not None:
                store.drop(found.key, store.next_turn())
                self._note_dropped(process, page, mood)
                await self._look(process, page, mood)

        self.run(drop_what_is_found())
        self._look_at_all()

    @rule(process=PROCESS, killed=st.booleans())
    def restart(self, process: int, killed: bool) -> None:
        """End a process, in good order or at once, and begin another in its place."""
        process = self._alone(process)
        store, life = self.stores[process], self.lives[process]
        self.run(kill(store) if killed else store.close())
        for answer in self.answers:
            answer.sure = answer.sure and not (killed and answer.pending and answer.by == life)
        for said in self.log:
            if said.by == life:
                said.be_lost()
        self.fills = [fill for fill in self.fills if fill.by != life]
        self.stores[process] = self.make_store(self.backends[process])
        self.lives[process] = max(self.lives) + 1
        self._look_at_all()

    @precondition(lambda self: self.can_fail)
    @rule(process=PROCESS)
    def break_or_heal(self, process: int) -> None:
        """Let all operations of a process fail from now on, or succeed again."""
        self._settle()
        process %= self.processes
        backend = self.backends[process]
        assert isinstance(backend, FlakyBackend)
        backend.broken = not backend.broken
        for fill in self.fills:
            fill.sure = fill.sure and fill.by != self.lives[process]
        self._look_at_all()

    # What the steps are made of.

    def _alone(self, process: int) -> int:
        """Return the number of a process that there is, when the writes of all others have arrived."""
        process %= self.processes
        for other in range(self.processes):
            if other != process:
                self._arrive(other)
        return process

    def _settle(self) -> None:
        for process in range(self.processes):
            self._arrive(process)

    def _arrive(self, process: int) -> None:
        if self.stores[process].writes._writers:
            self.run(written(self.stores[process]))
        for answer in self.answers:
            answer.pending = answer.pending and answer.by != self.lives[process]

    def _is_well(self, process: int) -> bool:
        """Return whether nothing stands between a process and its backend."""
        store, backend = self.stores[process], self.backends[process]
        closed = store.calls.breaker is None or store.calls.breaker.state is State.CLOSED
        return closed and not store.orders.owed and not (isinstance(backend, FlakyBackend) and backend.broken)

    def _look_at_all(self) -> None:
        """Have every process look up everything, and hold what is found against the log."""

        async def look_at_all(process: int) -> None:
            for page in PAGES:
                for mood in MOODS if page.path == VARYING else [""]:
                    await self._look(process, page, mood)
            for page in VALUES:
                await self._get(process, page)

        for process in range(self.processes):
            self._alone(process)
            self.run(look_at_all(process))

    async def _look(self, process: int, page: Page, mood: str) -> Found:
        expected = self._expected(process, page, mood)
        found = await look_up(self.stores[process], page, request(mood))
        if found.entry is not None:
            answer = self.answers[int(found.entry.body)]
            self._check(process, answer, page, mood, marked=found.marked_stale)
            if self.exact and found.marked_stale:
                assert self._is_soft(process, answer), "marked, and by nothing"
        if expected is not None:
            assert found.entry is not None, "lost"
            assert int(found.entry.body) == expected.number, "another one"
        return found

    async def _get(self, process: int, page: Page) -> None:
        expected = self._expected(process, page, "")
        number = await ValueCache(self.stores[process]).get(str(page.logical_key))
        if number is not None:
            self._check(process, self.answers[number], page, "", marked=False)
        if expected is not None and not self._is_soft(process, expected):
            assert number == expected.number, "lost, or another one"

    def _check(self, process: int, answer: Answer, page: Page, mood: str, *, marked: bool) -> None:
        """Assert that *answer* may be given for *page* by *process*."""
        assert answer.is_for(page, mood), "that of another request"
        assert answer.kept, "overtaken"
        assert self.clock() < answer.ends_at, "beyond its time"
        assert (self.lives[process], answer.number) not in self.dropped, "dropped"
        for said in self._said(process, answer):
            assert said.soft, "invalidated"
            assert marked, "softly invalidated, and not marked"

    def _said(self, process: int, answer: Answer) -> list[Said]:
        """Return what *process* knows to have been said of *answer* since its handler began."""
        later = self.log[answer.began :]
        return [said for said in later if said.by in (None, self.lives[process]) and said.names(answer.page)]

    def _is_soft(self, process: int, answer: Answer) -> bool:
        return any(said.soft for said in self._said(process, answer))

    def _expected(self, process: int, page: Page, mood: str) -> Answer | None:
        """Return the answer that must be found, or None where the model is not sure of one."""
        self._see_what_is_paid()
        last = next((each for each in reversed(self.answers) if each.kept and each.is_for(page, mood)), None)
        if last is None or not last.sure or not self._is_well(process) or self.clock() >= last.ends_at - 1:
            return None
        if (self.lives[process], page.path, mood) in self.gone:
            return None
        if last.pending and last.page.late and not self.exact:
            return None  # not yet sealed
        return last if all(said.soft for said in self._said(process, last)) else None

    def _begin(self, process: int, page: Page, mood: str) -> Fill | None:
        sure, store = self._is_well(process), self.stores[process]
        mood = mood if page.path == VARYING else ""

        async def begin() -> Mark | None:
            found = await self._look(process, page, mood)
            return await store.begin(found.reading, page.asked, 300.0)

        mark = self.run(begin())
        if mark is None:
            assert not sure, "a healthy backend, and no mark"
            return None
        fill = Fill(page, mood, self.lives[process], mark, store.next_turn(), len(self.log), sure)
        self.fills.append(fill)
        return fill

    def _finish(self, process: int, fill: Fill, late: str, keep_for: float) -> None:
        page, store = replace(fill.page, late=(late,) if late else ()), self.stores[process]
        number, varies = len(self.answers), page.path == VARYING
        entry = page.entry(fill.mark, str(number).encode(), ((b"vary", FIELD),) if varies else ())
        own = [each for each in self.answers if each.kept and each.is_for(fill.page, fill.mood)]
        overtaken = any(each.by == fill.by and each.turn > fill.turn for each in own)
        vary = frozenset([FIELD.decode()] if varies else [])
        kept = self.run(store.keep(entry, keep_for, request(fill.mood), vary, fill.turn))
        assert not (overtaken and kept), "an older answer in place of a newer one"
        if kept:
            self.gone.discard((fill.by, page.path, fill.mood))
            for each in own:
                each.sure = False
        sure, ends_at = fill.sure and self._is_well(process), self.clock() + keep_for
        self.answers.append(
            Answer(number, page, fill.mood, fill.by, fill.turn, fill.began, ends_at, sure, kept=kept)
        )

    def _note_dropped(self, process: int, page: Page, mood: str) -> None:
        self.gone.add((self.lives[process], page.path, mood))
        for answer in self.answers:
            if answer.is_for(page, mood):
                answer.sure = False
                self.dropped.add((self.lives[process], answer.number))

    def _say(
        self,
        process: int,
        names: Callable[[Page], bool],
        *,
        durable: bool,
        soft: bool = False,
        widened: bool = False,
    ) -> None:
        self.log.append(Said(names, soft, None if durable else self.lives[process]))
        self._unsure_of_what_goes_on()
        if not self.exact and (soft or widened):
            for answer in self.answers:
                answer.sure = False

    def _see_what_is_paid(self) -> None:
        for said in self.log:
            if said.by is not None and not self.stores[self.lives.index(said.by)].orders.owed:
                said.by = None
                self._unsure_of_what_goes_on()
                for answer in self.answers:
                    answer.sure = answer.sure and not said.names(answer.page)

    def _unsure_of_what_goes_on(self) -> None:
        """Be no longer sure of what is on its way, where a thing that happens meanwhile may cost it."""
        if self.atomic:
            return
        for fill in self.fills:
            fill.sure = False
        for answer in self.answers:
            answer.sure = answer.sure and not answer.pending

    def _unsure_of(self, key: str) -> None:
        """Be no longer sure of what depends on *key*."""
        for answer in self.answers:
            answer.sure = answer.sure and is_of_an_answer(key) and not key.startswith(key_of(answer.page))
        for fill in self.fills:
            fill.sure = fill.sure and is_of_an_answer(key)


def carried_out(
    service: InvalidationService, kind: str, *of: Any, soft: bool
) -> tuple[Coroutine[Any, Any, InvalidationResult], Callable[[Page], bool], bool]:
    """Return an invalidation, what tells the pages that it names, and whether four methods carry out more."""
    match kind:
        case "any":
            return (
                service.by_tag(*of, soft=soft),
                lambda page: any(tag in page.tags + page.late for tag in of),
                False,
            )
        case "all":
            named = service.by_tag(*of, match="all", soft=soft)
            return named, lambda page: all(tag in page.tags + page.late for tag in of), True
        case "pattern":
            [glob] = of
            matching = service.by_pattern(glob, soft=soft)
            return (
                matching,
                lambda page: any(fnmatchcase(text or "", glob) for text in (page.path, page.logical_key)),
                True,
            )
        case "url":
            return service.by_url(of[0], soft=soft), lambda page: page.path == of[0], False
        case "key":
            return service.by_key(of[0], soft=soft), lambda page: page.logical_key == of[0], False
        case "stored key":
            [of_page] = of
            # The answers of a page that varies stand under keys of their own.
            return (
                service.by_key(of_page.key, soft=soft),
                lambda page: page.path == of_page.path != VARYING,
                True,
            )
    return service.everything(soft=soft), lambda _: True, True


async def kill(store: StoredResponses) -> None:
    """End what *store* has under way, wherever it is."""
    clock = store.clock
    tasks = [*store.writes._writers, *getattr(clock, "_beside", ()), *getattr(clock, "_making", {}).values()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def request(mood: str) -> Headers:
    """Return the fields of a request."""
    return ((FIELD, mood.encode()),) if mood else ()


def key_of(page: Page) -> str:
    """Return what the key begins with under which *page* is stored."""
    return page.key if page.path else "cache:v:"


def is_of_an_answer(key: str) -> bool:
    """Return whether an answer stands under *key*, or a record of its variants, and nothing of a clock."""
    return key.startswith("cache:") and not key.startswith("cache:s:")


class InMemory(Stored):
    """One process, its memory."""

    exact = atomic = True
    can_fail = False
    memory: MemoryBackend

    def set_up(self) -> None:
        self.memory = MemoryBackend(clock=self.clock)

    def make_backend(self) -> CacheBackend:
        return self.memory

    def keys(self) -> list[str]:
        return sorted(self.memory._entries)

    def remove(self, key: str) -> None:
        self.memory._drop(key)

    def read(self, key: str) -> Any:
        lent = self.memory.lend(key)
        return None if lent is None else lent[0].value

    def write(self, key: str, value: Any) -> None:
        self.run(self.memory.set_bytes(key, value, 300))


class InFourMethods(Stored):
    """One process over a backend of four methods that breaks."""

    four: Forgetful

    def set_up(self) -> None:
        self.four = Forgetful(self.clock)

    def make_backend(self) -> CacheBackend:
        return FlakyBackend(self.four)

    def keys(self) -> list[str]:
        return sorted(self.four.values)

    def remove(self, key: str) -> None:
        self.four.values.pop(key, None)

    def read(self, key: str) -> Any:
        return self.four.values.get(key)

    def write(self, key: str, value: Any) -> None:
        self.run(self.four.set(key, value, 300))


class InRedis(Stored):
    """Two processes over one server, each with a connection that breaks."""

    processes = 2
    exact = True
    server: Server

    def set_up(self) -> None:
        self.server.command("FLUSHALL")

    def make_backend(self) -> CacheBackend:
        return FlakyBackend(RedisBackend(self.server.url, operation_timeout=9.0, socket_timeout=9.0))

    def keys(self) -> list[str]:
        return sorted(key.decode() for key in self.server.command("KEYS", "*"))

    def remove(self, key: str) -> None:
        self.server.command("DEL", key)

    def read(self, key: str) -> Any:
        return self.server.command("GET", key)

    def write(self, key: str, value: Any) -> None:
        self.server.command("SET", key, value, "PX", 300_000)

    def pass_time(self, seconds: float) -> None:
        self.server.command("EVAL", MOVE_TIME, 0, int(seconds * 1000))

    @invariant()
    def nothing_lives_for_ever(self) -> None:
        """Every key has an expiry (F26)."""
        assert self.server.command("EVAL", IMMORTAL, 0) == []


@pytest.mark.parametrize(
    ("machine", "examples"),
    [pytest.param(InMemory, 60, id="memory"), pytest.param(InFourMethods, 40, id="four methods")],
)
def test_one_process(machine: type[Stored], examples: int) -> None:
    """Whatever happens in whatever order, nothing invalidated is served, and what is not is found (F25)."""
    run_state_machine_as_test(machine, settings=trying(examples, steps=30))


def test_two_processes(redis_server: Server) -> None:
    """So it is with two processes on one Redis, which evicts what it likes, and breaks (F5, F25, F26)."""
    machine = type("InThisRedis", (InRedis,), {"server": redis_server})
    run_state_machine_as_test(machine, settings=trying(24, steps=30))

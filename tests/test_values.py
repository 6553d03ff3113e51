"""A `ValueCache`: typed values, made once for all who ask, invalidated as responses are (SPEC §7.5)."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import random
import threading
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Self, assert_type
from urllib.error import URLError

import anyio.from_thread
import anyio.to_thread
import httpx
import pydantic
import pytest
from starlette.exceptions import HTTPException

from app_cache import (
    BackendError,
    ConfigurationError,
    EncodingError,
    InvalidationService,
    MemoryBackend,
    ValueCache,
)
from app_cache.backends.redis import RedisBackend
from app_cache.breaker import PROBE_EVERY_S
from app_cache.clock.base import Order
from app_cache.codec import Value, decode, from_text
from app_cache.flight import FEW
from app_cache.store import StoredResponses
from app_cache.testing import FakeClock
from app_cache.values import THREADS, _inside, own_copy
from app_cache.writes import WRITERS
from tests.clients import all_blocked
from tests.stored import FourMethods, Page, body_of, fill, written

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

    from app_cache.backends.base import CacheBackend
    from app_cache.flight import Run
    from tests.servers import Server

pytestmark = pytest.mark.anyio

ABSENT = object()


@dataclass
class Report:
    title: str
    on: date
    totals: tuple[Decimal, ...] = ()


REPORT = Report("May", date(2024, 5, 1), (Decimal("1.10"),))


class Patient(FourMethods):
    """Four methods, and all the time that they need, however busy the machine is."""

    operation_timeout = 30.0


class Away(Patient):
    """Raises while it is *away*, but for what *works*."""

    def __init__(self, *works: str) -> None:
        super().__init__()
        self.away = True
        self.works = works

    async def get(self, key: str) -> str | None:
        self._there("get")
        return await super().get(key)

    async def set(self, key: str, value: str, timeout: int) -> None:
        self._there("store" if value.startswith("app-cache:") else "stamp")
        await super().set(key, value, timeout)

    async def delete(self, key: str) -> None:
        self._there("delete")
        await super().delete(key)

    def _there(self, operation: str) -> None:
        if self.away and operation not in self.works:
            raise BackendError("away")


class Factory:
    """Makes what it is told to, or raises it, once its gate is open; counts its runs."""

    def __init__(self, *made: Any, is_open: bool = False) -> None:
        self.made = made or (1, 2, 3, 4, 5)
        self.runs = 0
        self.gate = asyncio.Event()
        if is_open:
            self.gate.set()

    async def __call__(self) -> Any:
        """Return, or raise, what is made in this run."""
        made = self.made[min(self.runs, len(self.made) - 1)]
        self.runs += 1
        await self.gate.wait()
        if isinstance(made, BaseException):
            raise made
        return made


def opened(*made: Any) -> Factory:
    """Return a factory that does not wait."""
    return Factory(*made, is_open=True)


def kinds_of_backends() -> list[Any]:
    """Return what gives a backend of each kind."""
    return [
        pytest.param(lambda _: MemoryBackend(), id="memory"),
        pytest.param(lambda _: Patient(), id="custom"),
        pytest.param(lambda url: RedisBackend(url, operation_timeout=5.0), id="redis"),
    ]


@pytest.fixture(params=kinds_of_backends())
async def backend(request: pytest.FixtureRequest, redis_server: Server) -> AsyncIterator[CacheBackend]:
    """A backend of each kind."""
    made = request.param(redis_server.url)
    yield made
    await made.close()


@pytest.fixture
def clock() -> FakeClock:
    """The time that values are as old as."""
    return FakeClock()


@pytest.fixture
async def store(backend: CacheBackend, clock: FakeClock) -> AsyncIterator[StoredResponses]:
    """A store over it, which leaves no task behind."""
    tasks = asyncio.all_tasks()
    made = StoredResponses(backend, now=clock)
    yield made
    await made.close()
    await asyncio.sleep(0)
    left = {task for task in asyncio.all_tasks() - tasks if "app_cache" in repr(task.get_coro())}
    assert left == set()


@pytest.fixture
def values(store: StoredResponses) -> ValueCache:
    """The values in it."""
    return ValueCache(store)


async def until(condition: Callable[[], object]) -> None:
    """Return when *condition* holds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  a real server answers when it does
            await asyncio.sleep(0.001)


def runs_of(values: ValueCache) -> set[Run[Any]]:
    """Return what is being made, where a call may wait for it."""
    return {*values.store.value_flight._runs.values()}


def followers(values: ValueCache) -> int:
    """Return how many calls wait for what others make."""
    return sum(len(run.outcome._callbacks or ()) for run in runs_of(values))


async def under_way(values: ValueCache, *asked: Coroutine[Any, Any, Any]) -> list[asyncio.Task[Any]]:
    """Return *asked* as tasks, once the first of them leads a run and the others wait for it."""
    before = runs_of(values)
    leader = asyncio.create_task(asked[0])
    await until(lambda: any(run.begun for run in runs_of(values) - before))
    others = [asyncio.create_task(each) for each in asked[1:]]
    await until(lambda: followers(values) == len(others))
    return [leader, *others]


async def landed(values: ValueCache) -> None:
    """Return when nothing is being made any more."""
    await until(lambda: not values.store.value_flight._tasks)


# Values.


async def test_made_once(values: ValueCache) -> None:
    """A value is made by the first call, and given by the next without a run."""
    factory = opened("made")
    given = [await values.get_or_set("report:7", factory, 60, tags=["reports"]) for _ in range(3)]
    assert (given, factory.runs) == (["made"] * 3, 1)


async def test_same_for_its_maker(values: ValueCache) -> None:
    """Who made a value gets what everybody gets, each an object of their own."""
    given = [await values.get_or_set("report", lambda: REPORT, 60, type=Report) for _ in range(2)]
    given.append(await values.get("report", Report) or REPORT)
    assert given == [REPORT] * 3
    assert len({id(each) for each in [*given, REPORT]}) == 4


async def test_set_get_delete(values: ValueCache) -> None:
    """What is set is given as its type, until it is deleted."""
    await values.set("report", REPORT, timedelta(minutes=1), tags=["reports"])
    assert await values.get("report", Report) == REPORT
    assert await values.get("report") == {"title": "May", "on": "2024-05-01", "totals": ["1.10"]}
    assert (await values.delete("report")).durable
    assert await values.get("report", Report) is None


async def test_set_replaces(values: ValueCache) -> None:
    """What is set is what is given, whatever was there."""
    for number in range(3):
        await values.set("key", number, 60)
        assert await values.get("key") == number
        assert await values.get_or_set("key", opened("other"), 60) == number


async def test_none_is_a_value(values: ValueCache) -> None:
    """None is kept and given as any value, and a default tells it from an absent one."""
    factory = opened(None)
    assert [await values.get_or_set("key", factory, 60) for _ in range(2)] == [None, None]
    assert factory.runs == 1
    assert [await values.get(key, type(None), ABSENT) for key in ("key", "other")] == [None, ABSENT]
    assert await values.get("other") is None


async def test_expires(values: ValueCache, clock: FakeClock) -> None:
    """A value is fresh while its age is below its timeout, and not at it."""
    factory = opened()
    for seconds, number in ((0, 1), (59, 1), (1, 2)):
        clock.advance(seconds)
        assert await values.get_or_set("key", factory, 60) == number
    clock.advance(60)
    assert await values.get("key") is None


async def test_clock_that_steps_back(values: ValueCache, clock: FakeClock) -> None:
    """A value that seems to come from the future is not taken to be fresh, but for a second (F13)."""
    await values.set("key", "value", 60)
    clock.advance(-1)
    assert await values.get("key") == "value"
    clock.advance(-3600)
    assert await values.get("key") is None


@pytest.mark.parametrize(
    "key",
    ["a" * 3_000, "a b\r\n*?[x]\\{}", "schlüssel 🎈", "cache:", "0", "a\0b"],
    ids=lambda key: key[:4].strip(),
)
async def test_keys(values: ValueCache, key: str) -> None:
    """A key may be any text, and no other key meets it."""
    for number, each in enumerate([key, key + "x", "x" + key, key.upper() + "X"]):
        await values.set(each, number, 60)
    assert await values.get(key) == 0
    await values.delete(key)
    assert [await values.get(key), await values.get(key + "x")] == [None, 1]


async def test_apart_from_responses_and_namespaces(backend: CacheBackend) -> None:
    """The same key names other things in another namespace, and none of them is a response."""
    stores = [StoredResponses(backend), StoredResponses(backend, "v"), StoredResponses(backend, "other")]
    page = Page("/a", logical_key="key")
    await fill(stores[0], page)
    for number, each in enumerate(stores):
        await ValueCache(each).set("other key", number, 60)
        await ValueCache(each).set(page.key, number, 60)
    assert [await ValueCache(each).get(page.key) for each in stores] == [0, 1, 2]
    assert await body_of(stores[0], page) == b"old"
    assert await ValueCache(stores[0]).get("key") is None
    for each in stores:
        await each.close()


async def test_stored_form() -> None:
    """What a backend holds is a record with tags, key and times, under ``cache:{namespace}:v:{digest}``."""
    backend, clock = Patient(), FakeClock(5.0)
    store = StoredResponses(backend, "shop", now=clock, monotonic=clock)
    await ValueCache(store).get_or_set("report:7", opened("made"), 60, tags=["b", "a"], stale_if_error=9)
    await written(store)
    (key,) = (each for each in backend.values if each.startswith("cache:shop:v:"))
    record = decode(from_text(backend.values[key]), key)
    assert isinstance(record, Value)
    assert (record.logical_key, record.tags, record.made_at) == ("report:7", ("k:report:7", "t:a", "t:b"), 5.0)
    assert (record.freshness_lifetime, record.stale_if_error, backend.timeouts[key]) == (60.0, 9.0, 69)


class Named(str, Enum):  # noqa: UP042  whose text is not what it is shown as
    """Keys that have names."""

    REPORT = "report"


class Own(str):
    """A text of a class of one's own."""

    __slots__ = ()


@pytest.mark.parametrize("key", [Named.REPORT, Own("report")], ids=["enum", "class"])
async def test_keys_of_other_classes(key: Any) -> None:
    """A key of a class that is text is that text, whoever asks and invalidates."""
    values = ValueCache(StoredResponses(MemoryBackend()))
    await values.set(key, 1, 60)
    assert await values.get("report", type=int) == 1
    assert await values.get_or_set(key, opened(2), 60) == 1
    await InvalidationService(values.store).by_key(key)
    assert await values.get_or_set("report", opened(3), 60) == 3
    await values.delete(key)
    assert await values.get("report") is None
    await values.set("tagged", 1, 60, tags=[key])
    await InvalidationService(values.store).by_tag("report")
    assert await values.get("tagged") is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        pytest.param(lambda values: values.get(""), "a key must be a text", id="empty key"),
        pytest.param(
            lambda values: values.get(7), "a key must be a text that is not empty, not int", id="no text"
        ),
        pytest.param(lambda values: values.delete("\udc00"), "a key must be a text", id="half of a pair"),
        pytest.param(lambda values: values.set("key", 1, 0), "timeout must be a positive number", id="no time"),
        pytest.param(lambda values: values.set("key", 1, True), "timeout must be a positive number", id="bool"),
        pytest.param(
            lambda values: values.set("key", 1, 1, tags="a"),
            r"such as \['users'\], not str",
            id="tags in a string",
        ),
        pytest.param(
            lambda values: values.set("key", 1, 1, tags=None), r"such as \['users'\], not None", id="None"
        ),
        pytest.param(lambda values: values.get_or_set("key", dict, 1, tags=7), "names, .* not int", id="no tags"),
        pytest.param(lambda values: values.get_or_set("key", build(), 1), r"build, not build\(\)", id="coroutine"),
        pytest.param(lambda values: values.get_or_set("key", 7, 1), "a callable .* not int", id="no factory"),
        pytest.param(lambda values: values.set("key", 1, 1, tags=[""]), "a tag must be a string", id="empty tag"),
        pytest.param(
            lambda values: values.get_or_set("key", dict, timedelta(0)), "timeout must be", id="no time at all"
        ),
        pytest.param(
            lambda values: values.get_or_set("key", dict, 1, stale_if_error=-1), "stale_if_error must", id="window"
        ),
    ],
)
async def test_wrong_arguments(call: Any, message: str) -> None:
    """What cannot work is refused before anything runs; the message names it."""
    with pytest.raises(ConfigurationError, match=message):
        await call(ValueCache(StoredResponses(MemoryBackend())))


def test_no_store() -> None:
    """A cache of values over a backend, which has no stored responses, is refused, and how to get them is said."""
    given: Any = MemoryBackend()
    with pytest.raises(ConfigurationError, match=r"container\.store\(\) or .*, not a MemoryBackend$"):
        ValueCache(given)


# Types.


async def build() -> Report:
    """Return a report."""
    return REPORT


def numbers() -> list[int]:
    """Return numbers."""
    return [1]


async def test_types() -> None:
    """A type checker knows what comes back: the type that is named, or what the factory returns."""
    values = ValueCache(StoredResponses(MemoryBackend()))
    assert_type(await values.get_or_set("a", build, 60), Report)
    assert_type(await values.get_or_set("b", numbers, 60), list[int])
    assert_type(await values.get_or_set("c", lambda: numbers(), timeout=60), list[int])
    assert_type(await values.get_or_set("d", functools.partial(numbers), 60), list[int])
    assert_type(await values.get_or_set("e", lambda: build(), 60, type=Report), Report)
    assert_type(await values.get_or_set("f", lambda: None, 60, type=int | None), int | None)
    assert_type(await values.get("a", Report), Report | None)
    assert_type(await values.get("b", list[int], ()), list[int] | tuple[()])
    assert_type(await values.get("f", type=int | None, default="x"), int | str | None)
    assert_type(await values.get("a"), Any)


@pytest.mark.parametrize(
    ("factory", "thread"),
    [
        pytest.param(build, False, id="async"),
        pytest.param(functools.partial(build), False, id="partial of async"),
        pytest.param(lambda: REPORT, True, id="plain"),
        pytest.param(lambda: build(), True, id="gives a coroutine"),
    ],
)
async def test_factories(values: ValueCache, factory: Any, *, thread: bool) -> None:
    """A coroutine function runs in the loop, a plain one in a thread; what it gives is waited for."""
    ran_in: list[int] = []

    class Noting:
        def __call__(self) -> Any:
            ran_in.append(threading.get_ident())
            return factory()

    assert await values.get_or_set("key", Noting() if thread else factory, 60, type=Report) == REPORT
    assert await values.get("key", Report) == REPORT
    assert threading.get_ident() not in ran_in
    assert len(ran_in) == thread


async def test_plain_factories_while_all_threads_wait() -> None:
    """Endpoints in threads that ask for values take no thread away from the factories of these."""
    values, threads = (
        ValueCache(StoredResponses(MemoryBackend())),
        anyio.to_thread.current_default_thread_limiter(),
    )
    all_there = threading.Barrier(int(threads.total_tokens))

    def endpoint(number: int) -> int:
        all_there.wait(10)
        return anyio.from_thread.run(lambda: values.get_or_set(f"key {number}", lambda: number, 60))

    numbers = range(all_there.parties)
    asked = (anyio.to_thread.run_sync(endpoint, number, abandon_on_cancel=True) for number in numbers)
    async with asyncio.timeout(20):
        assert await asyncio.gather(*asked) == [*numbers]


async def test_plain_factories_that_wait_for_others() -> None:
    """However many plain factories wait for values that plain factories make, all of them end."""
    values = ValueCache(StoredResponses(MemoryBackend()))
    all_there = threading.Barrier(THREADS)

    def outer(number: int) -> int:
        all_there.wait(10)
        return anyio.from_thread.run(lambda: values.get_or_set(f"inner {number}", lambda: number, 60))

    asked = (values.get_or_set(f"outer {each}", functools.partial(outer, each), 60) for each in range(THREADS))
    async with asyncio.timeout(20):
        assert await asyncio.gather(*asked) == [*range(THREADS)]


async def test_plain_factories_that_wait_for_one_that_waits() -> None:
    """Nor do those hang that wait for one value, whose own plain factory still waits for a thread."""
    values = ValueCache(StoredResponses(MemoryBackend()))
    inside, gate = set[int](), threading.Event()

    def outer(number: int) -> int:
        inside.add(number)
        gate.wait(10)
        return anyio.from_thread.run(lambda: values.get_or_set("settings", lambda: 1, 60))

    asked = [values.get_or_set(f"outer {each}", functools.partial(outer, each), 60) for each in range(THREADS)]
    tasks = [asyncio.create_task(each) for each in asked]
    await until(lambda: len(inside) == THREADS)
    tasks.append(asyncio.create_task(values.get_or_set("settings", lambda: 1, 60)))
    await all_blocked()
    gate.set()
    async with asyncio.timeout(20):
        assert await asyncio.gather(*tasks) == [1] * len(tasks)


async def test_threads_are_bounded() -> None:
    """Plain factories of many keys take turns in a bounded number of threads."""
    values, inside, gate = ValueCache(StoredResponses(MemoryBackend())), set[int](), threading.Event()

    def plain() -> int:
        inside.add(threading.get_ident())
        gate.wait(10)
        return 1

    tasks = [asyncio.create_task(values.get_or_set(f"key {each}", plain, 60)) for each in range(2 * THREADS)]
    try:
        await until(lambda: len(inside) == THREADS)
        await all_blocked()
        assert len(inside) == THREADS
    finally:
        gate.set()
    assert await asyncio.gather(*tasks) == [1] * len(tasks)
    assert len(inside) == THREADS


async def test_type_of_the_factory(values: ValueCache) -> None:
    """Without a type a value comes back as what its factory is annotated to return."""
    assert [await values.get_or_set("key", build, 60) for _ in range(2)] == [REPORT, REPORT]


async def test_untyped_that_is_not_plain(values: ValueCache) -> None:
    """What would come back as something else is an error at the first call, and is not kept."""
    for _ in range(2):
        with pytest.raises(EncodingError, match="a value of type Report does not come back as one"):
            await values.get_or_set("key", lambda: REPORT, 60)
    assert await values.get("key") is None


async def test_cannot_be_kept(values: ValueCache) -> None:
    """What cannot be encoded is an error, from `set` too, and what was there stays."""
    await values.set("key", "kept", 60)
    with pytest.raises(EncodingError, match="a value of type object cannot be kept"):
        await values.set("key", object(), 60)
    assert await values.get("key") == "kept"
    with pytest.raises(EncodingError, match="Lock cannot be kept"):
        await values.get_or_set("other", asyncio.Lock, 60)


class Before(pydantic.BaseModel):
    number: int


class After(pydantic.BaseModel):
    number: str

    @pydantic.field_validator("number")
    @classmethod
    def known(cls, number: str) -> str:
        """Raise what a validator of an application may."""
        return {"new": "new"}[number]


@pytest.mark.parametrize("value", [Before(number=1), {"number": "old"}], ids=["shape", "validator that raises"])
async def test_changed_model(values: ValueCache, store: StoredResponses, value: Any) -> None:
    """What is not of the type that is asked for, as after a deployment, is a miss, counted, and made anew."""
    await values.set("key", value, 60)
    assert await values.get("key", After, "default") == "default"
    assert await values.get_or_set("key", lambda: {"number": "new"}, 60, type=After) == After(number="new")
    assert await values.get("key", After) == After(number="new")
    assert store.stats["value-unreadable"] == 2


async def test_impossible_type(values: ValueCache) -> None:
    """A type that nothing can come back as is an error, not a miss for ever."""
    await values.set("key", {}, 60)
    with pytest.raises(EncodingError, match="Lock cannot be kept"):
        await values.get("key", asyncio.Lock)


@pytest.mark.parametrize("damage", ["", "7", "app-cache:", "app-cache:AAAA", "other"])
async def test_damaged(damage: str) -> None:
    """What is no record of this key is a miss, deleted once and counted (F12, S23)."""
    backend = Patient()
    store = StoredResponses(backend)
    values = ValueCache(store)
    for key in ("key", "other"):
        await values.set(key, key, 60)
        await written(store)
    held, other = (values._subject(key).key for key in ("key", "other"))
    backend.values[held] = backend.values[other] if damage == "other" else damage
    assert [await values.get("key") for _ in range(2)] == [None, None]
    assert store.stats["corrupt"] == 1
    assert await values.get_or_set("key", opened("new"), 60) == "new"


# Many at once.


async def test_one_run(values: ValueCache, store: StoredResponses) -> None:
    """Two hundred calls at once are one run."""
    factory = Factory()
    tasks = await under_way(values, *(values.get_or_set("key", factory, 60, tags=["tag"]) for _ in range(200)))
    factory.gate.set()
    assert (await asyncio.gather(*tasks), factory.runs) == ([1] * 200, 1)
    assert store.stats["value-collapsed"] == 199


async def test_one_run_while_the_backend_is_away() -> None:
    """So it is where nothing can be read or stored: each wave is one run."""
    values, factory = ValueCache(StoredResponses(Away())), Factory()
    for number in (1, 2):
        tasks = await under_way(values, *(values.get_or_set("key", factory, 60) for _ in range(50)))
        factory.gate.set()
        assert (await asyncio.gather(*tasks), factory.runs) == ([number] * 50, number)
        factory.gate.clear()


async def test_across_objects(values: ValueCache, store: StoredResponses) -> None:
    """Each request has a `ValueCache` of its own; what many wait for is the store's."""
    factory = Factory()
    tasks = await under_way(values, *(ValueCache(store).get_or_set("key", factory, 60) for _ in range(10)))
    factory.gate.set()
    assert (await asyncio.gather(*tasks), factory.runs) == ([1] * 10, 1)


async def test_other_keys_do_not_wait(values: ValueCache) -> None:
    """Calls for different keys run side by side, and one may need another."""
    slow = Factory()
    (waiting,) = await under_way(values, values.get_or_set("slow", slow, 60))
    assert await values.get_or_set("fast", lambda: values.get_or_set("inner", opened("in"), 60), 60) == "in"
    slow.gate.set()
    assert await waiting == 1


async def test_waiting_for_another_type(values: ValueCache) -> None:
    """Who asks for another type than the one who makes it gets it as that, or makes it too."""
    factory = Factory(7)
    as_is = values.get_or_set("key", factory, 60)
    as_decimal = values.get_or_set("key", lambda: "1", 60, type=str)
    as_float = values.get_or_set("key", factory, 60, type=float)
    tasks = await under_way(values, as_is, as_decimal, as_float)
    factory.gate.set()
    assert await asyncio.gather(*tasks) == [7, "1", 7.0]
    assert factory.runs == 1


def in_loops(*work: Callable[[], Awaitable[Any]]) -> list[Any]:
    """Return what each of *work* gives, each in an event loop of a thread of its own, at the same time."""
    given: list[Any] = [None] * len(work)

    def run(number: int) -> None:
        async def waited() -> None:
            async with asyncio.timeout(10):
                given[number] = await work[number]()

        asyncio.run(waited())

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(15)
    return given


def test_two_loops() -> None:
    """Loops that use one cache do not wait for each other's runs, and share what is kept (F32)."""
    values, both, runs = ValueCache(StoredResponses(MemoryBackend())), threading.Barrier(2, timeout=10), []

    def meet() -> int:
        runs.append(both.wait())
        return 7

    assert in_loops(*[lambda: values.get_or_set("key", meet, 60)] * 2) == [7, 7]
    assert in_loops(*[lambda: values.get_or_set("key", meet, 60)] * 2) == [7, 7]
    assert len(runs) == 2


# Invalidation.


def ways() -> list[Any]:
    """Return each way to invalidate the value ``report:7`` with the tags ``reports`` and ``all``."""
    return [
        pytest.param(lambda _, service: service.by_tag("reports"), id="tag"),
        pytest.param(lambda _, service: service.by_tag("reports", "all", match="all"), id="all tags"),
        pytest.param(lambda _, service: service.by_key("report:7"), id="key"),
        pytest.param(lambda _, service: service.by_pattern("report:*"), id="pattern"),
        pytest.param(lambda _, service: service.everything(), id="everything"),
        pytest.param(lambda values, _: values.delete("report:7"), id="delete"),
    ]


@pytest.mark.parametrize("invalidate", ways())
async def test_invalidation(values: ValueCache, store: StoredResponses, invalidate: Any) -> None:
    """A value is invalidated as a response is: by tag, key, a pattern over keys, or with everything."""
    factory = opened()
    assert await values.get_or_set("report:7", factory, 60, tags=["reports", "all"]) == 1
    assert (await invalidate(values, InvalidationService(store))).durable
    assert await values.get("report:7") is None
    assert await values.get_or_set("report:7", factory, 60, tags=["reports", "all"]) == 2
    assert await values.get("report:7") == 2


@pytest.mark.parametrize(
    "invalidate",
    [
        pytest.param(lambda service: service.by_tag("other"), id="tag"),
        pytest.param(lambda service: service.by_tag("reports", "other", match="all"), id="all tags"),
        pytest.param(lambda service: service.by_key("report:8"), id="key"),
        pytest.param(lambda service: service.by_url("/report:7"), id="URL"),
    ],
)
async def test_invalidation_of_others(values: ValueCache, store: StoredResponses, invalidate: Any) -> None:
    """An invalidation that does not name a value leaves it."""
    await values.set("report:7", 1, 60, tags=["reports"])
    await invalidate(InvalidationService(store))
    if isinstance(store.backend, Patient):  # has no epoch: what widens is told in the result
        return
    assert await values.get("report:7") == 1


@pytest.mark.parametrize("invalidate", ways())
async def test_invalidated_while_it_is_made(values: ValueCache, store: StoredResponses, invalidate: Any) -> None:
    """Who asked before an invalidation may get what is being made; who asks after never, nor is it kept (F25)."""
    factory = Factory("old", "new")

    async def asked() -> Any:
        return await values.get_or_set("report:7", factory, 60, tags=["reports", "all"])

    (before,) = await under_way(values, asked())
    await invalidate(values, InvalidationService(store))
    after = await under_way(values, *(asked() for _ in range(10)))
    assert factory.runs == 2
    factory.gate.set()
    assert (await before, await asyncio.gather(*after)) == ("old", ["new"] * 10)
    await landed(values)
    assert (await values.get("report:7"), factory.runs) == ("new", 2)


async def test_who_waits_while_it_is_invalidated(values: ValueCache, store: StoredResponses) -> None:
    """Who waited since before the invalidation does not get what it names, but what is made after it."""
    factory = Factory("old", "new")
    leader, *waiting = await under_way(
        values, *(values.get_or_set("key", factory, 60, tags=["tag"]) for _ in range(5))
    )
    await InvalidationService(store).by_tag("tag")
    factory.gate.set()
    assert (await leader, await asyncio.gather(*waiting)) == ("old", ["new"] * 4)
    assert factory.runs == 2


async def test_set_while_it_is_made(values: ValueCache) -> None:
    """What is set stays, whatever a run that began before it makes."""
    factory = Factory("old")
    (waiting,) = await under_way(values, values.get_or_set("key", factory, 60))
    await values.set("key", "set", 60)
    factory.gate.set()
    await waiting
    await landed(values)
    assert await values.get("key") == "set"


async def test_set_elsewhere_while_it_is_made(backend: CacheBackend) -> None:
    """What another process sets is not covered by what was being made here."""
    here, there = StoredResponses(backend), StoredResponses(backend)
    values, factory = ValueCache(here), Factory("old")
    (waiting,) = await under_way(values, values.get_or_set("key", factory, 60))
    await ValueCache(there).set("key", "set", 60)
    await there.close()
    factory.gate.set()
    await waiting
    await here.close()
    for store in (here, there):
        assert await ValueCache(store).get("key") in (None, "set")


async def test_set_elsewhere_stays(redis_server: Server, clock: FakeClock) -> None:
    """What another process sets stays, whatever a slow run that began before it makes here."""
    backends = [RedisBackend(redis_server.url, operation_timeout=30) for _ in range(2)]
    here, there = StoredResponses(backends[0], monotonic=clock), StoredResponses(backends[1])
    values, factory = ValueCache(here), Factory("old")
    await values.get("key")
    (waiting,) = await under_way(values, values.get_or_set("key", factory, 60))
    await ValueCache(there).set("key", "set", 60)
    await there.close()
    clock.advance(1)
    factory.gate.set()
    await waiting
    await here.close()
    assert [await ValueCache(store).get("key") for store in (here, there)] == ["set", "set"]
    for backend in backends:
        await backend.close()


async def test_slow_run_and_a_newer_one(values: ValueCache, store: StoredResponses) -> None:
    """A run that ends after a newer one of its key does not cover what that made."""
    old, new = Factory("old"), opened("new")
    (waiting,) = await under_way(values, values.get_or_set("key", old, 60))
    await InvalidationService(store).by_key("key")
    assert await values.get_or_set("key", new, 60) == "new"
    old.gate.set()
    assert await waiting == "old"
    await landed(values)
    assert await values.get("key") == "new"


class Race:
    """Readers and a writer of one key in *caches*; the writer moves the *truth* on, and says what is *over*."""

    def __init__(self, caches: list[StoredResponses], chance: random.Random) -> None:
        self.caches = caches
        self.chance = chance
        self.truth = 1
        self.over = 0
        self.given = 0
        self.done = False

    async def read(self) -> None:
        """Read in different ways; what is given was true when it was asked for, or became it since."""
        while not self.done:
            values, least = ValueCache(self.chance.choice(self.caches)), self.over + 1
            if self.chance.random() < 0.3:
                number = await values.get("key", int, least)
            else:
                number = await values.get_or_set("key", self.make, 60, tags=["tag"])
            assert least <= number <= self.truth
            self.given += 1
            await self.pause()

    async def make(self) -> int:
        """Return what is true now, after a while."""
        made = self.truth
        await self.pause()
        return made

    async def write(self) -> None:
        """Change what is true, and say so in different ways."""
        for _ in range(150):
            store, way = self.chance.choice(self.caches), self.chance.randrange(5)
            self.truth += 1
            if way == 0:
                await ValueCache(store).set("key", self.truth, 60, tags=["tag"])
            elif way == 1:
                await ValueCache(store).delete("key")
            elif way == 2:
                await InvalidationService(store).by_pattern("k*")
            else:
                await InvalidationService(store).by_tag("tag")
            self.over = self.truth - 1
            await self.pause()
        self.done = True

    async def pause(self) -> None:
        """Let others go first, or not."""
        for _ in range(self.chance.randrange(6)):
            await asyncio.sleep(0)


@pytest.mark.parametrize("seed", range(3))
async def test_races(backend: CacheBackend, seed: int) -> None:
    """However reads, runs, invalidations and sets race in two caches, nothing given was over before (F25)."""
    caches = [StoredResponses(backend), StoredResponses(backend)]
    if isinstance(backend, Patient):  # exact in one process
        caches = caches[:1]
    race = Race(caches, random.Random(seed))
    async with asyncio.timeout(60):
        await asyncio.gather(race.write(), *(race.read() for _ in range(8)))
    assert race.given > 200
    for store in caches:
        await store.close()


# Stale windows.


async def test_stale_while_revalidate(values: ValueCache, store: StoredResponses, clock: FakeClock) -> None:
    """Within the window a stale value is given at once, while one run makes it anew; beyond it is not."""
    factory = opened()

    async def asked() -> Any:
        return await values.get_or_set("key", factory, 60, stale_while_revalidate=30)

    assert await asked() == 1
    clock.advance(75)
    factory.gate.clear()
    assert await asyncio.gather(*(asked() for _ in range(20))) == [1] * 20
    assert await values.get("key") is None
    factory.gate.set()
    await landed(values)
    assert (factory.runs, await asked(), await values.get("key")) == (2, 2, 2)
    clock.advance(90.5)
    assert (await asked(), factory.runs) == (3, 3)
    assert (store.stats["value-hit-stale"], store.stats["value-hit"]) == (20, 2)


async def test_refresh_that_fails(
    backend: CacheBackend, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Runs in the background that fail wait for each other, are said once, and the stale value stays."""
    store = StoredResponses(backend, now=clock, monotonic=clock)
    values, factory = ValueCache(store), opened("old", LookupError("gone"))
    await values.get_or_set("key", factory, 60, stale_while_revalidate=30)
    await written(store)
    clock.advance(75)
    for seconds, runs in ((0, 2), (0.9, 2), (0.1, 3), (1.9, 3), (0.1, 4)):
        clock.advance(seconds)
        assert await values.get_or_set("key", factory, 60, stale_while_revalidate=30) == "old"
        await landed(values)
        assert factory.runs == runs
    assert [record.getMessage().split()[0] for record in caplog.records] == ["cache.fill_failed"]


async def test_softly_invalidated(store: StoredResponses, clock: FakeClock) -> None:
    """A value that is marked stale is given within its window while it is made anew, and to `get` no longer."""
    values, factory = ValueCache(store), opened()
    await values.get_or_set("key", factory, 60, tags=["tag"], stale_while_revalidate=30)
    result = await InvalidationService(store).by_tag("tag", soft=True)
    assert await values.get("key") is None
    expected = 2 if result.widened_to == "hard" else 1
    assert await values.get_or_set("key", factory, 60, tags=["tag"], stale_while_revalidate=30) == expected
    await landed(values)
    assert (await values.get("key"), factory.runs) == (2, 2)


async def test_stale_if_error(values: ValueCache, clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    """Within its window a stale value stands in for what the factory raised, for all who wait."""
    factory = Factory("old", LookupError("gone"))
    factory.gate.set()

    async def asked() -> Any:
        return await values.get_or_set("key", factory, 60, stale_if_error=30)

    await asked()
    clock.advance(75)
    factory.gate.clear()
    tasks = await under_way(values, *(asked() for _ in range(20)))
    factory.gate.set()
    assert (await asyncio.gather(*tasks), factory.runs) == (["old"] * 20, 2)
    assert [record.getMessage().split()[0] for record in caplog.records] == ["cache.rescued"]
    clock.advance(90)
    with pytest.raises(LookupError, match="gone"):
        await asked()


async def test_value_better_than_a_stale_one(values: ValueCache, clock: FakeClock) -> None:
    """`stale_if_error` alone gives nothing stale while the factory works."""
    factory = opened()
    for number in (1, 2):
        assert await values.get_or_set("key", factory, 60, stale_if_error=3600) == number
        clock.advance(60)


# Failures of the factory.


async def test_factory_raises(values: ValueCache, caplog: pytest.LogCaptureFixture) -> None:
    """What a factory raises reaches its caller as it is, each who waits as a copy; it is not kept (F16)."""
    error = HTTPException(status_code=404, detail="no report")
    factory = Factory(error, "made")
    tasks = await under_way(values, *(values.get_or_set("key", factory, 60) for _ in range(200)))
    factory.gate.set()
    raised: list[Any] = await asyncio.gather(*tasks, return_exceptions=True)
    assert factory.runs == 1
    assert raised[0] is error
    assert {type(each) for each in raised} == {HTTPException}
    assert len({id(each) for each in raised}) == 200
    assert {(each.status_code, each.detail) for each in raised} == {(404, "no report")}
    assert {(each.__cause__, each.__context__) for each in raised[1:]} == {(None, None)}
    assert caplog.records == []
    assert await values.get_or_set("key", factory, 60) == "made"


class Keywords(Exception):  # noqa: N818
    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


class RefusedError(OSError):
    """As the errors of requests are."""

    def __init__(self, *args: object, response: object = None) -> None:
        super().__init__(*args)
        self.response = response


class NotOursError(UnicodeDecodeError):
    def __init__(self, content: bytes) -> None:
        super().__init__("ours", content, 0, 1, "not ours")


class MissingError(ImportError):
    def __init__(self, name: str) -> None:
        super().__init__(f"no {name}", name=name)


class Slotted(Exception):  # noqa: N818
    __slots__ = ("code",)

    def __init__(self, code: int) -> None:
        super().__init__("slotted")
        self.code = code

    def __str__(self) -> str:
        return f"code {self.code}"


def raised_by(work: Callable[[], object]) -> Exception:
    """Return what *work* raises."""
    try:
        work()
    except Exception as error:  # noqa: BLE001
        return error
    raise AssertionError("nothing was raised")


def noted(error: Exception) -> Exception:
    """Return *error* with a note."""
    error.add_note("a note")
    return error


BUILT_IN = ("args", "errno", "strerror", "filename", "name", "encoding", "object", "start", "end", "reason")
RESPONSE = httpx.Response(503, request=httpx.Request("GET", "http://test"))
ERRORS = [
    pytest.param(ValueError("a", 1), id="builtin"),
    pytest.param(KeyError("a"), id="KeyError"),
    pytest.param(FileNotFoundError(2, "none", "file"), id="OSError"),
    pytest.param(raised_by(lambda: b"\xff".decode()), id="UnicodeError"),
    pytest.param(raised_by(lambda: json.loads("{")), id="JSON"),
    pytest.param(raised_by(lambda: Before(number="x")), id="pydantic"),  # type: ignore[arg-type]
    pytest.param(raised_by(RESPONSE.raise_for_status), id="httpx"),
    pytest.param(Keywords(code=7), id="keywords"),
    pytest.param(RefusedError(111, "refused", "socket", response=1), id="OSError with more"),
    pytest.param(RefusedError("refused"), id="OSError without a number"),
    pytest.param(URLError("no such host"), id="urllib"),
    pytest.param(NotOursError(b"\xff"), id="UnicodeError of bytes alone"),
    pytest.param(MissingError("redis"), id="ImportError with more"),
    pytest.param(Slotted(7), id="slots"),
    pytest.param(HTTPException(403, headers={"a": "b"}), id="HTTPException"),
    pytest.param(ExceptionGroup("group", [ValueError("a")]), id="group"),
    pytest.param(noted(ValueError("a")), id="note"),
]


@pytest.mark.parametrize("error", ERRORS)
def test_own_copy(error: Exception) -> None:
    """An error of one's own says what the other says, and shares neither traceback nor notes."""
    own = own_copy(error)
    assert own is not None
    assert own is not error
    assert (type(own), str(own), repr(own)) == (type(error), str(error), repr(error))
    assert {**vars(own), "__notes__": []} == {**vars(error), "__notes__": []}
    assert [getattr(own, name, None) for name in BUILT_IN] == [getattr(error, name, None) for name in BUILT_IN]
    own.add_note("mine")
    assert (own.__traceback__, [*getattr(error, "__notes__", ()), "mine"]) == (None, own.__notes__)


class Unique(Exception):  # noqa: N818
    def __new__(cls, *, number: int) -> Self:
        return super().__new__(cls)

    def __init__(self, *, number: int) -> None: ...


class Elsewhere(Exception):  # noqa: N818
    """Says what is kept under itself."""

    said: ClassVar[dict[int, str]] = {}

    def __str__(self) -> str:
        return self.said.get(id(self), "nothing")


def test_no_copy_that_says_less() -> None:
    """There is no copy of an error that would not say what the error says."""
    error = Elsewhere()
    error.said[id(error)] = "something"
    assert own_copy(error) is None


async def test_error_that_cannot_be_copied(values: ValueCache) -> None:
    """Where an error cannot be copied, each who waits runs the factory, and gets its own."""
    factory = Factory(*(Unique(number=number) for number in range(3)))
    tasks = await under_way(values, *(values.get_or_set("key", factory, 60) for _ in range(3)))
    factory.gate.set()
    raised = await asyncio.gather(*tasks, return_exceptions=True)
    assert ({type(each) for each in raised}, len({id(each) for each in raised})) == ({Unique}, 3)
    assert factory.runs == 3


# Callers that leave.


@pytest.mark.parametrize("patience", [30, 0], ids=["under way", "hung"])
async def test_factory_that_asks_for_its_own_key(
    values: ValueCache, monkeypatch: pytest.MonkeyPatch, patience: int
) -> None:
    """A factory that would wait for its own end, also by way of another, is told so at once."""
    monkeypatch.setattr("app_cache.flight.FILL_TIMEOUT_S", patience)

    async def between() -> Any:
        return await values.get_or_set("key", opened(), 60)

    async def outer() -> Any:
        return await values.get_or_set("other", between, 60)

    async with asyncio.timeout(5):
        with pytest.raises(ConfigurationError, match="the factory of 'key' asks for 'key'"):
            await values.get_or_set("key", outer, 60)
    assert await values.get_or_set("key", opened("later"), 60) == "later"


async def test_task_of_a_factory_that_has_ended(values: ValueCache) -> None:
    """What a factory began, and has ended without, may wait for a later run of its key."""
    tasks: list[asyncio.Task[Any]] = []
    ask, factory = asyncio.Event(), Factory("later")

    async def later() -> Any:
        await ask.wait()
        return await values.get_or_set("key", opened("own"), 60)

    async def outer() -> str:
        tasks.append(asyncio.create_task(later()))
        return "first"

    assert await values.get_or_set("key", outer, 60) == "first"
    await values.delete("key")
    (leader,) = await under_way(values, values.get_or_set("key", factory, 60))
    ask.set()
    await until(lambda: followers(values) == 1)
    factory.gate.set()
    assert await asyncio.gather(leader, *tasks) == ["later"] * 2


async def test_leader_leaves(values: ValueCache) -> None:
    """The run goes on without the caller that began it; those who wait get the value, and it is kept (F14)."""
    factory = Factory()
    leader, *waiting = await under_way(values, *(values.get_or_set("key", factory, 60) for _ in range(10)))
    leader.cancel()
    await asyncio.wait({leader})
    assert leader.cancelled()
    factory.gate.set()
    assert await asyncio.gather(*waiting) == [1] * 9
    assert (await values.get("key"), factory.runs) == (1, 1)


async def test_all_leave(values: ValueCache) -> None:
    """The run goes on though nobody waits any more, and its value is kept."""
    factory = Factory()
    tasks = await under_way(values, *(values.get_or_set("key", factory, 60) for _ in range(3)))
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    factory.gate.set()
    await landed(values)
    assert (await values.get("key"), factory.runs) == (1, 1)


async def test_waiters_leave(values: ValueCache) -> None:
    """Nobody notices that others who wait leave (F15)."""
    factory = Factory()
    tasks = await under_way(values, *(values.get_or_set("key", factory, 60) for _ in range(200)))
    for task in tasks[1::2]:
        task.cancel()
    await asyncio.wait(tasks[1::2])
    factory.gate.set()
    assert (await asyncio.gather(*tasks[::2]), factory.runs) == ([1] * 100, 1)


async def test_leader_leaves_and_the_factory_raises(values: ValueCache, caplog: pytest.LogCaptureFixture) -> None:
    """An error that reaches no caller is said in the log, once; those who wait get their own."""
    factory = Factory(LookupError("gone"))
    leader, *waiting = await under_way(values, *(values.get_or_set("key", factory, 60) for _ in range(3)))
    leader.cancel()
    await asyncio.wait({leader})
    factory.gate.set()
    raised = await asyncio.gather(*waiting, return_exceptions=True)
    assert [repr(each) for each in raised] == ["LookupError('gone')"] * 2
    await landed(values)
    (record,) = (each for each in caplog.records if each.levelno >= logging.ERROR)
    assert record.getMessage().startswith("cache.fill_failed")


@pytest.mark.parametrize("sync", [False, True], ids=["async", "in a thread"])
async def test_cancelled_anywhere(values: ValueCache, *, sync: bool) -> None:
    """A call that is cancelled, wherever it is, leaves the next one its value (F31)."""

    def plain() -> str:
        return "made"

    async def waits() -> str:
        await asyncio.sleep(0)
        return "made"

    for steps in range(25):
        key = f"key {steps}"
        task = asyncio.create_task(values.get_or_set(key, plain if sync else waits, 60, tags=[key]))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        assert await values.get_or_set(key, waits, 60, tags=[key]) == "made"


async def test_run_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that nobody leads ends in time; who waits too long goes on alone (F17)."""
    monkeypatch.setattr("app_cache.flight.FILL_TIMEOUT_S", 0.05)
    monkeypatch.setattr("app_cache.values.FILL_TIMEOUT_S", 0.05)
    store = StoredResponses(MemoryBackend())
    values, hanging = ValueCache(store), Factory()
    leader, waiting = await under_way(
        values, values.get_or_set("key", hanging, 60), values.get_or_set("key", opened("own"), 60)
    )
    async with asyncio.timeout(5):
        assert await waiting == "own"
        leader.cancel()
        await asyncio.wait({leader})
        while store.value_flight._tasks:
            await asyncio.wait({*store.value_flight._tasks})
    assert hanging.runs == 1


async def test_asked_while_another_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks when a run has hung for as long as anybody waits has the value made at once (F17)."""
    monkeypatch.setattr("app_cache.flight.FILL_TIMEOUT_S", 0)
    values, hanging = ValueCache(StoredResponses(MemoryBackend())), Factory()
    (leader,) = await under_way(values, values.get_or_set("key", hanging, 60))
    async with asyncio.timeout(5):
        assert await values.get_or_set("key", opened("own"), 60) == "own"
    hanging.gate.set()
    await leader


async def test_what_a_factory_leaves_behind(values: ValueCache) -> None:
    """A task that a factory leaves behind is inside of no run once that has ended, however long the chain."""
    depths: list[int] = []
    ended = [asyncio.Event() for _ in range(5)]
    left: list[asyncio.Task[None]] = []

    async def make(number: int) -> int:
        depths.append(len(_inside.get()))
        if number:
            left.append(asyncio.create_task(ask(number - 1)))
        return number

    async def ask(number: int) -> None:
        if number < 4:
            await ended[number + 1].wait()
        await values.get_or_set(f"key {number}", functools.partial(make, number), 60)
        await landed(values)
        ended[number].set()

    async with asyncio.timeout(5):
        await ask(4)
        await ended[0].wait()
    assert depths == [1] * 5


async def slow_runs(
    monkeypatch: pytest.MonkeyPatch, count: int, **options: Any
) -> tuple[list[Factory], list[asyncio.Task[Any]]]:
    """Return the factories that run for *count* calls, when the first has hung for as long as anybody waits."""
    monkeypatch.setattr("app_cache.flight.FILL_TIMEOUT_S", 0)
    values = ValueCache(StoredResponses(MemoryBackend()))
    factories = [Factory(number) for number in range(count)]
    calls = (values.get_or_set("key", factory, 60, **options) for factory in factories)
    tasks = [asyncio.create_task(call) for call in calls]
    await until(lambda: sum(factory.runs for factory in factories) > FEW)
    await all_blocked()
    assert [factory.runs for factory in factories] == [1] * (1 + FEW) + [0] * (count - 1 - FEW)
    return factories, tasks


@pytest.mark.parametrize("which", [0, 1], ids=["the slow run", "one of few"])
async def test_slow_run_that_ends(monkeypatch: pytest.MonkeyPatch, which: int) -> None:
    """While a run hangs few others run; all who wait have the value as soon as one of them has made it (F17)."""
    factories, tasks = await slow_runs(monkeypatch, 20)
    factories[which].gate.set()
    async with asyncio.timeout(5):
        assert await asyncio.gather(tasks[which], *tasks[1 + FEW :]) == [which] * (20 - FEW)
    for factory in factories:
        factory.gate.set()
    assert await asyncio.gather(*tasks[: 1 + FEW]) == [*range(1 + FEW)]
    assert sum(factory.runs for factory in factories) == 1 + FEW


async def test_slow_runs_that_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is not let run its factory in time is told so, and which value it was (F17)."""
    monkeypatch.setattr("app_cache.values.FILL_TIMEOUT_S", 0)
    factories, tasks = await slow_runs(monkeypatch, 2 + FEW)
    with pytest.raises(TimeoutError, match="the value under 'key' is being made by others"):
        await tasks[-1]
    for factory in factories:
        factory.gate.set()
    await asyncio.wait(tasks)


async def test_slow_run_and_a_stale_value(monkeypatch: pytest.MonkeyPatch, clock: FakeClock) -> None:
    """A stale value stands in for a run that takes longer than anybody waits (F17)."""
    values, slow = ValueCache(StoredResponses(MemoryBackend(), now=clock)), Factory()
    await values.get_or_set("key", opened("old"), 60, stale_if_error=600)
    clock.advance(61)
    (leader,) = await under_way(values, values.get_or_set("key", slow, 60, stale_if_error=600))
    monkeypatch.setattr("app_cache.values.FILL_TIMEOUT_S", 0)
    assert await values.get_or_set("key", opened("own"), 60, stale_if_error=600) == "old"
    slow.gate.set()
    await leader


async def test_factory_that_cancels_itself(values: ValueCache) -> None:
    """A run that is cancelled from within is its caller's alone; who waits goes on alone."""
    factory = Factory(asyncio.CancelledError(), "made")
    leader, *waiting = await under_way(values, *(values.get_or_set("key", factory, 60) for _ in range(3)))
    factory.gate.set()
    assert await asyncio.gather(*waiting) == ["made"] * 2
    await asyncio.wait({leader})
    assert leader.cancelled()


async def test_run_that_gave_nothing(values: ValueCache) -> None:
    """Where a run gave neither value nor error, the calls after it do not wait for each other for a moment."""
    gone, factory = Factory(asyncio.CancelledError()), Factory()
    (leader,) = await under_way(values, values.get_or_set("key", gone, 60))
    gone.gate.set()
    await asyncio.wait({leader})
    tasks = [asyncio.create_task(values.get_or_set("key", factory, 60)) for _ in range(3)]
    await until(lambda: factory.runs == 3)
    factory.gate.set()
    assert sorted(await asyncio.gather(*tasks)) == [1, 2, 3]


async def test_close_drains(backend: CacheBackend) -> None:
    """A store that is closed waits for what is being made, and has written it (F29)."""
    store, factory = StoredResponses(backend), Factory()
    values = ValueCache(store)
    (task,) = await under_way(values, values.get_or_set("key", factory, 60))
    closing = asyncio.create_task(store.close())
    factory.gate.set()
    await closing
    assert task.done()
    assert await task == 1
    assert await ValueCache(StoredResponses(backend)).get("key") == 1


# Failures of the backend.


async def test_backend_away(clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    """A backend that is away costs hits and nothing else; an invalidation holds once it is back (F1, F27)."""
    backend = Away()
    store = StoredResponses(backend, monotonic=clock)
    values, factory = ValueCache(store), opened()
    backend.away = False
    await values.set("key", "before", 60)
    await values.set("other", "before", 60)
    await written(store)
    backend.away = True
    assert await values.get("key", default="default") == "default"
    assert [await values.get_or_set("key", factory, 60) for _ in range(2)] == [1, 2]
    await values.set("other", "after", 60)
    assert not (await values.delete("key")).durable
    assert {record.levelno for record in caplog.records} == {logging.WARNING}
    backend.away = False
    clock.advance(PROBE_EVERY_S)
    assert [await values.get("key"), await values.get("other")] == [None, None]
    assert [await values.get_or_set("key", factory, 60) for _ in range(2)] == [3, 3]


async def test_invalidated_while_the_backend_is_away() -> None:
    """Though nothing can be read, who asks after an invalidation does not get what was being made before it."""
    values, factory = ValueCache(StoredResponses(Away())), Factory("old", "new")
    before = await under_way(values, *(values.get_or_set("key", factory, 60) for _ in range(2)))
    assert not (await values.delete("key")).durable
    after = await under_way(values, *(values.get_or_set("key", factory, 60) for _ in range(2)))
    factory.gate.set()
    assert (await asyncio.gather(*after), await before[0]) == (["new"] * 2, "old")
    assert await before[1] != "old"


class Stumbling(Patient):
    """Does not take the first stamp that an invalidation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.stumbled = False

    async def set(self, key: str, value: str, timeout: int) -> None:
        if not self.stumbled:
            self.stumbled = True
            raise BackendError("busy")
        await super().set(key, value, timeout)


async def test_set_pays_first() -> None:
    """What is set stays, though the invalidation that goes before it had to be sent twice."""
    values = ValueCache(StoredResponses(Stumbling()))
    await values.set("key", "value", 60)
    assert await values.get("key") == "value"


async def test_full_backend() -> None:
    """Where reads go well and writes fail, what was set before is not given after a new one was set (F8)."""
    backend = Away("get", "stamp", "delete")
    backend.away = False
    store = StoredResponses(backend)
    values = ValueCache(store)
    await values.set("key", "before", 60)
    await written(store)
    backend.away = True
    await values.set("key", "after", 60)
    await written(store)
    assert await values.get("key") is None
    assert await values.get_or_set("key", opened("made"), 60) == "made"
    await written(store)
    assert store.stats["store_failed"] == 2


async def test_hung_server(redis_server: Server) -> None:
    """A server that hangs costs each operation its budget, and the value is made all the same (F3)."""
    backend = RedisBackend(redis_server.url)
    store = StoredResponses(backend)
    values = ValueCache(store)
    redis_server.pause()
    try:
        async with asyncio.timeout(10):
            assert await values.get("key") is None
            assert await values.get_or_set("key", opened("made"), 60) == "made"
            await values.set("key", "set", 60)
            assert not (await values.delete("key")).durable
    finally:
        redis_server.resume()
    await store.close()
    await backend.close()


class Slow(Patient):
    """Takes no entries until it is *open*."""

    def __init__(self) -> None:
        super().__init__()
        self.open = asyncio.Event()

    async def set(self, key: str, value: str, timeout: int) -> None:
        if value.startswith("app-cache:"):
            await self.open.wait()
        await super().set(key, value, timeout)


async def test_slow_backend_delays_nobody() -> None:
    """A value can be hit while the backend has yet to take it, and is invalidated as one that is there."""
    backend, factory = Slow(), opened()
    store = StoredResponses(backend)
    values = ValueCache(store)
    assert [await values.get_or_set("key", factory, 60) for _ in range(2)] == [1, 1]
    await values.delete("key")
    assert await values.get_or_set("key", factory, 60) == 2
    backend.open.set()
    await store.close()
    assert await ValueCache(StoredResponses(backend)).get("key") == 2


async def test_set_is_there(backend: CacheBackend) -> None:
    """What was set is in the backend when `set` returns, for a process that has not seen it too."""
    await ValueCache(StoredResponses(backend)).set("key", 1, 60)
    assert await ValueCache(StoredResponses(backend)).get("key") == 1


def test_set_in_a_loop_that_ends(redis_server: Server) -> None:
    """What was set is there in the next event loop, though nothing was closed."""
    values = ValueCache(StoredResponses(RedisBackend(redis_server.url, operation_timeout=5.0)))
    for number in range(3):
        asyncio.run(values.set("key", number, 60))
        assert asyncio.run(values.get("key")) == number


async def test_set_waits_for_no_slow_backend() -> None:
    """`set` waits no longer than a call may; what it set is given, and is there once the backend takes it."""
    backend = Slow()
    backend.operation_timeout = 1.0
    store = StoredResponses(backend)
    async with asyncio.timeout(10):
        await ValueCache(store).set("key", 1, 60)
    assert await ValueCache(store).get("key") == 1
    backend.open.set()
    await store.close()
    assert await ValueCache(StoredResponses(backend)).get("key") == 1


async def test_set_while_it_is_set() -> None:
    """Of two that set one key at once neither waits for ever, and the later stays."""
    backend = Slow()
    values = ValueCache(StoredResponses(backend))
    sets = [asyncio.create_task(values.set("key", number, 60)) for number in range(2)]
    backend.open.set()
    async with asyncio.timeout(10):
        await asyncio.gather(*sets)
    assert await ValueCache(StoredResponses(backend)).get("key") == 1


async def test_deleted_before_it_is_written() -> None:
    """What is deleted before its turn to be written came is not written."""
    backend = Slow()
    store = StoredResponses(backend)
    values = ValueCache(store)
    sets = [asyncio.create_task(values.set(f"key {number}", number, 60)) for number in range(WRITERS + 1)]
    while len(store.writes.pending) < len(sets):  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0)
    await values.delete(f"key {WRITERS}")
    backend.open.set()
    await asyncio.gather(*sets)
    await store.close()
    assert sum(value.startswith("app-cache:") for value in backend.values.values()) == WRITERS


async def test_deleted_is_gone(redis_server: Server) -> None:
    """What is deleted is not only unheard of, but gone from the server."""
    backend = RedisBackend(redis_server.url, operation_timeout=5.0)
    store = StoredResponses(backend)
    values = ValueCache(store)
    await values.set("key", "s3cret", 60)
    await written(store)
    assert redis_server.command("KEYS", "cache:v:*")
    await values.delete("key")
    assert not redis_server.command("KEYS", "cache:v:*")
    await store.close()
    await backend.close()


@dataclass(frozen=True)
class FrozenError(Exception):
    """An error of which nothing can be changed."""

    code: int


def test_copy_of_a_frozen_error() -> None:
    """An error that is a frozen dataclass has a copy like any other."""
    own = own_copy(FrozenError(7))
    assert own == FrozenError(7)
    assert own.args == (7,)


async def test_set_beside_others(redis_server: Server) -> None:
    """What many set at once, each under keys that nobody knew, is all there, whatever is invalidated meanwhile."""
    backend = RedisBackend(redis_server.url, operation_timeout=5.0)
    values, elsewhere = ValueCache(StoredResponses(backend)), StoredResponses(backend)

    async def set_some(task: int) -> int:
        found = 0
        for number in range(25):
            await values.set(f"{task} {number}", number, 60)
            await elsewhere.invalidate(Order(tags=("t:nobody",)))
            found += await values.get(f"{task} {number}") == number
        return found

    assert sum(await asyncio.gather(*map(set_some, range(8)))) == 8 * 25
    await backend.close()

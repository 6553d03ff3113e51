"""What is owed to a backend that does not take it as it is: sent in parts, or as everything, and never lost."""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from app_cache.backends.memory import MemoryBackend
from app_cache.breaker import PROBE_EVERY_S, State
from app_cache.clock.base import Order
from app_cache.clock.names import tag_stamp
from app_cache.errors import BackendError, Fault
from app_cache.orders import FEW_FAILURES, MAX_OWED
from app_cache.store import StoredResponses
from app_cache.testing import FakeClock
from tests.stored import FourMethods, Page, body_of, fill, look_up, written

if TYPE_CHECKING:
    from collections.abc import Callable

    from app_cache.backends.base import CacheBackend

pytestmark = pytest.mark.anyio

PAGE, OTHER = Page("/users/7", tags=("users",)), Page("/items/1", tags=("items",))
USERS = Order(tags=(tag_stamp("users"),))
STAMP, ACTIVITY, EVERYTHING = f"cache:s:{tag_stamp('users')}", "cache:s:!", "cache:s:*"
BUDGET_S = 0.02
PATIENT_S = 30.0


class Picky(FourMethods):
    """Raises *failure* or hangs where a key of *refused* is set; answers *answers* calls, then none."""

    def __init__(self, operation_timeout: float = PATIENT_S) -> None:
        super().__init__()
        self.operation_timeout = operation_timeout
        self.refused: set[str] = set()
        self.failure: Exception | None = None
        self.answers = float("inf")
        self.away = False
        self.sets: list[str] = []
        """The keys that were set."""

    async def get(self, key: str) -> str | None:
        await self._meet()
        return await super().get(key)

    async def set(self, key: str, value: str, timeout: int) -> None:
        await self._meet()
        if key in self.refused:
            if self.failure is not None:
                raise self.failure
            await asyncio.Event().wait()
        self.sets.append(key)
        await super().set(key, value, timeout)

    async def _meet(self) -> None:
        if self.away:
            raise BackendError("away")
        if self.answers <= 0:
            await asyncio.Event().wait()
        self.answers -= 1


@pytest.fixture
def clock() -> FakeClock:
    """The clock of the store."""
    return FakeClock()


async def stocked(backend: CacheBackend, clock: FakeClock, *pages: Page) -> StoredResponses:
    """Return a store over *backend* that has *pages*."""
    store = StoredResponses(backend, monotonic=clock)
    for page in pages:
        await fill(store, page)
    await written(store)
    return store


async def probes_until_paid(store: StoredResponses, clock: FakeClock, most: int = 60) -> int:
    """Return how many look-ups it takes, one each second, until nothing is owed; none of them is answered."""
    for probes in range(1, most):
        clock.advance(PROBE_EVERY_S)
        assert (await look_up(store, PAGE)).entry is None
        if not store.orders.owed:
            return probes
    raise AssertionError("it is never paid")


@pytest.mark.parametrize(
    "failure",
    [
        pytest.param(ValueError("illegal key"), id="unknown"),
        pytest.param(BackendError("no", fault=Fault.REFUSED), id="refused"),
        pytest.param(BackendError("no", fault=Fault.FULL), id="full"),
    ],
)
async def test_refused_order(failure: Exception, clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    """An order that a backend refuses which is there becomes everything at once; that is told and counted."""
    backend = Picky()
    store = await stocked(backend, clock, PAGE, OTHER)
    backend.refused, backend.failure = {STAMP}, failure
    for _ in range(5):
        result = await store.invalidate(USERS)
        assert (result.durable, result.widened_to) == (True, "everything")
    assert [await body_of(store, page) for page in (PAGE, OTHER)] == [None, None]
    await fill(store, OTHER, b"new")
    assert await body_of(store, OTHER) == b"new"
    assert store.stats["invalidations_widened"] == 5
    assert [record.getMessage().split()[0] for record in caplog.records] == ["cache.backend_failed"]


@pytest.mark.parametrize("soft", [pytest.param(False, id="hard"), pytest.param(True, id="soft")])
async def test_refused_softly(clock: FakeClock, soft: bool) -> None:
    """A soft order that is refused marks everything as stale, unless something hard is owed beside it."""
    store = await stocked(MemoryBackend(), clock, PAGE, OTHER)
    carry_out = store.clock.invalidate

    async def refuse(order: Order, sent: set[object] | None = None) -> object:
        if order.tags:
            raise ValueError("no")
        return await carry_out(order, sent)

    store.clock.invalidate = refuse  # type: ignore[method-assign, assignment]
    if not soft:
        store.orders._owe(Order(tags=(tag_stamp("nobody"),)))
    assert (await store.invalidate(Order(tags=(tag_stamp("users"),), soft=True))).durable
    assert (await look_up(store, OTHER)).marked_stale is soft
    assert (await body_of(store, OTHER) is None) is not soft


async def test_refused_as_if_it_were_away(clock: FakeClock) -> None:
    """An order that fails as if the backend were away, which it is not, becomes everything after few failures."""
    backend = Picky()
    store = await stocked(backend, clock, PAGE, OTHER)
    backend.refused, backend.failure = {ACTIVITY, STAMP}, BackendError("illegal key")
    assert not (await store.invalidate(USERS)).durable
    assert await probes_until_paid(store, clock) == FEW_FAILURES + 1
    assert await body_of(store, OTHER) is None
    await fill(store, PAGE, b"new")
    assert await body_of(store, PAGE) == b"new"


async def test_read_only_for_long(clock: FakeClock) -> None:
    """However often a server was read-only, what is owed then goes as it is to the one that takes its place."""
    backend = Picky()
    store = await stocked(backend, clock, PAGE, OTHER)
    backend.refused, backend.failure = {ACTIVITY, STAMP}, BackendError("no", fault=Fault.READ_ONLY)
    assert not (await store.invalidate(USERS)).durable
    for _ in range(3 * FEW_FAILURES):
        clock.advance(PROBE_EVERY_S)
        assert (await look_up(store, PAGE)).entry is None
    backend.refused = set()
    clock.advance(PROBE_EVERY_S)
    assert [await body_of(store, page) for page in (PAGE, OTHER)] == [None, b"old"]
    assert (len(store.orders.owed), store.stats["invalidations_widened"]) == (0, 0)


async def test_order_that_hangs(clock: FakeClock) -> None:
    """An order that hangs each time, while the backend is there, becomes everything after few failures."""
    backend = Picky()
    store = await stocked(backend, clock, PAGE)
    backend.refused = {ACTIVITY, STAMP}
    store.calls.timeout = BUDGET_S
    assert not (await store.invalidate(USERS)).durable
    await probes_until_paid(store, clock)
    assert backend.sets[-1] == EVERYTHING


async def test_long_outage(clock: FakeClock) -> None:
    """However long a backend is away, what it is owed then is what was asked for, and no more."""
    backend = Picky()
    store = await stocked(backend, clock, PAGE, OTHER)
    for fails in range(1, 12):
        backend.away = True
        assert not (await store.invalidate(USERS)).durable
        for _ in range(fails):
            clock.advance(PROBE_EVERY_S)
            assert await body_of(store, OTHER) is None
        backend.away = False
        clock.advance(PROBE_EVERY_S)
        assert await body_of(store, OTHER) == b"old"
    assert await body_of(store, PAGE) is None
    assert store.stats["invalidations_widened"] == 0


async def test_long_hang(clock: FakeClock) -> None:
    """However long a backend hangs, what it is owed then is what was asked for, and no more."""
    backend = Picky()
    store = await stocked(backend, clock, PAGE, OTHER)
    for fails in range(1, 12):
        backend.answers, store.calls.timeout = 0, BUDGET_S
        assert not (await store.invalidate(USERS)).durable
        for _ in range(fails):
            clock.advance(PROBE_EVERY_S)
            assert await body_of(store, OTHER) is None
        backend.answers, store.calls.timeout = float("inf"), PATIENT_S
        clock.advance(PROBE_EVERY_S)
        assert await body_of(store, OTHER) == b"old"
    assert await body_of(store, PAGE) is None


async def test_everything_is_refused_too(clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    """Where nothing can be sent the backend is left alone, each look-up is a miss, and the order stays."""
    backend = Picky()
    store = await stocked(backend, clock, PAGE, OTHER)
    backend.refused, backend.failure = {ACTIVITY, STAMP, EVERYTHING}, ValueError("no")
    assert not (await store.invalidate(USERS)).durable
    for _ in range(10):
        assert [await body_of(store, page) for page in (PAGE, OTHER)] == [None, None]
    assert store.calls.breaker is not None
    assert (store.calls.breaker.state, [*store.orders.owed]) == (State.OPEN, [USERS])
    assert [record.getMessage().split()[0] for record in caplog.records] == ["cache.backend_failed"]
    backend.refused = set()
    clock.advance(PROBE_EVERY_S)
    assert await body_of(store, OTHER) == b"old"
    assert await body_of(store, PAGE) is None


async def test_slow_backend_gets_on(clock: FakeClock) -> None:
    """A backend that takes one call in the time of an operation has an invalidation of one tag after two."""
    backend = Picky()
    store = await stocked(backend, clock, PAGE, OTHER)
    backend.sets.clear()
    backend.answers, store.calls.timeout = 1, BUDGET_S
    assert not (await store.invalidate(USERS)).durable
    backend.answers = 1
    await look_up(store, PAGE)
    assert (len(store.orders.owed), backend.sets) == (0, [ACTIVITY, STAMP])


async def test_given_again(clock: FakeClock) -> None:
    """What was sent of an order is sent again if the order was given again meanwhile."""
    backend = Picky()
    store = await stocked(backend, clock, PAGE)
    backend.sets.clear()
    backend.refused = {STAMP}
    first = asyncio.create_task(store.invalidate(USERS))
    while not backend.sets:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0)
    backend.away = True
    assert not (await store.invalidate(USERS)).durable
    first.cancel()
    await asyncio.wait({first})
    backend.away, backend.refused = False, set()
    backend.sets.clear()
    assert await body_of(store, PAGE) is None
    assert backend.sets == [ACTIVITY, STAMP]


async def test_cancelled_between_its_parts(clock: FakeClock) -> None:
    """Of an invalidation that is cancelled half way the rest is sent before anything is trusted (F31)."""
    backend = Picky()
    store = await stocked(backend, clock, PAGE, OTHER)
    backend.sets.clear()
    backend.refused = {STAMP}
    invalidating = asyncio.create_task(store.invalidate(Order(tags=(tag_stamp("items"), tag_stamp("users")))))
    while len(backend.sets) < 2:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0)
    invalidating.cancel()
    await asyncio.wait({invalidating})
    backend.refused = set()
    assert [await body_of(store, page) for page in (PAGE, OTHER)] == [None, None]
    assert backend.sets == [ACTIVITY, f"cache:s:{tag_stamp('items')}", STAMP]


async def test_one_pays_for_all(clock: FakeClock) -> None:
    """Of many look-ups at once one sends what is owed, and the others wait for it."""
    backend = Picky()
    store = await stocked(backend, clock, PAGE, OTHER)
    backend.away = True
    assert not (await store.invalidate(USERS)).durable
    backend.away = False
    backend.sets.clear()
    backend.pause = lambda: asyncio.sleep(0)
    found = await asyncio.gather(*(body_of(store, OTHER) for _ in range(50)))
    assert ({*found}, backend.sets) == ({b"old"}, [ACTIVITY, STAMP])


@pytest.mark.parametrize("kind", [MemoryBackend, FourMethods])
async def test_too_many_names(kind: Callable[[], CacheBackend], clock: FakeClock) -> None:
    """An order that names more than its clock takes at once is one of everything, and the result says so."""
    store = await stocked(kind(), clock, OTHER)
    most = store.clock.most_names
    names = tuple(tag_stamp(f"nobody-{number}") for number in range(most + 1))
    assert (await store.invalidate(Order(tags=names[:most]))).widened_to is None
    assert await body_of(store, OTHER) == b"old"
    assert (await store.invalidate(Order(tags=names))).widened_to == "everything"
    assert await body_of(store, OTHER) is None
    assert store.stats["invalidations_widened"] == 1


async def test_too_many_names_are_owed(clock: FakeClock) -> None:
    """If what is owed has more names than its clock takes at once, everything is owed."""
    backend = Picky()
    store = await stocked(backend, clock, PAGE)
    backend.away = True
    half = store.clock.most_names // 2
    for turn in range(3):
        await store.invalidate(Order(tags=tuple(tag_stamp(f"{turn}-{number}") for number in range(half))))
    assert [*store.orders.owed] == [Order(everything=True)]


def test_owed_by_many_threads() -> None:
    """Event loops of many threads may owe at once: none fails, and all is sent when the server is there again."""
    backend = Picky()
    backend.away = True
    store = StoredResponses(backend)
    barrier, failures = threading.Barrier(4), list[BaseException]()

    async def invalidate(thread: int) -> None:
        for number in range(300):
            await store.invalidate(Order(tags=(f"t:{thread}-{number}",), soft=number % 2 == 0))

    def work(thread: int) -> None:
        barrier.wait(10)
        try:
            asyncio.run(invalidate(thread))
        except BaseException as error:
            failures.append(error)
            raise

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(interval)
    assert failures == []
    assert 0 < len(store.orders.owed) <= MAX_OWED
    backend.away = False
    asyncio.run(store.close())
    assert not store.orders.owed


async def test_hard_and_soft_in_turn() -> None:
    """However many orders are owed of which no two neighbours are alike, all are sent at once."""
    backend = Picky()
    backend.away = True
    store = StoredResponses(backend)
    for number in range(200):
        store.orders._owe(Order(tags=(f"t:{number}",), soft=number % 2 == 0))
    backend.away = False
    await store.close()
    assert not store.orders.owed

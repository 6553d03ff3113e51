"""The store and its breaker: what a backend that hangs, fails or lets nobody in costs, and what it is owed."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from app_cache.backends.base import LAST_LOOK_S, STALLED_S
from app_cache.backends.memory import MemoryBackend
from app_cache.backends.redis import RedisBackend
from app_cache.breaker import OPENS_AFTER, PROBE_EVERY_S, Breaker, State
from app_cache.clock.base import Order
from app_cache.clock.names import tag_stamp
from app_cache.errors import BackendError, Fault
from app_cache.orders import MAX_OWED
from app_cache.store import StoredResponses
from app_cache.testing import FakeClock
from app_cache.values import ValueCache
from tests.stored import FourMethods, Page, body_of, fill, look_up, written

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.anyio

PAGE = Page("/users/7", tags=("users",))
BUDGET_S = 0.02
PATIENT_S = 30.0


class Unsteady(FourMethods):
    """Hangs once it has answered *answers* calls, and raises *failure* where there is one; remembers each call."""

    def __init__(self, operation_timeout: float = BUDGET_S) -> None:
        super().__init__()
        self.operation_timeout = operation_timeout
        self.answers = float("inf")
        self.failure: Exception | None = None
        self.calls: list[str] = []

    def hang(self) -> None:
        self.answers = 0

    def recover(self) -> None:
        self.answers, self.failure = float("inf"), None

    def recover_for(self, store: StoredResponses) -> None:
        """Work again, in whatever time a busy machine needs."""
        self.recover()
        store.calls.timeout = PATIENT_S

    async def get(self, key: str) -> str | None:
        await self._meet("get", key)
        return await super().get(key)

    async def set(self, key: str, value: str, timeout: int) -> None:
        await self._meet("set", key)
        await super().set(key, value, timeout)

    async def delete(self, key: str) -> None:
        await self._meet("delete", key)
        await super().delete(key)

    async def _meet(self, verb: str, key: str) -> None:
        self.calls.append(f"{verb} {key}")
        if self.failure is not None:
            raise self.failure
        if self.answers <= 0:
            await asyncio.Event().wait()
        self.answers -= 1


@pytest.fixture
def backend() -> Unsteady:
    """A backend that works until it is told otherwise."""
    return Unsteady()


@pytest.fixture
def clock() -> FakeClock:
    """The clock of the store."""
    return FakeClock()


@pytest.fixture
def store(backend: Unsteady, clock: FakeClock) -> StoredResponses:
    """A store over the unsteady backend."""
    return StoredResponses(backend, monotonic=clock)


def breaker_of(store: StoredResponses) -> Breaker:
    """Return the breaker of *store*, which has one."""
    assert store.calls.breaker is not None
    return store.calls.breaker


async def gave_up(store: StoredResponses) -> None:
    """Look up until the breaker is open; a machine that is slow may take more than five."""
    for _ in range(10 * OPENS_AFTER):
        assert (await look_up(store, PAGE)).reading is None
        if breaker_of(store).state is State.OPEN:
            return
    raise AssertionError("the breaker does not open")


def lines_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return each line that was said, as its level, event and reason."""
    return [" ".join([record.levelname, *record.getMessage().split()[:3:2]]) for record in caplog.records]


@pytest.mark.alone
async def test_hung_backend_is_left_alone(backend: Unsteady, store: StoredResponses) -> None:
    """After five look-ups that hung, every one is a miss that does not touch the backend (F3)."""
    backend.hang()
    await gave_up(store)
    asked, begun = len(backend.calls), time.monotonic()
    for _ in range(300):
        found = await look_up(store, PAGE)
        assert (found.entry, found.reading) == (None, None)
    assert time.monotonic() - begun < 300 * BUDGET_S / 2
    assert (len(backend.calls) - asked, store.stats["look_up_skipped"]) == (0, 300)


async def test_many_at_once_are_one_failure() -> None:
    """Fifty look-ups that fail together are one failure, not fifty."""
    backend = Unsteady(operation_timeout=30.0)
    store = StoredResponses(backend)
    backend.failure = BackendError("away")
    for wave in range(OPENS_AFTER):
        assert breaker_of(store).state is State.CLOSED, wave
        await asyncio.gather(*(look_up(store, PAGE) for _ in range(50)))
    assert breaker_of(store).state is State.OPEN


async def test_what_is_told_at_the_last_moment() -> None:
    """Why a backend gives up is heard though the loop was busy then, and its time has ended meanwhile."""
    store = StoredResponses(RedisBackend("redis://127.0.0.1:1", operation_timeout=BUDGET_S))

    async def gives_up() -> None:
        loop = asyncio.get_running_loop()
        told: asyncio.Future[None] = loop.create_future()

        def give_up() -> None:
            loop.call_later(LAST_LOOK_S, told.set_exception, BackendError("no connection", fault=Fault.BUSY))
            loop.call_soon(time.sleep, 3 * LAST_LOOK_S)

        loop.call_later(BUDGET_S, give_up)
        await told

    await store.calls.attempt("look_up", gives_up(), ends_at_once=True)
    assert store.stats["failed_busy"] == 1


async def test_one_probe_each_second(backend: Unsteady, store: StoredResponses, clock: FakeClock) -> None:
    """While it hangs, one look-up a second goes to the backend, however many come (F3)."""
    backend.hang()
    await gave_up(store)
    backend.calls.clear()
    for _ in range(3):
        clock.advance(PROBE_EVERY_S)
        await asyncio.gather(*(look_up(store, PAGE) for _ in range(50)))
    assert backend.calls.count(f"get {PAGE.key}") == 3
    assert breaker_of(store).state is State.OPEN


async def test_back(backend: Unsteady, store: StoredResponses, clock: FakeClock) -> None:
    """When the probe is answered all goes to the backend again, at once."""
    await fill(store, PAGE)
    await written(store)
    backend.hang()
    await gave_up(store)
    backend.recover_for(store)
    assert await body_of(store, PAGE) is None
    clock.advance(PROBE_EVERY_S)
    assert [await body_of(store, PAGE) for _ in range(3)] == [b"old"] * 3


async def test_stores_are_dropped(backend: Unsteady, store: StoredResponses, clock: FakeClock) -> None:
    """What began while the backend was there is not stored when it is not; it is counted, and is no probe."""
    found = await look_up(store, PAGE)
    mark = await store.begin(found.reading, PAGE.asked, 60.0)
    assert mark is not None
    backend.hang()
    await gave_up(store)
    backend.recover_for(store)
    clock.advance(PROBE_EVERY_S)
    await store.keep(PAGE.entry(mark), 60.0, (), frozenset(), store.next_turn())
    await written(store)
    assert PAGE.key not in backend.values
    assert (store.stats["store_skipped"], store.writes._pending_bytes) == (1, 0)


async def test_request_that_leaves_as_it_probes(
    backend: Unsteady, store: StoredResponses, clock: FakeClock
) -> None:
    """A probe whose request leaves shows nothing and blocks nobody: the next second has the next (F31)."""
    backend.hang()
    await gave_up(store)
    clock.advance(PROBE_EVERY_S)
    probe = asyncio.create_task(look_up(store, PAGE))
    await asyncio.sleep(0)
    states = [breaker_of(store).state]
    probe.cancel()
    await asyncio.wait({probe})
    states.append(breaker_of(store).state)
    backend.recover_for(store)
    clock.advance(PROBE_EVERY_S)
    assert (await look_up(store, PAGE)).reading is not None
    assert states == [State.HALF_OPEN, State.OPEN]


async def test_request_that_leaves_ends_what_it_asked(backend: Unsteady, store: StoredResponses) -> None:
    """What a request asked of the backend ends when it leaves (F31)."""
    tasks = asyncio.all_tasks()
    backend.hang()
    asked = asyncio.create_task(look_up(store, PAGE))
    for _ in range(5):
        await asyncio.sleep(0)
    assert backend.calls
    asked.cancel()
    await asyncio.wait({asked})
    for _ in range(5):
        await asyncio.sleep(0)
    assert asyncio.all_tasks() == tasks


async def test_a_loop_that_stands_still(backend: Unsteady, store: StoredResponses) -> None:
    """That the event loop was blocked is not held against the backend (F24)."""
    for _ in range(2 * OPENS_AFTER):
        backend.hang()
        asked = asyncio.create_task(look_up(store, PAGE))
        await asyncio.sleep(0)
        time.sleep(BUDGET_S + STALLED_S + 0.01)  # noqa: ASYNC251 - this is what is tested
        assert (await asked).reading is None
    assert breaker_of(store).state is State.CLOSED
    assert (store.stats["failed_stalled"], store.stats["failed_away"]) == (2 * OPENS_AFTER, 0)


async def test_a_call_that_the_backend_cancels(backend: Unsteady, store: StoredResponses) -> None:
    """What a backend cancels itself has failed; it does not end who asked, nor what writes."""
    backend.failure = asyncio.CancelledError()  # type: ignore[assignment]
    assert (await look_up(store, PAGE)).reading is None
    assert not (await store.invalidate(Order(tags=("tag",)))).durable
    await store.close()
    assert store.stats["failed_unknown"] >= 2


@pytest.mark.parametrize(
    ("given", "said"),
    [pytest.param(b"bytes", "not bytes", id="bytes"), pytest.param(7, "not int", id="a number")],
)
async def test_what_is_no_text(
    backend: Unsteady, store: StoredResponses, given: Any, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A backend whose `get` gives something else than text is a miss, and the log says what it gave."""
    backend.get = lambda key: asyncio.sleep(0, given)  # type: ignore[method-assign]
    assert (await look_up(store, PAGE)).reading is None
    assert f"get must give str or None, {said}" in caplog.text


@pytest.mark.parametrize("fault", [Fault.FULL, Fault.READ_ONLY, Fault.REFUSED, Fault.BUSY])
async def test_what_answers_is_there(
    backend: Unsteady, store: StoredResponses, fault: Fault, caplog: pytest.LogCaptureFixture
) -> None:
    """A backend that answers is asked again, however often it refuses; it is counted by reason and said once."""
    backend.failure = BackendError("no", fault=fault)
    for _ in range(50):
        await look_up(store, PAGE)
    assert breaker_of(store).state is State.CLOSED
    assert store.stats[f"failed_{fault.value}"] == store.stats["look_up_failed"] == 50
    assert lines_of(caplog) == [f"WARNING cache.backend_failed reason={fault.value}"]


async def test_nobody_is_let_in(
    backend: Unsteady, store: StoredResponses, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A backend that lets nobody in is left alone at once, asked each second, and said once as an error (F10)."""
    backend.failure = BackendError("redis://me:s3cret@host: WRONGPASS", fault=Fault.DENIED)
    for _ in range(10):
        clock.advance(PROBE_EVERY_S)
        for _ in range(10):
            await look_up(store, PAGE)
    assert backend.calls.count(f"get {PAGE.key}") == 10
    assert lines_of(caplog) == ["ERROR cache.backend_failed reason=denied"]
    assert "s3cret" not in caplog.text


async def test_half_a_permission(
    backend: Unsteady, store: StoredResponses, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Where reading is permitted and writing is not, the state may change each second; the log has one line."""
    caplog.set_level(logging.INFO, "app_cache")

    class ReadersOnly(Unsteady):
        async def set(self, key: str, value: str, timeout: int) -> None:
            raise BackendError("no permission", fault=Fault.DENIED)

    store = StoredResponses(ReadersOnly(PATIENT_S), monotonic=clock)
    for _ in range(60):
        found = await look_up(store, PAGE)
        assert await store.begin(found.reading, PAGE.asked, 60.0) is None
        clock.advance(PROBE_EVERY_S)
    assert store.stats["breaker_opened"] > 20
    assert lines_of(caplog) == ["ERROR cache.backend_failed reason=denied"]


async def test_one_line_for_an_outage(
    backend: Unsteady, store: StoredResponses, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A backend that hangs, is away, and comes back has one line for its going and one for its return."""
    caplog.set_level(logging.INFO, "app_cache")
    backend.hang()
    await gave_up(store)
    backend.failure = BackendError("refused")
    for _ in range(20):
        clock.advance(PROBE_EVERY_S)
        await look_up(store, PAGE)
    backend.recover_for(store)
    for _ in range(20):
        clock.advance(PROBE_EVERY_S)
        await look_up(store, PAGE)
    assert lines_of(caplog) == [
        "WARNING cache.backend_failed reason=away",
        "INFO cache.backend_recovered reason=away",
    ]


def test_several_loops() -> None:
    """A breaker that one event loop opened is open for the next, and may be closed there (F32)."""
    backend, clock = Unsteady(), FakeClock()
    store = StoredResponses(backend, monotonic=clock)
    backend.hang()
    asyncio.run(gave_up(store))
    backend.recover_for(store)
    assert asyncio.run(look_up(store, PAGE)).reading is None
    clock.advance(PROBE_EVERY_S)
    assert asyncio.run(look_up(store, PAGE)).reading is not None


async def test_memory_has_no_breaker(caplog: pytest.LogCaptureFixture) -> None:
    """Memory that fails, as only a subclass can, is asked again each time, and said once."""

    class Broken(MemoryBackend):
        async def get_bytes(self, key: str) -> bytes | None:
            raise KeyError(key)

    store = StoredResponses(Broken())
    for _ in range(50):
        assert await body_of(store, PAGE) is None
    assert (store.calls.breaker, store.stats["look_up_failed"]) == (None, 50)
    assert lines_of(caplog) == ["WARNING cache.backend_failed reason=unknown"]


async def test_no_task_is_left(backend: Unsteady, store: StoredResponses, clock: FakeClock) -> None:
    """An outage leaves no task behind, neither while it lasts nor after it."""
    tasks = asyncio.all_tasks()
    backend.hang()
    await gave_up(store)
    clock.advance(PROBE_EVERY_S)
    await look_up(store, PAGE)
    for _ in range(5):
        await asyncio.sleep(0)
    assert asyncio.all_tasks() == tasks
    await store.close()
    assert asyncio.all_tasks() == tasks


# What is owed


def order_of(*tags: str, soft: bool = False) -> Order:
    """Return an invalidation of *tags*."""
    return Order(tags=tuple(map(tag_stamp, tags)), soft=soft)


async def test_invalidation_while_it_is_open(backend: Unsteady, store: StoredResponses, clock: FakeClock) -> None:
    """An invalidation while the breaker is open is owed at once, and sent before a read is trusted (F27)."""
    elsewhere = StoredResponses(backend)
    await fill(store, PAGE)
    await written(store)
    backend.hang()
    await gave_up(store)
    backend.recover_for(store)
    backend.calls.clear()
    assert not (await store.invalidate(order_of("users"))).durable
    assert (backend.calls, await body_of(store, PAGE)) == ([], None)
    clock.advance(PROBE_EVERY_S)
    assert await body_of(store, PAGE) is None
    assert backend.calls.index(f"set cache:s:{tag_stamp('users')}") < backend.calls.index(f"get {PAGE.key}")
    assert await body_of(elsewhere, PAGE) is None


async def test_invalidation_may_be_the_probe(backend: Unsteady, store: StoredResponses, clock: FakeClock) -> None:
    """Where nothing is looked up an invalidation finds that the backend is back, and sends what is owed first."""
    backend.hang()
    await gave_up(store)
    await store.invalidate(order_of("users"))
    backend.recover_for(store)
    backend.calls.clear()
    clock.advance(PROBE_EVERY_S)
    assert (await store.invalidate(order_of("others"))).durable
    stamps = [call.rpartition(":")[2] for call in backend.calls if call.startswith("set") and "!" not in call]
    assert stamps == ["users", "others"]


@pytest.mark.alone
async def test_invalidation_has_one_budget(backend: Unsteady, store: StoredResponses) -> None:
    """An invalidation that hangs keeps its caller no longer than a look-up does."""
    backend.hang()
    begun = time.monotonic()
    assert not (await store.invalidate(order_of("users"))).durable
    assert time.monotonic() - begun < 0.5


@pytest.mark.parametrize("ask", ["look_up", "look_up_value", "still_holds"])
async def test_owed_while_a_read_is_under_way(ask: str) -> None:
    """What was read before an invalidation became owed is not trusted after it (F25)."""

    class TakesNoMore(FourMethods):
        operation_timeout, full = 30.0, False

        async def set(self, key: str, value: str, timeout: int) -> None:
            if self.full:
                raise BackendError("away")
            await super().set(key, value, timeout)

    backend = TakesNoMore()
    store = StoredResponses(backend)
    values = ValueCache(store)
    await values.set("key", "old", 60, tags=["users"])
    await fill(store, PAGE)
    await written(store)
    found = (await look_up(store, PAGE)).entry
    assert found is not None
    read, go_on = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        read.set()
        await go_on.wait()

    backend.pause, backend.full = hold, True
    asked: asyncio.Future[object] = asyncio.ensure_future(
        body_of(store, PAGE)
        if ask == "look_up"
        else values.get("key")
        if ask == "look_up_value"
        else store.still_holds(found, store.invalidations)
    )
    await read.wait()
    assert not (await store.invalidate(order_of("users"))).durable
    go_on.set()
    assert not await asked


class Stubborn(RedisBackend):
    """Runs a script until it is *released*, whoever is cancelled."""

    def __init__(self) -> None:
        super().__init__(operation_timeout=BUDGET_S)
        self.released = asyncio.Event()

    async def run_script(self, script: str, keys: Sequence[str], args: Sequence[str | int]) -> Any:
        while not self.released.is_set():
            with suppress(asyncio.CancelledError):
                await self.released.wait()


async def test_payment_that_takes_no_notice() -> None:
    """A look-up that pays first is over in its time, though what pays does not end when it is cancelled."""
    backend = Stubborn()
    store = StoredResponses(backend)
    assert not (await store.invalidate(order_of("users"))).durable
    asked = asyncio.create_task(look_up(store, PAGE))
    in_time, _ = await asyncio.wait({asked}, timeout=5)
    backend.released.set()
    assert (await asked).reading is None
    assert in_time


@pytest.mark.parametrize(("answers", "probes"), [(2, 20), (10, 3), (40, 1)])
async def test_debts_are_paid_in_parts(
    backend: Unsteady, store: StoredResponses, clock: FakeClock, answers: int, probes: int
) -> None:
    """A backend that gets little done within a budget still gets all it is owed, as much as it can each time."""
    backend.hang()
    await gave_up(store)
    for number in range(20):
        await store.invalidate(order_of(f"tag-{number}"))
    took = 0
    while store.orders.owed and took < probes:
        backend.answers = answers
        clock.advance(PROBE_EVERY_S)
        await look_up(store, PAGE)
        took += 1
    assert (len(store.orders.owed), took) == (0, probes)
    assert {f"cache:s:{tag_stamp(f'tag-{number}')}" for number in range(20)} <= backend.values.keys()


async def test_debts_are_bounded(backend: Unsteady, store: StoredResponses, clock: FakeClock) -> None:
    """The last invalidation of each target is owed; beyond a bound, one of everything is (F27)."""
    await fill(store, PAGE)
    await written(store)
    backend.hang()
    await gave_up(store)
    for _ in range(3):
        for number in range(MAX_OWED):
            await store.invalidate(order_of(f"tag {number}"))
    assert len(store.orders.owed) == MAX_OWED
    await store.invalidate(order_of("one more"))
    assert [*store.orders.owed] == [Order(everything=True)]
    backend.recover_for(store)
    clock.advance(PROBE_EVERY_S)
    assert await body_of(store, PAGE) is None
    assert not store.orders.owed


async def test_soft_and_hard_debts(clock: FakeClock) -> None:
    """What is owed softly is paid softly, whatever is owed beside it."""
    backend = MemoryBackend()
    store = StoredResponses(backend)
    pages = [Page(f"/{number}", tags=(f"tag {number}",)) for number in range(4)]
    for page in pages:
        await fill(store, page)
    for number in range(4):
        store.orders._owe(order_of(f"tag {number}", soft=number % 2 == 1))
    found = [await look_up(store, page) for page in pages]
    assert [(each.entry is not None, each.marked_stale) for each in found] == [(False, False), (True, True)] * 2


async def test_paid_at_the_end(backend: Unsteady, store: StoredResponses) -> None:
    """A store that is closed sends what it owes, though its breaker is open."""
    backend.hang()
    await gave_up(store)
    await store.invalidate(order_of("users"))
    backend.recover_for(store)
    await store.close()
    assert (f"cache:s:{tag_stamp('users')}" in backend.values, len(store.orders.owed)) == (True, 0)


async def test_lost_at_the_end(
    backend: Unsteady, store: StoredResponses, caplog: pytest.LogCaptureFixture
) -> None:
    """What a closed store could not send is said."""
    backend.hang()
    await gave_up(store)
    for tag in ("users", "others"):
        await store.invalidate(order_of(tag))
    caplog.clear()
    await store.close()
    assert [record.getMessage() for record in caplog.records] == [
        "cache.invalidations_lost backend=Unsteady owed=2 reason=away"
    ]

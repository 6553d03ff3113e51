"""The store: writes that wait for nobody, what stands in meanwhile, and a backend that fails."""

from __future__ import annotations

import asyncio
import gc
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from app_cache.backends.compressed import CompressedBackend
from app_cache.backends.memory import MemoryBackend
from app_cache.backends.metrics import MetricsBackend
from app_cache.backends.redis import RedisBackend
from app_cache.backends.router import BackendRouter
from app_cache.backends.watchers import Watchers
from app_cache.clock.base import Order
from app_cache.clock.names import tag_stamp
from app_cache.codec import Variants, decode, from_text
from app_cache.errors import BackendError, ConfigurationError
from app_cache.store import MAX_REMEMBERED, MAX_VARIANTS, StoredResponses
from app_cache.testing import FakeClock
from app_cache.writes import PENDING_S, WRITERS
from tests.stored import FourMethods, Page, body_of, fill, look_up, written

if TYPE_CHECKING:
    from collections.abc import Callable

    from app_cache.backends.base import CacheBackend
    from tests.servers import Server

pytestmark = pytest.mark.anyio

PAGE = Page("/users/7", tags=("users",))


class Gate(FourMethods):
    """Holds back what is set for entries until it is opened; fails while it is *away*."""

    def __init__(self) -> None:
        super().__init__()
        self.open = asyncio.Event()
        self.held = 0
        """How many writes of entries are at the gate."""
        self.away = False
        self.operation_timeout = 30.0

    async def get(self, key: str) -> str | None:
        self._there()
        return await super().get(key)

    async def set(self, key: str, value: str, timeout: int) -> None:
        self._there()
        if value.startswith("app-cache:"):
            self.held += 1
            await self.open.wait()
            self.held -= 1
        await super().set(key, value, timeout)

    def _there(self) -> None:
        if self.away:
            raise BackendError("away")

    @property
    def entries(self) -> list[str]:
        """The keys of the entries that it holds."""
        return [key for key, value in self.values.items() if value.startswith("app-cache:")]


async def test_hit_before_the_backend_has_it() -> None:
    """What is kept can be hit at once, while the backend has yet to take it."""
    backend = Gate()
    store = StoredResponses(backend)
    await fill(store, PAGE)
    assert (await body_of(store, PAGE), backend.entries) == (b"old", [])
    backend.open.set()
    await written(store)
    assert (await body_of(store, PAGE), backend.entries) == (b"old", [PAGE.key])


async def test_clock_is_asked_for_what_is_pending() -> None:
    """An entry on its way to the backend is invalidated as one that is there."""
    backend = Gate()
    store = StoredResponses(backend)
    await fill(store, PAGE)
    await store.invalidate(Order(tags=(tag_stamp("users"),)))
    assert await body_of(store, PAGE) is None
    backend.open.set()
    await written(store)
    assert await body_of(store, PAGE) is None


async def test_newest_wins() -> None:
    """Of two writes of one key the newer one is served, and stays."""
    backend = Gate()
    store = StoredResponses(backend)
    await fill(store, PAGE, b"first")
    await fill(store, PAGE, b"second")
    assert await body_of(store, PAGE) == b"second"
    backend.open.set()
    await written(store)
    assert await body_of(StoredResponses(backend), PAGE) == b"second"


async def test_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond its bound the oldest waiting write is dropped and counted."""
    monkeypatch.setattr("app_cache.writes.MAX_PENDING", 2)
    store = StoredResponses(Gate())
    pages = [Page(f"/{number}") for number in range(4)]
    for page in pages:
        await fill(store, page)
    assert [await body_of(store, page) for page in pages] == [None, None, b"old", b"old"]
    assert store.stats["store_dropped"] == 2


async def test_nothing_is_pending_for_ever() -> None:
    """What the backend has not taken in 5 s is served no longer."""
    clock = FakeClock()
    store = StoredResponses(Gate(), monotonic=clock)
    await fill(store, PAGE)
    for _ in range(5):
        await asyncio.sleep(0)
    assert store.writes._writing
    assert await body_of(store, PAGE) == b"old"
    clock.advance(PENDING_S + 0.1)
    assert (await body_of(store, PAGE), [*store.writes.pending]) == (None, [PAGE.key])


@pytest.mark.parametrize(
    ("keep_for", "waited"),
    [pytest.param(300, PENDING_S, id="for longer than any may"), pytest.param(3, 3, id="to its own end")],
)
async def test_write_that_has_waited(keep_for: float, waited: float) -> None:
    """A write that has waited for too long is dropped, and counted (F4)."""
    clock, backend = FakeClock(), Gate()
    backend.open.set()
    store = StoredResponses(backend, monotonic=clock)
    await fill(store, PAGE, keep_for=keep_for)
    clock.advance(waited)
    await written(store)
    assert (backend.entries, store.stats["store_dropped"]) == ([], 1)


async def test_time_that_is_left() -> None:
    """A write that waited is sent with the time that is left of its own."""
    clock, backend = FakeClock(), Gate()
    backend.open.set()
    store = StoredResponses(backend, monotonic=clock)
    await fill(store, PAGE, keep_for=100)
    clock.advance(4)
    await written(store)
    assert backend.timeouts[PAGE.key] == 96


@pytest.mark.parametrize("verb", ["set", "delete"])
async def test_direct_access_drops_what_is_pending(redis_server: Server, verb: str) -> None:
    """A key that is set or deleted directly is not overwritten by an entry that was on its way."""
    backend = RedisBackend(redis_server.url)
    store = StoredResponses(backend)
    await backend.ping()
    await fill(store, PAGE)
    if verb == "set":
        await backend.set(PAGE.key, "theirs", 60)
    else:
        await backend.delete(PAGE.key)
    assert await body_of(store, PAGE) is None
    await store.close()
    await backend.close()


QUIET = SimpleNamespace(histogram=lambda name, value: None, increment=lambda name: None)
"""A metrics client that nobody reads."""


@pytest.mark.parametrize(
    "wrapped",
    [
        pytest.param(lambda backend: backend, id="itself"),
        pytest.param(CompressedBackend, id="compressed"),
        pytest.param(lambda backend: MetricsBackend(backend, cast("Any", QUIET)), id="with metrics"),
        pytest.param(lambda backend: BackendRouter({"data": backend}), id="routed"),
    ],
)
def test_dropped_store_watches_no_more(wrapped: Callable[[CacheBackend], CacheBackend]) -> None:
    """However many stores a backend has had, it tells those that still live, and no others."""
    within = RedisBackend()
    backend = wrapped(within)
    stores = [StoredResponses(backend) for _ in range(3)]
    watched = [each._watchers for each in (within, backend) if isinstance(each, RedisBackend | CompressedBackend)]
    before = {len(watchers) for watchers in watched}
    del stores[1:]
    gc.collect()
    assert (before, {len(watchers) for watchers in watched}) == ({3}, {1})


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("", id="empty"),
        pytest.param("7", id="digits"),
        pytest.param('{"status": 200}', id="foreign json"),
        pytest.param("app-cache:####", id="no base64"),
        pytest.param("app-cache:", id="nothing in it"),
    ],
)
async def test_corrupt_entry(value: str) -> None:
    """What is no entry of this key is a miss, deleted once and counted."""
    backend = FourMethods()
    store = StoredResponses(backend)
    backend.values[PAGE.key] = value
    assert [await body_of(store, PAGE) for _ in range(2)] == [None, None]
    assert (PAGE.key in backend.values, store.stats["corrupt"]) == (False, 1)


async def test_entry_of_another_key() -> None:
    """An entry that is copied under another key is a miss (S23)."""
    backend, other = FourMethods(), Page("/users/8")
    store = StoredResponses(backend)
    await fill(store, other)
    await written(store)
    backend.values[PAGE.key] = backend.values[other.key]
    assert await body_of(store, PAGE) is None


async def test_variants() -> None:
    """Each variant is found by its own request fields, and by those alone (RFC 9111 §4.1)."""
    store = StoredResponses(MemoryBackend())
    german, english = (((b"accept-language", name),) for name in (b"de", b"en"))
    await fill(store, PAGE, b"hallo", request=german, vary="accept-language")
    await fill(store, PAGE, b"hello", request=english, vary="accept-language")
    assert (await body_of(store, PAGE, german), await body_of(store, PAGE, english)) == (b"hallo", b"hello")
    found = await look_up(store, PAGE)
    assert (found.entry, found.varies) == (None, True)


@pytest.mark.parametrize("restarted", [False, True], ids=["one process", "another process"])
async def test_variants_of_different_lifetimes(*, restarted: bool) -> None:
    """A variant that is kept for a short time does not shorten the time of those beside it."""
    clock = FakeClock()
    backend = MemoryBackend(clock=clock)
    store = StoredResponses(backend)
    german, english = (((b"accept-language", name),) for name in (b"de", b"en"))
    await fill(store, PAGE, b"hallo", keep_for=300.0, request=german, vary="accept-language")
    if restarted:
        store = StoredResponses(backend)
    await fill(store, PAGE, b"hello", keep_for=10.0, request=english, vary="accept-language")
    clock.advance(299)
    assert (await body_of(store, PAGE, german), await body_of(store, PAGE, english)) == (b"hallo", None)


async def test_least_used_variant_goes_first() -> None:
    """Under one key at most 32 variants are kept; one that was used lately outlives one that was not (S19)."""
    backend = MemoryBackend()
    store = StoredResponses(backend)
    requests = [((b"accept-language", b"%d" % number),) for number in range(MAX_VARIANTS + 1)]
    for request in requests[:-1]:
        await fill(store, PAGE, request=request, vary="accept-language")
    await body_of(store, PAGE, requests[0])
    await fill(store, PAGE, request=requests[-1], vary="accept-language")
    held = [await body_of(store, PAGE, request) is not None for request in requests]
    assert held == [True, False, *[True] * (MAX_VARIANTS - 1)]
    assert await backend.size() == MAX_VARIANTS + 1
    record = decode(await backend.get_bytes(PAGE.key) or b"", PAGE.key)
    assert isinstance(record, Variants)
    assert len(record.kept) == MAX_VARIANTS


async def test_more_variants_than_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look-ups of more responses that vary than a process remembers at once disturb each other in nothing."""
    monkeypatch.setattr("app_cache.store.MAX_REMEMBERED", 1)
    backend = FourMethods()
    store = StoredResponses(backend)
    pages = [Page(f"/{number}") for number in range(3)]
    for page in pages:
        await fill(store, page, request=(), vary="accept-language")
    await written(store)
    backend.pause = lambda: asyncio.sleep(0)
    bodies = await asyncio.gather(*(body_of(store, page, ()) for page in pages))
    assert (bodies, store.stats["look_up_failed"]) == ([b"old"] * 3, 0)


async def test_failure_is_a_miss_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """A backend that fails is a miss without a reading; the log has a line for each change of state."""
    backend = Gate()
    store = StoredResponses(backend)
    backend.away = True
    for _ in range(5):
        found = await look_up(store, PAGE)
        assert (found.entry, found.reading) == (None, None)
    backend.away = False
    await look_up(store, PAGE)
    lines = [record.getMessage().split()[0] for record in caplog.records]
    assert lines == ["cache.backend_failed"]
    assert store.stats["look_up_failed"] == 5


async def test_log_names_what_is_within(caplog: pytest.LogCaptureFixture) -> None:
    """The log names a backend around another with the one within."""
    backend = Gate()
    backend.away = True
    await look_up(StoredResponses(CompressedBackend(backend)), PAGE)
    assert "backend='CompressedBackend(Gate)'" in caplog.messages[0]


async def test_hanging_backend_costs_its_budget() -> None:
    """A backend that never answers is a miss after the time that one operation may take."""
    backend, tasks = FourMethods(), asyncio.all_tasks()
    backend.pause = lambda: asyncio.Event().wait()
    store = StoredResponses(backend)
    async with asyncio.timeout(5):
        assert (await look_up(store, PAGE)).reading is None
    for _ in range(5):
        await asyncio.sleep(0)
    assert asyncio.all_tasks() == tasks


async def test_owed_invalidation() -> None:
    """An invalidation that the backend did not get holds here at once, and is sent before an entry is trusted."""
    backend = Gate()
    backend.open.set()
    store, elsewhere = StoredResponses(backend), StoredResponses(backend)
    await fill(store, PAGE)
    await written(store)
    backend.away = True
    assert not (await store.invalidate(Order(tags=(tag_stamp("users"),)))).durable
    assert await body_of(store, PAGE) is None
    backend.away = False
    assert await body_of(store, PAGE) is None
    assert await body_of(elsewhere, PAGE) is None
    await fill(store, PAGE, b"new")
    assert await body_of(store, PAGE) == b"new"


async def test_order_that_cannot_work() -> None:
    """An invalidation that no backend could carry out is refused, and not owed to it."""
    store = StoredResponses(MemoryBackend())
    with pytest.raises(ConfigurationError, match="256"):
        await store.invalidate(Order(patterns=("x" * 257,)))
    await fill(store, PAGE)
    assert await body_of(store, PAGE) == b"old"


async def test_soft() -> None:
    """A softly invalidated entry is found, and marked as stale."""
    store = StoredResponses(MemoryBackend())
    await fill(store, PAGE)
    await store.invalidate(Order(tags=(tag_stamp("users"),), soft=True))
    found = await look_up(store, PAGE)
    assert (found.entry is not None, found.marked_stale) == (True, True)


async def test_close_leaves_nothing() -> None:
    """A closed store has written what was on its way and leaves no task."""
    backend, tasks = Gate(), asyncio.all_tasks()
    store = StoredResponses(backend)
    await fill(store, PAGE)
    closing = asyncio.create_task(store.close())
    await asyncio.sleep(0)
    backend.open.set()
    await closing
    assert backend.entries == [PAGE.key]
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == tasks


async def test_entry_on_a_text_backend_is_text() -> None:
    """On a backend that keeps text alone an entry is ASCII text that decodes to its bytes."""
    backend = FourMethods()
    store = StoredResponses(backend)
    await fill(store, PAGE)
    await written(store)
    found = await look_up(store, PAGE)
    assert found.entry is not None
    text = backend.values[PAGE.key]
    assert text.isascii()
    assert decode(from_text(text), PAGE.key) == found.entry


async def test_hung_server_costs_the_budget_of_each(redis_server: Server) -> None:
    """However many wait for the few connections of a hung server, none waits longer than one may take."""
    backend = RedisBackend(redis_server.url, max_connections=5)
    store, loop = StoredResponses(backend), asyncio.get_running_loop()

    async def seconds() -> float:
        begun = loop.time()
        await look_up(store, PAGE)
        return loop.time() - begun

    redis_server.pause()
    try:
        took = [max(await asyncio.gather(*(seconds() for _ in range(50)))) for _ in range(3)]
    finally:
        redis_server.resume()
    assert max(took) < 2 * backend.operation_timeout
    await backend.close()


async def test_owed_again_while_it_is_paid() -> None:
    """An invalidation that fails while the same one, owed from before, is being sent stays owed."""
    backend = Gate()
    backend.open.set()
    store, order = StoredResponses(backend), Order(tags=(tag_stamp("users"),))
    await fill(store, PAGE)
    backend.away = True
    await store.invalidate(order)
    backend.away = False
    held, answered, tokens = asyncio.Event(), asyncio.Event(), set[str]()
    stamp = f"cache:s:{tag_stamp('users')}"

    async def hold() -> None:
        if stamp in backend.values:
            tokens.add(backend.values[stamp])
        if len(tokens) == 2 and not held.is_set():
            held.set()
            await answered.wait()

    backend.pause = hold
    paying = asyncio.create_task(look_up(store, PAGE))
    await held.wait()
    backend.away = True
    assert not (await store.invalidate(order)).durable
    backend.away = False
    answered.set()
    await paying
    assert len(tokens) == 3
    assert not store.orders.owed


def backends_to_cancel() -> list[Any]:
    """Return what gives a backend of each kind."""
    return [
        pytest.param(lambda _: MemoryBackend(), id="memory"),
        pytest.param(lambda _: FourMethods(), id="custom"),
        pytest.param(lambda url: RedisBackend(url, operation_timeout=5.0), id="redis"),
    ]


@pytest.mark.parametrize("make", backends_to_cancel())
async def test_cancelled_invalidation(redis_server: Server, make: Callable[[str], CacheBackend]) -> None:
    """An invalidation that is cancelled, wherever it is, has its effect here at the next look-up (F31)."""
    backend = make(redis_server.url)
    if isinstance(backend, FourMethods):
        backend.pause = lambda: asyncio.sleep(0)
    store, steps = StoredResponses(backend), 1
    while True:
        await fill(store, PAGE)
        await written(store)
        task = asyncio.create_task(store.invalidate(Order(tags=(tag_stamp("users"),))))
        for _ in range(steps):
            await asyncio.sleep(0)
        over = task.done()
        task.cancel()
        await asyncio.wait({task})
        assert await body_of(store, PAGE) is None
        if over:
            break
        steps += 1
    assert steps < 1_000
    await store.close()
    await backend.close()


@pytest.mark.parametrize("make", backends_to_cancel())
async def test_cancelled_look_up(redis_server: Server, make: Callable[[str], CacheBackend]) -> None:
    """A look-up or a beginning that is cancelled, wherever it is, leaves all as it was, and no task (F31)."""
    backend, tasks = make(redis_server.url), asyncio.all_tasks()
    if isinstance(backend, FourMethods):
        backend.pause = lambda: asyncio.sleep(0)
    store = StoredResponses(backend)
    for steps in range(30):
        page = Page(f"/{steps}", tags=(f"tag {steps}",))
        task = asyncio.create_task(fill(store, page))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        await fill(store, page, b"again")
        assert await body_of(store, page) == b"again"
    await store.close()
    assert {task for task in asyncio.all_tasks() - tasks if not task.done()} == set()
    await backend.close()


class Refusing(FourMethods):
    """Gives what it has, and takes no entries."""

    async def set(self, key: str, value: str, timeout: int) -> None:
        if value.startswith("app-cache:"):
            raise BackendError("full")
        await super().set(key, value, timeout)


async def test_writes_that_fail(caplog: pytest.LogCaptureFixture) -> None:
    """Where reads go well and writes fail, each write is counted once and the log has one line (F8)."""
    store = StoredResponses(Refusing())
    for number in range(5):
        await fill(store, Page(f"/{number}"))
        await written(store)
        assert await body_of(store, Page(f"/{number}")) is None
    assert store.stats["store_failed"] == 5
    assert [record.getMessage().split()[0] for record in caplog.records] == ["cache.backend_failed"]


@pytest.mark.parametrize("late", [(), ("late",)], ids=["known tags", "late tags"])
async def test_overflow_by_bytes(monkeypatch: pytest.MonkeyPatch, late: tuple[str, ...]) -> None:
    """Beyond its bytes the oldest waiting writes are dropped, those that are not yet sealed included."""
    monkeypatch.setattr("app_cache.writes.MAX_PENDING_BYTES", 25_000)
    store = StoredResponses(Gate())
    for number in range(5):
        await fill(store, Page(f"/{number}", late=late), b"x" * 10_000)
    assert (len(store.writes.pending), store.stats["store_dropped"]) == (2, 3)
    assert 20_000 < store.writes._pending_bytes < 25_000


async def test_writes_of_one_key_keep_their_order() -> None:
    """A write waits for the one before it of the same key: the backend ends with the newest."""
    backend = Gate()
    store = StoredResponses(backend)
    for body in (b"first", b"second", b"third"):
        await fill(store, PAGE, body)
        for _ in range(20):
            await asyncio.sleep(0)
    assert backend.held == 1
    backend.open.set()
    await written(store)
    assert await body_of(StoredResponses(backend), PAGE) == b"third"
    assert not store.writes._pending_bytes


async def test_few_writes_at_once() -> None:
    """A few writes are on their way at once, however many wait (F4)."""
    backend = Gate()
    store = StoredResponses(backend)
    for number in range(3 * WRITERS):
        await fill(store, Page(f"/{number}"))
    for _ in range(20):
        await asyncio.sleep(0)
    assert backend.held == WRITERS
    backend.open.set()
    await written(store)
    assert len(backend.entries) == 3 * WRITERS


class SlowToDelete(FourMethods):
    """Tells who watches of each key that is set or deleted; a deletion waits until it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.may_delete = asyncio.Event()
        self.watchers = Watchers()

    async def set(self, key: str, value: str, timeout: int) -> None:
        await super().set(key, value, timeout)
        if not value.startswith("app-cache:"):
            self.watchers.tell(key)

    async def delete(self, key: str) -> None:
        await self.may_delete.wait()
        await super().delete(key)
        self.watchers.tell(key)

    def watch(self, told: Callable[[str], None]) -> Callable[[], object]:
        """Call *told* with each key that is set or deleted directly."""
        return self.watchers.add(told)


async def turn(times: int) -> None:
    """Let what is under way go on."""
    for _ in range(times):
        await asyncio.sleep(0)


class SlowHere(SlowToDelete):
    """Lives in this process, as a file does, and is slow to delete all the same."""

    def __init__(self) -> None:
        super().__init__()
        self._beside: dict[str, Any] = {}

    def beside(self, name: str, make: Callable[[], Any]) -> Any:
        """Return the object kept under *name*."""
        return self._beside.setdefault(name, make())


@pytest.mark.parametrize("kind", [SlowToDelete, SlowHere], ids=["elsewhere", "in this process"])
@pytest.mark.parametrize("before", [0, 1, 20])
@pytest.mark.parametrize("after", [0, 1, 20])
async def test_stored_again_while_it_is_deleted(before: int, after: int, kind: type[SlowToDelete]) -> None:
    """What is stored after a deletion of its key was asked for is there in the end, wherever that has got to."""
    backend = kind()
    store = StoredResponses(backend)
    await fill(store, PAGE, b"first")
    await written(store)
    store.drop(PAGE.key, store.next_turn())
    await turn(before)
    await fill(store, PAGE, b"second")
    await turn(after)
    backend.may_delete.set()
    await written(store)
    assert await body_of(StoredResponses(backend), PAGE) == b"second"


async def test_deletions_that_are_slow_hold_up_nothing() -> None:
    """What is stored in this process does not wait for the deletions of other keys."""
    backend = SlowHere()
    store = StoredResponses(backend)
    for number in range(2 * WRITERS):
        store.drop(Page(f"/{number}").key, store.next_turn())
    await turn(20)
    async with asyncio.timeout(10):
        await fill(store, PAGE)
    assert await body_of(store, PAGE) == b"old"
    backend.may_delete.set()
    await written(store)


async def test_deletion_of_what_is_set_directly() -> None:
    """A deletion that has not begun takes nothing away that was set directly since."""
    backend = SlowToDelete()
    store = StoredResponses(backend)
    await fill(store, PAGE)
    await written(store)
    store.drop(PAGE.key, store.next_turn())
    await backend.set(PAGE.key, "theirs", 60)
    backend.may_delete.set()
    await written(store)
    assert backend.values[PAGE.key] == "theirs"


async def test_overflow_of_deletions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deletions that wait are bounded as writes are: the oldest is given up, and counted."""
    monkeypatch.setattr("app_cache.writes.MAX_PENDING", WRITERS)
    backend = SlowToDelete()
    store = StoredResponses(backend)
    keys = [Page(f"/{number}").key for number in range(3 * WRITERS)]
    for key in keys:
        backend.values[key] = "old"
        store.drop(key, store.next_turn())
    assert ([*store.writes.pending], store.stats["delete_dropped"]) == (keys[-WRITERS:], 2 * WRITERS)
    backend.may_delete.set()
    await written(store)
    assert [key for key in keys if key in backend.values] == keys[:-WRITERS]


asker: ContextVar[str] = ContextVar("asker")


class Asked(FourMethods):
    """Remembers who asked for it whenever something is set."""

    def __init__(self) -> None:
        super().__init__()
        self.askers: list[str | None] = []

    async def set(self, key: str, value: str, timeout: int) -> None:
        if value.startswith("app-cache:"):
            self.askers.append(asker.get(None))
        await super().set(key, value, timeout)


async def test_writes_are_of_nobody() -> None:
    """What one request stored is never written in the context of another."""
    backend = Asked()
    store = StoredResponses(backend)
    for number in range(2 * WRITERS):
        asker.set(f"request {number}")
        await fill(store, Page(f"/{number}"))
    await written(store)
    assert backend.askers == [None] * 2 * WRITERS


class HangsIn(FourMethods):
    """Takes no entry in one loop."""

    operation_timeout = 30.0
    loop: asyncio.AbstractEventLoop | None = None

    async def set(self, key: str, value: str, timeout: int) -> None:
        if asyncio.get_running_loop() is self.loop and value.startswith("app-cache:"):
            await asyncio.Event().wait()
        await super().set(key, value, timeout)


def test_writes_of_each_loop() -> None:
    """Writes that hang in one loop hold up none of another's (F32)."""
    backend = HangsIn()
    store = StoredResponses(backend)

    async def hang() -> None:
        backend.loop = asyncio.get_running_loop()
        await keep(*(Page(f"/{number}") for number in range(WRITERS)))

    async def keep(*pages: Page) -> None:
        for page in pages:
            await fill(store, page)
        for _ in range(20):
            await asyncio.sleep(0)

    with asyncio.Runner() as runner, ThreadPoolExecutor() as threads:
        runner.run(hang())
        threads.submit(asyncio.run, keep(PAGE)).result()
    assert PAGE.key in backend.values


async def test_late_tag_of_what_was_invalidated() -> None:
    """What has a late tag is not stored if anything was invalidated since it began, and that is counted (F25)."""
    backend, page = FourMethods(), Page("/users/7", late=("late",))
    store = StoredResponses(backend)
    mark = await store.begin((await look_up(store, page)).reading, page.asked, 60.0)
    assert mark is not None
    await store.invalidate(Order(tags=(tag_stamp("others"),)))
    await store.keep(page.entry(mark), 60.0, (), frozenset(), store.next_turn())
    await written(store)
    assert (page.key in backend.values, store.stats["store_dropped"]) == (False, 1)


async def test_dropped_by_an_older_run() -> None:
    """What an older run shows to be unsuitable is not what a newer one has stored."""
    store = StoredResponses(MemoryBackend())
    older = store.next_turn()
    await fill(store, PAGE)
    store.drop(PAGE.key, older)
    assert await body_of(store, PAGE) == b"old"
    store.drop(PAGE.key, store.next_turn())
    assert await body_of(store, PAGE) is None


async def test_an_older_run_that_ends_after_many_others() -> None:
    """An older run takes the place of nothing newer, though thousands of other responses were stored meanwhile."""
    store = StoredResponses(MemoryBackend())
    older, found = store.next_turn(), await look_up(store, PAGE)
    mark = await store.begin(found.reading, PAGE.asked, 60.0)
    assert mark is not None
    await fill(store, PAGE, b"newer")
    for number in range(5 * MAX_REMEMBERED):
        await fill(store, Page(f"/{number}"))
    assert not await store.keep(PAGE.entry(mark, b"older"), 60.0, (), frozenset(), older)
    assert await body_of(store, PAGE) == b"newer"


async def test_owed_before_a_shared_answer_is_trusted() -> None:
    """What was waited for does not hold if an invalidation that names it is still owed."""
    backend = Gate()
    backend.open.set()
    store = StoredResponses(backend)
    found = await look_up(store, PAGE)
    mark = await store.begin(found.reading, PAGE.asked, 60.0)
    assert mark is not None
    entry = PAGE.entry(mark)
    assert await store.still_holds(entry, store.invalidations)
    backend.away = True
    await store.invalidate(Order(tags=(tag_stamp("users"),)))
    backend.away = False
    assert not await store.still_holds(entry, store.invalidations)

"""The clock in Redis and Valkey: what is evicted, garbled, restored or refused is a miss and never a hit."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from app_cache.backends.redis import RedisBackend
from app_cache.clock.base import Order, Verdict
from app_cache.clock.epochs import DIGITS
from app_cache.clock.names import tag_stamp
from app_cache.clock.script import MAX_BESIDE, MAX_TERMS, PART, TOUCH
from app_cache.errors import BackendError, Fault
from app_cache.store import StoredResponses
from app_cache.testing import FakeClock
from tests.stored import FourMethods, Page, begun, body_of, fill, filled, kept, verdict, written

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Sequence

    from app_cache.clock.base import InvalidationClock
    from tests.conftest import StartServer
    from tests.servers import Server

    Stores = Callable[..., StoredResponses]

pytestmark = pytest.mark.anyio

VALID, INVALID = Verdict.VALID, Verdict.INVALID
PAGE = Page("/users/7", tags=("user",), late=("late",))
CLOCK, BANS, STAMP = "{cache:}clock", "{cache:}bans", f"{{cache:}}s:{tag_stamp('user')}"
BY_TAG, BY_LATE_TAG = Order(tags=(tag_stamp("user"),)), Order(tags=(tag_stamp("late"),))
BY_PATTERN, ANOTHER, EVERYTHING = (
    Order(patterns=("/users/*",)),
    Order(patterns=("/nowhere/*",)),
    Order(everything=True),
)
OF_NOTHING = Order(tags=(tag_stamp("nobody"),))


class Observed(RedisBackend):
    """Counts what it is asked, and holds back answers while it has a *gate*."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, socket_timeout=5.0, **{"operation_timeout": 5.0, **options})
        self.asked: Counter[str] = Counter()
        self.gate: asyncio.Event | None = None
        self.held = asyncio.Event()

    async def get_beside(self, key: str, others: Sequence[str]) -> tuple[bytes | None, list[bytes | None]]:
        answer = await super().get_beside(key, others)
        await self._answered("get_beside")
        return answer

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        answer = await super().get_many(keys)
        await self._answered("get_many")
        return answer

    async def run_script(self, script: str, keys: Sequence[str], args: Sequence[str | int]) -> Any:
        answer = await super().run_script(script, keys, args)
        await self._answered("run_script")
        return answer

    async def _answered(self, verb: str) -> None:
        self.asked[verb] += 1
        if self.gate is not None:
            self.held.set()
            await self.gate.wait()


class ThroughText(RedisBackend):
    """Is asked for values by its own `get`, so that clock and value are read in two trips."""

    async def get(self, key: str) -> str | None:
        return await super().get(key)


@pytest.fixture
def clock() -> FakeClock:
    """The time of a process whose handlers are slow."""
    return FakeClock()


@pytest.fixture
async def stores(redis_server: Server) -> AsyncIterator[Stores]:
    """Give the stores of one more process each, on one server."""
    made: list[tuple[StoredResponses, RedisBackend]] = []

    def make(
        kind: type[RedisBackend] = Observed, server: Server = redis_server, **options: Any
    ) -> StoredResponses:
        backend = kind(server.url)
        made.append((StoredResponses(backend, **options), backend))
        return made[-1][0]

    yield make
    for store, backend in made:
        await store.close()
        await backend.close()


def keys_of(server: Server) -> list[str]:
    """Return all keys that *server* holds."""
    return sorted(key.decode() for key in server.command("KEYS", "*"))


def snapshot(server: Server) -> list[tuple[str, bytes, int]]:
    """Return all that *server* holds."""
    return [(key, server.command("GET", key), server.command("PTTL", key)) for key in keys_of(server)]


def restore(server: Server, held: list[tuple[str, bytes, int]]) -> None:
    """Let *server* hold what it held before, and nothing else."""
    server.command("FLUSHALL")
    for key, value, life in held:
        server.command("SET", key, value, "PX", life)


# What is there, and for how long.


async def test_every_key_ends_after_what_it_judges(redis_server: Server, stores: Stores) -> None:
    """Every key has an expiry; clock, bans and stamps outlive the entry that they judge."""
    clock = stores().clock

    def lives() -> dict[str, int]:
        return {key: redis_server.command("PTTL", key) for key in keys_of(redis_server)}

    def all_outlive() -> bool:
        entry = lives()[PAGE.key]
        return entry > 0 and all(life > entry for key, life in lives().items() if key != PAGE.key)

    await filled(clock, PAGE, keep_for=100)
    assert all_outlive()
    for order in (BY_PATTERN, BY_TAG, EVERYTHING, ANOTHER):
        await clock.invalidate(order)
    assert BANS in lives()
    assert all_outlive()
    await filled(clock, PAGE, keep_for=10_000)
    assert all_outlive()
    longest = lives()
    await filled(clock, PAGE, keep_for=1)
    assert all(life > longest[key] - 5_000 for key, life in lives().items() if key != PAGE.key)


@pytest.mark.parametrize("order", [BY_TAG, BY_PATTERN, EVERYTHING], ids=["tag", "pattern", "everything"])
async def test_invalidating_makes_nothing(redis_server: Server, stores: Stores, order: Order) -> None:
    """Only a fill makes a clock and stamps: an invalidation of nothing leaves nothing, and is done."""
    result = await stores().clock.invalidate(order)
    assert (result.durable, result.epoch) == (True, None)
    assert keys_of(redis_server) == []
    await filled(stores().clock, PAGE)
    before = keys_of(redis_server)
    await stores().clock.invalidate(OF_NOTHING)
    assert keys_of(redis_server) == before


async def test_a_tag_costs_one_write(redis_server: Server, stores: Stores) -> None:
    """An invalidation is one command to the server, however many tags and patterns it has."""
    store = stores()
    await filled(store.clock, PAGE)
    backend = store.backend
    assert isinstance(backend, Observed)
    backend.asked.clear()
    await store.clock.invalidate(
        Order(tags=BY_TAG.tags + BY_LATE_TAG.tags, patterns=("/a", "/b"), everything=True)
    )
    assert backend.asked == {"run_script": 1}


async def test_a_hit_is_one_round_trip(stores: Stores) -> None:
    """A look-up is one read; the bans are read once after they changed, and late tags are learned once."""
    store = stores()
    await fill(store, PAGE)
    await written(store)
    await store.invalidate(ANOTHER)
    backend = store.backend
    assert isinstance(backend, Observed)
    backend.asked.clear()
    for _ in range(10):
        assert await body_of(store, PAGE) == b"old"
    assert backend.asked == {"get_beside": 10, "get_many": 2}


@pytest.mark.parametrize("heard", [True, False], ids=["known here", "not known here"])
@pytest.mark.parametrize(
    "order", [BY_TAG, BY_LATE_TAG, BY_PATTERN, EVERYTHING], ids=["tag", "late", "pattern", "all"]
)
async def test_a_late_write_puts_out_nothing_newer(
    stores: Stores, clock: FakeClock, order: Order, *, heard: bool
) -> None:
    """What was filled before an invalidation is not written over what another process filled after it."""
    slow, quick = stores(monotonic=clock), stores()
    await everything_there(slow.clock)
    mark = await begun(slow.clock, PAGE)
    await quick.invalidate(order)
    await fill(quick, PAGE, b"new")
    await written(quick)
    if heard:
        await slow.clock.read(PAGE.asked)
    else:
        clock.advance(1)
    await slow.keep(PAGE.entry(mark, b"old"), 300, (), frozenset(), slow.next_turn())
    await written(slow)
    assert [await body_of(each, PAGE) for each in (slow, quick)] == [b"new", b"new"]


async def test_a_late_write_that_nothing_invalidated(stores: Stores, clock: FakeClock) -> None:
    """What took long is written, whatever else was invalidated meanwhile."""
    slow = stores(monotonic=clock)
    await everything_there(slow.clock)
    mark = await begun(slow.clock, PAGE)
    await stores().invalidate(ANOTHER)
    clock.advance(1)
    await slow.keep(PAGE.entry(mark, b"old"), 300, (), frozenset(), slow.next_turn())
    await written(slow)
    assert await body_of(stores(), PAGE) == b"old"


async def test_a_write_asks_for_nothing(stores: Stores, clock: FakeClock) -> None:
    """What is written soon after its look-up is written without asking for the clock once more."""
    store = stores(monotonic=clock)
    await everything_there(store.clock)
    backend = store.backend
    assert isinstance(backend, Observed)
    backend.asked.clear()
    await fill(store, PAGE)
    await written(store)
    assert backend.asked == {"get_beside": 1}


async def test_two_trips(stores: Stores) -> None:
    """A backend that has its own way to read a value is asked for the clock first: nothing old is served."""
    store = stores(ThroughText)
    await fill(store, PAGE)
    await written(store)
    assert await body_of(store, PAGE) == b"old"
    await store.invalidate(BY_LATE_TAG)
    assert await body_of(store, PAGE) is None


async def test_scripts_are_loaded_again(redis_server: Server, stores: Stores) -> None:
    """A server that forgot the scripts is told them again."""
    clock = stores().clock
    mark = await filled(clock, PAGE)
    redis_server.command("SCRIPT FLUSH")
    await clock.invalidate(BY_TAG)
    assert await verdict(clock, PAGE, mark) is INVALID
    redis_server.command("SCRIPT FLUSH")
    assert await verdict(clock, PAGE, await filled(clock, PAGE)) is VALID


# What is evicted.


async def everything_there(clock: InvalidationClock) -> Any:
    """Return the mark of a page that is stored under a clock that knows of bans."""
    await filled(clock, PAGE)
    await clock.invalidate(ANOTHER)
    return await filled(clock, PAGE)


@pytest.mark.parametrize(
    "order", [BY_TAG, BY_LATE_TAG, BY_PATTERN, EVERYTHING], ids=["tag", "late", "pattern", "all"]
)
async def test_evicted_before(redis_server: Server, stores: Stores, order: Order) -> None:
    """Whatever key is gone, an invalidation that comes after it has its effect."""
    clock = stores().clock
    await everything_there(clock)
    for key in keys_of(redis_server):
        mark = await everything_there(clock)
        redis_server.command("DEL", key)
        await clock.invalidate(order)
        for each in (clock, stores().clock):
            assert await verdict(each, PAGE, mark) is INVALID
        await filled(clock, PAGE)
        assert await verdict(stores().clock, PAGE, mark) is INVALID


@pytest.mark.parametrize(
    "order", [BY_TAG, BY_LATE_TAG, BY_PATTERN, EVERYTHING], ids=["tag", "late", "pattern", "all"]
)
async def test_evicted_after(redis_server: Server, stores: Stores, order: Order) -> None:
    """Whatever key is gone after an invalidation, what it named stays invalid, whoever fills anew."""
    clock = stores().clock
    await everything_there(clock)
    for key in keys_of(redis_server):
        mark = await everything_there(clock)
        await clock.invalidate(order)
        redis_server.command("DEL", key)
        for each in (clock, stores().clock):
            assert await verdict(each, PAGE, mark) is INVALID
        await filled(clock, PAGE)
        await clock.invalidate(ANOTHER)
        assert await verdict(stores().clock, PAGE, mark) is INVALID


@pytest.mark.parametrize(
    "order", [BY_TAG, BY_LATE_TAG, BY_PATTERN, EVERYTHING], ids=["tag", "late", "pattern", "all"]
)
async def test_evicted_during_a_fill(redis_server: Server, stores: Stores, order: Order) -> None:
    """Whatever key is gone before an invalidation, a fill that it raced does not store what is valid."""
    clock = stores().clock
    await everything_there(clock)
    for key in keys_of(redis_server):
        await everything_there(clock)
        mark = await begun(clock, PAGE)
        redis_server.command("DEL", key)
        await clock.invalidate(order)
        await filled(stores().clock, Page("/other", tags=("user", "late")))
        await kept(clock, PAGE, mark)
        for each in (clock, stores().clock):
            assert await verdict(each, PAGE, mark) is INVALID


@pytest.mark.parametrize("key", [CLOCK, STAMP, BANS], ids=["clock", "stamp", "bans"])
async def test_evicted_alone(redis_server: Server, stores: Stores, key: str) -> None:
    """What is judged by a key that is gone is a miss, and what is filled after that is valid."""
    clock = stores().clock
    mark = await filled(clock, PAGE)
    await clock.invalidate(ANOTHER)
    assert await verdict(clock, PAGE, mark) is VALID
    redis_server.command("DEL", key)
    for each in (clock, stores().clock):
        newer = await verdict(each, PAGE, mark)
        assert newer is INVALID or (key == BANS and each is clock)
    assert await verdict(stores().clock, PAGE, await filled(clock, PAGE)) is VALID


async def test_bans_gone_and_begun_anew(redis_server: Server, stores: Stores) -> None:
    """A list of bans that was lost and begun anew is complete only for what is newer than what was lost."""
    clock = stores().clock
    old = await filled(clock, PAGE)
    await clock.invalidate(BY_PATTERN)
    newer = await filled(clock, Page("/items/1"))
    redis_server.command("DEL", BANS)
    await clock.invalidate(ANOTHER)
    fresh = stores().clock
    assert await verdict(fresh, PAGE, old) is INVALID
    assert await verdict(fresh, Page("/items/1"), newer) is VALID


async def test_emptied(redis_server: Server, stores: Stores) -> None:
    """After the server was emptied nothing that was filled before is valid, whatever is held in memory (F5)."""
    clock = stores().clock
    mark = await everything_there(clock)
    redis_server.command("FLUSHALL")
    assert await verdict(clock, PAGE, mark) is INVALID
    await kept(clock, PAGE, mark)
    assert await verdict(clock, PAGE, mark) is INVALID
    assert await verdict(clock, PAGE, await filled(clock, PAGE)) is VALID


async def test_pending_writes_do_not_outlive_the_clock(redis_server: Server, stores: Stores) -> None:
    """An entry that waits to be written is a miss once the server was emptied (F5)."""
    store = stores()
    await fill(store, PAGE)
    redis_server.command("FLUSHALL")
    assert await body_of(store, PAGE) is None
    await written(store)
    assert await body_of(store, PAGE) is None


async def test_a_clock_is_never_made_twice(stores: Stores) -> None:
    """A script that is sent again, as a retry does, makes another generation than it made before."""
    backend = stores().backend
    assert isinstance(backend, RedisBackend)
    made = []
    for _ in range(2):
        made.append(await backend.run_script(TOUCH, [CLOCK, BANS], ["ab", 60_000, 0]))
        await backend.delete(CLOCK)
    assert made[0] != made[1]


# What is garbage.

GARBAGE = {
    "empty": b"",
    "a word": b"x",
    "digits": b"7",
    "no generation": b" 1 0 0 0",
    "no time of a beginning": b"ab 1 0 0 0",
    "a short time of a beginning": b"123456789012345ab 1 0 0 0",
    "not hexadecimal": b"xyz 1 0 0 0",
    "too few": b"1234567890123456ab 1 0",
    "too many": b"1234567890123456ab 1 0 0 0 0 0",
    "negative": b"1234567890123456ab -1 0 0 0",
    "fraction": b"1234567890123456ab 1.5 0 0 0",
    "exponent": b"1234567890123456ab 1e3 0 0 0",
    "hexadecimal": b"1234567890123456ab 0x9 0 0 0",
    "no ASCII digit": "1234567890123456ab ² 0 0 0".encode("latin-1"),
    "digits of another script": "1234567890123456ab ٣ 0 0 0".encode(),
    "too large": b"1234567890123456ab 99999999999999999999 0 0 0",
    "far too large": b"1234567890123456ab " + b"9" * 5_000 + b" 0 0 0",
    "end of line": b"1234567890123456ab 1 0 0 0\n",
    "two blanks": b"1234567890123456ab  1 0 0 0",
    "no text": b"\xff\x00\xfe",
    "large": b"a" * 300_000,
    "a stamp": b"1234567890123456ab 1 0",
    "a term without its epoch": b"1234567890123456ab 1 0 0 0 ab",
    "a term with nothing for its epoch": b"1234567890123456ab 1 0 0 0 ab:",
    "a term of no history": b"1234567890123456ab 1 0 0 0 :1",
    "a term that is not hexadecimal": b"1234567890123456ab 1 0 0 0 xy:1",
    "a term that is too large": b"1234567890123456ab 1 0 0 0 ab:9999999999999999",
    "two blanks before a term": b"1234567890123456ab 1 0 0 0  ab:1",
    "a blank after a term": b"1234567890123456ab 1 0 0 0 ab:1 ",
    "two terms in one": b"1234567890123456ab 1 0 0 0 ab:1ab:2",
    "JSON": b'{"epoch": 1}',
}


def damaged(text: bytes) -> dict[str, bytes]:
    """Return garbage that was made of *text*."""
    return {"cut short": text[:-2], "a byte more": text + b"x", "a field less": text.rpartition(b" ")[0]}


@pytest.mark.parametrize("key", [CLOCK, STAMP, BANS], ids=["clock", "stamp", "bans"])
async def test_garbage(redis_server: Server, stores: Stores, key: str) -> None:
    """A clock, stamp or list that cannot be read, or is no text, is as if it were gone: a miss, and it heals."""
    clock = stores().clock
    mark = await filled(clock, PAGE)
    await clock.invalidate(ANOTHER)
    garbage = GARBAGE | damaged(redis_server.command("GET", key))
    puts = {name: ("SET", key, text, "PX", 60_000) for name, text in garbage.items()}
    for name, put in (puts | {"a list": ("RPUSH", key, "x"), "a set": ("SADD", key, "x")}).items():
        mark = await filled(clock, PAGE)
        await clock.invalidate(ANOTHER)
        redis_server.command("DEL", key)
        redis_server.command(*put)
        assert await verdict(stores().clock, PAGE, mark) is INVALID, name
        for order in (BY_TAG, BY_PATTERN, EVERYTHING):
            await clock.invalidate(order)
        for each in (clock, stores().clock):
            assert await verdict(each, PAGE, mark) is INVALID, name
        newer = await filled(stores().clock, PAGE)
        assert await verdict(stores().clock, PAGE, newer) is VALID, name


async def test_what_may_not_be_read(redis_server: Server, stores: Stores) -> None:
    """A clock that a script may not read is not taken for one that is gone: that is an error, and it stays."""
    clock = stores().clock
    await filled(clock, PAGE)
    before = redis_server.command("GET", CLOCK)
    redis_server.command("ACL", "SETUSER", "default", "-get")
    try:
        for order in (BY_TAG, BY_PATTERN, EVERYTHING):
            with pytest.raises(BackendError) as refused:
                await clock.invalidate(order)
            assert refused.value.fault is Fault.DENIED
    finally:
        redis_server.command("ACL", "SETUSER", "default", "+@all")
    assert redis_server.command("GET", CLOCK) == before


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b"9 0 p", id="too few fields"),
        pytest.param(b"9 0 x %2A", id="a kind that nobody knows"),
        pytest.param(b"9 2 p %2A", id="neither hard nor soft"),
        pytest.param(b"x 0 p %2A", id="no epoch"),
        pytest.param("² 0 p %2A".encode("latin-1"), id="no ASCII digit"),
        pytest.param(b"9" * 5_000 + b" 0 p %2A", id="far too large"),
        pytest.param(b"9 0 p %FF%FE", id="no text"),
        pytest.param(b"9 0 p " + b"x" * 5_000, id="a pattern that is too long"),
        pytest.param(b"", id="empty"),
    ],
)
async def test_garbage_among_bans(redis_server: Server, stores: Stores, line: bytes) -> None:
    """One ban that cannot be read may be any: what is older than the newest is a miss, and nothing fails."""
    clock = stores().clock
    mark = await filled(clock, PAGE)
    await clock.invalidate(ANOTHER)
    head, newest = redis_server.command("GET", BANS).split(b"\n")
    redis_server.command("SET", BANS, b"\n".join((head, line, newest)), "PX", 60_000)
    assert await verdict(stores().clock, PAGE, mark) is INVALID
    newer = await filled(stores().clock, PAGE)
    await clock.invalidate(BY_PATTERN)
    assert await verdict(stores().clock, PAGE, newer) is INVALID


# What goes back in time.


@pytest.mark.parametrize(
    "order",
    [BY_TAG, BY_LATE_TAG, BY_PATTERN, EVERYTHING, OF_NOTHING],
    ids=["tag", "late", "pattern", "all", "nothing"],
)
@pytest.mark.parametrize("first", ["who invalidated", "who looked"])
async def test_older_snapshot(redis_server: Server, stores: Stores, order: Order, first: str) -> None:
    """A server that went back to before an invalidation does not bring back what it named, to nobody."""
    here, there, elsewhere = stores().clock, stores().clock, stores().clock
    mark = await everything_there(here)
    held = snapshot(redis_server)
    await here.invalidate(order)
    await verdict(there, PAGE, mark)
    restore(redis_server, held)
    witness = here if first == "who invalidated" else there
    assert await verdict(witness, PAGE, mark) is INVALID
    for clock in (here, there, elsewhere):
        assert await verdict(clock, PAGE, mark) is INVALID
    newer = await filled(there, PAGE)
    for clock in (here, there, elsewhere):
        assert await verdict(clock, PAGE, newer) is VALID


@pytest.mark.parametrize("others", [1, 2, 5])
@pytest.mark.parametrize("first", ["who invalidated", "who looked", "a new invalidation"])
async def test_overtaken_after_an_older_snapshot(
    redis_server: Server, stores: Stores, first: str, others: int
) -> None:
    """What a failover lost is missed by who saw it, however often others have invalidated since (F5)."""
    here, there, elsewhere = stores().clock, stores().clock, stores().clock
    mark = await everything_there(here)
    held = snapshot(redis_server)
    await here.invalidate(BY_TAG)
    await verdict(there, PAGE, mark)
    restore(redis_server, held)
    redis_server.command("DEBUG", "CHANGE-REPL-ID")
    for _ in range(others):
        await elsewhere.invalidate(OF_NOTHING)
    if first == "a new invalidation":
        assert (await here.invalidate(OF_NOTHING)).epoch is None
    for clock in (there, here, elsewhere) if first == "who looked" else (here, there, elsewhere):
        assert await verdict(clock, PAGE, mark) is INVALID
    newer = await filled(there, PAGE)
    for clock in (here, there, elsewhere, stores().clock):
        assert await verdict(clock, PAGE, newer) is VALID


async def test_lost_before_its_answer_came(redis_server: Server, stores: Stores) -> None:
    """An invalidation whose answer comes when what took its place has been seen already is not forgotten (F5)."""
    store = stores()
    mark = await everything_there(store.clock)
    held = snapshot(redis_server)
    backend = store.backend
    assert isinstance(backend, Observed)
    backend.gate = gate = asyncio.Event()
    slow = asyncio.create_task(store.clock.invalidate(BY_TAG))
    await backend.held.wait()
    backend.gate = None
    restore(redis_server, held)
    redis_server.command("DEBUG", "CHANGE-REPL-ID")
    await stores().clock.invalidate(OF_NOTHING)
    assert await verdict(store.clock, PAGE, mark) is VALID
    gate.set()
    assert (await slow).epoch is None
    for clock in (store.clock, stores().clock):
        assert await verdict(clock, PAGE, mark) is INVALID


async def test_filled_before_a_failover(redis_server: Server, stores: Stores) -> None:
    """What was filled under an epoch that a failover lost stays invalid when others come as far again (F6)."""
    slow, others = stores().clock, stores().clock
    await everything_there(slow)
    held = snapshot(redis_server)
    for _ in range(2):
        await slow.invalidate(OF_NOTHING)
    mark = await begun(slow, PAGE)
    restore(redis_server, held)
    redis_server.command("DEBUG", "CHANGE-REPL-ID")
    await kept(slow, PAGE, mark)
    for order in (BY_TAG, OF_NOTHING, OF_NOTHING):
        await others.invalidate(order)
        assert await verdict(others, PAGE, mark) is INVALID


async def test_invalidated_where_no_clock_was(redis_server: Server, stores: Stores) -> None:
    """An invalidation that met no clock is not undone by the clock that an older snapshot brings back (F5)."""
    for clock in (stores().clock, stores().clock):
        mark = await everything_there(clock)
        held = snapshot(redis_server)
        redis_server.command("DEL", CLOCK)
        await clock.invalidate(BY_TAG)
        restore(redis_server, held)
        assert await verdict(clock, PAGE, mark) is INVALID
        assert await verdict(clock, PAGE, await filled(clock, PAGE)) is VALID


async def test_invalidated_where_nothing_was_known(redis_server: Server, stores: Stores) -> None:
    """So it is where the process that invalidated had never seen a clock."""
    mark = await everything_there(stores().clock)
    held = snapshot(redis_server)
    redis_server.command("FLUSHALL")
    clock = stores().clock
    await clock.invalidate(BY_TAG)
    restore(redis_server, held)
    assert await verdict(clock, PAGE, mark) is INVALID


async def test_older_life_that_nobody_met(redis_server: Server, stores: Stores) -> None:
    """A clock that began before that of this process is older, though this process never met it (F5)."""
    mark = await everything_there(stores().clock)
    held = snapshot(redis_server)
    redis_server.command("FLUSHALL")
    clock = stores().clock
    await filled(clock, PAGE)
    await clock.invalidate(BY_TAG)
    restore(redis_server, held)
    for each in (clock, stores().clock):
        assert await verdict(each, PAGE, mark) is INVALID


async def test_a_server_whose_time_goes_behind(redis_server: Server, stores: Stores) -> None:
    """A clock that is made where the time goes behind is newer than what its maker has seen, and stays."""
    await filled(stores().clock, PAGE)
    generation, rest = redis_server.command("GET", CLOCK).split(b" ", 1)
    ahead = b"%016d" % (int(generation[:DIGITS]) + 10**12) + generation[DIGITS:]
    redis_server.command("SET", CLOCK, ahead + b" " + rest, "KEEPTTL")
    clock = stores().clock
    await filled(clock, PAGE)
    redis_server.command("FLUSHALL")
    assert await verdict(clock, PAGE, await filled(clock, PAGE)) is VALID
    assert redis_server.command("GET", CLOCK) > ahead


@pytest.mark.parametrize("asks", ["a reader", "who invalidates"])
async def test_one_life_is_ended_once(redis_server: Server, stores: Stores, asks: str) -> None:
    """Where the time goes behind, a process that fills nothing ends the life of the clock that it meets once."""
    await filled(stores().clock, PAGE)
    generation, rest = redis_server.command("GET", CLOCK).split(b" ", 1)
    ahead = b"%016d" % (int(generation[:DIGITS]) + 10**12) + generation[DIGITS:]
    redis_server.command("SET", CLOCK, ahead + b" " + rest, "KEEPTTL")
    clock, filler = stores().clock, stores().clock
    await clock.read(PAGE.asked)
    redis_server.command("FLUSHALL")
    ask = clock.read(PAGE.asked) if asks == "a reader" else clock.invalidate(OF_NOTHING)
    await filled(filler, PAGE)
    await ask
    mark = await filled(filler, PAGE)
    for _ in range(3):
        await (clock.read(PAGE.asked) if asks == "a reader" else clock.invalidate(OF_NOTHING))
        assert await verdict(filler, PAGE, mark) is VALID


async def test_a_number_that_is_none(redis_server: Server, stores: Stores) -> None:
    """A clock whose number is beyond what Lua can count is no clock, for nobody could begin a later one."""
    await filled(stores().clock, PAGE)
    text = redis_server.command("GET", CLOCK)
    redis_server.command("SET", CLOCK, b"9" + text[1:], "KEEPTTL")
    clock = stores().clock
    mark = await filled(clock, PAGE)
    await clock.invalidate(OF_NOTHING)
    assert await verdict(stores().clock, PAGE, mark) is VALID


async def test_invalidating_what_cannot_be_read(redis_server: Server, stores: Stores) -> None:
    """A clock that cannot be read is gone after an invalidation, for whoever could read it."""
    await filled(stores().clock, PAGE)
    redis_server.command("SET", CLOCK, b"ab 1 0 0 0", "KEEPTTL")
    await stores().clock.invalidate(BY_TAG)
    assert redis_server.command("GET", CLOCK) is None


async def test_a_clock_that_went_back_before_a_fill(redis_server: Server, stores: Stores) -> None:
    """A fill that finds out by the clock it was given that the server went back stores nothing."""
    clock, others = stores().clock, stores().clock
    mark = await everything_there(clock)
    held = snapshot(redis_server)
    await clock.invalidate(BY_TAG)
    redis_server.command("FLUSHALL")
    _, reading = await clock.look_up(PAGE.key, PAGE.asked)
    restore(redis_server, held)
    redis_server.command("DEBUG", "CHANGE-REPL-ID")
    for _ in range(2):
        await others.invalidate(OF_NOTHING)
    assert await clock.begin(reading, PAGE.asked, 300.0) is None
    for each in (clock, others):
        assert await verdict(each, PAGE, mark) is INVALID


async def test_overtaken_after_a_failover(start_server: StartServer, stores: Stores) -> None:
    """An invalidation at a primary that was already replaced is not lost, once it follows its replacement (F6)."""
    old, new = start_server(), start_server()
    await following(new, old)
    here, there = stores(server=old).clock, stores(server=new).clock
    mark = await everything_there(here)
    await following(new, old)
    new.command("REPLICAOF", "NO", "ONE")
    await here.invalidate(BY_TAG)
    for _ in range(2):
        await there.invalidate(OF_NOTHING)
    assert await verdict(there, PAGE, mark) is VALID
    await following(old, new)
    old.command("REPLICAOF", "NO", "ONE")
    for clock in (here, stores(server=old).clock):
        assert await verdict(clock, PAGE, mark) is INVALID


async def following(replica: Server, primary: Server) -> None:
    """Return when *replica* has all that *primary* has."""
    replica.command("REPLICAOF", "127.0.0.1", primary.port)
    async with asyncio.timeout(20):
        while replica.command("INFO", "replication")["master_link_status"] != "up":  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    primary.command("WAIT", "1", "10000")


async def test_failovers_that_lose_nothing(redis_server: Server, stores: Stores) -> None:
    """A server that goes on as another's heir with all it had costs only what was filled before eight of them."""
    clock = stores().clock
    generation = (await begun(clock, PAGE)).generation
    for _ in range(2):
        mark = await everything_there(clock)
        for number in range(MAX_TERMS):
            for each in (clock, stores().clock):
                assert await verdict(each, PAGE, mark) is VALID, number
            redis_server.command("DEBUG", "CHANGE-REPL-ID")
            for _ in range(2):
                await stores().clock.invalidate(OF_NOTHING)
        assert await verdict(clock, PAGE, mark) is INVALID
    assert (await begun(clock, PAGE)).generation == generation
    assert redis_server.command("GET", CLOCK).count(b":") == MAX_TERMS


async def test_away_for_too_many_failovers(redis_server: Server, stores: Stores) -> None:
    """A process that cannot know any more whether something was lost takes it so, once."""
    clock = stores().clock
    await everything_there(clock)
    for _ in range(MAX_TERMS + 1):
        redis_server.command("DEBUG", "CHANGE-REPL-ID")
        await stores().clock.invalidate(OF_NOTHING)
    mark = await filled(stores().clock, PAGE)
    assert await verdict(clock, PAGE, mark) is INVALID
    assert await verdict(clock, PAGE, await filled(stores().clock, PAGE)) is VALID


async def test_older_life_of_the_clock(redis_server: Server, stores: Stores) -> None:
    """A server that went back to a clock which was gone since does not bring back what that one judged."""
    clock = stores().clock
    mark = await everything_there(clock)
    held = snapshot(redis_server)
    redis_server.command("FLUSHALL")
    await filled(clock, PAGE)
    await clock.invalidate(BY_TAG)
    restore(redis_server, held)
    assert await verdict(clock, PAGE, mark) is INVALID
    assert await verdict(stores().clock, PAGE, mark) is INVALID


async def test_invalidating_after_an_older_snapshot(redis_server: Server, stores: Stores) -> None:
    """An invalidation finds out by itself that the server went back."""
    clock = stores().clock
    mark = await everything_there(clock)
    held = snapshot(redis_server)
    for order in (BY_TAG, OF_NOTHING, OF_NOTHING):
        await clock.invalidate(order)
    restore(redis_server, held)
    result = await clock.invalidate(OF_NOTHING)
    assert (result.durable, result.epoch) == (True, None)
    assert await verdict(stores().clock, PAGE, mark) is INVALID


@pytest.mark.parametrize("asked", ["look_up", "read", "invalidate"])
async def test_an_answer_that_was_overtaken(redis_server: Server, stores: Stores, asked: str) -> None:
    """An answer that comes after a newer one is no sign that the server went back."""
    store = stores()
    mark = await filled(store.clock, PAGE)
    generation = redis_server.command("GET", CLOCK).split()[0]
    backend = store.backend
    assert isinstance(backend, Observed)
    backend.gate = gate = asyncio.Event()
    ask: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {
        "look_up": lambda: store.clock.look_up(PAGE.key, PAGE.asked),
        "read": lambda: store.clock.read(PAGE.stored),
        "invalidate": lambda: store.clock.invalidate(OF_NOTHING),
    }
    slow = asyncio.create_task(ask[asked]())
    await backend.held.wait()
    backend.gate = None
    await store.clock.invalidate(OF_NOTHING)
    assert await verdict(store.clock, PAGE, mark) is VALID
    gate.set()
    await slow
    assert await verdict(store.clock, PAGE, mark) is VALID
    assert redis_server.command("GET", CLOCK).split()[0] == generation


# What is refused.


async def test_read_only_replica(redis_server: Server, stores: Stores) -> None:
    """On a server that may not be written reads hit, and an invalidation is not said to be done (F9)."""
    store, elsewhere = stores(), stores()
    await fill(store, PAGE)
    await written(store)
    redis_server.command("REPLICAOF", "127.0.0.1", "1")
    try:
        assert await body_of(store, PAGE) == b"old"
        with pytest.raises(BackendError):
            await store.clock.invalidate(BY_TAG)
        assert not (await store.invalidate(BY_TAG)).durable
        assert await body_of(store, PAGE) is None
        assert await body_of(elsewhere, PAGE) == b"old"
    finally:
        redis_server.command("REPLICAOF", "NO", "ONE")
    assert await body_of(store, PAGE) is None
    assert await body_of(elsewhere, PAGE) is None


async def test_full(start_server: StartServer, stores: Stores) -> None:
    """On a server that is full reads hit, writes fail and are counted, and an invalidation has its effect (F8)."""
    server = start_server("--maxmemory-policy", "noeviction")
    store, elsewhere = stores(server=server), stores(server=server)
    others = [Page(f"/items/{number}", tags=("item",)) for number in range(3)]
    await fill(store, PAGE)
    await fill(store, others[0])
    await written(store)
    server.command("CONFIG", "SET", "maxmemory", "1")
    assert await body_of(store, PAGE) == b"old"
    await fill(store, others[1])
    await written(store)
    assert (await body_of(elsewhere, others[1]), store.stats["store_failed"]) == (None, 1)
    for order in (BY_TAG, Order(patterns=("/items/*",))):
        assert (await store.invalidate(order)).durable
    for each in (store, elsewhere):
        assert [await body_of(each, page) for page in (PAGE, others[0])] == [None, None]


# What goes on beside.


async def test_closing_ends_what_goes_on(stores: Stores) -> None:
    """A clock that was closed leaves no task, also where the server does not answer."""
    store = stores()
    await filled(store.clock, Page("/other"))
    backend, tasks = store.backend, asyncio.all_tasks()
    assert isinstance(backend, Observed)
    _, reading = await store.clock.look_up(PAGE.key, PAGE.asked)
    backend.gate = asyncio.Event()
    await store.clock.begin(reading, PAGE.asked, 300.0)
    assert len(asyncio.all_tasks()) == len(tasks) + 1
    await store.clock.close()
    assert asyncio.all_tasks() == tasks
    backend.gate = None


class HungScripts(FourMethods):
    """Has a clock, and answers no script."""

    operation_timeout = 0.05

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        return [b"1234567890123456ab 1 0 0 0", *(None for _ in keys[1:])]

    async def run_script(self, script: str, keys: Sequence[str], args: Sequence[str | int]) -> Any:
        await asyncio.Event().wait()


async def test_little_goes_on_where_scripts_hang() -> None:
    """Stamps that a server does not make are waited for by few tasks, and for the time of one operation."""
    clock, tasks = StoredResponses(HungScripts()).clock, asyncio.all_tasks()
    for number in range(2 * MAX_BESIDE):
        await begun(clock, Page(f"/{number}"))
    beside = asyncio.all_tasks() - tasks
    assert len(beside) == MAX_BESIDE
    _, late = await asyncio.wait(beside, timeout=30)
    assert not late


class Forgetful(Observed):
    """Fails at each second script."""

    async def run_script(self, script: str, keys: Sequence[str], args: Sequence[str | int]) -> Any:
        if self.asked["run_script"] % 2:
            self.asked["run_script"] += 1
            raise BackendError("away")
        return await super().run_script(script, keys, args)


@pytest.mark.parametrize("soft", [pytest.param(False, id="hard"), pytest.param(True, id="soft")])
async def test_many_tags(stores: Stores, soft: bool) -> None:
    """An invalidation of many tags is done in parts; those that were sent are not sent again where one failed."""
    here, there = stores(Forgetful), stores().clock
    names = [f"tag {number}" for number in range(2 * PART + 1)]
    pages = [Page(f"/{at}", tags=(names[at],)) for at in (0, PART - 1, PART, -1)]
    marks = [await filled(there, page) for page in [*pages, PAGE]]
    order, sent = Order(tags=tuple(map(tag_stamp, names)), patterns=("/items/*",), soft=soft), set[object]()
    for left in (2, 1):
        with pytest.raises(BackendError):
            await here.clock.invalidate(order, sent)
        assert len(sent) == 3 - left
    assert (await here.clock.invalidate(order, sent)).epoch == 4
    said = [await verdict(there, page, mark) for page, mark in zip([*pages, PAGE], marks, strict=True)]
    assert said == [Verdict.STALE if soft else INVALID] * 4 + [VALID]

"""A hit that a backend afar lets be given again, by one trip, is what the exchange would have given."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from dependency_injector import providers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from app_cache import (
    CacheMiddleware,
    CachePolicy,
    DefaultKeyGenerator,
    MemoryBackend,
    MetricsBackend,
    RedisBackend,
)
from app_cache.breaker import OPENS_AFTER, State
from app_cache.clock.base import Order
from app_cache.clock.names import tag_stamp
from app_cache.fastpath import OVERHEAD, ReadyAfar
from app_cache.store import StoredResponses
from app_cache.testing import FakeClock
from containers import CacheContainer, install
from tests.clients import HIT, MISS, counting_app, get, told, told_of
from tests.middleware.apps import messages_of, scope_of
from tests.test_fastpath import NEVER_AGAIN, PATHS, application, plain_requests, requests
from tests.twins import Driven

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from starlette.requests import Request

    from app_cache.backends.base import CacheBackend
    from tests.servers import Server

pytestmark = pytest.mark.anyio

PATIENT_S = 10.0
NAMESPACES = (f"n{number}" for number in count())
"""One that no other test has, for each cache."""

changes = st.one_of(
    st.tuples(st.just("advance"), st.sampled_from([0.25, 1.0, 7.0, 19.5, 60.0])),
    st.tuples(st.just("back"), st.just(5.0)),
    st.tuples(st.just("tag"), st.sampled_from(["all", "n1", "q1", "h1"]), st.booleans()),
    st.tuples(st.just("elsewhere"), st.sampled_from(["all", "n1", "q1", "h1"]), st.booleans()),
    st.tuples(st.just("pattern"), st.sampled_from(["/tagged/*", "*a*", "/none"]), st.booleans()),
    st.tuples(st.just("everything"), st.booleans()),
    st.tuples(st.just("evict"), st.integers(0, 5)),
    st.tuples(st.just("garble"), st.integers(0, 5)),
    st.tuples(st.just("forget the clock")),
    st.tuples(st.just("snapshot")),
    st.tuples(st.just("restore")),
    st.tuples(st.just("reopen")),
)
steps = st.lists(st.one_of(plain_requests, plain_requests, requests, changes), min_size=4, max_size=25)


class Twin(Driven):
    """One of two caches over one server that are driven alike; the *reference* gives no hit again."""

    def __init__(self, server: Server, backend: CacheBackend, *, reference: bool = False) -> None:
        clock = FakeClock()
        self.server = server
        self.namespace = next(NAMESPACES)
        self.backend = backend
        policy = CachePolicy(timeout=9)
        cache = CacheMiddleware(
            application(), backend, default_policy=policy, namespace=self.namespace, clock=clock
        )
        super().__init__(cache, clock)
        self.elsewhere = StoredResponses(backend, self.namespace, now=clock)
        self.held: list[tuple[bytes, bytes]] = []
        self.asked = 0
        fast, store = self.cache.fast, self.store
        is_still = store.is_still

        async def counted(*args: Any) -> Any:
            self.asked += 1
            return await is_still(*args)

        store.is_still = counted  # type: ignore[assignment, method-assign]
        if reference:
            fast.answer = lambda *_: None  # type: ignore[method-assign]

    async def meet(self, kind: str, *of: Any) -> None:
        """Take a step that a server alone has."""
        match kind:
            case "elsewhere":
                await self.elsewhere.invalidate(Order(tags=(tag_stamp(of[0]),), soft=of[1]))
            case "evict" | "garble":
                keys = self.entries()
                change = ("DEL",) if kind == "evict" else ("SETRANGE",)
                if keys:
                    self.server.command(*change, keys[of[0] % len(keys)], *((40, "x") if kind == "garble" else ()))
            case "forget the clock":
                self.server.command("DEL", f"{{cache:{self.namespace}:}}clock")
            case "snapshot":
                self.held = [(key, self.server.command("GET", key)) for key in self.keys()]
            case "restore":
                self.restore()
            case "reopen":
                await self.backend.close()
            case _:
                await super().meet(kind, *of)

    def restore(self) -> None:
        """Put back what the last snapshot has, if there is one."""
        for key in self.keys() if self.held else ():
            self.server.command("DEL", key)
        for key, value in self.held:
            self.server.command("SET", key, value, "EX", 600)

    def keys(self) -> list[bytes]:
        """Return all keys of this cache that the server holds."""
        return sorted(self.server.command("KEYS", f"*cache:{self.namespace}:*"))

    def entries(self) -> list[bytes]:
        """Return the keys of entries."""
        return [key for key in self.keys() if not key.startswith(b"{")]

    async def close(self) -> None:
        """Let go of all connections."""
        await self.store.close()
        await self.elsewhere.close()
        await self.backend.close()


@pytest.fixture
async def twin(redis_server: Server) -> AsyncIterator[Twin]:
    """A cache over an empty server."""
    twin = Twin(redis_server, RedisBackend(redis_server.url, operation_timeout=PATIENT_S))
    yield twin
    await twin.close()


@settings(
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(steps)
def test_both_ways_answer_alike(redis_server: Server, taken: list[tuple[Any, ...]]) -> None:
    """Whatever is asked, and happens here, elsewhere and in the server, both ways answer and count the same."""

    async def compare() -> None:
        url = redis_server.url
        fast = Twin(redis_server, RedisBackend(url, operation_timeout=PATIENT_S))
        reference = Twin(redis_server, RedisBackend(url, operation_timeout=PATIENT_S), reference=True)
        for step in taken:
            assert await fast.do(step) == await reference.do(step), step
        assert fast.store.stats == reference.store.stats
        await fast.close()
        await reference.close()

    asyncio.run(compare())


async def test_what_is_given_again(twin: Twin) -> None:
    """The plain hits of all kinds of policies are given again, so that the comparison compares something."""
    for path in PATHS:
        for number in range(4):
            twin.asked = 0
            await twin.ask("GET", path)
            expected = number >= 2 and path not in (*NEVER_AGAIN, "/varies")
            assert (path, number, twin.asked) == (path, number, expected)


async def test_no_trip_in_vain(twin: Twin) -> None:
    """A hit that is fresh no longer is not asked for: its request makes one trip, that of its exchange."""
    for _ in range(3):
        await twin.ask("GET", "/windows")
    await twin.do(("advance", 21.0))
    twin.asked = 0
    await twin.ask("GET", "/windows")
    assert twin.asked == 0


async def test_one_trip_for_two_keys(redis_server: Server, twin: Twin) -> None:
    """A hit that is given again is one command of two keys, and hits of one moment are one command."""
    for _ in range(3):
        await twin.ask("GET", "/tagged/1")
        await twin.ask("GET", "/tagged/2")
    before, found = await twin.ask("GET", "/tagged/1"), twin.store.stats["hit"]
    redis_server.command("CONFIG RESETSTAT")
    paths = ["/tagged/1", "/tagged/2"] * 20
    answers = await asyncio.gather(*(messages_of(twin.cache, scope_of(path)) for path in paths))
    assert {bytes(messages[1]["body"]) for messages in answers[::2]} == {before[0][1][2]}
    assert twin.store.stats["hit"] - found == 40
    ran = redis_server.command("INFO", "commandstats")
    assert {name: of["calls"] for name, of in ran.items() if "config" not in name} == {"cmdstat_mget": 1}


async def learned(twin: Twin, path: str = "/tagged/1") -> None:
    """Ask for *path* until its hit would be given again."""
    for _ in range(2):
        await twin.ask("GET", path)
    assert remembered_of(twin) > 0


def remembered_of(twin: Twin) -> int:
    """Return how many hits *twin* may give again."""
    return len(twin.cache.fast._ready)


async def body_of(twin: Twin, path: str = "/tagged/1") -> bytes:
    """Return the body that *twin* answers with."""
    messages, _ = await twin.ask("GET", path)
    return bytes(messages[1][2])


class Slow(RedisBackend):
    """Holds back answers, or what is stored, while it has a gate for that."""

    gate: asyncio.Event | None = None
    store_gate: asyncio.Event | None = None
    holds_back = False

    async def set_and_run(self, *args: Any) -> None:
        if self.store_gate is not None:
            await self.store_gate.wait()
        await super().set_and_run(*args)

    async def get_batched(self, keys: Sequence[str]) -> list[bytes | None]:
        answer = await super().get_batched(keys)
        await self._held_back()
        return answer

    async def get_beside(self, key: str, others: Sequence[str]) -> tuple[bytes | None, list[bytes | None]]:
        answer = await super().get_beside(key, others)
        await self._held_back()
        return answer

    async def _held_back(self) -> None:
        if self.gate is not None:
            self.holds_back = True
            await self.gate.wait()


@pytest.mark.parametrize("what", ["invalidated", "dropped", "owed", "expired"])
async def test_changed_while_it_was_asked(redis_server: Server, what: str) -> None:
    """What ends in this process while the server is asked is not given when that is done (F25)."""
    backend = Slow(redis_server.url, operation_timeout=PATIENT_S)
    twin = Twin(redis_server, backend)
    await learned(twin)
    backend.gate = asyncio.Event()
    asked = asyncio.create_task(messages_of(twin.cache, scope_of("/tagged/1")))
    while not twin.asked:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0)
    order = Order(tags=(tag_stamp("all"),))
    if what == "invalidated":
        await twin.store.invalidate(order)
    elif what == "owed":
        twin.store.orders._owe(order)
    elif what == "expired":
        twin.clock.advance(60)
    else:
        (ready,) = twin.cache.fast._ready.values()
        assert isinstance(ready, ReadyAfar)
        twin.store.drop(ready.basis.keys[0], twin.store.next_turn())
    backend.gate.set()
    assert bytes((await asked)[1]["body"]) == b"tagged 1 2"
    await twin.close()


class Elsewhere(DefaultKeyGenerator):
    """Has another key for each request."""

    async def generate_cache_key(self, request: Request) -> str:
        return f"elsewhere {await super().generate_cache_key(request)}"


@pytest.mark.parametrize("what", ["backend", "backend that others met", "key_generator", "route"])
async def test_parts_that_change_while_it_was_asked(redis_server: Server, what: str) -> None:
    """What was decided with other parts, or routes, than are in force since is not given again (SPEC §8.2)."""
    backend = Slow(redis_server.url, operation_timeout=PATIENT_S)
    app, container = counting_app(), CacheContainer(backend=backend)
    install(app, container)
    assert await told_of(app, "/count") == [MISS]
    await container.store().close()
    backend.gate = asyncio.Event()
    asked = asyncio.create_task(get(app, "/count"))
    while not backend.holds_back:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0)
    if what.startswith("backend"):
        container.backend.override(providers.Object(MemoryBackend()))
        if what != "backend":
            assert await told_of(app, "/count?of=others") == [MISS]
    elif what == "key_generator":
        container.key_generator.override(providers.Object(Elsewhere()))
    else:
        app.router.routes.insert(0, Route("/count", lambda request: PlainTextResponse("first")))
    backend.gate.set()
    assert told(await asked) == HIT
    assert await told_of(app, "/count") == [None if what == "route" else MISS]
    await container.store().close()
    await backend.close()


async def test_invalidated_elsewhere(redis_server: Server, twin: Twin) -> None:
    """What another process invalidates is not given again; after one trip that says so, no other is in vain."""
    for path in ("/tagged/1", "/tagged/2"):
        await learned(twin, path)
    await twin.elsewhere.invalidate(Order(tags=(tag_stamp("n1"),)))
    assert await body_of(twin) == b"tagged 1 2"
    redis_server.command("CONFIG RESETSTAT")
    assert await body_of(twin, "/tagged/2") == b"tagged 2 1"
    assert redis_server.command("INFO", "commandstats")["cmdstat_mget"]["calls"] == 1
    assert twin.store.stats["invalidated"] == 1


@pytest.mark.parametrize("step", [("evict", 0), ("garble", 0), ("forget the clock",)], ids=lambda step: step[0])
async def test_changed_in_the_server(twin: Twin, step: tuple[Any, ...]) -> None:
    """What the server has no more, or not as it was, is not given again."""
    await learned(twin)
    await twin.do(step)
    assert await body_of(twin) == b"tagged 1 2"


async def test_stored_elsewhere(redis_server: Server, twin: Twin) -> None:
    """What another process has stored in its place is given instead."""
    await learned(twin)
    (entry,) = twin.entries()
    old = redis_server.command("GET", entry)
    no_cache = [(b"cache-control", b"no-cache")]
    await twin.ask("GET", "/tagged/1", fields=no_cache)
    await learned(twin)
    redis_server.command("SET", entry, old, "EX", 600)
    assert await body_of(twin) == b"tagged 1 1"


async def test_stored_here(redis_server: Server) -> None:
    """What has just been stored answers, though the server does not have it yet."""
    backend = Slow(redis_server.url, operation_timeout=PATIENT_S)
    twin = Twin(redis_server, backend)
    await learned(twin)
    backend.store_gate = asyncio.Event()
    no_cache = [(b"host", b"test"), (b"cache-control", b"no-cache")]
    bodies = [
        bytes((await messages_of(twin.cache, scope_of("/tagged/1", headers=headers)))[1]["body"])
        for headers in (no_cache, no_cache[:1])
    ]
    backend.store_gate.set()
    assert bodies == [b"tagged 1 2"] * 2
    await twin.close()


async def test_the_clock_went_back(twin: Twin) -> None:
    """A server that has the clock and the entry of a moment before an invalidation is not believed (F6)."""
    await learned(twin)
    await twin.do(("snapshot",))
    await twin.do(("tag", "all", False))
    await twin.do(("restore",))
    assert await body_of(twin) == b"tagged 1 2"


async def test_server_that_hangs(redis_server: Server) -> None:
    """A server that hangs costs a request one budget, by this way too, and it is counted once (F3)."""
    twin = Twin(redis_server, RedisBackend(redis_server.url, operation_timeout=0.2))
    await learned(twin)
    asked: list[object] = []
    look_up = twin.store.look_up

    async def counted(*args: Any) -> Any:
        asked.append(args)
        return await look_up(*args)

    twin.store.look_up = counted  # type: ignore[assignment, method-assign]
    redis_server.pause()
    try:
        messages = await messages_of(twin.cache, scope_of("/tagged/1"))
    finally:
        redis_server.resume()
    assert bytes(messages[1]["body"]) == b"tagged 1 2"
    assert (asked, twin.store.stats["look_up_failed"]) == ([], 1)
    await twin.close()


@pytest.mark.alone
async def test_what_was_not_asked_says_nothing(redis_server: Server) -> None:
    """A hit that is known to be over without asking does not make a server that hangs look well (F3)."""
    twin = Twin(redis_server, RedisBackend(redis_server.url, operation_timeout=0.1))
    breaker = twin.store.calls.breaker
    assert breaker is not None
    for number in [*range(OPENS_AFTER + 1)] * 2:
        await twin.ask("GET", "/shared", b"n=%d" % number)
    await twin.elsewhere.invalidate(Order(tags=(tag_stamp("nobody"),)))
    await twin.ask("GET", "/shared", b"n=%d" % OPENS_AFTER)
    redis_server.pause()
    try:
        for number in range(OPENS_AFTER):
            await messages_of(twin.cache, scope_of("/shared", query_string=b"n=%d" % number))
        assert (breaker.state, twin.store.stats["look_up_failed"]) == (State.OPEN, OPENS_AFTER)
    finally:
        redis_server.resume()
    await twin.close()


async def test_who_leaves(redis_server: Server) -> None:
    """A request that leaves while the server is asked says nothing of it, and the next is answered (F31)."""
    backend = Slow(redis_server.url, operation_timeout=PATIENT_S)
    twin = Twin(redis_server, backend)
    await learned(twin)
    backend.gate = asyncio.Event()
    leaving = asyncio.create_task(messages_of(twin.cache, scope_of("/tagged/1")))
    while not twin.asked:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait({leaving})
    backend.gate = None
    assert await body_of(twin) == b"tagged 1 1"
    assert twin.store.stats["look_up_failed"] == 0
    await twin.close()


async def test_no_way_past_a_wrapper(redis_server: Server) -> None:
    """What is around a backend sees every hit."""

    class Counts:
        gets = 0

        def histogram(self, name: str, value: float) -> None: ...

        def increment(self, name: str) -> None:
            self.gets += name == "cache.get.requests"

    counts = Counts()
    inner = RedisBackend(redis_server.url, operation_timeout=PATIENT_S)
    twin = Twin(redis_server, MetricsBackend(inner, counts))
    for number in range(5):
        await twin.ask("GET", "/tagged/1")
        assert counts.gets == number + 1
    assert remembered_of(twin) == 0
    await twin.close()


async def test_bytes_are_counted(twin: Twin) -> None:
    """What is remembered for comparison counts as what is given does."""
    await learned(twin)
    (ready,) = twin.cache.fast._ready.values()
    assert isinstance(ready, ReadyAfar)
    held = sum(len(value or b"") for value in ready.basis.values)
    assert twin.cache.fast._bytes == ready.size > OVERHEAD + len(b"tagged 1 1") + held

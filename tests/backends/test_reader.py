"""Look-ups that leave together: what is one command, who gets which answer, and what becomes of who leaves."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from app_cache.backends.base import STALLED_S
from app_cache.backends.redis import RedisBackend
from app_cache.backends.redis.reader import LANES, MAX_BYTES, MAX_KEYS, Reader, RefusedError
from app_cache.errors import BackendError, Fault

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextvars import Context

    from tests.backends.conftest import Connect
    from tests.servers import Server

pytestmark = pytest.mark.anyio

SOON_S = 5.0
BUDGET_S = 0.05


class Wire:
    """Lends connections to a server whose keys hold their own names; *gate* holds back its answers."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.lent = self.given_back = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.forbidden: frozenset[str] = frozenset()
        self.failure: Exception | None = None
        self.is_wanted = False
        self.size = 0
        """Bytes that a value has at least."""

    async def lend(self) -> Wire:
        self.lent += 1
        return self

    async def ask(self, keys: Sequence[str]) -> list[bytes | None]:
        self.asked.append([*keys])
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        if not self.forbidden.isdisjoint(keys):
            raise RefusedError(BackendError("not permitted", fault=Fault.DENIED))
        return [key.encode().ljust(self.size) for key in keys]

    async def give_back(self) -> None:
        self.given_back += 1

    async def holds(self, commands: int) -> None:
        """Return when so many commands have been sent."""
        while len(self.asked) < commands:  # noqa: ASYNC110 - the reader tells nobody
            await asyncio.sleep(0)


class HangingWire(Wire):
    """Answers the first command when the gate is open, and no other."""

    async def ask(self, keys: Sequence[str]) -> list[bytes | None]:
        if self.asked:
            self.gate = asyncio.Event()
        return await super().ask(keys)


@pytest.fixture
async def wire() -> Wire:
    """A wire that answers at once."""
    return Wire()


@pytest.fixture
async def reader(wire: Wire) -> Reader:
    """A reader over the wire."""
    return Reader(wire.lend, SOON_S)


async def answers(*futures: asyncio.Future[Any]) -> list[Any]:
    """Return what all of *futures* have come to."""
    async with asyncio.timeout(SOON_S):
        return await asyncio.gather(*futures)


# What leaves together


async def test_one_turn_is_one_command(reader: Reader, wire: Wire) -> None:
    """What is asked in one turn of the loop is one command, each key once, and each gets what it asked for."""
    found = await answers(reader.ask(["a", "clock"]), reader.ask(["b", "clock"]), reader.ask(["clock"]))
    assert found == [[b"a", b"clock"], [b"b", b"clock"], [b"clock"]]
    assert wire.asked == [["a", "clock", "b"]]
    assert (wire.lent, wire.given_back) == (1, 1)


async def test_a_key_asked_twice(reader: Reader, wire: Wire) -> None:
    """A look-up may name a key twice, and gets it twice."""
    assert await answers(reader.ask(["a", "b", "a"])) == [[b"a", b"b", b"a"]]
    assert wire.asked == [["a", "b"]]


async def test_commands_are_bounded(reader: Reader, wire: Wire) -> None:
    """A command has 256 keys at most, unless one look-up alone has more; a look-up is never taken apart."""
    few = [reader.ask([f"{number}", f"{number}+", f"{number}-"]) for number in range(MAX_KEYS // 3 + 1)]
    many = reader.ask([f"many {number}" for number in range(2 * MAX_KEYS)])
    await answers(*few, many)
    assert sorted(len(keys) for keys in wire.asked) == [3, MAX_KEYS // 3 * 3, 2 * MAX_KEYS]


async def test_answers_are_bounded(reader: Reader, wire: Wire) -> None:
    """Where values are large, what was asked in one turn is several commands, each for as many as 8 MiB hold."""
    wire.size = MAX_BYTES // 8
    keys = [f"{number}" for number in range(20)]
    for _ in range(8):
        found = await answers(*(reader.ask([key]) for key in keys))
        assert found == [[key.encode().ljust(wire.size)] for key in keys]
    assert wire.asked[0] == keys
    assert wire.asked[-3:] == [keys[:8], keys[8:16], keys[16:]]
    await answers(reader.ask([*keys, *keys]))
    assert wire.asked[-1] == keys
    wire.size = 0
    for _ in range(8):
        await answers(*(reader.ask([key]) for key in keys))
    assert wire.asked[-1] == keys


async def test_many_of_one_large_value(wire: Wire) -> None:
    """Look-ups of the same keys are one command, however large the value is, and after one in vain too."""
    reader = Reader(wire.lend, BUDGET_S)
    wire.size = MAX_BYTES
    others = [[f"{number}", "clock"] for number in range(10)]
    wire.gate.clear()
    await answers(*(reader.ask(keys) for keys in others))
    await reader.settle()
    wire.gate.set()
    await answers(*(reader.ask(keys) for keys in others))
    wire.asked.clear()
    for _ in range(3):
        found = await answers(*(reader.ask(["large", "clock"]) for _ in range(64)))
        assert [len(each[0]) for each in found] == [MAX_BYTES] * 64
    assert wire.asked == [["large", "clock"]] * 3


async def test_one_large_value_among_small_ones(reader: Reader, wire: Wire) -> None:
    """That one look-up got much, or nothing in time, does not take many others apart."""
    many = [[f"{number}", "clock"] for number in range(64)]
    wire.size = MAX_BYTES
    await answers(reader.ask(["large", "clock", "stamp"]))
    wire.size = 0
    await answers(*(reader.ask(keys) for keys in many))
    assert len(wire.asked) == 2


async def test_one_look_up_in_vain(wire: Wire) -> None:
    """That one look-up alone got nothing in time says nothing of how many others fit into a command."""
    reader = Reader(wire.lend, BUDGET_S)
    wire.gate.clear()
    await answers(reader.ask(["alone", "clock"]))
    await reader.settle()
    wire.gate.set()
    await answers(*(reader.ask([f"{number}", "clock"]) for number in range(64)))
    assert len(wire.asked) == 2


async def test_refused_to_who_has_left(wire: Wire) -> None:
    """That a key is refused to who has left is not told to who stayed."""
    reader = Reader(wire.lend, SOON_S)
    wire.forbidden = frozenset({"secret"})
    wire.gate.clear()
    leaves, stays = reader.ask(["secret"]), reader.ask(["open"])
    await wire.holds(1)
    leaves.cancel()
    wire.gate.set()
    assert await answers(stays) == [[b"open"]]


async def test_refused_to_several_of_the_same(reader: Reader, wire: Wire) -> None:
    """Who asks for the same as another, and both for what is refused, is told as well."""
    wire.forbidden = frozenset({"secret"})
    found = await answers(reader.ask(["secret"]), reader.ask(["secret"]), reader.ask(["open"]))
    assert [type(each) for each in found] == [BackendError, BackendError, list]


async def test_asked_in_vain(wire: Wire) -> None:
    """A command without an answer in time is taken for too large: the next asks for half, and then for more."""
    reader = Reader(wire.lend, BUDGET_S)
    keys = [f"{number}" for number in range(20)]
    wire.gate.clear()
    assert all(isinstance(each, BackendError) for each in await answers(*(reader.ask([key]) for key in keys)))
    await reader.settle()
    wire.gate.set()
    wire.asked.clear()
    waiting = [reader.ask([key]) for key in keys]
    waiting[3].cancel()
    found = await answers(*waiting[:3], *waiting[4:])
    assert found == [[key.encode()] for key in keys if key != "3"]
    assert wire.asked == [keys[:3] + keys[4:11], keys[11:]]
    await answers(*(reader.ask([key]) for key in keys))
    assert wire.asked[2:] == [keys]


async def test_nobody_joins_what_was_sent(reader: Reader, wire: Wire) -> None:
    """Who asks after a command was sent gets an answer that was read after that (F25)."""
    wire.gate.clear()
    first = reader.ask(["key"])
    await wire.holds(1)
    second = reader.ask(["key"])
    await wire.holds(2)
    wire.gate.set()
    await answers(first, second)
    assert wire.asked == [["key"], ["key"]]


async def test_what_gathers_while_lanes_are_busy(reader: Reader, wire: Wire) -> None:
    """While two commands are under way what is asked gathers, turn after turn, and leaves as one."""
    wire.gate.clear()
    asked = []
    for number in range(LANES + 20):
        asked.append(reader.ask([f"{number}"]))
        await wire.holds(min(number + 1, LANES))
    wire.gate.set()
    await answers(*asked)
    assert wire.asked == [["0"], ["1"], [f"{number}" for number in range(LANES, LANES + 20)]]
    assert wire.lent == LANES


async def test_others_have_their_turn(reader: Reader, wire: Wire) -> None:
    """A connection that others wait for is given back after each command."""
    wire.is_wanted = True
    wire.gate.clear()
    asked = []
    for number in range(LANES + 1):
        asked.append(reader.ask([f"{number}"]))
        await wire.holds(min(number + 1, LANES))
    wire.gate.set()
    await answers(*asked)
    await reader.settle()
    assert (wire.lent, wire.given_back) == (LANES + 1, LANES + 1)


# Who leaves, and who fails


async def test_who_leaves(reader: Reader, wire: Wire) -> None:
    """One that leaves takes nothing along: the command goes on, and the others get their answers (F31)."""
    wire.gate.clear()
    asked = [reader.ask([f"{number}"]) for number in range(3)]
    await wire.holds(1)
    asked[1].cancel()
    wire.gate.set()
    assert await answers(asked[0], asked[2]) == [[b"0"], [b"2"]]


async def test_all_leave(reader: Reader, wire: Wire) -> None:
    """What nobody waits for any more before it is sent is not sent."""
    for future in [reader.ask(["a"]), reader.ask(["b"])]:
        future.cancel()
    await reader.settle()
    assert wire.asked == []
    assert await answers(reader.ask(["c"])) == [[b"c"]]


async def test_failure_is_a_value(reader: Reader, wire: Wire) -> None:
    """A connection that fails is told to all who asked by it, raised in none of their futures, and not kept."""
    wire.failure = OSError("reset")
    assert await answers(reader.ask(["a"]), reader.ask(["b"])) == [wire.failure, wire.failure]
    wire.failure = None
    assert await answers(reader.ask(["c"])) == [[b"c"]]
    await reader.settle()
    assert (wire.lent, wire.given_back) == (2, 2)


async def test_what_gathered_while_it_failed(wire: Wire) -> None:
    """What is next after a failure goes by another connection."""
    reader = Reader(wire.lend, SOON_S, lanes=1)
    wire.failure = OSError("reset")
    wire.gate.clear()
    first = reader.ask(["a"])
    await wire.holds(1)
    second = reader.ask(["b"])
    wire.gate.set()
    assert await answers(first, second) == [wire.failure, wire.failure]
    await reader.settle()
    assert (wire.lent, wire.given_back) == (2, 2)


async def test_refusal_is_for_one(reader: Reader, wire: Wire) -> None:
    """Keys that one may not read are refused to who asked for them, and cost the others nothing."""
    wire.forbidden = frozenset({"secret"})
    one, other, more = await answers(reader.ask(["a"]), reader.ask(["b", "secret"]), reader.ask(["c"]))
    assert (one, more) == ([b"a"], [b"c"])
    assert other.fault is Fault.DENIED
    assert wire.asked == [["a", "b", "secret", "c"], ["a"], ["b", "secret"], ["c"]]


@pytest.mark.alone
async def test_no_answer(wire: Wire) -> None:
    """What has no answer in time fails for all who wait; its connection is given up, and another goes on."""
    reader = Reader(wire.lend, BUDGET_S)
    wire.gate.clear()
    begun = time.monotonic()
    one, other = await answers(reader.ask(["a"]), reader.ask(["b"]))
    assert BUDGET_S <= time.monotonic() - begun < SOON_S
    assert one.fault in (Fault.AWAY, Fault.STALLED)
    assert one is other
    await reader.settle()
    assert wire.given_back == 1
    wire.gate.set()
    assert await answers(reader.ask(["c"])) == [[b"c"]]


async def test_no_answer_to_what_took_over_a_lane() -> None:
    """So it is for what came while a lane was busy: when its time is over, the lane ends and lends no longer."""
    wire = HangingWire()
    reader = Reader(wire.lend, BUDGET_S, lanes=1)
    wire.gate.clear()
    first = reader.ask(["first"])
    await wire.holds(1)
    second = reader.ask(["second"])
    wire.gate.set()
    await answers(first)
    [said] = await answers(second)
    assert isinstance(said, BackendError)
    async with asyncio.timeout(SOON_S):
        await reader.settle()
    assert wire.given_back == wire.lent == 1


@pytest.mark.alone
async def test_time_begins_with_the_question(wire: Wire) -> None:
    """What gathers behind commands that hang waits no longer than they do."""
    reader = Reader(wire.lend, BUDGET_S)
    wire.gate.clear()
    asked = []
    for number in range(LANES + 3):
        asked.append(reader.ask([f"{number}"]))
        await wire.holds(min(number + 1, LANES))
    begun = time.monotonic()
    found = await answers(*asked)
    assert {type(each) for each in found} == {BackendError}
    assert time.monotonic() - begun < SOON_S / 5
    assert len(wire.asked) == LANES


async def test_a_loop_that_stands_still(wire: Wire) -> None:
    """A timer that is late says that this process stood still, and nothing of the server (F24)."""
    reader = Reader(wire.lend, BUDGET_S)
    wire.gate.clear()
    asked = reader.ask(["a"])
    await wire.holds(1)
    time.sleep(BUDGET_S + STALLED_S + 0.02)  # noqa: ASYNC251 - this is what is tested
    (failure,) = await answers(asked)
    assert failure.fault is Fault.STALLED


async def test_tasks_that_begin_at_once(reader: Reader) -> None:
    """Each command has a context of its own, which a loop that begins tasks at once can enter."""
    loop = asyncio.get_running_loop()

    def begin(loop: asyncio.AbstractEventLoop, work: Any, context: Context | None = None) -> asyncio.Task[Any]:
        if context is not None:
            context.run(bool)
        return asyncio.Task(work, loop=loop, context=context)

    loop.set_task_factory(begin)
    try:
        assert await answers(reader.ask(["a"])) == [[b"a"]]
    finally:
        loop.set_task_factory(None)


async def test_close(reader: Reader, wire: Wire) -> None:
    """What is closed tells those who wait, whether their command was sent or not, and leaves no task."""
    before = asyncio.all_tasks()
    wire.gate.clear()
    asked = []
    for number in range(LANES + 1):
        asked.append(reader.ask([f"{number}"]))
        await wire.holds(min(number + 1, LANES))
    await reader.close()
    found = await answers(*asked)
    assert {str(each) for each in found} == {"the connection was closed meanwhile"}
    assert wire.given_back == wire.lent == LANES
    assert asyncio.all_tasks() == before


async def test_context_is_nobodys(reader: Reader, wire: Wire) -> None:
    """What is asked for many does not keep the context of the one who came first."""
    assert len(reader._context) == 0
    await answers(reader.ask(["a"]))
    assert len(reader._context) == 0


# With a server


async def mgets(server: Server) -> int:
    """Return how often *server* ran MGET."""
    ran = server.command("INFO", "commandstats")
    return int(ran.get("cmdstat_mget", {"calls": 0})["calls"])


@pytest.fixture
def backend(redis_server: Server, connect: Connect) -> RedisBackend:
    """A backend in an empty server, which waits patiently."""
    return connect(redis_server.url, operation_timeout=SOON_S)


async def test_one_mget(redis_server: Server, backend: RedisBackend) -> None:
    """Sixty look-ups of one turn are one MGET."""
    await backend.set_bytes("key 7", b"value", 60)
    redis_server.command("CONFIG RESETSTAT")
    found = await asyncio.gather(*(backend.get_beside(f"key {number}", ["clock"]) for number in range(60)))
    assert [number for number, (value, _) in enumerate(found) if value == b"value"] == [7]
    assert await mgets(redis_server) == 1


async def test_each_has_its_own_error(redis_server: Server, connect: Connect) -> None:
    """Look-ups that fail together raise an error each, so that none collects the tracebacks of others."""
    backend = connect(redis_server.url, operation_timeout=BUDGET_S)
    await backend.get_many(["key"])
    redis_server.pause()
    try:
        failed = await asyncio.gather(*(backend.get_many(["key"]) for _ in range(5)), return_exceptions=True)
    finally:
        redis_server.resume()
    assert len({id(each) for each in failed}) == 5
    assert all(isinstance(each, BackendError) for each in failed)
    backend = connect(redis_server.url, operation_timeout=SOON_S)
    assert await backend.get_many(["key"]) == [None]


async def test_leaving_at_any_moment(redis_server: Server, connect: Connect) -> None:
    """Of 10,000 look-ups many leave at any moment; the others get what is theirs; no connection is lost (F31)."""
    backend = connect(redis_server.url, operation_timeout=SOON_S, max_connections=4)
    chance, count = random.Random(1), 200
    for number in range(count):
        await backend.set_bytes(f"key {number}", b"value %d" % number, 60)
    right = left = 0

    async def ask() -> None:
        nonlocal right
        numbers = [chance.randrange(count) for _ in range(chance.randint(1, 4))]
        assert await backend.get_many([f"key {n}" for n in numbers]) == [b"value %d" % n for n in numbers]
        right += 1

    async def client() -> None:
        nonlocal left
        for _ in range(200):
            task = asyncio.create_task(ask())
            for _ in range(chance.choice([0, 1, 2, 3, 5, 8, 100])):
                if task.done():
                    break
                await asyncio.sleep(0)
            left += task.cancel() if chance.random() < 0.5 else 0
            await asyncio.wait({task})
            if not task.cancelled():
                task.result()

    await asyncio.gather(*(client() for _ in range(50)))
    assert right + left >= 10_000
    assert min(right, left) > 2000
    (client_of_this_loop,) = backend._clients.values()
    await client_of_this_loop.reader.settle()
    await client_of_this_loop._lender.release_kept()
    assert client_of_this_loop._turns._value == 4
    assert client_of_this_loop._redis.connection_pool._in_use_connections == set()
    assert len(redis_server.clients()) <= 4


async def test_leaving_at_each_await(redis_server: Server, connect: Connect) -> None:
    """A look-up that leaves after any number of turns, while connecting too, costs no connection (F31)."""
    for turns in range(25):
        backend = connect(redis_server.url, operation_timeout=SOON_S, max_connections=1)
        leaving = asyncio.create_task(backend.get_many(["key"]))
        for _ in range(turns):
            await asyncio.sleep(0)
        leaving.cancel()
        async with asyncio.timeout(SOON_S):
            assert await backend.get_many(["key", "other"]) == [None, None]
            await backend.set("other", "value", 60)
            await backend.delete("other")
        await asyncio.wait({leaving})
        await backend.close()


async def test_one_connection(redis_server: Server, connect: Connect) -> None:
    """With one connection look-ups and other calls take turns at it."""
    backend = connect(redis_server.url, operation_timeout=SOON_S, max_connections=1)
    async with asyncio.timeout(SOON_S):
        await asyncio.gather(
            *(backend.get_many([f"{number}"]) for number in range(100)),
            *(backend.set(f"{number}", "value", 60) for number in range(100)),
            *(backend.get_many([f"{number}"]) for number in range(100)),
        )
    assert len(redis_server.clients()) == 1


async def test_after_a_restart(redis_server: Server, backend: RedisBackend) -> None:
    """A look-up on a connection that the server has closed meanwhile is made on a new one (F2)."""
    await backend.set_bytes("key", b"value", 60)
    assert await backend.get_many(["key"]) == [b"value"]
    redis_server.restart()
    assert await backend.get_many(["key"]) == [None]


async def test_nobody_listens() -> None:
    """A connection that cannot be made takes nobody's turn: each look-up is told at once why (F1, F11)."""
    backend = RedisBackend("redis://127.0.0.1:1", max_connections=2, operation_timeout=30.0)
    async with asyncio.timeout(10):
        for _ in range(5):
            with pytest.raises(BackendError, match=":1"):
                await backend.get_many(["a"])
    await backend.close()


async def test_forbidden_keys(redis_server: Server, connect: Connect) -> None:
    """Where a user may read some keys only, who asks for others is refused, and nobody beside him."""
    redis_server.command("ACL", "SETUSER", "half", "on", ">s3cret", "~open*", "+@all")
    redis_server.command("SET", "open 1", "value")
    backend = connect(f"redis://half:s3cret@127.0.0.1:{redis_server.port}", operation_timeout=SOON_S)
    calls = [backend.get_many([key]) for key in ("open 1", "closed", "open 2")]
    one, other, more = await asyncio.gather(*calls, return_exceptions=True)
    assert (one, more) == ([b"value"], [None])
    assert isinstance(other, BackendError)
    assert other.fault is Fault.DENIED


@pytest.mark.parametrize("answer", [b"*1\r\n$1\r\nx\r\n", b"+OK\r\n", b":7\r\n"], ids=["short", "text", "number"])
async def test_no_answer_to_mget(connect: Connect, answer: bytes) -> None:
    """An answer to something else is an error, and nothing more is read from where it came."""
    connections = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while asked := await reader.read(1000):
            writer.write(b"%0\r\n" if b"HELLO" in asked else answer)
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    backend = connect(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}", operation_timeout=SOON_S)
    for _ in range(2):
        with pytest.raises(BackendError, match="no answer to MGET") as failure:
            await backend.get_many(["a", "b"])
        assert failure.value.fault is Fault.AWAY
    assert connections == 2
    server.close()


async def test_other_calls_have_their_bound(redis_server: Server, connect: Connect) -> None:
    """A connection that look-ups have had is bound by `socket_timeout` again."""
    backend = connect(redis_server.url, operation_timeout=SOON_S, socket_timeout=0.2, max_connections=1)
    await backend.get_many(["key"])
    redis_server.pause()
    try:
        async with asyncio.timeout(SOON_S):
            with pytest.raises(BackendError, match="Timeout"):
                await backend.get("key")
    finally:
        redis_server.resume()


async def test_close_under_load(redis_server: Server, backend: RedisBackend) -> None:
    """A backend that is closed under load answers those who asked before, and leaves no task and no connection."""
    before = asyncio.all_tasks()
    asked = [asyncio.create_task(backend.get_many([f"{number}"])) for number in range(1000)]
    await asyncio.sleep(0)
    await backend.close()
    assert await asyncio.gather(*asked) == [[None]] * 1000
    assert asyncio.all_tasks() == before
    async with asyncio.timeout(SOON_S):
        while redis_server.clients():  # noqa: ASYNC110 - no server tells when a client is gone
            await asyncio.sleep(0.01)


async def test_close_while_the_server_hangs(redis_server: Server, connect: Connect) -> None:
    """Closing waits a bounded time for a server that hangs, and tells who waits for it."""
    backend = connect(redis_server.url, operation_timeout=60)
    await backend.get_many(["key"])
    redis_server.pause()
    try:
        asked = asyncio.create_task(backend.get_many(["key"]))
        await asyncio.sleep(0)
        async with asyncio.timeout(SOON_S):
            await backend.close()
            with pytest.raises(BackendError, match="closed meanwhile"):
                await asked
    finally:
        redis_server.resume()


def test_two_loops(redis_server: Server) -> None:
    """Two loops in two threads read by one backend at once, each by connections of its own (F32)."""
    backend = RedisBackend(redis_server.url, operation_timeout=SOON_S)
    together = threading.Barrier(2, timeout=SOON_S)
    redis_server.command("MSET", *(part for number in range(50) for part in (f"key {number}", f"{number}")))
    found: list[list[list[bytes | None]]] = []

    async def read() -> None:
        together.wait()
        for _ in range(20):
            calls = (backend.get_many([f"key {number}"]) for number in range(50))
            found.append(await asyncio.gather(*calls))
        together.wait()
        await backend.close()

    threads = [threading.Thread(target=lambda: asyncio.run(read())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON_S)
    assert found == [[[b"%d" % number] for number in range(50)]] * 40

"""What a few requests, invalidations, cancellations and deaths come to, in many orders (F25, F26, F31).

Each operation of the backend, each step of a handler and each deed waits for its turn, before and after. The turns
are taken in every order that is near to "who came first", and in random ones. A failure names its seed:
``run(in_four_methods, SCENES["a fill"], Dice(7))``.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import pytest
from starlette.requests import Request

from app_cache.backends.redis import RedisBackend
from app_cache.invalidation import InvalidationService
from app_cache.middleware import CacheMiddleware
from app_cache.policy import CachePolicy, add_tags
from app_cache.store import StoredResponses
from tests.middleware.apps import messages_of, scope_of
from tests.model.scale import SCALE
from tests.model.test_stateful import IMMORTAL
from tests.model.turns import (
    LAST,
    Choose,
    Dice,
    Follow,
    SlowMemory,
    Taking,
    TurnLoop,
    Turns,
    actor,
    all_interruptions,
    all_paths,
    process,
)
from tests.stored import FourMethods

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator

    from app_cache.backends.base import CacheBackend
    from tests.servers import Server

    Make = Callable[[Turns], Callable[[], CacheBackend]]

T = TypeVar("T")
REFEREE = -1
"""The process of the test itself, and of one that begins when all is over."""

FRESH = CachePolicy(timeout=60, tags=("all",))
POLICIES = {
    "/plain*": FRESH,
    "/late*": FRESH,
    "/varied*": FRESH,
    "/windows*": CachePolicy(timeout=60, tags=("all",), stale_while_revalidate=600, stale_if_error=600),
}
PATHS = ("/plain", "/late", "/varied", "/windows")


@dataclass(frozen=True)
class Deed:
    """What one task does.

    Args:
        kind: ``ask``, ``change`` (and then invalidate), ``post`` (which does both), ``leave`` (cancels the deed
            that *on* names), ``kill`` (the process; another takes its place).
        on: The path, or the number of a deed.
        process: Where.
        how: The name of the invalidation, or the field of the request.
        soft: Whether it only marks as stale.
    """

    kind: str
    on: Any = "/plain"
    process: int = 0
    how: str = "tag"
    soft: bool = False


@dataclass(frozen=True)
class Scene:
    """Deeds that are done in all orders, after those *before* were done one by one."""

    deeds: tuple[Deed, ...]
    before: tuple[Deed, ...] = ()


INVALIDATIONS: dict[str, Callable[[InvalidationService, str, bool], Awaitable[Any]]] = {
    "tag": lambda service, path, soft: service.by_tag("all", soft=soft),
    "late": lambda service, path, soft: service.by_tag("late", soft=soft),
    "pattern": lambda service, path, soft: service.by_pattern(f"{path}*", soft=soft),
    "url": lambda service, path, soft: service.by_url(f"http://test{path}", soft=soft),
    "everything": lambda service, path, soft: service.everything(soft=soft),
}


class Process:
    """One process that serves: a cache over a backend."""

    def __init__(self, world: World, backend: CacheBackend, number: int) -> None:
        self.number = number
        self.floor: Counter[str] = Counter()
        """The oldest versions that may be served here, beside those that may be served nowhere."""
        clock = world.loop.time
        self.backend = backend
        self.cache = CacheMiddleware(world.application, backend, policies=POLICIES, clock=clock)
        self.store = StoredResponses(backend, now=clock, monotonic=clock, chance=lambda: 0.5)
        cast("Any", self.cache)._plain._store = self.store


@dataclass
class World:
    """A thing that changes, what serves it, and what must hold."""

    turns: Turns
    loop: TurnLoop
    make: Callable[[], CacheBackend]
    versions: Counter[str] = field(default_factory=Counter)
    floor: Counter[str] = field(default_factory=Counter)
    soft_floor: Counter[str] = field(default_factory=Counter)
    processes: dict[int, Process] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    served: Counter[str] = field(default_factory=Counter)
    backends: list[CacheBackend] = field(default_factory=list)
    """That of each process which has begun."""

    async def application(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer with the version, and with what was asked."""
        path, mood = scope["path"], _mood(scope)
        await self.turns.turn(f"handler of {path}")
        if scope["method"] == "POST":
            self.versions[path] += 1
        version = self.versions[path]
        for doing in ("has read", "works on", "goes on with"):
            await self.turns.turn(f"handler of {path} {doing} {version}")
        if path == "/late":
            add_tags(Request(scope), "late")
        headers = [(b"content-type", b"text/plain"), (b"x-version", b"%d" % version)]
        if path == "/varied":
            headers.append((b"vary", b"x-mood"))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await self.turns.turn(f"handler of {path} has begun to answer")
        await send({"type": "http.response.body", "body": f"{path} {mood} {version}".encode()})

    def begin(self, number: int) -> Process:
        """Begin a process, or another one in the place of one that is dead."""
        self.backends.append(self.make())
        made = self.processes[number] = Process(self, self.backends[-1], len(self.backends))
        return made

    async def end(self) -> None:
        """End all that there is."""
        left = [task for _, task in self.turns.tasks if not task.done() and task is not asyncio.current_task()]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        self.turns.outside += 1
        for backend in self.backends:
            await backend.close()

    async def do(self, deed: Deed, tasks: list[asyncio.Task[None]], number: int = 0) -> None:
        """Do *deed*, which has a *number*, when it is its turn, in the process that there is then."""
        actor.set(number)
        await self.turns.turn(f"{deed.kind} {deed.on}")
        here = self.processes[deed.process]
        if deed.kind == "leave":
            tasks[deed.on].cancel()
        elif deed.kind == "kill":
            self.begin(deed.process)
            self.turns.kill(here.number)
        elif deed.kind == "ask":
            await self.at(here, self.ask(here, deed.on, deed.how))
        elif deed.kind == "post":
            await self.at(here, self.post(here, deed.on))
        else:
            await self.at(here, self.change(here, deed))

    async def at(self, here: Process, work: Coroutine[Any, Any, T]) -> T:
        """Return what *work* gives, done by a task of the process that is *here*."""
        context = copy_context()
        context.run(process.set, here.number)
        return await asyncio.create_task(work, context=context)

    async def ask(self, here: Process, path: str, mood: str = "") -> str:
        """Ask for *path*, hold the answer against what has been invalidated, and return what the cache says."""
        floor = here.floor[path], self.floor[path]
        soft = self.soft_floor[path]
        scope = scope_of(path, headers=[(b"host", b"test"), (b"x-mood", mood.encode())])
        start, *parts = await messages_of(here.cache, scope)
        body = b"".join(part.get("body", b"") for part in parts).decode()
        told = scope["state"]["cache"]
        self.served[told.outcome] += 1
        of_path, of_mood, version = body.split(" ")
        if (start["status"], of_path) != (200, path) or (path == "/varied" and of_mood != mood):
            self.wrong.append(f"{path} {mood} was answered {start['status']} {body!r}")
        if int(version) < max(floor):
            self.wrong.append(f"{body!r} was served by {here.number} as {told}, beyond {floor}")
        if int(version) < soft and not (told.hit and told.ttl <= 0):
            self.wrong.append(f"{body!r} was served by {here.number} as {told}, beyond {soft} softly")
        return f"{told.outcome} {version}"

    async def post(self, here: Process, path: str) -> None:
        """Change *path* by a request; from when its answer begins, nothing older is served."""

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                floor = here.floor if here.store.orders.owed else self.floor
                _raise(floor, {path: int(dict(message["headers"])[b"x-version"])})
                await self.turns.turn(f"answered the change of {path}")

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        await here.cache(scope_of(path, method="POST"), receive, send)

    async def change(self, here: Process, deed: Deed) -> None:
        """Change what is served, and invalidate it."""
        changed = [path for path in PATHS if self._named(deed, path)]
        versions = {}
        for path in changed:
            self.versions[path] += 1
            versions[path] = self.versions[path]
        await self.turns.turn(f"changed {' '.join(changed)}")
        floors = self.soft_floor if deed.soft else here.floor
        try:
            result = await INVALIDATIONS[deed.how](InvalidationService(here.store), deed.on, deed.soft)
        except asyncio.CancelledError:
            if here.number not in self.turns.dead and not deed.soft:
                _raise(here.floor, versions)
            raise
        if not deed.soft and result.durable:
            floors = self.floor
        if result.durable or not deed.soft:
            _raise(floors, versions)

    @staticmethod
    def _named(deed: Deed, path: str) -> bool:
        if deed.how in ("tag", "everything"):
            return True
        return path == ("/late" if deed.how == "late" else deed.on)

    async def play(self, scene: Scene) -> None:
        """Do all deeds, and hold against the promises what is left then."""
        process.set(REFEREE)
        for number in {deed.process for deed in (*scene.before, *scene.deeds)}:
            self.begin(number)
        for deed in scene.before:
            await self.do(deed, [])
            await self.turns.turn(LAST)
        self.turns.in_order = False
        tasks: list[asyncio.Task[None]] = []
        for number, deed in enumerate(scene.deeds):
            tasks.append(asyncio.create_task(self.do(deed, tasks, number)))
        await asyncio.wait(tasks)
        await self.turns.turn(LAST)
        self.turns.in_order = True
        self._nothing_is_left(tasks)
        self.begin(REFEREE)
        for here in self.processes.values():
            for path in sorted({deed.on for deed in scene.deeds if deed.kind in ("ask", "post")}):
                await self._is_in_order(here, path)
        await self.turns.turn(LAST)
        for here in self.processes.values():
            await here.store.close()
        for task in tasks:
            if not task.cancelled():
                task.result()

    def _nothing_is_left(self, tasks: list[asyncio.Task[None]]) -> None:
        """See that no task, lock, run or write outlives what it was for."""
        mine = {asyncio.current_task(), *tasks}
        left: list[object] = [task for _, task in self.turns.tasks if not task.done() and task not in mine]
        for here in self.processes.values():
            store, flight = here.store, here.store.flight
            left += [
                store.writes.pending,
                store.writes._writers,
                store.writes._writing,
                store.writes._pending_bytes,
            ]
            left += [flight._runs, flight._few, flight._tasks]
            left += [getattr(store.clock, name, None) for name in ("_beside", "_making")]
        self.wrong += [f"left over: {each}" for each in left if each]

    async def _is_in_order(self, here: Process, path: str) -> None:
        """See that a process serves what is there now, and that it serves it from the cache at the second time."""
        first = await self.at(here, self.ask(here, path))
        await self.turns.turn(LAST)
        second = await self.at(here, self.ask(here, path))
        await self.turns.turn(LAST)
        refreshed = self.soft_floor[path]
        if second.split() != ["hit", first.split()[1]] and not refreshed and not self.turns.passed:
            self.wrong.append(f"{path} at {here.number}: {first}, then {second}")


def _mood(scope: Any) -> str:
    fields: dict[bytes, bytes] = dict(scope["headers"])
    return fields.get(b"x-mood", b"").decode()


def _raise(floors: Counter[str], versions: dict[str, int]) -> None:
    for path, version in versions.items():
        floors[path] = max(floors[path], version)


def run(
    make: Make,
    scene: Scene,
    choose: Choose,
    *,
    time_passes: bool = False,
) -> Counter[str]:
    """Play *scene* in the order that *choose* has, and return what was served how."""
    turns = Turns(choose, time_passes)
    loop = TurnLoop(turns)
    world = World(turns, loop, make(turns))
    try:
        loop.run_until_complete(world.play(scene))
    finally:
        loop.run_until_complete(world.end())
        loop.close()
    assert not world.wrong, "\n".join([*world.wrong, *turns.history])
    return world.served


def in_memory(turns: Turns) -> Callable[[], CacheBackend]:
    """Give the memory of the one process that there is."""
    memory = SlowMemory(turns)
    return lambda: memory


def in_four_methods(turns: Turns) -> Callable[[], CacheBackend]:
    """Give a backend of four methods."""
    backend = FourMethods()
    return lambda: Taking(backend, turns)


def in_redis(server: Server, turns: Turns) -> Callable[[], CacheBackend]:
    """Empty *server*, and give each process connections of its own to it."""
    server.command("FLUSHALL")
    return lambda: Taking(RedisBackend(server.url, socket_timeout=9.0), turns)


KINDS = {"memory": in_memory, "four methods": in_four_methods}
SCENES = {
    "a fill": Scene((Deed("ask"), Deed("change"), Deed("ask"))),
    "a hit": Scene((Deed("ask"), Deed("change"), Deed("ask")), before=(Deed("ask"), Deed("ask"))),
    "a late tag": Scene((Deed("ask", "/late"), Deed("change", how="late"), Deed("ask", "/late"))),
    "a pattern": Scene((Deed("ask"), Deed("change", how="pattern"), Deed("ask")), before=(Deed("ask", "/late"),)),
    "two invalidations": Scene((Deed("ask"), Deed("change", how="url"), Deed("change", how="everything"))),
    "an unsafe request": Scene((Deed("ask"), Deed("post"), Deed("ask"))),
    "variants": Scene(
        (Deed("ask", "/varied", how="a"), Deed("change"), Deed("ask", "/varied", how="b")),
        before=(Deed("ask", "/varied", how="b"),),
    ),
    "a leader leaves": Scene((Deed("ask"), Deed("ask"), Deed("leave", 0), Deed("change"))),
    "one who waits leaves": Scene((Deed("ask"), Deed("ask"), Deed("leave", 1), Deed("ask"))),
    "an invalidation is cancelled": Scene((Deed("ask"), Deed("change"), Deed("leave", 1), Deed("ask"))),
    "one of a hit is cancelled": Scene((Deed("change"), Deed("leave", 0), Deed("ask")), before=(Deed("ask"),)),
    "a worker is killed": Scene((Deed("ask"), Deed("change"), Deed("kill"), Deed("ask"))),
    "a worker is killed with a late tag": Scene((Deed("ask", "/late"), Deed("change", how="late"), Deed("kill"))),
    "a refresh": Scene(
        (Deed("ask", "/windows"), Deed("change", soft=True), Deed("ask", "/windows"), Deed("change")),
        before=(Deed("ask", "/windows"), Deed("change", soft=True)),
    ),
}
TWO_WORKERS = {
    "a fill": Scene((Deed("ask"), Deed("change", process=1), Deed("ask", process=1))),
    "a hit": Scene(
        (Deed("ask"), Deed("change", process=1), Deed("ask")), before=(Deed("ask"), Deed("ask", process=1))
    ),
    "a late tag": Scene((Deed("ask", "/late"), Deed("change", how="late", process=1), Deed("ask", "/late"))),
    "a pattern": Scene((Deed("ask"), Deed("change", how="pattern", process=1)), before=(Deed("ask", process=1),)),
    "an unsafe request": Scene((Deed("ask"), Deed("post", process=1), Deed("ask"))),
    "variants": Scene((Deed("ask", "/varied", how="a"), Deed("ask", "/varied", 1, "b"), Deed("change"))),
    "a leader leaves": Scene((Deed("ask"), Deed("ask"), Deed("leave", 0), Deed("change", process=1))),
    "an invalidation is cancelled": Scene((Deed("ask"), Deed("change"), Deed("leave", 1), Deed("ask", process=1))),
    "one of a hit is cancelled": Scene((Deed("change"), Deed("leave", 0), Deed("ask")), before=(Deed("ask"),)),
    "a worker is killed": Scene((Deed("ask"), Deed("change"), Deed("kill"), Deed("ask", process=1))),
    "a refresh": Scene(
        (
            Deed("ask", "/windows"),
            Deed("change", process=1, soft=True),
            Deed("ask", "/windows", 1),
            Deed("change"),
        ),
        before=(Deed("ask", "/windows"), Deed("change", soft=True)),
    ),
}


def some_scene(seed: int, workers: int) -> Scene:
    """Return deeds at random, by so many *workers*."""
    dice = random.Random(seed)
    deeds: list[Deed] = []
    for at in range(dice.choice([2, 3, 3, 4, 5])):
        kind = dice.choices(["ask", "change", "post", "leave", "kill"], [6, 4, 1, 2, 1])[0]
        if kind == "leave":
            deeds.append(Deed("leave", dice.randrange(at)) if at else Deed("ask"))
        else:
            how = dice.choice(["a", "b"]) if kind == "ask" else dice.choice([*INVALIDATIONS])
            soft = kind == "change" and dice.random() < 0.3
            deeds.append(Deed(kind, dice.choice(PATHS), dice.randrange(workers), how, soft))
    before = [Deed("ask", path, 0, dice.choice(["a", "b"])) for path in PATHS if dice.random() < 0.4]
    return Scene(tuple(deeds), tuple(before))


INTERRUPTIONS = 1 if SCALE == 1 else 2
MOST_TELLING = ("a late tag", "one of a hit is cancelled")
"""Scenes that are interrupted at all steps even where that takes long."""


def run_in_redis(server: Server, scene: Scene, choose: Choose, *, time_passes: bool = False) -> Counter[str]:
    """Play *scene* over *server*, and see that every key in it has an expiry."""
    served = run(partial(in_redis, server), scene, choose, time_passes=time_passes)
    assert server.command("EVAL", IMMORTAL, 0) == []
    return served


def interrupted(
    play: Callable[[Scene, Choose], Counter[str]], scene: Scene, most: int = INTERRUPTIONS
) -> Counter[str]:
    """Play *scene*, each deed first in its turn, and interrupted at all steps; return what was served how."""
    served: Counter[str] = Counter()
    deeds = range(len(scene.deeds))

    def note(choose: Choose) -> None:
        served.update(play(scene, choose))

    for first in deeds:
        order = [first, *(each for each in deeds if each != first)]
        for ranked in all_interruptions(note, order, most):
            assert ranked.count > 0, "there was nothing to choose"
    return served


@pytest.mark.parametrize("name", list(SCENES))
def test_interrupted_anywhere(name: str) -> None:
    """Wherever a request, an invalidation or a death comes between, nothing stale is served, nothing left over."""
    assert interrupted(partial(run, in_memory), SCENES[name])["hit"] > 10


@pytest.mark.parametrize("name", MOST_TELLING if SCALE == 1 else list(SCENES))
def test_four_methods_interrupted_anywhere(name: str) -> None:
    """So it is where each look-up takes many steps."""
    assert interrupted(partial(run, in_four_methods), SCENES[name], most=1)["hit"] > 10


@pytest.mark.parametrize("name", list(SCENES))
def test_in_every_order(name: str) -> None:
    """So it is in every order that is near to "who came first"."""

    def play(follow: Follow) -> None:
        run(in_memory, SCENES[name], follow)

    assert sum(1 for _ in all_paths(play, INTERRUPTIONS)) >= 5


@pytest.mark.parametrize("time_passes", [False, True], ids=["in time", "late"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_in_random_orders(kind: str, *, time_passes: bool) -> None:
    """So it is in random orders, and where the time of an operation is over before it is done."""
    served: Counter[str] = Counter()
    for name, scene in SCENES.items():
        for seed in range(3 * SCALE):
            with explained(kind, name, seed):
                served += run(KINDS[kind], scene, Dice(seed), time_passes=time_passes)
    assert min(served["hit"], served["uri-miss"]) > 0


@pytest.mark.parametrize("kind", list(KINDS))
def test_random_scenes(kind: str) -> None:
    """So it is whatever is done."""
    for seed in range(60 * SCALE):
        with explained(kind, "some", seed):
            run(KINDS[kind], some_scene(seed, 1), Dice(seed), time_passes=seed % 4 == 0)


@pytest.mark.parametrize("name", [*TWO_WORKERS, "some"])
def test_two_workers(redis_server: Server, name: str) -> None:
    """So it is with two workers on one Redis, where every key has an expiry (F26)."""
    play = partial(run_in_redis, redis_server)
    if name in MOST_TELLING or SCALE > 1:
        interrupted(play, TWO_WORKERS.get(name) or some_scene(0, 2), most=1)
    for seed in range(3 * SCALE):
        with explained("Redis", name, seed):
            play(TWO_WORKERS.get(name) or some_scene(seed, 2), Dice(seed), time_passes=seed % 4 == 2)


@contextmanager
def explained(*what: object) -> Iterator[None]:
    """Say what was played when it failed."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"played: {what}")
        raise

"""A world in which one thing happens at a time, in an order that a test wants, and time passes only when it must.

Whoever would wait for something outside takes a `Turns.turn`: it goes on when nothing else in the loop can, and it
is chosen among those that wait. The loop has a time of its own. So a run depends on its choices alone, and can be
had again.
"""

from __future__ import annotations

import asyncio
import random
import selectors
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from app_cache.backends.memory import MemoryBackend
from app_cache.backends.wrapper import Wrapper

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence

    from app_cache.backends.base import CacheBackend

T = TypeVar("T")

process: ContextVar[int] = ContextVar("process", default=0)
"""The process that a task belongs to."""
ANSWERS_WITHIN_S = 10.0
"""Seconds of real time in which a real server must answer."""
MAX_CHOICES = 5_000
actor: ContextVar[int] = ContextVar("actor", default=0)
"""The number of the deed that a task does, or was begun by."""
TIME = -2
"""Stands among actors for the time, which may pass."""
LAST = "when nothing else is left"


class Choose(Protocol):
    """Returns which goes on of those that wait, by the actors to whom they belong; the first came first."""

    def __call__(self, actors: Sequence[int]) -> int: ...


class Follow:
    """Chooses as in *path*, then always the first, and remembers between how many it had to choose."""

    def __init__(self, path: tuple[int, ...] = ()) -> None:
        self.path = path
        self.counts: list[int] = []

    def __call__(self, actors: Sequence[int]) -> int:
        at = len(self.counts)
        self.counts.append(len(actors))
        return self.path[at] if at < len(self.path) else 0


class Dice:
    """Chooses at random: at each step, or, as often finds more, by ranks that change a few times.

    Who has the highest rank goes on until he waits for others, or loses it (Burckhardt, Kothari, Musuvathi and
    Nagarakatte, "A Randomized Scheduler with Probabilistic Guarantees of Finding Bugs", 2010).
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._by_rank = seed % 3 > 0
        self._ranks: dict[int, float] = {}
        self._steps = 0
        steps = self._random.choice([12, 12, 40])
        self._changes = {self._random.randrange(steps) for _ in range(self._random.randrange(1, 4))}

    def __call__(self, actors: Sequence[int]) -> int:
        if not self._by_rank or (actors[-1] == TIME and self._random.random() < 0.05):
            return self._random.randrange(len(actors))
        for actor in actors:
            self._ranks.setdefault(actor, self._random.random())
        self._ranks[TIME] = -float("inf")
        chosen = max(range(len(actors)), key=lambda at: (self._ranks[actors[at]], -at))
        self._steps += 1
        if self._steps in self._changes:
            self._ranks[actors[chosen]] = -float(self._steps)
        return chosen


class Ranked:
    """Lets the first of *order* go on as far as he can; at some *steps*, who would go on becomes the last.

    So one is interrupted by all others at any point, or by some of them, which are interrupted in their turn.
    """

    def __init__(self, order: Sequence[int], steps: tuple[int, ...] = ()) -> None:
        self.order = [*order]
        self.steps = steps
        self.count = 0
        """Between how many there was a choice, and how often."""

    def __call__(self, actors: Sequence[int]) -> int:
        here = self.count
        self.count += 1
        if here in self.steps:
            self._demote(actors[self._first_of(actors)])
        return self._first_of(actors)

    def _first_of(self, actors: Sequence[int]) -> int:
        return min(range(len(actors)), key=lambda at: (self._rank(actors[at]), at))

    def _rank(self, actor: int) -> int:
        return self.order.index(actor) if actor in self.order else len(self.order)

    def _demote(self, actor: int) -> None:
        if actor in self.order:
            self.order.remove(actor)
        self.order.append(actor)


def all_paths(run: Callable[[Follow], object], deviations: int) -> Iterator[Follow]:
    """Run every order that differs in at most so many *deviations* from "who came first", and give each."""
    waiting: list[tuple[tuple[int, ...], int]] = [((), 0)]
    while waiting:
        path, deviated = waiting.pop()
        follow = Follow(path)
        run(follow)
        yield follow
        if deviated < deviations:
            for at in range(len(path), len(follow.counts)):
                for choice in range(1, follow.counts[at]):
                    waiting.append(((*path, *[0] * (at - len(path)), choice), deviated + 1))


def all_interruptions(run: Callable[[Ranked], object], order: Sequence[int], most: int = 1) -> Iterator[Ranked]:
    """Run *order* with at most so many interruptions, at all steps, and give each."""
    waiting: list[tuple[int, ...]] = [()]
    while waiting:
        steps = waiting.pop()
        ranked = Ranked(order, steps)
        run(ranked)
        yield ranked
        if len(steps) < most:
            waiting += [(*steps, step) for step in range(steps[-1] + 1 if steps else 0, ranked.count)]


@dataclass(eq=False)
class _Waiting:
    label: str
    process: int
    actor: int
    future: asyncio.Future[None]


@dataclass
class Turns:
    """Lets one of those who wait go on at a time."""

    choose: Choose
    time_passes: bool = False
    """Whether time may pass although something else could go on."""
    in_order: bool = True
    """Whether nothing is chosen now: who came first goes on."""
    waiting: list[_Waiting] = field(default_factory=list)
    history: list[str] = field(default_factory=list)
    """Who went on, for a failure's message."""
    dead: set[int] = field(default_factory=set)
    tasks: list[tuple[int, asyncio.Task[Any]]] = field(default_factory=list)
    outside: int = 0
    """Operations that are under way outside."""
    passed: int = 0
    """How often time passed although something else could go on."""

    async def turn(self, label: str) -> None:
        """Wait until it is this one's turn.

        Raises:
            asyncio.CancelledError: If its process is dead.
        """
        if process.get() in self.dead:
            raise asyncio.CancelledError
        mine = _Waiting(label, process.get(), actor.get(), asyncio.get_running_loop().create_future())
        self.waiting.append(mine)
        try:
            await mine.future
        finally:
            self.waiting.remove(mine)

    async def outside_of(self, work: Awaitable[T], label: str) -> T:
        """Return what *work* gives: it waits for a turn before it begins, and for one more when it has ended."""
        try:
            await self.turn(label)
        except BaseException:
            if asyncio.iscoroutine(work):
                work.close()
            raise
        self.outside += 1
        try:
            result = await work
        finally:
            self.outside -= 1
        await self.turn(f"{label} done")
        return result

    def kill(self, number: int) -> None:
        """End a process at once: none of its tasks touches anything outside again."""
        self.dead.add(number)
        for owner, task in self.tasks:
            if owner == number:
                task.cancel()

    def let_one_go(self, *, timers: bool) -> bool:
        """Let one go on; return False if time has to pass instead."""
        able = [each for each in self.waiting if not each.future.done()]
        ready = [each for each in able if each.label != LAST] or able
        if not ready:
            return False
        actors = [each.actor for each in ready] + [TIME] * (timers and self.time_passes)
        chosen = self.choose(actors) if len(actors) > 1 and not self.in_order else 0
        if chosen == len(ready):
            self.passed += 1
            self.history.append("time passes")
            return False
        if len(self.history) > MAX_CHOICES:
            raise RuntimeError(f"it never ends: {self.history[-20:]}")
        self.history.append(f"{ready[chosen].process}: {ready[chosen].label}")
        ready[chosen].future.set_result(None)
        return True


class _Selector(selectors.DefaultSelector):
    """Is asked to wait when nothing in the loop can go on."""

    loop: TurnLoop

    def select(self, timeout: float | None = None) -> Any:
        if timeout is not None and timeout <= 0:
            return super().select(0)
        turns = self.loop.turns
        if turns.outside:
            events = super().select(ANSWERS_WITHIN_S)
            if not events:
                raise RuntimeError("the server does not answer")
            return events
        if not turns.let_one_go(timers=timeout is not None):
            if timeout is None:
                raise RuntimeError(f"nothing can go on: {turns.history[-20:]}")
            self.loop.now += timeout
        return []


class TurnLoop(asyncio.SelectorEventLoop):
    """An event loop in which *turns* decide who goes on."""

    def __init__(self, turns: Turns) -> None:
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)
        self.turns = turns
        self.now = 1_000_000.0
        self.set_task_factory(cast("Any", self._task))

    def time(self) -> float:
        return self.now

    def _task(self, loop: Any, work: Coroutine[Any, Any, Any], **options: Any) -> asyncio.Task[Any]:
        task = asyncio.Task(work, loop=loop, **options)
        context = options.get("context")
        if context is not None and process not in context:
            context.run(process.set, process.get())
        self.turns.tasks.append((process.get() if context is None else context[process], task))
        return task


class SlowMemory(MemoryBackend):
    """Memory whose operations take turns, though it lives in this process."""

    def __init__(self, turns: Turns, **options: Any) -> None:
        super().__init__(**options)
        self._turns = turns

    async def get_bytes(self, key: str) -> bytes | None:
        return await self._turns.outside_of(super().get_bytes(key), "get")

    async def set_bytes(self, key: str, value: bytes, timeout: float | None = None) -> None:
        await self._turns.outside_of(super().set_bytes(key, value, timeout), "set")

    async def delete(self, key: str) -> None:
        await self._turns.outside_of(super().delete(key), "delete")


class Taking(Wrapper):
    """A backend around another whose operations take turns."""

    def __init__(self, backend: CacheBackend, turns: Turns) -> None:
        super().__init__(backend)
        self._turns = turns

    async def get(self, key: str) -> str | None:
        return await self._turns.outside_of(super().get(key), "get")

    async def set(self, key: str, value: str, timeout: float | None = None) -> None:
        await self._turns.outside_of(super().set(key, value, timeout), "set")

    async def delete(self, key: str) -> None:
        await self._turns.outside_of(super().delete(key), "delete")

    def __getattr__(self, name: str) -> Any:
        passed_on = super().__getattr__(name)
        if name not in ("get_many", "get_beside", "run_script", "set_and_run", "get_bytes", "set_bytes"):
            return passed_on

        async def in_turn(*args: Any, **kwargs: Any) -> Any:
            return await self._turns.outside_of(passed_on(*args, **kwargs), name)

        return in_turn

"""Look-ups that are asked for in one turn of an event loop, and leave together in one command.

The command is the reader's: a caller may leave at any moment, and takes nothing along but its own future. No
look-up joins a command that was sent, for its answer may be older than an invalidation that has been carried out
since. A failure is a value, given to each caller. A reader lives with one event loop of one process.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from contextvars import Context
from typing import TYPE_CHECKING, Protocol

from app_cache.backends.base import LAST_LOOK_S, STALLED_S
from app_cache.errors import BackendError, Fault

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    Values = list[bytes | None]
    Answer = Values | Exception
    Waiting = tuple[asyncio.Future[Answer], list[int]]

MAX_KEYS = 256
"""Keys in one command at most; those of one look-up stay together however many they are."""
FEW_KEYS = 8
"""A command with no more keys says nothing of how many the next may have: it is for one look-up, or few more."""
MAX_BYTES = 8 * 1024 * 1024
"""Bytes that the answer to one command is expected to have at most: each caller waits for all of them."""
LANES = 2
"""Commands under way at once; while both are, look-ups gather in the next."""
CLOSED = "the connection was closed meanwhile"


class RefusedError(Exception):
    """The server answered a command with an error; *why* is the error that callers are told."""

    def __init__(self, why: Exception) -> None:
        super().__init__(why)
        self.why = why


class Line(Protocol):
    """A connection that is lent to a reader."""

    @property
    def is_wanted(self) -> bool:
        """Whether the connection is to be given back: other calls may wait for it, or it is to be made anew."""
        ...

    async def ask(self, keys: Sequence[str]) -> Values:
        """Return the bytes under each of *keys*, read at one instant.

        If this is cancelled, or raises anything but `RefusedError`, no later command gets the answer to this one.

        Raises:
            RefusedError: If the server answered with an error.
        """
        ...

    async def give_back(self) -> None:
        """Give the connection back to its lender; a failure here is not raised."""
        ...


class Tally:
    """How many calls the server has served that did not go through the reader."""

    def __init__(self) -> None:
        self.total = 0


class _Batch:
    """Look-ups that leave together; as long as it is *open* others may join."""

    def __init__(self, served: int) -> None:
        self.served = served
        """The total of the tally when this batch began."""
        self.keys: dict[str, int] = {}
        self.waiting: list[Waiting] = []
        self.open = True
        self.begun = time.monotonic()
        self.timer: asyncio.TimerHandle | None = None
        self.lane: asyncio.Task[None] | None = None

    @property
    def is_awaited(self) -> bool:
        """Whether anybody still waits for an answer."""
        return any(not future.done() for future, _ in self.waiting)

    def has_room_for(self, keys: Sequence[str]) -> bool:
        return self.open and len(self.keys) + len(keys) <= MAX_KEYS

    def add(self, keys: Sequence[str], future: asyncio.Future[Answer]) -> None:
        known = self.keys
        self.waiting.append((future, [known.setdefault(key, len(known)) for key in keys]))

    def answer(self, values: Values) -> None:
        for future, places in self.waiting:
            if not future.done():
                future.set_result([values[place] for place in places])
        self.end()

    def fail(self, why: Exception) -> None:
        for future, _ in self.waiting:
            if not future.done():
                future.set_result(why)
        self.end()

    def end(self) -> None:
        """Let go of callers, lane and timer: the reader may remember the batch itself for long."""
        self.open = False
        self.waiting = []
        self.lane = None
        if self.timer is not None:
            self.timer.cancel()

    def parts(self, most: Callable[[], int]) -> Iterator[_Batch]:
        """Yield the look-ups still awaited in batches without a timer, of *most* keys at most, or one look-up.

        Look-ups of the same keys stay together.
        """
        same: dict[tuple[int, ...], list[asyncio.Future[Answer]]] = {}
        for future, places in self.waiting:
            same.setdefault(tuple(places), []).append(future)
        keys, part = [*self.keys], _Batch(self.served)
        for wanted, futures in same.items():
            own = [keys[place] for place in wanted]
            if part.keys and len({*part.keys, *own}) > most():
                yield part
                part = _Batch(self.served)
            for future in futures:
                if not future.done():
                    part.add(own, future)
        if part.keys:
            yield part


class Reader:
    """Reads for all callers in the running event loop.

    Args:
        lend: Gives a connection when one is free.
        timeout: Seconds that a look-up may take, all waits included.
        lanes: Commands under way at once.
        served: Counts the calls beside the reader's that the server serves meanwhile.
    """

    def __init__(
        self,
        lend: Callable[[], Awaitable[Line]],
        timeout: float,
        lanes: int = LANES,
        served: Tally | None = None,
    ) -> None:
        self._lend = lend
        self._timeout = timeout
        self._most = lanes
        self._served = served or Tally()
        self._loop = asyncio.get_running_loop()
        self._context = Context()
        """An empty context: what is done for many callers is done in the context of none of them."""
        self._lanes: set[asyncio.Task[None]] = set()
        self._queue: deque[_Batch] = deque()
        """The batches that have no lane yet, the oldest first."""
        self._newest = _Batch(0)
        self._newest.end()
        self._room = MAX_KEYS
        """Keys that a command may ask for: half after one that had no answer, more after one that was full."""
        self._bytes_per_key = 0.0
        """The average of the latest answers with many keys."""

    def ask(self, keys: Sequence[str]) -> asyncio.Future[Answer]:
        """Return a future of the bytes under each of *keys*, read at one instant, or of why they are not known."""
        future: asyncio.Future[Answer] = self._loop.create_future()
        if self._newest.has_room_for(keys):
            self._newest.add(keys, future)
        else:
            self._begin(keys, future)
        return future

    async def settle(self) -> None:
        """Return once no command is under way any more."""
        while self._lanes:
            await asyncio.wait(self._lanes)

    async def close(self) -> None:
        """End the commands under way and the batches that wait, and tell their callers."""
        while self._queue:
            self._queue.popleft().fail(BackendError(CLOSED))
        lanes = [*self._lanes]
        for lane in lanes:
            lane.cancel()
        await asyncio.gather(*lanes, return_exceptions=True)

    def _begin(self, keys: Sequence[str], future: asyncio.Future[Answer]) -> None:
        batch = self._newest = _Batch(self._served.total)
        batch.add(keys, future)
        batch.timer = self._loop.call_later(self._timeout, self._look_again, batch, context=self._context)
        self._queue.append(batch)
        self._open_lane()

    def _look_again(self, batch: _Batch) -> None:
        batch.timer = self._loop.call_later(LAST_LOOK_S, self._give_up, batch, context=self._context)

    def _give_up(self, batch: _Batch) -> None:
        """Tell the callers of *batch* that its time is over, and have no answer read that may still come."""
        late = time.monotonic() - batch.begun - self._timeout
        fault, missed = Fault.STALLED if late > STALLED_S else Fault.AWAY, "answer"
        if batch.open and self._served.total > batch.served:
            fault, missed = Fault.BUSY, "connection"
        lane, keys = batch.lane, len(batch.keys)
        batch.fail(BackendError(f"no {missed} within {self._timeout:g} s", fault=fault))
        if lane is None:
            self._queue.remove(batch)
        else:
            lane.cancel()
            if keys > FEW_KEYS:
                self._room = max(FEW_KEYS, min(self._most_keys(), keys) // 2)

    def _open_lane(self) -> None:
        """Begin a lane, if there may be one more; look-ups of this turn of the loop still join its batch."""
        if len(self._lanes) < self._most:
            lane = self._loop.create_task(self._serve(), context=self._context.copy())
            self._lanes.add(lane)
            lane.add_done_callback(self._ended, context=self._context)

    def _oldest(self) -> _Batch | None:
        """Return the oldest batch without a lane that somebody still waits for."""
        while self._queue:
            if self._queue[0].is_awaited:
                return self._queue[0]
            self._queue.popleft().end()
        return None

    def _ended(self, lane: asyncio.Task[None]) -> None:
        self._lanes.discard(lane)
        if self._oldest() is not None:
            self._open_lane()

    async def _serve(self) -> None:
        """Ask for the waiting batches, until there are none, one fails, or other calls want the connection."""
        line: Line | None = None
        try:
            while (line is None or not line.is_wanted) and (batch := self._oldest()) is not None:
                self._queue.popleft().lane = asyncio.current_task()
                try:
                    line = line or await self._lend()
                    await self._fetch(batch, line)
                except asyncio.CancelledError:
                    batch.fail(BackendError(CLOSED))
                    raise
                except Exception as error:  # noqa: BLE001  whatever it is, the callers are told
                    batch.fail(error)
                    break
        finally:
            if line is not None:
                await line.give_back()

    async def _fetch(self, batch: _Batch, line: Line) -> None:
        """Ask *line* for all of *batch*, in parts where it has more keys than one command may."""
        batch.open = False
        if len(batch.keys) <= self._most_keys():
            await self._ask(batch, line)
            return
        for part in batch.parts(self._most_keys):
            await self._ask(part, line)
        batch.end()

    async def _ask(self, batch: _Batch, line: Line) -> None:
        """Ask *line* for *batch*; if the server refuses, for each look-up alone: one may name a forbidden key."""
        try:
            values = await line.ask([*batch.keys])
        except RefusedError as refused:
            each = [*batch.parts(lambda: 0)]
            if [alone.keys for alone in each] == [batch.keys]:
                batch.fail(refused.why)
                return
            for alone in each:
                await self._ask(alone, line)
            batch.end()
        else:
            batch.answer(values)
            self._learn(values)

    def _most_keys(self) -> int:
        """Return how many keys the next command may ask for; a look-up alone may have more."""
        return max(1, min(self._room, int(MAX_BYTES / max(1.0, self._bytes_per_key))))

    def _learn(self, values: Values) -> None:
        """Learn from *values*, the answer to a command, how many keys the next may ask for."""
        if len(values) <= FEW_KEYS < self._most_keys():
            return
        size = sum([len(value) for value in values if value is not None])
        weight = max(0.25, len(values) / MAX_KEYS)
        self._bytes_per_key += weight * (size / len(values) - self._bytes_per_key)
        if 2 * len(values) > self._room:
            self._room = min(MAX_KEYS, 2 * self._room)

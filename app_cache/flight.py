"""One run per key: it belongs to the cache, and who asked only follows it.

A `Fill` is a run of the application. It keeps each message: the leader's request sends on what is kept at
once, others wait for the end. Clients may leave; as long as the answer may be shared the fill goes on. Once it may
not, the run is the leader's again, with its disconnect and its pace.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections import deque
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import msgspec

from app_cache.bounded import Bounded
from app_cache.rules.messages import fields_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterable

    from app_cache.asgi import App, Message, Receive, Scope, Send
    from app_cache.codec import Entry
    from app_cache.rules.messages import Answer, Headers

OutcomeT = TypeVar("OutcomeT")
RunT = TypeVar("RunT", bound="Run[Any]")

FILL_TIMEOUT_S = 30.0
"""Seconds that a request waits for the fill of another, and that a fill goes on which no client reads any more."""
SLOW_BODY_S = 1.0
"""Seconds after its first body message at which an answer that still goes on is not waited for any longer."""
MARKER_S = 2.0
"""Seconds in which requests of a key whose answer could not be shared do not wait for each other."""
FEW = 4
"""Requests of one key that run the handler at once where a run has been waited for in vain."""
PLACE_S = 30.0
"""Seconds after which such a request leaves its place to another, whether its run has ended or not."""
REST_S = 1.0
"""Seconds from a refresh that failed to the next of its key; twice as many after each that fails then."""
MOST_REST_S = 60.0
MAX_MARKERS = 10_000
BESIDE_THE_ANSWER = frozenset({"http.response.debug", "http.response.early_hint"})
"""Messages that come before an answer, and are no part of it."""
BODIES = frozenset({"http.response.body", "http.response.pathsend", "http.response.zerocopysend"})
"""Messages with a body, or a part of one where more follows."""


class Share(Enum):
    """What the start of an answer says of the whole of it."""

    STORE = "store"
    """It is stored and given to all, unless its body grows too large or stays incomplete."""
    FAIL = "fail"
    """It is a failure: given to those who wait, not stored."""
    REFUSE = "refuse"
    """It is the leader's alone."""
    UNADMITTED = "unadmitted"
    """It is the leader's alone, and says nothing of what another request would be answered."""
    REPLACE = "replace"
    """Nobody gets it: a stored response takes its place at once."""
    WITHHOLD = "withhold"
    """Nobody gets it: once it is complete, a stored response takes its place."""


OWN = (Share.REFUSE, Share.UNADMITTED)
"""What the leader alone gets."""
WITHHELD = (Share.REPLACE, Share.WITHHOLD)
"""What nobody gets."""


class Outcome(msgspec.Struct, frozen=True, eq=False):
    """What those who wait for a fill get of it; equal to itself alone, for `NOT_SHARED` is not `UNADMITTED`.

    Args:
        entry: What was stored; None if nothing was.
        failed: Whether the handler raised or answered 5xx.
        failure: A failure as others may see it, or None.
    """

    entry: Entry | None = None
    failed: bool = False
    failure: Answer | None = None


NOT_SHARED = Outcome()
"""The answer is the leader's alone, and so will be that of the next."""
UNADMITTED = Outcome()
"""The leader was not let through to the handler: who waited begins anew."""


class Judge(Protocol):
    """What a fill asks about its run."""

    @property
    def max_body(self) -> int:
        """Bytes of body beyond which the answer is the leader's alone."""
        ...

    @property
    def length(self) -> int | None:
        """Bytes of body that the answer which has started says it has; None: it does not say."""
        ...

    async def begin(self) -> None:
        """Do what must be done before the handler runs."""
        ...

    def started(self, status: int, headers: Headers) -> Share:
        """Return what becomes of an answer that starts so."""
        ...

    def refused(self) -> None:
        """Do what follows from an answer that is not stored, before it is sent."""
        ...

    def unkept(self) -> None:
        """Do what follows from an answer with more than a body, before that is sent: it is not stored."""
        ...

    async def finished(self, body: bytes) -> Outcome:
        """Return the outcome of a complete answer, once it can be hit."""
        ...

    def raised(self) -> Outcome:
        """Return the outcome of a handler that raised before its answer was complete."""
        ...


class Run(ABC, Generic[OutcomeT]):
    """A task of the cache's own, and its outcome for those who wait; it lives in the loop that it began in.

    Args:
        not_shared: The outcome that says that there is nothing for others.
    """

    def __init__(self, not_shared: OutcomeT) -> None:
        self.not_shared = not_shared
        self.begun = False
        self.loop = asyncio.get_running_loop()
        self.began_at = self.loop.time()
        self.outcome: asyncio.Future[OutcomeT] = self.loop.create_future()
        self.task: asyncio.Task[Any] | None = None
        self.on_outcome: Callable[[Any], None] | None = None
        """Is called with this run as soon as there is an outcome."""
        self.on_failure: Callable[[BaseException], None] | None = None
        """Is called with what the task raised, if nobody else is told of it."""
        self.on_end: Callable[[asyncio.Task[Any]], None] | None = None
        """Is called when the task has ended."""
        self._led = False
        self._overdue = False
        self._end_timer: asyncio.TimerHandle | None = None

    async def follow(self, timeout: float) -> OutcomeT | None:
        """Return the outcome, or None if there is none within *timeout* seconds; who waits may leave at any time.

        Return None, too, if the run took so long that it was ended, with nothing for others.
        """
        await asyncio.wait({self.outcome}, timeout=timeout)
        return None if not self.outcome.done() or self.ended_in_vain else self.outcome.result()

    @property
    def ended_in_vain(self) -> bool:
        """Whether it was ended since it took too long, so that its outcome says nothing of the next run's."""
        return self._overdue and self.shared is None

    @property
    def shared(self) -> OutcomeT | None:
        """The outcome; None while there is none, or where it has nothing for others."""
        outcome = self.outcome.result() if self.outcome.done() else None
        return None if outcome is self.not_shared else outcome

    @property
    @abstractmethod
    def failed(self) -> bool:
        """Whether the outcome is that of a failure."""

    def _take_on(self, work: Coroutine[Any, Any, Any], *, led: bool) -> None:
        """Do *work* in a task of its own.

        *led*: Somebody takes what it gives and raises; else its time is bounded.
        """
        self._led = led
        self.task = self.loop.create_task(work)
        self.task.add_done_callback(self._ended)
        if not led:
            self._bound()

    def _bound(self) -> None:
        if self.task is not None:
            self._end_timer = self.loop.call_later(FILL_TIMEOUT_S, self._run_out)

    def _run_out(self) -> None:
        if self.task is not None:
            self._overdue = True
            self.task.cancel()

    def _settle(self, outcome: OutcomeT) -> None:
        if not self.outcome.done():
            self.outcome.set_result(outcome)
            if self.on_outcome is not None:
                self.on_outcome(self)

    @property
    def _is_heard(self) -> bool:
        """Whether somebody is told what the task raises."""
        return self._led

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._settle(self.not_shared)
        if self._end_timer is not None:
            self._end_timer.cancel()
        if self.on_end is not None:
            self.on_end(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and self.on_failure is not None and not self._is_heard:
            self.on_failure(error)


class Fill(Run[Outcome]):
    """One run of the application."""

    def __init__(self, judge: Judge) -> None:
        super().__init__(NOT_SHARED)
        self.judge = judge
        self.sharing = True
        self.complete = False
        self._share: Share | None = None
        self._kept: deque[Message] = deque()
        self._body: list[bytes] = []
        self._size = 0
        self._ended_body = False
        self._held_start: Message | None = None
        self._news: asyncio.Future[None] | None = None
        """Is done when there is something for the leader, who waits for it."""
        self._taken = asyncio.Event()
        self._decided = asyncio.Event()
        self._over = asyncio.Event()
        """Is set once the answer has ended, or is for nobody but the leader."""
        self._left = False
        self._gone: Exception | None = None
        self._told_gone = False
        self._timer: asyncio.TimerHandle | None = None

    def start(self, app: App, scope: Scope, body: bytes, receive: Receive | None) -> None:
        """Run *app* in a task of the cache's own; *receive* is the leader's, None where no client waits."""
        self._take_on(self._run(app, scope, body, receive), led=receive is not None)

    async def lead(self, send: Send, patience: float | None = None) -> bool:
        """Send on what the run sends until it has ended, and raise what it raises.

        If a stored response takes the place of the answer, this returns early: send that, then call `end`.
        Return False, with nothing of an answer sent, if none has begun after *patience* seconds; the run goes on
        without its leader.

        Raises:
            asyncio.CancelledError: If the leader's request is cancelled; what may be shared goes on without it.
        """
        try:
            if not await self._tee(send, patience):
                await self._abandon(None)
                return False
        except asyncio.CancelledError:
            await self._abandon(None)
            raise
        except Exception as gone:
            await self._abandon(gone)
            raise
        if not self._is_withheld:
            await self.end()
        return True

    async def end(self) -> None:
        """Wait until the run has ended, its background tasks too, and raise what it raises.

        An answer that was replaced before it was complete may never be: its run goes on for a bounded time.

        Raises:
            asyncio.CancelledError: If the leader's request is cancelled; the run goes on without it.
        """
        if self.task is None:
            return
        if self._share is Share.REPLACE and not self.complete:
            await self._abandon(None)
            return
        if not self.task.done():
            try:
                await asyncio.wait({self.task})
            except asyncio.CancelledError:
                await self._abandon(None)
                raise
        self.task.result()

    @property
    def failed(self) -> bool:
        """Whether the handler raised or answered 5xx."""
        return self.outcome.result().failed

    @property
    def _is_withheld(self) -> bool:
        """Whether nobody gets the answer, and the leader need not wait for what follows."""
        return self._share in WITHHELD and (self.complete or self._share is Share.REPLACE)

    async def _tee(self, send: Send, patience: float | None) -> bool:
        """Send on what the run sends until it ends; return False if no answer begins in *patience* seconds."""
        until = None if patience is None else self.loop.time() + patience
        while True:
            while self._kept:
                message = self._kept[0]
                await send(_sendable(message))
                self._kept.popleft()
                self._taken.set()
                if message["type"] not in BESIDE_THE_ANSWER:
                    until = None
            if self.task is None or self.task.done() or self._is_withheld:
                return True
            self._news = self.loop.create_future()
            if until is None:
                await self._news
                continue
            try:
                async with asyncio.timeout_at(until):
                    await self._news
            except TimeoutError:
                return False

    async def _abandon(self, gone: Exception | None) -> None:
        """Let the run go on without its leader as long as it may be shared, else end it as the leader ended."""
        self._led, self._left, self._gone = False, True, gone
        self._kept.clear()
        if self.task is None or self.task.done():
            return
        if self.sharing or self.complete:
            self._taken.set()
            if not self._ended_body:
                self._bound()
            return
        if gone is None:
            self.task.cancel()
        self._taken.set()
        await asyncio.wait({self.task})

    async def _run(self, app: App, scope: Scope, body: bytes, receive: Receive | None) -> None:
        content: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_next() -> Message:
            if content:
                return content.pop()
            await self._decided.wait()
            if self._ended_body or receive is None or not self._led:
                await self._over.wait()
                return {"type": "http.disconnect"}
            message = await _after_content(receive)
            if not self.complete:
                self._stop_sharing()  # it may end its body early now, which must not pass for the whole
            return message

        try:
            await self.judge.begin()
            self.begun = True
            await app(scope, receive_next, self._send)
        except Exception:
            if not self.complete:
                self._settle(self.judge.raised())
            raise
        finally:
            self._settle(NOT_SHARED)
            self._release_start()

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._send_start(message)
        elif message["type"] in BESIDE_THE_ANSWER:
            self._keep({**message})
        elif message["type"] != "http.response.body":
            self._refuse()
            await self._send_own(message)
        elif self._share is None or not (self.complete or self.sharing):
            await self._send_own(message)
        else:
            message = {**message, "body": bytes(message.get("body", b""))}  # the application may use its own again
            if self.complete:
                self._send_rest(message)
            else:
                await self._send_shared(message)

    async def _send_start(self, message: Message) -> None:
        headers = fields_of(message)
        message = {**message, "headers": headers}
        self._share = self.judge.started(message["status"], headers)
        if self._share is Share.REFUSE:
            self.judge.refused()
        elif message.get("trailers") or not self.sharing:
            self._refuse()
        if self._share is Share.REPLACE:
            self._tell_leader()
        elif self._share in OWN or message.get("trailers"):
            await self._send_own(message)
        elif self._share is not Share.WITHHOLD:
            self._held_start = message
            if self.judge.length is None:
                self._release_start()

    def _refuse(self) -> None:
        """Refuse to store an answer that has more than a body, as soon as that is known."""
        if self._share is Share.STORE and not self.complete:
            self._share = Share.REFUSE
            self.judge.unkept()

    async def _send_shared(self, message: Message) -> None:
        part = message["body"]
        self._size += len(part)
        if self._size > self.judge.max_body:
            await self._send_own(message)
            return
        self._body.append(part)
        more = message.get("more_body", False)
        if more and not self._is_whole():
            if self._timer is None:
                self._timer = self.loop.call_later(SLOW_BODY_S, self._let_go)
            self._forward(message)
            return
        body = b"".join(self._body)
        outcome = await self.judge.finished(body)
        if len(self._body) > 1:
            self._body.clear()
            self._kept = _views(self._kept, body, len(body) - len(part))
        self.complete = True
        self._forward(message)
        self._settle(outcome)
        self._tell_leader()
        self._decide(ended=not more)

    def _decide(self, *, ended: bool) -> None:
        """Tell the handler from now on when its client leaves; if the body has *ended*, tell it so at once."""
        self._ended_body = ended
        self._decided.set()
        if ended:
            self._over.set()
        if ended and self._end_timer is not None:
            self._end_timer.cancel()

    def _is_whole(self) -> bool:
        """Return whether the client has all of the body, though the handler has not ended it (RFC 9112 §8)."""
        return self._share is Share.STORE and self._size == self.judge.length

    def _send_rest(self, message: Message) -> None:
        """Hand on what comes after the whole body: its end."""
        self._forward(message)
        self._decide(ended=not message.get("more_body", False))

    async def _send_own(self, message: Message) -> None:
        """Hand *message* to the leader alone, and wait until its client has taken all of it."""
        if self.sharing and self._left and self._gone is None and self.task is not None:
            self.task.cancel()
        self._stop_sharing()
        self._forward(message)
        while self._kept and self._led:
            self._taken.clear()
            await self._taken.wait()
        if self._gone is not None:
            self._told_gone = True
            raise self._gone

    def _stop_sharing(self) -> None:
        if self.sharing:
            self.sharing = False
            self._over.set()
            self._body.clear()
            self._let_go()

    def _let_go(self) -> None:
        """Let those who wait go on by themselves, and tell the handler from now on when its client leaves."""
        self._settle(UNADMITTED if self._share is Share.UNADMITTED else NOT_SHARED)
        self._decided.set()

    def _forward(self, message: Message) -> None:
        if self._share not in WITHHELD:
            self._release_start()
            self._keep(message)

    def _release_start(self) -> None:
        if self._held_start is not None:
            start, self._held_start = self._held_start, None
            self._keep(start)

    def _keep(self, message: Message) -> None:
        if self._led:
            self._kept.append(message)
            self._tell_leader()

    def _tell_leader(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    @property
    def _is_heard(self) -> bool:
        return self._led or self._told_gone

    def _ended(self, task: asyncio.Task[Any]) -> None:
        super()._ended(task)
        self._tell_leader()
        if self._timer is not None:
            self._timer.cancel()


class _View(dict[str, Any]):
    """A message whose body is a view of the whole one, which is in memory anyway."""


def _views(messages: Iterable[Message], body: bytes, end: int) -> deque[Message]:
    """Return *messages* with views of *body* in place of their parts of it, the last of which ends at *end*."""
    views: deque[Message] = deque()
    for message in reversed([*messages]):
        if message["type"] == "http.response.body":
            start = end - len(message["body"])
            message, end = _View(message, body=memoryview(body)[start:end]), start
        views.appendleft(message)
    return views


def _sendable(message: Message) -> Message:
    """Return *message* as the application would have sent it."""
    return {**message, "body": bytes(message["body"])} if isinstance(message, _View) else message


async def _after_content(receive: Receive) -> Message:
    """Return the next message that is not the request's content, which the fill was given before."""
    while (message := await receive())["type"] == "http.request":
        pass
    return message


@dataclass(slots=True)
class _Few:
    places: asyncio.Semaphore
    users: int = 0
    """Those who are inside, and those who wait."""


def _once(function: Callable[[], object]) -> Callable[[], None]:
    """Return what calls *function* the first time that it is called."""
    functions = [function]

    def call() -> None:
        if functions:
            functions.pop()()

    return call


@dataclass(frozen=True, slots=True)
class _Rest:
    seconds: float
    until: float


class Flight(Generic[RunT]):
    """The runs under way, by key, and the keys whose answers lately could not be shared, or refreshed."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._runs: dict[str, RunT] = {}
        self._markers: Bounded[str, float] = Bounded(MAX_MARKERS)
        self._resting: Bounded[str, _Rest] = Bounded(MAX_MARKERS)
        self._few: dict[tuple[asyncio.AbstractEventLoop, str], _Few] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self.landings = 0
        """How often all that was under way was ended; who has waited for a place since before gets none."""

    def under_way(self, key: str) -> RunT | None:
        """Return the run of *key* that a request in the running loop may wait for, or None."""
        run = self._runs.get(key)
        if run is None or run.outcome.done() or run.loop is not asyncio.get_running_loop() or self._hangs(run):
            return None
        return run

    def may_refresh(self, key: str) -> bool:
        """Return whether a run of *key* may begin that nobody waits for: there is none, and none just failed."""
        rest = self._resting.get(key)
        return (rest is None or self._clock() >= rest.until) and self.under_way(key) is None

    def hung(self, key: str) -> RunT | None:
        """Return the run of *key* if it goes on for longer than anybody waits for one, else None."""
        run = self._runs.get(key)
        if run is not None and run.loop.is_closed():
            del self._runs[key]
            return None
        return run if run is not None and not run.outcome.done() and self._hangs(run) else None

    def _hangs(self, run: RunT) -> bool:
        return run.loop.time() - run.began_at >= FILL_TIMEOUT_S

    @asynccontextmanager
    async def one_of_few(self, key: str, run: RunT, timeout: float) -> AsyncIterator[bool]:
        """Wait until few others of *key* are in here, and give whether that was so within *timeout* seconds.

        It stops waiting, and gives False, once *run*, which was waited for in vain, has something for others. Who
        is in here for too long is not counted any more.
        """
        loop, landings = asyncio.get_running_loop(), self.landings
        few = self._few.setdefault((loop, key), _Few(asyncio.Semaphore(FEW)))
        few.users += 1
        entering = asyncio.ensure_future(few.places.acquire())
        give_back = _once(few.places.release)
        overstays: asyncio.TimerHandle | None = None
        try:
            ends = {entering, run.outcome} if run.loop is loop else {entering}
            late = loop.time() + timeout
            await asyncio.wait(ends, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if run.shared is None:
                await asyncio.wait({entering}, timeout=max(0.0, late - loop.time()))
            if entering.done():
                overstays = loop.call_later(PLACE_S, give_back)
            yield entering.done() and run.shared is None and landings == self.landings
        finally:
            few.users -= 1
            if entering.done():
                give_back()
            else:
                entering.cancel()
            if overstays is not None:
                overstays.cancel()
            if not few.users:
                del self._few[loop, key]

    def take_off(self, key: str, run: RunT, *, alone: bool = False, refresh: bool = False) -> None:
        """Make *run* that of *key*: later requests find it until it has its outcome, unless it flies *alone*.

        *refresh*: It is one that nobody waits for; if it fails, the next one must wait a moment.
        """
        if not alone and run.outcome.done():
            self._land(key, refresh, run)
        elif not alone:
            self._runs[key] = run
            run.on_outcome = partial(self._land, key, refresh)
        if run.task is not None:
            self._tasks.add(run.task)
            run.on_end = self._tasks.discard

    def _land(self, key: str, refresh: bool, run: RunT) -> None:
        if self._runs.get(key) is run:
            del self._runs[key]
        if refresh and run.failed:
            self._rest(key)
        elif key in self._resting and not run.failed:
            self._resting.pop(key, None)
        if run.outcome.result() is run.not_shared and not run.ended_in_vain:
            self.mark_unshared(key)

    def _rest(self, key: str) -> None:
        before = self._resting.get(key)
        seconds = REST_S if before is None else min(2 * before.seconds, MOST_REST_S)
        self._resting[key] = _Rest(seconds, self._clock() + seconds)

    def mark_unshared(self, key: str) -> None:
        """Let requests of *key* go on by themselves for a moment."""
        self._markers[key] = self._clock() + MARKER_S

    def is_unshared(self, key: str) -> bool:
        """Return whether the answer of *key* lately could not be shared."""
        until = self._markers.get(key)
        if until is not None and self._clock() >= until:
            del self._markers[key]
            until = None
        return until is not None

    def tasks(self) -> set[asyncio.Task[Any]]:
        """Return the tasks of the runs that are under way in the running loop."""
        loop = asyncio.get_running_loop()
        return {task for task in [*self._tasks] if task.get_loop() is loop and not task.done()}


async def land(flights: Iterable[Flight[Any]], timeout: float) -> None:
    """Wait *timeout* seconds for what is under way in the running loop, and what that begins; then cancel it."""
    loop, flights = asyncio.get_running_loop(), [*flights]
    until = loop.time() + timeout
    while (tasks := under_way(flights)) and loop.time() < until:
        await asyncio.wait(tasks, timeout=until - loop.time())
    for flight in flights:
        flight.landings += 1
    for _ in range(2):  # what is ended may have begun something
        tasks = under_way(flights)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=timeout)


def under_way(flights: Iterable[Flight[Any]]) -> set[asyncio.Task[Any]]:
    """Return the tasks of all runs of *flights* in the running loop."""
    return {task for flight in flights for task in flight.tasks()}

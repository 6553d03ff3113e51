"""Stored responses over a backend: look-ups, writes that wait for nobody, invalidation.

Everything here that touches the backend has a bounded time and cannot fail: what goes wrong is a miss, or an
entry that is not stored, counted and said once in the log. While the backend is away, it is left alone but for one
operation each second (`breaker`).
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
import weakref
from collections import Counter, OrderedDict
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, groupby, islice
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from app_cache.backends.base import (
    BatchingBackend,
    BytesBackend,
    LocalBackend,
    WatchedBackend,
    budget_of,
    capability,
    given_text,
)
from app_cache.backends.wrapper import shown
from app_cache.breaker import OUTCOMES, Breaker, Outcome, Troubles, fault_of
from app_cache.clock.base import InvalidationResult, Order, Subject, Verdict, end, other_url
from app_cache.clock.choose import clock_for
from app_cache.codec import Entry, Mark, Value, Variants, decode, encode, from_text, to_text
from app_cache.errors import LAST_LOOK_S, STALLED_S, BackendError, ConfigurationError, Fault
from app_cache.flight import Flight, land
from app_cache.keys import checked_namespace, digest
from app_cache.logger_config import SparingLogger, logger
from app_cache.rules.glob import compile_glob
from app_cache.rules.variants import precedence, variant

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from app_cache.backends.base import CacheBackend
    from app_cache.clock.base import Basis, Reading, Shelf
    from app_cache.codec import Record
    from app_cache.flight import Fill, Run
    from app_cache.rules.messages import Headers

T = TypeVar("T")
Kept = TypeVar("Kept", bound=Entry | Value)

REPORT_S = 0.001
"""Seconds more in which a backend that gives up by itself says why."""
PENDING_S = 5.0
"""Seconds after which a write that the backend has not taken is dropped."""
MAX_PENDING = 1_000
MAX_PENDING_BYTES = 32 * 1024 * 1024
WRITERS = 4
"""Writes on their way to the backend at once."""
MAX_OWED = 256
"""Invalidations kept for a backend that is away; beyond, everything is owed."""
PROBES = frozenset({"look_up", "invalidate"})
"""Operations that may show whether a backend is there again: those that first send what is owed to it."""
FEW_FAILURES = 3
"""Failures to send anything of what is owed, after which it may be that just this cannot be sent."""
PASSING = frozenset({Fault.AWAY, Fault.BUSY, Fault.STALLED})
"""Faults that say nothing of what was asked, unless they come again and again."""
MAX_VARIANTS = 32
"""Variants kept under one key (RFC 9111 §4.1); the least used goes first."""
MAX_FIELD_SETS = 4
"""Sets of fields that the responses under one key vary by; the oldest goes first."""
MAX_REMEMBERED = 1_000
"""Keys for which a process remembers late tags, and how their responses vary."""
MAX_TURNS = 10_000
"""Keys for which a process remembers which run stored last: more than are stored while a slow run goes on."""


class Found(msgspec.Struct, frozen=True):
    """What a look-up gave.

    Args:
        key: The key that an answer to this request is filled under, as far as is known before it.
        entry: The valid entry of this request's variant, or None.
        marked_stale: It was softly invalidated.
        varies: Responses under this key vary, and none is of this request's variant.
        outdated: What is there was invalidated.
        reading: The clock; None if the backend could not be asked.
        others: Valid entries that this request selects too, older than *entry*.
        value: The bytes of *entry*.
    """

    key: str
    entry: Entry | None = None
    marked_stale: bool = False
    varies: bool = False
    outdated: bool = False
    reading: Reading | None = None
    others: tuple[Entry, ...] = ()
    value: bytes | None = None


@dataclass(frozen=True, slots=True)
class FoundValue:
    """What a look-up of a value gave.

    Args:
        value: The valid value, or None.
        marked_stale: It was softly invalidated.
        reading: The clock; None if the backend could not be asked.
    """

    value: Value | None = None
    marked_stale: bool = False
    reading: Reading | None = None


class Counts(Counter[str]):
    """A `Counter` that is written to as a dict is, at half the cost; its own way to delete makes it slow."""

    __delitem__ = dict.__delitem__  # type: ignore[assignment]


class _BytesShelf:
    def __init__(self, backend: BytesBackend) -> None:
        self._backend = backend

    async def read(self, key: str) -> bytes | None:
        return await self._backend.get_bytes(key)

    async def write(self, key: str, value: bytes, timeout: float) -> None:
        await self._backend.set_bytes(key, value, timeout)


class _TextShelf:
    def __init__(self, backend: CacheBackend) -> None:
        self._backend = backend

    async def read(self, key: str) -> bytes | None:
        text = given_text(await self._backend.get(key))
        return None if text is None else from_text(text)

    async def write(self, key: str, value: bytes, timeout: float) -> None:
        await self._backend.set(key, to_text(value), max(1, int(timeout)))


def _shelf_of(backend: CacheBackend) -> Shelf:
    in_bytes = capability(backend, BytesBackend)
    return _TextShelf(backend) if in_bytes is None else _BytesShelf(in_bytes)


@dataclass(slots=True)
class _Pending:
    """A write on its way; *value* stands in for what the backend will hold, None while its mark is not sealed."""

    record: Record
    subject: Subject | None
    keep_for: float
    since: float
    value: bytes | None
    size: int
    sent: bool = False
    on_end: Callable[[], object] | None = None
    """Is called when it is written, or will not be."""

    def end(self) -> None:
        """Tell who waits for it, if anybody still does."""
        if self.on_end is not None:
            with suppress(RuntimeError):  # a loop that was closed has nobody who waits
                self.on_end()


class StoredResponses:
    """The responses, and values, stored under one namespace of a backend, their clock, and the runs under way."""

    def __init__(
        self,
        backend: CacheBackend,
        namespace: str = "",
        *,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        for name, source in (("now", now), ("monotonic", monotonic), ("chance", chance)):
            if not callable(source):
                raise ConfigurationError(f"{name} must be a function that gives a number, not {source!r}")
        self.backend = backend
        self.namespace = checked_namespace(namespace)
        self._shelf = _shelf_of(backend)
        self.clock = clock_for(backend, self._shelf, namespace, monotonic)
        self.now = now
        self.chance = chance
        self.flight: Flight[Fill] = Flight(monotonic)
        self.value_flight: Flight[Run[Any]] = Flight(monotonic)
        self.stats: Counter[str] = Counts()
        self.log = SparingLogger(monotonic)
        """Says what each request may cause."""
        self.invalidations = 0
        self._monotonic = monotonic
        self._local = capability(backend, LocalBackend) is not None
        self._batching = capability(backend, BatchingBackend) is not None
        self.breaker = None if self._local else Breaker(monotonic)
        self._timeout = budget_of(backend)
        self._troubles = Troubles(shown(backend), monotonic)
        self._pending: OrderedDict[str, _Pending] = OrderedDict()
        self._pending_bytes = 0
        self._doomed: list[str] = []
        self._writers: set[asyncio.Task[None]] = set()
        self._writing: set[tuple[asyncio.AbstractEventLoop, str]] = set()
        self._owed: OrderedDict[Order, set[object]] = OrderedDict()
        """What of each order the backend has."""
        self._owing = threading.Lock()
        self._unpaid = 0
        """Failures since anything that is owed was sent."""
        self._tills: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = (
            weakref.WeakKeyDictionary()
        )
        self._turns = count(1)
        self._stored_in: OrderedDict[str, int] = OrderedDict()
        """The turn in which what was last stored under a key began."""
        self.gone: OrderedDict[str, None] = OrderedDict()
        """The keys whose response answers no more, whatever the backend holds."""
        self._late_tags: OrderedDict[str, frozenset[str]] = OrderedDict()
        self._variants: OrderedDict[str, Variants] = OrderedDict()
        watched = capability(backend, WatchedBackend)
        if watched is not None:
            _watch(watched, self)

    @property
    def is_local(self) -> bool:
        """Whether nobody but this process has what is stored."""
        return self._local

    async def look_up(self, key: str, subject: Subject, request: Headers) -> Found:
        """Return what is stored for *request* under *key*; a backend that fails gives a miss without a reading."""
        found = await self._attempt("look_up", self._look_up(key, subject, request))
        if found is None or self._owed:
            return Found(key)
        if found.outdated:
            self.stats["invalidated"] += 1
        return found

    async def _look_up(self, key: str, subject: Subject, request: Headers) -> Found:
        await self._pay()
        record, reading, value = await self._read(key, subject)
        if isinstance(record, Variants):
            return await self._look_up_variant(record, subject, request)
        return await self._judged(key, record, reading, subject, value)

    def basis(self, found: Found) -> Basis | None:
        """Return what a hit with *found* rests on, if the backend can be asked for just that."""
        if found.value is None or found.reading is None:
            return None
        return self.clock.basis(found.key, found.value, found.reading)

    async def is_still(self, basis: Basis) -> bool | None:
        """Return whether a look-up would find what *basis* says; None if the backend failed.

        Where something else stands in the way, a look-up finds out.
        """
        if self.breaker is None or not self._may_be_still(basis):
            return False
        permit = self.breaker.admit(may_probe=False)
        if permit is None:
            return False
        try:
            still = await self.clock.is_still(basis)
        except Exception as error:  # noqa: BLE001  as in `_attempt`
            fault = fault_of(error)
            self._note_failure("look_up", fault, error, opened=self.breaker.ended(permit, OUTCOMES[fault]))
            return None
        self.breaker.ended(permit, Outcome.THERE)
        self._troubles.succeeded("look_up")
        return still and self._may_be_still(basis)

    def _may_be_still(self, basis: Basis) -> bool:
        """Return whether what the backend has is what answers, and nothing is known that has changed of it."""
        key = basis.keys[0]
        answers = not (self._owed or key in self._pending or key in self.gone)
        return answers and self.clock.may_be_still(basis)

    async def look_up_value(self, subject: Subject) -> FoundValue:
        """Return the value of *subject*; a backend that fails gives a miss without a reading."""
        found = await self._attempt("look_up", self._look_up_value(subject))
        return FoundValue() if found is None or self._owed else found

    async def _look_up_value(self, subject: Subject) -> FoundValue:
        await self._pay()
        record, reading, _ = await self._read(subject.key, subject)
        if not isinstance(record, Value):
            return FoundValue(reading=reading)
        verdict, reading = await self._verdict(record, reading, subject)
        if verdict is Verdict.INVALID:
            self.stats["invalidated"] += 1
            return FoundValue(reading=reading)
        return FoundValue(record, verdict is Verdict.STALE, reading)

    async def _look_up_variant(self, varies: Variants, subject: Subject, request: Headers) -> Found:
        """Return the most recent response that *request* selects, one with Vary before others (RFC 9111 §4.1)."""
        known = self._remember_variants(varies)
        found = [await self._look_up_one(varies.key, fields, subject, request) for fields in known.fields]
        selected = [(each, each.entry) for each in found if each.entry is not None]
        if not selected:
            outdated = any(each.outdated for each in found)
            return (
                msgspec.structs.replace(found[0], varies=True, outdated=outdated) if found else Found(varies.key)
            )
        selected.sort(key=lambda each: precedence(each[1].headers, each[1].received_at), reverse=True)
        chosen, *others = selected
        self._use_variant(varies.key, chosen[0].key)
        return msgspec.structs.replace(chosen[0], others=tuple(entry for _, entry in others))

    async def _look_up_one(self, key: str, fields: tuple[str, ...], subject: Subject, request: Headers) -> Found:
        key = variant_key(key, frozenset(fields), request)
        subject = msgspec.structs.replace(subject, key=key)
        record, reading, value = await self._read(key, subject)
        return await self._judged(key, record, reading, subject, value)

    async def _read(self, key: str, subject: Subject) -> tuple[Record | None, Reading, bytes | None]:
        """Return what stands under *key*, the clock, and the bytes of it."""
        before = self._pending_value(key)
        late = self._late_tags.get(key)
        asked = msgspec.structs.replace(subject, tags=subject.tags | late) if late else subject
        value, reading = await self.clock.look_up(key, asked)
        value = self._pending_value(key) or before or value
        if value is None or key in self.gone:
            return None, reading, None
        record = decode(value, key)
        if record is None:
            self.stats["corrupt"] += 1
            await self._attempt("delete", self._delete(key))
        return record, reading, value

    async def _judged(
        self, key: str, record: Record | None, reading: Reading, subject: Subject, value: bytes | None
    ) -> Found:
        if not isinstance(record, Entry):
            return Found(key, reading=reading)
        verdict, reading = await self._verdict(record, reading, subject)
        if verdict is Verdict.INVALID:
            return Found(key, outdated=True, reading=reading)
        return Found(key, record, verdict is Verdict.STALE, reading=reading, value=value)

    async def _verdict(self, record: Entry | Value, reading: Reading, subject: Subject) -> tuple[Verdict, Reading]:
        """Return what the clock says of *record* for who asks by *subject*, and the reading that says so."""
        named = subject_of(record)
        verdict = reading.judge(record.mark, named)
        if verdict is Verdict.UNASKED:
            self._remember(self._late_tags, record.key, named.tags)
            reading = await self.clock.read(msgspec.structs.replace(named, tags=named.tags | subject.tags))
            verdict = reading.judge(record.mark, named)
        if verdict not in (Verdict.VALID, Verdict.STALE):
            return Verdict.INVALID, reading
        other = other_url(subject, named)
        of_other = Verdict.VALID if other is None else reading.judge(record.mark, other)
        if of_other not in (Verdict.VALID, Verdict.STALE):
            return Verdict.INVALID, reading
        return (verdict if of_other is Verdict.VALID else of_other), reading

    def would_be_valid(
        self, reading: Reading | None, mark: Mark | None, subject: Subject, invalidations: int
    ) -> bool:
        """Return whether what began under *mark* would be valid for who has *reading*, were it stored now.

        Where neither could read the clock, *invalidations*, the number of those that this process had carried out
        when it began, must be what it is now.
        """
        if reading is None or mark is None:
            return reading is None and mark is None and invalidations == self.invalidations
        return reading.judge(mark, subject) is Verdict.VALID

    async def still_holds(self, entry: Entry | Value, invalidations: int, asked: Subject | None = None) -> bool:
        """Return whether nothing that names *entry*, or the URL that it was *asked* by, was invalidated meanwhile.

        Where the clock cannot be read, *invalidations*, the number of those that this process had carried out when
        the fill began, must be what it is now.
        """
        holds = None
        if entry.mark != Mark():
            named = subject_of(entry)
            other = None if asked is None else other_url(asked, named)
            holds = await self._attempt("look_up", self._holds(entry.mark, named))
            if holds and other is not None:
                holds = await self._attempt("look_up", self._holds(entry.mark, other))
        return self.invalidations == invalidations if holds is None or self._owed else holds

    async def _holds(self, mark: Mark, subject: Subject) -> bool:
        await self._pay()
        if self.clock.needs_seal(mark, subject):
            return await self.clock.seal(mark, subject) is not None
        return (await self.clock.read(subject)).judge(mark, subject) is Verdict.VALID

    async def begin(
        self, reading: Reading | None, subject: Subject, keep_for: float, *, at_once: bool = False
    ) -> Mark | None:
        """Return what an entry carries whose handler begins after this; None: it cannot be stored.

        *at_once*: There is no handler.
        """
        if reading is None:
            return None
        return await self._attempt("begin", self.clock.begin(reading, subject, keep_for, at_once=at_once))

    async def mark(self, subject: Subject, keep_for: float) -> Mark | None:
        """Return what a value carries that is made now; None: it cannot be stored."""
        reading = await self._attempt("look_up", self._read_clock(subject))
        return await self.begin(reading, subject, keep_for, at_once=True)

    async def _read_clock(self, subject: Subject) -> Reading:
        await self._pay()
        return await self.clock.read(subject)

    def next_turn(self) -> int:
        """Return a number for what begins now, larger than that of all that began before."""
        return next(self._turns)

    async def keep(
        self,
        entry: Entry,
        keep_for: float,
        request: Headers,
        vary: frozenset[str],
        turn: int,
        replaces: str | None = None,
    ) -> bool:
        """Store *entry*, so that a look-up finds it when this returns, whether or not the backend has it yet.

        Return False if what is stored in its place has a handler that began later. A response without Vary is kept
        beside those of its key that have it, as one more variant.

        Args:
            entry: Its key is that of the request, whether or not the response varies.
            keep_for: Seconds that the backend holds it.
            request: The request's fields, for the ones in *vary*.
            vary: The fields beyond the key that the response varies by.
            turn: When its handler began; see `next_turn`.
            replaces: The key of the response that this one was fetched in place of, which goes if it is a variant.
        """
        own_key = entry.key
        if vary or entry.key in self._variants:
            key = variant_key(entry.key, vary, request)
            varies = self._with_variant(entry.key, vary, key, keep_for)
            await self._put(varies, None, varies.keep_for)
            entry = _under(entry, key)
        if replaces is not None and replaces not in (own_key, entry.key):
            self.drop(replaces, turn)
        if not self._takes_its_place(entry.key, turn):
            return False
        await self._put(entry, subject_of(entry), keep_for)
        self.stats["stored"] += 1
        return True

    async def keep_value(self, value: Value, keep_for: float, turn: int) -> bool:
        """Store *value* for *keep_for* seconds, unless what is there began in a later *turn*; as `keep`."""
        if not self._takes_its_place(value.key, turn):
            return False
        await self._put(value, subject_of(value), keep_for)
        self.stats["value-stored"] += 1
        return True

    def _takes_its_place(self, key: str, turn: int) -> bool:
        """Return whether what began in *turn* is the newest for *key*, and remember it as such."""
        if turn < self._stored_in.get(key, 0):
            return False
        self._remember(self._stored_in, key, turn, MAX_TURNS)
        self.gone.pop(key, None)
        return True

    async def discard(self, key: str) -> None:
        """Take what stands under *key* out of the backend, as far as that can be done now."""
        self._drop_pending(key)
        await self._attempt("delete", self._delete(key))

    def fields_that_select(self, key: str) -> frozenset[str]:
        """Return the request fields that the responses under *key* are known to vary by."""
        known = self._variants.get(key)
        return frozenset() if known is None else frozenset().union(*known.fields)

    def drop(self, key: str, turn: int) -> None:
        """Answer no more with the response under *key*, unless it was stored in a later *turn*.

        It is deleted from the backend beside the requests.
        """
        if turn >= self._stored_in.get(key, 0):
            self._drop_pending(key)
            self._remember(self.gone, key, None)
            self._doomed.append(key)
            self._start_writer()

    def _with_variant(self, key: str, vary: frozenset[str], digest_key: str, keep_for: float) -> Variants:
        known = self._variants.get(key) or Variants(key, (), (), 0.0)
        fields = tuple(dict.fromkeys([tuple(sorted(vary)), *known.fields]))[:MAX_FIELD_SETS]
        kept = (*(each for each in known.kept if each != digest_key), digest_key)
        for dropped in kept[:-MAX_VARIANTS]:
            self._drop_pending(dropped)
            self._doomed.append(dropped)
        varies = Variants(key, fields, kept[-MAX_VARIANTS:], max(keep_for, known.keep_for))
        self._remember(self._variants, key, varies)
        return varies

    def _remember_variants(self, found: Variants) -> Variants:
        known = self._variants.get(found.key)
        is_news = known is None or known.fields != found.fields or known.keep_for < found.keep_for
        if known is None or is_news or not {*found.kept} <= {*known.kept}:
            own = known.kept if known else ()
            kept = tuple(dict.fromkeys([*(each for each in found.kept if each not in own), *own]))
            keep_for = max(found.keep_for, known.keep_for) if known else found.keep_for
            known = Variants(found.key, found.fields, kept, keep_for)
            self._remember(self._variants, found.key, known)
        return known

    def _use_variant(self, key: str, used: str) -> None:
        known = self._variants.get(key)
        if known is None:
            return
        if used in known.kept[:-1]:
            kept = (*(each for each in known.kept if each != used), used)
            known = msgspec.structs.replace(known, kept=kept)
        self._remember(self._variants, key, known)

    @staticmethod
    def _remember(memory: OrderedDict[str, T], key: str, value: T, most: int | None = None) -> None:
        memory.pop(key, None)
        memory[key] = value
        if len(memory) > (MAX_REMEMBERED if most is None else most):
            memory.popitem(last=False)

    async def _put(self, record: Record, subject: Subject | None, keep_for: float) -> None:
        if self._local:
            if self._doomed:
                await self._delete_doomed()
            await self._attempt("store", self._write(record, subject, keep_for, encode(record)))
            return
        sealed = subject is None or isinstance(record, Variants) or not self.clock.needs_seal(record.mark, subject)
        self._drop_pending(record.key)
        value = encode(record)
        self._pending[record.key] = _Pending(
            record, subject, keep_for, self._monotonic(), value if sealed else None, len(value)
        )
        self._pending_bytes += len(value)
        while len(self._pending) > MAX_PENDING or self._pending_bytes > MAX_PENDING_BYTES:
            self._drop_pending(next(iter(self._pending)))
            self.stats["store_dropped"] += 1
        self._start_writer()

    async def _write(self, record: Record, subject: Subject | None, keep_for: float, value: bytes) -> None:
        if subject is None or isinstance(record, Variants):
            await self._shelf.write(record.key, value, keep_for)
        else:
            await self.clock.store(record.key, value, keep_for, record.mark, subject)

    def _pending_value(self, key: str) -> bytes | None:
        pending = self._pending.get(key)
        if pending is None or self._monotonic() - pending.since > PENDING_S:
            return None
        return pending.value

    def _drop_pending(self, key: str) -> None:
        pending = self._pending.pop(key, None)
        if pending is not None:
            self._pending_bytes -= pending.size
            pending.end()

    async def written(self, key: str) -> None:
        """Return when what is on its way to *key* is written, or will not be, or has had the time of a call."""
        pending = self._pending.get(key)
        if pending is None:
            return
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        pending.on_end = partial(loop.call_soon_threadsafe, _settle, ended)
        await asyncio.wait({ended}, timeout=self._timeout)

    def _start_writer(self) -> None:
        loop = asyncio.get_running_loop()
        if sum(task.get_loop() is loop for task in [*self._writers]) < WRITERS:
            task = loop.create_task(self._write_pending(), context=Context())  # what it writes is of many requests
            self._writers.add(task)
            task.add_done_callback(self._writers.discard)

    async def _write_pending(self) -> None:
        loop = asyncio.get_running_loop()
        await self._delete_doomed()
        while (pending := self._next_pending(loop)) is not None:
            key = pending.record.key
            pending.sent = True
            self._writing.add((loop, key))
            try:
                await self._delete_doomed()
                await self._write_one(pending)
            finally:
                self._writing.discard((loop, key))
                if self._pending.get(key) is pending:
                    self._drop_pending(key)

    def _next_pending(self, loop: asyncio.AbstractEventLoop) -> _Pending | None:
        """Return the oldest that nobody sends yet; of one key, one after the other, so that the newest wins."""
        for key, pending in [*self._pending.items()]:
            if not pending.sent and (loop, key) not in self._writing:
                return pending
        return None

    async def _delete_doomed(self) -> None:
        while self._doomed:
            await self._attempt("delete", self._delete(self._doomed.pop()))

    async def _delete(self, key: str) -> None:
        await self.backend.delete(key)

    async def _write_one(self, pending: _Pending) -> None:
        waited = self._monotonic() - pending.since
        left = pending.keep_for - waited
        if waited >= PENDING_S or left <= 0:
            self.stats["store_dropped"] += 1
            return
        await self._attempt("store", self._seal_and_write(pending, left), PENDING_S - waited)

    async def _seal_and_write(self, pending: _Pending, left: float) -> None:
        record, value = pending.record, pending.value
        if value is None and not isinstance(record, Variants) and pending.subject is not None:
            mark = await self.clock.seal(record.mark, pending.subject)
            if mark is None:
                self.stats["store_dropped"] += 1
                return
            record = pending.record = _under(record, record.key, mark)
            value = encode(record)
            pending.value = value
        await self._write(record, pending.subject, left, value or b"")

    async def invalidate(self, order: Order) -> InvalidationResult:
        """Carry out *order*; when this returns, nothing it names is served by this process any more.

        It has the time of one operation, as any other. A backend that cannot be reached is owed the order: nothing
        of it is trusted until it has it. So it is if the caller is cancelled meanwhile. An order that names too
        much, or that the backend does not take although it is there, becomes one of everything.

        Raises:
            ConfigurationError: If a pattern has more than 256 characters.
        """
        for pattern in order.patterns:
            compile_glob(pattern)
        self.invalidations += 1
        fits = order.size <= self.clock.most_names
        if not fits:
            order = _everything([order])
            self.stats["invalidations_widened"] += 1
        sent: set[object] = set()
        try:
            result = await self._attempt("invalidate", self._invalidate(order, sent))
        except asyncio.CancelledError:
            self._owe(order, sent)
            raise
        if result is None:
            self._owe(order, sent)
            result = InvalidationResult(durable=False)
        else:
            self.stats["invalidations"] += 1
        return result if fits else _widened(result)

    async def _invalidate(self, order: Order, sent: set[object]) -> InvalidationResult:
        if self._owed and not self._till().locked():
            await self._pay()
        return await self._send(order, sent)

    def _owe(self, order: Order, sent: Iterable[object] = ()) -> None:
        """Remember *order*; what is *sent* of it need not be sent again, unless it was given again meanwhile."""
        with self._owing:
            given_again = self._owed.pop(order, None) is not None
            self._owed[order] = set() if given_again else {*sent}
            if len(self._owed) > MAX_OWED or sum(each.size for each in self._owed) > self.clock.most_names:
                everything = _everything([*self._owed])
                self._owed.clear()
                self._owed[everything] = set()
                self.stats["invalidations_widened"] += 1

    def _due(self, most: int) -> list[tuple[Order, set[object]]]:
        """Return the oldest that is owed with what is like it among the next, *most* at once; none if none is."""
        with self._owing:
            alike = next(groupby(islice(self._owed.items(), most), key=lambda each: each[0].soft), None)
            return [] if alike is None else [*alike[1]]

    async def _pay(self) -> None:
        """Send the invalidations that the backend did not get, before anything of it is trusted.

        First one alone, then twice as many at once each time: all are soon sent, and something is however little
        the backend does within the time of an operation. What waits meanwhile does not send the same.
        """
        if not self._owed:
            return
        async with self._till():
            most = 1
            while debts := self._due(most):
                if len(debts) == 1:
                    await self._send(*debts[0])
                else:
                    await self._send(_merged([order for order, _ in debts]), set())
                self._paid(debts)
                most = min(2 * most, MAX_OWED)

    def _till(self) -> asyncio.Lock:
        """Return what whoever pays in the running loop has to himself."""
        return self._tills.setdefault(asyncio.get_running_loop(), asyncio.Lock())

    def _paid(self, debts: Iterable[tuple[Order, set[object]]]) -> None:
        self._unpaid = 0
        with self._owing:
            for order, sent in debts:
                if self._owed.get(order) is sent:
                    del self._owed[order]

    async def _send(self, order: Order, sent: set[object]) -> InvalidationResult:
        """Send *order*, or everything where the backend takes that instead.

        It is tried at once where the backend has a fault to find with the order. Where it seems to be away, after
        a few failures only, and every other time: then the order has half of the time, and everything the rest.
        """
        had, few, sending = len(sent), self._unpaid < FEW_FAILURES, self.clock.invalidate(order, sent)
        try:
            return await (sending if few or self._unpaid % 2 else _in_time(sending, self._timeout / 2))
        except Exception as error:
            more = len(sent) > had
            fault = fault_of(error)
            says_nothing = fault is Fault.READ_ONLY or (fault in PASSING and (few or more))
            if says_nothing or order == _everything([order]):
                raise
            return await self._send_everything(order, error)
        finally:
            if len(sent) > had:
                self._unpaid = 0

    async def _send_everything(self, order: Order, error: Exception) -> InvalidationResult:
        """Send everything in the place of *order*, which failed with *error*, and of all that is owed."""
        with self._owing:
            debts = [*self._owed.items()]
        result = await self.clock.invalidate(_everything([order, *(each for each, _ in debts)]))
        self._note_failure("invalidate", fault_of(error), error)
        self.stats["invalidations_widened"] += 1
        self._paid(debts)
        return _widened(result)

    async def close(self) -> None:
        """Wait a bounded time for fills and writes under way in the running loop, then end them."""
        await land((self.flight, self.value_flight), PENDING_S)
        loop = asyncio.get_running_loop()
        writers = {task for task in [*self._writers] if task.get_loop() is loop}
        if writers:
            _, late = await asyncio.wait(writers, timeout=PENDING_S)
            await end(late)
        if self._owed:
            await self._pay_at_last()
        await self.clock.close()

    async def _pay_at_last(self) -> None:
        """Try once more to send what is owed, and say what is not: nobody may do so later."""
        try:
            await _in_time(self._pay(), self._timeout)
        except Exception as error:  # noqa: BLE001  a backend may be anybody's code
            logger.warning(
                "cache.invalidations_lost",
                backend=shown(self.backend),
                owed=len(self._owed),
                reason=fault_of(error).value,
            )

    async def _attempt(
        self, operation: str, work: Coroutine[Any, Any, T], timeout: float | None = None
    ) -> T | None:
        """Return what *work* gives; None if it fails, takes longer than it may, or the breaker is open."""
        if self.breaker is not None:
            return await self._attempt_afar(self.breaker, operation, work, timeout or self._timeout)
        try:
            result = await work
        except Exception as error:  # noqa: BLE001  a backend may be anybody's code: none of its errors is the user's
            self._note_failure(operation, fault_of(error), error)
            return None
        self._troubles.succeeded(operation)
        return result

    async def _attempt_afar(
        self, breaker: Breaker, operation: str, work: Coroutine[Any, Any, T], timeout: float
    ) -> T | None:
        permit = breaker.admit(may_probe=operation in PROBES)
        if permit is None:
            work.close()
            self.stats[f"{operation}_skipped"] += 1
            self._troubles.skipped()
            return None
        loop = asyncio.get_running_loop()
        late_at = loop.time() + timeout + STALLED_S
        try:
            prompt = self._batching and operation == "look_up" and not self._owed
            result = await (_ended_in_time(work, timeout) if prompt else _in_time(work, timeout))
        except Exception as error:  # noqa: BLE001  as above
            fault = fault_of(error, late=loop.time() > late_at)
            self._note_failure(operation, fault, error, opened=breaker.ended(permit, OUTCOMES[fault]))
            return None
        except BaseException:
            breaker.ended(permit, Outcome.NOTHING)
            raise
        breaker.ended(permit, Outcome.THERE)
        self._troubles.succeeded(operation)
        return result

    def _note_failure(self, operation: str, fault: Fault, error: Exception, *, opened: bool = False) -> None:
        self.stats[f"{operation}_failed"] += 1
        self.stats[f"failed_{fault.value}"] += 1
        if self._owed and operation in PROBES and fault is not Fault.READ_ONLY:
            self._unpaid += 1
        if opened:
            self.stats["breaker_opened"] += 1
        self._troubles.failed(operation, fault, error, opened=opened)


async def _in_time(work: Coroutine[Any, Any, T], timeout: float) -> T:
    """Return what *work* gives within *timeout* seconds.

    It is cancelled then, and not waited for: a client that is connecting may take its time for that.

    Raises:
        BackendError: If it takes longer.
    """
    task = asyncio.ensure_future(work)
    try:
        for seconds in (timeout, LAST_LOOK_S + REPORT_S):
            await asyncio.wait({task}, timeout=seconds)
            if task.done():
                return _result(task)
    except asyncio.CancelledError:
        _give_up(task)
        raise
    _give_up(task)
    raise BackendError(f"no answer within {timeout:g} s")


def _result(task: asyncio.Task[T]) -> T:
    """Return what *task* gives; that it was cancelled, which nobody did here, is a failure like another."""
    if task.cancelled():
        raise BackendError("the call was cancelled within the backend", fault=Fault.UNKNOWN)
    return task.result()


async def _ended_in_time(work: Coroutine[Any, Any, T], timeout: float) -> T:
    """As `_in_time`, for *work* that ends as soon as it is cancelled, and so needs no task of its own."""
    loop, timer = asyncio.get_running_loop(), asyncio.timeout(None)
    last_look = loop.call_later(timeout, lambda: timer.reschedule(loop.time() + LAST_LOOK_S + REPORT_S))
    try:
        async with timer:
            return await work
    except TimeoutError:
        if timer.expired():
            raise BackendError(f"no answer within {timeout:g} s") from None
        raise
    finally:
        last_look.cancel()


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _give_up(task: asyncio.Future[T]) -> None:
    task.cancel()
    task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())


def _watch(backend: WatchedBackend, store: StoredResponses) -> None:
    """Drop a pending write when its key is set or deleted directly, as long as *store* lives."""
    alive = weakref.ref(store)

    def told(key: str) -> None:
        if (here := alive()) is not None:
            here._drop_pending(key)  # noqa: SLF001

    backend.watch(told)


def _merged(orders: list[Order]) -> Order:
    """Return what *orders* name, which are all hard or all soft, as one."""
    if any(order.everything for order in orders):
        return _everything(orders)
    return Order(
        tags=tuple(tag for order in orders for tag in order.tags),
        patterns=tuple(pattern for order in orders for pattern in order.patterns),
        all_of=tuple(tags for order in orders for tags in order.all_of),
        keys=tuple(key for order in orders for key in order.keys),
        soft=orders[0].soft,
    )


def _everything(orders: list[Order]) -> Order:
    """Return the order of everything that stands for all of *orders*."""
    return Order(everything=True, soft=all(order.soft for order in orders))


def _widened(result: InvalidationResult) -> InvalidationResult:
    """Return *result* as that of an order that named less than everything."""
    return replace(result, widened_to=", ".join(filter(None, (result.widened_to, "everything"))))


def subject_of(entry: Entry | Value) -> Subject:
    """Return what an invalidation may name *entry* by."""
    return Subject(frozenset(entry.tags), entry.path, entry.logical_key, entry.key)


def variant_key(key: str, fields: frozenset[str], request: Headers) -> str:
    """Return the key of the variant under *key* that *request* selects by *fields*."""
    return f"{key}:{digest(part for pair in variant(fields, request) for part in pair)}"


def _under(entry: Kept, key: str, mark: Mark | None = None) -> Kept:
    return msgspec.structs.replace(entry, key=key, mark=mark or entry.mark)

"""Stored responses over a backend: what a look-up finds, and what takes its place.

Nothing here can fail: where the backend does (`calls`), a look-up is a miss, an entry is not stored (`writes`),
and an invalidation is owed (`orders`).
"""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import msgspec

from app_cache.backends.base import (
    BatchingBackend,
    LocalBackend,
    capability,
    checked_backend,
)
from app_cache.backends.wrapper import shown
from app_cache.bounded import Bounded
from app_cache.calls import Calls
from app_cache.checks import source_of_numbers
from app_cache.clock.base import InvalidationResult, Order, Verdict
from app_cache.clock.choose import clock_for
from app_cache.clock.names import Subject, other_url
from app_cache.codec import Entry, Mark, Value, Variants, decode
from app_cache.flight import Flight, land
from app_cache.keys import checked_namespace, digest
from app_cache.logger_config import SparingLogger
from app_cache.orders import Orders
from app_cache.rules.glob import compile_glob
from app_cache.rules.variants import precedence, variant
from app_cache.shelf import shelf_of
from app_cache.writes import PENDING_S, Writes

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from app_cache.backends.base import CacheBackend
    from app_cache.breaker import Breaker
    from app_cache.clock.base import Basis, Reading
    from app_cache.codec import Record
    from app_cache.flight import Fill, Run
    from app_cache.rules.messages import Headers

P = ParamSpec("P")
T = TypeVar("T")

MAX_VARIANTS = 32
"""Variants kept under one key (RFC 9111 §4.1); the least used goes first."""
MAX_FIELD_SETS = 4
"""Sets of fields that the responses under one key vary by; the oldest goes first."""
MAX_REMEMBERED = 1_000
"""Keys for which a process remembers late tags, and how their responses vary; the oldest eighth goes at once."""
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


class StoredResponses:
    """The responses, and values, stored under one namespace of a backend, their clock, and the runs under way.

    Raises:
        ConfigurationError: If what is given cannot work.
    """

    def __init__(
        self,
        backend: CacheBackend,
        namespace: str = "",
        *,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        for name, source in (("clock", now), ("monotonic", monotonic), ("chance", chance)):
            source_of_numbers(name, source)
        self.backend = checked_backend(backend)
        self.namespace = checked_namespace(namespace)
        shelf = shelf_of(backend)
        self.clock = clock_for(backend, shelf, namespace, monotonic)
        self.now = now
        self.chance = chance
        self.flight: Flight[Fill] = Flight(monotonic)
        self.value_flight: Flight[Run[Any]] = Flight(monotonic)
        self.stats: Counter[str] = Counts()
        self.log = SparingLogger(monotonic)
        """Says what each request may cause."""
        self.invalidations = 0
        self.calls = Calls(backend, self.stats, monotonic)
        self.writes = Writes(backend, shelf, self.clock, self.calls, self.stats, monotonic)
        self.orders = Orders(self.clock, self.calls, self.stats, shown(backend))
        self.is_local = capability(backend, LocalBackend) is not None
        """Whether nobody but this process has what is stored."""
        self._ends_at_once = capability(backend, BatchingBackend) is not None
        self._turns = count(1)
        self._stored_in: Bounded[str, int] = Bounded(MAX_TURNS)
        """The turn in which what was last stored under a key began."""
        self.gone: Bounded[str, None] = Bounded(MAX_REMEMBERED)
        """The keys whose response answers no more, whatever the backend holds."""
        self._late_tags: Bounded[str, frozenset[str]] = Bounded(MAX_REMEMBERED)
        self._variants: Bounded[str, Variants] = Bounded(MAX_REMEMBERED)

    @property
    def breaker(self) -> Breaker | None:
        """Says whether the backend is asked; None where it is in this process, and so cannot be away."""
        return self.calls.breaker

    async def look_up(self, key: str, subject: Subject, request: Headers) -> Found:
        """Return what is stored for *request* under *key*; a backend that fails gives a miss without a reading."""
        found = await self._asked(self._look_up, key, subject, request)
        if found is None or self.orders.owed:
            return Found(key)
        if found.outdated:
            self.stats["invalidated"] += 1
        return found

    def _asked(
        self, read: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, T | None]:
        """Return what *read* gives, once the backend has got what it is owed; None if either fails."""
        if self.orders.owed:
            return self.calls.attempt("look_up", self.orders.before(read, *args, **kwargs))
        return self.calls.attempt("look_up", read(*args, **kwargs), ends_at_once=self._ends_at_once)

    async def _look_up(self, key: str, subject: Subject, request: Headers) -> Found:
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

        False may also mean that something else would answer, a write on its way for one: look up then.
        """
        if self.is_local or not self._may_be_still(basis):
            return False
        still = await self.calls.confirm(self.clock.is_still(basis))
        return still and self._may_be_still(basis)

    def _may_be_still(self, basis: Basis) -> bool:
        """Return whether it is the backend's record that answers, and no change of *basis* is known."""
        key = basis.keys[0]
        answers = not (self.orders.owed or key in self.writes.pending or key in self.gone)
        return answers and self.clock.may_be_still(basis)

    async def look_up_value(self, subject: Subject) -> FoundValue:
        """Return the value of *subject*; a backend that fails gives a miss without a reading."""
        found = await self._asked(self._look_up_value, subject)
        return FoundValue() if found is None or self.orders.owed else found

    async def _look_up_value(self, subject: Subject) -> FoundValue:
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
        selected.sort(key=lambda each: precedence(each[1].headers, each[1].requested_at), reverse=True)
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
        before = self.writes.value(key)
        late = self._late_tags.get(key)
        asked = msgspec.structs.replace(subject, tags=subject.tags | late) if late else subject
        value, reading = await self.clock.look_up(key, asked)
        value = self.writes.value(key) or before or value
        if value is None or key in self.gone:
            return None, reading, None
        record = decode(value, key)
        if record is None:
            self.stats["corrupt"] += 1
            await self.writes.delete(key)
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
            self._late_tags[record.key] = named.tags
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
            holds = await self._asked(self._holds, entry.mark, named)
            if holds and other is not None:
                holds = await self._asked(self._holds, entry.mark, other)
        return self.invalidations == invalidations if holds is None or self.orders.owed else holds

    async def _holds(self, mark: Mark, subject: Subject) -> bool:
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
        if self.is_local:
            return reading.mark  # no stamp is missing where only invalidations make them
        return await self.calls.attempt("begin", self.clock.begin(reading, subject, keep_for, at_once=at_once))

    async def mark(self, subject: Subject, keep_for: float) -> Mark | None:
        """Return what a value carries that is made now; None: it cannot be stored."""
        reading = await self._asked(self.clock.read, subject)
        return await self.begin(reading, subject, keep_for, at_once=True)

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
            await self.writes.put(varies, None, varies.keep_for)
            self.gone.pop(own_key, None)
            entry = msgspec.structs.replace(entry, key=key)
        if replaces is not None and replaces not in (own_key, entry.key):
            self.drop(replaces, turn)
        if not self._takes_its_place(entry.key, turn):
            return False
        await self.writes.put(entry, subject_of(entry), keep_for)
        self.stats["stored"] += 1
        return True

    async def keep_value(self, value: Value, keep_for: float, turn: int) -> bool:
        """Store *value* for *keep_for* seconds, unless what is there began in a later *turn*; as `keep`."""
        if not self._takes_its_place(value.key, turn):
            return False
        await self.writes.put(value, subject_of(value), keep_for)
        self.stats["value-stored"] += 1
        return True

    def _takes_its_place(self, key: str, turn: int) -> bool:
        """Return whether what began in *turn* is the newest for *key*, and remember it as such."""
        if turn < self._stored_in.get(key, 0):
            return False
        self._stored_in[key] = turn
        self.gone.pop(key, None)
        return True

    def fields_that_select(self, key: str) -> frozenset[str]:
        """Return the request fields that the responses under *key* are known to vary by."""
        known = self._variants.get(key)
        return frozenset() if known is None else frozenset().union(*known.fields)

    def drop(self, key: str, turn: int) -> None:
        """Answer no more with the response under *key*, unless it was stored in a later *turn*.

        It is deleted from the backend beside the requests.
        """
        if turn >= self._stored_in.get(key, 0):
            self.gone[key] = None
            self.writes.doom(key)

    def _with_variant(self, key: str, vary: frozenset[str], digest_key: str, keep_for: float) -> Variants:
        known = self._variants.get(key) or Variants(key, (), (), 0.0)
        fields = tuple(dict.fromkeys([tuple(sorted(vary)), *known.fields]))[:MAX_FIELD_SETS]
        kept = (*(each for each in known.kept if each != digest_key), digest_key)
        for dropped in kept[:-MAX_VARIANTS]:
            self.writes.doom(dropped)
        varies = Variants(key, fields, kept[-MAX_VARIANTS:], max(keep_for, known.keep_for))
        self._variants[key] = varies
        return varies

    def _remember_variants(self, found: Variants) -> Variants:
        known = self._variants.get(found.key)
        is_news = known is None or known.fields != found.fields or known.keep_for < found.keep_for
        if known is None or is_news or not {*found.kept} <= {*known.kept}:
            own = known.kept if known else ()
            kept = tuple(dict.fromkeys([*(each for each in found.kept if each not in own), *own]))
            keep_for = max(found.keep_for, known.keep_for) if known else found.keep_for
            known = Variants(found.key, found.fields, kept, keep_for)
            self._variants[found.key] = known
        return known

    def _use_variant(self, key: str, used: str) -> None:
        known = self._variants.get(key)
        if known is None:
            return
        if used in known.kept[:-1]:
            kept = (*(each for each in known.kept if each != used), used)
            known = msgspec.structs.replace(known, kept=kept)
        self._variants[key] = known

    async def invalidate(self, order: Order) -> InvalidationResult:
        """Carry out *order*; when this returns, nothing it names is served by this process any more.

        A backend that cannot be reached is owed the order: nothing of it is trusted until it has it. See `Orders`.

        Raises:
            ConfigurationError: If a pattern has more than 256 characters.
        """
        for pattern in order.patterns:
            compile_glob(pattern)
        self.invalidations += 1
        return await self.orders.carry_out(order)

    async def close(self) -> None:
        """Wait a bounded time for fills and writes under way in the running loop, then end them."""
        await land((self.flight, self.value_flight), PENDING_S)
        await self.writes.close()
        await self.orders.close()
        await self.clock.close()


def subject_of(entry: Entry | Value) -> Subject:
    """Return what an invalidation may name *entry* by."""
    return Subject(frozenset(entry.tags), entry.path, entry.logical_key, entry.key)


def variant_key(key: str, fields: frozenset[str], request: Headers) -> str:
    """Return the key of the variant under *key* that *request* selects by *fields*."""
    return f"{key}:{digest(part for pair in variant(fields, request) for part in pair)}"

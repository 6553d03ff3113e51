"""Values of the application's own: typed, made once for all who ask, and invalidated as responses are.

A `ValueCache` belongs to its caller; what callers share, the runs of factories and the values, is the store's.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import math
import types
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

import anyio.to_thread
from anyio import CapacityLimiter
from anyio.lowlevel import RunVar

from app_cache import checks
from app_cache.checks import checked_tags, kind_of
from app_cache.clock.base import Order
from app_cache.clock.names import Subject, key_stamp, tag_stamp
from app_cache.codec import Mark, Value
from app_cache.errors import ConfigurationError, EncodingError
from app_cache.flight import FILL_TIMEOUT_S, Run
from app_cache.keys import digest, prefix
from app_cache.rules.freshness import is_ahead
from app_cache.typed import decode_value, encode_value, function_of, name_of, returned_by, settled

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterator
    from datetime import timedelta

    from typing_extensions import TypeForm

    from app_cache.clock.base import InvalidationResult, Reading
    from app_cache.store import FoundValue, StoredResponses

T = TypeVar("T")
D = TypeVar("D")

THREADS = 40
"""Threads in which plain factories run at once in a loop: as many as `def` endpoints have, but other ones.

Else an endpoint that waits for a value in a thread would hold the very thread that the factory waits for.
"""
_threads: RunVar[CapacityLimiter] = RunVar("app_cache_threads")
_inside: ContextVar[tuple[_Making, ...]] = ContextVar("app_cache_inside", default=())
"""The runs in whose factories the caller is, outermost first."""

_NOTHING: Any = object()
"""Stands for no value at all, since None is one."""


@dataclass(frozen=True, slots=True)
class _Miss:
    """What a look-up in vain gave: the clock, and the value that stands in for a failure, or `_NOTHING`."""

    reading: Reading | None
    rescue: Any


class Use(Enum):
    """How a stored value may be used at a moment."""

    FRESH = "fresh"
    STALE = "stale"
    """It is given once more, while it is made anew."""
    RESCUE = "rescue"
    """It stands in for a failure, and for nothing else."""
    NONE = "none"


def use_of(value: Value, now: float, *, marked_stale: bool) -> Use:
    """Return how *value* may be used at *now*; softly invalidated, or made ahead of it, it counts as stale."""
    ttl = value.freshness_lifetime - (now - value.made_at)
    if marked_stale or is_ahead(value.made_at, now):
        ttl = min(ttl, 0.0)
    if ttl > 0:
        return Use.FRESH
    if 0 < value.stale_while_revalidate >= -ttl:
        return Use.STALE
    return Use.RESCUE if 0 < value.stale_if_error >= -ttl else Use.NONE


@dataclass(frozen=True, slots=True)
class _Terms:
    """How long a value is fresh, and how long it may be used when it is stale, in seconds."""

    timeout: float
    stale_while_revalidate: float = 0.0
    stale_if_error: float = 0.0

    @property
    def keep_for(self) -> float:
        return self.timeout + max(self.stale_while_revalidate, self.stale_if_error)

    def value(self, subject: Subject, content: bytes, mark: Mark, now: float) -> Value:
        tags, logical_key = tuple(sorted(subject.tags)), subject.logical_key or ""
        windows = self.stale_while_revalidate, self.stale_if_error
        return Value(subject.key, mark, tags, logical_key, content, now, self.timeout, *windows)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What one call of `get_or_set` asks for."""

    subject: Subject
    factory: Callable[[], object]
    kind: Any
    terms: _Terms


class ValueCache:
    """Keeps values of the application's own, under keys apart from those of responses.

    What msgspec and pydantic can encode can be kept, and comes back as the type that is asked for, a new object
    for each caller. Invalidations reach values as they reach responses: by tag, by key, and by patterns over keys.
    A backend that is slow, full or away costs a bounded time and raises nothing.

    >>> import asyncio
    >>> from app_cache.backends.memory import MemoryBackend
    >>> from app_cache.store import StoredResponses
    >>> cache = ValueCache(StoredResponses(MemoryBackend()))
    >>> asyncio.run(cache.get_or_set("report:7", lambda: {"total": 3}, timeout=60, tags=["reports"]))
    {'total': 3}

    Args:
        store: Where they are kept: ``container.store()``.

    Raises:
        ConfigurationError: If *store* is something else than stored responses.
    """

    def __init__(self, store: StoredResponses) -> None:
        if not callable(getattr(store, "keep_value", None)):
            raise ConfigurationError(
                "ValueCache takes stored responses, container.store() or StoredResponses(backend), "
                f"not a {type(store).__name__}"
            )
        self.store = store
        """The store that keeps the values, beside the responses."""

    @overload
    async def get(self, key: str, *, default: Any = ...) -> Any: ...
    @overload
    async def get(self, key: str, type: TypeForm[T]) -> T | None: ...
    @overload
    async def get(self, key: str, type: TypeForm[T], default: D) -> T | D: ...

    async def get(self, key: str, type: Any = Any, default: Any = None) -> Any:  # noqa: A002  msgspec's word
        """Return the fresh value under *key*, or *default* if there is none.

        Args:
            key: As it was set.
            type: What it comes back as; what cannot be read as that is a miss. Without one it comes back as plain
                msgpack has it: None, bool, int, float, str, bytes, lists, dicts, datetimes with a zone.
            default: Given for a miss; an object of your own tells a miss from a stored None.

        Raises:
            ConfigurationError: If *key* is no string, or is empty.
            EncodingError: If nothing can come back as *type*.
        """
        subject = self._subject(key)
        found = await self.store.look_up_value(subject)
        use, value = self._judged(found, type)
        self.store.stats["value-hit" if use is Use.FRESH else "value-miss"] += 1
        return value if use is Use.FRESH else default

    async def set(
        self, key: str, value: object, timeout: float | timedelta, *, tags: Collection[str] = ()
    ) -> None:
        """Keep *value* under *key* for *timeout* seconds, in place of what is there or is being made.

        What was there is invalidated first, as by `delete`: it is not given any more, even if the backend does not
        take the new value. When this returns the backend has the value, unless it took longer than a call may, is
        away, or has no room for it.

        Raises:
            ConfigurationError: If *key*, *timeout* or a tag cannot work.
            EncodingError: If *value* cannot be encoded.
        """
        subject, terms = self._subject(key, tags), _Terms(checks.seconds("timeout", timeout))
        content = encode_value(value)
        await self.store.invalidate(Order(tags=(key_stamp(key),)))
        turn = self.store.next_turn()
        mark = await self.store.mark(subject, terms.keep_for)
        if mark is not None:
            record = terms.value(subject, content, mark, self.store.now())
            if await self.store.keep_value(record, terms.keep_for, turn):
                await self.store.writes.written(record.key)

    async def delete(self, key: str) -> InvalidationResult:
        """Forget what is kept under *key*, or is being made for it, as `by_key` of the invalidation service does.

        It holds where the backend is away, too: the result says ``durable=False`` then.

        Raises:
            ConfigurationError: If *key* is no string, or is empty.
        """
        subject = self._subject(key)
        result = await self.store.invalidate(Order(tags=(key_stamp(key),)))
        if result.durable:
            await self.store.writes.delete(subject.key)
        return result

    @overload
    async def get_or_set(
        self,
        key: str,
        factory: Callable[[], object],
        timeout: float | timedelta,
        *,
        type: TypeForm[T],
        tags: Collection[str] = ...,
        stale_while_revalidate: float | timedelta | None = ...,
        stale_if_error: float | timedelta | None = ...,
    ) -> T: ...
    @overload
    async def get_or_set(
        self,
        key: str,
        factory: Callable[[], Awaitable[T]],
        timeout: float | timedelta,
        *,
        tags: Collection[str] = ...,
        stale_while_revalidate: float | timedelta | None = ...,
        stale_if_error: float | timedelta | None = ...,
    ) -> T: ...
    @overload
    async def get_or_set(
        self,
        key: str,
        factory: Callable[[], T],
        timeout: float | timedelta,
        *,
        tags: Collection[str] = ...,
        stale_while_revalidate: float | timedelta | None = ...,
        stale_if_error: float | timedelta | None = ...,
    ) -> T: ...

    async def get_or_set(
        self,
        key: str,
        factory: Callable[[], object],
        timeout: float | timedelta,
        *,
        type: Any = None,  # noqa: A002
        tags: Collection[str] = (),
        stale_while_revalidate: float | timedelta | None = None,
        stale_if_error: float | timedelta | None = None,
    ) -> Any:
        """Return the value under *key*; if there is none, have *factory* make it, once for all who ask.

        Args:
            key: What tells the value from others.
            factory: A callable without arguments; a plain one runs in a thread. Its run belongs to the cache: it
                goes on when its caller is cancelled. What it raises reaches its caller as it is, and each other
                caller that waits as a copy; it is never kept.
            timeout: Seconds that the value is fresh.
            type: What the value comes back as, to the caller that made it too; if not given, what *factory* is
                annotated to return. Without either, only plain values come back: see `get`.
            tags: Names to invalidate it by.
            stale_while_revalidate: Seconds beyond *timeout* in which it is given while it is made anew.
            stale_if_error: Seconds beyond *timeout* in which it is given if *factory* raises.

        Raises:
            ConfigurationError: If *key*, *factory*, a time or a tag cannot work, or *factory* asks for *key*.
            EncodingError: If what *factory* gave cannot come back as the type.
            TimeoutError: If a few calls have run their factories for so long that this one may not run its own.
            Exception: What *factory* raised.
        """
        _check_factory(factory)
        terms = _Terms(
            checks.seconds("timeout", timeout),
            _window("stale_while_revalidate", stale_while_revalidate),
            _window("stale_if_error", stale_if_error),
        )
        kind = returned_by(factory) if type is None else type
        return await self._answer(_Asked(self._subject(key, tags), factory, kind, terms))

    def _subject(self, key: str, tags: Collection[str] = ()) -> Subject:
        if not key or not _is_text(key):
            raise ConfigurationError(f"a key must be a text that is not empty, not {kind_of(key)}")
        key = str.__str__(key)  # plain text, of whatever class it was
        stamps = frozenset([key_stamp(key), *map(tag_stamp, checked_tags(tags))])
        return Subject(stamps, "", key, f"{prefix(self.store.namespace)}v:{digest(['value', key])}")

    def _judged(self, found: FoundValue, kind: Any) -> tuple[Use, Any]:
        """Return how the value *found* may be used, and the value; one that cannot be read as *kind* is a miss."""
        if found.value is None:
            return Use.NONE, None
        use = use_of(found.value, self.store.now(), marked_stale=found.marked_stale)
        value = _NOTHING if use is Use.NONE else self._read(found.value, kind)
        return (Use.NONE, None) if value is _NOTHING else (use, value)

    def _read(self, value: Value, kind: Any) -> Any:
        try:
            return decode_value(value.content, kind)
        except EncodingError:
            raise
        except Exception:  # noqa: BLE001  a validator of the application's own may raise anything
            self.store.stats["value-unreadable"] += 1
            return _NOTHING

    async def _answer(self, asked: _Asked, *, waited: bool = False) -> Any:
        """Look up, and give the value if it may be given; else have it made, or wait for the run that makes it.

        *waited*: The call has waited for a run before, so that one under way now began after the call did.
        """
        value, miss = await self._look_up(asked)
        if value is not _NOTHING:
            return value
        key, flight = asked.subject.key, self.store.value_flight
        if flight.is_unshared(key):
            return await self._lead(asked, miss, alone=True)
        hung = cast("_Making | None", flight.hung(key))
        run = hung or self._joinable(key, miss.reading)
        if run is None:
            return await self._lead(asked, miss)
        if run in _inside.get():
            name = asked.subject.logical_key
            raise ConfigurationError(
                f"the factory of {name!r} asks for {name!r}, which would wait for itself: use another key"
            )
        if hung is not None:
            return await self._lead_as_one_of_few(hung, asked, miss)
        return await self._follow(run, asked, miss, waited=waited)

    async def _look_up(self, asked: _Asked) -> tuple[Any, _Miss]:
        """Return the stored value if it may be given, else `_NOTHING`; and what a run needs to make it."""
        found = await self.store.look_up_value(asked.subject)
        use, value = self._judged(found, asked.kind)
        if use is Use.STALE:
            self._refresh(asked, found.reading)
        if use in (Use.FRESH, Use.STALE):
            self.store.stats["value-hit" if use is Use.FRESH else "value-hit-stale"] += 1
            return value, _Miss(found.reading, _NOTHING)
        return _NOTHING, _Miss(found.reading, value if use is Use.RESCUE else _NOTHING)

    def _joinable(self, key: str, reading: Reading | None) -> _Making | None:
        """Return the run under way whose value would be valid for this call were it stored now, or None."""
        run = cast("_Making | None", self.store.value_flight.under_way(key))
        if run is None or not run.begun:
            return run
        valid = self.store.would_be_valid(reading, run.mark, run.asked.subject, run.invalidations)
        return run if valid else None

    async def _follow(self, run: _Making, asked: _Asked, miss: _Miss, *, waited: bool) -> Any:
        """Wait for the value that *run* makes for another call; lead alone if this call cannot use it."""
        with _one_thread_more():
            made = await run.follow(FILL_TIMEOUT_S)
        if made is not None:
            return await self._use(run, made, asked, miss, waited=waited)
        if miss.rescue is not _NOTHING:
            return miss.rescue
        return await self._lead_as_one_of_few(run, asked, miss, waited=waited)

    async def _use(self, run: _Making, made: _Made, asked: _Asked, miss: _Miss, *, waited: bool) -> Any:
        """Give what *run* has *made* for another call; lead alone if this call cannot use it."""
        if made.value is not None:
            if not waited and not await self.store.still_holds(made.value, run.invalidations):
                return await self._answer(asked, waited=True)
            value = self._read(made.value, asked.kind)
            if value is not _NOTHING:
                self.store.stats["value-collapsed"] += 1
                return value
        elif made.error is not None:
            if miss.rescue is not _NOTHING:
                return miss.rescue
            if (own := own_copy(made.error)) is not None:
                raise own
        return await self._lead(asked, miss, alone=True)

    async def _lead_as_one_of_few(self, hung: _Making, asked: _Asked, miss: _Miss, *, waited: bool = False) -> Any:
        """Lead alone, in one of a few places for calls that waited in vain; if none becomes free, give up.

        A value that is there by then is given, whoever made it, that of the *hung* run too.
        """
        async with self.store.value_flight.one_of_few(asked.subject.key, hung, FILL_TIMEOUT_S) as admitted:
            if admitted:
                value, miss = await self._look_up(asked)
                return value if value is not _NOTHING else await self._lead(asked, miss, alone=True)
        if hung.shared is not None:
            return await self._use(hung, hung.shared, asked, miss, waited=waited)
        value, miss = await self._look_up(asked)
        if value is _NOTHING and miss.rescue is _NOTHING:
            key = asked.subject.logical_key
            raise TimeoutError(f"the value under {key!r} is being made by others, none of whom has it in time")
        return miss.rescue if value is _NOTHING else value

    async def _lead(self, asked: _Asked, miss: _Miss, *, alone: bool = False) -> Any:
        """Have the value made, and give it; if that fails, give the value that rescues, if there is one."""
        self.store.stats["value-miss"] += 1
        run = self._take_off(asked, miss.reading, led=True, alone=alone)
        try:
            return await run.lead()
        except Exception as error:
            if miss.rescue is _NOTHING:
                raise
            self.store.log.failed("cache.rescued", _place(asked.factory), error)
            return miss.rescue

    def _refresh(self, asked: _Asked, reading: Reading | None) -> None:
        if self.store.value_flight.may_refresh(asked.subject.key):
            self._take_off(asked, reading, led=False)

    def _take_off(self, asked: _Asked, reading: Reading | None, *, led: bool, alone: bool = False) -> _Making:
        run = _Making(self.store, asked)
        run.on_failure = partial(self.store.log.failed, "cache.fill_failed", _place(asked.factory))
        run.start(reading, led=led)
        self.store.value_flight.take_off(asked.subject.key, run, alone=alone, refresh=not led)
        return run


@dataclass(frozen=True, slots=True)
class _Made:
    """What those who wait for a factory get of its run: the value, a failure to copy, or neither."""

    value: Value | None = None
    error: Exception | None = None


class _Making(Run[_Made]):
    """One run of a factory."""

    def __init__(self, store: StoredResponses, asked: _Asked) -> None:
        super().__init__(_Made())
        self.asked = asked
        self.mark: Mark | None = None
        self.invalidations = 0
        self._store = store
        self._raised = False

    @property
    def failed(self) -> bool:
        """Whether the factory raised."""
        return self._raised

    def start(self, reading: Reading | None, *, led: bool) -> None:
        """Run the factory in a task of the cache's own; *reading* is the clock as it was looked up."""
        self._take_on(self._make(reading), led=led)

    async def lead(self) -> Any:
        """Return the value when it is made, and raise what the factory raises.

        Raises:
            asyncio.CancelledError: If the caller is cancelled; the run goes on without it.
        """
        task = cast("asyncio.Task[Any]", self.task)
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            self._led = False
            if not task.done():
                self._bound()
            raise
        return task.result()

    async def _make(self, reading: Reading | None) -> Any:
        asked, store = self.asked, self._store
        try:
            self.invalidations, turn = store.invalidations, store.next_turn()
            self.mark = await store.begin(reading, asked.subject, asked.terms.keep_for)
            self.begun = True
            around = [each for each in _inside.get() if not each.outcome.done()] if self._led else []
            _inside.set((*around, self))
            content, given = settled(await called(asked.factory), asked.kind)
            value = asked.terms.value(asked.subject, content, self.mark or Mark(), store.now())
            if self.mark is not None:
                await store.keep_value(value, asked.terms.keep_for, turn)
        except Exception as error:
            self._raised = True
            own = own_copy(error)
            self._settle(self.not_shared if own is None else _Made(error=own))
            raise
        self._settle(_Made(value))
        return given


def _place(factory: Callable[[], object]) -> str:
    """Return where *factory* is written, for the log."""
    function = function_of(factory)
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', None)}.{name}"


async def called(factory: Callable[[], object]) -> object:
    """Return what *factory* gives, and wait for it where that must be awaited; a plain one runs in a thread."""
    if runs_in_loop(factory):
        return await cast("Awaitable[object]", factory())
    made = await anyio.to_thread.run_sync(factory, limiter=_places())
    return await made if inspect.isawaitable(made) else made


def runs_in_loop(factory: Callable[[], object]) -> bool:
    """Return whether *factory* is a coroutine function, or an object that is called as one."""
    return inspect.iscoroutinefunction(function_of(factory))


def _places() -> CapacityLimiter:
    """Return what bounds the threads of the running loop; a factory that another thread waits for has no bound."""
    if any(not runs_in_loop(run.asked.factory) for run in _inside.get()[:-1]):
        return CapacityLimiter(math.inf)
    try:
        return _threads.get()
    except LookupError:
        _threads.set(CapacityLimiter(THREADS))
        return _threads.get()


@contextmanager
def _one_thread_more() -> Iterator[None]:
    """Allow one thread more while a factory in a thread waits for another factory, which may need a thread."""
    limiter = _threads.get(None)
    if limiter is None or all(runs_in_loop(run.asked.factory) for run in _inside.get()):
        yield
        return
    limiter.total_tokens += 1
    try:
        yield
    finally:
        limiter.total_tokens -= 1


def own_copy(error: Exception) -> Exception | None:
    """Return a copy of *error* without its traceback, for another task to raise; None if it cannot be copied.

    A constructor that is written in Python is not called: it may take what is not in the error's `args`.
    """
    kind = type(error)
    try:
        if isinstance(kind.__init__, types.WrapperDescriptorType):
            own = copy.copy(error)
        else:
            own = kind.__new__(kind, *error.args)
            own.__dict__.update(error.__dict__)
        _copy_slots(error, own)
        if (type(own), str(own)) != (kind, str(error)):
            return None
    except Exception:  # noqa: BLE001  the class is anybody's
        return None
    if notes := getattr(error, "__notes__", None):
        own.__notes__ = [*notes]
    return own


def _copy_slots(error: Exception, own: Exception) -> None:
    """Give *own* what *error* has beside its `__dict__`: `args`, the `errno` of an OSError, what is in slots."""
    object.__setattr__(own, "args", error.args)
    for slot in _slots_of(type(error)):
        with suppress(AttributeError):  # nothing is in it, or it is read-only: what `__new__` was given
            if (value := slot.__get__(error)) is not None:
                slot.__set__(own, value)


def _slots_of(kind: type[Exception]) -> Iterator[Any]:
    """Yield the attributes that Python itself, or a class with `__slots__`, keeps of a *kind*."""
    for cls in kind.__mro__[: kind.__mro__.index(BaseException)]:
        if cls.__module__ == "builtins" or "__slots__" in vars(cls):
            yield from filter(inspect.ismemberdescriptor, vars(cls).values())


def _is_text(key: object) -> bool:
    """Return whether *key* is a string that can be encoded: half of a surrogate pair cannot."""
    try:
        return isinstance(key, str) and key.encode() is not None
    except UnicodeEncodeError:
        return False


def _check_factory(factory: object) -> None:
    if inspect.iscoroutine(factory):
        factory.close()
        raise ConfigurationError(
            f"factory must be a function, not what it gives: {factory.__name__}, not {factory.__name__}()"
        )
    if not callable(factory):
        raise ConfigurationError(f"factory must be a callable without arguments, not {name_of(type(factory))}")


def _window(name: str, value: float | timedelta | None) -> float:
    return 0.0 if value is None else checks.seconds(name, value)

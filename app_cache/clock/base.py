"""What a clock of invalidations is, whatever keeps it, and the words it is asked in."""

from __future__ import annotations

import asyncio
import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from app_cache.keys import without_root

if TYPE_CHECKING:
    from collections.abc import Iterable

    from app_cache.codec import Mark


class Verdict(Enum):
    """What the clock says of an entry."""

    VALID = "valid"
    STALE = "stale"
    INVALID = "invalid"
    UNASKED = "unasked"
    """The reading has not asked for all of the entry's tags: ask again."""


class Subject(msgspec.Struct, frozen=True):
    """What an invalidation may name an entry by.

    Args:
        tags: Its tags, those of its URL and key included.
        path: Its decoded path.
        logical_key: What a key generator of the application's own gave, or None.
        key: The key under which it is kept.
    """

    tags: frozenset[str]
    path: str
    logical_key: str | None
    key: str


@dataclass(frozen=True, slots=True)
class Order:
    """One invalidation: everything, or all that one of *tags* or a ban names.

    Args:
        tags: Each entry that has one of these.
        patterns: Globs over paths and logical keys.
        all_of: Sets of tags; each entry that has all tags of a set.
        keys: Keys of entries as they are stored.
        everything: All entries.
        soft: Mark as stale rather than drop.
    """

    tags: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    all_of: tuple[tuple[str, ...], ...] = ()
    keys: tuple[str, ...] = ()
    everything: bool = False
    soft: bool = False

    @property
    def size(self) -> int:
        """How many names it has."""
        return len(self.tags) + len(self.patterns) + len(self.keys) + sum(map(len, self.all_of))


@dataclass(frozen=True, slots=True)
class InvalidationResult:
    """What an invalidation did.

    Args:
        durable: Whether the backend has it; False: it holds in this process, and is sent again before the next
            entry is trusted.
        epoch: The epoch that it began, or None where the backend keeps none.
        widened_to: What was invalidated where what was asked cannot be done as it is, or None.
    """

    durable: bool
    epoch: int | None = None
    widened_to: str | None = None


def tag_stamp(tag: str) -> str:
    """Return the name of the stamp of a tag that the application chose."""
    return short("t:" + tag)


def url_stamp(path: str, origin: str = "") -> str:
    """Return the name of the stamp of a URL: its decoded *path*, at one *origin* or at any."""
    return short(f"u:{origin}{path}")


def root_stamp(root_path: str) -> str:
    """Return the name of the stamp of a root path: what was asked for under it answers to its path without it."""
    return short("r:" + root_path)


def named_by(subject: Subject) -> list[str]:
    """Return what a pattern may match of *subject*: its path, that without each root path, its logical key."""
    roots = [tag.removeprefix("r:") for tag in subject.tags if tag.startswith("r:/")]
    paths = [subject.path, *(without_root(subject.path, root) for root in roots)]
    return paths if subject.logical_key is None else [*paths, subject.logical_key]


def is_url_stamp(name: str) -> bool:
    """Return whether *name* is that of a URL, or of a root path."""
    return name.startswith(("u:", "r:"))


def other_url(asked: Subject, named: Subject) -> Subject | None:
    """Return the URL that *asked* is for as a subject of its own, None if what is *named* so is for that URL too.

    A key generator of the application's own may give two URLs one key: what either is invalidated by counts.
    """
    if asked.path == named.path and asked.tags <= named.tags:
        return None
    urls = frozenset(filter(is_url_stamp, asked.tags))
    if asked.path == named.path and urls <= named.tags:
        return None
    return Subject(urls, asked.path, named.logical_key, named.key)


def group_stamp(origin: str, group: str) -> str:
    """Return the name of the stamp of a cache group, which has an origin of its own (RFC 9875 §2.1)."""
    return short(f"g:{origin} {group}")


def is_group_stamp(name: str) -> bool:
    """Return whether *name* is that of a cache group."""
    return name.startswith("g:")


def key_stamp(logical_key: str) -> str:
    """Return the name of the stamp of a logical key."""
    return short("k:" + logical_key)


def short(name: str) -> str:
    """Return *name*, or a digest of it where it is long or has characters that do not print."""
    if len(name) <= 200 and name.isprintable():
        return name
    return f"{name[:2]}#{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()}"


class Reading(Protocol):
    """The clock at one moment, with the stamps that were asked for."""

    @property
    def mark(self) -> Mark | None:
        """What an entry carries whose handler begins now; None: not all of it is there yet."""
        ...

    def judge(self, mark: Mark, subject: Subject) -> Verdict:
        """Return whether an entry that was filled under *mark* is still valid."""
        ...


class Shelf(Protocol):
    """How the bytes of entries get into a backend and out of it."""

    async def read(self, key: str) -> bytes | None:
        """Return the bytes under *key*, or None."""
        ...

    async def write(self, key: str, value: bytes, timeout: float) -> None:
        """Keep *value* under *key* for *timeout* seconds."""
        ...


class Gate(Protocol):
    """What tells that nothing was invalidated: *epochs* is another object after each invalidation."""

    @property
    def epochs(self) -> object:
        """The state of the clock; what was valid under it is valid while it is the same object."""
        ...


@dataclass(frozen=True, slots=True)
class Basis:
    """What it rests on that an entry is valid: while all of it is as it was, nothing has been invalidated since.

    Args:
        keys: Where it is, that of the entry first.
        values: The bytes that were found there.
        mark: The state of the clock.
    """

    keys: tuple[str, ...]
    values: list[bytes | None]
    mark: Mark


class InvalidationClock(ABC):
    """Reads, begins, stores and invalidates under one namespace of a backend.

    Every method raises what the backend raises; the store takes that as a miss.
    """

    most_names = 10_000
    """Names of one order; beyond, it is taken to be everything."""

    @property
    def gate(self) -> Gate | None:
        """What tells at once that nothing was invalidated; None where that takes asking somebody."""
        return None

    def basis(self, key: str, value: bytes, reading: Reading) -> Basis | None:
        """Return what it rests on that *value* under *key* is valid by *reading*, if one trip can ask for that."""
        return None

    def may_be_still(self, basis: Basis) -> bool:
        """Return whether nothing is known yet that has changed of *basis*."""
        return False

    async def is_still(self, basis: Basis) -> bool:
        """Ask whether all of *basis* is as it was, and return that."""
        return False

    @abstractmethod
    async def look_up(self, key: str, subject: Subject) -> tuple[bytes | None, Reading]:
        """Return the bytes under *key* and a reading with the stamps of *subject*, in as few trips as can be."""

    @abstractmethod
    async def read(self, subject: Subject) -> Reading:
        """Return a reading with the stamps of *subject*."""

    @abstractmethod
    async def begin(
        self, reading: Reading, subject: Subject, keep_for: float, *, at_once: bool = False
    ) -> Mark | None:
        """Return what an entry carries whose handler begins after this, or None: it is not to be stored.

        The stamps that are missing are created; *at_once*: before this returns, for there is no handler.
        """

    @abstractmethod
    async def store(self, key: str, value: bytes, keep_for: float, mark: Mark, subject: Subject) -> None:
        """Keep *value*, filled under *mark*, for *keep_for* seconds, and the clock at least as long.

        What is known to be invalid by now need not be kept: it would put out what was stored since.
        """

    def needs_seal(self, mark: Mark, subject: Subject) -> bool:
        """Return whether *subject* has what *mark* does not cover, so that `seal` is due before it is stored."""
        return False

    async def seal(self, mark: Mark, subject: Subject) -> Mark | None:
        """Return *mark* with what *subject* has beyond it, or None if the entry cannot be stored any more."""
        return mark

    @abstractmethod
    async def invalidate(self, order: Order, sent: set[object] | None = None) -> InvalidationResult:
        """Carry out *order*; when this returns, no reader of this backend takes what it names as valid.

        *sent*: What of it the backend has from earlier attempts, which is not sent again; what it takes is added.
        """

    async def close(self) -> None:  # noqa: B027  most clocks begin nothing
        """End what was begun beside others in the running loop; the clock can be used again."""


ENDS_WITHIN_S = 1.0
"""Seconds in which what is cancelled ends, if a backend lets it."""


async def end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel those of *tasks* that live in the running loop, and return when they have ended, or soon."""
    loop = asyncio.get_running_loop()
    own = [task for task in tasks if task.get_loop() is loop]
    for task in own:
        task.cancel()
    ended, _ = await asyncio.wait(own, timeout=ENDS_WITHIN_S) if own else ((), ())
    for task in ended:
        _ = task.cancelled() or task.exception()

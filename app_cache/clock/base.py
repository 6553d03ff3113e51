"""What a clock of invalidations is, whatever keeps it, and the words it is asked in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from app_cache.checks import flag

if TYPE_CHECKING:
    from app_cache.clock.names import Subject
    from app_cache.codec import Mark


class Verdict(Enum):
    """What the clock says of an entry."""

    VALID = "valid"
    STALE = "stale"
    INVALID = "invalid"
    UNASKED = "unasked"
    """The reading has not asked for all of the entry's tags: ask again."""


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

    Raises:
        ConfigurationError: If *everything* or *soft* is neither True nor False.
    """

    tags: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    all_of: tuple[tuple[str, ...], ...] = ()
    keys: tuple[str, ...] = ()
    everything: bool = False
    soft: bool = False

    def __post_init__(self) -> None:
        flag("everything", self.everything)
        flag("soft", self.soft)

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


class Reading(Protocol):
    """The clock at one moment, with the stamps that were asked for."""

    @property
    def mark(self) -> Mark | None:
        """What an entry carries whose handler begins now; None: not all of it is there yet."""
        ...

    def judge(self, mark: Mark, subject: Subject) -> Verdict:
        """Return whether an entry that was filled under *mark* is still valid."""
        ...


class Gate(Protocol):
    """What tells that nothing was invalidated: *epochs* is another object after each invalidation."""

    @property
    def epochs(self) -> object:
        """The state of the clock; what was valid under it is valid while it is the same object."""
        ...


@dataclass(frozen=True, slots=True)
class Basis:
    """What the validity of an entry rests on: while all of it is as it was, nothing has been invalidated since.

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
        """Return what the validity of *value* under *key* rests on, by *reading*, if one trip can ask for that."""
        return None

    def may_be_still(self, basis: Basis) -> bool:
        """Return whether no change of *basis* is known yet."""
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

    async def begin(
        self, reading: Reading, subject: Subject, keep_for: float, *, at_once: bool = False
    ) -> Mark | None:
        """Return what an entry carries whose handler begins after this, or None: it is not to be stored.

        The stamps that are missing are created; *at_once*: before this returns, for there is no handler.
        """
        return reading.mark

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

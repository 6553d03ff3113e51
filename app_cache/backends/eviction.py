"""Which entry goes when one more does not fit: the newest, or one that was not read, by counts and by bets.

The entries stand in a ring, which a hand goes around: it passes over those that were read since it last came by.
When one more comes and does not fit, the newest until then meets the first that the hand finds unread, and takes
its place if

- it was asked for more often: an entry counts the rounds of the hand in which it was read, and the times that it
  had to be kept again after it went, which a table of hashes remembers; or if
- those with its count came back more often of late than those with the count of the other were read. Both are
  watched after they met, until the hand has come round, whichever had to go: that is a *bet*.

Else the newest goes. So what is asked for once drives out nothing that is in use, and of a loop larger than the
cache most is hit; but when what was popular is so no longer, the rates of the bets say it, and the new takes over.
Where bytes are wanted, all this is weighed by the bytes that an entry counts.

A hit sets a flag and moves nothing. All else takes a few steps, however many entries there are.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator

STEPS: Final = range(8)
"""The entries that the hand passes, at most, until it is decided which one goes."""
MOST: Final = 7
"""An entry counts how often it was asked for up to this."""
NO_BET: Final = 0
ON_NEW: Final = 8
ON_SETTLED: Final = 16
"""What an entry is watched as: bits beside the three of the count."""
EDGE: Final = 0.02
"""By how much the rate of the new must exceed that of the settled."""
WEIGHT: Final = 1 / 128
"""What the outcome of one bet counts in a rate."""
TIMES: Final = (1 << 30) - 1
"""The last moment of the time of the table, which then begins at 0 again."""
LEAST_PLACES: Final = 64
"""How many places the table of hashes has at first; it doubles with the entries."""


class Resident(msgspec.Struct, gc=False):
    """What an entry is judged by. The garbage collector passes over it: nothing that it holds refers to it."""

    key: str
    read: bool = False
    """Whether it was read since the hand came by: all that a hit sets."""
    count: int = 0
    """How often it was asked for."""
    bet: int = NO_BET
    """What it is watched as until the hand comes round."""
    place: int = 0
    """Its index in the ring."""

    @property
    def cost(self) -> int:
        """The bytes that it counts, worked out when asked: to hold them would take memory of its own."""
        return 1


R = TypeVar("R", bound=Resident)


class Eviction(Generic[R]):
    """Keeps the residents in order and chooses which one goes; how many there may be is the caller's matter."""

    def __init__(self) -> None:
        self._newest: R | None = None
        """The one that came last, until another comes or it has to go; it is not in the ring."""
        self._ring: list[R] = []
        self._hand = 0
        self._rates = [0.5] * 24
        """By bet and count: how often such a bet was won of late. Those of `NO_BET` mean nothing."""
        self._gone = _Gone(LEAST_PLACES, self._rates)

    def enter(self, resident: R) -> None:
        """Take in *resident*, whose key is not there, after what had to go has gone."""
        newest, ring = self._newest, self._ring
        if newest is not None:
            newest.place = len(ring)
            ring.append(newest)
            if 2 * len(ring) > self._gone.places:
                self._gone = _Gone(2 * self._gone.places, self._rates)
        count = self._gone.recall(resident.key, len(ring))
        if count:
            resident.count = count
        self._newest = resident

    def replace(self, old: R, new: R) -> None:
        """Put *new*, of the same key, where *old* is; being set again counts as being read."""
        new.read, new.count, new.bet, new.place = True, old.count, old.bet, old.place
        if old is self._newest:
            self._newest = new
        else:
            self._ring[old.place] = new

    def leave(self, resident: R) -> None:
        """Let go of *resident*, and remember how often it was asked for."""
        if resident is self._newest:
            self._newest = None
        else:
            self._close_gap(resident.place)
        self._gone.remember(resident, NO_BET)

    def choose(self, *, by_bytes: bool) -> R:
        """Let go of the one that has to go, and return it; there must be one.

        Args:
            by_bytes: Whether bytes are wanted, not a place: then what counts more bytes is worth less.
        """
        new = self._newest
        if new is None:
            settled = self._least(by_bytes=by_bytes)
            self.leave(settled)
            return settled
        self._newest = None
        if new.read:
            self._decide(new)
        weaker = self._weaker_than(new, by_bytes=by_bytes)
        if weaker is None:
            self._gone.remember(new, ON_NEW)
            return new
        new.place, new.bet = weaker.place, ON_NEW
        self._ring[new.place] = new
        self._gone.remember(weaker, ON_SETTLED)
        return weaker

    def each(self) -> Iterator[R]:
        """Give each resident that is there now, unless it has gone when its turn comes; some may come twice.

        Others may come and go meanwhile: the ring is gone through from its end, from where gaps are filled.
        """
        if self._newest is not None:
            yield self._newest
        place = len(self._ring)
        while place := min(place, len(self._ring)):
            place -= 1
            yield self._ring[place]

    def _weaker_than(self, new: R, *, by_bytes: bool) -> R | None:
        """Let *new* meet those that the hand finds unread, and return the one that it drives out, or None.

        It meets one more of them than it counts.
        """
        ring, rates = self._ring, self._rates
        worth, rate = new.count + 1, rates[ON_NEW + new.count]
        to_meet = worth
        for _ in STEPS if ring else ():
            settled = ring[self._hand]
            self._hand = (self._hand + 1) % len(ring)
            if self._decide(settled):
                continue
            size = new.cost / settled.cost if by_bytes else 1
            if worth > (settled.count + 1) * size or rate > (rates[ON_SETTLED + settled.count] + EDGE) * size:
                return settled
            settled.bet = ON_SETTLED
            to_meet -= 1
            if not to_meet:
                break
        return None

    def _least(self, *, by_bytes: bool) -> R:
        """Move the hand on, and return the one of least worth that it finds unread, or where it stops."""
        unread = []
        for _ in STEPS:
            settled = self._ring[self._hand]
            self._hand = (self._hand + 1) % len(self._ring)
            if not self._decide(settled):
                settled.bet = NO_BET
                unread.append(settled)
        if not unread:
            return self._ring[self._hand]
        return min(unread, key=lambda settled: (settled.count + 1) / (settled.cost if by_bytes else 1))

    def _decide(self, resident: R) -> bool:
        """Return whether *resident* was read since this was asked last; count it, and decide the bet on it."""
        rates, watched = self._rates, resident.bet + resident.count
        if not resident.read:
            rates[watched] *= 1 - WEIGHT
            return False
        rates[watched] += (1 - rates[watched]) * WEIGHT
        resident.read = False
        resident.bet = NO_BET
        if resident.count < MOST:
            resident.count += 1
        return True

    def _close_gap(self, place: int) -> None:
        """Take out who stands at *place* of the ring; the last one moves there."""
        last = self._ring.pop()
        if last.place != place:
            last.place = place
            self._ring[place] = last
        if self._hand >= len(self._ring):
            self._hand = 0


class _Gone:
    """A table by hash of what went: how often it was asked for, and the bet on its return.

    Where two keys have one place, the later drives the earlier out; the bet on that one is lost.
    """

    def __init__(self, places: int, rates: list[float]) -> None:
        self.places = places
        self._mask = places - 1
        self._rates = rates
        self._time = 0
        """How many went, times 32; it goes round."""
        self._hashes = array("q", bytes(8 * places))
        self._notes = array("I", bytes(4 * places))
        """The time at which it went, two bits for the bet, three for the count."""

    def remember(self, resident: Resident, bet: int) -> None:
        """Write down that *resident* has gone."""
        digest = hash(resident.key)
        place = digest & self._mask
        self._rates[self._notes[place] & 31] *= 1 - WEIGHT
        self._time = time = self._time + 32 & TIMES
        self._hashes[place] = digest
        self._notes[place] = time + bet + resident.count

    def recall(self, key: str, settled: int) -> int:
        """Return how often *key* was asked for before, and decide the bet on it.

        Args:
            key: What comes anew.
            settled: How many stand in the ring.
        """
        digest = hash(key)
        place = digest & self._mask
        if self._hashes[place] != digest:
            return 0
        note = self._notes[place]
        self._hashes[place] = self._notes[place] = 0
        watched = note & 31
        # The hand passes more than one for each that goes: it has come round by two thirds of their number.
        in_time = self._time - note & TIMES < settled * 32 * 2 // 3
        self._rates[watched] += (in_time - self._rates[watched]) * WEIGHT
        count = note & MOST
        return count + 1 if count < MOST else MOST

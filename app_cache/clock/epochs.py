"""The rules of a clock that counts: when an entry is valid, in epochs, stamps and bans. Nothing here awaits."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, NamedTuple

from app_cache.bounded import Bounded
from app_cache.clock.base import Verdict
from app_cache.clock.names import named_by
from app_cache.rules.glob import compile_glob

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from app_cache.clock.base import Order
    from app_cache.clock.names import Subject
    from app_cache.codec import Mark

    Matcher = Callable[[Subject, Iterable[str]], bool]
    """Returns whether a ban names a subject; patterns are matched with each of the names given beside it."""

MAX_BANS = 256
"""Bans kept at once; beyond, the older half is forgotten and what is older than those is a miss."""
DIGITS = 16
"""Digits that a generation begins with: the microseconds at which it began."""
LAST_NUMBER = 2**53 - 2
"""The largest of those numbers: beyond, Lua cannot tell one from the next. It stands for the year 2255."""
MAX_MATCHED = 32_768
"""Characters of names, times the patterns that they are matched with, beyond which an entry is a miss."""
MAX_PASSED = 10_000
"""Entries for which a process remembers the newest ban that they passed."""


@dataclass(frozen=True, slots=True)
class Ban:
    """An invalidated pattern, set of tags, or key, and the epoch that it began."""

    epoch: int
    soft: bool
    kind: str
    text: str
    matches: Matcher = field(compare=False, repr=False)

    @property
    def name(self) -> tuple[bool, str, str]:
        """What it bans, whenever."""
        return self.soft, self.kind, self.text


def ban(epoch: int, kind: str, text: str, *, soft: bool) -> Ban:
    """Return the ban of *kind*: ``p`` a pattern, ``a`` all of several tags, ``k`` a stored key."""
    return Ban(epoch, soft, kind, text, KINDS[kind](text))


def bans_of(order: Order) -> list[tuple[str, str]]:
    """Return the kind and the text of each ban that *order* needs."""
    return [
        *(("p", pattern) for pattern in order.patterns),
        *(("a", "\n".join(sorted(tags))) for tags in order.all_of),
        *(("k", key) for key in order.keys),
    ]


def _pattern_matcher(pattern: str) -> Matcher:
    glob = compile_glob(pattern)
    return lambda _, names: any(map(glob, names))


def _tags_matcher(text: str) -> Matcher:
    tags = frozenset(text.split("\n"))
    return lambda subject, _: tags <= subject.tags


def _key_matcher(key: str) -> Matcher:
    return lambda subject, _: key in (subject.key, subject.key.rpartition(":")[0])


KINDS: dict[str, Callable[[str], Matcher]] = {
    "p": _pattern_matcher,
    "a": _tags_matcher,
    "k": _key_matcher,
}


@dataclass(frozen=True, slots=True)
class Bans:
    """The bans known, oldest first; complete for what is newer than *since*. Never changed once made."""

    since: int = 0
    items: tuple[Ban, ...] = ()

    def verdict(self, epoch: int, subject: Subject) -> Verdict:
        """Return what the bans newer than *epoch* say of *subject*; it is out of date if that takes too long."""
        if self.since > epoch:
            return Verdict.INVALID
        verdict, names = Verdict.VALID, named_by(subject)
        newer = [*takewhile(lambda each: each.epoch > epoch, reversed(self.items))]
        patterns = sum(each.kind == "p" for each in newer)
        if patterns * sum(map(len, names)) > MAX_MATCHED:
            return Verdict.INVALID
        for each in newer:
            if each.matches(subject, names):
                if not each.soft:
                    return Verdict.INVALID
                verdict = Verdict.STALE
        return verdict

    def with_more(self, more: Iterable[Ban]) -> Bans:
        """Return these bans and *more*, at most `MAX_BANS`; one that comes again takes the earlier's place."""
        newest = (*more,)
        again = {each.name for each in newest}
        items = (*(each for each in self.items if each.name not in again), *newest)
        if len(items) <= MAX_BANS:
            return Bans(self.since, items)
        kept = items[-(MAX_BANS // 2) :]
        return Bans(max(self.since, items[-len(kept) - 1].epoch), kept)


@dataclass(frozen=True, slots=True)
class Stamp:
    """The epochs at which a tag was last invalidated, for good and softly, in one generation."""

    generation: str
    hard: int
    soft: int


class Term(NamedTuple):
    """The epochs after *since*, until the next term: one history of the server's began them.

    A replica that becomes the primary, and a server that starts again, goes on with another history.
    """

    name: str
    since: int


def term_of(terms: tuple[Term, ...], epoch: int) -> str:
    """Return the name of the one of *terms* that *epoch* was begun in, or "": an earlier one, or nobody knows."""
    return next((each.name for each in reversed(terms) if each.since < epoch), "")


@dataclass(frozen=True, slots=True)
class Epochs:
    """The clock: its generation, its epoch, and the epochs of the last invalidations that name no tag.

    Of the terms of its epochs the last ones are known; memory has one history, and tells none.
    """

    generation: str
    epoch: int
    floor: int = 0
    soft_floor: int = 0
    newest_ban: int = 0
    terms: tuple[Term, ...] = ()

    def verdict(self, mark: Mark, subject: Subject, stamps: Mapping[str, Stamp | None]) -> Verdict:
        """Return what the clock and *stamps* say of an entry, bans aside."""
        if mark.generation != self.generation or not self.floor <= mark.epoch <= self.epoch:
            return Verdict.INVALID
        if (self.terms or mark.term) and mark.term != term_of(self.terms, mark.epoch):
            return Verdict.INVALID
        if mark.epoch == self.epoch:
            return Verdict.VALID
        if not subject.tags <= stamps.keys():
            return Verdict.UNASKED
        verdict = Verdict.STALE if self.soft_floor > mark.epoch else Verdict.VALID
        for tag in subject.tags:
            stamp = stamps[tag]
            if stamp is None or stamp.generation != self.generation or stamp.hard > mark.epoch:
                return Verdict.INVALID
            if stamp.soft > mark.epoch:
                verdict = Verdict.STALE
        return verdict


@dataclass(frozen=True, slots=True)
class Seen:
    """The newest clock that this process saw, by which it knows one that went back. Never changed once made.

    A server that was started again from an older snapshot, or in whose place a replica stepped that lagged, has
    the entries and the clock of a moment before the last invalidations. Generations begin with the number of their
    beginning, so that an older one is known by whoever has not met it, too.
    """

    generation: str = ""
    epoch: int = 0
    terms: tuple[Term, ...] = ()
    is_over: bool = False
    """Whether its generation is over for sure: something was invalidated where there was none any more."""

    @property
    def number(self) -> int:
        """The number of its generation's beginning, 0 before there was any."""
        return int(self.generation[:DIGITS] or 0)

    def is_newer_than(self, epochs: Epochs) -> bool:
        """Return whether *epochs*, which were asked for after this was seen, are those of a moment before."""
        if epochs.generation == self.generation and not self.is_over:
            return epochs.epoch < self.epoch
        begun, known = epochs.generation[:DIGITS], self.generation[:DIGITS]
        return begun <= known if self.is_over else begun < known

    def contradicts(self, epochs: Epochs) -> bool:
        """Return whether *epochs* have another past: an epoch that both have was not begun in the same term.

        So one of them has lost an invalidation, however many others came since, and whichever was asked for first.
        """
        if epochs.generation != self.generation:
            return False
        shared = min(epochs.epoch, self.epoch)
        return term_of(epochs.terms, shared) != term_of(self.terms, shared)

    def and_over(self, number: str, asked: Seen) -> Seen:
        """Return what is known after an invalidation that met no clock: what began by *number* is over.

        So is the generation that had been seen when the invalidation was *asked* for, whatever the server's time.
        """
        known = self.generation[:DIGITS]
        if self.generation != asked.generation and number < known:
            return self
        return Seen(max(number, known), is_over=True)

    def and_then(self, epochs: Epochs) -> Seen:
        """Return what has been seen after *epochs*, which may have been overtaken on their way."""
        if self.is_newer_than(epochs) or (epochs.generation, epochs.epoch) == (self.generation, self.epoch):
            return self
        return Seen(epochs.generation, epochs.epoch, epochs.terms)


class Passed:
    """Remembers of an entry the newest ban that it passed, so that a hit asks for newer ones alone.

    Entries are told apart by a hash of 64 bits, so that long paths and many tags take no room.
    """

    def __init__(self) -> None:
        self._newest: Bounded[int, int] = Bounded(MAX_PASSED)

    def since(self, mark: Mark, subject: Subject) -> int:
        return self._newest.get(hash((mark.generation, mark.epoch, subject)), mark.epoch)

    def note(self, mark: Mark, subject: Subject, newest: int) -> None:
        self._newest[hash((mark.generation, mark.epoch, subject))] = newest


def judge(
    epochs: Epochs, bans: Bans, passed: Passed, mark: Mark, subject: Subject, stamps: Mapping[str, Stamp | None]
) -> Verdict:
    """Return what the clock, its bans and *stamps* say of an entry that was filled under *mark*."""
    verdict = epochs.verdict(mark, subject, stamps)
    if verdict in (Verdict.INVALID, Verdict.UNASKED) or epochs.newest_ban <= mark.epoch:
        return verdict
    since = passed.since(mark, subject)
    if since >= epochs.newest_ban:
        return verdict
    banned = bans.verdict(since, subject)
    if banned is Verdict.VALID:
        passed.note(mark, subject, epochs.newest_ban)
        return verdict
    return banned

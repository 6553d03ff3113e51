"""An entry is valid just if nothing that names it was invalidated since its handler began (SPEC §6.2)."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app_cache.clock.base import Order, Verdict
from app_cache.clock.epochs import (
    MAX_BANS,
    MAX_MATCHED,
    MAX_PASSED,
    Ban,
    Bans,
    Epochs,
    Passed,
    Seen,
    Stamp,
    Term,
    ban,
    bans_of,
    judge,
)
from app_cache.clock.names import Subject, named_by, root_stamp
from app_cache.codec import Mark

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

VALID, STALE, INVALID, UNASKED = Verdict.VALID, Verdict.STALE, Verdict.INVALID, Verdict.UNASKED
GENERATION = "a1"


def subject(*tags: str, path: str = "/a", logical_key: str | None = None, key: str = "cache:1") -> Subject:
    """Return what an invalidation may name an entry with *tags* by."""
    return Subject(frozenset(tags), path, logical_key, key)


def stamp(hard: int = 0, soft: int = 0, generation: str = GENERATION) -> Stamp:
    """Return a stamp of the clock's generation."""
    return Stamp(generation, hard, soft)


# Clock and stamps.


@pytest.mark.parametrize(
    ("clock", "mark", "stamps", "verdict"),
    [
        pytest.param(Epochs(GENERATION, 5), Mark(GENERATION, 5), {}, VALID, id="nothing since, nothing asked"),
        pytest.param(
            Epochs(GENERATION, 5), Mark(GENERATION, 5), {"t": stamp(hard=5), "u": None}, VALID, id="nothing since"
        ),
        pytest.param(Epochs(GENERATION, 5), Mark("b2", 5), {}, INVALID, id="another generation"),
        pytest.param(Epochs(GENERATION, 5), Mark("", 5), {}, INVALID, id="no generation"),
        pytest.param(Epochs(GENERATION, 5), Mark(GENERATION, 6), {}, INVALID, id="an epoch yet to come"),
        pytest.param(Epochs(GENERATION, 5, floor=4), Mark(GENERATION, 3), {}, INVALID, id="below the floor"),
        pytest.param(Epochs(GENERATION, 5, floor=5), Mark(GENERATION, 5), {}, VALID, id="at the floor and now"),
        pytest.param(
            Epochs(GENERATION, 5, floor=4),
            Mark(GENERATION, 4),
            {"t": stamp(), "u": stamp()},
            VALID,
            id="at the floor",
        ),
        pytest.param(Epochs(GENERATION, 5), Mark(GENERATION, 4), {}, UNASKED, id="stamps not asked for"),
        pytest.param(Epochs(GENERATION, 5), Mark(GENERATION, 4), {"t": stamp()}, UNASKED, id="one not asked for"),
        pytest.param(
            Epochs(GENERATION, 5, floor=5), Mark(GENERATION, 4), {}, INVALID, id="below the floor, nothing asked"
        ),
        pytest.param(
            Epochs(GENERATION, 5), Mark(GENERATION, 4), {"t": stamp(), "u": stamp()}, VALID, id="never stamped"
        ),
        pytest.param(
            Epochs(GENERATION, 5),
            Mark(GENERATION, 4),
            {"t": stamp(4), "u": stamp(3, 4)},
            VALID,
            id="stamped before",
        ),
        pytest.param(
            Epochs(GENERATION, 5), Mark(GENERATION, 4), {"t": stamp(), "u": stamp(5)}, INVALID, id="stamped since"
        ),
        pytest.param(
            Epochs(GENERATION, 5), Mark(GENERATION, 4), {"t": stamp(), "u": None}, INVALID, id="one missing"
        ),
        pytest.param(
            Epochs(GENERATION, 5),
            Mark(GENERATION, 4),
            {"t": stamp(), "u": stamp(generation="b2")},
            INVALID,
            id="one of another generation",
        ),
        pytest.param(
            Epochs(GENERATION, 5),
            Mark(GENERATION, 4),
            {"t": stamp(0, 5), "u": stamp()},
            STALE,
            id="softly stamped",
        ),
        pytest.param(
            Epochs(GENERATION, 6),
            Mark(GENERATION, 4),
            {"t": stamp(0, 6), "u": stamp(5)},
            INVALID,
            id="one softly, one for good",
        ),
        pytest.param(
            Epochs(GENERATION, 6),
            Mark(GENERATION, 4),
            {"t": stamp(0, 6), "u": None},
            INVALID,
            id="one softly, one not",
        ),
        pytest.param(
            Epochs(GENERATION, 5, soft_floor=5),
            Mark(GENERATION, 4),
            {"t": stamp(), "u": stamp()},
            STALE,
            id="below the soft floor",
        ),
        pytest.param(
            Epochs(GENERATION, 5, soft_floor=4),
            Mark(GENERATION, 4),
            {"t": stamp(), "u": stamp()},
            VALID,
            id="at the soft floor",
        ),
        pytest.param(
            Epochs(GENERATION, 6, soft_floor=6),
            Mark(GENERATION, 4),
            {"t": stamp(5), "u": stamp()},
            INVALID,
            id="below the soft floor, stamped for good",
        ),
        pytest.param(
            Epochs(GENERATION, 5),
            Mark(GENERATION, 4),
            {"t": stamp(), "u": stamp(), "v": stamp(5), "w": None},
            VALID,
            id="stamps of other entries",
        ),
    ],
)
def test_clock(clock: Epochs, mark: Mark, stamps: Mapping[str, Stamp | None], verdict: Verdict) -> None:
    """An entry stands if its epoch is now, or no stamp of its tags is newer; what is missing is a miss."""
    assert clock.verdict(mark, subject("t", "u"), stamps) is verdict
    assert judge(clock, Bans(), Passed(), mark, subject("t", "u"), stamps) is verdict


# Bans.


@pytest.mark.parametrize(
    ("kind", "text", "named", "others"),
    [
        pytest.param(
            "p",
            "/a*",
            [subject(), subject(path="/ab/c"), subject(path="/x", logical_key="/a:1")],
            [subject(path="/b"), subject(path="x/a"), subject("/a", path="/b", key="/a")],
            id="pattern",
        ),
        pytest.param(
            "p", "user:*", [subject(logical_key="user:1")], [subject(), subject("user:1")], id="logical key"
        ),
        pytest.param(
            "a",
            "t\nu",
            [subject("u", "t"), subject("t", "u", "v")],
            [subject("t"), subject("u", "v")],
            id="all tags",
        ),
        pytest.param(
            "k",
            "cache:1",
            [subject(), subject(key="cache:1:2")],
            [subject(key="cache:12"), subject(key="cache:2:1"), subject(logical_key="cache:1", key="cache:2")],
            id="key",
        ),
    ],
)
def test_kinds(kind: str, text: str, named: list[Subject], others: list[Subject]) -> None:
    """A ban names entries by path or logical key, by all of several tags, or by their stored key."""
    matches = ban(1, kind, text, soft=False).matches
    assert [each for each in named + others if matches(each, named_by(each))] == named


@pytest.mark.parametrize(
    ("asked_for", "names"),
    [
        pytest.param(subject("t:r:/api", path="/api/x"), ["/api/x"], id="no root path"),
        pytest.param(subject(root_stamp("/api"), path="/api/x"), ["/api/x", "/x"], id="a root path"),
        pytest.param(subject(root_stamp("/api"), path="/api"), ["/api", "/"], id="the root path itself"),
        pytest.param(
            subject(root_stamp("/api"), path="/api/x", logical_key="k"), ["/api/x", "/x", "k"], id="a logical key"
        ),
    ],
)
def test_named_by(asked_for: Subject, names: list[str]) -> None:
    """A pattern meets an entry by its path with the root path and without it, and by its logical key."""
    assert named_by(asked_for) == names


@pytest.mark.parametrize(
    ("order", "bans"),
    [
        pytest.param(Order(tags=("t",), everything=True), [], id="none"),
        pytest.param(Order(patterns=("/a*", "/b*")), [("p", "/a*"), ("p", "/b*")], id="patterns"),
        pytest.param(Order(all_of=(("u", "t"),)), [("a", "t\nu")], id="all tags, in one order"),
        pytest.param(Order(keys=("cache:1",)), [("k", "cache:1")], id="key"),
        pytest.param(
            Order(patterns=("/a",), all_of=(("t",),), keys=("k",)), [("p", "/a"), ("a", "t"), ("k", "k")], id="all"
        ),
    ],
)
def test_bans_of(order: Order, bans: list[tuple[str, str]]) -> None:
    """An order needs a ban for what no stamp can name."""
    assert bans_of(order) == bans


def hard(epoch: int, pattern: str = "/a*") -> Ban:
    """Return a ban for good."""
    return ban(epoch, "p", pattern, soft=False)


def soft(epoch: int, pattern: str = "/a*") -> Ban:
    """Return a soft ban."""
    return ban(epoch, "p", pattern, soft=True)


@pytest.mark.parametrize(
    ("bans", "verdict"),
    [
        pytest.param(Bans(), VALID, id="none"),
        pytest.param(Bans(0, (hard(6),)), INVALID, id="newer"),
        pytest.param(Bans(0, (hard(5),)), VALID, id="of the same epoch"),
        pytest.param(Bans(0, (hard(4),)), VALID, id="older"),
        pytest.param(Bans(0, (hard(6, "/b*"),)), VALID, id="of another path"),
        pytest.param(Bans(0, (hard(6), hard(7, "/b*"))), INVALID, id="newer, before another"),
        pytest.param(Bans(0, (hard(6, "/b*"), hard(6), hard(6, "/c*"))), INVALID, id="one of an epoch's"),
        pytest.param(Bans(0, (soft(6),)), STALE, id="soft"),
        pytest.param(Bans(0, (soft(5),)), VALID, id="soft, of the same epoch"),
        pytest.param(Bans(0, (hard(6), soft(7))), INVALID, id="soft after one for good"),
        pytest.param(Bans(0, (soft(6), hard(7))), INVALID, id="soft before one for good"),
        pytest.param(Bans(0, (hard(5), soft(6))), STALE, id="soft after an older one"),
        pytest.param(Bans(5), VALID, id="complete since its epoch"),
        pytest.param(Bans(6), INVALID, id="complete since a later epoch"),
        pytest.param(Bans(6, (soft(7),)), INVALID, id="complete since a later epoch, soft"),
    ],
)
def test_bans(bans: Bans, verdict: Verdict) -> None:
    """A newer ban that matches decides, one for good before a soft one, and a list that is not whole is a miss."""
    assert bans.verdict(5, subject()) is verdict


def test_bans_are_bounded() -> None:
    """One ban too many, and the older half is forgotten: what is from before is a miss, the rest is judged."""
    full = Bans().with_more(hard(epoch, f"/{epoch}") for epoch in range(1, MAX_BANS + 1))
    assert (full.since, len(full.items)) == (0, MAX_BANS)
    trimmed = full.with_more([hard(MAX_BANS + 1, "/last")])
    assert len(trimmed.items) == MAX_BANS // 2
    assert trimmed.since == MAX_BANS // 2 + 1
    assert trimmed.verdict(trimmed.since - 1, subject()) is INVALID
    assert trimmed.verdict(trimmed.since, subject()) is VALID
    assert trimmed.verdict(trimmed.since, subject(path=f"/{trimmed.since + 1}")) is INVALID
    assert trimmed.verdict(trimmed.since, subject(path="/last")) is INVALID
    assert full.verdict(0, subject()) is VALID


@pytest.mark.parametrize(
    ("length", "known", "epoch", "verdict"),
    [
        pytest.param(MAX_MATCHED, [hard(6, "*b")], 5, VALID, id="as long as may be"),
        pytest.param(MAX_MATCHED + 1, [hard(6, "*b")], 5, INVALID, id="longer"),
        pytest.param(MAX_MATCHED + 1, [soft(6, "*b")], 5, INVALID, id="longer, soft"),
        pytest.param(MAX_MATCHED // 2 + 1, [hard(6, "*b"), hard(7, "*c")], 5, INVALID, id="two patterns"),
        pytest.param(MAX_MATCHED // 2 + 1, [hard(6, "*b"), hard(7, "*c")], 6, VALID, id="one that is newer"),
        pytest.param(MAX_MATCHED + 1, [ban(6, "k", "key", soft=False)], 5, VALID, id="no pattern"),
    ],
)
def test_long_names(length: int, known: list[Ban], epoch: int, verdict: Verdict) -> None:
    """A name that is too long for the patterns that are newer is a miss, and nothing is matched (S25)."""
    assert Bans(0, tuple(known)).verdict(epoch, subject(path="/" + "a" * (length - 1))) is verdict


def test_bans_of_one_epoch_are_not_parted() -> None:
    """Where the border falls among the bans of one epoch, entries from before that epoch are a miss."""
    trimmed = Bans().with_more(hard(1, f"/{number}") for number in range(MAX_BANS + 1))
    assert trimmed.since == 1
    assert trimmed.verdict(0, subject(path="/0")) is INVALID
    assert trimmed.verdict(1, subject(path="/0")) is VALID


@pytest.mark.parametrize(
    ("newest_ban", "bans", "stamps", "verdict"),
    [
        pytest.param(0, Bans(9), {"t": stamp()}, VALID, id="no ban known, none asked"),
        pytest.param(4, Bans(9), {"t": stamp()}, VALID, id="an older ban known, none asked"),
        pytest.param(5, Bans(0, (hard(5),)), {"t": stamp()}, INVALID, id="banned"),
        pytest.param(5, Bans(0, (hard(5, "/b"),)), {"t": stamp()}, VALID, id="another is banned"),
        pytest.param(5, Bans(5), {"t": stamp()}, INVALID, id="the list is lost"),
        pytest.param(5, Bans(0, (soft(5),)), {"t": stamp()}, STALE, id="softly banned"),
        pytest.param(5, Bans(0, (hard(5, "/b"),)), {"t": stamp(0, 6)}, STALE, id="softly stamped"),
        pytest.param(5, Bans(0, (hard(5),)), {"t": stamp(0, 6)}, INVALID, id="softly stamped and banned"),
        pytest.param(5, Bans(0, (soft(5),)), {"t": stamp(6)}, INVALID, id="softly banned and stamped"),
        pytest.param(5, Bans(0, (hard(5),)), {}, UNASKED, id="banned, stamps not asked for"),
    ],
)
def test_judge(newest_ban: int, bans: Bans, stamps: Mapping[str, Stamp | None], verdict: Verdict) -> None:
    """The stricter of clock and bans holds, and bans are asked only if there is a newer one."""
    clock = Epochs(GENERATION, 6, newest_ban=newest_ban)
    assert judge(clock, bans, Passed(), Mark(GENERATION, 4), subject("t"), stamps) is verdict


# What an entry has passed.


def test_passed_bans_are_not_asked_again() -> None:
    """An entry that passed a ban is not compared with it again, and with a newer one once."""
    asked: list[int] = []

    def matcher(epoch: int) -> Ban:
        def matches(subject: Subject, names: Iterable[str]) -> bool:
            asked.append(epoch)
            return False

        return Ban(epoch, False, "p", "", matches)

    passed, mark = Passed(), Mark(GENERATION, 1)
    bans = Bans(0, (matcher(2), matcher(3)))
    for _ in range(3):
        assert judge(Epochs(GENERATION, 3, newest_ban=3), bans, passed, mark, subject(), {}) is VALID
    assert asked == [3, 2]
    newer = bans.with_more([matcher(4)])
    for _ in range(3):
        assert judge(Epochs(GENERATION, 5, newest_ban=4), newer, passed, mark, subject(), {}) is VALID
    assert asked == [3, 2, 4]


def test_passed_outlives_the_list() -> None:
    """An entry that passed all bans when they were known stays valid when the older ones are forgotten."""
    passed, mark = Passed(), Mark(GENERATION, 1)
    full = Bans().with_more(hard(epoch, f"/{epoch}") for epoch in range(2, MAX_BANS + 2))
    clock = Epochs(GENERATION, MAX_BANS + 1, newest_ban=MAX_BANS + 1)
    assert judge(clock, full, passed, mark, subject(), {}) is VALID
    trimmed = full.with_more([hard(MAX_BANS + 2, "/last")])
    clock = Epochs(GENERATION, MAX_BANS + 2, newest_ban=MAX_BANS + 2)
    assert judge(clock, trimmed, passed, mark, subject(), {}) is VALID
    assert judge(clock, trimmed, Passed(), mark, subject(), {}) is INVALID


@pytest.mark.parametrize(
    "other",
    [
        pytest.param((Mark(GENERATION, 1), subject("t", path="/b")), id="another path"),
        pytest.param((Mark(GENERATION, 1), subject("t", logical_key="/b")), id="another logical key"),
        pytest.param((Mark(GENERATION, 1), subject("t", "u")), id="another tag"),
        pytest.param((Mark(GENERATION, 1), subject("t", key="cache:2")), id="another key"),
    ],
)
def test_passed_is_of_one_entry(other: tuple[Mark, Subject]) -> None:
    """What one entry passed says nothing of another, and be it stored in its place."""
    everywhere = ["p/b", "at\nu", "kcache:2"]
    bans = Bans(0, tuple(ban(2, text[0], text[1:], soft=False) for text in everywhere))
    clock, passed = Epochs(GENERATION, 2, newest_ban=2), Passed()
    stamps = {"t": stamp(), "u": stamp()}
    assert judge(clock, bans, passed, Mark(GENERATION, 1), subject("t"), stamps) is VALID
    assert judge(clock, bans, passed, *other, stamps) is INVALID


def test_passed_is_bounded() -> None:
    """What is remembered is bounded; an entry that was forgotten is judged as if for the first time."""
    passed, mark = Passed(), Mark(GENERATION, 1)
    for number in range(MAX_PASSED + 1):
        passed.note(mark, subject(key=f"cache:{number}"), 9)
    assert passed.since(mark, subject(key="cache:0")) == 1
    assert passed.since(mark, subject(key=f"cache:{MAX_PASSED // 2}")) == 9
    assert passed.since(mark, subject(key=f"cache:{MAX_PASSED}")) == 9


# A clock that goes back.

SEEN = Seen(GENERATION, 5)
OVER = Seen(GENERATION, is_over=True)
OLDER, NEWER = "a0", "a2"
assert OLDER < GENERATION < NEWER


@pytest.mark.parametrize(
    ("seen", "clock", "went_back", "then"),
    [
        pytest.param(SEEN, Epochs(GENERATION, 5), False, SEEN, id="the same"),
        pytest.param(SEEN, Epochs(GENERATION, 6), False, Seen(GENERATION, 6), id="newer"),
        pytest.param(SEEN, Epochs(GENERATION, 4), True, SEEN, id="older"),
        pytest.param(SEEN, Epochs(OLDER, 9), True, SEEN, id="of an older generation"),
        pytest.param(SEEN, Epochs(NEWER, 1), False, Seen(NEWER, 1), id="of a newer generation"),
        pytest.param(OVER, Epochs(GENERATION, 9), True, OVER, id="of one that is over"),
        pytest.param(OVER, Epochs(OLDER, 9), True, OVER, id="older than one that is over"),
        pytest.param(OVER, Epochs(NEWER, 1), False, Seen(NEWER, 1), id="newer than one that is over"),
    ],
)
def test_seen(seen: Seen, clock: Epochs, went_back: bool, then: Seen) -> None:
    """A clock that is older than one seen before has lost invalidations, and one of a newer generation has not."""
    assert seen.is_newer_than(clock) is went_back
    assert seen.and_then(clock) == then


@pytest.mark.parametrize(
    ("seen", "asked", "number", "then"),
    [
        pytest.param(SEEN, SEEN, NEWER, Seen(NEWER, is_over=True), id="later"),
        pytest.param(SEEN, SEEN, OLDER, OVER, id="by a time that goes behind"),
        pytest.param(SEEN, Seen(), OLDER, SEEN, id="before what was begun meanwhile"),
        pytest.param(SEEN, Seen(), NEWER, Seen(NEWER, is_over=True), id="after what was begun meanwhile"),
        pytest.param(Seen(), Seen(), OLDER, Seen(OLDER, is_over=True), id="the first that is known"),
    ],
)
def test_over(seen: Seen, asked: Seen, number: str, then: Seen) -> None:
    """Where an invalidation met no clock, what may come back of one is over."""
    assert seen.and_over(number, asked) == then


def test_seen_first() -> None:
    """The first clock that a process sees has lost nothing that it knows of."""
    assert not Seen().is_newer_than(Epochs(GENERATION, 5))
    assert not Seen().and_then(Epochs(GENERATION, 5)).is_newer_than(Epochs(GENERATION, 5))


A, B, C = Term("a:2", 2), Term("b:4", 4), Term("a:6", 6)
IN_B = Seen(GENERATION, 6, (A, B))


@pytest.mark.parametrize(
    ("clock", "contradicts"),
    [
        pytest.param(Epochs(GENERATION, 6, terms=(A, B)), False, id="the same"),
        pytest.param(Epochs(GENERATION, 9, terms=(A, B)), False, id="newer"),
        pytest.param(Epochs(GENERATION, 9, terms=(A, B, C)), False, id="newer, in a newer term"),
        pytest.param(Epochs(GENERATION, 9, terms=(B, C)), False, id="newer, the first term forgotten"),
        pytest.param(Epochs(GENERATION, 3, terms=(A,)), False, id="older, in an earlier term: overtaken"),
        pytest.param(Epochs(GENERATION, 2), False, id="older than all terms: overtaken"),
        pytest.param(Epochs(GENERATION, 6, terms=(A,)), True, id="the same epoch in the term before"),
        pytest.param(Epochs(GENERATION, 9, terms=(A,)), True, id="newer, in the term before"),
        pytest.param(Epochs(GENERATION, 9, terms=(A, Term("c:", 4))), True, id="newer, in another term"),
        pytest.param(Epochs(GENERATION, 9, terms=(A, Term("b:", 5))), True, id="another term of one history"),
        pytest.param(Epochs(GENERATION, 9, terms=(A, Term("c:", 3))), True, id="newer, in one that began before"),
        pytest.param(
            Epochs(GENERATION, 9, terms=(A, B, Term("c:", 5))), True, id="a newer term that began before"
        ),
        pytest.param(Epochs(GENERATION, 4, terms=(Term("c:", 2),)), True, id="older, in another term"),
        pytest.param(Epochs(GENERATION, 9), True, id="newer, without terms"),
        pytest.param(Epochs(GENERATION, 9, terms=(C,)), True, id="newer, and its term is forgotten"),
        pytest.param(Epochs(NEWER, 9, terms=(C,)), False, id="of another generation"),
    ],
)
def test_contradicts(clock: Epochs, contradicts: bool) -> None:
    """Clocks of which neither is the other's past have lost an invalidation, whichever came first."""
    assert IN_B.contradicts(clock) is contradicts
    other_way_round = Seen(clock.generation, clock.epoch, clock.terms)
    assert other_way_round.contradicts(Epochs(GENERATION, 6, terms=(A, B))) is contradicts


def test_terms_are_seen() -> None:
    """What a process has seen has the terms of the newest clock, in a new generation too."""
    newer, of_another = Epochs(GENERATION, 7, terms=(A, B, C)), Epochs(NEWER, 2, terms=(C,))
    assert IN_B.and_then(newer).terms == newer.terms
    assert IN_B.and_then(Epochs(GENERATION, 3, terms=(A,))) == IN_B
    assert IN_B.and_then(of_another).terms == of_another.terms


class History:
    """What happened, in order, and what the clock makes of it."""

    def __init__(self) -> None:
        self.orders: list[Order] = []
        self.stamps: dict[str, Stamp | None] = dict.fromkeys(TAGS, stamp())
        self.bans = Bans()
        self.clock = Epochs(GENERATION, 0)

    def add(self, order: Order) -> None:
        """Let *order* begin the next epoch."""
        self.orders.append(order)
        epoch, clock = len(self.orders), self.clock
        for tag in order.tags:
            old = self.stamps[tag] or stamp()
            self.stamps[tag] = stamp(old.hard if order.soft else epoch, epoch if order.soft else old.soft)
        banned = [ban(epoch, kind, text, soft=order.soft) for kind, text in bans_of(order)]
        self.bans = self.bans.with_more(banned)
        self.clock = Epochs(
            GENERATION,
            epoch,
            epoch if order.everything and not order.soft else clock.floor,
            epoch if order.everything and order.soft else clock.soft_floor,
            epoch if banned else clock.newest_ban,
        )

    def verdict(self, epoch: int, entry: Subject, passed: Passed) -> Verdict:
        """Return what the clock says of *entry*, filled at *epoch*."""
        return judge(self.clock, self.bans, passed, Mark(GENERATION, epoch), entry, self.stamps)

    def truth(self, epoch: int, entry: Subject) -> Verdict:
        """Return what all orders since *epoch* say of *entry*, taken one by one."""
        since = [order for order in self.orders[epoch:] if names(order, entry)]
        if any(not order.soft for order in since):
            return INVALID
        return STALE if since else VALID


def names(order: Order, entry: Subject) -> bool:
    """Return whether *order* names *entry*."""
    patterns = [pattern.rstrip("*") for pattern in order.patterns]
    return (
        order.everything
        or bool(entry.tags & {*order.tags})
        or any(frozenset(tags) <= entry.tags for tags in order.all_of)
        or entry.key in order.keys
        or any(text.startswith(start) for start in patterns for text in (entry.path, entry.logical_key or "-"))
    )


TAGS = ("t", "u", "v")
ENTRIES = [
    subject("t"),
    subject("t", "u", path="/b"),
    subject("u", path="/a", logical_key="/b"),
    subject(path="/ab", key="cache:2"),
]
some_tags = st.lists(st.sampled_from(TAGS), min_size=1, max_size=2, unique=True).map(tuple)
orders = st.one_of(
    st.builds(Order, tags=some_tags, soft=st.booleans()),
    st.builds(
        Order, patterns=st.sampled_from([("/a*",), ("/b*",), ("/c*",), ("/ab*", "/c*")]), soft=st.booleans()
    ),
    st.builds(Order, all_of=some_tags.map(lambda tags: (tags,)), soft=st.booleans()),
    st.builds(Order, keys=st.sampled_from([("cache:1",), ("cache:2",), ("cache:3",)]), soft=st.booleans()),
    st.builds(Order, everything=st.just(True), soft=st.booleans()),
)


@settings(max_examples=60)
@given(st.lists(orders, max_size=12), st.sets(st.integers(0, 12)))
def test_history(happened: list[Order], looked_at: set[int]) -> None:
    """Whatever was invalidated in whatever order, the clock says of each entry what all orders say together.

    It does so whether an entry is judged after each invalidation, now and then, or once at the end.
    """
    history, passed, now_and_then = History(), Passed(), Passed()
    for order in [*happened, Order(tags=("v",))]:
        history.add(order)
        for epoch, entry in product(range(len(history.orders) + 1), ENTRIES):
            truth = history.truth(epoch, entry)
            assert history.verdict(epoch, entry, Passed()) is truth
            assert history.verdict(epoch, entry, passed) is truth
            if len(history.orders) in looked_at:
                assert history.verdict(epoch, entry, now_and_then) is truth


@settings(max_examples=40)
@given(st.lists(st.sampled_from(["/a*", "/b*", "/c*", "/x*"]), max_size=16), st.sets(st.integers(0, 16)))
def test_history_forgotten(happened: list[str], looked_at: set[int]) -> None:
    """Where bans are forgotten an entry may be missed, and never served against what all orders say."""
    history, passed = History(), Passed()
    for pattern in happened:
        others = (f"/none/{len(history.orders)}/{number}" for number in range(MAX_BANS // 8))
        history.add(Order(patterns=(pattern, *others)))
        for epoch, entry in product(range(len(history.orders) + 1), ENTRIES):
            truth = history.truth(epoch, entry)
            alone = history.verdict(epoch, entry, Passed())
            assert alone in (truth, INVALID)
            if len(history.orders) in looked_at:
                assert history.verdict(epoch, entry, passed) in (truth, alone)

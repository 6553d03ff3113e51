"""What is in use stays, what is new gets its chance, and what is no longer in use goes."""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING

import pytest

from app_cache.backends.eviction import LEAST_PLACES, NO_BET, ON_NEW, TIMES, Eviction, Resident, _Gone

if TYPE_CHECKING:
    from collections.abc import Iterable


class Sized(Resident, kw_only=True):
    """A resident that says what it counts."""

    cost: int = 1


class Cache:
    """Keeps keys, at most *places* of them, each of which counts *costs* of it, or 1."""

    def __init__(self, places: int, costs: dict[str, int] | None = None) -> None:
        self.places = places
        self.costs = costs or {}
        self.kept: dict[str, Resident] = {}
        self.eviction: Eviction[Resident] = Eviction()

    def held(self) -> int:
        """Return what all of them count."""
        return sum(resident.cost for resident in self.kept.values())

    def ask(self, key: str) -> bool:
        """Return whether *key* is kept; keep it if it is not."""
        if key in self.kept:
            self.kept[key].read = True
            return True
        resident = Sized(key, cost=self.costs.get(key, 1))
        while self.held() + resident.cost > self.places:
            del self.kept[self.eviction.choose(by_bytes=bool(self.costs)).key]
        self.kept[key] = resident
        self.eviction.enter(resident)
        return False

    def hits(self, keys: Iterable[str]) -> float:
        """Return the part of *keys* that was kept when it was asked for."""
        found = [self.ask(key) for key in keys]
        return sum(found) / len(found)


@pytest.mark.parametrize(
    ("places", "asked", "kept"),
    [
        pytest.param(3, "abc", "abc", id="all fit"),
        pytest.param(1, "abc", "c", id="one place is for the last"),
        pytest.param(3, "abcdefg", "abg", id="of what is asked for once, the first stay"),
        pytest.param(3, "ababcdefg", "abg", id="what is read stays"),
        pytest.param(3, "abccde", "bce", id="the newest was read, the others not"),
        pytest.param(3, "abcbccde", "bce", id="the hand passes over what was read"),
        pytest.param(3, "abcdce", "bce", id="what comes again drives out what was never read"),
        pytest.param(
            3, "abcabdabcabdabcabd", "abd", id="what comes again does not drive out what is read more often"
        ),
    ],
)
def test_who_stays(places: int, asked: str, kept: str) -> None:
    """Who stays is told by what was asked for, and how often."""
    cache = Cache(places)
    key_of = apart({*asked})
    for letter in asked:
        cache.ask(key_of[letter])
    assert {*cache.kept} == {key_of[letter] for letter in kept}


def apart(letters: set[str]) -> dict[str, str]:
    """Return a key for each of *letters*, no two of which have one place in the table of what went."""
    by_place = {hash(f"{number}") % LEAST_PLACES: f"{number}" for number in range(100 * LEAST_PLACES)}
    return dict(zip(letters, by_place.values(), strict=False))


def test_large_goes_for_small() -> None:
    """Where bytes are wanted, one large entry goes before many small ones that were asked for as often."""
    cache = Cache(100, costs={"large": 60, "other": 40})
    small = [f"{number}" for number in range(20)]
    for key in ["large", *small, "other"]:
        cache.ask(key)
    assert set(cache.kept) == {*small, "other"}


def test_large_newest_does_not_drive_out_small() -> None:
    """Where bytes are wanted, an entry that is large has to be asked for more often, by its size."""
    cache = Cache(100, costs={"large": 60, "other": 40})
    small = [f"{number}" for number in range(40)]
    for key in [*small, "large", "large", "other"]:
        cache.ask(key)
    assert set(cache.kept) == {*small, "other"}


@pytest.mark.parametrize(
    ("by_bytes", "goes"), [pytest.param(True, "large", id="bytes"), pytest.param(False, "small", id="a place")]
)
def test_more_than_the_newest(by_bytes: bool, goes: str) -> None:
    """If the newest has gone already, one of the least worth goes, by its size where bytes are wanted."""
    eviction: Eviction[Resident] = Eviction()
    for resident in (Sized("small"), Sized("large", cost=9), Sized("other"), Sized("newest")):
        eviction.enter(resident)
    assert eviction.choose(by_bytes=by_bytes).key == "newest"
    eviction._hand = 0
    assert eviction.choose(by_bytes=by_bytes).key == goes


def test_loop() -> None:
    """Of a loop that is a tenth larger than the cache most is hit; were it the oldest that goes, none would be."""
    assert Cache(200).hits(f"{number % 220}" for number in range(20_000)) > 0.85


def test_popular_no_more() -> None:
    """What was asked for often gives way when nobody asks for it any more, each time a little later."""
    chance = random.Random(7)
    cache = Cache(200)
    for life in "abc":
        asked = [f"{life}{int(chance.paretovariate(0.8))}" for _ in range(8_000)]
        cache.hits(asked[:4_000])
        assert cache.hits(asked[4_000:]) > 0.95 * Cache(200).hits(asked)


def test_news() -> None:
    """What is new is kept where what is older is asked for less and less, however often it was asked for."""
    chance = random.Random(7)
    news = [f"{number // 10 - int(chance.expovariate(1 / 120))}" for number in range(30_000)]
    assert Cache(200).hits(news) > 0.58


def test_new_life() -> None:
    """What is deleted or expires and comes again is not taken for one that nobody asked for before."""
    cache = Cache(3)
    key_of = apart({*"abcd"})
    for letter in "abbb":
        cache.ask(key_of[letter])
    cache.eviction.leave(cache.kept.pop(key_of["a"]))
    for letter in "cda":
        cache.ask(key_of[letter])
    assert cache.kept[key_of["a"]].count == 1


def test_table_grows_with_the_entries() -> None:
    """The table of what went has two to four places for each entry."""
    eviction: Eviction[Resident] = Eviction()
    for number in range(10 * LEAST_PLACES):
        eviction.enter(Resident(f"{number}"))
    assert 2 <= eviction._gone.places / (10 * LEAST_PLACES) <= 4


@pytest.mark.parametrize(("others", "won"), [(6, True), (7, False)])
@pytest.mark.parametrize("time", [0, TIMES - 31, TIMES - 95], ids=["at first", "at the end", "before the end"])
def test_bets_on_return(time: int, others: int, won: bool) -> None:
    """Who comes back while fewer have gone than two thirds of the settled was rightly bet on; time goes round."""
    rates = [0.5] * 24
    gone = _Gone(LEAST_PLACES, rates)
    gone._time = time
    key, *rest = apart({f"{number}" for number in range(others + 1)}).values()
    gone.remember(Resident(key), ON_NEW)
    for other in rest:
        gone.remember(Resident(other, count=3), NO_BET)
    assert gone.recall(key, settled=10) == 1
    assert (rates[ON_NEW] > 0.5) is won
    assert gone._time <= TIMES
    assert gone.recall(key, settled=10) == 0


def test_places_are_true() -> None:
    """Whatever comes and goes, each resident stands where it says."""
    chance = random.Random(7)
    cache = Cache(20)
    for _ in range(20_000):
        if chance.random() < 0.3 and cache.kept:
            cache.eviction.leave(cache.kept.pop(chance.choice(sorted(cache.kept))))
        elif chance.random() < 0.3 and cache.kept:
            del cache.kept[cache.eviction.choose(by_bytes=True).key]
        else:
            cache.ask(f"{int(chance.paretovariate(0.5))}")
        ring = cache.eviction._ring
        assert [resident.place for resident in ring] == list(range(len(ring)))
        assert {resident.key for resident in cache.eviction.each()} == set(cache.kept)


def test_each_gives_all_that_stay() -> None:
    """Whoever is there from beginning to end is given, whoever leaves or comes meanwhile."""
    chance = random.Random(7)
    for _ in range(200):
        cache = Cache(50)
        for number in range(30):
            cache.ask(f"old {number}")
        stay = set(cache.kept)
        seen = set()
        fresh = itertools.count()
        for resident in cache.eviction.each():
            seen.add(resident.key)
            for key in chance.sample(sorted(cache.kept), min(2, len(cache.kept))):
                cache.eviction.leave(cache.kept.pop(key))
                stay.discard(key)
            if chance.random() < 0.5:
                cache.ask(f"new {next(fresh)}")
        assert stay <= seen

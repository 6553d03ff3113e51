"""What an invalidation names is valid no more, whatever keeps the clock: memory, Redis, four methods."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec
import pytest

from app_cache.backends.memory import MemoryBackend
from app_cache.clock import epochs, local, script
from app_cache.clock.base import Order, Verdict
from app_cache.clock.names import key_stamp, tag_stamp, url_stamp
from app_cache.errors import ConfigurationError
from app_cache.store import StoredResponses
from tests.stored import Page, begun, filled, kept, verdict

if TYPE_CHECKING:
    from tests.clock.conftest import Backends, Clocks

pytestmark = pytest.mark.anyio

VALID, STALE, INVALID = Verdict.VALID, Verdict.STALE, Verdict.INVALID

PAGES = {
    "user": Page("/users/7", tags=("user", "vip")),
    "orders": Page("/users/7/orders", tags=("user",), late=("order 1",)),
    "item": Page("/items/1", tags=("vip",), logical_key="item:1"),
    "size": Page("/über/größe", tags=("größe",)),
}
ALL = " ".join(PAGES)
EVERYTHING = "everything"


@dataclass(frozen=True)
class Case:
    """An order, the pages that it names, and, where there are only tokens, what it is widened to."""

    order: Order
    named: str
    widened_to: str | None = None
    widened: str | None = None


def tags(*names: str) -> Order:
    """Return the order that names the entries with any of the tags *names*."""
    return Order(tags=tuple(map(tag_stamp, names)))


CASES = {
    "a tag": Case(tags("user"), "user orders"),
    "any of two tags": Case(tags("order 1", "größe"), "orders size"),
    "a late tag": Case(tags("order 1"), "orders"),
    "a tag that nothing has": Case(tags("nobody"), ""),
    "a URL": Case(Order(tags=(url_stamp("/users/7"),)), "user"),
    "a logical key": Case(Order(tags=(key_stamp("item:1"),)), "item"),
    "a pattern that is a directory": Case(Order(patterns=("/users/*",)), "user orders", "/users/*"),
    "a pattern in a directory": Case(Order(patterns=("/users/7/o*s",)), "orders", "/users/7/*"),
    "a pattern without a directory": Case(Order(patterns=("*7",)), "user", EVERYTHING, ALL),
    "a pattern over logical keys": Case(Order(patterns=("item:?",)), "item", EVERYTHING, ALL),
    "two patterns": Case(
        Order(patterns=("/users/*/*", "/items/*")), "orders item", "/users/*, /items/*", "user orders item"
    ),
    "all of two tags": Case(
        Order(all_of=((tag_stamp("user"), tag_stamp("vip")),)), "user", "t:user", "user orders"
    ),
    "a stored key": Case(Order(keys=(PAGES["item"].key,)), "item", EVERYTHING, ALL),
    "everything": Case(Order(everything=True), ALL),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
each_way = pytest.mark.parametrize("soft", [pytest.param(False, id="hard"), pytest.param(True, id="soft")])


def without_bans(clocks: Clocks) -> bool:
    """Return whether this clock has only tokens."""
    return clocks.kind == "custom"


@each_way
@each_case
async def test_named_alone(clocks: Clocks, case: Case, soft: bool) -> None:
    """An invalidation drops or marks what it names and nothing else, here and in another process."""
    here, there = clocks(), clocks()
    marks = {name: await filled(here, page) for name, page in PAGES.items()}
    result = await here.invalidate(replace(case.order, soft=soft))
    tokens = without_bans(clocks)
    named = (case.widened or case.named) if tokens else case.named
    said = INVALID if tokens or not soft else STALE
    for clock in (here, there, here):
        assert {name: await verdict(clock, page, marks[name]) for name, page in PAGES.items()} == {
            name: said if name in named.split() else VALID for name in PAGES
        }
    assert result.durable
    assert (result.epoch is None) == tokens
    expected = ", ".join((["hard"] if soft else []) + ([case.widened_to] if case.widened_to else []))
    assert result.widened_to == (expected or None if tokens else None)


@each_way
@each_case
async def test_named_while_it_was_filled(clocks: Clocks, case: Case, soft: bool) -> None:
    """What was being filled when an invalidation named it is not valid once it is stored."""
    here, there = clocks(), clocks()
    marks = {name: await begun(here, page) for name, page in PAGES.items()}
    await there.invalidate(replace(case.order, soft=soft))
    held = {name: await kept(here, page, marks[name]) for name, page in PAGES.items()}
    for clock in (here, there):
        for name in case.named.split():
            assert await verdict(clock, PAGES[name], held[name]) in ((INVALID, STALE) if soft else (INVALID,))


@each_case
async def test_filled_after(clocks: Clocks, case: Case) -> None:
    """What is filled after an invalidation is valid, whatever was invalidated before."""
    here, there = clocks(), clocks()
    for page in PAGES.values():
        await filled(here, page)
    await here.invalidate(case.order)
    marks = {name: await filled(there, page) for name, page in PAGES.items()}
    for clock in (here, there):
        assert {await verdict(clock, page, marks[name]) for name, page in PAGES.items()} == {VALID}


async def test_nothing_is_known_of_an_empty_clock(clocks: Clocks) -> None:
    """Under a clock that has just begun, nothing that was filled under another one is valid."""
    page = PAGES["user"]
    mark = await filled(clocks(), page)
    assert await verdict(clocks("elsewhere"), page, mark) is INVALID


async def test_late_tags_are_asked_for(clocks: Clocks) -> None:
    """A reading that has not asked for all tags of an entry says so once anything was invalidated."""
    clock, page = clocks(), PAGES["orders"]
    mark = await filled(clock, page)
    await clock.invalidate(tags("nobody"))
    _, reading = await clock.look_up(page.key, page.asked)
    expected = VALID if clocks.kind == "memory" else Verdict.UNASKED
    assert reading.judge(mark, page.stored) is expected
    assert (await clock.read(page.stored)).judge(mark, page.stored) is VALID


async def test_late_tag_beside_any_invalidation(clocks: Clocks) -> None:
    """With tokens alone, an entry with late tags is not stored if anything at all was invalidated meanwhile."""
    clock, page = clocks(), PAGES["orders"]
    mark = await begun(clock, page)
    await clock.invalidate(tags("nobody"))
    held = await kept(clock, page, mark)
    assert (held is None) == without_bans(clocks)
    assert await verdict(clock, page, held) is (VALID if clocks.kind == "memory" else INVALID)


async def test_soft_then_hard(clocks: Clocks) -> None:
    """What is marked stale can still be dropped, and what is dropped is not marked stale again."""
    clock, page = clocks(), PAGES["user"]
    mark = await filled(clock, page)
    for order in (replace(tags("user"), soft=True), tags("vip"), Order(everything=True, soft=True)):
        await clock.invalidate(order)
    assert await verdict(clock, page, mark) is INVALID


@each_case
async def test_soft_after_hard(clocks: Clocks, case: Case) -> None:
    """What is dropped stays so, though the same is marked stale before and after."""
    clock = clocks()
    marks = {name: await filled(clock, PAGES[name]) for name in case.named.split()}
    for soft in (True, False, True):
        await clock.invalidate(replace(case.order, soft=soft))
    said = {name: await verdict(clock, PAGES[name], mark) for name, mark in marks.items()}
    assert said == dict.fromkeys(marks, INVALID)


async def test_same_key_under_other_paths(clocks: Clocks) -> None:
    """A pattern drops the entry under a key even if one of another path under that key has passed it."""
    clock = clocks()
    here = Page("/here", logical_key="one key")
    there = Page("/there", logical_key="one key")
    subject = msgspec.structs.replace(there.stored, key=here.key, tags=here.stored.tags)
    mark = await filled(clock, here)
    await kept(clock, there, mark)
    await clock.invalidate(Order(patterns=("/there*",)))
    if without_bans(clocks):
        return
    assert await verdict(clock, here, mark) is VALID
    assert (await clock.read(subject)).judge(mark, subject) is INVALID


async def test_bans_beyond_the_most(clocks: Clocks, monkeypatch: pytest.MonkeyPatch) -> None:
    """When there are too many bans the older half goes: what is older than those is a miss, the rest is judged."""
    if without_bans(clocks):
        return
    monkeypatch.setattr(epochs, "MAX_BANS", 4)
    monkeypatch.setattr(script, "MAX_BANS", 4)
    clock, fresh = clocks(), clocks()
    old = await filled(clock, PAGES["user"])
    for number in range(3):
        await clock.invalidate(Order(patterns=(f"/nowhere/{number}",)))
    newer = await filled(clock, PAGES["item"])
    newest = await filled(clock, PAGES["size"])
    await clock.invalidate(Order(patterns=("/über/*",)))
    await clock.invalidate(Order(patterns=("/nowhere/4",)))
    for each in (clock, fresh):
        assert await verdict(each, PAGES["user"], old) is INVALID
        assert await verdict(each, PAGES["item"], newer) is VALID
        assert await verdict(each, PAGES["size"], newest) is INVALID


@pytest.mark.parametrize("soft", [False, True])
async def test_bans_that_come_again(clocks: Clocks, monkeypatch: pytest.MonkeyPatch, soft: bool) -> None:
    """A pattern that is invalidated again and again counts once: what it does not name is not forgotten."""
    if without_bans(clocks):
        return
    monkeypatch.setattr(epochs, "MAX_BANS", 4)
    monkeypatch.setattr(script, "MAX_BANS", 4)
    clock, fresh = clocks(), clocks()
    other, named = await filled(clock, PAGES["size"]), await filled(clock, PAGES["user"])
    for _ in range(6):
        await clock.invalidate(Order(patterns=("/users/*", "/items/*"), soft=soft))
    await clock.invalidate(Order(patterns=("/nowhere",)))
    for each in (clock, fresh):
        assert await verdict(each, PAGES["size"], other) is VALID
        assert await verdict(each, PAGES["user"], named) is (STALE if soft else INVALID)


async def test_more_patterns_at_once_than_bans(clocks: Clocks, monkeypatch: pytest.MonkeyPatch) -> None:
    """One order of more patterns than are kept drops everything that is older."""
    monkeypatch.setattr(epochs, "MAX_BANS", 4)
    monkeypatch.setattr(script, "MAX_BANS", 4)
    clock = clocks()
    mark = await filled(clock, PAGES["user"])
    await clock.invalidate(Order(patterns=("/users/*", *(f"/nowhere/{number}" for number in range(9)))))
    assert await verdict(clock, PAGES["user"], mark) is INVALID
    assert await verdict(clock, PAGES["user"], await filled(clock, PAGES["user"])) is VALID


async def test_a_thousand_patterns(clocks: Clocks) -> None:
    """However many patterns were invalidated, what was filled after them is valid, and what they name is not."""
    clock = clocks()
    mark = await filled(clock, PAGES["user"])
    for number in range(1000 if clocks.kind == "memory" else 300):
        await clock.invalidate(Order(patterns=(f"/nowhere/{number}*",)))
    newer = await filled(clock, PAGES["user"])
    assert await verdict(clock, PAGES["user"], newer) is VALID
    assert await verdict(clock, PAGES["user"], mark) is (VALID if without_bans(clocks) else INVALID)


HOSTILE = {
    "Lua": "'] redis.call('FLUSHALL') --",
    "Lua long string": "]] .. redis.call('FLUSHALL') .. [[",
    "glob": "*",
    "class": "[a-z]?",
    "backslash": "\\",
    "newline": "a\nb",
    "end of line": "a\r\n2 0 p %2A",
    "blanks": " a  b ",
    "braces": "{cache:}clock",
    "percent": "%s%d%00%2A",
    "nothing printable": "\x00\x1b[2J",
    "a lone surrogate": "\ud800",
    "digits": "0",
    "minus": "-1",
    "long": "x" * 5000,
    "emoji": "👩‍👩‍👧",
}


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
async def test_hostile_tags_are_data(clocks: Clocks, name: str) -> None:
    """A tag may be any string: it names what has it, and nothing else happens."""
    clock = clocks()
    other, page, late = Page("/other", tags=("other",)), Page("/a", tags=(name,)), Page("/b", late=(name,))
    marks = [await filled(clock, each) for each in (other, page, late)]
    await clock.invalidate(tags(f"{name}!"))
    assert [await verdict(clock, each, mark) for each, mark in zip((other, page, late), marks, strict=True)] == [
        VALID,
        VALID,
        VALID,
    ]
    await clock.invalidate(tags(name))
    assert [await verdict(clock, each, mark) for each, mark in zip((other, page, late), marks, strict=True)] == [
        VALID,
        INVALID,
        INVALID,
    ]


@pytest.mark.parametrize("name", [name[:99] for name in HOSTILE.values()], ids=HOSTILE)
async def test_hostile_patterns_are_data(clocks: Clocks, name: str) -> None:
    """A pattern and a path may be any string: the pattern names the paths that match it, and no others."""
    clock, fresh = clocks(), clocks()
    escaped = "".join(f"\\{char}" for char in name)
    page, other = Page(f"/dir/{name}"), Page("/other/page")
    mark, unnamed = await filled(clock, page), await filled(clock, other)
    await clock.invalidate(Order(patterns=(f"/nowhere/{escaped}",)))
    assert await verdict(clock, page, mark) is VALID
    await clock.invalidate(Order(patterns=(f"/dir/{escaped}",)))
    for each in (clock, fresh):
        assert await verdict(each, page, mark) is INVALID
        assert await verdict(each, other, unnamed) is VALID


NAMESPACES = ["", "a", "a:s", "s", "clock", "*", "[a-z]", "';redis.call('FLUSHALL')--", "%s", "ünï", "x" * 300]


async def test_namespaces_are_separate(clocks: Clocks) -> None:
    """What is invalidated in one namespace, whatever its name, stays valid in all others."""
    page = PAGES["user"]
    all_clocks = {namespace: clocks(namespace) for namespace in NAMESPACES}
    for namespace in NAMESPACES:
        marks = {each: await filled(clock, page) for each, clock in all_clocks.items()}
        await all_clocks[namespace].invalidate(Order(everything=True))
        await all_clocks[namespace].invalidate(Order(tags=(tag_stamp("user"),), patterns=("*",)))
        said = {each: await verdict(clock, page, marks[each]) for each, clock in all_clocks.items()}
        assert said == {each: INVALID if each == namespace else VALID for each in NAMESPACES}


@pytest.mark.parametrize("namespace", ["a b", "a\n", "{a}", "a}", "\x00", "\ud800", 5, None])
def test_namespaces_that_cannot_be(namespace: str) -> None:
    """A namespace with blanks, braces or control characters, or one that is no string, is refused."""
    with pytest.raises(ConfigurationError, match="namespace must be a string without blanks and braces"):
        StoredResponses(MemoryBackend(), namespace)


async def test_a_backend_that_was_closed(backends: Backends) -> None:
    """After a backend was closed, those who share it still share one clock."""
    backend = backends()
    before = StoredResponses(backend).clock
    await filled(before, PAGES["user"])
    await backend.close()
    after = StoredResponses(backend).clock
    mark = await filled(before, PAGES["user"])
    assert await verdict(after, PAGES["user"], mark) is VALID
    await after.invalidate(tags("user"))
    assert await verdict(before, PAGES["user"], mark) is INVALID


async def test_stamps_that_were_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """In memory, what is older than a stamp that was let go is a miss, and what is newer is judged as before."""
    monkeypatch.setattr(local, "MAX_STAMPS", 4)
    clock = StoredResponses(MemoryBackend()).clock
    old = await filled(clock, PAGES["user"])
    await clock.invalidate(tags("first"))
    between = await filled(clock, PAGES["size"])
    for number in range(3):
        await clock.invalidate(tags(f"tag {number}"))
    newer = await filled(clock, PAGES["item"])
    await clock.invalidate(tags("one more"))
    assert await verdict(clock, PAGES["user"], old) is INVALID
    assert await verdict(clock, PAGES["size"], between) is INVALID
    assert await verdict(clock, PAGES["item"], newer) is VALID
    await clock.invalidate(tags("vip"))
    assert await verdict(clock, PAGES["item"], newer) is INVALID

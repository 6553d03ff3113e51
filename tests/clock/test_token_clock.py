"""The clock of a backend with four methods: tokens that are compared, and the order in which they are written."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from app_cache.clock.base import Order, Verdict
from app_cache.clock.names import tag_stamp
from app_cache.clock.tokens import AT_ONCE, MAX_DIRECTORIES, TOKEN_TIMEOUT_S, TokenClock
from app_cache.codec import Mark
from app_cache.errors import BackendError
from app_cache.store import StoredResponses
from tests.stored import FourMethods, Page, begun, filled, kept, verdict

if TYPE_CHECKING:
    from app_cache.clock.base import InvalidationClock

pytestmark = pytest.mark.anyio

VALID, INVALID = Verdict.VALID, Verdict.INVALID
PAGE = Page("/users/7", tags=("user",), late=("late",))
BY_TAG, BY_LATE_TAG = Order(tags=(tag_stamp("user"),)), Order(tags=(tag_stamp("late"),))
TAG, LATE_TAG, ACTIVITY = f"cache:s:{tag_stamp('user')}", f"cache:s:{tag_stamp('late')}", "cache:s:!"


class Gated(FourMethods):
    """Writes down what it is asked; holds back what touches a key in *gates*, and fails at some."""

    def __init__(self) -> None:
        super().__init__()
        self.gates: dict[str, asyncio.Event] = {}
        self.held = asyncio.Event()
        self.asked: list[tuple[str, str]] = []
        self.failing = False
        self.failing_keys: set[str] = set()

    async def get(self, key: str) -> str | None:
        await self._ask("get", key)
        return await super().get(key)

    async def set(self, key: str, value: str, timeout: int) -> None:
        await self._ask("set", key)
        await super().set(key, value, timeout)

    def hold(self, verb: str, key: str) -> asyncio.Event:
        """Hold back *verb* of *key* until what is returned is set."""
        self.held.clear()
        self.gates[f"{verb} {key}"] = asyncio.Event()
        return self.gates[f"{verb} {key}"]

    async def _ask(self, verb: str, key: str) -> None:
        self.asked.append((verb, key))
        gate = self.gates.get(f"{verb} {key}")
        if gate is not None:
            self.held.set()
            await gate.wait()
        if self.failing or key in self.failing_keys:
            raise BackendError("away")


def clock_over(backend: FourMethods) -> InvalidationClock:
    """Return the clock that *backend* can keep."""
    clock = StoredResponses(backend).clock
    assert isinstance(clock, TokenClock)
    return clock


class Text(str):
    """A text of some client's own."""

    __slots__ = ()


async def test_tokens_of_a_class_of_their_own() -> None:
    """A backend may give its texts as a class of its own: what carries their tokens is stored and found (F12)."""
    backend, page = FourMethods(), Page("/users/7", tags=("user",))
    clock = clock_over(backend)
    await begun(clock, page)
    backend.values = {name: Text(value) for name, value in backend.values.items()}
    mark = await begun(clock, page)
    assert {type(token) for token in mark.tokens.values()} == {str}
    assert await verdict(clock, page, mark) is VALID


@pytest.mark.parametrize("damaged", ["\udcff" * 16, "", "x" * 16, "0" * 17])
async def test_what_is_no_token(damaged: str) -> None:
    """What stands where a token belongs, and is none, is replaced by one (F12)."""
    backend = FourMethods()
    backend.values[TAG] = damaged
    mark = await begun(clock_over(backend), PAGE)
    assert mark.tokens[tag_stamp("user")] == backend.values[TAG] != damaged


async def test_close_ends_though_the_backend_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing does not wait for a backend that takes no notice of being cancelled (F29)."""
    monkeypatch.setattr("app_cache.tasks.ENDS_WITHIN_S", 0)
    setting, released = asyncio.Event(), asyncio.Event()

    class Stubborn(FourMethods):
        async def set(self, key: str, value: str, timeout: int) -> None:
            setting.set()
            while not released.is_set():
                with suppress(asyncio.CancelledError):
                    await released.wait()

    clock = clock_over(Stubborn())
    filling = asyncio.create_task(begun(clock, PAGE))
    await setting.wait()
    async with asyncio.timeout(5):
        await clock.close()
    assert not filling.done()
    released.set()
    await asyncio.wait({filling})


async def test_a_token_is_used_once_the_backend_has_it() -> None:
    """No handler begins under a token that the backend has yet to take: it could overtake an invalidation."""
    backend = Gated()
    clock = clock_over(backend)
    gate = backend.hold("set", TAG)
    filling = asyncio.create_task(begun(clock, PAGE))
    await backend.held.wait()
    await asyncio.sleep(0)
    assert not filling.done()
    gate.set()
    assert (await filling).tokens[tag_stamp("user")] == backend.values[TAG]


async def test_fills_side_by_side_make_one_token() -> None:
    """Fills that miss the same token side by side make it once; one that is cancelled leaves it to the others."""
    backend = Gated()
    clock = clock_over(backend)
    gate = backend.hold("set", TAG)
    fills = [asyncio.create_task(begun(clock, PAGE)) for _ in range(5)]
    await backend.held.wait()
    fills[0].cancel()
    gate.set()
    marks = await asyncio.gather(*fills[1:])
    assert backend.asked.count(("set", TAG)) == 1
    assert all(mark == marks[0] for mark in marks)


async def test_a_token_that_was_made_meanwhile_is_kept() -> None:
    """A fill takes the tokens that another process has made since it looked: what that one stored stays valid."""
    backend = Gated()
    here, there = clock_over(backend), clock_over(backend)
    _, reading = await here.look_up(PAGE.key, PAGE.asked)
    mark = await filled(there, PAGE)
    own = await here.begin(reading, PAGE.asked, 60.0)
    assert own is not None
    assert own.tokens.items() <= mark.tokens.items()
    assert await verdict(there, PAGE, mark) is VALID


async def test_what_carries_no_token() -> None:
    """An entry that carries no tokens, as one of another clock, is not valid where there are none."""
    assert await verdict(clock_over(Gated()), PAGE, Mark("abcdef", 1)) is INVALID


async def test_an_invalidation_says_first_that_there_is_one() -> None:
    """An invalidation writes the activity before the stamps, and another token at each attempt."""
    backend = Gated()
    clock = clock_over(backend)
    tokens = []
    for _ in range(2):
        backend.asked.clear()
        await clock.invalidate(Order(tags=(tag_stamp("user"), tag_stamp("late"))))
        assert backend.asked == [("set", ACTIVITY), ("set", TAG), ("set", LATE_TAG)]
        tokens += [backend.values[key] for key in (ACTIVITY, TAG, LATE_TAG)]
    assert len({*tokens}) == 6


async def test_what_was_sent_is_not_sent_again() -> None:
    """What the backend has of an invalidation is not sent again where the rest is."""
    backend = Gated()
    clock, order, sent = clock_over(backend), Order(tags=(tag_stamp("user"), tag_stamp("late"))), set[object]()
    backend.hold("set", LATE_TAG)
    invalidating = asyncio.create_task(clock.invalidate(order, sent))
    await backend.held.wait()
    invalidating.cancel()
    await asyncio.wait({invalidating})
    backend.asked.clear()
    backend.gates.clear()
    await clock.invalidate(order, sent)
    assert backend.asked == [("set", LATE_TAG)]


async def test_stamps_are_written_side_by_side() -> None:
    """An invalidation of many tags writes their stamps side by side, a bounded number of them."""
    backend = Gated()
    clock, tags = clock_over(backend), tuple(tag_stamp(f"{number}") for number in range(AT_ONCE + 1))
    gates = [backend.hold("set", f"cache:s:{tag}") for tag in tags]
    invalidating = asyncio.create_task(clock.invalidate(Order(tags=tags)))
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(backend.asked) == 1 + AT_ONCE
    for gate in gates:
        gate.set()
    await invalidating
    assert len(backend.asked) == 2 + AT_ONCE


async def test_failed_stamp() -> None:
    """An invalidation that fails at one stamp leaves no other one under way."""
    backend, tasks = Gated(), asyncio.all_tasks()
    clock = clock_over(backend)
    backend.hold("set", TAG)
    backend.failing_keys.add(LATE_TAG)
    async with asyncio.timeout(5):
        with pytest.raises(BackendError):
            await clock.invalidate(Order(tags=(tag_stamp("user"), tag_stamp("late"))))
    assert asyncio.all_tasks() == tasks


async def test_everything_is_one_key() -> None:
    """Everything, and whatever widens to it, is one write of one plain key."""
    backend = Gated()
    clock = clock_over(backend)
    for order in (Order(everything=True), Order(tags=(tag_stamp("user"),), keys=(PAGE.key,))):
        await clock.invalidate(order)
    assert backend.asked == [("set", "cache:s:*")] * 2


async def test_everything_and_late_tags() -> None:
    """An entry with late tags that was begun before everything was invalidated is not valid after it."""
    clock = clock_over(Gated())
    mark = await begun(clock, PAGE)
    await clock.invalidate(Order(everything=True))
    assert await verdict(clock, PAGE, await kept(clock, PAGE, mark)) is INVALID


@pytest.mark.parametrize(
    "name",
    ["a b", "\xe4", "\U0001f600", "\x00", "\x7f", "\x85", "\ud800", "a" * 197, "a" * 10_000, "\xe4" * 150],
    ids=["blank", "umlaut", "emoji", "nul", "del", "control", "surrogate", "long", "very long", "many bytes"],
)
@pytest.mark.parametrize(
    "namespace", ["", "n" * 100, "\xe4" * 300], ids=["no namespace", "a long namespace", "a wild namespace"]
)
async def test_any_backend_takes_the_keys(name: str, namespace: str) -> None:
    """Whatever tags, URLs, keys and directories are, their stamps are kept under keys that memcached takes."""
    backend = Gated()
    clock = StoredResponses(backend, namespace).clock
    page = Page(f"/{name}/{name}/1", tags=(name,), late=(f"late {name}",), logical_key=name, namespace=namespace)
    mark = await filled(clock, page)
    assert await verdict(clock, page, mark) is VALID
    await clock.invalidate(Order(tags=(tag_stamp(name),), patterns=(f"/{name[:100]}/*",)))
    assert await verdict(clock, page, mark) is INVALID
    keys = {key for _, key in backend.asked} - {page.key}
    assert len(keys) > 5
    assert [key for key in keys if len(key) > 250 or not all(32 < ord(char) < 127 for char in key)] == []


async def test_names_that_are_digested_stay_apart() -> None:
    """Of two names that are kept under digests the one that is invalidated is not the other."""
    clock, pages = clock_over(FourMethods()), [Page("/1", tags=("a b",)), Page("/2", tags=("a c",))]
    marks = [await filled(clock, page) for page in pages]
    await clock.invalidate(Order(tags=(tag_stamp("a b"),)))
    assert [await verdict(clock, *each) for each in zip(pages, marks, strict=True)] == [INVALID, VALID]


@pytest.mark.parametrize("where", [f"set {TAG}", f"set {LATE_TAG}"], ids=["between the stamps", "at the last"])
async def test_late_tags_while_an_invalidation_is_under_way(where: str) -> None:
    """An entry with late tags is not sealed once the activity was told, however far the invalidation got."""
    backend = Gated()
    clock = clock_over(backend)
    await filled(clock, PAGE)
    mark = await begun(clock, Page(PAGE.path, tags=("user",)))
    gate = backend.hold(*where.split(" ", 1))
    order = Order(tags=(tag_stamp("user"), tag_stamp("late")))
    invalidating = asyncio.create_task(clock.invalidate(order))
    await backend.held.wait()
    assert await kept(clock, PAGE, mark) is None
    gate.set()
    await invalidating


async def test_an_invalidation_between_the_reads_of_a_seal() -> None:
    """An invalidation that comes while a late tag is being read is seen: the activity is read after it."""
    backend = Gated()
    clock = clock_over(backend)
    mark = await begun(clock, PAGE)
    gate = backend.hold("get", LATE_TAG)
    sealing = asyncio.create_task(kept(clock, PAGE, mark))
    await backend.held.wait()
    await clock.invalidate(BY_LATE_TAG)
    gate.set()
    assert await sealing is None


async def test_an_invalidation_after_the_seal() -> None:
    """An invalidation that comes once the late tags were read drops the entry that is still being stored."""
    backend = Gated()
    clock = clock_over(backend)
    mark = await begun(clock, PAGE)
    gate = backend.hold("set", PAGE.key)
    keeping = asyncio.create_task(kept(clock, PAGE, mark))
    await backend.held.wait()
    await clock.invalidate(BY_LATE_TAG)
    gate.set()
    assert await verdict(clock, PAGE, await keeping) is INVALID


async def test_what_is_evicted() -> None:
    """Whatever token is gone, what carries it is a miss, and an invalidation that follows has its effect."""
    backend = FourMethods()
    clock = clock_over(backend)
    mark = await filled(clock, PAGE)
    assert await verdict(clock, PAGE, mark) is VALID
    for key in sorted(backend.values.keys() - {PAGE.key, ACTIVITY}):
        mark = await filled(clock, PAGE)
        del backend.values[key]
        assert await verdict(clock, PAGE, mark) is INVALID
        await clock.invalidate(BY_TAG)
        await filled(clock, PAGE)
        assert await verdict(clock, PAGE, mark) is INVALID


async def test_an_evicted_activity() -> None:
    """If the activity is gone, what has late tags is not stored, for nobody knows what happened."""
    backend = FourMethods()
    clock = clock_over(backend)
    mark = await begun(clock, PAGE)
    del backend.values[ACTIVITY]
    assert await kept(clock, PAGE, mark) is None


async def test_tokens_outlive_what_they_judge() -> None:
    """A token lives for at least a week, and longer than an entry that is kept longer."""
    backend = FourMethods()
    clock = clock_over(backend)
    await filled(clock, PAGE, keep_for=TOKEN_TIMEOUT_S * 3.0)
    lives = {key: life for key, life in backend.timeouts.items() if key not in (PAGE.key, LATE_TAG)}
    assert all(life > TOKEN_TIMEOUT_S * 3 for life in lives.values())
    assert backend.timeouts[LATE_TAG] >= TOKEN_TIMEOUT_S


@pytest.mark.parametrize(
    ("pattern", "path", "widened_to"),
    [
        pytest.param("/a/b/*", "/a/b/c", "/a/b/*", id="a directory"),
        pytest.param("/a/b", "/a/b", "/a/*", id="no glob"),
        pytest.param("/a/*/c", "/a/b/c", "/a/*", id="a star within"),
        pytest.param("/a/b[cd]", "/a/bd", "/a/*", id="a class"),
        pytest.param(r"/a\*/b*", "/a*/b", "/a*/*", id="an escaped star"),
        pytest.param("/a*", "/a/b", "everything", id="no directory"),
        pytest.param("*", "/a/b", "everything", id="a star"),
        pytest.param("x/y*", "x/y/z", "everything", id="no path"),
        pytest.param("/1/2/3/4/5/6/7/8/9/*", "/1/2/3/4/5/6/7/8/9/10", "/1/2/3/4/5/6/7/*", id="deeper than stamps"),
        pytest.param("/a//b/*", "/a//b/c", "/a//b/*", id="empty directories"),
    ],
)
async def test_patterns_widen(pattern: str, path: str, widened_to: str) -> None:
    """A pattern widens to the longest directory that it begins with and that has a stamp."""
    clock, page = clock_over(FourMethods()), Page(path)
    mark = await filled(clock, page)
    result = await clock.invalidate(Order(patterns=(pattern,)))
    assert result.widened_to == widened_to
    assert await verdict(clock, page, mark) is INVALID


async def test_a_deep_path_has_few_stamps() -> None:
    """However deep a path is, what is asked for it is bounded."""
    backend = Gated()
    clock = clock_over(backend)
    page = Page("/" + "a/" * 1_000)
    await clock.look_up(page.key, page.asked)
    assert len(backend.asked) < MAX_DIRECTORIES + 4


@pytest.mark.filterwarnings("error")
async def test_a_token_that_nobody_waits_for(caplog: pytest.LogCaptureFixture) -> None:
    """A token that could not be made after all who wanted it had left is nobody's error."""
    backend = Gated()
    clock = clock_over(backend)
    gate = backend.hold("set", TAG)
    filling = asyncio.create_task(begun(clock, PAGE))
    await backend.held.wait()
    filling.cancel()
    await asyncio.wait({filling})
    backend.failing = True
    gate.set()
    for _ in range(5):
        await asyncio.sleep(0)
    assert not caplog.records
    backend.failing = False
    assert (await begun(clock, PAGE)).tokens[tag_stamp("user")] == backend.values[TAG]


async def test_closing_ends_what_goes_on() -> None:
    """A clock that was closed leaves no task, also where the backend does not answer."""
    backend, tasks = Gated(), asyncio.all_tasks()
    clock = clock_over(backend)
    backend.hold("set", TAG)
    filling = asyncio.create_task(begun(clock, PAGE))
    await backend.held.wait()
    filling.cancel()
    await asyncio.wait({filling})
    await clock.close()
    assert asyncio.all_tasks() == tasks


def test_another_loop() -> None:
    """A token that was being made in a loop which ended is made anew in another."""
    backend = Gated()
    clock = clock_over(backend)

    async def leave_early() -> None:
        backend.hold("set", TAG)
        filling = asyncio.create_task(begun(clock, PAGE))
        await backend.held.wait()
        filling.cancel()

    asyncio.run(leave_early())
    backend.gates.clear()
    assert asyncio.run(begun(clock, PAGE)).tokens[tag_stamp("user")] == backend.values[TAG]

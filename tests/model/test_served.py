"""What is served over time, against what was made: nothing invalidated, nothing too old, and nothing made in vain.

Whole requests go through a cache in random order, while things change, time passes, handlers fail and the backend
forgets. An answer is the number of its run, so that each shows when it was made, and of what.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from app_cache.backends.memory import MemoryBackend
from app_cache.invalidation import InvalidationService
from app_cache.middleware import CacheMiddleware
from app_cache.policy import CachePolicy
from app_cache.testing import FakeClock
from tests.middleware.apps import messages_of, scope_of
from tests.model.scale import trying
from tests.model.test_stateful import Forgetful

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from app_cache.backends.base import CacheBackend
    from app_cache.rules.cache_status import CacheStatus
    from app_cache.store import StoredResponses

FRESH_S, REVALIDATE_S, RESCUE_S = 60.0, 30.0, 200.0
POLICIES = {
    "/plain": CachePolicy(timeout=FRESH_S, tags=("all", "plain")),
    "/windows": CachePolicy(
        timeout=FRESH_S, tags=("all",), stale_while_revalidate=REVALIDATE_S, stale_if_error=RESCUE_S
    ),
    "/varied": CachePolicy(timeout=FRESH_S, tags=("all",)),
}
PATHS = st.sampled_from([*POLICIES])
MOODS = st.sampled_from(["a", "b"])
DIRECTIVES = st.sampled_from(["", "", "", "no-cache", "max-age=20", "min-fresh=50", "only-if-cached", "no-store"])
HARD, SOFT = 0, 1


@dataclass(frozen=True)
class Made:
    """One run of a handler: its answer is its number."""

    path: str
    mood: str
    at: float
    invalidated: tuple[int, int]
    """How often its page had been invalidated by then, for good and softly."""


class Served(RuleBasedStateMachine):
    """Drives one cache, and knows each answer by its number."""

    kind: str
    seen: Counter[str]
    """What the cache said of its answers."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.clock = FakeClock()
        self.backend: CacheBackend = (
            MemoryBackend(clock=self.clock) if self.kind == "memory" else Forgetful(self.clock)
        )
        self.made: list[Made] = []
        self.fails = False
        self.invalidated: Counter[tuple[str, int]] = Counter()
        self.sure: dict[tuple[str, str], int] = {}
        """The number of the answer that must be served while it is fresh."""
        self.restart()

    def teardown(self) -> None:
        self.run(self.store.close())
        self.run(self.backend.close())
        self.runner.close()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Return what *work* gives, when what it began has been done too."""

        async def whole() -> Any:
            result = await work
            while others := asyncio.all_tasks() - {asyncio.current_task()}:
                await asyncio.wait(others)
            return result

        return self.runner.run(whole())

    @property
    def store(self) -> StoredResponses:
        """What the cache has stored."""
        assert self.cache._plain is not None
        return self.cache._plain.store()

    async def application(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer with the number of this run, or fail."""
        path, mood = scope["path"], _mood(scope)
        self.made.append(Made(path, mood, self.clock(), self._invalidated(path)))
        headers = [(b"content-type", b"text/plain")]
        headers += [(b"vary", b"x-mood")] if path == "/varied" else []
        await send({"type": "http.response.start", "status": 503 if self.fails else 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"%d" % (len(self.made) - 1)})

    def _invalidated(self, path: str) -> tuple[int, int]:
        return self.invalidated[path, HARD], self.invalidated[path, SOFT]

    @rule()
    def restart(self) -> None:
        """Begin a process over the backend that there is."""
        self.cache = CacheMiddleware(self.application, self.backend, policies=POLICIES, clock=self.clock)

    @initialize()
    def fill(self) -> None:
        """Begin with all pages."""
        self.ask_for_all("")

    @rule(directive=st.sampled_from(["", "only-if-cached"]))
    def ask_for_all(self, directive: str) -> None:
        """Ask for all pages; *directive*: without a run of their handlers, if need be."""
        for path in POLICIES:
            self._ask(path, "a", directive, "GET")
        self._ask("/varied", "b", directive, "GET")

    @rule(path=PATHS, mood=MOODS, directive=DIRECTIVES, method=st.sampled_from(["GET", "GET", "HEAD"]))
    def ask(self, path: str, mood: str, directive: str, method: str) -> None:
        """Ask for one."""
        self._ask(path, mood, directive, method)

    def _ask(self, path: str, mood: str, directive: str, method: str) -> None:
        """Ask, and hold the answer against what was made."""
        mine = (path, mood if path == "/varied" else "")
        expected, before = self._expected(mine, directive), len(self.made)
        asked = [(b"cache-control", directive.encode())] if directive else []
        scope = scope_of(path, method=method, headers=[(b"host", b"test"), (b"x-mood", mood.encode()), *asked])
        start, *parts = self.run(messages_of(self.cache, scope))
        told: CacheStatus = scope["state"]["cache"]
        self.seen[told.outcome] += 1
        body = b"".join(part.get("body", b"") for part in parts).decode()
        if expected is not None:
            assert told.hit, "a needless run"
            assert method == "HEAD" or body == str(expected), "another one"
        if start["status"] == 200 and body:
            self._check(int(body), mine, told, before)
            if not told.hit and told.stored:
                self.sure[mine] = int(body)
        elif not body or start["status"] == 503:
            assert told.fwd is not None or method == "HEAD"
        if before < len(self.made) and not told.stored:
            self.sure.pop(mine, None)
        assert len(self.made) - before <= 1, "two runs for one request"

    def _expected(self, mine: tuple[str, str], directive: str) -> int | None:
        """Return the number of the answer that must be served without a run, or None."""
        number = self.sure.get(mine)
        if number is None or directive in ("no-cache", "no-store"):
            return None
        made, age = self.made[number], self.clock() - self.made[number].at
        most = {"max-age=20": 20.0, "min-fresh=50": FRESH_S - 50}.get(directive, FRESH_S - 0.5)
        fresh = age < FRESH_S and age <= most and made.invalidated == self._invalidated(mine[0])
        return number if fresh else None

    def _check(self, number: int, mine: tuple[str, str], told: CacheStatus, before: int) -> None:
        """Assert that an answer may be given now."""
        made, now = self.made[number], self.clock()
        assert (made.path, made.mood if made.path == "/varied" else "") == mine, "that of another request"
        if number >= before:
            return
        hard, soft = self._invalidated(made.path)
        assert made.invalidated[HARD] == hard, "invalidated"
        age = now - made.at
        rescued = told.fwd is not None
        window = (RESCUE_S if rescued else REVALIDATE_S) if made.path == "/windows" else 0.0
        assert age < FRESH_S + window + 1, "beyond its windows"
        is_stale = age >= FRESH_S or made.invalidated[SOFT] != soft
        assert not is_stale or window, "stale"
        assert told.ttl is not None
        assert (told.ttl <= 0) == is_stale or age > FRESH_S - 1, "its state is not told"
        assert not rescued or self.fails, "rescued from nothing"

    @rule(how=st.sampled_from(["all", "plain", "pattern", "url", "everything"]), soft=st.booleans())
    def invalidate(self, how: str, soft: bool) -> None:
        """Invalidate in one of the ways."""
        service = InvalidationService(self.store)
        match how:
            case "all" | "plain":
                self.run(service.by_tag(how, soft=soft))
            case "pattern":
                self.run(service.by_pattern("/w*", soft=soft))
            case "url":
                self.run(service.by_url("http://test/varied", soft=soft))
            case _:
                self.run(service.everything(soft=soft))
        named = {"plain": ["/plain"], "pattern": ["/windows"], "url": ["/varied"]}.get(how, [*POLICIES])
        for path in named:
            self.invalidated[path, SOFT if soft else HARD] += 1
        if self.kind != "memory":  # which may carry out more than it is asked
            self.sure.clear()
        self.ask_for_all("only-if-cached")

    @rule(path=PATHS)
    def post(self, path: str) -> None:
        """Change a page by an unsafe request (RFC 9111 §4.4)."""
        self.run(messages_of(self.cache, scope_of(path, method="POST")))
        if not self.fails:
            self.invalidated[path, HARD] += 1
        self.ask_for_all("only-if-cached")

    @rule(seconds=st.sampled_from([0.25, 1.0, 15.0, 45.0, 61.0, 100.0, 280.0]))
    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.advance(seconds)
        self.ask_for_all("only-if-cached")

    @rule()
    def fail_or_not(self) -> None:
        """Have handlers fail from now on, or not."""
        self.fails = not self.fails

    @rule(number=st.integers(0, 20))
    def evict(self, number: int) -> None:
        """Have the backend let go of any key."""
        held = self.backend._entries if isinstance(self.backend, MemoryBackend) else self.backend.values  # type: ignore[attr-defined]
        keys = sorted(held)
        if keys:
            self.run(self.backend.delete(keys[number % len(keys)]))
            self.sure.clear()


def _mood(scope: Any) -> str:
    fields: dict[bytes, bytes] = dict(scope["headers"])
    return fields.get(b"x-mood", b"").decode()


@pytest.mark.parametrize(("kind", "examples"), [("memory", 50), ("four methods", 30)])
def test_served(kind: str, examples: int) -> None:
    """Nothing is served that was invalidated or is beyond its windows, and no handler runs without need."""
    seen: Counter[str] = Counter()
    machine = type("ServedFrom", (Served,), {"kind": kind, "seen": seen})
    run_state_machine_as_test(machine, settings=trying(examples, steps=30))
    assert min(seen["hit"], seen["uri-miss"], seen["hit-stale"] + seen["stale"]) > 0, seen

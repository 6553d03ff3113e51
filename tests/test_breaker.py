"""The breaker: what it lets through, what counts against a backend, and what is said of it."""

from __future__ import annotations

import logging
import threading
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from app_cache.breaker import (
    ENDINGS,
    OPENS_AFTER,
    PROBE_EVERY_S,
    PROBE_LOST_S,
    STEADY_S,
    Breaker,
    Ending,
    State,
    Troubles,
    fault_of,
)
from app_cache.errors import BackendError, Fault
from app_cache.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable

AWAY, THERE, LOCKED, NOTHING = Ending.AWAY, Ending.THERE, Ending.LOCKED, Ending.NOTHING


def one_by_one(breaker: Breaker, *endings: Ending) -> None:
    """Begin and end an operation for each of *endings*, one after the other."""
    for ending in endings:
        permit = breaker.admit(may_probe=True)
        assert permit is not None
        breaker.ended(permit, ending)


def opened(clock: FakeClock) -> Breaker:
    """Return a breaker that has just opened."""
    breaker = Breaker(clock)
    one_by_one(breaker, *[AWAY] * OPENS_AFTER)
    assert breaker.state is State.OPEN
    return breaker


@pytest.mark.parametrize(
    ("endings", "state"),
    [
        pytest.param([AWAY] * 4, State.CLOSED, id="four failures"),
        pytest.param([AWAY] * 5, State.OPEN, id="five failures"),
        pytest.param([*[AWAY] * 4, THERE, *[AWAY] * 4], State.CLOSED, id="an answer between them"),
        pytest.param([*[AWAY] * 4, NOTHING, AWAY], State.OPEN, id="what says nothing between them"),
        pytest.param([NOTHING] * 50, State.CLOSED, id="what says nothing"),
        pytest.param([LOCKED], State.OPEN, id="nobody is let in"),
    ],
)
def test_opens(endings: list[Ending], state: State) -> None:
    """It opens after five failures one after the other, or at once when nobody is let in."""
    breaker = Breaker(FakeClock())
    one_by_one(breaker, *endings)
    assert breaker.state is state


def test_failures_of_one_instant() -> None:
    """Operations that are under way together and fail together are one failure."""
    breaker = Breaker(FakeClock())
    for _ in range(OPENS_AFTER):
        assert breaker.state is State.CLOSED
        for permit in [breaker.admit(may_probe=True) for _ in range(50)]:
            assert permit is not None
            breaker.ended(permit, AWAY)
    assert breaker.state is State.OPEN


def test_an_answer_is_an_answer() -> None:
    """An operation that began before others failed, and succeeds after them, shows that the backend is there."""
    breaker = Breaker(FakeClock())
    slow = breaker.admit(may_probe=True)
    one_by_one(breaker, *[AWAY] * (OPENS_AFTER - 1))
    assert slow is not None
    breaker.ended(slow, THERE)
    one_by_one(breaker, *[AWAY] * (OPENS_AFTER - 1))
    assert breaker.state is State.CLOSED


def test_lets_nothing_through() -> None:
    """While it is open nothing begins, until a second is over."""
    clock = FakeClock()
    breaker = opened(clock)
    clock.advance(PROBE_EVERY_S - 0.01)
    assert [breaker.admit(may_probe=True) for _ in range(100)] == [None] * 100


def test_one_probe_each_second() -> None:
    """Each second one operation may begin, and none beside it, however long it takes and however it ends."""
    clock = FakeClock()
    breaker = opened(clock)
    begun: list[float] = []
    probe: int | None = None
    for tick in range(1_000):
        clock.advance(0.01)
        permit = breaker.admit(may_probe=True)
        if permit is not None:
            assert probe is None
            begun.append(clock())
            probe = permit
        elif probe is not None and tick % 25 == 0:
            breaker.ended(probe, [AWAY, NOTHING, LOCKED][len(begun) % 3])
            probe = None
    gaps = [later - earlier for earlier, later in pairwise(begun)]
    assert len(begun) >= 9
    assert min(gaps) >= PROBE_EVERY_S - 1e-6


@pytest.mark.parametrize(
    ("ending", "state"),
    [
        pytest.param(THERE, State.CLOSED, id="an answer"),
        pytest.param(AWAY, State.OPEN, id="a failure"),
        pytest.param(LOCKED, State.OPEN, id="nobody is let in"),
        pytest.param(NOTHING, State.OPEN, id="its request left"),
    ],
)
def test_probe(ending: Ending, state: State) -> None:
    """An answer to the probe closes it, anything else leaves it open."""
    clock = FakeClock()
    breaker = opened(clock)
    clock.advance(PROBE_EVERY_S)
    one_by_one(breaker, ending)
    assert breaker.state is state


def test_only_what_may_probe_is_a_probe() -> None:
    """An operation that may not probe is not let through while it is open, and takes nobody's turn."""
    clock = FakeClock()
    breaker = opened(clock)
    clock.advance(PROBE_EVERY_S)
    assert breaker.admit(may_probe=False) is None
    assert breaker.admit(may_probe=True) is not None


@pytest.mark.parametrize("ending", [AWAY, THERE, NOTHING])
def test_what_began_before(ending: Ending) -> None:
    """How an operation ends that began before it opened says nothing: neither while it is open nor later."""
    clock = FakeClock()
    breaker = Breaker(clock)
    old = [breaker.admit(may_probe=True) for _ in range(20)]
    one_by_one(breaker, *[AWAY] * OPENS_AFTER)
    clock.advance(PROBE_EVERY_S)
    probe = breaker.admit(may_probe=True)
    for permit in old[:10]:
        assert permit is not None
        assert not breaker.ended(permit, ending)
    states = [breaker.state]
    assert probe is not None
    breaker.ended(probe, THERE)
    for permit in old[10:]:
        assert permit is not None
        breaker.ended(permit, ending)
    assert [*states, breaker.state] == [State.HALF_OPEN, State.CLOSED]


def test_a_probe_that_is_lost() -> None:
    """A probe whose end nobody tells is not waited for for ever (F33)."""
    clock = FakeClock()
    breaker = opened(clock)
    clock.advance(PROBE_EVERY_S)
    assert breaker.admit(may_probe=True) is not None
    clock.advance(PROBE_LOST_S)
    assert breaker.admit(may_probe=True) is None
    clock.advance(PROBE_EVERY_S)
    one_by_one(breaker, THERE)
    assert breaker.state is State.CLOSED


def test_one_probe_for_all_threads() -> None:
    """Of many threads that ask at once when a probe is due, one gets the turn."""
    clock = FakeClock()
    breaker = opened(clock)
    clock.advance(PROBE_EVERY_S)
    barrier, permits = threading.Barrier(16), list[int | None]()

    def ask() -> None:
        barrier.wait(10)
        permits.append(breaker.admit(may_probe=True))

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert (len(permits), len([permit for permit in permits if permit is not None])) == (16, 1)


class AgainstModel(RuleBasedStateMachine):
    """The breaker against a model that keeps, for each operation, whether its failure would be news."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.breaker = Breaker(self.clock)
        self.under_way: list[int] = []
        self.news: list[bool] = []
        self.failures = 0
        self.open_since: float | None = None
        self.last_probe = float("-inf")
        self.probe: int | None = None

    def nothing_is_news(self) -> None:
        self.news = [False] * len(self.news)

    @rule(may_probe=st.booleans())
    def begin(self, may_probe: bool) -> None:
        permit = self.breaker.admit(may_probe=may_probe)
        if self.open_since is None:
            assert permit is not None
            self.under_way.append(permit)
            self.news.append(True)
            return
        since = self.clock() - max(self.open_since, self.last_probe)
        due = may_probe and since >= PROBE_EVERY_S + (0 if self.probe is None else PROBE_LOST_S)
        assert (permit is not None) == due
        if permit is not None:
            self.probe, self.last_probe = permit, self.clock()

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), ending=st.sampled_from(Ending))
    def end(self, data: st.DataObject, ending: Ending) -> None:
        at = data.draw(st.integers(0, len(self.under_way) - 1))
        permit, was_news = self.under_way.pop(at), self.news.pop(at)
        opens = False
        if self.open_since is None:
            if ending is THERE:
                self.failures = 0
            if ending is AWAY and was_news:
                self.failures += 1
                self.nothing_is_news()
            opens = ending is LOCKED or self.failures == OPENS_AFTER
        if opens:
            self.open_since = self.clock()
            self.nothing_is_news()
        assert self.breaker.ended(permit, ending) is opens

    @precondition(lambda self: self.probe is not None)
    @rule(ending=st.sampled_from(Ending))
    def end_probe(self, ending: Ending) -> None:
        assert self.probe is not None
        assert not self.breaker.ended(self.probe, ending)
        self.probe = None
        if ending is THERE:
            self.open_since, self.failures = None, 0

    @rule(seconds=st.sampled_from([0.0, 0.25, 0.5, 1.0, 5.0, 11.0]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def state(self) -> None:
        expected = State.CLOSED if self.open_since is None else State.OPEN
        assert self.breaker.state is (expected if self.probe is None else State.HALF_OPEN)


TestAgainstModel = AgainstModel.TestCase
TestAgainstModel.settings = settings(max_examples=100, stateful_step_count=60)


# What an error says


@pytest.mark.parametrize(
    ("error", "fault", "ending"),
    [
        pytest.param(BackendError("gone"), Fault.AWAY, AWAY, id="a backend that says no more"),
        pytest.param(BackendError("full", fault=Fault.FULL), Fault.FULL, THERE, id="full"),
        pytest.param(BackendError("ro", fault=Fault.READ_ONLY), Fault.READ_ONLY, THERE, id="read-only"),
        pytest.param(BackendError("no", fault=Fault.REFUSED), Fault.REFUSED, THERE, id="refused"),
        pytest.param(BackendError("who", fault=Fault.DENIED), Fault.DENIED, LOCKED, id="denied"),
        pytest.param(BackendError("wait", fault=Fault.BUSY), Fault.BUSY, NOTHING, id="busy"),
        pytest.param(BackendError("late", fault=Fault.STALLED), Fault.STALLED, NOTHING, id="timer late"),
        pytest.param(ConnectionResetError(), Fault.AWAY, AWAY, id="the network"),
        pytest.param(TimeoutError(), Fault.AWAY, AWAY, id="no answer in time"),
        pytest.param(KeyError("x"), Fault.UNKNOWN, AWAY, id="anything else"),
    ],
)
def test_fault(error: Exception, fault: Fault, ending: Ending) -> None:
    """An answer of any kind shows that a backend is there; what raises anything else counts as away."""
    assert (fault_of(error), ENDINGS[fault]) == (fault, ending)


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        pytest.param(TimeoutError(), Fault.STALLED, id="no answer in time"),
        pytest.param(BackendError("full", fault=Fault.FULL), Fault.FULL, id="an answer"),
    ],
)
def test_late(error: Exception, fault: Fault) -> None:
    """That time ran out proves nothing when the timer itself was late (F24)."""
    assert fault_of(error, late=True) is fault


def test_every_fault_has_an_outcome() -> None:
    """Whatever a backend may say, the breaker knows what to make of it."""
    assert ENDINGS.keys() == {*Fault}


# What is said


@pytest.fixture
def clock() -> FakeClock:
    """The clock of the troubles."""
    return FakeClock()


@pytest.fixture
def troubles(clock: FakeClock) -> Troubles:
    """What may be wrong with a backend."""
    return Troubles("RedisBackend", clock)


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Return what was said since the last call, as lines with their levels."""
    caplog.set_level(logging.INFO, "app_cache")

    def said() -> list[str]:
        found = [f"{record.levelname} {record.getMessage()}" for record in caplog.records]
        caplog.clear()
        return found

    return said


def test_said_once(troubles: Troubles, clock: FakeClock, lines: Callable[[], list[str]]) -> None:
    """A fault is said when it begins, with what failed, and not again as long as it lasts."""
    for _ in range(100):
        troubles.failed("look_up", Fault.AWAY, BackendError("nobody listens"))
        clock.advance(5)
    said = "WARNING cache.backend_failed backend=RedisBackend reason=away operation=look_up failed=1"
    assert lines() == [f"{said} error='nobody listens'"]


def test_recovered(troubles: Troubles, clock: FakeClock, lines: Callable[[], list[str]]) -> None:
    """That it is over is said once all went well for some seconds, with what it cost."""
    troubles.skipped()
    for _ in range(7):
        troubles.failed("look_up", Fault.AWAY, BackendError("away"))
    for _ in range(3):
        troubles.skipped()
    lines()
    for _ in range(11):
        assert lines() == []
        troubles.succeeded("store")
        clock.advance(STEADY_S / 10)
    assert lines() == ["INFO cache.backend_recovered backend=RedisBackend reason=away failed=7 skipped=3"]
    troubles.succeeded("store")
    clock.advance(STEADY_S)
    troubles.succeeded("store")
    assert lines() == []


def test_no_flapping(troubles: Troubles, clock: FakeClock, lines: Callable[[], list[str]]) -> None:
    """A backend that fails and works by turns is said to fail, once."""
    for _ in range(100):
        troubles.failed("look_up", Fault.AWAY, BackendError("away"))
        clock.advance(1)
        troubles.succeeded("look_up")
        clock.advance(STEADY_S - 2)
        troubles.succeeded("look_up")
        clock.advance(1)
    assert len(lines()) == 1


def test_each_fault_by_itself(troubles: Troubles, clock: FakeClock, lines: Callable[[], list[str]]) -> None:
    """Reads that go well do not say that a full server takes writes again; a write does."""
    for operation in ("look_up", "store"):
        troubles.failed(operation, Fault.FULL, BackendError("full", fault=Fault.FULL))
    troubles.failed("look_up", Fault.AWAY, BackendError("away"))
    assert [line.split()[3] for line in lines()] == ["reason=full", "reason=away"]
    for _ in range(2):
        troubles.succeeded("look_up")
        clock.advance(STEADY_S)
    assert [line.split()[1:4:2] for line in lines()] == [["cache.backend_recovered", "reason=away"]]
    for _ in range(2):
        troubles.succeeded("store")
        clock.advance(STEADY_S)
    assert [line.split()[1:4:2] for line in lines()] == [["cache.backend_recovered", "reason=full"]]


def test_opening_is_said(troubles: Troubles, clock: FakeClock, lines: Callable[[], list[str]]) -> None:
    """A trouble that opens the breaker long after it began is said again, once; one that has just begun is not."""
    troubles.failed("look_up", Fault.AWAY, BackendError("away"))
    troubles.failed("store", Fault.FULL, BackendError("full"))
    troubles.failed("look_up", Fault.AWAY, BackendError("away"), opened=True)
    assert len(lines()) == 2
    clock.advance(STEADY_S)
    for _ in range(3):
        troubles.failed("look_up", Fault.AWAY, BackendError("away"), opened=True)
        troubles.failed("store", Fault.FULL, BackendError("full"), opened=True)
    assert [line.split()[3:6:2] for line in lines()] == [["reason=full", "failed=2"]]


def test_denied_is_an_error(troubles: Troubles, lines: Callable[[], list[str]]) -> None:
    """That nobody is let in is said as an error, for somebody must act."""
    troubles.failed("look_up", Fault.DENIED, BackendError("who are you", fault=Fault.DENIED))
    assert [line.split()[0] for line in lines()] == ["ERROR"]


def test_strangers_errors_are_not_quoted(troubles: Troubles, lines: Callable[[], list[str]]) -> None:
    """Of an error that is not ours only the name is said: it may quote anything."""
    troubles.failed("look_up", Fault.UNKNOWN, KeyError("s3cret"))
    assert ["error=KeyError" in line and "s3cret" not in line for line in lines()] == [True]


def test_a_stall_is_not_said(troubles: Troubles, lines: Callable[[], list[str]]) -> None:
    """That this process stood still is nothing to say of the backend."""
    troubles.failed("look_up", Fault.STALLED, TimeoutError())
    assert lines() == []

"""The test kit keeps its own promises: assertions that explain, backends that break on demand, fixtures."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import httpx
import pytest

import app_cache.testing
from app_cache import BackendError, CompressedBackend, MemoryBackend
from app_cache.backends.base import (
    BytesBackend,
    LocalBackend,
    PatternBackend,
    PingBackend,
    SizedBackend,
    capability,
)
from app_cache.testing import FakeClock, FlakyBackend, assert_hit, assert_miss
from app_cache.testing.plugin import cache_clock, cache_container
from containers import install
from tests.clients import all_blocked, counting_app, get, told_of
from tests.stored import FourMethods

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from containers import CacheContainer

__all__ = ["cache_clock", "cache_container"]


def said(status: str | None) -> httpx.Response:
    """Return a response with that Cache-Status."""
    return httpx.Response(200, headers={} if status is None else {"Cache-Status": status})


@pytest.mark.parametrize(
    ("check", "status"),
    [
        pytest.param(assert_hit, "app-cache; hit; ttl=9", id="fresh"),
        pytest.param(assert_hit, "app-cache; hit; ttl=-9", id="stale"),
        pytest.param(assert_hit, "app-cache; hit; ttl=9, edge; fwd=uri-miss", id="first of two"),
        pytest.param(assert_hit, "edge; fwd=stale, app-cache; hit; ttl=9", id="second of two"),
        pytest.param(assert_hit, "app-cache; fwd=stale; fwd-status=503; ttl=-3", id="in place of a failure"),
        pytest.param(assert_miss, "app-cache; fwd=stale; fwd-status=200; stored", id="unchanged for the client"),
        pytest.param(assert_miss, "app-cache; fwd=uri-miss; stored", id="stored"),
        pytest.param(assert_miss, "app-cache; fwd=uri-miss; detail=status", id="not stored"),
        pytest.param(assert_miss, "app-cache; fwd=uri-miss; collapsed", id="collapsed"),
        pytest.param(assert_miss, "app-cache; fwd=vary-miss; stored", id="another variant"),
        pytest.param(assert_miss, "app-cache; fwd=stale; stored", id="stale and fetched"),
        pytest.param(assert_miss, "app-cache; fwd=uri-miss; stored, edge; hit", id="hit of another cache"),
    ],
)
def test_expected(check: Callable[[httpx.Response], None], status: str) -> None:
    """What is as the test expects raises nothing; other caches' members do not count."""
    check(said(status))


@pytest.mark.parametrize(
    ("check", "status", "message"),
    [
        pytest.param(assert_hit, "app-cache; fwd=uri-miss; stored", "says: app-cache; fwd=uri", id="miss"),
        pytest.param(assert_miss, "app-cache; hit; ttl=9", "says: app-cache; hit", id="hit"),
        pytest.param(assert_hit, "app-cache; fwd=bypass; detail=cookie", "detail=cookie", id="passed by, no hit"),
        pytest.param(assert_miss, "app-cache; fwd=bypass; detail=cookie", "detail=cookie", id="and no miss"),
        pytest.param(assert_miss, "app-cache; fwd=request", "fwd=request", id="the client's wish is no miss"),
        pytest.param(
            assert_miss, "app-cache; fwd=stale; fwd-status=503; ttl=-3", "fwd-status=503", id="rescued is no miss"
        ),
        pytest.param(assert_hit, "edge; hit", "says: edge; hit", id="hit of another cache"),
        pytest.param(assert_hit, None, "no Cache-Status", id="nothing said, no hit"),
        pytest.param(assert_miss, None, "no @cache", id="nothing said, no miss"),
    ],
)
def test_unexpected(check: Callable[[httpx.Response], None], status: str | None, message: str) -> None:
    """What is not as the test expects fails with what the cache said, or why it may have said nothing."""
    with pytest.raises(AssertionError, match=message):
        check(said(status))


@pytest.mark.anyio
async def test_fixtures_on_an_application(cache_container: CacheContainer, cache_clock: FakeClock) -> None:
    """The container of the fixture serves an application, in the time that the test moves."""
    app = counting_app()
    install(app, cache_container)
    await cache_container.backend().set("key", "value", 59)
    assert_miss(await get(app, "/count"))
    cache_clock.advance(59)
    assert_hit(await get(app, "/count"))
    assert (await get(app, "/count")).headers["age"] == "59"
    assert await cache_container.backend().get("key") is None
    cache_clock.advance(1)
    assert_miss(await get(app, "/count"))


def test_environment_of_the_fixture(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """The container of the fixture is for testing, whatever the variables of the process say."""
    monkeypatch.setenv("ENVIRONMENT", "production")
    monkeypatch.setenv("REDIS_URL", "redis://no.such.host")
    container = request.getfixturevalue("cache_container")
    assert container.environment().name == "testing"
    assert isinstance(container.backend(), MemoryBackend)


async def outcomes(backend: FlakyBackend, times: int) -> list[bool]:
    """Return which of so many reads succeed."""
    done = []
    for _ in range(times):
        try:
            await backend.get("key")
        except BackendError:
            done.append(False)
        else:
            done.append(True)
    return done


@pytest.mark.anyio
async def test_error_rate() -> None:
    """The rate is the part that fails, the same ones with the same seed, and each is counted."""
    first, second = (FlakyBackend(MemoryBackend(), error_rate=0.25, random=random.Random(11)) for _ in range(2))
    which = await outcomes(first, 400)
    assert which == await outcomes(second, 400)
    assert which.count(False) == first.errors["get"] == pytest.approx(100, abs=25)
    assert first.calls == {"get": 400}


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("rates", "failing"),
    [
        pytest.param({"get": 1}, {"get", "get_bytes"}, id="text, and the bytes that stand for it"),
        pytest.param({"get": 1, "get_bytes": 0}, {"get"}, id="text alone"),
        pytest.param({"set_bytes": 1}, {"set_bytes"}, id="bytes alone"),
        pytest.param({"delete": 1, "ping": 1}, {"delete", "ping"}, id="two"),
        pytest.param(1, {"get", "get_bytes", "set_bytes", "delete", "ping"}, id="all"),
        pytest.param(0, set(), id="none"),
    ],
)
async def test_rate_by_verb(rates: Any, failing: set[str]) -> None:
    """A rate for some verbs lets the others work."""
    backend: Any = FlakyBackend(MemoryBackend(), error_rate=rates)
    operations: dict[str, Callable[[], Awaitable[object]]] = {
        "get": lambda: backend.get("key"),
        "get_bytes": lambda: backend.get_bytes("key"),
        "set_bytes": lambda: backend.set_bytes("key", b"", 1),
        "delete": lambda: backend.delete("key"),
        "ping": lambda: backend.ping(),
    }
    failed = set()
    for verb, operate in operations.items():
        try:
            await operate()
        except BackendError:
            failed.add(verb)
    assert failed == failing == {*backend.errors}


@pytest.mark.anyio
async def test_break_and_heal() -> None:
    """A broken backend fails every operation, also one whose delay is not over, until it is healed."""
    gate = asyncio.Event()

    async def until_open(seconds: float) -> None:
        await gate.wait()

    backend = FlakyBackend(MemoryBackend(), delay={"get": 1}, sleep=until_open)
    await backend.set("key", "value", 60)
    read = asyncio.create_task(backend.get("key"))
    await all_blocked()
    assert not read.done()
    backend.broken = True
    gate.set()
    for failing in (read, backend.get("key"), backend.delete("key"), backend.set("key", "new", 60)):
        with pytest.raises(BackendError, match="as the test wants it"):
            await failing
    backend.broken = False
    assert await backend.get("key") == "value"


@pytest.mark.anyio
async def test_delay() -> None:
    """A delay is that of the verb, and passes as the test lets it pass."""
    clock = FakeClock(0)

    async def pass_at_once(seconds: float) -> None:
        clock.advance(seconds)

    backend = FlakyBackend(MemoryBackend(), delay={"set": 2, "get_bytes": 3}, sleep=pass_at_once)
    await backend.set("key", "value", 60)
    assert clock() == 2
    await backend.get("key")
    assert clock() == 2
    await backend.get_bytes("key")
    assert clock() == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"error_rate": 1.5}, "error_rate must be a number from 0 to 1, not 1.5", id="rate"),
        pytest.param({"error_rate": {"get": -1}}, "not -1", id="rate of a verb"),
        pytest.param({"delay": -1}, "delay must be a number from 0", id="delay"),
        pytest.param({"delay": {"get": "1"}}, "delay must be a number from 0 to inf, not '1'", id="no number"),
        pytest.param({"delay": {"gett": 1}}, "'gett'; the verbs are delete, ", id="verb"),
    ],
)
def test_wrong_values(options: Any, message: str) -> None:
    """What cannot be is refused, with what would be right."""
    with pytest.raises(ValueError, match=message):
        FlakyBackend(MemoryBackend(), **options)


def test_capabilities() -> None:
    """It can what the backend within can, but for living in this process, and nothing more."""
    over_memory, over_four = FlakyBackend(MemoryBackend()), FlakyBackend(FourMethods())
    for kind in (BytesBackend, PatternBackend, PingBackend, SizedBackend):
        assert capability(over_memory, kind) is over_memory
        assert capability(over_four, kind) is None
    assert capability(over_memory, LocalBackend) is None
    within = CompressedBackend(over_memory)
    assert capability(within, LocalBackend) is None
    assert not hasattr(over_four, "get_bytes")


@pytest.mark.anyio
async def test_application_over_a_broken_backend(cache_container: CacheContainer) -> None:
    """An application answers over a backend that is broken, and caches again when it is healed."""
    app, backend = counting_app(), FlakyBackend(MemoryBackend())
    install(app, cache_container)
    with cache_container.backend.override(backend):
        backend.broken = True
        assert await told_of(app, "/count", "/count") == ["fwd=uri-miss"] * 2
        assert backend.errors.total() > 0
        backend.broken = False
        assert await told_of(app, "/count", "/count") == ["fwd=uri-miss; stored", "hit"]


def test_pytest_is_needed_for_contracts_and_fixtures_alone() -> None:
    """The clock, the assertions and the backend that breaks are there without pytest."""
    code = (
        "import sys; sys.modules['pytest'] = None\n"
        "from app_cache.testing import FakeClock, FlakyBackend, assert_hit, assert_miss\n"
        "try:\n"
        "    from app_cache.testing import BackendContract\n"
        "except ImportError as error:\n"
        "    print(error.name)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout == "pytest\n"


BREAKS_THE_CONTRACT = """
from app_cache import MemoryBackend
from app_cache.testing import BackendContract


class Never(MemoryBackend):
    async def get(self, key):
        return "never"


class TestNever(BackendContract):
    def make_backend(self):
        return Never()
"""


def test_contracts_explain_their_failures(tmp_path: Path) -> None:
    """A contract that a backend breaks says what it gave, with nothing to call before."""
    (tmp_path / "test_never.py").write_text(BREAKS_THE_CONTRACT)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "test_absent", str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (ran.returncode, "assert 'never' is None" in ran.stdout) == (1, True)


MIXES_KEYS = """
from app_cache import MemoryBackend
from app_cache.testing import BackendContract


class Mixing(MemoryBackend):
    async def get(self, key):
        return await super().get({mixed})

    async def set(self, key, value, timeout=None):
        await super().set({mixed}, value, timeout)


class TestMixing(BackendContract):
    def make_backend(self):
        return Mixing()
"""


@pytest.mark.parametrize("mixed", ["key.lower()", "key[:100]", "key.strip()"])
def test_contract_of_keys(tmp_path: Path, mixed: str) -> None:
    """A backend that takes one key for another breaks the contract."""
    (tmp_path / "test_mixing.py").write_text(MIXES_KEYS.format(mixed=mixed))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "test_keys", str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (ran.returncode, "assert 'other' == 'value'" in ran.stdout) == (1, True)


@pytest.mark.parametrize("name", app_cache.testing.__all__)
def test_every_name(name: str) -> None:
    """Each name of the kit is imported from one place, whichever module defines it."""
    assert getattr(app_cache.testing, name).__name__ == name


def test_unknown_name() -> None:
    """A name that is none is an AttributeError, as of any module."""
    assert not hasattr(app_cache.testing, "Contract")

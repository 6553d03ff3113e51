"""The metrics client hears what the backend does and can break nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, cast

import pytest

from app_cache.backends.base import BytesBackend, CacheBackend, CombinedBackend, capability
from app_cache.backends.memory import MemoryBackend
from app_cache.backends.metrics import MetricsBackend
from app_cache.errors import BackendError, ConfigurationError
from app_cache.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.anyio


class Recorder:
    """A metrics client that writes down what it is told."""

    def __init__(self) -> None:
        self.counts: list[str] = []
        self.durations: list[tuple[str, float]] = []

    def histogram(self, name: str, value: float) -> None:
        self.durations.append((name, value))

    def increment(self, name: str) -> None:
        self.counts.append(name)


class SlowBackend(CacheBackend):
    """Takes two seconds for everything, and fails for the key ``bad``."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock

    async def get(self, key: str) -> str | None:
        self.work(key)
        return {"there": "value", "empty": ""}.get(key)

    async def set(self, key: str, value: str, timeout: int) -> None:
        self.work(key)

    async def delete(self, key: str) -> None:
        self.work(key)

    async def close(self) -> None: ...

    def work(self, key: str) -> None:
        self.clock.advance(2)
        if key == "bad":
            raise BackendError("it is away")


class CombiningBackend(MemoryBackend):
    """Memory that reads and sets together what it is asked for."""

    async def get_beside(self, key: str, others: Sequence[str]) -> tuple[bytes | None, list[bytes | None]]:
        return await self.get_bytes(key), [await self.get_bytes(other) for other in others]

    async def set_and_run(
        self,
        key: str,
        value: bytes,
        timeout: float,
        script: str,
        keys: Sequence[str],
        args: Sequence[str | int],
    ) -> None:
        await self.set_bytes(key, value, timeout)


@pytest.fixture
def recorder() -> Recorder:
    """Give the metrics client of the test."""
    return Recorder()


@pytest.fixture
def slow(recorder: Recorder) -> MetricsBackend:
    """Give a backend whose every verb takes two seconds."""
    clock = FakeClock()
    return MetricsBackend(SlowBackend(clock), recorder, clock=clock)


@pytest.mark.parametrize(("key", "outcome"), [("there", "hits"), ("empty", "hits"), ("absent", "misses")])
async def test_get(slow: MetricsBackend, recorder: Recorder, key: str, outcome: str) -> None:
    """A get is counted and timed, as a hit when there is a value, be it empty."""
    await slow.get(key)
    assert recorder.durations == [("cache.get.duration", 2.0)]
    assert recorder.counts == ["cache.get.requests", f"cache.get.{outcome}"]


async def test_set_and_delete(slow: MetricsBackend, recorder: Recorder) -> None:
    """A set and a delete are counted and timed."""
    await slow.set("key", "value", 60)
    await slow.delete("key")
    assert recorder.durations == [("cache.set.duration", 2.0), ("cache.delete.duration", 2.0)]
    assert recorder.counts == ["cache.set.requests", "cache.delete.requests"]


async def test_bytes(recorder: Recorder) -> None:
    """Bytes are counted as text is."""
    able = capability(MetricsBackend(MemoryBackend(), recorder), BytesBackend)
    assert able is not None
    await able.set_bytes("key", b"value", 60)
    await able.get_bytes("key")
    await able.get_bytes("absent")
    assert [name for name, _ in recorder.durations] == ["cache.set.duration"] + ["cache.get.duration"] * 2
    gets = ["cache.get.requests", "cache.get.hits", "cache.get.requests", "cache.get.misses"]
    assert recorder.counts == ["cache.set.requests", *gets]


async def test_combined(recorder: Recorder) -> None:
    """What is read or set together with others counts as one get or set."""
    able = capability(MetricsBackend(CombiningBackend(), recorder), CombinedBackend)
    assert able is not None
    await able.set_and_run("key", b"value", 60, "", [], [])
    assert await able.get_beside("key", ["absent"]) == (b"value", [None])
    assert recorder.counts == ["cache.set.requests", "cache.get.requests", "cache.get.hits"]


async def test_errors(slow: MetricsBackend, recorder: Recorder) -> None:
    """What the backend raises is counted, timed, and raised on."""
    for verb, use in (
        ("get", slow.get("bad")),
        ("set", slow.set("bad", "value", 60)),
        ("delete", slow.delete("bad")),
    ):
        recorder.counts.clear()
        recorder.durations.clear()
        with pytest.raises(BackendError, match="it is away"):
            await use
        assert recorder.counts == [f"cache.{verb}.errors", f"cache.{verb}.requests"]
        assert recorder.durations == [(f"cache.{verb}.duration", 2.0)]


async def test_client_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """A metrics client that fails breaks nothing and is logged once."""

    class Failing:
        def histogram(self, name: str, value: float) -> None:
            raise OSError("no route")

        def increment(self, name: str) -> None:
            raise ZeroDivisionError

    backend = MetricsBackend(MemoryBackend(), Failing())
    await backend.set("key", "value", 60)
    assert await backend.get("key") == "value"
    await backend.delete("key")
    assert [record.getMessage().split()[0] for record in caplog.records] == ["cache.metrics_failed"]


async def test_closes_the_inner(recorder: Recorder) -> None:
    """Closing it closes the backend within."""
    inner = MemoryBackend()
    await inner.set("key", "value")
    await MetricsBackend(inner, recorder).close()
    assert await inner.size() == 0


@pytest.mark.parametrize(
    "client",
    [
        pytest.param(None, id="none"),
        pytest.param(Recorder, id="a class"),
        pytest.param(type("Half", (), {"increment": lambda self, name: None})(), id="one method"),
        pytest.param(
            type("Other", (Recorder,), {"increment": lambda self, name, tags: None})(), id="one that wants more"
        ),
    ],
)
def test_no_client(client: Any) -> None:
    """What cannot be told what the backend does is refused."""
    with pytest.raises(
        ConfigurationError, match=r"^metrics_client must be an object with histogram\(name, value\)"
    ):
        MetricsBackend(MemoryBackend(), client)


async def test_client_without_an_instance() -> None:
    """A class does whose methods need no instance."""

    class Told:
        counts: ClassVar[list[str]] = []

        @staticmethod
        def histogram(name: str, value: float) -> None: ...

        @classmethod
        def increment(cls, name: str) -> None:
            cls.counts.append(name)

    await MetricsBackend(MemoryBackend(), Told).get("key")
    assert Told.counts == ["cache.get.requests", "cache.get.misses"]


def test_no_clock() -> None:
    """What cannot be asked for the time is refused."""
    with pytest.raises(ConfigurationError, match=r"^clock must be a function that gives a number, not 5$"):
        MetricsBackend(MemoryBackend(), Recorder(), clock=cast("Any", 5))

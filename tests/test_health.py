"""The health check: a round trip, bounded, and seldom."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from app_cache import BackendError, CacheBackend, ConfigurationError, MemoryBackend
from app_cache.health import HealthCheck, HealthReport
from app_cache.testing import FakeClock

pytestmark = pytest.mark.anyio


class Counted(MemoryBackend):
    """Counts how often it is asked, and fails with *failure* if there is one."""

    def __init__(self, failure: BaseException | None = None) -> None:
        super().__init__()
        self.failure = failure
        self.asked = 0

    async def get(self, key: str) -> str | None:
        self.asked += 1
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
        return await super().get(key)


class Forgetful(MemoryBackend):
    """Keeps nothing."""

    async def get(self, key: str) -> str | None:
        return None


class Hung(MemoryBackend):
    """Never answers."""

    async def get(self, key: str) -> str | None:
        await asyncio.Event().wait()
        raise AssertionError


@pytest.mark.parametrize(
    ("backend", "status", "error"),
    [
        pytest.param(MemoryBackend(), "healthy", None, id="healthy"),
        pytest.param(Forgetful(), "unhealthy", "does not give back what it was given", id="keeps nothing"),
        pytest.param(Counted(BackendError("redis://:pw@h:1")), "degraded", "cannot be reached", id="away"),
        pytest.param(Counted(KeyError("s3cret")), "degraded", "failed with KeyError", id="raises something"),
        pytest.param(Counted(TimeoutError()), "degraded", "failed with TimeoutError", id="raises a TimeoutError"),
        pytest.param(
            Counted(asyncio.CancelledError()), "degraded", "failed with CancelledError", id="cancels a call"
        ),
        pytest.param(Hung(), "degraded", "no answer within", id="hangs"),
    ],
)
async def test_reports(
    monkeypatch: pytest.MonkeyPatch, backend: CacheBackend, status: str, error: str | None
) -> None:
    """A report says how the backend is and why, and shows neither address nor secret; the check raises nothing."""
    monkeypatch.setattr("app_cache.health.CHECK_TIMEOUT_S", 0.05)
    report = await HealthCheck(lambda: backend).check()
    assert report.status == status
    assert (error or "") in (report.error or "")
    assert not {"pw", "s3cret", "h:1"} & {*str(report.error).replace("@", " ").split()}


def test_no_provider() -> None:
    """A backend in the place of what gives it is refused."""
    given: Any = MemoryBackend()
    with pytest.raises(ConfigurationError, match=r"function that gives the backend, .*, not <.*MemoryBackend"):
        HealthCheck(given)


async def test_no_backend() -> None:
    """Where there is no backend, a report says why, without the message."""

    def provide() -> CacheBackend:
        raise RuntimeError("s3cret")

    report = await HealthCheck(provide).check()
    assert report == HealthReport("unhealthy", "", "there is no backend: RuntimeError")


@pytest.mark.parametrize(
    ("report", "told"),
    [
        pytest.param(
            HealthReport("healthy", "MemoryBackend"),
            {"status": "healthy", "backend": "MemoryBackend"},
            id="healthy",
        ),
        pytest.param(
            HealthReport("degraded", "RedisBackend", "away"),
            {"status": "degraded", "error": "away"},
            id="degraded",
        ),
    ],
)
def test_as_dict(report: HealthReport, told: dict[str, str]) -> None:
    """A healthy report names the backend, any other the reason."""
    assert report.as_dict() == told


async def test_once_for_many_at_once() -> None:
    """Many who ask at once share one round trip, and one who leaves does not end it for the others."""
    backend = Counted()
    health = HealthCheck(lambda: backend)
    first, *others = [asyncio.create_task(health.check()) for _ in range(50)]
    await asyncio.sleep(0)
    first.cancel()
    assert {report.status for report in await asyncio.gather(*others)} == {"healthy"}
    assert backend.asked == 1


async def test_once_a_second() -> None:
    """Within a second the last report is given again; after it the backend is asked anew."""
    backend, clock = Counted(), FakeClock()
    health = HealthCheck(lambda: backend, monotonic=clock)
    for _ in range(3):
        await health.check()
    assert backend.asked == 1
    backend.failure = BackendError("away")
    clock.advance(1)
    assert (await health.check()).status == "degraded"
    assert backend.asked == 2


async def test_leaves_nothing() -> None:
    """A check leaves no key behind."""
    backend = MemoryBackend()
    await HealthCheck(lambda: backend).check()
    assert await backend.size() == 0


async def test_another_backend() -> None:
    """Another backend in force is asked at once."""
    one, two = Counted(), Counted()
    in_force = [one]
    health = HealthCheck(lambda: in_force[0])
    await health.check()
    in_force[0] = two
    await health.check()
    assert (one.asked, two.asked) == (1, 1)


def test_another_loop() -> None:
    """The check works from one event loop after another, also when one ended in its midst."""
    health = HealthCheck(lambda: backend, monotonic=FakeClock())
    backend: CacheBackend = Hung()

    async def leave_early() -> None:
        asyncio.create_task(health.check())  # noqa: RUF006 - the loop ends before it
        await asyncio.sleep(0)

    asyncio.run(leave_early())
    backend = MemoryBackend()
    assert asyncio.run(health.check()).status == "healthy"

"""Whether the backend is there, and gives back what it was given."""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from app_cache.backends.base import ScriptBackend, capability
from app_cache.backends.wrapper import shown
from app_cache.clock.script import can_keep_clock
from app_cache.errors import BackendError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from app_cache.backends.base import CacheBackend

CHECK_TIMEOUT_S = 1.0
"""Seconds that a round trip may take."""
CHECK_EVERY_S = 1.0
"""Seconds for which a report is given again, without another check."""


@dataclass(frozen=True, slots=True)
class HealthReport:
    """What a check found.

    Args:
        status: ``healthy``; ``degraded``: the backend is away, too slow or refuses, so that requests run their
            handlers, or get only what is stored already; ``unhealthy``: it gives back something else than it was
            given, or there is none.
        backend: The name of the backend's class, with that of the one within it; empty if there is none.
        error: Why it is not healthy, without addresses and secrets; None if it is.
    """

    status: Literal["healthy", "degraded", "unhealthy"]
    backend: str
    error: str | None = None

    def as_dict(self) -> dict[str, str]:
        """Return it as the health endpoint sends it."""
        if self.error is None:
            return {"status": self.status, "backend": self.backend}
        return {"status": self.status, "error": self.error}


class HealthCheck:
    """Checks the backend in force by a round trip, at most once a second however many ask.

    Raises:
        ConfigurationError: If *backend* is no function that gives one.
    """

    def __init__(
        self, backend: Callable[[], CacheBackend], *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        if not callable(backend):
            raise ConfigurationError(
                f"HealthCheck takes a function that gives the backend, container.backend, not {backend!r}"
            )
        self._backend = backend
        self._monotonic = monotonic
        self._last: tuple[CacheBackend, float, HealthReport] | None = None
        self._running: tuple[CacheBackend, asyncio.Task[HealthReport]] | None = None

    async def check(self) -> HealthReport:
        """Return what the last second's check found, or check now; it raises nothing."""
        try:
            backend = self._backend()
        except Exception as error:  # noqa: BLE001  a provider may be anybody's code, and its message hold a secret
            return HealthReport("unhealthy", "", f"there is no backend: {type(error).__name__}")
        if (
            self._last is not None
            and self._last[0] is backend
            and self._monotonic() - self._last[1] < CHECK_EVERY_S
        ):
            return self._last[2]
        loop = asyncio.get_running_loop()
        running = self._running
        if running is None or running[0] is not backend or running[1].done() or running[1].get_loop() is not loop:
            running = self._running = (backend, loop.create_task(self._check(backend)))
        return await asyncio.shield(running[1])

    async def _check(self, backend: CacheBackend) -> HealthReport:
        name, timer = shown(backend), asyncio.timeout(CHECK_TIMEOUT_S)
        try:
            async with timer:
                faithful = await _round_trip(backend)
        except (Exception, asyncio.CancelledError) as error:  # a backend may be anybody's code
            if _is_cancelled():
                raise
            report = HealthReport("degraded", name, _what_failed(error, late=timer.expired()))
        else:
            report = HealthReport("healthy", name) if faithful else HealthReport("unhealthy", name, _UNFAITHFUL)
        self._last = (backend, self._monotonic(), report)
        return report


def _is_cancelled() -> bool:
    """Return whether the running task itself was cancelled, and not just a call within the backend."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _what_failed(error: BaseException, *, late: bool) -> str:
    """Return what *error* says of a backend, without its message: of a foreign error, the name of its class."""
    if late:
        return f"no answer within {CHECK_TIMEOUT_S:g} s"
    if isinstance(error, BackendError):
        return "the backend cannot be reached or refuses"
    return f"the backend failed with {type(error).__name__}"


_UNFAITHFUL = "the backend does not give back what it was given"


async def _round_trip(backend: CacheBackend) -> bool:
    """Return whether *backend* gives back what it is given, and does what else the cache asks of it."""
    key = f"app_cache:health:{secrets.token_hex(8)}"
    scripts = capability(backend, ScriptBackend)
    if scripts is None:
        return await _gives_back(backend, key)
    return all(await asyncio.gather(_gives_back(backend, key), _keeps_clock(backend, scripts, f"{key}:clock")))


async def _gives_back(backend: CacheBackend, key: str) -> bool:
    await backend.set(key, key, 10)
    found = await backend.get(key)
    await backend.delete(key)
    return found == key


async def _keeps_clock(backend: CacheBackend, scripts: ScriptBackend, key: str) -> bool:
    keeps = await can_keep_clock(scripts, key)
    await backend.delete(key)
    return keeps

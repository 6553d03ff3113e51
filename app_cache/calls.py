"""Calls of a backend: each has a bounded time and cannot fail.

What goes wrong is no answer, counted and said once in the log. While the backend is away, it is left alone but for
one operation each second (`breaker`).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from app_cache.backends.base import LAST_LOOK_S, STALLED_S, LocalBackend, budget_of, capability
from app_cache.backends.wrapper import shown
from app_cache.breaker import ENDINGS, Breaker, Ending, Troubles, fault_of
from app_cache.errors import BackendError, Fault

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Coroutine

    from app_cache.backends.base import CacheBackend

T = TypeVar("T")

REPORT_S = 0.001
"""Seconds more in which a backend that gives up by itself says why."""
PROBES = frozenset({"look_up", "invalidate"})
"""Operations that may show whether a backend is there again: those that first send what is owed to it."""


class Calls:
    """Calls *backend*, and keeps account of what becomes of it.

    Args:
        backend: What is called; one in this process has neither a breaker nor a bounded time.
        stats: Where failures are counted.
        monotonic: Seconds that never go back.
    """

    def __init__(self, backend: CacheBackend, stats: Counter[str], monotonic: Callable[[], float]) -> None:
        self.breaker = None if capability(backend, LocalBackend) is not None else Breaker(monotonic)
        self.timeout = budget_of(backend)
        """Seconds that a call may take."""
        self.failed_probes = 0
        """Failures of probes in which the backend might have taken what is owed to it."""
        self._stats = stats
        self._troubles = Troubles(shown(backend), monotonic)

    async def attempt(
        self,
        operation: str,
        work: Coroutine[Any, Any, T],
        timeout: float | None = None,
        *,
        ends_at_once: bool = False,
    ) -> T | None:
        """Return what *work* gives; None if it fails, takes longer than it may, or the breaker is open.

        Args:
            operation: Its name, in the log and the metrics.
            work: Calls the backend.
            timeout: Seconds that it may take, if not those of every call.
            ends_at_once: It ends as soon as it is cancelled.
        """
        if self.breaker is not None:
            return await self._attempt_afar(self.breaker, operation, work, timeout or self.timeout, ends_at_once)
        try:
            result = await work
        except Exception as error:  # noqa: BLE001  a backend may be anybody's code: none of its errors is the user's
            self.failed(operation, fault_of(error), error)
            return None
        self._troubles.succeeded(operation)
        return result

    async def _attempt_afar(
        self, breaker: Breaker, operation: str, work: Coroutine[Any, Any, T], timeout: float, ends_at_once: bool
    ) -> T | None:
        permit = breaker.admit(may_probe=operation in PROBES)
        if permit is None:
            work.close()
            self._stats[f"{operation}_skipped"] += 1
            self._troubles.skipped()
            return None
        loop = asyncio.get_running_loop()
        late_at = loop.time() + timeout + STALLED_S
        try:
            result = await (_ended_in_time(work, timeout) if ends_at_once else in_time(work, timeout))
        except Exception as error:  # noqa: BLE001  as above
            fault = fault_of(error, late=loop.time() > late_at)
            self.failed(operation, fault, error, opened=breaker.ended(permit, ENDINGS[fault]))
            return None
        except BaseException:
            breaker.ended(permit, Ending.NOTHING)
            raise
        breaker.ended(permit, Ending.THERE)
        self._troubles.succeeded(operation)
        return result

    async def confirm(self, work: Coroutine[Any, Any, bool]) -> bool | None:
        """Return what *work* says, a look-up that bounds its own time; None if the backend failed.

        It is never a probe: while the breaker is open, and where there is no breaker, return False.
        """
        permit = None if self.breaker is None else self.breaker.admit(may_probe=False)
        if self.breaker is None or permit is None:
            work.close()
            return False
        try:
            said = await work
        except Exception as error:  # noqa: BLE001  as above
            fault = fault_of(error)
            self.failed("look_up", fault, error, opened=self.breaker.ended(permit, ENDINGS[fault]))
            return None
        self.breaker.ended(permit, Ending.THERE)
        self._troubles.succeeded("look_up")
        return said

    def failed(self, operation: str, fault: Fault, error: Exception, *, opened: bool = False) -> None:
        """Count that *operation* failed with *error*, and say so if that is new."""
        self._stats[f"{operation}_failed"] += 1
        self._stats[f"failed_{fault.value}"] += 1
        if operation in PROBES and fault is not Fault.READ_ONLY:
            self.failed_probes += 1
        if opened:
            self._stats["breaker_opened"] += 1
        self._troubles.failed(operation, fault, error, opened=opened)


async def in_time(work: Coroutine[Any, Any, T], timeout: float) -> T:
    """Return what *work* gives within *timeout* seconds.

    It is cancelled then, and not waited for: a client that is connecting may take its time for that.

    Raises:
        BackendError: If it takes longer.
    """
    task = asyncio.ensure_future(work)
    try:
        for seconds in (timeout, LAST_LOOK_S + REPORT_S):
            await asyncio.wait({task}, timeout=seconds)
            if task.done():
                return _result(task)
    except asyncio.CancelledError:
        _give_up(task)
        raise
    _give_up(task)
    raise BackendError(f"no answer within {timeout:g} s")


def _result(task: asyncio.Task[T]) -> T:
    """Return what *task* gives; that it was cancelled, which nobody did here, is a failure like another."""
    if task.cancelled():
        raise BackendError("the call was cancelled within the backend", fault=Fault.UNKNOWN)
    return task.result()


async def _ended_in_time(work: Coroutine[Any, Any, T], timeout: float) -> T:
    """As `in_time`, for *work* that ends as soon as it is cancelled, and so needs no task of its own."""
    loop, timer = asyncio.get_running_loop(), asyncio.timeout(None)

    def look_once_more() -> None:
        timers.append(loop.call_later(LAST_LOOK_S + REPORT_S, end))

    def end() -> None:
        timer.reschedule(loop.time())  # ends it a turn later: what the backend has told in this one is heard

    timers = [loop.call_later(timeout, look_once_more)]
    try:
        async with timer:
            return await work
    except TimeoutError:
        if timer.expired():
            raise BackendError(f"no answer within {timeout:g} s") from None
        raise
    finally:
        timers[-1].cancel()


def _give_up(task: asyncio.Future[T]) -> None:
    task.cancel()
    task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())

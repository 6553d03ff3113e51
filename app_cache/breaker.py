"""Whether a backend is worth asking, and what is said of it: once when it fails, once when it is well again.

Nothing here awaits, asks a backend, or begins a task or a thread; the time is asked of a function. Event loops in
several threads may share one breaker.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from app_cache.errors import BackendError, Fault
from app_cache.logger_config import logger

if TYPE_CHECKING:
    from collections.abc import Callable

OPENS_AFTER = 5
"""Failures one after the other, nothing that succeeds between them, after which a backend is taken to be away."""
PROBE_EVERY_S = 1.0
"""Seconds from one probe of a backend that is away to the next."""
PROBE_LOST_S = 10.0
"""Seconds beyond which a probe is taken for lost, as nobody tells its end: its event loop is gone, or it is in the
process that this one was forked from."""
STEADY_S = 10.0
"""Seconds for which all must go well before a trouble is said to be over."""


class State(Enum):
    """Whether operations are let through."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"
    """A probe is under way; what becomes of it decides."""


class Ending(Enum):
    """What the end of an operation says of the backend."""

    THERE = "there"
    """It did what was asked, or answered that it will not."""
    AWAY = "away"
    LOCKED = "locked"
    """It lets nobody in; to ask again at once would change nothing."""
    NOTHING = "nothing"


ENDINGS = {
    Fault.AWAY: Ending.AWAY,
    Fault.UNKNOWN: Ending.AWAY,
    Fault.DENIED: Ending.LOCKED,
    Fault.FULL: Ending.THERE,
    Fault.READ_ONLY: Ending.THERE,
    Fault.REFUSED: Ending.THERE,
    Fault.BUSY: Ending.NOTHING,
    Fault.STALLED: Ending.NOTHING,
}


def fault_of(error: Exception, *, late: bool = False) -> Fault:
    """Return what kept a backend that raised *error* from doing what it was asked.

    *late*: The operation ended later than its timer was set to end it, so that time proves nothing.
    """
    fault = error.fault if isinstance(error, BackendError) else Fault.UNKNOWN
    if isinstance(error, OSError):
        fault = Fault.AWAY
    return Fault.STALLED if late and fault is Fault.AWAY else fault


class Breaker:
    """Lets operations through while their backend is there; when it is away, one each second, to see.

    It opens after 5 failures, and at once where the backend lets nobody in. Many operations that fail together are
    one failure: one that began before the last failure was counted says nothing new.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self.state = State.CLOSED
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._failures = 0
        self._permit = 0
        self._probe_at = 0.0

    def admit(self, *, may_probe: bool) -> int | None:
        """Return a permit for an operation that begins now, or None if it must not begin.

        Whoever has a permit says how the operation ended by `ended`, unless it was cancelled and may not probe.
        *may_probe*: It may be the one that shows whether the backend is there again.
        """
        with self._lock:
            if self.state is not State.CLOSED:
                now = self._monotonic()
                due = self._probe_at + (PROBE_LOST_S if self.state is State.HALF_OPEN else 0.0)
                if not may_probe or now < due:
                    return None
                self._probe_at = now + PROBE_EVERY_S
                if self.state is State.OPEN:
                    self._become(State.HALF_OPEN)
            return self._permit

    def ended(self, permit: int, ending: Ending) -> bool:
        """Note how the operation with *permit* ended, and return whether that opened the breaker."""
        with self._lock:
            if self.state is State.CLOSED:
                return self._ended_while_closed(permit, ending)
            if self.state is State.HALF_OPEN and permit == self._permit:
                self._failures = 0
                self._become(State.CLOSED if ending is Ending.THERE else State.OPEN)
            return False

    def _ended_while_closed(self, permit: int, ending: Ending) -> bool:
        if ending is Ending.THERE:
            self._failures = 0
        elif ending is Ending.AWAY and permit == self._permit:
            self._permit += 1
            self._failures += 1
        if ending is not Ending.LOCKED and self._failures < OPENS_AFTER:
            return False
        self._probe_at = self._monotonic() + PROBE_EVERY_S
        self._become(State.OPEN)
        return True

    def _become(self, state: State) -> None:
        """Change the state; permits that were given before say nothing from now on."""
        self._permit += 1
        self.state = state


@dataclass(slots=True)
class _Trouble:
    operation: str
    begun_at: float
    skipped_before: int
    failed: int = 0
    opened: bool = False
    well_since: float | None = None


class Troubles:
    """What is wrong with a backend: each fault is said when it begins, and when it is over.

    It is said once more if it first opens the breaker 10 s after it began, or later. It is over when all has gone
    well for 10 s; unless the backend was away, the operation that failed must have succeeded.
    """

    def __init__(self, backend: str, monotonic: Callable[[], float]) -> None:
        self._backend = backend
        self._monotonic = monotonic
        self._troubles: dict[Fault, _Trouble] = {}
        self._skipped = 0

    def failed(self, operation: str, fault: Fault, error: Exception, *, opened: bool = False) -> None:
        """Say that *operation* failed, if that is new; *opened*: and that it opened the breaker."""
        if fault is Fault.STALLED:
            return
        now = self._monotonic()
        trouble = self._troubles.get(fault)
        is_news = trouble is None
        if trouble is None:
            trouble = self._troubles[fault] = _Trouble(operation, now, self._skipped)
        trouble.operation = operation
        trouble.well_since = None
        trouble.failed += 1
        if opened and not trouble.opened:
            trouble.opened = True
            is_news = is_news or now - trouble.begun_at >= STEADY_S
        if is_news:
            say = logger.error if fault is Fault.DENIED else logger.warning
            say(
                "cache.backend_failed",
                backend=self._backend,
                reason=fault.value,
                operation=operation,
                failed=trouble.failed,
                error=str(error) if isinstance(error, BackendError) else type(error).__name__,
            )

    def skipped(self) -> None:
        """Count an operation that the breaker did not let through."""
        self._skipped += 1

    def succeeded(self, operation: str) -> None:
        """Say what is over, now that *operation* succeeded."""
        for fault, trouble in [*self._troubles.items()]:
            if fault is not Fault.AWAY and operation != trouble.operation:
                continue
            now = self._monotonic()
            if trouble.well_since is None:
                trouble.well_since = now
            elif now - trouble.well_since >= STEADY_S:
                self._troubles.pop(fault, None)
                logger.info(
                    "cache.backend_recovered",
                    backend=self._backend,
                    reason=fault.value,
                    failed=trouble.failed,
                    skipped=self._skipped - trouble.skipped_before,
                )

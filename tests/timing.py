"""How long something took, whatever the machine does beside."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
TURNS = 5


def assert_within(seconds: float, run: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
    """Call *run*, and again if need be, until it takes less than *seconds* of the processor's time.

    What the machine does beside can only add to that, by the caches and the clock rate that are shared: so the
    best turn counts. *run* is to remember nothing from turn to turn.

    Raises:
        AssertionError: If none of five turns does.
    """
    took: list[float] = []
    while len(took) < TURNS:
        started_at = time.process_time()
        run(*args, **kwargs)
        took.append(time.process_time() - started_at)
        if took[-1] < seconds:
            return
    raise AssertionError(f"took {min(took):.3f} s at best, not less than {seconds}")


class Stopwatch:
    """Runs from its construction on: ``watch = Stopwatch(); …; watch.seconds``.

    The time for which the machine kept this thread from running, though it was ready to, does not count, nor that
    for which its host gave the machine no processor, where Linux tells them. So a bound may be that of the promise
    though both are busy.

    Args:
        process: The number of another that does a part of what is timed. Of the two, who was kept longer counts.
    """

    def __init__(self, process: int | None = None) -> None:
        self._waiting = [Path("/proc/thread-self/schedstat")]
        if process is not None:
            self._waiting.append(Path(f"/proc/{process}/schedstat"))
        self._waited_before = [*map(_waited, self._waiting)]
        self._stolen_before = _stolen()
        self._begun = time.monotonic()

    @property
    def passed(self) -> float:
        """The seconds since then by the clock on the wall."""
        return time.monotonic() - self._begun

    @property
    def seconds(self) -> float:
        """The seconds since then."""
        waited = [_waited(file) - before for file, before in zip(self._waiting, self._waited_before, strict=True)]
        stolen = [now - before for now, before in zip(_stolen(), self._stolen_before, strict=True)]
        return self.passed - max(waited) - max(stolen, default=0.0)


def _stolen() -> list[float]:
    """Return the seconds that the host took from each processor."""
    try:
        lines = Path("/proc/stat").read_text("ascii").splitlines()
    except OSError:  # this is no Linux
        return []
    of_each = [line.split() for line in lines if line.startswith("cpu") and not line.startswith("cpu ")]
    return [int(fields[8]) / os.sysconf("SC_CLK_TCK") for fields in of_each]


def _waited(schedstat: Path) -> float:
    try:
        return int(schedstat.read_text("ascii").split()[1]) / 1e9
    except OSError:  # the thread has ended, or this is no Linux
        return 0.0

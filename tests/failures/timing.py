"""How long something took, without the time in which the machine ran something else."""

from __future__ import annotations

import os
import time
from pathlib import Path


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

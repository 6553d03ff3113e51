"""Figures: what was measured, how far it spread, and what was aimed at."""

from __future__ import annotations

import dataclasses
import json
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured.

    Args:
        turns: Those that cases take in one process.
        requests: In one of them.
        rounds: Those of servers.
        seconds: For which each serves in one of them.
        entries: Of large caches.
    """

    turns: int
    requests: int
    rounds: int
    seconds: int
    entries: int


FULL = Effort(turns=300, requests=200, rounds=9, seconds=1, entries=100_000)
TINY = Effort(turns=5, requests=200, rounds=3, seconds=1, entries=2_000)


@dataclass(frozen=True, slots=True)
class Figure:
    """One thing that was measured: the median of its samples, and the quartiles between which half of them are.

    Args:
        what: What, in a few words.
        value: The median.
        low: The lower quartile.
        high: The upper quartile.
        unit: Of all three.
        at_most: What was aimed at, or None.
        at_least: The same, where more is better.
        beside: What else there is to say.
        series: Names the row of bars it belongs to in the chart, if it does.
    """

    what: str
    value: float
    low: float
    high: float
    unit: str
    at_most: float | None = None
    at_least: float | None = None
    beside: str = ""
    series: str = ""

    @classmethod
    def of(
        cls,
        what: str,
        samples: Iterable[float],
        unit: str,
        *,
        at_most: float | None = None,
        at_least: float | None = None,
        beside: str = "",
        series: str = "",
    ) -> Self:
        """Return the figure that *samples* give."""
        taken = [*samples]
        low, value, high = statistics.quantiles(taken, method="inclusive") if len(taken) > 1 else taken * 3
        return cls(what, value, low, high, unit, at_most, at_least, beside, series)

    @property
    def target(self) -> str:
        """What was aimed at, as text."""
        if self.at_most is not None:
            return f"≤ {self.at_most:g}"
        return "" if self.at_least is None else f"≥ {self.at_least:g}"

    @property
    def met(self) -> bool | None:
        """Whether the median is what was aimed at; None where nothing was."""
        if self.at_most is not None:
            return self.value <= self.at_most
        return None if self.at_least is None else self.value >= self.at_least


@dataclass(frozen=True, slots=True)
class Section:
    """The figures of one module of measurements, with words that say how they came about."""

    title: str
    words: str
    figures: list[Figure]

    def save(self, file: Path) -> None:
        """Write it to *file*."""
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, file: Path) -> Self:
        """Return what was written to *file*."""
        kept = json.loads(file.read_text(encoding="utf-8"))
        return cls(kept["title"], kept["words"], [Figure(**each) for each in kept["figures"]])


def differences(samples: Iterable[float], base: Iterable[float]) -> list[float]:
    """Return by how much each of *samples* is more than that of *base* in the same round."""
    return [sample - other for sample, other in zip(samples, base, strict=True)]


def ratios(samples: Iterable[float], base: Iterable[float]) -> list[float]:
    """Return what part each of *samples* is of that of *base* in the same round."""
    return [sample / other for sample, other in zip(samples, base, strict=True)]

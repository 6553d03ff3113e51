"""A clock that a test moves."""

from __future__ import annotations


class FakeClock:
    """A clock that stands until a test moves it; call it for its seconds.

    >>> clock = FakeClock()
    >>> start = clock()
    >>> clock.advance(60)
    >>> clock() - start
    60.0
    """

    def __init__(self, seconds: float = 1_000_000.0) -> None:
        self.seconds = float(seconds)

    def __call__(self) -> float:
        return self.seconds

    def advance(self, seconds: float) -> None:
        """Move *seconds* on; back, if they are negative."""
        self.seconds += seconds

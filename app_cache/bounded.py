"""A mapping that forgets: what is remembered of each of many keys must not grow with their number."""

from __future__ import annotations

from typing import Final, TypeVar

K = TypeVar("K")
V = TypeVar("V")

PARTS: Final = 8
"""The oldest of so many parts goes where there is no room; to let one go at a time would take a table of links."""


class Bounded(dict[K, V]):
    """Keeps what was set last, under *most* keys at most; to be read keeps nothing longer.

    >>> letters = Bounded(2)
    >>> letters["a"] = 1
    >>> letters["b"] = 2
    >>> letters["a"] = 3
    >>> letters["c"] = 4
    >>> letters
    {'a': 3, 'c': 4}
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def __setitem__(self, key: K, value: V) -> None:
        self.pop(key, None)
        super().__setitem__(key, value)
        if len(self) > self.most:
            for oldest in [*self][: max(1, self.most // PARTS)]:
                self.pop(oldest, None)  # other threads may have set, or taken out, meanwhile

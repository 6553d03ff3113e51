"""The watchers of keys that are set and deleted directly.

Watches begin and end at any moment, in any thread, and in the midst of telling: one may end because its object is
collected as garbage. So each step here is one operation of a dictionary, and a copy of the watchers is told.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Watchers:
    """The functions that are told of keys, in the order in which they were added."""

    def __init__(self) -> None:
        self._told: dict[object, Callable[[str], None]] = {}

    def __len__(self) -> int:
        return len(self._told)

    def add(self, told: Callable[[str], None]) -> Callable[[], object]:
        """Call *told* with each key from now on; return a function that ends this, and may be called twice."""
        place = object()
        self._told[place] = told
        return partial(self._told.pop, place, None)

    def tell(self, key: str) -> None:
        """Call all functions that watch now with *key*."""
        for told in [*self._told.values()]:
            told(key)

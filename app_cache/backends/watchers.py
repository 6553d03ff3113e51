"""Who watches what is set and deleted directly.

Watches begin and end at any moment, in any thread, and in the midst of telling: one may end because its object is
collected as garbage. So each step here is one operation of a dictionary, and who is told is a copy.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Watchers:
    """Those who are told of keys, the first who asked for it first."""

    def __init__(self) -> None:
        self._told: dict[object, Callable[[str], None]] = {}

    def __len__(self) -> int:
        return len(self._told)

    def add(self, told: Callable[[str], None]) -> Callable[[], object]:
        """Call *told* with each key from now on; return what ends that, and may be called again."""
        place = object()
        self._told[place] = told
        return partial(self._told.pop, place, None)

    def tell(self, key: str) -> None:
        """Tell *key* to all who watch now."""
        for told in [*self._told.values()]:
            told(key)

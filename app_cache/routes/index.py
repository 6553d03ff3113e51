"""Which ways a path may come to: found by what it begins with, however many routes there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from app_cache.routes.ways import Way


class Crossing:
    """Where the ways part that begin with the same segments.

    *here*: The places of those that go no further, as far as is known. *on*: The others, by their next segment.
    """

    __slots__ = ("here", "on")

    def __init__(self) -> None:
        self.here: list[int] = []
        self.on: dict[str, Crossing] = {}


class Ways:
    """The ways that a router tries, in its order.

    Args:
        ways: All of them.
    """

    def __init__(self, ways: Iterable[Way]) -> None:
        self.all = [*ways]
        self._start = Crossing()
        self._depth = max((len(way.begins_with) for way in self.all), default=0)
        for place, way in enumerate(self.all):
            crossing = self._start
            for segment in way.begins_with:
                crossing = crossing.on.setdefault(segment, Crossing())
            crossing.here.append(place)

    def that_may_match(self, path: str) -> Sequence[int]:
        """Return the places of the ways that *path*, as routes match it, may come to; to no other it does.

        A path with a line feed may come to any: routes leave out one at the end.
        """
        if "\n" in path:
            return range(len(self.all))
        crossing, places = self._start, self._start.here
        for segment in path[1:].split("/", self._depth):
            if segment not in crossing.on:
                break
            crossing = crossing.on[segment]
            places = places + crossing.here
        return sorted(places)

    def may_matter(self, path: str) -> bool:
        """Return whether *path* may come to a way whose endpoint says something of the cache, or may."""
        return any(self.all[place].may_matter for place in self.that_may_match(path))

"""Which ways a path may come to: found by its segments, however many routes there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from app_cache.routes.ways import Way

ANY = "/"
"""Stands for a segment that a parameter is, or is a part of; no text of a segment is that."""


class Crossing:
    """What is known of the ways whose first segments are the same.

    *ending*: The places, in `Ways.all`, of those that end here. *going*: Of those that may go on to anything.
    *on*: What is known of the others, by the next segment.
    """

    __slots__ = ("ending", "going", "on")

    def __init__(self) -> None:
        self.ending: list[int] = []
        self.going: list[int] = []
        self.on: dict[str, Crossing] = {}


class Ways:
    """The ways that a router tries, in its order.

    Args:
        ways: All of them.
    """

    def __init__(self, ways: Iterable[Way]) -> None:
        self.all = [*ways]
        self._start = Crossing()
        self._depth = max((len(way.course.segments) for way in self.all), default=0)
        for place, way in enumerate(self.all):
            crossing = self._start
            for segment in way.course.segments:
                crossing = crossing.on.setdefault(segment, Crossing())
            (crossing.ending if way.course.ends else crossing.going).append(place)

    def that_may_match(self, path: str) -> Sequence[int]:
        """Return the places of the ways that may match *path*, as routes take it; the others do not.

        A path with a line feed may match any: routes leave out one at the end. Of a long path no more segments are
        looked at than a way has.
        """
        if "\n" in path:
            return range(len(self.all))
        reached, places = [self._start], [*self._start.going]
        for segment in path[1:].split("/", self._depth):
            reached = [each.on[name] for each in reached for name in (segment, ANY) if name in each.on]
            for each in reached:
                places += each.going
        for each in reached:
            places += each.ending
        return sorted(places)

    def may_matter(self, path: str) -> bool:
        """Return whether *path* may come to a way whose endpoint says something of the cache, or may."""
        return any(self.all[place].may_matter for place in self.that_may_match(path))

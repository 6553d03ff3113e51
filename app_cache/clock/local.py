"""The clock in memory: the rules on integers.

Only invalidations make stamps. What has none was never invalidated, or so long ago that its stamp was let go:
*forgotten* is the newest epoch of those.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from app_cache.clock.base import Gate, InvalidationClock, InvalidationResult, Reading, Verdict
from app_cache.clock.epochs import Bans, Epochs, Passed, Stamp, ban, bans_of, judge
from app_cache.codec import Mark
from app_cache.keys import prefix

if TYPE_CHECKING:
    from collections.abc import Collection, Coroutine

    from app_cache.backends.base import LocalBackend
    from app_cache.clock.base import Order
    from app_cache.clock.names import Subject
    from app_cache.shelf import Shelf

MAX_STAMPS = 65_536
"""Stamps kept at once; beyond, the older half is forgotten and what is older than those is a miss."""


class _LocalState:
    """What memory keeps for one namespace, beside its values and as long as they."""

    def __init__(self) -> None:
        self.epochs = Epochs(secrets.token_hex(8), 1)
        self.stamps: OrderedDict[str, Stamp] = OrderedDict()
        self.forgotten = 0
        self.bans = Bans()
        self.passed = Passed()

    def stamped(self, tags: Collection[str]) -> dict[str, Stamp | None]:
        never = Stamp(self.epochs.generation, self.forgotten, self.forgotten)
        return {tag: self.stamps.get(tag, never) for tag in tags}

    def apply(self, order: Order) -> int:
        epoch = self.epochs.epoch + 1
        for tag in order.tags:
            self._stamp(tag, epoch, soft=order.soft)
        banned = bans_of(order)
        self.bans = self.bans.with_more(ban(epoch, kind, text, soft=order.soft) for kind, text in banned)
        self.epochs = Epochs(
            self.epochs.generation,
            epoch,
            epoch if order.everything and not order.soft else self.epochs.floor,
            epoch if order.everything and order.soft else self.epochs.soft_floor,
            epoch if banned else self.epochs.newest_ban,
        )
        return epoch

    def _stamp(self, tag: str, epoch: int, *, soft: bool) -> None:
        old = self.stamps.pop(tag, None) or Stamp(self.epochs.generation, self.forgotten, self.forgotten)
        self.stamps[tag] = Stamp(old.generation, old.hard if soft else epoch, epoch if soft else old.soft)
        if len(self.stamps) > MAX_STAMPS:
            for _ in range(MAX_STAMPS // 2):
                _, dropped = self.stamps.popitem(last=False)
                self.forgotten = max(self.forgotten, dropped.hard, dropped.soft)


class _LocalReading:
    def __init__(self, state: _LocalState) -> None:
        self._state = state
        self.mark = Mark(state.epochs.generation, state.epochs.epoch)

    def judge(self, mark: Mark, subject: Subject) -> Verdict:
        state = self._state
        if mark.epoch == state.epochs.epoch and mark.generation == state.epochs.generation:
            return Verdict.VALID
        return judge(state.epochs, state.bans, state.passed, mark, subject, state.stamped(subject.tags))


class LocalClock(InvalidationClock):
    """The clock of a backend that lives in this process; nothing in it waits."""

    most_names = MAX_STAMPS

    def __init__(self, backend: LocalBackend, shelf: Shelf, namespace: str) -> None:
        self._backend = backend
        self._name = f"{prefix(namespace)}clock"
        self._shelf = shelf

    @property
    def _state(self) -> _LocalState:
        """The state, asked for at each use: a backend that was closed begins a new one."""
        return self._backend.beside(self._name, _LocalState)

    @property
    def gate(self) -> Gate:
        return self._state

    async def look_up(self, key: str, subject: Subject) -> tuple[bytes | None, Reading]:
        value = await self._shelf.read(key)
        return value, _LocalReading(self._state)

    async def read(self, subject: Subject) -> Reading:
        return _LocalReading(self._state)

    def store(
        self, key: str, value: bytes, keep_for: float, mark: Mark, subject: Subject
    ) -> Coroutine[Any, Any, None]:
        return self._shelf.write(key, value, keep_for)

    async def invalidate(self, order: Order, sent: set[object] | None = None) -> InvalidationResult:
        return InvalidationResult(durable=True, epoch=self._state.apply(order))

"""A backend that fails and is slow when a test wants it."""

from __future__ import annotations

import asyncio
import random as chance
from collections import Counter
from collections.abc import Mapping
from functools import cached_property, wraps
from typing import TYPE_CHECKING, Any

from app_cache.backends.base import STANDS_FOR, VERBS, LocalBackend
from app_cache.backends.wrapper import ALL_VERBS, Wrapper
from app_cache.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from app_cache.backends.base import CacheBackend

    PerVerb = float | Mapping[str, float]

LOCAL = frozenset(VERBS[LocalBackend])
TRIED = ALL_VERBS - LOCAL - {"watch"} | {"get", "set", "delete"}
"""The verbs that may fail and be slow: those that would go over a network."""


class FlakyBackend(Wrapper):
    """Passes on every operation to *backend*, or fails it with `BackendError`, early or late.

    It can do all that *backend* can, but is no `LocalBackend`: a backend in this process can neither fail nor be
    slow, so that the cache would not bound its time.

    >>> from app_cache.backends.memory import MemoryBackend
    >>> backend = FlakyBackend(MemoryBackend(), error_rate={"set": 0.5}, random=chance.Random(7))
    >>> backend.broken = True   # all operations fail, until it is False again

    Args:
        backend: The backend to wrap; closed with this one.
        error_rate: Which part of the operations fails, from 0 to 1: of all, or by verb. A rate for ``get`` or
            ``set`` holds for the verbs that stand for it too (``get_bytes``, …), if they have none of their own.
        delay: The seconds that each operation waits before it fails or is passed on: of all, or by verb.
        random: What decides which operations fail; one with a seed decides the same in each run.
        sleep: What lets a delay pass; one that waits for an event makes it as long as the test wants.

    Raises:
        ValueError: If a rate is not between 0 and 1, a delay is negative, or there is no such verb.
    """

    def __init__(
        self,
        backend: CacheBackend,
        *,
        error_rate: PerVerb = 0.0,
        delay: PerVerb = 0.0,
        random: chance.Random | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        super().__init__(backend)
        self.broken = False
        """Whether every operation fails; operations under way too, when their delay is over."""
        self.calls: Counter[str] = Counter()
        """How many operations there were, by verb."""
        self.errors: Counter[str] = Counter()
        """How many of them failed, by verb."""
        self._error_rates = _by_verb("error_rate", error_rate, most=1.0)
        self._delays = _by_verb("delay", delay, most=float("inf"))
        self._random = random or chance.Random()  # noqa: S311 - no secret
        self._sleep = sleep

    async def get(self, key: str) -> str | None:
        """Return the value kept under *key*, or None.

        Raises:
            BackendError: If it is this operation's turn to fail.
        """
        await self._falter("get")
        return await super().get(key)

    async def set(self, key: str, value: str, timeout: float | None = None) -> None:
        """Keep *value* under *key* for *timeout* seconds; None: the default of the backend within, or an hour.

        Raises:
            BackendError: If it is this operation's turn to fail.
            ValueError: If *timeout* is not positive, or a bool.
        """
        await self._falter("set")
        await super().set(key, value, timeout)

    async def delete(self, key: str) -> None:
        """Forget *key*.

        Raises:
            BackendError: If it is this operation's turn to fail.
        """
        await self._falter("delete")
        await super().delete(key)

    @cached_property
    def _verbs(self) -> frozenset[str]:
        return super()._verbs - LOCAL

    def __getattr__(self, name: str) -> Any:
        passed_on = super().__getattr__(name)
        if name not in TRIED:
            return passed_on

        @wraps(passed_on)
        async def tried(*args: Any, **kwargs: Any) -> Any:
            await self._falter(name)
            return await passed_on(*args, **kwargs)

        return tried

    async def _falter(self, verb: str) -> None:
        """Wait for the delay of *verb*, and raise if it is its turn to fail."""
        self.calls[verb] += 1
        fails = self._random.random() < self._error_rates[verb]
        if self._delays[verb]:
            await self._sleep(self._delays[verb])
        if fails or self.broken:
            self.errors[verb] += 1
            raise BackendError(f"{verb} failed, as the test wants it")


def _by_verb(option: str, given: PerVerb, *, most: float) -> dict[str, float]:
    """Return what *given* says of each verb.

    Raises:
        ValueError: If a number is not between 0 and *most*, or there is no such verb.
    """
    named = given if isinstance(given, Mapping) else dict.fromkeys(TRIED, given)
    for verb, value in named.items():
        if verb not in TRIED:
            raise ValueError(f"{option} names the verb {verb!r}; the verbs are {', '.join(sorted(TRIED))}")
        if type(value) not in (int, float) or not 0 <= value <= most:
            raise ValueError(f"{option} must be a number from 0 to {most:g}, not {value!r}")
    return {verb: named.get(verb, named.get(STANDS_FOR.get(verb, verb), 0.0)) for verb in TRIED}

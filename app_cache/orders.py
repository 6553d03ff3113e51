"""Invalidations on their way to the backend, and those that it is owed.

A backend that cannot be reached is owed an invalidation: nothing of it is trusted until it has that.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import OrderedDict
from dataclasses import replace
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from app_cache.breaker import fault_of
from app_cache.calls import in_time
from app_cache.clock.base import InvalidationResult, Order
from app_cache.errors import Fault
from app_cache.logger_config import logger

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Coroutine, Iterable

    from app_cache.calls import Calls
    from app_cache.clock.base import InvalidationClock

P = ParamSpec("P")
T = TypeVar("T")

MAX_OWED = 256
"""Invalidations kept for a backend that is away; beyond, everything is owed."""
FEW_FAILURES = 3
"""Failures in a row to send anything that is owed; after these, it may be this very order that cannot be sent."""
PASSING = frozenset({Fault.AWAY, Fault.BUSY, Fault.STALLED})
"""Faults that say nothing of the order that was sent, unless they come again and again."""


class Orders:
    """Carries out invalidations by *clock*, and remembers those that the backend did not get.

    Args:
        clock: Carries them out.
        calls: Bounds each call of the backend, and counts what fails.
        stats: Where they are counted.
        backend: What the backend is called in the log.
    """

    def __init__(self, clock: InvalidationClock, calls: Calls, stats: Counter[str], backend: str) -> None:
        self.owed: OrderedDict[Order, set[object]] = OrderedDict()
        """The orders that the backend did not get, each with the parts of it that the backend has.

        While there is any, nothing that the backend gives is trusted.
        """
        self._clock = clock
        self._calls = calls
        self._stats = stats
        self._backend = backend
        self._owing = threading.Lock()
        self._failed_before = 0
        """How many probes had failed when something that is owed was last sent."""
        self._tills: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = (
            weakref.WeakKeyDictionary()
        )

    async def carry_out(self, order: Order) -> InvalidationResult:
        """Carry out *order* in the time of one operation; what fails, or is cancelled meanwhile, is owed.

        An order that names too much, or that the backend does not take although it is there, becomes one of
        everything.
        """
        fits = order.size <= self._clock.most_names
        if not fits:
            order = _everything([order])
            self._stats["invalidations_widened"] += 1
        sent: set[object] = set()
        try:
            result = await self._calls.attempt("invalidate", self._invalidate(order, sent))
        except asyncio.CancelledError:
            self._owe(order, sent)
            raise
        if result is None:
            self._owe(order, sent)
            result = InvalidationResult(durable=False)
        else:
            self._stats["invalidations"] += 1
        return result if fits else _widened(result)

    async def before(self, call: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Send what is owed, then return what *call* gives."""
        await self._pay()
        return await call(*args, **kwargs)

    async def close(self) -> None:
        """Try once more to send what is owed, and log what cannot be sent: there may be no later attempt."""
        if not self.owed:
            return
        try:
            await in_time(self._pay(), self._calls.timeout)
        except Exception as error:  # noqa: BLE001  a backend may be anybody's code
            logger.warning(
                "cache.invalidations_lost",
                backend=self._backend,
                owed=len(self.owed),
                reason=fault_of(error).value,
            )

    async def _invalidate(self, order: Order, sent: set[object]) -> InvalidationResult:
        if self.owed and not self._till().locked():
            await self._pay()
        return await self._send(order, sent)

    def _owe(self, order: Order, sent: Iterable[object] = ()) -> None:
        """Remember that *order* is owed but for its parts that are *sent*, or all of it if it was owed already."""
        with self._owing:
            if not self.owed:
                self._failed_before = self._calls.failed_probes
            given_again = self.owed.pop(order, None) is not None
            self.owed[order] = set() if given_again else {*sent}
            if len(self.owed) > MAX_OWED or sum(each.size for each in self.owed) > self._clock.most_names:
                everything = _everything([*self.owed])
                self.owed.clear()
                self.owed[everything] = set()
                self._stats["invalidations_widened"] += 1

    def _due(self, most: int) -> list[tuple[Order, set[object]]]:
        """Return the oldest orders that are owed, all hard or all soft as the first is, at most *most* of them."""
        with self._owing:
            alike = next(groupby(islice(self.owed.items(), most), key=lambda each: each[0].soft), None)
            return [] if alike is None else [*alike[1]]

    async def _pay(self) -> None:
        """Send the invalidations that the backend did not get, before anything of it is trusted.

        First one alone, then twice as many in each step: so all are soon sent, and even a slow backend gets some
        within the time of an operation. Who would send them meanwhile waits, and finds nothing left to send.
        """
        async with self._till():
            most = 1
            while debts := self._due(most):
                if len(debts) == 1:
                    await self._send(*debts[0])
                else:
                    await self._send(_merged([order for order, _ in debts]), set())
                self._paid(debts)
                most = min(2 * most, MAX_OWED)

    def _till(self) -> asyncio.Lock:
        """Return the running loop's payment lock."""
        return self._tills.setdefault(asyncio.get_running_loop(), asyncio.Lock())

    def _paid(self, debts: Iterable[tuple[Order, set[object]]]) -> None:
        self._failed_before = self._calls.failed_probes
        with self._owing:
            for order, sent in debts:
                if self.owed.get(order) is sent:
                    del self.owed[order]

    async def _send(self, order: Order, sent: set[object]) -> InvalidationResult:
        """Send *order*; if that fails and the order may be the reason, send one of everything in its place.

        That is done at once if the backend refuses the order; if the backend seems to be away, only after a few
        failures, and then every other time: *order* has the first half of the time, everything the second.
        """
        failed = self._calls.failed_probes - self._failed_before if self.owed else 0
        had, few, sending = len(sent), failed < FEW_FAILURES, self._clock.invalidate(order, sent)
        try:
            return await (sending if few or failed % 2 else in_time(sending, self._calls.timeout / 2))
        except Exception as error:
            more = len(sent) > had
            fault = fault_of(error)
            says_nothing = fault is Fault.READ_ONLY or (fault in PASSING and (few or more))
            if says_nothing or order == _everything([order]):
                raise
            return await self._send_everything(order, error)
        finally:
            if len(sent) > had:
                self._failed_before = self._calls.failed_probes

    async def _send_everything(self, order: Order, error: Exception) -> InvalidationResult:
        """Send everything in the place of *order*, which failed with *error*, and of all that is owed."""
        with self._owing:
            debts = [*self.owed.items()]
        result = await self._clock.invalidate(_everything([order, *(each for each, _ in debts)]))
        self._calls.failed("invalidate", fault_of(error), error)
        self._stats["invalidations_widened"] += 1
        self._paid(debts)
        return _widened(result)


def _merged(orders: list[Order]) -> Order:
    """Return *orders*, which are all hard or all soft, as one order."""
    if any(order.everything for order in orders):
        return _everything(orders)
    return Order(
        tags=tuple(tag for order in orders for tag in order.tags),
        patterns=tuple(pattern for order in orders for pattern in order.patterns),
        all_of=tuple(tags for order in orders for tags in order.all_of),
        keys=tuple(key for order in orders for key in order.keys),
        soft=orders[0].soft,
    )


def _everything(orders: list[Order]) -> Order:
    """Return the order of everything that stands for all of *orders*."""
    return Order(everything=True, soft=all(order.soft for order in orders))


def _widened(result: InvalidationResult) -> InvalidationResult:
    """Return *result*, that of an order of everything, as the result of one that named less."""
    return replace(result, widened_to=", ".join(filter(None, (result.widened_to, "everything"))))

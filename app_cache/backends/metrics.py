"""What a backend does, told to a metrics client.

The client is the user's: what it raises is logged once and breaks nothing.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, cast

from app_cache.backends.base import takes
from app_cache.backends.wrapper import Offered, Wrapper, seconds_for
from app_cache.checks import source_of_numbers
from app_cache.errors import ConfigurationError
from app_cache.logger_config import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from app_cache.backends.base import BytesBackend, CacheBackend, CombinedBackend


class MetricsClient(Protocol):
    """Takes measurements; both methods return at once, for they run on the way of a request."""

    def histogram(self, name: str, value: float) -> object:
        """Take *value* into the distribution *name*."""
        ...

    def increment(self, name: str) -> object:
        """Count one more of *name*."""
        ...


class MetricsBackend(Wrapper):
    """Tells *metrics_client* of each `get`, `set` and `delete` of *backend*, as text or as bytes.

    Each of the three has a histogram ``cache.get.duration`` (seconds) and counters ``cache.get.requests`` and
    ``cache.get.errors``; `get` has also ``cache.get.hits``, where an empty value counts, and ``cache.get.misses``.
    What the backend raises is counted and raised on.

    Args:
        backend: The backend to wrap; closed with this one.
        metrics_client: A `MetricsClient`; what it raises is logged once.
        clock: Seconds that never go back, to measure durations with.

    Raises:
        ConfigurationError: If *backend*, *metrics_client* or *clock* is not what its name says.
    """

    def __init__(
        self,
        backend: CacheBackend,
        metrics_client: MetricsClient,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        super().__init__(backend)
        self.metrics = _checked_client(metrics_client)
        self._clock = source_of_numbers("clock", clock)
        self._client_failed = False

    async def get(self, key: str) -> str | None:
        """Return the value kept under *key*, or None."""
        with self._told("get"):
            value = await self.backend.get(key)
        self._tell_found(value)
        return value

    async def set(self, key: str, value: str, timeout: float | None = None) -> None:
        """Keep *value* under *key* for *timeout* seconds; None: the default of the backend within, or an hour.

        Raises:
            ValueError: If *timeout* is not positive, or a bool.
        """
        with self._told("set"):
            await super().set(key, value, timeout)

    async def delete(self, key: str) -> None:
        """Forget *key*."""
        with self._told("delete"):
            await self.backend.delete(key)

    @Offered
    async def get_bytes(self, key: str) -> bytes | None:
        """Return the bytes kept under *key*, or None."""
        with self._told("get"):
            value = await cast("BytesBackend", self.backend).get_bytes(key)
        self._tell_found(value)
        return value

    @Offered
    async def set_bytes(self, key: str, value: bytes, timeout: float | None = None) -> None:
        """Keep *value* under *key* for *timeout* seconds.

        Raises:
            ValueError: If *timeout* is not positive, or a bool.
        """
        with self._told("set"):
            seconds = seconds_for(self.backend, timeout)
            await cast("BytesBackend", self.backend).set_bytes(key, value, seconds)

    @Offered
    async def get_beside(self, key: str, others: Sequence[str]) -> tuple[bytes | None, list[bytes | None]]:
        """Return the bytes under *key*, which count as one `get`, and those under each of *others*."""
        with self._told("get"):
            value, beside = await cast("CombinedBackend", self.backend).get_beside(key, others)
        self._tell_found(value)
        return value, beside

    @Offered
    async def set_and_run(
        self,
        key: str,
        value: bytes,
        timeout: float,
        script: str,
        keys: Sequence[str],
        args: Sequence[str | int],
    ) -> None:
        """Run *script*, then keep *value* under *key* for *timeout* seconds; it counts as one `set`."""
        with self._told("set"):
            await cast("CombinedBackend", self.backend).set_and_run(key, value, timeout, script, keys, args)

    @contextmanager
    def _told(self, verb: str) -> Iterator[None]:
        """Tell how long the block takes, that it ran, and whether it failed."""
        started_at = self._clock()
        try:
            yield
        except Exception:
            self._increment(f"cache.{verb}.errors")
            raise
        finally:
            duration_s = self._clock() - started_at
            self._tell(lambda: self.metrics.histogram(f"cache.{verb}.duration", duration_s))
            self._increment(f"cache.{verb}.requests")

    def _tell_found(self, value: str | bytes | None) -> None:
        self._increment("cache.get.misses" if value is None else "cache.get.hits")

    def _increment(self, name: str) -> None:
        self._tell(lambda: self.metrics.increment(name))

    def _tell(self, tell: Callable[[], object]) -> None:
        try:
            tell()
        except Exception as error:  # noqa: BLE001 - the user's client may raise anything; the value is there
            if not self._client_failed:
                self._client_failed = True
                logger.warning("cache.metrics_failed", error=repr(error))


_TOLD = {"histogram": ("name", "value"), "increment": ("name",)}
"""What the methods of a client are given, by position."""


def _checked_client(client: MetricsClient) -> MetricsClient:
    for name, given in _TOLD.items():
        method = getattr(client, name, None)
        if not callable(method) or not takes(method, given):
            raise ConfigurationError(
                f"metrics_client must be an object with histogram(name, value) and increment(name), not {client!r}"
            )
    return client

"""What a backend can do beyond the four verbs is told truly, whatever class it is of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from app_cache.backends.base import (
    VERBS,
    BatchingBackend,
    BytesBackend,
    CacheBackend,
    CombinedBackend,
    InstantBackend,
    LocalBackend,
    PatternBackend,
    PingBackend,
    ScriptBackend,
    SizedBackend,
    WatchedBackend,
    capability,
    checked_timeout,
)
from app_cache.backends.compressed import CompressedBackend
from app_cache.backends.memory import MemoryBackend
from app_cache.backends.metrics import MetricsBackend
from app_cache.backends.redis import RedisBackend
from app_cache.backends.router import BackendRouter
from app_cache.errors import ConfigurationError
from app_cache.store import StoredResponses
from app_cache.testing import FlakyBackend

if TYPE_CHECKING:
    from collections.abc import Callable

OF_MEMORY = {BytesBackend, PatternBackend, PingBackend, SizedBackend, LocalBackend}


class TextBackend(CacheBackend):
    """Four verbs, and no more."""

    async def get(self, key: str) -> str | None: ...

    async def set(self, key: str, value: str, timeout: int) -> None: ...

    async def delete(self, key: str) -> None: ...

    async def close(self) -> None: ...


class OwnGet(MemoryBackend):
    """Memory that reads text in its own way."""

    async def get(self, key: str) -> str | None:
        return await super().get(key)


class OwnSet(MemoryBackend):
    """Memory that sets text in its own way."""

    async def set(self, key: str, value: str, timeout: float | None = None) -> None:
        await super().set(key, value, timeout)


class OwnDelete(MemoryBackend):
    """Memory that deletes in its own way."""

    async def delete(self, key: str) -> None:
        await super().delete(key)


class OwnGetAndBytes(OwnGet):
    """A subclass of what reads text in its own way, that reads and sets bytes in its own way too."""

    async def get_bytes(self, key: str) -> bytes | None:
        return await super().get_bytes(key)


class OwnGetOfMetrics(MetricsBackend):
    """A wrapper that reads text in its own way."""

    async def get(self, key: str) -> str | None:
        return await super().get(key)


class Proxy(CacheBackend):
    """A user's own wrapper, which passes on by `__getattr__` whatever it does not write."""

    def __init__(self, backend: CacheBackend) -> None:
        self.backend = backend

    async def get(self, key: str) -> str | None: ...

    async def set(self, key: str, value: str, timeout: int) -> None: ...

    async def delete(self, key: str) -> None: ...

    async def close(self) -> None: ...

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)


class OnlyOneOfTwo(TextBackend):
    """Half a capability."""

    async def get_bytes(self, key: str) -> bytes | None: ...


class NotCallable(TextBackend):
    """Something else by the name of a verb."""

    ping = "pong"


class NoMetrics:
    """A metrics client that keeps nothing."""

    def histogram(self, name: str, value: float) -> None: ...

    def increment(self, name: str) -> None: ...


BACKENDS = [
    pytest.param(TextBackend, set(), id="four verbs"),
    pytest.param(MemoryBackend, OF_MEMORY | {InstantBackend}, id="memory"),
    pytest.param(OwnGet, OF_MEMORY - {BytesBackend}, id="get overridden"),
    pytest.param(OwnSet, (OF_MEMORY | {InstantBackend}) - {BytesBackend}, id="set overridden"),
    pytest.param(OwnDelete, OF_MEMORY | {InstantBackend}, id="delete overridden"),
    pytest.param(OwnGetAndBytes, OF_MEMORY, id="get overridden, and then the bytes"),
    pytest.param(OnlyOneOfTwo, set(), id="half a capability"),
    pytest.param(NotCallable, set(), id="not callable"),
    pytest.param(lambda: CompressedBackend(MemoryBackend()), OF_MEMORY, id="compressed memory"),
    pytest.param(lambda: CompressedBackend(TextBackend()), set(), id="compressed text"),
    pytest.param(lambda: CompressedBackend(OwnGet()), OF_MEMORY - {BytesBackend}, id="compressed, get overridden"),
    pytest.param(lambda: MetricsBackend(MemoryBackend(), NoMetrics()), OF_MEMORY, id="metered memory"),
    pytest.param(lambda: MetricsBackend(TextBackend(), NoMetrics()), set(), id="metered text"),
    pytest.param(
        lambda: OwnGetOfMetrics(MemoryBackend(), NoMetrics()),
        OF_MEMORY - {BytesBackend},
        id="metered, get overridden",
    ),
    pytest.param(
        lambda: MetricsBackend(CompressedBackend(MemoryBackend()), NoMetrics()), OF_MEMORY, id="wrapped twice"
    ),
    pytest.param(lambda: BackendRouter({"data": MemoryBackend()}), OF_MEMORY - {LocalBackend}, id="routed memory"),
    pytest.param(lambda: Proxy(MemoryBackend()), OF_MEMORY | {InstantBackend}, id="__getattr__ over memory"),
    pytest.param(lambda: Proxy(TextBackend()), set(), id="__getattr__ over text"),
]


@pytest.mark.parametrize(("make", "kinds"), BACKENDS)
def test_capabilities(make: Callable[[], CacheBackend], kinds: set[type[Any]]) -> None:
    """A backend has the capabilities that it can keep, and no other."""
    backend = make()
    assert {kind for kind in VERBS if capability(backend, kind) is not None} == kinds


@pytest.mark.parametrize(("make", "kinds"), BACKENDS)
def test_capability_is_the_backend(make: Callable[[], CacheBackend], kinds: set[type[Any]]) -> None:
    """What is asked for a capability is the backend itself."""
    backend = make()
    assert all(capability(backend, kind) is backend for kind in kinds)


@pytest.mark.parametrize(("make", "kinds"), BACKENDS)
@pytest.mark.parametrize("kind", [PatternBackend, SizedBackend, LocalBackend, ScriptBackend, WatchedBackend])
def test_hasattr(make: Callable[[], CacheBackend], kinds: set[type[Any]], kind: type[Any]) -> None:
    """`hasattr`, which the document asks, tells the truth."""
    backend = make()
    assert all(hasattr(backend, verb) for verb in VERBS[kind]) is (kind in kinds)


def test_verbs_are_those_of_the_protocols() -> None:
    """Each capability is asked for by all methods of its protocol."""
    for kind, verbs in VERBS.items():
        assert {name for name in vars(kind) if not name.startswith("_")} == set(verbs)


def test_combined_needs_both_halves() -> None:
    """A wrapper passes on what is read and set in one round trip only if the backend within has both."""

    class Half(MemoryBackend):
        async def get_beside(self, key: str, others: list[str]) -> tuple[bytes | None, list[bytes | None]]:
            return None, []

    assert capability(CompressedBackend(Half()), CombinedBackend) is None


@pytest.mark.parametrize("verb", ["get", "get_beside"])
def test_batched_reads_go_past_nothing(verb: str) -> None:
    """Who overrides how a value is read is asked for it by what he wrote, and so is what is wrapped."""
    overriding = type("Own", (RedisBackend,), {verb: getattr(RedisBackend, verb)})()
    assert capability(RedisBackend(), BatchingBackend) is not None
    assert capability(overriding, BatchingBackend) is None
    assert capability(MetricsBackend(RedisBackend(), NoMetrics()), BatchingBackend) is None


@pytest.mark.parametrize("backend", [CompressedBackend(MemoryBackend()), BackendRouter({"data": MemoryBackend()})])
def test_no_other_attributes(backend: CacheBackend) -> None:
    """A wrapper has no attribute of the backend within beyond its verbs and settings."""
    assert not hasattr(backend, "max_size")
    assert not hasattr(backend, "_entries")


def test_settings_pass_through() -> None:
    """What a backend says of its times is to be had through wrappers, and absent where it says nothing."""

    class Server(MemoryBackend):
        operation_timeout = 0.1

    wrapped = MetricsBackend(CompressedBackend(Server(default_timeout=7)), NoMetrics())
    assert (wrapped.default_timeout, wrapped.operation_timeout) == (7, 0.1)
    assert not hasattr(CompressedBackend(MemoryBackend()), "operation_timeout")


@pytest.mark.parametrize(("timeout", "seconds"), [(1, 1.0), (0.5, 0.5), (10**9, 1e9)])
def test_checked_timeout(timeout: float, seconds: float) -> None:
    """A positive number of seconds is a timeout."""
    assert checked_timeout(timeout) == seconds


@pytest.mark.parametrize("timeout", [0, -1, True, False, None, "60", float("nan"), float("inf")])
def test_wrong_timeout(timeout: object) -> None:
    """Anything else is refused, and the message names it."""
    with pytest.raises(ValueError, match=f"timeout must be a positive number of seconds, not {timeout!r}"):
        checked_timeout(timeout)


@pytest.mark.parametrize("backend", [None, 5, MemoryBackend, "redis://shop:s3cret@h"], ids=str)
@pytest.mark.parametrize(
    "take",
    [
        pytest.param(CompressedBackend, id="CompressedBackend"),
        pytest.param(lambda backend: MetricsBackend(backend, NoMetrics()), id="MetricsBackend"),
        pytest.param(lambda backend: BackendRouter({"data": backend}), id="BackendRouter"),
        pytest.param(FlakyBackend, id="FlakyBackend"),
        pytest.param(StoredResponses, id="StoredResponses"),
    ],
)
def test_no_backend(take: Callable[[Any], object], backend: Any) -> None:
    """Whatever takes a backend refuses what is none, and shows no secret."""
    with pytest.raises(
        ConfigurationError, match=r"must be an instance of a subclass of CacheBackend, not "
    ) as refusal:
        take(backend)
    assert "s3cret" not in str(refusal.value)


@pytest.mark.parametrize(("name", "wrong"), [("operation_timeout", None), ("delete", TextBackend.close)])
def test_backend_within_that_cannot_work(name: str, wrong: object) -> None:
    """A backend that could not do its work is refused by what is to stand around it."""
    backend: Any = type("Own", (TextBackend,), {name: wrong})()
    for take in (CompressedBackend, lambda backend: BackendRouter(default=backend)):
        with pytest.raises(ConfigurationError, match=f"^{name} of Own must "):
            take(backend)

"""Every backend keeps to the one contract: ours, those around others, and what users write."""

from __future__ import annotations

import gzip
import time
from typing import TYPE_CHECKING, Any

import pytest

from app_cache.backends.base import CacheBackend
from app_cache.backends.compressed import CompressedBackend, CompressedMemoryBackend
from app_cache.backends.memory import MemoryBackend
from app_cache.backends.metrics import MetricsBackend
from app_cache.backends.redis import RedisBackend
from app_cache.backends.router import BackendRouter
from app_cache.testing import (
    BackendContract,
    BytesContract,
    CombinedContract,
    FakeClock,
    FlakyBackend,
    LocalContract,
    PatternContract,
    PingContract,
    ScriptContract,
    SizeContract,
    TimeoutContract,
    WatchContract,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.servers import Server


class DictBackend(CacheBackend):
    """Four verbs over a dictionary, and no more."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.values: dict[str, tuple[str, float]] = {}

    async def get(self, key: str) -> str | None:
        value, expires_at = self.values.get(key, (None, 0.0))
        return value if expires_at > self.clock() else None

    async def set(self, key: str, value: str, timeout: int) -> None:
        self.values[key] = (value, self.clock() + timeout)

    async def delete(self, key: str) -> None:
        self.values.pop(key, None)

    async def close(self) -> None:
        self.values.clear()


class CustomBackend(CacheBackend):
    """The custom backend of the user's document."""

    def __init__(self, custom_param: str, timeout: int = 300) -> None:
        self.custom_param = custom_param
        self.default_timeout = timeout
        self.storage: dict[str, Any] = {}

    async def get(self, key: str) -> str | None:
        item = self.storage.get(key)
        if item and item["expires"] > time.time():
            return item["value"]  # type: ignore[no-any-return]
        elif item:  # noqa: RET505
            del self.storage[key]  # Clean up expired item
        return None

    async def set(self, key: str, value: str, timeout: int) -> None:
        expires = time.time() + timeout
        self.storage[key] = {"value": value, "expires": expires}

    async def delete(self, key: str) -> None:
        self.storage.pop(key, None)

    async def close(self) -> None:
        self.storage.clear()


class DocumentsCompressedMemoryBackend(MemoryBackend):
    """The compressed backend of the user's document, which sets bytes where text is declared."""

    async def set(self, key: str, value: str, timeout: int) -> None:  # type: ignore[override]
        compressed_value = gzip.compress(value.encode())
        await super().set(key, compressed_value, timeout)  # type: ignore[arg-type]

    async def get(self, key: str) -> str | None:
        compressed_value = await super().get(key)
        if compressed_value:
            return gzip.decompress(compressed_value).decode()  # type: ignore[arg-type]
        return None


class NoMetrics:
    """A metrics client that keeps nothing."""

    def histogram(self, name: str, value: float) -> None: ...

    def increment(self, name: str) -> None: ...


class ClockedContract(BackendContract):
    """The contract for backends whose time the tests move."""

    def make_backend(self) -> CacheBackend:
        self.clock = FakeClock()
        return self.make_clocked(self.clock)

    def make_clocked(self, clock: FakeClock) -> CacheBackend:
        raise NotImplementedError

    async def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)


class InMemoryContract(
    ClockedContract, TimeoutContract, BytesContract, PatternContract, PingContract, SizeContract, LocalContract
):
    """The contract for memory, and for what passes on all that memory can."""


class RedisContract(
    BackendContract,
    TimeoutContract,
    BytesContract,
    PatternContract,
    PingContract,
    SizeContract,
    ScriptContract,
    CombinedContract,
    WatchContract,
):
    """The contract for Redis, and for what passes on all that Redis can."""


class TestMemory(InMemoryContract):
    def make_clocked(self, clock: FakeClock) -> CacheBackend:
        return MemoryBackend(clock=clock)


class TestCompressedMemory(InMemoryContract):
    def make_clocked(self, clock: FakeClock) -> CacheBackend:
        return CompressedMemoryBackend(min_size=0, clock=clock)


class TestZstdOverMemory(InMemoryContract):
    def make_clocked(self, clock: FakeClock) -> CacheBackend:
        return CompressedBackend(MemoryBackend(clock=clock), "zstd", min_size=0)


class TestGzipOverText(ClockedContract, TimeoutContract):
    def make_clocked(self, clock: FakeClock) -> CacheBackend:
        return CompressedBackend(DictBackend(clock), "gzip", min_size=0)


class TestZstdOverText(ClockedContract, TimeoutContract):
    def make_clocked(self, clock: FakeClock) -> CacheBackend:
        return CompressedBackend(DictBackend(clock), "zstd", min_size=0)


class TestDocumentsCompressedMemory(
    ClockedContract, TimeoutContract, PatternContract, PingContract, SizeContract, LocalContract
):
    def make_clocked(self, clock: FakeClock) -> CacheBackend:
        return DocumentsCompressedMemoryBackend(clock=clock)


class TestMetrics(InMemoryContract):
    def make_clocked(self, clock: FakeClock) -> CacheBackend:
        return MetricsBackend(MemoryBackend(clock=clock), NoMetrics())


class TestMetricsOverText(ClockedContract, TimeoutContract):
    def make_clocked(self, clock: FakeClock) -> CacheBackend:
        return MetricsBackend(DictBackend(clock), NoMetrics())


class TestRouter(ClockedContract, TimeoutContract, BytesContract, PatternContract, PingContract, SizeContract):
    def make_clocked(self, clock: FakeClock) -> CacheBackend:
        odd = MemoryBackend(clock=clock)
        return BackendRouter(routes=[(lambda key: len(key) % 2 == 1, odd)], default=MemoryBackend(clock=clock))


class TestRouterOverMemoryAndText(ClockedContract, TimeoutContract):
    def make_clocked(self, clock: FakeClock) -> CacheBackend:
        return BackendRouter({"contract": MemoryBackend(clock=clock), "data": DictBackend(clock)})


class TestWrappedTwice(
    ClockedContract, TimeoutContract, BytesContract, PatternContract, PingContract, SizeContract
):
    def make_clocked(self, clock: FakeClock) -> CacheBackend:
        compressed = CompressedBackend(MetricsBackend(MemoryBackend(clock=clock), NoMetrics()), min_size=0)
        return BackendRouter({"data": compressed})


class TestFlaky(ClockedContract, TimeoutContract, BytesContract, PatternContract, PingContract, SizeContract):
    def make_clocked(self, clock: FakeClock) -> CacheBackend:
        return FlakyBackend(MemoryBackend(clock=clock))


class TestFlakyOverText(ClockedContract, TimeoutContract):
    def make_clocked(self, clock: FakeClock) -> CacheBackend:
        return FlakyBackend(DictBackend(clock))


class TestCustom(BackendContract):
    def make_backend(self) -> CacheBackend:
        return CustomBackend("param")


class TestRedis(RedisContract):
    @pytest.fixture
    async def backend(self, redis_server: Server) -> AsyncIterator[CacheBackend]:
        """Give a backend over a real server."""
        backend = RedisBackend(redis_server.url)
        yield backend
        await backend.close()


class TestCompressedRedis(RedisContract):
    @pytest.fixture
    async def backend(self, redis_server: Server) -> AsyncIterator[CacheBackend]:
        """Give a backend that compresses everything, over a real server."""
        backend = CompressedBackend(RedisBackend(redis_server.url), "zstd", min_size=0)
        yield backend
        await backend.close()


class TestFlakyRedis(RedisContract):
    @pytest.fixture
    async def backend(self, redis_server: Server) -> AsyncIterator[CacheBackend]:
        """Give a backend that could fail but does not, over a real server."""
        backend = FlakyBackend(RedisBackend(redis_server.url))
        yield backend
        await backend.close()


@pytest.mark.anyio
@pytest.mark.parametrize("value", [1, None, ["a"], bytearray(b"a"), b"a"])
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(MemoryBackend, id="memory"),
        pytest.param(CompressedMemoryBackend, id="compressed"),
        pytest.param(lambda: MetricsBackend(CustomBackend("text"), NoMetrics()), id="metrics"),
        pytest.param(lambda: BackendRouter({"data": CustomBackend("text")}), id="router"),
    ],
)
async def test_no_text(make: Callable[[], CacheBackend], value: Any) -> None:
    """A value given to `set` that is no text is refused, and what keeps bytes is named."""
    with pytest.raises(TypeError, match=f"value must be str, not {type(value).__name__}: set_bytes keeps bytes"):
        await make().set("key", value, 60)

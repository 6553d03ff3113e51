"""Compressed values are smaller, come back as they were, and cannot hurt when they are damaged."""

from __future__ import annotations

import gzip
import sys
import tracemalloc
from base64 import b64encode
from typing import TYPE_CHECKING, Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from app_cache.backends.base import (
    VERBS,
    BytesBackend,
    CacheBackend,
    CombinedBackend,
    ScriptBackend,
    WatchedBackend,
    capability,
)
from app_cache.backends.compressed import MARK, CompressedBackend, CompressedMemoryBackend
from app_cache.backends.memory import MemoryBackend
from app_cache.backends.watchers import Watchers
from app_cache.backends.wrapper import ALL_VERBS
from app_cache.errors import ConfigurationError
from app_cache.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from app_cache.backends.compressed import Algorithm

pytestmark = pytest.mark.anyio

ALGORITHMS: list[Algorithm] = ["gzip", "zstd"]
LONG = "a value that says it again. " * 200


class TextBackend(CacheBackend):
    """Four verbs over a dictionary, and no more."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.timeouts: list[object] = []

    async def get(self, key: str) -> str | None:
        return self.values.get(key)

    async def set(self, key: str, value: str, timeout: int) -> None:
        self.values[key] = value
        self.timeouts.append(timeout)

    async def delete(self, key: str) -> None:
        self.values.pop(key, None)

    async def close(self) -> None:
        self.values.clear()


class WatchedTextBackend(TextBackend):
    """Four verbs, and tells who asks of what is set and deleted."""

    def __init__(self) -> None:
        super().__init__()
        self.watchers = Watchers()

    async def set(self, key: str, value: str, timeout: int) -> None:
        self.watchers.tell(key)
        await super().set(key, value, timeout)

    async def delete(self, key: str) -> None:
        self.watchers.tell(key)
        await super().delete(key)

    def watch(self, told: Callable[[str], None]) -> Callable[[], object]:
        return self.watchers.add(told)


class ServerBackend(MemoryBackend):
    """Has the capabilities of a server over memory; its only script keeps an argument under a key."""

    def __init__(self) -> None:
        super().__init__()
        self.watchers = Watchers()

    async def set(self, key: str, value: str, timeout: float | None = None) -> None:
        self.watchers.tell(key)
        await super().set(key, value, timeout)

    async def delete(self, key: str) -> None:
        self.watchers.tell(key)
        await super().delete(key)

    async def get_bytes(self, key: str) -> bytes | None:
        return await super().get_bytes(key)

    async def set_bytes(self, key: str, value: bytes, timeout: float | None = None) -> None:
        await super().set_bytes(key, value, timeout)

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        return [await self.get_bytes(key) for key in keys]

    async def run_script(self, script: str, keys: Sequence[str], args: Sequence[str | int]) -> Any:
        await self.set_bytes(keys[0], str(args[0]).encode(), 60)

    async def get_beside(self, key: str, others: Sequence[str]) -> tuple[bytes | None, list[bytes | None]]:
        return await self.get_bytes(key), await self.get_many(others)

    async def set_and_run(
        self,
        key: str,
        value: bytes,
        timeout: float,
        script: str,
        keys: Sequence[str],
        args: Sequence[str | int],
    ) -> None:
        await self.run_script(script, keys, args)
        await self.set_bytes(key, value, timeout)

    def watch(self, told: Callable[[str], None]) -> Callable[[], object]:
        return self.watchers.add(told)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("inner", [MemoryBackend, TextBackend])
async def test_smaller(inner: Callable[[], CacheBackend], algorithm: Algorithm) -> None:
    """A long text is kept in less than a tenth of its size and comes back."""
    kept_in = inner()
    backend = CompressedBackend(kept_in, algorithm)
    await backend.set("key", LONG, 60)
    assert await kept_size(kept_in) < len(LONG) / 10
    assert await backend.get("key") == LONG


@pytest.mark.parametrize(
    ("value", "min_size"),
    [
        pytest.param(LONG, len(LONG) + 1, id="below min_size"),
        pytest.param("".join(map(chr, range(33, 100))), 0, id="not smaller"),
        pytest.param("", 0, id="empty"),
    ],
)
@pytest.mark.parametrize("inner", [MemoryBackend, TextBackend])
async def test_left_as_it_is(inner: Callable[[], CacheBackend], value: str, min_size: int) -> None:
    """A value that is small, or would not become smaller, is kept as it is."""
    kept_in = inner()
    backend = CompressedBackend(kept_in, min_size=min_size)
    await backend.set("key", value, 60)
    assert await kept_in.get("key") == value


async def test_min_size_counts_bytes() -> None:
    """A value of min_size bytes is compressed, and one with a byte less is not."""
    backend = CompressedBackend(TextBackend(), min_size=200)
    assert backend._packing.packed_text("ü" * 100).startswith(MARK.decode())
    assert backend._packing.packed_text("ü" * 99 + "u") == "ü" * 99 + "u"


@pytest.mark.parametrize("inner", [MemoryBackend, TextBackend])
async def test_old_values(inner: Callable[[], CacheBackend]) -> None:
    """What was set before the backend was wrapped is readable."""
    kept_in = inner()
    await kept_in.set("key", LONG, 60)
    assert await CompressedBackend(kept_in).get("key") == LONG


@pytest.mark.parametrize("inner", [MemoryBackend, TextBackend])
async def test_other_algorithm(inner: Callable[[], CacheBackend]) -> None:
    """What one algorithm made small is readable when the other is set."""
    kept_in = inner()
    for writes, reads in (("gzip", "zstd"), ("zstd", "gzip")):
        await CompressedBackend(kept_in, writes).set("key", LONG, 60)  # type: ignore[arg-type]
        assert await CompressedBackend(kept_in, reads).get("key") == LONG  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [MARK, MARK + b"g", MARK + b"g" + bytes(10), MARK * 500])
@pytest.mark.parametrize("inner", [MemoryBackend, TextBackend])
async def test_begins_with_the_mark(inner: Callable[[], CacheBackend], value: bytes) -> None:
    """A value that happens to begin as compressed ones do comes back as it was."""
    backend = CompressedBackend(inner())
    await backend.set("key", value.decode(), 60)
    assert await backend.get("key") == value.decode()


@given(value=st.text(max_size=50) | st.text("ab", min_size=50) | st.text().map(MARK.decode().__add__))
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_round_trip(value: str, algorithm: Algorithm) -> None:
    """Any text and its bytes come back as they were, whether kept as text or as bytes."""
    packing = CompressedBackend(TextBackend(), algorithm, min_size=0)._packing
    assert packing.unpacked_text(packing.packed_text(value)) == value
    assert packing.unpacked(packing.packed(value.encode())) == value.encode()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_truncated(algorithm: Algorithm) -> None:
    """A compressed value that lost its end is absent, wherever it was cut."""
    kept_in = MemoryBackend()
    backend = CompressedBackend(kept_in, algorithm)
    await backend.set("key", LONG, 60)
    kept = await kept_in.get_bytes("key") or b""
    for length in range(len(MARK), len(kept)):
        await kept_in.set_bytes("key", kept[:length], 60)
        assert await backend.get("key") is None


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_one_bit_off(algorithm: Algorithm) -> None:
    """A compressed value with a bit that changed is absent, or all the same what it was."""
    kept_in = MemoryBackend()
    backend = CompressedBackend(kept_in, algorithm)
    await backend.set("key", LONG, 60)
    kept = await kept_in.get_bytes("key") or b""
    for bit in range(8 * (len(MARK) + 1), 8 * len(kept)):
        damaged = bytearray(kept)
        damaged[bit // 8] ^= 1 << bit % 8
        await kept_in.set_bytes("key", bytes(damaged), 60)
        assert await backend.get("key") in {None, LONG}


@pytest.mark.parametrize(
    "kept",
    [
        pytest.param("=cz1=", id="no letter"),
        pytest.param("=cz1=?aGk=", id="unknown letter"),
        pytest.param("=cz1=g", id="nothing"),
        pytest.param("=cz1=gaGk=", id="not gzip"),
        pytest.param("=cz1=zaGk=", id="not zstd"),
        pytest.param("=cz1=gé", id="not ASCII"),
        pytest.param(f"=cz1=g{b64encode(gzip.compress(b'a')).decode()}!", id="not base64 alone"),
        pytest.param("=cz1=é", id="letter not in ASCII"),
        pytest.param(f"=cz1=g{b64encode(gzip.compress(bytes([255]))).decode()}", id="no text"),
        pytest.param(f"=cz1=g{b64encode(gzip.compress(b'a') + b'b').decode()}", id="more than gzip"),
        pytest.param(f"=cz1=z{b64encode(zstandard.compress(b'a') + b'b').decode()}", id="more than zstd"),
    ],
)
async def test_garbage(kept: str) -> None:
    """What begins as a compressed value does, but is none, is absent."""
    kept_in = TextBackend()
    await kept_in.set("key", kept, 60)
    assert await CompressedBackend(kept_in).get("key") is None


def zstd_hiding_its_size(value: bytes) -> bytes:
    """Return a frame of zstd that does not say how large *value* is."""
    return zstandard.ZstdCompressor(write_content_size=False).compress(value)


def zstd_claiming_more(value: bytes) -> bytes:
    """Return a frame of zstd that says it were a thousand times as large as *value*, and holds nothing."""
    head, window, empty_last_block = b"\x28\xb5\x2f\xfd\xc0", b"\x00", b"\x01\x00\x00"
    return head + window + (1000 * len(value)).to_bytes(8, "little") + empty_last_block


@pytest.mark.parametrize(
    ("letter", "packed"),
    [
        pytest.param(b"g", gzip.compress, id="gzip"),
        pytest.param(b"z", zstandard.compress, id="zstd"),
        pytest.param(b"z", zstd_hiding_its_size, id="zstd that hides its size"),
        pytest.param(b"z", zstd_claiming_more, id="zstd that claims more than it holds"),
    ],
)
@pytest.mark.parametrize("size", [10_001, 5_000_000])
async def test_bomb(letter: bytes, packed: Callable[[bytes], bytes], size: int) -> None:
    """A value that would become larger than max_decompressed is absent, and no room is made for it (S24)."""
    kept_in = MemoryBackend()
    await kept_in.set_bytes("key", MARK + letter + packed(bytes(size)), 60)
    backend = CompressedBackend(kept_in, max_decompressed=10_000)
    tracemalloc.start()
    try:
        assert await backend.get("key") is None
        assert tracemalloc.get_traced_memory()[1] < 500_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("size", [10_000, 10_001])
async def test_around_the_bound(algorithm: Algorithm, size: int) -> None:
    """A value of max_decompressed bytes is compressed, a larger one is kept as it is, and both come back."""
    kept_in = MemoryBackend()
    backend = CompressedBackend(kept_in, algorithm, max_decompressed=10_000)
    await backend.set("key", "a" * size, 60)
    assert await backend.get("key") == "a" * size
    assert (await kept_size(kept_in) == size) is (size > 10_000)


async def test_combined() -> None:
    """Of what is read or set together, the key's own value is compressed and the rest left alone."""
    kept_in = ServerBackend()
    backend = CompressedBackend(kept_in)
    able = capability(backend, CombinedBackend)
    assert able is not None
    await able.set_and_run("key", LONG.encode(), 60, "script", ["other"], [MARK.decode()])
    assert await kept_size(kept_in) < len(LONG) / 10
    assert await able.get_beside("key", ["other"]) == (LONG.encode(), [MARK])


async def test_get_many() -> None:
    """Values that are read together are each as they were set."""
    backend = CompressedBackend(ServerBackend())
    await backend.set("long", LONG, 60)
    await backend.set("short", "short", 60)
    able = capability(backend, ScriptBackend)
    assert able is not None
    assert await able.get_many(["long", "none", "short"]) == [LONG.encode(), None, b"short"]


@pytest.mark.parametrize("inner", [ServerBackend, WatchedTextBackend])
async def test_watch(inner: Callable[[], CacheBackend]) -> None:
    """Until the end, who watches is told once of what is set or deleted through the wrapper, or is set within."""
    kept_in = inner()
    backend = CompressedBackend(kept_in)
    told: list[str] = []
    able = capability(backend, WatchedBackend)
    assert able is not None
    end = able.watch(told.append)
    await backend.set("set", "value", 60)
    await backend.delete("deleted")
    await kept_in.set("within", "value", 60)
    end()
    await backend.set("later", "value", 60)
    await kept_in.set("later within", "value", 60)
    assert told == ["set", "deleted", "within"]


@pytest.mark.parametrize("inner", [MemoryBackend, TextBackend, ServerBackend])
def test_offers_what_the_inner_has(inner: Callable[[], CacheBackend]) -> None:
    """The wrapper has the verbs of the backend within, but for those that go past it, and no others."""
    kept_in = inner()
    backend = CompressedBackend(kept_in)
    verbs = {verb for verbs in VERBS.values() for verb in verbs}
    assert {verb for verb in verbs if hasattr(backend, verb)} == {v for v in ALL_VERBS if hasattr(kept_in, v)}


def test_overridden_text_verb() -> None:
    """A subclass that overrides get alone is asked through text."""

    class Mine(CompressedMemoryBackend):
        async def get(self, key: str) -> str | None:
            return "mine"

    assert capability(Mine(), BytesBackend) is None


def test_zstd_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where zstd is not installed, asking for it fails and says what to install; its values are absent."""
    kept = zstandard.compress(b"value")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'app-cache\[zstd\]'"):
        CompressedBackend(MemoryBackend(), "zstd")
    assert CompressedBackend(MemoryBackend())._packing.unpacked(MARK + b"z" + kept) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"algorithm": "brotli"}, "algorithm must be 'gzip' or 'zstd', not 'brotli'"),
        ({"min_size": -1}, "min_size must be a whole number of at least 0, not -1"),
        ({"min_size": True}, "min_size must be a whole number of at least 0, not True"),
        ({"max_decompressed": 0}, "max_decompressed must be a whole number of at least 1, not 0"),
        ({"max_decompressed": 1.5}, "max_decompressed must be a whole number of at least 1, not 1.5"),
    ],
)
def test_wrong_option(options: dict[str, Any], message: str) -> None:
    """A wrong option is refused, with its name, its value, and what is right."""
    with pytest.raises(ConfigurationError, match=message):
        CompressedMemoryBackend(**options)


async def test_memory_options() -> None:
    """The compressed memory takes the options of memory and counts bytes as they are kept."""
    clock = FakeClock()
    backend = CompressedMemoryBackend(10, 60, 5, 20_000, 2_000, clock=clock)
    await backend.set("key", "a" * 100_000)
    assert await backend.get("key") == "a" * 100_000
    clock.advance(5)
    assert await backend.get("key") is None


async def test_timeouts_of_a_text_backend() -> None:
    """A backend of four verbs has whole seconds as int, and its own default for None."""
    kept_in = TextBackend()
    backend = CompressedBackend(kept_in)
    await backend.set("key", "value", 5.0)
    await backend.set("key", "value", None)
    kept_in.default_timeout = 7  # type: ignore[attr-defined]
    await backend.set("key", "value", None)
    assert [(timeout, type(timeout)) for timeout in kept_in.timeouts] == [(5, int), (3600, int), (7, int)]


async def kept_size(backend: CacheBackend) -> int:
    """Return the length of what *backend* holds under ``key``."""
    in_bytes = capability(backend, BytesBackend)
    value = await backend.get("key") if in_bytes is None else await in_bytes.get_bytes("key")
    assert value is not None
    return len(value)

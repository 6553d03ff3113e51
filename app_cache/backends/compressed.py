"""Values made smaller on their way into any backend.

A value that is kept compressed begins with a mark and a letter for the method; whatever does not begin with the
mark is a value as it was given, so that values from before stay readable. Nothing is decompressed beyond a bound.
Compression runs in the thread of the event loop, at a fast level: about a millisecond for 100 KB.
"""

from __future__ import annotations

import time
import zlib
from base64 import b64decode, b64encode
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from app_cache.backends.memory import MemoryBackend
from app_cache.backends.text import as_bytes, as_text, no_text
from app_cache.backends.watchers import Watchers
from app_cache.backends.wrapper import Offered, Wrapper, seconds_for
from app_cache.errors import BackendError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from app_cache.backends.base import (
        BytesBackend,
        CacheBackend,
        CombinedBackend,
        ScriptBackend,
        WatchedBackend,
    )

Algorithm = Literal["gzip", "zstd"]

MARK: Final = b"=cz1="
"""The first bytes of a value that is not kept as it was given."""
MIN_SIZE: Final = 1024
MAX_DECOMPRESSED: Final = 64 * 1024 * 1024
GZIP_LEVEL: Final = 1
ZSTD_LEVEL: Final = 3
GZIP_FRAME: Final = 31
"""What tells zlib to write and to expect the frame of gzip."""


class CompressedBackend(Wrapper):
    """Keeps values compressed in *backend*, as bytes where it can, else as base64.

    A value stays as it is when it has fewer than *min_size* bytes, more than *max_decompressed*, or would not
    become smaller. What cannot be decompressed, or only to more than *max_decompressed* bytes, reads as absent.
    Values of both algorithms are readable whichever is set, as long as the extra ``zstd`` is installed.

    Args:
        backend: The backend to wrap; closed with this one.
        algorithm: ``"gzip"``, or ``"zstd"``, which is faster and smaller, and needs ``app-cache[zstd]``.
        min_size: The least number of bytes that is worth compressing.
        max_decompressed: The greatest number of bytes that a value is decompressed to.

    Raises:
        ConfigurationError: If *backend* is not a backend, an option is not one of these, or the extra is missing.
    """

    def __init__(
        self,
        backend: CacheBackend,
        algorithm: Algorithm = "gzip",
        min_size: int = MIN_SIZE,
        max_decompressed: int = MAX_DECOMPRESSED,
    ) -> None:
        super().__init__(backend)
        self.algorithm = algorithm
        self._packing = _Packing(
            _method_of(algorithm),
            _checked_int("min_size", min_size, least=0),
            _checked_int("max_decompressed", max_decompressed, least=1),
        )
        self._watchers = Watchers()

    async def get(self, key: str) -> str | None:
        """Return the value kept under *key*, or None; what cannot be decompressed is absent.

        Raises:
            BackendError: If the value was set as bytes and is no text.
        """
        if "get_bytes" not in self._verbs:
            kept = await self.backend.get(key)
            return None if kept is None else self._packing.unpacked_text(kept)
        value = await self._get_bytes(key)
        return None if value is None else as_text(value)

    async def set(self, key: str, value: str, timeout: float | None = None) -> None:
        """Keep *value* under *key* for *timeout* seconds; None: the default of the backend within, or an hour.

        Raises:
            TypeError: If *value* is not str.
            ValueError: If *timeout* is not positive, or a bool.
        """
        if not isinstance(value, str):
            raise no_text(value)
        if "set_bytes" not in self._verbs:
            await super().set(key, self._packing.packed_text(value), timeout)
            return
        self._watchers.tell(key)
        await self._set_bytes(key, as_bytes(value), timeout)

    @Offered
    async def get_bytes(self, key: str) -> bytes | None:
        """Return the bytes kept under *key*, or None; what cannot be decompressed is absent."""
        return await self._get_bytes(key)

    @Offered
    async def set_bytes(self, key: str, value: bytes, timeout: float | None = None) -> None:
        """Keep *value* under *key* for *timeout* seconds.

        Raises:
            ValueError: If *timeout* is not positive, or a bool.
        """
        await self._set_bytes(key, value, timeout)

    @Offered
    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the bytes under each of *keys*; what cannot be decompressed is absent."""
        kept = await cast("ScriptBackend", self.backend).get_many(keys)
        return [None if value is None else self._packing.unpacked(value) for value in kept]

    @Offered
    async def get_beside(self, key: str, others: Sequence[str]) -> tuple[bytes | None, list[bytes | None]]:
        """Return the bytes under *key*, decompressed, and those under each of *others* as they are."""
        kept, beside = await cast("CombinedBackend", self.backend).get_beside(key, others)
        return None if kept is None else self._packing.unpacked(kept), beside

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
        """Run *script*, then keep *value*, compressed, under *key* for *timeout* seconds."""
        packed = self._packing.packed(value)
        await cast("CombinedBackend", self.backend).set_and_run(key, packed, timeout, script, keys, args)

    @Offered
    def watch(self, told: Callable[[str], None]) -> Callable[[], object]:
        """Call *told* with the key at each later `set` and `delete`, here or directly in the backend within.

        Returns a function that ends this.
        """
        end_within = cast("WatchedBackend", self.backend).watch(told)
        end_here = self._watchers.add(told)

        def end() -> None:
            end_here()
            end_within()

        return end

    async def _get_bytes(self, key: str) -> bytes | None:
        kept = await cast("BytesBackend", self.backend).get_bytes(key)
        return None if kept is None else self._packing.unpacked(kept)

    async def _set_bytes(self, key: str, value: bytes, timeout: float | None) -> None:
        seconds = seconds_for(self.backend, timeout)
        await cast("BytesBackend", self.backend).set_bytes(key, self._packing.packed(value), seconds)


class CompressedMemoryBackend(CompressedBackend):
    """Keeps values compressed in this process: a `CompressedBackend` over a `MemoryBackend`.

    The options are those of the two; the bounds count bytes as they are kept, compressed.

    Raises:
        ConfigurationError: As the two do.
    """

    def __init__(
        self,
        max_size: int = 1000,
        cleanup_interval: float = 300,
        default_timeout: float = 3600,
        max_bytes: int = 64 * 1024 * 1024,
        max_entry_bytes: int | None = None,
        *,
        algorithm: Algorithm = "gzip",
        min_size: int = MIN_SIZE,
        max_decompressed: int = MAX_DECOMPRESSED,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        memory = MemoryBackend(
            max_size, cleanup_interval, default_timeout, max_bytes, max_entry_bytes, clock=clock
        )
        super().__init__(memory, algorithm, min_size, max_decompressed)


@dataclass(frozen=True, slots=True)
class _Method:
    """One way to make bytes smaller and to get them back."""

    letter: bytes
    compressed: Callable[[bytes], bytes]
    decompressed: Callable[[bytes, int], bytes | None]
    """Called with compressed bytes and a bound: returns the value, or None if they are damaged or it is larger."""


@dataclass(frozen=True, slots=True)
class _Packing:
    """How values are kept: by *method* if they have from *min_size* to *max_size* bytes and become smaller."""

    method: _Method
    min_size: int
    max_size: int

    def packed(self, value: bytes, armour: Callable[[bytes], bytes] = bytes) -> bytes:
        """Return *value* as it is kept; what follows a mark is encoded by *armour*."""
        if self.min_size <= len(value) <= self.max_size:
            smaller = MARK + self.method.letter + armour(self.method.compressed(value))
            if len(smaller) < len(value):
                return smaller
        return MARK + PLAIN.letter + armour(value) if value.startswith(MARK) else value

    def unpacked(self, kept: bytes) -> bytes | None:
        """Return the value that is kept as *kept*, or None if that is damaged or too large."""
        if not kept.startswith(MARK):
            return kept
        method = METHODS.get(kept[len(MARK) : len(MARK) + 1])
        return None if method is None else method.decompressed(kept[len(MARK) + 1 :], self.max_size)

    def packed_text(self, value: str) -> str:
        """Return *value* as it is kept where only text can be."""
        plain = as_bytes(value)
        packed = self.packed(plain, b64encode)
        return value if packed is plain else packed.decode("ascii")

    def unpacked_text(self, kept: str) -> str | None:
        """Return the value that is kept as the text *kept*, or None if that is damaged or too large."""
        if not kept.startswith(MARK.decode("ascii")):
            return kept
        head = len(MARK) + 1
        try:
            value = self.unpacked(kept[:head].encode("ascii") + b64decode(kept[head:], validate=True))
            return None if value is None else as_text(value)
        except (ValueError, BackendError):
            return None


def _gzipped(value: bytes) -> bytes:
    return zlib.compress(value, GZIP_LEVEL, GZIP_FRAME)


def _gunzipped(kept: bytes, at_most: int) -> bytes | None:
    stream = zlib.decompressobj(GZIP_FRAME)
    try:
        value = stream.decompress(kept, at_most + 1)
    except zlib.error:
        return None
    whole = stream.eof and not stream.unused_data
    return value if whole and len(value) <= at_most else None


def _zstd_compressed(value: bytes) -> bytes:
    compressor = _zstandard().ZstdCompressor(level=ZSTD_LEVEL, write_checksum=True)
    return cast("bytes", compressor.compress(value))


def _zstd_decompressed(kept: bytes, at_most: int) -> bytes | None:
    try:
        zstandard = _zstandard()
    except ImportError:
        return None
    try:
        # The size that the frame states is allocated before anything is read, so it is checked first; -1: none.
        if not 0 <= zstandard.frame_content_size(kept) <= at_most:
            return None
        return cast("bytes", zstandard.ZstdDecompressor().decompress(kept, allow_extra_data=False))
    except zstandard.ZstdError:
        return None


def _unchanged(kept: bytes, at_most: int) -> bytes:
    del at_most
    return kept


def _zstandard() -> Any:
    import zstandard

    return zstandard


PLAIN: Final = _Method(b"p", bytes, _unchanged)
"""For a value that happens to begin with the mark."""
GZIP: Final = _Method(b"g", _gzipped, _gunzipped)
ZSTD: Final = _Method(b"z", _zstd_compressed, _zstd_decompressed)
METHODS: Final = {method.letter: method for method in (PLAIN, GZIP, ZSTD)}


def _method_of(algorithm: object) -> _Method:
    if algorithm == "gzip":
        return GZIP
    if algorithm != "zstd":
        raise ConfigurationError(f"algorithm must be 'gzip' or 'zstd', not {algorithm!r}")
    try:
        _zstandard()
    except ImportError as error:
        raise ConfigurationError("algorithm 'zstd' needs an extra: pip install 'app-cache[zstd]'") from error
    return ZSTD


def _checked_int(option: str, value: object, *, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigurationError(f"{option} must be a whole number of at least {least}, not {value!r}")
    return value

"""Bytes under keys, over a backend that holds bytes or text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from app_cache.backends.base import BytesBackend, capability, given_text
from app_cache.codec import from_text, to_text

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from app_cache.backends.base import CacheBackend


class Shelf(Protocol):
    """How the bytes of entries get into a backend and out of it."""

    def read(self, key: str) -> Coroutine[Any, Any, bytes | None]:
        """Return the bytes under *key*, or None."""
        ...

    def write(self, key: str, value: bytes, timeout: float) -> Coroutine[Any, Any, None]:
        """Keep *value* under *key* for *timeout* seconds."""
        ...


def shelf_of(backend: CacheBackend) -> Shelf:
    """Return what keeps bytes in *backend*: as they are where it can, else as text."""
    in_bytes = capability(backend, BytesBackend)
    return _TextShelf(backend) if in_bytes is None else _BytesShelf(in_bytes)


class _BytesShelf:
    def __init__(self, backend: BytesBackend) -> None:
        self._backend = backend

    def read(self, key: str) -> Coroutine[Any, Any, bytes | None]:
        return self._backend.get_bytes(key)

    def write(self, key: str, value: bytes, timeout: float) -> Coroutine[Any, Any, None]:
        return self._backend.set_bytes(key, value, timeout)


class _TextShelf:
    def __init__(self, backend: CacheBackend) -> None:
        self._backend = backend

    async def read(self, key: str) -> bytes | None:
        text = given_text(await self._backend.get(key))
        return None if text is None else from_text(text)

    async def write(self, key: str, value: bytes, timeout: float) -> None:
        await self._backend.set(key, to_text(value), max(1, int(timeout)))

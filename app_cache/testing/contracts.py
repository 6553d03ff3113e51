"""What a backend must keep to, as tests.

They are coroutines, run by the plugin of anyio, which comes with FastAPI. Imported from `app_cache.testing`, they
have their failures explained by pytest.
"""
# ruff: noqa: S101 - these are tests

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar
from uuid import uuid4

import pytest

from app_cache.backends.base import (
    BytesBackend,
    CacheBackend,
    CombinedBackend,
    LocalBackend,
    PatternBackend,
    PingBackend,
    ScriptBackend,
    SizedBackend,
    WatchedBackend,
    capability,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from typing_extensions import TypeForm

T = TypeVar("T")

TEXTS = [
    pytest.param("", id="empty"),
    pytest.param("plain", id="plain"),
    pytest.param("Grüße, 世界 🎈", id="unicode"),
    pytest.param("a\x00b\r\nc\u2028", id="control characters"),
    pytest.param("0", id="digits"),
    pytest.param('{"a": null}', id="json"),
    pytest.param("0123456789" * 100_000, id="a megabyte"),
]
BLOBS = [
    pytest.param(b"", id="empty"),
    pytest.param(bytes(range(256)), id="every byte"),
    pytest.param(b"\xff\xfe" * 50_000, id="large"),
]
KEYS = [
    pytest.param("Grüße 世界", id="unicode"),
    pytest.param("a b\r\nc", id="blanks"),
    pytest.param("*?[a]\\{x}", id="glob characters"),
    pytest.param("k" * 2_000, id="long"),
]
GLOBS = [
    pytest.param("*", ["", "a", "a/b:c"], [], id="star, slashes and nothing included"),
    pytest.param("a*c", ["ac", "abc", "a/b/c"], ["ab", "abcd"], id="star between"),
    pytest.param("a?c", ["abc", "a*c"], ["ac", "abbc"], id="question mark"),
    pytest.param("[ab]", ["a", "b"], ["c", "ab"], id="class"),
    pytest.param("[^a]", ["b", "^"], ["a"], id="class negated"),
    pytest.param("[a-c]x", ["ax", "cx"], ["dx", "-x"], id="range"),
    pytest.param(r"a\*", ["a*"], ["ab", r"a\*"], id="escaped star"),
    pytest.param(r"[\]]", ["]"], ["\\"], id="escape in a class"),
    pytest.param("a.b", ["a.b"], ["axb"], id="a dot is a dot"),
    pytest.param("{a,b}", ["{a,b}"], ["a"], id="braces are braces"),
]


@pytest.mark.anyio
class BackendContract:
    """The contract of every backend, as tests: subclass it, name your backend, and let pytest collect it.

    Name beside it the contracts of what more the backend can do: `TimeoutContract` where `set` refuses wrong
    timeouts, `BytesContract`, `PatternContract`, `PingContract`, `SizeContract` …

    ```python
    class TestMyBackend(BackendContract, TimeoutContract, PatternContract):
        def make_backend(self) -> CacheBackend:
            return MyBackend()
    ```

    A backend that needs fixtures of yours is given by overriding the fixture `backend` instead.
    """

    def make_backend(self) -> CacheBackend:
        """Return a new backend of the kind that is tested."""
        raise NotImplementedError("override make_backend, or the fixture backend")

    async def advance(self, seconds: float) -> None:
        """Let *seconds* pass for the backend; override it where its clock can be moved."""
        await asyncio.sleep(seconds)

    @pytest.fixture
    def anyio_backend(self) -> str:
        """Run the tests on asyncio."""
        return "asyncio"

    @pytest.fixture
    async def backend(self) -> AsyncIterator[CacheBackend]:
        """Give the backend that is tested, and close it."""
        backend = self.make_backend()
        yield backend
        await backend.close()

    async def test_absent(self, backend: CacheBackend) -> None:
        """A key that was never set has no value."""
        assert await backend.get(new_key()) is None

    @pytest.mark.parametrize("value", TEXTS)
    async def test_text(self, backend: CacheBackend, value: str) -> None:
        """A text comes back as it was set, and an empty one is a value."""
        key = new_key()
        await backend.set(key, value, 60)
        assert await backend.get(key) == value

    @pytest.mark.parametrize("name", KEYS)
    async def test_keys(self, backend: CacheBackend, name: str) -> None:
        """A key may have any characters and is told from all others: by each of them, by case, by its end."""
        key = new_key() + name
        await backend.set(key, "value", 60)
        for other in (key[:-1], f"{key[:-1]}x", f"{key}x", f"{key} ", key.upper()):
            await backend.set(other, "other", 60)
        assert await backend.get(key) == "value"

    async def test_replaces(self, backend: CacheBackend) -> None:
        """A value takes the place of the one that was set before."""
        key = new_key()
        await backend.set(key, "long" * 1000, 60)
        await backend.set(key, "short", 60)
        assert await backend.get(key) == "short"

    async def test_delete(self, backend: CacheBackend) -> None:
        """A deleted key has no value, and no other key is touched."""
        key, other = new_key(), new_key()
        await backend.set(key, "value", 60)
        await backend.set(other, "value", 60)
        await backend.delete(key)
        assert (await backend.get(key), await backend.get(other)) == (None, "value")

    async def test_delete_absent(self, backend: CacheBackend) -> None:
        """Deleting a key that is absent is no error."""
        await backend.delete(new_key())

    async def test_expires(self, backend: CacheBackend) -> None:
        """A value is there until its time is over, and not after; one that replaced another has its own time."""
        key, renewed = new_key(), new_key()
        await backend.set(renewed, "old", 1)
        await backend.set(renewed, "new", 60)
        await backend.set(key, "value", 1)
        assert await backend.get(key) == "value"
        await self.advance(1)
        await absent(lambda: backend.get(key))
        assert await backend.get(renewed) == "new"

    async def test_many_at_once(self, backend: CacheBackend) -> None:
        """Tasks that use the backend at the same time each get their own values."""
        keys = [new_key() for _ in range(100)]
        await asyncio.gather(*(backend.set(key, key, 60) for key in keys))
        assert await asyncio.gather(*(backend.get(key) for key in keys)) == keys

    async def test_one_key_at_once(self, backend: CacheBackend) -> None:
        """Of values set to one key at the same time, one is there as a whole."""
        key = new_key()
        values = [str(digit) * 5_000 for digit in range(10)]
        await asyncio.gather(*(backend.set(key, value, 60) for value in values))
        assert await backend.get(key) in values

    async def test_close_twice(self, backend: CacheBackend) -> None:
        """Closing it again is no error."""
        await backend.set(new_key(), "value", 60)
        await backend.close()
        await backend.close()

    async def test_close_unused(self, backend: CacheBackend) -> None:
        """Closing one that was never used is no error."""
        await backend.close()

    async def test_use_after_close(self, backend: CacheBackend) -> None:
        """Used after it was closed, it answers or raises, and does not hang."""
        await backend.close()
        for use in (backend.get("a"), backend.set("a", "value", 60), backend.delete("a")):
            async with asyncio.timeout(10):
                with suppress(Exception):
                    await use


@pytest.mark.anyio
class BytesContract:
    """The contract of a backend that keeps bytes."""

    @pytest.mark.parametrize("value", BLOBS)
    async def test_bytes(self, backend: CacheBackend, value: bytes) -> None:
        """Bytes come back as they were set, whatever they are."""
        able, key = having(backend, BytesBackend), new_key()
        await able.set_bytes(key, value, 60)
        assert await able.get_bytes(key) == value

    async def test_bytes_absent(self, backend: CacheBackend) -> None:
        """A key that was never set, or was deleted, has no bytes."""
        able, key = having(backend, BytesBackend), new_key()
        assert await able.get_bytes(key) is None
        await able.set_bytes(key, b"value", 60)
        await backend.delete(key)
        assert await able.get_bytes(key) is None

    @pytest.mark.parametrize("value", TEXTS)
    async def test_text_as_bytes(self, backend: CacheBackend, value: str) -> None:
        """What was set as text is read as bytes in UTF-8."""
        able, key = having(backend, BytesBackend), new_key()
        await backend.set(key, value, 60)
        assert await able.get_bytes(key) == value.encode()

    @pytest.mark.parametrize("value", TEXTS)
    async def test_bytes_as_text(self, backend: CacheBackend, value: str) -> None:
        """Bytes that are UTF-8 are read as that text."""
        able, key = having(backend, BytesBackend), new_key()
        await able.set_bytes(key, value.encode(), 60)
        assert await backend.get(key) == value

    async def test_bytes_expire(self, backend: CacheBackend) -> None:
        """Bytes are kept for fractions of a second."""
        able, key = having(backend, BytesBackend), new_key()
        await able.set_bytes(key, b"value", 0.5)
        assert await able.get_bytes(key) == b"value"
        await pass_time(self, 0.5)
        await absent(lambda: able.get_bytes(key))

    @pytest.mark.parametrize("timeout", [0, -0.5, True])
    async def test_bytes_wrong_timeout(self, backend: CacheBackend, timeout: float) -> None:
        """A timeout for bytes that is no positive number is refused."""
        able = having(backend, BytesBackend)
        with pytest.raises(ValueError, match="timeout"):
            await able.set_bytes(new_key(), b"value", timeout)


@pytest.mark.anyio
class PatternContract:
    """The contract of a backend that deletes keys by a glob."""

    @pytest.mark.parametrize(("glob", "matching", "others"), GLOBS)
    async def test_delete_pattern(
        self, backend: CacheBackend, glob: str, matching: list[str], others: list[str]
    ) -> None:
        """A glob deletes the keys that match it as a whole, no others, and says how many there were."""
        able, start = having(backend, PatternBackend), new_key()
        kept = [start + name for name in others] + [new_key()]
        for key in [start + name for name in matching] + kept:
            await backend.set(key, "value", 60)
        assert await able.delete_pattern(start + glob) == len(matching)
        assert [await backend.get(start + name) for name in matching] == [None] * len(matching)
        assert [await backend.get(key) for key in kept] == ["value"] * len(kept)

    async def test_delete_pattern_of_none(self, backend: CacheBackend) -> None:
        """A glob that no key matches deletes nothing and says so."""
        assert await having(backend, PatternBackend).delete_pattern(f"{new_key()}*") == 0


@pytest.mark.anyio
class PingContract:
    """The contract of a backend that can be asked whether it is there."""

    async def test_ping(self, backend: CacheBackend) -> None:
        """A backend that is there says so in time."""
        async with asyncio.timeout(10):
            await having(backend, PingBackend).ping()


@pytest.mark.anyio
class SizeContract:
    """The contract of a backend that knows how much it holds."""

    async def test_size(self, backend: CacheBackend) -> None:
        """The number of keys held counts what was set."""
        able = having(backend, SizedBackend)
        for _ in range(3):
            await backend.set(new_key(), "value", 60)
        assert await able.size() >= 3


@pytest.mark.anyio
class LocalContract:
    """The contract of a backend that lives in this process."""

    async def test_beside(self, backend: CacheBackend) -> None:
        """What is kept beside the values is made once for each name."""
        able = having(backend, LocalBackend)
        made = able.beside("name", object)
        assert able.beside("name", object) is made
        assert able.beside("another name", object) is not made


@pytest.mark.anyio
class ScriptContract:
    """The contract of a backend that runs scripts."""

    async def test_get_many(self, backend: CacheBackend) -> None:
        """Many keys are read in the order asked for, with None for what is absent."""
        able, key, other = having(backend, ScriptBackend), new_key(), new_key()
        await backend.set(key, "value", 60)
        await backend.set(other, "other", 60)
        assert await able.get_many([other, new_key(), key, other]) == [b"other", None, b"value", b"other"]

    async def test_run_script(self, backend: CacheBackend) -> None:
        """A script has its keys and arguments, and its answer comes back with strings as bytes."""
        able, key = having(backend, ScriptBackend), new_key()
        script = "redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2]) return {KEYS[1], 7}"
        assert await able.run_script(script, [key], ["value", 60]) == [key.encode(), 7]
        assert await backend.get(key) == "value"


@pytest.mark.anyio
class CombinedContract:
    """The contract of a backend that does two things in one round trip."""

    async def test_get_beside(self, backend: CacheBackend) -> None:
        """A value is read together with others, in the order asked for."""
        able, key, other = having(backend, CombinedBackend), new_key(), new_key()
        value = b"\x00\xff" * 5_000
        await having(backend, BytesBackend).set_bytes(key, value, 60)
        await backend.set(other, "other", 60)
        assert await able.get_beside(key, [new_key(), other]) == (value, [None, b"other"])
        assert await able.get_beside(new_key(), []) == (None, [])

    async def test_set_and_run(self, backend: CacheBackend) -> None:
        """A script runs and a value is set in one step."""
        able, key, other = having(backend, CombinedBackend), new_key(), new_key()
        value = b"\x00\xff" * 5_000
        script = "redis.call('SET', KEYS[1], ARGV[1], 'EX', 60)"
        await able.set_and_run(key, value, 60, script, [other], ["ran"])
        assert await able.get_beside(key, [other]) == (value, [b"ran"])


@pytest.mark.anyio
class WatchContract:
    """The contract of a backend that tells watchers of what is set and deleted directly."""

    async def test_watch(self, backend: CacheBackend) -> None:
        """A watcher is told the key of each value that is set or deleted."""
        told: list[str] = []
        having(backend, WatchedBackend).watch(told.append)
        first, second = new_key(), new_key()
        await backend.set(first, "value", 60)
        await backend.delete(second)
        assert told == [first, second]

    async def test_watch_that_has_ended(self, backend: CacheBackend) -> None:
        """A watcher whose watch was ended, once or twice, is told of nothing more; others still are."""
        told: list[str] = []
        others: list[str] = []
        able, key = having(backend, WatchedBackend), new_key()
        end = able.watch(told.append)
        able.watch(others.append)
        end()
        end()
        await backend.set(key, "value", 60)
        await backend.delete(key)
        assert (told, others) == ([], [key, key])

    async def test_watch_that_ends_meanwhile(self, backend: CacheBackend) -> None:
        """A watch that ends while it is told keeps nothing from others."""
        told: list[str] = []
        able, key = having(backend, WatchedBackend), new_key()

        def ends(key: str) -> None:
            del key
            end()

        end = able.watch(ends)
        able.watch(told.append)
        await backend.set(key, "value", 60)
        assert told == [key]


@pytest.mark.anyio
class TimeoutContract:
    """The contract of a backend that refuses wrong timeouts."""

    @pytest.mark.parametrize("timeout", [0, -1, True, False])
    async def test_wrong_timeout(self, backend: CacheBackend, timeout: int) -> None:
        """A timeout that is no positive number is refused."""
        key = new_key()
        with pytest.raises(ValueError, match="timeout"):
            await backend.set(key, "value", timeout)
        assert await backend.get(key) is None


def new_key() -> str:
    """Return a key that nobody else uses, without characters that mean something in a glob."""
    return f"contract:{uuid4().hex}:"


def having(backend: CacheBackend, kind: TypeForm[T]) -> T:
    """Return *backend* as a *kind*, which the test claims that it is."""
    able = capability(backend, kind)
    assert able is not None, f"{type(backend).__name__} is no {getattr(kind, '__name__', kind)}"
    return able


async def pass_time(contract: object, seconds: float) -> None:
    """Let *seconds* pass for the backend of *contract*, by its `advance` where it has one."""
    await getattr(contract, "advance", asyncio.sleep)(seconds)


async def absent(read: Callable[[], Awaitable[object]]) -> None:
    """Return when *read* gives None: at once, or within seconds where a server's clock decides.

    Raises:
        TimeoutError: If it does not within 5 s.
    """
    async with asyncio.timeout(5):
        while await read() is not None:  # noqa: ASYNC110 - no server tells when it forgets
            await asyncio.sleep(0.01)

"""What a client may send, as long and as often as it likes: memory is bounded, time is (S18, S19, S32)."""

from __future__ import annotations

import gc
import mmap
import random
import time
from pathlib import Path
from typing import Any

import pytest

from app_cache import CacheMiddleware, CachePolicy, MemoryBackend
from app_cache.clock.epochs import MAX_BANS
from app_cache.invalidation import InvalidationService
from app_cache.store import MAX_FIELD_SETS, MAX_VARIANTS
from tests.middleware.apps import scope_of
from tests.servers import LIBC

pytestmark = pytest.mark.anyio

MEBIBYTE = 1024 * 1024
KEPT_BYTES = MEBIBYTE
BODY = b"b" * 200
MOST_S = 0.5
"""Seconds of the processor for a request with fields of 64 KiB; what is slower than in proportion takes longer."""


def cached(vary: bytes | None = b"accept-language") -> tuple[CacheMiddleware, MemoryBackend]:
    """Return an application that is cached whatever it is asked, and its memory."""
    headers = [(b"content-length", b"%d" % len(BODY)), *([] if vary is None else [(b"vary", vary)])]

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": BODY})

    backend = MemoryBackend(max_size=10**9, max_bytes=KEPT_BYTES)
    return CacheMiddleware(answer, backend, default_policy=CachePolicy(timeout=60)), backend


async def ask(app: CacheMiddleware, query: bytes = b"", *fields: tuple[bytes, bytes], path: str = "/") -> int:
    """Return the status of an answer."""
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    await app(scope_of(path, query_string=query, headers=[(b"host", b"test"), *fields]), receive, send)
    return statuses[0]


async def test_random_queries() -> None:
    """After 20,000 random queries memory is within its bytes, the process as large as after 10,000 (S18)."""
    app, backend = cached(vary=None)
    chance = random.Random(18)
    held = []
    for _ in range(2):
        for _ in range(10_000):
            await ask(app, b"q=%x" % chance.getrandbits(128))
        held.append(resident())
    assert backend.bytes_held <= KEPT_BYTES
    assert held[1] - held[0] < MEBIBYTE


def resident() -> int:
    """Return the bytes of memory that this process holds."""
    gc.collect()
    if LIBC is not None:
        LIBC.malloc_trim(0)
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * mmap.PAGESIZE


async def test_many_languages() -> None:
    """Of 1,000 values of Accept-Language at most 32 variants of a URL are kept, and what they vary by (S19)."""
    app, backend = cached()
    for number in range(1_000):
        await ask(app, b"", (b"accept-language", b"x-%d" % number))
    assert await backend.size() == 32 + 1


LONG = 65_536
FLOODS = [
    pytest.param(b"&".join(b"%d=1" % number for number in range(9_000)), (), id="parameters"),
    pytest.param(b"a=1&" * (LONG // 4), (), id="one parameter again and again"),
    pytest.param(b"%" * LONG, (), id="percent signs"),
    pytest.param(b"", ((b"cache-control", b"x," * (LONG // 2)),), id="directives"),
    pytest.param(b"", ((b"cache-control", b'x="' * (LONG // 3)),), id="open quotes"),
    pytest.param(b"", ((b"cache-control", b"max-age=" + b"9" * LONG),), id="a long number"),
    pytest.param(b"", ((b"if-none-match", b'"a",' * (LONG // 4)),), id="entity tags"),
    pytest.param(b"", ((b"if-none-match", b'W/"' * (LONG // 3)),), id="open entity tags"),
    pytest.param(b"", ((b"if-modified-since", b"Thu, " * (LONG // 5)),), id="a long date"),
    pytest.param(b"", ((b"range", b"bytes=" + b"0-0," * (LONG // 4)),), id="ranges"),
    pytest.param(b"", ((b"accept-language", b"en;q=0.1, " * (LONG // 10)),), id="languages"),
    pytest.param(b"", ((b"cookie", b"a=b; " * (LONG // 5)),), id="cookies"),
    pytest.param(b"", ((b"x", b"y"),) * 10_000, id="fields"),
    pytest.param(b"", ((b"accept-language", b"a"),) * 10_000, id="lines of one field"),
]


@pytest.mark.alone
@pytest.mark.parametrize(("query", "fields"), FLOODS)
async def test_long_requests(query: bytes, fields: tuple[tuple[bytes, bytes], ...]) -> None:
    """A request that is as long as a server lets through is answered, in time in proportion to it (S32)."""
    app, _ = cached()
    await ask(app)
    for _ in range(2):
        began = time.process_time()
        assert await ask(app, query, *fields) in (200, 206, 304, 416)
        assert time.process_time() - began < MOST_S


@pytest.mark.alone
async def test_long_path_after_many_patterns() -> None:
    """A long path that is stored is looked up in no time, though it may match each of many patterns (S25)."""
    app, _ = cached()
    path = "/items" * (LONG // 6)
    await ask(app, path=path)
    for number in range(MAX_BANS):
        await InvalidationService(app.services().store()).by_pattern(f"*/items/{number}*")
    began = time.process_time()
    assert await ask(app, path=path) == 200
    assert time.process_time() - began < MOST_S


async def test_fields_to_vary_by() -> None:
    """Of a handler that varies by other fields each time few sets of them are looked up and kept (S19)."""
    backend = MemoryBackend()
    names = iter(range(100))

    async def restless(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"vary", b"x-%d" % next(names))]})
        await send({"type": "http.response.body", "body": BODY})

    app = CacheMiddleware(restless, backend, default_policy=CachePolicy(timeout=60))
    for number in range(100):
        await ask(app, b"", *((b"x-%d" % each, b"%d" % number) for each in range(100)))
    (varies,) = list(app._plain.store()._variants.values())  # type: ignore[union-attr]
    assert len(varies.fields) == MAX_FIELD_SETS
    assert await backend.size() <= MAX_VARIANTS + 1

"""Streams and bodies that are too large to keep, over HTTP (F19 to F21)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from app_cache import cache
from tests.failures.rig import request
from tests.failures.worker import MEBIBYTE, WITHIN_S
from tests.middleware.apps import messages_of, put_cache, scope_of
from tests.timing import Stopwatch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.failures.conftest import StartRig
    from tests.failures.rig import Worker

pytestmark = [pytest.mark.anyio, pytest.mark.alone]

HEAD_END = b"\r\n\r\n"
FIRST_WITHIN_S = 0.05
LEAVES_WITHIN_S = 1.0


class Reader:
    """Reads the answer to one request as it comes."""

    def __init__(self, worker: Worker, path: str) -> None:
        self._worker = worker
        self._path = path
        self.received = 0
        """Bytes of body, chunk lines included."""

    async def __aenter__(self) -> Self:
        self._stream, self._writer = await asyncio.open_connection(*self._worker.address, limit=MEBIBYTE)
        self._writer.write(request(self._path))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    async def first(self) -> bytes:
        """Return the first bytes of body."""
        async with asyncio.timeout(WITHIN_S):
            await self._stream.readuntil(HEAD_END)
            part = await self._stream.read(100)
        self.received += len(part)
        return part

    async def rest(self) -> int:
        """Return how many bytes there are when the connection has ended."""
        async with asyncio.timeout(WITHIN_S):
            while part := await self._stream.read(MEBIBYTE):
                self.received += len(part)
        return self.received


@pytest.mark.parametrize(
    ("path", "first"),
    [pytest.param("/large/1024", b"p", id="F19"), pytest.param("/events", b"data: 0\n\n", id="F20")],
)
async def test_first_bytes(
    start_rig: StartRig, figure: Callable[[str, float], None], path: str, first: bytes
) -> None:
    """The first bytes of a long answer are with the client at once, before there are more (F19, F20)."""
    (worker,) = start_rig(None).workers
    took: list[float] = []
    async with worker.client() as client:
        await client.gate(is_open=False)
        for turn in range(4):
            watch = Stopwatch(worker.pid)
            async with Reader(worker, f"{path}?turn={turn}") as reader:
                assert first in await reader.first()
                took.append(watch.seconds)
    figure("first bytes after", min(took))
    assert min(took) < FIRST_WITHIN_S


async def test_a_gibibyte(start_rig: StartRig) -> None:
    """Every byte of a body beyond ``max_body`` arrives, and nothing of it is kept (F19).

    Who waits goes on by himself when the limit passes, long before the leader has all of it.
    """
    (worker,) = start_rig(None).workers
    path, size = "/large/1024", 1024 * MEBIBYTE
    async with worker.client() as client:
        await client.gate(is_open=False)
        await client.get("/control/state")
        async with Reader(worker, path) as leader, Reader(worker, path) as waiting:
            assert b"p" in await leader.first()
            await client.until("asked", path, 2)
            await client.settled()
            await client.peak()
            before = await client.peak()
            await client.gate(is_open=True)
            async with asyncio.timeout(WITHIN_S / 2):  # before it is let go because the body is slow
                assert b"p" in await waiting.first()
            waiting._writer.transport.abort()
            assert size < await leader.rest() < size * 1.01
            assert await client.peak() - before < 8 * MEBIBYTE
        state = await client.state()
        assert (state["runs"], state["stats"].get("stored", 0)) == ({path: 2}, 0)


async def test_events(start_rig: StartRig, figure: Callable[[str, float], None]) -> None:
    """The first event is with the client before there is a second, and the handler sees its client leave (F20)."""
    (worker,) = start_rig(None).workers
    async with worker.client() as client:
        await client.get("/control/state")
        await client.gate(is_open=False)
        async with Reader(worker, "/events") as reader:
            assert b"data: 0\n\n" in await reader.first()
            assert (await client.state())["left"] == {}
        watch = Stopwatch(worker.pid)
        await client.until("left", "/events", 1)
        left = watch.seconds
        figure("F20: the handler sees its client leave after", left)
        assert left < LEAVES_WITHIN_S


async def events(request: Request) -> StreamingResponse:
    """Send three events, and say whether the client is there."""

    async def parts() -> AsyncIterator[str]:
        for number in range(3):
            yield f"data: {number} {await request.is_disconnected()}\n\n"

    return StreamingResponse(parts(), media_type="text/event-stream")


async def test_messages_of_a_stream() -> None:
    """The messages of an event stream are those of the bare application, but for Cache-Status (F20)."""

    async def sent(*, cached: bool) -> list[dict[str, Any]]:
        app = FastAPI()
        app.get("/")(cache(timeout=60)(events) if cached else events)
        put_cache(app)
        return await messages_of(app, scope_of("/"))

    bare, cached = await sent(cached=False), await sent(cached=True)
    name, value = cached[0]["headers"][-1]
    assert (bytes(name), bytes(value)) == (b"cache-status", b"app-cache; fwd=uri-miss; detail=stream")
    assert [{**cached[0], "headers": [*cached[0]["headers"][:-1]]}, *cached[1:]] == [
        {**bare[0], "headers": [*bare[0]["headers"]]},
        *bare[1:],
    ]

"""Streams are the client's own: each part as it comes, the disconnect with the handler (SPEC §5.4)."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse

from app_cache import cache
from tests.middleware.apps import client_of, put_cache, scope_of, served, told

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio

WITHIN_S = 10


class Watched(StreamingResponse):
    """A stream that says when it has ended."""

    def __init__(self, parts: AsyncIterator[str], ended: threading.Event, media_type: str) -> None:
        super().__init__(parts, media_type=media_type)
        self.ended = ended

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.ended.set()


def endless(media_type: str, ended: threading.Event, **options: Any) -> FastAPI:
    """Return an application with an endless stream that says when it has *ended*."""
    app = FastAPI()

    @app.get("/")
    @cache(timeout=60, **options)
    async def stream() -> StreamingResponse:
        async def parts() -> AsyncIterator[str]:
            while True:
                yield "data: 1\n\n"
                await asyncio.sleep(0.01)

        return Watched(parts(), ended, media_type)

    put_cache(app)
    return app


@pytest.mark.parametrize(
    "media_type",
    [
        pytest.param("text/event-stream", id="server-sent events"),
        pytest.param("text/event-stream; charset=utf-8", id="with a parameter"),
        pytest.param("application/x-ndjson", id="JSON lines"),
        pytest.param("text/plain", id="text that never ends"),
    ],
)
async def test_endless_stream(media_type: str) -> None:
    """The first part of an endless stream comes at once, and its handler sees the client leave (F20)."""
    ended = threading.Event()
    async with served(endless(media_type, ended)) as client:
        async with client.stream("GET", "/") as answer:
            first = await anext(answer.aiter_bytes())
            assert first.startswith(b"data: 1\n\n")
            assert not ended.is_set()
        assert await asyncio.to_thread(ended.wait, WITHIN_S)


async def test_streams_are_not_waited_for() -> None:
    """Those who ask for an event stream that another reads have one of their own, at once."""
    ended = threading.Event()
    async with served(endless("text/event-stream", ended)) as client:
        async with client.stream("GET", "/") as first, client.stream("GET", "/") as second:
            for answer in (first, second):
                await anext(answer.aiter_bytes())
                assert answer.headers["cache-status"] == "app-cache; fwd=uri-miss; detail=stream"
        assert await asyncio.to_thread(ended.wait, WITHIN_S)


async def test_large_body() -> None:
    """Of a body beyond ``max_body`` every byte arrives, each time, and nothing of it is kept."""
    app, part = FastAPI(), b"a" * 65_536

    @app.get("/")
    @cache(timeout=60, max_body=1_000_000)
    def answer() -> StreamingResponse:
        return StreamingResponse(part for _ in range(320))

    container = put_cache(app)
    async with served(app) as client:
        for _ in range(2):
            assert len((await client.get("/")).content) == 320 * len(part)
    assert container.store().stats["stored"] == 0


async def test_slow_reader_holds_its_own_handler() -> None:
    """Beyond ``max_body`` the handler goes no further than its client has taken."""
    app, made = FastAPI(), []

    @app.get("/")
    @cache(timeout=60, max_body=1000)
    async def answer() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            for number in range(100):
                made.append(number)
                yield b"a" * 500

        return StreamingResponse(parts())

    put_cache(app)
    waiting = [{"type": "http.request", "body": b""}]
    seen: list[int] = []
    size = 0

    async def send(message: Any) -> None:
        nonlocal size
        await asyncio.sleep(0)
        size += len(message.get("body", b""))
        seen.append(len(made) * 500 - size)

    async def receive() -> Any:
        return waiting.pop() if waiting else await asyncio.Event().wait()

    await app(scope_of("/"), receive, send)
    assert size == 50_000
    assert max(seen) <= 3 * 500


async def test_handler_that_waits_for_the_disconnect() -> None:
    """A handler that asks whether its client has left is told no while the answer may be shared."""
    app, seen = FastAPI(), []

    @app.get("/")
    @cache(timeout=60)
    async def answer(request: Request) -> str:
        seen.extend([await request.is_disconnected() for _ in range(3)])  # the first one takes the content
        return "text"

    put_cache(app)
    async with client_of(app) as client:
        assert told(await client.get("/")) == "fwd=uri-miss; stored"
    assert seen == [False] * 3


async def test_broken_stream() -> None:
    """A stream that breaks is broken for its client too, and is not stored."""
    app = FastAPI()

    @app.get("/")
    @cache(timeout=60)
    def answer() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            yield b"a"
            await asyncio.sleep(0.01)
            raise RuntimeError("boom")

        return StreamingResponse(parts())

    container = put_cache(app)
    async with served(app) as client:
        for _ in range(2):
            with pytest.raises(Exception, match="peer closed"):
                await client.get("/")
    assert container.store().stats["stored"] == 0


@pytest.mark.parametrize("length", [b"2", b"4", b"x"])
async def test_wrong_length(length: bytes) -> None:
    """A body that is not as long as its Content-Length says is not stored."""
    app = FastAPI()

    @app.get("/")
    @cache(timeout=60)
    def answer() -> Response:
        response = Response(b"abc")
        response.raw_headers[:] = [(b"content-length", length)]
        return response

    container = put_cache(app)
    async with client_of(app) as client:
        for _ in range(2):
            assert (await client.get("/")).content == b"abc"
    assert container.store().stats["stored"] == 0

"""A caching reverse proxy: ``UPSTREAM=http://host:9000 uvicorn --no-date-header examples.reverse_proxy:app``."""

import os
from contextlib import aclosing
from email.utils import formatdate

import httpx
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from app_cache import CacheMiddleware, CachePolicy, MemoryBackend
from app_cache.rules.messages import end_to_end

UPSTREAM = os.environ.get("UPSTREAM", "http://localhost:9000")
upstream = httpx.AsyncHTTPTransport()  # a client would add fields of its own


async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
    target = b"?".join(filter(None, (scope["raw_path"], scope["query_string"])))
    asked = [*end_to_end(tuple(scope["headers"])), (b"via", b"1.1 reverse-proxy")]
    has_content = {name for name, _ in scope["headers"]} & {b"content-length", b"transfer-encoding"}
    content = Request(scope, receive).stream() if has_content else None
    extensions = {"target": target, "timeout": httpx.Timeout(30).as_dict()}
    request = httpx.Request(scope["method"], UPSTREAM, headers=asked, content=content, extensions=extensions)
    try:
        response = await upstream.handle_async_request(request)
    except httpx.TransportError:
        response = httpx.Response(502, stream=httpx.ByteStream(b"Bad Gateway"))
    dated = [] if "date" in response.headers else [(b"date", formatdate(usegmt=True).encode())]
    async with aclosing(response):
        headers = [*end_to_end(tuple(response.headers.raw)), *dated]
        await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
        async for part in response.aiter_raw():
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


app = CacheMiddleware(proxy, MemoryBackend(), default_policy=CachePolicy.http())

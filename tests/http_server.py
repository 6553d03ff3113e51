"""A real HTTP server for tests: uvicorn in a thread of this process, on a port of its own.

It has the protocol that gives hits before ASGI, so that what holds of the cache is seen to hold of that too.
"""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import uvicorn

from app_cache.server import CacheProtocol

if TYPE_CHECKING:
    from collections.abc import Iterator

HOST = "127.0.0.1"
WITHIN_S = 30


@contextmanager
def http_server(app: Any, **options: Any) -> Iterator[str]:
    """Serve the ASGI application *app* over HTTP, and yield the URL; it has started by then, lifespan and all.

    >>> async def app(scope, receive, send):
    ...     await send({"type": "http.response.start", "status": 204, "headers": []})
    ...     await send({"type": "http.response.body"})
    >>> with http_server(app, lifespan="off") as url, client_of(url) as client:
    ...     client.get("/").status_code
    204

    Args:
        app: What to serve. Its objects may be looked at from the test, but belong to another thread's loop.
        **options: Those of `uvicorn.Config`, such as ``http="h11"`` or ``loop="asyncio"``.

    Raises:
        RuntimeError: If the application does not start or does not end within `WITHIN_S`.
    """
    defaults = {"log_level": "error", "ws": "none", "http": CacheProtocol}
    server = _Server(uvicorn.Config(app, **{**defaults, **options}))
    with listening_socket() as listening:
        thread = threading.Thread(target=server.run, args=([listening],), name="http-server", daemon=True)
        thread.start()
        try:
            if not server.tried.wait(WITHIN_S) or not server.started:
                raise RuntimeError("the application does not start; its own error stands above")
            yield f"http://{HOST}:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(WITHIN_S)
            if thread.is_alive():
                raise RuntimeError("the server does not end")


def client_of(url: str, **options: Any) -> httpx.Client:
    """Return a client of the server at *url* that no variable of the environment leads astray."""
    return httpx.Client(base_url=url, trust_env=False, timeout=WITHIN_S, **options)


def listening_socket(port: int = 0) -> socket.socket:
    """Return a socket that listens on *port* of this machine, by default on a free one."""
    # IPPROTO_TCP: asyncio sets TCP_NODELAY on no other sockets, and without it an answer in two parts takes 40 ms.
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.bind((HOST, port))
    listening.listen()
    return listening


class _Server(uvicorn.Server):
    """A server that says when it has tried to start."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.tried = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        finally:
            self.tried.set()

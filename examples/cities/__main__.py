"""``python -m examples.cities``: serve the application, show that its cache works, and serve on until Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
import errno
import secrets
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import uvicorn
from pydantic import SecretStr, ValidationError

from app_cache.errors import ConfigurationError
from containers import CacheContainer
from examples.cities.main import create_app
from examples.cities.proof import prove
from examples.cities.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

HOST = "127.0.0.1"


def main(arguments: list[str] | None = None) -> int:
    """Serve until Ctrl-C; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m examples.cities", description=__doc__)
    parser.add_argument("--port", default="8000", help="where to listen; 0 takes any free port (default: 8000)")
    parser.add_argument("--once", action="store_true", help="end after the proof")
    asked = parser.parse_args(arguments)
    with suppress(KeyboardInterrupt), listener(asked.port) as listening:
        settings = settings_with_token()
        container: Any = CacheContainer()
        try:
            app = create_app(settings, container)
        except ConfigurationError as error:
            raise SystemExit(str(error)) from None
        print(f"The environment chooses {type(container.backend()).__name__} for the cache.")
        return asyncio.run(serve(app, listening, settings, once=asked.once))
    return 0


def settings_with_token() -> Settings:
    """Return the settings, with a token made up for this run if the environment gives none."""
    try:
        settings = Settings()
    except ValidationError as error:
        raise SystemExit(f"CITIES_{str(error.errors()[0]['loc'][0]).upper()} cannot be read.") from None
    if settings.admin_token is not None:
        return settings
    return settings.model_copy(update={"admin_token": SecretStr(secrets.token_urlsafe(9))})


def listener(port: str) -> socket.socket:
    """Return a socket that listens on *port* of this machine, so that requests may come from now on."""
    if not (port.isascii() and port.isdigit() and int(port) < 2**16):
        raise SystemExit(f"PORT must be a number from 0 to 65535, not {port!r}.")
    # IPPROTO_TCP: asyncio sets TCP_NODELAY on no other sockets, and without it an answer in two parts takes 40 ms.
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((HOST, int(port)))
        listening.listen()
    except OSError as error:
        listening.close()
        reason = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be opened ({error.strerror})"
        raise SystemExit(f"Port {port} {reason}: choose another, such as PORT=8001.") from None
    return listening


async def serve(app: FastAPI, listening: socket.socket, settings: Settings, *, once: bool) -> int:
    """Serve *app*, prove that its cache works, and serve on unless *once*; return the exit status."""
    url = f"http://{HOST}:{listening.getsockname()[1]}"
    token = settings.admin_token.get_secret_value() if settings.admin_token else ""
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    serving = asyncio.ensure_future(server.serve([listening]))
    proving = asyncio.ensure_future(prove(url, token))
    await asyncio.wait({serving, proving}, return_when=asyncio.FIRST_COMPLETED)
    proving.cancel()
    failures = proving.result() if proving.done() else []
    server.should_exit = once or bool(failures)
    if not server.should_exit:
        print(TO_TRY.format(url=url, token=token), flush=True)
    await serving
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures or not server.started else 0


TO_TRY = """
Try it (-i shows Cache-Status and Age; repeat a line to see a hit):

  curl -i '{url}/cities/search?q=springfield'
  curl -i '{url}/cities/2988507'
  curl -i -X PATCH '{url}/cities/2988507' -H 'Content-Type: application/json' -d '{{"population": 2200000}}'
  curl -i -X POST '{url}/admin/invalidate-cache?pattern=/cities/*' -H 'Authorization: Bearer {token}'
  curl '{url}/admin/cache-stats' -H 'Authorization: Bearer {token}'

Serving on {url} (documentation at {url}/docs). Ctrl-C ends it."""


if __name__ == "__main__":
    sys.exit(main())

"""Load over HTTP: wrk where it is there, else a client of our own, which has less to give."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.benchmarks.requests import FIELDS, message
from tests.servers import HOST, die_with_the_parent

WRK = shutil.which("wrk")
SCRIPT = Path(__file__).with_name("load.lua")


@dataclass(frozen=True)
class Load:
    """Requests of a number of *connections*, kept alive, that ask for *keys* different items in turn."""

    connections: int = 64
    keys: int = 1


def client_name() -> str:
    """Return what makes the load, with its version."""
    if WRK is None:
        return "the harness's own client (asyncio; there is no wrk)"
    said = subprocess.run([WRK, "-v"], capture_output=True, text=True, check=False, timeout=10).stdout
    return " ".join(said.split()[:2])


def requests_per_s(port: int, load: Load, seconds: int) -> float:
    """Return how many requests of *load* the server on *port* answers in each of so many *seconds*.

    Raises:
        RuntimeError: If one of them fails.
    """
    if WRK is None:
        with ThreadPoolExecutor(1) as beside:  # the loop of this thread runs already
            return beside.submit(asyncio.run, _asked(port, load, seconds)).result()
    fields = [argument for name, value in FIELDS.items() for argument in ("-H", f"{name}: {value}")]
    command = [WRK, "-t1", f"-c{load.connections}", f"-d{seconds}s", *fields, "-s", str(SCRIPT)]
    ran = subprocess.run(
        [*command, f"http://{HOST}:{port}", "--", str(load.keys)],
        capture_output=True,
        text=True,
        check=True,
        timeout=seconds + 30,
        preexec_fn=die_with_the_parent,
    )
    if "Non-2xx" in ran.stdout or "Socket errors" in ran.stdout:
        raise RuntimeError(f"the load failed:\n{ran.stdout}")
    found = re.search(r"Requests/sec:\s+([\d.]+)", ran.stdout)
    if found is None:
        raise RuntimeError(f"wrk does not say how much it got:\n{ran.stdout}")
    return float(found[1])


async def _asked(port: int, load: Load, seconds: int) -> float:
    loop = asyncio.get_running_loop()
    messages = [message(f"/items/{number}") for number in range(load.keys)]
    began = time.perf_counter()
    ends = began + seconds
    clients = [
        (await loop.create_connection(partial(_Client, messages, number, ends), HOST, port))[1]
        for number in range(load.connections)
    ]
    await asyncio.gather(*(client.ended for client in clients))
    return sum(client.answered for client in clients) / (time.perf_counter() - began)


class _Client(asyncio.Protocol):
    """Asks for one message after the other until it *ends*."""

    def __init__(self, messages: list[bytes], number: int, ends: float) -> None:
        self.answered = 0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._messages = messages
        self._number = number
        self._ends = ends
        self._received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._ask()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, separator, body = self._received.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: *(\d+)", head)
        if not separator or length is None or len(body) < int(length[1]):
            return
        if not head.startswith(b"HTTP/1.1 200"):
            self.ended.set_exception(RuntimeError(f"the load failed: {bytes(head[:100])!r}"))
            self._transport.close()
            return
        self._received.clear()
        self.answered += 1
        self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def _ask(self) -> None:
        if time.perf_counter() >= self._ends:
            self._transport.close()
            return
        self._number = (self._number + 1) % len(self._messages)
        self._transport.write(self._messages[self._number])

"""Before ASGI: `CacheProtocol` beside the bare application, the middleware alone, nginx and Varnish.

Where there are two processors, servers have one and the client has the other; if others want them too, the time of
the processor says more than the number of answers. nginx and Varnish stand beside, as caches of the bare
application, if they are installed.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import re
import shutil
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import uvicorn
from fastapi import FastAPI, Response

from app_cache import CacheMiddleware, CachePolicy, MemoryBackend, cache
from app_cache.server import CacheProtocol
from containers import CacheContainer, install
from tests.benchmarks.figures import Figure, Section, ratios
from tests.benchmarks.served import Rates, Serving, turned
from tests.http_server import HOST, listening_socket
from tests.servers import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from socket import socket

    from tests.benchmarks.figures import Effort

WORDS = """
uvicorn with uvloop, access log off, {connections} connections; the server has one processor, wrk another.
`install` is on FastAPI without its telemetry. nginx (`proxy_cache`) and Varnish stand in front of the bare one.
{rounds} rounds with new processes; each ratio is of the same round.
"""
CONNECTIONS = 32
PROCESSORS = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
BROWSER = {
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:130.0) Gecko/20100101 Firefox/130.0",
    "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
    "Accept-Language": "en-GB,en;q=0.7,de;q=0.3",
    "Accept-Encoding": "gzip, deflate, br, zstd",
    "Upgrade-Insecure-Requests": "1",
    "Sec-Fetch-Dest": "document",
    "Sec-Fetch-Mode": "navigate",
    "Sec-Fetch-Site": "none",
    "Priority": "u=0, i",
}
CLOSE = {"Connection": "close"}
NGINX = """
daemon off; master_process off; pid {directory}/pid; error_log {directory}/error.log crit;
events {{ worker_connections 1024; }}
http {{
  access_log off; keepalive_requests 100000000; tcp_nodelay on; sendfile on;
  client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy; fastcgi_temp_path {directory}/f;
  uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s;
  proxy_cache_path {directory}/cache keys_zone=all:50m max_size=1g inactive=1h;
  server {{
    listen {host}:{port};
    location / {{ proxy_pass {origin}; proxy_cache all; proxy_cache_valid any 1h; }}
  }}
}}
"""


@dataclass(frozen=True)
class Case:
    """What is asked for.

    Args:
        size: Bytes of a body.
        keys: URLs that are asked for in turn.
        browser: Whether requests have the fields of a browser.
        alive: Whether connections are kept.
        target: What part of the bare application's answers is aimed at, or None.
    """

    size: int = 1024
    keys: int = 1
    browser: bool = True
    alive: bool = True
    target: float | None = None

    def __str__(self) -> str:
        urls = "1 URL" if self.keys == 1 else f"{self.keys:,} URLs"
        fields = "fields of a browser" if self.browser else "no fields"
        return f"{self.size // 1024} KB, {urls}, {fields}, {'keep-alive' if self.alive else 'close'}"

    def request(self, number: str) -> str:
        """Return the request for the URL with that *number*."""
        fields = {"Host": "test", **(BROWSER if self.browser else {}), **({} if self.alive else CLOSE)}
        lines = [f"GET /{self.size}/{number} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        return "\r\n".join([*lines, "", ""])

    def script(self) -> str:
        """Return the requests, for wrk; by itself it would put fields in another order in each run."""
        begin, end = self.request("#").replace("\r\n", "\\r\\n").split("#")
        made = f"for n = 0, {self.keys - 1} do made[n] = '{begin}' .. n .. '{end}' end"
        turn = f"request = function() at = (at + 1) % {self.keys} return made[at] end"
        return f"at, made = 0, {{}}\n{made}\n{turn}\n"


CASES = (
    Case(target=3),
    Case(browser=False),
    Case(keys=1000, target=2.5),
    Case(size=102_400, target=1),
    Case(alive=False),
)
BODIES = {case.size: b"x" * case.size for case in CASES}


async def bare(scope: Any, receive: Any, send: Any) -> None:
    """Answer with a body of the size that the path begins with."""
    body = BODIES[int(scope["path"].split("/")[1])]
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def around() -> CacheMiddleware:
    """Return the bare application inside of the cache."""
    backend = MemoryBackend(max_size=4000, max_bytes=1024**3)
    return CacheMiddleware(bare, backend, default_policy=CachePolicy(timeout=86_400))


def installed() -> FastAPI:
    """Return a FastAPI application on which the cache is installed."""
    app = FastAPI(telemetry={"tracing": False, "metrics": False, "logs": False})

    @app.get("/{size}/{number}")
    @cache(timeout=86_400)
    async def sized(size: int, number: int) -> Response:
        return Response(BODIES[size], media_type="text/plain")

    install(app, CacheContainer(backend=MemoryBackend(max_size=4000, max_bytes=1024**3)))
    return app


APPLICATIONS: dict[str, tuple[Any, Any]] = {
    "bare": (lambda: bare, "httptools"),
    "bare, CacheProtocol": (lambda: bare, CacheProtocol),
    "CacheMiddleware": (around, "httptools"),
    "CacheMiddleware, CacheProtocol": (around, CacheProtocol),
    "install, CacheProtocol": (installed, CacheProtocol),
}
BEFORE_ASGI = ("CacheMiddleware, CacheProtocol", "install, CacheProtocol")
NGINX_CACHE = "nginx proxy_cache"


def serve(kind: str, listening: socket) -> None:
    """Serve an application until the process ends."""
    alone_on(0)
    make, http = APPLICATIONS[kind]
    options: dict[str, Any] = {"log_level": "error", "lifespan": "off", "access_log": False, "http": http}
    uvicorn.Server(uvicorn.Config(make(), **options)).run([listening])


def alone_on(number: int) -> None:
    """Run this process on one processor, if there is another for the other side."""
    if len(PROCESSORS) > 1:
        os.sched_setaffinity(0, {PROCESSORS[number]})


@contextmanager
def application(kind: str) -> Iterator[Serving]:
    """Serve an application from a process of its own."""
    listening = listening_socket()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(kind, listening), daemon=True)
    process.start()
    assert process.pid is not None
    try:
        yield Serving(listening.getsockname()[1], process.pid)
    finally:
        process.kill()
        process.join(10)


@contextmanager
def command(*words: str, port: int) -> Iterator[Serving]:
    """Run a server that listens on *port*."""
    process = subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=lambda: alone_on(0)
    )
    try:
        yield Serving(port, process.pid)
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def peers(origin: int, directory: Path) -> Iterator[dict[str, Serving]]:
    """Run the other caches that are installed, in front of what listens on the port *origin*."""
    with ExitStack() as running:
        found: dict[str, Serving] = {}
        nginx, varnish = shutil.which("nginx"), shutil.which("varnishd")
        if nginx is not None:
            port, file = free_port(), directory / "nginx.conf"
            file.write_text(
                NGINX.format(directory=directory, host=HOST, port=port, origin=f"http://{HOST}:{origin}")
            )
            found[NGINX_CACHE] = running.enter_context(command(nginx, "-c", str(file), port=port))
        if varnish is not None:
            port, state = free_port(), str(directory / "varnish")
            kept = ("-b", f"{HOST}:{origin}", "-s", "malloc,256m", "-t", "86400", "-n", state)
            words = (varnish, "-F", "-a", f"{HOST}:{port}", *kept)
            found["Varnish"] = running.enter_context(command(*words, port=port))
        yield found


def warm(port: int, case: Case) -> None:
    """Ask for each URL until a cache may have learned all that it learns."""
    with httpx.Client(
        base_url=f"http://{HOST}:{port}", trust_env=False, timeout=30, headers={"host": "test"}
    ) as client:
        for _ in range(100):
            with suppress(httpx.ConnectError):
                client.get(f"/{case.size}/0").raise_for_status()
                break
            time.sleep(0.05)
        for number in range(case.keys):
            for _ in range(3):
                assert len(client.get(f"/{case.size}/{number}").content) == case.size


def answers_per_second(port: int, case: Case, seconds: int) -> float:
    """Return how many requests are answered each second."""
    wrk = shutil.which("wrk")
    if wrk is None:
        with ThreadPoolExecutor(1) as beside:  # the loop of this thread runs already
            return beside.submit(asyncio.run, _answered(port, case, seconds)).result() / seconds
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(case.script())
        script.flush()
        words = (
            wrk,
            "-t1",
            f"-c{CONNECTIONS}",
            f"-d{seconds}s",
            "-s",
            script.name,
            f"http://{HOST}:{port}/{case.size}/0",
        )
        said = subprocess.run(
            words, capture_output=True, text=True, check=True, timeout=60, preexec_fn=lambda: alone_on(1)
        ).stdout
    assert "Non-2xx" not in said, said
    (rate,) = re.findall(r"Requests/sec:\s+([\d.]+)", said)
    return float(rate)


async def _answered(port: int, case: Case, seconds: float) -> int:
    """Return how many requests a client in Python had answered."""
    ends_at, answered = time.monotonic() + seconds, 0

    async def ask() -> None:
        nonlocal answered
        reader, writer = await asyncio.open_connection(HOST, port)
        while time.monotonic() < ends_at:
            writer.write(case.request(str(answered % case.keys)).encode())
            await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(case.size)
            answered += 1
            if not case.alive:
                writer.close()
                reader, writer = await asyncio.open_connection(HOST, port)
        writer.close()

    await asyncio.gather(*(ask() for _ in range(CONNECTIONS)))
    return answered


async def measure(effort: Effort) -> Section:
    """Measure what is answered before ASGI, and beside it."""
    taken: dict[Case, dict[str, Rates]] = {case: {} for case in CASES}
    rounds = max(3, effort.rounds // 2)
    for number in range(rounds):
        with ExitStack() as running:
            directory = Path(running.enter_context(tempfile.TemporaryDirectory()))
            servers = {kind: running.enter_context(application(kind)) for kind in APPLICATIONS}
            servers |= running.enter_context(peers(servers["bare"].port, directory))
            for case in CASES:
                in_turn(servers, case, effort.seconds, taken[case], number)
    figures = [figure for case in CASES for figure in _figures(case, taken[case])]
    return Section("Before ASGI", WORDS.strip().format(connections=CONNECTIONS, rounds=rounds), figures)


def in_turn(servers: dict[str, Serving], case: Case, seconds: int, taken: dict[str, Rates], number: int) -> None:
    """Add to *taken* what each of *servers* does, from the one of that *number* on.

    In a turn before, each learns the requests as they come now.
    """
    for server in servers.values():
        warm(server.port, case)
        answers_per_second(server.port, case, 1)
    for kind in servers:
        taken.setdefault(kind, Rates())
    for kind, server in turned(servers, number):
        asked = partial(answers_per_second, server.port, case, seconds)
        taken[kind].measure(server, asked, seconds)


def _figures(case: Case, taken: dict[str, Rates]) -> list[Figure]:
    bare, nginx = taken.pop("bare"), taken.get(NGINX_CACHE)
    figures = [
        Figure.of(
            f"{kind}; {case}",
            ratios(rates.requests, bare.requests),
            "of bare",
            at_least=case.target if kind in BEFORE_ASGI else None,
            beside=f"{rates} against {bare}",
        )
        for kind, rates in taken.items()
    ]
    if nginx is not None and case == CASES[0]:
        figures += [
            Figure.of(
                f"{kind} against nginx; {case}", ratios(taken[kind].requests, nginx.requests), "times", at_least=1
            )
            for kind in BEFORE_ASGI
        ]
    return figures

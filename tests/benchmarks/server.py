"""What hits before ASGI cost: ``python -m tests.benchmarks.server``.

All that is compared is measured in turns, so that what else the machine does is in all of it. Figures are medians,
ratios are medians of the ratios within a round. Where there are two processors, servers have one and the client
has the other; if others want them too, the time of the processor says more than the number of answers. Requests
come from wrk if it is installed, else from a client in Python, which costs more than what is measured. nginx and
Varnish stand beside, as caches of the bare application, if they are installed.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import uvicorn
from fastapi import FastAPI, Response

from app_cache import CacheMiddleware, CachePolicy, MemoryBackend, cache
from app_cache.server import CacheProtocol
from containers import CacheContainer, install
from tests.http_server import HOST, listening_socket

if TYPE_CHECKING:
    from collections.abc import Iterator
    from socket import socket

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
    """

    size: int = 1024
    keys: int = 1
    browser: bool = True
    alive: bool = True

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
    Case(),
    Case(browser=False),
    Case(keys=1000),
    Case(size=102_400),
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
def application(kind: str) -> Iterator[tuple[str, int]]:
    """Serve an application from a process of its own; give its URL and the number of the process."""
    listening = listening_socket()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(kind, listening), daemon=True)
    process.start()
    assert process.pid is not None
    try:
        yield f"http://{HOST}:{listening.getsockname()[1]}", process.pid
    finally:
        process.kill()
        process.join(10)


@contextmanager
def command(*words: str, port: int) -> Iterator[tuple[str, int]]:
    """Run a server that listens on *port*; give its URL and the number of its process."""
    process = subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=lambda: alone_on(0)
    )
    try:
        yield f"http://{HOST}:{port}", process.pid
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def peers(origin: str, directory: Path) -> Iterator[dict[str, tuple[str, int]]]:
    """Run the other caches that are installed, in front of *origin*."""
    with ExitStack() as running:
        found: dict[str, tuple[str, int]] = {}
        nginx, varnish = shutil.which("nginx"), shutil.which("varnishd")
        if nginx is not None:
            port, file = free_port(), directory / "nginx.conf"
            file.write_text(NGINX.format(directory=directory, host=HOST, port=port, origin=origin))
            found["nginx proxy_cache"] = running.enter_context(command(nginx, "-c", str(file), port=port))
        if varnish is not None:
            port, state = free_port(), str(directory / "varnish")
            kept = ("-b", origin.removeprefix("http://"), "-s", "malloc,256m", "-t", "86400", "-n", state)
            words = (varnish, "-F", "-a", f"{HOST}:{port}", *kept)
            found["Varnish"] = running.enter_context(command(*words, port=port))
        yield found


def free_port() -> int:
    """Return a port that nobody listened on a moment ago."""
    with listening_socket() as listening:
        return int(listening.getsockname()[1])


def warm(base: str, case: Case) -> None:
    """Ask for each URL until a cache may have learned all that it learns."""
    with httpx.Client(base_url=base, trust_env=False, timeout=30, headers={"host": "test"}) as client:
        for _ in range(100):
            with suppress(httpx.ConnectError):
                client.get(f"/{case.size}/0").raise_for_status()
                break
            time.sleep(0.05)
        for number in range(case.keys):
            for _ in range(3):
                assert len(client.get(f"/{case.size}/{number}").content) == case.size


def answers_per_second(base: str, case: Case, seconds: int) -> float:
    """Return how many requests are answered each second."""
    wrk = shutil.which("wrk")
    if wrk is None:
        return asyncio.run(_answered(base, case, seconds)) / seconds
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(case.script())
        script.flush()
        words = (wrk, "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", script.name, f"{base}/{case.size}/0")
        said = subprocess.run(
            words, capture_output=True, text=True, check=True, timeout=60, preexec_fn=lambda: alone_on(1)
        ).stdout
    assert "Non-2xx" not in said, said
    (rate,) = re.findall(r"Requests/sec:\s+([\d.]+)", said)
    return float(rate)


async def _answered(base: str, case: Case, seconds: float) -> int:
    """Return how many requests a client in Python had answered."""
    host, _, port = base.removeprefix("http://").partition(":")
    ends_at, answered = time.monotonic() + seconds, 0

    async def ask() -> None:
        nonlocal answered
        reader, writer = await asyncio.open_connection(host, int(port))
        while time.monotonic() < ends_at:
            writer.write(case.request(str(answered % case.keys)).encode())
            await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(case.size)
            answered += 1
            if not case.alive:
                writer.close()
                reader, writer = await asyncio.open_connection(host, int(port))
        writer.close()

    await asyncio.gather(*(ask() for _ in range(CONNECTIONS)))
    return answered


def processor_seconds(pid: int) -> float:
    """Return how long the process *pid* and its children have had a processor, as Linux tells it."""
    total = 0
    for each in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            fields = each.read_text().rpartition(") ")[2].split()
            if pid in (int(each.parent.name), int(fields[1])):
                total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def measure(case: Case, served: dict[str, tuple[str, int]], rounds: int, seconds: int) -> str:
    """Return a table: answers each second, and the processor's time for one, beside those of the bare one."""
    rates: dict[str, list[float]] = {kind: [] for kind in served}
    costs: dict[str, list[float]] = {kind: [] for kind in served}
    for base, _ in served.values():
        warm(base, case)
    for number in range(rounds + 1):  # in the first, each learns the requests as they come now
        for kind, (base, pid) in served.items():
            before = processor_seconds(pid)
            rate = answers_per_second(base, case, seconds if number else 1)
            if number:
                rates[kind].append(rate)
                costs[kind].append((processor_seconds(pid) - before) / (rate * seconds) * 1e6)
    lines = [f"{case!s:<62}{'answers/s':>10}{'ratio':>7}{'µs each':>9}{'ratio':>7}"]
    for kind in served:
        figures = (
            f"{statistics.median(rates[kind]):>10,.0f}{ratio(rates[kind], rates['bare']):>7.2f}",
            f"{statistics.median(costs[kind]):>9.1f}{ratio(costs['bare'], costs[kind]):>7.2f}",
        )
        lines.append(f"  {kind:<60}{''.join(figures)}")
    return "\n".join(lines) + "\n\n"


def ratio(values: list[float], of: list[float]) -> float:
    """Return the median of the ratios within a round."""
    return statistics.median(value / each for value, each in zip(values, of, strict=True))


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--case", type=int, action="append", choices=range(len(CASES)), help="only this one")
    parser.add_argument("--only", action="append", help="only the kinds that begin so, beside the bare one")
    options = parser.parse_args()
    with ExitStack() as running:
        directory = Path(running.enter_context(tempfile.TemporaryDirectory()))
        served = {kind: running.enter_context(application(kind)) for kind in APPLICATIONS}
        served |= running.enter_context(peers(served["bare"][0], directory))
        wanted = ("bare", *options.only) if options.only else ("",)
        served = {kind: each for kind, each in served.items() if kind.startswith(wanted)}
        for number in options.case or range(len(CASES)):
            sys.stdout.write(measure(CASES[number], served, options.rounds, options.seconds))
            sys.stdout.flush()


if __name__ == "__main__":
    main()

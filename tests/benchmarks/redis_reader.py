"""What look-ups in Redis cost: ``python -m tests.benchmarks.redis_reader``.

All that is compared is measured in turns, so that what else the machine does is in all of it. Figures are medians,
ratios are medians of the ratios within a round. Requests come from wrk if it is installed, else from a client in
Python, which costs more than what is measured and so flatters the ratios. With fewer cores than processes (the
application, wrk, Redis) the time that the application has a processor says more than the number of requests.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import uvicorn

from app_cache import CacheMiddleware, CachePolicy, MemoryBackend, RedisBackend
from app_cache.store import StoredResponses
from tests.http_server import HOST, listening_socket
from tests.servers import Server, found_binaries
from tests.stored import Page, fill, look_up, written

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from socket import socket

KEYS = 1000
CONNECTIONS = 64
BODY = b"x" * 1024
ACROSS_ALL = f"""
request = function() return wrk.format("GET", "/items/" .. math.random(0, {KEYS - 1})) end
"""


async def bare(scope: Any, receive: Any, send: Any) -> None:
    """Answer each request with 1 KB."""
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(BODY))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": BODY})


def application(kind: str, url: str) -> Any:
    """Return the bare application, or a cache before it on what *kind* says."""
    if kind == "bare":
        return bare
    backend = MemoryBackend(max_size=2 * KEYS) if kind == "memory" else RedisBackend(url)
    return CacheMiddleware(bare, backend, default_policy=CachePolicy(timeout=3600), namespace="benchmark")


def serve(kind: str, url: str, listening: socket) -> None:
    """Serve an application until the process ends."""
    options: dict[str, Any] = {"log_level": "error", "lifespan": "off", "access_log": False}
    uvicorn.Server(uvicorn.Config(application(kind, url), **options)).run([listening])


@contextmanager
def served(kind: str, url: str) -> Iterator[tuple[str, int]]:
    """Serve an application from a process of its own; give its URL and number when all keys are stored."""
    listening = listening_socket()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(kind, url, listening), daemon=True)
    process.start()
    try:
        base = f"http://{HOST}:{listening.getsockname()[1]}"
        with httpx.Client(base_url=base, trust_env=False, timeout=30) as client:
            told: set[str] = set()
            for _ in range(3):
                told = {client.get(f"/items/{number}").headers.get("cache-status", "") for number in range(KEYS)}
            assert kind == "bare" or all(each.startswith("app-cache; hit") for each in told), told
        assert process.pid is not None
        yield base, process.pid
    finally:
        process.kill()
        process.join(10)


def requests_per_second(base: str, seconds: float, script: str) -> float:
    """Return how many requests with all keys are answered each second over 64 connections."""
    wrk = shutil.which("wrk")
    if wrk is None:
        return asyncio.run(_answered(base, seconds)) / seconds
    options = ("-t1", f"-c{CONNECTIONS}", f"-d{max(1, round(seconds))}s", "-s", script)
    said = subprocess.run([wrk, *options, base], capture_output=True, text=True, check=True, timeout=60).stdout
    assert "Non-2xx" not in said, said
    (rate,) = re.findall(r"Requests/sec:\s+([\d.]+)", said)
    return float(rate)


async def _answered(base: str, seconds: float) -> int:
    """Return how many requests a client in Python had answered."""
    host, _, port = base.removeprefix("http://").partition(":")
    ends_at, answered = time.monotonic() + seconds, 0

    async def ask() -> None:
        nonlocal answered
        reader, writer = await asyncio.open_connection(host, int(port))
        while time.monotonic() < ends_at:
            writer.write(b"GET /items/%d HTTP/1.1\r\nhost: test\r\n\r\n" % random.randrange(KEYS))
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            await reader.readexactly(len(BODY))
            answered += 1
        writer.close()

    await asyncio.gather(*(ask() for _ in range(CONNECTIONS)))
    return answered


async def measure_calls(url: str, rounds: int) -> dict[str, list[float]]:
    """Return the microseconds of each kind of look-up, by round."""
    backend = RedisBackend(url, operation_timeout=5.0)
    store, page = StoredResponses(backend), Page()
    await fill(store, page)
    await written(store)
    for number in range(KEYS):
        await backend.set_bytes(f"key {number}", BODY, 600)
    client = (await backend._client())._redis

    async def at_once(count: int) -> None:
        await asyncio.gather(*(backend.get_beside(f"key {number}", ["clock"]) for number in range(count)))

    kinds: dict[str, tuple[Callable[[], Awaitable[object]], int, int]] = {
        "GET of redis-py": (lambda: client.get("key 1"), 200, 1),
        "a look-up alone": (lambda: backend.get_beside("key 1", ["clock"]), 200, 1),
        "alone, decoded and judged": (lambda: look_up(store, page), 200, 1),
        "64 at once, each": (lambda: at_once(64), 5, 64),
        "1,000 at once, each": (lambda: at_once(1000), 1, 1000),
    }
    took: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(rounds):
        for name, (call, times, look_ups) in kinds.items():
            begun = time.perf_counter()
            for _ in range(times):
                await call()
            took[name].append((time.perf_counter() - begun) / times / look_ups * 1e6)
    await store.close()
    await backend.close()
    return took


def measure_requests(
    url: str, rounds: int, seconds: float
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Return the requests per second of each application, and the processor's microseconds for each, by round."""
    rates: dict[str, list[float]] = {"bare": [], "memory": [], "redis": []}
    costs: dict[str, list[float]] = {kind: [] for kind in rates}
    with ExitStack() as running:
        script = running.enter_context(tempfile.NamedTemporaryFile("w", suffix=".lua"))
        script.write(ACROSS_ALL)
        script.flush()
        bases = {kind: running.enter_context(served(kind, url)) for kind in rates}
        for _ in range(rounds):
            for kind, (base, pid) in bases.items():
                before = processor_seconds(pid)
                rate = requests_per_second(base, seconds, script.name)
                rates[kind].append(rate)
                costs[kind].append((processor_seconds(pid) - before) / (rate * seconds) * 1e6)
    return rates, costs


def processor_seconds(pid: int) -> float:
    """Return how long the process *pid* has had a processor, as Linux tells it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def table(title: str, figures: dict[str, list[float]]) -> str:
    """Return a line for each of *figures*: its median, and that of its ratios to the first of its round."""
    first = next(iter(figures.values()))
    lines = [f"{title:<30}{'median':>10}{'ratio':>8}"]
    for name, values in figures.items():
        ratio = statistics.median(value / of for value, of in zip(values, first, strict=True))
        lines.append(f"{name:<30}{statistics.median(values):>10.1f}{ratio:>8.2f}")
    return "\n".join(lines) + "\n\n"


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    with Server(next(iter(found_binaries().values()))) as server:
        calls = asyncio.run(measure_calls(server.url, options.rounds))
        sys.stdout.write(table("in one process, µs", calls))
        rates, costs = measure_requests(server.url, options.rounds, options.seconds)
        sys.stdout.write(table(f"{CONNECTIONS} connections, requests/s", rates))
        sys.stdout.write(table("processor's µs for a request", costs))


if __name__ == "__main__":
    main()

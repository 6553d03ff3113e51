"""Measures all, or some of it, and writes the page: ``python -m tests.benchmarks [--only in_process …] [--tiny]``.

Each module of measurements runs in a process of its own, and what it found is kept: the page is made of the last
run of each.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
import subprocess
import sys

from tests.benchmarks.figures import FULL, TINY, Section
from tests.benchmarks.page import chart, facts, page
from tests.benchmarks.served import ROOT
from tests.servers import die_with_the_parent

MEASURED = ("in_process", "over_http", "server", "beside_peers", "growth", "memory")
KEPT = ROOT / ".benchmarks"
PAGE, CHART = ROOT / "docs" / "performance.md", ROOT / "docs" / "performance.svg"


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="Measure what hits cost.")
    parser.add_argument("--only", nargs="+", choices=MEASURED, default=MEASURED, help="these modules alone")
    parser.add_argument("--tiny", action="store_true", help="few rounds, to try it; the page is not written")
    parser.add_argument("--here", choices=MEASURED, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    effort = TINY if asked.tiny else FULL
    if asked.here:
        module = importlib.import_module(f"tests.benchmarks.{asked.here}")
        asyncio.run(module.measure(effort)).save(KEPT / f"{asked.here}.json")
        return
    known = facts(effort, "make bench", os.getloadavg()[0])
    for name in asked.only:
        print(f"{name} …", flush=True)
        tiny = ["--tiny"] if asked.tiny else []
        command = [sys.executable, "-m", "tests.benchmarks", "--here", name, *tiny]
        subprocess.run(command, check=True, cwd=ROOT, preexec_fn=die_with_the_parent)
        tell(Section.load(KEPT / f"{name}.json"))
    if not asked.tiny:
        write(known)


def tell(section: Section) -> None:
    """Print the figures of *section*."""
    for each in section.figures:
        met = {True: "met", False: "NOT MET", None: ""}[each.met]
        spread = f"({each.low:.2f} … {each.high:.2f})"
        print(f"  {each.what:72} {each.value:10.2f} {spread:>20} {each.unit} {each.target} {met} {each.beside}")


def write(known: dict[str, str]) -> None:
    """Write the page and its chart from what is kept."""
    sections = [Section.load(file) for name in MEASURED if (file := KEPT / f"{name}.json").exists()]
    PAGE.write_text(page(sections, known), encoding="utf-8")
    drawn = chart(sections)
    if drawn is not None:
        CHART.write_text(drawn, encoding="utf-8")


if __name__ == "__main__":
    main()

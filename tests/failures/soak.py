"""A seeded run of everything at once: two workers on a real Redis that breaks in one way after the other.

Clients ask at a fixed rate, whatever happens, and change things; what no cache may give is written down. Run it by
itself for as long as you like: ``python -m tests.failures.soak --seconds 240 --seed 7``.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.clients import told
from tests.failures.proxy import Delay, Drop, FaultProxy, Garbage, Mode, Pass, Reset, Slow, Truncate
from tests.failures.rig import Rig
from tests.servers import HOST, Server, found_binaries

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from tests.failures.rig import Client, Worker

RATE = 100
"""Requests each second."""
ITEMS = 200
CHANGES, FAILURES, ABORTS = 0.05, 0.01, 0.01
"""Parts of the requests."""
BUDGET_S = 0.25
MOST_S = 5.0
"""Seconds in which each answer must be there, but for a worker that is dead."""
CALM_S = 10.0
"""Seconds in which everything must be as before, when all is over."""
PASSWORD = "the-password-of-the-soak"
MOST_LOG = 200_000
MOST_MEMORY = 64 * 1024 * 1024
"""Bytes by which a worker may grow."""


@dataclass
class Report:
    """What was asked, and what went wrong."""

    asked: Counter[str] = field(default_factory=Counter)
    """Requests by what they were, and ``excused``: lost with a worker that was told to end."""
    hits: Counter[str] = field(default_factory=Counter)
    """Answers from the cache, by what went on when they were asked for."""
    wrong: list[str] = field(default_factory=list)


@dataclass(eq=False)
class Asked:
    """One request under way; *excused* if its worker was told to end meanwhile."""

    excused: bool = False


class Target:
    """A worker, and what it must know.

    Args:
        worker: The process.
        client: What asks it for changes.
    """

    def __init__(self, worker: Worker, client: Client) -> None:
        self.worker = worker
        self.client = client
        self.under_way: set[Asked] = set()
        self.ends = False
        """Whether it was told to end, and so may close a connection that it has just accepted."""
        self.known = [0] * ITEMS
        """The version of each item whose change it was told, and has told as done."""

    def excuse(self) -> None:
        """Excuse what is under way: the worker is about to end; what it owed ends with it."""
        for asked in self.under_way:
            asked.excused = True
        self.known = [0] * ITEMS


class Soak:
    """The run.

    Args:
        server: The Redis.
        proxy: What stands before it.
        targets: The workers.
        seed: Of everything that is chosen.
    """

    def __init__(self, server: Server, proxy: FaultProxy, targets: list[Target], seed: int) -> None:
        self.server = server
        self.proxy = proxy
        self.targets = targets
        self.report = Report()
        self.durable = [0] * ITEMS
        """The version of each item whose change was told as done everywhere."""
        self._chance = random.Random(seed)
        self._weights = [*accumulate(1 / rank for rank in range(1, ITEMS + 1))]
        self._phase = "start"

    @property
    def phases(self) -> dict[str, Callable[[], AbstractAsyncContextManager[None]]]:
        """What goes on in turn, by its name."""
        wire: dict[str, Mode] = {
            "late": Delay(0.1),
            "later": Delay(1),
            "dropped": Drop(),
            "slow": Slow(20_000),
            "reset": Reset(),
            "garbage": Garbage(),
            "truncated": Truncate(500),
        }
        return {
            "hang": self._hang,
            "restart": self._restart,
            **{name: partial(self._broken, mode) for name, mode in wire.items()},
            "full": self._full,
            "read-only": self._read_only,
            "wrong password": self._wrong_password,
            "worker killed": partial(self._ended, self.targets[0], gently=False),
            "shutdown": partial(self._ended, self.targets[1], gently=True),
        }

    async def run(self, seconds: float) -> None:
        """Go through all phases, each with as much time without anything after it."""
        each = seconds / (2 * len(self.phases) + 1)
        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(self._ask_at_rate(tasks))
            await self._steady(each)
            for name, phase in self.phases.items():
                self._phase = name
                async with phase():
                    await asyncio.sleep(each)
                self._phase = f"after {name}"
                await asyncio.sleep(each)
                if not self.report.hits[self._phase]:
                    self._wrong("nothing comes from the cache again")
            asking.cancel()

    async def _steady(self, seconds: float) -> None:
        """Let time pass in which nothing breaks, and compare the runs of handlers with what made them needed."""
        self._phase = "steady"
        changes = self.report.asked["change"]
        await asyncio.sleep(seconds)
        changed = self.report.asked["change"] - changes
        ran = sum([sum((await target.client.state())["runs"].values()) for target in self.targets])
        needed = len(self.targets) * (ITEMS + changed) + self.report.asked["failure"]
        if ran > needed:
            self._wrong(f"{ran} runs where {needed} are enough")

    async def _ask_at_rate(self, tasks: asyncio.TaskGroup) -> None:
        started, count = time.monotonic(), 0
        while True:
            tasks.create_task(self._ask())
            count += 1
            await asyncio.sleep(max(0.0, started + count / RATE - time.monotonic()))

    async def _ask(self) -> None:
        """Ask one thing of one worker."""
        target = self._chance.choice(self.targets)
        (item,) = self._chance.choices(range(ITEMS), cum_weights=self._weights)
        (kind,) = self._chance.choices(
            ["change", "failure", "abort", "read"],
            [CHANGES, FAILURES, ABORTS, 1 - CHANGES - FAILURES - ABORTS],
        )
        asked = Asked(excused=target.ends)
        target.under_way.add(asked)
        self.report.asked[kind] += 1
        try:
            await getattr(self, f"_{kind}")(target, item)
        except (OSError, TimeoutError) as error:
            if asked.excused:
                self.report.asked["excused"] += 1
            else:
                self._wrong(f"{kind} of {item}: {error!r}")
        finally:
            target.under_way.discard(asked)

    async def _read(self, target: Target, item: int) -> None:
        oldest = max(self.durable[item], target.known[item])
        known, phase, began = target.known, self._phase, time.monotonic()
        answer = await target.worker.ask(f"/items/{item}")
        took = time.monotonic() - began
        if answer.status_code != 200:
            self._wrong(f"{answer.status_code} for {item}")
            return
        self.report.hits[phase] += told(answer) == "hit"
        served = answer.json()
        if known is not target.known:
            oldest, took = self.durable[item] if oldest == self.durable[item] else 0, 0.0
        if served["item"] != item or served["version"] < oldest:
            self._wrong(f"{answer.text} for {item} when {oldest} was known")
        if took > MOST_S:
            self._wrong(f"{took:.1f} s for {item}")

    async def _change(self, target: Target, item: int) -> None:
        known = target.known
        answer = await target.worker.ask(f"/control/change/{item}", "POST")
        if answer.status_code != 200:
            self._wrong(f"{answer.status_code} for a change of {item}")
            return
        changed = answer.json()
        known[item] = max(known[item], changed["version"])
        if changed["durable"]:
            self.durable[item] = max(self.durable[item], changed["version"])

    async def _failure(self, target: Target, item: int) -> None:
        answer = await target.worker.ask("/fails")
        if (answer.status_code, answer.text) != (500, "Internal Server Error"):
            self._wrong(f"{answer.status_code} {answer.text} for a handler that fails")

    async def _abort(self, target: Target, item: int) -> None:
        asking = asyncio.create_task(target.worker.ask(f"/items/{item}"))
        await asyncio.sleep(self._chance.uniform(0, 0.005))
        asking.cancel()
        await asyncio.wait({asking})
        _ = asking.cancelled() or asking.exception()

    def _wrong(self, what: str) -> None:
        self.report.wrong.append(f"{self._phase}: {what}")

    @asynccontextmanager
    async def _hang(self) -> AsyncIterator[None]:
        self.server.pause()
        yield
        self.server.resume()

    @asynccontextmanager
    async def _restart(self) -> AsyncIterator[None]:
        self.server.kill()
        yield
        await asyncio.to_thread(self.server.start)

    @asynccontextmanager
    async def _broken(self, mode: Mode) -> AsyncIterator[None]:
        self.proxy.mode = mode
        yield
        self.proxy.mode = Pass()

    @asynccontextmanager
    async def _full(self) -> AsyncIterator[None]:
        self.server.command("CONFIG", "SET", "maxmemory", "1")
        yield
        self.server.command("CONFIG", "SET", "maxmemory", "0")

    @asynccontextmanager
    async def _read_only(self) -> AsyncIterator[None]:
        self.server.command("REPLICAOF", HOST, "1")
        yield
        self.server.command("REPLICAOF", "NO", "ONE")

    @asynccontextmanager
    async def _wrong_password(self) -> AsyncIterator[None]:
        self.server.command("ACL", "SETUSER", "default", f"<{PASSWORD}", ">another")
        self.server.command("CLIENT", "KILL", "TYPE", "normal")
        yield
        self.server.command("ACL", "SETUSER", "default", "<another", f">{PASSWORD}")

    @asynccontextmanager
    async def _ended(self, target: Target, *, gently: bool) -> AsyncIterator[None]:
        target.excuse()
        if gently:
            target.ends = True
            target.worker.terminate()
            if await asyncio.to_thread(target.worker.ended) is None:
                self._wrong("a worker that was told to end does not")
        target.worker.kill()
        target.ends = False
        yield
        await asyncio.to_thread(target.worker.start)

    async def look_after(self, before: list[dict[str, Any]], rig: Rig) -> None:
        """Write down what is not as it was *before*."""
        self._phase = "end"
        for target, state in zip(self.targets, before, strict=True):
            await self._look_at(target, state)
        lasting = [key for key in self.server.command("KEYS", "*") if self.server.command("PTTL", key) == -1]
        if lasting:
            self._wrong(f"keys without expiry: {lasting}")
        log = rig.logs().replace("RuntimeError: the handler fails", "")
        if PASSWORD in log:
            self._wrong("the password is in the log")
        cache_log = "\n".join(line for line in log.splitlines() if "cache." in line)
        if len(cache_log) > MOST_LOG:
            self._wrong(f"{len(cache_log)} bytes of log")
        for word in ("never retrieved", "was destroyed", "never awaited"):
            if word in log:
                self._wrong(f"the log says {word!r}")

    async def _look_at(self, target: Target, before: dict[str, Any]) -> None:
        async with asyncio.timeout(CALM_S + MOST_S):
            await target.client.written()
        state = await target.client.state()
        left = Counter(state["tasks"]) - Counter(before["tasks"])
        if left.total() > 2:
            self._wrong(f"tasks are left: {left}")
        if state["descriptors"] > before["descriptors"] + 20:
            self._wrong(f"{state['descriptors']} descriptors, {before['descriptors']} before")
        if any(state["inside"].values()):
            self._wrong(f"handlers have not ended: {state['inside']}")
        if state["peak"] > before["peak"] + MOST_MEMORY:
            self._wrong(f"{state['peak']} bytes of memory, {before['peak']} before")


async def soak(directory: Path, seconds: float, seed: int) -> Report:
    """Run everything in *directory* for so many *seconds*, and return what came of it."""
    binary = next(iter(found_binaries().values()))
    with Server(binary, password=PASSWORD) as server, FaultProxy(server.port, seed) as proxy:
        url = f"redis://:{PASSWORD}@{HOST}:{proxy.port}"
        with Rig(directory, url, 2, operation_timeout=BUDGET_S) as rig:
            async with AsyncExitStack() as clients:
                targets = [
                    Target(worker, await clients.enter_async_context(worker.client())) for worker in rig.workers
                ]
                run = Soak(server, proxy, targets, seed)
                before = [await target.client.state() for target in targets]
                await run.run(seconds)
                await run.look_after(before, rig)
                return run.report


def main() -> None:
    """Run it from the command line, and exit with 1 if anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--seed", type=int, default=random.randrange(10_000))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        report = asyncio.run(soak(Path(directory), options.seconds, options.seed))
    said = [f"seed {options.seed}: {dict(report.asked)}, hits: {dict(report.hits)}", *report.wrong]
    sys.stdout.write("\n".join(said) + "\n")
    sys.exit(bool(report.wrong))


if __name__ == "__main__":
    main()

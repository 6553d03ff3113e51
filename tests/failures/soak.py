"""A seeded run of everything at once: two workers on a real Redis that breaks in one way after the other.

Clients ask at a fixed rate, whatever happens, and change things; what no cache may give is written down. Run it by
itself for as long as you like: ``python -m tests.failures.soak --seconds 240 --seed 7``.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.clients import told
from tests.failures.proxy import Delay, Drop, FaultProxy, Garbage, Mode, Pass, Refuse, Reset, Slow, Truncate
from tests.failures.rig import Rig
from tests.servers import HOST, Server, found_binaries
from tests.timing import Stopwatch

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
MOST_S = 1.0
"""Seconds in which each answer must be there: its look-up, that of a run which it joins, and what follows both."""
SETTLES_S = 1.0
"""Seconds in which a worker that was started answers those who have waited for it."""
OPENS_WITHIN_S = 2.0
"""Seconds of a trouble after which a server that is away is left alone."""
AT_ONCE_S, MOST_LATE = 0.1, 0.1
"""Seconds that an answer takes which asks nobody, and the part of all that may take longer then: the probes."""
BACK_WITHIN_S = 1.5
"""Seconds from the end of a trouble to the first hit."""
LATER_S = 5.0
"""Seconds in which everything must be done that nobody waits for."""
EACH_MODE_S = 0.3
"""Seconds from one mode of the network to the next, where it breaks in several."""
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
    took: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """The seconds of answers that were asked for long after a trouble began, by the trouble."""
    opened: int = 0
    """How often the workers that ended had taken the server to be away."""
    slowest: float = 0.0
    """The seconds of the slowest answer, without those in which the machine ran something else."""
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
        self.up_since = time.monotonic()
        """When it was started; infinite while it is dead."""
        self.known = [0] * ITEMS
        """The version of each item whose change it was told, and has told as done."""

    def excuse(self) -> None:
        """Excuse what is under way: the worker is about to end; what it owed ends with it."""
        for asked in self.under_way:
            asked.excused = True
        self.known = [0] * ITEMS


AWAY = ("hang", "restart", "later", "dropped", "wrong password", "no permission")
"""Troubles in which the server is left alone, but for a probe each second."""
PARTS, PARTS_AWAY = 2, 5
"""How long a trouble goes on, where the calm after it lasts for 1; longer where most is to be seen late."""


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
        self._begin("start")

    @property
    def phases(self) -> dict[str, Callable[[], AbstractAsyncContextManager[None]]]:
        """What goes on in turn, by its name."""
        wire: dict[str, list[Mode]] = {
            "late": [Delay(0.1)],
            "later": [Delay(1)],
            "dropped": [Drop()],
            "slow": [Slow(20_000)],
            "reset and refused": [Reset(), Refuse()],
            "garbage and truncated": [Garbage(), Truncate(500)],
            "by turns": [Drop(), Pass()],
        }
        return {
            "hang": self._hang,
            "restart": self._restart,
            **{name: partial(self._broken, modes) for name, modes in wire.items()},
            "full": self._full,
            "read-only": self._read_only,
            "wrong password": self._wrong_password,
            "no permission": self._no_permission,
            "worker killed": partial(self._ended, self.targets[0], gently=False),
            "shutdown": partial(self._ended, self.targets[1], gently=True),
        }

    async def run(self, seconds: float) -> None:
        """Go through all phases, after each of them some time without anything."""
        parts = {name: PARTS_AWAY if name in AWAY else PARTS for name in self.phases}
        part = seconds / (PARTS + sum(parts.values()) + len(parts))
        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(self._ask_at_rate(tasks))
            await self._steady(PARTS * part)
            for name, phase in self.phases.items():
                self._begin(name)
                async with phase():
                    await asyncio.sleep(parts[name] * part)
                self._begin(f"after {name}")
                await self._until_hits()
                await asyncio.sleep(part)
            asking.cancel()
        for name, took in self.report.took.items():
            late = sum(each > AT_ONCE_S for each in took)
            if late > MOST_LATE * len(took) + 1:
                self._wrong(f"{late} of {len(took)} were late in {name} while the server was left alone")

    def _begin(self, phase: str) -> None:
        self._phase, self._began_at = phase, time.monotonic()

    async def _until_hits(self) -> None:
        """Return when there is a hit again."""
        watch = Stopwatch()
        while not self.report.hits[self._phase] and watch.passed < LATER_S:  # noqa: ASYNC110 - counts have no event
            await asyncio.sleep(0.01)
        if watch.seconds > BACK_WITHIN_S:
            self._wrong(f"the first hit comes after {watch.seconds:.1f} s")

    async def _steady(self, seconds: float) -> None:
        """Let time pass in which nothing breaks, and compare the runs of handlers with what made them needed."""
        self._begin("steady")
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
        known, phase = target.known, self._phase
        watch = Stopwatch(target.worker.pid if target.worker.is_running else None)
        is_timed = time.monotonic() - target.up_since > SETTLES_S
        is_left_alone = phase in AWAY and time.monotonic() - self._began_at > OPENS_WITHIN_S
        answer = await target.worker.ask(f"/items/{item}")
        took = watch.seconds
        if answer.status_code != 200:
            self._wrong(f"{answer.status_code} for {item}")
            return
        self.report.hits[phase] += told(answer) == "hit"
        served = answer.json()
        if known is not target.known:
            oldest = self.durable[item] if oldest == self.durable[item] else 0
        if known is not target.known or not is_timed:
            took = 0.0
        if is_left_alone:
            self.report.took[phase].append(took)
        self.report.slowest = max(self.report.slowest, took)
        if served["item"] != item or served["version"] < oldest:
            self._wrong(f"{answer.text} for {item} when {oldest} was known")
        if took > MOST_S:
            self._wrong(f"{took:.2f} s for {item}")

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
    async def _broken(self, modes: list[Mode]) -> AsyncIterator[None]:
        """Have the network break in one of *modes*, and where there are several, in one after the other."""
        changing = asyncio.create_task(self._change_mode(modes))
        yield
        changing.cancel()
        await asyncio.wait({changing})
        self.proxy.mode = Pass()

    async def _change_mode(self, modes: list[Mode]) -> None:
        for mode in cycle(modes):
            self.proxy.mode = mode
            await asyncio.sleep(EACH_MODE_S if len(modes) > 1 else 1e6)

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
    async def _no_permission(self) -> AsyncIterator[None]:
        self.server.command("ACL", "SETUSER", "default", "-mget", "-get", "-eval", "-evalsha")
        yield
        self.server.command("ACL", "SETUSER", "default", "+@all")

    @asynccontextmanager
    async def _ended(self, target: Target, *, gently: bool) -> AsyncIterator[None]:
        self.report.opened += (await target.client.state())["stats"].get("breaker_opened", 0)
        target.excuse()
        target.up_since = math.inf
        if gently:
            target.ends = True
            target.worker.terminate()
            if await asyncio.to_thread(target.worker.ended) is None:
                self._wrong("a worker that was told to end does not")
        target.worker.kill()
        target.ends = False
        yield
        await asyncio.to_thread(target.worker.start)
        target.up_since = time.monotonic()

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
        async with asyncio.timeout(CALM_S + LATER_S):
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


def _quantiles(took: list[float]) -> str:
    ordered = sorted(took)
    shown = {part: ordered[int(part / 100 * (len(ordered) - 1))] * 1000 for part in (50, 90, 99, 100)}
    return f"{len(took)} answers, " + ", ".join(f"{part} % in {ms:.0f} ms" for part, ms in shown.items())


def main() -> None:
    """Run it from the command line, and exit with 1 if anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--seed", type=int, default=random.randrange(10_000))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        report = asyncio.run(soak(Path(directory), options.seconds, options.seed))
    said = [
        f"seed {options.seed}: {dict(report.asked)}, hits: {dict(report.hits)}",
        f"the slowest answer took {report.slowest:.2f} s; the server was {report.opened} times taken to be away",
        *(f"left alone, {name}: {_quantiles(took)}" for name, took in report.took.items()),
        *report.wrong,
    ]
    sys.stdout.write("\n".join(said) + "\n")
    sys.exit(bool(report.wrong))


if __name__ == "__main__":
    main()

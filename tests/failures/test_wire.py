"""A network that breaks between the cache and Redis: never a wrong answer, never an error to a client."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from tests.clients import told
from tests.failures.proxy import Delay, Drop, FaultProxy, Garbage, Mode, Pass, Refuse, Reset, Slow, Truncate

if TYPE_CHECKING:
    from tests.failures.conftest import StartRig
    from tests.failures.rig import Client, Rig, Worker

pytestmark = [pytest.mark.anyio, pytest.mark.alone]

ITEMS = 12
CLIENTS = 8
BUDGET_S = 0.1
MOST_S = 5.0


class Load:
    """Clients of one worker that ask and change, and what they have seen that no cache may give.

    Args:
        rig: Whose first worker is asked.
        seed: Of what they ask.
    """

    def __init__(self, rig: Rig, seed: int) -> None:
        self.rig = rig
        self.chance = random.Random(seed)
        self.known = [0] * ITEMS
        """The version of each item of which a change had been told when it was looked at."""
        self.wrong: list[str] = []
        self.asked = 0

    async def run(self, worker: Worker, client: Client, rounds: int) -> None:
        """Have each client ask so many times, one of eight times for a change."""
        async with asyncio.TaskGroup() as clients:
            for _ in range(CLIENTS):
                clients.create_task(self._ask(worker, client, rounds))

    async def _ask(self, worker: Worker, client: Client, rounds: int) -> None:
        for _ in range(rounds):
            item = self.chance.randrange(ITEMS)
            if self.chance.random() < 1 / 8:
                version, _ = await client.change(item)
                self.known[item] = max(self.known[item], version)
                continue
            oldest = self.known[item]
            async with asyncio.timeout(MOST_S):
                answer = await worker.ask(f"/items/{item}")
            self.asked += 1
            if answer.status_code != 200:
                self.wrong.append(f"{answer.status_code} for {item}")
            elif answer.json()["item"] != item or answer.json()["version"] < oldest:
                self.wrong.append(f"{answer.text} for {item} when {oldest} was known")


@pytest.mark.parametrize(
    "mode",
    [
        pytest.param(Delay(0.02), id="delay within the budget"),
        pytest.param(Delay(3), id="delay beyond it"),
        pytest.param(Drop(), id="drop"),
        pytest.param(Reset(), id="reset"),
        pytest.param(Garbage(), id="garbage"),
        pytest.param(Truncate(0), id="nothing"),
        pytest.param(Truncate(1), id="one byte"),
        pytest.param(Truncate(150), id="truncate within"),
        pytest.param(Truncate(2000), id="truncate later"),
        pytest.param(Slow(3000), id="slow"),
        pytest.param(Refuse(), id="refuse"),
    ],
)
async def test_broken_wire(proxy: FaultProxy, start_rig: StartRig, mode: Mode) -> None:
    """Whatever happens between, answers are right and in time; once it is over, they come from the cache again."""
    rig = start_rig(proxy.url, operation_timeout=BUDGET_S)
    (worker,) = rig.workers
    load = Load(rig, seed=1)
    async with worker.client() as client:
        await load.run(worker, client, 4)
        proxy.mode = mode
        await load.run(worker, client, 4)
        proxy.mode = Pass()
        await load.run(worker, client, 4)
        assert load.wrong == []
        await until_hits(worker)
        await load.run(worker, client, 4)
        assert load.wrong == []


async def until_hits(worker: Worker) -> None:
    """Return when *worker* answers from the cache.

    Raises:
        TimeoutError: If it does not within `MOST_S`.
    """
    async with asyncio.timeout(MOST_S):
        while told(await worker.ask("/items/900")) != "hit":  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.02)


async def test_wire_that_breaks_at_random(proxy: FaultProxy, start_rig: StartRig) -> None:
    """While the network breaks in one way after the other, answers are right, and none is an error."""
    rig = start_rig(proxy.url, operation_timeout=BUDGET_S)
    (worker,) = rig.workers
    load, chance = Load(rig, seed=2), random.Random(3)
    modes: list[Mode] = [Delay(0.05), Drop(), Reset(), Garbage(), Truncate(40), Slow(5000), Refuse()]
    async with worker.client() as client:
        changing = asyncio.create_task(change_mode(proxy, modes, chance))
        await load.run(worker, client, 40)
        changing.cancel()
        with suppress(asyncio.CancelledError):
            await changing
        proxy.mode = Pass()
        assert load.wrong == []
        await until_hits(worker)
        state = await client.state()
    assert load.asked > 200
    assert "Traceback" not in rig.logs()
    assert len(rig.logs()) < 20_000
    assert state["inside"] == dict.fromkeys(state["inside"], 0)


async def change_mode(proxy: FaultProxy, modes: list[Mode], chance: random.Random) -> None:
    """Have *proxy* do one thing after the other, and nothing in between."""
    while True:
        for mode in (chance.choice(modes), Pass()):
            await asyncio.to_thread(setattr, proxy, "mode", mode)
            await asyncio.sleep(chance.uniform(0.02, 0.1))

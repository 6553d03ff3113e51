"""The rig does what the tests of failures take for granted."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.failures.rig import Rig
from tests.failures.worker import Database

if TYPE_CHECKING:
    from pathlib import Path

    from tests.failures.conftest import StartRig
    from tests.servers import Server

pytestmark = pytest.mark.anyio


async def test_two_workers_on_one_server(redis_server: Server, start_rig: StartRig) -> None:
    """Two processes share what is stored, each counts its own runs, and a change shows in both."""
    rig = start_rig(redis_server.url, 2)
    first, second = rig.workers
    async with first.client() as one, second.client() as other:
        answer = (await one.get("/items/7")).json()
        assert answer == {"item": 7, "version": 0, "run": 1, "pid": first.pid}
        await one.written()
        assert (await other.get("/items/7")).json() == answer
        assert (await one.state())["runs"] == {"/items/7": 1}
        assert (await other.state())["runs"] == {}
        assert await other.change(7) == (1, True)
        assert rig.database.version(7) == 1
        assert (await one.get("/items/7")).json()["version"] == 1


async def test_gate(start_rig: StartRig) -> None:
    """Handlers wait at a closed gate, and the test learns when they do."""
    (worker,) = start_rig(None).workers
    async with worker.client() as client:
        await client.gate(is_open=False)
        with pytest.raises(httpx.ReadTimeout):
            await client.get("/items/1", timeout=0.05)
        await client.until("inside", "/items/1", 1)
        assert (await client.state())["runs"] == {"/items/1": 1}
        await client.gate(is_open=True)
        assert (await client.get("/items/1")).json()["run"] == 1


async def test_killed_and_started(start_rig: StartRig) -> None:
    """A killed worker breaks its connections, is gone, and comes back on its port."""
    (worker,) = start_rig(None).workers
    async with worker.client() as client:
        before = (await client.get("/items/1")).json()["pid"]
        worker.kill()
        with pytest.raises(ProcessLookupError):
            os.kill(before, 0)
        with pytest.raises(httpx.TransportError):
            await client.get("/items/1", timeout=0.05)
        worker.start()
        assert (await client.get("/items/1")).json()["pid"] == worker.pid != before


async def test_paused(start_rig: StartRig) -> None:
    """A paused worker answers nothing until it is resumed."""
    (worker,) = start_rig(None).workers
    async with worker.client() as client:
        worker.pause()
        with pytest.raises(httpx.ReadTimeout):
            await client.get("/items/1", timeout=0.05)
        worker.resume()
        assert (await client.get("/items/1")).status_code == 200


async def test_terminated(start_rig: StartRig) -> None:
    """A worker that is told to end does, with its lifespan, and its log is there."""
    rig = start_rig(None)
    (worker,) = rig.workers
    async with worker.client() as client:
        assert (await client.get("/fails")).status_code == 500
    worker.terminate()
    assert worker.ended() == -15
    assert "RuntimeError: the handler fails" in rig.logs()


def test_worker_that_does_not_start(tmp_path: Path) -> None:
    """A worker that fails at its start is told at once, with its log."""
    with pytest.raises(RuntimeError, match="url='gopher://' cannot be used"), Rig(tmp_path, "gopher://"):
        pass


def test_database(tmp_path: Path) -> None:
    """What one maps of the database is what the other one sees."""
    Database.create(tmp_path / "file")
    one, other = Database(tmp_path / "file"), Database(tmp_path / "file")
    assert [one.change(3), one.change(3), other.version(3), other.version(2)] == [1, 2, 2, 0]

"""A TCP proxy on this machine that breaks what passes through it, as the test wants and while it runs.

It lives in a thread with an event loop of its own, so that neither the test nor the application holds it up. What
it does to a connection is what a network or a server could do: bytes come late, wrong, or not at all, but a stream
that lost bytes never goes on as if it had not.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

HOST = "127.0.0.1"
WITHIN_S = 10.0
CHUNK = 65_536
AT_ONCE = struct.pack("ii", 1, 0)
"""SO_LINGER by which a socket is closed with RST."""


@dataclass(frozen=True)
class Pass:
    """Everything passes."""


@dataclass(frozen=True)
class Delay:
    """Each chunk of an answer comes so many *seconds* late."""

    seconds: float


@dataclass(frozen=True)
class Drop:
    """Connections are accepted, and nothing passes: one that sends or is sent anything is lost for ever."""


@dataclass(frozen=True)
class Reset:
    """Open connections and new ones end with RST."""


@dataclass(frozen=True)
class Garbage:
    """Each answer is as many random bytes, and no answer after it on the same connection is right."""


@dataclass(frozen=True)
class Truncate:
    """A connection ends after so many *bytes* of answers."""

    bytes: int


@dataclass(frozen=True)
class Slow:
    """Answers come with so many *bytes* each second."""

    bytes: int


@dataclass(frozen=True)
class Refuse:
    """Nobody listens, as when a server has ended: open connections end with RST, new ones are refused."""


Mode = Pass | Delay | Drop | Reset | Garbage | Truncate | Slow | Refuse


class FaultProxy:
    """Stands before *port_behind* on a port of its own: ``with FaultProxy(server.port) as proxy: …``.

    Args:
        port_behind: The port of this machine that is connected to; set to another, it is for new connections.
        seed: What random bytes are made of, with the number of the connection.
    """

    def __init__(self, port_behind: int, seed: int = 0) -> None:
        self.port = 0
        self.connections = 0
        """How many connections were accepted."""
        self.before_chunk: Callable[[], object] = lambda: None
        """Called before a chunk of either direction goes on, in the proxy's thread."""
        self.port_behind = port_behind
        self._seed = seed
        self._mode: Mode = Pass()
        self._changed = asyncio.Event()
        self._listening: socket.socket | None = None
        self._relays: set[_Relay] = set()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._live()), name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._ready.wait(WITHIN_S):
            raise RuntimeError("the proxy does not start")
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(WITHIN_S)
        if self._thread.is_alive():
            raise RuntimeError("the proxy does not end")

    @property
    def url(self) -> str:
        """Where it stands, for a Redis client."""
        return f"redis://{HOST}:{self.port}"

    @property
    def mode(self) -> Mode:
        """What it does now; set it to another, which holds for open connections too once it is set."""
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        self._call(self._switch(mode))

    @property
    def open(self) -> int:
        """How many connections are open."""
        return len(self._relays)

    def _call(self, work: Coroutine[object, object, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(WITHIN_S)

    async def _live(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        # It keeps the port while nobody listens: bound and no more, it refuses.
        with _bound_socket(0) as reserved:
            self.port = reserved.getsockname()[1]
            self._listen()
            self._ready.set()
            await self._end.wait()
            await self._switch(Refuse())
            await _until_alone()

    def _listen(self) -> None:
        self._listening = _bound_socket(self.port)
        self._listening.listen(1024)
        self._listening.setblocking(False)
        self._loop.add_reader(self._listening, self._accept, self._listening)

    async def _switch(self, mode: Mode) -> None:
        self._mode = mode
        self._changed.set()
        self._changed = asyncio.Event()
        if isinstance(mode, Reset | Refuse):
            for relay in self._relays:
                relay.reset()
        if isinstance(mode, Refuse) and self._listening is not None:
            self._loop.remove_reader(self._listening)
            self._listening.close()
            self._listening = None
        elif not isinstance(mode, Refuse) and self._listening is None:
            self._listen()

    def _accept(self, listening: socket.socket) -> None:
        with suppress(BlockingIOError):
            while True:
                connection, _ = listening.accept()
                self.connections += 1
                if isinstance(self._mode, Reset):
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
                    connection.close()
                    continue
                connection.setblocking(False)
                relay = _Relay(self, random.Random(f"{self._seed}:{self.connections}"))
                self._relays.add(relay)
                relay.task = self._loop.create_task(self._carry(relay, connection))

    async def _carry(self, relay: _Relay, connection: socket.socket) -> None:
        try:
            await relay.run(connection, self.port_behind)
        finally:
            self._relays.discard(relay)

    async def pause(self, seconds: float) -> None:
        """Wait *seconds*, or until the mode is another."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()


class _Relay:
    """One connection, and the one behind it."""

    def __init__(self, proxy: FaultProxy, chance: random.Random) -> None:
        self.task: asyncio.Task[None] | None = None
        self._proxy = proxy
        self._chance = chance
        self._near: asyncio.StreamWriter | None = None
        self._far: asyncio.StreamWriter | None = None
        self._reset = asyncio.Event()
        self._lost = self._spoiled = False
        self._answered = 0

    def reset(self) -> None:
        """End it with RST, on both sides."""
        self._reset.set()

    async def run(self, connection: socket.socket, port_behind: int) -> None:
        """Relay until either side ends, or the mode ends it."""
        asked, self._near = await asyncio.open_connection(sock=connection)
        try:
            answered, self._far = await asyncio.open_connection(HOST, port_behind)
            await self._relay(asked, answered)
        except OSError:
            self._reset.set()
        finally:
            for writer in (self._near, self._far):
                if writer is not None:
                    _end(writer, reset=self._reset.is_set())

    async def _relay(self, asked: asyncio.StreamReader, answered: asyncio.StreamReader) -> None:
        ways = [
            asyncio.ensure_future(self._pump(asked, self._ask)),
            asyncio.ensure_future(self._pump(answered, self._answer)),
            asyncio.ensure_future(self._reset.wait()),
        ]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        await asyncio.wait(ways)

    async def _pump(
        self, reader: asyncio.StreamReader, pass_on: Callable[[bytes], Coroutine[object, object, bool]]
    ) -> None:
        with suppress(OSError):
            while chunk := await reader.read(CHUNK):
                self._proxy.before_chunk()
                if not await pass_on(chunk):
                    return

    async def _ask(self, chunk: bytes) -> bool:
        if not self._loses():
            await _send(self._far, chunk)
        return True

    async def _answer(self, chunk: bytes) -> bool:
        """Pass on a *chunk* of an answer as the mode has it; return whether the connection goes on."""
        if self._loses():
            return True
        match self._proxy.mode:
            case Delay(seconds):
                await self._proxy.pause(seconds)
            case Garbage():
                self._spoiled = True
            case Truncate(most):
                left = most - self._answered
                self._answered += len(chunk)
                await _send(self._near, chunk[: max(0, left)])
                return len(chunk) < left
            case Slow(each_second):
                await self._send_slowly(chunk, each_second)
                return True
        if self._spoiled:
            chunk = self._chance.randbytes(len(chunk))
        await _send(self._near, chunk)
        return True

    async def _send_slowly(self, chunk: bytes, each_second: int) -> None:
        step = max(1, each_second // 20)
        for start in range(0, len(chunk), step):
            if isinstance(self._proxy.mode, Slow):
                await self._proxy.pause(step / each_second)
            await _send(self._near, chunk[start : start + step])

    def _loses(self) -> bool:
        """Return whether what comes now is lost, and with it all that follows on this connection."""
        self._lost = self._lost or isinstance(self._proxy.mode, Drop)
        return self._lost


def _bound_socket(port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind((HOST, port))
    return bound


async def _until_alone() -> None:
    """Return when all other tasks have ended, those that the loop accepts connections by included."""
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(others)
    await asyncio.sleep(0)  # the loop closes a socket in the turn after it was told to


async def _send(writer: asyncio.StreamWriter | None, data: bytes) -> None:
    assert writer is not None
    writer.write(data)
    await writer.drain()


def _end(writer: asyncio.StreamWriter, *, reset: bool) -> None:
    if not reset:
        writer.close()
        return
    with suppress(OSError):  # it is closed already
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
    writer.transport.abort()

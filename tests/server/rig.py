"""What the tests of the protocol share: one that counts, a connection without a network, one over sockets."""

from __future__ import annotations

import asyncio
import re
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from uvicorn.config import Config
from uvicorn.server import ServerState

from app_cache.server.protocol import CacheProtocol
from tests.http_server import HOST, WITHIN_S

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from app_cache.server.memo import Known, Memo

ADDED = [(b"date", b"Thu, 01 Jan 1970 00:00:00 GMT"), (b"server", b"uvicorn")]
"""What a server adds to each answer."""
TURNS = 2_000
"""Turns of the loop within which an answer comes."""
NO_BODY = frozenset({204, 304})


class Counted(CacheProtocol):
    """The protocol, and how many answers all its connections gave by themselves."""

    answered = 0

    def _gave(self, known: Known) -> bool:
        gave = super()._gave(known)
        type(self).answered += gave
        return gave


def counted() -> type[Counted]:
    """Return a protocol with a count of its own."""
    return type("CountedAlone", (Counted,), {"answered": 0})


@dataclass(frozen=True)
class Answer:
    """A response as it came."""

    head: bytes
    body: bytes

    @property
    def status(self) -> int:
        """Its status."""
        return int(self.head[9:12])

    @property
    def told(self) -> str:
        """What Cache-Status says, without our name and the seconds; empty if nothing."""
        said = self.field(b"cache-status").decode()
        return re.sub(r"^app-cache; |; ttl=-?\d+", "", said)

    @property
    def undated(self) -> tuple[bytes, bytes]:
        """All of it but the value of Date."""
        return re.sub(rb"\r\ndate: [^\r]+", b"\r\ndate: -", self.head), self.body

    def field(self, name: bytes) -> bytes:
        """Return the value of the only field line called *name* (lower case), or nothing."""
        found = re.findall(rb"\r\n%b: ([^\r]*)" % name, self.head)
        assert len(found) <= 1
        return bytes(found[0]) if found else b""


def answer_in(stream: bytes, *, to_head: bool = False) -> tuple[Answer | None, bytes]:
    """Return the response that *stream* begins with, None if it is not whole, and the rest.

    *to_head*: It has no body.
    """
    end = stream.find(b"\r\n\r\n") + 4
    if end < 4:
        return None, stream
    head, rest = stream[:end], stream[end:]
    length = re.search(rb"\r\ncontent-length: (\d+)", head)
    if to_head or int(head[9:12]) in NO_BODY:
        size = 0
    elif length is not None:
        size = int(length[1])
    else:
        size = (rest.find(b"0\r\n\r\n") + 5) if b"0\r\n\r\n" in rest else len(rest) + 1
    return (None, stream) if len(rest) < size else (Answer(head, rest[:size]), rest[size:])


def get(path: str, *fields: str, host: str = "test", version: str = "1.1", method: str = "GET") -> bytes:
    """Return a request, with *fields* behind its Host."""
    lines = [f"{method} {path} HTTP/{version}", *([f"Host: {host}"] if host else []), *fields, "", ""]
    return "\r\n".join(lines).encode("latin-1")


class Unserved:
    """A server that listens nowhere: what its connections have in common.

    Args:
        app: What it serves.
        **options: Those of `uvicorn.Config`.
    """

    def __init__(self, app: Any, **options: Any) -> None:
        self.app = app
        self.protocol = counted()
        self.config = Config(app, http=self.protocol, lifespan="off", ws="none", log_config=None, **options)
        self.config.load()
        self.state = ServerState()
        self.state.default_headers = [*ADDED]

    def connected(self, **about: Any) -> Line:
        """Return a new connection; *about* is what its transport says of itself."""
        return Line(self, {"peername": ("127.0.0.9", 4711), "sockname": ("127.0.0.1", 80), **about})

    @property
    def answered(self) -> int:
        """How many answers the protocol gave by itself."""
        return self.protocol.answered

    @property
    def memo(self) -> Memo:
        """What the connections have learned, all of one scheme."""
        return self.connected().protocol._memo


class Line(asyncio.Transport):
    """A connection without a network: chunks arrive as they are given, and what is written is kept."""

    def __init__(self, server: Unserved, about: dict[str, Any]) -> None:
        super().__init__(about)
        self.written: list[Any] = []
        self.is_closed = False
        self.reads = True
        self.protocol = server.protocol(server.config, server.state, {})
        self.protocol.connection_made(self)

    def write(self, data: Any) -> None:
        assert not self.is_closed
        self.written.append(data)

    def close(self) -> None:
        self.is_closed = True

    def is_closing(self) -> bool:
        return self.is_closed

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True

    def send(self, *chunks: bytes) -> None:
        """Let *chunks* arrive, one after the other."""
        for chunk in chunks:
            self.protocol.data_received(chunk)

    async def read(self, count: int = 1, *, to_head: bool = False) -> list[Answer]:
        """Return the next *count* answers."""
        for _ in range(TURNS):
            found, rest = [], b"".join(map(bytes, self.written))
            while (answer := answer_in(rest, to_head=to_head))[0] is not None:
                found.append(answer[0])
                rest = answer[1]
            if len(found) >= count:
                assert (len(found), rest) == (count, b"")
                self.written.clear()
                return found
            await asyncio.sleep(0)
        raise AssertionError(f"not {count} answers: {self.written}")

    async def ask(self, *chunks: bytes) -> Answer:
        """Let *chunks* arrive and return the one answer."""
        self.send(*chunks)
        return (await self.read())[0]

    async def learn(self, request: bytes) -> Answer:
        """Ask for *request* until the protocol answers it by itself, and return that answer."""
        before = self.protocol.answered
        answers = [await self.ask(request) for _ in range(4)]
        assert self.protocol.answered > before, "it is not learned"
        return answers[-1]

    async def hang_up(self) -> None:
        """End the connection, and let what belongs to it end."""
        self.protocol.connection_lost(None)
        for _ in range(10):
            await asyncio.sleep(0)


class Wire:
    """A connection over a socket to the server at *url*."""

    def __init__(self, url: str, *, wrap: Any = None) -> None:
        port = int(url.rpartition(":")[2])
        self._socket = socket.create_connection((HOST, port), timeout=WITHIN_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if wrap is not None:
            self._socket = wrap(self._socket)
        self._rest = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, *chunks: bytes) -> None:
        """Send *chunks*, each by itself."""
        for chunk in chunks:
            self._socket.sendall(chunk)

    def send_no_more(self) -> None:
        """End this half of the connection."""
        self._socket.shutdown(socket.SHUT_WR)

    def read(self, count: int = 1, *, to_head: bool = False) -> list[Answer]:
        """Return the next *count* answers, fewer if the server closes before."""
        found: list[Answer] = []
        while len(found) < count:
            answer, self._rest = answer_in(self._rest, to_head=to_head)
            if answer is not None:
                found.append(answer)
                continue
            chunk = self._socket.recv(65_536)
            if not chunk:
                break
            self._rest += chunk
        return found

    def ask(self, *chunks: bytes, to_head: bool = False) -> Answer:
        """Send *chunks* and return the one answer."""
        self.send(*chunks)
        return self.read(to_head=to_head)[0]

    @property
    def is_ended(self) -> bool:
        """Whether the server closes the connection, with nothing more to read."""
        return not self._rest and not self._socket.recv(1)


def split(data: bytes, places: Iterable[int]) -> Iterator[bytes]:
    """Return *data* in pieces, cut at *places*."""
    begin = 0
    for place in sorted({each for each in places if 0 < each < len(data)}):
        yield data[begin:place]
        begin = place
    yield data[begin:]

"""Both ends of the wire: an origin server that sends the bytes it is told, a client that reads those that come."""

from __future__ import annotations

import re
import socket
import socketserver
import threading
from collections import defaultdict, deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Self

from tests.http_server import HOST

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import BufferedIOBase

WITHIN_S = 20


def message(*lines: str, status: str = "200 OK", version: str = "1.1", body: bytes = b"") -> bytes:
    """Return a response with the field *lines*, then *body*, as bytes."""
    return "\r\n".join([f"HTTP/{version} {status}", *lines, "", ""]).encode("latin-1") + body


def sized(*lines: str, body: bytes = b"0123456789", status: str = "200 OK") -> bytes:
    """Return a response whose *body* has a Content-Length."""
    return message(*lines, f"Content-Length: {len(body)}", status=status, body=body)


def chunked(*lines: str, parts: tuple[bytes, ...] = (b"01234", b"56789"), end: bytes = b"0\r\n\r\n") -> bytes:
    """Return a response whose body comes in chunks."""
    chunks = [b"%x\r\n%b\r\n" % (len(part), part) for part in parts]
    return message(*lines, "Transfer-Encoding: chunked", body=b"".join(chunks) + end)


def _values(lines: list[str], name: str) -> list[str]:
    pairs = (line.partition(":") for line in lines)
    return [value.strip() for each, _, value in pairs if each.lower() == name]


def _lines(file: IO[bytes] | BufferedIOBase) -> list[str]:
    """Return the lines up to the next empty one."""
    lines = []
    while (line := file.readline()) not in (b"\r\n", b""):
        lines.append(line.decode("latin-1").rstrip("\r\n"))
    return lines


def _chunks(file: IO[bytes] | BufferedIOBase) -> tuple[bytes, bool]:
    """Return a body that comes in chunks, and whether it has an end."""
    body = b""
    while size := file.readline():
        chunk = file.read(int(size, 16))
        body += chunk
        if file.readline() == b"\r\n" and not chunk:
            return body, True
    return body, False


@dataclass
class Reply:
    """What the origin server sends once: *pieces*, with a wait for *held* before each but the first."""

    pieces: tuple[bytes, ...]
    closes: bool = False
    held: threading.Event | None = None


@dataclass
class Asked:
    """A request as it came."""

    method: str
    lines: list[str]
    body: bytes

    def values(self, name: str) -> list[str]:
        """Return the values of the field lines called *name* (lower case)."""
        return _values(self.lines, name)


@dataclass
class RawOrigin:
    """The script of an origin server: for each target one reply after the other, the last one for ever."""

    replies: defaultdict[str, deque[Reply]] = field(default_factory=lambda: defaultdict(deque))
    asked: defaultdict[str, list[Asked]] = field(default_factory=lambda: defaultdict(list))
    news: threading.Condition = field(default_factory=threading.Condition)
    url: str = ""

    def says(
        self, target: str, *pieces: bytes, closes: bool = False, held: threading.Event | None = None
    ) -> RawOrigin:
        """Add a reply for *target*."""
        self.replies[target].append(Reply(pieces, closes, held))
        return self

    def wait_for(self, target: str, count: int) -> None:
        """Wait until *target* was asked for *count* times."""
        with self.news:
            assert self.news.wait_for(lambda: len(self.asked[target]) >= count, WITHIN_S)

    def answer(self, target: str, asked: Asked) -> Reply:
        """Return what is said to a request that came."""
        with self.news:
            self.asked[target].append(asked)
            self.news.notify_all()
            left = self.replies[target]
            return left[0] if len(left) == 1 else left.popleft()


class _Connection(socketserver.StreamRequestHandler):
    timeout = WITHIN_S
    server: _Server

    def handle(self) -> None:
        while line := self.rfile.readline():
            method, target, _ = line.decode("latin-1").split(" ")
            lines = _lines(self.rfile)
            reply = self.server.script.answer(target, Asked(method, lines, self._body(lines)))
            for number, piece in enumerate(reply.pieces):
                if number and reply.held is not None:
                    reply.held.wait(WITHIN_S)
                self.wfile.write(piece)
            if reply.closes:
                return

    def _body(self, lines: list[str]) -> bytes:
        text = "\n".join(lines).lower()
        if "transfer-encoding: chunked" in text:
            return _chunks(self.rfile)[0]
        length = re.search("^content-length: ([0-9]+)", text, re.MULTILINE)
        return self.rfile.read(int(length[1])) if length else b""


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, script: RawOrigin) -> None:
        super().__init__((HOST, 0), _Connection)
        self.script = script

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of connections that break: clients that leave are part of the tests."""


@contextmanager
def raw_origin() -> Iterator[RawOrigin]:
    """Run an origin server in threads of its own, and yield its script."""
    script = RawOrigin()
    with _Server(script) as server:
        script.url = f"http://{HOST}:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield script
        finally:
            server.shutdown()
            thread.join(WITHIN_S)


@dataclass
class Received:
    """A response as it came: *whole* if its body is as long as it says, *closes* if that ends the connection."""

    status: int
    lines: list[str]
    body: bytes
    whole: bool
    closes: bool

    def values(self, name: str) -> list[str]:
        """Return the values of the field lines called *name* (lower case)."""
        return _values(self.lines, name)

    @property
    def told(self) -> str:
        """What our member of Cache-Status says, without our name and the seconds."""
        return re.sub(r"^app-cache; |; ttl=-?\d+", "", (self.values("cache-status") or [""])[-1])

    @property
    def fwd(self) -> str:
        """Why the request went forward, empty if it did not."""
        match = re.search("fwd=([a-z-]+)", self.told)
        return match[1] if match else ""

    @property
    def own_lines(self) -> list[str]:
        """The lines of the origin server, without those of the cache and of the framing."""
        ours = ("age:", "cache-status:", "transfer-encoding:", "connection:")
        return [line for line in self.lines if not line.lower().startswith(ours)]


class Connection:
    """A connection to the server at *url*; each request must be read before the connection may be used again."""

    def __init__(self, url: str) -> None:
        host, _, port = url.removeprefix("http://").partition(":")
        self._socket = socket.create_connection((host, int(port)), WITHIN_S)
        self._file = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()

    def send(self, target: str, *lines: str, method: str = "GET", version: str = "1.1", body: bytes = b"") -> None:
        """Send a request."""
        head = [f"{method} {target} HTTP/{version}", "Host: test", *lines, "", ""]
        self._socket.sendall("\r\n".join(head).encode("latin-1") + body)

    def read(self, method: str = "GET") -> Received:
        """Read the response to a request of *method*, and not a byte more."""
        start = self._file.readline().decode("latin-1")
        assert start.startswith("HTTP/1.1 "), f"no response: {start!r}"
        status, lines = int(start.split(" ")[1]), _lines(self._file)
        closes = any(line.lower() == "connection: close" for line in lines)
        received = Received(status, lines, b"", whole=True, closes=closes)
        lengths, codings = received.values("content-length"), received.values("transfer-encoding")
        if method == "HEAD" or status in (204, 304):
            return received
        if codings:
            assert (codings, lengths) == (["chunked"], [])
            received.body, received.whole = _chunks(self._file)
        elif lengths:
            (length,) = map(int, lengths)
            received.body = self._file.read(length)
            received.whole = len(received.body) == length
        else:
            assert closes
            received.body = self._file.read()
        return received

    def ask(
        self, target: str, *lines: str, method: str = "GET", version: str = "1.1", body: bytes = b""
    ) -> Received:
        """Send a request and read the response to it."""
        self.send(target, *lines, method=method, version=version, body=body)
        return self.read(method)

    def read_until(self, end: bytes) -> bytes:
        """Return what comes up to and with *end*, as soon as it is there."""
        came = b""
        while not came.endswith(end):
            byte = self._file.read(1)
            assert byte, f"closed after {came!r}"
            came += byte
        return came

    def is_closed(self) -> bool:
        """Return whether the other end closes without another byte."""
        return self._file.read(1) == b""

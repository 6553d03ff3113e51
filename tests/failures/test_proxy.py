"""The proxy breaks what it is told to break, and nothing else."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING

import pytest

from tests.failures.proxy import (
    HOST,
    Delay,
    Drop,
    FaultProxy,
    Garbage,
    Mode,
    Pass,
    Refuse,
    Reset,
    Slow,
    Truncate,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

WITHIN_S = 10
LONG_S = 3600


class Echo:
    """A server that sends back what it is sent, on a port of its own."""

    def __init__(self) -> None:
        self._listening = socket.create_server((HOST, 0))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Accept no more."""
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._echo, args=(connection,), daemon=True).start()

    @staticmethod
    def _echo(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(65_536):
                    connection.sendall(data)
            except OSError:
                return


@pytest.fixture
def proxy() -> Iterator[FaultProxy]:
    """A proxy before an echo."""
    echo = Echo()
    try:
        with FaultProxy(echo.port, seed=7) as proxy:
            yield proxy
    finally:
        echo.close()


def connected(proxy: FaultProxy) -> socket.socket:
    """Return a connection to *proxy*."""
    return socket.create_connection((HOST, proxy.port), timeout=WITHIN_S)


def echoed(connection: socket.socket, data: bytes) -> bytes:
    """Return what comes back for *data*, up to as many bytes; less if the connection ends."""
    connection.sendall(data)
    received = b""
    while len(received) < len(data) and (part := connection.recv(65_536)):
        received += part
    return received


def test_pass(proxy: FaultProxy) -> None:
    """What passes is as it was, and connections are counted."""
    data = bytes(range(256)) * 1000
    with connected(proxy) as first, connected(proxy) as second:
        assert (echoed(first, data), echoed(second, b"b")) == (data, b"b")
        assert (proxy.connections, proxy.open) == (2, 2)


def test_delay_ends_with_its_mode(proxy: FaultProxy) -> None:
    """What is late comes at once when the mode is another, and right."""
    with connected(proxy) as connection:
        proxy.mode = Delay(LONG_S)
        connection.sendall(b"late")
        connection.settimeout(0.05)
        with pytest.raises(TimeoutError):
            connection.recv(4)
        proxy.mode = Pass()
        connection.settimeout(WITHIN_S)
        assert connection.recv(4) == b"late"


def test_drop(proxy: FaultProxy) -> None:
    """Nothing comes back, not even later on a connection that lost something; a new one and an idle one go on."""
    with connected(proxy) as lost, connected(proxy) as idle:
        assert (echoed(lost, b"a"), echoed(idle, b"a")) == (b"a", b"a")
        proxy.mode = Drop()
        lost.sendall(b"b")
        lost.settimeout(0.05)
        with pytest.raises(TimeoutError):
            lost.recv(1)
        proxy.mode = Pass()
        lost.sendall(b"c")
        with pytest.raises(TimeoutError):
            lost.recv(1)
        assert echoed(idle, b"d") == b"d"
        with connected(proxy) as new:
            assert echoed(new, b"e") == b"e"


@pytest.mark.parametrize("mode", [Reset(), Refuse()])
def test_reset_of_open_connections(proxy: FaultProxy, mode: Mode) -> None:
    """Open connections end with RST at once."""
    with connected(proxy) as connection:
        assert echoed(connection, b"a") == b"a"
        proxy.mode = mode
        with pytest.raises(ConnectionResetError):
            connection.recv(1)


def test_reset_of_new_connections(proxy: FaultProxy) -> None:
    """New connections end with RST once they are accepted."""
    proxy.mode = Reset()
    with pytest.raises(ConnectionResetError), connected(proxy) as connection:
        connection.recv(1)
    proxy.mode = Pass()
    with connected(proxy) as connection:
        assert echoed(connection, b"a") == b"a"


def test_refuse(proxy: FaultProxy) -> None:
    """Nobody listens, and somebody does again on the same port."""
    for _ in range(2):
        proxy.mode = Refuse()
        with pytest.raises(ConnectionRefusedError):
            connected(proxy)
        proxy.mode = Pass()
        with connected(proxy) as connection:
            assert echoed(connection, b"a") == b"a"


def test_garbage(proxy: FaultProxy) -> None:
    """Answers are other bytes, as many, the same for the same seed; that connection is spoiled for ever."""
    proxy.mode = Garbage()
    data = b"answer" * 10
    with connected(proxy) as connection:
        first = echoed(connection, data)
        proxy.mode = Pass()
        second = echoed(connection, data)
    assert data not in (first, second)
    assert (len(first), len(second)) == (len(data), len(data))
    with FaultProxy(proxy.port_behind, seed=7) as again, connected(again) as connection:
        again.mode = Garbage()
        assert echoed(connection, data) == first


@pytest.mark.parametrize("most", [0, 1, 5])
def test_truncate(proxy: FaultProxy, most: int) -> None:
    """A connection ends after so many bytes of answers."""
    proxy.mode = Truncate(most)
    with connected(proxy) as connection:
        assert echoed(connection, b"0123456789") == b"0123456789"[:most]


def test_slow(proxy: FaultProxy) -> None:
    """An answer comes piece by piece, and whole; the rest at once when the mode is another."""
    proxy.mode = Slow(20)
    data = b"0123456789"
    with connected(proxy) as connection:
        connection.sendall(data)
        assert connection.recv(100) == data[:1]
        proxy.mode = Pass()
        received = data[:1]
        while received != data:
            received += connection.recv(100)


def test_before_each_chunk(proxy: FaultProxy) -> None:
    """The test is told of each chunk before it goes on, and may break things right then."""
    told: list[None] = []
    proxy.before_chunk = lambda: told.append(None)
    with connected(proxy) as connection:
        assert echoed(connection, b"a") == b"a"
    assert len(told) == 2


def test_everything_is_closed() -> None:
    """At the end of the proxy nothing is open, whatever its mode."""
    echo = Echo()
    for mode in (Pass(), Delay(LONG_S), Drop(), Slow(1), Refuse()):
        threads = threading.active_count()
        with FaultProxy(echo.port) as proxy, connected(proxy) as connection:
            connection.sendall(b"data")
            proxy.mode = mode
        assert proxy.open == 0
        with pytest.raises(ConnectionRefusedError):
            connected(proxy)
        assert threading.active_count() <= threads + 1
    echo.close()


def test_server_behind_is_away() -> None:
    """Where nobody listens behind it, connections end at once."""
    with socket.socket() as unused:
        unused.bind((HOST, 0))
        with (
            pytest.raises(ConnectionResetError),
            FaultProxy(unused.getsockname()[1]) as proxy,
            connected(proxy) as connection,
        ):
            connection.recv(1)

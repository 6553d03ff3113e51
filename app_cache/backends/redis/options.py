"""The options of `RedisBackend`, checked and read into values: what cannot work is refused here.

An option that is not given is absent, which is something else than None, False or 0. Nothing here connects, logs,
or imports redis, and only `TlsOptions.context` reads files. No message shows a secret.
"""

from __future__ import annotations

import math
import os
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from enum import Enum
from types import MappingProxyType
from typing import Any, TypedDict

from app_cache.backends.redis.url import UNIX, RedisUrl, agreed
from app_cache.errors import ConfigurationError

FilePath = str | os.PathLike[str]


class NotGiven(Enum):
    """Stands for an argument that was left out, which is something else than None."""

    NOT_GIVEN = "not given"


class RedisOptions(TypedDict, total=False):
    """What `RedisBackend` takes for its connections; each option may be left out."""

    max_connections: int
    """How many connections one event loop opens at most; 10."""
    max_connections_per_pool: int
    """The older name of *max_connections*; beside it, ignored with a warning in the log."""
    retry_on_timeout: bool
    """Whether a command that had no answer in time is sent once more, as after a broken connection; True."""
    socket_timeout: float | None
    """Seconds in which each attempt of a command is answered; 0.5. None for no bound."""
    socket_connect_timeout: float | None
    """Seconds in which each attempt to connect succeeds; 0.5. None for that of *socket_timeout*."""
    socket_keepalive: bool
    """Whether the kernel asks idle connections for a sign of life; True."""
    socket_keepalive_options: Mapping[str, int] | Mapping[int, int] | None
    """``{"idle": 30, "interval": 5, "count": 3}``, or by the constants of `socket`; None for the kernel's own."""
    health_check_interval: float
    """Seconds after which an idle connection must answer a PING before it is used; 30. 0 for never."""
    username: str | None
    """As whom to speak to the server, where the URL does not say."""
    password: str | None
    """The password, where the URL does not say."""
    db: int
    """The number of the database, where the URL does not say; 0."""
    sentinel_username: str | None
    """As whom to speak to the Sentinels."""
    sentinel_password: str | None
    """The password that the Sentinels ask for; that of the URL is for the server."""
    ssl: bool
    """Whether to connect by TLS, where the scheme of the URL does not say."""
    ssl_keyfile: FilePath | None
    """The key of *ssl_certfile*, in PEM and without a passphrase, where it is not in that file."""
    ssl_certfile: FilePath | None
    """The certificate to show to the server, in PEM."""
    ssl_cert_reqs: str | ssl.VerifyMode
    """Whether the server's certificate must hold: ``"required"``, ``"optional"`` or ``"none"``; required."""
    ssl_ca_certs: FilePath | None
    """The certificates to trust, in PEM; None for the system's."""
    ssl_check_hostname: bool
    """Whether the server's certificate must be for the host of the URL; True."""
    connection_pool: Any
    """A pool of `redis.asyncio` to use as it is, in place of the URL and of all options above."""


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """How to connect by TLS."""

    keyfile: FilePath | None
    certfile: FilePath | None
    cert_reqs: ssl.VerifyMode
    ca_certs: FilePath | None
    check_hostname: bool

    def context(self) -> ssl.SSLContext:
        """Return a context with the certificates read from their files.

        Raises:
            OSError: If a file cannot be read or holds something else; the message names option and file.
        """
        with _naming("ssl_ca_certs", self.ca_certs):
            context = ssl.create_default_context(cafile=self.ca_certs)
        context.check_hostname = self.check_hostname
        context.verify_mode = self.cert_reqs
        if self.certfile is not None:
            # Without a password of ours OpenSSL asks for one on the terminal, and waits.
            with _naming("ssl_certfile", self.certfile):
                context.load_cert_chain(self.certfile, self.keyfile, password="")
        return context


@dataclass(frozen=True, slots=True)
class ConnectionPlan:
    """How to connect, with nothing left open."""

    server: RedisUrl
    max_connections: int
    retry_on_timeout: bool
    socket_timeout: float | None
    socket_connect_timeout: float | None
    keepalive: Mapping[int, int] | None
    """The options of the socket, by the platform's numbers; None for no keepalive."""
    health_check_interval: float
    tls: TlsOptions | None
    sentinel_username: str | None
    sentinel_password: str | None


@dataclass(frozen=True, slots=True)
class Rule:
    """What an option must be: a test, and the words for it."""

    holds: Callable[[Any], bool]
    right: str


def _is_seconds(value: object) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and 0 < value < math.inf


def _is_interval(value: object) -> bool:
    return _is_seconds(value) or (value == 0 and not isinstance(value, bool))


def _is_file_path(value: object) -> bool:
    return isinstance(value, str | os.PathLike) and value != ""


def _is_cert_reqs(value: object) -> bool:
    return isinstance(value, ssl.VerifyMode) or (isinstance(value, str) and value in CERT_REQS)


def _is_text_encoding(value: object) -> bool:
    try:
        return isinstance(value, str) and "".encode(value) is not None
    except (LookupError, ValueError):
        return False


def _whole(least: int, most: float = math.inf) -> Rule:
    bounds = f"from {least}" + ("" if most == math.inf else f" to {most}")
    return Rule(lambda value: type(value) is int and least <= value <= most, f"a whole number {bounds}")


def _or_none(rule: Rule, meaning: str = "") -> Rule:
    return Rule(lambda value: value is None or rule.holds(value), f"{rule.right}, or None{meaning}")


CERT_REQS = {"required": ssl.CERT_REQUIRED, "optional": ssl.CERT_OPTIONAL, "none": ssl.CERT_NONE}
YES_OR_NO = Rule(lambda value: isinstance(value, bool), "True or False")
SECONDS = Rule(_is_seconds, "a positive number of seconds")
TEXT_ENCODING = Rule(_is_text_encoding, 'the name of a text encoding, such as "utf-8"')
TEXT = Rule(lambda value: isinstance(value, str) and value != "", "a text that is not empty")
PEM_FILE = Rule(_is_file_path, "the path of a PEM file")
TRIO = Rule(lambda value: isinstance(value, Mapping), 'a dict such as {"idle": 30, "interval": 5, "count": 3}')
KEEPALIVE_RULES = {"idle": _whole(1, 32767), "interval": _whole(1, 32767), "count": _whole(1, 127)}
RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "max_connections": _whole(1),
        "max_connections_per_pool": _whole(1),
        "retry_on_timeout": YES_OR_NO,
        "socket_timeout": _or_none(SECONDS, " for no bound"),
        "socket_connect_timeout": _or_none(SECONDS, " for that of socket_timeout"),
        "socket_keepalive": YES_OR_NO,
        "socket_keepalive_options": _or_none(TRIO, " for the kernel's own"),
        "health_check_interval": Rule(_is_interval, "a number of seconds, or 0 for never"),
        "username": _or_none(TEXT),
        "password": _or_none(TEXT),
        "db": _whole(0),
        "sentinel_username": _or_none(TEXT),
        "sentinel_password": _or_none(TEXT),
        "ssl": YES_OR_NO,
        "ssl_keyfile": _or_none(PEM_FILE),
        "ssl_certfile": _or_none(PEM_FILE),
        "ssl_cert_reqs": Rule(_is_cert_reqs, '"required", "optional" or "none"'),
        "ssl_ca_certs": _or_none(PEM_FILE, " for the system's certificates"),
        "ssl_check_hostname": YES_OR_NO,
        "connection_pool": Rule(lambda _: True, "a pool of redis.asyncio, or None"),
    }
)
DEFAULTS: RedisOptions = {
    "max_connections": 10,
    "retry_on_timeout": True,
    "socket_timeout": 0.5,
    "socket_connect_timeout": 0.5,
    "socket_keepalive": True,
    "socket_keepalive_options": {"idle": 30, "interval": 5, "count": 3},
    "health_check_interval": 30,
    "ssl_cert_reqs": "required",
}
OPTIONS = ("url", "default_timeout", "operation_timeout", "encoding", "decode_responses", *RULES)
"""The names of all options that `RedisBackend` takes."""
SECRET = frozenset({"username", "password", "sentinel_username", "sentinel_password"})
VOID_WITHOUT_TLS: Mapping[str, object] = MappingProxyType(
    {
        "ssl_keyfile": None,
        "ssl_certfile": None,
        "ssl_cert_reqs": "required",
        "ssl_ca_certs": None,
        "ssl_check_hostname": False,
    }
)
"""Options that mean nothing without TLS, each with the value that is accepted even so: many write all out."""


def check(name: str, value: object, rule: Rule) -> None:
    """Raise `ConfigurationError` if *value* is not what *rule* asks of the option *name*."""
    if not rule.holds(value):
        given = f"an object of type {type(value).__name__}" if name in SECRET else repr(value)
        raise ConfigurationError(f"{name} must be {rule.right}, not {given}")


def check_options(options: Mapping[str, object]) -> None:
    """Raise `ConfigurationError` if one of *options* is unknown, or has a value that it never can have."""
    for name, value in options.items():
        if name not in RULES:
            names = ", ".join(OPTIONS)
            raise ConfigurationError(f"RedisBackend has no option {name!r}; {_meant(name)}it has {names}")
        check(name, value, RULES[name])


def _meant(name: str) -> str:
    """Return a question whether the option was meant that is most like *name*; ``""`` if none is like it."""
    return "".join(f"did you mean {each}? " for each in get_close_matches(name, OPTIONS, 1))


def check_pool_stands_alone(options: Mapping[str, object]) -> None:
    """Raise `ConfigurationError` if one of *options* means nothing beside a *connection_pool*."""
    void = sorted(name for name, value in options.items() if value is not None and name != "connection_pool")
    if void:
        raise ConfigurationError(
            f"connection_pool is used as it is: give {', '.join(void)} to the pool, not beside it"
        )


def read_options(url: RedisUrl, options: RedisOptions) -> ConnectionPlan:
    """Return how to connect to *url* with *options*, each of which was checked by itself.

    Raises:
        ConfigurationError: If two of them, or one and *url*, contradict each other.
    """
    chosen: RedisOptions = {**DEFAULTS, **options}
    for_sentinels = [name for name in ("sentinel_username", "sentinel_password") if options.get(name) is not None]
    if for_sentinels and url.service is None:
        raise ConfigurationError(f"{', '.join(for_sentinels)} mean nothing without redis+sentinel://")
    if "max_connections" not in options and "max_connections_per_pool" in options:
        chosen["max_connections"] = options["max_connections_per_pool"]
    return ConnectionPlan(
        server=replace(
            url,
            username=agreed("username", url.username, options.get("username")),
            password=agreed("password", url.password, options.get("password")),
            db=agreed("db", url.db, options.get("db")),
        ),
        max_connections=chosen["max_connections"],
        retry_on_timeout=chosen["retry_on_timeout"],
        socket_timeout=chosen["socket_timeout"],
        socket_connect_timeout=chosen["socket_connect_timeout"],
        keepalive=_keepalive(chosen, options),
        health_check_interval=chosen["health_check_interval"],
        tls=_tls(chosen, options) if _is_by_tls(url, options) else None,
        sentinel_username=options.get("sentinel_username"),
        sentinel_password=options.get("sentinel_password"),
    )


def keepalive_options(asked: Mapping[str, int] | Mapping[int, int]) -> dict[int, int]:
    """Return the options of TCP keepalive that are *asked* for, by the numbers that this platform has for them.

    Args:
        asked: By name (``idle``, ``interval``, ``count``) or by the constants of `socket`. If there are no keys
            but 1, 2 and 3, they stand for those names in that order: on Linux those numbers are other options,
            and connecting would fail.

    Raises:
        ConfigurationError: If a key is none of these, or no kernel takes a value.
    """
    numbers = {
        "idle": getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None)),
        "interval": getattr(socket, "TCP_KEEPINTVL", None),
        "count": getattr(socket, "TCP_KEEPCNT", None),
    }
    by_number = zip((1, 2, 3) if set(asked) <= {1, 2, 3} else numbers.values(), numbers, strict=True)
    names: dict[object, str] = {name: name for name in numbers} | dict(by_number)
    found: dict[int, int] = {}
    for key, value in asked.items():
        if key not in names:
            raise ConfigurationError(
                f"socket_keepalive_options has {key!r}, which is none of idle, interval, count"
            )
        check(f"socket_keepalive_options[{key!r}]", value, KEEPALIVE_RULES[names[key]])
        number = numbers[names[key]]
        if number is not None:
            found[number] = value
    return found


def _keepalive(chosen: RedisOptions, given: RedisOptions) -> dict[int, int] | None:
    if chosen["socket_keepalive"]:
        return keepalive_options(chosen["socket_keepalive_options"] or {})
    if given.get("socket_keepalive_options"):
        raise ConfigurationError(
            "socket_keepalive_options mean nothing with socket_keepalive=False: leave one out"
        )
    return None


def _is_by_tls(url: RedisUrl, options: RedisOptions) -> bool:
    """Return whether to connect by TLS; options that need it and do not get it are refused."""
    asked = options.get("ssl", url.tls)
    if url.tls and not asked:
        raise ConfigurationError(f"ssl=False contradicts {url.scheme}://: leave it out, or the s of the scheme")
    if asked and url.scheme == UNIX:
        raise ConfigurationError("ssl=True contradicts unix://: a Unix socket has no TLS")
    given: Mapping[str, object] = options
    void = [name for name, accepted in VOID_WITHOUT_TLS.items() if given.get(name, accepted) != accepted]
    if void and not asked:
        raise ConfigurationError(f"{', '.join(void)} mean nothing without TLS: give ssl=True, or leave them out")
    return asked


def _tls(chosen: RedisOptions, given: RedisOptions) -> TlsOptions:
    asked = chosen["ssl_cert_reqs"]
    cert_reqs = CERT_REQS[asked] if isinstance(asked, str) else asked
    check_hostname = given.get("ssl_check_hostname", cert_reqs != ssl.CERT_NONE)
    if check_hostname and cert_reqs == ssl.CERT_NONE:
        raise ConfigurationError(
            'ssl_check_hostname=True contradicts ssl_cert_reqs="none": nothing would be checked'
        )
    keyfile, certfile = given.get("ssl_keyfile"), given.get("ssl_certfile")
    if keyfile is not None and certfile is None:
        raise ConfigurationError("ssl_keyfile is the key of a certificate: give ssl_certfile too")
    return TlsOptions(keyfile, certfile, cert_reqs, given.get("ssl_ca_certs"), check_hostname)


@contextmanager
def _naming(option: str, path: FilePath | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(f"{option}={os.fspath(path or '')!r}: {error.strerror or error}") from error

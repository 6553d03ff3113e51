"""Where a Redis is: the URLs that `RedisBackend` takes, read into values.

Nothing here connects, logs, or imports redis. Errors show nothing that could be a secret: of a URL that cannot be
read, only what certainly is an address.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import parse_qsl, unquote

from app_cache.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    Wrong = Callable[[str], ConfigurationError]
    """Makes the error that names the URL and says what would have been right."""

T = TypeVar("T")

DEFAULT_URL = "redis://localhost:6379"
DEFAULT_PORT = 6379
DEFAULT_SENTINEL_PORT = 26379
ONE_SERVER = ("redis", "rediss", "valkey", "valkeys")
SENTINEL = ("redis+sentinel", "rediss+sentinel", "valkey+sentinel", "valkeys+sentinel")
CLUSTER = ("redis+cluster", "rediss+cluster", "valkey+cluster", "valkeys+cluster")
UNIX = "unix"

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*", re.IGNORECASE | re.ASCII)
_NO_PORT = r"port|\$\{[\w:-]+\}"
"""What stands for a port that was to be filled in."""
_NODE = rf"(?:\[[0-9a-f:.]+\]|[\w.-]*)(?::(?:\d{{1,5}}|{_NO_PORT}))?|(?:localhost|[\d.]+|\[[0-9a-f:.]+\]):\d+"
_ADDRESS = re.compile(rf"(?:{_NODE})(?:,(?:{_NODE}))*(?:/[\w./-]*)?", re.IGNORECASE | re.ASCII)
_NODE_PARTS = re.compile(rf"(\[[0-9a-fA-F:.]+\]|[\w.-]*)(?::([0-9]*|{_NO_PORT}))?")
_PORT = re.compile(r"[0-9]{1,5}")
_OPTION = re.compile(r"[a-z]+(?:_[a-z]+)+")
_DB = re.compile(r"([0-9]{1,9})/?")


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """Where a Redis is and as whom to speak to it; as text, without user and password."""

    scheme: str
    nodes: tuple[tuple[str, int], ...] = ()
    """Hosts with their ports: one server, or the Sentinels; none for a Unix socket."""
    path: str | None = None
    """The Unix socket."""
    service: str | None = None
    """What the Sentinels call the set of servers."""
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    db: int | None = None

    @property
    def tls(self) -> bool:
        """Whether the scheme asks for TLS."""
        return self.scheme.startswith(("rediss", "valkeys"))

    def __str__(self) -> str:
        hidden = "***@" if self.username or self.password else ""
        if self.path is not None:
            return f"{self.scheme}://{hidden}{self.path}?db={self.db or 0}"
        nodes = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.nodes)
        service = f"/{self.service}" if self.service else ""
        return f"{self.scheme}://{hidden}{nodes}{service}/{self.db or 0}"


def parse_redis_url(url: object, source: str | None = None) -> RedisUrl:
    """Return what *url* says.

    Args:
        url: ``redis://``, ``valkey://`` (with a second s: by TLS), ``unix://``, ``redis+sentinel://`` and so on.
        source: The environment variable that *url* came from, so that an error can name it.

    Raises:
        ConfigurationError: If *url* names nothing that can be connected to.
    """
    name = source or "url"
    if not isinstance(url, str) or not url:
        given = repr(url) if url is None or url == "" else f"an object of type {type(url).__name__}"
        raise ConfigurationError(f"{name} must be the URL of a server, such as {DEFAULT_URL!r}, not {given}")

    if url[0] in "\"'":
        raise ConfigurationError(f"{name} begins with a quotation mark: leave the quotation marks out")
    if url != url.strip():
        raise ConfigurationError(f"{name} begins or ends with a blank: leave it out")

    def wrong(right: str) -> ConfigurationError:
        return ConfigurationError(f"{name}={shown(url)!r} cannot be used: {right}")

    scheme, _, rest = url.partition("://")
    scheme = scheme.lower()
    if scheme in CLUSTER:
        raise wrong("Redis Cluster is not supported yet; name one server, or a set under Sentinel")
    if "://" not in url or scheme not in (*ONE_SERVER, *SENTINEL, UNIX):
        raise wrong("it must begin with redis://, rediss://, valkey://, valkeys://, unix:// or redis+sentinel://")
    return _read(scheme, rest, wrong)


def agreed(name: str, in_url: T | None, as_option: T | None) -> T | None:
    """Return the one value that the URL or the option *name* gives, or None if neither does.

    Raises:
        ConfigurationError: If both give one and they differ; neither value is shown.
    """
    if in_url is not None and as_option is not None and in_url != as_option:
        raise ConfigurationError(f"{name} differs from the one in the URL: give it in one place")
    return in_url if as_option is None else as_option


def shown(url: str) -> str:
    """Return *url* for a message, with ``***`` for whatever is not certainly an address.

    >>> shown("redis://alice:s3cret@cache.local:6379/0")
    'redis://***@cache.local:6379/0'
    >>> shown("redis://alice:s3cret")
    'redis://***'
    """
    before, separator, rest = url.rpartition("://")
    if separator and not _SCHEME.fullmatch(before):
        return "***"
    credentials, at, address = rest.rpartition("@")
    if not _ADDRESS.fullmatch(address) or "?" in credentials:
        return f"{before}{separator}***"
    return f"{before}{separator}{'***@' if at else ''}{address}"


def _read(scheme: str, rest: str, wrong: Wrong) -> RedisUrl:
    rest, _, query = rest.partition("?")
    if "#" in rest or "#" in query:
        raise wrong("a # in it must be written as %23")
    authority, _, path = rest.partition("/")
    credentials, _, hosts = authority.rpartition("@")
    username, _, password = credentials.partition(":")
    url = RedisUrl(scheme, username=unquote(username) or None, password=unquote(password) or None)
    if scheme == UNIX:
        url = _with_socket(url, hosts, path, wrong)
    elif scheme in SENTINEL:
        url = _with_service(url, hosts, path, wrong)
    else:
        url = _with_server(url, hosts, path, wrong)
    return _with_query(url, query, wrong)


def _with_socket(url: RedisUrl, hosts: str, path: str, wrong: Wrong) -> RedisUrl:
    if hosts or not path:
        raise wrong("a Unix socket is named by its whole path, as in unix:///run/redis.sock")
    return replace(url, path="/" + unquote(path))


def _with_server(url: RedisUrl, hosts: str, path: str, wrong: Wrong) -> RedisUrl:
    if "," in hosts:
        raise wrong("several hosts are for Sentinel, as in redis+sentinel://h1:26379,h2:26379/service")
    return replace(url, nodes=(_node(hosts, DEFAULT_PORT, wrong),), db=_db(path, wrong))


def _with_service(url: RedisUrl, hosts: str, path: str, wrong: Wrong) -> RedisUrl:
    service, _, db = path.partition("/")
    if not service:
        raise wrong("name the service after the hosts, as in redis+sentinel://host:26379/mymaster")
    nodes = tuple(_node(host, DEFAULT_SENTINEL_PORT, wrong) for host in hosts.split(","))
    return replace(url, nodes=nodes, service=unquote(service), db=_db(db, wrong))


def _node(text: str, default_port: int, wrong: Wrong) -> tuple[str, int]:
    parts = _NODE_PARTS.fullmatch(text)
    if parts is None:
        raise wrong(
            "after :// comes [user:password@]host:port; in user and password, write : / ? # @ as %3A and so on"
        )
    host, port = parts[1].strip("[]") or "localhost", parts[2] or str(default_port)
    if not _PORT.fullmatch(port) or not 0 < int(port) < 65536:
        raise wrong("a port is a number from 1 to 65535")
    return host, int(port)


def _db(text: str, wrong: Wrong) -> int | None:
    if not text:
        return None
    number = _DB.fullmatch(text)
    if number is None:
        raise wrong("the number of the database comes last, as in redis://localhost:6379/0")
    return int(number[1])


def _with_query(url: RedisUrl, query: str, wrong: Wrong) -> RedisUrl:
    asked = dict(parse_qsl(query, keep_blank_values=True))
    others = asked.keys() - {"db", "username", "password"}
    if others:
        options = sorted(name for name in others if _OPTION.fullmatch(name) and "@" not in query)
        given = f"give {', '.join(options)} as arguments" if options else "give other options as arguments"
        raise wrong(f"only db, username and password may stand in its query; {given}")
    return replace(
        url,
        db=agreed("db in the query", url.db, _db(asked.get("db", ""), wrong)),
        username=agreed("username in the query", url.username, asked.get("username") or None),
        password=agreed("password in the query", url.password, asked.get("password") or None),
    )

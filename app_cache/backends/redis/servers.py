"""Which server is connected to, and how: one by a plan, a set under Sentinel, or whatever a given pool has.

Nothing here connects: a server here makes the `Client` of an event loop, which connects with its first call.
"""

from __future__ import annotations

from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final, Protocol

from redis.asyncio import ConnectionPool, Redis, Sentinel
from redis.asyncio.connection import AbstractConnection, SSLConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.maint_notifications import MaintNotificationsConfig

from app_cache.backends.redis.connections import (
    SentinelConnection,
    SentinelTlsConnection,
    TcpConnection,
    TlsConnection,
    UnixConnection,
)
from app_cache.backends.redis.lending import Client
from app_cache.backends.redis.options import NotGiven, check_pool_stands_alone, read_options
from app_cache.backends.redis.url import DEFAULT_URL, UNIX, RedisUrl, parse_redis_url
from app_cache.errors import ConfigurationError
from app_cache.logger_config import logger

if TYPE_CHECKING:
    import ssl

    from app_cache.backends.redis.connections import SharedTlsContext
    from app_cache.backends.redis.lending import Closing
    from app_cache.backends.redis.options import ConnectionPlan, RedisOptions

RELIED_UPON: Final = (
    (ConnectionPool, "_get_free_connections"),
    (ConnectionPool, "_get_in_use_connections"),
    (AbstractConnection, "_connect"),
)
"""Private names of redis-py that `lending` and `connections` use: it promises none of them."""


class Server(Protocol):
    """A server, or a set of them, and how to connect to it."""

    address: RedisUrl

    def client(self, read_timeout: float) -> Client:
        """Return a client for the running event loop, which reads within *read_timeout* seconds.

        The client connects with its first call.

        Raises:
            OSError: If a file of certificates cannot be read.
        """
        ...


class _PlannedServer:
    """A server, or a set of servers under Sentinel, that is connected to by a plan."""

    def __init__(self, plan: ConnectionPlan) -> None:
        self.address = plan.server
        self._plan = plan

    def client(self, read_timeout: float) -> Client:
        redis, owned = (
            self._single() if self.address.service is None else self._under_sentinel(self.address.service)
        )
        keeps = self.address.service is None
        return Client(redis, self._plan.max_connections, read_timeout, *owned, keeps=keeps)

    def _single(self) -> tuple[Redis, list[Closing]]:
        options = self._session() | self._endpoint()
        pool = ConnectionPool(max_connections=self._plan.max_connections, **options)
        return Redis(connection_pool=pool), [pool.aclose]

    def _under_sentinel(self, service: str) -> tuple[Redis, list[Closing]]:
        make: Any = Sentinel
        sentinel = make(())
        sentinel.sentinels = [
            Redis.from_pool(ConnectionPool(**self._socket(), **self._to_sentinels(), **self._at(*node)))
            for node in self.address.nodes
        ]
        by = {"connection_class": SentinelConnection} | self._by_tls(SentinelTlsConnection)
        options = self._session() | by
        redis = sentinel.master_for(service, max_connections=self._plan.max_connections, **options)
        return redis, [redis.connection_pool.aclose, sentinel.aclose]

    def _endpoint(self) -> dict[str, Any]:
        if self.address.path is not None:
            return {"connection_class": UnixConnection, "path": self.address.path}
        (node,) = self.address.nodes
        return self._at(*node)

    def _at(self, host: str, port: int) -> dict[str, Any]:
        return {"connection_class": TcpConnection, "host": host, "port": port} | self._by_tls(TlsConnection)

    def _by_tls(self, connection_class: type[SharedTlsContext]) -> dict[str, Any]:
        if self._plan.tls is None:
            return {}
        return {"connection_class": connection_class, "tls_context": self._tls_context}

    def _session(self) -> dict[str, Any]:
        """Return the options of each connection to a server that keeps values."""
        return self._socket() | {
            "username": self.address.username,
            "password": self.address.password,
            "db": self.address.db or 0,
            "health_check_interval": self._plan.health_check_interval,
        }

    def _to_sentinels(self) -> dict[str, Any]:
        return {"username": self._plan.sentinel_username, "password": self._plan.sentinel_password}

    def _socket(self) -> dict[str, Any]:
        """Return the options of each connection, those to a Sentinel included."""
        plan = self._plan
        retried = (RedisConnectionError, RedisTimeoutError) if plan.retry_on_timeout else (RedisConnectionError,)
        options: dict[str, Any] = {
            "socket_timeout": plan.socket_timeout,
            "socket_connect_timeout": plan.socket_connect_timeout,
            "retry": Retry(NoBackoff(), 1, retried),
            "protocol": 3,
            "driver_info": None,
            # With these notifications the pool would take connections with unread answers for good ones.
            "maint_notifications_config": MaintNotificationsConfig(enabled=False),
        }
        if self.address.path is None:
            options["socket_keepalive"] = plan.keepalive is not None
            options["socket_keepalive_options"] = plan.keepalive
        return options

    @cached_property
    def _tls_context(self) -> ssl.SSLContext | None:
        return None if self._plan.tls is None else self._plan.tls.context()


class _GivenPool:
    """A pool that somebody else made, and closes."""

    def __init__(self, pool: ConnectionPool) -> None:
        self.address = _address(pool)
        self._pool = pool

    def client(self, read_timeout: float) -> Client:
        return Client(Redis(connection_pool=self._pool), self._pool.max_connections, read_timeout, is_own=False)


def server_of(url: str | NotGiven, url_source: str | None, options: RedisOptions) -> Server:
    """Return the server to connect to.

    Args:
        url: Where it is, unless *options* have a pool.
        url_source: The environment variable that *url* came from, for the error that names it.
        options: How to connect, each checked by itself.

    Raises:
        ConfigurationError: If *url* and *options* cannot work, or the redis-py that is installed cannot be used.
    """
    _check_redis_py()
    pool = options.get("connection_pool")
    if pool is None:
        if "max_connections" in options and "max_connections_per_pool" in options:
            because = "max_connections is given too"
            logger.warning("backend.option_ignored", option="max_connections_per_pool", because=because)
        address = parse_redis_url(DEFAULT_URL if url is NotGiven.NOT_GIVEN else url, url_source)
        return _PlannedServer(read_options(address, options))
    if not isinstance(pool, ConnectionPool):
        kind = f"{type(pool).__module__}.{type(pool).__qualname__}"
        raise ConfigurationError(f"connection_pool must be a ConnectionPool of redis.asyncio, not a {kind}")
    check_pool_stands_alone(options if url is NotGiven.NOT_GIVEN else {"url": url, **options})
    return _GivenPool(pool)


def _check_redis_py() -> None:
    for kind, name in RELIED_UPON:
        if not hasattr(kind, name):
            raise ConfigurationError(
                f"redis {version('redis')} cannot be used, for its {kind.__name__} has no {name}: "
                "install one that app-cache asks for"
            )


def _address(pool: ConnectionPool) -> RedisUrl:
    options = pool.connection_kwargs
    by_tls = issubclass(pool.connection_class, SSLConnection)
    scheme, at = "rediss" if by_tls else "redis", [options]
    if isinstance(pool, SentinelConnectionPool):
        at = [each.connection_pool.connection_kwargs for each in pool.sentinel_manager.sentinels]
        scheme = f"{scheme}+sentinel"
    return RedisUrl(
        scheme=UNIX if "path" in options else scheme,
        nodes=tuple((each.get("host", "localhost"), each.get("port", 6379)) for each in at),
        path=options.get("path"),
        service=getattr(pool, "service_name", None),
        username=options.get("username"),
        password=options.get("password"),
        db=int(options.get("db") or 0),
    )

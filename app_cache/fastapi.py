"""What FastAPI endpoints ask for: providers, their aliases, and the router of the administrative endpoints."""

from __future__ import annotations

import asyncio
import ipaddress
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, HTTPException, Query
from fastapi.params import Depends as DependsParameter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import HTTPConnection
from starlette.responses import Response

from app_cache.backends.base import CacheBackend, SizedBackend, capability
from app_cache.backends.wrapper import shown
from app_cache.checks import checked_tag
from app_cache.clock.base import Order
from app_cache.clock.names import tag_stamp
from app_cache.errors import ConfigurationError
from app_cache.health import CHECK_TIMEOUT_S, HealthCheck
from app_cache.invalidation import InvalidationService, result_of, stamp_of_url
from app_cache.keys import origin_of
from app_cache.logger_config import logger
from app_cache.policy import never_cached
from app_cache.rules.glob import checked_pattern
from app_cache.services import services_of
from app_cache.values import ValueCache

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_TARGETS = 1_000
"""Patterns, tags and URLs that one request may invalidate."""


async def get_backend(connection: HTTPConnection) -> CacheBackend:
    """Return the backend of the application that serves this request or websocket.

    Raises:
        NotWiredError: If it has no cache.
    """
    return services_of(connection.scope).backend()


async def get_invalidation(connection: HTTPConnection) -> InvalidationService:
    """Return the invalidation service of the application that serves this request or websocket.

    Raises:
        NotWiredError: If it has no cache.
    """
    return services_of(connection.scope).invalidation()


async def get_cache(connection: HTTPConnection) -> ValueCache:
    """Return the cache of values of the application that serves this request or websocket.

    Raises:
        NotWiredError: If it has no cache.
    """
    return services_of(connection.scope).values()


async def get_health(connection: HTTPConnection) -> HealthCheck:
    """Return the health check of the application that serves this request or websocket.

    Raises:
        NotWiredError: If it has no cache.
    """
    return services_of(connection.scope).health()


Backend = Annotated[CacheBackend, Depends(get_backend)]
"""The backend of the running app: ``async def stats(backend: Backend): ...``"""

Invalidation = Annotated[InvalidationService, Depends(get_invalidation)]
"""The invalidation service of the running app: ``await invalidation.by_tag("users")``"""

Cache = Annotated[ValueCache, Depends(get_cache)]
"""The cache of values of the running app: ``await cache.get_or_set("report:7", build, timeout=60)``"""

Health = Annotated[HealthCheck, Depends(get_health)]
"""The health check of the running app: ``await health.check()``"""


class Targets(BaseModel):
    """What to invalidate: each may be one, or a list."""

    model_config = ConfigDict(extra="forbid")

    pattern: str | list[str] = Field(default=[], description="Globs over URL paths: /users/*")
    tag: str | list[str] = Field(default=[], description="Tags")
    url: str | list[str] = Field(default=[], description="Absolute URLs, or paths for every host")
    soft: bool = Field(default=False, description="Mark as stale rather than drop")


class CacheInvalidated(BaseModel):
    """What was done: see `InvalidationResult`."""

    message: str
    durable: bool = Field(description="Whether the backend has it")
    epoch: int | None = Field(description="The count of invalidations that it began")
    widened_to: str | None = Field(default=None, description="What was invalidated in place of what was asked")


class CacheStats(BaseModel):
    """What the cache of a process did since it started."""

    backend: str
    namespace: str
    size: int | None
    breaker: str | None
    counts: dict[str, int]


class CacheHealth(BaseModel):
    """What a health check found."""

    status: str = Field(description="healthy, degraded or unhealthy")
    backend: str | None = None
    error: str | None = None


_NOT_GIVEN: Any = object()
_ADMITTED: dict[int | str, dict[str, Any]] = {403: {"description": "Not allowed"}}
_INVALIDATED: dict[int | str, dict[str, Any]] = {
    200: {"model": CacheInvalidated, "description": "Invalidated"},
    202: {
        "model": CacheInvalidated,
        "description": "Invalidated in this process; sent again before an entry is trusted",
    },
}
_CHECKED: dict[int | str, dict[str, Any]] = {
    200: {"model": CacheHealth, "description": "Healthy"},
    503: {"model": CacheHealth, "description": "Degraded or unhealthy"},
}
_NO_STORE = {"Cache-Control": "no-store"}
"""What the endpoints of the router say, for caches further out."""
_OF_PROXIES = frozenset({"cf-connecting-ip", "forwarded", "true-client-ip", "via", "x-client-ip", "x-real-ip"})
"""Fields that a proxy adds, beside ``X-Forwarded-…``."""


def cache_router(*, authorize: Callable[..., Any] | None = _NOT_GIVEN, prefix: str = "") -> APIRouter:
    """Return a router with ``POST /invalidate-cache``, ``GET /cache-stats`` and ``GET /health/cache``.

    Args:
        authorize: A FastAPI dependency that guards the first two: it refuses by raising; False is 403; anything
            else, None included, admits. ``authorize=None`` admits only clients on this machine that come without a
            proxy, from no page of another site, and ask for the machine by its own name.
        prefix: Goes before the paths.

    Raises:
        ConfigurationError: If *authorize* cannot be called; ``Depends(…)`` around it is not needed.
        TypeError: If it is not given.
    """
    if authorize is _NOT_GIVEN:
        raise TypeError(
            "cache_router() needs authorize=…: a dependency that says who may invalidate, or None (this machine)"
        )
    _check_is_function(authorize)
    if authorize is not None and not callable(authorize):
        raise ConfigurationError(
            f"authorize must be a dependency, or None for this machine alone, not {authorize!r}"
        )
    if authorize is None:
        logger.warning("cache.router_open_to_loopback", because="authorize=None")
    guard = [Depends(_same_site), Depends(_admits(authorize or _from_this_machine))]
    router = APIRouter(prefix=prefix, tags=["cache"])
    router.add_api_route(
        "/invalidate-cache",
        _invalidate,
        methods=["POST"],
        name="invalidate_cache",
        dependencies=guard,
        responses=_ADMITTED | _INVALIDATED,
    )
    router.add_api_route(
        "/cache-stats",
        _stats,
        methods=["GET"],
        name="cache_stats",
        dependencies=guard,
        response_model=CacheStats,
        responses=_ADMITTED,
    )
    router.add_api_route("/health/cache", _health, methods=["GET"], name="cache_health", responses=_CHECKED)
    return router


def _check_is_function(authorize: object) -> None:
    if isinstance(authorize, DependsParameter):
        function = getattr(authorize.dependency, "__name__", "…")
        raise ConfigurationError(f"authorize takes the function, without Depends: authorize={function}")


def _admits(authorize: Callable[..., Any]) -> Callable[..., Any]:
    async def admitted(answer: Any = Depends(authorize)) -> None:  # noqa: B008  only a default can name a local
        if answer is False:
            raise HTTPException(403, "not allowed", _NO_STORE)

    return admitted


async def _same_site(connection: HTTPConnection) -> None:
    if connection.headers.get("sec-fetch-site") == "cross-site":
        raise HTTPException(403, "not from another site", _NO_STORE)


async def _from_this_machine(connection: HTTPConnection) -> bool:
    """Return whether a client of this machine asks, for itself: no proxy, and no page from elsewhere."""
    client, headers = connection.client, connection.headers
    return (
        client is not None
        and _is_loopback(client.host)
        and not any(name in _OF_PROXIES or name.startswith("x-forwarded-") for name in headers)
        and _names_this_machine(headers.get("host", ""))
        and headers.get("origin") in (None, origin_of(connection.scope))
        and headers.get("sec-fetch-site") in (None, "none", "same-origin")
    )


def _names_this_machine(host: str) -> bool:
    """Return whether *host* is a loopback address or ``localhost``, and no name that somebody points here."""
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return False
    return name == "localhost" or _is_loopback(name or "")


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


@never_cached
async def _invalidate(
    invalidation: Invalidation,
    targets: Targets | None = None,
    pattern: Annotated[list[str], Query()] = [],  # noqa: B006  FastAPI copies it
    tag: Annotated[list[str], Query()] = [],  # noqa: B006
    url: Annotated[list[str], Query()] = [],  # noqa: B006
    *,
    soft: bool = False,
) -> JSONResponse:
    """Invalidate what the body or the query names."""
    asked = targets or Targets()
    try:
        order = _order(
            [*_listed(asked.pattern), *pattern], [*_listed(asked.tag), *tag], [*_listed(asked.url), *url]
        )
    except ConfigurationError as error:
        raise HTTPException(422, str(error), _NO_STORE) from None
    order = replace(order, soft=soft or asked.soft)
    result = result_of(await invalidation.carry_out(order))
    told = {"message": "Cache invalidated", "durable": result.durable, "epoch": result.epoch}
    if result.widened_to is not None:
        told["widened_to"] = result.widened_to
    return JSONResponse(told, 200 if result.durable else 202, _NO_STORE)


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def _order(patterns: list[str], tags: list[str], urls: list[str]) -> Order:
    named = len(patterns) + len(tags) + len(urls)
    if not named:
        raise ConfigurationError("name what to invalidate: pattern, tag or url")
    if named > MAX_TARGETS:
        raise ConfigurationError(f"name at most {MAX_TARGETS} targets in one request, not {named}")
    globs = tuple(map(checked_pattern, patterns))
    stamps = [*(tag_stamp(checked_tag(tag)) for tag in tags), *map(stamp_of_url, urls)]
    return Order(tags=tuple(stamps), patterns=globs)


@never_cached
async def _stats(connection: HTTPConnection, answer: Response) -> dict[str, Any]:
    """Return what the cache of this process did since it started, and whether it asks its backend."""
    answer.headers.update(_NO_STORE)
    services = services_of(connection.scope)
    backend, store = services.backend(), services.store()
    return {
        "backend": shown(backend),
        "namespace": store.namespace,
        "size": await _size_of(backend),
        "breaker": None if store.breaker is None else store.breaker.state.value,
        "counts": dict(sorted(store.stats.items())),
    }


async def _size_of(backend: CacheBackend) -> int | None:
    """Return how many keys *backend* holds, or None if it does not know or does not say so in time."""
    sized = capability(backend, SizedBackend)
    if sized is None:
        return None
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            size: object = await sized.size()
    except Exception:  # noqa: BLE001  a backend may be anybody's code
        return None
    return size if isinstance(size, int) else None


@never_cached
async def _health(health: Health) -> JSONResponse:
    """Return whether the backend gives back what it is given."""
    report = await health.check()
    return JSONResponse(report.as_dict(), 200 if report.status == "healthy" else 503, _NO_STORE)

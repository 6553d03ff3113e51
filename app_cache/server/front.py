"""Does anything of an application's own stand between the server and its cache?

The stack is looked at as it was built, so that what others added, or put in the place of its methods, is seen.
"""

from __future__ import annotations

import sys
from types import FunctionType
from typing import TYPE_CHECKING, Any

from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

if TYPE_CHECKING:
    from app_cache.middleware import CacheMiddleware

LAYERS = frozenset(
    {
        ("app_cache.middleware", "CacheMiddleware"),
        ("fastapi._body_limit", "AppBodyLimitMiddleware"),
        ("fastapi._body_limit", "_BodyLimitExceptionMiddleware"),
        ("fastapi.applications", "FastAPI"),
        ("fastapi.telemetry._asgi", "ExceptionTelemetryMiddleware"),
        ("starlette.applications", "Starlette"),
        ("starlette.middleware.body_limit", "RequestBodyLimitMiddleware"),
        ("starlette.middleware.errors", "ServerErrorMiddleware"),
        ("uvicorn.middleware.proxy_headers", "ProxyHeadersMiddleware"),
    }
)
"""Classes that leave a GET without content and fields of proxies, and its answer, as they are."""


def stands_first(cache: CacheMiddleware, served: Any) -> bool:
    """Return whether nothing of the user's stands between *served*, what the server calls, and *cache*."""
    app = served.app if type(served) is ProxyHeadersMiddleware else served
    if app is cache.front:
        return True
    layer = served
    while _runs_as_written(type(layer)) and not _is_observed(layer):
        if layer is cache:
            return True
        layer = getattr(layer, "middleware_stack", None) or getattr(layer, "app", None)
    return False


def _is_observed(layer: Any) -> bool:
    """Return whether *layer* is an application of FastAPI that tells OpenTelemetry of each request."""
    telemetry = getattr(layer, "_native_telemetry", None)
    return telemetry is not None and bool(telemetry.enabled())


def _runs_as_written(kind: type) -> bool:
    """Return whether calling a *kind* runs what its authors wrote, and nothing else."""
    callable_as = [each for each in kind.__mro__ if "__call__" in vars(each)]
    return bool(callable_as) and all(map(_is_as_written, callable_as))


def _is_as_written(kind: type) -> bool:
    """Return whether *kind* is one of `LAYERS`, and nobody put another function in the place of its own."""
    call = vars(kind)["__call__"]
    return (
        (kind.__module__, kind.__qualname__) in LAYERS
        and type(call) is FunctionType
        and call.__globals__ is vars(sys.modules[kind.__module__])
    )

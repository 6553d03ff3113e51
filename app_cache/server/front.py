"""Does anything of an application's own stand between the server and its cache?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from app_cache.layers import WITHOUT_PROXY, first_cache, first_layer

if TYPE_CHECKING:
    from app_cache.middleware import CacheMiddleware


def stands_first(cache: CacheMiddleware, served: Any) -> bool:
    """Return whether nothing of the user's stands between *served*, what the server calls, and *cache*.

    Requests with fields of proxies are left to the server.
    """
    app = served.app if type(served) is ProxyHeadersMiddleware else served
    return app is cache.front or first_cache(served, WITHOUT_PROXY) is cache


def stands_outside(served: Any) -> str:
    """Return the name of what each request must go through before the cache, where *served* leads to that."""
    layer = first_layer(served, WITHOUT_PROXY)
    named = layer if hasattr(layer, "__qualname__") else type(layer)
    return f"{named.__module__}.{named.__qualname__}"

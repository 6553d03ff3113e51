"""What stands outside of the cache, and a way past it where nothing of the user's does.

A stack of middleware is looked at as it was built, so that what others added, or put in the place of its methods,
is seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.middleware.errors import ServerErrorMiddleware

from app_cache.exchange import ASKED_IN_VAIN
from app_cache.fastpath import Question
from app_cache.middleware import CacheMiddleware
from app_cache.routes.ways import BODY_LIMITS, runs_as_written

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from app_cache.asgi import App, Receive, Scope, Send
    from app_cache.fastpath import Messages
    from app_cache.routes.ways import Layers

LAYERS = BODY_LIMITS | frozenset(
    {
        ("app_cache.layers", "Shortcut"),
        ("app_cache.middleware", "CacheMiddleware"),
        ("fastapi._body_limit", "AppBodyLimitMiddleware"),
        ("fastapi.applications", "FastAPI"),
        ("fastapi.telemetry._asgi", "ExceptionTelemetryMiddleware"),
        ("starlette.applications", "Starlette"),
        ("starlette.middleware.errors", "ServerErrorMiddleware"),
    }
)
"""Classes that leave a GET without content, and its answer, as they are."""
WITHOUT_PROXY = LAYERS | {("uvicorn.middleware.proxy_headers", "ProxyHeadersMiddleware")}
"""Classes that do so as long as the request has no fields of proxies either."""


class Shortcut(ServerErrorMiddleware):
    """The outermost layer of a stack of middleware, which gives the hits that *cache* remembers past the others.

    It is a `ServerErrorMiddleware` because those who put a layer of their own into a stack look for one there.

    Args:
        outermost: The layer that it replaces.
        cache: The cache in the stack. Nothing of the user's stands outside of it: that would have to see each hit.
    """

    def __init__(self, outermost: ServerErrorMiddleware, cache: CacheMiddleware) -> None:
        super().__init__(outermost.app, outermost.handler, outermost.debug)
        self._fast = cache.fast
        self._remembered = cache.remembered

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Coroutine[Any, Any, None]:
        """Return what answers: from what is remembered, or the stack."""
        if scope["type"] == "http" and scope["path"] in self._remembered:
            hit = self._fast.answer(scope)
            if hit is not None:
                return self._give(hit, scope, receive, send)
            scope.setdefault(ASKED_IN_VAIN, False)
        return super().__call__(scope, receive, send)

    async def _give(self, hit: Messages | Question, scope: Scope, receive: Receive, send: Send) -> None:
        messages = await hit.asked() if isinstance(hit, Question) else hit
        if messages is None:
            await super().__call__(scope, receive, send)
            return
        await send(messages[0])
        await send(messages[1])


def with_shortcut(build: Callable[[], App]) -> Callable[[], App]:
    """Return what builds the stack that *build* does, with a `Shortcut` to the cache in it if there may be one."""

    def build_with_shortcut() -> App:
        stack = build()
        cache = first_cache(stack)
        return stack if cache is None or type(stack) is not ServerErrorMiddleware else Shortcut(stack, cache)

    return build_with_shortcut


def first_cache(outermost: Any, layers: Layers = LAYERS) -> CacheMiddleware | None:
    """Return the cache that *outermost* is or leads to, if nothing but *layers* stands outside of it."""
    layer = first_layer(outermost, layers)
    return layer if isinstance(layer, CacheMiddleware) and _lets_past(layer, layers) else None


def first_layer(outermost: Any, layers: Layers = LAYERS) -> Any:
    """Return the first layer from *outermost* on that is a cache, or is not one of *layers*."""
    layer = outermost
    while _lets_past(layer, layers) and not isinstance(layer, CacheMiddleware):
        layer = getattr(layer, "middleware_stack", None) or getattr(layer, "app", None)
    return layer


def _lets_past(layer: Any, layers: Layers) -> bool:
    return runs_as_written(type(layer), layers) and not _is_observed(layer)


def _is_observed(layer: Any) -> bool:
    """Return whether *layer* is an application of FastAPI that tells OpenTelemetry of each request."""
    telemetry = getattr(layer, "_native_telemetry", None)
    return telemetry is not None and bool(telemetry.enabled())

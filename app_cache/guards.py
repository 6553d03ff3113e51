"""Guarded endpoints: before a stored answer is given, their dependencies run, but the endpoint itself does not.

A hit of a guarded endpoint goes through the application, with the stored answer in the place of the endpoint. If
its dependencies, or anything before them, answer instead, that is the client's own answer. The stored answer is
sent as it is: all middleware between has handled it once, when the endpoint ran.
"""

from __future__ import annotations

import functools
import inspect
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from app_cache.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.responses import Response

_MARK = "__app_cache_guarded__"


class Guard:
    """What takes the place of a guarded endpoint in one request.

    *passed* is set when the endpoint would run: then all that stands before it has let the request through.

    Args:
        stand_in: What the endpoint is taken to return; None lets it run.
    """

    def __init__(self, stand_in: Response | None = None) -> None:
        self.passed = False
        self.stand_in = stand_in


in_force: ContextVar[Guard | None] = ContextVar("app_cache_guard", default=None)
"""The guard that guarded endpoints ask in the current request, if any."""


class Guarding:
    """Puts *guard* in force for guarded endpoints that run within the block, and in tasks that begin there."""

    def __init__(self, guard: Guard | None) -> None:
        self._guard = guard

    def __enter__(self) -> None:
        self._token = in_force.set(self._guard)

    def __exit__(self, *_: object) -> None:
        in_force.reset(self._token)


def check_can_ask(endpoint: Callable[..., Any]) -> None:
    """Check that `guarded` can let *endpoint* ask.

    Raises:
        ConfigurationError: If it is a generator, whose answer has no end that could be stored.
    """
    if is_generator(endpoint):
        raise ConfigurationError(f"guarded=True cannot be for {endpoint!r}, which is a generator")


def guarded(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """Return *endpoint* as one that asks the guard of each request before it runs; as it is if it does so already.

    Raises:
        ConfigurationError: If it cannot; see `check_can_ask`.
    """
    if hasattr(endpoint, _MARK):
        return endpoint
    check_can_ask(endpoint)
    if any(map(inspect.iscoroutinefunction, _functions(endpoint))):

        @functools.wraps(endpoint)
        async def ask(*args: Any, **kwargs: Any) -> Any:
            stand_in = _passed()
            return await endpoint(*args, **kwargs) if stand_in is None else stand_in

    else:

        @functools.wraps(endpoint)
        def ask(*args: Any, **kwargs: Any) -> Any:
            stand_in = _passed()
            return endpoint(*args, **kwargs) if stand_in is None else stand_in

    setattr(ask, _MARK, True)
    return ask


def is_generator(call: Any) -> bool:
    """Return whether FastAPI takes *call*, an endpoint or a dependency, for a generator."""
    return any(inspect.isgeneratorfunction(each) or inspect.isasyncgenfunction(each) for each in _functions(call))


def _functions(call: Any) -> list[Any]:
    """Return the functions by which FastAPI decides how to run *call*: with their decorators and without them."""
    outer = _without_partials(call)
    called = [outer, inspect.unwrap(outer)]
    called += [_without_partials(type(each).__call__) for each in called]
    return [*called, *map(inspect.unwrap, called)]


def _without_partials(function: Any) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    return function


def _passed() -> Response | None:
    """Note that the request was let through; return what stands in for the endpoint."""
    guard = in_force.get()
    if guard is None:
        return None
    guard.passed = True
    return guard.stand_in

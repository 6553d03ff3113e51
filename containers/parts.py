"""Providers that tell when they may give something else from now on, so that nobody has to ask at each request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dependency_injector import containers, providers

from app_cache.services import changes

if TYPE_CHECKING:
    _Provider = providers.Provider[Any]
else:
    _Provider = object


class _Telling(_Provider):
    """Tells when it is overridden; until that ends it is asked, and so need not tell of the end."""

    tells = True

    def override(self, provider: Any) -> Any:
        try:
            return super().override(provider)
        finally:
            changes.told()


class Container(containers.DynamicContainer):
    """A container that tells when a provider takes the place of another in it."""

    def __setattr__(self, name: str, value: Any) -> None:
        try:
            super().__setattr__(name, value)
        finally:
            changes.told()


class Part(_Telling, providers.ThreadSafeSingleton[Any]):
    """Gives one object, made when it is first asked for, until it is reset."""

    def reset(self) -> Any:
        try:
            return super().reset()
        finally:
            changes.told()


class Given(_Telling, providers.Object[Any]):
    """Gives the object that it was given."""

    def set_provides(self, provides: Any) -> Any:
        try:
            return super().set_provides(provides)
        finally:
            changes.told()


class Found(_Telling, providers.Callable[Any]):
    """Gives what a function finds, by parts, at each call."""

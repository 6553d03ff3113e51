"""Providers that tell when they may give something else from now on, and so need not be asked at each request."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, TypeVar

from dependency_injector import containers, providers

from app_cache.errors import ConfigurationError
from app_cache.services import replacements

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def _telling(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def told(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        finally:
            replacements.told()

    return told


class _Telling:
    """Tells when it is overridden; an overridden one is asked each time, and so need not tell when that ends."""

    tells = True
    override = _telling(providers.Provider.override)


class Container(containers.DynamicContainer):
    """A container that tells when a provider takes the place of one of its own, and lets nothing else take it."""

    @_telling
    def __setattr__(self, name: str, value: object) -> None:
        if name in self.__dict__.get("providers", ()) and not isinstance(value, providers.Provider):
            raise ConfigurationError(
                f"{name} of a container is a provider: container.{name}.override(…), or CacheContainer({name}=…), "
                f"puts a {type(value).__qualname__} in its place"
            )
        super().__setattr__(name, value)

    def override_providers(self, **overriding: Any) -> Any:
        """Put *overriding* in the place of the providers of their names, as the constructor does.

        Raises:
            ConfigurationError: If there is none of such a name.
        """
        unknown = overriding.keys() - self.providers.keys()
        if unknown:
            raise ConfigurationError(f"the container has no {min(unknown)}; it has {', '.join(self.providers)}")
        return super().override_providers(**overriding)


class Part(_Telling, providers.ThreadSafeSingleton[T]):
    """Gives one object, made when it is first asked for, until it is reset."""

    reset = _telling(providers.ThreadSafeSingleton.reset)


class Given(_Telling, providers.Object[T]):
    """Gives the object that it was given."""

    set_provides = _telling(providers.Object.set_provides)


class Derived(_Telling, providers.Callable[T]):
    """Gives what a function makes of other parts, at each call."""

    @property
    def made_of(self) -> tuple[providers.Provider[Any], ...]:
        """Those parts."""
        given = (*self.args, *self.kwargs.values())
        return tuple([each for each in given if isinstance(each, providers.Provider)])

    set_provides = _telling(providers.Callable.set_provides)
    add_args = _telling(providers.Callable.add_args)
    set_args = _telling(providers.Callable.set_args)
    clear_args = _telling(providers.Callable.clear_args)
    add_kwargs = _telling(providers.Callable.add_kwargs)
    set_kwargs = _telling(providers.Callable.set_kwargs)
    clear_kwargs = _telling(providers.Callable.clear_kwargs)

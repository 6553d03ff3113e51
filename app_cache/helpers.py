"""The backend of this process, for code that has no request and no container at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app_cache.config import CacheSettings, build_backend
from app_cache.services import current_services

if TYPE_CHECKING:
    from collections.abc import Mapping

    from app_cache.backends.base import CacheBackend


def get_cache_backend() -> CacheBackend:
    """Return the backend of the application that serves this request; outside one, of the only one installed.

    A request counts once it came to a cache. Middleware that stands before that is outside of it.

    Raises:
        NotWiredError: If no application has a cache, or several have and none serves a request here.
    """
    return current_services().backend()


def create_backend_from_env(environ: Mapping[str, str] | None = None) -> CacheBackend:
    """Return the backend that ``CACHE_BACKEND``, or else ``ENVIRONMENT``, names; it connects to nothing.

    Args:
        environ: Where the variables are read; ``os.environ`` if not given.

    Raises:
        ConfigurationError: If a variable is wrong, or one that is needed is missing; it is named.
    """
    return build_backend(CacheSettings(environ))

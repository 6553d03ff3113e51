"""The dependency-injector container of app_cache, and how it is put on an application."""

from containers.cache import CacheContainer
from containers.install import close, install

__all__ = ["CacheContainer", "close", "install"]

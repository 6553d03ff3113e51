"""Response caching for FastAPI that obeys HTTP: safe by default, wired by a container, invalidated by tag.

@app.get("/users/{user_id}")
@cache(timeout=300, tags=["user_{user_id}"])
async def user(user_id: int): ...

install(app, CacheContainer())     # from containers import CacheContainer, install
"""

from app_cache.backends.base import CacheBackend
from app_cache.backends.compressed import CompressedBackend, CompressedMemoryBackend
from app_cache.backends.memory import MemoryBackend
from app_cache.backends.metrics import MetricsBackend
from app_cache.backends.redis.backend import RedisBackend
from app_cache.backends.router import BackendRouter
from app_cache.clock.base import Order
from app_cache.config import ENVIRONMENTS, CacheConfig, CacheSettings, Environment
from app_cache.errors import AppCacheError, BackendError, ConfigurationError, EncodingError, NotWiredError
from app_cache.invalidation import InvalidationResult, InvalidationService
from app_cache.keys import DefaultKeyGenerator, KeyGenerator
from app_cache.middleware import CacheMiddleware
from app_cache.policy import CachePolicy, add_tags, cache, invalidates
from app_cache.values import ValueCache

__all__ = [
    "ENVIRONMENTS",
    "AppCacheError",
    "BackendError",
    "BackendRouter",
    "CacheBackend",
    "CacheConfig",
    "CacheMiddleware",
    "CachePolicy",
    "CacheSettings",
    "CompressedBackend",
    "CompressedMemoryBackend",
    "ConfigurationError",
    "DefaultKeyGenerator",
    "EncodingError",
    "Environment",
    "InvalidationResult",
    "InvalidationService",
    "KeyGenerator",
    "MemoryBackend",
    "MetricsBackend",
    "NotWiredError",
    "Order",
    "RedisBackend",
    "ValueCache",
    "add_tags",
    "cache",
    "invalidates",
]

"""A protocol for uvicorn that gives hits of the cache before a request is made of their bytes.

uvicorn --http app_cache.server:CacheProtocol main:app

Where uvicorn is not as it is known here, the class is uvicorn's own, and the log says why.
"""

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from app_cache.logger_config import logger
from app_cache.server.fitness import why_not

__all__ = ["CacheProtocol"]

CacheProtocol = AutoHTTPProtocol
"""The class to give to uvicorn: ``uvicorn.run("main:app", http=CacheProtocol)``."""

if (reason := why_not()) is None:
    from app_cache.server.protocol import CacheProtocol
else:
    logger.warning("cache.server_unknown", because=reason)

"""Values in Redis or Valkey: the only package that imports redis.

`RedisBackend` has the verbs (`backend`). Below it: which server (`servers`) and how to connect to it (`url`,
`options`, `connections`), whose turn it is (`lending`), look-ups that leave together (`reader`), what is sent
(`commands`), and what went wrong (`faults`).
"""

from app_cache.backends.redis.backend import RedisBackend

__all__ = ["RedisBackend"]

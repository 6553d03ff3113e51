"""A backend of your own: four coroutines, and everything else works on them, tags and patterns too."""

import time

from dependency_injector import providers
from fastapi import FastAPI

from app_cache import CacheBackend, cache
from containers import CacheContainer, install


class DictBackend(CacheBackend):
    """Keeps values in a dictionary that knows no bounds."""

    def __init__(self) -> None:
        self.kept: dict[str, tuple[str, float]] = {}

    async def get(self, key: str) -> str | None:
        value, until = self.kept.get(key, (None, 0.0))
        return value if time.monotonic() < until else None

    async def set(self, key: str, value: str, timeout: int) -> None:
        self.kept[key] = (value, time.monotonic() + timeout)

    async def delete(self, key: str) -> None:
        self.kept.pop(key, None)

    async def close(self) -> None:
        self.kept.clear()


app = FastAPI()
install(app, CacheContainer(backend=providers.ThreadSafeSingleton(DictBackend)))


@app.get("/users/{user_id}")
@cache(timeout=300, tags=["user_{user_id}"])
async def user(user_id: int) -> dict[str, int]:
    return {"user_id": user_id}

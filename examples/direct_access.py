"""The backend itself, in endpoints and outside of them: for values of your own, beside the cached responses."""

from typing import Annotated

from fastapi import Depends, FastAPI

from app_cache import BackendError, CacheBackend
from app_cache.fastapi import Backend, get_backend
from app_cache.helpers import get_cache_backend
from containers import CacheContainer, install

app = FastAPI()
install(app, CacheContainer())


@app.put("/notes/{name}")
async def write(name: str, text: str, backend: Annotated[CacheBackend, Depends(get_backend)]) -> None:
    await backend.set(f"note:{name}", text, timeout=3600)


@app.get("/notes/{name}")
async def read(name: str, backend: Backend) -> dict[str, str | None]:
    """`Backend` is short for what the endpoint above writes out."""
    try:
        return {"text": await backend.get(f"note:{name}")}
    except BackendError:  # direct access tells when the backend is away; the middleware takes it as a miss
        return {"text": None}


async def forget(name: str) -> None:
    """A job without a request at hand: the backend of the only application of the process."""
    await get_cache_backend().delete(f"note:{name}")

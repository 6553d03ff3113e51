"""Environments are values: ``ENVIRONMENT=preview uvicorn examples.custom_environment:app``."""

from dataclasses import replace

from fastapi import FastAPI, Request

from app_cache import ENVIRONMENTS, Environment, KeyGenerator, Order, cache, invalidates
from app_cache.config import BACKENDS
from app_cache.invalidation import InvalidationResult, InvalidationService
from containers import CacheContainer, install


class ByBranch(KeyGenerator):
    """Tells requests apart by branch and path."""

    def generate_cache_key(self, request: Request) -> str:
        return f"{request.headers.get('x-branch', 'main')}:{request.url.path}"


class SoftInvalidation(InvalidationService):
    """Marks as stale rather than drops."""

    async def carry_out(self, order: Order) -> InvalidationResult:
        return await super().carry_out(replace(order, soft=True))


preview = Environment("preview", BACKENDS["memory"], ByBranch, namespace="preview", invalidation=SoftInvalidation)
app = FastAPI()
install(app, CacheContainer(environments={**ENVIRONMENTS, "preview": preview}))


@app.get("/pages/{name}")
@cache(timeout=300, stale_while_revalidate=30, tags=["page_{name}"])
async def page(name: str, request: Request) -> dict[str, str]:
    return {"page": name, "branch": request.headers.get("x-branch", "main")}


@app.post("/pages/{name}/edited")
@invalidates(tags=["page_{name}"])
async def edited(name: str) -> None: ...

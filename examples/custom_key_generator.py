"""Keys of your own: what a response depends on is for you to say; it is hashed with the method and namespaced."""

from fastapi import FastAPI, Request

from app_cache import KeyGenerator, cache
from containers import CacheContainer, install


class PerTenant(KeyGenerator):
    """Tells requests apart by tenant, path and query."""

    def generate_cache_key(self, request: Request) -> str | None:
        tenant = request.headers.get("x-tenant")
        if tenant is None:
            return None  # pass by: neither looked up nor stored
        return f"{tenant}:{request.url.path}?{request.url.query}"


class ByPath(KeyGenerator):
    """Tells requests apart by path alone: one answer for all tenants, whatever the query."""

    def generate_cache_key(self, request: Request) -> str:
        return request.url.path


app = FastAPI()
install(app, CacheContainer(), key_generator=PerTenant())


@app.get("/prices")
@cache(timeout=60)
async def prices(request: Request) -> dict[str, str]:
    return {"prices of": request.headers.get("x-tenant", "nobody")}


@app.get("/terms")
@cache(timeout=3600, key=ByPath())
async def terms() -> str:
    return "the same for all"

"""Redis by the environment: ``ENVIRONMENT=production REDIS_URL=redis://localhost:6379 uvicorn …``.

`install` checks the settings and connects to nothing; an application starts, and answers, while Redis is away.
"""

from fastapi import FastAPI

from app_cache import cache
from app_cache.fastapi import cache_router
from app_cache.logger_config import configure_logger
from containers import CacheContainer, install

configure_logger(json=True)
app = FastAPI()
install(app, CacheContainer())
app.include_router(cache_router(authorize=None))  # this machine alone may invalidate; /health/cache is for all


@app.get("/reports/{year}")
@cache(timeout=600, stale_while_revalidate=60, stale_if_error=86_400)
async def report(year: int) -> dict[str, int]:
    return {"year": year}

"""Invalidation by tag, by pattern, and by the administrative endpoints."""

import secrets
from typing import Annotated

from fastapi import FastAPI, Header

from app_cache import cache, invalidates
from app_cache.fastapi import Invalidation, cache_router
from containers import CacheContainer, install

app = FastAPI()
install(app, CacheContainer())


def is_admin(x_admin_key: Annotated[str, Header()] = "") -> bool:
    return secrets.compare_digest(x_admin_key.encode(), b"change me")


app.include_router(cache_router(authorize=is_admin))  # POST /invalidate-cache?pattern=/users/*


@app.get("/users/{user_id}")
@cache(timeout=300, tags=["users", "user_{user_id}"])
async def user(user_id: int) -> dict[str, int]:
    return {"user_id": user_id}


@app.post("/users/{user_id}/rename")
@invalidates(tags=["user_{user_id}"])
async def rename(user_id: int) -> None: ...


@app.post("/users/import")
async def import_users(invalidation: Invalidation) -> dict[str, bool]:
    result = await invalidation.by_pattern("/users/*")  # or by_tag("users"), by_url("/users/7"), everything()
    return {"durable": result.durable}

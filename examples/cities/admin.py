"""Who may invalidate by hand: whoever sends the token of `Settings.admin_token`."""

from __future__ import annotations

import secrets
from typing import Annotated

from fastapi import Depends, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from app_cache.fastapi import cache_router

Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]


def admin_only(request: Request, credentials: Credentials) -> None:
    """Refuse who does not send the token."""
    token = request.app.state.settings.admin_token
    if token is None:
        raise HTTPException(403, "CITIES_ADMIN_TOKEN is not set, so nobody may do this")
    given = credentials.credentials if credentials else ""
    if not secrets.compare_digest(given.encode(), token.get_secret_value().encode()):
        raise HTTPException(401, "send the admin token", headers={"WWW-Authenticate": "Bearer"})


router = cache_router(authorize=admin_only, prefix="/admin")
"""``POST /admin/invalidate-cache?pattern=/cities/*``, ``GET /admin/cache-stats``, ``GET /admin/health/cache``."""

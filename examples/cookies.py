"""Requests with cookies and credentials: nothing of theirs is shared until the endpoint says how.

A browser sends cookies with each request, and the cache must not look dead: see ``detail=cookie`` in Cache-Status.
"""

from typing import Annotated

from fastapi import Cookie, FastAPI, Header

from app_cache import cache
from containers import CacheContainer, install

app = FastAPI()
install(app, CacheContainer())


@app.get("/unsaid")
@cache(timeout=60)
async def unsaid() -> str:
    return "Might depend on the Cookie, for all that is known: not shared where there is one."


@app.get("/public")
@cache(timeout=60, exclude_headers=["Cookie", "Authorization"])
async def public() -> str:
    return "The same for everybody. With Cache-Control: public the response may say so by itself."


@app.get("/per-token")
@cache(timeout=60, include_headers=["Authorization"])
async def per_token(authorization: Annotated[str, Header()] = "") -> dict[str, str]:
    return {"yours": authorization}


@app.get("/per-theme")
@cache(timeout=60, vary_by=lambda request: request.cookies.get("theme", "light"))
async def per_theme(theme: Annotated[str, Cookie()] = "light") -> dict[str, str]:
    return {"theme": theme}

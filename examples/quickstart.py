"""A cached endpoint: ``uvicorn examples.quickstart:app``, then ``curl -i localhost:8000/users/7``, twice."""

from fastapi import FastAPI

from app_cache import cache
from containers import CacheContainer, install

app = FastAPI()
install(app, CacheContainer())


@app.get("/users/{user_id}")
@cache(timeout=300, tags=["user_{user_id}"])
async def user(user_id: int) -> dict[str, int]:
    return {"user_id": user_id}


@app.put("/users/{user_id}")
async def update_user(user_id: int) -> dict[str, str]:
    """Answered well, it invalidates what is stored for its URL: the next GET sees the update."""
    return {"message": f"user {user_id} is updated"}

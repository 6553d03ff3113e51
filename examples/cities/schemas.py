"""What goes over the wire."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, Field, model_validator


class City(BaseModel):
    """A city as lists show it."""

    id: int
    name: str
    country: str = Field(description="ISO 3166-1 alpha-2", examples=["FR"])
    population: int
    latitude: float
    longitude: float
    timezone: str


class Neighbour(BaseModel):
    """Another city, seen from one."""

    id: int
    name: str
    km: float


class CityDetail(City):
    """A city with all its names, and the cities around it."""

    also_known_as: list[str]
    nearest: list[Neighbour]


class CityPage(BaseModel):
    """A part of a list, and how long the whole list is."""

    total: int
    cities: list[City]


class CityUpdate(BaseModel):
    """What may be changed in a city; what is left out stays."""

    name: str | None = Field(default=None, min_length=1, max_length=200)
    population: int | None = Field(default=None, ge=0, le=10**9)

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if self.name is None and self.population is None:
            raise ValueError("give a name, a population or both")
        return self


class Country(BaseModel):
    """A country, added up from its cities."""

    code: str
    name: str
    cities: int
    population: int = Field(description="Of the cities that are known here")
    largest_city: str

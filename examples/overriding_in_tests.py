"""Tests of a cached application, ``pytest examples/overriding_in_tests.py``: each begins with an empty cache."""
# ruff: noqa: S101 - these are tests

import asyncio
from collections.abc import Iterator

import httpx
import pytest
from fastapi import FastAPI

from app_cache import MemoryBackend, cache
from containers import CacheContainer, install

app, container = FastAPI(), CacheContainer()
install(app, container)


@app.get("/greeting")
@cache(timeout=60)
async def greeting() -> str:
    return "hello"


@pytest.fixture(autouse=True)
def empty_cache() -> Iterator[None]:
    with container.backend.override(MemoryBackend()):
        yield


async def hits_of_two() -> list[bool]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        return ["hit" in (await client.get("/greeting")).headers["cache-status"] for _ in range(2)]


def test_one() -> None:
    assert asyncio.run(hits_of_two()) == [False, True]


def test_another() -> None:
    assert asyncio.run(hits_of_two()) == [False, True]

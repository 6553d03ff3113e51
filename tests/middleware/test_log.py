"""What requests may put into the log: a line is a change of state, whatever clients send and handlers raise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from dependency_injector import providers
from fastapi import FastAPI, Request, Response

from app_cache import KeyGenerator, MemoryBackend, cache, invalidates
from app_cache.store import StoredResponses
from tests.middleware.apps import client_of, put_cache

if TYPE_CHECKING:
    import httpx

    from app_cache.testing import FakeClock

pytestmark = pytest.mark.anyio


def by_tenant(request: Request) -> str:
    """Tell requests apart by a field that not all of them have."""
    return request.headers["x-tenant"]


def timed(app: FastAPI, clock: FakeClock) -> tuple[StoredResponses, httpx.AsyncClient]:
    """Return the store of a cache on *app* that tells all time by *clock*, and a client of it."""
    backend = MemoryBackend()
    store = StoredResponses(backend, now=clock, monotonic=clock)
    put_cache(app, clock, backend).store.override(providers.Object(store))
    return store, client_of(app)


async def test_hook_that_raises(clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    """What a hook raises is said once with its traceback, then how often in each minute, on whatever path."""
    app = FastAPI()

    @app.get("/items/{number}")
    @cache(timeout=60, vary_by=by_tenant)
    async def item(number: int) -> int:
        return number

    store, client = timed(app, clock)
    for number in range(100):
        assert (await client.get(f"/items/{number}")).json() == number
    clock.advance(60)
    await client.get("/items/100")
    first, again = caplog.messages
    assert first.startswith(
        "cache.hook_failed place='/items/{number}' path=/items/0 error=KeyError exception='Trace"
    )
    assert again == "cache.hook_failed place='/items/{number}' path=/items/100 error=KeyError times=100"
    assert store.stats["bypass"] == 101


SECRET = b"Bearer s3cret"


class Secretive(KeyGenerator):
    """Gives bytes of the request for a key."""

    def generate_cache_key(self, request: Request) -> Any:
        return SECRET


@pytest.mark.parametrize(
    ("options", "said"),
    [
        pytest.param({"vary_by": lambda _: SECRET}, "vary_by must give a string or None, not bytes", id="vary_by"),
        pytest.param({"key": Secretive()}, "generate_cache_key must give a string or None, not bytes", id="key"),
        pytest.param(
            {"tags": lambda _: [SECRET]}, "a tag must be a string that is not empty, not bytes", id="a tag"
        ),
        pytest.param(
            {"tags": lambda _: SECRET.decode()},
            "tags must be a list of names",
            id="tags",
        ),
        pytest.param(
            {"tags": lambda _: [""]}, "a tag must be a string that is not empty, not an empty one", id="empty"
        ),
    ],
)
async def test_hook_that_gives_what_it_cannot(
    clock: FakeClock, caplog: pytest.LogCaptureFixture, options: dict[str, Any], said: str
) -> None:
    """A hook that gives what cannot be is named with the type of that, never with what may be a secret (S28)."""
    app = FastAPI()
    app.get("/")(cache(timeout=60, **options)(lambda: "text"))
    _, client = timed(app, clock)
    assert (await client.get("/")).json() == "text"
    assert said in caplog.text
    assert "s3cret" not in caplog.text


async def test_each_place(clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    """What fails at one endpoint hides nothing of another, nor of a hook that names what to invalidate."""
    app = FastAPI()

    def name(request: Request) -> list[str]:
        return [by_tenant(request)]

    async def answer() -> str:
        return "answer"

    async def other() -> str:
        return "other"

    async def change() -> str:
        return "changed"

    app.get("/")(cache(timeout=60, tags=name)(answer))
    app.get("/other")(cache(timeout=60, tags=name)(other))
    app.post("/")(invalidates(tags=name)(change))
    _, client = timed(app, clock)
    for _ in range(10):
        await client.get("/")
        await client.get("/other")
        await client.post("/")
    places = [message.split(" path=")[0] for message in caplog.messages]
    assert places == [
        "cache.hook_failed place=/",
        "cache.hook_failed place=/other",
        "cache.hook_failed place='@invalidates /'",
    ]


@pytest.mark.parametrize(
    ("failure", "line"),
    [
        pytest.param(ConnectionError("down"), "cache.rescued place=/ error=ConnectionError", id="raises"),
        pytest.param(Response("busy", 503), "cache.rescued place=/ status=503", id="answers 503"),
    ],
)
async def test_rescues(clock: FakeClock, caplog: pytest.LogCaptureFixture, failure: Any, line: str) -> None:
    """Stale answers that stand in while a source is down are a line, and one more in each minute."""
    app, answers = FastAPI(), iter(["fresh"])

    @app.get("/")
    @cache(timeout=60, stale_if_error=600)
    async def answer() -> Any:
        made = next(answers, failure)
        if isinstance(made, Exception):
            raise made
        return made

    _, client = timed(app, clock)
    await client.get("/")
    clock.advance(61)
    for _ in range(20):
        assert (await client.get("/")).json() == "fresh"
    clock.advance(60)
    await client.get("/")
    first, again = caplog.messages
    assert first.startswith(line)
    assert again == f"{line} times=20"

"""What the protocol gives is what the middleware would give: each change reaches it at the next request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from dependency_injector import providers
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from app_cache import DefaultKeyGenerator, InvalidationService, MemoryBackend, MetricsBackend
from app_cache.offers import EXTENSION, Offer
from app_cache.testing import FakeClock
from containers import CacheContainer, install
from tests.middleware.apps import scope_of
from tests.server.apps import Shop, shop
from tests.server.rig import Line, Unserved, get

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from starlette.requests import Request

pytestmark = pytest.mark.anyio

ITEM = get("/items/7")


class Served(Shop):
    """The shop, and a connection to it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.server = Unserved(self.app)
        self.line: Line = self.server.connected()

    async def ask(self, request: bytes = ITEM) -> tuple[str, str, int]:
        """Return the body of an answer, what is told of it, and how many answers the protocol gave for it."""
        before = self.server.answered
        answer = await self.line.ask(request)
        return answer.body.decode(), answer.told, self.server.answered - before

    @property
    def invalidation(self) -> InvalidationService:
        """Invalidates in the cache of the moment."""
        return self.container.invalidation()


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    """The shop, whose item 7 has been learned."""
    served = Served()
    await served.line.learn(ITEM)
    yield served
    await served.line.hang_up()


MISS = ("item 7 2", "fwd=uri-miss; stored", 0)


@pytest.mark.parametrize(
    "invalidate",
    [
        pytest.param(lambda service: service.by_tag("n7"), id="tag"),
        pytest.param(lambda service: service.by_pattern("/items/*"), id="pattern"),
        pytest.param(lambda service: service.by_url("/items/7"), id="url"),
        pytest.param(lambda service: service.everything(), id="everything"),
    ],
)
async def test_invalidated(served: Served, invalidate: Callable[[InvalidationService], Any]) -> None:
    """What was invalidated is not given once the call has returned (SPEC §6.4)."""
    assert await served.ask() == ("item 7 1", "hit", 1)
    await invalidate(served.invalidation)
    assert await served.ask() == MISS


async def test_invalidated_over_the_wire(served: Served) -> None:
    """Nor after an unsafe request of the same URL, or one that invalidates, was answered."""
    for request in (get("/tags/n7", method="DELETE"), get("/all", method="DELETE")):
        await served.line.learn(ITEM)
        runs = served.app.state.runs["item 7"]
        assert (await served.line.ask(request)).status == 204
        assert await served.ask() == (f"item 7 {runs + 1}", "fwd=uri-miss; stored", 0)


async def test_softly_invalidated(served: Served) -> None:
    """What is marked as stale is decided by the middleware."""
    await served.invalidation.by_tag("n7", soft=True)
    body, told, answered = await served.ask()
    assert (body, told.startswith("fwd=stale"), answered) == ("item 7 2", True, 0)


async def test_invalidation_of_others(served: Served) -> None:
    """After an invalidation of something else the middleware is asked once, then the protocol gives it again."""
    await served.invalidation.by_tag("n8")
    assert [await served.ask() for _ in range(4)] == [
        ("item 7 1", "hit", 0),
        ("item 7 1", "hit", 1),
        ("item 7 1", "hit", 1),
        ("item 7 1", "hit", 1),
    ]


async def test_expired(served: Served) -> None:
    """At the end of its freshness it is not given any more, and Age and ttl pass until then."""
    served.clock.advance(59.5)
    before = served.server.answered
    answer = await served.line.ask(ITEM)
    assert (answer.field(b"age"), answer.field(b"cache-status")) == (b"59", b"app-cache; hit; ttl=0")
    assert served.server.answered == before + 1
    served.clock.advance(0.5)
    assert (await served.ask())[2] == 0


async def test_clock_that_goes_back(served: Served) -> None:
    """A clock that was set back past what it has seen is the middleware's to judge."""
    served.clock.advance(-10)
    assert (await served.ask())[2] == 0


async def test_evicted(served: Served) -> None:
    """What the backend holds no longer is not given."""
    for key in [*served.backend._entries]:
        await served.backend.delete(key)
    assert await served.ask() == MISS


async def test_closed_backend(served: Served) -> None:
    """A backend that was closed holds nothing."""
    await served.backend.close()
    assert await served.ask() == MISS


async def test_set_anew(served: Served) -> None:
    """An entry that another has taken the place of is not given."""
    (key,) = [each for each in served.backend._entries if each.startswith("cache:")]
    value = await served.backend.get_bytes(key)
    assert value is not None
    await served.backend.set_bytes(key, bytes(bytearray(value)), 60)
    assert (await served.ask())[2] == 0


@pytest.mark.parametrize(
    ("part", "other", "after"),
    [
        pytest.param("backend", MemoryBackend, 1, id="backend"),
        pytest.param("namespace", lambda: "other", 1, id="namespace"),
        pytest.param("key_generator", lambda: type("Own", (DefaultKeyGenerator,), {})(), 1, id="key generator"),
        pytest.param("clock", lambda: FakeClock(5_000_000), 3, id="clock"),
    ],
)
async def test_overrides(served: Served, part: str, other: Callable[[], Any], after: int) -> None:
    """An override of any part of the container is in force at the next request, and its end too (SPEC §8.2)."""
    with getattr(served.container, part).override(providers.Object(other())):
        body, _, answered = await served.ask()
        assert (body, answered) == ("item 7 2", 0)
        for _ in range(3):
            body, *_ = await served.ask()
            assert body == "item 7 2"
    assert (await served.ask())[0] == f"item 7 {after}"


async def test_override_that_others_met(served: Served) -> None:
    """What was learned before an override is not given once others were learned under it."""
    cache = served.line.protocol._memo.known[ITEM].offer.cache
    kept_alive = [*cache.fast._ready.values()]
    with served.container.backend.override(providers.Object(MemoryBackend())):
        await served.line.learn(get("/items/8"))
        assert await served.ask() == MISS
    assert kept_alive


async def test_override_that_nobody_met(served: Served) -> None:
    """After an override without a request the middleware is asked once, then the protocol gives it again."""
    with served.container.backend.override(providers.Object(MemoryBackend())):
        pass
    assert [await served.ask() for _ in range(2)] == [("item 7 1", "hit", 0), ("item 7 1", "hit", 1)]


async def test_override_of_the_store(served: Served) -> None:
    """An override of the store itself is in force at the next request."""
    with served.container.store.override(providers.Object(CacheContainer().store())):
        assert (await served.ask())[0] == "item 7 2"


async def test_routes_that_are_added(served: Served) -> None:
    """A route that comes to stand before a cached one is found at the next request."""

    async def first(_: Request) -> PlainTextResponse:
        return PlainTextResponse("first")

    served.app.router.routes.insert(0, Route("/items/7", first))
    assert (await served.ask())[0] == "first"


async def test_newer_variant(served: Served) -> None:
    """A variant that came since is the middleware's to choose, once; each request gets its own."""
    german, french = (get("/varies", f"Accept-Language: {each}") for each in ("de", "fr"))
    await served.line.learn(german)
    assert (await served.ask(french))[:2] == ("in fr 1", "fwd=vary-miss; stored")
    assert await served.ask(german) == ("in de 1", "hit", 0)
    await served.line.learn(german)
    await served.line.learn(french)
    assert await served.ask(german) == ("in de 1", "hit", 1)
    assert await served.ask(french) == ("in fr 1", "hit", 1)


async def test_provider_of_a_container() -> None:
    """A provider of a container is asked each time: another container is another cache."""
    containers, app = [CacheContainer(), CacheContainer()], shop()
    for container in containers:
        container.backend.override(providers.Object(MemoryBackend()))
    install(app, lambda: containers[0])
    server = Unserved(app)
    line = server.connected()
    await line.learn(ITEM)
    containers.reverse()
    before = server.answered
    assert (await line.ask(ITEM)).body == b"item 7 2"
    assert server.answered == before


async def test_container_that_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    """A provider of a container that raises is answered as ever, and that it did is said."""
    containers, app = [CacheContainer()], shop()
    install(app, lambda: containers[0])
    line = Unserved(app).connected()
    await line.learn(ITEM)
    containers.clear()
    assert (await line.ask(ITEM)).status == 500
    assert "cache.hit_failed" in caplog.text


async def test_offer_of_a_container_that_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    """An offer does not hold where its container raises, and says that it did."""
    containers, app, offers = [CacheContainer()], shop(), list[Offer]()
    install(app, lambda: containers[0])

    async def discard(message: Any) -> None: ...

    for _ in range(3):
        extensions = {EXTENSION: lambda offer, scope: offers.append(offer)}
        await app(scope_of("/items/7", extensions=extensions), receive_nothing, discard)
    assert offers[-1].given() is not None
    containers.clear()
    assert offers[-1].given() is None
    assert "cache.hit_failed" in caplog.text


async def receive_nothing() -> dict[str, Any]:
    """Return a request without content."""
    return {"type": "http.request", "body": b"", "more_body": False}


async def test_provider_that_raises(served: Served) -> None:
    """What a provider of the application's own raises is answered as ever, and what comes after it too."""

    def broken() -> Any:
        raise RuntimeError("no backend today")

    with served.container.backend.override(providers.Callable(broken)):
        assert (await served.line.ask(ITEM)).status == 500
    assert (await served.server.connected().ask(ITEM)).body == b"item 7 1"


async def test_backend_that_counts() -> None:
    """A backend that counts what it is asked for is asked for each hit."""
    counts: list[str] = []

    class Client:
        def histogram(self, name: str, value: float) -> None: ...

        def increment(self, name: str) -> None:
            counts.append(name)

    shop = Shop()
    with shop.container.backend.override(providers.Object(MetricsBackend(MemoryBackend(), Client()))):
        line = Unserved(shop.app).connected()
        seen = []
        for _ in range(6):
            counts.clear()
            await line.ask(ITEM)
            seen.append(counts.count("cache.get.requests"))
    assert seen[2:] == [seen[2]] * 4


async def test_conditional_of_another_answer(served: Served) -> None:
    """A 304 is for the client that has this answer: with another in its place the client gets that."""
    conditional = get("/items/7", 'If-None-Match: "7"')
    assert (await served.line.learn(conditional)).status == 304
    served.app.state.runs.clear()
    await served.invalidation.by_tag("n7")
    assert (await served.line.ask(conditional)).status in (200, 304)
    assert served.app.state.runs["item 7"] == 1

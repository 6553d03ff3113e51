"""A hit that is given again is what the exchange would have given, to the byte, as long as it would give that."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections import Counter
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any

import pytest
from dependency_injector import providers
from fastapi import APIRouter, FastAPI, Header, Request, Response
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.authentication import UnauthenticatedUser
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from app_cache import (
    CacheMiddleware,
    CachePolicy,
    DefaultKeyGenerator,
    KeyGenerator,
    MemoryBackend,
    cache,
    fastpath,
    invalidates,
)
from app_cache.fastpath import MAX_BYTES, MAX_FORMS, MAX_REQUESTS, FastPath
from app_cache.testing import FakeClock
from containers import CacheContainer, install
from tests.clients import HIT, MISS
from tests.middleware.apps import client_of, messages_of, put_cache, scope_of, told
from tests.twins import Driven

if TYPE_CHECKING:
    from collections.abc import Callable


pytestmark = pytest.mark.anyio


class ByField(KeyGenerator):
    """Tells requests apart by one field alone."""

    def generate_cache_key(self, request: Request) -> str:
        return request.headers.get("x-a", "none")


def application() -> FastAPI:  # noqa: C901  one route for each thing that a policy can say
    """Return an application of all that a policy can say, whose answers count its runs."""
    app, runs = FastAPI(), Counter[str]()

    def answer(name: str, **fields: str) -> Response:
        runs[name] += 1
        return Response(f"{name} {runs[name]}", headers=fields, media_type="text/plain")

    @app.get("/by-token")
    @cache(timeout=60, include_headers=["Authorization"])
    def by_token(request: Request) -> Response:
        user = request.scope.get("user") or getattr(request.state, "user", None)
        return answer(f"by token {request.headers.get('authorization')} {type(user).__name__}")

    @app.api_route("/tagged/{number}", methods=["GET", "HEAD"])
    @cache(timeout=60, tags=["all", "n{number}"])
    def tagged(number: int) -> Response:
        return answer(f"tagged {number}", etag=f'"{number}"')

    @app.get("/tenths")
    @cache(timeout=9.4)
    def tenths() -> Response:
        return answer("tenths")

    @app.get("/windows")
    @cache(timeout=20, stale_while_revalidate=20, stale_if_error=20)
    def windows() -> Response:
        return answer("windows")

    @app.get("/shared")
    @cache(timeout=60, exclude_headers=["Cookie", "Authorization"])
    def shared() -> Response:
        return answer("shared")

    @app.get("/public")
    @cache(timeout=60)
    def public() -> Response:
        return answer("public", **{"cache-control": "public, max-age=30", "age": "5"})

    @app.get("/varies")
    @cache(timeout=60)
    def varies(request: Request) -> Response:
        vary = "x-b" if "x-b" in request.headers else "x-a"
        return answer(f"varies {request.headers.get('x-a')} {request.headers.get('x-b')}", vary=vary)

    @app.get("/declared")
    @cache(timeout=60)
    def declared(x_a: str = Header("")) -> Response:
        return answer(f"declared {x_a}")

    @app.get("/validated")
    @cache(timeout=60)
    def validated() -> Response:
        return answer("validated", **{"cache-control": "no-cache", "etag": '"same"'})

    @app.get("/queried")
    @cache(timeout=60, exclude_query=["utm"], tags=["q{page}"], client_max_age=5)
    def queried(page: int = 1) -> Response:
        return answer(f"queried {page}")

    @app.get("/by-header")
    @cache(timeout=60, tags=["h{x_n}"], exclude_headers=["X-N"])
    def by_header(x_n: int = Header(1)) -> Response:
        return answer("by header")

    @app.get("/own")
    @cache(timeout=60, vary_by=lambda request: request.headers.get("x-a", "none"))
    def own() -> Response:
        return answer("own")

    @app.post("/posted")
    @cache(timeout=60)
    async def posted(request: Request) -> Response:
        return answer(f"posted {(await request.body()).decode()}")

    @app.get("/changes")
    @cache(timeout=60)
    @invalidates(tags=["all"])
    def changes() -> Response:
        return answer("changes")

    @app.get("/generated")
    @cache(timeout=60, key=ByField())
    def generated(request: Request) -> Response:
        return answer(f"generated {request.headers.get('x-a')}")

    @app.get("/ignores", status_code=203)
    @cache(timeout=60, cache_control=False)
    def ignores(response: Response) -> str:
        return bytes(answer("ignores").body).decode()

    return app


PATHS = [
    "/by-token",
    "/tagged/1",
    "/tagged/2",
    "/tenths",
    "/windows",
    "/shared",
    "/public",
    "/varies",
    "/declared",
    "/validated",
    "/queried",
    "/by-header",
    "/own",
    "/changes",
    "/generated",
    "/ignores",
    "/none",
]
NEVER_AGAIN = ("/validated", "/by-header", "/own", "/changes", "/generated", "/none")
AGAIN = [path for path in PATHS if path not in NEVER_AGAIN]
FIELDS = [
    (b"cookie", b"a=1"),
    (b"authorization", b"Basic x"),
    (b"cache-control", b"no-cache"),
    (b"cache-control", b"max-age=5"),
    (b"cache-control", b"max-stale=30"),
    (b"pragma", b"no-cache"),
    (b"if-none-match", b'"1"'),
    (b"if-none-match", b'"same", "1"'),
    (b"if-none-match", b"*"),
    (b"if-modified-since", b"Thu, 01 Jan 2099 00:00:00 GMT"),
    (b"range", b"bytes=0-3"),
    (b"if-range", b'"1"'),
    (b"if-match", b'"1"'),
    (b"content-length", b"0"),
    (b"x-a", b"1"),
    (b"x-a", b"2"),
    (b"x-b", b"1"),
    (b"x-n", b"1"),
    (b"x-n", b"none"),
    (b"host", b"other"),
    (b"user-agent", b"a"),
]
KNOWN: list[dict[str, Any]] = [
    *[{}] * 4,
    {"user": "alice"},
    {"user": UnauthenticatedUser()},
    {"state": {"user": "alice"}},
    {"state": {"user": None}},
    {"session": {}},
    {"session": {"id": "a"}},
]
"""What middleware further out knows."""
fields_of_a_request = st.lists(st.sampled_from(FIELDS), max_size=3)
queries = st.sampled_from([b"", b"page=1", b"page=2", b"page=x", b"utm=1", b"a=1&b=2", b"b=2&a=1"])
requests = st.tuples(
    st.just("ask"),
    st.sampled_from(["GET", "GET", "GET", "HEAD"]),
    st.sampled_from(PATHS),
    queries,
    fields_of_a_request,
    st.sampled_from(KNOWN),
)
plain_requests: st.SearchStrategy[tuple[Any, ...]] = st.tuples(
    st.just("ask"), st.just("GET"), st.sampled_from(PATHS), st.just(b""), st.just([])
)
changes = st.one_of(
    st.tuples(st.just("advance"), st.sampled_from([0.25, 1.0, 7.0, 19.5, 60.0])),
    st.tuples(st.just("back"), st.just(5.0)),
    st.tuples(st.just("tag"), st.sampled_from(["all", "n1", "q1", "h1"]), st.booleans()),
    st.tuples(st.just("pattern"), st.sampled_from(["/tagged/*", "*a*", "/none"]), st.booleans()),
    st.tuples(st.just("url"), st.sampled_from(PATHS), st.booleans()),
    st.tuples(st.just("everything"), st.booleans()),
    st.tuples(st.just("evict"), st.integers(0, 5)),
    st.tuples(st.just("delete"), st.integers(0, 5)),
    st.tuples(st.just("close")),
)
steps = st.lists(st.one_of(plain_requests, plain_requests, requests, changes), min_size=4, max_size=40)


class Twin(Driven):
    """One of two caches that are driven alike; the *reference* never gives a hit again without an exchange."""

    def __init__(self, *, reference: bool) -> None:
        clock = FakeClock()
        self.backend = MemoryBackend(clock=clock)
        policy = CachePolicy(timeout=9)
        super().__init__(CacheMiddleware(application(), self.backend, default_policy=policy, clock=clock), clock)
        self.again = 0
        fast = self.cache.fast
        answer = fast.answer

        def counted(*args: Any) -> Any:
            messages = None if reference else answer(*args)
            self.again += messages is not None
            return messages

        fast.answer = counted  # type: ignore[assignment, method-assign]

    async def meet(self, kind: str, *of: Any) -> None:
        """Take a step that memory alone has."""
        match kind:
            case "evict" | "delete":
                keys = [*self.backend._entries]
                if keys:
                    await self.backend.delete(keys[of[0] % len(keys)])
            case "close":
                await self.backend.close()
            case _:
                await super().meet(kind, *of)


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(steps)
def test_both_ways_answer_alike(taken: list[tuple[Any, ...]]) -> None:
    """Whatever is asked, and happens between, both ways send the same messages and say and count the same."""

    async def compare() -> None:
        fast, reference = Twin(reference=False), Twin(reference=True)
        for step in taken:
            assert await fast.do(step) == await reference.do(step), step
        assert fast.store.stats == reference.store.stats

    asyncio.run(compare())


class Pair:
    """Two caches that are driven alike, of which one gives hits again."""

    def __init__(self) -> None:
        self.fast, self.reference = Twin(reference=False), Twin(reference=True)

    async def do(self, *step: Any) -> None:
        """Take a *step* with both, and see that both show the same."""
        assert await self.fast.do(step) == await self.reference.do(step), step

    async def warm(self, path: str, **more: Any) -> None:
        """Ask for *path* until its hit is given again."""
        for _ in range(3):
            await self.do("ask", "GET", path, b"", [], more)


@pytest.mark.parametrize("path", AGAIN)
async def test_each_field(path: str) -> None:
    """A request with any field, or with two lines of one, is answered as by an exchange though a hit is ready."""
    pair = Pair()
    twice = [[one, other] for one in FIELDS for other in FIELDS if one[0] == other[0]]
    for fields in [*([each] for each in FIELDS), *twice]:
        for asked in ([], [], fields):
            await pair.do("ask", "GET", path, b"", asked)
    assert pair.fast.again > len(FIELDS)
    assert pair.fast.store.stats == pair.reference.store.stats


@pytest.mark.parametrize("path", AGAIN)
async def test_each_user(path: str) -> None:
    """A request of anybody whom middleware knows is answered as by an exchange though a hit is ready."""
    pair = Pair()
    for more in KNOWN:
        for fields in ([], [(b"authorization", b"Basic x")], [(b"cookie", b"a=1")]):
            for asked in ([], [], [*fields]):
                await pair.do("ask", "GET", path, b"", asked, {} if asked != fields else more)
    assert pair.fast.again > len(KNOWN)
    assert pair.fast.store.stats == pair.reference.store.stats


@pytest.mark.parametrize("more", [{"user": "alice"}, {"state": {"user": "alice"}}], ids=["user", "state"])
async def test_user_who_is_told_apart(more: dict[str, Any]) -> None:
    """The hit of a user whose token joins the key is given again, and to that token alone."""
    pair = Pair()
    for token in (b"a", b"b") * 3:
        await pair.do("ask", "GET", "/by-token", b"", [(b"authorization", token)], more)
    assert pair.fast.again == 2
    await pair.do("ask", "GET", "/by-token", b"", [], more)
    assert pair.fast.again == 2


async def test_beside_what_was_invalidated() -> None:
    """A hit is counted as one, and no more, though another variant that it selects was invalidated."""
    pair = Pair()
    both = [(b"x-a", b"1"), (b"x-b", b"1")]
    for fields in (both, both[:1]):
        await pair.do("ask", "GET", "/varies", b"", fields)
    await pair.do("url", "/varies", False)
    for _ in range(5):
        await pair.do("ask", "GET", "/varies", b"", both)
    assert pair.fast.again == 3
    assert pair.fast.store.stats == pair.reference.store.stats
    assert pair.fast.store.stats["invalidated"] == 1


@pytest.mark.parametrize("spelt", [bytes.title, bytes.upper])
@pytest.mark.parametrize("path", AGAIN)
async def test_names_as_they_were_written(path: str, spelt: Callable[[bytes], bytes]) -> None:
    """A driver that does not write names in lower case is answered as by an exchange."""
    pair = Pair()
    for name, value in FIELDS:
        for asked in ([], [], [(spelt(name), value)]):
            await pair.do("ask", "GET", path, b"", asked)
    assert pair.fast.again > len(FIELDS)


@pytest.mark.parametrize("status", [204, 301, 404])
async def test_conditions_of_what_is_no_200(status: int) -> None:
    """What is stored with another status than 200 has no 304, also when it is given again (RFC 9110 §13.2.1)."""
    app = FastAPI()
    answer = Response(status_code=status, headers={"etag": '"x"'})
    app.get("/")(cache(timeout=60, statuses=[status])(lambda: answer))
    async with client_of(CacheMiddleware(app, MemoryBackend())) as client:
        for _ in range(3):
            await client.get("/")
        assert (await client.get("/", headers={"if-none-match": '"x"'})).status_code == status


async def test_tag_that_cannot_be_read() -> None:
    """An ETag that is not one entity tag is compared by an exchange alone."""
    app = FastAPI()
    app.get("/")(cache(timeout=60)(lambda: Response(headers={"etag": '"x", "y"'})))
    async with client_of(CacheMiddleware(app, MemoryBackend())) as client:
        for _ in range(3):
            await client.get("/")
        assert (await client.get("/", headers={"if-none-match": '"x", "y"'})).status_code == 200


@pytest.mark.parametrize("part", ["host", "raw_path"])
async def test_other_bytes(part: str) -> None:
    """What is like bytes, but cannot be remembered by, is answered by an exchange each time."""
    cached = CacheMiddleware(PlainTextResponse("text"), MemoryBackend(), default_policy=CachePolicy(timeout=60))
    more = {"raw_path": bytearray(b"/")} if part == "raw_path" else {"headers": [(b"host", bytearray(b"test"))]}
    sent = [await messages_of(cached, scope_of("/", **more)) for _ in range(4)]
    assert b"; hit" in dict(sent[-1][0]["headers"])[b"cache-status"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param({"headers": [(b"host", b"")]}, {"headers": []}, id="no host"),
        pytest.param({}, {"method": "HEAD"}, id="HEAD"),
        pytest.param({}, {"method": "POST"}, id="POST"),
        pytest.param({}, {"scheme": "https"}, id="scheme"),
        pytest.param({}, {"headers": [(b"host", b"other")]}, id="host"),
        pytest.param({}, {"root_path": "/root"}, id="root path"),
        pytest.param({}, {"raw_path": b"/w%69ndows"}, id="spelling of the path"),
        pytest.param({}, {"query_string": b"a=1"}, id="query"),
    ],
)
async def test_another_request(one: dict[str, Any], other: dict[str, Any]) -> None:
    """A request that differs in what joins the key is answered as by an exchange, whichever hit is ready."""
    pair = Pair()
    for more in (one, other, one):
        await pair.warm("/windows", **more)
    assert pair.fast.again


@pytest.mark.parametrize("left_out", ["headers", "raw_path", "scheme", "root_path"])
async def test_what_a_request_does_not_say(left_out: str) -> None:
    """A request that leaves out what it may leave out, Host included, is answered by an exchange each time."""
    app = FastAPI()

    @app.get("/")
    @cache(timeout=60)
    def answer() -> str:
        return "answer"

    wrapped = CacheMiddleware(app, MemoryBackend(), clock=FakeClock())
    for expected in ("fwd=uri-miss; stored", "hit; ttl=60", "hit; ttl=60"):
        scope = scope_of("/")
        del scope[left_out]
        sent = await messages_of(wrapped, {"headers": [], **scope})
        assert dict(sent[0]["headers"])[b"cache-status"].decode().removeprefix("app-cache; ") == expected
    assert not wrapped.fast._ready


@pytest.mark.parametrize("path", AGAIN)
@pytest.mark.parametrize("passed", [-5.0, 0.5, 1.0, 19.9995, 20.0, 21.0, 29.9995, 30.0, 59.9995, 60.0, 61.0])
async def test_time_that_passes(path: str, passed: float) -> None:
    """At each age, and after the clock was put back, a hit is what an exchange gives."""
    pair = Pair()
    await pair.warm(path)
    await pair.do("advance", passed)
    await pair.do("ask", "GET", path, b"", [])
    assert pair.fast.again


async def test_end_of_freshness() -> None:
    """Close before its end an exchange decides, also within the second that a hit was given in."""
    pair = Pair()
    await pair.warm("/tagged/1")
    for passed, is_given in ((59.5, True), (0.4985, True), (0.001, False)):
        before = pair.fast.again
        await pair.do("advance", passed)
        await pair.do("ask", "GET", "/tagged/1", b"", [])
        assert (pair.fast.again > before) is is_given


async def test_lifetimes_that_are_not_whole() -> None:
    """Age and the time to live change at moments of their own."""
    pair = Pair()
    await pair.warm("/tenths")
    for _ in range(45):
        await pair.do("advance", 0.2)
        await pair.do("ask", "GET", "/tenths", b"", [])
    assert pair.fast.again > 40


@pytest.mark.parametrize(
    "change",
    [
        *(("tag", "all", soft) for soft in (False, True)),
        *(("pattern", "/tagged/*", soft) for soft in (False, True)),
        *(("url", "/tagged/1", soft) for soft in (False, True)),
        *(("everything", soft) for soft in (False, True)),
        *(("delete", number) for number in range(2)),
        ("close",),
    ],
    ids=lambda change: " ".join(map(str, change)),
)
@pytest.mark.parametrize("path", ["/tagged/1", "/varies"])
async def test_what_has_changed(path: str, change: tuple[Any, ...]) -> None:
    """After what makes an answer invalid, or takes it away, it is not given again."""
    pair = Pair()
    await pair.warm(path)
    await pair.do(*change)
    await pair.warm(path)
    assert pair.fast.again


async def test_a_hit_is_read() -> None:
    """What a hit that is given again rests on counts as read in memory: the response, and the list of variants."""
    twin = Twin(reference=False)
    for _ in range(3):
        await twin.ask("GET", "/varies")
    entries = [*twin.backend._entries.values()]
    for entry in entries:
        entry.read = False
    await twin.ask("GET", "/varies")
    assert twin.again
    assert [entry.read for entry in entries] == [True, True]


@pytest.mark.parametrize("extensions", [None, {}, {"http.response.pathsend": {}}], ids=str)
async def test_servers_with_extensions(extensions: dict[str, Any] | None) -> None:
    """Hits are given again to servers that take no offers, whatever extensions they have."""
    twin = Twin(reference=False)
    for number in range(4):
        await messages_of(twin.cache, scope_of("/tagged/1", extensions=extensions))
        assert twin.again == max(0, number - 1)


async def test_other_bytes_in_the_backend() -> None:
    """What is set in the place of an answer, or of the record of its variants, is seen at once."""
    for path in ("/windows", "/varies"):
        pair = Pair()
        await pair.warm(path)
        for number in range(len(pair.fast.backend._entries)):
            for twin in (pair.fast, pair.reference):
                await twin.backend.set_bytes([*twin.backend._entries][number], b"garbage", 60)
            await pair.warm(path)
        assert pair.fast.again


async def test_what_is_dropped() -> None:
    """What a validation has dropped is not given again, though the backend has it still."""
    pair = Pair()
    await pair.warm("/windows")
    for twin in (pair.fast, pair.reference):
        (key,) = twin.backend._entries
        twin.store.drop(key, twin.store.next_turn())
    await pair.do("ask", "GET", "/windows", b"", [])
    assert pair.fast.again


async def test_content_that_comes_unannounced() -> None:
    """A POST is told by its content, whether or not a field announces it."""
    pair = Pair()
    for body in (b"1", b"1", b"1", b"2"):
        await pair.do("ask", "POST", "/posted", b"", [], {}, body)
    assert not pair.fast.again


async def test_hit_that_invalidates() -> None:
    """A hit that invalidates does so each time."""
    pair = Pair()
    for _ in range(4):
        await pair.do("ask", "GET", "/changes", b"", [])
        await pair.do("ask", "GET", "/tagged/1", b"", [])
    assert not pair.fast.again


async def test_what_is_given_again() -> None:
    """The plain hits of all kinds of policies are given again, so that the comparison compares something."""
    twin = Twin(reference=False)
    for path in PATHS:
        for number in range(4):
            twin.again = 0
            await twin.ask("GET", path, b"", [])
            expected = number >= 2 and path not in NEVER_AGAIN
            assert (path, number, twin.again) == (path, number, expected)
    for fields in ([(b"cookie", b"a=1")], [(b"authorization", b"Basic x")]):
        for path, shared in (("/shared", 1), ("/public", 1), ("/windows", 0)):
            await twin.ask("GET", path, b"", [])
            twin.again = 0
            await twin.ask("GET", path, b"", fields)
            assert (path, fields, twin.again) == (path, fields, shared)


async def test_two_hosts() -> None:
    """A request that names two hosts has an answer of its own, which is given to nobody who names one (S5)."""
    twin = Twin(reference=False)
    for _ in range(3):
        await twin.ask("GET", "/windows", b"", [(b"host", b"other")])
    messages, _ = await twin.ask("GET", "/windows", b"", [])
    assert (messages[1][2], twin.again) == (b"windows 2", 0)


async def test_the_other_of_two_hosts() -> None:
    """A request that names two hosts does not get what is ready for one of them (S5)."""
    pair = Pair()
    for host in (b"test", b"other"):
        await pair.warm("/windows", headers=[(b"host", host)])
    await pair.do("ask", "GET", "/windows", b"", [(b"host", b"other")])
    assert pair.fast.again == 2


class Counting:
    """An application with a cached route in a container, and how many hits were given again."""

    def __init__(self, **options: Any) -> None:
        self.app = FastAPI()
        self.runs = 0

        @self.app.get("/")
        @cache(timeout=60)
        def answer() -> str:
            self.runs += 1
            return f"run {self.runs}"

        self.container: CacheContainer = put_cache(self.app, FakeClock(), **options)
        self.client = client_of(self.app)

    async def get(self, **headers: str) -> str:
        """Return the answer of a GET."""
        return str((await self.client.get("/", headers=headers)).json())


@pytest.mark.parametrize(
    ("part", "other", "after"),
    [
        pytest.param("backend", MemoryBackend, 1, id="backend"),
        pytest.param("namespace", lambda: "other", 1, id="namespace"),
        pytest.param("key_generator", lambda: type("Own", (DefaultKeyGenerator,), {})(), 1, id="key generator"),
        pytest.param("clock", lambda: FakeClock(5_000_000), 3, id="clock"),
    ],
)
async def test_overrides(part: str, other: Callable[[], Any], after: int) -> None:
    """An override of any part of the container is in force at the next request, and its end too (SPEC §8.2)."""
    app = Counting()
    for _ in range(3):
        assert await app.get() == "run 1"
    with getattr(app.container, part).override(providers.Object(other())):
        assert await app.get() == "run 2"
    assert await app.get() == f"run {after}"


async def test_provider_in_the_place_of_another() -> None:
    """A provider that takes the place of one as an attribute of the container is asked at the next request."""
    app = Counting()
    for _ in range(3):
        assert await app.get() == "run 1"
    container: Any = app.container
    container.key_generator = providers.Object(type("Own", (DefaultKeyGenerator,), {})())
    assert await app.get() == "run 2"


async def test_part_that_could_not_be_made() -> None:
    """After a part could not be made, what is made at last is in force, and nothing of what was before it."""
    app = FastAPI()
    app.get("/")(cache(timeout=60)(lambda: "text"))
    container = CacheContainer()
    install(app, container)
    async with client_of(app) as client:
        assert [told(await client.get("/")) for _ in range(3)] == [MISS, HIT, HIT]
        with container.settings.override(providers.Callable(int, "none")):
            container.reset_singletons()
            assert [(await client.get("/")).status_code for _ in range(3)] == [500] * 3
        assert [told(await client.get("/")) for _ in range(3)] == [MISS, HIT, HIT]
        await container.invalidation().everything()
        assert told(await client.get("/")) == MISS


async def test_override_that_raises() -> None:
    """While what overrides a part raises, nothing is given of what was before it, nor once it raises no more."""
    app = FastAPI()
    app.get("/")(cache(timeout=60)(lambda: "text"))
    container, backends = CacheContainer(), list[MemoryBackend]()
    install(app, container)
    async with client_of(app) as client:
        assert [told(await client.get("/")) for _ in range(3)] == [MISS, HIT, HIT]
        with container.backend.override(providers.Callable(backends.__getitem__, 0)):
            assert [(await client.get("/")).status_code for _ in range(2)] == [500, 500]
            backends.append(MemoryBackend())
            assert told(await client.get("/")) == MISS


async def test_a_hit_of_an_era_that_ended_meanwhile() -> None:
    """A hit that was looked up in a backend which is in force no longer is given once, and not remembered."""
    looks_up, goes_on = asyncio.Event(), asyncio.Event()

    class Slow(MemoryBackend):
        async def get_bytes(self, key: str) -> bytes | None:
            looks_up.set()
            await goes_on.wait()
            return await super().get_bytes(key)

    app = Counting()
    with app.container.backend.override(Slow()):
        goes_on.set()
        assert await app.get() == "run 1"
        looks_up.clear()
        goes_on.clear()
        late = asyncio.create_task(app.get())
        await looks_up.wait()
    assert await app.get() == "run 2"
    goes_on.set()
    assert await late == "run 1"
    for _ in range(3):
        assert await app.get() == "run 2"


async def test_all_that_was_remembered_is_forgotten() -> None:
    """Where a part is another one, nothing is given of the one before it: not what was asked for least, either."""
    app = Counting()
    for query in ("a=1", "a=2") * 3:
        assert (await app.client.get(f"/?{query}")).json() == f"run {query[-1]}"
    with app.container.backend.override(MemoryBackend()):
        for _ in range(3):
            assert (await app.client.get("/?a=1")).json() == "run 3"
        assert (await app.client.get("/?a=2")).json() == "run 4"


async def test_override_of_the_store() -> None:
    """An override of the store itself is in force at the next request."""
    app = Counting()
    for _ in range(3):
        await app.get()
    with app.container.store.override(providers.Object(CacheContainer().store())):
        assert await app.get() == "run 2"


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda container, over: container.reset_singletons(), id="all parts are reset"),
        pytest.param(lambda container, over: container.stores.reset(), id="one is"),
        pytest.param(lambda container, over: over.reset(), id="what overrides one is"),
        pytest.param(
            lambda container, over: over.override(MemoryBackend()), id="what overrides one is overridden"
        ),
        pytest.param(lambda container, over: container.clock.set_provides(FakeClock(5_000_000)), id="is set"),
        pytest.param(lambda container, over: container.chance.override(lambda: 0.5), id="chance is overridden"),
        pytest.param(
            lambda container, over: container.store.set_args(
                container.stores, container.backend, "other", container.clock, container.chance
            ),
            id="what makes the store is",
        ),
        pytest.param(lambda container, over: container.reset_override(), id="overrides end"),
        pytest.param(
            lambda container, over: container.override_providers(namespace=providers.Object("other")),
            id="many are",
        ),
    ],
)
async def test_parts_that_change(change: Callable[[Any, Any], object]) -> None:
    """Whichever way a part of the container becomes another, it is so at the next request."""
    app = FastAPI()
    app.get("/")(cache(timeout=60)(lambda: "text"))
    container = CacheContainer()
    install(app, container)
    over = providers.Singleton(MemoryBackend)
    container.backend.override(over)
    async with client_of(app) as client:
        assert [told(await client.get("/")) for _ in range(3)] == [MISS, HIT, HIT]
        before = container.store()
        counted = before.stats.copy()
        change(container, over)
        await client.get("/")
    assert before.stats == counted
    assert container.store().stats.total() > 0


async def test_container_of_ones_own() -> None:
    """What has no more than the parts that `CacheServices` asks for does as a container."""
    app, whole = FastAPI(), CacheContainer()
    app.get("/")(cache(timeout=60)(lambda: "text"))
    names = ("backend", "store", "key_generator", "invalidation", "values", "health")
    wrapped = CacheMiddleware(app, container=SimpleNamespace(**{name: getattr(whole, name) for name in names}))
    async with client_of(wrapped) as client:
        assert [told(await client.get("/")) for _ in range(3)] == [MISS, HIT, HIT]
        assert wrapped.remembered
        with whole.backend.override(MemoryBackend()):
            assert told(await client.get("/")) == MISS


@pytest.mark.parametrize("path", ["/", "/other"])
async def test_end_of_an_override_behind_a_container_of_ones_own(path: str) -> None:
    """Where such a container passes on a store, the end of an override of what that is made of is heard."""
    app, whole = FastAPI(), CacheContainer()
    app.get("/")(cache(timeout=60)(lambda: "text"))
    app.get("/other")(cache(timeout=60)(lambda: "text"))
    names = ("backend", "store", "key_generator", "invalidation", "values", "health")
    wrapped = CacheMiddleware(app, container=SimpleNamespace(**{name: getattr(whole, name) for name in names}))
    async with client_of(wrapped) as client:
        with whole.namespace.override(providers.Object("other")):
            assert [told(await client.get("/")) for _ in range(3)] == [MISS, HIT, HIT]
        assert told(await client.get(path)) == MISS
    assert whole.store().stats["stored"] == 1


async def test_store_made_of_something_else() -> None:
    """What a store is made of by `set_args` is asked, however it comes to give something else."""
    app, container, namespace = FastAPI(), CacheContainer(), providers.Object("one")
    app.get("/")(cache(timeout=60)(lambda: "text"))
    container.store.set_args(container.stores, container.backend, namespace, container.clock, container.chance)
    install(app, container)
    async with client_of(app) as client:
        assert [told(await client.get("/")) for _ in range(3)] == [MISS, HIT, HIT]
        namespace.set_provides("two")
        assert told(await client.get("/")) == MISS


async def test_another_container() -> None:
    """A provider that gives another container is heard at the next request."""
    app, containers = FastAPI(), [CacheContainer()]
    app.get("/")(cache(timeout=60)(lambda: "text"))
    wrapped = CacheMiddleware(app, container=lambda: containers[-1])
    async with client_of(wrapped) as client:
        said = [told(await client.get("/")) for _ in range(3)]
        containers.append(CacheContainer())
        said += [told(await client.get("/")) for _ in range(3)]
    assert said == [MISS, HIT, HIT, MISS, HIT, HIT]
    assert remembered(wrapped.fast)[0] == 1
    assert wrapped.remembered == {"/": 1}


async def test_routes_that_are_added() -> None:
    """A route that comes to stand before a cached one is found at the next request."""
    app = Counting()
    for _ in range(3):
        await app.get()
    app.app.router.routes.insert(0, Route("/", lambda request: PlainTextResponse("first")))
    assert (await app.client.get("/")).text == "first"


async def test_routes_that_are_added_to_an_included_router() -> None:
    """A hit is forgotten when a miss shows that an included router has other routes."""
    app, router = FastAPI(), APIRouter()
    app.include_router(router)
    app.get("/{path}")(cache(timeout=60)(lambda path: "any"))
    async with client_of(CacheMiddleware(app, MemoryBackend())) as client:
        for _ in range(3):
            assert (await client.get("/a")).json() == "any"
        router.get("/a")(lambda: "own")
        assert (await client.get("/b")).json() == "any"
        assert (await client.get("/a")).json() == "own"


async def test_a_hit_counts_as_read() -> None:
    """What is given again is in use: neither it nor the record of its variants goes for what is asked for once."""
    app, backend = FastAPI(), MemoryBackend(max_size=6)

    @app.get("/{name}")
    @cache(timeout=60)
    def named(name: str) -> Response:
        return Response(name, headers={"vary": "x-a"} if name == "varies" else {})

    wrapped = CacheMiddleware(app, backend)
    for path in ("/plain", "/varies") * 3:
        await messages_of(wrapped, scope_of(path))
    kept = {*backend._entries}
    for number in range(200):
        for path in ("/plain", "/varies"):
            sent = await messages_of(wrapped, scope_of(path))
            assert b"; hit" in dict(sent[0]["headers"])[b"cache-status"], (number, path)
        await messages_of(wrapped, scope_of(f"/once-{number}"))
    assert backend.evicted > 190
    assert kept <= {*backend._entries}


class Short(MemoryBackend):
    """Keeps nothing longer than five seconds, and may do something beside a look-up."""

    beside_look_up: Callable[[str, bytes], Any] | None = None

    async def set_bytes(self, key: str, value: bytes, timeout: float | None = None) -> None:
        await super().set_bytes(key, value, min(5.0, timeout or 5.0))

    async def get_bytes(self, key: str) -> bytes | None:
        value = await super().get_bytes(key)
        if self.beside_look_up is not None and value is not None:
            await self.beside_look_up(key, value)
        return value


async def test_backend_that_keeps_less() -> None:
    """What a backend keeps for less than it is fresh is not given again when its time there is over."""
    clock, app = FakeClock(), FastAPI()
    app.get("/")(cache(timeout=60)(lambda: "text"))
    async with client_of(CacheMiddleware(app, Short(clock=clock), clock=clock)) as client:
        assert [told(await client.get("/")) for _ in range(3)] == [MISS, HIT, HIT]
        clock.advance(4.9)
        assert told(await client.get("/")) == HIT
        clock.advance(0.2)
        assert told(await client.get("/")) == MISS


async def test_clock_that_is_set_back() -> None:
    """What a backend keeps no longer is not given again though the clock of freshness was set back meanwhile."""
    clock, ticks, app = FakeClock(), FakeClock(), FastAPI()
    app.get("/")(cache(timeout=60)(lambda: "text"))
    async with client_of(CacheMiddleware(app, MemoryBackend(clock=ticks), clock=clock)) as client:
        assert [told(await client.get("/")) for _ in range(3)] == [MISS, HIT, HIT]
        for passed, ticked, expected in ((40, 40, HIT), (-30, 19.9, HIT), (0, 0.2, MISS)):
            clock.advance(passed)
            ticks.advance(ticked)
            assert told(await client.get("/")) == expected


async def test_entry_that_is_replaced_while_it_is_read() -> None:
    """A hit is not learned from an entry that another took the place of since it was read."""
    app, backend = FastAPI(), Short()
    app.get("/")(cache(timeout=60)(lambda: "text"))
    wrapped = CacheMiddleware(app, backend)
    backend.beside_look_up = lambda key, value: backend.set_bytes(key, bytes(bytearray(value)))
    for _ in range(3):
        await messages_of(wrapped, scope_of("/"))
    assert not wrapped.fast._ready
    backend.beside_look_up = None
    await messages_of(wrapped, scope_of("/"))
    assert wrapped.fast._ready


async def test_middleware_may_change_an_answer() -> None:
    """What a middleware does to the messages of one answer is not in the next."""

    class Adds:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            async def send_more(message: Any) -> None:
                if message["type"] == "http.response.start":
                    message["headers"].append((b"x-more", b"1"))
                    message["more"] = True
                await send(message)

            await self.app(scope, receive, send_more)

    app = FastAPI(middleware=[Middleware(Adds)])
    app.get("/")(cache(timeout=60)(lambda: "text"))
    put_cache(app)
    async with client_of(app) as client:
        for _ in range(4):
            assert (await client.get("/")).headers.get_list("x-more") == ["1"]


def remembered(fast: FastPath) -> tuple[int, int]:
    """Return how many requests are remembered, and the bytes that are counted for them."""
    total = 0
    paths: Counter[str] = Counter()
    for (_, (path, *_)), ready in fast._ready.items():
        form: Any = ready
        while form is not None:
            total += form.size
            paths[path] += 1
            form = form.next
    assert total == fast._bytes
    assert paths == fast.paths
    return len(fast._ready), total


async def test_hit_that_another_loop_has_forgotten() -> None:
    """What is forgotten while another event loop begins an era is forgotten once (F32)."""
    twin = Twin(reference=False)
    for _ in range(2):
        await twin.ask("GET", "/shared", b"", [])
    fast = twin.cache.fast
    fast.paths.clear()
    fast._forget(next(iter(fast._ready)))
    assert not fast.paths


async def test_bounded_requests() -> None:
    """The requests that are remembered are bounded by number (S18)."""
    twin = Twin(reference=False)
    for number in range(MAX_REQUESTS + 50):
        for _ in range(2):
            await twin.ask("GET", "/shared", b"n=%d" % number, [])
    assert remembered(twin.cache.fast)[0] == MAX_REQUESTS


@pytest.mark.parametrize(
    "request_of",
    [
        pytest.param(lambda text: {"path": f"/{text}"}, id="path"),
        pytest.param(lambda text: {"query_string": text.encode()}, id="query"),
        pytest.param(
            lambda text: {"headers": [(b"host", b"test"), (b"x-a", text.encode())]}, id="selecting field"
        ),
        pytest.param(lambda text: {"headers": [(b"host", text.encode())]}, id="host"),
    ],
)
async def test_long_requests_count(request_of: Any) -> None:
    """What is remembered of a request, however long its parts are, takes no more memory than it counts (S18)."""
    app = FastAPI()

    @app.get("/{rest:path}")
    @cache(timeout=60)
    def short(rest: str, x_a: Annotated[str, Header()] = "") -> Response:
        return Response(b"short")

    wrapped = CacheMiddleware(app, MemoryBackend())
    tracemalloc.start()
    for number in range(MAX_FORMS):
        for _ in range(2):
            await messages_of(wrapped, scope_of(**{"path": "/", **request_of(f"{number:060000}")}))
    fast = wrapped.fast
    gc.collect()
    before, counted = tracemalloc.get_traced_memory()[0], fast._bytes
    for key in [*fast._ready]:
        fast._forget(key)
    gc.collect()
    freed = before - tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert MAX_FORMS * 59_000 < freed <= counted  # other threads may have taken something meanwhile


async def test_rare_requests() -> None:
    """Where there is no room left, a request is remembered from its second hit on: rare ones put out none."""
    twin = Twin(reference=False)
    for number in range(MAX_REQUESTS):
        for _ in range(2):
            await twin.ask("GET", "/shared", b"n=%d" % number, [])
    twin.again = 0
    for expected in (0, 0, 0, 1):  # a miss, a hit, the one that is remembered, and then
        await twin.ask("GET", "/shared", b"n=rare", [])
        assert twin.again == expected
    assert remembered(twin.cache.fast)[0] == MAX_REQUESTS


async def test_marks_of_rare_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is noted of requests that there was no room for is bounded by number, too (S18)."""
    monkeypatch.setattr(fastpath, "MAX_REQUESTS", 8)
    twin = Twin(reference=False)
    for number in range(40):
        for _ in range(2):
            await twin.ask("GET", "/shared", b"n=%d" % number, [])
    assert 0 < len(twin.cache.fast._hit_once.marks) <= 8


async def test_too_large_to_remember(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hit that is larger than all that may be remembered is not, and puts out none."""
    monkeypatch.setattr(fastpath, "MAX_BYTES", 20_000)
    app = FastAPI()

    @app.get("/{size}")
    @cache(timeout=60)
    def sized(size: int) -> Response:
        return Response(b"x" * size)

    wrapped = CacheMiddleware(app, MemoryBackend())
    for path in ("/1", "/1", *["/15000"] * 4):
        await messages_of(wrapped, scope_of(path))
    assert [key[1][0] for key in wrapped.fast._ready] == ["/1"]


async def test_bounded_forms() -> None:
    """The forms of one request are bounded by number (S19)."""
    twin = Twin(reference=False)
    for number in range(MAX_FORMS * 2):
        for _ in range(2):
            await twin.ask("GET", "/declared", b"", [(b"x-a", b"%d" % number)])
    form: Any = next(iter(twin.cache.fast._ready.values()))
    count = 0
    while form is not None:
        form, count = form.next, count + 1
    assert count == MAX_FORMS
    remembered(twin.cache.fast)


async def test_bounded_bytes() -> None:
    """What is remembered is at most 32 MiB, a body and the value that it was read from counted (S18)."""
    app = FastAPI()

    @app.get("/{number}")
    @cache(timeout=60, max_body=MAX_BYTES)
    def large(number: int) -> Response:
        return Response(b"x" * (MAX_BYTES // 9))

    wrapped = CacheMiddleware(app, MemoryBackend(max_bytes=MAX_BYTES * 8, max_entry_bytes=MAX_BYTES))
    async with client_of(wrapped) as client:
        for number in range(8):
            for expected in ("fwd=uri-miss; stored", "hit", "hit"):
                assert told(await client.get(f"/{number}")) == expected
    requests_held, bytes_held = remembered(wrapped.fast)
    assert (requests_held, bytes_held <= 32 * 1024 * 1024) == (4, True)

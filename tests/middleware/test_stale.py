"""Stale answers, while one fetches anew and where the handler fails (RFC 5861, SPEC §7.2)."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from dependency_injector import providers
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import PlainTextResponse, StreamingResponse
from starlette.background import BackgroundTask

from app_cache import CacheMiddleware, CachePolicy, MemoryBackend, cache
from app_cache.store import StoredResponses
from tests.clients import all_blocked
from tests.middleware.apps import client_of, messages_of, put_cache, scope_of, told

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from app_cache.testing import FakeClock
    from containers import CacheContainer

pytestmark = pytest.mark.anyio


class Changing:
    """An application that gives its answers one after the other, and the last one for ever."""

    def __init__(self, clock: FakeClock, *answers: Any, **options: Any) -> None:
        self.answers = [*answers]
        self.runs = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.app = FastAPI()
        self.app.get("/")(cache(**{"timeout": 60, **options})(partial(self.handle)))
        self.container: CacheContainer = put_cache(self.app, clock)
        self.client = client_of(self.app)

    async def handle(self) -> Any:
        """Give the next answer, once the gate is open."""
        self.runs += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        await self.gate.wait()
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, Response) else Response(answer)

    async def get(self, **options: Any) -> tuple[int, str, str | None]:
        """Return the status, the text and what Cache-Status says."""
        answer = await self.client.get("/", **options)
        return answer.status_code, answer.text, told(answer)


async def test_stale_while_revalidate(clock: FakeClock) -> None:
    """Within the window everybody gets the stale answer at once, while one run in the background fetches anew."""
    app = Changing(clock, "one", "two", stale_while_revalidate=30)
    await app.get()
    clock.advance(89)
    app.gate.clear()
    answers = [await app.client.get("/") for _ in range(20)]
    assert {(answer.text, answer.headers["cache-status"]) for answer in answers} == {
        ("one", "app-cache; hit; ttl=-29")
    }
    app.gate.set()
    await all_blocked()
    assert app.runs == 2
    assert await app.get() == (200, "two", "hit")


async def test_beyond_the_window(clock: FakeClock) -> None:
    """Beyond the window nobody gets the stale answer."""
    app = Changing(clock, "one", "two", stale_while_revalidate=30)
    await app.get()
    clock.advance(90.5)
    assert await app.get() == (200, "two", "fwd=stale; stored")


async def test_refresh_that_fails(clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    """A refresh that fails leaves the stale answer where it was; the next waits a second, then twice as long."""
    app = Changing(clock, "one", RuntimeError("boom"), Response("busy", 503), "two", stale_while_revalidate=30)
    store = StoredResponses(app.container.backend(), now=clock, monotonic=clock)
    app.container.store.override(providers.Object(store))
    await app.get()
    clock.advance(61)
    for seconds, runs in ((0, 2), (0.9, 2), (0.1, 3), (1.9, 3), (0.1, 4)):
        clock.advance(seconds)
        assert await app.get() == (200, "one", "hit")
        await all_blocked()
        assert app.runs == runs
    assert await app.get() == (200, "two", "hit")
    assert caplog.text.count("cache.fill_failed") == 1


async def test_refresh_is_not_the_clients(clock: FakeClock) -> None:
    """A client that leaves with its stale answer does not end the refresh that it began."""
    app = Changing(clock, "one", "two", stale_while_revalidate=30)
    await app.get()
    clock.advance(61)
    app.gate.clear()
    task = asyncio.create_task(app.get())
    await task
    app.gate.set()
    await all_blocked()
    assert await app.get() == (200, "two", "hit")


async def test_refresh_after_an_invalidation(clock: FakeClock) -> None:
    """What is invalidated is not served stale, not even while it is fetched anew (F25)."""
    app = Changing(clock, "one", "two", "three", stale_while_revalidate=30, tags=["x"])
    await app.get()
    clock.advance(61)
    app.gate.clear()
    assert await app.get() == (200, "one", "hit")
    await app.container.invalidation().by_tag("x")
    app.gate.set()
    assert await app.get() == (200, "three", "fwd=uri-miss; stored")
    await all_blocked()
    assert await app.get() == (200, "three", "hit")


async def test_early_refresh(clock: FakeClock) -> None:
    """A fresh answer is fetched anew in the background when chance has it, once, and nobody waits (XFetch)."""
    app = Changing(clock, "one", "two", early_refresh=1)
    chances = [0.5]
    app.container.chance.override(providers.Object(lambda: chances[-1]))
    app.gate.clear()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(app.get)
        await all_blocked()
        clock.advance(2)
        app.gate.set()
    clock.advance(17)
    assert await app.get() == (200, "one", "hit")
    await all_blocked()
    assert app.runs == 1
    chances.append(1 - 1e-9)
    app.gate.clear()
    assert [await app.get() for _ in range(2)] == [(200, "one", "hit")] * 2
    app.gate.set()
    await all_blocked()
    assert app.runs == 2


async def test_jitter(clock: FakeClock) -> None:
    """The lifetime of an answer is shortened by the fraction that chance takes of the jitter."""
    app = Changing(clock, "one", "two", jitter=0.5)
    app.container.chance.override(providers.Object(lambda: 0.5))
    await app.get()
    clock.advance(44)
    assert await app.get() == (200, "one", "hit")
    clock.advance(2)
    assert await app.get() == (200, "two", "fwd=stale; stored")


async def test_soft_invalidation(clock: FakeClock) -> None:
    """What is softly invalidated is served within the window, as stale, and fetched anew."""
    app = Changing(clock, "one", "two", stale_while_revalidate=30, tags=["x"])
    await app.get()
    await app.container.invalidation().by_tag("x", soft=True)
    answer = await app.client.get("/")
    assert (answer.text, answer.headers["cache-status"]) == ("one", "app-cache; hit; ttl=-1")
    assert (app.container.metrics()["hit-stale"], app.container.metrics()["hit"]) == (1, 0)
    await all_blocked()
    assert await app.get() == (200, "two", "hit")


FAILURES = [
    pytest.param(RuntimeError("boom"), id="raises"),
    pytest.param(Response("bad", 500), id="500"),
    pytest.param(Response("busy", 503), id="503"),
    pytest.param(Response("busy", 503, headers={"cache-control": "max-age=60"}), id="503 that says how long"),
]


@pytest.mark.parametrize("failure", FAILURES)
async def test_stale_if_error(clock: FakeClock, failure: Any) -> None:
    """Where the handler fails, the stale answer stands in within the window, and the failure is not stored."""
    app = Changing(clock, "one", failure, "two", stale_if_error=30)
    await app.get()
    clock.advance(90)
    answer = await app.client.get("/")
    assert (answer.status_code, answer.text, answer.headers["age"]) == (200, "one", "90")
    failed = failure.status_code if isinstance(failure, Response) else 500
    assert answer.headers["cache-status"] == f"app-cache; fwd=stale; fwd-status={failed}; ttl=-30"
    assert await app.get() == (200, "two", "fwd=stale; stored")


async def test_soft_invalidation_and_a_failure(clock: FakeClock) -> None:
    """What was softly invalidated stands in for a failure, and is not said to be fresh."""
    app = Changing(clock, "one", Response("busy", 503), stale_if_error=30, tags=["x"])
    await app.get()
    await app.container.invalidation().by_tag("x", soft=True)
    answer = await app.client.get("/")
    assert (answer.text, answer.headers["cache-status"]) == ("one", "app-cache; fwd=stale; fwd-status=503; ttl=-1")


@pytest.mark.parametrize("status", [404, 429, 501, 505])
async def test_answers_that_are_no_failure(clock: FakeClock, status: int) -> None:
    """Nothing stands in for an answer but 500, 502, 503 and 504 (RFC 5861 §4)."""
    app = Changing(clock, "one", Response("no", status), stale_if_error=30)
    await app.get()
    clock.advance(61)
    assert (await app.get())[:2] == (status, "no")


async def test_what_was_refused_does_not_come_back(clock: FakeClock) -> None:
    """Once the handler has answered something else that is not stored, the older answer stands in no more."""
    app = Changing(clock, "one", Response("gone", 404), Response("bad", 500), stale_if_error=60)
    await app.get()
    clock.advance(61)
    assert [(await app.get())[:2] for _ in range(2)] == [(404, "gone"), (500, "bad")]


@pytest.mark.parametrize(
    "rest",
    [
        pytest.param({"type": "http.response.pathsend", "path": "/etc/hosts"}, id="pathsend"),
        pytest.param({"type": "http.response.body", "body": b"two"}, id="trailers"),
    ],
)
async def test_what_cannot_be_stored_takes_the_place(clock: FakeClock, rest: dict[str, Any]) -> None:
    """Once the handler has answered more than can be stored, the older answer stands in no more."""
    start = {"type": "http.response.start", "status": 200, "headers": []}
    last = {"type": "http.response.body", "body": b"end"}
    answers = [
        (start, last),
        ({**start, "trailers": "body" in rest}, rest),
        ({**start, "status": 500}, last),
    ]

    async def bare(scope: Any, receive: Any, send: Any) -> None:
        for message in answers.pop(0):
            await send(message)

    policy = CachePolicy(timeout=60, stale_if_error=60)
    app = CacheMiddleware(bare, MemoryBackend(), default_policy=policy, clock=clock)
    await messages_of(app, scope_of("/"))
    clock.advance(61)
    assert [(await messages_of(app, scope_of("/")))[0]["status"] for _ in range(2)] == [200, 500]


async def test_failure_after_the_start(clock: FakeClock) -> None:
    """Nothing stands in for an answer that fails after it began: it breaks off, and no other follows."""

    async def parts() -> AsyncIterator[str]:
        yield "tw"
        raise RuntimeError("boom")

    app = Changing(clock, "one", StreamingResponse(parts()), stale_if_error=30)
    await app.get()
    clock.advance(61)
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    with pytest.raises(RuntimeError, match="boom"):
        await app.app(scope_of("/"), asyncio.Event().wait, send)  # type: ignore[arg-type]
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]


async def test_handler_timeout(clock: FakeClock) -> None:
    """A handler that is too slow counts as failed: who waits gets the stale answer, later ones what it gave."""
    app = Changing(clock, "one", "two", stale_if_error=30, handler_timeout=0.05)
    await app.get()
    clock.advance(61)
    app.gate.clear()
    answers: list[Any] = []

    async def ask() -> None:
        answers.append(await app.get())

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(ask)
    assert answers == [(200, "one", "fwd=stale; fwd-status=504")] * 5
    app.gate.set()
    await all_blocked()
    assert await app.get() == (200, "two", "hit")
    assert app.runs == 2


async def test_handler_timeout_after_a_hint(clock: FakeClock) -> None:
    """A handler that has hinted at its answer has not begun it: the hint passes, and the stale answer follows."""
    hint = {"type": "http.response.early_hint", "links": [b"</style.css>; rel=preload"]}
    gate = asyncio.Event()
    gate.set()

    async def bare(scope: Any, receive: Any, send: Any) -> None:
        await send(hint)
        await gate.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one"})

    policy = CachePolicy(timeout=60, stale_if_error=30, handler_timeout=0.05)
    app = CacheMiddleware(bare, MemoryBackend(), default_policy=policy, clock=clock)
    await messages_of(app, scope_of("/"))
    clock.advance(61)
    gate.clear()
    first, start, body = await messages_of(app, scope_of("/"))
    assert (first, body["body"]) == (hint, b"one")
    assert (b"cache-status", b"app-cache; fwd=stale; fwd-status=504; ttl=-1") in start["headers"]
    gate.set()
    await all_blocked()


async def test_handler_timeout_without_a_stale_answer(clock: FakeClock) -> None:
    """Where nothing may stand in, a slow handler is waited for, by those who wait for its run too."""
    app = Changing(clock, "one", stale_if_error=30, handler_timeout=1e-6)
    app.gate.clear()
    asked = [asyncio.create_task(app.get()) for _ in range(3)]
    await all_blocked()
    app.gate.set()
    assert {(await each)[:2] for each in asked} == {(200, "one")}
    assert (await app.get(), app.runs) == ((200, "one", "hit"), 1)


async def test_failure_whose_body_does_not_come(clock: FakeClock) -> None:
    """The stale answer stands in for a failure as soon as that starts: its body may never come."""
    app, gate = FastAPI(), asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"down"
        await gate.wait()

    answers = iter([PlainTextResponse("one"), StreamingResponse(body(), 503)])

    @app.get("/")
    @cache(timeout=60, stale_if_error=30)
    async def answer() -> Response:
        return next(answers)

    put_cache(app, clock)
    async with client_of(app) as client:
        await client.get("/")
        clock.advance(61)
        async with asyncio.timeout(10):
            rescued = await client.get("/")
    assert (rescued.text, told(rescued)) == ("one", "fwd=stale; fwd-status=503")
    gate.set()
    await all_blocked()


async def test_handler_timeout_beyond_the_window(clock: FakeClock) -> None:
    """Where nothing may stand in any more when the handler's time is over, it is waited for."""
    app = Changing(clock, "one", "two", stale_if_error=30, handler_timeout=0.05)
    await app.get()
    clock.advance(89.99)
    app.gate.clear()
    asked = [asyncio.create_task(app.get()) for _ in range(3)]
    await asyncio.wait(asked, timeout=0.2, return_when=asyncio.FIRST_COMPLETED)
    app.gate.set()
    assert {(await each)[:2] for each in asked} == {(200, "two")}


async def test_validation_does_not_wait_for_background_tasks(clock: FakeClock) -> None:
    """A client gets what a 304 has validated before the background tasks of the handler have ended (F22)."""
    app, ended = FastAPI(), asyncio.Event()

    @app.get("/")
    @cache(timeout=60)
    async def answer(request: Request) -> Response:
        if "if-none-match" in request.headers:
            return Response(status_code=304, background=BackgroundTask(ended.wait))
        return Response("text", headers={"etag": '"a"'})

    put_cache(app, clock)
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async with client_of(app) as client:
        await client.get("/")
    clock.advance(61)
    request = asyncio.create_task(app(scope_of("/"), asyncio.Event().wait, send))  # type: ignore[arg-type]
    await all_blocked()
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert not request.done()
    ended.set()
    await request


@pytest.mark.parametrize("failure", FAILURES[:3])
async def test_failure_beyond_the_window(clock: FakeClock, failure: Any) -> None:
    """Beyond the window the failure is the answer."""
    app = Changing(clock, "one", failure, stale_if_error=30)
    await app.get()
    clock.advance(91)
    assert (await app.get())[0] >= 500


@pytest.mark.parametrize("failure", FAILURES)
async def test_many_at_once(clock: FakeClock, failure: Any) -> None:
    """All 200 who wait for a run that fails get the stale answer (F16)."""
    app = Changing(clock, "one", failure, stale_if_error=30)
    await app.get()
    clock.advance(61)
    app.gate.clear()
    asked = [asyncio.create_task(app.get()) for _ in range(200)]
    await all_blocked()
    app.gate.set()
    assert [(await each)[:2] for each in asked] == [(200, "one")] * 200
    assert app.runs == 2


@pytest.mark.parametrize(
    "said", [{}, {"cache-control": "max-age=5, stale-if-error=60"}], ids=["policy", "response"]
)
@pytest.mark.parametrize("status", [404, 410, 503])
async def test_an_error_is_no_rescue(status: int, said: dict[str, str], clock: FakeClock) -> None:
    """A stored error does not stand in for a failure, whoever would have it so (SPEC §7.2)."""
    first = Response("first", status, headers=said)
    app = Changing(clock, first, Response("second", 503), statuses={status: 5}, stale_if_error=60)
    await app.get()
    assert await app.get() == (status, "first", "hit")
    clock.advance(6)
    assert (await app.get())[:2] == (503, "second")


async def test_an_error_is_over_when_it_is_stale(clock: FakeClock) -> None:
    """A stored error does not live on in the stale windows of the policy."""
    app = Changing(clock, Response("gone", 404), "there", statuses={404: 5}, stale_while_revalidate=60)
    await app.get()
    clock.advance(6)
    assert (await app.get())[:2] == (200, "there")


@pytest.mark.parametrize("guarded", [False, True], ids=["open", "guarded"])
@pytest.mark.parametrize("how", ["503", "raises", "the guard answers 503"])
async def test_head_of_what_fails(clock: FakeClock, how: str, guarded: bool) -> None:
    """What stands in for a failure to GET does so for HEAD; a failure of the guards is the client's own."""
    app, works = FastAPI(), [True]

    def guard() -> None:
        if not works[0] and how == "the guard answers 503":
            raise HTTPException(503)

    @app.api_route("/", methods=["GET", "HEAD"], dependencies=[Depends(guard)])
    @cache(timeout=60, stale_if_error=30, guarded=guarded)
    def answer() -> Any:
        if not works[0] and how == "raises":
            raise RuntimeError("broken")
        return "text" if works[0] else Response(status_code=503)

    put_cache(app, clock)
    async with client_of(app) as client:
        await client.get("/")
        clock.advance(61)
        works[0] = False
        answers = [await client.head("/"), await client.get("/")]
    own = guarded and how == "the guard answers 503"
    assert [each.status_code for each in answers] == [503 if own else 200] * 2
    assert [told(each) for each in answers] == [told(answers[1])] * 2


async def test_head_is_rescued_at_once(clock: FakeClock) -> None:
    """What stands in for a failure to HEAD does not wait for what the handler does after it."""
    app, works, go_on = FastAPI(), [True], asyncio.Event()

    @app.api_route("/", methods=["GET", "HEAD"])
    @cache(timeout=60, stale_if_error=30)
    def answer(tasks: BackgroundTasks) -> Any:
        if works[0]:
            return "text"
        tasks.add_task(go_on.wait)
        return Response(status_code=503, background=tasks)

    started = asyncio.Event()

    async def send(message: Any) -> None:
        assert message.get("status", 200) == 200
        started.set()

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    put_cache(app, clock)
    async with client_of(app) as client:
        await client.get("/")
    clock.advance(61)
    works[0] = False
    request = asyncio.create_task(app(scope_of("/", method="HEAD"), receive, send))
    async with asyncio.timeout(5):
        await started.wait()
    assert not request.done()
    go_on.set()
    await request


@pytest.mark.parametrize("status", [400, 404, 429])
async def test_what_is_no_failure(clock: FakeClock, status: int) -> None:
    """An answer of 4xx is an answer: nothing stands in for it."""
    app = Changing(clock, "one", Response("no", status), stale_if_error=30)
    await app.get()
    clock.advance(61)
    assert (await app.get())[:2] == (status, "no")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        pytest.param("max-age=60, stale-if-error=30", 200, id="the response's own window"),
        pytest.param("max-age=60, stale-if-error=5", 500, id="shorter than the policy's"),
        pytest.param("max-age=60, must-revalidate", 500, id="must-revalidate"),
        pytest.param("s-maxage=60", 500, id="s-maxage"),
    ],
)
async def test_what_the_response_says(clock: FakeClock, said: str, expected: int) -> None:
    """The response's own word on its stale use holds before the policy's."""
    app = Changing(clock, Response("one", headers={"cache-control": said}), RuntimeError(), stale_if_error=20)
    await app.get()
    clock.advance(70)
    assert (await app.get())[0] == expected


@pytest.mark.parametrize(("wanted", "expected"), [(True, 200), (False, 500)])
async def test_http_policy(clock: FakeClock, wanted: bool, expected: int) -> None:
    """Under the policy of the RFC alone a stale answer stands in for a failure, unless it is told not to."""
    failing: list[bool] = []

    async def bare(scope: Any, receive: Any, send: Any) -> None:
        if failing:
            raise RuntimeError("boom")
        fields = [(b"cache-control", b"max-age=60"), (b"content-length", b"1")]
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        await send({"type": "http.response.body", "body": b"a"})

    policy = CachePolicy.http(stale_on_failure=wanted)
    client = client_of(CacheMiddleware(bare, MemoryBackend(), default_policy=policy, clock=clock))
    await client.get("/")
    clock.advance(600)
    failing.append(True)
    assert (await client.get("/")).status_code == expected

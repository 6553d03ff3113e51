"""Many at once: one run, whoever leaves, whatever fails, and nothing old after an invalidation (SPEC §7.1)."""

from __future__ import annotations

import asyncio
import logging
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse

from app_cache import BackendError, CacheBackend, KeyGenerator, MemoryBackend, add_tags, cache
from app_cache.flight import FEW
from tests.clients import all_blocked
from tests.middleware.apps import client_of, put_cache, scope_of, served, told
from tests.stored import FourMethods

if TYPE_CHECKING:
    import httpx

    from app_cache.testing import FakeClock
    from containers import CacheContainer

pytestmark = pytest.mark.anyio

COLLAPSED = "fwd=uri-miss; collapsed"


class Patient(FourMethods):
    """A backend that is given all the time it needs, however busy the machine is."""

    operation_timeout = 30.0


class Away(Patient):
    """A backend whose server is away, until it is not; it may take until it *answers* to find out."""

    def __init__(self) -> None:
        super().__init__()
        self.away = True
        self.answers = asyncio.Event()
        self.answers.set()

    async def get(self, key: str) -> str | None:
        await self._there()
        return await super().get(key)

    async def set(self, key: str, value: str, timeout: int) -> None:
        await self._there()
        await super().set(key, value, timeout)

    async def _there(self) -> None:
        await self.answers.wait()
        if self.away:
            raise BackendError("away")


class Gated:
    """An application whose handler waits at a gate, and counts its runs.

    Args:
        answer: What it answers with, or raises.
        backend: Where it is cached.
        clock: The time.
        **options: The policy's.
    """

    def __init__(
        self,
        answer: Any = None,
        backend: CacheBackend | None = None,
        clock: FakeClock | None = None,
        **options: Any,
    ) -> None:
        self.answer = answer
        self.runs: list[Request] = []
        self.gate = asyncio.Event()
        self.app = FastAPI()
        self.app.get("/")(cache(**{"timeout": 60, **options})(partial(self.handle)))
        self.container: CacheContainer = put_cache(self.app, clock, backend)

    async def handle(self, request: Request) -> Any:
        """Wait, and answer with the number of the run, or with what `answer` makes of the request."""
        self.runs.append(request)
        number = len(self.runs)
        await self.gate.wait()
        return Response(str(number)) if self.answer is None else self.answer(request)

    async def ask(self, count: int, **options: Any) -> list[asyncio.Task[httpx.Response]]:
        """Return *count* requests under way, once each of them waits for something."""
        client = client_of(self.app)
        asked = [asyncio.create_task(client.get("/", **options)) for _ in range(count)]
        await all_blocked()
        return asked

    async def begun(self, runs: int) -> None:
        """Wait until so many *runs* have begun, and all else waits for something; there must be no more."""
        async with asyncio.timeout(5):
            while len(self.runs) < runs:
                await all_blocked()
        await all_blocked()
        assert len(self.runs) == runs

    async def waves(self, *each: list[asyncio.Task[httpx.Response]]) -> list[httpx.Response]:
        """Open the gate, and return the answers of all waves."""
        self.gate.set()
        return [await task for wave in each for task in wave]


def failing(error: Exception) -> Any:
    """Return what raises *error* as an answer."""

    def answer(request: Request) -> None:
        raise error

    return answer


@pytest.mark.parametrize("backend", [MemoryBackend, Patient, Away])
async def test_one_run(backend: Any) -> None:
    """Fifty requests for one key at once are one run, whatever becomes of the backend."""
    app = Gated(backend=backend())
    answers = await app.waves(await app.ask(50))
    assert len(app.runs) == 1
    assert {answer.text for answer in answers} == {"1"}
    stored = "fwd=uri-miss" if backend is Away else "fwd=uri-miss; stored"
    assert sorted(str(told(answer)) for answer in answers) == sorted([stored, *[COLLAPSED] * 49])
    assert len({answer.headers["etag"] for answer in answers}) == 1


@pytest.mark.parametrize("backend", [MemoryBackend, Patient])
async def test_one_run_with_late_tags(backend: Any) -> None:
    """Tags that the handler adds do not make those who wait run it each for itself."""

    def answer(request: Request) -> Response:
        add_tags(request, "late")
        return Response("text")

    app = Gated(answer, backend=backend())
    answers = await app.waves(await app.ask(50))
    assert {answer.text for answer in answers} == {"text"}
    assert len(app.runs) <= 2


async def test_other_keys_do_not_wait() -> None:
    """Requests for different keys run side by side."""
    app = Gated()
    waves = [await app.ask(2, params={"a": n}) for n in range(5)]
    assert len(app.runs) == 5
    await app.waves(*waves)


async def test_variants() -> None:
    """Each variant has one run, and nobody gets another's, though how they vary is not known before."""

    def answer(request: Request) -> Response:
        return Response(request.headers["accept-language"], headers={"vary": "accept-language"})

    app = Gated(answer)
    waves = [await app.ask(20, headers={"accept-language": language}) for language in ("en", "de")]
    answers = await app.waves(*waves)
    assert [answer.text for answer in answers] == ["en"] * 20 + ["de"] * 20
    assert len(app.runs) == 2


@pytest.mark.parametrize(
    "said",
    [
        pytest.param({"cache-control": "no-cache"}, id="no-cache"),
        pytest.param({"cache-control": "no-cache", "vary": "accept"}, id="no-cache, one of several variants"),
        pytest.param({"cache-control": "max-age=60, no-cache", "etag": '"a"'}, id="no-cache and fresh"),
        pytest.param({"cache-control": "max-age=0", "etag": '"a"'}, id="stale when it comes"),
        pytest.param({"expires": "0", "etag": '"a"'}, id="expired when it comes"),
    ],
)
async def test_waiting_for_what_must_be_validated(said: dict[str, str]) -> None:
    """An answer that each use has to validate is for one request; who waited asks by itself (RFC 9111 §4)."""
    app: Gated = Gated(lambda request: Response(str(len(app.runs)), headers=said), timeout=60)
    answers = await app.waves(await app.ask(20))
    assert (len(app.runs), "collapsed" in {told(answer) for answer in answers}) == (20, False)


async def test_what_must_be_validated_is_not_waited_for() -> None:
    """For a moment after such an answer, requests of its key do not wait for each other."""
    app = Gated(lambda request: Response("text", headers={"cache-control": "no-cache"}))
    await app.waves(await app.ask(2))
    app.gate.clear()
    wave = await app.ask(5)
    assert len(app.runs) == 2 + 5
    await app.waves(wave)


@pytest.mark.parametrize(
    ("said", "runs"),
    [
        pytest.param({}, 2, id="that of the policy"),
        pytest.param({"cache-control": "max-age=60"}, 2, id="its own"),
        pytest.param({"cache-control": "max-age=60, must-revalidate"}, 20, id="which ends for all"),
    ],
)
async def test_waiting_for_longer_than_it_lives(clock: FakeClock, said: dict[str, str], runs: int) -> None:
    """Where a handler takes longer than the lifetime, those who waited get the answer of the next run."""

    def answer_late(request: Request) -> Response:
        clock.advance(61)
        return Response(str(len(app.runs)), headers=said)

    app = Gated(answer_late, clock=clock, timeout=60)
    await app.waves(await app.ask(20))
    assert len(app.runs) == runs


async def test_waiting_for_what_may_be_stale(clock: FakeClock) -> None:
    """What is stale when it comes, and may be served so, is for all who waited."""
    said = {"cache-control": "max-age=1, stale-while-revalidate=600"}

    def answer_late(request: Request) -> Response:
        clock.advance(61)
        return Response("text", headers=said)

    app = Gated(answer_late, clock=clock)
    await app.waves(await app.ask(20))
    assert len(app.runs) <= 2


async def test_clients_with_credentials_do_not_wait() -> None:
    """Requests whose answers could not be shared run at once, each for itself."""
    app = Gated()
    waves = [await app.ask(1, headers={"cookie": str(n)}) for n in range(5)]
    assert len(app.runs) == 5
    await app.waves(*waves)


async def test_clients_that_ask_past_the_cache_do_not_wait() -> None:
    """Requests that want nothing stored run at once, each for itself."""
    app = Gated()
    await app.waves(await app.ask(1))
    app.gate.clear()
    waves = [await app.ask(1, headers={"cache-control": "no-cache"}) for _ in range(3)]
    assert len(app.runs) == 4
    await app.waves(*waves)


async def test_nobody_waits_for_a_part() -> None:
    """A request for a part runs alone, for its answer may be no use to others."""
    app = Gated()
    waves = [await app.ask(1, headers={"range": "bytes=0-0"}), await app.ask(3)]
    assert len(app.runs) == 2
    await app.waves(*waves)


async def test_run_that_ends_during_a_look_up() -> None:
    """Who asks the backend in vain while a run ends has the answer of that run (F3)."""
    backend = Away()
    app = Gated(backend=backend)
    leader = await app.ask(1)
    backend.answers.clear()
    waiting = await app.ask(3)
    await app.waves(leader)
    backend.answers.set()
    assert {told(answer) for answer in await app.waves(waiting)} == {COLLAPSED}
    assert len(app.runs) == 1


@pytest.mark.parametrize(
    ("fields", "others"),
    [
        pytest.param({}, "failed, de", id="for all"),
        pytest.param({"set-cookie": "a=b"}, "Service Unavailable", id="its first client's own"),
    ],
)
async def test_failure_of_another_variant(fields: dict[str, str], others: str) -> None:
    """Those who wait for a run that fails get its failure if they have its variant; else theirs has a run."""

    def answer(request: Request) -> Response:
        language = request.headers["accept-language"]
        if language == "en":
            return Response("hello", headers={"vary": "accept-language"})
        return Response(f"failed, {language}", 503, headers={"vary": "accept-language", **fields})

    app = Gated(answer)
    waves = [await app.ask(1, headers={"accept-language": "de"})]
    waves += [await app.ask(2, headers={"accept-language": language}) for language in ("de", "en", "fr")]
    answers = await app.waves(*waves)
    assert [(answer.status_code, answer.text) for answer in answers] == [
        (503, "failed, de"),
        *[(503, others)] * 2,
        *[(200, "hello")] * 2,
        (503, "failed, fr"),
        (503, others.replace("de", "fr")),
    ]
    assert len(app.runs) == 3


@pytest.mark.parametrize("vary", ["*", "accept language"])
async def test_failure_of_no_variant(vary: str) -> None:
    """A failure that nobody's request selects, as its `Vary` has it, is nobody's who wait."""

    def answer(request: Request) -> Response:
        return Response("failed", 503, headers={"vary": vary}) if len(app.runs) == 1 else Response("hello")

    app = Gated(answer)
    answers = await app.waves(await app.ask(1), await app.ask(3))
    assert [answer.text for answer in answers] == ["failed", *["hello"] * 3]
    assert len(app.runs) == 2


async def test_failures_of_many_variants() -> None:
    """Who has waited for runs that failed for others runs the handler alone."""

    def fail(request: Request) -> Response:
        return Response(request.headers["accept-language"], 503, headers={"vary": "accept-language"})

    app = Gated(fail)
    languages = [str(number) for number in range(10)]
    waves = [await app.ask(1, headers={"accept-language": language}) for language in languages]
    assert [answer.text for answer in await app.waves(*waves)] == languages
    assert len(app.runs) == 10


class OneForAll(KeyGenerator):
    """Gives all requests one key."""

    def generate_cache_key(self, request: Request) -> str:
        return "all"


@pytest.mark.parametrize("early", [False, True], ids=["while it is waited for", "before it is"])
async def test_invalidated_by_another_url_of_the_key(*, early: bool) -> None:
    """Nobody gets of a run what was invalidated by his URL since it began, though another URL began it."""
    app = Gated(key=OneForAll())
    waves = [await app.ask(1, headers={"host": "a.test"})]
    if early:
        await app.container.invalidation().by_url("http://b.test/")
    waves.append(await app.ask(1, headers={"host": "b.test"}))
    if not early:
        await app.container.invalidation().by_url("http://b.test/")
    answers = await app.waves(*waves)
    assert [answer.text for answer in answers] == ["1", "2"]


async def test_streamed_answer() -> None:
    """Those who wait for a streamed answer get all of it."""
    app = Gated(lambda request: StreamingResponse(iter(["a", "b"])))
    answers = await app.waves(await app.ask(50))
    assert ({answer.text for answer in answers}, len(app.runs)) == ({"ab"}, 1)


async def test_leader_leaves() -> None:
    """The run goes on without the client that started it; those who wait are answered, and it is stored (F14)."""
    app = Gated()
    (leader,) = await app.ask(1)
    waiting = await app.ask(10)
    leader.cancel()
    await all_blocked()
    answers = await app.waves(waiting)
    assert {told(answer) for answer in answers} == {COLLAPSED}
    assert told(await client_of(app.app).get("/")) == "hit"
    assert len(app.runs) == 1


@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "in a BaseHTTPMiddleware"])
async def test_leader_leaves_over_http(*, wrapped: bool) -> None:
    """A client that closes its connection does not end the run that it started (F14)."""
    app, runs = FastAPI(), []
    started, gate = threading.Event(), threading.Event()

    @app.get("/")
    @cache(timeout=60)
    async def answer() -> str:
        runs.append(1)
        started.set()
        await asyncio.to_thread(gate.wait, 10)
        return "text"

    put_cache(app)
    if wrapped:
        app.middleware("http")(lambda request, call_next: call_next(request))
    async with served(app) as client:
        leader = asyncio.create_task(client.get("/"))
        await asyncio.to_thread(started.wait, 10)
        leader.cancel()
        await asyncio.wait({leader})
        waiting = [asyncio.create_task(client.get("/")) for _ in range(5)]
        await all_blocked()
        gate.set()
        assert {(await each).text for each in waiting} == {'"text"'}
    assert len(runs) == 1


async def test_last_client_leaves() -> None:
    """A run that nobody waits for any more is stored all the same."""
    app = Gated()
    (leader,) = await app.ask(1)
    leader.cancel()
    await all_blocked()
    app.gate.set()
    await all_blocked()
    assert told(await client_of(app.app).get("/")) == "hit"


async def test_run_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks when a run has hung for as long as anybody waits goes on at once (F17)."""
    monkeypatch.setattr("app_cache.flight.FILL_TIMEOUT_S", 0)
    app = Gated()
    waves = [await app.ask(1) for _ in range(2)]
    assert len(app.runs) == 2
    await app.waves(*waves)


class Eventful(Gated):
    """An application with a gate for each run."""

    def __init__(self, answer: Any = None, **options: Any) -> None:
        super().__init__(answer, **options)
        self.gates: list[asyncio.Event] = []

    async def handle(self, request: Request) -> Any:
        """Wait at a gate of its own."""
        self.gate = asyncio.Event()
        self.gates.append(self.gate)
        return await super().handle(request)


async def hung(monkeypatch: pytest.MonkeyPatch, app: Eventful, count: int) -> list[asyncio.Task[httpx.Response]]:
    """Return *count* requests: the leader of a run that hung, a few who run the handler too, others who wait."""
    monkeypatch.setattr("app_cache.flight.FILL_TIMEOUT_S", 0)
    asked = await app.ask(count)
    assert len(app.runs) == min(count, 1 + FEW)
    return asked


async def test_waiting_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has waited for a place in vain gets a 504 of the cache's own, without Cache-Status (RFC 9211 §2)."""
    monkeypatch.setattr("app_cache.exchange.FILL_TIMEOUT_S", 0)
    app = Eventful()
    asked = await hung(monkeypatch, app, 2 + FEW)
    answer = await asked[-1]
    assert (answer.status_code, "cache-status" in answer.headers) == (504, False)
    for gate in app.gates:
        gate.set()
    await asyncio.wait(asked)


async def test_handlers_that_hang_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key is not blocked for good by runs that hang: after a while others run the handler, which may be well."""
    monkeypatch.setattr("app_cache.flight.PLACE_S", 0.01)
    app = Eventful()
    asked = await hung(monkeypatch, app, 1 + FEW)
    well = asyncio.create_task(client_of(app.app).get("/"))
    async with asyncio.timeout(10):
        while len(app.runs) < 2 + FEW:  # noqa: ASYNC110  nobody tells
            await asyncio.sleep(0.01)
    app.gates[-1].set()
    assert (await well).text == str(2 + FEW)
    assert told(await client_of(app.app).get("/")) == "hit"
    for gate in app.gates:
        gate.set()
    await asyncio.wait(asked)


async def test_slow_run_that_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for one of few places has the answer of the run that was too slow, once it is there (F17)."""
    app = Eventful()
    asked = await hung(monkeypatch, app, 20)
    app.gates[0].set()
    answers = [await each for each in (asked[0], *asked[1 + FEW :])]
    assert {(answer.status_code, answer.text) for answer in answers} == {(200, "1")}
    assert (len(app.runs), [each.done() for each in asked].count(False)) == (1 + FEW, FEW)
    for gate in app.gates:
        gate.set()
    assert [(await each).text for each in asked[1 : 1 + FEW]] == ["2", "3", "4", "5"]


async def test_one_of_few_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who gets a place that is left looks up again, and has what was stored by who had it (F17)."""
    app = Eventful()
    asked = await hung(monkeypatch, app, 20)
    app.gates[1].set()
    answers = [await each for each in asked[1 + FEW :]]
    assert {(answer.text, told(answer)) for answer in answers} == {("2", "hit")}
    assert len(app.runs) == 1 + FEW
    for gate in app.gates:
        gate.set()
    await asyncio.wait(asked)


async def test_slow_run_for_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a run that was too slow ends with nothing for others, they still run the handler few at once (F17)."""
    app = Eventful(lambda _: Response("own", headers={"cache-control": "private"}))
    asked = await hung(monkeypatch, app, 20)
    app.gates[0].set()
    await asked[0]
    at_once = []
    while not all(each.done() for each in asked):
        await all_blocked()
        closed = [gate for gate in app.gates if not gate.is_set()]
        at_once.append(len(closed))
        for gate in closed:
            gate.set()
        await all_blocked()
    assert (max(at_once), len(app.runs)) == (FEW, 20)


async def test_slow_run_that_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a run that nobody reads took too long and is ended, who waits runs the handler, few at once (F17)."""
    app = Eventful()
    asked = await app.ask(20)
    monkeypatch.setattr("app_cache.flight.FILL_TIMEOUT_S", 0)
    asked[0].cancel()
    await all_blocked()
    assert len(app.runs) == 1 + FEW
    for gate in app.gates:
        gate.set()
    assert {(await each).status_code for each in asked[1:]} == {200}
    assert len(app.runs) == 1 + FEW


async def test_slow_run_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for one of few places has the failure of the run that was too slow (F16)."""
    app = Eventful(lambda _: Response("failed", 500))
    asked = await hung(monkeypatch, app, 10)
    app.gates[0].set()
    assert {(await each).status_code for each in (asked[0], *asked[1 + FEW :])} == {500}
    assert len(app.runs) == 1 + FEW
    for gate in app.gates:
        gate.set()
    await asyncio.wait(asked)


async def test_slow_run_that_was_invalidated(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run that was too slow made before an invalidation is given to nobody who waits for a place (F25)."""
    app = Eventful()
    asked = await hung(monkeypatch, app, 2 + FEW)
    await app.container.invalidation().everything()
    app.gates[0].set()
    assert (await asked[0]).text == "1"
    await all_blocked()
    for gate in app.gates:
        gate.set()
    assert (await asked[-1]).text != "1"
    await asyncio.wait(asked)


async def test_waiters_leave() -> None:
    """Those who leave while they wait disturb nobody else (F15)."""
    app = Gated()
    asked = await app.ask(200)
    for each in asked[1::2]:
        each.cancel()
    await all_blocked()
    answers = await app.waves(asked[::2])
    assert ({answer.text for answer in answers}, len(app.runs)) == ({"1"}, 1)
    assert all(each.cancelled() for each in asked[1::2])


async def test_failing_handler(caplog: pytest.LogCaptureFixture) -> None:
    """A handler that raises runs once for all who wait: each gets a 500, the error is raised once (F16)."""
    raised: list[Exception] = []
    app = Gated(failing(RuntimeError("boom")))

    class Watch:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            try:
                await self.inner(scope, receive, send)
            except RuntimeError as error:
                raised.append(error)
                raise

    app.app.add_middleware(Watch)
    with caplog.at_level(logging.DEBUG, "app_cache"):
        answers = await app.waves(await app.ask(50))
    assert {(answer.status_code, answer.text) for answer in answers} == {(500, "Internal Server Error")}
    assert [told(answer) for answer in answers].count(COLLAPSED) == 49
    assert (len(app.runs), len(raised), caplog.text) == (1, 1, "")


async def test_failing_handler_and_the_answer_of_its_own() -> None:
    """What an exception handler answers goes to all where the cache sees it, else to the leader alone (F16)."""
    for kind, seen in ((RuntimeError, True), (Exception, False)):
        app = Gated(failing(RuntimeError("boom")))
        app.app.add_exception_handler(kind, lambda request, error: Response("sorry", 500))
        answers = await app.waves(await app.ask(20))
        others = "sorry" if seen else "Internal Server Error"
        assert [answer.text for answer in answers] == ["sorry", *[others] * 19]
        assert {answer.status_code for answer in answers} == {500}
        assert len(app.runs) == 1


async def test_handler_that_asks_whether_its_leader_left() -> None:
    """A handler whose leader has left is not told so while others wait for its answer (F14)."""
    left: list[bool] = []
    app, gate = FastAPI(), asyncio.Event()

    @app.get("/")
    @cache(timeout=60)
    async def answer(request: Request) -> str:
        await gate.wait()
        left.extend([await request.is_disconnected() for _ in range(3)])  # the first one takes the content
        return "text"

    put_cache(app)
    gone = asyncio.Event()

    async def receive() -> dict[str, Any]:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None: ...

    leader = asyncio.create_task(app(scope_of("/"), receive, send))
    await all_blocked()
    waiting = asyncio.create_task(client_of(app).get("/"))
    await all_blocked()
    gone.set()
    gate.set()
    assert (told(await waiting), left) == (COLLAPSED, [False] * 3)
    await leader


async def test_failing_answer() -> None:
    """An answer of 5xx goes to all who wait, with Vary as the first has it, and is not stored."""
    app = Gated(
        lambda request: Response("busy", 503, headers={"retry-after": "9"}), include_headers=["Accept-Language"]
    )
    answers = await app.waves(await app.ask(50))
    assert {(a.status_code, a.text, a.headers["retry-after"]) for a in answers} == {(503, "busy", "9")}
    assert {a.headers["vary"] for a in answers} == {"accept-language"}
    assert len(app.runs) == 1
    assert told(await client_of(app.app).get("/")) == "fwd=uri-miss; detail=status"


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"set-cookie": "a=b"}, id="set-cookie"),
        pytest.param({"cache-control": "private"}, id="private"),
        pytest.param({"cache-control": "no-store"}, id="no-store"),
        pytest.param({"cache-control": "no-cache"}, id="no-cache"),
    ],
)
async def test_failing_answer_of_ones_own(fields: dict[str, str]) -> None:
    """Of a failure that is one client's own those who wait get the status alone."""
    app = Gated(lambda request: Response("mine", 503, headers=fields))
    answers = await app.waves(await app.ask(10))
    assert [(a.status_code, a.text) for a in answers] == [(503, "mine"), *[(503, "Service Unavailable")] * 9]
    assert [a for a in answers[1:] if fields.keys() & a.headers.keys()] == []


@pytest.mark.parametrize(
    ("said", "options"),
    [
        pytest.param('private="set-cookie, x-user"', {}, id="private fields"),
        pytest.param('no-cache="set-cookie, x-user"', {}, id="fields to validate"),
        pytest.param('private="x-user"', {"exclude_headers": ["Set-Cookie"]}, id="by the policy"),
    ],
)
async def test_fields_of_a_failing_answer(said: str, options: dict[str, Any]) -> None:
    """Those who wait for a failure get none of its fields that are for one client (RFC 9111 §5.2.2.7, S3)."""
    fields = {"cache-control": said, "set-cookie": "session=alice", "x-user": "alice", "retry-after": "9"}
    app = Gated(lambda request: Response("busy", 503, headers=fields), **options)
    first, *others = await app.waves(await app.ask(10))
    assert (first.headers["set-cookie"], first.headers["x-user"]) == ("session=alice", "alice")
    assert {(a.status_code, a.text, a.headers["retry-after"]) for a in others} == {(503, "busy", "9")}
    assert [a for a in others if {"set-cookie", "x-user"} & a.headers.keys()] == []


async def test_failing_within_the_body() -> None:
    """A run that fails within its body is a 500 for those who wait, and nothing is stored."""

    def answer(request: Request) -> Response:
        async def parts() -> Any:
            yield b"a"
            raise RuntimeError("boom")

        return StreamingResponse(parts())

    app = Gated(answer)
    asked = await app.ask(10)
    app.gate.set()
    answers = [await each for each in asked[1:]]
    assert {answer.status_code for answer in answers} == {500}
    await asyncio.wait(asked)
    assert app.container.store().stats["stored"] == 0


@pytest.mark.parametrize("announced", [True, False], ids=["with a length", "without"])
async def test_too_large(announced: bool) -> None:
    """Those who wait for what grows too large go on by themselves, and the next ones do not wait at all."""
    body = b"a" * 2000

    def answer(request: Request) -> Response:
        return Response(body) if announced else StreamingResponse(iter([body[:900], body[900:]]))

    app = Gated(answer, max_body=1000)
    answers = await app.waves(await app.ask(10))
    assert ({answer.content for answer in answers}, len(app.runs)) == ({body}, 10)
    assert told(answers[0]) == ("fwd=uri-miss; detail=too-large" if announced else "fwd=uri-miss")
    app.gate.clear()
    asked = await app.ask(10)
    assert len(app.runs) == 20
    await app.waves(asked)


@pytest.mark.parametrize("backend", [MemoryBackend, Patient])
@pytest.mark.parametrize("late", [False, True], ids=["tag known before", "tag known late"])
@pytest.mark.parametrize("soft", [False, True], ids=["for good", "softly"])
async def test_invalidation_during_a_run(backend: Any, *, late: bool, soft: bool) -> None:
    """After an invalidation nobody who asks then gets what a run made that began before (F25)."""

    def answer(request: Request) -> Response:
        if late:
            add_tags(request, "x")
        return Response(str(app.runs.index(request)))

    options: dict[str, Any] = {} if late else {"tags": ["x"]}
    app = Gated(answer, backend(), **options)
    before = await app.ask(5)
    await app.begun(1)
    await app.container.invalidation().by_tag("x", soft=soft)
    after = await app.ask(5)
    await app.begun(1 if late else 2)
    answers = await app.waves(before, after)
    assert {answer.text for answer in answers[5:]} == {"1"}
    await all_blocked()
    assert (await client_of(app.app).get("/")).text == "1"
    assert len(app.runs) == 2


@pytest.mark.parametrize("away", [False, True], ids=["it leaves", "it comes back"])
async def test_backend_that_changes_during_a_run(*, away: bool) -> None:
    """Where one of two could not ask what was invalidated, it does not wait for the other (F25)."""
    backend = Away()
    backend.away = away
    app = Gated(backend=backend)
    before = await app.ask(1)
    backend.away = not away
    after = await app.ask(1)
    assert len(app.runs) == 2
    await app.waves(before, after)


async def test_everything_during_a_run() -> None:
    """Patterns, URLs and everything count against a run under way as tags do."""
    for target in ("by_pattern", "by_url", "everything"):
        app = Gated()
        before = await app.ask(3)
        await getattr(app.container.invalidation(), target)(*(() if target == "everything" else ("/",)))
        after = await app.ask(3)
        answers = await app.waves(before, after)
        assert {answer.text for answer in answers[3:]} == {"2"}
        assert (await client_of(app.app).get("/")).text == "2"


async def test_older_run_ends_last() -> None:
    """The answer of an older run does not take the place of a newer one's."""
    gates = [asyncio.Event(), asyncio.Event()]
    app, runs = FastAPI(), []

    @app.get("/")
    @cache(timeout=60, tags=["x"])
    async def answer() -> str:
        runs.append(1)
        number = len(runs)
        await gates[number - 1].wait()
        return str(number)

    container = put_cache(app)
    client = client_of(app)
    first = asyncio.create_task(client.get("/"))
    await all_blocked()
    await container.invalidation().by_tag("x")
    second = asyncio.create_task(client.get("/"))
    await all_blocked()
    gates[1].set()
    await second
    gates[0].set()
    assert (await first).json() == "1"
    assert (await client.get("/")).json() == "2"


async def test_two_loops() -> None:
    """Requests in different loops do not wait for each other, and share what is stored (F32)."""
    app = FastAPI()
    app.get("/")(cache(timeout=60)(lambda: "text"))
    put_cache(app)

    async def ask() -> str | None:
        return told(await client_of(app).get("/"))

    assert await asyncio.to_thread(asyncio.run, ask()) == "fwd=uri-miss; stored"
    assert await asyncio.to_thread(asyncio.run, ask()) == "hit"
    assert await ask() == "hit"

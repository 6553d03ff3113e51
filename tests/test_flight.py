"""One fill per key: the run belongs to the cache, its clients come and go."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest

from app_cache.codec import Mark
from app_cache.flight import (
    FEW,
    MARKER_S,
    NOT_SHARED,
    REST_S,
    UNADMITTED,
    Fill,
    Flight,
    Outcome,
    Share,
    land,
)
from app_cache.rules.directives import delta_seconds
from app_cache.rules.messages import Answer, combined
from app_cache.testing import FakeClock
from tests.stored import Page

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from app_cache.asgi import App, Message, Receive, Send
    from app_cache.rules.messages import Headers

pytestmark = pytest.mark.anyio

STORED = Outcome(entry=Page().entry(Mark()))
FAILED = Outcome(failed=True)
START: Message = {"type": "http.response.start", "status": 200, "headers": []}
END: Message = {"type": "http.response.body", "body": b"end", "more_body": False}


def part(body: bytes) -> Message:
    """Return a message of a body that goes on."""
    return {"type": "http.response.body", "body": body, "more_body": True}


class Answers:
    """Judges every run alike, and writes down what it was asked."""

    def __init__(self, share: Share = Share.STORE, max_body: int = 1000) -> None:
        self.max_body = max_body
        self.share = share
        self.length: int | None = None
        self.bodies: list[bytes] = []

    async def begin(self) -> None: ...

    def started(self, status: int, headers: Headers) -> Share:
        self.length = delta_seconds(combined(headers, b"content-length"))
        return self.share

    def refused(self) -> None: ...

    def unkept(self) -> None: ...

    async def finished(self, body: bytes) -> Outcome:
        self.bodies.append(body)
        return Outcome(failed=True, failure=Answer(500, (), body)) if self.share is Share.FAIL else STORED

    def raised(self) -> Outcome:
        return FAILED


class Handler:
    """An application that does one *step* after the other as the test lets it."""

    def __init__(self) -> None:
        self.runs = 0
        self.ended: BaseException | str | None = None
        self.receive: Receive | None = None
        self._steps: asyncio.Queue[tuple[Callable[[], Awaitable[Any]] | None, asyncio.Future[Any]]] = (
            asyncio.Queue()
        )
        self._send: Send | None = None

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        self.runs += 1
        self.receive, self._send = receive, send
        try:
            while True:
                step, done = await self._steps.get()
                if step is None:
                    break
                try:
                    done.set_result(await step())
                except BaseException:
                    done.cancel()
                    raise
            self.ended = "returned"
            done.set_result(None)
        except BaseException as error:
            self.ended = error
            raise

    def do(self, step: Callable[[], Awaitable[Any]] | None) -> asyncio.Future[Any]:
        """Let it do *step*; return what tells when that is done."""
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._steps.put_nowait((step, done))
        return done

    def send(self, message: Message) -> asyncio.Future[Any]:
        """Let it send *message*."""

        async def step() -> None:
            assert self._send is not None
            await self._send(message)

        return self.do(step)

    def fail(self, error: Exception) -> asyncio.Future[Any]:
        """Let it raise *error*."""

        async def step() -> None:
            raise error

        return self.do(step)

    def end(self) -> asyncio.Future[Any]:
        """Let it return."""
        return self.do(None)


class Client:
    """The leader's connection: takes messages one by one if it is told to, and leaves when it is told."""

    def __init__(self) -> None:
        self.got: list[Message] = []
        self.takes = asyncio.Event()
        self.takes.set()
        self.refuses: Exception | None = None
        self.gone = asyncio.Event()
        self.is_listened_to = False
        self.content: list[Message] = [{"type": "http.request", "body": b"content", "more_body": False}]

    async def send(self, message: Message) -> None:
        await self.takes.wait()
        if self.refuses is not None:
            raise self.refuses
        self.got.append(message)

    async def receive(self) -> Message:
        """Return the next message to the only one that may ask for it at a time."""
        if self.content:
            return self.content.pop()
        assert not self.is_listened_to
        self.is_listened_to = True
        try:
            await self.gone.wait()
        finally:
            self.is_listened_to = False
        return {"type": "http.disconnect"}

    @property
    def body(self) -> bytes:
        """The bytes of body that it got."""
        return b"".join(message.get("body", b"") for message in self.got)


class Scene:
    """A run that a client leads."""

    def __init__(self, judge: Answers | None = None) -> None:
        self.judge = judge or Answers()
        self.handler = Handler()
        self.client = Client()
        self.flight: Flight[Fill] = Flight()
        self.fill = Fill(self.judge)
        self.unheard: list[BaseException] = []
        self.fill.on_failure = self.unheard.append
        self.fill.start(self.handler, {}, b"content", self.client.receive)
        self.flight.take_off("key", self.fill)
        self.leader = asyncio.create_task(self.fill.lead(self.client.send))
        self.waiters = self.wait(3)

    def wait(self, count: int) -> list[asyncio.Task[Outcome | None]]:
        """Let so many wait for the run."""
        return [asyncio.create_task(self.fill.follow(30)) for _ in range(count)]

    async def outcomes(self) -> list[Outcome | None]:
        """Return what those who wait get, once they do."""
        return await asyncio.gather(*self.waiters)


@pytest.fixture
async def scene() -> Scene:
    """A run that may be shared."""
    return Scene()


async def turns(count: int = 10) -> None:
    """Let others run."""
    for _ in range(count):
        await asyncio.sleep(0)


async def receiving(handler: Handler) -> Message:
    """Return what *handler* receives next."""
    assert handler.receive is not None
    return await handler.receive()


# While it may be shared.


async def test_leader_gets_each_message_at_once(scene: Scene) -> None:
    """The leader gets each message as it comes; the others get the outcome, once the answer is complete."""
    for message in (START, part(b"one"), part(b"two")):
        await scene.handler.send(message)
        await turns()
        assert scene.client.got[-1]["type"] == message["type"]
        assert not any(waiter.done() for waiter in scene.waiters)
    await scene.handler.send(END)
    assert await scene.outcomes() == [STORED] * 3
    assert not scene.leader.done()
    await scene.handler.end()
    await scene.leader
    assert (scene.client.body, scene.judge.bodies) == (b"onetwoend", [b"onetwoend"])
    assert scene.handler.runs == 1


async def test_start_with_a_length_waits_for_the_body(scene: Scene) -> None:
    """A start that announces a length waits for the first body message, for more may be known of it by then."""
    await scene.handler.send({**START, "headers": [(b"content-length", b"3")]})
    await turns()
    assert scene.client.got == []
    await scene.handler.send(END)
    await turns()
    assert [message["type"] for message in scene.client.got] == ["http.response.start", "http.response.body"]
    await scene.handler.end()
    await scene.leader


async def test_whole_by_its_length(scene: Scene) -> None:
    """Who waits has what came to its announced length, though the run has yet to say its end (RFC 9112 §8)."""
    await scene.handler.send({**START, "headers": [(b"content-length", b"3")]})
    await scene.handler.send(part(b"one"))
    assert await scene.outcomes() == [STORED] * 3
    await scene.handler.send({**END, "body": b""})
    await scene.handler.end()
    await scene.leader
    assert (scene.client.body, scene.judge.bodies) == (b"one", [b"one"])


async def test_what_is_for_tests(scene: Scene) -> None:
    """What a response tells the client of a test passes, and keeps nobody from sharing the answer."""
    debug = {"type": "http.response.debug", "info": {"template": "page.html"}}
    for message in (debug, START, END):
        await scene.handler.send(message)
    assert await scene.outcomes() == [STORED] * 3
    await scene.handler.end()
    await scene.leader
    assert scene.client.got[0] == debug


async def test_runs_at_its_own_pace(scene: Scene) -> None:
    """What may be shared is not held up by a leader that takes nothing."""
    scene.client.takes.clear()
    for message in (START, part(b"one"), END):
        await scene.handler.send(message)
    assert await scene.outcomes() == [STORED] * 3
    scene.client.takes.set()
    await scene.handler.end()
    await scene.leader
    assert scene.client.body == b"oneend"


@pytest.mark.parametrize("length", [[], [(b"content-length", b"6")]], ids=["in parts", "whole before its end"])
async def test_messages_that_are_used_again(scene: Scene, length: list[tuple[bytes, bytes]]) -> None:
    """A run may use a message again, and the memory of its body, for what it sends next."""
    scene.client.takes.clear()
    memory = bytearray(3)
    hint: Message = {"type": "http.response.early_hint", "links": [b"</one>"]}
    body: Message = {"type": "http.response.body", "body": memoryview(memory)}
    await scene.handler.send(hint)
    hint["links"] = [b"</two>"]
    await scene.handler.send({**START, "headers": length})
    for memory[:], body["more_body"] in ((b"one", True), (b"two", True)):
        await scene.handler.send(body)
    body.update(body=b"", more_body=False)
    await scene.handler.send(body)
    body["body"] = b"more"
    await scene.handler.end()
    scene.client.takes.set()
    await scene.leader
    assert scene.client.got[0]["links"] == [b"</one>"]
    assert scene.client.got[2:] == [part(b"one"), part(b"two"), {**END, "body": b""}]
    assert scene.judge.bodies == [b"onetwo"]


async def test_slow_leader_costs_one_body(scene: Scene) -> None:
    """What a leader has yet to get of a complete answer is in memory once, and it gets each message as it was."""
    scene.client.takes.clear()
    parts = [START, part(b"abc"), part(b""), part(b"defg"), END]
    for message in parts:
        await scene.handler.send(message)
    await scene.handler.end()
    (body,) = scene.judge.bodies
    kept = [message["body"] for message in scene.fill._kept if message.get("more_body")]
    assert [each.obj is body for each in kept] == [True] * 3
    scene.client.takes.set()
    await scene.leader
    assert scene.client.got[1:] == parts[1:]
    assert {type(message["body"]) for message in scene.client.got[1:]} == {bytes}


@pytest.mark.parametrize(
    ("message", "waits"),
    [
        pytest.param(START, True, id="its start"),
        pytest.param({"type": "http.response.early_hint", "links": []}, False, id="a hint"),
        pytest.param({"type": "http.response.debug", "info": {}}, False, id="what is for tests"),
    ],
)
async def test_patience(message: Message, *, waits: bool) -> None:
    """A leader's patience ends where nothing of an answer has come; its client gets what has come."""
    fill, handler, client = Fill(Answers()), Handler(), Client()
    fill.start(handler, {}, b"", client.receive)
    await handler.send(message)
    leader = asyncio.create_task(fill.lead(client.send, 0.0))
    await turns()
    for rest in [END] if waits else [START, END]:
        await handler.send(rest)
    await handler.end()
    assert await leader is waits
    assert [each["type"] for each in client.got] == [message["type"], *[END["type"]] * waits]


async def test_content_and_no_disconnect(scene: Scene) -> None:
    """The run gets the content once, and learns of no client that leaves until its answer is complete."""
    scene.client.gone.set()
    content = await scene.handler.do(lambda: receiving(scene.handler))
    assert content == {"type": "http.request", "body": b"content", "more_body": False}
    await scene.handler.send(START)
    assert scene.handler.receive is not None
    listening = asyncio.ensure_future(scene.handler.receive())
    await turns()
    assert not listening.done()
    await scene.handler.send(END)
    assert await listening == {"type": "http.disconnect"}
    await scene.handler.end()
    await scene.leader


async def test_disconnect_after_the_answer(scene: Scene) -> None:
    """A run has nothing more to receive once it has answered, whether or not its client stays."""
    await scene.handler.send(START)
    await scene.handler.send(END)
    async with asyncio.timeout(5):
        received = [await scene.handler.do(lambda: receiving(scene.handler)) for _ in range(2)]
    assert [message["type"] for message in received] == ["http.request", "http.disconnect"]
    await scene.handler.end()
    await scene.leader


async def test_disconnect_of_a_leader_that_was_cancelled(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that goes on without its leader asks nothing of that one's connection."""
    monkeypatch.setattr("app_cache.flight.SLOW_BODY_S", 0)
    await scene.handler.send(START)
    await scene.handler.send(part(b"one"))
    await scene.outcomes()
    scene.leader.cancel()
    await asyncio.wait({scene.leader})
    assert (await scene.handler.do(lambda: receiving(scene.handler)))["type"] == "http.request"
    assert scene.handler.receive is not None
    listening = asyncio.ensure_future(scene.handler.receive())
    await turns()
    await scene.handler.send(END)
    async with asyncio.timeout(5):
        assert await listening == {"type": "http.disconnect"}
    await scene.handler.end()


@pytest.mark.parametrize("when", [0, 1, 2])
async def test_leader_is_cancelled(scene: Scene, when: int) -> None:
    """A leader that is cancelled ends at once; the run goes on, and who waits has its answer."""
    messages = [START, part(b"one"), END]
    for message in messages[:when]:
        await scene.handler.send(message)
    await turns()
    scene.leader.cancel()
    await asyncio.wait({scene.leader})
    assert scene.leader.cancelled()
    for message in messages[when:]:
        await scene.handler.send(message)
    assert await scene.outcomes() == [STORED] * 3
    await scene.handler.end()
    assert (scene.handler.ended, scene.handler.runs, scene.unheard) == ("returned", 1, [])


async def test_leaders_connection_breaks(scene: Scene) -> None:
    """A leader to whom nothing can be sent raises that; the run goes on, and who waits has its answer."""
    scene.client.refuses = OSError("gone")
    await scene.handler.send(START)
    with pytest.raises(OSError, match="gone"):
        await scene.leader
    await scene.handler.send(END)
    assert await scene.outcomes() == [STORED] * 3
    await scene.handler.end()
    assert (scene.handler.ended, scene.unheard) == ("returned", [])


async def test_waiters_leave(scene: Scene) -> None:
    """Half of those who wait are cancelled, and nobody else notices (F15)."""
    scene.waiters = scene.wait(200)
    await turns()
    for waiter in scene.waiters[:100]:
        waiter.cancel()
    await scene.handler.send(START)
    await scene.handler.send(END)
    outcomes = await asyncio.gather(*scene.waiters, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes[:100]] == [asyncio.CancelledError] * 100
    assert outcomes[100:] == [STORED] * 100
    await scene.handler.end()
    await scene.leader


async def test_waiting_has_an_end(scene: Scene) -> None:
    """Who waits no longer has no outcome, and leaves the run as it is (F17)."""
    assert await scene.fill.follow(0) is None
    await scene.handler.send(START)
    await scene.handler.send(END)
    assert await scene.fill.follow(0) == STORED
    await scene.handler.end()
    await scene.leader


async def test_background_tasks(scene: Scene) -> None:
    """What the run does after its answer delays nobody but the leader's own end (F22)."""
    await scene.handler.send(START)
    await scene.handler.send(END)
    assert await scene.outcomes() == [STORED] * 3
    failing = scene.handler.fail(KeyError("background"))
    with pytest.raises(KeyError):
        await scene.leader
    assert (failing.cancelled(), scene.client.body) == (True, b"end")
    assert await scene.fill.follow(0) == STORED


@pytest.mark.parametrize(
    "after",
    [pytest.param([], id="its answer"), pytest.param([{"type": "http.response.odd"}], id="what nobody knows")],
)
async def test_leader_is_cancelled_after_its_answer(scene: Scene, after: list[Message]) -> None:
    """What a run does after its answer goes on when the leader's request is cancelled (F22)."""
    for message in (START, END, *after):
        await scene.handler.send(message)
    await turns()
    scene.leader.cancel()
    await asyncio.wait({scene.leader})
    scene.handler.end()
    assert scene.fill.task is not None
    await asyncio.wait({scene.fill.task})
    assert scene.handler.ended == "returned"


# When it fails.


async def test_run_raises(scene: Scene) -> None:
    """What a run raises reaches the leader alone; each who waits learns that it failed (F16)."""
    scene.handler.fail(KeyError("wrong"))
    assert await scene.outcomes() == [FAILED] * 3
    with pytest.raises(KeyError, match="wrong"):
        await scene.leader
    assert (scene.handler.runs, scene.unheard) == (1, [])


async def test_run_raises_with_nobody_to_tell(scene: Scene) -> None:
    """What a run raises after its leader left is told to who asked for it, once."""
    await turns()
    scene.leader.cancel()
    await asyncio.wait({scene.leader})
    scene.handler.fail(KeyError("wrong"))
    assert await scene.outcomes() == [FAILED] * 3
    await turns()
    assert scene.unheard == [scene.handler.ended]


def test_outcomes_that_say_nothing() -> None:
    """That an answer is not shared, and that its request was not let through, are two outcomes."""
    assert NOT_SHARED != UNADMITTED


async def test_failing_answer_is_whole_at_once() -> None:
    """A failure is there for its leader and for who waits when its last message is, whatever runs after it."""
    scene = Scene(Answers(Share.FAIL))
    await scene.handler.send(START)
    await scene.handler.send(END)
    failures = [outcome and outcome.failure for outcome in await scene.outcomes()]
    assert failures == [(500, (), b"end")] * 3
    await turns()
    assert scene.client.got[-1] == END
    assert not scene.leader.done()
    await scene.handler.end()
    await scene.leader


async def test_body_without_a_start() -> None:
    """A body that no start came before is the leader's alone, whose server refuses it."""
    scene = Scene()
    scene.client.refuses = RuntimeError("no start")
    sending = scene.handler.send(END)
    with pytest.raises(RuntimeError, match="no start"):
        await scene.leader
    assert await scene.outcomes() == [NOT_SHARED] * 3
    assert scene.judge.bodies == []
    assert isinstance(scene.handler.ended, RuntimeError)
    assert sending.cancelled()


async def test_replaced_answer_with_trailers() -> None:
    """An answer that is replaced at its start lets its leader go then, though trailers are to come."""
    scene = Scene(Answers(Share.REPLACE))
    await scene.handler.send({**START, "trailers": True})
    assert await scene.leader
    assert scene.client.got == []
    await scene.handler.end()


async def test_failing_answer_of_a_length() -> None:
    """The leader gets the messages of a failure in order, one that says its end after its length too."""
    scene = Scene(Answers(Share.FAIL))
    for message in ({**START, "headers": [(b"content-length", b"3")]}, part(b"one"), {**END, "body": b""}):
        await scene.handler.send(message)
    await scene.handler.end()
    await scene.leader
    assert [message["more_body"] for message in scene.client.got[1:]] == [True, False]


async def test_run_that_answers_nothing(scene: Scene) -> None:
    """A run that ends without an answer lets go who waits."""
    await scene.handler.end()
    assert await scene.outcomes() == [NOT_SHARED] * 3
    await scene.leader
    assert scene.client.got == []


async def test_run_cancelled_before_it_began() -> None:
    """A run that is cancelled before it began lets go who waits."""
    fill = Fill(Answers())
    fill.start(Handler(), {}, b"", None)
    assert fill.task is not None
    fill.task.cancel()
    assert await fill.follow(30) is NOT_SHARED


async def test_what_must_be_done_before_fails() -> None:
    """A run that cannot begin failed, and the leader learns why."""

    class Unready(Answers):
        async def begin(self) -> None:
            raise KeyError("begin")

    scene = Scene(Unready())
    assert await scene.outcomes() == [FAILED] * 3
    with pytest.raises(KeyError, match="begin"):
        await scene.leader
    assert scene.handler.runs == 0


async def test_withheld() -> None:
    """An answer in whose place another one stands reaches nobody."""
    scene = Scene(Answers(Share.WITHHOLD))
    await scene.handler.send(START)
    await scene.handler.send(END)
    assert await scene.outcomes() == [STORED] * 3
    await scene.handler.end()
    await scene.leader
    assert scene.client.got == []


async def test_replaced_at_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer in whose place another one stands at once holds up nobody, and its run has a bounded time."""
    scene = Scene(Answers(Share.REPLACE))
    await scene.handler.send(START)
    await scene.leader
    monkeypatch.setattr("app_cache.flight.FILL_TIMEOUT_S", 0)
    await scene.fill.end()
    assert await scene.outcomes() == [None] * 3
    assert scene.fill.task is not None
    await asyncio.wait({scene.fill.task})
    assert (scene.client.got, type(scene.handler.ended)) == ([], asyncio.CancelledError)


async def test_replaced_and_ended() -> None:
    """What a run does after an answer that was replaced is waited for, as after any other (F22)."""
    scene = Scene(Answers(Share.REPLACE))
    await scene.handler.send(START)
    await scene.handler.send(END)
    await scene.leader
    ending = asyncio.create_task(scene.fill.end())
    await turns()
    assert not ending.done()
    await scene.handler.end()
    await ending
    assert (await scene.outcomes(), scene.client.got) == ([STORED] * 3, [])


async def test_withheld_and_cancelled() -> None:
    """What a run does after a withheld answer goes on when its leader, who waits for it, is cancelled (F22)."""
    scene = Scene(Answers(Share.WITHHOLD))
    await scene.handler.send(START)
    await scene.handler.send(END)
    await scene.leader
    ending = asyncio.create_task(scene.fill.end())
    await turns()
    ending.cancel()
    await asyncio.wait({ending})
    assert ending.cancelled()
    scene.handler.fail(KeyError("background"))
    assert scene.fill.task is not None
    await asyncio.wait({scene.fill.task})
    assert isinstance(scene.handler.ended, KeyError)
    assert scene.unheard == [scene.handler.ended]


# Once it may not be shared.


async def refused() -> Scene:
    """Return a run whose start says that it is the leader's alone."""
    scene = Scene(Answers(Share.REFUSE))
    await scene.handler.send(START)
    return scene


async def test_refused_at_its_start() -> None:
    """An answer that is the leader's alone lets go at its start who waits; the leader gets all of it."""
    scene = await refused()
    assert await scene.outcomes() == [NOT_SHARED] * 3
    for message in (part(b"x" * 5_000), END):
        await scene.handler.send(message)
    await scene.handler.end()
    await scene.leader
    assert (len(scene.client.body), scene.judge.bodies) == (5_003, [])


@pytest.mark.parametrize(
    "message",
    [
        pytest.param({**START, "trailers": True}, id="trailers"),
        pytest.param({"type": "http.response.pathsend", "path": "/etc/hosts"}, id="pathsend"),
        pytest.param({"type": "http.response.zerocopysend", "file": 7}, id="unknown to us"),
    ],
)
async def test_messages_that_cannot_be_kept(scene: Scene, message: Message) -> None:
    """An answer with messages that cannot be kept is the leader's alone, and passes unchanged (F21)."""
    first = message if message["type"] == "http.response.start" else START
    await scene.handler.send({**first, "headers": [(b"content-length", b"3")]})
    if first is START:
        await scene.handler.send(message)
    assert await scene.outcomes() == [NOT_SHARED] * 3
    await scene.handler.end()
    await scene.leader
    assert [each["type"] for each in scene.client.got] == [*dict.fromkeys((first["type"], message["type"]))]


async def test_too_large() -> None:
    """When a body passes what may be kept, who waits is let go and the kept bytes are dropped (F19)."""
    scene = Scene(Answers(max_body=10))
    await scene.handler.send(START)
    await scene.handler.send(part(b"x" * 10))
    assert not any(waiter.done() for waiter in scene.waiters)
    await scene.handler.send(part(b"y"))
    assert await scene.outcomes() == [NOT_SHARED] * 3
    assert scene.fill._body == []
    await scene.handler.send(END)
    await scene.handler.end()
    await scene.leader
    assert (scene.client.body, scene.judge.bodies) == (b"x" * 10 + b"yend", [])


async def test_own_pace_is_the_clients() -> None:
    """A run that is the leader's alone waits until the client has taken what it sent."""
    scene = await refused()
    scene.client.takes.clear()
    sending = scene.handler.send(part(b"one"))
    await turns()
    assert not sending.done()
    scene.client.takes.set()
    await sending
    await scene.handler.send(END)
    await scene.handler.end()
    await scene.leader


async def test_own_disconnect() -> None:
    """A run that is the leader's alone learns that the client has left, and nothing twice."""
    scene = await refused()
    assert (await scene.handler.do(lambda: receiving(scene.handler)))["type"] == "http.request"
    listening = scene.handler.do(lambda: receiving(scene.handler))
    await turns()
    assert not listening.done()
    scene.client.gone.set()
    assert (await listening)["type"] == "http.disconnect"
    await scene.handler.end()
    await scene.leader


async def test_own_connection_breaks() -> None:
    """A run that is the leader's alone gets from its send what the connection raised, and nobody else is told."""
    scene = await refused()
    await turns()
    scene.client.refuses = gone = OSError("gone")
    scene.handler.send(part(b"one"))
    with pytest.raises(OSError, match="gone"):
        await scene.leader
    assert (scene.handler.ended, scene.unheard) == (gone, [])


async def test_own_leader_is_cancelled() -> None:
    """A run that is the leader's alone is cancelled with it, and has ended when it ends."""
    scene = await refused()
    await turns()
    scene.leader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await scene.leader
    assert isinstance(scene.handler.ended, asyncio.CancelledError)


async def test_refused_after_the_leader_was_cancelled() -> None:
    """A run whose leader was cancelled ends as soon as it turns out that nobody can use it."""
    scene = Scene(Answers(max_body=10))
    await scene.handler.send(START)
    scene.leader.cancel()
    await asyncio.wait({scene.leader})
    scene.handler.send(part(b"x" * 11))
    await turns()
    assert isinstance(scene.handler.ended, asyncio.CancelledError)
    assert await scene.outcomes() == [NOT_SHARED] * 3


async def test_refused_after_the_connection_broke() -> None:
    """A run whose client could not be reached gets that from its send once nobody else can use it."""
    scene = Scene(Answers(max_body=10))
    scene.client.refuses = gone = OSError("gone")
    await scene.handler.send(START)
    await asyncio.wait({scene.leader})
    assert scene.leader.exception() is gone
    scene.handler.send(part(b"x" * 11))
    await turns()
    assert (scene.handler.ended, scene.unheard) == (gone, [])


# Time.


async def test_slow_body(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a body goes on for too long after its first message, who waits is let go; it is stored all the same."""
    monkeypatch.setattr("app_cache.flight.SLOW_BODY_S", 0)
    await scene.handler.send(START)
    await turns()
    assert not any(waiter.done() for waiter in scene.waiters)
    await scene.handler.send(part(b"one"))
    assert await scene.outcomes() == [NOT_SHARED] * 3
    assert scene.flight.is_unshared("key")
    await scene.handler.send(END)
    assert scene.judge.bodies == [b"oneend"]
    await scene.handler.end()
    await scene.leader


READ_BY_NO_CLIENT = pytest.mark.parametrize("led", [False, True], ids=["in the background", "left by its leader"])


async def begun_for_others(fill: Fill, handler: Handler, *, led: bool) -> None:
    """Start *fill* without a leader, or *led* by one that is gone when this returns."""
    client = Client()
    fill.start(handler, {}, b"", client.receive if led else None)
    if led:
        leader = asyncio.create_task(fill.lead(client.send))
        await turns()
        leader.cancel()
        await asyncio.wait({leader})


@READ_BY_NO_CLIENT
async def test_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch, led: bool) -> None:
    """A run that no client reads is cancelled after a while."""
    monkeypatch.setattr("app_cache.flight.FILL_TIMEOUT_S", 0)
    handler, fill = Handler(), Fill(Answers())
    await begun_for_others(fill, handler, led=led)
    flight: Flight[Fill] = Flight()
    flight.take_off("key", fill)
    assert await fill.follow(30) is None
    assert isinstance(handler.ended, asyncio.CancelledError)
    assert not flight.is_unshared("key")


async def test_background_run_that_has_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run in the background does after its answer takes as long as it takes."""
    monkeypatch.setattr("app_cache.flight.FILL_TIMEOUT_S", 0.05)
    handler, fill = Handler(), Fill(Answers())
    fill.start(handler, {}, b"", None)
    await handler.send(START)
    await handler.send(END)
    assert fill.task is not None
    assert fill._end_timer is not None
    assert fill._end_timer.cancelled()
    await handler.end()
    await fill.task


async def test_leader_that_leaves_what_has_answered(scene: Scene) -> None:
    """What a run does after its answer takes as long as it takes, though its leader leaves meanwhile."""
    await scene.handler.send(START)
    await scene.handler.send(END)
    await turns()
    scene.leader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await scene.leader
    assert scene.fill._end_timer is None
    await scene.handler.end()


# The fills of all keys.


async def test_found_until_it_has_its_outcome(scene: Scene) -> None:
    """A fill is found under its key until its outcome is there."""
    assert scene.flight.under_way("key") is scene.fill
    assert scene.flight.under_way("other") is None
    await scene.handler.send(START)
    await scene.handler.send(END)
    assert scene.flight.under_way("key") is None
    await scene.handler.end()
    await scene.leader
    assert not scene.flight._runs


async def test_message_that_a_client_never_takes(scene: Scene) -> None:
    """What comes after the whole body holds up the run only as long as its client is there (F14)."""
    await scene.handler.send(START)
    await scene.handler.send(END)
    scene.client.takes.clear()
    sent = scene.handler.send({"type": "of.another.kind"})
    await turns()
    assert not sent.done()
    scene.leader.cancel()
    await sent
    await scene.handler.end()


async def test_alone() -> None:
    """A fill that flies alone is not found, marks nothing, and is drained with the others."""
    flight: Flight[Fill] = Flight()
    handler, fill = Handler(), Fill(Answers(Share.REFUSE))
    fill.start(handler, {}, b"", None)
    flight.take_off("key", fill, alone=True)
    assert flight.under_way("key") is None
    await handler.send(START)
    assert not flight.is_unshared("key")
    await land([flight], 0)
    assert isinstance(handler.ended, asyncio.CancelledError)


@pytest.mark.parametrize("slow", [False, True], ids=["under way", "let go"])
async def test_a_later_fill(scene: Scene, monkeypatch: pytest.MonkeyPatch, slow: bool) -> None:
    """Who comes later waits for the last fill of a key, though an earlier one has not ended."""
    if slow:
        monkeypatch.setattr("app_cache.flight.SLOW_BODY_S", 0)
        await scene.handler.send(START)
        await scene.handler.send(part(b"one"))
        await scene.outcomes()
    later = Fill(Answers())
    later.start(scene.handler, {}, b"", None)
    scene.flight.take_off("key", later)
    assert scene.flight.under_way("key") is later
    await land([scene.flight], 0)


async def test_an_earlier_fill_ends(scene: Scene) -> None:
    """A fill is found until it has its outcome, though one that began before it has ended."""
    later = Fill(Answers())
    later.start(Handler(), {}, b"", None)
    scene.flight.take_off("key", later)
    await scene.handler.send(START)
    await scene.handler.send(END)
    await scene.outcomes()
    assert scene.flight.under_way("key") is later
    await scene.handler.end()
    await land([scene.flight], 0)
    await scene.leader


async def test_run_that_ended_before_it_took_off() -> None:
    """A run that had its outcome before it could be found is not kept: some loops begin tasks at once."""
    flight: Flight[Fill] = Flight()
    handler, fill = Handler(), Fill(Answers(Share.REFUSE))
    fill.start(handler, {}, b"", None)
    await handler.send(START)
    flight.take_off("key", fill)
    assert not flight._runs
    assert flight.is_unshared("key")
    await land([flight], 0)


def test_run_that_hung_in_a_loop_that_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose event loop was closed in its midst hangs for nobody (F32)."""
    monkeypatch.setattr("app_cache.flight.FILL_TIMEOUT_S", 0)
    flight: Flight[Fill] = Flight()

    async def take_off() -> Fill:
        fill = Fill(Answers())
        fill.start(Handler(), {}, b"", None)
        flight.take_off("key", fill)
        assert flight.hung("key") is fill
        return fill

    loop = asyncio.new_event_loop()
    fill = loop.run_until_complete(take_off())
    loop.close()
    assert flight.hung("key") is None
    assert fill.task is not None
    fill.task._log_destroy_pending = False  # type: ignore[attr-defined]


async def test_another_loop_does_not_wait(scene: Scene) -> None:
    """A fill of another event loop is not waited for (F32)."""

    async def found() -> Fill | None:
        return scene.flight.under_way("key")

    def in_another_loop(ask: Callable[[], Coroutine[Any, Any, Fill | None]]) -> Fill | None:
        return asyncio.run(ask())

    assert await asyncio.to_thread(in_another_loop, found) is None
    assert await found() is scene.fill
    await land([scene.flight], 0)


def test_one_loop_after_another() -> None:
    """A flight whose loop ended in its midst goes on in another loop."""
    flight: Flight[Fill] = Flight()

    async def take_off() -> Fill:
        fill = Fill(Answers())
        fill.start(Handler(), {}, b"", None)
        flight.take_off("key", fill)
        assert flight.under_way("key") is fill
        return fill

    first = asyncio.run(take_off())
    assert first.outcome.result() is NOT_SHARED
    assert asyncio.run(take_off()) is not first


def test_markers() -> None:
    """A marker stands for two seconds from when it was last made, for its key alone."""
    clock = FakeClock()
    flight: Flight[Fill] = Flight(clock)
    flight.mark_unshared("key")
    clock.advance(MARKER_S - 0.5)
    assert (flight.is_unshared("key"), flight.is_unshared("other")) == (True, False)
    flight.mark_unshared("key")
    clock.advance(MARKER_S - 0.5)
    assert flight.is_unshared("key")
    clock.advance(0.5)
    assert not flight.is_unshared("key")
    assert not flight._markers


def test_markers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of too many markers the oldest go."""
    monkeypatch.setattr("app_cache.flight.MAX_MARKERS", 2)
    flight: Flight[Fill] = Flight(FakeClock())
    for key in "abac":
        flight.mark_unshared(key)
    assert [flight.is_unshared(key) for key in "abc"] == [True, False, True]


async def landed(flight: Flight[Fill], share: Share, *, key: str = "key", refresh: bool = True) -> None:
    """Let a run of *key* land whose answer is to be shared so."""
    handler, fill = Handler(), Fill(Answers(share))
    fill.start(handler, {}, b"", None)
    flight.take_off(key, fill, refresh=refresh)
    await handler.send(START)
    await handler.send(END)
    await handler.end()


async def test_rests() -> None:
    """After a refresh that failed the next waits a second, after each more twice as long, a minute at most."""
    clock = FakeClock()
    flight: Flight[Fill] = Flight(clock)
    for seconds in (1, 2, 4, 8, 16, 32, 60, 60):
        await landed(flight, Share.FAIL)
        clock.advance(seconds - 0.5)
        assert (flight.may_refresh("key"), flight.may_refresh("other")) == (False, True)
        clock.advance(0.5)
        assert flight.may_refresh("key")


@pytest.mark.parametrize(
    ("share", "refresh", "rests"),
    [
        pytest.param(Share.STORE, True, False, id="a refresh that succeeds"),
        pytest.param(Share.STORE, False, False, id="a client's run that succeeds"),
        pytest.param(Share.FAIL, False, True, id="a client's run that fails"),
    ],
)
async def test_rest_ends(share: Share, refresh: bool, rests: bool) -> None:
    """A run of any kind that gives something ends the rest of its key, and only a refresh lengthens it."""
    clock = FakeClock()
    flight: Flight[Fill] = Flight(clock)
    await landed(flight, Share.FAIL)
    await landed(flight, share, refresh=refresh)
    assert flight.may_refresh("key") is not rests
    clock.advance(REST_S)
    assert flight.may_refresh("key")


async def test_rests_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of too many keys that rest the oldest go."""
    monkeypatch.setattr("app_cache.flight.MAX_MARKERS", 2)
    flight: Flight[Fill] = Flight(FakeClock())
    for key in "abac":
        await landed(flight, Share.FAIL, key=key)
    assert [flight.may_refresh(key) for key in "abc"] == [False, True, False]


async def test_body_that_its_handler_cuts(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body is not stored whose handler was told, before its end, that its client has left: it may cut it."""
    monkeypatch.setattr("app_cache.flight.SLOW_BODY_S", 0)
    await scene.handler.do(lambda: receiving(scene.handler))
    for message in (START, part(b"one")):
        await scene.handler.send(message)
    assert await scene.outcomes() == [NOT_SHARED] * 3
    scene.client.content.clear()
    scene.client.gone.set()
    assert await scene.handler.do(lambda: receiving(scene.handler)) == {"type": "http.disconnect"}
    await scene.handler.send({**END, "body": b""})
    await scene.handler.end()
    await scene.leader
    assert scene.judge.bodies == []
    assert scene.client.body == b"one"


@READ_BY_NO_CLIENT
async def test_slow_body_that_no_client_reads(monkeypatch: pytest.MonkeyPatch, *, led: bool) -> None:
    """The handler of a run that is for others alone learns of no disconnect before its answer has ended."""
    monkeypatch.setattr("app_cache.flight.SLOW_BODY_S", 0)
    handler, fill = Handler(), Fill(judge := Answers())
    await begun_for_others(fill, handler, led=led)
    await handler.do(lambda: receiving(handler))
    await handler.send(START)
    await handler.send(part(b"one"))
    assert await fill.follow(30) is NOT_SHARED
    assert handler.receive is not None
    listening = asyncio.ensure_future(handler.receive())
    await turns()
    assert not listening.done()
    await handler.send(END)
    assert await listening == {"type": "http.disconnect"}
    assert judge.bodies == [b"oneend"]
    await handler.end()


async def test_refused_answer_that_no_client_reads() -> None:
    """The handler of a run without a leader learns at once that nobody wants what is not shared."""
    handler, fill = Handler(), Fill(Answers(Share.REFUSE))
    fill.start(handler, {}, b"", None)
    await handler.do(lambda: receiving(handler))
    await handler.send(START)
    assert await handler.do(lambda: receiving(handler)) == {"type": "http.disconnect"}
    await handler.end()


async def enter(flight: Flight[Fill], hung: Fill) -> bool:
    """Return whether there is a place for one who has waited for *hung* in vain."""
    async with flight.one_of_few("key", hung, 30) as inside:
        return inside


async def test_few_at_once() -> None:
    """Few of a key are inside at once; others get a place that is left, or none in their time (F17)."""
    flight: Flight[Fill] = Flight()
    hung = Fill(Answers())

    async def enter(key: str, timeout: float) -> bool:
        async with flight.one_of_few(key, hung, timeout) as inside:
            return inside

    async with asyncio.timeout(5):
        async with AsyncExitStack() as places:
            for _ in range(FEW):
                assert await places.enter_async_context(flight.one_of_few("key", hung, 30))
            assert (await enter("key", 0), await enter("other", 0)) == (False, True)
            waiting = asyncio.create_task(enter("key", 30))
            await turns()
            assert not waiting.done()
        assert await waiting
    assert not flight._few


async def test_who_stays_too_long_takes_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is inside for too long is not counted any more, and gives back one place."""
    monkeypatch.setattr("app_cache.flight.PLACE_S", 0.01)
    flight: Flight[Fill] = Flight()
    hung = Fill(Answers())
    async with asyncio.timeout(5), AsyncExitStack() as places:
        assert await places.enter_async_context(flight.one_of_few("key", hung, 30))  # keeps what is counted
        async with AsyncExitStack() as others:
            for _ in range(2 * FEW):
                assert await others.enter_async_context(flight.one_of_few("key", hung, 30))
        monkeypatch.setattr("app_cache.flight.PLACE_S", 30)
        inside = [await places.enter_async_context(flight.one_of_few("key", hung, 0)) for _ in range(FEW + 1)]
    assert inside == [True] * FEW + [False]
    assert not flight._few


async def test_who_waits_for_a_place_begins_nothing_after_the_end() -> None:
    """Who has waited for a place while all was ended gets none; who comes later does."""
    flight: Flight[Fill] = Flight()
    hung = Fill(Answers())

    async with asyncio.timeout(5):
        async with AsyncExitStack() as places:
            for _ in range(FEW):
                await places.enter_async_context(flight.one_of_few("key", hung, 30))
            waiting = asyncio.create_task(enter(flight, hung))
            await turns()
            await land([flight], 0)
        assert not await waiting
        assert await enter(flight, hung)


async def test_few_are_not_waited_for_once_there_is_an_outcome() -> None:
    """Who waits for a place goes on as soon as the run that hung has its outcome, and leaves no place taken."""
    flight: Flight[Fill] = Flight()
    hung = Fill(Answers())

    async with asyncio.timeout(5), AsyncExitStack() as places:
        for _ in range(FEW):
            await places.enter_async_context(flight.one_of_few("key", hung, 30))
        waiting = [asyncio.create_task(enter(flight, hung)) for _ in range(3)]
        await turns()
        hung.outcome.set_result(STORED)
        assert await asyncio.gather(*waiting) == [False] * 3
        waiting = [asyncio.create_task(enter(flight, hung)) for _ in range(3)]
        await turns()
        waiting[0].cancel()
        await asyncio.wait(waiting)
    assert not flight._few


@pytest.mark.parametrize(
    ("judge", "marked"),
    [
        pytest.param(Answers(), False, id="stored"),
        pytest.param(Answers(Share.FAIL), False, id="failed"),
        pytest.param(Answers(Share.REFUSE), True, id="refused"),
        pytest.param(Answers(max_body=1), True, id="too large"),
    ],
)
async def test_what_leaves_a_marker(judge: Answers, marked: bool) -> None:
    """An answer that could not be shared leaves a marker, any other none (F18)."""
    scene = Scene(judge)
    await scene.handler.send(START)
    await scene.handler.send(END)
    await turns()
    assert scene.flight.is_unshared("key") == marked
    await scene.handler.end()
    await scene.leader


async def test_close_waits(scene: Scene) -> None:
    """Closing waits for what is under way (F29)."""
    closing = asyncio.create_task(land([scene.flight], 30))
    await turns()
    assert not closing.done()
    await scene.handler.send(START)
    await scene.handler.send(END)
    await scene.handler.end()
    await closing
    assert scene.handler.ended == "returned"
    await scene.leader


async def test_close_waits_for_what_begins_meanwhile(scene: Scene) -> None:
    """What a run begins in another flight while both are closed is waited for too (F29)."""
    values: Flight[Fill] = Flight()
    closing = asyncio.create_task(land([scene.flight, values], 30))
    await turns()
    handler, inner = Handler(), Fill(Answers())
    inner.start(handler, {}, b"", None)
    values.take_off("value", inner)
    await scene.handler.send(START)
    await scene.handler.send(END)
    await scene.handler.end()
    await scene.leader
    await turns()
    assert not closing.done()
    await handler.end()
    await closing
    assert handler.ended == "returned"


async def test_close_does_not_wait_for_ever() -> None:
    """Closing cancels what does not end in time, and does not wait for what takes no notice of that (F29)."""
    stubborn, released = Fill(Answers()), asyncio.Event()

    async def run(*_: Any) -> None:
        while not released.is_set():
            try:
                await released.wait()
            except asyncio.CancelledError:
                continue

    app: App = run
    flight: Flight[Fill] = Flight()
    stubborn.start(app, {}, b"", None)
    flight.take_off("key", stubborn)
    await turns()
    await land([flight], 0.01)
    assert stubborn.task is not None
    assert not stubborn.task.done()
    released.set()
    await stubborn.task


def test_close_in_another_loop() -> None:
    """Closing in one loop leaves alone what is under way in another (F32)."""
    flight: Flight[Fill] = Flight()
    handler = Handler()

    async def take_off() -> Fill:
        fill = Fill(Answers())
        fill.start(handler, {}, b"", None)
        flight.take_off("key", fill)
        await turns()
        return fill

    async def end(fill: Fill) -> None:
        assert fill.task is not None
        handler.end()
        await asyncio.wait({fill.task})

    with asyncio.Runner() as runner:
        fill = runner.run(take_off())
        with ThreadPoolExecutor() as threads:
            threads.submit(asyncio.run, land([flight], 0)).result()
        runner.run(end(fill))
    assert handler.ended == "returned"


async def test_nothing_is_left(caplog: pytest.LogCaptureFixture) -> None:
    """However runs end, no task, no timer and no word of an exception that nobody took is left (F29)."""
    tasks = asyncio.all_tasks()
    for share in Share:
        for ending in ("end", "fail", "cancel"):
            scene = Scene(Answers(share))
            scene.handler.send(START)
            scene.handler.send(part(b"one"))
            await turns()
            if ending == "cancel":
                scene.leader.cancel()
            elif ending == "fail":
                scene.handler.fail(KeyError("wrong"))
            else:
                scene.handler.send(END)
                scene.handler.end()
            await turns()
            await land([scene.flight], 0)
            await asyncio.gather(scene.leader, *scene.waiters, return_exceptions=True)
            timers = (scene.fill._timer, scene.fill._end_timer)
            assert not scene.unheard
            assert all(timer is None or timer.cancelled() for timer in timers)
    await turns()
    assert asyncio.all_tasks() == tasks
    assert not caplog.records

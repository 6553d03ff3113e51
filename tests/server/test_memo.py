"""What the protocol learns is bounded, whoever sends what (S18), and holds nothing alive."""

from __future__ import annotations

import gc
import logging
import tracemalloc
import weakref
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from app_cache.server.memo import MAX_BYTES, MOST_IN_VAIN, Known, Memo, is_framed
from tests.server.apps import Shop, text, wrapped
from tests.server.rig import ADDED, Unserved, get

if TYPE_CHECKING:
    from app_cache.offers import Offer

pytestmark = pytest.mark.anyio

ITEM = get("/items/7")


def counted_bytes(memo: Memo) -> int:
    """Return the bytes that are counted, all of them accounted for."""
    assert memo.bytes_held == sum(known.size for known in memo.known.values())
    return memo.bytes_held


class Learning:
    """A memo with room for about *room* requests, and an offer to learn."""

    def __init__(self, room: int) -> None:
        self.cache = wrapped()
        self.memo = Memo(self.cache, STATUS_LINE)
        self.room = room

    async def begin(self) -> None:
        """Make an offer."""
        line = Unserved(self.cache).connected()
        await line.learn(get("/"))
        (known,) = line.protocol._memo.known.values()
        self.offer: Offer = known.offer
        self.memo.max_bytes = self.room * (known.size + 30)

    def learn(self, number: int) -> bytes:
        """Learn a request, and return it."""
        head = get("/", f"X-A: {number:08}")
        self.memo.learn(head, Known(self.offer, head, closes=False, path="/"), ADDED)
        return head


@pytest.fixture
async def learning() -> Learning:
    """A memo with room for ten."""
    learning = Learning(10)
    await learning.begin()
    return learning


async def test_bounded(learning: Learning) -> None:
    """However many are learned, and however often, no more bytes are held than the bound says."""
    for number in range(1000):
        learning.learn(number)
        learning.learn(number)
    assert len(learning.memo.known) == 10
    assert counted_bytes(learning.memo) <= learning.memo.max_bytes


async def test_learned_again(learning: Learning) -> None:
    """A request that is learned again counts once."""
    for _ in range(5):
        learning.learn(1)
    assert len(learning.memo.known) == 1
    counted_bytes(learning.memo)


async def test_rare_ones_put_out_none(learning: Learning) -> None:
    """Without room, what comes once is not learned: a scan leaves all as it was."""
    first = [learning.learn(number) for number in range(10)]
    for number in range(100, 20_100):
        learning.learn(number)
    assert [*learning.memo.known] == first


async def test_used_ones_stay(learning: Learning) -> None:
    """Who sends 20,000 different requests, each often enough to be learned, puts out none that others send."""
    used = [learning.learn(number) for number in range(5)]
    for number in range(100, 20_100):
        learning.learn(number)
        learning.learn(number)
        if number % 3 == 0:
            for head in used:
                learning.memo.known[head].is_used = True
    assert set(used) <= learning.memo.known.keys()


async def test_unused_ones_go(learning: Learning) -> None:
    """What nobody sends any more gives its room to what is sent."""
    old = [learning.learn(number) for number in range(10)]
    for head in old:
        learning.memo.known[head].is_used = True
    new = [(learning.learn(number), learning.learn(number))[0] for number in range(100, 110)]
    assert [*learning.memo.known] == new


async def test_larger_than_all(learning: Learning) -> None:
    """What does not fit at all is not learned, and puts out nothing for good."""
    learning.memo.max_bytes = 10
    for _ in range(3):
        learning.learn(1)
    assert counted_bytes(learning.memo) <= 10


async def test_flood_over_the_wire(caplog: pytest.LogCaptureFixture) -> None:
    """After 7,000 different heads for one URL memory is within the bound, and useful heads are still known."""
    caplog.set_level(logging.WARNING, "uvicorn.access")
    server = Unserved(wrapped())
    server.memo.max_bytes = MAX_BYTES // 4
    line = server.connected()
    useful = [get(f"/{number}") for number in range(20)]
    for head in useful:
        await line.learn(head)
    tracemalloc.start()
    try:
        for number in range(7_000):  # about 2,500 fit
            await line.ask(get("/flood", f"X-Flood: {number}", "X-Padding: " + "x" * 200))
            if number % 100 == 0:
                for head in useful:
                    await line.ask(head)
        gc.collect()
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    before = server.answered
    for head in useful:
        await line.ask(head)
    assert server.answered == before + len(useful)
    assert counted_bytes(server.memo) <= MAX_BYTES // 4
    assert held < 1.3 * MAX_BYTES / 4, "what is counted is about what is held"


async def test_questions_in_vain() -> None:
    """Where nothing is offered it is asked a hundred times in each second, so that others pay nothing for it."""
    asked = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        asked.append("extensions" in scope)
        await text(scope, receive, send)

    server = Unserved(app)
    lines = [server.connected(), server.connected()]
    for seconds in (1, 2):
        server.state.default_headers = [*ADDED]
        for _ in range(MOST_IN_VAIN):
            for line in lines:
                await line.ask(get("/"))
        assert asked == ([True] * MOST_IN_VAIN + [False] * MOST_IN_VAIN) * seconds


async def test_hits_among_others() -> None:
    """A hit is learned in the second after the questions in vain, and asking begins anew with it."""
    shop = Shop()
    server = Unserved(shop.app)
    line = server.connected()
    for _ in range(MOST_IN_VAIN + 1):
        await line.ask(get("/plain"))
    await line.ask(ITEM)
    await line.ask(ITEM)
    assert not server.memo.known
    server.state.default_headers = [*ADDED]
    await line.learn(ITEM)
    assert server.memo._left == MOST_IN_VAIN


async def test_known_among_others() -> None:
    """A known request is asked for again after an invalidation, whatever else was asked for in vain meanwhile."""
    shop = Shop()
    server = Unserved(shop.app)
    line = server.connected()
    await line.learn(ITEM)
    for _ in range(MOST_IN_VAIN + 1):
        await line.ask(get("/plain"))
    before = server.answered
    await line.ask(ITEM)
    assert server.answered == before + 1
    await shop.container.invalidation().by_tag("another")
    await line.ask(ITEM)
    await line.ask(ITEM)
    assert server.answered == before + 2


async def test_hit_under_way() -> None:
    """A hit that was asked for before others asked in vain is learned, and given, in the same second."""
    server = Unserved(Shop().app)
    line = server.connected()
    await line.ask(ITEM)
    server.state.default_headers = [*ADDED]
    line.send(ITEM)
    for _ in range(MOST_IN_VAIN):
        server.connected().send(get("/plain"))
    assert server.memo.rests_under is server.state.default_headers
    await line.read()
    before = server.answered
    await line.ask(ITEM)
    assert server.answered == before + 1


async def test_credentials_are_not_kept() -> None:
    """Nothing of a request with credentials is kept where the answer is not shared among them (S1, S2)."""
    shop = Shop()
    server = Unserved(shop.app)
    line = server.connected()
    for field in ("Cookie: session=s3cret", "Authorization: Bearer s3cret"):
        for path in ("/items/1", "/windows", "/varies", "/plain"):
            for _ in range(4):
                await line.ask(get(path))
                await line.ask(get(path, field))
    assert not [head for head in server.memo.known if b"s3cret" in head]


async def test_a_body_is_let_go(caplog: pytest.LogCaptureFixture) -> None:
    """What the fast path remembers no longer lives no longer: the memo holds no body."""
    cache = wrapped()
    line = Unserved(cache).connected()
    await line.learn(get("/"))
    (ready,) = cache.fast._ready.values()
    gone = weakref.ref(ready)
    del ready
    cache.fast._forget(next(iter(cache.fast._ready)))
    gc.collect()
    assert gone() is None
    before = line.protocol.answered
    assert (await line.ask(get("/"))).told == "hit"
    assert line.protocol.answered == before
    assert "failed" not in caplog.text


@pytest.mark.parametrize("known", [False, True], ids=["alone", "its application refers to it"])
async def test_a_server_is_let_go(*, known: bool) -> None:
    """What was learned goes with the server that learned it."""

    async def learned() -> Any:
        app: Any = wrapped(text)
        server = Unserved(app)
        app.server = server.state if known else None
        line = server.connected()
        await line.learn(get("/"))
        await line.hang_up()
        return weakref.ref(server.memo)

    gone = await learned()
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(
    ("status", "names", "framed"),
    [
        pytest.param(200, ["Content-Length"], True, id="length"),
        pytest.param(200, [], False, id="none"),
        pytest.param(200, ["content-length", "content-length"], False, id="two lengths"),
        pytest.param(200, ["content-length", "Connection"], False, id="connection"),
        pytest.param(200, ["content-length", "transfer-encoding"], False, id="transfer-encoding"),
        pytest.param(304, [], True, id="304"),
        pytest.param(204, [], True, id="204"),
        pytest.param(204, ["connection"], False, id="204 with connection"),
    ],
)
def test_framing(status: int, names: list[str], *, framed: bool) -> None:
    """An answer is learned if its fields say where it ends, and the server would add nothing to them."""
    offer: Any = SimpleNamespace(status=status, fields=tuple((name.encode(), b"2") for name in names))
    assert is_framed(offer) is framed

"""What was made for one user reaches another only where the response or the route says so (SPEC §5.6).

Alice and Bob ask one endpoint, of any kind and with any policy, by what they have: Authorization, Cookie, an API
key, or nothing. Whatever the endpoint makes of a credential is a secret of who sent it. Besides, what Bob sees of
his own secrets is the same whether Alice was there or not.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi import Depends, FastAPI, Header, HTTPException, Request, Response
from hypothesis import example, given
from hypothesis import strategies as st

from app_cache import CacheMiddleware, MemoryBackend, cache
from app_cache.testing import FakeClock
from tests.middleware.apps import messages_of, scope_of
from tests.model.scale import trying

if TYPE_CHECKING:
    from collections.abc import Sequence

CREDENTIALS = ("authorization", "cookie", "x-api-key")
USERS = ("alice", "bob")
MADE_HERE = "made-here"
"""What the endpoint makes for a user by itself, for a Set-Cookie and a field of its own."""


@dataclass(frozen=True)
class Endpoint:
    """What is asked, in all that decides on sharing.

    Args:
        options: Those of ``@cache``.
        said: The fields of its answers.
        status: That of its answers.
        declares_key: Whether it declares the API key as a parameter.
        guarded: Whether a dependency refuses who has no credential at all, also where an answer is stored.
    """

    options: tuple[tuple[str, Any], ...] = ()
    said: tuple[tuple[str, str], ...] = ()
    status: int = 200
    declares_key: bool = True
    guarded: bool = False

    @property
    def directives(self) -> list[str]:
        """The members of Cache-Control, in lower case."""
        value = dict(self.said).get("cache-control", "")
        return [each.strip() for each in value.split(", ")]

    def shares(self, credential: str) -> bool:
        """Return whether the response or the route says that what was made for *credential* is for all."""
        if self.forbids:
            return False
        if credential in dict(self.options).get("exclude_headers", ()):
            return True
        if self.options_have("vary_by", "one for all"):
            return True
        if credential == "x-api-key":
            return not self.declares_key and not self._selects(credential)
        if self._selects(credential):
            return False
        by_rfc = {"public", "s-maxage=60", "must-revalidate"}
        return bool({*self.directives} & (by_rfc if credential == "authorization" else {"public"}))

    def shares_nothing(self) -> bool:
        """Return whether nothing is said to be for all."""
        return not any(map(self.shares, CREDENTIALS))

    def _selects(self, credential: str) -> bool:
        """Return whether the credential tells requests or responses apart."""
        vary = dict(self.said).get("vary", "").lower()
        included = credential in dict(self.options).get("include_headers", ())
        return included or credential in vary or "*" in vary or self.options_have("vary_by", "each")

    def withholds(self, line: str) -> bool:
        """Return whether the field of *line* is for one client alone, whatever is shared."""
        name = line.partition(":")[0]
        named = name == "x-secret" and name in dict(self.said).get("cache-control", "")
        return name == "set-cookie" or named

    @property
    def forbids(self) -> bool:
        """Whether the response says that it is for nobody else."""
        return bool({*self.directives} & {"private", "no-store"})

    def options_have(self, name: str, value: object) -> bool:
        """Return whether an option is *value*."""
        return dict(self.options).get(name) == value


def can_work(options: tuple[tuple[str, Any], ...]) -> bool:
    """Return whether no header is both included and excluded."""
    given = dict(options)
    return not {*given.get("exclude_headers", ())} & {*given.get("include_headers", ())}


def each(request: Any) -> str:
    """Tell all apart who have different credentials."""
    return repr([request.headers.get(name) for name in CREDENTIALS])


VARY_BY = {"each": each, "one for all": lambda _: "all"}


@dataclass(frozen=True)
class Ask:
    """One request of a user, or time that passes."""

    user: str
    method: str
    has: tuple[str, ...]
    more: tuple[tuple[str, str], ...]
    after: float


def application(endpoint: Endpoint) -> FastAPI:
    """Return an application that has *endpoint*, whose answers show what they were made from."""
    app = FastAPI()
    options: dict[str, Any] = {name: value for name, value in endpoint.options if name != "vary_by"}
    if (vary_by := dict(endpoint.options).get("vary_by")) is not None:
        options["vary_by"] = VARY_BY[vary_by]

    def admitted(request: Request) -> None:
        if endpoint.guarded and not any(name in request.headers for name in CREDENTIALS):
            raise HTTPException(401)

    def answer(request: Request) -> Response:
        shown = [request.headers[name] for name in CREDENTIALS if name in request.headers]
        response = Response(" ".join(["secrets:", *shown]), endpoint.status, media_type="text/plain")
        for name, value in endpoint.said:
            response.headers[name] = value.replace(MADE_HERE, "+".join(shown) or "nobody")
        return response

    if endpoint.declares_key:

        def declared(request: Request, x_api_key: str = Header("")) -> Response:
            return answer(request)

        chosen: Any = declared
    else:
        chosen = answer
    decorated = cache(timeout=60, guarded=endpoint.guarded, **options)(chosen)
    app.api_route("/", methods=["GET", "HEAD"], dependencies=[Depends(admitted)])(decorated)
    app.post("/", dependencies=[Depends(lambda: None)])(answer)
    return app


class Site:
    """A cache before an endpoint, and how it answered."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.clock = FakeClock()
        self.cache = CacheMiddleware(application(endpoint), MemoryBackend(clock=self.clock), clock=self.clock)
        self.ways: Counter[str] = Counter()
        fast = self.cache.fast
        answer = fast.answer

        def counted(*args: Any) -> Any:
            messages = answer(*args)
            self.ways["again"] += messages is not None
            return messages

        fast.answer = counted  # type: ignore[assignment, method-assign]

    async def ask(self, ask: Ask) -> list[dict[str, Any]]:
        """Return the messages that answer *ask*."""
        self.clock.advance(ask.after)
        own = [(name, f"{ask.user}-{name}") for name in ask.has]
        headers = [(name.encode(), value.encode()) for name, value in [("host", "test"), *own, *ask.more]]
        scope = scope_of("/", method=ask.method, headers=headers)
        messages = await messages_of(self.cache, scope)
        for _ in range(3):
            await asyncio.sleep(0)
        self.ways[getattr(scope.get("state", {}).get("cache"), "outcome", "none")] += 1
        return messages


def text_of(messages: Sequence[dict[str, Any]]) -> str:
    """Return all that a client sees, fields and body, without what tells the time."""
    start, *parts = messages
    lines = [
        f"{name.decode()}: {value.decode()}"
        for name, value in start["headers"]
        if name.lower() not in (b"age", b"cache-status", b"date")
    ]
    body = b"".join(part.get("body", b"") for part in parts).decode()
    return "\n".join([str(start["status"]), *lines, body])


def secrets_in(text: str, user: str) -> set[str]:
    """Return the secrets of *user* in *text*."""
    return {name for name in CREDENTIALS if f"{user}-{name}" in text}


def some_of(most: int, each: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[tuple[tuple[str, Any], ...]]:
    """Return names with their values, *most* at most."""
    names = st.lists(st.sampled_from(sorted(each)), unique=True, max_size=most)
    return names.flatmap(lambda chosen: st.tuples(*(st.tuples(st.just(name), each[name]) for name in chosen)))


OPTIONS = some_of(
    2,
    {
        "exclude_headers": st.sampled_from([("cookie",), ("authorization",), ("set-cookie",), CREDENTIALS]),
        "include_headers": st.sampled_from([("x-api-key",), CREDENTIALS[:2], ("x-none",)]),
        "vary_by": st.sampled_from(["each", "one for all"]),
        "stale_while_revalidate": st.just(60),
        "statuses": st.just((404, 500)),
        "cache_control": st.just(False),
        "client_max_age": st.just(5),
    },
).filter(can_work)
DIRECTIVES = st.sampled_from(
    [
        *("public", "private", "no-store", "no-cache", "max-age=60", "s-maxage=60", "must-revalidate"),
        *('private="x-secret"', 'no-cache="set-cookie, x-secret"'),
    ]
)
SAID = some_of(
    2,
    {
        "vary": st.sampled_from(["Cookie", "authorization, X-API-Key", "*", "x-none", "X-Api-Key"]),
        "cache-control": st.lists(DIRECTIVES, min_size=1, max_size=2).map(", ".join),
        "set-cookie": st.just(f"session={MADE_HERE}"),
        "x-secret": st.just(MADE_HERE),
        "etag": st.just('"fixed"'),
    },
)
ENDPOINTS = st.builds(
    Endpoint,
    options=OPTIONS,
    said=SAID,
    status=st.sampled_from([200] * 6 + [203, 404, 500]),
    declares_key=st.booleans(),
    guarded=st.sampled_from([False, False, False, True]),
)
MORE = [
    *(("cache-control", asked) for asked in ("no-cache", "no-store", "max-stale=30", "only-if-cached")),
    *(("if-none-match", '"fixed"'), ("if-none-match", "*"), ("range", "bytes=3-")),
    ("if-modified-since", "Thu, 01 Jan 2099 00:00:00 GMT"),
]
HAS = st.sampled_from([(), *[(name,) for name in CREDENTIALS], CREDENTIALS[:2], CREDENTIALS])
odd_asks = st.builds(
    Ask,
    user=st.sampled_from(USERS),
    method=st.sampled_from(["GET", "GET", "HEAD", "POST"]),
    has=HAS,
    more=st.sampled_from([(), *[(each,) for each in MORE]]),
    after=st.sampled_from([0.0, 0.0, 1.0, 61.0]),
)
plain_asks = st.builds(Ask, st.sampled_from(USERS), st.just("GET"), HAS, st.just(()), st.just(0.0))


@st.composite
def sequences(draw: st.DrawFn) -> list[Ask]:
    """Return a few requests, again and again: at first one who has something, then another."""
    first = draw(plain_asks)
    other = Ask(
        "bob" if first.user == "alice" else "alice", "GET", draw(st.sampled_from([first.has, ()])), (), 0.0
    )
    few = [first, other, *draw(st.lists(odd_asks | plain_asks, max_size=2))]
    return [first, first, other, *draw(st.lists(st.sampled_from(few), max_size=8))]


ALICE, BOB = (Ask(user, "GET", ("x-api-key",), (), 0.0) for user in USERS)
NOBODY = Ask("bob", "GET", (), (), 0.0)


async def hold_secrets(endpoint: Endpoint, asked: list[Ask]) -> Counter[str]:
    """Ask in this order, hold each answer against whose it is, and return how there were answers."""
    site = Site(endpoint)
    for ask in asked:
        text = text_of(await site.ask(ask))
        for other in USERS:
            if other != ask.user:
                leaked = {name for name in secrets_in(text, other) if not endpoint.shares(name)}
                leaked |= {line for line in text.splitlines() if f"{other}-" in line and endpoint.withholds(line)}
                assert not leaked, (leaked, ask, text)
        if endpoint.guarded and ask.method != "POST" and not ask.has:
            assert text.startswith(("401", "504")), "not let through, and answered"
    return site.ways


def test_no_secret_reaches_another() -> None:
    """A secret of one user is in no answer to another, by either way of answering (S1-S3, S6-S8)."""
    ways: Counter[str] = Counter()

    @trying(220)
    @given(ENDPOINTS, sequences())
    @example(Endpoint(declares_key=False, guarded=True), [ALICE, ALICE, NOBODY, NOBODY])
    @example(Endpoint(said=(("cache-control", "private"),), declares_key=False), [ALICE, BOB])
    @example(Endpoint(said=(("vary", "*"),), declares_key=False), [ALICE, BOB])
    @example(Endpoint(said=(("set-cookie", MADE_HERE),), declares_key=False), [ALICE, BOB])
    @example(
        Endpoint(said=(("cache-control", 'private="x-secret"'), ("x-secret", MADE_HERE)), declares_key=False),
        [ALICE, BOB],
    )
    def compare(endpoint: Endpoint, asked: list[Ask]) -> None:
        ways.update(asyncio.run(hold_secrets(endpoint, asked)))

    compare()
    assert ways["again"] > 10, ways
    assert ways["hit"] - ways["again"] > 10, ways


def test_bob_does_not_notice_alice() -> None:
    """Where nothing is said to be shared, Bob's answers to his credentials are the same with Alice and without."""
    ways: Counter[str] = Counter()

    @trying(100)
    @given(ENDPOINTS.filter(Endpoint.shares_nothing), sequences())
    def compare(endpoint: Endpoint, asked: list[Ask]) -> None:
        with_alice, without = Site(endpoint), Site(endpoint)
        changed = False
        for ask in asked:
            seen = asyncio.run(with_alice.ask(ask))
            if ask.user == "alice":
                changed = changed or ask.method == "POST"
                without.clock.advance(ask.after)
                continue
            alone = asyncio.run(without.ask(ask))
            # What Alice has changed is fetched anew, and so has another time for If-Modified-Since.
            refetched = changed and {seen[0]["status"], alone[0]["status"]} == {200, 304}
            assert not ask.has or refetched or text_of(seen) == text_of(alone), ask
        ways.update(with_alice.ways)

    compare()
    assert ways["hit"] > 20, ways

"""Nobody gets what was made for somebody else (SPEC §5.6)."""

from __future__ import annotations

import asyncio
from collections import UserDict
from itertools import count
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI, Request, Response
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.authentication import (
    AuthCredentials,
    AuthenticationBackend,
    BaseUser,
    SimpleUser,
    UnauthenticatedUser,
)
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.sessions import SessionMiddleware

from app_cache import CacheMiddleware, CachePolicy, MemoryBackend, cache
from app_cache.keys import prefix
from app_cache.sessions import SessionWatch
from tests.clients import all_blocked
from tests.middleware.apps import client_of, put_cache, told
from tests.stored import FourMethods, written

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import HTTPConnection

    from app_cache.testing import FakeClock

pytestmark = pytest.mark.anyio

WHO = ("authorization", "cookie", "x-user")


def reflecting(fields: dict[str, str] | None = None, status: int = 200, **options: Any) -> FastAPI:
    """Return an application that answers with who asked, with *fields*, under a policy of *options*."""
    app = FastAPI()

    @app.get("/")
    @cache(timeout=60, **options)
    async def answer(request: Request) -> Response:
        who = [request.headers.get(name, "-") for name in WHO]
        return Response(" ".join(who), status, headers=fields)

    put_cache(app)
    return app


def says(cache_control: str) -> dict[str, str]:
    """Return the field with which an answer says *cache_control*."""
    return {"cache-control": cache_control}


def because(detail: str) -> str:
    """Return what Cache-Status says of an answer that is not stored."""
    return f"fwd=uri-miss; detail={detail}"


SETS_COOKIE = {"set-cookie": "a=b"}


@pytest.mark.parametrize(
    ("fields", "options", "asked", "second"),
    [
        pytest.param({}, {}, "authorization", because("authorization"), id="authorization"),
        pytest.param(says("public"), {}, "authorization", "hit", id="authorization, public"),
        pytest.param(says("s-maxage=9"), {}, "authorization", "hit", id="authorization, s-maxage"),
        pytest.param(says("must-revalidate"), {}, "authorization", "hit", id="authorization, must-revalidate"),
        pytest.param(
            says("max-age=9"), {}, "authorization", because("authorization"), id="authorization, max-age"
        ),
        pytest.param(
            {}, {"exclude_headers": ["Authorization"]}, "authorization", "hit", id="authorization excluded"
        ),
        pytest.param(
            {}, {"include_headers": ["Authorization"]}, "authorization", "hit", id="authorization in the key"
        ),
        pytest.param({}, {"vary_by": lambda _: "all"}, "authorization", "hit", id="authorization by vary_by"),
        pytest.param({}, {}, "cookie", because("cookie"), id="cookie"),
        pytest.param(says("public"), {}, "cookie", "hit", id="cookie, public"),
        pytest.param(says("s-maxage=9"), {}, "cookie", because("cookie"), id="cookie, s-maxage"),
        pytest.param(says('x="public"'), {}, "cookie", because("cookie"), id="cookie, public in quotes"),
        pytest.param({}, {"exclude_headers": ["cookie"]}, "cookie", "hit", id="cookie excluded"),
        pytest.param({}, {"include_headers": ["Cookie"]}, "cookie", "hit", id="cookie in the key"),
        pytest.param({}, {}, "x-user", "hit", id="a field that nobody declared"),
        pytest.param({"vary": "x-user"}, {}, "x-user", "hit", id="variant"),
        pytest.param(SETS_COOKIE, {}, "x-user", because("set-cookie"), id="set-cookie"),
        pytest.param(SETS_COOKIE | says("public"), {}, "x-user", because("set-cookie"), id="set-cookie, public"),
        pytest.param(SETS_COOKIE, {"exclude_headers": ["Set-Cookie"]}, "x-user", "hit", id="set-cookie dropped"),
        pytest.param(says("private"), {}, "x-user", because("private"), id="private"),
        pytest.param(says("no-store"), {}, "x-user", because("no-store"), id="no-store"),
        pytest.param({"vary": "*"}, {}, "x-user", because("vary-star"), id="vary by everything"),
    ],
)
async def test_sharing(fields: dict[str, str], options: dict[str, Any], asked: str, second: str) -> None:
    """An answer to a request with credentials, or that sets a cookie, is shared only where somebody says so."""
    async with client_of(reflecting(fields, **options)) as client:
        await client.get("/", headers={asked: "alice"})
        client.cookies.clear()
        assert told(await client.get("/", headers={asked: "alice"})) == second


class ByHeader(AuthenticationBackend):
    """Takes the word of a proxy for who asks."""

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, SimpleUser] | None:
        """Return the user that the proxy names."""
        name = conn.headers.get("x-user")
        return None if name is None else (AuthCredentials(), SimpleUser(name))


@pytest.mark.parametrize(
    ("fields", "options", "sent", "second"),
    [
        pytest.param({}, {}, None, because("authorization"), id="by default"),
        pytest.param(says("public"), {}, None, "hit", id="public"),
        pytest.param({}, {"include_headers": ["Authorization"]}, "authorization", "hit", id="by what is sent"),
        pytest.param({}, {"include_headers": ["Cookie"]}, "cookie", "hit", id="by a cookie"),
        pytest.param(
            {}, {"include_headers": ["Authorization"]}, None, because("authorization"), id="by another field"
        ),
        pytest.param({}, {"include_headers": ["Cookie"]}, None, because("authorization"), id="not by the cookie"),
        pytest.param(
            {}, {"exclude_headers": ["Cookie"]}, "cookie", because("authorization"), id="a cookie of others"
        ),
        pytest.param({}, {"exclude_headers": ["Authorization"]}, "authorization", "hit", id="a token of others"),
        pytest.param({}, {"exclude_headers": ["Authorization"]}, None, because("authorization"), id="no token"),
        pytest.param({}, {"exclude_headers": ["Cookie", "Authorization"]}, None, "hit", id="for everybody"),
        pytest.param({}, {"vary_by": lambda request: "all"}, None, "hit", id="by vary_by"),
    ],
)
async def test_a_user_that_middleware_knows(
    fields: dict[str, str], options: dict[str, Any], sent: str | None, second: str
) -> None:
    """What is made for a user whom middleware knows, by whatever field, is shared only if that is told apart."""
    app = reflecting(fields, **options)
    app.add_middleware(AuthenticationMiddleware, backend=ByHeader())
    headers = {} if sent is None else {sent: "the same"}
    async with client_of(app) as client:
        asked = [await client.get("/", headers={"x-user": name, **headers}) for name in ("alice", "bob", "bob")]
    assert [told(answer) for answer in asked[1:]] == [second] * 2
    assert (asked[1].text == asked[0].text) == (second == "hit")


async def test_a_user_and_what_is_stored_for_nobody() -> None:
    """What is stored for who is nobody is for those who are, and for no user, when it is given again too."""
    app = reflecting()
    app.add_middleware(AuthenticationMiddleware, backend=ByHeader())
    async with client_of(app) as client:
        nobody = [told(await client.get("/")) for _ in range(4)]
        alice = await client.get("/", headers={"x-user": "alice"})
        after = told(await client.get("/"))
    assert nobody == ["fwd=uri-miss; stored", "hit", "hit", "hit"]
    assert (alice.text, told(alice), after) == ("- - alice", "fwd=bypass; detail=authorization", "hit")


class Unsayable:
    """A user of whom nothing can be told."""

    def __bool__(self) -> bool:
        raise RuntimeError("nobody knows")


@pytest.mark.parametrize("place", ["scope", "state"])
@pytest.mark.parametrize(
    ("user", "expected"),
    [
        pytest.param("alice", "fwd=bypass; detail=authorization", id="text"),
        pytest.param(BaseUser(), "fwd=bypass; detail=authorization", id="a class that does not say"),
        pytest.param(SimpleUser("alice"), "fwd=bypass; detail=authorization", id="somebody"),
        pytest.param(UnauthenticatedUser(), "hit", id="nobody"),
        pytest.param(None, "hit", id="none"),
        pytest.param(Unsayable(), "fwd=bypass; detail=authorization", id="a class that cannot say"),
    ],
)
async def test_a_user_in_the_scope(user: Any, expected: str, place: str) -> None:
    """``request.user`` or ``request.state.user`` that does not say that it is nobody is somebody."""
    app = reflecting()

    @app.middleware("http")
    async def know(request: Request, call_next: Any) -> Any:
        if request.headers.get("x-user"):
            (request.scope if place == "scope" else request.scope.setdefault("state", {}))["user"] = user
        return await call_next(request)

    async with client_of(app) as client:
        nobody = [told(await client.get("/")) for _ in range(3)]
        known = [told(await client.get("/", headers={"x-user": "alice"})) for _ in range(2)]
    assert nobody[1:] == ["hit", "hit"]
    assert known == [expected] * 2


@pytest.mark.parametrize("user", ["", False, {}], ids=["no name", "false", "nothing"])
async def test_nobody_in_the_state(user: Any) -> None:
    """An empty ``request.state.user`` is nobody."""
    app = reflecting()

    @app.middleware("http")
    async def know(request: Request, call_next: Any) -> Any:
        request.state.user = user
        return await call_next(request)

    async with client_of(app) as client:
        assert [told(await client.get("/")) for _ in range(3)] == ["fwd=uri-miss; stored", "hit", "hit"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param(lambda session: None, "hit", id="no change"),
        pytest.param(lambda session: session.get("id"), "hit", id="read"),
        pytest.param(lambda session: session.setdefault("id", "a"), because("set-cookie"), id="begun"),
        pytest.param(lambda session: session.update(id="a"), because("set-cookie"), id="updated"),
    ],
)
async def test_an_answer_that_begins_a_session(change: Callable[[Any], object], expected: str) -> None:
    """An answer with which a session begins is not stored, though its cookie is set by middleware further out."""
    app = FastAPI()

    @app.get("/")
    @cache(timeout=60)
    async def answer(request: Request) -> None:
        change(request.session)

    put_cache(app)
    app.add_middleware(SessionMiddleware, secret_key="secret")
    answers = []
    for _ in range(2):
        async with client_of(app) as client:
            answers.append(await client.get("/"))
    assert told(answers[1]) == expected
    assert ("set-cookie" in answers[1].headers) == (expected != "hit")


@pytest.mark.parametrize("excluded", [(), ("Set-Cookie",)], ids=["not stored", "stored without the cookie"])
async def test_a_session_that_begins_with_a_validation(excluded: tuple[str, ...], clock: FakeClock) -> None:
    """A 304 with which a session begins updates nothing unless the cookie is excluded, and is not offered on."""
    app = FastAPI()

    @app.get("/")
    @cache(timeout=60, client_max_age=5, exclude_headers=excluded)
    async def answer(request: Request) -> Response:
        validated = "if-none-match" in request.headers
        if validated:
            request.session["id"] = "a"
        return Response(status_code=304 if validated else 200, headers={"etag": '"a"'})

    put_cache(app, clock)
    app.add_middleware(SessionMiddleware, secret_key="secret")
    async with client_of(app) as client:
        await client.get("/")
        clock.advance(61)
        begun = await client.get("/")
    stored = "stored" if excluded else because("set-cookie").partition("; ")[2]
    assert told(begun) == f"fwd=stale; fwd-status=304; {stored}"
    assert ("set-cookie" in begun.headers, "cache-control" in begun.headers) == (True, False)


@pytest.mark.parametrize(
    ("options", "cookie", "expected"),
    [
        pytest.param({}, None, because("cookie"), id="no cookie"),
        pytest.param({"include_headers": ["Cookie"]}, None, because("cookie"), id="in the key"),
        pytest.param({"include_headers": ["Cookie"]}, "seen=1", because("cookie"), id="another cookie in the key"),
        pytest.param(
            {"vary_by": lambda request: request.session["id"]}, None, "fwd=uri-miss; stored", id="told apart"
        ),
        pytest.param({"exclude_headers": ["Cookie"]}, None, "hit", id="does not matter"),
    ],
)
async def test_a_session_that_middleware_begins(options: Any, cookie: str | None, expected: str) -> None:
    """What was answered with a session that middleware began is nobody else's, unless the route says so."""
    app = FastAPI()

    @app.get("/")
    @cache(timeout=60, **options)
    async def answer(request: Request) -> str:
        return str(request.session["id"])

    put_cache(app)
    numbers = iter("abcdef")

    @app.middleware("http")
    async def begin(request: Request, call_next: Any) -> Any:
        request.session.setdefault("id", next(numbers))
        return await call_next(request)

    app.add_middleware(SessionMiddleware, secret_key="secret")
    answers = []
    for _ in range(4):
        async with client_of(app, headers={"cookie": cookie} if cookie else {}) as client:
            answers.append(await client.get("/"))
    assert {told(each) for each in answers[1:]} == {expected}
    assert [each.json() for each in answers] == list("aaaa" if expected == "hit" else "abcd")


@pytest.mark.parametrize("reads", [True, False], ids=["read", "not read"])
async def test_a_session_that_is_read(reads: bool) -> None:
    """Where the endpoint reads the session, hits announce Cookie in Vary, as its middleware does for a miss."""
    app = FastAPI()

    @app.get("/")
    @cache(timeout=60, client_max_age=60)
    async def answer(request: Request) -> str:
        return str(request.session.get("id") if reads else None)

    put_cache(app)
    app.add_middleware(SessionMiddleware, secret_key="secret")
    async with client_of(app) as client:
        answers = [await client.get("/") for _ in range(3)]
    assert [told(each) for each in answers] == ["fwd=uri-miss; stored", "hit", "hit"]
    assert [each.headers.get("vary", "").lower() for each in answers] == ["cookie" if reads else ""] * 3


def let_in(app: FastAPI) -> None:
    """Give *app* sessions, and an endpoint that begins one for a user of a tenant."""

    @app.post("/{tenant}/{user}")
    async def log_in(tenant: str, user: str, request: Request) -> None:
        request.session.update(tenant=tenant, user=user)

    app.add_middleware(SessionMiddleware, secret_key="secret")


async def test_a_session_that_is_told_apart_and_read() -> None:
    """Whom `vary_by` does not tell apart shares what was made from a session, though its cookie is another."""
    app = FastAPI()

    @app.get("/")
    @cache(timeout=60, vary_by=lambda request: request.session["tenant"])
    async def answer(request: Request) -> str:
        return str(request.session["tenant"])

    put_cache(app)
    let_in(app)
    seen = []
    for who in ("a/1", "a/2", "b/3"):
        async with client_of(app) as client:
            await client.post(f"/{who}")
            answer_to = await client.get("/")
            seen.append((answer_to.json(), told(answer_to), "cookie" in answer_to.headers["vary"].lower()))
    assert seen == [
        ("a", "fwd=uri-miss; stored", True),
        ("a", "hit", True),
        ("b", "fwd=uri-miss; stored", True),
    ]


def of_tenants() -> tuple[FastAPI, list[str]]:
    """Return an application whose answers are made from sessions, one for each tenant, and its runs."""
    app, runs = FastAPI(), list[str]()

    @app.get("/")
    @cache(timeout=60, vary_by=lambda request: request.session["tenant"])
    async def answer(request: Request) -> Response:
        runs.append(request.session["tenant"])
        await asyncio.sleep(0)
        is_validated = "if-none-match" in request.headers
        return Response("text" * 100, 304 if is_validated else 200, headers={"etag": '"a"'})

    let_in(app)
    return app, runs


async def logged_in(app: FastAPI, *users: str) -> list[str]:
    """Return the cookies of *users* of one tenant."""
    cookies = []
    for user in users:
        async with client_of(app) as client:
            cookies.append((await client.post(f"/a/{user}")).headers["set-cookie"].partition(";")[0])
    return cookies


async def test_sessions_that_wait_for_one_run() -> None:
    """Whom `vary_by` does not tell apart waits for one run, also if nothing can be stored of it."""
    app, runs = of_tenants()
    put_cache(app, backend=MemoryBackend(max_entry_bytes=100))
    cookies = await logged_in(app, "1", "2", "3", "4")
    async with client_of(app) as client:
        answers = await asyncio.gather(*(client.get("/", headers={"cookie": cookie}) for cookie in cookies))
    assert ({each.text for each in answers}, runs) == ({"text" * 100}, ["a"])


async def test_sessions_of_a_validated_answer(clock: FakeClock) -> None:
    """A validated answer that was made from a session is still one for all whom `vary_by` does not tell apart."""
    app, runs = of_tenants()
    put_cache(app, clock)
    one, two = await logged_in(app, "1", "2")
    async with client_of(app) as client:
        await client.get("/", headers={"cookie": one})
        clock.advance(61)
        validated = await client.get("/", headers={"cookie": one})
        other = await client.get("/", headers={"cookie": two})
    assert (told(validated), told(other)) == ("fwd=stale; fwd-status=304; stored", "hit")
    assert ["cookie" in each.headers["vary"].lower() for each in (validated, other)] == [True, True]
    assert len(runs) == 2


async def test_a_session_that_a_validation_does_not_read(clock: FakeClock) -> None:
    """What was made from a session is announced as such after a validation, though that did not look at it."""
    app = FastAPI()

    @app.get("/")
    @cache(timeout=60)
    async def answer(request: Request) -> Response:
        if "if-none-match" in request.headers:
            return Response(status_code=304, headers={"etag": '"a"'})
        return Response(str(request.session.get("id")), headers={"etag": '"a"'})

    put_cache(app, clock)
    app.add_middleware(SessionMiddleware, secret_key="secret")
    async with client_of(app) as client:
        await client.get("/")
        clock.advance(61)
        answers = [await client.get("/") for _ in range(3)]
    assert [told(each) for each in answers] == ["fwd=stale; fwd-status=304; stored", "hit", "hit"]
    assert [each.headers.get("vary") for each in answers] == ["cookie"] * 3


async def test_a_session_by_the_rfc_alone() -> None:
    """By the RFC alone, what was made from a session is for who has the cookie: its middleware announces that."""
    app = FastAPI()

    @app.get("/")
    async def answer(request: Request, response: Response) -> str:
        response.headers["cache-control"] = "max-age=60"
        return str(request.session.get("user"))

    put_cache(app, default_policy=CachePolicy.http())
    let_in(app)
    cookies = await logged_in(app, "alice", "bob")
    async with client_of(app) as client:
        answers = [await client.get("/", headers={"cookie": cookie}) for cookie in cookies * 2]
    assert [each.json() for each in answers] == ["alice", "bob"] * 2
    assert [told(each) == "hit" for each in answers] == [False, False, True, True]


async def test_a_session_whose_request_fails() -> None:
    """Nor does one whose own request waits get a failure that was made from another's session."""
    app, gate = FastAPI(), asyncio.Event()

    @app.get("/")
    async def answer(request: Request) -> Response:
        await gate.wait()
        return Response(f"failed, {request.session.get('user')}", 503)

    put_cache(app, default_policy=CachePolicy.http())
    let_in(app)
    cookies = await logged_in(app, "alice", "bob")
    async with client_of(app) as client:
        asked = [asyncio.create_task(client.get("/", headers={"cookie": cookie})) for cookie in cookies]
        await all_blocked()
        gate.set()
        assert [(await each).text for each in asked] == ["failed, alice", "failed, bob"]


class Guarded:
    """Says that it was read by something that raises."""

    @property
    def accessed(self) -> bool:
        raise RuntimeError("ask in another way")


@pytest.mark.parametrize(
    ("session", "read"),
    [
        pytest.param({}, False, id="a dictionary"),
        pytest.param(SimpleNamespace(accessed=True), True, id="says so"),
        pytest.param(SimpleNamespace(accessed=False), False, id="says no"),
        pytest.param(SimpleNamespace(accessed=lambda: True), False, id="a method, which is not asked"),
        pytest.param(Guarded(), False, id="raises"),
    ],
)
def test_whether_a_session_was_read(session: Any, read: bool) -> None:
    """A session was read if it says so in the way of Starlette's."""
    assert SessionWatch(session).is_read() is read


async def test_a_session_by_a_token() -> None:
    """A session that a token in the key tells apart is shared with who has that token, and with nobody else."""
    app = FastAPI()

    @app.get("/")
    @cache(timeout=60, include_headers=["Authorization"])
    async def answer(request: Request) -> str:
        return str(request.session["who"])

    put_cache(app)
    app.add_middleware(ByToken)
    async with client_of(app) as client:
        answers = [await client.get("/", headers={"authorization": who}) for who in "abab"]
    assert [(each.json(), told(each)) for each in answers[2:]] == [("a", "hit"), ("b", "hit")]


class ByToken:
    """Loads a session by a token, without a cookie."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        who = dict(scope.get("headers", ())).get(b"authorization", b"")
        await self.app({**scope, "session": {"who": who.decode()}}, receive, send)


async def test_stored_for_nobody_and_a_session_that_begins() -> None:
    """For whom middleware begins a session, he does not get what was stored without one."""
    app = FastAPI()

    @app.get("/")
    @cache(timeout=60)
    async def answer(request: Request) -> str:
        return str(request.session.get("id"))

    put_cache(app)

    @app.middleware("http")
    async def begin(request: Request, call_next: Any) -> Any:
        if "x-visitor" in request.headers:
            request.session["id"] = request.headers["x-visitor"]
        return await call_next(request)

    app.add_middleware(SessionMiddleware, secret_key="secret")
    async with client_of(app) as client:
        nobody = [await client.get("/") for _ in range(3)][-1]
    async with client_of(app) as client:
        alice = await client.get("/", headers={"x-visitor": "alice"})
    assert (told(nobody), nobody.json()) == ("hit", "None")
    assert (told(alice), alice.json()) == ("fwd=bypass; detail=cookie", "alice")


class Incomparable:
    """Cannot be compared, as an array cannot."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise ValueError("the truth value is ambiguous")


class NotLoaded:
    """Stands in for a session until that is loaded, as that of starsessions does."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("the session is not loaded")


class OfItsOwn:
    """A session that is no mapping."""


class Lazy(UserDict[str, Any]):
    """A session that notes that it was read, and says that it was modified."""

    modified = False
    read = 0

    def __getitem__(self, name: str) -> Any:
        self.read += 1
        return super().__getitem__(name)

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        self.modified = True


class Unread(UserDict[str, Any]):
    """A session whose values cannot be read yet."""

    def __iter__(self) -> Any:
        raise RuntimeError("the session is not loaded")


class Unsized(UserDict[str, Any]):
    """A session of which nobody can tell whether there is anything in it."""

    def __len__(self) -> int:
        raise RuntimeError("the session is not loaded")


@pytest.mark.parametrize("make", [UserDict, NotLoaded, OfItsOwn, Lazy, Unread, Unsized])
async def test_a_session_of_any_kind(make: Callable[[], Any]) -> None:
    """What begins a session is not stored, whatever holds that; what loads one finds it in the request."""
    app, names = FastAPI(), count()

    @app.get("/")
    @cache(timeout=60)
    async def answer(request: Request) -> str:
        request.scope["load"]()
        if not isinstance(request.session, OfItsOwn):
            request.session["id"] = f"visitor {next(names)}"
            return str(request.session["id"])
        return f"visitor {next(names)}"

    put_cache(app)

    class Sessions:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            def load() -> None:
                if make is NotLoaded:
                    scope["session"] = {}

            scope["session"], scope["load"] = make(), load
            await self.app(scope, receive, send)

    app.add_middleware(Sessions)
    async with client_of(app) as client:
        answers = [await client.get("/") for _ in range(3)]
    assert [(each.status_code, each.json()) for each in answers] == [(200, f"visitor {n}") for n in range(3)]
    assert not any(told(each) == "hit" for each in answers)


async def test_a_session_that_is_not_loaded_and_a_remembered_hit() -> None:
    """A request whose session cannot be looked at is passed by, though others are given hits again and again."""
    app = FastAPI()
    app.get("/")(cache(timeout=60, exclude_headers=["Cookie"])(lambda: "text"))
    put_cache(app)

    @app.middleware("http")
    async def load(request: Request, call_next: Any) -> Any:
        if "x-lazy" in request.headers:
            request.scope["session"] = NotLoaded()
        return await call_next(request)

    async with client_of(app) as client:
        plain = [told(await client.get("/")) for _ in range(3)]
        lazy = told(await client.get("/", headers={"x-lazy": "1"}))
    assert (plain[1:], lazy) == (["hit", "hit"], "fwd=bypass; detail=cookie")


async def test_a_session_that_is_not_read() -> None:
    """A session that tells of its changes itself is not read by the cache, and what leaves it alone is stored."""
    app, sessions = FastAPI(), list[Lazy]()
    app.get("/")(cache(timeout=60, exclude_headers=["Cookie"])(lambda: "text"))
    put_cache(app)

    @app.middleware("http")
    async def load(request: Request, call_next: Any) -> Any:
        session = Lazy()
        session.data["who"] = "alice"
        sessions.append(session)
        request.scope["session"] = session
        return await call_next(request)

    async with client_of(app) as client:
        answers = [told(await client.get("/", headers={"cookie": "id=1"})) for _ in range(3)]
    assert answers == ["fwd=uri-miss; stored", "hit", "hit"]
    assert [each.read for each in sessions] == [0, 0, 0]


async def test_a_session_that_cannot_be_looked_at_and_a_post() -> None:
    """The answer to a POST with a session that cannot be looked at is not for later GETs."""
    app = FastAPI()

    @app.api_route("/doc", methods=["GET", "POST"])
    async def doc(request: Request) -> Response:
        fields = {"cache-control": "max-age=60", "content-location": "/doc"}
        return Response(f"for {request.session}", headers=fields)

    put_cache(app, default_policy=CachePolicy.http(store_set_cookie=False))

    @app.middleware("http")
    async def begin(request: Request, call_next: Any) -> Any:
        request.scope["session"] = OfItsOwn() if request.method == "POST" else None
        return await call_next(request)

    async with client_of(app) as client:
        await client.post("/doc")
        answer = await client.get("/doc")
    assert (answer.text, told(answer)) == ("for None", "fwd=uri-miss; stored")


async def test_a_session_that_cannot_be_compared() -> None:
    """What cannot be compared with what a session held counts as changed, and costs no request."""
    app = FastAPI()

    @app.get("/")
    @cache(timeout=60)
    async def answer(request: Request) -> str:
        request.scope["session"]["frame"] = Incomparable()
        return "text"

    put_cache(app)

    @app.middleware("http")
    async def keep(request: Request, call_next: Any) -> Any:
        request.scope["session"] = {"frame": Incomparable()}
        return await call_next(request)

    async with client_of(app) as client:
        answer_of = [await client.get("/") for _ in range(2)]
    assert [(each.text, told(each)) for each in answer_of] == [('"text"', because("set-cookie"))] * 2


@pytest.mark.parametrize("who", ["authorization", "cookie"])
async def test_stored_for_nobody_served_to_nobody(who: str) -> None:
    """Who comes with credentials does not get what was stored for those without, nor they what he got."""
    async with client_of(reflecting()) as client:
        nobody = await client.get("/")
        alice = await client.get("/", headers={who: "alice"})
        again = await client.get("/")
    assert (told(alice), "alice" in alice.text) == (f"fwd=bypass; detail={who}", True)
    assert (told(again), again.text) == ("hit", nobody.text)


async def test_set_cookie_is_dropped_from_hits() -> None:
    """Where the policy excludes Set-Cookie, the first client gets it, and no hit has it."""
    async with client_of(reflecting({"set-cookie": "a=b"}, exclude_headers=["Set-Cookie"])) as client:
        first = await client.get("/")
        client.cookies.clear()
        second = await client.get("/")
    assert ("set-cookie" in first.headers, "set-cookie" in second.headers, told(second)) == (True, False, "hit")


@pytest.mark.parametrize("name", ["private", "no-cache"])
async def test_withheld_fields(name: str) -> None:
    """A field that ``private`` or ``no-cache`` names is not stored, and the rest is."""
    fields = {
        "cache-control": f'{name}="set-cookie, X-Secret"',
        "set-cookie": "a=b",
        "x-secret": "1",
        "x-rest": "1",
    }
    async with client_of(reflecting(fields)) as client:
        first = await client.get("/")
        client.cookies.clear()
        second = await client.get("/")
    assert {"set-cookie", "x-secret", "x-rest"} <= {*first.headers}
    assert {"set-cookie", "x-secret", "x-rest"} & {*second.headers} == {"x-rest"}
    assert told(second) == "hit"


async def test_variants() -> None:
    """Each variant is stored beside the others, and normal forms of one field are one variant."""
    app, runs = FastAPI(), []

    @app.get("/")
    @cache(timeout=60)
    def answer(request: Request) -> Response:
        runs.append(1)
        return Response(request.headers.get("accept-language", "-"), headers={"vary": "Accept-Language, X-Other"})

    put_cache(app)
    async with client_of(app) as client:
        seen = []
        for language in ("en, de", "fr", "en,de", "fr", "en ,  de"):
            got = await client.get("/", headers={"accept-language": language})
            seen.append((got.text, told(got)))
    assert [text for text, _ in seen] == ["en, de", "fr", "en, de", "fr", "en, de"]
    assert [status for _, status in seen] == ["fwd=uri-miss; stored", "fwd=vary-miss; stored", *["hit"] * 3]
    assert len(runs) == 2


async def test_variants_are_bounded() -> None:
    """At most 32 variants of one URL are kept, the least used let go (S19)."""
    app, backend = FastAPI(), MemoryBackend()
    app.get("/")(cache(timeout=60)(lambda: Response("a", headers={"vary": "accept-language"})))
    put_cache(app, backend=backend)
    async with client_of(app) as client:
        for number in range(200):
            await client.get("/", headers={"accept-language": f"x-{number}"})
    assert await backend.size() <= 34


async def test_include_headers() -> None:
    """A header in the key tells requests apart, whatever its case, and is announced in Vary once."""
    app = reflecting({"vary": "X-User, Origin"}, include_headers=["X-USER", "X-Tenant"])
    async with client_of(app) as client:
        for who, expected in (
            ("a", "fwd=uri-miss; stored"),
            ("b", "fwd=uri-miss; stored"),
            ("a", "hit"),
            ("b", "hit"),
        ):
            answer = await client.get("/", headers={"x-user": who})
            assert (answer.text, told(answer)) == (f"- - {who}", expected)
            assert answer.headers.get_list("vary") == ["X-User, Origin", "x-tenant"]


async def test_exclude_headers_does_not_override_vary() -> None:
    """A Vary that the handler sent holds whatever the policy excludes, save for the credentials."""
    app = reflecting({"vary": "X-User, Cookie"}, exclude_headers=["X-User", "Cookie"])
    async with client_of(app) as client:
        await client.get("/", headers={"x-user": "alice", "cookie": "a"})
        other_cookie = await client.get("/", headers={"x-user": "alice", "cookie": "b"})
        other_user = await client.get("/", headers={"x-user": "bob", "cookie": "a"})
    assert (told(other_cookie), told(other_user)) == ("hit", "fwd=vary-miss; stored")


async def test_no_key_is_told() -> None:
    """No field of any answer shows a key, a tag, or what another client asked for (S30)."""
    app, backend = FastAPI(), FourMethods()
    app.get("/")(cache(timeout=60, tags=["a-tag"])(lambda: "text"))
    container = put_cache(app, backend=backend)
    async with client_of(app) as client:
        answers = [
            await client.get("/?secret=1", headers=asked)
            for asked in ({}, {}, {"if-none-match": "*"}, {"cookie": "a"}, {"cache-control": "no-cache"})
        ]
    await written(container.store())
    keys = [key.removeprefix(prefix("")) for key in backend.values if key.count(":") == 1]
    assert [answer.status_code for answer in answers] == [200, 200, 304, 200, 200]
    said = repr([answer.headers.raw for answer in answers])
    assert len(keys) == 1
    assert [word for word in (*keys, keys[0][:16], "a-tag", "secret", "key=") if word in said] == []


async def test_hosts_and_schemes_are_apart() -> None:
    """What was stored for one host or scheme is not served for another (S5)."""
    app = reflecting()
    async with client_of(app) as client:
        for _ in range(3):  # the third is given again without an exchange
            await client.get("/")
        for url, expected in (
            ("http://other/", "fwd=uri-miss; stored"),
            ("https://test/", "fwd=uri-miss; stored"),
        ):
            assert told(await client.get(url)) == expected


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param("/?a=1&a=2", "/?a=2&a=1", id="values of one name in another order"),
        pytest.param("/?a=1", "/?a=1&a=1", id="repeated"),
        pytest.param("/?a=1%26b=2", "/?a=1&b=2", id="encoded border"),
        pytest.param("/?a", "/?a=", id="without a value"),
        pytest.param("/?a=1;b=2", "/?a=1&b=2", id="semicolon"),
        pytest.param("/", "/?", id="nothing in particular"),
    ],
)
async def test_different_queries(first: str, second: str) -> None:
    """Queries that an application may tell apart have keys of their own, but for a question mark alone (S15)."""
    async with client_of(reflecting()) as client:
        for _ in range(3):  # the third is given again without an exchange
            await client.get(first)
        assert (told(await client.get(second)) == "hit") is (second == "/?")


async def test_query_in_another_order() -> None:
    """Parameters in another order are the same request."""
    async with client_of(reflecting()) as client:
        await client.get("/?b=1&a=2")
        assert told(await client.get("/?a=2&b=1")) == "hit"


@pytest.mark.parametrize(
    ("policy", "fields", "asked", "second"),
    [
        pytest.param(CachePolicy.http(), {}, {}, "fwd=stale; stored", id="no freshness"),
        pytest.param(CachePolicy.http(), {"cache-control": "max-age=9"}, {}, "hit", id="max-age"),
        pytest.param(CachePolicy.http(), {"cache-control": "max-age=9"}, {"cookie": "a"}, "hit", id="cookie"),
        pytest.param(
            CachePolicy.http(),
            {"cache-control": "max-age=9"},
            {"authorization": "a"},
            "fwd=uri-miss; detail=authorization",
            id="authorization",
        ),
        pytest.param(
            CachePolicy.http(), {"cache-control": "max-age=9", "set-cookie": "a=b"}, {}, "hit", id="set-cookie"
        ),
        pytest.param(
            CachePolicy.http(store_set_cookie=False),
            {"cache-control": "max-age=9", "set-cookie": "a=b"},
            {},
            "fwd=uri-miss; detail=set-cookie",
            id="set-cookie not stored",
        ),
    ],
)
async def test_http_policy(
    policy: CachePolicy, fields: dict[str, str], asked: dict[str, str], second: str
) -> None:
    """Under the policy of the RFC alone, the response decides, and of credentials only Authorization counts."""

    async def bare(scope: Any, receive: Any, send: Any) -> None:
        headers = [(name.encode(), value.encode()) for name, value in fields.items()]
        await send(
            {"type": "http.response.start", "status": 200, "headers": [*headers, (b"content-length", b"1")]}
        )
        await send({"type": "http.response.body", "body": b"a"})

    app = CacheMiddleware(bare, MemoryBackend(), default_policy=policy)
    async with client_of(app) as client:
        for expected in (None, second):
            client.cookies.clear()
            answer = await client.get("/", headers=asked)
            assert expected is None or told(answer) == expected


async def test_validation_is_not_for_others(clock: FakeClock) -> None:
    """Who may not have a stored answer does not have his request validated against it."""
    app, seen = FastAPI(), []

    @app.get("/")
    @cache(timeout=60)
    def answer(request: Request) -> Response:
        seen.append((request.headers.get("if-none-match"), request.headers.get("if-modified-since")))
        if "if-modified-since" in request.headers:
            return Response(status_code=304)
        return Response(
            request.headers.get("cookie", "nobody"), headers={"last-modified": "Thu, 01 Jan 1970 00:00:00 GMT"}
        )

    put_cache(app, clock)
    async with client_of(app) as client:
        await client.get("/")
        clock.advance(61)
        alice = await client.get("/", headers={"cookie": "alice"})
    assert (alice.text, seen[-1]) == ("alice", (None, None))


@pytest.mark.parametrize(
    ("fields", "detail"),
    [
        pytest.param({"set-cookie": "a=b"}, "set-cookie", id="set-cookie"),
        pytest.param({"cache-control": "private"}, "private", id="private"),
        pytest.param({"cache-control": "no-store"}, "no-store", id="no-store"),
        pytest.param({"vary": "*"}, "vary-star", id="vary by everything"),
    ],
)
async def test_a_304_that_is_not_for_others(clock: FakeClock, fields: dict[str, str], detail: str) -> None:
    """A 304 whose fields must not be shared validates for its client alone."""
    app = FastAPI()

    @app.get("/")
    @cache(timeout=60)
    def answer(request: Request) -> Response:
        if "if-none-match" in request.headers:
            return Response(status_code=304, headers={"etag": '"a"', **fields})
        return Response("text", headers={"etag": '"a"'})

    put_cache(app, clock)
    async with client_of(app) as client:
        await client.get("/")
        clock.advance(61)
        first = await client.get("/")
        client.cookies.clear()
        second = await client.get("/", headers={"cache-control": "max-stale"})
    assert (first.text, first.headers.items() >= fields.items()) == ("text", True)
    assert told(first) == f"fwd=stale; fwd-status=304; detail={detail}"
    assert not fields.keys() & second.headers.keys()


@pytest.mark.parametrize("credential", ["authorization", "cookie"])
async def test_a_304_to_somebody(clock: FakeClock, credential: str) -> None:
    """A 304 to a credential that does not say itself that it is shared changes nothing for others."""
    app = FastAPI()

    @app.get("/")
    @cache(timeout=60)
    def answer(request: Request) -> Response:
        if "if-none-match" in request.headers:
            return Response(status_code=304, headers={"etag": '"a"', "x-user": request.headers[credential]})
        return Response("text", headers={"etag": '"a"', **says("public, max-age=60")})

    put_cache(app, clock)
    async with client_of(app) as client:
        await client.get("/")
        clock.advance(61)
        first = await client.get("/", headers={credential: "alice"})
        second = await client.get("/", headers=says("max-stale"))
    assert (first.text, first.headers["x-user"]) == ("text", "alice")
    assert (second.text, "x-user" in second.headers) == ("text", False)


@pytest.mark.parametrize("credential", ["authorization", "cookie"])
async def test_an_answer_to_somebody(clock: FakeClock, credential: str) -> None:
    """What a credential is answered takes nothing from what is stored for others."""
    app, fails = FastAPI(), False

    @app.get("/")
    @cache(timeout=60, stale_if_error=60)
    def answer(request: Request) -> Response:
        if fails:
            return Response("busy", 503)
        return Response("text", headers=says("private" if credential in request.headers else "public, max-age=60"))

    put_cache(app, clock)
    async with client_of(app) as client:
        await client.get("/")
        clock.advance(61)
        own = await client.get("/", headers={credential: "alice"})
        fails = True
        assert (told(own), (await client.get("/")).text) == ("fwd=stale; detail=private", "text")


async def test_unshareable_answers_have_one_reader() -> None:
    """Of many at once whose answer turns out to be private, each gets his own, and the next do not queue (F18)."""
    app, runs, gate = FastAPI(), [], asyncio.Event()

    @app.get("/")
    @cache(timeout=60)
    async def answer(request: Request) -> Response:
        runs.append(request.headers["x-user"])
        await gate.wait()
        return Response(request.headers["x-user"], headers={"cache-control": "private"})

    put_cache(app)
    async with client_of(app) as client:
        asked = [asyncio.create_task(client.get("/", headers={"x-user": str(n)})) for n in range(50)]
        await all_blocked()
        assert len(runs) == 1
        gate.set()
        assert [(await each).text for each in asked] == [str(n) for n in range(50)]
        gate.clear()
        asked = [asyncio.create_task(client.get("/", headers={"x-user": str(n)})) for n in range(50)]
        await all_blocked()
        assert len(runs) == 100
        gate.set()
        assert [(await each).text for each in asked] == [str(n) for n in range(50)]


CREDENTIALS = st.fixed_dictionaries(
    {}, optional={name: st.sampled_from(["alice", "bob"]) for name in ("authorization", "cookie", "x-user")}
)
ANSWERED = st.fixed_dictionaries(
    {},
    optional={
        "vary": st.sampled_from(["x-user", "cookie", "Authorization, X-User", "*", "accept"]),
        "cache-control": st.lists(
            st.sampled_from(
                [
                    "public",
                    "private",
                    "no-store",
                    "no-cache",
                    "max-age=60",
                    "s-maxage=60",
                    "must-revalidate",
                    "max-age=0",
                ]
            ),
            max_size=3,
        ).map(", ".join),
        "set-cookie": st.just("session=1"),
        "etag": st.sampled_from(['"a"', 'W/"b"']),
    },
)
ASKED = st.sampled_from(["", "no-cache", "max-age=0", "max-stale", "only-if-cached", "no-store"])


def may_share(credentials: dict[str, str], said: dict[str, str]) -> bool:
    """Return whether RFC 9111 §3.5 and SPEC §5.6 let an answer to *credentials* be given to others at all."""
    directives = {each.strip().partition("=")[0] for each in said.get("cache-control", "").split(",")}
    if "set-cookie" in said or directives & {"private", "no-store"} or said.get("vary") == "*":
        return False
    if "cookie" in credentials and "public" not in directives:
        return False
    return "authorization" not in credentials or bool(directives & {"public", "s-maxage", "must-revalidate"})


@settings(max_examples=100)
@given(asked=st.lists(st.tuples(CREDENTIALS, ANSWERED, ASKED, st.booleans()), min_size=2, max_size=8))
def test_two_users_never_see_each_other(asked: list[tuple[dict[str, str], dict[str, str], str, bool]]) -> None:
    """Whatever is asked and said in random order, and at once, an answer reaches another only where it may."""
    made: list[tuple[dict[str, str], dict[str, str]]] = []
    app = FastAPI()

    @app.get("/")
    @cache(timeout=60, stale_while_revalidate=60)
    async def answer(request: Request) -> Response:
        await asyncio.sleep(0)
        credentials = {name: value for name in WHO if (value := request.headers.get(name)) is not None}
        said = ANSWERS_BY_NUMBER[int(request.headers["x-number"])]
        made.append((credentials, said))
        return Response(str(len(made) - 1), headers=said)

    ANSWERS_BY_NUMBER = [said for _, said, _, _ in asked]  # noqa: N806
    put_cache(app)

    def check(credentials: dict[str, str], text: str) -> None:
        for_whom, said = made[int(text)]
        if for_whom == credentials:
            return
        assert may_share(for_whom, said), (for_whom, said, credentials)
        assert may_share(credentials, said), (for_whom, said, credentials)
        for name in (each.strip().lower() for each in said.get("vary", "").split(",")):
            assert name not in WHO or for_whom.get(name) == credentials.get(name)

    async def ask_all() -> None:
        waiting: list[tuple[dict[str, str], asyncio.Task[Any]]] = []
        for number, (credentials, _, directive, at_once) in enumerate(asked):
            headers = {
                **credentials,
                "x-number": str(number),
                **({"cache-control": directive} if directive else {}),
            }
            waiting.append((credentials, asyncio.create_task(_get(app, headers))))
            if not at_once:
                await waiting[-1][1]
        for credentials, task in waiting:
            response = await task
            if response.status_code != 504:
                check(credentials, response.text)

    asyncio.run(ask_all())


async def _get(app: Any, headers: dict[str, str]) -> Any:
    async with client_of(app) as client:
        return await client.get("/", headers=headers)

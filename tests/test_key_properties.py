"""A stored answer is for a request just if a slow reading of SPEC §4.1 says that it is the same request.

Whole requests go through a cache whose answers are numbered. What is stored for one is given to the other, by an
exchange and again without one, or it is not, and the other has an answer of its own.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from app_cache import CacheMiddleware, CachePolicy, MemoryBackend
from app_cache.policy import POLICY_ATTRIBUTE
from tests.middleware.apps import messages_of
from tests.model.scale import trying

if TYPE_CHECKING:
    from collections.abc import Collection

    from starlette.requests import Request

pytestmark = pytest.mark.anyio

METHODS = frozenset({"GET", "POST", "QUERY"})
Line = tuple[bytes, bytes]


@dataclass(frozen=True)
class Asked:
    """A request as a server hands it on."""

    method: str = "GET"
    scheme: str = "http"
    hosts: tuple[bytes, ...] = (b"h",)
    server: tuple[str, int] | None = ("h", 80)
    root_path: str = ""
    path: bytes = b"/"
    query: bytes = b""
    body: bytes = b""
    lines: tuple[Line, ...] = ()

    @property
    def scope(self) -> dict[str, Any]:
        """The scope that the server makes of it."""
        return {
            "type": "http",
            "method": self.method,
            "scheme": self.scheme,
            "root_path": self.root_path,
            "path": unquote(self.path.decode("latin-1")),
            "raw_path": self.path,
            "query_string": self.query,
            "headers": [*((b"host", host) for host in self.hosts), *self.lines],
            "server": self.server,
            "client": ("c", 1),
        }

    def field(self, *names: bytes) -> list[str | None]:
        """Return the combined values of fields, None for those that are absent."""
        found = [[value.strip(b" \t") for each, value in self.lines if each == name] for name in names]
        return [", ".join(value.decode("latin-1") for value in values) if values else None for values in found]


def is_same_request(one: Asked, other: Asked, policy: CachePolicy) -> bool:
    """Return whether both are one request by SPEC §4.1, read line by line and without care for time."""
    if ("GET" if one.method == "HEAD" else one.method) != ("GET" if other.method == "HEAD" else other.method):
        return False
    if (one.scheme, one.root_path, one.path) != (other.scheme, other.root_path, other.path):
        return False
    if host(one) != host(other) or not is_same_query(one.query, other.query, policy):
        return False
    with_content = one.method in ("POST", "QUERY")
    if with_content and one.body != other.body:
        return False
    of_content = (b"content-type", b"content-encoding", b"content-language")
    if with_content and one.field(*of_content) != other.field(*of_content):
        return False
    selected = [name.encode() for name in policy.include_headers]
    if one.field(*selected) != other.field(*selected):
        return False
    return policy.vary_by is None or one.field(b"x-by") == other.field(b"x-by")


def host(asked: Asked) -> str:
    """Return the host of a request, or the server's name where it has none."""
    if asked.hosts:
        return ", ".join(each.decode("latin-1") for each in asked.hosts).lower()
    return f"{asked.server[0]}:{asked.server[1]}" if asked.server else ""


def is_same_query(one: bytes, other: bytes, policy: CachePolicy) -> bool:
    """Return whether each name that joins the key has the same parameters in the same order."""
    ours, theirs = parameters(one, policy), parameters(other, policy)
    if policy.http_only:
        return ours == theirs
    names = {name for name, _ in ours + theirs}
    return all(
        [text for of, text in ours if of == name] == [text for of, text in theirs if of == name] for name in names
    )


def parameters(query: bytes, policy: CachePolicy) -> list[tuple[str, bytes]]:
    """Return the parameters that join the key, each with the name that an application sees."""
    named = [(name_of(piece), piece) for piece in query.split(b"&")] if query else []
    if policy.include_query is not None:
        return [(name, piece) for name, piece in named if name in policy.include_query]
    return [(name, piece) for name, piece in named if name not in policy.exclude_query]


def name_of(piece: bytes) -> str:
    """Return the name of a parameter, as Starlette has it."""
    name, _, _ = piece.decode("latin-1").partition("=")
    return parse_qsl(f"{name}=v", keep_blank_values=True)[0][0] if name else ""


POLICIES = [
    CachePolicy(methods=METHODS),
    CachePolicy(methods=METHODS, include_headers=("X-A", "X-B")),
    CachePolicy(methods=METHODS, include_query=frozenset({"a", "b c"})),
    CachePolicy(methods=METHODS, exclude_query=frozenset({"a", "b c"})),
    CachePolicy(methods=METHODS, vary_by=lambda asked: asked.headers.get("x-by", "-")),
]

bodies = st.sampled_from([b"", b"a", b"a=1", b"\xff", "\xff".encode(), b"a=1|"])
pieces = st.sampled_from(
    [
        *(b"a=1", b"a=2", b"a", b"a=", b"%61=1", b"A=1", b"", b"=1"),
        *(b"b+c=1", b"b%20c=1", b"d=1", b"d=1%26a=1", b"d=1;a=1"),
        *(b"%ff=1", b"%fe=2", b"\xff=1"),
    ]
)
lines = st.tuples(
    st.sampled_from(
        [b"x-a", b"x-b", b"x-by", b"x-none", b"content-type", b"content-encoding", b"content-language", b"cookie2"]
    ),
    st.sampled_from([b"", b"1", b"2", b"1, 2", b" 1", b"x-a"]),
)
PARTS: dict[str, st.SearchStrategy[Any]] = {
    "method": st.sampled_from(sorted(METHODS)),
    "scheme": st.sampled_from(["http", "https"]),
    "hosts": st.sampled_from([(b"h",), (b"H",), (b"h:80",), (b"g",), (b"h", b"g"), (b"h, g",), (b"",), ()]),
    "server": st.sampled_from([("h", 80), ("g", 80), None]),
    "root_path": st.sampled_from(["", "/r", "/r/s"]),
    "path": st.sampled_from(
        [b"/", b"/a", b"/a/", b"//a", b"/a%2Fb", b"/a/b", b"/a%3Fa=1", b"/%C3%A4", b"/a|", b"/A"]
    ),
    "query": st.lists(pieces, max_size=4).map(b"&".join),
    "body": bodies,
    "lines": st.lists(lines, max_size=3).map(tuple),
}


@st.composite
def alike(draw: st.DrawFn, methods: Collection[str] = METHODS) -> tuple[Asked, Asked]:
    """Return a request by one of *methods*, and one that differs from it in little or in nothing."""
    parts = PARTS | {"method": st.sampled_from(sorted(methods))}
    one = draw(st.builds(Asked, **parts))
    changed = draw(st.lists(st.sampled_from([*parts, "order", "head"]), max_size=2))
    other = one
    for name in changed:
        if name == "order":
            shuffled = draw(st.permutations(one.query.split(b"&")))
            other = replace(other, query=b"&".join(shuffled))
        elif name == "head":
            other = replace(other, method="HEAD" if one.method == "GET" else other.method)
        else:
            other = replace(other, **{name: draw(parts[name])})
    return one, other


class Echo:
    """Two caches over one memory, in namespaces *n* and *m*; an answer is the number of its run."""

    def __init__(self, policy: CachePolicy) -> None:
        self.policy = policy
        self.runs = 0
        self.memory = MemoryBackend()

        async def answer(request: Request) -> Response:
            await request.body()
            self.runs += 1
            return Response(str(self.runs), headers={"cache-control": "max-age=60"})

        if not policy.http_only:
            setattr(answer, POLICY_ATTRIBUTE, policy)
        app = Starlette(routes=[Route("/{path:path}", answer, methods=[*METHODS])])
        default = policy if policy.http_only else None
        self.n, self.m = (
            CacheMiddleware(app, self.memory, default_policy=default, namespace=namespace) for namespace in "nm"
        )

    async def compare(self, one: Asked, other: Asked, *, same_namespace: bool = True) -> bool:
        """Ask for both, hold the answers against the model, and return whether they are one request."""
        await self.memory.close()
        self.runs = 0
        theirs = self.n if same_namespace else self.m
        same = same_namespace and is_same_request(one, other, self.policy)
        stored, is_head = ("hit", b"1"), other.method == "HEAD"
        assert [await ask(self.n, one) for _ in range(3)] == [("uri-miss", b"1"), stored, stored]
        answers = [await ask(theirs, other) for _ in range(3)]
        if same:
            assert answers == [("hit", b"" if is_head else b"1")] * 3
        elif is_head:
            assert [outcome for outcome, _ in answers] == ["uri-miss"] * 3
        else:
            assert answers == [("uri-miss", b"2"), ("hit", b"2"), ("hit", b"2")]
        assert [await ask(self.n, one) for _ in range(2)] == [stored, stored]
        return same


async def ask(cache: CacheMiddleware, asked: Asked) -> tuple[str, bytes]:
    """Return what *cache* says of *asked*, and the body of the answer."""
    scope = asked.scope
    messages = await messages_of(cache, scope, {"type": "http.request", "body": asked.body, "more_body": False})
    assert messages[0]["status"] == 200
    return scope["state"]["cache"].outcome, b"".join(message.get("body", b"") for message in messages[1:])


def test_one_answer_for_one_request() -> None:
    """What is stored for one request is given to another just if they are the same, by either way of answering."""
    seen: Counter[bool] = Counter()
    echoes = [Echo(policy) for policy in POLICIES]

    @trying(120)
    @given(alike(), st.sampled_from(echoes), st.integers(0, 9))
    def compare(pair: tuple[Asked, Asked], echo: Echo, namespace: int) -> None:
        seen[asyncio.run(echo.compare(*pair, same_namespace=namespace > 0))] += 1

    compare()
    assert min(seen[True], seen[False]) > 12, seen


def test_one_answer_by_the_rfc() -> None:
    """By the RFC alone a query in another order is another request, and all else is as it is otherwise."""
    seen: Counter[bool] = Counter()
    echo = Echo(CachePolicy.http())

    @trying(40)
    @given(alike(["GET"]))
    def compare(pair: tuple[Asked, Asked]) -> None:
        seen[asyncio.run(echo.compare(*pair))] += 1

    compare()
    assert min(seen[True], seen[False]) > 5, seen


def recipe(asked: Asked) -> str:
    """Return what the recipe tells requests apart by that the keys of SPEC §4.1 take the place of."""
    parameters = "&".join(sorted(asked.query.decode().split("&")))
    return f"{asked.method}:{unquote(asked.path.decode())}?{parameters}|{asked.body.decode()}"


def post(body: bytes, *lines: Line) -> Asked:
    """Return a POST of *body*."""
    return Asked("POST", body=body, lines=lines)


JSON, TEXT = (b"content-type", b"application/json"), (b"content-type", b"text/plain")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(Asked(query=b"a=1&a=2"), Asked(query=b"a=2&a=1"), id="values of one name in another order"),
        pytest.param(
            Asked("POST", query=b"a=1|", body=b""), Asked("POST", query=b"a=1", body=b"|"), id="border of the body"
        ),
        pytest.param(Asked(path=b"/a%2Fb"), Asked(path=b"/a/b"), id="encoded slash"),
        pytest.param(Asked(), Asked(hosts=(b"g",)), id="host"),
        pytest.param(Asked(), Asked(hosts=(b"h", b"g")), id="two hosts"),
        pytest.param(Asked(hosts=(b"h", b"g")), Asked(), id="two hosts first"),
        pytest.param(Asked(), Asked(scheme="https"), id="scheme"),
        pytest.param(Asked(root_path="/r"), Asked(root_path="/s"), id="mount"),
        pytest.param(post(b"1", JSON), post(b"1", TEXT), id="content type"),
        pytest.param(post(b"1", (b"content-encoding", b"gzip")), post(b"1"), id="content coding"),
    ],
)
async def test_collisions_of_the_recipe(one: Asked, other: Asked) -> None:
    """What a recipe that joins parts by borders takes for one request is two here (SPEC §4.1)."""
    assert recipe(one) == recipe(other)
    assert not await Echo(POLICIES[0]).compare(one, other)


@pytest.mark.parametrize(
    ("policy", "one", "other"),
    [
        pytest.param(POLICIES[1], (b"x-a", b"1"), (b"x-a", b"2"), id="selected header"),
        pytest.param(POLICIES[1], (b"x-a", b"1"), (b"x-b", b"1"), id="one selected header for another"),
        pytest.param(POLICIES[1], (b"x-a", b""), (b"x-none", b""), id="selected header empty and absent"),
        pytest.param(POLICIES[4], (b"x-by", b"1"), (b"x-by", b"2"), id="vary_by"),
    ],
)
async def test_what_a_policy_adds(policy: CachePolicy, one: Line, other: Line) -> None:
    """What a policy lets join the key tells requests apart."""
    assert not await Echo(policy).compare(Asked(lines=(one,)), Asked(lines=(other,)))


async def test_a_body_that_is_no_text() -> None:
    """A body on which such a recipe fails has a key as any other."""
    with pytest.raises(UnicodeDecodeError):
        recipe(post(b"\xff"))
    assert not await Echo(POLICIES[0]).compare(post(b"\xff"), post(b"\xfe"))

"""Small random applications, and clients that ask them: what the differential test draws.

What an application answers is a function of the request, of the moment, and of how often each of its resources was
written: two that got the same writes answer the same, however many of the other requests a cache kept from one.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from tests.conformance.oracle import SAFE, Answer, Asked, Request, lines_of, split_list
from tests.rules.samples import http_date

if TYPE_CHECKING:
    from collections.abc import Mapping

    from app_cache.testing import FakeClock

START = 1_500_000_000.0
WHOLE, PARTS, SHORT, BREAKS, RAISES = "whole", "parts", "short", "breaks off", "raises"


@dataclass(frozen=True)
class Version:
    """One state of a resource.

    In its lines ``{v}`` is its number, ``{now-9}`` a date, and ``{changed}`` that of its begin.
    """

    status: int = 200
    lines: tuple[str, ...] = ()
    lines_of_304: tuple[str, ...] | None = None
    """None: those of the 200."""
    delivery: str = WHOLE
    delay: int = 0
    """Seconds that its answer takes."""


@dataclass(frozen=True)
class Resource:
    """What is at one URL."""

    versions: tuple[Version, ...] = (Version(),)
    period: int = 0
    """Seconds after which the next version comes; 0: only when it is written."""
    conditions: bool = True
    """Whether it answers 304."""
    ranges: bool = False
    depends_on: tuple[str, ...] = ()
    """Fields of the request that its content shows."""
    written: Version = field(default_factory=Version)
    """Answers what is not safe."""


World = dict[str, Resource]
NOTHING = Resource((Version(404),))


@dataclass(frozen=True)
class Step:
    """A request, *wait* seconds after the last one; ``{etag}`` and ``{modified}`` are what the client last got."""

    wait: float
    method: str
    target: str
    lines: tuple[str, ...] = ()
    body: bytes = b""


class Origin:
    """An ASGI application that answers as *world* says; *log* is what it was asked and answered."""

    def __init__(self, world: World, clock: FakeClock, *, takes_time: bool) -> None:
        self.world = world
        self.clock = clock
        self.takes_time = takes_time
        self.log: list[Asked] = []
        self.moment = clock()
        self.writes: Counter[str] = Counter()
        self._written_at: dict[str, float] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request."""
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body", False):
                break
        query = scope["query_string"].decode("latin-1")
        fields = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"])
        request = Request(scope["method"], scope["path"] + (f"?{query}" if query else ""), fields, body)
        answer, version = self._answer(request)
        asked_at = self.clock()
        if self.takes_time:
            self.clock.advance(version.delay)
        raised = version.delivery == RAISES
        ended = answer if not raised else Answer(0, (), b"", raised=True)
        self.log.append(Asked(request, ended, asked_at, self.clock()))
        if raised:
            raise RuntimeError("the application raises")
        await self._send(answer, version.delivery, send)

    @staticmethod
    async def _send(answer: Answer, delivery: str, send: Any) -> None:
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.fields]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        middle = len(answer.body) // 2
        if delivery in (PARTS, BREAKS) and answer.body:
            await send({"type": "http.response.body", "body": answer.body[:middle], "more_body": True})
            if delivery == BREAKS:
                raise RuntimeError("the application breaks off")
            await send({"type": "http.response.body", "body": answer.body[middle:], "more_body": False})
        else:
            await send({"type": "http.response.body", "body": answer.body, "more_body": False})

    def _answer(self, request: Request) -> tuple[Answer, Version]:
        resource = self.world.get(request.target, NOTHING)
        number = int((self.moment - START) // resource.period) if resource.period else 0
        begun = START + number * resource.period
        number += self.writes[request.target]
        begun = max(begun, self._written_at.get(request.target, START))
        version = resource.versions[number % len(resource.versions)]
        if request.method not in SAFE:
            version = resource.written
            if 200 <= version.status < 400 and version.delivery != RAISES:
                self.writes[request.target] += 1
                self._written_at[request.target] = self.moment
        fields = self._fields(version.lines, number, begun)
        body = f"{request.method if request.method not in SAFE else ''}{request.target} v{number} 0123456789"
        body += "".join(f" {name}={lines_of(request.fields, name)}" for name in resource.depends_on)
        content = body.encode("latin-1") + request.body
        answer = self._as_asked(request, resource, version, Answer(version.status, fields, content))
        if answer.status == 304 and version.lines_of_304 is not None:
            answer = Answer(304, self._fields(version.lines_of_304, number, begun), b"")
        return self._delivered(request, answer, version), version

    def _fields(self, lines: tuple[str, ...], number: int, begun: float) -> tuple[tuple[str, str], ...]:
        def filled(match: re.Match[str]) -> str:
            return http_date(self.moment + float(match[1] or 0))

        texts = (line.replace("{v}", str(number)).replace("{changed}", http_date(begun)) for line in lines)
        pairs = (re.sub(r"\{now([+-]\d+)?\}", filled, text).partition(":") for text in texts)
        return tuple((name, value.strip()) for name, _, value in pairs)

    @staticmethod
    def _as_asked(request: Request, resource: Resource, version: Version, answer: Answer) -> Answer:
        """Return *answer*, a 304 or a part of it, where the resource gives that and the request asks for it."""
        if answer.status != 200 or request.method not in ("GET", "HEAD"):
            return answer
        tags, dates = lines_of(answer.fields, "etag"), lines_of(answer.fields, "last-modified")
        wanted = [tag for line in lines_of(request.fields, "if-none-match") for tag in split_list(line)]
        if resource.conditions:
            known = bool(tags) and tags[0].removeprefix("W/") in [tag.removeprefix("W/") for tag in wanted]
            undated = not lines_of(request.fields, "if-none-match")
            same_date = undated and bool(dates) and dates == lines_of(request.fields, "if-modified-since")
            if known or "*" in wanted or same_date:
                kept = tuple(pair for pair in answer.fields if not pair[0].lower().startswith("content-t"))
                return Answer(304, kept, b"")
        if resource.ranges and request.method == "GET" and lines_of(request.fields, "range") == ["bytes=1-2"]:
            total = len(answer.body)
            return Answer(206, (*answer.fields, ("Content-Range", f"bytes 1-2/{total}")), answer.body[1:3])
        return answer

    @staticmethod
    def _delivered(request: Request, answer: Answer, version: Version) -> Answer:
        """Return *answer* with its length where it is sent in one, and without content where there is none."""
        fields = answer.fields
        if answer.status in (204, 304):
            return Answer(answer.status, fields, b"")
        length = len(answer.body) + (3 if version.delivery == SHORT else 0)
        if version.delivery in (WHOLE, SHORT):
            fields = (*fields, ("Content-Length", str(length)))
        head = request.method == "HEAD"
        breaks = version.delivery == BREAKS and not head and bool(answer.body)
        body = b"" if head else answer.body
        return Answer(answer.status, fields, body, raised=breaks)


async def ask(app: Any, request: Request) -> Answer:
    """Return what *app* answers."""
    path, _, query = request.target.partition("?")
    scope = {
        "type": "http",
        "method": request.method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode("latin-1"),
        "query_string": query.encode("latin-1"),
        "root_path": "",
        "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in request.fields],
        "client": ("127.0.0.1", 50_000),
        "server": ("test", 80),
        "http_version": "1.1",
    }
    content = [{"type": "http.request", "body": request.body, "more_body": False}]
    sent: list[Mapping[str, Any]] = []

    async def receive() -> Mapping[str, Any]:
        return content.pop() if content else {"type": "http.disconnect"}

    async def send(message: Mapping[str, Any]) -> None:
        sent.append(message)

    raised = False
    try:
        await app(scope, receive, send)
    except RuntimeError:
        raised = True
    if not sent:
        return Answer(0, (), b"", raised=raised)
    start, *bodies = sent
    fields = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in start["headers"])
    return Answer(start["status"], fields, b"".join(each.get("body", b"") for each in bodies), raised=raised)


# What is drawn.

METHODS = (*["GET"] * 20, *["HEAD"] * 3, "POST", "POST", "PUT", "QUERY", "QUERY", "FROB", "OPTIONS")
TARGETS = ("/a", "/a?q=1", "/b")
FRESH = (
    *["Cache-Control: max-age=60"] * 6,
    *["Cache-Control: max-age=10", "Cache-Control: s-maxage=30", "Expires: {now+40}", "Last-Modified: {now-1000}"],
    *["CDN-Cache-Control: max-age=20", "Cache-Control: max-age=0", "X-B: 1"],
)
"""The first line of an answer, so that most are stored."""
DIRECTIVES = (
    *["no-cache", "public", "must-revalidate", "stale-while-revalidate=20", "stale-if-error=30"] * 4,
    *["max-age=10", "s-maxage=30", "max-age=0", "no-store", "private", "proxy-revalidate"] * 2,
    *['private="X-A"', 'no-cache="X-A, Set-Cookie"', 'private="set-cookie"', "stale-if-error=0", "no-transform"],
    *["must-understand", "must-understand, no-store", "must-understand=1, no-store", "immutable", ",,"],
    *['max-age="60"', "max-age=abc", "max-age", "max-age=", "max-age=-1", "max-age=1.5", "max-age = 60"],
    *["MAX-AGE=60", "max-age=99999999999", "s-maxage=x", "s-maxage=0", "max-age=60; private", "no-store=1"],
    *['foo="no-store, max-age=1"', 'foo="no-store', "private=X-A", 'private=""', 'no-cache="', "public=1"],
)
TARGETED = ("max-age=20", "max-age=0", "no-store", "private", "no-cache", "max-age=x", "x=", "", "s-maxage=5;a=1")
VARY = ("Accept-Language", "X-A", "accept-language, x-a", "*", "X-A, *", "X A", "Cookie", "Authorization", ",")
ENTITY_TAGS = ('"{v}"', '"{v}"', '"{v}"', 'W/"{v}"', '"same"', "{v}", '""')
DATES = ("{changed}", "{now-1000}", "{now-10}", "{now+50}", "yesterday", "0")
OTHERS = (
    "Set-Cookie: a={v}",
    "X-A: 1",
    "X-A: 2",
    "Age: 5",
    "Age: 40",
    "Age: x",
    "Date: {now}",
    "Date: {now-30}",
    "Date: {now+30}",
    "Date: tomorrow",
    "Expires: {now+40}",
    "Expires: {now-40}",
    "Expires: 0",
    "Content-Location: /a",
    "Content-Type: text/plain",
    "Content-Type: text/event-stream",
    "Content-Encoding: gzip",
    "Connection: X-Hop, X-A",
    "X-Hop: 1",
    "Keep-Alive: 5",
    "Proxy-Authenticate: Basic",
    'Cache-Groups: "one"',
    'Cache-Groups: "two", "one"',
    "Cache-Groups: one",
    'Cache-Status: origin; fwd=miss; key="a, b"',
)
ASKED = (
    "If-None-Match: {etag}",
    "If-None-Match: {etag}",
    'If-None-Match: "0", W/"1"',
    'If-None-Match: "other"',
    "If-None-Match: *",
    "If-Modified-Since: {modified}",
    f"If-Modified-Since: {http_date(START + 15)}",
    f"If-Modified-Since: {http_date(START - 9999)}",
    "If-Modified-Since: yesterday",
    'If-Match: "0"',
    "Range: bytes=1-2",
    "Range: bytes=1-2",
    "Range: bytes=-3",
    "Range: bytes=900-",
    "Range: bytes=0-1, 2-4",
    "Range: bytes=0-1, 9-9",
    "Range: bytes=2-1",
    "Range: pages=1",
    "If-Range: {etag}",
    "If-Range: {modified}",
    'If-Range: "other"',
    "Cache-Control: no-cache",
    "Cache-Control: no-cache",
    "Cache-Control: no-store",
    "Cache-Control: max-age=5",
    "Cache-Control: max-age=0",
    "Cache-Control: max-age=x",
    "Cache-Control: min-fresh=30",
    *["Cache-Control: max-stale"] * 4,
    "Cache-Control: max-stale=10",
    "Cache-Control: max-stale, max-age=100",
    "Cache-Control: only-if-cached",
    *["Cache-Control: stale-if-error=100", "Cache-Control: max-age=100"] * 2,
    "Pragma: no-cache",
    "Accept-Language: de, en;q=0.5",
    "Accept-Language: en; q=0.50,de",
    "Accept-Language: en",
    "X-A: 1",
    "X-A: 2",
    "Authorization: Basic a",
    "Authorization: Basic b",
    "Cookie: a=1",
)


def _built(made: Any, *parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Give what *made* makes of *parts*; `builds` would look at its annotations each time."""
    return st.tuples(*parts).map(lambda drawn: made(*drawn))


_LINES = (
    *(f"Cache-Control: {each}" for each in DIRECTIVES),
    *(f"ETag: {each}" for each in ENTITY_TAGS * 3),
    *(f"Last-Modified: {each}" for each in DATES),
    *(f"Vary: {each}" for each in VARY),
    *(f"CDN-Cache-Control: {each}" for each in TARGETED),
    *OTHERS,
)
_more = st.lists(st.sampled_from(_LINES), max_size=4)
_common = st.tuples(st.sampled_from(FRESH), _more).map(lambda drawn: (drawn[0], *drawn[1]))
_versions = _built(
    Version,
    st.sampled_from([200] * 24 + [203, 204, 301, 302, 404, 418, 500, 500, 500, 503]),
    _common,
    st.none() | _more.map(tuple),
    st.sampled_from([WHOLE] * 12 + [PARTS, PARTS, SHORT, BREAKS, RAISES]),
    st.sampled_from([0] * 6 + [2, 15]),
)
_written = _built(
    Version,
    st.sampled_from([200, 200, 200, 201, 204, 303, 404, 500]),
    st.lists(
        st.sampled_from(
            [
                "Location: /b",
                "Location: http://test:80/a?q=1#x",
                "Location: //other/b",
                "Content-Location: /a",
                "Content-Location: a",
                "Content-Location: http://test/b",
                "Cache-Control: max-age=60",
                "Cache-Control: max-age=60",
                "Cache-Control: no-store",
                "Vary: X-A",
                'ETag: "w{v}"',
                'Cache-Group-Invalidation: "one"',
                "Cache-Group-Invalidation: one",
            ]
        ),
        max_size=4,
    ).map(tuple),
    st.none(),
    st.sampled_from([WHOLE] * 5 + [PARTS, RAISES]),
    st.sampled_from([0, 0, 2]),
)
_resources = _built(
    Resource,
    st.lists(_versions, min_size=1, max_size=3).map(tuple),
    st.sampled_from([0, 0, 20, 50]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([(), (), ("x-a",), ("accept-language", "x-a")]),
    _written,
)
worlds = st.tuples(_resources, st.none() | _resources, st.none() | _resources).map(
    lambda drawn: {target: each for target, each in zip(TARGETS, drawn, strict=True) if each is not None}
)


def _step(drawn: tuple[float, str, str, list[str], bytes]) -> Step:
    wait, method, target, lines, body = drawn
    if method not in ("QUERY", "POST"):
        return Step(wait, method, target, tuple(lines))
    more = (f"Content-Length: {len(body)}", "Content-Type: text/x")
    return Step(wait, method, target, (*lines, *more), body)


steps = st.lists(
    st.tuples(
        st.sampled_from([0, 0, 0, 0.5, 1, 5, 9, 15, 25, 55, 65, 200]),
        st.sampled_from(
            ["GET"] * 14 + ["HEAD"] * 3 + ["POST", "POST", "PUT", "QUERY", "QUERY", "FROB", "OPTIONS"]
        ),
        st.sampled_from(["/a"] * 6 + ["/a?q=1", "/b"]),
        st.lists(st.sampled_from(ASKED), max_size=2),
        st.sampled_from([b"one", b"one", b"two"]),
    ).map(_step),
    min_size=4,
    max_size=14,
)

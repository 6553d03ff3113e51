"""An origin server that answers as it is told, behind a cache that keeps to the RFCs alone."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from app_cache import CacheMiddleware, CachePolicy, MemoryBackend
from app_cache.testing import FakeClock
from tests.rules.samples import fields, http_date

if TYPE_CHECKING:
    from typing import Self

    from app_cache.rules.messages import Headers

URL = "http://test/page"
BOTH = pytest.mark.parametrize(
    "policy",
    [CachePolicy.http(), CachePolicy.http(store_set_cookie=False, stale_on_failure=False)],
    ids=["the RFC", "our defaults"],
)
"""Runs a test under both ways to keep to the RFCs alone."""


@dataclass(frozen=True)
class Answer:
    """What the origin says once."""

    status: int
    headers: Headers
    parts: tuple[bytes, ...]
    ends: bool
    """Whether the last part is also said to be the last."""
    breaks: bool
    """Whether the handler raises where the body should end, and without parts before it has said anything."""


@dataclass
class Origin:
    """An ASGI application that gives one answer after the other, the last one for ever.

    *asked*: the requests that it got, each as its method and a mapping of its fields.
    """

    clock: FakeClock = field(default_factory=FakeClock)
    answers: deque[Answer] = field(default_factory=deque)
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def says(
        self,
        *lines: str,
        status: int = 200,
        body: bytes | tuple[bytes, ...] = b"0123456789",
        ends: bool = True,
        breaks: bool = False,
    ) -> Self:
        """Add an answer with the field *lines*; ``{now}`` in one is the date at which it is added, ``{now-9}``."""
        dated = [self._dated(line) for line in lines]
        parts = body if isinstance(body, tuple) else (body,)
        self.answers.append(Answer(status, fields(*dated), parts, ends, breaks))
        return self

    def _dated(self, line: str) -> str:
        before, brace, rest = line.partition("{now")
        if not brace:
            return line
        shift, _, after = rest.partition("}")
        return f"{before}{http_date(self.clock() + float(shift or 0))}{after}"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request."""
        while (await receive()).get("more_body", False):
            pass
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        self.asked.append((scope["method"], headers))
        answer = self.answers[0] if len(self.answers) == 1 else self.answers.popleft()
        if answer.breaks and not answer.parts:
            raise ConnectionError("the origin server is away")
        await send({"type": "http.response.start", "status": answer.status, "headers": [*answer.headers]})
        for at, part in enumerate(answer.parts, 1):
            more = at < len(answer.parts) or not answer.ends or answer.breaks
            await send({"type": "http.response.body", "body": part, "more_body": more})
        if answer.breaks:
            raise ConnectionError("the origin server breaks off")
        if not answer.ends:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    def cached(self, policy: CachePolicy | None = None, backend: Any = None) -> httpx.AsyncClient:
        """Return a client of a cache before this origin."""
        app = CacheMiddleware(
            self, backend or MemoryBackend(), default_policy=policy or CachePolicy.http(), clock=self.clock
        )
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://test")


async def asked_twice(
    origin: Origin,
    *,
    first: tuple[str, ...] = (),
    then: tuple[str, ...] = (),
    after: float = 0.0,
    policy: CachePolicy | None = None,
) -> httpx.Response:
    """Return the answer to the second of two GETs, *after* seconds later; *first* and *then* are their fields."""
    async with origin.cached(policy) as client:
        await client.get(URL, headers=raw(*first))
        origin.clock.advance(after)
        return await client.get(URL, headers=raw(*then))


def is_hit(response: httpx.Response) -> bool:
    """Return whether *response* came from the cache alone, as the last member of Cache-Status says."""
    return str(response.headers.get("cache-status")).rpartition("app-cache")[2].startswith("; hit")


def raw(*lines: str) -> list[tuple[bytes, bytes]]:
    """Return *lines*, each ``Name: value``, as the fields of a request, repeated ones kept."""
    return [*fields(*lines)]

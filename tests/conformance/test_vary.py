"""Which of several stored responses is chosen (RFC 9111 §4, §4.1)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.clients import all_blocked, told
from tests.conformance.origin import URL, Origin, raw

pytestmark = pytest.mark.anyio

FRESH = "Cache-Control: max-age=60"


async def test_the_most_recent_of_several(backend: Any) -> None:
    """Where a request selects two responses by different fields, the one with the later Date answers (§4)."""
    origin = Origin()
    origin.says(FRESH, "Date: {now}", "Vary: X-A", body=b"new")
    origin.says(FRESH, "Date: {now-9}", "Vary: X-B", body=b"old")
    async with origin.cached(backend=backend) as client:
        await client.get(URL, headers={"x-a": "1", "x-b": "1"})
        await client.get(URL, headers={"x-a": "2", "x-b": "2"})
        answer = await client.get(URL, headers={"x-a": "1", "x-b": "2"})
    assert (answer.text, told(answer)) == ("new", "hit")


async def test_a_response_that_forgot_vary(backend: Any) -> None:
    """A response without Vary takes nothing from those who select one that has it (§4.1)."""
    origin = Origin().says(FRESH, "Vary: X-A", body=b"varied").says(FRESH, body=b"default")
    async with origin.cached(backend=backend) as client:
        await client.get(URL, headers={"x-a": "1"})
        assert (await client.get(URL)).text == "default"
        for asked, text in (({"x-a": "1"}, "varied"), ({}, "default"), ({"x-a": "2"}, "default")):
            answer = await client.get(URL, headers=asked)
            assert (answer.text, told(answer)) == (text, "hit")


async def test_a_response_that_has_vary_no_more(backend: Any) -> None:
    """A response without Vary takes the place of the one with it that it was fetched for (§4.3.3)."""
    origin = Origin().says(FRESH, "Vary: X-A", 'ETag: "a"', body=b"varied").says(FRESH, body=b"default")
    async with origin.cached(backend=backend) as client:
        await client.get(URL, headers={"x-a": "1"})
        origin.clock.advance(61)
        for expected in ("fwd=stale; stored", "hit"):
            answer = await client.get(URL, headers={"x-a": "1"})
            assert (answer.text, told(answer)) == ("default", expected)


@pytest.mark.parametrize("how", ["validated", "refreshed", "by HEAD"])
async def test_an_update_that_varies_by_more(backend: Any, how: str) -> None:
    """A 304, or a HEAD, by which a stored response varies by more leaves no copy that varies by less (§4.3.4)."""
    window = ", stale-while-revalidate=60" if how == "refreshed" else ""
    origin = Origin().says(FRESH + window, "Vary: X-A", 'ETag: "a"', body=b"one")
    method, status = ("HEAD", 200) if how == "by HEAD" else ("GET", 304)
    origin.says(FRESH, "Vary: X-A, X-B", 'ETag: "a"', status=status, body=b"")
    origin.says(FRESH, "Vary: X-A, X-B", body=b"two")
    async with origin.cached(backend=backend) as client:
        await client.get(URL)
        origin.clock.advance(61 if window else 0)
        await client.request(method, URL, headers={} if window else {"cache-control": "no-cache"})
        await all_blocked()
        same = await client.get(URL)
        other = await client.get(URL, headers={"x-b": "1"})
    assert (same.text, told(same)) == ("one", "hit")
    assert (other.text, told(other)) == ("two", "fwd=vary-miss; stored")


async def test_a_response_that_varies_after_one_that_went(backend: Any) -> None:
    """After an answer that is not stored has put a response without Vary out, those that have it are hits."""
    origin = (
        Origin().says(FRESH, body=b"one").says("Cache-Control: no-store").says(FRESH, "Vary: X-A", body=b"two")
    )
    async with origin.cached(backend=backend) as client:
        await client.get(URL)
        origin.clock.advance(61)
        await client.get(URL)
        answers = [await client.get(URL) for _ in range(3)]
    assert [told(each) for each in answers] == ["fwd=uri-miss; stored", "hit", "hit"]
    assert len(origin.asked) == 3


@dataclass
class SlowOnce(Origin):
    """Holds its second answer back until the *gate* is open."""

    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        is_second = len(self.asked) == 1

        async def send_late(message: Any) -> None:
            if is_second:
                await self.gate.wait()
            await send(message)

        await super().__call__(scope, receive, send_late)


async def test_a_slower_answer_that_varies_by_less(backend: Any) -> None:
    """Of two answers without Date, that whose handler began later answers, whichever came first (§4)."""
    origin = SlowOnce().says(FRESH, "Vary: X-A").says(FRESH, "Vary: X-A", body=b"early")
    origin.says(FRESH, "Vary: X-A, X-B", body=b"late")
    anew = {"cache-control": "no-cache"}
    async with origin.cached(backend=backend) as client:
        await client.get(URL)
        early = asyncio.create_task(client.get(URL, headers=anew))
        await all_blocked()
        origin.clock.advance(1)
        late = await client.get(URL, headers=anew)
        origin.gate.set()
        await early
        answer = await client.get(URL)
    assert (late.text, answer.text, told(answer)) == ("late", "late", "hit")


async def test_a_response_that_varies_by_more(backend: Any) -> None:
    """A response that varies by other fields than the one it was fetched for takes its place."""
    origin = Origin().says(FRESH, "Vary: X-A", body=b"one").says(FRESH, "Vary: X-A, X-B", body=b"two")
    async with origin.cached(backend=backend) as client:
        await client.get(URL, headers={"x-a": "1"})
        origin.clock.advance(61)
        for _ in range(2):
            assert (await client.get(URL, headers={"x-a": "1", "x-b": "1"})).text == "two"
        answer = await client.get(URL, headers={"x-a": "1", "x-b": "2"})
    assert told(answer) == "fwd=vary-miss; stored"


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        pytest.param(["X-A: 1"], ["X-A: 1"], "hit", id="the same"),
        pytest.param(["X-A: 1"], ["X-A: 2"], "fwd=vary-miss; stored", id="another value"),
        pytest.param([], ["X-A: 1"], "fwd=vary-miss; stored", id="absent, then there"),
        pytest.param(["X-A: 1"], [], "fwd=vary-miss; stored", id="there, then absent"),
        pytest.param([], [], "hit", id="absent in both"),
        pytest.param(["X-A: 1", "X-A: 2"], ["X-A: 1, 2"], "fwd=vary-miss; stored", id="two lines and one"),
        pytest.param(["X-B: 1"], ["X-B: 2"], "hit", id="a field that is not named"),
        pytest.param(["X-A: 1", "X-A: 2"], ["X-A: 1", "X-A: 2"], "hit", id="the same two lines"),
        pytest.param(
            ["Accept-Language: de, en;q=0.5"],
            ["Accept-Language: DE;q=1.0,en ; q=0.5"],
            "hit",
            id="blanks and case",
        ),
        pytest.param(
            ["Accept-Language: de, en;q=0.5"],
            ["Accept-Language: en;q=0.5, de"],
            "fwd=vary-miss; stored",
            id="order of weights",
        ),
        pytest.param(
            ["Accept-Language: de, en"],
            ["Accept-Language: en, de"],
            "fwd=vary-miss; stored",
            id="order of languages",
        ),
    ],
)
async def test_what_matches(one: list[str], other: list[str], expected: str) -> None:
    """A stored response answers if the fields that its Vary names are the same to a handler (§4.1)."""
    origin = Origin().says(FRESH, "Vary: X-A, Accept-Language")
    async with origin.cached() as client:
        await client.get(URL, headers=raw(*one))
        assert told(await client.get(URL, headers=raw(*other))) == expected


@pytest.mark.parametrize("vary", ["*", "X-A, *", "*, X-A", "X A"])
async def test_what_never_matches(vary: str) -> None:
    """What varies by everything, or by what is no field, answers nobody else (§4.1)."""
    origin = Origin().says(FRESH, f"Vary: {vary}")
    async with origin.cached() as client:
        for _ in range(2):
            assert told(await client.get(URL)) == "fwd=uri-miss; detail=vary-star"

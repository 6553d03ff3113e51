"""Random applications answer behind the cache as they do without it, but for what the RFCs allow.

Each example is one world, asked the same by a client of the bare application and by one of the cached. What the
cache answers must be what the bare one says, or follow from an answer that the oracle lets a cache store and use.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field
from typing import cast

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from app_cache import CacheMiddleware, CachePolicy, MemoryBackend
from app_cache.flight import land
from app_cache.services import PlainServices
from app_cache.testing import FakeClock
from tests.conformance.oracle import (
    SAFE,
    Answer,
    Fields,
    Oracle,
    Policy,
    Request,
    lines_of,
    named_without,
)
from tests.conformance.worlds import START, Origin, Step, World, ask, steps, worlds

EXAMPLES = int(os.environ.get("DIFFERENTIAL_EXAMPLES", "150"))
"""Examples of each policy; many thousands are for ``make differential``."""
POLICIES = {
    "http": (CachePolicy.http(), Policy()),
    "safe": (
        CachePolicy.http(store_set_cookie=False, stale_on_failure=False),
        Policy(stores_set_cookie=False, stale_on_failure=False),
    ),
    "timeout": (
        CachePolicy(timeout=20),
        Policy(timeout=20, guards_cookies=True, stores_set_cookie=False, stale_on_failure=False),
    ),
}


@dataclass
class Client:
    """What a client remembers of the answers that it got, by URL."""

    etags: dict[str, str] = field(default_factory=dict)
    dates: dict[str, str] = field(default_factory=dict)

    def request(self, step: Step) -> Request:
        """Return the request of a step."""
        etag, date = self.etags.get(step.target, '"none"'), self.dates.get(step.target, "yesterday")
        lines = (line.replace("{etag}", etag).replace("{modified}", date) for line in step.lines)
        pairs = (line.partition(":") for line in ("Host: test", *lines))
        return Request(
            step.method, step.target, tuple((name.lower(), value.strip()) for name, _, value in pairs), step.body
        )

    def learn(self, target: str, answer: Answer) -> None:
        """Remember the validators of *answer*."""
        for name, known in (("etag", self.etags), ("last-modified", self.dates)):
            for line in lines_of(answer.fields, name)[:1]:
                known[target] = line


async def play(world: World, sequence: list[Step], policy: CachePolicy, word: Policy) -> tuple[list[str], str]:
    """Return what is wrong with the answers of a cache before *world*, and the exchanges as text."""
    clock = FakeClock(START)
    behind, bare = Origin(world, clock, takes_time=True), Origin(world, clock, takes_time=False)
    cached = CacheMiddleware(behind, MemoryBackend(clock=clock), default_policy=policy, clock=clock)
    services = cast("PlainServices", cached._plain)
    oracle, client, text = Oracle(word), Client(), [written_world(world)]
    for step in sequence:
        clock.advance(step.wait)
        now = behind.moment = bare.moment = clock()
        request = client.request(step)
        alone = await ask(bare, request)
        whole = await ask(bare, unconditional(request)) if step.method in SAFE else alone
        behind.log.clear()
        got = await ask(cached, request)
        at = clock()
        await land([services.store().flight], 5.0)
        client.learn(step.target, got)
        wrong = oracle.complaints(request, got, behind.log, alone, whole, now, at)
        text.append(f"--- at {now - START:g} s\n{written_request('>', request)}")
        for each in behind.log:
            text.append(indented(f"{written_request('>', each.request)}\n{written_answer('<', each.answer)}"))
        text.append(written_answer("<", got))
        if behind.writes != bare.writes:
            wrong.append("the writes that reached the application are not those of the client")
        if wrong:
            text.append(f"The application alone says\n{indented(written_answer('<', alone))}")
            return wrong, "\n".join(text)
    return [], "\n".join(text)


def unconditional(request: Request) -> Request:
    """Return *request* as a GET of the whole, or a QUERY."""
    names = ("if-none-match", "if-modified-since", "range", "if-range")
    method = "GET" if request.method == "HEAD" else request.method
    return Request(method, request.target, named_without(request.fields, names), request.body)


def written_world(world: World) -> str:
    """Return *world* as text."""
    lines = []
    for target, resource in world.items():
        more = [f"a new version every {resource.period} s"] if resource.period else []
        more += ["answers 304"] if resource.conditions else []
        more += ["answers 206"] if resource.ranges else []
        lines.append(f"{target}: {', '.join(more)}; shows {resource.depends_on}")
        lines += [f"  {version}" for version in resource.versions]
        lines.append(f"  when written: {resource.written}")
    return "\n".join(lines)


def written_request(mark: str, request: Request) -> str:
    """Return *request* as it is on the wire."""
    return f"{mark} {request.method} {request.target}\n{written_fields(mark, request.fields)}{request.body!r}"


def written_answer(mark: str, answer: Answer) -> str:
    """Return *answer* as it is on the wire."""
    raised = " and raises" if answer.raised else ""
    return f"{mark} {answer.status}{raised}\n{written_fields(mark, answer.fields)}{answer.body!r}"


def written_fields(mark: str, fields: Fields) -> str:
    """Return *fields*, one a line."""
    return "".join(f"{mark} {name}: {value}\n" for name, value in fields)


def indented(text: str) -> str:
    """Return *text* under what it belongs to."""
    return "\n".join(f"        {line}" for line in text.split("\n"))


@pytest.mark.parametrize("name", POLICIES)
@settings(
    derandomize="DIFFERENTIAL_EXAMPLES" not in os.environ,
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
)
@given(world=worlds, sequence=steps)
def test_differential(name: str, world: World, sequence: list[Step]) -> None:
    """Each answer of the cached application is the bare one's, or one that a cache may give in its place."""
    wrong, text = asyncio.run(play(world, sequence, *POLICIES[name]))
    assert not wrong, "\n".join([*wrong, text])

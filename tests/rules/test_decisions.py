"""The four questions, each answer with its reason: answer, store, keep, forget (RFC 9111 §3, §4)."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from app_cache.policy import ERROR_TIMEOUT, CachePolicy
from app_cache.rules.decisions import (
    SAFE_METHODS,
    STORED_WITHOUT_FRESHNESS,
    VALIDATED_FOR,
    Forward,
    Fwd,
    Hit,
    Refusal,
    asked_by,
    freshness_lifetime,
    has_content,
    keep_for,
    select,
    shares_set_cookie,
    stale_windows,
    to_invalidate,
    unshared_credential,
    why_not_store,
    why_pass,
    withheld_fields,
)
from app_cache.rules.directives import (
    LONGEST,
    NOTHING_ASKED,
    NOTHING_SAID,
    RequestDirectives,
    request_directives,
    response_directives,
)
from app_cache.rules.messages import RequestHead, ResponseHead, StoredResponse
from tests.rules.samples import NOW, fields, http_date, request, response, stored
from tests.timing import assert_within

PLAIN = CachePolicy(timeout=60)
HTTP = CachePolicy.http()
CAREFUL_HTTP = CachePolicy.http(store_set_cookie=False, stale_on_failure=False)


def policy_with(**options: Any) -> CachePolicy:
    """Return a policy with *options*, in any form that it takes."""
    return CachePolicy(**options)


def vary_by(request: object) -> str:
    """Tell requests apart by something of the application's own."""
    return "own"


# What a client asks.


def test_clients_are_obeyed() -> None:
    """A client's directives count, and none of them do where the policy says so."""
    asking = request("Cache-Control: no-cache")
    assert asked_by(asking, PLAIN) == RequestDirectives(no_cache=True)
    assert asked_by(asking, CachePolicy(cache_control=False)) == NOTHING_ASKED


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        pytest.param([], False, id="nothing"),
        pytest.param(["Content-Length: 0"], False, id="no bytes"),
        pytest.param(["Content-Length: 1"], True, id="bytes"),
        pytest.param(["Content-Length: 0", "Content-Length: 0"], True, id="no clear length"),
        pytest.param(["Transfer-Encoding: chunked"], True, id="chunks"),
        pytest.param(["Content-Type: text/plain"], False, id="a type alone"),
    ],
)
def test_has_content(lines: list[str], expected: bool) -> None:
    """A request has content if its length or its coding says so (RFC 9112 §6)."""
    assert has_content(fields(*lines)) is expected


@pytest.mark.parametrize(
    ("method", "lines", "expected"),
    [
        pytest.param("GET", [], None, id="plain"),
        pytest.param("HEAD", [], None, id="HEAD"),
        pytest.param("GET", ["Cache-Control: no-store"], Refusal.REQUEST_NO_STORE, id="no-store"),
        pytest.param("GET", ["Cache-Control: no-cache, max-age=0"], None, id="no-cache"),
        pytest.param("GET", ["Range: bytes=0-1"], None, id="a range"),
        pytest.param("GET", ["If-Range: x"], None, id="If-Range without Range"),
        pytest.param("GET", ['IF-MATCH: "a"'], Refusal.PRECONDITION, id="If-Match"),
        pytest.param(
            "GET", [f"If-Unmodified-Since: {http_date(0)}"], Refusal.PRECONDITION, id="If-Unmodified-Since"
        ),
        pytest.param("GET", ['If-None-Match: "a"', "If-Modified-Since: x"], None, id="what a cache evaluates"),
        pytest.param("QUERY", ['If-None-Match: "a"'], None, id="what a cache evaluates of QUERY"),
        pytest.param("POST", ["If-None-Match: *"], Refusal.PRECONDITION, id="If-None-Match of POST"),
        pytest.param("POST", ["If-Modified-Since: x"], Refusal.PRECONDITION, id="If-Modified-Since of POST"),
        pytest.param("GET", ["Content-Length: 5"], Refusal.BODY, id="content"),
        pytest.param("HEAD", ["Transfer-Encoding: chunked"], Refusal.BODY, id="content of HEAD"),
        pytest.param("POST", ["Content-Length: 5"], None, id="content of POST"),
        pytest.param("QUERY", ["Content-Length: 5"], None, id="content of QUERY"),
    ],
)
def test_why_pass(method: str, lines: list[str], expected: Refusal | None) -> None:
    """A request is passed by whose semantics a stored response cannot meet (§4.3.2, §5.2.1.5)."""
    asking = request(*lines, method=method)
    assert why_pass(asking, request_directives(asking.headers)) is expected


# Credentials.

ALICE = "Authorization: Basic YWxpY2U="
SESSION = "Cookie: session=1"


@pytest.mark.parametrize(
    ("lines", "said", "policy", "expected"),
    [
        pytest.param([], "", PLAIN, None, id="none"),
        pytest.param([ALICE], "", PLAIN, Refusal.AUTHORIZATION, id="authorization"),
        pytest.param([ALICE], "max-age=60", PLAIN, Refusal.AUTHORIZATION, id="a lifetime shares nothing"),
        pytest.param(
            [ALICE], "proxy-revalidate", PLAIN, Refusal.AUTHORIZATION, id="proxy-revalidate shares nothing"
        ),
        pytest.param([ALICE], "public", PLAIN, None, id="authorization, public"),
        pytest.param([ALICE], "must-revalidate", PLAIN, None, id="authorization, must-revalidate"),
        pytest.param([ALICE], "s-maxage=60", PLAIN, None, id="authorization, s-maxage"),
        pytest.param([ALICE], "must-revalidate; foo", PLAIN, Refusal.AUTHORIZATION, id="no clear must-revalidate"),
        pytest.param([ALICE], "s-maxage=soon", PLAIN, Refusal.AUTHORIZATION, id="s-maxage that cannot be read"),
        pytest.param([ALICE], 'foo="public"', PLAIN, Refusal.AUTHORIZATION, id="public in quotes"),
        pytest.param([SESSION], "", PLAIN, Refusal.COOKIE, id="cookie"),
        pytest.param([SESSION], "public", PLAIN, None, id="cookie, public"),
        pytest.param(
            [SESSION], "must-revalidate, s-maxage=60", PLAIN, Refusal.COOKIE, id="cookie, only public shares"
        ),
        pytest.param([ALICE, SESSION], "s-maxage=60", PLAIN, Refusal.COOKIE, id="both, one is shared"),
        pytest.param([ALICE, SESSION], "public", PLAIN, None, id="both, public"),
        pytest.param([ALICE, SESSION], "", PLAIN, Refusal.AUTHORIZATION, id="both"),
        pytest.param(
            [ALICE], "", policy_with(exclude_headers=["Authorization"]), None, id="the policy: depends not"
        ),
        pytest.param(
            [ALICE], "", policy_with(include_headers=["authorization"]), None, id="the policy: in the key"
        ),
        pytest.param([ALICE, SESSION], "", CachePolicy(vary_by=vary_by), None, id="the policy: varies by its own"),
        pytest.param(
            [ALICE, SESSION], "", policy_with(exclude_headers=["cookie"]), Refusal.AUTHORIZATION, id="one of two"
        ),
        pytest.param([SESSION], "", HTTP, None, id="HTTP knows nothing of cookies"),
        pytest.param([ALICE], "", HTTP, Refusal.AUTHORIZATION, id="HTTP knows authorization"),
        pytest.param([ALICE], "must-revalidate", HTTP, None, id="HTTP, must-revalidate"),
    ],
)
def test_credentials(lines: list[str], said: str, policy: CachePolicy, expected: Refusal | None) -> None:
    """What was asked with a credential is shared only if the response or the route says so (§3.5)."""
    told = response_directives(fields(f"Cache-Control: {said}"))
    assert unshared_credential(request(*lines), told, policy) is expected


# What is stored.

MODIFIED = f"Last-Modified: {http_date(NOW - 100)}"


@pytest.mark.parametrize(
    ("status", "lines", "policy", "expected"),
    [
        pytest.param(200, [], PLAIN, None, id="by the policy's timeout"),
        pytest.param(200, ["Cache-Control: no-store"], PLAIN, Refusal.NO_STORE, id="no-store"),
        pytest.param(
            200, ["Cache-Control: no-store, max-age=9, public"], PLAIN, Refusal.NO_STORE, id="no-store wins"
        ),
        pytest.param(200, ["Cache-Control: private"], PLAIN, Refusal.PRIVATE, id="private"),
        pytest.param(200, ["Cache-Control: private, public"], PLAIN, Refusal.PRIVATE, id="private wins"),
        pytest.param(200, ['Cache-Control: private="x-a"'], PLAIN, None, id="private fields"),
        pytest.param(200, ["Cache-Control: no-cache"], PLAIN, None, id="no-cache is stored"),
        pytest.param(200, ["Connection: Vary", "Vary: A"], PLAIN, Refusal.PRIVATE, id="Connection names Vary"),
        pytest.param(200, ["Pragma: no-cache"], PLAIN, None, id="Pragma says nothing"),
        pytest.param(200, ["Cache-Control: max-age=0"], PLAIN, Refusal.NOT_FRESH, id="never fresh"),
        pytest.param(200, ["Expires: 0"], PLAIN, Refusal.NOT_FRESH, id="expired"),
        pytest.param(200, ["Cache-Control: max-age=x"], PLAIN, Refusal.NOT_FRESH, id="a lifetime that is none"),
        pytest.param(
            200, ["Cache-Control: max-age=0", 'ETag: "a"'], PLAIN, None, id="never fresh, to be validated"
        ),
        pytest.param(200, ["Expires: 0", MODIFIED], PLAIN, None, id="expired, to be validated"),
        pytest.param(
            200, ["Cache-Control: max-age=0, stale-if-error=9"], PLAIN, None, id="never fresh, for failures"
        ),
        pytest.param(200, ["Vary: *"], PLAIN, Refusal.VARY_STAR, id="Vary star"),
        pytest.param(200, ["Vary: accept"], PLAIN, None, id="Vary"),
        pytest.param(200, ["Content-Type: text/event-stream; charset=utf-8"], PLAIN, Refusal.STREAM, id="events"),
        pytest.param(200, ["Content-Type: application/x-ndjson"], PLAIN, Refusal.STREAM, id="lines of JSON"),
        pytest.param(200, ["Content-Type: application/ndjson"], PLAIN, Refusal.STREAM, id="ndjson"),
        pytest.param(200, ["Content-Type: application/jsonl"], PLAIN, Refusal.STREAM, id="JSON lines"),
        pytest.param(200, ["Content-Type: application/jsonlines"], PLAIN, Refusal.STREAM, id="jsonlines"),
        pytest.param(200, ["Content-Type: application/x-jsonl"], PLAIN, Refusal.STREAM, id="x-jsonl"),
        pytest.param(200, ["Content-Type: application/x-jsonlines"], PLAIN, Refusal.STREAM, id="x-jsonlines"),
        pytest.param(200, ["Content-Type: application/geo+json-seq"], PLAIN, Refusal.STREAM, id="geo+json-seq"),
        pytest.param(200, ["Content-Type: application/json-seq"], PLAIN, Refusal.STREAM, id="a JSON sequence"),
        pytest.param(200, ["Content-Type: Application/X-NDJSON"], PLAIN, Refusal.STREAM, id="lines of JSON"),
        pytest.param(200, ["Content-Type: application/json"], PLAIN, None, id="JSON"),
        pytest.param(101, ["Cache-Control: max-age=9"], PLAIN, Refusal.STATUS, id="not final"),
        pytest.param(206, ["Cache-Control: max-age=9"], PLAIN, Refusal.STATUS, id="a part"),
        pytest.param(304, ["Cache-Control: max-age=9"], PLAIN, Refusal.STATUS, id="not modified"),
        pytest.param(404, [], PLAIN, Refusal.STATUS, id="an error"),
        pytest.param(404, ["Cache-Control: public"], PLAIN, Refusal.STATUS, id="an error without a time"),
        pytest.param(404, ["Cache-Control: max-age=9"], PLAIN, None, id="an error with a time"),
        pytest.param(
            404, ["Cache-Control: no-store"], policy_with(statuses=[404]), Refusal.NO_STORE, id="named, but"
        ),
        pytest.param(404, [], policy_with(statuses=[404]), None, id="an error that the policy names"),
        pytest.param(302, [f"Expires: {http_date(NOW + 9)}"], PLAIN, None, id="a redirect with a time"),
        pytest.param(299, ["Cache-Control: s-maxage=9"], PLAIN, None, id="an unknown status with a time"),
        pytest.param(
            200, ["Cache-Control: must-understand, no-store"], PLAIN, None, id="must-understand, understood"
        ),
        pytest.param(
            299,
            ["Cache-Control: must-understand, no-store, max-age=9"],
            PLAIN,
            Refusal.NO_STORE,
            id="must, but not",
        ),
        pytest.param(
            299, ["Cache-Control: must-understand, max-age=9"], PLAIN, Refusal.STATUS, id="must, unknown"
        ),
        pytest.param(404, ["Cache-Control: must-understand, max-age=9"], PLAIN, None, id="must, known"),
        pytest.param(206, ["Cache-Control: must-understand, max-age=9"], PLAIN, Refusal.STATUS, id="must, a part"),
        pytest.param(
            200, ["Cache-Control: must-understand, no-store, private"], PLAIN, Refusal.PRIVATE, id="must, private"
        ),
        pytest.param(200, ["Set-Cookie: a=1"], PLAIN, Refusal.SET_COOKIE, id="Set-Cookie"),
        pytest.param(
            200, ["Set-Cookie: a=1", "Cache-Control: public"], PLAIN, Refusal.SET_COOKIE, id="also public"
        ),
        pytest.param(
            200,
            ["Set-Cookie: a=1", 'Cache-Control: private="Set-Cookie"'],
            PLAIN,
            None,
            id="Set-Cookie is private",
        ),
        pytest.param(
            200,
            ["Set-Cookie: a=1", 'Cache-Control: no-cache="set-cookie"'],
            PLAIN,
            None,
            id="Set-Cookie is fetched",
        ),
        pytest.param(
            200, ["Set-Cookie: a=1"], policy_with(exclude_headers=["Set-Cookie"]), None, id="it is dropped"
        ),
        pytest.param(
            200, ["Set-Cookie: a=1", "Cache-Control: max-age=9"], HTTP, None, id="HTTP stores Set-Cookie"
        ),
        pytest.param(
            200,
            ["Set-Cookie: a=1", "Cache-Control: max-age=9"],
            CAREFUL_HTTP,
            Refusal.SET_COOKIE,
            id="HTTP with our default for Set-Cookie",
        ),
        pytest.param(200, [], CAREFUL_HTTP, Refusal.NOT_FRESH, id="HTTP, nothing tells"),
        pytest.param(200, [MODIFIED], CAREFUL_HTTP, None, id="HTTP, a heuristic"),
        pytest.param(404, [MODIFIED], HTTP, None, id="HTTP, a status that is cacheable"),
        pytest.param(404, [], HTTP, Refusal.NOT_FRESH, id="HTTP, an error of which nothing tells"),
        pytest.param(302, [], HTTP, Refusal.STATUS, id="HTTP, a status that is not"),
        pytest.param(500, ['ETag: "a"', MODIFIED], HTTP, Refusal.STATUS, id="HTTP, an error with validators"),
        pytest.param(302, ["Cache-Control: public"], HTTP, None, id="HTTP, a status that is said to be"),
        pytest.param(302, ["Cache-Control: max-age=9"], HTTP, None, id="HTTP, a status with a time"),
        pytest.param(302, ["Expires: 0", 'ETag: "a"'], HTTP, None, id="HTTP, a status with an invalid time"),
    ],
)
def test_why_not_store(status: int, lines: list[str], policy: CachePolicy, expected: Refusal | None) -> None:
    """A response is stored if §3 allows it and it can be of use; else the first reason is given."""
    head = response(*lines, status=status)
    assert why_not_store(request(), head, response_directives(head.headers), policy, NOW) is expected


@pytest.mark.parametrize(
    ("lines", "said", "expected"),
    [
        pytest.param([ALICE], "max-age=9", Refusal.AUTHORIZATION, id="authorization"),
        pytest.param([ALICE], "s-maxage=9", None, id="authorization, shared"),
        pytest.param([SESSION], "max-age=9", Refusal.COOKIE, id="cookie"),
        pytest.param([SESSION], "max-age=9, public", None, id="cookie, shared"),
    ],
)
def test_credentials_are_not_stored(lines: list[str], said: str, expected: Refusal | None) -> None:
    """What was asked with a credential is not stored unless it is shared (§3.5)."""
    head = response(f"Cache-Control: {said}")
    assert why_not_store(request(*lines), head, response_directives(head.headers), PLAIN, NOW) is expected


@given(
    st.integers(200, 599),
    st.lists(st.sampled_from(["max-age=9", "s-maxage=9", "public", "must-revalidate", "no-cache", "foo"])),
    st.sampled_from(["no-store", "private", "private=", 'private="a", private']),
    st.sampled_from([PLAIN, HTTP, CAREFUL_HTTP, policy_with(statuses=range(300, 304))]),
    st.randoms(use_true_random=False),
)
def test_never_stored(status: int, said: list[str], forbidden: str, policy: CachePolicy, random: Any) -> None:
    """Whatever else is said, by response or policy, no-store and private are not stored."""
    said = [*said, forbidden]
    random.shuffle(said)
    head = response(f"Cache-Control: {', '.join(said)}", 'ETag: "a"', status=status)
    told = response_directives(head.headers)
    assert why_not_store(request(), head, told, policy, NOW) in (Refusal.NO_STORE, Refusal.PRIVATE)


@pytest.mark.parametrize(
    ("said", "policy", "shares", "withheld"),
    [
        pytest.param("public", PLAIN, False, set(), id="nothing"),
        pytest.param('private="x-a"', PLAIN, False, {b"x-a"}, id="another field is withheld"),
        pytest.param('private="Set-Cookie"', PLAIN, True, {b"set-cookie"}, id="withheld by private"),
        pytest.param('no-cache="a, set-cookie"', PLAIN, True, {b"a", b"set-cookie"}, id="withheld by no-cache"),
        pytest.param(
            "", policy_with(exclude_headers=["Set-Cookie"]), True, {b"set-cookie"}, id="withheld by policy"
        ),
        pytest.param("", HTTP, True, set(), id="stored by HTTP"),
        pytest.param('private="set-cookie"', HTTP, True, {b"set-cookie"}, id="withheld from HTTP"),
        pytest.param("", CAREFUL_HTTP, False, set(), id="not stored by HTTP with our default"),
    ],
)
def test_withheld(said: str, policy: CachePolicy, shares: bool, withheld: set[bytes]) -> None:
    """Fields that the response or the policy withholds are dropped, and then Set-Cookie hinders nothing."""
    told = response_directives(fields(f"Cache-Control: {said}"))
    assert shares_set_cookie(told, policy) is shares
    assert withheld_fields(told, policy) == withheld


# How long.


@pytest.mark.parametrize("status", sorted(STORED_WITHOUT_FRESHNESS | {206, 300, 302, 404, 410, 500}))
def test_statuses(status: int) -> None:
    """Without freshness of their own only 200, 203, 204, 301 and 308 live by the policy's timeout."""
    expected = 60.0 if status in (200, 203, 204, 301, 308) else None
    assert freshness_lifetime(response(status=status), NOTHING_SAID, PLAIN, NOW) == expected


@pytest.mark.parametrize(
    ("status", "lines", "policy", "seconds"),
    [
        pytest.param(200, ["Cache-Control: max-age=9"], PLAIN, 9.0, id="the response's word first"),
        pytest.param(200, ["Cache-Control: s-maxage=9, max-age=1"], PLAIN, 9.0, id="s-maxage"),
        pytest.param(200, [f"Expires: {http_date(NOW + 9)}"], PLAIN, 9.0, id="Expires"),
        pytest.param(200, ["Cache-Control: max-age=0"], PLAIN, 0.0, id="the response's word, of nothing"),
        pytest.param(200, [MODIFIED], PLAIN, 60.0, id="the policy before a heuristic"),
        pytest.param(302, [], policy_with(timeout=60, statuses=[302]), 60.0, id="named"),
        pytest.param(
            404, [], policy_with(timeout=60, statuses=[404]), ERROR_TIMEOUT, id="an error is short-lived"
        ),
        pytest.param(404, [], policy_with(timeout=5, statuses=[404]), 5.0, id="an error, a shorter timeout"),
        pytest.param(404, [], policy_with(timeout=60, statuses={404: 30}), 30.0, id="an error with a time"),
        pytest.param(200, [], policy_with(timeout=60, statuses={200: 30}), 30.0, id="any status with a time"),
        pytest.param(503, [], policy_with(timeout=60, statuses=[404]), None, id="an error not named"),
        pytest.param(
            404, ["Cache-Control: max-age=99"], policy_with(statuses={404: 30}), 99.0, id="an error's word first"
        ),
        pytest.param(200, [MODIFIED], HTTP, 10.0, id="a heuristic"),
        pytest.param(200, [], HTTP, 0.0, id="nothing tells"),
        pytest.param(302, [MODIFIED], HTTP, None, id="no heuristic for the status"),
    ],
)
def test_freshness_lifetime(status: int, lines: list[str], policy: CachePolicy, seconds: float | None) -> None:
    """The response says how long it is fresh, then the policy for its status, or a heuristic (§4.2)."""
    expected = None if seconds is None else pytest.approx(seconds)
    head = response(*lines, status=status)
    assert freshness_lifetime(head, response_directives(head.headers), policy, NOW) == expected


GENEROUS = CachePolicy(timeout=60, stale_while_revalidate=5, stale_if_error=7)


@pytest.mark.parametrize(
    ("said", "policy", "windows"),
    [
        pytest.param("", PLAIN, (0.0, 0.0), id="none"),
        pytest.param("", GENEROUS, (5.0, 7.0), id="the policy's"),
        pytest.param("stale-while-revalidate=1, stale-if-error=2", PLAIN, (1.0, 2.0), id="the response's"),
        pytest.param("stale-while-revalidate=0", GENEROUS, (0.0, 7.0), id="the response's first, of nothing"),
        pytest.param("stale-while-revalidate=x", GENEROUS, (5.0, 7.0), id="one that cannot be read"),
        pytest.param("must-revalidate, stale-if-error=9", GENEROUS, (0.0, 0.0), id="must-revalidate"),
        pytest.param("proxy-revalidate", GENEROUS, (0.0, 0.0), id="proxy-revalidate"),
        pytest.param("s-maxage=1", GENEROUS, (0.0, 0.0), id="s-maxage"),
        pytest.param("no-cache", GENEROUS, (0.0, 0.0), id="no-cache"),
        pytest.param('no-cache="a"', GENEROUS, (5.0, 7.0), id="no-cache of a field"),
    ],
)
def test_stale_windows(said: str, policy: CachePolicy, windows: tuple[float, float]) -> None:
    """The stale windows are the response's, else the policy's, and none where §4.2.4 forbids them."""
    head = response(f"Cache-Control: {said}")
    assert stale_windows(head, response_directives(head.headers), policy) == windows


@pytest.mark.parametrize("status", [400, 404, 410, 500, 503])
@pytest.mark.parametrize(
    ("said", "windows"),
    [
        pytest.param("", (0.0, 0.0), id="none"),
        pytest.param("stale-while-revalidate=1, stale-if-error=2", (1.0, 2.0), id="its own"),
    ],
)
def test_stale_windows_of_errors(status: int, said: str, windows: tuple[float, float]) -> None:
    """An error has the stale windows that it states, and none of the policy's."""
    head = response(f"Cache-Control: {said}", status=status)
    assert stale_windows(head, response_directives(head.headers), GENEROUS) == windows


@pytest.mark.parametrize(
    ("lines", "policy", "seconds"),
    [
        pytest.param([], PLAIN, 10.0, id="its lifetime"),
        pytest.param([], GENEROUS, 17.0, id="the longer window"),
        pytest.param(['ETag: "a"'], PLAIN, 10.0 + VALIDATED_FOR, id="to be validated by a tag"),
        pytest.param([MODIFIED], PLAIN, 10.0 + VALIDATED_FOR, id="to be validated by a date"),
        pytest.param(
            ['ETag: "a"', "Cache-Control: stale-if-error=9999"], PLAIN, 10.0 + 9999, id="a window beyond that"
        ),
        pytest.param([], HTTP, 10.0 + VALIDATED_FOR, id="for failures"),
        pytest.param([], CAREFUL_HTTP, 10.0, id="not for failures"),
        pytest.param([":404"], HTTP, 10.0, id="an error, which stands in for no failure"),
        pytest.param([":404", 'ETag: "a"'], HTTP, 10.0, id="an error, which no 304 is about"),
    ],
)
def test_keep_for(lines: list[str], policy: CachePolicy, seconds: float) -> None:
    """The backend keeps an entry as long as it may be of use: fresh, stale, or validated."""
    head = response(*(line for line in lines if line[0] != ":"), status=404 if ":404" in lines else 200)
    windows = stale_windows(head, response_directives(head.headers), policy)
    assert keep_for(head, 10.0, windows, policy) == seconds


# What is answered.


@pytest.mark.parametrize(
    ("age", "asked", "said", "expected"),
    [
        pytest.param(0, "", "", Hit(0, 60), id="new"),
        pytest.param(59, "", "", Hit(59, 1), id="a second before the edge"),
        pytest.param(60, "", "", Forward(Fwd.STALE), id="at the edge"),
        pytest.param(0, "no-cache", "", Forward(Fwd.REQUEST, Refusal.REQUEST_NO_CACHE), id="no-cache asked"),
        pytest.param(10, "max-age=10", "", Hit(10, 50), id="as old as asked"),
        pytest.param(11, "max-age=10", "", Forward(Fwd.REQUEST, Refusal.REQUEST_MAX_AGE), id="older than asked"),
        pytest.param(0, "max-age=0", "", Hit(0, 60), id="max-age=0 of what is new"),
        pytest.param(10, "max-age=9999", "", Hit(10, 50), id="max-age lengthens nothing"),
        pytest.param(60, "max-age=9999", "", Forward(Fwd.STALE), id="max-age does not make it fresh"),
        pytest.param(10, "min-fresh=50", "", Hit(10, 50), id="fresh as long as asked"),
        pytest.param(
            10,
            "min-fresh=51",
            "",
            Forward(Fwd.REQUEST, Refusal.REQUEST_MIN_FRESH),
            id="not fresh as long as asked",
        ),
        pytest.param(70, "max-stale=10", "", Hit(70, -10), id="as stale as asked"),
        pytest.param(71, "max-stale=10", "", Forward(Fwd.STALE), id="more stale than asked"),
        pytest.param(9999, "max-stale", "", Hit(9999, -9939), id="stale of any age"),
        pytest.param(60, "max-stale=0", "", Hit(60, 0), id="stale by nothing"),
        pytest.param(70, "max-stale", "must-revalidate", Forward(Fwd.STALE), id="must-revalidate"),
        pytest.param(70, "max-stale", "proxy-revalidate", Forward(Fwd.STALE), id="proxy-revalidate"),
        pytest.param(70, "max-stale", "s-maxage=60", Forward(Fwd.STALE), id="s-maxage"),
        pytest.param(0, "", "no-cache", Forward(Fwd.STALE), id="no-cache said"),
        pytest.param(0, "max-stale", "no-cache", Forward(Fwd.STALE), id="no-cache said, max-stale asked"),
        pytest.param(0, "", 'no-cache="x-a"', Hit(0, 60), id="no-cache said of a field"),
        pytest.param(0, "", "must-revalidate", Hit(0, 60), id="must-revalidate while fresh"),
        pytest.param(70, "max-stale, max-age=80", "", Hit(70, -10), id="max-stale beside max-age"),
        pytest.param(
            70,
            "max-stale, max-age=60",
            "",
            Forward(Fwd.STALE, Refusal.REQUEST_MAX_AGE),
            id="older, max-stale or not",
        ),
        pytest.param(
            70,
            "max-stale, min-fresh=0",
            "",
            Forward(Fwd.STALE, Refusal.REQUEST_MIN_FRESH),
            id="min-fresh beside max-stale",
        ),
        pytest.param(0, "only-if-cached", "", Hit(0, 60), id="only-if-cached"),
    ],
)
def test_select(age: float, asked: str, said: str, expected: Hit | Forward) -> None:
    """A stored response answers while it is fresh, or as stale as client and directives let it be (§4, §5.2.1)."""
    wanted = request_directives(fields(f"Cache-Control: {asked}")) if asked else NOTHING_ASKED
    found = stored(f"Cache-Control: {said}")
    assert select(request(), wanted, found, PLAIN, NOW + age) == expected


@pytest.mark.parametrize(
    ("ahead", "expected"),
    [
        pytest.param(1, Hit(0, 60), id="about the same time"),
        pytest.param(1.5, Hit(0, 0, refresh=True), id="ahead"),
        pytest.param(86_400, Hit(0, 0, refresh=True), id="a day ahead"),
    ],
)
def test_received_ahead(ahead: float, expected: Hit) -> None:
    """What was received at a time yet to come, by the clock of another host, is not taken to be fresh."""
    found = stored("Cache-Control: max-age=60", stale_while_revalidate=5)
    assert select(request(), NOTHING_ASKED, found, PLAIN, NOW - ahead) == expected


@pytest.mark.parametrize(
    ("age", "asked", "said", "expected"),
    [
        pytest.param(60, "", "", Hit(60, 0, refresh=True), id="at the edge"),
        pytest.param(65, "", "", Hit(65, -5, refresh=True), id="as long as granted"),
        pytest.param(66, "", "", Forward(Fwd.STALE), id="longer than granted"),
        pytest.param(59, "", "", Hit(59, 1), id="fresh"),
        pytest.param(65, "", "must-revalidate", Forward(Fwd.STALE), id="must-revalidate"),
        pytest.param(65, "max-age=100", "", Forward(Fwd.STALE), id="max-age asks for what is fresh"),
        pytest.param(65, "max-stale=3", "", Forward(Fwd.STALE), id="max-stale asks for less"),
        pytest.param(65, "max-stale=9", "", Hit(65, -5, refresh=True), id="max-stale asks for more"),
        pytest.param(69, "max-stale=9", "", Hit(69, -9), id="max-stale beyond the window"),
        pytest.param(65, "no-cache", "", Forward(Fwd.STALE, Refusal.REQUEST_NO_CACHE), id="no-cache asked"),
    ],
)
def test_stale_while_revalidate(age: float, asked: str, said: str, expected: Hit | Forward) -> None:
    """Within the window a stale response answers who does not ask for better, and is fetched (RFC 5861)."""
    wanted = request_directives(fields(f"Cache-Control: {asked}")) if asked else NOTHING_ASKED
    found = stored(f"Cache-Control: {said}", stale_while_revalidate=5)
    assert select(request(), wanted, found, PLAIN, NOW + age) == expected


@pytest.mark.parametrize(
    ("age", "found", "asked", "expected"),
    [
        pytest.param(0, stored(), NOTHING_ASKED, Forward(Fwd.STALE), id="fresh but for the mark"),
        pytest.param(
            0, stored(stale_while_revalidate=5), NOTHING_ASKED, Hit(0, 0, refresh=True), id="in the window"
        ),
        pytest.param(
            65, stored(stale_while_revalidate=5), NOTHING_ASKED, Hit(65, -5, refresh=True), id="stale before"
        ),
        pytest.param(
            66, stored(stale_while_revalidate=5), NOTHING_ASKED, Forward(Fwd.STALE), id="beyond the window"
        ),
        pytest.param(0, stored(), RequestDirectives(max_stale=99), Forward(Fwd.STALE), id="max-stale"),
        pytest.param(
            0, stored(stale_if_error=5), NOTHING_ASKED, Forward(Fwd.STALE, rescue=True), id="for failures"
        ),
    ],
)
def test_marked_stale(age: float, found: Any, asked: RequestDirectives, expected: Hit | Forward) -> None:
    """What was softly invalidated is stale from the edge of its freshness, and no client can overlook it."""
    assert select(request(), asked, found, PLAIN, NOW + age, marked_stale=True) == expected


@pytest.mark.parametrize(
    ("age", "policy", "options", "said", "rescue"),
    [
        pytest.param(60, PLAIN, {}, "", False, id="no window"),
        pytest.param(65, PLAIN, {"stale_if_error": 5}, "", True, id="in the window"),
        pytest.param(66, PLAIN, {"stale_if_error": 5}, "", False, id="beyond the window"),
        pytest.param(65, PLAIN, {"stale_if_error": 5}, "must-revalidate", False, id="must-revalidate"),
        pytest.param(65, PLAIN, {"stale_if_error": 5}, "s-maxage=60", False, id="s-maxage"),
        pytest.param(0, PLAIN, {"stale_if_error": 5}, "no-cache", False, id="no-cache"),
        pytest.param(65, PLAIN, {"stale_if_error": 5, "status": 500}, "", False, id="an error is no rescue"),
        pytest.param(999, HTTP, {}, "", True, id="HTTP, stale on failure"),
        pytest.param(999, HTTP, {}, "must-revalidate", False, id="HTTP, must-revalidate"),
        pytest.param(999, HTTP, {"stale_if_error": 5}, "stale-if-error=5", False, id="HTTP, beyond what it says"),
        pytest.param(999, HTTP, {"status": 503}, "", False, id="HTTP, an error"),
        pytest.param(999, CAREFUL_HTTP, {}, "", False, id="HTTP with our default"),
        pytest.param(999, CAREFUL_HTTP, {"stale_if_error": 1000}, "", True, id="HTTP with our default, a window"),
    ],
)
def test_rescue(age: float, policy: CachePolicy, options: dict[str, Any], said: str, rescue: bool) -> None:
    """A stale response stands in for a failure if it or the policy says so, and nothing forbids it (RFC 5861)."""
    found = stored(f"Cache-Control: {said}", **options)
    assert select(request(), NOTHING_ASKED, found, policy, NOW + age) == Forward(Fwd.STALE, rescue=rescue)


@pytest.mark.parametrize(
    ("lines", "said", "policy", "expected"),
    [
        pytest.param([ALICE], "", PLAIN, Forward(Fwd.BYPASS, Refusal.AUTHORIZATION), id="authorization"),
        pytest.param([ALICE], "must-revalidate", PLAIN, Hit(0, 60), id="authorization, shared"),
        pytest.param([SESSION], "must-revalidate", PLAIN, Forward(Fwd.BYPASS, Refusal.COOKIE), id="cookie"),
        pytest.param([SESSION], "public", PLAIN, Hit(0, 60), id="cookie, shared"),
        pytest.param([SESSION], "", policy_with(exclude_headers=["cookie"]), Hit(0, 60), id="cookie, declared"),
        pytest.param([ALICE, SESSION], "", HTTP, Hit(0, 60), id="HTTP stored what nobody asked with a credential"),
    ],
)
def test_credentials_are_not_answered(
    lines: list[str], said: str, policy: CachePolicy, expected: Hit | Forward
) -> None:
    """Who comes with a credential gets what is stored only if it is shared."""
    found = stored(f"Cache-Control: {said}")
    assert select(request(*lines), NOTHING_ASKED, found, policy, NOW) == expected


seconds = st.none() | st.integers(0, 200)
asked_directives = st.builds(
    RequestDirectives,
    no_cache=st.booleans(),
    only_if_cached=st.booleans(),
    max_age=seconds,
    min_fresh=seconds,
    max_stale=seconds,
)
said_directives = st.lists(
    st.sampled_from(["no-cache", "must-revalidate", "proxy-revalidate", "s-maxage=60", "public", "max-age=60"]),
    unique=True,
).map(", ".join)


@given(asked_directives, said_directives, st.integers(0, 200), st.integers(0, 100), st.booleans())
def test_clients_limit_alone(asked: RequestDirectives, said: str, age: int, window: int, marked: bool) -> None:
    """Whatever a client asks but max-stale, it gets from the cache at most what it gets without asking."""
    found = stored(f"Cache-Control: {said}", stale_while_revalidate=window)
    answer = select(request(), asked, found, PLAIN, NOW + age, marked_stale=marked)
    unasked = select(request(), NOTHING_ASKED, found, PLAIN, NOW + age, marked_stale=marked)
    if asked.max_stale is None and isinstance(answer, Hit):
        assert answer == unasked
    if isinstance(answer, Hit):
        assert not asked.no_cache
        assert asked.max_age is None or answer.age <= asked.max_age
        assert asked.min_fresh is None or answer.ttl >= asked.min_fresh


@given(asked_directives, said_directives, st.integers(0, 200), st.integers(0, 100))
def test_forbidden_stale(asked: RequestDirectives, said: str, age: int, window: int) -> None:
    """Nothing that a client asks or a window grants makes stale what must be validated (§4.2.4)."""
    found = stored(f"Cache-Control: {said}", stale_while_revalidate=window)
    answer = select(request(), asked, found, HTTP, NOW + age)
    directives = set(said.split(", "))
    if "no-cache" in directives:
        assert isinstance(answer, Forward)
    if directives & {"no-cache", "must-revalidate", "proxy-revalidate", "s-maxage=60"} and age >= 60:
        assert isinstance(answer, Forward)
        assert not answer.rescue


# What is forgotten.

TARGET = "http://h/users/7"


@pytest.mark.parametrize(
    ("method", "status", "lines", "urls"),
    [
        pytest.param("PUT", 200, [], [TARGET], id="the target"),
        pytest.param("POST", 303, [], [TARGET], id="a redirect is no error"),
        pytest.param("DELETE", 204, [], [TARGET], id="DELETE"),
        pytest.param("FROBNICATE", 200, [], [TARGET], id="an unknown method"),
        pytest.param("PUT", 404, ["Location: /users"], [], id="a client's error"),
        pytest.param("PUT", 500, [], [], id="a server's error"),
        pytest.param("PUT", 103, [], [], id="not final"),
        pytest.param("POST", 201, ["Location: /users/8"], [TARGET, "http://h/users/8"], id="Location"),
        pytest.param("POST", 201, ["Location: 8"], [TARGET, "http://h/users/8"], id="a relative Location"),
        pytest.param("POST", 201, ["Location: ../x?a=1#b"], [TARGET, "http://h/x?a=1"], id="dots and a fragment"),
        pytest.param("PUT", 200, ["Content-Location: /a"], [TARGET, "http://h/a"], id="Content-Location"),
        pytest.param(
            "PUT", 200, ["Location: /a", "Content-Location: /b"], [TARGET, "http://h/a", "http://h/b"], id="both"
        ),
        pytest.param("PUT", 200, [f"Location: {TARGET}"], [TARGET], id="the target again"),
        pytest.param("PUT", 200, ["Location: http://H/a"], [TARGET, "http://h/a"], id="a host in another case"),
        pytest.param("PUT", 200, ["Location: http://h:80/a"], [TARGET, "http://h/a"], id="the default port"),
        pytest.param("PUT", 200, ["Location: http://h/a/../b"], [TARGET, "http://h/b"], id="dots in a whole URL"),
        pytest.param("PUT", 200, ["Location: /caf\xc3\xa9"], [TARGET, "http://h/caf%C3%A9"], id="bytes of UTF-8"),
        pytest.param("PUT", 200, ["Location: http://h:81/a"], [TARGET], id="another port"),
        pytest.param("PUT", 200, ["Location: https://h/a"], [TARGET], id="another scheme"),
        pytest.param("PUT", 200, ["Location: http://evil/a"], [TARGET], id="another host"),
        pytest.param("PUT", 200, ["Location: //evil/a"], [TARGET], id="another host without scheme"),
        pytest.param("PUT", 200, ["Location: http://h@evil/a"], [TARGET], id="another host behind a user"),
        pytest.param("PUT", 200, ["Location: http://h:x/a"], [TARGET], id="a port that is none"),
        pytest.param("PUT", 200, ["Location: http://[/a"], [TARGET], id="a URL that is none"),
        pytest.param("PUT", 200, ["Location: mailto:a@h"], [TARGET], id="no place"),
    ],
)
def test_to_invalidate(method: str, status: int, lines: list[str], urls: list[str]) -> None:
    """A good answer to an unsafe method invalidates its target, and what it names of the same origin (§4.4)."""
    assert to_invalidate(method, TARGET, status, fields(*lines)) == tuple(urls)


@pytest.mark.parametrize("method", sorted(SAFE_METHODS))
def test_safe_methods(method: str) -> None:
    """A safe method invalidates nothing, whatever its answer names."""
    assert to_invalidate(method, TARGET, 200, fields("Location: /a")) == ()


@given(st.text(st.characters(max_codepoint=255)), st.sampled_from(["Location", "Content-Location"]))
def test_only_the_same_origin(value: str, name: str) -> None:
    """No value raises, and whatever is named beside the target has its origin."""
    headers = ((name.encode(), value.encode("latin-1")),)
    target, *others = to_invalidate("POST", TARGET, 200, headers)
    assert target == TARGET
    assert all(url == "http://h" or url.startswith(("http://h/", "http://h?")) for url in others)


SCHEMES = ("http:", "https:", "mailto:")
HOSTS = ("//h", "//H:80", "//h:81", "//evil")
REST = (
    "/",
    "//",
    "..",
    "../",
    "./",
    ".",
    "/../",
    "a",
    "b;x=1",
    "7",
    "%2e%2e",
    "?",
    "?a=1",
    "#",
    "#f",
    ":",
    "=",
    "@",
)
_pieces = st.sampled_from([*SCHEMES, *HOSTS, *REST])


@settings(max_examples=500)
@given(st.lists(_pieces, max_size=5).map("".join))
def test_references_by_the_rules(reference: str) -> None:
    """A reference is resolved step by step as RFC 3986 §5.2.2 writes it, and counts if its origin is the target's.

    Those with a scheme or slashes before no authority are no URLs of HTTP (RFC 9110 §4.2.1). The library joins
    paths without their empty segments, and leaves dots in absolute URLs.
    """
    their_scheme, their_authority, their_path, _ = taken_apart(reference)
    assume(their_authority if their_scheme is not None else their_authority != "")
    assume("//" not in their_path and not (their_authority and "/." in their_path))
    scheme, authority, rest = resolved_by_rule(TARGET, reference)
    same = scheme == "http" and authority is not None and authority.lower() in ("h", "h:80", "h:")
    expected = [TARGET, f"http://h{rest}"] if same else [TARGET]
    found = to_invalidate("PUT", TARGET, 200, fields(f"Location: {reference}"))
    assert list(found) == list(dict.fromkeys(expected))


def resolved_by_rule(base: str, reference: str) -> tuple[str | None, str | None, str]:
    """Return scheme, authority, and path with query, by the pseudocode of RFC 3986 §5.2.2."""
    scheme, authority, path, query = taken_apart(base)
    their_scheme, their_authority, their_path, their_query = taken_apart(reference)
    if their_scheme is not None:
        return their_scheme, their_authority, without_dots(their_path) + written_query(their_query)
    if their_authority is not None:
        return scheme, their_authority, without_dots(their_path) + written_query(their_query)
    if not their_path:
        return scheme, authority, path + written_query(query if their_query is None else their_query)
    merged = their_path if their_path.startswith("/") else path[: path.rfind("/") + 1] + their_path
    return scheme, authority, without_dots(merged) + written_query(their_query)


def taken_apart(text: str) -> tuple[str | None, str | None, str, str | None]:
    """Return scheme, authority, path and query of a reference (RFC 3986, appendix B)."""
    match = re.fullmatch(r"(?:([A-Za-z][A-Za-z0-9+.-]*):)?(?://([^/?#]*))?([^?#]*)(?:\?([^#]*))?(?:#.*)?", text)
    assert match is not None
    return match[1], match[2], match[3], match[4]


def written_query(query: str | None) -> str:
    """Return *query* behind its mark; an empty one is none to an invalidation, which reaches all queries."""
    return f"?{query}" if query else ""


def without_dots(path: str) -> str:
    """Return *path* without the segments ``.`` and ``..`` (RFC 3986 §5.2.4)."""
    done = ""
    while path:
        if path.startswith(("../", "./")):
            path = path.partition("/")[2]
        elif path.startswith("/./") or path == "/.":
            path = "/" + path[3:]
        elif path.startswith("/../") or path == "/..":
            path = "/" + path[4:]
            done = done[: max(done.rfind("/"), 0)]
        elif path in (".", ".."):
            path = ""
        else:
            end = path.find("/", 1)
            end = len(path) if end < 0 else end
            done, path = done + path[:end], path[end:]
    return done


@given(
    st.lists(
        st.sampled_from(
            [
                "Cache-Control: max-age=99999999999",
                "Cache-Control: s-maxage=x",
                "Cache-Control: public",
                "Expires: 0",
            ]
            + [
                f"{name}: {http_date(each)}"
                for name in ("Date", "Expires", "Last-Modified")
                for each in (0, NOW, 1e11)
            ]
        ),
        max_size=4,
    ),
    st.sampled_from([200, 404, 500]),
    st.sampled_from([PLAIN, HTTP, GENEROUS]),
)
def test_bounds_of_lifetimes(lines: list[str], status: int, policy: CachePolicy) -> None:
    """A lifetime is never negative, nor is what the backend is told, and that is never less (§4.2.1)."""
    head = response(*lines, status=status)
    said = response_directives(head.headers)
    lifetime = freshness_lifetime(head, said, policy, NOW)
    if lifetime is not None:
        assert 0 <= lifetime <= keep_for(head, lifetime, stale_windows(head, said, policy), policy) < 1e12
        stated = "max-age" in str(lines) or "s-maxage" in str(lines)
        assert lifetime <= LONGEST or not stated


@pytest.mark.alone
@pytest.mark.parametrize(
    "value",
    [
        pytest.param("/.." * 66_000, id="dots"),
        pytest.param("/" * 200_000, id="slashes"),
        pytest.param("http://" + "[" * 200_000, id="brackets"),
        pytest.param("//h:" + "9" * 200_000, id="port"),
        pytest.param("?#" * 100_000, id="marks"),
    ],
)
def test_time(value: str) -> None:
    """A reference of 200 KB is resolved in time in proportion to it: some 50 ms, at most 1000 here."""
    assert_within(1.0, to_invalidate, "POST", TARGET, 200, fields(f"Location: {value}"))


anything = st.lists(
    st.tuples(
        st.sampled_from(
            [b"cache-control", b"expires", b"date", b"age", b"vary", b"etag", b"last-modified", b"content-type"]
        ),
        st.binary(max_size=30),
    ),
    max_size=6,
).map(tuple)


@given(anything, anything, st.integers(100, 599), st.sampled_from([PLAIN, HTTP, GENEROUS]), st.floats(-1e9, 1e12))
def test_any_message(asking: Any, answer: Any, status: int, policy: CachePolicy, now: float) -> None:
    """No message raises, in any of the questions."""
    asker, head = RequestHead("GET", asking), ResponseHead(status, answer)
    asked = asked_by(asker, policy)
    why_pass(asker, asked)
    said = response_directives(answer)
    why_not_store(asker, head, said, policy, NOW)
    withheld_fields(said, policy)
    select(asker, asked, StoredResponse(status, answer, b"", NOW, NOW, 60.0), policy, now)


@pytest.mark.parametrize(
    ("eager", "chance", "ttl", "refresh"),
    [
        pytest.param(0.0, 1e-9, 0.001, False, id="not asked for"),
        pytest.param(1.0, 1.0, 0.001, False, id="the smallest chance"),
        pytest.param(1.0, math.exp(-1), 1.9, True, id="within the time that the handler took"),
        pytest.param(1.0, math.exp(-1), 2.1, False, id="before it"),
        pytest.param(3.0, math.exp(-1), 5.9, True, id="three times as eager"),
        pytest.param(1.0, math.exp(-5), 9.9, True, id="a larger chance"),
        pytest.param(1.0, math.exp(-5), 10.1, False, id="before that"),
    ],
)
def test_early_refresh(eager: float, chance: float, ttl: float, refresh: bool) -> None:
    """A fresh response is fetched anew by chance, the likelier the nearer its end and the slower its handler."""
    kept, policy = stored(lifetime=60.0, delay=2.0), CachePolicy(early_refresh=eager)
    decision = select(request(), NOTHING_ASKED, kept, policy, NOW + 58.0 - ttl, chance=chance)
    assert isinstance(decision, Hit)
    assert decision.ttl == pytest.approx(ttl, abs=1e-6)
    assert decision.refresh is refresh

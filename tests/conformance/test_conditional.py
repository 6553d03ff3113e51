"""Conditional requests to what is stored and to what comes just now (RFC 9110 §13, §15.4.5; RFC 9111 §4.3)."""

from __future__ import annotations

import pytest

from app_cache import CachePolicy
from tests.clients import told
from tests.conformance.origin import BOTH, URL, Origin, asked_twice, is_hit, raw
from tests.rules.samples import NOW, http_date

pytestmark = pytest.mark.anyio

FRESH = "Cache-Control: max-age=60"
STRONG, WEAK = 'ETag: "a"', 'ETag: W/"a"'
MODIFIED = "Last-Modified: {now-100}"
START = 1_000_000.0


def since(seconds: float) -> str:
    """Return the If-Modified-Since of *seconds* after the test began."""
    return f"If-Modified-Since: {http_date(START + seconds)}"


@BOTH
@pytest.mark.parametrize("stored", [True, False], ids=["stored", "just now"])
@pytest.mark.parametrize(
    ("said", "asked", "status"),
    [
        pytest.param([STRONG], ['If-None-Match: "a"'], 304, id="the tag"),
        pytest.param([STRONG], ['If-None-Match: "b"'], 200, id="another tag"),
        pytest.param([STRONG], ['If-None-Match: "A"'], 200, id="another case"),
        pytest.param([STRONG], ['If-None-Match: W/"a"'], 304, id="weak in the request"),
        pytest.param([WEAK], ['If-None-Match: "a"'], 304, id="weak in the response"),
        pytest.param([WEAK], ['If-None-Match: W/"a"'], 304, id="weak in both"),
        pytest.param([STRONG], ['If-None-Match: w/"a"'], 200, id="weakness has one case"),
        pytest.param([STRONG], ['If-None-Match: "b", "a"'], 304, id="in a list"),
        pytest.param([STRONG], ['If-None-Match: "b","a" , W/"c"'], 304, id="in a list with blanks"),
        pytest.param([STRONG], ['If-None-Match: "b"', 'If-None-Match: "a"'], 304, id="on two lines"),
        pytest.param(['ETag: "a, b"'], ['If-None-Match: "c", "a, b"'], 304, id="a comma in the tag"),
        pytest.param(['ETag: "a, b"'], ['If-None-Match: "a"'], 200, id="what comes before the comma"),
        pytest.param(['ETag: "a\\"'], ['If-None-Match: "a\\"'], 304, id="a backslash in the tag"),
        pytest.param(['ETag: ""'], ['If-None-Match: ""'], 304, id="an empty tag"),
        pytest.param(['ETag: "\u00e9"'], ['If-None-Match: "\u00e9"'], 304, id="bytes in the tag"),
        pytest.param([STRONG], ["If-None-Match: *"], 304, id="any"),
        pytest.param([STRONG], ["If-None-Match: a"], 200, id="no quotes"),
        pytest.param([STRONG], ["If-None-Match:"], 200, id="nothing"),
        pytest.param([MODIFIED], [since(-100)], 304, id="the date"),
        pytest.param([MODIFIED], [since(-99)], 304, id="a later date"),
        pytest.param([MODIFIED], [since(-101)], 200, id="an earlier date"),
        pytest.param([MODIFIED], ["If-Modified-Since: Monday, 12-Jan-70 13:46:40 GMT"], 304, id="rfc850-date"),
        pytest.param([MODIFIED], ["If-Modified-Since: Mon Jan 12 13:46:40 1970"], 304, id="asctime-date"),
        pytest.param([MODIFIED], ["If-Modified-Since: x"], 200, id="what is no date"),
        pytest.param([MODIFIED], [since(0), since(0)], 200, id="two dates"),
        pytest.param([MODIFIED], ["If-Modified-Since: 1970-01-12T13:46:40Z"], 200, id="another format"),
        pytest.param([STRONG, MODIFIED], ['If-None-Match: "b"', since(0)], 200, id="the tag decides against"),
        pytest.param([STRONG, MODIFIED], ['If-None-Match: "a"', since(-999)], 304, id="the tag decides for"),
        pytest.param([MODIFIED], ['If-None-Match: "b"', since(0)], 200, id="a tag decides that is not there"),
        pytest.param([STRONG, MODIFIED], [since(-100)], 304, id="the date alone"),
    ],
)
async def test_conditions(
    said: list[str], asked: list[str], status: int, stored: bool, policy: CachePolicy
) -> None:
    """If-None-Match decides by weak comparison, else If-Modified-Since, for hits and misses (§13.1, §13.2.2)."""
    origin = Origin().says(FRESH, *said)
    async with origin.cached(policy) as client:
        if stored:
            await client.get(URL)
        for method in ("GET", "HEAD") if stored else ("GET",):
            answer = await client.request(method, URL, headers=raw(*asked))
            whole = status == 200 and method == "GET"
            assert (answer.status_code, answer.content) == (status, b"0123456789" if whole else b"")
            assert is_hit(answer) is stored
    assert len(origin.asked) == 1


@pytest.mark.parametrize(
    ("said", "asked", "status"),
    [
        pytest.param(["Date: {now-30}"], -30, 304, id="Date"),
        pytest.param(["Date: {now-30}"], -31, 200, id="before Date"),
        pytest.param([], 0, 304, id="receipt"),
        pytest.param([], -1, 200, id="before receipt"),
        pytest.param(["Date: x"], 0, 304, id="Date that is none"),
        pytest.param(["Last-Modified: x", "Date: {now-30}"], -30, 304, id="Last-Modified that is none"),
    ],
)
async def test_modified_since_without_last_modified(said: list[str], asked: float, status: int) -> None:
    """If-Modified-Since is compared with Date where there is no Last-Modified, or with the receipt (§4.3.2)."""
    answer = await asked_twice(Origin().says(FRESH, *said), then=(since(asked),))
    assert (answer.status_code, is_hit(answer)) == (status, True)


@pytest.mark.parametrize("status", [203, 204, 206, 301, 302, 404, 410, 412, 500])
async def test_other_statuses(status: int) -> None:
    """Conditions are ignored where the response without them has no representation (§13.2.1, §4.3.2)."""
    answer = await asked_twice(
        Origin().says(FRESH, STRONG, MODIFIED, status=status), then=('If-None-Match: "a"', since(0))
    )
    assert answer.status_code == status


@BOTH
@pytest.mark.parametrize("stored", [True, False], ids=["stored", "just now"])
async def test_fields_of_a_304(stored: bool, policy: CachePolicy) -> None:
    """A 304 has the fields that a 200 would have, but for those that describe its content (§15.4.5)."""
    kept = [
        FRESH,
        STRONG,
        MODIFIED,
        "Date: {now-1}",
        "Expires: {now+60}",
        "Vary: X-A",
        "Content-Location: /x",
        "CDN-Cache-Control: max-age=9",
        "X-A: 1",
        "X-A: 2",
    ]
    dropped = ["Content-Type: a/b", "Content-Length: 10", "Content-Encoding: x", "Content-Language: de"]
    origin = Origin().says(*kept, *dropped)
    async with origin.cached(policy) as client:
        if stored:
            await client.get(URL)
        answer = await client.get(URL, headers={"if-none-match": '"a"'})
    assert answer.status_code == 304
    found = [(name, value) for name, value in answer.headers.raw if name not in (b"cache-status", b"age")]
    assert found == [*raw(*(origin._dated(line) for line in kept))]
    assert ("age" in answer.headers) is stored


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param(['If-Match: "a"'], id="If-Match"),
        pytest.param(["If-Match: *"], id="If-Match of any"),
        pytest.param([f"If-Unmodified-Since: {http_date(NOW)}"], id="If-Unmodified-Since"),
        pytest.param(['If-Match: "a"', 'If-None-Match: "a"'], id="beside If-None-Match"),
    ],
)
async def test_conditions_for_the_origin(asked: list[str]) -> None:
    """If-Match and If-Unmodified-Since are for the origin: it gets them, and all other conditions (§4.3.2)."""
    origin = Origin().says(FRESH, STRONG).says(FRESH, status=412, body=b"").says(FRESH)
    async with origin.cached() as client:
        await client.get(URL)
        assert (await client.get(URL, headers=raw(*asked))).status_code == 412
        assert is_hit(await client.get(URL))
    names = {line.partition(":")[0].lower() for line in asked}
    assert names <= origin.asked[1][1].keys()


@BOTH
@pytest.mark.parametrize(
    ("said", "expected"),
    [
        pytest.param([STRONG], {"if-none-match": '"a"'}, id="a tag"),
        pytest.param([WEAK], {"if-none-match": 'W/"a"'}, id="a weak tag"),
        pytest.param([MODIFIED], {"if-modified-since": http_date(START - 100)}, id="a date"),
        pytest.param(
            [STRONG, MODIFIED],
            {"if-none-match": '"a"', "if-modified-since": http_date(START - 100)},
            id="both",
        ),
        pytest.param(
            ["Last-Modified: Mon Jan 12 13:45:00 1970"],
            {"if-modified-since": "Mon Jan 12 13:45:00 1970"},
            id="as it was written",
        ),
        pytest.param([], {}, id="none"),
    ],
)
async def test_what_the_origin_is_asked(said: list[str], expected: dict[str, str], policy: CachePolicy) -> None:
    """A stale response is validated by its own tag and date, in place of the client's conditions (§4.3.1)."""
    origin = Origin().says(FRESH, *said).says(FRESH, body=b"new")
    asked = ('If-None-Match: "z"', since(-5), "Range: bytes=0-1", 'If-Range: "z"', "X-A: 1")
    await asked_twice(origin, then=asked, after=60, policy=policy)
    _, fields = origin.asked[1]
    conditional = ("if-none-match", "if-modified-since", "range", "if-range")
    assert {name: fields[name] for name in conditional if name in fields} == expected
    assert fields["x-a"] == "1"


@BOTH
@pytest.mark.parametrize(
    ("asked", "status"),
    [
        pytest.param([], 200, id="no condition"),
        pytest.param(['If-None-Match: "a"'], 304, id="the tag"),
        pytest.param(['If-None-Match: "z"'], 200, id="another tag: the client has not what the 304 is about"),
        pytest.param(['If-None-Match: "z", W/"a"'], 304, id="in a list"),
    ],
)
async def test_who_gets_a_304(asked: list[str], status: int, policy: CachePolicy) -> None:
    """After a 304 each client gets what its own conditions give of the freshened response (§4.3.2, §4.3.4)."""
    origin = Origin().says(FRESH, STRONG, "X-A: 1").says(FRESH, STRONG, "X-A: 2", status=304, body=b"")
    answer = await asked_twice(origin, then=tuple(asked), after=60, policy=policy)
    assert (answer.status_code, answer.text) == (status, "0123456789" if status == 200 else "")
    assert answer.headers["x-a"] == "2"


@BOTH
@pytest.mark.parametrize(
    ("said", "expected"),
    [
        pytest.param(["X-A: 3"], ["3"], id="one line for two"),
        pytest.param(["X-A: 3", "x-a: 4", "X-A: 5"], ["3", "4", "5"], id="three lines for two"),
        pytest.param([], ["1", "2"], id="none"),
        pytest.param(["X-A: 3", "Connection: x-a"], ["1", "2"], id="of one connection"),
        pytest.param(["X-A:"], [""], id="empty"),
    ],
)
async def test_updated_fields(said: list[str], expected: list[str], policy: CachePolicy) -> None:
    """A 304 replaces all lines of each field that it has, and leaves the others as they were (§3.2)."""
    origin = Origin().says(FRESH, STRONG, "X-A: 1", "X-B: b", "X-A: 2").says(FRESH, *said, status=304, body=b"")
    async with origin.cached(policy) as client:
        await client.get(URL)
        origin.clock.advance(60)
        for expected_told in ("fwd=stale; fwd-status=304; stored", "hit"):
            answer = await client.get(URL)
            assert (answer.headers.get_list("x-a"), answer.headers["x-b"]) == (expected, "b")
            assert (answer.text, told(answer)) == ("0123456789", expected_told)


@pytest.mark.parametrize("name", ["Content-Length: 3", "Content-Encoding: x", "Content-Range: bytes 0-2/3"])
async def test_fields_that_no_update_changes(name: str) -> None:
    """What says how the stored body is read stays as it was (§3.2)."""
    origin = Origin().says(FRESH, STRONG, "Content-Length: 10").says(FRESH, name, status=304, body=b"")
    async with origin.cached() as client:
        await client.get(URL)
        origin.clock.advance(60)
        for _ in range(2):
            answer = await client.get(URL)
            assert (answer.text, answer.headers["content-length"]) == ("0123456789", "10")
            assert not {"content-encoding", "content-range"} & answer.headers.keys()


@BOTH
@pytest.mark.parametrize(
    "line",
    [
        "Cache-Control: no-store",
        "Cache-Control: private, max-age=60",
        "Cache-Control: no-cache",
        "Cache-Control: max-age=0",
        "Vary: *",
    ],
)
async def test_a_304_that_forbids(line: str, policy: CachePolicy) -> None:
    """What a 304 says of storing and reuse holds from then on; its client gets the response (§4.3.4)."""
    origin = Origin().says(FRESH, STRONG).says(line, STRONG, status=304, body=b"").says(line, STRONG)
    async with origin.cached(policy) as client:
        await client.get(URL)
        origin.clock.advance(60)
        for _ in range(2):
            answer = await client.get(URL)
            assert (answer.status_code, answer.text, is_hit(answer)) == (200, "0123456789", False)


@BOTH
@pytest.mark.parametrize("status", [200, 203, 404, 410, 301])
async def test_a_full_answer(status: int, policy: CachePolicy) -> None:
    """A full answer to a validation is what the client gets, and takes the place of the stored one (§4.3.3)."""
    origin = Origin().says(FRESH, STRONG).says(FRESH, 'ETag: "b"', status=status, body=b"new")
    async with origin.cached(policy) as client:
        await client.get(URL)
        origin.clock.advance(60)
        for hit in (False, True):
            answer = await client.get(URL)
            assert (answer.status_code, answer.text, is_hit(answer)) == (status, "new", hit)


@BOTH
async def test_an_error_while_validating(policy: CachePolicy) -> None:
    """A 5xx to a validation reaches the client of who must not serve stale, and the response stays (§4.3.3)."""
    origin = Origin().says(FRESH + ", must-revalidate", STRONG).says(status=502, body=b"")
    origin.says(FRESH, STRONG, status=304, body=b"")
    async with origin.cached(policy) as client:
        await client.get(URL)
        origin.clock.advance(60)
        assert (await client.get(URL)).status_code == 502
        answer = await client.get(URL)
    assert (answer.text, told(answer)) == ("0123456789", "fwd=stale; fwd-status=304; stored")


async def test_no_cache_is_validated() -> None:
    """What says ``no-cache`` is stored, and each use of it validated (§5.2.2.4)."""
    said = ("Cache-Control: no-cache, max-age=60", STRONG)
    origin = Origin().says(*said).says(*said, status=304, body=b"")
    async with origin.cached() as client:
        await client.get(URL)
        for _ in range(3):
            answer = await client.get(URL)
            assert (answer.text, told(answer)) == ("0123456789", "fwd=stale; fwd-status=304; stored")
    assert [fields.get("if-none-match") for _, fields in origin.asked] == [None, '"a"', '"a"', '"a"']


async def test_each_variant_by_its_own_tag() -> None:
    """A stale variant is validated by its own tag, and its 304 freshens it alone (§4.1, §4.3.4)."""
    origin = Origin()
    for value in "ab":
        origin.says(FRESH, "Vary: X-A", f'ETag: "{value}"', body=value.encode())
    origin.says(FRESH, "Vary: X-A", 'ETag: "b"', "X-B: new", status=304, body=b"").says(FRESH, body=b"more")
    async with origin.cached() as client:
        for value in "ab":
            await client.get(URL, headers={"x-a": value})
        origin.clock.advance(60)
        answer = await client.get(URL, headers={"x-a": "b"})
        assert (answer.text, answer.headers["x-b"]) == ("b", "new")
        assert is_hit(await client.get(URL, headers={"x-a": "b"}))
        assert (await client.get(URL, headers={"x-a": "a"})).text == "more"
    assert [fields.get("if-none-match") for _, fields in origin.asked[2:]] == ['"b"', '"a"']


@pytest.mark.parametrize("status", [404, 301, 410])
async def test_head_of_what_was_not_found(status: int) -> None:
    """A 200 to HEAD does not freshen a stored response of another status, which is stale then (§4.3.5)."""
    origin = Origin().says(FRESH, status=status, body=b"").says(FRESH, "X-A: 1", body=b"").says(FRESH, body=b"new")
    async with origin.cached() as client:
        await client.get(URL)
        await client.head(URL, headers={"cache-control": "no-cache"})
        assert (await client.get(URL)).text == "new"

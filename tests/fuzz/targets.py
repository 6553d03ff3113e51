"""Every parser and rule that takes text from outside, given any bytes: none raises, and each result makes sense.

The first byte of an input chooses the target, the rest is its text. Lines that it may be cut into stand between
newlines, which a server never lets into a field.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from app_cache.checks import MAX_PATTERN
from app_cache.errors import ConfigurationError
from app_cache.policy import CachePolicy
from app_cache.rules.cache_status import NAME, CacheStatus
from app_cache.rules.decisions import (
    Forward,
    Fwd,
    Hit,
    Refusal,
    answers_get,
    asked_by,
    freshness_lifetime,
    keep_for,
    select,
    stale_windows,
    to_invalidate,
    unshared_credential,
    why_not_store,
    why_pass,
    withheld_fields,
)
from app_cache.rules.directives import (
    LONGEST,
    delta_seconds,
    parse_directives,
    request_directives,
    response_directives,
)
from app_cache.rules.freshness import age_value, current_age, date_value, parse_http_date
from app_cache.rules.glob import compile_glob, fitted, literal_directory
from app_cache.rules.messages import (
    Headers,
    RequestHead,
    ResponseHead,
    StoredResponse,
    combined,
    end_to_end,
    field_lines,
    field_members,
    is_token,
    list_members,
    without,
)
from app_cache.rules.ranges import UNSATISFIABLE, if_range_holds, ranged, wanted_range
from app_cache.rules.structured import Token, parse_dictionary, parse_list, strings
from app_cache.rules.validators import (
    fields_of_304,
    freshened,
    head_agrees,
    identifies,
    not_modified,
    validating_headers,
    weakly_equal,
)
from app_cache.rules.variants import announced, variant, vary_fields

if TYPE_CHECKING:
    from collections.abc import Callable

NOW = 1_500_000_000.0
TARGET = "http://h/users/7"
POLICIES = (
    CachePolicy(),
    CachePolicy.http(),
    CachePolicy(timeout=9, statuses={404: None}, stale_while_revalidate=5, exclude_headers=("set-cookie",)),
)
NAMES = (
    *(b"cache-control", b"cdn-cache-control", b"expires", b"date", b"age", b"vary", b"etag", b"last-modified"),
    *(b"if-none-match", b"if-modified-since", b"if-range", b"range", b"pragma", b"authorization", b"cookie"),
    *(b"set-cookie", b"connection", b"content-length", b"content-type", b"content-range", b"location"),
    *(b"content-location", b"cache-groups", b"accept", b"accept-language", b"transfer-encoding"),
)


def one_input(data: bytes) -> None:
    """Give *data* to the target that it chooses."""
    if data:
        TARGETS[data[0] % len(TARGETS)](data[1:])


def fields_from(data: bytes) -> Headers:
    """Return a field of each line in *data*: its first byte chooses the name."""
    return tuple((NAMES[line[0] % len(NAMES)], line[1:]) for line in data.split(b"\n") if line)


def two_heads(data: bytes) -> tuple[Headers, Headers]:
    """Return the fields before and after the first empty line."""
    before, _, after = data.partition(b"\n\n")
    return fields_from(before), fields_from(after)


def fuzz_lists(data: bytes) -> None:
    """Lists have members without outer blanks, which are the same in lines of their own."""
    text = data.decode("latin-1")
    members = list_members(text)
    assert all(member == member.strip(" \t") != "" for member in members)
    lines = tuple((b"A", member.encode("latin-1")) for member in members)
    assert len(field_members(lines, b"a")) >= len(members)
    assert list_members(combined(((b"a", data),), b"a") or "") == members
    is_token(text)


def fuzz_fields(data: bytes) -> None:
    """Fields that are left out are gone, the others as they were."""
    headers = fields_from(data)
    kept = end_to_end(headers)
    assert set(kept) <= set(headers)
    assert end_to_end(kept) == kept
    assert not field_lines(kept, b"connection")
    assert without(headers, frozenset(NAMES)) == ()
    assert set(fields_of_304(headers)) <= set(headers)


def fuzz_directives(data: bytes) -> None:
    """Names of directives are tokens in lower case, and seconds have their bounds."""
    lines = data.decode("latin-1").split("\n")
    said = parse_directives(lines)
    assert all(is_token(name) and name == name.lower() for name in said)
    for argument in said.values():
        seconds = delta_seconds(argument)
        assert seconds is None or 0 <= seconds <= LONGEST


def fuzz_cache_control(data: bytes) -> None:
    """What forbids is heard wherever it stands as a member of its own, whatever else is there."""
    headers = fields_from(data)
    response = response_directives(headers)
    for each in (response.max_age, response.s_maxage, response.stale_while_revalidate, response.stale_if_error):
        assert each is None or 0 <= each <= LONGEST
    request_directives(headers)
    text = data.replace(b"\n", b" ")
    for stricter in (b"no-store", b"private", b"no-cache"):
        both = response_directives(((b"cache-control", text), (b"cache-control", stricter)))
        assert {b"no-store": both.no_store, b"private": both.private, b"no-cache": both.no_cache}[stricter]
    assert request_directives(((b"cache-control", text), (b"cache-control", b"no-store"))).no_store


def fuzz_structured(data: bytes) -> None:
    """Structured fields have values of the types that there are, or none."""
    text = data.decode("latin-1")
    for member in parse_list(text) or []:
        assert member is not None
    for name in parse_dictionary(text) or {}:
        assert name == name.lower() != ""
    found = strings(((b"a", data),), b"a")
    assert len(set(found)) == len(found)


def fuzz_dates(data: bytes) -> None:
    """A date is read back from the format in which dates are written."""
    seconds = parse_http_date(data.decode("latin-1"), NOW)
    if seconds is not None and seconds < 253_402_300_800:
        moment = time.gmtime(seconds)
        again = time.strftime(f"%a, %d %b {moment.tm_year:04} %H:%M:%S GMT", moment)
        assert parse_http_date(again, NOW) == seconds


def fuzz_validators(data: bytes) -> None:
    """A response is identified by its own fields, and an update that comes twice changes nothing more."""
    one, other = two_heads(data)
    assert identifies(other, other)
    update = freshened(other, one, NOW)
    assert freshened(update, one, NOW) == update
    for method in ("GET", "QUERY"):
        assert isinstance(not_modified(RequestHead(method, one), 200, other, NOW), bool)
    conditions = validating_headers(one, other)
    if conditions is not None:
        assert {name for name, _ in conditions} & {b"if-none-match", b"if-modified-since"}
        assert not field_lines(conditions, b"range")
    head_agrees(one, stored(other))
    text = data.decode("latin-1")
    assert weakly_equal(text, text)


def fuzz_variants(data: bytes) -> None:
    """The form of a field means what the field means: it has the same form."""
    one, other = two_heads(data)
    names = vary_fields(other) or frozenset({"accept", "cookie"})
    selected = [(name, value and value.strip(" \t")) for name, value in variant(names, one)]
    again = tuple((n.encode("latin-1"), v.encode("latin-1")) for n, v in selected if v is not None)
    assert [*variant(names, again)] == selected
    told = announced(other, ("x-new",))
    assert vary_fields(other) is None or "x-new" in (vary_fields(told) or ())


def fuzz_ranges(data: bytes) -> None:
    """A part is one of the whole, and its fields say which."""
    one, other = two_heads(data)
    response = stored(other)
    part = ranged(RequestHead("GET", one), response)
    if part is not None:
        assert (part.status, part.body != b"") in ((206, True), (416, False))
        assert part.body in response.body
        assert combined(part.headers, b"content-length") == str(len(part.body))
        assert len(field_lines(part.headers, b"content-range")) == 1
    text = data.decode("latin-1")
    for length in (0, 1, 10):
        wanted = wanted_range(text, length)
        assert wanted is None or wanted == UNSATISFIABLE or 0 <= wanted.start < wanted.stop <= length
    if_range_holds(text, other, NOW)


def fuzz_decisions(data: bytes) -> None:
    """What is stored is of use, and what answers is what the client accepts."""
    one, other = two_heads(data)
    for policy in POLICIES:
        request = RequestHead("GET", one)
        for status in (200, 206, 304, 404, 500):
            head = ResponseHead(status, other)
            said = response_directives(other)
            refusal = why_not_store(request, head, said, policy, NOW)
            lifetime = freshness_lifetime(head, said, policy, NOW)
            if refusal is None:
                assert lifetime is not None
                seconds = keep_for(head, lifetime, stale_windows(head, said, policy), policy)
                assert 0 <= lifetime <= seconds
                assert seconds > 0
                assert not said.private
                assert said.must_understand or not said.no_store
                assert unshared_credential(request, said, policy) is None
        asked = asked_by(request, policy)
        found = stored(other)
        answer = select(request, asked, found, policy, NOW + 30)
        if isinstance(answer, Hit):
            assert answer.age >= 0
            assert not asked.no_cache
            assert not response_directives(other).no_cache
            assert asked.max_age is None or answer.age <= asked.max_age
        else:
            assert isinstance(answer, Forward)
        why_pass(request, asked)
        withheld_fields(response_directives(other), policy)
        assert min(stale_windows(ResponseHead(200, other), response_directives(other), policy)) >= 0
        answers_get(TARGET, ResponseHead(200, other), NOW)


def fuzz_ages(data: bytes) -> None:
    """An age has its bounds, and never falls."""
    response = stored(fields_from(data))
    ages = [current_age(response, NOW + seconds) for seconds in (-9, 0, 1, 1e9)]
    assert ages == sorted(ages)
    assert 0 <= ages[0] <= ages[-1] <= LONGEST
    assert 0 <= age_value(response.headers) <= LONGEST
    date_value(response.headers, NOW)


def fuzz_invalidation(data: bytes) -> None:
    """Whatever an answer names, only URLs of the target's origin are invalidated, and the target always is."""
    target, *others = to_invalidate("POST", TARGET, 200, fields_from(data))
    assert target == TARGET
    assert all(url.startswith("http://h") and url[8:9] in ("", "/", "?") for url in others)
    for name in (b"location", b"content-location"):
        to_invalidate("PUT", TARGET, 201, ((name, data),))


def fuzz_globs(data: bytes) -> None:
    """A pattern that is cut matches all that it did, and all that it matches is in its directory."""
    pattern, _, text = data.decode("utf-8", "replace").partition("\n")
    cut = fitted(pattern)
    assert len(cut) <= MAX_PATTERN
    try:
        matches = compile_glob(pattern)
    except ConfigurationError:
        assert len(pattern) > MAX_PATTERN
        return
    path = f"/{text}"
    if matches(path):
        assert compile_glob(cut)(path)
        assert path.startswith(literal_directory(pattern))


def fuzz_cache_status(data: bytes) -> None:
    """Cache-Status is a structured field."""
    number = int.from_bytes(data[4:9], "little", signed=True)
    flags = data[:4].ljust(4, b"\0")
    status = CacheStatus(
        hit=bool(flags[0] & 1),
        fwd=[None, *Fwd][flags[1] % (len(Fwd) + 1)],
        fwd_status=flags[0] or None,
        ttl=number if flags[0] & 2 else None,
        stored=bool(flags[0] & 4),
        collapsed=bool(flags[0] & 8),
        detail=[None, *Refusal][flags[2] % (len(Refusal) + 1)],
    )
    assert parse_list(str(status)) == [Token(NAME)]
    assert status.outcome


def stored(headers: Headers) -> StoredResponse:
    """Return a response with *headers* that was stored a moment after it was asked for."""
    return StoredResponse(200, headers, b"0123456789", NOW - 1, NOW, 60.0)


TARGETS: tuple[Callable[[bytes], None], ...] = (
    fuzz_lists,
    fuzz_fields,
    fuzz_directives,
    fuzz_cache_control,
    fuzz_structured,
    fuzz_dates,
    fuzz_validators,
    fuzz_variants,
    fuzz_ranges,
    fuzz_decisions,
    fuzz_ages,
    fuzz_invalidation,
    fuzz_globs,
    fuzz_cache_status,
)

"""What a backend gives back is the record that it was given, or no record at all (F12)."""

from __future__ import annotations

import json
import math
import pickle
import random
import re
import struct
import tracemalloc
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app_cache.codec import (
    MAGIC,
    PREFIX,
    TEXT_MARK,
    VERSION,
    Entry,
    Mark,
    Record,
    Value,
    Variants,
    checksum,
    decode,
    encode,
    entity_tag_of,
    from_text,
    to_text,
)
from app_cache.rules.messages import StoredResponse
from tests.stored import entry_of
from tests.timing import assert_within

KEY = "cache:" + "0" * 64
RESPONSE = StoredResponse(
    status=200,
    headers=((b"content-type", b"text/plain"), (b"Set-Cookie", b"a=1"), (b"set-cookie", b"b=2"), (b"x", b"\xe4")),
    body=bytes(range(256)),
    requested_at=1_500_000_000.25,
    received_at=1_500_000_001.5,
    freshness_lifetime=60.0,
    stale_while_revalidate=5.0,
    stale_if_error=7.0,
)
ENTRY = entry_of(KEY, Mark("abc", 7, {"a": "b"}), ("t:\xe4", "u:/"), "/\xe4", "logical", RESPONSE)
VARIANTS = Variants(KEY, (("accept", "x-a"), ("accept",)), (f"{KEY}:1", f"{KEY}:2"), 60.0)
VALUE = Value(
    KEY, Mark("abc", 7, {"a": "b"}), ("k:\xe4", "t:b"), "\xe4", b"\x93\x01\x02\x03", 1.5e9, 60.0, 5.0, 7.0
)
RECORDS = [
    pytest.param(ENTRY, id="entry"),
    pytest.param(VARIANTS, id="variants"),
    pytest.param(VALUE, id="value"),
]

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
seconds = st.floats(-1e15, 1e15)
values = st.binary(max_size=8).map(lambda value: re.sub(rb"[\r\n\0]", b" ", value))
marks = st.builds(Mark, texts, st.integers(0, 2**63), st.dictionaries(texts, texts, max_size=2))
entries = st.builds(
    Entry,
    key=texts,
    mark=marks,
    tags=st.lists(texts, max_size=2).map(tuple),
    path=texts,
    logical_key=st.none() | texts,
    status=st.integers(200, 599),
    headers=st.lists(st.tuples(values, values), max_size=3).map(tuple),
    body=st.binary(max_size=50),
    requested_at=seconds,
    received_at=seconds,
    freshness_lifetime=seconds,
    stale_while_revalidate=seconds,
    stale_if_error=seconds,
)
variants = st.builds(
    Variants,
    key=texts,
    fields=st.lists(st.lists(texts, max_size=2).map(tuple), max_size=2).map(tuple),
    kept=st.lists(texts, max_size=2).map(tuple),
    keep_for=seconds,
)
stored_values = st.builds(
    Value,
    key=texts,
    mark=marks,
    tags=st.lists(texts, max_size=2).map(tuple),
    logical_key=texts,
    content=st.binary(max_size=50),
    made_at=seconds,
    freshness_lifetime=seconds,
    stale_while_revalidate=seconds,
    stale_if_error=seconds,
)


def wrapped(content: bytes, *, magic: bytes = MAGIC, version: int = VERSION, reserved: int = 0) -> bytes:
    """Return *content* behind a prefix that is right for it, but for what is said."""
    return PREFIX.pack(magic, version, reserved, len(content), checksum(content, KEY)) + content


def content_of(record: Record) -> bytes:
    """Return the content of *record*, without its prefix."""
    return encode(record)[PREFIX.size :]


def changed(**changes: Any) -> bytes:
    """Return the entry with *changes*, as bytes that are right in all else."""
    return encode(msgspec.structs.replace(ENTRY, **changes))


@given(entries | variants | stored_values)
def test_round_trip(record: Record) -> None:
    """What was encoded is decoded as it was, from bytes and from text."""
    raw = encode(record)
    assert decode(raw, record.key) == record
    assert decode(from_text(to_text(raw)), record.key) == record


@pytest.mark.parametrize("key", ["", "\N{LATIN SMALL LETTER A WITH DIAERESIS}", "\ud800"], ids=ascii)
def test_odd_keys(key: str) -> None:
    """Any text is a key, one without an encoding too."""
    record = msgspec.structs.replace(ENTRY, key=key)
    assert decode(encode(record), key) == record
    assert decode(encode(ENTRY), key) is None


def test_response() -> None:
    """An entry gives the response that it was made of: status, fields in order with duplicates, body, times."""
    decoded = decode(encode(ENTRY), KEY)
    assert isinstance(decoded, Entry)
    assert decoded.response() == RESPONSE


def test_memoryview() -> None:
    """A buffer that a client gives without a copy is read as bytes are."""
    assert decode(memoryview(encode(ENTRY)), KEY) == ENTRY  # type: ignore[arg-type]


@pytest.mark.parametrize("record", RECORDS)
def test_truncated(record: Record) -> None:
    """No beginning of a record is a record, and none with more behind it."""
    raw = encode(record)
    assert [size for size in range(len(raw)) if decode(raw[:size], KEY) is not None] == []
    assert decode(raw + b"\0", KEY) is None
    assert decode(raw + raw, KEY) is None


@pytest.mark.parametrize("record", RECORDS)
def test_one_bit_off(record: Record) -> None:
    """A record of which one bit is off is no record."""
    raw = encode(record)
    for bit in range(len(raw) * 8):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        assert decode(bytes(flipped), KEY) is None


@pytest.mark.parametrize("record", RECORDS)
@pytest.mark.parametrize("seed", range(4))
def test_mutated(record: Record, seed: int) -> None:
    """However a record is damaged, what is decoded is the original or nothing: 10,000 mutations of each."""
    chance = random.Random(seed)
    raw = encode(record)
    for _ in range(2_500):
        damaged = mutated(raw, chance)
        assert decode(damaged, KEY) == (record if damaged == raw else None)


@pytest.mark.parametrize("record", RECORDS)
@pytest.mark.parametrize("seed", range(4))
def test_forged(record: Record, seed: int) -> None:
    """Damaged content behind a right prefix raises nothing, and what is decoded is a whole record of its key."""
    chance = random.Random(seed)
    content = content_of(record)
    for _ in range(2_500):
        decoded = decode(wrapped(mutated(content, chance)), KEY)
        assert decoded is None or decoded.key == KEY
        if isinstance(decoded, Value):
            assert math.isfinite(decoded.made_at + decoded.freshness_lifetime)
        if isinstance(decoded, Entry):
            assert encode(decoded)
            assert math.isfinite(decoded.received_at - decoded.requested_at + decoded.freshness_lifetime)


@given(st.binary(max_size=60))
def test_anything(raw: bytes) -> None:
    """No bytes raise, whether they stand alone or behind a right prefix."""
    assert decode(raw, KEY) is None
    assert decode(wrapped(raw), KEY) is None


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"12345678901234567890", id="digits"),
        pytest.param(json.dumps({"status": 200, "body": "x" * 100}).encode(), id="JSON"),
        pytest.param(pickle.dumps(RESPONSE.body), id="pickle"),
        pytest.param(b"\0" * 100, id="zeros"),
        pytest.param(b"\xff" * 100, id="ones"),
        pytest.param(content_of(ENTRY), id="content without prefix"),
        pytest.param(wrapped(content_of(ENTRY), magic=b"\xacS"), id="another magic"),
        pytest.param(wrapped(content_of(ENTRY), version=VERSION - 1), id="an old version"),
        pytest.param(wrapped(content_of(ENTRY), version=VERSION + 1), id="a new version"),
        pytest.param(wrapped(content_of(ENTRY), reserved=1), id="a reserved bit"),
        pytest.param(wrapped(b""), id="no content"),
        pytest.param(wrapped(msgspec.msgpack.encode({"key": KEY})), id="another shape"),
        pytest.param(wrapped(msgspec.msgpack.encode(["x", KEY])), id="another kind"),
        pytest.param(wrapped(content_of(ENTRY) + b"\xc0"), id="more than a record"),
        pytest.param(wrapped(msgspec.msgpack.encode(ENTRY)), id="its key among its bytes"),
        pytest.param(wrapped(pickle.dumps(RESPONSE.body)), id="a pickle behind a right prefix"),
        pytest.param(wrapped(b"\x91" * 100_000), id="lists within lists"),
        pytest.param(wrapped(content_of(ENTRY).replace(b"/\xc3\xa4", b"/\xff\xff")), id="text that is no UTF-8"),
    ],
)
def test_foreign(raw: bytes) -> None:
    """What something else has written is no record, and is never run (S22)."""
    assert decode(raw, KEY) is None


class Trap:
    """Springs when its pickle is loaded."""

    sprung = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return spring, ()


def spring() -> None:
    """Count a pickle that was loaded."""
    Trap.sprung += 1


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(pickle.dumps(Trap()), id="alone"),
        pytest.param(wrapped(pickle.dumps(Trap())), id="behind a right prefix"),
        pytest.param(changed(body=pickle.dumps(Trap())), id="as a body"),
    ],
)
def test_pickle(raw: bytes) -> None:
    """A pickle is never loaded, wherever it stands (S22)."""
    decode(raw, KEY)
    assert Trap.sprung == 0


@pytest.mark.parametrize("record", RECORDS)
@pytest.mark.parametrize("key", ["", KEY[:-1], f"{KEY}:1", KEY.upper()])
def test_of_another_key(record: Record, key: str) -> None:
    """A record that was copied under another key is none (S23)."""
    assert decode(encode(record), key) is None


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"headers": ((b"a", b"b\r\nset-cookie: c"),)}, id="newline in a value"),
        pytest.param({"headers": ((b"a", b"b"), (b"c\nd", b"e"))}, id="newline in a name"),
        pytest.param({"headers": ((b"a", b"b\rc"),)}, id="carriage return"),
        pytest.param({"headers": ((b"a", b"b\0"),)}, id="NUL"),
        pytest.param({"status": 199}, id="a status that is not final"),
        pytest.param({"status": 600}, id="a status that there is not"),
        pytest.param({"status": -200}, id="a status below zero"),
        pytest.param({"received_at": math.nan}, id="a time that is no number"),
        pytest.param({"freshness_lifetime": math.inf}, id="fresh for ever"),
        pytest.param({"requested_at": -math.inf}, id="asked for never"),
        pytest.param({"received_at": 1e300}, id="a time beyond all years"),
    ],
)
def test_unsendable(changes: dict[str, Any]) -> None:
    """A record that cannot be sent or reckoned with is refused, though its checksum is right (S29)."""
    assert decode(changed(), KEY) == ENTRY
    assert decode(changed(**changes), KEY) is None


@pytest.mark.parametrize("field", ["made_at", "freshness_lifetime", "stale_while_revalidate", "stale_if_error"])
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 1e300])
def test_value_without_time(field: str, number: float) -> None:
    """A value whose times cannot be reckoned with is refused, though its checksum is right."""
    assert decode(encode(msgspec.structs.replace(VALUE, **{field: number})), KEY) is None


@pytest.mark.parametrize(
    ("before", "claim"),
    [
        pytest.param(b"\x92\xa4t:", b"\xdd\xff\xff\xff\xff\xa4t:", id="tags"),
        pytest.param(b"\xc5\x01\x00", b"\xc6\xff\xff\xff\xff", id="body"),
        pytest.param(b"\x81\xa1a\xa1b", b"\xdf\xff\xff\xff\xff\xa1a\xa1b", id="tokens"),
        pytest.param(b"\xa7logical", b"\xdb\xff\xff\xff\xfflogical", id="logical key"),
    ],
)
def test_bounds(before: bytes, claim: bytes) -> None:
    """Nothing is allocated for a length that a record claims and does not have (S24)."""
    content = content_of(ENTRY)
    assert content.count(before) == 1
    raw = wrapped(content.replace(before, claim))
    tracemalloc.start()
    try:
        assert decode(raw, KEY) is None
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_claimed_length() -> None:
    """A prefix whose length is not that of the content is refused, though the checksum is right."""
    content = content_of(ENTRY)
    for length in (0, len(content) - 1, len(content) + 1, 2**32 - 1):
        claimed = PREFIX.pack(MAGIC, VERSION, 0, length, checksum(content, KEY))
        assert decode(claimed + content, KEY) is None


@pytest.mark.alone
def test_time() -> None:
    """Records of 1 MB are decoded and refused in time in proportion to them: some ms, at most 100 each here."""
    raw = changed(body=bytes(1_000_000), headers=tuple((b"a", b"b") for _ in range(1_000)))
    assert decode(raw, KEY) is not None
    for data, key in ((raw, KEY), (raw[:-1], KEY), (raw, "another")):
        assert_within(0.1, decode, data, key)


# Text.


def test_text() -> None:
    """As text a record is ASCII behind a mark."""
    text = to_text(encode(ENTRY))
    assert text.isascii()
    assert text.startswith(TEXT_MARK)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("value", id="something else"),
        pytest.param('{"a": 1}', id="JSON"),
        pytest.param("12345", id="digits"),
        pytest.param(TEXT_MARK, id="the mark alone"),
        pytest.param(f"{TEXT_MARK}abc", id="no padding"),
        pytest.param(f"{TEXT_MARK}a b=", id="a blank"),
        pytest.param(f"{TEXT_MARK}\xe4\xf6\xfc=", id="no ASCII"),
        pytest.param(f"{TEXT_MARK}\udcff", id="no text"),
        pytest.param(to_text(encode(ENTRY)).lower(), id="another case"),
        pytest.param(to_text(encode(ENTRY))[len(TEXT_MARK) :], id="no mark"),
        pytest.param(" " + to_text(encode(ENTRY)), id="blank first"),
        pytest.param(to_text(encode(ENTRY)) + "\n", id="newline last"),
    ],
)
def test_foreign_text(text: str) -> None:
    """Text that something else has written is no record."""
    assert decode(from_text(text), KEY) is None


@given(st.text())
def test_any_text(text: str) -> None:
    """No text raises, with the mark or without."""
    from_text(text)
    from_text(TEXT_MARK + text)


# Entity tags.


@given(st.binary(max_size=20), st.binary(max_size=20))
def test_entity_tag_of(one: bytes, other: bytes) -> None:
    """A body has a strong entity tag, another body another (RFC 9110 §8.8.3)."""
    assert re.fullmatch(rb'"[0-9a-f]{32}"', entity_tag_of(one, ()))
    assert (entity_tag_of(one, ()) == entity_tag_of(other, ())) is (one == other)


@pytest.mark.parametrize(
    ("field", "tells"),
    [
        pytest.param((b"Content-Type", b"text/plain"), True, id="type"),
        pytest.param((b"content-encoding", b"gzip"), True, id="coding"),
        pytest.param((b"content-language", b"de"), True, id="language"),
        pytest.param((b"x-request-id", b"1"), False, id="what says nothing of the body"),
    ],
)
def test_entity_tag_of_the_same_bytes(field: tuple[bytes, bytes], tells: bool) -> None:
    """The same bytes in another representation have another entity tag (RFC 9110 §8.8.1)."""
    assert (entity_tag_of(b"[]", (field,)) != entity_tag_of(b"[]", ())) is tells


def mutated(raw: bytes, chance: random.Random) -> bytes:
    """Return *raw* with one to three damages of some kind."""
    damaged = bytearray(raw)
    for _ in range(chance.randint(1, 3)):
        start = chance.randrange(len(damaged) + 1)
        end = min(len(damaged), start + chance.randint(1, 8))
        kind = chance.randrange(5)
        if kind == 0:
            damaged[start:end] = chance.randbytes(end - start)
        elif kind == 1:
            del damaged[start:end]
        elif kind == 2:
            damaged[start:start] = chance.randbytes(chance.randint(1, 8))
        elif kind == 3:
            other = chance.randrange(len(damaged) + 1)
            damaged[start:end] = damaged[other : other + end - start]
        else:
            damaged[start:end] = struct.pack(">I", chance.choice([0, 1, 2**31, 2**32 - 1]))[: end - start]
    return bytes(damaged)

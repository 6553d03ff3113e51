"""Entries as bytes: a checked prefix, then msgpack; what does not decode exactly is no entry.

    magic 2 · version 1 · reserved 1 · length 4 · checksum 8 · msgpack

The checksum is the xxh3-64 of the msgpack, seeded by that of the key which the entry stands under, so that a value
copied under another key is refused; the key itself is not repeated. Nothing is allocated before the length and the
checksum agree, and nothing but plain values is ever built.
"""

from __future__ import annotations

import base64
import struct
from itertools import chain
from typing import TYPE_CHECKING, Annotated

import msgspec
import xxhash

from app_cache.rules.messages import Fields, StoredResponse
from app_cache.rules.variants import announced

if TYPE_CHECKING:
    from app_cache.rules.messages import Headers

MAGIC = b"\xacR"
VERSION = 2
PREFIX = struct.Struct(">2sBBIQ")
DESCRIBING = frozenset({b"content-encoding", b"content-language", b"content-type"})
"""Fields without which the same bytes are another representation."""
TEXT_MARK = "app-cache:"
"""What an entry begins with on a backend that keeps text only."""


Finite = Annotated[float, msgspec.Meta(ge=-1e15, le=1e15)]
"""Seconds that can be reckoned with: neither infinite nor NaN."""


class Mark(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The state of the invalidation clock that an entry was filled under.

    Args:
        generation: The life of the clock, empty where the clock has only tokens.
        epoch: The number of invalidations before the fill began.
        tokens: Stamps by name, where the backend can keep no epoch.
        term: The history of the server that the epoch was begun in, empty where none is known.
    """

    generation: str = ""
    epoch: int = 0
    tokens: dict[str, str] = {}
    term: str = ""


class Entry(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="e"):
    """A stored response as a backend holds it, with what an invalidation may name.

    *key*: What it stands under, and so is not among its bytes.
    *session_read*: The endpoint read the session, so middleware further out announced Cookie in Vary, which is not
    among *headers*.
    """

    key: str
    mark: Mark
    tags: tuple[str, ...]
    path: str
    logical_key: str | None
    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    requested_at: Finite
    received_at: Finite
    freshness_lifetime: Finite
    stale_while_revalidate: Finite
    stale_if_error: Finite
    session_read: bool = False

    def response(self) -> StoredResponse:
        """Return the response that is kept, as clients get it."""
        return StoredResponse(
            self.status,
            Fields(announced(self.headers, ("cookie",)) if self.session_read else self.headers),
            self.body,
            self.requested_at,
            self.received_at,
            self.freshness_lifetime,
            self.stale_while_revalidate,
            self.stale_if_error,
        )


class Variants(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="v"):
    """What stands under a key whose responses vary: which fields they vary by, and which variants are kept.

    Args:
        key: The key that this stands under, not among its bytes.
        fields: Sets of lower-case field names, each sorted, the newest first.
        kept: Digests of the variants, the least used first.
        keep_for: Seconds that the backend holds this each time it is written: as long as any variant.
    """

    key: str
    fields: tuple[tuple[str, ...], ...]
    kept: tuple[str, ...]
    keep_for: Finite


class Value(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="o"):
    """A value of the application's own as a backend holds it, with what an invalidation may name.

    Args:
        key: The key that this stands under, not among its bytes.
        mark: The state of the clock before it was made.
        tags: The names of its stamps.
        logical_key: The key that the application gave.
        content: The value as msgpack, of whatever type.
        made_at: When it was made, in epoch seconds.
        freshness_lifetime: Seconds for which it is fresh.
        stale_while_revalidate: Seconds beyond, in which it is given while it is made anew.
        stale_if_error: Seconds beyond, in which it stands in for a failure.
    """

    key: str
    mark: Mark
    tags: tuple[str, ...]
    logical_key: str
    content: bytes
    made_at: Finite
    freshness_lifetime: Finite
    stale_while_revalidate: Finite
    stale_if_error: Finite

    @property
    def path(self) -> str:
        """Empty: a value has no URL."""
        return ""


Record = Entry | Variants | Value

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Record] = msgspec.msgpack.Decoder(Record)


def compact(seconds: float) -> float:
    """Return *seconds* as an int if they are whole: it takes fewer bytes, and is read back as a float."""
    return whole if (whole := int(seconds)) == seconds else seconds


def encode(record: Record) -> bytes:
    """Return *record* as bytes."""
    content = _encoder.encode(msgspec.structs.replace(record, key=""))
    return PREFIX.pack(MAGIC, VERSION, 0, len(content), checksum(content, record.key)) + content


def checksum(content: bytes | memoryview, key: str) -> int:
    """Return the checksum of *content* under *key*."""
    return xxhash.xxh3_64_intdigest(content, xxhash.xxh3_64_intdigest(key.encode("utf-8", "surrogatepass")))


def decode(raw: bytes, key: str) -> Record | None:
    """Return what *raw* holds if it is exactly a record of *key*, else None; no input raises."""
    if len(raw) < PREFIX.size:
        return None
    magic, version, reserved, length, check = PREFIX.unpack_from(raw)
    content = memoryview(raw)[PREFIX.size :]
    if (magic, version, reserved, length) != (MAGIC, VERSION, 0, len(content)):
        return None
    if checksum(content, key) != check:
        return None
    try:
        record = _decoder.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    if record.key or (isinstance(record, Entry) and not _is_sendable(record.status, record.headers)):
        return None
    msgspec.structs.force_setattr(record, "key", key)
    return record


def _is_sendable(status: int, headers: Headers) -> bool:
    """Return whether a stored head can be sent: no field can end its line (RFC 9110 §5.5)."""
    text = b"".join(chain.from_iterable(headers))
    return 200 <= status <= 599 and not (b"\n" in text or b"\r" in text or b"\0" in text)


def to_text(raw: bytes) -> str:
    """Return *raw* as ASCII, for a backend that keeps text only."""
    return TEXT_MARK + base64.b64encode(raw).decode("ascii")


def from_text(text: str) -> bytes:
    """Return the bytes that `to_text` was given, or ``b""`` if *text* is something else."""
    if not text.startswith(TEXT_MARK):
        return b""
    try:
        return base64.b64decode(text[len(TEXT_MARK) :], validate=True)
    except ValueError:
        return b""


def entity_tag_of(body: bytes, headers: Headers) -> bytes:
    """Return a strong ETag for *body* as *headers* describe it (RFC 9110 §8.8.1, §8.8.3)."""
    seed = 0
    for name, value in headers:
        if name.lower() in DESCRIBING:
            seed = xxhash.xxh3_64_intdigest(name.lower() + value, seed)
    return f'"{xxhash.xxh3_128_hexdigest(body, seed)}"'.encode("ascii")

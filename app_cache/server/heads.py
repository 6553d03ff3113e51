"""What the bytes of a request say, read as strictly as can be.

What a lenient parser could read otherwise is not read at all.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from app_cache.fastpath import DECIDED_ANEW

if TYPE_CHECKING:
    from collections.abc import Iterable

    Field = tuple[bytes, bytes]

MAX_HEAD: Final = 8_192
"""Bytes of a request beyond which it is not looked at."""
NEVER = DECIDED_ANEW | {
    *(b"expect", b"forwarded", b"http2-settings", b"trailer", b"upgrade"),
    *(b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto"),
}
"""Fields of requests that are left to the server; so are others that begin with ``x-forwarded-``."""

_END = b"\r\n\r\n"
_REQUEST = re.compile(rb"GET [!-~\x80-\xff]+ HTTP/1\.1")
_LINE = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[^\x00-\x08\x0a-\x1f\x7f]*")


def closes_after(head: bytes, read: Iterable[Field]) -> bool | None:
    """Return whether the connection ends with the answer to *head*; None: the bytes alone do not decide.

    *read*: The fields that the server has read, names in lower case. If they are those of *head*, all of them,
    that is the request from its first byte to its last: no part of it was content, or belonged to another.
    """
    fields = fields_in(head)
    if fields is None or fields != [(name, value.strip(b" \t")) for name, value in read]:
        return None
    if any(name in NEVER or name.startswith(b"x-forwarded-") for name, _ in fields):
        return None
    hosts = [value for name, value in fields if name == b"host"]
    options = {value for name, value in fields if name == b"connection"}
    if (
        len(hosts) != 1
        or not hosts[0]
        or not all(each == b"close" or each.lower() == b"keep-alive" for each in options)
    ):
        return None
    return b"close" in options


def fields_in(head: bytes) -> list[Field] | None:
    """Return the fields of *head*, names in lower case, if it is one GET of HTTP/1.1 and nothing else."""
    if not head.endswith(_END):
        return None
    request, *lines = head[: -len(_END)].split(b"\r\n")
    if _REQUEST.fullmatch(request) is None or not all(map(_LINE.fullmatch, lines)):
        return None
    split = (line.partition(b":") for line in lines)
    return [(name.lower(), value.strip(b" \t")) for name, _, value in split]
